//! Entries of the tables that name objects and map those of git, decoded and verified as far as each tells by itself.

use super::database::Snapshot;
use super::tables::{
    Object, Place, Table, content_key, corrupt_entry, decode_manifest, decode_stored,
    decode_subtree, oid_from_git_tree_key, oid_from_key, oid_key,
};
use super::{Stored, decode_sealed};
use crate::content::StreamedContent;
use crate::error::Result;
use crate::id::{ChunkId, ContentId, GitOid, TreeId};
use crate::tree::Subtree;

/// Why a key is none.
pub(crate) const BAD_KEY: &str = "its key is impossible";

fn digest(table: Table, key: &[u8]) -> Result<[u8; 32]> {
    key.try_into().map_err(|_| corrupt_entry(table, key, BAD_KEY))
}

/// A chunk, and where it lies.
pub(crate) fn chunk_of<'a>(key: &[u8], value: &'a [u8]) -> Result<(Object, Place<'a>)> {
    let object = Object::Chunk(ChunkId::new(digest(Table::Chunks, key)?));
    Ok((object, Place::decode(&object, value)?))
}

/// A directory object, and where it lies.
pub(crate) fn tree_of<'a>(key: &[u8], value: &'a [u8]) -> Result<(Object, Place<'a>)> {
    let object = Object::Tree(TreeId::new(digest(Table::Trees, key)?));
    Ok((object, Place::decode(&object, value)?))
}

/// The chunks of a content.
pub(crate) fn manifest_of(key: &[u8], value: &[u8]) -> Result<StreamedContent> {
    let id = ContentId::new(digest(Table::Manifests, key)?);
    decode_sealed(Table::Manifests, key, value, |value| decode_manifest(id, value))
}

/// A git blob, and the content that it became.
pub(crate) fn blob_of(key: &[u8], value: &[u8]) -> Result<(GitOid, Stored)> {
    let oid = oid_from_key(key).ok_or_else(|| corrupt_entry(Table::Blobs, key, BAD_KEY))?;
    Ok((oid, decode_sealed(Table::Blobs, key, value, decode_stored)?))
}

/// An error unless the git blob to which a content leads became that content.
pub(crate) fn check_content(snapshot: &Snapshot, key: &[u8], value: &[u8]) -> Result<()> {
    let oid = decode_sealed(Table::Contents, key, value, oid_from_key)?;
    let blob = oid_key(&oid);
    let back = snapshot.get(Table::Blobs, &blob, |value| blob_of(&blob, value))?;
    match back {
        Some((_, stored)) if content_key(&stored.id, oid.kind()) == key => Ok(()),
        _ => Err(corrupt_entry(Table::Contents, key, "it leads back to something else")),
    }
}

/// A git tree, and the directory object that it became.
pub(crate) fn git_tree_of(key: &[u8], value: &[u8]) -> Result<(GitOid, Subtree)> {
    let oid =
        oid_from_git_tree_key(key).ok_or_else(|| corrupt_entry(Table::GitTrees, key, BAD_KEY))?;
    Ok((oid, decode_sealed(Table::GitTrees, key, value, decode_subtree)?))
}
