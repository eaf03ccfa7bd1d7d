//! The daemon: one for a store, started by whoever needs it, and recovered whatever ended it.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;

use agentfs_tests::{TestStore, fixture, fuse_available, git, mounts, tree};
use rustix::process::{Signal, kill_process};

fn source(store: &TestStore) -> fixture::Builder {
    let source = fixture::Builder::new(&store.path("source"));
    source.file("a", "one").file("b/c", "two").commit("one");
    source
}

#[test]
fn commands_at_once_start_one_daemon() {
    let store = TestStore::new();
    let pids: Vec<_> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| store.json(&["daemon", "start"])["pid"].as_u64().unwrap()))
            .collect();
        starts.into_iter().map(|start| start.join().unwrap()).collect()
    });
    assert!(pids.iter().all(|pid| *pid == pids[0]), "{pids:?}");
    assert_eq!(store.log().matches(" serves ").count(), 1, "{}", store.log());
}

#[test]
fn whether_it_runs_is_told_by_the_exit_code() {
    let store = TestStore::new();
    assert_eq!(store.run(&["daemon", "status"]).code, 3);
    assert!(!store.home().exists(), "looking creates nothing");
    store.ok(&["daemon", "start"]);
    assert_eq!(store.json(&["daemon", "status"])["running"], true);
    store.ok(&["daemon", "start"]);
    store.ok(&["daemon", "stop"]);
    assert_eq!(store.daemon(), None);
    assert_eq!(store.run(&["daemon", "status"]).code, 3);
    store.ok(&["daemon", "stop"]);
}

#[test]
fn only_its_user_can_use_the_socket() {
    use std::os::unix::fs::PermissionsExt;
    let store = TestStore::new();
    store.ok(&["daemon", "start"]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&store.home().join("daemon.sock")), 0o600);
    assert_eq!(mode(store.home()), 0o700);
}

#[test]
fn what_was_mounted_comes_back_after_a_stop() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let dir = store.clone(source(&store).dir(), "worktree");
    let other = store.clone(&store.path("source"), "other");
    store.ok(&["umount", &other.display().to_string()]);
    let inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(dir.join("b/c")).unwrap());
    store.ok(&["daemon", "stop"]);
    assert_eq!(mounts::below(&store.path("")), []);
    store.ok(&["daemon", "start"]);
    assert!(mounts::is_mounted(&dir));
    assert!(!mounts::is_mounted(&other), "what was unmounted stays unmounted");
    assert_eq!(fs::read_to_string(dir.join("b/c")).unwrap(), "two");
    assert_eq!(git(&dir, &["status", "--porcelain"]), "");
    let again = std::os::unix::fs::MetadataExt::ino(&fs::metadata(dir.join("b/c")).unwrap());
    assert_eq!(inode, again);
}

#[test]
fn a_killed_daemon_is_replaced_by_the_next_command() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let source = source(&store);
    let dirs = ["one", "two", "three"].map(|name| store.clone(source.dir(), name));
    // Somebody works in one of them.
    let held = fs::File::open(dirs[0].join("a")).unwrap();
    store.kill_daemon();
    let listed = store.json(&["ps"]);
    let worktrees = listed["worktrees"].as_array().unwrap();
    assert_eq!(worktrees.len(), 3);
    assert!(worktrees.iter().all(|worktree| worktree["mounted"] == true), "{listed}");
    for dir in &dirs {
        assert_eq!(fs::read_to_string(dir.join("b/c")).unwrap(), "two");
        assert_eq!(git(dir, &["status", "--porcelain"]), "");
    }
    assert_eq!(mounts::below(&store.path("")).len(), 3, "dead mounts are cleared");
    drop(held);
}

#[test]
fn an_ingest_that_was_cut_off_goes_on() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let dir = store.clone(fixture::codex(), "worktree");
    store.kill_daemon();
    let ingested = || {
        let status = store.json(&["status", &dir.display().to_string()]);
        status["worktrees"][0]["ingested"] == true
    };
    store.wait_until("the ingest ends", ingested);
    store.ok(&["fsck"]);
    assert_eq!(git(&dir, &["status", "--porcelain"]), "");
}

