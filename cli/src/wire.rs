//! JSON-RPC 2.0, one message a line, as both ends of the control socket read and write it.

use std::io::{self, BufRead, Read};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Failure, Kind};

/// Longest line in bytes. It bounds what a peer can make the other end hold in memory.
pub const LINE_BYTES_MAX: usize = 4 << 20;

/// JSON-RPC's code for a line that is no JSON.
pub const PARSE_ERROR: i64 = -32700;
/// JSON-RPC's code for JSON that is no request.
pub const INVALID_REQUEST: i64 = -32600;
/// JSON-RPC's code for a method that does not exist.
pub const METHOD_NOT_FOUND: i64 = -32601;
/// JSON-RPC's code for parameters that the method does not take.
pub const INVALID_PARAMS: i64 = -32602;
/// The code of a [`Failure`] is this minus its exit code.
pub const FAILURE: i64 = -32000;

/// What ties an answer to its request; the client chooses it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Id {
    /// A number.
    Number(u64),
    /// A string.
    Text(String),
}

/// A request, or a notification if it has no id.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// Always "2.0".
    pub jsonrpc: String,
    /// What the answer refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Id>,
    /// The method.
    pub method: String,
    /// Its parameters, an object.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub params: Value,
}

impl Request {
    /// A request with an id, or a notification without.
    pub fn new(id: Option<Id>, method: &str, params: Value) -> Self {
        Self { jsonrpc: "2.0".into(), id, method: method.into(), params }
    }
}

/// What the daemon sends: an answer (id, and result or error) or a notification (method, params).
#[derive(Debug, Deserialize)]
pub struct Incoming {
    /// The request that this answers.
    pub id: Option<Id>,
    /// The answer; absent for one that is `null`.
    pub result: Option<Value>,
    /// The refusal.
    pub error: Option<RpcError>,
    /// The notification.
    pub method: Option<String>,
    /// Its parameters.
    pub params: Option<Value>,
}

/// An answer.
#[derive(Debug, Serialize)]
pub struct Response {
    jsonrpc: &'static str,
    id: Option<Id>,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Result(Value),
    Error(RpcError),
}

impl Response {
    /// The answer to request `id`; JSON-RPC wants `null` where the id could not be read.
    pub fn new(id: Option<Id>, outcome: Result<Value, RpcError>) -> Self {
        let outcome = match outcome {
            Ok(value) => Outcome::Result(value),
            Err(error) => Outcome::Error(error),
        };
        Self { jsonrpc: "2.0", id, outcome }
    }
}

/// JSON-RPC's error object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RpcError {
    /// One of the constants of this module.
    pub code: i64,
    /// What failed and why.
    pub message: String,
    /// The failure itself, for errors that are not JSON-RPC's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Failure>,
}

impl RpcError {
    /// An error of the protocol itself.
    pub fn protocol(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: None }
    }
}

impl From<Failure> for RpcError {
    fn from(failure: Failure) -> Self {
        Self {
            code: FAILURE - i64::from(failure.kind.exit_code()),
            message: failure.message.clone(),
            data: Some(failure),
        }
    }
}

impl From<RpcError> for Failure {
    fn from(error: RpcError) -> Self {
        error.data.unwrap_or_else(|| {
            Self::new(
                Kind::DaemonVersion,
                format!("the daemon refused the call: {}", error.message),
            )
            .hint("restart it with `agentfs daemon stop`; the next command starts it again")
        })
    }
}

/// A message as a line, with its end.
pub fn encode(message: &impl Serialize) -> Vec<u8> {
    // The messages are made of strings, numbers and maps with string keys: nothing that JSON lacks.
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Reads one line into `line`, without its end. `Ok(false)` at the end of the stream.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] for a line that is too long, or what reading meets.
pub fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    reader.take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', line)?;
    if line.last() == Some(&b'\n') {
        line.pop();
        return Ok(true);
    }
    if line.len() > LINE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long"));
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_may_be_as_long_as_the_limit_and_no_longer() {
        let mut line = Vec::new();
        let mut exact = vec![b'x'; LINE_BYTES_MAX];
        exact.push(b'\n');
        assert!(read_line(&mut exact.as_slice(), &mut line).unwrap());
        assert_eq!(line.len(), LINE_BYTES_MAX);
        let long = vec![b'x'; LINE_BYTES_MAX + 1];
        let error = read_line(&mut long.as_slice(), &mut line).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_torn_line_is_no_message() {
        let mut line = Vec::new();
        let mut stream: &[u8] = b"one\ntwo";
        assert!(read_line(&mut stream, &mut line).unwrap());
        assert_eq!(line, b"one");
        assert!(!read_line(&mut stream, &mut line).unwrap());
    }

    #[test]
    fn a_failure_keeps_its_kind_in_an_error_object() {
        let failure = Failure::new(Kind::NotFound, "no branch x").hint("list them");
        let line = encode(&Response::new(Some(Id::Number(7)), Err(failure.clone().into())));
        let read: Incoming = serde_json::from_slice(&line).unwrap();
        assert_eq!(read.id, Some(Id::Number(7)));
        let error = read.error.unwrap();
        assert_eq!(error.code, FAILURE - 3);
        assert_eq!(Failure::from(error), failure);
    }

    #[test]
    fn a_result_that_is_null_is_still_a_result() {
        let line = String::from_utf8(encode(&Response::new(Some(Id::Number(1)), Ok(Value::Null))))
            .unwrap();
        assert_eq!(line, "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":null}\n");
    }
}
