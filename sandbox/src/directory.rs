//! The directories of sandboxes: held by one process at a time, swept when their owner has gone.

use std::fs::{DirBuilder, File, Permissions, TryLockError};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Doing, Error, Result};
use crate::random;

/// Logs of failed tests that are kept before the oldest goes.
const FAILED_KEPT: usize = 20;

/// A lock that is held longer than a moment is held by another sandbox.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// A sandbox's directory. The lock lives as long as this, and no longer than the process.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    lock: File,
    /// Where the logs go when a test fails; set for directories that end with their sandbox.
    temporary: Option<PathBuf>,
}

impl Directory {
    /// A directory that stays, as `.local`: data is found again by the next sandbox.
    pub(crate) fn lasting(path: &Path) -> Result<Self> {
        make(path)?;
        let path = path.canonicalize().doing(|| format!("find the directory {}", path.display()))?;
        let lock = open_lock(&path.join("lock"))?;
        for tries in 0.. {
            match lock.try_lock() {
                Ok(()) => break,
                // A process that another thread forks holds a copy of a lock that was let go until it becomes another program.
                Err(TryLockError::WouldBlock) if tries < LOCK_TRIES => std::thread::sleep(LOCK_PAUSE),
                Err(TryLockError::WouldBlock) => return Err(Error::Busy { directory: path, details: String::new() }),
                Err(TryLockError::Error(source)) => {
                    return Err(Error::Io { action: format!("lock the directory {}", path.display()), source });
                }
            }
        }
        let directory = Self { path, lock, temporary: None };
        make(&directory.logs())?;
        Ok(directory)
    }

    /// A new directory below `cache` that is removed with its sandbox, or by the next one when its process was killed.
    pub(crate) fn temporary(cache: &Path) -> Result<Self> {
        let worlds = cache.join("worlds");
        make(&worlds)?;
        // Between making a lock file and locking it, it looks abandoned: so nobody sweeps meanwhile.
        let sweeping = open_lock(&worlds.join("sweep"))?;
        sweeping.lock().doing(|| format!("lock {}", worlds.display()))?;
        sweep(&worlds);
        let name = random::characters(12)?;
        let lock = open_lock(&worlds.join(format!("{name}.lock")))?;
        lock.lock().doing(|| format!("lock the new directory {name}"))?;
        drop(sweeping);
        let directory = Self { path: worlds.join(name), lock, temporary: Some(cache.join("failed")) };
        make(&directory.logs())?;
        Ok(directory)
    }

    /// Writes our process id into the lock, for the message that another one then shows.
    pub(crate) fn note_owner(&self) -> Result<()> {
        let write = || {
            self.lock.set_len(0)?;
            (&self.lock).write_all(std::process::id().to_string().as_bytes())
        };
        write().doing(|| format!("write the lock of {}", self.path.display()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.path.join("logs")
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.path.join("logs").join(format!("{name}.log"))
    }
}

/// The process id that the owner of a lasting directory noted, if it did.
pub(crate) fn owner(directory: &Path) -> Option<u32> {
    std::fs::read_to_string(directory.join("lock")).ok()?.trim().parse().ok()
}

impl Drop for Directory {
    fn drop(&mut self) {
        let Some(failed) = &self.temporary else {
            return;
        };
        if std::thread::panicking() {
            keep_logs(&self.logs(), failed);
        }
        // What can't be removed now, the next sandbox sweeps.
        let _ = std::fs::remove_dir_all(&self.path);
        let _ = std::fs::remove_file(self.path.with_extension("lock"));
    }
}

/// Moves a failed test's logs where a person can read them, and says where.
fn keep_logs(logs: &Path, failed: &Path) {
    let test = std::thread::current().name().unwrap_or("test").replace([':', '/'], "_");
    let kept = failed.join(format!("{test}-{}", std::process::id()));
    if make(failed).is_ok() && std::fs::rename(logs, &kept).is_ok() {
        eprintln!("the logs of this test's processes are in {}", kept.display());
    }
    let Ok(entries) = std::fs::read_dir(failed) else {
        return;
    };
    let mut all: Vec<_> = entries.flatten().filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path()))).collect();
    all.sort();
    for (_, old) in all.iter().take(all.len().saturating_sub(FAILED_KEPT)) {
        let _ = std::fs::remove_dir_all(old);
    }
}

