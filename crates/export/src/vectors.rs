//! Exports the vectors from which scores are computed: an item's score is its inner product with the query, or the largest of its inner
//! products with the query's interests.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail};
use arrow_array::builder::{ListBuilder, StringBuilder, UInt32Builder};
use arrow_array::{ArrayRef, BooleanArray, FixedSizeListArray, Float32Array, RecordBatch, StringArray, UInt32Array};
use arrow_schema::{DataType, Field, Schema};
use candle_core::Tensor;
use mp4sr_artifact::{Header, Tensor as Stored, Users, files, write_tensors};
use mp4sr_models::{Model, Query, Samples, query_vectors};
use mp4sr_run::removes_seen;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use serde_json::{Value, json};

use crate::exported::Export;
use crate::histories::UserHistory;
use crate::npy;

/// The format of exported vectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VectorFormat {
    /// NumPy arrays, and ids as JSON.
    Npy,
    /// One safetensors file, and ids as JSON.
    Safetensors,
    /// One table of items and one of queries.
    Parquet,
}

/// Rejects a model whose scores are not computed from vectors.
pub fn expect_vectors(model: &dyn Model, name: &str) -> anyhow::Result<()> {
    if model.phases().iter().all(|phase| phase.samples == Samples::None) {
        bail!(
            "`{name}` has no vectors: it learns none, and its scores are the same for every user; export its lists, as with \
             `--format lists-parquet`"
        );
    }
    Ok(())
}

/// The vectors from which scores are computed.
struct ExportedVectors {
    /// The item matrix, `[I, k]`: row i-1 is item i.
    items: Vec<f32>,
    /// k, the width of a vector.
    width: usize,
    /// The number of vectors per query.
    interests: usize,
    /// The query vectors, `[Q interests, k]`: the interests of each query one after the other.
    queries: Vec<f32>,
}

impl ExportedVectors {
    fn of(export: &Export<'_>) -> anyhow::Result<Self> {
        let Export { context, answerer, histories, .. } = export;
        let scorer = answerer.scorer();
        let width = scorer.items().dims().last().copied().context("the model has no item matrix")?;
        let bar = context.progress.bar("export", "queries", histories.len() as u64);
        let mut queries = Vec::with_capacity(histories.len() * scorer.interests() * width);
        for block in histories.chunks(context.config.evaluate.batch) {
            let asked: Vec<Query<'_>> = block.iter().map(UserHistory::query).collect();
            queries.extend(values(&query_vectors(scorer, &asked)?)?);
            bar.add(block.len() as u64);
        }
        Ok(Self { items: values(scorer.items())?, width, interests: scorer.interests(), queries })
    }
}

fn values(tensor: &Tensor) -> anyhow::Result<Vec<f32>> {
    let values: Vec<f32> = tensor.flatten_all()?.to_vec1()?;
    match values.iter().find(|value| !value.is_finite()) {
        Some(value) => bail!(
            "a vector of the model contains {value}, so the model cannot be used; train it again with a smaller learning rate"
        ),
        None => Ok(values),
    }
}

/// Writes the vectors in every format, and returns the paths of the files.
pub fn write(export: &Export<'_>, formats: &[VectorFormat], folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let vectors = ExportedVectors::of(export)?;
    let users = Users::read(&export.context.layout.users())?;
    let user_ids: Vec<&str> = export.histories.iter().map(|own| users.ids[own.user].as_str()).collect();
    let about = about(export, &vectors);
    let mut paths = Vec::new();
    let mut file = |name: &str| {
        paths.push(folder.join(name));
        folder.join(name)
    };
    files::write_json(&file("vectors.json"), &about)?;
    if formats.iter().any(|format| *format != VectorFormat::Parquet) {
        files::write_json(&file("item_ids.json"), &export.run.catalogue.items.ids)?;
        files::write_json(&file("user_ids.json"), &user_ids)?;
    }
    let (items, queries) = (vectors.items.len() / vectors.width, vectors.queries.len() / vectors.width);
    let mut offsets = vec![0_i64];
    offsets.extend(export.histories.iter().scan(0, |end, own| {
        *end += own.history.len() as i64;
        Some(*end)
    }));
    let histories: Vec<i64> =
        export.histories.iter().flat_map(|own| own.history.iter().map(|&item| i64::from(item))).collect();
    for format in formats {
        match format {
            VectorFormat::Npy => {
                npy::write(&file("items.npy"), &vectors.items, &[items, vectors.width])?;
                npy::write(&file("queries.npy"), &vectors.queries, &[queries, vectors.width])?;
                npy::write(&file("histories.npy"), &histories, &[histories.len()])?;
                npy::write(&file("history_offsets.npy"), &offsets, &[offsets.len()])?;
            }
            VectorFormat::Safetensors => {
                let header = Header {
                    format: "vectors-export".to_owned(),
                    version: 1,
                    stage: "export".to_owned(),
                    items: export.run.catalogue.items.hash(),
                    settings: about.clone(),
                    inputs: std::collections::BTreeMap::new(),
                };
                let tensors = [
                    ("items".to_owned(), Stored::F32(vectors.items.clone(), vec![items, vectors.width])),
                    ("queries".to_owned(), Stored::F32(vectors.queries.clone(), vec![queries, vectors.width])),
                    ("histories".to_owned(), Stored::I64(histories.clone(), vec![histories.len()])),
                    ("history_offsets".to_owned(), Stored::I64(offsets.clone(), vec![offsets.len()])),
                ];
                write_tensors(&file("vectors.safetensors"), &header, &tensors)?;
            }
            VectorFormat::Parquet => {
                write_table(&file("items.parquet"), item_columns(export, &vectors)?)?;
                write_table(&file("queries.parquet"), query_columns(export, &vectors, &user_ids)?)?;
            }
        }
    }
    Ok(paths)
}

