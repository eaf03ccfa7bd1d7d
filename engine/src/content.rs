//! File contents on their way into the store: cut, hashed and compressed.

use std::io::{ErrorKind, Read};

use crate::chunker::{CHUNK_MAX, Chunker};
use crate::encoding::Encoder;
use crate::error::{Error, Result};
use crate::id::{ChunkId, ContentId};

pub use crate::chunker::CHUNK_WHOLE_MAX;
pub use crate::encoding::Encoding;

/// A chunk ready to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedChunk {
    /// The blake3 of its bytes.
    pub id: ChunkId,
    /// Number of its bytes.
    pub raw_len: u32,
    /// How `stored` holds them.
    pub encoding: Encoding,
    /// The bytes to store.
    pub stored: Vec<u8>,
}

/// A file's content ready to be stored. The empty file has no chunks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreparedContent {
    /// The blake3 of the whole file.
    pub id: ContentId,
    /// Its size in bytes.
    pub size: u64,
    /// Its chunks in order.
    pub chunks: Vec<PreparedChunk>,
}

/// What [`Preparer::stream`] leaves to be stored once all chunks are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamedContent {
    /// The blake3 of the whole file.
    pub id: ContentId,
    /// Its size in bytes.
    pub size: u64,
    /// Its chunks in order, each with its number of bytes.
    pub chunks: Vec<(ChunkId, u32)>,
}

impl PreparedContent {
    /// Its manifest.
    pub fn manifest(&self) -> StreamedContent {
        let chunks = self.chunks.iter().map(|chunk| (chunk.id, chunk.raw_len)).collect();
        StreamedContent { id: self.id, size: self.size, chunks }
    }
}

/// Cuts, hashes and compresses. One per thread: it owns the compression context and its buffers.
#[derive(Debug, Default)]
pub struct Preparer {
    chunker: Chunker,
    encoder: Encoder,
    /// What a stream is read into, kept for the next one: made anew, it would cost more than a small file.
    buffer: Vec<u8>,
}

