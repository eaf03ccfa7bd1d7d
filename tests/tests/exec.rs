//! Goal: `agentfs exec` runs a command in a branch as a shell would run it elsewhere, at one path for
//! all branches, and leaves nothing behind, whoever is killed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use agentfs_tests::{TestStore, fixture, fuse_available, git, mounts};
use rustix::process::{Pid, Signal, kill_process};

/// A store with a repository that has the branches `main`, `one` and `two`, mounted at the returned
/// directory with `main`.
fn setup(ordinary: bool) -> (TestStore, PathBuf) {
    let mut store = TestStore::new();
    let home = if ordinary { store.become_ordinary() } else { store.path("") };
    let source = fixture::Builder::new(&home.join("source"));
    source.file("a", "base\n").file("d/e", "deep\n").commit("base");
    if let Some(user) = store.user() {
        user.own(source.dir());
    }
    let dir = home.join("w");
    store.ok(&["clone", "--wait", &text(source.dir()), &text(&dir)]);
    for branch in ["one", "two"] {
        let mut command = store.program("git");
        command.arg("-C").arg(common(&store)).args(["branch", branch, "main"]);
        assert_eq!(store.finish(command).code, 0);
    }
    (store, dir)
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// The git directory of the repository.
fn common(store: &TestStore) -> PathBuf {
    store.home().join("repos/source")
}

/// A running `agentfs exec`, killed when the test ends.
struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Running {
    fn start(store: &TestStore, args: &[&str]) -> Self {
        Self::of(store.command(&[&["exec"], args].concat()))
    }

    fn of(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("agentfs runs");
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        Self { child, stdout }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("a line");
        line.trim_end().to_owned()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it runs");
    }

    fn code(&mut self, store: &TestStore) -> Option<i32> {
        let mut status = None;
        store.wait_until("the end of agentfs exec", || {
            status = self.child.try_wait().expect("it is ours");
            status.is_some()
        });
        status.expect("it has ended").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The processes that have `word` on their command line.
fn processes_with(word: &str) -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let has = |pid: &i32| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
            line.split(|byte| *byte == 0).any(|part| String::from_utf8_lossy(part) == word)
        })
    };
    pids.filter(has).collect()
}

/// Nothing of a command is left: no process that sleeps `word` seconds or is of agentfs exec, no mount
/// in any namespace, no directory.
fn assert_nothing_left(store: &TestStore, word: &str) {
    let execs = store.home().join("exec");
    let left = || {
        let mut left: Vec<String> =
            processes_with(word).iter().map(|pid| format!("process {pid}")).collect();
        let mine = text(store.home());
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
            let line = String::from_utf8_lossy(&line).into_owned();
            if line.contains("exec-namespace") && line.contains(&mine) {
                left.push(line);
            }
            let mounts = fs::read_to_string(entry.path().join("mountinfo")).unwrap_or_default();
            let own = mounts.lines().filter(|mount| mount.contains(&*execs.to_string_lossy()));
            left.extend(own.map(str::to_owned));
        }
        let dirs: Vec<_> =
            fs::read_dir(&execs).map(|dirs| dirs.flatten().collect()).unwrap_or_default();
        left.extend(dirs.iter().map(|dir| text(&dir.path())));
        left
    };
    store.wait_until("everything is gone", || left().is_empty());
    let status = store.json(&["status"]);
    let worktrees = status["worktrees"].as_array().expect("worktrees");
    assert_eq!(worktrees.len(), 1, "{status}");
}

/// A word that no other test sleeps for.
fn unique(number: u32) -> String {
    format!("{}{number}", 10_000 + std::process::id() % 100_000)
}

