//! The transport over `/dev/fuse`: the handshake, and threads that read requests and write replies.
//!
//! Each read takes one request, each write gives one reply; which thread serves it does not matter.
//! A thread owns one buffer for requests and one for replies. Both are as long as the longest message;
//! what a large message has touched is given back when nothing comes for a while.

use std::io;
use std::os::fd::OwnedFd;
use std::thread;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tracing::{debug, error};

use crate::buffer::Buffer;
use crate::cache::Levers;
use crate::counters::Message;
use crate::ops::Ops;
use crate::probe::KernelFuse;
use crate::protocol::{
    MESSAGE_BYTES_MAX, OUT_HEADER_BYTES, Op, REQUEST_BYTES_MAX, Request, Writer, flag, out_header,
};
use crate::serve::{Outcome, serve};

/// Up to this many bytes of a buffer are kept for the next message.
pub(crate) const KEPT_BYTES: usize = 64 << 10;
/// For how long nothing must come before the rest is given back: those who read or write a large file are done.
pub(crate) const IDLE_SECONDS: u64 = 1;
const IDLE: Timespec = Timespec { tv_sec: IDLE_SECONDS as i64, tv_nsec: 0 };

/// What kernel and server have agreed on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Session {
    /// What the kernel offered.
    pub(crate) kernel: KernelFuse,
    /// Whether requests are to come over io_uring.
    pub(crate) io_uring: bool,
    /// Whether files may be read past us.
    pub(crate) passthrough: bool,
}

/// The capabilities that `levers` ask for.
fn wanted(levers: &Levers, io_uring: bool, passthrough: bool) -> u64 {
    [
        (io_uring, flag::OVER_IO_URING),
        (passthrough, flag::PASSTHROUGH),
        (levers.readdirplus, flag::DO_READDIRPLUS),
        (levers.parallel_dirops, flag::PARALLEL_DIROPS),
        (levers.cache_symlinks, flag::CACHE_SYMLINKS),
        (levers.explicit_invalidation, flag::EXPLICIT_INVAL_DATA),
        (levers.killpriv, flag::HANDLE_KILLPRIV_V2),
        // The kernel has one of both.
        (levers.writeback_cache && !passthrough, flag::WRITEBACK_CACHE),
    ]
    .into_iter()
    .filter_map(|(on, flag)| on.then_some(flag))
    .fold(0, |all, flag| all | flag)
}

/// Receives the introduction of the kernel, which is the first message of a mount, and answers it. Where the
/// kernel offers io_uring, `ready` says whether we are; with `passthrough` we are ready for that.
///
/// # Errors
/// If the kernel speaks another protocol or none, or takes no answer.
pub(crate) fn handshake(
    device: &OwnedFd,
    ops: &Ops,
    ready: impl FnOnce() -> bool,
    passthrough: bool,
) -> io::Result<Session> {
    let mut request = Buffer::new(REQUEST_BYTES_MAX)?;
    let len = rustix::io::retry_on_intr(|| rustix::io::read(device, &mut *request))?;
    let request = Request::parse(&request[..len]).map_err(io::Error::other)?;
    let op = request.header.op(request.args).map_err(io::Error::other)?;
    let Op::Init(introduction) = op else {
        return Err(io::Error::other("the kernel does not introduce itself"));
    };
    ops.done(Message::Init);
    let offered = introduction.capabilities & flag::OVER_IO_URING != 0;
    let io_uring = offered && ready();
    let passthrough = passthrough && introduction.capabilities & flag::PASSTHROUGH != 0;
    let wanted = wanted(ops.levers(), io_uring, passthrough);
    let Some(agreement) = introduction.agree(wanted) else {
        let (major, minor) = (introduction.major, introduction.minor);
        let why = format!("the kernel speaks FUSE {major}.{minor}; 7.31 or a later 7 is needed");
        return Err(io::Error::other(why));
    };
    let mut reply = [0; OUT_HEADER_BYTES + 64];
    let (head, payload) = reply.split_at_mut(OUT_HEADER_BYTES);
    agreement.encode(rustix::param::page_size(), &mut Writer::new(payload));
    head.copy_from_slice(&out_header(request.header.unique, 0, payload.len()));
    rustix::io::write(device, &reply)?;
    let kernel = KernelFuse {
        major: introduction.major,
        minor: introduction.minor,
        capabilities: introduction.capabilities,
    };
    let io_uring = agreement.capabilities & flag::OVER_IO_URING != 0;
    Ok(Session { kernel, io_uring, passthrough })
}