#[test]
fn a_signal_ends_it_without_a_dead_mount() {
    if !fuse_available() {
        return;
    }
    for signal in [Signal::TERM, Signal::INT] {
        let store = TestStore::new();
        let dir = store.clone(source(&store).dir(), "worktree");
        let held = fs::File::open(dir.join("a")).unwrap();
        store.signal(store.daemon().unwrap(), signal);
        assert_eq!(mounts::below(&store.path("")), [], "{signal:?}");
        assert!(!store.home().join("daemon.sock").exists());
        drop(held);
        store.ok(&["ps"]);
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "one");
    }
}

#[test]
fn a_store_below_a_very_long_path_works() {
    if !fuse_available() {
        return;
    }
    let mut store = TestStore::new();
    store.set_home(store.path("").join("d".repeat(120)).join("e".repeat(120)).join("store"));
    let dir = store.clone(source(&store).dir(), "worktree");
    assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "one");
    store.kill_daemon();
    store.ok(&["ps"]);
    assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "one");
    store.ok(&["daemon", "stop"]);
    assert_eq!(store.daemon(), None);
}

#[test]
fn a_daemon_that_does_not_answer_is_told_with_what_to_do() {
    let store = TestStore::new();
    store.ok(&["daemon", "start"]);
    let pid = store.daemon().unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    let said = store.fails(7, &["ps"]);
    assert!(said.contains("does not answer"), "{said}");
    assert!(said.contains(&format!("kill -9 {}", pid.as_raw_nonzero())), "{said}");
    kill_process(pid, Signal::CONT).unwrap();
    store.ok(&["ps"]);
}

#[test]
fn a_socket_of_another_user_is_refused() {
    if !mounts::is_root() {
        return;
    }
    let store = TestStore::new();
    fs::create_dir(store.home()).unwrap();
    let path = store.home().join("daemon.sock");
    let _listener = UnixListener::bind(&path).unwrap();
    std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
    let said = store.fails(7, &["ps"]);
    assert!(said.contains(&path.display().to_string()) && said.contains("65534"), "{said}");
}

/// What a process does that listens in the place of the daemon.
#[derive(Clone, Copy, Debug)]
enum Stranger {
    /// It accepts and never answers.
    Silent,
    /// It accepts and closes at once.
    HangsUp,
    /// It answers what is no message.
    Garbage,
    /// It says what is no message, asked or not, and closes.
    GarbageAndHangsUp,
    /// It runs as another user.
    OtherUser,
}

/// Ends the listening when it is dropped, also by a panic.
struct Ends<'a>(&'a UnixListener);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        rustix::net::shutdown(self.0, rustix::net::Shutdown::Both).ok();
    }
}

impl Stranger {
    /// Listens on `path` as long as `with` runs.
    fn listen(self, path: &Path, with: impl FnOnce()) {
        let listener = UnixListener::bind(path).unwrap();
        std::thread::scope(|scope| {
            let listener = &listener;
            if matches!(self, Self::OtherUser) {
                // The kernel remembers who has asked to listen: a thread that has become another.
                let other = Some(rustix::thread::Uid::from_raw(65534));
                let listen = move || {
                    rustix::thread::set_thread_res_uid(None, other, None).unwrap();
                    rustix::net::listen(listener, 8).unwrap();
                };
                scope.spawn(listen).join().unwrap();
            }
            let _ends = Ends(listener);
            scope.spawn(move || self.serve(listener));
            with();
        });
    }

    fn serve(self, listener: &UnixListener) {
        let mut silent = Vec::new();
        while let Ok((mut stream, _)) = listener.accept() {
            match self {
                Self::Silent | Self::OtherUser => silent.push(stream),
                Self::HangsUp => {}
                Self::Garbage => {
                    let asked = BufReader::new(&stream).read_line(&mut String::new());
                    asked.and_then(|_| (&stream).write_all(b"garbage\n")).ok();
                    silent.push(stream);
                }
                Self::GarbageAndHangsUp => {
                    stream.write_all(b"garbage\n").ok();
                }
            }
        }
    }
}

