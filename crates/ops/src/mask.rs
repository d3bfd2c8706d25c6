//! The columns that a log-sum-exp leaves out for each row.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How in-batch negatives that share the row's target are treated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FalseNegatives {
    /// They are left out of the sum.
    #[default]
    Exclude,
    /// They count like every other negative (paper).
    Keep,
    /// Their logit is 0, so each adds exp(0) (released code).
    ZeroLogit,
}

/// Which entries of a matrix of logits join the sum of their row.
#[derive(Clone, Debug)]
pub enum Mask {
    /// All entries.
    None,
    /// Row j and column j' are in the groups `groups[first_row + j]` and `groups[j']`; `diagonal` says whether column `first_row + j` joins
    /// row j.
    FalseNegatives {
        /// The group of every column.
        groups: Arc<Vec<u32>>,
        /// How other columns of the row's group are treated.
        false_negatives: FalseNegatives,
        /// Whether the row's own column joins.
        diagonal: bool,
        /// The column of row 0, which is not 0 if the rows are a share of the columns.
        first_row: usize,
    },
}

/// What a mask does to one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MaskEntry {
    Keep,
    Drop,
    Zero,
}

impl Mask {
    pub(crate) fn entry(&self, row: usize, column: usize) -> MaskEntry {
        match self {
            Self::None => MaskEntry::Keep,
            Self::FalseNegatives { groups, false_negatives, diagonal, first_row } => {
                let row = row + first_row;
                match (row == column, groups[row] == groups[column]) {
                    (true, _) => {
                        if *diagonal {
                            MaskEntry::Keep
                        } else {
                            MaskEntry::Drop
                        }
                    }
                    (false, false) => MaskEntry::Keep,
                    (false, true) => match false_negatives {
                        FalseNegatives::Keep => MaskEntry::Keep,
                        FalseNegatives::Exclude => MaskEntry::Drop,
                        FalseNegatives::ZeroLogit => MaskEntry::Zero,
                    },
                }
            }
        }
    }
}
