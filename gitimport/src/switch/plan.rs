//! What a move changes, and what keeps it from being made.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::Path;

use agentfs_engine::worktree::{Attributes, NodeKind, Worktree};
use agentfs_engine::{GitOid, HashKind};

use super::{Goal, Locked, MAKING};
use crate::error::{Error, Result};
use crate::examine::{leaves_checksums_out, read, verified};
use crate::index::recorded_size;
use crate::index_entries::{Entries, IndexEntry, walk};
use crate::limits::INDEX_BYTES_MAX;
use crate::object::{Kind, object_id, to_gix_kind};
use crate::racy;
use crate::repository::Repository;
use crate::transport;

const FILE: u32 = 0o100_644;
const EXECUTABLE: u32 = 0o100_755;
const LINK: u32 = 0o120_000;
const GITLINK: u32 = 0o160_000;

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

/// A worktree that is to be moved.
#[derive(Clone, Copy)]
pub(super) struct Moved<'a> {
    repository: &'a Repository,
    git_dir: &'a Path,
    dir: &'a Path,
    worktree: &'a Worktree,
    /// Whether the permission to execute counts.
    file_mode: bool,
}

/// Mode and object of a path.
type Side = Option<(u32, GitOid)>;

/// An index in memory.
struct Index {
    bytes: Vec<u8>,
    /// Where its checksum begins.
    end: usize,
    hash: HashKind,
}

impl Locked {
    /// What moving the worktree at `dir` from tree `from` to `goal` changes. With `discard`, what differs
    /// from the commits goes, else what it would touch is a reason not to do it.
    ///
    /// # Errors
    /// What reading the index meets, and what git says.
    pub fn plan(
        &self,
        repository: &Repository,
        worktree: &Worktree,
        dir: &Path,
        from: &GitOid,
        goal: &Goal,
        discard: bool,
    ) -> Result<Result<Plan, Refusal>> {
        let git = repository.gix();
        let file_mode = git.config_snapshot().boolean("core.fileMode").unwrap_or(true);
        let git_dir = self.git_dir.as_path();
        let moved = Moved { repository, git_dir, dir, worktree, file_mode };
        let unsummed = || leaves_checksums_out(repository.git_dir());
        let index = git_dir.join("index");
        let old = Index::read(&index, self.hash, &unsummed)?;
        if let Some(refusal) = old.refusal(discard).map_err(damaged(&index))? {
            return Ok(Err(refusal));
        }
        let index_time = racy::time_of(&index).unwrap_or_default();
        if !discard && let Some(refusal) = moved.staged(&old, from, goal)? {
            return Ok(Err(refusal));
        }
        let next = moved.read_tree(from, goal, discard)?;
        let new = Index::read(&next, self.hash, &unsummed)?;
        drop(next);
        let (mut steps, lost) = moved.steps(&old, &new, index_time, discard)?;
        drop(old);
        if !lost.is_empty() {
            return Ok(Err(Refusal::Local(lost)));
        }
        let in_the_way = moved.in_the_way(&steps);
        let kept = match discard {
            true => Vec::new(),
            false => moved.not_ignored(&in_the_way)?,
        };
        if !kept.is_empty() {
            return Ok(Err(Refusal::Untracked(kept)));
        }
        let planned: BTreeSet<_> = steps.iter().map(|step| step.path.clone()).collect();
        for path in in_the_way.into_iter().filter(|path| !planned.contains(path)) {
            let found = racy::find(worktree, &path);
            let gone =
                Step { path, oid: None, is_gitlink: false, found, is_tracked: false, at: None };
            steps.push(gone);
        }
        let summed = new.bytes[new.end..].iter().any(|byte| *byte != 0);
        Ok(Ok(Plan { steps, index: new.bytes, summed }))
    }
}

/// That the index at `path` cannot be read.
fn damaged(path: &Path) -> impl Fn(String) -> Error + '_ {
    |why| Error::CorruptFile { path: path.to_owned(), why }
}

impl Index {
    fn read(path: &Path, hash: HashKind, unsummed: &dyn Fn() -> bool) -> Result<Self> {
        let bytes = read(path, INDEX_BYTES_MAX).map_err(damaged(path))?.unwrap_or_default();
        let end = match bytes.is_empty() {
            true => 0,
            false => verified(&bytes, hash, unsummed).map_err(damaged(path))?.len(),
        };
        Ok(Self { bytes, end, hash })
    }

    /// Its entries in the order of their paths; a file that is not there has none.
    fn entries(&self) -> impl Iterator<Item = Result<IndexEntry>> {
        let entries = (self.end > 0).then(|| Entries::new(&self.bytes[..self.end], self.hash));
        let (entries, fault) = match entries {
            Some(Err(fault)) => (None, Some(Err(fault))),
            Some(Ok(entries)) => (Some(entries), None),
            None => (None, None),
        };
        let all = fault.into_iter().chain(entries.into_iter().flatten());
        all.map(|entry| entry.map_err(damaged(Path::new("index"))))
    }

