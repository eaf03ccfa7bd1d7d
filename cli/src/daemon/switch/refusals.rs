//! What keeps a move from being made, in words.

use std::path::Path;

use agentfs_gitimport::switch::{Goal, Refusal};

use crate::error::{Failure, Kind};

/// How many paths a refusal names.
const NAMED_MAX: usize = 10;

/// What keeps a move from being made, for the user.
pub(super) fn refused(dir: &Path, goal: &Goal, refusal: &Refusal) -> Failure {
    let (dir, to) = (dir.display(), &goal.name);
    let refuse = |message: String| Failure::new(Kind::Refused, message);
    match refusal {
        Refusal::Unmerged(paths) => {
            refuse(format!("a merge in {dir} is not resolved: {}", list(paths))).hint(
                "resolve it and `git add` the files; or throw it away with --discard, after which \
                 `agentfs undo` brings it back",
            )
        }
        Refusal::Local(paths) => refuse(format!(
            "local changes of {dir} would be lost by the switch to {to}: {}",
            list(paths)
        ))
        .hint(
            "commit or stash them; or throw them away with --discard, after which `agentfs undo` \
             brings them back",
        ),
        Refusal::Untracked(paths) => refuse(format!(
            "untracked files of {dir} would be lost by the switch to {to}: {}",
            list(paths)
        ))
        .hint("move or remove them, or throw them away with --discard"),
        Refusal::Form(what, hint) => refuse(format!("{dir} cannot be moved: {what}")).hint(*hint),
    }
}

pub(super) fn not_empty(dir: &Path, path: &[u8]) -> Failure {
    let message = format!(
        "the directory {} of {} is to be a file, and something else than git's is in it",
        shown(path),
        dir.display()
    );
    Failure::new(Kind::Refused, message).hint("move or remove what is in it, then switch again")
}

pub(super) fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn list(paths: &[Vec<u8>]) -> String {
    let mut text =
        paths.iter().take(NAMED_MAX).map(|path| shown(path)).collect::<Vec<_>>().join(", ");
    if let more @ 1.. = paths.len().saturating_sub(NAMED_MAX) {
        text.push_str(&format!(" and {more} more"));
    }
    text
}
