//! Cloning through a transport, by gix or by the user's git. Either leaves the git directory of an
//! ordinary clone without a checkout, which is then made bare.

mod reporter;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use agentfs_engine::progress::{Cancel, Phase, Progress};
use gix::bstr::{BStr, ByteSlice};

use self::reporter::{Counters, Reporter};
use crate::error::{Error, Result};
use crate::fetch::CloneOptions;
use crate::files;

/// How often a running transport is looked at.
const POLL: Duration = Duration::from_millis(20);
/// How long a transport may take to clean up after it was asked to stop.
const GRACE: Duration = Duration::from_secs(2);
/// `git ls-remote --exit-code` says with it that nothing matched.
const NOTHING_MATCHED: i32 = 2;

/// Variables that would lead git into the repository of whoever started us.
const REPOSITORY_VARIABLES: [&str; 11] = [
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_CONFIG",
    "GIT_DIR",
    "GIT_GRAFT_FILE",
    "GIT_INDEX_FILE",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_SHALLOW_FILE",
    "GIT_WORK_TREE",
];

/// A clone to be made.
pub(crate) struct Clone<'a> {
    pub(crate) source: &'a str,
    pub(crate) options: &'a CloneOptions,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) cancel: &'a Cancel,
}

impl Clone<'_> {
    /// Clones into a new directory inside `dir` and returns it. git has the last word: what gix
    /// cannot do is tried with git, whose message the user then sees.
    pub(crate) fn by_gix_or_git(&self, url: &gix::Url, dir: &Path) -> Result<PathBuf> {
        let worktree = dir.join("gix");
        match self.by_gix(url, &worktree) {
            Ok(true) => {
                let git_dir = adopt(&worktree)?;
                self.fetch_revision(&git_dir)?;
                Ok(git_dir)
            }
            Ok(false) => self.by_git(dir),
            Err(error) => {
                self.cancel.check()?;
                tracing::info!(%error, "gix cannot clone this; trying git");
                self.by_git(dir)
            }
        }
    }

    /// `Ok(false)` if gix is not to be tried.
    ///
    /// gix cannot be interrupted while it waits for the other side, so it works in a thread that is
    /// left to itself if it does not stop when it is told to.
    fn by_gix(&self, url: &gix::Url, worktree: &Path) -> Result<bool> {
        if needs_git() {
            return Ok(false);
        }
        let failed = |source| Error::Fetch { url: url.to_string(), source };
        let counters = Arc::new(Counters::default());
        let (sender, receiver) = mpsc::sync_channel(1);
        let job = {
            let (url, worktree) = (url.to_bstring(), worktree.to_owned());
            let (branch, counters) = (self.options.branch.clone(), Arc::clone(&counters));
            move || {
                // The other side may send anything.
                let fetch = || gix_clone(url.as_bstr(), &worktree, branch.as_deref(), &counters);
                let _ = sender.send(catch_unwind(AssertUnwindSafe(fetch)));
            }
        };
        std::thread::Builder::new()
            .name("fetch".into())
            .spawn(job)
            .map_err(|error| failed(error.into()))?;
        self.progress.begin(Phase::Fetch, None, None);
        let fetched = self.watch(&counters, &receiver);
        self.progress.end(Phase::Fetch);
        match fetched? {
            Some(Ok(fetched)) => fetched.map(|()| true).map_err(|error| failed(error.into())),
            _ => Err(failed("what the source sent cannot be understood".into())),
        }
    }

    /// Waits for the thread and carries what it counts to whoever wants to see it. `None` if it
    /// ended without a word.
    fn watch<T>(&self, counters: &Counters, receiver: &mpsc::Receiver<T>) -> Result<Option<T>> {
        let (mut objects, mut bytes) = (0, 0);
        let mut deadline = None;
        loop {
            let received = receiver.recv_timeout(POLL);
            let now_objects = counters.objects.load(Ordering::Relaxed).max(objects);
            let now_bytes = counters.bytes.load(Ordering::Relaxed).max(bytes);
            self.progress.advance(
                Phase::Fetch,
                (now_objects - objects) as u64,
                (now_bytes - bytes) as u64,
            );
            (objects, bytes) = (now_objects, now_bytes);
            match received {
                Ok(result) => return Ok(Some(result)),
                Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(None),
                Err(mpsc::RecvTimeoutError::Timeout) => {}
            }
            if let Err(cancelled) = self.cancel.check() {
                counters.stop.store(true, Ordering::Relaxed);
                if Instant::now() > *deadline.get_or_insert_with(|| Instant::now() + GRACE) {
                    return Err(cancelled.into());
                }
            }
        }
    }

    /// Clones into a new directory inside `dir` with the user's git and returns it.
    pub(crate) fn by_git(&self, dir: &Path) -> Result<PathBuf> {
        let worktree = dir.join("git");
        let mut command = git();
        // The default of newer gits may be references that gix cannot read.
        command.env("GIT_DEFAULT_REF_FORMAT", "files");
        command.args(["clone", "--no-checkout", "--origin", "origin"]);
        if let Some(branch) = &self.options.branch {
            command.arg(format!("--branch={branch}"));
        }
        command.arg("--").arg(self.source).arg(&worktree);
        let status = self.run(&mut command)?;
        if !status.success() {
            self.refuse_missing_branch()?;
            return Err(Error::GitFailed { command: "clone".into(), status });
        }
        let git_dir = adopt(&worktree)?;
        self.fetch_revision(&git_dir)?;
        Ok(git_dir)
    }

    /// Tells a branch that does not exist from a source that cannot be reached.
    fn refuse_missing_branch(&self) -> Result<()> {
        let Some(branch) = &self.options.branch else {
            return Ok(());
        };
        let mut command = git();
        command.args(["ls-remote", "--exit-code", "--", self.source]);
        command.args([format!("refs/heads/{branch}"), format!("refs/tags/{branch}")]);
        if self.run(command.stderr(Stdio::null()))?.code() != Some(NOTHING_MATCHED) {
            return Ok(());
        }
        Err(Error::NoSuchBranch { branch: branch.clone(), url: self.source.into() })
    }

    /// Fetches the revision that the user asks for, if it is one that only the source knows: other
    /// references than branches and tags, and objects that none of them reaches.
    fn fetch_revision(&self, git_dir: &Path) -> Result<()> {
        let Some(rev) = &self.options.rev else {
            return Ok(());
        };
        let is_reference = rev.starts_with("refs/");
        let is_id = gix::ObjectId::from_hex(rev.as_bytes()).is_ok();
        let known = gix::open(git_dir).is_ok_and(|repository| {
            repository.rev_parse_single(rev.as_str()).is_ok_and(|id| repository.has_object(id))
        });
        if known || !(is_reference || is_id) {
            return Ok(());
        }
        let mut command = git();
        command.arg("--git-dir").arg(git_dir).args(["fetch", "--no-tags", "origin"]);
        command.arg(if is_reference { format!("+{rev}:{rev}") } else { rev.clone() });
        if self.run(&mut command)?.success() {
            return Ok(());
        }
        Err(Error::NoSuchRevision {
            rev: rev.clone(),
            git_dir: self.source.into(),
            why: "the source does not offer it".into(),
        })
    }

    /// Runs git to its end, or until cancelled.
    fn run(&self, command: &mut Command) -> Result<ExitStatus> {
        let failed = |source| Error::io("run", Path::new("git"), source);
        let mut child = command.spawn().map_err(failed)?;
        loop {
            if let Some(status) = child.try_wait().map_err(failed)? {
                return Ok(status);
            }
            if let Err(cancelled) = self.cancel.check() {
                stop(&mut child);
                return Err(cancelled.into());
            }
            std::thread::sleep(POLL);
        }
    }
}

