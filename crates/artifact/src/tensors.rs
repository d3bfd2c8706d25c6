//! Safetensors files with a header that names their writer, inputs and items.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorInfo};
use serde::{Deserialize, Serialize};

use crate::fingerprint::ContentHasher;
use crate::map::MappedFile;
use crate::{Error, Fingerprint, Result, files};

/// The key of the header in a safetensors file's metadata. It is a single key with a JSON text, because the order of several keys would
/// differ between two writes of the same content.
const HEADER_KEY: &str = "mp4sr";

/// The start of a header's JSON with its first key: a hash of everything else in the file, which reveals a damaged file. Files of other
/// programs may lack it.
const CHECKSUM_START: &str = "{\"checksum\":\"";
const CHECKSUM_END: &str = "\",";

/// Names the writer of a tensor file, its inputs and the items that it is about.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// The kind of the file: `sequences`, `features`, `checkpoint`, `state`, `ranks`.
    pub format: String,
    /// The version of that format.
    pub version: u32,
    /// The stage that wrote it, or the name of a user's own program.
    pub stage: String,
    /// The hash of the ordered original item ids ([`crate::hash_ids`]) that the rows are about.
    pub items: Fingerprint,
    /// The resolved settings of that stage, and anything else that it records.
    #[serde(default)]
    pub settings: serde_json::Value,
    /// The fingerprints of its inputs, by role.
    #[serde(default)]
    pub inputs: std::collections::BTreeMap<String, Fingerprint>,
}

impl Header {
    /// Converts `record` to the JSON that the header of `path` holds.
    pub fn settings_of(path: &Path, record: &impl Serialize) -> Result<serde_json::Value> {
        serde_json::to_value(record).map_err(|error| {
            Error::unusable(path, format!("its header cannot be written as JSON: {error}"), "report this as a bug")
        })
    }
}

/// A tensor to be written to or read from disk.
#[derive(Clone, Debug, PartialEq)]
pub enum Tensor {
    /// 32-bit floats with their shape.
    F32(Vec<f32>, Vec<usize>),
    /// IEEE half-precision floats with their shape.
    F16(Vec<f16>, Vec<usize>),
    /// Values in the bfloat16 format with their shape.
    Bf16(Vec<bf16>, Vec<usize>),
    /// 64-bit integers with their shape.
    I64(Vec<i64>, Vec<usize>),
    /// 32-bit unsigned integers with their shape.
    U32(Vec<u32>, Vec<usize>),
}

impl Tensor {
    /// The length of each dimension.
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::F32(_, s) | Self::F16(_, s) | Self::Bf16(_, s) | Self::I64(_, s) | Self::U32(_, s) => s,
        }
    }

    fn dtype(&self) -> Dtype {
        match self {
            Self::F32(..) => Dtype::F32,
            Self::F16(..) => Dtype::F16,
            Self::Bf16(..) => Dtype::BF16,
            Self::I64(..) => Dtype::I64,
            Self::U32(..) => Dtype::U32,
        }
    }

    fn view(&self) -> View<'_> {
        let bytes = match self {
            Self::F32(v, _) => bytemuck::cast_slice(v),
            Self::F16(v, _) => bytemuck::cast_slice(v),
            Self::Bf16(v, _) => bytemuck::cast_slice(v),
            Self::I64(v, _) => bytemuck::cast_slice(v),
            Self::U32(v, _) => bytemuck::cast_slice(v),
        };
        (self.dtype(), self.shape(), bytes)
    }
}

/// Passes all values of a tensor to its argument, block by block. Each call passes the same values.
pub type ValueBlocks<'a> = Box<dyn Fn(&mut dyn FnMut(&[f32]) -> io::Result<()>) -> io::Result<()> + 'a>;

/// The source of the values of a tensor that is written.
pub enum TensorSource<'a> {
    /// The tensor itself.
    Held(Tensor),
    /// Borrowed 32-bit floats with their shape.
    Borrowed(&'a [f32], Vec<usize>),
    /// 32-bit floats that are read in blocks and never all in memory, with their shape.
    Blocks(ValueBlocks<'a>, Vec<usize>),
}

// Numbers are written as they are in memory; the format is little-endian.
#[cfg(target_endian = "big")]
compile_error!("tensor files are read and written only on little-endian machines");

/// Writes named tensors with their header, atomically. The same content gives the same bytes.
pub fn write_tensors(path: &Path, header: &Header, tensors: &[(String, Tensor)]) -> Result<()> {
    let views: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.view())).collect();
    write_views(path, header, &views)
}

