//! NIP and CMCL (specification, section 5; paper, equations 7 to 10). All vectors come normalised; every sum of
//! exponentials goes through log-sum-exp.

use std::sync::Arc;

use candle_core::{D, Tensor};
use mp4sr_ops::{FalseNegatives, Mask, Result, row_logsumexp};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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

/// What NIP and CMCL share: the temperature, and which samples of the batch are negatives of each other.
#[derive(Clone, Debug)]
pub(crate) struct Negatives {
    targets: Arc<Vec<u32>>,
    treatment: FalseNegatives,
    temperature: f64,
}

impl Negatives {
    pub fn new(targets: &[u32], treatment: FalseNegatives, temperature: f64) -> Self {
        Self { targets: Arc::new(targets.to_vec()), treatment, temperature }
    }

    /// log of the sum over j' of f(a_j, b_j'), `[B]`.
    fn log_sum(&self, a: &Tensor, b: &Tensor, diagonal: bool) -> Result<Tensor> {
        let mask = Mask::Groups { groups: self.targets.clone(), false_negatives: self.treatment, diagonal };
        row_logsumexp(a, b, (1.0 / self.temperature) as f32, &mask)
    }

    /// log f(a_j, b_j), `[B]`.
    fn log_pair(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        (a * b)?.sum(D::Minus1)? / self.temperature
    }
}

/// log of the sum of exponentials of several `[B]`; terms may be -inf, not all of them.
fn log_add(terms: &[Tensor]) -> Result<Tensor> {
    let stacked = Tensor::stack(terms, 1)?;
    let top = stacked.max_keepdim(1)?.detach();
    (stacked.broadcast_sub(&top)?.exp()?.sum_keepdim(1)?.log()? + top)?.squeeze(1)
}

/// NIP of one modality, a term per sequence `[B]`: views of the sequence in the modality's space against targets there.
pub(crate) fn nip_rows(views: &[Tensor], targets: &Tensor, negatives: &Negatives) -> Result<Tensor> {
    let pairs = views.iter().map(|view| negatives.log_pair(view, targets)).collect::<Result<Vec<_>>>()?;
    let sums = views.iter().map(|view| negatives.log_sum(view, targets, true)).collect::<Result<Vec<_>>>()?;
    log_add(&sums)? - log_add(&pairs)?
}

/// CMCL, a term per sequence `[B]`: the mean over ordered pairs of different views.
pub(crate) fn cmcl_rows(views: &[Tensor], direction: CmclDirection, negatives: &Negatives) -> Result<Tensor> {
    let within = views.iter().map(|view| negatives.log_sum(view, view, false)).collect::<Result<Vec<_>>>()?;
    let mut terms = Vec::new();
    for a in 0..views.len() {
        for b in (0..views.len()).filter(|&b| b != a) {
            let (rows, columns) = match direction {
                CmclDirection::RowSums if b < a => (&views[b], &views[a]),
                _ => (&views[a], &views[b]),
            };
            let cross = negatives.log_sum(rows, columns, true)?;
            let pair = negatives.log_pair(&views[a], &views[b])?;
            terms.push((log_add(&[cross, within[a].clone()])? - pair)?);
        }
    }
    Tensor::stack(&terms, 0)?.mean(0)
}
