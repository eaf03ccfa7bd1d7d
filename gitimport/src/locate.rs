//! Finding and opening repositories as git does when it is given a path.

use std::path::{Path, PathBuf};

use gix::bstr::ByteSlice;
use gix::sec::identity::is_path_owned_by_current_user;

use crate::error::{Error, Result};

/// The git directory that git clones when it is given `path`: the one inside it, itself, or the
/// one that its `.git` file names, with `.git` appended to `path` if need be.
pub(crate) fn git_dir_at(path: &Path) -> Option<PathBuf> {
    ["/.git", "", ".git/.git", ".git"].into_iter().find_map(|suffix| {
        let mut candidate = path.as_os_str().to_owned();
        candidate.push(suffix);
        let candidate = PathBuf::from(candidate);
        let git_dir = if candidate.is_file() {
            gix::discover::path::from_gitdir_file(&candidate).ok()?
        } else {
            candidate
        };
        gix::discover::is_git(&git_dir).is_ok().then_some(git_dir)
    })
}

/// Opens the repository whose git directory is `git_dir`.
///
/// # Errors
/// [`Error::UnsafeSource`] if it belongs to somebody else and the user has not declared it safe,
/// [`Error::NotARepository`] if it cannot be read.
pub(crate) fn open(git_dir: &Path) -> Result<gix::Repository> {
    let options = gix::open::Options::default().bail_if_untrusted(true).open_path_as_is(true);
    gix::open_opts(git_dir, options).map_err(|error| {
        if is_path_owned_by_current_user(git_dir).unwrap_or(true) {
            Error::NotARepository { path: git_dir.to_owned(), why: error.to_string() }
        } else {
            Error::UnsafeSource {
                path: git_dir.to_owned(),
                why: format!(
                    "it belongs to another user; if you trust it, run \
                     `git config --global --add safe.directory {}`",
                    git_dir.display()
                ),
            }
        }
    })
}

/// Whether the references of the repository are stored in a way that gix cannot read.
pub(crate) fn has_foreign_references(common_dir: &Path) -> bool {
    gix::config::File::from_path_no_includes(common_dir.join("config"), gix::config::Source::Local)
        .ok()
        .and_then(|config| config.string("extensions.refStorage"))
        .is_some_and(|format| !format.eq_ignore_ascii_case(b"files"))
}

/// The directory that the repository of `git_dir` shares among its worktrees.
pub(crate) fn common_dir_of(git_dir: &Path) -> PathBuf {
    match std::fs::read(git_dir.join("commondir")) {
        Ok(relative) => {
            git_dir.join(gix::path::from_bstr(relative.trim_end().as_bstr()).unwrap_or_default())
        }
        Err(_) => git_dir.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::chown;

    use super::*;
    use crate::gittest::{Sandbox, run, skip};

    #[test]
    fn a_repository_of_somebody_else_is_refused_as_by_git() {
        let sandbox = Sandbox::new();
        let source = sandbox.repository("source");
        let git_dir = git_dir_at(&source).unwrap();
        assert!(open(&git_dir).is_ok());
        if [&git_dir, &source].iter().any(|path| chown(path, Some(12345), None).is_err()) {
            return skip("only root can give files away");
        }
        assert!(!run(&source, &["log"]).status.success());
        let error = open(&git_dir).unwrap_err();
        assert!(matches!(error, Error::UnsafeSource { .. }) && error.is_refusal(), "{error}");
        assert!(error.to_string().contains("safe.directory"), "{error}");
    }

    #[test]
    fn the_directory_of_all_worktrees_is_found() {
        let sandbox = Sandbox::new();
        let source = sandbox.repository("source");
        let git_dir = source.join(".git");
        assert_eq!(common_dir_of(&git_dir), git_dir);
        crate::gittest::git(&source, &["worktree", "add", "-q", "--detach", "../linked"]);
        let linked = git_dir_at(&sandbox.path("linked")).unwrap();
        assert_eq!(common_dir_of(&linked).canonicalize().unwrap(), git_dir);
        assert!(git_dir_at(&sandbox.path("nowhere")).is_none());
    }
}
