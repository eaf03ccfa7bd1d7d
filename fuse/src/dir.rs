//! Listings as fuser encodes them.
//!
//! Both replies take entries until the kernel's buffer is full; the cookie beside each entry is
//! where the next message resumes. Cookies come from the worktree and mean the same to every reader
//! at any time, so nothing is kept between messages: seekdir, rewinddir and concurrent readers are
//! right by construction.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use agentfs_engine::Ino;
use fuser::{Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus};

use crate::attr;
use crate::ops::Ops;
use crate::reply;

/// Answers READDIR: names, numbers and types.
pub(crate) fn names(ops: &Ops, ino: Ino, cookie: u64, mut reply: ReplyDirectory) {
    let result = ops.read_directory(ino, cookie, false, &mut |entry| {
        let kind = attr::file_type(entry.kind);
        !reply.add(INodeNo(entry.ino.0), entry.cookie, kind, OsStr::from_bytes(entry.name))
    });
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(reply::errno(errno)),
    }
}

/// Answers READDIRPLUS: what READDIR says, and what LOOKUP would say of each entry.
pub(crate) fn entries(ops: &Ops, ino: Ino, cookie: u64, mut reply: ReplyDirectoryPlus) {
    let ttl = ops.levers().ttl();
    let result = ops.read_directory(ino, cookie, true, &mut |entry| {
        let attr = match &entry.attributes {
            Some(attributes) => attr::file_attr(attributes),
            None => attr::nameless(entry.ino, entry.kind),
        };
        let name = OsStr::from_bytes(entry.name);
        !reply.add(attr.ino, entry.cookie, name, &ttl, &attr, Generation(0))
    });
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(reply::errno(errno)),
    }
}
