//! Detects whether this process is one of several that a launcher such as mpirun has started, and connects it with the others.

use mp4sr_ops::ProcessGroup;

/// The environment variables with the number of processes: that of Open MPI, then that of MPICH, Intel MPI and `srun --mpi=pmi2`.
const SIZES: [&str; 2] = ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"];

/// The processes of a launch, while they run.
#[derive(Debug)]
pub struct Launch {
    group: ProcessGroup,
    #[cfg(feature = "mpi")]
    _universe: crate::mpi::Universe,
}

impl Launch {
    /// The launch that this process belongs to; `None` if it was started alone.
    pub fn find() -> anyhow::Result<Option<Self>> {
        match launched(|name| std::env::var(name).ok()) {
            None | Some(1) => Ok(None),
            Some(size) => Self::join(size).map(Some),
        }
    }

    #[cfg(not(feature = "mpi"))]
    fn join(size: usize) -> anyhow::Result<Self> {
        anyhow::bail!(
            "{size} processes were started, but this program was built without MPI, so each process would train separately in the same folder; \
             build it with `cargo build --release --workspace --bins --features mp4sr-train/mpi`, or start one process"
        )
    }

    #[cfg(feature = "mpi")]
    fn join(size: usize) -> anyhow::Result<Self> {
        let (universe, transport) = crate::mpi::start(size)?;
        Ok(Self { group: ProcessGroup::new(transport), _universe: universe })
    }

    /// The processes of the launch.
    pub fn group(&self) -> &ProcessGroup {
        &self.group
    }

    /// Gives the first process time to report an error that all processes have, such as a message that is too long, and to end them.
    /// An error that only this process has is reported after that time.
    #[cfg_attr(not(feature = "mpi"), allow(clippy::unused_self, reason = "without MPI there is no launch to end"))]
    pub fn wait_for_first(&self) {
        #[cfg(feature = "mpi")]
        if !self.group.is_first() {
            std::thread::sleep(3 * crate::mpi::FORWARDING);
        }
    }

    /// Ends all processes, because the others may wait for this one.
    #[cfg_attr(not(feature = "mpi"), allow(clippy::unused_self, reason = "a launch exists only with MPI"))]
    pub fn abort(&self) {
        #[cfg(feature = "mpi")]
        crate::mpi::abort();
    }
}

/// Aborts the launch if this process panics, because it then never reaches the point at which the others wait for it.
impl Drop for Launch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.abort();
        }
    }
}

/// The number of processes of the launch, as the environment variables give it.
fn launched(variable: impl Fn(&str) -> Option<String>) -> Option<usize> {
    let number = |name: &str| variable(name).and_then(|text| text.parse::<usize>().ok()).filter(|&size| size > 0);
    // `srun --mpi=pmix` sets only the number of the process; the number of processes is in a variable of Slurm.
    let by_slurm = || variable("PMIX_RANK").and_then(|_| number("SLURM_STEP_NUM_TASKS"));
    SIZES.iter().find_map(|name| number(name)).or_else(by_slurm)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launches_are_recognised_by_their_variables() {
        let of = |set: &[(&str, &str)]| {
            launched(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("OMPI_COMM_WORLD_SIZE", "4")]), Some(4));
        assert_eq!(of(&[("PMI_SIZE", "2")]), Some(2));
        assert_eq!(of(&[("SLURM_STEP_NUM_TASKS", "8")]), None, "an array of jobs is not a launch");
        assert_eq!(of(&[("SLURM_STEP_NUM_TASKS", "8"), ("PMIX_RANK", "3")]), Some(8));
        assert_eq!(of(&[("PMI_SIZE", "x")]), None);
    }
}
