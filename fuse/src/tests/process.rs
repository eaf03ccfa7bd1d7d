//! Doing things as another user, and in another process.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::process::{Gid, Uid};

/// Does `work` as an ordinary user who is in no other group. Rights belong to threads in the kernel, so the rest
/// of the process keeps its own.
pub(super) fn as_user<T: Send>(uid: u32, gid: u32, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let doing = scope.spawn(move || {
            let gid = Gid::from_raw(gid);
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            let uid = Uid::from_raw(uid);
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            work()
        });
        doing.join().unwrap()
    })
}

/// Names the work of a process of [`start`].
const WORK: &str = "AGENTFS_TEST_WORK";
const PATH: &str = "AGENTFS_TEST_PATH";

/// Starts a process that does `work`, one of those that [`in_a_process`] knows, with `path`. What it
/// prints can be read, and what it reads be written.
pub(super) fn start(work: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "tests::process::in_a_process", "--nocapture", "--quiet"])
        .env(WORK, work)
        .env(PATH, path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Does nothing, unless it is the process of another test.
#[test]
fn in_a_process() {
    let (Some(work), Some(path)) = (std::env::var_os(WORK), std::env::var_os(PATH)) else {
        return;
    };
    match work.to_str() {
        Some("append") => super::writing::append_in_a_process(path.as_ref()),
        Some("serve") => super::lifetime::serve_in_a_process(path.as_ref()),
        Some("map") => super::passthrough::map_in_a_process(path.as_ref()),
        Some("lock") => super::locking::lock_in_a_process(path.as_ref()),
        other => panic!("{other:?} is no work for a process"),
    }
}
