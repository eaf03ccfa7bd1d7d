//! What a branch has changed, gathered for a check: its rows, and the records of its outbox that
//! follow them, put together as opening the branch would, but without changing anything.
//!
//! Beside a running worktree the two have to be of one moment. A segment is trimmed only after the
//! transaction that says so, so if that was the same before and after the files of the outbox were
//! opened, they hold every record that the rows do not have, and every one that the rows may have.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::sync::Arc;

use super::Finding;
use crate::base::Base;
use crate::error::{Error, Result};
use crate::id::{BranchNumber, Ino, LayerNumber, Sequence, TreeId};
use crate::outbox::{Examination, Examined, segment_number_of};
use crate::overlay::{Known, LayerNodes, Next, Overlay};
use crate::store::{
    ALL_INODES, Branch, Line, Record, Row, Snapshot, SnapshotRecord, Store, Table, decode_sealed,
    drained_of, line_of, rows_of,
};

/// How often the rows and the outbox are looked at until they are of one moment. A drain takes far
/// longer than that.
const TRIES: u32 = 64;

/// What a branch has changed.
pub(super) struct Changed {
    /// The branch, as repository and name.
    pub(super) name: String,
    /// The rows, and what the records make of them.
    pub(super) overlay: Overlay,
    /// The state of the database that the rows are from.
    pub(super) snapshot: Arc<Snapshot>,
    /// The base; `None` if its root cannot be read, which was reported with the trees.
    pub(super) base: Option<Arc<Base>>,
    /// Inodes that a row names which belongs to no directory, once for each such row.
    pub(super) strays: Vec<Ino>,
    /// Whether every row and record could be read and applied: otherwise names and link counts tell
    /// nothing.
    pub(super) whole: bool,
    /// Rows of inodes and of names.
    pub(super) rows: (u64, u64),
    /// What was read of the outbox.
    pub(super) examined: Examined,
}

/// The name of a branch in findings.
pub(super) fn shown(branch: &Branch) -> String {
    format!("{}:{}", branch.repository, branch.name)
}

/// The rows of a branch, and its outbox, of one moment.
struct Moment {
    snapshot: Arc<Snapshot>,
    /// Where the branch stands, and up to which record it is drained.
    head: Option<(LayerNumber, Sequence)>,
    outbox: Result<Option<Examination>>,
}

impl Moment {
    /// `None` if the branch is no longer on record.
    fn of(store: &Store, branch: &Branch) -> Result<Option<Self>> {
        let storage = store.core().segments().storage();
        let dir = store.outbox_dir(branch.number);
        for _ in 0..TRIES {
            let before = drained_of(&store.core().snapshot(), branch.number)?;
            let outbox = Examination::begin(storage, &dir);
            if matches!(&outbox, Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound)
            {
                continue;
            }
            let snapshot = store.core().snapshot();
            if !is_recorded(&snapshot, branch)? {
                return Ok(None);
            }
            let head = drained_of(&snapshot, branch.number)?;
            if head == before {
                return Ok(Some(Self { snapshot, head, outbox }));
            }
        }
        Err(Error::corrupt(
            format!("the outbox {}", dir.display()),
            format!("its files were not the same twice in {TRIES} times"),
        ))
    }
}

fn is_recorded(snapshot: &Snapshot, branch: &Branch) -> Result<bool> {
    let key = branch.key();
    let found = snapshot.get(Table::Branches, &key, |sealed| {
        decode_sealed(Table::Branches, &key, sealed, Branch::decode)
    })?;
    Ok(found.is_some_and(|found| found.number == branch.number))
}

/// Gathers what `branch` has changed; `None` if that is nothing or cannot be told. What cannot be read
/// is reported. A branch that stands on what another has not drained yet is told nothing of: that is
/// verified with the other.
pub(super) fn gather(
    store: &Arc<Store>,
    branch: &Branch,
    find: &mut dyn FnMut(Finding),
) -> Option<Changed> {
    let name = shown(branch);
    let moment = match Moment::of(store, branch) {
        Ok(moment) => moment?,
        Err(error) => {
            find(unreadable(error, &name));
            return None;
        }
    };
    let layer = moment.head.map_or(LayerNumber::first_of(branch.number), |(layer, _)| layer);
    let line = line_or_finding(store, &moment.snapshot, layer, Some(branch.number), find)?;
    let mut changed = Changed::new(store, name, moment.snapshot, branch.root);
    changed.read_rows(&line, moment.head.is_some(), find);
    let drained = moment.head.map_or(Sequence::NONE, |(_, drained)| drained);
    match moment.outbox {
        Ok(None) => {}
        Ok(Some(outbox)) => changed.read_outbox(store, &outbox, drained, find),
        Err(error) => {
            changed.whole = false;
            find(bad_outbox(error, &changed.name));
        }
    }
    Some(changed)
}