    /// Why it cannot be moved, whatever is staged.
    fn refusal(&self, discard: bool) -> Result<Option<Refusal>, String> {
        let form = |what, hint| Ok(Some(Refusal::Form(what, hint)));
        if self.end == 0 {
            return Ok(None);
        }
        let (mut is_split, mut is_sparse, mut unmerged) = (false, false, Vec::new());
        let visit = |entry: IndexEntry| {
            is_sparse |= entry.mode >> 12 == 0o4;
            if entry.stage > 0 && unmerged.last() != Some(&entry.path) {
                unmerged.push(entry.path);
            }
        };
        walk(&self.bytes[..self.end], self.hash, visit, |one| is_split |= one == b"link")?;
        if is_split {
            let hint = "make it whole with `git update-index --no-split-index`";
            return form("its index is split", hint);
        }
        if is_sparse {
            let hint = "make it whole with `git sparse-checkout disable`";
            return form("its index is sparse", hint);
        }
        Ok((!discard && !unmerged.is_empty()).then_some(Refusal::Unmerged(unmerged)))
    }
}

impl Plan {
    /// The next index, without what `stat` says of what is new.
    pub(super) fn index(&self) -> &[u8] {
        &self.index
    }

    /// The next index, with what `stat` says of what the steps have made.
    pub(super) fn index_with(
        &mut self,
        stats: &[Option<Attributes>],
        dev: u32,
        hash: HashKind,
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
        if self.summed
            && let Some(end) = bytes.len().checked_sub(hash.len())
        {
            let mut hasher = gix::hash::hasher(to_gix_kind(hash));
            hasher.update(&bytes[..end]);
            let digest = hasher.try_finalize().map_err(|error| Error::CorruptFile {
                path: "index".into(),
                why: format!("the names in it cannot be hashed: {error}"),
            })?;
            bytes[end..].copy_from_slice(digest.as_slice());
        }
        Ok(&self.index)
    }
}

