//! Writes anew what is still whole of a damaged outbox, without what is not.
//!
//! A record that is damaged takes no other with it here, as it would at an opening. All that can be read is
//! copied, each record under its own sequence, to a new segment that takes the place of all others; where one is
//! lost there is an empty record, which changes nothing. The segment appears complete, by renaming. Those that are
//! damaged stay beside it under another name, for whoever wants to look for more in them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::Replayed;
use super::frame::{FRAME_HEADER_BYTES, FrameHeader, Position, checksum};
use super::reader::{Found, Reader};
use super::recovery::{check_header, segments};
use super::segment::{
    Place, SEGMENT_HEADER_BYTES, Segment, SegmentHeader, damaged, new_salt, segment_name,
};
use crate::error::{Error, Result};
use crate::id::Sequence;
use crate::storage::Storage;

/// What is put behind the name of a segment that is being written.
const NEW: &str = ".new";
/// What is put behind the name of a damaged segment that another one has taken the place of.
pub(super) const DAMAGED: &str = ".damaged";

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Salvaged {
    /// Records that are as they were.
    pub(crate) kept: u64,
    /// Those that are lost: first and last of each run.
    pub(crate) lost: Vec<(Sequence, Sequence)>,
}

impl Salvaged {
    fn lose(&mut self, sequence: Sequence) {
        match self.lost.last_mut() {
            Some((_, last)) if last.next() == sequence => *last = sequence,
            _ => self.lost.push((sequence, sequence)),
        }
    }
}

/// A segment, and what is wrong with it.
struct Old {
    segment: Arc<Segment>,
    len: u64,
    header: Option<SegmentHeader>,
    damaged: bool,
}

/// Where a whole record lies.
#[derive(Clone, Copy)]
struct At {
    old: usize,
    offset: u64,
    salt: u32,
}

/// The records after the drained one that are whole, and the highest that anything states to be durable.
struct Index {
    records: BTreeMap<Sequence, At>,
    stated: Sequence,
}

