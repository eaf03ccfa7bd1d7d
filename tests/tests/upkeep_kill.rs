//! Goal: a daemon that is killed while it collects garbage, repairs, exports or shows what is materialized leaves every
//! branch as it was, and the store sound or as damaged as it was; what is made of a branch is all there or not at all.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use agentfs_tests::fixture::Builder;
use agentfs_tests::fleet::{assert_sound, change, fork, mounted, status};
use agentfs_tests::{
    Connection, TestStore, campaign, fuse_available, git, git_command, mounts, tree,
};
use serde_json::json;

/// When a round ends what it has begun, at most so many microseconds later.
fn moment(round: u64, most: u64) -> Duration {
    Duration::from_micros(300 + round * 7919 % most)
}

#[test]
fn garbage_that_is_collected_by_a_killed_daemon_takes_nothing_with_it() {
    if !fuse_available() {
        return;
    }
    let (store, main) = mounted();
    change(&main);
    let side = fork(&store, "side", "main");
    let kept = store.json(&["snapshot", "create", "main"])["id"].as_str().unwrap().to_owned();
    let at_kept = tree::read(&main);
    for round in 0..campaign::rounds(10) {
        fs::write(main.join("untracked"), format!("round {round}\n")).unwrap();
        // What nobody needs: a removed file, a removed branch and a removed snapshot, all in the store.
        let garbage: Vec<u8> =
            (0..400_000_u32).map(|at| (at.wrapping_mul(round as u32 | 1) >> 7) as u8).collect();
        fs::write(main.join("garbage"), garbage).unwrap();
        let snapshot =
            store.json(&["snapshot", "create", "main"])["id"].as_str().unwrap().to_owned();
        store.ok(&["branch", "create", "gone", "--from", "main"]);
        fs::remove_file(main.join("garbage")).unwrap();
        store.ok(&["branch", "delete", "gone"]);
        store.ok(&["snapshot", "delete", &snapshot]);
        let before = (status(&main), tree::read(&main), tree::read(&side));
        store.kill_daemon_during(&["gc"], moment(round, 40_000));
        store.ok(&["status"]);
        let now = (status(&main), tree::read(&main), tree::read(&side));
        assert_eq!(now, before, "round {round}");
        assert_sound(&store);
    }
    store.ok(&["gc"]);
    assert_sound(&store);
    store.ok(&["snapshot", "restore", &kept]);
    assert_eq!(tree::read(&main), at_kept);
}

/// Files whose content nobody has but git, so that all of it can be repaired.
fn from_git(store: &TestStore, files: u32) -> PathBuf {
    let source = Builder::new(&store.path("source"));
    for number in 0..files {
        let text: String =
            (0..400).map(|line| format!("{number} {line} {}\n", line * number)).collect();
        source.file(format!("dir{}/file{number}", number % 5), text);
    }
    source.commit("first");
    store.clone(source.dir(), "main")
}

fn segment(home: &Path) -> PathBuf {
    let mut all: Vec<_> =
        fs::read_dir(home.join("segments")).unwrap().map(|one| one.unwrap().path()).collect();
    all.sort();
    all.remove(0)
}

#[test]
#[expect(clippy::print_stderr, reason = "a long run says what it met")]
fn a_killed_repair_can_be_repeated() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let main = from_git(&store, 40);
    store.wait_until("all is stored", || store.ok(&["status"]).contains("content     stored"));
    let (expected, first) = (tree::read(&main), segment(store.home()));
    let (mut damaged, mut unfinished) = (0, 0);
    for round in 0..campaign::rounds(10) {
        store.ok(&["daemon", "stop"]);
        let file = OpenOptions::new().read(true).write(true).open(&first).unwrap();
        let len = file.metadata().unwrap().len();
        let mut byte = [0];
        // Past the header of the file; what is there may be needed by nobody any more.
        let at = 64 + round * 104_729 % (len - 64);
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        // It may be repaired before the kill.
        damaged += u64::from(store.run(&["fsck"]).code != 0);
        store.kill_daemon_during(&["fsck", "--repair"], moment(round, 60_000));
        store.ok(&["status"]);
        let checked = store.run(&["fsck"]).code;
        unfinished += u64::from(checked != 0);
        let repaired = store.run(&["fsck", "--repair"]);
        assert!([0, 9].contains(&repaired.code), "round {round}: {}", repaired.stdout);
        assert_sound(&store);
        assert_eq!(tree::read(&main), expected, "round {round}");
        assert_eq!(status(&main), "", "round {round}");
    }
    eprintln!("{damaged} damaged, {unfinished} of them not repaired before the kill");
    assert!(damaged > 0, "what was damaged was never needed");
}

