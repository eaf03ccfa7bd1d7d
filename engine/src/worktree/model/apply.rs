//! What an operation does to the model, and when it is refused.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::op::{New, Op, Outcome};
use super::{Body, FileBytes, Model, Node, Refusal, Time};
use crate::error::{Denial, Result};
use crate::id::Ino;
use crate::limits::{FILE_BYTES_MAX, NAME_BYTES_MAX, SYMLINK_BYTES_MAX};
use crate::limits::{XATTR_BYTES_MAX, XATTRS_BYTES_MAX};
use crate::worktree::{
    Allocate, Caller, NodeKind, RenameMode, Seek, SetAttributes, SetTime, Timestamp, Worktree,
    XattrMode,
};

fn clock() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    Timestamp { seconds: since.as_secs() as i64, nanoseconds: since.subsec_nanos() }
}

/// Why this cannot be the name of a new entry.
fn bad_name(name: &[u8]) -> Option<Refusal> {
    let denial = match name {
        b"" | b"." | b".." => Denial::Invalid,
        _ if name.len() > NAME_BYTES_MAX => Denial::NameTooLong,
        _ if name.iter().any(|byte| matches!(byte, b'/' | 0)) => Denial::Invalid,
        _ => return None,
    };
    Some(Refusal::Denied(denial))
}

impl Model {
    /// Does `op` to `worktree` and to the model, and compares what comes of it. An error is one of
    /// the device: whether the operation was done is not known then, and the model does not do it.
    ///
    /// # Panics
    /// If the worktree does something else than the model.
    pub(in crate::worktree) fn perform(
        &mut self,
        worktree: &Worktree,
        op: &Op,
    ) -> Result<Option<Outcome>> {
        let refusals = self.refusals(op);
        let before = clock();
        let outcome = match op.run(worktree) {
            Ok(outcome) => outcome,
            Err(error) => {
                let refusal = Refusal::of(&error).ok_or(error)?;
                assert!(refusals.contains(&refusal), "{op:?}: {refusal:?}, not {refusals:?}");
                return Ok(None);
            }
        };
        let after = clock();
        assert_eq!(refusals, [], "{op:?} was done");
        self.apply(op, &outcome);
        self.settle_times(worktree, before, after)?;
        Ok(Some(outcome))
    }

    /// Learns what the operation of just now left open: the moments.
    fn settle_times(
        &mut self,
        worktree: &Worktree,
        before: Timestamp,
        after: Timestamp,
    ) -> Result<()> {
        let is_open = |time| !matches!(time, Time::At(_));
        let open = self.inodes().filter(|(_, node)| {
            [node.accessed, node.modified, node.changed].into_iter().any(is_open)
        });
        let open: Vec<Ino> = open.map(|(ino, _)| ino).collect();
        for ino in open {
            let attributes = worktree.attributes(ino)?;
            let node = self.node_mut(ino);
            for (time, found) in [
                (&mut node.accessed, attributes.accessed),
                (&mut node.modified, attributes.modified),
                (&mut node.changed, attributes.changed),
            ] {
                let is_now = (before..=after).contains(&found);
                let right = match *time {
                    Time::At(expected) => found == expected,
                    Time::Now => is_now,
                };
                assert!(right, "inode {ino}: {found:?} for {time:?}, now {before:?} to {after:?}");
                *time = Time::At(found);
            }
        }
        Ok(())
    }

