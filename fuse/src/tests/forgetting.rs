//! Goal: the references of the kernel are counted exactly, and an inode without names lives until the
//! last of them is given back, and no longer.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use agentfs_engine::Ino;
use agentfs_engine::worktree::Caller;
use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::fixture::{self, MANY, Mount};
use crate::cache::Levers;
use crate::counters::Message;
use crate::ops::{Found, Ops};

const CALLER: Caller = Caller { uid: 0, gid: 0 };

fn ops(levers: Levers) -> (Ops, tempfile::TempDir) {
    let stored = fixture::writable(fixture::items());
    (Ops::new(stored.worktree, levers), stored.dir)
}

fn find(ops: &Ops, parent: Ino, name: &str) -> Option<Ino> {
    match ops.lookup(parent, name.as_bytes()).unwrap() {
        Found::Entry(attributes) => Some(attributes.ino),
        Found::Nothing => None,
    }
}

#[test]
fn every_reply_that_names_an_entry_is_a_reference() {
    let (ops, _dir) = ops(Levers { no_create: false, ..Levers::default() });
    let file = find(&ops, Ino::ROOT, "a.txt").unwrap();
    assert_eq!(ops.references(file), 1);
    assert_eq!(find(&ops, Ino::ROOT, "nothing"), None);
    let made = [
        ops.make_node(CALLER, Ino::ROOT, b"node", 0o100_644, 0),
        ops.make_directory(CALLER, Ino::ROOT, b"directory", 0o755),
        ops.make_link(CALLER, Ino::ROOT, b"symlink", b"target"),
        ops.create(CALLER, Ino::ROOT, b"file", 0o644),
        ops.create_unnamed(CALLER, Ino::ROOT, 0o644),
    ];
    for made in made {
        assert_eq!(ops.references(made.unwrap().ino), 1);
    }
    ops.link(file, Ino::ROOT, b"second").unwrap();
    assert_eq!(ops.references(file), 2);
    // A refusal names nothing.
    assert_eq!(ops.link(file, Ino::ROOT, b"second").map(drop), Err(Errno::EXIST));
    assert_eq!(ops.make_directory(CALLER, Ino::ROOT, b"file", 0).map(drop), Err(Errno::EXIST));
    assert_eq!(ops.references(file), 2);
    ops.attributes(file).unwrap();
    assert_eq!(ops.references(file), 2);
    ops.forget(file, 2);
    assert_eq!(ops.references(file), 0);
}

#[test]
fn a_listing_with_attributes_names_what_it_lists() {
    let (ops, _dir) = ops(Levers::default());
    let many = find(&ops, Ino::ROOT, "many").unwrap();
    let mut listed = Vec::new();
    let list = |ops: &Ops, with_attributes, room: usize, listed: &mut Vec<Ino>| {
        ops.read_directory(many, 0, with_attributes, &mut |entry| {
            if listed.len() == room {
                return false;
            }
            listed.push(entry.ino);
            true
        })
        .unwrap();
    };
    list(&ops, false, usize::MAX, &mut listed);
    assert_eq!(listed.len(), MANY + 2);
    assert!(listed[2..].iter().all(|ino| ops.references(*ino) == 0));
    listed.clear();
    // `.`, `..`, eight entries, and one that did not fit.
    list(&ops, true, 10, &mut listed);
    assert_eq!((ops.references(many), ops.references(Ino::ROOT)), (1, 0));
    assert!(listed[2..].iter().all(|ino| ops.references(*ino) == 1));
    let next = Ino(listed[9].0 + 1);
    assert_eq!(ops.references(next), 0);
    assert_eq!(find(&ops, many, "file-00008"), Some(next));
}

#[test]
fn without_references_and_names_an_inode_is_gone() {
    let (ops, _dir) = ops(Levers::default());
    let file = ops.make_node(CALLER, Ino::ROOT, b"new", 0o100_644, 0).unwrap().ino;
    ops.write(file, 0, b"hello", false).unwrap();
    assert_eq!(find(&ops, Ino::ROOT, "new"), Some(file));
    ops.unlink(Ino::ROOT, b"new").unwrap();
    ops.forget(file, 1);
    assert_eq!(ops.attributes(file).unwrap().nlink, 0);
    let mut read = [0; 5];
    assert_eq!(ops.read(file, 0, &mut read), Ok(5));
    ops.forget(file, 1);
    assert_eq!(ops.attributes(file), Err(Errno::STALE));
    assert_eq!(ops.read(file, 0, &mut read), Err(Errno::STALE));
    assert_eq!(ops.write(file, 0, b"x", false), Err(Errno::STALE));
    // One that has a name stays, however often it is forgotten.
    let named = find(&ops, Ino::ROOT, "a.txt").unwrap();
    ops.forget(named, 1);
    assert!(ops.attributes(named).is_ok());
}

#[test]
fn the_end_of_the_session_ends_all_references() {
    let (ops, _dir) = ops(Levers::default());
    let file = ops.make_node(CALLER, Ino::ROOT, b"new", 0o100_644, 0).unwrap().ino;
    ops.unlink(Ino::ROOT, b"new").unwrap();
    ops.forget_all();
    assert_eq!(ops.attributes(file), Err(Errno::STALE));
}

