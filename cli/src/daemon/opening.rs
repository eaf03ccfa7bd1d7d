//! Mounting: from a branch of the store to a directory with files.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use agentfs_engine::BranchNumber;
use agentfs_engine::base::Base;
use agentfs_engine::storage::Disk;
use agentfs_engine::store::{Branch, Repository, WorktreeRecord};
use agentfs_engine::worktree::{Point, Worktree, WorktreeOptions};
use agentfs_fuse::{MountOptions, Mounted};
use agentfs_gitimport::gitdir::{self, NewGitDir, WorktreeHead};
use agentfs_gitimport::index::{IndexStat, write_index};
use agentfs_gitimport::{monitor, racy};
use tracing::{debug, info, warn};

use crate::daemon::branches;
use crate::daemon::changed;
use crate::daemon::note::{Making, Note};
use crate::daemon::redirects;
use crate::daemon::repositories::OpenRepository;
use crate::daemon::state::Daemon;
use crate::daemon::worktrees::{Reservation, Slot, Up};
use crate::destination::{self, Vacancy};
use crate::error::{Failure, Kind, Result};
use crate::protocol::MountAt;

/// Most entries with which the kernel's caches are filled in advance.
const WARM_ENTRIES_MAX: u64 = 200_000;
/// Up to this many entries a new worktree appears only once that is done, beside the writing of its
/// index: a few microseconds an entry, and its first `git status` then reads nothing.
const WARM_AT_ONCE_MAX: u32 = 20_000;

/// How long a session that has ended may keep its branch.
const LETTING_GO: Duration = Duration::from_secs(2);

/// Where a branch begins that is opened for the first time.
#[derive(Clone, Copy)]
pub struct Begin<'a> {
    /// The point.
    pub point: &'a Point,
    /// The worktree in which it was sealed, if that is mounted.
    pub origin: Option<&'a Arc<Worktree>>,
}

/// A mount that nothing records yet. Dropping it undoes what has been made of it so far.
pub struct Opening<'a> {
    reservation: Reservation<'a>,
    note: Option<Note>,
    created: bool,
    git_dir: Option<PathBuf>,
    mounted: Option<(WorktreeRecord, Arc<Worktree>, Mounted, redirects::Held)>,
    warm: bool,
}

/// What the steps of a mount are called.
pub const MOUNT: &str = "mount";

impl<'a> Opening<'a> {
    /// Mounts `branch` at the directory of `reservation`, where nothing may be.
    ///
    /// # Errors
    /// As [`destination::check`]; whatever keeps it from being mounted. Nothing is left then.
    pub fn new(
        daemon: &Daemon,
        reservation: Reservation<'a>,
        repository: &OpenRepository,
        branch: &Branch,
        at: &MountAt,
        begin: Option<Begin<'_>>,
    ) -> Result<Self> {
        let mut steps = daemon.laps.begin(MOUNT);
        let dir = reservation.dir().to_owned();
        let own = dir.starts_with(daemon.layout.execs());
        let vacancy = match own {
            true => destination::vacancy(&dir)?,
            false => destination::check(&dir, daemon.root())?,
        };
        let created = vacancy == Vacancy::Missing;
        let making = |git_dir| Making::Mount { dir: dir.as_path().into(), created, git_dir };
        // A branch that begins is on record already, with where it is mounted.
        let note = match begin {
            Some(_) => None,
            None => Some(Note::write(&daemon.layout, &making(None))?),
        };
        let mut opening =
            Self { reservation, note: None, created, git_dir: None, mounted: None, warm: false };
        if created {
            create_dir(&dir)?;
        }
        let kept = branch.git_dir().filter(|kept| kept.is_dir()).map(Path::to_owned);
        let fresh = kept.is_none();
        let git_dir = match kept {
            Some(kept) => {
                gitdir::relocate(&kept, &dir)?;
                kept
            }
            None => {
                let made = new_git_dir(repository, branch, &dir)?;
                // What is not kept goes if this fails.
                opening.git_dir = Some(made.clone());
                if let Some(note) = &note {
                    note.amend(&making(Some(made.as_path().into())))?;
                }
                made
            }
        };
        opening.note = note;
        steps.done("git directory");
        let record = WorktreeRecord {
            dir: dir.clone(),
            repository: branch.repository.clone(),
            branch: branch.name.clone(),
            read_only: at.read_only,
            allow_other: at.allow_other,
            git_dir,
        };
        let (worktree, mounted, warm) = mount(daemon, repository, branch, &record, fresh, begin)?;
        let redirected = redirects::apply(daemon, repository, branch, &record, &worktree, &mounted);
        opening.mounted = Some((record, worktree, mounted, redirected));
        opening.warm = warm;
        Ok(opening)
    }

