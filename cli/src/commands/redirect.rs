//! `agentfs redirect`

use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

use clap::Subcommand;

use crate::commands::call;
use crate::destination;
use crate::error::{Failure, Kind, Result};
use crate::ignored::is_ignored;
use crate::output::Output;
use crate::protocol::{
    RedirectAddCall, RedirectInfo, RedirectListCall, RedirectRemoveCall, Redirects, Status,
    WirePath, WorktreeStatus, method,
};

/// Arguments of `agentfs redirect`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Have paths of a branch lie in native directories: fast, and in no snapshot
    Add(AddArgs),
    /// List what is redirected, in a branch or in all
    List(ListArgs),
    /// End that, and remove what was built there
    Remove(RemoveArgs),
}

/// Arguments of `agentfs redirect add`.
#[derive(Debug, clap::Args)]
struct AddArgs {
    #[command(flatten)]
    target: TargetArgs,
    /// Move what the branch has there, which must be empty or not exist otherwise
    #[arg(long = "move")]
    moves: bool,
}

/// Arguments of `agentfs redirect list`.
#[derive(Debug, clap::Args)]
struct ListArgs {
    /// A worktree, a branch, or repository@branch
    #[arg(value_name = "DIR|BRANCH")]
    target: Option<PathBuf>,
}

/// Arguments of `agentfs redirect remove`.
#[derive(Debug, clap::Args)]
struct RemoveArgs {
    #[command(flatten)]
    target: TargetArgs,
}

