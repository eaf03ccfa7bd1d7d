//! Git directories that branches share which have begun alike and have had no worktree yet.
//!
//! Each is a git directory like any other, at a commit, so that git keeps what is staged in it, and is named by what is
//! in it: the blake3 of that commit, of its files, and of an index its length, its mtime and the checksum at its end
//! (gitformat-index(5)). So any number of forks of one state take the room of one, and it costs a fork the reading of a
//! few small files to find it there.
//!
//! No operation is in progress in one that has `HEAD` away from its branch: that one would be to return to another
//! branch for each.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use agentfs_engine::GitOid;

use crate::error::{Error, Result};
use crate::gitdir::{self, NewGitDir, WORKTREES, WorktreeHead};
use crate::saved::digest_all;
use crate::state::{self, OWN, is_index, is_lock};

/// How the name of one begins.
const PREFIX: &str = "agentfs-";
/// Digits of its name after that.
const NAME_DIGITS: usize = 32;
/// Bytes at the end of an index that hold its checksum, whatever the hash.
const CHECKSUM_BYTES: usize = 32;
/// Bytes of the shorter checksum, all zero if git was not to write one.
const SHORT_CHECKSUM_BYTES: usize = 20;

/// The shared git directory, in the repository at `common_dir`, with the git state of the worktree whose git directory
/// is `from`, or that was saved there, at `commit`. It is made if it is not there, and on stable storage; git believes
/// its worktree below `nowhere`.
///
/// # Errors
/// [`Error::Io`], and what reading the repository meets.
pub fn share(from: &Path, common_dir: &Path, commit: GitOid, nowhere: &Path) -> Result<PathBuf> {
    let of = |dir: &Path| Ok::<_, Error>(common_dir.join(WORKTREES).join(name_of(dir, &commit)?));
    let place = of(from)?;
    if place.is_dir() {
        return Ok(place);
    }
    let worktree = nowhere.join(place.file_name().unwrap_or_default());
    let head = WorktreeHead::Detached(commit);
    let new = NewGitDir { common_dir, worktree: &worktree, head, state: Some((from, None)) };
    // Git may be at work in it: it is called what has come of it.
    let made = new.create_as(of)?;
    gitdir::sync(&made)?;
    Ok(made)
}

