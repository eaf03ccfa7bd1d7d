//! What a check can find.

use std::fmt;

use crate::id::{BranchNumber, ChunkId, ContentId, GitOid, Ino, LayerNumber, Sequence, TreeId};
use crate::store::Object;

/// One thing that is wrong with a store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Finding {
    /// Pages of the database are damaged. What they had is known, and was read.
    BadPages {
        /// Their numbers.
        pages: Vec<u64>,
    },
    /// A table of the database cannot be read to its end, or not by its keys.
    BadTable {
        /// The table.
        table: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// An entry of a table is damaged. What it said is lost.
    BadEntry {
        /// The table.
        table: &'static str,
        /// What was met when it was read; it names the entry.
        why: String,
    },
    /// The header of a segment file is damaged, or the file is missing.
    BadSegment {
        /// Its number.
        number: u32,
        /// What is wrong with it.
        why: String,
    },
    /// A chunk cannot be read back as what it is.
    BadChunk {
        /// The chunk.
        id: ChunkId,
        /// What is wrong with it, and where it lies.
        why: String,
    },
    /// A record's checksum is wrong although its chunk or tree is whole: the table of places could
    /// not be rebuilt from it.
    BadRecord {
        /// What it holds.
        object: Object,
        /// Where it lies.
        at: String,
    },
    /// A content names a chunk that is not stored.
    MissingChunk {
        /// The content.
        content: ContentId,
        /// The chunk.
        chunk: ChunkId,
    },
    /// A content's chunks do not make up the content.
    BadContent {
        /// The content.
        id: ContentId,
        /// What is wrong with it.
        why: String,
    },
    /// Something names a content that is not stored, or that has another size.
    WrongContent {
        /// The content.
        id: ContentId,
        /// What names it.
        by: String,
        /// What is wrong with it.
        why: String,
    },
    /// A directory object cannot be read back as what it is.
    BadTree {
        /// The tree.
        id: TreeId,
        /// What is wrong with it.
        why: String,
    },
    /// Something names a directory object that is not stored, or that is not as recorded.
    WrongTree {
        /// The tree.
        id: TreeId,
        /// What names it.
        by: String,
        /// What is wrong with it.
        why: String,
    },
    /// The git map gives an object id to bytes that have another one.
    WrongOid {
        /// The object id in the map.
        oid: GitOid,
        /// The content or tree.
        of: String,
        /// The object id of its bytes.
        found: GitOid,
    },
    /// A record names a repository or branch that is not there.
    Dangling {
        /// The record.
        record: String,
        /// What it names.
        names: String,
    },
    /// A row says where a branch stands that is not on record.
    HeadOfNoBranch {
        /// The number of the branch.
        number: BranchNumber,
    },
    /// There is a layer on which neither a branch nor a snapshot stands.
    LayerOfNobody {
        /// The layer.
        layer: LayerNumber,
        /// How many rows it has.
        rows: u64,
    },
    /// There is an outbox with records of a branch that is not on record.
    OutboxOfNoBranch {
        /// The number of the branch.
        number: BranchNumber,
    },
    /// An outbox is damaged, or its records are no changes.
    BadOutbox {
        /// The branch, as repository and name.
        branch: String,
        /// The number of the segment, and the offset in it; `None` where the whole is concerned.
        place: Option<(u64, u64)>,
        /// The record that should be there.
        record: Option<Sequence>,
        /// What was met; it names the file.
        why: String,
    },
    /// There are rows of changes of a branch, and none that says up to where it is drained.
    NotDrained {
        /// The branch.
        branch: String,
    },
    /// A branch has inodes beyond the highest number that it says it has given.
    WrongHighest {
        /// The branch.
        branch: String,
        /// The number that it states.
        stated: u64,
        /// The highest number that an inode has.
        found: u64,
    },
    /// The link count of a changed inode is not the number of its names; for a directory, not two and
    /// one for each subdirectory.
    WrongLinks {
        /// The branch.
        branch: String,
        /// The inode.
        ino: Ino,
        /// The count that it has.
        stated: u32,
        /// The count that it should have.
        found: u32,
    },
    /// What a branch says of an inode cannot be so.
    BadInode {
        /// The branch.
        branch: String,
        /// The inode.
        ino: Ino,
        /// What is wrong with it.
        why: String,
    },
    /// What a branch says of a name cannot be so.
    BadName {
        /// The branch.
        branch: String,
        /// The directory.
        dir: Ino,
        /// The name.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// A plain file of the cache is not the content that its name says. Nothing is lost by it.
    BadFile {
        /// Its name; empty where they cannot be listed.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// A changed file names a chunk that is not stored.
    LostBytes {
        /// The branch.
        branch: String,
        /// The file.
        ino: Ino,
        /// The chunk.
        chunk: ChunkId,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadPages { pages } => {
                write!(
                    f,
                    "pages {pages:?} of the database are damaged; the parity has what they had"
                )
            }
            Self::BadTable { table, why } => write!(f, "table {table}: {why}"),
            Self::BadEntry { why, .. } | Self::BadChunk { why, .. } | Self::BadTree { why, .. } => {
                f.write_str(why)
            }
            Self::BadSegment { number, why } => write!(f, "segment {number}: {why}"),
            Self::BadRecord { object, at } => {
                write!(
                    f,
                    "the record of {object} {at} has a wrong checksum; what it holds is whole"
                )
            }
            Self::MissingChunk { content, chunk } => {
                write!(f, "chunk {chunk} of content {content} is missing")
            }
            Self::BadContent { id, why } => write!(f, "content {id}: {why}"),
            Self::WrongContent { id, by, why } => write!(f, "content {id}, named by {by}, {why}"),
            Self::WrongTree { id, by, why } => write!(f, "tree {id}, named by {by}, {why}"),
            Self::WrongOid { oid, of, found } => {
                write!(f, "git object {oid} is recorded as {of}, whose object id is {found}")
            }
            Self::Dangling { record, names } => {
                write!(f, "{record} names {names}, which is unknown")
            }
            Self::HeadOfNoBranch { number } => {
                write!(f, "a row says where branch number {number} stands, which is unknown")
            }
            Self::LayerOfNobody { layer, rows } => {
                write!(f, "no branch and no snapshot needs the {rows} rows of layer {layer}")
            }
            Self::OutboxOfNoBranch { number } => {
                write!(f, "an outbox belongs to branch number {number}, which is unknown")
            }
            Self::BadOutbox { branch, why, .. } => write!(f, "branch {branch}: {why}"),
            Self::NotDrained { branch } => {
                write!(f, "branch {branch}: no row says up to where its changes are drained")
            }
            Self::WrongHighest { branch, stated, found } => write!(
                f,
                "branch {branch}: it states {stated} as the highest number of a new inode, and has \
                 inode {found}"
            ),
            Self::WrongLinks { branch, ino, stated, found } => {
                write!(f, "branch {branch}: inode {ino} counts {stated} links instead of {found}")
            }
            Self::BadInode { branch, ino, why } => write!(f, "branch {branch}: inode {ino} {why}"),
            Self::BadName { branch, dir, name, why } => {
                write!(f, "branch {branch}: {name:?} in directory {dir} {why}")
            }
            Self::BadFile { name, why } => write!(f, "plain file {name} of the cache: {why}"),
            Self::LostBytes { branch, ino, chunk } => {
                write!(f, "branch {branch}: chunk {chunk} of inode {ino} is missing")
            }
        }
    }
}
