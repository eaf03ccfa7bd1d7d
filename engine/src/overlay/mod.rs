//! What a branch has changed relative to its base, in memory.
//!
//! The overlay is state without I/O: it applies changes, and remembers what a drain has not written
//! into the store yet. Where an inode or a name is not in it, the base speaks.
//!
//! Its maps are persistent: a copy shares everything with the original and costs the same for any
//! number of changes, and what is changed later is copied then, a few nodes of a tree at a time. So a
//! snapshot, a fork or a drain takes a copy and needs no lock after that.

mod change;
mod directory;
mod extents;
mod generation;
mod inode;
mod row;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

pub use change::Put;
pub use directory::{Directory, Known};
pub use extents::{Extent, Extents, Source};
pub(crate) use generation::Generation;
use imbl::ordmap::DiffItem;
use imbl::{OrdMap, OrdSet};
pub use inode::Inode;
pub(crate) use row::{EntryRow, InodeRow, LayerNodes};

use crate::error::{Error, Result};
use crate::fields::Fields;
use crate::id::{Ino, LayerNumber};
use crate::outbox::Place;
use crate::worktree::NodeKind;

/// Extended attributes by name.
pub type Xattrs = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// A changed inode.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its attributes.
    pub inode: Inode,
    /// Its content.
    pub body: Body,
    /// Its extended attributes.
    pub xattrs: Option<Box<Xattrs>>,
}

/// The content of a changed inode.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// That of the inode of the same number in the base.
    Base,
    /// A file's extents.
    File(Box<Extents>),
    /// The target of a symbolic link.
    Target(Box<[u8]>),
    /// What a directory has beside its base, if that has one of its number.
    Directory(Box<Directory>),
    /// None: a fifo, a socket, a device.
    Nothing,
}

/// What has changed since the last drain began.
#[derive(Debug, Default)]
pub(crate) struct Dirty {
    /// Inodes.
    pub(crate) inodes: HashSet<Ino>,
    /// Names, by directory.
    pub(crate) names: HashMap<Ino, HashSet<Box<[u8]>>>,
}

impl Dirty {
    /// Whether nothing has changed.
    pub(crate) fn is_empty(&self) -> bool {
        self.inodes.is_empty() && self.names.is_empty()
    }

    /// Adds what has changed according to `other`.
    pub(crate) fn extend(&mut self, other: Self) {
        self.inodes.extend(other.inodes);
        for (dir, names) in other.names {
            self.names.entry(dir).or_default().extend(names);
        }
    }

    fn name(&mut self, dir: Ino, name: &[u8]) {
        self.names.entry(dir).or_default().insert(name.into());
    }
}

/// What a record was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// A change, which was applied.
    Changed,
    /// The layer is sealed, and what follows goes into this one.
    Sealed(LayerNumber),
    /// What follows goes into this layer, which lies on that one, or on the bare base.
    Stands(LayerNumber, Option<LayerNumber>),
}

/// Where two overlays differ.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Inodes with other attributes or content, or that are in one of them only.
    pub inodes: Vec<Ino>,
    /// Names that stand for something else, each with its directory.
    pub names: Vec<(Ino, Box<[u8]>)>,
}

impl Difference {
    /// What differs between `old` and `new`. What both share is not looked at.
    pub(crate) fn between(old: &Overlay, new: &Overlay) -> Self {
        let mut difference = Self::default();
        for item in old.nodes.diff(&new.nodes) {
            let (ino, old, new) = match item {
                DiffItem::Add(ino, new) => (*ino, None, Some(new)),
                DiffItem::Update { old: (ino, old), new: (_, new) } => (*ino, Some(old), Some(new)),
                DiffItem::Remove(ino, old) => (*ino, Some(old), None),
            };
            difference.inodes.push(ino);
            let (old, new) = (old.and_then(entries), new.and_then(entries));
            let names = old.into_iter().chain(new).flat_map(Directory::names);
            let find = |directory: Option<&Directory>, name: &[u8]| {
                directory.and_then(|directory| directory.find(name))
            };
            let other = names.filter(|name| find(old, name) != find(new, name));
            difference.names.extend(other.map(|name| (ino, name.into())));
        }
        difference.names.sort_unstable();
        difference.names.dedup();
        difference
    }
}

/// The puts of a record.
fn decode(head: &[u8]) -> Result<Vec<Put<'_>>> {
    let mut fields = Fields(head);
    let mut puts = Vec::new();
    while !fields.0.is_empty() {
        puts.push(Put::decode(&mut fields).ok_or_else(|| bad("it is no change"))?);
    }
    Ok(puts)
}

