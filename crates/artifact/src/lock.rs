//! Locks of folders, so that two processes do not write the same files.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::{Error, Result, files};

/// The longest time for which a process waits for another one that only checks whether there is anything to do.
const LONGEST_CHECK: Duration = Duration::from_mins(1);
/// The time between two attempts to acquire a lock.
const ATTEMPT: Duration = Duration::from_millis(20);

/// Exclusive use of a folder's artifacts by one process. The operating system releases the lock when the process ends, however it ends, so
/// the lock of a killed process never blocks.
#[derive(Debug)]
pub struct Lock {
    // Held open: closing the file releases the lock.
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Acquires the lock `folder/.<name>.lock` to work under it; the error names its holder.
    pub fn acquire(folder: &Path, name: &str) -> Result<Self> {
        let mut lock = Self::acquire_to_check(folder, name)?;
        lock.begin_work()?;
        Ok(lock)
    }

    /// Acquires the lock `folder/.<name>.lock` to check whether there is anything to do. Other processes wait until the check ends, or
    /// until [`Self::begin_work`] tells them who works; the error names that process.
    pub fn acquire_to_check(folder: &Path, name: &str) -> Result<Self> {
        files::create_dir_all(folder)?;
        let path = folder.join(format!(".{name}.lock"));
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| Error::io("open", &path, e))?;
        let started = Instant::now();
        let mut earlier = String::new();
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(e)) => return Err(Error::io("lock", &path, e)),
                Err(TryLockError::WouldBlock) => {}
            }
            let holder = read(&mut file).map_err(|e| Error::io("read", &path, e))?;
            // A name that is read only once may be that of the process before.
            if !holder.is_empty() && holder == earlier || started.elapsed() > LONGEST_CHECK {
                let holder = if holder.is_empty() { "another process".to_owned() } else { holder };
                return Err(Error::Locked { path, holder });
            }
            earlier = holder;
            std::thread::sleep(ATTEMPT);
        }
        file.set_len(0).map_err(|e| Error::io("write", &path, e))?;
        Ok(Self { file, path })
    }

    /// Tells others that this process works under the lock.
    pub fn begin_work(&mut self) -> Result<()> {
        let written = self.file.rewind().and_then(|()| self.file.write_all(describe_self().as_bytes()));
        written.map_err(|e| Error::io("write", &self.path, e))
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // If this fails, the next holder removes the name.
        let _ = self.file.set_len(0);
    }
}

fn read(file: &mut File) -> io::Result<String> {
    let mut holder = String::new();
    file.rewind()?;
    file.read_to_string(&mut holder)?;
    Ok(holder)
}

fn describe_self() -> String {
    let host = files::read_to_string(Path::new("/proc/sys/kernel/hostname")).unwrap_or_default();
    let host = if host.trim().is_empty() { "this host" } else { host.trim() };
    let since = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M:%S UTC");
    format!("process {} on {host} since {since}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_reported_and_a_released_lock_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let first = Lock::acquire(folder.path(), "train").unwrap();
        let second = Lock::acquire(folder.path(), "train").unwrap_err().to_string();
        assert!(second.contains(&format!("process {}", std::process::id())), "{second}");
        assert!(second.ends_with("wait for it to end"), "{second}");
        drop(first);
        Lock::acquire(folder.path(), "train").unwrap();
    }

    #[test]
    fn a_check_is_waited_for_and_work_is_not() {
        let folder = tempfile::tempdir().unwrap();
        // A holder that was killed has left its name.
        files::write_bytes(&folder.path().join(".train.lock"), b"process 1").unwrap();
        let mut checking = Lock::acquire_to_check(folder.path(), "train").unwrap();
        let checked = std::thread::scope(|scope| {
            let other = scope.spawn(|| Lock::acquire_to_check(folder.path(), "train").map(drop));
            std::thread::sleep(10 * ATTEMPT);
            assert!(!other.is_finished(), "the other one did not wait");
            drop(checking);
            other.join().unwrap()
        });
        checked.unwrap();
        checking = Lock::acquire_to_check(folder.path(), "train").unwrap();
        checking.begin_work().unwrap();
        let refused = Lock::acquire_to_check(folder.path(), "train").unwrap_err().to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
    }
}
