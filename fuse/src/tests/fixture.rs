//! A small worktree of every kind of entry, mounts with a time limit, and ears for the log.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use agentfs_engine::base::Base;
use agentfs_engine::content::Preparer;
use agentfs_engine::source::{Blob, ObjectSource};
use agentfs_engine::storage::Disk;
use agentfs_engine::store::{Batch, Store};
use agentfs_engine::tree::{Entry, EntryKind, Subtree, TreeBuilder};
use agentfs_engine::worktree::{Contents, Worktree, WorktreeOptions};
use agentfs_engine::{BranchNumber, Error, GitOid, HashKind, Result, TreeId};
use rustix::mount::UnmountFlags;

use crate::cache::Levers;
use crate::counters::Message;
use crate::mount::MountOptions;
use crate::session::{Mounted, mount};

/// Longest that a test may hold a mount before it is torn from it.
const TEST_TIME_MAX: Duration = Duration::from_secs(60);

pub(super) const UID: u32 = 0;
pub(super) const GID: u32 = 0;
pub(super) const TIME: i64 = 1_234_567_890;
pub(super) const GIT_FILE: &[u8] = b"gitdir: /elsewhere/worktrees/x\n";
pub(super) const MANY: usize = 1000;

/// An entry of a directory that is to be made.
pub(super) enum Item {
    File(Vec<u8>),
    Executable(Vec<u8>),
    Link(&'static str),
    Directory(Vec<(Vec<u8>, Item)>),
    Gitlink,
    /// A file that only the repository has, by the first byte of its object id.
    Unstored(u8),
}

/// A repository whose blobs are trouble.
struct Trouble;

pub(super) const PANICS: u8 = 1;
pub(super) const MISSING: u8 = 2;

impl ObjectSource for Trouble {
    fn blob(&self, oid: &GitOid) -> Result<Blob> {
        match oid.as_bytes()[0] {
            PANICS => panic!("a blob that panics"),
            _ => Err(Error::MissingObject(*oid)),
        }
    }

    fn converted(&self, oid: &GitOid, _path: &[u8]) -> Result<Blob> {
        self.blob(oid)
    }

    fn rebuild_tree(&self, _store: &Store, _path: &[u8], id: TreeId) -> Result<()> {
        Err(Error::MissingTree(id))
    }
}

pub(super) fn oid(byte: u8) -> GitOid {
    GitOid::from_slice(HashKind::Sha1, &[byte; 20]).unwrap()
}

/// Bytes that no two offsets share in long runs.
pub(super) fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend(step());
    }
    bytes.truncate(len);
    bytes
}

pub(super) fn big() -> Vec<u8> {
    noise((3 << 20) + 123)
}

fn file(text: &str) -> Item {
    Item::File(text.as_bytes().to_vec())
}

/// The worktree that most tests use, by name as far as the names are text.
pub(super) fn items() -> Vec<(Vec<u8>, Item)> {
    let many = (0..MANY).map(|n| (format!("file-{n:05}").into_bytes(), file("one of many\n")));
    let named = |items: Vec<(&str, Item)>| {
        items.into_iter().map(|(name, item)| (name.as_bytes().to_vec(), item)).collect::<Vec<_>>()
    };
    let deep = named(vec![("c.txt", file("deep\n")), ("up", Item::Link("../../a.txt"))]);
    let sub = named(vec![
        (".gitattributes", file("*.bin binary\n")),
        ("b.txt", file("b\n")),
        ("deep", Item::Directory(deep)),
    ]);
    let mut root = named(vec![
        (".gitignore", file("target\n")),
        ("a.txt", file("hello\n")),
        ("big.bin", Item::File(big())),
        ("empty", file("")),
        ("link", Item::Link("a.txt")),
        ("many", Item::Directory(many.collect())),
        ("module", Item::Gitlink),
        ("run.sh", Item::Executable(b"#!/bin/sh\nexit 7\n".to_vec())),
        ("sub", Item::Directory(sub)),
        ("unstored-missing", Item::Unstored(MISSING)),
        ("unstored-panics", Item::Unstored(PANICS)),
    ]);
    root.push((vec![b'x'; 255], file("a long name\n")));
    root.push((b"\xff\xfe".to_vec(), file("no text in the name\n")));
    root
}

