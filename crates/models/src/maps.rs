//! Parameters that several models use: linear maps, LayerNorms, tables of ids.

use candle_core::{Tensor, Var};
use mp4sr_ops::{Result, RngKey};

use crate::{Initial, Parameters};

/// A linear map.
#[derive(Debug)]
pub(crate) struct Linear {
    /// `[in, out]`.
    pub weight: Var,
    /// `[out]`.
    pub bias: Var,
}

impl Linear {
    /// A map with parameters `<prefix>.weight` and `<prefix>.bias`.
    pub fn new(parameters: &mut Parameters, prefix: &str, input: usize, output: usize, key: RngKey) -> Result<Self> {
        let weight = parameters.add(&format!("{prefix}.weight"), &[input, output], Initial::Normal, key)?;
        Ok(Self { weight, bias: parameters.add(&format!("{prefix}.bias"), &[output], Initial::Zeros, key)? })
    }

    /// x W + b.
    pub fn of(&self, x: &Tensor) -> Result<Tensor> {
        mp4sr_ops::linear(x, &self.weight, &self.bias)
    }
}

/// The weight and the bias of a LayerNorm, `[d]` each.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    pub weight: Var,
    pub bias: Var,
}

impl Norm {
    /// A LayerNorm with parameters `<prefix>.weight` and `<prefix>.bias`.
    pub fn new(parameters: &mut Parameters, prefix: &str, width: usize, key: RngKey) -> Result<Self> {
        let weight = parameters.add(&format!("{prefix}.weight"), &[width], Initial::Ones, key)?;
        Ok(Self { weight, bias: parameters.add(&format!("{prefix}.bias"), &[width], Initial::Zeros, key)? })
    }

    /// LayerNorm of every row.
    pub fn of(&self, x: &Tensor) -> Result<Tensor> {
        mp4sr_ops::layer_norm(x, &self.weight, &self.bias)
    }

    /// The packed parameters of a transformer's input, `[n + 2, d]`: the positions `[n, d]`, then the weight and the bias.
    pub fn with_positions(&self, positions: &Tensor) -> Result<Tensor> {
        Tensor::cat(&[positions, &self.weight.unsqueeze(0)?, &self.bias.unsqueeze(0)?], 0)
    }
}

/// The parameter `id_embedding`, `[items + 1, d]`: row i is item i, and row 0 is zero and not used, as in the reference implementations.
pub(crate) fn id_table(parameters: &mut Parameters, items: usize, width: usize, key: RngKey) -> Result<Var> {
    let table = parameters.add("id_embedding", &[items + 1, width], Initial::Normal, key)?;
    let padding = Tensor::zeros((1, width), table.dtype(), table.device())?;
    table.set(&Tensor::cat(&[&padding, &table.narrow(0, 1, items)?], 0)?)?;
    Ok(table)
}
