//! What git is told to ignore in all worktrees of a repository, beside what their trees say.

use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::files;

/// Has git ignore `path`, counted from the root of every worktree, whatever it is.
///
/// # Errors
/// [`Error::Io`].
pub fn add(common_dir: &Path, path: &Path) -> Result<()> {
    let (file, mut text) = read(common_dir)?;
    let line = pattern(path);
    if lines(&text).any(|one| one == line) {
        return Ok(());
    }
    if text.last().is_some_and(|last| *last != b'\n') {
        text.push(b'\n');
    }
    text.extend_from_slice(&line);
    text.push(b'\n');
    files::replace(&file, &text)
}

/// Takes that back.
///
/// # Errors
/// [`Error::Io`].
pub fn remove(common_dir: &Path, path: &Path) -> Result<()> {
    let (file, text) = read(common_dir)?;
    let line = pattern(path);
    if !lines(&text).any(|one| one == line) {
        return Ok(());
    }
    let kept = text.split_inclusive(|byte| *byte == b'\n');
    let kept: Vec<_> = kept.filter(|one| one.trim_ascii_end() != line).collect();
    files::replace(&file, &kept.concat())
}

fn read(common_dir: &Path) -> Result<(PathBuf, Vec<u8>)> {
    let file = common_dir.join("info/exclude");
    match std::fs::read(&file) {
        Ok(text) => Ok((file, text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok((file, Vec::new())),
        Err(source) => Err(Error::io("read", &file, source)),
    }
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n')
}

/// The pattern that stands for this path alone.
fn pattern(path: &Path) -> Vec<u8> {
    let mut pattern = vec![b'/'];
    for byte in path.as_os_str().as_bytes() {
        if b"*?[\\ ".contains(byte) {
            pattern.push(b'\\');
        }
        pattern.push(*byte);
    }
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gittest::{Sandbox, commit, git};

    #[test]
    fn git_ignores_the_path_and_nothing_else() {
        let sandbox = Sandbox::new();
        let repository = sandbox.repository("repository");
        commit(&repository, "file", b"x");
        let common_dir = repository.join(".git");
        for name in ["target", "a [b]* ", "deep/target"] {
            let path = repository.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::os::unix::fs::symlink("/nowhere", &path).unwrap();
            let before = git(&repository, &["status", "--porcelain"]);
            assert!(before.contains("??"), "{before}");
            add(&common_dir, Path::new(name)).unwrap();
            add(&common_dir, Path::new(name)).unwrap();
            assert_eq!(git(&repository, &["status", "--porcelain"]), "", "{name}");
        }
        std::fs::write(repository.join("targets"), "").unwrap();
        assert_eq!(git(&repository, &["status", "--porcelain"]).trim(), "?? targets");
        remove(&common_dir, Path::new("target")).unwrap();
        let left = git(&repository, &["status", "--porcelain"]);
        assert!(left.contains("?? target\n") && !left.contains("deep"), "{left}");
    }
}
