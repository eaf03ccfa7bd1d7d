//! The write-ahead log of one branch: every change lands here first.
//!
//! Records are appended to segment files, in the order of their sequences. A record is
//! *acknowledged* when [`Outbox::append`] returns: it is in the kernel's memory, so that it survives
//! the death of this process. It is *durable* when [`Outbox::sync`] returns: it survives a crash of
//! the machine. What survives is always a prefix of what was appended.
//!
//! # Recovery
//!
//! A crash of the machine keeps, loses or tears each write that was not synced, in any order. So a
//! bad frame before good ones is no damage by itself. What tells them apart is that every frame and
//! every segment header states which record was known to be durable when it was written: a record
//! that is missing although something states that it was durable is damage, any other is the torn
//! end of the log.
//!
//! A new opening never appends to an old segment: it begins the next one. The header of a segment
//! states the first record in it, and so rules that no older segment holds that record or a later
//! one. What recovery cuts off stays cut off, whether or not cutting became durable.
//!
//! For the tables: *drained* is the position that the caller passes; *next* is the first record that
//! is neither drained nor read; the *limit* of a segment is the lowest first record that the header
//! of a younger one states; *stated* is the highest record that anything states to be durable,
//! `drained` included, in what is read. Headers and frames are *intact* if their checksums are right for their place.
//!
//! Each file of the directory, in the order of their numbers; the first row that applies counts:
//!
//! | | the file | consequence |
//! |-|-|-|
//! | S1 | has not the name of a segment | left alone |
//! | S2 | has an intact header of another version | the opening is refused |
//! | S3 | has an intact header with another number, or durable at or beyond its first record | damage |
//! | S4 | has no intact header | it holds no record |
//! | S5 | has a limit at or before its first record | superseded: not read |
//! | S6 | has a limit at or before `drained` + 1 | drained, and left over from a trim: not read |
//! | S7 | begins beyond `next` | the log ends before it, and `next` is missing |
//! | S8 | is none of these | its frames are read |
//!
//! Each frame of a segment in row S8, when the record *e* should follow:
//!
//! | | what is there | consequence |
//! |-|-|-|
//! | F1 | anything, and *e* is the limit | superseded: not read; the segment ends |
//! | F2 | the end of the file | the segment ends |
//! | F3 | the intact frame of *e* | it is replayed if it is beyond `drained` |
//! | F4 | an intact header with the segment's salt that the writer never writes there | damage |
//! | F5 | anything else: zeros, noise, a part of a frame, a frame from elsewhere | the log ends, and *e* is missing |
//!
//! If the log does not end before, it ends with the last segment in row S8, and `next` is missing.
//! What lies behind the end is then searched for intact headers, which count for *stated*:
//!
//! | | the missing record is | consequence |
//! |-|-|-|
//! | V1 | at or before *stated* | damage: reported with segment, offset and record; nothing is changed |
//! | V2 | beyond *stated*, and something follows | a torn tail: it is cut |
//! | V3 | beyond *stated*, and nothing follows | nothing |
//!
//! Unless there is damage, segments in the rows S4 to S7 are removed, and so is what follows the end.

mod commit;
mod examine;
mod frame;
mod log;
mod reader;
mod recovery;
mod salvage;
mod segment;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use self::commit::Commit;
pub(crate) use self::examine::{Examination, Examined};
use self::log::{Fault, Log};
pub(crate) use self::salvage::{Salvaged, salvage};
pub use self::segment::Place;
pub(crate) use self::segment::segment_number_of;
use crate::error::{Error, Result};
use crate::id::Sequence;
use crate::limits::{OUTBOX_BODY_BYTES_MAX, OUTBOX_HEAD_BYTES_MAX, OUTBOX_SEGMENT_BYTES_MAX};
use crate::storage::Storage;

/// A record that [`Outbox::append`] wrote.
#[derive(Clone, Debug)]
pub struct Appended {
    /// Its place in the order of all records.
    pub sequence: Sequence,
    /// Where its body lies. Without a body, where that would be.
    pub body: Place,
}

