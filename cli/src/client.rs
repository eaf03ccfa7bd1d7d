//! The command's end of the control socket: finds the daemon, starts it if need be, and calls it.

use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::environment::{Environment, GIT_LOCAL};
use crate::error::{Failure, Kind, Result};
use crate::layout::Layout;
use crate::lock;
use crate::profile;
use crate::progress::Meter;
use crate::protocol::{Hello, PROTOCOL, Progress, Steps, StopCall, Welcome, method};
use crate::socket;
use crate::wire::{self, Id, Incoming, Request};

/// How long the daemon may take to answer the handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
/// How long a running call may say nothing; the daemon speaks several times a second.
const SILENCE_LIMIT: Duration = Duration::from_secs(30);
/// How long a daemon may take from its start to its first answer, which includes recovery and
/// mounting what was mounted, and how long one that stops may keep its lock.
const START_LIMIT: Duration = Duration::from_secs(60);
/// Longest pause between two attempts to reach a daemon that starts or stops.
const PAUSE_MAX: Duration = Duration::from_millis(100);
/// The log is begun anew when a daemon starts and finds it longer than this, in bytes.
const LOG_BYTES_MAX: u64 = 8 << 20;
/// What a daemon that is being started says when it serves.
pub const READY: &str = "ready";
/// What it says when another one holds the lock.
pub const OCCUPIED: &str = "occupied";

/// A connection to the daemon.
pub struct Client {
    stream: BufReader<UnixStream>,
    calls: u64,
    welcome: Welcome,
}

impl Client {
    /// Connects to the daemon of the store; `None` if none is running.
    ///
    /// # Errors
    /// As [`socket::connect`]; [`Kind::Daemon`] if it does not answer, [`Kind::ForeignSocket`] if
    /// what listens is no daemon.
    pub fn connect(layout: &Layout) -> Result<Option<Self>> {
        Self::connect_within(layout, HANDSHAKE_LIMIT)
    }

