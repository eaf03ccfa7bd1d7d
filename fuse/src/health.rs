//! Whether a mount still answers, asked without the risk of waiting for it.
//!
//! A request to a hung FUSE server cannot be given up: the thread that sent it sleeps, not even
//! killable once the server has read the request, and its process cannot exit. So a child process
//! asks, and is left behind if it does not come back.

use std::ffi::CString;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::error::{Error, Result};

/// How long a living server may take to answer one small request.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// How a mount answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    /// It does.
    Alive,
    /// Its server is gone.
    Dead,
    /// Its server has the request and is silent.
    Hung,
}

/// Asks the file system at `path` for its statistics, which no kernel caches.
pub(crate) fn of(path: &Path) -> Result<Health> {
    ask(path).map_err(|source| Error::Inspect { path: path.to_owned(), source })
}

fn ask(path: &Path) -> io::Result<Health> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let (mut ours, theirs) = UnixStream::pair()?;
    ours.set_read_timeout(Some(ANSWER_WITHIN))?;
    let child = ask_in_child(&name, &theirs)?;
    drop(theirs);
    let mut answer = [0; 4];
    let answered = ours.read_exact(&mut answer);
    if answered.is_err() {
        leave_behind(child);
    } else {
        // It has nothing left to do but to exit.
        let _ = waitpid(Some(child), WaitOptions::empty());
    }
    match answered.map(|()| i32::from_le_bytes(answer)) {
        // These come from the kernel, for a connection that was cut and for one that was aborted.
        // Any other answer, be it a refusal, comes from a living server.
        Ok(libc::ENOTCONN | libc::ECONNABORTED) => Ok(Health::Dead),
        Ok(_) => Ok(Health::Alive),
        Err(late) if late.kind() == io::ErrorKind::WouldBlock => Ok(Health::Hung),
        Err(other) => Err(other),
    }
}

/// Starts a process that sends the errno of one statfs(2) of `path` through `answer`.
#[expect(unsafe_code, reason = "no safe function starts a process without a program")]
fn ask_in_child(path: &CString, answer: &UnixStream) -> io::Result<Pid> {
    let answer = answer.as_raw_fd();
    // SAFETY: the child of a process with threads may only do what a signal handler may. It makes
    // system calls on memory that was prepared before, allocates nothing, takes no lock, runs no
    // destructor and never returns. First it gives back every inherited file but the one it answers
    // through, the device of a mount above all, since a mount whose device is open somewhere never
    // counts as dead.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => unsafe {
            libc::dup2(answer, 0);
            libc::syscall(libc::SYS_close_range, 1, libc::c_uint::MAX, 0);
            let mut statistics = std::mem::MaybeUninit::<libc::statfs>::uninit();
            let failed = libc::statfs(path.as_ptr(), statistics.as_mut_ptr()) != 0;
            let errno = if failed { *libc::__errno_location() } else { 0 };
            let bytes = errno.to_le_bytes();
            libc::write(0, bytes.as_ptr().cast(), bytes.len());
            libc::_exit(0)
        },
        child => Pid::from_raw(child).ok_or_else(|| io::Error::other("fork returned no process")),
    }
}

/// Kills a child that may be stuck in the kernel. It goes when the kernel lets go of it; somebody
/// must then take note, or it stays as a zombie.
pub(crate) fn leave_behind(child: Pid) {
    let _ = kill_process(child, Signal::KILL);
    let _ = thread::Builder::new()
        .name("agentfs-reap".into())
        .spawn(move || waitpid(Some(child), WaitOptions::empty()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_directory_is_alive() {
        assert_eq!(of(Path::new("/")).unwrap(), Health::Alive);
        // A refusal is an answer.
        assert_eq!(of(Path::new("/no/such/path")).unwrap(), Health::Alive);
    }

    #[test]
    fn the_child_gives_back_what_it_inherited() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut kept, inherited) = UnixStream::pair().unwrap();
        let child = ask_in_child(&CString::new("/").unwrap(), &theirs).unwrap();
        drop(inherited);
        kept.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        // The end of the file, which does not come while the child has the other end.
        assert_eq!(kept.read(&mut [0]).unwrap(), 0);
        waitpid(Some(child), WaitOptions::empty()).unwrap();
        drop(ours);
    }
}
