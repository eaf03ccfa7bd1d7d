//! Goal: git is told what has changed in a worktree, looks at nothing else, and says what it says when it
//! looks at everything.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use agentfs_tests::campaign::{number_of, rounds};
use agentfs_tests::fixture::{Builder, git_command};
use agentfs_tests::fleet::assert_sound;
use agentfs_tests::{Connection, TestStore, Twins, fuse_available, git, mounts};
use serde_json::json;

/// From how many entries on a clone has git ask: `ENTRIES_MIN` of `cli/src/monitor.rs`.
const ENTRIES_MIN: usize = 4_000;
/// How long a test may take.
const LIMIT: Duration = Duration::from_secs(600);
/// The paths of the answer that is everything.
const EVERYTHING: &str = "/";

/// Numbers that look random, the same for the same seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }

    fn one_of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Has git ask in all worktrees of a repository, as the manual says.
fn ask(store: &TestStore, dir: &Path) {
    let command = store.command(&[]);
    let (home, program) = (text(store.home()), Path::new(command.get_program()).to_owned());
    let asked = format!("AGENTFS_HOME='{home}' '{}' fsmonitor", program.display());
    git(dir, &["config", "core.fsmonitor", &asked]);
}

/// A small repository that is mounted, where git asks.
fn small() -> Twins {
    let twins = Twins::small();
    ask(&twins.store, &twins.mounted);
    git(&twins.mounted, &["status", "--porcelain"]);
    twins
}

/// What is said to whoever has `token` in `dir`: the next one, and the paths.
fn asked(store: &TestStore, dir: &Path, token: &str) -> (String, String) {
    let said = store.command(&["fsmonitor", "2", token]).current_dir(dir).output().unwrap();
    assert!(said.status.success(), "{said:?}");
    let text = String::from_utf8(said.stdout).unwrap();
    let (token, paths) = text.split_once('\0').unwrap();
    (token.to_owned(), paths.to_owned())
}

/// The token of now.
fn token(store: &TestStore, dir: &Path) -> String {
    let (token, paths) = asked(store, dir, "");
    assert_eq!(paths, EVERYTHING);
    assert_ne!(asked(store, dir, &token).1, EVERYTHING, "{token}");
    token
}

/// The tracked paths that git looks at.
fn looked_at(dir: &Path) -> Vec<String> {
    let listed = git(dir, &["ls-files", "-f"]);
    assert!(listed.lines().count() > 20, "{listed}");
    listed.lines().filter_map(|line| line.strip_prefix("H ")).map(str::to_owned).collect()
}

/// Everything that `git status` says when it asks, and when it looks at everything. What it has found by asking is in
/// the index afterwards.
fn both(dir: &Path) -> [Vec<String>; 2] {
    let forms: [&[&str]; 4] = [
        &["status", "--porcelain=v2", "--branch"],
        &["status", "--porcelain=v2", "--untracked-files=all", "--ignored"],
        &["diff", "--name-status"],
        &["status", "--porcelain=v2"],
    ];
    let look = ["-c", "core.fsmonitor=", "-c", "core.untrackedCache=false", "--no-optional-locks"];
    let told = forms.iter().map(|form| git(dir, form)).collect();
    let seen = forms.iter().map(|form| git(dir, &[&look[..], form].concat())).collect();
    [told, seen]
}

#[track_caller]
fn assert_told(dir: &Path, what: &str) {
    let [told, seen] = both(dir);
    assert_eq!(told, seen, "{what} in {}", dir.display());
}

