//! Using a repository where it is.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::locate;

/// The git directory of the repository that `path` belongs to: the repository itself, bare or not,
/// or any directory of one of its worktrees. It is the directory that all worktrees share, without
/// symbolic links. Nothing is written.
///
/// # Errors
/// [`Error::NotARepository`] if there is none, or one with references that cannot be read,
/// [`Error::UnsafeSource`] if it belongs to somebody else and is not declared safe.
pub fn attach(path: &Path) -> Result<PathBuf> {
    let refused = |why: String| Error::NotARepository { path: path.to_owned(), why };
    let git_dir = match locate::git_dir_at(path) {
        Some(git_dir) => git_dir,
        None => {
            let (found, _) =
                gix::discover::upwards(path).map_err(|error| refused(error.to_string()))?;
            found.into_repository_and_work_tree_directories().0
        }
    };
    let common_dir = locate::common_dir_of(&git_dir);
    let common_dir =
        common_dir.canonicalize().map_err(|source| Error::io("open", &common_dir, source))?;
    if locate::has_foreign_references(&common_dir) {
        return Err(refused(
            "its references are not kept in files; `git refs migrate --ref-format=files` changes \
             that"
                .into(),
        ));
    }
    locate::open(&common_dir)?;
    Ok(common_dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gittest::{Sandbox, command, git};

    #[test]
    fn a_repository_is_found_from_anywhere_in_it() {
        let sandbox = Sandbox::new();
        let source = sandbox.repository("source");
        std::fs::create_dir_all(source.join("deep/er")).unwrap();
        git(&source, &["worktree", "add", "-q", "--detach", "../linked"]);
        git(&source, &["clone", "-q", "--bare", ".", "../bare.git"]);
        std::os::unix::fs::symlink(&source, sandbox.path("link")).unwrap();
        let common = source.join(".git");
        for path in ["source", "source/.git", "source/deep/er", "linked", "link", "link/deep"] {
            assert_eq!(attach(&sandbox.path(path)).unwrap(), common, "{path}");
        }
        for path in ["bare.git", "bare", "bare.git/objects"] {
            assert_eq!(attach(&sandbox.path(path)).unwrap(), sandbox.path("bare.git"), "{path}");
        }
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        let sandbox = Sandbox::new();
        let directory = sandbox.path("directory");
        std::fs::create_dir(&directory).unwrap();
        let mut refused = vec![sandbox.path("nowhere"), directory];
        let reftable = sandbox.path("reftable");
        let mut init = command(&sandbox.path(""), &["init", "--ref-format=reftable", "reftable"]);
        if init.output().unwrap().status.success() {
            refused.push(reftable);
        }
        for path in refused {
            let error = attach(&path).unwrap_err();
            assert!(matches!(error, Error::NotARepository { .. }), "{error}");
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        }
    }
}
