//! Goal: a listing shows each entry once, whoever reads it, from wherever, in whatever pieces, and
//! costs as few messages as the kernel's buffers allow.

use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;

use rustix::fs::{Mode, OFlags, RawDir, SeekFrom, open, seek};

use super::fixture::{MANY, Mount};
use crate::cache::Levers;
use crate::counters::Message;

fn directory(path: &Path) -> OwnedFd {
    open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
}

/// The names from where the directory stands to its end with their positions, read in pieces of
/// `bytes`.
fn rest(directory: &OwnedFd, bytes: usize) -> Vec<(String, u64)> {
    let mut buffer = vec![MaybeUninit::uninit(); bytes];
    let mut listing = RawDir::new(directory, &mut buffer);
    let mut entries = Vec::new();
    while let Some(entry) = listing.next() {
        let entry = entry.unwrap();
        entries.push((entry.file_name().to_str().unwrap().to_owned(), entry.next_entry_cookie()));
    }
    entries
}

fn expected() -> Vec<String> {
    let dots = [".", ".."].map(str::to_owned);
    dots.into_iter().chain((0..MANY).map(|n| format!("file-{n:05}"))).collect()
}

fn names(entries: &[(String, u64)]) -> Vec<String> {
    entries.iter().map(|(name, _)| name.clone()).collect()
}

#[test]
fn a_listing_is_complete_in_pieces_of_any_size() {
    for levers in [Levers::default(), Levers { readdirplus: false, ..Levers::default() }] {
        let Some(mount) = Mount::new(levers) else { return };
        for bytes in [300, 4096, 32 << 10, 1 << 20] {
            assert_eq!(names(&rest(&directory(&mount.path("many")), bytes)), expected());
        }
    }
}

#[test]
fn a_listing_goes_on_from_every_position() {
    // Out of the kernel's copy of the listing and out of ours.
    let uncached = Levers { no_opendir: false, cache_listings: false, ..Levers::default() };
    for levers in [Levers::default(), uncached] {
        let Some(mount) = Mount::new(levers) else { return };
        let handle = directory(&mount.path("many"));
        let all = rest(&handle, 4096);
        for index in [MANY / 2, 0, MANY, 1, 17, MANY + 1] {
            seek(&handle, SeekFrom::Start(all[index].1)).unwrap();
            assert_eq!(rest(&handle, 4096), all[index + 1..], "after entry {index}");
        }
        seek(&handle, SeekFrom::Start(0)).unwrap();
        assert_eq!(rest(&handle, 4096), all);
    }
}

#[test]
fn a_position_is_right_before_the_listing_was_read() {
    let Some(mount) = Mount::new(Levers::default()) else { return };
    let all = rest(&directory(&mount.path("many")), 4096);
    let Some(mount) = Mount::new(Levers::default()) else { return };
    let handle = directory(&mount.path("many"));
    seek(&handle, SeekFrom::Start(all[MANY / 3].1)).unwrap();
    assert_eq!(rest(&handle, 4096), all[MANY / 3 + 1..]);
    seek(&handle, SeekFrom::Start(0)).unwrap();
    assert_eq!(rest(&handle, 4096), all);
}

#[test]
fn readers_do_not_disturb_each_other() {
    let Some(mount) = Mount::new(Levers::default()) else { return };
    let path = mount.path("many");
    thread::scope(|scope| {
        for reader in 0..8 {
            let path = &path;
            scope.spawn(move || {
                for round in 0..5 {
                    let handle = directory(path);
                    let all = rest(&handle, 400 + reader * 1000);
                    assert_eq!(names(&all), expected());
                    let index = (reader * 331 + round * 97) % all.len();
                    seek(&handle, SeekFrom::Start(all[index].1)).unwrap();
                    assert_eq!(rest(&handle, 500), all[index + 1..]);
                }
            });
        }
    });
}

#[test]
fn a_listing_takes_as_few_messages_as_the_buffer_allows() {
    let Some(mount) = Mount::new(Levers::default()) else { return };
    let path = mount.path("many");
    // An entry with attributes takes 128 bytes for the entry, 24 and its name for the record, padded
    // to 8; the last message says that there is no more.
    let entry = (128 + 24 + "file-00000".len()).next_multiple_of(8);
    let messages = (entry * MANY).div_ceil(1 << 20) as u64 + 1;
    rest(&directory(&path), 1 << 20);
    assert_eq!(mount.count(Message::Readdirplus), messages);
    // Names, attributes and the listing itself are now the kernel's.
    let sent = mount.messages(|| {
        assert_eq!(names(&rest(&directory(&path), 4096)), expected());
        for n in 0..MANY {
            let file = File::open(path.join(format!("file-{n:05}"))).unwrap();
            assert_eq!(file.metadata().unwrap().len(), 12);
        }
    });
    assert_eq!(sent, [("open", 1), ("flush", 1), ("statx", 1)]);
}
