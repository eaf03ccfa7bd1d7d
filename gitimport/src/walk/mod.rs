//! From a git tree to directory objects of the store.
//!
//! Trees are read in parallel, each once however often it occurs, and each directory object is
//! built when those of all its subdirectories are. Sizes of files come from object headers; nothing
//! is inflated but trees, `.gitattributes` and files that a checkout would convert.
//!
//! No cycle can be walked: a tree's bytes are hashed before they are parsed, so a tree that
//! contains itself does not exist, and trees that replacements make contain each other are refused. Memory is bounded: a worker holds one tree at a time, trees
//! that wait for their subtrees are held up to a limit and read again past it, and what stays of a
//! finished tree is one entry of a table.

mod build;
mod height;
mod schedule;
mod sink;
#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use agentfs_engine::content::Preparer;
use agentfs_engine::limits::TREE_DEPTH_MAX;
use agentfs_engine::progress::{Cancel, Phase, Progress, Silent};
use agentfs_engine::store::{Hold, Session, Store};
use agentfs_engine::tree::{EntryKind, Subtree};
use agentfs_engine::{GitOid, TreeId};

use crate::attributes;
use crate::convert::{Plan, Scope};
use crate::error::{Error, Result};
use crate::lane::{Lane, Turn};
use crate::limits::{TREE_OBJECT_BYTES_MAX, WALK_HELD_BYTES_MAX, WALK_TREES_MAX, workers};
use crate::object::Kind;
use crate::odb::{Odb, Reader};
use crate::replace::Replacements;
use crate::repository::Repository;
use crate::tree::{GitTree, TreeFault};
use height::height;
use schedule::{Child, Done, Job, Parked, Schedule, Stage};
use sink::TreeSink;

pub use sink::ImportedTrees;

/// A git tree, imported.
#[derive(Debug)]
pub struct Imported {
    /// Its directory object.
    pub root: Subtree,
    /// Files whose content the checkout converts or git replaces, and that this walk has stored.
    pub converted: u64,
    /// All trees that this walk has read, for [`crate::pipeline::ingest`].
    pub trees: ImportedTrees,
}

/// What decides the directory object that a git tree becomes: its id, and the conversions that
/// directories above it ask for.
type Key = (GitOid, [u8; 32]);

/// Imports git tree `tree` of `repository`: when this returns, its directory objects, and the
/// content of files that a checkout converts, are durable in `store`. Trees that the git map knows
/// under the same conversions are not read. Whoever records the tree later has a [`Hold`] that it took
/// before. The tree of an empty repository is
/// [`Odb::empty_tree`].
///
/// # Errors
/// [`Error::Refused`] for what `git fsck` rejects, naming the path; [`Error::AtPath`] for an
/// object that is missing, damaged or too large; what conversions and the store meet; cancellation.
pub fn import_tree(
    store: &Store,
    repository: &Repository,
    tree: &GitOid,
    plan: &Plan,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<Imported> {
    import_bounded(store, repository, tree, plan, (progress, cancel), WALK_TREES_MAX)
}

/// The directory object that git tree `tree` of `repository` was imported as, with all that is below
/// it, under the same conversions.
///
/// # Errors
/// What replacing the tree and reading the store meet.
pub fn imported(
    store: &Store,
    repository: &Repository,
    tree: &GitOid,
    plan: &Plan,
) -> Result<Option<Subtree>> {
    let tree = repository.replacements().of(tree)?;
    Ok(store.tree_of(&tree, &plan.root().enter(b"", None)?.context())?)
}

/// [`import_tree`], reading at most `trees_max` trees.
fn import_bounded(
    store: &Store,
    repository: &Repository,
    tree: &GitOid,
    plan: &Plan,
    (progress, cancel): (&dyn Progress, &Cancel),
    trees_max: u64,
) -> Result<Imported> {
    let outer = plan.root();
    let tree = &repository.replacements().of(tree)?;
    let key = (*tree, outer.enter(b"", None)?.context());
    if let Some(root) = store.tree_of(tree, &key.1)? {
        return Ok(Imported { root, converted: 0, trees: ImportedTrees::default() });
    }
    let schedule = Schedule::new(key, outer, b"");
    let walk = Walk::new(store, repository, schedule, Purpose::Import, (progress, cancel));
    let walk = Walk { trees_max, ..walk };
    progress.begin(Phase::Trees, None, None);
    walk.work_on_all_cores();
    progress.end(Phase::Trees);
    let converted = walk.converted.into_inner();
    let Done { subtree: root, .. } = walk.schedule.outcome(tree)?;
    Ok(Imported { root, converted, trees: walk.sink.finish()? })
}

/// A directory of a commit, on the way to what is in it.
pub(crate) struct Directory {
    /// Its git tree, replaced by what git reads in its place.
    pub(crate) oid: GitOid,
    /// The conversions that the directories above it ask for.
    pub(crate) outer: Scope,
    /// Its name, empty for the root.
    pub(crate) name: Box<[u8]>,
}

/// Makes directory object `id` anew, which `directory` became, and stores it in the place of the
/// damaged one. What the git map does not know of the directories below is made too, and stored
/// where it is damaged.
///
/// # Errors
/// [`Error::Engine`] if the directory becomes another object today; else as [`import_tree`].
pub(crate) fn rebuild_tree(
    store: &Store,
    repository: &Repository,
    directory: &Directory,
    id: TreeId,
) -> Result<()> {
    let Directory { oid, outer, name } = directory;
    let key = (*oid, outer.enter(name, None)?.context());
    let schedule = Schedule::new(key, outer.clone(), name);
    let cancel = Cancel::default();
    let watched: (&dyn Progress, &Cancel) = (&Silent, &cancel);
    let walk = Walk::new(store, repository, schedule, Purpose::Rebuild, watched);
    walk.work_on_all_cores();
    let Done { subtree, .. } = walk.schedule.outcome(oid)?;
    if subtree.id != id {
        let why = format!("git tree {oid} now becomes {}", subtree.id);
        return Err(agentfs_engine::Error::corrupt(format!("tree {id}"), why).into());
    }
    walk.sink.finish().map(drop)
}

/// What a walk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// To store what the store does not have.
    Import,
    /// To store what the store has lost. Nothing in it is taken to be whole.
    Rebuild,
}

