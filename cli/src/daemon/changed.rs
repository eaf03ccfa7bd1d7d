//! Which paths of a worktree may have changed, for git.
//!
//! A token names a generation of a worktree (`engine/src/overlay/generation.rs`). As long as that lasts, everything that
//! differs from the base, or has differed at any moment of it, is told again each time: so it does not matter when git
//! has looked at what. With any other token git is told that everything may have changed.
//!
//! A generation outlives the daemon if that stops in order: what is needed to go on is then in the git directory
//! ([`keep`]), where the next mount takes it from ([`resume`]).

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, ErrorKind, Read};
use std::path::Path;

use agentfs_engine::worktree::{Interrupted, Worktree};
use agentfs_engine::{Ino, Sequence};
use agentfs_gitimport::monitor::INTERRUPTED;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::daemon::state::Daemon;
use crate::daemon::worktrees::{Slot, Up};
use crate::error::{Failure, Kind, Result};
use crate::protocol::{ChangedPaths, ChangedPathsCall, WirePath};

/// More paths than this cost more than git saves by knowing them.
const PATHS_MAX: usize = 100_000;
/// Most bytes of what is kept of a generation: the names in it are bounded, and longer by no more than their encoding.
const KEPT_BYTES_MAX: u64 = 4 << 20;

/// What is kept of a generation.
#[derive(Serialize, Deserialize)]
struct Kept {
    generation: u64,
    last: u64,
    departed: Vec<(u64, WirePath)>,
}

/// The token that names the generation of a worktree in which nothing is redirected; none for one that takes no changes.
pub fn token(worktree: &Worktree) -> Option<String> {
    worktree.generation().map(|generation| token_of(generation, &[]))
}

/// What is told as redirected is unknown only as long as it is.
fn token_of(generation: u64, redirected: &[WirePath]) -> String {
    let mut token = format!("agentfs:{generation:016x}");
    if !redirected.is_empty() {
        let mut hasher = DefaultHasher::new();
        redirected.iter().for_each(|path| path.0.hash(&mut hasher));
        token.push_str(&format!(":{:016x}", hasher.finish()));
    }
    token
}

/// Keeps what a worktree needs to go on with its generation, which nobody can change any more and of which everything is
/// drained. If it cannot be kept, git looks at everything once.
pub fn keep(git_dir: &Path, worktree: &Worktree) {
    let Some(Interrupted { generation, last, departed }) = worktree.interrupt() else { return };
    let departed =
        departed.into_iter().map(|(dir, name)| (dir.0, WirePath::from_bytes(name.into())));
    let kept = Kept { generation, last: last.0, departed: departed.collect() };
    let path = git_dir.join(INTERRUPTED);
    let text = serde_json::to_vec(&kept).map_err(io::Error::from);
    if let Err(error) = text.and_then(|text| fs::write(&path, text)) {
        warn!("cannot write {}: {error}", path.display());
    }
}

/// Has a worktree that is not mounted yet go on with the generation that was kept, which is gone for good before
/// anything can change: [`Worktree::resume`] says why.
pub fn resume(git_dir: &Path, worktree: &Worktree) {
    let path = git_dir.join(INTERRUPTED);
    match take(git_dir, &path) {
        Ok(Some(Kept { generation, last, departed })) => {
            let departed = departed
                .into_iter()
                .map(|(dir, name)| (Ino(dir), name.into_bytes().into_boxed_slice()))
                .collect();
            worktree.resume(Interrupted { generation, last: Sequence(last), departed });
        }
        Ok(None) => {}
        Err(error) => warn!("{} is not used: {error}", path.display()),
    }
}

/// Reads and removes what was kept, if anything was.
fn take(git_dir: &Path, path: &Path) -> io::Result<Option<Kept>> {
    let mut text = Vec::new();
    match File::open(path) {
        Ok(file) => drop(file.take(KEPT_BYTES_MAX).read_to_end(&mut text)?),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    fs::remove_file(path)?;
    File::open(git_dir)?.sync_all()?;
    Ok(Some(serde_json::from_slice(&text)?))
}

/// What may have changed since the moment of a token.
///
/// # Errors
/// [`Kind::NotFound`] if that is not the directory of a worktree; what loading directory objects meets.
pub fn changed_paths(daemon: &Daemon, params: &ChangedPathsCall) -> Result<ChangedPaths> {
    let all = daemon.worktrees.list().into_iter();
    let mut up = all.filter_map(|(_, slot)| match slot {
        Slot::Up(up) => Some(up),
        _ => None,
    });
    let is_it = |up: &Up| up.mounted.dev() == params.dev && params.ino == Ino::ROOT.0;
    let Some(up) = up.find(|up| is_it(up)) else {
        let message =
            format!("inode {} of device {} is no worktree of this store", params.ino, params.dev);
        return Err(Failure::new(Kind::NotFound, message).hint("`agentfs ps` lists the worktrees"));
    };
    let redirected = up.redirects.states().into_iter();
    let redirected: Vec<_> = redirected.map(|(_, status)| status.path).collect();
    // What the kernel has not told yet is known to nobody here.
    let is_told = !daemon.levers.writeback_cache;
    let Some(changed) = up.worktree.changed_paths(PATHS_MAX)?.filter(|_| is_told) else {
        return Ok(ChangedPaths { token: "agentfs".into(), paths: None, redirected });
    };
    let token = token_of(changed.generation, &redirected);
    let known = changed.paths.filter(|_| token == params.since);
    let paths = known.map(|paths| paths.into_iter().map(WirePath::from_bytes).collect());
    Ok(ChangedPaths { token, paths, redirected })
}
