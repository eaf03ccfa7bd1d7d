//! The drain: what was written moves from the outbox into the store.
//!
//! It is a checkpoint of a state that goes on changing:
//!
//! 1. the outbox begins a new segment; `S` is the last record before it. What the overlay is then, and
//!    what has changed in it, is taken: a copy costs nothing ([`crate::overlay`]);
//! 2. fresh bytes are cut, hashed, compressed and appended to segments of the store;
//! 3. the outbox is synced through `S`, since recovery takes a drained record that it finds torn for
//!    damage;
//! 4. one transaction names the chunks, replaces the rows of every layer that has changed, and states
//!    that `S` is drained;
//! 5. the overlay learns where the bytes lie now, and the segments up to `S` are removed.
//!
//! A crash before 4 leaves everything as it was. After it, recovery goes on after `S`.

use std::io::{self, Read};
use std::ops::Range;

use super::Worktree;
use super::layers::Sealed;
use super::live::Live;
use crate::content::Preparer;
use crate::error::{Error, Result};
use crate::id::{Ino, Sequence};
use crate::overlay::{Body, Extents, Node, Source};
use crate::store::Batch;

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
pub(super) type Moved = (Ino, Extents, Extents);

/// What a drain moves: the state at record `through`, layer by layer, the head last.
struct Taken {
    through: Sequence,
    layers: Vec<Sealed>,
}

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
        self.drain_origin()?;
        let Some(taken) = live.take()? else {
            return Ok(Drained { through: state.drained, ..Drained::default() });
        };
        let through = taken.through;
        match self.store_layers(live, &taken) {
            Ok((done, moved)) => {
                live.settle(&moved);
                self.settle_forks(&moved);
                self.release_forks(through);
                live.outbox.trim(through)?;
                state.drains += 1;
                state.drained = through;
                Ok(done)
            }
            Err(error) => {
                live.give_back(taken);
                Err(error)
            }
        }
    }

    fn store_layers(&self, live: &Live, taken: &Taken) -> Result<(Drained, Vec<Moved>)> {
        let mut done = Drained { through: taken.through, ..Drained::default() };
        let mut moved = Vec::new();
        let mut preparer = Preparer::new();
        let mut batch = self.clean.contents.store().batch()?;
        for sealed in &taken.layers {
            let layer = (sealed.layer, sealed.below);
            for &ino in &sealed.dirty.inodes {
                let mut node = sealed.overlay.node(ino).map(copy);
                if let Some(Node { body: Body::File(extents), .. }) = &mut node
                    && extents.any_fresh()
                {
                    let before = (**extents).clone();
                    done.bytes += self.store_fresh(&mut batch, &mut preparer, extents)?;
                    moved.push((ino, before, (**extents).clone()));
                }
                if !batch.put_inode(layer, ino, node.as_ref()) {
                    return Err(Error::corrupt(format!("inode {ino}"), "a drain left bytes of it"));
                }
                done.inodes += 1;
            }
            for (&dir, names) in &sealed.dirty.names {
                let directory = sealed.overlay.directory(dir);
                for name in names {
                    let known = directory.and_then(|directory| directory.find(name));
                    batch.put_entry(layer, dir, name, known);
                    done.names += 1;
                }
            }
            batch.put_drained_layer(layer, sealed.overlay.last_new(), taken.through)?;
        }
        if let Some(head) = taken.layers.last() {
            batch.put_head(live.branch, head.layer, taken.through);
        }
        live.outbox.sync(taken.through)?;
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
            preparer.chunks(&mut reader, &mut |chunk| {
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

impl Live {
    /// Takes what is not drained; `None` if that is nothing.
    fn take(&self) -> Result<Option<Taken>> {
        // Held, so that no record is applied that is neither taken nor after `through`.
        let _log = self.log();
        if !self.changes.read().is_dirty() && !self.layers().is_dirty() {
            self.set_dirty(false);
            return Ok(None);
        }
        let through = self.outbox.seal()?;
        self.set_dirty(false);
        let mut overlay = self.changes.write();
        let mut layers = self.layers();
        layers.moved = false;
        let mut taken = std::mem::take(&mut layers.sealed);
        taken.push(Sealed {
            layer: layers.head,
            below: layers.below,
            dirty: overlay.take_dirty(),
            overlay: overlay.copy(),
        });
        Ok(Some(Taken { through, layers: taken }))
    }

    /// Takes back what could not be stored.
    fn give_back(&self, taken: Taken) {
        let _log = self.log();
        let mut overlay = self.changes.write();
        let mut layers = self.layers();
        let mut before = taken.layers;
        if let Some(head) = before.pop() {
            // It may have been sealed meanwhile.
            let since = layers.sealed.iter_mut().find(|sealed| sealed.layer == head.layer);
            match since {
                Some(sealed) => sealed.dirty.extend(head.dirty),
                None => overlay.give_back(head.dirty),
            }
        }
        before.append(&mut layers.sealed);
        layers.sealed = before;
        layers.moved = true;
        drop((overlay, layers));
        self.set_dirty(true);
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