/// A record that [`Outbox::open`] found.
#[derive(Clone, Debug)]
pub struct Replayed<'a> {
    /// Its place in the order of all records.
    pub sequence: Sequence,
    /// Its head.
    pub head: &'a [u8],
    /// Where its body lies.
    pub body: Place,
    /// Length of its body in bytes.
    pub body_len: u64,
}

/// What an outbox did since it was opened, and what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutboxCounters {
    /// Records appended.
    pub records: u64,
    /// Bytes appended, frames included.
    pub bytes: u64,
    /// Calls of [`Outbox::sync`].
    pub syncs_asked: u64,
    /// Syncs of a segment file.
    pub file_syncs: u64,
    /// Syncs of a directory.
    pub dir_syncs: u64,
    /// Segment files that are not trimmed.
    pub segments: u64,
}

#[derive(Debug, Default)]
struct Counts {
    records: AtomicU64,
    bytes: AtomicU64,
    syncs_asked: AtomicU64,
    file_syncs: AtomicU64,
    dir_syncs: AtomicU64,
}

/// The write-ahead log of one branch. At most one may be open for a directory.
pub struct Outbox {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    /// Leaf lock, held over one write or the creation of a segment, never over a sync.
    log: Mutex<Log>,
    commit: Commit,
    last: AtomicU64,
    durable: AtomicU64,
    /// Whether the names of the directory and of those above it were synced.
    rooted: AtomicBool,
    /// The first error after which the state of the files is in doubt.
    failure: OnceLock<String>,
    counts: Counts,
}

