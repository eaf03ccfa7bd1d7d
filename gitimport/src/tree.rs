//! Tree objects as git writes them, checked as `git fsck` checks them.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agentfs_engine::tree::EntryKind;
use agentfs_engine::{GitOid, HashKind};

use crate::limits::REMEMBERED_TREES_BYTES;
use crate::names;
use crate::object::{Kind, object_id};

/// A checked tree object. Its entries are in the order of their plain names.
#[derive(Debug)]
pub(crate) struct GitTree {
    hash: HashKind,
    bytes: Vec<u8>,
    entries: Vec<Span>,
    /// Whether all modes are written as git writes them today.
    canonical: bool,
}

/// Where an entry lies in the object.
#[derive(Clone, Copy, Debug)]
struct Span {
    name: u32,
    name_len: u8,
    kind: EntryKind,
}

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct GitEntry<'a> {
    pub(crate) kind: EntryKind,
    pub(crate) name: &'a [u8],
    pub(crate) oid: GitOid,
}

/// Why a tree is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TreeFault {
    /// The entry's name; empty if it is the object as a whole.
    pub(crate) name: Vec<u8>,
    pub(crate) why: String,
}

impl GitTree {
    /// Checks `bytes`, which hold fewer than 2^32 bytes.
    pub(crate) fn parse(hash: HashKind, bytes: Vec<u8>) -> Result<Self, TreeFault> {
        let mut tree = Self { hash, bytes, entries: Vec::new(), canonical: true };
        let mut at = 0;
        while at < tree.bytes.len() {
            at = tree.parse_entry(at)?;
        }
        let bytes = &tree.bytes;
        if !tree.entries.is_sorted_by_key(|span| span.name(bytes)) {
            tree.entries.sort_by_key(|span| span.name(bytes));
        }
        // The order that git demands leaves room for a file and a directory of one name.
        let repeated =
            tree.entries.windows(2).find(|pair| pair[0].name(bytes) == pair[1].name(bytes));
        if let Some(pair) = repeated {
            return Err(TreeFault::new(pair[0].name(bytes), "there are two entries of this name"));
        }
        Ok(tree)
    }

    /// Checks the entry at `at`, and its place after the last one; returns where it ends.
    fn parse_entry(&mut self, at: usize) -> Result<usize, TreeFault> {
        let rest = &self.bytes[at..];
        let whole = |why: &str| TreeFault::new(b"", why);
        let nul =
            rest.iter().position(|&byte| byte == 0).ok_or_else(|| whole("an entry is cut off"))?;
        let head = &rest[..nul];
        let space = head
            .iter()
            .position(|&byte| byte == b' ')
            .ok_or_else(|| whole("an entry has no mode or no name"))?;
        let (mode, name) = (&head[..space], &head[space + 1..]);
        let (kind, canonical) = parse_mode(mode).map_err(|why| TreeFault::new(name, why))?;
        if let Some(fault) = names::fault(kind, name) {
            return Err(TreeFault::new(name, fault));
        }
        let end = nul + 1 + self.hash.len();
        if rest.len() < end {
            return Err(TreeFault::new(name, "its object id is cut off"));
        }
        // A name that passed has at most 255 bytes.
        let span = Span { name: (at + space + 1) as u32, name_len: name.len() as u8, kind };
        if let Some(last) = self.entries.last() {
            let last = (last.kind, last.name(&self.bytes));
            match git_order(last, (kind, name)) {
                Ordering::Less => {}
                Ordering::Equal => {
                    return Err(TreeFault::new(name, "there are two entries of this name"));
                }
                Ordering::Greater => {
                    return Err(TreeFault::new(name, "the entry is out of order"));
                }
            }
        }
        self.entries.push(span);
        self.canonical &= canonical;
        Ok(at + end)
    }

