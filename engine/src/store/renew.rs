//! The database written anew, without what is damaged in tables that can be made again.
//!
//! redb cannot work on a tree of pages of which one is damaged, not even to remove it. So everything that can
//! be read goes into a new file, which then takes the place of the old one. Entries are left out only of
//! tables whose entries are also told elsewhere, so that one that is gone is missed by whoever refers to it: where chunks and
//! directory objects lie is told by the records in the segments, and what git's objects became is found by taking
//! them in again. What the other tables say is told by nobody else, and an entry that is gone would not be
//! missed: with one that cannot be read to its end nothing is done.

use std::cmp::Ordering;
use std::io;
use std::sync::Arc;

use super::append::Tail;
use super::database::{Changes, Database, Snapshot, no_changes};
use super::entries::{blob_of, check_content, chunk_of, git_tree_of, manifest_of, tree_of};
use super::open::{DATABASE_FILE, DATABASE_NEW_FILE, create_anew, put_in_place, tail_of};
use super::segment::{RECORD_HEADER_BYTES, RecordHeader, SEGMENT_HEADER_BYTES};
use super::tables::{At, Extent, Place, Table, content_key, seal};
use super::{Core, Store, count};
use crate::error::{Error, Result};
use crate::storage::File;

/// The tables of which entries may be left out.
const MADE_AGAIN: [Table; 6] =
    [Table::Chunks, Table::Trees, Table::Manifests, Table::Blobs, Table::Contents, Table::GitTrees];

/// Bytes of entries that are held in memory before they are written.
const BATCH_BYTES: usize = 16 << 20;

/// Whether entries of the table of this name may be left out.
pub(crate) fn is_made_again(table: &str) -> bool {
    MADE_AGAIN.iter().any(|made| made.name() == table)
}

impl Store {
    /// Writes the database anew without the damaged entries of tables that can be made again, and with
    /// the places of all intact records of the segments, if some were damaged. Returns once that is durable and in use. A crash
    /// leaves the one or the other (rule 28 of docs/DURABILITY.md).
    ///
    /// # Errors
    /// [`Error::Corrupt`] if another table cannot be read to its end, and what writing meets: then nothing
    /// has changed.
    pub(crate) fn renew_database(&self) -> Result<()> {
        let _upkeep = self.upkeep();
        let core = &*self.core;
        let turn = core.turns.join();
        turn.wait();
        let mut state = core.lock_state();
        let storage = core.segments.storage();
        let new = core.dir.join(DATABASE_NEW_FILE);
        let file = create_anew(storage, &new)?;
        let snapshot = core.snapshot();
        let database = Database::begin(&new, Arc::clone(&file), Arc::clone(&core.counters))?;
        let mut copy = Copy {
            core,
            snapshot: &snapshot,
            database: &database,
            places_lost: false,
            changes: no_changes(),
            bytes: 0,
        };
        for table in Table::ALL {
            copy.table(table)?;
        }
        copy.flush()?;
        if copy.places_lost {
            copy.find_places(tail_of(&snapshot)?)?;
            copy.flush()?;
        }
        drop(database);
        put_in_place(storage, &*file, &new, &core.dir.join(DATABASE_FILE))?;
        count(&core.counters.commits, 1);
        core.reopen(&mut state)
    }
}

struct Copy<'a> {
    core: &'a Core,
    /// What there was.
    snapshot: &'a Snapshot,
    /// What there is to be.
    database: &'a Database,
    /// Whether it was left out where some objects lie.
    places_lost: bool,
    /// What is not written yet.
    changes: Changes,
    /// Bytes of that.
    bytes: usize,
}

