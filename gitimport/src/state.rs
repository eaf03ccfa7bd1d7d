//! The git state of a worktree: where its `HEAD` is, what is staged, a merge or a rebase in progress.
//!
//! All of it is in the worktree's git directory, so a fork or a snapshot carries the files there. The
//! index is linked and not copied: git never writes to it in place, but renames a new one over it
//! (gitrepository-layout(5), `index`), so that carrying it costs the same whatever is in it.

use std::ffi::OsStr;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use agentfs_engine::GitOid;
use gix::bstr::ByteSlice;
use gix::refs::FullName;

use crate::error::{Error, Result};
use crate::files::{self, ASIDE};
use crate::limits::{GIT_FILE_BYTES_MAX, STATE_DEPTH_MAX};
use crate::monitor::INTERRUPTED;
use crate::references;
use crate::repository::Repository;
use crate::saved::{DIGESTS, restate, write_digests};
use crate::transport;

/// Files that say to what an operation in progress is to return, and what a branch begins with there.
pub(crate) const RETURNS_TO: [(&str, &str); 3] =
    [("rebase-merge/head-name", HEADS), ("rebase-apply/head-name", HEADS), ("BISECT_START", "")];
/// What says where a git directory belongs, or what was saved of one, and is not carried.
pub(crate) const OWN: [&str; 6] = ["HEAD", "commondir", "gitdir", "locked", DIGESTS, INTERRUPTED];
/// What the log of a branch begins with.
const CREATED: &str = "branch: created by agentfs";
pub(crate) const HEADS: &str = "refs/heads/";

/// Where the `HEAD` of a fork is, and where its branch begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForkHead {
    /// The commit of the branch; none for one without a commit.
    pub commit: Option<GitOid>,
    /// The commit at which an operation in progress has `HEAD`; none where it is on the branch.
    pub detached: Option<GitOid>,
}

impl ForkHead {
    /// Where a fork begins of the worktree whose git state is in `from`. Of one that was saved, `saved` is the
    /// commit of its `HEAD`: its branch may be elsewhere now, or gone.
    ///
    /// # Errors
    /// [`Error::NotARepository`] for a `HEAD` that is neither a branch nor a commit, and what reading
    /// the repository meets.
    pub fn of(repository: &Repository, from: &Path, saved: Option<GitOid>) -> Result<Self> {
        let head = read(&from.join("HEAD"))?.unwrap_or_default();
        if let Some(name) = head.strip_prefix("ref: ").and_then(|name| name.strip_prefix(HEADS)) {
            let commit = match saved {
                Some(_) => saved,
                None => repository.tip(name)?,
            };
            return Ok(Self { commit, detached: None });
        }
        let Ok(at) = repository.resolve(&head) else {
            return Err(Error::NotARepository {
                path: from.to_owned(),
                why: "its HEAD is neither a branch nor a commit".into(),
            });
        };
        for (file, prefix) in RETURNS_TO {
            let text = read(&from.join(file))?;
            if let Some(name) = text.as_deref().and_then(|text| text.strip_prefix(prefix))
                && let commit @ Some(_) = repository.tip(name)?
            {
                return Ok(Self { commit, detached: Some(at.id) });
            }
        }
        Ok(Self { commit: Some(at.id), detached: None })
    }
}

/// The text of a small file without the line end; `None` if there is none.
pub(crate) fn read(path: &Path) -> Result<Option<String>> {
    let error = |source| Error::io("read", path, source);
    let len = match fs::metadata(path) {
        Err(source) if source.kind() == ErrorKind::NotFound => return Ok(None),
        metadata => metadata.map_err(error)?.len(),
    };
    if len > GIT_FILE_BYTES_MAX {
        return Err(error(ErrorKind::FileTooLarge.into()));
    }
    let text = fs::read(path).map_err(error)?;
    Ok(Some(String::from_utf8_lossy(&text).trim_end().to_owned()))
}

/// Carries the git state in `from` to the directory `to`: all but `HEAD` and what says where the git
/// directory belongs. An operation that is in progress, and has `HEAD` away from its branch, is to return
/// to branch `name`.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn carry(from: &Path, to: &Path, name: Option<&str>) -> Result<()> {
    carry_dir(from, to, 0)?;
    let Some(name) = name else { return Ok(()) };
    for (file, prefix) in RETURNS_TO {
        if read(&to.join(file))?.is_some_and(|text| text.starts_with(prefix)) {
            files::write(&to.join(file), format!("{prefix}{name}\n").as_bytes())?;
        }
    }
    Ok(())
}

