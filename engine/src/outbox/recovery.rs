//! Finds what an outbox holds after a crash. The documentation of [`super`] has the decision table;
//! its rows are [`SegmentRow`], [`Found`] and [`Verdict`].

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use super::Replayed;
use super::log::Kept;
use super::reader::{Found, Reader};
use super::salvage::DAMAGED;
use super::segment::{
    Header, OUTBOX_VERSION, Place, SEGMENT_HEADER_BYTES, Segment, SegmentHeader, damaged,
    segment_number,
};
use crate::error::{Error, Result};
use crate::id::Sequence;
use crate::storage::Storage;

/// What recovery found.
pub(super) struct Recovered {
    pub(super) last: Sequence,
    pub(super) durable: Sequence,
    pub(super) next_number: u64,
    pub(super) segments: VecDeque<Kept>,
}

/// A segment file of the directory.
pub(super) struct Candidate {
    pub(super) segment: Arc<Segment>,
    pub(super) len: u64,
    pub(super) header: Option<SegmentHeader>,
    /// The lowest first sequence that a younger segment states. From there on the younger one counts.
    limit: Sequence,
}

/// A segment file, its length in bytes and its header, if that is intact.
pub(super) type Listed = (Arc<Segment>, u64, Option<SegmentHeader>);

/// What a segment is to the log: the rows S4 to S8 of the decision table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum SegmentRow {
    /// S4: it has no header.
    Headless,
    /// S5: a younger segment takes the place of all its records.
    Superseded,
    /// S6: all its records are drained.
    Drained,
    /// S7: records before its first one are missing.
    Beyond,
    /// S8: it continues the log.
    Next,
}

impl SegmentRow {
    /// The row of a segment with the header's `first` sequence and this limit, when `next` is the
    /// first record that is neither drained nor read.
    pub(super) fn of(
        first: Option<Sequence>,
        limit: Sequence,
        next: Sequence,
        drained: Sequence,
    ) -> Self {
        match first {
            None => Self::Headless,
            Some(first) if limit <= first => Self::Superseded,
            Some(_) if limit <= drained.next() => Self::Drained,
            Some(first) if first > next => Self::Beyond,
            Some(_) => Self::Next,
        }
    }
}

/// What the end of the log is: the rows V1 to V3 of the decision table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    /// V1: a record is missing that was durable.
    Damaged,
    /// V2: what follows was never durable.
    Torn,
    /// V3: nothing follows the last record.
    Whole,
}

impl Verdict {
    /// The verdict on a log that lacks the record `missing`, when something follows the last intact
    /// one or not and `stated` is the highest sequence that was ever durable.
    pub(super) fn of(something_follows: bool, missing: Sequence, stated: Sequence) -> Self {
        match (stated >= missing, something_follows) {
            (true, _) => Self::Damaged,
            (false, true) => Self::Torn,
            (false, false) => Self::Whole,
        }
    }
}

/// Where the log ends before the last segment does.
struct Stop {
    /// Index of the segment, and the offset in it from which on nothing was read.
    index: usize,
    offset: u64,
    /// The record that is not there.
    missing: Sequence,
    why: String,
}

/// What was read of a segment.
struct Part {
    index: usize,
    /// Where its last frame ends.
    end: u64,
    last: Sequence,
}

pub(super) struct Walk<'a> {
    drained: Sequence,
    candidates: &'a [Candidate],
    /// The first record that is neither drained nor read.
    pub(super) next: Sequence,
    stated: Sequence,
    parts: Vec<Part>,
    stop: Option<Stop>,
}

