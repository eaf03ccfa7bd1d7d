//! Notes about what a call is bringing about and has not recorded in the store yet.
//!
//! A note is written before the first trace of the work can be seen and removed when the work is
//! recorded, or undone. What a killed daemon has left half-made is thereby known by name, and the
//! next one removes exactly that and nothing else.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use agentfs_engine::store::Store;
use agentfs_fuse::MountState;
use agentfs_gitimport::gitdir;
use agentfs_gitimport::repository::Repository;

use crate::error::{Failure, Result};
use crate::layout::{Layout, remove_all};
use crate::protocol::WirePath;

/// What is being made.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Making {
    /// A repository of this name below `repos`.
    Repository(String),
    /// A branch, which is being made or removed: one that the store does not have on record goes.
    Branch {
        /// Its repository.
        repository: String,
        /// Its name.
        name: String,
        /// Where git's branch is, if that goes too.
        commit: Option<String>,
        /// Its git directory, as soon as there is one.
        git_dir: Option<WirePath>,
    },
    /// A branch that becomes what a snapshot is.
    Restore {
        /// The branch.
        branch: u64,
        /// The number of the snapshot.
        snapshot: u64,
    },
    /// A worktree that is moved to another commit.
    Switch(Switching),
    /// A branch that gets another name.
    Rename {
        /// The branch.
        branch: u64,
        /// Its name until then.
        from: String,
        /// Its name from then on.
        to: String,
    },
    /// A mount.
    Mount {
        /// Its directory.
        dir: WirePath,
        /// Whether the directory was not there before.
        created: bool,
        /// Its git directory, as soon as there is one.
        git_dir: Option<WirePath>,
    },
}

/// A worktree that is moved to another commit.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switching {
    /// Its branch.
    pub branch: u64,
    /// Its git directory.
    pub git_dir: WirePath,
    /// The layer that takes the changes of the branch once its files are moved.
    pub layer: u64,
    /// What `HEAD` says before; nothing as long as that is not decided.
    pub from: String,
    /// What it is to say.
    pub head: String,
    /// What its log is to say.
    pub message: String,
}

/// A note that exists. Dropping it removes it.
#[derive(Debug)]
pub struct Note {
    path: PathBuf,
}

impl Note {
    /// Writes a note.
    ///
    /// # Errors
    /// Whatever the file system refuses.
    pub fn write(layout: &Layout, making: &Making) -> Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let dir = layout.pending();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let note = Self { path: dir.join(format!("{}-{number}", std::process::id())) };
        fs::create_dir_all(&dir).map_err(|error| Failure::store_io("create", &dir, &error))?;
        note.amend(making)?;
        Ok(note)
    }

    /// Replaces what it says, on stable storage.
    ///
    /// # Errors
    /// Whatever the file system refuses.
    pub fn amend_durably(&self, making: &Making) -> Result<()> {
        self.amend(making)?;
        let dirs = self.path.ancestors().skip(1).take(2);
        std::iter::once(self.path.as_path()).chain(dirs).try_for_each(|path| {
            let synced = fs::File::open(path).and_then(|file| file.sync_all());
            synced.map_err(|error| Failure::store_io("sync", path, &error))
        })
    }

    /// Replaces what it says.
    ///
    /// # Errors
    /// Whatever the file system refuses.
    pub fn amend(&self, making: &Making) -> Result<()> {
        let text = serde_json::to_vec(making).unwrap_or_default();
        let new = self.path.with_extension("new");
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &self.path))
            .map_err(|error| Failure::store_io("write", &self.path, &error))
    }
}

impl Drop for Note {
    fn drop(&mut self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!("cannot remove {}: {error}", self.path.display());
            }
            _ => {}
        }
    }
}

/// The notes of a former daemon about branches that were becoming what a snapshot is, with the numbers of
/// the branch and the snapshot.
pub fn restores(layout: &Layout) -> Vec<(Note, u64, u64)> {
    let restore = |(note, making)| match making {
        Making::Restore { branch, snapshot } => Some((note, branch, snapshot)),
        other => leave((note, other)),
    };
    left(layout).into_iter().filter_map(restore).collect()
}

/// The notes of a former daemon about branches that were getting another name, with the number of the
/// branch, the old name and the new one.
pub fn renames(layout: &Layout) -> Vec<(Note, u64, String, String)> {
    let rename = |(note, making)| match making {
        Making::Rename { branch, from, to } => Some((note, branch, from, to)),
        other => leave((note, other)),
    };
    left(layout).into_iter().filter_map(rename).collect()
}

/// The notes of a former daemon about worktrees that were being moved.
pub fn switches(layout: &Layout) -> Vec<(Note, Switching)> {
    let switch = |(note, making)| match making {
        Making::Switch(switching) => Some((note, switching)),
        other => leave((note, other)),
    };
    left(layout).into_iter().filter_map(switch).collect()
}

