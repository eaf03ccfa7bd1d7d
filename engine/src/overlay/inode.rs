//! The attributes of an inode that a branch has changed or made.

use crate::fields::Fields;
use crate::id::Ino;
use crate::worktree::{NodeKind, Timestamp};

/// What `stat` reports of an inode, as far as it is not derived from its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode {
    /// The type.
    pub kind: NodeKind,
    /// The 12 permission bits.
    pub permissions: u16,
    /// Number of names; for a directory 2 and one for each subdirectory, 0 once it is removed.
    pub nlink: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The number of a device, 0 for anything else.
    pub rdev: u32,
    /// Size in bytes.
    pub size: u64,
    /// Time of the last access that was set.
    pub accessed: Timestamp,
    /// Time of the last change of content.
    pub modified: Timestamp,
    /// Time of the last change of anything.
    pub changed: Timestamp,
    /// The directory above a directory, or for which a file was made that never had a name; 0 for
    /// anything else, which may have several.
    pub parent: Ino,
}

impl Inode {
    /// Length of the encoding in bytes.
    pub(crate) const BYTES: usize = 1 + 2 + 4 * 4 + 8 + 3 * 12 + 8;

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.kind.tag());
        out.extend_from_slice(&self.permissions.to_le_bytes());
        for field in [self.nlink, self.uid, self.gid, self.rdev] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&self.size.to_le_bytes());
        for time in [self.accessed, self.modified, self.changed] {
            out.extend_from_slice(&time.seconds.to_le_bytes());
            out.extend_from_slice(&time.nanoseconds.to_le_bytes());
        }
        out.extend_from_slice(&self.parent.0.to_le_bytes());
    }

    /// The inverse of [`Inode::encode`]; `None` for anything else.
    pub(crate) fn decode(fields: &mut Fields<'_>) -> Option<Self> {
        let [kind] = fields.take()?;
        let permissions = u16::from_le_bytes(fields.take()?);
        let inode = Self {
            kind: NodeKind::from_tag(kind)?,
            permissions,
            nlink: fields.u32()?,
            uid: fields.u32()?,
            gid: fields.u32()?,
            rdev: fields.u32()?,
            size: fields.u64()?,
            accessed: timestamp(fields)?,
            modified: timestamp(fields)?,
            changed: timestamp(fields)?,
            parent: Ino(fields.u64()?),
        };
        (permissions <= 0o7777).then_some(inode)
    }
}

fn timestamp(fields: &mut Fields<'_>) -> Option<Timestamp> {
    let seconds = i64::from_le_bytes(fields.take()?);
    let nanoseconds = fields.u32()?;
    Some(Timestamp { seconds, nanoseconds }).filter(|time| time.is_possible())
}
