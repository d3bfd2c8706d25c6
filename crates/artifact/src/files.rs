//! Access to the file system for all crates: every error names its path, and whole files are written atomically.

#![allow(clippy::disallowed_methods, reason = "this module takes their place")]

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use crate::{Error, Result};

/// Marks the names of files that are still being written.
const TEMPORARY: &str = ".mp4sr-tmp-";
/// Marks the temporary name of a folder that is being replaced.
const EARLIER: &str = ".earlier";

/// Reads a whole file.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|e| Error::io("read", path, e))
}

/// Reads a whole UTF-8 file.
pub fn read_to_string(path: &Path) -> Result<String> {
    utf8(fs::read(path).map_err(|e| Error::io("read", path, e))?)
        .map_err(|reason| Error::unusable(path, reason, "save it as UTF-8"))
}

/// Bytes as text, or a reason that names the first line that is not UTF-8.
pub fn utf8(bytes: Vec<u8>) -> std::result::Result<String, String> {
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        format!("line {} is not UTF-8", valid.split(|&byte| byte == b'\n').count())
    })
}

/// Opens a file for reading.
pub fn open(path: &Path) -> Result<File> {
    let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
    let kind = file.metadata().map_err(|e| Error::io("inspect", path, e))?;
    if kind.is_dir() {
        return Err(Error::io("open", path, io::Error::from(io::ErrorKind::IsADirectory)));
    }
    Ok(file)
}

/// Opens a file for appending. A missing file is created, with its folder.
pub fn append(path: &Path) -> Result<File> {
    create_dir_all(folder_of(path))?;
    File::options().append(true).create(true).open(path).map_err(|e| Error::io("open", path, e))
}

/// The length of a file in bytes; `None` if it does not exist.
pub fn length(path: &Path) -> Result<Option<u64>> {
    match fs::metadata(path) {
        Ok(found) => Ok(Some(found.len())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io("inspect", path, e)),
    }
}

/// Whether a path leads to a file, and not to a folder or to nothing. A name that no file can have leads to nothing.
pub fn is_file(path: &Path) -> Result<bool> {
    Ok(metadata(path)?.is_some_and(|found| found.is_file()))
}

/// Whether a path leads to a folder, and not to a file or to nothing. A name that no folder can have leads to nothing.
pub fn is_dir(path: &Path) -> Result<bool> {
    Ok(metadata(path)?.is_some_and(|found| found.is_dir()))
}

fn metadata(path: &Path) -> Result<Option<fs::Metadata>> {
    use io::ErrorKind::{InvalidFilename, InvalidInput, NotADirectory, NotFound};
    match fs::metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(e) if [NotFound, NotADirectory, InvalidFilename, InvalidInput].contains(&e.kind()) => Ok(None),
        Err(e) => Err(Error::io("inspect", path, e)),
    }
}

/// Creates a folder and its parents.
pub fn create_dir_all(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(|e| Error::io("create folder", path, e))
}

/// Removes a file if it exists.
pub fn remove_if_present(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

/// Removes a folder and its content if it exists.
pub fn remove_dir_if_present(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove folder", path, e)),
        _ => Ok(()),
    }
}

/// Moves a finished file or folder to its final name.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| Error::io("rename", from, e))
}

/// Renames a complete file from its temporary name to its final one. The steps are fsync, rename and fsync of the folder, so that the final
/// name refers to complete content even after a power failure.
pub fn publish(temporary: &Path, path: &Path) -> Result<()> {
    sync(temporary)?;
    rename(temporary, path)?;
    sync(folder_of(path))
}

fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(|e| Error::io("sync", path, e))
}

/// The paths directly inside a folder, sorted by name.
pub fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(|e| Error::io("list", folder, e))?;
    let mut paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<io::Result<Vec<_>>>()
        .map_err(|e| Error::io("list", folder, e))?;
    paths.sort();
    Ok(paths)
}

