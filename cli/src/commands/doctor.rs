//! `agentfs doctor`

use std::io::{self, Write};
use std::process::Command;

use agentfs_fuse::{Device, LEVERS, Levers, Probe, probe};
use serde::Serialize;

use crate::client::Client;
use crate::environment::Environment;
use crate::error::Result;
use crate::layout::Layout;
use crate::output::Output;
use crate::progress::Meter;
use crate::protocol::{Status, method};

/// Arguments of `agentfs doctor`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// One thing that was looked at.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Finding {
    name: String,
    state: State,
    why: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// It works.
    Ok,
    /// It is off, and that costs only speed or comfort.
    Off,
    /// Nothing can be mounted as long as it is so.
    Missing,
}

#[derive(Serialize)]
struct Report {
    usable: bool,
    findings: Vec<Finding>,
}

impl Finding {
    fn new(name: &str, state: State, why: impl Into<String>) -> Self {
        Self { name: name.into(), state, why: why.into(), remedy: None }
    }

    fn remedy(mut self, remedy: &str) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

/// Says what works on this machine, what does not, why, and what to do. It starts no daemon.
///
/// # Errors
/// If the result cannot be written.
pub fn run(_: &Args, output: Output) -> Result<u8> {
    let environment = Environment::read()?;
    let layout = Layout::new(environment.store.clone());
    let mut findings = machine(&probe());
    findings.push(git());
    let (daemon, status) = daemon(&layout);
    findings.push(daemon);
    findings.extend(status.iter().flat_map(redirects));
    findings.extend(levers(status.as_ref()));
    let usable = findings.iter().all(|finding| finding.state != State::Missing);
    let report = Report { usable, findings };
    output.result(&report, |out| show(out, &report))?;
    Ok(if usable { 0 } else { crate::error::Kind::CannotMount.exit_code() })
}

fn machine(probe: &Probe) -> Vec<Finding> {
    let mut findings = Vec::new();
    let load = "load it with `modprobe fuse`; start a container with `--device /dev/fuse`";
    findings.push(match &probe.device {
        Device::Usable => Finding::new("/dev/fuse", State::Ok, "it can be opened"),
        Device::Denied(why) => Finding::new("/dev/fuse", State::Missing, why.clone())
            .remedy("give this user or container access to the device"),
        Device::Missing => {
            Finding::new("/dev/fuse", State::Missing, "the device does not exist").remedy(load)
        }
    });
    findings.push(match (&probe.fusermount3, probe.root) {
        (Some(version), _) => Finding::new("fusermount3", State::Ok, version.clone()),
        (None, true) => {
            Finding::new("fusermount3", State::Ok, "not installed; root mounts without it")
        }
        (None, false) => {
            Finding::new("fusermount3", State::Missing, "an ordinary user mounts through it")
                .remedy("install the package fuse3")
        }
    });
    findings.push(if probe.root || probe.user_allow_other {
        Finding::new("--allow-other", State::Ok, "other users may be let in")
    } else {
        Finding::new("--allow-other", State::Off, "the system keeps ordinary users from it")
            .remedy("add the line `user_allow_other` to /etc/fuse.conf")
    });
    if let Some(kernel) = &probe.kernel {
        let pages = probe.pages_max.map(|pages| format!(", messages of {} KiB", pages * 4));
        let why = format!("{}.{}{}", kernel.major, kernel.minor, pages.unwrap_or_default());
        findings.push(Finding::new("kernel protocol", State::Ok, why));
        let of = |offered| if offered { "the kernel offers it" } else { "the kernel lacks it" };
        let unused = |offered| format!("{}; this version does not use it", of(offered));
        findings.push(Finding::new("passthrough", State::Off, unused(kernel.passthrough())));
        findings.push(io_uring(probe, kernel.io_uring()));
    }
    findings
}

/// Whether requests can come over io_uring, which the lever of that name then has them do.
fn io_uring(probe: &Probe, offered: bool) -> Finding {
    let finding = |why: &str| Finding::new("FUSE over io_uring", State::Off, why);
    match (&probe.io_uring_obstacle, probe.io_uring_enabled) {
        (_, None) => finding("the kernel lacks it").remedy("Linux 6.14 and later have it"),
        // The kernel offers it only while the parameter is on.
        (_, Some(false)) => finding("the kernel has it, switched off")
            .remedy("echo 1 > /sys/module/fuse/parameters/enable_uring"),
        (Some(why), _) => finding(&format!("it is not used here: {why}")).remedy(
            "where it is not permitted: sysctl kernel.io_uring_disabled=0; allow io_uring_setup in the container",
        ),
        (None, Some(true)) if !offered => finding("the kernel does not offer it"),
        (None, Some(true)) => {
            Finding::new("FUSE over io_uring", State::Ok, "it can be had; see the lever `io_uring`")
        }
    }
}

fn git() -> Finding {
    match Command::new("git").arg("--version").output() {
        Ok(output) if output.status.success() => {
            let version = String::from_utf8_lossy(&output.stdout);
            Finding::new("git", State::Ok, version.trim().trim_start_matches("git version "))
        }
        _ => Finding::new("git", State::Off, "not installed; https and bundles need it")
            .remedy("install the package git"),
    }
}

fn daemon(layout: &Layout) -> (Finding, Option<Status>) {
    let store = layout.root().display();
    let asked = Client::connect(layout).and_then(|client| {
        client.map(|mut client| client.request(method::STATUS, &(), &Meter::default())).transpose()
    });
    match asked {
        Ok(None) => {
            let why = format!("not running for {store}; the next command that needs it starts it");
            (Finding::new("daemon", State::Ok, why), None)
        }
        Ok(Some(status)) => {
            let Status { pid, version, .. } = &status;
            let why = format!("process {pid}, version {version}, for {store}");
            (Finding::new("daemon", State::Ok, why), Some(status))
        }
        Err(failure) => {
            let finding = Finding::new("daemon", State::Off, failure.message);
            (Finding { remedy: failure.hint, ..finding }, None)
        }
    }
}

/// What is redirected in mounted worktrees, and what should be.
fn redirects(status: &Status) -> Vec<Finding> {
    let mut findings = Vec::new();
    for worktree in &status.worktrees {
        let dir = worktree.dir.0.display();
        for one in &worktree.redirects {
            let shown = worktree.dir.0.join(&one.path.0);
            let (state, why) = match (&one.appears, &one.why) {
                (Some(how), _) => {
                    (State::Ok, format!("{} is redirected by a {how}", shown.display()))
                }
                (None, why) => {
                    let why = why.as_deref().unwrap_or("does not appear");
                    (State::Off, format!("{}: it {why}", shown.display()))
                }
            };
            findings.push(Finding::new("redirect", state, why));
        }
        for note in &worktree.redirect_notes {
            findings.push(Finding::new("redirect", State::Off, format!("{dir}: {note}")));
        }
    }
    findings
}

/// The levers as the running daemon has them, else as one that is started now would.
fn levers(status: Option<&Status>) -> Vec<Finding> {
    let defaults = Levers::default();
    let default =
        |name: &str| defaults.positions().find(|(other, _)| *other == name).map(|(_, on)| on);
    let position = |name: &str| match status {
        Some(status) => status.levers.get(name).copied(),
        None => default(name),
    };
    let finding = |name: &&str| match position(name) {
        Some(true) => Finding::new(name, State::Ok, "on"),
        Some(false) if *name == "writeback_cache" => {
            Finding::new(name, State::Off, "off by design: it would trade durability for speed")
        }
        Some(false) if default(name) == Some(false) => {
            Finding::new(name, State::Off, "off by default")
                .remedy(&format!("AGENTFS_LEVERS_ON={name}, when the daemon starts"))
        }
        _ => Finding::new(name, State::Off, "switched off for the daemon by AGENTFS_LEVERS_OFF")
            .remedy("unset it and restart the daemon: `agentfs daemon stop`"),
    };
    LEVERS.iter().map(finding).collect()
}

fn show(out: &mut dyn Write, report: &Report) -> io::Result<()> {
    for Finding { name, state, why, remedy } in &report.findings {
        let state = match state {
            State::Ok => "ok",
            State::Off => "off",
            State::Missing => "MISSING",
        };
        writeln!(out, "{state:<8} {name:<22} {why}")?;
        if let Some(remedy) = remedy {
            writeln!(out, "{:<8} {:<22} -> {remedy}", "", "")?;
        }
    }
    let verdict =
        if report.usable { "Worktrees can be mounted." } else { "Nothing can be mounted." };
    writeln!(out, "\n{verdict}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probe() -> Probe {
        Probe {
            device: Device::Usable,
            root: false,
            fusermount3: Some("3.17".into()),
            user_allow_other: false,
            kernel: None,
            io_uring_enabled: None,
            io_uring_obstacle: None,
            pages_max: None,
        }
    }

    #[test]
    fn what_keeps_from_mounting_is_told_with_its_remedy() {
        let missing = |probe: &Probe| {
            let mut findings = machine(probe).into_iter();
            findings.find(|finding| finding.state == State::Missing)
        };
        assert_eq!(missing(&probe()), None);
        let device = missing(&Probe { device: Device::Missing, ..probe() }).unwrap();
        assert_eq!(device.name, "/dev/fuse");
        assert!(device.remedy.unwrap().contains("modprobe"));
        let helper = missing(&Probe { fusermount3: None, ..probe() }).unwrap();
        assert!(helper.remedy.unwrap().contains("fuse3"));
        assert_eq!(missing(&Probe { fusermount3: None, root: true, ..probe() }), None);
    }

    #[test]
    fn what_keeps_from_io_uring_is_told_with_its_remedy() {
        let of = |enabled, obstacle: Option<&str>, offered| {
            let obstacle = obstacle.map(str::to_owned);
            let probe = Probe { io_uring_enabled: enabled, io_uring_obstacle: obstacle, ..probe() };
            let finding = io_uring(&probe, offered);
            (finding.state, finding.remedy.unwrap_or_default())
        };
        assert_eq!(of(Some(true), None, true), (State::Ok, String::new()));
        let (state, remedy) = of(Some(false), None, false);
        assert!(state == State::Off && remedy.contains("enable_uring"), "{remedy}");
        let (state, remedy) = of(Some(true), Some("not permitted"), true);
        assert!(state == State::Off && remedy.contains("io_uring_disabled"), "{remedy}");
        assert_eq!(of(None, None, false).0, State::Off);
        assert_eq!(of(Some(true), None, false).0, State::Off);
    }

    #[test]
    fn a_lever_that_is_off_is_told() {
        let off = |findings: Vec<Finding>| {
            let off = findings.into_iter().filter(|finding| finding.state == State::Off);
            off.map(|finding| finding.name).collect::<Vec<_>>()
        };
        assert_eq!(off(levers(None)), ["writeback_cache", "io_uring"]);
        let status: Status = serde_json::from_value(serde_json::json!({
            "version": "x", "pid": 1, "uptime": 0, "store": "/s", "repositories": [],
            "worktrees": [],
            "levers": LEVERS.iter().map(|name| (*name, *name != "prewarm"))
                .collect::<std::collections::BTreeMap<_, _>>(),
        }))
        .unwrap();
        assert_eq!(off(levers(Some(&status))), ["prewarm"]);
    }
}
