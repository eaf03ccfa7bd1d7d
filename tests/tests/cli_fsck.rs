//! Damage is found by `agentfs fsck` and by the read that meets it, and never served.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use agentfs_tests::{TestStore, fixture, fuse_available, git, mounts, tree};

/// The largest file of the store's segments.
fn segment(store: &TestStore) -> PathBuf {
    let segments = fs::read_dir(store.home().join("segments")).unwrap();
    let files = segments.map(|entry| entry.unwrap().path());
    files.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
}

fn flip(path: &Path, offset: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], offset).unwrap();
}

/// Flips bytes all over a segment. Most of them are in what it holds.
fn damage(segment: &Path) {
    let len = fs::metadata(segment).unwrap().len();
    (1..20).for_each(|part| flip(segment, len * part / 20));
}

/// A store with the shared repository, all of it ingested, and its daemon stopped.
fn stored() -> (TestStore, PathBuf) {
    let store = TestStore::new();
    let dir = store.path("worktree");
    let source = fixture::codex().display().to_string();
    store.ok(&["clone", "--wait", &source, &dir.display().to_string()]);
    store.ok(&["daemon", "stop"]);
    (store, dir)
}

#[test]
fn a_flipped_byte_is_found_and_healed_by_the_read_that_meets_it() {
    if !fuse_available() {
        return;
    }
    let (store, dir) = stored();
    damage(&segment(&store));
    let found = store.run(&["fsck", "--json"]);
    assert_eq!(found.code, 5, "{}{}", found.stdout, store.log());
    let report = found.events().pop().unwrap();
    assert!(report["damaged"].as_u64().unwrap() > 0, "{report}");
    assert!(store.run(&["fsck"]).stdout.contains("damaged:"));
    let native = store.path("native");
    let source = fixture::codex().display().to_string();
    git(&store.path(""), &["clone", "--quiet", &source, &native.display().to_string()]);
    tree::assert_same(&native, &dir);
    assert!(store.json(&["stats"])["counters"]["chunks_healed"].as_u64().unwrap() > 0);
    // A read does not look at what only serves to find it, which some of the bytes may be in.
    let after = store.run(&["fsck"]);
    let mut damage = after.stdout.lines().filter(|line| line.starts_with("damaged:"));
    assert!(damage.all(|line| line.ends_with("what it holds is whole")), "{}", after.stdout);
    let repaired = store.run(&["fsck", "--repair"]);
    assert_eq!(repaired.code, if after.code == 0 { 0 } else { 9 }, "{}", repaired.stdout);
}