    /// Number of entries.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Length of the object in bytes.
    pub(crate) fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Entry `index` in the order of plain names.
    pub(crate) fn entry(&self, index: usize) -> GitEntry<'_> {
        let span = self.entries[index];
        let id = span.name as usize + usize::from(span.name_len) + 1;
        let oid = GitOid::from_slice(self.hash, &self.bytes[id..id + self.hash.len()])
            .expect("as many bytes as an id has");
        GitEntry { kind: span.kind, name: span.name(&self.bytes), oid }
    }

    /// All entries in the order of plain names.
    pub(crate) fn entries(&self) -> impl Iterator<Item = GitEntry<'_>> {
        (0..self.len()).map(|index| self.entry(index))
    }

    /// The entry called `name`.
    pub(crate) fn find(&self, name: &[u8]) -> Option<GitEntry<'_>> {
        let found = self.entries.binary_search_by_key(&name, |span| span.name(&self.bytes));
        found.ok().map(|index| self.entry(index))
    }

    /// The id that this tree has when its modes are written as git writes them today, if they are
    /// not: git took part of the permissions of files and leading zeros once.
    pub(crate) fn canonical_id(&self) -> Option<Result<GitOid, String>> {
        if self.canonical {
            return None;
        }
        Some(object_id(self.hash, Kind::Tree, &encode(self.entries())))
    }
}

/// Trees that were read not long ago, by their ids: whoever goes to a commit may go back.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    /// With how many bytes they are. Leaf lock.
    known: Mutex<(HashMap<GitOid, Arc<GitTree>>, usize)>,
}

impl Remembered {
    pub(crate) fn get(&self, oid: &GitOid) -> Option<Arc<GitTree>> {
        self.known().0.get(oid).map(Arc::clone)
    }

    /// Remembers a tree, and forgets all others if they have become too many.
    pub(crate) fn put(&self, oid: GitOid, tree: &Arc<GitTree>) {
        let size = tree.bytes.len() + tree.entries.len() * size_of::<Span>();
        let mut known = self.known();
        if known.1 + size > REMEMBERED_TREES_BYTES {
            *known = Default::default();
        }
        if size <= REMEMBERED_TREES_BYTES && known.0.insert(oid, Arc::clone(tree)).is_none() {
            known.1 += size;
        }
    }

    fn known(&self) -> MutexGuard<'_, (HashMap<GitOid, Arc<GitTree>>, usize)> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Span {
    fn name<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        &bytes[self.name as usize..self.name as usize + usize::from(self.name_len)]
    }
}

impl TreeFault {
    fn new(name: &[u8], why: impl Into<String>) -> Self {
        Self { name: name.to_owned(), why: why.into() }
    }
}

/// Reads a mode; also whether it is written as git writes it today.
fn parse_mode(digits: &[u8]) -> Result<(EntryKind, bool), String> {
    let refused = || format!("its mode is {:?}", String::from_utf8_lossy(digits));
    if digits.is_empty()
        || digits.len() > 7
        || !digits.iter().all(|byte| matches!(byte, b'0'..=b'7'))
    {
        return Err(refused());
    }
    let mode = digits.iter().fold(0_u32, |mode, digit| mode << 3 | u32::from(digit - b'0'));
    let kind = match mode {
        0o100_644 | 0o100_664 => EntryKind::File,
        0o100_755 => EntryKind::Executable,
        0o120_000 => EntryKind::Symlink,
        0o160_000 => EntryKind::Gitlink,
        0o040_000 => EntryKind::Directory,
        _ => return Err(refused()),
    };
    Ok((kind, digits == mode_of(kind)))
}

const fn mode_of(kind: EntryKind) -> &'static [u8] {
    match kind {
        EntryKind::File => b"100644",
        EntryKind::Executable => b"100755",
        EntryKind::Symlink => b"120000",
        EntryKind::Gitlink => b"160000",
        EntryKind::Directory => b"40000",
    }
}

/// The order of entries in a tree object: directories as if their names ended in a slash.
fn git_order(one: (EntryKind, &[u8]), other: (EntryKind, &[u8])) -> Ordering {
    let common = one.1.len().min(other.1.len());
    let next = |(kind, name): (EntryKind, &[u8])| match name.get(common) {
        Some(&byte) => byte,
        None if kind == EntryKind::Directory => b'/',
        None => 0,
    };
    one.1[..common].cmp(&other.1[..common]).then_with(|| next(one).cmp(&next(other)))
}

