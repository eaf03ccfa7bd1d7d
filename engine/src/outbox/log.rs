//! The writing end of an outbox: what is done under its lock. Records get their place and are
//! written, segments are begun, counted and forgotten; nothing here waits for the device.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;

use super::frame::{FRAME_HEADER_BYTES, FrameHeader, Position};
use super::segment::{Place, SEGMENT_HEADER_BYTES, Segment, SegmentHeader, new_salt, segment_name};
use crate::error::{Error, Result, is_full};
use crate::id::Sequence;
use crate::limits::{
    OUTBOX_RESERVE_BYTES_MAX, OUTBOX_RESERVE_BYTES_MIN, OUTBOX_SYNC_LITTLE_BYTES,
    OUTBOX_ZEROS_BYTES,
};
use crate::storage::{File, Storage};

/// What a file is filled with ahead of its frames.
static ZEROS: [u8; OUTBOX_ZEROS_BYTES] = [0; OUTBOX_ZEROS_BYTES];

/// Why a record was not written.
#[derive(Debug)]
pub(super) enum Fault {
    /// Nothing is in doubt: the same append can succeed later.
    Passing(Error),
    /// What the file holds is in doubt.
    Lasting(Error),
}

impl Fault {
    /// What a failed write to `segment` means. When there is no room the next append overwrites
    /// whatever part of the frame was written.
    fn of_write(segment: &Segment, action: &'static str, error: io::Error) -> Self {
        let passing = is_full(&error);
        let error = segment.error(action, error);
        if passing { Self::Passing(error) } else { Self::Lasting(error) }
    }
}

/// A segment that is not trimmed.
pub(super) struct Kept {
    pub(super) segment: Arc<Segment>,
    /// The first sequence that its header states.
    pub(super) first: Sequence,
    /// Where its last frame ends.
    pub(super) end: u64,
    /// Whether it may hold records that are not synced.
    pub(super) unsynced: bool,
    /// From where on it must be written again before a sync of it means anything: an earlier
    /// process may have met a failed sync, after which the kernel takes the bytes for saved.
    pub(super) rewrite_from: Option<u64>,
}

/// The newest segment, while it takes records.
struct Active {
    kept: Kept,
    salt: u32,
    /// The length up to which room is reserved.
    reserved: u64,
    /// The length up to which the file was written, if only with zeros.
    written: u64,
    /// Where the last frame ended when the last sync began.
    synced: u64,
    /// Whether little was appended between the last two syncs.
    syncs_little: bool,
}

/// What one sync has to do.
pub(super) struct Unsynced {
    /// The last record that it covers.
    pub(super) last: Sequence,
    pub(super) files: Vec<UnsyncedFile>,
}

pub(super) struct UnsyncedFile {
    pub(super) segment: Arc<Segment>,
    pub(super) end: u64,
    pub(super) rewrite_from: Option<u64>,
    /// Whether no more records can follow in it.
    closed: bool,
}

pub(super) struct Log {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    segment_bytes_max: u64,
    next_number: u64,
    last: Sequence,
    /// Segments that take no more records, oldest first. All are older than the active one.
    closed: VecDeque<Kept>,
    active: Option<Active>,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("dir", &self.dir).field("last", &self.last).finish()
    }
}

impl Log {
    /// A log that goes on after `last`, in a new segment.
    pub(super) fn new(
        storage: Arc<dyn Storage>,
        dir: PathBuf,
        segment_bytes_max: u64,
        next_number: u64,
        last: Sequence,
        closed: VecDeque<Kept>,
    ) -> Self {
        Self { storage, dir, segment_bytes_max, next_number, last, closed, active: None }
    }

    pub(super) fn last(&self) -> Sequence {
        self.last
    }

    /// Bytes of the segment files.
    pub(super) fn bytes(&self) -> u64 {
        let active = self.active.as_ref().map(|active| &active.kept);
        self.closed.iter().chain(active).map(|kept| kept.end).sum()
    }

    /// Number of segment files.
    pub(super) fn segments(&self) -> u64 {
        (self.closed.len() + usize::from(self.active.is_some())) as u64
    }

