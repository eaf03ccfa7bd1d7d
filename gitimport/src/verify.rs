//! Recomputes git object ids from what the store holds.

use agentfs_engine::check::{BlobHasher, GitVerifier};
use agentfs_engine::tree::Tree;
use agentfs_engine::{GitOid, HashKind};

use crate::object::{Kind, ObjectHasher, object_id};
use crate::tree::{GitEntry, encode};

/// Computes the ids that git gives to stored content and directory objects.
#[derive(Clone, Copy, Debug, Default)]
pub struct Verifier;

impl GitVerifier for Verifier {
    fn blob_hasher(&self, kind: HashKind, size: u64) -> Box<dyn BlobHasher> {
        Box::new(Hasher { hash: kind, hasher: ObjectHasher::new(kind, Kind::Blob, size) })
    }

    fn tree_oid(&self, tree: &Tree) -> Option<GitOid> {
        let hash = tree.hash()?;
        let entries: Option<Vec<_>> = tree
            .entries()
            .map(|entry| Some(GitEntry { kind: entry.kind, name: entry.name, oid: entry.oid? }))
            .collect();
        object_id(hash, Kind::Tree, &encode(entries?.into_iter())).ok()
    }
}

struct Hasher {
    hash: HashKind,
    hasher: ObjectHasher,
}

impl BlobHasher for Hasher {
    fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
    }

    fn finish(self: Box<Self>) -> GitOid {
        // Bytes of a collision attack have no id: what they are compared with is never the null one.
        self.hasher.finish().unwrap_or_else(|_| {
            GitOid::from_slice(self.hash, &[0; 32][..self.hash.len()]).expect("an id's length")
        })
    }
}

#[cfg(test)]
mod tests {
    use agentfs_engine::tree::{Entry, EntryKind, TreeBuilder};

    use super::*;

    #[test]
    fn blobs_in_pieces() {
        let mut hasher = Verifier.blob_hasher(HashKind::Sha1, 6);
        hasher.update(b"hel");
        hasher.update(b"lo\n");
        assert_eq!(hasher.finish().to_string(), "ce013625030ba8dba906f756967f9e9ca394464a");
    }

    #[test]
    fn trees_in_the_order_of_git() {
        let oid = object_id(HashKind::Sha1, Kind::Blob, b"").unwrap();
        let mut builder = TreeBuilder::new(Some(HashKind::Sha1));
        for (name, kind) in [(b"a-".as_slice(), EntryKind::File), (b"b", EntryKind::Gitlink)] {
            let entry = Entry { kind, name, size: 0, oid: Some(oid), content: None, subtree: None };
            builder.push(&entry).unwrap();
        }
        let tree = Tree::decode(builder.finish().bytes).unwrap();
        // git mktree of the same two entries.
        let expected = object_id(
            HashKind::Sha1,
            Kind::Tree,
            &[b"100644 a-\0", oid.as_bytes(), b"160000 b\0", oid.as_bytes()].concat(),
        );
        assert_eq!(Verifier.tree_oid(&tree), expected.ok());
    }
}
