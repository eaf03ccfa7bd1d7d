//! Many paths changed at once: all of them, or none.
//!
//! The change is worked out on a copy of the overlay, which shares everything with it, under the lock that
//! keeps other changes out. It becomes as many records as it takes, each of which says which part it is:
//! recovery makes the change with the last one. That one also seals the head, so that whoever asks later
//! knows by the number of the layer whether the change was made.

use std::collections::BTreeSet;

use super::clean::Clean;
use super::live::Live;
use super::reading::attributes_of;
use super::writing::now;
use super::{Attributes, NodeKind, Timestamp, Worktree};
use crate::error::{Error, Result};
use crate::id::{ChunkId, Ino, LayerNumber};
use crate::limits::{LINKS_MAX, OUTBOX_BYTES_MAX, TREE_DEPTH_MAX};
use crate::overlay::{Difference, Inode, Known, Overlay, Put, Source};

/// Bytes of puts after which the next record is begun. One put has less than a quarter of what a head can
/// have.
const PART_BYTES: usize = 512 << 10;

/// What a path is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Become {
    /// Nothing: the name is removed, and directories that are empty by that.
    Nothing,
    /// A file of these chunks, each with its number of bytes. The store has them, and the caller sees to it
    /// that they stay ([`crate::store::Store::hold`]) until this is drained.
    File {
        /// Whether everybody may execute it.
        executable: bool,
        /// Its content.
        chunks: Vec<(ChunkId, u32)>,
    },
    /// A symbolic link to this target.
    Link(Vec<u8>),
    /// A directory, if there is none.
    Directory,
}

/// A change of one path.
#[derive(Clone, Debug)]
pub struct Edit {
    /// The path, relative to the root: names with a slash between them.
    pub path: Vec<u8>,
    /// What the caller has found there. If it is another file by now, or was changed, nothing is done. Of a
    /// directory, only that it is one counts.
    pub found: Option<Attributes>,
    /// What it is to be.
    pub new: Become,
}

/// What has become of edits.
#[derive(Debug)]
pub enum Edited {
    /// They are made.
    Done {
        /// What each edit has made, in their order; none where it has removed something.
        made: Vec<Option<Attributes>>,
        /// What differs from before.
        difference: Difference,
        /// Inodes that have no name any more: [`Worktree::release`] ends those that nobody has open.
        unnamed: Vec<Ino>,
    },
    /// Nothing is done: at this path is something else than was found.
    Changed(Vec<u8>),
    /// Nothing is done: in the directory at this path is something that was not to be removed.
    NotEmpty(Vec<u8>),
}

/// Why edits are not made.
enum Stop {
    Changed(Vec<u8>),
    NotEmpty(Vec<u8>),
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// A change on a copy of the overlay.
struct Draft<'w> {
    clean: &'w Clean,
    overlay: Overlay,
    now: Timestamp,
    /// Whether what is in a directory goes with it, if that is in the way.
    over: bool,
    /// The puts so far, by record.
    parts: Vec<Vec<u8>>,
    /// Inodes that they speak of.
    inodes: BTreeSet<Ino>,
}

impl Worktree {
    /// Makes all of `edits`, or nothing, and seals what the branch is then: `next` is the layer for what
    /// follows. No two edits are of one path. A directory in whose place something else is to be goes with the
    /// directories in it; with `over`, with everything in it. Files that are replaced or removed go on as what they were for who has
    /// them open.
    ///
    /// # Errors
    /// As every change, and [`Error::Denied`] for more directories in one than can be.
    pub fn edit(&self, edits: &[Edit], over: bool, next: LayerNumber) -> Result<Edited> {
        let live = self.live()?;
        if live.outbox.bytes() >= OUTBOX_BYTES_MAX {
            self.drain()?;
        }
        let mut record = live.log();
        let before = live.changes.read().copy();
        let mut draft = Draft {
            clean: &self.clean,
            overlay: before.copy(),
            now: now(),
            over,
            parts: vec![Vec::new()],
            inodes: BTreeSet::new(),
        };
        let made = match draft.make(edits) {
            Ok(made) => made,
            Err(Stop::Changed(path)) => return Ok(Edited::Changed(path)),
            Err(Stop::NotEmpty(path)) => return Ok(Edited::NotEmpty(path)),
            Err(Stop::Failed(error)) => return Err(error),
        };
        let Draft { parts, inodes, overlay: after, .. } = draft;
        self.commit_parts(live, &mut record, &parts, &inodes, next)?;
        let difference = Difference::between(&before, &after);
        let gone = |ino: &&Ino| after.node(**ino).is_some_and(|node| node.inode.nlink == 0);
        let unnamed = inodes.iter().filter(gone).copied().collect();
        Ok(Edited::Done { made, difference, unnamed })
    }