#[test]
fn a_clone_of_a_tree_that_is_large_enough_has_git_ask() {
    if !fuse_available() {
        return;
    }
    for (entries, asks) in [(ENTRIES_MIN - 1, false), (ENTRIES_MIN, true)] {
        let store = TestStore::with_limit(LIMIT);
        let source = Builder::new(&store.path("source"));
        for number in 0..entries {
            source.file(number.to_string(), "x\n");
        }
        git(source.dir(), &["add", "--all"]);
        git(source.dir(), &["commit", "--quiet", "--allow-empty", "--message=all"]);
        let dir = store.clone(source.dir(), "mounted");
        let command = git_command(&dir, &["config", "core.fsmonitor"]).output().unwrap();
        assert_eq!(command.status.success(), asks, "{entries}");
        // As it was made, and as git writes it.
        let marked =
            git(&dir, &["ls-files", "-f"]).lines().filter(|one| one.starts_with('h')).count();
        assert_eq!(marked, if asks { entries } else { 0 });
        assert_told(&dir, "a new clone");
    }
}

/// A clone that has git ask, and what it asks.
fn asking(store: &TestStore) -> (PathBuf, String) {
    let source = Builder::new(&store.path("source"));
    for number in 0..ENTRIES_MIN {
        source.file(number.to_string(), "x\n");
    }
    source.commit("all");
    let dir = store.clone(source.dir(), "mounted");
    let command = git(&dir, &["config", "core.fsmonitor"]);
    (dir, command)
}

/// What git says of a plain directory in which it finds one file that is new, and nothing else.
#[track_caller]
fn assert_quiet(dir: &Path) {
    fs::write(dir.join("new"), "new").unwrap();
    let said = git_command(dir, &["status", "--porcelain"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&said.stdout), "?? new\n");
    assert_eq!(String::from_utf8_lossy(&said.stderr), "");
}

#[test]
fn what_is_not_of_this_store_is_not_asked_for() {
    if !fuse_available() {
        return;
    }
    let mut store = TestStore::with_limit(LIMIT);
    let (dir, command) = asking(&store);
    // One that git has made beside ours has the same configuration.
    let beside = store.path("beside");
    git(&dir, &["worktree", "add", "--quiet", &beside.display().to_string()]);
    assert_quiet(&beside);

    let plain = store.path("plain");
    store.ok(&["materialize", "main", &plain.display().to_string()]);
    assert!(!git_command(&plain, &["config", "core.fsmonitor"]).status().unwrap().success());
    assert_quiet(&plain);

    let (backup, second) = (store.path("backup"), store.path("second"));
    store.ok(&["backup", &backup.display().to_string()]);
    store.ok(&["daemon", "stop"]);
    let first = store.home().display().to_string();
    store.set_home(second.clone());
    store.ok(&["restore", &backup.display().to_string()]);
    let dir = store.path("restored");
    store.ok(&["mount", "main", &dir.display().to_string()]);
    let asks = git(&dir, &["config", "core.fsmonitor"]);
    assert_eq!(asks, command.replace(&first, &second.display().to_string()));
    assert_told(&dir, "a restored worktree");
}

#[test]
fn what_is_not_changed_is_not_looked_at() {
    if !fuse_available() {
        return;
    }
    let twins = small();
    let dir = &twins.mounted;
    assert_eq!(looked_at(dir), [""; 0]);
    fs::write(dir.join("dir1/file1"), "other\n").unwrap();
    fs::write(dir.join("dir2/new"), "new\n").unwrap();
    assert_eq!(git(dir, &["status", "--porcelain"]), " M dir1/file1\n?? dir2/new");
    assert_eq!(looked_at(dir), ["dir1/file1"]);
    git(dir, &["add", "--all"]);
    git(dir, &["commit", "--quiet", "--message=changed"]);
    assert_eq!(git(dir, &["status", "--porcelain"]), "");
    fs::remove_file(dir.join("dir2/new")).unwrap();
    assert_eq!(git(dir, &["status", "--porcelain"]), " D dir2/new");

    // Nor in a worktree that is made later.
    let other = twins.store.path("other");
    let mut add = twins.store.command(&["worktree", "add", &text(&other), "-b", "other", "main~1"]);
    add.current_dir(dir);
    assert_eq!(twins.store.finish(add).code, 0);
    assert_eq!(looked_at(&other), [""; 0]);
    assert_eq!(git(&other, &["status", "--porcelain"]), "");
    assert_eq!(looked_at(&other), [""; 0]);
}

