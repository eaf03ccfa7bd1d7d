//! Files of the base as plain files, for who reads them past the worktree.
//!
//! Only what no branch can change is handed out: whoever has the file sees the content of the base for ever.
//! That nobody changes the inode meanwhile is the caller's to see to.

use super::clean::{Clean, Node};
use super::{Contents, Worktree};
use crate::error::{Error, Result};
use crate::id::{ContentId, Ino};
use crate::overlay::{Body, Overlay};
use crate::store::PlainFile;
use crate::tree::{Entry, EntryKind};

impl Worktree {
    /// How many bytes a regular file has in the base, whatever the branch has made of it; `None` for anything else.
    pub fn base_file_bytes(&self, ino: Ino) -> Option<u64> {
        if ino.is_new() {
            return None;
        }
        match self.clean.locate(ino) {
            Ok(Node::Entry(_, _, entry)) if is_file(&entry) => Some(entry.size),
            _ => None,
        }
    }

    /// A regular file that has the content of the base, as a plain file of the store's cache. `None` where the branch has
    /// changed it, the store does not have it yet, or there is no room.
    ///
    /// # Errors
    /// As [`Worktree::read`], and what reading and writing the cache meet.
    pub fn plain_file(&self, ino: Ino) -> Result<Option<PlainFile>> {
        if self.base_file_bytes(ino).is_none() || !self.has_base_content(ino) {
            return Ok(None);
        }
        self.clean.plain_file(ino)
    }

    fn has_base_content(&self, ino: Ino) -> bool {
        match &self.changes {
            Some(changes) if changes.is_touched(ino) => is_of_base(&changes.read(), ino),
            _ => true,
        }
    }
}

/// Whether an inode of the base has the content that it has there.
pub(super) fn is_of_base(overlay: &Overlay, ino: Ino) -> bool {
    !ino.is_new() && overlay.node(ino).is_none_or(|node| matches!(node.body, Body::Base))
}

fn is_file(entry: &Entry<'_>) -> bool {
    matches!(entry.kind, EntryKind::File | EntryKind::Executable)
}

impl Clean {
    fn plain_file(&self, ino: Ino) -> Result<Option<PlainFile>> {
        match self.locate(ino)? {
            Node::Entry(_, _, entry) if is_file(&entry) => {
                self.contents.plain_file(&entry, || self.base.path(ino))
            }
            _ => Err(Error::WrongKind(ino)),
        }
    }
}

impl Contents {
    fn plain_file(
        &self,
        entry: &Entry<'_>,
        path: impl Fn() -> Result<Vec<u8>>,
    ) -> Result<Option<PlainFile>> {
        // Where the map is damaged, a read goes to the repository.
        let Ok(Some(id)) = self.content_of(entry) else { return Ok(None) };
        let get = |id: ContentId| self.store().plain_file(id, entry.size);
        match get(id) {
            Err(damage) if damage.is_corruption() => {
                self.rebuild(entry, id, &path()?, damage)?;
                get(id)
            }
            other => other,
        }
    }
}
