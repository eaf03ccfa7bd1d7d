//! A mounted worktree: from the mount to the end of its session.
//!
//! The session ends when the kernel says so: after an unmount by anyone, as soon as the last user
//! has left, or when the connection is aborted. Nobody can end it from this side without that.
//!
//! Locks, in this order: `Link::walking`, `Link::state`. Neither is taken by an operation.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use agentfs_engine::Ino;
use agentfs_engine::worktree::Worktree;
use rustix::fs::{major, minor};
use rustix::io::Errno;
use tracing::{debug, error, info, warn};

use crate::cache::Levers;
use crate::counters::Counters;
use crate::devfuse::{self, Session};
use crate::error::{Error, Result};
use crate::mount::{self, MountOptions};
use crate::mountinfo::{self, Place};
use crate::notify::{Notifier, Stale};
use crate::ops::Ops;
use crate::passthrough::{Barred, Passthrough};
use crate::probe::KernelFuse;
use crate::start::Start;
use crate::uring::{self, Worker};
use crate::warm::{self, Stop, Warmed};

/// How long the threads of a session may take to end after an unmount that succeeded.
const END_WITHIN: Duration = Duration::from_secs(5);

/// A mounted worktree. Dropping it unmounts lazily.
pub struct Mounted {
    dir: PathBuf,
    place: Place,
    ops: Arc<Ops>,
    session: Session,
    link: Arc<Link>,
}

/// What the session's threads and the owner of the mount share.
struct Link {
    /// Held while a walk warms the mount, which keeps it busy.
    walking: Mutex<()>,
    stop: Stop,
    state: Mutex<State>,
    ended: Condvar,
}

/// Where a session stands. The notifier keeps the device open, so it must not outlive the threads
/// that serve the device: a mount that nobody serves must be dead, not hung.
enum State {
    Serving(Notifier),
    Ended,
}

/// Mounts `worktree` on the directory `dir` and serves it on threads of its own. Where io_uring is asked
/// for and cannot be had, it is served without.
///
/// # Errors
/// [`Error::Nested`], [`Error::MountPoint`], [`Error::Device`], [`Error::NoHelper`], [`Error::Helper`],
/// [`Error::Mount`], or [`Error::Session`] when the kernel and we do not agree. Nothing stays mounted.
pub fn mount(worktree: Arc<Worktree>, dir: &Path, options: &MountOptions) -> Result<Mounted> {
    mount_by(worktree, dir, options, uring::prepare)
}

/// As [`mount`], with workers that `prepare` makes.
pub(crate) fn mount_by(
    worktree: Arc<Worktree>,
    dir: &Path,
    options: &MountOptions,
    prepare: fn() -> std::io::Result<Vec<Worker>>,
) -> Result<Mounted> {
    let dir = mount::mount_point(dir)?;
    match mount_once(Arc::clone(&worktree), &dir, options, prepare) {
        Err(failure @ Error::Session { .. }) if options.levers.io_uring => {
            warn!("{failure}; once more without io_uring");
            let levers = Levers { io_uring: false, ..options.levers.clone() };
            mount_once(worktree, &dir, &MountOptions { levers, ..options.clone() }, prepare)
        }
        done => done,
    }
}

fn mount_once(
    worktree: Arc<Worktree>,
    dir: &Path,
    options: &MountOptions,
    prepare: fn() -> std::io::Result<Vec<Worker>>,
) -> Result<Mounted> {
    let ops = Arc::new(Ops::new(worktree, options.levers.clone()));
    let device = Arc::new(mount::attach(dir, options)?);
    let started = start(&device, &ops, dir, options, prepare)
        .map_err(|source| Error::Session { dir: dir.into(), source })
        .and_then(|started| Ok((started, mountinfo::place(dir)?)));
    // From here on only the session keeps it open.
    drop(device);
    let ((session, link), place) = match started {
        Ok((started, Some(place))) if place.top => (started, place),
        other => {
            let _ = mount::detach(dir, true);
            other?;
            return Err(Error::NotMounted { dir: dir.into() });
        }
    };
    let mounted = Mounted { dir: dir.into(), place, ops, session, link };
    mounted.read_ahead();
    info!("mounted {} on {}", options.name, mounted.dir.display());
    Ok(mounted)
}

