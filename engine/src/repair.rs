//! Repairs what a check has found: a plan that can be shown, and what executes it.
//!
//! Only what can be known is repaired. A chunk is rebuilt from bytes that have its hash: from the file
//! of a repository that it is or is part of, or from a record that is still in an outbox. A directory
//! object is made anew from its git tree. A database with damage in what can be made again is written anew without that. Counts are counted again. What belongs to no branch is removed,
//! and the plan says so. Nothing is ever replaced by something empty: what cannot be rebuilt stays
//! damaged, and is reported as that.
//!
//! Every step is one transaction, and leaves a state in which the next repair can go on: a crash in
//! between costs nothing.

mod salvage;

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::io;
use std::sync::Arc;

use tracing::{info, warn};

use crate::base::{Base, Dir};
use crate::check::Finding;
use crate::content::{PreparedChunk, Preparer};
use crate::error::{Error, Result};
use crate::id::{BranchNumber, ChunkId, ContentId, Ino, LayerNumber, TreeId};
use crate::outbox::Examination;
use crate::progress::Cancel;
use crate::source::Blob;
use crate::store::{
    Branch, Object, Store, Table, decode_manifest, decode_sealed, drained_of, is_made_again,
    line_of,
};
use crate::worktree::Contents;

/// Bytes of a file read at a time, to have it rebuilt.
const PIECE_BYTES: usize = 1 << 20;

/// One thing that can be done about a finding. They are ordered: what others need comes first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Step {
    /// Write what damaged pages of the database had, which their parity tells.
    Pages {
        /// Their numbers.
        pages: Vec<u64>,
    },
    /// Write the database anew, without the damaged entries of tables that can be made again. What these said is
    /// missing then, and a check that follows says what that is.
    Database {
        /// The tables.
        tables: Vec<&'static str>,
    },
    /// Have what is whole of a damaged outbox take its place. What is not is lost. The branch has links to be counted again then, as
    /// a check that follows says.
    Outbox {
        /// The branch, as repository and name.
        branch: String,
    },
    /// Make a directory object anew from its git tree.
    Tree(TreeId),
    /// Store a content anew from its repository.
    Content(ContentId),
    /// Store a chunk anew.
    Chunk(ChunkId),
    /// Write a whole object to a record of its own again.
    Record(Object),
    /// State the highest number that an inode of a branch has: without that, its rows cannot be read.
    Highest {
        /// The branch.
        branch: String,
        /// The number.
        highest: u64,
    },
    /// Correct the link count of a changed inode.
    Links {
        /// The branch, as repository and name.
        branch: String,
        /// The inode.
        ino: Ino,
        /// The count that it has.
        stated: u32,
        /// The count that its names make.
        links: u32,
    },
    /// Forget where a branch stands that is not on record.
    RemoveHead {
        /// The number of the branch.
        number: BranchNumber,
    },
    /// Remove a layer that nobody needs.
    RemoveLayer {
        /// The layer.
        layer: LayerNumber,
        /// How many rows it has.
        rows: u64,
    },
    /// Remove the outbox of a branch that is not on record.
    RemoveOutbox {
        /// The number of the branch.
        number: BranchNumber,
    },
    /// Remove a plain file of the cache, which is made anew when it is needed.
    RemoveFile {
        /// Its name.
        name: String,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pages { pages } => {
                write!(f, "write pages {pages:?} of the database from their parity")
            }
            Self::Database { tables } => {
                let tables = tables.join(", ");
                write!(f, "write the database anew without the damaged entries of {tables}")
            }
            Self::Outbox { branch } => {
                write!(
                    f,
                    "branch {branch}: write what is whole of its outbox anew, without the rest"
                )
            }
            Self::Tree(id) => write!(f, "rebuild tree {id} from git"),
            Self::Content(id) => write!(f, "rebuild content {id} from git"),
            Self::Chunk(id) => write!(f, "rebuild chunk {id} from git or an outbox"),
            Self::Record(object) => write!(f, "write the record of {object} anew"),
            Self::Links { branch, ino, stated, links } => {
                write!(
                    f,
                    "branch {branch}: set the link count of inode {ino} from {stated} to {links}"
                )
            }
            Self::Highest { branch, highest } => {
                write!(f, "branch {branch}: set the highest number of a new inode to {highest}")
            }
            Self::RemoveHead { number } => {
                write!(f, "forget where branch number {number} stands, which is unknown")
            }
            Self::RemoveLayer { layer, rows } => {
                write!(f, "remove layer {layer} with its {rows} rows, which nobody needs")
            }
            Self::RemoveOutbox { number } => {
                write!(f, "remove the outbox of branch number {number}, which is unknown")
            }
            Self::RemoveFile { name } => write!(f, "remove plain file {name} of the cache"),
        }
    }
}

