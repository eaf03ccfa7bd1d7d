//! Mount points below a directory, and getting rid of them.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::process::{Run, installed};

/// One mounted file system.
#[derive(Debug, PartialEq)]
pub struct Mount {
    pub dir: PathBuf,
    pub kind: String,
    /// Options of the file system, as the kernel writes them.
    options: String,
}

/// Every mount this process sees, in the order they were made.
fn all() -> Result<Vec<Mount>> {
    let text = std::fs::read("/proc/self/mountinfo").context("cannot read the list of mounts")?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

/// One line of mountinfo: `id parent dev root DIR options tags - KIND source options`.
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let dir = unescape(fields.nth(4)?);
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let text = |field: &[u8]| String::from_utf8_lossy(field).into_owned();
    let kind = text(fields.next()?);
    Some(Mount { dir, kind, options: fields.nth(1).map(text).unwrap_or_default() })
}

/// Blanks, tabs, newlines and backslashes are written as three octal digits there.
fn unescape(field: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if *first == b'\\' => {
                out.push(byte);
                rest = &tail[3..];
            }
            _ => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out).into()
}

/// The mounts at or below `dir`, innermost and newest first.
pub fn below(dir: &Path) -> Result<Vec<Mount>> {
    let mut found: Vec<Mount> = all()?.into_iter().filter(|m| m.dir.starts_with(dir)).collect();
    found.reverse();
    Ok(found)
}

/// The kind of the file system that holds `path`, and whether what is deleted there waits until the
/// device has been told of it.
pub fn kind_of(path: &Path) -> Result<String> {
    let holder = all()?
        .into_iter()
        .filter(|mount| path.starts_with(&mount.dir))
        .max_by_key(|mount| mount.dir.as_os_str().as_bytes().len());
    Ok(holder.map_or_else(
        || "unknown".to_owned(),
        |mount| match mount.options.split(',').any(|option| option == "discard") {
            true => mount.kind + " (discard)",
            false => mount.kind,
        },
    ))
}

/// Takes away every mount at or below `dir`, also dead ones, and says which could not be.
pub fn detach_below(dir: &Path) -> Result<()> {
    for mount in below(dir)? {
        let unmounted = if rustix::process::geteuid().is_root() {
            Run::new("umount").arg("-l").arg(&mount.dir).ok()
        } else {
            let tool = if installed("fusermount3") { "fusermount3" } else { "fusermount" };
            Run::new(tool).arg("-uz").arg(&mount.dir).ok()
        };
        unmounted.with_context(|| format!("{} stays mounted", mount.dir.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_tags_and_escapes_is_understood() {
        let line =
            b"36 35 98:0 / /tmp/a\\040b\\134c rw,noatime master:1 shared:2 - fuse.agentfs x rw";
        let mount = parse(line).unwrap();
        assert_eq!(mount.dir, Path::new("/tmp/a b\\c"));
        assert_eq!((&*mount.kind, &*mount.options), ("fuse.agentfs", "rw"));
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"36 35 98:0 / /tmp"), None);
        assert_eq!(unescape(b"tail\\04"), Path::new("tail\\04"));
    }

    #[test]
    fn the_root_is_found() {
        assert!(!below(Path::new("/")).unwrap().is_empty());
        assert_ne!(kind_of(Path::new("/proc")).unwrap(), "unknown");
    }
}