/// Clones with gix, without a checkout, into the new directory `worktree`.
fn gix_clone(
    url: &BStr,
    worktree: &Path,
    branch: Option<&str>,
    counters: &Counters,
) -> Result<(), gix::Error> {
    let (kind, create) = (gix::create::Kind::WithWorktree, gix::create::Options::default());
    gix::clone::PrepareFetch::new(url, worktree, kind, create, gix::open::Options::default())?
        .with_remote_name("origin")?
        .with_ref_name(branch)?
        .fetch_only(Reporter::new(counters), &counters.stop)
        .map(drop)
}

/// Whether the user has configured something for fetches that gix does not know.
fn needs_git() -> bool {
    let configuration = || {
        let mut config = gix::config::File::from_globals()?;
        config.append(gix::config::File::from_environment_overrides()?)?;
        Ok::<_, gix::Error>(config)
    };
    configuration().is_ok_and(|config| {
        config.string("core.gitProxy").is_some()
            || ["fetch.fsckObjects", "transfer.fsckObjects"]
                .iter()
                .any(|key| matches!(config.boolean(*key), Ok(Some(true)) | Err(_)))
    })
}

/// git with the user's configuration and terminal, but without a repository.
pub(crate) fn git() -> Command {
    let mut command = Command::new("git");
    for variable in REPOSITORY_VARIABLES {
        command.env_remove(variable);
    }
    command.stdout(Stdio::null());
    command
}

