//! Git that writes: edits of tracked files and their commit, and checkouts far away.

use anyhow::{Context, Result, ensure};

use super::{Done, Stage, Step, Turn, quiet_git};
use crate::loops;
use crate::phases::clean_status;
use crate::process::Run;
use crate::source::Source;
use crate::writing::small::EDITED_TOGETHER;
use crate::writing::{Kind, Task};

/// How far apart the commits are that are checked out.
const APART: usize = 300;
/// Files changed in a commit.
const CHANGED: usize = 100;
/// The time of every commit, so that the ids are the same everywhere.
const TIME: &str = "1700000000 +0000";

pub const COMMITTING: &[Step] = &[
    Step { id: "edit_synced", feeds: &["commit"], run: edit },
    Step { id: "commit", feeds: &[], run: commit },
];

pub const CHECKING_OUT: &[Step] = &[Step { id: "checkout", feeds: &[], run: checkout }];

/// Commits along the first parents, [`APART`] apart, or the two ends of a shorter history.
pub fn commits(source: &Source) -> Result<Vec<String>> {
    let list = Run::git(&source.git_dir).args(["rev-list", "--first-parent", "HEAD"]).ok()?.text();
    let all: Vec<&str> = list.lines().collect();
    let step = APART.min(all.len().saturating_sub(1)).max(1);
    Ok(all.iter().step_by(step).map(|commit| (*commit).to_owned()).collect())
}

/// The commit of a round: there and back along the list, beginning with the second.
fn destination(commits: &[String], round: usize) -> &str {
    let last = commits.len() - 1;
    let at = (round + 1) % (2 * last);
    &commits[if at > last { 2 * last - at } else { at }]
}

fn checkout(stage: &Stage<'_>, turn: &Turn<'_>) -> Result<Done> {
    let (root, commit) = (&turn.site.root, destination(&stage.commits, turn.round));
    let checkout = quiet_git(root).args(["checkout", "--quiet", "--detach", commit]);
    let answer = turn.timed(stage, || checkout.ok())?;
    let head = Run::git(root).args(["rev-parse", "HEAD"]).ok()?.text();
    ensure!(head == commit, "{} is at {head}, not at {commit}", root.display());
    clean_status(root)?;
    Ok(Done::command(&answer))
}

/// Edits other files in every round, as long as there are.
fn edit(stage: &Stage<'_>, turn: &Turn<'_>) -> Result<Done> {
    let all = stage.lab.fresh("list");
    loops::list_files(&turn.site.root, &all)?;
    let all = std::fs::read(&all)?;
    let paths: Vec<&[u8]> = all.split(|byte| *byte == 0).filter(|path| !path.is_empty()).collect();
    let count = CHANGED.min(paths.len());
    let chosen = paths.iter().cycle().skip(turn.round * count % paths.len().max(1)).take(count);
    let mut list = Vec::new();
    for path in chosen {
        list.extend_from_slice(path);
        list.push(0);
    }
    let path = stage.lab.fresh("list");
    std::fs::write(&path, list).with_context(|| format!("cannot write {}", path.display()))?;
    let edits = (count / EDITED_TOGETHER) as u64;
    let task = Task::new(Kind::Edit, edits, turn.seed() << 40);
    let tally = turn.measure(stage, &turn.site.root, &Task { list: Some(path), ..task })?;
    Ok(Done { syncs: count as u64, ..Done::tally(&tally) })
}

fn commit(stage: &Stage<'_>, turn: &Turn<'_>) -> Result<Done> {
    let root = &turn.site.root;
    let commit = quiet_git(root).args(["commit", "--quiet", "--all", "-m", "a hundred files"]);
    let commit = commit.env("GIT_AUTHOR_DATE", TIME).env("GIT_COMMITTER_DATE", TIME);
    let answer = turn.timed(stage, || commit.ok())?;
    let tree = Run::git(root).args(["rev-parse", "HEAD^{tree}"]).ok()?.text();
    let changed = Run::git(root).args(["diff", "--name-only", "HEAD~1", "HEAD"]).ok()?.text();
    stage.agree(turn, "the committed tree", format!("{tree}\n{changed}"))?;
    clean_status(root)?;
    Ok(Done::command(&answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_go_there_and_back() {
        let commits: Vec<String> = ["a", "b", "c"].map(str::to_owned).to_vec();
        let way: Vec<&str> = (0..6).map(|round| destination(&commits, round)).collect();
        assert_eq!(way, ["b", "c", "b", "a", "b", "c"]);
        let way: Vec<&str> = (0..3).map(|round| destination(&commits[..2], round)).collect();
        assert_eq!(way, ["b", "a", "b"]);
    }
}
