use std::io;
use std::path::Path;

use mp4sr_artifact::{Error, Header, Result, Tensor, TensorSource, write_sources};
use mp4sr_models::{BlockReader, DividedValues, Parameters, ProcessGroup, lend_blocks};

/// Values that the first process holds at once of what others have: 4 MiB.
const BLOCK: usize = 1 << 20;

/// A parameter, or what belongs to it value by value, on its way to a file.
#[derive(Clone, Debug)]
pub struct ParameterTensor<'a> {
    /// The tensor's name in the file.
    pub name: String,
    /// The values that this process has.
    pub values: &'a [f32],
    /// The shape of the whole tensor.
    pub shape: Vec<usize>,
    /// How many values each process has, if they are divided.
    pub lengths: Option<Vec<usize>>,
}

impl<'a> ParameterTensor<'a> {
    /// Values of a parameter, of which this process has `values`, in this shape.
    pub fn of(name: String, parameters: &Parameters, parameter: &str, values: &'a [f32], shape: &[usize]) -> Self {
        match parameters.table_share(parameter) {
            Some(share) => Self { name, values, shape: share.whole_shape, lengths: Some(share.lengths) },
            None => Self { name, values, shape: shape.to_vec(), lengths: None },
        }
    }

    /// The same without the parameter's shape.
    #[must_use]
    pub fn flat(self) -> Self {
        Self { shape: vec![self.shape.iter().product()], ..self }
    }
}

/// Writes a file of tensors that are the same on all processes, and of parameters, of which some are divided among the processes of a group.
/// The first process writes, and never holds what another has but for a block: a collective operation. The bytes are those of one process
/// that has everything.
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

/// Where the tensors of a file come from; those that are divided are the arrays of `reader`, in their order.
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

/// All values of a tensor, which is the array `array` of those that are lent.
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
