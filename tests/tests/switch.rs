//! Goal: `agentfs switch` moves a mounted worktree as `git switch` moves a plain one, by what differs alone.
//!
//! Files, index, `HEAD` and its log are those that git leaves in a plain checkout, wherever the move begins
//! and ends. What git would refuse is refused by name. What does not differ keeps its inode, its times and its pages,
//! and whoever is in the worktree stays there. All of it holds when the daemon is killed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use agentfs_tests::fixture::{self, Builder};
use agentfs_tests::fleet::{assert_sound, fork};
use agentfs_tests::{TestStore, Twins, campaign, fuse_available, git, tree};

/// How long a test of the real repository may take.
const LIMIT: Duration = Duration::from_secs(600);

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// Moves both, by git and by agentfs, and compares all that git has to say of where they are then.
fn move_both(twins: &Twins, to: &str) {
    git(&twins.native, &["checkout", "--quiet", to]);
    twins.store.ok(&["switch", &text(&twins.mounted), to]);
    compare(twins, to);
}

fn compare(twins: &Twins, to: &str) {
    for args in [
        &["status", "--porcelain=v1", "--ignored"][..],
        &["ls-files", "--stage"],
        &["diff"],
        &["diff", "--cached"],
        &["write-tree"],
        &["rev-parse", "HEAD"],
        &["rev-parse", "--symbolic-full-name", "HEAD"],
        &["log", "-g", "-1", "--format=%gs", "HEAD"],
    ] {
        let (native, mounted) = (git(&twins.native, args), git(&twins.mounted, args));
        assert_eq!(mounted, native, "git {args:?} at {to}");
    }
    tree::assert_same(&twins.native, &twins.mounted);
}

/// Inode and times of what is below `dir`, but directories and the `.git` file.
fn stats(dir: &Path) -> BTreeMap<PathBuf, (u64, i64, i64, i64)> {
    let read = tree::read(dir);
    let files = read.into_iter().filter(|(_, entry)| *entry != tree::Entry::Directory);
    let stat = |path: PathBuf| {
        let stat = dir.join(&path).symlink_metadata().unwrap();
        (path, (stat.ino(), stat.mtime(), stat.mtime_nsec(), stat.ctime()))
    };
    files.map(|(path, _)| stat(path)).collect()
}

/// Two commits of the shared repository as far apart as its history goes, at most 400.
fn far_apart() -> (String, String) {
    let all = git(fixture::codex(), &["rev-list", "--first-parent", "main"]);
    let all: Vec<_> = all.lines().collect();
    (all[0].to_owned(), all[(all.len() - 1).min(400)].to_owned())
}

#[test]
fn commits_that_are_far_apart_are_what_a_checkout_makes_of_them() {
    if !fuse_available() {
        return;
    }
    let twins = Twins::of(fixture::codex(), TestStore::with_limit(LIMIT));
    let (_, old) = far_apart();
    let middle = git(&twins.native, &["rev-parse", "main~7"]);
    for to in [&*old, "main", &*middle, &*old, "main"] {
        move_both(&twins, to);
    }
    git(&twins.mounted, &["fsck", "--connectivity-only"]);
    assert_sound(&twins.store);
    // As the next daemon finds it.
    twins.store.kill_daemon();
    twins.store.ok(&["status"]);
    compare(&twins, "main, after a restart");
}

