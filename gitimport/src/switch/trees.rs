//! What differs between two trees.

use std::collections::BTreeMap;
use std::sync::Arc;

use agentfs_engine::GitOid;
use agentfs_engine::tree::EntryKind;

use super::plan::{EXECUTABLE, FILE, GITLINK, LINK, Side};
use crate::error::Result;
use crate::limits::{TREE_OBJECT_BYTES_MAX, WALK_TREES_MAX};
use crate::object::Kind;
use crate::odb::Reader;
use crate::repository::Repository;
use crate::tree::{GitEntry, GitTree, Remembered};

/// A path longer than this is git's to judge.
const PATH_BYTES_MAX: usize = 4096;

/// The paths that differ between two trees, with what is there in each.
#[derive(Debug, Default)]
pub(super) struct Differences {
    /// Files, links and commits of other repositories.
    pub(super) files: BTreeMap<Vec<u8>, (Side, Side)>,
    /// Directories, with a slash at the end of each path but that of the root, which is empty.
    pub(super) directories: BTreeMap<Vec<u8>, (Option<GitOid>, Option<GitOid>)>,
    /// What those of them are that the second tree has.
    pub(super) trees: BTreeMap<Vec<u8>, Arc<GitTree>>,
}

/// A directory that differs.
struct Directory {
    path: Vec<u8>,
    sides: (Option<GitOid>, Option<GitOid>),
}

/// What differs between trees `from` and `to`, as `git diff-tree -r` has it; `None` where that is git's to say.
///
/// # Errors
/// What reading the trees meets.
pub(super) fn differences(
    repository: &Repository,
    from: &GitOid,
    to: &GitOid,
) -> Result<Option<Differences>> {
    let mut found = Differences::default();
    if repository.replacements().context().is_some() {
        // What is called by the id of a tree is then not what is read.
        return Ok(None);
    }
    let mut reader = repository.odb().reader();
    let mut open = Vec::new();
    if from != to {
        open.push(Directory { path: Vec::new(), sides: (Some(*from), Some(*to)) });
    }
    let mut trees = 0;
    while let Some(Directory { path, sides }) = open.pop() {
        trees += 2;
        if path.len() > PATH_BYTES_MAX || trees > WALK_TREES_MAX {
            return Ok(None);
        }
        let trees = repository.trees();
        let before = read(&mut reader, trees, sides.0)?;
        let after = read(&mut reader, trees, sides.1)?;
        let (Some(before), Some(after)) = (before, after) else { return Ok(None) };
        let (mut one, mut other) = (before.entries().peekable(), after.entries().peekable());
        loop {
            let name = match (one.peek(), other.peek()) {
                (Some(one), Some(other)) => one.name.min(other.name),
                (Some(only), None) | (None, Some(only)) => only.name,
                (None, None) => break,
            };
            let before = one.next_if(|entry| entry.name == name);
            let after = other.next_if(|entry| entry.name == name);
            let what = |entry: Option<GitEntry<'_>>| entry.map(|entry| (entry.kind, entry.oid));
            if what(before) == what(after) {
                continue;
            }
            let path = [&path, name].concat();
            let sides = (directory(before), directory(after));
            if sides != (None, None) && sides.0 != sides.1 {
                open.push(Directory { path: [&path[..], b"/"].concat(), sides });
            }
            let sides = (file(before), file(after));
            if sides != (None, None) {
                found.files.insert(path, sides);
            }
        }
        drop((one, other));
        if sides.1.is_some() {
            found.trees.insert(path.clone(), after);
        }
        found.directories.insert(path, sides);
    }
    Ok(Some(found))
}

/// A tree, or an empty one where there is none; `None` for one that git takes and we do not.
fn read(
    reader: &mut Reader,
    trees: &Remembered,
    oid: Option<GitOid>,
) -> Result<Option<Arc<GitTree>>> {
    let hash = reader.odb().hash();
    let mut bytes = Vec::new();
    let Some(oid) = oid else { return Ok(GitTree::parse(hash, bytes).ok().map(Arc::new)) };
    if let Some(known) = trees.get(&oid) {
        return Ok(Some(known));
    }
    reader.read(&oid, Kind::Tree, TREE_OBJECT_BYTES_MAX, &mut bytes)?;
    let tree = GitTree::parse(hash, bytes).ok().map(Arc::new);
    if let Some(tree) = &tree {
        trees.put(oid, tree);
    }
    Ok(tree)
}

fn directory(entry: Option<GitEntry<'_>>) -> Option<GitOid> {
    entry.filter(|entry| entry.kind == EntryKind::Directory).map(|entry| entry.oid)
}

fn file(entry: Option<GitEntry<'_>>) -> Side {
    let entry = entry?;
    let mode = match entry.kind {
        EntryKind::File => FILE,
        EntryKind::Executable => EXECUTABLE,
        EntryKind::Symlink => LINK,
        EntryKind::Gitlink => GITLINK,
        EntryKind::Directory => return None,
    };
    Some((mode, entry.oid))
}
