//! `agentfs materialize`: a plain directory of what a branch, a snapshot or a revision is, with a repository of
//! its own.
//!
//! It is made beside its place under a name of its own, synced, and renamed into it. A branch is copied
//! from a snapshot that is made for that and removed afterwards, so that files and git state are of one
//! moment. What is copied is there for as long as the connection to the daemon: another daemon may show
//! something else in the same place. So nothing is renamed before that connection has answered once more.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use agentfs_gitimport::saved::DIGESTS;
use serde::Serialize;
use tempfile::TempDir;

use crate::client::Client;
use crate::commands::{refuse_without_fuse, short};
use crate::destination;
use crate::environment::Environment;
use crate::error::{Failure, Kind, Result};
use crate::layout::Layout;
use crate::monitor;
use crate::output::{Output, count};
use crate::progress::{Display, Meter};
use crate::protocol::{
    ExecBegun, ExecCall, SnapshotCall, SnapshotCreateCall, SnapshotInfo, Status, ViewBegun,
    ViewCall, WirePath, method,
};
use crate::transfer::{Done, Transfer};

/// Arguments of `agentfs materialize`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A branch, as it is now; a snapshot; or a revision
    what: String,
    /// A directory that is empty or does not exist
    dir: PathBuf,
}

#[derive(Serialize)]
struct Materialized {
    dir: WirePath,
    repository: String,
    commit: Option<String>,
    /// Files, directories and links.
    entries: u64,
    bytes: u64,
    /// What is not in it, since it is redirected.
    redirected: Vec<WirePath>,
}

/// Where what is to be copied can be read, for as long as the client lives.
struct Source {
    repository: String,
    common_dir: PathBuf,
    dir: PathBuf,
    /// The git directory, or what a snapshot has of one.
    state: PathBuf,
    commit: Option<String>,
    /// The snapshot that was made for this.
    passing: Option<String>,
    /// Paths that are redirected.
    redirected: Vec<WirePath>,
}

/// Makes a plain directory of what something is.
///
/// # Errors
/// [`Kind::NotFound`] if there is no such thing, [`Kind::NotEmpty`] if the directory is not empty; what git
/// and the two file systems meet. Nothing is left at the directory then.
pub fn run(args: &Args, output: Output) -> Result<()> {
    refuse_without_fuse("`git worktree add` in its repository makes a directory of a commit")?;
    let dir = destination::absolute(&args.dir)?;
    let environment = Environment::read()?;
    let layout = Layout::new(environment.store.clone());
    destination::check(&dir, layout.root())?;
    let mut client = Client::connect_or_start(&layout, &environment)?;
    let meter = Arc::new(Meter::default());
    let display = Display::start(Arc::clone(&meter), output.json);
    let source = find(&mut client, &args.what, &meter)?;
    let built = build(&source, &dir);
    // Whatever went wrong while the daemon went away did so because of that.
    let ended = source.end(&mut client, &meter);
    ended.map_err(|failure| Failure {
        message: format!("{}: nothing was made at {}", failure.message, dir.display()),
        ..failure
    })?;
    let done = built?.settle(&dir)?;
    drop(display);
    let made = Materialized {
        dir: WirePath(dir),
        repository: source.repository,
        commit: source.commit,
        entries: done.written,
        bytes: done.bytes,
        redirected: source.redirected,
    };
    output.result(&made, |out| {
        let commit = made.commit.as_deref().map_or("no commit", short);
        writeln!(out, "{}: {}, {commit}", made.dir.0.display(), made.repository)?;
        let entries = count(made.entries, "entry").replace("entrys", "entries");
        writeln!(out, "  a plain directory with a repository of its own: {entries}")?;
        made.redirected.iter().try_for_each(|path| {
            writeln!(out, "  without what is in {}, which is redirected", path.0.display())
        })
    })
}

impl Source {
    /// Removes what was made for the copy. Succeeds only if what was to be copied was there until now.
    fn end(&self, client: &mut Client, meter: &Meter) -> Result<()> {
        match self.passing.clone() {
            Some(snapshot) => client
                .request(method::SNAPSHOT_DELETE, &SnapshotCall { snapshot }, meter)
                .map(|_: SnapshotInfo| ()),
            None => client.request(method::STATUS, &(), meter).map(|_: Status| ()),
        }
    }
}

