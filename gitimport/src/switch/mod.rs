//! Moving a worktree to another commit, as `git switch` does it: what git has to say of that.
//!
//! The files are the caller's to change, and the worktree is asked for them, not the file system. What is
//! staged is moved as `git read-tree -m` does it, on a copy of the index that is put into its place when the files
//! are there: here where the outcome is certain, else by git itself. Meanwhile `index.lock` keeps other git processes out, as git's own switch does.
//!
//! [`Locked`] is made first and [`Locked::finish`] called last; [`complete`] does for a killed process what it
//! had still to do, and [`forget`] undoes the rest.

mod cache_tree;
mod head;
mod index;
mod merge;
mod plain;
mod plan;
mod settings;
#[cfg(test)]
mod tests;
mod trees;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use agentfs_engine::HashKind;
use agentfs_engine::worktree::{Attributes, Worktree};

use crate::error::{Error, Result};
use crate::files;
use crate::racy;
use crate::repository::{Commit, Repository};
use crate::state::{HEADS, read};

pub use head::Way;
pub use plain::Plain;
pub use plan::{Place, Plan, Refusal, Step};
pub use settings::Settings;

/// What lies beside the index while it is moved: the next one, still without what `stat` says of new files. The
/// number of the move follows.
const NEXT: &str = "index.switch-";
/// How the name of an index begins that is being made.
const MAKING: &str = ".index-";
/// Files that say that something is in progress, in git's words for it.
const IN_PROGRESS: [(&str, &str); 5] = [
    ("MERGE_HEAD", "merge"),
    ("rebase-merge", "rebase"),
    ("rebase-apply", "rebase"),
    ("CHERRY_PICK_HEAD", "cherry-pick"),
    ("REVERT_HEAD", "revert"),
];
/// What git takes away when it has switched.
const MESSAGES: [&str; 5] = ["SQUASH_MSG", "MERGE_MSG", "MERGE_MODE", "MERGE_RR", "AUTO_MERGE"];

/// Where a worktree is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goal {
    /// The commit.
    pub commit: Commit,
    /// The branch that `HEAD` is to be on; none for one that is detached.
    pub branch: Option<String>,
    /// What it is called in the log of `HEAD`.
    pub name: String,
    /// Whether it is a branch of the remote only.
    pub is_remote: bool,
}

/// Where the `HEAD` of a worktree is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At {
    /// What the file says, without the line end.
    pub text: String,
    /// Its commit; none for a branch without one.
    pub commit: Option<Commit>,
}

impl At {
    /// Where the worktree with this git directory is.
    ///
    /// # Errors
    /// [`Error::NotARepository`] for a `HEAD` that is neither a branch nor a commit; what reading it meets.
    pub fn of(repository: &Repository, git_dir: &Path) -> Result<Self> {
        let text = read(&git_dir.join("HEAD"))?.unwrap_or_default();
        let commit = match text.strip_prefix("ref: ") {
            Some(name) => match name.strip_prefix(HEADS) {
                Some(branch) if !repository.has_branch(branch)? => None,
                _ => Some(repository.resolve(name)?),
            },
            None if text.is_empty() => {
                let why = "its HEAD is neither a branch nor a commit".into();
                return Err(Error::NotARepository { path: git_dir.to_owned(), why });
            }
            None => Some(repository.resolve(&text)?),
        };
        Ok(Self { text, commit })
    }

    /// What git calls it in its logs.
    fn name(&self) -> &str {
        let name = self.text.strip_prefix("ref: ").unwrap_or(&self.text);
        name.strip_prefix(HEADS).unwrap_or(name)
    }
}

