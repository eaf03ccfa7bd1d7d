//! Changes of attributes and content.

use super::{Allocate, Attributes, Caller, NodeKind, SetAttributes, Worktree};
use crate::error::{Denial, Error, Result};
use crate::id::Ino;
use crate::limits::{COPY_BYTES_MAX, COPY_EXTENTS_MAX, FILE_BYTES_MAX};
use crate::overlay::{Body, Extent, Inode, Put, Source};

impl Worktree {
    /// Changes attributes of an inode, all together. A change of nothing is a change of owner that
    /// leaves it as it is.
    ///
    /// # Errors
    /// [`Error::Denied`], [`Error::IsDirectory`], [`Error::NoInode`], and what reading the base and
    /// writing the outbox meet.
    pub fn set_attributes(
        &self,
        caller: Caller,
        ino: Ino,
        set: &SetAttributes,
    ) -> Result<Attributes> {
        let mut change = self.change()?;
        let (now, old) = (change.now, *change.inode(ino)?);
        for time in [set.accessed, set.modified].into_iter().flatten() {
            if !change.moment(time).is_possible() {
                return Err(Error::Denied(ino, Denial::Invalid));
            }
        }
        if let Some(size) = set.size {
            check_file(ino, &old)?;
            if size > FILE_BYTES_MAX {
                return Err(Error::Denied(ino, Denial::TooLarge));
            }
            if size < old.size {
                if size > 0 {
                    change.own_content(ino)?;
                }
                change.put(Put::Hole { ino, offset: size, len: u64::MAX - size });
            } else if size > old.size {
                change.own_content(ino)?;
            }
        }
        let accessed = set.accessed.map(|time| change.moment(time));
        let modified = set.modified.map(|time| change.moment(time));
        let inode = change.inode(ino)?;
        if let Some(size) = set.size {
            inode.size = size;
            inode.modified = now;
            if !caller.keeps_set_id() {
                inode.drop_set_id();
            }
        }
        let owned = set.uid.is_some() || set.gid.is_some() || *set == SetAttributes::default();
        if owned {
            inode.drop_set_id();
        }
        inode.uid = set.uid.unwrap_or(inode.uid);
        inode.gid = set.gid.unwrap_or(inode.gid);
        inode.permissions = set.permissions.map_or(inode.permissions, |bits| bits & 0o7777);
        inode.accessed = accessed.unwrap_or(inode.accessed);
        inode.modified = modified.unwrap_or(inode.modified);
        inode.changed = now;
        change.commit(&[])?;
        self.attributes(ino)
    }

    /// Writes `data` at `offset` of a regular file: all of it or nothing.
    ///
    /// # Errors
    /// As [`Worktree::set_attributes`].
    pub fn write(&self, ino: Ino, offset: u64, data: &[u8], kill_set_id: bool) -> Result<()> {
        let mut change = self.change()?;
        let now = change.now;
        let inode = change.inode(ino)?;
        check_file(ino, inode)?;
        let len = data.len() as u64;
        let end = offset.checked_add(len).filter(|&end| end <= FILE_BYTES_MAX);
        let end = end.ok_or(Error::Denied(ino, Denial::TooLarge))?;
        if data.is_empty() {
            return Ok(());
        }
        let old_size = inode.size;
        inode.size = inode.size.max(end);
        (inode.modified, inode.changed) = (now, now);
        if kill_set_id {
            inode.drop_set_id();
        }
        if offset == 0 && len >= old_size {
            // Nothing of the base shows through.
            change.put(Put::Hole { ino, offset: 0, len: u64::MAX });
        } else {
            change.own_content(ino)?;
        }
        change.put(Put::Data { ino, offset, len });
        change.commit(&[data])
    }

    /// Does to a range of a regular file what `fallocate` asks for. Room is not set aside: a later
    /// write can still find the store full.
    ///
    /// # Errors
    /// As [`Worktree::set_attributes`].
    pub fn allocate(
        &self,
        caller: Caller,
        ino: Ino,
        what: Allocate,
        offset: u64,
        len: u64,
    ) -> Result<()> {
        let mut change = self.change()?;
        let now = change.now;
        let inode = change.inode(ino)?;
        check_file(ino, inode)?;
        let end = offset.checked_add(len).filter(|&end| end <= FILE_BYTES_MAX);
        let end = end.ok_or(Error::Denied(ino, Denial::TooLarge))?;
        if len == 0 {
            return Err(Error::Denied(ino, Denial::Invalid));
        }
        let grows =
            matches!(what, Allocate::Reserve(false) | Allocate::Zero(false)) && end > inode.size;
        if grows {
            inode.size = end;
        }
        (inode.modified, inode.changed) = (now, now);
        if !caller.keeps_set_id() {
            inode.drop_set_id();
        }
        change.own_content(ino)?;
        if matches!(what, Allocate::PunchHole | Allocate::Zero(_)) {
            change.put(Put::Hole { ino, offset, len });
        }
        change.commit(&[])
    }

