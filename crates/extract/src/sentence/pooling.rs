//! How the vectors of a text's tokens become one.

use mp4sr_ops::Readout;

/// How the vectors of tokens are combined into one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pooling {
    First,
    Max,
    Mean,
    /// The sum divided by the square root of the number of tokens.
    MeanSqrt,
    /// The mean weighted by the tokens' positions, from 1 on.
    WeightedMean,
    Last,
}

impl Pooling {
    /// The mode that has this name in the reference.
    pub(super) fn named(mode: &str) -> std::result::Result<Self, String> {
        match mode {
            "cls" | "cls_token" => Ok(Self::First),
            "max" | "max_tokens" => Ok(Self::Max),
            "mean" | "mean_tokens" => Ok(Self::Mean),
            "mean_sqrt_len_tokens" => Ok(Self::MeanSqrt),
            "weightedmean" => Ok(Self::WeightedMean),
            "lasttoken" => Ok(Self::Last),
            other => Err(format!(
                "pooling_mode: expected one of cls, max, mean, mean_sqrt_len_tokens, weightedmean, lasttoken; found {other}"
            )),
        }
    }

    /// The readout by which a GPU pools in this mode, if it can.
    pub(super) fn readout(self) -> Option<Readout<'static>> {
        match self {
            Self::Mean => Some(Readout::Mean),
            Self::First => Some(Readout::First),
            Self::Max => Some(Readout::Max),
            Self::MeanSqrt | Self::WeightedMean | Self::Last => None,
        }
    }

    /// Pools a sequence's tokens `[tokens, d]` to its vector. A sequence without tokens gets zeros.
    pub(super) fn pool(self, tokens: &[f32], d: usize) -> Vec<f32> {
        let mut rows = tokens.chunks_exact(d);
        let zeros = || vec![0.0; d];
        let count = tokens.len() / d;
        match self {
            Self::First => rows.next().map_or_else(zeros, <[f32]>::to_vec),
            Self::Last => rows.next_back().map_or_else(zeros, <[f32]>::to_vec),
            Self::Mean => weighted(rows, zeros(), |_| 1.0, count as f32),
            Self::MeanSqrt => weighted(rows, zeros(), |_| 1.0, (count as f32).sqrt()),
            Self::WeightedMean => weighted(rows, zeros(), |at| (at + 1) as f32, (count * (count + 1) / 2) as f32),
            Self::Max => {
                let mut vector = rows.next().map_or_else(zeros, <[f32]>::to_vec);
                rows.for_each(|row| vector.iter_mut().zip(row).for_each(|(most, x)| *most = most.max(*x)));
                vector
            }
        }
    }
}

/// The weighted sum of rows, divided by `total`; `weight` takes the index of a row.
fn weighted<'r>(
    rows: impl Iterator<Item = &'r [f32]>,
    mut sum: Vec<f32>,
    weight: impl Fn(usize) -> f32,
    total: f32,
) -> Vec<f32> {
    for (at, row) in rows.enumerate() {
        let weight = weight(at);
        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * x);
    }
    let total = total.max(1.0);
    sum.iter_mut().for_each(|sum| *sum /= total);
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn poolings_match_a_hand_computed_case() {
        let tokens = [1.0, 8.0, 2.0, -4.0, 6.0, 2.0, 3.0, 2.0];
        let of = |mode: &str| Pooling::named(mode).unwrap().pool(&tokens, 2);
        assert_eq!(of("cls"), [1.0, 8.0]);
        assert_eq!(of("lasttoken"), [3.0, 2.0]);
        assert_eq!(of("max"), [6.0, 8.0]);
        assert_eq!(of("mean"), [3.0, 2.0]);
        assert_eq!(of("mean_sqrt_len_tokens"), [6.0, 4.0]);
        assert_eq!(of("weightedmean"), [3.5, 1.4]);
        assert_eq!(Pooling::WeightedMean.pool(&[], 2), [0.0, 0.0]);
    }
}
