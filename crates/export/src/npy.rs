//! Reads and writes NumPy's `.npy` files.

use std::io::{self, Read as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use candle_core::{DType, Tensor};
use mp4sr_artifact::files;

/// The number of bytes before the header text: the magic string, the version, and the length of the text.
const START: usize = 10;
/// The longest header that is examined; the headers that NumPy writes have about a hundred bytes.
const LONGEST_HEADER: u64 = 1 << 16;

/// A number type that arrays can be written in.
pub trait Number: bytemuck::Pod {
    /// The type's name in NumPy's headers.
    const NAME: &str;
}

impl Number for f32 {
    const NAME: &str = "<f4";
}

impl Number for i64 {
    const NAME: &str = "<i8";
}

/// Writes an array atomically, in row-major order. candle's own writer makes one system call per number.
pub fn write<T: Number>(path: &Path, values: &[T], shape: &[usize]) -> anyhow::Result<()> {
    let lengths: Vec<String> = shape.iter().map(ToString::to_string).collect();
    let mut header = format!("{{'descr': '{}', 'fortran_order': False, 'shape': ({},), }}", T::NAME, lengths.join(","));
    // The values begin at a multiple of 64 bytes, and a newline ends the header.
    let padding = (START + header.len() + 1).next_multiple_of(64) - (START + header.len() + 1);
    header.extend(std::iter::repeat_n(' ', padding).chain(['\n']));
    let length = u16::try_from(header.len()).context("an array has too many axes")?;
    files::write_atomic(path, |out| -> io::Result<()> {
        out.write_all(b"\x93NUMPY\x01\x00")?;
        out.write_all(&length.to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        out.write_all(bytemuck::cast_slice(values))
    })?;
    Ok(())
}

/// A matrix in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct NpyMatrix {
    /// The values, `[rows * width]`.
    pub values: Vec<f32>,
    /// The width of a row.
    pub width: usize,
}

impl NpyMatrix {
    /// Reads a matrix of floats of any precision; 64-bit values are rounded to 32 bits.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let array = read(path)?;
        let &[_, width] = array.dims() else {
            bail!("`{}` has the shape {:?}, expected [items, width]", path.display(), array.dims());
        };
        ensure!(
            matches!(array.dtype(), DType::F16 | DType::F32 | DType::F64),
            "`{}` contains values of the type {:?}, expected floats; save it with `numpy.save(path, array.astype(numpy.float32))`",
            path.display(),
            array.dtype()
        );
        let values: Vec<f32> = array.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            bail!("`{}` contains {} in row {}; every value has to be finite", path.display(), values[at], at / width);
        }
        Ok(Self { values, width })
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.values.len().checked_div(self.width).unwrap_or(0)
    }
}

/// Reads a vector of 64-bit integers.
pub fn read_i64(path: &Path) -> anyhow::Result<Vec<i64>> {
    let wrong = || format!("`{}` does not contain a vector of 64-bit integers", path.display());
    read(path)?.to_vec1().with_context(wrong)
}

fn read(path: &Path) -> anyhow::Result<Tensor> {
    check_header(path)?;
    Tensor::read_npy(path).with_context(|| format!("failed to read `{}` as a `.npy` file", path.display()))
}

/// Rejects layouts that the reader does not support, and a shape that is larger than the file, because the shape determines how much memory
/// is allocated.
fn check_header(path: &Path) -> anyhow::Result<()> {
    let mut start = Vec::new();
    let file = files::open(path)?;
    let length = file.metadata().with_context(|| format!("failed to inspect `{}`", path.display()))?.len();
    file.take(LONGEST_HEADER)
        .read_to_end(&mut start)
        .with_context(|| format!("failed to read `{}`", path.display()))?;
    ensure!(
        start.starts_with(b"\x93NUMPY") && start.len() > START,
        "`{}` is not a `.npy` file; save it with `numpy.save`",
        path.display()
    );
    let end = start.iter().position(|&byte| byte == b'\n').unwrap_or(start.len());
    let header = String::from_utf8_lossy(&start[START.min(end)..end]);
    let resave = "save it with `numpy.save(path, numpy.ascontiguousarray(array, dtype=\"<f4\"))`";
    ensure!(
        !header.contains("'fortran_order': True"),
        "`{}` is in Fortran order (column by column); {resave}",
        path.display()
    );
    ensure!(!header.contains("'descr': '>"), "`{}` contains big-endian numbers; {resave}", path.display());
    ensure!(!header.contains("'descr': '|O'"), "`{}` contains Python objects, not numbers; {resave}", path.display());
    let shape = header.split_once("'shape': (").and_then(|(_, rest)| rest.split_once(')'));
    let lengths = shape.map(|(lengths, _)| lengths.split(',').map(str::trim).filter(|length| !length.is_empty()));
    let values = lengths
        .and_then(|mut lengths| lengths.try_fold(1_u64, |product, length| product.checked_mul(length.parse().ok()?)));
    // Every supported number has at least one byte.
    ensure!(
        values.is_some_and(|values| values <= length),
        "`{}` is shorter than its header states, or has no header; copy it again",
        path.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_round_trip_and_unsupported_ones_are_refused_with_a_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        write(&path, &[0.1_f32, -0.0, 3.0, 4.0, 5.0, f32::MIN_POSITIVE], &[3, 2]).unwrap();
        let matrix = NpyMatrix::read(&path).unwrap();
        assert_eq!((matrix.rows(), matrix.width), (3, 2));
        assert_eq!(matrix.values[1].to_bits(), (-0.0_f32).to_bits());
        let doubles = candle_core::Tensor::new(&[[0.25_f64, 0.1]], &candle_core::Device::Cpu).unwrap();
        doubles.write_npy(&path).unwrap();
        assert_eq!(NpyMatrix::read(&path).unwrap().values, [0.25, 0.1]);
        write(&path, &[1_i64, 2], &[2]).unwrap();
        assert_eq!(read_i64(&path).unwrap(), [1, 2]);
        let refused = |bytes: &[u8], part: &str| {
            files::write_bytes(&path, bytes).unwrap();
            let message = format!("{:#}", NpyMatrix::read(&path).unwrap_err());
            assert!(message.contains(part) && message.contains("a.npy"), "{message}");
        };
        let of = |header: &str, bytes: usize| {
            let mut file = b"\x93NUMPY\x01\x00".to_vec();
            file.extend((header.len() as u16 + 1).to_le_bytes());
            file.extend(header.as_bytes());
            file.push(b'\n');
            file.extend(vec![0; bytes]);
            file
        };
        refused(b"PK", "is not a `.npy` file");
        refused(&of("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2), }", 16), "Fortran order");
        refused(&of("{'descr': '>f4', 'fortran_order': False, 'shape': (2, 2), }", 16), "big-endian");
        refused(&of("{'descr': '|O', 'fortran_order': False, 'shape': (2, 2), }", 16), "Python objects");
        refused(&of("{'descr': '<i8', 'fortran_order': False, 'shape': (1, 2), }", 16), "expected floats");
        refused(&of("{'descr': '<f4', 'fortran_order': False, 'shape': (4,), }", 16), "expected [items, width]");
        refused(&of("{'descr': '<f4', 'fortran_order': False, 'shape': (9, 9), }", 16), "a.npy");
        refused(&of("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 9999999999), }", 16), "shorter");
        refused(&of("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 2), }", 16), "shorter");
        let mut nan = of("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 1), }", 0);
        nan.extend(f32::NAN.to_le_bytes());
        refused(&nan, "NaN in row 0");
    }
}
