//! All that can be seen of a worktree, to be compared as a whole.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use super::{Body, Model, Node, Time};
use crate::error::Result;
use crate::id::Ino;
use crate::worktree::{Attributes, NodeKind, Worktree};

#[derive(Clone, Debug, PartialEq, Eq)]
enum Content {
    /// The digest of the bytes.
    File([u8; 32]),
    Target(Vec<u8>),
    /// Where `..` leads.
    Directory(Ino),
    Nothing,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    attributes: Attributes,
    content: Content,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Every inode that has a name, and every name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct View {
    inodes: BTreeMap<Ino, Seen>,
    names: BTreeMap<(Ino, Vec<u8>), Ino>,
}

impl View {
    /// What is seen through `worktree`, which must agree with itself: a listing, with and without
    /// attributes, says what lookups and attributes say.
    pub(super) fn of(worktree: &Worktree) -> Result<Self> {
        let mut view = Self::default();
        let mut waiting = vec![Ino::ROOT];
        let mut entered = BTreeSet::new();
        while let Some(dir) = waiting.pop() {
            assert!(entered.insert(dir), "directory {dir} has two places");
            let mut listed = Vec::new();
            worktree.read_directory(dir, 0, true, &mut |entry| {
                listed.push((entry.name.to_vec(), entry.ino, entry.kind, entry.attributes));
                true
            })?;
            let mut plain = Vec::new();
            worktree.read_directory(dir, 0, false, &mut |entry| {
                plain.push((entry.name.to_vec(), entry.ino, entry.kind));
                true
            })?;
            let names = listed.iter().map(|(name, ino, kind, _)| (name.clone(), *ino, *kind));
            assert!(names.eq(plain), "two listings of {dir} differ");
            let mut parent = None;
            for (name, ino, kind, attributes) in listed {
                match name.as_slice() {
                    b"." => assert_eq!(ino, dir),
                    b".." => parent = Some(ino),
                    _ => {
                        let found = worktree.lookup(dir, &name)?;
                        assert_eq!(
                            found, attributes,
                            "{dir} {name:?}: a listing and a lookup differ"
                        );
                        assert_eq!(found.map(|found| (found.ino, found.kind)), Some((ino, kind)));
                        assert!(
                            view.names.insert((dir, name.clone()), ino).is_none(),
                            "{name:?} is listed twice in {dir}"
                        );
                        if kind == NodeKind::Directory {
                            waiting.push(ino);
                        } else if let Entry::Vacant(place) = view.inodes.entry(ino) {
                            place.insert(Seen::of(worktree, ino, None)?);
                        }
                    }
                }
            }
            view.inodes.insert(dir, Seen::of(worktree, dir, parent)?);
        }
        Ok(view)
    }

    /// What should be seen.
    pub(super) fn expected(model: &Model) -> Self {
        let links = model.links();
        let named = model.inodes().filter(|(ino, _)| links[ino] > 0);
        let inodes = named.map(|(ino, node)| (ino, Seen::expected(ino, node, links[&ino])));
        let inodes = inodes.collect();
        let names = model.names().filter(|(dir, ..)| links[dir] > 0);
        let names = names.map(|(dir, name, ino)| ((dir, name.to_vec()), ino)).collect();
        Self { inodes, names }
    }

    /// The first thing in which two views differ, for a message.
    pub(super) fn difference(&self, other: &Self) -> String {
        let keys: BTreeSet<_> = self.names.keys().chain(other.names.keys()).collect();
        for key in keys {
            let (one, two) = (self.names.get(key), other.names.get(key));
            if one != two {
                let name = String::from_utf8_lossy(&key.1);
                return format!("{name:?} in directory {}: {one:?} and {two:?}", key.0);
            }
        }
        let keys: BTreeSet<_> = self.inodes.keys().chain(other.inodes.keys()).collect();
        for key in keys {
            let (one, two) = (self.inodes.get(key), other.inodes.get(key));
            if one != two {
                return format!("inode {key}:\n{one:?}\nand\n{two:?}");
            }
        }
        "nothing".into()
    }
}

/// What is seen of an inode without a name.
pub(super) fn assert_orphan(worktree: &Worktree, model: &Model, ino: Ino) {
    let node = model.node(ino).expect("an inode of the model");
    let expected = Seen::expected(ino, node, 0);
    let parent = match expected.content {
        Content::Directory(parent) => Some(parent),
        _ => None,
    };
    let seen = Seen::of(worktree, ino, parent).expect("an orphan is read");
    assert_eq!(seen, expected, "inode {ino}, which has no name");
}

impl Seen {
    fn of(worktree: &Worktree, ino: Ino, parent: Option<Ino>) -> Result<Self> {
        let attributes = worktree.attributes(ino)?;
        let content = match attributes.kind {
            NodeKind::File => {
                let mut bytes = vec![0xee; attributes.size as usize + 1];
                let len = worktree.read(ino, 0, &mut bytes)?;
                assert_eq!(len as u64, attributes.size, "inode {ino}");
                Content::File(*blake3::hash(&bytes[..len]).as_bytes())
            }
            NodeKind::Symlink => Content::Target(worktree.read_link(ino)?),
            NodeKind::Directory => Content::Directory(parent.expect("a listing has its parent")),
            _ => Content::Nothing,
        };
        let mut xattrs = BTreeMap::new();
        for name in worktree.xattr_names(ino)? {
            let value = worktree.xattr(ino, &name)?.expect("a listed attribute");
            xattrs.insert(name, value);
        }
        Ok(Self { attributes, content, xattrs })
    }

    fn expected(ino: Ino, node: &Node, nlink: u32) -> Self {
        let at = |time| match time {
            Time::At(time) => time,
            other => panic!("{other:?} was never settled"),
        };
        let (size, allocated, content) = match &node.body {
            Body::File(file) => {
                let (digest, allocated) = file.sum();
                (file.bytes.len() as u64, allocated, Content::File(digest))
            }
            Body::Target(target) => {
                (target.len() as u64, target.len() as u64, Content::Target(target.clone()))
            }
            Body::Directory { parent, size, .. } => (*size, *size, Content::Directory(*parent)),
            Body::Nothing => (0, 0, Content::Nothing),
        };
        let attributes = Attributes {
            ino,
            kind: node.kind,
            permissions: node.permissions,
            size,
            blocks: allocated.div_ceil(512),
            accessed: at(node.accessed),
            modified: at(node.modified),
            changed: at(node.changed),
            nlink,
            uid: node.uid,
            gid: node.gid,
            rdev: node.rdev,
        };
        Self { attributes, content, xattrs: node.xattrs.clone() }
    }
}