struct Walk<'a> {
    store: &'a Store,
    /// For contents that a checkout converts.
    session: Session<'a>,
    odb: Arc<Odb>,
    replacements: Arc<Replacements>,
    purpose: Purpose,
    progress: &'a dyn Progress,
    cancel: &'a Cancel,
    schedule: Schedule,
    sink: TreeSink<'a>,
    lane: Lane,
    /// Bytes of trees that wait for their subtrees.
    held: AtomicU64,
    /// Trees read so far.
    read: AtomicU64,
    /// Most trees to be read.
    trees_max: u64,
    converted: AtomicU64,
    /// What is found and stored stays until the whole is.
    _hold: Hold,
}

/// What one thread owns.
struct Worker {
    reader: Reader,
    preparer: Preparer,
}

impl<'a> Walk<'a> {
    fn new(
        store: &'a Store,
        repository: &Repository,
        schedule: Schedule,
        purpose: Purpose,
        (progress, cancel): (&'a dyn Progress, &'a Cancel),
    ) -> Self {
        let session = store.writer().session();
        Self {
            store,
            session,
            odb: Arc::clone(repository.odb()),
            replacements: Arc::clone(repository.replacements()),
            purpose,
            progress,
            cancel,
            schedule,
            sink: TreeSink::new(store, session, purpose),
            lane: Lane::default(),
            held: AtomicU64::new(0),
            read: AtomicU64::new(0),
            trees_max: WALK_TREES_MAX,
            converted: AtomicU64::new(0),
            _hold: store.hold(),
        }
    }

    fn work_on_all_cores(&self) {
        std::thread::scope(|scope| {
            for _ in 1..workers() {
                scope.spawn(|| self.work());
            }
            self.work();
        });
    }

    fn work(&self) {
        let reader = self.odb.reader().cancelled_by(self.cancel);
        let mut worker = Worker { reader, preparer: Preparer::new() };
        while let Some(job) = self.schedule.next() {
            let (id, (oid, _)) = (job.id, job.key);
            // A panic would be a defect; it must not leave the other workers waiting.
            let result = catch_unwind(AssertUnwindSafe(|| {
                self.cancel.check()?;
                self.run(&mut worker, job)
            }));
            match result {
                Ok(Ok(())) => {}
                Ok(Err(error)) => self.schedule.fail(error.at(&self.schedule.path(id))),
                Err(_) => self.schedule.fail(Error::corrupt(&oid, "importing it failed")),
            }
        }
    }

