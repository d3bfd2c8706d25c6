//! What an item must have so that the model can represent it.

use anyhow::{Context as _, ensure};
use mp4sr_pipeline::Config;
use mp4sr_pipeline::text::some_of;
use mp4sr_run::{NewItems, item_tables};

/// Rejects models that need id embeddings, and features that do not come from `[extract]`.
pub fn expect_addable(config: &Config) -> anyhow::Result<()> {
    item_tables(config)?;
    let extracted = config.extracted();
    for modality in &config.model.modalities {
        let is_ours = match modality.name.as_str() {
            "text" => extracted.text,
            "image" => extracted.image,
            "audio" => extracted.audio,
            _ => false,
        };
        ensure!(
            is_ours && config.feature_name(modality) != modality.features,
            "the features of the modality `{}` come from elsewhere (`{}`) and cannot be computed for new items; use a run whose features come from `[extract]`",
            modality.name,
            modality.features
        );
    }
    Ok(())
}

/// Rejects items for which the model has no features.
pub fn expect_something(new: &NewItems) -> anyhow::Result<()> {
    let empty = (0..new.items.len()).filter(|&row| is_empty(new, row)).map(|row| new.items.ids[row].as_str());
    let modalities: Vec<&str> = new.modalities.iter().map(|modality| modality.name.as_str()).collect();
    refuse_empty(&empty.collect::<Vec<_>>(), &modalities)
}

/// Rejects items that have nothing of what the model reads, if there are any.
pub fn refuse_empty(ids: &[&str], modalities: &[&str]) -> anyhow::Result<()> {
    ensure!(
        ids.is_empty(),
        "the model cannot represent items without a usable {}: {} ({}); complete them or leave them out",
        modalities.join(" or "),
        ids.len(),
        some_of(ids)
    );
    Ok(())
}

/// Whether the model has no features of an item.
pub fn is_empty(new: &NewItems, row: usize) -> bool {
    new.modalities.iter().all(|modality| modality.features.rows_of(row) == 0)
}

/// Refuses an item whose image does not contribute to its features.
pub fn expect_image(new: &NewItems) -> anyhow::Result<()> {
    let image = new.modalities.iter().find(|modality| modality.name == "image");
    let image = image.context("the model reads no images; give only a text")?;
    ensure!(
        image.features.rows_of(0) > 0,
        "the image cannot be used; give a complete image file, such as a JPEG or PNG file"
    );
    Ok(())
}