    /// Every reason why `op` must be refused.
    fn refusals(&self, op: &Op) -> Vec<Refusal> {
        let mut why = Vec::new();
        let mut denied = |is_so: bool, denial| {
            if is_so {
                why.push(Refusal::Denied(denial));
            }
        };
        match op {
            Op::Create { parent, name, new, .. } => {
                denied(self.is_named(*parent, name), Denial::Exists);
                if let New::Symlink(target) = new {
                    denied(target.len() as u64 > SYMLINK_BYTES_MAX, Denial::NameTooLong);
                }
                why.extend(self.bad_place(*parent, name));
            }
            Op::Link { ino, parent, name } => {
                denied(self.entries(*ino).is_some(), Denial::NotPermitted);
                denied(self.is_orphan(*ino), Denial::NoEntry);
                denied(self.is_named(*parent, name), Denial::Exists);
                why.extend(self.bad_place(*parent, name));
            }
            Op::Unlink { parent, name } => match self.find(*parent, name) {
                Err(refusal) => why.push(refusal),
                Ok(ino) if self.entries(ino).is_some() => why.push(Refusal::IsDirectory),
                Ok(_) => {}
            },
            Op::RemoveDirectory { parent, name } => match self.find(*parent, name) {
                Err(refusal) => why.push(refusal),
                Ok(ino) => match self.entries(ino) {
                    None => why.push(Refusal::NotDirectory),
                    Some(entries) => denied(!entries.is_empty(), Denial::NotEmpty),
                },
            },
            Op::Rename { from, to, mode } => why = self.rename_refusals(from, to, *mode),
            Op::Write { ino, offset, data, .. } => {
                denied(ends_too_far(*offset, data.len() as u64), Denial::TooLarge);
                why.extend(self.not_a_file(*ino));
            }
            Op::SetAttributes { ino, set, .. } => {
                if let Some(size) = set.size {
                    denied(size > FILE_BYTES_MAX, Denial::TooLarge);
                    why.extend(self.not_a_file(*ino));
                }
            }
            Op::Allocate { ino, offset, len, .. } => {
                denied(*len == 0, Denial::Invalid);
                denied(ends_too_far(*offset, *len), Denial::TooLarge);
                why.extend(self.not_a_file(*ino));
            }
            Op::CopyRange { from, to, len, .. } => {
                denied(self.file(from.0).is_none(), Denial::Invalid);
                let len = self.copied(*from, *len);
                denied(ends_too_far(to.1, len), Denial::TooLarge);
                let meet = from.1 < to.1.saturating_add(len) && to.1 < from.1.saturating_add(len);
                denied(from.0 == to.0 && meet, Denial::Invalid);
                why.extend(self.not_a_file(to.0));
            }
            Op::SetXattr { ino, name, value, mode } => {
                let bad = name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(&0);
                denied(bad, Denial::Invalid);
                denied(value.len() > XATTR_BYTES_MAX, Denial::AttributeTooLarge);
                let xattrs = &self.node(*ino).expect("an inode").xattrs;
                let there = xattrs.contains_key(name);
                denied(there && *mode == XattrMode::Create, Denial::Exists);
                denied(!there && *mode == XattrMode::Replace, Denial::NoAttribute);
                let others = xattrs.iter().filter(|(other, _)| *other != name);
                let others: usize = others.map(|(name, value)| name.len() + value.len()).sum();
                let total = others + name.len() + value.len();
                denied(total > XATTRS_BYTES_MAX, Denial::NoSpaceForAttribute);
            }
            Op::RemoveXattr { ino, name } => {
                let there = self.node(*ino).expect("an inode").xattrs.contains_key(name);
                denied(!there, Denial::NoAttribute);
            }
            Op::Lookup { parent, .. } | Op::List { dir: parent, .. } => {
                why.extend(self.entries(*parent).is_none().then_some(Refusal::NotDirectory));
            }
            Op::Read { ino, .. } => why.extend(match &self.node(*ino).expect("an inode").body {
                Body::File(_) => None,
                Body::Directory { .. } => Some(Refusal::IsDirectory),
                _ => Some(Refusal::WrongKind),
            }),
            Op::Seek { ino, .. } => denied(self.file(*ino).is_none(), Denial::Invalid),
            Op::Release { .. } => {}
        }
        why
    }