/// Saves the git state in `from`, with its `HEAD`, in the new directory `to`, on stable storage.
///
/// # Errors
/// [`Error::Io`]; nothing is left then.
pub fn save(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).map_err(|error| Error::io("create", to, error))?;
    let saved = carry(from, to, None)
        .and_then(|()| carry_file(&from.join("HEAD"), &to.join("HEAD"), false))
        .and_then(|()| write_digests(to))
        .and_then(|()| files::sync_tree(to))
        .and_then(|_| to.parent().map_or(Ok(0), files::sync));
    saved.map(drop).inspect_err(|_| drop(fs::remove_dir_all(to)))
}

/// Has the git state that is saved in `dir` say branch `to` where it says `from`, which is called so now.
///
/// # Errors
/// [`Error::Io`]; it can be repeated.
pub fn rename(dir: &Path, from: &str, to: &str) -> Result<()> {
    let head = ("HEAD", "ref: refs/heads/");
    for (file, prefix) in RETURNS_TO.into_iter().chain([head]) {
        let path = dir.join(file);
        if read(&path)?.is_some_and(|text| text.strip_prefix(prefix) == Some(from)) {
            files::replace(&path, format!("{prefix}{to}\n").as_bytes())?;
        }
        // Also where a killed process had come to this point.
        let [old, new] = [from, to].map(|name| format!("{prefix}{name}\n").into_bytes());
        restate(dir, Path::new(file), &old, &new)?;
    }
    Ok(())
}

/// Makes the git state of a worktree what was saved in `from`. Its log goes on. Where the saved `HEAD` is on
/// branch `name`, that is at `commit` again.
///
/// Nothing is removed before what replaces it is there, so it can be repeated.
///
/// # Errors
/// [`Error::Io`], and what git meets.
pub fn restore(
    repository: &Repository,
    from: &Path,
    git_dir: &Path,
    name: &str,
    commit: Option<&GitOid>,
) -> Result<()> {
    let list = |source| Error::io("list", git_dir, source);
    for entry in fs::read_dir(git_dir).map_err(list)? {
        let name = entry.map_err(list)?.file_name();
        let stays = OWN.iter().chain(&["logs", "index"]).any(|own| *own == name);
        if stays || is_lock(&name) || from.join(&name).exists() {
            continue;
        }
        let path = git_dir.join(&name);
        let removed = match path.is_dir() {
            true => fs::remove_dir_all(&path),
            false => fs::remove_file(&path),
        };
        removed.map_err(|source| Error::io("remove", &path, source))?;
    }
    carry_dir(from, git_dir, 0)?;
    let head = read(&from.join("HEAD"))?.unwrap_or_default();
    if let (Some(commit), true) = (commit, head == format!("ref: {HEADS}{name}")) {
        repository.move_branch(name, commit)?;
    }
    carry_file(&from.join("HEAD"), &git_dir.join("HEAD"), false)
}

fn carry_dir(from: &Path, to: &Path, depth: u32) -> Result<()> {
    let list = |source| Error::io("list", from, source);
    for entry in fs::read_dir(from).map_err(list)? {
        let entry = entry.map_err(list)?;
        let name = entry.file_name();
        if depth == 0 && OWN.iter().any(|own| *own == name) || is_lock(&name) {
            continue;
        }
        let (source, target) = (entry.path(), to.join(&name));
        let kind = entry.file_type().map_err(|error| Error::io("look at", &source, error))?;
        if kind.is_dir() && depth < STATE_DEPTH_MAX {
            match fs::create_dir(&target) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                made => made.map_err(|error| Error::io("create", &target, error))?,
            }
            carry_dir(&source, &target, depth + 1)?;
        } else if kind.is_file() {
            carry_file(&source, &target, depth == 0 && is_index(&name))?;
        }
    }
    Ok(())
}

pub(crate) fn is_lock(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.ends_with(b".lock") || name.ends_with(ASIDE.as_bytes())
}

pub(crate) fn is_index(name: &OsStr) -> bool {
    name == "index" || name.as_encoded_bytes().starts_with(b"sharedindex.")
}

/// Copies a file with its mtime: of an index, that says which files git has to look at once more.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let mut source = fs::File::open(from)?;
    let modified = source.metadata()?.modified()?;
    let mut target = fs::File::create(to)?;
    std::io::copy(&mut source, &mut target)?;
    target.set_modified(modified)
}

/// Puts a file, or a link to it, into its place at once: whoever shares what was there keeps that.
fn carry_file(from: &Path, to: &Path, link: bool) -> Result<()> {
    let aside = &files::aside(to);
    // A killed carrier has left it.
    drop(fs::remove_file(aside));
    let carried = match link && fs::hard_link(from, aside).is_ok() {
        true => Ok(()),
        false => copy(from, aside),
    };
    let moved = carried.and_then(|()| fs::rename(aside, to));
    // Of two names of one file none is taken away by renaming one to the other.
    drop(fs::remove_file(aside));
    match moved {
        // git has removed it meanwhile.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        moved => moved.map_err(|error| Error::io("copy", from, error)),
    }
}

