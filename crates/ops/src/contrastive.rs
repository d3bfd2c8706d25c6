//! NIP and CMCL (specification, section 5; paper, equations 7 to 10). All vectors must be normalised; every sum of exponentials is computed
//! by log-sum-exp.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{D, Result, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{FalseNegatives, Mask, ProcessGroup, gather, gather_rows, rounded_as_factor, row_logsumexp};

/// The second direction of CMCL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CmclDirection {
    /// Its cross sum runs over a column of the first direction's matrix (paper).
    #[default]
    Symmetric,
    /// It uses the row sums of the first direction again (released code).
    RowSums,
}

/// The settings that NIP and CMCL share: the temperature, and which samples of the batch are negatives of each other.
#[derive(Clone, Debug)]
pub struct Contrast {
    /// The group of each sample, `[B]`; samples of one group are false negatives of each other.
    pub groups: Arc<Vec<u32>>,
    /// How false negatives are treated.
    pub false_negatives: FalseNegatives,
    /// tau, the temperature.
    pub temperature: f64,
    /// The second direction of CMCL.
    pub direction: CmclDirection,
}

/// The loss terms of a batch, `[B]` each.
#[derive(Clone, Debug, Default)]
pub struct ContrastiveTerms {
    /// Next item prediction: the views against the targets.
    pub nip: Option<Tensor>,
    /// Cross-modality contrastive learning: the mean over ordered pairs of different views.
    pub cmcl: Option<Tensor>,
}

/// The views of a share of the samples, and of all samples.
#[derive(Clone, Copy)]
struct Views<'a> {
    /// The views of the samples whose terms are computed.
    rows: &'a [Tensor],
    /// The views of all samples, with which they are compared.
    all: &'a [Tensor],
    /// The index of the first row among all samples.
    first_row: usize,
}

impl Contrast {
    pub(crate) fn scale(&self) -> f32 {
        (1.0 / self.temperature) as f32
    }

    /// The logarithm of the sum over j' of f(a_j, b_j'), `[rows]`; row 0 of `a` corresponds to column `first_row` of `b`.
    fn log_sum(&self, a: &Tensor, b: &Tensor, diagonal: bool, first_row: usize) -> Result<Tensor> {
        let (groups, false_negatives) = (self.groups.clone(), self.false_negatives);
        let mask = Mask::FalseNegatives { groups, false_negatives, diagonal, first_row };
        row_logsumexp(a, b, self.scale(), &mask)
    }

    /// log f(a_j, b_j), `[B]`.
    fn log_pair(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        log_pair(a, b, self.groups.len(), self.temperature)
    }

    /// NIP of one modality: the views of the sequence in the modality's space against the targets in that space.
    fn nip(&self, views: Views<'_>, targets: &Tensor, all_targets: &Tensor) -> Result<Tensor> {
        let pair = |view| self.log_pair(view, targets);
        let sum = |view| self.log_sum(view, all_targets, true, views.first_row);
        let pairs = views.rows.iter().map(pair).collect::<Result<Vec<_>>>()?;
        let sums = views.rows.iter().map(sum).collect::<Result<Vec<_>>>()?;
        log_add(&sums)? - log_add(&pairs)?
    }

    /// CMCL, as the mean over the ordered pairs of different views.
    fn cmcl(&self, Views { rows, all, first_row }: Views<'_>) -> Result<Tensor> {
        let both = rows.iter().zip(all);
        let within = both.map(|(rows, all)| self.log_sum(rows, all, false, first_row)).collect::<Result<Vec<_>>>()?;
        let mut terms = Vec::new();
        for a in 0..rows.len() {
            for b in (0..rows.len()).filter(|&b| b != a) {
                let (from, to) = match self.direction {
                    CmclDirection::RowSums if b < a => (b, a),
                    _ => (a, b),
                };
                let cross = self.log_sum(&rows[from], &all[to], true, first_row)?;
                let pair = self.log_pair(&rows[a], &rows[b])?;
                terms.push((log_add(&[cross, within[a].clone()])? - pair)?);
            }
        }
        Tensor::stack(&terms, 0)?.mean(0)
    }
}

/// log f(a_j, b_j), `[B]`, rounded like the products with `columns` vectors of which it is one.
fn log_pair(a: &Tensor, b: &Tensor, columns: usize, temperature: f64) -> Result<Tensor> {
    (rounded_as_factor(a, columns)? * rounded_as_factor(b, columns)?)?.sum(D::Minus1)? / temperature
}

/// The logarithm of the sum of the exponentials of several terms, `[B]` each. Some terms may be -inf, but not all of them.
fn log_add(terms: &[Tensor]) -> Result<Tensor> {
    let stacked = Tensor::stack(terms, 1)?;
    // This is not a reduction, because candle refuses to reduce a tensor without rows.
    let mut top = terms[0].detach();
    for term in &terms[1..] {
        top = top.maximum(&term.detach())?;
    }
    let top = top.unsqueeze(1)?;
    (stacked.broadcast_sub(&top)?.exp()?.sum_keepdim(1)?.log()? + top)?.squeeze(1)
}

