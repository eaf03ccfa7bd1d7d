//! The files under a store, behind a trait, so that tests can lose what was not synced.
//!
//! What the traits promise is what POSIX promises and no more: bytes survive a crash of the machine
//! once [`File::sync`] has returned, a name does once [`Storage::sync_dir`] of its directory has.

use std::ffi::OsString;
use std::fmt::Debug;
use std::fs::{self, DirBuilder, OpenOptions, TryLockError};
use std::io::{self, IoSlice};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

/// An open file. All offsets are in bytes.
pub trait File: Debug + Send + Sync {
    /// Its length in bytes.
    ///
    /// # Errors
    /// The operating system's.
    fn len(&self) -> io::Result<u64>;

    /// Whether it has no bytes.
    ///
    /// # Errors
    /// The operating system's.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Bytes that it takes on the device, which may be fewer than its length.
    ///
    /// # Errors
    /// The operating system's.
    fn allocated(&self) -> io::Result<u64>;

    /// Fills `out` from `offset`.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if the file ends before, else the operating system's.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// The operating system's; any part may then have been written.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Writes all of `slices`, one behind the other, at `offset`: in one system call, unless the
    /// operating system takes less at a time. What is left in `slices` has no meaning.
    ///
    /// # Errors
    /// The operating system's; any part may then have been written.
    fn write_vectored_at(&self, offset: u64, slices: &mut [IoSlice<'_>]) -> io::Result<()>;

    /// Reserves room on the device for `len` bytes at `offset`, so that writing them cannot fail for
    /// lack of it. The length of the file and its bytes stay as they are.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] if the file system cannot do that, else the operating
    /// system's; a part may then be reserved.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Cuts the file, or extends it with zeros.
    ///
    /// # Errors
    /// The operating system's.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes everything written so far survive a crash of the machine.
    ///
    /// # Errors
    /// The operating system's; what was written since the last success may then be lost.
    fn sync(&self) -> io::Result<()>;

    /// Claims the file for this handle as long as it lives; `false` if another one has it.
    ///
    /// # Errors
    /// The operating system's.
    fn try_lock(&self) -> io::Result<bool>;
}

/// Directories and the files in them.
pub trait Storage: Debug + Send + Sync {
    /// Opens a file for reading and writing; with `create`, an empty one if there is none.
    ///
    /// # Errors
    /// The operating system's.
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn File>>;

    /// Creates a directory and those above it that are missing. An existing one is no error.
    ///
    /// # Errors
    /// The operating system's.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Whether there is a file or directory of this name.
    ///
    /// # Errors
    /// The operating system's.
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// The names in a directory, in no particular order.
    ///
    /// # Errors
    /// The operating system's.
    fn list(&self, path: &Path) -> io::Result<Vec<OsString>>;

    /// Gives a file another name, replacing what has it.
    ///
    /// # Errors
    /// The operating system's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// The operating system's.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a directory survive a crash of the machine.
    ///
    /// # Errors
    /// The operating system's.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
}

/// The file system. What it creates is private to the user.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk;

impl Storage for Disk {
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn File>> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(create).mode(0o600).open(path)?;
        Ok(Arc::new(file))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(path)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        fs::read_dir(path)?.map(|entry| Ok(entry?.file_name())).collect()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        fs::File::open(path)?.sync_all()
    }
}

impl File for fs::File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn allocated(&self) -> io::Result<u64> {
        // The unit of `st_blocks`, whatever the file system's blocks are.
        Ok(self.metadata()?.blocks() * 512)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(out, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn write_vectored_at(&self, mut offset: u64, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        // Drops what is empty from the front, so that nothing left to write means no slices left.
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            match rustix::io::pwritev(self, slices, offset) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    IoSlice::advance_slices(&mut slices, written);
                    offset += written as u64;
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        loop {
            match rustix::fs::fallocate(self, FallocateFlags::KEEP_SIZE, offset, len) {
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP) => return Err(io::ErrorKind::Unsupported.into()),
                done => return Ok(done?),
            }
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        fs::File::set_len(self, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn try_lock(&self) -> io::Result<bool> {
        match fs::File::try_lock(self) {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// What every implementation must do.
#[cfg(test)]
pub(crate) fn conform(storage: &dyn Storage, dir: &Path) {
    let sub = dir.join("a/b");
    storage.create_dir(&sub).unwrap();
    storage.create_dir(&sub).unwrap();
    let path = sub.join("file");
    assert!(!storage.exists(&path).unwrap());
    assert_eq!(storage.open(&path, false).unwrap_err().kind(), io::ErrorKind::NotFound);
    let file = storage.open(&path, true).unwrap();
    assert!(storage.exists(&path).unwrap() && file.is_empty().unwrap());

    file.write_at(3, b"abc").unwrap();
    let mut all = [9; 6];
    file.read_at(0, &mut all).unwrap();
    assert_eq!(&all, b"\0\0\0abc");
    assert_eq!(file.read_at(1, &mut all).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    file.set_len(4).unwrap();
    file.set_len(5).unwrap();
    file.read_at(0, &mut all[..5]).unwrap();
    assert_eq!(&all[..5], b"\0\0\0a\0");
    file.allocate(2, 100).unwrap();
    assert_eq!(file.len().unwrap(), 5, "reserved room is not length");
    let mut slices = [&b""[..], b"12", b"", b"345", b""].map(IoSlice::new);
    file.write_vectored_at(4, &mut slices).unwrap();
    file.write_vectored_at(1, &mut [IoSlice::new(b"")]).unwrap();
    file.write_vectored_at(2, &mut []).unwrap();
    let mut written = [0; 9];
    file.read_at(0, &mut written).unwrap();
    assert_eq!(&written, b"\0\0\0a12345");
    file.set_len(5).unwrap();
    file.sync().unwrap();
    storage.sync_dir(&sub).unwrap();
    assert_eq!(storage.list(&sub).unwrap(), ["file"]);
    assert_eq!(storage.list(dir.join("a").as_path()).unwrap(), ["b"]);
    assert_eq!(storage.list(&dir.join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);

    let second = storage.open(&path, true).unwrap();
    assert_eq!(second.len().unwrap(), 5, "an existing file is not emptied");
    assert!(file.try_lock().unwrap());
    assert!(!second.try_lock().unwrap());
    drop(file);
    assert!(second.try_lock().unwrap());

    let other = sub.join("other");
    storage.rename(&path, &other).unwrap();
    assert!(!storage.exists(&path).unwrap() && storage.exists(&other).unwrap());
    storage.remove(&other).unwrap();
    assert!(!storage.exists(&other).unwrap());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_system_conforms() {
        let dir = tempfile::tempdir().unwrap();
        conform(&Disk, dir.path());
    }
}
