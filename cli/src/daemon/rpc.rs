//! The daemon's end of the control socket: reads requests, runs each on a thread of its own, tells
//! of its progress and sends the answer.
//!
//! A connection that ends cancels its calls, and what a call has brought about is undone if its
//! answer could not be sent, or was to be confirmed and was not: a command that is killed leaves
//! nothing behind.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use agentfs_engine::progress::Cancel;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::daemon::laps;
use crate::error::{Failure, Kind, Result};
use crate::progress::{Meter, TICK};
use crate::protocol::{self, StepDone, method};
use crate::wire::{self, Id, LINE_BYTES_MAX, Request, Response, RpcError};

/// Most connections at once.
const CONNECTIONS_MAX: usize = 512;
/// Most calls at once of one connection.
const CALLS_MAX: usize = 64;
/// How long running calls may take to notice that the daemon stops.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// What a call is given besides its parameters.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// Where it reports its progress.
    pub meter: Arc<Meter>,
    /// Whether it is still wanted.
    pub cancel: Cancel,
}

/// What a call has brought about.
pub struct Answer {
    /// The result.
    pub value: Value,
    /// What must be over before the result is sent, with where it reports its progress.
    pub wait: Option<Wait>,
    /// What happens once the result is sent.
    pub after: Option<Box<dyn FnOnce() + Send>>,
    /// What happens when the connection ends, for what lasts as long as the client is there. Unlike
    /// what can be undone it does not delay the stop of the daemon, and its end tells the client of
    /// that stop.
    pub held: Option<Box<dyn FnOnce() + Send>>,
    /// How it is undone, for a client that has gone away without the result, or without confirming
    /// it if it wanted to.
    pub undo: Option<Box<dyn FnOnce() + Send>>,
}

/// Background work that an answer waits for.
pub struct Wait {
    /// Where it reports its progress.
    pub meter: Arc<Meter>,
    /// Its end.
    pub end: Pin<Box<dyn Future<Output = Result<()>> + Send>>,
}

impl From<Value> for Answer {
    fn from(value: Value) -> Self {
        Self { value, wait: None, after: None, held: None, undo: None }
    }
}

/// What the calls do.
pub trait Service: Send + Sync + 'static {
    /// Runs `method` to its end; it may block.
    ///
    /// # Errors
    /// JSON-RPC's own errors for a method or parameters that do not exist, else the failure.
    fn call(&self, method: &str, params: Value, call: &Call) -> Result<Answer, RpcError>;
}

/// Serves connections until `stop` becomes true and every call has ended.
pub async fn serve(listener: UnixListener, service: Arc<dyn Service>, stop: watch::Receiver<bool>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    let mut stopped = stop.clone();
    loop {
        let accepted = tokio::select! {
            () = told(&mut stopped) => break,
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                warn!("cannot accept a connection: {error}");
                tokio::time::sleep(TICK).await;
                continue;
            }
        };
        if !is_own(&stream) {
            continue;
        }
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
            warn!("refused a connection: there are {CONNECTIONS_MAX} already");
            continue;
        };
        let connection = Connection::new(Arc::clone(&service), stream);
        let stop = stop.clone();
        connections.spawn(async move {
            connection.run(stop).await;
            drop(permit);
        });
    }
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(STOP_LIMIT, all).await.is_err() {
        warn!("stopping although calls are still running");
    }
}

/// Ends when `stop` is true.
async fn told(stop: &mut watch::Receiver<bool>) {
    stop.wait_for(|stop| *stop).await.ok();
}

/// Whether the other end is the user who runs the daemon.
fn is_own(stream: &UnixStream) -> bool {
    match stream.peer_cred() {
        Ok(peer) if peer.uid() == rustix::process::geteuid().as_raw() => true,
        Ok(peer) => {
            warn!("refused a connection of user {}", peer.uid());
            false
        }
        Err(error) => {
            warn!("refused a connection of an unknown user: {error}");
            false
        }
    }
}

/// One connection.
struct Connection {
    service: Arc<dyn Service>,
    read: BufReader<OwnedReadHalf>,
    shared: Arc<Shared>,
}

