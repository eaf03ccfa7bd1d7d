//! The index of a worktree that is to be moved, in memory.

use std::path::Path;

use agentfs_engine::HashKind;

use super::plan::Refusal;
use crate::error::{Error, Result};
use crate::examine::{read, verified};
use crate::index_entries::{Entries, IndexEntry, walk};
use crate::limits::INDEX_BYTES_MAX;
use crate::object::to_gix_kind;

/// An index in memory. A file that is not there is an empty one.
pub(super) struct Index {
    bytes: Vec<u8>,
    /// Where its checksum begins.
    end: usize,
    hash: HashKind,
    is_summed: bool,
}

/// That the index at `path` cannot be read.
pub(super) fn damaged(path: &Path) -> impl Fn(String) -> Error + '_ {
    |why| Error::CorruptFile { path: path.to_owned(), why }
}

/// Writes the checksum at the end of an index.
///
/// # Errors
/// [`Error::CorruptFile`] if it cannot be hashed.
pub(super) fn sum(bytes: &mut [u8], hash: HashKind) -> Result<()> {
    let Some(end) = bytes.len().checked_sub(hash.len()) else { return Ok(()) };
    let mut hasher = gix::hash::hasher(to_gix_kind(hash));
    hasher.update(&bytes[..end]);
    let digest = hasher.try_finalize().map_err(|error| Error::CorruptFile {
        path: "index".into(),
        why: format!("the names in it cannot be hashed: {error}"),
    })?;
    bytes[end..].copy_from_slice(digest.as_slice());
    Ok(())
}

impl Index {
    /// One that was made here, and is given its checksum.
    ///
    /// # Errors
    /// [`Error::CorruptFile`] if it cannot be hashed.
    pub(super) fn made(mut bytes: Vec<u8>, hash: HashKind) -> Result<Self> {
        sum(&mut bytes, hash)?;
        let end = bytes.len().saturating_sub(hash.len());
        Ok(Self { bytes, end, hash, is_summed: true })
    }

    /// Reads the one at `path`; `unsummed` tells whether it may have no checksum.
    ///
    /// # Errors
    /// [`Error::CorruptFile`].
    pub(super) fn read(path: &Path, hash: HashKind, unsummed: &dyn Fn() -> bool) -> Result<Self> {
        let bytes = read(path, INDEX_BYTES_MAX).map_err(damaged(path))?.unwrap_or_default();
        let end = match bytes.is_empty() {
            true => 0,
            false => verified(&bytes, hash, unsummed).map_err(damaged(path))?.len(),
        };
        let is_summed = bytes[end..].iter().any(|byte| *byte != 0);
        Ok(Self { bytes, end, hash, is_summed })
    }

    /// What it is without its checksum.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.end]
    }

    /// All of it.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Whether it ends in a checksum, and not in zeros.
    pub(super) fn is_summed(&self) -> bool {
        self.is_summed
    }

    pub(super) fn hash(&self) -> HashKind {
        self.hash
    }

    /// The version of its form.
    pub(super) fn version(&self) -> Option<u32> {
        let version = self.bytes().get(4..8)?.try_into().ok()?;
        Some(u32::from_be_bytes(version))
    }

    /// Its entries in the order of their paths; a file that is not there has none.
    pub(super) fn entries(&self) -> impl Iterator<Item = Result<IndexEntry>> {
        let entries = (self.end > 0).then(|| Entries::new(self.bytes(), self.hash));
        let (entries, fault) = match entries {
            Some(Err(fault)) => (None, Some(Err(fault))),
            Some(Ok(entries)) => (Some(entries), None),
            None => (None, None),
        };
        let all = fault.into_iter().chain(entries.into_iter().flatten());
        all.map(|entry| entry.map_err(damaged(Path::new("index"))))
    }

    /// Why it cannot be moved, whatever is staged.
    pub(super) fn refusal(&self, discard: bool) -> Result<Option<Refusal>, String> {
        let form = |what, hint| Ok(Some(Refusal::Form(what, hint)));
        if self.end == 0 {
            return Ok(None);
        }
        let (mut is_split, mut is_sparse, mut unmerged) = (false, false, Vec::new());
        let visit = |entry: IndexEntry| {
            is_sparse |= entry.mode >> 12 == 0o4;
            if entry.stage > 0 && unmerged.last() != Some(&entry.path) {
                unmerged.push(entry.path);
            }
        };
        walk(self.bytes(), self.hash, visit, |one, _| is_split |= one == b"link")?;
        if is_split {
            let hint = "make it whole with `git update-index --no-split-index`";
            return form("its index is split", hint);
        }
        if is_sparse {
            let hint = "make it whole with `git sparse-checkout disable`";
            return form("its index is sparse", hint);
        }
        Ok((!discard && !unmerged.is_empty()).then_some(Refusal::Unmerged(unmerged)))
    }
}
