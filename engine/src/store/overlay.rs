//! What is drained of the branches: rows of inodes and names, and how far each branch is drained.
//!
//! Keys begin with the number of the branch and go on with that of the inode, both big-endian, so
//! that what belongs together lies together.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use super::batch::Batch;
use super::tables::{Table, corrupt_entry};
use super::{Snapshot, Store, decode_sealed};
use crate::error::Result;
use crate::fields::Fields;
use crate::id::{BranchNumber, Ino, Sequence};
use crate::overlay::{EntryRow, InodeRow, Known, Node, Overlay};

fn branch_prefix(branch: BranchNumber) -> [u8; 8] {
    branch.0.to_be_bytes()
}

fn inode_key(branch: BranchNumber, ino: Ino) -> Vec<u8> {
    [branch_prefix(branch), ino.0.to_be_bytes()].concat()
}

fn entry_key(branch: BranchNumber, dir: Ino, name: &[u8]) -> Vec<u8> {
    let mut key = inode_key(branch, dir);
    key.extend_from_slice(name);
    key
}

/// The number of the branch to which a row belongs.
pub(crate) fn branch_of(key: &[u8]) -> Option<BranchNumber> {
    Some(BranchNumber(u64::from_be_bytes(*key.first_chunk()?)))
}

/// Takes the number of the branch and of the inode off a key.
fn split_key(key: &[u8]) -> Option<(Ino, &[u8])> {
    let (_, rest) = key.split_at_checked(8)?;
    let (ino, name) = rest.split_first_chunk::<8>()?;
    Some((Ino(u64::from_be_bytes(*ino)), name))
}

/// A row of what is drained of a branch.
pub(crate) enum Row<'a> {
    /// A changed inode.
    Inode(Ino, Node),
    /// What a directory says of a name.
    Entry(Ino, &'a [u8], Known),
}

/// Up to where a branch is drained, and the highest number of a new inode; `None` if nothing of it
/// ever was.
///
/// # Errors
/// What reading the database meets, [`crate::Error::Corrupt`] for a row that cannot be.
pub(crate) fn drained_of(
    snapshot: &Snapshot,
    branch: BranchNumber,
) -> Result<Option<(Sequence, u64)>> {
    let key = branch_prefix(branch);
    snapshot.get(Table::Overlays, &key, |sealed| {
        decode_sealed(Table::Overlays, &key, sealed, |value| {
            let mut fields = Fields(value);
            let state = (Sequence(fields.u64()?), fields.u64()?);
            fields.0.is_empty().then_some(state)
        })
    })
}

