//! Segment files of which little is used are emptied, by writing what is left of them to the end of the
//! segments, and removed.
//!
//! Nothing is ever written to a segment again after the next one was begun, so what refers to such a one only
//! becomes less. A file is removed when no entry of the database, as it is on the device, refers to
//! it. Who has read an entry before that finds the file gone, and reads the entry again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{Amount, GcReport};
use crate::error::{Error, Result};
use crate::progress::{Cancel, Phase, Progress};
use crate::store::{
    Candidates, Extent, Moved, Object, SEGMENT_HEADER_BYTES, Snapshot, Store, Table, is_garbage,
    locate, record_bytes, tail_of,
};

/// A segment is emptied when at least one part in so many of it is not used.
const WASTE_PART: u64 = 4;
/// Fewer unused bytes than this are not worth it.
const WASTE_BYTES_MIN: u64 = 64 << 10;
/// Most bytes that one transaction moves.
const MOVED_BYTES_MAX: u64 = 1 << 20;
/// Most objects whose places are in memory at a time, 48 bytes each.
const OBJECTS_MAX: u64 = 1 << 20;

/// What is used of each segment: objects and bytes.
type Used = BTreeMap<u32, Amount>;

/// Adds up what is used of each segment, by what `is_used` says of an entry.
fn used(
    snapshot: &Snapshot,
    mut is_used: impl FnMut(Table, &[u8], &[u8]) -> Result<bool>,
) -> Result<Used> {
    let mut used = Used::new();
    for table in [Table::Chunks, Table::Trees] {
        snapshot.scan(table, b"", |key, value| {
            if let (_, Some(extent)) = locate(table, key, value)?
                && is_used(table, key, value)?
            {
                used.entry(extent.segment).or_default().add(record_bytes(&extent));
            }
            Ok(())
        })?;
    }
    Ok(used)
}

/// A segment that is to go, with the length of its file.
struct Victim {
    number: u32,
    len: u64,
    left: Amount,
}

/// The segments that are worth it, and whether the last one, to which records are appended, is among
/// them.
fn victims(store: &Store, snapshot: &Snapshot, used: &Used) -> Result<(Vec<Victim>, bool)> {
    let (segments, tail) = (store.core().segments(), tail_of(snapshot)?);
    let numbers = segments.numbers();
    let numbers = numbers.map_err(|error| Error::io("list", segments.dir(), error))?;
    let mut victims = Vec::new();
    let mut last = false;
    for number in numbers.into_iter().filter(|number| *number <= tail.segment) {
        let measured = segments.file(number).and_then(|file| file.len());
        let len = measured.map_err(|error| Error::io("measure", &segments.path(number), error))?;
        // What lies beyond that is a batch that is under way.
        let len = if number == tail.segment { len.min(tail.end) } else { len };
        let left = used.get(&number).copied().unwrap_or_default();
        let room = len.saturating_sub(SEGMENT_HEADER_BYTES as u64);
        let waste = room.saturating_sub(left.bytes);
        let worth = waste >= WASTE_BYTES_MIN && waste >= room / WASTE_PART;
        if worth || (left.count == 0 && number < tail.segment) {
            last |= number == tail.segment;
            victims.push(Victim { number, len, left });
        }
    }
    Ok((victims, last))
}

/// Tells what [`compact`] would remove and move after what is not marked has gone.
pub(super) fn foresee(
    store: &Arc<Store>,
    candidates: &Candidates,
    report: &mut GcReport,
) -> Result<()> {
    let snapshot = store.core().snapshot();
    let used =
        used(&snapshot, |table, key, value| Ok(!is_garbage(candidates, table, key, value)?))?;
    for victim in victims(store, &snapshot, &used)?.0 {
        report.segments.add(victim.len);
        report.moved += victim.left;
    }
    Ok(())
}

/// Empties and removes segments.
pub(super) fn compact(
    store: &Arc<Store>,
    report: &mut GcReport,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<()> {
    let core = store.core();
    let snapshot = core.snapshot();
    let all = used(&snapshot, |_, _, _| Ok(true))?;
    let (victims, last) = victims(store, &snapshot, &all)?;
    drop(snapshot);
    if victims.is_empty() {
        return Ok(());
    }
    if last {
        let mut batch = store.batch()?;
        batch.rotate()?;
        batch.commit()?;
    }
    let mut damaged = BTreeSet::new();
    let mut group = BTreeSet::new();
    let mut objects = 0;
    for victim in &victims {
        group.insert(victim.number);
        objects += victim.left.count;
        if objects >= OBJECTS_MAX {
            empty(store, &std::mem::take(&mut group), &mut damaged, report, (progress, cancel))?;
            objects = 0;
        }
    }
    empty(store, &group, &mut damaged, report, (progress, cancel))?;
    // Looked at once more: this is what makes removing a file right.
    let still = used(&core.snapshot(), |_, _, _| Ok(true))?;
    let gone: Vec<_> = victims.iter().filter(|one| !still.contains_key(&one.number)).collect();
    gone.iter().for_each(|one| report.segments.add(one.len));
    report.damaged_segments = damaged.len() as u64;
    core.remove_segments(&gone.iter().map(|one| one.number).collect::<Vec<_>>())
}

/// Moves everything out of the segments of a group. What is damaged stays, for a repair.
fn empty(
    store: &Arc<Store>,
    group: &BTreeSet<u32>,
    damaged: &mut BTreeSet<u32>,
    report: &mut GcReport,
    (progress, cancel): (&dyn Progress, &Cancel),
) -> Result<()> {
    let core = store.core();
    let mut left = Vec::<(Extent, Object)>::new();
    for table in [Table::Chunks, Table::Trees] {
        core.snapshot().scan(table, b"", |key, value| {
            if let (object, Some(extent)) = locate(table, key, value)?
                && group.contains(&extent.segment)
            {
                left.push((extent, object));
            }
            Ok(())
        })?;
    }
    // As they lie in the files.
    left.sort_unstable();
    let mut left = left.into_iter().peekable();
    while left.peek().is_some() {
        cancel.check()?;
        let mut read = Vec::new();
        let mut bytes = 0;
        while bytes < MOVED_BYTES_MAX
            && let Some((extent, object)) = left.next()
        {
            match Moved::read(core, object, extent) {
                Ok(Some(moved)) => {
                    bytes += moved.bytes();
                    read.push((moved, extent));
                }
                Ok(None) => {}
                Err(error) if error.is_corruption() => {
                    tracing::warn!(%error, "it cannot be moved: its segment stays");
                    damaged.insert(extent.segment);
                }
                Err(error) => return Err(error),
            }
        }
        let mut batch = store.batch()?;
        let mut done = Amount::default();
        for (moved, extent) in &read {
            if batch.move_record(moved, *extent)? {
                done.add(moved.bytes());
            }
        }
        batch.commit()?;
        report.moved += done;
        progress.advance(Phase::Compact, done.count, done.bytes);
    }
    Ok(())
}
