//! Goal: where the disk below the store is full, whoever writes is told so, nothing that was acknowledged
//! is lost, and everything goes on when there is room again.

use std::fs;
use std::io;
use std::path::Path;

use agentfs_tests::{TestStore, fixture::Builder, fuse_available, mounts};

const FILE_BYTES: usize = 64 << 10;

/// Bytes that no compression makes shorter, others for each number.
fn noise(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..FILE_BYTES).map(|_| next()).collect()
}

/// Makes files until one cannot be made; how many were, and why no more.
fn fill(dir: &Path) -> (u64, io::Error) {
    let mut made = 0;
    loop {
        match fs::write(dir.join(format!("f{made}")), noise(made)) {
            Ok(()) => made += 1,
            Err(error) => return (made, error),
        }
    }
}

/// The files are as they were made, and of the one that failed there is no more than its beginning.
#[track_caller]
fn verify(dir: &Path, made: u64) {
    for number in 0..made {
        let found = fs::read(dir.join(format!("f{number}"))).expect("it was acknowledged");
        assert!(found == noise(number), "f{number}");
    }
    let failed = fs::read(dir.join(format!("f{made}"))).unwrap_or_default();
    assert!(failed.len() < FILE_BYTES && noise(made).starts_with(&failed));
}

#[test]
fn a_full_disk_is_told_to_whoever_writes_and_costs_nothing_that_was_acknowledged() {
    if !fuse_available() || !mounts::is_root() {
        return;
    }
    let mut store = TestStore::new();
    let source = Builder::new(&store.path("source"));
    source.file("file", "x").commit("one");
    store.set_medium("size=24m");
    let dir = store.clone(source.dir(), "worktree");
    let (made, why) = fill(&dir);
    assert_eq!(why.kind(), io::ErrorKind::StorageFull, "{why}");
    assert!(made > 100, "{made}");
    verify(&dir, made);
    // What needs no room, or little, may go on; what is refused is refused with the same error.
    if let Err(error) = fs::write(dir.join("small"), "y") {
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
    }
    assert_eq!(fs::read(dir.join("file")).expect("a file of the base"), b"x");
    store.wait_until("a drain has told that it finds no room", || {
        store.log().contains("No space left")
    });

    store.kill_daemon();
    store.ok(&["status"]);
    verify(&dir, made);

    store.set_medium("size=256m");
    for number in made..made + 20 {
        fs::write(dir.join(format!("f{number}")), noise(number)).expect("there is room again");
    }
    store.wait_until("all is drained", || {
        let changes = store.json(&["status"])["worktrees"][0]["changes"].clone();
        assert!(changes["failure"].is_null(), "{changes}");
        changes["outbox_bytes"].as_u64() < Some(FILE_BYTES as u64)
    });
    verify(&dir, made + 20);
    store.ok(&["fsck"]);
    store.ok(&["daemon", "stop"]);
    store.ok(&["status"]);
    verify(&dir, made + 20);
}
