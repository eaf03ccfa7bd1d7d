//! System calls that have no safe form in the libraries we use, each with a safe one here.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::Command;

use rustix::io::FdFlags;
use rustix::thread::UnshareFlags;

/// Signals that are passed on to a command.
pub const FORWARDED: [i32; 9] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
    libc::SIGTSTP,
    libc::SIGCONT,
];

/// Signals that wait to be read instead of being acted upon.
pub struct Signals {
    file: OwnedFd,
}

impl Signals {
    /// Blocks [`FORWARDED`] and SIGCHLD in this thread, and in the programs that it starts, and
    /// makes them readable.
    ///
    /// # Errors
    /// What the kernel refuses.
    #[expect(unsafe_code, reason = "signalfd(2) has no safe form")]
    pub fn new() -> io::Result<Self> {
        let set = signal_set();
        // SAFETY: `set` is initialised and lives through both calls; the descriptor is new and ours.
        unsafe {
            if libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
            match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
                -1 => Err(io::Error::last_os_error()),
                fd => Ok(Self { file: OwnedFd::from_raw_fd(fd) }),
            }
        }
    }

    /// The next signal that waits.
    #[expect(clippy::host_endian_bytes, reason = "it comes from the kernel, not from a disk")]
    pub fn next(&self) -> Option<i32> {
        let mut info = [0_u8; size_of::<libc::signalfd_siginfo>()];
        let read = rustix::io::read(&self.file, &mut info).ok()?;
        // The number is the first field.
        (read == info.len()).then(|| i32::from_ne_bytes([info[0], info[1], info[2], info[3]]))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[expect(unsafe_code, reason = "a signal set has no safe form")]
fn signal_set() -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::uninit();
    // SAFETY: the first call initialises what the others change.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in FORWARDED.into_iter().chain([libc::SIGCHLD]) {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    }
}

/// Has `command` begin without the blocked signals of [`Signals`].
#[expect(unsafe_code, reason = "std has no safe way to change the signal mask of a child")]
pub fn unblock_signals_in(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    let set = signal_set();
    // SAFETY: the closure makes one system call on memory that was prepared before, which is allowed
    // between fork and exec.
    unsafe {
        command.pre_exec(move || {
            match libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut()) {
                0 => Ok(()),
                errno => Err(io::Error::from_raw_os_error(errno)),
            }
        });
    }
}

/// Sends a signal to this process or a child of it.
#[expect(unsafe_code, reason = "rustix has no signal numbers, only those that it names")]
pub fn kill(pid: i32, signal: i32) {
    // SAFETY: it touches no memory. A process that is gone is as good: it was ours, and not reaped.
    unsafe {
        libc::kill(pid, signal);
    }
}

/// The process group of a process, 0 being this one; 0 for one outside the process namespace.
#[expect(unsafe_code, reason = "rustix takes no group that lies outside the namespace")]
pub fn group_of(pid: i32) -> i32 {
    // SAFETY: it touches no memory.
    unsafe { libc::getpgid(pid) }
}

/// Returns when a signal that is being sent to a whole process group has reached all its members:
/// the kernel sends it under a lock that setpgid(2) waits for, before it finds fault with its
/// arguments.
#[expect(unsafe_code, reason = "rustix takes no group that does not exist")]
pub fn wait_for_group_signals() {
    // SAFETY: it touches no memory. There is no such group, so it changes nothing.
    unsafe {
        libc::setpgid(0, i32::MAX);
    }
}

/// The process group in the foreground of a terminal; 0 for one outside the process namespace.
#[expect(unsafe_code, reason = "rustix takes no group that lies outside the namespace")]
pub fn foreground(terminal: impl AsFd) -> i32 {
    // SAFETY: it touches no memory of ours.
    unsafe { libc::tcgetpgrp(terminal.as_fd().as_raw_fd()) }
}

/// Puts process group `group` into the foreground of a terminal, if it may.
#[expect(unsafe_code, reason = "to be let do it, SIGTTOU has to be ignored")]
pub fn take_foreground(terminal: impl AsFd, group: i32) {
    // SAFETY: no handler is installed. This process is about to end and starts nothing more, so that
    // nobody inherits what it ignores.
    unsafe {
        libc::signal(libc::SIGTTOU, libc::SIG_IGN);
        libc::tcsetpgrp(terminal.as_fd().as_raw_fd(), group);
    }
}

/// Lets a descriptor be inherited by the programs that this process starts, or not.
///
/// # Errors
/// What the kernel refuses.
pub fn set_inherited(fd: impl AsFd, inherited: bool) -> io::Result<()> {
    let flags = if inherited { FdFlags::empty() } else { FdFlags::CLOEXEC };
    Ok(rustix::io::fcntl_setfd(fd, flags)?)
}

/// Takes the descriptor `fd`, which this process has inherited and nothing in it uses yet.
///
/// # Errors
/// If there is no such descriptor.
#[expect(unsafe_code, reason = "an inherited descriptor is a number")]
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 3 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the only caller runs once, when the process has opened nothing that it keeps; who started
    // it has left the number for it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    set_inherited(&fd, false)?;
    Ok(fd)
}

/// unshare(2).
///
/// # Errors
/// What the kernel refuses.
#[expect(unsafe_code, reason = "unshare(2) is unsafe for descriptor tables")]
pub fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    assert!(!flags.contains(UnshareFlags::FILES), "descriptors stay shared");
    // SAFETY: descriptor tables, for which alone it is unsafe, are not among the flags.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Makes all mounts of a tree read-only; those that are already stay it.
///
/// # Errors
/// What the kernel refuses.
pub fn make_read_only(tree: impl AsFd) -> io::Result<()> {
    restrict_mounts(tree, libc::MOUNT_ATTR_RDONLY)
}

/// Gives all mounts of a tree `attributes`, besides those that they have.
///
/// # Errors
/// What the kernel refuses.
#[expect(unsafe_code, reason = "mount_setattr(2) has no safe form")]
pub fn restrict_mounts(tree: impl AsFd, attributes: u64) -> io::Result<()> {
    let attributes =
        libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the path and the attributes live through the call, which is told their size.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The version of Landlock's interface; none if the kernel has no Landlock, or does not use it.
#[expect(unsafe_code, reason = "the crate landlock does not tell before something is restricted")]
pub fn landlock_version() -> Option<i32> {
    const VERSION: libc::c_uint = 1;
    // SAFETY: asked for its version, the kernel reads no attributes.
    let version = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0_usize, VERSION)
    };
    i32::try_from(version).ok().filter(|version| *version > 0)
}
