//! Whether a git state that was saved is what it was: digests of its files, written when it is saved.
//!
//! The file `agentfs-digests` has a line for each other file, the blake3 of its bytes and its path below
//! the directory, sorted, and a last line with the blake3 of the lines before it. An index is not among
//! them: it can be long, and ends in a checksum of its own (gitformat-index(5)).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use agentfs_engine::HashKind;

use crate::error::{Error, Result};
use crate::examine::{Finding, check_index_file, read};
use crate::files;
use crate::limits::{INDEX_BYTES_MAX, STATE_DEPTH_MAX};

/// The name of the file.
pub const DIGESTS: &str = "agentfs-digests";

/// Writes the digests of what is in `dir`.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn write_digests(dir: &Path) -> Result<()> {
    let mut digests = BTreeMap::new();
    digest_all(dir, Path::new(""), 0, &mut digests)?;
    files::write(&dir.join(DIGESTS), &encode(&digests))
}

/// States that the file `name` of `dir`, which was saved as `old`, is `new` now, if it is. Anything else stays as it
/// was saved.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn restate(dir: &Path, name: &Path, old: &[u8], new: &[u8]) -> Result<()> {
    let path = dir.join(DIGESTS);
    let is = |name: &Path| read(&dir.join(name), INDEX_BYTES_MAX).ok().flatten();
    let Some(mut digests) = is(Path::new(DIGESTS)).and_then(|bytes| decode(&bytes)) else {
        return Ok(());
    };
    if digests.get(name) != Some(&blake3::hash(old)) || is(name).as_deref() != Some(new) {
        return Ok(());
    }
    digests.insert(name.into(), blake3::hash(new));
    files::replace(&path, &encode(&digests))
}

/// What is wrong with the state that was saved in `dir`, of the repository at `common_dir` with this hash.
pub fn examine(dir: &Path, common_dir: &Path, hash: HashKind) -> Vec<Finding> {
    let mut findings = examine_files(dir);
    findings.extend(check_index_file(&dir.join("index"), common_dir, hash));
    findings
}

/// An error if a file other than the index is not as it was saved in `dir`.
///
/// # Errors
/// [`Error::CorruptFile`].
pub fn verify(dir: &Path) -> Result<()> {
    match examine_files(dir).into_iter().next() {
        Some(Finding::BadFile { path, why }) => Err(Error::CorruptFile { path, why }),
        _ => Ok(()),
    }
}

fn examine_files(dir: &Path) -> Vec<Finding> {
    let bad = |path: PathBuf, why: &str| Finding::BadFile { path, why: why.into() };
    let mut findings = Vec::new();
    let path = dir.join(DIGESTS);
    let stated = match read(&path, INDEX_BYTES_MAX) {
        Ok(Some(bytes)) => decode(&bytes).ok_or("its own digest is wrong".into()),
        Ok(None) => Err("it is missing".into()),
        Err(why) => Err(why),
    };
    let mut found = BTreeMap::new();
    let read_all = digest_all(dir, Path::new(""), 0, &mut found);
    match (stated, read_all) {
        (Err(why), _) => findings.push(Finding::BadFile { path, why }),
        (_, Err(error)) => findings.push(bad(dir.to_owned(), &error.to_string())),
        (Ok(stated), Ok(())) => {
            for (name, digest) in &stated {
                match found.remove(name) {
                    None => findings.push(bad(dir.join(name), "it is missing")),
                    Some(other) if other != *digest => {
                        findings.push(bad(dir.join(name), "it is not what was saved"));
                    }
                    Some(_) => {}
                }
            }
            let more = found.into_keys().map(|name| bad(dir.join(name), "it was not saved"));
            findings.extend(more);
        }
    }
    findings
}

/// What makes the saved state in `dir` whole where `finding` says it is not: the one of `candidates` that
/// was saved as that file.
pub(crate) fn original(dir: &Path, path: &Path, candidates: &[Vec<u8>]) -> Option<Vec<u8>> {
    let stated = decode(&read(&dir.join(DIGESTS), INDEX_BYTES_MAX).ok()??)?;
    let digest = stated.get(path.strip_prefix(dir).ok()?)?;
    candidates.iter().find(|bytes| blake3::hash(bytes) == *digest).cloned()
}

fn encode(digests: &BTreeMap<PathBuf, blake3::Hash>) -> Vec<u8> {
    let mut lines = Vec::new();
    for (name, digest) in digests {
        lines.extend_from_slice(digest.to_hex().as_bytes());
        lines.push(b' ');
        lines.extend_from_slice(name.as_os_str().as_bytes());
        lines.push(b'\n');
    }
    let own = blake3::hash(&lines);
    lines.extend_from_slice(own.to_hex().as_bytes());
    lines.push(b'\n');
    lines
}

