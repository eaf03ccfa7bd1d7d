//! A git process that has started before it is needed, for the next reference that is changed.
//!
//! git has the last word on references: their format, their locks, hooks and logs are its own. But to start it and
//! have it read its configuration takes several times as long as the change does. So after each change a process
//! is started that waits on its standard input for the next one ([git-update-ref(1)], `--stdin`). It makes one change
//! and ends: its clock for the log stands still from the first entry on.
//!
//! It ends as well when this process does, whose end of the pipe closes then.
//!
//! [git-update-ref(1)]: https://git-scm.com/docs/git-update-ref

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use agentfs_engine::GitOid;
use gix::refs::FullName;
use rustix::fs::{MemfdFlags, memfd_create};

use crate::error::{Error, Result};
use crate::transport;

/// How long a process may have waited: it knows the user's configuration of the time when it was started.
const AGE_MAX: Duration = Duration::from_secs(600);
/// What git says when the change is made.
const DONE: &str = "commit: ok";
/// Most bytes of its complaint that are shown.
const COMPLAINT_BYTES_MAX: u64 = 4 << 10;

/// What a process is told to do with a reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Make it, where there is none, as a new branch.
    Create,
    /// Have it lead to a commit, wherever it led before. A log would call it a new branch.
    Update,
    /// Remove it, if it leads to a commit.
    Delete,
}

impl Change {
    fn word(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
        }
    }
}

/// The process that waits for a repository, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Spare {
    /// Leaf lock.
    waiting: Mutex<Option<Waiting>>,
}

/// A process that has been told nothing yet. Dropping it ends it.
#[derive(Debug)]
struct Waiting {
    git: Option<Git>,
    since: Instant,
    configuration: Option<Version>,
}

/// A process, and where it complains: a file, which takes whatever hooks say there without anybody reading.
#[derive(Debug)]
struct Git {
    child: Child,
    complaints: File,
}

/// Which version of a file this is: its inode number, size, and time of change.
type Version = (u64, u64, i64, i64);

