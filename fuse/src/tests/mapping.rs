//! A file in memory, for what is stored to and read from there.

use std::fs::File;
use std::os::fd::AsRawFd;

/// A shared mapping of the first bytes of a file.
pub(super) struct Mapping {
    at: *mut u8,
    len: usize,
}

#[expect(unsafe_code, reason = "mappings are what is tested")]
impl Mapping {
    pub(super) fn new(file: &File, len: usize) -> Self {
        Self::of(file, len, libc::PROT_READ | libc::PROT_WRITE)
    }

    /// One of which is only read.
    pub(super) fn readable(file: &File, len: usize) -> Self {
        Self::of(file, len, libc::PROT_READ)
    }

    fn of(file: &File, len: usize, rights: i32) -> Self {
        let (nowhere, file) = (std::ptr::null_mut(), file.as_raw_fd());
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let at = unsafe { libc::mmap(nowhere, len, rights, libc::MAP_SHARED, file, 0) };
        assert_ne!(at, libc::MAP_FAILED);
        Self { at: at.cast(), len }
    }

    pub(super) fn put(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len);
        // SAFETY: within the mapping, of which nobody holds a reference.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.at.add(at), bytes.len()) };
    }

    pub(super) fn get(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= self.len);
        let mut bytes = vec![0; len];
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(self.at.add(at), bytes.as_mut_ptr(), len) };
        bytes
    }

    /// How many of its pages are in the page cache.
    pub(super) fn resident(&self) -> usize {
        let mut pages = vec![0; self.len.div_ceil(rustix::param::page_size())];
        // SAFETY: a byte for each page of the mapping.
        let found = unsafe { libc::mincore(self.at.cast(), self.len, pages.as_mut_ptr()) };
        assert_eq!(found, 0);
        pages.iter().filter(|page| **page & 1 != 0).count()
    }

    pub(super) fn sync(&self) {
        // SAFETY: the whole mapping.
        assert_eq!(unsafe { libc::msync(self.at.cast(), self.len, libc::MS_SYNC) }, 0);
    }
}

#[expect(unsafe_code, reason = "mappings are what is tested")]
impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nobody uses it any more.
        assert_eq!(unsafe { libc::munmap(self.at.cast(), self.len) }, 0);
    }
}