/// What a connection and its calls share.
struct Shared {
    write: tokio::sync::Mutex<OwnedWriteHalf>,
    /// Leaf lock, never held across an await.
    calls: Mutex<HashMap<Id, Arc<Running>>>,
    state: watch::Sender<State>,
    /// Whether something was made that lasts as long as the connection.
    holds: AtomicBool,
}

/// Where a connection stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The client has ended it.
    Gone,
    /// The daemon stops.
    Stopping,
}

/// A call that has not ended.
#[derive(Default)]
struct Running {
    cancel: Cancel,
    confirmed: Notify,
}

impl Shared {
    async fn send(&self, message: &impl serde::Serialize) -> io::Result<()> {
        self.write.lock().await.write_all(&wire::encode(message)).await
    }

    async fn refuse(&self, id: Option<Id>, code: i64, why: String) {
        let response = Response::new(id, Err(RpcError::protocol(code, why)));
        // A client that has gone away is noticed by the reader.
        self.send(&response).await.ok();
    }

    /// Tells the client what was done of a call.
    async fn tell(&self, call: &Id, steps: Vec<StepDone>) {
        let params = serde_json::to_value(protocol::Steps { call: call.clone(), steps });
        let told = Request::new(None, method::STEPS, params.unwrap_or_default());
        // As above.
        self.send(&told).await.ok();
    }

    fn calls(&self) -> std::sync::MutexGuard<'_, HashMap<Id, Arc<Running>>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the end of the connection; false if it is the daemon that ends.
    async fn is_left(&self) -> bool {
        let mut state = self.state.subscribe();
        let ended = state.wait_for(|state| *state != State::Open).await;
        ended.is_ok_and(|state| *state == State::Gone)
    }

    /// Whether the client has confirmed the answer of a call; false if it is gone without.
    async fn is_confirmed(&self, call: &Running) -> bool {
        let mut state = self.state.subscribe();
        tokio::select! {
            biased;
            () = call.confirmed.notified() => true,
            ended = state.wait_for(|state| *state != State::Open) => {
                ended.is_ok_and(|state| *state == State::Stopping)
            }
        }
    }
}

impl Connection {
    fn new(service: Arc<dyn Service>, stream: UnixStream) -> Self {
        let (read, write) = stream.into_split();
        let shared = Shared {
            write: tokio::sync::Mutex::new(write),
            calls: Mutex::default(),
            state: watch::Sender::new(State::Open),
            holds: AtomicBool::new(false),
        };
        Self { service, read: BufReader::new(read), shared: Arc::new(shared) }
    }

    async fn run(mut self, mut stop: watch::Receiver<bool>) {
        let mut calls = JoinSet::new();
        let mut line = Vec::new();
        let stopped = loop {
            tokio::select! {
                () = told(&mut stop) => break true,
                more = read_line(&mut self.read, &mut line) => match more {
                    Ok(true) => self.handle(&line, &mut calls).await,
                    Ok(false) => break false,
                    Err(error) => {
                        self.shared.refuse(None, wire::INVALID_REQUEST, error.to_string()).await;
                        break false;
                    }
                },
                Some(_) = calls.join_next() => {}
            }
            // `read_line` goes on where it was if another branch came first.
        };
        let state = if stopped { State::Stopping } else { State::Gone };
        self.shared.state.send_replace(state);
        self.shared.calls().values().for_each(|call| call.cancel.cancel());
        while calls.join_next().await.is_some() {}
        if stopped && !self.shared.holds.load(Ordering::Relaxed) {
            // The connection ends with the process, so that its end tells a client of it.
            std::mem::forget(self);
        }
    }

    async fn handle(&mut self, line: &[u8], calls: &mut JoinSet<()>) {
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        let (id, request) = match parse(line) {
            Ok(Request { id: Some(id), method, params, .. }) => (id, (method, params)),
            Ok(Request { id: None, method, params, .. }) => return self.notified(&method, params),
            Err((code, why)) => return self.shared.refuse(None, code, why).await,
        };
        let running = Arc::new(Running::default());
        let refusal = {
            let mut all = self.shared.calls();
            if all.len() >= CALLS_MAX {
                Some(format!("there are {CALLS_MAX} calls already"))
            } else if all.contains_key(&id) {
                Some("a call with this id is running".to_owned())
            } else {
                all.insert(id.clone(), Arc::clone(&running));
                None
            }
        };
        if let Some(why) = refusal {
            return self.shared.refuse(Some(id), wire::INVALID_REQUEST, why).await;
        }
        let (service, shared) = (Arc::clone(&self.service), Arc::clone(&self.shared));
        calls.spawn(async move {
            run_call(service, &shared, &id, request, &running).await;
            shared.calls().remove(&id);
        });
    }

