//! Appends records to segment files. Only the batch that holds the write lock has it.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::segment::{
    RECORD_HEADER_BYTES, RecordHeader, SEGMENT_HEADER_BYTES, Segments, segment_header,
};
use super::tables::Extent;
use crate::error::{Error, Result};
use crate::fields::Fields;
use crate::limits::SEGMENT_BYTES_MAX;
use crate::storage::File;

/// Tests rotate sooner, so that they meet it.
const ROTATE_BYTES: u64 = if cfg!(test) { 2 << 20 } else { SEGMENT_BYTES_MAX };

/// Bytes gathered before they are written, to save system calls.
const BUFFER_BYTES: usize = 1 << 20;

/// The end of what is stored in segments: everything before it is synced, nothing after it counts.
/// Segments are numbered from 1; before the first one, it is the end of segment 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tail {
    pub(crate) segment: u32,
    pub(crate) end: u64,
}

impl Tail {
    pub(super) fn encode(&self) -> Vec<u8> {
        [&self.segment.to_le_bytes()[..], &self.end.to_le_bytes()].concat()
    }

    pub(super) fn decode(value: &[u8]) -> Option<Self> {
        let mut fields = Fields(value);
        let tail = Self { segment: fields.u32()?, end: fields.u64()? };
        fields.0.is_empty().then_some(tail)
    }
}

/// The writing end of the segments.
pub(super) struct Appender {
    segments: Arc<Segments>,
    tail: Tail,
    /// The file of the tail's segment, once it was needed.
    file: Option<Arc<dyn File>>,
    /// The last bytes before the tail, not yet written.
    buffer: Vec<u8>,
    /// Finished segments with unsynced bytes.
    finished: Vec<(u32, Arc<dyn File>)>,
    dirty: bool,
    created: bool,
    /// Bytes appended since the last sync.
    appended: u64,
    /// Bytes written and syncs made, to be counted by the owner.
    pub(super) written: u64,
    pub(super) syncs: u64,
}

impl fmt::Debug for Appender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Appender").field("tail", &self.tail).finish_non_exhaustive()
    }
}

impl Appender {
    /// An appender that goes on at `tail`; what lies beyond it, left by a crash, is cut off.
    pub(super) fn open(segments: Arc<Segments>, tail: Tail) -> Result<Self> {
        let mut appender = Self {
            segments,
            tail,
            file: None,
            buffer: Vec::new(),
            finished: Vec::new(),
            dirty: false,
            created: false,
            appended: 0,
            written: 0,
            syncs: 0,
        };
        appender.cut()?;
        Ok(appender)
    }

    pub(super) fn tail(&self) -> Tail {
        self.tail
    }

    /// Bytes appended since the last sync.
    pub(super) fn appended(&self) -> u64 {
        self.appended
    }

    /// Appends a record.
    pub(super) fn append(&mut self, header: &RecordHeader, stored: &[u8]) -> Result<Extent> {
        let len = (RECORD_HEADER_BYTES + stored.len()) as u64;
        if self.tail.segment == 0
            || (self.tail.end + len > ROTATE_BYTES && self.tail.end > SEGMENT_HEADER_BYTES as u64)
        {
            self.begin_segment()?;
        }
        let extent = Extent {
            segment: self.tail.segment,
            // Below the limit of a segment, or the first record in one.
            offset: self.tail.end as u32,
            stored_len: stored.len() as u32,
        };
        self.buffer.extend_from_slice(&header.encode());
        self.buffer.extend_from_slice(stored);
        self.tail.end += len;
        self.appended += len;
        self.dirty = true;
        if self.buffer.len() >= BUFFER_BYTES {
            self.write_buffer()?;
        }
        Ok(extent)
    }

    /// Makes everything appended durable, names of files included.
    pub(super) fn sync(&mut self) -> Result<()> {
        self.write_buffer()?;
        let current =
            self.file.clone().filter(|_| self.dirty).map(|file| (self.tail.segment, file));
        for (number, file) in self.finished.iter().cloned().chain(current) {
            file.sync().map_err(|error| Error::io("sync", &self.segments.path(number), error))?;
            self.syncs += 1;
        }
        if self.created {
            let dir = self.segments.dir();
            self.segments.storage().sync_dir(dir).map_err(|error| Error::io("sync", dir, error))?;
            self.syncs += 1;
        }
        self.finished.clear();
        self.dirty = false;
        self.appended = 0;
        self.created = false;
        Ok(())
    }