    fn connect_within(layout: &Layout, limit: Duration) -> Result<Option<Self>> {
        let path = layout.socket();
        let start = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            let Some(stream) = socket::connect(&path)? else {
                return Ok(None);
            };
            let (_, pid) = socket::peer(&stream, &path)?;
            let mut client = Self::new(stream, layout, pid);
            let error = match client.greet(limit) {
                Ok(()) => {
                    profile::reached("connected to the daemon");
                    return Ok(Some(client));
                }
                Err(error) => error,
            };
            // Only the daemon has the lock, and it has it as long as it listens.
            let is_daemon = lock::is_held(&layout.lock())?;
            // A daemon that ends closes its connections; soon nobody listens any more. One that has
            // too many closes this one and takes a later one.
            let patience = if is_daemon { START_LIMIT } else { socket::DYING_LIMIT };
            if !matches!(error, CallError::Closed) || start.elapsed() > patience {
                return Err(match is_daemon {
                    true => client.explain(error),
                    false => socket::stranger(&path, pid, &error.of_stranger()),
                });
            }
            thread::sleep(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn new(stream: UnixStream, layout: &Layout, pid: i32) -> Self {
        let pid = u32::try_from(pid).unwrap_or(0);
        let store = layout.root().into();
        let welcome = Welcome { protocol: PROTOCOL, version: String::new(), pid, store };
        Self { stream: BufReader::new(stream), calls: 0, welcome }
    }

    /// Shakes hands within `limit`.
    fn greet(&mut self, limit: Duration) -> Result<(), CallError> {
        self.limit(limit)?;
        let client = concat!("agentfs ", env!("CARGO_PKG_VERSION")).into();
        let hello = Hello { protocol: PROTOCOL, client };
        self.welcome = self.call(method::HELLO, &hello, &Meter::default())?;
        self.limit(SILENCE_LIMIT)?;
        Ok(())
    }

    /// Connects to the daemon of the store and starts it if none is running.
    ///
    /// # Errors
    /// As [`Client::connect`], and whatever keeps the daemon from starting.
    pub fn connect_or_start(layout: &Layout, environment: &Environment) -> Result<Self> {
        let start = Instant::now();
        let mut pause = Duration::from_millis(1);
        loop {
            if let Some(client) = Self::connect(layout)? {
                return Ok(client);
            }
            if start_daemon(layout, environment)? {
                profile::reached("started the daemon");
                continue;
            }
            // Another daemon holds the lock: it is starting, or it is stopping.
            if start.elapsed() > START_LIMIT {
                return Err(Failure::new(
                    Kind::Daemon,
                    format!(
                        "a process holds {} but does not listen on the control socket",
                        layout.lock().display()
                    ),
                )
                .hint(format!(
                    "see {} for what it does; `fuser -v {}` names the process",
                    layout.log().display(),
                    layout.lock().display()
                )));
            }
            thread::sleep(pause);
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Whether the daemon has closed the connection. It does not wait.
    pub fn has_ended(&self) -> bool {
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        matches!(recv(self.stream.get_ref(), &mut [0_u8; 1][..], flags), Ok((_, 0)))
            || matches!(
                recv(self.stream.get_ref(), &mut [0_u8; 1][..], flags),
                Err(Errno::CONNRESET)
            )
    }

    /// How the daemon has introduced itself.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// Calls `method` and waits for the answer; what the daemon tells of its progress goes to
    /// `meter`.
    ///
    /// # Errors
    /// The failure that the daemon reports, or [`Kind::Daemon`] if it does not answer.
    pub fn request<R: DeserializeOwned>(
        &mut self,
        method: &str,
        params: &impl Serialize,
        meter: &Meter,
    ) -> Result<R> {
        self.call(method, params, meter).map_err(|error| self.explain(error))
    }

    /// Calls `method` like [`Client::request`] and hands the answer to `take`. The daemon undoes the
    /// call unless `take` has returned, so that a command which is killed leaves nothing behind.
    ///
    /// # Errors
    /// As [`Client::request`], and those of `take`.
    pub fn request_confirmed<R: DeserializeOwned>(
        &mut self,
        method: &str,
        params: &impl Serialize,
        meter: &Meter,
        take: impl FnOnce(R) -> Result<()>,
    ) -> Result<()> {
        let mut params = serde_json::to_value(params)
            .map_err(|error| self.explain(CallError::malformed(error)))?;
        params["confirm"] = true.into();
        take(self.request(method, &params, meter)?)?;
        let about = serde_json::json!({ "call": self.calls });
        let line = wire::encode(&Request::new(None, method::CONFIRM, about));
        self.stream.get_mut().write_all(&line).map_err(|error| self.explain(error.into()))
    }

    /// Asks the daemon to stop, by `force` even if commands run in branches, and waits until its process has let go of the connection.
    ///
    /// # Errors
    /// [`Kind::Daemon`] if it does not.
    pub fn stop(mut self, force: bool) -> Result<()> {
        self.request::<()>(method::STOP, &StopCall { force }, &Meter::default())?;
        self.limit(START_LIMIT).map_err(|error| self.explain(error))?;
        // The daemon sends nothing more; the connection ends with its process.
        match self.stream.read_to_end(&mut Vec::new()) {
            Err(error) if is_timeout(&error) => Err(self.explain(CallError::Silent)),
            _ => Ok(()),
        }
    }

    fn limit(&self, limit: Duration) -> Result<(), CallError> {
        let stream = self.stream.get_ref();
        stream
            .set_read_timeout(Some(limit))
            .and_then(|()| stream.set_write_timeout(Some(limit)))
            .map_err(CallError::Io)
    }

    fn call<R: DeserializeOwned>(
        &mut self,
        method: &str,
        params: &impl Serialize,
        meter: &Meter,
    ) -> Result<R, CallError> {
        self.calls += 1;
        let id = Id::Number(self.calls);
        let mut params = serde_json::to_value(params).map_err(CallError::malformed)?;
        let is_told = profile::is_on() && method != method::HELLO;
        if is_told && (params.is_object() || params.is_null()) {
            params["steps"] = true.into();
        }
        let line = wire::encode(&Request::new(Some(id.clone()), method, params));
        // The daemon cannot begin before that.
        let sent = Instant::now();
        if is_told {
            profile::reached_at(sent, format_args!("{method} sent"));
        }
        match self.stream.get_mut().write_all(&line).map_err(CallError::from) {
            // What the other end has said before it hung up is still to be read.
            Ok(()) | Err(CallError::Closed) => {}
            Err(error) => return Err(error),
        }
        let mut line = Vec::new();
        loop {
            if !wire::read_line(&mut self.stream, &mut line)? {
                return Err(CallError::Closed);
            }
            let message: Incoming = serde_json::from_slice(&line).map_err(CallError::malformed)?;
            if message.method.as_deref() == Some(method::PROGRESS) {
                let params = message.params.unwrap_or_default();
                let progress: Progress =
                    serde_json::from_value(params).map_err(CallError::malformed)?;
                if progress.call == id {
                    meter.set(&progress.phases);
                }
            } else if message.method.as_deref() == Some(method::STEPS) {
                let params = message.params.unwrap_or_default();
                let told: Steps = serde_json::from_value(params).map_err(CallError::malformed)?;
                if told.call == id {
                    profile::taken(sent, told.steps);
                }
            } else if message.id.as_ref() == Some(&id) {
                if is_told {
                    profile::reached(format_args!("{method} answered"));
                }
                if let Some(error) = message.error {
                    return Err(CallError::Refused(error.into()));
                }
                let result = message.result.unwrap_or_default();
                return serde_json::from_value(result).map_err(CallError::malformed);
            }
        }
    }

    fn explain(&self, error: CallError) -> Failure {
        let daemon = format!("the daemon of {}", self.welcome.store.0.display());
        let pid = self.welcome.pid;
        match error {
            CallError::Refused(failure) => failure,
            CallError::Silent => {
                Failure::new(Kind::Daemon, format!("{daemon} (process {pid}) does not answer"))
                    .hint(format!(
                        "see daemon.log in the store for what it does; if it hangs, end it with \
                         `kill -9 {pid}`: the next command recovers and mounts again what was \
                         mounted"
                    ))
            }
            CallError::Closed => {
                Failure::new(Kind::Daemon, format!("{daemon} (process {pid}) has gone away")).hint(
                    "run the command again: it starts a new one; daemon.log in the store says why",
                )
            }
            CallError::Io(error) => {
                Failure::new(Kind::Daemon, format!("cannot talk to {daemon}: {error}"))
            }
            CallError::Malformed(why) => Failure::new(
                Kind::DaemonVersion,
                format!("{daemon} (process {pid}) answers what this agentfs does not know: {why}"),
            )
            .hint(format!("it is of another version: end it with `kill {pid}`")),
        }
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.get_ref().as_fd()
    }
}

/// Why a call has no result.
#[derive(Debug)]
enum CallError {
    Refused(Failure),
    Silent,
    Closed,
    Io(io::Error),
    Malformed(String),
}

impl CallError {
    fn malformed(error: serde_json::Error) -> Self {
        Self::Malformed(error.to_string())
    }

    /// What somebody who is no daemon has done instead of shaking hands.
    fn of_stranger(&self) -> String {
        match self {
            Self::Refused(failure) => format!("it answers {:?}", failure.message),
            Self::Silent => "it does not answer".into(),
            Self::Closed => "it hangs up".into(),
            Self::Io(error) => error.to_string(),
            Self::Malformed(why) => format!("it answers what no daemon says: {why}"),
        }
    }
}

impl From<io::Error> for CallError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            _ if is_timeout(&error) => Self::Silent,
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Starts a daemon and waits until it serves. `Ok(false)` if another one holds the lock.
fn start_daemon(layout: &Layout, environment: &Environment) -> Result<bool> {
    layout.create()?;
    let failed =
        |error: &io::Error| Failure::new(Kind::Daemon, format!("cannot start the daemon: {error}"));
    let path = layout.log();
    let mut log = OpenOptions::new()
        .create(true)
        .append(true)
        .read(true)
        .mode(0o600)
        .open(&path)
        .map_err(|error| Failure::store_io("open the log", &path, &error))?;
    let mut logged = log.metadata().map_or(0, |metadata| metadata.len());
    if logged > LOG_BYTES_MAX && fs::rename(&path, path.with_extension("log.old")).is_ok() {
        return start_daemon(layout, environment);
    }
    let program = std::env::current_exe().map_err(|error| failed(&error))?;
    let stderr = log.try_clone().map_err(|error| failed(&error))?;
    let mut command = Command::new(program);
    command.args(["daemon", "run"]).env("AGENTFS_HOME", &environment.store);
    GIT_LOCAL.iter().for_each(|name| {
        command.env_remove(name);
    });
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .spawn()
        .map_err(|error| failed(&error))?;
    let word = wait_until_ready(&mut child)?;
    match word.as_deref() {
        Some(READY) => Ok(true),
        Some(OCCUPIED) => {
            child.wait().ok();
            Ok(false)
        }
        Some(refusal) => {
            child.wait().ok();
            Err(serde_json::from_str(refusal).unwrap_or_else(|_| {
                Failure::new(Kind::Daemon, format!("the daemon says {refusal:?}"))
            }))
        }
        None => {
            logged = logged.min(log.metadata().map_or(0, |metadata| metadata.len()));
            Err(died(&mut child, &mut log, logged))
        }
    }
}

/// The line that the daemon writes to its standard output when it serves, or cannot; `None` if it
/// ends without one.
fn wait_until_ready(child: &mut Child) -> Result<Option<String>> {
    let Some(stdout) = child.stdout.take() else {
        return Ok(None);
    };
    let pid = child.id();
    let (send, receive) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let mut line = String::new();
        BufReader::new(stdout).take(wire::LINE_BYTES_MAX as u64).read_line(&mut line).ok();
        send.send(line).ok();
    });
    let Ok(line) = receive.recv_timeout(START_LIMIT) else {
        return Err(Failure::new(
            Kind::Daemon,
            format!("the daemon (process {pid}) does not become ready"),
        )
        .hint("see daemon.log in the store for what it does"));
    };
    Ok(line.strip_suffix('\n').map(str::to_owned))
}

/// Says how a daemon has ended that did not say so itself, with what it logged last.
fn died(child: &mut Child, log: &mut fs::File, logged: u64) -> Failure {
    let how = match child.wait() {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit code {code}"),
            (None, Some(signal)) => format!("signal {signal}"),
            (None, None) => "an unknown status".to_owned(),
        },
        Err(error) => error.to_string(),
    };
    let mut text = Vec::new();
    log.seek(SeekFrom::Start(logged)).and_then(|_| log.take(1 << 16).read_to_end(&mut text)).ok();
    let text = String::from_utf8_lossy(&text);
    let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    Failure::new(Kind::Daemon, format!("the daemon has ended at its start with {how}: {last}"))
        .hint("see daemon.log in the store")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Answers one connection with `lines`, whatever it is asked.
    fn serve(layout: &Layout, lines: &'static [&'static str]) -> thread::JoinHandle<()> {
        let listener = socket::listen(&layout.socket()).unwrap();
        thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = BufReader::new(stream);
            for line in lines {
                let mut asked = Vec::new();
                assert!(wire::read_line(&mut reader, &mut asked).unwrap());
                reader.get_mut().write_all(line.as_bytes()).unwrap();
                reader.get_mut().write_all(b"\n").unwrap();
            }
            // Keep the connection until the client lets go of it.
            reader.read_to_end(&mut Vec::new()).ok();
        })
    }

    fn layout(dir: &Path) -> Layout {
        Layout::new(dir.to_owned())
    }

    const WELCOME: &str =
        r#"{"jsonrpc":"2.0","id":1,"result":{"protocol":1,"version":"x","pid":7,"store":"/s"}}"#;

    #[test]
    fn progress_of_the_call_reaches_the_meter() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        let server = serve(
            &layout,
            &[
                WELCOME,
                "{\"jsonrpc\":\"2.0\",\"method\":\"progress\",\"params\":{\"call\":2,\"phases\":\
                 [{\"phase\":\"trees\",\"objects\":4,\"bytes\":0}]}}\n\
                 {\"jsonrpc\":\"2.0\",\"id\":2,\"result\":5}",
            ],
        );
        let mut client = Client::connect(&layout).unwrap().unwrap();
        assert_eq!(client.welcome().pid, 7);
        let meter = Meter::default();
        assert_eq!(client.request::<u32>("x", &(), &meter).unwrap(), 5);
        assert_eq!(meter.read()[0].objects, 4);
        drop(client);
        server.join().unwrap();
    }

    #[test]
    fn a_daemon_that_does_not_answer_is_told_with_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        let _lock = lock::take(&layout.lock()).unwrap().unwrap();
        let server = serve(&layout, &[]);
        let limit = Duration::from_millis(50);
        let failure = Client::connect_within(&layout, limit).err().unwrap();
        assert_eq!(failure.kind.exit_code(), 7);
        let pid = std::process::id().to_string();
        assert!(failure.message.contains(&pid), "{failure}");
        assert!(failure.hint.unwrap().contains(&format!("kill -9 {pid}")));
        server.join().unwrap();
    }

    #[test]
    fn an_answer_of_another_version_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        let _lock = lock::take(&layout.lock()).unwrap().unwrap();
        let server = serve(&layout, &["HTTP/1.1 400 Bad Request"]);
        assert_eq!(Client::connect(&layout).err().unwrap().kind, Kind::DaemonVersion);
        server.join().unwrap();
    }

    #[test]
    fn who_listens_without_the_lock_is_no_daemon_whatever_it_says() {
        for (lines, why) in [
            (&[][..], "does not answer"),
            (&["HTTP/1.1 400 Bad Request"], "no daemon says"),
            (&[r#"{"id":1,"error":{"code":-32601,"message":"no such method"}}"#], "such method"),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let layout = layout(dir.path());
            let server = serve(&layout, lines);
            let limit = Duration::from_millis(50);
            let failure = Client::connect_within(&layout, limit).err().unwrap();
            assert_eq!(failure.kind, Kind::ForeignSocket, "{failure}");
            assert!(failure.message.contains(why), "{failure}");
            server.join().unwrap();
            assert!(!layout.lock().exists());
        }
    }

    #[test]
    fn what_was_said_before_the_end_of_a_connection_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (stream, mut other) = UnixStream::pair().unwrap();
        other.write_all(b"garbage\n").unwrap();
        drop(other);
        let mut client = Client::new(stream, &layout(dir.path()), 1);
        let error = client.greet(HANDSHAKE_LIMIT).unwrap_err();
        assert!(matches!(error, CallError::Malformed(_)), "{error:?}");
        let (stream, other) = UnixStream::pair().unwrap();
        drop(other);
        let mut client = Client::new(stream, &layout(dir.path()), 1);
        let error = client.greet(HANDSHAKE_LIMIT).unwrap_err();
        assert!(matches!(error, CallError::Closed), "{error:?}");
    }

    #[test]
    fn no_daemon_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Client::connect(&layout(dir.path())).unwrap().is_none());
    }
}