    /// The layer that takes the changes of the branch; none for a worktree that takes none.
    pub fn head_layer(&self) -> Option<LayerNumber> {
        self.live.as_ref().map(|live| live.layers().head)
    }

    /// Appends `parts` and makes them so. The caller holds the log, whose buffer is `record`.
    fn commit_parts(
        &self,
        live: &Live,
        record: &mut Vec<u8>,
        parts: &[Vec<u8>],
        inodes: &BTreeSet<Ino>,
        next: LayerNumber,
    ) -> Result<()> {
        let count = parts.len() as u64;
        let mut last = None;
        for (number, puts) in (1..).zip(parts) {
            record.clear();
            Put::Part(number, count).encode(record);
            record.extend_from_slice(puts);
            if number == count {
                Put::Seal(next).encode(record);
            }
            last = Some(live.outbox.append(record, &[])?);
        }
        let Some(last) = last else { return Ok(()) };
        let mut overlay = live.changes.write();
        for puts in parts {
            overlay.apply_all(puts)?;
        }
        for &ino in inodes {
            live.changes.touch(ino);
        }
        live.layers().seal(&mut overlay, next, last.sequence);
        drop(overlay);
        live.set_dirty(true);
        Ok(())
    }
}

impl Draft<'_> {
    fn make(&mut self, edits: &[Edit]) -> Result<Vec<Option<Attributes>>, Stop> {
        for edit in edits {
            self.check(edit)?;
        }
        for edit in edits.iter().filter(|edit| edit.new == Become::Nothing) {
            self.remove(&edit.path)?;
        }
        let mut made = vec![None; edits.len()];
        for (edit, made) in edits.iter().zip(&mut made) {
            if edit.new != Become::Nothing {
                *made = Some(self.put_at(&edit.path, &edit.new)?);
            }
        }
        for edit in edits.iter().filter(|edit| edit.new == Become::Nothing) {
            self.remove_empty_above(&edit.path)?;
        }
        Ok(made)
    }

    /// Refuses an edit of what is not what was found.
    fn check(&self, edit: &Edit) -> Result<(), Stop> {
        let found = self.find(&edit.path)?;
        let now = found.map(|ino| self.attributes(ino)).transpose()?;
        let same = match (&now, &edit.found) {
            (Some(now), Some(found)) if now.kind == NodeKind::Directory => found.kind == now.kind,
            (now, found) => now == found,
        };
        if same { Ok(()) } else { Err(Stop::Changed(edit.path.clone())) }
    }

    fn attributes(&self, ino: Ino) -> Result<Attributes> {
        match self.overlay.node(ino) {
            Some(node) => Ok(attributes_of(ino, node)),
            None if ino.is_new() => Err(Error::NoInode(ino)),
            None => self.clean.attributes(ino),
        }
    }

    /// What is at a path.
    fn find(&self, path: &[u8]) -> Result<Option<Ino>> {
        let mut at = Ino::ROOT;
        for name in path.split(|byte| *byte == b'/') {
            if self.attributes(at)?.kind != NodeKind::Directory {
                return Ok(None);
            }
            match self.entry(at, name)? {
                Some(ino) => at = ino,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    fn entry(&self, dir: Ino, name: &[u8]) -> Result<Option<Ino>> {
        match self.overlay.directory(dir).and_then(|directory| directory.find(name)) {
            Some(Known::Added(ino, _)) => return Ok(Some(ino)),
            Some(Known::Hidden) => return Ok(None),
            None if dir.is_new() => return Ok(None),
            None => {}
        }
        Ok(self.clean.lookup(dir, name)?.map(|found| found.ino))
    }

    /// The entries of a directory.
    fn entries(&self, dir: Ino) -> Result<Vec<(Vec<u8>, Ino)>> {
        let directory = self.overlay.directory(dir);
        let mut entries: Vec<(Vec<u8>, Ino)> = Vec::new();
        if let Some(directory) = directory {
            entries.extend(directory.added_from(0).map(|(_, name, ino)| (name.to_vec(), ino)));
        }
        if !dir.is_new() {
            self.clean.read_directory(dir, 0, false, &mut |entry| {
                let known = directory.is_some_and(|known| known.find(entry.name).is_some());
                if !known && !matches!(entry.name, b"." | b"..") {
                    entries.push((entry.name.to_vec(), entry.ino));
                }
                true
            })?;
        }
        Ok(entries)
    }

    fn put(&mut self, put: &Put<'_>) {
        if self.parts.last().is_none_or(|part| part.len() >= PART_BYTES) {
            self.parts.push(Vec::new());
        }
        if let Some(part) = self.parts.last_mut() {
            put.encode(part);
        }
        self.overlay.apply(put, &mut None);
    }

    /// Changes the attributes of an inode.
    fn change(&mut self, ino: Ino, change: impl FnOnce(&mut Inode, Timestamp)) -> Result<()> {
        let known = self.overlay.node(ino).map(|node| node.inode);
        let mut inode = match known {
            Some(inode) => inode,
            None if ino.is_new() => return Err(Error::NoInode(ino)),
            None => self.clean.inode(ino)?,
        };
        change(&mut inode, self.now);
        inode.changed = self.now;
        self.inodes.insert(ino);
        match known {
            Some(_) => self.put(&Put::Inode(ino, inode)),
            None => self.put(&Put::CopyUp(ino, inode)),
        }
        Ok(())
    }

    /// Adds an inode, which has one name more than none.
    fn add_inode(&mut self, kind: NodeKind, permissions: u16, size: u64, parent: Ino) -> Ino {
        let (ino, now, options) = (self.overlay.next_ino(), self.now, &self.clean.options);
        let is_directory = kind == NodeKind::Directory;
        let inode = Inode {
            kind,
            permissions,
            nlink: if is_directory { 2 } else { 1 },
            uid: options.uid,
            gid: options.gid,
            rdev: 0,
            size,
            accessed: now,
            modified: now,
            changed: now,
            parent: if is_directory { parent } else { Ino(0) },
        };
        self.inodes.insert(ino);
        self.put(&Put::Inode(ino, inode));
        ino
    }

    /// Takes a name, which stands for `ino`, from a directory. A directory that is removed is empty.
    fn unname(&mut self, dir: Ino, name: &[u8], ino: Ino) -> Result<()> {
        let is_directory = self.attributes(ino)?.kind == NodeKind::Directory;
        self.change(dir, |inode, now| {
            inode.modified = now;
            inode.nlink = inode.nlink.saturating_sub(is_directory.into());
        })?;
        self.change(ino, |inode, _| {
            inode.nlink = if is_directory { 0 } else { inode.nlink.saturating_sub(1) };
        })?;
        let hides = !dir.is_new() && self.clean.lookup(dir, name)?.is_some();
        self.put(&Put::Remove { dir, name, hides });
        Ok(())
    }

    fn name(&mut self, dir: Ino, name: &[u8], ino: Ino) -> Result<()> {
        let is_directory = self.attributes(ino)?.kind == NodeKind::Directory;
        if is_directory && self.attributes(dir)?.nlink >= LINKS_MAX {
            return Err(Error::Denied(dir, crate::error::Denial::TooManyLinks));
        }
        self.change(dir, |inode, now| {
            inode.modified = now;
            inode.nlink += u32::from(is_directory);
        })?;
        let position = self.overlay.directory(dir).map_or(0, |known| known.next_position());
        self.put(&Put::Add { dir, name, ino, position });
        Ok(())
    }

    /// Removes what is at a path, if it is no directory: one goes when it is empty.
    fn remove(&mut self, path: &[u8]) -> Result<()> {
        let (above, name) = split(path);
        let dir = if above.is_empty() { Some(Ino::ROOT) } else { self.find(above)? };
        let Some(dir) = dir else { return Ok(()) };
        match self.entry(dir, name)? {
            Some(ino) if self.attributes(ino)?.kind != NodeKind::Directory => {
                self.unname(dir, name, ino)
            }
            _ => Ok(()),
        }
    }

    /// Removes the directories from `path` upwards that are empty.
    fn remove_empty_above(&mut self, path: &[u8]) -> Result<()> {
        let mut path = path;
        while !path.is_empty() {
            let (above, name) = split(path);
            let dir = if above.is_empty() { Some(Ino::ROOT) } else { self.find(above)? };
            if let Some(dir) = dir
                && let Some(ino) = self.entry(dir, name)?
            {
                let removable = self.attributes(ino)?.kind == NodeKind::Directory
                    && self.entries(ino)?.is_empty();
                if !removable {
                    return Ok(());
                }
                self.unname(dir, name, ino)?;
            }
            path = above;
        }
        Ok(())
    }

    /// Removes a directory with the directories in it, if there is nothing else or all of it is to go.
    fn remove_directory(
        &mut self,
        dir: Ino,
        path: &[u8],
        ino: Ino,
        depth: usize,
    ) -> Result<(), Stop> {
        for (name, below) in self.entries(ino)? {
            let is_directory = self.attributes(below)?.kind == NodeKind::Directory;
            if (!is_directory && !self.over) || depth > TREE_DEPTH_MAX {
                return Err(Stop::NotEmpty(path.to_owned()));
            }
            match is_directory {
                true => {
                    let path = [path, b"/", &name].concat();
                    self.remove_directory(ino, &path, below, depth + 1)?;
                }
                false => self.unname(ino, &name, below)?,
            }
        }
        Ok(self.unname(dir, split(path).1, ino)?)
    }

    /// Makes a path what it is to be, with the directories above it.
    fn put_at(&mut self, path: &[u8], new: &Become) -> Result<Attributes, Stop> {
        let mut dir = Ino::ROOT;
        let (above, name) = split(path);
        for (end, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            let name = split(&path[..end]).1;
            dir = match self.entry(dir, name)? {
                Some(ino) if self.attributes(ino)?.kind == NodeKind::Directory => ino,
                // Nobody has named it as one that goes.
                Some(_) => return Err(Stop::Changed(path[..end].to_owned())),
                None => self.make_directory(dir, name)?,
            };
        }
        debug_assert!(above.len() < path.len());
        let before = self.entry(dir, name)?;
        if let Some(before) = before {
            let is_directory = self.attributes(before)?.kind == NodeKind::Directory;
            match (is_directory, new) {
                (true, Become::Directory) => return Ok(self.attributes(before)?),
                (true, _) => self.remove_directory(dir, path, before, 0)?,
                (false, _) => self.unname(dir, name, before)?,
            }
        }
        let ino = match new {
            Become::Nothing | Become::Directory => self.make_directory(dir, name)?,
            Become::File { executable, chunks } => {
                let size = chunks.iter().map(|(_, len)| u64::from(*len)).sum();
                let permissions = if *executable { 0o755 } else { 0o644 };
                let ino = self.add_inode(NodeKind::File, permissions, size, dir);
                let mut offset = 0;
                for (id, len) in chunks {
                    let (len, source) = (u64::from(*len), Source::Chunk(*id, 0));
                    self.put(&Put::Share { ino, offset, len, source });
                    offset += len;
                }
                self.name(dir, name, ino)?;
                ino
            }
            Become::Link(target) => {
                let ino = self.add_inode(NodeKind::Symlink, 0o777, target.len() as u64, dir);
                self.put(&Put::Target(ino, target));
                self.name(dir, name, ino)?;
                ino
            }
        };
        Ok(self.attributes(ino)?)
    }

    fn make_directory(&mut self, dir: Ino, name: &[u8]) -> Result<Ino> {
        let ino = self.add_inode(NodeKind::Directory, 0o755, 0, dir);
        self.name(dir, name, ino)?;
        Ok(ino)
    }
}

/// A path as that of the directory above it and a name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}
