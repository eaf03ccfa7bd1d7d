//! A plain model of what a worktree is: maps of inodes and names, files as vectors of bytes. It has
//! no I/O, no overlay and no log, and decides on its own what POSIX makes of an operation.

mod apply;
mod herd;
mod history;
mod op;
mod script;
mod step;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

pub(super) use herd::{Herd, HerdStep, herd_steps};
pub(super) use history::History;
pub(super) use op::{New, Op};
pub(super) use script::fixed_steps;
pub(super) use step::{Step, steps};
use view::View;

use super::fixture::{BASE_OWNER, BASE_TIME, BaseEntry, GIT_FILE, base};
use super::{NodeKind, Timestamp, Worktree};
use crate::error::{Denial, Error};
use crate::id::Ino;

/// A moment as far as the model knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Time {
    /// This one.
    At(Timestamp),
    /// That of the operation that was just done.
    Now,
}

/// A file: its bytes, and which of them are not in a hole.
#[derive(Clone, Debug, Default)]
pub(super) struct FileBytes {
    bytes: Vec<u8>,
    data: Vec<bool>,
    /// Digest of the bytes, and how many of them are not in a hole.
    sum: OnceLock<([u8; 32], u64)>,
}

impl FileBytes {
    fn of(bytes: Vec<u8>) -> Self {
        let data = vec![true; bytes.len()];
        Self { bytes, data, sum: OnceLock::new() }
    }

    fn sum(&self) -> ([u8; 32], u64) {
        *self.sum.get_or_init(|| {
            let allocated = self.data.iter().filter(|data| **data).count() as u64;
            (*blake3::hash(&self.bytes).as_bytes(), allocated)
        })
    }

    fn resize(&mut self, len: usize) {
        self.bytes.resize(len, 0);
        self.data.resize(len, false);
    }
}

#[derive(Clone, Debug)]
pub(super) enum Body {
    File(Arc<FileBytes>),
    Target(Vec<u8>),
    Directory {
        entries: BTreeMap<Vec<u8>, Ino>,
        /// Where it is, or was before it was removed.
        parent: Ino,
        /// Its size: nothing that a branch does changes it.
        size: u64,
    },
    Nothing,
}

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) kind: NodeKind,
    pub(super) permissions: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) rdev: u32,
    pub(super) accessed: Time,
    pub(super) modified: Time,
    pub(super) changed: Time,
    pub(super) body: Body,
    pub(super) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Why the model refuses an operation. Where several reasons hold, POSIX leaves open which is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Denied(Denial),
    NotDirectory,
    IsDirectory,
    WrongKind,
}

impl Refusal {
    /// The refusal that an error of the engine is, if it is one.
    pub(super) fn of(error: &Error) -> Option<Self> {
        match error {
            Error::Denied(_, denial) => Some(Self::Denied(*denial)),
            Error::NotDirectory(_) => Some(Self::NotDirectory),
            Error::IsDirectory(_) => Some(Self::IsDirectory),
            Error::WrongKind(_) => Some(Self::WrongKind),
            _ => None,
        }
    }
}

/// The state of a worktree. Cloning it is cheap.
#[derive(Clone, Debug)]
pub(super) struct Model {
    /// Every inode that has a name, or had one and was not released.
    nodes: BTreeMap<Ino, Arc<Node>>,
    /// The highest number that a new inode was given.
    last_new: Ino,
}

impl Model {
    /// The base as it is seen through `worktree`, which is fresh: the numbers and the sizes of
    /// directories are its own to choose, all else is known.
    pub(super) fn of_base(worktree: &Worktree) -> Self {
        let mut model = Self { nodes: BTreeMap::new(), last_new: Ino::FIRST_NEW };
        model.last_new = Ino(Ino::FIRST_NEW.0 - 1);
        model.add_base_directory(worktree, Ino::ROOT, Ino::ROOT, base());
        let git_file = BaseEntry::File(GIT_FILE.to_vec());
        model.add_base(worktree, Ino::ROOT, b".git", git_file);
        model
    }

    fn add_base(&mut self, worktree: &Worktree, dir: Ino, name: &[u8], entry: BaseEntry) {
        let found = worktree.lookup(dir, name).expect("a lookup").expect("what is in the base");
        let (kind, permissions, body) = match entry {
            BaseEntry::Directory(entries) => {
                return self.enter(worktree, dir, name, found.ino, entries);
            }
            BaseEntry::Gitlink => return self.enter(worktree, dir, name, found.ino, Vec::new()),
            BaseEntry::File(bytes) => {
                (NodeKind::File, 0o644, Body::File(Arc::new(FileBytes::of(bytes))))
            }
            BaseEntry::Executable(bytes) => {
                (NodeKind::File, 0o755, Body::File(Arc::new(FileBytes::of(bytes))))
            }
            BaseEntry::Symlink(target) => (NodeKind::Symlink, 0o777, Body::Target(target)),
        };
        self.nodes.insert(found.ino, Arc::new(base_node(kind, permissions, body)));
        self.entries_mut(dir).insert(name.to_vec(), found.ino);
    }

