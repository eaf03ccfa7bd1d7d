//! Whole files in memory, as long as all of them together are few bytes.

use std::sync::atomic::{AtomicU64, Ordering};

use super::file::RandomFile;
use crate::error::Result;
use crate::limits::INDEX_HELD_BYTES_MAX;

/// Bytes held in this process.
static HELD_BYTES: AtomicU64 = AtomicU64::new(0);

/// The bytes of a file.
#[derive(Debug)]
pub(super) struct Held(Box<[u8]>);

impl Held {
    /// Reads all of `file`; `None` if there is no room for it.
    pub(super) fn read(file: &RandomFile) -> Result<Option<Self>> {
        let taken = HELD_BYTES.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            held.checked_add(file.len()).filter(|held| *held <= INDEX_HELD_BYTES_MAX)
        });
        if taken.is_err() {
            return Ok(None);
        }
        // From here on, dropping gives the room back.
        let mut held = Self(vec![0; file.len() as usize].into_boxed_slice());
        file.read_exact(0, &mut held.0)?;
        Ok(Some(held))
    }

    /// So many bytes from an offset, if the file has them.
    pub(super) fn get(&self, offset: u64, len: usize) -> Option<&[u8]> {
        self.0.get(usize::try_from(offset).ok()?..)?.get(..len)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD_BYTES.fetch_sub(self.0.len() as u64, Ordering::Relaxed);
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
        assert!(Held::read(&RandomFile::open(path).unwrap()).unwrap().is_none());
        let path = dir.path().join("small");
        std::fs::write(&path, [7; 100_000]).unwrap();
        let file = RandomFile::open(path).unwrap();
        // More often than there would be room for if none were given back.
        for _ in 0..INDEX_HELD_BYTES_MAX / 100_000 + 1 {
            let held = Held::read(&file).unwrap().unwrap();
            assert_eq!(held.get(99_998, 2), Some(&[7; 2][..]));
            assert_eq!(held.get(99_998, 3), None);
            assert_eq!(held.get(u64::MAX, 1), None);
        }
    }
}