#[test]
fn what_does_not_differ_keeps_its_inode_its_times_and_is_not_read() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::with_limit(LIMIT);
    let mounted = store.path("mounted");
    store.ok(&["clone", "--wait", &text(fixture::codex()), &text(&mounted)]);
    assert_eq!(git(&mounted, &["status", "--porcelain"]), "");
    let before = stats(&mounted);
    let (new, old) = far_apart();
    let differ = git(&mounted, &["diff", "--name-only", "-z", "--no-renames", &new, &old]);
    let differ: Vec<_> = differ.split('\0').filter(|name| !name.is_empty()).collect();
    let start = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    let counted = store.counters(&mounted);
    let switched = store.json(&["switch", &text(&mounted), &old]);
    assert_eq!(switched["paths"], differ.len());
    let messages = |name: &str| store.counters(&mounted)[name] - counted[name];
    assert_eq!((messages("read"), messages("write")), (0, 0), "no content crosses the kernel");
    // What differs is as young as its index, so git reads it; then it is read already.
    for name in &differ {
        drop(fs::read(mounted.join(name)));
    }
    let read = store.counters(&mounted)["read"];
    assert_eq!(git(&mounted, &["status", "--porcelain"]), "");
    assert_eq!(git(&mounted, &["diff"]), "");
    assert_eq!(store.counters(&mounted)["read"], read, "git has read an unchanged file");
    let after = stats(&mounted);
    let mut same = 0;
    for (path, stat) in &after {
        if differ.contains(&path.to_str().unwrap_or_default()) {
            assert!(stat.1 >= start, "{path:?} is new and has an old time");
        } else {
            assert_eq!(Some(stat), before.get(path), "{path:?} is not changed");
            same += 1;
        }
    }
    assert!(same > 100 && !differ.is_empty());
}

