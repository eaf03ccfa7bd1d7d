//! The start of a session's threads, which serve all together or not at all.
//!
//! The kernel uses the queues of io_uring when all are registered, and lets whoever asks wait until
//! then. So nobody serves before everything is registered, and if something is not, everybody goes: the
//! device closes, and with it the connection.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::Duration;

use tracing::error;

use crate::mount;
use crate::ops::Ops;
use crate::uring::Worker;

/// How long the kernel may take to register what it registers at once.
const REGISTERED_WITHIN: Duration = Duration::from_secs(10);

/// The end that waits for the threads.
pub(crate) struct Start {
    reports: Receiver<io::Result<()>>,
    go: Vec<Sender<()>>,
}

/// The end that the threads are started from.
pub(crate) struct Starting {
    report: Sender<io::Result<()>>,
    go: Vec<Receiver<()>>,
}

impl Start {
    /// Both ends, for so many workers and whoever reads the device.
    pub(crate) fn new(workers: usize) -> (Self, Starting) {
        let (report, reports) = mpsc::channel();
        let (go, going) = (0..=workers).map(|_| mpsc::channel()).unzip();
        (Self { reports, go }, Starting { report, go: going })
    }

    /// Waits until all workers are ready, and lets everybody go.
    ///
    /// # Errors
    /// If one is not. Then all end.
    pub(crate) fn wait(self) -> io::Result<()> {
        for _ in 1..self.go.len() {
            let late = |_| io::Error::new(io::ErrorKind::TimedOut, "a queue was not registered");
            self.reports.recv_timeout(REGISTERED_WITHIN).map_err(late)??;
        }
        // Who is not there to be told has ended already.
        self.go.into_iter().for_each(|go| _ = go.send(()));
        Ok(())
    }
}

impl Starting {
    /// Runs `workers` on threads of their own and `read` on this one, until all have ended. A worker
    /// that fails takes the mount on `dir` with it: nobody else has its queue.
    pub(crate) fn run(
        self,
        workers: Vec<Worker>,
        device: &OwnedFd,
        ops: &Ops,
        dir: &Path,
        read: impl FnOnce(),
    ) {
        let Self { report, go } = self;
        let mut go = go.into_iter();
        thread::scope(|scope| {
            let reader = go.next();
            for (number, (worker, go)) in workers.into_iter().zip(go).enumerate() {
                let (name, to) = (format!("agentfs-uring-{number}"), report.clone());
                let started = thread::Builder::new().name(name).spawn_scoped(scope, move || {
                    if let Err(failure) = worker.run(device, ops, &to, &go) {
                        error!("the mount on {} ends: io_uring failed: {failure}", dir.display());
                        mount::abort(dir);
                    }
                });
                if let Err(failure) = started {
                    // Whoever waits for it counts the reports.
                    let _ = report.send(Err(failure));
                }
            }
            if reader.is_some_and(|go| go.recv().is_ok()) {
                read();
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_go_or_none() {
        for refused in [None, Some(0), Some(1)] {
            let (start, starting) = Start::new(2);
            let ready = |number| match refused {
                Some(other) if other == number => Err(io::ErrorKind::InvalidInput.into()),
                _ => Ok(()),
            };
            (0..2).for_each(|number| starting.report.send(ready(number)).unwrap());
            assert_eq!(start.wait().is_ok(), refused.is_none());
            for go in starting.go {
                assert_eq!(go.recv().is_ok(), refused.is_none());
            }
        }
    }

    #[test]
    fn without_workers_the_reader_goes_at_once() {
        let (start, starting) = Start::new(0);
        start.wait().unwrap();
        assert_eq!(starting.go.len(), 1);
        assert!(starting.go[0].recv().is_ok());
    }
}