impl Repository {
    /// The commit of branch `name`; `None` if it does not exist.
    ///
    /// # Errors
    /// What reading the reference and the commit meets.
    pub fn tip(&self, name: &str) -> Result<Option<GitOid>> {
        match self.has_branch(name)? {
            true => Ok(Some(self.resolve(&format!("{HEADS}{name}"))?.id)),
            false => Ok(None),
        }
    }

    /// The commit of the `HEAD` in the git directory of a worktree; none on a branch without one.
    ///
    /// # Errors
    /// [`Error::NotARepository`] for a `HEAD` that is neither a branch nor a commit; what reading it meets.
    pub fn head_in(&self, git_dir: &Path) -> Result<Option<GitOid>> {
        let text = read(&git_dir.join("HEAD"))?.unwrap_or_default();
        if let Some(name) = text.strip_prefix("ref: ") {
            return self.reference(name);
        }
        let why = || "its HEAD is neither a branch nor a commit".into();
        let id = self.full_id(&text);
        id.map(Some).ok_or_else(|| Error::NotARepository { path: git_dir.to_owned(), why: why() })
    }

    /// Makes branch `name` at `commit`, whose log begins with that if it is `logged`; a repository in which git has
    /// to make it may keep one in any case. No lock but that of the branch is taken, so any number can be made at once.
    ///
    /// # Errors
    /// [`Error::Git`] if there is such a branch, or the name is not one.
    pub fn create_branch(&self, name: &str, commit: &GitOid, logged: bool) -> Result<()> {
        let name = self.full_name(&format!("{HEADS}{name}"))?;
        if references::create(self, &name, commit, logged.then_some(CREATED)) {
            return Ok(());
        }
        let none = "0".repeat(commit.as_bytes().len() * 2);
        self.update_ref("create", &name, &["-m", CREATED], &[&commit.to_string(), &none])
    }

    /// Removes what a process has left that was killed while it made branch `name` at `commit`, and that keeps git
    /// from making it.
    ///
    /// # Errors
    /// [`Error::Git`] if the name is not one.
    pub fn unlock_branch(&self, name: &str, commit: &GitOid) -> Result<()> {
        references::remove_lock(self, &self.full_name(&format!("{HEADS}{name}"))?, commit);
        Ok(())
    }

    /// Removes a reference by its full name, if it still is `commit`; it is fine if it is gone.
    ///
    /// # Errors
    /// [`Error::Git`].
    pub fn remove_reference(&self, name: &str, commit: &GitOid) -> Result<()> {
        if self.resolve(name).is_err() {
            return Ok(());
        }
        self.update_ref("delete", &self.full_name(name)?, &["-d"], &[&commit.to_string()])
    }

    /// Has reference `name`, a full name of no branch that nobody else gives, lead to `commit`, so that git keeps what is
    /// reachable from it.
    ///
    /// # Errors
    /// [`Error::Git`].
    pub fn keep(&self, name: &str, commit: &GitOid) -> Result<()> {
        let name = self.full_name(name)?;
        if references::create_unique(self, &name, commit) {
            return Ok(());
        }
        self.update_ref("update", &name, &[], &[&commit.to_string()])
    }

    /// Has branch `name` be at `commit`, wherever it was.
    fn move_branch(&self, name: &str, commit: &GitOid) -> Result<()> {
        let name = self.full_name(&format!("{HEADS}{name}"))?;
        self.update_ref("update", &name, &["-m", "agentfs"], &[&commit.to_string()])
    }

    fn full_name(&self, name: &str) -> Result<FullName> {
        FullName::try_from(name).map_err(|error| Error::Git {
            action: format!("change reference {name}"),
            git_dir: self.git_dir().to_owned(),
            source: error.into(),
        })
    }

