//! The transport over `/dev/fuse`: the handshake, and threads that read requests and write replies.
//!
//! Each read takes one request, each write gives one reply; which thread serves it does not matter.
//! A thread owns one buffer for requests and one for replies. Both are as long as the longest message;
//! what was never used of them takes no memory.

use std::io;
use std::os::fd::OwnedFd;
use std::thread;

use rustix::io::Errno;
use tracing::{debug, error};

use crate::cache::Levers;
use crate::counters::Message;
use crate::ops::Ops;
use crate::probe::KernelFuse;
use crate::protocol::{
    MESSAGE_BYTES_MAX, OUT_HEADER_BYTES, Op, REQUEST_BYTES_MAX, Request, Writer, flag, out_header,
};
use crate::serve::{Outcome, serve};

/// What kernel and server have agreed on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Session {
    /// What the kernel offered.
    pub(crate) kernel: KernelFuse,
    /// Whether requests are to come over io_uring.
    pub(crate) io_uring: bool,
}

/// The capabilities that `levers` ask for.
fn wanted(levers: &Levers, io_uring: bool) -> u64 {
    [
        (io_uring, flag::OVER_IO_URING),
        (levers.readdirplus, flag::DO_READDIRPLUS),
        (levers.parallel_dirops, flag::PARALLEL_DIROPS),
        (levers.cache_symlinks, flag::CACHE_SYMLINKS),
        (levers.explicit_invalidation, flag::EXPLICIT_INVAL_DATA),
        (levers.killpriv, flag::HANDLE_KILLPRIV_V2),
        (levers.writeback_cache, flag::WRITEBACK_CACHE),
    ]
    .into_iter()
    .filter_map(|(on, flag)| on.then_some(flag))
    .fold(0, |all, flag| all | flag)
}

/// Receives the introduction of the kernel, which is the first message of a mount, and answers it; with
/// `io_uring` we are ready for that.
///
/// # Errors
/// If the kernel speaks another protocol or none, or takes no answer.
pub(crate) fn handshake(device: &OwnedFd, ops: &Ops, io_uring: bool) -> io::Result<Session> {
    let mut request = vec![0; REQUEST_BYTES_MAX];
    let len = rustix::io::retry_on_intr(|| rustix::io::read(device, &mut *request))?;
    let request = Request::parse(&request[..len]).map_err(io::Error::other)?;
    let op = request.header.op(request.args).map_err(io::Error::other)?;
    let Op::Init(introduction) = op else {
        return Err(io::Error::other("the kernel does not introduce itself"));
    };
    ops.done(Message::Init);
    let Some(agreement) = introduction.agree(wanted(ops.levers(), io_uring)) else {
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
    Ok(Session { kernel, io_uring: agreement.capabilities & flag::OVER_IO_URING != 0 })
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
    let mut request = vec![0; REQUEST_BYTES_MAX];
    let mut reply = vec![0; OUT_HEADER_BYTES + MESSAGE_BYTES_MAX];
    loop {
        match rustix::io::read(device, &mut *request) {
            Ok(len) => serve_one(device, ops, &request[..len], &mut reply),
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

fn serve_one(device: &OwnedFd, ops: &Ops, request: &[u8], reply: &mut [u8]) {
    let request = match Request::parse(request) {
        Ok(request) => request,
        // Without a header there is nobody to be answered.
        Err(why) => return ops.malformed(0, &why),
    };
    let unique = request.header.unique;
    let (head, payload) = reply.split_at_mut(OUT_HEADER_BYTES);
    let (error, len) = match serve(ops, &request.header, request.args, payload) {
        Outcome::Reply(len) => (0, len),
        Outcome::Refused(errno) => (errno.raw_os_error(), 0),
        Outcome::Nothing => return,
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
}
