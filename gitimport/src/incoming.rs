//! A directory that is being made and that nobody may see half-made.
//!
//! It is made under a name that starts with a prefix, locked as long as its maker lives, and
//! renamed when it is complete. What a killed maker left behind has the prefix but no lock: the
//! next maker removes it.

use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, Mode, OFlags, RenameFlags, flock, open, renameat_with};
use rustix::io::Errno;

use crate::error::{Error, Result};

/// Names tried before giving up. Each attempt fails only if the name exists or a cleaner took it
/// between two system calls.
const ATTEMPTS_MAX: u32 = 1000;

/// A directory being made. Dropping it removes it.
#[derive(Debug)]
pub(crate) struct Incoming {
    path: PathBuf,
    published: bool,
    /// Holds the lock; closing it releases.
    _lock: File,
}

impl Incoming {
    /// Makes an empty directory in `parent`, after removing those that killed makers left there
    /// under the same prefix.
    pub(crate) fn new(parent: &Path, prefix: &str) -> Result<Self> {
        remove_abandoned(parent, prefix)?;
        for attempt in 0..ATTEMPTS_MAX {
            let path = parent.join(format!("{prefix}{}-{attempt}", std::process::id()));
            match DirBuilder::new().mode(0o777).create(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                made => made.map_err(|source| Error::io("create", &path, source))?,
            }
            if let Some(lock) = try_lock(&path)? {
                return Ok(Self { path, published: false, _lock: lock });
            }
        }
        let source = std::io::Error::from(ErrorKind::AlreadyExists);
        Err(Error::io("create a directory in", parent, source))
    }

    /// Where it is now.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Moves `part`, a directory inside it or all of it, to `to`. `Ok(false)` if `to` exists; then
    /// nothing changed and another name can be tried.
    pub(crate) fn publish(&mut self, part: &Path, to: &Path) -> Result<bool> {
        match renameat_with(CWD, part, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Ok(false),
            // A file system that cannot refuse to replace; a rename replaces an empty directory at
            // worst.
            Err(Errno::INVAL | Errno::NOSYS) => {
                if to.symlink_metadata().is_ok() {
                    return Ok(false);
                }
                std::fs::rename(part, to).map_err(|source| Error::io("create", to, source))?;
            }
            Err(error) => return Err(Error::io("create", to, error.into())),
        }
        self.published = part == self.path;
        Ok(true)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            // The next maker removes it.
            tracing::debug!(path = %self.path.display(), %error, "left a directory behind");
        }
    }
}

/// Removes the directories in `parent` that start with `prefix` and whose maker is gone.
fn remove_abandoned(parent: &Path, prefix: &str) -> Result<()> {
    let list = |source| Error::io("list", parent, source);
    for entry in std::fs::read_dir(parent).map_err(list)? {
        let entry = entry.map_err(list)?;
        if !entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()) {
            continue;
        }
        let path = entry.path();
        let Ok(Some(_lock)) = try_lock(&path) else {
            continue;
        };
        if let Err(error) = std::fs::remove_dir_all(&path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove what was left behind");
        }
    }
    Ok(())
}

/// Locks the directory `path`. `None` if another holds it, or if it is no longer what is at `path`.
fn try_lock(path: &Path) -> Result<Option<File>> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match open(path, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(error) => return Err(Error::io("open", path, error.into())),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(Error::io("lock", path, error.into())),
    }
    let locked = file.metadata().map_err(|source| Error::io("open", path, source))?;
    let same = std::fs::symlink_metadata(path)
        .is_ok_and(|now| (now.dev(), now.ino()) == (locked.dev(), locked.ino()) && now.is_dir());
    Ok(same.then_some(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_published_directory_stays() {
        let parent = tempfile::tempdir().unwrap();
        let path = Incoming::new(parent.path(), ".in-").unwrap().path().to_owned();
        assert!(!path.exists());

        let mut incoming = Incoming::new(parent.path(), ".in-").unwrap();
        std::fs::write(incoming.path().join("file"), "x").unwrap();
        let taken = parent.path().join("taken");
        std::fs::create_dir(&taken).unwrap();
        let part = incoming.path().to_owned();
        assert!(!incoming.publish(&part, &taken).unwrap(), "replaced an empty directory");
        let to = parent.path().join("to");
        assert!(incoming.publish(&part, &to).unwrap());
        drop(incoming);
        assert!(to.join("file").exists());
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_part_is_published_and_the_rest_removed() {
        let parent = tempfile::tempdir().unwrap();
        let mut incoming = Incoming::new(parent.path(), ".in-").unwrap();
        let part = incoming.path().join("part");
        std::fs::create_dir(&part).unwrap();
        assert!(incoming.publish(&part, &parent.path().join("to")).unwrap());
        drop(incoming);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_a_killed_maker_left_is_removed_and_what_is_in_use_is_not() {
        let parent = tempfile::tempdir().unwrap();
        let alive = Incoming::new(parent.path(), ".in-").unwrap();
        let abandoned = parent.path().join(".in-12345-0");
        std::fs::create_dir_all(abandoned.join("objects")).unwrap();
        let other = parent.path().join("other");
        std::fs::create_dir(&other).unwrap();
        let next = Incoming::new(parent.path(), ".in-").unwrap();
        assert!(alive.path().exists() && next.path().exists() && other.exists());
        assert!(!abandoned.exists());
    }
}