/// The notes that are there.
fn left(layout: &Layout) -> Vec<(Note, Making)> {
    let entries = fs::read_dir(layout.pending()).into_iter().flatten().flatten();
    let read = |entry: fs::DirEntry| {
        let text = fs::read(entry.path()).ok()?;
        let making = serde_json::from_slice(&text).ok()?;
        Some((Note { path: entry.path() }, making))
    };
    entries.filter_map(read).collect()
}

/// Keeps a note that is somebody else's to take.
fn leave<T>((note, _): (Note, Making)) -> Option<T> {
    std::mem::forget(note);
    None
}

/// Removes what the notes of a former daemon name, unless the store has it on record.
///
/// # Errors
/// What reading the store meets.
pub fn sweep(layout: &Layout, store: &Store) -> Result<()> {
    let Ok(entries) = fs::read_dir(layout.pending()) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let note = Note { path: entry.path() };
        let making = fs::read(&note.path).ok().and_then(|text| serde_json::from_slice(&text).ok());
        match making {
            Some(Making::Repository(name)) => sweep_repository(layout, store, &name)?,
            Some(Making::Mount { dir, created, git_dir }) => {
                sweep_mount(store, &dir.0, created, git_dir.as_ref().map(|dir| dir.0.as_path()))?;
            }
            Some(Making::Branch { repository, name, commit, git_dir }) => {
                let git_dir = git_dir.as_ref().map(|dir| dir.0.as_path());
                sweep_branch(store, &repository, &name, commit.as_deref(), git_dir)?;
            }
            // Done by the one who can open branches.
            Some(Making::Restore { .. } | Making::Rename { .. } | Making::Switch(_)) => {
                std::mem::forget(note);
            }
            // Written by a daemon that was killed at it: nothing had been made yet.
            None => {}
        }
    }
    Ok(())
}

fn sweep_repository(layout: &Layout, store: &Store, name: &str) -> Result<()> {
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains('/');
    if !plain || store.repository(name)?.is_some() {
        return Ok(());
    }
    let path = layout.repositories().join(name);
    match remove_all(&path) {
        Ok(()) => info!("removed {}, which was not complete", path.display()),
        Err(error) => warn!("cannot remove {}: {error}", path.display()),
    }
    Ok(())
}

fn sweep_branch(
    store: &Store,
    repository: &str,
    name: &str,
    commit: Option<&str>,
    git_dir: Option<&Path>,
) -> Result<()> {
    let Some(repository) = store.repository(repository)? else { return Ok(()) };
    if let Some(branch) = store.branch(&repository.name, name)? {
        let made = git_dir.filter(|made| branch.git_dir() != Some(made));
        if let Some(Err(error)) = made.map(gitdir::remove) {
            warn!("{error}");
        }
        return Ok(());
    }
    let removed = git_dir.map_or(Ok(()), gitdir::remove).and_then(|()| {
        let git = Repository::open(&repository.git_dir)?;
        let full = format!("refs/heads/{name}");
        match commit.map(|commit| git.resolve(commit)) {
            Some(Ok(commit)) if git.has_branch(name)? => git.remove_reference(&full, &commit.id),
            Some(Ok(commit)) => git.unlock_branch(name, &commit.id),
            _ => Ok(()),
        }
    });
    match removed {
        Ok(()) => info!("removed what was left of branch {name} of {}", repository.name),
        Err(error) => warn!("{error}"),
    }
    Ok(())
}

fn sweep_mount(store: &Store, dir: &Path, created: bool, git_dir: Option<&Path>) -> Result<()> {
    let recorded = store.worktrees()?;
    if recorded.iter().any(|worktree| worktree.dir == dir) {
        return Ok(());
    }
    if let Ok(MountState::Dead) = agentfs_fuse::mount_state(dir) {
        match agentfs_fuse::unmount_path(dir, true) {
            Ok(()) => info!("unmounted {}, whose mounting was not complete", dir.display()),
            Err(error) => warn!("{error}"),
        }
    }
    if let Some(git_dir) = git_dir
        && let Err(error) = gitdir::remove(git_dir)
    {
        warn!("{error}");
    }
    if created {
        // It stays if somebody has put something into it.
        fs::remove_dir(dir).ok();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_lasts_as_long_as_its_work() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().to_owned());
        let making = Making::Mount { dir: WirePath("/w".into()), created: true, git_dir: None };
        let first = Note::write(&layout, &making).unwrap();
        let second = Note::write(&layout, &Making::Repository("r".into())).unwrap();
        assert_ne!(first.path, second.path);
        let text = fs::read(&first.path).unwrap();
        assert_eq!(serde_json::from_slice::<Making>(&text).unwrap(), making);
        drop((first, second));
        assert_eq!(fs::read_dir(layout.pending()).unwrap().count(), 0);
    }
}
