//! What the operations of a ledger mean.

use std::collections::BTreeMap;

use super::op::{NEW_DIRECTORY_MODE, NEW_FILE_MODE, Op};

/// Names relative to the directory, and the files that they name.
#[derive(Clone, Default)]
pub(super) struct Model {
    pub(super) nodes: BTreeMap<String, Node>,
    pub(super) files: BTreeMap<u64, FileState>,
}

#[derive(Clone)]
pub(super) enum Node {
    Directory(u32),
    /// Several names may be one file.
    File(u64),
    Link(String),
}

#[derive(Clone, Default)]
pub(super) struct FileState {
    pub(super) bytes: Vec<u8>,
    pub(super) mode: u32,
    /// The extended attribute [`super::op::ATTRIBUTE`].
    pub(super) attribute: Option<Vec<u8>>,
    /// The time of modification in seconds, if it was set after the last change.
    pub(super) modified: Option<i64>,
}

impl Model {
    /// Applies `op`; of a write, only the first `taken` bytes.
    pub(super) fn apply(&mut self, op: &Op, taken: usize) {
        match op {
            Op::Create { name, file } => {
                let state = FileState { mode: NEW_FILE_MODE, ..FileState::default() };
                self.files.insert(*file, state);
                self.nodes.insert(name.clone(), Node::File(*file));
            }
            Op::Write { name, at, .. } => {
                let mut new = op.bytes();
                new.truncate(taken);
                self.change(name, |state| {
                    let at = at.unwrap_or(state.bytes.len());
                    let end = at + new.len();
                    state.bytes.resize(state.bytes.len().max(end), 0);
                    state.bytes[at..end].copy_from_slice(&new);
                    state.modified = None;
                });
            }
            Op::Truncate { name, len } => self.change(name, |state| {
                state.bytes.resize(*len, 0);
                state.modified = None;
            }),
            Op::Mode { name, mode } => match self.nodes.get_mut(name) {
                Some(Node::Directory(old)) => *old = *mode,
                _ => self.change(name, |state| state.mode = *mode),
            },
            Op::Times { name, seconds } => {
                self.change(name, |state| state.modified = Some(*seconds));
            }
            Op::Attribute { name, value } => {
                self.change(name, |state| state.attribute.clone_from(value));
            }
            Op::Rename { from, to } => self.rename(from, to),
            Op::HardLink { from, to } => {
                let node = self.nodes[from].clone();
                self.nodes.insert(to.clone(), node);
            }
            Op::Symlink { name, target } => {
                self.nodes.insert(name.clone(), Node::Link(target.clone()));
            }
            Op::MakeDirectory { name } => {
                self.nodes.insert(name.clone(), Node::Directory(NEW_DIRECTORY_MODE));
            }
            Op::Remove { name } | Op::RemoveDirectory { name } => {
                self.nodes.remove(name);
            }
            Op::SyncDirectory { .. } => {}
        }
        let named: Vec<u64> = self.nodes.values().filter_map(Node::file).collect();
        self.files.retain(|file, _| named.contains(file));
    }

    /// Whether a directory has nothing in it.
    pub(super) fn is_empty(&self, dir: &str) -> bool {
        let inside = format!("{dir}/");
        self.nodes.range(inside.clone()..).next().is_none_or(|(name, _)| !name.starts_with(&inside))
    }

    /// The file `name`.
    pub(super) fn file(&self, name: &str) -> Option<&FileState> {
        self.files.get(&self.nodes.get(name)?.file()?)
    }

    fn change(&mut self, name: &str, change: impl FnOnce(&mut FileState)) {
        let file = self.nodes.get(name).and_then(Node::file);
        change(file.and_then(|file| self.files.get_mut(&file)).expect("operations name files"));
    }

    fn rename(&mut self, from: &str, to: &str) {
        let inside = format!("{from}/");
        let moved: Vec<String> = self
            .nodes
            .keys()
            .filter(|name| *name == from || name.starts_with(&inside))
            .cloned()
            .collect();
        for name in moved {
            let node = self.nodes.remove(&name).expect("it was just found");
            self.nodes.insert(format!("{to}{}", &name[from.len()..]), node);
        }
    }
}

impl Node {
    pub(super) fn file(&self) -> Option<u64> {
        match self {
            Self::File(file) => Some(*file),
            _ => None,
        }
    }
}
