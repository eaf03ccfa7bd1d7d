//! A file of pages that outlives the loss of any one page of a group.
//!
//! redb verifies nothing that it reads, and one damaged page of its upper ones makes a database unusable. So every
//! page has a checksum here, which each read verifies, and the pages of a group share a page of parity, the
//! exclusive or of them all (as in RAID 4): what a damaged page had is what the others and the parity make.
//!
//! Checksums and parity are written with the next sync after the pages, so that they cost no sync of their own. A
//! crash in between leaves them beside what they belong to. That is only ever so for pages that the
//! database does not use yet: it writes nothing in place but its header, which has its own ways
//! ([`header`]). A page that it uses keeps its bytes and its checksum through that, and is for once without
//! parity, until [`ParityFile::protect`] has seen to it.

mod header;
mod layout;
#[cfg(any(test, feature = "testing"))]
pub(crate) mod tamper;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tracing::warn;
use twox_hash::XxHash3_64;

use self::header::Header;
use self::layout::{
    GROUP_PAGES, PAGE_BYTES, Slot, device_len, group_len, groups, guard_offset, pages_of,
};
use super::held::HeldFile;

type Page = [u8; PAGE_BYTES];
/// The checksums of the pages of a group.
type Sums = [u64; GROUP_PAGES];

const PAGE: u64 = PAGE_BYTES as u64;
const SUMS_BYTES: usize = GROUP_PAGES * 8;

/// What is known of a group.
#[derive(Debug)]
struct Guard {
    sums: Sums,
    /// Whether the device has others, which are damaged.
    mended: bool,
}

/// Checksums, parity and header over a file. Lengths and offsets are those of its user.
#[derive(Debug)]
pub(super) struct ParityFile {
    file: Arc<HeldFile>,
    /// A leaf but for the lock of `file`.
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    header: Header,
    /// Pages of the user's, the header included.
    pages: u64,
    /// Of each group, once they were asked for.
    guards: Vec<OnceLock<Box<Guard>>>,
    /// Of the groups whose checksums and parity the device does not have yet.
    parity: BTreeMap<usize, Box<Page>>,
    /// Pages in use that were damaged when they were read.
    damaged: BTreeSet<u64>,
}

/// What reading a page came to.
enum Found {
    /// Its checksum is right.
    Whole,
    /// It was not, and this is what the page had.
    Rebuilt(Box<Page>),
}

