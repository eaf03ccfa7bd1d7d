//! A change of a branch: what one outbox record says.
//!
//! A change is a list of puts, each of which states how something is from now on. So applying a
//! change twice is applying it once, and applying any tail of a log again, in order, ends in the
//! same state: what recovery relies on.

use super::extents::Source;
use super::inode::Inode;
use crate::fields::Fields;
use crate::id::{ChunkId, Ino, LayerNumber};
use crate::limits::{NAME_BYTES_MAX, SYMLINK_BYTES_MAX, XATTR_BYTES_MAX};

/// How one thing is from now on.
#[derive(Clone, Debug, PartialEq)]
pub enum Put<'a> {
    /// An inode has these attributes. One that was not there begins without content.
    Inode(Ino, Inode),
    /// An inode of the base that was not changed yet has these attributes and keeps its content.
    CopyUp(Ino, Inode),
    /// An entry of a directory is this inode, and is listed at this position.
    Add {
        /// The directory.
        dir: Ino,
        /// The name.
        name: &'a [u8],
        /// What it names.
        ino: Ino,
        /// Where it is listed.
        position: u64,
    },
    /// A directory has no such entry.
    Remove {
        /// The directory.
        dir: Ino,
        /// The name.
        name: &'a [u8],
        /// Whether the base has such an entry, which is hidden now.
        hides: bool,
    },
    /// A symbolic link leads to this target.
    Target(Ino, &'a [u8]),
    /// An extended attribute has this value, or is not there.
    Xattr(Ino, &'a [u8], Option<&'a [u8]>),
    /// A range of a file has the next bytes of the record's body.
    Data {
        /// The file.
        ino: Ino,
        /// Where the range begins.
        offset: u64,
        /// Its length.
        len: u64,
    },
    /// A range of a file is a hole.
    Hole {
        /// The file.
        ino: Ino,
        /// Where the range begins.
        offset: u64,
        /// Its length.
        len: u64,
    },
    /// A range of a file has the bytes at `source`, which is no [`Source::Fresh`].
    Share {
        /// The file.
        ino: Ino,
        /// Where the range begins.
        offset: u64,
        /// Its length.
        len: u64,
        /// Where the bytes lie.
        source: Source,
    },
    /// An inode is gone, with everything in it.
    Forget(Ino),
    /// What follows goes into this layer; the one before it is sealed. A record says nothing else
    /// beside it.
    Seal(LayerNumber),
    /// What follows goes into this layer, which lies on another one, or on the bare base: everything is as
    /// it is there. That one is drained. A record says nothing else beside it.
    Stand(LayerNumber, Option<LayerNumber>),
    /// The record is this part, from 1, of a change that so many records make together: it is made when the
    /// last one is there, and not at all if anything else comes before that. The first put of its record. The
    /// last part may end in a [`Put::Seal`], which is made with it; none has [`Put::Data`].
    Part(u64, u64),
}

const INODE: u8 = 1;
const COPY_UP: u8 = 2;
const ADD: u8 = 3;
const REMOVE: u8 = 4;
const TARGET: u8 = 5;
const XATTR: u8 = 6;
const DATA: u8 = 7;
const HOLE: u8 = 8;
const SHARE: u8 = 9;
const FORGET: u8 = 10;
const SEAL: u8 = 11;
const STAND: u8 = 12;
const PART: u8 = 13;

const SOURCE_CHUNK: u8 = 1;
const SOURCE_BASE: u8 = 2;