/// The type, shape and bytes of a borrowed tensor.
pub(crate) type View<'a> = (Dtype, &'a [usize], &'a [u8]);

/// Writes borrowed tensors as [`write_tensors`] does.
pub(crate) fn write_views(path: &Path, header: &Header, tensors: &[(&str, View<'_>)]) -> Result<()> {
    let tensors: Vec<_> = tensors
        .iter()
        .map(|&(name, (dtype, shape, bytes))| Outgoing { name, dtype, shape, bytes: Bytes::Borrowed(bytes) })
        .collect();
    write_outgoing(path, header, tensors)
}

/// Writes the same bytes as [`write_tensors`] for tensors that need not be in memory. Blocks are read twice: to compute the checksum, and
/// to write them.
pub fn write_sources(path: &Path, header: &Header, tensors: &[(String, TensorSource<'_>)]) -> Result<()> {
    let made: Vec<_> = tensors
        .iter()
        .map(|(_, source)| match source {
            TensorSource::Blocks(blocks, _) => {
                Some(|sink: ByteSink<'_>| blocks(&mut |values| sink(bytemuck::cast_slice(values))))
            }
            TensorSource::Held(_) | TensorSource::Borrowed(..) => None,
        })
        .collect();
    let outgoing = tensors.iter().zip(&made).map(|((name, source), made)| {
        let (dtype, shape, bytes) = match source {
            TensorSource::Held(tensor) => tensor.view(),
            TensorSource::Borrowed(values, shape) => (Dtype::F32, &shape[..], bytemuck::cast_slice(values)),
            TensorSource::Blocks(_, shape) => (Dtype::F32, &shape[..], &[][..]),
        };
        let bytes = made.as_ref().map_or(Bytes::Borrowed(bytes), |made| Bytes::Generated(made));
        Outgoing { name, dtype, shape, bytes }
    });
    write_outgoing(path, header, outgoing.collect())
}

/// A function that receives bytes.
type ByteSink<'t> = &'t mut dyn FnMut(&[u8]) -> io::Result<()>;

/// A function that passes bytes to another one, the same bytes each time it is called.
pub(crate) type ByteSource<'p> = &'p dyn Fn(ByteSink<'_>) -> io::Result<()>;

#[derive(Clone, Copy)]
enum Bytes<'a> {
    Borrowed(&'a [u8]),
    Generated(ByteSource<'a>),
}

impl Bytes<'_> {
    fn write_to(self, sink: ByteSink<'_>) -> io::Result<()> {
        match self {
            Self::Borrowed(bytes) => sink(bytes),
            Self::Generated(generate) => generate(sink),
        }
    }
}

/// A tensor that is being written.
struct Outgoing<'a> {
    name: &'a str,
    dtype: Dtype,
    shape: &'a [usize],
    bytes: Bytes<'a>,
}

impl Outgoing<'_> {
    fn length(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

fn write_outgoing(path: &Path, header: &Header, mut tensors: Vec<Outgoing<'_>>) -> Result<()> {
    let mut text = header_text(path, header)?;
    tensors.sort_by_key(|tensor| tensor.name);
    let mut content = ContentHasher::new(&text);
    for tensor in &tensors {
        content.tensor(tensor.name, &dtype_and_shape(tensor.dtype, tensor.shape), tensor.length());
        let hashed = tensor.bytes.write_to(&mut |bytes| {
            content.bytes(bytes);
            Ok(())
        });
        hashed.map_err(|e| Error::io("write", path, e))?;
    }
    add_checksum(&mut text, &content.finish());
    // This is the order that safetensors itself uses. Its `serialize` would hold a second copy of the file in memory, and its
    // `serialize_to_file` leaves temporary files behind when the process is killed.
    tensors.sort_by(|a, b| b.dtype.cmp(&a.dtype).then(a.name.cmp(b.name)));
    let sizes: Vec<_> =
        tensors.iter().map(|tensor| (tensor.name, tensor.dtype, tensor.shape, tensor.length())).collect();
    let head = head(path, text, &sizes)?;
    files::write_atomic(path, |out| -> io::Result<()> {
        out.write_all(&head)?;
        tensors.iter().try_for_each(|tensor| tensor.bytes.write_to(&mut |bytes| out.write_all(bytes)))
    })
}

/// Writes the same bytes as [`write_views`] for a file of `offsets` and `values`, where the values are never all in memory.
pub(crate) fn write_ragged(
    path: &Path,
    header: &Header,
    offsets: &[i64],
    dtype: Dtype,
    width: usize,
    values: ByteSource<'_>,
) -> Result<()> {
    let rows = offsets.last().copied().unwrap_or(0) as usize;
    let (lengths, shape) = ([offsets.len()], [rows, width]);
    let held = Bytes::Borrowed(bytemuck::cast_slice(offsets));
    let tensors = vec![
        Outgoing { name: "offsets", dtype: Dtype::I64, shape: &lengths, bytes: held },
        Outgoing { name: "values", dtype, shape: &shape, bytes: Bytes::Generated(values) },
    ];
    write_outgoing(path, header, tensors)
}

fn failed(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::unusable(path, format!("its content cannot be written: {error}"), "report this as a bug")
}

fn header_text(path: &Path, header: &Header) -> Result<String> {
    serde_json::to_string(header).map_err(|e| failed(path, &e))
}

fn add_checksum(text: &mut String, checksum: &Fingerprint) {
    text.replace_range(..1, &format!("{CHECKSUM_START}{checksum}{CHECKSUM_END}"));
}

/// The bytes before the tensors: the length of the JSON text, and the text.
fn head(path: &Path, text: String, tensors: &[(&str, Dtype, &[usize], usize)]) -> Result<Vec<u8>> {
    let metadata = HashMap::from([(HEADER_KEY.to_owned(), text)]);
    let mut end = 0;
    let infos = tensors.iter().map(|&(name, dtype, shape, length)| {
        let start = end;
        end += length;
        (name.to_owned(), TensorInfo { dtype, shape: shape.to_vec(), data_offsets: (start, end) })
    });
    let metadata = Metadata::new(Some(metadata), infos.collect()).map_err(|e| failed(path, &e))?;
    let mut json = serde_json::to_vec(&metadata).map_err(|e| failed(path, &e))?;
    json.resize(json.len().next_multiple_of(8), b' ');
    Ok([&(json.len() as u64).to_le_bytes()[..], &json].concat())
}

/// The header's checksum, if it starts with one, and the header without it.
fn split_checksum(text: &str) -> (Option<&str>, String) {
    let parts = text.strip_prefix(CHECKSUM_START).and_then(|rest| rest.split_once(CHECKSUM_END));
    parts.map_or_else(|| (None, text.to_owned()), |(checksum, rest)| (Some(checksum), format!("{{{rest}")))
}

fn dtype_and_shape(dtype: Dtype, shape: &[usize]) -> String {
    format!("{dtype:?} {shape:?}")
}

/// The parsed part of a file before its tensors.
struct Head {
    header: Header,
    /// The header's JSON without its checksum.
    text: String,
    checksum: Option<String>,
    metadata: Metadata,
    /// Where the first tensor begins in the file.
    start: u64,
}

fn damaged(path: &Path, error: &dyn std::fmt::Display, remedy: &str) -> Error {
    Error::unusable(path, format!("it is not a complete safetensors file ({error})"), remedy)
}

fn expect_checksum(
    path: &Path,
    expected: Option<&str>,
    found: impl FnOnce() -> Result<Fingerprint>,
    remedy: &str,
) -> Result<()> {
    match expected {
        Some(expected) if expected != found()?.as_str() => {
            let reason = "its content does not match the `checksum` in its header".to_owned();
            Err(Error::damaged(path, reason, remedy))
        }
        _ => Ok(()),
    }
}

/// Reads the part of a file before the tensors; of the tensors themselves, only the sizes are checked.
fn parse_head(path: &Path, bytes: &[u8], format: &str, version: u32, remedy: &str) -> Result<Head> {
    let (length, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| damaged(path, &e, remedy))?;
    let Some(text) = metadata.metadata().as_ref().and_then(|m| m.get(HEADER_KEY)) else {
        let reason = format!("its metadata has no key `{HEADER_KEY}` (see docs/artifacts.md)");
        return Err(Error::unusable(path, reason, remedy));
    };
    let what = format!("its `{HEADER_KEY}` metadata");
    let (checksum, text) = split_checksum(text);
    let checksum = checksum.map(str::to_owned);
    let header: Header = serde_json::from_str(&text).map_err(|e| Error::unreadable(path, &what, &e, remedy))?;
    if header.format != format || header.version != version {
        let reason = format!(
            "expected format `{format}` version {version}, found `{}` version {}",
            header.format, header.version
        );
        return Err(Error::unusable(path, reason, remedy));
    }
    Ok(Head { header, text, checksum, metadata, start: (size_of::<u64>() + length) as u64 })
}

/// Parses and verifies the bytes of a file, and returns its header and tensors.
pub(crate) fn parse<'a>(
    path: &Path,
    bytes: &'a [u8],
    format: &str,
    version: u32,
    remedy: &str,
) -> Result<(Header, SafeTensors<'a>)> {
    let Head { header, text, checksum, .. } = parse_head(path, bytes, format, version, remedy)?;
    let file = SafeTensors::deserialize(bytes).map_err(|e| damaged(path, &e, remedy))?;
    let content = || {
        let tensors = file.tensors();
        let parts =
            tensors.iter().map(|(name, view)| (&name[..], dtype_and_shape(view.dtype(), view.shape()), view.data()));
        Ok(Fingerprint::of_content(&text, parts))
    };
    expect_checksum(path, checksum.as_deref(), content, remedy)?;
    Ok((header, file))
}

/// The settings in the header of a tensor file of any format; `None` if it cannot be read. The content is not verified.
pub fn recorded_settings(path: &Path) -> Option<serde_json::Value> {
    let map = MappedFile::open(path).ok()?;
    let (_, metadata) = SafeTensors::read_metadata(&map).ok()?;
    let (_, text) = split_checksum(metadata.metadata().as_ref()?.get(HEADER_KEY)?);
    serde_json::from_str::<Header>(&text).ok().map(|header| header.settings)
}

/// A tensor file whose header and checksum have been verified. Its tensors stay on disk until they are taken.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    header: Header,
    file: File,
    /// Where the first tensor begins.
    start: u64,
    tensors: HashMap<String, TensorInfo>,
}

/// The number of bytes that are read at once for a checksum.
const READ: usize = 1 << 20;

impl TensorFile {
    /// Reads `path` and checks that it is of `format` in `version`. `remedy` tells the user how to create it again.
    pub fn read(path: &Path, format: &str, version: u32, remedy: &str) -> Result<Self> {
        let file = files::open(path)?;
        let head = parse_head(path, &MappedFile::of(&file, path)?, format, version, remedy)?;
        let Head { header, text, checksum, metadata, start } = head;
        let tensors: HashMap<String, TensorInfo> =
            metadata.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
        let known = [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::I64, Dtype::U32];
        if let Some((name, info)) = tensors.iter().find(|(_, info)| !known.contains(&info.dtype)) {
            let reason = format!("tensor `{name}` has type {:?}; expected F32, F16, BF16, I64 or U32", info.dtype);
            return Err(Error::unusable(path, reason, remedy));
        }
        let file = Self { path: path.to_owned(), header, file, start, tensors };
        expect_checksum(path, checksum.as_deref(), || file.content(&text), remedy)?;
        Ok(file)
    }

    /// The fingerprint of the content, which is read in blocks.
    fn content(&self, header: &str) -> Result<Fingerprint> {
        let mut content = ContentHasher::new(header);
        let mut block = vec![0; READ];
        for name in self.names() {
            let TensorInfo { dtype, shape, data_offsets: (start, end) } = &self.tensors[&name];
            content.tensor(&name, &dtype_and_shape(*dtype, shape), end - start);
            for at in (*start..*end).step_by(READ) {
                let block = &mut block[..READ.min(end - at)];
                self.fill(at, block)?;
                content.bytes(block);
            }
        }
        Ok(content.finish())
    }

    /// Reads the bytes from position `at` of the tensors' data.
    fn fill(&self, at: usize, bytes: &mut [u8]) -> Result<()> {
        let mut file = &self.file;
        let read = file.seek(SeekFrom::Start(self.start + at as u64)).and_then(|_| file.read_exact(bytes));
        read.map_err(|e| Error::io("read", &self.path, e))
    }

    /// Reads the values at `range` of a tensor whose data begin at `start`.
    fn numbers<T: bytemuck::Pod>(&self, start: usize, range: Range<usize>) -> Result<Vec<T>> {
        let mut values = vec![T::zeroed(); range.len()];
        self.fill(start + range.start * size_of::<T>(), bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// The file's header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The path that the file was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses a file that was written for items other than those of `expected`.
    pub fn expect_items(&self, expected: &Fingerprint, remedy: &str) -> Result<()> {
        if self.header.items == *expected {
            return Ok(());
        }
        Err(other_items(&self.path, &self.header, expected, remedy))
    }

    /// The names of all tensors that have not been taken, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.tensors.keys().cloned().collect();
        names.sort();
        names
    }

    /// Reads a tensor, which can be taken only once.
    pub fn take(&mut self, name: &str) -> Result<Tensor> {
        let info = self.tensors.remove(name).ok_or_else(|| self.missing(name))?;
        let TensorInfo { dtype, shape, data_offsets: (start, _) } = info;
        let all = 0..shape.iter().product();
        Ok(match dtype {
            Dtype::F32 => Tensor::F32(self.numbers(start, all)?, shape),
            Dtype::F16 => Tensor::F16(self.numbers(start, all)?, shape),
            Dtype::BF16 => Tensor::Bf16(self.numbers(start, all)?, shape),
            Dtype::I64 => Tensor::I64(self.numbers(start, all)?, shape),
            Dtype::U32 => Tensor::U32(self.numbers(start, all)?, shape),
            other => return Err(self.wrong(format!("tensor `{name}` has type {other:?}"))),
        })
    }

    /// The shape of a tensor that has not been taken yet.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|info| &info.shape[..])
    }

    /// Takes the values at `range` of an F32 tensor, all of which must be finite. The other values are not loaded.
    pub fn take_f32_range(&mut self, name: &str, range: Range<usize>) -> Result<Vec<f32>> {
        let info = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        let start = info.data_offsets.0;
        if info.dtype != Dtype::F32 || range.end > info.shape.iter().product() {
            let found = format!("{:?} {:?}", info.dtype, info.shape);
            return Err(self.wrong(format!("tensor `{name}`: expected F32 with {} values, found {found}", range.end)));
        }
        let values = self.numbers(start, range.clone())?;
        self.expect_finite(name, &values, range.start)?;
        self.tensors.remove(name);
        Ok(values)
    }

    /// Checks that all values are finite. The first one is at position `start` of the tensor.
    fn expect_finite(&self, name: &str, values: &[f32], start: usize) -> Result<()> {
        match values.iter().position(|v| !v.is_finite()) {
            Some(at) => Err(self.wrong(format!("tensor `{name}` contains {} at position {}", values[at], start + at))),
            None => Ok(()),
        }
    }

    fn missing(&self, name: &str) -> Error {
        self.wrong(format!("tensor `{name}` is missing"))
    }

    /// Takes a one-dimensional I64 tensor.
    pub fn take_i64(&mut self, name: &str) -> Result<Vec<i64>> {
        match self.take(name)? {
            Tensor::I64(values, shape) if shape.len() == 1 => Ok(values),
            other => Err(self.mismatch(name, "I64 [n]", &other)),
        }
    }

    /// Takes a one-dimensional U32 tensor.
    pub fn take_u32(&mut self, name: &str) -> Result<Vec<u32>> {
        match self.take(name)? {
            Tensor::U32(values, shape) if shape.len() == 1 => Ok(values),
            other => Err(self.mismatch(name, "U32 [n]", &other)),
        }
    }

    /// Takes an F32 tensor, all of whose values must be finite.
    pub fn take_f32(&mut self, name: &str) -> Result<(Vec<f32>, Vec<usize>)> {
        match self.take(name)? {
            Tensor::F32(values, shape) => {
                self.expect_finite(name, &values, 0)?;
                Ok((values, shape))
            }
            other => Err(self.mismatch(name, "F32", &other)),
        }
    }

    /// Creates an error about this file, with the advice to run the stage that wrote it again.
    pub fn wrong(&self, reason: impl Into<String>) -> Error {
        let remedy = format!("delete it and run the stage `{}` again", self.header.stage);
        Error::unusable(&self.path, reason, remedy)
    }

    fn mismatch(&self, name: &str, expected: &str, found: &Tensor) -> Error {
        self.wrong(format!("tensor `{name}`: expected {expected}, found {:?} {:?}", found.dtype(), found.shape()))
    }
}

/// Checks offsets `[n+1]` that divide `rows` rows into n segments: they start at 0, never decrease and end at `rows`.
pub(crate) fn check_offsets(offsets: &[i64], rows: usize) -> std::result::Result<(), String> {
    if offsets.first() != Some(&0) {
        return Err("`offsets` does not start at 0".to_owned());
    }
    if let Some(at) = offsets.windows(2).position(|w| w[1] < w[0]) {
        let (a, b) = (offsets[at], offsets[at + 1]);
        return Err(format!("`offsets` decreases from {a} to {b} at position {}", at + 1));
    }
    let end = offsets.last().copied().unwrap_or_default();
    if end != rows as i64 {
        return Err(format!("`offsets` ends at {end}, expected the number of rows, {rows}"));
    }
    Ok(())
}

pub(crate) fn other_items(path: &Path, header: &Header, expected: &Fingerprint, remedy: &str) -> Error {
    let reason = format!("it was built for a different item list (item hash {}, expected {expected})", header.items);
    Error::unusable(path, reason, remedy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_equals_what_the_safetensors_crate_writes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("t.safetensors");
        let header = Header {
            format: "state".to_owned(),
            version: 1,
            stage: "test".to_owned(),
            items: Fingerprint::of_bytes(b"items"),
            settings: serde_json::json!({"odd": "\u{1f600}"}),
            inputs: std::collections::BTreeMap::new(),
        };
        let tensors = [
            ("b.halves".to_owned(), Tensor::F16(vec![f16::from_f32(1.5); 3], vec![3])),
            ("a.numbers".to_owned(), Tensor::U32(vec![7, 8, 9, 10], vec![2, 2])),
            ("c.offsets".to_owned(), Tensor::I64(vec![-1, i64::MAX], vec![2])),
            ("a.floats".to_owned(), Tensor::F32(vec![0.1, f32::MIN], vec![1, 2])),
            ("d.none".to_owned(), Tensor::Bf16(vec![], vec![0, 5])),
        ];
        write_tensors(&path, &header, &tensors).unwrap();
        let written = files::read(&path).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&written).unwrap();
        let theirs = SafeTensors::deserialize(&written).unwrap();
        assert_eq!(safetensors::serialize(theirs.tensors(), metadata.metadata().clone()).unwrap(), written);
        let mut file = TensorFile::read(&path, "state", 1, "").unwrap();
        assert_eq!(file.take_i64("c.offsets").unwrap(), [-1, i64::MAX]);
        assert_eq!(file.take("a.numbers").unwrap(), tensors[1].1);
        assert_eq!(file.take_f32_range("a.floats", 1..2).unwrap(), [f32::MIN]);
        assert!(file.take_f32_range("a.floats", 0..1).is_err(), "it was taken");
        assert!(file.take_f32_range("b.halves", 0..1).unwrap_err().to_string().contains("found F16 [3]"));
    }

    #[test]
    fn generated_tensors_give_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let header = Header {
            format: "state".to_owned(),
            version: 1,
            stage: "test".to_owned(),
            items: Fingerprint::of_bytes(b"items"),
            settings: serde_json::Value::Null,
            inputs: std::collections::BTreeMap::new(),
        };
        let values: Vec<f32> = (0..600_000).map(|at| at as f32).collect();
        let count = ("d.count".to_owned(), Tensor::I64(vec![3], vec![1]));
        let whole = [
            ("z".to_owned(), Tensor::F32(values.clone(), vec![300_000, 2])),
            count.clone(),
            ("b".to_owned(), Tensor::F32(values[..9].to_vec(), vec![9])),
        ];
        write_tensors(&path("whole"), &header, &whole).unwrap();
        let blocks: ValueBlocks<'_> = Box::new(|take| values.chunks(7_000).try_for_each(take));
        let sources = [
            ("z".to_owned(), TensorSource::Blocks(blocks, vec![300_000, 2])),
            (count.0, TensorSource::Held(count.1)),
            ("b".to_owned(), TensorSource::Borrowed(&values[..9], vec![9])),
        ];
        write_sources(&path("blocks"), &header, &sources).unwrap();
        assert!(files::read(&path("whole")).unwrap() == files::read(&path("blocks")).unwrap());
        let mut file = TensorFile::read(&path("blocks"), "state", 1, "").unwrap();
        assert_eq!(file.take_f32_range("z", 400_000..400_003).unwrap(), values[400_000..400_003]);
    }
}
