//! The bytes of a frame: what one record is in a segment. `docs/FORMAT.md` gives them.

use std::hash::Hasher;

use twox_hash::XxHash3_64;

use crate::fields::Fields;
use crate::id::Sequence;
use crate::limits::{OUTBOX_BODY_BYTES_MAX, OUTBOX_HEAD_BYTES_MAX};

/// Length of a frame's header. Head and body follow it.
pub(super) const FRAME_HEADER_BYTES: usize = 48;
const FRAME_MAGIC: [u8; 3] = *b"obx";
const KIND_RECORD: u8 = 1;
const CHECKSUM_AT: usize = FRAME_HEADER_BYTES - 8;

/// Where a frame lies. The checksum of its header covers this, so that the bytes of a frame, when
/// they turn up inside file data or in recycled blocks of the device, are no frame there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) segment: u64,
    pub(super) offset: u64,
}

impl Position {
    fn seed(self) -> u64 {
        self.segment.rotate_left(32) ^ self.offset
    }
}

/// What a frame says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameHeader {
    kind: u8,
    /// The salt of the segment.
    pub(super) salt: u32,
    head_len: u32,
    body_len: u32,
    pub(super) sequence: Sequence,
    /// What was known to be synced when the frame was written.
    pub(super) durable: Sequence,
    payload: u64,
}

impl FrameHeader {
    /// The header of a record whose lengths are within the limits.
    pub(super) fn new(
        salt: u32,
        sequence: Sequence,
        durable: Sequence,
        head_len: usize,
        body_len: usize,
        payload: u64,
    ) -> Self {
        let (head_len, body_len) = (head_len as u32, body_len as u32);
        Self { kind: KIND_RECORD, salt, head_len, body_len, sequence, durable, payload }
    }

    /// The bytes of the header of a frame at `at`.
    pub(super) fn encode(&self, at: Position) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        bytes[..3].copy_from_slice(&FRAME_MAGIC);
        bytes[3] = self.kind;
        bytes[4..8].copy_from_slice(&self.salt.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.head_len.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.body_len.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.0.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.durable.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.payload.to_le_bytes());
        let checksum = XxHash3_64::oneshot_with_seed(at.seed(), &bytes[..CHECKSUM_AT]);
        bytes[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// The header at `at`; `None` if these bytes are not one, or not at this place.
    pub(super) fn decode(bytes: &[u8; FRAME_HEADER_BYTES], at: Position) -> Option<Self> {
        let (fields, checksum) = bytes.split_at(CHECKSUM_AT);
        if !may_begin(fields)
            || checksum != XxHash3_64::oneshot_with_seed(at.seed(), fields).to_le_bytes()
        {
            return None;
        }
        let mut fields = Fields(&fields[FRAME_MAGIC.len()..]);
        Some(Self {
            kind: u8::from_le_bytes(fields.take()?),
            salt: fields.u32()?,
            head_len: fields.u32()?,
            body_len: fields.u32()?,
            sequence: Sequence(fields.u64()?),
            durable: Sequence(fields.u64()?),
            payload: fields.u64()?,
        })
    }

    /// Whether the writer writes such frames at all.
    pub(super) fn is_plausible(&self) -> bool {
        self.kind == KIND_RECORD
            && self.durable < self.sequence
            && self.head_len() <= OUTBOX_HEAD_BYTES_MAX
            && self.body_len() <= OUTBOX_BODY_BYTES_MAX as u64
    }

    /// Length of the head in bytes.
    pub(super) fn head_len(&self) -> usize {
        self.head_len as usize
    }

    /// Length of the body in bytes.
    pub(super) fn body_len(&self) -> u64 {
        u64::from(self.body_len)
    }

    /// Length of the frame in bytes.
    pub(super) fn frame_len(&self) -> u64 {
        FRAME_HEADER_BYTES as u64 + u64::from(self.head_len) + self.body_len()
    }

    /// Whether the frame was written with the payload of this checksum.
    pub(super) fn holds(&self, payload: u64) -> bool {
        self.payload == payload
    }
}

/// Whether a frame's header may begin with these bytes.
pub(super) fn may_begin(bytes: &[u8]) -> bool {
    bytes.starts_with(&FRAME_MAGIC)
}

/// The checksum of a payload: of the body, seeded with that of the head, so that a body in one
/// piece needs no streaming state.
pub(super) fn checksum(head: &[u8], body: &[&[u8]]) -> u64 {
    let seed = XxHash3_64::oneshot(head);
    match body {
        [] => XxHash3_64::oneshot_with_seed(seed, &[]),
        [whole] => XxHash3_64::oneshot_with_seed(seed, whole),
        pieces => {
            let mut sum = PayloadSum::new(head);
            pieces.iter().for_each(|piece| sum.add(piece));
            sum.finish()
        }
    }
}

/// [`checksum`] of a body that comes in pieces.
pub(super) struct PayloadSum(XxHash3_64);

impl PayloadSum {
    pub(super) fn new(head: &[u8]) -> Self {
        Self(XxHash3_64::with_seed(XxHash3_64::oneshot(head)))
    }