    /// What to put on record.
    pub fn record(&self) -> Option<&WorktreeRecord> {
        self.mounted.as_ref().map(|(record, ..)| record)
    }

    /// What the user should know of what is redirected.
    pub fn notes(&self) -> Vec<String> {
        self.mounted.as_ref().map(|(.., redirects)| redirects.notes()).unwrap_or_default()
    }

    /// Whether the directory was not there before.
    pub fn created(&self) -> bool {
        self.created
    }

    /// Keeps the mount. One that is not on record keeps its note instead, for the case that the
    /// daemon is killed. Returns it if the kernel's caches are still to be filled.
    pub fn keep(mut self, daemon: &Daemon, recorded: bool) -> Option<Cold> {
        self.created = false;
        self.git_dir = None;
        let note = self.note.take().filter(|_| !recorded).map(Arc::new);
        if let Some((record, worktree, mounted, redirects)) = self.mounted.take() {
            daemon.drainer.watch(&worktree);
            let mounted = Arc::new(mounted);
            let name = mount_name(&record);
            let redirects = Arc::new(redirects);
            let up = Arc::new(Up { record, worktree, name, mounted, note, redirects });
            let cold = (!self.warm).then(|| Cold(Arc::clone(&up)));
            self.reservation.fill(Slot::Up(up));
            return cold;
        }
        None
    }
}

/// A mount of which the kernel knows nothing yet.
pub struct Cold(Arc<Up>);

impl Cold {
    /// Has the kernel learn the names and attributes of a worktree before they are asked for, on a thread of its own.
    pub fn warm(self) {
        let walk = move || fill_caches(&self.0.record.dir, &self.0.mounted);
        if let Err(error) = thread::Builder::new().name("agentfs-warm".into()).spawn(walk) {
            debug!("cannot warm a mount: {error}");
        }
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if let Some((_, _, mounted, _)) = self.mounted.take()
            && let Err(error) = mounted.unmount(true)
        {
            warn!("{error}");
        }
        if let Some(git_dir) = self.git_dir.take()
            && let Err(error) = gitdir::remove(&git_dir)
        {
            warn!("{error}");
        }
        if self.created {
            // It stays if somebody has put something into it.
            fs::remove_dir(self.reservation.dir()).ok();
        }
    }
}

/// Mounts again what is on record: the directory and the git directory are as they were left, and
/// are made anew if they are gone. Returns the record as it is now.
///
/// # Errors
/// Whatever keeps it from being mounted.
pub fn reopen(
    daemon: &Daemon,
    repository: &OpenRepository,
    branch: &Branch,
    mut record: WorktreeRecord,
) -> Result<WorktreeRecord> {
    if !record.dir.is_dir() {
        create_dir(&record.dir)?;
    }
    let fresh = !record.git_dir.is_dir();
    if fresh {
        record.git_dir = new_git_dir(repository, branch, &record.dir)?;
    }
    let (worktree, mounted, is_warm) = mount(daemon, repository, branch, &record, fresh, None)?;
    let redirected = redirects::apply(daemon, repository, branch, &record, &worktree, &mounted);
    let redirects = Arc::new(redirected);
    daemon.drainer.watch(&worktree);
    let mounted = Arc::new(mounted);
    let name = mount_name(&record);
    let record_now = record.clone();
    let up = Arc::new(Up { record: record_now, worktree, name, mounted, note: None, redirects });
    if !is_warm {
        Cold(Arc::clone(&up)).warm();
    }
    daemon.worktrees.fill(&record.dir, Slot::Up(up));
    Ok(record)
}

