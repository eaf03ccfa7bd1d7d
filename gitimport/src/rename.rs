//! Another name for a branch: its reference with its log, the configuration that belongs to it, and every
//! `HEAD` and saved git state that is on it.
//!
//! git does it, in a process of its own. What a git that was killed has left undone is done by doing it
//! again.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::repository::Repository;
use crate::state::{self, HEADS, RETURNS_TO};
use crate::transport;

impl Repository {
    /// Whether a branch can be called `name`, as `git check-ref-format --branch` says, and not only as an
    /// expression that leads to one.
    pub fn is_branch_name(name: &str) -> bool {
        let full = format!("{HEADS}{name}");
        name != "HEAD" && !name.starts_with('-') && gix::refs::FullName::try_from(full).is_ok()
    }

    /// The worktree in which a rebase or a bisection of branch `name` is in progress. git does not rename a
    /// branch meanwhile, since it would be put back under the old name.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn operation_on(&self, name: &str) -> Result<Option<PathBuf>> {
        for git_dir in self.git_dirs()? {
            for (file, prefix) in RETURNS_TO {
                let text = state::read(&git_dir.join(file))?;
                if text.is_some_and(|text| text.strip_prefix(prefix) == Some(name)) {
                    return Ok(Some(git_dir));
                }
            }
        }
        Ok(None)
    }

    /// A branch, other than `but`, beside which there can be none called `name`: references are files, and
    /// a branch `a` leaves no room for a directory `a`.
    ///
    /// # Errors
    /// [`Error::Git`] if references cannot be read.
    pub fn in_the_way_of(&self, name: &str, but: &str) -> Result<Option<String>> {
        let above = name.match_indices('/').map(|(at, _)| &name[..at]);
        for above in above.filter(|above| *above != but) {
            if self.has_branch(above)? {
                return Ok(Some(above.into()));
            }
        }
        let below = format!("{HEADS}{name}/");
        let listed = self.run_git(
            self.git_dir(),
            &["for-each-ref", "--format=%(refname:lstrip=2)", "--count=2", &below],
        )?;
        Ok(listed.lines().find(|found| *found != but).map(str::to_owned))
    }

    /// Gives branch `from` the name `to`, which no branch has. It can be repeated, and completes what was
    /// begun before. A branch that git has not is none to rename; a `HEAD` that is on it follows.
    ///
    /// # Errors
    /// [`Error::Git`] with what git says, and [`Error::Io`].
    pub fn rename_branch(&self, from: &str, to: &str) -> Result<()> {
        if self.has_branch(from)? {
            let renamed = self.run_git(self.git_dir(), &["branch", "-m", from, to]);
            // Another one, begun by a process that was killed, may have been faster.
            if let Err(error) = renamed
                && (self.has_branch(from)? || !self.has_branch(to)?)
            {
                return Err(error);
            }
        }
        let (old, new) = (format!("{HEADS}{from}"), format!("{HEADS}{to}"));
        for git_dir in self.git_dirs()? {
            if state::read(&git_dir.join("HEAD"))?.as_deref() == Some(&*format!("ref: {old}")) {
                self.run_git(&git_dir, &["symbolic-ref", "HEAD", &new])?;
            }
        }
        let (old, new) = (format!("branch.{from}"), format!("branch.{to}"));
        let known =
            self.run_git(self.git_dir(), &["config", "--local", "--name-only", "--list"])?;
        if known.lines().any(|key| key.rsplit_once('.').is_some_and(|(section, _)| section == old))
        {
            self.run_git(self.git_dir(), &["config", "--local", "--rename-section", &old, &new])?;
        }
        Ok(())
    }

    /// The git directories of the repository and of its worktrees.
    fn git_dirs(&self) -> Result<Vec<PathBuf>> {
        let mut found = vec![self.git_dir().to_owned()];
        let dir = self.git_dir().join("worktrees");
        match fs::read_dir(&dir) {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            entries => {
                for entry in entries.map_err(|source| Error::io("list", &dir, source))? {
                    found.push(entry.map_err(|source| Error::io("list", &dir, source))?.path());
                }
            }
        }
        Ok(found)
    }

    /// What `git` with these arguments prints.
    ///
    /// # Errors
    /// [`Error::Git`] with what it says.
    pub(crate) fn run_git(&self, git_dir: &Path, args: &[&str]) -> Result<String> {
        let action = format!("run `git {}` in the repository", args.join(" "));
        transport::run(transport::git().args(args), git_dir, &action)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gittest::{Sandbox, commit, git};

    #[test]
    fn what_names_a_branch_follows_it() {
        let sandbox = Sandbox::new();
        let path = sandbox.empty_repository("repo", &[]);
        commit(&path, "a", b"1");
        git(&path, &["branch", "other"]);
        git(&path, &["config", "branch.main.remote", "origin"]);
        git(&path, &["config", "branch.main.x.remote", "elsewhere"]);
        let linked = sandbox.path("linked");
        git(&path, &["worktree", "add", "-q", "-b", "side", linked.to_str().unwrap()]);
        let repository = Repository::open(&path.join(".git")).unwrap();
        let tip = git(&path, &["rev-parse", "HEAD"]);
        for (dir, from, to) in [(&path, "main", "main/deeper"), (&linked, "side", "aside")] {
            repository.rename_branch(from, to).unwrap();
            // What is done is not done again.
            repository.rename_branch(from, to).unwrap();
            assert_eq!(git(dir, &["symbolic-ref", "HEAD"]), format!("refs/heads/{to}"));
            assert_eq!(git(dir, &["rev-parse", to]), tip);
            assert!(git(dir, &["reflog", "show", to]).contains("renamed"), "its log goes on");
        }
        assert_eq!(git(&path, &["config", "branch.main/deeper.remote"]), "origin");
        assert_eq!(git(&path, &["config", "branch.main.x.remote"]), "elsewhere");
        let taken = repository.rename_branch("aside", "other").unwrap_err();
        assert!(taken.to_string().contains("already exists"), "{taken}");
        assert_eq!(git(&linked, &["symbolic-ref", "HEAD"]), "refs/heads/aside");
    }

    #[test]
    fn what_a_killed_git_left_is_completed() {
        let sandbox = Sandbox::new();
        let path = sandbox.empty_repository("repo", &[]);
        commit(&path, "a", b"1");
        git(&path, &["config", "branch.main.remote", "origin"]);
        // The reference is renamed, and nothing else.
        git(&path, &["update-ref", "refs/heads/new", "main"]);
        git(&path, &["update-ref", "-d", "refs/heads/main"]);
        let repository = Repository::open(&path.join(".git")).unwrap();
        repository.rename_branch("main", "new").unwrap();
        assert_eq!(git(&path, &["symbolic-ref", "HEAD"]), "refs/heads/new");
        assert_eq!(git(&path, &["config", "branch.new.remote"]), "origin");
    }

    #[test]
    fn names_are_those_of_git() {
        for name in ["a", "a/b", "a.b", "@x", "\u{e9}"] {
            assert!(Repository::is_branch_name(name), "{name}");
        }
        for name in
            ["", "-a", "HEAD", "a..b", "a b", "a~1", ".a", "a.lock", "a/", "/a", "a//b", "@{-1}"]
        {
            assert!(!Repository::is_branch_name(name), "{name}");
        }
    }

    #[test]
    fn branches_are_in_the_way_of_others() {
        let sandbox = Sandbox::new();
        let path = sandbox.empty_repository("repo", &[]);
        commit(&path, "a", b"1");
        git(&path, &["branch", "a/b"]);
        let repository = Repository::open(&path.join(".git")).unwrap();
        let way = |name: &str, but: &str| repository.in_the_way_of(name, but).unwrap();
        assert_eq!(way("a", "main").as_deref(), Some("a/b"));
        assert_eq!(way("a", "a/b"), None);
        assert_eq!(way("main/x", "a/b").as_deref(), Some("main"));
        assert_eq!(way("main/x", "main"), None);
        assert_eq!(way("a/c", "main"), None);
    }

    #[test]
    fn an_operation_in_progress_is_found() {
        let sandbox = Sandbox::new();
        let path = sandbox.empty_repository("repo", &[]);
        commit(&path, "a", b"1");
        let repository = Repository::open(&path.join(".git")).unwrap();
        assert_eq!(repository.operation_on("main").unwrap(), None);
        git(&path, &["bisect", "start"]);
        assert_eq!(repository.operation_on("main").unwrap(), Some(path.join(".git")));
        assert_eq!(repository.operation_on("other").unwrap(), None);
    }
}