impl Spare {
    /// Makes a change of reference `name`, and has a process wait for the next one.
    ///
    /// # Errors
    /// [`Error::Git`] if it is not as it must be, or git cannot change it.
    pub(crate) fn make(
        self: &Arc<Self>,
        git_dir: &Path,
        change: Change,
        name: &FullName,
        commit: &GitOid,
    ) -> Result<()> {
        let name = name.as_bstr();
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Git {
            action: format!("{} reference {name}", change.word()),
            git_dir: git_dir.to_owned(),
            source,
        };
        // No reference has a name with a blank or a line end.
        let change = change.word();
        let commands = format!("start\n{change} {name} {commit}\nprepare\ncommit\n");
        let kept = self.waiting().take().filter(|waiting| waiting.is_current(git_dir));
        // One that somebody has ended takes no commands, and another is asked.
        let told = kept.map(|kept| kept.tell(&commands)).filter(|told| told.is_ok());
        let told = told.unwrap_or_else(|| Waiting::start(git_dir)?.tell(&commands));
        let mut git = told.map_err(|error| failed(error.into()))?;
        if !git.has_done().map_err(|error| failed(error.into()))? {
            let complaint = git.complaint().map_err(|error| failed(error.into()))?;
            return Err(failed(complaint.into()));
        }
        let (spare, git_dir) = (Arc::clone(self), git_dir.to_owned());
        let prepare = move || {
            // It goes on for a while to end.
            drop(git.child.wait());
            if spare.waiting().is_none()
                && let Ok(started) = Waiting::start(&git_dir)
            {
                *spare.waiting() = Some(started);
            }
        };
        // Without one that waits, the next change only takes longer.
        drop(std::thread::Builder::new().name("agentfs-git".into()).spawn(prepare));
        Ok(())
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn start(git_dir: &Path) -> std::io::Result<Self> {
        // Before git reads it: if it changes meanwhile, this one is not used.
        let configuration = configuration(git_dir);
        let complaints = File::from(memfd_create("git", MemfdFlags::CLOEXEC)?);
        let mut git = transport::git();
        git.args(["update-ref", "--no-deref", "-m", "branch: created by agentfs", "--stdin"]);
        git.env("GIT_DIR", git_dir).stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = git.stderr(complaints.try_clone()?).spawn()?;
        let git = Some(Git { child, complaints });
        Ok(Self { git, since: Instant::now(), configuration })
    }

    /// Whether it knows the repository as that is now, its format of references before all.
    fn is_current(&self, git_dir: &Path) -> bool {
        self.since.elapsed() < AGE_MAX && self.configuration == configuration(git_dir)
    }

    /// Tells it all that it is to do.
    fn tell(mut self, commands: &str) -> std::io::Result<Git> {
        let broken = || std::io::Error::from(ErrorKind::BrokenPipe);
        let stdin = self.git.as_mut().and_then(|git| git.child.stdin.take());
        // At once, and less than a pipe takes: it is told all or nothing. Then comes the end.
        stdin.ok_or_else(broken)?.write_all(commands.as_bytes())?;
        self.git.take().ok_or_else(broken)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(Git { mut child, .. }) = self.git.take() {
            // It does nothing that could be left half done.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

impl Git {
    /// Waits until it has done what it was told, or has ended without that.
    fn has_done(&mut self) -> std::io::Result<bool> {
        let Some(said) = self.child.stdout.take() else { return Ok(false) };
        let mut lines = BufReader::<ChildStdout>::new(said).lines();
        let done = lines.find(|line| line.as_ref().map_or(true, |line| line == DONE));
        Ok(done.transpose()?.is_some())
    }

    /// What it said before it ended, or how it ended if it said nothing.
    fn complaint(mut self) -> std::io::Result<String> {
        let ended = self.child.wait()?;
        let mut said = Vec::new();
        self.complaints.rewind()?;
        self.complaints.take(COMPLAINT_BYTES_MAX).read_to_end(&mut said)?;
        Ok(transport::complaint(&said, ended))
    }
}

fn configuration(git_dir: &Path) -> Option<Version> {
    let of = fs::metadata(git_dir.join("config")).ok()?;
    Some((of.ino(), of.size(), of.ctime(), of.ctime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gittest::{Sandbox, git};
    use crate::repository::Repository;

    fn setup(sandbox: &Sandbox) -> (Repository, GitOid) {
        let repository = Repository::open(&sandbox.repository("source").join(".git")).unwrap();
        let commit = repository.resolve("HEAD").unwrap().id;
        (repository, commit)
    }

    /// The process that waits, once it does.
    fn waiting(repository: &Repository) -> u32 {
        let of = |waiting: &Waiting| waiting.git.as_ref().map(|git| git.child.id());
        for _ in 0..30_000 {
            if let Some(id) = repository.spare().waiting().as_ref().and_then(of) {
                return id;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        panic!("no process waits");
    }

    fn log(repository: &Repository, name: &str) -> String {
        git(repository.git_dir(), &["reflog", "show", "--format=%H %gs", name])
    }

    #[test]
    fn each_change_is_made_by_the_process_that_waited_for_it() {
        let sandbox = Sandbox::new();
        let (repository, commit) = setup(&sandbox);
        let mut before = None;
        for name in ["a", "b/c", "b/d"] {
            repository.create_branch(name, &commit).unwrap();
            assert_eq!(log(&repository, name), format!("{commit} branch: created by agentfs"));
            let now = waiting(&repository);
            assert_ne!(before, Some(now), "one process made two branches");
            before = Some(now);
        }
        repository.remove_reference("refs/heads/a", &commit).unwrap();
        repository.keep("refs/agentfs/x", &commit).unwrap();
        repository.keep("refs/agentfs/x", &commit).unwrap();
        let refs = git(repository.git_dir(), &["for-each-ref", "--format=%(refname:short)"]);
        assert_eq!(refs, "agentfs/x\nb/c\nb/d\nmain");
        let reopened = repository.reopen().unwrap();
        assert_eq!(waiting(&reopened), waiting(&repository));
    }

    #[test]
    fn one_that_was_ended_is_replaced() {
        let sandbox = Sandbox::new();
        let (repository, commit) = setup(&sandbox);
        repository.create_branch("a", &commit).unwrap();
        waiting(&repository);
        {
            let mut waiting = repository.spare().waiting();
            let child = &mut waiting.as_mut().unwrap().git.as_mut().unwrap().child;
            child.kill().unwrap();
            child.wait().unwrap();
        }
        repository.create_branch("b", &commit).unwrap();
        assert_eq!(repository.resolve("refs/heads/b").unwrap().id, commit);
    }

    #[test]
    fn one_that_knows_an_older_configuration_is_not_used() {
        let sandbox = Sandbox::new();
        let (repository, commit) = setup(&sandbox);
        repository.create_branch("a", &commit).unwrap();
        waiting(&repository);
        git(repository.git_dir(), &["config", "core.logAllRefUpdates", "false"]);
        repository.create_branch("b", &commit).unwrap();
        assert_eq!(log(&repository, "b"), "");
    }

    #[test]
    fn a_refusal_says_what_git_says() {
        let sandbox = Sandbox::new();
        let (repository, commit) = setup(&sandbox);
        for _ in 0..2 {
            if repository.create_branch("a", &commit).is_ok() {
                waiting(&repository);
            }
            let refused = repository.create_branch("a", &commit).unwrap_err();
            let mut said = refused.to_string();
            let mut source = std::error::Error::source(&refused);
            while let Some(error) = source {
                said = format!("{said}: {error}");
                source = error.source();
            }
            assert!(said.contains("reference already exists"), "{said}");
        }
        assert!(!repository.git_dir().join("refs/heads/a.lock").exists());
        repository.create_branch("b", &commit).unwrap();
    }
}