/// Removes directories whose owner has gone without doing so. Their processes were ended by their guards.
fn sweep(worlds: &Path) {
    let Ok(entries) = std::fs::read_dir(worlds) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_none_or(|extension| extension != "lock") {
            continue;
        }
        let abandoned = open_lock(&path).is_ok_and(|lock| lock.try_lock().is_ok());
        if !abandoned {
            continue;
        }
        let directory = path.with_extension("");
        let _ = std::fs::remove_dir_all(&directory);
        // Without its lock file a directory would never be looked at again.
        if !directory.exists() {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn open_lock(path: &Path) -> Result<File> {
    File::options().create(true).truncate(false).write(true).open(path).doing(|| format!("open the lock {}", path.display()))
}

/// Makes a directory and its parents. Others may pass through, since Postgres may run under an account of its own;
/// what is secret is closed file by file.
pub(crate) fn make(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path).doing(|| format!("make the directory {}", path.display()))
}

/// Writes a file that its owner alone may read, at once or not at all.
pub(crate) fn write_secret(path: &Path, text: &str) -> Result<()> {
    let write = || {
        let partial = path.with_added_extension("partial");
        let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&partial)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(partial, path)
    };
    write().doing(|| format!("write {}", path.display()))
}

/// Copies a directory tree with permissions, giving every entry to `owner` (user, group) when one is named.
pub(crate) fn copy_tree(from: &Path, to: &Path, owner: Option<(u32, u32)>) -> std::io::Result<()> {
    let permissions = std::fs::metadata(from)?.permissions();
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target, owner)?;
        } else {
            std::fs::copy(entry.path(), &target)?;
            give(&target, owner)?;
        }
    }
    std::fs::set_permissions(to, permissions)?;
    give(to, owner)
}

/// Changes the owner of one file or directory.
pub(crate) fn give(path: &Path, owner: Option<(u32, u32)>) -> std::io::Result<()> {
    match owner {
        Some((uid, gid)) => std::os::unix::fs::chown(path, Some(uid), Some(gid)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_swept_when_its_owner_has_gone_and_not_before() {
        let cache = std::env::temp_dir().join(format!("offstage-directory-{}", random::characters(8).unwrap()));
        let held = Directory::temporary(&cache).unwrap();
        let other = Directory::temporary(&cache).unwrap();
        assert!(held.logs().is_dir() && other.logs().is_dir());
        // Killed: the lock ends with the process, nothing is tidied.
        let abandoned = other.path().to_owned();
        let leaked = std::mem::ManuallyDrop::new(other);
        leaked.lock.unlock().unwrap();
        let _third = Directory::temporary(&cache).unwrap();
        assert!(!abandoned.exists() && !abandoned.with_extension("lock").exists());
        assert!(held.logs().is_dir());
        std::fs::remove_dir_all(cache).unwrap();
    }

    #[test]
    fn a_lasting_directory_has_one_owner() {
        let path = std::env::temp_dir().join(format!("offstage-directory-{}", random::characters(8).unwrap()));
        let first = Directory::lasting(&path).unwrap();
        assert!(matches!(Directory::lasting(&path), Err(Error::Busy { .. })));
        drop(first);
        Directory::lasting(&path).unwrap();
        std::fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn secrets_are_readable_by_their_owner_alone() {
        let path = std::env::temp_dir().join(format!("offstage-secret-{}", random::characters(8).unwrap()));
        write_secret(&path, "secret").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::remove_file(path).unwrap();
    }
}
