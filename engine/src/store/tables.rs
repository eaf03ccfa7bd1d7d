//! The tables of the database: their names, keys and values. `docs/FORMAT.md` gives the bytes.
//!
//! The value of a chunk or tree is its place, which needs no checksum: what lies there is verified
//! by its digest. All other values are sealed: they end in a checksum of the key and themselves,
//! since redb verifies nothing when it reads.

use crate::content::{Encoding, StreamedContent};
use crate::error::{Error, Result};
use crate::fields::Fields;
use crate::id::{ChunkId, ContentId, GitOid, HashKind, TreeId};
use crate::tree::Subtree;

/// A table. Keys and values are byte strings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    /// Chunk id -> place.
    Chunks,
    /// Tree id -> place.
    Trees,
    /// Content id -> manifest, for contents of more than one chunk.
    Manifests,
    /// Git blob -> content.
    Blobs,
    /// Content and hash algorithm -> git blob.
    Contents,
    /// Git tree and conversion context -> tree.
    GitTrees,
    /// Name -> repository.
    Repositories,
    /// Repository, NUL, name -> branch.
    Branches,
    /// Directory -> worktree.
    Worktrees,
    /// Branch number -> the layer that takes its changes, and how far it is drained.
    Heads,
    /// Layer number -> the layer below it, or where it waits to be drained.
    Layers,
    /// Layer number, inode -> changed inode.
    LayerInodes,
    /// Layer number, directory, name -> changed entry.
    LayerEntries,
    /// Branch number, snapshot number -> snapshot.
    Snapshots,
    /// Facts about the store itself.
    Meta,
}

impl Table {
    pub(crate) const ALL: [Self; 15] = [
        Self::Chunks,
        Self::Trees,
        Self::Manifests,
        Self::Blobs,
        Self::Contents,
        Self::GitTrees,
        Self::Repositories,
        Self::Branches,
        Self::Worktrees,
        Self::Heads,
        Self::Layers,
        Self::LayerInodes,
        Self::LayerEntries,
        Self::Snapshots,
        Self::Meta,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Chunks => "chunks",
            Self::Trees => "trees",
            Self::Manifests => "manifests",
            Self::Blobs => "blobs",
            Self::Contents => "contents",
            Self::GitTrees => "git-trees",
            Self::Repositories => "repositories",
            Self::Branches => "branches",
            Self::Worktrees => "worktrees",
            Self::Heads => "heads",
            Self::Layers => "layers",
            Self::LayerInodes => "layer-inodes",
            Self::LayerEntries => "layer-entries",
            Self::Snapshots => "snapshots",
            Self::Meta => "meta",
        }
    }
}

/// Key in [`Table::Meta`] of the version of the format.
pub(super) const META_FORMAT: &[u8] = b"format";
/// Key in [`Table::Meta`] that is there if the database is to be compacted when it is opened.
pub(super) const META_COMPACT: &[u8] = b"compact";
/// Key in [`Table::Meta`] of the end of what is stored in segments.
pub(super) const META_TAIL: &[u8] = b"tail";

/// A chunk or a tree: what segments hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Object {
    /// A chunk of a content.
    Chunk(ChunkId),
    /// A directory object.
    Tree(TreeId),
}

impl Object {
    pub(crate) fn id(&self) -> &[u8; 32] {
        match self {
            Self::Chunk(id) => id.as_bytes(),
            Self::Tree(id) => id.as_bytes(),
        }
    }

    pub(crate) fn table(&self) -> Table {
        match self {
            Self::Chunk(_) => Table::Chunks,
            Self::Tree(_) => Table::Trees,
        }
    }

    /// The most bytes that it may have.
    pub(crate) fn limit(&self) -> u64 {
        match self {
            Self::Chunk(_) => u64::from(crate::limits::CHUNK_BYTES_MAX),
            Self::Tree(_) => crate::limits::TREE_BYTES_MAX,
        }
    }

    pub(crate) fn missing(&self) -> Error {
        match *self {
            Self::Chunk(id) => Error::MissingChunk(id),
            Self::Tree(id) => Error::MissingTree(id),
        }
    }

    pub(crate) fn corrupt_at(&self, at: &At<'_>, why: impl Into<String>) -> Error {
        Error::corrupt(format!("{self} {at}"), why)
    }
}

