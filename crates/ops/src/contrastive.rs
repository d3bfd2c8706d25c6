//! NIP and CMCL (specification, section 5; paper, equations 7 to 10). All vectors come normalised; every sum of
//! exponentials goes through log-sum-exp.

use std::sync::Arc;

use candle_core::{D, Result, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{FalseNegatives, Mask, row_logsumexp};

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
pub struct Contrast {
    /// `[B]`: samples of one group are false negatives of each other.
    pub groups: Arc<Vec<u32>>,
    /// How they are treated.
    pub false_negatives: FalseNegatives,
    /// tau.
    pub temperature: f64,
    /// Of CMCL.
    pub direction: CmclDirection,
}

/// Terms of a batch, `[B]` each.
#[derive(Clone, Debug, Default)]
pub struct ContrastiveTerms {
    /// Next item prediction: the views against the targets.
    pub nip: Option<Tensor>,
    /// Cross-modality contrastive learning: the mean over ordered pairs of different views.
    pub cmcl: Option<Tensor>,
}

impl Contrast {
    pub(crate) fn scale(&self) -> f32 {
        (1.0 / self.temperature) as f32
    }

    /// log of the sum over j' of f(a_j, b_j'), `[B]`.
    fn log_sum(&self, a: &Tensor, b: &Tensor, diagonal: bool) -> Result<Tensor> {
        let mask = Mask::Groups { groups: self.groups.clone(), false_negatives: self.false_negatives, diagonal };
        row_logsumexp(a, b, self.scale(), &mask)
    }

    /// log f(a_j, b_j), `[B]`.
    fn log_pair(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        (a * b)?.sum(D::Minus1)? / self.temperature
    }

    /// NIP of one modality: views of the sequence in the modality's space against targets there.
    fn nip(&self, views: &[Tensor], targets: &Tensor) -> Result<Tensor> {
        let pairs = views.iter().map(|view| self.log_pair(view, targets)).collect::<Result<Vec<_>>>()?;
        let sums = views.iter().map(|view| self.log_sum(view, targets, true)).collect::<Result<Vec<_>>>()?;
        log_add(&sums)? - log_add(&pairs)?
    }

    /// CMCL of different views.
    fn cmcl(&self, views: &[Tensor]) -> Result<Tensor> {
        let within = views.iter().map(|view| self.log_sum(view, view, false)).collect::<Result<Vec<_>>>()?;
        let mut terms = Vec::new();
        for a in 0..views.len() {
            for b in (0..views.len()).filter(|&b| b != a) {
                let (rows, columns) = match self.direction {
                    CmclDirection::RowSums if b < a => (&views[b], &views[a]),
                    _ => (&views[a], &views[b]),
                };
                let cross = self.log_sum(rows, columns, true)?;
                let pair = self.log_pair(&views[a], &views[b])?;
                terms.push((log_add(&[cross, within[a].clone()])? - pair)?);
            }
        }
        Tensor::stack(&terms, 0)?.mean(0)
    }
}

/// log of the sum of exponentials of several `[B]`; terms may be -inf, not all of them.
fn log_add(terms: &[Tensor]) -> Result<Tensor> {
    let stacked = Tensor::stack(terms, 1)?;
    let top = stacked.max_keepdim(1)?.detach();
    (stacked.broadcast_sub(&top)?.exp()?.sum_keepdim(1)?.log()? + top)?.squeeze(1)
}

/// NIP where there are targets, and CMCL where `cross` asks for it and there are several views: `[B, d]` each, a modality's own
/// view first.
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
    let nip = targets.map(|targets| contrast.nip(views, targets)).transpose()?;
    Ok(ContrastiveTerms { nip, cmcl: if cross { Some(contrast.cmcl(views)?) } else { None } })
}
