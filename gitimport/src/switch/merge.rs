//! The next index where there is no doubt what git makes of it: each entry is what it was, goes, or becomes what the
//! other commit has (git-read-tree(1), "Two Tree Merge"). All else is left to git itself.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use agentfs_engine::GitOid;

use super::cache_tree::CacheTree;
use super::index::Index;
use super::plan::Side;
use super::trees::Differences;
use crate::index::{NAME_LENGTH_MAX, SIGNATURE, STAT_BYTES, TREE_SIGNATURE, VERSION};
use crate::index_entries::IndexEntry;

/// Extensions that git leaves out of an index that it moves: what is told of files, what was resolved, and where
/// what is in it.
const LEFT_OUT: [&[u8]; 4] = [b"FSMN", b"REUC", b"EOIE", b"IEOT"];
/// Bytes of an index before its entries.
const HEAD_BYTES: usize = 12;
/// Where the mode is in the stat data of an entry.
const MODE_AT: usize = 24;

/// The next index, with zeros where its checksum is to be.
pub(super) struct Merged {
    pub(super) bytes: Vec<u8>,
    /// Where the stat data of the old entries are in it, in their order; none for those that go or become another.
    pub(super) kept: Vec<Option<usize>>,
    /// Where those of new entries are.
    pub(super) new: BTreeMap<Vec<u8>, usize>,
}

/// One entry of the next index.
enum Next<'a> {
    /// As it was, byte for byte, with its number.
    Kept(usize, &'a [u8]),
    /// What the commit has, of which nothing is known of the file.
    New(u32, GitOid),
}

/// `old`, moved by `differences`, which nothing in it contradicts; `None` if it is not as plain as it takes.
pub(super) fn next(old: &Index, differences: &Differences) -> Option<Merged> {
    let entries = plain_entries(old)?;
    let ends = entries.iter().skip(1).map(|entry| entry.at).chain([entries_end(old, entries)]);
    let mut known = entries.iter().zip(ends).enumerate().peekable();
    let mut differ = differences.files.iter().peekable();
    let mut next: Vec<(&[u8], Next<'_>)> = Vec::with_capacity(entries.len());
    let mut added = Vec::new();
    loop {
        let order = match (known.peek(), differ.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((_, (entry, _))), Some((path, _))) => entry.path.cmp(path),
        };
        let entry = if order.is_le() { known.next() } else { None };
        let change = if order.is_ge() { differ.next() } else { None };
        let (path, becomes) = decide(old, entry, change)?;
        if let Some(becomes) = becomes {
            if entry.is_none() {
                added.push(path);
            }
            next.push((path, becomes));
        }
    }
    if added.iter().any(|path| collides(path, &next)) {
        return None;
    }
    let tree = cache_tree_of(old)?;
    let before: Vec<_> = entries.iter().map(|entry| entry.path.as_slice()).collect();
    let after: Vec<_> = next.iter().map(|(path, _)| *path).collect();
    let tree = tree
        .map(|tree| tree.moved(differences, |dir| below(dir, &before), |dir| below(dir, &after)));
    encode(old, &next, tree)
}

/// The entries, if they say nothing but what every entry does: no conflict, no exception by the user.
fn plain_entries(old: &Index) -> Option<&[IndexEntry]> {
    let entries = old.entries();
    let is_plain = entries.iter().all(|entry| entry.plain);
    let in_order = entries.is_sorted_by(|one, other| one.path < other.path);
    (old.version() == Some(VERSION) && is_plain && in_order).then_some(entries)
}

