//! Files of a git directory that nobody can see yet.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// How the name of a file ends that is to replace another one.
pub(crate) const ASIDE: &str = ".agentfs-new";

/// Writes a small file of a git directory, making the directories above it.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<()> {
    let written = std::fs::write(path, content).or_else(|error| match path.parent() {
        Some(parent) if error.kind() == ErrorKind::NotFound => {
            std::fs::create_dir_all(parent)?;
            std::fs::write(path, content)
        }
        _ => Err(error),
    });
    written.map_err(|source| Error::io("write", path, source))
}

/// Where that is made which is to replace `path`.
pub(crate) fn aside(path: &Path) -> PathBuf {
    let mut aside = path.to_owned().into_os_string();
    aside.push(ASIDE);
    aside.into()
}

/// Writes a new file where that is made which is to replace `path`, and returns where. What a killed process has left
/// there is not written to: it may be a link to a file of others.
pub(crate) fn write_aside(path: &Path, content: &[u8]) -> Result<PathBuf> {
    let aside = aside(path);
    match std::fs::remove_file(&aside) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::io("remove", &aside, error))
        }
        _ => write(&aside, content).map(|()| aside),
    }
}

/// Writes a small file of a git directory that others may be reading: they see what was there or all of this.
pub(crate) fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let aside = &write_aside(path, content)?;
    sync(aside)?;
    std::fs::rename(aside, path).map_err(|source| Error::io("write", path, source))
}

/// Makes `dir` and everything below it durable; returns how many files and directories that were.
/// Files with other links are not written by us: their bytes are as durable as they were. What
/// others remove meanwhile needs no syncing.
pub(crate) fn sync_tree(dir: &Path) -> Result<u64> {
    let list = |source| Error::io("list", dir, source);
    let mut synced = 0;
    for entry in std::fs::read_dir(dir).map_err(list)? {
        let entry = entry.map_err(list)?;
        let path = entry.path();
        let look = entry.metadata().map_err(|source| Error::io("look at", &path, source));
        synced += unless_gone(look.and_then(|metadata| match metadata {
            metadata if metadata.is_dir() => sync_tree(&path),
            metadata if metadata.is_file() && metadata.nlink() == 1 => sync(&path),
            _ => Ok(0),
        }))?;
    }
    Ok(synced + sync(dir)?)
}

/// Makes one file durable, or the names in a directory; returns 1.
pub(crate) fn sync(path: &Path) -> Result<u64> {
    let file = File::open(path).map_err(|source| Error::io("open", path, source))?;
    file.sync_data().map_err(|source| Error::io("sync", path, source))?;
    Ok(1)
}

/// The result of syncing something, 0 if it is gone.
pub(crate) fn unless_gone(synced: Result<u64>) -> Result<u64> {
    match synced {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(0),
        synced => synced,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_and_nobody_elses_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("file"), dir.path().join("other"));
        std::fs::write(&other, "theirs").unwrap();
        std::fs::hard_link(&other, aside(&path)).unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::read(&other).unwrap(), b"theirs");
        assert!(!aside(&path).exists());
    }

    #[test]
    fn what_is_ours_is_synced_and_what_is_gone_is_not_missed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        write(&root.join("a/b/file"), b"ours").unwrap();
        write(&dir.path().join("other"), b"theirs").unwrap();
        std::fs::hard_link(dir.path().join("other"), root.join("link")).unwrap();
        std::os::unix::fs::symlink("nowhere", root.join("dangling")).unwrap();
        // The file and the three directories above it.
        assert_eq!(sync_tree(&root).unwrap(), 4);
        let gone = sync_tree(&root.join("gone"));
        assert!(gone.is_err());
        assert_eq!(unless_gone(gone).unwrap(), 0);
    }
}
