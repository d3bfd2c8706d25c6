//! Golden cases: tensors of independent PyTorch references, and the comparison with them.

#![allow(clippy::unwrap_used, dead_code, reason = "a test fails by panicking; each test target uses a part")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use mp4sr_models::Parameters;
use mp4sr_ops::{Adam, ComputeDevice, PackedOffsets, Precision, check_precision, set_precision};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// One file: its description, its tensors, and which of them were compared.
pub struct GoldenCase {
    pub meta: Value,
    pub floats: BTreeMap<String, (Vec<f32>, Vec<usize>)>,
    pub ints: BTreeMap<String, (Vec<i64>, Vec<usize>)>,
    pub compared: BTreeSet<String>,
    pub largest: f64,
}

impl GoldenCase {
    pub fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let meta = serde_json::from_str(&metadata.metadata().as_ref().unwrap()["case"]).unwrap();
        let (mut floats, mut ints) = (BTreeMap::new(), BTreeMap::new());
        for (name, view) in SafeTensors::deserialize(&bytes).unwrap().iter() {
            let shape = view.shape().to_vec();
            let data = view.data();
            match view.dtype() {
                Dtype::F32 => {
                    let values = data.chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect();
                    floats.insert(name.to_owned(), (values, shape));
                }
                Dtype::I64 => {
                    let values = data.chunks_exact(8).map(|c| i64::from_le_bytes(c.try_into().unwrap())).collect();
                    ints.insert(name.to_owned(), (values, shape));
                }
                Dtype::U8 => {
                    ints.insert(name.to_owned(), (data.iter().map(|&b| i64::from(b)).collect(), shape));
                }
                other => panic!("{name}: unexpected type {other:?}"),
            }
        }
        Self { meta, floats, ints, compared: BTreeSet::new(), largest: 0.0 }
    }

    pub fn size(&self, key: &str) -> usize {
        self.meta["dims"][key].as_u64().unwrap_or_else(|| panic!("dims.{key}")) as usize
    }

    pub fn scalar(&self, key: &str) -> f64 {
        self.meta["scalars"][key].as_f64().unwrap_or_else(|| panic!("scalars.{key}"))
    }

    pub fn switch(&self, key: &str) -> &str {
        self.meta["switches"][key].as_str().unwrap_or_else(|| panic!("switches.{key}"))
    }

    pub fn names(&self, key: &str) -> Vec<String> {
        self.meta[key]
            .as_array()
            .map(|a| a.iter().map(|v| v.as_str().unwrap().to_owned()).collect())
            .unwrap_or_default()
    }

    pub fn int(&self, name: &str) -> &[i64] {
        &self.ints.get(name).unwrap_or_else(|| panic!("{name} is missing")).0
    }

    pub fn tensor(&self, name: &str) -> Tensor {
        let (values, shape) = self.floats.get(name).unwrap_or_else(|| panic!("{name} is missing"));
        Tensor::from_vec(values.clone(), shape.as_slice(), &device()).unwrap()
    }

    pub fn has(&self, name: &str) -> bool {
        self.floats.contains_key(name) || self.ints.contains_key(name)
    }

    /// Compares the entries of `name` for which `keep` is true with the same entries of `found`.
    pub fn compare(&mut self, name: &str, found: &[f32], keep: impl Fn(usize) -> bool) {
        let group = name.split('.').next().unwrap();
        let tolerance = &self.meta["tolerance"][group];
        let (atol, rtol) = if is_bf16() {
            (BF16_TOLERANCE, BF16_TOLERANCE)
        } else {
            (tolerance["atol"].as_f64().unwrap(), tolerance["rtol"].as_f64().unwrap())
        };
        let (expected, _) = self.floats.get(name).unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(expected.len(), found.len(), "{name}: another size");
        assert!(expected.iter().all(|value| value.is_finite()), "{name} has a value that is not finite");
        let scale = expected.iter().fold(0.0f64, |m, x| m.max(f64::from(x.abs())));
        for (at, (e, f)) in expected.iter().zip(found).enumerate().filter(|(at, _)| keep(*at)) {
            let error = (f64::from(*e) - f64::from(*f)).abs();
            assert!(error <= atol + rtol * scale, "{name}[{at}]: expected {e}, found {f}, largest value {scale}");
            self.largest = self.largest.max(error);
        }
        self.compared.insert(name.to_owned());
    }

    pub fn compare_tensor(&mut self, name: &str, found: &Tensor) {
        let long = |dims: &[usize]| dims.iter().copied().filter(|&size| size != 1).collect::<Vec<_>>();
        let expected = &self.floats.get(name).unwrap_or_else(|| panic!("{name} is missing")).1;
        assert_eq!(long(expected), long(found.dims()), "{name}: another shape");
        self.compare(name, &flat(found), |_| true);
    }

    /// Compares packed tokens `[T, d]` with the real positions of a padded `[B, n, d]`.
    pub fn compare_packed(&mut self, name: &str, found: &Tensor, offsets: &PackedOffsets) {
        let shape = self.floats[name].1.clone();
        let (n, d) = (shape[1], shape[2]);
        let values = flat(found);
        let mut padded = vec![0.0; shape.iter().product()];
        for j in 0..offsets.count() {
            for (position, token) in offsets.range(j).enumerate() {
                padded[(j * n + position) * d..][..d].copy_from_slice(&values[token * d..][..d]);
            }
        }
        self.compare(name, &padded, |at| at / d % n < offsets.range(at / d / n).len());
    }

    pub fn compare_if_present(&mut self, name: &str, found: &Tensor) {
        if self.has(name) {
            self.compare_tensor(name, found);
        }
    }

    /// Compares the loss, the gradients, their joint norm, and the parameters after a step of Adam.
    pub fn compare_training(&mut self, parameters: &Parameters, loss: &Tensor) {
        self.compare_tensor("out.loss", loss);
        let gradients = loss.backward().unwrap();
        let named: BTreeMap<&str, Tensor> = parameters.gradients(&gradients).unwrap().into_iter().collect();
        let names: Vec<String> =
            self.floats.keys().filter_map(|k| k.strip_prefix("param.")).map(str::to_owned).collect();
        let (without, zero) = (self.names("without_grad"), self.names("zero_grad"));
        for name in names {
            let gradient = named.get(name.as_str());
            let key = format!("grad.{name}");
            assert!(!without.contains(&name) || gradient.is_none(), "{name} must have no gradient");
            match gradient {
                Some(gradient) => {
                    let values = flat(gradient);
                    let is_zero = self.floats[&key].0.iter().all(|g| *g == 0.0);
                    if !zero.contains(&name) && !is_zero {
                        assert!(values.iter().any(|g| *g != 0.0), "{name}: its gradient is zero throughout");
                    }
                    self.compare(&key, &values, |_| true);
                }
                None => {
                    let expected = self.floats[&key].0.clone();
                    assert!(expected.iter().all(|g| *g == 0.0), "{name} has no gradient");
                    self.compare(&key, &vec![0.0; expected.len()], |_| true);
                }
            }
        }
        let (rate, decay, clip) = match self.meta.get("adam") {
            Some(adam) => {
                let get = |key: &str| adam[key].as_f64().unwrap();
                assert_eq!((get("beta1"), get("beta2"), get("eps")), (0.9, 0.999, 1e-8));
                (get("lr"), get("weight_decay"), get("clip_norm"))
            }
            None => (0.0, 0.0, 1.0),
        };
        let vars = parameters.variables(|_| true).unwrap();
        let mut adam = Adam::new(&vars, rate, decay, clip).unwrap();
        let pending = adam.step(&vars, &gradients, loss).unwrap();
        let norm = adam.finish(&pending).unwrap().norm;
        self.compare("out.grad_norm", &[norm as f32], |_| true);
        if self.meta.get("adam").is_some() {
            // A reference may leave out parameters whose gradient is zero but for rounding, because Adam takes a whole step for it.
            let is_left_out = |(name, (gradient, _)): (&String, &(Vec<f32>, Vec<usize>))| {
                let name = name.strip_prefix("grad.")?;
                let learns = gradient.iter().any(|g| g.abs() > 1e-6);
                (learns && !self.has(&format!("adam.{name}"))).then(|| name.to_owned())
            };
            let left_out: Vec<String> = self.floats.iter().filter_map(is_left_out).collect();
            assert!(left_out.is_empty(), "the case lacks the step of Adam of {left_out:?}");
            let names: Vec<String> =
                self.floats.keys().filter_map(|k| k.strip_prefix("adam.")).map(str::to_owned).collect();
            for name in names {
                self.compare_tensor(&format!("adam.{name}"), &parameters.get(&name).unwrap());
            }
        }
    }

    /// Checks that every result was compared, and returns a line about the comparison.
    pub fn finish(self, name: &str) -> String {
        let group = |k: &&String| ["out.", "grad.", "adam."].iter().any(|p| k.starts_with(p));
        let missed: Vec<_> =
            self.floats.keys().chain(self.ints.keys()).filter(group).filter(|k| !self.compared.contains(*k)).collect();
        assert!(missed.is_empty(), "{name}: never compared: {missed:?}");
        format!("{name}: compared {} tensors, largest error {:.1e}", self.compared.len(), self.largest)
    }
}

