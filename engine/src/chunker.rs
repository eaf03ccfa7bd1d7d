//! Where a file's content is cut: FastCDC, so that an edit moves only the cuts beside it.

use fastcdc::v2020::{Normalization, cut, select_masks};

/// Files up to this many bytes are one chunk.
pub const CHUNK_WHOLE_MAX: usize = 256 * 1024;

// Reading 122 MiB of text in sequence takes the same processor time, some 150 ms, at averages of 128,
// 256 and 512 KiB; a read of 4 KiB anywhere takes 150, 315 and 630 us. Smaller ones cost space: a
// chunk has some 150 bytes of tables, and text compresses less (26 MiB instead of 25 at 128 KiB).
const CHUNK_MIN: usize = 32 * 1024;
const CHUNK_AVERAGE: usize = 128 * 1024;
/// Longest piece that [`Chunker::cut`] makes.
pub(crate) const CHUNK_MAX: usize = 512 * 1024;

/// The cutting rule. It is part of no format: other cuts make other chunks of the same contents.
#[derive(Debug)]
pub(crate) struct Chunker {
    strict: u64,
    relaxed: u64,
}

impl Default for Chunker {
    fn default() -> Self {
        let (strict, relaxed) = select_masks(CHUNK_AVERAGE, Normalization::Level2);
        Self { strict, relaxed }
    }
}

impl Chunker {
    /// The length of the first piece of `bytes`, which must be the whole rest of the content or at
    /// least [`CHUNK_MAX`] of it. Zero only for no bytes.
    pub(crate) fn cut(&self, bytes: &[u8]) -> usize {
        let (strict, relaxed) = (self.strict, self.relaxed);
        let (_, len) = cut(
            bytes,
            CHUNK_MIN,
            CHUNK_AVERAGE,
            CHUNK_MAX,
            strict,
            relaxed,
            strict << 1,
            relaxed << 1,
        );
        len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pieces(bytes: &[u8]) -> Vec<blake3::Hash> {
        let chunker = Chunker::default();
        let mut rest = bytes;
        let mut pieces = Vec::new();
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at(chunker.cut(rest));
            assert!(piece.len() <= CHUNK_MAX);
            assert!(piece.len() >= CHUNK_MIN || tail.is_empty());
            pieces.push(blake3::hash(piece));
            rest = tail;
        }
        pieces
    }

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

        /// Bias: edits of 1 byte and short insertions, anywhere in a file of some 30 chunks.
        #[test]
        fn an_edit_changes_only_the_chunks_beside_it(
            seed: u64,
            at in 0..4_000_000_usize,
            insert in prop::collection::vec(any::<u8>(), 0..40),
        ) {
            let before = noise(seed, 4_000_000);
            let mut after = before.clone();
            after[at] ^= 1;
            after.splice(at..at, insert);
            let known = pieces(&before);
            let new = pieces(&after).iter().filter(|piece| !known.contains(piece)).count();
            prop_assert!(new >= 1);
            prop_assert!(new <= 3, "{new} new chunks");
        }
    }

    #[test]
    fn uniform_bytes_are_cut_at_the_maximum() {
        let zeros = vec![0; 3 * CHUNK_MAX + 5];
        assert_eq!(Chunker::default().cut(&zeros), CHUNK_MAX);
        assert_eq!(pieces(&zeros).len(), 4);
        assert_eq!(Chunker::default().cut(&[]), 0);
    }

    #[test]
    fn a_cut_does_not_depend_on_what_follows_the_maximum() {
        let bytes = noise(7, 3 * CHUNK_MAX);
        let chunker = Chunker::default();
        assert_eq!(chunker.cut(&bytes), chunker.cut(&bytes[..CHUNK_MAX]));
    }
}
