//! A store for one test, with everything that must end when the test does.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::binary::agentfs;
use crate::user::OrdinaryUser;
use crate::{fixture, mounts};

/// How long a test may take.
const TEST_LIMIT: Duration = Duration::from_secs(180);
/// How long a command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// How long a test may take to fail after its limit.
const GRACE: Duration = Duration::from_secs(20);

/// A store in a temporary directory. Dropping it stops the daemon, unmounts and removes everything.
pub struct TestStore {
    dir: TempDir,
    home: PathBuf,
    git_config: PathBuf,
    levers_on: String,
    user: Option<OrdinaryUser>,
    done: Arc<(Mutex<bool>, Condvar)>,
}

/// How a command has ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The exit code; -1 if a signal has ended it.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it said about errors and progress.
    pub stderr: String,
}

impl Finished {
    /// The objects on standard output, one a line.
    ///
    /// # Panics
    /// If a line is no JSON.
    pub fn events(&self) -> Vec<Value> {
        let parse =
            |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line:?}"));
        self.stdout.lines().map(parse).collect()
    }
}

impl Default for TestStore {
    fn default() -> Self {
        Self::new()
    }
}

impl TestStore {
    /// An empty store for a test with the usual time limit.
    ///
    /// # Panics
    /// If there is no room for it.
    pub fn new() -> Self {
        Self::with_limit(TEST_LIMIT)
    }

    /// An empty store for a test that may take `limit`.
    ///
    /// # Panics
    /// If there is no room for it.
    pub fn with_limit(limit: Duration) -> Self {
        let dir = tempfile::Builder::new().prefix("agentfs-test-").tempdir().expect("a directory");
        let root = fs::canonicalize(dir.path()).expect("the directory exists");
        let done = Arc::new((Mutex::new(false), Condvar::new()));
        let home = root.join("store");
        let (watched, lock) = (Arc::clone(&done), home.join("daemon.lock"));
        thread::spawn(move || watch(&watched, limit, &root, &lock));
        Self {
            dir,
            home,
            git_config: "/dev/null".into(),
            levers_on: String::new(),
            user: None,
            done,
        }
    }

    /// The store's directory.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// Has daemons that are started from now on mount with these levers on, by name with commas between them.
    pub fn set_levers_on(&mut self, names: &str) {
        self.levers_on = names.into();
    }

    /// Moves the store to another directory below the temporary one.
    pub fn set_home(&mut self, home: PathBuf) {
        self.home = home;
    }

    /// Mounts a file system in memory with the `options` of mount(8), or mounts it anew with others, and
    /// moves the store there. Returns where it is. Needs root.
    ///
    /// # Panics
    /// If it cannot be mounted.
    pub fn set_medium(&mut self, options: &str) -> PathBuf {
        let medium = self.path("medium");
        let mut mount = Command::new("mount");
        match fs::create_dir(&medium) {
            Ok(()) => mount.args(["-t", "tmpfs", "-o", options, "none"]),
            Err(_) => mount.args(["-o", &format!("remount,{options}")]),
        };
        let mounted = mount.arg(&medium).status().expect("mount can be run");
        assert!(mounted.success(), "mount {options:?}");
        self.home = medium.join("store");
        medium
    }