/// Comes to terms with the kernel and starts the threads of a session.
fn start(
    device: &Arc<OwnedFd>,
    ops: &Arc<Ops>,
    dir: &Path,
    options: &MountOptions,
    prepare: fn() -> std::io::Result<Vec<Worker>>,
) -> std::io::Result<(Session, Arc<Link>)> {
    let passthrough = options.levers.passthrough
        && match crate::passthrough::obstacle() {
            None => true,
            Some(why) => {
                warn!("files cannot be read past us: {why}");
                false
            }
        };
    let mut workers = Vec::new();
    let ready = || {
        if options.levers.io_uring {
            match prepare() {
                Ok(prepared) => workers = prepared,
                Err(failure) => info!("requests come over /dev/fuse, not io_uring: {failure}"),
            }
        }
        !workers.is_empty()
    };
    let session = devfuse::handshake(device, ops, ready, passthrough)?;
    if session.passthrough {
        ops.pass_through(Arc::downgrade(device))?;
    } else if passthrough {
        warn!("the kernel does not offer to read files past us: Linux 6.9 and later do");
    }
    if !session.io_uring {
        workers.clear();
    }
    let link = Arc::new(Link {
        walking: Mutex::new(()),
        stop: Stop::default(),
        state: Mutex::new(State::Serving(Notifier::new(Arc::clone(device)))),
        ended: Condvar::new(),
    });
    // Over io_uring only forgets come this way.
    let threads = if session.io_uring { 1 } else { options.serving_threads() };
    let (device, ops, shared) = (Arc::clone(device), Arc::clone(ops), Arc::clone(&link));
    let serving = dir.to_owned();
    let (start, starting) = Start::new(workers.len());
    thread::Builder::new().name("agentfs-fuse".into()).spawn(move || {
        let read = || devfuse::run(&device, &ops, threads);
        starting.run(workers, &device, &ops, &serving, read);
        ops.forget_all();
        // Before it is said: who then looks finds a dead mount, not a hung one.
        drop(device);
        *lock(&shared.state) = State::Ended;
        shared.ended.notify_all();
    })?;
    start.wait()?;
    Ok((session, link))
}

impl Mounted {
    /// The directory it is mounted on, absolute and without symbolic links.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The device number that `stat` shows for every file in it.
    pub fn dev(&self) -> u64 {
        self.place.dev
    }

    /// What the kernel offered when the session began.
    pub fn kernel(&self) -> Option<KernelFuse> {
        Some(self.session.kernel)
    }

    /// Whether requests come over io_uring.
    pub fn io_uring(&self) -> bool {
        self.session.io_uring
    }

    /// Whether large files are read past us.
    pub fn passthrough(&self) -> bool {
        self.session.passthrough
    }

