//! Running one command from outside: its time with fork and exec, its answer, and a time limit.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

/// How long a command may run unless it says otherwise.
const LIMIT: Duration = Duration::from_secs(600);
/// How much of a failed command's error output is shown, in bytes.
const ERROR_BYTES_SHOWN: usize = 2000;

/// A command about to be run.
pub struct Run {
    command: Command,
    limit: Duration,
}

/// What a command did.
pub struct Answer {
    pub elapsed: Duration,
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Answer {
    pub fn seconds(&self) -> f64 {
        self.elapsed.as_secs_f64()
    }

    /// Standard output as text, without the newline at its end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).trim_end().to_owned()
    }
}

impl Run {
    /// `program` in an environment that no user configuration can change.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_AUTHOR_NAME", "Scoreboard")
            .env("GIT_AUTHOR_EMAIL", "scoreboard@example.org")
            .env("GIT_COMMITTER_NAME", "Scoreboard")
            .env("GIT_COMMITTER_EMAIL", "scoreboard@example.org")
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
        Self { command, limit: LIMIT }
    }

    /// `git` working in `dir`.
    pub fn git(dir: &Path) -> Self {
        Self::new("git").cwd(dir)
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Self {
        self.command.args(args);
        self
    }

    pub fn cwd(mut self, dir: &Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Takes variables out of the environment.
    pub fn without(mut self, names: &[&str]) -> Self {
        names.iter().for_each(|name| {
            self.command.env_remove(name);
        });
        self
    }

    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs the command to its end, whatever its exit status.
    pub fn answer(mut self) -> Result<Answer> {
        let name = describe(&self.command);
        // Error output goes to a file: a second pipe would need a second reader in the timed part.
        let mut errors = anonymous_file()?;
        self.command.stdout(Stdio::piped()).stderr(errors.try_clone()?).process_group(0);
        let start = Instant::now();
        let mut child = self.command.spawn().with_context(|| format!("cannot run {name}"))?;
        let guard = Watch::arm(child.id(), self.limit);
        let mut stdout = Vec::new();
        let read = child.stdout.take().map(|mut pipe| pipe.read_to_end(&mut stdout));
        let pid = Pid::from_child(&child);
        let waited = rustix::process::waitid(
            WaitId::Pid(pid),
            WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
        );
        let elapsed = start.elapsed();
        // Disarmed before the process id can be given to another process.
        let fired = guard.disarm();
        let status = child.wait().with_context(|| format!("cannot wait for {name}"))?;
        waited.with_context(|| format!("cannot wait for {name}"))?;
        if fired {
            bail!("{name} did not end within {} s and was killed", self.limit.as_secs());
        }
        read.transpose().with_context(|| format!("cannot read what {name} prints"))?;
        errors.rewind()?;
        let mut stderr = Vec::new();
        errors.read_to_end(&mut stderr)?;
        Ok(Answer {
            elapsed,
            status,
            stdout,
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        })
    }

    /// Runs the command and demands exit status 0.
    pub fn ok(self) -> Result<Answer> {
        let name = describe(&self.command);
        let answer = self.answer()?;
        if !answer.status.success() {
            let errors = answer.stderr.trim_end().as_bytes();
            let end = &errors[errors.len().saturating_sub(ERROR_BYTES_SHOWN)..];
            bail!("{name} failed ({}): {}", answer.status, String::from_utf8_lossy(end));
        }
        Ok(answer)
    }
}

/// The command as a person would type it, for messages.
fn describe(command: &Command) -> String {
    let mut words = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    format!("`{}`", words.join(" "))
}

/// A file without a name, for error output.
fn anonymous_file() -> Result<std::fs::File> {
    let fd = rustix::fs::memfd_create("stderr", rustix::fs::MemfdFlags::CLOEXEC)
        .context("cannot create a memory file")?;
    Ok(fd.into())
}

/// Whether a program of this name can be run.
pub fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// The process groups that have a time limit: process id to deadline and whether it was killed.
static WATCHED: LazyLock<Mutex<BTreeMap<u32, (Instant, bool)>>> = LazyLock::new(|| {
    std::thread::spawn(watch);
    Mutex::new(BTreeMap::new())
});

/// Kills, for ever, the groups whose time is over.
fn watch() {
    loop {
        std::thread::sleep(Duration::from_millis(100));
        let mut watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
        for (id, (deadline, fired)) in watched.iter_mut() {
            if *deadline <= Instant::now()
                && let Some(pid) = Pid::from_raw(id.cast_signed())
            {
                *fired = true;
                // A group that has just ended is no error.
                let _ = rustix::process::kill_process_group(pid, Signal::KILL);
            }
        }
    }
}

/// One watched process group.
struct Watch(u32);

impl Watch {
    fn arm(id: u32, limit: Duration) -> Self {
        let mut watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
        watched.insert(id, (Instant::now() + limit, false));
        Self(id)
    }

    /// Ends the watch and tells whether the group had to be killed.
    fn disarm(self) -> bool {
        let mut watched = WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
        watched.remove(&self.0).is_some_and(|(_, fired)| fired)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_status_and_time_are_returned() {
        let answer = Run::new("sh")
            .args(["-c", "echo out; echo err >&2; sleep 0.05; exit 3"])
            .answer()
            .unwrap();
        assert_eq!(answer.text(), "out");
        assert_eq!(answer.stderr, "err\n");
        assert_eq!(answer.status.code(), Some(3));
        assert!(answer.seconds() >= 0.05);
    }

    #[test]
    fn a_failure_names_the_command_and_shows_its_error() {
        let error = Run::new("sh").args(["-c", "echo broken >&2; exit 1"]).ok().err().unwrap();
        let shown = format!("{error:#}");
        assert!(shown.contains("sh -c") && shown.contains("broken"), "{shown}");
        assert!(Run::new("no-such-program-here").ok().is_err());
    }

    #[test]
    fn a_command_that_hangs_is_killed_with_its_children() {
        let run = Run::new("sh").args(["-c", "sleep 60 & sleep 60; wait"]);
        let start = Instant::now();
        let error = run.limit(Duration::from_millis(200)).ok().err().unwrap();
        assert!(error.to_string().contains("did not end"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn user_configuration_does_not_reach_git() {
        let answer = Run::new("git").args(["config", "--global", "--list"]).ok().unwrap();
        assert_eq!(answer.text(), "");
    }
}