    fn rename_refusals(
        &self,
        from: &(Ino, Vec<u8>),
        to: &(Ino, Vec<u8>),
        mode: RenameMode,
    ) -> Vec<Refusal> {
        let mut why: Vec<_> = self.bad_place(to.0, &to.1).collect();
        let moved = match self.find(from.0, &from.1) {
            Ok(moved) => moved,
            Err(refusal) => {
                why.push(refusal);
                return why;
            }
        };
        let replaced = self.find(to.0, &to.1).ok();
        let is_directory = |ino| self.entries(ino).is_some();
        let mut denied = |is_so: bool, denial| {
            if is_so {
                why.push(Refusal::Denied(denial));
            }
        };
        denied(mode == RenameMode::NoReplace && replaced.is_some(), Denial::Exists);
        denied(mode == RenameMode::Exchange && replaced.is_none(), Denial::NoEntry);
        if replaced == Some(moved) {
            return why;
        }
        denied(is_directory(moved) && self.is_within(to.0, moved), Denial::Invalid);
        let Some(replaced) = replaced else { return why };
        if mode == RenameMode::Exchange {
            denied(is_directory(replaced) && self.is_within(from.0, replaced), Denial::Invalid);
            return why;
        }
        let entries = self.entries(replaced).map_or(0, BTreeMap::len);
        denied(is_directory(moved) && entries > 0, Denial::NotEmpty);
        match (is_directory(moved), is_directory(replaced)) {
            (true, false) => why.push(Refusal::NotDirectory),
            (false, true) => why.push(Refusal::IsDirectory),
            _ => {}
        }
        why
    }

    /// Does what was not refused.
    fn apply(&mut self, op: &Op, outcome: &Outcome) {
        match op {
            Op::Create { caller, parent, name, permissions, new } => {
                let Outcome::Attributes(made) = outcome else { panic!("{outcome:?}") };
                assert!(made.ino > self.last_new, "number {} is used again", made.ino);
                self.last_new = made.ino;
                self.create(made.ino, *caller, *parent, *permissions, new);
                self.entries_mut(*parent).insert(name.clone(), made.ino);
                self.entries_changed(*parent);
            }
            Op::Link { ino, parent, name } => {
                self.node_mut(*ino).changed = Time::Now;
                self.entries_mut(*parent).insert(name.clone(), *ino);
                self.entries_changed(*parent);
            }
            Op::Unlink { parent, name } | Op::RemoveDirectory { parent, name } => {
                let removed = self.entries_mut(*parent).remove(name).expect("an entry");
                self.node_mut(removed).changed = Time::Now;
                self.entries_changed(*parent);
            }
            Op::Rename { from, to, mode } => self.rename(from, to, *mode),
            Op::Write { ino, offset, data, kill_set_id } if !data.is_empty() => {
                let (start, end) = (*offset as usize, *offset as usize + data.len());
                let file = self.file_mut(*ino);
                file.resize(file.bytes.len().max(end));
                file.bytes[start..end].copy_from_slice(data);
                file.data[start..end].fill(true);
                self.content_changed(*ino, *kill_set_id);
            }
            Op::SetAttributes { caller, ino, set } => self.set_attributes(*caller, *ino, set),
            Op::Allocate { caller, ino, what, offset, len } => {
                self.allocate(*caller, *ino, *what, *offset as usize, *len as usize);
            }
            Op::CopyRange { caller, from, to, len } => {
                let Outcome::Copied(copied) = *outcome else { panic!("{outcome:?}") };
                let wanted = self.copied(*from, *len);
                assert!(copied <= wanted && (copied > 0) == (wanted > 0), "{copied} of {wanted}");
                self.copy(*caller, *from, *to, copied as usize);
            }
            Op::SetXattr { ino, name, value, .. } => {
                let node = self.node_mut(*ino);
                node.xattrs.insert(name.clone(), value.clone());
                node.changed = Time::Now;
            }
            Op::RemoveXattr { ino, name } => {
                let node = self.node_mut(*ino);
                node.xattrs.remove(name);
                node.changed = Time::Now;
            }
            Op::Release { ino } => {
                if self.is_orphan(*ino) {
                    self.nodes.remove(ino);
                }
            }
            Op::Lookup { parent, name } => {
                assert_eq!(*outcome, Outcome::Found(self.find(*parent, name).ok()), "{op:?}");
            }
            Op::Read { ino, offset, len } => {
                let file = self.file(*ino).expect("a file");
                let start = (*offset).min(file.bytes.len() as u64) as usize;
                let end = (start + len).min(file.bytes.len());
                let Outcome::Bytes(read) = outcome else { panic!("{outcome:?}") };
                assert!(*read == file.bytes[start..end], "{op:?} reads wrong bytes");
            }
            Op::Seek { ino, offset, what } => {
                let file = self.file(*ino).expect("a file");
                let from = *offset..file.data.len() as u64;
                let found = match what {
                    Seek::Data => from.into_iter().find(|&at| file.data[at as usize]),
                    Seek::Hole => {
                        let len = from.end;
                        let hole = from.clone().find(|&at| !file.data[at as usize]);
                        hole.or((!from.is_empty()).then_some(len))
                    }
                };
                assert_eq!(*outcome, Outcome::Offset(found), "{op:?}");
            }
            Op::List { dir, .. } => {
                let entries = self.entries(*dir).expect("a directory");
                let names = entries.iter().map(|(name, &ino)| (name.clone(), ino)).collect();
                assert_eq!(*outcome, Outcome::Names(names), "{op:?}");
            }
            Op::Write { .. } => {}
        }
    }

