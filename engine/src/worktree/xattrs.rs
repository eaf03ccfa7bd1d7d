//! Extended attributes. Nothing in a base has any.

use super::{Worktree, XattrMode};
use crate::error::{Denial, Error, Result};
use crate::id::Ino;
use crate::limits::{NAME_BYTES_MAX, XATTR_BYTES_MAX, XATTRS_BYTES_MAX};
use crate::overlay::{Node, Put};

impl Worktree {
    /// The value of an extended attribute; `None` if there is no such attribute.
    ///
    /// # Errors
    /// [`Error::NoInode`].
    pub fn xattr(&self, ino: Ino, name: &[u8]) -> Result<Option<Vec<u8>>> {
        self.with_xattrs(ino, |node| node.xattr(name).map(<[u8]>::to_vec))
    }

    /// The names of the extended attributes of an inode, sorted.
    ///
    /// # Errors
    /// [`Error::NoInode`].
    pub fn xattr_names(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        self.with_xattrs(ino, |node| {
            let xattrs = node.xattrs.as_ref()?;
            Some(xattrs.keys().map(|name| name.to_vec()).collect())
        })
        .map(Option::unwrap_or_default)
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// [`Error::Denied`], [`Error::NoInode`], and what writing the outbox meets.
    pub fn set_xattr(&self, ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        let denied = |denial| Err(Error::Denied(ino, denial));
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(&0) {
            return denied(Denial::Invalid);
        }
        if value.len() > XATTR_BYTES_MAX {
            return denied(Denial::AttributeTooLarge);
        }
        let mut change = self.change()?;
        let (old, total) = self
            .with_xattrs(ino, |node| {
                let all = node.xattrs.iter().flat_map(|xattrs| xattrs.iter());
                let total: usize = all.map(|(name, value)| name.len() + value.len()).sum();
                Some((node.xattr(name).map(<[u8]>::len), total))
            })?
            .unwrap_or_default();
        match (old, mode) {
            (Some(_), XattrMode::Create) => return denied(Denial::Exists),
            (None, XattrMode::Replace) => return denied(Denial::NoAttribute),
            _ => {}
        }
        let before = old.map_or(0, |old| name.len() + old);
        if total - before + name.len() + value.len() > XATTRS_BYTES_MAX {
            return denied(Denial::NoSpaceForAttribute);
        }
        let now = change.now;
        change.inode(ino)?.changed = now;
        change.put(Put::Xattr(ino, name, Some(value)));
        change.commit(&[])
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// As [`Worktree::set_xattr`].
    pub fn remove_xattr(&self, ino: Ino, name: &[u8]) -> Result<()> {
        let mut change = self.change()?;
        if self.xattr(ino, name)?.is_none() {
            return Err(Error::Denied(ino, Denial::NoAttribute));
        }
        let now = change.now;
        change.inode(ino)?.changed = now;
        change.put(Put::Xattr(ino, name, None));
        change.commit(&[])
    }

    fn with_xattrs<T>(&self, ino: Ino, get: impl FnOnce(&Node) -> Option<T>) -> Result<Option<T>> {
        let Some(changes) = self.changes.as_ref().filter(|changes| changes.is_touched(ino)) else {
            return Ok(None);
        };
        match changes.read().node(ino) {
            Some(node) => Ok(get(node)),
            None if ino.is_new() => Err(Error::NoInode(ino)),
            None => Ok(None),
        }
    }
}
