//! `agentfs clone`

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use agentfs_engine::progress::Cancel;
use agentfs_gitimport::fetch::{self, CloneOptions};

use crate::client::Client;
use crate::commands::{describe, refuse_without_fuse};
use crate::daemon::name_of;
use crate::destination;
use crate::environment::Environment;
use crate::error::{Failure, Kind, Result};
use crate::incoming::Incoming;
use crate::layout::Layout;
use crate::output::Output;
use crate::profile;
use crate::progress::{Display, Meter};
use crate::protocol::{CloneCall, MountAt, Opened, WirePath, method};

/// Arguments of `agentfs clone`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The repository: a path or a URL
    source: String,
    /// Where to mount it (default: the repository's name)
    dir: Option<PathBuf>,
    /// Check out this branch or tag instead of the repository's own
    #[arg(long, short, value_name = "BRANCH")]
    branch: Option<String>,
    /// Check out this revision, on no branch
    #[arg(long, value_name = "REV", conflicts_with = "branch")]
    rev: Option<String>,
    /// Return only when all content is in the store
    #[arg(long)]
    wait: bool,
    /// Mount nothing
    #[arg(long, conflicts_with_all = ["dir", "allow_other"])]
    no_mount: bool,
    /// Let other users enter the worktree
    #[arg(long)]
    allow_other: bool,
}

/// Fetches a repository into the store and mounts a worktree of it.
///
/// The fetch runs here, where the user's credentials and terminal are, while the daemon starts.
/// Nothing needs to be cleaned up on Ctrl-C: the daemon notices that the connection has ended.
///
/// # Errors
/// Whatever keeps it from being fetched, imported or mounted; nothing is left then.
pub fn run(args: &Args, output: Output) -> Result<u8> {
    let environment = Environment::read()?;
    let layout = Layout::new(environment.store.clone());
    let source = absolute_source(&args.source)?;
    let mount = match args.no_mount {
        true => None,
        false => {
            let dir = args.dir.clone().unwrap_or_else(|| name_of(&args.source).into());
            let dir = destination::absolute(&dir)?;
            destination::check(&dir, layout.root())?;
            refuse_without_fuse("take it in without mounting it: add --no-mount")?;
            Some(MountAt { dir: WirePath(dir), read_only: false, allow_other: args.allow_other })
        }
    };
    let meter = Arc::new(Meter::default());
    let display = Display::start(Arc::clone(&meter), output.json);
    let (client, incoming) = thread::scope(|scope| {
        let starting = scope.spawn(|| Client::connect_or_start(&layout, &environment));
        let incoming = fetch(&layout, &source, args, &meter);
        let client = starting.join().unwrap_or_else(|_| {
            Err(Failure::new(Kind::Failed, "the thread that starts the daemon has failed"))
        });
        // What is wrong with the repository matters more than what is wrong with the daemon.
        incoming.and_then(|incoming| Ok((client?, incoming)))
    })?;
    let call = CloneCall {
        source,
        incoming: Some(incoming.name()),
        branch: args.branch.clone(),
        rev: args.rev.clone(),
        mount,
        wait: args.wait,
    };
    let mut client = client;
    client.request_confirmed(method::CLONE, &call, &meter, |opened: Opened| {
        drop(display);
        output.result(&opened, |out| show(out, &opened))
    })?;
    Ok(0)
}

fn show(out: &mut dyn Write, opened: &Opened) -> io::Result<()> {
    describe(out, opened)?;
    match &opened.dir {
        Some(dir) => {
            let dir = dir.0.display();
            writeln!(out, "\nTry:  git -C {dir} status\n      agentfs umount {dir}")
        }
        None => {
            let name = &opened.repository;
            writeln!(out, "\nMount it:  agentfs mount {name}@{} DIR", opened.branch)
        }
    }
}

fn fetch(layout: &Layout, source: &str, args: &Args, meter: &Meter) -> Result<Incoming> {
    let incoming = Incoming::create(layout)?;
    let options = CloneOptions { branch: args.branch.clone(), rev: args.rev.clone() };
    fetch::clone_bare(source, &incoming.repository(), &options, meter, &Cancel::default())?;
    profile::reached("fetched");
    Ok(incoming)
}

/// `source` as git records it for a remote: a path is made absolute, a URL stays as it is.
///
/// # Errors
/// [`Kind::NotFound`] for what is no URL and no path that exists.
fn absolute_source(source: &str) -> Result<String> {
    let path = Path::new(source);
    if path.exists() {
        let path = std::path::absolute(path)
            .map_err(|error| Failure::io("find the path of", path, &error))?;
        return path.into_os_string().into_string().map_err(|path| {
            Failure::new(Kind::Refused, format!("the path {} is not UTF-8", path.display()))
                .hint("reach the repository through a link whose path is")
        });
    }
    // As git decides: `host:path`, unless a slash comes before the colon.
    let colon = source.find(':');
    let remote =
        source.contains("://") || colon.is_some_and(|colon| !source[..colon].contains('/'));
    if remote {
        return Ok(source.to_owned());
    }
    Err(Failure::new(Kind::NotFound, format!("{source} does not exist"))
        .hint("name a repository by an existing path or by a URL"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_a_path_if_it_exists_and_a_url_if_it_looks_like_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().to_str().unwrap();
        assert_eq!(absolute_source(path).unwrap(), path);
        for url in ["https://host/x.git", "host:x.git", "user@host:a/b", "file:///x"] {
            assert_eq!(absolute_source(url).unwrap(), url);
        }
        for missing in ["/no/such/path", "./x:y", "nothing"] {
            assert_eq!(absolute_source(missing).unwrap_err().kind, Kind::NotFound, "{missing}");
        }
    }
}
