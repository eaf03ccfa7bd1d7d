//! Operations as values, and how a worktree is asked to do them.

use crate::error::Result;
use crate::id::Ino;
use crate::worktree::{
    Allocate, Attributes, Caller, NewNode, NodeKind, RenameMode, Seek, SetAttributes, Worktree,
    XattrMode,
};

/// What is to be made.
#[derive(Clone, Debug)]
pub(in crate::worktree) enum New {
    File,
    Directory,
    Symlink(Vec<u8>),
    Special(NodeKind, u32),
}

/// An operation on a worktree.
#[derive(Clone, Debug)]
pub(in crate::worktree) enum Op {
    Create { caller: Caller, parent: Ino, name: Vec<u8>, permissions: u16, new: New },
    Link { ino: Ino, parent: Ino, name: Vec<u8> },
    Unlink { parent: Ino, name: Vec<u8> },
    RemoveDirectory { parent: Ino, name: Vec<u8> },
    Rename { from: (Ino, Vec<u8>), to: (Ino, Vec<u8>), mode: RenameMode },
    Write { ino: Ino, offset: u64, data: Vec<u8>, kill_set_id: bool },
    SetAttributes { caller: Caller, ino: Ino, set: SetAttributes },
    Allocate { caller: Caller, ino: Ino, what: Allocate, offset: u64, len: u64 },
    CopyRange { caller: Caller, from: (Ino, u64), to: (Ino, u64), len: u64 },
    SetXattr { ino: Ino, name: Vec<u8>, value: Vec<u8>, mode: XattrMode },
    RemoveXattr { ino: Ino, name: Vec<u8> },
    Release { ino: Ino },
    Lookup { parent: Ino, name: Vec<u8> },
    Read { ino: Ino, offset: u64, len: usize },
    Seek { ino: Ino, offset: u64, what: Seek },
    List { dir: Ino, at_once: usize },
}

/// What an operation returned.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::worktree) enum Outcome {
    Done,
    Attributes(Attributes),
    Copied(u64),
    Found(Option<Ino>),
    Bytes(Vec<u8>),
    Offset(Option<u64>),
    Names(Vec<(Vec<u8>, Ino)>),
}

impl Op {
    pub(super) fn run(&self, worktree: &Worktree) -> Result<Outcome> {
        let done = |()| Outcome::Done;
        match self {
            Self::Create { caller, parent, name, permissions, new } => {
                let new = match new {
                    New::File => NewNode::File,
                    New::Directory => NewNode::Directory,
                    New::Symlink(target) => NewNode::Symlink(target),
                    New::Special(kind, rdev) => NewNode::Special(*kind, *rdev),
                };
                let created = worktree.create(*caller, *parent, name, *permissions, new);
                created.map(Outcome::Attributes)
            }
            Self::Link { ino, parent, name } => {
                worktree.link(*ino, *parent, name).map(Outcome::Attributes)
            }
            Self::Unlink { parent, name } => worktree.unlink(*parent, name).map(done),
            Self::RemoveDirectory { parent, name } => {
                worktree.remove_directory(*parent, name).map(done)
            }
            Self::Rename { from, to, mode } => {
                worktree.rename(from.0, &from.1, to.0, &to.1, *mode).map(done)
            }
            Self::Write { ino, offset, data, kill_set_id } => {
                worktree.write(*ino, *offset, data, *kill_set_id).map(done)
            }
            Self::SetAttributes { caller, ino, set } => {
                worktree.set_attributes(*caller, *ino, set).map(Outcome::Attributes)
            }
            Self::Allocate { caller, ino, what, offset, len } => {
                worktree.allocate(*caller, *ino, *what, *offset, *len).map(done)
            }
            Self::CopyRange { caller, from, to, len } => {
                let copied = worktree.copy_range(*caller, from.0, from.1, to.0, to.1, *len);
                copied.map(Outcome::Copied)
            }
            Self::SetXattr { ino, name, value, mode } => {
                worktree.set_xattr(*ino, name, value, *mode).map(done)
            }
            Self::RemoveXattr { ino, name } => worktree.remove_xattr(*ino, name).map(done),
            Self::Release { ino } => {
                worktree.release(*ino);
                Ok(Outcome::Done)
            }
            Self::Lookup { parent, name } => {
                let found = worktree.lookup(*parent, name)?;
                Ok(Outcome::Found(found.map(|found| found.ino)))
            }
            Self::Read { ino, offset, len } => {
                let mut bytes = vec![0xee; *len];
                let read = worktree.read(*ino, *offset, &mut bytes)?;
                bytes.truncate(read);
                Ok(Outcome::Bytes(bytes))
            }
            Self::Seek { ino, offset, what } => {
                worktree.seek(*ino, *offset, *what).map(Outcome::Offset)
            }
            Self::List { dir, at_once } => list(worktree, *dir, *at_once).map(Outcome::Names),
        }
    }
}

/// Lists a directory a few entries at a time. Sorted: the order is the worktree's to choose.
fn list(worktree: &Worktree, dir: Ino, at_once: usize) -> Result<Vec<(Vec<u8>, Ino)>> {
    let mut names = Vec::new();
    let mut cookie = 0;
    loop {
        let mut taken = 0;
        worktree.read_directory(dir, cookie, at_once.is_multiple_of(2), &mut |entry| {
            if taken == at_once {
                return false;
            }
            taken += 1;
            cookie = entry.cookie;
            names.push((entry.name.to_vec(), entry.ino));
            true
        })?;
        if taken == 0 {
            names.retain(|(name, _)| name != b"." && name != b"..");
            names.sort();
            return Ok(names);
        }
    }
}
