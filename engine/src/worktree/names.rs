//! Changes of names: what is created, linked, renamed and removed.

use super::writing::{Entry, check_name};
use super::{Attributes, Caller, NewNode, NodeKind, RenameMode, Worktree};
use crate::error::{Denial, Error, Result};
use crate::id::Ino;
use crate::limits::{LINKS_MAX, SYMLINK_BYTES_MAX, TREE_DEPTH_MAX};
use crate::overlay::{Inode, Put};

impl Worktree {
    /// Makes an inode named `name` in `parent`, with these permissions, of which the umask was taken
    /// already. A directory with the set-group-id bit gives what is made in it its group.
    ///
    /// # Errors
    /// [`Error::Denied`], [`Error::NotDirectory`], [`Error::NoInode`], and what reading the base and
    /// writing the outbox meet.
    pub fn create(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        permissions: u16,
        new: NewNode<'_>,
    ) -> Result<Attributes> {
        check_name(parent, name)?;
        let mut change = self.change()?;
        let now = change.now;
        let dir = change.entries_changed(parent)?;
        let inherits = dir.permissions & 0o2000 != 0;
        let dir_gid = dir.gid;
        if dir.nlink == 0 {
            return Err(Error::Denied(parent, Denial::NoEntry));
        }
        let (kind, size, rdev) = match new {
            NewNode::File => (NodeKind::File, 0, 0),
            NewNode::Directory => (NodeKind::Directory, 0, 0),
            NewNode::Symlink(target) => {
                if target.len() as u64 > SYMLINK_BYTES_MAX {
                    return Err(Error::Denied(parent, Denial::NameTooLong));
                }
                (NodeKind::Symlink, target.len() as u64, 0)
            }
            NewNode::Special(kind, rdev) => (kind, 0, rdev),
        };
        let is_directory = kind == NodeKind::Directory;
        if is_directory {
            add_subdirectory(parent, dir)?;
        }
        if change.entry(parent, name)?.is_some() {
            return Err(Error::Denied(parent, Denial::Exists));
        }
        let set_gid = if inherits && is_directory { 0o2000 } else { 0 };
        let ino = change.add_inode(Inode {
            kind,
            permissions: permissions & 0o7777 | set_gid,
            nlink: if is_directory { 2 } else { 1 },
            uid: caller.uid,
            gid: if inherits { dir_gid } else { caller.gid },
            rdev,
            size,
            accessed: now,
            modified: now,
            changed: now,
            parent: if is_directory { parent } else { Ino(0) },
        });
        if let NewNode::Symlink(target) = new {
            change.put(Put::Target(ino, target));
        }
        change.add_entry(parent, name, ino);
        change.commit(&[])?;
        self.attributes(ino)
    }

    /// Makes a regular file without a name for the directory `parent`, with these permissions, of which
    /// the umask was taken already. [`Worktree::link`] may give it its first name; until then it lives
    /// as long as one that has lost its last: until [`Worktree::release`], or the next start.
    ///
    /// # Errors
    /// As [`Worktree::create`].
    pub fn create_unnamed(
        &self,
        caller: Caller,
        parent: Ino,
        permissions: u16,
    ) -> Result<Attributes> {
        let mut change = self.change()?;
        let now = change.now;
        let dir = change.look_at_directory(parent)?;
        if dir.nlink == 0 {
            return Err(Error::Denied(parent, Denial::NoEntry));
        }
        let inherits = dir.permissions & 0o2000 != 0;
        let ino = change.add_inode(Inode {
            kind: NodeKind::File,
            permissions: permissions & 0o7777,
            nlink: 0,
            uid: caller.uid,
            gid: if inherits { dir.gid } else { caller.gid },
            rdev: 0,
            size: 0,
            accessed: now,
            modified: now,
            changed: now,
            parent,
        });
        change.commit(&[])?;
        self.attributes(ino)
    }