/// Has `command`, a [`git`] with its arguments, do `action` in the repository at `git_dir`; what it printed.
///
/// # Errors
/// [`Error::Git`] with what it said, or how it ended if it said nothing.
pub(crate) fn run(command: &mut Command, git_dir: &Path, action: &str) -> Result<String> {
    let said = output(command.env("GIT_DIR", git_dir), git_dir, action, None, &[0])?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// What `command`, a [`git`] with its arguments that says where it works, prints when it is given `input`, if it
/// ends in one of `codes`. It does `action` for the repository at `git_dir`.
///
/// # Errors
/// As [`run`].
pub(crate) fn output(
    command: &mut Command,
    git_dir: &Path,
    action: &str,
    input: Option<Vec<u8>>,
    codes: &[i32],
) -> Result<Vec<u8>> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Git {
        action: action.to_owned(),
        git_dir: git_dir.to_owned(),
        source,
    };
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| failed(error.into()))?;
    let stdin = child.stdin.take();
    let done = std::thread::scope(|scope| {
        if let (Some(mut stdin), Some(input)) = (stdin, input) {
            // Both sides may be full. What it says on its end tells why it did not take all.
            scope.spawn(move || drop(stdin.write_all(&input)));
        }
        child.wait_with_output()
    });
    let done = done.map_err(|error| failed(error.into()))?;
    if done.status.code().is_some_and(|code| codes.contains(&code)) {
        return Ok(done.stdout);
    }
    Err(failed(complaint(&done.stderr, done.status).into()))
}

/// What git `said` before it ended, or how it ended if it said nothing.
pub(crate) fn complaint(said: &[u8], ended: ExitStatus) -> String {
    let said = String::from_utf8_lossy(said);
    let said = said.trim().trim_start_matches("fatal: ");
    if said.is_empty() { ended.to_string() } else { said.into() }
}

/// Lets git remove its temporary files, but not for ever.
fn stop(child: &mut Child) {
    let _ = rustix::process::kill_process(
        rustix::process::Pid::from_child(child),
        rustix::process::Signal::TERM,
    );
    for _ in 0..GRACE.as_millis() / POLL.as_millis() {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        std::thread::sleep(POLL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Makes the clone without a checkout in `worktree` bare and returns its git directory.
fn adopt(worktree: &Path) -> Result<PathBuf> {
    let git_dir = worktree.join(".git");
    let path = git_dir.join("config");
    let configure = || -> Result<Vec<u8>, gix::Error> {
        let mut config =
            gix::config::File::from_path_no_includes(path.clone(), gix::config::Source::Local)?;
        config.set_raw_value("core.bare", "true")?;
        Ok(config.to_bstring().into())
    };
    let config = configure().map_err(|error| Error::Git {
        action: "change the configuration".into(),
        git_dir: git_dir.clone(),
        source: error.into(),
    })?;
    files::write(&path, &config)?;
    Ok(git_dir)
}
