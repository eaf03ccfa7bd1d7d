//! References of a repository that need no git process to be changed.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use agentfs_engine::GitOid;
use gix::bstr::ByteSlice;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, open};

use crate::error::{Error, Result};
use crate::files;
use crate::repository::Repository;

/// The hook that git runs for every change of a reference.
const HOOK: &str = "reference-transaction";

/// Whether what is configured depends on conditions, of which gix judges some otherwise than git.
pub(crate) fn is_conditional(git: &gix::Repository) -> bool {
    let config = git.config_snapshot();
    config.plumbing().sections_by_name("includeIf").is_some_and(|mut all| all.next().is_some())
}

/// Whether references are files that only their owner writes, and nothing else is concerned when one is changed: no
/// hook is to be asked.
pub(crate) fn are_plain(git: &gix::Repository) -> bool {
    let config = git.config_snapshot();
    let format = config.string("extensions.refStorage");
    format.is_none_or(|format| format == "files")
        && config.string("core.sharedRepository").is_none()
        && !is_conditional(git)
        && hooks(git).is_some_and(|hooks| hooks.join(HOOK).symlink_metadata().is_err())
}

/// Where hooks are; `None` if that depends on where git is started.
fn hooks(git: &gix::Repository) -> Option<PathBuf> {
    match git.config_snapshot().string("core.hooksPath") {
        None => Some(git.common_dir().join("hooks")),
        Some(path) => {
            let path = path.to_path().ok()?;
            path.is_absolute().then(|| path.to_owned())
        }
    }
}

impl Repository {
    /// Has reference `name`, a full name that nothing has had before and nobody else will give, lead to `commit`,
    /// so that git keeps what is reachable from it.
    ///
    /// # Errors
    /// [`Error::Git`].
    pub fn keep_new(&self, name: &str, commit: &GitOid) -> Result<()> {
        match self.make(name, commit) {
            Ok(true) => Ok(()),
            // git has the last word, or says what is wrong.
            Ok(false) | Err(_) => self.keep(name, commit),
        }
    }

    /// Makes a reference that is not there, if git would do nothing but write its file. No lock is taken: who
    /// would have it is nobody, and the file comes to be as a whole.
    fn make(&self, name: &str, commit: &GitOid) -> Result<bool> {
        let git = self.gix();
        let logs = git.config_snapshot().string("core.logAllRefUpdates");
        let is_logged = logs.is_some_and(|value| value.eq_ignore_ascii_case(b"always"));
        if is_logged || !are_plain(&git) || gix::validate::reference::name(name.into()).is_err() {
            return Ok(false);
        }
        let path = git.common_dir().join(name);
        let dir = path.parent().unwrap_or(&path);
        let made = fs::create_dir_all(dir).and_then(|()| make_file(dir, &path, commit));
        match made {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(source) => Err(Error::io("create", &path, source)),
        }
    }
}

/// Makes a file of a reference: it has no name before it is whole, so that nothing is left of a killed process.
fn make_file(dir: &Path, path: &Path, commit: &GitOid) -> std::io::Result<()> {
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    let mut file = File::from(open(dir, flags, Mode::from_raw_mode(0o666))?);
    file.write_all(format!("{commit}\n").as_bytes())?;
    file.sync_data()?;
    linkat(CWD, files::of_descriptor(&file), CWD, path, AtFlags::SYMLINK_FOLLOW)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gittest::{Sandbox, commit, git};

    #[test]
    fn what_is_made_here_is_a_reference_of_git() {
        let sandbox = Sandbox::new();
        let path = sandbox.repository("repo");
        commit(&path, "second", b"2");
        let id = |rev: &str| git(&path, &["rev-parse", rev]);
        let open = || Repository::open(&path.join(".git")).unwrap();
        let repository = open();
        let oid = repository.resolve("main").unwrap().id;
        assert!(repository.make("refs/agentfs/snapshots/a", &oid).unwrap());
        assert_eq!(id("refs/agentfs/snapshots/a"), id("main"));
        git(&path, &["pack-refs", "--all"]);
        assert_eq!(id("refs/agentfs/snapshots/a"), id("main"));
        repository.keep_new("refs/agentfs/snapshots/b", &oid).unwrap();
        assert_eq!(
            git(&path, &["for-each-ref", "--format=%(refname:lstrip=2)", "refs/agentfs"]),
            "snapshots/a\nsnapshots/b"
        );
        // Nothing that is there is replaced here.
        let first = repository.resolve("main~1").unwrap().id;
        assert!(!repository.make("refs/agentfs/snapshots/b", &first).unwrap());
        assert_eq!(id("refs/agentfs/snapshots/b"), id("main"));
        git(&path, &["fsck", "--strict"]);

        // Where more is concerned, git makes it.
        for (key, value) in [
            ("core.logAllRefUpdates", "always"),
            ("core.sharedRepository", "group"),
            ("core.hooksPath", "relative"),
            ("includeIf.onbranch:x.path", "/nowhere"),
        ] {
            git(&path, &["config", key, value]);
            assert!(!open().make("refs/agentfs/snapshots/c", &oid).unwrap(), "{key}");
            git(&path, &["config", "--unset", key]);
        }
        let hook = path.join(".git/hooks/reference-transaction");
        std::fs::create_dir_all(hook.parent().unwrap()).unwrap();
        std::fs::write(&hook, "#!/bin/sh\n").unwrap();
        assert!(!open().make("refs/agentfs/snapshots/c", &oid).unwrap());
        std::fs::remove_file(&hook).unwrap();
        assert!(!open().make("refs/agentfs/snapshots/..", &oid).unwrap());
        assert!(open().make("refs/agentfs/snapshots/c", &oid).unwrap());
    }
}
