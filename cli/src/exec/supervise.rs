//! The process that the user has started: it passes signals on and ends as the command ends.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::client::Client;
use crate::error::{Failure, Kind, Result};
use crate::exec::{Order, Plan, Protection, Report, kernel, namespace};
use crate::wire;

/// How long a command may take to end by itself when the daemon, and with it its worktree, has gone.
const FAREWELL: Duration = Duration::from_secs(2);

/// Runs `command` as `plan` says and returns its status: of a command that a signal has ended,
/// 128 and the number of that. `started` is called when it runs.
///
/// # Errors
/// What keeps it from running; [`Kind::Daemon`] if the daemon ends before it.
pub fn run(
    mut plan: Plan,
    command: &[OsString],
    client: &Client,
    started: impl Fn(&Protection),
) -> Result<u8> {
    let failed =
        |error: io::Error| Failure::new(Kind::Failed, format!("cannot run a command: {error}"));
    let terminal = Terminal::find();
    let signals = kernel::Signals::new().map_err(failed)?;
    let (control, theirs) = UnixStream::pair().map_err(failed)?;
    plan.control = theirs.as_raw_fd();
    plan.parent = Some(std::process::id());
    let text = serde_json::to_string(&plan).map_err(|error| failed(error.into()))?;
    // This process has one thread, which starts nothing else.
    kernel::set_inherited(&theirs, true).map_err(failed)?;
    let mut stage = Command::new("/proc/self/exe");
    stage.arg0("agentfs").arg(namespace::NAME).arg(text).arg("--").args(command);
    let child = stage.spawn().map_err(failed)?;
    drop(theirs);
    let mut supervisor = Supervisor { signals, control, child, last: None, gone_since: None };
    supervisor.watch(client, started);
    let ended = supervisor.end();
    terminal.take_back();
    ended
}

struct Supervisor {
    signals: kernel::Signals,
    control: UnixStream,
    child: Child,
    last: Option<Report>,
    /// Since when the daemon is gone.
    gone_since: Option<Instant>,
}

impl Supervisor {
    /// Passes signals on until the command has ended.
    fn watch(&mut self, client: &Client, started: impl Fn(&Protection)) {
        let Ok(reports) = self.control.try_clone() else { return };
        let mut reports = BufReader::new(reports);
        loop {
            let mut fds = vec![
                PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN),
                PollFd::new(&self.control, PollFlags::IN),
            ];
            if self.gone_since.is_none() {
                fds.push(PollFd::from_borrowed_fd(client.as_fd(), PollFlags::IN));
            }
            let limit = self.gone_since.map(|since| FAREWELL.saturating_sub(since.elapsed()));
            let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
            poll(&mut fds, limit.as_ref()).ok();
            let [reported, left] =
                [1, 2].map(|at: usize| fds.get(at).is_some_and(|fd| !fd.revents().is_empty()));
            drop(fds);
            while let Some(signal) = self.signals.next() {
                self.pass_on(signal);
            }
            if reported && !self.take(&mut reports, &started) {
                return;
            }
            if left && client.has_ended() {
                self.gone_since = Some(Instant::now());
                self.order(libc::SIGTERM);
                // A stopped command would not notice.
                self.order(libc::SIGCONT);
            }
            if self.gone_since.is_some_and(|since| since.elapsed() >= FAREWELL) {
                return;
            }
        }
    }

    fn pass_on(&self, signal: i32) {
        if signal != libc::SIGCHLD {
            kernel::wait_for_group_signals();
            self.order(signal);
        }
    }

    fn order(&self, signal: i32) {
        // Its end is noticed where reports are read.
        io::Write::write_all(&mut &self.control, &wire::encode(&Order::Signal(signal))).ok();
    }

    /// Takes what the other end reports; false at its end.
    fn take(
        &mut self,
        reports: &mut BufReader<UnixStream>,
        started: &impl Fn(&Protection),
    ) -> bool {
        loop {
            let mut line = Vec::new();
            let Ok(1..) = reports.read_until(b'\n', &mut line) else { return false };
            match serde_json::from_slice(&line) {
                Ok(Report::Started(protection)) => started(&protection),
                // The shell that waits for this process is to see what has happened.
                Ok(Report::Stopped) => {
                    let own = i32::try_from(std::process::id()).unwrap_or(0);
                    kernel::kill(own, libc::SIGSTOP);
                }
                Ok(report) => self.last = Some(report),
                Err(error) => {
                    let why = format!("a stage of agentfs says what it should not: {error}");
                    self.last = Some(Report::Failed(Failure::new(Kind::Failed, why)));
                    return false;
                }
            }
            if reports.buffer().is_empty() {
                return true;
            }
        }
    }

    /// Waits until all processes of the command are gone, and says how it has ended.
    fn end(mut self) -> Result<u8> {
        if self.last.is_none() {
            self.child.kill().ok();
        }
        // It ends after the process namespace, and that after all that are in it.
        let status = self.child.wait();
        match self.last {
            Some(Report::Failed(failure)) => Err(failure),
            _ if self.gone_since.is_some() => {
                Err(Failure::new(Kind::Daemon, "the daemon has ended, and the command with it")
                    .hint("what it had written is kept; daemon.log in the store says why it ended"))
            }
            Some(Report::NotStarted(status, why)) => {
                // As a shell does, and with its status.
                io::Write::write_all(&mut io::stderr(), format!("agentfs: {why}\n").as_bytes())
                    .ok();
                Ok(status)
            }
            Some(Report::Exited(status)) => Ok(status),
            Some(Report::Killed(signal)) => Ok(signal.saturating_add(128)),
            _ => Err(Failure::new(
                Kind::Failed,
                format!(
                    "a process of agentfs was killed, and the command with it: {}",
                    status.map_or_else(|error| error.to_string(), |status| status.to_string())
                ),
            )),
        }
    }
}

/// The terminal of this process, if there is one and this process is in its foreground.
struct Terminal {
    file: Option<File>,
}

impl Terminal {
    fn find() -> Self {
        let file = File::open("/dev/tty").ok();
        let own = kernel::group_of(0);
        Self { file: file.filter(|file| own > 0 && kernel::foreground(file) == own) }
    }

    /// A command with job control leaves the terminal to a process group that is gone, which it
    /// cannot tell from inside. What comes after it in the same group is to have it again.
    fn take_back(&self) {
        let Some(file) = &self.file else { return };
        let own = kernel::group_of(0);
        if kernel::foreground(file) != own {
            kernel::take_foreground(file, own);
        }
    }
}