    pub(super) fn add(&mut self, piece: &[u8]) {
        self.0.write(piece);
    }

    pub(super) fn finish(self) -> u64 {
        self.0.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const AT: Position = Position { segment: 3, offset: 4096 };

    fn header() -> FrameHeader {
        FrameHeader::new(77, Sequence(9), Sequence(5), 4, 9, checksum(b"head", &[b"some body"]))
    }

    #[test]
    fn a_header_reads_back_at_its_place_and_nowhere_else() {
        let header = header();
        let bytes = header.encode(AT);
        assert_eq!(FrameHeader::decode(&bytes, AT), Some(header));
        assert!(header.is_plausible());
        assert_eq!(header.frame_len(), FRAME_HEADER_BYTES as u64 + 13);
        for elsewhere in [Position { segment: 4, ..AT }, Position { offset: 4097, ..AT }] {
            assert_eq!(FrameHeader::decode(&bytes, elsewhere), None);
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let bytes = header().encode(AT);
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FrameHeader::decode(&bad, AT), None, "bit {bit}");
        }
    }

    #[test]
    fn what_the_writer_never_writes_is_implausible() {
        let good = header();
        assert!(!FrameHeader { kind: 2, ..good }.is_plausible());
        assert!(!FrameHeader { durable: good.sequence, ..good }.is_plausible());
        let long = OUTBOX_HEAD_BYTES_MAX as u32 + 1;
        assert!(!FrameHeader { head_len: long, ..good }.is_plausible());
        let long = OUTBOX_BODY_BYTES_MAX as u32 + 1;
        assert!(!FrameHeader { body_len: long, ..good }.is_plausible());
    }

    #[test]
    fn the_checksum_depends_on_every_byte_and_not_on_the_pieces() {
        let whole = checksum(b"head", &[b"some body"]);
        assert!(header().holds(whole));
        assert_eq!(checksum(b"head", &[b"so", b"", b"me bo", b"dy"]), whole);
        assert_eq!(checksum(b"head", &[]), checksum(b"head", &[b"", b""]));
        assert_ne!(checksum(b"Head", &[b"some body"]), whole);
        assert_ne!(checksum(b"head", &[b"some bodY"]), whole);
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(
            bytes in prop::array::uniform32(any::<u8>()),
            more in prop::array::uniform16(any::<u8>()),
        ) {
            let mut all = [0; FRAME_HEADER_BYTES];
            all[..32].copy_from_slice(&bytes);
            all[32..].copy_from_slice(&more);
            all[..3].copy_from_slice(&FRAME_MAGIC);
            prop_assert_eq!(FrameHeader::decode(&all, AT), None);
        }
    }
}
