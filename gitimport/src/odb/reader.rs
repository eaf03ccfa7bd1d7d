//! One thread's view of an object database.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use agentfs_engine::GitOid;
use agentfs_engine::progress::Cancel;
use gix::zlib::Decompress;

use super::cache::DeltaCache;
use super::delta::{self, SIZES_BYTES_MAX};
use super::file::Window;
use super::inflate::{InflateLayer, Input, Layer};
use super::pack::{ENTRY_BYTES, Entry, Form, PROBE_BYTES, Pack};
use super::stream::{BlobStream, DeltaLayer, spill};
use super::{Fault, Odb, Packs, loose};
use crate::error::{Error, Result};
use crate::limits::{DELTA_BASES_BYTES_MAX, DELTA_CHAIN_MAX, LIGHT_OBJECT_BYTES_MAX};
use crate::object::{Kind, object_id};

const ENDLESS: &str = "its chain of deltas does not end, or is longer than any that git makes";

/// Where an object lies, for putting reads in an order that suits the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pack: u32,
    offset: u64,
}

/// Reads objects. It keeps buffers, and a few bases of deltas.
pub struct Reader {
    odb: Arc<Odb>,
    packs: Packs,
    /// The pack in which the last object was found.
    recent: usize,
    work: Work,
}

/// One place where an object may be.
enum Place<'a> {
    Packed(&'a Arc<Pack>, u64),
    Loose(Box<loose::Loose>),
}

/// What reading needs besides the database.
#[derive(Default)]
struct Work {
    window: Window,
    inflate: Decompress,
    cache: DeltaCache,
    chain: Vec<(u64, Entry)>,
    delta: Vec<u8>,
    spare: Vec<u8>,
    cancel: Cancel,
}

impl Reader {
    pub(super) fn new(odb: Arc<Odb>) -> Self {
        let packs = odb.packs();
        Self { odb, packs, recent: 0, work: Work::default() }
    }

    /// The same reader, which gives up writing large bases of deltas when `cancel` says so.
    pub(crate) fn cancelled_by(mut self, cancel: &Cancel) -> Self {
        self.work.cancel = cancel.clone();
        self
    }

    /// The database that it reads.
    pub fn odb(&self) -> &Arc<Odb> {
        &self.odb
    }

    /// The packs as this reader knows them.
    pub(super) fn packs(&self) -> &[Arc<Pack>] {
        &self.packs
    }

    /// The kind and size that `oid` states. They are proven only when it is read.
    ///
    /// # Errors
    /// [`Error::MissingObject`], [`Error::CorruptObject`], [`Error::CorruptFile`], [`Error::Io`].
    pub fn header(&mut self, oid: &GitOid) -> Result<(Kind, u64)> {
        if *oid == self.odb.empty_tree {
            return Ok((Kind::Tree, 0));
        }
        self.find(oid, |work, place| match place {
            Place::Packed(pack, offset) => work.header(pack, offset),
            Place::Loose(loose) => Ok((loose.kind, loose.size)),
        })
    }

    /// Reads `oid` into `out`, verified. Neither it nor any member of its delta chain may have more
    /// than `limit` bytes.
    ///
    /// # Errors
    /// As [`Reader::header`]; [`Error::TooLarge`]; [`Error::WrongKind`] if it is not of kind
    /// `expected`.
    pub fn read(
        &mut self,
        oid: &GitOid,
        expected: Kind,
        limit: u64,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let found = self.read_any(oid, limit, out)?;
        if found == expected {
            return Ok(());
        }
        Err(Error::WrongKind { oid: *oid, expected, found })
    }