    /// Writes a record whose lengths are within the limits, in one system call if the segment has
    /// room reserved; the sequence that it got and the place of its body. `durable` is what is
    /// known to be synced.
    pub(super) fn append(
        &mut self,
        head: &[u8],
        body: &[&[u8]],
        payload: u64,
        durable: Sequence,
    ) -> Result<(Sequence, Place), Fault> {
        let body_len: usize = body.iter().map(|piece| piece.len()).sum();
        let len = (FRAME_HEADER_BYTES + head.len() + body_len) as u64;
        let sequence = self.last.next();
        let limit = self.segment_bytes_max;
        let full = |active: &Active| {
            active.kept.end + len > limit && active.kept.end > SEGMENT_HEADER_BYTES as u64
        };
        let active = match self.active.take_if(|active| !full(active)) {
            Some(active) => self.active.insert(active),
            None => self.begin(durable)?,
        };
        let offset = active.kept.end;
        active.reserve(offset + len, limit)?;
        let segment = &active.kept.segment;
        let at = Position { segment: segment.number, offset };
        let header =
            FrameHeader::new(active.salt, sequence, durable, head.len(), body_len, payload)
                .encode(at);
        let mut slices = Vec::with_capacity(2 + body.len());
        slices.extend([IoSlice::new(&header), IoSlice::new(head)]);
        slices.extend(body.iter().map(|piece| IoSlice::new(piece)));
        let written = segment.file.write_vectored_at(offset, &mut slices);
        written.map_err(|error| Fault::of_write(segment, "append to", error))?;
        active.kept.end = offset + len;
        let body_at = offset + (FRAME_HEADER_BYTES + head.len()) as u64;
        let body = Place::new(Arc::clone(segment), body_at);
        self.last = sequence;
        Ok((sequence, body))
    }

    /// Begins a new segment, unless nothing was appended since the last one was begun. Everything
    /// up to the last sequence can then be trimmed.
    pub(super) fn seal(&mut self, durable: Sequence) -> Result<(), Fault> {
        let newest = self.active.as_ref().map(|active| &active.kept).or(self.closed.back());
        if newest.is_some_and(|kept| kept.first <= self.last) {
            self.begin(durable)?;
        }
        Ok(())
    }

    /// Closes the active segment and begins the next one. The closed one takes no more records even
    /// if that fails: a header that was written and not acknowledged may already rule that what
    /// follows is not to be found there.
    fn begin(&mut self, durable: Sequence) -> Result<&mut Active, Fault> {
        if let Some(Active { mut kept, .. }) = self.active.take() {
            kept.unsynced = self.last > durable;
            self.closed.push_back(kept);
        }
        // A number is never used twice, so that what is left of a failed attempt misleads nobody.
        let number = self.next_number;
        self.next_number += 1;
        let path = self.dir.join(segment_name(number));
        let file = self
            .storage
            .open(&path, true)
            .map_err(|error| Fault::Passing(Error::io("create", &path, error)))?;
        let salt = new_salt(number);
        let first = self.last.next();
        let segment = Arc::new(Segment::new(number, path, file));
        let kept = Kept { segment, first, end: 0, unsynced: true, rewrite_from: None };
        let synced = SEGMENT_HEADER_BYTES as u64;
        let mut active =
            Active { kept, salt, reserved: 0, written: 0, synced, syncs_little: false };
        let header = SegmentHeader { number, first, durable, salt };
        if let Err(fault) = active.write_header(&header, self.segment_bytes_max) {
            // What stays of it holds no record: recovery removes it.
            let _ = self.storage.remove(&active.kept.segment.path);
            return Err(fault);
        }
        Ok(self.active.insert(active))
    }

    /// What a sync of everything appended so far has to do.
    pub(super) fn unsynced(&mut self) -> Unsynced {
        let limit = self.segment_bytes_max;
        if let Some(active) = &mut self.active {
            active.write_ahead(limit);
        }
        let file = |kept: &Kept, closed| UnsyncedFile {
            segment: Arc::clone(&kept.segment),
            end: kept.end,
            rewrite_from: kept.rewrite_from,
            closed,
        };
        let closed = self.closed.iter().filter(|kept| kept.unsynced).map(|kept| file(kept, true));
        let active = self.active.iter().map(|active| &active.kept);
        let active = active.filter(|kept| kept.first <= self.last).map(|kept| file(kept, false));
        Unsynced { last: self.last, files: closed.chain(active).collect() }
    }

