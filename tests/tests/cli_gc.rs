//! `agentfs gc` frees what `agentfs du` has promised, the files of the store shrink, and whatever a branch or
//! snapshot has stays, while worktrees are used.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use agentfs_tests::{TestStore, fixture, fuse_available, git, tree};
use serde_json::Value;

/// Bytes that neither compress nor occur twice.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len.div_ceil(8)).flat_map(|_| next()).take(len).collect()
}

fn segment_bytes(store: &TestStore) -> u64 {
    let segments = fs::read_dir(store.home().join("segments")).unwrap();
    segments.map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

fn usage(store: &TestStore, branch: &str) -> Value {
    let entries = store.json(&["du"])["entries"].as_array().unwrap().clone();
    let found = entries.iter().find(|one| one["branch"] == branch && one["snapshot"].is_null());
    found.unwrap_or_else(|| panic!("{branch} is not in {entries:?}")).clone()
}

fn bytes(value: &Value) -> u64 {
    value["bytes"].as_u64().unwrap_or_else(|| panic!("no amount: {value}"))
}

/// Removes a branch, and what is kept of it.
fn remove_for_good(store: &TestStore, branch: &str) {
    let removed = store.json(&["branch", "delete", branch]);
    store.ok(&["snapshot", "delete", removed["snapshot"].as_str().unwrap()]);
}

/// Removes the snapshots that were made unasked meanwhile.
fn forget_snapshots(store: &TestStore) {
    for one in store.json(&["snapshot", "list"])["snapshots"].as_array().unwrap() {
        store.ok(&["snapshot", "delete", one["id"].as_str().unwrap()]);
    }
}

fn cloned() -> (TestStore, std::path::PathBuf) {
    let store = TestStore::new();
    let dir = store.path("worktree");
    let source = fixture::codex().display().to_string();
    store.ok(&["clone", "--wait", &source, &dir.display().to_string()]);
    (store, dir)
}

fn branch_with(store: &TestStore, from: &str, name: &str, files: &[(&str, Vec<u8>)]) {
    let dir = store.path(name);
    let shown = dir.display().to_string();
    store.ok(&["branch", "create", name, "--from", from, "--mount", &shown]);
    for (file, data) in files {
        fs::write(dir.join(file), data).unwrap();
    }
    store.ok(&["umount", &shown]);
    // It goes with the mount if that has made it.
    fs::remove_dir(&dir).ok();
}

fn assert_clean(store: &TestStore) {
    let checked = store.run(&["fsck"]);
    assert_eq!(checked.code, 0, "{}{}", checked.stdout, store.log());
}

#[test]
fn gc_frees_what_du_promises_and_the_files_shrink() {
    if !fuse_available() {
        return;
    }
    let (store, dir) = cloned();
    let trunk = git(&dir, &["symbolic-ref", "--short", "HEAD"]).trim().to_owned();
    let common = noise(1, 3 << 20);
    let (only, other) = (noise(2, 6 << 20), noise(3, 2 << 20));
    branch_with(&store, &trunk, "big", &[("common", common.clone()), ("only", only)]);
    branch_with(&store, &trunk, "small", &[("common", common.clone()), ("other", other.clone())]);
    forget_snapshots(&store);
    store.ok(&["gc"]);
    let (big, small) = (usage(&store, "big"), usage(&store, "small"));
    assert!((6 << 20..7 << 20).contains(&bytes(&big["own"])), "{big}");
    assert!((2 << 20..3 << 20).contains(&bytes(&small["own"])), "{small}");
    assert!(bytes(&small["shared"]) > 3 << 20, "{small}");
    let before = segment_bytes(&store);
    store.ok(&["branch", "delete", "big"]);
    assert_eq!(store.json(&["gc"])["freed"]["total"]["count"], 0, "it can be brought back");
    store.ok(&["branch", "undelete", "big"]);
    remove_for_good(&store, "big");
    let foreseen = store.json(&["gc", "--dry-run"]);
    assert_eq!(segment_bytes(&store), before);
    let done = store.json(&["gc"]);
    assert_eq!(foreseen["freed"], done["freed"]);
    assert_eq!(bytes(&done["freed"]["total"]), bytes(&big["own"]));
    assert!(before - segment_bytes(&store) > 6 << 20, "{done}");
    assert_clean(&store);

    let small_dir = store.path("small");
    store.ok(&["mount", "small", &small_dir.display().to_string()]);
    assert!(fs::read(small_dir.join("common")).unwrap() == common);
    assert!(fs::read(small_dir.join("other")).unwrap() == other);
    let native = store.path("native");
    let source = fixture::codex().display().to_string();
    git(&store.path(""), &["clone", "--quiet", &source, &native.display().to_string()]);
    tree::assert_same(&native, &dir);
}

/// The day so many days from now, as date(1) has it.
fn in_days(days: u32) -> String {
    let mut date = std::process::Command::new("date");
    let said = date.args(["-u", "-d", &format!("+{days} days"), "+%F"]).output().unwrap();
    String::from_utf8(said.stdout).unwrap().trim().to_owned()
}

#[test]
fn what_is_removed_says_until_when_it_is_kept_and_how_it_comes_back() {
    if !fuse_available() {
        return;
    }
    let (store, dir) = cloned();
    let trunk = git(&dir, &["symbolic-ref", "--short", "HEAD"]).trim().to_owned();
    branch_with(&store, &trunk, "gone", &[("file", b"x".to_vec())]);
    let first = in_days(30);
    let said = store.ok(&["branch", "delete", "gone"]);
    fs::write(dir.join("mine"), "x").unwrap();
    let removed = store.ok(&["worktree", "remove", "--force", &dir.display().to_string()]);
    // Midnight may have passed.
    for (said, how) in
        [(&said, "agentfs branch undelete"), (&removed, "agentfs branch create NAME --from")]
    {
        let until = |day: &str| said.contains(&format!("until {day}: `{how} "));
        assert!(until(&first) || until(&in_days(30)), "{said}");
    }
    let snapshots = store.json(&["snapshot", "list"])["snapshots"].as_array().unwrap().clone();
    branch_with(&store, &trunk, "again", &[]);
    let deleted = store.json(&["branch", "delete", "again"]);
    let made =
        store.json(&["snapshot", "show", deleted["snapshot"].as_str().unwrap()])["made"].as_i64();
    assert_eq!(deleted["kept_until"].as_i64(), made.map(|made| made + 30 * 24 * 3600));
    let of_worktree =
        snapshots.iter().find(|one| one["message"] == "before worktree remove").unwrap();
    store.ok(&["branch", "create", "back", "--from", of_worktree["id"].as_str().unwrap()]);
}

#[test]
fn what_is_removed_is_kept_for_as_long_as_one_wants() {
    if !fuse_available() {
        return;
    }
    let (store, dir) = cloned();
    let trunk = git(&dir, &["symbolic-ref", "--short", "HEAD"]).trim().to_owned();
    branch_with(&store, &trunk, "gone", &[("file", noise(1, 1 << 20))]);
    let kept = store.json(&["branch", "delete", "gone"])["snapshot"].as_str().unwrap().to_owned();
    assert_eq!(store.json(&["gc", "--keep-removed", "1"])["expired"], 0);
    assert_eq!(store.json(&["gc", "--dry-run"])["expired"], 0);
    let foreseen = store.json(&["gc", "--dry-run", "--keep-removed", "0"]);
    assert_eq!(foreseen["expired"], 1);
    let named = foreseen["expired_snapshots"].as_array().unwrap();
    let [one] = named.as_slice() else { panic!("{foreseen}") };
    assert_eq!([&one["id"], &one["branch"], &one["reason"]], [&*kept, "gone", "removed"]);
    let said = store.ok(&["gc", "--dry-run", "--keep-removed", "0"]);
    assert!(said.contains("1 snapshot would be removed"), "{said}");
    assert!(said.contains(&kept) && said.contains("@gone, a removed branch"), "{said}");
    // It has only been told.
    store.ok(&["branch", "undelete", "gone"]);
    store.ok(&["branch", "delete", "gone"]);
    let done = store.json(&["gc", "--keep-removed", "0"]);
    assert_eq!(done["expired"], 1);
    assert!(bytes(&done["freed"]["total"]) > 1 << 20, "{done}");
    store.fails(3, &["branch", "undelete", "gone"]);
    assert_clean(&store);
}

/// Writers, readers, forks and imports go on beside one collection after another; an open file without a name
/// is read to the end.
#[test]
fn worktrees_are_used_while_garbage_is_collected() {
    if !fuse_available() {
        return;
    }
    let (store, dir) = cloned();
    let trunk = git(&dir, &["symbolic-ref", "--short", "HEAD"]).trim().to_owned();
    let work = store.path("work");
    store.ok(&[
        "branch",
        "create",
        "work",
        "--from",
        &trunk,
        "--mount",
        &work.display().to_string(),
    ]);
    let unnamed_data = noise(99, 1 << 20);
    fs::write(work.join("unnamed"), &unnamed_data).unwrap();
    let mut unnamed = fs::File::open(work.join("unnamed")).unwrap();
    fs::remove_file(work.join("unnamed")).unwrap();
    let write = |at: &Path, round: u64| {
        for file in 0..20 {
            fs::write(at.join(format!("f{file}")), noise(round * 100 + file, 50_000)).unwrap();
        }
    };
    std::thread::scope(|scope| {
        let collected = scope.spawn(|| {
            let mut freed = 0;
            // Six, and until there has been something to collect.
            for collections in 0..600 {
                if collections >= 6 && freed > 0 {
                    break;
                }
                freed += bytes(&store.json(&["gc"])["freed"]["total"]);
                // A removal has to come between two of them.
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            freed
        });
        let mut round = 0;
        while !collected.is_finished() {
            round += 1;
            write(&work, round);
            let name = format!("fork{round}");
            branch_with(&store, "work", &name, &[("mine", noise(round, 100_000))]);
            remove_for_good(&store, &name);
            for file in 0..20 {
                let read = fs::read(work.join(format!("f{file}"))).unwrap();
                assert!(read == noise(round * 100 + file, 50_000), "round {round}, file {file}");
            }
        }
        assert!(collected.join().unwrap() > 0, "nothing was collected in {round} rounds");
    });
    let mut read = Vec::new();
    std::io::Read::read_to_end(&mut unnamed, &mut read).unwrap();
    assert!(read == unnamed_data);
    assert_eq!(unnamed.metadata().unwrap().nlink(), 0);
    drop(unnamed);
    store.json(&["gc"]);
    assert_clean(&store);
    store.ok(&["daemon", "stop"]);
    assert_clean(&store);
}
