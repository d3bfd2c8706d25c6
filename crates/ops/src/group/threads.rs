//! Threads of one program that act as processes.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use candle_core::{Result, bail};

use super::{ProcessGroup, Transport};

/// Runs `work` in `size` threads, which see each other as the processes of a group, and returns their results by rank. If a thread returns
/// an error or panics, the others stop waiting for it and fail too.
pub fn run_threads<T: Send>(size: usize, work: impl Fn(ProcessGroup) -> Result<T> + Sync) -> Vec<Result<T>> {
    let exchange = Arc::new(Exchange::new(size));
    std::thread::scope(|scope| {
        let work = &work;
        let start = |rank| {
            let exchange = exchange.clone();
            scope.spawn(move || {
                let guard = AbandonOnDrop(exchange.clone());
                let result = work(ProcessGroup::new(ThreadTransport { rank, exchange }));
                if result.is_ok() {
                    std::mem::forget(guard);
                }
                result
            })
        };
        let threads: Vec<_> = (0..size).map(start).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<T>>| match thread.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        threads.into_iter().map(join).collect()
    })
}

/// The blocks that the threads exchange.
#[derive(Debug)]
struct Exchange {
    state: Mutex<ExchangeState>,
    changed: Condvar,
}

#[derive(Debug)]
struct ExchangeState {
    /// The block of each thread in this round, once it is there.
    blocks: Vec<Option<Arc<Vec<u64>>>>,
    /// The number of threads that have read the blocks of this round.
    taken: usize,
    is_abandoned: bool,
}

impl Exchange {
    fn new(size: usize) -> Self {
        let state = ExchangeState { blocks: vec![None; size], taken: 0, is_abandoned: false };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Adds a block, waits for the blocks of all threads, and returns them.
    fn gather(&self, rank: usize, block: Vec<u64>) -> Result<Vec<Arc<Vec<u64>>>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = |state| self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        // The block of the last round stays until all threads have read it.
        while state.blocks[rank].is_some() && !state.is_abandoned {
            state = wait(state);
        }
        state.blocks[rank] = Some(Arc::new(block));
        self.changed.notify_all();
        loop {
            if state.is_abandoned {
                bail!("another process has stopped");
            }
            if let Some(all) = state.blocks.iter().cloned().collect::<Option<Vec<_>>>() {
                state.taken += 1;
                if state.taken == state.blocks.len() {
                    state.taken = 0;
                    state.blocks.fill(None);
                    self.changed.notify_all();
                }
                return Ok(all);
            }
            state = wait(state);
        }
    }
}

/// Dropped by a thread that fails, so that the other threads stop waiting.
struct AbandonOnDrop(Arc<Exchange>);

impl Drop for AbandonOnDrop {
    fn drop(&mut self) {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner).is_abandoned = true;
        self.0.changed.notify_all();
    }
}

#[derive(Debug)]
struct ThreadTransport {
    rank: usize,
    exchange: Arc<Exchange>,
}

impl ThreadTransport {
    fn gather(&self, own: &[f32]) -> Result<Vec<Vec<f32>>> {
        let bits = own.iter().map(|value| u64::from(value.to_bits())).collect();
        let all = self.exchange.gather(self.rank, bits)?;
        Ok(all.iter().map(|block| block.iter().map(|&bits| f32::from_bits(bits as u32)).collect()).collect())
    }
}