    /// Goes back to `tail`, where the last durable batch ended.
    pub(super) fn rewind(&mut self, tail: Tail) -> Result<()> {
        if self.tail == tail {
            return Ok(());
        }
        self.tail = tail;
        self.file = None;
        self.buffer.clear();
        self.finished.clear();
        self.dirty = false;
        self.appended = 0;
        self.cut()
    }

    /// Begins a new segment, unless nothing is in the last one.
    pub(super) fn rotate(&mut self) -> Result<()> {
        if self.tail.segment == 0 || self.tail.end == SEGMENT_HEADER_BYTES as u64 {
            return Ok(());
        }
        self.begin_segment()?;
        self.dirty = true;
        Ok(())
    }

    fn begin_segment(&mut self) -> Result<()> {
        self.write_buffer()?;
        if let Some(file) = self.file.take().filter(|_| self.dirty) {
            self.finished.push((self.tail.segment, file));
        }
        let number = self.tail.segment.checked_add(1).ok_or_else(|| Error::TooLarge {
            what: "the number of segments".into(),
            limit: u64::from(u32::MAX),
        })?;
        let path = self.segments.path(number);
        let file = self
            .segments
            .storage()
            .open(&path, true)
            .map_err(|error| Error::io("create", &path, error))?;
        self.file = Some(file);
        self.created = true;
        self.buffer.extend_from_slice(&segment_header(number));
        self.tail = Tail { segment: number, end: SEGMENT_HEADER_BYTES as u64 };
        Ok(())
    }

