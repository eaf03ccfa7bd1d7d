//! Goal: bytes land where they are written, sizes, holes and times follow, however they are written,
//! and what the kernel keeps of them stays true.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;

use rustix::fs::{FallocateFlags, copy_file_range, fallocate, ftruncate, seek};
use rustix::io::Errno;

use super::fixture::{self, Mount, noise};
use super::mapping::Mapping;
use super::process::{as_user, start};
use super::twin::{Side, Twin, errno, items};
use crate::cache::Levers;
use crate::counters::Message;

fn open(side: &Side, name: &str) -> Result<File, Errno> {
    errno(File::options().read(true).write(true).create(true).truncate(false).open(side.path(name)))
}

#[test]
fn bytes_land_where_they_are_written() {
    let Some(mut twin) = Twin::new() else { return };
    for name in ["big.bin", "empty", "new"] {
        for (offset, len) in
            [(0, 1), (4095, 2), (1 << 20, 1 << 20), (123, 2 << 20), (5 << 20, 77), (9 << 20, 0)]
        {
            let what = format!("{len} bytes at {offset} of {name}");
            twin.step(&what, |side| {
                let file = open(side, name)?;
                errno(file.write_all_at(&noise(len), offset))?;
                errno(file.metadata()).map(|stat| stat.len())
            })
            .unwrap();
        }
    }
    let nothing = twin.step("nothing", |side| {
        open(side, "a.txt").and_then(|file| errno(file.write_at(b"", 100)))
    });
    assert_eq!(nothing, Ok(0));
    let directory = twin.step("a directory", |side| {
        errno(File::options().write(true).open(side.path("sub"))).map(drop)
    });
    assert_eq!(directory, Err(Errno::ISDIR));
}

#[test]
fn sizes_are_cut_and_extended() {
    let Some(mut twin) = Twin::new() else { return };
    for name in ["big.bin", "new"] {
        for size in [3 << 20, 1_000_000, 4096, 4097, 10_000_000, 1, 0, 1 << 26, 5] {
            twin.step(&format!("{name} to {size}"), |side| {
                let file = open(side, name)?;
                ftruncate(&file, size)?;
                // What was cut off must not come back.
                errno(file.write_all_at(b"!", size.min(9_000_000) / 2))?;
                errno(file.metadata()).map(|stat| stat.len())
            })
            .unwrap();
        }
    }
    let path = |name: &'static str| move |side: &mut Side| errno(nix_truncate(&side.path(name), 3));
    twin.step("by path", path("a.txt")).unwrap();
    assert_eq!(twin.step("a directory", path("sub")), Err(Errno::ISDIR));
    assert_eq!(twin.step("nothing", path("nothing")), Err(Errno::NOENT));
}

