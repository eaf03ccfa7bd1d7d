//! `agentfs snapshot restore`, of a whole branch or of some paths.
//!
//! Paths are restored through the mount, like anybody else's changes: the kernel knows of each, files that are
//! open go on as they are, and git sees by the times what has changed.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::restored;
use crate::client::Client;
use crate::commands::{call, refuse_without_fuse};
use crate::environment::Environment;
use crate::error::{Failure, Kind, Result};
use crate::layout::Layout;
use crate::output::{Output, count};
use crate::progress::{Display, Meter};
use crate::protocol::{
    ExecBegun, ExecCall, ExecEnd, SnapshotCall, SnapshotCreateCall, SnapshotInfo,
    SnapshotRestoreCall, SnapshotShown, ViewBegun, ViewCall, WirePath, method,
};
use crate::transfer::{Done, Transfer};

/// Arguments of `agentfs snapshot restore`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The snapshot, by the first digits of its name
    snapshot: String,
    /// The branch, or repository@branch (default: that of which it was taken)
    #[arg(long)]
    branch: Option<String>,
    /// Only what is at these paths: relative to the current directory if that is in the branch's worktree,
    /// else to its root
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
}

#[derive(Serialize)]
struct Restored {
    snapshot: String,
    repository: String,
    branch: String,
    /// The snapshot that keeps what the branch was before.
    before: String,
    /// Relative to the root of the worktree.
    paths: Vec<WirePath>,
    written: u64,
    adjusted: u64,
    removed: u64,
}

/// Makes a branch, or what is at some paths of it, what a snapshot is.
///
/// # Errors
/// [`Kind::Refused`] for a path outside the worktree, [`Kind::NotFound`] for one that is neither in the
/// snapshot nor in the branch: nothing is changed then.
pub fn run(args: &Args, output: Output) -> Result<()> {
    if !args.paths.is_empty() {
        return some(args, output);
    }
    let (snapshot, branch) = (args.snapshot.clone(), args.branch.clone());
    let params = SnapshotRestoreCall { snapshot, branch };
    restored(&call(output, method::SNAPSHOT_RESTORE, &params)?, output)
}

fn some(args: &Args, output: Output) -> Result<()> {
    refuse_without_fuse("`agentfs snapshot restore` without paths needs no mount")?;
    let environment = Environment::read()?;
    let layout = Layout::new(environment.store.clone());
    let mut client = Client::connect_or_start(&layout, &environment)?;
    let meter = Arc::new(Meter::default());
    let _display = Display::start(Arc::clone(&meter), output.json);
    let params = SnapshotCall { snapshot: args.snapshot.clone() };
    let shown: SnapshotShown = client.request(method::SNAPSHOT_SHOW, &params, &meter)?;
    let SnapshotInfo { id, repository, branch: name, base, .. } = shown.info;
    let branch = match (&args.branch, shown.branch_now) {
        (Some(branch), _) => branch.clone(),
        (None, Some(now)) => format!("{repository}@{now}"),
        (None, None) => {
            let message = format!("there is no branch {name} any more");
            return Err(Failure::new(Kind::NotFound, message)
                .hint("name the branch that is to be changed with --branch"));
        }
    };
    // Both last as long as the connection.
    let params = ViewCall { what: id.clone() };
    let view: ViewBegun = client.request(method::VIEW_BEGIN, &params, &meter)?;
    let Some(from) = &view.dir else {
        let message = format!("{id} is nothing but a commit");
        return Err(Failure::new(Kind::Refused, message)
            .hint("`git restore --source COMMIT -- PATH` in the worktree restores from a commit"));
    };
    let params = ExecCall {
        what: branch.clone(),
        at: Some(WirePath("/".into())),
        pid: std::process::id(),
        keep: false,
    };
    let begun: ExecBegun = client.request(method::EXEC_BEGIN, &params, &meter)?;
    if begun.common_dir != view.common_dir {
        return Err(Failure::new(
            Kind::Refused,
            format!("{id} and {branch} are of two repositories"),
        ));
    }
    let (source, target) = (open(&from.0)?, open(&begun.source.0)?);
    let paths = wanted(&args.paths, &begun.source.0)?;
    for path in &paths {
        if !exists(&from.0, path) && !exists(&begun.source.0, path) {
            let message = format!("{} is neither in {id} nor in {}", path.display(), begun.branch);
            return Err(Failure::new(Kind::NotFound, message)
                .hint(format!("`agentfs snapshot diff {id} --name-status` lists what differs")));
        }
    }
    let params = SnapshotCreateCall {
        branch: format!("{}@{}", begun.repository, begun.branch),
        message: format!("before the restoring of paths of {id}"),
        before: true,
    };
    let before: SnapshotInfo = client.request(method::SNAPSHOT_CREATE, &params, &meter)?;
    let mut transfer = Transfer::restoring(target.as_fd(), base == before.base);
    let done = copy(&mut transfer, &source, &target, &paths, &before.id)?;
    drop((source, target));
    // Whoever mounts the branch next finds it free.
    let end = ExecEnd { exec: begun.exec };
    client.request::<()>(method::EXEC_END, &end, &Meter::default())?;
    let restored = Restored {
        snapshot: id,
        repository: begun.repository,
        branch: begun.branch,
        before: before.id,
        paths: paths.into_iter().map(WirePath).collect(),
        written: done.written,
        adjusted: done.adjusted,
        removed: done.removed,
    };
    output.result(&restored, |out| {
        let Restored { snapshot, repository, branch, before, written, adjusted, removed, .. } =
            &restored;
        writeln!(
            out,
            "{repository}@{branch}: {} as in {snapshot}",
            count(restored.paths.len() as u64, "path")
        )?;
        writeln!(out, "  {written} written, {adjusted} with other attributes, {removed} removed")?;
        writeln!(out, "  `agentfs snapshot restore {before}` takes that back")
    })
}