impl std::fmt::Display for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Chunk(id) => write!(f, "chunk {id}"),
            Self::Tree(id) => write!(f, "tree {id}"),
        }
    }
}

/// A record in a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Extent {
    pub(crate) segment: u32,
    /// Where its header begins.
    pub(crate) offset: u32,
    /// Length of its payload.
    pub(crate) stored_len: u32,
}

/// Where a payload lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At<'a> {
    /// In the value itself.
    Inline(&'a [u8]),
    /// In a segment file.
    Segment(Extent),
}

impl std::fmt::Display for At<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Inline(_) => f.write_str("in the database"),
            Self::Segment(extent) => {
                write!(f, "at offset {} of segment {}", extent.offset, extent.segment)
            }
        }
    }
}

/// Where and how a chunk or tree is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place<'a> {
    pub(crate) encoding: Encoding,
    pub(crate) raw_len: u32,
    pub(crate) at: At<'a>,
}

const PLACE_INLINE: u8 = 0;
const PLACE_SEGMENT: u8 = 1;

impl<'a> Place<'a> {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(18);
        let mut start = |tag| {
            bytes.extend_from_slice(&[tag, self.encoding.tag()]);
            bytes.extend_from_slice(&self.raw_len.to_le_bytes());
        };
        match self.at {
            At::Inline(payload) => {
                start(PLACE_INLINE);
                bytes.extend_from_slice(payload);
            }
            At::Segment(Extent { segment, offset, stored_len }) => {
                start(PLACE_SEGMENT);
                for field in [segment, offset, stored_len] {
                    bytes.extend_from_slice(&field.to_le_bytes());
                }
            }
        }
        bytes
    }

    /// Decodes the value of `object`.
    pub(crate) fn decode(object: &Object, value: &'a [u8]) -> Result<Self> {
        let bad = |why: &str| Error::corrupt(format!("the place of {object}"), why);
        let mut fields = Fields(value);
        let (tag, encoding, raw_len) = fields
            .take::<2>()
            .zip(fields.u32())
            .map(|([tag, encoding], raw_len)| (tag, encoding, raw_len))
            .ok_or_else(|| bad("it is too short"))?;
        let encoding = Encoding::from_tag(encoding).ok_or_else(|| bad("unknown encoding"))?;
        if u64::from(raw_len) > object.limit() {
            return Err(bad("it states an impossible length"));
        }
        let at = match tag {
            PLACE_INLINE => At::Inline(fields.0),
            PLACE_SEGMENT => {
                let extent = (|| {
                    let (segment, offset) = (fields.u32()?, fields.u32()?);
                    Some(Extent { segment, offset, stored_len: fields.u32()? })
                })();
                At::Segment(
                    extent
                        .filter(|_| fields.0.is_empty())
                        .ok_or_else(|| bad("its length is wrong"))?,
                )
            }
            _ => return Err(bad("unknown kind of place")),
        };
        let place = Self { encoding, raw_len, at };
        // Compression is used only where it gains, so a longer payload cannot be right.
        if place.stored_len() > u64::from(raw_len) {
            return Err(bad("it states an impossible length"));
        }
        Ok(place)
    }

    pub(crate) fn stored_len(&self) -> u64 {
        match self.at {
            At::Inline(payload) => payload.len() as u64,
            At::Segment(extent) => u64::from(extent.stored_len),
        }
    }
}

pub(super) const SEAL_BYTES: usize = 8;

fn seal_of(key: &[u8], value: &[u8]) -> [u8; SEAL_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(key).update(value);
    let mut seal = [0; SEAL_BYTES];
    hasher.finalize_xof().fill(&mut seal);
    seal
}

/// `value` with the checksum that [`unseal`] verifies.
pub(super) fn seal(key: &[u8], mut value: Vec<u8>) -> Vec<u8> {
    let seal = seal_of(key, &value);
    value.extend_from_slice(&seal);
    value
}

/// The value under `sealed`.
pub(crate) fn unseal<'a>(table: Table, key: &[u8], sealed: &'a [u8]) -> Result<&'a [u8]> {
    match sealed.split_last_chunk::<SEAL_BYTES>() {
        Some((value, seal)) if *seal == seal_of(key, value) => Ok(value),
        _ => Err(corrupt_entry(table, key, "its checksum is wrong")),
    }
}

