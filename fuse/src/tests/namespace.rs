//! Goal: names come, go and move as on the host, and what the kernel remembers of them stays true.

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use rustix::fs::{
    CWD, FileType, Mode, OFlags, RenameFlags, makedev, mknodat, openat, renameat_with,
};
use rustix::io::Errno;

use super::fixture::Mount;
use super::process::as_user;
use super::twin::{Side, Twin, errno};
use crate::cache::Levers;
use crate::counters::Message;

fn rename(side: &Side, from: &str, to: &str, flags: RenameFlags) -> rustix::io::Result<()> {
    renameat_with(CWD, side.path(from), CWD, side.path(to), flags)
}

fn replace(side: &Side, from: &str, to: &str) -> rustix::io::Result<()> {
    rename(side, from, to, RenameFlags::empty())
}

#[test]
fn files_are_made_with_their_modes() {
    let Some(mut twin) = Twin::new() else { return };
    for (name, mode) in [("plain", 0o666), ("closed", 0o000), ("set", 0o6755), ("sticky", 0o1644)] {
        twin.step(name, |side| {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY;
            let file = openat(CWD, side.path(name), flags, Mode::from_raw_mode(mode))?;
            rustix::io::write(&file, b"written although it may be closed\n")
        })
        .unwrap();
    }
    let again =
        twin.step("once more", |side| errno(File::create_new(side.path("plain"))).map(drop));
    assert_eq!(again, Err(Errno::EXIST));
    twin.step("truncating", |side| errno(File::create(side.path("plain"))).map(drop)).unwrap();
    twin.step("truncating one of the base", |side| {
        errno(File::create(side.path("big.bin"))).map(drop)
    })
    .unwrap();
    let missing = |side: &mut Side| errno(File::create(side.path("no/file"))).map(drop);
    assert_eq!(twin.step("in no directory", missing), Err(Errno::NOENT));
    let below = |side: &mut Side| errno(File::create(side.path("a.txt/file"))).map(drop);
    assert_eq!(twin.step("below a file", below), Err(Errno::NOTDIR));
    let long = "x".repeat(256);
    let long = |side: &mut Side| errno(File::create(side.path(&long))).map(drop);
    assert_eq!(twin.step("with a name too long", long), Err(Errno::NAMETOOLONG));
    let longest = "x".repeat(255);
    twin.step("longest", |side| errno(File::create(side.path(&longest))).map(drop)).unwrap();
}

#[test]
fn every_type_can_be_made() {
    let Some(mut twin) = Twin::new() else { return };
    let make = |twin: &mut Twin, name: &str, kind, device| {
        let mode = Mode::from_raw_mode(0o640);
        twin.step(name, |side| mknodat(CWD, side.path(name), kind, mode, device)).unwrap();
    };
    make(&mut twin, "fifo", FileType::Fifo, 0);
    make(&mut twin, "file", FileType::RegularFile, 0);
    make(&mut twin, "socket", FileType::Socket, 0);
    make(&mut twin, "zero", FileType::CharacterDevice, makedev(1, 5));
    make(&mut twin, "block", FileType::BlockDevice, makedev(259, 1_000_000));
    twin.step("links", |side| {
        errno(symlink("a.txt", side.path("good")))?;
        errno(symlink("no/where", side.path("bad")))?;
        errno(symlink("y".repeat(4000), side.path("long")))?;
        errno(fs::read(side.path("good"))).map(|bytes| bytes.len())
    })
    .unwrap();
    let empty = twin.step("an empty link", |side| errno(symlink("", side.path("none"))));
    assert_eq!(empty, Err(Errno::NOENT));
    twin.step("a listener", |side| errno(UnixListener::bind(side.path("listener"))).map(drop))
        .unwrap();
}

