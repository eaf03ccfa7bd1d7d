//! Files of a git directory that nobody can see yet.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::error::{Error, Result};

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

/// Makes everything below `dir` durable. Files with other links are not written by us: their bytes are as durable as they were.
pub(crate) fn sync_tree(dir: &Path) -> Result<()> {
    let list = |source| Error::io("list", dir, source);
    for entry in std::fs::read_dir(dir).map_err(list)? {
        let entry = entry.map_err(list)?;
        let path = entry.path();
        let metadata = entry.metadata().map_err(|source| Error::io("look at", &path, source))?;
        if metadata.is_dir() {
            sync_tree(&path)?;
        } else if metadata.is_file() && metadata.nlink() == 1 {
            sync(&path)?;
        }
    }
    sync(dir)
}

fn sync(path: &Path) -> Result<()> {
    let file = File::open(path).map_err(|source| Error::io("open", path, source))?;
    file.sync_data().map_err(|source| Error::io("sync", path, source))
}
