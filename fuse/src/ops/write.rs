//! The operations that change something. On a read-only worktree each of them is `EROFS`.

use agentfs_engine::Ino;
use agentfs_engine::worktree::{
    Allocate, Attributes, Caller, NewNode, NodeKind, RenameMode, SetAttributes,
};
use rustix::io::Errno;

use super::Ops;
use crate::counters::Message;

/// Most bytes that one COPY_FILE_RANGE can say that it copied in 32 bits, in whole pages.
const COPIED_BYTES_MAX: u64 = u32::MAX as u64 & !0xfff;

/// The permission bits of a mode.
const fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

impl Ops {
    /// SETATTR.
    ///
    /// # Errors
    /// `EFBIG` for a size beyond what a file can have, `EISDIR`, `EINVAL` for the size of something
    /// else than a file, `ENOSPC`, `EROFS`; `ETXTBSY` as [`Ops::open`].
    pub fn set_attributes(
        &self,
        caller: Caller,
        ino: Ino,
        set: &SetAttributes,
    ) -> Result<Attributes, Errno> {
        let _writing = match set.size {
            Some(_) => self.writing(ino).inspect_err(|_| self.counters.count(Message::Setattr))?,
            None => None,
        };
        self.run(Message::Setattr, ino, || self.worktree.set_attributes(caller, ino, set))
    }

    /// MKNOD of the type that `mode` states; 0 stands for a regular file. The entry is a reference
    /// of the kernel, here and wherever an entry is made.
    ///
    /// # Errors
    /// `EEXIST`, `ENOTDIR`, `ENAMETOOLONG`, `ENOSPC`, `EROFS`; `EINVAL` for another type.
    pub fn make_node(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        device: u32,
    ) -> Result<Attributes, Errno> {
        let new = match mode & libc::S_IFMT {
            0 | libc::S_IFREG => NewNode::File,
            libc::S_IFIFO => NewNode::Special(NodeKind::Fifo, 0),
            libc::S_IFSOCK => NewNode::Special(NodeKind::Socket, 0),
            libc::S_IFCHR => NewNode::Special(NodeKind::CharDevice, device),
            libc::S_IFBLK => NewNode::Special(NodeKind::BlockDevice, device),
            _ => {
                self.counters.count(Message::Mknod);
                return Err(Errno::INVAL);
            }
        };
        self.make(Message::Mknod, caller, parent, name, mode, new)
    }

    /// MKDIR.
    ///
    /// # Errors
    /// As [`Ops::make_node`], and `EMLINK`.
    pub fn make_directory(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
    ) -> Result<Attributes, Errno> {
        self.make(Message::Mkdir, caller, parent, name, mode, NewNode::Directory)
    }

    /// SYMLINK to `target`.
    ///
    /// # Errors
    /// As [`Ops::make_node`].
    pub fn make_link(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        target: &[u8],
    ) -> Result<Attributes, Errno> {
        self.make(Message::Symlink, caller, parent, name, 0o777, NewNode::Symlink(target))
    }

    /// CREATE: a regular file, which is open from then on.
    ///
    /// # Errors
    /// As [`Ops::make_node`]; `ENOSYS` where the kernel is to make it by MKNOD from now on, and to
    /// open it without asking.
    pub fn create(
        &self,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
    ) -> Result<Attributes, Errno> {
        let declined =
            self.levers.no_open && self.levers.no_create && self.passthrough.get().is_none();
        if declined && !self.worktree.is_read_only() {
            self.counters.count(Message::Create);
            return Err(Errno::NOSYS);
        }
        self.make(Message::Create, caller, parent, name, mode, NewNode::File)
    }

    /// TMPFILE: a regular file without a name, which is open from then on. It lives until the kernel
    /// has forgotten it, unless it is given a name by [`Ops::link`].
    ///
    /// # Errors
    /// `ENOTDIR`, `ENOENT` for a directory that was removed, `ENOSPC`, `EROFS`.
    pub fn create_unnamed(
        &self,
        caller: Caller,
        parent: Ino,
        mode: u32,
    ) -> Result<Attributes, Errno> {
        self.run(Message::Tmpfile, parent, || {
            self.worktree.create_unnamed(caller, parent, permissions(mode))
        })
        .map(|attributes| self.referenced(attributes))
    }

    fn make(
        &self,
        message: Message,
        caller: Caller,
        parent: Ino,
        name: &[u8],
        mode: u32,
        new: NewNode<'_>,
    ) -> Result<Attributes, Errno> {
        self.run(message, parent, || {
            self.worktree.create(caller, parent, name, permissions(mode), new)
        })
        .map(|attributes| self.referenced(attributes))
    }