    fn create(&mut self, ino: Ino, caller: Caller, parent: Ino, permissions: u16, new: &New) {
        let above = self.node(parent).expect("a directory");
        let inherits = above.permissions & 0o2000 != 0;
        let gid = if inherits { above.gid } else { caller.gid };
        let (kind, rdev, body) = match new {
            New::File => (NodeKind::File, 0, Body::File(Arc::default())),
            New::Directory => {
                let body = Body::Directory { entries: BTreeMap::new(), parent, size: 0 };
                (NodeKind::Directory, 0, body)
            }
            New::Symlink(target) => (NodeKind::Symlink, 0, Body::Target(target.clone())),
            New::Special(kind, rdev) => (*kind, *rdev, Body::Nothing),
        };
        let set_gid = if inherits && kind == NodeKind::Directory { 0o2000 } else { 0 };
        let node = Node {
            kind,
            permissions: permissions | set_gid,
            uid: caller.uid,
            gid,
            rdev,
            accessed: Time::Now,
            modified: Time::Now,
            changed: Time::Now,
            body,
            xattrs: BTreeMap::new(),
        };
        self.nodes.insert(ino, Arc::new(node));
    }

    fn rename(&mut self, from: &(Ino, Vec<u8>), to: &(Ino, Vec<u8>), mode: RenameMode) {
        let moved = self.find(from.0, &from.1).expect("what is renamed");
        let replaced = self.find(to.0, &to.1).ok();
        if replaced == Some(moved) {
            return;
        }
        self.entries_mut(from.0).remove(&from.1);
        self.put_entry(to, moved);
        if let Some(replaced) = replaced {
            self.node_mut(replaced).changed = Time::Now;
            if mode == RenameMode::Exchange {
                self.put_entry(from, replaced);
            }
        }
        self.entries_changed(from.0);
        self.entries_changed(to.0);
    }

    fn put_entry(&mut self, (dir, name): &(Ino, Vec<u8>), ino: Ino) {
        self.entries_mut(*dir).insert(name.clone(), ino);
        let node = self.node_mut(ino);
        node.changed = Time::Now;
        if let Body::Directory { parent, .. } = &mut node.body {
            *parent = *dir;
        }
    }

    fn set_attributes(&mut self, caller: Caller, ino: Ino, set: &SetAttributes) {
        if let Some(size) = set.size {
            self.file_mut(ino).resize(size as usize);
            self.content_changed(ino, caller.uid != 0);
        }
        let node = self.node_mut(ino);
        if set.uid.is_some() || set.gid.is_some() || *set == SetAttributes::default() {
            drop_set_id(node);
        }
        node.uid = set.uid.unwrap_or(node.uid);
        node.gid = set.gid.unwrap_or(node.gid);
        node.permissions = set.permissions.unwrap_or(node.permissions);
        let time = |time| match time {
            SetTime::Now => Time::Now,
            SetTime::At(at) => Time::At(at),
        };
        node.accessed = set.accessed.map_or(node.accessed, time);
        node.modified = set.modified.map_or(node.modified, time);
        node.changed = Time::Now;
    }

