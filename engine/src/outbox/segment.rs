//! Segment files of an outbox, and places in them. `docs/FORMAT.md` gives the bytes.

use std::collections::hash_map::RandomState;
use std::ffi::OsStr;
use std::fmt;
use std::hash::BuildHasher;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use twox_hash::XxHash3_64;

use crate::error::{Error, Result};
use crate::fields::Fields;
use crate::id::Sequence;
use crate::storage::File;

/// Length of a segment's header. Frames follow it.
pub(super) const SEGMENT_HEADER_BYTES: usize = 64;
/// The version of segments and frames that this crate writes, and the only one it reads.
pub(super) const OUTBOX_VERSION: u32 = 1;
const SEGMENT_MAGIC: [u8; 8] = *b"agentobx";
const CHECKSUM_AT: usize = SEGMENT_HEADER_BYTES - 8;

/// What a segment says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) number: u64,
    /// The sequence of its first record, or of the next one if it holds none. It takes the place of
    /// all records from this one on that older segments hold.
    pub(super) first: Sequence,
    /// What was known to be synced when the segment was begun.
    pub(super) durable: Sequence,
    /// Stated by each of its frames again, so that a recycled block of another segment is none.
    pub(super) salt: u32,
}

/// What the first bytes of a segment file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Header {
    /// A header of the known version.
    Intact(SegmentHeader),
    /// A header of another version.
    Unknown(u32),
    /// No header: too short, or its checksum is wrong.
    Torn,
}

impl SegmentHeader {
    /// Whether the writer writes such headers at all.
    pub(super) fn is_plausible(&self) -> bool {
        self.durable < self.first
    }

    pub(super) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[..8].copy_from_slice(&SEGMENT_MAGIC);
        bytes[8..12].copy_from_slice(&OUTBOX_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.salt.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.first.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.durable.0.to_le_bytes());
        let checksum = XxHash3_64::oneshot(&bytes[..CHECKSUM_AT]);
        bytes[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Header {
        Self::parse(bytes).unwrap_or(Header::Torn)
    }

    fn parse(bytes: &[u8]) -> Option<Header> {
        let (fields, checksum) = bytes.get(..SEGMENT_HEADER_BYTES)?.split_at(CHECKSUM_AT);
        // Magic, version and checksum have their places in every version.
        let intact = checksum == XxHash3_64::oneshot(fields).to_le_bytes();
        let mut fields = Fields(fields.strip_prefix(&SEGMENT_MAGIC).filter(|_| intact)?);
        let version = fields.u32()?;
        if version != OUTBOX_VERSION {
            return Some(Header::Unknown(version));
        }
        let salt = fields.u32()?;
        let (number, first, durable) = (fields.u64()?, fields.u64()?, fields.u64()?);
        let (first, durable) = (Sequence(first), Sequence(durable));
        Some(Header::Intact(Self { number, first, durable, salt }))
    }
}

/// The file name of segment `number`.
pub(super) fn segment_name(number: u64) -> String {
    format!("{number:08}.obx")
}

/// A salt for the frames of segment `number`: any number will do that is another one each time.
pub(super) fn new_salt(number: u64) -> u32 {
    RandomState::new().hash_one(number) as u32
}

/// The number of the segment of this file name; `None` if it is not one.
pub(super) fn segment_number(name: &OsStr) -> Option<u64> {
    let number = name.to_str()?.strip_suffix(".obx")?.parse().ok()?;
    (OsStr::new(&segment_name(number)) == name).then_some(number)
}

/// The number of the segment at this path.
pub(crate) fn segment_number_of(path: &Path) -> Option<u64> {
    path.file_name().and_then(segment_number)
}

/// An open segment file. It stays readable when it is removed.
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn File>,
    /// Whether its name is known to be durable.
    named: AtomicBool,
}

impl Segment {
    pub(super) fn new(number: u64, path: PathBuf, file: Arc<dyn File>) -> Self {
        Self { number, path, file, named: AtomicBool::new(false) }
    }

    pub(super) fn is_named(&self) -> bool {
        self.named.load(Ordering::Relaxed)
    }

    /// Notes that the directory was synced since the segment was created.
    pub(super) fn set_named(&self) {
        self.named.store(true, Ordering::Relaxed);
    }

    pub(super) fn error(&self, action: &'static str, error: io::Error) -> Error {
        Error::io(action, &self.path, error)
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Segment").field(&self.number).finish()
    }
}

