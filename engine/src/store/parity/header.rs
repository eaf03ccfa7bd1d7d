//! The header of a protected file: the one page that is written in place, kept in two places at once.
//!
//! Two slots take turns, so that the header of the last sync is never overwritten before the next one: a power
//! failure in the middle of a write leaves that. Each slot has a copy in either of the first two pages.

use std::io;

use twox_hash::XxHash3_64;

use super::super::held::HeldFile;
use super::layout::PAGE_BYTES;

/// Bytes at the beginning of the user's first page that are kept; the rest of it is zeros.
pub(super) const KEPT_BYTES: usize = 384;
const MAGIC: &[u8; 8] = b"agentdbh";
/// Magic, sequence, what is kept, checksum. It lies within a sector.
const COPY_BYTES: usize = 8 + 8 + KEPT_BYTES + 8;
/// Where the copies of either slot begin in their page.
const SLOT_OFFSETS: [usize; 2] = [0, PAGE_BYTES / 2];

/// The user's first page.
#[derive(Debug)]
pub(super) struct Header {
    kept: [u8; KEPT_BYTES],
    /// Rises with each write.
    sequence: u64,
    /// Where the newest is.
    slot: usize,
    /// Whether that is not yet known to be on the device.
    unsynced: bool,
}

impl Header {
    /// The header of a file in which none was written.
    pub(super) const fn none() -> Self {
        Self { kept: [0; KEPT_BYTES], sequence: 0, slot: 1, unsynced: false }
    }

    /// Reads the newest header of which a copy is whole.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if there is none, else what reading meets.
    pub(super) fn read(file: &HeldFile) -> io::Result<Self> {
        let mut newest: Option<Self> = None;
        for page in 0..2 {
            for (slot, offset) in SLOT_OFFSETS.into_iter().enumerate() {
                let mut copy = [0; COPY_BYTES];
                file.read_at((page * PAGE_BYTES + offset) as u64, &mut copy)?;
                let Some((sequence, kept)) = decode(&copy) else { continue };
                if newest.as_ref().is_none_or(|newest| newest.sequence < sequence) {
                    newest = Some(Self { kept, sequence, slot, unsynced: false });
                }
            }
        }
        newest.ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "no copy of its header is whole")
        })
    }

    /// The user's first page.
    pub(super) fn page(&self) -> [u8; PAGE_BYTES] {
        let mut page = [0; PAGE_BYTES];
        page[..KEPT_BYTES].copy_from_slice(&self.kept);
        page
    }

    /// Writes the user's first page.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] if there is something where nothing is kept, else what writing meets.
    pub(super) fn write(&mut self, file: &HeldFile, page: &[u8; PAGE_BYTES]) -> io::Result<()> {
        let (kept, rest) = page.split_first_chunk().ok_or(io::ErrorKind::InvalidInput)?;
        if rest.iter().any(|byte| *byte != 0) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the header is too long"));
        }
        if !self.unsynced {
            self.slot = 1 - self.slot;
            self.unsynced = true;
        }
        self.kept = *kept;
        self.sequence += 1;
        let copy = encode(self.sequence, &self.kept);
        (0..2).try_for_each(|page| {
            file.write_at((page * PAGE_BYTES + SLOT_OFFSETS[self.slot]) as u64, &copy)
        })
    }

    /// Writes the newest header again where a copy of it is damaged; whether one was.
    ///
    /// # Errors
    /// What reading and writing meet.
    pub(super) fn mend(&self, file: &HeldFile) -> io::Result<bool> {
        if self.sequence == 0 {
            return Ok(false);
        }
        let whole = encode(self.sequence, &self.kept);
        let mut mended = false;
        for page in 0..2 {
            let offset = (page * PAGE_BYTES + SLOT_OFFSETS[self.slot]) as u64;
            let mut copy = [0; COPY_BYTES];
            file.read_at(offset, &mut copy)?;
            if copy != *whole {
                file.write_at(offset, &whole)?;
                mended = true;
            }
        }
        Ok(mended)
    }

    /// Everything that was written is on the device.
    pub(super) const fn synced(&mut self) {
        self.unsynced = false;
    }
}

fn encode(sequence: u64, kept: &[u8; KEPT_BYTES]) -> Vec<u8> {
    let mut copy = Vec::with_capacity(COPY_BYTES);
    copy.extend_from_slice(MAGIC);
    copy.extend_from_slice(&sequence.to_le_bytes());
    copy.extend_from_slice(kept);
    copy.extend_from_slice(&XxHash3_64::oneshot(&copy).to_le_bytes());
    copy
}

fn decode(copy: &[u8; COPY_BYTES]) -> Option<(u64, [u8; KEPT_BYTES])> {
    let (stated, checksum) = copy.split_last_chunk()?;
    let (sequence, kept) = stated.strip_prefix(MAGIC)?.split_first_chunk()?;
    (XxHash3_64::oneshot(stated) == u64::from_le_bytes(*checksum))
        .then_some((u64::from_le_bytes(*sequence), kept.try_into().ok()?))
}
