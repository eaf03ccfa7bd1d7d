//! The overlay as rows of the store: one for each inode, one for each name.

use super::change::{decode_source, encode_source};
use super::{Body, Extents, Inode, Known, Node, Overlay, Source, Xattrs};
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

impl Overlay {
    /// Puts an inode into its place as a layer has it, or takes it away. The entries of a directory
    /// stay as the layers below have them. In each layer inodes come before names.
    pub(crate) fn load_inode(&mut self, ino: Ino, node: Option<Node>) {
        let Some(mut node) = node else {
            self.nodes.remove(&ino);
            return;
        };
        if let (Body::Directory(entries), Some(below)) = (&mut node.body, self.directory(ino)) {
            **entries = below.clone();
        }
        self.insert(ino, node);
    }

    /// Puts a name into its place as a layer has it; `false` if there is no such directory.
    pub(crate) fn load_entry(&mut self, dir: Ino, name: &[u8], known: Option<Known>) -> bool {
        let Some(directory) = self.directory_mut(dir) else { return known.is_none() };
        match known {
            Some(Known::Added(ino, position)) => directory.add(name, ino, position),
            Some(Known::Hidden) => directory.hide(name),
            None => directory.leave(name),
        }
        true
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
