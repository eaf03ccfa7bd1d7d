//! Where the bytes of a changed file lie, range by range. What no extent covers is a hole.

use std::ops::{Bound, Range};

use imbl::OrdMap;

use crate::id::{ChunkId, Ino};
use crate::outbox::Place;

/// Where a run of bytes lies.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// In the body of an outbox record, until it is drained.
    Fresh(Place),
    /// In a chunk of the store, from this offset of it on.
    Chunk(ChunkId, u32),
    /// In a file of the base, from this offset of it on.
    Base(Ino, u64),
}

impl Source {
    /// The source of the bytes that follow the first `delta`.
    fn skip(&self, delta: u64) -> Self {
        match self {
            Self::Fresh(place) => Self::Fresh(place.at(delta)),
            // An extent of a chunk ends within the chunk, so the sum fits.
            Self::Chunk(id, offset) => Self::Chunk(*id, offset.saturating_add(delta as u32)),
            Self::Base(ino, offset) => Self::Base(*ino, offset.saturating_add(delta)),
        }
    }
}

/// A run of bytes that lie in one place.
#[derive(Clone, Debug, PartialEq)]
pub struct Extent {
    /// Its length in bytes, at least 1.
    pub len: u64,
    /// Where it lies.
    pub source: Source,
}

/// The extents of a file by where they begin. They do not overlap. A copy shares what both have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Extents {
    runs: Runs,
    allocated: u64,
}

/// A file has few extents, unless it is written at random; a tree takes a kilobyte for the first.
#[derive(Clone, Debug, PartialEq)]
enum Runs {
    /// In order, at most [`FEW_MAX`].
    Few(Vec<(u64, Extent)>),
    Many(OrdMap<u64, Extent>),
}

/// Up to so many extents are kept in a row.
const FEW_MAX: usize = 8;

impl Default for Runs {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Runs {
    fn len(&self) -> usize {
        match self {
            Self::Few(few) => few.len(),
            Self::Many(many) => many.len(),
        }
    }

    /// The extents that begin in `range`, in order.
    fn range(&self, range: Range<u64>) -> impl DoubleEndedIterator<Item = (u64, &Extent)> {
        let (few, many) = match self {
            Self::Few(few) => {
                let first = few.partition_point(|(start, _)| *start < range.start);
                let end = few.partition_point(|(start, _)| *start < range.end);
                (&few[first..end.max(first)], None)
            }
            Self::Many(many) => {
                let bounds = (Bound::Included(range.start), Bound::Excluded(range.end));
                (&[][..], Some(many.range::<_, u64>(bounds)))
            }
        };
        let few = few.iter().map(|(start, extent)| (*start, extent));
        few.chain(many.into_iter().flatten().map(|(start, extent)| (*start, extent)))
    }

    /// The last extent that begins before `offset`.
    fn before(&self, offset: u64) -> Option<(u64, &Extent)> {
        self.range(0..offset).next_back()
    }

    /// Puts an extent at `start`, instead of one that begins there.
    fn insert(&mut self, start: u64, extent: Extent) {
        match self {
            Self::Few(few) => match few.binary_search_by_key(&start, |(start, _)| *start) {
                Ok(at) => few[at].1 = extent,
                Err(at) if few.len() < FEW_MAX => {
                    few.reserve_exact(1);
                    few.insert(at, (start, extent));
                }
                Err(_) => {
                    let mut many: OrdMap<_, _> = std::mem::take(few).into_iter().collect();
                    many.insert(start, extent);
                    *self = Self::Many(many);
                }
            },
            Self::Many(many) => {
                many.insert(start, extent);
            }
        }
    }

    fn remove(&mut self, start: u64) -> Option<Extent> {
        match self {
            Self::Few(few) => {
                let at = few.binary_search_by_key(&start, |(start, _)| *start).ok()?;
                Some(few.remove(at).1)
            }
            Self::Many(many) => {
                let removed = many.remove(&start);
                if many.is_empty() {
                    *self = Self::default();
                }
                removed
            }
        }
    }
}

impl Extents {
    /// The extents in order, each with where it begins.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Extent)> {
        self.runs.range(0..u64::MAX)
    }

    /// Number of extents.
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Bytes that are not in holes.
    pub fn allocated(&self) -> u64 {
        self.allocated
    }

    /// Whether some bytes lie in the outbox.
    pub fn any_fresh(&self) -> bool {
        self.iter().any(|(_, extent)| matches!(extent.source, Source::Fresh(_)))
    }

    /// Puts `range` at `source`. An empty range changes nothing.
    pub fn set(&mut self, range: Range<u64>, source: Source) {
        self.clear(range.clone());
        if !range.is_empty() {
            self.insert(range.start, Extent { len: range.end - range.start, source });
        }
    }

    /// Makes `range` a hole.
    pub fn clear(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let mut tail = None;
        let before = self.runs.before(range.start).map(|(start, extent)| (start, extent.clone()));
        if let Some((start, mut extent)) = before
            && start + extent.len > range.start
        {
            let end = start + extent.len;
            tail = (end > range.end).then(|| (end, extent.source.skip(range.end - start)));
            extent.len = range.start - start;
            self.runs.insert(start, extent);
            self.allocated -= end - range.start;
        }
        loop {
            let next = self.runs.range(range.clone()).next().map(|(start, _)| start);
            let Some((start, extent)) = next.and_then(|at| Some((at, self.runs.remove(at)?)))
            else {
                break;
            };
            let end = start + extent.len;
            tail = (end > range.end).then(|| (end, extent.source.skip(range.end - start)));
            self.allocated -= extent.len;
        }
        if let Some((end, source)) = tail {
            self.insert(range.end, Extent { len: end - range.end, source });
        }
    }

    fn insert(&mut self, start: u64, extent: Extent) {
        self.allocated += extent.len;
        self.runs.insert(start, extent);
    }

    /// The parts of extents that lie in `range`, in order.
    pub fn within(&self, range: Range<u64>) -> impl Iterator<Item = (u64, Extent)> {
        let first = match self.runs.before(range.start) {
            Some((start, extent)) if start + extent.len > range.start => start,
            _ => range.start,
        };
        let end = range.end.max(first);
        self.runs.range(first..end).filter_map(move |(start, extent)| {
            let from = start.max(range.start);
            let to = (start + extent.len).min(range.end);
            let source = (from < to).then(|| extent.source.skip(from - start))?;
            Some((from, Extent { len: to - from, source }))
        })
    }

    /// The first byte from `offset` on that is not in a hole.
    pub fn next_data(&self, offset: u64) -> Option<u64> {
        self.within(offset..u64::MAX).next().map(|(start, _)| start)
    }

    /// The first byte from `offset` on that is in a hole.
    pub fn next_hole(&self, offset: u64) -> u64 {
        let mut at = offset;
        for (start, extent) in self.within(offset..u64::MAX) {
            if start > at {
                break;
            }
            at = start + extent.len;
        }
        at
    }

    /// Takes from `after` where the bytes lie now that lay as `before` says, if they still lie
    /// there: what was written since keeps its place.
    pub fn settle(&mut self, before: &Self, after: &Self) {
        let mut moved = Vec::new();
        for (start, old) in before.iter() {
            for (at, now) in self.within(start..start + old.len) {
                if now.source == old.source.skip(at - start) {
                    moved.push(at..at + now.len);
                }
            }
        }
        for range in moved {
            self.clear(range.clone());
            for (start, extent) in after.within(range) {
                self.insert(start, extent);
            }
        }
    }
}