fn bad(why: &str) -> Error {
    Error::corrupt("a record of the outbox", why)
}

/// Whether nothing that changes an inode may stand beside it.
fn is_alone(put: &Put<'_>) -> bool {
    matches!(put, Put::Seal(_) | Put::Stand(..) | Put::Part(..))
}

fn entries(node: &Arc<Node>) -> Option<&Directory> {
    match &node.body {
        Body::Directory(directory) => Some(directory),
        _ => None,
    }
}

/// All that a branch has changed.
#[derive(Debug, Default)]
pub struct Overlay {
    nodes: OrdMap<Ino, Arc<Node>>,
    /// Those of them that have no name, so that a fork of a branch with many changes need not look for them.
    nameless: OrdSet<Ino>,
    /// The highest number that a new inode has had.
    last_new: u64,
    dirty: Dirty,
    /// The heads of the first records of a change that several make together, while it is replayed.
    parts: Vec<Box<[u8]>>,
    generation: Generation,
}

impl Overlay {
    /// A changed inode.
    pub fn node(&self, ino: Ino) -> Option<&Node> {
        self.nodes.get(&ino).map(|node| &**node)
    }

    /// What has changed in a directory.
    pub fn directory(&self, ino: Ino) -> Option<&Directory> {
        match &self.nodes.get(&ino)?.body {
            Body::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    /// The changed inodes, in order.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = (Ino, &Node)> {
        self.nodes.iter().map(|(&ino, node)| (ino, &**node))
    }

    /// A copy, of which everything counts as drained.
    pub(crate) fn copy(&self) -> Self {
        let generation = Generation::new(None);
        let (nodes, nameless) = (self.nodes.clone(), self.nameless.clone());
        Self { nodes, nameless, last_new: self.last_new, generation, ..Self::default() }
    }

    /// For how long what it does not tell is as in the base.
    pub(crate) fn generation(&self) -> &Generation {
        &self.generation
    }

    /// Begins a generation.
    pub(crate) fn begin_generation(&mut self) {
        self.generation = Generation::new(None);
    }

    /// Goes on with a generation that was interrupted.
    pub(crate) fn resume(&mut self, generation: Generation) {
        self.generation = generation;
    }

    /// The number that the next new inode is to have. Numbers are never used again.
    pub fn next_ino(&self) -> Ino {
        Ino(self.last_new.max(Ino::FIRST_NEW.0 - 1) + 1)
    }

    /// Applies `put`. The bytes of a [`Put::Data`] are at `body`, which moves on behind them.
    pub fn apply(&mut self, put: &Put<'_>, body: &mut Option<Place>) {
        match put {
            Put::Inode(ino, inode) => {
                self.dirty.inodes.insert(*ino);
                self.last_new = self.last_new.max(ino.0);
                self.count_names(*ino, inode.nlink);
                match self.node_mut(*ino) {
                    Some(node) => node.inode = *inode,
                    None => {
                        let body = Body::new(inode.kind);
                        self.insert(*ino, Node { inode: *inode, body, xattrs: None });
                    }
                }
            }
            Put::CopyUp(ino, inode) => {
                self.dirty.inodes.insert(*ino);
                self.count_names(*ino, inode.nlink);
                match self.node_mut(*ino) {
                    Some(node) => node.inode = *inode,
                    None => {
                        let body = match inode.kind {
                            NodeKind::Directory => Body::new(inode.kind),
                            _ => Body::Base,
                        };
                        self.insert(*ino, Node { inode: *inode, body, xattrs: None });
                    }
                }
            }
            Put::Add { dir, name, ino, position } => {
                self.dirty.name(*dir, name);
                if self.is_directory(*dir, name) {
                    self.generation.depart(*dir, name);
                }
                self.place(*ino);
                if let Some(directory) = self.directory_mut(*dir) {
                    directory.add(name, *ino, *position);
                }
            }
            Put::Remove { dir, name, hides } => {
                self.dirty.name(*dir, name);
                if !hides || self.is_directory(*dir, name) {
                    self.generation.depart(*dir, name);
                }
                if let Some(directory) = self.directory_mut(*dir) {
                    if *hides { directory.hide(name) } else { directory.leave(name) }
                }
            }
            Put::Target(ino, target) => {
                self.dirty.inodes.insert(*ino);
                if let Some(node) = self.node_mut(*ino) {
                    node.body = Body::Target((*target).into());
                }
            }
            Put::Xattr(ino, name, value) => {
                self.dirty.inodes.insert(*ino);
                if let Some(node) = self.node_mut(*ino) {
                    node.set_xattr(name, *value);
                }
            }
            Put::Data { ino, offset, len } => {
                let Some(place) = body.take() else { return };
                *body = Some(place.at(*len));
                self.change_file(*ino, *offset..*offset + *len, Some(Source::Fresh(place)));
            }
            Put::Hole { ino, offset, len } => {
                self.change_file(*ino, *offset..*offset + *len, None);
            }
            Put::Share { ino, offset, len, source } => {
                self.change_file(*ino, *offset..*offset + *len, Some(source.clone()));
            }
            Put::Forget(ino) => self.forget(*ino),
            // Whoever keeps the layers takes what has changed until here.
            Put::Seal(_) | Put::Stand(..) | Put::Part(..) => {}
        }
    }

    /// Whether a name was given to a directory.
    fn is_directory(&self, dir: Ino, name: &[u8]) -> bool {
        let known = self.directory(dir).and_then(|directory| directory.find(name));
        matches!(known, Some(Known::Added(ino, _)) if self.directory(ino).is_some())
    }

    /// Begins a generation if `ino`, which gets a name, is a directory of the base, or may have one below it.
    fn place(&mut self, ino: Ino) {
        let Some(placed) = self.directory(ino) else { return };
        let nodes = &self.nodes;
        let is_moved = |ino: Ino| {
            let node = nodes.get(&ino).filter(|_| !ino.is_new());
            node.is_some_and(|node| matches!(node.body, Body::Directory(_)))
        };
        let look = || {
            let mut directories = nodes.values().filter_map(entries);
            directories.any(|one| one.added_from(0).any(|(.., ino)| is_moved(ino)))
        };
        let is_filled = placed.next_position() > 0;
        if !ino.is_new() || (is_filled && self.generation.has_moved(look)) {
            self.generation = Generation::new(Some(true));
        }
    }

    /// Applies the change that the head of a record holds; its body is `body_len` bytes at `body`. A change
    /// of several records is applied with the last of them. Returns what it says of layers, which is the
    /// caller's to do.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for bytes that are no change: nothing is applied then.
    pub fn replay(&mut self, head: &[u8], body: Place, body_len: u64) -> Result<Next> {
        let puts = decode(head)?;
        let data = puts.iter().fold(0_u64, |sum, put| match put {
            Put::Data { len, .. } => sum.saturating_add(*len),
            _ => sum,
        });
        if data != body_len {
            return Err(bad("its body does not have the stated length"));
        }
        if let [Put::Part(part, parts), puts @ ..] = &puts[..] {
            return self.replay_part(*part, *parts, puts, head);
        }
        // Whoever began one was killed, or found no room.
        self.parts.clear();
        match puts[..] {
            [Put::Seal(layer)] => return Ok(Next::Sealed(layer)),
            [Put::Stand(layer, on)] => return Ok(Next::Stands(layer, on)),
            _ => {}
        }
        if puts.iter().any(is_alone) {
            return Err(bad("it begins a layer and changes something"));
        }
        let mut body = Some(body);
        for put in &puts {
            self.apply(put, &mut body);
        }
        Ok(Next::Changed)
    }

    /// Applies the puts that `head` consists of, none of which has bytes in a body.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for bytes that are no change: nothing is applied then.
    pub(crate) fn apply_all(&mut self, head: &[u8]) -> Result<()> {
        decode(head)?.iter().for_each(|put| self.apply(put, &mut None));
        Ok(())
    }

    /// Keeps a part of a change; with the last one, all are applied.
    fn replay_part(
        &mut self,
        part: u64,
        parts: u64,
        puts: &[Put<'_>],
        head: &[u8],
    ) -> Result<Next> {
        if part == 1 {
            self.parts.clear();
        }
        let is_last = part == parts;
        let (puts, sealed) = match puts {
            [puts @ .., Put::Seal(layer)] if is_last => (puts, Some(*layer)),
            puts => (puts, None),
        };
        let has_data = puts.iter().any(|put| matches!(put, Put::Data { .. }));
        if part == 0 || part > parts || has_data || puts.iter().any(is_alone) {
            return Err(bad("it is no part of a change"));
        }
        if self.parts.len() as u64 != part - 1 {
            return Err(bad("the part of the change before it is missing"));
        }
        if !is_last {
            self.parts.push(head.into());
            return Ok(Next::Changed);
        }
        for head in std::mem::take(&mut self.parts) {
            self.apply_all(&head)?;
        }
        puts.iter().for_each(|put| self.apply(put, &mut None));
        Ok(sealed.map_or(Next::Changed, Next::Sealed))
    }

    /// Whether the change that `head` holds is of an inode that a change before it should have made and has not, since it
    /// is lost. Bytes that are no change are of none.
    pub(crate) fn misses(&self, head: &[u8]) -> bool {
        let Ok(puts) = decode(head) else { return false };
        let is_named =
            |new: Ino| puts.iter().any(|put| matches!(put, Put::Add { ino, .. } if *ino == new));
        puts.iter().any(|put| match put {
            Put::Inode(ino, inode) => {
                ino.is_new() && inode.nlink > 0 && self.node(*ino).is_none() && !is_named(*ino)
            }
            _ => false,
        })
    }

    /// Takes what has changed since the last call.
    pub(crate) fn take_dirty(&mut self) -> Dirty {
        std::mem::take(&mut self.dirty)
    }

    /// Takes back what was taken and could not be written.
    pub(crate) fn give_back(&mut self, dirty: Dirty) {
        self.dirty.extend(dirty);
    }

    /// Whether something has changed since the last drain began.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    /// Takes from `after` where the bytes of a drained file lie.
    pub(crate) fn settle(&mut self, ino: Ino, before: &Extents, after: &Extents) {
        if let Some(Node { body: Body::File(extents), .. }) = self.node_mut(ino) {
            extents.settle(before, after);
        }
    }

    /// The inodes that have no name any more, in order.
    pub(crate) fn orphans(&self) -> Vec<Ino> {
        self.nameless.iter().copied().collect()
    }

    /// Asserts that no inode without a name is missed.
    #[cfg(test)]
    pub(crate) fn assert_orphans(&self) {
        let found = self.nodes.iter().filter(|(_, node)| node.inode.nlink == 0);
        assert_eq!(self.orphans(), found.map(|(&ino, _)| ino).collect::<Vec<_>>());
    }

    /// Takes note that an inode has so many names now.
    fn count_names(&mut self, ino: Ino, names: u32) {
        if names == 0 {
            self.nameless.insert(ino);
        } else if !self.nameless.is_empty() {
            self.nameless.remove(&ino);
        }
    }

    fn change_file(&mut self, ino: Ino, range: Range<u64>, source: Option<Source>) {
        self.dirty.inodes.insert(ino);
        let Some(node) = self.node_mut(ino) else { return };
        if matches!(node.body, Body::Base) {
            node.body = Body::File(Box::default());
        }
        if let Body::File(extents) = &mut node.body {
            match source {
                Some(source) => extents.set(range, source),
                None => extents.clear(range),
            }
        }
    }

    fn forget(&mut self, ino: Ino) {
        self.dirty.inodes.insert(ino);
        self.nameless.remove(&ino);
        if let Some(node) = self.nodes.remove(&ino)
            && let Body::Directory(directory) = &node.body
        {
            for name in directory.names() {
                self.dirty.name(ino, name);
            }
        }
    }

    fn insert(&mut self, ino: Ino, node: Node) {
        self.nodes.insert(ino, Arc::new(node));
    }

    /// An inode to be changed: its own from now on, whoever shared it.
    fn node_mut(&mut self, ino: Ino) -> Option<&mut Node> {
        self.nodes.get_mut(&ino).map(Arc::make_mut)
    }

    fn directory_mut(&mut self, ino: Ino) -> Option<&mut Directory> {
        match &mut self.node_mut(ino)?.body {
            Body::Directory(directory) => Some(directory),
            _ => None,
        }
    }
}

impl Node {
    /// An extended attribute.
    pub fn xattr(&self, name: &[u8]) -> Option<&[u8]> {
        self.xattrs.as_ref()?.get(name).map(|value| &**value)
    }

    fn set_xattr(&mut self, name: &[u8], value: Option<&[u8]>) {
        match value {
            Some(value) => {
                self.xattrs.get_or_insert_default().insert(name.into(), value.into());
            }
            None => {
                if let Some(xattrs) = &mut self.xattrs {
                    xattrs.remove(name);
                    if xattrs.is_empty() {
                        self.xattrs = None;
                    }
                }
            }
        }
    }
}

impl Body {
    /// The content of a new inode.
    fn new(kind: NodeKind) -> Self {
        match kind {
            NodeKind::File => Self::File(Box::default()),
            NodeKind::Directory => Self::Directory(Box::default()),
            NodeKind::Symlink => Self::Target(Box::default()),
            _ => Self::Nothing,
        }
    }
}
