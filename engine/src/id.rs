//! Typed identifiers. Raw bytes stop at the codecs: everything above them passes these.

use std::fmt;

macro_rules! blake3_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// Wraps the 32 bytes of a digest.
            pub const fn new(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            /// The id of `bytes`: their plain blake3.
            pub fn of(bytes: &[u8]) -> Self {
                Self(*blake3::hash(bytes).as_bytes())
            }

            /// The digest.
            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// Reads an id from exactly 32 bytes.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_hex(f, &self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "("))?;
                write_hex(f, &self.0[..8])?;
                f.write_str(")")
            }
        }
    };
}

blake3_id! {
    /// The blake3 of one stored chunk's uncompressed bytes.
    ChunkId
}
blake3_id! {
    /// The blake3 of a whole file, as `b3sum` prints it. A file of one chunk has a [`ChunkId`] of
    /// the same bytes.
    ContentId
}
blake3_id! {
    /// The blake3 of an encoded directory object.
    TreeId
}

impl From<ContentId> for ChunkId {
    /// The only chunk of a single-chunk file has the digest of the file.
    fn from(id: ContentId) -> Self {
        Self(id.0)
    }
}

impl From<ChunkId> for ContentId {
    /// The content of a file that consists of this chunk alone.
    fn from(id: ChunkId) -> Self {
        Self(id.0)
    }
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

/// The hash algorithm of a git repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HashKind {
    /// SHA-1, 20 bytes.
    Sha1,
    /// SHA-256, 32 bytes.
    Sha256,
}

impl HashKind {
    /// Length of a digest in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a digest is never empty")]
    pub const fn len(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }

    /// The tag stored on disk: 1 for SHA-1, 2 for SHA-256.
    pub const fn tag(self) -> u8 {
        match self {
            Self::Sha1 => 1,
            Self::Sha256 => 2,
        }
    }

    /// The inverse of [`HashKind::tag`]; `None` for an unknown tag.
    pub const fn from_tag(tag: u8) -> Option<Self> {
        match tag {
            1 => Some(Self::Sha1),
            2 => Some(Self::Sha256),
            _ => None,
        }
    }
}

/// The id of a git object, of either hash algorithm.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GitOid {
    kind: HashKind,
    bytes: [u8; 32],
}

impl GitOid {
    /// Reads an object id of `kind`; `None` unless `bytes` has exactly its length.
    pub fn from_slice(kind: HashKind, bytes: &[u8]) -> Option<Self> {
        if bytes.len() != kind.len() {
            return None;
        }
        let mut all = [0; 32];
        all[..bytes.len()].copy_from_slice(bytes);
        Some(Self { kind, bytes: all })
    }

    /// The hash algorithm.
    pub const fn kind(&self) -> HashKind {
        self.kind
    }

    /// The digest, 20 or 32 bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.kind.len()]
    }
}

impl From<[u8; 20]> for GitOid {
    /// The object id of SHA-1 that has this digest.
    fn from(digest: [u8; 20]) -> Self {
        let mut bytes = [0; 32];
        bytes[..digest.len()].copy_from_slice(&digest);
        Self { kind: HashKind::Sha1, bytes }
    }
}

impl From<[u8; 32]> for GitOid {
    /// The object id of SHA-256 that has this digest.
    fn from(digest: [u8; 32]) -> Self {
        Self { kind: HashKind::Sha256, bytes: digest }
    }
}

impl fmt::Display for GitOid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, self.as_bytes())
    }
}

impl fmt::Debug for GitOid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GitOid({self})")
    }
}

/// An inode number of one worktree; also its FUSE node id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u64);

impl Ino {
    /// The root directory of a worktree.
    pub const ROOT: Self = Self(1);
    /// The synthetic `.git` file in the root of a worktree.
    pub const GIT_FILE: Self = Self(2);
    /// The number of the first entry of a base tree; smaller ones are reserved.
    pub const FIRST: Self = Self(16);
    /// The first number of an inode that a branch made; those of a base are smaller.
    pub const FIRST_NEW: Self = Self(1 << 32);

    /// Whether the inode was made by a branch, as opposed to those of its base.
    pub const fn is_new(self) -> bool {
        self.0 >= Self::FIRST_NEW.0
    }
}

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The place of a record in the order of all changes of a branch. The first record has 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sequence(pub u64);

impl Sequence {
    /// Before the first record.
    pub const NONE: Self = Self(0);

    /// The one that follows.
    pub const fn next(self) -> Self {
        // Forged files can state any number; ours never come near the end.
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a branch, unique in its store for ever: names can be given again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BranchNumber(pub u64);

impl fmt::Display for BranchNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a layer of changes, unique in its store for ever.
///
/// What a branch has changed relative to its base lies in a line of layers, each of which says what
/// differs from the one below it. The newest, the *head*, belongs to the branch and takes its changes;
/// the others are sealed: they never change, and other branches and snapshots may be based on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerNumber(pub u64);

impl LayerNumber {
    /// The first head of a branch.
    pub const fn first_of(branch: BranchNumber) -> Self {
        Self(branch.0)
    }
}

impl fmt::Display for LayerNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
