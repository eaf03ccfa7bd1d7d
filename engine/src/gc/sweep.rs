//! What cannot be reached is measured, and removed.
//!
//! The order: the git map, then directory objects, each before those below it, then lists of chunks,
//! then chunks. So whatever is in the store after a crash has everything that it refers to, and may
//! be found and referred to again.

use std::collections::HashMap;
use std::sync::Arc;

use super::mark::load;
use super::{Amount, Amounts, GcReport};
use crate::error::Result;
use crate::id::TreeId;
use crate::progress::{Cancel, Phase, Progress};
use crate::store::{Candidates, Item, Snapshot, Store, Table, bytes_of, is_garbage, locate};

/// Most entries that one transaction removes: it takes about a millisecond beside its syncs.
const ENTRIES_MAX: usize = 512;
/// The database is compacted when it has lost one entry for so many that it keeps.
const COMPACT_PART: u64 = 8;
/// Between two looks whether it is still wanted.
const STEP: u64 = 1024;

/// The tables of a collection, in the order in which they are swept.
const TABLES: [Table; 6] =
    [Table::GitTrees, Table::Blobs, Table::Contents, Table::Trees, Table::Manifests, Table::Chunks];

impl Amounts {
    pub(super) fn of(&mut self, table: Table) -> &mut Amount {
        match table {
            Table::Chunks => &mut self.chunks,
            Table::Trees => &mut self.trees,
            Table::Manifests => &mut self.manifests,
            _ => &mut self.mapped,
        }
    }
}

/// Calls `visit` for every entry of the tables of a collection, with its bytes.
pub(super) fn visit_all(
    snapshot: &Snapshot,
    cancel: &Cancel,
    mut visit: impl FnMut(Table, &[u8], &[u8], u64) -> Result<()>,
) -> Result<()> {
    let mut entries = 0_u64;
    for table in TABLES {
        snapshot.scan(table, b"", |key, value| {
            entries += 1;
            if entries.is_multiple_of(STEP) {
                cancel.check()?;
            }
            let extent = match table {
                Table::Chunks | Table::Trees => locate(table, key, value)?.1,
                _ => None,
            };
            visit(table, key, value, bytes_of(key, value, extent))
        })?;
    }
    Ok(())
}

/// Adds up what stays and what goes.
pub(super) fn measure(
    snapshot: &Snapshot,
    candidates: &Candidates,
    report: &mut GcReport,
    cancel: &Cancel,
) -> Result<()> {
    visit_all(snapshot, cancel, |table, key, value, bytes| {
        let garbage = is_garbage(candidates, table, key, value)?;
        let amounts = if garbage { &mut report.freed } else { &mut report.kept };
        amounts.of(table).add(bytes);
        Ok(())
    })
}

/// Removes what is condemned, and returns what it was.
pub(super) fn sweep(
    store: &Arc<Store>,
    candidates: &Candidates,
    report: &GcReport,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Amounts> {
    let mut sweeper = Sweeper { store, candidates, progress, cancel, freed: Amounts::default() };
    for table in TABLES {
        match table {
            Table::Trees => sweeper.trees()?,
            _ => sweeper.table(table)?,
        }
    }
    // The file of the database shrinks only when it is opened.
    let (freed, kept) = (report.freed.total().count, report.kept.total().count);
    if freed > 0 && freed >= kept / COMPACT_PART {
        let mut batch = store.batch()?;
        batch.ask_for_compaction();
        batch.commit()?;
    }
    Ok(sweeper.freed)
}

struct Sweeper<'a> {
    store: &'a Arc<Store>,
    candidates: &'a Candidates,
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
    freed: Amounts,
}

impl Sweeper<'_> {
    /// Sweeps a table in the order of its keys, so that what one transaction removes lies together.
    fn table(&mut self, table: Table) -> Result<()> {
        let mut from = Vec::new();
        loop {
            // Looked for without the turn to write, in which it is looked at again.
            let mut garbage = Vec::new();
            let mut looked = 0_u64;
            self.store.core().snapshot().scan_from(table, &from, |key, value| {
                looked += 1;
                if looked.is_multiple_of(STEP) {
                    self.cancel.check()?;
                }
                if is_garbage(self.candidates, table, key, value)? {
                    garbage.push(key.to_vec());
                }
                Ok(garbage.len() < ENTRIES_MAX)
            })?;
            let Some(last) = garbage.last() else { return Ok(()) };
            from.clone_from(last);
            from.push(0);
            self.remove(table, garbage)?;
        }
    }

    fn remove(&mut self, table: Table, keys: Vec<Vec<u8>>) -> Result<()> {
        self.cancel.check()?;
        let mut batch = self.store.batch()?;
        let mut removed = Amount::default();
        for key in keys {
            let (count, bytes) = batch.remove_garbage(self.candidates, table, key)?;
            removed += Amount { count, bytes };
        }
        batch.commit()?;
        *self.freed.of(table) += removed;
        self.progress.advance(Phase::Sweep, removed.count, removed.bytes);
        Ok(())
    }

    /// Sweeps the directory objects, each after all that have it.
    fn trees(&mut self) -> Result<()> {
        let mut depths = self.depths()?;
        depths.sort_unstable();
        for part in depths.chunks(ENTRIES_MAX) {
            let keys = part.iter().map(|(_, id)| id.as_bytes().to_vec()).collect();
            self.remove(Table::Trees, keys)?;
        }
        Ok(())
    }

    /// Those that are condemned, with a number that is higher than that of all that have it.
    fn depths(&self) -> Result<Vec<(u32, TreeId)>> {
        // How many of those have it that were not looked at, and its number.
        let mut waiting = HashMap::<TreeId, (u32, u32)>::new();
        self.store.core().snapshot().scan(Table::Trees, b"", |key, _| {
            if let Some(id) = TreeId::from_slice(key).filter(|id| self.is_condemned(id)) {
                waiting.insert(id, (0, 0));
            }
            Ok(())
        })?;
        let ids: Vec<_> = waiting.keys().copied().collect();
        for id in &ids {
            self.cancel.check()?;
            for below in self.below(*id)? {
                if let Some((count, _)) = waiting.get_mut(&below) {
                    *count += 1;
                }
            }
        }
        let free = |id: &&TreeId| waiting.get(*id).is_some_and(|(count, _)| *count == 0);
        let mut open: Vec<_> = ids.iter().filter(free).copied().collect();
        let mut depths = Vec::with_capacity(ids.len());
        while let Some(id) = open.pop() {
            self.cancel.check()?;
            let depth = waiting.get(&id).map_or(0, |(_, depth)| *depth);
            depths.push((depth, id));
            for below in self.below(id)? {
                let Some((count, number)) = waiting.get_mut(&below) else { continue };
                *number = (*number).max(depth + 1);
                *count -= 1;
                if *count == 0 {
                    open.push(below);
                }
            }
        }
        Ok(depths)
    }

    /// The directory objects that a condemned one has; none of one that cannot be read, which nothing
    /// can be found through.
    fn below(&self, id: TreeId) -> Result<Vec<TreeId>> {
        match load(self.store, id) {
            Ok(tree) => Ok(tree.entries().filter_map(|entry| Some(entry.subtree?.id)).collect()),
            Err(error) if error.is_corruption() => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn is_condemned(&self, id: &TreeId) -> bool {
        self.candidates.is_unmarked(&Item::Tree(*id))
    }
}
