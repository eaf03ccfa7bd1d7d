//! Kinds of git objects, and the ids that their bytes have.

use std::fmt;

use agentfs_engine::{GitOid, HashKind};

/// The kind of a git object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A commit.
    Commit,
    /// A directory.
    Tree,
    /// A file's content or a symbolic link's target.
    Blob,
    /// An annotated tag.
    Tag,
}

impl Kind {
    /// git's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Commit => "commit",
            Self::Tree => "tree",
            Self::Blob => "blob",
            Self::Tag => "tag",
        }
    }

    pub(crate) fn from_name(name: &[u8]) -> Option<Self> {
        [Self::Commit, Self::Tree, Self::Blob, Self::Tag]
            .into_iter()
            .find(|kind| kind.name().as_bytes() == name)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Computes the id of one object. SHA-1 is the variant that detects the known collision attacks.
pub(crate) struct ObjectHasher {
    hash: HashKind,
    hasher: gix::hash::Hasher,
}

impl ObjectHasher {
    pub(crate) fn new(hash: HashKind, kind: Kind, size: u64) -> Self {
        let mut hasher = gix::hash::hasher(to_gix_kind(hash));
        hasher.update(format!("{kind} {size}\0").as_bytes());
        Self { hash, hasher }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    /// The id, or why there is none: the bytes are part of a collision attack.
    pub(crate) fn finish(self) -> Result<GitOid, String> {
        let digest = self.hasher.try_finalize().map_err(|error| error.to_string())?;
        GitOid::from_slice(self.hash, digest.as_slice())
            .ok_or_else(|| "a digest of an unexpected length".into())
    }
}

/// The id of an object that is in memory.
pub(crate) fn object_id(hash: HashKind, kind: Kind, bytes: &[u8]) -> Result<GitOid, String> {
    let mut hasher = ObjectHasher::new(hash, kind, bytes.len() as u64);
    hasher.update(bytes);
    hasher.finish()
}

pub(crate) const fn to_gix_kind(hash: HashKind) -> gix::hash::Kind {
    match hash {
        HashKind::Sha1 => gix::hash::Kind::Sha1,
        HashKind::Sha256 => gix::hash::Kind::Sha256,
    }
}

pub(crate) fn from_gix(id: &gix::hash::oid) -> Option<GitOid> {
    let hash = match id.kind() {
        gix::hash::Kind::Sha1 => HashKind::Sha1,
        gix::hash::Kind::Sha256 => HashKind::Sha256,
        _ => return None,
    };
    GitOid::from_slice(hash, id.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_git() {
        let id = |hash, kind| object_id(hash, kind, b"").unwrap().to_string();
        assert_eq!(id(HashKind::Sha1, Kind::Blob), "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391");
        assert_eq!(id(HashKind::Sha1, Kind::Tree), "4b825dc642cb6eb9a060e54bf8d69288fbee4904");
        assert_eq!(
            id(HashKind::Sha256, Kind::Blob),
            "473a0f4c3be8a93681a267e3b1e9a7dcda1185436fe141f7749120a303721813"
        );
    }
}