#[test]
fn a_read_only_worktree_counts_nothing() {
    let stored = fixture::worktree(fixture::items());
    let ops = Ops::new(stored.worktree, Levers::default());
    let file = find(&ops, Ino::ROOT, "a.txt").unwrap();
    assert_eq!(ops.references(file), 0);
    ops.forget(file, 1);
}

/// Makes the kernel let go of every name of the mount that nobody uses, as it does before it changes
/// the options of a mount.
fn shrink(mount: &Mount) {
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount_remount(&mount.point.path, flags, c"").unwrap();
}

fn becomes(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < end, "it never came to be that {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn walk(dir: &Path, inodes: &mut Vec<Ino>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        inodes.push(Ino(entry.metadata().unwrap().ino()));
        if entry.file_type().unwrap().is_dir() {
            walk(&entry.path(), inodes);
        }
    }
}

#[test]
fn what_the_kernel_was_told_it_gives_back() {
    for readdirplus in [true, false] {
        let levers = Levers { readdirplus, ..Levers::default() };
        let Some(mount) = Mount::writable(fixture::items(), levers) else { return };
        let mut inodes = Vec::new();
        // Several times over, in pieces, and with names that others use at the same time.
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| walk(&mount.point.path, &mut Vec::new()));
            }
        });
        walk(&mount.point.path, &mut inodes);
        for n in 0..100 {
            fs::write(mount.path(&format!("sub/new-{n}")), b"x").unwrap();
            fs::hard_link(mount.path(&format!("sub/new-{n}")), mount.path(&format!("n-{n}")))
                .unwrap();
            fs::rename(mount.path(&format!("n-{n}")), mount.path(&format!("sub/n-{n}"))).unwrap();
            inodes.push(Ino(fs::metadata(mount.path(&format!("sub/n-{n}"))).unwrap().ino()));
        }
        let ops = mount.mounted.ops();
        assert!(inodes.iter().all(|ino| ops.references(*ino) > 0));
        becomes("everything was forgotten", || {
            shrink(&mount);
            inodes.iter().all(|ino| ops.references(*ino) == 0)
        });
        // No more was given back than given.
        assert!(mount.mounted.counters().contains(&("errors", 0)));
        // And everything is found again.
        assert_eq!(fs::read(mount.path("sub/n-99")).unwrap(), b"x");
        assert_eq!(fs::read(mount.path("a.txt")).unwrap(), b"hello\n");
    }
}

#[test]
fn an_open_file_without_names_outlives_the_caches_and_goes_when_it_is_closed() {
    let Some(mount) = Mount::writable(fixture::items(), Levers::default()) else { return };
    let file = File::options().read(true).write(true).create_new(true).open(mount.path("file"));
    let file = file.unwrap();
    let ino = Ino(file.metadata().unwrap().ino());
    (&file).write_all(b"still here").unwrap();
    fs::remove_file(mount.path("file")).unwrap();
    for _ in 0..3 {
        shrink(&mount);
    }
    // Even its pages were let go of: it is we who still have it.
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    let mut text = String::new();
    std::io::Seek::rewind(&mut &file).unwrap();
    (&file).read_to_string(&mut text).unwrap();
    assert_eq!(text, "still here");
    assert!(mount.count(Message::Read) > 0);
    let ops = mount.mounted.ops();
    assert_eq!(ops.attributes(ino).unwrap().nlink, 0);
    drop(file);
    becomes("the file was gone", || ops.attributes(ino) == Err(Errno::STALE));
    assert_eq!(ops.references(ino), 0);
}

#[test]
fn what_was_replaced_or_removed_goes_at_once_if_nobody_uses_it() {
    let Some(mount) = Mount::writable(fixture::items(), Levers::default()) else { return };
    let ops = mount.mounted.ops();
    let mut gone = Vec::new();
    for n in 0..50 {
        let (old, new) = (mount.path("old"), mount.path(&format!("new-{n}")));
        fs::write(&old, b"old").unwrap();
        fs::create_dir(&new).unwrap();
        gone.push(Ino(fs::metadata(&old).unwrap().ino()));
        gone.push(Ino(fs::metadata(&new).unwrap().ino()));
        fs::write(mount.path("next"), b"next").unwrap();
        fs::rename(mount.path("next"), &old).unwrap();
        fs::remove_dir(&new).unwrap();
    }
    becomes("all are gone", || gone.iter().all(|ino| ops.attributes(*ino) == Err(Errno::STALE)));
}

#[test]
fn an_unmount_lets_go_of_all() {
    let Some(mount) = Mount::writable(fixture::items(), Levers::default()) else { return };
    let file = File::create(mount.path("file")).unwrap();
    let ino = Ino(file.metadata().unwrap().ino());
    fs::remove_file(mount.path("file")).unwrap();
    // Lazily: whoever has it open keeps it, and the session.
    mount.mounted.unmount(true).unwrap();
    let ops = mount.mounted.ops();
    assert_eq!(ops.attributes(ino).unwrap().nlink, 0);
    drop(file);
    becomes("the session ended", || !mount.mounted.is_alive());
    assert_eq!(ops.attributes(ino), Err(Errno::STALE));
    assert_eq!(ops.references(ino), 0);
}