/// truncate(2), which no safe crate of ours has.
#[expect(unsafe_code, reason = "a system call")]
fn nix_truncate(path: &Path, len: i64) -> std::io::Result<()> {
    let path = std::ffi::CString::new(path.as_os_str().as_encoded_bytes())?;
    // SAFETY: the path ends in a NUL and lives for the call.
    match unsafe { libc::truncate(path.as_ptr(), len) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

#[test]
fn what_was_opened_to_be_truncated_is_empty() {
    let Some(mut twin) = Twin::new() else { return };
    for name in ["big.bin", "a.txt", "empty", "link"] {
        twin.step(name, |side| {
            let mut file = errno(File::options().write(true).truncate(true).open(side.path(name)))?;
            errno(file.write_all(b"new"))?;
            errno(fs::read(side.path(name)))
        })
        .unwrap();
    }
}

#[test]
fn appended_bytes_go_to_the_end_wherever_that_is() {
    let Some(mut twin) = Twin::new() else { return };
    twin.step("two who append", |side| {
        let appending = || errno(File::options().append(true).open(side.path("a.txt")));
        let (mut first, mut second) = (appending()?, appending()?);
        for n in 0..10 {
            errno(writeln!(first, "first {n}"))?;
            errno(writeln!(second, "second {n}"))?;
        }
        ftruncate(&first, 10)?;
        errno(second.write_all(b"after the cut"))?;
        errno(first.metadata()).map(|stat| stat.len())
    })
    .unwrap();
}

const LINES: usize = 500;

/// Appends lines when told to.
pub(super) fn append_in_a_process(path: &Path) {
    let mut file = File::options().append(true).open(path).unwrap();
    let mut told = String::new();
    std::io::stdin().lock().read_line(&mut told).unwrap();
    for n in 0..LINES {
        let line = format!("{} {n:04} {}\n", told.trim(), "x".repeat(n % 100));
        file.write_all(line.as_bytes()).unwrap();
    }
}

#[test]
fn processes_that_append_do_not_overwrite_each_other() {
    let Some(mount) = Mount::writable(Vec::new(), Levers::default()) else { return };
    let path = mount.path("log");
    File::create(&path).unwrap();
    let mut children: Vec<_> = (0..4).map(|_| start("append", &path)).collect();
    for (number, child) in children.iter_mut().enumerate() {
        writeln!(child.stdin.take().unwrap(), "{number}").unwrap();
    }
    for child in children {
        assert!(child.wait_with_output().unwrap().status.success());
    }
    let mut next = [0; 4];
    for line in BufReader::new(File::open(&path).unwrap()).lines() {
        let line = line.unwrap();
        let mut words = line.split(' ');
        let mut word = || words.next().unwrap();
        let (child, n) = (word().parse::<usize>().unwrap(), word().parse::<usize>().unwrap());
        assert_eq!(n, next[child]);
        assert_eq!(word().len(), n % 100);
        next[child] += 1;
    }
    assert_eq!(next, [LINES; 4]);
}

#[test]
fn ranges_are_reserved_punched_and_zeroed() {
    let Some(mut twin) = Twin::new() else { return };
    let keep = FallocateFlags::KEEP_SIZE;
    let punch = FallocateFlags::PUNCH_HOLE | keep;
    let zero = FallocateFlags::ZERO_RANGE;
    let cases = [
        ("reserve within", FallocateFlags::empty(), 4096, 8192),
        ("reserve beyond", FallocateFlags::empty(), 4 << 20, 1 << 20),
        ("reserve and keep the size", keep, 8 << 20, 1 << 20),
        ("punch pages", punch, 1 << 20, 1 << 20),
        ("punch within a page", punch, 100, 200),
        ("punch over pages", punch, 5000, 10_000),
        ("punch beyond the end", punch, 7 << 20, 1 << 20),
        ("zero within", zero, 300_000, 200_000),
        ("zero beyond", zero, 6 << 20, 12_345),
        ("zero and keep the size", zero | keep, 7 << 20, 12_345),
    ];
    for (what, mode, offset, len) in cases {
        for name in ["big.bin", "fresh"] {
            twin.step(&format!("{what}: {name}"), |side| {
                let file = open(side, name)?;
                fallocate(&file, mode, offset, len)?;
                errno(file.metadata()).map(|stat| stat.len())
            })
            .unwrap();
        }
    }
    let refused = |flags, offset, len| {
        move |side: &mut Side| {
            open(side, "a.txt").and_then(|file| fallocate(file, flags, offset, len))
        }
    };
    let empty = FallocateFlags::empty();
    assert_eq!(twin.step("nothing", refused(empty, 0, 0)), Err(Errno::INVAL));
    let alone = refused(FallocateFlags::PUNCH_HOLE, 0, 1);
    assert_eq!(twin.step("punching without keeping", alone), Err(Errno::OPNOTSUPP));
}

#[test]
fn modes_that_only_other_file_systems_have_are_not_supported() {
    let Some(mount) = Mount::writable(items(), Levers::default()) else { return };
    let file = File::options().write(true).open(mount.path("big.bin")).unwrap();
    for mode in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
        assert_eq!(fallocate(&file, mode, 0, 4096), Err(Errno::OPNOTSUPP));
    }
    assert_eq!(File::open(mount.path("big.bin")).unwrap().metadata().unwrap().len(), 3_145_851);
}

#[test]
fn data_and_holes_are_found() {
    let Some(mut twin) = Twin::new() else { return };
    twin.step("a file with holes", |side| {
        let file = open(side, "holes")?;
        errno(file.write_all_at(&noise(8192), 1 << 20))?;
        errno(file.write_all_at(&noise(4096), 3 << 20))?;
        ftruncate(&file, 5 << 20)
    })
    .unwrap();
    for name in ["holes", "big.bin", "empty", "a.txt"] {
        let found = twin.step(name, |side| {
            let file = open(side, name)?;
            let mut found = Vec::new();
            for at in [0, 3, 1 << 20, (1 << 20) + 8191, (1 << 20) + 8192, 3 << 20, 5 << 20, 6 << 20]
            {
                found.push(seek(&file, rustix::fs::SeekFrom::Data(at)));
                found.push(seek(&file, rustix::fs::SeekFrom::Hole(at)));
            }
            Ok::<_, Errno>(found)
        });
        if name == "holes" {
            assert_eq!(found.as_ref().unwrap()[..2], [Ok(1 << 20), Ok(0)]);
        }
    }
    twin.step("a copy", |side| errno(fs::copy(side.path("holes"), side.path("copy")))).unwrap();
    // What a hole costs is seen.
    let blocks = |name| fs::metadata(twin.mount.path(name)).unwrap().blocks();
    assert_eq!((blocks("holes"), blocks("copy")), (24, 24));
    assert_eq!(blocks("big.bin"), fixture::big().len().div_ceil(512) as u64);
}

#[test]
fn ranges_are_copied_between_files_and_within_one() {
    let Some(mut twin) = Twin::new() else { return };
    let cases = [
        ("big.bin", 0, "new", 0, 1 << 20),
        ("big.bin", 12_345, "new", 500, 2 << 20),
        ("big.bin", 3 << 20, "a.txt", 3, 1 << 20),
        ("a.txt", 0, "big.bin", 1 << 20, 100),
        ("big.bin", 0, "big.bin", 4 << 20, 1 << 20),
        ("big.bin", 100 << 20, "new", 0, 10),
        ("empty", 0, "new", 0, 10),
    ];
    for (from, from_offset, to, to_offset, len) in cases {
        let what = format!("{len} of {from} at {from_offset} to {to} at {to_offset}");
        twin.step(&what, |side| {
            let (source, target) = (open(side, from)?, open(side, to)?);
            let (mut input, mut output) = (from_offset, to_offset);
            let mut copied = 0;
            while copied < len {
                let left = len - copied;
                match copy_file_range(&source, Some(&mut input), &target, Some(&mut output), left)?
                {
                    0 => break,
                    more => copied += more,
                }
            }
            Ok::<_, Errno>((copied, input, output))
        })
        .unwrap();
    }
    let overlapping = twin.step("overlapping", |side| {
        let file = open(side, "big.bin")?;
        copy_file_range(&file, Some(&mut 0), &file, Some(&mut 10), 100)
    });
    assert_eq!(overlapping, Err(Errno::INVAL));
    assert!(twin.mount.count(Message::CopyFileRange) > 0);
}

#[test]
fn what_one_open_file_writes_every_other_reads() {
    let Some(mut twin) = Twin::new() else { return };
    twin.step("opening", |side| {
        let (reader, writer) = (open(side, "big.bin")?, open(side, "big.bin")?);
        side.keep("reader", reader);
        side.keep("writer", writer);
        Ok::<_, Errno>(())
    })
    .unwrap();
    for (offset, len) in [(0_u64, 10_usize), (1 << 20, 5000), (3 << 20, 100_000)] {
        let read = twin.step(&format!("at {offset}"), |side| {
            let bytes = noise(len);
            errno(side.file("writer").write_all_at(&bytes, offset))?;
            let mut read = vec![0; len];
            errno(side.file("reader").read_exact_at(&mut read, offset))?;
            Ok::<_, Errno>(read == bytes)
        });
        assert_eq!(read, Ok(true));
    }
    twin.step("cut by one, the end of the other", |side| {
        ftruncate(side.file("writer"), 100)?;
        let mut reader = side.file("reader");
        errno(reader.seek(SeekFrom::Start(90)))?;
        let mut rest = Vec::new();
        errno(reader.read_to_end(&mut rest))
    })
    .unwrap();
}

#[test]
fn mapped_files_are_written_by_storing() {
    let Some(mut twin) = Twin::new() else { return };
    twin.step("stored, synced, unmapped", |side| {
        let file = open(side, "big.bin")?;
        let mapping = Mapping::new(&file, 3 << 20);
        mapping.put(5, b"at the beginning");
        mapping.put((1 << 20) - 4, b"over a page");
        mapping.sync();
        let mut read = [0; 16];
        errno(file.read_exact_at(&mut read, 5))?;
        errno(file.write_all_at(b"by a write", 2 << 20))?;
        mapping.put(100, b"after the sync");
        Ok::<_, Errno>((read, mapping.get(2 << 20, 10)))
    })
    .unwrap();
    twin.step("a new file", |side| {
        let file = open(side, "mapped")?;
        ftruncate(&file, 10_000)?;
        let mapping = Mapping::new(&file, 10_000);
        mapping.put(9_990, b"to the end");
        // Beyond the end of the file, which never was.
        Ok::<_, Errno>(())
    })
    .unwrap();
    twin.step("removed while mapped", |side| {
        let file = open(side, "mapped")?;
        let mapping = Mapping::new(&file, 10_000);
        errno(fs::remove_file(side.path("mapped")))?;
        drop(file);
        mapping.put(0, b"still there");
        mapping.sync();
        Ok::<_, Errno>(mapping.get(0, 11))
    })
    .unwrap();
}

#[test]
fn storing_into_a_mapping_moves_the_time_and_no_other_attribute() {
    let Some(mut twin) = Twin::new() else { return };
    twin.step("a file with set-id bits", |side| {
        let file = open(side, "mapped")?;
        ftruncate(&file, 8192)?;
        rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o6777))
    })
    .unwrap();
    let mode = twin.step("stored by somebody else", |side| {
        as_user(1000, 1000, || {
            let file = open(side, "mapped")?;
            let mapping = Mapping::new(&file, 8192);
            mapping.put(0, b"bytes");
            mapping.sync();
            errno(file.metadata()).map(|stat| stat.mode())
        })
    });
    assert_eq!(mode, Ok(0o106_777));
}