    /// Copies a range of one regular file to another, or to another place of the same, and returns
    /// how many bytes it copied: fewer than asked for at the end of the source, and where much of it
    /// lies in the outbox or in many pieces. What lies in the store or in the base is shared, not
    /// copied.
    ///
    /// # Errors
    /// As [`Worktree::set_attributes`]; what reading the source meets.
    pub fn copy_range(
        &self,
        caller: Caller,
        from: Ino,
        from_offset: u64,
        to: Ino,
        to_offset: u64,
        len: u64,
    ) -> Result<u64> {
        let source = self.attributes(from)?;
        if source.kind != NodeKind::File {
            return Err(Error::Denied(from, Denial::Invalid));
        }
        let mut change = self.change()?;
        let now = change.now;
        check_file(to, change.inode(to)?)?;
        let mut len = len.min(self.attributes(from)?.size.saturating_sub(from_offset));
        let end = to_offset.checked_add(len).filter(|&end| end <= FILE_BYTES_MAX);
        end.ok_or(Error::Denied(to, Denial::TooLarge))?;
        if from == to && from_offset < to_offset + len && to_offset < from_offset + len {
            return Err(Error::Denied(to, Denial::Invalid));
        }
        if len == 0 {
            return Ok(0);
        }
        change.own_content(to)?;
        let mut pieces = self.pieces(from, from_offset, len);
        let mut fresh = 0;
        for (index, (start, extent)) in pieces.iter_mut().enumerate() {
            if index == COPY_EXTENTS_MAX {
                len = *start - from_offset;
                break;
            }
            if matches!(extent.source, Source::Fresh(_)) {
                let room = COPY_BYTES_MAX - fresh;
                if extent.len > room {
                    extent.len = room;
                    len = *start + room - from_offset;
                    break;
                }
                fresh += extent.len;
            }
        }
        change.put(Put::Hole { ino: to, offset: to_offset, len });
        let mut body = Vec::new();
        for (start, extent) in pieces {
            if start >= from_offset + len || extent.len == 0 {
                break;
            }
            let offset = to_offset + (start - from_offset);
            match extent.source {
                Source::Fresh(_) => {
                    let at = body.len();
                    body.resize(at + extent.len as usize, 0);
                    self.read_source(&extent.source, &mut body[at..])?;
                    change.put(Put::Data { ino: to, offset, len: extent.len });
                }
                source => change.put(Put::Share { ino: to, offset, len: extent.len, source }),
            }
        }
        let inode = change.inode(to)?;
        inode.size = inode.size.max(to_offset + len);
        (inode.modified, inode.changed) = (now, now);
        if !caller.keeps_set_id() {
            inode.drop_set_id();
        }
        change.commit(&[&body])?;
        Ok(len)
    }

    /// Waits until everything acknowledged so far survives a crash of the machine.
    ///
    /// # Errors
    /// What writing the outbox meets, now or earlier.
    pub fn sync(&self) -> Result<()> {
        match &self.live {
            Some(live) => {
                self.sync_origin()?;
                live.outbox.sync(live.outbox.last())
            }
            None => Ok(()),
        }
    }

    /// Where a range of a file lies.
    fn pieces(&self, ino: Ino, offset: u64, len: u64) -> Vec<(u64, Extent)> {
        if let Some(changes) = self.changes.as_ref().filter(|changes| changes.is_touched(ino))
            && let Some(node) = changes.read().node(ino)
            && let Body::File(extents) = &node.body
        {
            return extents.within(offset..offset + len).collect();
        }
        vec![(offset, Extent { len, source: Source::Base(ino, offset) })]
    }
}

fn check_file(ino: Ino, inode: &Inode) -> Result<()> {
    match inode.kind {
        NodeKind::File => Ok(()),
        NodeKind::Directory => Err(Error::IsDirectory(ino)),
        _ => Err(Error::Denied(ino, Denial::Invalid)),
    }
}
