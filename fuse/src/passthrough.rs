//! Passthrough: large files of the base, which the kernel reads from a plain file of the store's cache without
//! asking us. Its page cache is that of the plain file, so all mounts share what one has read.
//!
//! The kernel demands, and this keeps:
//!
//! - as long as an inode is open so, each open of it is so, with the same backing; as long as it is open otherwise,
//!   none is. What we count begins before the kernel's count and ends after it, so that it never meets the other.
//! - the backing of an open is opened as the file was. So one is only given to who reads.
//!
//! It cannot be told to take a backing away. Whoever has a file open so sees the content of the base, whatever
//! is written: so nobody writes meanwhile. An open for writing, or a change of the size, waits a little, since a
//! close is told late, and is then refused with `ETXTBSY`, as for a program that runs.
//!
//! Nor does it tell of mappings: one holds the backing and not the file, and outlives its last close. `backing.rs` has
//! the kernel say whether a backing is still there.

use std::collections::HashMap;
use std::mem;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use agentfs_engine::Ino;
use agentfs_engine::store::PlainFile;
use rustix::io::Errno;
use rustix::thread::CapabilitySet;
use tracing::warn;

use crate::backing::{Backing, Watch};

/// From how many bytes on a file is opened so. Its first read in another branch then takes two thirds of the time that it
/// takes through us, and shares its pages; with less, what the open costs more eats that up.
pub(crate) const PASSED_BYTES_MIN: u64 = 1 << 20;
/// How long who wants to write waits for those to end who read. The kernel tells of a last close
/// after it has returned; that takes a millisecond at most where nothing else is to be done.
const READERS_END_WITHIN: Duration = Duration::from_millis(200);
/// How many descriptors may wait to be closed.
const TREES_MAX: usize = 16;
/// How often mappings are looked for meanwhile: nobody tells when one ends.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// How an open is told by when it ends. 0 is that of an open that does not matter here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handle {
    /// Read and written through us.
    Plain = 1,
    /// Read past us.
    Passed = 2,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Through us.
    Plain,
    /// From the backing of this number.
    Passed(u32),
}

/// The files of a session that are read past us, and those that could be.
#[derive(Debug)]
pub(crate) struct Passthrough {
    /// Weak, since who has it open keeps the session from ending.
    device: Weak<OwnedFd>,
    /// Of a session in which somebody may want to write.
    watch: Option<Watch>,
    /// Whether the kernel has refused a backing for a reason that lasts.
    refused: AtomicBool,
    /// The engine is not called under it.
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    files: HashMap<Ino, Opens>,
    /// How many want no file to begin to be read past us.
    bars: u32,
    /// Whether somebody waits for readers to end. One at a time: a thread that waits serves nobody, also not
    /// the close for which it waits.
    waiting: bool,
    /// What holds mounts of backings; closed when nobody waits for it.
    trees: Vec<OwnedFd>,
}

/// The opens of a file.
#[derive(Debug, Default)]
struct Opens {
    plain: u32,
    passed: u32,
    /// Somebody makes its backing.
    busy: bool,
    backing: Option<Backing>,
    /// The mounts by which it was read past us and may still be mapped.
    mounts: Vec<u64>,
}

/// Why nothing can be read past us on this machine; `None` if it can, by what the process knows of itself.
pub(crate) fn obstacle() -> Option<String> {
    let effective = rustix::thread::capabilities(None).map(|sets| sets.effective);
    if !effective.is_ok_and(|set| set.contains(CapabilitySet::SYS_ADMIN)) {
        return Some("this process has not the capability CAP_SYS_ADMIN".into());
    }
    Watch::new()
        .err()
        .map(|error| format!("the kernel does not tell of mounts by fanotify: {error}"))
}

/// Ends the making of a backing, however it ends.
struct Making<'a> {
    passthrough: &'a Passthrough,
    ino: Ino,
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.passthrough.lock().files.entry(self.ino).or_default().busy = false;
        self.passthrough.changed.notify_all();
    }
}

/// As long as it lives, no file begins to be read past us.
#[derive(Debug)]
pub struct Barred<'a>(&'a Passthrough);

impl Barred<'_> {
    /// The first of `inodes` that somebody reads past us, now and for a while.
    pub fn in_use(&self, inodes: &[Ino]) -> Option<Ino> {
        inodes.iter().copied().find(|&ino| self.0.wait_for_readers(ino).is_err())
    }
}

impl Drop for Barred<'_> {
    fn drop(&mut self) {
        self.0.lock().bars -= 1;
    }
}

impl Passthrough {
    /// # Errors
    /// If what needs to be known cannot be: see [`obstacle`].
    pub(crate) fn new(device: Weak<OwnedFd>, writable: bool) -> std::io::Result<Self> {
        let watch = writable.then(Watch::new).transpose()?;
        let (state, changed) = (Mutex::default(), Condvar::new());
        Ok(Self { device, watch, refused: AtomicBool::new(false), state, changed })
    }

