//! The clean base of a worktree: one immutable tree, numbered in pre-order.
//!
//! The root has inode [`Ino::ROOT`]; the entry at position `p` of the pre-order below it has
//! `Ino::FIRST + p`. So numbers are a function of the tree alone: they survive remounts and need
//! no table, and mounting costs the same for any number of files. Directory objects are loaded when
//! they are first entered and stay while any base that contains them is in use; equal subtrees of
//! different commits are one node. One that is damaged is rebuilt from the repository when it is
//! entered.
//!
//! Reading takes no lock: a node is reached through `OnceLock`s from the root. Only loading a
//! directory for the first time takes the lock of [`NodeCache`], which is never held while the
//! store is read.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, Weak};

use tracing::{error, warn};

use crate::error::{Error, Result};
use crate::id::{Ino, TreeId};
use crate::limits::TREE_DEPTH_MAX;
use crate::source::ObjectSource;
use crate::store::Store;
use crate::tree::{Entry, EntryKind, Tree};

/// A directory object in memory, shared by every base that contains it.
#[derive(Debug)]
pub struct Node {
    id: TreeId,
    tree: Tree,
    children: Box<[OnceLock<Arc<Node>>]>,
}

/// Directory objects in memory by id, held only as long as a base uses them.
#[derive(Debug, Default)]
pub struct NodeCache {
    /// Leaf lock: nothing else is taken under it.
    nodes: Mutex<HashMap<TreeId, Weak<Node>>>,
}

impl NodeCache {
    /// The node of directory object `id`, which `load` loads if it is not in memory.
    fn get(&self, id: TreeId, load: impl FnOnce() -> Result<Tree>) -> Result<Arc<Node>> {
        if let Some(node) = self.lock().get(&id).and_then(Weak::upgrade) {
            return Ok(node);
        }
        let tree = load()?;
        let children = (0..tree.directories()).map(|_| OnceLock::new()).collect();
        let loaded = Arc::new(Node { id, tree, children });
        let mut nodes = self.lock();
        // Another thread may have loaded it meanwhile; all must share one node.
        if let Some(node) = nodes.get(&id).and_then(Weak::upgrade) {
            return Ok(node);
        }
        if nodes.len() >= 1024 && nodes.len().is_power_of_two() {
            nodes.retain(|_, node| node.strong_count() > 0);
        }
        nodes.insert(id, Arc::downgrade(&loaded));
        Ok(loaded)
    }

    /// The directory objects that something uses.
    pub(crate) fn live(&self) -> Vec<TreeId> {
        let nodes = self.lock();
        nodes.iter().filter(|(_, node)| node.strong_count() > 0).map(|(id, _)| *id).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<TreeId, Weak<Node>>> {
        // A panic while the map was locked cannot leave it half-changed.
        self.nodes.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A numbered tree.
pub struct Base {
    store: Arc<Store>,
    source: Option<Arc<dyn ObjectSource>>,
    root: Arc<Node>,
}

/// A directory of a base, with its number.
#[derive(Clone, Copy, Debug)]
pub struct Dir<'a> {
    base: &'a Base,
    node: &'a Arc<Node>,
    ino: Ino,
    parent: Ino,
}

impl fmt::Debug for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Base").field("root", &self.root.id).finish_non_exhaustive()
    }
}

/// Loads directory object `id` of the directory `path`. If it is damaged or gone, it is first rebuilt
/// from `source`.
fn load(
    store: &Store,
    source: Option<&dyn ObjectSource>,
    id: TreeId,
    path: impl FnOnce() -> Result<Vec<u8>>,
) -> Result<Tree> {
    let damage = match store.tree(id) {
        Err(damage) if damage.is_corruption() => damage,
        loaded => return loaded,
    };
    let path = path()?;
    let shown = String::from_utf8_lossy(&path).into_owned();
    let Some(source) = source else {
        error!(path = shown, %damage, "a directory cannot be read and no repository has it");
        return Err(damage);
    };
    match source.rebuild_tree(store, &path, id).and_then(|()| store.tree(id)) {
        Ok(tree) => {
            warn!(path = shown, %damage, "a damaged directory was rebuilt from the repository");
            Ok(tree)
        }
        Err(why) => {
            error!(path = shown, %damage, %why, "a directory cannot be read nor rebuilt");
            Err(damage)
        }
    }
}

