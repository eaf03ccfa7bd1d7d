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
        let both = libc::PROT_READ | libc::PROT_WRITE;
        let (nowhere, file) = (std::ptr::null_mut(), file.as_raw_fd());
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let at = unsafe { libc::mmap(nowhere, len, both, libc::MAP_SHARED, file, 0) };
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