/// The tolerance for values and gradients in bf16, absolute and relative to the largest value. It is large because temperatures multiply
/// the errors of rounding to eight bits.
const BF16_TOLERANCE: f64 = 0.03;

/// Whether `MP4SR_TEST_PRECISION` asks for products that are computed from bf16.
pub fn is_bf16() -> bool {
    std::env::var_os("MP4SR_TEST_PRECISION").is_some_and(|precision| precision == "bf16")
}

/// Runs a test of this program in a separate process in which products are computed from bf16, if the processor supports it.
#[allow(clippy::print_stdout, reason = "a test that is left out says so")]
pub fn run_in_bf16(test: &str) {
    if let Err(reason) = check_precision(ComputeDevice::Cpu, Precision::Bf16) {
        println!("bf16 is not tested: {reason}");
        return;
    }
    let program = std::env::current_exe().unwrap();
    let status = std::process::Command::new(program)
        .args(["--exact", test, "--nocapture"])
        .env("MP4SR_TEST_PRECISION", "bf16")
        .status()
        .unwrap();
    assert!(status.success(), "`{test}` fails in bf16");
}

/// The device on which models are tested: the CPU, unless `MP4SR_TEST_DEVICE` names a GPU.
pub fn device() -> Device {
    if is_bf16() {
        set_precision(Precision::Bf16);
    }
    let name = std::env::var("MP4SR_TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    name.parse::<ComputeDevice>().unwrap().open().unwrap()
}

/// All values of a tensor.
pub fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// The case files of the folder that `variable` names, or of the folder `own`, in order. Relative paths start from the workspace.
pub fn case_files(variable: &str, own: &str) -> Vec<PathBuf> {
    let workspace = Path::new(&std::env::var("CARGO_MANIFEST_DIR").unwrap()).join("../..");
    let folder = workspace.join(std::env::var_os(variable).map_or_else(|| PathBuf::from(own), PathBuf::from));
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("`{}`: {e}", folder.display()));
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "`{}` holds no case", folder.display());
    files
}
