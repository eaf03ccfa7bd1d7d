//! Goal: with the kernel's writeback cache, which is off unless asked for, what is written is still what
//! is read, and the store has it once it is synced or the mount is gone. Without it, the store has it
//! at once.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};

use agentfs_engine::Ino;
use rustix::fs::{FallocateFlags, Timespec, Timestamps, fallocate, ftruncate, futimens};
use rustix::io::Errno;

use super::fixture::{Mount, noise};
use super::twin::{Twin, errno, items};
use crate::cache::Levers;
use crate::counters::Message;

fn levers() -> Levers {
    Levers { writeback_cache: true, ..Levers::default() }
}

/// What the worktree has of a file.
fn stored(mount: &Mount, file: &File) -> Vec<u8> {
    let ino = Ino(file.metadata().unwrap().ino());
    let ops = mount.mounted.ops();
    let mut bytes = vec![0; ops.attributes(ino).unwrap().size as usize];
    let read = ops.read(ino, 0, &mut bytes).unwrap();
    bytes.truncate(read);
    bytes
}

#[test]
fn what_is_written_is_in_the_store_at_once_without_it() {
    let Some(mount) = Mount::writable(Vec::new(), Levers::default()) else { return };
    let mut file = File::create(mount.path("file")).unwrap();
    file.write_all(b"acknowledged").unwrap();
    assert_eq!(stored(&mount, &file), b"acknowledged");
    assert_eq!(mount.count(Message::Write), 1);
}

#[test]
fn what_is_synced_is_in_the_store_with_it() {
    let Some(mount) = Mount::writable(Vec::new(), levers()) else { return };
    let mut file = File::create(mount.path("file")).unwrap();
    for _ in 0..1000 {
        file.write_all(b"0123456789").unwrap();
    }
    assert_eq!(file.metadata().unwrap().len(), 10_000);
    file.sync_all().unwrap();
    assert_eq!(stored(&mount, &file), b"0123456789".repeat(1000));
    // This is what it is for.
    assert!(mount.count(Message::Write) < 20, "{} writes", mount.count(Message::Write));
}

#[test]
fn what_is_closed_and_unmounted_is_in_the_store_with_it() {
    let Some(mount) = Mount::writable(Vec::new(), levers()) else { return };
    fs::write(mount.path("file"), noise(3 << 20)).unwrap();
    let ino = Ino(fs::metadata(mount.path("file")).unwrap().ino());
    mount.mounted.unmount(false).unwrap();
    let mut bytes = vec![0; 3 << 20];
    assert_eq!(mount.stored.worktree.read(ino, 0, &mut bytes).unwrap(), bytes.len());
    assert!(bytes == noise(3 << 20));
}

#[test]
fn files_are_as_on_the_host_with_it() {
    let Some(mut twin) = Twin::with(levers()) else { return };
    twin.step("pieces", |side| {
        let file = errno(File::options().read(true).write(true).open(side.path("big.bin")))?;
        // Parts of pages that were not read before.
        for at in [3_u64, 5000, 1 << 20, (3 << 20) + 7, 5 << 20] {
            errno(file.write_all_at(b"a piece", at))?;
        }
        ftruncate(&file, (5 << 20) + 3)?;
        fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 100, 9000)?;
        errno(file.metadata()).map(|stat| stat.len())
    })
    .unwrap();
    twin.step("appended", |side| {
        for n in 0..100 {
            let file = File::options().append(true).create(true).open(side.path("log"));
            errno(file.and_then(|mut file| writeln!(file, "line {n}")))?;
        }
        errno(fs::read_to_string(side.path("log")))
    })
    .unwrap();
    twin.step("renamed and removed while dirty", |side| {
        errno(fs::write(side.path("one"), noise(100_000)))?;
        errno(fs::rename(side.path("one"), side.path("sub/two")))?;
        errno(fs::write(side.path("three"), noise(100_000)))?;
        errno(fs::remove_file(side.path("three")))
    })
    .unwrap();
    let dated = twin.step("dated while dirty", |side| {
        let mut file = errno(File::create(side.path("dated")))?;
        errno(file.write_all(b"bytes"))?;
        let time = Timespec { tv_sec: 77, tv_nsec: 5 };
        futimens(&file, &Timestamps { last_access: time, last_modification: time })?;
        errno(file.sync_all())?;
        drop(file);
        errno(fs::metadata(side.path("dated"))).map(|stat| (stat.mtime(), stat.mtime_nsec()))
    });
    assert_eq!(dated, Ok::<_, Errno>((77, 5)));
    // What the kernel held is what the store has.
    twin.mount.mounted.unmount(true).unwrap();
}

#[test]
fn the_time_of_a_write_is_the_kernels_with_it() {
    let Some(mount) = Mount::writable(items(), levers()) else { return };
    let mut file = File::options().write(true).open(mount.path("a.txt")).unwrap();
    let before = file.metadata().unwrap();
    file.write_all(b"more").unwrap();
    let told = file.metadata().unwrap();
    assert!(told.modified().unwrap() > before.modified().unwrap());
    // It is sent along, so that the store has the moment of the write and not that of the sync.
    file.sync_all().unwrap();
    let truth = mount.mounted.ops().attributes(Ino(told.ino())).unwrap();
    assert_eq!(
        (truth.modified.seconds, truth.modified.nanoseconds),
        (told.mtime(), told.mtime_nsec() as u32)
    );
}
