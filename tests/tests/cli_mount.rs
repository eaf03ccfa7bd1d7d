//! `mount`, `umount`, `attach`, `status`, `stats`, `doctor` and the commands that need no store.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use agentfs_tests::{Connection, TestStore, fixture, fuse_available, git, mounts, tree};
use rustix::process::{Pid, Signal};
use serde_json::json;

/// A store with the repository `source` of three commits in it, and their ids.
fn store_with_history() -> (TestStore, [String; 3]) {
    let store = TestStore::new();
    let source = fixture::Builder::new(&store.path("source"));
    let commits = ["one", "two", "three"].map(|text| source.file("a", text).commit(text));
    store.ok(&["clone", "--no-mount", &source.dir().display().to_string()]);
    (store, commits)
}

#[test]
fn every_revision_can_be_mounted() {
    if !fuse_available() {
        return;
    }
    let (store, commits) = store_with_history();
    for (what, commit, content) in [
        (format!("source@{}", commits[0]), &commits[0], "one"),
        ("source@main~1".to_owned(), &commits[1], "two"),
        ("source@main".to_owned(), &commits[2], "three"),
    ] {
        let dir = store.path(content);
        let opened = store.json(&["mount", &what, &dir.display().to_string()]);
        assert_eq!(opened["commit"], *commit.as_str(), "{what}");
        assert_eq!(opened["detached"], content != "three", "{what}");
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), content);
        assert_eq!(git(&dir, &["rev-parse", "HEAD"]), *commit);
        assert_eq!(git(&dir, &["status", "--porcelain"]), "");
    }
    let listed = git(&store.home().join("repos/source"), &["worktree", "list", "--porcelain"]);
    for name in ["one", "two", "three"] {
        assert!(listed.contains(&store.path_text(name)), "{listed}");
    }
}

#[test]
fn a_word_is_a_branch_or_a_repository_or_a_revision() {
    if !fuse_available() {
        return;
    }
    let (store, commits) = store_with_history();
    for (what, commit) in [("main", 2), ("source", 2), (commits[0].as_str(), 0)] {
        let dir = store.path_text("worktree");
        let opened = store.json(&["mount", what, &dir]);
        assert_eq!(opened["commit"], *commits[commit].as_str(), "{what}");
        store.ok(&["umount", &dir]);
    }
}

#[test]
fn a_branch_is_checked_out_once() {
    if !fuse_available() {
        return;
    }
    let (store, commits) = store_with_history();
    let opened: Vec<_> = std::thread::scope(|scope| {
        let mounts: Vec<_> = (0..6)
            .map(|number| {
                let dir = store.path_text(&format!("worktree-{number}"));
                let store = &store;
                scope.spawn(move || store.json(&["mount", "source@main", &dir]))
            })
            .collect();
        mounts.into_iter().map(|mount| mount.join().unwrap()).collect()
    });
    let on_branch = opened.iter().filter(|opened| opened["detached"] == false).count();
    assert_eq!(on_branch, 1);
    for opened in &opened {
        assert_eq!(opened["commit"], *commits[2].as_str());
        if opened["detached"] == true {
            assert!(opened["notes"][0].as_str().unwrap().contains("checked out"), "{opened}");
        }
    }
    store.ok(&["umount", "--all"]);
    assert_eq!(mounts::below(&store.path("")), []);
    let listed = store.json(&["ps"]);
    assert_eq!(listed["repositories"][0]["branches"].as_array().unwrap().len(), 1, "{listed}");
    assert!(!store.home().join("repos/source/worktrees").exists());
}

#[test]
fn a_branch_that_has_moved_is_mounted_where_it_is() {
    if !fuse_available() {
        return;
    }
    let (store, commits) = store_with_history();
    let repository = store.home().join("repos/source");
    git(&repository, &["update-ref", "refs/heads/main", &commits[1]]);
    let dir = store.path_text("worktree");
    let opened = store.json(&["mount", "source@main", &dir]);
    assert_eq!(opened["commit"], *commits[1].as_str());
    assert_eq!(fs::read_to_string(store.path("worktree/a")).unwrap(), "two");
}