/// Gathers what a snapshot has changed; `None` if that is nothing or cannot be told. What cannot be read is
/// reported.
pub(super) fn gather_snapshot(
    store: &Arc<Store>,
    record: &SnapshotRecord,
    find: &mut dyn FnMut(Finding),
) -> Option<Changed> {
    let snapshot = store.core().snapshot();
    let line = line_or_finding(store, &snapshot, record.layer?, None, find)?;
    let name = format!("{}:{} at snapshot {}", record.repository, record.name, record.number);
    let mut changed = Changed::new(store, name, snapshot, record.root);
    changed.read_rows(&line, true, find);
    Some(changed)
}

/// The line that ends with `layer`; `None` if it cannot be read, or is not drained as far as another branch
/// has to do with it, with which it is verified.
fn line_or_finding(
    store: &Store,
    snapshot: &Snapshot,
    layer: LayerNumber,
    owner: Option<BranchNumber>,
    find: &mut dyn FnMut(Finding),
) -> Option<Line> {
    match line_of(snapshot, layer, owner) {
        Ok(Line { waits: Some((_, origin, _)), .. }) if is_known(store, origin) => None,
        Ok(Line { waits: Some((layer, origin, _)), .. }) => {
            let record = format!("layer {layer}");
            find(Finding::Dangling { record, names: format!("branch number {origin}") });
            None
        }
        Ok(line) => Some(line),
        Err(error) => {
            find(Finding::BadEntry { table: Table::Layers.name(), why: error.to_string() });
            None
        }
    }
}

/// The branch numbers of which there is an outbox.
pub(super) fn outboxes(store: &Store) -> Vec<BranchNumber> {
    let storage = store.core().segments().storage();
    let names = storage.list(&store.outboxes_dir()).unwrap_or_default();
    let number = |name: std::ffi::OsString| {
        let name = name.into_string().ok()?;
        let number = BranchNumber(name.parse().ok()?);
        (number.to_string() == name).then_some(number)
    };
    names.into_iter().filter_map(number).collect()
}

/// Whether an outbox that no branch of the check has holds anything, and no branch that was made since
/// has it.
pub(super) fn is_used(store: &Store, number: BranchNumber) -> bool {
    let storage = store.core().segments().storage();
    let used = match Examination::begin(storage, &store.outbox_dir(number)) {
        Ok(Some(outbox)) => match outbox.read(Sequence::NONE, &mut |_| Ok(())) {
            Ok(examined) => examined.records > 0,
            Err(error) => error.is_corruption(),
        },
        Ok(None) => false,
        Err(error) => error.is_corruption(),
    };
    used && !is_known(store, number)
}

fn is_known(store: &Store, number: BranchNumber) -> bool {
    store.branches().map_or(true, |now| now.iter().any(|branch| branch.number == number))
}

/// What was met before anything of a branch was read.
fn unreadable(error: Error, branch: &str) -> Finding {
    match error {
        Error::Corrupt { ref what, .. } if what.starts_with("the outbox") => {
            bad_outbox(error, branch)
        }
        error => Finding::BadEntry { table: Table::Heads.name(), why: error.to_string() },
    }
}

fn bad_outbox(error: Error, branch: &str) -> Finding {
    let (place, record) = match &error {
        Error::Outbox { segment, offset, record, .. } => {
            (segment_number_of(segment).map(|number| (number, *offset)), *record)
        }
        _ => (None, None),
    };
    Finding::BadOutbox { branch: branch.into(), place, record, why: error.to_string() }
}