#[test]
fn what_was_told_is_believed_as_long_as_it_holds() {
    if !fuse_available() {
        return;
    }
    let twins = small();
    let (store, dir) = (&twins.store, &twins.mounted);
    fs::write(dir.join("dir2/new"), "new\n").unwrap();
    let first = token(store, dir);
    let before = asked(store, dir, &first);
    assert!(before.1.contains("dir2/new\0"), "{before:?}");

    // It outlives a daemon that stops, and a worktree that is not mounted meanwhile.
    store.ok(&["daemon", "stop"]);
    store.ok(&["status"]);
    assert_eq!(asked(store, dir, &first), before);
    store.ok(&["umount", &text(dir)]);
    store.ok(&["mount", "main", &text(dir)]);
    assert_eq!(asked(store, dir, &first), before);

    // What is another state of the files, or was never on disk, ends it.
    let ends = |what: &str, act: &dyn Fn()| {
        let token = token(store, dir);
        act();
        let (next, paths) = asked(store, dir, &token);
        assert_eq!(paths, EVERYTHING, "{what}");
        assert_ne!(next, token, "{what}");
        assert_told(dir, what);
    };
    ends("a kill", &|| {
        store.kill_daemon();
        store.ok(&["status"]);
    });
    let kept = store.json(&["snapshot", "create", "main"])["id"].as_str().unwrap().to_owned();
    fs::write(dir.join("dir2/new"), "newer\n").unwrap();
    assert_told(dir, "a change");
    ends("restoring", &|| drop(store.ok(&["snapshot", "restore", &kept])));
    fs::write(dir.join("dir2/newer"), "newer\n").unwrap();
    assert_told(dir, "a change");
    ends("taking back", &|| drop(store.ok(&["undo", "main"])));
    ends("switching", &|| drop(store.ok(&["switch", &text(dir), "HEAD~1"])));
    ends("a directory that moves", &|| {
        fs::rename(dir.join("dir0"), dir.join("moved")).unwrap();
    });

    // Nobody else has it.
    let fork = store.path("fork");
    store.ok(&["branch", "create", "fork", "--from", "main", "--mount", &text(&fork)]);
    assert_eq!(asked(store, &fork, &token(store, dir)).1, EVERYTHING);
    assert_told(&fork, "a fork");
}

/// What a file looks like to whoever may do with what the kernel remembers.
fn seen(file: &Path) -> Option<(u64, u64, i64, i64)> {
    let stat = fs::symlink_metadata(file).ok()?;
    Some((stat.ino(), stat.len(), stat.ctime(), stat.ctime_nsec()))
}

/// Asks for the token over and over while `act` runs, each time looking at `file` after it, as git does: whether what was
/// seen with a token that is none of before was not what is there when `act` is done. That token must hold no more.
fn sees_what_goes(store: &TestStore, dir: &Path, file: &Path, act: impl FnOnce()) -> bool {
    let root = fs::metadata(dir).unwrap();
    let params = json!({ "dev": root.dev(), "ino": root.ino(), "since": "" });
    let ask = |connection: &mut Connection| {
        let told = connection.call("changed_paths", &params);
        told["token"].as_str().unwrap().to_owned()
    };
    let mut connection = Connection::new(store);
    let first = ask(&mut connection);
    let mut all = vec![(first.clone(), seen(file))];
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let asking = scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                all.push((ask(&mut connection), seen(file)));
            }
        });
        act();
        done.store(true, Ordering::SeqCst);
        asking.join().unwrap();
    });
    let (last, now) = (ask(&mut connection), seen(file));
    let gone: Vec<_> = all.iter().filter(|(_, seen)| *seen != now).collect();
    assert!(!gone.is_empty(), "nothing differs");
    assert!(gone.iter().all(|(token, _)| *token != last), "{last} is from before");
    gone.iter().any(|(token, _)| *token != first)
}

