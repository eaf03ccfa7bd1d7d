//! Goal: with every lever on, what was done once costs no message again; with one off, it is seen
//! which message it saves. Counts are exact.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::fixture::{self, Mount};
use crate::cache::{LEVERS, Levers};
use crate::counters::Message;
use crate::mount::MountOptions;

/// All paths below `dir` by listing it.
fn paths(dir: &Path, out: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        out.push(entry.path());
        if entry.file_type().unwrap().is_dir() {
            paths(&entry.path(), out);
        }
    }
}

/// Lists everything, and reads what there is to read of each entry.
fn pass(root: &Path) {
    let mut all = Vec::new();
    paths(root, &mut all);
    assert_eq!(all.len(), fixture::MANY + 19);
    for path in all {
        let stat = fs::symlink_metadata(&path).unwrap();
        assert!(!stat.file_type().is_socket());
        if stat.is_symlink() {
            fs::read_link(&path).unwrap();
        } else if stat.is_file() && !path.to_string_lossy().contains("unstored") {
            let mut content = Vec::new();
            File::open(&path).unwrap().read_to_end(&mut content).unwrap();
            assert_eq!(content.len() as u64, stat.len());
        }
    }
}

fn mount_without(lever: &str) -> Option<Mount> {
    let mut levers = Levers::default();
    assert!(levers.switch(lever, false), "{lever}");
    Mount::new(levers)
}

#[test]
fn the_first_pass_sends_the_least_and_the_second_nothing() {
    let Some(mount) = Mount::new(Levers::default()) else { return };
    let mut first = mount.messages(|| pass(&mount.point.path));
    // Files with bytes in them: those of `many`, `.git`, .gitignore, a.txt, run.sh, two with strange
    // names, three below `sub`. big.bin is read in as many pieces as the read-ahead makes of it.
    let small = fixture::MANY as u64 + 9;
    let reads = first.iter_mut().find(|(name, _)| *name == "read").unwrap();
    assert!(reads.1 > small && reads.1 <= small + 32, "{} reads", reads.1);
    reads.1 = 0;
    // In the 32 KiB that libc asks for there is room for 195 entries of `many`, and every listing
    // takes one message more for its end.
    let listings = 4 * 2 + (fixture::MANY as u64 + 2).div_ceil(195) + 1;
    assert_eq!(
        first,
        [
            ("getattr", 1),
            ("readlink", 2),
            ("open", 1),
            ("read", 0),
            ("flush", 1),
            ("opendir", 1),
            ("readdirplus", listings),
            // Rust asks for the time of birth, once.
            ("statx", 1),
        ]
    );
    assert_eq!(mount.repeated(|| pass(&mount.point.path)), []);
}

#[test]
fn what_is_not_there_is_asked_for_once() {
    let look = |mount: &Mount| {
        for _ in 0..5 {
            assert!(!mount.path("sub/nothing").exists());
        }
    };
    let Some(on) = Mount::new(Levers::default()) else { return };
    look(&on);
    assert_eq!(on.count(Message::Lookup), 2);
    let Some(off) = mount_without("negative_entries") else { return };
    look(&off);
    assert_eq!(off.count(Message::Lookup), 1 + 5);
}

#[test]
fn entries_and_attributes_last_unless_told_otherwise() {
    let look = |mount: &Mount| {
        let stat = || fs::symlink_metadata(mount.path("sub/b.txt")).unwrap();
        stat();
        thread::sleep(Duration::from_millis(1300));
        mount.messages(|| assert_eq!(stat().len(), 2))
    };
    let Some(on) = Mount::new(Levers::default()) else { return };
    assert_eq!(look(&on), []);
    let Some(off) = mount_without("lasting_entries") else { return };
    let again = look(&off);
    assert!(again.contains(&("lookup", 2)), "{again:?}");
}

/// What a second pass over everything costs without one lever.
#[test]
fn each_lever_saves_its_messages() {
    let many = fixture::MANY as u64;
    // .git, .gitignore, a.txt, big.bin, empty, run.sh, two with strange names, three below `sub`.
    let files = many + 11;
    let directories = 5;
    let cases: [(&str, &[(&str, u64)]); 8] = [
        ("no_open", &[("open", files)]),
        ("no_opendir", &[("opendir", directories)]),
        ("no_flush", &[("flush", files)]),
        ("cache_symlinks", &[("readlink", 2)]),
        ("readdirplus", &[]),
        ("parallel_dirops", &[]),
        ("explicit_invalidation", &[]),
        ("killpriv", &[]),
    ];
    for (lever, expected) in cases {
        let Some(mount) = mount_without(lever) else { return };
        pass(&mount.point.path);
        let mut asked = mount.repeated(|| pass(&mount.point.path));
        // No lever here is about pages, which the kernel may give up whenever it likes.
        asked.retain(|(name, _)| *name != "read");
        assert_eq!(asked, expected, "without {lever}");
    }
}

