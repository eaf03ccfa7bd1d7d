//! Goal: every agent has a branch of its own, begun at what another is, and nothing of it is lost.
//!
//! A fork has all that its origin has, what git has staged and in progress included, and from then on they
//! do not see each other. Snapshots and removed branches come back as they were. All of it holds when
//! the daemon is killed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agentfs_tests::fixture::plain_environment;
use agentfs_tests::fleet::{assert_sound, change, fork, mounted, status};
use agentfs_tests::{TestStore, campaign, fuse_available, git, git_command, git_fails, tree};

/// Names, inode numbers and times below `dir`, but for the `.git` file.
fn stats(dir: &Path) -> Vec<(PathBuf, u64, u64, i64, i64)> {
    let mut found = Vec::new();
    let mut pending = vec![dir.to_owned()];
    while let Some(at) = pending.pop() {
        for entry in fs::read_dir(&at).unwrap() {
            let path = entry.unwrap().path();
            let stat = path.symlink_metadata().unwrap();
            if stat.is_dir() {
                pending.push(path.clone());
            }
            let name = path.strip_prefix(dir).unwrap().to_owned();
            if name != Path::new(".git") {
                found.push((name, stat.ino(), stat.len(), stat.mtime(), stat.mtime_nsec()));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn a_fork_has_what_its_origin_has_and_is_alone_from_then_on() {
    if !fuse_available() {
        return;
    }
    let (store, main) = mounted();
    change(&main);
    let before = (status(&main), stats(&main));
    let side = fork(&store, "side", "main");
    tree::assert_same(&main, &side);
    assert_eq!((status(&side), stats(&side)), before);
    assert_eq!((status(&main), stats(&main)), before);
    assert_eq!(git(&side, &["symbolic-ref", "HEAD"]), "refs/heads/side");
    assert_eq!(git(&main, &["diff", "--cached"]), git(&side, &["diff", "--cached"]));

    fs::write(side.join("untracked"), "of the side\n").unwrap();
    fs::write(main.join("dir/two"), "of main\n").unwrap();
    fs::remove_file(main.join("build/out")).unwrap();
    fs::write(side.join("new"), "new\n").unwrap();
    assert_eq!(fs::read_to_string(main.join("untracked")).unwrap(), "untracked\n");
    assert_eq!(fs::read_to_string(side.join("dir/two")).unwrap(), "2\n");
    assert_eq!(fs::read(side.join("build/out")).unwrap(), vec![7; 300_000]);
    assert!(!main.join("new").exists());

    git(&side, &["commit", "-qam", "of the side"]);
    assert_eq!(git(&main, &["log", "-1", "--format=%s", "side"]), "of the side");
    assert_eq!(git(&main, &["log", "-1", "--format=%s"]), "first");

    // What is committed is where it is from then on, whatever it began with.
    let commit = git(&side, &["rev-parse", "HEAD"]);
    let made = store.json(&["branch", "create", "next", "--from", "side"]);
    assert_eq!(made["commit"], commit, "{made}");
    let listed = store.ok(&["branch", "list"]);
    for name in ["side", "next"] {
        let line = listed.lines().find(|line| line.contains(&format!("@{name} "))).unwrap();
        assert!(line.contains(&commit[..12]), "{line}");
    }
    let shown = store.json(&["status", &side.display().to_string()]);
    assert_eq!(shown["worktrees"][0]["commit"], commit, "{shown}");
    assert_sound(&store);
}

#[test]
fn forks_of_forks_outlive_their_origins_and_their_daemon() {
    if !fuse_available() {
        return;
    }
    let (store, main) = mounted();
    change(&main);
    let mut expected = Vec::new();
    let mut from = "main".to_owned();
    for depth in 0..4 {
        let name = format!("depth{depth}");
        let dir = fork(&store, &name, &from);
        fs::write(dir.join(format!("at{depth}")), vec![depth; 9000]).unwrap();
        fs::write(dir.join("untracked"), name.as_bytes()).unwrap();
        expected.push((dir.clone(), stats(&dir), status(&dir)));
        from = name;
    }
    // One that is not mounted, of what is not drained.
    store.ok(&["branch", "create", "later", "--from", &from]);
    let twin = expected.last().unwrap().clone();
    store.kill_daemon();
    store.ok(&["status"]);
    for (dir, stats_before, status_before) in &expected {
        assert_eq!(&stats(dir), stats_before);
        assert_eq!(&status(dir), status_before);
    }
    store.ok(&["umount", &main.display().to_string()]);
    store.ok(&["umount", &expected[0].0.display().to_string()]);
    let later = store.path("later");
    store.ok(&["mount", "later", &later.display().to_string()]);
    assert_eq!((stats(&later), status(&later)), (twin.1, twin.2));
    store.ok(&["branch", "delete", "depth0"]);
    for (dir, stats_before, _) in &expected[1..] {
        assert_eq!(&stats(dir), stats_before);
    }
    assert_sound(&store);
}

#[test]
fn a_merge_and_a_rebase_in_progress_go_on_in_the_fork() {
    if !fuse_available() {
        return;
    }
    let (store, main) = mounted();
    git(&main, &["checkout", "-qb", "other"]);
    fs::write(main.join("three"), "of other\n").unwrap();
    git(&main, &["commit", "-qam", "other"]);
    git(&main, &["checkout", "-q", "main"]);
    fs::write(main.join("three"), "of main\n").unwrap();
    git(&main, &["commit", "-qam", "main"]);
    let tip = git(&main, &["rev-parse", "main"]);
    git_fails(&main, &["merge", "other"]);
    let side = fork(&store, "merging", "main");
    assert_eq!(status(&side), status(&main));
    fs::write(side.join("three"), "both\n").unwrap();
    git(&side, &["commit", "-qam", "merged"]);
    assert_eq!(git(&side, &["rev-list", "--parents", "-1", "merging"]).split(' ').count(), 3);
    assert!(status(&main).contains("UU three"), "{}", status(&main));
    git(&main, &["merge", "--abort"]);

    git_fails(&main, &["rebase", "other"]);
    let side = fork(&store, "rebasing", "main");
    assert_eq!(status(&side), status(&main));
    fs::write(side.join("three"), "rebased\n").unwrap();
    git(&side, &["add", "three"]);
    git(&side, &["-c", "core.editor=true", "rebase", "--continue"]);
    assert_eq!(git(&side, &["symbolic-ref", "HEAD"]), "refs/heads/rebasing");
    let parent = git(&side, &["rev-parse", "rebasing^"]);
    assert_eq!(parent, git(&side, &["rev-parse", "other"]));
    // Nothing of it happened to the origin.
    assert_eq!(git(&main, &["rev-parse", "main"]), tip);
    git(&main, &["rebase", "--abort"]);
    assert_eq!(git(&main, &["rev-parse", "HEAD"]), tip);
}

#[test]
fn a_snapshot_is_a_moment_for_ever() {
    if !fuse_available() {
        return;
    }
    let (store, main) = mounted();
    change(&main);
    let native = tree::read(&main);
    let moment = (status(&main), stats(&main));
    let made = store.json(&["snapshot", "create", "main", "-m", "before the worst"]);
    let id = made["id"].as_str().unwrap().to_owned();
    git(&main, &["commit", "-qam", "after it"]);
    clear(&main);
    git(&main, &["add", "-A"]);
    store.kill_daemon();
    let back = fork(&store, "back", &id[..8]);
    assert_eq!(tree::read(&back), native);
    assert_eq!((status(&back), stats(&back)), moment);
    assert_sound(&store);
    let state = store.home().join("snapshots").join(&id);
    fs::rename(state.join("HEAD"), state.join("away")).unwrap();
    let damaged = store.run(&["fsck"]);
    assert_eq!(damaged.code, 5);
    assert!(damaged.stdout.contains("HEAD: it is missing"), "{}", damaged.stdout);
    fs::rename(state.join("away"), state.join("HEAD")).unwrap();
    let listed = store.ok(&["snapshot", "list", "main"]);
    assert!(listed.contains(&id) && listed.contains("before the worst"), "{listed}");
    store.fails(3, &["snapshot", "delete", "s0000"]);
    store.ok(&["snapshot", "delete", &id]);
    assert_eq!(store.json(&["snapshot", "list"])["snapshots"].as_array().unwrap().len(), 0);
    assert_eq!(tree::read(&back), native);
    assert_sound(&store);
    let refs = git(&back, &["for-each-ref", "refs/agentfs"]);
    assert_eq!(refs, "", "the reference that kept its commit is gone");
}

/// Removes everything but the `.git` file.
fn clear(dir: &Path) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        match entry.path() {
            path if path.ends_with(".git") => {}
            path if path.is_dir() => fs::remove_dir_all(path).unwrap(),
            path => fs::remove_file(path).unwrap(),
        }
    }
}

#[test]
fn a_branch_becomes_what_a_snapshot_is() {
    if !fuse_available() {
        return;
    }
    let (store, main) = mounted();
    change(&main);
    let state = || (tree::read(&main), stats(&main), status(&main), git(&main, &["log", "--all"]));
    let moment = state();
    let id = store.json(&["snapshot", "create", "main"])["id"].as_str().unwrap().to_owned();
    git(&main, &["commit", "-qam", "later"]);
    clear(&main);
    fs::create_dir(main.join("three")).unwrap();
    fs::write(main.join("three/other"), "other\n").unwrap();
    git(&main, &["add", "-A"]);
    let (later_tree, later_status) = (tree::read(&main), status(&main));
    let restored = store.json(&["snapshot", "restore", &id]);
    let (tree_now, stats_now, status_now, _) = state();
    assert_eq!(
        (tree_now, stats_now, status_now),
        (moment.0.clone(), moment.1.clone(), moment.2.clone())
    );
    assert_eq!(git(&main, &["log", "-1", "--format=%s"]), "first");
    assert_sound(&store);
    let before = restored["before"].as_str().unwrap().to_owned();
    // There and back, with a daemon that is killed after each.
    for _ in 0..2 {
        store.ok(&["snapshot", "restore", &before]);
        assert_eq!((tree::read(&main), status(&main)), (later_tree.clone(), later_status.clone()));
        assert_eq!(git(&main, &["log", "-1", "--format=%s"]), "later");
        store.kill_daemon();
        store.ok(&["snapshot", "restore", &id]);
        store.kill_daemon();
        store.ok(&["status"]);
        assert_eq!((tree::read(&main), status(&main)), (moment.0.clone(), moment.2.clone()));
    }
    // What is written afterwards is no part of the snapshot.
    fs::write(main.join("untracked"), "after\n").unwrap();
    let fork = fork(&store, "fork", &id);
    assert_eq!(tree::read(&fork), moment.0);
    assert_sound(&store);
}

#[test]
fn what_a_command_did_can_be_undone() {
    if !fuse_available() {
        return;
    }
    let (store, main) = mounted();
    store.fails(3, &["undo", "main"]);
    change(&main);
    let before = (tree::read(&main), status(&main), stats(&main));
    store.ok(&["exec", "main", "--", "sh", "-c", "rm -rf ./* && git add -A && echo gone > three"]);
    assert_ne!(tree::read(&main), before.0);
    store.ok(&["undo", "main"]);
    assert_eq!((tree::read(&main), status(&main), stats(&main)), before);
    store.ok(&["undo", "main"]);
    assert_eq!(fs::read_to_string(main.join("three")).unwrap(), "gone\n", "that is undone, too");
    store.ok(&["undo", "main"]);
    fs::remove_file(main.join("untracked")).unwrap();
    store.ok(&["undo", "main"]);
    assert_ne!(tree::read(&main).get(Path::new("untracked")), None);
    let reasons: Vec<_> = store.json(&["snapshot", "list"])["snapshots"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["reason"].as_str().unwrap().to_owned())
        .collect();
    // When it began, when it had ended, before it was undone.
    let first = ["exec", "exec", "before"].map(str::to_owned);
    assert!(reasons.starts_with(&first), "{reasons:?}");
    assert_sound(&store);
}

/// Also where nothing was kept before, and what it made is kept when it has ended.
#[test]
fn what_the_first_command_did_can_be_undone() {
    if !fuse_available() {
        return;
    }
    let (store, main) = mounted();
    let before = (tree::read(&main), status(&main));
    for number in 0..2 {
        let made = main.join(format!("made-{number}"));
        store.ok(&["exec", "main", "--", "touch", &made.display().to_string()]);
        let after = tree::read(&main);
        store.ok(&["undo", "main"]);
        assert_eq!((tree::read(&main), status(&main)), before);
        store.ok(&["undo", "main"]);
        assert_eq!(tree::read(&main), after);
        store.ok(&["undo", "main"]);
    }
    // One that changes nothing keeps nothing, once its beginning is the newest that is kept.
    let kept = || store.json(&["snapshot", "list"])["snapshots"].as_array().unwrap().len();
    store.ok(&["exec", "main", "--", "true"]);
    let known = kept();
    store.ok(&["exec", "main", "--", "true"]);
    assert_eq!(kept(), known);
    assert_sound(&store);
}

/// Branches and snapshots are compared and exported as they are, without a trace in what they are.
#[test]
fn what_branches_and_snapshots_are_is_compared_and_exported() {
    if !fuse_available() {
        return;
    }
    let (store, main) = mounted();
    let id = store.json(&["snapshot", "create", "main"])["id"].as_str().unwrap().to_owned();
    change(&main);
    let before = (status(&main), stats(&main));
    let changed = "M\tdir/one\nD\tthree\nA\tuntracked\n";
    assert_eq!(store.ok(&["diff", "main", "--name-status"]), changed);
    assert_eq!(store.ok(&["diff", "main~0", "main", "--name-status"]), changed);
    assert_eq!(store.ok(&["diff", &id, "main", "--name-status"]), changed);
    assert_eq!(store.ok(&["diff", "main", "main"]), "");
    let patch = store.ok(&["diff", "main"]);
    assert!(patch.contains("+staged, and changed again\n"), "{patch}");
    let listed = store.json(&["diff", "main"]);
    assert_eq!(listed["changes"][0]["path"], "dir/one", "{listed}");
    store.fails(3, &["diff", "main", "nowhere"]);
    let objects = || git(&main, &["count-objects"]);
    let count = objects();
    store.ok(&["diff", "main", "--stat"]);
    assert_eq!(objects(), count, "nothing of it is kept");

    for user in [["user.name", "A"], ["user.email", "a@localhost"]] {
        git(&main, &["config", user[0], user[1]]);
    }
    store.ok(&["export", "main", "--ref", "refs/heads/out", "-m", "as it is"]);
    let shown = git(&main, &["show", "--name-status", "--format=%s %P", "out"]);
    let head = git(&main, &["rev-parse", "HEAD"]);
    assert_eq!(shown, format!("as it is {head}\n\n{}", changed.trim_end()));
    assert_eq!(store.ok(&["diff", "out", "main"]), "");
    store.fails(4, &["export", "main", "--ref", "refs/heads/out"]);
    store.fails(4, &["export", "main", "--ref", "refs/heads/main", "--force"]);
    store.fails(2, &["export", "main", "--ref", "out"]);
    store.ok(&["export", &id, "--ref", "refs/heads/out", "--force"]);
    assert_eq!(git(&main, &["rev-parse", "out"]), head, "the snapshot is its commit");
    assert_eq!((status(&main), stats(&main)), before);
    // An unmounted one, too, and nothing stays mounted.
    store.ok(&["umount", &main.display().to_string()]);
    assert_eq!(store.ok(&["diff", "main", "--name-status"]), changed);
    assert_eq!(store.mounts_below(store.home()).len(), 0);
    assert_sound(&store);
}

/// What a branch was made again does not depend on the snapshot that it was.
#[test]
fn a_snapshot_that_is_restored_unchanged_keeps_what_was_staged_in_it() {
    if !fuse_available() {
        return;
    }
    let (store, main) = mounted();
    let dir = main.display().to_string();
    fs::write(main.join("dir/one"), "staged\n").unwrap();
    git(&main, &["add", "dir/one"]);
    let staged = git(&main, &["diff", "--cached"]);
    let moment = (tree::read(&main), status(&main));
    let git_dir = PathBuf::from(git(&main, &["rev-parse", "--absolute-git-dir"]));
    let id = store.json(&["snapshot", "create", "main"])["id"].as_str().unwrap().to_owned();
    // Nothing has changed, and git has not looked: its index and that of the worktree are one file.
    store.ok(&["snapshot", "restore", &id]);
    assert!(!git_dir.join("index.agentfs-new").exists());
    git(&main, &["commit", "-qm", "later"]);
    for to in ["HEAD~1", "main"] {
        store.ok(&["switch", &dir, to]);
    }
    store.ok(&["snapshot", "restore", &id]);
    assert_eq!((tree::read(&main), status(&main)), moment);
    assert_eq!(git(&main, &["diff", "--cached"]), staged);
    assert_sound(&store);
}

#[test]
fn what_was_restored_stays_when_its_snapshot_goes_and_the_daemon_was_killed() {
    if !fuse_available() {
        return;
    }
    let (store, main) = mounted();
    let snapshot = || {
        let made = store.json(&["snapshot", "create", "main"]);
        made["id"].as_str().unwrap().to_owned()
    };
    fs::write(main.join("early"), "early\n").unwrap();
    let first = snapshot();
    change(&main);
    let second = snapshot();
    let then = tree::read(&main);
    store.ok(&["snapshot", "restore", &first]);
    store.ok(&["umount", &main.display().to_string()]);
    // The branch lies on the first by now: what the second has is below nothing else.
    store.ok(&["snapshot", "restore", &second]);
    store.kill_daemon();
    let listed = store.json(&["snapshot", "list"])["snapshots"].clone();
    for kept in listed.as_array().unwrap() {
        store.ok(&["snapshot", "delete", kept["id"].as_str().unwrap()]);
    }
    store.ok(&["gc"]);
    store.ok(&["mount", "main", &main.display().to_string()]);
    assert_eq!(tree::read(&main), then);
    assert_sound(&store);
}

#[test]
fn a_removed_branch_comes_back() {
    if !fuse_available() {
        return;
    }
    let (store, main) = mounted();
    let side = fork(&store, "side", "main");
    change(&side);
    git(&side, &["commit", "-qm", "only here"]);
    let commit = git(&side, &["rev-parse", "HEAD"]);
    let before = (status(&side), stats(&side));
    let text = side.display().to_string();
    store.fails(1, &["branch", "delete", "side"]);
    store.ok(&["umount", &text]);
    let said = store.ok(&["branch", "delete", "side"]);
    assert!(said.contains("branch undelete source@side"), "{said}");
    git_fails(&main, &["rev-parse", "--verify", "side"]);
    assert!(!store.ok(&["branch", "list"]).contains("@side"));
    git(&main, &["gc", "-q", "--prune=now"]);
    store.fails(4, &["branch", "delete", "main"]);
    store.ok(&["daemon", "stop"]);
    store.ok(&["branch", "undelete", "side", "--mount", &text]);
    assert_eq!((status(&side), stats(&side)), before);
    assert_eq!(git(&side, &["rev-parse", "side"]), commit);
    assert_eq!(store.json(&["snapshot", "list"])["snapshots"].as_array().unwrap().len(), 0);
    store.fails(3, &["branch", "undelete", "side"]);
    // One that is nothing but a commit, too.
    store.ok(&["branch", "create", "plain", "--from", "side~1"]);
    store.ok(&["branch", "delete", "plain"]);
    store.ok(&["branch", "undelete", "plain"]);
    assert_eq!(git(&main, &["rev-parse", "plain"]), git(&main, &["rev-parse", "side~1"]));
    store.fails(4, &["branch", "create", "plain", "--from", "main"]);
    store.fails(3, &["branch", "create", "none", "--from", "nowhere"]);
    git_fails(&main, &["rev-parse", "--verify", "none"]);
    assert_sound(&store);
}

#[test]
fn worktrees_are_added_listed_and_removed_in_the_words_of_git() {
    if !fuse_available() {
        return;
    }
    let (store, main) = mounted();
    let agentfs = |args: &[&str]| {
        let mut command = store.command(args);
        command.current_dir(&main);
        store.finish(command)
    };
    let text = |name: &str| store.path_text(name);
    fs::write(main.join("dir/one"), "not committed\n").unwrap();
    assert_eq!(agentfs(&["worktree", "add", &text("topic")]).code, 0);
    let topic = store.path("topic");
    assert_eq!(git(&topic, &["symbolic-ref", "HEAD"]), "refs/heads/topic");
    assert_eq!(status(&topic), "", "it begins with what is committed");
    assert_eq!(agentfs(&["worktree", "add", "-b", "fix", &text("wt"), "HEAD"]).code, 0);
    assert_eq!(git(&store.path("wt"), &["symbolic-ref", "HEAD"]), "refs/heads/fix");
    assert_eq!(agentfs(&["worktree", "add", "--detach", &text("loose")]).code, 0);
    git_fails(&store.path("loose"), &["symbolic-ref", "--quiet", "HEAD"]);
    // What git refuses is refused, and leaves nothing.
    let twice = agentfs(&["worktree", "add", &text("again"), "fix"]);
    assert_eq!(twice.code, 4, "{}", twice.stderr);
    assert!(!store.path("again").exists());
    assert_eq!(agentfs(&["worktree", "add", "-b", "fix", &text("again")]).code, 4);
    let list = agentfs(&["worktree", "list", "--porcelain"]).stdout;
    for (dir, branch) in [("main", "main"), ("topic", "topic"), ("wt", "fix")] {
        let lines = format!("worktree {}\n", text(dir));
        let at = list.find(&lines).unwrap_or_else(|| panic!("{list}"));
        let entry = list[at..].split("\n\n").next().unwrap();
        assert!(entry.contains(&format!("branch refs/heads/{branch}")), "{entry}");
    }
    fs::write(topic.join("untracked"), "x").unwrap();
    assert_eq!(agentfs(&["worktree", "remove", &text("topic")]).code, 4);
    assert_eq!(fs::read_to_string(topic.join("untracked")).unwrap(), "x");
    let removed = agentfs(&["worktree", "remove", "--force", &text("topic"), "--json"]);
    let kept = removed.events().pop().unwrap()["snapshot"].as_str().unwrap().to_owned();
    assert!(!topic.exists());
    git(&main, &["rev-parse", "--verify", "topic"]);
    assert_eq!(agentfs(&["worktree", "add", &text("topic"), "topic"]).code, 0);
    assert_eq!(status(&topic), "", "it is what git's branch is");
    let back = fork(&store, "rescued", &kept);
    assert_eq!(fs::read_to_string(back.join("untracked")).unwrap(), "x");
    assert_eq!(agentfs(&["worktree", "remove", &text("wt")]).code, 0);
    assert_sound(&store);
}

/// What an agent does: edits, a build step, a commit, and a rebase onto what was committed meanwhile. With
/// fixed times, the commits are the same wherever it is done.
const SESSION: &str = r#"
set -e
export GIT_AUTHOR_DATE='2026-01-02T03:04:05Z' GIT_COMMITTER_DATE='2026-01-02T03:04:05Z'
mkdir -p "agents/$1" build
printf 'line %s\\n' "$1" >> dir/one
seq "$1" "$((1000 + $1))" > "agents/$1/work"
sed 's/^/built /' "agents/$1/work" > build/out
cp build/out "agents/$1/kept"
mv "agents/$1/work" "agents/$1/moved"
git add -A
git commit -qm "agent $1, first"
rm "agents/$1/kept"
echo again >> "agents/$1/moved"
git commit -qam "agent $1, second"
git rebase -q upstream
git log --format='%H %T %s' -4
git status --porcelain --ignored
"#;

fn session(command: &mut Command, dir: &Path, agent: u64) -> Child {
    plain_environment(command);
    command.args(["-c", SESSION, "session", &agent.to_string()]).current_dir(dir);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn output(child: Child) -> String {
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// Says how git fares when it is asked for as many worktrees at once.
#[expect(clippy::print_stderr, reason = "figures for whoever asks for them")]
fn beside_git(store: &TestStore, plain: &Path, agents: u64, ours: Duration) {
    let start = Instant::now();
    let added: Vec<_> = (0..agents)
        .map(|agent| {
            let (name, dir) = (format!("git{agent}"), store.path_text(&format!("g{agent}")));
            let mut command = git_command(plain, &["worktree", "add", "-b", &name, &dir]);
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    let ended = added.into_iter().map(|mut child| child.wait().unwrap());
    let succeeded = ended.filter(std::process::ExitStatus::success).count();
    let git = start.elapsed();
    eprintln!("{agents} of {agents} worktrees in {ours:.2?}; of git {succeeded} in {git:.2?}");
}

/// A hundred agents at once get a worktree each, work side by side, and end where each of them would have
/// ended alone on a plain checkout.
#[test]
fn a_hundred_agents_at_once_do_what_each_would_do_alone() {
    if !fuse_available() {
        return;
    }
    let agents = 100;
    let (store, main) = mounted();
    git(&main, &["branch", "start"]);
    fs::write(main.join("three"), "upstream\n").unwrap();
    git(&main, &["commit", "-qam", "upstream"]);
    git(&main, &["branch", "upstream"]);
    let plain = store.path("plain");
    let common = git(&main, &["rev-parse", "--path-format=absolute", "--git-common-dir"]);
    git(&store.path(""), &["clone", "-q", &common, &plain.display().to_string()]);
    git(&plain, &["branch", "-q", "upstream", "origin/upstream"]);
    let expected: Vec<_> = (0..agents)
        .map(|agent| {
            git(&plain, &["checkout", "-q", "-B", "work", "origin/start"]);
            git(&plain, &["clean", "-qfdx"]);
            let said = output(session(&mut Command::new("sh"), &plain, agent));
            (said, tree::read(&plain))
        })
        .collect();

    let start = Instant::now();
    let added: Vec<_> = (0..agents)
        .map(|agent| {
            let (name, dir) = (format!("agent{agent}"), store.path_text(&format!("a{agent}")));
            let mut command = store.command(&["worktree", "add", "-b", &name, &dir, "start"]);
            command.current_dir(&main).stdout(Stdio::piped()).stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    added.into_iter().for_each(|child| drop(output(child)));
    beside_git(&store, &plain, agents, start.elapsed());
    let sessions: Vec<_> = (0..agents)
        .map(|agent| {
            let dir = store.path(&format!("a{agent}"));
            session(&mut store.program("sh"), &dir, agent)
        })
        .collect();
    for (agent, child) in sessions.into_iter().enumerate() {
        let said = output(child);
        let (alone, files) = &expected[agent];
        assert_eq!(&said, alone, "agent {agent}");
        assert_eq!(&tree::read(&store.path(&format!("a{agent}"))), files, "agent {agent}");
        let tip = git(&main, &["rev-parse", &format!("agent{agent}")]);
        assert!(said.starts_with(&tip), "agent {agent}: {said}");
    }
    assert_eq!(status(&main), "");
    assert_sound(&store);
}

/// The daemon is killed at moments all over forks, snapshots and removals: each of them has happened or
/// has not.
#[test]
fn a_killed_daemon_leaves_forks_and_snapshots_before_or_after() {
    if !fuse_available() {
        return;
    }
    let rounds = campaign::rounds(15);
    let (store, main) = mounted();
    fs::write(main.join("untracked"), "at first\n").unwrap();
    let first = store.json(&["snapshot", "create", "main"])["id"].as_str().unwrap().to_owned();
    let at_first = (status(&main), tree::read(&main));
    change(&main);
    for round in 0_u64..rounds {
        fs::write(main.join("untracked"), format!("round {round}\n")).unwrap();
        let expected = (status(&main), stats(&main));
        let name = format!("fork{round}");
        let dir = store.path(&name);
        let text = dir.display().to_string();
        let args: &[&[&str]] = &[
            &["branch", "create", &name, "--from", "main", "--mount", &text],
            &["branch", "create", &name, "--from", "main"],
            &["snapshot", "create", "main", "-m", &name],
            &["snapshot", "restore", &first],
            &["branch", "delete", &name],
        ];
        let kind = round % 5;
        if kind == 4 {
            store.ok(&["branch", "create", &name, "--from", "main"]);
        }
        let args = args[kind as usize];
        let after = Duration::from_micros(500 + round * 7919 % 12_000);
        let succeeded = store.kill_daemon_during(args, after);
        store.ok(&["status"]);
        assert_sound(&store);
        if kind == 3 {
            let now = (status(&main), tree::read(&main));
            if now == at_first {
                change(&main);
            } else {
                assert!(!succeeded, "round {round}");
                assert_eq!((status(&main), stats(&main)), expected, "round {round}");
            }
            continue;
        }
        assert_eq!((status(&main), stats(&main)), expected, "round {round}");
        if kind == 2 {
            let listed = store.ok(&["snapshot", "list"]);
            assert!(listed.contains(&name) || !succeeded, "round {round}: {listed}");
            continue;
        }
        let listed = store.ok(&["branch", "list"]);
        let there = listed.contains(&format!("@{name} "));
        if kind == 4 {
            assert!(!there || !succeeded, "round {round}: {listed}");
            if !there {
                store.ok(&["branch", "undelete", &name]);
            }
        }
        let there = there || kind == 4;
        assert!(there || !succeeded, "round {round}: {listed}");
        let mut look = git_command(&main, &["rev-parse", "--verify", "-q", &name]);
        let git_has = look.output().unwrap().status.success();
        assert_eq!(git_has, there, "round {round}: {}", store.log());
        if !there {
            continue;
        }
        if !dir.join("dir").exists() {
            store.ok(&["mount", &name, &text]);
        }
        assert_eq!((status(&dir), stats(&dir)), expected, "round {round}");
        store.ok(&["umount", &text]);
        store.ok(&["branch", "delete", &name]);
    }
}