#[test]
fn a_directory_in_use_is_unmounted_only_lazily() {
    if !fuse_available() {
        return;
    }
    let (store, _) = store_with_history();
    let dir = store.path_text("worktree");
    store.ok(&["mount", "source", &dir]);
    let held = fs::File::open(store.path("worktree/a")).unwrap();
    let said = store.fails(1, &["umount", &dir]);
    assert!(said.contains("busy") && said.contains("--lazy"), "{said}");
    assert_eq!(fs::read_to_string(store.path("worktree/a")).unwrap(), "three");
    store.ok(&["umount", "--lazy", &dir]);
    assert!(!mounts::is_mounted(&store.path("worktree")));
    drop(held);
    store.ok(&["mount", "source", &dir]);
}

/// Whoever is in a mount that was taken from sight goes on writing: nothing of that is lost, and nobody
/// else writes the branch meanwhile.
#[test]
fn what_is_written_to_a_mount_out_of_sight_is_kept() {
    if !fuse_available() {
        return;
    }
    let (store, _) = store_with_history();
    let dir = store.path_text("worktree");
    store.ok(&["mount", "source", &dir]);
    let mut held = fs::OpenOptions::new().append(true).open(store.path("worktree/a")).unwrap();
    store.ok(&["umount", "--lazy", &dir]);
    held.write_all(b" and more").unwrap();
    let said = store.fails(1, &["mount", "main", &dir]);
    assert!(said.contains("in use") && said.contains("taken from sight"), "{said}");
    drop(held);
    store.ok(&["mount", "main", &dir]);
    assert_eq!(fs::read_to_string(store.path("worktree/a")).unwrap(), "three and more");
    store.ok(&["fsck"]);
}

#[test]
fn an_existing_repository_is_used_in_place() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let source = fixture::Builder::new(&store.path("source"));
    source.file("a", "one").file("b/c", "two");
    let commit = source.commit("one");
    let opened = store.json(&["attach", &store.path_text("source/b")]);
    assert_eq!(opened["repository"], "source");
    let again = store.json(&["attach", &store.path_text("source")]);
    assert_eq!(again["repository"], "source");
    assert_eq!(fs::read_dir(store.home().join("repos")).unwrap().count(), 0);
    let dir = store.path("worktree");
    let opened = store.json(&["mount", "source@main", &dir.display().to_string()]);
    assert_eq!(opened["commit"], *commit.as_str());
    tree::assert_same(source.dir(), &dir);
    assert_eq!(git(&dir, &["status", "--porcelain"]), "");
    // A commit made there is seen here.
    source.file("a", "changed");
    let next = source.commit("next");
    assert_eq!(git(&dir, &["rev-parse", "main"]), next);
    store.ok(&["umount", "--all"]);
    assert_eq!(git(source.dir(), &["status", "--porcelain"]), "");
    assert_eq!(git(source.dir(), &["worktree", "list"]).lines().count(), 1);
}

