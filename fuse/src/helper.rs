//! fusermount3, which mounts and unmounts for ordinary users.

use std::ffi::{OsStr, OsString};
use std::io::{self, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::Pid;

use crate::error::{Error, Result};
use crate::health;

/// How long the helper may take. It sends no request to the mount, so it takes milliseconds.
const FINISH_WITHIN: Duration = Duration::from_secs(10);
/// The helper's name, and where it is when the caller's search path does not tell.
const NAME: &str = "fusermount3";
const PLACES: [&str; 3] = ["/usr/bin", "/bin", "/usr/local/bin"];

/// Mounts on `dir` with `options` and returns the device of the new mount.
pub(crate) fn mount(dir: &Path, options: &OsStr) -> Result<OwnedFd> {
    let broken = |source| Error::Session { dir: dir.to_owned(), source };
    let (ours, theirs) = UnixStream::pair().map_err(broken)?;
    ours.set_read_timeout(Some(FINISH_WITHIN)).map_err(broken)?;
    let helper = start(|command| {
        // The helper sends the device through the socket whose number the variable names.
        command.env("_FUSE_COMMFD", "0").stdin(OwnedFd::from(theirs.try_clone()?));
        command.arg("-o").arg(options).arg("--").arg(dir);
        Ok(())
    })?;
    drop(theirs);
    let device = receive_device(&ours);
    helper.finish().map_err(|message| failed("mount on", dir, message))?;
    device
        .map_err(|errno| broken(errno.into()))?
        .ok_or_else(|| failed("mount on", dir, "it sent no device".into()))
}

/// Unmounts `dir`.
pub(crate) fn unmount(dir: &Path, lazy: bool) -> Result<()> {
    let helper = start(|command| {
        command.arg(if lazy { "-uz" } else { "-u" }).arg("--").arg(dir);
        Ok(())
    })?;
    match helper.finish() {
        Ok(_) => Ok(()),
        // strerror(EBUSY) in the locale that the helper runs in.
        Err(message) if message.contains("Device or resource busy") => {
            Err(Error::Busy { dir: dir.to_owned() })
        }
        Err(message) => Err(failed("unmount", dir, message)),
    }
}

/// What the helper calls its version; `None` if there is no helper.
pub(crate) fn version() -> Option<String> {
    let helper = start(|command| {
        command.arg("--version");
        Ok(())
    });
    let said = helper.ok()?.finish().ok()?;
    said.split_whitespace().last().map(str::to_owned)
}

/// A running helper and what it says.
struct Helper {
    child: Child,
    says: UnixStream,
}

/// Starts the helper: by the caller's search path, else from the usual places.
fn start(prepare: impl Fn(&mut Command) -> io::Result<()>) -> Result<Helper> {
    let usual = PLACES.iter().map(|place| Path::new(place).join(NAME).into_os_string());
    for name in [OsString::from(NAME)].into_iter().chain(usual) {
        match spawn(&name, &prepare) {
            Ok(helper) => return Ok(helper),
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => {}
            Err(other) => return Err(failed("start for", Path::new(&name), other.to_string())),
        }
    }
    Err(Error::NoHelper)
}

fn spawn(name: &OsStr, prepare: impl Fn(&mut Command) -> io::Result<()>) -> io::Result<Helper> {
    let (says, theirs) = UnixStream::pair()?;
    says.set_read_timeout(Some(FINISH_WITHIN))?;
    let mut command = Command::new(name);
    command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(OwnedFd::from(theirs.try_clone()?));
    command.stderr(OwnedFd::from(theirs));
    prepare(&mut command)?;
    Ok(Helper { child: command.spawn()?, says })
}

impl Helper {
    /// Waits for its end; what it said, in success or in failure.
    fn finish(mut self) -> Result<String, String> {
        let mut said = String::new();
        // The end of the file comes with the end of the process.
        if let Err(error) = self.says.read_to_string(&mut said) {
            health::leave_behind(Pid::from_child(&self.child));
            return Err(format!("it did not finish: {error}"));
        }
        let said = said.trim().trim_start_matches("fusermount3: ").to_owned();
        match self.child.wait() {
            Ok(status) if status.success() => Ok(said),
            Ok(status) if said.is_empty() => Err(status.to_string()),
            Ok(_) => Err(said),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// The device that the helper sends; `None` if it ended without.
fn receive_device(socket: &UnixStream) -> rustix::io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let device = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(device)
}

fn failed(action: &'static str, dir: &Path, message: String) -> Error {
    Error::Helper { action, dir: dir.to_owned(), message }
}
