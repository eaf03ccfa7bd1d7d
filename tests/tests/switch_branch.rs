//! Goal: `agentfs switch` has a directory show another branch with files of its own, as that was left, and the one that
//! was there keeps what it has. Nobody who is in it is put out, and a killed daemon leaves the one there or the other.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use agentfs_tests::fleet::{assert_sound, change, fork, mounted, status};
use agentfs_tests::{TestStore, campaign, fuse_available, git, tree};

/// In so many steps the moment of a kill goes through the time that a switch takes.
const PARTS: u32 = 20;

type Seen = (String, String, String, std::collections::BTreeMap<std::path::PathBuf, tree::Entry>);

/// All that a branch is: its HEAD, what is staged, what git says, and its files.
fn seen(dir: &Path) -> Seen {
    let head = git(dir, &["symbolic-ref", "HEAD"]);
    (head, git(dir, &["diff", "--cached"]), status(dir), tree::read(dir))
}

/// Branches `main` and `side`, both changed, `main` at the directory returned and `side` nowhere, and what they are.
fn two() -> (TestStore, std::path::PathBuf, Seen, Seen) {
    let (store, main) = mounted();
    change(&main);
    let side = fork(&store, "side", "main");
    fs::write(side.join("of side"), "s\n").unwrap();
    git(&side, &["add", "of side"]);
    fs::remove_dir_all(side.join("build")).unwrap();
    let (of_main, of_side) = (seen(&main), seen(&side));
    store.ok(&["umount", &side.display().to_string()]);
    (store, main, of_main, of_side)
}

/// A process that is in a directory.
struct Inside(Child);

impl Inside {
    fn new(dir: &Path) -> Self {
        let mut sleep = Command::new("sleep");
        Self(sleep.arg("600").current_dir(dir).stdin(Stdio::null()).spawn().unwrap())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[test]
fn a_directory_comes_to_show_another_branch_and_the_first_again() {
    if !fuse_available() {
        return;
    }
    let (store, dir, of_main, of_side) = two();
    let place = dir.display().to_string();
    let inside = Inside::new(&dir);
    let said = store.fails(1, &["switch", &place, "side"]);
    assert!(said.contains("is busy") && !said.contains("lazy"), "{said}");
    assert_eq!(seen(&dir), of_main);
    drop(inside);
    let inode = fs::metadata(dir.join("dir/two")).unwrap().ino();

    let switched = store.json(&["switch", &place, "side"]);
    assert_eq!(switched["branch"], "side", "{switched}");
    assert_eq!(switched["left"], "main", "{switched}");
    assert_eq!(switched["head"], "side", "{switched}");
    assert_eq!(seen(&dir), of_side);
    assert_eq!(fs::metadata(dir.join("dir/two")).unwrap().ino(), inode);
    fs::write(dir.join("later"), "l\n").unwrap();
    git(&dir, &["commit", "-qm", "of side"]);
    store.kill_daemon();
    store.ok(&["status"]);
    let later = seen(&dir);
    assert_eq!(fs::read_to_string(dir.join("later")).unwrap(), "l\n");

    store.ok(&["switch", &place, "main"]);
    assert_eq!(seen(&dir), of_main);
    store.ok(&["switch", &place, "side"]);
    assert_eq!(seen(&dir), later);

    // One that was never mounted, and one that is mounted elsewhere.
    store.ok(&["branch", "create", "never", "--from", "side"]);
    store.ok(&["switch", &place, "never"]);
    let never = seen(&dir);
    assert_eq!((never.0.as_str(), never.1, never.3), ("refs/heads/never", later.1, later.3));
    let elsewhere = store.path("elsewhere");
    store.ok(&["mount", "side", &elsewhere.display().to_string()]);
    let said = store.fails(4, &["switch", &place, "side"]);
    assert!(said.contains(&elsewhere.display().to_string()), "{said}");
    assert_sound(&store);
}

#[test]
#[expect(clippy::print_stderr, reason = "figures for whoever asks for them")]
fn a_killed_daemon_leaves_the_one_branch_there_or_the_other() {
    if !fuse_available() {
        return;
    }
    let (store, dir, of_main, of_side) = two();
    let place = dir.display().to_string();
    let start = Instant::now();
    store.ok(&["switch", &place, "side"]);
    let (mut here, whole) = ("side", start.elapsed());
    let (mut moved, mut stayed) = (0, 0);
    for round in 0..campaign::rounds(20) {
        let to = if here == "main" { "side" } else { "main" };
        // A command whose daemon is gone before it has asked starts another one.
        let after = whole * (1 + round as u32 * 7 % PARTS) / PARTS;
        let is_done = store.kill_daemon_during(&["switch", &place, to], after);
        store.ok(&["status"]);
        let shown = seen(&dir);
        let expected = if shown.0 == "refs/heads/main" { &of_main } else { &of_side };
        assert_eq!(&shown, expected, "round {round}");
        let now = if shown.0 == "refs/heads/main" { "main" } else { "side" };
        assert!(now == to || !is_done, "round {round}");
        match is_done {
            true => {}
            false if now == here => stayed += 1,
            false => moved += 1,
        }
        here = now;
        if round % 5 == 0 {
            assert_sound(&store);
        }
    }
    assert_sound(&store);
    eprintln!("killed at it: {stayed} times the one was there, {moved} times the other");
    assert!(moved + stayed > 0, "no daemon was killed at it");
    // The other one is what it was as well.
    let (other, expected) = if here == "main" { ("side", of_side) } else { ("main", of_main) };
    store.ok(&["switch", &place, other]);
    assert_eq!(seen(&dir), expected);
}