impl Preparer {
    /// A preparer with fresh buffers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Prepares a content that is in memory.
    pub fn content(&mut self, bytes: &[u8]) -> PreparedContent {
        let id = ContentId::of(bytes);
        let size = bytes.len() as u64;
        let mut chunks = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at(self.next_cut(rest, chunks.is_empty()));
            let known = (piece.len() == bytes.len()).then(|| id.into());
            chunks.push(self.chunk(piece, known));
            rest = tail;
        }
        PreparedContent { id, size, chunks }
    }

    /// Prepares a content as it arrives; `sink` gets each chunk as soon as it is finished. Memory
    /// is bounded by a few chunks. The chunks are those that [`Preparer::content`] makes.
    ///
    /// # Errors
    /// [`Error::Stream`] if `reader` fails, or what `sink` returns.
    pub fn stream(
        &mut self,
        reader: &mut dyn Read,
        sink: &mut dyn FnMut(PreparedChunk) -> Result<()>,
    ) -> Result<StreamedContent> {
        let mut whole = blake3::Hasher::new();
        let mut chunks = Vec::new();
        let mut size = 0;
        self.pieces(reader, &mut |chunk, piece| {
            whole.update(piece);
            chunks.push((chunk.id, chunk.raw_len));
            size += piece.len() as u64;
            sink(chunk)
        })?;
        Ok(StreamedContent { id: ContentId::new(*whole.finalize().as_bytes()), size, chunks })
    }

    /// The chunks of [`Preparer::stream`], for which nobody asks what they are together.
    ///
    /// # Errors
    /// As [`Preparer::stream`].
    pub(crate) fn chunks(
        &mut self,
        reader: &mut dyn Read,
        sink: &mut dyn FnMut(PreparedChunk) -> Result<()>,
    ) -> Result<()> {
        self.pieces(reader, &mut |chunk, _| sink(chunk))
    }

    /// Hands each chunk to `sink`, with its bytes.
    fn pieces(
        &mut self,
        reader: &mut dyn Read,
        sink: &mut dyn FnMut(PreparedChunk, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut window = Window::new(std::mem::take(&mut self.buffer));
        let done = self.pieces_of(&mut window, reader, sink);
        self.buffer = window.buffer;
        done
    }

    fn pieces_of(
        &mut self,
        window: &mut Window,
        reader: &mut dyn Read,
        sink: &mut dyn FnMut(PreparedChunk, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut first = true;
        loop {
            window.fill(reader)?;
            let bytes = window.bytes();
            if bytes.is_empty() {
                return Ok(());
            }
            let piece = &bytes[..self.next_cut(bytes, first)];
            first = false;
            sink(self.chunk(piece, None), piece)?;
            window.start += piece.len();
        }
    }

    /// The length of the next chunk, given the rest of the content or [`CHUNK_MAX`] of it.
    fn next_cut(&self, rest: &[u8], first: bool) -> usize {
        if first && rest.len() <= CHUNK_WHOLE_MAX { rest.len() } else { self.chunker.cut(rest) }
    }

    fn chunk(&mut self, bytes: &[u8], known: Option<ChunkId>) -> PreparedChunk {
        let id = known.unwrap_or_else(|| ChunkId::of(bytes));
        let (encoding, stored) = self.encoder.encode(bytes);
        PreparedChunk { id, raw_len: bytes.len() as u32, encoding, stored }
    }
}

/// The part of a stream that is in memory: at least [`CHUNK_MAX`] bytes or all that is left.
struct Window {
    /// As long as it can be; the bytes are in `start..end`, others are of earlier.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    ended: bool,
}

impl Window {
    fn new(mut buffer: Vec<u8>) -> Self {
        // Reading two chunks ahead halves the moves to the front.
        buffer.resize(2 * CHUNK_MAX, 0);
        Self { buffer, start: 0, end: 0, ended: false }
    }

    fn bytes(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    fn fill(&mut self, reader: &mut dyn Read) -> Result<()> {
        if self.ended || self.bytes().len() >= CHUNK_MAX {
            return Ok(());
        }
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        while self.end < self.buffer.len() {
            match reader.read(&mut self.buffer[self.end..]) {
                Ok(0) => {
                    self.ended = true;
                    break;
                }
                Ok(read) => self.end += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::Stream(error)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encoding::Decoder;
    use proptest::prelude::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        bytes
    }

    fn bytes_of(chunk: &PreparedChunk) -> Vec<u8> {
        let mut out = vec![0; chunk.raw_len as usize];
        Decoder::default().decode(chunk.encoding, &chunk.stored, &mut out).unwrap();
        out
    }

    /// Gives at most `step` bytes a read, with interruptions, then ends or fails.
    struct Dribble<'a> {
        rest: &'a [u8],
        step: usize,
        interrupted: bool,
        fail: bool,
    }

    impl Read for Dribble<'_> {
        fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
            self.interrupted = !self.interrupted;
            if self.interrupted {
                return Err(ErrorKind::Interrupted.into());
            }
            if self.rest.is_empty() && self.fail {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let len = self.step.min(out.len()).min(self.rest.len());
            out[..len].copy_from_slice(&self.rest[..len]);
            self.rest = &self.rest[len..];
            Ok(len)
        }
    }

    #[test]
    fn one_content_after_another_is_itself_and_takes_no_other_buffer() {
        let mut preparer = Preparer::new();
        let large = noise(3 * CHUNK_MAX + 17);
        let mut buffer = None;
        for bytes in [&large[..], b"small", b"", &large[5..], b"x"] {
            let mut reader = Dribble { rest: bytes, step: 70_001, interrupted: false, fail: false };
            let streamed = preparer.stream(&mut reader, &mut |_| Ok(())).unwrap();
            assert_eq!(streamed, Preparer::new().content(bytes).manifest());
            let now = (preparer.buffer.as_ptr(), preparer.buffer.len());
            assert_eq!(*buffer.get_or_insert(now), now);
        }
        // Nor after one that fails.
        let mut reader = Dribble { rest: &large, step: 70_001, interrupted: false, fail: true };
        assert!(preparer.stream(&mut reader, &mut |_| Ok(())).is_err());
        assert_eq!(preparer.buffer.as_ptr(), buffer.unwrap().0);
    }

    #[test]
    fn an_empty_file_has_no_chunks() {
        let content = Preparer::new().content(b"");
        assert_eq!(content.id, ContentId::of(b""));
        assert_eq!((content.size, content.chunks.len()), (0, 0));
        let streamed = Preparer::new().stream(&mut &b""[..], &mut |_| Ok(())).unwrap();
        assert_eq!(streamed, content.manifest());
    }

    #[test]
    fn a_small_file_is_one_chunk_of_the_same_digest() {
        for len in [1, 63, 64, 4096, CHUNK_WHOLE_MAX] {
            let bytes = noise(len);
            let content = Preparer::new().content(&bytes);
            assert_eq!(content.chunks.len(), 1);
            assert_eq!(content.chunks[0].id, content.id.into());
            assert_eq!(content.chunks[0].id, ChunkId::of(&bytes));
        }
        assert!(Preparer::new().content(&noise(CHUNK_MAX + 1)).chunks.len() > 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        /// Bias: sizes around the bounds at which the rule changes.
        #[test]
        fn streaming_makes_the_same_chunks(
            size in prop_oneof![
                0..200_000_usize,
                CHUNK_WHOLE_MAX - 3..CHUNK_WHOLE_MAX + 3,
                2 * CHUNK_MAX - 3..2 * CHUNK_MAX + 3,
                0..4_000_000_usize,
            ],
            step in prop_oneof![5_000..9_000_usize, 1..5_000_000_usize],
        ) {
            let bytes = noise(size);
            let mut preparer = Preparer::new();
            let whole = preparer.content(&bytes);
            let mut chunks = Vec::new();
            let mut reader = Dribble { rest: &bytes, step, interrupted: false, fail: false };
            let streamed = preparer
                .stream(&mut reader, &mut |chunk| {
                    chunks.push(chunk);
                    Ok(())
                })
                .unwrap();
            prop_assert_eq!(&streamed, &whole.manifest());
            prop_assert_eq!(&chunks, &whole.chunks);
            let joined: Vec<u8> = chunks.iter().flat_map(bytes_of).collect();
            prop_assert_eq!(joined, bytes);
        }
    }

    #[test]
    fn a_failing_reader_or_sink_ends_the_stream() {
        let bytes = noise(3 * CHUNK_MAX);
        let mut reader = Dribble { rest: &bytes, step: 99_999, interrupted: false, fail: true };
        let result = Preparer::new().stream(&mut reader, &mut |_| Ok(()));
        assert!(matches!(result, Err(Error::Stream(_))));
        let result = Preparer::new().stream(&mut &bytes[..], &mut |_| Err(Error::Cancelled));
        assert!(matches!(result, Err(Error::Cancelled)));
    }
}
