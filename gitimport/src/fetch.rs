//! Bringing a repository into the store.
//!
//! | source | objects and references by | why |
//! |---|---|---|
//! | a path | us: [`crate::local`] | links the object files without another process |
//! | `file://`, `git://`, `ssh://`, `host:path` | gix | twice as fast as git, and it indexes the pack in this process |
//! | `https://` and every other URL, bundles | the user's git | its credential helpers, proxies, certificates and remote helpers |
//! | a path or URL that the ways above cannot serve | the user's git | it knows references in reftables, hidden references, dubious ownership, old servers |
//!
//! git and ssh ask for passwords on the terminal themselves, and git's standard error is ours: what
//! it says reaches the user, its own progress included. Whichever way is taken, the result has the
//! layout that `git clone` leaves, but is bare.

use std::path::{Path, PathBuf};

use agentfs_engine::progress::{Cancel, Progress};

use crate::error::{Error, Result};
use crate::files;
use crate::incoming::Incoming;
use crate::local;
use crate::locate;
use crate::template;
use crate::transport;

/// Directories under this prefix are clones being made, or what killed ones left behind.
const INCOMING: &str = ".incoming-";

/// What to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CloneOptions {
    /// The branch to be on, or the tag whose commit to be at, instead of what `HEAD` of the source
    /// says.
    pub branch: Option<String>,
    /// A revision that will be asked for. Branches and tags come anyway; this fetches any other
    /// reference by its full name, or an object by its full id, where the source permits it.
    pub rev: Option<String>,
}

/// What the user has named.
enum Source {
    /// A repository of this machine: its git directory.
    Local(PathBuf),
    /// Something for a transport.
    Url(gix::Url),
    /// Something that only git reads: a bundle, or an address for one of its remote helpers.
    ForGit,
}

/// Clones `source`, a path or a URL as `git clone` takes it, to the bare repository `into`. It
/// appears when it is complete, and is durable if it came through a transport: see [`sync`]. What
/// killed calls left beside it is removed.
///
/// # Errors
/// [`Error::Exists`] if there is something at `into`, [`Error::NotARepository`],
/// [`Error::UnsafeSource`], [`Error::NoSuchBranch`], [`Error::NoSuchRevision`] where only the
/// source can tell, [`Error::Fetch`], [`Error::GitFailed`], [`Error::Io`], or
/// [`Error::Engine`] if cancelled.
pub fn clone_bare(
    source: &str,
    into: &Path,
    options: &CloneOptions,
    progress: &dyn Progress,
    cancel: &Cancel,
) -> Result<()> {
    let exists = || Error::Exists { path: into.to_owned() };
    if into.symlink_metadata().is_ok() {
        return Err(exists());
    }
    let parent = into.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(parent).map_err(|source| Error::io("create", parent, source))?;
    let found = find(source)?;
    let fetched = !matches!(found, Source::Local(_));
    let mut incoming = Incoming::new(parent, INCOMING)?;
    let clone = transport::Clone { source, options, progress, cancel };
    let repository = match found {
        Source::Local(git_dir) => {
            let url = absolute(source)?;
            let dir = incoming.path();
            if local::clone(&git_dir, &url, dir, options, progress, cancel)? {
                dir.to_owned()
            } else {
                clone.by_git(dir)?
            }
        }
        Source::Url(url) => clone.by_gix_or_git(&url, incoming.path())?,
        Source::ForGit => clone.by_git(incoming.path())?,
    };
    template::apply(&repository)?;
    cancel.check()?;
    if fetched {
        files::sync_tree(&repository)?;
    }
    if incoming.publish(&repository, into)? { Ok(()) } else { Err(exists()) }
}

/// Makes a clone in its place survive a crash of the machine, with the git directories of its
/// worktrees; returns how many files and directories were synced. What came through a transport is
/// durable but for its place. A clone of a path is made of links to files that are as durable as its
/// source; only what is written beside them is at stake, and syncing that takes longer than the
/// clone, so it is done later.
///
/// # Errors
/// [`Error::Io`].
pub fn sync(repository: &Path) -> Result<u64> {
    let synced = files::sync_tree(repository)?;
    Ok(synced + repository.parent().map_or(Ok(0), files::sync)?)
}

/// A path that leads to a repository is one, even if it looks like a URL, as git has it.
fn find(source: &str) -> Result<Source> {
    let path = Path::new(source);
    if let Some(git_dir) = locate::git_dir_at(path) {
        return Ok(Source::Local(git_dir));
    }
    if path.is_file() || Path::new(&format!("{source}.bundle")).is_file() {
        return Ok(Source::ForGit);
    }
    let not_found = |why: &str| Error::NotARepository { path: path.to_owned(), why: why.into() };
    if path.exists() {
        return Err(not_found("there is no git directory in it"));
    }
    if !source.contains(':') {
        return Err(not_found("there is nothing at this path"));
    }
    if source.split_once("::").is_some_and(|(helper, _)| {
        !helper.is_empty() && helper.bytes().all(|byte| byte.is_ascii_alphanumeric())
    }) {
        return Ok(Source::ForGit);
    }
    gix::url::parse(source).map(Source::Url).map_err(|error| not_found(&error.to_string()))
}

/// The path as `remote.origin.url` has it.
fn absolute(source: &str) -> Result<String> {
    let path = std::path::absolute(source)
        .map_err(|error| Error::io("resolve", Path::new(source), error))?;
    Ok(path.to_string_lossy().into_owned())
}
