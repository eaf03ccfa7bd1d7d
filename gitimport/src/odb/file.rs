//! Files of an object database, read at positions and never mapped: a mapping would count as this
//! process's memory, and turn a file that somebody truncates into a signal.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// Most bytes that one read takes from a file.
const WINDOW_BYTES: usize = 64 << 10;

/// An open file whose bytes do not change.
#[derive(Debug)]
pub(super) struct RandomFile {
    path: PathBuf,
    file: File,
    len: u64,
    /// Tells windows of different files apart; never given twice.
    id: u64,
}

impl RandomFile {
    pub(super) fn open(path: PathBuf) -> Result<Self> {
        let file = File::open(&path).map_err(|error| Error::io("open", &path, error))?;
        let meta = file.metadata().map_err(|error| Error::io("stat", &path, error))?;
        if !meta.is_file() {
            return Err(Error::CorruptFile { path, why: "it is not a regular file".into() });
        }
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Self { path, file, len: meta.len(), id })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Fills `out` from `offset`.
    pub(super) fn read_exact(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(out, offset).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => self.corrupt(format!(
                "it ends before byte {}",
                offset.saturating_add(out.len() as u64)
            )),
            _ => Error::io("read", &self.path, error),
        })
    }

    /// Reads from `offset` until `out` is full or the file ends.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while done < out.len() {
            match self.file.read_at(&mut out[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("read", &self.path, error)),
            }
        }
        Ok(done)
    }

    pub(super) fn corrupt(&self, why: impl Into<String>) -> Error {
        Error::CorruptFile { path: self.path.clone(), why: why.into() }
    }
}

/// The part of a file that was read last.
#[derive(Debug, Default)]
pub(super) struct Window {
    file: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// The bytes of `file` from `offset` that are at hand. They are at least `need`, unless `end`
    /// comes first; if they must be read, `fill` of them are. Nothing at or past `end` is shown.
    pub(super) fn at(
        &mut self,
        file: &RandomFile,
        offset: u64,
        end: u64,
        need: usize,
        fill: usize,
    ) -> Result<&[u8]> {
        let left = end.saturating_sub(offset);
        let need = left.min(need as u64) as usize;
        let held = match offset.checked_sub(self.start) {
            Some(skip) if self.file == file.id() => usize::try_from(skip)
                .ok()
                .filter(|skip| self.bytes.len() >= skip.saturating_add(need)),
            _ => None,
        };
        let skip = match held {
            Some(skip) => skip,
            None => {
                let fill = left.min(fill.clamp(need, WINDOW_BYTES.max(need)) as u64) as usize;
                // Nothing is held while the read may fail.
                self.file = 0;
                self.bytes.resize(fill, 0);
                let count = file.read(offset, &mut self.bytes)?;
                self.bytes.truncate(count);
                self.start = offset;
                self.file = file.id();
                0
            }
        };
        let shown = &self.bytes[skip..];
        Ok(&shown[..shown.len().min(left.min(usize::MAX as u64) as usize)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_moves_and_stops_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let bytes: Vec<u8> = (0..=255).cycle().take(200_000).collect();
        std::fs::write(&path, &bytes).unwrap();
        let file = RandomFile::open(path).unwrap();
        let mut window = Window::default();
        for (offset, end, need, fill) in [
            (0, 200_000, 16, 512),
            (100, 200_000, 16, 512),
            (500, 200_000, 16, 512),
            (199_990, 200_000, 64, 512),
            (199_990, 199_995, 64, 512),
            (5, 7, 1, 1),
            (0, 200_000, 1, 1 << 30),
            (200_000, 200_000, 1, 1),
        ] {
            let shown = window.at(&file, offset, end, need, fill).unwrap();
            let left = (end - offset) as usize;
            assert!(shown.len() >= need.min(left) && shown.len() <= left);
            assert_eq!(shown, &bytes[offset as usize..offset as usize + shown.len()]);
        }
    }

    #[test]
    fn a_truncated_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, [7; 100]).unwrap();
        let file = RandomFile::open(path.clone()).unwrap();
        File::options().write(true).open(&path).unwrap().set_len(10).unwrap();
        assert!(file.read_exact(50, &mut [0; 10]).unwrap_err().is_corruption());
        assert!(Window::default().at(&file, 50, 100, 10, 10).unwrap().is_empty());
    }
}
