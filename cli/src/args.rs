//! The command line. Each command describes its own arguments in its file below `commands`.

use clap::{CommandFactory, Parser, Subcommand};

use crate::commands::{
    attach, backup, branch, clone, completions, daemon, diff, doctor, du, exec, export, fsck,
    fsmonitor, gc, materialize, mount, ps, redirect, snapshot, stats, status, switch, umount,
    version, worktree,
};

use crate::exec::StageArgs;

/// Git worktrees that cost nothing until they are written, for many agents at once.
#[derive(Debug, Parser)]
#[command(name = "agentfs", version, max_term_width = 100, arg_required_else_help = true)]
#[command(after_help = "\
Environment:
  AGENTFS_HOME        the store (default: $XDG_DATA_HOME/agentfs, else ~/.local/share/agentfs)
  AGENTFS_LOG         how much the daemon logs: error, warn, info (default), debug, trace
  AGENTFS_LEVERS_OFF  kernel caching to do without, by the names that `agentfs doctor` prints

Exit codes:
  0 done   1 failed   2 wrong command line   3 no such repository, revision, branch or path
  4 input refused   5 damaged data   6 store full, read-only, in use or of another version
  7 daemon not reachable   8 nothing can be mounted here")]
pub struct Args {
    /// Print one JSON object a line instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Say on standard error when the command got where, and when the daemon did
    #[arg(long, global = true)]
    pub profile: bool,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Args {
    /// Reads the arguments of this process.
    ///
    /// # Errors
    /// What clap says of a wrong command line; also its help and version texts.
    pub fn read() -> Result<Self, clap::Error> {
        Self::try_parse()
    }

    /// The command line as clap knows it.
    pub fn description() -> clap::Command {
        Self::command()
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Take a repository into the store and mount a worktree of it
    Clone(clone::Args),
    /// Use an existing repository in place
    Attach(attach::Args),
    /// Mount a branch or a revision at a directory
    Mount(mount::Args),
    /// Unmount a worktree, or all
    Umount(umount::Args),
    /// Run a command in a branch, at the directory where all branches of its repository appear
    Exec(exec::Args),
    /// Begin, list and remove branches
    Branch(branch::Args),
    /// Add, list and remove worktrees, in the words of `git worktree`
    Worktree(worktree::Args),
    /// Keep branches as they are at a moment
    Snapshot(snapshot::Args),
    /// Move a worktree to another commit while it is used; only what differs is changed
    Switch(switch::Args),
    /// Take back what was changed since the last snapshot of a branch
    Undo(snapshot::UndoArgs),
    /// Compare what branches, snapshots and revisions are now
    Diff(diff::Args),
    /// Make a git commit of what a branch or a snapshot is
    Export(export::Args),
    /// Make a plain directory, with a repository of its own, of what a branch, snapshot or revision is
    Materialize(materialize::Args),
    /// Have build directories lie in native directories of the store
    Redirect(redirect::Args),
    /// Make the namespaces of a command (what `exec` starts)
    #[command(hide = true, name = "exec-namespace")]
    ExecNamespace(StageArgs),
    /// Be the first process of a command's namespace (what that starts)
    #[command(hide = true, name = "exec-init")]
    ExecInit(StageArgs),
    /// Show a worktree: the one that holds the current directory, or DIR, or all
    Status(status::Args),
    /// List repositories and worktrees
    Ps(ps::Args),
    /// Show what the daemon has counted
    Stats(stats::Args),
    /// Say what works on this machine, what does not, and why
    Doctor(doctor::Args),
    /// Write all of the store to one file, while it is used
    Backup(backup::BackupArgs),
    /// Make a store of a backup, in an AGENTFS_HOME that is empty or does not exist
    Restore(backup::RestoreArgs),
    /// Verify everything that is in the store
    Fsck(fsck::Args),
    /// Tell git which paths of a worktree may have changed (what its `core.fsmonitor` runs)
    Fsmonitor(fsmonitor::Args),
    /// Remove what neither a branch nor a snapshot needs
    Gc(gc::Args),
    /// Show what branches and snapshots take of the store
    Du(du::Args),
    /// Start, stop or look at the store's daemon
    Daemon(daemon::Args),
    /// Print the completion script of a shell
    Completions(completions::Args),
    /// Print the version
    Version(version::Args),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::description().debug_assert();
    }

    #[test]
    fn json_is_taken_before_and_after_the_command() {
        for line in [["agentfs", "--json", "ps"], ["agentfs", "ps", "--json"]] {
            assert!(Args::try_parse_from(line).unwrap().json);
        }
    }
}
