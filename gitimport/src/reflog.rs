//! Entries of a reference's log.

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

/// What git leaves out at the ends of a name.
const CRUD: &[u8] = b".,:;<>\"\\'";

/// As [`committer`]; `None` for one whom git would look for elsewhere, or write otherwise.
pub(crate) fn plain_committer(repository: &gix::Repository) -> Option<Vec<u8>> {
    let signature = repository.committer()?.ok()?;
    let is_plain = |text: &[u8]| {
        let is_crud = |byte: &u8| *byte <= b' ' || CRUD.contains(byte);
        let (first, last) = (text.first(), text.last());
        let ends =
            first.is_some_and(|byte| !is_crud(byte)) && last.is_some_and(|byte| !is_crud(byte));
        ends && !text.iter().any(|byte| matches!(byte, b'\n' | b'<' | b'>'))
    };
    let all = is_plain(signature.name) && is_plain(signature.email);
    all.then(|| committer(repository))
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
    // A message is one line.
    entry(None, oid, committer, &message.replace('\n', " "))
}

/// An entry: a reference was at `from`, if it was anywhere, and is at `to`. The message is one line.
pub(crate) fn entry(
    from: Option<&GitOid>,
    to: &GitOid,
    committer: &[u8],
    message: &str,
) -> Vec<u8> {
    let none = || "0".repeat(to.as_bytes().len() * 2);
    let mut line = from.map_or_else(none, GitOid::to_string).into_bytes();
    line.extend_from_slice(format!(" {to} ").as_bytes());
    line.extend_from_slice(committer);
    line.extend_from_slice(format!("\t{message}\n").as_bytes());
    line
}