/// Flips a bit in the payload of every chunk of a segment, as docs/FORMAT.md has them.
fn flip_chunks(segment: &Path) {
    const CHUNK: u8 = 1;
    let mut bytes = fs::read(segment).unwrap();
    let mut at = 32;
    while at < bytes.len() {
        assert_eq!(&bytes[at..at + 4], b"rec1");
        let stored = u32::from_le_bytes(bytes[at + 12..at + 16].try_into().unwrap()) as usize;
        if bytes[at + 4] == CHUNK {
            bytes[at + 56 + stored / 2] ^= 0x10;
        }
        at += 56 + stored;
    }
    fs::write(segment, bytes).unwrap();
}

fn segment_bytes(home: &Path) -> u64 {
    let all = fs::read_dir(home.join("segments")).unwrap();
    all.map(|one| one.unwrap().metadata().map_or(0, |stat| stat.len())).sum()
}

/// A repair stores one chunk after the other; the kill comes when a part of them is there.
#[test]
#[expect(clippy::print_stderr, reason = "a long run says what it met")]
fn a_repair_that_is_killed_between_two_things_goes_on_with_the_next() {
    const FILES: u32 = 150;
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let main = from_git(&store, FILES);
    store.wait_until("all is stored", || store.ok(&["status"]).contains("content     stored"));
    let expected = tree::read(&main);
    let damage = || {
        store.ok(&["daemon", "stop"]);
        let all = fs::read_dir(store.home().join("segments")).unwrap();
        all.for_each(|one| flip_chunks(&one.unwrap().path()));
        store.ok(&["daemon", "start"]);
        segment_bytes(store.home())
    };
    let damaged = || {
        let checked = store.run(&["fsck", "--json"]).events().pop().unwrap();
        checked["damaged"].as_u64().unwrap()
    };
    let before = damage();
    assert_eq!(damaged(), u64::from(FILES));
    assert_eq!(store.run(&["fsck", "--repair"]).code, 9);
    let written = segment_bytes(store.home()) - before;
    let rounds = campaign::rounds(8);
    let mut midway = 0;
    for round in 0..rounds {
        let from = damage();
        let enough = from + written * (round + 1) / (rounds + 1);
        store.kill_daemon_when(&["fsck", "--repair"], || segment_bytes(store.home()) >= enough);
        store.ok(&["status"]);
        let left = damaged();
        assert!(left <= u64::from(FILES), "round {round}: {left}");
        midway += u64::from((1..u64::from(FILES)).contains(&left));
        let repaired = store.run(&["fsck", "--repair"]);
        let code = if left == 0 { 0 } else { 9 };
        assert_eq!(repaired.code, code, "round {round}: {}", repaired.stdout);
        assert_sound(&store);
        assert_eq!(tree::read(&main), expected, "round {round}");
        assert_eq!(status(&main), "", "round {round}");
    }
    eprintln!("{midway} of {rounds} kills came after the first and before the last repaired chunk");
    assert!(midway * 2 > rounds, "{midway} of {rounds} kills came midway");
}

/// Flips a bit of each object id that the database has of a file of git, wherever that is, and takes the parity of all
/// pages, so that nothing makes up for it. Returns how many ids were there.
fn flip_ids(database: &Path, ids: &[Vec<u8>]) -> usize {
    const PAGE_BYTES: usize = 4096;
    let mut bytes = fs::read(database).unwrap();
    let mut found = 0;
    for id in ids {
        let mut from = 0;
        while let Some(at) = bytes[from..].windows(id.len()).position(|window| window == id) {
            bytes[from + at + 7] ^= 0x10;
            from += at + id.len();
            found += 1;
        }
    }
    // Two pages of headers; groups of checksums, parity and 64 pages.
    let parities = bytes.chunks_mut(PAGE_BYTES).skip(2 + 1).step_by(2 + 64);
    parities.for_each(|parity| parity.fill(0x55));
    fs::write(database, bytes).unwrap();
    found
}