    /// Takes a notification; one that means nothing is left alone, as JSON-RPC has it.
    fn notified(&self, method: &str, params: Value) {
        let Ok(protocol::About { call }) = serde_json::from_value(params) else { return };
        let calls = self.shared.calls();
        let Some(running) = calls.get(&call) else { return };
        match method {
            method::CANCEL => running.cancel.cancel(),
            method::CONFIRM => running.confirmed.notify_one(),
            _ => {}
        }
    }
}

fn parse(line: &[u8]) -> Result<Request, (i64, String)> {
    let value: Value = serde_json::from_slice(line)
        .map_err(|error| (wire::PARSE_ERROR, format!("no JSON: {error}")))?;
    let request: Request = serde_json::from_value(value)
        .map_err(|error| (wire::INVALID_REQUEST, format!("no request: {error}")))?;
    match request.jsonrpc.as_str() {
        "2.0" => Ok(request),
        other => Err((wire::INVALID_REQUEST, format!("jsonrpc is {other:?}, not \"2.0\""))),
    }
}

/// Reads a line as [`wire::read_line`] does. What it has read so far stays in `line` when the future
/// is dropped, and the next call goes on from there.
async fn read_line(reader: &mut BufReader<OwnedReadHalf>, line: &mut Vec<u8>) -> io::Result<bool> {
    if line.last() == Some(&b'\n') {
        line.clear();
    }
    let room = (LINE_BYTES_MAX + 1).saturating_sub(line.len());
    reader.take(room as u64).read_until(b'\n', line).await?;
    if line.last() == Some(&b'\n') {
        return Ok(true);
    }
    if line.len() > LINE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the line is too long"));
    }
    Ok(false)
}

async fn run_call(
    service: Arc<dyn Service>,
    shared: &Shared,
    id: &Id,
    (method, params): (String, Value),
    running: &Running,
) {
    let is_asked = |what| params.get(what) == Some(&Value::Bool(true));
    let (to_confirm, to_tell) = (is_asked("confirm"), is_asked("steps"));
    let call = Call { cancel: running.cancel.clone(), ..Call::default() };
    let mut meters = vec![Arc::clone(&call.meter)];
    let name = method.clone();
    let begun = Instant::now();
    let work = move || laps::observed(|| service.call(&method, params, &call));
    let work = tokio::task::spawn_blocking(work);
    let (outcome, steps) = with_progress(shared, id, &meters, work).await.unwrap_or_else(|panic| {
        let failure = Failure::new(Kind::Failed, format!("the daemon failed: {panic}"))
            .hint("this is a defect of agentfs; daemon.log in the store tells more");
        (Err(failure.into()), Vec::new())
    });
    if to_tell {
        shared.tell(id, steps).await;
    }
    let mut answer = match outcome {
        Ok(answer) => answer,
        Err(error) => {
            info!("{name}: {}", error.message);
            shared.send(&Response::new(Some(id.clone()), Err(error))).await.ok();
            return;
        }
    };
    if let Some(Wait { meter, end }) = answer.wait.take() {
        meters.push(meter);
        let end = until_cancelled(&running.cancel, end);
        if let Err(failure) = with_progress(shared, id, &meters, end).await {
            info!("{name}: {failure}");
            run_blocking(answer.undo).await;
            shared.send(&Response::new(Some(id.clone()), Err(failure.into()))).await.ok();
            return;
        }
        if to_tell {
            shared.tell(id, vec![laps::step("taken in", begun.elapsed())]).await;
        }
    }
    let taken = *shared.state.borrow() != State::Gone
        && shared.send(&Response::new(Some(id.clone()), Ok(answer.value))).await.is_ok()
        && (!to_confirm || shared.is_confirmed(running).await);
    if taken {
        run_blocking(answer.after).await;
        if answer.held.is_some() {
            shared.holds.store(true, Ordering::Relaxed);
            if shared.is_left().await {
                run_blocking(answer.held).await;
            }
        }
    } else {
        info!("{name}: undone, since the client has gone away");
        run_blocking(answer.undo).await;
    }
}

