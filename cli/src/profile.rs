//! When a command got where: `--profile`.
//!
//! Whoever gets somewhere says so, and `main` prints all of it at the end. Nobody reads it in between.

use std::fmt::Display;
use std::io::{self, Write};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::protocol::StepDone;

/// What is known of this process, if that was asked for.
static PROFILE: OnceLock<Profile> = OnceLock::new();

struct Profile {
    since: Instant,
    /// Leaf lock.
    checkpoints: Mutex<Vec<Checkpoint>>,
}

/// Who got somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum By {
    Command,
    Daemon,
}

/// Something that was done.
#[derive(Debug, Serialize)]
struct Checkpoint {
    what: String,
    by: By,
    /// Milliseconds since the command began.
    ms: f64,
}

#[derive(Serialize)]
struct Event<'a> {
    event: &'static str,
    checkpoints: &'a [Checkpoint],
}

/// Has all that follows be known, with times since `since`.
pub fn begin(since: Instant) {
    // A second one changes nothing.
    PROFILE.set(Profile { since, checkpoints: Mutex::default() }).ok();
}

/// Whether anybody wants to know.
pub fn is_on() -> bool {
    PROFILE.get().is_some()
}

/// The command has done `what`.
pub fn reached(what: impl Display) {
    reached_at(Instant::now(), what);
}

/// The command has done `what` at a moment.
pub fn reached_at(at: Instant, what: impl Display) {
    if let Some(profile) = PROFILE.get() {
        profile.add(what.to_string(), By::Command, at);
    }
}

/// The daemon has taken `steps` for a request that was sent at `sent`. When it began with that is not known here; that is as
/// much later as it took to arrive.
pub fn taken(sent: Instant, steps: Vec<StepDone>) {
    if let Some(profile) = PROFILE.get() {
        for StepDone { step, micros } in steps {
            // A time that no clock can show is none of a daemon.
            if let Some(at) = sent.checked_add(Duration::from_micros(micros)) {
                profile.add(step, By::Daemon, at);
            }
        }
    }
}

/// Says on standard error what was reached, if that was asked for: a line each, or one object.
pub fn print(json: bool) {
    let Some(profile) = PROFILE.get() else { return };
    reached("done");
    let mut checkpoints = profile.checkpoints.lock().unwrap_or_else(PoisonError::into_inner);
    // Threads of a command do not wait for each other to say so.
    checkpoints.sort_by(|a, b| a.ms.total_cmp(&b.ms));
    // There is nowhere left to say that saying it has failed.
    write(&mut io::stderr().lock(), &checkpoints, json).ok();
}

fn write(out: &mut dyn Write, checkpoints: &[Checkpoint], json: bool) -> io::Result<()> {
    if json {
        let line = serde_json::to_string(&Event { event: "profile", checkpoints })?;
        return writeln!(out, "{line}");
    }
    checkpoints.iter().try_for_each(|Checkpoint { what, by, ms }| {
        let indent = if *by == By::Daemon { "  " } else { "" };
        writeln!(out, "{ms:10.3} ms  {indent}{what}")
    })
}

impl Profile {
    fn add(&self, what: String, by: By, at: Instant) {
        let ms = at.saturating_duration_since(self.since).as_micros() as f64 / 1000.0;
        let mut all = self.checkpoints.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(Checkpoint { what, by, ms });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_a_line_or_part_of_an_object() {
        let one = |what: &str, by, ms| Checkpoint { what: what.into(), by, ms };
        let all = [one("sent", By::Command, 0.5), one("seal", By::Daemon, 12.25)];
        let text = |json| {
            let mut out = Vec::new();
            write(&mut out, &all, json).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(text(false), "     0.500 ms  sent\n    12.250 ms    seal\n");
        let value: serde_json::Value = serde_json::from_str(&text(true)).unwrap();
        assert_eq!(
            value,
            serde_json::json!({"event": "profile", "checkpoints": [
                {"what": "sent", "by": "command", "ms": 0.5},
                {"what": "seal", "by": "daemon", "ms": 12.25},
            ]})
        );
    }
}