fn store_items(batch: &mut Batch<'_>, mut items: Vec<(Vec<u8>, Item)>) -> Subtree {
    items.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mut builder = TreeBuilder::new(Some(HashKind::Sha1));
    for (name, item) in items {
        let (kind, bytes) = match item {
            Item::Directory(inner) => {
                let subtree = store_items(batch, inner);
                builder.push(&directory(&name, subtree)).unwrap();
                continue;
            }
            Item::Gitlink => (EntryKind::Gitlink, None),
            Item::Unstored(_) => (EntryKind::File, None),
            Item::File(ref bytes) => (EntryKind::File, Some(bytes.clone())),
            Item::Executable(ref bytes) => (EntryKind::Executable, Some(bytes.clone())),
            Item::Link(target) => (EntryKind::Symlink, Some(target.as_bytes().to_vec())),
        };
        let content = bytes.map(|bytes| Preparer::new().content(&bytes));
        if let Some(content) = &content {
            batch.put_content(content).unwrap();
        }
        let (oid, size) = match item {
            Item::Gitlink => (Some(oid(99)), 0),
            Item::Unstored(byte) => (Some(oid(byte)), 1000),
            _ => (None, content.as_ref().map_or(0, |content| content.size)),
        };
        let content = content.map(|content| content.id);
        builder.push(&Entry { kind, name: &name, size, oid, content, subtree: None }).unwrap();
    }
    let tree = builder.finish();
    batch.put_tree(&tree).unwrap();
    tree.subtree
}

fn directory(name: &[u8], subtree: Subtree) -> Entry<'_> {
    let kind = EntryKind::Directory;
    Entry { kind, name, size: subtree.size, oid: None, content: None, subtree: Some(subtree) }
}

/// A worktree with the directory that it is stored in.
pub(super) struct Stored {
    pub worktree: Arc<Worktree>,
    pub dir: tempfile::TempDir,
}

pub(super) fn worktree(items: Vec<(Vec<u8>, Item)>) -> Stored {
    let (base, contents, dir) = stored(items);
    let git_file = Some(GIT_FILE.to_vec());
    let options = WorktreeOptions { uid: UID, gid: GID, time: TIME, git_file };
    Stored { worktree: Worktree::new(base, contents, options), dir }
}

/// A worktree that can be written, without a `.git` file.
pub(super) fn writable(items: Vec<(Vec<u8>, Item)>) -> Stored {
    let (base, contents, dir) = stored(items);
    let options = WorktreeOptions { uid: UID, gid: GID, time: TIME, git_file: None };
    let (branch, outbox) = (BranchNumber(1), dir.path().join("outbox/1"));
    let worktree =
        Worktree::writable(base, contents, options, branch, Arc::new(Disk), &outbox).unwrap();
    Stored { worktree, dir }
}

fn stored(items: Vec<(Vec<u8>, Item)>) -> (Arc<Base>, Arc<Contents>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let mut batch = store.batch().unwrap();
    let root = store_items(&mut batch, items);
    batch.commit().unwrap();
    let base = Base::open(Arc::clone(&store), None, root.id).unwrap();
    let contents = Contents::new(store, Some(Arc::new(Trouble)));
    (base, contents, dir)
}

/// Whether mounts can be tested here. Where they must be, a machine that cannot fails the test.
pub(super) fn can_mount() -> bool {
    let can = rustix::process::getuid().is_root() && crate::mount::open_device().is_ok();
    let required = std::env::var_os("AGENTFS_REQUIRE_FUSE").is_some_and(|value| value == "1");
    assert!(can || !required, "AGENTFS_REQUIRE_FUSE=1, but this process cannot mount");
    if !can {
        #[expect(clippy::print_stderr, reason = "a skipped test says so")]
        {
            eprintln!("skipped: this test mounts, which needs root and /dev/fuse");
        }
    }
    can
}

/// Names the transport of the mounts of a process of tests: `io_uring`, else `/dev/fuse`.
pub(super) const TRANSPORT: &str = "AGENTFS_TEST_TRANSPORT";

/// Whether the tests of this process are those over io_uring.
pub(super) fn over_io_uring() -> bool {
    std::env::var_os(TRANSPORT).is_some_and(|value| value == "io_uring")
}

/// A mounted worktree that is torn down when the test ends, however it ends, or takes too long.
pub(super) struct Mount {
    // In this order: the mount goes before what it serves.
    pub mounted: Mounted,
    pub point: Point,
    pub stored: Stored,
}

impl Mount {
    /// Mounts the usual worktree; `None` where that cannot be tested.
    pub(super) fn new(levers: Levers) -> Option<Self> {
        Self::of(items(), &MountOptions { levers, ..usual() })
    }

    pub(super) fn of(items: Vec<(Vec<u8>, Item)>, options: &MountOptions) -> Option<Self> {
        Self::serving(|| worktree(items), options)
    }