impl Transport for ThreadTransport {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.exchange.state.lock().unwrap_or_else(PoisonError::into_inner).blocks.len()
    }

    fn all_gather(&self, own: &[f32], lengths: &[usize]) -> Result<Vec<f32>> {
        let all = self.gather(own)?;
        check(&all.iter().map(Vec::len).collect::<Vec<_>>(), lengths)?;
        Ok(all.concat())
    }

    fn exchange(&self, parts: &[f32], sent: &[usize], received: &[usize]) -> Result<Vec<f32>> {
        // The lengths are sent too, so that the receivers find their parts.
        let mut block: Vec<f32> = sent.iter().map(|&length| f32::from_bits(length as u32)).collect();
        block.extend_from_slice(parts);
        let all = self.gather(&block)?;
        let part = |block: &Vec<f32>| {
            let lengths: Vec<usize> = block[..sent.len()].iter().map(|bits| bits.to_bits() as usize).collect();
            let start = sent.len() + lengths[..self.rank].iter().sum::<usize>();
            block[start..start + lengths[self.rank]].to_vec()
        };
        let own: Vec<Vec<f32>> = all.iter().map(part).collect();
        check(&own.iter().map(Vec::len).collect::<Vec<_>>(), received)?;
        Ok(own.concat())
    }

    fn all_gather_scalars(&self, own: &[f64]) -> Result<Vec<f64>> {
        let all = self.exchange.gather(self.rank, own.iter().map(|value| value.to_bits()).collect())?;
        check(&all.iter().map(|block| block.len()).collect::<Vec<_>>(), &vec![own.len(); all.len()])?;
        Ok(all.iter().flat_map(|block| block.iter().map(|&bits| f64::from_bits(bits))).collect())
    }
}

fn check(found: &[usize], expected: &[usize]) -> Result<()> {
    if found != expected {
        bail!("processes do not agree: expected blocks of {expected:?} values, found {found:?}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_arrive_by_rank_and_sums_are_the_same_everywhere() {
        let found = run_threads(3, |group| {
            let rank = group.rank();
            let own = vec![rank as f32; rank];
            let gathered = group.all_gather("test", &own, &[0, 1, 2])?;
            // Process r sends ten times r, plus the receiver's rank.
            let parts: Vec<f32> = (0..3).map(|to| (10 * rank + to) as f32).collect();
            let exchanged = group.exchange("test", &parts, &[1; 3], &[1; 3])?;
            let sum = group.all_reduce("test", &[1.0, rank as f32, 0.5, 4.0])?;
            let first = group.gather_to_first("test", &own, &[0, 1, 2])?;
            let scalars = group.scalars(&[rank as f64, 7.0])?;
            let traffic = group.take_traffic()["scalars"];
            Ok((gathered, exchanged, sum, first, scalars, (traffic.calls, traffic.sent_bytes)))
        });
        for (rank, found) in found.into_iter().enumerate() {
            let (gathered, exchanged, sum, first, scalars, traffic) = found.unwrap();
            assert_eq!(gathered, [1.0, 2.0, 2.0]);
            assert_eq!(exchanged, [rank as f32, 10.0 + rank as f32, 20.0 + rank as f32]);
            assert_eq!(sum, [3.0, 3.0, 1.5, 12.0]);
            assert_eq!(first, if rank == 0 { vec![1.0, 2.0, 2.0] } else { vec![] });
            assert_eq!(scalars, [[0.0, 7.0], [1.0, 7.0], [2.0, 7.0]]);
            assert_eq!(traffic, (1, 32));
        }
    }

    #[test]
    fn a_failed_process_stops_the_others_and_lengths_must_match() {
        let found = run_threads(3, |group| {
            if group.rank() == 1 {
                candle_core::bail!("broken");
            }
            group.scalars(&[1.0])
        });
        // A backtrace may follow the first line.
        let message = |found: Result<_>| found.unwrap_err().to_string().lines().next().unwrap_or_default().to_owned();
        let messages: Vec<String> = found.into_iter().map(message).collect();
        assert_eq!(messages, ["another process has stopped", "broken", "another process has stopped"]);
        let found = run_threads(2, |group| group.all_gather("test", &[1.0], &[1, 2]));
        // The thread that finds the mismatch first stops, and the other may see that before it finds the mismatch itself.
        let messages: Vec<String> = found.into_iter().map(|found| found.unwrap_err().to_string()).collect();
        assert!(messages.iter().any(|message| message.contains("do not agree")), "{messages:?}");
    }
}
