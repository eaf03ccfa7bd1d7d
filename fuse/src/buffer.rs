//! Room for messages of which most are small and a few are a megabyte.
//!
//! A daemon has hundreds of these, two for each thread of each mount. The allocator would clear memory that it has used
//! before, which takes all of it at once, and would keep for ever what one large message has touched. Pages
//! of a mapping of its own are taken when they are touched, and can be given back.

use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Zeroes, of which the pages that nothing has touched take no memory.
#[derive(Debug)]
pub(crate) struct Buffer {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: it owns its memory, as a `Box<[u8]>` does.
#[expect(unsafe_code, reason = "memory that was mapped has a pointer")]
unsafe impl Send for Buffer {}

impl Buffer {
    /// `len` bytes, which must not be 0.
    ///
    /// # Errors
    /// If there is no memory, or no room in the address space.
    #[expect(unsafe_code, reason = "mmap(2) has no safe form")]
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping at a place that the kernel chooses touches no other memory.
        let start = unsafe { mmap_anonymous(ptr::null_mut(), len, protection, flags) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }

    /// Leaves the memory to the process for ever: the kernel may still write to it.
    pub(crate) fn leak(&mut self) {
        // A mapping of no bytes is not unmapped.
        self.len = 0;
    }

    /// Gives all pages back to the system: everything is zero again.
    #[expect(unsafe_code, reason = "madvise(2) has no safe form")]
    pub(crate) fn give_back(&mut self) {
        // SAFETY: the mapping is ours alone and anonymous, and `&mut` says that nobody looks at it: its
        // bytes become zeroes, which are as good as others.
        let given = unsafe { madvise(self.start.as_ptr().cast(), self.len, Advice::LinuxDontNeed) };
        debug_assert!(given.is_ok(), "{given:?}");
    }
}

impl Deref for Buffer {
    type Target = [u8];

    #[expect(unsafe_code, reason = "memory that was mapped has a pointer")]
    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping has `len` bytes, which are initialised as zeroes, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    #[expect(unsafe_code, reason = "memory that was mapped has a pointer")]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; it is mapped for writing, and `&mut self` is the only way to it.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    #[expect(unsafe_code, reason = "munmap(2) has no safe form")]
    fn drop(&mut self) {
        if self.len == 0 {
            return;
        }
        // SAFETY: the mapping is ours, and what was borrowed from it cannot outlive `self`.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many bytes of `buffer` take memory.
    fn resident(buffer: &Buffer) -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let at = buffer.start.as_ptr() as u64;
        let mut lines = maps.lines().skip_while(|line| {
            let range = line.split_whitespace().next().and_then(|range| range.split_once('-'));
            let ends = range.and_then(|(start, end)| {
                Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
            });
            !ends.is_some_and(|(start, end)| start <= at && at < end)
        });
        let line = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
    }

    #[test]
    fn only_touched_pages_take_memory_until_they_are_given_back() {
        // Odd, so that the kernel joins it to no other mapping of the tests.
        let mut buffer = Buffer::new((64 << 20) + 1).unwrap();
        assert!(buffer.iter().step_by(1 << 20).all(|byte| *byte == 0));
        buffer[..16 << 20].fill(7);
        let touched = resident(&buffer);
        assert!(touched >= 16 << 20, "{touched}");
        buffer.give_back();
        let left = resident(&buffer);
        assert!(left + (15 << 20) < touched, "{left} of {touched}");
        assert_eq!((buffer[0], buffer[1 << 20], buffer.len()), (0, 0, (64 << 20) + 1));
    }
}
