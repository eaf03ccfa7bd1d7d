//! Goal: what a clone takes of memory does not depend on what is in the repository: not on large files,
//! on how far they can be inflated, or on deltas between them.

use std::fs;
use std::path::Path;

use agentfs_tests::fixture::Builder;
use agentfs_tests::{TestStore, fuse_available, git};

/// Far less than any of the files below takes, and what the documentation promises.
const PEAK_MAX_MIB: u64 = 200;

/// The most memory that the daemon has had, in MiB.
fn peak_mib(store: &TestStore) -> u64 {
    let daemon = store.daemon().expect("a daemon").as_raw_nonzero();
    let status = fs::read_to_string(format!("/proc/{daemon}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    let kib = line.trim().strip_suffix(" kB").expect("in KiB");
    kib.parse::<u64>().expect("a number") / 1024
}

fn noise(bytes: usize, mut seed: u64) -> Vec<u8> {
    let mut noise = Vec::with_capacity(bytes + 8);
    while noise.len() < bytes {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        noise.extend_from_slice(&seed.to_le_bytes());
    }
    noise
}

fn clone_and_read(store: &TestStore, source: &Path) -> u64 {
    let dir = store.path("worktree");
    store.ok(&["clone", &source.display().to_string(), &dir.display().to_string()]);
    // While it is being taken in, all of it is read too.
    for entry in fs::read_dir(source).expect("the source").flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            let compared = std::process::Command::new("cmp")
                .arg(entry.path())
                .arg(dir.join(entry.file_name()))
                .status()
                .expect("cmp runs");
            assert!(compared.success(), "{:?} differs", entry.file_name());
        }
    }
    store.wait_until("all is taken in", || {
        store.json(&["ps"])["repositories"][0]["branches"][0]["ingested"] == true
    });
    peak_mib(store)
}

#[test]
fn a_small_object_that_inflates_to_a_large_file_is_never_held() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let source = Builder::new(&store.path("source"));
    let file = fs::File::create(source.dir().join("bomb")).expect("a file");
    file.set_len((2 * PEAK_MAX_MIB) << 20).expect("a hole");
    source.commit("bomb");
    let objects = source.dir().join(".git/objects");
    let size = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
    let id = git(source.dir(), &["rev-parse", "HEAD:bomb"]);
    git(source.dir(), &["cat-file", "-e", &id]);
    assert!(size(&objects.join(&id[..2]).join(&id[2..])) < 4 << 20, "it is small");
    let peak = clone_and_read(&store, source.dir());
    assert!(peak < PEAK_MAX_MIB, "{peak} MiB");
}

#[test]
fn many_large_files_and_deltas_between_them_are_streamed() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let source = Builder::new(&store.path("source"));
    git(source.dir(), &["config", "core.bigFileThreshold", "1g"]);
    git(source.dir(), &["config", "core.compression", "0"]);
    let mut large = noise(60 << 20, 7);
    source.file("one", &large);
    for at in (0..large.len()).step_by(1 << 20) {
        large[at] ^= 1;
    }
    source.file("two", &large);
    for number in 0..3 {
        source.file(format!("noise-{number}"), noise(50 << 20, 11 + number));
    }
    source.commit("large");
    git(source.dir(), &["repack", "-adq", "--window=2"]);
    let index = fs::read_dir(source.dir().join(".git/objects/pack")).expect("packs");
    let index = index.flatten().map(|entry| entry.path());
    let index = index.into_iter().find(|path| path.extension().is_some_and(|end| end == "idx"));
    let listed =
        git(source.dir(), &["verify-pack", "-v", &index.expect("a pack").display().to_string()]);
    let id = |name: &str| git(source.dir(), &["rev-parse", &format!("HEAD:{name}")]);
    let is_delta = |id: &str| {
        listed.lines().any(|line| line.starts_with(id) && line.split_whitespace().count() == 7)
    };
    assert!(is_delta(&id("one")) || is_delta(&id("two")), "{listed}");
    let peak = clone_and_read(&store, source.dir());
    assert!(peak < PEAK_MAX_MIB, "{peak} MiB");
}
