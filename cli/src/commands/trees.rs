//! The git trees of what branches, snapshots and revisions are now: what comparing and exporting them needs.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::client::Client;
use crate::environment::Environment;
use crate::error::{Failure, Kind, Result};
use crate::layout::Layout;
use crate::output::Output;
use crate::progress::{Display, Meter};
use crate::protocol::{Status, ViewBegun, ViewCall, method};

/// Where git puts the objects that it makes of files.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Objects {
    /// Into the repository.
    Kept,
    /// Beside it, for as long as the [`Trees`] live.
    Passing,
}

/// Makes trees, with an index and perhaps objects of its own.
pub struct Trees {
    scratch: TempDir,
    objects: Objects,
}

/// The tree of something.
pub struct Seen {
    /// The git directory of its repository.
    pub common_dir: PathBuf,
    /// The repository's name in the store.
    pub repository: String,
    /// Its tree, with all that git does not ignore.
    pub tree: String,
    /// The commit of its HEAD; none where there is none yet.
    pub commit: Option<String>,
}

/// What git has of something that is more than a commit.
#[derive(Default)]
pub struct GitState {
    /// The branch that its HEAD is on.
    pub branch: Option<String>,
    /// What is in progress.
    pub operation: Option<&'static str>,
    /// What is staged, as `git diff --name-status -z` tells it.
    pub staged: String,
    /// What differs from what is staged, likewise.
    pub unstaged: String,
    /// Files that git does not know.
    pub untracked: usize,
    /// Files that git ignores.
    pub ignored: usize,
}

/// Has the daemon show what `what` is now, for as long as the client lives.
fn view(what: &str, output: Output) -> Result<(Client, ViewBegun)> {
    let environment = Environment::read()?;
    let layout = Layout::new(environment.store.clone());
    let mut client = Client::connect_or_start(&layout, &environment)?;
    let meter = std::sync::Arc::new(Meter::default());
    let display = Display::start(std::sync::Arc::clone(&meter), output.json);
    let call = ViewCall { what: what.into() };
    let begun = client.request(method::VIEW_BEGIN, &call, &meter)?;
    drop(display);
    Ok((client, begun))
}

impl Trees {
    /// Nothing yet.
    ///
    /// # Errors
    /// If there is no room for temporary files.
    pub fn new(objects: Objects) -> Result<Self> {
        let scratch = tempfile::Builder::new().prefix("agentfs-").tempdir();
        let scratch = scratch
            .map_err(|error| Failure::io("create a directory in", &std::env::temp_dir(), &error))?;
        let made = fs::create_dir(scratch.path().join("objects"));
        made.map_err(|error| Failure::io("create a directory in", scratch.path(), &error))?;
        Ok(Self { scratch, objects })
    }

    /// What `what` is now: a branch or a snapshot with everything that git does not ignore, or the commit
    /// of a revision.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is no such thing; what git meets.
    pub fn see(&self, what: &str, output: Output) -> Result<Seen> {
        let (client, begun) = view(what, output)?;
        self.seen(client, &begun)
    }

    /// The same, and what git has staged and in progress in it.
    ///
    /// # Errors
    /// As [`Trees::see`].
    pub fn inspect(&self, what: &str, output: Output) -> Result<(Seen, GitState)> {
        let (client, begun) = view(what, output)?;
        let state = match (&begun.dir, &begun.index) {
            (Some(dir), Some(index)) => self.state_of(&begun, &dir.0, &index.0)?,
            _ => GitState::default(),
        };
        Ok((self.seen(client, &begun)?, state))
    }

    /// What is staged and in progress in a view at `dir`.
    fn state_of(&self, begun: &ViewBegun, dir: &Path, index: &Path) -> Result<GitState> {
        let common_dir = &begun.common_dir.0;
        let own = self.own_index(Some(index))?;
        let git = || self.git_in(common_dir, dir, &own);
        // What it says of files that have not changed is of their mount; it fails where some have.
        let mut refresh = git();
        refresh.args(["update-index", "-q", "--refresh"]).stdin(Stdio::null());
        drop(refresh.output());
        let head = match &begun.commit {
            Some(commit) => commit.clone(),
            None => self.empty_tree(common_dir)?,
        };
        let records = |args: &[&str]| run(git().args(args));
        let number = |args: &[&str]| {
            records(args).map(|text| text.split('\0').filter(|one| !one.is_empty()).count())
        };
        let others = ["ls-files", "-z", "--others", "--exclude-standard"];
        let state = index.parent().unwrap_or(index);
        let read = |name: &str| fs::read_to_string(state.join(name)).unwrap_or_default();
        let operations = [
            ("rebase-merge", "rebase"),
            ("rebase-apply", "rebase"),
            ("MERGE_HEAD", "merge"),
            ("CHERRY_PICK_HEAD", "cherry-pick"),
            ("REVERT_HEAD", "revert"),
            ("BISECT_START", "bisection"),
        ];
        let diff = ["--no-renames", "--name-status", "-z"];
        Ok(GitState {
            branch: read("HEAD").trim().strip_prefix("ref: refs/heads/").map(str::to_owned),
            operation: operations
                .iter()
                .find(|(file, _)| state.join(file).exists())
                .map(|one| one.1),
            staged: records(&[&["diff-index", "--cached"][..], &diff, &[head.as_str()]].concat())?,
            unstaged: records(&[&["diff-files"][..], &diff].concat())?,
            untracked: number(&others)?,
            ignored: number(&[&others[..], &["--ignored"]].concat())?,
        })
    }