/// Calls `visit` for every row of a branch, inodes first, with what is wrong with those that cannot be
/// read.
///
/// # Errors
/// What reading the database meets, and what `visit` returns.
pub(crate) fn rows_of(
    snapshot: &Snapshot,
    branch: BranchNumber,
    mut visit: impl FnMut(Result<Row<'_>>),
) -> Result<()> {
    let prefix = branch_prefix(branch);
    let bad = |table, key: &[u8]| corrupt_entry(table, key, "its fields are impossible");
    let table = Table::OverlayInodes;
    snapshot.scan(table, &prefix, |key, sealed| {
        let node = decode_sealed(table, key, sealed, InodeRow::decode);
        let place = split_key(key).filter(|(_, rest)| rest.is_empty());
        visit(match (node, place) {
            (Ok(node), Some((ino, _))) => Ok(Row::Inode(ino, node)),
            (Err(error), _) => Err(error),
            (Ok(_), None) => Err(bad(table, key)),
        });
        Ok(())
    })?;
    let table = Table::OverlayEntries;
    snapshot.scan(table, &prefix, |key, sealed| {
        let known = decode_sealed(table, key, sealed, EntryRow::decode);
        let place = split_key(key).filter(|(_, name)| !name.is_empty());
        visit(match (known, place) {
            (Ok(known), Some((dir, name))) => Ok(Row::Entry(dir, name, known)),
            (Err(error), _) => Err(error),
            (Ok(_), None) => Err(bad(table, key)),
        });
        Ok(())
    })
}

impl Store {
    /// The directory in which the outbox of a branch belongs.
    pub fn outbox_dir(&self, branch: BranchNumber) -> PathBuf {
        self.outboxes_dir().join(branch.to_string())
    }

    /// The directory of the outboxes.
    pub(crate) fn outboxes_dir(&self) -> PathBuf {
        self.core.dir.join("outbox")
    }

    /// A number for a new branch. No other has it or had it, since the clock gives it, and the
    /// numbers that it gave before.
    pub fn new_branch_number(&self) -> BranchNumber {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let last = self.last_branch.fetch_max(now, Ordering::Relaxed);
        if now > last {
            return BranchNumber(now);
        }
        BranchNumber(self.last_branch.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// Whether anything that a branch has changed is drained.
    ///
    /// # Errors
    /// What reading the database meets.
    pub fn has_changes(&self, branch: BranchNumber) -> Result<bool> {
        self.core.read(|snapshot| {
            let mut any = false;
            snapshot.scan(Table::OverlayInodes, &branch_prefix(branch), |_, _| {
                any = true;
                Ok(())
            })?;
            Ok(any)
        })
    }

    /// What is drained of a branch: its overlay, and the last record that is in it.
    ///
    /// # Errors
    /// What reading the database meets, [`crate::Error::Corrupt`] for rows that cannot be.
    pub(crate) fn overlay(&self, branch: BranchNumber) -> Result<(Overlay, Sequence)> {
        let prefix = branch_prefix(branch);
        let bad = |table, key: &[u8]| corrupt_entry(table, key, "its fields are impossible");
        self.core.read(|snapshot| {
            let mut overlay = Overlay::default();
            let Some((drained, last_new)) = drained_of(snapshot, branch)? else {
                return Ok((overlay, Sequence::NONE));
            };
            overlay.load_last_new(last_new);
            let table = Table::OverlayInodes;
            snapshot.scan(table, &prefix, |key, sealed| {
                let node = decode_sealed(table, key, sealed, InodeRow::decode)?;
                let (ino, rest) = split_key(key).ok_or_else(|| bad(table, key))?;
                if !rest.is_empty() || ino.0 > last_new && ino.is_new() {
                    return Err(bad(table, key));
                }
                overlay.load_inode(ino, node);
                Ok(())
            })?;
            let table = Table::OverlayEntries;
            snapshot.scan(table, &prefix, |key, sealed| {
                let known = decode_sealed(table, key, sealed, EntryRow::decode)?;
                let (dir, name) = split_key(key).ok_or_else(|| bad(table, key))?;
                if name.is_empty() || !overlay.load_entry(dir, name, known) {
                    return Err(corrupt_entry(table, key, "it is in no directory"));
                }
                Ok(())
            })?;
            Ok((overlay, drained))
        })
    }
}

impl Batch<'_> {
    /// Puts a changed inode of a branch into its row, or takes the row away; `false` for one of
    /// which some bytes lie in the outbox.
    pub(crate) fn put_inode(
        &mut self,
        branch: BranchNumber,
        ino: Ino,
        node: Option<&Node>,
    ) -> bool {
        let key = inode_key(branch, ino);
        match node.map(InodeRow::encode) {
            Some(Some(row)) => self.put_sealed(Table::OverlayInodes, key, row),
            Some(None) => return false,
            None => self.change(Table::OverlayInodes, key, None),
        }
        true
    }

    /// Puts a changed entry of a directory of a branch into its row, or takes the row away.
    pub(crate) fn put_entry(
        &mut self,
        branch: BranchNumber,
        dir: Ino,
        name: &[u8],
        known: Option<Known>,
    ) {
        let key = entry_key(branch, dir, name);
        match known {
            Some(known) => self.put_sealed(Table::OverlayEntries, key, EntryRow::encode(known)),
            None => self.change(Table::OverlayEntries, key, None),
        }
    }

    /// Puts any bytes into a row, for tests of damage; they get a right checksum. `None` takes the row
    /// away.
    #[cfg(test)]
    pub(crate) fn put_row(&mut self, table: Table, key: Vec<u8>, value: Option<Vec<u8>>) {
        match value {
            Some(value) => self.put_sealed(table, key, value),
            None => self.change(table, key, None),
        }
    }

    /// Forgets all that is drained of a branch.
    ///
    /// # Errors
    /// What reading the database meets.
    pub fn remove_overlay(&mut self, branch: BranchNumber) -> Result<()> {
        let prefix = branch_prefix(branch);
        for table in [Table::Overlays, Table::OverlayInodes, Table::OverlayEntries] {
            for key in self.keys(table, &prefix)? {
                self.change(table, key, None);
            }
        }
        Ok(())
    }

    /// States up to which record a branch is drained, and the highest number of a new inode.
    pub(crate) fn put_drained(&mut self, branch: BranchNumber, drained: Sequence, last_new: u64) {
        let value = [drained.0.to_le_bytes(), last_new.to_le_bytes()].concat();
        self.put_sealed(Table::Overlays, branch_prefix(branch).to_vec(), value);
    }
}
