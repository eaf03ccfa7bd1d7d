//! Goal: what a user of many branches asks for besides making them is done as said, wholly or not at all.
//!
//! Branches get other names, whatever names them follows, and the death of the daemon leaves the old name or
//! the new one. Snapshots say what they are, and paths become what they were in one. A materialized branch and a
//! backup have everything and need nothing of the store that they are made of.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use agentfs_tests::fleet::{assert_sound, change, fork, mounted, status};
use agentfs_tests::{TestStore, campaign, fuse_available, git, git_command, tree};

fn has_branch(dir: &Path, name: &str) -> bool {
    let mut look =
        git_command(dir, &["rev-parse", "--verify", "-q", &format!("refs/heads/{name}")]);
    look.output().unwrap().status.success()
}

/// The names of the branches on record.
fn branches(store: &TestStore) -> Vec<String> {
    let listed = store.json(&["branch", "list"]);
    let names = listed["branches"].as_array().unwrap().iter();
    names.map(|one| one["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_renamed_branch_is_the_same_under_another_name() {
    if !fuse_available() {
        return;
    }
    let (store, main) = mounted();
    let side = fork(&store, "side", "main");
    change(&side);
    let id = store.json(&["snapshot", "create", "side"])["id"].as_str().unwrap().to_owned();
    let at_snapshot = (status(&side), tree::read(&side));
    git(&side, &["commit", "-qm", "of the side"]);
    let held = fs::File::open(side.join("untracked")).unwrap();
    let before = (status(&side), tree::read(&side), git(&side, &["rev-parse", "HEAD"]));
    let said = store.json(&["branch", "rename", "side", "topic/deep"]);
    assert_eq!((&said["from"], &said["branch"]), (&"side".into(), &"topic/deep".into()));
    let now = || (status(&side), tree::read(&side), git(&side, &["rev-parse", "HEAD"]));
    assert_eq!(now(), before);
    assert_eq!(git(&side, &["symbolic-ref", "HEAD"]), "refs/heads/topic/deep");
    assert!(!has_branch(&main, "side") && has_branch(&main, "topic/deep"));
    assert_eq!(branches(&store), ["main", "topic/deep"]);
    assert_eq!(held.metadata().unwrap().len(), 10, "who has a file open goes on");
    let listed = store.json(&["snapshot", "list", "topic/deep"]);
    assert_eq!(listed["snapshots"][0]["id"], id.as_str(), "{listed}");
    // What is made of it is found under the new name, by the next daemon, too.
    fs::write(side.join("after"), "after\n").unwrap();
    store.kill_daemon();
    store.ok(&["status"]);
    assert_eq!(fs::read_to_string(side.join("after")).unwrap(), "after\n");
    store.ok(&["snapshot", "restore", &id]);
    assert_eq!(git(&side, &["symbolic-ref", "HEAD"]), "refs/heads/topic/deep");
    assert_eq!((status(&side), tree::read(&side)), at_snapshot);
    assert_eq!(git(&side, &["log", "-1", "--format=%s"]), "first");
    assert_sound(&store);

    // One that is not mounted, with changes; and one that never was.
    store.ok(&["umount", &side.display().to_string()]);
    store.ok(&["branch", "create", "never", "--from", "topic/deep"]);
    store.ok(&["branch", "rename", "topic/deep", "side"]);
    store.ok(&["branch", "rename", "never", "ever"]);
    store.ok(&["branch", "create", "never", "--from", "side"]);
    store.ok(&["mount", "side", &side.display().to_string()]);
    assert_eq!((status(&side), tree::read(&side)), at_snapshot);
    let ever = store.path("ever");
    store.ok(&["mount", "source@ever", &ever.display().to_string()]);
    assert_eq!((status(&ever), tree::read(&ever)), at_snapshot);
    assert_eq!(git(&ever, &["symbolic-ref", "HEAD"]), "refs/heads/ever");
    store.fails(3, &["mount", "topic/deep", &store.path_text("nowhere")]);
    // The branch of the repository's own HEAD as well.
    store.ok(&["branch", "rename", "main", "trunk"]);
    assert_eq!(git(&main, &["symbolic-ref", "HEAD"]), "refs/heads/trunk");
    assert_eq!(status(&main), "");
    assert_sound(&store);
}

#[test]
fn a_name_that_cannot_be_is_refused() {
    if !fuse_available() {
        return;
    }
    let (store, main) = mounted();
    git(&main, &["branch", "of-git"]);
    git(&main, &["branch", "taken/below"]);
    store.ok(&["branch", "create", "other", "--from", "main"]);
    for name in ["other", "of-git", "main", "a..b", "HEAD", "", "a b", "taken", "x.lock"] {
        store.fails(4, &["branch", "rename", "main", name]);
        assert_eq!(git(&main, &["symbolic-ref", "HEAD"]), "refs/heads/main", "{name}");
        assert!(has_branch(&main, "main"), "{name}");
        assert_eq!(branches(&store), ["main", "other"], "{name}");
    }
    store.fails(3, &["branch", "rename", "nowhere", "new"]);
    assert!(store.fails(3, &["branch", "rename", "source", "new"]).contains("is a repository"));
    let loose = store.path("loose");
    store.ok(&["mount", "source@main~0", &loose.display().to_string()]);
    let detached = store.json(&["status", &loose.display().to_string()]);
    let detached = detached["worktrees"][0]["branch"].as_str().unwrap().to_owned();
    assert!(store.fails(4, &["branch", "rename", &detached, "new"]).contains("no branch"));
    // What goes on in it keeps its name until it ends.
    git(&main, &["bisect", "start"]);
    assert!(store.fails(4, &["branch", "rename", "main", "new"]).contains("bisection"));
    git(&main, &["bisect", "reset"]);
    let mut child = store.command(&["exec", "main", "--", "sh", "-c", "echo in; read line"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = [0; 3];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
    store.fails(1, &["branch", "rename", "main", "new"]);
    drop(child.stdin.take());
    child.wait().unwrap();
    store.ok(&["branch", "rename", "main", "new"]);
    assert_sound(&store);
}

/// A hook that runs while git has the references locked, so that a test can be there as well.
fn hook(main: &Path, script: &str) {
    let common = git(main, &["rev-parse", "--path-format=absolute", "--git-common-dir"]);
    let hooks = Path::new(&common).join("hooks");
    fs::create_dir_all(&hooks).unwrap();
    let path = hooks.join("reference-transaction");
    fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn what_git_refuses_to_rename_has_its_old_name() {
    if !fuse_available() {
        return;
    }
    let (store, main) = mounted();
    change(&main);
    let before = (status(&main), tree::read(&main));
    hook(&main, "exit 1");
    store.fails(1, &["branch", "rename", "main", "new"]);
    hook(&main, "exit 0");
    assert_eq!((status(&main), tree::read(&main)), before);
    assert_eq!((branches(&store), has_branch(&main, "new")), (vec!["main".into()], false));
    store.ok(&["branch", "rename", "main", "new"]);
    assert_eq!((status(&main), tree::read(&main)), before);
}

#[test]
fn a_killed_daemon_leaves_the_old_name_or_the_new_one() {
    if !fuse_available() {
        return;
    }
    let (store, main) = mounted();
    change(&main);
    let before = (status(&main), tree::read(&main));
    let mut name = "main".to_owned();
    let mut expect = |next: &str, succeeded: bool| {
        store.ok(&["status"]);
        let head = git(&main, &["symbolic-ref", "HEAD"]).replace("refs/heads/", "");
        assert!(head == next || (head == name && !succeeded), "{head}: {}", store.log());
        let gone = if head == next { name.as_str() } else { next };
        assert!(has_branch(&main, &head) && !has_branch(&main, gone), "{}", store.log());
        assert_eq!(branches(&store), [head.as_str()]);
        assert_eq!((status(&main), tree::read(&main)), before);
        assert_sound(&store);
        name = head.clone();
        head
    };
    // In the middle: git has the references locked.
    let (inside, go) = (store.path("inside"), store.path("go"));
    let script = format!(
        "touch {}; while ! test -e {}; do sleep 0.01; done",
        inside.display(),
        go.display()
    );
    hook(&main, &script);
    let mut command = store.command(&["branch", "rename", "main", "middle"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    store.wait_until("git runs the hook", || inside.exists());
    store.kill_daemon();
    assert!(!child.wait().unwrap().success());
    fs::write(&go, "").unwrap();
    assert_eq!(expect("middle", false), "middle", "the record has it");
    hook(&main, "exit 0");
    let rounds = campaign::rounds(10);
    let mut current = "middle".to_owned();
    for round in 0_u64..rounds {
        let next = format!("name{round}");
        let after = Duration::from_micros(500 + round * 7919 % 25_000);
        let succeeded = store.kill_daemon_during(&["branch", "rename", &current, &next], after);
        current = expect(&next, succeeded);
    }
}

#[test]
fn a_snapshot_says_what_it_is_and_what_it_changes() {
    if !fuse_available() {
        return;
    }
    let (store, main) = mounted();
    let clean = store.json(&["snapshot", "create", "main"])["id"].as_str().unwrap().to_owned();
    change(&main);
    let made = store.json(&["snapshot", "create", "main", "-m", "as far as I got"]);
    let id = made["id"].as_str().unwrap().to_owned();
    let before = (status(&main), tree::read(&main));
    let shown = store.json(&["snapshot", "show", &id[..9]]);
    assert_eq!(shown["id"], id.as_str());
    assert_eq!((&shown["branch"], &shown["reason"]), (&"main".into(), &"asked".into()));
    assert_eq!((&shown["parent"], &shown["branch_now"]), (&clean.as_str().into(), &"main".into()));
    assert_eq!(shown["changes"], serde_json::json!({"added": 1, "modified": 1, "deleted": 1}));
    let state = &shown["git"];
    assert_eq!((&state["branch"], &state["operation"]), (&"main".into(), &serde_json::Value::Null));
    assert_eq!(state["commit"], git(&main, &["rev-parse", "HEAD"]));
    let list = |what: &str| -> Vec<_> {
        let entry = |one: &serde_json::Value| {
            format!("{} {}", one["status"].as_str().unwrap(), one["path"].as_str().unwrap())
        };
        state[what].as_array().unwrap().iter().map(entry).collect()
    };
    assert_eq!(list("staged"), ["M dir/one"]);
    assert_eq!(list("unstaged"), ["M dir/one", "D three"]);
    assert_eq!((&state["untracked"], &state["ignored"]), (&1.into(), &1.into()));
    let text = store.ok(&["snapshot", "show", &id]);
    for line in ["as far as I got", "staged: M dir/one", "not staged: D three", "1 ignored file"] {
        assert!(text.contains(line), "{text}");
    }
    // What happens to the branch is nothing to the snapshot.
    git(&main, &["commit", "-qam", "later"]);
    git(&main, &["checkout", "-q", "-b", "elsewhere"]);
    let again = store.json(&["snapshot", "show", &id]);
    assert_eq!((&again["git"], &again["changes"]), (&shown["git"], &shown["changes"]));
    let shown = store.json(&["snapshot", "show", &clean]);
    assert_eq!(shown["changes"], serde_json::json!({"added": 0, "modified": 0, "deleted": 0}));
    assert_eq!(shown["parent"], serde_json::Value::Null);
    store.fails(3, &["snapshot", "show", "main"]);
    store.fails(3, &["snapshot", "diff", "main"]);

    // Between two, and with what the branch is now.
    let changed = "M\tdir/one\nD\tthree\nA\tuntracked\n";
    assert_eq!(store.ok(&["snapshot", "diff", &clean, &id, "--name-status"]), changed);
    assert_eq!(store.ok(&["snapshot", "diff", &clean, "--name-status"]), changed);
    assert_eq!(store.ok(&["snapshot", "diff", &id]), "");
    fs::write(main.join("untracked"), "later\n").unwrap();
    let patch = store.ok(&["snapshot", "diff", &id, "--patch"]);
    assert!(patch.contains("-untracked\n+later\n"), "{patch}");
    assert!(store.ok(&["snapshot", "diff", &id, "--stat"]).contains("1 file changed"));
    assert_eq!(store.json(&["snapshot", "diff", &id])["changes"][0]["path"], "untracked");
    // Of a branch that is gone, too.
    fs::write(main.join("untracked"), "untracked\n").unwrap();
    assert_eq!(tree::read(&main), before.1);
    store.ok(&["branch", "create", "gone", "--from", "main"]);
    let last = store.json(&["snapshot", "create", "gone"])["id"].as_str().unwrap().to_owned();
    store.ok(&["branch", "delete", "gone"]);
    let text = store.ok(&["snapshot", "show", &last]);
    assert!(text.contains("its branch is removed"), "{text}");
    store.fails(3, &["snapshot", "diff", &last]);
    assert_eq!(store.ok(&["snapshot", "diff", &last, "main"]), "");
    assert_sound(&store);
}

/// The lines of `git status` without those about ignored files.
fn porcelain(dir: &Path) -> String {
    git(dir, &["status", "--porcelain=v1", "-sb"])
}

#[test]
fn paths_become_what_they_were_in_a_snapshot() {
    if !fuse_available() {
        return;
    }
    let (store, main) = mounted();
    change(&main);
    fs::create_dir(main.join("deep")).unwrap();
    fs::write(main.join("deep/file"), "deep\n").unwrap();
    fs::hard_link(main.join("deep/file"), main.join("deep/link")).unwrap();
    std::os::unix::fs::symlink("deep/file", main.join("sym")).unwrap();
    fs::set_permissions(main.join("deep/file"), fs::Permissions::from_mode(0o600)).unwrap();
    let id = store.json(&["snapshot", "create", "main"])["id"].as_str().unwrap().to_owned();
    let then = tree::read(&main);

    fs::write(main.join("dir/two"), "changed\n").unwrap();
    fs::write(main.join("dir/new"), "new\n").unwrap();
    fs::write(main.join("untracked"), "changed\n").unwrap();
    fs::remove_dir_all(main.join("deep")).unwrap();
    fs::write(main.join("deep"), "a file now\n").unwrap();
    fs::remove_file(main.join("sym")).unwrap();
    fs::create_dir_all(main.join("sym/dir")).unwrap();
    git(&main, &["add", "dir/two"]);
    let changed = (status(&main), tree::read(&main));
    let held = fs::File::open(main.join("dir/two")).unwrap();
    let untouched = fs::metadata(main.join("dir/one")).unwrap();

    let said = store.json(&["snapshot", "restore", &id, "dir"]);
    assert_eq!((&said["written"], &said["removed"]), (&1.into(), &1.into()), "only what differs");
    let before = said["before"].as_str().unwrap().to_owned();
    assert_eq!(fs::read_to_string(main.join("dir/two")).unwrap(), "2\n");
    assert_eq!(std::io::read_to_string(&held).unwrap(), "changed\n", "who has it open goes on");
    assert!(!main.join("dir/new").exists());
    assert_eq!(fs::read_to_string(main.join("untracked")).unwrap(), "changed\n");
    assert_eq!(
        fs::metadata(main.join("dir/one")).unwrap().modified().unwrap(),
        untouched.modified().unwrap()
    );
    // What is staged stays staged, and git sees that the file is another one.
    assert!(status(&main).contains("MM dir/two"), "{}", status(&main));
    drop(held);
    // From a directory of the worktree, relative to it; a parent that was a directory is one again.
    let mut command = store.command(&[
        "snapshot",
        "restore",
        &id,
        "--",
        "../deep/link",
        "../deep/file",
        "../sym",
    ]);
    command.current_dir(main.join("dir"));
    let done = store.finish(command);
    assert_eq!(done.code, 0, "{}", done.stderr);
    let stat = |name: &str| {
        use std::os::unix::fs::MetadataExt;
        let stat = fs::symlink_metadata(main.join(name)).unwrap();
        (stat.ino(), stat.mode() & 0o777, stat.nlink())
    };
    assert_eq!(stat("deep/file"), stat("deep/link"));
    assert_eq!((stat("deep/file").1, stat("deep/file").2), (0o600, 2));
    assert_eq!(fs::read_link(main.join("sym")).unwrap(), Path::new("deep/file"));
    store.ok(&["snapshot", "restore", &id, "--", "."]);
    assert_eq!(tree::read(&main), then);
    let again = store.json(&["snapshot", "restore", &id, "."]);
    let nothing: serde_json::Value = 0.into();
    assert_eq!(
        (&again["written"], &again["removed"], &again["adjusted"]),
        (&nothing, &nothing, &nothing)
    );
    assert_sound(&store);
    store.ok(&["snapshot", "restore", &before]);
    assert_eq!((status(&main), tree::read(&main)), changed, "it was kept");

    // What is outside or in neither is refused by name, and nothing is changed or kept for it.
    let count = || store.json(&["snapshot", "list"])["snapshots"].as_array().unwrap().len();
    let snapshots = count();
    for (code, path) in
        [(4, "../outside"), (4, "/etc/passwd"), (4, ".git"), (3, "neither"), (3, "dir/one/below")]
    {
        let said = store.fails(code, &["snapshot", "restore", &id, "dir/two", path]);
        assert!(said.contains(path), "{said}");
    }
    assert_eq!(((status(&main), tree::read(&main)), count()), (changed, snapshots));
    // A link leads nowhere.
    let outside = store.path("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("link"), "outside\n").unwrap();
    fs::remove_file(main.join("deep")).unwrap();
    std::os::unix::fs::symlink(&outside, main.join("deep")).unwrap();
    store.ok(&["snapshot", "restore", &id, "--", "deep/link"]);
    assert_eq!(fs::read_to_string(outside.join("link")).unwrap(), "outside\n");
    assert_eq!(fs::read_to_string(main.join("deep/link")).unwrap(), "deep\n");
    // One that is not mounted.
    store.ok(&["umount", &main.display().to_string()]);
    store.ok(&["snapshot", "restore", &id, "--", "untracked", "sym", "deep", "dir"]);
    store.ok(&["mount", "main", &main.display().to_string()]);
    assert_eq!(tree::read(&main), then);
    assert_sound(&store);
}

#[test]
fn a_plain_directory_is_what_the_branch_is_and_stands_alone() {
    if !fuse_available() {
        return;
    }
    let (store, main) = mounted();
    change(&main);
    git(&main, &["branch", "other"]);
    git(&main, &["commit", "-qm", "more"]);
    fs::write(main.join("dir/two"), "staged\n").unwrap();
    git(&main, &["add", "dir/two"]);
    fs::hard_link(main.join("untracked"), main.join("build/link")).unwrap();
    std::os::unix::fs::symlink("nowhere", main.join("sym")).unwrap();
    let sparse = fs::File::create(main.join("build/sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", 50 << 20).unwrap();
    drop(sparse);
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(main.join("untracked"), "user.note", b"kept", flags).unwrap();
    let plain = store.path("plain");
    let text = plain.display().to_string();
    let snapshots = || store.json(&["snapshot", "list"])["snapshots"].as_array().unwrap().len();
    let said = store.json(&["materialize", "main", &text]);
    assert_eq!(said["commit"], git(&main, &["rev-parse", "HEAD"]));
    assert_eq!(snapshots(), 0, "what was made for it is gone");
    let look = |dir: &Path| {
        (
            tree::read(dir),
            status(dir),
            porcelain(dir),
            git(dir, &["log", "--all", "--oneline"]),
            git(dir, &["diff", "--cached"]),
        )
    };
    assert_eq!(look(&plain), look(&main));
    let stat = |dir: &Path, name: &str| {
        use std::os::unix::fs::MetadataExt;
        let stat = fs::symlink_metadata(dir.join(name)).unwrap();
        (stat.mode(), stat.nlink(), stat.mtime(), stat.mtime_nsec(), stat.size())
    };
    for name in [
        "dir/one",
        "dir/two",
        "untracked",
        "build/out",
        "build/link",
        "sym",
        "build/sparse",
        ".gitignore",
    ] {
        assert_eq!(stat(&plain, name), stat(&main, name), "{name}");
    }
    for name in ["build", "dir"] {
        assert_eq!(stat(&plain, name).2, stat(&main, name).2, "{name}");
    }
    let blocks =
        std::os::unix::fs::MetadataExt::blocks(&fs::metadata(plain.join("build/sparse")).unwrap());
    assert!(blocks < 2048, "{blocks} blocks");
    let mut note = [0; 8];
    let len = rustix::fs::getxattr(plain.join("untracked"), "user.note", &mut note[..]).unwrap();
    assert_eq!(&note[..len], b"kept");
    // It needs nothing of the store.
    assert!(!plain.join(".git/objects/info/alternates").exists());
    assert_eq!(git(&plain, &["for-each-ref", "refs/agentfs"]), "");
    store.fails(4, &["materialize", "main", &text]);
    store.fails(3, &["materialize", "nowhere", &store.path_text("none")]);
    store.fails(4, &["materialize", "main", &main.join("build").display().to_string()]);
    let id = store.json(&["snapshot", "create", "main"])["id"].as_str().unwrap().to_owned();
    git(&main, &["commit", "-qam", "later"]);
    let of_snapshot = store.path("of-snapshot");
    fs::create_dir(&of_snapshot).unwrap();
    store.ok(&["materialize", &id, &of_snapshot.display().to_string()]);
    assert_eq!(tree::read(&of_snapshot), tree::read(&plain));
    assert_eq!(status(&of_snapshot), status(&plain));
    let of_commit = store.path("of-commit");
    store.ok(&["materialize", "source@other", &of_commit.display().to_string()]);
    assert_eq!(status(&of_commit), "");
    assert_eq!(git(&of_commit, &["rev-parse", "HEAD"]), git(&main, &["rev-parse", "other"]));
    let left: Vec<_> =
        fs::read_dir(store.path("")).unwrap().flatten().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with('.')), "{left:?}");
    assert_sound(&store);
    store.ok(&["umount", "--all"]);
    store.ok(&["daemon", "stop"]);
    fs::rename(store.home(), store.path("away")).unwrap();
    git(&plain, &["fsck", "--strict"]);
    git(&plain, &["commit", "-qam", "alone"]);
    fs::rename(store.path("away"), store.home()).unwrap();
}

#[test]
fn a_backup_of_a_store_in_use_is_a_store() {
    if !fuse_available() {
        return;
    }
    let (mut store, main) = mounted();
    change(&main);
    let side = fork(&store, "side", "main");
    fs::write(side.join("of-side"), vec![9; 200_000]).unwrap();
    git(&side, &["add", "of-side"]);
    let id = store.json(&["snapshot", "create", "side"])["id"].as_str().unwrap().to_owned();
    git(&side, &["commit", "-qm", "of the side"]);
    fs::write(side.join("not drained"), "x").unwrap();
    let look = |dir: &Path| (tree::read(dir), status(dir), git(dir, &["log", "--oneline"]));
    let (of_main, of_side) = (look(&main), look(&side));
    // Somebody writes and commits all the while.
    let other = fork(&store, "busy", "main");
    let stop = std::sync::atomic::AtomicBool::new(false);
    let file = store.path("backup");
    let text = file.display().to_string();
    let made = thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0.. {
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                fs::write(other.join("busy"), format!("{number}\n")).unwrap();
                git(&other, &["add", "busy"]);
                git(&other, &["commit", "-qm", &number.to_string()]);
            }
        });
        let made = store.json(&["backup", &text]);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        made
    });
    assert_eq!(made["bytes"], fs::metadata(&file).unwrap().len());
    store.fails(4, &["backup", &text]);
    store.fails(4, &["backup", &store.home().join("inside").display().to_string()]);
    store.fails(4, &["restore", &text]);
    store.ok(&["daemon", "stop"]);

    store.set_home(store.path("second"));
    let restored = store.json(&["restore", &text]);
    assert_eq!((&restored["branches"], &restored["checked"]["damaged"]), (&3.into(), &0.into()));
    assert_eq!(store.json(&["status"])["worktrees"].as_array().unwrap().len(), 0);
    for (name, expected) in [("main", of_main), ("side", of_side)] {
        let dir = store.path(&format!("second-{name}"));
        store.ok(&["mount", name, &dir.display().to_string()]);
        assert_eq!(look(&dir), expected, "{name}");
        assert_eq!(git(&dir, &["symbolic-ref", "HEAD"]), format!("refs/heads/{name}"));
        let common = git(&dir, &["rev-parse", "--path-format=absolute", "--git-common-dir"]);
        assert!(Path::new(&common).starts_with(store.home()), "{common}");
    }
    let busy = store.path("second-busy");
    store.ok(&["mount", "busy", &busy.display().to_string()]);
    git(&busy, &["fsck", "--strict"]);
    let old = fork(&store, "old", &id);
    assert_eq!(fs::read(old.join("of-side")).unwrap(), vec![9; 200_000]);
    assert_sound(&store);
    store.ok(&["daemon", "stop"]);

    // What is damaged makes no store.
    let whole = fs::read(&file).unwrap();
    let damaged = store.path("damaged");
    store.set_home(store.path("third"));
    for (code, bytes) in [
        (
            5,
            [
                &whole[..whole.len() / 2],
                &[whole[whole.len() / 2] ^ 1],
                &whole[whole.len() / 2 + 1..],
            ]
            .concat(),
        ),
        (5, whole[..whole.len() - 1].to_vec()),
        (4, b"something else".to_vec()),
    ] {
        fs::write(&damaged, bytes).unwrap();
        store.fails(code, &["restore", &damaged.display().to_string()]);
        assert!(!store.home().exists());
    }
    store.fails(3, &["restore", &store.path_text("nowhere")]);
}