impl Goal {
    /// What `rev` names for the worktree with this git directory: one of its branches, `-` for the one before, or
    /// any revision, else a branch of the remote.
    ///
    /// # Errors
    /// [`Error::NoSuchRevision`], [`Error::NotACommit`], and what reading the repository meets.
    pub fn of(repository: &Repository, git_dir: &Path, rev: &str) -> Result<Self> {
        let rev = if rev == "-" { "@{-1}" } else { rev };
        if repository.has_branch(rev)? {
            return Self::branch(repository, rev);
        }
        if rev.starts_with("@{-") {
            let name = repository.run_git(git_dir, &["rev-parse", "--symbolic-full-name", rev]);
            let name = name.unwrap_or_default();
            if let Some(name) = name.trim_end().strip_prefix(HEADS) {
                return Self::branch(repository, name);
            }
        }
        let detached =
            |commit, is_remote| Self { commit, branch: None, name: rev.into(), is_remote };
        let parse = |rev: &str| {
            let rev = format!("{rev}^{{commit}}");
            let args = ["rev-parse", "--verify", "--quiet", "--end-of-options", &rev];
            let found = repository.run_git(git_dir, &args).ok();
            found.map(|found| found.trim_end().to_owned())
        };
        // A full id is what it says; what depends on the worktree, like HEAD, is git's to say.
        if repository.full_id(rev).is_some()
            && let Ok(commit) = repository.resolve(rev)
        {
            return Ok(detached(commit, false));
        }
        if let Some(id) = parse(rev) {
            return Ok(detached(repository.resolve(&id)?, false));
        }
        if let Some(id) = parse(&format!("refs/remotes/origin/{rev}")) {
            return Ok(detached(repository.resolve(&id)?, true));
        }
        // It says why not.
        Ok(detached(repository.resolve(rev)?, false))
    }

    fn branch(repository: &Repository, name: &str) -> Result<Self> {
        let commit = repository.resolve(&format!("{HEADS}{name}"))?;
        Ok(Self { commit, branch: Some(name.into()), name: name.into(), is_remote: false })
    }

    /// What `HEAD` is to say.
    pub fn head(&self) -> String {
        match &self.branch {
            Some(name) => format!("ref: {HEADS}{name}"),
            None => self.commit.id.to_string(),
        }
    }

    /// What the log of `HEAD` is to say of the way here.
    pub fn message(&self, from: &At) -> String {
        format!("checkout: moving from {} to {}", from.name(), self.name)
    }
}

/// What is in progress in the worktree with this git directory and would be lost, in git's word for it.
pub fn in_progress(git_dir: &Path) -> Option<&'static str> {
    let found = IN_PROGRESS.iter().find(|(file, _)| git_dir.join(file).exists());
    found.map(|(_, name)| *name)
}

/// The index of a worktree, which no other git process changes as long as this lives. Dropping it leaves it as
/// it was.
#[derive(Debug)]
pub struct Locked {
    git_dir: PathBuf,
    hash: HashKind,
    number: u64,
    kept: bool,
}

