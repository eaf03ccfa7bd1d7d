//! Goal: `--profile` says when a command and the daemon got where, in order, within the time that the command took, and
//! changes nothing else of what it says.

use std::fs;
use std::time::Instant;

use agentfs_tests::fixture::Builder;
use agentfs_tests::{Connection, TestStore, fuse_available, git};
use serde_json::{Value, json};

/// A checkpoint: who, what, when in milliseconds.
type Checkpoint = (String, String, f64);

/// Runs agentfs with `--profile` and returns the checkpoints, after looking at what must hold of all.
fn profile(store: &TestStore, args: &[&str], code: i32) -> Vec<Checkpoint> {
    let begun = Instant::now();
    let output = store.command(&[&["--json", "--profile"], args].concat()).output().unwrap();
    let took = begun.elapsed().as_secs_f64() * 1000.0;
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    let (said, told) = (text(&output.stdout), text(&output.stderr));
    let last: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!(last["event"], if code == 0 { "result" } else { "error" }, "{said}");
    let event: Value = serde_json::from_str(told.trim()).unwrap();
    assert_eq!(event["event"], "profile");
    let of = |one: &Value, what: &str| one[what].as_str().unwrap().to_owned();
    let all: Vec<_> = event["checkpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (of(one, "by"), of(one, "what"), one["ms"].as_f64().unwrap()))
        .collect();
    assert!(all.is_sorted_by_key(|(_, _, ms)| *ms), "{all:?}");
    let (by, what, ms) = all.last().unwrap();
    assert_eq!((by.as_str(), what.as_str()), ("command", "done"));
    assert!(*ms <= took, "{ms} of {took}");
    all
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// The names of the checkpoints.
fn names(all: &[Checkpoint]) -> Vec<&str> {
    all.iter().map(|(_, what, _)| what.as_str()).collect()
}

/// What the daemon has done between the sending of `method` and its answer; it has done nothing else.
#[track_caller]
fn steps<'a>(all: &'a [Checkpoint], method: &str) -> Vec<&'a str> {
    let at = |what: String| all.iter().position(|one| one.1 == what).unwrap();
    let (sent, answered) = (at(format!("{method} sent")), at(format!("{method} answered")));
    for (number, (by, what, _)) in all.iter().enumerate() {
        let is_between = sent < number && number < answered;
        assert_eq!(by == "daemon", is_between, "{what} of {all:?}");
    }
    assert!(all[answered - 1].2 > all[sent].2, "{all:?}");
    names(&all[sent + 1..answered])
}

#[test]
fn each_command_says_when_it_and_the_daemon_got_where() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let source = Builder::new(&store.path("source"));
    source.file("one", "1\n").commit("first");
    source.file("one", "2\n").commit("second");
    let (from, main) = (source.dir().display().to_string(), store.path_text("main"));
    let all = profile(&store, &["clone", "--wait", &from, &main], 0);
    let begun: std::collections::BTreeSet<_> = names(&all)[..3].iter().copied().collect();
    assert_eq!(begun, ["connected to the daemon", "fetched", "started the daemon"].into());
    assert_eq!(
        steps(&all, "clone"),
        [
            "clone: repository",
            "clone: trees",
            "mount: git directory",
            "mount: worktree",
            "mount: kernel",
            "mount: index",
            "clone: record",
            "taken in",
        ]
    );

    let fork = store.path_text("fork");
    let args = ["branch", "create", "fork", "--from", "main", "--mount", &fork];
    let all = profile(&store, &args, 0);
    assert_eq!(names(&all)[..2], ["connected to the daemon", "branch.create sent"]);
    assert_eq!(
        steps(&all, "branch.create"),
        [
            "fork: turn",
            "fork: seal",
            "fork: git branch",
            "fork: git directory",
            "fork: record",
            "mount: git directory",
            "fork: worktree",
            "mount: worktree",
            "mount: kernel",
            "mount: index",
            "fork: mount",
        ]
    );
    fs::write(store.path("fork").join("one"), "changed\n").unwrap();
    let kept =
        ["git state", "seal", "git reference", "record"].map(|step| format!("snapshot: {step}"));
    let all = profile(&store, &["snapshot", "create", "fork"], 0);
    assert_eq!(
        steps(&all, "snapshot.create"),
        [&["snapshot: turn".to_owned()], &kept[..]].concat()
    );

    git(&store.path("fork"), &["checkout", "--quiet", "--", "one"]);
    let all = profile(&store, &["switch", &fork, "main~1"], 0);
    let taken = steps(&all, "switch");
    let own = |steps: &[&str]| steps.iter().map(|step| format!("switch: {step}")).collect();
    let begin: Vec<String> = own(&["understand", "plan", "take in", "prepare"]);
    let end: Vec<String> = own(&["keep", "change", "have kernel and git follow"]);
    assert_eq!(taken, [&begin[..], &kept[..], &end[..]].concat());

    store.ok(&["umount", &fork]);
    let all = profile(&store, &["mount", "fork", &fork], 0);
    assert_eq!(
        steps(&all, "mount"),
        ["branch", "git directory", "worktree", "kernel", "index", "record"]
            .map(|step| format!("mount: {step}"))
    );

    // What fails has got somewhere as well.
    let all = profile(&store, &["snapshot", "restore", "s0000"], 3);
    assert_eq!(steps(&all, "snapshot.restore"), ["restore: turn"]);
    // Nobody is asked for that.
    assert_eq!(names(&profile(&store, &["version"], 0)), ["done"]);
}

#[test]
fn what_a_command_says_otherwise_is_the_same() {
    let store = TestStore::new();
    store.ok(&["daemon", "start"]);
    let run = |args: &[&str]| {
        let output = store.command(args).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        (text(&output.stdout).to_owned(), text(&output.stderr).to_owned())
    };
    let (said, silent) = run(&["ps"]);
    assert_eq!(silent, "");
    let (same, told) = run(&["ps", "--profile"]);
    assert_eq!(same, said);
    let lines: Vec<_> = told.lines().map(|line| line.split_once(" ms  ").unwrap().1).collect();
    assert_eq!(lines, ["connected to the daemon", "status sent", "status answered", "done"]);
    // Whoever does not ask is not told.
    let mut connection = Connection::new(&store);
    assert_eq!(connection.notified("status", &json!({})), [""; 0]);
    assert_eq!(connection.notified("status", &json!({ "steps": true })), ["steps"]);
}