/// That the entry `key` of `table` is damaged.
pub(crate) fn corrupt_entry(table: Table, key: &[u8], why: &str) -> Error {
    let shown = if matches!(table, Table::Repositories | Table::Branches | Table::Worktrees) {
        String::from_utf8_lossy(key).replace('\0', ":")
    } else {
        key.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    Error::corrupt(format!("entry {shown} of table {}", table.name()), why)
}

/// The key of a git object: the tag of its hash algorithm, its digest.
pub(crate) fn oid_key(oid: &GitOid) -> Vec<u8> {
    [&[oid.kind().tag()], oid.as_bytes()].concat()
}

/// The inverse of [`oid_key`].
pub(crate) fn oid_from_key(key: &[u8]) -> Option<GitOid> {
    let (&tag, digest) = key.split_first()?;
    GitOid::from_slice(HashKind::from_tag(tag)?, digest)
}

/// The key of a git tree under a conversion context.
pub(crate) fn git_tree_key(oid: &GitOid, context: &[u8; 32]) -> Vec<u8> {
    let mut key = oid_key(oid);
    key.extend_from_slice(context);
    key
}

/// The git tree of a key made by [`git_tree_key`].
pub(crate) fn oid_from_git_tree_key(key: &[u8]) -> Option<GitOid> {
    key.split_last_chunk::<32>().and_then(|(oid, _)| oid_from_key(oid))
}

/// The key of a content on its way back to git.
pub(crate) fn content_key(content: &ContentId, kind: HashKind) -> Vec<u8> {
    let mut key = content.as_bytes().to_vec();
    key.push(kind.tag());
    key
}

pub(super) fn encode_stored(stored: &super::Stored) -> Vec<u8> {
    let mut value = stored.id.as_bytes().to_vec();
    value.extend_from_slice(&stored.size.to_le_bytes());
    value
}

pub(crate) fn decode_stored(value: &[u8]) -> Option<super::Stored> {
    let mut fields = Fields(value);
    let stored = super::Stored { id: ContentId::new(fields.take()?), size: fields.u64()? };
    fields.0.is_empty().then_some(stored)
}

pub(super) fn encode_subtree(subtree: &Subtree) -> Vec<u8> {
    let mut value = subtree.id.as_bytes().to_vec();
    value.extend_from_slice(&subtree.size.to_le_bytes());
    value.extend_from_slice(&subtree.descendants.to_le_bytes());
    value.extend_from_slice(&subtree.subdirectories.to_le_bytes());
    value
}

pub(crate) fn decode_subtree(value: &[u8]) -> Option<Subtree> {
    let mut fields = Fields(value);
    let subtree = Subtree {
        id: TreeId::new(fields.take()?),
        size: fields.u64()?,
        descendants: fields.u32()?,
        subdirectories: fields.u32()?,
    };
    fields.0.is_empty().then_some(subtree)
}

pub(super) fn encode_manifest(content: &StreamedContent) -> Vec<u8> {
    let mut value = Vec::with_capacity(8 + content.chunks.len() * 36 + SEAL_BYTES);
    value.extend_from_slice(&content.size.to_le_bytes());
    for (id, len) in &content.chunks {
        value.extend_from_slice(id.as_bytes());
        value.extend_from_slice(&len.to_le_bytes());
    }
    value
}

/// Decodes a manifest; `None` unless its chunks add up to its size.
pub(crate) fn decode_manifest(id: ContentId, value: &[u8]) -> Option<StreamedContent> {
    let mut fields = Fields(value);
    let size = fields.u64()?;
    let mut chunks = Vec::with_capacity(fields.0.len() / 36);
    while !fields.0.is_empty() {
        chunks.push((ChunkId::new(fields.take()?), fields.u32()?));
    }
    let content = StreamedContent { id, size, chunks };
    adds_up(&content).then_some(content)
}

/// Whether the lengths of the chunks are possible and make up the size.
pub(super) fn adds_up(content: &StreamedContent) -> bool {
    let possible = |len: u32| (1..=crate::limits::CHUNK_BYTES_MAX).contains(&len);
    content.chunks.iter().all(|&(_, len)| possible(len))
        && content.chunks.iter().map(|&(_, len)| u64::from(len)).sum::<u64>() == content.size
}

#[cfg(test)]
mod tests {
    use super::super::Stored;
    use super::*;
    use proptest::prelude::*;

    fn chunk() -> Object {
        Object::Chunk(ChunkId::of(b"x"))
    }

    proptest! {
        #[test]
        fn places_read_back(
            raw_len in 0..=crate::limits::CHUNK_BYTES_MAX,
            part in 0.0..=1.0_f64,
            segment: u32,
            offset: u32,
            payload in prop::collection::vec(any::<u8>(), 0..64),
        ) {
            let stored_len = (f64::from(raw_len) * part) as u32;
            let at = At::Segment(Extent { segment, offset, stored_len });
            let place = Place { encoding: Encoding::Zstd, raw_len, at };
            let value = place.encode();
            prop_assert_eq!(Place::decode(&chunk(), &value).unwrap(), place);
            let raw_len = payload.len() as u32;
            let place = Place { encoding: Encoding::Raw, raw_len, at: At::Inline(&payload) };
            let value = place.encode();
            prop_assert_eq!(Place::decode(&chunk(), &value).unwrap(), place);
        }

        #[test]
        fn no_value_makes_a_decoder_panic(value in prop::collection::vec(any::<u8>(), 0..120)) {
            let _ = Place::decode(&chunk(), &value);
            let _ = unseal(Table::Blobs, b"key", &value);
            let _ = decode_stored(&value);
            let _ = decode_subtree(&value);
            let _ = decode_manifest(ContentId::of(b""), &value);
            let _ = oid_from_git_tree_key(&value);
        }
    }

    #[test]
    fn impossible_places_are_refused() {
        let at = At::Segment(Extent { segment: 1, offset: 32, stored_len: 10 });
        let good = Place { encoding: Encoding::Zstd, raw_len: 100, at };
        let refused = |value: &[u8]| Place::decode(&chunk(), value).unwrap_err().is_corruption();
        for len in 0..good.encode().len() {
            assert!(refused(&good.encode()[..len]), "cut at {len}");
        }
        assert!(refused(&[good.encode(), vec![0]].concat()), "longer");
        assert!(refused(&Place { raw_len: 9, ..good }.encode()), "stored longer than raw");
        assert!(refused(&Place { raw_len: u32::MAX, ..good }.encode()), "larger than any chunk");
        let mut unknown = good.encode();
        unknown[1] = 7;
        assert!(refused(&unknown));
        unknown[..2].copy_from_slice(&[7, 0]);
        assert!(refused(&unknown));
    }

    #[test]
    fn a_seal_notices_every_flipped_bit_of_key_and_value() {
        let stored = Stored { id: ContentId::of(b"a"), size: 77 };
        let sealed = seal(b"key", encode_stored(&stored));
        let value = unseal(Table::Blobs, b"key", &sealed).unwrap();
        assert_eq!(decode_stored(value), Some(stored));
        assert!(unseal(Table::Blobs, b"kez", &sealed).is_err());
        for bit in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(unseal(Table::Blobs, b"key", &bad).unwrap_err().is_corruption());
        }
    }

    #[test]
    fn a_manifest_must_add_up() {
        let chunks = vec![(ChunkId::of(b"a"), 70_000), (ChunkId::of(b"b"), 5)];
        let content = StreamedContent { id: ContentId::of(b"ab"), size: 70_005, chunks };
        let value = encode_manifest(&content);
        assert_eq!(decode_manifest(content.id, &value).unwrap(), content);
        let mut longer = content.clone();
        longer.size += 1;
        assert_eq!(decode_manifest(content.id, &encode_manifest(&longer)), None);
        let mut empty_chunk = content.clone();
        empty_chunk.chunks.push((ChunkId::of(b""), 0));
        assert_eq!(decode_manifest(content.id, &encode_manifest(&empty_chunk)), None);
        assert_eq!(decode_manifest(content.id, &value[..value.len() - 1]), None);
    }

    #[test]
    fn keys_read_back() {
        for kind in [HashKind::Sha1, HashKind::Sha256] {
            let oid = GitOid::from_slice(kind, &vec![3; kind.len()]).unwrap();
            assert_eq!(oid_from_key(&oid_key(&oid)), Some(oid));
            assert_eq!(oid_from_git_tree_key(&git_tree_key(&oid, &[9; 32])), Some(oid));
        }
        assert_eq!(oid_from_key(b""), None);
        assert_eq!(oid_from_key(&[3; 21]), None);
    }
}