fn ends_as_the_command_ends(ordinary: bool) {
    let (store, dir) = setup(ordinary);
    let code = |script: &str| store.run(&["exec", "one", "--", "sh", "-c", script]).code;
    assert_eq!(code("exit 0"), 0);
    assert_eq!(code("exit 7"), 7);
    for (signal, number) in [("KILL", 9), ("TERM", 15), ("SEGV", 11), ("USR1", 10)] {
        assert_eq!(code(&format!("kill -{signal} $$")), 128 + number, "{signal}");
    }
    assert_eq!(store.run(&["exec", "one", "--", "no-such-program"]).code, 127);
    assert_eq!(store.run(&["exec", "one", "--", "/etc/passwd"]).code, 126);
    // What follows `--` is the command's, so --json stands before it.
    for refused in [&["source@no-such-branch"][..], &["one", "--at", "/no/such/directory"]] {
        let failed = store.run(&[&["--json", "exec"], refused, &["--", "true"]].concat());
        assert_eq!(failed.code, 3, "{failed:?}");
        assert_eq!(failed.events().last().expect("an event")["error"]["kind"], "not_found");
    }
    let inside =
        store.ok(&["exec", "one", "--", "sh", "-c", "pwd; cat a; git branch --show-current"]);
    assert_eq!(inside, format!("{}\nbase\none\n", dir.display()));
    let owner = store.ok(&["exec", "one", "--", "sh", "-c", "id -u; stat -c %u a; echo $$"]);
    let lines: Vec<_> = owner.lines().collect();
    assert_eq!(lines[0], lines[1], "files belong to the user: {owner}");
    // The first process of the namespace, and the command.
    assert_eq!(lines[2], "2");
    // A background process ends with its command.
    let word = unique(1);
    assert_eq!(code(&format!("setsid sleep {word} >/dev/null 2>&1 & exit 5")), 5);
    assert!(processes_with(&word).is_empty());
    assert_nothing_left(&store, &word);
}

#[test]
fn a_command_ends_as_it_would_under_a_shell() {
    if fuse_available() {
        ends_as_the_command_ends(false);
    }
}

#[test]
fn a_command_of_an_ordinary_user_ends_as_it_would_under_a_shell() {
    if fuse_available() {
        ends_as_the_command_ends(true);
    }
}

/// Two commands that run at the same time, each knowing that the other does.
fn two_branches_at_one_path(ordinary: bool) {
    let (store, dir) = setup(ordinary);
    let script = "echo $0 > a; echo $0 > only-$0; git add -A; echo ready; read go; \
         ls; cat a; git status --porcelain; git -c gc.auto=0 commit -qm $0; cat .git; read end";
    let start = |branch: &str| {
        let mut command = store.command(&["exec", branch, "--", "sh", "-c", script, branch]);
        command.stdin(Stdio::piped());
        Running::of(command)
    };
    let mut both = ["one", "two"].map(start);
    let mut inputs = both.each_mut().map(|one| one.child.stdin.take().expect("a pipe"));
    both.iter_mut().for_each(|one| assert_eq!(one.line(), "ready"));
    for input in &mut inputs {
        std::io::Write::write_all(input, b"go\n").expect("it reads");
    }
    let mut git_files = Vec::new();
    for (one, name) in both.iter_mut().zip(["one", "two"]) {
        let expected =
            ["a", "d", &format!("only-{name}"), name, "M  a", &format!("A  only-{name}")];
        assert_eq!(expected.map(|_| one.line()), expected.map(str::to_owned));
        git_files.push(one.line());
    }
    assert_ne!(git_files[0], git_files[1]);
    // Both commits are in the shared repository while both run.
    for name in ["one", "two"] {
        let mut command = store.program("git");
        command.arg("-C").arg(common(&store)).args(["log", "-1", "--format=%s", name]);
        assert_eq!(store.finish(command).stdout.trim(), name);
    }
    let mut command = store.program("ls");
    command.arg(&dir);
    assert_eq!(store.finish(command).stdout, "a\nd\n");
    drop(inputs);
    for one in &mut both {
        one.code(&store);
    }
    assert_nothing_left(&store, "never");
    // What each has done is still there.
    assert_eq!(store.ok(&["exec", "two", "--", "cat", "only-two"]), "two\n");
}

#[test]
fn two_branches_run_side_by_side_at_one_path() {
    if fuse_available() {
        two_branches_at_one_path(false);
    }
}

#[test]
fn two_branches_of_an_ordinary_user_run_side_by_side_at_one_path() {
    if fuse_available() {
        two_branches_at_one_path(true);
    }
}

