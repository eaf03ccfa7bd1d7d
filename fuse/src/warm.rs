//! Filling the kernel's caches before they are asked.
//!
//! A walk over the own mount with READDIRPLUS leaves every name, attribute and listing in the
//! kernel, and spends the one message that each ENOSYS takes. What git reads in every directory is
//! looked up, so that its absence is known too, and where it is there it is pushed.
//!
//! A process that waits for its own mount cannot be killed while the request is in the hands of one
//! of its threads: the thread that waits keeps the device open, and the device keeps the request
//! alive. So the walk runs on threads with tables of files of their own, in which the device is not.
//! When the process dies, the mount dies, and with it the request.

use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use agentfs_engine::Ino;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, SeekFrom, StatxFlags, fgetxattr,
    flistxattr, open, openat, openat2, seek, statx,
};
use rustix::io::Errno;

use crate::mountinfo::{self, Place};
use crate::ops::Ops;

/// How long a walk may take, and how long its end is waited for.
const WALK_TIME_MAX: Duration = Duration::from_secs(10);
const RESULT_TIME_MAX: Duration = Duration::from_secs(15);
/// Threads of a walk. One alone sleeps and wakes with each message, which costs more than the
/// message where a core must be woken; four keep two cores busy.
const WALKERS: usize = 4;
/// Room for one getdents(2). The kernel asks us for as much at once, and allocates it first.
const LISTING_BYTES: usize = 32 << 10;
const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);
/// Files that git reads wherever they are, first of all the one that it looks for everywhere.
const READ_FIRST: [&CStr; 4] = [c".gitignore", c".gitattributes", c".gitmodules", c".git"];
/// Most files that are pushed, and the largest.
const PUSHED_FILES_MAX: usize = 4096;
const PUSHED_BYTES_MAX: u64 = 1 << 20;

/// What a walk did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Warmed {
    /// Directories listed to their end.
    pub directories: u64,
    /// Entries in them.
    pub entries: u64,
    /// Files pushed into the page cache.
    pub files_pushed: u64,
    /// Whether nothing was left out for a limit of entries or time, or because the mount went.
    pub complete: bool,
}

/// Ends a walk early.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    pub(crate) fn set(&self, stop: bool) {
        self.0.store(stop, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A finished walk.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    warmed: Warmed,
    /// The files to push.
    read_first: Vec<Ino>,
}

/// Walks the mount `place` at `dir` until `limit` entries were seen. Returns in bounded time whatever
/// becomes of the mount.
pub(crate) fn walk(dir: &Path, place: Place, limit: u64, stop: &Stop) -> io::Result<Walk> {
    let shared = Arc::new(Shared {
        dir: dir.to_owned(),
        place,
        limit,
        stop: stop.clone(),
        until: Instant::now() + WALK_TIME_MAX,
        state: Mutex::new(State {
            queue: VecDeque::from([CString::default()]),
            ..State::default()
        }),
        changed: Condvar::new(),
    });
    let (ended, end) = mpsc::channel::<()>();
    for number in 0..WALKERS {
        let (shared, ended) = (Arc::clone(&shared), ended.clone());
        thread::Builder::new().name(format!("agentfs-warm-{number}")).spawn(move || {
            shared.work();
            drop(ended);
        })?;
    }
    drop(ended);
    // Nobody sends: the channel closes when the last walker has ended.
    if end.recv_timeout(RESULT_TIME_MAX) == Err(mpsc::RecvTimeoutError::Timeout) {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "the mount does not answer"));
    }
    let mut state = shared.lock();
    match state.failure.take() {
        Some(errno) => Err(errno.into()),
        None => Ok(std::mem::take(&mut state.walk)),
    }
}

/// Pushes what the walk found into the page cache by `store`, until that says that the session has
/// ended. What the kernel does not take it will ask for.
pub(crate) fn push(ops: &Ops, walk: Walk, store: impl Fn(Ino, &[u8]) -> bool) -> Warmed {
    let mut warmed = walk.warmed;
    for ino in walk.read_first {
        let Some(content) = ops.content(ino, PUSHED_BYTES_MAX) else {
            continue;
        };
        if !store(ino, &content) {
            warmed.complete = false;
            break;
        }
        ops.counters().pushed(content.len());
        warmed.files_pushed += 1;
    }
    warmed
}

