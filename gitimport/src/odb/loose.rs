//! Loose objects: one file each, a header and the bytes in one compressed stream.

use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agentfs_engine::GitOid;

use super::Fault;
use super::file::RandomFile;
use super::inflate::{InflateLayer, check_stated};
use crate::error::Error;
use crate::object::Kind;

/// Longest header: the longest kind, a space, 20 digits, a NUL.
const HEADER_BYTES_MAX: usize = 28;

/// A loose object whose header has been read.
pub(super) struct Loose {
    pub(super) kind: Kind,
    pub(super) size: u64,
    pub(super) layer: InflateLayer,
}

/// Where `oid` lies below the directory `objects`.
pub(super) fn path(objects: &Path, oid: &GitOid) -> PathBuf {
    let mut name = String::with_capacity(65);
    for (at, byte) in oid.as_bytes().iter().enumerate() {
        // Writing to a string cannot fail.
        let _ = write!(name, "{byte:02x}");
        if at == 0 {
            name.push('/');
        }
    }
    objects.join(name)
}

/// Opens the loose object at `path`, if there is one.
pub(super) fn open(path: PathBuf) -> Result<Option<Loose>, Fault> {
    let file = match RandomFile::open(path) {
        Ok(file) => Arc::new(file),
        Err(Error::Io { source, .. }) if is_absent(&source) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = file.len();
    let mut layer = InflateLayer::new(file, 0, end, 0);
    let mut header = Vec::with_capacity(HEADER_BYTES_MAX);
    loop {
        match layer.head_byte()? {
            Some(0) => break,
            Some(byte) if header.len() < HEADER_BYTES_MAX => header.push(byte),
            _ => return Err(Fault::bad("its header does not end")),
        }
    }
    let (kind, size) = parse(&header).ok_or_else(|| {
        Fault::bad(format!("its header is {:?}", String::from_utf8_lossy(&header)))
    })?;
    check_stated(size, end)?;
    layer.set_left(size);
    Ok(Some(Loose { kind, size, layer }))
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn parse(header: &[u8]) -> Option<(Kind, u64)> {
    let space = header.iter().position(|&byte| byte == b' ')?;
    let digits = &header[space + 1..];
    let canonical = digits.iter().all(u8::is_ascii_digit)
        && (digits.len() == 1 || digits.first() != Some(&b'0'));
    let size = std::str::from_utf8(digits).ok()?.parse().ok()?;
    canonical.then_some((Kind::from_name(&header[..space])?, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers() {
        assert_eq!(parse(b"blob 0"), Some((Kind::Blob, 0)));
        assert_eq!(parse(b"tree 18446744073709551615"), Some((Kind::Tree, u64::MAX)));
        for wrong in [
            &b"blob"[..],
            b"blob ",
            b"blob 01",
            b"blob +1",
            b"blob -1",
            b"bolb 1",
            b"blob 1 ",
            b"blob 18446744073709551616",
            b"",
            b" 1",
            b"Blob 1",
        ] {
            assert_eq!(parse(wrong), None, "{}", String::from_utf8_lossy(wrong));
        }
    }
}
