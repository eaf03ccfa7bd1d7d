//! References that are made in this process, as git makes them: each a file below `refs`
//! ([gitrepository-layout(5)], "loose refs"), under git's lock of that one reference.
//!
//! git has the last word on references: their format, hooks and logs are its own. But to start it takes longer than all
//! else that a new branch takes, so what is certain is done here: a reference that nobody has, in a repository whose
//! references are files, that no hook is to hear of, and that is stored with the permissions that the process gives.
//! Of everything else git is told.
//!
//! The library's own transaction is not used for it. Where any reference is packed it locks all of them for a look into
//! that file, so that a process that is killed there keeps everybody from changing one, and a hundred at once are in
//! each other's way.
//!
//! [gitrepository-layout(5)]: https://git-scm.com/docs/gitrepository-layout

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use agentfs_engine::GitOid;
use gix::bstr::ByteSlice;
use gix::refs::FullName;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, open};

use crate::error::{Error, Result};
use crate::reflog;
use crate::repository::{Repository, guarded};

/// The hook that git runs for every change of a reference.
const HOOK: &str = "reference-transaction";

/// How often the directory of a reference is made anew, which git removes when it is empty.
const ATTEMPTS: u32 = 3;
/// How long a configuration is believed that nothing is seen to have changed: there may be files now that were not there.
const AGE_MAX: Duration = Duration::from_secs(600);
/// How much older than its change the time of a file may be (inode(7): the clock of the kernel's timer).
const TICK: Duration = Duration::from_millis(20);

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

/// Which version of a file this is: its inode number, size, and time of change.
type Version = (u64, u64, i64, i64);

/// The files from which a repository's configuration was read.
#[derive(Debug)]
pub(crate) struct Configuration {
    files: Vec<(PathBuf, Option<Version>)>,
    since: Instant,
}

impl Configuration {
    /// That of `git`, which was begun to be opened at `begun`.
    pub(crate) fn of(git: &gix::Repository, begun: SystemTime) -> Self {
        let config = git.config_snapshot();
        let files: BTreeSet<_> = config
            .plumbing()
            .sections()
            .filter_map(|section| section.meta().path.clone())
            .collect();
        let begun = begun.duration_since(UNIX_EPOCH).unwrap_or_default().saturating_sub(TICK);
        let begun = (i64::try_from(begun.as_secs()).unwrap_or(0), i64::from(begun.subsec_nanos()));
        // One that has changed since may have been read before or after that.
        let read = |path: &Path| version(path).filter(|of| (of.2, of.3) < begun);
        let files = files.into_iter().map(|path| (path.clone(), read(&path))).collect();
        Self { files, since: Instant::now() }
    }

    /// Whether it is what would be read now.
    pub(crate) fn is_current(&self) -> bool {
        let is_same =
            |(path, read): &(PathBuf, Option<Version>)| read.is_some() && version(path) == *read;
        self.since.elapsed() < AGE_MAX && self.files.iter().all(is_same)
    }
}

fn version(path: &Path) -> Option<Version> {
    let of = fs::metadata(path).ok()?;
    Some((of.ino(), of.size(), of.ctime(), of.ctime_nsec()))
}

/// Makes reference `name`, of which there is none, lead to `commit`, and begins its log with `message` if the
/// repository keeps one. `false` if git is to do it, or to say why it cannot be done: nothing has changed then.
pub(crate) fn create(
    repository: &Repository,
    name: &FullName,
    commit: &GitOid,
    message: Option<&str>,
) -> bool {
    let git = repository.gix();
    let (text, common) = (name.as_bstr(), git.common_dir());
    let (true, Ok(relative)) = (is_for_us(repository, &git), text.to_path()) else { return false };
    let path = common.join(relative);
    let Some(lock) = Lock::take(&path, commit) else { return false };
    // Nobody makes or packs it from here on.
    let is_there =
        !matches!(fs::symlink_metadata(&path), Err(error) if error.kind() == ErrorKind::NotFound);
    if is_there || !matches!(guarded(|| has_room_among_packed(&git, text)), Ok(Some(true))) {
        return false;
    }
    let log = message.filter(|_| is_logged(&git, text)).map(|message| {
        let log = common.join("logs").join(relative);
        reflog::begin(&log, commit, &reflog::committer(&git), message)
    });
    log.is_none_or(|log| log.is_ok()) && lock.rename().is_ok()
}

