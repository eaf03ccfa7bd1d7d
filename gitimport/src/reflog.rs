//! The first entry of a reference's log.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::Path;

use agentfs_engine::GitOid;
use gix::bstr::ByteSlice;

use crate::error::{Error, Result};
use crate::files;

/// Who makes the entries of a log, and when, as git writes it.
pub(crate) fn committer(repository: &gix::Repository) -> Vec<u8> {
    let mut line = Vec::new();
    match repository.committer() {
        Some(Ok(signature)) => {
            line.extend_from_slice(signature.name.trim());
            line.extend_from_slice(b" <");
            line.extend_from_slice(signature.email.trim());
            line.extend_from_slice(b"> ");
            line.extend_from_slice(signature.time.trim().as_bytes());
        }
        // A log entry needs somebody; git would ask the operating system.
        _ => {
            let seconds = gix::date::Time::now_utc().seconds;
            line.extend_from_slice(format!("agentfs <> {seconds} +0000").as_bytes());
        }
    }
    line
}

/// Writes the log at `path` with one entry: the reference came to be as `oid`.
pub(crate) fn start(path: &Path, oid: &GitOid, committer: &[u8], message: &str) -> Result<()> {
    files::write(path, &first(oid, committer, message))
}

/// The same of a reference that others can see: a log that is there goes on.
pub(crate) fn begin(path: &Path, oid: &GitOid, committer: &[u8], message: &str) -> Result<()> {
    let entry = first(oid, committer, message);
    let write = || OpenOptions::new().append(true).create(true).open(path)?.write_all(&entry);
    let written = write().or_else(|error| match path.parent() {
        Some(parent) if error.kind() == ErrorKind::NotFound => {
            fs::create_dir_all(parent)?;
            write()
        }
        _ => Err(error),
    });
    written.map_err(|source| Error::io("write", path, source))
}

fn first(oid: &GitOid, committer: &[u8], message: &str) -> Vec<u8> {
    let mut line = "0".repeat(oid.as_bytes().len() * 2).into_bytes();
    line.extend_from_slice(format!(" {oid} ").as_bytes());
    line.extend_from_slice(committer);
    // A message is one line.
    line.extend_from_slice(format!("\t{}\n", message.replace('\n', " ")).as_bytes());
    line
}
