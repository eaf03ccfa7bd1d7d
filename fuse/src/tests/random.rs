//! Goal: whatever is done in whatever order, a mount and a directory of the host cannot be told apart.
//!
//! The operations work on few names in few directories, so that most of them meet something: what is
//! there, what is not, what is open, what is full, what is itself.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, RenameFlags, SeekFrom, Timespec, Timestamps, XattrFlags,
    copy_file_range, fallocate, ftruncate, lremovexattr, lsetxattr, renameat_with, seek, utimensat,
};
use rustix::io::Errno;

use super::fixture::noise;
use super::twin::{Side, Twin, errno};
use crate::cache::Levers;

/// Where operations work. The last two are never there at first.
const PATHS: [&str; 11] = [
    "a.txt",
    "big.bin",
    "empty",
    "link",
    "sub",
    "sub/b.txt",
    "sub/deep",
    "sub/deep/c.txt",
    "void",
    "void/x",
    "y",
];
/// Names under which files stay open.
const SLOTS: [&str; 2] = ["first", "second"];

#[derive(Clone, Debug)]
enum Step {
    Create(usize, u32),
    Write(usize, u64, usize),
    Append(usize, usize),
    Truncate(usize, u64),
    Allocate(usize, u32, u64, u64),
    Copy(usize, u64, usize, u64, usize),
    Read(usize, u64, usize),
    Holes(usize, u64),
    MakeDirectory(usize),
    RemoveDirectory(usize),
    Remove(usize),
    Rename(usize, usize, u32),
    Link(usize, usize),
    Symlink(usize, usize),
    Mode(usize, u32),
    Times(usize, i64),
    SetXattr(usize, usize, usize),
    RemoveXattr(usize, usize),
    Open(usize, usize),
    WriteOpen(usize, u64, usize),
    ReadOpen(usize),
    Close(usize),
    /// What was written goes into the store, of which nobody may see anything.
    Drain,
}

fn step() -> impl Strategy<Value = Step> {
    let path = || 0..PATHS.len();
    let slot = || 0..SLOTS.len();
    // Around the borders of pages and of what one message carries, and anywhere.
    let offset = || {
        prop_oneof![
            0..10_000_u64,
            (0..1000_u64).prop_map(|page| page * 4096),
            (1_u64 << 20) - 5..(1 << 20) + 5,
            0..4_000_000_u64,
        ]
    };
    let len = || prop_oneof![0..100_usize, Just(4096_usize), 0..20_000_usize, 0..1_500_000_usize];
    let mode = || prop_oneof![Just(0o644), Just(0o755), Just(0o600), Just(0o6777), Just(0o1777)];
    prop_oneof![
        2 => (path(), mode()).prop_map(|(path, mode)| Step::Create(path, mode)),
        4 => (path(), offset(), len()).prop_map(|(path, at, len)| Step::Write(path, at, len)),
        2 => (path(), len()).prop_map(|(path, len)| Step::Append(path, len)),
        2 => (path(), offset()).prop_map(|(path, size)| Step::Truncate(path, size)),
        1 => (path(), 0..5_u32, offset(), 1..1_000_000_u64)
            .prop_map(|(path, how, at, len)| Step::Allocate(path, how, at, len)),
        2 => (path(), offset(), path(), offset(), len())
            .prop_map(|(from, at, to, to_at, len)| Step::Copy(from, at, to, to_at, len)),
        2 => (path(), offset(), len()).prop_map(|(path, at, len)| Step::Read(path, at, len)),
        1 => (path(), offset()).prop_map(|(path, at)| Step::Holes(path, at)),
        2 => path().prop_map(Step::MakeDirectory),
        1 => path().prop_map(Step::RemoveDirectory),
        2 => path().prop_map(Step::Remove),
        4 => (path(), path(), 0..4_u32)
            .prop_map(|(from, to, flags)| Step::Rename(from, to, flags.saturating_sub(1))),
        2 => (path(), path()).prop_map(|(from, to)| Step::Link(from, to)),
        1 => (path(), path()).prop_map(|(path, to)| Step::Symlink(path, to)),
        1 => (path(), mode()).prop_map(|(path, mode)| Step::Mode(path, mode)),
        1 => (path(), -10..2_000_000_000_i64).prop_map(|(path, time)| Step::Times(path, time)),
        1 => (path(), 0..3_usize, 0..200_usize)
            .prop_map(|(path, name, len)| Step::SetXattr(path, name, len)),
        1 => (path(), 0..3_usize).prop_map(|(path, name)| Step::RemoveXattr(path, name)),
        2 => (slot(), path()).prop_map(|(slot, path)| Step::Open(slot, path)),
        3 => (slot(), offset(), len()).prop_map(|(slot, at, len)| Step::WriteOpen(slot, at, len)),
        2 => slot().prop_map(Step::ReadOpen),
        1 => slot().prop_map(Step::Close),
        1 => Just(Step::Drain),
    ]
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(bytes.len() as u64, |sum, &byte| sum.rotate_left(5) ^ u64::from(byte))
}