#[test]
fn pages_and_listings_stay_over_opens_by_their_own_levers() {
    let both = |name: &str, keep: &str, keeps: bool| {
        let mut levers = Levers::default();
        assert!(levers.switch(name, false) && levers.switch(keep, keeps));
        let mount = Mount::new(levers)?;
        let work = || {
            assert_eq!(fs::read(mount.path("a.txt")).unwrap(), b"hello\n");
            assert_eq!(fs::read_dir(mount.path("sub")).unwrap().count(), 3);
        };
        work();
        Some(mount.messages(work).into_iter().map(|(name, _)| name).collect::<Vec<_>>())
    };
    let Some(kept) = both("no_open", "keep_cache", true) else { return };
    assert_eq!(kept, ["open"]);
    let Some(dropped) = both("no_open", "keep_cache", false) else { return };
    assert_eq!(dropped, ["open", "read"]);
    let Some(kept) = both("no_opendir", "cache_listings", true) else { return };
    assert_eq!(kept, ["opendir"]);
    let Some(dropped) = both("no_opendir", "cache_listings", false) else { return };
    assert_eq!(dropped, ["opendir", "readdirplus"]);
}

#[test]
fn without_readdirplus_every_entry_is_looked_up() {
    let Some(mount) = mount_without("readdirplus") else { return };
    let first = mount.messages(|| pass(&mount.point.path));
    assert!(first.contains(&("lookup", fixture::MANY as u64 + 19)), "{first:?}");
    assert!(!first.iter().any(|(name, _)| *name == "readdirplus"), "{first:?}");
}

#[test]
fn attributes_of_the_extended_kind_are_asked_for_once() {
    let ask = |mount: &Mount| {
        let file = File::open(mount.path("a.txt")).unwrap();
        for _ in 0..5 {
            assert!(rustix::fs::fgetxattr(&file, c"user.x", &mut [0; 8]).is_err());
        }
        mount.count(Message::Getxattr)
    };
    let Some(on) = Mount::new(Levers::default()) else { return };
    assert_eq!(ask(&on), 1);
    let Some(off) = mount_without("no_xattr") else { return };
    assert_eq!(ask(&off), 5);
}

#[test]
fn access_is_the_kernels_to_check() {
    use rustix::fs::{Access, access};
    let ask = |mount: &Mount| {
        for _ in 0..3 {
            access(mount.path("a.txt"), Access::READ_OK).unwrap();
        }
        mount.count(Message::Access)
    };
    let Some(on) = Mount::new(Levers::default()) else { return };
    assert_eq!(ask(&on), 0);
    // Refused once, it is not asked again either.
    let Some(off) = mount_without("default_permissions") else { return };
    assert_eq!(ask(&off), 1);
    let mut levers = Levers::default();
    assert!(levers.switch("default_permissions", false));
    let options = MountOptions { allow_other: true, levers, ..fixture::usual() };
    let Some(shared) = Mount::of(fixture::items(), &options) else { return };
    assert_eq!(ask(&shared), 0);
}

#[test]
fn read_ahead_is_set_where_it_is_a_lever() {
    let of = |mount: &Mount| {
        let dev = mount.mounted.dev();
        let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
        let file = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
        fs::read_to_string(file).unwrap().trim().to_owned()
    };
    let Some(on) = Mount::new(Levers::default()) else { return };
    assert_eq!(of(&on), "1024");
    let Some(off) = Mount::new(Levers { read_ahead_kib: 0, ..Levers::default() }) else { return };
    assert_eq!(of(&off), "128");
}

#[test]
fn a_mount_works_without_any_lever_and_without_any_one() {
    let mut settings = vec![Levers::none()];
    for lever in LEVERS {
        let mut levers = Levers::default();
        assert!(levers.switch(lever, false));
        settings.push(levers);
    }
    for levers in settings {
        let Some(mount) = Mount::new(levers) else { return };
        assert_eq!(fs::read(mount.path("sub/deep/up")).unwrap(), b"hello\n");
        assert_eq!(fs::read_dir(&mount.point.path).unwrap().count(), 14);
    }
}
