//! What can be made anew of a git directory or of a saved git state in which something is wrong.

use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::examine::{Examined, Finding};
use crate::files;
use crate::gitdir::back_link;
use crate::racy;
use crate::saved::{self, DIGESTS};
use crate::transport;

/// One thing to be done.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// A small file is written anew.
    Write {
        /// The file.
        path: PathBuf,
        /// What it is to hold.
        content: Vec<u8>,
    },
    /// An index is made anew from a commit. What was staged and not committed has to be staged again.
    Index {
        /// The index.
        path: PathBuf,
        /// The git directory in which the revision is looked up.
        git_dir: PathBuf,
        /// The revision.
        revision: String,
    },
    /// An index is given an older time, so that git reads again what changed in that second.
    Age {
        /// The index.
        index: PathBuf,
        /// The second, since the epoch.
        second: u32,
    },
    /// The digests of a saved state are written anew, of which only they are damaged.
    Digests {
        /// The directory of the state.
        dir: PathBuf,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write { path, content } => {
                let content = String::from_utf8_lossy(content);
                write!(f, "write {} anew: {:?}", path.display(), content.trim_end())
            }
            Self::Index { path, revision, .. } => write!(
                f,
                "make {} anew from {revision}; what was staged and not committed has to be staged again",
                path.display()
            ),
            Self::Age { index, .. } => {
                write!(f, "have git read again what is as young as {}", index.display())
            }
            Self::Digests { dir } => write!(f, "write {} anew", dir.join(DIGESTS).display()),
        }
    }
}

impl Examined<'_> {
    /// What can be done about what was found in a worktree's git directory: first what the rest needs.
    pub fn mend(&self, findings: &[Finding]) -> Vec<Step> {
        let mut steps: Vec<_> = findings.iter().filter_map(|finding| self.step(finding)).collect();
        // Writing comes before making an index.
        steps.sort_unstable();
        steps.dedup();
        steps
    }

    fn step(&self, finding: &Finding) -> Option<Step> {
        let path = match finding {
            Finding::BadFile { path, .. } => path,
            Finding::WrongObject { index, .. } => index,
            Finding::Unnoticed { index, second, .. } => {
                return Some(Step::Age { index: index.clone(), second: *second });
            }
            Finding::WrongStat { .. } => return None,
        };
        let write = |content| Step::Write { path: path.clone(), content };
        match path.strip_prefix(self.git_dir).ok()?.to_str()? {
            "HEAD" => Some(write(match self.detached {
                Some(commit) => format!("{commit}\n").into_bytes(),
                None => format!("ref: refs/heads/{}\n", self.branch).into_bytes(),
            })),
            "commondir" => Some(write(b"../..\n".to_vec())),
            "gitdir" => self.dir.map(|dir| write(back_link(dir))),
            "index" => Some(Step::Index {
                path: path.clone(),
                git_dir: self.git_dir.to_owned(),
                revision: "HEAD".into(),
            }),
            _ => None,
        }
    }
}

/// What can be done about what was found in the state that was saved in `dir`, of branch `branch`, whose commit
/// `reference` keeps in the repository at `common_dir`.
pub fn mend_saved(
    dir: &Path,
    findings: &[Finding],
    common_dir: &Path,
    branch: &str,
    reference: &str,
    commit: Option<&str>,
) -> Vec<Step> {
    let bad = findings.iter().filter_map(|finding| match finding {
        Finding::BadFile { path, .. } => Some(path),
        _ => None,
    });
    let heads = [Some(format!("ref: refs/heads/{branch}\n")), commit.map(|id| format!("{id}\n"))];
    let heads: Vec<_> = heads.into_iter().flatten().map(String::into_bytes).collect();
    let steps = bad.filter_map(|path| match path.strip_prefix(dir).ok()?.to_str()? {
        "HEAD" => {
            let content = saved::original(dir, path, &heads)?;
            Some(Step::Write { path: path.clone(), content })
        }
        "index" => commit.map(|_| Step::Index {
            path: path.clone(),
            git_dir: common_dir.to_owned(),
            revision: reference.into(),
        }),
        DIGESTS if findings.len() == 1 => Some(Step::Digests { dir: dir.to_owned() }),
        _ => None,
    });
    let mut steps: Vec<_> = steps.collect();
    steps.sort_unstable();
    steps
}

impl Step {
    /// Does it. It can be repeated, and what is there is replaced at once.
    ///
    /// # Errors
    /// [`crate::Error::Io`], and what git meets: a locked index among it.
    pub fn take(&self) -> Result<()> {
        match self {
            Self::Write { path, content } => files::replace(path, content),
            Self::Index { path, git_dir, revision } => read_tree(path, git_dir, revision),
            Self::Age { index, second } => racy::age(index, *second),
            Self::Digests { dir } => saved::write_digests(dir),
        }
    }
}

