//! What the machine has left.

use std::path::{Path, PathBuf};

use sysinfo::System;

/// What is free on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Bytes that are free where the artifacts go; `None` if the system does not say.
    pub disk: Option<u64>,
    /// Bytes of memory that a new process can take; a control group's limit counts.
    pub memory: u64,
    /// Threads that the stages use.
    pub threads: usize,
}

impl Machine {
    /// Looks at the machine; `artifacts` need not exist.
    pub fn of(artifacts: &Path) -> Self {
        let disk = existing(artifacts).and_then(|folder| fs4::available_space(folder).ok());
        let mut system = System::new();
        system.refresh_memory();
        let group = system.cgroup_limits().map_or(u64::MAX, |limits| limits.free_memory);
        Self { disk, memory: system.available_memory().min(group), threads: rayon::current_num_threads() }
    }
}

/// The folder, or the nearest one above it that exists.
pub fn existing(folder: &Path) -> Option<PathBuf> {
    let folder = std::path::absolute(folder).ok()?;
    folder.ancestors().find(|folder| folder.is_dir()).map(Path::to_owned)
}
