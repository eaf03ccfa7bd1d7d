//! Comparing directories entry by entry.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What is at a path.
#[derive(Clone, PartialEq, Eq)]
pub enum Entry {
    /// A directory.
    Directory,
    /// A link with its target.
    Link(Vec<u8>),
    /// A file: whether it is executable, and its bytes.
    File(bool, Vec<u8>),
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory => f.write_str("directory"),
            Self::Link(target) => write!(f, "link to {:?}", String::from_utf8_lossy(target)),
            Self::File(executable, bytes) => {
                write!(f, "file, {} bytes, executable: {executable}", bytes.len())
            }
        }
    }
}

/// Everything below `dir` but `.git`, by path.
///
/// # Panics
/// If something cannot be read.
pub fn read(dir: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut entries = BTreeMap::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(relative) = pending.pop() {
        let listed = fs::read_dir(dir.join(&relative))
            .unwrap_or_else(|error| panic!("list {relative:?}: {error}"));
        for entry in listed {
            let entry = entry.unwrap_or_else(|error| panic!("list {relative:?}: {error}"));
            let path = relative.join(entry.file_name());
            if path == Path::new(".git") {
                continue;
            }
            let full = dir.join(&path);
            let metadata = fs::symlink_metadata(&full)
                .unwrap_or_else(|error| panic!("stat {path:?}: {error}"));
            let found = if metadata.is_dir() {
                pending.push(path.clone());
                Entry::Directory
            } else if metadata.is_symlink() {
                let target = fs::read_link(&full).expect("a link can be read");
                Entry::Link(target.as_os_str().as_bytes().to_vec())
            } else {
                let bytes =
                    fs::read(&full).unwrap_or_else(|error| panic!("read {path:?}: {error}"));
                assert_eq!(bytes.len() as u64, metadata.len(), "the size of {path:?} is not so");
                Entry::File(metadata.permissions().mode() & 0o111 != 0, bytes)
            };
            entries.insert(path, found);
        }
    }
    entries
}

/// Asserts that two directories hold the same names, kinds, bytes, link targets and executable
/// bits; `.git` is left out.
///
/// # Panics
/// If they do not.
pub fn assert_same(left: &Path, right: &Path) {
    let (left, right) = (read(left), read(right));
    for (path, entry) in &left {
        assert_eq!(Some(entry), right.get(path), "{path:?}");
    }
    let more: Vec<_> = right.keys().filter(|path| !left.contains_key(*path)).collect();
    assert!(more.is_empty(), "only on the right: {more:?}");
}
