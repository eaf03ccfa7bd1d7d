//! A file that changes nothing on the device before it is told to.
//!
//! redb writes while it opens a database: that it is open, and what it repairs. A database that turns
//! out to be refused, since it is damaged or of another version, is to be left as it was found. So what is written
//! while it is opened is kept in memory, and done once everything has been accepted: the same steps in
//! the same order, syncs included, so that a crash among them leaves what a crash of redb's own writing would.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::storage::File;

/// The file below, and what is kept from it until [`HeldFile::release`].
#[derive(Debug)]
pub(super) struct HeldFile {
    file: Arc<dyn File>,
    /// Whether steps are kept. Falls once, under the lock of `steps`.
    holding: AtomicBool,
    steps: Mutex<Steps>,
}

#[derive(Debug)]
struct Steps {
    /// In the order in which they were asked for.
    done: Vec<Step>,
    /// The length that the file would have.
    len: u64,
}

#[derive(Debug)]
enum Step {
    Write { offset: u64, bytes: Vec<u8> },
    SetLen(u64),
    Sync,
}

impl HeldFile {
    /// Holds whatever is done to `file`.
    ///
    /// # Errors
    /// What measuring the file meets.
    pub(super) fn new(file: Arc<dyn File>) -> io::Result<Self> {
        let steps = Steps { done: Vec::new(), len: file.len()? };
        Ok(Self { file, holding: AtomicBool::new(true), steps: Mutex::new(steps) })
    }

    /// Does everything that was held back; from now on, nothing is.
    ///
    /// # Errors
    /// The operating system's. What was not done stays held back, and may be tried again.
    pub(super) fn release(&self) -> io::Result<()> {
        let mut steps = self.lock();
        for step in &steps.done {
            match step {
                Step::Write { offset, bytes } => self.file.write_at(*offset, bytes)?,
                Step::SetLen(len) => self.file.set_len(*len)?,
                Step::Sync => self.file.sync()?,
            }
        }
        steps.done = Vec::new();
        self.holding.store(false, Ordering::Release);
        Ok(())
    }

    /// As [`File::len`].
    pub(super) fn len(&self) -> io::Result<u64> {
        match self.held() {
            Some(steps) => Ok(steps.len),
            None => self.file.len(),
        }
    }

    /// As [`File::read_at`].
    pub(super) fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let Some(steps) = self.held() else { return self.file.read_at(offset, out) };
        steps.read_at(&*self.file, offset, out)
    }

    /// As [`File::write_at`].
    pub(super) fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let Some(mut steps) = self.held() else { return self.file.write_at(offset, bytes) };
        if bytes.is_empty() {
            return Ok(());
        }
        steps.len = steps.len.max(end(offset, bytes.len())?);
        steps.done.push(Step::Write { offset, bytes: bytes.to_vec() });
        Ok(())
    }

    /// As [`File::set_len`].
    pub(super) fn set_len(&self, len: u64) -> io::Result<()> {
        let Some(mut steps) = self.held() else { return self.file.set_len(len) };
        steps.len = len;
        steps.done.push(Step::SetLen(len));
        Ok(())
    }

    /// As [`File::sync`], but for what is held back: that has not been written.
    pub(super) fn sync(&self) -> io::Result<()> {
        let Some(mut steps) = self.held() else { return self.file.sync() };
        steps.done.push(Step::Sync);
        Ok(())
    }

    /// What is held back, while something is.
    fn held(&self) -> Option<MutexGuard<'_, Steps>> {
        if !self.holding.load(Ordering::Acquire) {
            return None;
        }
        let steps = self.lock();
        // It may have been released while this waited.
        self.holding.load(Ordering::Acquire).then_some(steps)
    }

    fn lock(&self) -> MutexGuard<'_, Steps> {
        // A step is kept whole or not at all, so that a panic elsewhere leaves nothing half done.
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Steps {
    /// Fills `out` with what the file would hold from `offset` on, had the steps been done.
    fn read_at(&self, file: &dyn File, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let until = end(offset, out.len())?;
        if out.is_empty() {
            return Ok(());
        }
        if until > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let there = file.len()?.clamp(offset, until);
        let (below, beyond) = out.split_at_mut((there - offset) as usize);
        file.read_at(offset, below)?;
        beyond.fill(0);
        for step in &self.done {
            match step {
                Step::Write { offset: at, bytes } => lay_over(offset, out, *at, bytes),
                // What is behind a shorter end is zeros, if the file grows again.
                Step::SetLen(len) if *len < until => {
                    out[len.saturating_sub(offset) as usize..].fill(0);
                }
                Step::SetLen(_) | Step::Sync => {}
            }
        }
        Ok(())
    }
}

