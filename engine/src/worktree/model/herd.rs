//! Branches of one store that come from each other, each with its model, and snapshots of them.

mod collect;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use proptest::prelude::*;

use super::op::Op;
use super::step::{Dice, Kind, op};
use super::{Model, View};
use crate::base::Base;
use crate::error::Result;
use crate::id::{BranchNumber, Ino, LayerNumber, TreeId};
use crate::store::{SnapshotRecord, Store};
use crate::testing::FaultyStorage;
use crate::worktree::fixture::{BRANCH, base, dir, options, put, snapshot};
use crate::worktree::{Contents, Point, Worktree};

/// Something random that happens to a herd. Numbers choose among what is there.
#[derive(Clone, Debug)]
pub(in crate::worktree) enum HerdStep {
    Op(u8, Kind, Dice),
    /// A branch begins where another one is now.
    Fork(u8),
    Snapshot(u8),
    /// A branch begins at a snapshot.
    ForkSnapshot(u8),
    DropSnapshot(u8),
    /// A branch becomes what a snapshot is, be it of another branch.
    Restore(u8, u8),
    /// A branch goes, unless it is the last.
    Drop(u8),
    Drain(u8),
    Sync(u8),
    Restart,
    /// Garbage is collected, and others go on meanwhile.
    Collect(Vec<HerdStep>),
    /// Lines of layers are made shorter.
    Fold,
}

/// Random steps. Bias: many changes, and layers on layers before they are drained.
pub(in crate::worktree) fn herd_steps(len: usize) -> impl Strategy<Value = Vec<HerdStep>> {
    let step = prop_oneof![
        32 => herd_step(),
        1 => Just(HerdStep::Restart),
        1 => prop::collection::vec(herd_step(), 0..12).prop_map(HerdStep::Collect),
        1 => Just(HerdStep::Fold),
    ];
    prop::collection::vec(step, 1..len)
}

/// What can be done at any time.
fn herd_step() -> impl Strategy<Value = HerdStep> {
    prop_oneof![
        24 => (any::<u8>(), op()).prop_map(|(at, (kind, dice))| HerdStep::Op(at, kind, dice)),
        3 => any::<u8>().prop_map(HerdStep::Fork),
        3 => any::<u8>().prop_map(HerdStep::Snapshot),
        1 => any::<u8>().prop_map(HerdStep::ForkSnapshot),
        1 => any::<u8>().prop_map(HerdStep::DropSnapshot),
        1 => any::<(u8, u8)>().prop_map(|(at, to)| HerdStep::Restore(at, to)),
        1 => any::<u8>().prop_map(HerdStep::Drop),
        2 => any::<u8>().prop_map(HerdStep::Drain),
        1 => any::<u8>().prop_map(HerdStep::Sync),
    ]
}

struct Member {
    number: BranchNumber,
    /// `None` only while it is opened again.
    worktree: Option<Arc<Worktree>>,
    model: Model,
}

impl Member {
    fn worktree(&self) -> &Arc<Worktree> {
        self.worktree.as_ref().expect("it is open")
    }
}

/// Branches that come from each other.
pub(in crate::worktree) struct Herd {
    storage: FaultyStorage,
    store: Arc<Store>,
    base: Arc<Base>,
    members: Vec<Member>,
    snapshots: Vec<(SnapshotRecord, Model)>,
}

impl Herd {
    /// One fresh branch on `storage`.
    pub(in crate::worktree) fn begin(storage: FaultyStorage) -> Result<Self> {
        let store = Store::open_on(Arc::new(storage.clone()), &dir())?;
        let mut batch = store.batch()?;
        let root = put(&mut batch, &base())?.subtree.id;
        batch.commit()?;
        let base = Base::open(Arc::clone(&store), None, root)?;
        let mut herd = Self { storage, store, base, members: Vec::new(), snapshots: Vec::new() };
        let worktree = herd.open(BRANCH)?;
        let model = Model::of_base(&worktree);
        herd.members.push(Member { number: BRANCH, worktree: Some(worktree), model });
        Ok(herd)
    }

    fn outbox(number: BranchNumber) -> PathBuf {
        dir().join("outbox").join(number.to_string())
    }

    fn contents(&self) -> Arc<Contents> {
        Contents::new(Arc::clone(&self.store), None)
    }

