//! What can be asked of a writable worktree.

use super::{NodeKind, Timestamp};

/// On whose behalf an operation is done. The kernel has checked that it is permitted; what is left
/// is who owns what is made, and which privileged bits survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// The effective user.
    pub uid: u32,
    /// The effective group.
    pub gid: u32,
}

impl Caller {
    /// Whether set-id bits survive what this caller does to a file (`CAP_FSETID`).
    pub(super) fn keeps_set_id(self) -> bool {
        self.uid == 0
    }
}

/// An inode to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewNode<'a> {
    /// An empty regular file.
    File,
    /// An empty directory.
    Directory,
    /// A symbolic link to these bytes.
    Symlink(&'a [u8]),
    /// A fifo, a socket or a device of this number.
    Special(NodeKind, u32),
}

/// A moment to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    /// The moment of the operation.
    Now,
    /// This one.
    At(Timestamp),
}

/// Attributes to be changed; `None` leaves one as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttributes {
    /// The permission bits, 12 of them.
    pub permissions: Option<u16>,
    /// The owner.
    pub uid: Option<u32>,
    /// The group.
    pub gid: Option<u32>,
    /// The size of a regular file in bytes: it is cut or extended by a hole.
    pub size: Option<u64>,
    /// Time of the last access.
    pub accessed: Option<SetTime>,
    /// Time of the last change of content.
    pub modified: Option<SetTime>,
}

/// What a rename does with an entry that has the new name already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    /// It is replaced.
    Replace,
    /// The rename fails.
    NoReplace,
    /// The two change places.
    Exchange,
}

/// Whether an extended attribute must be there before it is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrMode {
    /// It does not matter.
    Any,
    /// It must not be there.
    Create,
    /// It must be there.
    Replace,
}

/// What `fallocate` does with a range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocate {
    /// The file is at least as long as the range's end; `true` keeps its size.
    Reserve(bool),
    /// The range becomes a hole; the size stays.
    PunchHole,
    /// The range becomes zeros; `true` keeps the size.
    Zero(bool),
}

/// What `lseek` looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// The next byte that is not in a hole.
    Data,
    /// The next hole; there is one at the end of each file.
    Hole,
}