#[test]
fn directories_come_and_go() {
    let Some(mut twin) = Twin::new() else { return };
    let make = |side: &mut Side| errno(fs::create_dir(side.path("new")));
    twin.step("making", make).unwrap();
    assert_eq!(twin.step("making again", make), Err(Errno::EXIST));
    twin.step("a file in it", |side| errno(fs::write(side.path("new/file"), b"x"))).unwrap();
    twin.step("one below it", |side| errno(fs::create_dir(side.path("new/sub")))).unwrap();
    let remove = |side: &mut Side| errno(fs::remove_dir(side.path("new")));
    assert_eq!(twin.step("removing it full", remove), Err(Errno::NOTEMPTY));
    twin.step("emptying", |side| {
        errno(fs::remove_file(side.path("new/file")))?;
        errno(fs::remove_dir(side.path("new/sub")))
    })
    .unwrap();
    twin.step("removing", remove).unwrap();
    assert_eq!(twin.step("removing again", remove), Err(Errno::NOENT));
    twin.step("making one of that name", make).unwrap();
    for name in ["sub", "sub/deep"] {
        let full = twin.step("a full one", |side| errno(fs::remove_dir(side.path(name))));
        assert_eq!(full, Err(Errno::NOTEMPTY));
    }
    let file = twin.step("a file as one", |side| errno(fs::remove_dir(side.path("a.txt"))));
    assert_eq!(file, Err(Errno::NOTDIR));
    let unlink = twin.step("one as a file", |side| errno(fs::remove_file(side.path("sub"))));
    assert_eq!(unlink, Err(Errno::ISDIR));
    twin.step("everything", |side| errno(fs::remove_dir_all(side.path("sub")))).unwrap();
    twin.step("one of the base", |side| errno(fs::remove_dir(side.path("void")))).unwrap();
    twin.step("all of it anew", |side| errno(fs::create_dir_all(side.path("sub/deep/er"))))
        .unwrap();
}

#[test]
fn a_directory_that_is_gone_takes_nothing() {
    let Some(mut twin) = Twin::new() else { return };
    twin.step("open and gone", |side| {
        side.keep("void", errno(File::open(side.path("void")))?);
        errno(fs::remove_dir(side.path("void")))
    })
    .unwrap();
    let refused = twin.step("making in it", |side| {
        let flags = OFlags::CREATE | OFlags::WRONLY;
        openat(side.file("void"), "x", flags, Mode::from_raw_mode(0o600)).map(drop)
    });
    assert_eq!(refused, Err(Errno::NOENT));
    let links =
        twin.step("its links", |side| errno(side.file("void").metadata()).map(|m| m.nlink()));
    assert_eq!(links, Ok(0));
}

#[test]
fn names_of_one_file_are_one_file() {
    let Some(mut twin) = Twin::new() else { return };
    let link = |from: &'static str, to: &'static str| {
        move |side: &mut Side| errno(fs::hard_link(side.path(from), side.path(to)))
    };
    for (index, (from, to)) in
        [("a.txt", "sub/a"), ("sub/a", "second"), ("link", "link2"), ("big.bin", "void/big")]
            .into_iter()
            .enumerate()
    {
        twin.step(&format!("link {index}"), link(from, to)).unwrap();
    }
    assert_eq!(twin.step("over a name", link("a.txt", "second")), Err(Errno::EXIST));
    assert_eq!(twin.step("a directory", link("sub", "sub2")), Err(Errno::PERM));
    assert_eq!(twin.step("nothing", link("nothing", "x")), Err(Errno::NOENT));
    twin.step("writing by one name", |side| errno(fs::write(side.path("second"), b"more bytes")))
        .unwrap();
    for name in ["a.txt", "second", "sub/a"] {
        let remove = |side: &mut Side| errno(fs::remove_file(side.path(name)));
        twin.step(&format!("removing {name}"), remove).unwrap();
    }
    twin.step("the name again", |side| errno(fs::write(side.path("a.txt"), b"another"))).unwrap();
}

#[test]
fn renames_move_and_replace() {
    let Some(mut twin) = Twin::new() else { return };
    let mut moves =
        |what: &str, from: &str, to: &str| twin.step(what, |side| replace(side, from, to));
    moves("in a directory", "a.txt", "b.txt").unwrap();
    moves("to another one", "b.txt", "sub/deep/b.txt").unwrap();
    moves("over a file", "sub/b.txt", "run.sh").unwrap();
    moves("over itself", "run.sh", "run.sh").unwrap();
    moves("a link", "link", "void/link").unwrap();
    moves("a directory", "sub/deep", "deep").unwrap();
    moves("a directory over an empty one", "deep", "sub").unwrap();
    moves("and back", "sub", "void/sub").unwrap();
    assert_eq!(moves("below itself", "void", "void/sub/x"), Err(Errno::INVAL));
    assert_eq!(moves("over a full one", "void/sub", "void"), Err(Errno::NOTEMPTY));
    assert_eq!(moves("a file over a directory", "empty", "void"), Err(Errno::ISDIR));
    assert_eq!(moves("a directory over a file", "void", "empty"), Err(Errno::NOTDIR));
    assert_eq!(moves("nothing", "nothing", "x"), Err(Errno::NOENT));
    assert_eq!(moves("to nowhere", "empty", "no/x"), Err(Errno::NOENT));
    let long = "x".repeat(256);
    assert_eq!(moves("to a name too long", "empty", &long), Err(Errno::NAMETOOLONG));
    moves("over one of the base", "empty", "big.bin").unwrap();
    moves("a whole tree", "void", "elsewhere").unwrap();
}