/// The digests that are stated, if the last line vouches for the others.
fn decode(bytes: &[u8]) -> Option<BTreeMap<PathBuf, blake3::Hash>> {
    const HEX: usize = 2 * blake3::OUT_LEN;
    let (lines, own) = bytes.split_at(bytes.len().checked_sub(HEX + 1)?);
    let own = own.strip_suffix(b"\n")?;
    if blake3::hash(lines) != blake3::Hash::from_hex(own).ok()? {
        return None;
    }
    let mut digests = BTreeMap::new();
    for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let (digest, name) = line.split_at_checked(HEX)?;
        let name = OsStr::from_bytes(name.strip_prefix(b" ")?);
        digests.insert(name.into(), blake3::Hash::from_hex(digest).ok()?);
    }
    Some(digests)
}

/// Adds the digests of the files in the directory `below` of `dir`.
pub(crate) fn digest_all(
    dir: &Path,
    below: &Path,
    depth: u32,
    digests: &mut BTreeMap<PathBuf, blake3::Hash>,
) -> Result<()> {
    let here = dir.join(below);
    let list = |source| Error::io("list", &here, source);
    for entry in fs::read_dir(&here).map_err(list)? {
        let entry = entry.map_err(list)?;
        let name = below.join(entry.file_name());
        let kind = entry.file_type().map_err(list)?;
        if kind.is_dir() && depth < STATE_DEPTH_MAX {
            digest_all(dir, &name, depth + 1, digests)?;
        } else if kind.is_file() && !is_left_out(&name) {
            let path = entry.path();
            let mut hasher = blake3::Hasher::new();
            let hashed = fs::File::open(&path).and_then(|file| {
                hasher.update_reader(file)?;
                Ok(())
            });
            hashed.map_err(|source| Error::io("read", &path, source))?;
            digests.insert(name, hasher.finalize());
        }
    }
    Ok(())
}

fn is_left_out(name: &Path) -> bool {
    let name = name.as_os_str().as_bytes();
    name == b"index"
        || name.starts_with(b"sharedindex.")
        || name.ends_with(files::ASIDE.as_bytes())
        || name == DIGESTS.as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_changed_is_named() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path();
        let whole: [(&str, &[u8]); 3] = [
            ("HEAD", b"ref: refs/heads/main\n"),
            ("logs/HEAD", b"a line\n"),
            ("rebase-merge/done", b"pick\n"),
        ];
        for (name, bytes) in whole {
            files::write(&dir.join(name), bytes).unwrap();
        }
        let found = || examine(dir, dir, HashKind::Sha1);
        let bad = |name: &str, why: &str| {
            vec![Finding::BadFile { path: dir.join(name), why: why.into() }]
        };
        assert_eq!(found(), bad(DIGESTS, "it is missing"));
        write_digests(dir).unwrap();
        assert_eq!(found(), []);
        verify(dir).unwrap();
        for (name, bytes) in whole {
            for at in 0..bytes.len() {
                let mut damaged = bytes.to_vec();
                damaged[at] ^= 4;
                files::write(&dir.join(name), &damaged).unwrap();
                assert_eq!(found(), bad(name, "it is not what was saved"));
                assert!(verify(dir).is_err());
                let candidates = [damaged, bytes.to_vec()];
                let path = dir.join(name);
                assert_eq!(original(dir, &path, &candidates).as_deref(), Some(bytes));
                assert_eq!(original(dir, &path, &candidates[..1]), None);
            }
            fs::remove_file(dir.join(name)).unwrap();
            assert_eq!(found(), bad(name, "it is missing"));
            files::write(&dir.join(name), bytes).unwrap();
        }
        files::write(&dir.join("MERGE_HEAD"), b"x").unwrap();
        assert_eq!(found(), bad("MERGE_HEAD", "it was not saved"));
        fs::remove_file(dir.join("MERGE_HEAD")).unwrap();
        // Another content is right only where it replaces the one that was saved.
        let (head, other) = (Path::new("HEAD"), b"ref: refs/heads/other\n");
        restate(dir, head, whole[0].1, other).unwrap();
        assert_eq!(found(), []);
        files::replace(&dir.join(head), other).unwrap();
        restate(dir, head, b"something else", other).unwrap();
        assert_eq!(found(), bad("HEAD", "it is not what was saved"));
        restate(dir, head, whole[0].1, other).unwrap();
        assert_eq!(found(), []);
        let digests = fs::read(dir.join(DIGESTS)).unwrap();
        for at in 0..digests.len() {
            let mut damaged = digests.clone();
            damaged[at] ^= 1;
            files::write(&dir.join(DIGESTS), &damaged).unwrap();
            assert_eq!(found(), bad(DIGESTS, "its own digest is wrong"), "{at}");
        }
        files::write(&dir.join(DIGESTS), &digests).unwrap();
        files::write(&dir.join("index"), b"DIRC, and then nothing like it").unwrap();
        assert!(matches!(&found()[..], [Finding::BadFile { path, .. }] if path.ends_with("index")));
    }
}
