//! What a move changes, and what keeps it from being made.

mod content;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::UNIX_EPOCH;

use agentfs_engine::worktree::{Attributes, NodeKind, Worktree};
use agentfs_engine::{GitOid, HashKind};

use super::index::{Index, sum};
use super::merge::{self, Merged};
use super::trees::{Differences, differences};
use super::{Goal, Locked, MAKING, Settings};
use crate::error::{Error, Result};
use crate::examine::leaves_checksums_out;
use crate::index::STAT_BYTES;
use crate::index::recorded_size;
use crate::index_entries::IndexEntry;
use crate::racy;
use crate::repository::Repository;
use crate::transport;
use crate::tree::GitTree;

pub(super) const FILE: u32 = 0o100_644;
pub(super) const EXECUTABLE: u32 = 0o100_755;
pub(super) const LINK: u32 = 0o120_000;
pub(super) const GITLINK: u32 = 0o160_000;
/// Where the size is in the stat data of an entry.
const SIZE_AT: usize = 36;

/// One path that a move changes.
#[derive(Clone, Debug)]
pub struct Step {
    /// The path.
    pub path: Vec<u8>,
    /// The object that is to be there: nothing, if that is none.
    pub oid: Option<GitOid>,
    /// Whether it is a commit of another repository, for which there is a directory.
    pub is_gitlink: bool,
    /// What is there.
    pub found: Option<Attributes>,
    /// Whether it is in the index now.
    is_tracked: bool,
    /// Where the stat data of its entry are in the next index.
    at: Option<usize>,
}

/// What a move changes.
#[derive(Debug)]
pub struct Plan {
    /// Each path once.
    pub steps: Vec<Step>,
    /// The next index.
    index: Vec<u8>,
    /// Whether it ends in a checksum.
    summed: bool,
    /// What stays and is as young as the index, so that git does not believe that of it.
    doubtful: Vec<Kept>,
    /// Directories of the goal in which something differs, if that was found out here.
    pub(super) trees: Option<BTreeMap<Vec<u8>, Arc<GitTree>>>,
}

/// An entry that stays.
#[derive(Debug)]
struct Kept {
    entry: IndexEntry,
    /// Where its stat data are in the next index.
    at: usize,
}

/// What keeps a move from being made. Paths are in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A merge of these paths is not resolved.
    Unmerged(Vec<Vec<u8>>),
    /// Changes of these paths would be lost.
    Local(Vec<Vec<u8>>),
    /// Files at these paths, which git does not know, would be lost.
    Untracked(Vec<Vec<u8>>),
    /// The index is of a form that is not read here: what it is, and what to do about it.
    Form(&'static str, &'static str),
}

/// What a file is beside its index entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Same,
    Absent,
    Changed,
    /// Its content has to be compared.
    Unknown,
}

/// A worktree that may be moved.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    /// Its repository.
    pub repository: &'a Repository,
    /// What git is told about it.
    pub settings: &'a Settings,
    /// Its files.
    pub worktree: &'a Worktree,
    /// Where it is mounted.
    pub dir: &'a Path,
}

/// A worktree that is to be moved.
#[derive(Clone, Copy)]
struct Moved<'a> {
    repository: &'a Repository,
    git_dir: &'a Path,
    dir: &'a Path,
    worktree: &'a Worktree,
    /// Whether the permission to execute counts.
    file_mode: bool,
}

/// Mode and object of a path.
pub(super) type Side = Option<(u32, GitOid)>;

