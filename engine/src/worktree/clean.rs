//! The base of a worktree seen as files with attributes, plus the synthetic `.git` file in its root
//! that leads git to the worktree's git directory. It never changes, and reading it takes no lock.

use std::sync::Arc;

use super::{
    Attributes, Contents, DirectoryEntry, FsStatistics, GIT_FILE_NAME, NodeKind, Timestamp,
    WorktreeOptions,
};
use crate::base::{Base, Dir, Location};
use crate::error::{Error, Result};
use crate::id::Ino;
use crate::limits::{NAME_BYTES_MAX, SYMLINK_BYTES_MAX};
use crate::tree::{Entry, EntryKind};

/// A base tree seen as files.
pub(super) struct Clean {
    pub(super) base: Arc<Base>,
    pub(super) contents: Arc<Contents>,
    pub(super) options: WorktreeOptions,
}

/// Where an inode number leads in a worktree.
pub(super) enum Node<'a> {
    Root(Dir<'a>),
    GitFile(&'a [u8]),
    Entry(Dir<'a>, usize, Entry<'a>),
}

// Cookies of a listing: `.`, `..`, in the root `.git`, and then entry 0.
const COOKIE_DOT: u64 = 1;
const COOKIE_DOT_DOT: u64 = 2;
const COOKIE_GIT_FILE: u64 = 3;
const COOKIE_FIRST: u64 = 4;
/// From here on are the entries that a branch has added; no base has so many.
pub(super) const COOKIE_ADDED: u64 = 1 << 40;

/// Shows `.` and `..` of the directory `ino` in `parent`; returns whether all were taken.
pub(super) fn dots(
    ino: Ino,
    parent: Ino,
    cookie: u64,
    visit: &mut dyn FnMut(DirectoryEntry<'_>) -> bool,
) -> bool {
    let dots = [(&b"."[..], ino, COOKIE_DOT), (&b".."[..], parent, COOKIE_DOT_DOT)];
    dots.into_iter().all(|(name, target, next)| {
        let kind = NodeKind::Directory;
        cookie >= next
            || visit(DirectoryEntry { ino: target, kind, name, cookie: next, attributes: None })
    })
}

impl Clean {
    /// Finds `name` in the directory `parent`; `None` if there is no such entry. `.` and `..` are
    /// the kernel's to resolve and are not found.
    ///
    /// # Errors
    /// [`Error::NotDirectory`], [`Error::NoInode`], or what loading a directory object meets.
    pub(super) fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Option<Attributes>> {
        if parent == Ino::ROOT
            && name == GIT_FILE_NAME
            && let Some(git_file) = &self.options.git_file
        {
            return Ok(Some(self.git_file_attributes(git_file)));
        }
        if parent == Ino::GIT_FILE {
            return Err(Error::NotDirectory(parent));
        }
        let Some(dir) = self.base.directory(parent)? else {
            return Ok(None);
        };
        Ok(dir.tree().find(name).map(|index| self.entry_attributes(dir, index)))
    }

    /// The attributes of an inode.
    ///
    /// # Errors
    /// [`Error::NoInode`], or what loading a directory object meets.
    pub(super) fn attributes(&self, ino: Ino) -> Result<Attributes> {
        Ok(match self.locate(ino)? {
            Node::Root(root) => {
                let subtree = root.tree().subtree(root.id());
                self.attributes_of(ino, EntryKind::Directory, subtree.size, subtree.subdirectories)
            }
            Node::GitFile(content) => self.git_file_attributes(content),
            Node::Entry(dir, index, _) => self.entry_attributes(dir, index),
        })
    }

    /// Reads a regular file from `offset` into `out` and returns how many bytes it wrote: fewer
    /// than asked for only at the end of the file.
    ///
    /// # Errors
    /// [`Error::IsDirectory`], [`Error::WrongKind`] for a symbolic link, or what [`Contents::read`]
    /// meets.
    pub(super) fn read(&self, ino: Ino, offset: u64, out: &mut [u8]) -> Result<usize> {
        match self.locate(ino)? {
            Node::Root(_) => Err(Error::IsDirectory(ino)),
            Node::GitFile(content) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
                let len = out.len().min(content.len() - start);
                out[..len].copy_from_slice(&content[start..start + len]);
                Ok(len)
            }
            Node::Entry(_, _, entry) => match entry.kind {
                EntryKind::File | EntryKind::Executable => {
                    self.contents.read(&entry, || self.base.path(ino), offset, out)
                }
                EntryKind::Symlink => Err(Error::WrongKind(ino)),
                EntryKind::Gitlink | EntryKind::Directory => Err(Error::IsDirectory(ino)),
            },
        }
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// [`Error::WrongKind`] for anything else, or what [`Contents::read`] meets.
    pub(super) fn read_link(&self, ino: Ino) -> Result<Vec<u8>> {
        let Node::Entry(_, _, entry) = self.locate(ino)? else {
            return Err(Error::WrongKind(ino));
        };
        if entry.kind != EntryKind::Symlink {
            return Err(Error::WrongKind(ino));
        }
        // The tree was checked: no target is longer than this.
        let mut target = vec![0; entry.size.min(SYMLINK_BYTES_MAX) as usize];
        let read = self.contents.read(&entry, || self.base.path(ino), 0, &mut target)?;
        target.truncate(read);
        Ok(target)
    }

    /// Lists the directory `ino` from `cookie` on, 0 being its start. `visit` returns whether it
    /// took the entry; the listing stops at the first that it did not take.
    ///
    /// # Errors
    /// [`Error::NotDirectory`], [`Error::NoInode`], or what loading a directory object meets.
    pub(super) fn read_directory(
        &self,
        ino: Ino,
        cookie: u64,
        with_attributes: bool,
        visit: &mut dyn FnMut(DirectoryEntry<'_>) -> bool,
    ) -> Result<()> {
        if ino == Ino::GIT_FILE {
            return Err(Error::NotDirectory(ino));
        }
        let dir = self.base.directory(ino)?;
        let parent = match &dir {
            Some(dir) => dir.parent(),
            None => self.base.parent(ino)?,
        };
        if !dots(ino, parent, cookie, visit) {
            return Ok(());
        }
        if ino == Ino::ROOT
            && cookie < COOKIE_GIT_FILE
            && let Some(git_file) = &self.options.git_file
        {
            let entry = DirectoryEntry {
                ino: Ino::GIT_FILE,
                kind: NodeKind::File,
                name: GIT_FILE_NAME,
                cookie: COOKIE_GIT_FILE,
                attributes: with_attributes.then(|| self.git_file_attributes(git_file)),
            };
            if !visit(entry) {
                return Ok(());
            }
        }
        let Some(dir) = dir else {
            return Ok(());
        };
        // The cookie of entry `i` is `COOKIE_FIRST + i`, and a listing resumes after it.
        let first = cookie.saturating_sub(COOKIE_FIRST - 1);
        for index in usize::try_from(first).unwrap_or(usize::MAX)..dir.tree().len() {
            let entry = dir.entry(index);
            let taken = visit(DirectoryEntry {
                ino: dir.ino_of(index),
                kind: entry.kind.into(),
                name: entry.name,
                cookie: COOKIE_FIRST + index as u64,
                attributes: with_attributes.then(|| self.entry_attributes(dir, index)),
            });
            if !taken {
                break;
            }
        }
        Ok(())
    }

    /// What `statfs` reports: the space of the file system that holds the store, the inodes of this
    /// worktree.
    ///
    /// # Errors
    /// [`Error::Io`] if the store's file system does not answer.
    pub(super) fn statistics(&self) -> Result<FsStatistics> {
        let dir = self.contents.store().dir();
        let stat = rustix::fs::statvfs(dir)
            .map_err(|errno| Error::io("read the free space of", dir, errno.into()))?;
        Ok(FsStatistics {
            block_size: u32::try_from(stat.f_frsize).unwrap_or(u32::MAX),
            blocks: stat.f_blocks,
            blocks_free: stat.f_bfree,
            blocks_available: stat.f_bavail,
            files: 1 + u64::from(self.base.entries()) + u64::from(self.options.git_file.is_some()),
            files_free: 0,
            name_max: NAME_BYTES_MAX as u32,
        })
    }

    pub(super) fn locate(&self, ino: Ino) -> Result<Node<'_>> {
        if ino == Ino::GIT_FILE {
            return match &self.options.git_file {
                Some(content) => Ok(Node::GitFile(content)),
                None => Err(Error::NoInode(ino)),
            };
        }
        Ok(match self.base.locate(ino)? {
            Location::Root(dir) => Node::Root(dir),
            Location::Entry(dir, index) => Node::Entry(dir, index, dir.entry(index)),
        })
    }

    fn entry_attributes(&self, dir: Dir<'_>, index: usize) -> Attributes {
        let entry = dir.entry(index);
        let subdirectories = entry.subtree.map_or(0, |subtree| subtree.subdirectories);
        self.attributes_of(dir.ino_of(index), entry.kind, entry.size, subdirectories)
    }

    fn git_file_attributes(&self, content: &[u8]) -> Attributes {
        self.attributes_of(Ino::GIT_FILE, EntryKind::File, content.len() as u64, 0)
    }

    fn attributes_of(
        &self,
        ino: Ino,
        kind: EntryKind,
        size: u64,
        subdirectories: u32,
    ) -> Attributes {
        let permissions = match kind {
            EntryKind::File => 0o644,
            EntryKind::Executable | EntryKind::Directory | EntryKind::Gitlink => 0o755,
            EntryKind::Symlink => 0o777,
        };
        let time = Timestamp { seconds: self.options.time, nanoseconds: 0 };
        Attributes {
            ino,
            kind: kind.into(),
            permissions,
            size,
            blocks: size.div_ceil(512),
            accessed: time,
            modified: time,
            changed: time,
            nlink: if kind.is_directory() { 2 + subdirectories } else { 1 },
            uid: self.options.uid,
            gid: self.options.gid,
            rdev: 0,
        }
    }
}