/// Bytes of a record's body in a segment of an outbox. It keeps the segment readable when that is
/// trimmed, and is cheap to clone.
#[derive(Clone, Debug)]
pub struct Place {
    segment: Arc<Segment>,
    offset: u64,
}

impl PartialEq for Place {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.segment, &other.segment) && self.offset == other.offset
    }
}

impl Place {
    pub(super) fn new(segment: Arc<Segment>, offset: u64) -> Self {
        Self { segment, offset }
    }

    /// Fills `out` from here.
    ///
    /// # Errors
    /// [`Error::Outbox`] if the segment ends before, else [`Error::Io`].
    pub fn read(&self, out: &mut [u8]) -> Result<()> {
        self.segment.file.read_at(self.offset, out).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => damaged(
                &self.segment.path,
                self.offset,
                &format!("the segment ends before {} bytes", out.len()),
            ),
            _ => self.segment.error("read", error),
        })
    }

    /// The place `delta` bytes further.
    #[must_use]
    pub fn at(&self, delta: u64) -> Self {
        Self { segment: Arc::clone(&self.segment), offset: self.offset + delta }
    }

    /// The number of the segment.
    pub fn segment_number(&self) -> u64 {
        self.segment.number
    }

    /// The offset in the segment file, in bytes.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether this place begins where `other_len` bytes at `other` end.
    pub fn follows(&self, other: &Self, other_len: u64) -> bool {
        Arc::ptr_eq(&self.segment, &other.segment)
            && other.offset.checked_add(other_len) == Some(self.offset)
    }
}

/// An [`Error::Outbox`] about the bytes at `offset` of a segment file.
pub(super) fn damaged(path: &Path, offset: u64, why: &str) -> Error {
    Error::Outbox { segment: path.to_owned(), offset, record: None, why: why.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Storage;
    use crate::testing::FaultyStorage;

    fn header() -> SegmentHeader {
        SegmentHeader { number: 7, first: Sequence(1 << 40), durable: Sequence(99), salt: 0xabcd }
    }

    #[test]
    fn a_header_reads_back_and_every_flipped_bit_is_noticed() {
        let bytes = header().encode();
        assert_eq!(SegmentHeader::decode(&bytes), Header::Intact(header()));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&bad), Header::Torn, "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert_eq!(SegmentHeader::decode(&bytes[..len]), Header::Torn);
        }
        assert_eq!(SegmentHeader::decode(&[0; 64]), Header::Torn);
    }

    #[test]
    fn another_version_is_told_apart_from_damage() {
        let mut bytes = header().encode();
        bytes[8] = 2;
        let checksum = XxHash3_64::oneshot(&bytes[..CHECKSUM_AT]);
        bytes[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&bytes), Header::Unknown(2));
    }

    #[test]
    fn only_the_names_that_are_written_are_segments() {
        assert_eq!(segment_number(OsStr::new("00000001.obx")), Some(1));
        assert_eq!(segment_number(OsStr::new("123456789.obx")), Some(123_456_789));
        for name in ["1.obx", "000000001.obx", "+0000001.obx", "00000001.seg", "00000001", "x", ""]
        {
            assert_eq!(segment_number(OsStr::new(name)), None, "{name}");
        }
    }

    #[test]
    fn a_place_outlives_the_name_of_its_segment() {
        let storage = FaultyStorage::new();
        let path = Path::new("/00000001.obx");
        storage.create_dir(Path::new("/")).unwrap();
        let file = storage.open(path, true).unwrap();
        file.write_at(0, b"0123456789").unwrap();
        let segment = Arc::new(Segment::new(1, path.to_owned(), file));
        let place = Place::new(Arc::clone(&segment), 2);
        storage.remove(path).unwrap();
        let mut out = [0; 3];
        place.at(1).read(&mut out).unwrap();
        assert_eq!(&out, b"345");
        assert!(place.at(6).read(&mut out).unwrap_err().is_corruption());
        assert_eq!((place.segment_number(), place.offset()), (1, 2));

        assert!(place.at(3).follows(&place, 3));
        assert!(!place.at(3).follows(&place, 2));
        assert!(!place.follows(&place.at(1), u64::MAX));
        let other = Segment::new(1, path.to_owned(), Arc::clone(&segment.file));
        assert!(!place.at(3).follows(&Place::new(Arc::new(other), 2), 3));
    }
}