/// Copies into `out`, which lies at `offset`, what of `bytes`, which lie at `at`, falls into it.
fn lay_over(offset: u64, out: &mut [u8], at: u64, bytes: &[u8]) {
    let from = offset.max(at);
    let until = (offset + out.len() as u64).min(at + bytes.len() as u64);
    if from < until {
        let len = (until - from) as usize;
        let (into, of) = ((from - offset) as usize, (from - at) as usize);
        out[into..into + len].copy_from_slice(&bytes[of..of + len]);
    }
}

/// Where `len` bytes at `offset` end.
fn end(offset: u64, len: usize) -> io::Result<u64> {
    offset.checked_add(len as u64).ok_or_else(|| io::ErrorKind::FileTooLarge.into())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::storage::{Disk, Storage};

    #[derive(Clone, Debug)]
    enum Act {
        Write(u64, Vec<u8>),
        SetLen(u64),
        Sync,
        Read(u64, usize),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            (0_u64..80, prop::collection::vec(any::<u8>(), 0..40))
                .prop_map(|(at, b)| Act::Write(at, b)),
            (0_u64..120).prop_map(Act::SetLen),
            Just(Act::Sync),
            (0_u64..120, 0_usize..60).prop_map(|(at, len)| Act::Read(at, len)),
        ]
    }

    fn file(dir: &Path, name: &str) -> Arc<dyn File> {
        let file = Disk.open(&dir.join(name), true).expect("a file");
        file.write_at(0, &[7; 50]).expect("writing");
        file
    }

    fn contents(file: &dyn File) -> Vec<u8> {
        let mut bytes = vec![0; file.len().expect("a length") as usize];
        file.read_at(0, &mut bytes).expect("reading");
        bytes
    }

    proptest! {
        /// What is read is what a file gives to which the same was done at once; the file itself stays as it is
        /// until it is released, and then equals that one.
        #[test]
        fn what_is_held_reads_as_if_it_were_done(
            before in prop::collection::vec(act(), 0..24),
            after in prop::collection::vec(act(), 0..8),
        ) {
            let dir = tempfile::tempdir().expect("a directory");
            let (below, plain) = (file(dir.path(), "held"), file(dir.path(), "plain"));
            let held = HeldFile::new(Arc::clone(&below)).expect("a length");
            let run = |acts: &[Act]| {
                for act in acts {
                    match act {
                        Act::Write(at, bytes) => {
                            held.write_at(*at, bytes).expect("writing");
                            plain.write_at(*at, bytes).expect("writing");
                        }
                        Act::SetLen(len) => {
                            held.set_len(*len).expect("cutting");
                            plain.set_len(*len).expect("cutting");
                        }
                        Act::Sync => held.sync().expect("syncing"),
                        Act::Read(at, len) => {
                            let (mut found, mut expected) = (vec![1; *len], vec![1; *len]);
                            let result = held.read_at(*at, &mut found).map_err(|error| error.kind());
                            let wanted = plain.read_at(*at, &mut expected).map_err(|error| error.kind());
                            assert_eq!(result, wanted);
                            if result.is_ok() {
                                assert_eq!(found, expected);
                            }
                        }
                    }
                    assert_eq!(held.len().expect("a length"), plain.len().expect("a length"));
                }
            };
            run(&before);
            prop_assert_eq!(contents(&*below), vec![7; 50]);
            held.release().expect("releasing");
            prop_assert_eq!(contents(&*below), contents(&*plain));
            run(&after);
            prop_assert_eq!(contents(&*below), contents(&*plain));
        }
    }
}
