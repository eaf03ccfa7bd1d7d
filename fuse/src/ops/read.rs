//! The operations that change nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};

use agentfs_engine::limits::NAME_BYTES_MAX;
use agentfs_engine::worktree::{Attributes, DirectoryEntry, FsStatistics, Seek};
use agentfs_engine::{Ino, Result as EngineResult};
use rustix::io::Errno;

use super::{Found, Ops};
use crate::counters::Message;

impl Ops {
    /// LOOKUP. An entry is a reference of the kernel, to be given back by [`Ops::forget`].
    ///
    /// # Errors
    /// `ENAMETOOLONG`, `ENOTDIR`; `ENOENT` only where the kernel must not remember it.
    pub fn lookup(&self, parent: Ino, name: &[u8]) -> Result<Found, Errno> {
        let found = self.run(Message::Lookup, parent, || {
            if name.len() > NAME_BYTES_MAX {
                return Ok(Err(Errno::NAMETOOLONG));
            }
            self.worktree.lookup(parent, name).map(Ok)
        })??;
        match found {
            Some(attributes) => Ok(Found::Entry(self.referenced(attributes))),
            None if self.levers.negative_entries => Ok(Found::Nothing),
            None => Err(Errno::NOENT),
        }
    }

    /// GETATTR.
    ///
    /// # Errors
    /// `ESTALE` for an inode that does not exist.
    pub fn attributes(&self, ino: Ino) -> Result<Attributes, Errno> {
        self.run(Message::Getattr, ino, || self.worktree.attributes(ino))
    }

    /// READLINK.
    ///
    /// # Errors
    /// `EINVAL` for what is no symbolic link, `EIO` for a target that cannot be read.
    pub fn read_link(&self, ino: Ino) -> Result<Vec<u8>, Errno> {
        self.run(Message::Readlink, ino, || self.worktree.read_link(ino))
    }

    /// READ into `out`; returns the number of bytes, fewer than asked for only at the end.
    ///
    /// # Errors
    /// `EIO` for content that is damaged or gone and cannot be rebuilt.
    pub fn read(&self, ino: Ino, offset: u64, out: &mut [u8]) -> Result<usize, Errno> {
        let len = self.run(Message::Read, ino, || self.worktree.read(ino, offset, out))?;
        self.counters.read(len);
        Ok(len)
    }

    /// READDIR, or READDIRPLUS `with_attributes`, from `cookie` on. `take` returns whether the entry
    /// still fitted into the reply. Each entry with attributes is a reference of the kernel, as if
    /// looked up.
    ///
    /// # Errors
    /// `ENOTDIR`, or `EIO` for a directory object that cannot be read. The kernel must then be told
    /// the error and none of the entries.
    pub fn read_directory(
        &self,
        ino: Ino,
        cookie: u64,
        with_attributes: bool,
        take: &mut dyn FnMut(DirectoryEntry<'_>) -> bool,
    ) -> Result<(), Errno> {
        let kind = if with_attributes { Message::Readdirplus } else { Message::Readdir };
        let mut listed = 0;
        // Counted when the listing is done: one that fails names nothing, and the worktree may have
        // locks of its own while it lists.
        let mut named = Vec::new();
        let result = self.run(kind, ino, || {
            self.worktree.read_directory(ino, cookie, with_attributes, &mut |entry| {
                let ino = entry.attributes.map(|attributes| attributes.ino);
                let taken = take(entry);
                if taken {
                    listed += 1;
                    if self.lookups.is_some() {
                        named.extend(ino);
                    }
                }
                taken
            })
        });
        self.counters.listed(listed);
        if let (Ok(()), Some(lookups)) = (result, &self.lookups) {
            named.into_iter().for_each(|ino| lookups.count(ino));
        }
        result
    }

    /// STATFS.
    ///
    /// # Errors
    /// `EIO` if the file system of the store does not answer.
    pub fn statistics(&self) -> Result<FsStatistics, Errno> {
        self.run(Message::Statfs, Ino::ROOT, || self.worktree.statistics())
    }

    /// LSEEK to data or to a hole. There is a hole at the end of each file.
    ///
    /// # Errors
    /// `ENXIO` from the end of the file on and where no data follows, `EINVAL` for another kind of
    /// seek, `ENOSYS` where the kernel is to find out by itself from now on.
    pub fn seek(&self, ino: Ino, offset: i64, whence: i32) -> Result<i64, Errno> {
        let found = self.run(Message::Lseek, ino, || {
            // A file that is or was written can have holes, of which only we know.
            if self.levers.no_lseek && self.worktree.is_bare_base() {
                return Ok(Err(Errno::NOSYS));
            }
            let what = match whence {
                libc::SEEK_DATA => Seek::Data,
                libc::SEEK_HOLE => Seek::Hole,
                _ => return Ok(Err(Errno::INVAL)),
            };
            match u64::try_from(offset) {
                Ok(offset) => self.worktree.seek(ino, offset, what).map(Ok),
                Err(_) => Ok(Err(Errno::NXIO)),
            }
        })??;
        found.and_then(|position| i64::try_from(position).ok()).ok_or(Errno::NXIO)
    }

    /// The whole of a regular file of at most `limit` bytes, to be pushed into the kernel's cache.
    /// `None` if it is larger or cannot be read: the READ that asks for it will say why.
    pub(crate) fn content(&self, ino: Ino, limit: u64) -> Option<Vec<u8>> {
        let read = || -> EngineResult<_> {
            let size = self.worktree.attributes(ino)?.size;
            if size > limit {
                return Ok(None);
            }
            let mut content = vec![0; size as usize];
            let len = self.worktree.read(ino, 0, &mut content)?;
            Ok((len == content.len()).then_some(content))
        };
        catch_unwind(AssertUnwindSafe(read)).ok().and_then(EngineResult::ok).flatten()
    }
}
