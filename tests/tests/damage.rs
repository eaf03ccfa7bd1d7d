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
    let mut refused = 0;
    for (path, entry) in tree::read(&native) {
        let tree::Entry::File(_, bytes) = entry else { continue };
        match fs::read(mounted.join(&path)) {
            Ok(read) => assert!(read == bytes, "{} is wrong", path.display()),
            // A directory object was hit: git can rebuild it, a read does not.
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(5), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused < 1000, "{refused} files cannot be read");
    assert!(store.log().contains("rebuilt"), "{}", store.log());
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
