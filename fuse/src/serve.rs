//! From a request to its reply: which call of [`Ops`] it is, whatever carried it.

use agentfs_engine::Ino;
use rustix::io::Errno;

use crate::counters::Message;
use crate::ops::{Found, Ops, XattrReply};
use crate::protocol::{
    self, Args, Copy, Header, Listing, MESSAGE_BYTES_MAX, OPEN_CACHE_LISTING, OPEN_KEEP_CACHE,
    OPEN_PASSTHROUGH, Op, Writer,
};

/// What is to be sent back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// So many bytes of the buffer.
    Reply(usize),
    /// An errno.
    Refused(Errno),
    /// Nothing: the kernel does not wait for an answer.
    Nothing,
}

/// Serves one request. The payload of the reply is in `out`, which has room for the longest one.
pub(crate) fn serve(ops: &Ops, header: &Header, args: Args<'_>, out: &mut [u8]) -> Outcome {
    let op = match header.op(args) {
        Ok(op) => op,
        Err(why) => {
            ops.malformed(header.opcode, &why);
            return Outcome::Refused(Errno::IO);
        }
    };
    match op {
        Op::Forget { references } => {
            ops.forget(header.node, references);
            return Outcome::Nothing;
        }
        Op::BatchForget(batch) => {
            protocol::forgotten(batch).for_each(|(ino, references)| ops.forget(ino, references));
            return Outcome::Nothing;
        }
        // We never ask for what is in the page cache.
        Op::NotifyReply => return Outcome::Nothing,
        _ => {}
    }
    let mut writer = Writer::new(out);
    let done = if changes(&op) {
        change(ops, header, &op, &mut writer)
    } else {
        answer(ops, header, &op, &mut writer)
    };
    match done.map(|()| writer.finish()) {
        Ok(Some(len)) => Outcome::Reply(len),
        // Only a buffer that is smaller than the transports promise.
        Ok(None) => Outcome::Refused(Errno::IO),
        Err(errno) => Outcome::Refused(errno),
    }
}

/// Whether an operation changes the worktree.
fn changes(op: &Op<'_>) -> bool {
    matches!(
        op,
        Op::Setattr(_)
            | Op::Symlink { .. }
            | Op::Mknod { .. }
            | Op::Mkdir { .. }
            | Op::Unlink { .. }
            | Op::Rmdir { .. }
            | Op::Rename { .. }
            | Op::Link { .. }
            | Op::Write { .. }
            | Op::Setxattr { .. }
            | Op::Removexattr { .. }
            | Op::Create { .. }
            | Op::Tmpfile { .. }
            | Op::Fallocate { .. }
            | Op::CopyFileRange(_)
    )
}

fn answer(ops: &Ops, header: &Header, op: &Op<'_>, out: &mut Writer<'_>) -> Result<(), Errno> {
    let (ino, ttl) = (header.node, ops.levers().ttl());
    match *op {
        Op::Lookup { name } => match ops.lookup(ino, name)? {
            Found::Entry(attributes) => protocol::entry(&attributes, ttl, out),
            Found::Nothing => protocol::no_entry(ttl, out),
        },
        Op::Getattr => protocol::attributes(&ops.attributes(ino)?, ttl, out),
        Op::Readlink => out.bytes(&ops.read_link(ino)?),
        Op::Open { flags } => {
            let opened = ops.open(ino, flags)?;
            let keep = if opened.keep_pages { OPEN_KEEP_CACHE } else { 0 };
            let flags = opened.backing.map_or(keep, |_| OPEN_PASSTHROUGH);
            protocol::opened_as(opened.handle, flags, opened.backing.unwrap_or(0), out);
        }
        Op::Opendir => {
            let keep = OPEN_KEEP_CACHE | OPEN_CACHE_LISTING;
            protocol::opened(if ops.open_directory()? { keep } else { 0 }, out);
        }
        Op::Read { offset, size } => read(ops, ino, offset, size, out)?,
        Op::Readdir { cookie, size } | Op::Readdirplus { cookie, size } => {
            let plus = matches!(op, Op::Readdirplus { .. });
            let mut listing = Listing::new(out, size as usize, plus.then_some(ttl));
            ops.read_directory(ino, cookie, plus, &mut |entry| listing.add(&entry))?;
        }
        Op::Statfs => protocol::statistics(&ops.statistics()?, out),
        Op::Lseek { offset, whence } => out.u64(ops.seek(ino, offset, whence)? as u64),
        Op::Getxattr { name, size } => xattr(&ops.xattr(ino, name, size)?, out),
        Op::Listxattr { size } => xattr(&ops.xattr_names(header.caller, ino, size)?, out),
        Op::Flush => ops.flush()?,
        Op::Fsync => ops.sync(Message::Fsync, ino)?,
        Op::Fsyncdir => ops.sync(Message::Fsyncdir, ino)?,
        Op::Syncfs => ops.sync(Message::Syncfs, ino)?,
        Op::Release { handle } => ops.close(ino, handle),
        Op::Releasedir => ops.done(Message::Releasedir),
        Op::Destroy => ops.done(Message::Destroy),
        Op::Ioctl => return Err(ops.ioctl()),
        Op::Access => return Err(ops.unsupported(Message::Access)),
        Op::Poll => return Err(ops.unsupported(Message::Poll)),
        Op::Bmap => return Err(ops.unsupported(Message::Bmap)),
        Op::Getlk => return Err(ops.unsupported(Message::Getlk)),
        Op::Setlk => return Err(ops.unsupported(Message::Setlk)),
        Op::Statx => return Err(ops.unsupported(Message::Statx)),
        Op::Interrupt => return Err(ops.unsupported(Message::Interrupt)),
        // A second introduction among them.
        _ => return Err(ops.unsupported(Message::Unknown)),
    }
    Ok(())
}