/// What can be done about `findings`, without repetitions. Where a finding has no step, nothing can.
pub fn plan(findings: &[Finding]) -> Vec<Step> {
    let mut steps: BTreeSet<Step> = findings.iter().filter_map(step_for).collect();
    let damaged: BTreeSet<_> = findings
        .iter()
        .filter_map(|finding| match finding {
            Finding::BadTable { table, .. } | Finding::BadEntry { table, .. } => Some(*table),
            _ => None,
        })
        .filter(|table| is_made_again(table))
        .collect();
    if !damaged.is_empty() {
        steps.insert(Step::Database { tables: damaged.into_iter().collect() });
    }
    steps.into_iter().collect()
}

fn step_for(finding: &Finding) -> Option<Step> {
    Some(match finding {
        Finding::BadPages { pages } => Step::Pages { pages: pages.clone() },
        Finding::BadTree { id, .. } | Finding::WrongTree { id, .. } => Step::Tree(*id),
        Finding::WrongContent { id, .. } => Step::Content(*id),
        Finding::BadChunk { id, .. } => Step::Chunk(*id),
        Finding::MissingChunk { chunk, .. } | Finding::LostBytes { chunk, .. } => {
            Step::Chunk(*chunk)
        }
        Finding::BadOutbox { branch, .. } => Step::Outbox { branch: branch.clone() },
        Finding::BadRecord { object, .. } => Step::Record(*object),
        Finding::WrongLinks { branch, ino, stated, found } => {
            Step::Links { branch: branch.clone(), ino: *ino, stated: *stated, links: *found }
        }
        Finding::WrongHighest { branch, found, .. } => {
            Step::Highest { branch: branch.clone(), highest: *found }
        }
        Finding::HeadOfNoBranch { number } => Step::RemoveHead { number: *number },
        Finding::LayerOfNobody { layer, rows } => Step::RemoveLayer { layer: *layer, rows: *rows },
        Finding::OutboxOfNoBranch { number } => Step::RemoveOutbox { number: *number },
        Finding::BadFile { name, .. } if !name.is_empty() => {
            Step::RemoveFile { name: name.clone() }
        }
        _ => return None,
    })
}

/// What a repair needs to know of what uses the store.
pub trait Surroundings {
    /// The contents of the repository of a branch; `None` if it cannot be opened.
    fn contents(&self, branch: &Branch) -> Option<Arc<Contents>>;

    /// Whether a branch is open: then what it has in memory counts, not its rows.
    fn is_open(&self, branch: &Branch) -> bool;
}

/// A step with what came of it; why it could not be taken, otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The step.
    pub step: Step,
    /// What came of it.
    pub outcome: Result<(), String>,
    /// What could not be kept, although it was taken.
    pub lost: Option<String>,
}

