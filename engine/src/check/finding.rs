//! What a check can find.

use std::fmt;

use crate::id::{ChunkId, ContentId, GitOid, TreeId};

/// One thing that is wrong with a store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Finding {
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
        /// What it holds, and where it lies.
        what: String,
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
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadTable { table, why } => write!(f, "table {table}: {why}"),
            Self::BadEntry { why, .. } | Self::BadChunk { why, .. } | Self::BadTree { why, .. } => {
                f.write_str(why)
            }
            Self::BadSegment { number, why } => write!(f, "segment {number}: {why}"),
            Self::BadRecord { what } => {
                write!(f, "the record of {what} has a wrong checksum; what it holds is whole")
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
        }
    }
}
