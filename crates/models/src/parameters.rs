use candle_core::{DType, Device, Tensor, Var};
use mp4sr_ops::{Error, Result, RngKey};

/// A parameter's name, values and shape, as it is stored.
pub type Stored = (String, Vec<f32>, Vec<usize>);

/// How a parameter starts.
#[derive(Clone, Copy, Debug)]
pub enum Initial {
    /// N(0, 0.02).
    Normal,
    /// N(0, s), with a deviation s of its own.
    Scaled(f64),
    /// U(-1/sqrt(d), 1/sqrt(d)) with d the input width.
    Uniform(usize),
    /// U(-b, b) with a bound b of its own.
    Within(f64),
    /// Zeros.
    Zeros,
    /// Ones.
    Ones,
}

/// Named parameters in the order in which they were made.
#[derive(Debug, Default)]
pub struct Parameters {
    entries: Vec<(String, Var)>,
}

const DEVIATION: f64 = 0.02;

fn uniform(key: RngKey, count: usize, bound: f64) -> Vec<f32> {
    (0..count as u64).map(|i| (bound * (2.0 * key.uniform(i) - 1.0)) as f32).collect()
}

impl Parameters {
    /// Adds a parameter whose start is a function of the key and its name alone.
    pub fn add(&mut self, name: &str, shape: &[usize], initial: Initial, key: RngKey) -> Result<Var> {
        let count: usize = shape.iter().product();
        let key = key.fold_in(name);
        let values: Vec<f32> = match initial {
            Initial::Normal => (0..count as u64).map(|i| (DEVIATION * key.normal(i)) as f32).collect(),
            Initial::Scaled(deviation) => (0..count as u64).map(|i| (deviation * key.normal(i)) as f32).collect(),
            Initial::Uniform(width) => uniform(key, count, 1.0 / (width as f64).sqrt()),
            Initial::Within(bound) => uniform(key, count, bound),
            Initial::Zeros => vec![0.0; count],
            Initial::Ones => vec![1.0; count],
        };
        let var = Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu)?)?;
        self.entries.push((name.to_owned(), var.clone()));
        Ok(var)
    }

    /// Names and parameters.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.entries.iter().map(|(name, var)| (name.as_str(), var))
    }

    /// One parameter.
    pub fn get(&self, name: &str) -> Option<&Var> {
        self.entries.iter().find(|(n, _)| n == name).map(|(_, var)| var)
    }

    /// The number of values in all parameters.
    pub fn count(&self) -> usize {
        self.entries.iter().map(|(_, var)| var.elem_count()).sum()
    }

    /// Values of every parameter.
    pub fn values(&self) -> Result<Vec<Stored>> {
        self.iter()
            .map(|(name, var)| Ok((name.to_owned(), var.flatten_all()?.to_vec1()?, var.dims().to_vec())))
            .collect()
    }

    /// Replaces the values of one parameter.
    pub fn set(&self, name: &str, values: Vec<f32>, shape: &[usize]) -> Result<()> {
        let var = self.get(name).ok_or_else(|| Error::Msg(format!("the model has no parameter `{name}`")))?;
        if var.dims() != shape {
            return Err(Error::Msg(format!("parameter `{name}`: expected {:?}, found {shape:?}", var.dims())));
        }
        debug_assert_eq!(var.dtype(), DType::F32);
        var.set(&Tensor::from_vec(values, shape, &Device::Cpu)?)
    }
}