impl Moved<'_> {
    /// What is staged and would be lost.
    fn staged(&self, old: &Index, from: &GitOid, goal: &Goal) -> Result<Option<Refusal>> {
        let mut differ = self.differences(from, &goal.commit.tree)?;
        let mut lost = Vec::new();
        for entry in old.entries() {
            let entry = entry?;
            let now = Some((entry.mode, entry.oid));
            if let Some((before, after)) = differ.remove(&entry.path)
                && now != before
                && now != after
            {
                lost.push(entry.path);
            }
        }
        // What is staged away already is not missed, and what is not there is new.
        let gone =
            differ.into_iter().filter(|(_, (before, after))| before.is_some() && after.is_some());
        lost.extend(gone.map(|(path, _)| path));
        lost.sort_unstable();
        Ok((!lost.is_empty()).then_some(Refusal::Local(lost)))
    }

    /// The paths that differ between two trees, with mode and object in each.
    fn differences(&self, from: &GitOid, to: &GitOid) -> Result<BTreeMap<Vec<u8>, (Side, Side)>> {
        let (from, to) = (from.to_string(), to.to_string());
        let mut git = transport::git();
        git.args(["diff-tree", "-r", "-z", "--raw", "--no-renames", "--full-index"]);
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

    /// What differs, and the paths of which changes would be lost.
    fn steps(
        &self,
        old: &Index,
        new: &Index,
        index_time: u64,
        discard: bool,
    ) -> Result<(Vec<Step>, Vec<Vec<u8>>)> {
        let (mut steps, mut lost) = (Vec::new(), Vec::new());
        // Those that are to be compared, with what their content should be, and what they are to become.
        let mut doubtful = Vec::new();
        let unmerged = |entry: &Result<IndexEntry>| !entry.as_ref().is_ok_and(|one| one.stage > 0);
        let mut old = old.entries().filter(unmerged).peekable();
        let mut new = new.entries().peekable();
        loop {
            let (before, after) = match (old.peek(), new.peek()) {
                (None, None) => break,
                (Some(Ok(one)), Some(Ok(other))) => match one.path.cmp(&other.path) {
                    Ordering::Less => (old.next(), None),
                    Ordering::Greater => (None, new.next()),
                    Ordering::Equal => (old.next(), new.next()),
                },
                (Some(_), None) | (Some(Err(_)), _) => (old.next(), None),
                (None, Some(_)) | (_, Some(Err(_))) => (None, new.next()),
            };
            let (before, after) = (before.transpose()?, after.transpose()?);
            let after = after.filter(|next| !next.skipped);
            let Some(entry) = before else {
                steps.extend(after.map(|next| self.step(&next.path, Some(&next), false)));
                continue;
            };
            let same =
                after.as_ref().is_some_and(|next| (next.mode, next.oid) == (entry.mode, entry.oid));
            if entry.skipped || (same && !discard) {
                continue;
            }
            // What is judged is what is not to have changed when the move is made.
            let step = self.step(&entry.path, after.as_ref(), true);
            let state = self.state(&entry, step.found, index_time);
            match (state, discard) {
                (State::Changed, false) => lost.push(entry.path),
                (State::Unknown, false) => {
                    steps.push(step.clone());
                    doubtful.push((entry, step));
                }
                (State::Unknown, true) if same => doubtful.push((entry, step)),
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
        Ok((steps, lost))
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
        let stated = (entry.mtime.0, entry.mtime.1, entry.ctime, entry.ino, entry.size);
        let found = (
            now.modified.seconds as u32,
            now.modified.nanoseconds,
            now.changed.seconds as u32,
            now.ino.0 as u32,
            recorded_size(now.size),
        );
        let settled = u64::from(entry.mtime.0) < index_time;
        match stated == found && (entry.uid, entry.gid) == (now.uid, now.gid) && settled {
            true => State::Same,
            false => State::Unknown,
        }
    }

    /// Those of `doubtful` whose content is not that of their entries.
    fn different(&self, doubtful: Vec<(IndexEntry, Step)>) -> Result<Vec<(IndexEntry, Step)>> {
        let hash = self.repository.hash();
        let mut different = Vec::new();
        let (mut listed, mut apart) = (Vec::new(), Vec::new());
        for (entry, step) in doubtful {
            let path = &entry.path;
            if entry.mode == LINK {
                let target = step.found.and_then(|found| self.worktree.read_link(found.ino).ok());
                let oid = target.and_then(|target| object_id(hash, Kind::Blob, &target).ok());
                if oid != Some(entry.oid) {
                    different.push((entry, step));
                }
            } else if path.contains(&b'\n') || path.starts_with(b"\"") {
                apart.push((entry, step));
            } else {
                listed.push((entry, step));
            }
        }
        // In a list, one is a line.
        let mut input = Vec::new();
        for (entry, _) in &listed {
            input.extend_from_slice(&entry.path);
            input.push(b'\n');
        }
        let mut found = Vec::new();
        if !listed.is_empty() {
            found = self.hashes(&["--stdin-paths"], None, input)?;
        }
        for (entry, _) in &apart {
            found.extend(self.hashes(&["--"], Some(&entry.path), Vec::new())?);
        }
        let all = listed.into_iter().chain(apart);
        different.extend(
            all.zip(found)
                .filter(|((entry, _), found)| *found != entry.oid.to_string())
                .map(|(one, _)| one),
        );
        Ok(different)
    }

    /// What git makes of files as they are, by their paths.
    fn hashes(&self, args: &[&str], path: Option<&[u8]>, input: Vec<u8>) -> Result<Vec<String>> {
        use std::os::unix::ffi::OsStrExt;
        let mut git = transport::git();
        git.arg("hash-object").args(args).current_dir(self.dir);
        git.args(path.map(std::ffi::OsStr::from_bytes));
        let said = transport::output(&mut git, self.git_dir, "compare files", Some(input), &[0])?;
        Ok(String::from_utf8_lossy(&said).lines().map(str::to_owned).collect())
    }

    /// What is not git's and where something is to be made.
    fn in_the_way(&self, steps: &[Step]) -> BTreeSet<Vec<u8>> {
        // A file that is tracked, and above one that is to be, is to go.
        let tracked: BTreeSet<&[u8]> =
            steps.iter().filter(|step| step.is_tracked).map(|step| &*step.path).collect();
        let mut found = BTreeSet::new();
        for step in steps.iter().filter(|step| step.oid.is_some()) {
            for (end, _) in step.path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
                let above = &step.path[..end];
                let Some(now) = racy::find(self.worktree, above) else { break };
                if now.kind != NodeKind::Directory {
                    if !tracked.contains(above) {
                        found.insert(above.to_owned());
                    }
                    break;
                }
            }
            let is_file = step.found.is_some_and(|found| found.kind != NodeKind::Directory);
            if is_file && !step.is_tracked {
                found.insert(step.path.clone());
            }
        }
        found
    }

    /// Those of `paths` that git is not told to ignore.
    fn not_ignored(&self, paths: &BTreeSet<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
        if paths.is_empty() {
            return Ok(Vec::new());
        }
        let mut git = transport::git();
        git.args(["check-ignore", "-z", "--stdin"]).current_dir(self.dir);
        let mut input = Vec::new();
        for path in paths {
            input.extend_from_slice(path);
            input.push(0);
        }
        // 1: none is.
        let said =
            transport::output(&mut git, self.git_dir, "see what is ignored", Some(input), &[0, 1])?;
        let ignored: BTreeSet<&[u8]> = said.split(|byte| *byte == 0).collect();
        Ok(paths.iter().filter(|path| !ignored.contains(&***path)).cloned().collect())
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
