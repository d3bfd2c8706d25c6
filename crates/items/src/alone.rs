//! Encodes an item that is only asked about.

use std::path::Path;

use anyhow::ensure;
use mp4sr_extract::Encoders;
use mp4sr_pipeline::{Context, Progress};
use mp4sr_run::NewItems;

use crate::checks::{expect_addable, expect_image, is_empty};
use crate::records::{ItemRecord, of_records};

/// Encodes one item without adding it, and without leaving anything in the cache. Its features are written to `folder`, which the caller
/// removes.
pub fn encode_alone(
    context: &Context,
    encoders: &mut Encoders,
    item: &ItemRecord,
    folder: &Path,
) -> anyhow::Result<NewItems> {
    expect_addable(&context.config)?;
    if !item.images.is_empty() {
        ensure!(context.config.extracted().image, "the model reads no images; give only a text");
    }
    let items = of_records(context, std::slice::from_ref(item), folder)?;
    let own = Context {
        config: context.config.clone(),
        layout: context.layout.at(folder),
        progress: Progress::new(true),
        models: context.models.clone(),
    };
    items.write_relative(&own.layout.items(), Path::new(&context.config.dataset.data))?;
    encoders.extract_once(context, &own)?;
    let new = NewItems::read_from(&own.layout, &context.config)?;
    ensure!(
        !is_empty(&new, 0),
        "no usable {} is given, so the model cannot represent the item; give a text, or a complete image file such as a JPEG or PNG file",
        new.modalities.iter().map(|modality| modality.name.as_str()).collect::<Vec<_>>().join(" or ")
    );
    if !item.images.is_empty() {
        expect_image(&new)?;
    }
    Ok(new)
}
