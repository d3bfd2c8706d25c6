//! The arithmetic of the fused operators.

pub(crate) mod bf16;
mod mat;
mod matrix;
mod vector;

pub(crate) use mat::Mat;
pub(crate) use matrix::{dot_as_product, matmul, matmul_f32, matmul_in, rounds, transpose};
pub(crate) use vector::{
    accumulate, add_rows, add_scaled, add_scaled_short, add_weighted_rows, dot, erf, exp, max, sum,
};