/// The copy of a database without what is damaged in it takes the place of the database at one moment.
#[test]
#[expect(clippy::print_stderr, reason = "a long run says what it met")]
fn a_database_is_the_old_one_or_the_new_one_when_its_repair_is_killed() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let main = from_git(&store, 100);
    store.wait_until("all is stored", || store.ok(&["status"]).contains("content     stored"));
    let expected = tree::read(&main);
    let listed = git(&main, &["ls-tree", "-r", "--format=%(objectname)", "HEAD"]);
    let number = |hex: &str| u8::from_str_radix(hex, 16).unwrap();
    let ids: Vec<Vec<u8>> = listed
        .lines()
        .take(5)
        .map(|id| (0..id.len() / 2).map(|at| number(&id[2 * at..2 * at + 2])).collect())
        .collect();
    let (database, new) = (store.home().join("store.redb"), store.home().join("store.redb.new"));
    let rounds = campaign::rounds(8);
    let mut midway = 0;
    for round in 0..rounds {
        store.ok(&["daemon", "stop"]);
        assert!(flip_ids(&database, &ids) > 0, "round {round}");
        store.ok(&["daemon", "start"]);
        let checked = store.run(&["fsck", "--json"]).events().pop().unwrap();
        let planned = checked["repairs"].as_array().unwrap().iter();
        let renews = |step: &serde_json::Value| step.as_str().unwrap().contains("database anew");
        assert_eq!(planned.filter(|step| renews(step)).count(), 1, "round {round}: {checked}");
        let (pause, mut begun) = (Duration::from_millis(round % 8 * 4), None);
        store.kill_daemon_when(&["fsck", "--repair"], || {
            if begun.is_none() && new.exists() {
                begun = Some(Instant::now());
            }
            begun.is_some_and(|begun| begun.elapsed() >= pause)
        });
        midway += u64::from(new.exists());
        store.ok(&["status"]);
        assert!(!new.exists(), "round {round}");
        let repaired = store.run(&["fsck", "--repair"]);
        assert!([0, 9].contains(&repaired.code), "round {round}: {}", repaired.stdout);
        store.wait_until("what is missed is found again", || store.run(&["fsck"]).code == 0);
        assert_eq!(tree::read(&main), expected, "round {round}");
        assert_eq!(status(&main), "", "round {round}");
    }
    eprintln!("{midway} of {rounds} kills came while the database was copied");
    assert!(midway > 0, "no kill came while the database was copied");
}

/// Runs a command and kills it; whether it had succeeded.
fn kill_command(store: &TestStore, args: &[&str], after: Duration) -> bool {
    let mut command = store.command(args);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap().success()
}

#[test]
fn an_export_is_there_or_is_not() {
    if !fuse_available() {
        return;
    }
    let (store, main) = mounted();
    change(&main);
    let head = git(&main, &["rev-parse", "HEAD"]);
    let exported = store.json(&["export", "main", "--ref", "refs/heads/whole"]);
    let expected_tree = exported["tree"].as_str().unwrap().to_owned();
    for round in 0..campaign::rounds(10) {
        let before = (status(&main), tree::read(&main));
        let reference = format!("refs/heads/out{round}");
        let args = ["export", "main", "--ref", &reference, "-m", "as it is"];
        let succeeded = match round % 2 {
            0 => store.kill_daemon_during(&args, moment(round, 40_000)),
            _ => kill_command(&store, &args, moment(round, 40_000)),
        };
        store.ok(&["status"]);
        assert_eq!((status(&main), tree::read(&main)), before, "round {round}");
        assert_eq!(git(&main, &["rev-parse", "HEAD"]), head, "round {round}");
        let found =
            git_command(&main, &["rev-parse", "-q", "--verify", &reference]).output().unwrap();
        assert!(found.status.success() || !succeeded, "round {round}");
        if found.status.success() {
            let tree = git(&main, &["rev-parse", &format!("{reference}^{{tree}}")]);
            assert_eq!(tree, expected_tree, "round {round}");
        }
        git(&main, &["fsck", "--no-dangling"]);
        assert_sound(&store);
    }
    // What was left half-way is in nobody's way.
    store.ok(&["export", "main", "--ref", "refs/heads/again"]);
}

/// A branch with changes, a snapshot of it and a commit, each with what a directory made of it has and what git says
/// there.
type Sources = Vec<(String, (String, BTreeMap<PathBuf, tree::Entry>))>;

fn sources(store: &TestStore, main: &Path) -> Sources {
    let id = store.json(&["snapshot", "create", "main"])["id"].as_str().unwrap().to_owned();
    fs::write(main.join("untracked"), "not in the snapshot\n").unwrap();
    let look = |what: &str| {
        let dir = store.path(&format!("expected-{what}"));
        store.ok(&["materialize", what, &dir.display().to_string()]);
        (what.to_owned(), (status(&dir), tree::read(&dir)))
    };
    let all: Sources = ["main", &id, "source@HEAD"].into_iter().map(look).collect();
    assert_eq!(all[0].1, (status(main), tree::read(main)));
    assert!(all[0].1 != all[1].1 && all[1].1 != all[2].1);
    all
}

