//! `.agentfs.toml`, in which a tree names the paths that are to be redirected, and which paths can be.
//!
//! The tree comes from strangers. It names nothing but paths inside itself: where the data of a redirect lies is
//! the store's to choose.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use agentfs_engine::Ino;
use agentfs_engine::tree::EntryKind;
use agentfs_engine::worktree::{NodeKind, Worktree};
use agentfs_gitimport::names;
use serde::Deserialize;

/// The file.
pub const FILE: &str = ".agentfs.toml";
/// Its largest size in bytes.
pub const FILE_BYTES_MAX: u64 = 64 << 10;
/// Most redirected paths of a branch.
pub const PATHS_MAX: usize = 64;
/// Longest path in bytes.
const PATH_BYTES_MAX: usize = 1024;
/// Most names in a path.
const DEPTH_MAX: usize = 32;

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    redirect: Redirect,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Redirect {
    #[serde(default)]
    paths: Vec<String>,
}

/// The paths that the tree of `worktree` asks to have redirected.
///
/// # Errors
/// What is wrong with the file, as a sentence that names it.
pub fn of(worktree: &Worktree) -> Result<Vec<PathBuf>, String> {
    let failed = |why: String| format!("{FILE}: {why}");
    let found = worktree.lookup(Ino::ROOT, FILE.as_bytes());
    let Some(found) = found.map_err(|error| failed(error.to_string()))? else {
        return Ok(Vec::new());
    };
    if found.kind != NodeKind::File {
        return Err(failed("it is not a regular file".into()));
    }
    if found.size > FILE_BYTES_MAX {
        return Err(failed(format!("it has {} bytes; {FILE_BYTES_MAX} are allowed", found.size)));
    }
    let mut bytes = vec![0; usize::try_from(found.size).unwrap_or(0)];
    let mut len = 0;
    while len < bytes.len() {
        let read = worktree.read(found.ino, len as u64, &mut bytes[len..]);
        match read.map_err(|error| failed(error.to_string()))? {
            0 => break,
            more => len += more,
        }
    }
    parse(&bytes[..len]).map_err(failed)
}

/// The paths in the bytes of the file.
fn parse(bytes: &[u8]) -> Result<Vec<PathBuf>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?;
    let file: File = toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        let line =
            text.as_bytes()[..at.min(text.len())].iter().filter(|one| **one == b'\n').count();
        // In one line: it is shown in lists.
        let why = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
        format!("line {}: {why}", line + 1)
    })?;
    let paths: Vec<_> = file.redirect.paths.iter().map(PathBuf::from).collect();
    for (number, path) in paths.iter().enumerate() {
        if let Some(why) = refuse(path) {
            return Err(format!("{path:?} {why}"));
        }
        if let Some(why) = conflict(path, &paths[..number]) {
            return Err(why);
        }
    }
    Ok(paths)
}

/// Why `path` cannot be redirected, said of it; `None` if it can be, as far as its name goes.
pub fn refuse(path: &Path) -> Option<&'static str> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.is_empty() {
        return Some("is empty");
    }
    if bytes.len() > PATH_BYTES_MAX || path.components().count() > DEPTH_MAX {
        return Some("is too long");
    }
    if bytes.iter().any(u8::is_ascii_control) {
        return Some("has a control character");
    }
    if path.components().any(|part| !matches!(part, Component::Normal(_))) {
        return Some("is not a path inside the tree");
    }
    let plain: PathBuf = path.components().collect();
    if plain.as_os_str() != path.as_os_str() {
        return Some("is not written as plainly as it can be");
    }
    if bytes == FILE.as_bytes() {
        return Some("is the file that names what is redirected");
    }
    let hostile = |part: &OsStr| names::fault(EntryKind::Directory, part.as_bytes()).is_some();
    path.iter().any(hostile).then_some("has a name that no tree may have")
}