/// Runs `work`, which asks something of a mount of this process, on a thread in whose table of files the device is
/// not: if the process is killed meanwhile, the mount dies and lets it go. `work` must not use files that
/// were opened before.
///
/// # Errors
/// If there is no room for the thread.
pub fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let apart = || leave_the_files_of_the_process().map(|()| work());
        let worker =
            thread::Builder::new().name("agentfs-apart".into()).spawn_scoped(scope, apart)?;
        match worker.join() {
            Ok(done) => Ok(done?),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Gives the calling thread a table of files of its own, with nothing in it but the standard three.
#[expect(unsafe_code, reason = "no safe function unshares a table of files")]
fn leave_the_files_of_the_process() -> rustix::io::Result<()> {
    let (first, last) = (3, libc::c_uint::MAX);
    let flags = libc::CLOSE_RANGE_UNSHARE;
    // SAFETY: the files stay open for the process, only this thread can no longer name them. It owns
    // none, was given none, and ends after work that uses only what it opens itself.
    match unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) } {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

/// What the walkers of one walk share.
struct Shared {
    dir: PathBuf,
    place: Place,
    limit: u64,
    stop: Stop,
    until: Instant,
    /// Leaf lock: never held over a message.
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Directories still to be listed, by their paths below the root, so that a deep tree takes no
    /// more open files than a flat one.
    queue: VecDeque<CString>,
    /// Directories that are being listed.
    listing: usize,
    /// Set by whatever ends the walk before the queue is empty.
    over: bool,
    failure: Option<Errno>,
    walk: Walk,
}

/// What one directory held.
#[derive(Default)]
struct Listed {
    entries: u64,
    directories: Vec<CString>,
    read_first: Vec<Ino>,
    /// Whether the file that git looks for everywhere is here.
    ignores: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One walker, from its first directory to its last.
    fn work(&self) {
        let walked = leave_the_files_of_the_process().and_then(|()| self.walk());
        if let Err(errno) = walked {
            let mut state = self.lock();
            state.over = true;
            state.failure.get_or_insert(errno);
        }
        self.changed.notify_all();
    }

    fn walk(&self) -> rustix::io::Result<()> {
        let root = open(&self.dir, DIRECTORY, Mode::empty())?;
        // What was opened may be another mount by now, or what lies below an unmounted one.
        if mountinfo::place_of(&root)? != self.place {
            return Err(Errno::STALE);
        }
        let mut buffer = Vec::with_capacity(LISTING_BYTES);
        while let Some(path) = self.next() {
            let listed = self.list(&root, &path, buffer.spare_capacity_mut());
            let mut state = self.lock();
            state.listing -= 1;
            let listed = listed?;
            state.walk.warmed.entries += listed.entries;
            state.walk.warmed.directories += 1;
            state.queue.extend(listed.directories);
            let room = PUSHED_FILES_MAX - state.walk.read_first.len();
            state.walk.read_first.extend(listed.read_first.into_iter().take(room));
            state.over |= state.walk.warmed.entries >= self.limit;
            drop(state);
            self.changed.notify_all();
        }
        Ok(())
    }

    /// The next directory; `None` when the walk is over.
    fn next(&self) -> Option<CString> {
        let mut state = self.lock();
        loop {
            state.over |= self.stop.is_set() || Instant::now() > self.until;
            if state.over {
                return None;
            }
            if let Some(path) = state.queue.pop_front() {
                state.listing += 1;
                return Some(path);
            }
            if state.listing == 0 {
                state.walk.warmed.complete = true;
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Lists one directory to its end, or to the limit.
    fn list(
        &self,
        root: &OwnedFd,
        path: &CStr,
        buffer: &mut [MaybeUninit<u8>],
    ) -> rustix::io::Result<Listed> {
        let mut listed = Listed::default();
        let name = if path.is_empty() { c"." } else { path };
        let directory = match openat2(root, name, DIRECTORY, Mode::empty(), ResolveFlags::NO_XDEV) {
            Ok(directory) => directory,
            // Another mount, in which nothing is ours.
            Err(Errno::XDEV) => return Ok(listed),
            // Too long to be opened at once: left to whoever goes there step by step.
            Err(Errno::NAMETOOLONG) => return Ok(listed),
            Err(errno) => return Err(errno),
        };
        let mut entries = RawDir::new(directory.as_fd(), buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            listed.entries += 1;
            if listed.entries > self.limit {
                break;
            }
            match entry.file_type() {
                FileType::Directory => listed.directories.push(join(path, name)),
                FileType::RegularFile if READ_FIRST.contains(&name) => {
                    listed.ignores |= name == READ_FIRST[0];
                    listed.read_first.push(Ino(entry.ino()));
                }
                _ => {}
            }
        }
        if !listed.ignores {
            // That it is not there is worth knowing as well.
            let _ = statx(&directory, READ_FIRST[0], AtFlags::empty(), StatxFlags::empty());
        }
        if path.is_empty() {
            ask_once(root);
        }
        Ok(listed)
    }
}

/// Does once what the kernel asks once and never again, where the levers refuse it, and asks for the
/// attributes of the root, which no listing holds. The answers do not matter.
fn ask_once(root: &OwnedFd) {
    let _ = statx(root, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS);
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let Ok(file) = openat(root, c".git", flags, Mode::empty()) else {
        return;
    };
    let _ = fgetxattr(&file, c"user.agentfs", &mut [0; 16]);
    let _ = flistxattr(&file, &mut [0; 16]);
    let _ = seek(&file, SeekFrom::Data(0));
    let _ = statx(&file, c"", AtFlags::EMPTY_PATH, StatxFlags::BTIME);
}

/// `name` in the directory `path`, which is empty for the root.
fn join(path: &CStr, name: &CStr) -> CString {
    let mut joined = path.to_bytes().to_vec();
    if !joined.is_empty() {
        joined.push(b'/');
    }
    joined.extend_from_slice(name.to_bytes());
    // Neither part holds a NUL.
    CString::new(joined).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_walk_leaves_no_file_of_the_process_in_its_table() {
        let file = File::open("/dev/null").unwrap();
        let number = file.as_raw_fd();
        assert!(number > 2);
        let seen = thread::spawn(move || {
            leave_the_files_of_the_process().unwrap();
            std::fs::read_link(format!("/proc/thread-self/fd/{number}")).is_ok()
        });
        assert!(!seen.join().unwrap());
        // It is still there for everybody else.
        assert!(std::fs::read_link(format!("/proc/thread-self/fd/{number}")).is_ok());
        drop(file);
    }

    #[test]
    fn paths_are_joined() {
        assert_eq!(join(c"", c"a").as_c_str(), c"a");
        assert_eq!(join(c"a", c"b").as_c_str(), c"a/b");
    }
}
