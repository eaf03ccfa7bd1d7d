//! How a redirect appears in a mounted worktree: as a mount of the native directory on an empty directory of the
//! branch, or, where this process may not mount, as a symbolic link to it.
//!
//! Whoever works in the worktree changes it meanwhile. Names are looked up one by one in directories that are
//! held open, and nothing is followed or left, so that neither a mount nor a link gets anywhere else.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, mkdirat, openat, openat2,
    readlinkat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};

use crate::exec::kernel;
use crate::transfer;

/// How a redirect appears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The native directory is mounted there.
    Mount,
    /// A symbolic link leads to it.
    Link,
}

impl How {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mount => "mount",
            Self::Link => "link",
        }
    }
}

/// Whether this process can mount `dir` elsewhere.
pub fn can_mount(dir: &Path) -> bool {
    open_tree(CWD, dir, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC).is_ok()
}

/// What is in the branch where a redirect is to appear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// An empty directory.
    Empty,
    /// A directory that is not empty.
    Full,
    /// A link that a redirect has left, of this branch or of that from which it was forked.
    OurLink,
    /// Something mounted.
    Mounted,
    /// Anything else.
    Other,
}

impl Found {
    /// Why nothing appears there, said of the path.
    pub const fn in_the_way(self) -> &'static str {
        match self {
            Self::Nothing => "is not there",
            Self::Empty => "is an empty directory of the branch",
            Self::Full => "holds files of the branch: `agentfs redirect add --move` moves them",
            Self::OurLink => "is a link to another native directory",
            Self::Mounted => "is the top of another mount",
            Self::Other => "is no directory in the branch",
        }
    }
}

/// The root of a worktree that is mounted.
pub struct Root {
    dir: OwnedFd,
    dev: u64,
    read_only: bool,
}

/// Why a redirect does not appear, said of its path.
pub type Why = String;

fn says(action: &str) -> impl Fn(Errno) -> Why + '_ {
    move |errno| format!("cannot be {action}: {}", std::io::Error::from(errno))
}