impl Copy<'_> {
    /// Copies a table.
    fn table(&mut self, table: Table) -> Result<()> {
        let snapshot = self.snapshot;
        let mut last: Option<Vec<u8>> = None;
        let mut entries = 0;
        let mut ordered = true;
        let mut failed = None;
        let read = snapshot.scan_from(table, b"", |key, value| {
            ordered &= last.as_deref().is_none_or(|last| last < key);
            last = Some(key.to_vec());
            entries += 1;
            failed = self.entry(table, key, value).err();
            Ok(failed.is_none())
        });
        if let Some(error) = failed {
            return Err(error);
        }
        let whole = read.and_then(|()| {
            let len = snapshot.len(table)?;
            let why = format!("{entries} of its {len} entries are there, in order: {ordered}");
            let what = || format!("table {} of {}", table.name(), DATABASE_FILE);
            (ordered && entries == len).then_some(()).ok_or_else(|| Error::corrupt(what(), why))
        });
        match whole {
            Err(error) if !MADE_AGAIN.contains(&table) => return Err(error),
            Err(error) => self.leave_out(table, &error),
            Ok(()) => return Ok(()),
        }
        // What lies behind the damage, from the other end on.
        let read = snapshot.scan_back(table, |key, value| {
            if last.as_deref().is_some_and(|last| key <= last) {
                return Ok(false);
            }
            failed = self.entry(table, key, value).err();
            Ok(failed.is_none())
        });
        // It ends where the damage is.
        drop(read);
        failed.map_or(Ok(()), Err)
    }

    /// Copies an entry, unless it is damaged and can be made again.
    fn entry(&mut self, table: Table, key: &[u8], value: &[u8]) -> Result<()> {
        if !MADE_AGAIN.contains(&table) {
            return self.put(table, key, value.to_vec());
        }
        if let Err(error) = self.verify(table, key, value) {
            self.leave_out(table, &error);
            return Ok(());
        }
        if table == Table::Blobs {
            self.way_back(key, value)?;
        }
        self.put(table, key, value.to_vec())
    }

    fn leave_out(&mut self, table: Table, error: &Error) {
        tracing::warn!(%error, "left out of table {}", table.name());
        self.places_lost |= matches!(table, Table::Chunks | Table::Trees);
    }

    /// The error of an entry that is damaged.
    fn verify(&self, table: Table, key: &[u8], value: &[u8]) -> Result<()> {
        match table {
            Table::Chunks => chunk_of(key, value).map(drop),
            Table::Trees => tree_of(key, value).map(drop),
            Table::Manifests => manifest_of(key, value).map(drop),
            Table::Blobs => blob_of(key, value).map(drop),
            Table::Contents => check_content(self.snapshot, key, value),
            Table::GitTrees => git_tree_of(key, value).map(drop),
            _ => Ok(()),
        }
    }

    /// Puts the way back from a content to this blob, if there is none to any.
    fn way_back(&mut self, blob: &[u8], value: &[u8]) -> Result<()> {
        let (oid, stored) = blob_of(blob, value)?;
        let key = content_key(&stored.id, oid.kind());
        let is_there = self.snapshot.get(Table::Contents, &key, |value| {
            Ok(check_content(self.snapshot, &key, value).is_ok())
        });
        // A damaged page tells nothing.
        if is_there.is_ok_and(|there| there == Some(true)) {
            return Ok(());
        }
        let sealed = seal(&key, blob.to_vec());
        self.put(Table::Contents, &key, sealed)
    }

    /// Puts the places of the records before `tail` that no entry has.
    fn find_places(&mut self, tail: Tail) -> Result<()> {
        let known = self.database.snapshot()?;
        for (number, file) in self.core.segments.all() {
            let end = match number.cmp(&tail.segment) {
                Ordering::Less => u64::MAX,
                Ordering::Equal => tail.end,
                Ordering::Greater => continue,
            };
            self.find_places_in(number, &*file, end, &known)
                .map_err(|error| Error::io("read", &self.core.segments.path(number), error))??;
        }
        Ok(())
    }

    /// The same in segment `number`, up to `end`.
    fn find_places_in(
        &mut self,
        segment: u32,
        file: &dyn File,
        end: u64,
        known: &Snapshot,
    ) -> io::Result<Result<()>> {
        let end = end.min(file.len()?);
        let mut record = Vec::new();
        let mut start = SEGMENT_HEADER_BYTES as u64;
        while start + RECORD_HEADER_BYTES as u64 <= end {
            record.resize(RECORD_HEADER_BYTES, 0);
            file.read_at(start, &mut record)?;
            // Behind a damaged header nobody knows where the next record begins.
            let Ok(header) = RecordHeader::decode(&record) else { break };
            let RecordHeader { object, encoding, raw_len, stored_len, .. } = header;
            let next = start + RECORD_HEADER_BYTES as u64 + u64::from(stored_len);
            let Ok(offset) = u32::try_from(start) else { break };
            if u64::from(raw_len) > object.limit() || stored_len > raw_len || next > end {
                break;
            }
            let put = known.contains(object.table(), object.id()).map(|known| !known);
            if put.as_ref().is_ok_and(|wanted| *wanted) {
                record.resize(RECORD_HEADER_BYTES + stored_len as usize, 0);
                file.read_at(start, &mut record)?;
            }
            let at = At::Segment(Extent { segment, offset, stored_len });
            let place = Place { encoding, raw_len, at };
            let put = put.and_then(|wanted| {
                if wanted && header.is_intact(&record[RECORD_HEADER_BYTES..]) {
                    self.put(object.table(), object.id(), place.encode())?;
                }
                Ok(())
            });
            if put.is_err() {
                return Ok(put);
            }
            start = next;
        }
        Ok(Ok(()))
    }

    fn put(&mut self, table: Table, key: &[u8], value: Vec<u8>) -> Result<()> {
        self.bytes += key.len() + value.len();
        self.changes.entry(table).or_default().insert(key.to_vec(), Some(value));
        if self.bytes >= BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        self.bytes = 0;
        self.database.apply(&std::mem::replace(&mut self.changes, no_changes()))
    }
}
