//! Mounting, unmounting, and what is mounted.
//!
//! Root mounts by mount(2); an ordinary user, and a root without that right, through fusermount3.
//! Nothing here stats a mount or waits for one: see `mountinfo.rs` and `health.rs`.

use std::ffi::{CString, OsString};
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::process::{getgid, getuid};

use crate::cache::Levers;
use crate::error::{Error, Result};
use crate::health::{self, Health};
use crate::helper;
use crate::mountinfo;

/// The type of every mount of ours, as mountinfo shows it.
pub const FSTYPE: &str = "fuse.agentfs";
const SUBTYPE: &str = "agentfs";
const DEVICE: &str = "/dev/fuse";

/// How a worktree is mounted.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// The kernel refuses writes without asking.
    pub read_only: bool,
    /// Other users may enter. The kernel then always checks permission bits.
    pub allow_other: bool,
    /// Threads that serve it; 0 leaves the choice to [`MountOptions::default`].
    pub threads: usize,
    /// What the kernel is told to remember.
    pub levers: Levers,
    /// What mountinfo shows as its source.
    pub name: String,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            read_only: true,
            allow_other: false,
            threads: 0,
            levers: Levers::default(),
            name: SUBTYPE.into(),
        }
    }
}

/// What is at a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountState {
    /// No mount, or not even a directory.
    NotMounted,
    /// A mount of ours whose daemon is gone. Unmounting it loses nothing.
    Dead,
    /// A mount of ours.
    OurFs {
        /// Whether its daemon answers; false for one that is hung.
        alive: bool,
        /// The name that it was mounted under.
        name: String,
    },
    /// Another file system.
    Other {
        /// Its type.
        fstype: String,
    },
}

/// What is mounted at `dir`. Never waits for the mount, except that a mount of ours which does not
/// answer is given two seconds.
///
/// # Errors
/// [`Error::Inspect`] if the way to `dir` cannot be followed.
pub fn mount_state(dir: &Path) -> Result<MountState> {
    let Some(line) = mountinfo::mounted_at(dir)? else {
        return Ok(MountState::NotMounted);
    };
    if line.fstype != FSTYPE {
        return Ok(MountState::Other { fstype: line.fstype });
    }
    Ok(match health::of(dir)? {
        Health::Dead => MountState::Dead,
        health => MountState::OurFs { alive: health == Health::Alive, name: line.source },
    })
}

/// As [`mount_state`], but what cannot be ours counts as [`MountState::NotMounted`] where that is told without
/// reading the list of all mounts.
///
/// # Errors
/// As [`mount_state`].
pub fn our_mount_state(dir: &Path) -> Result<MountState> {
    match mountinfo::place(dir)? {
        Some(place) if place.top && place.may_be_ours() => mount_state(dir),
        _ => Ok(MountState::NotMounted),
    }
}

/// Unmounts the mount of ours at `dir`. Lazily, it vanishes at once and goes on serving those who
/// are in it; a hung one is cut off from its server, which frees who waits for it. A dead one is
/// always unmounted lazily.
///
/// # Errors
/// [`Error::NotMounted`], [`Error::NotOurs`], [`Error::Busy`] unless lazy, or the refusal of the
/// kernel or of fusermount3.
pub fn unmount_path(dir: &Path, lazy: bool) -> Result<()> {
    let line = mountinfo::mounted_at(dir)?.ok_or_else(|| Error::NotMounted { dir: dir.into() })?;
    if line.fstype != FSTYPE {
        return Err(Error::NotOurs { dir: dir.into(), fstype: line.fstype });
    }
    let health = health::of(dir)?;
    if health == Health::Hung && lazy {
        abort(dir);
    }
    detach(dir, lazy || health == Health::Dead)
}

/// Unmounts whatever is at `dir`.
pub(crate) fn detach(dir: &Path, lazy: bool) -> Result<()> {
    let how = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    match rustix::mount::unmount(dir, how) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(Error::Busy { dir: dir.into() }),
        // Somebody was faster.
        Err(Errno::INVAL) if mountinfo::mounted_at(dir)?.is_none() => Ok(()),
        Err(Errno::PERM) => helper::unmount(dir, lazy),
        Err(errno) => Err(Error::Unmount { dir: dir.into(), source: errno.into() }),
    }
}

/// Cuts a mount off from its server, so that whoever waits for an answer gets an error. Best effort:
/// by a forced unmount, which aborts even where it then finds the mount busy, else through the
/// control file system, where that is mounted.
pub(crate) fn abort(dir: &Path) {
    if !matches!(rustix::mount::unmount(dir, UnmountFlags::FORCE), Err(Errno::PERM)) {
        return;
    }
    if let Ok(Some(place)) = mountinfo::place(dir) {
        let minor = rustix::fs::minor(place.dev);
        let _ = fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), b"1");
    }
}

