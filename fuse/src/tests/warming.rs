//! Goal: a warm mount asks nothing any more; warming is bounded, and nothing can make it hang.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::mount::UnmountFlags;

use super::fixture::{self, GIT_FILE, Item, Mount};
use crate::cache::Levers;
use crate::error::Error;

/// What git does first: attributes of all, listings, and the files that it reads everywhere.
fn status(root: &Path) {
    assert_eq!(fs::read(root.join(".git")).unwrap(), GIT_FILE);
    let mut queue = vec![root.to_owned()];
    while let Some(directory) = queue.pop() {
        let _ = fs::read(directory.join(".gitignore"));
        for entry in fs::read_dir(&directory).unwrap() {
            let entry = entry.unwrap();
            fs::symlink_metadata(entry.path()).unwrap();
            if entry.file_type().unwrap().is_dir() {
                queue.push(entry.path());
            }
        }
    }
    assert_eq!(fs::read(root.join("sub/.gitattributes")).unwrap(), b"*.bin binary\n");
}

#[test]
fn a_warm_mount_has_nothing_to_ask() {
    let Some(mount) = Mount::new(Levers::default()) else { return };
    let warmed = mount.mounted.warm(u64::MAX).unwrap();
    assert!(warmed.complete, "{warmed:?}");
    assert_eq!((warmed.directories, warmed.entries), (5, fixture::MANY as u64 + 19));
    // .git, .gitignore and .gitattributes.
    assert_eq!(warmed.files_pushed, 3);
    let pushed = GIT_FILE.len() + b"target\n".len() + b"*.bin binary\n".len();
    assert!(mount.mounted.counters().contains(&("bytes_pushed", pushed as u64)));
    assert_eq!(mount.repeated(|| status(&mount.point.path)), []);
    assert_eq!(mount.mounted.warm(u64::MAX).unwrap(), warmed);
}

#[test]
fn warming_is_bounded_and_can_be_left_out() {
    let Some(mount) = Mount::new(Levers::default()) else { return };
    let warmed = mount.mounted.warm(100).unwrap();
    assert!(!warmed.complete && warmed.entries < 1000, "{warmed:?}");
    let levers = Levers { prewarm: false, ..Levers::default() };
    let Some(cold) = Mount::new(levers) else { return };
    assert_eq!(cold.mounted.warm(u64::MAX).unwrap(), crate::Warmed::default());
    assert_eq!(cold.mounted.counts().requests(), 0);
}

#[test]
fn paths_longer_than_the_kernel_takes_are_left_out() {
    let name = vec![b'd'; 250];
    let deep = (0..20).fold(Item::File(b"deep\n".to_vec()), |inner, _| {
        Item::Directory(vec![(name.clone(), inner)])
    });
    let Some(mount) = Mount::of(vec![(b"top".to_vec(), deep)], &fixture::usual()) else { return };
    let warmed = mount.mounted.warm(u64::MAX).unwrap();
    assert!(warmed.directories > 10, "{warmed:?}");
    assert!(std::ffi::OsStr::from_bytes(&name).len() * 20 > 4096);
}

#[test]
fn an_unmount_does_not_wait_for_the_walk() {
    let Some(mount) = Mount::new(Levers::default()) else { return };
    thread::scope(|scope| {
        let warming = scope.spawn(|| mount.mounted.warm(u64::MAX));
        thread::sleep(Duration::from_millis(1));
        mount.mounted.unmount(false).unwrap();
        // It came too late, or was stopped, or was done.
        let _ = warming.join().unwrap();
    });
    assert!(!mount.mounted.is_alive());
}

#[test]
fn a_mount_that_vanishes_ends_the_walk() {
    for delay in 0..10 {
        let Some(mount) = Mount::new(Levers::default()) else { return };
        thread::scope(|scope| {
            let warming = scope.spawn(|| mount.mounted.warm(u64::MAX));
            thread::sleep(Duration::from_millis(delay));
            let flags = UnmountFlags::FORCE | UnmountFlags::DETACH;
            let _ = rustix::mount::unmount(&mount.point.path, flags);
            match warming.join().unwrap() {
                Ok(_) | Err(Error::Warm { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        });
    }
}

#[test]
fn another_mount_on_top_is_not_walked() {
    let Some(lower) = Mount::new(Levers::default()) else { return };
    let upper = crate::mount::attach(&lower.point.path, &fixture::usual()).unwrap();
    drop(upper);
    let refused = lower.mounted.warm(u64::MAX);
    assert!(matches!(refused, Err(Error::Warm { .. })), "{refused:?}");
}