    fn run(&self, worker: &mut Worker, job: Job) -> Result<()> {
        let (id, key) = (job.id, job.key);
        let parked = match job.stage {
            Stage::Build(parked) => {
                let kept = parked.tree.as_ref().map_or(0, |tree| tree.size() as u64);
                self.held.fetch_sub(kept, Ordering::Relaxed);
                parked
            }
            Stage::Read { outer, name } => {
                if job.depth >= TREE_DEPTH_MAX {
                    return Err(self.too_deep(id, &key.0));
                }
                match self.discover(worker, id, &key.0, &outer, &name)? {
                    Some(parked) => parked,
                    None => return Ok(()),
                }
            }
        };
        let done = self.build(worker, id, &key, parked)?;
        self.schedule.finish(id, done);
        Ok(())
    }

    /// Reads tree `oid` and finds its subtrees; returns what building it needs if nothing else is.
    fn discover(
        &self,
        worker: &mut Worker,
        id: usize,
        oid: &GitOid,
        outer: &Scope,
        name: &[u8],
    ) -> Result<Option<Parked>> {
        if self.read.fetch_add(1, Ordering::Relaxed) >= self.trees_max {
            let what = "the number of directories to be imported".to_owned();
            return Err(Error::TooLarge { what, size: self.trees_max + 1, limit: self.trees_max });
        }
        let mut turn = None;
        let tree = self.read_tree(&mut worker.reader, &mut turn, id, oid)?;
        let (reader, replacements) = (&mut worker.reader, &self.replacements);
        let attributes = attributes::read(&self.lane, &mut turn, reader, &tree, replacements)
            .map_err(|error| error.at(&self.path_of(id, attributes::NAME)))?;
        let scope = outer.enter(name, attributes.as_deref())?;
        let mut children = Vec::new();
        for entry in tree.entries().filter(|entry| entry.kind == EntryKind::Directory) {
            let held = self.replacements.of(&entry.oid);
            let held = held.map_err(|error| error.at(&self.path_of(id, entry.name)))?;
            let key = (held, scope.enter(entry.name, None)?.context());
            let stored = self.stored(&key)?;
            children.push(Child { key, name: entry.name.into(), stored });
        }
        let size = tree.size() as u64;
        let held = self.held.fetch_add(size, Ordering::Relaxed) + size;
        let mut parked = Parked { scope, tree: Some(tree) };
        if held > WALK_HELD_BYTES_MAX && !children.is_empty() {
            self.held.fetch_sub(size, Ordering::Relaxed);
            parked.tree = None;
        }
        let parked = self.schedule.park(id, parked, children);
        if let Some(Parked { tree: Some(_), .. }) = &parked {
            self.held.fetch_sub(size, Ordering::Relaxed);
        }
        Ok(parked)
    }

    /// What the git map knows of a tree.
    fn stored(&self, (oid, context): &Key) -> Result<Option<Done>> {
        let known = self.store.tree_of(oid, context);
        Ok(match (self.purpose, known) {
            (Purpose::Import, known) => match known? {
                Some(subtree) => Some(Done { subtree, height: height(self.store, &subtree)? }),
                None => None,
            },
            (Purpose::Rebuild, Err(error)) if error.is_corruption() => None,
            // How deep it is was looked at when it was imported.
            (Purpose::Rebuild, known) => known?.map(|subtree| Done { subtree, height: 0 }),
        })
    }

    fn read_tree<'l>(
        &'l self,
        reader: &mut Reader,
        turn: &mut Option<Turn<'l>>,
        id: usize,
        oid: &GitOid,
    ) -> Result<GitTree> {
        let mut bytes = Vec::new();
        self.lane.read(turn, reader, oid, Kind::Tree, TREE_OBJECT_BYTES_MAX, &mut bytes)?;
        GitTree::parse(oid.kind(), bytes)
            .map_err(|TreeFault { name, why }| Error::refused(&self.path_of(id, &name), oid, why))
    }

    fn path_of(&self, id: usize, name: &[u8]) -> Vec<u8> {
        let mut path = self.schedule.path(id);
        if !path.is_empty() && !name.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }

    fn too_deep(&self, id: usize, oid: &GitOid) -> Error {
        let why = format!("directories are nested more than {TREE_DEPTH_MAX} deep");
        Error::refused(&self.schedule.path(id), oid, why)
    }
}
