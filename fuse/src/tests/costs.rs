//! Goal: what a program does costs the messages that it needs, and what it costs beside them has a reason. Counts are
//! exact.
//!
//! Each row is done in a worktree of its own that takes changes, whose kernel has declined by then what it declines once.
//! What comes beside the operation itself is what the kernel wants to know, and it cannot be told otherwise (Linux 6.18):
//!
//! - `lookup` for a name that nobody has asked for. A name that is known, also one that is known to be missing, costs none,
//!   unless it must not be there (`O_EXCL`, `mkdir`, `link`) or something is renamed to it: then the kernel asks again.
//! - `getattr` of a directory in which something has changed, to find out who may enter. It comes with the next operation
//!   in there, once for any number of changes.
//! - `getattr` of what was written, has lost or got a name, or was read or listed by a message, which has moved its time of
//!   access as far as the kernel knows. It comes with the next `stat`, which `read` and `opendir` of the libraries make.
//! - `getxattr` of `security.capability` before the first write, truncation or change of owner since the attributes of a
//!   file came, which they also do with a truncation: what may be executed with privileges must lose them. Only a file
//!   system without any extended attributes is not asked.
//! - A second `write` where a write goes over the end of a page of which the kernel does not have all bytes.
//! - A second `readdirplus` for the end of a listing.

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{Mode, OFlags, XattrFlags, lgetxattr, llistxattr, lsetxattr, statvfs};
use rustix::io::Errno;

use super::fixture::{Mount, items, noise};
use super::mapping::Mapping;
use crate::cache::Levers;

/// What is done to a worktree.
type Act = fn(&Dir);
/// Messages by kind, in the order of their numbers.
type Sent = &'static [(&'static str, u64)];

/// What is done, after what (which is not counted), what that costs.
type Row = (&'static str, Act, Act, Sent);

/// The directory that most rows are about: `.gitattributes`, `b.txt` of 2 bytes, `deep`.
struct Dir(Mount);

impl Dir {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path("sub").join(name)
    }

    /// Asks for the attributes of an entry, or of the directory itself.
    fn stat(&self, name: &str) {
        fs::symlink_metadata(self.path(name)).unwrap();
    }

    fn read(&self, name: &str) {
        fs::read(self.path(name)).unwrap();
    }

    fn list(&self) {
        assert!(names(&self.path("")) > 0);
    }

    fn is_missing(&self, name: &str) {
        assert!(!self.path(name).exists());
    }

    fn write(&self, name: &str) {
        fs::write(self.path(name), "x").unwrap();
    }

    /// Opens, appends 4 KiB as often as told, closes.
    fn append(&self, name: &str, times: usize) {
        let mut file = File::options().append(true).open(self.path(name)).unwrap();
        for _ in 0..times {
            file.write_all(&[b'x'; 4096]).unwrap();
        }
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }

    fn map(&self) {
        let file = File::options().read(true).write(true).open(self.path("b.txt")).unwrap();
        assert_eq!(Mapping::new(&file, 2).get(0, 2), b"b\n");
    }
}

fn names(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().map(Result::unwrap).count()
}

/// The usual worktree, writable, with everything declined that the kernel asks for once, and all known of `sub` but what
/// is in its files.
fn mounted() -> Option<Mount> {
    let mount = Mount::writable(items(), Levers::default())?;
    let first = mount.path("first");
    fs::write(&first, "x").unwrap();
    fs::read(&first).unwrap();
    fs::remove_file(&first).unwrap();
    for dir in ["", "sub", "sub/deep"] {
        names(&mount.path(dir));
        fs::symlink_metadata(mount.path(dir)).unwrap();
    }
    Some(mount)
}

