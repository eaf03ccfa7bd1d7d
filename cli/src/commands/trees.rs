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
use crate::protocol::{ViewBegun, ViewCall, method};

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
        let environment = Environment::read()?;
        let layout = Layout::new(environment.store.clone());
        let mut client = Client::connect_or_start(&layout, &environment)?;
        let meter = std::sync::Arc::new(Meter::default());
        let display = Display::start(std::sync::Arc::clone(&meter), output.json);
        let call = ViewCall { what: what.into() };
        let begun: ViewBegun = client.request(method::VIEW_BEGIN, &call, &meter)?;
        drop(display);
        let common_dir = begun.common_dir.0;
        let tree = match (&begun.dir, &begun.index, &begun.commit) {
            (Some(dir), index, _) => {
                let index = index.as_ref().map(|index| index.0.as_path());
                self.tree_of(&common_dir, &dir.0, index)?
            }
            (None, _, Some(commit)) => {
                self.text(&common_dir, ["rev-parse", &format!("{commit}^{{tree}}")])?
            }
            (None, _, None) => {
                self.text(&common_dir, ["hash-object", "-t", "tree", "-w", "/dev/null"])?
            }
        };
        Ok(Seen { common_dir, repository: begun.repository, tree, commit: begun.commit })
    }

    /// The tree of the files in `dir`, with `index` to know by what has not changed.
    fn tree_of(&self, common_dir: &Path, dir: &Path, index: Option<&Path>) -> Result<String> {
        let own = self.scratch.path().join("index");
        drop(fs::remove_file(&own));
        if let Some(index) = index.filter(|index| index.exists()) {
            fs::copy(index, &own).map_err(|error| Failure::io("copy", index, &error))?;
        }
        let git = || {
            let mut command = self.git(common_dir);
            // It is no worktree of its own, so nothing of the repository's own one counts.
            command.args(["-c", "core.bare=false", "-c", "core.fsmonitor=false"]);
            command.env("GIT_INDEX_FILE", &own).env("GIT_WORK_TREE", dir).current_dir(dir);
            command
        };
        run(git().args(["add", "--all", "--", "."]))?;
        run(git().arg("write-tree"))
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