impl Locked {
    /// Locks the index of the worktree with this git directory, for the move with a number that no other has;
    /// `None` if another process has it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn new(git_dir: &Path, hash: HashKind, number: u64) -> Result<Option<Self>> {
        let (next, lock) = (next_of(git_dir, number), lock_of(git_dir));
        files::write(&next, b"")?;
        match fs::hard_link(&next, &lock) {
            Ok(()) => Ok(Some(Self { git_dir: git_dir.to_owned(), hash, number, kept: false })),
            Err(error) => {
                drop(fs::remove_file(&next));
                match error.kind() {
                    ErrorKind::AlreadyExists => Ok(None),
                    _ => Err(Error::io("create", &lock, error)),
                }
            }
        }
    }

    /// Makes `plan`, and where the worktree is to be, what a killed process is to complete.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn prepare(&self, plan: &Plan) -> Result<()> {
        // In place: it is the lock as well.
        let next = next_of(&self.git_dir, self.number);
        fs::write(&next, plan.index()).map_err(|source| Error::io("write", &next, source))?;
        files::sync(&next)?;
        files::sync(&self.git_dir).map(drop)
    }

    /// Writes the index of `plan` beside its place; `stats` has what `stat` says of what the steps have made in
    /// `worktree`, in their order, on device `dev`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(
        &self,
        plan: &mut Plan,
        stats: &[Option<Attributes>],
        dev: u32,
        worktree: &Worktree,
    ) -> Result<()> {
        let bytes = plan.index_with(stats, dev, self.hash, worktree)?;
        let aside = &files::write_aside(&self.git_dir.join("index"), bytes)?;
        // Not younger than what was made: git is to look at what has changed since.
        if let Some(made) = stats.iter().flatten().map(|stat| stat.modified.seconds as u32).max() {
            racy::age(aside, made)?;
        }
        files::sync(aside).map(drop)
    }

    /// Puts what was written into its place.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn finish(&mut self) -> Result<()> {
        let index = self.git_dir.join("index");
        let aside = files::aside(&index);
        fs::rename(aside, &index).map_err(|source| Error::io("write", &index, source))?;
        tidy(&self.git_dir);
        self.kept = true;
        unlock(&self.git_dir, self.number)
    }

    /// Leaves everything to the next process, which finds it by its note.
    pub fn leave(mut self) {
        self.kept = true;
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = unlock(&self.git_dir, self.number)
        {
            tracing::warn!("{error}");
        }
    }
}

fn lock_of(git_dir: &Path) -> PathBuf {
    git_dir.join("index.lock")
}

fn next_of(git_dir: &Path, number: u64) -> PathBuf {
    files::aside(&git_dir.join(format!("{NEXT}{number}")))
}

/// Whether the lock of the index is that of move `number`, which has then something left to do.
pub fn is_locked(git_dir: &Path, number: u64) -> bool {
    is_same_file(&lock_of(git_dir), &next_of(git_dir, number))
}

/// Whether two names are those of one file.
fn is_same_file(one: &Path, other: &Path) -> bool {
    let look = |path: &Path| fs::symlink_metadata(path).ok();
    let both = look(one).zip(look(other));
    both.is_some_and(|(one, other)| (one.dev(), one.ino()) == (other.dev(), other.ino()))
}

/// Removes a file; it is fine if it is gone.
fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        _ => Ok(()),
    }
}

fn unlock(git_dir: &Path, number: u64) -> Result<()> {
    // The lock first: what is left then is nothing.
    if is_locked(git_dir, number) {
        remove(&lock_of(git_dir))?;
    }
    remove(&next_of(git_dir, number))
}

/// Takes away what belonged to where the worktree was.
fn tidy(git_dir: &Path) {
    for name in MESSAGES {
        drop(fs::remove_file(git_dir.join(name)));
    }
}

/// Puts the index into its place for move `number` of a killed process whose files are moved. git reads again
/// what it has no stat data of.
///
/// # Errors
/// [`Error::Io`], and [`Error::CorruptFile`] if it cannot be hashed.
pub fn complete(git_dir: &Path, hash: HashKind, number: u64) -> Result<()> {
    if is_locked(git_dir, number) {
        let lock = lock_of(git_dir);
        let mut bytes = fs::read(&lock).map_err(|source| Error::io("read", &lock, source))?;
        // One that was made here has been prepared without it.
        index::sum(&mut bytes, hash)?;
        files::replace(&git_dir.join("index"), &bytes)?;
        tidy(git_dir);
    }
    forget(git_dir, number)
}

/// Takes away what a killed process has prepared for move `number`.
///
/// # Errors
/// [`Error::Io`].
pub fn forget(git_dir: &Path, number: u64) -> Result<()> {
    for entry in fs::read_dir(git_dir).into_iter().flatten().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(MAKING.as_bytes()) {
            // Nobody would miss it, and nobody trips over it.
            drop(fs::remove_file(entry.path()));
        }
    }
    head::forget(git_dir, number)?;
    unlock(git_dir, number)
}