#[test]
fn the_command_begins_where_the_caller_stands() {
    if !fuse_available() {
        return;
    }
    let (store, dir) = setup(false);
    let pwd = |from: &Path| {
        let mut command = store.command(&["exec", "one", "--", "pwd", "-P"]);
        command.current_dir(from);
        store.finish(command).stdout.trim_end().to_owned()
    };
    assert_eq!(pwd(&dir.join("d")), text(&dir.join("d")));
    assert_eq!(pwd(Path::new("/")), text(&dir));
    let other = store.path("other");
    fs::create_dir(&other).expect("a directory");
    let at = store.ok(&["exec", "one", "--at", &text(&other), "--", "sh", "-c", "pwd; cat d/e"]);
    assert_eq!(at, format!("{}\ndeep\n", other.display()));
    assert_eq!(fs::read_dir(&other).expect("the directory").count(), 0);
    // A branch that is mounted is used where it is, and stays.
    store.ok(&["mount", "source@one", &text(&other)]);
    let mut one = Running::start(&store, &["one", "--", "sh", "-c", "pwd; echo x > new; exec cat"]);
    assert_eq!(one.line(), text(&dir));
    store.wait_until("the file", || other.join("new").exists());
    assert_eq!(store.run(&["exec", "one", "--", "true"]).code, 0);
    assert!(mounts::is_mounted(&other));
}

/// Every signal that is passed on, sent to agentfs exec alone.
#[test]
fn signals_reach_the_command() {
    if !fuse_available() {
        return;
    }
    let (store, _) = setup(false);
    for signal in [
        Signal::TERM,
        Signal::INT,
        Signal::HUP,
        Signal::QUIT,
        Signal::USR1,
        Signal::USR2,
        Signal::WINCH,
        Signal::TSTP,
        Signal::CONT,
    ] {
        let number = signal.as_raw();
        let script = "trap 'echo got; exit 3' $0; echo ready; while :; do sleep 0.02; done";
        let mut one =
            Running::start(&store, &["one", "--", "sh", "-c", script, &number.to_string()]);
        assert_eq!(one.line(), "ready");
        one.signal(signal);
        assert_eq!(one.line(), "got", "{signal:?}");
        assert_eq!(one.code(&store), Some(3), "{signal:?}");
    }
    // Untreated, they end it.
    let word = unique(2);
    for (signal, status) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        let mut one =
            Running::start(&store, &["one", "--", "sh", "-c", "echo ready; exec sleep $0", &word]);
        assert_eq!(one.line(), "ready");
        one.signal(signal);
        assert_eq!(one.code(&store), Some(status), "{signal:?}");
    }
    assert_nothing_left(&store, &word);
}

/// A signal to the whole process group reaches the command once.
#[test]
fn a_signal_to_the_group_comes_once() {
    if !fuse_available() {
        return;
    }
    let (store, _) = setup(false);
    let script = "trap 'n=$((n+1))' USR1; trap 'echo $n; exit 0' TERM; n=0; echo ready; \
         while :; do sleep 0.02; done";
    let mut command = store.command(&["exec", "one", "--", "sh", "-c", script]);
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let mut one = Running::of(command);
    assert_eq!(one.line(), "ready");
    let group = Pid::from_child(&one.child);
    rustix::process::kill_process_group(group, Signal::USR1).expect("the group");
    // Sent after it, this one comes after it.
    std::thread::sleep(std::time::Duration::from_millis(200));
    one.signal(Signal::USR1);
    std::thread::sleep(std::time::Duration::from_millis(200));
    one.signal(Signal::TERM);
    assert_eq!(one.line(), "2");
    assert_eq!(one.code(&store), Some(0));
}

/// Starts a command that leaves a process of another session, and waits until both run.
fn with_descendants(store: &TestStore, word: &str) -> Running {
    let script = "(setsid sleep $0 &); echo kept > kept; echo ready; exec sleep $0";
    let mut one = Running::start(store, &["one", "--", "sh", "-c", script, word]);
    assert_eq!(one.line(), "ready");
    store.wait_until("both processes", || sleeping(word).len() >= 2);
    one
}

/// The processes that are `sleep` by now and have `word` on their command line.
fn sleeping(word: &str) -> Vec<i32> {
    let mut found = processes_with(word);
    found.retain(|pid| {
        fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains("(sleep)"))
    });
    found
}