/// Computes NIP if there are targets, and CMCL if `cross` is set and there are several views: `[B, d]` each, the modality's own view first.
pub fn contrastive(
    views: &[Tensor],
    targets: Option<&Tensor>,
    cross: bool,
    contrast: &Contrast,
) -> Result<ContrastiveTerms> {
    let cross = cross && views.len() > 1;
    #[cfg(feature = "cuda")]
    if views.first().is_some_and(|view| view.device().is_cuda()) && (cross || targets.is_some()) {
        let terms = crate::cuda::contrastive(&Tensor::stack(views, 0)?, targets, contrast)?;
        let nip = targets.map(|_| terms.get(0)).transpose()?;
        return Ok(ContrastiveTerms { nip, cmcl: if cross { Some(terms.get(1)?) } else { None } });
    }
    let columns = Views { rows: views, all: views, first_row: 0 };
    let nip = targets.map(|targets| contrast.nip(columns, targets, targets)).transpose()?;
    Ok(ContrastiveTerms { nip, cmcl: if cross { Some(contrast.cmcl(columns)?) } else { None } })
}

/// NIP of one modality against candidates that are the same for all samples, instead of against the targets of the batch: views `[B, d]`,
/// candidates `[C, d]` -> `[B]`. `targets` `[B]` has the row of each sample's target among the candidates.
pub fn next_item_prediction(
    views: &[Tensor],
    candidates: &Tensor,
    targets: &[u32],
    temperature: f64,
) -> Result<Tensor> {
    let (own, columns) = (gather(candidates, targets)?, candidates.dim(0)?);
    let pair = |view| log_pair(view, &own, columns, temperature);
    let sum = |view| row_logsumexp(view, candidates, (1.0 / temperature) as f32, &Mask::None);
    let pairs = views.iter().map(pair).collect::<Result<Vec<_>>>()?;
    let sums = views.iter().map(sum).collect::<Result<Vec<_>>>()?;
    log_add(&sums)? - log_add(&pairs)?
}

/// The terms of this process's share of a batch, `[rows]` each, against the views and targets of all processes. `shares` has the range of
/// samples of each process; the groups of `contrast` are those of the whole batch.
pub fn contrastive_in_group(
    group: &ProcessGroup,
    shares: &[Range<usize>],
    views: &[Tensor],
    targets: Option<&Tensor>,
    cross: bool,
    contrast: &Contrast,
) -> Result<ContrastiveTerms> {
    let cross = cross && views.len() > 1;
    let first_row = shares[group.rank()].start;
    // Only CMCL compares views with the views of all processes; NIP compares them with the targets.
    let gathered: Vec<&Tensor> = views.iter().filter(|_| cross).chain(targets).collect();
    let Some(d) = gathered.first().map(|rows| rows.dim(1)).transpose()? else {
        return Ok(ContrastiveTerms::default());
    };
    let counts: Vec<usize> = shares.iter().map(Range::len).collect();
    let all = gather_rows(group, "views and targets", &Tensor::cat(&gathered, 1)?, &counts)?;
    let all = (0..gathered.len()).map(|at| all.narrow(1, at * d, d)?.contiguous()).collect::<Result<Vec<_>>>()?;
    let columns = Views { rows: views, all: &all, first_row };
    let all_targets = all.last().filter(|_| targets.is_some());
    let nip = targets.zip(all_targets).map(|(own, all)| contrast.nip(columns, own, all)).transpose()?;
    Ok(ContrastiveTerms { nip, cmcl: if cross { Some(contrast.cmcl(columns)?) } else { None } })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn vectors<const N: usize>(rows: &[[f32; 2]; N]) -> Tensor {
        Tensor::new(rows, &Device::Cpu).unwrap()
    }

    /// With the temperature 1, f of equal vectors is e, f of orthogonal ones is 1, and f of opposite ones is 1 / e.
    #[test]
    fn next_item_prediction_among_candidates_matches_hand_computed_values() {
        let candidates = vectors(&[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]);
        let (own, other) = (vectors(&[[1.0, 0.0], [0.0, 1.0]]), vectors(&[[0.0, 1.0], [1.0, 0.0]]));
        let e = std::f32::consts::E;
        let nip = |views: &[Tensor], targets: &[u32]| {
            next_item_prediction(views, &candidates, targets, 1.0).unwrap().to_vec1::<f32>().unwrap()
        };
        let close = |found: Vec<f32>, expected: [f32; 2]| {
            let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(off < 1e-6, "{found:?} {expected:?}");
        };
        let (first, second) = (e + 1.0 + 1.0 / e, 1.0 + e + 1.0);
        close(nip(std::slice::from_ref(&own), &[0, 0]), [(first / e).ln(), second.ln()]);
        let both = first + second;
        close(nip(&[own, other], &[2, 1]), [(both / (1.0 / e + 1.0)).ln(), (both / (e + 1.0)).ln()]);
    }

    #[test]
    fn nip_among_the_targets_of_the_batch_is_nip_of_the_batch() {
        let key = crate::RngKey::new(2);
        let unit = |at: u64| {
            let values: Vec<f32> = (0..35).map(|i| key.fold_in_index(at).normal(i) as f32).collect();
            crate::normalize(&Tensor::from_vec(values, (7, 5), &Device::Cpu).unwrap()).unwrap()
        };
        let (views, targets) = ([unit(0), unit(1)], unit(2));
        let contrast = Contrast {
            groups: Arc::new((0..7).collect()),
            false_negatives: FalseNegatives::default(),
            temperature: 0.07,
            direction: CmclDirection::default(),
        };
        let in_batch = contrastive(&views, Some(&targets), false, &contrast).unwrap().nip.unwrap();
        let rows: Vec<u32> = (0..7).collect();
        let among = next_item_prediction(&views, &targets, &rows, 0.07).unwrap();
        let off = (in_batch - among).unwrap().abs().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
        assert!(off < 1e-5, "{off}");
    }
}
