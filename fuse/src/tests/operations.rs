//! Goal: the operations mean the same whatever carries them, so they are tested without a kernel.

use agentfs_engine::Ino;
use agentfs_engine::worktree::{Caller, NodeKind, SetAttributes};
use rustix::io::Errno;

use super::fixture::{self, MANY};
use crate::cache::Levers;
use crate::counters::Message;
use crate::ops::{Found, Ops};

fn ops(levers: Levers) -> (Ops, tempfile::TempDir) {
    let stored = fixture::worktree(fixture::items());
    (Ops::new(stored.worktree, levers), stored.dir)
}

fn find(ops: &Ops, path: &str) -> Ino {
    path.split('/').fold(Ino::ROOT, |parent, name| match ops.lookup(parent, name.as_bytes()) {
        Ok(Found::Entry(attributes)) => attributes.ino,
        other => panic!("{path}: {other:?}"),
    })
}

#[test]
fn lookups_find_refuse_and_remember() {
    let (ops, _dir) = ops(Levers::default());
    let found = ops.lookup(Ino::ROOT, b"run.sh").unwrap();
    let Found::Entry(attributes) = found else { panic!("{found:?}") };
    assert_eq!((attributes.kind, attributes.permissions), (NodeKind::File, 0o755));
    assert_eq!(ops.attributes(attributes.ino), Ok(attributes));
    assert_eq!(ops.lookup(Ino::ROOT, b"nothing"), Ok(Found::Nothing));
    assert_eq!(ops.lookup(attributes.ino, b"x"), Err(Errno::NOTDIR));
    assert_eq!(ops.lookup(Ino::ROOT, &[b'x'; 256]), Err(Errno::NAMETOOLONG));
    assert!(matches!(ops.lookup(Ino::ROOT, &[b'x'; 255]), Ok(Found::Entry(_))));
    assert_eq!(ops.attributes(Ino(u64::MAX)), Err(Errno::STALE));
    assert_eq!(ops.counters().of(Message::Lookup), 5);
    assert_eq!(ops.counters().of(Message::Getattr), 2);
}

#[test]
fn absence_is_an_error_where_it_must_not_be_remembered() {
    let (ops, _dir) = ops(Levers { negative_entries: false, ..Levers::default() });
    assert_eq!(ops.lookup(Ino::ROOT, b"nothing"), Err(Errno::NOENT));
}

#[test]
fn what_the_kernel_is_to_do_alone_is_refused_unless_switched_off() {
    let (on, _dir) = ops(Levers::default());
    assert_eq!(on.open(Ino::ROOT, 0), Err(Errno::NOSYS));
    assert_eq!(on.open_directory(), Err(Errno::NOSYS));
    assert_eq!(on.flush(), Err(Errno::NOSYS));
    assert_eq!(on.xattr(Ino::ROOT, b"user.x", 0), Err(Errno::NOSYS));
    assert_eq!(on.seek(find(&on, "a.txt"), 0, libc::SEEK_DATA), Err(Errno::NOSYS));
    let (off, _dir) = ops(Levers::none());
    assert_eq!(off.open(Ino::ROOT, 0).map(|opened| opened.keep_pages), Ok(false));
    assert_eq!(off.open_directory(), Ok(false));
    assert_eq!(off.flush(), Ok(()));
    assert_eq!(off.xattr(Ino::ROOT, b"user.x", 0), Err(Errno::OPNOTSUPP));
    assert_eq!(off.seek(Ino::ROOT, 0, 99), Err(Errno::INVAL));
}

#[test]
fn data_is_up_to_the_end_and_a_hole_is_at_it() {
    let (ops, _dir) = ops(Levers::none());
    let file = ops.lookup(Ino::ROOT, b"a.txt").unwrap();
    let Found::Entry(attributes) = file else { panic!("{file:?}") };
    let seek = |offset, whence| ops.seek(attributes.ino, offset, whence);
    assert_eq!(seek(0, libc::SEEK_DATA), Ok(0));
    assert_eq!(seek(5, libc::SEEK_DATA), Ok(5));
    assert_eq!(seek(0, libc::SEEK_HOLE), Ok(6));
    assert_eq!(seek(5, libc::SEEK_HOLE), Ok(6));
    for whence in [libc::SEEK_DATA, libc::SEEK_HOLE] {
        assert_eq!(seek(6, whence), Err(Errno::NXIO));
        assert_eq!(seek(-1, whence), Err(Errno::NXIO));
    }
}

#[test]
fn reads_and_links_count_their_bytes() {
    let (ops, _dir) = ops(Levers::default());
    let mut out = [0; 100];
    assert_eq!(ops.read(find(&ops, "a.txt"), 2, &mut out), Ok(4));
    assert_eq!(&out[..4], b"llo\n");
    assert_eq!(ops.read(find(&ops, "a.txt"), 6, &mut out), Ok(0));
    assert_eq!(ops.read(find(&ops, "sub"), 0, &mut out), Err(Errno::ISDIR));
    assert_eq!(ops.read_link(find(&ops, "link")), Ok(b"a.txt".to_vec()));
    assert_eq!(ops.read_link(find(&ops, "a.txt")), Err(Errno::INVAL));
    let counted = |name| ops.counters().snapshot().into_iter().find(|(n, _)| *n == name).unwrap().1;
    assert_eq!((counted("bytes_read"), counted("read"), counted("readlink")), (4, 3, 2));
}