/// Serves the device on `threads` threads, of which the calling one is the first, until the session
/// ends.
pub(crate) fn run(device: &OwnedFd, ops: &Ops, threads: usize) {
    thread::scope(|scope| {
        for number in 1..threads {
            let name = format!("agentfs-fuse-{number}");
            let started = thread::Builder::new().name(name).spawn_scoped(scope, || {
                work(device, ops);
            });
            if let Err(failure) = started {
                error!("a mount is served by {number} of {threads} threads: {failure}");
                break;
            }
        }
        work(device, ops);
    });
}

/// Serves one request after another until the session ends.
fn work(device: &OwnedFd, ops: &Ops) {
    let buffers = Buffer::new(REQUEST_BYTES_MAX)
        .and_then(|request| Ok((request, Buffer::new(OUT_HEADER_BYTES + MESSAGE_BYTES_MAX)?)));
    let (mut request, mut reply) = match buffers {
        Ok(buffers) => buffers,
        Err(failure) => {
            return error!("a thread of a FUSE session ended: no memory for messages: {failure}");
        }
    };
    // Whether a message was large.
    let mut touched = false;
    loop {
        if touched && is_idle(device) {
            request.give_back();
            reply.give_back();
            touched = false;
        }
        match rustix::io::read(device, &mut *request) {
            Ok(len) => {
                let replied = serve_one(device, ops, &request[..len], &mut reply);
                touched |= len.max(replied) > KEPT_BYTES;
            }
            // The request was taken back before we had it, or a signal came.
            Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => {}
            // Unmounted, or aborted.
            Err(Errno::NODEV | Errno::CONNABORTED) => return,
            Err(errno) => {
                error!("a thread of a FUSE session ended: cannot read /dev/fuse: {errno}");
                return;
            }
        }
    }
}

/// Whether no message comes for a while.
fn is_idle(device: &OwnedFd) -> bool {
    let mut coming = [PollFd::new(device, PollFlags::IN)];
    matches!(poll(&mut coming, Some(&IDLE)), Ok(0))
}

/// Answers one request; returns how many bytes of `reply` it took.
fn serve_one(device: &OwnedFd, ops: &Ops, request: &[u8], reply: &mut [u8]) -> usize {
    let request = match Request::parse(request) {
        Ok(request) => request,
        // Without a header there is nobody to be answered.
        Err(why) => {
            ops.malformed(0, &why);
            return 0;
        }
    };
    let unique = request.header.unique;
    let (head, payload) = reply.split_at_mut(OUT_HEADER_BYTES);
    let (error, len) = match serve(ops, &request.header, request.args, payload) {
        Outcome::Reply(len) => (0, len),
        Outcome::Refused(errno) => (errno.raw_os_error(), 0),
        Outcome::Nothing => return 0,
    };
    head.copy_from_slice(&out_header(unique, error, len));
    match rustix::io::write(device, &reply[..OUT_HEADER_BYTES + len]) {
        Ok(_) => {}
        // Whoever asked is gone, or the session is.
        Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED) => {
            debug!("nobody waits for a reply to request {unique} any more");
        }
        Err(errno) => {
            let opcode = request.header.opcode;
            error!("the kernel refused the reply to an operation {opcode}: {errno}");
        }
    }
    len
}
