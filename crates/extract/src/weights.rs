//! The tensors of a model folder, converted to f32, by the names that the Python library gives them.

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use mp4sr_artifact::files;
use mp4sr_ops::{InferenceLinear, InferenceNorm};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::error::{Error, Result};

/// The bytes of a model's weights, in one file or in several.
pub(crate) struct WeightsFile {
    /// Each file with its bytes; at least one.
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl WeightsFile {
    pub fn read(paths: &[PathBuf]) -> Result<Self> {
        let read = |path: &PathBuf| Ok((path.clone(), files::read(path)?));
        Ok(Self { files: paths.iter().map(read).collect::<Result<_>>()? })
    }

    /// The path of the first file, for messages about all of them.
    pub fn path(&self) -> &Path {
        self.files.first().map_or(Path::new(""), |(path, _)| path)
    }

    /// The tensors under the first of `prefixes` that has a tensor `probe`: the prefix depends on the class that saved the
    /// model.
    pub fn tensors(&self, prefixes: &[&str], probe: &str) -> Result<Weights<'_>> {
        let parse = |(path, bytes): &'_ (PathBuf, Vec<u8>)| -> Result<()> {
            SafeTensors::deserialize(bytes).map(|_| ()).map_err(|e| {
                Error::model(path, format!("it is not a complete safetensors file ({e}); download it again"))
            })
        };
        self.files.iter().try_for_each(parse)?;
        let files: Vec<SafeTensors<'_>> =
            self.files.iter().filter_map(|(_, bytes)| SafeTensors::deserialize(bytes).ok()).collect();
        let has = |prefix: &str| files.iter().any(|file| file.tensor(&format!("{prefix}{probe}")).is_ok());
        let Some(prefix) = prefixes.iter().find(|prefix| has(prefix)) else {
            return Err(Error::model(
                self.path(),
                format!("it has no tensor `{probe}` (do the weights belong to the model in config.json?)"),
            ));
        };
        Ok(Weights { path: self.path(), prefix: (*prefix).to_owned(), files })
    }
}

/// The tensors under one prefix.
pub(crate) struct Weights<'b> {
    path: &'b Path,
    prefix: String,
    files: Vec<SafeTensors<'b>>,
}

/// A tensor's name without the prefix, its shape and its values.
type NamedValues = (String, Vec<usize>, Vec<f32>);

impl<'b> Weights<'b> {
    fn view(&self, name: &str) -> Option<TensorView<'b>> {
        self.files.iter().find_map(|file| file.tensor(name).ok())
    }

    /// All tensors of floats under the prefix.
    pub fn all(&self) -> Result<Vec<NamedValues>> {
        let views = self.files.iter().flat_map(SafeTensors::tensors);
        let under = views.filter_map(|(name, view)| Some((name.strip_prefix(&self.prefix)?.to_owned(), view)));
        let floats = under.filter(|(_, view)| matches!(view.dtype(), Dtype::F32 | Dtype::F16 | Dtype::BF16));
        floats
            .map(|(name, view)| {
                let values = self.values(&format!("{}{name}", self.prefix), &view)?;
                Ok((name, view.shape().to_vec(), values))
            })
            .collect()
    }

    /// A tensor that must have this shape.
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let name = format!("{}{name}", self.prefix);
        let Some(view) = self.view(&name) else {
            return Err(Error::model(
                self.path,
                format!("it has no tensor `{name}` (do the weights belong to the model in config.json?)"),
            ));
        };
        if view.shape() != shape {
            let reason = format!("tensor `{name}`: expected {shape:?} as in config.json, found {:?}", view.shape());
            return Err(Error::model(self.path, reason));
        }
        self.values(&name, &view)
    }

    /// An error about a tensor.
    pub fn error(&self, name: &str, reason: &str) -> Error {
        Error::model(self.path, format!("tensor `{}{name}`: {reason}", self.prefix))
    }

    fn values(&self, name: &str, view: &TensorView<'_>) -> Result<Vec<f32>> {
        let values = floats(view).ok_or_else(|| {
            Error::model(self.path, format!("tensor `{name}`: expected F32, F16 or BF16, found {:?}", view.dtype()))
        })?;
        if values.iter().all(|value| value.is_finite()) {
            Ok(values)
        } else {
            Err(Error::model(self.path, format!("tensor `{name}` has values that are not finite")))
        }
    }

    /// A tensor that may be missing.
    pub fn optional(&self, name: &str, shape: &[usize]) -> Result<Option<Vec<f32>>> {
        let there = self.view(&format!("{}{name}", self.prefix)).is_some();
        if there { self.read(name, shape).map(Some) } else { Ok(None) }
    }

    /// The linear map of `name.weight` `[out, in]` and `name.bias`.
    pub fn linear(&self, name: &str, inputs: usize, outputs: usize) -> Result<InferenceLinear> {
        self.side_by_side(&[name], inputs, outputs)
    }

    /// Several linear maps of the same input as one, each with `outputs` outputs.
    pub fn side_by_side(&self, names: &[&str], inputs: usize, outputs: usize) -> Result<InferenceLinear> {
        let mut parts = Vec::new();
        for name in names {
            let weight = self.read(&format!("{name}.weight"), &[outputs, inputs])?;
            parts.push((weight, self.read(&format!("{name}.bias"), &[outputs])?));
        }
        let parts: Vec<(&[f32], &[f32])> = parts.iter().map(|(w, b)| (w.as_slice(), b.as_slice())).collect();
        Ok(InferenceLinear::side_by_side(&parts))
    }

    /// A linear map without a bias.
    pub fn projection(&self, name: &str, inputs: usize, outputs: usize) -> Result<InferenceLinear> {
        let weight = self.read(&format!("{name}.weight"), &[outputs, inputs])?;
        Ok(InferenceLinear::new(&weight, vec![0.0; outputs]))
    }

    /// The normalisation of `name.weight` and `name.bias`, which are `gamma` and `beta` in old files.
    pub fn norm(&self, name: &str, width: usize) -> Result<InferenceNorm> {
        let old = self.optional(&format!("{name}.gamma"), &[width])?;
        let (weight, bias) = match old {
            Some(weight) => (weight, self.read(&format!("{name}.beta"), &[width])?),
            None => (self.read(&format!("{name}.weight"), &[width])?, self.read(&format!("{name}.bias"), &[width])?),
        };
        Ok(InferenceNorm { weight, bias })
    }
}

fn floats(view: &TensorView<'_>) -> Option<Vec<f32>> {
    let bytes = view.data();
    Some(match view.dtype() {
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
        Dtype::F16 => bytes.as_chunks::<2>().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
        Dtype::BF16 => bytes.as_chunks::<2>().0.iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect(),
        _ => return None,
    })
}
