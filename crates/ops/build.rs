//! Compiles the kernels for NVIDIA GPUs if the feature `cuda` is enabled.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

const SOURCE: &str = "src/cuda/kernels.cu";

/// The files that the source includes.
const INCLUDED: [&str; 2] = ["src/cuda/inference.cu", "src/cuda/convolution.cu"];

/// The compute capability to build for if the environment does not name one: the oldest with bf16 products.
const OLDEST: &str = "80";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={SOURCE}");
    INCLUDED.iter().for_each(|source| println!("cargo::rerun-if-changed={source}"));
    println!("cargo::rerun-if-env-changed=CUDA_COMPUTE_CAP");
    println!("cargo::rerun-if-env-changed=NVCC");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    if let Err(reason) = compile() {
        println!("cargo::error=the feature `cuda` needs the CUDA toolkit: {reason}");
    }
}

/// Writes machine code for the requested capability, and PTX that the drivers of newer GPUs compile.
fn compile() -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?).join("kernels.fatbin");
    let capability = env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| OLDEST.to_owned());
    let nvcc = nvcc();
    let output = Command::new(&nvcc)
        .args(["-fatbin", "-O3", "-std=c++17", "-lineinfo"])
        .arg(format!("-gencode=arch=compute_{capability},code=[compute_{capability},sm_{capability}]"))
        .arg(SOURCE)
        .arg("-o")
        .arg(&out)
        .output()
        .map_err(|error| format!("failed to run {}: {error}; set NVCC or CUDA_HOME", nvcc.display()))?;
    if output.status.success() && fs::metadata(&out).is_ok_and(|file| file.len() > 0) {
        return Ok(());
    }
    let messages = String::from_utf8_lossy(&output.stderr).replace('\n', " ");
    Err(format!("{} failed on {SOURCE}: {messages}", nvcc.display()))
}

fn nvcc() -> PathBuf {
    if let Some(nvcc) = env::var_os("NVCC") {
        return nvcc.into();
    }
    ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"]
        .iter()
        .filter_map(env::var_os)
        .map(|root| Path::new(&root).join("bin/nvcc"))
        .find(|nvcc| nvcc.exists())
        .unwrap_or_else(|| "nvcc".into())
}