    /// Gives an inode that is no directory another name. One without names can have none again,
    /// unless it never had one.
    ///
    /// # Errors
    /// As [`Worktree::create`].
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attributes> {
        check_name(parent, name)?;
        let mut change = self.change()?;
        let now = change.now;
        let inode = change.inode(ino)?;
        if inode.kind == NodeKind::Directory {
            return Err(Error::Denied(ino, Denial::NotPermitted));
        }
        if inode.nlink == 0 && inode.parent == Ino(0) {
            return Err(Error::Denied(ino, Denial::NoEntry));
        }
        if inode.nlink >= LINKS_MAX {
            return Err(Error::Denied(ino, Denial::TooManyLinks));
        }
        inode.nlink += 1;
        inode.parent = Ino(0);
        inode.changed = now;
        if change.entries_changed(parent)?.nlink == 0 {
            return Err(Error::Denied(parent, Denial::NoEntry));
        }
        if change.entry(parent, name)?.is_some() {
            return Err(Error::Denied(parent, Denial::Exists));
        }
        change.add_entry(parent, name, ino);
        change.commit(&[])?;
        self.attributes(ino)
    }

    /// Removes the name of an inode that is no directory. One without names stays until
    /// [`Worktree::release`].
    ///
    /// # Errors
    /// As [`Worktree::create`]; [`Error::IsDirectory`].
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let mut change = self.change()?;
        change.entries_changed(parent)?;
        let entry = change.entry(parent, name)?;
        let Entry { ino, kind } = entry.ok_or(Error::Denied(parent, Denial::NoEntry))?;
        if kind == NodeKind::Directory {
            return Err(Error::IsDirectory(ino));
        }
        change.drop_link(ino)?;
        change.remove_entry(parent, name)?;
        change.commit(&[])
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// As [`Worktree::create`].
    pub fn remove_directory(&self, parent: Ino, name: &[u8]) -> Result<()> {
        let mut change = self.change()?;
        let now = change.now;
        let above = change.entries_changed(parent)?;
        above.nlink = above.nlink.saturating_sub(1);
        let entry = change.entry(parent, name)?;
        let Entry { ino, .. } = entry.ok_or(Error::Denied(parent, Denial::NoEntry))?;
        let inode = change.directory(ino)?;
        inode.nlink = 0;
        inode.changed = now;
        if !change.is_empty(ino)? {
            return Err(Error::Denied(ino, Denial::NotEmpty));
        }
        change.remove_entry(parent, name)?;
        change.commit(&[])
    }