fn nothing_outlives_a_kill(ordinary: bool, first: u32) {
    let (store, dir) = setup(ordinary);
    let word = unique(first);
    // Of agentfs exec.
    let mut one = with_descendants(&store, &word);
    one.child.kill().expect("it runs");
    one.child.wait().expect("it ends");
    assert_nothing_left(&store, &word);
    assert_eq!(store.ok(&["exec", "one", "--", "cat", "kept"]), "kept\n");

    // Of the command.
    let word = unique(first + 1);
    let mut one = with_descendants(&store, &word);
    for pid in sleeping(&word) {
        Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
    }
    assert_eq!(one.code(&store), Some(137));
    assert_nothing_left(&store, &word);

    // Of the daemon.
    let word = unique(first + 2);
    let mut one = with_descendants(&store, &word);
    store.kill_daemon();
    assert_eq!(one.code(&store), Some(7));
    assert!(processes_with(&word).is_empty());
    // The mounts of a killed daemon go when the next one starts.
    store.ok(&["ps"]);
    assert_nothing_left(&store, &word);
    assert_eq!(store.ok(&["exec", "one", "--", "cat", "kept"]), "kept\n");
    let mut command = store.program("cat");
    command.arg(dir.join("a"));
    assert_eq!(store.finish(command).stdout, "base\n");

    // Of the process in the middle.
    let word = unique(first + 3);
    let mut one = with_descendants(&store, &word);
    let middle = Command::new("pgrep").args(["-P", &one.child.id().to_string()]).output();
    let middle = String::from_utf8(middle.expect("pgrep").stdout).expect("a number");
    // An ordinary user's commands are started through nsenter, which becomes them.
    let middle: i32 = middle.trim().parse().expect("one process");
    kill_process(Pid::from_raw(middle).expect("a process"), Signal::KILL).expect("it runs");
    assert_eq!(one.code(&store), Some(1));
    assert_nothing_left(&store, &word);
}

#[test]
fn nothing_outlives_a_kill_of_anyone() {
    if fuse_available() {
        nothing_outlives_a_kill(false, 10);
    }
}

#[test]
fn nothing_of_an_ordinary_user_outlives_a_kill_of_anyone() {
    if fuse_available() {
        nothing_outlives_a_kill(true, 20);
    }
}

#[test]
fn what_a_command_uses_is_not_taken_from_it() {
    if !fuse_available() {
        return;
    }
    let (store, dir) = setup(false);
    let word = unique(30);
    let mut one = with_descendants(&store, &word);
    let hidden = store.json(&["status"]);
    let hidden = hidden["worktrees"].as_array().expect("worktrees").iter().find_map(|worktree| {
        worktree["dir"].as_str().filter(|dir| dir.contains("/exec/")).map(str::to_owned)
    });
    let hidden = hidden.expect("the branch is mounted in the store");
    let pid = one.child.id().to_string();
    for lazy in [&[][..], &["--lazy"]] {
        let said = store.fails(1, &[&["umount", &hidden], lazy].concat());
        assert!(said.contains(&pid), "{said}");
    }
    let said = store.fails(1, &["daemon", "stop"]);
    assert!(said.contains(&pid) && said.contains("--force"), "{said}");
    assert!(one.child.try_wait().expect("it is ours").is_none());
    // What is mounted at its path outside can go, and that session ends.
    store.ok(&["umount", &text(&dir)]);
    assert!(one.child.try_wait().expect("it is ours").is_none());
    store.ok(&["daemon", "stop", "--force"]);
    assert_eq!(one.code(&store), Some(7));
    assert!(processes_with(&word).is_empty());
    store.ok(&["mount", "source@main", &text(&dir)]);
    assert_nothing_left(&store, &word);
    assert_eq!(store.ok(&["exec", "one", "--", "cat", "kept"]), "kept\n");
}

