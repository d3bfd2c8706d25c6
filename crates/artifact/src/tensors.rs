use std::collections::HashMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata, SafeTensors, TensorInfo, TensorView};
use serde::{Deserialize, Serialize};

use crate::fingerprint::ContentHasher;
use crate::map::Map;
use crate::{Error, Fingerprint, Result, files};

/// The key of the header in a safetensors file's metadata. One key with a JSON text, because the order of several keys
/// would differ between two writes of the same content.
const HEADER_KEY: &str = "mp4sr";

/// The start of a header's JSON with its first key: a hash of everything else in the file, which tells a damaged file from
/// a whole one. A file of another program need not have it.
const CHECKSUM_START: &str = "{\"checksum\":\"";
const CHECKSUM_END: &str = "\",";

/// Who wrote a tensor file, from what, about which items.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// What the file holds: `sequences`, `features`, `checkpoint`, `state`, `ranks`.
    pub format: String,
    /// The version of that format.
    pub version: u32,
    /// The stage that wrote it, or the name of a user's own program.
    pub stage: String,
    /// Hash of the ordered original item ids ([`crate::hash_ids`]) that the rows are about.
    pub items: Fingerprint,
    /// The resolved settings of that stage, and whatever else it wants to say.
    #[serde(default)]
    pub settings: serde_json::Value,
    /// Fingerprints of what it was made from, by file name.
    #[serde(default)]
    pub inputs: std::collections::BTreeMap<String, Fingerprint>,
}

/// A tensor on its way to or from disk.
#[derive(Clone, Debug, PartialEq)]
pub enum Tensor {
    /// 32-bit floats with their shape.
    F32(Vec<f32>, Vec<usize>),
    /// IEEE half floats.
    F16(Vec<f16>, Vec<usize>),
    /// Brain half floats.
    Bf16(Vec<bf16>, Vec<usize>),
    /// 64-bit integers.
    I64(Vec<i64>, Vec<usize>),
    /// 32-bit unsigned integers.
    U32(Vec<u32>, Vec<usize>),
}

impl Tensor {
    /// Lengths by axis.
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

    fn from_view(view: &TensorView<'_>) -> Option<Self> {
        fn numbers<const N: usize, T>(bytes: &[u8], read: fn([u8; N]) -> T) -> Vec<T> {
            bytes.as_chunks::<N>().0.iter().map(|chunk| read(*chunk)).collect()
        }
        let (bytes, shape) = (view.data(), view.shape().to_vec());
        Some(match view.dtype() {
            Dtype::F32 => Self::F32(numbers(bytes, f32::from_le_bytes), shape),
            Dtype::F16 => Self::F16(numbers(bytes, f16::from_le_bytes), shape),
            Dtype::BF16 => Self::Bf16(numbers(bytes, bf16::from_le_bytes), shape),
            Dtype::I64 => Self::I64(numbers(bytes, i64::from_le_bytes), shape),
            Dtype::U32 => Self::U32(numbers(bytes, u32::from_le_bytes), shape),
            _ => return None,
        })
    }
}

// Numbers are written as they are in memory; the format is little-endian.
#[cfg(target_endian = "big")]
compile_error!("tensor files are read and written on little-endian machines alone");

/// Writes named tensors with their header, atomically. The same content gives the same bytes.
pub fn write_tensors(path: &Path, header: &Header, tensors: &[(String, Tensor)]) -> Result<()> {
    let views: Vec<_> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.view())).collect();
    write_views(path, header, &views)
}

/// Type, shape and bytes of a tensor that stays where it is.
pub(crate) type View<'a> = (Dtype, &'a [usize], &'a [u8]);