impl Locked {
    /// What moving the worktree `place` from tree `from` to `goal` changes. With `discard`, what differs
    /// from the commits goes, else what it would touch is a reason not to do it.
    ///
    /// # Errors
    /// What reading the index meets, and what git says.
    pub fn plan(
        &self,
        place: Place<'_>,
        from: &GitOid,
        goal: &Goal,
        discard: bool,
    ) -> Result<Result<Plan, Refusal>> {
        let Place { repository, settings, worktree, dir } = place;
        let file_mode = settings.file_mode();
        let git_dir = self.git_dir.as_path();
        let moved = Moved { repository, git_dir, dir, worktree, file_mode };
        let unsummed = || leaves_checksums_out(repository.git_dir());
        let index = git_dir.join("index");
        // The one hashes the index, the other reads trees.
        let compare = || differences(repository, from, &goal.commit.tree);
        let (old, found) = thread::scope(|scope| {
            let spawn = || thread::Builder::new().spawn_scoped(scope, compare);
            let found = (!discard).then(spawn);
            let old = Index::read(&index, self.hash, &unsummed);
            let found = found.map(|found| match found {
                Ok(found) => found.join().unwrap_or_else(|panic| resume_unwind(panic)),
                Err(_) => compare(),
            });
            (old, found)
        });
        let old = old?;
        if let Some(refusal) = old.refusal(discard) {
            return Ok(Err(refusal));
        }
        let index_time = racy::time_of(&index).unwrap_or_default();
        let differ = match found {
            None => None,
            Some(found) => match found? {
                Some(found) => Some(Differing::Known(found)),
                None => Some(Differing::Files(moved.differences_by_git(from, &goal.commit.tree)?)),
            },
        };
        if let Some(refusal) = differ.as_ref().and_then(|differ| staged(&old, differ)) {
            return Ok(Err(refusal));
        }
        let merged = match &differ {
            Some(Differing::Known(differ)) if settings.has_plain_index() => {
                merge::next(&old, differ).map(|merged| (differ, merged))
            }
            _ => None,
        };
        let (compared, bytes, summed) = match merged {
            Some((differ, merged)) => {
                (moved.few_steps(&old, differ, &merged, index_time)?, merged.bytes, true)
            }
            None => {
                let next = moved.read_tree(from, goal, discard)?;
                let new = Index::read(&next, old.hash(), &unsummed)?;
                let summed = new.is_summed();
                (moved.steps(&old, &new, index_time, discard)?, new.into_bytes(), summed)
            }
        };
        let Compared { mut steps, lost, kept } = compared;
        drop(old);
        if !lost.is_empty() {
            return Ok(Err(Refusal::Local(lost)));
        }
        let in_the_way = moved.in_the_way(&steps);
        let missed = match discard {
            true => Vec::new(),
            false => moved.not_ignored(&in_the_way)?,
        };
        if !missed.is_empty() {
            return Ok(Err(Refusal::Untracked(missed)));
        }
        let planned: BTreeSet<_> = steps.iter().map(|step| step.path.clone()).collect();
        for path in in_the_way.into_iter().filter(|path| !planned.contains(path)) {
            let found = racy::find(worktree, &path);
            let gone =
                Step { path, oid: None, is_gitlink: false, found, is_tracked: false, at: None };
            steps.push(gone);
        }
        let trees = match differ {
            Some(Differing::Known(known)) => Some(known.trees),
            _ => None,
        };
        Ok(Ok(Plan { steps, index: bytes, summed, doubtful: kept, trees }))
    }
}

impl Plan {
    /// The next index, without what `stat` says of what is new.
    pub(super) fn index(&self) -> &[u8] {
        &self.index
    }

