//! What is mounted, and whether anything can be.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Whether worktrees can be mounted here. If not, the test must return at once: it has been skipped.
///
/// # Panics
/// Instead of returning false if `AGENTFS_REQUIRE_FUSE` is 1.
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
pub fn fuse_available() -> bool {
    let why = match OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        Err(error) => format!("/dev/fuse cannot be opened: {error}"),
        Ok(_) if is_root() || installed("fusermount3") => return true,
        Ok(_) => "there is no fusermount3 for an ordinary user".to_owned(),
    };
    assert!(!is_required(), "AGENTFS_REQUIRE_FUSE=1, but {why}");
    eprintln!("skipped: {why}");
    false
}

/// Whether this is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether `program` can be run.
pub fn installed(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Its directory.
    pub dir: PathBuf,
    /// The type of its file system.
    pub fstype: String,
}

/// The mounts at and below `dir`, the innermost first.
pub fn below(dir: &Path) -> Vec<Mount> {
    below_as_seen_by("self", dir)
}

/// The same in the mount namespace of `process`, a number or `self`.
pub(crate) fn below_as_seen_by(process: &str, dir: &Path) -> Vec<Mount> {
    let mountinfo = format!("/proc/{process}/mountinfo");
    let text = std::fs::read(mountinfo).expect("mountinfo can be read");
    let mut mounts: Vec<_> = text
        .split(|byte| *byte == b'\n')
        .filter_map(parse)
        .filter(|mount| mount.dir.starts_with(dir))
        .collect();
    mounts.reverse();
    mounts
}

/// Whether `program` can be run. If not, the test must return at once: it has been skipped.
///
/// # Panics
/// Instead of returning false if `AGENTFS_REQUIRE_FUSE` is 1.
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
pub fn tool_available(program: &str) -> bool {
    let there = installed(program);
    assert!(there || !is_required(), "AGENTFS_REQUIRE_FUSE=1, but there is no {program}");
    if !there {
        eprintln!("skipped: there is no {program}");
    }
    there
}

fn is_required() -> bool {
    std::env::var_os("AGENTFS_REQUIRE_FUSE").is_some_and(|value| value == "1")
}

/// Whether something is mounted exactly at `dir`.
pub fn is_mounted(dir: &Path) -> bool {
    below(dir).iter().any(|mount| mount.dir == dir)
}

/// Detaches every mount at and below `dir`.
pub fn detach_all(dir: &Path) {
    for mount in below(dir) {
        let detached = Command::new("umount").arg("-l").arg(&mount.dir).output();
        if !detached.is_ok_and(|output| output.status.success()) {
            Command::new("fusermount3").arg("-uz").arg(&mount.dir).output().ok();
        }
    }
}

fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let dir = PathBuf::from(OsString::from_vec(unescape(fields.nth(4)?)));
    let fstype = fields.skip_while(|field| *field != b"-").nth(1)?;
    Some(Mount { dir, fstype: String::from_utf8_lossy(fstype).into_owned() })
}

/// Undoes the kernel's `\ooo`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = field;
    while let Some((byte, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) if *byte == b'\\' => {
                out.push(escaped);
                rest = &tail[3..];
            }
            _ => {
                out.push(*byte);
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
    fn a_mount_is_found_by_its_directory() {
        let line = b"36 35 98:0 / /a\\040b rw shared:1 - fuse.agentfs agentfs:r@b rw";
        let mount = Mount { dir: "/a b".into(), fstype: "fuse.agentfs".into() };
        assert_eq!(parse(line), Some(mount));
        assert!(is_mounted(Path::new("/proc")));
        assert!(!is_mounted(Path::new("/proc/self")));
    }
}
