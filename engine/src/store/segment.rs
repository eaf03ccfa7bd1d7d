//! Segment files: append-only records of chunks and trees. `docs/FORMAT.md` gives the bytes.
//!
//! The database says where a record lies; a record says what it is, so that the table of places
//! can be rebuilt from the segments alone.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;

use super::tables::{At, Extent, Object, Place};
use crate::content::Encoding;
use crate::error::{Error, Result};
use crate::fields::Fields;
use crate::id::{ChunkId, TreeId};
use crate::limits::{CHUNK_BYTES_MAX, SEGMENTS_OPEN_MAX};
use crate::storage::{File, Storage};

const SEGMENT_MAGIC: [u8; 8] = *b"agentseg";
const SEGMENT_VERSION: u32 = 1;
pub(crate) const SEGMENT_HEADER_BYTES: usize = 32;

const RECORD_MAGIC: [u8; 4] = *b"rec1";
const RECORD_CHECKSUM_BYTES: usize = 8;
pub(crate) const RECORD_HEADER_BYTES: usize = 56;

const KIND_CHUNK: u8 = 1;
const KIND_TREE: u8 = 2;

/// The header of segment `number`.
pub(super) fn segment_header(number: u32) -> [u8; SEGMENT_HEADER_BYTES] {
    let mut header = [0; SEGMENT_HEADER_BYTES];
    header[..8].copy_from_slice(&SEGMENT_MAGIC);
    header[8..12].copy_from_slice(&SEGMENT_VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&number.to_le_bytes());
    header
}

/// What a record says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) object: Object,
    pub(crate) encoding: Encoding,
    pub(crate) raw_len: u32,
    pub(crate) stored_len: u32,
    checksum: [u8; RECORD_CHECKSUM_BYTES],
}

impl RecordHeader {
    /// The header of a record that holds `stored`.
    pub(super) fn new(object: Object, encoding: Encoding, raw_len: u32, stored: &[u8]) -> Self {
        let stored_len = stored.len() as u32;
        let mut header = Self { object, encoding, raw_len, stored_len, checksum: [0; 8] };
        header.checksum = header.checksum_of(stored);
        header
    }

    /// Whether `stored` is the payload for which this header was made.
    pub(crate) fn is_intact(&self, stored: &[u8]) -> bool {
        self.checksum == self.checksum_of(stored)
    }

    fn checksum_of(&self, stored: &[u8]) -> [u8; RECORD_CHECKSUM_BYTES] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.fields()).update(stored);
        let mut checksum = [0; RECORD_CHECKSUM_BYTES];
        hasher.finalize_xof().fill(&mut checksum);
        checksum
    }

    fn fields(&self) -> [u8; RECORD_HEADER_BYTES - RECORD_CHECKSUM_BYTES] {
        let kind = match self.object {
            Object::Chunk(_) => KIND_CHUNK,
            Object::Tree(_) => KIND_TREE,
        };
        let mut fields = [0; RECORD_HEADER_BYTES - RECORD_CHECKSUM_BYTES];
        fields[..4].copy_from_slice(&RECORD_MAGIC);
        fields[4..8].copy_from_slice(&[kind, self.encoding.tag(), 0, 0]);
        fields[8..12].copy_from_slice(&self.raw_len.to_le_bytes());
        fields[12..16].copy_from_slice(&self.stored_len.to_le_bytes());
        fields[16..].copy_from_slice(self.object.id());
        fields
    }

    pub(super) fn encode(&self) -> [u8; RECORD_HEADER_BYTES] {
        let mut bytes = [0; RECORD_HEADER_BYTES];
        let (fields, checksum) = bytes.split_at_mut(RECORD_HEADER_BYTES - RECORD_CHECKSUM_BYTES);
        fields.copy_from_slice(&self.fields());
        checksum.copy_from_slice(&self.checksum);
        bytes
    }

    /// The header at the front of `bytes`; the reason, in words, if there is none.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let mut fields = Fields(bytes);
        let mut parse = || {
            let magic = fields.take::<4>()?;
            let tags = fields.take::<4>()?;
            Some((magic, tags, fields.u32()?, fields.u32()?, fields.take()?, fields.take()?))
        };
        let (magic, [kind, encoding, zero, zero2], raw_len, stored_len, id, checksum) =
            parse().ok_or("it is too short")?;
        if magic != RECORD_MAGIC {
            return Err("no record begins there");
        }
        let object = match (kind, zero, zero2) {
            (KIND_CHUNK, 0, 0) => Object::Chunk(ChunkId::new(id)),
            (KIND_TREE, 0, 0) => Object::Tree(TreeId::new(id)),
            _ => return Err("the record is of unknown kind"),
        };
        let encoding = Encoding::from_tag(encoding).ok_or("the record's encoding is unknown")?;
        Ok(Self { object, encoding, raw_len, stored_len, checksum })
    }
}

/// The segment files of a store, opened when they are first read.
pub(crate) struct Segments {
    storage: Arc<dyn Storage>,
    dir: PathBuf,
    open: ArcSwap<HashMap<u32, Arc<dyn File>>>,
}