#[track_caller]
fn assert_costs(rows: &[Row]) {
    for (what, before, act, expected) in rows {
        let count = || {
            let dir = Dir(mounted()?);
            before(&dir);
            Some(dir.0.messages(|| act(&dir)))
        };
        let Some(mut sent) = count() else { return };
        // The kernel may let go of what it keeps when memory is short, and must then ask again.
        for _ in 0..2 {
            if sent != *expected {
                sent = count().unwrap();
            }
        }
        assert_eq!(sent, *expected, "{what}");
    }
}

fn nothing(_: &Dir) {}

#[test]
fn what_is_known_is_not_asked_for() {
    assert_costs(&[
        ("stat", nothing, |d| d.stat("b.txt"), &[]),
        ("listing", nothing, Dir::list, &[]),
        ("the first read", nothing, |d| d.read("b.txt"), &[("read", 1)]),
        ("stat after it", |d| d.read("b.txt"), |d| d.stat("b.txt"), &[("getattr", 1)]),
        (
            "open, read, close",
            |d| {
                d.read("b.txt");
                d.stat("b.txt");
            },
            |d| d.read("b.txt"),
            &[],
        ),
        (
            "the first readlink",
            nothing,
            |d| _ = fs::read_link(d.path("deep/up")).unwrap(),
            &[("readlink", 1)],
        ),
        (
            "readlink",
            |d| _ = fs::read_link(d.path("deep/up")).unwrap(),
            |d| _ = fs::read_link(d.path("deep/up")).unwrap(),
            &[],
        ),
        ("a missing name", nothing, |d| d.is_missing("none"), &[("lookup", 1)]),
        ("again", |d| d.is_missing("none"), |d| d.is_missing("none"), &[]),
        ("the first mapping", nothing, Dir::map, &[("read", 1)]),
        ("a mapping", Dir::map, Dir::map, &[]),
    ]);
}

#[test]
fn what_the_kernel_does_not_keep_is_asked_for_each_time() {
    let attribute: Act = |d| {
        let refused = lgetxattr(d.path("b.txt"), "security.capability", &mut [0; 64]);
        assert_eq!(refused, Err(Errno::NODATA));
    };
    assert_costs(&[
        ("an attribute that is not there", attribute, attribute, &[("getxattr", 1)]),
        (
            "their names",
            nothing,
            |d| assert_eq!(llistxattr(d.path("b.txt"), &mut [0; 64]), Ok(0)),
            &[("listxattr", 1)],
        ),
        (
            "setting one",
            nothing,
            |d| lsetxattr(d.path("b.txt"), "user.x", b"v", XattrFlags::empty()).unwrap(),
            &[("setxattr", 1)],
        ),
        ("room", nothing, |d| _ = statvfs(d.path("")).unwrap(), &[("statfs", 1)]),
    ]);
}

#[test]
fn a_file_is_made_with_what_must_be_asked_and_said() {
    assert_costs(&[
        (
            "create, close",
            nothing,
            |d| _ = File::create_new(d.path("new")).unwrap(),
            &[("lookup", 1), ("mknod", 1)],
        ),
        (
            "create, write, close",
            nothing,
            |d| d.write("new"),
            &[("lookup", 1), ("write", 1), ("getxattr", 1), ("mknod", 1)],
        ),
        (
            "the same of a name that is known to be missing",
            |d| d.is_missing("new"),
            |d| d.write("new"),
            &[("write", 1), ("getxattr", 1), ("mknod", 1)],
        ),
        (
            "the same of one that must not be there",
            |d| d.is_missing("new"),
            |d| File::create_new(d.path("new")).unwrap().write_all(b"x").unwrap(),
            &[("lookup", 1), ("write", 1), ("getxattr", 1), ("mknod", 1)],
        ),
        (
            "the same where something has changed",
            |d| d.write("other"),
            |d| d.write("new"),
            &[("lookup", 1), ("getattr", 1), ("write", 1), ("getxattr", 1), ("mknod", 1)],
        ),
        (
            "create, write, sync, close",
            nothing,
            |d| {
                let mut file = File::create_new(d.path("new")).unwrap();
                file.write_all(b"x").unwrap();
                file.sync_all().unwrap();
            },
            &[("lookup", 1), ("write", 1), ("fsync", 1), ("getxattr", 1), ("mknod", 1)],
        ),
        (
            "a copy",
            nothing,
            |d| _ = fs::copy(d.path("b.txt"), d.path("new")).unwrap(),
            &[("lookup", 1), ("setattr", 1), ("getxattr", 1), ("mknod", 1), ("copy_file_range", 1)],
        ),
        (
            "an editor's saving",
            |d| d.read("b.txt"),
            |d| {
                d.write("b.tmp");
                d.rename("b.tmp", "b.txt");
            },
            &[
                ("lookup", 2),
                ("getattr", 1),
                ("write", 1),
                ("getxattr", 1),
                ("mknod", 1),
                ("rename", 1),
            ],
        ),
        ("a file without a name", nothing, |d| _ = unnamed(d), &[("tmpfile", 1)]),
    ]);
}

