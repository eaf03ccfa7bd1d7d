//! Lines of layers are made shorter: layers on which nobody stands become one.
//!
//! A branch that is snapshotted for weeks has one layer for each snapshot that ever was, and opening
//! it applies them all. What is between two of them is needed only as long as somebody stands there.
//! Layers are *inner* if neither a branch nor a snapshot stands on them, one other layer lies on them, that one is
//! sealed, and the rows of both are complete: then nobody in memory names them either, since what an open
//! worktree names is its head and the layer below that.
//!
//! A run of inner layers becomes the one of them that has most rows. It is one transaction, which
//! writes as many rows as the others have.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::Store;
use super::batch::Batch;
use super::database::Snapshot;
use super::layers::{Layers, heads, layers, standing};
use super::line::{Layer, is_left, layer_key};
use super::tables::{Table, unseal};
use crate::error::Result;
use crate::id::LayerNumber;

/// Most rows that one transaction writes, unless two layers have more.
const ROWS_MAX: u64 = 4096;
/// The first byte of the row of a directory.
const DIRECTORY: u8 = 1;
/// Bytes of the number of an inode in a key, behind that of the layer.
const INO_BYTES: usize = 8;

/// Rows by what follows the number of the layer in their keys. Empty ones of inodes say that it is gone.
type Rows = BTreeMap<Vec<u8>, Vec<u8>>;

/// Rows of several layers, as they are on top of each other.
#[derive(Default)]
struct Merged {
    inodes: Rows,
    entries: Rows,
    /// Inodes that were gone in some layer: what lower layers say of their entries is void.
    gone: HashSet<Vec<u8>>,
    /// A directory was gone and is there again, which a row cannot say.
    is_reborn: bool,
}

/// A run of inner layers, the lowest first, and the layer that lies on it.
struct Run {
    inner: Vec<LayerNumber>,
    top: LayerNumber,
}

impl Store {
    /// Makes one layer out of a run of inner layers, if there is a run of more than `spare`; how many
    /// layers are gone. Call it again until that is none.
    ///
    /// # Errors
    /// What reading and writing the store meet.
    pub fn fold(&self, spare: usize) -> Result<u64> {
        // Mostly there is nothing to do, and nobody has to make room for that.
        if long_runs(&self.core.snapshot(), spare)?.1.is_empty() {
            return Ok(0);
        }
        let mut batch = self.batch()?;
        let snapshot = batch.snapshot();
        let (layers, runs) = long_runs(&snapshot, spare)?;
        for run in runs {
            let folded = batch.fold(&snapshot, &layers, &run)?;
            if folded > 0 {
                batch.commit()?;
                return Ok(folded);
            }
        }
        Ok(0)
    }
}

/// All layers, and the runs of more than `spare` inner ones.
fn long_runs(snapshot: &Snapshot, spare: usize) -> Result<(Layers, Vec<Run>)> {
    let layers = layers(snapshot)?;
    let mut runs = runs(&layers, &standing(snapshot, |_, _| false)?, &heads(snapshot)?);
    runs.retain(|run| run.inner.len() > spare.max(1));
    Ok((layers, runs))
}

/// All runs of inner layers.
fn runs(
    layers: &Layers,
    standing: &BTreeSet<LayerNumber>,
    heads: &BTreeSet<LayerNumber>,
) -> Vec<Run> {
    let mut above = BTreeMap::<LayerNumber, Vec<LayerNumber>>::new();
    for (number, layer) in layers {
        if let Some(below) = layer.below {
            above.entry(below).or_default().push(*number);
        }
    }
    let is_complete = |number: &LayerNumber| {
        layers.get(number).is_some_and(|layer| layer.waits.is_none()) && !heads.contains(number)
    };
    let on_inner = |number: &LayerNumber| match above.get(number).map(Vec::as_slice) {
        Some([only]) if is_complete(number) && is_complete(only) && !standing.contains(number) => {
            Some(*only)
        }
        _ => None,
    };
    let mut runs = Vec::new();
    for number in layers.keys() {
        let below = layers.get(number).and_then(|layer| layer.below);
        if on_inner(number).is_none() || below.is_some_and(|below| on_inner(&below).is_some()) {
            continue;
        }
        let mut run = Run { inner: Vec::new(), top: *number };
        while let Some(next) = on_inner(&run.top) {
            run.inner.push(run.top);
            run.top = next;
        }
        runs.push(run);
    }
    runs
}