impl fmt::Debug for Segments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segments").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Segments {
    pub(super) fn new(storage: Arc<dyn Storage>, dir: PathBuf) -> Self {
        Self { storage, dir, open: ArcSwap::default() }
    }

    pub(crate) fn storage(&self) -> &dyn Storage {
        &*self.storage
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file of segment `number`.
    pub(crate) fn path(&self, number: u32) -> PathBuf {
        self.dir.join(format!("{number:08}.seg"))
    }

    /// Reads a record, header and payload, into `buffer` and compares it with what its place says.
    pub(crate) fn read(
        &self,
        object: &Object,
        place: &Place<'_>,
        extent: Extent,
        buffer: &mut Vec<u8>,
    ) -> Result<RecordHeader> {
        let bad = |why: &str| object.corrupt_at(&At::Segment(extent), why);
        let file = self.file(extent.segment).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => bad("the segment file is missing"),
            _ => Error::io("open", &self.path(extent.segment), error),
        })?;
        let read_error = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => bad("the segment file ends before"),
            _ => Error::io("read", &self.path(extent.segment), error),
        };
        let end = u64::from(extent.offset) + RECORD_HEADER_BYTES as u64 + place.stored_len();
        // A damaged place must not make room for what the file cannot hold.
        if extent.stored_len > CHUNK_BYTES_MAX && end > file.len().map_err(read_error)? {
            return Err(bad("the segment file ends before"));
        }
        buffer.resize(RECORD_HEADER_BYTES + extent.stored_len as usize, 0);
        file.read_at(u64::from(extent.offset), buffer).map_err(read_error)?;
        let header = RecordHeader::decode(buffer).map_err(bad)?;
        let expected = (*object, place.encoding, place.raw_len, extent.stored_len);
        if (header.object, header.encoding, header.raw_len, header.stored_len) != expected {
            return Err(bad("another record lies there"));
        }
        Ok(header)
    }

    /// Opens segment `number`, or finds it open.
    pub(crate) fn file(&self, number: u32) -> io::Result<Arc<dyn File>> {
        if let Some(file) = self.open.load().get(&number) {
            return Ok(Arc::clone(file));
        }
        let file = self.storage.open(&self.path(number), false)?;
        self.open.rcu(|open| {
            let mut open = HashMap::clone(open);
            if open.len() >= SEGMENTS_OPEN_MAX {
                open.clear();
            }
            open.insert(number, Arc::clone(&file));
            open
        });
        Ok(file)
    }

    /// The numbers of all segment files, in order.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn numbers(&self) -> io::Result<Vec<u32>> {
        let number = |name: &std::ffi::OsString| {
            let number = name.to_str()?.strip_suffix(".seg")?.parse().ok()?;
            self.path(number).ends_with(name).then_some(number)
        };
        let mut numbers: Vec<_> = self.storage.list(&self.dir)?.iter().filter_map(number).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// All segment files, in order.
    pub(crate) fn all(&self) -> impl Iterator<Item = (u32, Arc<dyn File>)> {
        let numbers = self.numbers().unwrap_or_default();
        numbers.into_iter().filter_map(|n| Some((n, self.file(n).ok()?)))
    }

    /// Removes the file of segment `number`, to which nothing refers. Whoever has it open reads on.
    ///
    /// # Errors
    /// The operating system's.
    pub(super) fn remove(&self, number: u32) -> io::Result<()> {
        self.storage.remove(&self.path(number))?;
        self.open.rcu(|open| {
            let mut open = HashMap::clone(open);
            open.remove(&number);
            open
        });
        Ok(())
    }

    /// Forgets open files, after some were removed.
    pub(super) fn forget(&self) {
        self.open.store(Arc::default());
    }
}

/// The reason, in words, why the file is not segment `number`.
pub(crate) fn check_header(file: &dyn File, number: u32) -> io::Result<Option<&'static str>> {
    let mut header = [0; SEGMENT_HEADER_BYTES];
    match file.read_at(0, &mut header) {
        Ok(()) if header == segment_header(number) => Ok(None),
        Ok(()) => Ok(Some("its header is not that of this segment")),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Some("it has no header")),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> (RecordHeader, &'static [u8]) {
        let stored = b"some payload";
        let object = Object::Chunk(ChunkId::of(stored));
        (RecordHeader::new(object, Encoding::Raw, 12, stored), stored)
    }

    #[test]
    fn a_record_header_reads_back() {
        let (header, stored) = header();
        assert_eq!(RecordHeader::decode(&header.encode()), Ok(header));
        assert!(header.is_intact(stored));
        let tree = RecordHeader { object: Object::Tree(TreeId::of(b"t")), ..header };
        assert_eq!(RecordHeader::decode(&tree.encode()), Ok(tree));
    }

    #[test]
    fn every_flipped_bit_of_a_record_is_noticed() {
        let (header, stored) = header();
        let record = [&header.encode()[..], stored].concat();
        for bit in 0..record.len() * 8 {
            let mut bad = record.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let noticed = RecordHeader::decode(&bad)
                .map_or(true, |header| !header.is_intact(&bad[RECORD_HEADER_BYTES..]));
            assert!(noticed, "bit {bit}");
        }
        for len in 0..RECORD_HEADER_BYTES {
            assert!(RecordHeader::decode(&record[..len]).is_err());
        }
    }

    #[test]
    fn at_most_so_many_files_are_open() {
        let storage = crate::testing::FaultyStorage::new();
        let dir = Path::new("/segments");
        storage.create_dir(dir).unwrap();
        let segments = Segments::new(Arc::new(storage.clone()), dir.to_owned());
        for number in 0..SEGMENTS_OPEN_MAX as u32 + 10 {
            storage.open(&segments.path(number), true).unwrap();
            segments.file(number).unwrap();
            assert!(segments.open.load().len() <= SEGMENTS_OPEN_MAX);
        }
        assert_eq!(segments.file(9999).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