impl Changed {
    fn new(store: &Arc<Store>, name: String, snapshot: Arc<Snapshot>, root: TreeId) -> Self {
        Self {
            name,
            overlay: Overlay::default(),
            snapshot,
            base: Base::open(Arc::clone(store), None, root).ok(),
            strays: Vec::new(),
            whole: true,
            rows: (0, 0),
            examined: Examined::default(),
        }
    }

    fn read_rows(&mut self, line: &Line, has_head: bool, find: &mut dyn FnMut(Finding)) {
        let highest = line.layers.iter().map(|layer| self.read_layer(*layer, find)).max();
        let highest = highest.unwrap_or_default();
        let branch = self.name.clone();
        if !has_head && self.rows != (0, 0) {
            self.whole = false;
            find(Finding::NotDrained { branch });
        } else if highest > line.last_new {
            find(Finding::WrongHighest { branch, stated: line.last_new, found: highest });
        }
    }

    /// Reads the rows of a layer; returns the highest number of a new inode in it.
    fn read_layer(&mut self, layer: LayerNumber, find: &mut dyn FnMut(Finding)) -> u64 {
        let mut highest = 0;
        // Positions are given once in a directory; rows come directory by directory.
        let mut positions = (Ino(0), HashSet::new());
        let snapshot = Arc::clone(&self.snapshot);
        let below = std::mem::take(&mut self.overlay);
        let mut nodes = LayerNodes::above(&below);
        let mut take = |row: Result<Row<'_>>| match row {
            Ok(Row::Inode(ino, node)) => {
                self.rows.0 += 1;
                if ino.is_new() {
                    highest = highest.max(ino.0);
                }
                nodes.inode(ino, node);
            }
            Ok(Row::Entry(dir, name, known)) => {
                self.rows.1 += 1;
                if positions.0 != dir {
                    positions = (dir, HashSet::new());
                }
                let wrong = match known {
                    Some(Known::Added(_, position)) if !positions.1.insert(position) => {
                        Some(format!("is listed at position {position} like another name"))
                    }
                    _ if !nodes.entry(dir, name, known) => {
                        Some("is in what is no directory".into())
                    }
                    _ => None,
                };
                if let Some(why) = wrong {
                    if let Some(Known::Added(ino, _)) = known {
                        self.strays.push(ino);
                    }
                    find(self.bad_name(dir, name, why));
                }
            }
            Err(error) => {
                self.whole = false;
                // The text names the entry.
                let table = Table::LayerInodes.name();
                find(Finding::BadEntry { table, why: error.to_string() });
            }
        };
        let scanned = rows_of(&snapshot, layer, &ALL_INODES, |row| {
            take(row);
            Ok(())
        });
        if let Err(error) = scanned {
            self.whole = false;
            let table = Table::LayerInodes.name();
            find(Finding::BadTable { table, why: error.to_string() });
        }
        let nodes = nodes.finish();
        self.overlay = below;
        self.overlay.load(nodes);
        highest
    }

    fn read_outbox(
        &mut self,
        store: &Store,
        outbox: &Examination,
        drained: Sequence,
        find: &mut dyn FnMut(Finding),
    ) {
        let overlay = &mut self.overlay;
        let mut refused = None;
        let read = outbox.read(drained, &mut |record| {
            let body = record.body.clone();
            let next = overlay.replay(record.head, body, record.body_len).inspect_err(|_| {
                let place = (record.body.segment_number(), record.body.offset());
                refused = Some((place, record.sequence));
            })?;
            if let Next::Stands(_, on) = next {
                *overlay = on.map_or_else(|| Ok(Overlay::default()), |on| store.layer(on))?;
            }
            Ok(())
        });
        match read {
            Ok(examined) => self.examined = examined,
            Err(error) => {
                self.whole = false;
                let finding = match refused {
                    Some((place, record)) => Finding::BadOutbox {
                        branch: self.name.clone(),
                        place: Some(place),
                        record: Some(record),
                        why: format!("record {record}, segment {}: {error}", place.0),
                    },
                    None => bad_outbox(error, &self.name),
                };
                find(finding);
            }
        }
    }

    /// That `name` in `dir` cannot be so.
    pub(super) fn bad_name(&self, dir: Ino, name: &[u8], why: String) -> Finding {
        let name = String::from_utf8_lossy(name).into_owned();
        Finding::BadName { branch: self.name.clone(), dir, name, why }
    }
}