    /// Mounts a worktree that can be written, for everybody.
    pub(super) fn writable(items: Vec<(Vec<u8>, Item)>, levers: Levers) -> Option<Self> {
        let options = MountOptions { read_only: false, allow_other: true, levers, ..usual() };
        Self::serving(|| writable(items), &options)
    }

    /// The usual worktree over io_uring, whatever the transport of this process.
    pub(super) fn ringing() -> Option<Self> {
        Self::over(true, || worktree(items()), &usual())
    }

    fn serving(stored: impl FnOnce() -> Stored, options: &MountOptions) -> Option<Self> {
        Self::over(over_io_uring(), stored, options)
    }

    fn over(
        io_uring: bool,
        stored: impl FnOnce() -> Stored,
        options: &MountOptions,
    ) -> Option<Self> {
        if !can_mount() {
            return None;
        }
        let stored = stored();
        let point = Point::new();
        let mut options = options.clone();
        options.levers.io_uring = io_uring;
        let mounted = mount(Arc::clone(&stored.worktree), &point.path, &options).unwrap();
        assert_eq!(mounted.io_uring(), options.levers.io_uring);
        Some(Self { mounted, point, stored })
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.point.path.join(name)
    }

    pub(super) fn count(&self, message: Message) -> u64 {
        self.mounted.counts().of(message)
    }

    /// How often each message came while `work` ran; only those that came, and none of those that
    /// the kernel sends on without waiting.
    pub(super) fn messages(&self, work: impl FnOnce()) -> Vec<(&'static str, u64)> {
        let before = self.mounted.counters();
        work();
        let after = self.mounted.counters();
        let later = [Message::Forget, Message::Release, Message::Releasedir].map(Message::name);
        before
            .into_iter()
            .zip(after)
            .take(Message::ALL.len())
            .filter(|((name, was), (_, is))| was != is && !later.contains(name))
            .map(|((name, was), (_, is))| (name, is - was))
            .collect()
    }

    /// The least that `work` costs in three times: the kernel may let go of what it keeps when
    /// memory is short, and must then ask again.
    pub(super) fn repeated(&self, work: impl Fn()) -> Vec<(&'static str, u64)> {
        let cost =
            |messages: &Vec<(&str, u64)>| messages.iter().map(|(_, count)| count).sum::<u64>();
        (0..3).map(|_| self.messages(&work)).min_by_key(cost).unwrap_or_default()
    }
}

pub(super) fn usual() -> MountOptions {
    let levers = Levers { io_uring: over_io_uring(), ..Levers::default() };
    MountOptions { name: "agentfs:repo@branch".into(), levers, ..MountOptions::default() }
}

/// A directory to mount on. Whatever is mounted there is cut off when it is dropped, or when the
/// time of the test is up, so that nobody waits for it for ever.
pub(super) struct Point {
    pub path: PathBuf,
    _dir: tempfile::TempDir,
    _in_time: mpsc::Sender<()>,
}

impl Point {
    pub(super) fn new() -> Self {
        let dir = open_to_all();
        let path = dir.path().canonicalize().unwrap().join("mount");
        fs::create_dir(&path).unwrap();
        let (in_time, end) = mpsc::channel::<()>();
        let late = path.clone();
        thread::spawn(move || {
            if end.recv_timeout(TEST_TIME_MAX) == Err(mpsc::RecvTimeoutError::Timeout) {
                cut_off(&late);
            }
        });
        Self { path, _dir: dir, _in_time: in_time }
    }
}

/// A temporary directory that every user may enter.
pub(super) fn open_to_all() -> tempfile::TempDir {
    tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().unwrap()
}

impl Drop for Point {
    fn drop(&mut self) {
        cut_off(&self.path);
    }
}

fn cut_off(path: &Path) {
    while rustix::mount::unmount(path, UnmountFlags::FORCE | UnmountFlags::DETACH).is_ok() {}
}

/// What the log was told while `work` ran on this thread.
pub(super) fn logged(work: impl FnOnce()) -> Vec<String> {
    let ears = Ears::default();
    tracing::subscriber::with_default(ears.clone(), work);
    let mut lines = ears.0.lock().unwrap();
    std::mem::take(&mut *lines)
}

#[derive(Clone, Default)]
struct Ears(Arc<Mutex<Vec<String>>>);

impl tracing::field::Visit for Ears {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0.lock().unwrap().push(format!("{value:?}"));
        }
    }
}

impl tracing::Subscriber for Ears {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() == tracing::Level::ERROR
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        event.record(&mut self.clone());
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}
