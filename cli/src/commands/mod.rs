//! The commands, one a file. Each reads its arguments, calls the daemon and prints.

pub mod attach;
pub mod backup;
pub mod branch;
pub mod clone;
pub mod completions;
pub mod daemon;
pub mod diff;
pub mod doctor;
pub mod du;
pub mod exec;
pub mod export;
pub mod fsck;
pub mod fsmonitor;
pub mod gc;
pub mod materialize;
pub mod mount;
pub mod ps;
pub mod redirect;
pub mod snapshot;
pub mod stats;
pub mod status;
pub mod switch;
mod trees;
pub mod umount;
pub mod version;
pub mod worktree;

use std::io::{self, Write};
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::args::Command;
use crate::client::Client;
use crate::environment::Environment;
use crate::error::{Failure, Kind, Result};
use crate::exec::{init, namespace};
use crate::layout::Layout;
use crate::output::{Output, count};
use crate::progress::{Display, Meter};
use crate::protocol::Opened;

/// Runs `command` and returns the exit code.
///
/// # Errors
/// Whatever keeps it from its end.
pub fn run(command: Command, output: Output) -> Result<u8> {
    match command {
        Command::Clone(args) => clone::run(&args, output),
        Command::Attach(args) => attach::run(&args, output),
        Command::Mount(args) => mount::run(&args, output),
        Command::Umount(args) => umount::run(&args, output),
        Command::Exec(args) => exec::run(&args, output),
        Command::Branch(args) => branch::run(&args, output),
        Command::Snapshot(args) => snapshot::run(&args, output),
        Command::Switch(args) => switch::run(&args, output),
        Command::Undo(args) => snapshot::undo(&args, output),
        Command::Diff(args) => diff::run(&args, output),
        Command::Export(args) => export::run(&args, output),
        Command::Materialize(args) => materialize::run(&args, output).map(|()| 0),
        Command::Backup(args) => backup::backup(&args, output).map(|()| 0),
        Command::Restore(args) => backup::restore(&args, output),
        Command::Redirect(args) => redirect::run(&args, output),
        Command::Worktree(args) => worktree::run(&args, output),
        Command::ExecNamespace(args) => namespace::run(&args),
        Command::ExecInit(args) => init::run(&args),
        Command::Status(args) => status::run(&args, output),
        Command::Ps(args) => ps::run(&args, output),
        Command::Stats(args) => stats::run(&args, output),
        Command::Doctor(args) => doctor::run(&args, output),
        Command::Fsck(args) => fsck::run(&args, output),
        Command::Fsmonitor(args) => fsmonitor::run(&args),
        Command::Gc(args) => gc::run(&args, output),
        Command::Du(args) => du::run(&args, output),
        Command::Daemon(args) => daemon::run(&args, output),
        Command::Completions(args) => completions::run(&args),
        Command::Version(args) => version::run(&args, output),
    }
}

/// Calls the daemon, started if need be, and shows the progress of the call meanwhile.
///
/// # Errors
/// As [`Client::connect_or_start`] and [`Client::request`].
pub fn call<R: DeserializeOwned>(
    output: Output,
    method: &str,
    params: &impl Serialize,
) -> Result<R> {
    let environment = Environment::read()?;
    let layout = Layout::new(environment.store.clone());
    let mut client = Client::connect_or_start(&layout, &environment)?;
    let meter = Arc::new(Meter::default());
    let _display = Display::start(Arc::clone(&meter), output.json);
    client.request(method, params, &meter)
}

/// Has the daemon make or mount something, and prints what that has brought about. It is undone if it cannot
/// be printed.
///
/// # Errors
/// As [`call`].
pub fn open(output: Output, method: &str, params: &impl Serialize) -> Result<()> {
    let environment = Environment::read()?;
    let layout = Layout::new(environment.store.clone());
    let mut client = Client::connect_or_start(&layout, &environment)?;
    let meter = Arc::new(Meter::default());
    let display = Display::start(Arc::clone(&meter), output.json);
    client.request_confirmed(method, params, &meter, |opened: Opened| {
        drop(display);
        output.result(&opened, |out| describe(out, &opened))
    })
}

/// Refuses to begin what would end with a mount on a machine that has no way to mount.
///
/// # Errors
/// [`Kind::CannotMount`], with `otherwise` as what else can be done.
pub fn refuse_without_fuse(otherwise: &str) -> Result<()> {
    let probe = agentfs_fuse::probe();
    let (message, hint) = if probe.device == agentfs_fuse::Device::Missing {
        (
            "nothing can be mounted: there is no /dev/fuse",
            "load the module with `modprobe fuse`, or start the container with \
             `--device /dev/fuse --cap-add SYS_ADMIN`",
        )
    } else if !probe.root && probe.fusermount3.is_none() {
        (
            "nothing can be mounted: an ordinary user needs fusermount3, which is not installed",
            "install the package fuse3, or run as root",
        )
    } else {
        return Ok(());
    };
    Err(Failure::new(Kind::CannotMount, message).hint(format!("{hint}; or {otherwise}")))
}

/// Prints for people what clone, attach and mount have brought about.
///
/// # Errors
/// What `out` refuses.
pub fn describe(out: &mut dyn Write, opened: &Opened) -> io::Result<()> {
    let Opened { repository, branch, commit, .. } = opened;
    let at = match commit {
        Some(commit) if opened.detached => format!("detached at {}", short(commit)),
        Some(commit) => format!("{branch} at {}", short(commit)),
        None => format!("{branch}, no commit yet"),
    };
    match &opened.dir {
        Some(dir) => writeln!(out, "{}: {repository}, {at}", dir.0.display())?,
        None => writeln!(out, "{repository}: {at}")?,
    }
    let ingest = if opened.ingested { "all in the store" } else { "the store takes in the rest" };
    writeln!(out, "  {}, {ingest}", count(opened.entries, "entry").replace("entrys", "entries"))?;
    if opened.dir.is_some() && opened.read_only {
        writeln!(out, "  mounted read-only")?;
    }
    opened.notes.iter().try_for_each(|note| writeln!(out, "  note: {note}"))
}

/// The first digits of a commit id.
pub fn short(commit: &str) -> &str {
    commit.get(..12).unwrap_or(commit)
}

/// The day, in UTC, of a moment in seconds since 1970.
pub fn day(seconds: i64) -> String {
    // Years that begin in March have their odd day at the end; 146,097 days are 400 of them.
    let days = seconds.div_euclid(86_400).saturating_add(719_468);
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (month, later) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    format!("{:04}-{month:02}-{day:02}", year + era * 400 + later)
}

#[cfg(test)]
mod tests {
    use super::day;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01"),
            (-1, "1969-12-31"),
            (951_782_399, "2000-02-28"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_709_164_800, "2024-02-29"),
            (1_798_761_599, "2026-12-31"),
            (1_798_761_600, "2027-01-01"),
            (4_107_542_400, "2100-03-01"),
        ] {
            assert_eq!(day(seconds), expected, "{seconds}");
        }
    }
}
