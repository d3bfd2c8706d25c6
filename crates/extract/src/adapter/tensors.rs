//! The tensors of a model folder for candle's `VarBuilder`. Those that a model reads are recorded.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

use crate::error::{Error, Result};
use crate::folder::ModelFolder;

/// Tensors in f32 by their names.
#[derive(Clone)]
pub(crate) struct Tensors {
    path: PathBuf,
    tensors: HashMap<String, Tensor>,
}

impl Tensors {
    /// The tensors of the folder's weights under the first of `prefixes` that has a tensor `probe`, without the prefix, which depends on
    /// the class that saved the model.
    pub fn read(folder: &ModelFolder, prefixes: &[&str], probe: &str) -> Result<Self> {
        let file = folder.weights()?;
        let weights = file.tensors(prefixes, probe)?;
        let tensors = weights
            .all()?
            .into_iter()
            .map(|(name, shape, values)| Ok((name, Tensor::from_vec(values, shape, &Device::Cpu)?)));
        Ok(Self { path: file.path().to_owned(), tensors: tensors.collect::<Result<_>>()? })
    }

    /// A tensor that must exist.
    pub fn get(&self, name: &str) -> Result<&Tensor> {
        self.tensors.get(name).ok_or_else(|| self.error(format!("it has no tensor `{name}`")))
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Renames the tensors.
    pub fn renamed(self, name: impl Fn(&str) -> String) -> Self {
        let tensors = self.tensors.into_iter().map(|(old, tensor)| (name(&old), tensor)).collect();
        Self { path: self.path, tensors }
    }

    /// Adds a tensor, or replaces the one of the same name.
    pub fn with(mut self, name: &str, tensor: Tensor) -> Self {
        self.tensors.insert(name.to_owned(), tensor);
        self
    }

    /// An error that names the file of the weights.
    pub fn error(&self, reason: impl std::fmt::Display) -> Error {
        Error::model(&self.path, reason)
    }

    /// Builds a model. It must read every tensor, except those whose names start with one of `unused`, because a tensor that the layers
    /// skip would change the vectors in the reference.
    pub fn build<T>(
        &self,
        unused: &[&str],
        make: impl FnOnce(VarBuilder<'static>) -> candle_core::Result<T>,
    ) -> Result<T> {
        let taken = Arc::new(Mutex::new(BTreeSet::new()));
        let source = Recorded { tensors: self.tensors.clone(), taken: Arc::clone(&taken) };
        let builder = VarBuilder::from_backend(Box::new(source), DType::F32, Device::Cpu);
        let model = make(builder)
            .map_err(|e| self.error(format!("{e} (do the weights belong to the model in config.json?)")))?;
        let taken = taken.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let is_left = |name: &&String| !taken.contains(*name) && !unused.iter().any(|start| name.starts_with(start));
        match self.tensors.keys().filter(is_left).min() {
            None => Ok(model),
            Some(name) => Err(self.error(format!(
                "it has a tensor `{name}`, which the implementation of config.json's model_type does not use"
            ))),
        }
    }
}

/// Returns tensors by name and records which ones it returned.
struct Recorded {
    tensors: HashMap<String, Tensor>,
    taken: Arc<Mutex<BTreeSet<String>>>,
}

impl SimpleBackend for Recorded {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        let tensor = self.get_unchecked(name, dtype, device)?;
        if tensor.shape() != &shape {
            let (expected, found) = (shape.dims(), tensor.dims());
            let reason = format!("tensor `{name}`: expected {expected:?} as in config.json, found {found:?}");
            return Err(candle_core::Error::Msg(reason));
        }
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> candle_core::Result<Tensor> {
        let Some(tensor) = self.tensors.get(name) else {
            return Err(candle_core::Error::Msg(format!("it has no tensor `{name}`")));
        };
        self.taken.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(name.to_owned());
        Ok(tensor.clone())
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }
}
