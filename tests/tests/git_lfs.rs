//! Goal: files of git-lfs are what a checkout makes of them: their content where the filter is
//! configured, with its size, and else the pointer.

use std::fs;
use std::path::{Path, PathBuf};

use agentfs_tests::fixture::Builder;
use agentfs_tests::mounts::tool_available;
use agentfs_tests::{TestStore, fuse_available, git, tree};

/// What `git lfs install` configures.
const FILTER: &str = "[filter \"lfs\"]\n\tclean = git-lfs clean -- %f\n\
    \tsmudge = git-lfs smudge -- %f\n\tprocess = git-lfs filter-process\n\trequired = true\n";

fn content() -> Vec<u8> {
    (0..100_000_u32).flat_map(|number| number.wrapping_mul(number).to_le_bytes()).collect()
}

/// A repository whose `.git/lfs` has the content of two of its files.
fn source(store: &TestStore) -> Builder {
    let builder = Builder::new(&store.path("source"));
    let config = builder.dir().join(".git/config");
    let plain = fs::read_to_string(&config).expect("the configuration");
    fs::write(&config, plain + FILTER).expect("the configuration");
    builder
        .file(".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n")
        .file("large.bin", content())
        .file("dir/small.bin", "not large at all")
        .file("dir/text", "text\n")
        .commit("one");
    assert!(git(builder.dir(), &["cat-file", "-p", "HEAD:large.bin"]).starts_with("version "));
    builder
}

/// The user's configuration, with the filter.
fn configured(store: &TestStore) -> PathBuf {
    let config = store.path("gitconfig");
    fs::write(&config, FILTER).expect("a file");
    config
}

fn assert_clean(store: &TestStore, dir: &Path) {
    let mut status = store.program("git");
    status.arg("-C").arg(dir).args(["status", "--porcelain"]);
    let finished = store.finish(status);
    assert_eq!((finished.code, finished.stdout.as_str()), (0, ""), "{}", finished.stderr);
}

#[test]
fn where_the_filter_is_configured_a_file_is_its_content() {
    if !fuse_available() || !tool_available("git-lfs") {
        return;
    }
    let mut store = TestStore::new();
    let source = source(&store);
    store.set_git_config(configured(&store));
    let cloned = store.clone(source.dir(), "cloned");
    // In place, the configuration of the repository itself counts too.
    let other = TestStore::new();
    other.ok(&["attach", &source.dir().display().to_string()]);
    let attached = other.path("attached");
    other.ok(&["mount", "source@main", &attached.display().to_string()]);
    for (store, dir) in [(&store, &cloned), (&other, &attached)] {
        tree::assert_same(source.dir(), dir);
        let size = fs::metadata(dir.join("large.bin")).expect("the file").len();
        assert_eq!(size, content().len() as u64);
        assert_clean(store, dir);
        let indexed = git(dir, &["ls-files", "--stage", "large.bin"]);
        let pointer = git(source.dir(), &["rev-parse", "HEAD:large.bin"]);
        assert!(indexed.contains(&pointer), "git knows the pointer: {indexed}");
    }
    // A damaged store has it made again.
    store.ok(&["daemon", "stop"]);
    let segments = fs::read_dir(store.home().join("segments")).expect("segments");
    for segment in segments {
        let path = segment.expect("an entry").path();
        let mut bytes = fs::read(&path).expect("a segment");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).expect("a segment");
    }
    store.ok(&["daemon", "start"]);
    assert!(fs::read(cloned.join("large.bin")).expect("the file") == content());
    assert!(store.log().contains("rebuilt"), "{}", store.log());
}

#[test]
fn where_the_filter_is_not_configured_a_file_is_its_pointer() {
    if !fuse_available() || !tool_available("git-lfs") {
        return;
    }
    let store = TestStore::new();
    let source = source(&store);
    let dir = store.clone(source.dir(), "cloned");
    let pointer = git(source.dir(), &["cat-file", "-p", "HEAD:large.bin"]) + "\n";
    assert_eq!(fs::read_to_string(dir.join("large.bin")).expect("the pointer"), pointer);
    let size = fs::metadata(dir.join("large.bin")).expect("the pointer").len();
    assert_eq!(size, pointer.len() as u64);
    assert_eq!(fs::read_to_string(dir.join("dir/text")).expect("a file"), "text\n");
    assert_clean(&store, &dir);
}