/// What a program needs to know to rank with the vectors.
fn about(export: &Export<'_>, vectors: &ExportedVectors) -> Value {
    let Export { context, run, answerer, .. } = export;
    let model = run.trained.model.as_ref();
    let reads_last = Some(model.max_sequence_length()).filter(|&length| length < usize::MAX);
    json!({
        "model": context.config.model.name,
        "dataset": context.config.dataset.name,
        "run": context.layout.run_name(),
        "metric": "inner product",
        "width": vectors.width,
        "interests": vectors.interests,
        "items": run.catalogue.items.len(),
        "new_items": run.catalogue.new_items,
        "queries": export.histories.len(),
        "query_is_of": if answerer.scorer().needs_known_user() { "user" } else { "history" },
        "reads_last": reads_last,
        "removes_seen_items": removes_seen(&context.config, model),
        "histories_end_before_test_item": context.config.recommend.before_test_item,
    })
}

type ArrowColumns = Vec<(&'static str, ArrayRef)>;

fn item_columns(export: &Export<'_>, vectors: &ExportedVectors) -> anyhow::Result<ArrowColumns> {
    let catalogue = &export.run.catalogue;
    let count = catalogue.items.len();
    let old = count - catalogue.new_items;
    Ok(vec![
        ("item", Arc::new(UInt32Array::from_iter_values(1..=count as u32))),
        ("item_id", Arc::new(StringArray::from_iter_values(&catalogue.items.ids))),
        ("title", Arc::new(StringArray::from_iter_values(&catalogue.items.titles))),
        ("events", Arc::new(UInt32Array::from(catalogue.events.clone()))),
        ("is_new", Arc::new((0..count).map(|row| Some(row >= old)).collect::<BooleanArray>())),
        ("vector", vector_column(&vectors.items, vectors.width)?),
    ])
}

fn query_columns(export: &Export<'_>, vectors: &ExportedVectors, user_ids: &[&str]) -> anyhow::Result<ArrowColumns> {
    let (mut ids, mut interests) = (Vec::new(), Vec::new());
    let mut items = ListBuilder::new(UInt32Builder::new());
    let mut names = ListBuilder::new(StringBuilder::new());
    for (own, id) in export.histories.iter().zip(user_ids) {
        for interest in 0..vectors.interests as u32 {
            ids.push(*id);
            interests.push(interest);
            items.values().append_slice(own.history);
            items.append(true);
            own.history.iter().for_each(|&item| names.values().append_value(export.run.catalogue.id(item)));
            names.append(true);
        }
    }
    Ok(vec![
        ("user_id", Arc::new(StringArray::from(ids))),
        ("interest", Arc::new(UInt32Array::from(interests))),
        ("history", Arc::new(names.finish())),
        ("history_items", Arc::new(items.finish())),
        ("vector", vector_column(&vectors.queries, vectors.width)?),
    ])
}

/// Vectors as fixed-size lists, which vector databases expect.
fn vector_column(values: &[f32], width: usize) -> anyhow::Result<ArrayRef> {
    let field = Arc::new(Field::new("item", DataType::Float32, false));
    let values = Arc::new(Float32Array::from(values.to_vec()));
    Ok(Arc::new(FixedSizeListArray::try_new(field, i32::try_from(width)?, values, None)?))
}

fn write_table(path: &Path, columns: ArrowColumns) -> anyhow::Result<()> {
    let fields: Vec<Field> =
        columns.iter().map(|(name, array)| Field::new(*name, array.data_type().clone(), false)).collect();
    let schema = Arc::new(Schema::new(fields));
    let batch = RecordBatch::try_new(schema.clone(), columns.into_iter().map(|(_, array)| array).collect())?;
    files::write_atomic(path, |out| -> std::io::Result<()> {
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let mut writer = ArrowWriter::try_new(out, schema, Some(properties))?;
        writer.write(&batch)?;
        writer.close()?;
        Ok(())
    })?;
    Ok(())
}
