//! What the allocator of the system is asked for.
//!
//! An import allocates and frees millions of small buffers on several threads, and hands many of them from
//! one thread to another. glibc gives each thread a heap of its own, in which what one thread has freed does not
//! serve another, and gives only the end of a heap back by itself. The daemon that clones 1,000,000 files takes
//! 304 MiB at its peak with the heaps that glibc makes by default, and 292 with two; after that clone 91 of 285
//! MiB stayed resident that nobody used.

/// Heaps of the process: one for each of the threads that allocate at the same time for long, which are the
/// workers of an import and the writer of the store. What a thread frees and takes again does not reach them.
#[cfg(target_env = "gnu")]
const ARENAS_MAX: libc::c_int = 2;

/// Limits the heaps. To be called before the process has a second thread.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "mallopt(3) has no safe form")]
pub fn limit_heaps() {
    // SAFETY: it takes no pointers, and no other thread allocates meanwhile.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, ARENAS_MAX);
    }
}

/// Gives free pages of the heap back to the system, wherever they lie. Called when work has ended that
/// allocates much and is rare: it looks at the whole heap, and holds the lock of a part of it meanwhile.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "malloc_trim(3) has no safe form")]
pub fn give_back() {
    // SAFETY: it may be called by any thread at any time, and touches only memory that is free.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Other allocators decide for themselves.
#[cfg(not(target_env = "gnu"))]
pub fn limit_heaps() {}

/// Other allocators decide for themselves.
#[cfg(not(target_env = "gnu"))]
pub fn give_back() {}
