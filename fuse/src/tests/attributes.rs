//! Goal: modes, owners and times are set as on the host, set-id bits survive only where they may,
//! and attributes of the extended kind are those of ext4.

use std::fs::{self, File, Permissions};
use std::io::{Seek, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, lchown};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Mode, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags,
    chmodat, copy_file_range, fallocate, ftruncate, futimens, lgetxattr, llistxattr, lremovexattr,
    lsetxattr, utimensat,
};
use rustix::io::Errno;

use super::fixture::Mount;
use super::process::as_user;
use super::twin::{Side, Twin, errno, items};
use crate::cache::Levers;
use crate::counters::Message;

#[test]
fn modes_are_set() {
    let Some(mut twin) = Twin::new() else { return };
    for name in ["a.txt", "sub", "big.bin", ""] {
        for mode in [0o600, 0o7777, 0o000, 0o1777, 0o644, 0o755] {
            twin.step(&format!("{name:?} to {mode:o}"), |side| {
                errno(fs::set_permissions(side.path(name), Permissions::from_mode(mode)))
            })
            .unwrap();
        }
    }
    // Only the owner and root may, and a group that is not one's own takes no set-id bit.
    let refused = twin.step("somebody else", |side| {
        as_user(1000, 1000, || chmodat(CWD, side.path("a.txt"), Mode::RWXU, AtFlags::empty()))
    });
    assert_eq!(refused, Err(Errno::PERM));
    twin.step("of another's group", |side| {
        errno(lchown(side.path("a.txt"), Some(1000), Some(5)))?;
        as_user(1000, 1000, || {
            chmodat(CWD, side.path("a.txt"), Mode::from_raw_mode(0o2755), AtFlags::empty())
        })
    })
    .unwrap();
    assert_eq!(fs::metadata(twin.mount.path("a.txt")).unwrap().mode(), 0o100_755);
}

#[test]
fn owners_are_set() {
    let Some(mut twin) = Twin::new() else { return };
    for name in ["a.txt", "sub", "link"] {
        for (uid, gid) in [(Some(5), None), (None, Some(6)), (Some(7), Some(8)), (None, None)] {
            twin.step(&format!("{name} to {uid:?}, {gid:?}"), |side| {
                errno(lchown(side.path(name), uid, gid))
            })
            .unwrap();
        }
    }
    let refused = twin.step("by somebody else", |side| {
        as_user(1000, 1000, || errno(lchown(side.path("big.bin"), Some(1000), None)))
    });
    assert_eq!(refused, Err(Errno::PERM));
}

/// A change of a file.
type Change = fn(&Side) -> Result<(), Errno>;

/// Ways to change a file that take its set-id bits away or leave them.
fn ways() -> Vec<(&'static str, Change)> {
    fn open(side: &Side) -> Result<File, Errno> {
        errno(File::options().read(true).write(true).open(side.path("set")))
    }
    vec![
        ("write", |side| open(side).and_then(|file| errno(file.write_all_at(b"x", 3)))),
        ("append", |side| {
            let file = File::options().append(true).open(side.path("set"));
            errno(file.and_then(|mut file| file.write_all(b"x")))
        }),
        ("extend", |side| open(side).and_then(|file| ftruncate(file, 10_000))),
        ("cut", |side| open(side).and_then(|file| ftruncate(file, 1))),
        ("keep the size", |side| open(side).and_then(|file| ftruncate(file, 5))),
        ("create", |side| errno(File::create(side.path("set"))).map(drop)),
        ("reserve", |side| {
            open(side).and_then(|file| fallocate(file, FallocateFlags::empty(), 0, 9000))
        }),
        ("punch", |side| {
            let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            open(side).and_then(|file| fallocate(file, mode, 0, 3))
        }),
        ("copy", |side| {
            let source = errno(File::open(side.path("a.txt")))?;
            copy_file_range(&source, None, open(side)?, None, 4).map(drop)
        }),
        ("read", |side| errno(fs::read(side.path("set"))).map(drop)),
        ("times", |side| {
            let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
            futimens(open(side)?, &Timestamps { last_access: now, last_modification: now })
        }),
        ("owner", |side| errno(lchown(side.path("set"), Some(3), None))),
        ("group", |side| errno(lchown(side.path("set"), None, Some(1000)))),
        ("neither", |side| errno(lchown(side.path("set"), None, None))),
    ]
}

