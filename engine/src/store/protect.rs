//! The database outlives damage: what the store does about the pages of [`super::parity`].

use tracing::info;

use super::Store;
use super::database::Database;
use crate::error::Result;
use crate::progress::Cancel;

impl Store {
    /// Pages of the database that were damaged when they were read, and are so still. Their parity told what they had.
    pub(crate) fn damaged_pages(&self) -> Vec<u64> {
        let state = self.core.lock_state();
        state.database.as_ref().map(Database::damaged_pages).unwrap_or_default()
    }

    /// Writes what the damaged pages of the database had, durably.
    ///
    /// # Errors
    /// What reading and writing meet.
    pub(crate) fn rebuild_pages(&self) -> Result<()> {
        let state = self.core.lock_state();
        state.database.as_ref().map_or(Ok(()), Database::rebuild_pages)
    }

    /// Sees to it that the database can lose any one page of a group without losing anything: a crash can leave groups that it was
    /// writing without that. Says of how many that was so. Batches wait for no more than a group of pages.
    ///
    /// # Errors
    /// What reading and writing meet, and [`crate::Error::Cancelled`].
    pub fn protect_database(&self, cancel: &Cancel) -> Result<usize> {
        let mut made = 0;
        for part in 0.. {
            cancel.check()?;
            let state = self.core.lock_state();
            let Some(database) = &state.database else { break };
            match database.protect_pages(part)? {
                Some(anew) => made += usize::from(anew),
                None => break,
            }
        }
        if made > 0 {
            info!(parts = made, "the database is protected from damage again");
        }
        Ok(made)
    }
}
