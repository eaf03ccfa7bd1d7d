//! What git is told about a worktree, as far as moving it depends on that.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::references::{are_plain, is_conditional};
use crate::reflog;
use crate::repository::Repository;

/// What makes git write an index of another form than it would by itself, or compare names in another way.
const OTHER_FORMS: [&str; 3] = ["index.skipHash", "feature.manyFiles", "core.ignoreCase"];

/// git's configuration as it applies to one worktree.
pub struct Settings {
    git: gix::Repository,
    git_dir: PathBuf,
}

impl Settings {
    /// That of the worktree with this git directory, as it is now.
    ///
    /// # Errors
    /// [`Error::Git`] for configuration that cannot be read.
    pub fn of(git_dir: &Path) -> Result<Self> {
        // Whose the worktree is would count as well, but it may be the mount of a daemon that was killed, at which
        // nobody can look.
        let trust = gix::sec::Trust::from_path_ownership(git_dir)
            .map_err(|source| Error::io("look at", git_dir, source))?;
        let options = gix::open::Options::default().open_path_as_is(true).with(trust);
        let opened = gix::open_opts(git_dir, options).map_err(|error| Error::Git {
            action: "read the configuration".into(),
            git_dir: git_dir.to_owned(),
            source: error.into(),
        })?;
        Ok(Self { git: opened, git_dir: git_dir.to_owned() })
    }

    /// Whether the worktree shows only a part of its files.
    ///
    /// # Errors
    /// [`Error::Git`] with what git says of a value that is none.
    pub fn is_sparse(&self, repository: &Repository) -> Result<bool> {
        match self.git.config_snapshot().try_boolean("core.sparseCheckout") {
            Ok(value) if !is_conditional(&self.git) => Ok(value.unwrap_or(false)),
            _ => {
                let args = ["config", "--type=bool", "--default=false", "core.sparseCheckout"];
                Ok(repository.run_git(&self.git_dir, &args)?.trim_end() == "true")
            }
        }
    }

    /// Whether the permission to execute counts.
    pub(super) fn file_mode(&self) -> bool {
        self.git.config_snapshot().boolean("core.fileMode").unwrap_or(true)
    }

    /// Whether git writes an index as it does by itself.
    pub(super) fn has_plain_index(&self) -> bool {
        let config = self.git.config_snapshot();
        let is_off = |key: &str| matches!(config.try_boolean(key), Ok(None | Some(false)));
        OTHER_FORMS.iter().all(|key| is_off(key)) && !is_conditional(&self.git)
    }

    /// Who git would say has moved `HEAD`, if nothing but the file and its log is concerned: no hook is to be asked, and
    /// references are files that only their owner writes.
    pub(super) fn mover(&self) -> Option<Vec<u8>> {
        are_plain(&self.git).then(|| reflog::plain_committer(&self.git)).flatten()
    }
}
