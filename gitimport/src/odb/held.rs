//! Parts of files in memory, as long as all of them together are few bytes.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::file::RandomFile;
use crate::error::Result;
use crate::limits::INDEX_HELD_BYTES_MAX;

/// Bytes held in this process.
static HELD_BYTES: AtomicU64 = AtomicU64::new(0);

/// Room for so many bytes; dropping it gives it back.
#[derive(Debug)]
pub(super) struct Room(u64);

impl Room {
    /// `None` if there is not so much.
    pub(super) fn take(bytes: u64) -> Option<Self> {
        HELD_BYTES
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                held.checked_add(bytes).filter(|held| *held <= INDEX_HELD_BYTES_MAX)
            })
            .is_ok()
            .then(|| Self(bytes))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        HELD_BYTES.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// Bytes of a file.
#[derive(Debug)]
pub(super) struct Held {
    bytes: Box<[u8]>,
    start: u64,
    _room: Room,
}

impl Held {
    /// Reads a part of `file`; `None` if there is no room for it.
    pub(super) fn read(file: &RandomFile, part: Range<u64>) -> Result<Option<Self>> {
        let len = part.end.saturating_sub(part.start);
        let Some(room) = Room::take(len) else { return Ok(None) };
        let mut bytes = vec![0; len as usize].into_boxed_slice();
        file.read_exact(part.start, &mut bytes)?;
        Ok(Some(Self { bytes, start: part.start, _room: room }))
    }

    /// So many bytes from an offset in the file, if they are held.
    pub(super) fn get(&self, offset: u64, len: usize) -> Option<&[u8]> {
        let skip = usize::try_from(offset.checked_sub(self.start)?).ok()?;
        self.bytes.get(skip..)?.get(..len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_bounded_and_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("large");
        std::fs::File::create(&path).unwrap().set_len(INDEX_HELD_BYTES_MAX + 1).unwrap();
        assert!(
            Held::read(&RandomFile::open(path).unwrap(), 0..INDEX_HELD_BYTES_MAX + 1)
                .unwrap()
                .is_none()
        );
        let path = dir.path().join("small");
        std::fs::write(&path, [7; 100_000]).unwrap();
        let file = RandomFile::open(path).unwrap();
        // More often than there would be room for if none were given back.
        for _ in 0..INDEX_HELD_BYTES_MAX / 100_000 + 1 {
            let held = Held::read(&file, 2..file.len()).unwrap().unwrap();
            assert_eq!(held.get(99_998, 2), Some(&[7; 2][..]));
            assert_eq!(held.get(2, 1), Some(&[7][..]));
            assert_eq!(held.get(1, 1), None);
            assert_eq!(held.get(99_998, 3), None);
            assert_eq!(held.get(u64::MAX, 1), None);
        }
    }
}
