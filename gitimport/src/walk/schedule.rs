//! Which tree to read or to build next.
//!
//! A tree is read when a tree above it was, and built when all its subtrees were. The newest work
//! comes first, so that few trees wait at any time.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use agentfs_engine::GitOid;
use agentfs_engine::tree::Subtree;

use super::Key;
use crate::convert::Scope;
use crate::error::{Error, Result};
use crate::tree::GitTree;

/// A tree that is not built yet.
type NodeId = usize;

pub(super) struct Schedule {
    /// Leaf lock.
    state: Mutex<State>,
    /// A job more, or the end.
    changed: Condvar,
}

struct State {
    nodes: Vec<Node>,
    free: Vec<NodeId>,
    known: HashMap<Key, Known>,
    jobs: Vec<(NodeId, Stage)>,
    running: usize,
    /// The root, or the first error.
    outcome: Option<Result<Done>>,
}

struct Node {
    key: Key,
    name: Box<[u8]>,
    /// The tree through which it was found first, which waits for it.
    parent: Option<NodeId>,
    /// How many levels lie above it on that path.
    depth: usize,
    /// All trees that wait for it.
    parents: Vec<NodeId>,
    /// For how many subtrees it waits itself, and what it needs once they are there.
    waiting: usize,
    parked: Option<Parked>,
}

enum Known {
    Done(Done),
    Pending(NodeId),
}

/// A directory object that exists, with the number of levels in it or a bound of that.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    pub(super) subtree: Subtree,
    pub(super) height: u32,
}

/// A subtree as its parent found it.
pub(super) struct Child {
    pub(super) key: Key,
    pub(super) name: Box<[u8]>,
    /// If the store knows it.
    pub(super) stored: Option<Done>,
}

/// A tree that waits for its subtrees.
pub(super) struct Parked {
    pub(super) scope: Scope,
    /// The tree, if it was worth its memory.
    pub(super) tree: Option<GitTree>,
}

/// Something to do.
pub(super) struct Job {
    pub(super) id: NodeId,
    pub(super) key: Key,
    pub(super) depth: usize,
    pub(super) stage: Stage,
}

pub(super) enum Stage {
    /// Read the tree called `name` in a directory of scope `outer`.
    Read { outer: Scope, name: Box<[u8]> },
    /// Build the directory object.
    Build(Parked),
}

impl Schedule {
    /// A schedule that begins with the tree `key`, called `name` in a directory of scope `outer`.
    pub(super) fn new(key: Key, outer: Scope, name: &[u8]) -> Self {
        let mut state = State {
            nodes: Vec::new(),
            free: Vec::new(),
            known: HashMap::new(),
            jobs: Vec::new(),
            running: 0,
            outcome: None,
        };
        state.add(key, name.into(), None, &outer);
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// Waits for a job; `None` when all is over. Every job is answered by one of [`Schedule::park`]
    /// that returns `None`, [`Schedule::finish`] and [`Schedule::fail`].
    pub(super) fn next(&self) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.outcome.is_some() {
                return None;
            }
            if let Some((id, stage)) = state.jobs.pop() {
                state.running += 1;
                let node = &state.nodes[id];
                return Some(Job { id, key: node.key, depth: node.depth, stage });
            }
            if state.running == 0 {
                // Trees that contain each other cannot exist, unless some stand for others.
                let oid = state.nodes[0].key.0;
                let why = "directories below it contain themselves, by objects in refs/replace";
                state.outcome = Some(Err(Error::corrupt(&oid, why)));
                self.changed.notify_all();
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the job of reading `id`, which has these subtrees: it is built once they are. If they
    /// all are, the job goes on, and what was to be parked is returned.
    pub(super) fn park(&self, id: NodeId, parked: Parked, children: Vec<Child>) -> Option<Parked> {
        let mut state = self.lock();
        let mut waiting = 0;
        for Child { key, name, stored } in children {
            let pending = match (state.known.entry(key), stored) {
                (Entry::Occupied(known), _) => match known.get() {
                    Known::Done(_) => continue,
                    Known::Pending(node) => *node,
                },
                (Entry::Vacant(place), Some(done)) => {
                    place.insert(Known::Done(done));
                    continue;
                }
                (Entry::Vacant(_), None) => state.add(key, name, Some(id), &parked.scope),
            };
            state.nodes[pending].parents.push(id);
            waiting += 1;
        }
        if waiting == 0 {
            return Some(parked);
        }
        state.nodes[id].waiting = waiting;
        state.nodes[id].parked = Some(parked);
        state.running -= 1;
        self.changed.notify_all();
        None
    }

    /// The directory objects of trees that are built.
    pub(super) fn built(&self, keys: impl Iterator<Item = Key>) -> Option<Vec<Done>> {
        let state = self.lock();
        keys.map(|key| match state.known.get(&key) {
            Some(Known::Done(done)) => Some(*done),
            _ => None,
        })
        .collect()
    }

    /// Ends the job of building `id`.
    pub(super) fn finish(&self, id: NodeId, done: Done) {
        let mut state = self.lock();
        let key = state.nodes[id].key;
        state.known.insert(key, Known::Done(done));
        state.running -= 1;
        for parent in std::mem::take(&mut state.nodes[id].parents) {
            let node = &mut state.nodes[parent];
            node.waiting -= 1;
            if node.waiting == 0
                && let Some(parked) = node.parked.take()
            {
                state.jobs.push((parent, Stage::Build(parked)));
            }
        }
        if state.nodes[id].parent.is_none() {
            state.outcome.get_or_insert(Ok(done));
        }
        state.free.push(id);
        self.changed.notify_all();
    }

    /// Ends a job, and all others when they are done.
    pub(super) fn fail(&self, error: Error) {
        let mut state = self.lock();
        state.running -= 1;
        state.outcome.get_or_insert(Err(error));
        self.changed.notify_all();
    }

    /// The path of `id`, empty for the root.
    pub(super) fn path(&self, id: NodeId) -> Vec<u8> {
        let state = self.lock();
        let mut names = Vec::new();
        let mut at = id;
        while let Some(parent) = state.nodes[at].parent {
            names.push(&*state.nodes[at].name);
            at = parent;
        }
        names.reverse();
        names.join(&b'/')
    }

    /// What became of the first tree, `oid`, once [`Schedule::next`] has returned `None` to all.
    pub(super) fn outcome(self, oid: &GitOid) -> Result<Done> {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let nothing = || Err(Error::corrupt(oid, "its import ended without a result"));
        state.outcome.unwrap_or_else(nothing)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics under this lock but on a defect, which `fail` then reports.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn add(&mut self, key: Key, name: Box<[u8]>, parent: Option<NodeId>, outer: &Scope) -> NodeId {
        let stage = Stage::Read { outer: outer.clone(), name: name.clone() };
        let depth = parent.map_or(0, |parent| self.nodes[parent].depth + 1);
        let node = Node { key, name, parent, depth, parents: Vec::new(), waiting: 0, parked: None };
        let id = match self.free.pop() {
            Some(id) => {
                self.nodes[id] = node;
                id
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() - 1
            }
        };
        self.known.insert(key, Known::Pending(id));
        self.jobs.push((id, stage));
        id
    }
}
