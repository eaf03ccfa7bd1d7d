//! Reads the entries of a git index of any version from bytes: what [`crate::index`] writes, and what
//! git makes of it later. Extensions are only counted off.
//!
//! gix has a reader, which maps the file into memory.

use agentfs_engine::{GitOid, HashKind};

use crate::index::{NAME_LENGTH_MAX, SIGNATURE, STAT_BYTES};

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IndexEntry {
    pub(crate) mtime: (u32, u32),
    pub(crate) ctime: (u32, u32),
    pub(crate) ino: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u32,
    pub(crate) oid: GitOid,
    /// Whether git compares its stat data: it is neither in conflict, nor only announced, nor excepted
    /// by the user.
    pub(crate) plain: bool,
    pub(crate) mode: u32,
    /// Which side of a conflict it is; 0 without one.
    pub(crate) stage: u8,
    /// Whether its file is not to be in the worktree.
    pub(crate) skipped: bool,
    /// Where its stat data begin, in bytes from the beginning of the index.
    pub(crate) at: usize,
    pub(crate) path: Vec<u8>,
}

const EXTENDED: u16 = 0x4000;
/// Assume-valid, and the stage.
const NOT_PLAIN: u16 = 0xb000;
/// Skip-worktree and intent-to-add.
const NOT_PLAIN_EXTENDED: u16 = 0x6000;
const SKIP_WORKTREE: u16 = 0x4000;

/// Calls `visit` for each entry of the index `bytes`, whose trailing hash is left out.
///
/// # Errors
/// What is wrong with it, as a sentence about "it".
pub(crate) fn each(
    bytes: &[u8],
    hash: HashKind,
    visit: impl FnMut(IndexEntry),
) -> Result<(), String> {
    walk(bytes, hash, visit, |_, _| {})
}

/// As [`each`]; also calls `extension` with the signature and the content of each extension.
///
/// # Errors
/// As [`each`].
pub(crate) fn walk(
    bytes: &[u8],
    hash: HashKind,
    mut visit: impl FnMut(IndexEntry),
    mut extension: impl FnMut(&[u8], &[u8]),
) -> Result<(), String> {
    let mut entries = Entries::new(bytes, hash)?;
    for entry in &mut entries {
        visit(entry?);
    }
    let mut at = entries.at;
    while !at.0.is_empty() {
        let signature = at.take(4).filter(|text| text.iter().all(u8::is_ascii_alphabetic));
        let len = signature.and_then(|_| at.u32());
        let content = len.and_then(|len| at.take(len as usize));
        let known = signature.zip(content).ok_or("what follows its entries is no extension")?;
        extension(known.0, known.1);
    }
    Ok(())
}

/// The entries of an index, one after the other, and what is wrong with it as a sentence about "it".
pub(crate) struct Entries<'a> {
    at: Bytes<'a>,
    len: usize,
    version: u32,
    hash: HashKind,
    number: u32,
    count: u32,
    path: Vec<u8>,
}

impl<'a> Entries<'a> {
    /// Those of the index `bytes`, whose trailing hash is left out.
    ///
    /// # Errors
    /// As [`each`].
    pub(crate) fn new(bytes: &'a [u8], hash: HashKind) -> Result<Self, String> {
        let mut at = Bytes(bytes);
        if at.take(4) != Some(SIGNATURE.as_slice()) {
            return Err("it does not begin as an index does".into());
        }
        let version = at.u32().filter(|version| (2..=4).contains(version));
        let version = version.ok_or("it has an unknown version")?;
        let count = at.u32().ok_or("it is too short")?;
        Ok(Self { at, len: bytes.len(), version, hash, number: 0, count, path: Vec::new() })
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<IndexEntry, String>;

    fn next(&mut self) -> Option<Self::Item> {
        let (number, count) = (self.number, self.count);
        if number == count {
            return None;
        }
        let start = self.len - self.at.0.len();
        let read = entry(&mut self.at, self.version, self.hash, &mut self.path);
        // After one that is none nothing can be read.
        self.number = if read.is_some() { number + 1 } else { count };
        let read = read.map(|entry| IndexEntry { at: start, ..entry });
        Some(read.ok_or_else(|| format!("entry {number} of {count} is none")))
    }
}

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_be_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    /// What stands before the next NUL, which is taken too; that is probably `len` bytes.
    fn text(&mut self, len: usize) -> Option<&'a [u8]> {
        let is_len = self.0.get(len) == Some(&0) && !self.0[..len].contains(&0);
        let len = if is_len { len } else { self.0.iter().position(|byte| *byte == 0)? };
        let text = self.take(len)?;
        self.take(1).map(|_| text)
    }

    /// A number as pack files have it for offsets.
    fn offset(&mut self) -> Option<usize> {
        let mut value = 0_usize;
        for place in 0.. {
            let byte = *self.take(1)?.first()?;
            if place > 0 {
                value = value.checked_add(1)?;
            }
            value = value.checked_mul(128)?.checked_add(usize::from(byte & 0x7f))?;
            if byte & 0x80 == 0 {
                break;
            }
        }
        Some(value)
    }
}

