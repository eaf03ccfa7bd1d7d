//! Which paths git has in the index of a worktree.

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use agentfs_engine::HashKind;

use crate::error::{Error, Result};
use crate::examine::each_of;

/// Those of `paths` at or below which the index of the worktree with git directory `git_dir` has anything.
///
/// # Errors
/// [`Error::Io`] if the index cannot be read.
pub fn among(git_dir: &Path, hash: HashKind, paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let index = git_dir.join("index");
    let mut found = vec![false; paths.len()];
    let mut visit = |entry: crate::index_entries::IndexEntry| {
        for (path, found) in paths.iter().zip(&mut found) {
            let rest = entry.path.strip_prefix(path.as_os_str().as_bytes());
            *found |= rest.is_some_and(|rest| rest.is_empty() || rest[0] == b'/');
        }
    };
    // Whether git keeps checksums is for those to judge who examine it.
    let failed = |why| Error::io("read", &index, io::Error::new(io::ErrorKind::InvalidData, why));
    each_of(&index, hash, &|| true, &mut visit).map_err(failed)?;
    Ok(paths.iter().zip(found).filter(|(_, found)| *found).map(|(path, _)| path.clone()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gittest::{Sandbox, commit};

    #[test]
    fn what_the_index_has_is_tracked() {
        let sandbox = Sandbox::new();
        let repository = sandbox.repository("repository");
        commit(&repository, "target/x", b"x");
        commit(&repository, "file", b"y");
        let paths = ["target", "targets", "tar", "file", "fil", "target/x", "target/y"];
        let paths = paths.map(PathBuf::from);
        let found = among(&repository.join(".git"), HashKind::Sha1, &paths).unwrap();
        assert_eq!(found, ["target", "file", "target/x"].map(PathBuf::from));
        let none = sandbox.empty_repository("none", &[]);
        assert!(among(&none.join(".git"), HashKind::Sha1, &paths).unwrap().is_empty());
    }
}
