//! Goal: through the kernel a worktree is what it is without one: names, types, attributes, bytes.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use agentfs_engine::Ino;
use rustix::io::Errno;

use super::fixture::{self, GIT_FILE, Item, Mount, TIME};
use crate::cache::Levers;
use crate::mount::MountOptions;
use crate::mountinfo;

fn errno<T>(result: io::Result<T>) -> Option<Errno> {
    result.err().as_ref().and_then(Errno::from_io_error)
}

#[test]
fn every_kind_of_entry_is_what_it_is() {
    let Some(mount) = Mount::new(Levers::default()) else { return };
    assert_eq!(fs::read(mount.path("a.txt")).unwrap(), b"hello\n");
    assert_eq!(fs::read(mount.path("empty")).unwrap(), b"");
    assert_eq!(fs::read(mount.path(".git")).unwrap(), GIT_FILE);
    assert_eq!(fs::read(mount.path("sub/deep/up")).unwrap(), b"hello\n");
    assert_eq!(fs::read_link(mount.path("link")).unwrap(), Path::new("a.txt"));
    assert_eq!(fs::read(mount.path(&"x".repeat(255))).unwrap(), b"a long name\n");
    let strange = mount.point.path.join(OsStr::from_bytes(b"\xff\xfe"));
    assert_eq!(fs::read(strange).unwrap(), b"no text in the name\n");
    assert_eq!(fs::read_dir(mount.path("module")).unwrap().count(), 0);
    assert_eq!(Command::new(mount.path("run.sh")).status().unwrap().code(), Some(7));
    assert_eq!(errno(File::open(mount.path(&"x".repeat(256)))), Some(Errno::NAMETOOLONG));
    assert_eq!(errno(File::open(mount.path("a.txt/x"))), Some(Errno::NOTDIR));
    assert_eq!(errno(File::open(mount.path("nothing"))), Some(Errno::NOENT));
}

#[test]
fn attributes_are_the_worktrees() {
    let Some(mount) = Mount::new(Levers::default()) else { return };
    let stat = |name: &str| fs::symlink_metadata(mount.path(name)).unwrap();
    let modes = [("a.txt", 0o100_644), ("run.sh", 0o100_755), ("link", 0o120_777)];
    for (name, mode) in modes.into_iter().chain([("sub", 0o40_755), ("module", 0o40_755)]) {
        assert_eq!(stat(name).permissions().mode(), mode, "{name}");
    }
    let big = stat("big.bin");
    assert_eq!(big.len(), fixture::big().len() as u64);
    assert_eq!(big.blocks(), big.len().div_ceil(512));
    assert_eq!([big.mtime(), big.ctime(), big.atime()], [TIME; 3]);
    assert_eq!((big.nlink(), big.blksize()), (1, 4096));
    assert_eq!((big.uid(), big.gid()), (fixture::UID, fixture::GID));
    let root = stat("");
    assert_eq!((root.ino(), root.nlink()), (Ino::ROOT.0, 2 + 3));
    assert_eq!(stat(".git").ino(), Ino::GIT_FILE.0);
    assert_eq!(root.dev(), mount.mounted.dev());
    let entry = fs::read_dir(mount.path("sub")).unwrap().map(Result::unwrap);
    for entry in entry {
        let stat = stat(&format!("sub/{}", entry.file_name().to_str().unwrap()));
        assert_eq!(entry.file_type().unwrap(), stat.file_type());
        assert_eq!(std::os::unix::fs::DirEntryExt::ino(&entry), stat.ino());
    }
}

#[test]
fn inode_numbers_survive_a_remount() {
    let numbers = || {
        let mount = Mount::new(Levers::default())?;
        let stat = |name| fs::symlink_metadata(mount.path(name)).unwrap().ino();
        Some(["", ".git", "a.txt", "sub/deep/c.txt", "many/file-00999"].map(stat))
    };
    let Some(first) = numbers() else { return };
    assert_eq!(numbers(), Some(first));
}

#[test]
fn large_reads_are_exact_at_any_offset() {
    let Some(mount) = Mount::new(Levers::default()) else { return };
    let expected = fixture::big();
    let file = File::open(mount.path("big.bin")).unwrap();
    for (offset, len) in [(0, 1), (1 << 20, 4096), (123, 70_000), (3 << 20, 500), (4 << 20, 10)] {
        let mut out = vec![0; len];
        let read = file.read_at(&mut out, offset as u64).unwrap();
        let expected = &expected[offset.min(expected.len())..];
        let expected = &expected[..len.min(expected.len())];
        assert_eq!(out[..read], *expected, "{len} bytes at {offset}");
    }
    let mut all = Vec::new();
    (&file).read_to_end(&mut all).unwrap();
    assert!(all == expected);
}

