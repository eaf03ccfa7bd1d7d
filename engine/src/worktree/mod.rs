//! The meaning of every operation on a worktree, without a kernel.
//!
//! A worktree is a base tree seen as files ([`clean`]) and, if it is writable, what its branch has
//! changed ([`live`]). Where the overlay knows nothing of an inode, the base answers.
//!
//! Locks: reading what was never changed takes none: a bitmap says so, and attributes, names and
//! listings then come from immutable nodes that are reached through atomics. Those of a writable
//! worktree are described in [`live`].

mod changed_paths;
#[cfg(test)]
mod changed_paths_tests;
mod changes;
#[cfg(test)]
mod check_tests;
mod clean;
mod contents;
#[cfg(test)]
mod crash_tests;
mod data;
mod drain;
mod edits;
#[cfg(test)]
mod edits_tests;
#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod fixture;
mod layers;
#[cfg(test)]
mod layers_tests;
mod live;
#[cfg(test)]
mod live_tests;
#[cfg(test)]
mod model;
#[cfg(test)]
mod model_tests;
mod names;
mod plain;
mod reading;
#[cfg(test)]
mod repair_tests;
mod request;
#[cfg(test)]
mod tests;
mod writing;
mod xattrs;

use std::path::Path;
use std::sync::Arc;

pub use changed_paths::{ChangedPaths, Interrupted};
pub use contents::Contents;
pub use drain::Drained;
pub use edits::{Become, Edit, Edited};
pub use layers::{Agree, Point};
pub use live::{BranchState, DrainState};
pub use request::{Allocate, Caller, NewNode, RenameMode, Seek, SetAttributes, SetTime, XattrMode};

use crate::base::Base;
use crate::error::{Error, Result};
use crate::id::{BranchNumber, Ino};
pub use crate::overlay::Difference;
use crate::storage::Storage;
use crate::tree::EntryKind;
use changes::Changes;
use clean::Clean;
use layers::Kin;
use live::Live;

/// Name of the file in the root of a worktree that names its git directory.
pub const GIT_FILE_NAME: &[u8] = b".git";

/// What `stat` calls the type of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

impl NodeKind {
    const ALL: [Self; 7] = [
        Self::File,
        Self::Directory,
        Self::Symlink,
        Self::Fifo,
        Self::Socket,
        Self::CharDevice,
        Self::BlockDevice,
    ];

    /// The tag stored on disk.
    pub(crate) const fn tag(self) -> u8 {
        self as u8
    }

    /// The inverse of [`NodeKind::tag`]; `None` for an unknown tag.
    pub(crate) fn from_tag(tag: u8) -> Option<Self> {
        Self::ALL.get(usize::from(tag)).copied()
    }
}

impl From<EntryKind> for NodeKind {
    fn from(kind: EntryKind) -> Self {
        match kind {
            EntryKind::File | EntryKind::Executable => Self::File,
            EntryKind::Symlink => Self::Symlink,
            EntryKind::Gitlink | EntryKind::Directory => Self::Directory,
        }
    }
}

/// A moment, as `struct timespec` holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Seconds since the epoch.
    pub seconds: i64,
    /// Nanoseconds within the second, below 1,000,000,000.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// Whether the nanoseconds are within the second.
    pub(crate) fn is_possible(self) -> bool {
        self.nanoseconds < 1_000_000_000
    }
}

/// What `stat` reports of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The inode number.
    pub ino: Ino,
    /// The type.
    pub kind: NodeKind,
    /// The permission bits, without the type.
    pub permissions: u16,
    /// Size in bytes: of the file, of the link's target, of the directory object.
    pub size: u64,
    /// Size without holes in units of 512 bytes, rounded up.
    pub blocks: u64,
    /// Time of the last access; reading does not move it.
    pub accessed: Timestamp,
    /// Time of the last change of content.
    pub modified: Timestamp,
    /// Time of the last change of content or attributes.
    pub changed: Timestamp,
    /// Number of links: for a directory 2 and one for each subdirectory.
    pub nlink: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The number of a device, 0 for anything else.
    pub rdev: u32,
}

/// One entry of a listing.
#[derive(Clone, Copy, Debug)]
pub struct DirectoryEntry<'a> {
    /// Its inode number.
    pub ino: Ino,
    /// Its type.
    pub kind: NodeKind,
    /// Its name.
    pub name: &'a [u8],
    /// Where a listing that stopped after this entry goes on. The same for every reader, and as long
    /// as the entry is there.
    pub cookie: u64,
    /// Its attributes, where asked for; never for `.` and `..`.
    pub attributes: Option<Attributes>,
}

/// What `statfs` reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FsStatistics {
    /// Size of a block in bytes, the unit of the three counts of blocks.
    pub block_size: u32,
    /// Blocks of the file system that holds the store.
    pub blocks: u64,
    /// Those that are free.
    pub blocks_free: u64,
    /// Those that an ordinary user may still take.
    pub blocks_available: u64,
    /// Inodes of this worktree.
    pub files: u64,
    /// Inodes that can still be created in it.
    pub files_free: u64,
    /// Longest name in bytes.
    pub name_max: u32,
}

