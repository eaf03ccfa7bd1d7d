//! Goal: a damaged store is noticed by the read that meets it and by fsck. What git still holds is
//! rebuilt; what it does not is an error. No wrong byte is ever returned.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use agentfs_tests::fixture::{self, Builder};
use agentfs_tests::{TestStore, fuse_available, tree};

fn segments(store: &TestStore) -> Vec<PathBuf> {
    let listed = fs::read_dir(store.home().join("segments")).expect("segments");
    listed.map(|entry| entry.expect("an entry").path()).collect()
}

/// A record of a segment, as docs/FORMAT.md has it.
struct Record {
    /// Where its payload begins, and how many bytes it has.
    payload: (usize, usize),
    is_tree: bool,
    id: String,
}

fn records(segment: &[u8]) -> Vec<Record> {
    let mut found = Vec::new();
    let mut at = 32;
    while at < segment.len() {
        assert_eq!(&segment[at..at + 4], b"rec1");
        let stored = segment[at + 12..at + 16].try_into().expect("four bytes");
        let stored = u32::from_le_bytes(stored) as usize;
        let id = segment[at + 16..at + 48].iter().map(|byte| format!("{byte:02x}")).collect();
        found.push(Record { payload: (at + 56, stored), is_tree: segment[at + 4] == 2, id });
        at += 56 + stored;
    }
    found
}

/// Flips a bit in every directory object of a segment, each in another place. Returns their ids.
fn flip_trees(path: &Path) -> Vec<String> {
    let mut bytes = fs::read(path).expect("a segment");
    let trees: Vec<_> = records(&bytes).into_iter().filter(|record| record.is_tree).collect();
    for (number, tree) in trees.iter().enumerate() {
        let (start, len) = tree.payload;
        // The first in the head of its record, the next in the first byte, the last, and between.
        let at = match number % 4 {
            0 => start - 56 + 16 + number % 32,
            1 => start,
            2 => start + len - 1,
            _ => start + number.wrapping_mul(7919) % len,
        };
        bytes[at] ^= 0x10;
    }
    fs::write(path, bytes).expect("a segment");
    trees.into_iter().map(|tree| tree.id).collect()
}

/// Flips one bit of the byte at `part` of the way through a file.
fn flip(path: &Path, part: f64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).expect("the file");
    let at = (file.metadata().expect("its length").len() as f64 * part) as u64;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("a byte");
    byte[0] ^= 0x10;
    file.write_all_at(&byte, at).expect("a byte");
}

#[test]
fn fsck_notices_a_flipped_byte_and_says_so_by_its_exit_code() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let source = fixture::codex().display().to_string();
    store.ok(&["clone", &source, &store.path_text("mounted"), "--wait"]);
    store.ok(&["fsck"]);
    store.ok(&["daemon", "stop"]);
    for segment in segments(&store) {
        flip(&segment, 0.5);
    }
    let found = store.run(&["fsck", "--json"]);
    assert_eq!(found.code, 5, "{}", found.stdout);
}

#[test]
fn a_read_that_meets_damage_is_healed_from_git() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let source = fixture::codex();
    let native = store.path("native");
    let (from, into) = (source.display().to_string(), native.display().to_string());
    agentfs_tests::git(&store.path(""), &["clone", "--quiet", &from, &into]);
    let mounted = store.path("mounted");
    store.ok(&["clone", &from, &mounted.display().to_string(), "--wait"]);
    store.ok(&["daemon", "stop"]);
    for segment in segments(&store) {
        for part in 1..40 {
            flip(&segment, f64::from(part) / 40.0);
        }
    }
    store.ok(&["daemon", "start"]);
    tree::assert_same(&native, &mounted);
    assert!(store.log().contains("rebuilt"), "{}", store.log());
}

