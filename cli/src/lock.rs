//! The lock that makes a process the daemon of its store. The daemon takes it before it listens on
//! the control socket and lets go of it when it ends.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::error::{Failure, Result};

/// Takes the lock `path`, creating the file if there is none. `None` if another process has it.
///
/// # Errors
/// Whatever the file system refuses.
pub fn take(path: &Path) -> Result<Option<File>> {
    let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
    let mut file = open.map_err(|error| Failure::store_io("open", path, &error))?;
    if !try_lock(&file, path, FlockOperation::NonBlockingLockExclusive)? {
        return Ok(None);
    }
    // For people who look; nothing reads it.
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(|error| Failure::store_io("write", path, &error))?;
    Ok(Some(file))
}

/// Whether a process has the lock `path`. It creates nothing.
///
/// # Errors
/// Whatever the file system refuses.
pub fn is_held(path: &Path) -> Result<bool> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        opened => opened.map_err(|error| Failure::store_io("open", path, &error))?,
    };
    // Several may ask at once. A daemon that starts in this very moment takes the asking for another
    // daemon; whoever starts it then looks again.
    Ok(!try_lock(&file, path, FlockOperation::NonBlockingLockShared)?)
}

fn try_lock(file: &File, path: &Path, how: FlockOperation) -> Result<bool> {
    match rustix::fs::flock(file, how) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(Failure::store_io("lock", path, &error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_has_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.lock");
        let first = take(&path).unwrap().unwrap();
        assert!(take(&path).unwrap().is_none());
        drop(first);
        assert!(take(&path).unwrap().is_some());
    }

    #[test]
    fn asking_who_has_the_lock_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.lock");
        assert!(!is_held(&path).unwrap());
        assert!(!path.exists());
        let held = take(&path).unwrap().unwrap();
        assert!(is_held(&path).unwrap());
        drop(held);
        assert!(!is_held(&path).unwrap());
        assert!(take(&path).unwrap().is_some());
    }
}