    /// As [`Reader::read`], of any kind.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub fn read_any(&mut self, oid: &GitOid, limit: u64, out: &mut Vec<u8>) -> Result<Kind> {
        if *oid == self.odb.empty_tree {
            out.clear();
            return Ok(Kind::Tree);
        }
        self.find(oid, |work, place| {
            let kind = match place {
                Place::Packed(pack, offset) => work.read_packed(pack, offset, limit, out)?,
                Place::Loose(loose) => read_loose(*loose, limit, out)?,
            };
            match object_id(oid.kind(), kind, out).map_err(Fault::Bad)? {
                found if found == *oid => Ok(kind),
                found => Err(Fault::bad(format!("its bytes are object {found}"))),
            }
        })
    }

    /// Opens blob `oid` to be read in bounded memory, whatever its size.
    ///
    /// # Errors
    /// As [`Reader::header`], also if it is no blob; [`Error::TooLarge`] if a base of it is.
    pub fn stream(&mut self, oid: &GitOid) -> Result<BlobStream> {
        let dir = self.odb.dirs[0].clone();
        self.find(oid, |work, place| {
            let (kind, size, layer, path) = match place {
                Place::Packed(pack, offset) => {
                    let (kind, size, layer) = work.stream_packed(pack, offset, &dir)?;
                    (kind, size, layer, pack.path().to_owned())
                }
                Place::Loose(loose) => {
                    let path = loose::path(&dir, oid);
                    (loose.kind, loose.size, Box::new(loose.layer) as Box<dyn Layer>, path)
                }
            };
            match kind {
                Kind::Blob => Ok(BlobStream::new(layer, oid, size, &path)),
                other => Err(Fault::bad(format!("it is stored as a {other}"))),
            }
        })
    }

    /// Gives back the memory that only speeds up the next read.
    pub(crate) fn trim(&mut self) {
        self.work.cache = DeltaCache::default();
        self.work.delta = Vec::new();
        self.work.spare = Vec::new();
    }

    /// Where `oid` lies; loose and missing objects come last.
    ///
    /// # Errors
    /// [`Error::CorruptFile`] or [`Error::Io`] about a pack index.
    pub fn position(&mut self, oid: &GitOid) -> Result<Position> {
        for step in 0..self.packs.len() {
            let number = (self.recent + step) % self.packs.len();
            if let Some(offset) = self.packs[number].index().find(oid)? {
                self.recent = number;
                return Ok(Position { pack: number as u32, offset });
            }
        }
        Ok(Position { pack: u32::MAX, offset: 0 })
    }

    /// Tries `attempt` on every place that has `oid` until it succeeds: packs, the last one first,
    /// then loose objects, then packs that are new.
    fn find<T>(
        &mut self,
        oid: &GitOid,
        mut attempt: impl FnMut(&mut Work, Place<'_>) -> Result<T, Fault>,
    ) -> Result<T> {
        let mut first_error = None;
        loop {
            let count = self.packs.len();
            for step in 0..count {
                let number = (self.recent + step) % count;
                let pack = &self.packs[number];
                let result = match pack.index().find(oid) {
                    Ok(None) => continue,
                    Ok(Some(offset)) => {
                        guarded(&mut self.work, |work| attempt(work, Place::Packed(pack, offset)))
                    }
                    Err(error) => Err(Fault::Error(error)),
                };
                match settle(result, oid, pack.path(), &mut first_error) {
                    Some(outcome) => {
                        self.recent = number;
                        return outcome;
                    }
                    None => continue,
                }
            }
            for dir in &self.odb.dirs {
                let path = loose::path(dir, oid);
                let result = guarded(&mut self.work, |work| match loose::open(path.clone())? {
                    Some(loose) => attempt(work, Place::Loose(Box::new(loose))).map(Some),
                    None => Ok(None),
                });
                let result = match result {
                    Ok(None) => continue,
                    Ok(Some(value)) => Ok(value),
                    Err(fault) => Err(fault),
                };
                if let Some(outcome) = settle(result, oid, &path, &mut first_error) {
                    return outcome;
                }
            }
            let packs = self.odb.refresh(&self.packs)?;
            if Arc::ptr_eq(&packs, &self.packs) {
                return Err(first_error.unwrap_or_else(|| self.odb.missing(oid, &packs)));
            }
            (self.packs, self.recent) = (packs, 0);
        }
    }
}

