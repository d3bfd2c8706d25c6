//! What a run of the stage computed and could not use (`features/report.json`).

use mp4sr_pipeline::Progress;
use mp4sr_pipeline::config::Extracted;
use serde::Serialize;

/// How many unusable images are named in the log.
const EXAMPLES: usize = 3;

/// How many vectors an encoder computed.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct EncoderWork {
    /// Distinct inputs.
    pub distinct: u64,
    /// How many of these were computed; the others were in the cache.
    pub computed: u64,
}

/// Counts of texts and images, and of the encoders' work.
#[derive(Debug, Default, Serialize)]
pub(super) struct ExtractReport {
    /// Sentences of all items.
    pub sentences: usize,
    /// Items without a sentence.
    pub items_without_text: usize,
    /// Images of all items.
    pub images: usize,
    /// How many of these have a vector.
    pub described: usize,
    /// Items without an image that has a vector.
    pub items_without_image: usize,
    /// Words in the dictionary.
    pub dictionary_words: usize,
    /// Sentences for the sentence encoder, including those made of image words.
    pub sentence_encoder: EncoderWork,
    /// Words for CLIP.
    pub word_encoder: EncoderWork,
    /// Image files for the image encoder.
    pub image_encoder: EncoderWork,
    /// Images that cannot be used.
    pub unusable: Vec<UnusableImage>,
}

/// An image that cannot be used.
#[derive(Debug, Serialize)]
pub(super) struct UnusableImage {
    /// The item that it belongs to.
    pub item_id: String,
    /// Its name in `items.parquet`.
    pub image: String,
    /// Why it cannot be used.
    pub reason: String,
}

impl ExtractReport {
    /// Logs the counts, of `items` items.
    pub fn log(&self, items: usize, extracted: Extracted, progress: &Progress) {
        let log = |line: String| progress.say(line);
        let Self { sentences, items_without_text, sentence_encoder, word_encoder, image_encoder, .. } = self;
        let EncoderWork { distinct, computed } = sentence_encoder;
        log(format!("extract: text: {sentences} sentences of {items} items; {items_without_text} items without text"));
        if !extracted.image {
            log(format!("extract: image: not read by `model.modalities`; computed {computed} of {distinct} sentences"));
            return;
        }
        log(format!(
            "extract: image: {} images, {} of them can't be used; {} items without image; {} words in the dictionary",
            self.images,
            self.unusable.len(),
            self.items_without_image,
            self.dictionary_words
        ));
        log(format!(
            "extract: computed {computed} of {distinct} sentences, {} of {} images, {} of {} words; the rest was in the cache",
            image_encoder.computed, image_encoder.distinct, word_encoder.computed, word_encoder.distinct
        ));
        for UnusableImage { item_id, image, reason } in self.unusable.iter().take(EXAMPLES) {
            log(format!("  item {item_id}: `{image}`: {reason}"));
        }
        if self.unusable.len() > EXAMPLES {
            log(format!("  and {} more", self.unusable.len() - EXAMPLES));
        }
    }
}