    /// The id of a tree without entries.
    ///
    /// # Errors
    /// If git fails.
    pub fn empty_tree(&self, common_dir: &Path) -> Result<String> {
        self.text(common_dir, ["hash-object", "-t", "tree", "-w", "/dev/null"])
    }

    /// The tree of a view, which ends with it.
    fn seen(&self, mut client: Client, begun: &ViewBegun) -> Result<Seen> {
        let common_dir = begun.common_dir.0.clone();
        let tree = match (&begun.dir, &begun.index, &begun.commit) {
            (Some(dir), index, _) => {
                let index = index.as_ref().map(|index| index.0.as_path());
                self.tree_of(&common_dir, &dir.0, index)?
            }
            (None, _, Some(commit)) => {
                self.text(&common_dir, ["rev-parse", &format!("{commit}^{{tree}}")])?
            }
            (None, _, None) => self.empty_tree(&common_dir)?,
        };
        // A view goes with the daemon that shows it, and git takes files for removed that it does not find.
        let _: Status = client.request(method::STATUS, &(), &Meter::default())?;
        let (repository, commit) = (begun.repository.clone(), begun.commit.clone());
        Ok(Seen { common_dir, repository, tree, commit })
    }

    /// The tree of the files in `dir`, with `index` to know by what has not changed.
    fn tree_of(&self, common_dir: &Path, dir: &Path, index: Option<&Path>) -> Result<String> {
        let own = self.own_index(index)?;
        let git = || self.git_in(common_dir, dir, &own);
        run(git().args(["add", "--all", "--", "."]))?;
        run(git().arg("write-tree"))
    }

    /// A copy of `index`, which git may write.
    fn own_index(&self, index: Option<&Path>) -> Result<PathBuf> {
        let own = self.scratch.path().join("index");
        drop(fs::remove_file(&own));
        if let Some(index) = index.filter(|index| index.exists()) {
            fs::copy(index, &own).map_err(|error| Failure::io("copy", index, &error))?;
        }
        Ok(own)
    }

    /// git in `dir`, as if that were a worktree of the repository with the index `own`.
    fn git_in(&self, common_dir: &Path, dir: &Path, own: &Path) -> Command {
        let mut command = self.git(common_dir);
        // It is no worktree of its own, so nothing of the repository's own one counts.
        command.args(["-c", "core.bare=false", "-c", "core.fsmonitor=false"]);
        command.env("GIT_INDEX_FILE", own).env("GIT_WORK_TREE", dir).current_dir(dir);
        command
    }

    /// git in the repository whose git directory is `common_dir`.
    pub fn git(&self, common_dir: &Path) -> Command {
        let mut command = Command::new("git");
        command.env("GIT_DIR", common_dir).env_remove("GIT_INDEX_FILE");
        if self.objects == Objects::Passing {
            command.env("GIT_OBJECT_DIRECTORY", self.scratch.path().join("objects"));
            command.env("GIT_ALTERNATE_OBJECT_DIRECTORIES", common_dir.join("objects"));
        }
        command
    }

    /// What git says to `args`.
    ///
    /// # Errors
    /// If it fails.
    pub fn text<S: AsRef<OsStr>>(
        &self,
        common_dir: &Path,
        args: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        run(self.git(common_dir).args(args))
    }
}

fn run(command: &mut Command) -> Result<String> {
    let failed = |why: String| Failure::new(Kind::Failed, format!("git: {why}"));
    let done = command.stdin(Stdio::null()).output().map_err(|error| failed(error.to_string()))?;
    if !done.status.success() {
        return Err(failed(String::from_utf8_lossy(&done.stderr).trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&done.stdout).trim_end().to_owned())
}