/// Why `path` cannot be redirected beside `others`.
pub fn conflict(path: &Path, others: &[PathBuf]) -> Option<String> {
    if others.len() >= PATHS_MAX {
        return Some(format!("at most {PATHS_MAX} paths can be redirected"));
    }
    let other = others.iter().find(|other| path.starts_with(other) || other.starts_with(path))?;
    Some(match other == path {
        true => format!("{path:?} is redirected already"),
        false => format!("{path:?} cannot be redirected beside {other:?}: one lies in the other"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_tree_asks_for_is_read() {
        let paths = |text: &str| parse(text.as_bytes());
        assert_eq!(paths(""), Ok(Vec::new()));
        assert_eq!(paths("# nothing\n[redirect]\n"), Ok(Vec::new()));
        let both = ["target", "web/node_modules"].map(PathBuf::from);
        assert_eq!(paths("redirect.paths = ['target', \"web/node_modules\"]"), Ok(both.to_vec()));
    }

    #[test]
    fn what_is_not_understood_is_named_with_its_line() {
        for (text, expected) in [
            ("[redirect]\npaths = [\"a\"]\nseed = true\n", "line 3: unknown field `seed`"),
            ("\n[mount]\n", "line 2: unknown field `mount`"),
            ("[redirect]\npaths = \"target\"\n", "line 2: invalid type: string"),
            ("[redirect]\npaths = [1]\n", "line 2: invalid type: integer"),
            ("[redirect\n", "line 1: "),
            ("[redirect]\npaths = []\npaths = []\n", "line 3: duplicate key"),
        ] {
            let why = parse(text.as_bytes()).unwrap_err();
            assert!(why.starts_with(expected), "{text:?}: {why}");
            assert!(!why.contains('\n'), "{why:?}");
        }
        assert!(parse(b"\xff").unwrap_err().contains("UTF-8"));
        // Deep nesting ends as an error, not as a fault.
        let deep = format!("redirect = {}", "[".repeat(60_000));
        assert!(parse(deep.as_bytes()).is_err());
    }

    #[test]
    fn only_plain_paths_inside_the_tree_are_taken() {
        for path in ["target", "web/node_modules", "a b", ".venv", "é"] {
            assert_eq!(refuse(Path::new(path)), None, "{path}");
        }
        for path in [
            "",
            "/",
            "/etc",
            "..",
            "../x",
            "a/../b",
            ".",
            "./a",
            "a/./b",
            "a//b",
            "a/",
            ".git",
            "a/.git/hooks",
            ".GIT",
            "git~1",
            "a\nb",
            "a\0b",
            "a\x7f",
            ".agentfs.toml",
        ] {
            assert!(refuse(Path::new(path)).is_some(), "{path:?}");
        }
        assert!(refuse(Path::new(&"x/".repeat(40))).is_some());
        assert!(refuse(Path::new(&"x".repeat(256))).is_some());
        let text = |path: &str| format!("[redirect]\npaths = [{path:?}]\n");
        assert!(parse(text("../x").as_bytes()).unwrap_err().contains("../x"));
    }

    #[test]
    fn paths_neither_repeat_nor_hold_each_other() {
        let others = ["a/b", "c"].map(PathBuf::from);
        for path in ["a/b", "a", "a/b/d", "c/x"] {
            assert!(conflict(Path::new(path), &others).is_some(), "{path}");
        }
        assert_eq!(conflict(Path::new("a/bc"), &others), None);
        let many: Vec<_> = (0..PATHS_MAX).map(|number| PathBuf::from(number.to_string())).collect();
        assert!(conflict(Path::new("x"), &many).unwrap().contains("64"));
        let text = format!("redirect.paths = {many:?}");
        assert_eq!(parse(text.as_bytes()).unwrap().len(), PATHS_MAX);
        let text = format!("redirect.paths = [\"x\", {}", &format!("{many:?}")[1..]);
        assert!(parse(text.as_bytes()).is_err());
    }
}
