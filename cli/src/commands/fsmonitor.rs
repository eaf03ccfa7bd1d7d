//! `agentfs fsmonitor`: what git asks when `core.fsmonitor` names it.

use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::client::Client;
use crate::environment::Environment;
use crate::error::Result;
use crate::ignored::is_ignored;
use crate::layout::Layout;
use crate::progress::Meter;
use crate::protocol::{ChangedPaths, ChangedPathsCall, WirePath, method};

/// The version of the interface that is spoken here.
const VERSION: u32 = 2;
/// The answer of a hook that says nothing: git looks at everything itself.
const NO_ANSWER: u8 = 1;
/// A token that nobody knows.
const NO_TOKEN: &str = "agentfs";
/// Stands for the whole worktree.
const EVERYTHING: &[u8] = b"/";

/// Arguments of `agentfs fsmonitor`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Version of the interface
    version: u32,
    /// What the answer before has begun with
    token: String,
}

/// Answers git, in whose worktree it is run, as githooks(5) has it: a token, and the paths that may have changed
/// since the moment of the token that git has, each followed by a NUL but the last.
///
/// # Errors
/// What is wrong with the environment. A directory that is no worktree, and a store whose daemon does not run, are no errors:
/// git does without the answer. It asks again then by version 1 of the interface, which is not spoken, and says nothing of that to
/// whoever works in a plain worktree of the same repository.
pub fn run(args: &Args) -> Result<u8> {
    if args.version != VERSION {
        return Ok(NO_ANSWER);
    }
    let layout = Layout::new(Environment::read()?.store);
    let (Ok(dir), Ok(here), Ok(Some(mut client))) =
        (std::env::current_dir(), std::fs::metadata("."), Client::connect(&layout))
    else {
        return Ok(NO_ANSWER);
    };
    let call = ChangedPathsCall { dev: here.dev(), ino: here.ino(), since: args.token.clone() };
    let Ok(changed) = client.request(method::CHANGED_PATHS, &call, &Meter::default()) else {
        return Ok(NO_ANSWER);
    };
    let answer = answer(&changed, is_all_known(&dir, &changed));
    match std::io::stdout().write_all(&answer) {
        Ok(()) => Ok(0),
        Err(_) => Ok(NO_ANSWER),
    }
}

/// Whether git sees nothing in the worktree of which the daemon does not know: nothing is mounted there but what is
/// redirected, where git does not look, since it ignores it.
fn is_all_known(dir: &Path, changed: &ChangedPaths) -> bool {
    let is_redirected = |path: &Path| changed.redirected.iter().any(|one| one.0 == path);
    let mounts = agentfs_fuse::mounts_below(dir);
    mounts.is_ok_and(|mounts| mounts.iter().all(|(path, _)| is_redirected(path)))
        && changed.redirected.iter().all(|path| is_ignored(dir, &path.0) == Some(true))
}

fn answer(changed: &ChangedPaths, is_all_known: bool) -> Vec<u8> {
    // What git sees now is no base for the next answer.
    let token = if is_all_known { changed.token.as_str() } else { NO_TOKEN };
    let mut answer = token.as_bytes().to_vec();
    answer.push(0);
    let paths = changed.paths.as_deref().filter(|_| is_all_known);
    let Some(paths) = paths else {
        answer.extend_from_slice(EVERYTHING);
        return answer;
    };
    for WirePath(path) in paths {
        answer.extend_from_slice(path.as_os_str().as_bytes());
        answer.push(0);
    }
    for WirePath(path) in &changed.redirected {
        // Files in it can be tracked all the same.
        for end in [&b"\0"[..], b"/\0"] {
            answer.extend_from_slice(path.as_os_str().as_bytes());
            answer.extend_from_slice(end);
        }
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_what_git_reads() {
        let path = |text: &str| WirePath(text.into());
        let all = ChangedPaths { token: "t".into(), paths: None, redirected: vec![path("r")] };
        assert_eq!(answer(&all, true), b"t\0/");
        let some = ChangedPaths { paths: Some(vec![path("a/b"), path("c")]), ..all.clone() };
        assert_eq!(answer(&some, true), b"t\0a/b\0c\0r\0r/\0");
        assert_eq!(answer(&some, false), b"agentfs\0/");
        let none = ChangedPaths { paths: Some(vec![]), redirected: vec![], ..all };
        assert_eq!(answer(&none, true), b"t\0");
    }
}
