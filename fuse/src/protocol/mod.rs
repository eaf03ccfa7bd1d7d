//! The protocol: what kernel and server say to each other, whatever carries it.
//!
//! FUSE 7.45, as far as a worktree needs it, and back to 7.31. A message comes as a header and
//! arguments ([`Request`]); what its bytes claim is checked before it is used. A reply is written
//! into a buffer of the transport ([`Writer`]), so that neither what is read nor a listing is copied
//! on its way, and what is written is taken from where the kernel put it.
//!
//! Numbers have the byte order of the machine, as the kernel's structures do.

mod init;
mod reply;
mod request;
mod wire;

pub(crate) use init::{Introduction, flag};
pub(crate) use reply::{
    Listing, OPEN_CACHE_LISTING, OPEN_KEEP_CACHE, OPEN_PASSTHROUGH, attributes, entry, no_entry,
    opened, opened_as, statistics,
};
pub(crate) use request::{Copy, Header, Malformed, Op, Request, forgotten};
pub(crate) use wire::{Args, Writer};

/// Length of the header of a request.
pub(crate) const IN_HEADER_BYTES: usize = 40;
/// Length of the header of a reply.
pub(crate) const OUT_HEADER_BYTES: usize = 16;
/// Longest READ or WRITE, and the kernel's own default limit of 256 pages.
pub(crate) const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Room for any request: the longest WRITE with what precedes its data.
pub(crate) const REQUEST_BYTES_MAX: usize = MESSAGE_BYTES_MAX + 4096;

/// The header of a reply with `payload` bytes after it, or of an error, which is a positive errno.
pub(crate) fn out_header(unique: u64, error: i32, payload: usize) -> [u8; OUT_HEADER_BYTES] {
    let mut header = [0; OUT_HEADER_BYTES];
    let mut out = Writer::new(&mut header);
    out.u32((OUT_HEADER_BYTES + payload) as u32);
    // Two's complement: the kernel takes it for a signed number.
    out.u32(error.wrapping_neg() as u32);
    out.u64(unique);
    header
}