/// What a worktree does not learn from its tree.
#[derive(Clone, Debug)]
pub struct WorktreeOptions {
    /// Owner of every file.
    pub uid: u32,
    /// Group of every file.
    pub gid: u32,
    /// Modification time of every file, in seconds since the epoch.
    pub time: i64,
    /// Content of the `.git` file in the root; `None` leaves it out.
    pub git_file: Option<Vec<u8>>,
}

/// A branch seen as files.
pub struct Worktree {
    clean: Clean,
    /// None where it shows its base alone.
    changes: Option<Arc<Changes>>,
    /// None where nothing can change.
    live: Option<Live>,
    kin: Kin,
}

impl Worktree {
    /// A read-only worktree over `base` whose files read from `contents`.
    pub fn new(base: Arc<Base>, contents: Arc<Contents>, options: WorktreeOptions) -> Arc<Self> {
        let clean = Clean { base, contents, options };
        Arc::new(Self { clean, changes: None, live: None, kin: Kin::default() })
    }

    /// A read-only worktree of `point`, which lies on `base`.
    pub fn at(
        base: Arc<Base>,
        contents: Arc<Contents>,
        options: WorktreeOptions,
        point: &Point,
    ) -> Arc<Self> {
        let clean = Clean { base, contents, options };
        let changes = Arc::new(point.changes.copy());
        clean.contents.store().note_use(&changes);
        let changes = Some(changes);
        Arc::new(Self { clean, changes, live: None, kin: Kin::default() })
    }

    /// A writable worktree of branch `branch` over its `base`. What the branch has changed is read
    /// from the store of `contents` and from the branch's outbox, a directory on `storage`.
    ///
    /// # Errors
    /// [`Error::BranchInUse`] while another one of the branch lives, and what reading the two meets: a
    /// damaged one is no worktree.
    pub fn writable(
        base: Arc<Base>,
        contents: Arc<Contents>,
        options: WorktreeOptions,
        branch: BranchNumber,
        storage: Arc<dyn Storage>,
        outbox: &Path,
    ) -> Result<Arc<Self>> {
        let live = Live::open(&base, contents.store(), branch, storage, outbox)?;
        let clean = Clean { base, contents, options };
        let worktree = Self::over(clean, live);
        worktree.sweep_orphans()?;
        Ok(Arc::new(worktree))
    }

    fn over(clean: Clean, live: Live) -> Self {
        clean.contents.store().note_use(&live.changes);
        let changes = Some(Arc::clone(&live.changes));
        Self { clean, changes, live: Some(live), kin: Kin::default() }
    }

    /// A writable worktree of the new branch `branch`, which begins at `point` of `base`. Its outbox is
    /// to be in `outbox`, a directory on `storage`. If `point` was just sealed, `origin` is the worktree
    /// that it was sealed in.
    ///
    /// The store has to have the branch on record ([`crate::store::Batch::put_fork`]) before anything in
    /// it is acknowledged.
    ///
    /// # Errors
    /// What writing the outbox meets.
    #[expect(
        clippy::too_many_arguments,
        reason = "what a worktree is made of, and where it begins"
    )]
    pub fn fork(
        base: Arc<Base>,
        contents: Arc<Contents>,
        options: WorktreeOptions,
        branch: BranchNumber,
        storage: Arc<dyn Storage>,
        outbox: &Path,
        point: &Point,
        origin: Option<&Arc<Self>>,
    ) -> Result<Arc<Self>> {
        let live = Live::fork(contents.store(), point, branch, storage, outbox)?;
        let fork = Arc::new(Self::over(Clean { base, contents, options }, live));
        // Before it is swept: the records of that need what it lies on.
        if let Some(origin) = origin {
            origin.adopt(&fork, point);
        }
        fork.sweep_orphans()?;
        Ok(fork)
    }

    /// The tree below it.
    pub fn base(&self) -> &Arc<Base> {
        &self.clean.base
    }

    /// Where the bytes of its files come from.
    pub fn contents(&self) -> &Arc<Contents> {
        &self.clean.contents
    }

    /// Whether it refuses whatever would change it.
    pub fn is_read_only(&self) -> bool {
        self.live.is_none()
    }

    /// Whether it shows its base and nothing else, ever: no extended attributes, no holes.
    pub fn is_bare_base(&self) -> bool {
        self.changes.is_none()
    }

    /// How its branch fares; `None` if it is read-only.
    pub fn state(&self) -> Option<BranchState> {
        self.live.as_ref().map(Live::state)
    }

    /// Whether something waits for a drain.
    pub fn is_dirty(&self) -> bool {
        self.live.as_ref().is_some_and(Live::is_dirty)
    }

    /// Bytes of its outbox.
    pub fn outbox_bytes(&self) -> u64 {
        self.live.as_ref().map_or(0, |live| live.outbox.bytes())
    }

    /// Has `notify` called whenever something begins to wait for a drain. It must not use the
    /// worktree.
    pub(crate) fn on_dirty(&self, notify: impl Fn() + Send + Sync + 'static) {
        if let Some(live) = &self.live {
            live.on_dirty(Box::new(notify));
        }
    }

    fn live(&self) -> Result<&Live> {
        self.live.as_ref().ok_or(Error::ReadOnly)
    }
}