/// Writes a file so that its final name only ever refers to complete content: temporary sibling, fsync, rename. A link is followed; a
/// device or a pipe, which cannot be replaced, is written to directly.
pub fn write_atomic<E>(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> std::result::Result<(), E>,
) -> Result<()>
where
    E: Into<io::Error>,
{
    let fill = |file: File| -> io::Result<File> {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        write(&mut out).map_err(Into::into)?;
        out.into_inner().map_err(io::IntoInnerError::into_error)
    };
    if fs::metadata(path).is_ok_and(|about| !about.is_file() && !about.is_dir()) {
        let written = File::options().write(true).open(path).and_then(fill);
        return written.map(|_| ()).map_err(|e| Error::io("write", path, e));
    }
    let target = if path.is_symlink() {
        fs::canonicalize(path).map_err(|e| Error::io("follow the link", path, e))?
    } else {
        path.to_owned()
    };
    let path = target.as_path();
    let folder = folder_of(path);
    create_dir_all(folder)?;
    let temporary = temporary_of(path);
    let outcome = (|| -> io::Result<()> {
        fill(File::create(&temporary)?)?.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(folder)?.sync_all()
    })();
    if outcome.is_err() {
        // The first error is the one to report. If the file cannot be removed, the next start removes it.
        let _ = fs::remove_file(&temporary);
    }
    outcome.map_err(|e| Error::io("write", path, e))
}

/// Fills a folder under a temporary name and renames it to `path` when it is complete. Only then is an earlier folder of that name removed;
/// if `fill` fails, it is left unchanged.
pub fn replace_folder<E: From<Error>>(
    path: &Path,
    fill: impl FnOnce(&Path) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let parent = folder_of(path);
    clean_folder(parent)?;
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let beside = |mark: &str| parent.join(format!("{name}{mark}{TEMPORARY}{}", this_process()));
    let (made, earlier) = (beside(""), beside(EARLIER));
    let outcome = (|| {
        remove_dir_if_present(&made)?;
        create_dir_all(&made)?;
        fill(&made)?;
        sync(&made)?;
        let replaces = path.exists();
        if replaces {
            rename(path, &earlier)?;
        }
        if let Err(error) = rename(&made, path) {
            if replaces {
                // The error of the new folder is the one to report. The next start restores the earlier one if it could not be.
                let _ = fs::rename(&earlier, path);
            }
            return Err(error.into());
        }
        Ok(sync(parent)?)
    })();
    // Errors of this clean-up are ignored: the outcome is decided already, and the next start removes what is left.
    let _ = fs::remove_dir_all(&made);
    if path.exists() {
        let _ = fs::remove_dir_all(&earlier);
    }
    outcome
}

/// A path beside `path` for the temporary files of this process. [`remove_leftovers`] removes what a killed process left there.
pub fn temporary_of(path: &Path) -> PathBuf {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    folder_of(path).join(format!("{name}{TEMPORARY}{}", this_process()))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Copies a file atomically, without holding its content in memory.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut source = open(from)?;
    let copied = |error: io::Error| io::Error::new(error.kind(), format!("copying `{}`: {error}", from.display()));
    write_atomic(to, |out| io::copy(&mut source, out).map(|_| ()).map_err(copied))
}

/// Writes bytes atomically.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic(path, |out| out.write_all(bytes))
}

/// Writes a value as indented JSON, atomically.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    write_atomic(path, |out| -> io::Result<()> {
        serde_json::to_writer_pretty(&mut *out, value)?;
        out.write_all(b"\n")
    })
}

/// Makes sure that a folder exists and contains no temporary files of killed processes.
pub fn clean_folder(folder: &Path) -> Result<()> {
    create_dir_all(folder)?;
    remove_leftovers(folder).map(|_| ())
}

/// Removes temporary files that killed processes left directly in `folder`. Those of a running process stay, because another stage may be
/// writing into the same folder. A folder that a killed process was about to replace gets its name back.
pub fn remove_leftovers(folder: &Path) -> Result<usize> {
    let mut removed = 0;
    for path in list(folder)? {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let Some((name, process)) = name.rsplit_once(TEMPORARY) else { continue };
        if ProcessName::parse(process).is_some_and(|process| process.may_run(&path, this_process())) {
            continue;
        }
        let replaced = name.strip_suffix(EARLIER).map(|name| folder.join(name));
        match replaced.filter(|replaced| path.is_dir() && !replaced.exists()) {
            Some(replaced) => {
                rename(&path, &replaced)?;
                continue;
            }
            None if path.is_dir() => remove_dir_if_present(&path)?,
            None => remove_if_present(&path)?,
        }
        removed += 1;
    }
    Ok(removed)
}