fn change(ops: &Ops, header: &Header, op: &Op<'_>, out: &mut Writer<'_>) -> Result<(), Errno> {
    let Header { node: ino, caller, .. } = *header;
    let ttl = ops.levers().ttl();
    match *op {
        Op::Setattr(ref set) => {
            protocol::attributes(&ops.set_attributes(caller, ino, set)?, ttl, out);
        }
        Op::Mknod { name, mode, device } => {
            protocol::entry(&ops.make_node(caller, ino, name, mode, device)?, ttl, out);
        }
        Op::Mkdir { name, mode } => {
            protocol::entry(&ops.make_directory(caller, ino, name, mode)?, ttl, out);
        }
        Op::Symlink { name, target } => {
            protocol::entry(&ops.make_link(caller, ino, name, target)?, ttl, out);
        }
        Op::Link { ino: linked, name } => {
            protocol::entry(&ops.link(linked, ino, name)?, ttl, out);
        }
        Op::Create { name, mode } => {
            protocol::entry(&ops.create(caller, ino, name, mode)?, ttl, out);
            protocol::opened(OPEN_KEEP_CACHE, out);
        }
        Op::Tmpfile { mode } => {
            protocol::entry(&ops.create_unnamed(caller, ino, mode)?, ttl, out);
            protocol::opened(OPEN_KEEP_CACHE, out);
        }
        Op::Unlink { name } => ops.unlink(ino, name)?,
        Op::Rmdir { name } => ops.remove_directory(ino, name)?,
        Op::Rename { name, new_parent, new_name, flags } => {
            ops.rename(ino, name, new_parent, new_name, flags)?;
        }
        Op::Write { offset, data, kill_set_id } => {
            ops.write(ino, offset, data, kill_set_id)?;
            // The kernel counts in 32 bits as well.
            out.u32(data.len() as u32);
            out.u32(0);
        }
        Op::Fallocate { offset, len, mode } => ops.allocate(caller, ino, mode, offset, len)?,
        Op::CopyFileRange(Copy { from_offset, to, to_offset, len, wide }) => {
            let (from, to) = ((ino, from_offset), (to, to_offset));
            let copied = ops.copy_range(caller, from, to, len, wide)?;
            if wide {
                out.u64(copied);
            } else {
                out.u32(u32::try_from(copied).map_err(|_| Errno::IO)?);
                out.u32(0);
            }
        }
        Op::Setxattr { name, value, flags } => ops.set_xattr(ino, name, value, flags)?,
        Op::Removexattr { name } => ops.remove_xattr(ino, name)?,
        _ => return Err(ops.unsupported(Message::Unknown)),
    }
    Ok(())
}

fn read(ops: &Ops, ino: Ino, offset: u64, size: u32, out: &mut Writer<'_>) -> Result<(), Errno> {
    // The kernel never asks for more than was agreed; a shorter reply would look like the end.
    let size = Some(size as usize).filter(|&size| size <= MESSAGE_BYTES_MAX);
    let room = size.and_then(|size| out.room(size)).ok_or(Errno::INVAL)?;
    let len = ops.read(ino, offset, room)?;
    out.advance(len);
    Ok(())
}

fn xattr(reply: &XattrReply, out: &mut Writer<'_>) {
    match reply {
        XattrReply::Size(size) => {
            out.u32(*size);
            out.u32(0);
        }
        XattrReply::Bytes(bytes) => out.bytes(bytes),
    }
}