/// Each line is tried inside; what it says is whether it worked.
fn isolation(ordinary: bool) {
    let (store, dir) = setup(ordinary);
    let home = dir.parent().expect("a parent").to_owned();
    // Not in /tmp, which is private, where that can be.
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let outside = target.join(format!("outside-{}", std::process::id()));
    let outside = if ordinary { home.join("outside") } else { outside };
    let named = home.join("named");
    for path in [&named, &outside] {
        let mut command = store.program("sh");
        command.args(["-c", "mkdir $0 && echo x > $0/file"]).arg(path);
        assert_eq!(store.finish(command).code, 0);
    }
    // Another branch with a worktree of its own.
    store.ok(&["mount", "source@two", &text(&home.join("two"))]);
    let common = text(&common(&store));
    let worktrees = format!("{common}/worktrees");
    let named = text(&named);
    let outside = text(&outside);
    let own = "$(git rev-parse --absolute-git-dir)";
    let tries: Vec<(String, bool)> = vec![
        ("echo x > a".into(), true),
        ("mkdir -p n/m && echo x > n/m/f && rm -r n".into(), true),
        ("echo x > /tmp/f && cat /tmp/f".into(), true),
        ("echo x > /var/tmp/f".into(), true),
        ("echo x > /dev/shm/f".into(), true),
        ("echo x > /dev/null".into(), true),
        (format!("echo x > {named}/new && rm {named}/file"), true),
        ("git add -A && git commit -qm inside".into(), true),
        (format!("echo x > {own}/own-file"), true),
        ("git log --oneline -1 main && git log -1 two".into(), true),
        (format!("echo x > {outside}/new"), false),
        (format!("echo x > {outside}/file"), false),
        (format!("rm {outside}/file"), false),
        (format!("mv {outside}/file {named}/moved"), false),
        (format!("chmod 777 {outside}/file"), false),
        (format!("truncate -s 0 {outside}/file"), false),
        (format!("ln {outside}/file {named}/link"), false),
        ("echo x > /etc/agentfs-test".into(), false),
        // The home of the ordinary user is in /tmp here.
        ("echo x > $HOME/agentfs-test".into(), ordinary),
        (format!("echo x > {common}/refs/heads/two"), false),
        (format!("rm {common}/refs/heads/two"), false),
        ("git update-ref refs/heads/two HEAD".into(), false),
        ("git branch -f two HEAD".into(), false),
        ("git update-ref -d refs/heads/two".into(), false),
        ("git tag inside".into(), false),
        ("git config user.name x".into(), false),
        (format!("echo x >> {common}/config"), false),
        (format!("echo x > {common}/HEAD"), false),
        (format!("echo x > {common}/hooks/pre-commit"), false),
        (format!("echo x >> {common}/packed-refs"), false),
        (format!("rm {common}/objects/pack/*.pack"), false),
        (format!("echo x >> {common}/objects/info/alternates"), false),
        (format!("echo x > {worktrees}/two/index"), false),
        (format!("echo x > {worktrees}/two/HEAD"), false),
        (format!("mkdir {worktrees}/new"), false),
        (format!("echo x > {}/two/a", home.display()), false),
        ("mount -t tmpfs none /mnt".into(), false),
        (format!("mount -o remount,rw,bind {common}"), false),
        (format!("umount {common}"), false),
        ("unshare -Urm mount -t tmpfs none /mnt".into(), false),
    ];
    let mut script = String::from("exec 2>/dev/null >/dev/null 3>&9\n");
    for (line, _) in &tries {
        script.push_str(&format!("if ( {line} ); then echo y >&9; else echo n >&9; fi\n"));
    }
    let script = format!("exec 9>&1\n{}", script.replace(" 3>&9", ""));
    let remove = outside.clone();
    let ran = store.run(&[
        "exec",
        "one",
        "--isolated",
        "--rw",
        &named,
        "--verbose",
        "--",
        "sh",
        "-c",
        &script,
    ]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let worked: Vec<_> = ran.stdout.lines().map(|line| line == "y").collect();
    assert_eq!(worked.len(), tries.len(), "{ran:?}");
    let wrong: Vec<_> =
        tries.iter().zip(worked).filter(|((_, expected), worked)| expected != worked).collect();
    assert!(wrong.is_empty(), "{wrong:#?}\n{}", ran.stderr);
    assert!(ran.stderr.contains("isolated by mounts"), "{}", ran.stderr);
    // The commit is in the shared repository, and nothing of the private directories outside.
    let mut command = store.program("git");
    command.arg("-C").arg(&common).args(["log", "-1", "--format=%s", "one"]);
    assert_eq!(store.finish(command).stdout.trim(), "inside");
    let mut command = store.program("git");
    command.arg("-C").arg(&common).args(["fsck", "--strict"]);
    assert_eq!(store.finish(command).code, 0);
    assert!(!Path::new("/tmp/f").exists() && !Path::new("/dev/shm/f").exists());
    if !ordinary {
        assert_eq!(fs::read_to_string(format!("{remove}/file")).expect("it is there"), "x\n");
        fs::remove_dir_all(&remove).expect("it is ours");
    }
    // A collection of garbage is not begun inside.
    let gc = store.ok(&["exec", "one", "--isolated", "--", "git", "config", "gc.auto"]);
    assert_eq!(gc, "0\n");
    let events = store.run(&["--json", "exec", "one", "--isolated", "--", "true"]);
    let event: serde_json::Value = serde_json::from_str(events.stderr.trim()).expect("an event");
    assert_eq!(event["isolation"][0], "mounts", "{event}");
    // The daemon would do everything for it.
    let said =
        store.run(&["exec", "one", "--isolated", "--", text(agentfs_of(&store)).as_str(), "ps"]);
    assert!(!said.stdout.contains("source"), "{said:?}");
}

fn agentfs_of(store: &TestStore) -> &Path {
    match store.user() {
        Some(user) => user.program(),
        None => agentfs_tests::agentfs(),
    }
}

#[test]
fn an_isolated_command_writes_where_it_may() {
    if fuse_available() {
        isolation(false);
    }
}

#[test]
fn an_isolated_command_of_an_ordinary_user_writes_where_it_may() {
    if fuse_available() {
        isolation(true);
    }
}

/// Runs `script` in a shell with job control on a terminal of its own.
fn on_a_terminal(store: &TestStore, script: &str) -> String {
    let log = store.path("typescript");
    let file = store.path("script.sh");
    fs::write(&file, script).expect("a file");
    let mut command = store.program("script");
    command.args(["-qec", &format!("bash --norc -i {}", file.display())]).arg(&log);
    command.env("AGENTFS_HOME", store.home()).env("AGENTFS", agentfs_of(store));
    let finished = store.finish(command);
    let said = fs::read_to_string(&log).unwrap_or_default();
    assert_eq!(finished.code, 0, "{said}");
    said
}

#[test]
fn a_terminal_keeps_working() {
    if !fuse_available() || !mounts::tool_available("script") {
        return;
    }
    let (store, _) = setup(false);
    let word = unique(40);
    // Stopped and continued by the shell; a pipeline; a shell with job control inside; and the
    // terminal belongs to the outer shell again after each.
    let script = format!(
        "set -m
         $AGENTFS exec one -- sh -c 'test -t 0 && test -t 1 && echo a terminal: $(stty size | wc -w)'
         $AGENTFS exec one -- sh -c 'kill -STOP $$; echo continued'
         echo stopped: $?
         fg >/dev/null; echo resumed: $?
         $AGENTFS exec one -- sh -c 'echo through a pipe' | cat
         $AGENTFS exec one -- bash --norc -ic 'sleep 0.1 & wait; echo inner done'
         read -t 1 nothing; echo read: $?
         $AGENTFS exec one -- sleep {word} & sleep 1; kill -INT -- -$!; wait $!; echo interrupted: $?
         exit 0\n"
    );
    let said = on_a_terminal(&store, &script);
    for expected in [
        "a terminal: 2",
        "stopped: 147",
        "continued",
        "resumed: 0",
        "through a pipe",
        "inner done",
        "interrupted: 130",
    ] {
        assert!(said.contains(expected), "{expected:?} is missing: {said}");
    }
    assert_nothing_left(&store, &word);
}

#[test]
fn a_branch_is_bound_into_the_namespace_of_a_process() {
    if !fuse_available() || !mounts::is_root() {
        return;
    }
    let (store, dir) = setup(false);
    let place = store.path("place");
    fs::create_dir(&place).expect("a directory");
    let place = text(&place);
    let mut holder = Command::new("unshare");
    holder.args(["--mount", "sh", "-c", "echo ready; read go; cat $0/a; cat", &place]);
    holder.stdin(Stdio::piped());
    let mut holder = Running::of(holder);
    assert_eq!(holder.line(), "ready");
    let pid = holder.child.id().to_string();
    let bind = ["branch", "bind", "--pid", &pid, "main", "--at"];
    store.fails(3, &[&bind[..], &["/no/such/place"]].concat());
    store.fails(3, &["branch", "bind", "--pid", &pid, "two"]);
    let own = std::process::id().to_string();
    store.fails(4, &["branch", "bind", "--pid", &own, "main"]);
    store.ok(&[&bind[..], &[&place]].concat());
    let mut input = holder.child.stdin.take().expect("a pipe");
    std::io::Write::write_all(&mut input, b"go\n").expect("it reads");
    assert_eq!(holder.line(), "base");
    assert!(!mounts::is_mounted(Path::new(&place)));
    assert_eq!(git(&dir, &["status", "--porcelain"]), "");
}
