//! The log of what a run of the stage computed and could not use.

use mp4sr_artifact::{EncoderWork, ExtractReport, UnusableImage};
use mp4sr_pipeline::Progress;
use mp4sr_pipeline::config::Extracted;

/// How many unusable images are named in the log.
const EXAMPLES: usize = 3;

/// Logs the counts, of `items` items.
pub(super) fn log(report: &ExtractReport, items: usize, extracted: Extracted, progress: &Progress) {
    let log = |line: String| progress.log(line);
    let ExtractReport { sentences, items_without_text, sentence_encoder, word_encoder, image_encoder, .. } = report;
    let EncoderWork { distinct, computed } = sentence_encoder;
    log(format!("extract: text: {sentences} sentences of {items} items; {items_without_text} items without text"));
    if !extracted.image {
        log(format!("extract: image: not read by `model.modalities`; computed {computed} of {distinct} sentences"));
        return;
    }
    log(format!(
        "extract: image: {} images, {} of them can't be used; {} items without image; {} words in the dictionary",
        report.images,
        report.unusable.len(),
        report.items_without_image,
        report.dictionary_words
    ));
    log(format!(
        "extract: computed {computed} of {distinct} sentences, {} of {} images, {} of {} words; the rest was in the cache",
        image_encoder.computed, image_encoder.distinct, word_encoder.computed, word_encoder.distinct
    ));
    for UnusableImage { item_id, image, reason } in report.unusable.iter().take(EXAMPLES) {
        log(format!("  item {item_id}: `{image}`: {reason}"));
    }
    if report.unusable.len() > EXAMPLES {
        log(format!("  and {} more", report.unusable.len() - EXAMPLES));
    }
}
