//! A mount and a directory of the host side by side: what is done to both must come out the same.
//!
//! A step is done on the host first and on the mount second. Its results, errnos included, must be
//! equal, and then the two trees: names, types, modes, owners, link counts, sizes, bytes, link targets,
//! attributes of the extended kind, which names are one file, and whose times of change
//! the step moved. Besides, what `stat` shows through the mount must be what the worktree says, to
//! the nanosecond, although the kernel was told before that it may keep everything.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{CString, OsStr};
use std::fmt::Debug;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use agentfs_engine::Ino;
use agentfs_engine::worktree::{NodeKind, Timestamp};
use rustix::fs::{AtFlags, CWD, Stat, Timespec, Timestamps, statat, utimensat};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::fixture::{self, Item, Mount};
use crate::cache::Levers;

/// One of the two.
pub(super) struct Side {
    pub root: PathBuf,
    /// Files that stay open over steps.
    pub files: HashMap<&'static str, File>,
}

impl Side {
    fn new(root: PathBuf) -> Self {
        Self { root, files: HashMap::new() }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Keeps `file` open under a name.
    pub(super) fn keep(&mut self, name: &'static str, file: File) {
        self.files.insert(name, file);
    }

    pub(super) fn file(&self, name: &str) -> &File {
        &self.files[name]
    }
}

pub(super) struct Twin {
    native: Side,
    mounted: Side,
    // After what is open in it.
    pub mount: Mount,
    _native: tempfile::TempDir,
    /// Whether the host counts subdirectories as links.
    counts_directories: bool,
    /// Whether size and times are for the worktree to say, and not for the kernel.
    told_at_once: bool,
}

/// The errno of a failure, so that results of both sides can be compared.
pub(super) fn errno<T>(result: std::io::Result<T>) -> Result<T, Errno> {
    result.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// What both sides begin with.
pub(super) fn items() -> Vec<(Vec<u8>, Item)> {
    let named = |items: Vec<(&str, Item)>| {
        items.into_iter().map(|(name, item)| (name.as_bytes().to_vec(), item)).collect::<Vec<_>>()
    };
    let file = |text: &str| Item::File(text.as_bytes().to_vec());
    let deep = named(vec![("c.txt", file("deep\n")), ("up", Item::Link("../../a.txt"))]);
    let sub = named(vec![("b.txt", file("b\n")), ("deep", Item::Directory(deep))]);
    named(vec![
        ("a.txt", file("hello\n")),
        ("big.bin", Item::File(fixture::big())),
        ("empty", file("")),
        ("link", Item::Link("a.txt")),
        ("run.sh", Item::Executable(b"#!/bin/sh\nexit 7\n".to_vec())),
        ("sub", Item::Directory(sub)),
        ("void", Item::Directory(Vec::new())),
    ])
}

fn make_natively(dir: &Path, items: Vec<(Vec<u8>, Item)>) {
    for (name, item) in items {
        let path = dir.join(OsStr::from_bytes(&name));
        let mode = match item {
            Item::File(bytes) => {
                fs::write(&path, bytes).unwrap();
                0o644
            }
            Item::Executable(bytes) => {
                fs::write(&path, bytes).unwrap();
                0o755
            }
            Item::Link(target) => {
                std::os::unix::fs::symlink(target, &path).unwrap();
                continue;
            }
            Item::Directory(items) => {
                fs::create_dir(&path).unwrap();
                make_natively(&path, items);
                0o755
            }
            Item::Gitlink | Item::Unstored(_) => {
                panic!("a directory of the host has no such thing")
            }
        };
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }
    let time = Timespec { tv_sec: fixture::TIME, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, dir, &times, AtFlags::empty()).unwrap();
}

impl Twin {
    /// Both sides with [`items`]; `None` where nothing can be mounted.
    pub(super) fn new() -> Option<Self> {
        Self::with(Levers::default())
    }

    pub(super) fn with(levers: Levers) -> Option<Self> {
        let told_at_once = !levers.writeback_cache;
        let mount = Mount::writable(items(), levers)?;
        let native = fixture::open_to_all();
        let root = native.path().canonicalize().unwrap().join("twin");
        fs::create_dir(&root).unwrap();
        let counts_directories = fs::metadata(&root).unwrap().nlink() == 2;
        make_natively(&root, items());
        fs::set_permissions(&root, Permissions::from_mode(0o755)).unwrap();
        let twin = Self {
            native: Side::new(root),
            mounted: Side::new(mount.point.path.clone()),
            mount,
            _native: native,
            counts_directories,
            told_at_once,
        };
        twin.compare("nothing", &Tree::of(&twin.native), &Tree::of(&twin.mounted));
        Some(twin)
    }

    /// Does `step` on both sides and compares what came of it.
    pub(super) fn step<T: PartialEq + Debug>(
        &mut self,
        what: &str,
        step: impl Fn(&mut Side) -> T,
    ) -> T {
        let before = (Tree::of(&self.native), Tree::of(&self.mounted));
        wait_for_the_clock();
        let expected = step(&mut self.native);
        let result = step(&mut self.mounted);
        assert_eq!(result, expected, "{what}: the mount against the host");
        let after = (Tree::of(&self.native), Tree::of(&self.mounted));
        self.compare(what, &after.0, &after.1);
        if self.told_at_once {
            let (expected, moved) =
                (after.0.moved_since(&before.0), after.1.moved_since(&before.1));
            assert_eq!(moved, expected, "{what}: whose times moved, the mount against the host");
        }
        self.check_truth(what);
        result
    }

    fn compare(&self, what: &str, native: &Tree, mounted: &Tree) {
        let names = |tree: &Tree| tree.entries.keys().cloned().collect::<BTreeSet<_>>();
        assert_eq!(names(mounted), names(native), "{what}: names");
        for (path, expected) in &native.entries {
            let found = &mounted.entries[path];
            let mut expected = expected.clone();
            if expected.mode & libc::S_IFMT == libc::S_IFDIR && !self.counts_directories {
                expected.links = found.links;
            }
            assert!(*found == expected, "{what}: {path:?} is\n{found:?} and not\n{expected:?}");
            assert!(native.bytes(path) == mounted.bytes(path), "{what}: the bytes of {path:?}");
        }
    }

    /// Compares what the kernel says with what the worktree says.
    fn check_truth(&self, what: &str) {
        if !self.told_at_once {
            return;
        }
        for path in Tree::of(&self.mounted).entries.keys() {
            let stat = lstat(&self.mounted.root.join(path)).unwrap();
            self.check_stat(&format!("{what}: {path:?}"), &stat);
        }
        for (name, file) in &self.mounted.files {
            let stat = rustix::fs::fstat(file).unwrap();
            self.check_stat(&format!("{what}: the open {name:?}"), &stat);
        }
    }

    fn check_stat(&self, what: &str, stat: &Stat) {
        let truth = self.mount.mounted.ops().attributes(Ino(stat.st_ino)).unwrap();
        let format = match truth.kind {
            NodeKind::File => libc::S_IFREG,
            NodeKind::Directory => libc::S_IFDIR,
            NodeKind::Symlink => libc::S_IFLNK,
            NodeKind::Fifo => libc::S_IFIFO,
            NodeKind::Socket => libc::S_IFSOCK,
            NodeKind::CharDevice => libc::S_IFCHR,
            NodeKind::BlockDevice => libc::S_IFBLK,
        };
        assert_eq!(stat.st_mode, format | u32::from(truth.permissions), "{what}: mode");
        assert_eq!(stat.st_nlink, u64::from(truth.nlink), "{what}: links");
        assert_eq!((stat.st_uid, stat.st_gid), (truth.uid, truth.gid), "{what}: owner");
        assert_eq!(stat.st_size as u64, truth.size, "{what}: size");
        assert_eq!(stat.st_blocks as u64, truth.blocks, "{what}: blocks");
        let time =
            |seconds, nanoseconds: u64| Timestamp { seconds, nanoseconds: nanoseconds as u32 };
        let modified = time(stat.st_mtime, stat.st_mtime_nsec);
        let changed = time(stat.st_ctime, stat.st_ctime_nsec);
        assert_eq!(modified, truth.modified, "{what}: time of modification");
        assert_eq!(changed, truth.changed, "{what}: time of change");
        let accessed = time(stat.st_atime, stat.st_atime_nsec);
        assert_eq!(accessed, truth.accessed, "{what}: time of access");
    }
}

fn lstat(path: &Path) -> rustix::io::Result<Stat> {
    statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)
}

/// Returns when the clock that stamps files has moved on, so that a change is seen by its time.
fn wait_for_the_clock() {
    let now = || {
        let time = clock_gettime(ClockId::RealtimeCoarse);
        (time.tv_sec, time.tv_nsec)
    };
    let before = now();
    while now() == before {
        thread::sleep(Duration::from_micros(200));
    }
}

/// All that is to be the same of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    mode: u32,
    links: u64,
    owner: (u32, u32),
    device: u64,
    /// 0 for a directory: file systems differ in what that means.
    size: i64,
    target: Option<PathBuf>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path that leads to the same file.
    same_as: PathBuf,
}

