//! Telling git whom to ask what has changed in the worktrees of a repository.

use std::path::Path;

use gix::config::{File, Source};

use crate::error::{Error, Result};
use crate::files;

/// The file in a worktree's git directory that holds what it takes to go on telling what has changed, while nothing
/// is mounted. It belongs to that moment: no copy of the directory has it.
pub const INTERRUPTED: &str = "agentfs-changed";

const KEY: &str = "core.fsmonitor";

/// Has git run `command` with a version and a token after it (githooks(5), `fsmonitor-watchman`) in all worktrees of a bare
/// repository that nobody else uses yet. Nothing is synced: the repository is as a whole, before it counts as taken
/// in.
///
/// # Errors
/// [`Error::Io`].
pub fn configure(git_dir: &Path, command: &str) -> Result<()> {
    let path = git_dir.join("config");
    let mut text = std::fs::read(&path).map_err(|source| Error::io("read", &path, source))?;
    if text.last().is_some_and(|last| *last != b'\n') {
        text.push(b'\n');
    }
    text.extend_from_slice(format!("[core]\n\tfsmonitor = {}\n", quoted(command)).as_bytes());
    files::write(&path, &text)
}

/// Takes back what [`configure`] has written of a command that begins so; whether there was one.
///
/// # Errors
/// [`Error::Io`].
pub fn forget(git_dir: &Path, begins: &str) -> Result<bool> {
    let path = git_dir.join("config");
    let text = std::fs::read(&path).map_err(|source| Error::io("read", &path, source))?;
    let begins = format!("\tfsmonitor = {}", quoted(begins));
    let begins = begins.strip_suffix('"').unwrap_or(&begins).as_bytes();
    let lines: Vec<_> = text.split_inclusive(|byte| *byte == b'\n').collect();
    let kept: Vec<_> = lines.iter().filter(|line| !line.starts_with(begins)).copied().collect();
    let found = kept.len() < lines.len();
    if found {
        files::replace(&path, &kept.concat())?;
    }
    Ok(found)
}

/// Whether git asks somebody in the worktrees of a repository, by the repository's own configuration.
pub fn is_configured(git_dir: &Path) -> bool {
    let config = File::from_path_no_includes(git_dir.join("config"), Source::Local);
    config.is_ok_and(|config| {
        let is_named = config.string(KEY).is_some_and(|value| !value.is_empty());
        is_named && !matches!(config.boolean(KEY), Ok(Some(false)))
    })
}

/// A value as a file of git's configuration has it.
fn quoted(value: &str) -> String {
    let mut quoted = String::from('"');
    for character in value.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gittest::{Sandbox, git};

    #[test]
    fn what_was_told_git_is_taken_back_and_nothing_else() {
        let sandbox = Sandbox::new();
        let repository = sandbox.empty_repository("repo", &["--bare"]);
        configure(&repository, "ask() { 'a \"b\"'; }; ask").unwrap();
        git(&repository, &["config", "core.autocrlf", "input"]);
        assert!(!forget(&repository, "ask() { 'other").unwrap());
        assert!(is_configured(&repository));
        assert!(forget(&repository, "ask() { 'a \"b").unwrap());
        assert!(!is_configured(&repository));
        assert_eq!(git(&repository, &["config", "core.autocrlf"]), "input");
        assert!(!forget(&repository, "ask() {").unwrap());
    }

    #[test]
    fn git_reads_the_command_as_it_is_meant() {
        let sandbox = Sandbox::new();
        let repository = sandbox.repository("source");
        let command = "HOME='a \"b\"' '/x\\y\tz' fsmonitor; # no\n";
        assert!(!is_configured(&repository.join(".git")));
        configure(&repository.join(".git"), command).unwrap();
        assert!(is_configured(&repository.join(".git")));
        let said = git(&repository, &["config", "core.fsmonitor"]);
        assert_eq!(said.trim_end_matches('\n'), command.trim_end_matches('\n'));
        for no in ["false", ""] {
            git(&repository, &["config", "core.fsmonitor", no]);
            assert!(!is_configured(&repository.join(".git")), "{no:?}");
        }
    }
}