#[test]
fn whoever_is_in_it_stays_there() {
    if !fuse_available() {
        return;
    }
    let twins = Twins::small();
    let (store, dir) = (&twins.store, &twins.mounted);
    let mut opened = File::open(dir.join("dir0/file0")).unwrap();
    let mut shell = store.program("bash");
    shell.current_dir(dir.join("dir0")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut shell = shell.spawn().unwrap();
    let (mut ask, mut said) =
        (shell.stdin.take().unwrap(), BufReader::new(shell.stdout.take().unwrap()));
    let mut run = |command: &str| {
        writeln!(ask, "{command}; echo .").unwrap();
        let mut text = String::new();
        while !text.ends_with(".\n") {
            assert!(said.read_line(&mut text).unwrap() > 0, "{text}");
        }
        text
    };
    assert_eq!(run("cat file0 ../new"), "changed\nx\n.\n");
    store.ok(&["switch", &text(dir), "HEAD~1"]);
    assert_eq!(run("cat file0; ls .. | grep -c new; git status --porcelain"), "0\n0\n.\n");
    assert_eq!(
        run("pwd -P; echo more > made; cat made"),
        format!("{}\nmore\n.\n", text(&dir.join("dir0")))
    );
    // The file that was open is that of then, and goes when it is closed.
    let mut text_of_then = String::new();
    opened.read_to_string(&mut text_of_then).unwrap();
    assert_eq!(text_of_then, "changed\n");
    drop(opened);
    store.ok(&["switch", &text(dir), "main"]);
    assert_eq!(run("cat file0 ../new made"), "changed\nx\nmore\n.\n");
    drop(ask);
    assert!(shell.wait().unwrap().success());
    assert_sound(store);
}

#[test]
fn what_git_keeps_is_kept_and_what_it_refuses_is_refused() {
    if !fuse_available() {
        return;
    }
    let twins = Twins::small();
    twins.both("git tag -f two HEAD; git tag -f one HEAD~1; echo ignored > .git-ignored");
    let common = git(&twins.mounted, &["rev-parse", "--path-format=absolute", "--git-common-dir"]);
    for info in [PathBuf::from(common).join("info"), twins.native.join(".git/info")] {
        fs::create_dir_all(&info).unwrap();
        fs::write(info.join("exclude"), "*.o\n/.git-ignored\n").unwrap();
    }
    let dir = text(&twins.mounted);
    // Untracked, ignored, changed, staged, removed: all of it where the two commits do not differ.
    twins.both(
        "echo u > untracked; mkdir out; echo o > out/x.o; echo c >> dir1/file1; echo s > dir2/file2
         git add dir2/file2; rm dir1/file4; echo n > staged; git add staged; git rm -q --cached dir2/file5",
    );
    move_both(&twins, "one");
    move_both(&twins, "main");
    // Changed where they differ.
    let refuse = |script: &str, why: &str, named: &str| {
        twins.both(script);
        let native = agentfs_tests::git_fails(&twins.native, &["checkout", "--quiet", "one"]);
        let said = twins.store.fails(4, &["switch", &dir, "one"]);
        assert!(said.contains(why) && said.contains(named) && said.contains("hint"), "{said}");
        assert!(native.contains(named) || native.contains("resolve"), "{native}");
        compare(&twins, "where it was");
    };
    refuse("echo mine >> dir0/file0", "local changes", "dir0/file0");
    refuse("git add dir0/file0", "local changes", "dir0/file0");
    twins.both("git restore --staged --worktree dir0/file0");
    move_both(&twins, "one");
    twins.both("echo mine > new");
    let refused = agentfs_tests::git_fails(&twins.native, &["checkout", "--quiet", "main"]);
    assert!(refused.contains("new"), "{refused}");
    let said = twins.store.fails(4, &["switch", &dir, "main"]);
    assert!(said.contains("untracked files") && said.contains("new"), "{said}");
    compare(&twins, "where it was");
    // An ignored one is worth nothing to git; here it is in the snapshot.
    twins.both("echo /new >> .git-ignored; rm new");
    for info in [&twins.native, &twins.mounted] {
        let path =
            git(info, &["rev-parse", "--path-format=absolute", "--git-path", "info/exclude"]);
        fs::write(path, "*.o\n/.git-ignored\n/new\n").unwrap();
    }
    twins.both("echo mine > new");
    move_both(&twins, "main");
    twins.store.ok(&["undo", "main"]);
    assert_eq!(fs::read_to_string(twins.mounted.join("new")).unwrap(), "mine\n");
    assert_eq!(
        git(&twins.mounted, &["rev-parse", "HEAD"]),
        git(&twins.mounted, &["rev-parse", "one"])
    );
    assert_sound(&twins.store);
}

#[test]
fn what_was_changed_in_the_second_of_its_staging_is_not_forgotten() {
    if !fuse_available() {
        return;
    }
    let twins = Twins::small();
    let (store, dir) = (&twins.store, &twins.mounted);
    let index = PathBuf::from(git(dir, &["rev-parse", "--absolute-git-dir"])).join("index");
    // In no commit does this file differ, and git, which compares whole seconds, relies on its index being as young.
    let file = dir.join("dir2/file2");
    let mut round = 0;
    loop {
        fs::write(&file, "staged\n").unwrap();
        git(dir, &["add", "dir2/file2"]);
        fs::write(&file, "change\n").unwrap();
        let seconds = [&file, &index].map(|path| path.metadata().unwrap().mtime());
        if seconds[0] == seconds[1] {
            break;
        }
        round += 1;
        assert!(round < 20, "it never took less than a second");
    }
    // Nothing asks git before, which would take note of it in the index.
    thread::sleep(Duration::from_secs(2));
    for to in ["main~1", "main"] {
        store.ok(&["switch", &text(dir), to]);
        assert_eq!(git(dir, &["status", "--porcelain"]), "MM dir2/file2", "{to}");
    }
    assert_eq!(git(dir, &["show", ":dir2/file2"]), "staged");
    assert_eq!(fs::read_to_string(&file).unwrap(), "change\n");
    assert_sound(store);
}

#[test]
fn what_is_thrown_away_comes_back() {
    if !fuse_available() {
        return;
    }
    let twins = Twins::small();
    let dir = text(&twins.mounted);
    let mess = "echo mine >> dir0/file0; echo s > dir2/file2; git add dir2/file2; rm dir1/file4
         echo n > staged; git add staged; rm dir0/file3; mkdir dir0/file3; echo x > dir0/file3/x
         echo u > untracked; chmod +x dir1/file1; rm dir1/file7; ln -s file1 dir1/file7";
    twins.both(mess);
    let before = (tree::read(&twins.mounted), git(&twins.mounted, &["status", "--porcelain"]));
    git(&twins.native, &["switch", "--quiet", "--discard-changes", "--detach", "HEAD~1"]);
    let switched = twins.store.json(&["switch", &dir, "--discard", "HEAD~1"]);
    compare(&twins, "HEAD~1");
    twins.store.ok(&["undo", "main"]);
    let after = (tree::read(&twins.mounted), git(&twins.mounted, &["status", "--porcelain"]));
    assert_eq!(after, before);
    assert_eq!(git(&twins.mounted, &["symbolic-ref", "HEAD"]), "refs/heads/main");
    let listed = twins.store.ok(&["snapshot", "list"]);
    assert!(listed.contains(switched["before"].as_str().unwrap()), "{listed}");
    assert_sound(&twins.store);
}

#[test]
fn an_operation_in_progress_another_worktree_and_nonsense_are_refused() {
    if !fuse_available() {
        return;
    }
    let twins = Twins::small();
    let (store, dir) = (&twins.store, text(&twins.mounted));
    git(&twins.mounted, &["branch", "side", "HEAD~1"]);
    let side = store.path_text("side");
    git(&twins.mounted, &["worktree", "add", "-q", &side, "side"]);
    let said = store.fails(4, &["switch", &dir, "side"]);
    assert!(said.contains(&format!("side is checked out at {side}")), "{said}");
    let said = store.fails(3, &["switch", &dir, "no-such-revision"]);
    assert!(said.contains("no-such-revision"), "{said}");
    let said = store.fails(3, &["switch", &store.path_text("elsewhere"), "main"]);
    assert!(said.contains("is not a worktree"), "{said}");
    store.ok(&["switch", &dir, "side~0"]);
    assert_eq!(
        git(&twins.mounted, &["log", "-g", "-1", "--format=%gs"]),
        "checkout: moving from main to side~0"
    );
    store.ok(&["switch", &dir, "-"]);
    assert_eq!(git(&twins.mounted, &["symbolic-ref", "HEAD"]), "refs/heads/main");

    // A branch of agentfs with files of its own is not git's branch of that name.
    let fork = fork(store, "forked", "main");
    let said = store.fails(4, &["switch", &dir, "forked"]);
    assert!(said.contains(&text(&fork)) && said.contains("--rev"), "{said}");
    fs::write(fork.join("of the fork"), "x").unwrap();
    store.fails(4, &["switch", &dir, "--branch", "main"]);
    store.fails(3, &["switch", &dir, "--branch", "side"]);
    store.fails(2, &["switch", &dir, "--branch", "--rev", "side"]);

    let lock =
        git(&twins.mounted, &["rev-parse", "--path-format=absolute", "--git-path", "index.lock"]);
    fs::write(&lock, "").unwrap();
    let said = store.fails(1, &["switch", &dir, "HEAD~1"]);
    assert!(said.contains("a git process is at work") && said.contains(&lock), "{said}");
    fs::remove_file(&lock).unwrap();

    twins.run(
        &twins.mounted,
        "git switch -qc topic HEAD~1; echo other > dir0/file0; git commit -qam topic
         git merge main 2>&1 || true",
    );
    let said = store.fails(4, &["switch", &dir, "--discard", "main"]);
    assert!(said.contains("a merge is in progress"), "{said}");
    git(&twins.mounted, &["merge", "--quit"]);
    let said = store.fails(4, &["switch", &dir, "main"]);
    assert!(said.contains("is not resolved: dir0/file0"), "{said}");
    store.ok(&["switch", &dir, "--discard", "main"]);
    assert_eq!(git(&twins.mounted, &["status", "--porcelain"]), "");
    let left = fs::read_dir(Path::new(&lock).parent().unwrap()).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    let odd = |name: &std::ffi::OsString| {
        let name = name.to_string_lossy();
        name.contains("agentfs") || name.starts_with(".index") || name.ends_with(".lock")
    };
    assert!(!left.iter().any(odd), "{left:?}");
    assert_sound(store);
}

#[test]
fn a_branch_without_files_of_its_own_is_gone_to_and_of_one_with_them_only_its_commit() {
    if !fuse_available() {
        return;
    }
    let twins = Twins::small();
    let (store, dir) = (&twins.store, text(&twins.mounted));
    // Only git has the one; the other agentfs has as well, and nothing in it.
    twins.both("git branch topic main~1");
    store.ok(&["branch", "create", "clean", "--from", "source@main~1"]);
    git(&twins.native, &["branch", "clean", "main~1"]);
    for to in ["topic", "clean"] {
        move_both(&twins, to);
    }
    twins.both("echo more > more; git add more; git commit -qm more");
    move_both(&twins, "main");
    // What was committed meanwhile is in the branch of agentfs, too.
    let clean = store.path("clean");
    store.ok(&["mount", "clean", &text(&clean)]);
    assert_eq!(git(&clean, &["symbolic-ref", "--short", "HEAD"]), "clean");
    assert_eq!(fs::read_to_string(clean.join("more")).unwrap(), "more\n");

    // Where it is mounted, what the refusal says can be done.
    fs::write(clean.join("kept"), "k").unwrap();
    let seen =
        || (tree::read(&twins.mounted), git(&twins.mounted, &["status", "-b", "--porcelain"]));
    let before = seen();
    let said = store.fails(4, &["switch", &dir, "clean"]);
    assert_eq!(seen(), before);
    let way = said.split('`').find_map(|part| part.strip_prefix("agentfs switch "));
    let way: Vec<_> = way.unwrap_or_else(|| panic!("{said}")).split(' ').collect();
    store.ok(&[&["switch"][..], &way].concat());
    assert!(twins.mounted.join("more").exists() && !twins.mounted.join("kept").exists());
    store.ok(&["switch", &dir, "main"]);
    // What is committed can be taken without what is not where it is not mounted, too.
    store.ok(&["umount", &text(&clean)]);
    store.ok(&["switch", &dir, "--rev", "clean~0"]);
    assert!(twins.mounted.join("more").exists() && !twins.mounted.join("kept").exists());
    store.ok(&["switch", &dir, "main"]);
    store.ok(&["switch", &dir, "clean"]);
    assert_eq!(fs::read_to_string(twins.mounted.join("kept")).unwrap(), "k");
    assert_sound(store);
}

/// Commits that differ in everything in which files can, and in what a checkout makes of them.
fn of_every_kind(store: &TestStore) -> PathBuf {
    let builder = Builder::new(&store.path("source"));
    let dir = builder.dir().to_owned();
    builder
        .file("a/file", "a\n")
        .file("a/b/deep", "d\n")
        .file("turns", "file\n")
        .file("run", "#!\n");
    builder.file("lines.txt", "one\ntwo\n").file("ident.c", "$Id$\n").file("wide.txt", "w\u{e9}\n");
    builder.file("kept", "k\n").file("empty", "").file("large", "x".repeat(3_000_000));
    builder.file("name with spaces \u{e9}", "s\n");
    builder.commit("plain");
    let all = |script: &str| {
        let mut command = std::process::Command::new("bash");
        command.args(["-euc", script]).current_dir(&dir);
        fixture::plain_environment(&mut command);
        assert!(command.status().unwrap().success(), "{script}");
    };
    all("printf '*.txt text eol=crlf\\nident.c ident\\nwide.txt working-tree-encoding=UTF-16LE\\n' > .gitattributes
         printf 'one\\nthree\\n' > lines.txt; printf '$Id$ more\\n' > ident.c; printf 'w\\0i\\0d\\0e\\0\\n\\0' > wide.txt
         rm -r a; echo now a file > a; rm turns; mkdir turns; echo x > turns/into; chmod +x run
         ln -s kept link; rm empty; : > void; echo more >> large; rm name*; printf 'nl\\n' > $'new\\nline'
         git add -A; git update-index --add --cacheinfo 160000,$(git rev-parse HEAD),module
         git commit -qm converted");
    // All that was converted: of what stays the same git says different things in different seconds.
    all(
        "rm .gitattributes link; for file in lines.txt ident.c wide.txt; do echo back > $file; done
         echo file > link; chmod -x run; rm -r turns; ln -s kept turns
         git rm -q --cached module; rm -f $'new\\nline'
         git add -A; git commit -qm back",
    );
    dir
}

#[test]
fn conversions_and_changes_of_type_are_those_of_git() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::with_limit(LIMIT);
    let source = of_every_kind(&store);
    let twins = Twins::of(&source, store);
    for to in ["main~2", "main~1", "main", "main~1", "main~2", "main", "main~2"] {
        // git leaves the directory of a commit of another repository there; so do both.
        move_both(&twins, to);
    }
    assert_sound(&twins.store);
}

#[test]
fn what_is_redirected_is_neither_changed_nor_hidden() {
    if !fuse_available() {
        return;
    }
    let twins = Twins::small();
    let (store, dir) = (&twins.store, text(&twins.mounted));
    store.ok(&["redirect", "add", &dir, "out/target"]);
    let built = twins.mounted.join("out/target/built");
    fs::write(&built, "b\n").unwrap();
    store.ok(&["switch", &dir, "main~1"]);
    assert_eq!(fs::read_to_string(&built).unwrap(), "b\n");
    assert!(store.ok(&["redirect", "list", &dir]).contains("out/target"));

    // A commit with files there, and one with a file above it.
    for file in ["out/target/file", "out"] {
        let (source, name) = (twins.store.path("commits"), file.replace('/', "-"));
        git(&twins.mounted, &["worktree", "add", "-q", "-b", &name, &text(&source), "main"]);
        if let Some(above) = source.join(file).parent() {
            fs::create_dir_all(above).unwrap();
        }
        fs::write(source.join(file), "tracked\n").unwrap();
        git(&source, &["add", "-f", file]);
        git(&source, &["commit", "-qm", "in the way"]);
        git(&twins.mounted, &["worktree", "remove", &text(&source)]);
        let said = store.fails(4, &["switch", &dir, &name]);
        assert!(said.contains("is redirected") && said.contains(file), "{said}");
        assert_eq!(fs::read_to_string(&built).unwrap(), "b\n");
    }
    store.ok(&["redirect", "remove", &dir, "out/target"]);
    store.ok(&["switch", &dir, "out-target-file"]);
    assert_eq!(fs::read_to_string(twins.mounted.join("out/target/file")).unwrap(), "tracked\n");
    assert_sound(store);
}

/// Says that something is over, also when the test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn what_is_written_meanwhile_is_not_lost() {
    if !fuse_available() {
        return;
    }
    let twins = Twins::small();
    let (dir, done) = (&twins.mounted, AtomicBool::new(false));
    fs::create_dir(dir.join("out")).unwrap();
    let written = thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut written = 0_u32;
            while !done.load(Ordering::Relaxed) {
                fs::write(dir.join(format!("out/{written}")), written.to_string()).unwrap();
                symlink("nowhere", dir.join(format!("out/link{written}"))).unwrap();
                written += 1;
            }
            written
        });
        let over = Over(&done);
        for round in 0..8 {
            twins.store.ok(&["switch", &text(dir), if round % 2 == 0 { "main~1" } else { "main" }]);
        }
        drop(over);
        writer.join().unwrap()
    });
    let all = |what: &str| {
        for number in 0..written {
            let found = fs::read_to_string(dir.join(format!("out/{number}"))).unwrap();
            assert_eq!(found, number.to_string(), "{what}");
            fs::read_link(dir.join(format!("out/link{number}"))).unwrap();
        }
    };
    all("before a restart");
    twins.store.kill_daemon();
    twins.store.ok(&["status"]);
    all("after a restart");
    assert!(written > 8);
    assert_sound(&twins.store);
}