    /// Gives the entry `name` of `parent` the name `new_name` in `new_parent`.
    ///
    /// # Errors
    /// As [`Worktree::create`]; [`Error::IsDirectory`] and [`Error::NotDirectory`] where only one of
    /// the two is a directory.
    pub fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        mode: RenameMode,
    ) -> Result<()> {
        check_name(new_parent, new_name)?;
        let mut change = self.change()?;
        let now = change.now;
        change.entries_changed(parent)?;
        if change.entries_changed(new_parent)?.nlink == 0 {
            return Err(Error::Denied(new_parent, Denial::NoEntry));
        }
        let moved = change.entry(parent, name)?;
        let moved = moved.ok_or(Error::Denied(parent, Denial::NoEntry))?;
        let replaced = change.entry(new_parent, new_name)?;
        match (replaced, mode) {
            (Some(_), RenameMode::NoReplace) => {
                return Err(Error::Denied(new_parent, Denial::Exists));
            }
            (None, RenameMode::Exchange) => {
                return Err(Error::Denied(new_parent, Denial::NoEntry));
            }
            // Two names of one inode: nothing changes.
            (Some(replaced), _) if replaced.ino == moved.ino => return Ok(()),
            _ => {}
        }
        let is_directory = moved.kind == NodeKind::Directory;
        if is_directory {
            self.refuse_loop(moved.ino, new_parent)?;
        }
        change.inode(moved.ino)?.changed = now;
        if is_directory && parent != new_parent {
            change.inode(moved.ino)?.parent = new_parent;
            let above = change.directory(parent)?;
            above.nlink = above.nlink.saturating_sub(1);
            add_subdirectory(new_parent, change.directory(new_parent)?)?;
        }
        if mode == RenameMode::Exchange
            && let Some(other) = replaced
        {
            change.inode(other.ino)?.changed = now;
            if other.kind == NodeKind::Directory {
                self.refuse_loop(other.ino, parent)?;
                if parent != new_parent {
                    change.inode(other.ino)?.parent = parent;
                    let above = change.directory(new_parent)?;
                    above.nlink = above.nlink.saturating_sub(1);
                    add_subdirectory(parent, change.directory(parent)?)?;
                }
            }
            change.add_entry(parent, name, other.ino);
            change.add_entry(new_parent, new_name, moved.ino);
            return change.commit(&[]);
        }
        if let Some(Entry { ino, kind }) = replaced {
            match (is_directory, kind == NodeKind::Directory) {
                (true, false) => return Err(Error::NotDirectory(ino)),
                (false, true) => return Err(Error::IsDirectory(ino)),
                (true, true) => {
                    if !change.is_empty(ino)? {
                        return Err(Error::Denied(ino, Denial::NotEmpty));
                    }
                    let inode = change.inode(ino)?;
                    (inode.nlink, inode.changed) = (0, now);
                    let above = change.directory(new_parent)?;
                    above.nlink = above.nlink.saturating_sub(1);
                }
                (false, false) => change.drop_link(ino)?,
            }
        }
        change.remove_entry(parent, name)?;
        change.add_entry(new_parent, new_name, moved.ino);
        change.commit(&[])
    }

    /// The kernel holds no reference to `ino` any more. If it has no name, it is gone.
    pub fn release(&self, ino: Ino) {
        let Some(live) = self.live.as_ref().filter(|live| live.changes.is_touched(ino)) else {
            return;
        };
        let is_orphan = || live.changes.read().node(ino).is_some_and(|node| node.inode.nlink == 0);
        if !is_orphan() {
            return;
        }
        // If the outbox takes no more records, the next recovery sweeps it.
        if let Ok(mut change) = self.change()
            && is_orphan()
        {
            change.put(Put::Forget(ino));
            if let Err(error) = change.commit(&[]) {
                tracing::debug!(%ino, %error, "a removed file is not forgotten yet");
            }
        }
    }

    /// Removes the inodes without names: nobody has them open after a restart.
    pub(super) fn sweep_orphans(&self) -> Result<()> {
        let orphans = self.live()?.changes.read().orphans();
        for ino in orphans {
            let mut change = self.change()?;
            change.put(Put::Forget(ino));
            change.commit(&[])?;
        }
        Ok(())
    }

    /// Refuses to move the directory `moved` to below itself. The log is held, so that directories
    /// stay where they are.
    fn refuse_loop(&self, moved: Ino, new_parent: Ino) -> Result<()> {
        let live = self.live()?;
        let overlay = live.changes.read();
        let mut at = new_parent;
        for _ in 0..=TREE_DEPTH_MAX {
            if at == moved {
                return Err(Error::Denied(moved, Denial::Invalid));
            }
            if at == Ino::ROOT {
                return Ok(());
            }
            at = match overlay.node(at) {
                Some(node) => node.inode.parent,
                None if at.is_new() => return Err(Error::NoInode(at)),
                None => self.clean.base.parent(at)?,
            };
        }
        Err(Error::Denied(moved, Denial::Invalid))
    }
}

/// Counts one more subdirectory of `dir`.
fn add_subdirectory(ino: Ino, dir: &mut Inode) -> Result<()> {
    if dir.nlink >= LINKS_MAX {
        return Err(Error::Denied(ino, Denial::TooManyLinks));
    }
    dir.nlink += 1;
    Ok(())
}
