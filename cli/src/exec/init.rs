//! The first process of the command's process namespace.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{WaitOptions, wait};
use rustix::thread::{
    CapabilitySet, clear_ambient_capability_set, remove_capability_from_bounding_set,
};

use crate::environment;
use crate::error::{Failure, Kind, Result};
use crate::exec::{Order, Plan, Protection, Report, StageArgs, kernel, landlock, namespace};
use crate::wire;

/// Name of the hidden command.
pub const NAME: &str = "exec-init";

/// How long a signal to the process group may be ahead of the supervisor's word about it.
const AHEAD_LIMIT: Duration = Duration::from_secs(1);

/// With these, root could undo what `--isolated` does, or reach devices and memory past it.
const TAKEN: [CapabilitySet; 8] = [
    CapabilitySet::SYS_ADMIN,
    CapabilitySet::SYS_MODULE,
    CapabilitySet::SYS_RAWIO,
    CapabilitySet::SYS_PTRACE,
    CapabilitySet::SYS_BOOT,
    CapabilitySet::MKNOD,
    CapabilitySet::DAC_READ_SEARCH,
    CapabilitySet::BPF,
];

/// Runs the command to its end. What it leaves behind is killed by the kernel when this process
/// ends.
///
/// # Errors
/// None: what fails is reported to the supervisor.
pub fn run(args: &StageArgs) -> Result<u8> {
    let plan: Plan = serde_json::from_str(&args.plan)
        .map_err(|error| Failure::new(Kind::Usage, format!("no plan: {error}")))?;
    let control = kernel::inherited(plan.control)
        .map_err(|error| Failure::new(Kind::Usage, format!("no socket: {error}")))?;
    let mut control = UnixStream::from(control);
    let last = serve(&plan, args, &control).unwrap_or_else(|failure| Some(Report::Failed(failure)));
    if let Some(report) = last {
        // A supervisor that is gone wants to know nothing.
        control.write_all(&wire::encode(&report)).ok();
    }
    Ok(0)
}

/// What is to be said last; nothing if there is nobody to say it to.
fn serve(plan: &Plan, args: &StageArgs, control: &UnixStream) -> Result<Option<Report>> {
    namespace::die_with(None)?;
    let failed = |error: io::Error| Failure::new(Kind::Failed, format!("cannot watch: {error}"));
    let signals = kernel::Signals::new().map_err(failed)?;
    let protection = protect(plan)?;
    let mut command = Command::new(&args.command[0]);
    command.args(&args.command[1..]).current_dir(&plan.cwd.0).env("PWD", &plan.cwd.0);
    if plan.isolation.is_some() {
        // A `gc` that git begins by itself would pack references and objects that are not this
        // branch's: it could not, and would say so after each commit.
        environment::git_settings(&[("gc.auto", "0"), ("maintenance.auto", "false")])
            .into_iter()
            .for_each(|(name, value)| {
                command.env(name, value);
            });
    }
    kernel::unblock_signals_in(&mut command);
    let child = match command.spawn() {
        Ok(child) => i32::try_from(child.id()).unwrap_or(-1),
        Err(error) => {
            let status = status_of(&args.command[0], &error);
            let why = format!("{}: {error}", args.command[0].display());
            return Ok(Some(Report::NotStarted(status, why)));
        }
    };
    let say = |report: Report| (&mut &*control).write_all(&wire::encode(&report)).is_ok();
    if !say(Report::Started(protection)) {
        return Ok(None);
    }
    let mut watch = Watch { child, signals, seen: HashMap::new() };
    let mut orders = BufReader::new(control);
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(watch.signals.as_fd(), PollFlags::IN),
            PollFd::new(control, PollFlags::IN),
        ];
        poll(&mut fds, None).ok();
        let ordered = !fds[1].revents().is_empty();
        watch.look();
        if ordered && !watch.obey(&mut orders) {
            return Ok(None);
        }
        for report in watch.reap() {
            if report != Report::Stopped {
                return Ok(Some(report));
            }
            say(report);
        }
    }
}

/// The status with which a shell would say that `program` cannot be started.
fn status_of(program: &OsStr, error: &io::Error) -> u8 {
    let found = match error.kind() {
        io::ErrorKind::NotFound => false,
        // So says the system also when it may not look into a directory of the search path.
        io::ErrorKind::PermissionDenied => {
            program.as_encoded_bytes().contains(&b'/') || environment::is_on_path(program)
        }
        _ => true,
    };
    if found { 126 } else { 127 }
}

/// Restricts this process, and the command with it.
fn protect(plan: &Plan) -> Result<Protection> {
    let isolated = plan.isolation.is_some();
    let mut protection = Protection {
        user_namespace: plan.user_namespace,
        own_proc: namespace::mount_proc(isolated),
        ..Protection::default()
    };
    if let Some(isolation) = &plan.isolation {
        for capability in TAKEN {
            // Whoever may not has none of them to lose: an ordinary user.
            remove_capability_from_bounding_set(capability).ok();
        }
        protection.isolation.push("mounts".into());
        if let Some(abi) = landlock::abi() {
            landlock::restrict(&plan.at.0, isolation)?;
            protection.isolation.push("landlock".into());
            protection.landlock_abi = Some(abi);
        }
    }
    // An ordinary user's command has no rights in its namespaces that it would not have outside.
    clear_ambient_capability_set().map_err(|errno| {
        Failure::new(Kind::Failed, format!("cannot give up the right to mount: {errno}"))
    })?;
    Ok(protection)
}

/// The command and the signals about it.
struct Watch {
    child: i32,
    signals: kernel::Signals,
    /// Signals that have come to this process itself, and when: they were sent to the process group,
    /// or by the terminal, and have reached the command as well if it is in that group.
    seen: HashMap<i32, Instant>,
}

impl Watch {
    /// Takes the signals that wait.
    fn look(&mut self) {
        while let Some(signal) = self.signals.next() {
            // Children are asked themselves, after each look.
            if signal != libc::SIGCHLD {
                self.seen.insert(signal, Instant::now());
            }
        }
    }

    /// What has become of the command since the last time.
    fn reap(&self) -> Vec<Report> {
        let mut reports = Vec::new();
        let how = WaitOptions::NOHANG | WaitOptions::UNTRACED;
        while let Ok(Some((pid, status))) = wait(how) {
            if pid.as_raw_nonzero().get() != self.child {
                // An orphan.
                continue;
            }
            let number = |number: i32| u8::try_from(number).unwrap_or(u8::MAX);
            if status.stopped() {
                reports.push(Report::Stopped);
            } else if let Some(status) = status.exit_status() {
                reports.push(Report::Exited(number(status)));
            } else if let Some(signal) = status.terminating_signal() {
                reports.push(Report::Killed(number(signal)));
            }
        }
        reports
    }

    /// Takes the supervisor's orders; false if it is gone.
    fn obey(&mut self, orders: &mut BufReader<&UnixStream>) -> bool {
        loop {
            let mut line = Vec::new();
            let Ok(1..) = orders.read_until(b'\n', &mut line) else { return false };
            let Ok(Order::Signal(signal)) = serde_json::from_slice(&line) else { return false };
            self.pass_on(signal);
            if orders.buffer().is_empty() {
                return true;
            }
        }
    }

    fn pass_on(&mut self, signal: i32) {
        // What was sent to the group has come before the supervisor's word about it.
        self.look();
        let to_group = self.seen.remove(&signal).is_some_and(|when| when.elapsed() < AHEAD_LIMIT);
        let in_group = kernel::group_of(self.child) == kernel::group_of(0);
        if !(to_group && in_group) {
            kernel::kill(self.child, signal);
        }
    }
}
