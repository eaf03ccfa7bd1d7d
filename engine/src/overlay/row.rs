//! The overlay as rows of the store: one for each inode, one for each name.

use std::sync::Arc;

use super::change::{decode_source, encode_source};
use super::{Body, Directory, Extents, Generation, Inode, Known, Node, Overlay, Source, Xattrs};
use crate::fields::Fields;
use crate::id::Ino;
use crate::limits::{NAME_BYTES_MAX, SYMLINK_BYTES_MAX, XATTR_BYTES_MAX};
use crate::worktree::NodeKind;

const BODY_BASE: u8 = 0;
const BODY_FILE: u8 = 1;
const BODY_TARGET: u8 = 2;
const BODY_DIRECTORY: u8 = 3;
const BODY_NOTHING: u8 = 4;

/// A changed inode as the store holds it. None of its bytes lies in the outbox.
pub(crate) struct InodeRow;

impl InodeRow {
    /// The value of the row; `None` if some bytes lie in the outbox.
    pub(crate) fn encode(node: &Node) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(Inode::BYTES + 64);
        node.inode.encode(&mut out);
        match &node.body {
            Body::Base => out.push(BODY_BASE),
            Body::File(extents) => {
                out.push(BODY_FILE);
                out.extend_from_slice(&u32::try_from(extents.len()).ok()?.to_le_bytes());
                for (start, extent) in extents.iter() {
                    if matches!(extent.source, Source::Fresh(_)) {
                        return None;
                    }
                    out.extend_from_slice(&start.to_le_bytes());
                    out.extend_from_slice(&extent.len.to_le_bytes());
                    encode_source(&extent.source, &mut out);
                }
            }
            Body::Target(target) => {
                out.push(BODY_TARGET);
                put_bytes(&mut out, target);
            }
            Body::Directory(_) => out.push(BODY_DIRECTORY),
            Body::Nothing => out.push(BODY_NOTHING),
        }
        for (name, value) in node.xattrs.iter().flat_map(|xattrs| xattrs.iter()) {
            put_bytes(&mut out, name);
            put_bytes(&mut out, value);
        }
        Some(out)
    }

    /// The inverse of [`InodeRow::encode`]; `None` for anything else.
    pub(crate) fn decode(value: &[u8]) -> Option<Node> {
        let mut fields = Fields(value);
        let inode = Inode::decode(&mut fields)?;
        let body = match fields.take()? {
            [BODY_BASE] => Body::Base,
            [BODY_FILE] if inode.kind == NodeKind::File => {
                let mut extents = Extents::default();
                let mut end = 0;
                for _ in 0..fields.u32()? {
                    let (start, len) = (fields.u64()?, fields.u64()?);
                    let source = decode_source(&mut fields)?;
                    // In order, without overlap, and none empty: what `Extents` relies on.
                    if start < end || len == 0 {
                        return None;
                    }
                    end = start.checked_add(len)?;
                    extents.set(start..end, source);
                }
                Body::File(Box::new(extents))
            }
            [BODY_TARGET] if inode.kind == NodeKind::Symlink => {
                Body::Target(bytes(&mut fields, SYMLINK_BYTES_MAX as usize)?.into())
            }
            [BODY_DIRECTORY] if inode.kind == NodeKind::Directory => {
                Body::Directory(Box::default())
            }
            [BODY_NOTHING] => Body::Nothing,
            _ => return None,
        };
        let mut xattrs = Xattrs::new();
        while !fields.0.is_empty() {
            let name = bytes(&mut fields, NAME_BYTES_MAX)?;
            xattrs.insert(name.into(), bytes(&mut fields, XATTR_BYTES_MAX)?.into());
        }
        let xattrs = (!xattrs.is_empty()).then(|| Box::new(xattrs));
        Some(Node { inode, body, xattrs })
    }
}

/// What a changed directory says of a name, as the store holds it.
pub(crate) struct EntryRow;

impl EntryRow {
    /// The value of the row. Without anything known it says that the name is left to the base,
    /// whatever the layers below say.
    pub(crate) fn encode(known: Option<Known>) -> Vec<u8> {
        let (ino, position) = match known {
            Some(Known::Added(ino, position)) => (ino.0, position),
            Some(Known::Hidden) => (0, 0),
            None => (0, 1),
        };
        [ino.to_le_bytes(), position.to_le_bytes()].concat()
    }

