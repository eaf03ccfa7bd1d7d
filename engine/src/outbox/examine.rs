//! Reads an outbox without changing it: what a check does, also beside the process that writes it.
//!
//! The files are opened first and read afterwards. What is appended meanwhile lies beyond the lengths
//! that were found, and what is trimmed meanwhile stays readable. Every segment but the newest is
//! complete when it is listed, since a segment is begun after the one before it was closed; a record
//! that is just being written looks like the torn end of the log. It may be written over zeros that
//! were there before, and followed by others that state it to be durable: what is missing is looked
//! for once more before it counts as damage.

use std::io::ErrorKind;
use std::path::Path;

use super::Replayed;
use super::reader::{Found, Reader};
use super::recovery::{Candidate, Walk, candidates};
use crate::error::{Error, Result};
use crate::id::Sequence;
use crate::storage::Storage;

/// The files of an outbox as they are at one moment.
pub(crate) struct Examination {
    candidates: Vec<Candidate>,
}

/// What an outbox holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Examined {
    /// Segment files.
    pub(crate) segments: u64,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// Records after the drained one.
    pub(crate) records: u64,
}

impl Examination {
    /// Opens the files of the outbox in `dir`; `None` if there is no such directory.
    ///
    /// # Errors
    /// As [`super::Outbox::open`]. [`Error::Io`] with [`ErrorKind::NotFound`] if a file was trimmed
    /// while it was opened: the next try finds another set of files.
    pub(crate) fn begin(storage: &dyn Storage, dir: &Path) -> Result<Option<Self>> {
        match storage.exists(dir) {
            Ok(true) => Ok(Some(Self { candidates: candidates(storage, dir)? })),
            Ok(false) => Ok(None),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("look for", dir, error)),
        }
    }

    /// Hands each record after `drained` to `replay` and comes to the verdict that an opening would
    /// come to. Nothing is cut and nothing is removed.
    ///
    /// # Errors
    /// As [`super::Outbox::open`].
    pub(crate) fn read(
        &self,
        drained: Sequence,
        replay: &mut dyn FnMut(Replayed<'_>) -> Result<()>,
    ) -> Result<Examined> {
        let walk = Walk::through(&self.candidates, drained, replay)?;
        Ok(Examined {
            segments: self.candidates.len() as u64,
            bytes: self.candidates.iter().map(|candidate| candidate.len).sum(),
            records: walk.next.0 - drained.next().0,
        })
    }

    /// Calls `visit` with the body of every record that can be read, drained or not, in each segment up
    /// to the first that cannot.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn bodies(&self, visit: &mut dyn FnMut(&[u8])) -> Result<()> {
        let mut body = Vec::new();
        for candidate in &self.candidates {
            let Some(header) = candidate.header else { continue };
            let segment = &candidate.segment;
            let read = |error| segment.error("read", error);
            let mut reader = Reader::new(&*segment.file, segment.number, candidate.len);
            let mut sequence = header.first;
            while let Found::Frame(frame) = reader.next(sequence, header.salt).map_err(read)? {
                // The reader has verified the frame, and so that its length is within the limit.
                body.resize(frame.body_len as usize, 0);
                segment.file.read_at(frame.body_at, &mut body).map_err(read)?;
                visit(&body);
                sequence = sequence.next();
            }
        }
        Ok(())
    }
}
