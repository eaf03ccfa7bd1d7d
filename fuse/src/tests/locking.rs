//! Goal: locks of both kinds keep processes and open files apart, and cost no message.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use rustix::fs::{FlockOperation, fcntl_lock, flock};
use rustix::io::Errno;

use super::fixture::Mount;
use super::process::start;
use super::twin::items;
use crate::cache::Levers;

/// Takes what it is told to, says whether it has it, and keeps it until it is told to end.
pub(super) fn lock_in_a_process(path: &Path) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    for line in std::io::stdin().lock().lines().map(Result::unwrap) {
        let taken = match line.as_str() {
            "flock" => flock(&file, FlockOperation::NonBlockingLockExclusive),
            "fcntl" => fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive),
            "free" => flock(&file, FlockOperation::Unlock)
                .and_then(|()| fcntl_lock(&file, FlockOperation::Unlock)),
            other => panic!("{other:?} is no lock"),
        };
        let mut out = std::io::stdout();
        writeln!(out, "answer {}", taken.is_ok()).unwrap();
        out.flush().unwrap();
    }
}

/// A process that locks.
struct Locker {
    child: std::process::Child,
    answers: BufReader<std::process::ChildStdout>,
}

impl Locker {
    fn new(path: &Path) -> Self {
        let mut child = start("lock", path);
        let answers = BufReader::new(child.stdout.take().unwrap());
        Self { child, answers }
    }

    /// Whether it got it.
    fn ask(&mut self, what: &str) -> bool {
        writeln!(self.child.stdin.as_mut().unwrap(), "{what}").unwrap();
        loop {
            let mut line = String::new();
            assert_ne!(self.answers.read_line(&mut line).unwrap(), 0, "it has ended");
            // The harness of the tests prints as well.
            if let Some(answer) = line.trim().strip_prefix("answer ") {
                return answer.parse().unwrap();
            }
        }
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

#[test]
fn a_lock_keeps_other_processes_out() {
    let Some(mount) = Mount::writable(items(), Levers::default()) else { return };
    let path = mount.path("a.txt");
    let mut first = Locker::new(&path);
    let mut second = Locker::new(&path);
    for kind in ["flock", "fcntl"] {
        assert!(first.ask(kind), "{kind}");
        assert!(!second.ask(kind), "{kind}");
        assert!(first.ask("free"));
        assert!(second.ask(kind), "{kind}");
        assert!(second.ask("free"));
    }
    // Who ends lets go.
    assert!(first.ask("flock") && first.ask("fcntl"));
    drop(first);
    assert!(second.ask("flock") && second.ask("fcntl"));
}

#[test]
fn locking_sends_nothing() {
    let Some(mount) = Mount::writable(items(), Levers::default()) else { return };
    let open = || File::options().read(true).write(true).open(mount.path("a.txt")).unwrap();
    let (first, second) = (open(), open());
    let sent = mount.messages(|| {
        flock(&first, FlockOperation::LockExclusive).unwrap();
        let refused = flock(&second, FlockOperation::NonBlockingLockShared);
        assert_eq!(refused, Err(Errno::AGAIN));
        flock(&first, FlockOperation::Unlock).unwrap();
        fcntl_lock(&first, FlockOperation::LockExclusive).unwrap();
    });
    assert_eq!(sent, []);
}
