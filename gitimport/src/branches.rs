//! Which branches a repository has, and where they are checked out.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::repository::Repository;

impl Repository {
    /// Whether there is a branch of exactly this name, without `refs/heads/`. An expression that
    /// leads to one, like `main~1`, is none.
    ///
    /// # Errors
    /// [`Error::Git`] if references cannot be read.
    pub fn has_branch(&self, name: &str) -> Result<bool> {
        let full = format!("refs/heads/{name}");
        let git = self.gix();
        let found = catch_unwind(AssertUnwindSafe(|| {
            let Ok(full) = <&gix::refs::FullNameRef>::try_from(full.as_str()) else {
                return Ok(false);
            };
            git.try_find_reference(full).map(|reference| reference.is_some())
        }));
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Git {
            action: format!("read reference {full}"),
            git_dir: self.git_dir().to_owned(),
            source,
        };
        match found {
            Ok(Ok(found)) => Ok(found),
            Ok(Err(error)) => Err(failed(Box::new(error))),
            Err(_) => Err(failed("gix failed on it".into())),
        }
    }

    /// The directory in which branch `name` is checked out: the repository's own worktree or a linked
    /// one, of git or of ours. Whoever commits in one of two such directories changes the other.
    pub fn checkout_of(&self, name: &str) -> Option<PathBuf> {
        self.checkout_but(name, None)
    }

    /// The same, of the worktrees other than that with the git directory `but`.
    pub fn checkout_beside(&self, name: &str, but: &Path) -> Option<PathBuf> {
        self.checkout_but(name, but.canonicalize().ok().as_deref())
    }

    fn checkout_but(&self, name: &str, but: Option<&Path>) -> Option<PathBuf> {
        let head = format!("ref: refs/heads/{name}");
        let holds = |git_dir: &Path| {
            std::fs::read(git_dir.join("HEAD"))
                .is_ok_and(|text| text.trim_ascii() == head.as_bytes())
        };
        let git = self.gix();
        if let Some(workdir) = git.workdir()
            && holds(git.common_dir())
        {
            return Some(workdir.to_owned());
        }
        // A repository without linked worktrees, or one whose list cannot be read, holds nothing back.
        let linked = git.worktrees().unwrap_or_default();
        let other = |dir: &Path| but.is_none() || dir.canonicalize().ok().as_deref() != but;
        let holder = linked
            .into_iter()
            .find(|worktree| holds(worktree.git_dir()) && other(worktree.git_dir()))?;
        Some(holder.base().unwrap_or_else(|_| holder.git_dir().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gittest::{Sandbox, commit, git};

    #[test]
    fn only_a_reference_is_a_branch() {
        let sandbox = Sandbox::new();
        let path = sandbox.empty_repository("repo", &[]);
        assert!(!Repository::open(&path.join(".git")).unwrap().has_branch("main").unwrap());
        commit(&path, "a", b"x");
        commit(&path, "b", b"x");
        git(&path, &["branch", "side/way"]);
        git(&path, &["tag", "v1"]);
        git(&path, &["pack-refs", "--all"]);
        let repository = Repository::open(&path.join(".git")).unwrap();
        for name in ["main", "side/way"] {
            assert!(repository.has_branch(name).unwrap(), "{name}");
        }
        for name in ["main~1", "main^", "v1", "side", "", "HEAD", "a b", "main@{0}", "x-1-gabcdef"]
        {
            assert!(!repository.has_branch(name).unwrap(), "{name}");
        }
    }

    #[test]
    fn a_branch_is_found_where_it_is_checked_out() {
        let sandbox = Sandbox::new();
        let path = sandbox.empty_repository("repo", &[]);
        commit(&path, "a", b"x");
        git(&path, &["branch", "free"]);
        let linked = sandbox.path("linked");
        git(&path, &["worktree", "add", "-q", "-b", "side", linked.to_str().unwrap()]);
        let open = |path: &Path| Repository::open(path).unwrap();
        let repository = open(&path.join(".git"));
        let same = |found: Option<PathBuf>, dir: &Path| {
            found.is_some_and(|found| found.canonicalize().unwrap() == dir.canonicalize().unwrap())
        };
        assert!(same(repository.checkout_of("main"), &path));
        assert!(same(repository.checkout_of("side"), &linked));
        assert_eq!(repository.checkout_of("free"), None);
        let bare = sandbox.path("bare.git");
        git(&path, &["clone", "-q", "--bare", ".", bare.to_str().unwrap()]);
        assert_eq!(open(&bare).checkout_of("main"), None);
    }
}
