//! The `.gitattributes` of a directory, as git reads it from a tree.

use agentfs_engine::tree::EntryKind;

use crate::error::Result;
use crate::lane::{Lane, Turn};
use crate::limits::{ATTRIBUTES_BYTES_IGNORED, WHOLE_OBJECT_BYTES_MAX};
use crate::object::Kind;
use crate::odb::Reader;
use crate::replace::Replacements;
use crate::tree::GitTree;

/// The name of the file.
pub(crate) const NAME: &[u8] = b".gitattributes";

/// Its bytes, if `tree` has one that git would use: not a symbolic link, not an immense one.
///
/// # Errors
/// As [`Reader::read`].
pub(crate) fn read<'l>(
    lane: &'l Lane,
    turn: &mut Option<Turn<'l>>,
    reader: &mut Reader,
    tree: &GitTree,
    replacements: &Replacements,
) -> Result<Option<Vec<u8>>> {
    let Some(entry) = tree.find(NAME) else { return Ok(None) };
    if !matches!(entry.kind, EntryKind::File | EntryKind::Executable) {
        return Ok(None);
    }
    let oid = replacements.of(&entry.oid)?;
    let (_, size) = reader.header(&oid)?;
    if size > ATTRIBUTES_BYTES_IGNORED {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    lane.read(turn, reader, &oid, Kind::Blob, WHOLE_OBJECT_BYTES_MAX, &mut bytes)?;
    Ok(Some(bytes))
}