/// Between the moment in which the files are others and that in which the kernel has forgotten what they were.
#[test]
fn what_was_seen_before_the_kernel_has_forgotten_counts_for_nothing() {
    if !fuse_available() {
        return;
    }
    let twins = small();
    let (store, dir) = (&twins.store, &twins.mounted);
    let file = dir.join("dir0/file0");
    let kept = store.json(&["snapshot", "create", "main"])["id"].as_str().unwrap().to_owned();
    let (mut hit, most) = (0, rounds(30));
    for _ in 0..most {
        fs::write(&file, "of another length\n").unwrap();
        hit += u32::from(sees_what_goes(store, dir, &file, || {
            store.ok(&["snapshot", "restore", &kept]);
        }));
        assert_told(dir, "restored");
        if hit >= 3 {
            return;
        }
    }
    panic!("of {most} restores {hit} were seen while they were made");
}

#[test]
fn where_nobody_knows_git_looks() {
    if !fuse_available() {
        return;
    }
    let twins = small();
    let (store, dir) = (&twins.store, &twins.mounted);
    let is_silent_in = |version: &str, dir: &Path| {
        let said = store.command(&["fsmonitor", version, "x"]).current_dir(dir).output().unwrap();
        (said.status.code(), said.stdout.len(), said.stderr.len()) == (Some(1), 0, 0)
    };
    let is_silent = |dir: &Path| is_silent_in("2", dir);
    assert!(!is_silent(dir));
    // A worktree that git has made in one of the store, and one beside it.
    for path in [dir.join("inside"), store.path("beside")] {
        git(dir, &["worktree", "add", "--quiet", "--detach", &text(&path)]);
        assert!(is_silent(&path));
        for file in ["dir1/file1", "dir2/file2"] {
            git(&path, &["status", "--porcelain"]);
            fs::write(path.join(file), "other\n").unwrap();
            assert_told(&path, "a worktree of git");
        }
        fs::write(dir.join("dir1/file4"), "other\n").unwrap();
        assert_told(&path, "a worktree of git");
        assert_told(dir, "what it is in");
    }
    assert!(is_silent(Path::new("/")));
    // git asks so when it got no answer, and shows what is said.
    assert!(is_silent_in("1", dir));
    // Without the daemon git does without, and nothing starts one.
    store.kill_daemon();
    assert!(is_silent(Path::new("/")));
    assert_eq!(store.daemon(), None);
    store.ok(&["status"]);
    assert_told(dir, "another daemon");
}

/// What is mounted in a worktree is nothing of it.
#[test]
fn what_others_mount_in_a_worktree_is_looked_at() {
    if !fuse_available() || !mounts::is_root() {
        return;
    }
    let twins = small();
    let dir = &twins.mounted;
    let over = dir.join("dir1");
    let other = twins.store.path("other");
    fs::create_dir_all(other.join("deep/deeper")).unwrap();
    for (name, content) in [("file1", "1\n"), ("file4", "not 4\n")] {
        fs::write(other.join(name), content).unwrap();
    }
    let run = |program: &str, args: &[&str]| {
        assert!(Command::new(program).args(args).status().unwrap().success(), "{program}");
    };
    run("mount", &["--bind", &text(&other), &text(&over)]);
    assert_told(dir, "what is mounted");
    fs::write(other.join("deep/deeper/new"), "new\n").unwrap();
    fs::write(other.join("file1"), "not 1\n").unwrap();
    assert_told(dir, "what changes there");
    // What git believes now it has seen there.
    git(dir, &["add", "--all"]);
    git(dir, &["status", "--porcelain"]);
    run("umount", &[&text(&over)]);
    assert_told(dir, "what was beneath");
    assert!(git(dir, &["status", "--porcelain"]).contains("MM dir1/file4"));
}