/// What is called as something is that is not in its place yet.
fn half_made(store: &TestStore) -> Vec<PathBuf> {
    let is_hidden = |path: &PathBuf| path.file_name().unwrap().as_encoded_bytes()[0] == b'.';
    let all = fs::read_dir(store.path("")).unwrap().map(|entry| entry.unwrap().path());
    all.filter(is_hidden).collect()
}

#[test]
fn a_materialized_directory_is_all_there_or_is_not() {
    if !fuse_available() {
        return;
    }
    let (store, main) = mounted();
    change(&main);
    let sources = sources(&store, &main);
    let before = (status(&main), tree::read(&main));
    for round in 0..campaign::rounds(12) {
        let (what, expected) = &sources[usize::try_from(round).unwrap() % sources.len()];
        let dir = store.path(&format!("out{round}"));
        if round % 4 == 1 {
            fs::create_dir(&dir).unwrap();
        }
        let args = ["materialize", what, &dir.display().to_string()];
        let by_command = round % 8 > 5;
        let succeeded = match by_command {
            false => store.kill_daemon_during(&args, moment(round, 200_000)),
            true => kill_command(&store, &args, moment(round, 200_000)),
        };
        store.ok(&["status"]);
        assert_eq!((status(&main), tree::read(&main)), before, "round {round}");
        let is_made = fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_some());
        // A command that was killed cannot say that it was done.
        assert!(is_made == succeeded || (is_made && by_command), "round {round}: {what}");
        if is_made {
            assert_eq!(&(status(&dir), tree::read(&dir)), expected, "round {round}: {what}");
            git(&dir, &["fsck", "--no-dangling"]);
        }
        let left = half_made(&store);
        assert!(left.is_empty() || by_command, "round {round}: {left:?}");
        // A git that the command had begun may still be at it.
        store.wait_until("what is left is removed", || {
            half_made(&store).iter().for_each(|path| drop(fs::remove_dir_all(path)));
            half_made(&store).is_empty()
        });
        assert_sound(&store);
    }
    let dir = store.path("again");
    store.ok(&["materialize", "main", &dir.display().to_string()]);
    assert_eq!((status(&dir), tree::read(&dir)), before);
}

#[test]
fn what_another_daemon_shows_is_not_taken_for_what_is_materialized() {
    if !fuse_available() {
        return;
    }
    let (store, main) = mounted();
    change(&main);
    fork(&store, "other", "main");
    fs::write(store.path("other").join("of-the-other"), "x").unwrap();
    // git stops when the command lets it copy the repository, after the view was begun and before it is looked at.
    let (reached, on) = (store.path("reached"), store.path("on"));
    let (bin, real) = (store.path("bin"), which("git"));
    fs::create_dir(&bin).unwrap();
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = clone ]; then\n  : > {}\n  while [ ! -e {} ]; do sleep 0.01; done\nfi\nexec {} \"$@\"\n",
        reached.display(),
        on.display(),
        real.display()
    );
    fs::write(bin.join("git"), script).unwrap();
    fs::set_permissions(bin.join("git"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let dir = store.path("plain");
    let mut command = store.command(&["materialize", "main", &dir.display().to_string()]);
    command.env("PATH", path).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    store.wait_until("the repository is copied", || reached.exists());
    let views = || mounts::below(&store.home().join("exec"));
    let old: Vec<_> = views().into_iter().map(|mount| mount.dir).collect();
    store.kill_daemon();
    store.ok(&["status"]);
    let mut connection = Connection::new(&store);
    let shown = connection.call("view.begin", &json!({ "what": "other" }));
    assert_eq!(old, [Path::new(shown["dir"].as_str().unwrap())], "the place is another's now");
    fs::write(&on, "").unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!dir.exists(), "{said}{:?}", tree::read(&dir));
    assert_eq!(output.status.code(), Some(7), "{said}");
    assert!(said.contains(&format!("nothing was made at {}", dir.display())), "{said}");
    assert!(said.contains("run the command again"), "{said}");
    assert_eq!(half_made(&store), Vec::<PathBuf>::new());
    drop(connection);
    store.ok(&["materialize", "main", &dir.display().to_string()]);
    assert_eq!((status(&dir), tree::read(&dir)), (status(&main), tree::read(&main)));
    assert_sound(&store);
}

fn which(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    let mut found = std::env::split_paths(&path).map(|dir| dir.join(program));
    found.find(|path| path.exists()).unwrap()
}
