//! The control socket: its address, who may use it, and connecting within a time limit.
//!
//! A socket's address holds 107 bytes of path. A store below a longer one is reached through
//! `/proc/self/fd/N/daemon.sock`, where N is the store's directory, opened for that purpose.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::error::{Failure, Kind, Result};

/// Longest path in the address of a socket, in bytes.
const ADDRESS_BYTES_MAX: usize = 107;
/// How long a connection may wait for a daemon that does not accept it.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// How long a process that has been killed may be seen listening after it has lost its lock.
pub const DYING_LIMIT: Duration = Duration::from_secs(1);
/// Most connections that wait to be accepted.
const BACKLOG: i32 = 256;

/// A path short enough for an address. The directory stays open as long as it is in use.
struct Address {
    path: PathBuf,
    _dir: Option<OwnedFd>,
}

impl Address {
    fn of(socket: &Path) -> io::Result<Self> {
        if socket.as_os_str().len() <= ADDRESS_BYTES_MAX {
            return Ok(Self { path: socket.to_owned(), _dir: None });
        }
        let dir = socket.parent().unwrap_or(Path::new("/"));
        let name = socket.file_name().unwrap_or(OsStr::new("."));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(dir, flags, Mode::empty())?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
        Ok(Self { path, _dir: Some(dir) })
    }
}

/// Connects to the daemon that listens on `socket`; `None` if none does.
///
/// # Errors
/// [`Kind::ForeignSocket`] if the socket or the process behind it belongs to another user,
/// [`Kind::Daemon`] if the daemon does not accept the connection.
pub fn connect(socket: &Path) -> Result<Option<UnixStream>> {
    let metadata = match fs::symlink_metadata(socket) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Failure::io("look at the control socket", socket, &error)),
    };
    if !metadata.file_type().is_socket() {
        return Err(Failure::new(
            Kind::ForeignSocket,
            format!("{} is not a socket", socket.display()),
        )
        .hint("remove it; the next command starts the daemon, which creates the socket"));
    }
    refuse_foreign(socket, "the control socket", metadata.uid())?;
    let Some(stream) = connect_within(socket, CONNECT_LIMIT).map_err(|error| {
        let why = match error.kind() {
            io::ErrorKind::TimedOut => "whoever listens does not accept a connection".to_owned(),
            _ => error.to_string(),
        };
        Failure::new(Kind::Daemon, format!("cannot connect to {}: {why}", socket.display()))
            .hint(format!("`fuser -v {}` names the process that listens", socket.display()))
    })?
    else {
        return Ok(None);
    };
    refuse_foreign(socket, "the process behind the control socket", peer(&stream, socket)?.0)?;
    Ok(Some(stream))
}

/// The user and the process at the other end.
///
/// # Errors
/// If the kernel does not tell.
pub fn peer(stream: &UnixStream, socket: &Path) -> Result<(u32, i32)> {
    let peer = rustix::net::sockopt::socket_peercred(stream)
        .map_err(|error| Failure::io("ask who listens on", socket, &error.into()))?;
    Ok((peer.uid.as_raw(), peer.pid.as_raw_nonzero().get()))
}

fn refuse_foreign(socket: &Path, what: &str, uid: u32) -> Result<()> {
    let own = rustix::process::geteuid().as_raw();
    if uid == own {
        return Ok(());
    }
    Err(Failure::new(
        Kind::ForeignSocket,
        format!("{what} {} belongs to user {uid}, not to you (user {own})", socket.display()),
    )
    .hint(
        "run the command as that user, or name a store of your own in the environment variable \
         AGENTFS_HOME",
    ))
}

/// `None` if nobody listens; [`io::ErrorKind::TimedOut`] if somebody does but does not accept.
fn connect_within(socket: &Path, limit: Duration) -> io::Result<Option<UnixStream>> {
    use rustix::io::Errno;
    let address = Address::of(socket)?;
    let name = SocketAddrUnix::new(&address.path)?;
    let start = Instant::now();
    loop {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&fd, &name) {
            Ok(()) => {
                let stream = UnixStream::from(fd);
                stream.set_nonblocking(false)?;
                return Ok(Some(stream));
            }
            Err(Errno::NOENT | Errno::CONNREFUSED) => return Ok(None),
            // The queue of connections that wait to be accepted is full.
            Err(Errno::AGAIN | Errno::INTR) if start.elapsed() < limit => {
                thread::sleep(Duration::from_millis(20));
            }
            Err(Errno::AGAIN | Errno::INTR) => return Err(io::ErrorKind::TimedOut.into()),
            Err(other) => return Err(other.into()),
        }
    }
}

