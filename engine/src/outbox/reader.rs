//! Reads the frames of a segment one after the other, with bounded memory.

use std::io;
use std::ops::ControlFlow;

use super::frame::{FRAME_HEADER_BYTES, FrameHeader, PayloadSum, Position, checksum, may_begin};
use super::segment::SEGMENT_HEADER_BYTES;
use crate::id::Sequence;
use crate::storage::File;

/// Bytes read at a time.
const PIECE_BYTES: usize = 256 << 10;

/// A frame whose checksums are right and whose bytes the writer may have written.
#[derive(Debug)]
pub(super) struct Frame<'a> {
    pub(super) durable: Sequence,
    pub(super) head: &'a [u8],
    /// Offset of the body.
    pub(super) body_at: u64,
    pub(super) body_len: u64,
}

/// What lies where a frame should begin: the rows F2 to F5 of the decision table.
#[derive(Debug)]
pub(super) enum Found<'a> {
    /// F2: the end of the file.
    End,
    /// F3: the frame that was expected.
    Frame(Frame<'a>),
    /// F4: what no crash can leave behind, and what it is.
    Foreign(String),
    /// F5: what a write that was not synced can leave behind, and why it is no frame.
    Torn(&'static str),
}

/// A segment file being read.
pub(super) struct Reader<'a> {
    file: &'a dyn File,
    segment: u64,
    len: u64,
    /// Where the next frame begins.
    at: u64,
    /// Bytes of the file from `start` on.
    buffer: Vec<u8>,
    start: u64,
    /// The head of a frame that is longer than a piece.
    head: Vec<u8>,
}

impl<'a> Reader<'a> {
    /// A reader of the frames of segment `segment`, whose file has `len` bytes.
    pub(super) fn new(file: &'a dyn File, segment: u64, len: u64) -> Self {
        let at = SEGMENT_HEADER_BYTES as u64;
        Self { file, segment, len, at, buffer: Vec::new(), start: 0, head: Vec::new() }
    }

    /// The same, but the next frame begins at `offset`.
    pub(super) fn at(self, offset: u64) -> Self {
        Self { at: offset, ..self }
    }

    /// Where the next frame begins.
    pub(super) fn offset(&self) -> u64 {
        self.at
    }