    fn enter(
        &mut self,
        worktree: &Worktree,
        dir: Ino,
        name: &[u8],
        ino: Ino,
        entries: Vec<(&str, BaseEntry)>,
    ) {
        self.entries_mut(dir).insert(name.to_vec(), ino);
        self.add_base_directory(worktree, ino, dir, entries);
    }

    fn add_base_directory(
        &mut self,
        worktree: &Worktree,
        ino: Ino,
        parent: Ino,
        entries: Vec<(&str, BaseEntry)>,
    ) {
        let size = worktree.attributes(ino).expect("attributes").size;
        let body = Body::Directory { entries: BTreeMap::new(), parent, size };
        self.nodes.insert(ino, Arc::new(base_node(NodeKind::Directory, 0o755, body)));
        for (name, entry) in entries {
            self.add_base(worktree, ino, name.as_bytes(), entry);
        }
    }

    pub(super) fn node(&self, ino: Ino) -> Option<&Node> {
        self.nodes.get(&ino).map(|node| &**node)
    }

    fn node_mut(&mut self, ino: Ino) -> &mut Node {
        Arc::make_mut(self.nodes.get_mut(&ino).expect("an inode of the model"))
    }

    /// The entries of a directory; `None` for anything else.
    pub(super) fn entries(&self, dir: Ino) -> Option<&BTreeMap<Vec<u8>, Ino>> {
        match &self.node(dir)?.body {
            Body::Directory { entries, .. } => Some(entries),
            _ => None,
        }
    }

    fn entries_mut(&mut self, dir: Ino) -> &mut BTreeMap<Vec<u8>, Ino> {
        match &mut self.node_mut(dir).body {
            Body::Directory { entries, .. } => entries,
            other => panic!("{other:?} is no directory"),
        }
    }

    fn file_mut(&mut self, ino: Ino) -> &mut FileBytes {
        match &mut self.node_mut(ino).body {
            Body::File(file) => {
                let file = Arc::make_mut(file);
                file.sum = OnceLock::new();
                file
            }
            other => panic!("{other:?} is no file"),
        }
    }

    pub(super) fn inodes(&self) -> impl Iterator<Item = (Ino, &Node)> {
        self.nodes.iter().map(|(&ino, node)| (ino, &**node))
    }

    /// Every directory entry: directory, name, inode.
    pub(super) fn names(&self) -> impl Iterator<Item = (Ino, &[u8], Ino)> {
        self.nodes.keys().flat_map(|&dir| {
            let entries = self.entries(dir).into_iter().flatten();
            entries.map(move |(name, &ino)| (dir, name.as_slice(), ino))
        })
    }

    /// The link counts of all inodes: counted, not kept.
    pub(super) fn links(&self) -> BTreeMap<Ino, u32> {
        let mut links: BTreeMap<Ino, u32> = self.nodes.keys().map(|&ino| (ino, 0)).collect();
        // The root has a name: its own.
        for (_, _, ino) in self.names().chain([(Ino::ROOT, &b"."[..], Ino::ROOT)]) {
            *links.entry(ino).or_default() += 1;
        }
        for (ino, links) in &mut links {
            if let Some(entries) = self.entries(*ino).filter(|_| *links > 0) {
                let is_directory = |ino: &&Ino| self.entries(**ino).is_some();
                *links = 2 + entries.values().filter(is_directory).count() as u32;
            }
        }
        links
    }

    /// Inodes without a name.
    pub(super) fn orphans(&self) -> BTreeSet<Ino> {
        let without = self.links().into_iter().filter(|(_, links)| *links == 0);
        without.map(|(ino, _)| ino).collect()
    }

    fn is_orphan(&self, ino: Ino) -> bool {
        ino != Ino::ROOT && !self.names().any(|(_, _, named)| named == ino)
    }

    /// Nobody holds an inode any more: those without names are gone.
    pub(super) fn restart(&mut self) {
        for ino in self.orphans() {
            self.nodes.remove(&ino);
        }
    }

    /// Whether `at` is `dir` or somewhere below it.
    fn is_within(&self, mut at: Ino, dir: Ino) -> bool {
        loop {
            if at == dir {
                return true;
            }
            match self.node(at).map(|node| &node.body) {
                Some(Body::Directory { parent, .. }) if *parent != at => at = *parent,
                _ => return false,
            }
        }
    }
}

fn base_node(kind: NodeKind, permissions: u16, body: Body) -> Node {
    let time = Time::At(Timestamp { seconds: BASE_TIME, nanoseconds: 0 });
    let (uid, gid) = BASE_OWNER;
    Node {
        kind,
        permissions,
        uid,
        gid,
        rdev: 0,
        accessed: time,
        modified: time,
        changed: time,
        body,
        xattrs: BTreeMap::new(),
    }
}