#[test]
fn names_of_one_file_are_not_renamed_over_each_other() {
    let Some(mut twin) = Twin::new() else { return };
    twin.step("linking", |side| errno(fs::hard_link(side.path("a.txt"), side.path("sub/a"))))
        .unwrap();
    twin.step("renaming", |side| replace(side, "a.txt", "sub/a")).unwrap();
    assert!(twin.mount.path("a.txt").exists());
}

#[test]
fn renames_keep_to_their_flags() {
    let Some(mut twin) = Twin::new() else { return };
    let mut moves = |what: &str, from: &str, to: &str, flags| {
        twin.step(what, |side| rename(side, from, to, flags))
    };
    let (only, swap) = (RenameFlags::NOREPLACE, RenameFlags::EXCHANGE);
    assert_eq!(moves("only if free", "a.txt", "run.sh", only), Err(Errno::EXIST));
    moves("where it is free", "a.txt", "sub/a.txt", only).unwrap();
    moves("two files", "sub/a.txt", "run.sh", swap).unwrap();
    moves("a file and a directory", "run.sh", "sub/deep", swap).unwrap();
    moves("two directories", "run.sh", "void", swap).unwrap();
    moves("with itself", "void", "void", swap).unwrap();
    assert_eq!(moves("with nothing", "void", "nothing", swap), Err(Errno::NOENT));
    assert_eq!(moves("with what is below", "void", "void/c.txt", swap), Err(Errno::INVAL));
    assert_eq!(moves("both", "void", "sub", only | swap), Err(Errno::INVAL));
}

#[test]
fn a_file_without_names_lives_while_it_is_open() {
    let Some(mut twin) = Twin::new() else { return };
    twin.step("opening and removing", |side| {
        let options = File::options().read(true).write(true).to_owned();
        side.keep("base", errno(options.open(side.path("a.txt")))?);
        side.keep("new", errno(options.clone().create_new(true).open(side.path("new")))?);
        side.keep("over", errno(options.open(side.path("empty")))?);
        errno(side.file("new").write_all(b"not yet written"))?;
        errno(fs::remove_file(side.path("a.txt")))?;
        errno(fs::remove_file(side.path("new")))?;
        replace(side, "run.sh", "empty")
    })
    .unwrap();
    for name in ["base", "new", "over"] {
        let read = twin.step(name, |side| {
            let mut file = side.file(name);
            errno(file.write_all(b"more"))?;
            errno(std::io::Seek::rewind(&mut file))?;
            let mut text = String::new();
            errno(file.read_to_string(&mut text))?;
            let stat = errno(file.metadata())?;
            Ok::<_, Errno>((text, stat.nlink(), stat.len(), stat.mode()))
        });
        let (text, links, len, _) = read.unwrap();
        assert_eq!((links, len), (0, text.len() as u64));
    }
    let linked = twin.step("naming it again", |side| {
        let from = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(side.file("new")));
        let flags = rustix::fs::AtFlags::SYMLINK_FOLLOW;
        rustix::fs::linkat(CWD, from, CWD, side.path("again"), flags)
    });
    assert_eq!(linked, Err(Errno::NOENT));
    twin.step("closing", |side| side.files.clear());
}

#[test]
fn listings_and_removals_go_hand_in_hand() {
    let Some(mut twin) = Twin::new() else { return };
    twin.step("many", |side| {
        (0..3000).try_for_each(|n| errno(fs::write(side.path(&format!("void/file-{n}")), b"")))
    })
    .unwrap();
    // As `rm -r` does it: each piece of the listing is removed before the next one is read.
    let removed = twin.step("removing while listing", |side| {
        let mut removed = 0;
        for entry in fs::read_dir(side.path("void")).unwrap() {
            let path = entry.unwrap().path();
            removed += 1;
            fs::remove_file(path).unwrap();
        }
        removed
    });
    assert_eq!(removed, 3000);
    twin.step("and the directory", |side| errno(fs::remove_dir(side.path("void")))).unwrap();
}