#[test]
fn what_another_process_listens_on_is_no_daemon() {
    use Stranger::{Garbage, GarbageAndHangsUp, HangsUp, OtherUser, Silent};
    let mut strangers = vec![
        (Silent, "does not answer"),
        (HangsUp, "hangs up"),
        (Garbage, "no daemon says"),
        (GarbageAndHangsUp, "no daemon says"),
    ];
    if mounts::is_root() {
        strangers.push((OtherUser, "belongs to user 65534"));
    }
    std::thread::scope(|scope| {
        for (stranger, why) in strangers {
            scope.spawn(move || refuse_stranger(stranger, why));
        }
    });
}

/// Every command leaves a socket on which `stranger` listens, and the store, as they are.
fn refuse_stranger(stranger: Stranger, why: &str) {
    let store = TestStore::new();
    let source = source(&store).dir().display().to_string();
    store.ok(&["clone", "--no-mount", "--wait", &source]);
    store.ok(&["daemon", "stop"]);
    let mut before = tree::read(store.home());
    let socket = store.home().join("daemon.sock");
    let new = store.path_text("new");
    stranger.listen(&socket, || {
        // A silent one costs each command its patience.
        let commands: &[&[&str]] = match stranger {
            Stranger::Silent => &[&["ps"]],
            _ => &[
                &["ps"],
                &["daemon", "status"],
                &["daemon", "stop"],
                &["daemon", "start"],
                &["clone", "--no-mount", &source],
            ],
        };
        for args in commands {
            let said = store.fails(7, args);
            assert!(said.contains(why), "{stranger:?}: {args:?} says {said}");
            assert!(said.contains(&socket.display().to_string()), "{said}");
            assert!(said.contains("AGENTFS_HOME"), "{stranger:?}: {args:?} says {said}");
            assert_eq!(said.matches("agentfs: ").count(), 1, "one message: {said}");
        }
        // This one is a daemon itself.
        if fuse_available() {
            let said = store.fails(7, &["mount", "--foreground", "source@main", &new]);
            assert!(said.contains(&socket.display().to_string()), "{stranger:?}: {said}");
            assert!(!Path::new(&new).exists());
        }
        assert!(std::os::unix::net::UnixStream::connect(&socket).is_ok(), "the socket is left");
    });
    fs::remove_file(&socket).unwrap();
    // In the lock, the one in the foreground has left its number.
    let mut after = tree::read(store.home());
    let lock = Path::new("daemon.lock");
    assert_eq!(before.remove(lock).is_some(), after.remove(lock).is_some());
    assert_eq!(before, after, "{stranger:?}");
    assert_eq!(store.daemon(), None);
    store.ok(&["ps"]);
}

#[test]
fn a_directory_that_has_vanished_does_not_keep_the_others_away() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let source = source(&store);
    fs::create_dir(store.path("parent")).unwrap();
    let lost = store.clone(source.dir(), "parent/lost");
    let kept = store.clone(source.dir(), "kept");
    store.ok(&["daemon", "stop"]);
    fs::remove_dir_all(store.path("parent")).unwrap();
    store.ok(&["daemon", "start"]);
    assert!(mounts::is_mounted(&kept));
    let listed = store.json(&["ps"]);
    let failure = listed["worktrees"]
        .as_array()
        .unwrap()
        .iter()
        .find(|worktree| worktree["mounted"] == false)
        .and_then(|worktree| worktree["failure"].as_str());
    assert!(failure.unwrap().contains("parent/lost"), "{listed}");
    fs::create_dir(store.path("parent")).unwrap();
    store.ok(&["umount", &lost.display().to_string()]);
    assert_eq!(store.json(&["ps"])["worktrees"].as_array().unwrap().len(), 1);
}

#[test]
fn any_program_can_speak_to_it() {
    let store = TestStore::new();
    store.ok(&["daemon", "start"]);
    let socket = store.home().join("daemon.sock");
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    stream.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":\"a\",\"method\":\"hello\",\"params\":{\"protocol\":1,\"client\":\"test\"}}\n").unwrap();
    stream.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":\"b\",\"method\":\"status\"}\n").unwrap();
    let mut reader = BufReader::new(stream);
    let mut ids: Vec<_> = (0..2)
        .map(|_| {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let answer: serde_json::Value = serde_json::from_str(&line).unwrap();
            assert!(answer["result"]["version"].is_string(), "{answer}");
            answer["id"].as_str().unwrap().to_owned()
        })
        .collect();
    ids.sort();
    assert_eq!(ids, ["a", "b"]);
}
