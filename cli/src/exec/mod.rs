//! Running a command in a branch, in namespaces of its own.
//!
//! Three processes of this program stand above the command:
//!
//! - The one that the user has started ([`supervise`]) holds the connection to the daemon, passes
//!   signals on, and ends with the status of the command.
//! - Its child ([`namespace`]) makes the mount, process and, for an ordinary user, user namespaces
//!   and puts the branch in its place. It begins as a freshly executed program with one thread,
//!   since none of this may be done after a fork of a process that has several.
//! - The child of that ([`init`]) is the first process of the process namespace. It starts the
//!   command and reaps orphans; when it ends, for whatever reason, the kernel ends all others.
//!
//! Each has the kernel kill it when its parent ends, so that a SIGKILL of the first leaves nothing.
//! They stay in the process group of their caller: the terminal's signals reach the command itself,
//! and pipelines and job control are the shell's. The lines that the first and the last exchange are
//! [`Order`] and [`Report`].

pub mod init;
pub mod isolation;
pub(crate) mod kernel;
mod landlock;
pub mod namespace;
pub mod supervise;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::protocol::WirePath;

/// Directories that are private inside an isolation.
pub const PRIVATE: [&str; 3] = ["/tmp", "/var/tmp", "/dev/shm"];

/// Everything that the stages need to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// The descriptor of the socket that leads to the supervisor.
    pub control: i32,
    /// The parent process; none for a parent in another process namespace.
    pub parent: Option<u32>,
    /// Where the branch is mounted.
    pub source: WirePath,
    /// Where the command is to see it.
    pub at: WirePath,
    /// The current directory of the command.
    pub cwd: WirePath,
    /// Other worktrees of the store, which the command is not to see.
    pub others: Vec<WirePath>,
    /// Whether the namespaces include one of users.
    pub user_namespace: bool,
    /// What the command may change, if not everything.
    pub isolation: Option<Isolation>,
}

/// What an isolated command may change besides its worktree and the directories in [`PRIVATE`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Isolation {
    /// Files and directories.
    pub writable: Vec<WirePath>,
    /// What is shown although it may lie in a private directory, and may not be changed.
    pub shown: Vec<WirePath>,
    /// What inside writable directories may not be changed.
    pub kept: Vec<WirePath>,
    /// Sockets that are taken from sight.
    pub hidden: Vec<WirePath>,
}

/// Arguments of the hidden commands.
#[derive(Debug, clap::Args)]
pub struct StageArgs {
    /// The [`Plan`] as JSON.
    plan: String,
    /// The command.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// What the supervisor tells the first process of the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// It has received this signal.
    Signal(i32),
}

/// What the first process of the namespace, or the one that should become its parent, tells the
/// supervisor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// The command cannot be run, for this reason.
    Failed(Failure),
    /// The command cannot be started; the status is that of a shell, 126 or 127.
    NotStarted(u8, String),
    /// The command runs under this protection.
    Started(Protection),
    /// It is stopped.
    Stopped,
    /// It has ended with this exit status.
    Exited(u8),
    /// It was ended by this signal.
    Killed(u8),
}

/// What keeps a command to itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Protection {
    /// Whether it has a user namespace of its own.
    pub user_namespace: bool,
    /// Whether `/proc` is that of its process namespace.
    pub own_proc: bool,
    /// What keeps it from writing elsewhere: `mounts`, `landlock`. Empty without `--isolated`.
    pub isolation: Vec<String>,
    /// The version of Landlock's interface, if that is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub landlock_abi: Option<i32>,
}

/// The current directory for a command that sees its worktree at `at`: the place below it that
/// corresponds to `here`, which may lie in `at` or in `source`, as far as the branch has it.
pub fn directory_in(at: &Path, source: &Path, here: Option<&Path>) -> PathBuf {
    let below = |top: &Path| here.and_then(|here| here.strip_prefix(top).ok());
    let Some(below) = below(at).or_else(|| below(source)) else {
        return at.to_owned();
    };
    let there = below
        .ancestors()
        .find(|below| fs::metadata(source.join(below)).is_ok_and(|metadata| metadata.is_dir()));
    at.join(there.unwrap_or(Path::new("")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_directory_corresponds_to_that_of_the_caller() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path();
        fs::create_dir_all(source.join("a/b")).unwrap();
        let at = Path::new("/w");
        let cases = [
            (Some("/w/a/b"), "/w/a/b"),
            (Some("/w/a/gone/too"), "/w/a"),
            (Some("/w"), "/w"),
            (Some("/elsewhere"), "/w"),
            (None, "/w"),
        ];
        for (here, expected) in cases {
            assert_eq!(directory_in(at, source, here.map(Path::new)), Path::new(expected));
        }
        assert_eq!(directory_in(at, source, Some(&source.join("a"))), Path::new("/w/a"));
    }
}
