//! The drain: what was written moves from the outbox into the store.
//!
//! It is a checkpoint of a state that goes on changing:
//!
//! 1. the outbox begins a new segment; `S` is the last record before it;
//! 2. what has changed is copied out of the overlay, a part at a time, and its fresh bytes are cut,
//!    hashed, compressed and appended to segments of the store; some of it may be newer than `S`;
//! 3. the outbox is synced through the newest record that may have been copied;
//! 4. one transaction names the chunks, replaces the rows, and states that `S` is drained;
//! 5. the overlay learns where the bytes lie now, and the segments up to `S` are removed.
//!
//! A crash before 4 leaves everything as it was. After it, recovery applies the records after `S` to
//! rows that may have some of them already: that ends in the same state, since records are absolute
//! and, by 3, none of those that the rows have can be missing.

use std::collections::HashMap;
use std::io::{self, Read};
use std::ops::Range;

use super::Worktree;
use super::live::Live;
use crate::content::Preparer;
use crate::error::{Error, Result};
use crate::id::{Ino, Sequence};
use crate::overlay::{Body, Dirty, Extents, Known, Node, Source};
use crate::store::Batch;

/// Inodes copied under one hold of the overlay's lock: a few microseconds each.
const COPIED_AT_ONCE: usize = 256;
/// A drained chunk shorter than this is made one with what is written beside it, so that many small
/// writes do not leave many small chunks.
const NEIGHBOUR_BYTES_MAX: u64 = 64 << 10;

/// What a drain has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Inodes whose rows were written.
    pub inodes: u64,
    /// Names whose rows were written.
    pub names: u64,
    /// Bytes of files that were cut into chunks.
    pub bytes: u64,
    /// The last record that is drained.
    pub through: Sequence,
}

/// The extents of a file before and after its fresh bytes were stored.
type Moved = HashMap<Ino, (Extents, Extents)>;

impl Worktree {
    /// Moves everything that was written before the call into the store. One drain runs at a time;
    /// reads and writes go on.
    ///
    /// # Errors
    /// What reading the base and writing the store and the outbox meet. Nothing is lost then: the
    /// next drain does it all.
    pub fn drain(&self) -> Result<Drained> {
        let live = self.live()?;
        let mut state = live.draining.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Between the two no record may be applied that is in neither.
        let (through, dirty) = {
            let _log = live.log();
            if !live.read().is_dirty() {
                return Ok(Drained { through: state.drained, ..Drained::default() });
            }
            let through = live.outbox.seal()?;
            live.set_dirty(false);
            (through, live.write().take_dirty())
        };
        match self.store_changes(live, &dirty, through) {
            Ok((done, moved)) => {
                for (ino, (before, after)) in moved {
                    live.write().settle(ino, &before, &after);
                }
                live.outbox.trim(through)?;
                state.drains += 1;
                state.drained = through;
                Ok(done)
            }
            Err(error) => {
                let _log = live.log();
                live.write().give_back(dirty);
                live.set_dirty(true);
                Err(error)
            }
        }
    }