/// The tree object that holds `entries`, which have different names.
pub(crate) fn encode<'a>(entries: impl Iterator<Item = GitEntry<'a>>) -> Vec<u8> {
    let mut entries: Vec<_> = entries.collect();
    entries.sort_by(|one, other| git_order((one.kind, one.name), (other.kind, other.name)));
    let mut bytes = Vec::new();
    for entry in entries {
        bytes.extend_from_slice(mode_of(entry.kind));
        bytes.push(b' ');
        bytes.extend_from_slice(entry.name);
        bytes.push(0);
        bytes.extend_from_slice(entry.oid.as_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn raw(entries: &[(&str, &str)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (mode, name) in entries {
            bytes.extend_from_slice(format!("{mode} {name}\0").as_bytes());
            bytes.extend_from_slice(&[7; 20]);
        }
        bytes
    }

    fn parse(entries: &[(&str, &str)]) -> Result<GitTree, TreeFault> {
        GitTree::parse(HashKind::Sha1, raw(entries))
    }

    #[test]
    fn all_kinds_in_plain_order() {
        let tree = parse(&[
            ("100644", "a"),
            ("100644", "foo.bar"),
            ("40000", "foo"),
            ("120000", "link"),
            ("160000", "module"),
            ("100755", "run"),
        ])
        .unwrap();
        let seen: Vec<_> = tree.entries().map(|entry| (entry.name, entry.kind)).collect();
        assert_eq!(seen[1], (&b"foo"[..], EntryKind::Directory));
        assert_eq!(seen[2], (&b"foo.bar"[..], EntryKind::File));
        assert!(seen.is_sorted_by_key(|(name, _)| *name) && seen.len() == 6);
        assert_eq!(tree.find(b"run").unwrap().kind, EntryKind::Executable);
        assert!(tree.find(b"ru").is_none() && tree.canonical_id().is_none());
        assert_eq!(encode(tree.entries()), tree.bytes);
        assert_eq!(parse(&[]).unwrap().len(), 0);
    }

    #[test]
    fn old_modes_are_taken_for_what_they_became() {
        let tree = parse(&[("100664", "a"), ("040000", "b")]).unwrap();
        assert_eq!(tree.entry(0).kind, EntryKind::File);
        assert_eq!(tree.entry(1).kind, EntryKind::Directory);
        let today = raw(&[("100644", "a"), ("40000", "b")]);
        assert_eq!(
            tree.canonical_id().unwrap().unwrap(),
            object_id(HashKind::Sha1, Kind::Tree, &today).unwrap()
        );
    }

    #[test]
    fn what_fsck_reports_is_refused() {
        for (entries, why) in [
            (&[("100644", "a"), ("100644", "a")][..], "two entries"),
            (&[("100644", "foo"), ("100644", "foo.bar"), ("40000", "foo")], "two entries"),
            (&[("100644", "b"), ("100644", "a")], "out of order"),
            (&[("40000", "foo"), ("100644", "foo.bar")], "out of order"),
            (&[("100600", "a")], "its mode is \"100600\""),
            (&[("0", "a")], "its mode"),
            (&[("", "a")], "its mode"),
            (&[("1", "a")], "its mode"),
            (&[("10x644", "a")], "its mode"),
            (&[("777777777777777777777777100644", "a")], "its mode"),
            (&[("140000", "a")], "its mode"),
            (&[("100644", "")], "without a name"),
            (&[("40000", "..")], "named . or .."),
            (&[("100644", "a/b")], "slash"),
            (&[("40000", ".GIT")], ".git"),
            (&[("120000", ".gitmodules")], ".gitmodules"),
        ] {
            let fault = parse(entries).unwrap_err();
            assert!(fault.why.contains(why), "{entries:?}: {}", fault.why);
        }
        let whole = raw(&[("100644", "a")]);
        for end in 1..whole.len() {
            assert!(GitTree::parse(HashKind::Sha1, whole[..end].to_vec()).is_err());
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = GitTree::parse(HashKind::Sha1, bytes);
        }

        // Names from a few letters, so that prefixes of each other are common.
        #[test]
        fn any_set_of_names_survives(names in prop::collection::btree_map("[a./ -]{1,4}", any::<bool>(), 0..12)) {
            let names: Vec<_> = names.into_iter().filter(|(name, _)| !name.contains('/') && name != "." && name != "..").collect();
            let oid = GitOid::from_slice(HashKind::Sha1, &[7; 20]).unwrap();
            let entries: Vec<_> = names.iter().map(|(name, dir)| GitEntry {
                kind: if *dir { EntryKind::Directory } else { EntryKind::File }, name: name.as_bytes(), oid,
            }).collect();
            let tree = GitTree::parse(HashKind::Sha1, encode(entries.iter().copied())).unwrap();
            prop_assert_eq!(tree.entries().collect::<Vec<_>>(), entries);
        }
    }
}