    /// Opens a file for reading: past us if nobody has it open otherwise and `make` gives a plain file.
    pub(crate) fn open_to_read(&self, ino: Ino, make: impl FnOnce() -> Option<PlainFile>) -> Way {
        let mut state = self.lock();
        loop {
            let no_more = state.bars > 0 || self.refused.load(Ordering::Relaxed);
            let opens = state.files.entry(ino).or_default();
            if opens.busy {
                state = self.wait(state);
            } else if let Some(backing) = &opens.backing {
                opens.passed += 1;
                return Way::Passed(backing.id);
            } else if opens.plain > 0 || no_more {
                opens.plain += 1;
                return Way::Plain;
            } else {
                opens.busy = true;
                break;
            }
        }
        drop(state);
        let making = Making { passthrough: self, ino };
        let backing =
            make().and_then(|file| match Backing::new(&self.device, file, self.watch.as_ref()) {
                Ok(backing) => Some(backing),
                Err(error) => {
                    self.refuse(&error);
                    None
                }
            });
        let mut state = self.lock();
        let opens = state.files.entry(ino).or_default();
        let mut trees = Vec::new();
        let way = match backing {
            Some((backing, tree)) => {
                let (id, mount) = (backing.id, backing.mount);
                opens.passed += 1;
                opens.backing = Some(backing);
                state.trees.push(tree);
                if state.trees.len() > TREES_MAX {
                    mem::swap(&mut trees, &mut state.trees);
                }
                if self.watch.is_some() {
                    state.watch(ino, mount);
                }
                Way::Passed(id)
            }
            None => {
                opens.plain += 1;
                Way::Plain
            }
        };
        drop(state);
        drop((making, trees));
        way
    }

    /// Opens a file for writing, or begins a change of its size.
    ///
    /// # Errors
    /// `ETXTBSY` while somebody reads it past us.
    pub(crate) fn open_to_write(&self, ino: Ino) -> Result<(), Errno> {
        let mut state = self.wait_for_readers(ino)?;
        state.files.entry(ino).or_default().plain += 1;
        Ok(())
    }

    /// Returns when nobody reads the file past us, and keeps it so as long as the state is held.
    fn wait_for_readers(&self, ino: Ino) -> Result<MutexGuard<'_, State>, Errno> {
        let mut state = self.lock();
        let mut until = None;
        let found = loop {
            // They would look like mappings.
            state.trees.clear();
            let Some(opens) = state.files.get_mut(&ino) else { break Ok(()) };
            if opens.busy {
                state = self.wait(state);
                continue;
            }
            if opens.passed == 0 {
                self.settle(&mut opens.mounts);
                if opens.mounts.is_empty() {
                    break Ok(());
                }
            }
            let now = Instant::now();
            match until {
                None if state.waiting => return Err(Errno::TXTBSY),
                None => {
                    state.waiting = true;
                    until = Some(now + READERS_END_WITHIN);
                }
                Some(until) if until <= now => break Err(Errno::TXTBSY),
                Some(_) => {}
            }
            let waited = self.changed.wait_timeout(state, LOOK_AGAIN);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        };
        if until.is_some() {
            state.waiting = false;
        }
        found.map(|()| state)
    }

    /// An open of the file has ended.
    pub(crate) fn closed(&self, ino: Ino, handle: Handle) {
        let mut state = self.lock();
        let Some(opens) = state.files.get_mut(&ino) else { return };
        let mut ended = None;
        match handle {
            Handle::Plain => opens.plain = opens.plain.saturating_sub(1),
            Handle::Passed => {
                opens.passed = opens.passed.saturating_sub(1);
                if opens.passed == 0 {
                    ended = opens.backing.take();
                }
            }
        }
        if opens.is_over() {
            state.files.remove(&ino);
        }
        let trees = mem::take(&mut state.trees);
        drop(state);
        drop(ended);
        self.changed.notify_all();
        drop(trees);
    }

    /// The kernel has forgotten the inode, so nobody has it open or mapped.
    pub(crate) fn forgotten(&self, ino: Ino) {
        let mut state = self.lock();
        let Some(opens) = state.files.get_mut(&ino) else { return };
        // Unless a close is still to be told.
        if opens.passed == 0 {
            opens.mounts.clear();
        }
        if opens.is_over() {
            state.files.remove(&ino);
        }
    }

    /// The session has ended.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        let ended = (mem::take(&mut state.files), mem::take(&mut state.trees));
        drop(state);
        drop(ended);
    }

    /// From now on no file begins to be read past us.
    pub(crate) fn bar(&self) -> Barred<'_> {
        self.lock().bars += 1;
        Barred(self)
    }

    /// Whether it knows of no open and no mapping.
    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        self.lock().files.is_empty()
    }

    /// The kernel has refused a backing.
    fn refuse(&self, error: &std::io::Error) {
        let why = match error.raw_os_error() {
            // Descriptors and memory may be short at the moment.
            Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM) => return,
            Some(libc::ELOOP) => "the store is on a file system that lies on another one".into(),
            _ => error.to_string(),
        };
        if !self.refused.swap(true, Ordering::Relaxed) {
            warn!("the kernel refuses to read files past us, so none is any more: {why}");
        }
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No change of it is half done when anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves those of `mounts` that are still there, or all if that cannot be told.
    fn settle(&self, mounts: &mut Vec<u64>) {
        if mounts.is_empty() {
            return;
        }
        if let Some(there) = self.watch.as_ref().and_then(|watch| watch.there().ok()) {
            mounts.retain(|mount| there.contains(mount));
        }
    }
}

impl State {
    /// Notes that `ino` is read by way of `mount`. If others were by one of that number, it has gone.
    fn watch(&mut self, ino: Ino, mount: u64) {
        for opens in self.files.values_mut() {
            opens.mounts.retain(|other| *other != mount);
        }
        self.files.entry(ino).or_default().mounts.push(mount);
        self.files.retain(|_, opens| !opens.is_over());
    }
}

impl Opens {
    /// Whether nothing has to be known of it.
    fn is_over(&self) -> bool {
        self.plain == 0 && self.passed == 0 && !self.busy && self.mounts.is_empty()
    }
}