#[test]
fn a_listing_goes_on_where_the_last_entry_that_fitted_ends() {
    let (ops, _dir) = ops(Levers::default());
    let many = find(&ops, "many");
    for room in [1, 2, 7, 1000, usize::MAX] {
        let (mut names, mut cookie) = (Vec::new(), 0);
        loop {
            let mut taken = 0;
            ops.read_directory(many, cookie, true, &mut |entry| {
                if taken == room {
                    return false;
                }
                taken += 1;
                cookie = entry.cookie;
                assert_eq!(entry.attributes.is_none(), matches!(entry.name, b"." | b".."));
                names.push(entry.name.to_vec());
                true
            })
            .unwrap();
            if taken == 0 {
                break;
            }
        }
        assert_eq!(names.len(), MANY + 2);
        assert_eq!(names[..2], [b".".to_vec(), b"..".to_vec()]);
        assert!(names[2..].is_sorted_by(|a, b| a < b));
    }
    let not_one = ops.read_directory(find(&ops, "a.txt"), 0, true, &mut |_| true);
    assert_eq!(not_one, Err(Errno::NOTDIR));
}

#[test]
fn a_file_that_cannot_be_read_is_an_io_error_and_one_line() {
    let (ops, _dir) = ops(Levers::default());
    let lost = find(&ops, "unstored-missing");
    let lines = fixture::logged(|| {
        for _ in 0..3 {
            assert_eq!(ops.read(lost, 0, &mut [0; 10]), Err(Errno::IO));
        }
    });
    let object = fixture::oid(fixture::MISSING).to_string();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("unstored-missing") && lines[0].contains(&object), "{lines:?}");
}

#[test]
fn a_panic_is_an_io_error_for_its_caller_alone() {
    let (ops, _dir) = ops(Levers::default());
    let bad = find(&ops, "unstored-panics");
    let lines = fixture::logged(|| {
        assert_eq!(ops.read(bad, 0, &mut [0; 10]), Err(Errno::IO));
        assert_eq!(ops.read(bad, 0, &mut [0; 10]), Err(Errno::IO));
        assert!(ops.content(bad, u64::MAX).is_none());
    });
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("unstored-panics") && lines[0].contains("a blob that panics"));
    let mut out = [0; 6];
    assert_eq!(ops.read(find(&ops, "a.txt"), 0, &mut out), Ok(6));
    let panics = ops.counters().snapshot().into_iter().find(|(name, _)| *name == "panics");
    assert_eq!(panics, Some(("panics", 2)));
}

#[test]
fn whatever_writes_is_refused_and_counted() {
    let (ops, _dir) = ops(Levers::default());
    let caller = Caller { uid: 0, gid: 0 };
    let file = find(&ops, "a.txt");
    let refused = [
        ops.make_node(caller, Ino::ROOT, b"new", 0o100_644, 0).map(drop),
        ops.make_directory(caller, Ino::ROOT, b"new", 0o755).map(drop),
        ops.make_link(caller, Ino::ROOT, b"new", b"target").map(drop),
        ops.create(caller, Ino::ROOT, b"new", 0o644).map(drop),
        ops.link(file, Ino::ROOT, b"new").map(drop),
        ops.unlink(Ino::ROOT, b"a.txt"),
        ops.remove_directory(Ino::ROOT, b"module"),
        ops.rename(Ino::ROOT, b"a.txt", Ino::ROOT, b"new", 0),
        ops.set_attributes(caller, file, &SetAttributes::default()).map(drop),
        ops.write(file, 0, b"x", false),
        ops.allocate(caller, file, 0, 0, 1),
        ops.copy_range(caller, (file, 0), (file, 10), 1, true).map(drop),
        ops.create_unnamed(caller, Ino::ROOT, 0o600).map(drop),
    ];
    assert_eq!(refused, [Err(Errno::ROFS); 13]);
    for message in ["mknod", "mkdir", "create", "rename", "write", "copy_file_range"] {
        assert!(ops.counters().snapshot().contains(&(message, 1)), "{message}");
    }
    // There is nothing to be synced, which is no failure.
    assert_eq!(ops.sync(Message::Fsync, file), Ok(()));
}

#[test]
fn what_is_pushed_is_whole_and_not_too_large() {
    let (ops, _dir) = ops(Levers::default());
    assert_eq!(ops.content(find(&ops, "a.txt"), 6).as_deref(), Some(&b"hello\n"[..]));
    assert_eq!(ops.content(find(&ops, "a.txt"), 5), None);
    assert_eq!(ops.content(Ino::GIT_FILE, 1000).as_deref(), Some(fixture::GIT_FILE));
    assert_eq!(ops.content(find(&ops, "sub"), 1 << 20), None);
    assert_eq!(ops.counters().of(Message::Read), 0);
}
