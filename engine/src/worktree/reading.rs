//! Reading a worktree: the overlay where it knows something, else the base.

use super::clean::COOKIE_ADDED;
use super::{Attributes, DirectoryEntry, FsStatistics, NodeKind, Seek, Worktree};
use crate::error::{Denial, Error, Result};
use crate::id::{ContentId, Ino};
use crate::overlay::{Body, Extent, Known, Node, Overlay, Source};

/// The length of a read, and where each part of it lies, in order.
type Pieces = (usize, Vec<(u64, Extent)>);

impl Worktree {
    /// Finds `name` in the directory `parent`; `None` if there is no such entry. `.` and `..` are
    /// the kernel's to resolve and are not found.
    ///
    /// # Errors
    /// [`Error::NotDirectory`], [`Error::NoInode`], or what loading a directory object meets.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Option<Attributes>> {
        let Some(changes) = &self.changes else { return self.clean.lookup(parent, name) };
        if changes.is_touched(parent) {
            let overlay = changes.read();
            let known = match overlay.node(parent).map(|node| &node.body) {
                Some(Body::Directory(directory)) => directory.find(name),
                Some(_) => return Err(Error::NotDirectory(parent)),
                None if parent.is_new() => return Err(Error::NoInode(parent)),
                None => None,
            };
            match known {
                Some(Known::Added(ino, _)) => return self.attributes_in(&overlay, ino).map(Some),
                Some(Known::Hidden) => return Ok(None),
                None if parent.is_new() => return Ok(None),
                None => {}
            }
        }
        match self.clean.lookup(parent, name)? {
            Some(found) if changes.is_touched(found.ino) => {
                self.attributes_in(&changes.read(), found.ino).map(Some)
            }
            found => Ok(found),
        }
    }

    /// The attributes of an inode.
    ///
    /// # Errors
    /// [`Error::NoInode`], or what loading a directory object meets.
    pub fn attributes(&self, ino: Ino) -> Result<Attributes> {
        match &self.changes {
            Some(changes) if changes.is_touched(ino) => self.attributes_in(&changes.read(), ino),
            _ => self.clean.attributes(ino),
        }
    }

    pub(super) fn attributes_in(&self, overlay: &Overlay, ino: Ino) -> Result<Attributes> {
        match overlay.node(ino) {
            Some(node) => Ok(attributes_of(ino, node)),
            None if ino.is_new() => Err(Error::NoInode(ino)),
            None => self.clean.attributes(ino),
        }
    }

    /// Reads a regular file from `offset` into `out` and returns how many bytes it wrote: fewer
    /// than asked for only at the end of the file.
    ///
    /// # Errors
    /// [`Error::IsDirectory`], [`Error::WrongKind`] for what has no content, or what
    /// [`super::Contents::read`] and reading the store and the outbox meet.
    pub fn read(&self, ino: Ino, offset: u64, out: &mut [u8]) -> Result<usize> {
        loop {
            let Some((len, pieces)) = self.pieces_of(ino, offset, out.len())? else {
                return self.clean.read(ino, offset, out);
            };
            match self.read_pieces(offset, &pieces, &mut out[..len]) {
                Ok(()) => return Ok(len),
                // What was overwritten before a garbage collection began may be gone.
                Err(error)
                    if error.is_corruption()
                        && self.pieces_of(ino, offset, out.len())? != Some((len, pieces)) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// How many bytes a read from `offset` on gets, of at most `len`, and where they lie; `None` where
    /// only the base knows.
    fn pieces_of(&self, ino: Ino, offset: u64, len: usize) -> Result<Option<Pieces>> {
        let Some(changes) = self.changes.as_ref().filter(|changes| changes.is_touched(ino)) else {
            return Ok(None);
        };
        let overlay = changes.read();
        let Some(node) = overlay.node(ino).filter(|node| !matches!(node.body, Body::Base)) else {
            return if ino.is_new() { Err(Error::NoInode(ino)) } else { Ok(None) };
        };
        let extents = match &node.body {
            Body::File(extents) => extents,
            Body::Directory(_) => return Err(Error::IsDirectory(ino)),
            _ => return Err(Error::WrongKind(ino)),
        };
        let len = node.inode.size.saturating_sub(offset).min(len as u64) as usize;
        Ok(Some((len, extents.within(offset..offset + len as u64).collect())))
    }

    /// Fills `out` with what lies at `pieces`, zeros between them. They stay readable without the lock
    /// under which they were found: the base for ever, a segment of the outbox as long as somebody names
    /// it, a chunk as long as the file has it, and longer unless a whole garbage collection has passed.
    fn read_pieces(&self, offset: u64, pieces: &[(u64, Extent)], out: &mut [u8]) -> Result<()> {
        let mut at = 0;
        for (start, extent) in pieces {
            // Both lie in `out`, so they fit.
            let from = (start - offset) as usize;
            let to = from + extent.len as usize;
            out[at..from].fill(0);
            self.read_source(&extent.source, &mut out[from..to])?;
            at = to;
        }
        out[at..].fill(0);
        Ok(())
    }

    /// Fills `out` with the bytes at `source`.
    pub(super) fn read_source(&self, source: &Source, out: &mut [u8]) -> Result<()> {
        let read = match source {
            Source::Fresh(place) => return place.read(out),
            // A chunk is the content of the same digest.
            Source::Chunk(id, offset) => {
                let store = self.clean.contents.store();
                store.read_at(ContentId::from(*id), u64::from(*offset), out)?
            }
            Source::Base(ino, offset) => self.clean.read(*ino, *offset, out)?,
        };
        if read == out.len() {
            return Ok(());
        }
        Err(Error::corrupt(
            format!("{source:?}"),
            format!("it ends after {read} of {} bytes", out.len()),
        ))
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// [`Error::WrongKind`] for anything else, or what [`super::Contents::read`] meets.
    pub fn read_link(&self, ino: Ino) -> Result<Vec<u8>> {
        if let Some(changes) = self.changes.as_ref().filter(|changes| changes.is_touched(ino)) {
            match changes.read().node(ino).map(|node| &node.body) {
                Some(Body::Target(target)) => return Ok(target.to_vec()),
                Some(Body::Base) => {}
                Some(_) => return Err(Error::WrongKind(ino)),
                None if ino.is_new() => return Err(Error::NoInode(ino)),
                None => {}
            }
        }
        self.clean.read_link(ino)
    }

    /// Lists the directory `ino` from `cookie` on, 0 being its start. `visit` returns whether it
    /// took the entry; the listing stops at the first that it did not take.
    ///
    /// # Errors
    /// [`Error::NotDirectory`], [`Error::NoInode`], or what loading a directory object meets.
    pub fn read_directory(
        &self,
        ino: Ino,
        cookie: u64,
        with_attributes: bool,
        visit: &mut dyn FnMut(DirectoryEntry<'_>) -> bool,
    ) -> Result<()> {
        let Some(changes) = &self.changes else {
            return self.clean.read_directory(ino, cookie, with_attributes, visit);
        };
        let overlay = changes.read();
        let node = if changes.is_touched(ino) { overlay.node(ino) } else { None };
        let changed = match node.map(|node| (&node.body, node.inode.parent)) {
            Some((Body::Directory(directory), parent)) => Some((directory, parent)),
            Some(_) => return Err(Error::NotDirectory(ino)),
            None if ino.is_new() => return Err(Error::NoInode(ino)),
            None => None,
        };
        let mut failed = None;
        let mut stopped = false;
        let mut show = |mut entry: DirectoryEntry<'_>| {
            if changes.is_touched(entry.ino)
                && let Some(node) = overlay.node(entry.ino)
            {
                entry.kind = node.inode.kind;
                entry.attributes = entry.attributes.map(|_| attributes_of(entry.ino, node));
            }
            let taken = visit(entry);
            stopped |= !taken;
            taken
        };
        if cookie < COOKIE_ADDED {
            let parent = changed.map(|(_, parent)| parent);
            let mut clean = |mut entry: DirectoryEntry<'_>| {
                match (entry.name, parent) {
                    (b"..", Some(parent)) => entry.ino = parent,
                    (b"." | b"..", _) => {}
                    _ if changed.is_some_and(|(own, _)| own.find(entry.name).is_some()) => {
                        return true;
                    }
                    _ => {}
                }
                show(entry)
            };
            match parent {
                Some(parent) if ino.is_new() => {
                    super::clean::dots(ino, parent, cookie, &mut clean);
                }
                _ => self.clean.read_directory(ino, cookie, with_attributes, &mut clean)?,
            }
        }
        let Some((directory, _)) = changed.filter(|_| !stopped) else { return Ok(()) };
        // The cookie of the entry at position `p` is `COOKIE_ADDED + p`; a listing resumes after it.
        let first = (cookie + 1).saturating_sub(COOKIE_ADDED);
        for (position, name, child) in directory.added_from(first) {
            let attributes = match self.attributes_in(&overlay, child) {
                Ok(attributes) => attributes,
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            };
            let taken = visit(DirectoryEntry {
                ino: child,
                kind: attributes.kind,
                name,
                cookie: COOKIE_ADDED + position,
                attributes: with_attributes.then_some(attributes),
            });
            if !taken {
                break;
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Where in a file the next data or the next hole is, from `offset` on; `None` if there is none,
    /// and from the end of the file on.
    ///
    /// # Errors
    /// As [`Worktree::attributes`]; [`Error::Denied`] for what is no regular file.
    pub fn seek(&self, ino: Ino, offset: u64, what: Seek) -> Result<Option<u64>> {
        let changes = self.changes.as_ref().filter(|changes| changes.is_touched(ino));
        let overlay = changes.map(|changes| changes.read());
        let node = overlay.as_ref().and_then(|overlay| overlay.node(ino));
        let (kind, size) = match node {
            Some(node) => (node.inode.kind, node.inode.size),
            None => {
                let attributes = self.clean.attributes(ino)?;
                (attributes.kind, attributes.size)
            }
        };
        if kind != NodeKind::File {
            return Err(Error::Denied(ino, Denial::Invalid));
        }
        if offset >= size {
            return Ok(None);
        }
        let found = match (node.map(|node| &node.body), what) {
            (Some(Body::File(extents)), Seek::Data) => extents.next_data(offset),
            (Some(Body::File(extents)), Seek::Hole) => Some(extents.next_hole(offset)),
            (_, Seek::Data) => Some(offset),
            (_, Seek::Hole) => Some(size),
        };
        Ok(match what {
            Seek::Data => found.filter(|&data| data < size),
            Seek::Hole => found.map(|hole| hole.min(size)),
        })
    }

    /// What `statfs` reports: the space of the file system that holds the store, the inodes of this
    /// worktree.
    ///
    /// # Errors
    /// [`Error::Io`] if the store's file system does not answer.
    pub fn statistics(&self) -> Result<FsStatistics> {
        let mut statistics = self.clean.statistics()?;
        if let Some(changes) = &self.changes {
            // As many as there are numbers: what limits them is the space.
            statistics.files += changes.read().nodes().len() as u64;
            statistics.files_free = u64::from(u32::MAX);
        }
        Ok(statistics)
    }
}

pub(super) fn attributes_of(ino: Ino, node: &Node) -> Attributes {
    let inode = &node.inode;
    let allocated = match &node.body {
        Body::File(extents) => extents.allocated(),
        _ => inode.size,
    };
    Attributes {
        ino,
        kind: inode.kind,
        permissions: inode.permissions,
        size: inode.size,
        blocks: allocated.div_ceil(512),
        accessed: inode.accessed,
        modified: inode.modified,
        changed: inode.changed,
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        rdev: inode.rdev,
    }
}