#[test]
fn direct_writes_and_reads_are_exact() {
    let Some(mut twin) = Twin::new() else { return };
    twin.step("direct", |side| {
        let options = File::options().read(true).write(true).custom_flags(libc::O_DIRECT).clone();
        let file = errno(options.open(side.path("big.bin")))?;
        let mut room = vec![0; (1 << 20) + 4096];
        let at = room.as_ptr().align_offset(4096);
        let aligned = &mut room[at..at + (1 << 20)];
        aligned.copy_from_slice(&noise(1 << 20));
        errno(file.write_all_at(aligned, 1 << 20))?;
        aligned.fill(0);
        errno(file.read_exact_at(aligned, 1 << 20))?;
        Ok::<_, Errno>(*aligned == noise(1 << 20))
    })
    .unwrap();
}

#[test]
fn large_writes_take_few_messages_and_small_ones_nothing_beside() {
    let Some(mount) = Mount::writable(Vec::new(), Levers::default()) else { return };
    let mut file = File::create(mount.path("file")).unwrap();
    let bytes = noise(8 << 20);
    let sent = mount.messages(|| file.write_all(&bytes).unwrap());
    // Before the first write the kernel asks for the capabilities that the file may lose.
    assert_eq!(sent, [("write", 8), ("getxattr", 1)]);
    // Written pages are in the page cache; the size is asked for once, after the attributes of the
    // directory that the file was made in.
    fs::metadata(&mount.point.path).unwrap();
    let sent = mount.messages(|| assert_eq!(fs::read(mount.path("file")).unwrap(), bytes));
    assert_eq!(sent, [("getattr", 1), ("flush", 1)]);
    let sent = mount.messages(|| (0..100).for_each(|_| file.write_all(b"x").unwrap()));
    assert_eq!(sent, [("write", 100), ("getxattr", 1)]);
    assert_eq!(mount.messages(|| drop(file)), []);
    let counted = mount.mounted.counters();
    assert!(counted.contains(&("bytes_written", (8 << 20) + 100)));
}

