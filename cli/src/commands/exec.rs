//! `agentfs exec`

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;

use crate::client::Client;
use crate::commands::refuse_without_fuse;
use crate::environment::Environment;
use crate::error::{Failure, Result};
use crate::exec::{Plan, Protection, directory_in, isolation, supervise};
use crate::layout::Layout;
use crate::output::Output;
use crate::progress::{Display, Meter};
use crate::protocol::{ExecBegun, ExecCall, ExecEnd, Status, WirePath, method};

/// Arguments of `agentfs exec`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A branch, a repository, or repository@revision
    branch: String,
    /// The directory at which the command sees it (default: that of the repository's worktree)
    #[arg(long, value_name = "DIR")]
    at: Option<PathBuf>,
    /// Let the command write nowhere but in the worktree and in a private /tmp
    #[arg(long)]
    isolated: bool,
    /// With --isolated, let it also write to PATH (can be repeated)
    #[arg(long, value_name = "PATH", requires = "isolated")]
    rw: Vec<PathBuf>,
    /// Say on standard error what the command is kept in
    #[arg(long, short)]
    verbose: bool,
    /// The command
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

#[derive(Serialize)]
struct Event<'a> {
    event: &'static str,
    repository: &'a str,
    branch: &'a str,
    dir: &'a WirePath,
    #[serde(flatten)]
    protection: &'a Protection,
}

/// Runs a command in a branch and returns its status.
///
/// # Errors
/// As [`supervise::run`], and what keeps the branch from being mounted.
pub fn run(args: &Args, output: Output) -> Result<u8> {
    let environment = Environment::read()?;
    let layout = Layout::new(environment.store.clone());
    refuse_without_fuse("there is no other way to run a command in a branch")?;
    let at = args.at.as_deref().map(std::fs::canonicalize).transpose().map_err(|error| {
        let dir = args.at.as_deref().unwrap_or_else(|| std::path::Path::new(""));
        Failure::io("find", dir, &error)
            .hint(format!("create it with `mkdir -p {}`", dir.display()))
    })?;
    let writable = args
        .rw
        .iter()
        .map(|path| std::fs::canonicalize(path).map_err(|error| Failure::io("find", path, &error)));
    let writable = writable.collect::<Result<Vec<_>>>()?;
    let mut client = Client::connect_or_start(&layout, &environment)?;
    let call = ExecCall {
        what: args.branch.clone(),
        at: at.as_deref().map(WirePath::from),
        pid: std::process::id(),
        keep: true,
    };
    let meter = std::sync::Arc::new(Meter::default());
    let display = Display::start(std::sync::Arc::clone(&meter), output.json);
    let begun: ExecBegun = client.request(method::EXEC_BEGIN, &call, &meter)?;
    // Its thread ends here: what follows is done by one that is alone.
    drop(display);
    for note in &begun.notes {
        writeln!(io::stderr(), "agentfs: {note}").ok();
    }
    let status: Status = client.request(method::STATUS, &(), &Meter::default())?;
    let here = std::env::current_dir().ok();
    let plan = Plan {
        control: -1,
        parent: None,
        cwd: WirePath(directory_in(&begun.at.0, &begun.source.0, here.as_deref())),
        source: begun.source.clone(),
        at: begun.at.clone(),
        others: status.worktrees.into_iter().map(|worktree| worktree.dir).collect(),
        user_namespace: false,
        isolation: match args.isolated {
            true => Some(isolation::prepare(&layout, &begun, &writable)?),
            false => None,
        },
    };
    let ran = supervise::run(plan, &args.command, &client, |protection| {
        say(args.verbose, output, &begun, protection);
    });
    if !client.has_ended() {
        let end = ExecEnd { exec: begun.exec };
        client.request::<()>(method::EXEC_END, &end, &Meter::default())?;
    }
    ran
}

/// Says on standard error, since standard output is the command's, what it runs in.
fn say(verbose: bool, output: Output, begun: &ExecBegun, protection: &Protection) {
    let (repository, branch, dir) = (&begun.repository, &begun.branch, &begun.at);
    let mut err = io::stderr().lock();
    if output.json {
        let event = Event { event: "exec", repository, branch, dir, protection };
        let line = serde_json::to_string(&event).unwrap_or_default();
        writeln!(err, "{line}").ok();
    } else if verbose {
        let kept = match protection.isolation.as_slice() {
            [] => "not isolated".to_owned(),
            [only] => {
                format!("isolated by {only} alone: this kernel has no Landlock that would do")
            }
            all => format!("isolated by {}", all.join(" and ")),
        };
        let user = if protection.user_namespace { ", in a user namespace" } else { "" };
        let proc = if protection.own_proc { "" } else { ", with the machine's /proc" };
        writeln!(err, "agentfs: {repository}@{branch} at {}: {kept}{user}{proc}", dir.0.display())
            .ok();
    }
}
