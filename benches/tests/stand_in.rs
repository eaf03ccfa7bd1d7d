//! Goal: the scoreboard's machinery, from the command line to the rendered page, against a
//! stand-in for agentfs; above all that a wrong answer fails a phase.

#![allow(clippy::print_stderr)] // A skipped test must say so.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// Runs the scoreboard in small mode with the stand-in; `None` where that is impossible.
fn scoreboard(work: &Path, args: &[&str], lies: bool) -> Option<Output> {
    if !rustix::process::geteuid().is_root() {
        let required = std::env::var_os("AGENTFS_REQUIRE_FUSE").is_some_and(|value| value == "1");
        assert!(!required, "the stand-in needs root for its bind mounts");
        eprintln!("SKIPPED: the stand-in needs root for its bind mounts");
        return None;
    }
    let stand_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stand-in.sh");
    let mut command = Command::new(env!("CARGO_BIN_EXE_scoreboard"));
    command.args(["--small", "--work"]).arg(work.join("work")).arg("--agentfs").arg(stand_in);
    command.arg("--workspace").arg(work).args(args);
    if lies {
        command.env("STAND_IN_LIES", "1");
    }
    Some(command.output().unwrap())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Nothing of a run is left: no mount, no directory.
fn assert_cleaned(work: &Path) {
    let runs = work.join("work/runs");
    assert_eq!(fs::read_dir(&runs).unwrap().count(), 0);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&*runs.to_string_lossy()), "{mounts}");
}

#[test]
fn a_run_measures_renders_and_leaves_nothing() {
    let work = tempfile::tempdir().unwrap();
    // Of every kind one; the continuous integration runs all of them, against agentfs itself.
    let phases = [
        "worktree",
        "lstat",
        "fsck",
        "fleet",
        "agents",
        "growth",
        "create",
        "unlink",
        "checkout",
        "write_small",
    ];
    let args: Vec<&str> = phases.iter().flat_map(|phase| ["--phase", phase]).collect();
    let Some(run) = scoreboard(work.path(), &args, false) else { return };
    let (tables, log) = (text(&run.stdout), text(&run.stderr));
    assert!(run.status.success(), "{log}");
    let titles = [
        "one more worktree",
        "lstat",
        "fsck of all",
        "a switch to",
        "one agent's pass",
        "1,200 files",
        "create +",
        "unlink",
    ];
    for title in titles.into_iter().chain(["300 commits away", "write a new file"]) {
        assert!(tables.contains(title), "{title} is missing in\n{tables}");
    }
    assert!(!tables.contains("**failed**"), "{tables}");
    assert!(!work.path().join("benches").exists(), "a small run was filed");
    assert_cleaned(work.path());
}

#[test]
fn a_wrong_answer_fails_its_phase() {
    let work = tempfile::tempdir().unwrap();
    let args = ["--phase", "status_warm", "--phase", "cat_big", "--phase", "echo"];
    let Some(run) = scoreboard(work.path(), &args, true) else { return };
    let (tables, log) = (text(&run.stdout), text(&run.stderr));
    assert_eq!(run.status.code(), Some(1), "{log}");
    assert!(log.contains("status_warm: FAILED") && log.contains("another content"), "{log}");
    assert!(tables.contains("**`git status`** failed"), "{tables}");
    assert_cleaned(work.path());
}

/// The stand-in never counts a sync: whoever does not do what it says fails.
#[test]
fn a_sync_that_did_not_reach_the_store_fails_its_phase_and_no_other() {
    let work = tempfile::tempdir().unwrap();
    let args = ["--phase", "append", "--phase", "append_synced"];
    let Some(run) = scoreboard(work.path(), &args, false) else { return };
    let (tables, log) = (text(&run.stdout), text(&run.stderr));
    assert_eq!(run.status.code(), Some(1), "{log}");
    assert!(log.contains("append_synced: FAILED") && log.contains("asked for 0 syncs"), "{log}");
    assert!(!log.contains("append: FAILED"), "{log}");
    assert!(tables.contains("**append 4 KiB + fsync** failed"), "{tables}");
    assert_cleaned(work.path());
}

#[test]
fn a_lever_reaches_only_the_side_that_goes_without() {
    let work = tempfile::tempdir().unwrap();
    let args = ["--phase", "status_warm", "--ab", "no_open", "--keep"];
    let Some(run) = scoreboard(work.path(), &args, false) else { return };
    assert!(run.status.success(), "{}", text(&run.stderr));
    assert!(text(&run.stderr).contains("without/with"), "{}", text(&run.stderr));
    let mut seen = Vec::new();
    let runs = fs::read_dir(work.path().join("work/runs")).unwrap();
    for store in runs.flat_map(|run| fs::read_dir(run.unwrap().path()).unwrap()) {
        let store = store.unwrap().path();
        // Stores with a worktree; those that were only asked for their levers have none.
        if store.join("mounts").exists() {
            seen.push(fs::read_to_string(store.join("levers")).unwrap());
        }
    }
    seen.sort();
    assert_eq!(seen, ["\n", "no_open\n"]);
}

#[test]
fn a_lever_that_does_not_exist_is_refused() {
    let work = tempfile::tempdir().unwrap();
    let Some(run) = scoreboard(work.path(), &["--ab", "no_such"], false) else { return };
    assert_eq!(run.status.code(), Some(1));
    assert!(text(&run.stderr).contains("no lever `no_such`"), "{}", text(&run.stderr));
    assert_cleaned(work.path());
}

#[test]
fn a_wrong_name_is_refused_before_anything_is_done() {
    let work = tempfile::tempdir().unwrap();
    let Some(run) = scoreboard(work.path(), &["--phase", "no-such"], false) else { return };
    assert_eq!(run.status.code(), Some(1));
    assert!(text(&run.stderr).contains("no-such"));
    assert!(!work.path().join("work").exists());
}