    fn allocate(&mut self, caller: Caller, ino: Ino, what: Allocate, start: usize, len: usize) {
        let end = start + len;
        let file = self.file_mut(ino);
        let old = file.bytes.len();
        if matches!(what, Allocate::Reserve(false) | Allocate::Zero(false)) {
            file.resize(old.max(end));
        }
        if matches!(what, Allocate::PunchHole | Allocate::Zero(_)) {
            let end = end.min(file.bytes.len());
            let start = start.min(end);
            file.bytes[start..end].fill(0);
            file.data[start..end].fill(false);
        }
        // As on other file systems, whether the bytes change or not.
        self.content_changed(ino, caller.uid != 0);
    }

    fn copy(&mut self, caller: Caller, from: (Ino, u64), to: (Ino, u64), len: usize) {
        if len == 0 {
            return;
        }
        let (start, at) = (from.1 as usize, to.1 as usize);
        let source = self.file(from.0).expect("a file");
        let bytes = source.bytes[start..start + len].to_vec();
        let data = source.data[start..start + len].to_vec();
        let file = self.file_mut(to.0);
        file.resize(file.bytes.len().max(at + len));
        file.bytes[at..at + len].copy_from_slice(&bytes);
        file.data[at..at + len].copy_from_slice(&data);
        self.content_changed(to.0, caller.uid != 0);
    }

    fn content_changed(&mut self, ino: Ino, kill_set_id: bool) {
        let node = self.node_mut(ino);
        (node.modified, node.changed) = (Time::Now, Time::Now);
        if kill_set_id {
            drop_set_id(node);
        }
    }

    fn entries_changed(&mut self, dir: Ino) {
        let node = self.node_mut(dir);
        (node.modified, node.changed) = (Time::Now, Time::Now);
    }

    fn file(&self, ino: Ino) -> Option<&FileBytes> {
        match &self.node(ino)?.body {
            Body::File(file) => Some(file),
            _ => None,
        }
    }

    /// How many bytes a copy from here can give.
    fn copied(&self, (ino, offset): (Ino, u64), len: u64) -> u64 {
        let size = self.file(ino).map_or(0, |file| file.bytes.len() as u64);
        len.min(size.saturating_sub(offset))
    }

    fn not_a_file(&self, ino: Ino) -> Option<Refusal> {
        match &self.node(ino).expect("an inode").body {
            Body::File(_) => None,
            Body::Directory { .. } => Some(Refusal::IsDirectory),
            _ => Some(Refusal::Denied(Denial::Invalid)),
        }
    }

    fn is_named(&self, dir: Ino, name: &[u8]) -> bool {
        self.entries(dir).is_some_and(|entries| entries.contains_key(name))
    }

    fn find(&self, dir: Ino, name: &[u8]) -> Result<Ino, Refusal> {
        let entries = self.entries(dir).ok_or(Refusal::NotDirectory)?;
        entries.get(name).copied().ok_or(Refusal::Denied(Denial::NoEntry))
    }

    /// Why nothing can be put here.
    fn bad_place(&self, dir: Ino, name: &[u8]) -> impl Iterator<Item = Refusal> {
        let place = match self.entries(dir) {
            None => Some(Refusal::NotDirectory),
            Some(_) => self.is_orphan(dir).then_some(Refusal::Denied(Denial::NoEntry)),
        };
        place.into_iter().chain(bad_name(name))
    }
}

fn ends_too_far(offset: u64, len: u64) -> bool {
    offset.checked_add(len).is_none_or(|end| end > FILE_BYTES_MAX)
}

/// What a change of content or owner does to the set-id bits of anything but a directory.
fn drop_set_id(node: &mut Node) {
    if node.kind == NodeKind::Directory {
        return;
    }
    let executable = node.permissions & 0o010 != 0;
    node.permissions &= if executable { 0o1777 } else { 0o3777 };
}
