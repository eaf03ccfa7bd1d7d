//! Extended attributes: which names there are, as ext4 has it without access control lists.
//!
//! The kernel has checked who may use which name, except for what a listing shows.

use agentfs_engine::Ino;
use agentfs_engine::worktree::{Caller, XattrMode};
use rustix::io::Errno;

use super::Ops;
use crate::counters::Message;

/// Names that can be set.
const PREFIXES: [&[u8]; 3] = [b"user.", TRUSTED, b"security."];
/// Those that only root sees.
const TRUSTED: &[u8] = b"trusted.";

/// An answer to a program that may have asked for the size only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum XattrReply {
    /// How many bytes it would be.
    Size(u32),
    /// All of it.
    Bytes(Vec<u8>),
}

impl XattrReply {
    /// `bytes` for somebody who has room for `room` of them, or asks for their number with 0.
    fn of(bytes: Vec<u8>, room: u32) -> Result<Self, Errno> {
        match u32::try_from(bytes.len()) {
            Ok(size) if room == 0 => Ok(Self::Size(size)),
            Ok(size) if size <= room => Ok(Self::Bytes(bytes)),
            _ => Err(Errno::RANGE),
        }
    }
}

/// Refuses a name that no attribute can have. That lists are not supported is told by name as well,
/// so that the common question for them costs nothing.
fn check(name: &[u8]) -> Result<(), Errno> {
    match PREFIXES.iter().find_map(|prefix| name.strip_prefix(*prefix)) {
        Some(b"") => Err(Errno::INVAL),
        Some(_) => Ok(()),
        None => Err(Errno::OPNOTSUPP),
    }
}

impl Ops {
    /// GETXATTR: the value of `name`, for a buffer of `room` bytes.
    ///
    /// # Errors
    /// `ENODATA`, `ERANGE`, `EOPNOTSUPP` for a name that there cannot be, `ENOSYS` where the kernel
    /// is not to ask again.
    pub fn xattr(&self, ino: Ino, name: &[u8], room: u32) -> Result<XattrReply, Errno> {
        self.have_xattrs(Message::Getxattr)?;
        let value = self.run(Message::Getxattr, ino, || match check(name) {
            Ok(()) => self.worktree.xattr(ino, name).map(|value| value.ok_or(Errno::NODATA)),
            Err(refusal) => Ok(Err(refusal)),
        })??;
        XattrReply::of(value, room)
    }

    /// LISTXATTR: the names that `caller` may see, each ended by a NUL, for a buffer of `room` bytes.
    ///
    /// # Errors
    /// As [`Ops::xattr`].
    pub fn xattr_names(&self, caller: Caller, ino: Ino, room: u32) -> Result<XattrReply, Errno> {
        self.have_xattrs(Message::Listxattr)?;
        let names = self.run(Message::Listxattr, ino, || self.worktree.xattr_names(ino))?;
        let mut list = Vec::new();
        for name in names {
            if caller.uid == 0 || !name.starts_with(TRUSTED) {
                list.extend_from_slice(&name);
                list.push(0);
            }
        }
        XattrReply::of(list, room)
    }

    /// SETXATTR with the flags of setxattr(2).
    ///
    /// # Errors
    /// `EEXIST` or `ENODATA` where the flags forbid it, `E2BIG`, `ENOSPC`, `EROFS`; else as
    /// [`Ops::xattr`].
    pub fn set_xattr(&self, ino: Ino, name: &[u8], value: &[u8], flags: i32) -> Result<(), Errno> {
        self.have_xattrs(Message::Setxattr)?;
        self.run(Message::Setxattr, ino, || {
            let mode = match flags {
                0 => XattrMode::Any,
                libc::XATTR_CREATE => XattrMode::Create,
                libc::XATTR_REPLACE => XattrMode::Replace,
                _ => return Ok(Err(Errno::INVAL)),
            };
            match check(name) {
                Ok(()) => self.worktree.set_xattr(ino, name, value, mode).map(Ok),
                Err(refusal) => Ok(Err(refusal)),
            }
        })?
    }

    /// REMOVEXATTR.
    ///
    /// # Errors
    /// `ENODATA`, `EROFS`; else as [`Ops::xattr`].
    pub fn remove_xattr(&self, ino: Ino, name: &[u8]) -> Result<(), Errno> {
        self.have_xattrs(Message::Removexattr)?;
        self.run(Message::Removexattr, ino, || match check(name) {
            Ok(()) => self.worktree.remove_xattr(ino, name).map(Ok),
            Err(refusal) => Ok(Err(refusal)),
        })?
    }

    /// A bare base has none and says so once.
    fn have_xattrs(&self, message: Message) -> Result<(), Errno> {
        if !self.worktree.is_bare_base() {
            return Ok(());
        }
        self.counters.count(message);
        Err(if self.levers.no_xattr { Errno::NOSYS } else { Errno::OPNOTSUPP })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_ext4_without_lists() {
        for good in ["user.x", "trusted.overlay.opaque", "security.capability"] {
            assert_eq!(check(good.as_bytes()), Ok(()));
        }
        for empty in ["user.", "trusted.", "security."] {
            assert_eq!(check(empty.as_bytes()), Err(Errno::INVAL));
        }
        for other in ["", "user", "users.x", "system.posix_acl_access", "system.x", "os2.x"] {
            assert_eq!(check(other.as_bytes()), Err(Errno::OPNOTSUPP));
        }
    }

    #[test]
    fn whoever_asks_for_the_size_gets_it_and_whoever_has_no_room_is_told() {
        assert_eq!(XattrReply::of(vec![1, 2, 3], 0), Ok(XattrReply::Size(3)));
        assert_eq!(XattrReply::of(vec![1, 2, 3], 3), Ok(XattrReply::Bytes(vec![1, 2, 3])));
        assert_eq!(XattrReply::of(vec![1, 2, 3], 2), Err(Errno::RANGE));
        assert_eq!(XattrReply::of(vec![], 0), Ok(XattrReply::Size(0)));
        assert_eq!(XattrReply::of(vec![], 1), Ok(XattrReply::Bytes(vec![])));
    }
}
