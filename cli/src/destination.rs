//! The directory at which a worktree is to be mounted: its absolute path, and whether it will do.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use agentfs_fuse::MountState;
use rustix::io::Errno;

use crate::error::{Failure, Kind, Result};

/// The absolute path of `dir`, without symbolic links. `dir` itself is not entered, since it may be
/// a mount whose server is gone, and need not exist; the directory above it must.
///
/// # Errors
/// [`Kind::NotFound`] if the directory above it does not exist.
pub fn absolute(dir: &Path) -> Result<PathBuf> {
    let refused = |action, path: &Path, error| Failure::io(action, path, &error);
    let path = std::path::absolute(dir).map_err(|error| refused("find", dir, error))?;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return fs::canonicalize(&path).map_err(|error| refused("find", &path, error));
    };
    let parent = match fs::canonicalize(parent) {
        Ok(parent) => parent,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Failure::new(
                Kind::NotFound,
                format!("{} does not exist", parent.display()),
            )
            .hint(format!("create it with `mkdir -p {}`", parent.display())));
        }
        Err(error) => return Err(refused("enter", parent, error)),
    };
    let path = parent.join(name);
    match fs::symlink_metadata(&path) {
        Ok(metadata) if metadata.is_symlink() => {
            fs::canonicalize(&path).map_err(|error| refused("follow the link", &path, error))
        }
        _ => Ok(path),
    }
}

/// What is at a directory that will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vacancy {
    /// Nothing.
    Missing,
    /// An empty directory.
    Empty,
}

/// Whether a worktree can be mounted at `dir`, an absolute path, by the daemon of `store`.
///
/// # Errors
/// [`Kind::NotFound`] if the directory above it does not exist, [`Kind::InWorktree`] if it is a
/// worktree or in one, [`Kind::NotEmpty`], [`Kind::Refused`].
pub fn check(dir: &Path, store: &Path) -> Result<Vacancy> {
    let shown = dir.display();
    if !dir.is_absolute() {
        return Err(Failure::new(Kind::Refused, format!("{shown} is not an absolute path")));
    }
    if dir.starts_with(store) {
        return Err(Failure::new(Kind::Refused, format!("{shown} is inside the store"))
            .hint(format!("choose a directory outside {}", store.display())));
    }
    vacancy(dir)
}

/// The same for a directory that the daemon has chosen.
///
/// # Errors
/// As [`check`].
pub fn vacancy(dir: &Path) -> Result<Vacancy> {
    let shown = dir.display();
    refuse_mounted(dir)?;
    match fs::symlink_metadata(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => missing(dir),
        Err(error) => Err(Failure::io("look at", dir, &error)),
        Ok(metadata) if !metadata.is_dir() => {
            Err(Failure::new(Kind::Refused, format!("{shown} exists and is not a directory"))
                .hint("choose a directory that is empty or does not exist"))
        }
        Ok(_) => {
            let mut entries =
                fs::read_dir(dir).map_err(|error| Failure::io("list", dir, &error))?;
            if entries.next().is_some() {
                return Err(Failure::new(Kind::NotEmpty, format!("{shown} is not empty"))
                    .hint("choose a directory that is empty or does not exist"));
            }
            Ok(Vacancy::Empty)
        }
    }
}

fn missing(dir: &Path) -> Result<Vacancy> {
    match dir.parent() {
        Some(parent) if !parent.is_dir() => {
            Err(Failure::new(Kind::NotFound, format!("{} does not exist", parent.display()))
                .hint(format!("create it with `mkdir -p {}`", parent.display())))
        }
        _ => Ok(Vacancy::Missing),
    }
}

/// Refuses a directory that is a mount of ours or lies in one, without asking that mount.
fn refuse_mounted(dir: &Path) -> Result<()> {
    for above in dir.ancestors() {
        let state = match agentfs_fuse::our_mount_state(above) {
            Ok(state) => state,
            // The way leads through a mount that is dead; one of the next says of which kind.
            Err(agentfs_fuse::Error::Inspect { source, .. })
                if source.raw_os_error() == Some(Errno::NOTCONN.raw_os_error()) =>
            {
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let (what, hint) = match state {
            MountState::NotMounted | MountState::Other { .. } => continue,
            MountState::Dead => (
                "an agentfs worktree whose daemon is gone",
                format!(
                    "unmount it with `agentfs umount {0}`, or with `umount -l {0}` if it is of \
                         another store",
                    above.display()
                ),
            ),
            MountState::OurFs { .. } if above == dir => (
                "an agentfs worktree already",
                format!(
                    "unmount it with `agentfs umount {}`, or choose another directory",
                    above.display()
                ),
            ),
            MountState::OurFs { .. } => {
                ("an agentfs worktree", format!("choose a directory outside {}", above.display()))
            }
        };
        let place = if above == dir { "is" } else { "lies in" };
        let message = if above == dir {
            format!("{} {place} {what}", dir.display())
        } else {
            format!("{} {place} {}, {what}", dir.display(), above.display())
        };
        return Err(Failure::new(Kind::InWorktree, message).hint(hint));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn the_path_is_found_without_entering_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        fs::create_dir(root.join("real")).unwrap();
        symlink("real", root.join("link")).unwrap();
        symlink("nothing", root.join("dangling")).unwrap();
        assert_eq!(absolute(&root.join("link/../real/new/")).unwrap(), root.join("real/new"));
        assert_eq!(absolute(&root.join("link")).unwrap(), root.join("real"));
        assert_eq!(absolute(&root.join("real/..")).unwrap(), root);
        assert_eq!(absolute(&root.join("dangling")).unwrap_err().kind, Kind::NotFound);
        let failure = absolute(&root.join("a/b")).unwrap_err();
        assert_eq!(failure.kind, Kind::NotFound);
        assert!(failure.hint.unwrap().contains("mkdir -p"));
    }

    #[test]
    fn only_an_empty_or_missing_directory_will_do() {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        let store = root.join("store");
        fs::create_dir(root.join("full")).unwrap();
        fs::write(root.join("full/file"), "").unwrap();
        fs::create_dir(root.join("empty")).unwrap();
        let kind = |name: &str| check(&root.join(name), &store).map_err(|failure| failure.kind);
        assert_eq!(kind("new"), Ok(Vacancy::Missing));
        assert_eq!(kind("empty"), Ok(Vacancy::Empty));
        assert_eq!(kind("full"), Err(Kind::NotEmpty));
        assert_eq!(kind("full/file"), Err(Kind::Refused));
        assert_eq!(kind("a/b"), Err(Kind::NotFound));
        assert_eq!(kind("store/x"), Err(Kind::Refused));
        assert_eq!(check(Path::new("relative"), &store).unwrap_err().kind, Kind::Refused);
    }
}
