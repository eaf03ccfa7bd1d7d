//! Inflating what a file holds, without trusting any of its sizes.

use std::sync::Arc;

use gix::zlib::{Decompress, FlushDecompress, Status};

use super::Fault;
use super::file::{RandomFile, Window};

/// Read from a file at once when more than a small object is inflated.
const FILL_BYTES: usize = 64 << 10;

/// Compares the size that an object states with the most that `compressed` bytes can hold: deflate
/// makes at most 1,032 bytes of one.
pub(super) fn check_stated(size: u64, compressed: u64) -> Result<(), Fault> {
    if size / 1032 <= compressed {
        return Ok(());
    }
    Err(Fault::bad(format!("it states {size} bytes and has at most {compressed} compressed ones")))
}

/// A place in a file from which compressed bytes are taken.
pub(super) struct Input<'a> {
    pub(super) file: &'a RandomFile,
    /// The next byte, and where the bytes end.
    pub(super) at: u64,
    pub(super) end: u64,
}

impl Input<'_> {
    /// Inflates into `out` until it has some bytes or the stream ends; how many it has, and whether
    /// the stream has ended. `fill` is how many bytes to read from the file at once.
    pub(super) fn some(
        &mut self,
        inflate: &mut Decompress,
        window: &mut Window,
        fill: usize,
        out: &mut [u8],
    ) -> Result<(usize, bool), Fault> {
        loop {
            let bytes = window.at(self.file, self.at, self.end, 1, fill)?;
            let (before_in, before_out) = (inflate.total_in(), inflate.total_out());
            let status = inflate
                .decompress(bytes, out, FlushDecompress::None)
                .map_err(|error| Fault::bad(format!("its compressed bytes are wrong: {error}")))?;
            let consumed = inflate.total_in() - before_in;
            let written = (inflate.total_out() - before_out) as usize;
            self.at += consumed;
            match status {
                Status::StreamEnd => return Ok((written, true)),
                _ if written > 0 => return Ok((written, false)),
                _ if consumed == 0 => return Err(Fault::bad("its compressed bytes end too early")),
                _ => {}
            }
        }
    }

    /// Inflates a stream of exactly `size` bytes, which the caller has compared with a limit.
    pub(super) fn exact(
        &mut self,
        inflate: &mut Decompress,
        window: &mut Window,
        size: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), Fault> {
        inflate.reset();
        let size = size as usize;
        out.clear();
        // One byte more than there may be, so that a stream with more shows itself.
        out.resize(size + 1, 0);
        // Compressed bytes are rarely more than inflated ones.
        let fill = (size + 64).min(FILL_BYTES);
        let mut done = 0;
        loop {
            let (written, ended) = self.some(inflate, window, fill, &mut out[done..])?;
            done += written;
            if done > size {
                return Err(Fault::bad(format!(
                    "it inflates to more than the {size} bytes stated"
                )));
            }
            if ended {
                break;
            }
        }
        if done < size {
            return Err(Fault::bad(format!(
                "it inflates to {done} bytes instead of the {size} stated"
            )));
        }
        out.truncate(size);
        Ok(())
    }
}

/// A source of bytes whose number is known, that can be wrong in the ways of a git object.
pub(super) trait Layer: Send {
    /// Puts the next bytes into `out`, which is not empty; 0 only at the end, once it is known that
    /// there are neither more nor fewer bytes than stated.
    fn fill(&mut self, out: &mut [u8]) -> Result<usize, Fault>;
}

/// One compressed stream as it is inflated.
pub(super) struct InflateLayer {
    file: Arc<RandomFile>,
    at: u64,
    end: u64,
    window: Window,
    inflate: Decompress,
    ended: bool,
    left: u64,
}

impl InflateLayer {
    /// The stream from `at`, of `size` bytes when inflated, in a file whose streams end at `end`.
    pub(super) fn new(file: Arc<RandomFile>, at: u64, end: u64, size: u64) -> Self {
        let (window, inflate) = (Window::default(), Decompress::new());
        Self { file, at, end, window, inflate, ended: false, left: size }
    }

    /// Takes one byte from a stream whose size is not known yet; `None` at its end.
    pub(super) fn head_byte(&mut self) -> Result<Option<u8>, Fault> {
        let mut byte = [0];
        Ok((self.some(&mut byte)? == 1).then_some(byte[0]))
    }

    /// States how many bytes are left, once that is known.
    pub(super) fn set_left(&mut self, left: u64) {
        self.left = left;
    }

    fn some(&mut self, out: &mut [u8]) -> Result<usize, Fault> {
        if self.ended {
            return Ok(0);
        }
        let mut input = Input { file: &self.file, at: self.at, end: self.end };
        let result = input.some(&mut self.inflate, &mut self.window, FILL_BYTES, out);
        self.at = input.at;
        let (written, ended) = result?;
        self.ended = ended;
        Ok(written)
    }
}

impl Layer for InflateLayer {
    fn fill(&mut self, out: &mut [u8]) -> Result<usize, Fault> {
        if self.left == 0 {
            return match self.some(&mut [0])? {
                0 => Ok(0),
                _ => Err(Fault::bad("it inflates to more bytes than stated")),
            };
        }
        let len = out.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let written = self.some(&mut out[..len])?;
        if written == 0 {
            return Err(Fault::bad(format!(
                "it inflates to {} bytes fewer than stated",
                self.left
            )));
        }
        self.left -= written as u64;
        Ok(written)
    }
}