impl fmt::Debug for Outbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbox").field("dir", &self.dir).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Whatever panicked left the state between two writes.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Outbox {
    /// Opens the outbox in `dir`, which is created if it is missing, and hands each record after
    /// `drained` to `replay`, in order. A torn tail is cut. Memory stays bounded: bodies are read in
    /// pieces, to verify them.
    ///
    /// # Errors
    /// [`Error::Outbox`] with segment, offset and sequence if a durable record is damaged or
    /// missing: then nothing is changed. [`Error::UnknownFormat`] for a segment of another version.
    /// [`Error::Io`], and what `replay` returns.
    pub fn open(
        storage: Arc<dyn Storage>,
        dir: &Path,
        drained: Sequence,
        replay: &mut dyn FnMut(Replayed<'_>) -> Result<()>,
    ) -> Result<Arc<Self>> {
        Self::open_rotating(storage, dir, drained, OUTBOX_SEGMENT_BYTES_MAX, replay)
    }

    fn open_rotating(
        storage: Arc<dyn Storage>,
        dir: &Path,
        drained: Sequence,
        segment_bytes_max: u64,
        replay: &mut dyn FnMut(Replayed<'_>) -> Result<()>,
    ) -> Result<Arc<Self>> {
        storage.create_dir(dir).map_err(|error| Error::io("create", dir, error))?;
        let found = recovery::recover(&*storage, dir, drained, replay)?;
        let log = Log::new(
            Arc::clone(&storage),
            dir.to_owned(),
            segment_bytes_max,
            found.next_number,
            found.last,
            found.segments,
        );
        Ok(Arc::new(Self {
            storage,
            dir: dir.to_owned(),
            log: Mutex::new(log),
            commit: Commit::default(),
            last: AtomicU64::new(found.last.0),
            durable: AtomicU64::new(found.durable.0),
            rooted: AtomicBool::new(false),
            failure: OnceLock::new(),
            counts: Counts::default(),
        }))
    }

    /// Appends a record of `head` and `body`, which may come in pieces or be empty. When it returns,
    /// the record survives the death of this process.
    ///
    /// # Errors
    /// [`Error::TooLarge`] beyond the limits of head and body. An error for which
    /// [`Error::is_full`] holds leaves the outbox as it was; so does one that says that a segment
    /// cannot be created. Any other ends writing: this call returns it, later ones
    /// [`Error::Poisoned`]. The record may then be found at the next opening.
    pub fn append(&self, head: &[u8], body: &[&[u8]]) -> Result<Appended> {
        let body_len: usize = body.iter().map(|piece| piece.len()).sum();
        check_len("the head of an outbox record", head.len(), OUTBOX_HEAD_BYTES_MAX)?;
        check_len("the body of an outbox record", body_len, OUTBOX_BODY_BYTES_MAX)?;
        let payload = frame::checksum(head, body);
        let mut log = lock(&self.log);
        self.check()?;
        let (sequence, place) = log
            .append(head, body, payload, self.durable())
            .map_err(|fault| self.error_of(fault))?;
        self.last.store(sequence.0, Ordering::Release);
        drop(log);
        let len = frame::FRAME_HEADER_BYTES + head.len() + body_len;
        self.counts.records.fetch_add(1, Ordering::Relaxed);
        self.counts.bytes.fetch_add(len as u64, Ordering::Relaxed);
        Ok(Appended { sequence, body: place })
    }

    /// The last record that was appended, or found when the outbox was opened.
    pub fn last(&self) -> Sequence {
        Sequence(self.last.load(Ordering::Acquire))
    }

    /// Everything up to this record is known to survive a crash of the machine.
    pub fn durable(&self) -> Sequence {
        Sequence(self.durable.load(Ordering::Acquire))
    }

    /// Begins a new segment, so that everything up to the returned sequence can be trimmed once it
    /// is drained. Waits for no sync.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub fn seal(&self) -> Result<Sequence> {
        let mut log = lock(&self.log);
        self.check()?;
        log.seal(self.durable()).map_err(|fault| self.error_of(fault))?;
        Ok(log.last())
    }

    /// Removes the segments that hold only records up to `drained`. Places in them stay readable.
    ///
    /// # Errors
    /// [`Error::Io`]; what could not be removed is tried again by the next call.
    pub fn trim(&self, drained: Sequence) -> Result<()> {
        let segments = lock(&self.log).drained(drained);
        for segment in segments {
            match self.storage.remove(&segment.path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(segment.error("remove", error));
                }
                _ => lock(&self.log).forget(&segment),
            }
        }
        Ok(())
    }

    /// Bytes of the segment files that are not trimmed.
    pub fn bytes(&self) -> u64 {
        lock(&self.log).bytes()
    }

    /// The first error after which nothing more is written; `None` while it works.
    pub fn failure(&self) -> Option<String> {
        self.failure.get().cloned()
    }

    /// What it did since it was opened, and what it holds.
    pub fn counters(&self) -> OutboxCounters {
        let segments = lock(&self.log).segments();
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        OutboxCounters {
            records: read(&self.counts.records),
            bytes: read(&self.counts.bytes),
            syncs_asked: read(&self.counts.syncs_asked),
            file_syncs: read(&self.counts.file_syncs),
            dir_syncs: read(&self.counts.dir_syncs),
            segments,
        }
    }

    /// An error if an earlier one latched.
    fn check(&self) -> Result<()> {
        match self.failure.get() {
            Some(why) => Err(Error::Poisoned { path: self.dir.clone(), why: why.clone() }),
            None => Ok(()),
        }
    }

    fn latch(&self, error: &Error) {
        self.failure.get_or_init(|| error.to_string());
    }

    fn error_of(&self, fault: Fault) -> Error {
        match fault {
            Fault::Passing(error) => error,
            Fault::Lasting(error) => {
                self.latch(&error);
                error
            }
        }
    }
}

fn check_len(what: &str, len: usize, limit: usize) -> Result<()> {
    if len <= limit {
        return Ok(());
    }
    Err(Error::TooLarge { what: format!("{what} of {len} bytes"), limit: limit as u64 })
}

#[cfg(test)]
mod tests;
