//! The words of a dictionary that are nearest to an image in CLIP's space.

use mp4sr_ops::InferenceLinear;

/// The smallest norm that a vector is divided by.
const SMALLEST_NORM: f32 = 1e-12;

/// The words that describe an image, best first, with their cosines.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageWords {
    /// Indices into the dictionary.
    pub words: Vec<usize>,
    /// The cosines between the embeddings of the image and of each word.
    pub scores: Vec<f32>,
}

/// The normalised embeddings of words, one row per word.
pub struct WordVectors(InferenceLinear);

impl WordVectors {
    /// Normalises embeddings `[words, d]`.
    pub fn new(mut embeddings: Vec<f32>, width: usize) -> Self {
        embeddings.chunks_exact_mut(width).for_each(normalise);
        let words = embeddings.len() / width;
        Self(InferenceLinear::new(&embeddings, vec![0.0; words]))
    }

    /// The `count` words nearest to an image's embedding `[d]`, best first; equal scores keep the dictionary's order.
    pub fn nearest(&self, image: &[f32], count: usize) -> ImageWords {
        let mut image = image.to_vec();
        normalise(&mut image);
        let mut scores = vec![0.0; self.0.outputs()];
        self.0.forward(&mut scores, &image);
        best(&scores, count)
    }
}

fn normalise(vector: &mut [f32]) {
    let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt().max(SMALLEST_NORM);
    vector.iter_mut().for_each(|x| *x /= norm);
}

fn best(scores: &[f32], count: usize) -> ImageWords {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order.truncate(count);
    ImageWords { scores: order.iter().map(|&i| scores[i]).collect(), words: order }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_words_come_first_and_ties_keep_the_order_of_the_dictionary() {
        let found = best(&[0.1, 0.5, 0.3, 0.5, -1.0], 3);
        assert_eq!(found, ImageWords { words: vec![1, 3, 2], scores: vec![0.5, 0.5, 0.3] });
        assert_eq!(best(&[0.1], 15).words, [0]);
    }

    #[test]
    fn similarity_is_the_cosine_whatever_the_lengths() {
        let words = WordVectors::new(vec![3.0, 0.0, 0.0, 0.5, -2.0, 0.0, 1.0, 1.0], 2);
        let found = words.nearest(&[10.0, 10.0], 3);
        assert_eq!(found.words, [3, 0, 1]);
        for (score, expected) in found.scores.iter().zip([1.0, 0.5_f32.sqrt(), 0.5_f32.sqrt()]) {
            assert!((score - expected).abs() < 1e-6);
        }
    }
}