/// A directory with all that is in it.
struct Tree {
    root: PathBuf,
    entries: BTreeMap<PathBuf, Entry>,
    /// The inode number of each path, and when its content and attributes were changed.
    times: BTreeMap<PathBuf, (u64, [(i64, u64); 2])>,
}

impl Tree {
    fn of(side: &Side) -> Self {
        let (entries, times) = (BTreeMap::new(), BTreeMap::new());
        let mut tree = Self { root: side.root.clone(), entries, times };
        tree.visit(PathBuf::new(), &mut HashMap::new());
        tree
    }

    fn visit(&mut self, path: PathBuf, seen: &mut HashMap<u64, PathBuf>) {
        let full = self.root.join(&path);
        let stat = lstat(&full).unwrap();
        let format = stat.st_mode & libc::S_IFMT;
        let is_directory = format == libc::S_IFDIR;
        let entry = Entry {
            mode: stat.st_mode,
            links: stat.st_nlink,
            owner: (stat.st_uid, stat.st_gid),
            device: stat.st_rdev,
            size: if is_directory { 0 } else { stat.st_size },
            target: (format == libc::S_IFLNK).then(|| fs::read_link(&full).unwrap()),
            xattrs: xattrs(&full),
            same_as: seen.entry(stat.st_ino).or_insert_with(|| path.clone()).clone(),
        };
        let modified = (stat.st_mtime, stat.st_mtime_nsec);
        let changed = (stat.st_ctime, stat.st_ctime_nsec);
        self.times.insert(path.clone(), (stat.st_ino, [modified, changed]));
        self.entries.insert(path.clone(), entry);
        if !is_directory {
            return;
        }
        let mut names = Vec::new();
        for entry in fs::read_dir(&full).unwrap() {
            let entry = entry.unwrap();
            let (kind, stat) = (entry.file_type().unwrap(), entry.metadata().unwrap());
            assert_eq!(kind, stat.file_type(), "{:?}", entry.path());
            assert!(!kind.is_char_device() || stat.rdev() != 0);
            assert_eq!(entry.ino(), stat.ino(), "{:?}", entry.path());
            names.push(entry.file_name());
        }
        names.sort();
        for name in names {
            self.visit(path.join(name), seen);
        }
    }