/// Has git make an index of a commit, or an empty one where there is no such commit yet.
fn read_tree(path: &Path, git_dir: &Path, revision: &str) -> Result<()> {
    let git = |args: &[&str]| {
        let mut git = transport::git();
        git.env("GIT_INDEX_FILE", path).args(args);
        transport::run(&mut git, git_dir, &format!("make {} of {revision}", path.display()))
    };
    let known = git(&["rev-parse", "--quiet", "--verify", &format!("{revision}^{{commit}}")]);
    git(&["read-tree", if known.is_ok() { revision } else { "--empty" }]).map(drop)
}

#[cfg(test)]
mod tests {
    use agentfs_engine::HashKind;

    use super::*;
    use crate::gitdir::{NewGitDir, WorktreeHead};
    use crate::gittest::{Sandbox, commit, git};
    use crate::state;

    #[test]
    fn what_says_where_a_git_directory_belongs_is_made_anew() {
        let sandbox = Sandbox::new();
        let repository = sandbox.repository("repository");
        let common = repository.join(".git");
        let dir = sandbox.path("mounted");
        let head = WorktreeHead::Branch { name: "main", commit: None };
        let new = NewGitDir { common_dir: &common, worktree: &dir, head, state: None };
        let git_dir = new.create(|path| read_tree(path, &common, "main")).unwrap();
        let hash = HashKind::Sha1;
        let examined = Examined {
            git_dir: &git_dir,
            common_dir: &common,
            hash,
            branch: "main",
            detached: None,
            dir: Some(&dir),
            worktree: None,
        };
        assert_eq!(examined.examine().findings, []);
        for name in ["HEAD", "commondir", "gitdir", "index"] {
            let path = git_dir.join(name);
            let whole = std::fs::read(&path).unwrap();
            for at in [0, whole.len() - 1] {
                let mut damaged = whole.clone();
                damaged[at] ^= 1;
                std::fs::write(&path, damaged).unwrap();
                let steps = examined.mend(&examined.examine().findings);
                assert_eq!(steps.len(), 1, "{name}");
                steps[0].take().unwrap();
                steps[0].take().unwrap();
                assert_eq!(std::fs::read(&path).unwrap(), whole, "{}", steps[0]);
            }
        }
        // One bit away from the branch that exists is none that was ever made.
        std::fs::write(git_dir.join("HEAD"), "ref: refs/heads/maio\n").unwrap();
        assert_eq!(examined.mend(&examined.examine().findings).len(), 1);
        for other in ["ref: refs/heads/orphan\n", "ref: refs/heads/mais\n"] {
            std::fs::write(git_dir.join("HEAD"), other).unwrap();
            assert_eq!(examined.examine().findings, [], "{other}");
        }
        git(&repository, &["branch", "maio"]);
        std::fs::write(git_dir.join("HEAD"), "ref: refs/heads/maio\n").unwrap();
        assert_eq!(examined.examine().findings, [], "that branch exists");
    }

    #[test]
    fn a_saved_state_is_made_what_was_saved() {
        let sandbox = Sandbox::new();
        let repository = sandbox.repository("repository");
        commit(&repository, "more", b"2");
        let common = repository.join(".git");
        let (id, saved) = (git(&repository, &["rev-parse", "HEAD"]), sandbox.path("saved"));
        git(&repository, &["update-ref", "refs/agentfs/kept", "HEAD"]);
        for detached in [false, true] {
            if detached {
                git(&repository, &["checkout", "--quiet", "--detach"]);
            }
            let _ = std::fs::remove_dir_all(&saved);
            state::save(&common, &saved).unwrap();
            let mend = |findings: &[Finding]| {
                mend_saved(&saved, findings, &common, "main", "refs/agentfs/kept", Some(&id))
            };
            let examine = || saved::examine(&saved, &common, HashKind::Sha1);
            assert_eq!(examine(), []);
            for name in ["HEAD", "index", DIGESTS] {
                let whole = std::fs::read(saved.join(name)).unwrap();
                let mut damaged = whole.clone();
                damaged[3] ^= 8;
                // The index has another name where it was saved from.
                std::fs::remove_file(saved.join(name)).unwrap();
                std::fs::write(saved.join(name), damaged).unwrap();
                let steps = mend(&examine());
                assert_eq!(steps.len(), 1, "{name}");
                steps[0].take().unwrap();
                assert_eq!(examine(), [], "{}", steps[0]);
                assert!(name == "index" || std::fs::read(saved.join(name)).unwrap() == whole);
            }
            let mut config = std::fs::read(saved.join("config")).unwrap();
            config[0] ^= 1;
            std::fs::write(saved.join("config"), config).unwrap();
            assert_eq!(mend(&examine()), [], "nobody else has it");
            assert!(saved::verify(&saved).is_err());
        }
    }
}