    /// The inverse of [`EntryRow::encode`]; `None` for anything else.
    pub(crate) fn decode(value: &[u8]) -> Option<Option<Known>> {
        let mut fields = Fields(value);
        let known = match (fields.u64()?, fields.u64()?) {
            (0, 0) => Some(Known::Hidden),
            (0, 1) => None,
            (0, _) => return None,
            (ino, position) => Some(Known::Added(Ino(ino), position)),
        };
        fields.0.is_empty().then_some(known)
    }
}

/// Inodes as a layer has them, made of its rows. In each part of a layer the rows of inodes come first, then
/// those of names, both in order of the inodes.
#[derive(Debug)]
pub(crate) struct LayerNodes<'a> {
    /// What the layers below have.
    below: &'a Overlay,
    /// Inodes that have a row, in order.
    nodes: Vec<(Ino, Option<Node>)>,
    /// Up to here no more names are to come.
    at: usize,
    /// Directories that have no row and names that have, in order.
    others: Vec<(Ino, Node)>,
}

impl<'a> LayerNodes<'a> {
    /// None yet.
    pub(crate) fn above(below: &'a Overlay) -> Self {
        Self { below, nodes: Vec::new(), at: 0, others: Vec::new() }
    }

    /// Takes the row of an inode; without a node it is gone. The entries of a directory stay as the
    /// layers below have them.
    pub(crate) fn inode(&mut self, ino: Ino, mut node: Option<Node>) {
        if let Some(Node { body: Body::Directory(entries), .. }) = &mut node
            && let Some(below) = self.below.directory(ino)
        {
            **entries = below.clone();
        }
        self.nodes.push((ino, node));
    }

    /// Takes the row of a name; `false` if there is no such directory.
    pub(crate) fn entry(&mut self, dir: Ino, name: &[u8], known: Option<Known>) -> bool {
        let Some(directory) = self.directory(dir) else { return known.is_none() };
        match known {
            Some(Known::Added(ino, position)) => directory.add(name, ino, position),
            Some(Known::Hidden) => directory.hide(name),
            None => directory.leave(name),
        }
        true
    }

    fn directory(&mut self, dir: Ino) -> Option<&mut Directory> {
        while self.nodes.get(self.at).is_some_and(|(ino, _)| *ino < dir) {
            self.at += 1;
        }
        let node = match self.nodes.get_mut(self.at) {
            Some((ino, node)) if *ino == dir => node.as_mut()?,
            _ => {
                if self.others.last().is_none_or(|(ino, _)| *ino != dir) {
                    self.others.push((dir, self.below.node(dir)?.clone()));
                }
                &mut self.others.last_mut()?.1
            }
        };
        match &mut node.body {
            Body::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    /// The inodes of which the layer says something, complete.
    pub(crate) fn finish(self) -> Vec<(Ino, Option<Arc<Node>>)> {
        let others = self.others.into_iter().map(|(ino, node)| (ino, Some(node)));
        let nodes = self.nodes.into_iter().chain(others);
        nodes.map(|(ino, node)| (ino, node.map(Arc::new))).collect()
    }
}

impl Overlay {
    /// Puts inodes into their place as a layer has them, or takes them away.
    pub(crate) fn load(&mut self, nodes: Vec<(Ino, Option<Arc<Node>>)>) {
        self.generation = Generation::new(None);
        for (ino, node) in nodes {
            match node {
                Some(node) => {
                    self.count_names(ino, node.inode.nlink);
                    self.nodes.insert(ino, node);
                }
                None => {
                    self.nameless.remove(&ino);
                    self.nodes.remove(&ino);
                }
            }
        }
    }

    /// States the highest number that a new inode has had.
    pub(crate) fn load_last_new(&mut self, last: u64) {
        self.last_new = self.last_new.max(last);
    }

    /// The highest number that a new inode has had.
    pub(crate) fn last_new(&self) -> u64 {
        self.last_new
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn bytes<'a>(fields: &mut Fields<'a>, max: usize) -> Option<&'a [u8]> {
    let len = fields.u32()? as usize;
    if len > max { None } else { fields.bytes(len) }
}