/// Identifies a process in the names of its temporary files. The process id alone is not enough: in containers every run may have the same
/// one, and folders are shared between machines. A part that the system does not report is missing; earlier versions wrote fewer parts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ProcessName {
    number: String,
    /// The start time of the process, in clock ticks since the system booted.
    start: Option<String>,
    /// Hashes of the host name and of the boot id.
    machine: Option<(String, String)>,
}

/// The age from which a leftover of another machine, whose processes cannot be checked here, is removed.
const OLD: Duration = Duration::from_hours(24);

impl ProcessName {
    fn own() -> Self {
        let number = std::process::id().to_string();
        let hashed = |path: &str| {
            let text = fs::read_to_string(path).ok()?;
            Some(blake3::hash(text.trim().as_bytes()).to_hex().chars().take(8).collect::<String>())
        };
        let start = start_of(&number);
        let machine = hashed("/proc/sys/kernel/hostname").zip(hashed("/proc/sys/kernel/random/boot_id"));
        Self { number, machine: machine.filter(|_| start.is_some()), start }
    }

    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-').map(str::to_owned);
        let number = parts.next().filter(|number| is_number(number))?;
        let start = parts.next();
        let machine = parts.next().zip(parts.next());
        (start.as_deref().is_none_or(is_number) && parts.next().is_none()).then_some(Self { number, start, machine })
    }

    /// Whether the process may still be writing the file at `path`.
    fn may_run(&self, path: &Path, own: &Self) -> bool {
        match (&self.machine, &own.machine) {
            (Some((machine, _)), Some((here, _))) if machine != here => !is_old(path),
            (Some((_, start)), Some((_, now))) if start != now => false,
            _ => is_alive(&self.number, self.start.as_deref()),
        }
    }
}

impl std::fmt::Display for ProcessName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let machine = self.machine.iter().flat_map(|(machine, start)| [machine, start]);
        write!(f, "{}", self.number)?;
        self.start.iter().chain(machine).try_for_each(|part| write!(f, "-{part}"))
    }
}

fn this_process() -> &'static ProcessName {
    static NAME: OnceLock<ProcessName> = OnceLock::new();
    NAME.get_or_init(ProcessName::own)
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether a file was last modified long ago; a missing file counts as old.
fn is_old(path: &Path) -> bool {
    let modified = path.symlink_metadata().and_then(|about| about.modified());
    modified.map_or(true, |time| time.elapsed().is_ok_and(|age| age > OLD))
}

/// The start time of a process, in clock ticks since the system booted.
fn start_of(number: &str) -> Option<String> {
    let about = fs::read_to_string(Path::new("/proc").join(number).join("stat")).ok()?;
    // The second field is the program's name, which may contain any character; the start time is the 22nd field.
    let (_, fields) = about.rsplit_once(')')?;
    fields.split_whitespace().nth(19).map(str::to_owned)
}

