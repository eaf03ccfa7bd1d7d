//! The private git directory of a worktree: `worktrees/NAME` in the repository, as
//! `git worktree add` makes it.
//!
//! git finds it through the `.git` file in the root of the mount and finds the repository through
//! its `commondir`, so that commits of the worktree are at once commits of the repository while its
//! `HEAD`, index and locks are its own, on a native file system. It carries git's `locked` mark:
//! while the mount is away, nothing prunes it.
//!
//! It is made aside and renamed, and takes none of git's locks: any number can be made at once.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use agentfs_engine::GitOid;

use crate::error::{Error, Result};
use crate::files;
use crate::incoming::Incoming;
use crate::reflog;
use crate::state;

/// Where the git directories of linked worktrees are in a repository.
pub(crate) const WORKTREES: &str = "worktrees";
const INCOMING: &str = "agentfs-incoming-";
/// What `git worktree list` says of why it may not be pruned.
const LOCK_REASON: &str = "mounted by agentfs";
/// Names tried before giving up.
const ATTEMPTS_MAX: u32 = 1_000_000;

/// What `HEAD` of a worktree is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorktreeHead<'a> {
    /// On a branch.
    Branch {
        /// Its name, without `refs/heads/`.
        name: &'a str,
        /// Its commit; `None` if it does not exist yet.
        commit: Option<GitOid>,
    },
    /// At a commit.
    Detached(GitOid),
}

/// A git directory to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewGitDir<'a> {
    /// The repository's git directory.
    pub common_dir: &'a Path,
    /// Where the worktree is or will be mounted, absolute.
    pub worktree: &'a Path,
    /// What its `HEAD` is.
    pub head: WorktreeHead<'a>,
    /// The git state that it begins with, and the branch to which an operation in it is to return, if one may be.
    pub state: Option<(&'a Path, Option<&'a str>)>,
}

impl NewGitDir<'_> {
    /// Makes it and returns its path. `write_index` is called with the path at which the index has
    /// to be; the directory becomes visible after it has returned.
    ///
    /// # Errors
    /// What `write_index` returns, [`Error::Git`] if the repository cannot be opened,
    /// [`Error::Io`]. Nothing is left behind then.
    pub fn create(&self, write_index: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let mut incoming = Incoming::new(self.common_dir, INCOMING)?;
        self.fill(incoming.path())?;
        write_index(&incoming.path().join("index"))?;
        let parent = self.common_dir.join(WORKTREES);
        let stem = name_for(self.worktree);
        let made = incoming.path().to_owned();
        let mut number = 0;
        for _ in 0..ATTEMPTS_MAX {
            let mut name = stem.clone();
            if number > 0 {
                name.extend_from_slice(number.to_string().as_bytes());
            }
            let path = parent.join(OsString::from_vec(name));
            make_directory(&parent)?;
            match incoming.publish(&made, &path) {
                Ok(true) => return Ok(path),
                Ok(false) => number += 1,
                // git removed the parent, which it found empty.
                Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::io("create a directory in", &parent, ErrorKind::AlreadyExists.into()))
    }

    /// The same at the path that `place` gives for what has been made, unless something is there already.
    pub(crate) fn create_as(
        &self,
        place: impl FnOnce(&Path) -> Result<PathBuf>,
    ) -> Result<PathBuf> {
        let mut incoming = Incoming::new(self.common_dir, INCOMING)?;
        self.fill(incoming.path())?;
        let (made, path) = (incoming.path().to_owned(), place(incoming.path())?);
        make_directory(&self.common_dir.join(WORKTREES))?;
        incoming.publish(&made, &path)?;
        Ok(path)
    }

    fn fill(&self, dir: &Path) -> Result<()> {
        let (head, commit) = match self.head {
            WorktreeHead::Branch { name, commit } => (format!("ref: refs/heads/{name}\n"), commit),
            WorktreeHead::Detached(commit) => (format!("{commit}\n"), Some(commit)),
        };
        files::write(&dir.join("HEAD"), head.as_bytes())?;
        files::write(&dir.join("commondir"), b"../..\n")?;
        files::write(&dir.join("gitdir"), &back_link(self.worktree))?;
        files::write(&dir.join("locked"), format!("{LOCK_REASON}\n").as_bytes())?;
        if let Some((from, name)) = self.state {
            state::carry(from, dir, name)?;
        }
        if let Some(commit) = &commit
            && !dir.join("logs/HEAD").exists()
        {
            let repository = open(self.common_dir)?;
            let committer = reflog::committer(&repository);
            let message = format!("worktree: mounted at {}", self.worktree.display());
            reflog::start(&dir.join("logs/HEAD"), commit, &committer, &message)?;
        }
        Ok(())
    }
}