    /// The next index, with what `stat` says of what the steps have made, in the worktree in which it is.
    pub(super) fn index_with(
        &mut self,
        stats: &[Option<Attributes>],
        dev: u32,
        hash: HashKind,
        worktree: &Worktree,
    ) -> Result<&[u8]> {
        let bytes = &mut self.index;
        for (step, stat) in self.steps.iter().zip(stats) {
            let (Some(at), Some(stat), false) = (step.at, stat, step.is_gitlink) else { continue };
            let (changed, modified) = (stat.changed, stat.modified);
            let before_mode = [
                changed.seconds as u32,
                changed.nanoseconds,
                modified.seconds as u32,
                modified.nanoseconds,
                dev,
                stat.ino.0 as u32,
            ];
            let after_mode = [stat.uid, stat.gid, recorded_size(stat.size)];
            let mut put = |at: usize, fields: &[u32]| {
                for (number, field) in fields.iter().enumerate() {
                    let at = at + 4 * number;
                    bytes[at..at + 4].copy_from_slice(&field.to_be_bytes());
                }
            };
            put(at, &before_mode);
            put(at + 28, &after_mode);
        }
        let now = UNIX_EPOCH.elapsed().unwrap_or_default().as_secs();
        for kept in &self.doubtful {
            // One that has changed in the second that its entry states would seem the same to git, beside a younger index.
            // Without a size git compares it.
            let is_settled = u64::from(kept.entry.mtime.0) < now;
            let found = racy::find(worktree, &kept.entry.path);
            if !is_settled || !found.is_some_and(|found| is_exact(&kept.entry, &found)) {
                bytes[kept.at + SIZE_AT..kept.at + STAT_BYTES].fill(0);
            }
        }
        if self.summed {
            sum(bytes, hash)?;
        }
        Ok(&self.index)
    }
}

/// What came of the comparison of two indexes with what is there.
struct Compared {
    /// What differs.
    steps: Vec<Step>,
    /// The paths of which changes would be lost.
    lost: Vec<Vec<u8>>,
    /// What stays and is as young as the index.
    kept: Vec<Kept>,
}

/// Whether a file is what its index entry states, as far as git compares that.
fn is_alike(entry: &IndexEntry, now: &Attributes) -> bool {
    let stated = (entry.mtime.0, entry.mtime.1, entry.ctime.0, entry.ino, entry.size);
    let found = (
        now.modified.seconds as u32,
        now.modified.nanoseconds,
        now.changed.seconds as u32,
        now.ino.0 as u32,
        recorded_size(now.size),
    );
    stated == found && (entry.uid, entry.gid) == (now.uid, now.gid)
}

/// Whether a file has not changed since its index entry was made, however long ago that is: whatever changes it here
/// sets its time of change, in nanoseconds, which the index has as well.
fn is_exact(entry: &IndexEntry, now: &Attributes) -> bool {
    entry.ctime.1 == now.changed.nanoseconds && entry.size != 0 && is_alike(entry, now)
}

/// What differs between two commits.
pub(super) enum Differing {
    /// All of it.
    Known(Differences),
    /// The files alone, from git.
    Files(BTreeMap<Vec<u8>, (Side, Side)>),
}

impl Differing {
    fn files(&self) -> &BTreeMap<Vec<u8>, (Side, Side)> {
        match self {
            Self::Known(all) => &all.files,
            Self::Files(files) => files,
        }
    }
}

/// What is staged and would be lost where the commits differ.
pub(super) fn staged(old: &Index, differ: &Differing) -> Option<Refusal> {
    let mut differ: BTreeMap<_, _> = differ.files().iter().collect();
    let mut lost = Vec::new();
    for entry in old.entries() {
        let now = Some((entry.mode, entry.oid));
        if let Some((before, after)) = differ.remove(&entry.path)
            && now != *before
            && now != *after
        {
            lost.push(entry.path.clone());
        }
    }
    // What is staged away already is not missed, and what is not there is new.
    let gone =
        differ.into_iter().filter(|(_, (before, after))| before.is_some() && after.is_some());
    lost.extend(gone.map(|(path, _)| path.clone()));
    lost.sort_unstable();
    (!lost.is_empty()).then_some(Refusal::Local(lost))
}