/// What becomes of a path: nothing, if that is none. `None` if git has to say.
fn decide<'a>(
    old: &'a Index,
    entry: Option<(usize, (&'a IndexEntry, usize))>,
    change: Option<(&'a Vec<u8>, &'a (Side, Side))>,
) -> Option<(&'a [u8], Option<Next<'a>>)> {
    let new = |side: &Side| side.map(|(mode, oid)| Next::New(mode, oid));
    let kept = |number, entry: &IndexEntry, end| {
        old.bytes().get(entry.at..end).map(|record| Next::Kept(number, record))
    };
    match (entry, change) {
        (Some((number, (entry, end))), None) => {
            Some((&entry.path, Some(kept(number, entry, end)?)))
        }
        (Some((number, (entry, end))), Some((_, (before, after)))) => {
            let now = Some((entry.mode, entry.oid));
            match (now == *after, now == *before) {
                (true, _) => Some((&entry.path, Some(kept(number, entry, end)?))),
                (false, true) => Some((&entry.path, new(after))),
                (false, false) => None,
            }
        }
        (None, Some((path, (None, after)))) => Some((path, new(after))),
        // It is staged away already.
        (None, Some((path, (Some(_), None)))) => Some((path, None)),
        (None, Some((_, (Some(_), Some(_))))) | (None, None) => None,
    }
}

/// Whether a path cannot be beside what else is there: a file has nothing below it.
fn collides(path: &[u8], all: &[(&[u8], Next<'_>)]) -> bool {
    let is_there = |path: &[u8]| all.binary_search_by(|(other, _)| (*other).cmp(path)).is_ok();
    let mut ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
    if ends.any(|end| is_there(&path[..end])) {
        return true;
    }
    let dir = [path, b"/"].concat();
    let at = all.partition_point(|(other, _)| *other < dir.as_slice());
    all.get(at).is_some_and(|(other, _)| other.starts_with(&dir))
}

/// How many of `paths`, which are in order, are below a directory.
fn below(dir: &[u8], paths: &[&[u8]]) -> usize {
    if dir.is_empty() {
        return paths.len();
    }
    let start = paths.partition_point(|path| *path < dir);
    paths[start..].partition_point(|path| path.starts_with(dir))
}

/// Where the last entry ends.
fn entries_end(old: &Index, entries: &[IndexEntry]) -> usize {
    entries.last().map_or(HEAD_BYTES, |last| {
        last.at + (STAT_BYTES + old.hash().len() + 2 + last.path.len() + 8) / 8 * 8
    })
}

/// Its cache-tree, if it has one; `None` for a form, or an extension, that git has to move.
#[expect(clippy::option_option, reason = "there may be none, which is no failure")]
fn cache_tree_of(old: &Index) -> Option<Option<CacheTree>> {
    let mut tree = None;
    for extension in old.extensions() {
        if extension.name == TREE_SIGNATURE {
            tree = Some(CacheTree::parse(&extension.body, old.hash())?);
        } else if !LEFT_OUT.contains(&extension.name.as_slice()) {
            return None;
        }
    }
    Some(tree)
}

/// The index with these entries, and room for its checksum; `None` for one that cannot be.
fn encode(old: &Index, next: &[(&[u8], Next<'_>)], tree: Option<CacheTree>) -> Option<Merged> {
    let (mut kept, mut new) = (vec![None; old.entries().len()], BTreeMap::new());
    let mut bytes = Vec::with_capacity(old.bytes().len() + old.bytes().len() / 8);
    bytes.extend_from_slice(SIGNATURE);
    bytes.extend_from_slice(&VERSION.to_be_bytes());
    bytes.extend_from_slice(&u32::try_from(next.len()).ok()?.to_be_bytes());
    for (path, becomes) in next {
        match becomes {
            Next::Kept(number, record) => {
                *kept.get_mut(*number)? = Some(bytes.len());
                bytes.extend_from_slice(record);
            }
            Next::New(mode, oid) => {
                let start = bytes.len();
                new.insert(path.to_vec(), start);
                bytes.resize(start + STAT_BYTES, 0);
                bytes[start + MODE_AT..start + MODE_AT + 4].copy_from_slice(&mode.to_be_bytes());
                bytes.extend_from_slice(oid.as_bytes());
                let len = path.len().min(NAME_LENGTH_MAX) as u16;
                bytes.extend_from_slice(&len.to_be_bytes());
                bytes.extend_from_slice(path);
                // At least one NUL, up to a multiple of 8.
                bytes.resize(start + (bytes.len() - start + 8) / 8 * 8, 0);
            }
        }
    }
    if let Some(tree) = tree {
        let body = tree.encode();
        bytes.extend_from_slice(TREE_SIGNATURE);
        bytes.extend_from_slice(&u32::try_from(body.len()).ok()?.to_be_bytes());
        bytes.extend_from_slice(&body);
    }
    bytes.resize(bytes.len() + old.hash().len(), 0);
    Some(Merged { bytes, kept, new })
}
