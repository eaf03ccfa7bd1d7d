//! A pack and its entries.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use agentfs_engine::{GitOid, HashKind};
use gix::odb::pack::data;

use super::file::{RandomFile, Window};
use super::index::PackIndex;
use super::inflate::check_stated;
use super::{Fault, Kind};
use crate::error::Result;
use crate::object::to_gix_kind;

const MAGIC: [u8; 4] = *b"PACK";
const HEADER_BYTES: u64 = 12;
/// An entry's header: two numbers of at most ten bytes, or one and an object id.
const ENTRY_HEADER_BYTES_MAX: usize = 64;
/// Read at once when only the header of an entry is wanted, and the head of a delta.
pub(super) const PROBE_BYTES: usize = 512;
/// Read at once when the object is wanted too: all of most.
pub(super) const ENTRY_BYTES: usize = 4096;

/// A pack, opened when it is first read.
#[derive(Debug)]
pub(super) struct Pack {
    index: PackIndex,
    hash: HashKind,
    path: PathBuf,
    data: OnceLock<Arc<RandomFile>>,
}

/// What an entry's header says of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// What the bytes are.
    pub(super) form: Form,
    /// Their number: of the object, or of the delta's instructions.
    pub(super) size: u64,
    /// Where the compressed bytes begin.
    pub(super) data: u64,
}

/// How an entry holds its object.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    Whole(Kind),
    /// As a delta to the entry at this offset.
    Delta(u64),
}

impl Pack {
    /// The pack whose index is at `path`.
    pub(super) fn open(path: PathBuf, hash: HashKind) -> Result<Self> {
        let pack = path.with_extension("pack");
        Ok(Self { index: PackIndex::open(path, hash)?, hash, path: pack, data: OnceLock::new() })
    }

    pub(super) fn index(&self) -> &PackIndex {
        &self.index
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The file, its header compared with the index.
    pub(super) fn data(&self) -> Result<&Arc<RandomFile>> {
        if let Some(file) = self.data.get() {
            return Ok(file);
        }
        let file = RandomFile::open(self.path.clone())?;
        let mut header = [0; HEADER_BYTES as usize];
        file.read_exact(0, &mut header)?;
        let [magic, version, count] = [0, 4, 8].map(|at| {
            u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        });
        if magic != u32::from_be_bytes(MAGIC) || !matches!(version, 2 | 3) {
            return Err(file.corrupt("it does not begin as a pack of version 2 or 3"));
        }
        if count != self.index.count() {
            return Err(file
                .corrupt(format!("it states {count} objects, its index {}", self.index.count())));
        }
        if file.len() < HEADER_BYTES + self.hash.len() as u64 {
            return Err(file.corrupt("it is too short to end with a checksum"));
        }
        Ok(self.data.get_or_init(|| Arc::new(file)))
    }

    /// Where the entries end.
    pub(super) fn end(&self) -> Result<u64> {
        Ok(self.data()?.len() - self.hash.len() as u64)
    }

    /// Reads the header of the entry at `offset`, and `fill` bytes if any must be read.
    pub(super) fn entry(
        &self,
        window: &mut Window,
        offset: u64,
        fill: usize,
    ) -> Result<Entry, Fault> {
        let (file, end) = (self.data()?, self.end()?);
        if offset < HEADER_BYTES || offset >= end {
            return Err(Fault::bad(format!("offset {offset} is outside the pack")));
        }
        let head = window.at(file, offset, end, ENTRY_HEADER_BYTES_MAX, fill)?;
        let entry = data::Entry::from_bytes(head, offset, to_gix_kind(self.hash))
            .map_err(|error| Fault::bad(format!("{error} at offset {offset}")))?;
        let form = match entry.header {
            data::entry::Header::Commit => Form::Whole(Kind::Commit),
            data::entry::Header::Tree => Form::Whole(Kind::Tree),
            data::entry::Header::Blob => Form::Whole(Kind::Blob),
            data::entry::Header::Tag => Form::Whole(Kind::Tag),
            data::entry::Header::OfsDelta { base_distance } => {
                let base = offset.checked_sub(base_distance).filter(|base| *base < offset);
                Form::Delta(base.ok_or_else(|| {
                    Fault::bad(format!("the delta at offset {offset} has a base outside the pack"))
                })?)
            }
            data::entry::Header::RefDelta { base_id } => Form::Delta(self.base(offset, &base_id)?),
        };
        let (size, data) = (entry.decompressed_size, entry.data_offset);
        check_stated(size, end.saturating_sub(data))?;
        Ok(Entry { form, size, data })
    }

    /// Where the base of the delta at `offset` lies, which names it by id. A pack on disk holds the
    /// bases of all its deltas.
    fn base(&self, offset: u64, id: &gix::hash::oid) -> Result<u64, Fault> {
        let found = match GitOid::from_slice(self.hash, id.as_bytes()) {
            Some(oid) => self.index.find(&oid)?,
            None => None,
        };
        found.ok_or_else(|| {
            Fault::bad(format!("the base {id} of the delta at offset {offset} is not in the pack"))
        })
    }
}