/// The same without tensors of its own.
pub(crate) fn write_views(path: &Path, header: &Header, tensors: &[(&str, View<'_>)]) -> Result<()> {
    let mut text = header_text(path, header)?;
    let parts = tensors.iter().map(|&(name, (dtype, shape, bytes))| (name, form(dtype, shape), bytes));
    let checksum = Fingerprint::of_content(&text, parts);
    add_checksum(&mut text, &checksum);
    // safetensors' own order. Its `serialize` would hold the file once more in memory, its `serialize_to_file` leaves
    // temporary files behind when it is killed.
    let mut tensors: Vec<_> = tensors.iter().collect();
    tensors.sort_by(|(a, (a_type, ..)), (b, (b_type, ..))| b_type.cmp(a_type).then(a.cmp(b)));
    let sizes: Vec<_> =
        tensors.iter().map(|&&(name, (dtype, shape, bytes))| (name, dtype, shape, bytes.len())).collect();
    let head = head(path, text, &sizes)?;
    files::write_atomic(path, |out| -> io::Result<()> {
        out.write_all(&head)?;
        tensors.iter().try_for_each(|(_, (.., bytes))| out.write_all(bytes))
    })
}

/// Bytes that are made anew, the same, each time they are asked for.
pub(crate) type Parts<'p> = &'p dyn Fn(&mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()>;

/// The same bytes as [`write_views`] for a file of `offsets` and of `values`, which are never held whole.
pub(crate) fn write_ragged(
    path: &Path,
    header: &Header,
    offsets: &[i64],
    dtype: Dtype,
    width: usize,
    values: Parts<'_>,
) -> Result<()> {
    let rows = offsets.last().copied().unwrap_or(0) as usize;
    let bytes = rows * width * dtype.bitsize() / 8;
    let offset_bytes: &[u8] = bytemuck::cast_slice(offsets);
    let mut text = header_text(path, header)?;
    let mut content = ContentHasher::new(&text);
    content.tensor("offsets", &form(Dtype::I64, &[offsets.len()]), offset_bytes.len());
    content.bytes(offset_bytes);
    content.tensor("values", &form(dtype, &[rows, width]), bytes);
    let hashed = values(&mut |part| {
        content.bytes(part);
        Ok(())
    });
    hashed.map_err(|e| Error::io("write", path, e))?;
    add_checksum(&mut text, &content.finish());
    let shapes = [&[offsets.len()][..], &[rows, width][..]];
    let sizes = [("offsets", Dtype::I64, shapes[0], offset_bytes.len()), ("values", dtype, shapes[1], bytes)];
    let head = head(path, text, &sizes)?;
    files::write_atomic(path, |out| -> io::Result<()> {
        out.write_all(&head)?;
        out.write_all(offset_bytes)?;
        values(&mut |part| out.write_all(part))
    })
}

fn failed(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::unusable(path, format!("its content cannot be written: {error}"), "report this as a defect")
}

fn header_text(path: &Path, header: &Header) -> Result<String> {
    serde_json::to_string(header).map_err(|e| failed(path, &e))
}

fn add_checksum(text: &mut String, checksum: &Fingerprint) {
    text.replace_range(..1, &format!("{CHECKSUM_START}{checksum}{CHECKSUM_END}"));
}

/// What precedes the tensors: the length of the JSON text, and the text.
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

fn form(dtype: Dtype, shape: &[usize]) -> String {
    format!("{dtype:?} {shape:?}")
}

/// The checked header and the tensors of a file's bytes.
pub(crate) fn parse<'a>(
    path: &Path,
    bytes: &'a [u8],
    format: &str,
    version: u32,
    remedy: &str,
) -> Result<(Header, SafeTensors<'a>)> {
    let damaged =
        |e: &dyn std::fmt::Display| Error::unusable(path, format!("it is not a whole safetensors file ({e})"), remedy);
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| damaged(&e))?;
    let Some(text) = metadata.metadata().as_ref().and_then(|m| m.get(HEADER_KEY)) else {
        let reason = format!("its metadata has no key `{HEADER_KEY}` (docs/artifacts.md says what belongs there)");
        return Err(Error::unusable(path, reason, remedy));
    };
    let what = format!("its `{HEADER_KEY}` metadata");
    let (checksum, text) = split_checksum(text);
    let header: Header = serde_json::from_str(&text).map_err(|e| Error::unreadable(path, &what, &e, remedy))?;
    if header.format != format || header.version != version {
        let reason = format!(
            "expected format `{format}` version {version}, found `{}` version {}",
            header.format, header.version
        );
        return Err(Error::unusable(path, reason, remedy));
    }
    let file = SafeTensors::deserialize(bytes).map_err(|e| damaged(&e))?;
    let content = || {
        let tensors = file.tensors();
        let parts = tensors.iter().map(|(name, view)| (&name[..], form(view.dtype(), view.shape()), view.data()));
        Fingerprint::of_content(&text, parts)
    };
    if checksum.is_some_and(|checksum| checksum != content().as_str()) {
        let reason = "its content is not what was written (the header's `checksum` differs)".to_owned();
        return Err(Error::unusable(path, reason, remedy));
    }
    Ok((header, file))
}

/// The settings in the header of a tensor file of any format; `None` if it cannot be read. The content is not
/// looked at.
pub fn recorded_settings(path: &Path) -> Option<serde_json::Value> {
    let map = Map::open(path).ok()?;
    let (_, metadata) = SafeTensors::read_metadata(&map).ok()?;
    let (_, text) = split_checksum(metadata.metadata().as_ref()?.get(HEADER_KEY)?);
    serde_json::from_str::<Header>(&text).ok().map(|header| header.settings)
}

/// A tensor file whose header has been read and checked.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    header: Header,
    tensors: HashMap<String, Tensor>,
}