    /// LINK: `ino` gets another name.
    ///
    /// # Errors
    /// `EPERM` for a directory, `EMLINK`, else as [`Ops::make_node`].
    pub fn link(&self, ino: Ino, parent: Ino, name: &[u8]) -> Result<Attributes, Errno> {
        self.run(Message::Link, ino, || self.worktree.link(ino, parent, name))
            .map(|attributes| self.referenced(attributes))
    }

    /// UNLINK.
    ///
    /// # Errors
    /// `ENOENT`, `EISDIR`, `EPERM` for what cannot be removed, `EROFS`.
    pub fn unlink(&self, parent: Ino, name: &[u8]) -> Result<(), Errno> {
        self.run(Message::Unlink, parent, || self.worktree.unlink(parent, name))
    }

    /// RMDIR.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ENOTEMPTY`, `EROFS`.
    pub fn remove_directory(&self, parent: Ino, name: &[u8]) -> Result<(), Errno> {
        self.run(Message::Rmdir, parent, || self.worktree.remove_directory(parent, name))
    }

    /// RENAME with the flags of renameat2(2).
    ///
    /// # Errors
    /// `ENOENT`, `EEXIST`, `ENOTEMPTY`, `EISDIR`, `ENOTDIR`, `EROFS`; `EINVAL` for a directory that
    /// is to go below itself and for flags of other file systems.
    pub fn rename(
        &self,
        parent: Ino,
        name: &[u8],
        new_parent: Ino,
        new_name: &[u8],
        flags: u32,
    ) -> Result<(), Errno> {
        self.run(Message::Rename, parent, || {
            let mode = match flags {
                0 => RenameMode::Replace,
                libc::RENAME_NOREPLACE => RenameMode::NoReplace,
                libc::RENAME_EXCHANGE => RenameMode::Exchange,
                _ => return Ok(Err(Errno::INVAL)),
            };
            self.worktree.rename(parent, name, new_parent, new_name, mode).map(Ok)
        })?
    }

    /// WRITE of all of `data`. `kill_set_id` takes the set-id bits away, as a write by an ordinary
    /// user does.
    ///
    /// # Errors
    /// `ENOSPC`, `EFBIG`, `EROFS`, `EIO` after the outbox has failed. Nothing is written then.
    pub fn write(
        &self,
        ino: Ino,
        offset: u64,
        data: &[u8],
        kill_set_id: bool,
    ) -> Result<(), Errno> {
        self.run(Message::Write, ino, || self.worktree.write(ino, offset, data, kill_set_id))?;
        self.counters.wrote(data.len() as u64);
        Ok(())
    }

    /// FALLOCATE with the mode of fallocate(2).
    ///
    /// # Errors
    /// `EOPNOTSUPP` for other modes than reserving, punching and zeroing; else as [`Ops::write`].
    pub fn allocate(
        &self,
        caller: Caller,
        ino: Ino,
        mode: i32,
        offset: u64,
        len: u64,
    ) -> Result<(), Errno> {
        self.run(Message::Fallocate, ino, || {
            let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
            let what = match mode & !libc::FALLOC_FL_KEEP_SIZE {
                0 => Allocate::Reserve(keep_size),
                libc::FALLOC_FL_PUNCH_HOLE if keep_size => Allocate::PunchHole,
                libc::FALLOC_FL_ZERO_RANGE => Allocate::Zero(keep_size),
                _ => return Ok(Err(Errno::OPNOTSUPP)),
            };
            self.worktree.allocate(caller, ino, what, offset, len).map(Ok)
        })?
    }

    /// COPY_FILE_RANGE of `len` bytes, as `(inode, offset)` from and to. Returns how many were
    /// copied: less only at the end of the source or, unless the answer is `wide`, of 32 bits.
    ///
    /// # Errors
    /// As [`Ops::write`], and `EIO` as [`Ops::read`].
    pub fn copy_range(
        &self,
        caller: Caller,
        (from, from_offset): (Ino, u64),
        (to, to_offset): (Ino, u64),
        len: u64,
        wide: bool,
    ) -> Result<u64, Errno> {
        let len = if wide { len } else { len.min(COPIED_BYTES_MAX) };
        let copied = self.run(Message::CopyFileRange, to, || {
            self.worktree.copy_range(caller, from, from_offset, to, to_offset, len)
        })?;
        self.counters.wrote(copied);
        Ok(copied)
    }

    /// FSYNC, FSYNCDIR and SYNCFS: what was acknowledged so far survives a crash of the machine.
    ///
    /// # Errors
    /// `EIO` after the outbox has failed.
    pub fn sync(&self, message: Message, ino: Ino) -> Result<(), Errno> {
        self.run(message, ino, || {
            if self.worktree.is_read_only() { Ok(()) } else { self.worktree.sync() }
        })
    }
}
