//! The free resources of this machine.

use std::path::{Path, PathBuf};

use sysinfo::System;

/// What is free on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The free disk space where the artifacts are written, in bytes; `None` if the system does not report it.
    pub disk: Option<u64>,
    /// The memory that a new process can use, in bytes, within the limit of its control group.
    pub memory: u64,
    /// The number of threads that the stages use.
    pub threads: usize,
}

impl Machine {
    /// Inspects the machine. The folder `artifacts` need not exist.
    pub fn of(artifacts: &Path) -> Self {
        let disk = existing(artifacts).and_then(|folder| fs4::available_space(folder).ok());
        let mut system = System::new();
        system.refresh_memory();
        let group = system.cgroup_limits().map_or(u64::MAX, |limits| limits.free_memory);
        Self { disk, memory: system.available_memory().min(group), threads: rayon::current_num_threads() }
    }
}

/// The folder itself, or its nearest ancestor that exists.
pub fn existing(folder: &Path) -> Option<PathBuf> {
    let folder = std::path::absolute(folder).ok()?;
    folder.ancestors().find(|folder| folder.is_dir()).map(Path::to_owned)
}

/// Returns an error if no file can be created in the folder, or in its nearest ancestor that exists.
pub fn check_writable(folder: &Path) -> std::io::Result<()> {
    existing(folder).map_or(Ok(()), |folder| tempfile::tempfile_in(folder).map(drop))
}
