//! What the tests of many branches begin with: a small repository in which something of every kind was
//! changed, and a fork of it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::campaign;
use crate::fixture::{Builder, git};
use crate::store::TestStore;

/// How long a test of many branches may take.
const LIMIT: Duration = Duration::from_secs(300);
/// And with each round that is asked for.
const ROUND_LIMIT: Duration = Duration::from_secs(3);

/// A store with a mounted worktree of a small repository with three files and an ignored directory.
///
/// # Panics
/// If it cannot be made.
pub fn mounted() -> (TestStore, PathBuf) {
    let store = TestStore::with_limit(LIMIT + ROUND_LIMIT * campaign::rounds(0) as u32);
    let source = Builder::new(&store.path("source"));
    source.file("dir/one", "1\n").file("dir/two", "2\n").file("three", "3\n");
    source.file(".gitignore", "build/\n").commit("first");
    let dir = store.path("main");
    let (from, to) = (source.dir().display().to_string(), dir.display().to_string());
    store.ok(&["clone", "--wait", &from, &to]);
    (store, dir)
}

/// Changes of every kind that git tells apart.
///
/// # Panics
/// If one cannot be made.
pub fn change(dir: &Path) {
    fs::write(dir.join("dir/one"), "staged\n").expect("it can be changed");
    git(dir, &["add", "dir/one"]);
    fs::write(dir.join("dir/one"), "staged, and changed again\n").expect("it can be changed");
    fs::write(dir.join("untracked"), "untracked\n").expect("it can be changed");
    fs::create_dir(dir.join("build")).expect("it can be changed");
    fs::write(dir.join("build/out"), vec![7; 300_000]).expect("it can be changed");
    fs::remove_file(dir.join("three")).expect("it can be changed");
}

/// What git says of a worktree, ignored files included.
///
/// # Panics
/// If git fails.
pub fn status(dir: &Path) -> String {
    git(dir, &["status", "--porcelain=v1", "--ignored"])
}

/// Begins branch `name` at `from`, mounted at the directory of that name.
///
/// # Panics
/// If that fails.
pub fn fork(store: &TestStore, name: &str, from: &str) -> PathBuf {
    let dir = store.path(name);
    store.ok(&["branch", "create", name, "--from", from, "--mount", &dir.display().to_string()]);
    dir
}

/// Asserts that `fsck` finds nothing.
///
/// # Panics
/// If it does.
pub fn assert_sound(store: &TestStore) {
    let checked = store.run(&["fsck"]);
    assert_eq!(checked.code, 0, "{}{}", checked.stdout, store.log());
}