    /// Makes a file system in which files can share blocks, of half a gigabyte, and moves the store there. Returns
    /// where it is; nothing where such a file system cannot be made or mounted. Needs root.
    ///
    /// # Panics
    /// If there is no room for it.
    pub fn set_sharing_medium(&mut self) -> Option<PathBuf> {
        let (image, medium) = (self.path("image"), self.path("medium"));
        File::create(&image).and_then(|file| file.set_len(512 << 20)).expect("an image");
        let made = Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&image).status();
        made.ok().filter(ExitStatus::success)?;
        fs::create_dir(&medium).expect("a directory");
        let mounted = Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&medium).status();
        mounted.ok().filter(ExitStatus::success)?;
        self.home = medium.join("store");
        Some(medium)
    }

    /// Has agentfs and what [`TestStore::program`] runs use `path` as the user's git configuration.
    pub fn set_git_config(&mut self, path: PathBuf) {
        self.git_config = path;
    }

    /// Runs everything from now on as an ordinary user, and moves the store to the directory of that
    /// user, `user`, which this returns. If the test itself does not run as root, it stays who it is.
    ///
    /// # Panics
    /// If root cannot do that.
    pub fn become_ordinary(&mut self) -> PathBuf {
        let root = self.path("");
        let home = if mounts::is_root() {
            let user = OrdinaryUser::new(&root, agentfs());
            self.user.insert(user).home().to_owned()
        } else {
            let home = root.join("user");
            fs::create_dir(&home).expect("the directory can be written");
            home
        };
        self.home = home.join("store");
        home
    }

    /// The ordinary user that everything is run as, if it is not who runs the test.
    pub fn user(&self) -> Option<&OrdinaryUser> {
        self.user.as_ref()
    }

    /// What is mounted at and below `dir`, as those see it who use the store.
    pub fn mounts_below(&self, dir: &Path) -> Vec<mounts::Mount> {
        match &self.user {
            Some(user) => user.mounts_below(dir),
            None => mounts::below(dir),
        }
    }

    /// A path in the temporary directory, outside the store.
    pub fn path(&self, name: &str) -> PathBuf {
        fs::canonicalize(self.dir.path()).expect("the directory exists").join(name)
    }

    /// The same as text.
    pub fn path_text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// `agentfs` with `args` on this store.
    pub fn command(&self, args: &[&str]) -> Command {
        let own = self.user.as_ref().map(OrdinaryUser::program);
        let mut command = self.program(own.unwrap_or_else(|| agentfs()));
        command.args(args).env("AGENTFS_HOME", &self.home);
        command.env_remove("AGENTFS_LOG").env_remove("AGENTFS_LEVERS_OFF");
        command.env("AGENTFS_LEVERS_ON", &self.levers_on);
        command
    }

    /// Another program, run by those who use the store.
    pub fn program(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = match &self.user {
            Some(user) => user.command(program),
            None => Command::new(program),
        };
        fixture::plain_environment(&mut command);
        command.env("GIT_CONFIG_GLOBAL", &self.git_config).stdin(Stdio::null());
        command
    }

    /// Runs `agentfs` with `args` to its end.
    ///
    /// # Panics
    /// If it takes longer than a minute.
    pub fn run(&self, args: &[&str]) -> Finished {
        self.finish(self.command(args))
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    /// If it takes longer than a minute.
    pub fn finish(&self, mut command: Command) -> Finished {
        // Files, not pipes: nothing has to be read while it runs.
        let out = tempfile::tempfile_in(self.dir.path()).expect("a file for its output");
        let err = tempfile::tempfile_in(self.dir.path()).expect("a file for its errors");
        command.stdout(out.try_clone().expect("a file")).stderr(err.try_clone().expect("a file"));
        let shown = format!("{command:?}");
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{shown}: {error}"));
        let code = wait(&mut child, COMMAND_LIMIT).unwrap_or_else(|| {
            child.kill().ok();
            child.wait().ok();
            panic!("{shown} does not end; it said {:?}", text(&err));
        });
        Finished { code, stdout: text(&out), stderr: text(&err) }
    }

    /// Runs `agentfs` with `args` and returns what it printed.
    ///
    /// # Panics
    /// If it fails.
    pub fn ok(&self, args: &[&str]) -> String {
        let finished = self.run(args);
        assert_eq!(finished.code, 0, "agentfs {args:?}: {}\n{}", finished.stderr, self.log());
        finished.stdout
    }

    /// Runs `agentfs` with `args` and `--json`, and returns the result, which is the last line.
    ///
    /// # Panics
    /// If it fails.
    pub fn json(&self, args: &[&str]) -> Value {
        let args = [args, &["--json"]].concat();
        let finished = self.run(&args);
        assert_eq!(finished.code, 0, "agentfs {args:?}: {}\n{}", finished.stdout, self.log());
        let last = finished.events().pop().unwrap_or_else(|| panic!("agentfs {args:?} is silent"));
        assert_eq!(last["event"], "result", "agentfs {args:?}: {last}");
        last
    }

    /// Runs `agentfs` with `args`, once for people and once with `--json`, and returns the text for
    /// people.
    ///
    /// # Panics
    /// If it does not fail both times with exit code `code` and one message that says what is wrong.
    pub fn fails(&self, code: i32, args: &[&str]) -> String {
        let json = self.run(&[args, &["--json"]].concat());
        assert_eq!(json.code, code, "agentfs {args:?} --json: {}{}", json.stdout, json.stderr);
        let last = json.events().pop().unwrap_or_default();
        assert_eq!(last["error"]["code"], code, "agentfs {args:?} --json: {last}");
        assert!(last["error"]["message"].is_string(), "agentfs {args:?} --json: {last}");
        let people = self.run(args);
        assert_eq!(people.code, code, "agentfs {args:?}: {}", people.stderr);
        let messages = people.stderr.lines().filter(|line| {
            line.starts_with("agentfs: ") || (code == 2 && line.starts_with("error: "))
        });
        assert_eq!(messages.count(), 1, "agentfs {args:?} says: {}", people.stderr);
        people.stderr
    }

    /// Mounts the repository at `source` at `name` in the temporary directory.
    ///
    /// # Panics
    /// If that fails.
    pub fn clone(&self, source: &Path, name: &str) -> PathBuf {
        let dir = self.path(name);
        self.ok(&["clone", &source.display().to_string(), &dir.display().to_string()]);
        dir
    }

    /// The process of the daemon, if one runs.
    pub fn daemon(&self) -> Option<Pid> {
        running(&self.home.join("daemon.lock"))
    }

    /// Kills the daemon without letting it do anything, and waits until it is gone.
    ///
    /// # Panics
    /// If none runs, or if it does not die.
    pub fn kill_daemon(&self) {
        let pid = self.daemon().expect("a daemon runs");
        self.signal(pid, Signal::KILL);
    }

    /// Runs a command and kills the daemon `after` it was begun; whether the command succeeded.
    ///
    /// # Panics
    /// If no daemon runs by then, or if one of the two does not end.
    pub fn kill_daemon_during(&self, args: &[&str], after: Duration) -> bool {
        let start = Instant::now();
        self.kill_daemon_when(args, || start.elapsed() >= after)
    }

    /// The same as soon as `now` says so, which is asked until the command ends.
    ///
    /// # Panics
    /// If the command does not end.
    pub fn kill_daemon_when(&self, args: &[&str], mut now: impl FnMut() -> bool) -> bool {
        let mut command = self.command(args);
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        while !now() && child.try_wait().expect("the child is ours").is_none() {
            thread::sleep(Duration::from_micros(100));
        }
        self.kill_daemon();
        let code = wait(&mut child, COMMAND_LIMIT);
        code.unwrap_or_else(|| panic!("{command:?} does not end")) == 0
    }

    /// Sends `signal` to a process and waits until it is gone.
    ///
    /// # Panics
    /// If it does not end.
    pub fn signal(&self, pid: Pid, signal: Signal) {
        kill_process(pid, signal).expect("the process is ours");
        let start = Instant::now();
        while is_alive(pid) {
            assert!(start.elapsed() < COMMAND_LIMIT, "process {pid:?} does not end");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// What the daemon has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.home.join("daemon.log")).unwrap_or_default()
    }

    /// The messages that the kernel has sent for the worktree at `dir`, by name.
    ///
    /// # Panics
    /// If it is not mounted.
    pub fn counters(&self, dir: &Path) -> BTreeMap<String, u64> {
        let stats = self.json(&["stats"]);
        let worktrees = stats["worktrees"].as_array().expect("a list of worktrees").clone();
        let own = worktrees
            .into_iter()
            .find(|worktree| Path::new(worktree["dir"].as_str().unwrap_or_default()) == dir)
            .unwrap_or_else(|| panic!("{} is not mounted: {stats}", dir.display()));
        serde_json::from_value(own["counters"].clone()).expect("numbers by name")
    }

    /// Waits until `ready` holds.
    ///
    /// # Panics
    /// If it does not within a minute.
    pub fn wait_until(&self, what: &str, mut ready: impl FnMut() -> bool) {
        let start = Instant::now();
        while !ready() {
            assert!(start.elapsed() < COMMAND_LIMIT, "{what}: not within {COMMAND_LIMIT:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for TestStore {
    fn drop(&mut self) {
        if self.daemon().is_some() {
            let stopping = self.command(&["daemon", "stop"]).stdout(Stdio::null()).spawn();
            stopping.map(|mut child| wait(&mut child, GRACE)).ok();
        }
        if let Some(pid) = self.daemon() {
            kill_process(pid, Signal::KILL).ok();
        }
        mounts::detach_all(&fs::canonicalize(self.dir.path()).unwrap_or_default());
        *self.done.0.lock().expect("the watch does not panic") = true;
        self.done.1.notify_all();
    }
}

/// Ends a test that takes too long: first by taking away what it may be waiting for.
#[expect(clippy::print_stderr, reason = "a test that is ended is told why")]
fn watch(done: &(Mutex<bool>, Condvar), limit: Duration, root: &Path, lock: &Path) {
    let wait = |limit| {
        let done_now = done.0.lock().expect("the test does not panic under the lock");
        let (done_now, _) = done
            .1
            .wait_timeout_while(done_now, limit, |done| !*done)
            .expect("the test does not panic under the lock");
        *done_now
    };
    if wait(limit) {
        return;
    }
    eprintln!("the test takes longer than {limit:?}: its daemon is killed");
    let take_away = || {
        if let Some(pid) = running(lock) {
            kill_process(pid, Signal::KILL).ok();
        }
        mounts::detach_all(root);
    };
    take_away();
    if !wait(GRACE) {
        eprintln!("the test does not end");
        // It may have started another one.
        take_away();
        std::process::abort();
    }
}

/// The exit code of `child` if it ends within `limit`; -1 if a signal has ended it.
fn wait(child: &mut Child, limit: Duration) -> Option<i32> {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("the child is ours") {
            return Some(status.code().unwrap_or(-1));
        }
        if start.elapsed() > limit {
            return None;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// The daemon that has written itself into `lock`, if it is alive and one of ours.
fn running(lock: &Path) -> Option<Pid> {
    let pid: i32 = fs::read_to_string(lock).ok()?.trim().parse().ok()?;
    let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let program = command.split(|byte| *byte == 0).next().unwrap_or_default();
    let ours = Path::new(std::str::from_utf8(program).ok()?).ends_with("agentfs");
    ours.then(|| Pid::from_raw(pid)).flatten()
}

/// Whether a process is there and no zombie.
fn is_alive(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.is_ok_and(|stat| {
        let state = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next());
        !matches!(state, Some("Z" | "X"))
    })
}

fn text(file: &File) -> String {
    use std::os::unix::fs::FileExt;
    let len = file.metadata().map_or(0, |metadata| metadata.len());
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    let read = file.read_at(&mut bytes, 0).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..read]).into_owned()
}