#[test]
fn set_id_bits_survive_what_root_does_and_not_what_others_do() {
    for killpriv in [true, false] {
        let Some(mut twin) = Twin::with(Levers { killpriv, ..Levers::default() }) else { return };
        // Not that of a group that cannot execute, which is no right: the kernel takes it from who is
        // not in the group, and does not tell us who is.
        for mode in [0o6777, 0o4766, 0o2777] {
            for (way, change) in ways() {
                for (uid, gid) in [(0, 0), (1000, 1000), (1000, 77)] {
                    let what = format!("{way} of {mode:o} by {uid}:{gid}, killpriv {killpriv}");
                    _ = twin.step(&what, |side| {
                        let path = side.path("set");
                        errno(fs::write(&path, b"hello"))?;
                        errno(lchown(&path, Some(1000), Some(77)))?;
                        errno(fs::set_permissions(&path, Permissions::from_mode(mode)))?;
                        // Known to the kernel from here on.
                        errno(fs::metadata(&path))?;
                        let done = as_user(uid, gid, || change(side));
                        errno(fs::metadata(&path)).map(|stat| (done, stat.mode()))
                    });
                }
            }
        }
    }
}

fn at(seconds: i64, nanoseconds: i64) -> Timespec {
    Timespec { tv_sec: seconds, tv_nsec: nanoseconds }
}

#[test]
fn times_are_set_to_the_nanosecond() {
    let Some(mut twin) = Twin::new() else { return };
    let moments = [
        (at(0, 0), at(1, 1)),
        (at(1_700_000_000, 123_456_789), at(-1, 500_000_000)),
        (at(-1_000_000, 999_999_999), at(-5, 0)),
        (at(2_000_000_000, 5), at(9, UTIME_OMIT)),
        (at(9, UTIME_OMIT), at(4_000_000_000, 7)),
    ];
    for name in ["a.txt", "sub", "link"] {
        for (last_access, last_modification) in moments {
            let times = Timestamps { last_access, last_modification };
            let set = twin.step(&format!("{name} to {times:?}"), |side| {
                utimensat(CWD, side.path(name), &times, AtFlags::SYMLINK_NOFOLLOW)?;
                let stat = errno(fs::symlink_metadata(side.path(name)))?;
                let modified = (stat.mtime(), stat.mtime_nsec());
                let accessed = (stat.atime(), stat.atime_nsec());
                Ok::<_, Errno>((
                    (last_modification.tv_nsec != UTIME_OMIT).then_some(modified),
                    (last_access.tv_nsec != UTIME_OMIT).then_some(accessed),
                ))
            });
            assert!(set.is_ok(), "{set:?}");
        }
    }
    twin.step("to now", |side| {
        let now = at(0, UTIME_NOW);
        let times = Timestamps { last_access: now, last_modification: now };
        let before = std::time::SystemTime::now() - std::time::Duration::from_secs(1);
        utimensat(CWD, side.path("a.txt"), &times, AtFlags::empty())?;
        let stat = errno(fs::metadata(side.path("a.txt")))?;
        Ok::<_, Errno>((stat.modified().unwrap() > before, stat.accessed().unwrap() > before))
    })
    .unwrap();
    let refused = twin.step("by somebody else", |side| {
        let times = Timestamps { last_access: at(5, 5), last_modification: at(5, 5) };
        as_user(1000, 1000, || utimensat(CWD, side.path("a.txt"), &times, AtFlags::empty()))
    });
    assert_eq!(refused, Err(Errno::PERM));
}

