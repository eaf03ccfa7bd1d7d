//! The daemon of a store: it owns the database, serves all mounts and answers on the control socket.
//!
//! One process at a time is the daemon: the one that holds the lock on `daemon.lock`. It recovers,
//! listens, and then says so to whoever started it. tokio runs on one thread and carries messages;
//! every call runs on a thread of the blocking pool, and file systems on threads of their own.

mod backup;
mod branches;
mod calls;
mod changed;
mod check;
mod execs;
mod git_states;
mod ingest;
mod keeper;
mod laps;
mod memory;
mod names;
mod note;
mod opening;
mod recover;
mod redirects;
mod rename;
mod repair;
mod report;
mod repositories;
mod rpc;
mod service;
mod show;
mod snapshots;
mod state;
mod switch;
mod target;
mod upkeep;
mod views;
mod worktrees;

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use agentfs_engine::store::Store;
use agentfs_fuse::Levers;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, level_filters::LevelFilter};

pub use repositories::name_of;

use crate::client::{OCCUPIED, READY};
use crate::daemon::keeper::Keeper;
use crate::daemon::rpc::Call;
use crate::daemon::service::Methods;
use crate::daemon::state::Daemon;
use crate::daemon::worktrees::Slot;
use crate::environment::Environment;
use crate::error::{Failure, Kind, Result};
use crate::layout::Layout;
use crate::lock;
use crate::protocol::{MountCall, Opened};
use crate::socket;

/// How often a daemon in the foreground looks whether its mount is still there.
const LOOK: Duration = Duration::from_millis(100);
/// How long a process that ends may take to let go of the store.
const LETTING_GO: Duration = Duration::from_secs(5);

/// Is the daemon in the background until it is told to stop. What keeps it from being that goes to
/// standard output, on which [`crate::client`] listens.
pub fn run(layout: &Layout, environment: &Environment) -> u8 {
    // Fails only for the leader of a process group, which has no terminal to part from.
    rustix::process::setsid().ok();
    // A directory that is somebody's current one cannot be unmounted.
    std::env::set_current_dir("/").ok();
    log(environment);
    match start(layout, environment) {
        Err(failure) => {
            error!("cannot start: {failure}");
            say(&serde_json::to_string(&failure).unwrap_or_default());
            failure.kind.exit_code()
        }
        Ok(None) => {
            say(OCCUPIED);
            0
        }
        Ok(Some(running)) => {
            say(READY);
            // The other end waits for nothing more; what is printed from now on goes to the log.
            rustix::stdio::dup2_stdout(io::stderr()).ok();
            running.serve(None)
        }
    }
}

/// Is the daemon in the foreground, with one mount that ends with it and with which it ends.
///
/// # Errors
/// [`Kind::StoreInUse`] if the store has a daemon; whatever keeps it from being mounted.
pub fn run_in_foreground(
    layout: &Layout,
    environment: &Environment,
    mount: &MountCall,
    ready: impl FnOnce(Opened) -> Result<()>,
) -> Result<u8> {
    layout.create()?;
    log(environment);
    let running = start(layout, environment)?.ok_or_else(|| {
        Failure::new(
            Kind::StoreInUse,
            format!("the store {} has a daemon already", layout.root().display()),
        )
        .hint("mount without --foreground, or end the daemon with `agentfs daemon stop`")
    })?;
    let answer = calls::mount(&running.daemon, mount, &Call::default(), false)?;
    if let Some(after) = answer.after {
        after();
    }
    let opened = serde_json::from_value(answer.value)
        .map_err(|error| Failure::new(Kind::Failed, error.to_string()))?;
    ready(opened)?;
    Ok(running.serve(Some(&mount.at.dir.0)))
}

/// A daemon that holds its lock and listens.
struct Running {
    daemon: Arc<Daemon>,
    listener: UnixListener,
    _lock: File,
}

/// Takes the lock, opens the store, recovers and listens. `None` if another process has the lock.
///
/// # Errors
/// [`Kind::ForeignSocket`] if a process that is no daemon listens on the control socket, which is
/// then left to it; whatever keeps the store from being opened or the socket from being made.
fn start(layout: &Layout, environment: &Environment) -> Result<Option<Running>> {
    memory::limit_heaps();
    let levers = levers(environment)?;
    let Some(lock) = lock::take(&layout.lock())? else {
        return Ok(None);
    };
    socket::refuse_stranger(&layout.socket())?;
    let store = open_store(layout.root())?;
    let daemon = Daemon::new(layout.clone(), store, levers);
    recover::recover(&daemon)?;
    let listener = socket::listen(&layout.socket())?;
    info!("process {} serves {}", std::process::id(), layout.root().display());
    Ok(Some(Running { daemon, listener, _lock: lock }))
}