fn copy(
    transfer: &mut Transfer<'_>,
    source: &File,
    target: &File,
    paths: &[PathBuf],
    before: &str,
) -> Result<Done> {
    for path in paths {
        transfer.restore(source.as_fd(), path).map_err(|(at, error)| {
            Failure::io("restore", &at, &error).hint(format!(
                "what was there before is kept: `agentfs snapshot restore {before}` brings it back"
            ))
        })?;
    }
    // One sync is one of all that was changed before.
    target.sync_all().map_err(|error| Failure::io("sync", Path::new("the worktree"), &error))?;
    Ok(transfer.done)
}

fn open(dir: &Path) -> Result<File> {
    let directory = rustix::fs::OFlags::DIRECTORY.bits().cast_signed();
    let opened = File::options().read(true).custom_flags(directory).open(dir);
    opened.map_err(|error| Failure::io("open", dir, &error))
}

fn exists(dir: &Path, path: &Path) -> bool {
    dir.join(path).symlink_metadata().is_ok()
}

/// The paths below the root of the worktree that are meant. Only names count: nothing is followed.
fn wanted(paths: &[PathBuf], root: &Path) -> Result<Vec<PathBuf>> {
    let here = std::env::current_dir().unwrap_or_default();
    let here = here.strip_prefix(root).unwrap_or(Path::new(""));
    paths.iter().map(|path| within(path, root, here)).collect()
}

fn within(path: &Path, root: &Path, here: &Path) -> Result<PathBuf> {
    let outside = || {
        let message = format!("{} is outside the worktree", path.display());
        Failure::new(Kind::Refused, message).hint(format!("name it relative to {}", root.display()))
    };
    let mut found = match path.strip_prefix(root) {
        Ok(_) => PathBuf::new(),
        Err(_) if path.is_absolute() => return Err(outside()),
        Err(_) => here.to_owned(),
    };
    for part in path.strip_prefix(root).unwrap_or(path).components() {
        match part {
            Component::Normal(name) => found.push(name),
            Component::CurDir => {}
            Component::ParentDir if found.pop() => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(outside());
            }
        }
    }
    if found.starts_with(".git") {
        let message = format!("{} belongs to git", path.display());
        return Err(Failure::new(Kind::Refused, message)
            .hint("`agentfs snapshot restore` without paths restores the git state, too"));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_below_the_root() {
        let of = |path: &str, here: &str| within(Path::new(path), Path::new("/w"), Path::new(here));
        for (path, here, expected) in [
            ("a", "", "a"),
            ("a/./b/../c", "", "a/c"),
            ("a", "dir", "dir/a"),
            ("../a", "dir", "a"),
            (".", "dir", "dir"),
            ("/w/a", "dir", "a"),
            ("/w", "dir", ""),
            (".gitignore", "", ".gitignore"),
        ] {
            assert_eq!(of(path, here).unwrap(), Path::new(expected), "{path} in {here}");
        }
        for (path, here) in
            [("..", ""), ("a/../../b", ""), ("../../a", "dir"), ("/etc/passwd", ""), ("/wx", "")]
        {
            let failure = of(path, here).unwrap_err();
            assert!(failure.message.contains("outside"), "{path}: {failure}");
        }
        for path in [".git", ".git/x", "a/../.git"] {
            assert!(of(path, "").unwrap_err().message.contains("git"), "{path}");
        }
    }
}
