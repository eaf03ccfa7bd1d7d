//! The calls: what is redirected, more of it, less of it.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agentfs_engine::store::{Branch, SnapshotReason};
use agentfs_gitimport::{exclude, tracked};

use crate::daemon::redirects::config;
use crate::daemon::redirects::place::{Found, How, Root};
use crate::daemon::redirects::record::{Origin, Records, Redirect};
use crate::daemon::redirects::{Held, clean_in_background, records};
use crate::daemon::repositories::OpenRepository;
use crate::daemon::snapshots;
use crate::daemon::state::Daemon;
use crate::daemon::target;
use crate::daemon::worktrees::{Slot, Up};
use crate::error::{Failure, Kind, Result};
use crate::protocol::{
    RedirectAddCall, RedirectInfo, RedirectListCall, RedirectRemoveCall, RedirectStatus, Redirects,
    WirePath,
};
use crate::transfer::Transfer;

const LIST_HINT: &str = "`agentfs redirect list` lists what is redirected";

/// The mount of a branch, if it is mounted.
fn mount_of(daemon: &Daemon, branch: &Branch) -> Result<Option<Arc<Up>>> {
    let holder = daemon.worktrees.holder_of(&branch.repository, &branch.name);
    match holder.and_then(|dir| daemon.worktrees.get(&dir)) {
        Some(Slot::Up(up)) if up.mounted.is_alive() => Ok(Some(up)),
        Some(Slot::Busy(..)) => {
            Err(Failure::new(Kind::Busy, format!("{} is being mounted or unmounted", branch.name))
                .hint("run the command again in a moment"))
        }
        _ => Ok(None),
    }
}

fn named(daemon: &Daemon, what: &str) -> Result<(Arc<OpenRepository>, Branch)> {
    target::recorded(daemon, what, "`agentfs branch list` lists the branches")
}

/// Redirects paths of a branch: at once if it is mounted, else when it is mounted next.
///
/// # Errors
/// [`Kind::Refused`] for a path that git has, that is no plain path or that is redirected, [`Kind::NotEmpty`] for
/// one at which the branch has something, unless that is to be moved: nothing is changed then.
pub fn add(daemon: &Daemon, params: &RedirectAddCall) -> Result<Redirects> {
    let _turn = daemon.lock_redirects();
    let (repository, branch) = named(daemon, &params.branch)?;
    let up = mount_of(daemon, &branch)?;
    let paths: Vec<_> = params.paths.iter().map(|path| path.0.clone()).collect();
    let mounted = up.as_ref().map(|up| up.record.git_dir.as_path());
    let Some(git_dir) = mounted.or(branch.git_state()) else {
        let message = format!("{} is not mounted and has no changes", branch.name);
        return Err(Failure::new(Kind::Refused, message).hint("mount it first"));
    };
    let records = records(&daemon.layout, branch.number);
    let known = records.list()?.redirects;
    refuse_names(&paths, &known)?;
    if let Some(path) = tracked::among(git_dir, repository.record.hash, &paths)?.first() {
        return Err(Failure::new(Kind::Refused, format!("git has files at {path:?}"))
            .hint("redirect what git does not have: `git ls-files PATH` lists what it has"));
    }
    let Some(up) = up else {
        if params.moves {
            let message = format!("{} is not mounted", branch.name);
            return Err(Failure::new(Kind::Refused, message).hint("mount it first"));
        }
        let mut added = Vec::new();
        for path in &paths {
            let redirect = records.add(path, Origin::Command, false, |_| Ok(()))?;
            added.push(unmounted(&records, &branch, redirect));
        }
        return Ok(Redirects { redirects: added, notes: Vec::new() });
    };
    let held = writable(&up)?;
    let full =
        held.within(|root| look(root, &paths, params.moves)).map_err(|why| lost(&up, &why))??;
    if !full.is_empty() {
        let _names = daemon.lock_names();
        let message = "before the moving of what is redirected";
        snapshots::take(daemon, &repository, &branch, SnapshotReason::Before, message)?;
    }
    let add = |root: &Root| {
        let add = |path: &PathBuf| add_one(held, root, path, full.contains(path));
        paths.iter().map(add).collect::<Result<Vec<_>>>()
    };
    let added = held.within(add).map_err(|why| lost(&up, &why))??;
    answer(&up, &branch, &added)
}