/// What `step` says on one side.
fn take(side: &mut Side, step: &Step) -> Result<u64, Errno> {
    let path = |side: &Side, index: usize| side.path(PATHS[index]);
    let open =
        |side: &Side, index| errno(File::options().read(true).write(true).open(path(side, index)));
    match *step {
        Step::Create(at, mode) => {
            let file = errno(File::create(path(side, at)))?;
            errno(file.set_permissions(Permissions::from_mode(mode)))?;
        }
        Step::Write(at, offset, len) => {
            errno(open(side, at)?.write_all_at(&noise(len), offset))?;
        }
        Step::Append(at, len) => {
            let mut file = errno(File::options().append(true).open(path(side, at)))?;
            errno(std::io::Write::write_all(&mut file, &noise(len)))?;
        }
        Step::Truncate(at, size) => ftruncate(open(side, at)?, size)?,
        Step::Allocate(at, how, offset, len) => {
            let keep = FallocateFlags::KEEP_SIZE;
            let zero = FallocateFlags::ZERO_RANGE;
            let how = [
                FallocateFlags::empty(),
                keep,
                keep | FallocateFlags::PUNCH_HOLE,
                zero,
                zero | keep,
            ][how as usize];
            fallocate(open(side, at)?, how, offset, len)?;
        }
        Step::Copy(from, mut offset, to, mut to_offset, len) => {
            let (from, to) = (open(side, from)?, open(side, to)?);
            let mut left = len;
            while left > 0 {
                match copy_file_range(&from, Some(&mut offset), &to, Some(&mut to_offset), left)? {
                    0 => break,
                    copied => left -= copied,
                }
            }
            return Ok((len - left) as u64);
        }
        Step::Read(at, offset, len) => {
            let file = errno(File::open(path(side, at)))?;
            let mut bytes = vec![0; len];
            let read = errno(file.read_at(&mut bytes, offset))?;
            return Ok(sum(&bytes[..read]));
        }
        Step::Holes(at, offset) => {
            // Where holes begin is for a file system to choose; that one is at the end is not.
            let file = open(side, at)?;
            let size = errno(file.metadata())?.len();
            return match seek(&file, SeekFrom::Hole(offset)) {
                Ok(hole) => Ok(u64::from(hole <= size)),
                Err(refusal) => Err(refusal),
            };
        }
        Step::MakeDirectory(at) => errno(fs::create_dir(path(side, at)))?,
        Step::RemoveDirectory(at) => errno(fs::remove_dir(path(side, at)))?,
        Step::Remove(at) => errno(fs::remove_file(path(side, at)))?,
        Step::Rename(from, to, flags) => {
            let flags = RenameFlags::from_bits_retain(flags);
            renameat_with(CWD, path(side, from), CWD, path(side, to), flags)?;
        }
        Step::Link(from, to) => errno(fs::hard_link(path(side, from), path(side, to)))?,
        Step::Symlink(at, to) => errno(symlink(PATHS[to], path(side, at)))?,
        Step::Mode(at, mode) => {
            errno(fs::set_permissions(path(side, at), Permissions::from_mode(mode)))?;
        }
        Step::Times(at, time) => {
            let time = Timespec { tv_sec: time, tv_nsec: 7 };
            let times = Timestamps { last_access: time, last_modification: time };
            utimensat(CWD, path(side, at), &times, AtFlags::SYMLINK_NOFOLLOW)?;
            return Ok(errno(fs::symlink_metadata(path(side, at)))?.mtime() as u64);
        }
        Step::SetXattr(at, name, len) => {
            let name = format!("user.{name}");
            lsetxattr(path(side, at), &*name, &noise(len), XattrFlags::empty())?;
        }
        Step::RemoveXattr(at, name) => lremovexattr(path(side, at), &*format!("user.{name}"))?,
        Step::Open(slot, at) => {
            let file = open(side, at)?;
            side.keep(SLOTS[slot], file);
        }
        Step::WriteOpen(slot, offset, len) => {
            if let Some(file) = side.files.get(SLOTS[slot]) {
                errno(file.write_all_at(&noise(len), offset))?;
            }
        }
        Step::ReadOpen(slot) => {
            let Some(file) = side.files.get(SLOTS[slot]) else { return Ok(0) };
            let stat = errno(file.metadata())?;
            let mut bytes = vec![0; stat.len() as usize];
            errno(file.read_exact_at(&mut bytes, 0))?;
            return Ok(sum(&bytes) ^ stat.nlink());
        }
        Step::Close(slot) => _ = side.files.remove(SLOTS[slot]),
        Step::Drain => {}
    }
    Ok(0)
}

fn any_sequence(levers: &Levers, cases: u32) {
    let config =
        Config { cases, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let sequences = proptest::collection::vec(step(), 1..40);
    let run = TestRunner::new(config).run(&sequences, |steps| {
        let Some(mut twin) = Twin::with(levers.clone()) else { return Ok(()) };
        for step in &steps {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                if matches!(step, Step::Drain) {
                    twin.mount.stored.worktree.drain().unwrap();
                }
                _ = twin.step(&format!("{step:?}"), |side| take(side, step));
            }));
            prop_assert!(outcome.is_ok(), "at {step:?}");
        }
        Ok(())
    });
    if let Err(failure) = run {
        panic!("{failure}");
    }
}

#[test]
fn any_sequence_of_operations_comes_out_as_on_the_host() {
    any_sequence(&Levers::default(), 24);
}

#[test]
fn any_sequence_comes_out_the_same_without_levers() {
    any_sequence(&Levers { default_permissions: true, ..Levers::none() }, 8);
}
