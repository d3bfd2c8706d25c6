//! The log of what a run of the stage computed and could not use.

use mp4sr_artifact::{EncoderWork, ExtractReport, UnusableImage, UnusableSound};
use mp4sr_pipeline::config::Extracted;
use mp4sr_pipeline::{Progress, warning_line};

/// The number of unusable files of each kind that the log names.
const EXAMPLES: usize = 3;

/// Logs the counts for `items` items.
pub(super) fn log(report: &ExtractReport, items: usize, extracted: Extracted, progress: &Progress) {
    let log = |line: String| progress.log(line);
    let ExtractReport { sentences, items_without_text, sentence_encoder, word_encoder, image_encoder, .. } = report;
    let EncoderWork { distinct, computed } = sentence_encoder;
    log(format!("extract: text: {sentences} sentences of {items} items; {items_without_text} items without text"));
    if extracted.audio {
        let EncoderWork { distinct, computed } = report.audio_encoder;
        log(format!(
            "extract: audio: {} sound files; {} items without sound; computed {computed} of {distinct}",
            report.sounds, report.items_without_sound
        ));
        let unusable =
            report.unusable_sounds.iter().map(|UnusableSound { item_id, sound, reason }| (item_id, sound, reason));
        log_unusable("sound files", unusable, &log);
    }
    if !extracted.image {
        log(format!(
            "extract: image: no modality in `model.modalities` reads images; computed {computed} of {distinct} sentences"
        ));
        return;
    }
    log(format!(
        "extract: image: {} images; {} items without image; {} words in the dictionary",
        report.images, report.items_without_image, report.dictionary_words
    ));
    log(format!(
        "extract: computed {computed} of {distinct} sentences, {} of {} images, {} of {} words; the rest was in the cache",
        image_encoder.computed, image_encoder.distinct, word_encoder.computed, word_encoder.distinct
    ));
    let unusable = report.unusable.iter().map(|UnusableImage { item_id, image, reason }| (item_id, image, reason));
    log_unusable("images", unusable, &log);
}

/// Warns of files that cannot be used, and logs the first of them, each with its item and the reason.
fn log_unusable<'r>(
    what: &str,
    files: impl ExactSizeIterator<Item = (&'r String, &'r String, &'r String)>,
    log: &impl Fn(String),
) {
    if files.len() > 0 {
        log(warning_line("extract", format_args!("{what} that cannot be used: {}", files.len())));
    }
    let further = files.len().saturating_sub(EXAMPLES);
    for (item_id, file, reason) in files.take(EXAMPLES) {
        log(format!("  item {item_id}: `{file}`: {reason}"));
    }
    if further > 0 {
        log(format!("  and {further} more"));
    }
}