#[test]
fn what_is_redirected_is_looked_at_where_git_does_not_ignore_it() {
    if !fuse_available() || !mounts::is_root() {
        return;
    }
    let twins = small();
    let (store, dir) = (&twins.store, &twins.mounted);
    // Where git remembers untracked files, only what it is told has it read a directory again.
    git(dir, &["config", "core.untrackedCache", "true"]);
    let deep = dir.join("built/deep/deeper");
    let add = || store.ok(&["redirect", "add", &text(dir), "built"]);
    add();
    fs::create_dir_all(&deep).unwrap();
    assert_told(dir, "an empty directory");
    fs::write(deep.join("new"), "new\n").unwrap();
    assert_told(dir, "a file in it");
    git(dir, &["add", "built/deep/deeper/new"]);
    assert_told(dir, "a tracked file");
    assert_eq!(asked(store, dir, &asked(store, dir, "").0).1, EVERYTHING);

    fs::write(dir.join(".gitignore"), "/built/\n").unwrap();
    assert_told(dir, "what is ignored");
    let known = token(store, dir);
    let (_, paths) = asked(store, dir, &known);
    assert!(paths.contains("built/\0"), "{paths:?}");
    fs::write(deep.join("new"), "newer\n").unwrap();
    assert_told(dir, "a tracked file of what is ignored");
    fs::remove_file(dir.join(".gitignore")).unwrap();
    assert_told(dir, "what is not ignored any more");
    fs::write(dir.join(".gitignore"), "/built/\n").unwrap();
    assert_told(dir, "what is ignored again");

    store.ok(&["redirect", "remove", &text(dir), "built"]);
    assert_eq!(asked(store, dir, &known).1, EVERYTHING);
    assert_told(dir, "what is not redirected any more");
    git(dir, &["rm", "-r", "--quiet", "--cached", "built"]);
    add();
    assert_told(dir, "what is redirected again");
}

/// A store with worktrees that change.
struct Worktrees {
    store: TestStore,
    /// Their names.
    names: Vec<String>,
    made: usize,
    numbers: Numbers,
}

fn directories(dir: &Path, found: &mut Vec<PathBuf>) {
    found.push(dir.to_owned());
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() && entry.file_name() != ".git" {
            directories(&entry.path(), found);
        }
    }
}

impl Worktrees {
    fn dir(&self, name: &str) -> PathBuf {
        self.store.path(if name == "main" { "mounted" } else { name })
    }

    /// Runs agentfs, which may refuse.
    fn agentfs(&self, args: &[&str]) {
        drop(self.store.command(args).output().unwrap());
    }

    /// Changes a worktree, or fails to; says what it did.
    fn change(&mut self) -> String {
        let numbers = &mut self.numbers;
        let name = self.names[numbers.below(self.names.len())].clone();
        let what = numbers.below(26);
        let done = match what {
            0..18 => self.change_files(&name, what),
            18..20 => self.change_with_git(&name),
            20..24 => self.move_to_another_state(&name),
            _ => self.change_daemon(&name),
        };
        format!("{name}: {done}")
    }

    fn change_files(&mut self, name: &str, what: usize) -> String {
        let names = ["file0", "file1", "new", "dir0", "dir1", "a", "b.tmp", ".gitignore"];
        let (dir, numbers) = (self.dir(name), &mut self.numbers);
        let mut all = Vec::new();
        directories(&dir, &mut all);
        let mut place = || {
            let at = &all[numbers.below(all.len())];
            at.join(numbers.one_of(&names))
        };
        let (one, other) = (place(), place());
        let word = match what {
            0..5 => {
                drop(fs::write(&one, format!("*.tmp\n{}\n", numbers.below(1000))));
                "write"
            }
            5..7 => {
                drop(fs::create_dir(&one));
                "mkdir"
            }
            7..9 => {
                drop(fs::remove_file(&one));
                "unlink"
            }
            9 => {
                drop(fs::remove_dir_all(&one));
                "remove"
            }
            10..15 => {
                drop(fs::rename(&one, &other));
                "rename"
            }
            15 => {
                drop(fs::hard_link(&one, &other));
                "link"
            }
            16 => {
                drop(symlink("file0", &one));
                "symlink"
            }
            _ => {
                if one.is_dir() {
                    let args = ["init", "--quiet"];
                    drop(git_command(&one, &args).output().unwrap());
                }
                "init"
            }
        };
        format!("{word} {} {}", one.display(), other.display())
    }