impl Moved<'_> {
    /// The paths that differ between two trees, as git has them.
    fn differences_by_git(
        &self,
        from: &GitOid,
        to: &GitOid,
    ) -> Result<BTreeMap<Vec<u8>, (Side, Side)>> {
        let (from, to) = (from.to_string(), to.to_string());
        let mut git = transport::git();
        git.args([
            "-c",
            "core.fsmonitor=false",
            "diff-tree",
            "-r",
            "-z",
            "--raw",
            "--no-renames",
            "--full-index",
        ]);
        git.args(["--no-abbrev", "--ignore-submodules=none", &from, &to]);
        git.env("GIT_DIR", self.git_dir);
        let raw = transport::output(&mut git, self.git_dir, "compare trees", None, &[0])?;
        let mut fields = raw.split(|byte| *byte == 0);
        let mut found = BTreeMap::new();
        while let (Some(line), Some(path)) = (fields.next(), fields.next()) {
            let parsed = parse_raw(line);
            let sides = parsed.ok_or_else(|| Error::Git {
                action: "compare trees".into(),
                git_dir: self.git_dir.to_owned(),
                source: format!("it says {:?}", String::from_utf8_lossy(line)).into(),
            })?;
            found.insert(path.to_owned(), sides);
        }
        Ok(found)
    }

    /// Has git make the next index, of a copy.
    fn read_tree(&self, from: &GitOid, goal: &Goal, discard: bool) -> Result<tempfile::TempPath> {
        let index = self.git_dir.join("index");
        let io = |source| Error::io("copy", &index, source);
        let copy = tempfile::Builder::new().prefix(MAKING).tempfile_in(self.git_dir);
        let copy = copy.map_err(io)?.into_temp_path();
        match std::fs::copy(&index, &copy) {
            // git makes one.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                std::fs::remove_file(&copy).map_err(io)?;
            }
            copied => drop(copied.map_err(io)?),
        }
        let (from, to) = (from.to_string(), goal.commit.tree.to_string());
        let mut git = transport::git();
        git.args(["-c", "core.splitIndex=false", "-c", "core.fsmonitor=false", "read-tree"]);
        match discard {
            true => git.args(["--reset", "-i", &to]),
            false => git.args(["-m", "-i", &from, &to]),
        };
        git.env("GIT_INDEX_FILE", &copy);
        transport::run(&mut git, self.git_dir, "move the index").map(drop)?;
        Ok(copy)
    }

    /// Compares what differs with what is there, where `old` becomes `merged`.
    fn few_steps(
        &self,
        old: &Index,
        differ: &Differences,
        merged: &Merged,
        index_time: u64,
    ) -> Result<Compared> {
        let (mut steps, mut lost, mut doubtful) = (Vec::new(), Vec::new(), Vec::new());
        let entries = old.entries();
        for (path, (_, after)) in &differ.files {
            let known = entries.binary_search_by(|entry| entry.path.cmp(path)).ok();
            let at = merged.new.get(path).copied();
            if at.is_none() && known.is_none_or(|known| merged.kept[known].is_some()) {
                // It is staged as it is to be.
                continue;
            }
            let next = at.and(*after);
            let step = Step {
                path: path.clone(),
                oid: next.map(|(_, oid)| oid),
                is_gitlink: next.is_some_and(|(mode, _)| mode == GITLINK),
                found: racy::find(self.worktree, path),
                is_tracked: known.is_some(),
                at,
            };
            let Some(entry) = known.map(|known| &entries[known]) else {
                steps.push(step);
                continue;
            };
            match self.state(entry, step.found, index_time) {
                State::Changed => lost.push(path.clone()),
                State::Unknown => {
                    steps.push(step.clone());
                    doubtful.push((entry.clone(), step));
                }
                State::Same | State::Absent => steps.push(step),
            }
        }
        lost.extend(self.different(doubtful)?.into_iter().map(|(entry, _)| entry.path));
        lost.sort_unstable();
        let places =
            entries.iter().zip(&merged.kept).filter_map(|(entry, at)| Some((entry, (*at)?)));
        let young = places.filter(|(entry, _)| u64::from(entry.mtime.0) >= index_time);
        let kept = young.map(|(entry, at)| Kept { entry: entry.clone(), at }).collect();
        Ok(Compared { steps, lost, kept })
    }

    /// Compares the two indexes with what is there.
    fn steps(&self, old: &Index, new: &Index, index_time: u64, discard: bool) -> Result<Compared> {
        let (mut steps, mut lost, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        // Those that are to be compared, with what their content should be, and what they are to become.
        let mut doubtful = Vec::new();
        let mut old = old.entries().iter().filter(|entry| entry.stage == 0).peekable();
        let mut new = new.entries().iter().peekable();
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(one), Some(other)) => one.path.cmp(&other.path),
            };
            let before = if order.is_le() { old.next() } else { None };
            let after = if order.is_ge() { new.next() } else { None };
            let after = after.filter(|next| !next.skipped);
            let Some(entry) = before else {
                steps.extend(after.map(|next| self.step(&next.path, Some(next), false)));
                continue;
            };
            let same = after.is_some_and(|next| (next.mode, next.oid) == (entry.mode, entry.oid));
            if let Some(next) = after.filter(|_| same && !entry.skipped)
                && u64::from(entry.mtime.0) >= index_time
            {
                kept.push(Kept { entry: entry.clone(), at: next.at });
            }
            if entry.skipped || (same && !discard) {
                continue;
            }
            // What is judged is what is not to have changed when the move is made.
            let step = self.step(&entry.path, after, true);
            let state = self.state(entry, step.found, index_time);
            match (state, discard) {
                (State::Changed, false) => lost.push(entry.path.clone()),
                (State::Unknown, false) => {
                    steps.push(step.clone());
                    doubtful.push((entry.clone(), step));
                }
                (State::Unknown, true) if same => doubtful.push((entry.clone(), step)),
                (State::Same, true) if same => {}
                _ => steps.push(step),
            }
        }
        for (entry, step) in self.different(doubtful)? {
            match discard {
                true => steps.push(step),
                false => lost.push(entry.path),
            }
        }
        lost.sort_unstable();
        steps.sort_unstable_by(|one, other| one.path.cmp(&other.path));
        Ok(Compared { steps, lost, kept })
    }

    fn step(&self, path: &[u8], next: Option<&IndexEntry>, is_tracked: bool) -> Step {
        Step {
            path: path.to_owned(),
            oid: next.map(|entry| entry.oid),
            is_gitlink: next.is_some_and(|entry| entry.mode == GITLINK),
            found: racy::find(self.worktree, path),
            is_tracked,
            at: next.map(|entry| entry.at),
        }
    }

    /// What the file of an index entry is beside it.
    fn state(&self, entry: &IndexEntry, found: Option<Attributes>, index_time: u64) -> State {
        let Some(now) = found else { return State::Absent };
        let right = match entry.mode {
            FILE | EXECUTABLE => now.kind == NodeKind::File,
            LINK => now.kind == NodeKind::Symlink,
            _ => now.kind == NodeKind::Directory,
        };
        let executable = now.permissions & 0o100 != 0;
        let mode = !matches!(entry.mode, FILE | EXECUTABLE)
            || !self.file_mode
            || executable == (entry.mode == EXECUTABLE);
        if !right || !mode {
            return State::Changed;
        }
        if entry.mode == GITLINK {
            return State::Same;
        }
        let settled = u64::from(entry.mtime.0) < index_time;
        match is_exact(entry, &now) || (settled && is_alike(entry, &now)) {
            true => State::Same,
            false => State::Unknown,
        }
    }
}

/// Mode and object before and after, of a line like `:100644 100644 ID ID M`.
fn parse_raw(line: &[u8]) -> Option<(Side, Side)> {
    let line = std::str::from_utf8(line).ok()?.strip_prefix(':')?;
    let mut fields = line.split(' ');
    let (before, after) = (fields.next()?, fields.next()?);
    let (one, other) = (fields.next()?, fields.next()?);
    let side = |mode: &str, oid: &str| {
        let mode = u32::from_str_radix(mode, 8).ok()?;
        let id = gix::ObjectId::from_hex(oid.as_bytes()).ok()?;
        let oid = crate::object::from_gix(&id)?;
        Some((mode != 0).then_some((mode, oid)))
    };
    Some((side(before, one)?, side(after, other)?))
}