fn writable(up: &Up) -> Result<&Held> {
    if up.record.read_only {
        let dir = up.record.dir.display();
        return Err(Failure::new(Kind::Refused, format!("{dir} is mounted read-only"))
            .hint("mount the branch without --read-only"));
    }
    Ok(&up.redirects)
}

fn lost(up: &Up, why: &str) -> Failure {
    let dir = up.record.dir.display();
    Failure::new(Kind::Failed, format!("the worktree {dir} {why}"))
        .hint(format!("`agentfs umount {dir}` forgets it"))
}

/// Refuses paths that cannot be redirected, whatever is there.
fn refuse_names(paths: &[PathBuf], known: &[Redirect]) -> Result<()> {
    let mut others: Vec<_> = known.iter().map(|one| one.path.clone()).collect();
    for path in paths {
        let why = config::refuse(path).map(|why| format!("{path:?} {why}"));
        if let Some(why) = why.or_else(|| config::conflict(path, &others)) {
            return Err(Failure::new(Kind::Refused, why).hint(LIST_HINT));
        }
        others.push(path.clone());
    }
    Ok(())
}

/// Which of `paths` have something that is to be moved.
fn look(root: &Root, paths: &[PathBuf], moves: bool) -> Result<Vec<PathBuf>> {
    let mut full = Vec::new();
    for path in paths {
        let refuse = |why: &str| Failure::new(Kind::Refused, format!("{path:?} {why}"));
        match root.find(path).map_err(|why| refuse(&why))? {
            Found::Nothing | Found::Empty | Found::OurLink => {}
            Found::Full if moves => full.push(path.clone()),
            Found::Full => {
                return Err(Failure::new(Kind::NotEmpty, format!("{path:?} is not empty"))
                    .hint("--move moves what is there to the native directory"));
            }
            found @ (Found::Mounted | Found::Other) => return Err(refuse(found.in_the_way())),
        }
    }
    Ok(full)
}

fn add_one(held: &Held, root: &Root, path: &Path, moves: bool) -> Result<Redirect> {
    let fill = |data: &Path| match moves {
        true => copy(root, path, data),
        false => Ok(()),
    };
    let redirect = held.records.add(path, Origin::Command, moves, fill)?;
    if let Err(why) = held.set(root, &redirect) {
        held.records.remove(redirect.number)?;
        return Err(Failure::new(Kind::Failed, format!("{path:?} {why}")));
    }
    Ok(redirect)
}

fn copy(root: &Root, path: &Path, data: &Path) -> Result<()> {
    let failed =
        |why: String| Failure::new(Kind::Failed, format!("{path:?} cannot be moved: {why}"));
    let from = root.directory(path).map_err(failed)?;
    let to = std::fs::File::open(data).map_err(|error| failed(error.to_string()))?;
    Transfer::copying(to.as_fd())
        .copy_all(from.as_fd(), &[])
        .map_err(|(at, error)| failed(format!("{}: {error}", at.display())))?;
    rustix::fs::syncfs(&to).map_err(|errno| failed(std::io::Error::from(errno).to_string()))
}

