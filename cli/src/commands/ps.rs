//! `agentfs ps`

use std::io::{self, Write};

use crate::commands::{call, short};
use crate::error::Result;
use crate::output::{Output, table};
use crate::protocol::{BranchStatus, Status, method};

/// Arguments of `agentfs ps`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Lists repositories and worktrees.
///
/// # Errors
/// As [`call`].
pub fn run(_: &Args, output: Output) -> Result<u8> {
    let status: Status = call(output, method::STATUS, &())?;
    output.result(&status, |out| list(out, &status))?;
    Ok(0)
}

fn list(out: &mut dyn Write, status: &Status) -> io::Result<()> {
    if status.repositories.is_empty() {
        return writeln!(
            out,
            "The store {} is empty. Begin with `agentfs clone <url|path>`.",
            status.store.0.display()
        );
    }
    let mut rows = Vec::new();
    for repository in &status.repositories {
        for branch in &repository.branches {
            rows.push(vec![
                repository.name.clone(),
                branch.name.clone(),
                branch.commit.as_deref().map_or("-", short).to_owned(),
                content(branch),
                repository.origin.clone().unwrap_or_else(|| "-".into()),
            ]);
        }
        if repository.branches.is_empty() {
            let origin = repository.origin.clone().unwrap_or_else(|| "-".into());
            let none = || "-".to_owned();
            rows.push(vec![repository.name.clone(), none(), none(), none(), origin]);
        }
    }
    table(out, &["REPOSITORY", "BRANCH", "COMMIT", "CONTENT", "ORIGIN"], &rows)?;
    if status.worktrees.is_empty() {
        return writeln!(out, "\nNothing is mounted.");
    }
    writeln!(out)?;
    let rows: Vec<_> = status
        .worktrees
        .iter()
        .map(|worktree| {
            let state = match &worktree.failure {
                Some(why) => format!("not mounted: {why}"),
                None if !worktree.mounted => "not mounted".into(),
                None if worktree.read_only => "mounted read-only".into(),
                None => "mounted".into(),
            };
            let redirected = worktree.redirects.len();
            let state = match redirected {
                0 => state,
                1 => format!("{state}, 1 path redirected"),
                more => format!("{state}, {more} paths redirected"),
            };
            vec![
                worktree.dir.0.display().to_string(),
                worktree.repository.clone(),
                worktree.branch.clone(),
                state,
            ]
        })
        .collect();
    table(out, &["WORKTREE", "REPOSITORY", "BRANCH", "STATE"], &rows)
}

/// How much of a branch's content is in the store.
pub fn content(branch: &BranchStatus) -> String {
    match (&branch.ingest, &branch.failure) {
        _ if branch.ingested => "stored".into(),
        (Some(ingest), _) => match ingest.objects_total {
            Some(total) if total > 0 => format!("storing, {}%", ingest.objects * 100 / total),
            _ => "storing".into(),
        },
        (None, Some(why)) => format!("failed: {why}"),
        (None, None) => "waiting".into(),
    }
}