/// Whether a process of this machine is running; on systems without `/proc`, none counts as running. A killed process counts as dead once
/// its files are closed and its locks released, which is before its process id can be reused.
fn is_alive(number: &str, start: Option<&str>) -> bool {
    start.is_none_or(|start| start_of(number).as_deref() == Some(start))
        && match fs::read_dir(Path::new("/proc").join(number).join("fd")) {
            Ok(mut open) => open.next().is_some(),
            Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_leftover() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write_bytes(&path, b"old").unwrap();
        let failed = write_atomic(&path, |out| {
            out.write_all(b"half")?;
            Err(io::Error::other("no space left"))
        });
        assert!(failed.unwrap_err().to_string().contains("no space left"));
        assert_eq!(read(&path).unwrap(), b"old");
        assert_eq!(list(folder.path()).unwrap().len(), 1);
    }

    #[test]
    fn a_folder_is_replaced_completely_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let fill = |name: &'static str, fails: bool| {
            replace_folder(&path, |made| {
                write_bytes(&made.join(name), b"x")?;
                if fails { read(&made.join("missing")).map(|_| ()) } else { Ok(()) }
            })
        };
        let held =
            || list(&path).map(|paths| paths.iter().map(|p| p.file_name().unwrap().to_owned()).collect::<Vec<_>>());
        assert!(fill("a", true).is_err() && !path.exists());
        fill("a", false).unwrap();
        assert!(fill("b", true).is_err());
        assert_eq!(held().unwrap(), ["a"]);
        fill("b", false).unwrap();
        assert_eq!(held().unwrap(), ["b"]);
        assert_eq!(list(folder.path()).unwrap(), std::slice::from_ref(&path), "nothing else is left");
    }

    #[test]
    fn a_folder_gets_its_name_back_if_the_process_that_was_replacing_it_was_killed() {
        let folder = tempfile::tempdir().unwrap();
        let left = |mark: &str| folder.path().join(format!("out{mark}.mp4sr-tmp-4999999999"));
        for mark in ["", ".earlier"] {
            write_bytes(&left(mark).join(format!("file{mark}")), b"x").unwrap();
        }
        assert_eq!(remove_leftovers(folder.path()).unwrap(), 1);
        let path = folder.path().join("out");
        assert_eq!(list(&path).unwrap(), [path.join("file.earlier")]);
        // If the new folder already has the name, the earlier one is removed.
        write_bytes(&left(".earlier").join("older"), b"x").unwrap();
        remove_leftovers(folder.path()).unwrap();
        assert_eq!(list(folder.path()).unwrap(), [path]);
    }

    #[test]
    fn leftovers_of_a_killed_process_are_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        // Process ids are never this large.
        for dead in ["4999999999", "4999999999-17", "", "-", "1x", "1-", "-1"] {
            fs::write(folder.path().join(format!("a.json.mp4sr-tmp-{dead}")), b"half").unwrap();
        }
        fs::write(folder.path().join("a.json"), b"whole").unwrap();
        let own = folder.path().join(format!("b.json.mp4sr-tmp-{}", this_process()));
        fs::write(&own, b"half").unwrap();
        let alive = usize::from(cfg!(target_os = "linux"));
        assert_eq!(remove_leftovers(folder.path()).unwrap(), 8 - alive);
        assert_eq!(list(folder.path()).unwrap().len(), 1 + alive);
        assert!(folder.path().join("a.json").exists());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn leftovers_of_a_dead_process_are_removed_without_a_record() {
        let folder = tempfile::tempdir().unwrap();
        let mut process = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let number = process.id().to_string();
        let start = start_of(&number).unwrap();
        for name in [number.clone(), format!("{number}-{start}")] {
            fs::write(folder.path().join(format!("a.json.mp4sr-tmp-{name}")), b"half").unwrap();
        }
        assert_eq!(remove_leftovers(folder.path()).unwrap(), 0);
        process.kill().unwrap();
        let gone = (0..1000).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            remove_leftovers(folder.path()).unwrap();
            list(folder.path()).unwrap().is_empty()
        });
        assert!(gone);
        process.wait().unwrap();
    }

    /// In containers, the first process of every run may have the process id 1.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_leftover_of_an_earlier_process_with_the_same_id_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let ProcessName { number, start, machine } = this_process().clone();
        assert_eq!(number, std::process::id().to_string());
        let other = start.unwrap().parse::<u64>().unwrap() - 1;
        let write = |process: String| {
            let path = folder.path().join(format!("a.json.mp4sr-tmp-{process}"));
            fs::write(&path, b"half").unwrap();
            path
        };
        let (earlier, own) = (write(format!("{number}-{other}")), write(this_process().to_string()));
        assert_eq!(remove_leftovers(folder.path()).unwrap(), 1);
        assert!(!earlier.exists() && own.exists());
        // It was written before the last boot, so another process has that number now.
        let (here, _) = machine.unwrap();
        let before = write(format!("{number}-{other}-{here}-0"));
        // Processes of another machine cannot be checked: a fresh file stays, an old one is removed.
        let (fresh, old) = (write("4999999999-17-other-0".to_owned()), write("4999999999-18-other-0".to_owned()));
        let long_ago = std::time::SystemTime::now() - 2 * OLD;
        File::options().write(true).open(&old).unwrap().set_modified(long_ago).unwrap();
        assert_eq!(remove_leftovers(folder.path()).unwrap(), 2);
        assert!(!before.exists() && fresh.exists() && !old.exists() && own.exists());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_is_written_under_the_name_of_its_process() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write_atomic(&path, |_| {
            let found = list(folder.path()).unwrap();
            assert_eq!(found, [folder.path().join(format!("a.json.mp4sr-tmp-{}", this_process()))]);
            assert_eq!(remove_leftovers(folder.path()).unwrap(), 0);
            Ok::<_, io::Error>(())
        })
        .unwrap();
    }
}