/// `dir` as an absolute path without symbolic links, if it may be mounted on. Looks at no mount of
/// ours, which may be hung, on the way.
pub(crate) fn mount_point(dir: &Path) -> Result<PathBuf> {
    if let Some(line) = mountinfo::mount_of(dir)?.filter(|line| line.fstype == FSTYPE) {
        return Err(Error::Nested { dir: dir.into(), name: line.source });
    }
    let unfit = |source| Error::MountPoint { dir: dir.into(), source };
    if !fs::metadata(dir).map_err(unfit)?.is_dir() {
        return Err(unfit(io::ErrorKind::NotADirectory.into()));
    }
    fs::canonicalize(dir).map_err(unfit)
}

/// Mounts on `dir` and returns the device over which the kernel asks.
pub(crate) fn attach(dir: &Path, options: &MountOptions) -> Result<OwnedFd> {
    if getuid().is_root() {
        match attach_directly(dir, options) {
            Err(Error::Mount { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied => {}
            other => return other,
        }
    }
    helper::mount(dir, &helper_options(options))
}

fn attach_directly(dir: &Path, options: &MountOptions) -> Result<OwnedFd> {
    let device = open_device()?;
    // Absolute already; a NUL in the name would be ours to refuse.
    let refused = |errno: Errno| Error::Mount { dir: dir.into(), source: errno.into() };
    let data = format!(
        "fd={},rootmode=40000,user_id={},group_id={}{}{}",
        device.as_raw_fd(),
        getuid().as_raw(),
        getgid().as_raw(),
        if options.checks_permissions() { ",default_permissions" } else { "" },
        if options.allow_other { ",allow_other" } else { "" },
    );
    let data = CString::new(data).map_err(|_| refused(Errno::INVAL))?;
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    if options.read_only {
        flags |= MountFlags::RDONLY;
    }
    rustix::mount::mount(options.name.as_str(), dir, FSTYPE, flags, Some(data.as_c_str()))
        .map_err(refused)?;
    Ok(device)
}

/// Opens the device.
pub(crate) fn open_device() -> Result<OwnedFd> {
    rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| Error::Device { source: errno.into() })
}

fn helper_options(options: &MountOptions) -> OsString {
    let mut text = format!("nosuid,nodev,subtype={SUBTYPE},fsname=");
    for letter in options.name.chars() {
        if matches!(letter, ',' | '\\') {
            text.push('\\');
        }
        text.push(letter);
    }
    text.push_str(if options.read_only { ",ro" } else { ",rw" });
    if options.checks_permissions() {
        text.push_str(",default_permissions");
    }
    if options.allow_other {
        text.push_str(",allow_other");
    }
    text.into()
}

impl MountOptions {
    /// Whoever lets others in leaves the checking to the kernel.
    fn checks_permissions(&self) -> bool {
        self.levers.default_permissions || self.allow_other
    }

    /// How many threads serve the mount: one more than cores, so that one is ready to take a request
    /// while the others reply. On two cores a first pass over a tree takes a tenth longer with two
    /// threads than with three, and with four as long as with three.
    pub(crate) fn serving_threads(&self) -> usize {
        if self.threads > 0 {
            return self.threads;
        }
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        (cores + 1).min(THREADS_MAX)
    }
}

/// Most threads that a mount takes unless told.
const THREADS_MAX: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_helper_is_told_what_the_kernel_would_be() {
        let mut options = MountOptions { name: "agentfs:a,b\\c@d e".into(), ..Default::default() };
        assert_eq!(
            helper_options(&options),
            "nosuid,nodev,subtype=agentfs,fsname=agentfs:a\\,b\\\\c@d e,ro,default_permissions"
        );
        options.read_only = false;
        options.allow_other = true;
        options.levers.default_permissions = false;
        let text = helper_options(&options).into_string().unwrap();
        assert!(text.ends_with(",rw,default_permissions,allow_other"), "{text}");
    }

    #[test]
    fn others_are_told_from_ours_and_left_alone() {
        assert_eq!(
            mount_state(Path::new("/proc")).unwrap(),
            MountState::Other { fstype: "proc".into() }
        );
        assert!(matches!(unmount_path(Path::new("/proc"), true), Err(Error::NotOurs { .. })));
        let plain = tempfile::tempdir().unwrap();
        assert_eq!(mount_state(plain.path()).unwrap(), MountState::NotMounted);
        assert!(matches!(unmount_path(plain.path(), false), Err(Error::NotMounted { .. })));
        let missing = plain.path().join("missing");
        assert_eq!(mount_state(&missing).unwrap(), MountState::NotMounted);
    }

    #[test]
    fn only_a_directory_is_mounted_on() {
        let plain = tempfile::tempdir().unwrap();
        let file = plain.path().join("file");
        fs::write(&file, b"").unwrap();
        for path in [file, plain.path().join("missing")] {
            let refused = mount_point(&path);
            assert!(matches!(refused, Err(Error::MountPoint { .. })), "{path:?}");
        }
    }
}
