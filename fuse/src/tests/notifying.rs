//! Goal: what was changed past the kernel is shown when the kernel was told, and not before.

use std::fs;
use std::os::unix::fs::MetadataExt;

use agentfs_engine::Ino;
use agentfs_engine::worktree::{Caller, NewNode, SetAttributes};

use super::fixture::{self, Mount};
use crate::cache::Levers;
use crate::error::Error;
use crate::notify::Stale;

const CALLER: Caller = Caller { uid: 0, gid: 0 };

fn mount() -> Option<Mount> {
    Mount::writable(fixture::items(), Levers::default())
}

fn ino(mount: &Mount, name: &str) -> Ino {
    Ino(fs::symlink_metadata(mount.path(name)).unwrap().ino())
}

#[test]
fn attributes_are_forgotten_and_content_is_not() {
    let Some(mount) = mount() else { return };
    let mode = || fs::metadata(mount.path("a.txt")).unwrap().mode() & 0o7777;
    assert_eq!((mode(), fs::read(mount.path("a.txt")).unwrap()), (0o644, b"hello\n".to_vec()));
    let file = ino(&mount, "a.txt");
    let set = SetAttributes { permissions: Some(0o600), ..Default::default() };
    mount.stored.worktree.set_attributes(CALLER, file, &set).unwrap();
    assert_eq!(mode(), 0o644);
    mount.mounted.invalidate(Stale::Attributes(file)).unwrap();
    assert_eq!(mode(), 0o600);
    let sent = mount.messages(|| assert_eq!(fs::read(mount.path("a.txt")).unwrap(), b"hello\n"));
    assert!(!sent.iter().any(|(name, _)| *name == "read"), "{sent:?}");
}

#[test]
fn content_is_forgotten() {
    let Some(mount) = mount() else { return };
    let read = || fs::read(mount.path("a.txt")).unwrap();
    assert_eq!(read(), b"hello\n");
    let file = ino(&mount, "a.txt");
    mount.stored.worktree.write(file, 0, b"J", false).unwrap();
    assert_eq!(read(), b"hello\n");
    mount.mounted.invalidate(Stale::Content(file)).unwrap();
    assert_eq!(read(), b"Jello\n");
}

#[test]
fn names_and_their_absence_are_forgotten() {
    let Some(mount) = mount() else { return };
    let worktree = &mount.stored.worktree;
    let exists = |name| mount.path(name).exists();
    let list = || fs::read_dir(mount.path("sub")).unwrap().count();
    assert_eq!((exists("sub/new"), exists("sub/b.txt"), list()), (false, true, 3));
    let sub = ino(&mount, "sub");
    worktree.create(CALLER, sub, b"new", 0o644, NewNode::File).unwrap();
    let gone = ino(&mount, "sub/b.txt");
    worktree.unlink(sub, b"b.txt").unwrap();
    assert_eq!((exists("sub/new"), exists("sub/b.txt"), list()), (false, true, 3));
    mount.mounted.invalidate(Stale::Entry { parent: sub, name: b"new" }).unwrap();
    let deleted = Stale::Deleted { parent: sub, ino: gone, name: b"b.txt" };
    mount.mounted.invalidate(deleted).unwrap();
    assert_eq!((exists("sub/new"), exists("sub/b.txt")), (true, false));
    mount.mounted.invalidate(Stale::Content(sub)).unwrap();
    assert_eq!(list(), 3);
    let names: Vec<_> = fs::read_dir(mount.path("sub")).unwrap().collect();
    assert!(names.iter().any(|entry| entry.as_ref().unwrap().file_name() == "new"));
}

#[test]
fn what_the_kernel_does_not_know_is_forgotten_and_what_it_keeps_is_told() {
    let Some(mount) = mount() else { return };
    let unknown = [
        Stale::Attributes(Ino(999)),
        Stale::Content(Ino(999)),
        Stale::Entry { parent: Ino(999), name: b"x" },
        Stale::Deleted { parent: Ino::ROOT, ino: Ino(999), name: b"x" },
    ];
    for stale in unknown {
        mount.mounted.invalidate(stale).unwrap();
    }
    // Somebody uses what is in it.
    let open = fs::File::open(mount.path("sub/b.txt")).unwrap();
    let sub = Stale::Deleted { parent: Ino::ROOT, ino: ino(&mount, "sub"), name: b"sub" };
    let refused = mount.mounted.invalidate(sub);
    assert!(matches!(refused, Err(Error::Invalidate { .. })), "{refused:?}");
    drop(open);
    mount.mounted.unmount(false).unwrap();
    mount.mounted.invalidate(sub).unwrap();
}