/// The next entry. `path` is that of the one before, from which the next one is made in version 4.
fn entry(
    at: &mut Bytes<'_>,
    version: u32,
    hash: HashKind,
    path: &mut Vec<u8>,
) -> Option<IndexEntry> {
    let before = at.0.len();
    let mut stat = Bytes(at.take(STAT_BYTES)?);
    let [ctime, ctime_nanoseconds, mtime, mtime_nanoseconds, _, ino, mode, uid, gid, size] =
        std::array::from_fn(|_| stat.u32());
    // A file, a link, a commit of another repository, a directory of a sparse index.
    if !matches!(mode? >> 12, 0o10 | 0o12 | 0o16 | 0o4) {
        return None;
    }
    let oid = GitOid::from_slice(hash, at.take(hash.len())?)?;
    let flags = at.u16()?;
    let extended = match flags & EXTENDED {
        0 => 0,
        _ if version >= 3 => at.u16()?,
        _ => return None,
    };
    if version == 4 {
        let strip = at.offset()?;
        path.truncate(path.len().checked_sub(strip)?);
        path.extend_from_slice(at.text(0)?);
    } else {
        path.clear();
        path.extend_from_slice(at.text(usize::from(flags) & NAME_LENGTH_MAX)?);
        // NULs up to a multiple of 8.
        let used = before - at.0.len();
        at.take(used.next_multiple_of(8) - used)?;
    }
    Some(IndexEntry {
        mtime: (mtime?, mtime_nanoseconds?),
        ctime: (ctime?, ctime_nanoseconds?),
        ino: ino?,
        uid: uid?,
        gid: gid?,
        size: size?,
        oid,
        plain: flags & NOT_PLAIN == 0 && extended & NOT_PLAIN_EXTENDED == 0,
        mode: mode?,
        stage: (flags >> 12 & 3) as u8,
        skipped: extended & SKIP_WORKTREE != 0,
        at: 0,
        path: path.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gittest::{Sandbox, commit, git};

    fn names(bytes: &[u8]) -> Result<Vec<(String, bool)>, String> {
        let mut names = Vec::new();
        each(&bytes[..bytes.len().saturating_sub(20)], HashKind::Sha1, |entry| {
            names.push((String::from_utf8_lossy(&entry.path).into_owned(), entry.plain));
        })?;
        Ok(names)
    }

    #[test]
    fn entries_of_every_version_of_git_are_read() {
        let sandbox = Sandbox::new();
        let repository = sandbox.repository("repository");
        let deep = format!("{}/x", "long".repeat(40));
        for name in ["a/one", "a/two", "a.b", deep.as_str()] {
            commit(&repository, name, name.as_bytes());
        }
        let index = repository.join(".git/index");
        for version in ["2", "3", "4"] {
            git(&repository, &["update-index", "--index-version", version]);
            git(&repository, &["update-index", "--no-skip-worktree", "a/one"]);
            let expected: Vec<_> = git(&repository, &["ls-files"])
                .lines()
                .map(|name| (name.to_owned(), true))
                .collect();
            assert_eq!(names(&std::fs::read(&index).unwrap()), Ok(expected.clone()), "{version}");
            git(&repository, &["update-index", "--skip-worktree", "a/one"]);
            let found = names(&std::fs::read(&index).unwrap()).unwrap();
            let special: Vec<_> = found.iter().filter(|(_, plain)| !plain).collect();
            assert_eq!(special, [&("a/one".to_owned(), false)], "{version}");
            assert_eq!(found.len(), expected.len());
        }
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let sandbox = Sandbox::new();
        let repository = sandbox.repository("repository");
        commit(&repository, "a/two", b"2");
        git(&repository, &["update-index", "--index-version", "4"]);
        let good = std::fs::read(repository.join(".git/index")).unwrap();
        let stat = |at: usize| (12..12 + STAT_BYTES + 20).contains(&at);
        for at in 0..good.len() - 20 {
            let mut bad = good.clone();
            bad[at] ^= 0xff;
            let _ = names(&bad);
            let cut = names(&good[..at]);
            assert!(cut.is_err() || !stat(at), "cut at {at}");
        }
        assert!(names(b"").is_err());
    }
}