impl<'a> Put<'a> {
    /// Appends the bytes of this put.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let mut start = |tag: u8, ino: &Ino| {
            out.push(tag);
            out.extend_from_slice(&ino.0.to_le_bytes());
        };
        match self {
            Self::Inode(ino, inode) => {
                start(INODE, ino);
                inode.encode(out);
            }
            Self::CopyUp(ino, inode) => {
                start(COPY_UP, ino);
                inode.encode(out);
            }
            Self::Add { dir, name, ino, position } => {
                start(ADD, dir);
                out.extend_from_slice(&ino.0.to_le_bytes());
                out.extend_from_slice(&position.to_le_bytes());
                put_bytes(out, name);
            }
            Self::Remove { dir, name, hides } => {
                start(REMOVE, dir);
                out.push((*hides).into());
                put_bytes(out, name);
            }
            Self::Target(ino, target) => {
                start(TARGET, ino);
                put_bytes(out, target);
            }
            Self::Xattr(ino, name, value) => {
                start(XATTR, ino);
                put_bytes(out, name);
                out.push(value.is_some().into());
                put_bytes(out, value.unwrap_or_default());
            }
            Self::Data { ino, offset, len } => {
                start(DATA, ino);
                put_range(out, *offset, *len);
            }
            Self::Hole { ino, offset, len } => {
                start(HOLE, ino);
                put_range(out, *offset, *len);
            }
            Self::Share { ino, offset, len, source } => {
                start(SHARE, ino);
                put_range(out, *offset, *len);
                encode_source(source, out);
            }
            Self::Forget(ino) => start(FORGET, ino),
            Self::Seal(layer) => start(SEAL, &Ino(layer.0)),
            Self::Stand(layer, on) => {
                start(STAND, &Ino(layer.0));
                out.extend_from_slice(&on.map_or(0, |on| on.0).to_le_bytes());
            }
            Self::Part(part, parts) => {
                start(PART, &Ino(*part));
                out.extend_from_slice(&parts.to_le_bytes());
            }
        }
    }

    /// Takes the next put off the front; `None` for bytes that are none.
    pub(crate) fn decode(fields: &mut Fields<'a>) -> Option<Self> {
        let [tag] = fields.take()?;
        let ino = Ino(fields.u64()?);
        Some(match tag {
            INODE => Self::Inode(ino, Inode::decode(fields)?),
            COPY_UP => Self::CopyUp(ino, Inode::decode(fields)?),
            ADD => {
                let (target, position) = (Ino(fields.u64()?), fields.u64()?);
                Self::Add { dir: ino, name: name(fields)?, ino: target, position }
            }
            REMOVE => {
                let hides = flag(fields)?;
                Self::Remove { dir: ino, name: name(fields)?, hides }
            }
            TARGET => Self::Target(ino, bytes(fields, SYMLINK_BYTES_MAX as usize)?),
            XATTR => {
                let name = name(fields)?;
                let is_set = flag(fields)?;
                let value = bytes(fields, XATTR_BYTES_MAX)?;
                Self::Xattr(ino, name, is_set.then_some(value))
            }
            DATA => {
                let (offset, len) = range(fields)?;
                Self::Data { ino, offset, len }
            }
            HOLE => {
                let (offset, len) = range(fields)?;
                Self::Hole { ino, offset, len }
            }
            SHARE => {
                let (offset, len) = range(fields)?;
                Self::Share { ino, offset, len, source: decode_source(fields)? }
            }
            FORGET => Self::Forget(ino),
            SEAL => Self::Seal(LayerNumber(ino.0)),
            STAND => {
                let on = fields.u64()?;
                Self::Stand(LayerNumber(ino.0), (on != 0).then_some(LayerNumber(on)))
            }
            PART => Self::Part(ino.0, fields.u64()?),
            _ => return None,
        })
    }
}

/// Appends the bytes of a source in the store or in the base. One in the outbox has none: a record
/// says `Data` for it.
pub(crate) fn encode_source(source: &Source, out: &mut Vec<u8>) {
    match source {
        Source::Chunk(id, offset) => {
            out.push(SOURCE_CHUNK);
            out.extend_from_slice(id.as_bytes());
            out.extend_from_slice(&offset.to_le_bytes());
        }
        Source::Base(ino, offset) => {
            out.push(SOURCE_BASE);
            out.extend_from_slice(&ino.0.to_le_bytes());
            out.extend_from_slice(&offset.to_le_bytes());
        }
        Source::Fresh(_) => {}
    }
}

/// The inverse of [`encode_source`].
pub(crate) fn decode_source(fields: &mut Fields<'_>) -> Option<Source> {
    Some(match fields.take()? {
        [SOURCE_CHUNK] => Source::Chunk(ChunkId::new(fields.take()?), fields.u32()?),
        [SOURCE_BASE] => Source::Base(Ino(fields.u64()?), fields.u64()?),
        _ => return None,
    })
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_range(out: &mut Vec<u8>, offset: u64, len: u64) {
    out.extend_from_slice(&offset.to_le_bytes());
    out.extend_from_slice(&len.to_le_bytes());
}

fn bytes<'a>(fields: &mut Fields<'a>, max: usize) -> Option<&'a [u8]> {
    let len = fields.u32()? as usize;
    if len > max { None } else { fields.bytes(len) }
}

fn name<'a>(fields: &mut Fields<'a>) -> Option<&'a [u8]> {
    bytes(fields, NAME_BYTES_MAX).filter(|name| !name.is_empty())
}

fn flag(fields: &mut Fields<'_>) -> Option<bool> {
    match fields.take()? {
        [0] => Some(false),
        [1] => Some(true),
        _ => None,
    }
}

fn range(fields: &mut Fields<'_>) -> Option<(u64, u64)> {
    let (offset, len) = (fields.u64()?, fields.u64()?);
    offset.checked_add(len).map(|_| (offset, len))
}
