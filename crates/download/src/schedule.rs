//! A bounded work queue for threads, with a limit per host.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::Result;

/// The maximum number of waiting jobs.
const WAITING: usize = 1024;

/// A queue of jobs, each of which belongs to one host.
#[derive(Debug)]
pub struct Schedule<J> {
    per_host: usize,
    state: Mutex<State<J>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<J> {
    /// The waiting jobs by host.
    waiting: BTreeMap<String, VecDeque<J>>,
    count: usize,
    /// The number of permits in use, by host.
    busy: HashMap<String, usize>,
    closed: bool,
}

impl<J> Schedule<J> {
    pub fn new(per_host: usize) -> Self {
        let state = State { waiting: BTreeMap::new(), count: 0, busy: HashMap::new(), closed: false };
        Self { per_host, state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Adds a job once there is room for it. Returns `false` if the work was stopped.
    pub fn put(&self, host: String, job: J) -> bool {
        let mut state = self.wait(|state| state.closed || state.count < WAITING);
        if state.closed {
            return false;
        }
        state.waiting.entry(host).or_default().push_back(job);
        state.count += 1;
        self.changed.notify_all();
        true
    }

    /// Takes a job whose host has room, with the permit for that host. Returns `None` once the queue is closed and empty.
    pub fn take(&self) -> Option<(J, Permit<'_, J>)> {
        let done = |state: &State<J>| state.closed && state.count == 0;
        let mut state = self.wait(|state| done(state) || state.ready(self.per_host).is_some());
        let host = state.ready(self.per_host)?.clone();
        let jobs = state.waiting.get_mut(&host)?;
        let job = jobs.pop_front()?;
        if jobs.is_empty() {
            state.waiting.remove(&host);
        }
        state.count -= 1;
        *state.busy.entry(host.clone()).or_default() += 1;
        self.changed.notify_all();
        Some((job, Permit { schedule: self, host }))
    }

    /// Accepts no more jobs; waiting jobs are still done.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Drops the waiting jobs and accepts no more.
    pub fn stop(&self) {
        let mut state = self.lock();
        state.waiting.clear();
        state.count = 0;
        drop(state);
        self.close();
    }

    fn lock(&self) -> MutexGuard<'_, State<J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, until: impl Fn(&State<J>) -> bool) -> MutexGuard<'_, State<J>> {
        self.changed.wait_while(self.lock(), |state| !until(state)).unwrap_or_else(PoisonError::into_inner)
    }
}

impl<J> State<J> {
    /// A host that has a job and room for it.
    fn ready(&self, per_host: usize) -> Option<&String> {
        self.waiting.keys().find(|host| self.has_room(host, per_host))
    }

    fn has_room(&self, host: &str, per_host: usize) -> bool {
        self.busy.get(host).is_none_or(|busy| *busy < per_host)
    }
}

/// The permission to contact one host; it is released on drop.
#[derive(Debug)]
pub struct Permit<'a, J> {
    schedule: &'a Schedule<J>,
    host: String,
}

impl<J> Permit<'_, J> {
    /// Changes to another host once it has room. No permit is held meanwhile, so that threads cannot deadlock.
    pub fn change(&mut self, host: String) {
        if host == self.host {
            return;
        }
        self.give_back();
        let mut state = self.schedule.wait(|state| state.has_room(&host, self.schedule.per_host));
        *state.busy.entry(host.clone()).or_default() += 1;
        self.host = host;
    }

    fn give_back(&self) {
        let mut state = self.schedule.lock();
        if let Some(busy) = state.busy.get_mut(&self.host) {
            *busy -= 1;
            if *busy == 0 {
                state.busy.remove(&self.host);
            }
        }
        self.schedule.changed.notify_all();
    }
}

impl<J> Drop for Permit<'_, J> {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Runs all jobs that `produce` adds. They run on `threads` threads, at most `per_host` jobs at once per host. The first error of `produce`
/// or `work` stops everything.
pub fn run<J: Send>(
    threads: usize,
    per_host: usize,
    produce: impl FnOnce(&Schedule<J>) -> Result<()>,
    work: impl Fn(J, &mut Permit<'_, J>) -> Result<()> + Sync,
) -> Result<()> {
    let schedule = Schedule::new(per_host);
    let first_error = Mutex::new(None);
    let fail = |error| {
        first_error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        schedule.stop();
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let _guard = StopOnPanic(&schedule);
                while let Some((job, mut permit)) = schedule.take() {
                    work(job, &mut permit).unwrap_or_else(fail);
                }
            });
        }
        produce(&schedule).unwrap_or_else(fail);
        schedule.close();
    });
    first_error.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

/// Stops all work if a thread panics, so that the other threads do not wait for it.
#[derive(Debug)]
struct StopOnPanic<'a, J>(&'a Schedule<J>);

impl<J> Drop for StopOnPanic<'_, J> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_at_its_limit_is_skipped() {
        let schedule = Schedule::new(1);
        for (host, job) in [("a", 1), ("a", 2), ("b", 3)] {
            assert!(schedule.put(host.to_owned(), job));
        }
        schedule.close();
        let (first, permit_a) = schedule.take().unwrap();
        let (second, mut permit_b) = schedule.take().unwrap();
        assert_eq!((first, second), (1, 3));
        drop(permit_a);
        permit_b.change("a".to_owned());
        drop(permit_b);
        assert_eq!(schedule.take().map(|(job, _)| job), Some(2));
        assert!(schedule.take().is_none() && schedule.lock().busy.is_empty());
    }
}
