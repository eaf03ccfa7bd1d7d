//! A repository on its way into the store.
//!
//! A command fetches into a directory of its own below `repos`, which it keeps locked as long as it
//! lives. The daemon moves the complete repository out of it. A directory that nobody has locked was
//! left by a command that was killed: the daemon removes it.

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use tracing::{info, warn};

use crate::error::{Failure, Kind, Result};
use crate::layout::{INCOMING, Layout, remove_all};

/// Names that are tried. One fails only if its directory exists, or if it was taken for abandoned in
/// the moment between its creation and its lock.
const ATTEMPTS_MAX: u32 = 100;
/// Name of the repository inside.
const REPOSITORY: &str = "repository.git";

/// A directory to fetch into. Dropping it removes what is left in it.
#[derive(Debug)]
pub struct Incoming {
    path: PathBuf,
    _lock: File,
}

impl Incoming {
    /// Creates a directory and locks it.
    ///
    /// # Errors
    /// Whatever the file system refuses.
    pub fn create(layout: &Layout) -> Result<Self> {
        layout.create()?;
        for attempt in 0..ATTEMPTS_MAX {
            let name = format!("{INCOMING}{}-{attempt}", std::process::id());
            let path = layout.repositories().join(name);
            match fs::create_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                made => made.map_err(|error| Failure::store_io("create", &path, &error))?,
            }
            let lock = lock(&path).map_err(|error| Failure::store_io("lock", &path, &error))?;
            if let Some(lock) = lock {
                return Ok(Self { path, _lock: lock });
            }
        }
        let dir = layout.repositories();
        Err(Failure::new(Kind::Failed, format!("no name is free in {}", dir.display())))
    }

    /// The name of the directory, by which the daemon finds it.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Where the repository is to be created.
    pub fn repository(&self) -> PathBuf {
        self.path.join(REPOSITORY)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Err(error) = remove_all(&self.path) {
            warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// The repository in the directory that a client calls `name`.
///
/// # Errors
/// [`Kind::Refused`] for a name that is not of such a directory, [`Kind::NotFound`] if there is no
/// repository in it.
pub fn find(layout: &Layout, name: &str) -> Result<PathBuf> {
    if !name.starts_with(INCOMING) || name.contains('/') {
        return Err(Failure::new(Kind::Refused, format!("{name:?} is no incoming repository")));
    }
    let path = layout.repositories().join(name).join(REPOSITORY);
    if !path.is_dir() {
        return Err(Failure::new(Kind::NotFound, format!("there is no {}", path.display())));
    }
    Ok(path)
}

/// Removes the directories whose commands are gone.
pub fn sweep(layout: &Layout) {
    let Ok(entries) = fs::read_dir(layout.repositories()) else {
        return;
    };
    for entry in entries.flatten() {
        if !entry.file_name().as_bytes().starts_with(INCOMING.as_bytes()) {
            continue;
        }
        let path = entry.path();
        if let Ok(Some(_lock)) = lock(&path) {
            match remove_all(&path) {
                Ok(()) => info!("removed {}, which a killed command left", path.display()),
                Err(error) => warn!("cannot remove {}: {error}", path.display()),
            }
        }
    }
}

/// Locks a directory; `None` if another process has, or if it is no longer at `path`.
fn lock(path: &Path) -> io::Result<Option<File>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        locked => locked?,
    }
    let locked = file.metadata()?;
    let same = fs::symlink_metadata(path)
        .is_ok_and(|now| (now.dev(), now.ino()) == (locked.dev(), locked.ino()));
    Ok(same.then_some(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_holds_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().to_owned());
        let held = Incoming::create(&layout).unwrap();
        fs::create_dir(held.repository()).unwrap();
        let abandoned = layout.repositories().join(format!("{INCOMING}1-0"));
        fs::create_dir_all(abandoned.join(REPOSITORY)).unwrap();
        let repository = layout.repositories().join("name");
        fs::create_dir(&repository).unwrap();
        sweep(&layout);
        assert!(held.repository().exists() && repository.exists());
        assert!(!abandoned.exists());
        assert_eq!(find(&layout, &held.name()).unwrap(), held.repository());
        let path = held.repository();
        drop(held);
        assert!(!path.exists());
    }

    #[test]
    fn a_name_leads_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().to_owned());
        for name in ["", "name", "../x", ".incoming-/../../x", "/etc"] {
            assert_eq!(find(&layout, name).unwrap_err().kind, Kind::Refused, "{name:?}");
        }
        assert_eq!(find(&layout, ".incoming-9-9").unwrap_err().kind, Kind::NotFound);
    }
}