/// What the kernel is to call the mount of a worktree.
fn mount_name(record: &WorktreeRecord) -> String {
    format!("agentfs:{}@{}", record.repository, record.branch)
}

/// Mounts; a `fresh` git directory gets its index. Returns whether the kernel's caches are filled.
fn mount(
    daemon: &Daemon,
    repository: &OpenRepository,
    branch: &Branch,
    record: &WorktreeRecord,
    fresh: bool,
    begin: Option<Begin<'_>>,
) -> Result<(Arc<Worktree>, Mounted, bool)> {
    let mut steps = daemon.laps.begin(MOUNT);
    let git_file = Some(gitdir::git_file(&record.git_dir));
    let worktree = worktree(daemon, repository, branch, git_file, record.read_only, begin)?;
    if !fresh && begin.is_none() && !record.read_only {
        changed::resume(&record.git_dir, &worktree);
        believe_no_more_than_holds(branch, &repository.record, &record.git_dir, &worktree);
    }
    steps.done("worktree");
    let base = Arc::clone(worktree.base());
    let options = MountOptions {
        read_only: record.read_only,
        allow_other: record.allow_other,
        levers: daemon.levers.clone(),
        name: mount_name(record),
        ..MountOptions::default()
    };
    let mounted = agentfs_fuse::mount(Arc::clone(&worktree), &record.dir, &options)?;
    steps.done("kernel");
    let at_once = fresh && base.entries() <= WARM_AT_ONCE_MAX;
    thread::scope(|scope| {
        if at_once {
            scope.spawn(|| fill_caches(&record.dir, &mounted));
        }
        let Some(root_oid) = branch.root_oid.filter(|_| fresh) else { return Ok(()) };
        // An index has room for the low half of the device number.
        let (uid, gid) = owner();
        let stat = IndexStat { time: branch.time, uid, gid, dev: mounted.dev() as u32 };
        let token = changed::token(&worktree)
            .filter(|_| monitor::is_configured(&repository.record.git_dir));
        write_index(&base, &stat, root_oid, token.as_deref(), &record.git_dir.join("index"))
    })?;
    steps.done("index");
    Ok((worktree, mounted, at_once))
}

/// Has git look again at what a process of it could not look at when the worktree went away. A failure costs
/// no more than that.
fn believe_no_more_than_holds(
    branch: &Branch,
    repository: &Repository,
    git_dir: &Path,
    worktree: &Worktree,
) {
    match racy::distrust(git_dir, repository.hash, worktree, branch.time) {
        Ok(0) => {}
        Ok(files) => info!("git reads {files} files of {} again", branch.name),
        Err(error) => warn!("{error}"),
    }
}

