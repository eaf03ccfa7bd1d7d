//! Four bytes of the ids in a pack index that is too large to be held: with them, one short read finds an id, where
//! halving takes one for each step.

use std::ops::Range;

use super::held::{Held, Room};
use super::index::PackIndex;
use crate::error::Result;

/// What is held of an index.
#[derive(Debug)]
pub(super) struct Marks {
    /// The bytes of every id whose number is a multiple of `step`, after the first byte, by which ids are sorted into
    /// buckets.
    tags: Box<[u32]>,
    step: u32,
    _room: Room,
    /// Where the objects lie.
    offsets: Option<Held>,
}

impl Marks {
    /// Reads all ids and keeps at most so many marks. `None` if there is no room for them.
    pub(super) fn read(index: &PackIndex, most: u32) -> Result<Option<Self>> {
        let step = index.count().div_ceil(most).max(1);
        let count = index.count().div_ceil(step) as usize;
        let Some(room) = Room::take(count as u64 * 4) else { return Ok(None) };
        let mut tags = Vec::with_capacity(count);
        index.each_id(|number, id| {
            if number.is_multiple_of(step) {
                tags.push(tag(id));
            }
        })?;
        let offsets = index.offsets().map(|part| Held::read(index.file(), part)).transpose()?;
        let (tags, offsets) = (tags.into_boxed_slice(), offsets.flatten());
        Ok(Some(Self { tags, step, _room: room, offsets }))
    }

    /// Narrows the objects whose ids begin with the same byte as `id` to those around it, which are no more than
    /// `step`, unless their next four bytes are equal too.
    pub(super) fn narrow(&self, range: &mut Range<u32>, id: &[u8]) {
        let tag = tag(id);
        // The marks in the bucket, by their numbers.
        let (first, end) = (range.start.div_ceil(self.step), range.end.div_ceil(self.step));
        let Some(marks) = self.tags.get(first as usize..end as usize) else { return };
        let guess = guess(marks, tag);
        let below = partition_point(marks, guess, |mark| mark < tag) as u32;
        // Those of a file that lies may be in any order, and none is passed twice all the same.
        let equal = partition_point(&marks[below as usize..], 0, |mark| mark <= tag) as u32;
        let reached = below + equal;
        let number = |mark: u32| (first + mark) * self.step;
        if let Some(last) = below.checked_sub(1) {
            range.start = number(last) + 1;
        }
        if reached < marks.len() as u32 {
            range.end = number(reached);
        }
    }

    /// Where the objects lie, if there was room for that too.
    pub(super) fn offsets(&self) -> Option<&Held> {
        self.offsets.as_ref()
    }
}

fn tag(id: &[u8]) -> u32 {
    u32::from_be_bytes([id[1], id[2], id[3], id[4]])
}

/// Where among marks in order, spread evenly as hashes are, `tag` most likely is. A look at the place by its value
/// alone tells how far from there it really is.
fn guess(marks: &[u32], tag: u32) -> usize {
    let places = |span: u32| ((u64::from(span) * marks.len() as u64) >> 32) as usize;
    let first = places(tag);
    match marks.get(first) {
        Some(mark) if *mark > tag => first.saturating_sub(places(*mark - tag)),
        Some(mark) => (first + places(tag - *mark)).min(marks.len()),
        None => 0,
    }
}

/// [`slice::partition_point`] that begins at a guess: halving everything misses the processor's cache at most steps.
fn partition_point(marks: &[u32], guess: usize, is_before: impl Fn(u32) -> bool) -> usize {
    let mut reach = 8;
    loop {
        let start = guess.saturating_sub(reach);
        let end = guess.saturating_add(reach).min(marks.len());
        let starts = start == 0 || is_before(marks[start - 1]);
        let ends = end == marks.len() || !is_before(marks[end]);
        if starts && ends {
            return start + marks[start..end].partition_point(|mark| is_before(*mark));
        }
        reach = reach.saturating_mul(4);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_guess_changes_nothing(
            mut marks in prop::collection::vec(prop_oneof![any::<u32>(), 0..40_u32], 0..300),
            tag in prop_oneof![any::<u32>(), 0..40_u32],
            start in 0..300_usize,
        ) {
            marks.sort_unstable();
            let expected = marks.partition_point(|mark| *mark < tag);
            for guess in [guess(&marks, tag), start.min(marks.len())] {
                prop_assert!(guess <= marks.len());
                prop_assert_eq!(partition_point(&marks, guess, |mark| mark < tag), expected);
            }
        }

        /// What a range is narrowed to is in it, whatever a file says.
        #[test]
        fn marks_in_any_order_lead_nowhere_else(
            tags in prop::collection::vec(0..40_u32, 1..300),
            tag in 0..40_u32,
            step in 1..5_u32,
            bounds in (0..1_200_u32, 0..1_200_u32),
        ) {
            let count = tags.len() as u32 * step;
            let (start, end) = (bounds.0.min(bounds.1).min(count), bounds.0.max(bounds.1).min(count));
            let room = Room::take(0).unwrap();
            let marks = Marks { tags: tags.into_boxed_slice(), step, _room: room, offsets: None };
            let mut id = [0; 20];
            id[1..5].copy_from_slice(&tag.to_be_bytes());
            let mut range = start..end;
            marks.narrow(&mut range, &id);
            prop_assert!(start <= range.start && range.start <= range.end && range.end <= end);
        }
    }
}
