//! Exchanges messages between processes over MPI, with the library that this program was built with.

use std::time::Duration;

use anyhow::ensure;
use mp4sr_ops::{Error, Result, Transport};
use mpi::Threading;
use mpi::datatype::{Partition, PartitionMut};
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives};

/// Keeps MPI initialised until it is dropped.
pub(crate) struct Universe(#[allow(dead_code, reason = "dropping it ends MPI")] mpi::environment::Universe);

impl std::fmt::Debug for Universe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Universe")
    }
}

/// All processes of the launch. Only the thread that initialised MPI, which is the program's main thread, calls its functions.
#[derive(Debug)]
pub(crate) struct World {
    rank: usize,
    size: usize,
}

/// Initialises MPI and checks that it finds `size` processes, the number that the launcher gives.
pub(crate) fn start(size: usize) -> anyhow::Result<(Universe, World)> {
    let started = mpi::initialize_with_threading(Threading::Funneled);
    let (universe, _) = started.ok_or_else(|| anyhow::anyhow!("MPI is already initialised"))?;
    let world = SimpleCommunicator::world();
    let (rank, found) = (world.rank() as usize, world.size() as usize);
    ensure!(
        found == size,
        "{size} processes were started, but MPI reports {found}: the launcher belongs to a different MPI library from the one this \
         program was built with; use the `mpirun` of that library"
    );
    Ok((Universe(universe), World { rank, size }))
}

/// The time that a launcher needs to forward an error: MPICH's drops what it has not yet forwarded when a process aborts.
pub(crate) const FORWARDING: Duration = Duration::from_secs(1);

/// Ends all processes.
pub(crate) fn abort() {
    std::thread::sleep(FORWARDING);
    SimpleCommunicator::world().abort(1);
}

fn counts(lengths: &[usize]) -> Result<(Vec<i32>, Vec<i32>, usize)> {
    let total: usize = lengths.iter().sum();
    if i32::try_from(total).is_err() {
        let limit = i32::MAX;
        return Err(Error::Msg(format!("MPI sends at most {limit} values at once, found {total}; use more processes")));
    }
    let starts = lengths.iter().scan(0, |end, &length| Some(std::mem::replace(end, *end + length as i32)));
    Ok((lengths.iter().map(|&length| length as i32).collect(), starts.collect(), total))
}

impl Transport for World {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_gather(&self, own: &[f32], lengths: &[usize]) -> Result<Vec<f32>> {
        let (counts, starts, total) = counts(lengths)?;
        let mut all = vec![0.0f32; total];
        let mut to = PartitionMut::new(&mut all[..], counts, starts);
        SimpleCommunicator::world().all_gather_varcount_into(own, &mut to);
        Ok(all)
    }

    fn exchange(&self, parts: &[f32], sent: &[usize], received: &[usize]) -> Result<Vec<f32>> {
        let (sent_counts, sent_starts, _) = counts(sent)?;
        let (counts, starts, total) = counts(received)?;
        let mut all = vec![0.0f32; total];
        let from = Partition::new(parts, sent_counts, sent_starts);
        let mut to = PartitionMut::new(&mut all[..], counts, starts);
        SimpleCommunicator::world().all_to_all_varcount_into(&from, &mut to);
        Ok(all)
    }

    fn all_gather_scalars(&self, own: &[f64]) -> Result<Vec<f64>> {
        let mut all = vec![0.0f64; own.len() * self.size];
        SimpleCommunicator::world().all_gather_into(own, &mut all[..]);
        Ok(all)
    }
}
