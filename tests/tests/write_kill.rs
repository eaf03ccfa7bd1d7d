//! Goal: a daemon that is killed loses nothing that it has acknowledged.
//!
//! Threads change files of a worktree while its daemon is killed at random moments. Each keeps its
//! own record, outside of the worktree, of what was acknowledged. After each restart everything on
//! the records is there, bytes and names, and the store has no damage. The one operation of each
//! thread that was under way may have happened or not, but nothing in between.
//!
//! `AGENTFS_TEST_ROUNDS` makes it longer: 500 rounds take about half an hour.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use agentfs_tests::{TestStore, fixture::Builder, fuse_available, git, git_command};

/// A small generator of choices (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}

/// What is known to be so below the directory of one thread.
#[derive(Default)]
struct Record {
    files: BTreeMap<String, State>,
    /// What the operation that was under way would have made so, for the names that it touches.
    pending: Vec<(String, Option<State>)>,
    /// If it writes, how many bytes of the file are known to be written: the kernel may send one
    /// write in parts, and says so.
    written: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    bytes: Vec<u8>,
    mode: u32,
}

impl Record {
    /// Does one operation that is one change, and records that it was acknowledged.
    fn change(
        &mut self,
        will_be: Vec<(String, Option<State>)>,
        operation: impl FnOnce() -> io::Result<()>,
    ) -> io::Result<()> {
        (self.pending, self.written) = (will_be, None);
        operation()?;
        for (name, state) in std::mem::take(&mut self.pending) {
            match state {
                Some(state) => drop(self.files.insert(name, state)),
                None => drop(self.files.remove(&name)),
            }
        }
        Ok(())
    }

    /// Compares with what is in `dir`, and takes over what became of the pending operation.
    fn verify(&mut self, dir: &Path) {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(dir).expect("the directory is there") {
            let entry = entry.expect("an entry");
            let name = entry.file_name().into_string().expect("a plain name");
            let metadata = entry.metadata().expect("its attributes");
            let bytes = fs::read(entry.path()).expect("its bytes");
            assert_eq!(bytes.len() as u64, metadata.len(), "{name}");
            found.insert(name, State { bytes, mode: metadata.permissions().mode() & 0o7777 });
        }
        let mut pending = std::mem::take(&mut self.pending);
        if let (Some(written), [(name, Some(will_be))]) = (self.written, &mut pending[..]) {
            let (old, new) = (&self.files[name].bytes, &will_be.bytes);
            let is = &found.get(name).expect("it was not removed").bytes;
            assert!(is.len() >= written && is.len() <= new.len(), "{name}");
            let of_either =
                |(at, byte)| new[at] == byte || at >= written && old.get(at) == Some(&byte);
            assert!(is.iter().copied().enumerate().all(of_either), "{name} has bytes of nobody");
            will_be.bytes = is.clone();
        }
        let happened = pending.iter().all(|(name, state)| found.get(name) == state.as_ref());
        let not_happened = pending.iter().all(|(name, _)| found.get(name) == self.files.get(name));
        assert!(happened || not_happened, "half of an operation: {:?}", names(&pending));
        if happened {
            for (name, state) in pending {
                match state {
                    Some(state) => drop(self.files.insert(name, state)),
                    None => drop(self.files.remove(&name)),
                }
            }
        }
        let recorded: Vec<_> = self.files.keys().collect();
        assert_eq!(found.keys().collect::<Vec<_>>(), recorded, "the names in {}", dir.display());
        for (name, state) in &found {
            assert!(self.files[name] == *state, "{name} is not what was acknowledged");
        }
    }
}

fn names(pending: &[(String, Option<State>)]) -> Vec<&String> {
    pending.iter().map(|(name, _)| name).collect()
}

/// Works in `dir` until something fails, which must be because the daemon was killed.
fn work(dir: &Path, record: &mut Record, dice: &mut Dice, killed: &AtomicBool) {
    loop {
        if let Err(error) = step(dir, record, dice) {
            assert!(killed.load(Ordering::SeqCst), "before the daemon was killed: {error}");
            return;
        }
    }
}

