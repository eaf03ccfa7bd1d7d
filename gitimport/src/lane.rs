//! Objects that are too large for every worker to hold one at once.

use std::io::Read;
use std::sync::{Mutex, MutexGuard, PoisonError};

use agentfs_engine::GitOid;

use crate::error::{Error, Result};
use crate::limits::{LIGHT_OBJECT_BYTES_MAX, WHOLE_OBJECT_BYTES_MAX};
use crate::object::Kind;
use crate::odb::Reader;

/// Lets one worker at a time hold an object above [`LIGHT_OBJECT_BYTES_MAX`].
#[derive(Debug, Default)]
pub(crate) struct Lane(Mutex<()>);

/// A turn, which lasts as long as this lives.
pub(crate) type Turn<'a> = MutexGuard<'a, ()>;

impl Lane {
    /// Waits for a turn.
    pub(crate) fn enter(&self) -> Turn<'_> {
        // There is nothing that a panic could leave half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads object `oid` of kind `kind` and at most `limit` bytes into `out`. It takes a turn if it
    /// must and there is none yet; keep that as long as `out`.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub(crate) fn read<'l>(
        &'l self,
        turn: &mut Option<Turn<'l>>,
        reader: &mut Reader,
        oid: &GitOid,
        kind: Kind,
        limit: u64,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        match reader.read(oid, kind, limit.min(LIGHT_OBJECT_BYTES_MAX), out) {
            Err(Error::TooLarge { .. }) if limit > LIGHT_OBJECT_BYTES_MAX => {
                turn.get_or_insert_with(|| self.enter());
                reader.read(oid, kind, limit, out)
            }
            result => result,
        }
    }

    /// Reads blob `oid` into `out`, whatever its size, which the caller has compared with a limit.
    ///
    /// # Errors
    /// As [`Reader::read`].
    pub(crate) fn read_any_size<'l>(
        &'l self,
        turn: &mut Option<Turn<'l>>,
        reader: &mut Reader,
        oid: &GitOid,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        match self.read(turn, reader, oid, Kind::Blob, WHOLE_OBJECT_BYTES_MAX, out) {
            Err(Error::TooLarge { .. }) => {
                let mut stream = reader.stream(oid)?;
                out.clear();
                stream.read_to_end(out).map_err(|error| Error::read(oid, error))?;
                Ok(())
            }
            result => result,
        }
    }
}