    fn open(&self, number: BranchNumber) -> Result<Arc<Worktree>> {
        let (base, storage) = (Arc::clone(&self.base), Arc::new(self.storage.clone()));
        let outbox = Self::outbox(number);
        Worktree::writable(base, self.contents(), options(), number, storage, &outbox)
    }

    fn at(&self, number: u8) -> usize {
        usize::from(number) % self.members.len()
    }

    /// Does `step`.
    ///
    /// # Errors
    /// Those of the device.
    ///
    /// # Panics
    /// If something is not as the models say.
    pub(in crate::worktree) fn take(&mut self, step: &HerdStep) -> Result<()> {
        match step {
            HerdStep::Op(at, kind, dice) => {
                let at = self.at(*at);
                let member = &mut self.members[at];
                let op = member.model.choose(*kind, dice.clone());
                let worktree = Arc::clone(member.worktree());
                member.model.perform(&worktree, &op)?;
            }
            HerdStep::Fork(at) => {
                let at = self.at(*at);
                let point = self.members[at].worktree().seal()?;
                self.fork(&point, Some(at), self.members[at].model.clone())?;
            }
            HerdStep::Snapshot(at) => self.snapshot(self.at(*at))?,
            HerdStep::ForkSnapshot(_) | HerdStep::DropSnapshot(_) | HerdStep::Restore(..)
                if self.snapshots.is_empty() => {}
            HerdStep::Restore(at, to) => {
                let (at, to) = (self.at(*at), usize::from(*to) % self.snapshots.len());
                self.drain_all()?;
                let (record, model) = self.snapshots[to].clone();
                let point = Point::of(&self.store, &self.base, &record)?;
                let member = &mut self.members[at];
                member.worktree().restore(&point)?;
                member.model = model;
                member.model.restart();
            }
            HerdStep::ForkSnapshot(at) => {
                let (record, model) = &self.snapshots[usize::from(*at) % self.snapshots.len()];
                let (record, model) = (record.clone(), model.clone());
                self.drain_all()?;
                let point = Point::of(&self.store, &self.base, &record)?;
                self.fork(&point, None, model)?;
            }
            HerdStep::DropSnapshot(at) => {
                let at = usize::from(*at) % self.snapshots.len();
                let (record, _) = self.snapshots.remove(at);
                let mut batch = self.store.batch()?;
                batch.remove_snapshot(&record);
                batch.sweep_layers()?;
                batch.commit()?;
            }
            HerdStep::Drop(_) if self.members.len() == 1 => {}
            HerdStep::Drop(at) => {
                let member = self.members.remove(self.at(*at));
                // Others may lie on what only its outbox has.
                member.worktree().drain()?;
                let mut batch = self.store.batch()?;
                batch.remove_head(member.number);
                batch.sweep_layers()?;
                batch.commit()?;
            }
            HerdStep::Drain(at) => drop(self.members[self.at(*at)].worktree().drain()?),
            HerdStep::Sync(at) => self.members[self.at(*at)].worktree().sync()?,
            HerdStep::Collect(steps) => drop(self.collect(steps)?),
            HerdStep::Fold => drop(self.fold()?),
            HerdStep::Restart => self.restart(self.storage.clone(), &|_| true)?,
        }
        Ok(())
    }

    fn drain_all(&self) -> Result<()> {
        self.members.iter().try_for_each(|member| member.worktree().drain().map(drop))
    }

    fn fork(&mut self, point: &Point, origin: Option<usize>, mut model: Model) -> Result<()> {
        let number = self.store.new_branch_number();
        let mut batch = self.store.batch()?;
        batch.name_point(point)?;
        if let Some(layer) = point.layer {
            batch.put_fork(number, layer, point.last_new);
        }
        batch.commit()?;
        let origin = origin.map(|at| Arc::clone(self.members[at].worktree()));
        let worktree = Worktree::fork(
            Arc::clone(&self.base),
            self.contents(),
            options(),
            number,
            Arc::new(self.storage.clone()),
            &Self::outbox(number),
            point,
            origin.as_ref(),
        )?;
        model.restart();
        self.members.push(Member { number, worktree: Some(worktree), model });
        Ok(())
    }

    fn snapshot(&mut self, at: usize) -> Result<()> {
        let member = &self.members[at];
        let point = member.worktree().seal()?;
        let number = self.store.new_snapshot_number();
        let record = snapshot(member.number, number, self.base.id(), &point);
        let mut batch = self.store.batch()?;
        batch.name_point(&point)?;
        batch.put_snapshot(&record);
        batch.commit()?;
        self.snapshots.push((record, member.model.clone()));
        Ok(())
    }

