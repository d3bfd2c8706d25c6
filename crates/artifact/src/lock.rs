use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use crate::{Error, Result, files};

/// Exclusive use of a folder's artifacts by one process. The operating system releases the lock when the process ends, however it ends, so
/// the lock of a killed process never blocks.
#[derive(Debug)]
pub struct Lock {
    // Held open: closing the file releases the lock.
    _file: File,
}

impl Lock {
    /// Acquires the lock `folder/.<name>.lock`; the error names its holder.
    pub fn acquire(folder: &Path, name: &str) -> Result<Self> {
        files::create_dir_all(folder)?;
        let path = folder.join(format!(".{name}.lock"));
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|e| Error::io("open", &path, e))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                let holder = if holder.is_empty() { "another process".to_owned() } else { holder };
                return Err(Error::Locked { path, holder });
            }
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", &path, e)),
        }
        let written =
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(describe_self().as_bytes()));
        written.map_err(|e| Error::io("write", &path, e))?;
        Ok(Self { _file: file })
    }
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
}
