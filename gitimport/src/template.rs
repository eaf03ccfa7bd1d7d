//! What the user wants to be in every new repository: hooks, most of the time.

use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::error::{Error, Result};

/// Deepest nesting of directories in a template.
const DEPTH_MAX: u32 = 32;

/// Copies the files of the directory `init.templateDir` that the new repository `git_dir` does not
/// have, as git does when it makes a repository. No such directory is no error, as in git.
pub(crate) fn apply(git_dir: &Path) -> Result<()> {
    let Ok(repository) = gix::open(git_dir) else {
        return Ok(());
    };
    match repository.config_snapshot().trusted_path("init.templateDir") {
        Ok(Some(template)) if template.is_dir() => copy_missing(&template, git_dir, 0),
        _ => Ok(()),
    }
}

fn copy_missing(from: &Path, to: &Path, depth: u32) -> Result<()> {
    let list = |source| Error::io("list", from, source);
    for entry in std::fs::read_dir(from).map_err(list)? {
        let entry = entry.map_err(list)?;
        let name = entry.file_name();
        let (from, to) = (entry.path(), to.join(&name));
        let kind = entry.file_type().map_err(list)?;
        if name.as_encoded_bytes().starts_with(b".") || depth > DEPTH_MAX {
            continue;
        }
        let exists = to.symlink_metadata().is_ok();
        let copied = if kind.is_dir() {
            match std::fs::create_dir(&to) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
                _ => {
                    copy_missing(&from, &to, depth + 1)?;
                    Ok(())
                }
            }
        } else if exists {
            Ok(())
        } else if kind.is_symlink() {
            std::fs::read_link(&from).and_then(|target| symlink(target, &to))
        } else {
            std::fs::copy(&from, &to).map(drop)
        };
        copied.map_err(|source| Error::io("copy", &from, source))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::gittest::{Sandbox, git};

    #[test]
    fn a_template_fills_in_what_is_missing() {
        let sandbox = Sandbox::new();
        let git_dir = sandbox.repository("repository").join(".git");
        let template = sandbox.path("template");
        std::fs::create_dir_all(template.join("hooks/lib")).unwrap();
        for (name, content) in [("hooks/pre-commit", "#!/bin/sh\n"), ("hooks/lib/x", "x")] {
            std::fs::write(template.join(name), content).unwrap();
        }
        for name in ["HEAD", "config", ".hidden", "description"] {
            std::fs::write(template.join(name), "from the template").unwrap();
        }
        symlink("pre-commit", template.join("hooks/commit-msg")).unwrap();
        let hook = template.join("hooks/pre-commit");
        std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o755)).unwrap();
        apply(&git_dir).unwrap();
        assert!(!git_dir.join("hooks/pre-commit").exists(), "nothing is configured");

        git(&git_dir, &["config", "init.templateDir", template.to_str().unwrap()]);
        apply(&git_dir).unwrap();
        let hook = git_dir.join("hooks/pre-commit");
        assert_eq!(hook.metadata().unwrap().permissions().mode() & 0o111, 0o111);
        assert_eq!(
            std::fs::read_link(git_dir.join("hooks/commit-msg")).unwrap(),
            Path::new("pre-commit")
        );
        assert_eq!(std::fs::read(git_dir.join("hooks/lib/x")).unwrap(), b"x");
        assert!(!git_dir.join(".hidden").exists());
        assert_eq!(git(&git_dir, &["log", "--format=%s"]), "file", "HEAD or config was replaced");
        git(&git_dir, &["config", "init.templateDir", "/no/such/directory"]);
        apply(&git_dir).unwrap();
    }
}