    /// Ends, and begins anew with what `storage` has, as a daemon does: first it drains what others
    /// wait for. Members that are not `kept` are left out.
    pub(in crate::worktree) fn restart(
        &mut self,
        storage: FaultyStorage,
        kept: &dyn Fn(usize) -> bool,
    ) -> Result<()> {
        let root: TreeId = self.base.id();
        let members = std::mem::take(&mut self.members);
        let members: Vec<_> = members
            .into_iter()
            .enumerate()
            .filter(|(at, _)| kept(*at))
            .map(|(_, member)| (member.number, member.model))
            .collect();
        self.storage = storage;
        // The old ones keep it locked.
        let empty = Store::open_on(Arc::new(FaultyStorage::new()), &dir())?;
        let mut batch = empty.batch()?;
        put(&mut batch, &base())?;
        batch.commit()?;
        self.base = Base::open(Arc::clone(&empty), None, root)?;
        self.store = empty;
        self.store = Store::open_on(Arc::new(self.storage.clone()), &dir())?;
        self.base = Base::open(Arc::clone(&self.store), None, root)?;
        let mut drained = BTreeSet::new();
        while let Some(owner) = self.store.next_to_drain(&drained)? {
            self.open(owner)?.drain()?;
            drained.insert(owner);
        }
        let mut batch = self.store.batch()?;
        batch.remove_lost()?;
        batch.commit()?;
        for (number, mut model) in members {
            model.restart();
            let worktree = Some(self.open(number)?);
            self.members.push(Member { number, worktree, model });
        }
        Ok(())
    }

    /// Compares every branch with its model, and every snapshot that can be loaded.
    ///
    /// # Panics
    /// If they differ.
    pub(in crate::worktree) fn compare(&self) -> Result<()> {
        for member in &self.members {
            same(member.worktree(), &member.model, &format!("branch {}", member.number))?;
        }
        Ok(())
    }

    /// Drains everything and compares every snapshot with what its branch was then.
    ///
    /// # Panics
    /// If they differ.
    pub(in crate::worktree) fn compare_snapshots(&self) -> Result<()> {
        self.drain_all()?;
        for (record, model) in &self.snapshots {
            let point = Point::of(&self.store, &self.base, record)?;
            let base = Arc::clone(&self.base);
            let view = Worktree::at(base, self.contents(), options(), &point);
            same(&view, model, &format!("snapshot {}", record.number))?;
        }
        Ok(())
    }

    /// Syncs one branch, and only that one, and cuts the power: it is there as it was.
    ///
    /// # Panics
    /// If it is not.
    pub(in crate::worktree) fn crash_after_sync_of(&mut self, at: u8, seed: u64) -> Result<()> {
        let at = self.at(at);
        self.members[at].worktree().sync()?;
        let storage = self.storage.after_crash(seed);
        self.restart(storage, &|other| other == at)?;
        self.compare()
    }

    /// Writes `data` to the file `file` of the base in one branch.
    pub(in crate::worktree) fn write(&mut self, at: usize, data: &[u8]) -> Result<()> {
        let member = &mut self.members[at];
        let worktree = Arc::clone(member.worktree());
        let ino = worktree.lookup(Ino::ROOT, b"file")?.expect("it is in the base").ino;
        let op = Op::Write { ino, offset: 0, data: data.to_vec(), kill_set_id: false };
        member.model.perform(&worktree, &op).map(drop)
    }

    /// Seals one branch; returns the layer and how many records its outbox has taken.
    pub(in crate::worktree) fn seal(&self, at: usize) -> Result<(Option<LayerNumber>, u64)> {
        let worktree = self.members[at].worktree();
        let layer = worktree.seal()?.layer;
        Ok((layer, worktree.state().map_or(0, |state| state.outbox.records)))
    }

    /// Layers that the store has.
    pub(in crate::worktree) fn layers(&self) -> Result<u64> {
        Ok(self.store.statistics()?.layers)
    }
}

fn same(worktree: &Worktree, model: &Model, what: &str) -> Result<()> {
    let (seen, expected) = (View::of(worktree)?, View::expected(model));
    assert!(seen == expected, "{what}: seen and expected: {}", seen.difference(&expected));
    Ok(())
}