impl Root {
    /// The worktree at `dir`, whose files have the device number `dev`.
    ///
    /// # Errors
    /// If it is not mounted there.
    pub fn open(dir: &Path, dev: u64, read_only: bool) -> Result<Self, Why> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(CWD, dir, flags, Mode::empty()).map_err(says("reached"))?;
        let stat = rustix::fs::fstat(&opened).map_err(says("reached"))?;
        match stat.st_dev == dev {
            true => Ok(Self { dir: opened, dev, read_only }),
            false => Err("is in a worktree that was unmounted by others".into()),
        }
    }

    /// The directory above `path`, which is made if `make`; `None` if there is none.
    fn parent(&self, path: &Path, make: bool) -> Result<Option<OwnedFd>, Why> {
        let mut dir =
            self.dir.try_clone().map_err(|error| format!("cannot be reached: {error}"))?;
        for part in path.parent().into_iter().flat_map(Path::components) {
            let Component::Normal(name) = part else { return Err("is no plain path".into()) };
            let opened = match self.enter(&dir, name) {
                Err(Errno::NOENT) if make && !self.read_only => {
                    match mkdirat(&dir, name, Mode::from_raw_mode(0o777)) {
                        Ok(()) | Err(Errno::EXIST) => self.enter(&dir, name),
                        Err(errno) => Err(errno),
                    }
                }
                opened => opened,
            };
            dir = match opened {
                Ok(opened) => opened,
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::LOOP | Errno::NOTDIR) => {
                    return Err(format!("cannot be reached: {name:?} is no directory"));
                }
                Err(Errno::XDEV) => return Err(format!("lies in another mount, at {name:?}")),
                Err(errno) => return Err(says("reached")(errno)),
            };
        }
        Ok(Some(dir))
    }

    /// The directory `name` of this worktree in `dir`, whatever is mounted on it left out.
    fn enter(&self, dir: &OwnedFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let safe = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        openat2(dir, name, flags, Mode::empty(), safe)
    }

    fn look(&self, dir: &OwnedFd, name: &OsStr) -> Result<Found, Why> {
        let stat = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(Found::Nothing),
            stat => stat.map_err(says("looked at"))?,
        };
        if stat.st_dev != self.dev {
            return Ok(Found::Mounted);
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => match is_empty(dir, name).map_err(says("listed"))? {
                true => Ok(Found::Empty),
                false => Ok(Found::Full),
            },
            FileType::Symlink => {
                let target = readlinkat(dir, name, Vec::new()).map_err(says("read"))?;
                Ok(if is_ours(Path::new(OsStr::from_bytes(target.as_bytes()))) {
                    Found::OurLink
                } else {
                    Found::Other
                })
            }
            _ => Ok(Found::Other),
        }
    }

    /// What is at `path`.
    ///
    /// # Errors
    /// If it cannot be reached.
    pub fn find(&self, path: &Path) -> Result<Found, Why> {
        match self.parent(path, false)? {
            Some(dir) => self.look(&dir, path.file_name().unwrap_or_default()),
            None => Ok(Found::Nothing),
        }
    }

    /// Has the native directory `data` appear at `path`. What the branch has there goes if it was `moved`.
    ///
    /// # Errors
    /// Why it does not. Nothing that is there is lost.
    pub fn set(&self, path: &Path, data: &Path, mounts: bool, moved: bool) -> Result<How, Why> {
        if let Some(how) = self.appears(path, data)?
            && (how == How::Mount) == mounts
        {
            return Ok(how);
        }
        let dir = self.parent(path, true)?.ok_or("is not there, and the worktree is read-only")?;
        let name = path.file_name().unwrap_or_default();
        let mut found = self.look(&dir, name)?;
        if found == Found::Full && moved && !self.read_only {
            self.empty(&dir, name)?;
            found = Found::Empty;
        }
        let there = match (found, mounts) {
            (Found::Nothing, _) => false,
            (Found::Empty, true) => true,
            (Found::Empty, false) => {
                self.change(|| unlinkat(&dir, name, AtFlags::REMOVEDIR))?;
                false
            }
            (Found::OurLink, _) => {
                self.change(|| unlinkat(&dir, name, AtFlags::empty()))?;
                false
            }
            (Found::Full | Found::Mounted | Found::Other, _) => {
                return Err(found.in_the_way().to_owned());
            }
        };
        if !mounts {
            self.change(|| symlinkat(data, &dir, name))?;
            return Ok(How::Link);
        }
        if !there {
            self.change(|| mkdirat(&dir, name, Mode::from_raw_mode(0o777)))?;
        }
        self.mount(&dir, name, data).map(|()| How::Mount)
    }

    /// Does something that a worktree that is read-only does not allow.
    fn change(&self, act: impl Fn() -> rustix::io::Result<()>) -> Result<(), Why> {
        if self.read_only {
            return Err("is not there, and the worktree is read-only".into());
        }
        act().map_err(says("made"))
    }

    fn mount(&self, dir: &OwnedFd, name: &OsStr, data: &Path) -> Result<(), Why> {
        let on = self.enter(dir, name).map_err(says("mounted on"))?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, data, flags).map_err(says("mounted on"))?;
        // As in the worktree around it.
        let denied = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
        let read_only = if self.read_only { libc::MOUNT_ATTR_RDONLY } else { 0 };
        kernel::restrict_mounts(&tree, denied | read_only)
            .map_err(|error| format!("cannot be mounted on: {error}"))?;
        let flags =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&tree, "", &on, "", flags).map_err(says("mounted on"))
    }

    /// How `data` appears at `path`, if it does.
    ///
    /// # Errors
    /// If that cannot be told.
    pub fn appears(&self, path: &Path, data: &Path) -> Result<Option<How>, Why> {
        let Some(dir) = self.parent(path, false)? else { return Ok(None) };
        let name = path.file_name().unwrap_or_default();
        let stat = match statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(None),
            stat => stat.map_err(says("looked at"))?,
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            let target = readlinkat(&dir, name, Vec::new()).map_err(says("read"))?;
            let same = target.as_bytes() == data.as_os_str().as_bytes();
            return Ok(same.then_some(How::Link));
        }
        let same = statat(CWD, data, AtFlags::empty()).is_ok_and(|data| is_same(&stat, &data));
        Ok(same.then_some(How::Mount))
    }

    /// Takes the native directory from sight, and what it was on as well if `wholly`.
    ///
    /// # Errors
    /// If somebody uses it: it stays then.
    pub fn clear(&self, path: &Path, data: &Path, wholly: bool) -> Result<(), Why> {
        let Some(dir) = self.parent(path, false)? else { return Ok(()) };
        let name = path.file_name().unwrap_or_default();
        match self.appears(path, data)? {
            Some(How::Mount) => {
                detach(&dir, name)?;
                if wholly {
                    // It stays if there is something in it.
                    unlinkat(&dir, name, AtFlags::REMOVEDIR).ok();
                }
                Ok(())
            }
            Some(How::Link) if wholly => {
                unlinkat(&dir, name, AtFlags::empty()).map_err(says("removed"))
            }
            _ => Ok(()),
        }
    }

    /// Takes every native directory from sight that is mounted in this worktree at `at`, also one that somebody has
    /// moved with what is around it.
    ///
    /// # Errors
    /// If somebody uses one: the rest stays then.
    pub fn detach_all(&self, at: &Path) -> Result<(), (PathBuf, Why)> {
        for path in mounted_below(at) {
            let failed = |why| (at.join(&path), why);
            let Some(dir) = self.parent(&path, false).map_err(failed)? else { continue };
            detach(&dir, path.file_name().unwrap_or_default()).map_err(failed)?;
        }
        Ok(())
    }

    /// Empties a directory of the branch.
    fn empty(&self, dir: &OwnedFd, name: &OsStr) -> Result<(), Why> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = openat(dir, name, flags, Mode::empty()).map_err(says("emptied"))?;
        transfer::empty(opened.as_fd())
            .map_err(|(path, error)| format!("cannot be emptied: {}: {error}", path.display()))
    }

    /// The directory at `path`, open to be read.
    ///
    /// # Errors
    /// If there is none.
    pub fn directory(&self, path: &Path) -> Result<OwnedFd, Why> {
        let dir = self.parent(path, false)?.ok_or("is not there")?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&dir, path.file_name().unwrap_or_default(), flags, Mode::empty())
            .map_err(says("read"))
    }
}