#[test]
fn every_damaged_directory_is_named_by_fsck_and_healed_from_git_when_it_is_entered() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let (native, mounted) = (store.path("native"), store.path("mounted"));
    let from = fixture::codex().display().to_string();
    let into = native.display().to_string();
    agentfs_tests::git(&store.path(""), &["clone", "--quiet", &from, &into]);
    store.ok(&["clone", &from, &mounted.display().to_string(), "--wait"]);
    store.ok(&["daemon", "stop"]);
    let damaged: Vec<_> = segments(&store).iter().flat_map(|path| flip_trees(path)).collect();
    assert!(damaged.len() > 20, "{} directories", damaged.len());
    // Before the daemon has mounted anything, nothing is healed.
    let rest = store.path("not-mounted");
    fs::rename(&mounted, &rest).expect("the mount point");
    fs::write(&mounted, "in the way").expect("a file");
    let found = store.run(&["fsck", "--json"]);
    assert_eq!(found.code, 5, "{}", found.stdout);
    let last = found.events().pop().expect("a result");
    for id in &damaged {
        let named = last["findings"].as_array().expect("findings").iter().any(|finding| {
            finding.as_str().is_some_and(|finding| finding.starts_with(&format!("tree {id}")))
        });
        assert!(named, "tree {id} is not named: {last}");
    }
    store.ok(&["daemon", "stop"]);
    fs::remove_file(&mounted).expect("the file");
    store.ok(&["daemon", "start"]);
    tree::assert_same(&native, &mounted);
    assert_eq!(agentfs_tests::git(&mounted, &["status", "--porcelain"]), "");
    let healed = store.json(&["stats"])["counters"]["trees_healed"].as_u64();
    assert_eq!(healed, Some(damaged.len() as u64));
    assert!(store.log().contains("a damaged directory was rebuilt"), "{}", store.log());
    store.ok(&["fsck"]);
}

#[test]
fn a_damaged_directory_that_git_does_not_have_is_an_error() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let builder = Builder::new(&store.path("source"));
    for number in 0..20 {
        builder.file(format!("damaged/a-file-with-a-long-name-{number}"), "x");
    }
    builder.file("other/file", "intact").commit("one");
    let mounted = store.path("mounted");
    let source = builder.dir().display().to_string();
    store.ok(&["clone", &source, &mounted.display().to_string(), "--wait"]);
    store.ok(&["daemon", "stop"]);
    let damaged: Vec<_> = segments(&store).iter().flat_map(|path| flip_trees(path)).collect();
    assert_eq!(damaged.len(), 1, "the others are so small that the database holds them");
    let objects = store.home().join("repos/source/objects");
    fs::rename(&objects, store.path("away")).expect("the objects");
    fs::create_dir(&objects).expect("no objects");
    store.run(&["daemon", "start"]);
    let refused = |error: std::io::Error| assert_eq!(error.raw_os_error(), Some(5), "{error}");
    refused(
        fs::read_dir(mounted.join("damaged"))
            .and_then(|mut dir| {
                dir.next().expect("an error")?;
                Ok(())
            })
            .expect_err("damage"),
    );
    refused(fs::read(mounted.join("damaged/a-file-with-a-long-name-3")).expect_err("damage"));
    assert_eq!(fs::read(mounted.join("other/file")).expect("what is intact"), b"intact");
    let log = store.log();
    assert!(log.contains("a directory cannot be read nor rebuilt"), "{log}");
    assert!(log.contains("path=\"damaged\"") && log.contains(&damaged[0]), "{log}");
    // It is healed as soon as git has it again.
    fs::remove_dir(&objects).expect("no objects");
    fs::rename(store.path("away"), &objects).expect("the objects");
    store.ok(&["daemon", "stop"]);
    store.ok(&["daemon", "start"]);
    assert_eq!(fs::read_dir(mounted.join("damaged")).expect("a directory").count(), 20);
}

#[test]
fn what_nothing_can_rebuild_is_an_error_and_not_zeros() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let builder = Builder::new(&store.path("source"));
    let content = (0..200_000_u32).map(|i| format!("{}\n", i.wrapping_mul(2_654_435_761)));
    let content = content.collect::<String>();
    builder.file("file", &content).file("other", "intact").commit("one");
    let mounted = store.path("mounted");
    let source = builder.dir().display().to_string();
    store.ok(&["clone", &source, &mounted.display().to_string(), "--wait"]);
    store.ok(&["daemon", "stop"]);
    for segment in segments(&store) {
        flip(&segment, 0.5);
    }
    // Neither the clone nor what it was made from has the objects any more.
    let objects = store.home().join("repos/source/objects");
    fs::rename(&objects, store.path("away")).expect("the objects");
    fs::create_dir(&objects).expect("no objects");
    store.run(&["daemon", "start"]);
    let error = fs::read(mounted.join("file")).expect_err("damage");
    assert_eq!(error.raw_os_error(), Some(5), "{error}");
    assert_eq!(fs::read(mounted.join("other")).expect("what is intact"), b"intact");
    assert!(store.log().contains("file"), "{}", store.log());
}