/// Where an inode number leads.
#[derive(Clone, Copy, Debug)]
pub enum Location<'a> {
    /// The root directory.
    Root(Dir<'a>),
    /// Entry `index` of a directory.
    Entry(Dir<'a>, usize),
}

impl Base {
    /// Opens the tree `root`. Its directory objects that turn out to be damaged or gone are rebuilt
    /// from `source`, the commit that the tree was made from.
    ///
    /// # Errors
    /// [`Error::MissingTree`], or what reading the directory object meets, where it cannot be
    /// rebuilt.
    pub fn open(
        store: Arc<Store>,
        source: Option<Arc<dyn ObjectSource>>,
        root: TreeId,
    ) -> Result<Arc<Self>> {
        let load = || load(&store, source.as_deref(), root, || Ok(Vec::new()));
        let node = store.nodes().get(root, load)?;
        Ok(Arc::new(Self { store, source, root: node }))
    }

    /// The id of the root directory object.
    pub fn id(&self) -> TreeId {
        self.root.id
    }

    /// Entries below the root, on all levels.
    pub fn entries(&self) -> u32 {
        self.root.tree.subtree(self.root.id).descendants
    }

    /// The root directory.
    pub fn root(&self) -> Dir<'_> {
        Dir { base: self, node: &self.root, ino: Ino::ROOT, parent: Ino::ROOT }
    }

    /// Finds an inode by its number.
    ///
    /// # Errors
    /// [`Error::NoInode`] for a number that is not in this base, [`Error::Corrupt`] for directory
    /// objects that contradict each other, or what loading one meets.
    pub fn locate(&self, ino: Ino) -> Result<Location<'_>> {
        self.descend(ino, |_| ())
    }

    /// Descends from the root to an inode; `step` sees each entry on the way, the inode's own last.
    fn descend<'a>(&'a self, ino: Ino, mut step: impl FnMut(Entry<'a>)) -> Result<Location<'a>> {
        let mut dir = self.root();
        if ino == Ino::ROOT {
            return Ok(Location::Root(dir));
        }
        let mut offset = ino
            .0
            .checked_sub(Ino::FIRST.0)
            .and_then(|offset| u32::try_from(offset).ok())
            .ok_or(Error::NoInode(ino))?;
        for _ in 0..=TREE_DEPTH_MAX {
            let index = dir.tree().at(offset).ok_or(Error::NoInode(ino))?;
            step(dir.entry(index));
            let before = dir.tree().before(index);
            if before == offset {
                return Ok(Location::Entry(dir, index));
            }
            offset -= before + 1;
            dir = dir.child(index)?;
        }
        Err(Error::corrupt(format!("tree {}", self.id()), "it is nested too deeply"))
    }

    /// Finds the directory with number `ino`.
    ///
    /// # Errors
    /// [`Error::NotDirectory`] if it is something else; else as [`Base::locate`]. A gitlink is a
    /// directory without an object: `Ok(None)`.
    pub fn directory(&self, ino: Ino) -> Result<Option<Dir<'_>>> {
        match self.locate(ino)? {
            Location::Root(dir) => Ok(Some(dir)),
            Location::Entry(dir, index) => match dir.entry(index).kind {
                EntryKind::Directory => dir.child(index).map(Some),
                EntryKind::Gitlink => Ok(None),
                _ => Err(Error::NotDirectory(ino)),
            },
        }
    }

    /// The number of the directory that holds an inode; the root is in itself.
    ///
    /// # Errors
    /// As [`Base::locate`].
    pub fn parent(&self, ino: Ino) -> Result<Ino> {
        Ok(match self.locate(ino)? {
            Location::Root(dir) | Location::Entry(dir, _) => dir.ino(),
        })
    }

    /// The path of an inode relative to the root, empty for the root itself.
    ///
    /// # Errors
    /// As [`Base::locate`].
    pub fn path(&self, ino: Ino) -> Result<Vec<u8>> {
        let mut path = Vec::new();
        self.descend(ino, |entry| {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(entry.name);
        })?;
        Ok(path)
    }
}

impl<'a> Dir<'a> {
    /// Its inode number.
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// The inode number of the directory above it; the root is above itself.
    pub fn parent(&self) -> Ino {
        self.parent
    }

    /// Its directory object.
    pub fn tree(&self) -> &'a Tree {
        &self.node.tree
    }

    /// The id of its directory object.
    pub fn id(&self) -> TreeId {
        self.node.id
    }

    /// Entry `index`.
    ///
    /// # Panics
    /// If `index` is not below the number of entries.
    pub fn entry(&self, index: usize) -> Entry<'a> {
        self.node.tree.entry(index)
    }

    /// The inode number of entry `index`.
    ///
    /// # Panics
    /// If `index` is not below the number of entries.
    pub fn ino_of(&self, index: usize) -> Ino {
        let first = match self.ino {
            Ino::ROOT => Ino::FIRST.0,
            ino => ino.0 + 1,
        };
        Ino(first + u64::from(self.node.tree.before(index)))
    }

    /// The subdirectory at entry `index`.
    ///
    /// # Errors
    /// [`Error::NotDirectory`] if it has no directory object, [`Error::Corrupt`] if the object is
    /// not the one that this directory recorded, or what loading it meets where it cannot be rebuilt.
    pub fn child(&self, index: usize) -> Result<Dir<'a>> {
        let ino = self.ino_of(index);
        let tree = &self.node.tree;
        let (Some(ordinal), Some(recorded)) = (tree.ordinal(index), tree.entry(index).subtree)
        else {
            return Err(Error::NotDirectory(ino));
        };
        let slot = &self.node.children[ordinal];
        let node = match slot.get() {
            Some(node) => node,
            None => {
                let Base { store, source, .. } = self.base;
                let path = || self.base.path(ino);
                let load = || load(store, source.as_deref(), recorded.id, path);
                let node = store.nodes().get(recorded.id, load)?;
                if node.tree.subtree(recorded.id) != recorded {
                    return Err(Error::corrupt(
                        format!("tree {}", self.id()),
                        format!("what it records of subtree {} is not so", recorded.id),
                    ));
                }
                slot.get_or_init(|| node)
            }
        };
        Ok(Dir { base: self.base, node, ino, parent: self.ino })
    }
}
