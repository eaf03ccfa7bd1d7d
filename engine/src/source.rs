//! Where objects come from that the store does not hold yet, or has lost.

use std::io::Read;

use crate::error::Result;
use crate::id::{GitOid, TreeId};
use crate::store::Store;

/// The bytes of a blob from a repository.
pub enum Blob {
    /// All of it, already verified against its object id.
    Whole(Vec<u8>),
    /// A large one, verified as it is read: the read that would return the end of the file fails
    /// instead if the digest is wrong. Nothing read before that may be trusted.
    Stream(Box<dyn Read + Send>),
}

/// A commit of a repository that can supply what the directory objects made from it name, and those
/// directory objects themselves.
pub trait ObjectSource: Send + Sync {
    /// Reads blob `oid`. The bytes are the stored ones, without checkout conversion: a tree names
    /// a file that needs conversion by its content id, never by its object id alone.
    ///
    /// # Errors
    /// [`crate::Error::MissingObject`] if the repository does not hold it, [`crate::Error::Source`]
    /// if it cannot be read or its bytes do not have this id.
    fn blob(&self, oid: &GitOid) -> Result<Blob>;

    /// Reads blob `oid` converted as the checkout of `path` would, for a tree entry that names
    /// both an object id and a content id. Used to rebuild content that was lost.
    ///
    /// # Errors
    /// As [`ObjectSource::blob`].
    fn converted(&self, oid: &GitOid, path: &[u8]) -> Result<Blob>;

    /// Makes directory object `id` of the directory `path`, empty for the root, anew and stores it
    /// in `store`, with every directory object below it that is damaged or gone too. What is intact
    /// stays as it is. The caller holds no batch.
    ///
    /// # Errors
    /// [`crate::Error::Source`] if the repository cannot tell what the directory holds,
    /// [`crate::Error::Corrupt`] if it holds something else by now, or what writing meets.
    fn rebuild_tree(&self, store: &Store, path: &[u8], id: TreeId) -> Result<()>;
}
