//! The index of a worktree that is to be moved, in memory.

use std::path::Path;

use agentfs_engine::HashKind;

use super::plan::Refusal;
use crate::error::{Error, Result};
use crate::examine::{read, verified};
use crate::index_entries::{IndexEntry, walk};
use crate::limits::INDEX_BYTES_MAX;
use crate::object::to_gix_kind;

/// An index in memory. A file that is not there is an empty one.
pub(super) struct Index {
    bytes: Vec<u8>,
    /// Where its checksum begins.
    end: usize,
    hash: HashKind,
    is_summed: bool,
    entries: Vec<IndexEntry>,
    extensions: Vec<Extension>,
}

/// What follows the entries.
pub(super) struct Extension {
    pub(super) name: Vec<u8>,
    pub(super) body: Vec<u8>,
}

/// That the index at `path` cannot be read.
fn damaged(path: &Path) -> impl Fn(String) -> Error + '_ {
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
        Self::parse(bytes, end, hash, is_summed).map_err(damaged(path))
    }

    fn parse(bytes: Vec<u8>, end: usize, hash: HashKind, is_summed: bool) -> Result<Self, String> {
        let (mut entries, mut extensions) = (Vec::new(), Vec::new());
        if end > 0 {
            let extension = |name: &[u8], body: &[u8]| {
                extensions.push(Extension { name: name.into(), body: body.into() });
            };
            walk(&bytes[..end], hash, |entry| entries.push(entry), extension)?;
        }
        Ok(Self { bytes, end, hash, is_summed, entries, extensions })
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
    pub(super) fn entries(&self) -> &[IndexEntry] {
        &self.entries
    }

    /// What follows them.
    pub(super) fn extensions(&self) -> &[Extension] {
        &self.extensions
    }

    /// Why it cannot be moved, whatever is staged.
    pub(super) fn refusal(&self, discard: bool) -> Option<Refusal> {
        if self.extensions.iter().any(|one| one.name == b"link") {
            let hint = "make it whole with `git update-index --no-split-index`";
            return Some(Refusal::Form("its index is split", hint));
        }
        if self.entries.iter().any(|entry| entry.mode >> 12 == 0o4) {
            let hint = "make it whole with `git sparse-checkout disable`";
            return Some(Refusal::Form("its index is sparse", hint));
        }
        let unmerged = self.entries.iter().filter(|entry| entry.stage > 0);
        let mut unmerged: Vec<_> = unmerged.map(|entry| entry.path.clone()).collect();
        unmerged.dedup();
        (!discard && !unmerged.is_empty()).then_some(Refusal::Unmerged(unmerged))
    }
}
