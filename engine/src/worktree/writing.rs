//! One change in the making: it is worked out against the overlay, written to the outbox as one
//! record, and then applied to the overlay.

use std::sync::MutexGuard;
use std::time::{SystemTime, UNIX_EPOCH};

use super::clean::Clean;
use super::live::Live;
use super::{NodeKind, SetTime, Timestamp, Worktree};
use crate::error::{Denial, Error, Result};
use crate::id::Ino;
use crate::limits::{NAME_BYTES_MAX, OUTBOX_BYTES_MAX};
use crate::overlay::{Body, Inode, Known, Put, Source};

/// A change in the making. Dropping it changes nothing.
pub(super) struct Writing<'w> {
    pub(super) clean: &'w Clean,
    pub(super) live: &'w Live,
    /// Keeps other changes out, and holds the record.
    log: MutexGuard<'w, Vec<u8>>,
    /// The moment of the change.
    pub(super) now: Timestamp,
    /// Inodes with the attributes that they are to have.
    inodes: Vec<(Ino, Inode, How)>,
    /// What else is to be so.
    puts: Vec<Put<'w>>,
}

/// How an inode is put.
#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// It is in the overlay, or new.
    Put,
    /// It is in the base only.
    CopyUp,
}

/// What a name in a directory stands for.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub(super) ino: Ino,
    pub(super) kind: NodeKind,
}

impl Worktree {
    /// Begins a change when its turn has come. Where the outbox is at its limit, it is drained first:
    /// whoever writes faster than the store takes it in waits for the store.
    pub(super) fn change(&self) -> Result<Writing<'_>> {
        let live = self.live()?;
        if live.outbox.bytes() >= OUTBOX_BYTES_MAX {
            self.drain()?;
        }
        let log = live.log();
        Ok(Writing {
            clean: &self.clean,
            live,
            log,
            now: now(),
            inodes: Vec::new(),
            puts: Vec::new(),
        })
    }
}

impl<'w> Writing<'w> {
    /// The attributes of an inode as this change leaves them, to be changed further. Only for
    /// inodes that the change puts.
    pub(super) fn inode(&mut self, ino: Ino) -> Result<&mut Inode> {
        let at = match self.inodes.iter().position(|(other, ..)| *other == ino) {
            Some(at) => at,
            None => {
                let (inode, how) = self.present(ino)?;
                self.inodes.push((ino, inode, how));
                self.inodes.len() - 1
            }
        };
        Ok(&mut self.inodes[at].1)
    }

    /// The attributes of an inode before this change.
    fn present(&self, ino: Ino) -> Result<(Inode, How)> {
        let known = self.live.changes.is_touched(ino);
        let known = known.then(|| self.live.changes.read().node(ino).map(|node| node.inode));
        match known.flatten() {
            Some(inode) => Ok((inode, How::Put)),
            None if ino.is_new() => Err(Error::NoInode(ino)),
            None => Ok((self.clean.inode(ino)?, How::CopyUp)),
        }
    }

    /// The directory `ino`, to be changed.
    pub(super) fn directory(&mut self, ino: Ino) -> Result<&mut Inode> {
        let inode = self.inode(ino)?;
        if inode.kind != NodeKind::Directory {
            return Err(Error::NotDirectory(ino));
        }
        Ok(inode)
    }

    /// The directory `dir`, which this change leaves as it is.
    pub(super) fn look_at_directory(&self, dir: Ino) -> Result<Inode> {
        let (inode, _) = self.present(dir)?;
        if inode.kind != NodeKind::Directory {
            return Err(Error::NotDirectory(dir));
        }
        Ok(inode)
    }

    /// Marks a directory's entries as changed now.
    pub(super) fn entries_changed(&mut self, dir: Ino) -> Result<&mut Inode> {
        let now = self.now;
        let inode = self.directory(dir)?;
        (inode.modified, inode.changed) = (now, now);
        Ok(inode)
    }

    /// Adds an inode of the next number.
    pub(super) fn add_inode(&mut self, inode: Inode) -> Ino {
        let ino = self.live.changes.read().next_ino();
        self.inodes.push((ino, inode, How::Put));
        ino
    }

    /// Adds what is to be so.
    pub(super) fn put(&mut self, put: Put<'w>) {
        self.puts.push(put);
    }

    /// What `name` stands for in the directory `dir` before this change.
    pub(super) fn entry(&self, dir: Ino, name: &[u8]) -> Result<Option<Entry>> {
        if self.live.changes.is_touched(dir) {
            let overlay = self.live.changes.read();
            match overlay.directory(dir).and_then(|directory| directory.find(name)) {
                Some(Known::Added(ino, _)) => {
                    let kind = match overlay.node(ino) {
                        Some(node) => node.inode.kind,
                        None => self.clean.attributes(ino)?.kind,
                    };
                    return Ok(Some(Entry { ino, kind }));
                }
                Some(Known::Hidden) => return Ok(None),
                None => {}
            }
        }
        if dir.is_new() {
            return Ok(None);
        }
        let found = self.clean.lookup(dir, name)?;
        Ok(found.map(|found| Entry { ino: found.ino, kind: found.kind }))
    }