/// Ends that paths of a mounted branch are redirected, and removes what is in their native directories.
///
/// # Errors
/// [`Kind::NotFound`] for a path that is not redirected, [`Kind::Refused`] for one that the tree asks for and for a
/// branch that is not mounted: nothing is changed then. [`Kind::Busy`] if somebody uses one.
pub fn remove(daemon: &Arc<Daemon>, params: &RedirectRemoveCall) -> Result<Redirects> {
    let _turn = daemon.lock_redirects();
    let (repository, branch) = named(daemon, &params.branch)?;
    let Some(up) = mount_of(daemon, &branch)? else {
        return Err(Failure::new(Kind::Refused, format!("{} is not mounted", branch.name))
            .hint("mount it first"));
    };
    let held = writable(&up)?;
    let known = held.records.list()?.redirects;
    // What cannot be read asks for nothing.
    let asked = config::of(&up.worktree).unwrap_or_default();
    let mut wanted = Vec::new();
    for path in &params.paths {
        let Some(redirect) = known.iter().find(|one| one.path == path.0) else {
            let message = format!("{:?} is not redirected", path.0);
            return Err(Failure::new(Kind::NotFound, message).hint(LIST_HINT));
        };
        if asked.contains(&path.0) {
            let message = format!("{:?} is redirected by {}", path.0, config::FILE);
            return Err(Failure::new(Kind::Refused, message)
                .hint(format!("take it out of {} first", config::FILE)));
        }
        wanted.push(redirect.clone());
    }
    let mut removed = Vec::new();
    for redirect in wanted {
        let data = held.records.data(redirect.number);
        let cleared = held.within(|root| root.clear(&redirect.path, &data, true));
        cleared.map_err(|why| lost(&up, &why))?.map_err(|why| {
            Failure::new(Kind::Busy, format!("{:?} {why}", redirect.path))
                .hint("end the processes that work in it")
        })?;
        held.records.remove(redirect.number)?;
        let elsewhere = |other: &Branch| {
            let listed = records(&daemon.layout, other.number).list();
            listed.is_ok_and(|listed| listed.redirects.iter().any(|one| one.path == redirect.path))
        };
        let branches = daemon.store.branches()?;
        let mut others = branches.iter().filter(|one| one.repository == branch.repository);
        if !repository.record.attached && !others.any(elsewhere) {
            exclude::remove(&repository.record.git_dir, &redirect.path)?;
        }
        removed.push(info(held, &branch, Some(&up), redirect, None));
    }
    clean_in_background(daemon);
    Ok(Redirects { redirects: removed, notes: Vec::new() })
}

/// What is redirected.
///
/// # Errors
/// [`Kind::NotFound`] if there is no such branch; what reading the store meets.
pub fn list(daemon: &Daemon, params: &RedirectListCall) -> Result<Redirects> {
    let branches = match &params.branch {
        Some(branch) => vec![named(daemon, branch)?.1],
        None => daemon.store.branches()?,
    };
    let mut all = Redirects::default();
    for branch in branches {
        let holder = daemon.worktrees.holder_of(&branch.repository, &branch.name);
        if let Some(Slot::Up(up)) = holder.and_then(|dir| daemon.worktrees.get(&dir)) {
            let states = up.redirects.states().into_iter();
            all.redirects.extend(
                states.map(|(one, status)| {
                    info(&up.redirects, &branch, Some(&up), one, Some(status))
                }),
            );
            all.notes.extend(up.redirects.notes());
        } else {
            let records = records(&daemon.layout, branch.number);
            let known = records.list()?.redirects.into_iter();
            all.redirects.extend(known.map(|one| unmounted(&records, &branch, one)));
        }
    }
    let key =
        |one: &RedirectInfo| (one.repository.clone(), one.branch.clone(), one.status.path.clone());
    all.redirects.sort_by_key(key);
    Ok(all)
}

/// The redirects that were added, as they appear, and what the user should know of them.
fn answer(up: &Up, branch: &Branch, added: &[Redirect]) -> Result<Redirects> {
    let mut done = Redirects::default();
    for (one, status) in up.redirects.states() {
        if added.iter().any(|other| other.number == one.number) {
            if status.appears.as_deref() == Some(How::Link.name())
                && up.redirects.exclude_in.is_none()
            {
                done.notes.push(format!(
                    "git shows the link {:?}: add the line /{} to .git/info/exclude",
                    one.path,
                    one.path.display()
                ));
            }
            done.redirects.push(info(&up.redirects, branch, Some(up), one, Some(status)));
        }
    }
    Ok(done)
}

fn unmounted(records: &Records, branch: &Branch, one: Redirect) -> RedirectInfo {
    RedirectInfo {
        repository: branch.repository.clone(),
        branch: branch.name.clone(),
        dir: None,
        data: WirePath(records.data(one.number)),
        origin: one.origin.name().into(),
        status: RedirectStatus { path: WirePath(one.path), appears: None, why: None },
    }
}

fn info(
    held: &Held,
    branch: &Branch,
    up: Option<&Up>,
    one: Redirect,
    status: Option<RedirectStatus>,
) -> RedirectInfo {
    let info = unmounted(&held.records, branch, one);
    let status = status.unwrap_or_else(|| info.status.clone());
    RedirectInfo { dir: up.map(|up| up.record.dir.as_path().into()), status, ..info }
}