/// A branch as files. One that is to be `read_only` and has no changes gets no outbox. What it stands on
/// is drained first, unless it begins now.
///
/// # Errors
/// What reading the store and the outbox meets.
pub fn worktree(
    daemon: &Daemon,
    repository: &OpenRepository,
    branch: &Branch,
    git_file: Option<Vec<u8>>,
    read_only: bool,
    begin: Option<Begin<'_>>,
) -> Result<Arc<Worktree>> {
    let contents = repository.contents(branch.root_oid);
    let store = Arc::clone(contents.store());
    let base = Base::open(store, contents.source().cloned(), branch.root)?;
    let options = options(branch, git_file);
    let outbox = daemon.layout.outbox(branch.number);
    if let Some(Begin { point, origin }) = begin.filter(|_| !read_only) {
        let (number, disk) = (branch.number, Arc::new(Disk));
        let mut steps = daemon.laps.begin(branches::FORK);
        let fork = Worktree::fork(base, contents, options, number, disk, &outbox, point, origin)?;
        steps.done("worktree");
        return Ok(fork);
    }
    while let Some(owner) = daemon.store.waits_for(branch.number)? {
        settle(daemon, owner)?;
    }
    if read_only && !outbox.exists() && !daemon.store.has_changes(branch.number)? {
        return Ok(Worktree::new(base, contents, options));
    }
    when_free(branch, || {
        let (base, contents) = (Arc::clone(&base), Arc::clone(&contents));
        let disk = Arc::new(Disk);
        Worktree::writable(base, contents, options.clone(), branch.number, disk, &outbox)
    })
}

/// Drains branch `owner`, on which others stand.
///
/// # Errors
/// [`Kind::Damaged`] if there is no such branch, [`Kind::Busy`] while it is being mounted or unmounted,
/// and what draining it meets.
pub fn settle(daemon: &Daemon, owner: BranchNumber) -> Result<()> {
    let branches = daemon.store.branches()?;
    let Some(branch) = branches.into_iter().find(|branch| branch.number == owner) else {
        return Err(Failure::new(
            Kind::Damaged,
            format!("branch number {owner}, on which others stand, is not on record"),
        )
        .hint("`agentfs fsck` says which these are"));
    };
    let repository = daemon.repositories.get(&daemon.store, &branch.repository)?;
    if let Some(opened) = branches::open(daemon, &repository, &branch)? {
        opened.worktree.drain()?;
    }
    Ok(())
}

/// Opens a branch when those have let go of it who were in a mount of it that has just ended.
fn when_free(
    branch: &Branch,
    open: impl Fn() -> agentfs_engine::Result<Arc<Worktree>>,
) -> Result<Arc<Worktree>> {
    let start = Instant::now();
    loop {
        match open() {
            Err(agentfs_engine::Error::BranchInUse(_)) if start.elapsed() < LETTING_GO => {
                thread::sleep(Duration::from_millis(1));
            }
            Err(error @ agentfs_engine::Error::BranchInUse(_)) => {
                let hint = format!(
                    "end the processes that are still in the mount of {}@{} that was taken from sight",
                    branch.repository, branch.name
                );
                return Err(Failure::from(error).hint(hint));
            }
            opened => return Ok(opened?),
        }
    }
}

/// How the files of a branch appear.
pub fn options(branch: &Branch, git_file: Option<Vec<u8>>) -> WorktreeOptions {
    let (uid, gid) = owner();
    WorktreeOptions { uid, gid, time: branch.time, git_file }
}

/// User and group of every file: those who run the daemon.
fn owner() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// Makes the git directory of a worktree at `dir`, still without an index.
fn new_git_dir(repository: &OpenRepository, branch: &Branch, dir: &Path) -> Result<PathBuf> {
    let head = match branch.commit {
        Some(commit) if branch.detached => WorktreeHead::Detached(commit),
        commit => WorktreeHead::Branch { name: &branch.name, commit },
    };
    let new =
        NewGitDir { common_dir: &repository.record.git_dir, worktree: dir, head, state: None };
    Ok(new.create(|_| Ok(()))?)
}

fn create_dir(dir: &Path) -> Result<()> {
    DirBuilder::new().mode(0o777).create(dir).map_err(|error| Failure::io("create", dir, &error))
}

fn fill_caches(dir: &Path, mounted: &Mounted) {
    match mounted.warm(WARM_ENTRIES_MAX) {
        Ok(warmed) => debug!("{}: {warmed:?}", dir.display()),
        Err(error) => debug!("{error}"),
    }
}