#[test]
fn a_listing_shows_what_stays_once_while_others_come_and_go() {
    let Some(mount) = Mount::writable(Vec::new(), Levers::default()) else { return };
    for n in 0..2000 {
        File::create(mount.path(&format!("stays-{n:04}"))).unwrap();
    }
    let mut seen = Vec::new();
    for (index, entry) in fs::read_dir(&mount.point.path).unwrap().enumerate() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name.starts_with("stays") {
            seen.push(name);
        }
        let path = mount.path(&format!("comes-{index}"));
        File::create(&path).unwrap();
        if index % 2 == 0 {
            fs::remove_file(path).unwrap();
        }
        // What is made while it is listed may be listed as well: that must end somewhere.
        if index > 3000 {
            break;
        }
    }
    seen.sort();
    let expected: Vec<_> = (0..2000).map(|n| format!("stays-{n:04}")).collect();
    assert_eq!(seen, expected);
}

#[test]
fn owners_and_groups_are_those_of_the_maker_or_the_directory() {
    let Some(mut twin) = Twin::new() else { return };
    twin.step("directories for all", |side| {
        for (name, mode) in [("all", 0o777), ("group", 0o2777), ("mine", 0o1777)] {
            fs::create_dir(side.path(name)).unwrap();
            std::os::unix::fs::chown(side.path(name), Some(7), Some(77)).unwrap();
            fs::set_permissions(side.path(name), Permissions::from_mode(mode)).unwrap();
        }
    });
    for name in ["all", "group", "mine"] {
        twin.step(name, |side| {
            as_user(1000, 1001, || {
                errno(fs::create_dir(side.path(&format!("{name}/dir"))))?;
                errno(fs::write(side.path(&format!("{name}/file")), b"x"))?;
                errno(symlink("x", side.path(&format!("{name}/link"))))?;
                let flags = OFlags::CREATE | OFlags::WRONLY;
                let path = side.path(&format!("{name}/set"));
                openat(CWD, path, flags, Mode::from_raw_mode(0o2775)).map(drop)
            })
        })
        .unwrap();
    }
    let refused = twin.step("where he may not", |side| {
        as_user(1000, 1001, || {
            [
                errno(fs::write(side.path("x"), b"x")),
                errno(fs::remove_file(side.path("a.txt"))),
                errno(fs::write(side.path("a.txt"), b"x")),
                errno(fs::rename(side.path("a.txt"), side.path("all/a.txt"))),
            ]
        })
    });
    assert_eq!(refused, [Err(Errno::ACCESS); 4]);
    let sticky =
        |side: &mut Side| as_user(1002, 1002, || errno(fs::remove_file(side.path("mine/file"))));
    assert_eq!(twin.step("what is another's", sticky), Err(Errno::PERM));
}

#[test]
fn making_a_file_takes_few_messages() {
    let Some(mount) = Mount::writable(Vec::new(), Levers::default()) else { return };
    File::create(mount.path("first")).unwrap();
    let made = mount.messages(|| {
        for n in 0..10 {
            File::create_new(mount.path(&format!("file-{n}"))).unwrap();
        }
    });
    // The kernel takes a directory's attributes for changed with each change in it, and needs them to
    // find out who may enter.
    assert_eq!(made, [("lookup", 10), ("getattr", 10), ("mknod", 10)]);
    assert_eq!(mount.count(Message::Create), 1);
    assert_eq!(mount.count(Message::Release), 0);
    let levers = Levers { no_create: false, ..Levers::default() };
    let Some(mount) = Mount::writable(Vec::new(), levers) else { return };
    File::create(mount.path("first")).unwrap();
    let made = mount.messages(|| _ = File::create_new(mount.path("file")).unwrap());
    assert_eq!(made, [("lookup", 1), ("getattr", 1), ("create", 1)]);
}

#[test]
fn without_declining_opens_everything_is_made_as_well() {
    let levers = Levers { no_open: false, no_opendir: false, no_flush: false, ..Levers::default() };
    let Some(mut twin) = Twin::with(levers) else { return };
    twin.step("a file", |side| {
        let mut file = errno(File::create_new(side.path("new")))?;
        errno(file.write_all(b"hello"))?;
        errno(fs::read_to_string(side.path("new")))
    })
    .unwrap();
    twin.step("truncating", |side| errno(File::create(side.path("a.txt"))).map(drop)).unwrap();
    assert_eq!(twin.mount.count(Message::Create), 1);
    assert_eq!(twin.mount.count(Message::Mknod), 0);
}