    fn change_with_git(&mut self, name: &str) -> String {
        let dir = self.dir(name);
        let all: [&[&str]; 8] = [
            &["add", "--all"],
            &["commit", "--quiet", "--all", "--message=random"],
            &["stash", "--include-untracked"],
            &["checkout", "--quiet", "--force", "--detach", "one"],
            &["checkout", "--quiet", "--force", "--detach", "two"],
            &["reset", "--quiet", "--hard"],
            &["mv", "-f", "dir1", "dir2"],
            &["clean", "-dffxq"],
        ];
        let args = all[self.numbers.below(all.len())];
        drop(git_command(&dir, args).output().unwrap());
        format!("{args:?}")
    }

    fn move_to_another_state(&mut self, name: &str) -> String {
        let dir = text(&self.dir(name));
        let what = self.numbers.below(8);
        match what {
            0..2 => {
                let to = self.numbers.one_of(&["one", "two"]);
                self.agentfs(&["switch", &dir, to]);
            }
            2 => self.agentfs(&["undo", name]),
            3 => self.agentfs(&["snapshot", "create", name]),
            4..6 => {
                let listed = self.store.json(&["snapshot", "list", name]);
                let listed = listed["snapshots"].as_array().unwrap();
                if let Some(one) = listed.get(self.numbers.below(listed.len().max(1))) {
                    self.agentfs(&["snapshot", "restore", one["id"].as_str().unwrap()]);
                }
            }
            6 => {
                self.agentfs(&["umount", &dir]);
                self.store.ok(&["mount", name, &dir]);
            }
            _ if self.names.len() < 3 => {
                self.made += 1;
                let fork = format!("fork{}", self.made);
                let at = text(&self.dir(&fork));
                self.store.ok(&["branch", "create", &fork, "--from", name, "--mount", &at]);
                self.names.push(fork);
            }
            _ => {
                let fork = self.names.remove(1);
                self.store.ok(&["worktree", "remove", "--force", &text(&self.dir(&fork))]);
            }
        }
        format!("move {what}")
    }

    fn change_daemon(&mut self, name: &str) -> String {
        let dir = text(&self.dir(name));
        let what = self.numbers.below(4);
        match what {
            0 => self.store.kill_daemon(),
            1 => drop(self.store.ok(&["daemon", "stop"])),
            2 => {
                self.agentfs(&["redirect", "add", &dir, "dir0/built"]);
                drop(fs::create_dir(self.dir(name).join("dir0/built/a")));
            }
            _ => self.agentfs(&["redirect", "remove", &dir, "dir0/built"]),
        }
        self.store.ok(&["status"]);
        format!("daemon {what}")
    }
}

#[test]
fn git_says_what_it_says_when_it_looks_at_everything() {
    if !fuse_available() {
        return;
    }
    let Twins { store, mounted, .. } = Twins::small();
    ask(&store, &mounted);
    git(&mounted, &["tag", "one", "main~1"]);
    git(&mounted, &["tag", "two", "main"]);
    let seed = number_of("AGENTFS_TEST_SEED", 1);
    let (names, numbers) = (vec!["main".to_owned()], Numbers(seed));
    let mut worktrees = Worktrees { store, names, made: 0, numbers };
    let mut done = Vec::new();
    let mut changed = 0;
    let rounds = rounds(60);
    for round in 0..rounds {
        for _ in 0..=worktrees.numbers.below(3) {
            done.push(worktrees.change());
        }
        for name in &worktrees.names {
            let [told, seen] = both(&worktrees.dir(name));
            changed += usize::from(told[0].lines().any(|line| !line.starts_with('#')));
            let last = &done[done.len().saturating_sub(12)..];
            assert_eq!(told, seen, "seed {seed}, round {round}, {name}: {last:#?}");
        }
    }
    assert!(changed > rounds as usize / 3, "nothing was changed");
    assert_sound(&worktrees.store);
}
