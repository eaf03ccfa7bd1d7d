//! The object directories that a repository borrows from, as `objects/info/alternates` names them.
//!
//! A relative path is relative to the object directory whose list has it, also in a list of an alternate;
//! gix takes it to be relative to the first one.

use std::collections::HashSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::limits::ALTERNATES_DEPTH_MAX;

/// The list in an object directory.
const LIST: &str = "info/alternates";

/// The alternates of the object directory `objects`, and theirs, in the order in which git looks into
/// them. One that does not exist is among them: who misses an object is told so. What is nested deeper
/// than git follows is left out, and so is one that was named before.
///
/// # Errors
/// [`Error::CorruptFile`] naming a list that cannot be understood, [`Error::Io`].
pub(super) fn of(objects: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut seen = HashSet::from([identity(objects)]);
    follow(objects, 0, &mut seen, &mut found)?;
    Ok(found)
}

fn follow(
    objects: &Path,
    depth: usize,
    seen: &mut HashSet<PathBuf>,
    found: &mut Vec<PathBuf>,
) -> Result<()> {
    if depth > ALTERNATES_DEPTH_MAX {
        tracing::warn!(path = %objects.display(), "its alternates are nested too deep");
        return Ok(());
    }
    for path in listed(objects)? {
        if seen.insert(identity(&path)) {
            found.push(path.clone());
            follow(&path, depth + 1, seen, found)?;
        }
    }
    Ok(())
}

/// What the list of `objects` names; nothing if it has none.
pub(crate) fn listed(objects: &Path) -> Result<Vec<PathBuf>> {
    let path = objects.join(LIST);
    let list = match std::fs::read(&path) {
        Ok(list) => list,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(Error::io("read", &path, error)),
    };
    let named = gix::odb::alternate::parse(&list)
        .map_err(|error| Error::CorruptFile { path, why: error.to_string() })?;
    Ok(named.into_iter().map(|named| objects.join(named)).collect())
}

/// The same for every path to one directory.
fn identity(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use agentfs_engine::HashKind;

    use super::*;
    use crate::gittest::{Sandbox, commit, git, run};
    use crate::odb::Odb;

    /// `name`, which borrows from `from` as `line` says, with a commit of its own.
    fn borrow(sandbox: &Sandbox, from: &str, name: &str, line: &str) {
        git(&sandbox.path(""), &["clone", "-q", "--shared", from, name]);
        let list = sandbox.path(name).join(".git/objects/info/alternates");
        std::fs::write(list, format!("# a comment\n\n{line}\n")).unwrap();
        commit(&sandbox.path(name), name, name.as_bytes());
    }

    #[test]
    fn as_deep_as_git_follows_them_and_no_deeper() {
        let sandbox = Sandbox::new();
        sandbox.repository("r0");
        let first = git(&sandbox.path("r0"), &["rev-parse", "HEAD"]);
        let id = gix::ObjectId::from_hex(first.as_bytes()).unwrap();
        let id = crate::object::from_gix(&id).unwrap();
        for level in 1..9 {
            let (from, name) = (format!("r{}", level - 1), format!("r{level}"));
            git(&sandbox.path(""), &["clone", "-q", "--bare", "--shared", &from, &name]);
            let objects = match level {
                1 => "../../r0/.git/objects".to_owned(),
                _ => format!("../../{from}/objects"),
            };
            std::fs::write(sandbox.path(&name).join("objects/info/alternates"), objects).unwrap();
            let ours = Odb::open(&sandbox.path(&name).join("objects"), id.kind()).unwrap();
            let theirs = run(&sandbox.path(&name), &["cat-file", "-e", &first]).status.success();
            assert_eq!(ours.reader().header(&id).is_ok(), theirs, "{level}");
            assert_eq!(theirs, level <= ALTERNATES_DEPTH_MAX + 1, "{level}");
            if !theirs {
                return;
            }
        }
        panic!("git follows them for ever");
    }

    #[test]
    fn relative_quoted_and_in_circles() {
        let sandbox = Sandbox::new();
        sandbox.repository("first \"one\"");
        borrow(&sandbox, "first \"one\"", "b", "\"../../../first \\\"one\\\"/.git/objects\"");
        borrow(&sandbox, "b", "c", "../../../b/.git/objects");
        let back = sandbox.path("first \"one\"").join(".git/objects/info/alternates");
        std::fs::write(back, "../../../c/.git/objects\n").unwrap();
        for name in ["first \"one\"", "b", "c"] {
            let path = sandbox.path(name);
            let mut reader =
                Odb::open(&path.join(".git/objects"), HashKind::Sha1).unwrap().reader();
            for other in ["first \"one\"", "b", "c"] {
                let commit = git(&sandbox.path(other), &["rev-parse", "HEAD"]);
                git(&path, &["cat-file", "-e", &commit]);
                let id = gix::ObjectId::from_hex(commit.as_bytes()).unwrap();
                let id = crate::object::from_gix(&id).unwrap();
                assert!(reader.header(&id).is_ok(), "{other} in {name}");
            }
        }
    }
}