    /// Reads the next frame, which should have this sequence and the segment's salt. After anything
    /// but a frame the reader stays where it is.
    pub(super) fn next(&mut self, sequence: Sequence, salt: u32) -> io::Result<Found<'_>> {
        if self.at >= self.len {
            return Ok(Found::End);
        }
        let Some(header) = self.header(self.at)? else {
            return Ok(Found::Torn("no frame begins there"));
        };
        if header.salt != salt {
            return Ok(Found::Torn("the frame belongs to another segment"));
        }
        if !header.is_plausible() {
            return Ok(Found::Foreign("the frame is of unknown kind or length".into()));
        }
        if header.sequence != sequence {
            let found = header.sequence;
            return Ok(Found::Foreign(format!("it holds record {found} instead")));
        }
        if header.frame_len() > self.len - self.at {
            return Ok(Found::Torn("the file ends within the frame"));
        }
        let head_at = self.at + FRAME_HEADER_BYTES as u64;
        let body_at = head_at + header.head_len() as u64;
        let next = self.at + header.frame_len();
        let payload_len = (next - head_at) as usize;
        let long = payload_len > PIECE_BYTES - FRAME_HEADER_BYTES;
        let payload = if long {
            self.long_payload(&header, head_at, body_at)?
        } else {
            let (head, body) = self.bytes(head_at, payload_len)?.split_at(header.head_len());
            checksum(head, &[body])
        };
        if !header.holds(payload) {
            return Ok(Found::Torn("the checksum of the record is wrong"));
        }
        self.at = next;
        let head = match long {
            true => &self.head,
            false => self.bytes(head_at, header.head_len())?,
        };
        let (durable, body_len) = (header.durable, header.body_len());
        Ok(Found::Frame(Frame { durable, head, body_at, body_len }))
    }

    /// The offset of the record `sequence`, if only intact headers stand before it. For a segment
    /// whose frames were read before.
    pub(super) fn find(&mut self, sequence: Sequence) -> io::Result<Option<u64>> {
        while let Some(header) = self.header(self.at)? {
            if header.sequence >= sequence {
                return Ok(Some(self.at));
            }
            self.at += header.frame_len();
        }
        Ok(None)
    }

    /// The highest durable sequence that any frame header from `from` on states, wherever it begins.
    /// Without a `salt`, since the header of the segment is gone, that of the frame is not checked.
    pub(super) fn stated(&mut self, from: u64, salt: Option<u32>) -> io::Result<Sequence> {
        let mut stated = Sequence::NONE;
        self.scan(from, salt, |_, header| {
            stated = stated.max(header.durable);
            ControlFlow::Continue(())
        })?;
        Ok(stated)
    }

    /// The first offset from `from` on at which there is a frame header, of this salt if one is given, and that header.
    pub(super) fn seek(
        &mut self,
        from: u64,
        salt: Option<u32>,
    ) -> io::Result<Option<(u64, FrameHeader)>> {
        let mut found = None;
        self.scan(from, salt, |offset, header| {
            found = Some((offset, header));
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    /// Calls `visit` for the frame headers from `from` on, wherever they begin.
    fn scan(
        &mut self,
        from: u64,
        salt: Option<u32>,
        mut visit: impl FnMut(u64, FrameHeader) -> ControlFlow<()>,
    ) -> io::Result<()> {
        let mut at = from;
        while at + FRAME_HEADER_BYTES as u64 <= self.len {
            let wanted = (self.len - at).min(PIECE_BYTES as u64) as usize;
            let segment = self.segment;
            let bytes = self.bytes(at, wanted)?;
            for (index, window) in bytes.windows(FRAME_HEADER_BYTES).enumerate() {
                let Some(window) = window.first_chunk().filter(|window| may_begin(*window)) else {
                    continue;
                };
                let offset = at + index as u64;
                let header = FrameHeader::decode(window, Position { segment, offset });
                let ours = header.filter(|header| {
                    header.is_plausible() && salt.is_none_or(|salt| header.salt == salt)
                });
                if ours.is_some_and(|header| visit(offset, header).is_break()) {
                    return Ok(());
                }
            }
            at += (wanted - FRAME_HEADER_BYTES + 1) as u64;
        }
        Ok(())
    }

    /// The intact frame header at `at`.
    fn header(&mut self, at: u64) -> io::Result<Option<FrameHeader>> {
        if self.len.saturating_sub(at) < FRAME_HEADER_BYTES as u64 {
            return Ok(None);
        }
        let position = Position { segment: self.segment, offset: at };
        let bytes = self.bytes(at, FRAME_HEADER_BYTES)?;
        Ok(bytes.first_chunk().and_then(|bytes| FrameHeader::decode(bytes, position)))
    }

    /// The checksum of a payload that is longer than a piece. Its head is left in `self.head`.
    fn long_payload(
        &mut self,
        header: &FrameHeader,
        head_at: u64,
        body_at: u64,
    ) -> io::Result<u64> {
        self.head.resize(header.head_len(), 0);
        self.file.read_at(head_at, &mut self.head)?;
        let mut sum = PayloadSum::new(&self.head);
        let end = body_at + header.body_len();
        let mut at = body_at;
        while at < end {
            let len = (end - at).min(PIECE_BYTES as u64) as usize;
            sum.add(self.bytes(at, len)?);
            at += len as u64;
        }
        Ok(sum.finish())
    }

    /// `len` bytes of the file at `at`, at most a piece, which must be there.
    fn bytes(&mut self, at: u64, len: usize) -> io::Result<&[u8]> {
        let held = self.start..self.start + self.buffer.len() as u64;
        if at < held.start || at + len as u64 > held.end {
            let ahead = (self.len - at).min(PIECE_BYTES as u64) as usize;
            self.buffer.resize(ahead.max(len), 0);
            self.start = at;
            self.file.read_at(at, &mut self.buffer)?;
        }
        let from = (at - self.start) as usize;
        Ok(&self.buffer[from..from + len])
    }
}