    /// Notes that what [`Self::unsynced`] returned was synced.
    pub(super) fn note_synced(&mut self, synced: &Unsynced) {
        for file in synced.files.iter().filter(|file| file.closed) {
            let same = |kept: &&mut Kept| Arc::ptr_eq(&kept.segment, &file.segment);
            if let Some(kept) = self.closed.iter_mut().find(same) {
                kept.unsynced = false;
                kept.rewrite_from = None;
            }
        }
    }

    /// The segments that hold only records up to `drained`, oldest first. Never the newest one: its
    /// number says which ones were used.
    pub(super) fn drained(&self, drained: Sequence) -> Vec<Arc<Segment>> {
        let active = self.active.as_ref().map(|active| &active.kept);
        let next = self.closed.iter().skip(1).chain(active).map(|kept| kept.first);
        let drained = self.closed.iter().zip(next).take_while(|(_, next)| *next <= drained.next());
        drained.map(|(kept, _)| Arc::clone(&kept.segment)).collect()
    }

    /// Forgets a segment that was removed.
    pub(super) fn forget(&mut self, segment: &Arc<Segment>) {
        self.closed.retain(|kept| !Arc::ptr_eq(&kept.segment, segment));
    }
}

impl Active {
    fn write_header(&mut self, header: &SegmentHeader, limit: u64) -> Result<(), Fault> {
        self.reserve(SEGMENT_HEADER_BYTES as u64, limit)?;
        let segment = &self.kept.segment;
        let written = segment.file.write_at(0, &header.encode());
        written.map_err(|error| Fault::of_write(segment, "append to", error))?;
        self.kept.end = SEGMENT_HEADER_BYTES as u64;
        Ok(())
    }

    /// Where many syncs cover little each, fills the file with zeros some way ahead. A sync of bytes that
    /// lie there has no length and no block to save beside them, which costs a journal a commit of its
    /// own. To recovery zeros are what a torn write leaves: no frame.
    fn write_ahead(&mut self, limit: u64) {
        let end = self.kept.end;
        let little = end - self.synced <= OUTBOX_SYNC_LITTLE_BYTES;
        let often = std::mem::replace(&mut self.syncs_little, little) && little;
        self.synced = end;
        let wanted = end + ZEROS.len() as u64;
        if !often || self.written > end + OUTBOX_SYNC_LITTLE_BYTES || wanted > limit {
            return;
        }
        // Nothing depends on it. What is wrong with the file, the next append or the sync will meet.
        let file = Arc::clone(&self.kept.segment.file);
        if self.reserve(wanted, limit).is_ok() && file.write_at(end, &ZEROS).is_ok() {
            self.written = wanted;
        }
    }

    /// Sees to it that writing up to `end` cannot fail for lack of room, now or when the kernel
    /// writes it back. Room grows with the segment: a branch that changes little takes little.
    fn reserve(&mut self, end: u64, limit: u64) -> Result<(), Fault> {
        if end <= self.reserved {
            return Ok(());
        }
        let ahead = self.kept.end.clamp(OUTBOX_RESERVE_BYTES_MIN, OUTBOX_RESERVE_BYTES_MAX);
        let wanted = end.max((self.reserved + ahead).min(limit));
        let file = &*self.kept.segment.file;
        let allocate = |to: u64| file.allocate(self.reserved, to - self.reserved).map(|()| to);
        let reserved = allocate(wanted).or_else(|error| match is_full(&error) && end < wanted {
            true => allocate(end),
            false => Err(error),
        });
        self.reserved = match reserved {
            Ok(reserved) => reserved,
            // Where the file system cannot reserve, a write that it takes is all there is.
            Err(error) if error.kind() == io::ErrorKind::Unsupported => u64::MAX,
            Err(error) => {
                return Err(Fault::of_write(&self.kept.segment, "reserve room in", error));
            }
        };
        Ok(())
    }
}

/// Copies the bytes from `from` to `end` onto themselves, so that the kernel has to save them again.
pub(super) fn rewrite(file: &dyn File, from: u64, end: u64) -> io::Result<()> {
    const PIECE_BYTES: u64 = 1 << 20;
    let mut buffer = Vec::new();
    let mut at = from;
    while at < end {
        buffer.resize((end - at).min(PIECE_BYTES) as usize, 0);
        file.read_at(at, &mut buffer)?;
        file.write_at(at, &buffer)?;
        at += buffer.len() as u64;
    }
    Ok(())
}