fn unnamed(d: &Dir) -> File {
    let flags = OFlags::TMPFILE | OFlags::RDWR;
    rustix::fs::open(d.path(""), flags, Mode::from_raw_mode(0o600)).unwrap().into()
}

#[test]
fn a_write_is_one_message_or_two_over_the_end_of_a_page() {
    /// One page, written as a whole, and what the kernel asked for with it.
    fn page(d: &Dir) {
        fs::write(d.path("page"), [b'x'; 4096]).unwrap();
        d.stat("page");
    }
    assert_costs(&[
        ("4 KiB to whole pages", page, |d| d.append("page", 1), &[("write", 1), ("getxattr", 1)]),
        ("ten of them", page, |d| d.append("page", 10), &[("write", 10), ("getxattr", 1)]),
        (
            "4 KiB to a part of a page that is not known",
            nothing,
            |d| d.append("b.txt", 1),
            &[("write", 2), ("getxattr", 1)],
        ),
        (
            "to one that is",
            |d| {
                d.read("b.txt");
                d.stat("b.txt");
            },
            |d| d.append("b.txt", 1),
            &[("write", 1), ("getxattr", 1)],
        ),
        ("again", |d| d.append("b.txt", 1), |d| d.append("b.txt", 1), &[("write", 2)]),
        (
            "bytes within a page",
            |d| d.append("b.txt", 1),
            |d| {
                let file = File::options().write(true).open(d.path("b.txt")).unwrap();
                file.write_all_at(b"xyz", 10).unwrap();
            },
            &[("write", 1)],
        ),
        (
            "4 MiB",
            nothing,
            |d| fs::write(d.path("new"), noise(4 << 20)).unwrap(),
            &[("lookup", 1), ("write", 4), ("getxattr", 1), ("mknod", 1)],
        ),
        (
            "another content",
            nothing,
            |d| d.write("b.txt"),
            &[("setattr", 1), ("write", 1), ("getxattr", 2)],
        ),
        (
            "to nothing by opening",
            nothing,
            |d| _ = File::create(d.path("b.txt")).unwrap(),
            &[("setattr", 1), ("getxattr", 1)],
        ),
        (
            "to a length",
            nothing,
            |d| {
                let file = File::options().write(true).open(d.path("b.txt")).unwrap();
                file.set_len(1).unwrap();
            },
            &[("setattr", 1), ("getxattr", 1)],
        ),
        (
            "a sync of what was not written",
            nothing,
            |d| File::open(d.path("b.txt")).unwrap().sync_all().unwrap(),
            &[("fsync", 1)],
        ),
    ]);
}