/// Has what is whole of the outbox in `dir` take its place. Each record after `drained` is handed to `keep`, in order,
/// which says whether it can be made use of; `None` is one that is lost. Nobody else may have the outbox.
///
/// # Errors
/// [`Error::UnknownFormat`], what `keep` returns, and what reading and writing meet: nothing has changed then.
pub(crate) fn salvage(
    storage: &dyn Storage,
    dir: &Path,
    drained: Sequence,
    keep: &mut dyn FnMut(Sequence, Option<Replayed<'_>>) -> Result<bool>,
) -> Result<Salvaged> {
    let found = segments(storage, dir)?.into_iter();
    let mut old: Vec<_> = found
        .map(|(segment, len, header)| {
            let header = header.filter(|header| check_header(&segment, header).is_ok());
            Old { segment, len, header, damaged: header.is_none() }
        })
        .collect();
    let index = index(&mut old, drained)?;
    let number = old.last().map_or(0, |last| last.segment.number) + 1;
    let path = dir.join(segment_name(number));
    let new = dir.join(segment_name(number) + NEW);
    let file = storage.open(&new, true).map_err(|error| Error::io("create", &new, error))?;
    file.set_len(0).map_err(|error| Error::io("cut", &new, error))?;
    let mut copy = Copy {
        to: Segment::new(number, new.clone(), file),
        salt: new_salt(number),
        end: SEGMENT_HEADER_BYTES as u64,
        drained,
    };
    let written = copy.all(&old, &index, keep);
    let salvaged = written.inspect_err(|_| {
        // Whatever stays of it is no segment, and is written over by the next try.
        let _ = storage.remove(&new);
    })?;
    copy.to.file.sync().map_err(|error| copy.to.error("sync", error))?;
    storage.rename(&new, &path).map_err(|error| Error::io("rename", &new, error))?;
    storage.sync_dir(dir).map_err(|error| Error::io("sync", dir, error))?;
    for old in old.iter().filter(|old| old.damaged && !salvaged.lost.is_empty()) {
        let aside = dir.join(segment_name(old.segment.number) + DAMAGED);
        let renamed = storage.rename(&old.segment.path, &aside);
        renamed.map_err(|error| old.segment.error("rename", error))?;
    }
    Ok(salvaged)
}

/// Finds what is whole, wherever it begins.
fn index(old: &mut [Old], drained: Sequence) -> Result<Index> {
    let mut index = Index { records: BTreeMap::new(), stated: drained };
    for (number, old) in old.iter_mut().enumerate() {
        let segment = Arc::clone(&old.segment);
        let read = |error| segment.error("read", error);
        let mut reader = Reader::new(&*segment.file, segment.number, old.len);
        let salt = old.header.map(|header| header.salt);
        if let Some(header) = old.header {
            // It takes the place of what older ones have from there on.
            index.records.split_off(&header.first);
            index.stated = index.stated.max(header.durable);
        }
        let mut is_first = old.header.is_none();
        let mut expected = reader.offset();
        while let Some((offset, header)) = reader.seek(expected, salt).map_err(read)? {
            old.damaged |= offset != expected;
            let sequence = header.sequence;
            index.stated = index.stated.max(header.durable);
            reader = reader.at(offset);
            let is_whole =
                matches!(reader.next(sequence, header.salt).map_err(read)?, Found::Frame(_));
            if !is_whole {
                old.damaged = true;
                // What its lengths say is whole with the header. What follows it may begin before, if these are of a
                // frame that was overwritten.
                expected = offset + 1;
                continue;
            }
            expected = reader.offset();
            if std::mem::take(&mut is_first) {
                index.records.split_off(&sequence);
            }
            if sequence > drained {
                index.records.insert(sequence, At { old: number, offset, salt: header.salt });
            }
        }
        // Behind the last frame may be zeros, or nothing.
        let mut rest = [0; FRAME_HEADER_BYTES];
        let rest =
            &mut rest[..old.len.saturating_sub(expected).min(FRAME_HEADER_BYTES as u64) as usize];
        segment.file.read_at(expected, rest).map_err(read)?;
        old.damaged |= rest.iter().any(|byte| *byte != 0);
    }
    Ok(index)
}

/// The segment that is written.
struct Copy {
    to: Segment,
    salt: u32,
    end: u64,
    drained: Sequence,
}

impl Copy {
    fn all(
        &mut self,
        old: &[Old],
        index: &Index,
        keep: &mut dyn FnMut(Sequence, Option<Replayed<'_>>) -> Result<bool>,
    ) -> Result<Salvaged> {
        let (number, first) = (self.to.number, self.drained.next());
        let header = SegmentHeader { number, first, durable: self.drained, salt: self.salt };
        let written = self.to.file.write_at(0, &header.encode());
        written.map_err(|error| self.to.error("write", error))?;
        let mut salvaged = Salvaged { kept: 0, lost: Vec::new() };
        let mut sequence = first;
        // Behind what was durable, the first record that is not there is the torn end of the log.
        while index.records.contains_key(&sequence) || sequence <= index.stated {
            let kept = match index.records.get(&sequence) {
                Some(at) => self.copy(&old[at.old], *at, sequence, keep)?,
                None => false,
            };
            if kept {
                salvaged.kept += 1;
            } else {
                keep(sequence, None)?;
                salvaged.lose(sequence);
                self.append(sequence, &[], &[])?;
            }
            sequence = sequence.next();
        }
        Ok(salvaged)
    }

    /// Copies a record if it can be made use of; whether it can.
    fn copy(
        &mut self,
        old: &Old,
        at: At,
        sequence: Sequence,
        keep: &mut dyn FnMut(Sequence, Option<Replayed<'_>>) -> Result<bool>,
    ) -> Result<bool> {
        let segment = &old.segment;
        let read = |error| segment.error("read", error);
        let mut reader = Reader::new(&*segment.file, segment.number, old.len).at(at.offset);
        let Found::Frame(frame) = reader.next(sequence, at.salt).map_err(read)? else {
            // It was whole a moment ago.
            return Err(damaged(&segment.path, at.offset, "it is read otherwise than before"));
        };
        // The reader has verified the frame, and so that its length is within the limit.
        let mut body = vec![0; frame.body_len as usize];
        segment.file.read_at(frame.body_at, &mut body).map_err(read)?;
        let place = Place::new(Arc::clone(segment), frame.body_at);
        let (head, body_len) = (frame.head, frame.body_len);
        let kept = keep(sequence, Some(Replayed { sequence, head, body: place, body_len }))?;
        if kept {
            self.append(sequence, frame.head, &body)?;
        }
        Ok(kept)
    }

    fn append(&mut self, sequence: Sequence, head: &[u8], body: &[u8]) -> Result<()> {
        let at = Position { segment: self.to.number, offset: self.end };
        let payload = checksum(head, &[body]);
        let (head_len, body_len) = (head.len(), body.len());
        let header =
            FrameHeader::new(self.salt, sequence, self.drained, head_len, body_len, payload);
        let frame = [&header.encode(at)[..], head, body].concat();
        let written = self.to.file.write_at(self.end, &frame);
        written.map_err(|error| self.to.error("write", error))?;
        self.end += (FRAME_HEADER_BYTES + head.len() + body.len()) as u64;
        Ok(())
    }
}