/// A copy beside its place. Dropping it removes it.
struct Built {
    aside: TempDir,
    tree: PathBuf,
    root: File,
    done: Done,
}

fn find(client: &mut Client, what: &str, meter: &Arc<Meter>) -> Result<Source> {
    let view = |client: &mut Client, what: &str| -> Result<ViewBegun> {
        client.request(method::VIEW_BEGIN, &ViewCall { what: what.into() }, meter)
    };
    // A branch changes while it is copied; what has no changes cannot be one.
    let params = SnapshotCreateCall {
        branch: what.into(),
        message: "for agentfs materialize".into(),
        before: true,
    };
    let passing: Option<SnapshotInfo> =
        match client.request(method::SNAPSHOT_CREATE, &params, meter) {
            Ok(taken) => Some(taken),
            Err(failure) if failure.kind == Kind::NotFound => None,
            Err(failure) => return Err(failure),
        };
    let passing = passing.map(|taken| taken.id);
    let begun = view(client, passing.as_deref().unwrap_or(what))?;
    let ViewBegun { repository, common_dir, dir, index, commit, redirected } = begun;
    if let (Some(dir), Some(index)) = (dir, index) {
        let state = index.0.parent().unwrap_or(&index.0).to_owned();
        let common_dir = common_dir.0;
        let dir = dir.0;
        return Ok(Source { repository, common_dir, dir, state, commit, passing, redirected });
    }
    // Nothing but a commit: a worktree of it is one as long as it is used.
    let what = match (&passing, what.contains('@'), &commit) {
        (Some(_), _, _) | (None, true, _) => what.to_owned(),
        (None, false, Some(commit)) => format!("{repository}@{commit}"),
        (None, false, None) => repository.clone(),
    };
    let params =
        ExecCall { what, at: Some(WirePath("/".into())), pid: std::process::id(), keep: false };
    let begun: ExecBegun = client.request(method::EXEC_BEGIN, &params, meter)?;
    Ok(Source {
        repository,
        common_dir: common_dir.0,
        dir: begun.source.0,
        state: begun.git_dir.0,
        commit,
        passing,
        redirected,
    })
}

fn build(source: &Source, dir: &Path) -> Result<Built> {
    let parent = dir.parent().unwrap_or(dir);
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(dir.file_name().unwrap_or_default());
    prefix.push(".agentfs-");
    let aside = tempfile::Builder::new().prefix(&prefix).tempdir_in(parent);
    let aside = aside.map_err(|error| Failure::io("create a directory in", parent, &error))?;
    let tree = aside.path().join("tree");
    fs::create_dir(&tree).map_err(|error| Failure::io("create", &tree, &error))?;
    repository(source, &tree)?;
    let open = |path: &Path| File::open(path).map_err(|error| Failure::io("open", path, &error));
    let (from, root) = (open(&source.dir)?, open(&tree)?);
    let mut transfer = Transfer::copying(root.as_fd());
    // They lead into the store.
    transfer.without_links = source.redirected.iter().map(|path| path.0.clone()).collect();
    transfer
        .copy_all(from.as_fd(), &[".git".as_ref()])
        .map_err(|(at, error)| Failure::io("copy", &at, &error))?;
    // It says of each file what it was in the worktree; git compares once, and remembers. What differs makes it
    // fail.
    let mut refresh = git(&tree);
    refresh.args(["update-index", "-q", "--refresh"]).stdout(Stdio::null()).stderr(Stdio::null());
    drop(refresh.status());
    let done = transfer.done;
    Ok(Built { aside, tree, root, done })
}

impl Built {
    /// Puts it to its place, on stable storage.
    fn settle(self, dir: &Path) -> Result<Done> {
        let synced = rustix::fs::syncfs(&self.root).map_err(std::io::Error::from);
        synced.map_err(|error| Failure::io("sync", &self.tree, &error))?;
        // It replaces an empty directory, and nothing else.
        fs::rename(&self.tree, dir).map_err(|error| match error.kind() {
            ErrorKind::DirectoryNotEmpty | ErrorKind::AlreadyExists => {
                Failure::new(Kind::NotEmpty, format!("{} is not empty", dir.display()))
                    .hint("choose a directory that is empty or does not exist")
            }
            _ => Failure::io("create", dir, &error),
        })?;
        drop(self.aside);
        let parent = dir.parent().unwrap_or(dir);
        let synced = File::open(parent).and_then(|parent| parent.sync_all());
        synced.map_err(|error| Failure::io("sync", parent, &error))?;
        Ok(self.done)
    }
}