/// The same of a name that nothing has had before and that nobody else will give. No lock is taken: nobody would have
/// it, and it comes to be as a whole.
pub(crate) fn create_unique(repository: &Repository, name: &FullName, commit: &GitOid) -> bool {
    let git = repository.gix();
    let text = name.as_bstr();
    let (true, Ok(relative)) = (is_for_us(repository, &git), text.to_path()) else { return false };
    !is_logged(&git, text) && link(&git.common_dir().join(relative), commit).is_some()
}

/// Whether git has no say in the making of a reference.
fn is_for_us(repository: &Repository, git: &gix::Repository) -> bool {
    repository.is_configured_so() && are_plain(git)
}

/// Removes the lock of reference `name` that a process has left that was killed while it made it lead to `commit`.
pub(crate) fn remove_lock(repository: &Repository, name: &FullName, commit: &GitOid) {
    let Ok(relative) = name.as_bstr().to_path() else { return };
    let lock = lock_of(&repository.gix().common_dir().join(relative));
    let whole = format!("{commit}\n");
    // It never has a name before it has all that.
    if fs::metadata(&lock).is_ok_and(|lock| lock.len() == whole.len() as u64)
        && fs::read(&lock).is_ok_and(|text| text == whole.as_bytes())
    {
        drop(fs::remove_file(&lock));
    }
}

impl Repository {
    /// Has git pack its references into one file if at least `least` of them are files of their own, which take a block
    /// of the disk each. Returns whether it did.
    ///
    /// # Errors
    /// [`Error::Git`] with what git says, and [`Error::Io`].
    pub fn pack_references(&self, least: usize) -> Result<bool> {
        let refs = self.gix().common_dir().join("refs");
        let many = count(&refs, least)? >= least;
        if many {
            self.run_git(self.git_dir(), &["pack-refs", "--all", "--prune"])?;
        }
        Ok(many)
    }
}

/// How many files are below `dir`, or `enough` if there are more.
fn count(dir: &Path, enough: usize) -> Result<usize> {
    let list = |error| Error::io("list", dir, error);
    let entries = match fs::read_dir(dir) {
        // Git removes directories that are empty.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        entries => entries.map_err(list)?,
    };
    let mut found = 0;
    for entry in entries {
        let entry = entry.map_err(list)?;
        found += match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            true => count(&entry.path(), enough - found)?,
            false => 1,
        };
        if found >= enough {
            break;
        }
    }
    Ok(found)
}

/// Whether no packed reference is called `name`, or has a name in which it is a directory or that is one in it.
fn has_room_among_packed(git: &gix::Repository, name: &gix::bstr::BStr) -> Option<bool> {
    let Some(packed) = git.refs.cached_packed_buffer().ok()? else { return Some(true) };
    let has = |name: &gix::bstr::BStr| packed.try_find(name).map(|found| found.is_some()).ok();
    for at in name.find_iter("/").skip(1) {
        if has(name[..at].as_bstr())? {
            return Some(false);
        }
    }
    let mut below = name.to_owned();
    below.push(b'/');
    let is_directory = packed.iter_prefixed(below).ok()?.next().is_some();
    Some(!has(name)? && !is_directory)
}

/// Whether git begins a log of reference `name` (git-config(1), `core.logAllRefUpdates`).
fn is_logged(git: &gix::Repository, name: &gix::bstr::BStr) -> bool {
    const KEY: &str = "core.logAllRefUpdates";
    let config = git.config_snapshot();
    let always = config.string(KEY).is_some_and(|value| value.eq_ignore_ascii_case(b"always"));
    let is_branch = name.starts_with(b"refs/heads/");
    always || is_branch && config.boolean(KEY).unwrap_or(!git.is_bare())
}

fn lock_of(path: &Path) -> PathBuf {
    let mut lock = path.to_owned().into_os_string();
    lock.push(".lock");
    lock.into()
}