/// Unmounts what is mounted on `name` in `dir`. What holds `dir` open does not hold that mount.
fn detach(dir: &OwnedFd, name: &OsStr) -> Result<(), Why> {
    // This thread has a table of files of its own.
    let path = PathBuf::from(format!("/proc/thread-self/fd/{}", dir.as_raw_fd())).join(name);
    match unmount(&path, UnmountFlags::NOFOLLOW) {
        // Somebody was faster.
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(Errno::BUSY) => Err("is in use".into()),
        Err(errno) => Err(says("unmounted")(errno)),
    }
}

fn is_empty(dir: &OwnedFd, name: &OsStr) -> rustix::io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = openat(dir, name, flags, Mode::empty())?;
    for entry in Dir::read_from(&opened)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_same(one: &Stat, other: &Stat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

/// Whether a path is one of a native directory, of whatever store and branch.
pub fn is_ours(target: &Path) -> bool {
    let mut parts = target.iter().rev();
    let number = |part: Option<&OsStr>| {
        part.and_then(OsStr::to_str).is_some_and(|part| part.parse::<u64>().is_ok())
    };
    target.is_absolute()
        && parts.next() == Some(OsStr::new("data"))
        && number(parts.next())
        && number(parts.next())
        && parts.next() == Some(OsStr::new("redirects"))
}

/// The paths below `at` on which native directories are mounted, the innermost first.
fn mounted_below(at: &Path) -> Vec<PathBuf> {
    let mounts = agentfs_fuse::mounts_below(at).unwrap_or_default().into_iter();
    mounts.filter(|(_, source)| is_ours(source)).map(|(path, _)| path).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_native_directories_of_a_store_are_ours() {
        for path in ["/s/redirects/1/2/data", "/a b/c/redirects/12/1/data"] {
            assert!(is_ours(Path::new(path)), "{path}");
        }
        for path in
            ["redirects/1/2/data", "/s/redirects/x/2/data", "/s/redirects/1/2", "/s/1/2/data", "/"]
        {
            assert!(!is_ours(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn links_on_the_way_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        fs::create_dir_all(tree.join("web")).unwrap();
        fs::create_dir(&outside).unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("link")).unwrap();
        fs::write(tree.join("file"), "").unwrap();
        let dev = std::os::unix::fs::MetadataExt::dev(&fs::metadata(&tree).unwrap());
        let root = Root::open(&tree, dev, false).unwrap();
        let data = dir.path().join("redirects/1/1/data");
        fs::create_dir_all(&data).unwrap();
        let set = |path: &str| root.set(Path::new(path), &data, false, false);
        for path in ["link/target", "link", "file", "file/x", "../outside/x"] {
            assert!(set(path).is_err(), "{path}");
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        assert_eq!(set("web/new/target"), Ok(How::Link));
        assert_eq!(set("web/new/target"), Ok(How::Link));
        assert_eq!(fs::read_link(tree.join("web/new/target")).unwrap(), data);
        // A link of another branch becomes one of this.
        let other = dir.path().join("redirects/9/9/data");
        std::os::unix::fs::symlink(&other, tree.join("target")).unwrap();
        assert_eq!(root.find(Path::new("target")), Ok(Found::OurLink));
        assert_eq!(set("target"), Ok(How::Link));
        assert_eq!(fs::read_link(tree.join("target")).unwrap(), data);
        // What the branch has stays, unless it was moved.
        fs::create_dir(tree.join("full")).unwrap();
        fs::write(tree.join("full/file"), "").unwrap();
        assert!(set("full").unwrap_err().contains("--move"));
        assert!(tree.join("full/file").exists());
        assert_eq!(root.set(Path::new("full"), &data, false, true), Ok(How::Link));
        root.clear(Path::new("full"), &data, true).unwrap();
        assert!(tree.join("full").symlink_metadata().is_err() && data.is_dir());
        assert!(Root::open(&tree, dev + 1, false).is_err());
    }
}
