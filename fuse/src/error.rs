//! The error type of this crate.

use std::io;
use std::path::PathBuf;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with a mount. Every variant names the directory or device it speaks of.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The FUSE device cannot be opened.
    #[error(
        "cannot open /dev/fuse: {source}; load the fuse module, or give this process or container access to the device"
    )]
    Device {
        /// Why not.
        source: io::Error,
    },
    /// The directory to mount on does not serve.
    #[error("cannot mount on {dir}: {source}", dir = .dir.display())]
    MountPoint {
        /// The directory.
        dir: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The directory lies on a mount of ours, or is one, be it dead.
    #[error(
        "cannot mount on {dir}: it lies on the agentfs mount {name:?}; choose a directory outside of it, or unmount that first",
        dir = .dir.display()
    )]
    Nested {
        /// The directory.
        dir: PathBuf,
        /// The name of the mount that is there.
        name: String,
    },
    /// The kernel refused the mount.
    #[error("the kernel refused to mount on {dir}: {source}", dir = .dir.display())]
    Mount {
        /// The directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An ordinary user cannot mount without the helper, and there is none.
    #[error(
        "mounting as an ordinary user needs fusermount3, which was not found; install the package fuse3, or run as root"
    )]
    NoHelper,
    /// The helper refused or failed.
    #[error("fusermount3 could not {action} {dir}: {message}", dir = .dir.display())]
    Helper {
        /// What was asked of it: "mount on", "unmount".
        action: &'static str,
        /// The directory.
        dir: PathBuf,
        /// What it said.
        message: String,
    },
    /// The kernel and this program could not agree on a session.
    #[error("the FUSE session for {dir} could not start: {source}", dir = .dir.display())]
    Session {
        /// The directory.
        dir: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file of the kernel that describes the mounts cannot be used.
    #[error("cannot read {path}: {source}", path = .path.display())]
    Inspect {
        /// The file, or the directory whose mount was asked for.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Nothing is mounted there.
    #[error("nothing is mounted on {dir}", dir = .dir.display())]
    NotMounted {
        /// The directory.
        dir: PathBuf,
    },
    /// Something else is mounted there.
    #[error("{dir} is a mount of type {fstype}, not of agentfs", dir = .dir.display())]
    NotOurs {
        /// The directory.
        dir: PathBuf,
        /// The type of the mount that is there.
        fstype: String,
    },
    /// Some process still uses the mount.
    #[error("{dir} is busy: a process has its working directory or an open file in it", dir = .dir.display())]
    Busy {
        /// The directory.
        dir: PathBuf,
    },
    /// The kernel refused to unmount.
    #[error("cannot unmount {dir}: {source}", dir = .dir.display())]
    Unmount {
        /// The directory.
        dir: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel keeps something that is not so any more.
    #[error("the kernel still shows in {dir} what was changed ({what}): {source}", dir = .dir.display())]
    Invalidate {
        /// The directory of the mount.
        dir: PathBuf,
        /// What it keeps.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The kernel's caches could not be filled.
    #[error("cannot warm {dir}: {source}", dir = .dir.display())]
    Warm {
        /// The directory.
        dir: PathBuf,
        /// Why not.
        source: io::Error,
    },
}