/// Gives the file of a reference to `commit`, on stable storage, the name `path`, which nothing has; `None` if that
/// cannot be.
fn link(path: &Path, commit: &GitOid) -> Option<()> {
    let dir = path.parent()?;
    for _ in 0..ATTEMPTS {
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let linked = open(dir, flags, Mode::from_raw_mode(0o666)).map_err(std::io::Error::from);
        let linked = linked.and_then(|unnamed| {
            let mut file = File::from(unnamed);
            file.write_all(format!("{commit}\n").as_bytes())?;
            // A crash of the machine is not to leave a reference that leads nowhere.
            file.sync_data()?;
            let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
            Ok(linkat(CWD, unnamed, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
        });
        match linked {
            Ok(()) => return Some(()),
            Err(error) if error.kind() == ErrorKind::NotFound => fs::create_dir_all(dir).ok()?,
            Err(_) => return None,
        }
    }
    None
}

/// The lock of a reference, which becomes the reference. Dropping it gives it back.
struct Lock<'a> {
    path: PathBuf,
    /// What it locks.
    of: &'a Path,
    kept: bool,
}

impl<'a> Lock<'a> {
    /// Takes it, if nobody has it, to have the reference lead to `commit`.
    fn take(of: &'a Path, commit: &GitOid) -> Option<Self> {
        let path = lock_of(of);
        link(&path, commit)?;
        Some(Self { path, of, kept: false })
    }

    /// Makes the reference of it.
    fn rename(mut self) -> std::io::Result<()> {
        fs::rename(&self.path, self.of)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gittest::{Sandbox, commit, git};

    const MESSAGE: &str = "branch: made by a test";

    /// Opens a repository whose configuration may have been written just now.
    fn open(path: &Path) -> Repository {
        std::thread::sleep(2 * TICK);
        Repository::open(path).unwrap()
    }

    fn setup(sandbox: &Sandbox) -> (PathBuf, Repository, GitOid) {
        let path = sandbox.repository("source").join(".git");
        let repository = open(&path);
        let commit = repository.resolve("HEAD").unwrap().id;
        (path, repository, commit)
    }

    fn full(name: &str) -> FullName {
        FullName::try_from(format!("refs/heads/{name}")).unwrap()
    }

    #[test]
    fn it_is_what_git_makes() {
        let sandbox = Sandbox::new();
        let (path, repository, commit) = setup(&sandbox);
        let make = |name: &str, log| create(&repository, &full(name), &commit, log);
        assert!(make("a", Some(MESSAGE)) && make("b/c", Some(MESSAGE)) && make("b/d", None));
        git(&path, &["update-ref", "-m", MESSAGE, "refs/heads/gits", "HEAD"]);
        let read = |name: &str| fs::read_to_string(path.join(name)).unwrap();
        assert_eq!(read("refs/heads/a"), read("refs/heads/gits"));
        // But for who it was, whom the test tells git only.
        let entry = |name: &str| {
            let entry = read(&format!("logs/refs/heads/{name}"));
            let (ids, rest) = entry.split_once(" ").unwrap();
            (ids.to_owned(), rest[..40].to_owned(), rest[rest.find('>').unwrap()..].len())
        };
        assert_eq!(entry("a"), entry("gits"));
        let log = git(&path, &["reflog", "show", "--format=%H %gs", "b/c"]);
        assert_eq!(log, format!("{commit} {MESSAGE}"));
        assert!(!path.join("logs/refs/heads/b/d").exists());
        git(&path, &["update-ref", "-m", "moved", "refs/heads/b/d", "HEAD", &commit.to_string()]);
        let refs = git(&path, &["for-each-ref", "--format=%(refname:short)", "refs/heads"]);
        assert_eq!(refs, "a\nb/c\nb/d\ngits\nmain");
        git(&path, &["fsck", "--strict"]);
        git(&path, &["config", "core.logAllRefUpdates", "false"]);
        let repository = open(&path);
        assert!(create(&repository, &full("unlogged"), &commit, Some(MESSAGE)));
        assert!(!path.join("logs/refs/heads/unlogged").exists());
    }

    #[test]
    fn what_is_in_the_way_is_left_to_git() {
        let sandbox = Sandbox::new();
        let (path, repository, commit) = setup(&sandbox);
        for name in ["packed/one", "packed2"] {
            git(&path, &["update-ref", &format!("refs/heads/{name}"), "HEAD"]);
        }
        git(&path, &["pack-refs", "--all"]);
        git(&path, &["update-ref", "refs/heads/loose/one", "HEAD"]);
        fs::write(path.join("refs/heads/locked.lock"), "").unwrap();
        let before = git(&path, &["for-each-ref"]);
        for name in [
            "packed/one",
            "packed",
            "packed/one/more",
            "packed2",
            "packed2/more",
            "loose/one",
            "loose",
            "loose/one/more",
            "locked",
        ] {
            assert!(!create(&repository, &full(name), &commit, Some(MESSAGE)), "{name}");
            let lock = path.join(format!("refs/heads/{name}.lock"));
            assert_eq!(lock.exists(), name == "locked", "{name}");
        }
        assert_eq!(git(&path, &["for-each-ref"]), before);
        assert!(create(&repository, &full("packed/two"), &commit, None));
    }

    #[test]
    fn who_is_to_hear_of_it_hears_of_it() {
        let sandbox = Sandbox::new();
        let (path, repository, commit) = setup(&sandbox);
        let hook = path.join("hooks/reference-transaction");
        fs::create_dir_all(path.join("hooks")).unwrap();
        fs::write(&hook, "#!/bin/sh\ncat >> \"$GIT_DIR/heard\"\n").unwrap();
        std::process::Command::new("chmod").arg("+x").arg(&hook).status().unwrap();
        repository.create_branch("a", &commit, true).unwrap();
        assert!(fs::read_to_string(path.join("heard")).unwrap().contains("refs/heads/a"));
        fs::remove_file(&hook).unwrap();
        assert!(create(&repository, &full("b"), &commit, None));
        let others = [
            ("core.sharedRepository", "group"),
            ("core.hooksPath", "relative"),
            ("includeIf.onbranch:x.path", "/nowhere"),
        ];
        for (at, (setting, value)) in others.into_iter().enumerate() {
            let other = format!("c{at}");
            git(&path, &["config", setting, value]);
            // Also before it is known what has changed.
            assert!(!create(&repository, &full(&other), &commit, None), "{setting}");
            let repository = open(&path);
            assert!(!create(&repository, &full(&other), &commit, None), "{setting}");
            repository.create_branch(&other, &commit, true).unwrap();
            git(&path, &["config", "--unset", setting]);
            let other = format!("d{at}");
            assert!(!create(&Repository::open(&path).unwrap(), &full(&other), &commit, None));
            assert!(create(&open(&path), &full(&other), &commit, None));
        }
    }

    #[test]
    fn a_name_that_nobody_else_gives_needs_no_lock() {
        let sandbox = Sandbox::new();
        let (path, repository, commit) = setup(&sandbox);
        let full = |name: &str| FullName::try_from(format!("refs/agentfs/{name}")).unwrap();
        assert!(create_unique(&repository, &full("snapshots/a"), &commit));
        git(&path, &["pack-refs", "--all"]);
        repository.keep("refs/agentfs/snapshots/b", &commit).unwrap();
        assert!(!create_unique(&repository, &full("snapshots/b"), &commit), "it is there");
        let refs = git(&path, &["for-each-ref", "--format=%(refname:lstrip=2)", "refs/agentfs"]);
        assert_eq!(refs, "snapshots/a\nsnapshots/b");
        git(&path, &["fsck", "--strict"]);
        git(&path, &["config", "core.logAllRefUpdates", "always"]);
        assert!(!create_unique(&open(&path), &full("snapshots/c"), &commit), "git logs it");
    }

    #[test]
    fn only_a_lock_of_ours_is_removed() {
        let sandbox = Sandbox::new();
        let (path, repository, commit) = setup(&sandbox);
        let lock = path.join("refs/heads/a.lock");
        let whole = format!("{commit}\n");
        for (text, goes) in [("", false), (&whole, true), ("ref: x\n", false), (&whole[1..], false)]
        {
            fs::write(&lock, text).unwrap();
            assert!(repository.create_branch("a", &commit, true).is_err());
            repository.unlock_branch("a", &commit).unwrap();
            assert_eq!(lock.exists(), !goes, "{text:?}");
        }
        repository.unlock_branch("none", &commit).unwrap();
    }

    #[test]
    fn any_number_is_made_beside_git_that_packs() {
        let sandbox = Sandbox::new();
        let (path, repository, first) = setup(&sandbox);
        commit(path.parent().unwrap(), "second", b"2");
        let (threads, each) = (8, 25);
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let repository = &repository;
                scope.spawn(move || {
                    for number in 0..each {
                        let name = format!("t{thread}/b{number}");
                        repository.create_branch(&name, &first, number % 2 == 0).unwrap();
                    }
                });
            }
            scope.spawn(|| {
                (0..20).for_each(|_| drop(git(&path, &["pack-refs", "--all", "--prune"])))
            });
        });
        // All but `main`, which is packed, and as many as were made since.
        assert!(!repository.pack_references(threads * each + 1).unwrap());
        repository.create_branch("last", &first, false).unwrap();
        assert!(repository.pack_references(1).unwrap());
        assert_eq!(count(&path.join("refs"), 10).unwrap(), 0);
        let made = git(&path, &["for-each-ref", "--format=%(objectname)", "refs/heads/t*/*"]);
        assert_eq!(made.lines().filter(|id| *id == first.to_string()).count(), threads * each);
    }
}
