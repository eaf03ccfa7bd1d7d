//! Engine errors to errnos: the only place where it is done.
//!
//! An errno says little, so whatever becomes `EIO` is logged with the file's path and the engine's
//! words, which name the chunk or object. A program that reads a damaged file over and over fills
//! the log with one line, not with one for each attempt.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use agentfs_engine::{Denial, Error};
use rustix::io::Errno;
use tracing::error;

/// Most different failures that are remembered as logged; then all may be logged again.
const REPORTED_MAX: usize = 1024;

/// The errno that tells a program of `error`. [`Errno::IO`] is the one that tells too little.
pub(crate) fn errno_of(error: &Error) -> Errno {
    match error {
        // A number that this worktree never gave out, or one of a tree that it left since.
        Error::NoInode(_) => Errno::STALE,
        Error::NotDirectory(_) => Errno::NOTDIR,
        Error::IsDirectory(_) => Errno::ISDIR,
        Error::WrongKind(_) => Errno::INVAL,
        Error::ReadOnly => Errno::ROFS,
        Error::Denied(_, denial) => match denial {
            Denial::NoEntry => Errno::NOENT,
            Denial::Exists => Errno::EXIST,
            Denial::NotEmpty => Errno::NOTEMPTY,
            Denial::NameTooLong => Errno::NAMETOOLONG,
            Denial::NotPermitted => Errno::PERM,
            Denial::Invalid => Errno::INVAL,
            Denial::TooManyLinks => Errno::MLINK,
            Denial::TooLarge => Errno::FBIG,
            Denial::NoAttribute => Errno::NODATA,
            Denial::AttributeTooLarge => Errno::TOOBIG,
            Denial::NoSpaceForAttribute => Errno::NOSPC,
        },
        Error::NoSuch { .. } => Errno::NOENT,
        Error::Exists { .. } => Errno::EXIST,
        Error::TooLarge { .. } => Errno::FBIG,
        Error::Cancelled => Errno::INTR,
        // What a program can wait for or make room for. Any other error of the store's files, a
        // missing one above all, says nothing about the file that the program named.
        Error::Io { source, .. } => match Errno::from_io_error(source) {
            Some(errno @ (Errno::NOSPC | Errno::DQUOT | Errno::NOMEM)) => errno,
            _ => Errno::IO,
        },
        _ => Errno::IO,
    }
}

/// Which failures the log has already.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    /// Leaf lock: nothing else is taken under it.
    seen: Mutex<HashSet<String>>,
}

impl Reports {
    /// Logs a failure unless it was logged before. `subject` names operation and file.
    pub(crate) fn report(&self, subject: fmt::Arguments<'_>, why: &dyn fmt::Display) {
        let line = format!("{subject}: {why}");
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.contains(&line) {
            return;
        }
        if seen.len() >= REPORTED_MAX {
            seen.clear();
        }
        error!("{line}");
        seen.insert(line);
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use agentfs_engine::{ChunkId, Ino};

    use super::*;

    fn io_error(kind: io::ErrorKind) -> Error {
        Error::io("read", Path::new("/store/segments/1"), kind.into())
    }

    #[test]
    fn damage_is_an_io_error() {
        assert_eq!(errno_of(&Error::corrupt("chunk x", "its digest is wrong")), Errno::IO);
        assert_eq!(errno_of(&Error::MissingChunk(ChunkId::of(b"x"))), Errno::IO);
    }

    #[test]
    fn refusals_keep_their_meaning() {
        assert_eq!(errno_of(&Error::NotDirectory(Ino(5))), Errno::NOTDIR);
        assert_eq!(errno_of(&Error::IsDirectory(Ino(5))), Errno::ISDIR);
        assert_eq!(errno_of(&Error::WrongKind(Ino(5))), Errno::INVAL);
        assert_eq!(errno_of(&Error::ReadOnly), Errno::ROFS);
        assert_eq!(errno_of(&Error::NoInode(Ino(5))), Errno::STALE);
    }

    #[test]
    fn a_missing_file_of_the_store_is_not_a_missing_file_of_the_worktree() {
        assert_eq!(errno_of(&io_error(io::ErrorKind::NotFound)), Errno::IO);
        assert_eq!(errno_of(&io_error(io::ErrorKind::PermissionDenied)), Errno::IO);
        let full = io::Error::from_raw_os_error(Errno::NOSPC.raw_os_error());
        let full = Error::io("append to", Path::new("/store/segments/1"), full);
        assert_eq!(errno_of(&full), Errno::NOSPC);
    }

    #[test]
    fn a_failure_is_remembered_once_and_not_without_bound() {
        let reports = Reports::default();
        for number in 0..REPORTED_MAX {
            reports.report(format_args!("read of file {number}"), &"damaged");
            reports.report(format_args!("read of file {number}"), &"damaged");
        }
        assert_eq!(reports.seen.lock().unwrap().len(), REPORTED_MAX);
        reports.report(format_args!("read of one more"), &"damaged");
        assert_eq!(reports.seen.lock().unwrap().len(), 1);
    }
}