/// What leads from the git directory to the `.git` file of its worktree.
pub(crate) fn back_link(worktree: &Path) -> Vec<u8> {
    let mut back = worktree.join(".git").into_os_string().into_vec();
    back.push(b'\n');
    back
}

/// The content of the `.git` file in the root of the worktree whose git directory is `git_dir`.
pub fn git_file(git_dir: &Path) -> Vec<u8> {
    let mut content = b"gitdir: ".to_vec();
    content.extend_from_slice(git_dir.as_os_str().as_bytes());
    content.push(b'\n');
    content
}

/// States that the worktree whose git directory is `git_dir` is at `worktree` now; whoever is killed meanwhile leaves
/// what was stated before, or this.
///
/// # Errors
/// [`Error::Io`].
pub fn relocate(git_dir: &Path, worktree: &Path) -> Result<()> {
    files::replace(&git_dir.join("gitdir"), &back_link(worktree))
}

/// Removes the git directory of a worktree. It is fine if it is gone already.
///
/// # Errors
/// [`Error::NotARepository`] for a path that is not the git directory of a linked worktree,
/// [`Error::Io`].
pub fn remove(git_dir: &Path) -> Result<()> {
    let parent = git_dir.parent().filter(|parent| parent.ends_with(WORKTREES));
    let Some((parent, common_dir)) = parent.and_then(|parent| Some((parent, parent.parent()?)))
    else {
        return Err(not_a_worktree(git_dir));
    };
    match git_dir.symlink_metadata() {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        _ if git_dir.join("commondir").is_file() => {}
        _ => return Err(not_a_worktree(git_dir)),
    }
    // It disappears at once, and its files after that.
    let aside = Incoming::new(common_dir, INCOMING)?;
    match std::fs::rename(git_dir, aside.path().join("removed")) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        renamed => renamed.map_err(|source| Error::io("remove", git_dir, source))?,
    }
    // As git does; it stays if another worktree is in it.
    let _ = std::fs::remove_dir(parent);
    Ok(())
}

/// Makes the git directory of a worktree survive a crash of the machine; returns how many files and
/// directories were synced, none if it is gone.
///
/// # Errors
/// [`Error::Io`].
pub fn sync(git_dir: &Path) -> Result<u64> {
    let mut synced = files::unless_gone(files::sync_tree(git_dir))?;
    // Its name, and that of `worktrees`.
    for above in git_dir.ancestors().skip(1).take(2) {
        synced += files::unless_gone(files::sync(above))?;
    }
    Ok(synced)
}

fn not_a_worktree(git_dir: &Path) -> Error {
    Error::NotARepository {
        path: git_dir.to_owned(),
        why: "it is not the git directory of a linked worktree".into(),
    }
}

fn make_directory(path: &Path) -> Result<()> {
    match std::fs::create_dir(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        made => made.map_err(|source| Error::io("create", path, source)),
    }
}

fn open(git_dir: &Path) -> Result<gix::Repository> {
    gix::open(git_dir).map_err(|error| Error::Git {
        action: "read the configuration".into(),
        git_dir: git_dir.to_owned(),
        source: error.into(),
    })
}