    /// The bytes of a regular file.
    fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let is_file = self.entries[path].mode & libc::S_IFMT == libc::S_IFREG;
        is_file.then(|| fs::read(self.root.join(path)).unwrap())
    }

    /// The files, by their paths now, that were there before and whose time of modification, and
    /// whose time of change, have moved.
    fn moved_since(&self, before: &Self) -> BTreeMap<PathBuf, [bool; 2]> {
        let before: HashMap<_, _> = before.times.values().copied().collect();
        let known = self.times.iter();
        let moved = known.filter_map(|(path, (ino, now))| {
            let was = before.get(ino)?;
            let moved = [0, 1].map(|time| was[time] != now[time]);
            (moved != [false; 2]).then(|| (path.clone(), moved))
        });
        moved.collect()
    }
}

/// The attributes of the extended kind that users and root give.
fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut list = vec![0; 64 << 10];
    let len = match rustix::fs::llistxattr(path, &mut list) {
        Ok(len) => len,
        Err(Errno::OPNOTSUPP) => 0,
        Err(other) => panic!("{path:?}: {other}"),
    };
    let names = list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let ours = names.filter(|name| *name != b"security.selinux");
    let value = |name: &[u8]| {
        let mut value = vec![0; 64 << 10];
        let c_name = CString::new(name).unwrap();
        let len = rustix::fs::lgetxattr(path, &c_name, &mut value).unwrap();
        value.truncate(len);
        value
    };
    ours.map(|name| (name.to_vec(), value(name))).collect()
}