/// Reads the outbox in `dir`, hands each record after `drained` to `replay`, and removes what is
/// not part of the log, unless it is damaged.
pub(super) fn recover(
    storage: &dyn Storage,
    dir: &Path,
    drained: Sequence,
    replay: &mut dyn FnMut(Replayed<'_>) -> Result<()>,
) -> Result<Recovered> {
    let candidates = candidates(storage, dir)?;
    let walk = Walk::through(&candidates, drained, replay)?;
    let segments = walk.cut(storage)?;
    let highest = candidates.last().map_or(0, |candidate| candidate.segment.number);
    Ok(Recovered {
        last: Sequence(walk.next.0 - 1),
        durable: walk.stated,
        next_number: highest + 1,
        segments,
    })
}

/// The segment files in `dir`, in order, with their lengths and whatever header each has.
///
/// # Errors
/// [`Error::UnknownFormat`], and what reading meets.
pub(super) fn segments(storage: &dyn Storage, dir: &Path) -> Result<Vec<Listed>> {
    let names = storage.list(dir).map_err(|error| Error::io("list", dir, error))?;
    let mut segments = Vec::with_capacity(names.len());
    for name in names {
        let path = dir.join(&name);
        let Some(number) = segment_number(&name) else {
            if !name.as_encoded_bytes().ends_with(DAMAGED.as_bytes()) {
                tracing::warn!(path = %path.display(), "not a file of this outbox; it is left alone");
            }
            continue;
        };
        let file = storage.open(&path, false).map_err(|error| Error::io("open", &path, error))?;
        let segment = Arc::new(Segment::new(number, path, file));
        let len = segment.file.len().map_err(|error| segment.error("measure", error))?;
        let header = read_header(&segment, len)?;
        segments.push((segment, len, header));
    }
    segments.sort_unstable_by_key(|(segment, ..)| segment.number);
    Ok(segments)
}

/// The segment files in `dir`, in order.
pub(super) fn candidates(storage: &dyn Storage, dir: &Path) -> Result<Vec<Candidate>> {
    let mut candidates = Vec::new();
    for (segment, len, header) in segments(storage, dir)? {
        if let Some(header) = &header {
            check_header(&segment, header)?;
        }
        candidates.push(Candidate { segment, len, header, limit: Sequence(u64::MAX) });
    }
    let mut limit = Sequence(u64::MAX);
    for candidate in candidates.iter_mut().rev() {
        candidate.limit = limit;
        limit = candidate.header.map_or(limit, |header| limit.min(header.first));
    }
    Ok(candidates)
}

fn read_header(segment: &Segment, len: u64) -> Result<Option<SegmentHeader>> {
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    let bytes = &mut bytes[..len.min(SEGMENT_HEADER_BYTES as u64) as usize];
    segment.file.read_at(0, bytes).map_err(|error| segment.error("read", error))?;
    match SegmentHeader::decode(bytes) {
        Header::Torn => Ok(None),
        Header::Unknown(found) => {
            let path = segment.path.clone();
            Err(Error::UnknownFormat { path, found, known: OUTBOX_VERSION })
        }
        Header::Intact(header) => Ok(Some(header)),
    }
}

/// An error if the writer never writes this header to this segment.
pub(super) fn check_header(segment: &Segment, header: &SegmentHeader) -> Result<()> {
    if header.number != segment.number {
        let why = format!("it is segment {} under another name", header.number);
        return Err(damaged(&segment.path, 0, &why));
    }
    if !header.is_plausible() {
        return Err(damaged(&segment.path, 0, "its header states what no segment holds"));
    }
    Ok(())
}

impl<'a> Walk<'a> {
    /// Reads what `candidates` hold, hands each record after `drained` to `replay`, and judges the end.
    pub(super) fn through(
        candidates: &'a [Candidate],
        drained: Sequence,
        replay: &mut dyn FnMut(Replayed<'_>) -> Result<()>,
    ) -> Result<Self> {
        let stated =
            candidates.iter().filter_map(|candidate| Some(candidate.header?.durable)).max();
        let mut walk = Self {
            drained,
            candidates,
            next: drained.next(),
            stated: stated.unwrap_or_default().max(drained),
            parts: Vec::new(),
            stop: None,
        };
        walk.read(replay)?;
        walk.read_statements()?;
        walk.judge()?;
        Ok(walk)
    }

    /// Reads the records up to the first one that is missing.
    fn read(&mut self, replay: &mut dyn FnMut(Replayed<'_>) -> Result<()>) -> Result<()> {
        for (index, candidate) in self.candidates.iter().enumerate() {
            let first = candidate.header.map(|header| header.first);
            match SegmentRow::of(first, candidate.limit, self.next, self.drained) {
                SegmentRow::Headless | SegmentRow::Superseded | SegmentRow::Drained => {}
                SegmentRow::Beyond => {
                    let why = "the segment that held it is missing".into();
                    self.stop = Some(Stop { index, offset: 0, missing: self.next, why });
                }
                SegmentRow::Next => self.read_segment(index, replay)?,
            }
            if self.stop.is_some() {
                break;
            }
        }
        Ok(())
    }

    fn read_segment(
        &mut self,
        index: usize,
        replay: &mut dyn FnMut(Replayed<'_>) -> Result<()>,
    ) -> Result<()> {
        let candidate = &self.candidates[index];
        let Some(header) = candidate.header else { return Ok(()) };
        let segment = &candidate.segment;
        let mut reader = Reader::new(&*segment.file, segment.number, candidate.len);
        let mut sequence = header.first;
        while sequence < candidate.limit {
            let offset = reader.offset();
            let found = reader.next(sequence, header.salt);
            match found.map_err(|error| segment.error("read", error))? {
                Found::End => break,
                Found::Frame(frame) => {
                    self.stated = self.stated.max(frame.durable);
                    if sequence > self.drained {
                        let body = Place::new(Arc::clone(segment), frame.body_at);
                        let (head, body_len) = (frame.head, frame.body_len);
                        replay(Replayed { sequence, head, body, body_len })?;
                    }
                    sequence = sequence.next();
                }
                Found::Torn(why) => {
                    let missing = sequence;
                    self.stop = Some(Stop { index, offset, missing, why: why.into() });
                    break;
                }
                Found::Foreign(why) => {
                    return Err(damaged_record(segment, offset, sequence, &why));
                }
            }
        }
        self.next = self.next.max(sequence);
        self.parts.push(Part { index, end: reader.offset(), last: Sequence(sequence.0 - 1) });
        Ok(())
    }

    /// Looks for statements of what was durable in all that lies behind the last intact record.
    fn read_statements(&mut self) -> Result<()> {
        let read = self.parts.last().map_or(0, |part| part.index + 1);
        let torn = self.stop.as_ref().filter(|stop| stop.index < read);
        let from = torn.map_or(read, |stop| stop.index);
        for (index, candidate) in self.candidates.iter().enumerate().skip(from) {
            let offset = torn.filter(|stop| stop.index == index).map_or(0, |stop| stop.offset);
            let segment = &candidate.segment;
            let mut reader = Reader::new(&*segment.file, segment.number, candidate.len);
            let salt = candidate.header.map(|header| header.salt);
            let stated = reader.stated(offset, salt);
            self.stated = self.stated.max(stated.map_err(|error| segment.error("read", error))?);
        }
        Ok(())
    }

    /// An error if a durable record is missing.
    fn judge(&self) -> Result<()> {
        let read = self.parts.last().map_or(0, |part| part.index + 1);
        let headless = self.candidates.iter().skip(read).find(|after| after.header.is_none());
        let missing = self.stop.as_ref().map_or(self.next, |stop| stop.missing);
        let follows = self.stop.is_some() || headless.is_some();
        if Verdict::of(follows, missing, self.stated) != Verdict::Damaged || self.was_the_end()? {
            return Ok(());
        }
        // The first place that is not as it should be.
        let (segment, offset, why) = match (&self.stop, headless) {
            (Some(stop), _) if stop.index < read => {
                (&self.candidates[stop.index].segment, stop.offset, stop.why.as_str())
            }
            (_, Some(headless)) => (&headless.segment, 0, "the header of the segment is damaged"),
            (Some(stop), None) => (&self.candidates[stop.index].segment, 0, stop.why.as_str()),
            (None, None) => match self.parts.last() {
                Some(part) => {
                    (&self.candidates[part.index].segment, part.end, "the log ends there")
                }
                None => return Ok(()),
            },
        };
        let why = format!("{why}, and record {} was durable", self.stated);
        Err(damaged_record(segment, offset, missing, &why))
    }

    /// Whether the record that was missing is there now: the log is being written, over zeros that were
    /// there before, and what states it to be durable came after it.
    fn was_the_end(&self) -> Result<bool> {
        let Some(stop) = &self.stop else { return Ok(false) };
        let candidate = &self.candidates[stop.index];
        let Some(header) = candidate.header.filter(|_| stop.offset > 0) else { return Ok(false) };
        let segment = &candidate.segment;
        let mut reader = Reader::new(&*segment.file, segment.number, candidate.len).at(stop.offset);
        let found = reader.next(stop.missing, header.salt);
        Ok(matches!(found.map_err(|error| segment.error("read", error))?, Found::Frame(_)))
    }

    /// Cuts and removes what is not part of the log; the segments that are. Nothing depends on when
    /// or whether these changes become durable: the next segment supersedes all of it.
    fn cut(&self, storage: &dyn Storage) -> Result<VecDeque<Kept>> {
        let mut kept = VecDeque::new();
        let mut parts = self.parts.iter().peekable();
        for (index, candidate) in self.candidates.iter().enumerate() {
            let segment = &candidate.segment;
            let (Some(part), Some(header)) =
                (parts.next_if(|part| part.index == index), candidate.header)
            else {
                let removed = storage.remove(&segment.path);
                removed.map_err(|error| segment.error("remove", error))?;
                continue;
            };
            if part.end < candidate.len {
                segment.file.set_len(part.end).map_err(|error| segment.error("cut", error))?;
            }
            let unsynced = part.last > self.stated;
            let rewrite_from = match unsynced {
                false => None,
                true if header.first > self.stated => Some(0),
                true => {
                    let mut reader = Reader::new(&*segment.file, segment.number, part.end);
                    let found = reader.find(self.stated.next());
                    found.map_err(|error| segment.error("read", error))?
                }
            };
            let (segment, first) = (Arc::clone(segment), header.first);
            kept.push_back(Kept { segment, first, end: part.end, unsynced, rewrite_from });
        }
        Ok(kept)
    }
}

/// An [`Error::Outbox`] about the record that should be at `offset` of a segment.
fn damaged_record(segment: &Segment, offset: u64, sequence: Sequence, why: &str) -> Error {
    Error::Outbox { segment: segment.path.clone(), offset, record: Some(sequence), why: why.into() }
}