/// Removes the shared git directories of the repository at `common_dir` that belong below `nowhere` and are not among
/// `known`; returns how many that were.
///
/// # Errors
/// [`Error::Io`].
pub fn sweep(common_dir: &Path, nowhere: &Path, known: &BTreeSet<&Path>) -> Result<u64> {
    let all = common_dir.join(WORKTREES);
    let list = |error| Error::io("list", &all, error);
    let entries = match fs::read_dir(&all) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        entries => entries.map_err(list)?,
    };
    let mut removed = 0;
    for entry in entries {
        let entry = entry.map_err(list)?;
        let path = entry.path();
        let is_shared = entry.file_name().as_bytes().starts_with(PREFIX.as_bytes());
        // Another store may use the repository as well.
        let is_ours = || {
            let place = state::read(&path.join("gitdir"));
            place.is_ok_and(|place| {
                place.is_some_and(|place| Path::new(&place).starts_with(nowhere))
            })
        };
        if is_shared && !known.contains(&*path) && is_ours() {
            gitdir::remove(&path)?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// What the shared git directory is called that has, at `commit`, the state which `dir` has.
fn name_of(dir: &Path, commit: &GitOid) -> Result<String> {
    let mut digests = BTreeMap::new();
    digest_all(dir, Path::new(""), 0, &mut digests)?;
    let is_own = |path: &Path| OWN.iter().any(|own| Path::new(own) == path);
    digests.retain(|path, _| !is_own(path) && !path.iter().any(is_lock));
    let mut hasher = blake3::Hasher::new();
    let mut add = |path: &Path, content: &[u8]| {
        for part in [path.as_os_str().as_bytes(), content] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
    };
    add(Path::new("HEAD"), commit.as_bytes());
    digests.iter().for_each(|(path, digest)| add(path, digest.as_bytes()));
    let list = |error| Error::io("list", dir, error);
    let mut indexes = Vec::new();
    for entry in fs::read_dir(dir).map_err(list)? {
        let name = entry.map_err(list)?.file_name();
        if is_index(&name) && !is_lock(&name) {
            indexes.push(PathBuf::from(name));
        }
    }
    indexes.sort_unstable();
    for name in indexes {
        let path = dir.join(&name);
        match index(&path) {
            // Git has removed it meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            identity => add(&name, &identity.map_err(|error| Error::io("read", &path, error))?),
        }
    }
    Ok(format!("{PREFIX}{}", &hasher.finalize().to_hex()[..NAME_DIGITS]))
}

/// What tells an index from every other.
fn index(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let of = file.metadata()?;
    let mut identity: Vec<u8> = [of.size(), of.mtime() as u64, of.mtime_nsec() as u64]
        .into_iter()
        .flat_map(u64::to_le_bytes)
        .collect();
    let mut end = Vec::with_capacity(CHECKSUM_BYTES);
    file.seek(SeekFrom::Start(of.size().saturating_sub(CHECKSUM_BYTES as u64)))?;
    file.by_ref().take(CHECKSUM_BYTES as u64).read_to_end(&mut end)?;
    // With `index.skipHash` git writes none.
    if end.iter().rev().take(SHORT_CHECKSUM_BYTES).all(|byte| *byte == 0) {
        file.rewind()?;
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(file)?;
        end.extend_from_slice(hasher.finalize().as_bytes());
    }
    identity.extend_from_slice(&end);
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gittest::{Sandbox, commit, git};
    use crate::repository::Repository;

    struct Setup {
        worktree: PathBuf,
        git_dir: PathBuf,
        common: PathBuf,
        commit: GitOid,
        nowhere: PathBuf,
    }

    impl Setup {
        fn new(sandbox: &Sandbox) -> Self {
            let common = sandbox.repository("source").join(".git");
            let worktree = sandbox.path("linked");
            git(&common, &["worktree", "add", "-q", "-b", "linked", worktree.to_str().unwrap()]);
            let git_dir = common.join("worktrees/linked");
            let (commit, nowhere) = (head(&common), sandbox.path("nowhere"));
            Self { worktree, git_dir, common, commit, nowhere }
        }

        fn share(&self) -> PathBuf {
            share(&self.git_dir, &self.common, self.commit, &self.nowhere).unwrap()
        }
    }

    fn head(common: &Path) -> GitOid {
        Repository::open(common).unwrap().resolve("linked").unwrap().id
    }

    #[test]
    fn what_is_the_same_is_there_once_and_what_differs_is_not() {
        let sandbox = Sandbox::new();
        let setup = Setup::new(&sandbox);
        let Setup { worktree, git_dir, common, commit: at, nowhere } = &setup;
        let share = || setup.share();
        let first = share();
        assert_eq!(share(), first);
        // Where the branch is called otherwise, or a process is at work.
        fs::write(git_dir.join("HEAD"), "ref: refs/heads/other\n").unwrap();
        fs::write(git_dir.join("index.lock"), "").unwrap();
        assert_eq!(share(), first);
        fs::remove_file(git_dir.join("index.lock")).unwrap();
        fs::write(git_dir.join("HEAD"), "ref: refs/heads/linked\n").unwrap();
        assert!(git(worktree, &["worktree", "list"]).contains("(detached HEAD) locked"));
        // It is its own source, under the same name.
        assert_eq!(super::share(&first, common, *at, nowhere).unwrap(), first);
        let mut seen = BTreeSet::from([first.clone()]);
        fs::write(git_dir.join("MERGE_MSG"), "merge\n").unwrap();
        assert!(seen.insert(share()));
        fs::write(worktree.join("staged"), "1").unwrap();
        git(worktree, &["add", "staged"]);
        assert!(seen.insert(share()));
        git(worktree, &["config", "index.skipHash", "true"]);
        let index = git_dir.join("index");
        let mut before = None;
        for content in ["2", "3"] {
            fs::write(worktree.join("staged"), content).unwrap();
            git(worktree, &["add", "staged"]);
            let length = fs::metadata(&index).unwrap().len();
            assert!(before.replace(length).is_none_or(|before| before == length));
            // Nothing but the content tells them apart.
            let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
            File::options().append(true).open(&index).unwrap().set_modified(at).unwrap();
            assert!(seen.insert(share()), "{content}");
        }
        commit(worktree, "second", b"2");
        let other = head(common);
        let state = seen.last().unwrap().clone();
        assert!(seen.insert(super::share(&state, common, other, nowhere).unwrap()));
        let listed = || fs::read_dir(common.join(WORKTREES)).map_or(0, Iterator::count);
        assert_eq!(listed(), seen.len() + 1);
        // Those of others stay.
        let known = BTreeSet::from([first.as_path()]);
        assert_eq!(sweep(common, &sandbox.path("elsewhere"), &known).unwrap(), 0);
        assert_eq!(sweep(common, nowhere, &known).unwrap(), seen.len() as u64 - 1);
        assert_eq!(listed(), 2);
        assert_eq!(sweep(&sandbox.path("none"), nowhere, &known).unwrap(), 0);
    }

    #[test]
    fn what_is_staged_in_one_stays_and_does_not_change_with_its_origin() {
        let sandbox = Sandbox::new();
        let setup = Setup::new(&sandbox);
        let Setup { worktree, git_dir, common, nowhere, .. } = &setup;
        let listed = || git(worktree, &["ls-files", "--stage"]);
        fs::write(worktree.join("staged"), "staged, and nowhere else\n").unwrap();
        git(worktree, &["add", "staged"]);
        let (before, object) = (listed(), git(worktree, &["rev-parse", ":staged"]));
        let shared = setup.share();
        git(worktree, &["rm", "-q", "-f", "staged"]);
        git(worktree, &["gc", "-q", "--prune=now"]);
        assert_eq!(git(worktree, &["cat-file", "-p", &object]), "staged, and nowhere else");
        assert_ne!(listed(), before);
        fs::copy(shared.join("index"), git_dir.join("index")).unwrap();
        assert_eq!(listed(), before);
        git(worktree, &["rm", "-q", "-f", "staged"]);
        sweep(common, nowhere, &BTreeSet::new()).unwrap();
        git(worktree, &["gc", "-q", "--prune=now"]);
        let missing = crate::gittest::command(worktree, &["cat-file", "-e", &object]).status();
        assert!(!missing.unwrap().success(), "nothing but the shared directory has kept it");
    }
}
