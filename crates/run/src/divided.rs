//! Writes parameters that are divided among the processes of a group.

use std::io;
use std::path::Path;

use mp4sr_artifact::{Error, Header, Result, Tensor, TensorSource, write_sources};
use mp4sr_models::{BlockReader, DividedValues, Parameters, ProcessGroup, lend_blocks};

/// The number of values of other processes that the first process holds at once: 4 MiB.
const BLOCK: usize = 1 << 20;

/// A parameter that is written to a file, or a tensor with one value per value of a parameter, such as a moment of Adam.
#[derive(Clone, Debug)]
pub struct ParameterTensor<'a> {
    /// The tensor's name in the file.
    pub name: String,
    /// The values that this process holds.
    pub values: &'a [f32],
    /// The shape of the whole tensor.
    pub shape: Vec<usize>,
    /// The number of values of each process, if they are divided.
    pub lengths: Option<Vec<usize>>,
}

impl<'a> ParameterTensor<'a> {
    /// Describes the tensor `name` with one value per value of `parameter`. This process holds `values`, in `shape`.
    pub fn of(name: String, parameters: &Parameters, parameter: &str, values: &'a [f32], shape: &[usize]) -> Self {
        match parameters.table_share(parameter) {
            Some(share) => Self { name, values, shape: share.whole_shape, lengths: Some(share.lengths) },
            None => Self { name, values, shape: shape.to_vec(), lengths: None },
        }
    }

    /// The same tensor with a single dimension.
    #[must_use]
    pub fn flat(self) -> Self {
        Self { shape: vec![self.shape.iter().product()], ..self }
    }
}

/// Writes a file of tensors that are the same on all processes, and of parameters, some of which are divided among the processes of a
/// group. This is a collective operation: the first process writes the file, and never holds more than one block of another process's
/// values. The bytes are the same as those that a single process would write.
pub fn write_divided(
    path: &Path,
    header: &Header,
    group: Option<&ProcessGroup>,
    held: Vec<(String, Tensor)>,
    parameters: &[ParameterTensor<'_>],
) -> Result<()> {
    let Some(group) = group else {
        return write_sources(path, header, &sources(held, parameters, None));
    };
    let divided: Vec<DividedValues<'_>> = parameters.iter().filter_map(divided).collect();
    let write = |reader: &BlockReader<'_>| write_sources(path, header, &sources(held, parameters, Some(reader)));
    match lend_blocks(group, &divided, write) {
        Ok(written) => written.unwrap_or(Ok(())),
        Err(error) => Err(Error::io("write", path, io::Error::other(error.to_string()))),
    }
}

/// The sources of the tensors of a file. The divided parameters are the arrays of `reader`, in the same order.
fn sources<'a>(
    held: Vec<(String, Tensor)>,
    parameters: &'a [ParameterTensor<'_>],
    reader: Option<&'a BlockReader<'_>>,
) -> Vec<(String, TensorSource<'a>)> {
    let mut sources: Vec<_> = held.into_iter().map(|(name, tensor)| (name, TensorSource::Held(tensor))).collect();
    let mut next = 0;
    for tensor in parameters {
        let source = match reader.filter(|_| tensor.lengths.is_some()) {
            Some(reader) => {
                next += 1;
                blocks(reader, next - 1, &tensor.shape)
            }
            None => TensorSource::Borrowed(tensor.values, tensor.shape.clone()),
        };
        sources.push((tensor.name.clone(), source));
    }
    sources
}

fn divided<'a>(tensor: &ParameterTensor<'a>) -> Option<DividedValues<'a>> {
    let lengths = tensor.lengths.clone()?;
    Some(DividedValues { own: tensor.values, lengths })
}

/// The source of a tensor whose values are the array with the index `array` of `reader`.
fn blocks<'a>(reader: &'a BlockReader<'_>, array: usize, shape: &[usize]) -> TensorSource<'a> {
    let count = shape.iter().product::<usize>();
    let read = move |take: &mut dyn FnMut(&[f32]) -> io::Result<()>| {
        (0..count).step_by(BLOCK).try_for_each(|start| {
            let block = reader.read(array, start..count.min(start + BLOCK));
            take(&block.map_err(|error| io::Error::other(error.to_string()))?)
        })
    };
    TensorSource::Blocks(Box::new(read), shape.to_vec())
}