#[test]
fn the_furthest_times_are_kept() {
    let Some(mount) = Mount::writable(items(), Levers::default()) else { return };
    let (least, most) = (at(i64::MIN, 0), at(i64::MAX, 0));
    for (last_access, last_modification) in [(least, most), (most, least)] {
        let times = Timestamps { last_access, last_modification };
        utimensat(CWD, mount.path("a.txt"), &times, AtFlags::empty()).unwrap();
        let stat = fs::metadata(mount.path("a.txt")).unwrap();
        assert_eq!((stat.atime(), stat.mtime()), (last_access.tv_sec, last_modification.tv_sec));
    }
}

#[test]
fn a_time_that_was_set_stays_when_the_file_is_closed() {
    let Some(mut twin) = Twin::new() else { return };
    let stayed = twin.step("written, dated, closed", |side| {
        let mut file = errno(File::options().write(true).open(side.path("big.bin")))?;
        errno(file.write_all(b"new bytes"))?;
        let times = Timestamps { last_access: at(5, 5), last_modification: at(6, 6) };
        futimens(&file, &times)?;
        errno(file.rewind())?;
        drop(file);
        errno(fs::metadata(side.path("big.bin"))).map(|stat| (stat.mtime(), stat.mtime_nsec()))
    });
    assert_eq!(stayed, Ok((6, 6)));
}

fn get(side: &Side, path: &str, name: &str, room: usize) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0; room];
    let len = lgetxattr(side.path(path), name, &mut value)?;
    if room > 0 {
        value.truncate(len);
        return Ok(value);
    }
    // The size alone.
    Ok(vec![b'?'; len])
}

#[test]
fn attributes_are_set_read_listed_and_removed() {
    let Some(mut twin) = Twin::new() else { return };
    let set = |path: &'static str, name: &'static str, value: Vec<u8>, flags: XattrFlags| {
        move |side: &mut Side| lsetxattr(side.path(path), name, &value, flags)
    };
    let none = XattrFlags::empty();
    for path in ["a.txt", "sub", "big.bin"] {
        for name in ["user.one", "user.two", "trusted.t", "security.s"] {
            twin.step(&format!("{name} of {path}"), set(path, name, b"value".into(), none))
                .unwrap();
        }
        twin.step("empty", set(path, "user.empty", Vec::new(), none)).unwrap();
        twin.step("over", set(path, "user.one", b"another value".into(), none)).unwrap();
        twin.step("binary", set(path, "user.b", (0..=255).collect(), none)).unwrap();
    }
    let (create, replace) = (XattrFlags::CREATE, XattrFlags::REPLACE);
    let fresh = twin.step("only new", set("a.txt", "user.one", b"x".into(), create));
    assert_eq!(fresh, Err(Errno::EXIST));
    let there = twin.step("only there", set("a.txt", "user.no", b"x".into(), replace));
    assert_eq!(there, Err(Errno::NODATA));
    twin.step("new", set("a.txt", "user.three", b"x".into(), create)).unwrap();
    twin.step("there", set("a.txt", "user.three", b"y".into(), replace)).unwrap();
    for (name, room) in [
        ("user.one", 100),
        ("user.one", 13),
        ("user.one", 12),
        ("user.one", 0),
        ("user.empty", 0),
        ("user.empty", 5),
        ("user.no", 5),
        ("user.", 5),
        ("strange", 5),
        ("system.strange", 5),
    ] {
        _ = twin.step(&format!("{name} into {room}"), |side| get(side, "a.txt", name, room));
    }
    let strange =
        [("user.", Errno::INVAL), ("strange.x", Errno::OPNOTSUPP), ("x", Errno::OPNOTSUPP)];
    for (name, expected) in strange {
        assert_eq!(twin.step(name, set("a.txt", name, b"x".into(), none)), Err(expected));
    }
    let link = twin.step("of a link", set("link", "user.x", b"x".into(), none));
    assert_eq!(link, Err(Errno::PERM));
    twin.step("of root's of a link", set("link", "trusted.x", b"x".into(), none)).unwrap();
    let huge = twin.step("too large for anything", set("a.txt", "user.x", vec![0; 70_000], none));
    assert_eq!(huge, Err(Errno::TOOBIG));
    let long = "user.".to_owned() + &"x".repeat(300);
    let long = twin.step("long name", |side| lsetxattr(side.path("a.txt"), &*long, b"x", none));
    assert_eq!(long, Err(Errno::RANGE));
    for (room, fits) in [(0, true), (1, false), (4096, true)] {
        let listed = twin.step(&format!("names into {room}"), |side| {
            llistxattr(side.path("empty"), &mut vec![0; room])?;
            llistxattr(side.path("a.txt"), &mut vec![0; room])
        });
        assert_eq!(listed.is_ok(), fits, "{listed:?}");
    }
    twin.step("removing", |side| lremovexattr(side.path("a.txt"), "user.one")).unwrap();
    let again = twin.step("again", |side| lremovexattr(side.path("a.txt"), "user.one"));
    assert_eq!(again, Err(Errno::NODATA));
    twin.step("moved and linked", |side| {
        errno(fs::rename(side.path("a.txt"), side.path("sub/a.txt")))?;
        errno(fs::hard_link(side.path("sub/a.txt"), side.path("a")))
    })
    .unwrap();
}

