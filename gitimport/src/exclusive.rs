//! What in a repository a command that works on one branch has to be able to write, and what of the
//! same directories is not its own.
//!
//! git replaces a reference by a rename within the directory that holds it, so that this directory
//! must be writable. The other references in it are files that can be kept read-only one by one;
//! those that are packed only are given files first, as git itself would when they change.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Parts of a repository.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Files and directories to write, all there.
    pub writable: Vec<PathBuf>,
    /// Files and directories in those that belong to others, all there.
    pub kept: Vec<PathBuf>,
}

/// The parts of the repository at `common_dir` for the worktree whose git directory is `git_dir`, on
/// `branch` or on none.
///
/// # Errors
/// [`Error::Io`].
pub fn parts(common_dir: &Path, git_dir: &Path, branch: Option<&str>) -> Result<Parts> {
    let objects = common_dir.join("objects");
    let mut parts = Parts { writable: vec![git_dir.to_owned(), objects.clone()], kept: Vec::new() };
    // Alternates would add somebody else's objects to the repository.
    let info = objects.join("info");
    if info.is_dir() {
        parts.kept.push(info);
    }
    let packs = entries(&objects.join("pack"))?.into_iter();
    parts.kept.extend(packs.filter(|pack| !name_of(pack).starts_with(b"tmp_")));
    let Some(branch) = branch else { return Ok(parts) };
    let reference = common_dir.join("refs/heads").join(branch);
    let dir = reference.parent().unwrap_or(common_dir);
    fs::create_dir_all(dir).map_err(|source| Error::io("create", dir, source))?;
    unpack(common_dir, dir, &reference)?;
    let others = entries(dir)?.into_iter();
    parts.kept.extend(others.filter(|other| *other != reference && !is_lock(other)));
    parts.writable.push(dir.to_owned());
    parts.writable.push(log_of(common_dir, branch)?);
    Ok(parts)
}

/// Gives every packed reference directly in `dir`, except `own`, a file.
fn unpack(common_dir: &Path, dir: &Path, own: &Path) -> Result<()> {
    let path = common_dir.join("packed-refs");
    let packed = match fs::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        read => read.map_err(|source| Error::io("read", &path, source))?,
    };
    let mut known = BTreeSet::new();
    for line in packed.split(|byte| *byte == b'\n') {
        let Some((oid, name)) = line.split_once_at(b' ') else { continue };
        let reference = common_dir.join(OsStr::from_bytes(name));
        let hexadecimal = !oid.is_empty() && oid.iter().all(u8::is_ascii_hexdigit);
        if hexadecimal && reference.parent() == Some(dir) && reference != own {
            known.insert((reference, oid));
        }
    }
    known.into_iter().try_for_each(|(reference, oid)| make_loose(&reference, oid))
}

/// Writes `oid` to the file of a reference that has none, under git's lock. One that somebody else has
/// locked is about to get its file.
fn make_loose(reference: &Path, oid: &[u8]) -> Result<()> {
    if reference.symlink_metadata().is_ok() {
        return Ok(());
    }
    let mut lock = reference.as_os_str().to_owned();
    lock.push(".lock");
    let lock = PathBuf::from(lock);
    let mut file = match OpenOptions::new().write(true).create_new(true).open(&lock) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(()),
        opened => opened.map_err(|source| Error::io("lock", reference, source))?,
    };
    let written = file.write_all(&[oid, b"\n"].concat()).and_then(|()| {
        // Nobody makes it while it is locked, but somebody may have before.
        if reference.symlink_metadata().is_ok() {
            return fs::remove_file(&lock);
        }
        fs::rename(&lock, reference)
    });
    written.map_err(|source| {
        fs::remove_file(&lock).ok();
        Error::io("write", reference, source)
    })
}

/// The log of a branch. It is made if there is none: its directory is not writable later.
fn log_of(common_dir: &Path, branch: &str) -> Result<PathBuf> {
    let log = common_dir.join("logs/refs/heads").join(branch);
    let dir = log.parent().unwrap_or(common_dir);
    let made = fs::create_dir_all(dir)
        .and_then(|()| OpenOptions::new().create(true).append(true).open(&log));
    made.map_err(|source| Error::io("create", &log, source))?;
    Ok(log)
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let listed = fs::read_dir(dir).and_then(|entries| {
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<std::io::Result<Vec<_>>>()
    });
    match listed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed.map_err(|source| Error::io("list", dir, source)),
    }
}

fn name_of(path: &Path) -> &[u8] {
    path.file_name().unwrap_or_default().as_bytes()
}

/// A lock goes with the process that holds it.
fn is_lock(path: &Path) -> bool {
    name_of(path).ends_with(b".lock")
}

trait SplitOnce {
    fn split_once_at(&self, byte: u8) -> Option<(&[u8], &[u8])>;
}

impl SplitOnce for [u8] {
    fn split_once_at(&self, byte: u8) -> Option<(&[u8], &[u8])> {
        let at = self.iter().position(|other| *other == byte)?;
        Some((&self[..at], &self[at + 1..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gittest::{Sandbox, git};

    #[test]
    fn the_branch_is_writable_and_its_neighbours_are_files_to_keep() {
        let sandbox = Sandbox::new();
        let source = sandbox.repository("source");
        for branch in ["agent/1", "agent/2", "agent/deep/3", "other"] {
            git(&source, &["branch", branch]);
        }
        git(&source, &["pack-refs", "--all"]);
        git(&source, &["gc", "-q"]);
        let common = source.join(".git");
        let git_dir = common.join("worktrees/w");
        let before = git(&source, &["for-each-ref"]);
        let parts = parts(&common, &git_dir, Some("agent/1")).unwrap();
        assert_eq!(git(&source, &["for-each-ref"]), before);
        let heads = common.join("refs/heads");
        let log = common.join("logs/refs/heads/agent/1");
        let expected = [git_dir, common.join("objects"), heads.join("agent"), log.clone()];
        assert_eq!(parts.writable, expected);
        assert!(log.is_file());
        assert!(parts.kept.contains(&heads.join("agent/2")), "{parts:?}");
        assert!(!parts.kept.contains(&heads.join("agent/1")), "{parts:?}");
        assert!(parts.kept.contains(&common.join("objects/info")), "{parts:?}");
        assert!(parts.kept.iter().any(|kept| kept.extension().is_some_and(|end| end == "pack")));
        // What lies in no writable directory needs no file.
        assert!(!heads.join("other").exists());
        assert!(parts.kept.iter().all(|kept| kept.exists()));
    }

    #[test]
    fn a_locked_reference_is_left_to_who_has_locked_it() {
        let sandbox = Sandbox::new();
        let source = sandbox.repository("source");
        git(&source, &["branch", "other"]);
        git(&source, &["pack-refs", "--all"]);
        let heads = source.join(".git/refs/heads");
        fs::write(heads.join("other.lock"), "").unwrap();
        let parts = parts(&source.join(".git"), &source.join(".git"), Some("main")).unwrap();
        assert!(!heads.join("other").exists() && heads.join("other.lock").exists());
        assert!(!parts.kept.iter().any(|kept| kept.ends_with("other.lock")), "{parts:?}");
    }
}
