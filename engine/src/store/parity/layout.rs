//! Where the pages of a protected file lie. `docs/FORMAT.md` gives the same as tables.
//!
//! A file of pages is seen by its user as page 0, the header, and pages from 1 on. On the device two pages with
//! copies of the header come first, then groups: a page of checksums, a page of parity, and up to
//! [`GROUP_PAGES`] pages of the user's.

/// Bytes of a page.
pub(super) const PAGE_BYTES: usize = 4096;
/// Pages of the user's that share a page of parity. Fewer cost room and writes, more make it likelier that
/// two of them are damaged at once. One page has the checksums of eight times as many.
pub(super) const GROUP_PAGES: usize = 64;

const PAGE: u64 = PAGE_BYTES as u64;
const HEADER_PAGES: u64 = 2;
/// The pages of a group that are not the user's.
const GUARD_PAGES: u64 = 2;
const GROUP: u64 = GROUP_PAGES as u64;

/// A page of the user's, but not the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot {
    pub(super) group: usize,
    /// Its number in the group.
    pub(super) index: usize,
}

impl Slot {
    /// The slot of the user's page `page`, which is not the header.
    pub(super) fn of(page: u64) -> Self {
        let number = page - 1;
        Self { group: (number / GROUP) as usize, index: (number % GROUP) as usize }
    }

    /// The page of the user's that lies here.
    pub(super) fn page(self) -> u64 {
        self.group as u64 * GROUP + self.index as u64 + 1
    }

    /// Where it lies on the device.
    pub(super) fn offset(self) -> u64 {
        guard_offset(self.group) + (GUARD_PAGES + self.index as u64) * PAGE
    }
}

/// Where the checksums of a group lie on the device; its parity is the page behind them.
pub(super) fn guard_offset(group: usize) -> u64 {
    (HEADER_PAGES + group as u64 * (GUARD_PAGES + GROUP)) * PAGE
}

/// How many pages of the user's are in groups if there are `pages` with the header.
pub(super) fn slots(pages: u64) -> u64 {
    pages.saturating_sub(1)
}

/// How many groups these are.
pub(super) fn groups(pages: u64) -> usize {
    slots(pages).div_ceil(GROUP) as usize
}

/// How many pages of the user's `group` has, if there are `pages` with the header.
pub(super) fn group_len(pages: u64, group: usize) -> usize {
    slots(pages).saturating_sub(group as u64 * GROUP).min(GROUP) as usize
}

/// The length on the device of a file of `pages` pages; `None` if no file can have it.
pub(super) fn device_len(pages: u64) -> Option<u64> {
    if pages == 0 {
        return Some(0);
    }
    let guards = GUARD_PAGES.checked_mul(slots(pages).div_ceil(GROUP))?;
    HEADER_PAGES.checked_add(guards)?.checked_add(slots(pages))?.checked_mul(PAGE)
}

/// How many whole pages of the user's a file of `len` bytes on the device has.
pub(super) fn pages_of(len: u64) -> u64 {
    let Some(behind) = (len / PAGE).checked_sub(HEADER_PAGES) else { return 0 };
    let (groups, rest) = (behind / (GUARD_PAGES + GROUP), behind % (GUARD_PAGES + GROUP));
    1 + groups * GROUP + rest.saturating_sub(GUARD_PAGES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_places_agree() {
        for pages in (0..400).chain([u64::from(u32::MAX)]) {
            let len = device_len(pages).expect("a length");
            assert_eq!(pages_of(len), pages);
            assert_eq!(pages_of(len + PAGE - 1), pages, "a part of a page is none");
            let total: usize = (0..groups(pages).min(9)).map(|one| group_len(pages, one)).sum();
            if groups(pages) < 9 {
                assert_eq!(total as u64, slots(pages));
            }
            if pages > 1 {
                let last = Slot::of(pages - 1);
                assert_eq!((last.page(), last.offset() + PAGE), (pages - 1, len));
                assert!(last.index < group_len(pages, last.group));
            }
        }
        assert_eq!(device_len(u64::MAX), None);
    }
}