    /// From now on, as long as the result lives, no file begins to be read past us; nothing where none is. For who
    /// changes files in another way than through this mount.
    pub fn bar_passthrough(&self) -> Option<Barred<'_>> {
        self.ops.passthrough().map(Passthrough::bar)
    }

    /// Every count with its name; see [`Counters::snapshot`].
    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        self.counts().snapshot()
    }

    /// How long messages took; see [`Counters::latencies`].
    pub fn latencies(&self) -> Vec<(&'static str, Vec<(u64, u64)>)> {
        self.counts().latencies()
    }

    /// The counts themselves.
    pub fn counts(&self) -> &Counters {
        self.ops.counters()
    }

    /// What serves it.
    #[cfg(test)]
    pub(crate) fn ops(&self) -> &Ops {
        &self.ops
    }

    /// Whether the session is served: false once it was unmounted, by whomever, and its last user
    /// has left.
    pub fn is_alive(&self) -> bool {
        matches!(*lock(&self.link.state), State::Serving(_))
    }

    /// Lists the worktree once from top to bottom, as far as `limit` entries, so that the kernel
    /// holds names, attributes and listings before anybody asks; and pushes into its page cache what
    /// git reads first. Returns when that is done. Without the lever `prewarm` it does nothing.
    ///
    /// # Errors
    /// [`Error::Warm`], after which the mount works as before, only less warm.
    pub fn warm(&self, limit: u64) -> Result<Warmed> {
        if !self.ops.levers().prewarm {
            return Ok(Warmed::default());
        }
        let walk = {
            let _walking = lock(&self.link.walking);
            warm::walk(&self.dir, self.place, limit, &self.link.stop)
                .map_err(|source| Error::Warm { dir: self.dir.clone(), source })?
        };
        Ok(warm::push(&self.ops, walk, |ino, content| {
            self.notifier().is_some_and(|notifier| notifier.store(ino, 0, content).is_ok())
        }))
    }

    /// Tells the kernel of a change that was not made through this mount. Returns when it has forgotten
    /// what was so before, and may wait for operations that use it: never to be called by what serves
    /// one. A session that has ended has forgotten everything.
    ///
    /// # Errors
    /// [`Error::Invalidate`] if the kernel keeps it: a directory that is not empty, or is mounted on.
    pub fn invalidate(&self, stale: Stale<'_>) -> Result<()> {
        let Some(notifier) = self.notifier() else { return Ok(()) };
        match notifier.forget(stale) {
            Err(errno) if errno != Errno::NODEV => {
                let (dir, what) = (self.dir.clone(), format!("{stale:?}"));
                Err(Error::Invalidate { dir, what, source: errno.into() })
            }
            _ => Ok(()),
        }
    }

    /// An inode has lost its last name past the kernel, which was told so: it goes now, or, if somebody has
    /// it open, when nobody has any more.
    pub fn unnamed(&self, ino: Ino) {
        self.ops.unnamed(ino);
    }

    fn notifier(&self) -> Option<Notifier> {
        match &*lock(&self.link.state) {
            State::Serving(notifier) => Some(notifier.clone()),
            State::Ended => None,
        }
    }

    /// Unmounts, and returns when the session has ended; lazily, the mount vanishes at once and the
    /// session ends with its last user. Unmounting what somebody else unmounted is no error.
    ///
    /// # Errors
    /// [`Error::Busy`] unless lazy, or the refusal of the kernel or of fusermount3. The mount then
    /// goes on as before.
    pub fn unmount(&self, lazy: bool) -> Result<()> {
        self.link.stop.set(true);
        let walk_ended = lock(&self.link.walking);
        let detached = if self.is_mounted()? { mount::detach(&self.dir, lazy) } else { Ok(()) };
        self.link.stop.set(false);
        drop(walk_ended);
        detached?;
        if !lazy {
            let state = lock(&self.link.state);
            let serving = |state: &mut State| matches!(state, State::Serving(_));
            // Those who hold a file of a mount that somebody else detached keep its session.
            let _ = self.link.ended.wait_timeout_while(state, END_WITHIN, serving);
        }
        info!("unmounted {}", self.dir.display());
        Ok(())
    }

    /// Waits for the end of the session, at most `limit`; returns whether it has ended.
    pub fn ended_within(&self, limit: Duration) -> bool {
        let serving = |state: &mut State| matches!(state, State::Serving(_));
        let state = lock(&self.link.state);
        let waited = self.link.ended.wait_timeout_while(state, limit, serving);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        matches!(*state, State::Ended)
    }

    /// Whether what is mounted on the directory is still this. The kernel gives the numbers of a
    /// mount away again once it is gone, and its session with it.
    fn is_mounted(&self) -> Result<bool> {
        Ok(self.is_alive() && mountinfo::place(&self.dir)? == Some(self.place))
    }

    /// Sets the read-ahead of the mount. Only root may, and only for itself is it worth a word.
    fn read_ahead(&self) {
        let kib = self.ops.levers().read_ahead_kib;
        if kib == 0 {
            return;
        }
        let (major, minor) = (major(self.place.dev), minor(self.place.dev));
        let file = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        if let Err(error) = std::fs::write(&file, kib.to_string()) {
            debug!("read-ahead stays as it is: cannot write {file}: {error}");
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.is_alive()
            && let Err(error) = self.unmount(true)
        {
            error!("{error}");
        }
    }
}

/// None of the values under these locks is half-changed when a thread panics.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