/// git in `tree`, whatever repository it is called in.
fn git(tree: &Path) -> Command {
    let mut command = Command::new("git");
    for variable in
        ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR"]
    {
        command.env_remove(variable);
    }
    command.current_dir(tree).stdin(Stdio::null());
    command
}

fn run_git(command: &mut Command) -> Result<()> {
    let failed = |why: String| Failure::new(Kind::Failed, format!("git: {why}"));
    let done = command.output().map_err(|error| failed(error.to_string()))?;
    match done.status.success() {
        true => Ok(()),
        false => Err(failed(String::from_utf8_lossy(&done.stderr).trim().to_owned())),
    }
}

/// Makes `.git` in `tree`: all objects and references of the repository, and the git state of the source.
fn repository(source: &Source, tree: &Path) -> Result<()> {
    let own = tree.join(".git");
    let common = &source.common_dir;
    let mut clone = git(tree);
    // Objects are linked where that is possible; nobody ever writes into one.
    clone.args(["clone", "-q", "--mirror", "--local", "--"]).arg(common).arg(&own);
    run_git(&mut clone)?;
    let alternates = own.join("objects/info/alternates");
    if alternates.exists() {
        run_git(git(tree).args(["repack", "-q", "-a", "-d"]))?;
        fs::remove_file(&alternates).map_err(|error| Failure::io("remove", &alternates, &error))?;
    }
    // What belongs to the store and not to the repository.
    let kept = "refs/agentfs/";
    let listed = git(tree).args(["for-each-ref", "--format=delete %(refname)", kept]).output();
    let listed = listed.map_err(|error| Failure::new(Kind::Failed, format!("git: {error}")))?;
    let orders = tree.join(".git/agentfs-orders");
    let written = fs::write(&orders, &listed.stdout).and_then(|()| File::open(&orders));
    let input = written.map_err(|error| Failure::io("write", &orders, &error))?;
    run_git(git(tree).args(["update-ref", "--stdin"]).stdin(input))?;
    fs::remove_file(&orders).map_err(|error| Failure::io("remove", &orders, &error))?;
    for name in ["config", "info", "hooks", "logs"] {
        copy(&common.join(name), &own.join(name), &["agentfs"])?;
    }
    // It has no daemon to be asked.
    monitor::forget(&own)?;
    run_git(git(tree).args(["config", "core.bare", "false"]))?;
    // Those of a worktree of its own, and how the repository itself was used.
    run_git(git(tree).args(["config", "--unset-all", "core.worktree"])).ok();
    for entry in list(&source.state)? {
        if !["commondir", "gitdir", "locked", DIGESTS].iter().any(|name| entry == *name)
            && !entry.as_encoded_bytes().ends_with(b".lock")
        {
            copy(&source.state.join(&entry), &own.join(&entry), &[])?;
        }
    }
    let head = fs::read_to_string(own.join("HEAD")).unwrap_or_default();
    if let (Some(name), Some(commit)) = (head.trim().strip_prefix("ref: "), &source.commit) {
        run_git(git(tree).args(["update-ref", name, commit]))?;
    }
    Ok(())
}

fn list(dir: &Path) -> Result<Vec<std::ffi::OsString>> {
    let entries = fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| entry.map(|entry| entry.file_name())).collect());
    entries.map_err(|error| Failure::io("list", dir, &error))
}

/// Copies a file, or a directory without what is called as in `but`, over what is there; it is fine if there is
/// none.
fn copy(from: &Path, to: &Path, but: &[&str]) -> Result<()> {
    let failed = |error| Failure::io("copy", from, &error);
    match fs::metadata(from) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(metadata) if metadata.is_dir() => {
            fs::create_dir_all(to).map_err(failed)?;
            for name in list(from)? {
                if !but.iter().any(|other| name == *other) {
                    copy(&from.join(&name), &to.join(&name), but)?;
                }
            }
            Ok(())
        }
        // Not over a file that others may share.
        Ok(_) => {
            match fs::remove_file(to) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
            fs::copy(from, to).map(drop).map_err(failed)
        }
    }
}