#[test]
#[expect(clippy::print_stderr, reason = "a figure for whoever asks for it")]
fn a_killed_daemon_leaves_a_worktree_here_or_there() {
    if !fuse_available() {
        return;
    }
    let rounds = campaign::rounds(12);
    let limit = Duration::from_secs(300 + 10 * rounds);
    let twins = Twins::of(fixture::codex(), TestStore::with_limit(limit));
    let (store, dir) = (&twins.store, &twins.mounted);
    let (new, old) = far_apart();
    let mut expected = BTreeMap::new();
    for (to, commit) in [("main", &new), (&*old, &old)] {
        git(&twins.native, &["checkout", "--quiet", to]);
        let mut files = tree::read(&twins.native);
        files.insert("untracked".into(), tree::Entry::File(false, b"u\n".to_vec()));
        let head = git(&twins.native, &["rev-parse", "--symbolic-full-name", "HEAD"]);
        expected.insert(commit.clone(), (to, head, files));
    }
    fs::write(dir.join("untracked"), "u\n").unwrap();
    let git_dir = PathBuf::from(git(dir, &["rev-parse", "--absolute-git-dir"]));
    let (lock, head_file) = (git_dir.join("index.lock"), git_dir.join("HEAD"));
    // Whether it is there says where the files are.
    let only_new = expected[&new].2.keys().find(|path| !expected[&old].2.contains_key(*path));
    let probe = dir.join(only_new.expect("something was added between them"));
    let (mut here, mut moved, mut stayed) = (new.clone(), 0, 0);
    for round in 0..rounds {
        let there = if here == new { &old } else { &new };
        let (head_before, files_before) = (fs::read(&head_file).unwrap(), probe.exists());
        let mut command = store.command(&["switch", &text(dir), expected[there].0]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let mut until = |there: &dyn Fn() -> bool| {
            while !there() && child.try_wait().unwrap().is_none() {
                thread::sleep(Duration::from_micros(100));
            }
        };
        // Before the first trace of it; when it is planned, or about to be made; when the files are moved; when
        // `HEAD` is; when it has returned.
        match round % 6 {
            0 => {}
            1 => until(&|| lock.exists()),
            2 => {
                until(&|| lock.exists());
                thread::sleep(Duration::from_micros(round * 104_729 % 400_000));
            }
            3 => until(&|| probe.exists() != files_before),
            4 => until(&|| fs::read(&head_file).unwrap() != head_before),
            _ => until(&|| false),
        }
        let is_moved = probe.exists() != files_before;
        store.kill_daemon();
        let succeeded = child.wait().unwrap().success();
        store.ok(&["status"]);
        let now = git(dir, &["rev-parse", "HEAD"]);
        let (_, head, files) = &expected[&now];
        assert!(now == *there || !succeeded, "round {round}: it was done");
        assert!(now == *there || !is_moved, "round {round}: the files were moved");
        assert_eq!(
            git(dir, &["rev-parse", "--symbolic-full-name", "HEAD"]),
            *head,
            "round {round}"
        );
        assert_eq!(
            git(dir, &["status", "--porcelain"]),
            "?? untracked",
            "round {round}\n{}",
            store.log()
        );
        assert_eq!(tree::read(dir), *files, "round {round}");
        assert_sound(store);
        if now == here {
            stayed += 1
        } else {
            moved += 1
        }
        here = now;
    }
    eprintln!("{rounds} rounds: {moved} moved, {stayed} stayed");
    assert!(rounds < 6 || (moved > 0 && stayed > 0), "{moved} moved, {stayed} stayed");
}