#[test]
fn some_attributes_are_roots() {
    let Some(mut twin) = Twin::new() else { return };
    twin.step("setting", |side| {
        errno(fs::set_permissions(side.path("a.txt"), Permissions::from_mode(0o666)))?;
        for name in ["user.one", "trusted.two", "security.three"] {
            lsetxattr(side.path("a.txt"), name, b"value", XattrFlags::empty())?;
        }
        Ok::<_, Errno>(())
    })
    .unwrap();
    _ = twin.step("by somebody else", |side| {
        as_user(1000, 1000, || {
            let mut list = vec![0; 4096];
            let len = llistxattr(side.path("a.txt"), &mut list)?;
            list.truncate(len);
            let mut names: Vec<_> = list.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
            names.sort();
            let read = ["user.one", "trusted.two", "security.three"]
                .map(|name| get(side, "a.txt", name, 100));
            let set = ["user.one", "trusted.two", "security.three"]
                .map(|name| lsetxattr(side.path("a.txt"), name, b"other", XattrFlags::empty()));
            Ok::<_, Errno>((names, read, set))
        })
    });
}

#[test]
fn lists_of_access_control_are_not_supported() {
    let Some(mount) = Mount::writable(items(), Levers::default()) else { return };
    let path = mount.path("a.txt");
    // Version 2, with entries for owner, group and others.
    let list: Vec<u8> = [2, 0, 0, 0]
        .into_iter()
        .chain([1, 4, 32].into_iter().flat_map(|tag| [tag, 0, 6, 0, 255, 255, 255, 255]))
        .collect();
    let name = "system.posix_acl_access";
    assert_eq!(lsetxattr(&path, name, &list, XattrFlags::empty()), Err(Errno::OPNOTSUPP));
    assert_eq!(lgetxattr(&path, name, &mut [0; 64]), Err(Errno::OPNOTSUPP));
    assert_eq!(fs::metadata(&path).unwrap().mode(), 0o100_644);
}

#[test]
fn a_write_loses_the_capabilities_of_a_program() {
    let Some(mut twin) = Twin::new() else { return };
    // Version 2: cap_net_raw, permitted and effective.
    let capability: Vec<u8> =
        [0x0200_0001_u32, 1 << 13, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    for (way, change) in ways() {
        twin.step(way, |side| {
            let path = side.path("set");
            errno(fs::write(&path, b"hello"))?;
            lsetxattr(&path, "security.capability", &capability, XattrFlags::empty())?;
            change(side)
        })
        .unwrap();
    }
}

#[test]
fn a_read_of_attributes_is_one_message_each() {
    let Some(mount) = Mount::writable(items(), Levers::default()) else { return };
    let path = mount.path("a.txt");
    lsetxattr(&path, "user.x", b"value", XattrFlags::empty()).unwrap();
    let sent = mount.messages(|| {
        for _ in 0..5 {
            assert_eq!(lgetxattr(&path, "user.x", &mut [0; 64]), Ok(5));
        }
    });
    assert_eq!(sent, [("getxattr", 5)]);
    assert_eq!(mount.count(Message::Setxattr), 1);
}
