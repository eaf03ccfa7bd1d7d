//! What goes to standard output and standard error: for people, or as one JSON object a line.

use std::io::{self, Write};

use serde::Serialize;

use crate::error::{Failure, Kind, Result};

/// Prints results and failures in the form that the user has chosen.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// Whether to print JSON.
    pub json: bool,
}

#[derive(Serialize)]
struct Event<'a, T> {
    event: &'static str,
    #[serde(flatten)]
    value: &'a T,
}

#[derive(Serialize)]
struct FailureEvent<'a> {
    event: &'static str,
    error: FailureBody<'a>,
}

#[derive(Serialize)]
struct FailureBody<'a> {
    code: u8,
    #[serde(flatten)]
    failure: &'a Failure,
}

impl Output {
    /// Prints a result: the object `value` with `"event": "result"`, or what `people` writes.
    ///
    /// # Errors
    /// If it cannot be written; a reader that has gone away is none.
    pub fn result<T: Serialize>(
        self,
        value: &T,
        people: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<()> {
        let mut out = io::BufWriter::new(io::stdout().lock());
        let written = if self.json {
            serde_json::to_writer(&mut out, &Event { event: "result", value })
                .map_err(io::Error::from)
                .and_then(|()| out.write_all(b"\n"))
        } else {
            people(&mut out)
        };
        match written.and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) => {
                Err(Failure::new(Kind::Failed, format!("cannot write the result: {error}")))
            }
            Ok(()) => Ok(()),
        }
    }

    /// Prints a failure.
    pub fn failure(self, failure: &Failure) {
        // There is nowhere left to say that saying it has failed.
        if self.json {
            let error = FailureBody { code: failure.kind.exit_code(), failure };
            if let Ok(line) = serde_json::to_string(&FailureEvent { event: "error", error }) {
                writeln!(io::stdout(), "{line}").ok();
            }
        } else {
            writeln!(io::stderr(), "agentfs: {failure}").ok();
        }
    }
}

/// Writes rows below their headings, each column as wide as its widest cell.
///
/// # Errors
/// What `out` refuses.
pub fn table(out: &mut dyn Write, headings: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([headings[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let mut write = |cells: &mut dyn Iterator<Item = &str>| {
        let padded = cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        writeln!(out, "{}", padded.collect::<Vec<_>>().join("  ").trim_end())
    };
    write(&mut headings.iter().copied())?;
    rows.iter().try_for_each(|row| write(&mut row.iter().map(String::as_str)))
}

/// `1 file`, `2 files`.
pub fn count(number: u64, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut out = Vec::new();
        let rows =
            vec![vec!["a".into(), "long cell".into()], vec!["much longer".into(), "b".into()]];
        table(&mut out, &["NAME", "VALUE"], &rows).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "NAME         VALUE\na            long cell\nmuch longer  b\n");
    }

    #[test]
    fn a_failure_in_json_has_code_kind_message_and_hint() {
        let failure = Failure::new(Kind::NotFound, "no such branch").hint("list them");
        let error = FailureBody { code: failure.kind.exit_code(), failure: &failure };
        let text = serde_json::to_value(FailureEvent { event: "error", error }).unwrap();
        assert_eq!(
            text,
            serde_json::json!({"event": "error", "error": {
                "code": 3, "kind": "not_found", "message": "no such branch", "hint": "list them",
            }})
        );
    }
}
