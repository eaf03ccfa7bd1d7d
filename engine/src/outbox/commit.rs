//! Group commit: one sync of the device serves everybody who waits for one.
//!
//! Whoever finds no sync running becomes the leader and syncs all that is appended by then; the
//! others wait, and the first of them that is not served leads the next one.

use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, PoisonError};

use super::log::{Unsynced, rewrite};
use super::{Outbox, lock};
use crate::error::{Error, Result};
use crate::id::Sequence;

/// Who syncs.
#[derive(Debug, Default)]
pub(super) struct Commit {
    /// Whether a sync is running. Leaf lock, never held over a system call.
    running: Mutex<bool>,
    ended: Condvar,
}

/// The leader's turn. Dropping it wakes those who wait.
struct Lead<'a>(&'a Commit);

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        *lock(&self.0.running) = false;
        self.0.ended.notify_all();
    }
}

impl Outbox {
    /// Waits until every record up to `through` survives a crash of the machine. A sequence that
    /// was not appended stands for the last one that was.
    ///
    /// # Errors
    /// [`Error::Io`] from the sync that failed, and [`Error::Poisoned`] from every later one: what
    /// a failed sync did not save may be lost although it is still read.
    pub fn sync(&self, through: Sequence) -> Result<()> {
        self.counts.syncs_asked.fetch_add(1, Ordering::Relaxed);
        let through = through.min(self.last());
        let Some(_lead) = self.lead_unless_durable(through)? else { return Ok(()) };
        let unsynced = lock(&self.log).unsynced();
        self.sync_now(&unsynced).inspect_err(|error| self.latch(error))?;
        lock(&self.log).note_synced(&unsynced);
        self.durable.fetch_max(unsynced.last.0, Ordering::Release);
        Ok(())
    }

    /// Waits until `through` is durable, then `None`, or until nobody syncs.
    fn lead_unless_durable(&self, through: Sequence) -> Result<Option<Lead<'_>>> {
        let mut running = lock(&self.commit.running);
        loop {
            self.check()?;
            if self.durable() >= through {
                return Ok(None);
            }
            if !*running {
                *running = true;
                return Ok(Some(Lead(&self.commit)));
            }
            running = self.commit.ended.wait(running).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Syncs the segments, then the names of those that are new. Which comes first does not matter:
    /// nothing is called durable before both are.
    fn sync_now(&self, unsynced: &Unsynced) -> Result<()> {
        for file in &unsynced.files {
            let segment = &file.segment;
            if let Some(from) = file.rewrite_from {
                rewrite(&*segment.file, from, file.end)
                    .map_err(|error| segment.error("write again", error))?;
            }
            segment.file.sync().map_err(|error| segment.error("sync", error))?;
            self.counts.file_syncs.fetch_add(1, Ordering::Relaxed);
        }
        if unsynced.files.iter().all(|file| file.segment.is_named()) {
            return Ok(());
        }
        // Whoever created the directory, or the two above it, may not have lived to sync them.
        let above = match self.rooted.load(Ordering::Relaxed) {
            true => 0,
            false => 2,
        };
        for dir in self.dir.ancestors().take(1 + above).filter(|dir| !dir.as_os_str().is_empty()) {
            self.storage.sync_dir(dir).map_err(|error| Error::io("sync", dir, error))?;
            self.counts.dir_syncs.fetch_add(1, Ordering::Relaxed);
        }
        self.rooted.store(true, Ordering::Relaxed);
        unsynced.files.iter().for_each(|file| file.segment.set_named());
        Ok(())
    }
}