impl ParityFile {
    /// The file, empty or as an earlier one left it.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if no copy of its header is whole, else what reading meets.
    pub(super) fn new(file: Arc<HeldFile>) -> io::Result<Self> {
        let len = file.len()?;
        let pages = pages_of(len);
        if pages == 0 && len > 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it ends within its header"));
        }
        let header = if pages == 0 { Header::none() } else { Header::read(&file)? };
        let mut guards = Vec::new();
        guards.resize_with(groups(pages), OnceLock::new);
        let state =
            State { header, pages, guards, parity: BTreeMap::new(), damaged: BTreeSet::new() };
        Ok(Self { file, state: RwLock::new(state) })
    }

    /// Its length in bytes.
    pub(super) fn len(&self) -> u64 {
        self.read_state().pages * PAGE
    }

    /// Fills `out` from `offset` with what was written there, whatever has become of one page.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if a page is damaged and the parity does not have it, which names the
    /// page; else what reading meets.
    pub(super) fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let end = offset.checked_add(out.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        let mut damaged = Vec::new();
        {
            let state = self.read_state();
            if end > state.pages * PAGE {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let (mut at, mut whole) = (offset, [0; PAGE_BYTES]);
            while at < end {
                let (page, within) = (at / PAGE, (at % PAGE) as usize);
                let len = (PAGE_BYTES - within).min((end - at) as usize);
                if state.load(&self.file, page, &mut whole)? {
                    damaged.push(page);
                }
                out[(at - offset) as usize..][..len].copy_from_slice(&whole[within..within + len]);
                at += len as u64;
            }
        }
        if !damaged.is_empty() {
            let mut state = self.write_state();
            for page in damaged {
                if state.damaged.insert(page) {
                    warn!(page, "a damaged page of the database was read from its parity");
                }
            }
        }
        Ok(())
    }

    /// Writes `bytes` at `offset`, within its length.
    ///
    /// # Errors
    /// What reading and writing meet; any part may then have been written.
    pub(super) fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(bytes.len() as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        let mut state = self.write_state();
        if end > state.pages * PAGE {
            drop(state);
            self.set_len(end)?;
            state = self.write_state();
        }
        let mut at = offset;
        while at < end {
            let (page, within) = (at / PAGE, (at % PAGE) as usize);
            let len = (PAGE_BYTES - within).min((end - at) as usize);
            let part = &bytes[(at - offset) as usize..][..len];
            if let Ok(whole) = <&Page>::try_from(part) {
                state.store(&self.file, page, whole)?;
            } else {
                let mut whole = [0; PAGE_BYTES];
                state.load(&self.file, page, &mut whole)?;
                whole[within..within + len].copy_from_slice(part);
                state.store(&self.file, page, &whole)?;
            }
            at += len as u64;
        }
        Ok(())
    }

    /// Cuts the file, or extends it with zeros, to whole pages.
    ///
    /// # Errors
    /// [`io::ErrorKind::FileTooLarge`], and what the operating system says.
    pub(super) fn set_len(&self, len: u64) -> io::Result<()> {
        let pages = len.div_ceil(PAGE);
        let device = device_len(pages).ok_or(io::ErrorKind::FileTooLarge)?;
        let mut state = self.write_state();
        if pages >= state.pages {
            self.file.set_len(device)?;
            state.pages = pages;
            state.guards.resize_with(groups(pages), OnceLock::new);
            return Ok(());
        }
        // The last group is left with fewer pages than its checksums and its parity are of.
        let last = groups(pages).checked_sub(1);
        let partial = last.filter(|last| group_len(pages, *last) < GROUP_PAGES);
        if let Some(last) = partial {
            state.protect(&self.file, last)?;
        }
        state.guards.truncate(groups(pages));
        state.parity.retain(|group, _| *group < groups(pages));
        state.damaged.retain(|page| *page < pages);
        state.pages = pages;
        self.file.set_len(device)?;
        partial.map_or(Ok(()), |last| state.forget_rest(&self.file, last))
    }

    /// Has checksums and parity follow what was written. A sync of the file makes all of that durable.
    ///
    /// # Errors
    /// What writing meets.
    pub(super) fn flush(&self) -> io::Result<()> {
        let mut state = self.write_state();
        for (group, parity) in &state.parity {
            let sums = state.sums(&self.file, *group)?;
            self.file.write_at(guard_offset(*group), &encode(sums, parity))?;
        }
        state.parity.clear();
        Ok(())
    }

    /// As [`Self::flush`], and durably.
    ///
    /// # Errors
    /// What writing and syncing meet.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.flush()?;
        self.file.sync()?;
        self.write_state().header.synced();
        Ok(())
    }

    /// Pages in use that were found damaged when they were read, and are so still.
    pub(super) fn damaged(&self) -> Vec<u64> {
        self.read_state().damaged.iter().copied().collect()
    }

    /// Writes what the damaged pages had, durably.
    ///
    /// # Errors
    /// What reading and writing meet.
    pub(super) fn rebuild(&self) -> io::Result<()> {
        let mut state = self.write_state();
        let pages = mem::take(&mut state.damaged);
        for &page in &pages {
            if let Err(error) = state.rewrite(&self.file, page) {
                state.damaged = pages;
                return Err(error);
            }
        }
        drop(state);
        self.sync()
    }

    /// Sees to it that the header, which is part 0, or a group, which are the others, can lose a page: has what is
    /// damaged and can be rebuilt written again, and makes the parity anew if a crash has left the group without. Says
    /// whether there was anything to do; `None` if there is no such part.
    ///
    /// # Errors
    /// What reading and writing meet.
    pub(super) fn protect(&self, part: usize) -> io::Result<Option<bool>> {
        let mut state = self.write_state();
        let Some(group) = part.checked_sub(1) else {
            return state.header.mend(&self.file).map(Some);
        };
        if group >= state.guards.len() {
            return Ok(None);
        }
        state.protect(&self.file, group).map(Some)
    }

    fn read_state(&self) -> RwLockReadGuard<'_, State> {
        // A panic leaves at worst a page without its checksum, as a crash does.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_state(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Reads a page. Says whether it was damaged.
    fn load(&self, file: &HeldFile, page: u64, out: &mut Page) -> io::Result<bool> {
        if page == 0 {
            *out = self.header.page();
            return Ok(false);
        }
        let slot = Slot::of(page);
        file.read_at(slot.offset(), out)?;
        match self.verify(file, slot, out)? {
            Some(Found::Whole) => Ok(false),
            Some(Found::Rebuilt(whole)) => {
                *out = *whole;
                Ok(true)
            }
            None => {
                let why = format!("page {page} is damaged, and more of its group is");
                Err(io::Error::new(io::ErrorKind::InvalidData, why))
            }
        }
    }

    /// Whether `raw`, which is on the device at `slot`, is what was written there, or what was; `None` if
    /// that cannot be told.
    fn verify(&self, file: &HeldFile, slot: Slot, raw: &Page) -> io::Result<Option<Found>> {
        let stated = self.sums(file, slot.group)?[slot.index];
        if sum(raw) == stated {
            return Ok(Some(Found::Whole));
        }
        let pages = self.group(file, slot.group)?;
        let others = pages.iter().enumerate().filter(|(index, _)| *index != slot.index);
        let parity = *self.parity_of(file, slot.group)?;
        let missing = others.fold(parity, |missing, (_, page)| exclusive_or(missing, page));
        Ok((sum(&missing) == stated).then(|| Found::Rebuilt(Box::new(missing))))
    }

    /// Writes a page.
    fn store(&mut self, file: &HeldFile, page: u64, new: &Page) -> io::Result<()> {
        if page == 0 {
            return self.header.write(file, new);
        }
        let slot = Slot::of(page);
        let mut old = [0; PAGE_BYTES];
        file.read_at(slot.offset(), &mut old)?;
        let known = match self.verify(file, slot, &old)? {
            Some(Found::Whole) => true,
            Some(Found::Rebuilt(whole)) => {
                old = *whole;
                true
            }
            None => false,
        };
        self.damaged.remove(&page);
        let parity = if known {
            let parity = exclusive_or(*self.parity_of(file, slot.group)?, &old);
            Some(Box::new(exclusive_or(parity, new)))
        } else {
            None
        };
        self.sums(file, slot.group)?;
        file.write_at(slot.offset(), new)?;
        if let Some(guard) = self.guards[slot.group].get_mut() {
            guard.sums[slot.index] = sum(new);
        }
        let parity = match parity {
            Some(parity) => parity,
            None => self.new_parity(file, slot.group)?,
        };
        self.parity.insert(slot.group, parity);
        Ok(())
    }

    /// Writes what a page had, with its checksum.
    fn rewrite(&mut self, file: &HeldFile, page: u64) -> io::Result<()> {
        let mut whole = [0; PAGE_BYTES];
        self.load(file, page, &mut whole)?;
        self.store(file, page, &whole)
    }

    /// What the parity of the pages that a group has is. It has no part in what is damaged among them, then.
    fn new_parity(&self, file: &HeldFile, group: usize) -> io::Result<Box<Page>> {
        let pages = self.group(file, group)?;
        Ok(Box::new(pages.iter().fold([0; PAGE_BYTES], exclusive_or)))
    }

    /// Writes what is damaged in a group and can be rebuilt, and makes its parity anew if that is of other pages. Says whether
    /// there was anything to do.
    fn protect(&mut self, file: &HeldFile, group: usize) -> io::Result<bool> {
        let sums = *self.sums(file, group)?;
        let guard = self.guards[group].get_mut();
        let mut made = guard.is_some_and(|guard| mem::take(&mut guard.mended));
        for (index, raw) in self.group(file, group)?.iter().enumerate() {
            let slot = Slot { group, index };
            if sum(raw) == sums[index] {
                continue;
            }
            if let Some(Found::Rebuilt(whole)) = self.verify(file, slot, raw)? {
                self.store(file, slot.page(), &whole)?;
                made = true;
            }
        }
        let parity = self.new_parity(file, group)?;
        made |= parity != self.parity_of(file, group)?;
        if made {
            self.parity.insert(group, parity);
        }
        Ok(made)
    }

    /// Forgets the checksums of pages that a group no longer has.
    fn forget_rest(&mut self, file: &HeldFile, group: usize) -> io::Result<()> {
        let len = group_len(self.pages, group);
        self.sums(file, group)?;
        if let Some(guard) = self.guards[group].get_mut() {
            guard.sums[len..].fill(0);
        }
        let parity = self.new_parity(file, group)?;
        self.parity.insert(group, parity);
        Ok(())
    }

    /// The pages of a group, as they are on the device.
    fn group(&self, file: &HeldFile, group: usize) -> io::Result<Vec<Page>> {
        let mut pages = vec![[0; PAGE_BYTES]; group_len(self.pages, group)];
        file.read_at(Slot { group, index: 0 }.offset(), pages.as_flattened_mut())?;
        Ok(pages)
    }

    fn sums(&self, file: &HeldFile, group: usize) -> io::Result<&Sums> {
        let known = self.guards.get(group).ok_or(io::ErrorKind::UnexpectedEof)?;
        if let Some(guard) = known.get() {
            return Ok(&guard.sums);
        }
        let guard = Box::new(self.read_guard(file, group)?);
        Ok(&known.get_or_init(|| guard).sums)
    }

    /// Reads the checksums of a group. If they are damaged, they are made of the pages, should the parity say that these
    /// are as they were. Otherwise it was a crash that has left them in parts, and each is worth what it says.
    fn read_guard(&self, file: &HeldFile, group: usize) -> io::Result<Guard> {
        let mut bytes = [0; SUMS_BYTES + 8];
        file.read_at(guard_offset(group), &mut bytes)?;
        let (sums, checksum) = bytes.split_at(SUMS_BYTES);
        let is_whole = XxHash3_64::oneshot(sums).to_le_bytes() == checksum;
        let mut guard = Guard { sums: [0; GROUP_PAGES], mended: false };
        for (sum, bytes) in guard.sums.iter_mut().zip(sums.as_chunks().0) {
            *sum = u64::from_le_bytes(*bytes);
        }
        if is_whole {
            return Ok(guard);
        }
        let pages = self.group(file, group)?;
        let all = pages.iter().fold([0; PAGE_BYTES], exclusive_or);
        if all == *self.parity_of(file, group)? {
            let mut sums = [0; GROUP_PAGES];
            sums.iter_mut().zip(&pages).for_each(|(stated, page)| *stated = sum(page));
            // Those of a group that was never written are right without a checksum.
            guard = Guard { sums, mended: sums != guard.sums };
        }
        Ok(guard)
    }

    fn parity_of(&self, file: &HeldFile, group: usize) -> io::Result<Box<Page>> {
        if let Some(parity) = self.parity.get(&group) {
            return Ok(parity.clone());
        }
        let mut page = Box::new([0; PAGE_BYTES]);
        file.read_at(guard_offset(group) + PAGE, &mut *page)?;
        Ok(page)
    }
}

/// The two pages before a group.
fn encode(sums: &Sums, parity: &Page) -> Vec<u8> {
    let mut bytes: Vec<u8> = sums.iter().flat_map(|sum| sum.to_le_bytes()).collect();
    bytes.extend_from_slice(&XxHash3_64::oneshot(&bytes).to_le_bytes());
    bytes.resize(PAGE_BYTES, 0);
    bytes.extend_from_slice(parity);
    bytes
}

/// The checksum of a page. That of zeros is 0, so that a page that was never written has its own.
fn sum(page: &Page) -> u64 {
    if *page == [0; PAGE_BYTES] { 0 } else { XxHash3_64::oneshot(page).max(1) }
}

fn exclusive_or(mut one: Page, other: &Page) -> Page {
    for (one, other) in one.iter_mut().zip(other) {
        *one ^= other;
    }
    one
}
