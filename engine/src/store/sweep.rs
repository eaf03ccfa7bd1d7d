//! What a garbage collection does to the tables and the segment files.

use std::io;

use super::batch::Batch;
use super::collector::{Candidates, Item};
use super::segment::{RECORD_HEADER_BYTES, RecordHeader, Segments};
use super::tables::{
    At, Extent, META_COMPACT, Object, Place, Table, content_key, corrupt_entry, decode_stored,
    decode_subtree, oid_from_key,
};
use super::{Core, count, decode_sealed};
use crate::error::{Error, Result};
use crate::id::{ChunkId, TreeId};

/// The bytes that an entry takes, with what it names in a segment.
pub(crate) fn bytes_of(key: &[u8], value: &[u8], extent: Option<Extent>) -> u64 {
    let stored = extent.map_or(0, |extent| record_bytes(&extent));
    (key.len() + value.len()) as u64 + stored
}

/// The bytes that a record takes in its segment.
pub(crate) fn record_bytes(extent: &Extent) -> u64 {
    RECORD_HEADER_BYTES as u64 + u64::from(extent.stored_len)
}

/// The object that the entry `key` of `table` is, and where in a segment it lies.
pub(crate) fn locate(table: Table, key: &[u8], value: &[u8]) -> Result<(Object, Option<Extent>)> {
    let bad = || corrupt_entry(table, key, "its key is no digest");
    let id = key.try_into().map_err(|_| bad())?;
    let object = match table {
        Table::Chunks => Object::Chunk(ChunkId::new(id)),
        Table::Trees => Object::Tree(TreeId::new(id)),
        _ => return Err(bad()),
    };
    let extent = match Place::decode(&object, value)?.at {
        At::Inline(_) => None,
        At::Segment(extent) => Some(extent),
    };
    Ok((object, extent))
}

/// Whether the entry of a table that a collection looks at is garbage: not marked itself, or leads to
/// what is not.
///
/// # Errors
/// [`Error::Corrupt`] for one that cannot be.
pub(crate) fn is_garbage(
    candidates: &Candidates,
    table: Table,
    key: &[u8],
    value: &[u8],
) -> Result<bool> {
    let bad = || corrupt_entry(table, key, "its key is impossible");
    Ok(match table {
        Table::Blobs => {
            let stored = decode_sealed(table, key, value, decode_stored)?;
            candidates.is_content_unmarked(&stored.id)
        }
        Table::Contents => {
            let (id, _) = key.split_first_chunk::<32>().ok_or_else(bad)?;
            candidates.is_content_unmarked(&crate::ContentId::new(*id))
        }
        Table::GitTrees => {
            let subtree = decode_sealed(table, key, value, decode_subtree)?;
            candidates.is_unmarked(&Item::Tree(subtree.id))
        }
        _ => candidates.is_unmarked(&Item::of(table, key).ok_or_else(bad)?),
    })
}

impl Batch<'_> {
    /// Removes the entry `key` of `table`, unless it is no garbage by now; the number of
    /// entries, and the bytes that they took. A blob goes with the way back to it.
    ///
    /// # Errors
    /// What reading the database meets.
    pub(crate) fn remove_garbage(
        &mut self,
        candidates: &Candidates,
        table: Table,
        key: Vec<u8>,
    ) -> Result<(u64, u64)> {
        let snapshot = self.snapshot();
        let looked = snapshot.get(table, &key, |value| {
            if !is_garbage(candidates, table, &key, value)? {
                return Ok(None);
            }
            let extent = match table {
                Table::Chunks | Table::Trees => locate(table, &key, value)?.1,
                _ => None,
            };
            let back = match (table, oid_from_key(&key)) {
                (Table::Blobs, Some(oid)) => {
                    let stored = decode_sealed(table, &key, value, decode_stored)?;
                    Some(content_key(&stored.id, oid.kind()))
                }
                _ => None,
            };
            Ok(Some((bytes_of(&key, value, extent), back)))
        })?;
        let Some((mut bytes, back)) = looked.flatten() else { return Ok((0, 0)) };
        let mut entries = 1;
        self.change(table, key, None);
        if let Some(back) = back {
            let found =
                snapshot.get(Table::Contents, &back, |value| Ok(bytes_of(&back, value, None)))?;
            if let Some(found) = found.filter(|_| !self.removes(Table::Contents, &back)) {
                entries += 1;
                bytes += found;
                self.change(Table::Contents, back, None);
            }
        }
        Ok((entries, bytes))
    }

    /// Writes the record of an object to the end of the segments, as it is, if it still lies at `from`;
    /// whether it did.
    ///
    /// # Errors
    /// What reading the database and writing meet.
    pub(crate) fn move_record(&mut self, moved: &Moved, from: Extent) -> Result<bool> {
        let Moved { object, header, .. } = moved;
        let here = self.snapshot().get(object.table(), object.id(), |value| {
            let place = Place::decode(object, value)?;
            Ok(place.at == At::Segment(from))
        })?;
        if here != Some(true) {
            return Ok(false);
        }
        self.put_record(*object, header, moved.payload())?;
        Ok(true)
    }

    /// Begins a new segment, so that nothing more is written to the last one.
    ///
    /// # Errors
    /// What creating the file meets.
    pub(crate) fn rotate(&mut self) -> Result<()> {
        let rotated = self.appender().rotate();
        self.note_append(rotated.is_ok());
        rotated
    }

    /// Asks for the database to be compacted when it is opened next.
    pub(crate) fn ask_for_compaction(&mut self) {
        self.put_sealed(Table::Meta, META_COMPACT.to_vec(), Vec::new());
    }
}

/// A record that was read to be moved.
pub(crate) struct Moved {
    object: Object,
    header: RecordHeader,
    /// Header and payload.
    record: Vec<u8>,
}

impl Moved {
    /// Reads and verifies the record of `object` at `extent`; `None` if the object lies elsewhere.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a damaged one, what reading meets.
    pub(crate) fn read(core: &Core, object: Object, extent: Extent) -> Result<Option<Self>> {
        let mut record = Vec::new();
        let found = core.snapshot().get(object.table(), object.id(), |value| {
            let place = Place::decode(&object, value)?;
            if place.at != At::Segment(extent) {
                return Ok(None);
            }
            let header = core.segments().read(&object, &place, extent, &mut record)?;
            if header.is_intact(&record[RECORD_HEADER_BYTES..]) {
                return Ok(Some(header));
            }
            Err(object.corrupt_at(&place.at, "its checksum is wrong"))
        })?;
        Ok(found.flatten().map(|header| Self { object, header, record }))
    }

    fn payload(&self) -> &[u8] {
        &self.record[RECORD_HEADER_BYTES..]
    }

    /// Its bytes in a segment.
    pub(crate) fn bytes(&self) -> u64 {
        self.record.len() as u64
    }
}

impl Core {
    /// Removes segment files to which nothing refers, in a durable state of the database.
    ///
    /// # Errors
    /// The operating system's.
    pub(crate) fn remove_segments(&self, numbers: &[u32]) -> Result<()> {
        let segments: &Segments = &self.segments;
        for &number in numbers {
            match segments.remove(number) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", &segments.path(number), error));
                }
                _ => {}
            }
        }
        if !numbers.is_empty() {
            let dir = segments.dir();
            segments.storage().sync_dir(dir).map_err(|error| Error::io("sync", dir, error))?;
            count(&self.counters.syncs, 1);
        }
        Ok(())
    }
}