    fn store_changes(
        &self,
        live: &Live,
        dirty: &Dirty,
        through: Sequence,
    ) -> Result<(Drained, Moved)> {
        let branch = live.branch;
        let mut done = Drained { through, ..Drained::default() };
        let mut moved = Moved::new();
        let mut preparer = Preparer::new();
        let mut batch = self.clean.contents.store().batch()?;
        let inodes: Vec<_> = dirty.inodes.iter().copied().collect();
        for some in inodes.chunks(COPIED_AT_ONCE) {
            let copied: Vec<_> = {
                let overlay = live.read();
                some.iter().map(|&ino| (ino, overlay.node(ino).map(copy))).collect()
            };
            for (ino, mut node) in copied {
                if let Some(Node { body: Body::File(extents), .. }) = &mut node
                    && extents.any_fresh()
                {
                    let before = (**extents).clone();
                    done.bytes += self.store_fresh(&mut batch, &mut preparer, extents)?;
                    moved.insert(ino, (before, (**extents).clone()));
                }
                if !batch.put_inode(branch, ino, node.as_ref()) {
                    return Err(Error::corrupt(format!("inode {ino}"), "a drain left bytes of it"));
                }
                done.inodes += 1;
            }
        }
        for (&dir, names) in &dirty.names {
            let overlay = live.read();
            let directory = overlay.directory(dir);
            let known: Vec<_> = names
                .iter()
                .map(|name| (name, directory.and_then(|directory| directory.find(name))))
                .collect::<Vec<(_, Option<Known>)>>();
            drop(overlay);
            for (name, known) in known {
                batch.put_entry(branch, dir, name, known);
                done.names += 1;
            }
        }
        let last_new = live.read().last_new();
        batch.put_drained(branch, through, last_new);
        live.outbox.sync(live.outbox.last())?;
        batch.commit()?;
        Ok((done, moved))
    }

    /// Puts the fresh bytes of a file into chunks, and returns how many bytes were cut.
    fn store_fresh(
        &self,
        batch: &mut Batch<'_>,
        preparer: &mut Preparer,
        extents: &mut Extents,
    ) -> Result<u64> {
        let mut bytes = 0;
        for range in fresh_ranges(extents) {
            let mut reader =
                RangeReader { worktree: self, extents, at: range.start, end: range.end };
            let mut chunks = Vec::new();
            preparer.stream(&mut reader, &mut |chunk| {
                chunks.push((chunk.id, chunk.raw_len));
                batch.put_chunk(&chunk)
            })?;
            bytes += range.end - range.start;
            let mut start = range.start;
            for (id, len) in chunks {
                let end = start + u64::from(len);
                extents.set(start..end, Source::Chunk(id, 0));
                start = end;
            }
        }
        Ok(bytes)
    }
}

/// A copy of what a row needs: the entries of a directory have rows of their own.
fn copy(node: &Node) -> Node {
    let body = match &node.body {
        Body::Directory(_) => Body::Directory(Box::default()),
        other => other.clone(),
    };
    Node { inode: node.inode, body, xattrs: node.xattrs.clone() }
}

/// The ranges to be cut anew: runs of fresh extents, with the short chunks beside them.
fn fresh_ranges(extents: &Extents) -> Vec<Range<u64>> {
    let mut ranges = Vec::new();
    // A run of adjacent extents that may be cut together, and whether some of it is fresh.
    let mut run: Option<(Range<u64>, bool)> = None;
    let mut close = |run: &mut Option<(Range<u64>, bool)>| {
        if let Some((range, true)) = run.take() {
            ranges.push(range);
        }
    };
    for (start, extent) in extents.iter() {
        let fresh = match extent.source {
            Source::Fresh(_) => true,
            Source::Chunk(..) if extent.len < NEIGHBOUR_BYTES_MAX => false,
            _ => {
                close(&mut run);
                continue;
            }
        };
        match &mut run {
            Some((range, any)) if range.end == start => {
                range.end = start + extent.len;
                *any |= fresh;
            }
            _ => {
                close(&mut run);
                run = Some((start..start + extent.len, fresh));
            }
        }
    }
    close(&mut run);
    ranges
}

/// Reads a range of a file that has no holes.
struct RangeReader<'a> {
    worktree: &'a Worktree,
    extents: &'a Extents,
    at: u64,
    end: u64,
}

impl Read for RangeReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let want = (out.len() as u64).min(self.end - self.at);
        let Some((_, extent)) = self.extents.within(self.at..self.at + want).next() else {
            return Ok(0);
        };
        let len = extent.len as usize;
        self.worktree.read_source(&extent.source, &mut out[..len]).map_err(io::Error::other)?;
        self.at += extent.len;
        Ok(len)
    }
}
