//! Moving the `HEAD` of a worktree, as git does it.
//!
//! Where nothing but the file and its log is concerned ([`Settings::mover`]), that is done here, under git's lock: an
//! entry in the log, then the new file by the name of the lock in the place of the old one. The lock is a link to a file
//! that has the number of the move in its name, so that the next process knows those that a killed one has left.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use agentfs_engine::GitOid;

use super::{Settings, is_same_file, remove};
use crate::error::{Error, Result};
use crate::files;
use crate::reflog;
use crate::state::read;
use crate::transport;

/// What is to become `HEAD`; the number of the move follows.
const NEXT: &str = "HEAD.switch-";
/// Most bytes of an entry of a log that is looked for.
const ENTRY_BYTES_MAX: u64 = 16 << 10;

/// A way that `HEAD` is to go.
#[derive(Clone, Copy, Debug)]
pub struct Way<'a> {
    /// What the file says, without the line end.
    pub from: &'a str,
    /// The commit that is; none for a branch without one.
    pub from_id: Option<GitOid>,
    /// What it is to say.
    pub to: &'a str,
    /// The commit that is.
    pub to_id: GitOid,
    /// What the log is to say.
    pub message: &'a str,
    /// The number of the move.
    pub number: u64,
    /// Whether a killed process may have begun.
    pub is_begun: bool,
}

impl Way<'_> {
    /// Has the `HEAD` in `git_dir` go it; nothing if it is there already.
    ///
    /// # Errors
    /// [`Error::Git`] if it is elsewhere or somebody else has the lock, with what git says; [`Error::Io`].
    pub fn go(&self, settings: &Settings, git_dir: &Path) -> Result<()> {
        if self.is_begun {
            forget(git_dir, self.number)?;
        }
        if self.is_done(git_dir)? {
            return Ok(());
        }
        match settings.mover().filter(|_| self.is_plain(git_dir)) {
            Some(mover) => self.go_here(git_dir, &mover),
            None => self.have_git_go(git_dir),
        }
    }

    fn is_done(&self, git_dir: &Path) -> Result<bool> {
        let now = read(&git_dir.join("HEAD"))?.unwrap_or_default();
        if now == self.to && now != self.from {
            return Ok(true);
        }
        if now == self.from {
            return Ok(false);
        }
        Err(self.failed(git_dir, format!("it says {now:?} and not {:?}", self.from)))
    }

    /// Whether git would write the file and one entry in the log, as it is given.
    fn is_plain(&self, git_dir: &Path) -> bool {
        let is_file = |name: &str| {
            let found = git_dir.join(name).symlink_metadata();
            found.is_ok_and(|found| found.is_file())
        };
        let mut is_white = true;
        // git makes one blank of all that is white.
        let is_line = self.message.bytes().all(|byte| {
            let was_white = std::mem::replace(&mut is_white, byte == b' ');
            byte > b' ' || (byte == b' ' && !was_white)
        });
        self.from != self.to && is_line && !is_white && is_file("HEAD") && is_file("logs/HEAD")
    }

    fn go_here(&self, git_dir: &Path, mover: &[u8]) -> Result<()> {
        let (next, lock, head) =
            (next_of(git_dir, self.number), lock_of(git_dir), git_dir.join("HEAD"));
        files::write(&next, format!("{}\n", self.to).as_bytes())?;
        files::sync(&next)?;
        let moved = fs::hard_link(&next, &lock).map_err(|source| match source.kind() {
            ErrorKind::AlreadyExists => {
                self.failed(git_dir, format!("another process has {}", lock.display()))
            }
            _ => Error::io("create", &lock, source),
        });
        let moved = moved.and_then(|()| {
            // Under the lock.
            if !self.is_done(git_dir)? {
                self.log(git_dir, mover)?;
                fs::rename(&lock, &head).map_err(|source| Error::io("write", &head, source))?;
            }
            Ok(())
        });
        let forgotten = forget(git_dir, self.number);
        moved.and(forgotten)
    }

    /// Adds an entry to the log.
    fn log(&self, git_dir: &Path, mover: &[u8]) -> Result<()> {
        let path = git_dir.join("logs/HEAD");
        let line = reflog::entry(self.from_id.as_ref(), &self.to_id, mover, self.message);
        let failed = |source| Error::io("write", &path, source);
        let mut log = OpenOptions::new().read(true).append(true).open(&path).map_err(failed)?;
        if self.is_begun && self.is_logged(&mut log).map_err(failed)? {
            return Ok(());
        }
        // At once: others append as well.
        log.write_all(&line).map_err(failed)
    }

    /// Whether the last entry is that of this move, but for who made it, and when.
    fn is_logged(&self, log: &mut fs::File) -> std::io::Result<bool> {
        let len = log.metadata()?.len();
        log.seek(SeekFrom::Start(len.saturating_sub(ENTRY_BYTES_MAX)))?;
        let mut end = Vec::new();
        log.take(ENTRY_BYTES_MAX).read_to_end(&mut end)?;
        let Some(end) = end.strip_suffix(b"\n") else { return Ok(false) };
        let last = end.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
        let entry = reflog::entry(self.from_id.as_ref(), &self.to_id, b"", self.message);
        // The ids with a blank behind each; a tab and the message.
        let (ids, message) =
            entry.split_at(entry.iter().position(|byte| *byte == b'\t').unwrap_or(0));
        let message = message.strip_suffix(b"\n").unwrap_or(message);
        Ok(last.starts_with(ids) && last.ends_with(message))
    }

    pub(super) fn have_git_go(&self, git_dir: &Path) -> Result<()> {
        let mut git = transport::git();
        match self.to.strip_prefix("ref: ") {
            Some(name) => git.args(["symbolic-ref", "-m", self.message, "HEAD", name]),
            None => git.args(["update-ref", "--no-deref", "-m", self.message, "HEAD", self.to]),
        };
        transport::run(&mut git, git_dir, &self.action()).map(drop)
    }

    fn action(&self) -> String {
        format!("move HEAD to {}", self.to.trim_start_matches("ref: "))
    }

    fn failed(&self, git_dir: &Path, why: String) -> Error {
        Error::Git { action: self.action(), git_dir: git_dir.to_owned(), source: why.into() }
    }
}

fn lock_of(git_dir: &Path) -> PathBuf {
    git_dir.join("HEAD.lock")
}

fn next_of(git_dir: &Path, number: u64) -> PathBuf {
    files::aside(&git_dir.join(format!("{NEXT}{number}")))
}

/// Takes away what is left of move `number`, the lock of `HEAD` included, if it has that.
pub(super) fn forget(git_dir: &Path, number: u64) -> Result<()> {
    let (lock, next) = (lock_of(git_dir), next_of(git_dir, number));
    if is_same_file(&lock, &next) {
        remove(&lock)?;
    }
    remove(&next)
}