    /// Whether the directory `dir` has no entries.
    pub(super) fn is_empty(&self, dir: Ino) -> Result<bool> {
        let overlay = self.live.changes.read();
        let directory = overlay.directory(dir);
        if directory.is_some_and(|directory| directory.added() > 0) {
            return Ok(false);
        }
        if dir.is_new() {
            return Ok(true);
        }
        let mut empty = true;
        self.clean.read_directory(dir, 0, false, &mut |entry| {
            let is_dot = matches!(entry.name, b"." | b"..");
            empty =
                is_dot || directory.is_some_and(|directory| directory.find(entry.name).is_some());
            empty
        })?;
        Ok(empty)
    }

    /// Makes `name` in `dir` stand for `ino`.
    pub(super) fn add_entry(&mut self, dir: Ino, name: &'w [u8], ino: Ino) {
        let added = self.puts.iter().filter(|put| matches!(put, Put::Add { .. })).count() as u64;
        let overlay = self.live.changes.read();
        let next = overlay.directory(dir).map_or(0, |directory| directory.next_position());
        drop(overlay);
        self.puts.push(Put::Add { dir, name, ino, position: next + added });
    }

    /// Makes `name` in `dir` stand for nothing.
    pub(super) fn remove_entry(&mut self, dir: Ino, name: &'w [u8]) -> Result<()> {
        let hides = !dir.is_new() && self.clean.lookup(dir, name)?.is_some();
        self.puts.push(Put::Remove { dir, name, hides });
        Ok(())
    }

    /// Takes one name from an inode that is no directory.
    pub(super) fn drop_link(&mut self, ino: Ino) -> Result<()> {
        let now = self.now;
        let inode = self.inode(ino)?;
        inode.nlink = inode.nlink.saturating_sub(1);
        inode.changed = now;
        Ok(())
    }

    /// The extents of a file are about to change: if it still has the content of the base, it has
    /// that by extents from now on.
    pub(super) fn own_content(&mut self, ino: Ino) -> Result<()> {
        if ino.is_new() {
            return Ok(());
        }
        let base = !self.live.changes.is_touched(ino)
            || self
                .live
                .changes
                .read()
                .node(ino)
                .is_none_or(|node| matches!(node.body, Body::Base));
        if base {
            let len = self.clean.attributes(ino)?.size;
            self.puts.push(Put::Share { ino, offset: 0, len, source: Source::Base(ino, 0) });
        }
        Ok(())
    }

    /// Writes the change to the outbox and makes it so.
    pub(super) fn commit(mut self, body: &[&[u8]]) -> Result<()> {
        let record = &mut *self.log;
        record.clear();
        let inodes = self.inodes.iter().map(|(ino, inode, how)| match how {
            How::Put => Put::Inode(*ino, *inode),
            How::CopyUp => Put::CopyUp(*ino, *inode),
        });
        // Inodes first: the other puts speak of them.
        let inodes: Vec<Put<'_>> = inodes.collect();
        for put in inodes.iter().chain(&self.puts) {
            put.encode(record);
        }
        let appended = self.live.outbox.append(record, body)?;
        let mut body = Some(appended.body);
        let mut overlay = self.live.changes.write();
        for put in inodes.iter().chain(&self.puts) {
            overlay.apply(put, &mut body);
        }
        // Under the lock, so that who sees the bit sees the change.
        for (ino, ..) in &self.inodes {
            self.live.changes.touch(*ino);
        }
        drop(overlay);
        self.live.layers().used = true;
        self.live.set_dirty(true);
        Ok(())
    }

    /// The moment that `time` means.
    pub(super) fn moment(&self, time: SetTime) -> Timestamp {
        match time {
            SetTime::Now => self.now,
            SetTime::At(time) => time,
        }
    }
}

impl Clean {
    /// An inode of the base, as a branch has it that changes it for the first time.
    pub(super) fn inode(&self, ino: Ino) -> Result<Inode> {
        let attributes = self.attributes(ino)?;
        let parent = match attributes.kind {
            NodeKind::Directory => self.base.parent(ino)?,
            _ => Ino(0),
        };
        Ok(Inode {
            kind: attributes.kind,
            permissions: attributes.permissions,
            nlink: attributes.nlink,
            uid: attributes.uid,
            gid: attributes.gid,
            rdev: attributes.rdev,
            size: attributes.size,
            accessed: attributes.accessed,
            modified: attributes.modified,
            changed: attributes.changed,
            parent,
        })
    }
}

impl Inode {
    /// Takes the set-id bits, as a change of content or owner does: that of the group is a mark for
    /// locking, not a privilege, where the group cannot execute.
    pub(super) fn drop_set_id(&mut self) {
        if self.kind == NodeKind::Directory {
            return;
        }
        self.permissions &= !0o4000;
        if self.permissions & 0o010 != 0 {
            self.permissions &= !0o2000;
        }
    }
}

/// Refuses what cannot be the name of an entry in `dir`.
pub(super) fn check_name(dir: Ino, name: &[u8]) -> Result<()> {
    let denial = match name {
        _ if name.len() > NAME_BYTES_MAX => Denial::NameTooLong,
        b"." | b".." => Denial::Invalid,
        _ if name.is_empty() || name.contains(&b'/') || name.contains(&0) => Denial::Invalid,
        _ => return Ok(()),
    };
    Err(Error::Denied(dir, denial))
}

pub(super) fn now() -> Timestamp {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => Timestamp {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanoseconds: since.subsec_nanos(),
        },
        // A clock before 1970 is no clock.
        Err(_) => Timestamp { seconds: 0, nanoseconds: 0 },
    }
}