/// Executes `steps`. The caller holds no batch.
///
/// # Errors
/// [`Error::Cancelled`], and what reading the branches meets. Whatever else keeps a step from being
/// taken is its outcome.
pub fn execute(
    store: &Arc<Store>,
    steps: &[Step],
    surroundings: &dyn Surroundings,
    cancel: &Cancel,
) -> Result<Vec<Taken>> {
    let branches = store.branches()?;
    let repair = Repair { store, branches: &branches, surroundings, cancel };
    repair.rebuild(steps)?;
    let mut taken = Vec::with_capacity(steps.len());
    for step in steps {
        cancel.check()?;
        let (outcome, lost) = match repair.take(step) {
            Ok(lost) => {
                info!("repaired: {step}");
                (Ok(()), lost)
            }
            Err(error) => {
                warn!("not repaired: {step}: {error}");
                (Err(error.to_string()), None)
            }
        };
        if let Some(lost) = &lost {
            warn!("lost: {lost}");
        }
        taken.push(Taken { step: step.clone(), outcome, lost });
    }
    Ok(taken)
}

struct Repair<'a> {
    store: &'a Arc<Store>,
    branches: &'a [Branch],
    surroundings: &'a dyn Surroundings,
    cancel: &'a Cancel,
}

impl Repair<'_> {
    /// Takes a step by which nothing is rebuilt; of the others, tells whether [`Self::rebuild`] has
    /// done it. Returns what is lost by it.
    fn take(&self, step: &Step) -> Result<Option<String>> {
        let taken: Result<()> = match step {
            Step::Outbox { branch } => return self.salvage(branch),
            Step::Pages { .. } => self.store.rebuild_pages(),
            Step::Database { .. } => self.store.renew_database(),
            Step::Tree(id) => self.store.tree(*id).map(drop),
            Step::Chunk(id) => self.store.core().load(&Object::Chunk(*id)).map(drop),
            Step::Content(id) => match self.store.has_content(*id)? {
                true => Ok(()),
                false => Err(Error::MissingContent(*id)),
            },
            Step::Record(object) => {
                let bytes = self.store.core().load(object)?;
                let mut batch = self.store.batch()?;
                batch.rewrite(*object, &bytes)?;
                batch.commit()
            }
            Step::Links { branch, ino, stated, links } => {
                let branch = self.closed(branch)?;
                let (overlay, head) = self.store.head(branch.number)?;
                let found = overlay.node(*ino).filter(|node| node.inode.nlink == *stated);
                let mut node = found.ok_or(Error::NoInode(*ino))?.clone();
                node.inode.nlink = *links;
                let mut batch = self.store.batch()?;
                batch.put_inode((head.layer, head.below), *ino, Some(&node));
                batch.commit()
            }
            Step::Highest { branch, highest } => {
                let branch = self.closed(branch)?;
                let snapshot = self.store.core().snapshot();
                let Some((layer, _)) = drained_of(&snapshot, branch.number)? else {
                    return Ok(None);
                };
                let line = line_of(&snapshot, layer, Some(branch.number))?;
                let below = line.layers.iter().rev().nth(1).copied();
                let mut batch = self.store.batch()?;
                batch.put_layer(layer, below, line.last_new.max(*highest));
                batch.commit()
            }
            Step::RemoveHead { number } => {
                self.unknown(*number)?;
                let mut batch = self.store.batch()?;
                batch.remove_head(*number);
                batch.commit()
            }
            Step::RemoveLayer { .. } => {
                let mut batch = self.store.batch()?;
                batch.sweep_layers()?;
                batch.commit()
            }
            Step::RemoveFile { name } => self.store.files().remove_named(name),
            Step::RemoveOutbox { number } => {
                self.unknown(*number)?;
                self.remove_outbox(*number)
            }
        };
        taken.map(|()| None)
    }

    /// The branch that is called `name` and that nobody has open.
    fn named(&self, name: &str) -> Result<&Branch> {
        let same = |branch: &&Branch| format!("{}:{}", branch.repository, branch.name) == name;
        let branch = self.branches.iter().find(same);
        let branch = branch.ok_or_else(|| Error::NoSuch { kind: "branch", name: name.into() })?;
        if self.surroundings.is_open(branch) {
            return Err(Error::Refused(format!("branch {name} is mounted: unmount it first")));
        }
        Ok(branch)
    }

    /// As [`Self::named`], with nothing in its outbox that the rows do not have.
    fn closed(&self, name: &str) -> Result<&Branch> {
        let branch = self.named(name)?;
        let drained = drained_of(&self.store.core().snapshot(), branch.number)?;
        let drained = drained.map(|(_, drained)| drained).unwrap_or_default();
        let storage = self.store.core().segments().storage();
        let outbox = Examination::begin(storage, &self.store.outbox_dir(branch.number))?;
        let records = match outbox {
            Some(outbox) => outbox.read(drained, &mut |_| Ok(()))?.records,
            None => 0,
        };
        if records > 0 {
            return Err(Error::Refused(format!(
                "branch {name} has {records} changes that are not drained: mount it and unmount it"
            )));
        }
        Ok(branch)
    }

    /// An error if there is a branch of this number by now.
    fn unknown(&self, number: BranchNumber) -> Result<()> {
        match self.store.branches()?.iter().find(|branch| branch.number == number) {
            None => Ok(()),
            Some(branch) => Err(Error::Exists { kind: "branch", name: branch.name.clone() }),
        }
    }

    fn remove_outbox(&self, number: BranchNumber) -> Result<()> {
        let storage = self.store.core().segments().storage();
        let dir = self.store.outbox_dir(number);
        let names = storage.list(&dir).map_err(|error| Error::io("list", &dir, error))?;
        for name in names {
            let path = dir.join(name);
            match storage.remove(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", &path, error));
                }
                _ => {}
            }
        }
        storage.sync_dir(&dir).map_err(|error| Error::io("sync", &dir, error))
    }

    /// Rebuilds whatever can be of the trees, contents and chunks that `steps` name.
    fn rebuild(&self, steps: &[Step]) -> Result<()> {
        let chunks: HashSet<ChunkId> = steps
            .iter()
            .filter_map(|step| match step {
                Step::Chunk(id) => Some(*id),
                _ => None,
            })
            .collect();
        let mut contents: HashSet<ContentId> = chunks.iter().map(|id| (*id).into()).collect();
        if !chunks.is_empty() {
            contents.extend(self.contents_of(&chunks)?);
        }
        let mut any_tree = false;
        for step in steps {
            match step {
                Step::Content(id) => drop(contents.insert(*id)),
                Step::Tree(_) => any_tree = true,
                _ => {}
            }
        }
        if contents.is_empty() && !any_tree {
            return Ok(());
        }
        for branch in self.branches {
            self.read_base(branch, &contents)?;
        }
        let damaged = |id: &&ChunkId| self.store.core().load(&Object::Chunk(**id)).is_err();
        let lost: HashSet<ChunkId> = chunks.iter().filter(damaged).copied().collect();
        if !lost.is_empty() {
            self.search_git(&lost, &contents)?;
        }
        let lost: HashSet<ChunkId> = lost.iter().filter(damaged).copied().collect();
        if !lost.is_empty() {
            self.search_outboxes(&lost)?;
        }
        Ok(())
    }

    /// The contents of several chunks of which one is in `chunks`.
    fn contents_of(&self, chunks: &HashSet<ChunkId>) -> Result<Vec<ContentId>> {
        let mut contents = Vec::new();
        let table = Table::Manifests;
        self.store.core().snapshot().scan(table, b"", |key, value| {
            let Some(id) = ContentId::from_slice(key) else { return Ok(()) };
            // One that cannot be read was reported, and helps nobody.
            let manifest = decode_sealed(table, key, value, |value| decode_manifest(id, value));
            if manifest.is_ok_and(|found| found.chunks.iter().any(|(id, _)| chunks.contains(id))) {
                contents.push(id);
            }
            Ok(())
        })?;
        Ok(contents)
    }

    /// Enters every directory of the base of a branch, and reads its files that are in `contents`: what
    /// is damaged is rebuilt by that.
    fn read_base(&self, branch: &Branch, wanted: &HashSet<ContentId>) -> Result<()> {
        let Some(contents) = self.surroundings.contents(branch) else { return Ok(()) };
        let source = contents.source().cloned();
        let Ok(base) = Base::open(Arc::clone(self.store), source, branch.root) else {
            return Ok(());
        };
        let mut pending = vec![base.root()];
        let mut buffer = Vec::new();
        while let Some(dir) = pending.pop() {
            self.cancel.check()?;
            for index in 0..dir.tree().len() {
                match dir.entry(index).subtree {
                    // What cannot be entered is reported again by the next check.
                    Some(_) => pending.extend(dir.child(index).ok()),
                    None => self.read_file(&contents, &base, dir, index, wanted, &mut buffer),
                }
            }
        }
        Ok(())
    }

    fn read_file(
        &self,
        contents: &Contents,
        base: &Base,
        dir: Dir<'_>,
        index: usize,
        wanted: &HashSet<ContentId>,
        buffer: &mut Vec<u8>,
    ) {
        let entry = dir.entry(index);
        let mapped = || self.store.content_of(&entry.oid?).ok().flatten().map(|stored| stored.id);
        let Some(id) = entry.content.or_else(mapped).filter(|id| wanted.contains(id)) else {
            return;
        };
        buffer.resize(PIECE_BYTES, 0);
        let mut offset = 0;
        let path = || base.path(dir.ino_of(index));
        loop {
            match contents.read(&entry, path, offset, buffer) {
                Ok(0) => return,
                Ok(read) => offset += read as u64,
                Err(error) => {
                    warn!(%id, %error, "a content cannot be rebuilt from this repository");
                    return;
                }
            }
        }
    }

    /// Looks for chunks in the git blobs that are known to hold them, whichever branch has these.
    fn search_git(&self, lost: &HashSet<ChunkId>, contents: &HashSet<ContentId>) -> Result<()> {
        for content in contents {
            self.cancel.check()?;
            let Some(oid) = self.store.oid_of(*content).ok().flatten() else { continue };
            for branch in self.branches {
                let source = self.surroundings.contents(branch);
                let Some(source) = source.and_then(|contents| contents.source().cloned()) else {
                    continue;
                };
                let Ok(blob) = source.blob(&oid) else { continue };
                let mut found = Vec::new();
                let mut keep = |chunk: PreparedChunk| {
                    if lost.contains(&chunk.id) {
                        found.push(chunk);
                    }
                    Ok(())
                };
                let mut preparer = Preparer::new();
                match blob {
                    Blob::Whole(bytes) => {
                        preparer.content(&bytes).chunks.into_iter().try_for_each(&mut keep)?;
                    }
                    Blob::Stream(mut reader) => {
                        if preparer.stream(&mut *reader, &mut keep).is_err() {
                            continue;
                        }
                    }
                }
                self.replace(&found)?;
                break;
            }
        }
        Ok(())
    }

    /// Looks for chunks in the bodies of the records that are in outboxes.
    fn search_outboxes(&self, lost: &HashSet<ChunkId>) -> Result<()> {
        let storage = self.store.core().segments().storage();
        let mut preparer = Preparer::new();
        for branch in self.branches {
            self.cancel.check()?;
            let Ok(Some(outbox)) =
                Examination::begin(storage, &self.store.outbox_dir(branch.number))
            else {
                continue;
            };
            let mut found = Vec::new();
            let read = outbox.bodies(&mut |body| {
                if lost.contains(&ChunkId::of(body)) {
                    let chunks = preparer.content(body).chunks.into_iter();
                    found.extend(chunks.filter(|chunk| lost.contains(&chunk.id)));
                }
            });
            if let Err(error) = read {
                warn!(%error, "an outbox cannot be searched to its end");
            }
            self.replace(&found)?;
        }
        Ok(())
    }

    fn replace(&self, chunks: &[PreparedChunk]) -> Result<()> {
        if chunks.is_empty() {
            return Ok(());
        }
        let mut batch = self.store.batch()?;
        chunks.iter().try_for_each(|chunk| batch.replace_chunk(chunk))?;
        batch.commit()
    }
}