async fn run_blocking(action: Option<Box<dyn FnOnce() + Send>>) {
    if let Some(action) = action
        && let Err(panic) = tokio::task::spawn_blocking(action).await
    {
        warn!("an action after a call failed: {panic}");
    }
}

/// Runs `work` and tells the client of its progress meanwhile.
async fn with_progress<T>(
    shared: &Shared,
    id: &Id,
    meters: &[Arc<Meter>],
    work: impl Future<Output = T>,
) -> T {
    let mut work = pin!(work);
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + TICK, TICK);
    loop {
        tokio::select! {
            result = &mut work => return result,
            _ = tick.tick() => {
                let phases = meters.iter().flat_map(|meter| meter.read()).collect();
                let progress = protocol::Progress { call: id.clone(), phases };
                let params = serde_json::to_value(progress).unwrap_or_default();
                // A client that does not take it is noticed by the reader.
                shared.send(&Request::new(None, method::PROGRESS, params)).await.ok();
            }
        }
    }
}

/// The end of `work`, or [`Kind::Cancelled`] as soon as it is not wanted any more.
async fn until_cancelled(cancel: &Cancel, work: impl Future<Output = Result<()>>) -> Result<()> {
    let mut work = pin!(work);
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            result = &mut work => return result,
            _ = tick.tick() => cancel.check()?,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, Write};
    use std::os::unix::net::UnixStream as Client;

    #[derive(Default)]
    struct Fake {
        undone: Arc<AtomicBool>,
    }

    impl Service for Fake {
        fn call(&self, method: &str, params: Value, call: &Call) -> Result<Answer, RpcError> {
            match method {
                "echo" => Ok(params.into()),
                "make" => {
                    let undone = Arc::clone(&self.undone);
                    let undo = move || undone.store(true, Ordering::SeqCst);
                    Ok(Answer { undo: Some(Box::new(undo)), ..Value::Null.into() })
                }
                "fail" => Err(Failure::new(Kind::NotFound, "nothing").into()),
                "panic" => panic!("on purpose"),
                "spin" => {
                    while !call.cancel.is_cancelled() {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    let undone = Arc::clone(&self.undone);
                    let undo = move || undone.store(true, Ordering::SeqCst);
                    Ok(Answer { undo: Some(Box::new(undo)), ..Value::Null.into() })
                }
                _ => Err(RpcError::protocol(wire::METHOD_NOT_FOUND, "no such method")),
            }
        }
    }

    /// Runs a server in a thread while `test` talks to it; then stops it.
    fn with_server(service: Arc<dyn Service>, test: impl FnOnce(&dyn Fn() -> Client)) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.sock");
        let listener = crate::socket::listen(&path).unwrap();
        let (stop, stopped) = watch::channel(false);
        let server = std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            runtime.enable_all().build().unwrap().block_on(async {
                listener.set_nonblocking(true).unwrap();
                serve(UnixListener::from_std(listener).unwrap(), service, stopped).await;
            });
        });
        test(&|| {
            let client = Client::connect(&path).unwrap();
            client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            client
        });
        stop.send(true).unwrap();
        server.join().unwrap();
    }

    fn ask(client: &Client, line: &str) -> Value {
        (&mut &*client).write_all(format!("{line}\n").as_bytes()).unwrap();
        answer(client)
    }

    fn answer(client: &Client) -> Value {
        let mut reader = std::io::BufReader::with_capacity(1, client);
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let value: Value = serde_json::from_str(&line).unwrap();
            if value.get("method").is_none() {
                return value;
            }
        }
    }

    #[test]
    fn each_request_has_its_answer() {
        with_server(Arc::new(Fake::default()), |connect| {
            let client = connect();
            let echo =
                ask(&client, r#"{"jsonrpc":"2.0","id":"a","method":"echo","params":{"x":1}}"#);
            assert_eq!(echo, serde_json::json!({"jsonrpc":"2.0","id":"a","result":{"x":1}}));
            let fail = ask(&client, r#"{"jsonrpc":"2.0","id":2,"method":"fail"}"#);
            assert_eq!(fail["error"]["code"], -32003);
            assert_eq!(fail["error"]["data"]["kind"], "not_found");
            let panic = ask(&client, r#"{"jsonrpc":"2.0","id":3,"method":"panic"}"#);
            assert_eq!(panic["error"]["data"]["kind"], "failed");
        });
    }

    #[test]
    fn what_is_no_request_is_refused_and_the_connection_goes_on() {
        with_server(Arc::new(Fake::default()), |connect| {
            let client = connect();
            for (line, code) in [
                ("garbage", wire::PARSE_ERROR),
                ("[]", wire::INVALID_REQUEST),
                (r#"{"jsonrpc":"1.0","id":1,"method":"echo"}"#, wire::INVALID_REQUEST),
                (r#"{"jsonrpc":"2.0","id":1,"method":"other"}"#, wire::METHOD_NOT_FOUND),
                (r#"{"jsonrpc":"2.0","id":-1,"method":"echo"}"#, wire::INVALID_REQUEST),
            ] {
                assert_eq!(ask(&client, line)["error"]["code"], code, "{line}");
            }
            let echo = ask(&client, r#"{"jsonrpc":"2.0","id":1,"method":"echo"}"#);
            assert_eq!(echo["result"], Value::Null);
        });
    }

    #[test]
    fn a_line_without_end_costs_no_more_than_the_limit() {
        with_server(Arc::new(Fake::default()), |connect| {
            let client = connect();
            let long = vec![b'x'; LINE_BYTES_MAX + 1];
            (&mut &client).write_all(&long).unwrap();
            assert_eq!(answer(&client)["error"]["code"], wire::INVALID_REQUEST);
        });
    }

    #[test]
    fn a_running_call_tells_that_it_lives_and_can_be_cancelled() {
        with_server(Arc::new(Fake::default()), |connect| {
            let client = connect();
            (&mut &client)
                .write_all(b"{\"jsonrpc\":\"2.0\",\"id\":5,\"method\":\"spin\"}\n")
                .unwrap();
            let mut line = String::new();
            std::io::BufReader::with_capacity(1, &client).read_line(&mut line).unwrap();
            assert!(line.contains("\"progress\"") && line.contains("\"call\":5"), "{line}");
            let cancel = r#"{"jsonrpc":"2.0","method":"cancel","params":{"call":5}}"#;
            assert_eq!(ask(&client, cancel)["id"], 5);
        });
    }

    #[test]
    fn what_a_client_did_not_wait_for_is_undone() {
        let fake = Fake::default();
        let undone = Arc::clone(&fake.undone);
        with_server(Arc::new(fake), |connect| {
            let client = connect();
            (&mut &client)
                .write_all(b"{\"jsonrpc\":\"2.0\",\"id\":5,\"method\":\"spin\"}\n")
                .unwrap();
            drop(client);
            wait_until(&undone);
        });
    }

    #[test]
    fn what_a_client_did_not_confirm_is_undone() {
        let fake = Fake::default();
        let undone = Arc::clone(&fake.undone);
        with_server(Arc::new(fake), |connect| {
            let make = |confirm| {
                format!(
                    "{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"make\",\
                     \"params\":{{\"confirm\":{confirm}}}}}"
                )
            };
            let confirm = b"{\"jsonrpc\":\"2.0\",\"method\":\"confirm\",\"params\":{\"call\":1}}\n";
            ask(&connect(), &make(false));
            let client = connect();
            ask(&client, &make(true));
            (&mut &client).write_all(confirm).unwrap();
            // Its end comes after the confirmation, on the same connection.
            assert_eq!(ask(&client, r#"{"jsonrpc":"2.0","id":2,"method":"echo"}"#)["id"], 2);
            drop(client);
            assert!(!undone.load(Ordering::SeqCst));
            ask(&connect(), &make(true));
            wait_until(&undone);
        });
    }

    fn wait_until(flag: &AtomicBool) {
        let start = std::time::Instant::now();
        while !flag.load(Ordering::SeqCst) {
            assert!(start.elapsed() < Duration::from_secs(20), "it was not undone");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