    fn write_buffer(&mut self) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let path = self.segments.path(self.tail.segment);
        let file = match &self.file {
            Some(file) => Arc::clone(file),
            None => {
                let opened = self.segments.storage().open(&path, false);
                Arc::clone(self.file.insert(opened.map_err(|e| Error::io("open", &path, e))?))
            }
        };
        let start = self.tail.end - self.buffer.len() as u64;
        file.write_at(start, &self.buffer).map_err(|e| Error::io("append to", &path, e))?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Cuts off what lies beyond the tail: the end of its segment, and every later segment.
    fn cut(&mut self) -> Result<()> {
        let storage = self.segments.storage();
        let mut number = self.tail.segment;
        // Segments are created in order, so the first gap is the end.
        while let Some(next) = number.checked_add(1) {
            let path = self.segments.path(next);
            if !storage.exists(&path).map_err(|e| Error::io("look for", &path, e))? {
                break;
            }
            storage.remove(&path).map_err(|e| Error::io("remove", &path, e))?;
            number = next;
        }
        if number > self.tail.segment {
            self.segments.forget();
        }
        if self.tail.segment == 0 {
            return Ok(());
        }
        let path = self.segments.path(self.tail.segment);
        let file = match storage.open(&path, false) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return self.skip_damaged(),
            Err(error) => return Err(Error::io("open", &path, error)),
        };
        let len = file.len().map_err(|e| Error::io("measure", &path, e))?;
        if len < self.tail.end {
            return self.skip_damaged();
        }
        if len > self.tail.end {
            file.set_len(self.tail.end).map_err(|e| Error::io("cut", &path, e))?;
        }
        self.file = Some(file);
        Ok(())
    }

    /// The last segment lacks bytes that were synced. Whatever is left of it stays readable; new
    /// records go to the next one, so that nothing is ever written into the gap.
    fn skip_damaged(&mut self) -> Result<()> {
        tracing::error!(
            segment = self.tail.segment,
            "a segment file is shorter than recorded: some content of the store is lost"
        );
        self.tail.end = ROTATE_BYTES;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tables::Object;
    use super::*;
    use crate::content::Encoding;
    use crate::id::ChunkId;
    use crate::storage::Storage;
    use crate::testing::FaultyStorage;
    use std::path::Path;

    fn setup() -> (FaultyStorage, Arc<Segments>) {
        let storage = FaultyStorage::new();
        let dir = Path::new("/segments");
        storage.create_dir(dir).unwrap();
        let segments = Arc::new(Segments::new(Arc::new(storage.clone()), dir.to_owned()));
        (storage, segments)
    }

    fn append(appender: &mut Appender, stored: &[u8]) -> Extent {
        let object = Object::Chunk(ChunkId::of(stored));
        let header = RecordHeader::new(object, Encoding::Raw, stored.len() as u32, stored);
        appender.append(&header, stored).unwrap()
    }

    #[test]
    fn the_tail_reads_back() {
        let tail = Tail { segment: 7, end: 123_456_789_012 };
        assert_eq!(Tail::decode(&tail.encode()), Some(tail));
        assert_eq!(Tail::decode(&tail.encode()[1..]), None);
    }

    #[test]
    fn records_follow_each_other_and_rotate() {
        let (storage, segments) = setup();
        let mut appender = Appender::open(Arc::clone(&segments), Tail::default()).unwrap();
        let a = append(&mut appender, b"a");
        let b = append(&mut appender, b"bb");
        assert_eq!((a.segment, a.offset), (1, SEGMENT_HEADER_BYTES as u32));
        assert_eq!(b.offset as usize, a.offset as usize + RECORD_HEADER_BYTES + 1);
        appender.tail.end = ROTATE_BYTES - 10;
        appender.buffer.clear();
        let c = append(&mut appender, b"c");
        assert_eq!((c.segment, c.offset), (2, SEGMENT_HEADER_BYTES as u32));
        appender.sync().unwrap();
        let bytes = storage.contents(&segments.path(2)).unwrap();
        assert_eq!(bytes.len(), SEGMENT_HEADER_BYTES + RECORD_HEADER_BYTES + 1);
        assert_eq!(bytes[..SEGMENT_HEADER_BYTES], segment_header(2));
    }

    #[test]
    fn a_payload_larger_than_a_segment_gets_its_own() {
        let (_storage, segments) = setup();
        let mut appender = Appender::open(segments, Tail::default()).unwrap();
        append(&mut appender, b"first");
        let header = RecordHeader::new(Object::Chunk(ChunkId::of(b"")), Encoding::Raw, 0, b"");
        appender.tail.end = ROTATE_BYTES + 5;
        appender.buffer.clear();
        let next = appender.append(&header, b"").unwrap();
        assert_eq!(next.segment, 2);
    }

    #[test]
    fn what_lies_beyond_the_tail_is_cut_off() {
        let (storage, segments) = setup();
        let mut appender = Appender::open(Arc::clone(&segments), Tail::default()).unwrap();
        append(&mut appender, b"kept");
        appender.sync().unwrap();
        let tail = appender.tail();
        append(&mut appender, b"torn");
        appender.sync().unwrap();
        storage.open(&segments.path(2), true).unwrap();
        storage.open(&segments.path(3), true).unwrap();

        let mut appender = Appender::open(Arc::clone(&segments), tail).unwrap();
        assert_eq!(storage.contents(&segments.path(1)).unwrap().len() as u64, tail.end);
        assert_eq!(storage.contents(&segments.path(2)), None);
        assert_eq!(storage.contents(&segments.path(3)), None);
        assert_eq!(u64::from(append(&mut appender, b"new").offset), tail.end);
    }

    #[test]
    fn rewinding_forgets_what_was_appended() {
        let (storage, segments) = setup();
        let mut appender = Appender::open(Arc::clone(&segments), Tail::default()).unwrap();
        append(&mut appender, b"kept");
        appender.sync().unwrap();
        let tail = appender.tail();
        append(&mut appender, &vec![1; 2 * BUFFER_BYTES]);
        append(&mut appender, b"buffered");
        appender.rewind(tail).unwrap();
        assert_eq!(storage.contents(&segments.path(1)).unwrap().len() as u64, tail.end);
        assert_eq!(u64::from(append(&mut appender, b"new").offset), tail.end);
        appender.sync().unwrap();
        let grown = tail.end as usize + RECORD_HEADER_BYTES + 3;
        assert_eq!(storage.contents(&segments.path(1)).unwrap().len(), grown);
    }

    #[test]
    fn a_short_segment_is_left_alone() {
        let (storage, segments) = setup();
        let mut appender = Appender::open(Arc::clone(&segments), Tail::default()).unwrap();
        append(&mut appender, b"0123456789");
        appender.sync().unwrap();
        let tail = appender.tail();
        storage.tamper(&segments.path(1), |bytes| bytes.truncate(50));
        let mut appender = Appender::open(Arc::clone(&segments), tail).unwrap();
        assert_eq!(append(&mut appender, b"new").segment, 2);
        appender.sync().unwrap();
        assert_eq!(storage.contents(&segments.path(1)).unwrap().len(), 50);
    }
}