/// Makes sure that nobody listens on `socket`. The caller holds the daemon's lock, so whoever does is
/// no daemon, or one that has just been killed and lets go of its files one after the other.
///
/// # Errors
/// [`Kind::ForeignSocket`] if somebody does; as [`connect`].
pub fn refuse_stranger(socket: &Path) -> Result<()> {
    let start = Instant::now();
    while let Some(stream) = connect(socket)? {
        let left = DYING_LIMIT.saturating_sub(start.elapsed());
        if left.is_zero() || !ends_within(&stream, left) {
            return Err(stranger(socket, peer(&stream, socket)?.1, "nobody holds its lock"));
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Whether the other end closes a connection within `limit`, saying nothing.
fn ends_within(mut stream: &UnixStream, limit: Duration) -> bool {
    stream.set_read_timeout(Some(limit)).is_ok()
        && match stream.read(&mut [0]) {
            Ok(read) => read == 0,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
}

/// The failure for a process that listens on `socket` and is no daemon, as `why` shows.
pub fn stranger(socket: &Path, pid: i32, why: &str) -> Failure {
    Failure::new(
        Kind::ForeignSocket,
        format!(
            "process {pid} listens on {} and is not the daemon of this store: {why}",
            socket.display()
        ),
    )
    .hint(format!(
        "end it, after `ps -p {pid}` has told what it is; or name another store in the environment \
         variable AGENTFS_HOME"
    ))
}

/// Listens on `socket`, which only its owner can connect to. A socket that a killed daemon has left
/// is replaced, so the caller must hold the daemon's lock.
///
/// # Errors
/// Whatever the file system refuses.
pub fn listen(socket: &Path) -> Result<UnixListener> {
    match fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(Failure::store_io("replace the control socket", socket, &error));
        }
        _ => {}
    }
    bind(socket).map_err(|error| Failure::store_io("create the control socket", socket, &error))
}

fn bind(socket: &Path) -> io::Result<UnixListener> {
    let address = Address::of(socket)?;
    let flags = SocketFlags::CLOEXEC;
    let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::bind(&fd, &SocketAddrUnix::new(&address.path)?)?;
    // Nobody can connect before `listen`, so there is no moment in which it is open to others.
    fs::set_permissions(&address.path, fs::Permissions::from_mode(0o600))?;
    rustix::net::listen(&fd, BACKLOG)?;
    Ok(UnixListener::from(fd))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn talk(socket: &Path) {
        let listener = listen(socket).unwrap();
        assert_eq!(fs::metadata(socket).unwrap().permissions().mode() & 0o777, 0o600);
        let mut client = connect(socket).unwrap().unwrap();
        let (mut served, _) = listener.accept().unwrap();
        client.write_all(b"x").unwrap();
        let mut byte = [0];
        served.read_exact(&mut byte).unwrap();
        assert_eq!(peer(&client, socket).unwrap().1, std::process::id() as i32);
    }

    #[test]
    fn a_socket_of_any_path_length_is_reached() {
        let dir = tempfile::tempdir().unwrap();
        talk(&dir.path().join("daemon.sock"));
        let deep = dir.path().join("d".repeat(200)).join("e".repeat(200));
        fs::create_dir_all(&deep).unwrap();
        talk(&deep.join("daemon.sock"));
    }

    #[test]
    fn nobody_listening_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("daemon.sock");
        assert!(connect(&socket).unwrap().is_none());
        drop(listen(&socket).unwrap());
        assert!(socket.exists(), "a killed daemon leaves its socket");
        assert!(connect(&socket).unwrap().is_none());
        listen(&socket).unwrap();
    }

    #[test]
    fn a_file_in_the_place_of_the_socket_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("daemon.sock");
        fs::write(&socket, "").unwrap();
        assert_eq!(connect(&socket).unwrap_err().kind, Kind::ForeignSocket);
    }

    #[test]
    fn a_socket_of_another_user_is_refused_by_name() {
        let own = rustix::process::geteuid().as_raw();
        let failure =
            refuse_foreign(Path::new("/s/daemon.sock"), "the socket", own + 1).unwrap_err();
        assert_eq!(failure.kind, Kind::ForeignSocket);
        assert!(failure.message.contains("/s/daemon.sock"), "{failure}");
    }

    #[test]
    fn somebody_who_listens_is_a_stranger_to_who_has_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("daemon.sock");
        refuse_stranger(&socket).unwrap();
        let listener = listen(&socket).unwrap();
        assert_eq!(refuse_stranger(&socket).unwrap_err().kind, Kind::ForeignSocket);
        drop(listener);
        refuse_stranger(&socket).unwrap();
        // One that is killed listens a moment longer than it has its lock.
        let listener = listen(&socket).unwrap();
        let dying = thread::spawn(move || {
            listener.accept().unwrap();
            drop(listener);
        });
        refuse_stranger(&socket).unwrap();
        dying.join().unwrap();
    }

    #[test]
    fn a_daemon_that_does_not_accept_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("daemon.sock");
        let _listener = listen(&socket).unwrap();
        // Fill the queue of connections, which nobody accepts.
        let mut queue = Vec::new();
        let limit = Duration::from_millis(50);
        let error = loop {
            match connect_within(&socket, limit) {
                Ok(stream) => queue.push(stream),
                Err(error) => break error,
            }
            assert!(queue.len() < 100_000, "the queue has no end");
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