/// Paths of a branch.
#[derive(Debug, clap::Args)]
struct TargetArgs {
    /// A worktree, a branch, or repository@branch
    #[arg(value_name = "DIR|BRANCH")]
    target: PathBuf,
    /// Relative to the current directory if that is in the branch's worktree, else to its root
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

/// Works with redirected paths.
///
/// # Errors
/// What keeps it from being done.
pub fn run(args: &Args, output: Output) -> Result<u8> {
    match &args.action {
        Action::Add(args) => add(args, output)?,
        Action::List(args) => {
            let branch = match &args.target {
                Some(target) => Some(find(target, output)?.0),
                None => None,
            };
            let params = RedirectListCall { branch };
            let found: Redirects = call(output, method::REDIRECT_LIST, &params)?;
            output.result(&found, |out| {
                if found.redirects.is_empty() {
                    writeln!(out, "Nothing is redirected.")?;
                }
                show(out, &found)
            })?;
        }
        Action::Remove(args) => {
            let (branch, paths) = args.target.resolve(output)?;
            let params = RedirectRemoveCall { branch, paths };
            let removed: Redirects = call(output, method::REDIRECT_REMOVE, &params)?;
            output.result(&removed, |out| {
                removed.redirects.iter().try_for_each(|one| {
                    let path = one.status.path.0.display();
                    writeln!(
                        out,
                        "{}@{}: {path} is not redirected any more",
                        one.repository, one.branch
                    )
                })
            })?;
        }
    }
    Ok(0)
}

fn add(args: &AddArgs, output: Output) -> Result<()> {
    let (branch, paths) = args.target.resolve(output)?;
    let params = RedirectAddCall { branch, paths, moves: args.moves };
    let mut added: Redirects = call(output, method::REDIRECT_ADD, &params)?;
    let shown = added.redirects.iter().filter_map(|one| {
        let path = &one.status.path.0;
        let dir = one.dir.as_ref().filter(|_| one.status.appears.as_deref() == Some("mount"))?;
        (is_ignored(&dir.0, path) == Some(false)).then(|| {
            format!("git does not ignore {path:?}: add the line /{} to .gitignore", path.display())
        })
    });
    let shown: Vec<_> = shown.collect();
    added.notes.extend(shown);
    output.result(&added, |out| show(out, &added))
}

fn show(out: &mut dyn Write, redirects: &Redirects) -> io::Result<()> {
    for RedirectInfo { repository, branch, dir, data, origin, status } in &redirects.redirects {
        let path = &status.path.0;
        let shown = match dir {
            Some(dir) => dir.0.join(path).display().to_string(),
            None => path.display().to_string(),
        };
        let how = match (&status.appears, &status.why) {
            (Some(how), _) => how.clone(),
            (None, Some(why)) => format!("it {why}"),
            (None, None) => "not mounted".into(),
        };
        let by = if origin == "tree" { ", by .agentfs.toml" } else { "" };
        writeln!(out, "{repository}@{branch}  {shown}  {how}{by}")?;
        writeln!(out, "  {}", data.0.display())?;
    }
    redirects.notes.iter().try_for_each(|note| writeln!(out, "  note: {note}"))
}

/// The branch that `target` names, and its worktree if it is mounted.
fn find(target: &Path, output: Output) -> Result<(String, Option<WorktreeStatus>)> {
    let status: Status = call(output, method::STATUS, &())?;
    // A name of a branch may be that of a directory: what is mounted there comes first.
    let dir = destination::absolute(target).ok();
    let text = target.to_string_lossy();
    let at = |one: &WorktreeStatus| Some(&one.dir.0) == dir.as_ref();
    let named = |one: &WorktreeStatus| match text.split_once('@') {
        Some((repository, branch)) => one.repository == repository && one.branch == branch,
        None => one.branch == *text,
    };
    let mut worktrees = status.worktrees;
    if let Some(found) = worktrees.iter().position(at) {
        let found = worktrees.swap_remove(found);
        return Ok((format!("{}@{}", found.repository, found.branch), Some(found)));
    }
    if target.is_absolute() {
        let message = format!("{} is not a worktree of this store", target.display());
        return Err(Failure::new(Kind::NotFound, message).hint("`agentfs ps` lists the worktrees"));
    }
    let found = worktrees.into_iter().find(named);
    Ok((text.into_owned(), found))
}

impl TargetArgs {
    /// The branch and the paths below its root. Only names count: nothing is followed.
    fn resolve(&self, output: Output) -> Result<(String, Vec<WirePath>)> {
        let (branch, worktree) = find(&self.target, output)?;
        let root = worktree.map(|worktree| worktree.dir.0);
        let here = std::env::current_dir().ok();
        let here = match (&root, &here) {
            (Some(root), Some(here)) => here.strip_prefix(root).unwrap_or(Path::new("")),
            _ => Path::new(""),
        };
        let within = |path: &PathBuf| within(path, root.as_deref(), here).map(WirePath);
        Ok((branch, self.paths.iter().map(within).collect::<Result<_>>()?))
    }
}

fn within(path: &Path, root: Option<&Path>, here: &Path) -> Result<PathBuf> {
    let outside = || {
        Failure::new(Kind::Refused, format!("{} is outside the worktree", path.display()))
            .hint("name it relative to the root of the worktree")
    };
    let below = match (path.is_absolute(), root) {
        (false, _) => here.join(path),
        (true, Some(root)) => path.strip_prefix(root).map_err(|_| outside())?.to_owned(),
        (true, None) => return Err(outside()),
    };
    let mut found = PathBuf::new();
    for part in below.components() {
        match part {
            Component::Normal(name) => found.push(name),
            Component::CurDir => {}
            Component::ParentDir if found.pop() => {}
            _ => return Err(outside()),
        }
    }
    match found.as_os_str().is_empty() {
        true => Err(Failure::new(Kind::Refused, "the root of a worktree cannot be redirected")),
        false => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_count_from_where_the_user_is() {
        let of = |path: &str, here: &str| {
            within(Path::new(path), Some(Path::new("/w")), Path::new(here))
                .ok()
                .map(|path| path.display().to_string())
        };
        assert_eq!(of("target", "").as_deref(), Some("target"));
        assert_eq!(of("node_modules/", "web").as_deref(), Some("web/node_modules"));
        assert_eq!(of("../target", "web").as_deref(), Some("target"));
        assert_eq!(of("/w/target", "web").as_deref(), Some("target"));
        for outside in ["..", "../x", "/etc", "/w", ".", "/wx/target"] {
            assert_eq!(of(outside, ""), None, "{outside}");
        }
    }
}