#[test]
fn a_damaged_file_is_an_error_and_its_neighbours_are_not() {
    let Some(mount) = Mount::new(Levers::default()) else { return };
    for name in ["unstored-missing", "unstored-panics"] {
        assert_eq!(errno(fs::read(mount.path(name))), Some(Errno::IO), "{name}");
    }
    assert_eq!(fs::read(mount.path("a.txt")).unwrap(), b"hello\n");
    assert!(mount.mounted.is_alive());
}

#[test]
fn the_file_system_tells_the_truth_about_itself() {
    let Some(mount) = Mount::new(Levers::default()) else { return };
    let ours = rustix::fs::statvfs(&mount.point.path).unwrap();
    assert_eq!(ours.f_namemax, 255);
    // `.`, `.git`, the 13 others in the root, what is in `many`, `sub` and `deep`.
    assert_eq!(ours.f_files, 1 + 1 + 13 + fixture::MANY as u64 + 3 + 2);
    assert!(ours.f_blocks > 0 && ours.f_bfree <= ours.f_blocks && ours.f_bsize >= 512);
    let line = mountinfo::mounted_at(&mount.point.path).unwrap().unwrap();
    assert_eq!(
        (line.fstype.as_str(), line.source.as_str()),
        ("fuse.agentfs", "agentfs:repo@branch")
    );
}

#[test]
fn nothing_can_be_written() {
    // To the kernel the one is read-only; the other is not, and we refuse.
    for read_only in [true, false] {
        let options = MountOptions { read_only, ..fixture::usual() };
        let Some(mount) = Mount::of(fixture::items(), &options) else { return };
        let refused = [
            errno(File::create(mount.path("new"))),
            errno(fs::create_dir(mount.path("new"))),
            errno(std::os::unix::fs::symlink("x", mount.path("new"))),
            errno(fs::hard_link(mount.path("a.txt"), mount.path("new"))),
            errno(fs::rename(mount.path("a.txt"), mount.path("new"))),
            errno(fs::remove_file(mount.path("a.txt"))),
            errno(fs::remove_dir(mount.path("module"))),
            errno(fs::set_permissions(mount.path("a.txt"), fs::Permissions::from_mode(0o600))),
            errno(File::options().append(true).open(mount.path("a.txt")).and_then(|file| {
                let mut file = file;
                io::Write::write_all(&mut file, b"more")
            })),
            errno(File::options().write(true).open(mount.path("a.txt")).and_then(|f| f.set_len(1))),
        ];
        for (index, refusal) in refused.into_iter().enumerate() {
            assert_eq!(refusal, Some(Errno::ROFS), "case {index}, read-only {read_only}");
        }
        assert_eq!(fs::read(mount.path("a.txt")).unwrap(), b"hello\n");
    }
}

#[test]
fn questions_for_devices_and_attributes_are_answered() {
    for levers in [Levers::default(), Levers::none()] {
        let Some(mount) = Mount::new(levers) else { return };
        let file = File::open(mount.path("a.txt")).unwrap();
        let sent = mount.messages(|| assert!(!io::IsTerminal::is_terminal(&file)));
        assert_eq!(sent, [("ioctl", 1)]);
        assert_eq!(io::Error::last_os_error().raw_os_error(), Some(libc::ENOTTY));
        let name = c"user.something";
        assert_eq!(rustix::fs::fgetxattr(&file, name, &mut [0; 8]), Err(Errno::OPNOTSUPP));
        let listed = rustix::fs::flistxattr(&file, &mut [0; 8]);
        assert!(matches!(listed, Ok(0) | Err(Errno::OPNOTSUPP)), "{listed:?}");
        file.sync_all().unwrap();
    }
}

#[test]
fn data_and_holes_are_found_by_us_and_by_the_kernel() {
    use rustix::fs::{SeekFrom, seek};
    for no_lseek in [true, false] {
        let levers = Levers { no_lseek, ..Levers::default() };
        let Some(mount) = Mount::new(levers) else { return };
        let file = File::open(mount.path("a.txt")).unwrap();
        for _ in 0..2 {
            assert_eq!(seek(&file, SeekFrom::Data(2)), Ok(2));
            assert_eq!(seek(&file, SeekFrom::Hole(2)), Ok(6));
            assert_eq!(seek(&file, SeekFrom::Data(6)), Err(Errno::NXIO));
            assert_eq!(seek(&file, SeekFrom::Hole(7)), Err(Errno::NXIO));
        }
        let asked = mount.count(crate::Message::Lseek);
        assert_eq!(asked, if no_lseek { 1 } else { 8 });
    }
}

#[test]
fn an_empty_worktree_can_be_mounted() {
    let Some(mount) = Mount::of(Vec::<(Vec<u8>, Item)>::new(), &fixture::usual()) else { return };
    let names: Vec<_> =
        fs::read_dir(&mount.point.path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, [".git"]);
    assert_eq!(mount.mounted.warm(10).unwrap().directories, 1);
}
