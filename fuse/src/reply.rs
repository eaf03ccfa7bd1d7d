//! Results as replies of fuser: what every kind of reply says in success, and the errno otherwise.

use std::time::Duration;

use agentfs_engine::worktree::Attributes;
use fuser::{
    FileHandle, FopenFlags, Generation, ReplyAttr, ReplyCreate, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyXattr,
};
use rustix::io::Errno;

use crate::attr;
use crate::ops::XattrReply;

/// Our errno as fuser's.
pub(crate) fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(errno.raw_os_error())
}

pub(crate) fn empty(result: Result<(), Errno>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(refusal) => reply.error(errno(refusal)),
    }
}

pub(crate) fn data(result: Result<Vec<u8>, Errno>, reply: ReplyData) {
    match result {
        Ok(bytes) => reply.data(&bytes),
        Err(refusal) => reply.error(errno(refusal)),
    }
}

pub(crate) fn attr(result: Result<Attributes, Errno>, ttl: Duration, reply: ReplyAttr) {
    match result {
        Ok(attributes) => reply.attr(&ttl, &attr::file_attr(&attributes)),
        Err(refusal) => reply.error(errno(refusal)),
    }
}

/// Inode numbers are never used again, so that one generation is enough for each.
pub(crate) fn entry(result: Result<Attributes, Errno>, ttl: Duration, reply: ReplyEntry) {
    match result {
        Ok(attributes) => reply.entry(&ttl, &attr::file_attr(&attributes), Generation(0)),
        Err(refusal) => reply.error(errno(refusal)),
    }
}

/// A file that was made, and is open.
pub(crate) fn created(result: Result<Attributes, Errno>, ttl: Duration, reply: ReplyCreate) {
    match result {
        Ok(attributes) => {
            let attr = attr::file_attr(&attributes);
            reply.created(&ttl, &attr, Generation(0), FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
        }
        Err(refusal) => reply.error(errno(refusal)),
    }
}

/// `result` says whether the kernel is to `keep`.
pub(crate) fn opened(result: Result<bool, Errno>, keep: FopenFlags, reply: ReplyOpen) {
    match result {
        Ok(kept) => {
            reply.opened(FileHandle(0), if kept { keep } else { FopenFlags::empty() });
        }
        Err(refusal) => reply.error(errno(refusal)),
    }
}

pub(crate) fn xattr(result: Result<XattrReply, Errno>, reply: ReplyXattr) {
    match result {
        Ok(XattrReply::Size(size)) => reply.size(size),
        Ok(XattrReply::Bytes(bytes)) => reply.data(&bytes),
        Err(refusal) => reply.error(errno(refusal)),
    }
}