/// Opens the store. A process that has just been told to end may hold it a moment longer than the
/// daemon's lock, which we have.
fn open_store(dir: &Path) -> Result<Arc<Store>> {
    let start = Instant::now();
    loop {
        match Store::open(dir) {
            Err(agentfs_engine::Error::InUse { .. }) if start.elapsed() < LETTING_GO => {
                std::thread::sleep(Duration::from_millis(1));
            }
            opened => return Ok(opened?),
        }
    }
}

impl Running {
    /// Serves until it is told to stop, or until `foreground` is not mounted any more; then unmounts
    /// everything. What was mounted stays on record, so the next daemon mounts it again.
    fn serve(self, foreground: Option<&Path>) -> u8 {
        // Dropped in the opposite order: the lock goes last, when the store is closed.
        let Self { _lock, daemon, listener } = self;
        if let Err(failure) = recover::resume(&daemon) {
            error!("cannot go on with the ingest: {failure}");
        }
        redirects::clean_in_background(&daemon);
        let keeper = Keeper::start(&daemon);
        let served = serve(&daemon, listener, foreground);
        if let Some(keeper) = keeper {
            keeper.stop();
        }
        if let Err(error) = &served {
            error!("the control socket failed: {error}");
        }
        std::fs::remove_file(daemon.layout.socket()).ok();
        daemon.ingest.stop();
        daemon.worktrees.close_all();
        if let Err(error) = daemon.store.writer().flush() {
            error!("{error}");
        }
        info!("stopped");
        if served.is_ok() { 0 } else { Kind::Failed.exit_code() }
    }
}

fn serve(
    daemon: &Arc<Daemon>,
    listener: UnixListener,
    foreground: Option<&Path>,
) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let served = runtime.block_on(async {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        let service = Arc::new(Methods(Arc::clone(daemon)));
        let stop = daemon.stop.subscribe();
        let serving = rpc::serve(listener, service, stop);
        let ending = async {
            tokio::select! {
                _ = terminate.recv() => info!("SIGTERM"),
                _ = interrupt.recv() => info!("SIGINT"),
                _ = hang_up.recv(), if foreground.is_some() => info!("SIGHUP"),
                () = unmounted(daemon, foreground) => info!("the mount is gone"),
            }
            daemon.stop.send_replace(true);
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = serving => {}
            () = ending => {}
        }
        Ok(())
    });
    // A call that does not notice that it is cancelled must not keep the process.
    runtime.shutdown_background();
    served
}

/// Ends when the worktree at `dir` is not mounted any more; never without one.
async fn unmounted(daemon: &Daemon, dir: Option<&Path>) {
    let Some(dir) = dir else {
        return std::future::pending().await;
    };
    let there = |(other, slot): (_, Slot)| match slot {
        Slot::Up(up) => dir == other && up.mounted.is_alive(),
        Slot::Busy(..) => dir == other,
        Slot::Down(..) => false,
    };
    while daemon.worktrees.list().into_iter().any(there) {
        tokio::time::sleep(LOOK).await;
    }
}

fn levers(environment: &Environment) -> Result<Levers> {
    let mut levers = Levers::default();
    let lists = [
        ("AGENTFS_LEVERS_ON", &environment.levers_on, true),
        // Last: whoever needs one off for rescue has it off.
        ("AGENTFS_LEVERS_OFF", &environment.levers_off, false),
    ];
    for (variable, names, on) in lists {
        if let Some(name) = names.iter().find(|name| !levers.switch(name, on)) {
            return Err(Failure::new(
                Kind::Usage,
                format!("{variable} names {name:?}, which is no lever"),
            )
            .hint(format!("the levers are {}", agentfs_fuse::LEVERS.join(", "))));
        }
    }
    Ok(levers)
}

fn log(environment: &Environment) {
    let level = environment.log.as_deref().and_then(|level| level.parse().ok());
    tracing_subscriber::fmt()
        .with_max_level(level.unwrap_or(LevelFilter::INFO))
        .with_writer(io::stderr)
        .init();
}

fn say(word: &str) {
    // Whoever started it may be gone; the daemon serves the next one.
    let mut out = io::stdout().lock();
    writeln!(out, "{word}").and_then(|()| out.flush()).ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lever_that_does_not_exist_is_named() {
        let mut environment = Environment {
            store: "/s".into(),
            log: None,
            levers_off: vec!["prewarm".into()],
            levers_on: vec!["writeback_cache".into(), "prewarm".into()],
        };
        assert!(!levers(&environment).unwrap().prewarm, "off is for rescue");
        assert!(levers(&environment).unwrap().writeback_cache);
        environment.levers_off = vec!["no_such".into()];
        let failure = levers(&environment).unwrap_err();
        assert!(failure.message.contains("no_such") && failure.hint.unwrap().contains("prewarm"));
    }
}