/// The name under which git would file the worktree at `path`: its last component, made fit for a
/// reference name.
fn name_for(path: &Path) -> Vec<u8> {
    let mut name: Vec<u8> = Vec::new();
    let mut last = 0;
    for &byte in path.file_name().unwrap_or_default().as_bytes() {
        let forbidden =
            matches!(byte, 0..=b' ' | 0x7f | b'~' | b'^' | b':' | b'?' | b'*' | b'[' | b'\\')
                || (byte == b'.' && name.is_empty())
                || (byte == b'{' && last == b'@');
        if (last, byte) != (b'.', b'.') {
            name.push(if forbidden { b'-' } else { byte });
        }
        last = byte;
    }
    while name.ends_with(b".lock") {
        name.truncate(name.len() - b".lock".len());
    }
    if name.is_empty() || name == b"@" {
        name.clear();
        name.extend_from_slice(b"worktree");
    }
    name
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::gittest::{Sandbox, command, commit, git, run};

    /// A bare repository with a branch `main` that has an upstream, its commit, and a directory
    /// with the files of that commit, as a mount would show them.
    fn setup(sandbox: &Sandbox) -> (PathBuf, GitOid, PathBuf) {
        let source = sandbox.repository("source");
        commit(&source, "dir/second", b"2");
        let common = sandbox.path("common");
        crate::fetch::clone_bare(
            source.to_str().unwrap(),
            &common,
            &crate::fetch::CloneOptions::default(),
            &agentfs_engine::progress::Silent,
            &agentfs_engine::progress::Cancel::default(),
        )
        .unwrap();
        let head = gix::open(&common).unwrap().head_id().unwrap().detach();
        let worktree = sandbox.path("tree");
        git(&source, &["worktree", "add", "-q", "--detach", worktree.to_str().unwrap()]);
        std::fs::remove_file(worktree.join(".git")).unwrap();
        (common, crate::object::from_gix(&head).unwrap(), worktree)
    }

    fn with_index(common: &Path) -> impl Fn(&Path) -> Result<()> {
        move |path| {
            let status =
                command(common, &["read-tree", "HEAD"]).env("GIT_INDEX_FILE", path).status();
            assert!(status.unwrap().success());
            Ok(())
        }
    }

    #[test]
    fn git_finds_a_plain_linked_worktree() {
        let sandbox = Sandbox::new();
        let (common, commit_id, worktree) = setup(&sandbox);
        let head = WorktreeHead::Branch { name: "main", commit: Some(commit_id) };
        let new = NewGitDir { common_dir: &common, worktree: &worktree, head, state: None };
        let git_dir = new.create(with_index(&common)).unwrap();
        assert_eq!(git_dir, common.join("worktrees/tree"));
        std::fs::write(worktree.join(".git"), git_file(&git_dir)).unwrap();

        assert_eq!(git(&worktree, &["status", "--porcelain"]), "");
        let top = worktree.to_str().unwrap();
        assert_eq!(git(&worktree, &["rev-parse", "--show-toplevel"]), top);
        assert_eq!(git(&worktree, &["rev-parse", "--absolute-git-dir"]), git_dir.to_str().unwrap());
        let upstream = git(&worktree, &["branch", "-vv"]);
        assert!(upstream.contains("[origin/main]"), "{upstream}");
        let status = git(&worktree, &["status", "-sb"]);
        assert_eq!(status, "## main...origin/main");
        assert_eq!(git(&worktree, &["log", "--format=%s"]), "dir/second\nfile");
        assert!(git(&worktree, &["reflog"]).contains("mounted at"));
        git(&worktree, &["fsck", "--strict"]);
        let list = git(&common, &["worktree", "list", "--porcelain"]);
        assert!(list.contains(&format!("worktree {top}\n")), "{list}");
        assert!(list.contains("branch refs/heads/main\nlocked mounted by agentfs"), "{list}");

        commit(&worktree, "third", b"3");
        assert_eq!(git(&common, &["log", "--format=%s", "-1", "main"]), "third");
        let twice = run(&common, &["worktree", "add", "../again", "main"]);
        assert!(!twice.status.success(), "git let the branch be checked out twice");

        std::fs::rename(&worktree, sandbox.path("away")).unwrap();
        git(&common, &["worktree", "prune", "--expire=now"]);
        git(&common, &["gc", "-q", "--prune=now"]);
        assert!(git_dir.join("HEAD").exists());
        remove(&git_dir).unwrap();
        remove(&git_dir).unwrap();
        assert!(!common.join("worktrees").exists());
        assert!(!git(&common, &["worktree", "list", "--porcelain"]).contains(top));
    }

    #[test]
    fn detached_and_unborn() {
        let sandbox = Sandbox::new();
        let (common, commit_id, worktree) = setup(&sandbox);
        let head = WorktreeHead::Detached(commit_id);
        let new = NewGitDir { common_dir: &common, worktree: &worktree, head, state: None };
        let git_dir = new.create(with_index(&common)).unwrap();
        std::fs::write(worktree.join(".git"), git_file(&git_dir)).unwrap();
        assert!(git(&worktree, &["status"]).starts_with("Not currently on any branch."));
        assert_eq!(git(&worktree, &["rev-parse", "HEAD"]), commit_id.to_string());

        let empty = sandbox.empty_repository("empty", &["--bare"]);
        let worktree = sandbox.path("nothing");
        std::fs::create_dir(&worktree).unwrap();
        let head = WorktreeHead::Branch { name: "main", commit: None };
        let new = NewGitDir { common_dir: &empty, worktree: &worktree, head, state: None };
        let git_dir = new.create(|_| Ok(())).unwrap();
        std::fs::write(worktree.join(".git"), git_file(&git_dir)).unwrap();
        assert!(git(&worktree, &["status"]).contains("No commits yet"));
        commit(&worktree, "first", b"1");
        assert_eq!(git(&empty, &["log", "--format=%s", "main"]), "first");
    }

    #[test]
    fn a_way_back_is_written_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let (file, before) = (dir.path().join("gitdir"), dir.path().join("before"));
        std::fs::write(&file, "/old/.git\n").unwrap();
        std::fs::hard_link(&file, &before).unwrap();
        relocate(dir.path(), Path::new("/new")).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"/new/.git\n");
        // Whoever is killed meanwhile leaves what was there: that was not written over.
        assert_eq!(std::fs::read(&before).unwrap(), b"/old/.git\n");
    }

    #[test]
    fn names_are_unique_and_many_can_be_made_at_once() {
        let sandbox = Sandbox::new();
        let (common, commit_id, worktree) = setup(&sandbox);
        let head = WorktreeHead::Detached(commit_id);
        let new = NewGitDir { common_dir: &common, worktree: &worktree, head, state: None };
        let made: Vec<PathBuf> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..16).map(|_| scope.spawn(|| new.create(|_| Ok(())).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut names: Vec<String> = made
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        names.sort_by_key(|name| (name.len(), name.clone()));
        let expected: Vec<String> = std::iter::once("tree".to_owned())
            .chain((1..16).map(|number| format!("tree{number}")))
            .collect();
        assert_eq!(names, expected);
        let listed = git(&common, &["worktree", "list"]);
        assert_eq!(listed.lines().count(), 17, "{listed}");
    }

    #[test]
    fn names_are_those_of_git() {
        let sandbox = Sandbox::new();
        let source = sandbox.repository("source");
        for name in
            ["plain", "with space", ".hidden", "a..b", "a:b~c", "...", "x.lock", "@{", "\u{e9}"]
        {
            let path = sandbox.path("elsewhere").join(name);
            git(&source, &["worktree", "add", "-q", "--detach", path.to_str().unwrap()]);
            let name = name_for(&path);
            let expected = source.join(".git/worktrees").join(OsString::from_vec(name.clone()));
            assert!(expected.is_dir(), "{:?}", String::from_utf8_lossy(&name));
            git(&source, &["worktree", "remove", path.to_str().unwrap()]);
        }
        assert_eq!(name_for(Path::new("/")), b"worktree");
    }

    #[test]
    fn a_failing_index_leaves_nothing_and_remove_takes_only_worktrees() {
        let sandbox = Sandbox::new();
        let (common, commit_id, worktree) = setup(&sandbox);
        let before: Vec<_> = std::fs::read_dir(&common).unwrap().flatten().collect();
        let head = WorktreeHead::Detached(commit_id);
        let new = NewGitDir { common_dir: &common, worktree: &worktree, head, state: None };
        let failed =
            new.create(|path| Err(Error::io("write", path, ErrorKind::StorageFull.into())));
        assert!(matches!(failed, Err(Error::Io { .. })));
        assert_eq!(std::fs::read_dir(&common).unwrap().count(), before.len());

        let trap = common.join("worktrees/trap");
        std::fs::create_dir_all(&trap).unwrap();
        symlink(&common, common.join("worktrees/link")).unwrap();
        for path in [&common, &trap, &common.join("worktrees/link"), &worktree] {
            assert!(matches!(remove(path), Err(Error::NotARepository { .. })), "{path:?}");
            assert!(path.exists());
        }
    }
}