fn step(dir: &Path, record: &mut Record, dice: &mut Dice) -> io::Result<()> {
    let name = format!("f{}", dice.roll(40));
    let path = dir.join(&name);
    let now = record.files.get(&name).cloned();
    let now_len = now.as_ref().map_or(0, |now| now.bytes.len());
    let fill = dice.roll(256) as u8;
    match (dice.roll(10), now) {
        (_, None) => {
            let made = State { bytes: Vec::new(), mode: 0o644 };
            record.change(vec![(name, Some(made))], || File::create_new(&path).map(drop))
        }
        (0..4, Some(mut state)) => {
            let len = [10, 5_000, 70_000, 400_000][dice.roll(4) as usize];
            state.bytes.extend(std::iter::repeat_n(fill, len));
            let mut known = now_len;
            let done = record.change(vec![(name, Some(state))], || {
                known += OpenOptions::new().append(true).open(&path)?.write(&vec![fill; len])?;
                let whole = known == now_len + len;
                if whole { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
            });
            record.written = done.is_err().then_some(known);
            done
        }
        (4, Some(mut state)) => {
            let at = dice.roll(state.bytes.len() as u64 + 1) as usize;
            let end = (at + 3_000).min(state.bytes.len());
            state.bytes[at..end].fill(fill);
            let done = record.change(vec![(name, Some(state))], || {
                let file = OpenOptions::new().write(true).open(&path)?;
                if end > at {
                    file.write_all_at(&vec![fill; end - at], at as u64)?;
                }
                if fill.is_multiple_of(4) { file.sync_all() } else { Ok(()) }
            });
            record.written = done.is_err().then_some(0);
            done
        }
        (5, Some(mut state)) => {
            let len = dice.roll(state.bytes.len() as u64 * 2 + 1) as usize;
            state.bytes.resize(len, 0);
            record.change(vec![(name, Some(state))], || {
                OpenOptions::new().write(true).open(&path)?.set_len(len as u64)
            })
        }
        (6, Some(mut state)) => {
            state.mode = 0o600 | u32::from(fill) & 0o77;
            let mode = state.mode;
            record.change(vec![(name, Some(state))], || {
                fs::set_permissions(&path, fs::Permissions::from_mode(mode))
            })
        }
        (7 | 8, Some(state)) => {
            let other = format!("f{}", dice.roll(40));
            if other == name {
                return Ok(());
            }
            let to = dir.join(&other);
            record.change(vec![(name, None), (other, Some(state))], || fs::rename(&path, to))
        }
        (_, Some(_)) => record.change(vec![(name, None)], || fs::remove_file(&path)),
    }
}

/// Commits in `dir`, a directory of the worktree, until something fails.
fn commit(mounted: &Path, dir: &Path, dice: &mut Dice, last: &mut Option<String>) {
    loop {
        let name = format!("c{}", dice.roll(20));
        let text = format!("{}\n", dice.roll(u64::MAX));
        if fs::write(dir.join(&name), text).is_err() {
            return;
        }
        for args in [&["add", "-A", "commits"][..], &["commit", "--quiet", "-m", "more"]] {
            match git_command(mounted, args).output() {
                Ok(output) if output.status.success() => {}
                _ => return,
            }
        }
        match git_command(mounted, &["rev-parse", "HEAD"]).output() {
            Ok(output) if output.status.success() => {
                *last = Some(String::from_utf8_lossy(&output.stdout).trim().to_owned());
            }
            _ => return,
        }
    }
}

#[test]
fn what_a_killed_daemon_has_acknowledged_is_there() {
    if !fuse_available() {
        return;
    }
    let rounds = std::env::var("AGENTFS_TEST_ROUNDS").ok().and_then(|text| text.parse().ok());
    let rounds: u64 = rounds.unwrap_or(8);
    let store = TestStore::with_limit(Duration::from_secs(120 + 20 * rounds));
    let builder = Builder::new(&store.path("source"));
    builder.file("file", "x").file("sub/other", "y").commit("one");
    let mounted = store.clone(builder.dir(), "mounted");
    let dirs: Vec<PathBuf> = (0..3).map(|number| mounted.join(format!("w{number}"))).collect();
    let commits = mounted.join("commits");
    for dir in dirs.iter().chain([&commits]) {
        fs::create_dir(dir).expect("a directory");
    }
    let mut records: Vec<Record> = dirs.iter().map(|_| Record::default()).collect();
    let mut last = None;
    for round in 0..rounds {
        let mut dice = Dice(round);
        let killed = AtomicBool::new(false);
        thread::scope(|scope| {
            for (number, (dir, record)) in dirs.iter().zip(&mut records).enumerate() {
                let (killed, mut dice) = (&killed, Dice(round * 100 + number as u64));
                scope.spawn(move || work(dir, record, &mut dice, killed));
            }
            let (mounted, commits, last) = (&mounted, &commits, &mut last);
            scope.spawn(move || commit(mounted, commits, &mut Dice(round * 100 + 99), last));
            thread::sleep(Duration::from_millis(20 + dice.roll(1500)));
            killed.store(true, Ordering::SeqCst);
            store.kill_daemon();
        });
        store.ok(&["status"]);
        for (dir, record) in dirs.iter().zip(&mut records) {
            record.verify(dir);
        }
        // git may have been killed while it held its lock, as in any worktree.
        let git_dir = git(&mounted, &["rev-parse", "--absolute-git-dir"]);
        fs::remove_file(Path::new(&git_dir).join("index.lock")).ok();
        if let Some(last) = &last {
            git(&mounted, &["merge-base", "--is-ancestor", last, "HEAD"]);
            git(&mounted, &["reset", "--quiet", "--hard", "HEAD"]);
            assert_eq!(git(&mounted, &["status", "--porcelain", "commits"]), "");
            git(&mounted, &["fsck", "--connectivity-only"]);
        }
        store.ok(&["fsck"]);
    }
}

#[test]
fn a_branch_has_its_changes_wherever_it_is_mounted_again() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let builder = Builder::new(&store.path("source"));
    builder.file("file", "x").file(".gitignore", "*.o\n").file("gone", "z").commit("one");
    let mounted = store.clone(builder.dir(), "mounted");
    fs::write(mounted.join("file"), "changed").expect("it can be written");
    fs::write(mounted.join("a.o"), "ignored").expect("it can be written");
    fs::write(mounted.join("staged"), "staged").expect("it can be written");
    git(&mounted, &["add", "staged"]);
    fs::remove_file(mounted.join("gone")).expect("it can be removed");
    let changes = &store.json(&["status"])["worktrees"][0]["changes"];
    assert!(changes["inodes"].as_u64() > Some(3) && changes["failure"].is_null(), "{changes}");
    let status = git(&mounted, &["status", "--porcelain", "--ignored"]);
    assert_eq!(status, " M file\n D gone\nA  staged\n!! a.o");
    store.ok(&["umount", &mounted.display().to_string()]);
    let again = store.path("again");
    store.ok(&["mount", "main", &again.display().to_string()]);
    assert_eq!(git(&again, &["status", "--porcelain", "--ignored"]), status);
    assert_eq!(fs::read_to_string(again.join("a.o")).expect("it is there"), "ignored");
    git(&again, &["reset", "--quiet", "--hard"]);
    git(&again, &["clean", "-fdxq"]);
    assert_eq!(git(&again, &["status", "--porcelain", "--ignored"]), "");
    let mut file = File::create(again.join("file")).expect("it can be written");
    file.write_all(b"x").and_then(|()| file.sync_all()).expect("it is written");
    assert_eq!(git(&again, &["status", "--porcelain"]), "");
}