#[test]
fn one_mount_can_be_served_in_the_foreground() {
    if !fuse_available() {
        return;
    }
    for end in [None, Some(Signal::TERM), Some(Signal::INT), Some(Signal::KILL)] {
        let (store, _) = store_with_history();
        let dir = store.path("worktree");
        let text = dir.display().to_string();
        let args = ["mount", "--foreground", "source", &text];
        let said = store.fails(6, &args);
        assert!(said.contains("daemon stop"), "{said}");
        store.ok(&["daemon", "stop"]);
        let mut command = store.command(&args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        // It speaks when everything is there: the files are seen before the index is in its place.
        let mut said = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut line = String::new();
        said.read_line(&mut line).expect("what it says");
        assert!(line.contains(&text), "{line:?}");
        assert_eq!(git(&dir, &["status", "--porcelain"]), "");
        assert_eq!(store.json(&["ps"])["pid"], child.id());
        match end {
            None => drop(store.ok(&["umount", &text])),
            Some(signal) => store.signal(Pid::from_child(&child), signal),
        }
        let status = child.wait().unwrap();
        assert_eq!(status.success(), end != Some(Signal::KILL), "{end:?}: {status}");
        // It does not come back, and the next daemon clears what it could not.
        let listed = store.json(&["ps"]);
        assert_eq!(listed["worktrees"].as_array().unwrap().len(), 0, "{end:?}");
        assert_eq!(mounts::below(&store.path("")), [], "{end:?}");
        assert!(!store.home().join("repos/source/worktrees").exists(), "{end:?}");
    }
}

#[test]
fn what_others_unmount_is_told_and_can_be_forgotten() {
    if !fuse_available() {
        return;
    }
    let (store, _) = store_with_history();
    let dir = store.path_text("worktree");
    store.ok(&["mount", "source", &dir]);
    mounts::detach_all(&store.path(""));
    let gone = || {
        let listed = store.json(&["ps"]);
        listed["worktrees"][0]["mounted"] == false
    };
    store.wait_until("the daemon notices", gone);
    let said = store.fails(4, &["mount", "source", &dir]);
    assert!(said.contains("umount"), "{said}");
    store.ok(&["umount", &dir]);
    store.ok(&["mount", "source", &dir]);
}

#[test]
fn a_lever_can_be_switched_off() {
    if !fuse_available() {
        return;
    }
    let (store, _) = store_with_history();
    store.ok(&["daemon", "stop"]);
    let mut command = store.command(&["mount", "source", &store.path_text("worktree")]);
    command.env("AGENTFS_LEVERS_OFF", "no_open,prewarm");
    assert_eq!(store.finish(command).code, 0);
    for _ in 0..3 {
        fs::read(store.path("worktree/a")).unwrap();
    }
    assert!(store.counters(&store.path("worktree"))["open"] >= 3);
    let doctor = store.ok(&["doctor"]);
    let off = |name: &str| doctor.lines().any(|l| l.starts_with("off") && l.contains(name));
    assert!(off("no_open") && off("prewarm") && !off("no_flush"), "{doctor}");
    store.ok(&["daemon", "stop"]);
    let mut command = store.command(&["ps"]);
    command.env("AGENTFS_LEVERS_OFF", "nonsense");
    let refused = store.finish(command);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    assert!(refused.stderr.contains("nonsense"), "{}", refused.stderr);
}

#[test]
fn status_is_that_of_the_current_directory() {
    if !fuse_available() {
        return;
    }
    let (store, commits) = store_with_history();
    for (number, what) in ["source@main", "source@main~1"].iter().enumerate() {
        store.ok(&["mount", what, &store.path_text(&format!("worktree-{number}"))]);
    }
    let mut command = store.command(&["status", "--json"]);
    command.current_dir(store.path("worktree-1"));
    let shown = store.finish(command).events().pop().unwrap();
    assert_eq!(shown["worktrees"].as_array().unwrap().len(), 1);
    assert_eq!(shown["worktrees"][0]["commit"], *commits[1].as_str());
    let all = store.json(&["status"]);
    assert_eq!(all["worktrees"].as_array().unwrap().len(), 2);
}

#[test]
fn some_commands_need_no_store() {
    let store = TestStore::new();
    assert!(store.ok(&["version"]).contains("agentfs"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(store.ok(&["completions", shell]).contains("umount"), "{shell}");
    }
    store.ok(&["--help"]);
    let doctor = store.run(&["doctor"]);
    assert!(doctor.stdout.contains("/dev/fuse"), "{}", doctor.stdout);
    assert!(!store.home().exists());
}

/// The daemon takes a mount away that was there for a command alone, and waits until nobody is in it any more.
#[test]
fn a_mount_that_is_ending_is_no_damage_and_keeps_nobody_from_unmounting_all() {
    if !fuse_available() {
        return;
    }
    let (store, _) = store_with_history();
    let main = store.path_text("main");
    store.ok(&["mount", "main", &main]);
    let source = store.home().join("repos/source");
    git(&source, &["branch", "other", "main"]);
    let mut connection = Connection::new(&store);
    let params = json!({ "what": "source@other", "at": "/", "pid": std::process::id() });
    let begun = connection.call("exec.begin", &params);
    let dir = std::path::PathBuf::from(begun["source"].as_str().unwrap());
    assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "three");
    let mut inside = Command::new("sleep").arg("1000").current_dir(&dir).spawn().unwrap();
    drop(connection);
    store.wait_until("the mount is gone from sight", || mounts::below(&dir).is_empty());
    let checked = store.run(&["fsck"]);
    let unmounted = store.run(&["umount", "--all", "--json"]);
    inside.kill().unwrap();
    inside.wait().unwrap();
    assert_eq!(checked.code, 0, "{}", checked.stdout);
    assert_eq!(unmounted.code, 0, "{}", unmounted.stdout);
    assert_eq!(unmounted.events().pop().unwrap()["dirs"], json!([main]));
    store.wait_until("it has ended", || !dir.exists());
    assert_eq!(store.run(&["fsck"]).code, 0);
}
