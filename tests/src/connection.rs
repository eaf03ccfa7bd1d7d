//! Speaking to the daemon without the commands.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

use crate::TestStore;

/// How long an answer may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// A connection to the control socket of a store.
pub struct Connection {
    stream: BufReader<UnixStream>,
    calls: u64,
}

impl Connection {
    /// Connects to the daemon of `store`.
    ///
    /// # Panics
    /// If none runs.
    pub fn new(store: &TestStore) -> Self {
        let stream = UnixStream::connect(store.home().join("daemon.sock")).expect("a daemon");
        stream.set_read_timeout(Some(ANSWER_LIMIT)).expect("a time limit");
        Self { stream: BufReader::new(stream), calls: 0 }
    }

    /// Calls `method` and returns its result.
    ///
    /// # Panics
    /// If it fails, or if the answer takes longer than a minute.
    pub fn call(&mut self, method: &str, params: &Value) -> Value {
        self.answer(method, params).unwrap_or_else(|refusal| panic!("{method}: {refusal}"))
    }

    /// Calls `method` and returns its result, or the error that it ends with.
    ///
    /// # Errors
    /// The error, as the daemon has sent it.
    ///
    /// # Panics
    /// If the answer takes longer than a minute.
    pub fn answer(&mut self, method: &str, params: &Value) -> Result<Value, Value> {
        self.ask(method, params).1
    }

    /// Calls `method` and returns the methods of the notifications that came before its result, those of progress left out.
    ///
    /// # Panics
    /// As [`Connection::call`].
    pub fn notified(&mut self, method: &str, params: &Value) -> Vec<String> {
        let (mut notified, outcome) = self.ask(method, params);
        assert!(outcome.is_ok(), "{method}: {outcome:?}");
        notified.retain(|method| method != "progress");
        notified
    }

    fn ask(&mut self, method: &str, params: &Value) -> (Vec<String>, Result<Value, Value>) {
        self.calls += 1;
        self.send(&json!({"id": self.calls, "method": method, "params": params}));
        let mut notified = Vec::new();
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line).expect("an answer");
            let message: Value = serde_json::from_str(&line).expect("an answer");
            if message["id"] == self.calls {
                let outcome = match message.get("error") {
                    Some(error) => Err(error.clone()),
                    None => Ok(message["result"].clone()),
                };
                return (notified, outcome);
            }
            notified.extend(message["method"].as_str().map(str::to_owned));
        }
    }

    /// Says that the answer of the last call has been taken, where that was to be confirmed.
    ///
    /// # Panics
    /// If the daemon has gone away.
    pub fn confirm(&mut self) {
        self.send(&json!({"method": "confirm", "params": {"call": self.calls}}));
    }

    fn send(&mut self, message: &Value) {
        let mut message = message.clone();
        message["jsonrpc"] = "2.0".into();
        let line = format!("{message}\n");
        self.stream.get_mut().write_all(line.as_bytes()).expect("the daemon listens");
    }
}
