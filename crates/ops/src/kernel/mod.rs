//! The arithmetic under the fused operators.

mod matrix;
mod vector;

pub(crate) use matrix::{Mat, matmul, transpose};
pub(crate) use vector::{
    accumulate, add_rows, add_scaled, add_scaled_short, add_weighted_rows, dot, erf, exp, max, sum,
};