impl Merged {
    /// Puts the rows of the next lower layer below those that are here.
    fn add(&mut self, snapshot: &Snapshot, layer: LayerNumber) -> Result<()> {
        let mut entries = Vec::new();
        visit(snapshot, Table::LayerEntries, &layer_key(layer), |suffix, value| {
            entries.push((suffix.to_vec(), value.to_vec()));
        })?;
        for (suffix, value) in entries {
            let dir = suffix.get(..INO_BYTES).unwrap_or_default();
            if !self.gone.contains(dir) {
                self.entries.entry(suffix).or_insert(value);
            }
        }
        visit(snapshot, Table::LayerInodes, &layer_key(layer), |suffix, value| {
            if value.is_empty() {
                let above = self.inodes.get(suffix);
                self.is_reborn |= above.is_some_and(|row| row.first() == Some(&DIRECTORY));
                self.gone.insert(suffix.to_vec());
            }
            self.inodes.entry(suffix.to_vec()).or_insert_with(|| value.to_vec());
        })
    }
}

/// What becomes of layers on top of each other.
struct Merge<'a> {
    snapshot: &'a Snapshot,
    /// The one that they become.
    target: LayerNumber,
    /// What the lowest lies on.
    below: Option<LayerNumber>,
    /// Those above and those below the target.
    upper: Merged,
    lower: Merged,
    /// Inodes that the target says are gone.
    gone: HashSet<Vec<u8>>,
}

impl<'a> Merge<'a> {
    fn read(
        snapshot: &'a Snapshot,
        layers: &Layers,
        part: &[LayerNumber],
        into: usize,
    ) -> Result<Self> {
        let target = part[into];
        let below = layers.get(&part[0]).and_then(|layer| layer.below);
        let (mut upper, mut lower) = (Merged::default(), Merged::default());
        for layer in part[into + 1..].iter().rev() {
            upper.add(snapshot, *layer)?;
        }
        for layer in part[..into].iter().rev() {
            lower.add(snapshot, *layer)?;
        }
        let mut gone = HashSet::new();
        visit(snapshot, Table::LayerInodes, &layer_key(target), |suffix, value| {
            if value.is_empty() {
                gone.insert(suffix.to_vec());
            }
        })?;
        Ok(Self { snapshot, target, below, upper, lower, gone })
    }

    /// A row of the target.
    fn own(&self, table: Table, suffix: &[u8]) -> Result<Option<Vec<u8>>> {
        let key = [&layer_key(self.target)[..], suffix].concat();
        self.snapshot.get(table, &key, |sealed| Ok(unseal(table, &key, sealed)?.to_vec()))
    }

    /// Whether rows can say it: not that a directory was gone and is there again, without what was in it.
    fn is_possible(&self) -> Result<bool> {
        let Self { upper, lower, gone, .. } = self;
        let is_directory =
            |row: Option<&Vec<u8>>| row.and_then(|row| row.first()) == Some(&DIRECTORY);
        let mut is_reborn = upper.is_reborn || lower.is_reborn;
        is_reborn |= gone.iter().any(|ino| is_directory(upper.inodes.get(ino)));
        for ino in &lower.gone {
            is_reborn |= is_directory(upper.inodes.get(ino))
                || is_directory(self.own(Table::LayerInodes, ino)?.as_ref());
        }
        Ok(!is_reborn)
    }

    /// Whether a row says anything: above the bare base, one that says that something is not there does
    /// not.
    fn says(&self, table: Table, value: &[u8]) -> bool {
        self.below.is_some()
            || match table {
                Table::LayerInodes => !value.is_empty(),
                _ => !is_left(value),
            }
    }
}

/// Calls `with` for the rows of a table whose keys begin with `prefix`, a layer or an inode of one; what
/// follows the number of the layer, and the value.
fn visit(
    snapshot: &Snapshot,
    table: Table,
    prefix: &[u8],
    mut with: impl FnMut(&[u8], &[u8]),
) -> Result<()> {
    snapshot.scan(table, prefix, |key, sealed| {
        with(key.get(8..).unwrap_or_default(), unseal(table, key, sealed)?);
        Ok(())
    })
}