#[test]
fn repair_rebuilds_from_git_and_tells_clean_repaired_and_damaged_apart() {
    if !fuse_available() {
        return;
    }
    let (store, dir) = stored();
    let path = segment(&store);
    damage(&path);
    // In the checksum of the first record, which is not what it holds.
    flip(&path, 80);
    assert_eq!(store.run(&["fsck"]).code, 5);
    let repaired = store.run(&["fsck", "--repair"]);
    assert_eq!(repaired.code, 9, "{}{}", repaired.stdout, store.log());
    let lines = |word: &str| repaired.stdout.lines().filter(|line| line.starts_with(word)).count();
    assert!(lines("planned: rebuild ") > 0, "{}", repaired.stdout);
    assert_eq!(lines("planned: "), lines("done: "), "{}", repaired.stdout);
    assert!(repaired.stdout.ends_with("no damage\n"), "{}", repaired.stdout);
    let clean = store.run(&["fsck", "--repair"]);
    assert_eq!(clean.code, 0, "{}", clean.stdout);

    // What only the worktree had cannot be rebuilt, and is not made up.
    let noise: Vec<u8> =
        (0..30_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(dir.join("only here"), &noise).unwrap();
    store.ok(&["daemon", "stop"]);
    flip(&path, fs::metadata(&path).unwrap().len() - 50);
    let damaged = store.run(&["fsck", "--repair", "--json"]);
    assert_eq!(damaged.code, 5, "{}", damaged.stdout);
    let report = damaged.events().pop().unwrap();
    assert_eq!(report["not_repaired"].as_array().unwrap().len(), 1, "{report}");
    assert_eq!(report["damaged"], 1, "{report}");
    assert!(fs::read(dir.join("only here")).is_err(), "never zeros, never empty");
}

/// A store with a mounted worktree of a small repository, in which something was written.
fn written() -> (TestStore, PathBuf) {
    let store = TestStore::new();
    let source = fixture::Builder::new(&store.path("source"));
    source.file("dir/one", "1").file("dir/two", "2").file("three", "3").commit("first");
    let dir = store.path("worktree");
    let (from, to) = (source.dir().display().to_string(), dir.display().to_string());
    store.ok(&["clone", "--wait", &from, &to]);
    fs::write(dir.join("new"), "new").unwrap();
    fs::write(dir.join("dir/two"), "changed").unwrap();
    (store, dir)
}

/// The one finding of a check that ends with 5.
fn finding(store: &TestStore) -> String {
    let found = store.run(&["fsck", "--json"]);
    assert_eq!(found.code, 5, "{}{}", found.stdout, store.log());
    let report = found.events().pop().unwrap();
    assert_eq!(report["damaged"], 1, "{report}");
    report["findings"][0].as_str().unwrap().to_owned()
}

#[test]
fn what_worktrees_need_is_verified_one_thing_at_a_time() {
    if !fuse_available() {
        return;
    }
    let (store, dir) = written();
    let report = store.json(&["fsck"]);
    // Two of the three files were not changed; the `.git` file was not either.
    for (what, count) in [("damaged", 0), ("worktrees", 1), ("branches", 1), ("index_entries", 3)] {
        assert_eq!(report[what], count, "{what}: {report}");
    }
    let text = store.ok(&["fsck"]);
    assert!(text.contains("1 worktree, 1 overlay, "), "{text}");
    assert!(text.contains("3 indexed files verified: no damage"), "{text}");

    let git_file = fs::read_to_string(dir.join(".git")).unwrap();
    let git_dir = PathBuf::from(git_file.trim_end().strip_prefix("gitdir: ").unwrap());
    let index = git_dir.join("index");
    flip(&index, 40);
    assert_eq!(finding(&store), format!("{}: its checksum is wrong", index.display()));
    flip(&index, 40);
    let head = git_dir.join("HEAD");
    let good = fs::read(&head).unwrap();
    fs::write(&head, "nonsense\n").unwrap();
    assert!(finding(&store).starts_with(&head.display().to_string()));
    fs::write(&head, good).unwrap();
    // What git does itself is no damage.
    git(&dir, &["add", "-A"]);
    git(&dir, &["commit", "-q", "-m", "second"]);
    git(&dir, &["checkout", "-q", "HEAD~1"]);
    assert_eq!(store.json(&["fsck"])["damaged"], 0);
    mounts::detach_all(&dir);
    let gone = finding(&store);
    assert!(gone.starts_with(&format!("{} is not mounted", dir.display())), "{gone}");
}

#[test]
fn a_damaged_outbox_is_reported_and_its_branch_is_not_mounted() {
    if !fuse_available() {
        return;
    }
    let (store, dir) = written();
    let outbox = fs::read_dir(store.home().join("outbox")).unwrap().next().unwrap().unwrap().path();
    let newest = loop {
        // A later record says that the first one was durable: a damaged end would be taken for torn.
        fs::write(dir.join("new"), "new").unwrap();
        fs::File::open(dir.join("new")).unwrap().sync_all().unwrap();
        fs::write(dir.join("newer"), "newer").unwrap();
        store.kill_daemon();
        let segments = fs::read_dir(&outbox).unwrap().map(|entry| entry.unwrap().path());
        let newest = segments.max().unwrap();
        if fs::metadata(&newest).unwrap().len() > 600 {
            break newest;
        }
        // A drain came in between.
        store.ok(&["ps"]);
    };
    flip(&newest, 64 + 50);
    let whole = fs::read(&newest).unwrap();
    let found = store.run(&["fsck", "--json"]);
    assert_eq!(found.code, 5, "{}", found.stdout);
    let report = found.events().pop().unwrap();
    let findings = report["findings"].as_array().unwrap();
    let text: Vec<_> = findings.iter().map(|finding| finding.as_str().unwrap()).collect();
    assert_eq!(text.len(), 2, "{text:?}");
    let name = newest.file_name().unwrap().to_str().unwrap();
    assert!(text[0].starts_with("branch source:main: record"), "{text:?}");
    assert!(text[0].contains(name) && text[0].contains("at byte 64"), "{text:?}");
    assert!(text[1].starts_with(&format!("{} is not mounted", dir.display())), "{text:?}");
    assert!(fs::read(&newest).unwrap() == whole, "the check changes nothing");

    // What is whole takes its place; what is not is told, and kept for whoever wants to look at it.
    let repaired = store.run(&["fsck", "--repair"]);
    assert_eq!(repaired.code, 5, "{}{}", repaired.stdout, store.log());
    let mut told = repaired.stdout.lines().filter(|line| line.starts_with("lost: "));
    let lost = told.next().expect("what is lost");
    assert!(lost.contains("branch source:main") && lost.contains("lost record"), "{lost}");
    assert!(fs::read(newest.with_extension("obx.damaged")).unwrap() == whole);
    assert_eq!(fs::read_to_string(dir.join("newer")).unwrap(), "newer");
    assert_eq!(fs::read_to_string(dir.join("dir/two")).unwrap(), "changed");
    let clean = store.run(&["fsck", "--repair"]);
    assert_eq!(clean.code, 0, "{}", clean.stdout);
}

#[test]
fn a_truncated_database_is_told() {
    let store = TestStore::new();
    store.ok(&["daemon", "start"]);
    store.ok(&["daemon", "stop"]);
    let database = store.home().join("store.redb");
    let len = fs::metadata(&database).unwrap().len();
    for part in [0, 100, len / 2] {
        let whole = fs::read(&database).unwrap();
        fs::write(&database, &whole[..part as usize]).unwrap();
        let said = store.fails(5, &["ps"]);
        assert!(said.contains("store.redb"), "{part}: {said}");
        fs::write(&database, whole).unwrap();
    }
    store.ok(&["ps"]);
}

#[test]
fn a_store_of_another_version_is_refused_by_name() {
    let store = TestStore::new();
    store.ok(&["daemon", "start"]);
    store.ok(&["daemon", "stop"]);
    let format = store.home().join("format");
    let written = fs::read_to_string(&format).unwrap();
    let before = tree::read(store.home());
    let source = fixture::codex().display().to_string();
    let clone = ["clone", "--no-mount", &source];
    let commands: [&[&str]; 3] = [&["ps"], &["daemon", "start"], &clone];
    // Each bit of it, and the version after ours.
    let mut wrong = vec![(6, b"agentfs store 999\n".to_vec())];
    for at in 0..written.len() {
        let mut bytes = written.clone().into_bytes();
        bytes[at] ^= 0x40;
        wrong.push((5, bytes));
    }
    for (code, text) in wrong {
        fs::write(&format, &text).unwrap();
        for args in if code == 6 { &commands[..] } else { &commands[..1] } {
            let said = store.fails(code, args);
            assert!(said.contains("hint:"), "{args:?}: {said}");
            let names = if code == 6 { "999" } else { "format" };
            assert!(said.contains(names), "{args:?}: {said}");
        }
        assert_eq!(fs::read(&format).unwrap(), text, "it is left as it is");
    }
    fs::write(&format, written).unwrap();
    let mut after = tree::read(store.home());
    after.retain(|path, _| before.contains_key(path));
    let own = |path: &Path| path.to_string_lossy().starts_with("daemon.");
    for (path, entry) in before.iter().filter(|(path, _)| !own(path)) {
        assert_eq!(after.get(path), Some(entry), "{}", path.display());
    }
    store.ok(&["ps"]);
}