/// Decides after one attempt: `None` to look elsewhere, and `first` remembers why.
fn settle<T>(
    result: Result<T, Fault>,
    oid: &GitOid,
    path: &Path,
    first: &mut Option<Error>,
) -> Option<Result<T>> {
    match result {
        Ok(value) => Some(Ok(value)),
        // Another copy would be as large.
        Err(fault @ Fault::Large { .. }) => Some(Err(fault.of(oid, path))),
        Err(fault) => {
            first.get_or_insert(fault.of(oid, path));
            None
        }
    }
}

/// Runs `attempt` on hostile bytes. A panic of a decoder, which would be a defect of it, is a fault
/// of the object.
fn guarded<T>(
    work: &mut Work,
    attempt: impl FnOnce(&mut Work) -> Result<T, Fault>,
) -> Result<T, Fault> {
    match catch_unwind(AssertUnwindSafe(|| attempt(work))) {
        Ok(result) => result,
        Err(_) => {
            // It may be half-changed.
            *work = Work { cancel: work.cancel.clone(), ..Work::default() };
            Err(Fault::bad("decoding it failed"))
        }
    }
}

fn read_loose(mut loose: loose::Loose, limit: u64, out: &mut Vec<u8>) -> Result<Kind, Fault> {
    check_size(loose.size, limit)?;
    out.clear();
    out.resize(loose.size as usize, 0);
    let mut done = 0;
    while done < out.len() {
        done += loose.layer.fill(&mut out[done..])?;
    }
    loose.layer.fill(&mut [0])?;
    Ok(loose.kind)
}

fn check_size(size: u64, limit: u64) -> Result<(), Fault> {
    if size > limit { Err(Fault::Large { size, limit }) } else { Ok(()) }
}

impl Work {
    fn header(&mut self, pack: &Pack, offset: u64) -> Result<(Kind, u64), Fault> {
        let entry = pack.entry(&mut self.window, offset, PROBE_BYTES)?;
        let size = match entry.form {
            Form::Whole(kind) => return Ok((kind, entry.size)),
            Form::Delta(_) => {
                let sizes = self.delta_sizes(pack, &entry)?;
                sizes.check_result(entry.size)?;
                sizes.result
            }
        };
        let mut form = entry.form;
        for _ in 0..DELTA_CHAIN_MAX {
            match form {
                Form::Whole(kind) => return Ok((kind, size)),
                Form::Delta(base) => form = pack.entry(&mut self.window, base, PROBE_BYTES)?.form,
            }
        }
        Err(Fault::bad(ENDLESS))
    }

    /// The sizes that a delta states, without inflating more than them.
    fn delta_sizes(&mut self, pack: &Pack, entry: &Entry) -> Result<delta::Sizes, Fault> {
        let mut head = [0; SIZES_BYTES_MAX];
        let mut done = 0;
        let mut input = Input { file: pack.data()?, at: entry.data, end: pack.end()? };
        self.inflate.reset();
        while done < head.len() {
            let part = &mut head[done..];
            let (written, ended) =
                input.some(&mut self.inflate, &mut self.window, PROBE_BYTES, part)?;
            done += written;
            if ended {
                break;
            }
        }
        Ok(delta::sizes(&head[..done])?.0)
    }

    fn inflate(
        &mut self,
        pack: &Pack,
        entry: &Entry,
        limit: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        check_size(entry.size, limit)?;
        let mut input = Input { file: pack.data()?, at: entry.data, end: pack.end()? };
        input.exact(&mut self.inflate, &mut self.window, entry.size, out)
    }

    /// Collects into `chain` the deltas from `offset` to their base or to an object that `stop`
    /// supplies; returns the offset of that and what was supplied, or its entry.
    fn walk_chain<T>(
        &mut self,
        pack: &Pack,
        offset: u64,
        mut stop: impl FnMut(&mut DeltaCache, u64) -> Option<T>,
    ) -> Result<(u64, ChainEnd<T>), Fault> {
        self.chain.clear();
        let mut at = offset;
        loop {
            if let Some(found) = stop(&mut self.cache, at) {
                return Ok((at, ChainEnd::Known(found)));
            }
            let entry = pack.entry(&mut self.window, at, ENTRY_BYTES)?;
            match entry.form {
                Form::Whole(kind) => return Ok((at, ChainEnd::Whole(kind, entry))),
                Form::Delta(base) => {
                    if self.chain.len() == DELTA_CHAIN_MAX {
                        return Err(Fault::bad(ENDLESS));
                    }
                    self.chain.push((at, entry));
                    at = base;
                }
            }
        }
    }

