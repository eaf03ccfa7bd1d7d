//! What a file is read from past us: a plain file, by way of a mount of its own.
//!
//! That mount, which no directory shows, does two things. It is read-only, so that the kernel itself refuses to write
//! the plain file through the worktree, whatever we might do wrong. And it lasts as long as somebody refers to the
//! file by way of it: a mapping that outlives its open file does, of which nobody tells us. A mark of fanotify
//! on the mount, for events that never come, goes with it, and what marks there are the kernel says.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Weak;

use agentfs_engine::store::{KeptFile, PlainFile};
use rustix::fs::{AtFlags, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

/// `FUSE_DEV_IOC_BACKING_OPEN`: `_IOW(229, 1, struct fuse_backing_map)`.
const BACKING_OPEN: u64 = 0x4010_e501;
/// `FUSE_DEV_IOC_BACKING_CLOSE`: `_IOW(229, 2, uint32_t)`.
const BACKING_CLOSE: u64 = 0x4004_e502;
/// That the mount which a descriptor refers to has an id, by statx(2).
const STATX_MNT_ID: u32 = 0x1000;
const MOUNT_ATTR_RDONLY: u64 = 1;
const MOUNT_ATTR_NOATIME: u64 = 0x10;
const MOUNT_ATTR_ATIMES: u64 = 0x70;
const EMPTY: &CStr = c"";

/// What a file is read from. The kernel keeps it as long as it is read.
#[derive(Debug)]
pub(crate) struct Backing {
    pub(crate) id: u32,
    /// The mount, as long as it exists; given again afterwards.
    pub(crate) mount: u64,
    device: Weak<OwnedFd>,
    /// Keeps it in the cache. No descriptor is needed for that, of which a process has few.
    _file: KeptFile,
}

#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

#[repr(C)]
struct MountAttributes {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}

impl Backing {
    /// Makes `file` the backing of files of the session on `device`; `watch` tells how long it is in use. With it
    /// comes what holds its mount until it is dropped, too: that takes as long as all the rest, and need not be waited for.
    ///
    /// # Errors
    /// What the kernel has against it.
    #[expect(unsafe_code, reason = "an ioctl has no safe form")]
    pub(crate) fn new(
        device: &Weak<OwnedFd>,
        file: PlainFile,
        watch: Option<&Watch>,
    ) -> io::Result<(Self, OwnedFd)> {
        let session = device.upgrade().ok_or(Errno::NODEV)?;
        let tree = read_only(file.file())?;
        let mount = mount_id(&tree)?;
        if let Some(watch) = watch {
            watch.begin(&tree)?;
        }
        let opened = File::open(path_of(&tree))?;
        let map = BackingMap { fd: opened.as_raw_fd(), flags: 0, padding: 0 };
        // SAFETY: the kernel reads a structure of this layout, which lives until the call returns.
        let id = unsafe { libc::ioctl(session.as_raw_fd(), BACKING_OPEN as _, &raw const map) };
        match u32::try_from(id) {
            Ok(id) if id > 0 => {
                let (device, _file) = (Weak::clone(device), file.close());
                Ok((Self { id, mount, device, _file }, tree))
            }
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Backing {
    #[expect(unsafe_code, reason = "an ioctl has no safe form")]
    fn drop(&mut self) {
        // With the session all of them have ended.
        let Some(device) = self.device.upgrade() else { return };
        // SAFETY: the kernel reads a number, which lives until the call returns.
        unsafe { libc::ioctl(device.as_raw_fd(), BACKING_CLOSE as _, &raw const self.id) };
    }
}

/// A mount of this one file, read-only, in no directory. It ends when nobody refers to it.
#[expect(unsafe_code, reason = "mount_setattr(2) has no safe form")]
fn read_only(file: &File) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = open_tree(file, EMPTY, flags)?;
    let attributes = MountAttributes {
        // Nor are times of access written, which nobody asks for.
        set: MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOATIME,
        clear: MOUNT_ATTR_ATIMES,
        propagation: 0,
        user_namespace: 0,
    };
    // SAFETY: the kernel reads an empty string and a structure of this layout and length; both live until the call
    // returns.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            EMPTY.as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttributes>(),
        )
    };
    if done == 0 { Ok(tree) } else { Err(io::Error::last_os_error()) }
}

fn mount_id(tree: &OwnedFd) -> io::Result<u64> {
    let found =
        statx(tree, EMPTY, AtFlags::EMPTY_PATH, StatxFlags::from_bits_retain(STATX_MNT_ID))?;
    if found.stx_mask & STATX_MNT_ID == 0 {
        return Err(Errno::NOSYS.into());
    }
    Ok(found.stx_mnt_id)
}

/// A path that leads to what a descriptor refers to, by way of its mount.
fn path_of(fd: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// Watches mounts, to know which of them are there.
#[derive(Debug)]
pub(crate) struct Watch(OwnedFd);

impl Watch {
    /// # Errors
    /// If this kernel or process has none.
    #[expect(unsafe_code, reason = "fanotify_init(2) has no safe form")]
    pub(crate) fn new() -> io::Result<Self> {
        let flags = libc::FAN_CLOEXEC | libc::FAN_UNLIMITED_MARKS;
        // SAFETY: no pointer is passed.
        let fd = unsafe { libc::fanotify_init(flags, libc::O_RDONLY as u32) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a descriptor that the kernel has just given, and nobody else has.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Watches the mount that `tree` refers to.
    #[expect(unsafe_code, reason = "fanotify_mark(2) has no safe form")]
    fn begin(&self, tree: &OwnedFd) -> io::Result<()> {
        let path = std::ffi::CString::new(path_of(tree))?;
        // Nobody can write there, so that never happens.
        let (flags, never) = (libc::FAN_MARK_ADD | libc::FAN_MARK_MOUNT, libc::FAN_CLOSE_WRITE);
        let group = self.0.as_raw_fd();
        // SAFETY: a string that lives until the call returns.
        let done =
            unsafe { libc::fanotify_mark(group, flags, never, libc::AT_FDCWD, path.as_ptr()) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The mounts that are there, of those that were watched.
    ///
    /// # Errors
    /// If the kernel does not say.
    pub(crate) fn there(&self) -> io::Result<Vec<u64>> {
        let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", self.0.as_raw_fd()))?;
        let mut found = Vec::new();
        for line in text.lines() {
            let Some(rest) = line.strip_prefix("fanotify mnt_id:") else { continue };
            let id = rest.split(' ').next().and_then(|id| u64::from_str_radix(id, 16).ok());
            found.push(id.ok_or(io::ErrorKind::InvalidData)?);
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_cannot_be_written_and_is_there_as_long_as_it_is_used() {
        if crate::passthrough::obstacle().is_some() {
            return;
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), b"bytes").unwrap();
        let watch = Watch::new().unwrap();
        let tree = read_only(file.as_file()).unwrap();
        watch.begin(&tree).unwrap();
        assert_eq!(watch.there().unwrap(), [mount_id(&tree).unwrap()]);
        let mut writing = fs::OpenOptions::new();
        let refused = writing.write(true).open(path_of(&tree)).unwrap_err();
        assert_eq!(Errno::from_io_error(&refused), Some(Errno::ROFS));
        let reading = File::open(path_of(&tree)).unwrap();
        drop(tree);
        assert_eq!(watch.there().unwrap().len(), 1);
        assert_eq!(io::read_to_string(&reading).unwrap(), "bytes");
        drop(reading);
        let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while !watch.there().unwrap().is_empty() {
            assert!(std::time::Instant::now() < end, "the mount stays");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}