#[test]
fn syncing_asks_once_for_each_call() {
    let Some(mount) = Mount::writable(items(), Levers::default()) else { return };
    let file = File::options().write(true).open(mount.path("a.txt")).unwrap();
    let directory = File::open(mount.path("sub")).unwrap();
    let sent = mount.messages(|| {
        file.sync_all().unwrap();
        file.sync_data().unwrap();
        directory.sync_all().unwrap();
    });
    assert_eq!(sent, [("fsync", 2), ("fsyncdir", 1)]);
}

#[test]
fn writers_in_parallel_keep_out_of_each_others_way() {
    let Some(mount) = Mount::writable(Vec::new(), Levers::default()) else { return };
    fs::write(mount.path("shared"), vec![0; 8 << 20]).unwrap();
    thread::scope(|scope| {
        for writer in 0..8_usize {
            let mount = &mount;
            scope.spawn(move || {
                let shared = File::options().write(true).open(mount.path("shared")).unwrap();
                let own = mount.path(&format!("own-{writer}"));
                for round in 0..50 {
                    let bytes = vec![writer as u8 + 1; 10_000];
                    let at = (round * 8 + writer) * 10_000;
                    shared.write_all_at(&bytes, at as u64).unwrap();
                    fs::write(&own, &bytes).unwrap();
                    fs::rename(&own, own.with_extension("done")).unwrap();
                }
            });
        }
    });
    let shared = fs::read(mount.path("shared")).unwrap();
    for (index, piece) in shared[..50 * 8 * 10_000].chunks(10_000).enumerate() {
        assert!(piece.iter().all(|&byte| byte as usize == index % 8 + 1), "piece {index}");
    }
    for writer in 0..8 {
        assert_eq!(fs::read(mount.path(&format!("own-{writer}.done"))).unwrap().len(), 10_000);
    }
}