    fn read_packed(
        &mut self,
        pack: &Pack,
        offset: u64,
        limit: u64,
        out: &mut Vec<u8>,
    ) -> Result<Kind, Fault> {
        let id = pack.data()?.id();
        let (mut base_at, end) = self.walk_chain(pack, offset, |cache, at| cache.take(id, at))?;
        let kind = match end {
            ChainEnd::Known((kind, bytes)) => {
                check_size(bytes.len() as u64, limit)?;
                *out = bytes;
                kind
            }
            ChainEnd::Whole(kind, entry) => {
                self.inflate(pack, &entry, limit, out)?;
                kind
            }
        };
        // `out` is the base of the next delta, `spare` becomes what it makes.
        let mut delta = std::mem::take(&mut self.delta);
        while let Some((at, entry)) = self.chain.pop() {
            self.inflate(pack, &entry, limit, &mut delta)?;
            let (sizes, skip) = delta::sizes(&delta)?;
            sizes.check_result(entry.size)?;
            check_size(sizes.result, limit)?;
            let mut made = std::mem::take(&mut self.spare);
            delta::apply(out, &delta, skip, sizes, &mut made)?;
            let base = std::mem::replace(out, made);
            self.spare = self.cache.put(id, base_at, kind, base);
            base_at = at;
        }
        self.delta = delta;
        for buffer in [&mut self.delta, &mut self.spare] {
            if buffer.capacity() as u64 > LIGHT_OBJECT_BYTES_MAX {
                *buffer = Vec::new();
            }
        }
        Ok(kind)
    }

    /// Compares the bases of the deltas in `chain`, the first of which has `size` bytes, with what
    /// may be written for one object, before any is.
    fn check_bases(&mut self, pack: &Pack, size: u64) -> Result<(), Fault> {
        let mut bases = if self.chain.is_empty() { 0 } else { size };
        // What the delta at 0 makes is the object itself.
        for number in 1..self.chain.len() {
            let (_, entry) = self.chain[number];
            bases = bases.saturating_add(self.delta_sizes(pack, &entry)?.result);
        }
        check_size(bases, DELTA_BASES_BYTES_MAX)
    }

    fn stream_packed(
        &mut self,
        pack: &Pack,
        offset: u64,
        dir: &Path,
    ) -> Result<(Kind, u64, Box<dyn Layer>), Fault> {
        let (_, end) = self.walk_chain(pack, offset, |_, _| None::<Never>)?;
        let (kind, entry) = match end {
            ChainEnd::Whole(kind, entry) => (kind, entry),
            ChainEnd::Known(never) => match never {},
        };
        let file = pack.data()?;
        let inflate = |entry: &Entry| -> Result<InflateLayer, Fault> {
            Ok(InflateLayer::new(Arc::clone(file), entry.data, pack.end()?, entry.size))
        };
        let mut layer: Box<dyn Layer> = Box::new(inflate(&entry)?);
        self.check_bases(pack, entry.size)?;
        let mut size = entry.size;
        while let Some((_, entry)) = self.chain.pop() {
            let base = spill(&mut *layer, size, dir, &self.cancel)?;
            let (next, sizes) = DeltaLayer::new(inflate(&entry)?, base, size)?;
            sizes.check_result(entry.size)?;
            (layer, size) = (Box::new(next), sizes.result);
        }
        Ok((kind, size, layer))
    }
}

/// Where a chain of deltas ends.
enum ChainEnd<T> {
    /// At an object that is at hand.
    Known(T),
    /// At an object that is no delta.
    Whole(Kind, Entry),
}

/// What is never at hand.
enum Never {}
