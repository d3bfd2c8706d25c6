//! The arithmetic under the fused operators.

mod matrix;
mod vector;

pub(crate) use matrix::{Mat, matmul, transpose};
pub(crate) use vector::{accumulate, add_rows, add_scaled, add_scaled_short, dot, erf, exp, max, sum};