#[test]
fn what_was_written_is_read_with_what_the_kernel_does_not_have() {
    assert_costs(&[
        ("stat", |d| d.write("new"), |d| d.stat("new"), &[("getattr", 2)]),
        (
            "a file that ends within a page",
            |d| {
                d.write("new");
                d.stat("new");
            },
            |d| d.read("new"),
            &[("read", 1)],
        ),
        (
            "again",
            |d| {
                d.write("new");
                d.read("new");
                d.stat("new");
            },
            |d| d.read("new"),
            &[],
        ),
        (
            "whole pages",
            |d| {
                fs::write(d.path("new"), noise(8192)).unwrap();
                d.stat("new");
            },
            |d| {
                let mut read = Vec::new();
                File::open(d.path("new")).unwrap().read_to_end(&mut read).unwrap();
                assert_eq!(read, noise(8192));
            },
            &[],
        ),
        ("a listing", |d| d.write("new"), Dir::list, &[("getattr", 1), ("readdirplus", 2)]),
        (
            "again",
            |d| {
                d.write("new");
                d.list();
                d.stat("");
            },
            Dir::list,
            &[],
        ),
    ]);
}

#[test]
fn names_come_and_go_with_one_message_each() {
    assert_costs(&[
        ("unlink", nothing, |d| fs::remove_file(d.path("b.txt")).unwrap(), &[("unlink", 1)]),
        (
            "a look for it",
            |d| fs::remove_file(d.path("b.txt")).unwrap(),
            |d| d.is_missing("b.txt"),
            &[("lookup", 1), ("getattr", 1)],
        ),
        ("rename", nothing, |d| d.rename("b.txt", "new"), &[("lookup", 1), ("rename", 1)]),
        (
            "onto another",
            nothing,
            |d| d.rename("b.txt", ".gitattributes"),
            &[("lookup", 1), ("rename", 1)],
        ),
        (
            "into another directory",
            nothing,
            |d| d.rename("b.txt", "deep/new"),
            &[("lookup", 1), ("rename", 1)],
        ),
        (
            "of a directory into another",
            nothing,
            |d| d.rename("deep", "../many/deep"),
            &[("lookup", 1), ("rename", 1)],
        ),
        (
            "stat of what was renamed",
            |d| d.rename("b.txt", "new"),
            |d| d.stat("new"),
            &[("getattr", 2)],
        ),
        (
            "reading it",
            |d| {
                d.read("b.txt");
                d.rename("b.txt", "new");
                d.stat("new");
            },
            |d| d.read("new"),
            &[],
        ),
        (
            "mkdir",
            nothing,
            |d| fs::create_dir(d.path("new")).unwrap(),
            &[("lookup", 1), ("mkdir", 1)],
        ),
        (
            "rmdir",
            |d| {
                fs::create_dir(d.path("new")).unwrap();
                d.stat("");
                d.stat("new");
            },
            |d| fs::remove_dir(d.path("new")).unwrap(),
            &[("rmdir", 1)],
        ),
        (
            "symlink",
            nothing,
            |d| symlink("b.txt", d.path("new")).unwrap(),
            &[("lookup", 1), ("symlink", 1)],
        ),
        (
            "link",
            nothing,
            |d| fs::hard_link(d.path("b.txt"), d.path("new")).unwrap(),
            &[("lookup", 1), ("link", 1)],
        ),
    ]);
}

#[test]
fn attributes_are_set_with_one_message_and_known_after_it() {
    let mode: Act =
        |d| fs::set_permissions(d.path("b.txt"), Permissions::from_mode(0o600)).unwrap();
    let time: Act = |d| {
        let file = File::open(d.path("b.txt")).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(5)).unwrap();
    };
    let owner: Act =
        |d| std::os::unix::fs::lchown(d.path("b.txt"), Some(1000), Some(1000)).unwrap();
    assert_costs(&[
        ("chmod", nothing, mode, &[("setattr", 1)]),
        ("stat after it", mode, |d| d.stat("b.txt"), &[]),
        ("utimens", nothing, time, &[("setattr", 1)]),
        ("stat after it", time, |d| d.stat("b.txt"), &[]),
        ("chown", nothing, owner, &[("setattr", 1), ("getxattr", 1)]),
        ("stat after it", owner, |d| d.stat("b.txt"), &[]),
    ]);
}
