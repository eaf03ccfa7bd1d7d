//! What is mounted where, without asking the mounts.
//!
//! A `stat` of a dead or hung mount fails or blocks. Two things do not: `statx` that asks for nothing
//! a server would have to supply, which still tells the number of the mount, and
//! `/proc/self/mountinfo`, which tells the rest by that number.

use std::ffi::OsString;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, major, makedev, statx};
use rustix::io::Errno;

use crate::error::{Error, Result};

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// Where a path leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The mount that holds it.
    pub mount: u64,
    /// The device number of that mount's file system, as `st_dev` has it.
    pub dev: u64,
    /// Whether it is the top of that mount.
    pub top: bool,
}

impl Place {
    /// Whether a FUSE mount of ours may be there: it has no device, and a number that the kernel made up.
    pub(crate) fn may_be_ours(&self) -> bool {
        major(self.dev) == 0
    }
}

/// A line of mountinfo, as far as it is of use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub mount: u64,
    /// The directory of its file system that is mounted.
    pub root: PathBuf,
    /// Where.
    pub dir: PathBuf,
    /// The type with its subtype.
    pub fstype: String,
    /// What was mounted, the "fsname".
    pub source: String,
}

/// Where `path` leads; `None` if there is nothing. Sends no message to any mount that `path` ends on.
pub(crate) fn place(path: &Path) -> Result<Option<Place>> {
    match quiet_statx(CWD, path, AtFlags::NO_AUTOMOUNT) {
        Ok(place) => Ok(Some(place)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(Error::Inspect { path: path.to_owned(), source: errno.into() }),
    }
}

/// Where an open file is.
pub(crate) fn place_of(file: impl AsFd) -> rustix::io::Result<Place> {
    quiet_statx(file, Path::new(""), AtFlags::EMPTY_PATH)
}

fn quiet_statx(at: impl AsFd, path: &Path, flags: AtFlags) -> rustix::io::Result<Place> {
    // Asked for nothing, FUSE answers even those whom the mount does not admit. The number of the
    // mount is told unasked.
    let stat = statx(at, path, flags | AtFlags::STATX_DONT_SYNC, StatxFlags::empty())?;
    Ok(Place {
        mount: stat.stx_mnt_id,
        dev: makedev(stat.stx_dev_major, stat.stx_dev_minor),
        top: stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
    })
}

/// What is mounted at `path`, if it is the top of a mount.
pub(crate) fn mounted_at(path: &Path) -> Result<Option<Line>> {
    match place(path)?.filter(|place| place.top) {
        Some(place) => line_of(place),
        None => Ok(None),
    }
}

/// The mount that holds `path`, if there is such a path and the mount may be one of ours: the list of all mounts
/// is not read for others.
pub(crate) fn mount_of(path: &Path) -> Result<Option<Line>> {
    place(path)?.filter(Place::may_be_ours).map_or(Ok(None), line_of)
}

/// What is mounted below `dir` but not at it, the innermost first: where, counted from there, and which directory of
/// its file system.
///
/// # Errors
/// [`Error::Inspect`] if the list of mounts cannot be read.
pub fn mounts_below(dir: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let below = |line: Line| {
        let path = line.dir.strip_prefix(dir).ok()?.to_owned();
        (!path.as_os_str().is_empty()).then_some((path, line.root))
    };
    let mut found: Vec<_> = lines()?.into_iter().filter_map(below).collect();
    found.reverse();
    Ok(found)
}

/// `None` if it went between the two looks: somebody has just unmounted it.
fn line_of(place: Place) -> Result<Option<Line>> {
    Ok(lines()?.into_iter().find(|line| line.mount == place.mount))
}

fn lines() -> Result<Vec<Line>> {
    let text = fs::read(MOUNTINFO)
        .map_err(|source| Error::Inspect { path: PathBuf::from(MOUNTINFO), source })?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

/// Reads one line: `36 35 98:0 / /mnt rw,noatime master:1 - ext3 /dev/root rw`.
fn parse(line: &[u8]) -> Option<Line> {
    let text = |field: &[u8]| String::from_utf8(unescape(field)).ok();
    let path = |field: &[u8]| PathBuf::from(OsString::from_vec(unescape(field)));
    let mut fields = line.split(|byte| *byte == b' ');
    let mount = text(fields.next()?)?.parse().ok()?;
    let mut fields = fields.skip(2);
    let (root, dir) = (path(fields.next()?), path(fields.next()?));
    // Optional fields, of which there may be none, end with a hyphen.
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    Some(Line { mount, root, dir, fstype: text(rest.next()?)?, source: text(rest.next()?)? })
}

/// Undoes the kernel's `\ooo` for blanks, backslashes and hash signs.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' && byte.is_ascii() => {
                out.push(byte);
                rest = &tail[3..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_with_and_without_optional_fields() {
        let with = b"2317 29 0:52 / /w/a\\040b ro,nosuid shared:7 master:1 - fuse.agentfs agentfs:r@b\\040c\\134d ro,user_id=0";
        let line = parse(with).unwrap();
        assert_eq!((line.mount, line.fstype.as_str()), (2317, "fuse.agentfs"));
        assert_eq!(line.source, "agentfs:r@b c\\d");
        assert_eq!(
            (line.root.as_path(), line.dir.as_path()),
            (Path::new("/"), Path::new("/w/a b"))
        );
        let line = parse(b"22 1 253:0 / / rw,relatime - ext4 /dev/vda rw").unwrap();
        assert_eq!(
            (line.mount, line.fstype.as_str(), line.source.as_str()),
            (22, "ext4", "/dev/vda")
        );
    }

    #[test]
    fn broken_lines_are_skipped() {
        for line in ["", "x", "22", "22 1 253:0 / / rw", "22 1 253:0 / / rw - ext4"] {
            assert_eq!(parse(line.as_bytes()), None, "{line:?}");
        }
        assert_eq!(unescape(b"a\\"), b"a\\");
        assert_eq!(unescape(b"a\\04"), b"a\\04");
        assert_eq!(unescape(b"a\\09x"), b"a\\09x");
        assert_eq!(unescape("é\\040é".as_bytes()), "é é".as_bytes());
        assert_eq!(unescape(b"/a\\040b\\134c"), b"/a b\\c");
    }

    #[test]
    fn places_are_told_apart() {
        let root = place(Path::new("/")).unwrap().unwrap();
        let proc = place(Path::new("/proc")).unwrap().unwrap();
        assert!(root.top && proc.top);
        assert_ne!((root.mount, root.dev), (proc.mount, proc.dev));
        let inside = place(Path::new("/proc/self")).unwrap().unwrap();
        assert!(!inside.top);
        assert_eq!(inside.mount, proc.mount);
        assert_eq!(place(Path::new("/no/such/path")).unwrap(), None);
        assert_eq!(mounted_at(Path::new("/proc")).unwrap().unwrap().fstype, "proc");
        assert_eq!(mounted_at(Path::new("/proc/self")).unwrap(), None);
        assert_eq!(mount_of(Path::new("/proc/self")).unwrap().unwrap().fstype, "proc");
    }
}