impl TensorFile {
    /// Reads `path` and checks that it is of `format` in `version`. `remedy` says how to make it anew.
    pub fn read(path: &Path, format: &str, version: u32, remedy: &str) -> Result<Self> {
        let bytes = files::read(path)?;
        let (header, file) = parse(path, &bytes, format, version, remedy)?;
        let mut tensors = HashMap::with_capacity(file.len());
        for (name, view) in file.iter() {
            let Some(tensor) = Tensor::from_view(&view) else {
                let reason =
                    format!("tensor `{name}` has type {:?}; expected F32, F16, BF16, I64 or U32", view.dtype());
                return Err(Error::unusable(path, reason, remedy));
            };
            tensors.insert(name.to_owned(), tensor);
        }
        Ok(Self { path: path.to_owned(), header, tensors })
    }

    /// The file's header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses a file about other items than `expected`.
    pub fn expect_items(&self, expected: &Fingerprint, remedy: &str) -> Result<()> {
        if self.header.items == *expected {
            return Ok(());
        }
        Err(other_items(&self.path, &self.header, expected, remedy))
    }

    /// All names, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.tensors.keys().cloned().collect();
        names.sort();
        names
    }

    /// Takes a tensor out of the file.
    pub fn take(&mut self, name: &str) -> Result<Tensor> {
        self.tensors.remove(name).ok_or_else(|| self.wrong(format!("tensor `{name}` is missing")))
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

    /// Takes an F32 tensor, all of it finite.
    pub fn take_f32(&mut self, name: &str) -> Result<(Vec<f32>, Vec<usize>)> {
        match self.take(name)? {
            Tensor::F32(values, shape) => {
                if let Some(at) = values.iter().position(|v| !v.is_finite()) {
                    return Err(self.wrong(format!("tensor `{name}` holds {} at position {at}", values[at])));
                }
                Ok((values, shape))
            }
            other => Err(self.mismatch(name, "F32", &other)),
        }
    }

    /// An error about this file: the stage that wrote it has to run again.
    pub fn wrong(&self, reason: impl Into<String>) -> Error {
        let remedy = format!("delete it and run the stage `{}` again", self.header.stage);
        Error::unusable(&self.path, reason, remedy)
    }

    fn mismatch(&self, name: &str, expected: &str, found: &Tensor) -> Error {
        self.wrong(format!("tensor `{name}`: expected {expected}, found {:?} {:?}", found.dtype(), found.shape()))
    }
}

/// Checks offsets `[n+1]` that cut `rows` rows into n segments: from 0, never falling, to `rows`.
pub(crate) fn check_offsets(offsets: &[i64], rows: usize) -> std::result::Result<(), String> {
    if offsets.first() != Some(&0) {
        return Err("`offsets` does not start at 0".to_owned());
    }
    if let Some(at) = offsets.windows(2).position(|w| w[1] < w[0]) {
        let (a, b) = (offsets[at], offsets[at + 1]);
        return Err(format!("`offsets` falls from {a} to {b} at position {}", at + 1));
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
    fn a_file_is_what_safetensors_itself_writes_of_the_same_tensors() {
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
    }
}