    /// Has git change reference `name` to, or from, `commits`.
    fn update_ref(
        &self,
        action: &str,
        name: &FullName,
        options: &[&str],
        commits: &[&str],
    ) -> Result<()> {
        let mut git = transport::git();
        git.args(["update-ref", "--no-deref"]).args(options);
        git.arg(name.as_bstr().to_str_lossy().as_ref()).args(commits);
        let action = format!("{action} reference {}", name.as_bstr());
        transport::run(&mut git, self.git_dir(), &action).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::gittest::{Sandbox, commit, git};

    #[test]
    fn what_is_carried_is_all_but_where_it_belongs() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        for (name, text) in [
            ("HEAD", "ref: refs/heads/main\n"),
            ("gitdir", "/elsewhere/.git\n"),
            ("commondir", "../..\n"),
            ("locked", "mounted\n"),
            ("index", "the index"),
            ("index.lock", ""),
            ("MERGE_HEAD", "merged\n"),
            ("rebase-merge/head-name", "refs/heads/main\n"),
            ("rebase-merge/done", "pick\n"),
            ("logs/HEAD", "a line\n"),
        ] {
            files::write(&from.join(name), text.as_bytes()).unwrap();
        }
        fs::create_dir(&to).unwrap();
        carry(&from, &to, Some("side")).unwrap();
        for name in ["HEAD", "gitdir", "commondir", "locked", "index.lock"] {
            assert!(!to.join(name).exists(), "{name}");
        }
        for (name, text) in [
            ("MERGE_HEAD", "merged"),
            ("rebase-merge/head-name", "refs/heads/side"),
            ("rebase-merge/done", "pick"),
            ("logs/HEAD", "a line"),
        ] {
            assert_eq!(read(&to.join(name)).unwrap().as_deref(), Some(text), "{name}");
        }
        // It is one file with two names, until git puts another in its place.
        assert_eq!(fs::metadata(to.join("index")).unwrap().nlink(), 2);
        let saved = dir.path().join("saved");
        save(&from, &saved).unwrap();
        assert_eq!(read(&saved.join("HEAD")).unwrap().as_deref(), Some("ref: refs/heads/main"));
        assert_eq!(
            read(&saved.join("rebase-merge/head-name")).unwrap().as_deref(),
            Some("refs/heads/main")
        );
    }

    #[test]
    fn a_fork_begins_where_its_origin_is() {
        let sandbox = Sandbox::new();
        let path = sandbox.empty_repository("repo", &[]);
        let dir = path.join(".git");
        let head = || ForkHead::of(&Repository::open(&dir).unwrap(), &dir, None).unwrap();
        let oid = |rev: &str| {
            let repository = Repository::open(&dir).unwrap();
            Some(repository.resolve(rev).unwrap().id)
        };
        assert_eq!(head(), ForkHead { commit: None, detached: None });
        let head_in = || Repository::open(&dir).unwrap().head_in(&dir);
        assert_eq!(head_in().unwrap(), None);
        commit(&path, "a", b"1");
        commit(&path, "b", b"2");
        assert_eq!(head(), ForkHead { commit: oid("main"), detached: None });
        let saved = ForkHead::of(&Repository::open(&dir).unwrap(), &dir, oid("main~1")).unwrap();
        assert_eq!(saved, ForkHead { commit: oid("main~1"), detached: None });
        assert_eq!(head_in().unwrap(), oid("main"));
        git(&path, &["checkout", "-q", "--detach", "main~1"]);
        assert_eq!(head_in().unwrap(), oid("main~1"));
        assert_eq!(head(), ForkHead { commit: oid("main~1"), detached: None });
        files::write(&dir.join("rebase-merge/head-name"), b"refs/heads/main\n").unwrap();
        assert_eq!(head(), ForkHead { commit: oid("main"), detached: oid("main~1") });
        files::write(&dir.join("rebase-merge/head-name"), b"detached HEAD\n").unwrap();
        assert_eq!(head(), ForkHead { commit: oid("main~1"), detached: None });
        let repository = Repository::open(&dir).unwrap();
        fs::write(dir.join("HEAD"), "nonsense\n").unwrap();
        let damaged = ForkHead::of(&repository, &dir, None);
        assert!(matches!(damaged, Err(Error::NotARepository { .. })), "{damaged:?}");
        assert!(matches!(head_in(), Err(Error::NotARepository { .. })));
    }

    #[test]
    fn branches_are_made_once_and_removed_if_they_have_not_moved() {
        let sandbox = Sandbox::new();
        let path = sandbox.empty_repository("repo", &[]);
        commit(&path, "a", b"1");
        commit(&path, "b", b"2");
        let repository = Repository::open(&path.join(".git")).unwrap();
        let at = |rev: &str| repository.resolve(rev).unwrap().id;
        let (old, new) = (at("main~1"), at("main"));
        repository.create_branch("side/way", &old, true).unwrap();
        assert_eq!(git(&path, &["rev-parse", "side/way"]), old.to_string());
        assert!(repository.create_branch("side/way", &new, true).is_err());
        assert!(repository.create_branch("side", &new, true).is_err(), "it is a directory");
        for name in ["a..b", "", "a b", "x.lock", "a/"] {
            assert!(repository.create_branch(name, &new, true).is_err(), "{name:?}");
        }
        assert!(repository.remove_reference("refs/heads/side/way", &new).is_err());
        git(&path, &["pack-refs", "--all"]);
        repository.remove_reference("refs/heads/side/way", &old).unwrap();
        repository.remove_reference("refs/heads/side/way", &old).unwrap();
        assert_eq!(git(&path, &["for-each-ref", "refs/heads/side"]), "");
        repository.keep("refs/agentfs/x", &old).unwrap();
        repository.keep("refs/agentfs/x", &new).unwrap();
        assert_eq!(git(&path, &["rev-parse", "refs/agentfs/x"]), new.to_string());
    }
}