impl Batch<'_> {
    /// Folds the highest part of a run that is worth one transaction; how many layers are gone.
    fn fold(&mut self, snapshot: &Snapshot, layers: &Layers, run: &Run) -> Result<u64> {
        let mut rows = Vec::new();
        for layer in &run.inner {
            let mut count = 0;
            for table in [Table::LayerInodes, Table::LayerEntries] {
                snapshot.scan(table, &layer_key(*layer), |_, _| {
                    count += 1;
                    Ok(())
                })?;
            }
            rows.push(count);
        }
        let mut first = run.inner.len();
        let (mut sum, mut most) = (0, 0);
        while first > 0 {
            let (next, highest) = (sum + rows[first - 1], most.max(rows[first - 1]));
            if next - highest > ROWS_MAX && run.inner.len() - first >= 2 {
                break;
            }
            (sum, most, first) = (next, highest, first - 1);
        }
        let part = &run.inner[first..];
        let into = (0..part.len()).max_by_key(|at| rows[first + at]).unwrap_or_default();
        if !self.merge(snapshot, layers, part, into)? {
            return Ok(0);
        }
        let top = layers.get(&run.top).copied();
        if let Some(top) = top {
            let value = Layer { below: Some(part[into]), ..top }.encode();
            self.put_sealed(Table::Layers, layer_key(run.top).to_vec(), value);
        }
        Ok(part.len() as u64 - 1)
    }

    /// Makes `part`, layers on top of each other, the layer number `into` of them; whether that is
    /// possible.
    fn merge(
        &mut self,
        snapshot: &Snapshot,
        layers: &Layers,
        part: &[LayerNumber],
        into: usize,
    ) -> Result<bool> {
        let merge = Merge::read(snapshot, layers, part, into)?;
        if !merge.is_possible()? {
            return Ok(false);
        }
        self.put_upper(&merge)?;
        self.put_lower(&merge)?;
        let last_new = part.iter().filter_map(|one| layers.get(one)).map(|one| one.last_new).max();
        for layer in part.iter().filter(|layer| **layer != merge.target) {
            self.remove_layer(*layer)?;
        }
        self.put_layer(merge.target, merge.below, last_new.unwrap_or_default());
        Ok(true)
    }

    /// Puts what lies above the target into it.
    fn put_upper(&mut self, merge: &Merge<'_>) -> Result<()> {
        let Merge { target, upper, .. } = merge;
        // What the target says of entries that are gone above it.
        for ino in &upper.gone {
            let prefix = [&layer_key(*target)[..], ino].concat();
            let mut void = Vec::new();
            visit(merge.snapshot, Table::LayerEntries, &prefix, |suffix, _| {
                void.push(suffix.to_vec());
            })?;
            for suffix in void {
                self.put_folded(Table::LayerEntries, *target, &suffix, None);
            }
        }
        for (table, rows) in
            [(Table::LayerInodes, &upper.inodes), (Table::LayerEntries, &upper.entries)]
        {
            for (suffix, value) in rows {
                let value = merge.says(table, value).then(|| value.clone());
                self.put_folded(table, *target, suffix, value);
            }
        }
        Ok(())
    }

    /// Puts what lies below the target into it, where neither it nor what lies above says anything.
    fn put_lower(&mut self, merge: &Merge<'_>) -> Result<()> {
        let Merge { target, upper, lower, gone, .. } = merge;
        for (table, rows, above) in [
            (Table::LayerInodes, &lower.inodes, &upper.inodes),
            (Table::LayerEntries, &lower.entries, &upper.entries),
        ] {
            for (suffix, value) in rows {
                let dir = suffix.get(..INO_BYTES).unwrap_or_default();
                let void = table == Table::LayerEntries
                    && (upper.gone.contains(dir) || gone.contains(dir));
                if !void
                    && merge.says(table, value)
                    && !above.contains_key(suffix)
                    && merge.own(table, suffix)?.is_none()
                {
                    self.put_folded(table, *target, suffix, Some(value.clone()));
                }
            }
        }
        Ok(())
    }

    fn put_folded(
        &mut self,
        table: Table,
        layer: LayerNumber,
        suffix: &[u8],
        value: Option<Vec<u8>>,
    ) {
        let key = [&layer_key(layer)[..], suffix].concat();
        match value {
            Some(value) => self.put_sealed(table, key, value),
            None => self.change(table, key, None),
        }
    }
}
