//! Branches beyond mounting them: begun at a commit, a snapshot or what another branch is now, and
//! removed without losing anything.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard};

use agentfs_engine::GitOid;
use agentfs_engine::base::Base;
use agentfs_engine::store::{Branch, KeptGit, SnapshotReason, SnapshotRecord, WorktreeRecord};
use agentfs_engine::worktree::{Point, Worktree};
use agentfs_gitimport::gitdir::{self, NewGitDir, WorktreeHead};
use agentfs_gitimport::repository::Repository;
use agentfs_gitimport::saved;
use agentfs_gitimport::shared;
use agentfs_gitimport::state::ForkHead;
use agentfs_gitimport::walk::ImportedTrees;
use tracing::warn;

use crate::daemon::calls;
use crate::daemon::git_states;
use crate::daemon::keeper;
use crate::daemon::laps::Steps;
use crate::daemon::names::{self, refuse_taken};
use crate::daemon::note::{Making, Note};
use crate::daemon::opening::{self, Begin, Opening};
use crate::daemon::redirects;
use crate::daemon::repositories::OpenRepository;
use crate::daemon::rpc::{Answer, Call};
use crate::daemon::snapshots;
use crate::daemon::state::Daemon;
use crate::daemon::target::{self, Target};
use crate::daemon::worktrees::{Slot, Up};
use crate::destination;
use crate::error::{Failure, Kind, Result};
use crate::layout::remove_all;
use crate::protocol::{
    BranchCreateCall, BranchDeleteCall, BranchDeleted, MountCall, UmountCall, UndeleteCall,
    WorktreeRemoveCall, WorktreeRemoved,
};

/// What the steps of a fork are counted as.
pub const FORK: &str = "fork";

/// Where a branch begins that is more than a commit.
pub struct Start {
    repository: Arc<OpenRepository>,
    /// Whose base it has.
    pub of: Branch,
    /// The point.
    pub point: Point,
    /// The worktree in which `point` was sealed, if it is mounted.
    origin: Option<Arc<Worktree>>,
    /// The git directory, or what a snapshot has of one.
    pub state: PathBuf,
    /// The commit that HEAD was on when that was saved.
    saved: Option<GitOid>,
}

/// What a branch, a snapshot or a revision is now.
pub enum Seen {
    /// A branch that may differ from its commit, or a snapshot of one.
    Point(Box<Start>),
    /// A commit, or an empty repository.
    Commit(Arc<OpenRepository>, Target),
}

impl Seen {
    /// What `what` is now; with `committed`, a branch is its commit. The caller holds
    /// [`Daemon::lock_names`]: what is sealed stays until it is read, or on record.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is no such thing; what sealing a branch meets.
    pub fn of(daemon: &Daemon, what: &str, committed: bool) -> Result<Self> {
        let (repository, revision, start) = match snapshots::named(daemon, what)? {
            Some(snapshot) => {
                let start = Start::of_snapshot(daemon, &snapshot)?;
                (snapshot.repository.clone(), snapshots::reference(&snapshot), start)
            }
            None => {
                let (repository, revision) = target::parse(daemon, what)?;
                let start = match committed {
                    true => None,
                    false => Start::of_branch(daemon, &repository, &revision)?,
                };
                (repository, revision, start)
            }
        };
        if let Some(start) = start {
            return Ok(Self::Point(Box::new(start)));
        }
        let repository = daemon.repositories.get(&daemon.store, &repository)?;
        let target = Target::of_revision(daemon, &repository, &revision)?;
        Ok(Self::Commit(repository, target))
    }

    /// Its repository.
    pub fn repository(&self) -> &Arc<OpenRepository> {
        match self {
            Self::Point(start) => &start.repository,
            Self::Commit(repository, _) => repository,
        }
    }
}

/// A branch with its changes, to be sealed.
pub struct Opened {
    /// Its worktree.
    pub worktree: Arc<Worktree>,
    /// Its git directory, or what it has of one before it gets it.
    pub git_dir: PathBuf,
    /// Its mount; without one nobody but the caller has it.
    pub up: Option<Arc<Up>>,
}

/// Opens a branch that is mounted, or that was unmounted with changes; `None` for one that is nothing
/// but its commit.
///
/// # Errors
/// [`Kind::Busy`] while it is being mounted or unmounted; what opening it meets.
pub fn open(
    daemon: &Daemon,
    repository: &OpenRepository,
    branch: &Branch,
) -> Result<Option<Opened>> {
    let holder = daemon.worktrees.holder_of(&branch.repository, &branch.name);
    let slot = holder.and_then(|dir| daemon.worktrees.get(&dir));
    match slot {
        Some(Slot::Up(up)) if !up.worktree.is_read_only() => Ok(Some(Opened {
            worktree: Arc::clone(&up.worktree),
            git_dir: up.record.git_dir.clone(),
            up: Some(up),
        })),
        Some(Slot::Busy(..)) => {
            Err(Failure::new(Kind::Busy, format!("{} is being mounted or unmounted", branch.name))
                .hint("run the command again in a moment"))
        }
        _ => {
            let Some(git_dir) = branch.git_state().map(Path::to_owned) else { return Ok(None) };
            let worktree = opening::worktree(daemon, repository, branch, None, false, None)?;
            Ok(Some(Opened { worktree, git_dir, up: None }))
        }
    }
}

impl Opened {
    /// What it is now, for ever: on stable storage when this returns.
    ///
    /// # Errors
    /// What the outbox and the store meet.
    pub fn seal(&self) -> Result<Point> {
        let point = self.worktree.seal()?;
        if self.up.is_some() {
            self.worktree.sync()?;
            return Ok(point);
        }
        // It is about to be closed, and whoever stands on it must not need it open.
        self.worktree.drain()?;
        Ok(self.worktree.seal()?)
    }
}

impl Start {
    /// `None` for a revision that is no branch, or a branch that is nothing but its commit.
    fn of_branch(daemon: &Daemon, repository: &str, revision: &str) -> Result<Option<Self>> {
        let repository = daemon.repositories.get(&daemon.store, repository)?;
        let of_head = match revision {
            "" | "HEAD" => Target::of_head(&*repository.git()?)?.branch,
            _ => None,
        };
        let revision = of_head.as_deref().unwrap_or(revision);
        let name = revision.strip_prefix("refs/heads/").unwrap_or(revision);
        let Some(of) = daemon.store.branch(&repository.record.name, name)? else {
            return Ok(None);
        };
        let of = git_states::unshare(daemon, &repository, of)?;
        let Some(opened) = open(daemon, &repository, &of)? else { return Ok(None) };
        let point = opened.seal()?;
        let origin = opened.up.is_some().then_some(opened.worktree);
        Ok(Some(Self { repository, of, point, origin, state: opened.git_dir, saved: None }))
    }

    fn of_snapshot(daemon: &Daemon, snapshot: &SnapshotRecord) -> Result<Option<Self>> {
        let Some(state) = &snapshot.git_state else { return Ok(None) };
        let repository = daemon.repositories.get(&daemon.store, &snapshot.repository)?;
        let source = repository.contents(snapshot.root_oid).source().cloned();
        let base = Base::open(Arc::clone(&daemon.store), source, snapshot.root)?;
        let point = snapshots::point(daemon, &base, snapshot)?;
        let of = Branch {
            repository: snapshot.repository.clone(),
            name: snapshot.name.clone(),
            root: snapshot.root,
            root_oid: snapshot.root_oid,
            commit: snapshot.commit,
            time: snapshot.time,
            number: snapshot.branch,
            ingested: false,
            detached: false,
            git: None,
        };
        let state = daemon.layout.snapshots().join(state);
        saved::verify(&state)?;
        let saved = repository.git()?.resolve(&snapshots::reference(snapshot)).ok();
        let saved = saved.map(|commit| commit.id);
        Ok(Some(Self { repository, of, point, origin: None, state, saved }))
    }

    /// Where its HEAD is.
    ///
    /// # Errors
    /// What reading the git state and the repository meets.
    pub fn head(&self) -> Result<ForkHead> {
        Ok(ForkHead::of(&*self.repository.git()?, &self.state, self.saved)?)
    }
}

/// Begins a branch, and mounts it if asked.
///
/// # Errors
/// [`Kind::Refused`] if git has a branch of that name; whatever keeps it from being made or mounted.
/// Nothing is left then.
pub fn create(daemon: &Arc<Daemon>, params: &BranchCreateCall, call: &Call) -> Result<Answer> {
    if let Some(at) = &params.mount {
        destination::check(&at.dir.0, daemon.root())?;
    }
    let mut steps = daemon.laps.begin(FORK);
    // What a branch stands on stays until it is on record.
    let names = daemon.lock_names();
    steps.done("turn");
    let seen = Seen::of(daemon, &params.from, params.committed)?;
    match seen {
        Seen::Point(start) => {
            steps.done("seal");
            fork(daemon, params, &start, call, names, steps)
        }
        Seen::Commit(repository, target) => begin(daemon, params, &repository, target, call, names),
    }
}

/// Begins a branch at a commit.
fn begin(
    daemon: &Arc<Daemon>,
    params: &BranchCreateCall,
    repository: &OpenRepository,
    target: Target,
    call: &Call,
    names: MutexGuard<'_, ()>,
) -> Result<Answer> {
    let git = repository.git_as_it_is()?;
    let commit = target.commit.map(|commit| commit.id);
    let name = params.name.as_str();
    refuse_taken(daemon, &git, &repository.record.name, name)?;
    let made =
        Made::branch(daemon, &git, &repository.record.name, name, commit, params.mount.is_some())?;
    drop(names);
    let what = format!("{}@{name}", repository.record.name);
    let answer = match &params.mount {
        Some(at) => calls::mount_at(
            daemon,
            &MountCall { what, at: at.clone(), exclusive: true },
            call,
            true,
        )?,
        None => {
            let target = Target { branch: Some(name.into()), ..target };
            // Until what is imported is on record.
            let _hold = daemon.store.hold();
            let (root, trees) = target::import(daemon, repository, &target, call)?;
            let branch = target::branch(daemon, repository, &target, root)?;
            let mut batch = daemon.store.batch()?;
            batch.put_branch(&branch);
            batch.commit()?;
            answer(daemon, branch, trees)?
        }
    };
    made.keep();
    Ok(answer)
}

/// Begins a branch with everything that another is.
fn fork(
    daemon: &Arc<Daemon>,
    params: &BranchCreateCall,
    start: &Start,
    call: &Call,
    names: MutexGuard<'_, ()>,
    mut steps: Steps<'_>,
) -> Result<Answer> {
    let Start { repository, of, point, origin, state, .. } = start;
    let git = repository.git_to_change()?;
    let name = params.name.as_str();
    let number = daemon.store.new_branch_number();
    let head = start.head()?;
    refuse_taken(daemon, &git, &of.repository, name)?;
    let mut made =
        Made::branch(daemon, &git, &of.repository, name, head.commit, params.mount.is_some())?;
    steps.done("git branch");
    let inherited = redirects::inherit(daemon, of.number, state, number)?;
    let common_dir = &repository.record.git_dir;
    let kept = match (&params.mount, &head) {
        (None, ForkHead { commit: Some(commit), detached: None }) => {
            KeptGit::Shared(shared::share(state, common_dir, *commit, &daemon.layout.shared())?)
        }
        (at, ForkHead { commit, detached }) => {
            let nowhere = || daemon.layout.unmounted(&of.repository, name);
            let worktree = at.as_ref().map_or_else(nowhere, |at| at.dir.0.clone());
            let new = NewGitDir {
                common_dir,
                worktree: &worktree,
                head: match *detached {
                    Some(commit) => WorktreeHead::Detached(commit),
                    None => WorktreeHead::Branch { name, commit: *commit },
                },
                state: Some((state, Some(name))),
            };
            let git_dir = new.create(|_| Ok(()))?;
            made.git_dir_is(&git_dir)?;
            KeptGit::Dir(git_dir)
        }
    };
    steps.done("git directory");
    let (KeptGit::Dir(git_dir) | KeptGit::Shared(git_dir)) = kept.clone();
    let branch =
        Branch { name: name.into(), number, detached: false, git: Some(kept), ..of.clone() };
    let mounting = params.mount.as_ref().map(|at| {
        let record = WorktreeRecord {
            dir: at.dir.0.clone(),
            repository: of.repository.clone(),
            branch: name.into(),
            read_only: at.read_only,
            allow_other: at.allow_other,
            git_dir,
        };
        daemon.worktrees.reserve(&at.dir.0, &branch).map(|reservation| (at, record, reservation))
    });
    let mounting = mounting.transpose()?;
    let mut batch = daemon.store.batch()?;
    batch.name_point(point)?;
    if let Some(layer) = point.layer {
        batch.put_fork(number, layer, point.last_new);
    }
    batch.put_branch(&branch);
    mounting.iter().for_each(|(_, record, _)| batch.put_worktree(record));
    batch.commit()?;
    made.recorded = Some((branch.clone(), params.mount.as_ref().map(|at| at.dir.0.clone())));
    inherited.keep();
    drop(names);
    steps.done("record");
    let notes = match params.seed_redirects {
        true => redirects::seed(daemon, of.number, number),
        false => Vec::new(),
    };
    if params.takes_over {
        redirects::take_over(daemon, of.number, number);
    }
    let trees = ImportedTrees::default();
    let mut answer = match mounting {
        Some((at, _, reservation)) => {
            let begin = Some(Begin { point, origin: origin.as_ref() });
            let opening = Opening::new(daemon, reservation, repository, &branch, at, begin)?;
            call.cancel.check()?;
            let answer = calls::keep(daemon, opening, &branch, trees, None, true)?;
            steps.done("mount");
            answer
        }
        None => answer(daemon, branch, trees)?,
    };
    calls::add_notes(&mut answer, notes);
    made.keep();
    Ok(answer)
}

fn answer(daemon: &Arc<Daemon>, branch: Branch, trees: ImportedTrees) -> Result<Answer> {
    let opened = calls::describe(daemon, &branch, None, None)?;
    let undo = {
        let (daemon, branch) = (Arc::clone(daemon), branch.clone());
        move || {
            let _names = daemon.lock_names();
            // It may have another name by now.
            let known = daemon.store.branch(&branch.repository, &branch.name);
            let undone = known.map_err(Failure::from).and_then(|known| match known {
                Some(known) if known.number == branch.number => remove(&daemon, &branch, false),
                _ => Ok(()),
            });
            if let Err(failure) = undone {
                warn!("cannot undo a branch: {failure}");
            }
        }
    };
    calls::answer(daemon, &branch, trees, opened, false, undo)
}

/// What has been made of a branch so far. Dropping it removes that.
struct Made<'a> {
    daemon: &'a Daemon,
    git: &'a Repository,
    repository: &'a str,
    name: &'a str,
    commit: Option<GitOid>,
    git_dir: Option<PathBuf>,
    /// What is on record, with where it is mounted.
    recorded: Option<(Branch, Option<PathBuf>)>,
    /// For the case that the daemon is killed.
    note: Note,
}

impl<'a> Made<'a> {
    /// Makes a branch of git at `commit`, if there is one, with a log if it is to be `logged`.
    fn branch(
        daemon: &'a Daemon,
        git: &'a Repository,
        repository: &'a str,
        name: &'a str,
        commit: Option<GitOid>,
        logged: bool,
    ) -> Result<Self> {
        let making = Self::making(repository, name, commit, None);
        let note = Note::write(&daemon.layout, &making)?;
        if let Some(commit) = &commit {
            names::begin(git, name, commit, logged)?;
        }
        Ok(Self { daemon, git, repository, name, commit, git_dir: None, recorded: None, note })
    }

    fn making(
        repository: &str,
        name: &str,
        commit: Option<GitOid>,
        git_dir: Option<&Path>,
    ) -> Making {
        Making::Branch {
            repository: repository.into(),
            name: name.into(),
            commit: commit.map(|commit| commit.to_string()),
            git_dir: git_dir.map(Into::into),
        }
    }

    fn git_dir_is(&mut self, git_dir: &Path) -> Result<()> {
        self.git_dir = Some(git_dir.to_owned());
        let making = Self::making(self.repository, self.name, self.commit, Some(git_dir));
        self.note.amend(&making)
    }

    fn keep(mut self) {
        (self.commit, self.git_dir, self.recorded) = (None, None, None);
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        let mut undone = Ok(());
        if let Some((branch, dir)) = self.recorded.take() {
            undone = undone.and(drop_branch(self.daemon, &branch, dir.as_deref()));
        }
        if let Some(git_dir) = self.git_dir.take() {
            undone = undone.and(gitdir::remove(&git_dir).map_err(Failure::from));
        }
        if let Some(commit) = self.commit.take() {
            let name = format!("refs/heads/{}", self.name);
            undone = undone.and(self.git.remove_reference(&name, &commit).map_err(Failure::from));
        }
        if let Err(failure) = undone {
            warn!("cannot undo branch {}: {failure}", self.name);
        }
    }
}

/// Takes a branch off the record, with what only it has in the store, and the worktree at `dir`.
fn drop_branch(daemon: &Daemon, branch: &Branch, dir: Option<&Path>) -> Result<()> {
    daemon.ingest.cancel(&branch.repository, &branch.name);
    let mut batch = daemon.store.batch()?;
    if let Some(dir) = dir {
        batch.remove_worktree(dir);
    }
    batch.remove_branch(&branch.repository, &branch.name);
    batch.remove_head(branch.number);
    batch.sweep_layers()?;
    batch.commit()?;
    redirects::forget(daemon, branch.number)?;
    let outbox = daemon.layout.outbox(branch.number);
    remove_all(&outbox).map_err(|error| Failure::store_io("remove", &outbox, &error))
}

/// Removes a branch from the store, with its git directory, and from git unless `keeps_git`. The next
/// daemon completes it for one that is killed at it.
fn remove(daemon: &Daemon, branch: &Branch, keeps_git: bool) -> Result<()> {
    let repository = daemon.repositories.get(&daemon.store, &branch.repository)?;
    let git = repository.git_as_it_is()?;
    let full = format!("refs/heads/{}", branch.name);
    let tip = match !keeps_git && !branch.detached && git.has_branch(&branch.name)? {
        true => Some(git.resolve(&full)?.id),
        false => None,
    };
    let git_dir = branch.git_dir();
    let making = Made::making(&branch.repository, &branch.name, tip, git_dir);
    let _note = Note::write(&daemon.layout, &making)?;
    drop_branch(daemon, branch, None)?;
    git_dir.map_or(Ok(()), gitdir::remove)?;
    if let Some(tip) = tip {
        git.remove_reference(&full, &tip)?;
    }
    Ok(())
}

/// Removes a branch, also in git. All of it is kept as a snapshot.
///
/// # Errors
/// [`Kind::Busy`] if it is mounted, [`Kind::Refused`] if the repository's HEAD is on it.
pub fn delete(daemon: &Daemon, params: &BranchDeleteCall) -> Result<BranchDeleted> {
    let _names = daemon.lock_names();
    let hint =
        "`agentfs branch list` lists them; a branch of git alone is removed with `git branch -d`";
    let (repository, branch) = target::recorded(daemon, &params.branch, hint)?;
    let name = repository.record.name.clone();
    if Target::of_head(&*repository.git_as_it_is()?)?.branch.as_ref() == Some(&branch.name) {
        return Err(Failure::new(
            Kind::Refused,
            format!("{} is the branch that HEAD of {name} is on", branch.name),
        )
        .hint("`git symbolic-ref HEAD` in the repository says so and changes it"));
    }
    if let Some(dir) = daemon.worktrees.holder_of(&name, &branch.name) {
        let dir = dir.display();
        return Err(Failure::new(Kind::Busy, format!("{} is mounted at {dir}", branch.name))
            .hint(format!("unmount it first, with `agentfs umount {dir}`")));
    }
    let branch = git_states::unshare(daemon, &repository, branch)?;
    let snapshot = snapshots::take(daemon, &repository, &branch, SnapshotReason::Removed, "")?;
    remove(daemon, &branch, false)?;
    Ok(BranchDeleted {
        repository: name,
        branch: branch.name.clone(),
        snapshot: snapshots::id(snapshot.number),
        kept_until: keeper::kept_until(snapshot.made.seconds),
    })
}

/// Removes the worktree at a directory, and what it differs by from its commit; git's branch stays. What
/// was different is kept as a snapshot.
///
/// # Errors
/// As [`calls::umount`]; the worktree then stays, or is unmounted with all its changes.
pub fn remove_worktree(daemon: &Daemon, params: &WorktreeRemoveCall) -> Result<WorktreeRemoved> {
    let dir = &params.dir.0;
    let record = daemon.store.worktree(dir)?;
    let umount = UmountCall { dir: Some(params.dir.clone()), lazy: false };
    calls::umount(daemon, &umount).map_err(Failure::leave_first)?;
    let (repository, name) = match record {
        Some(WorktreeRecord { repository, branch, .. }) => (repository, branch),
        None => (String::new(), String::new()),
    };
    let _names = daemon.lock_names();
    let kept = daemon.store.branch(&repository, &name)?.filter(|branch| branch.git.is_some());
    let (mut snapshot, mut kept_until) = (None, None);
    if let Some(branch) = kept {
        let open = daemon.repositories.get(&daemon.store, &repository)?;
        let branch = git_states::unshare(daemon, &open, branch)?;
        let reason = SnapshotReason::Before;
        let taken = snapshots::take(daemon, &open, &branch, reason, "before worktree remove")?;
        snapshot = Some(snapshots::id(taken.number));
        // It is the last one of its branch, which is never thinned before its time.
        kept_until = Some(keeper::kept_until(taken.made.seconds));
        remove(daemon, &branch, true)?;
    }
    // It stays if somebody has put something into it.
    fs::remove_dir(dir).ok();
    Ok(WorktreeRemoved { dir: params.dir.clone(), repository, branch: name, snapshot, kept_until })
}

/// Brings a branch back that was removed, under its name.
///
/// # Errors
/// [`Kind::NotFound`] if none of that name was removed; as [`create`].
pub fn undelete(daemon: &Arc<Daemon>, params: &UndeleteCall, call: &Call) -> Result<Answer> {
    let mut removed = snapshots::of_branch(daemon, &params.branch)?;
    removed.retain(|snapshot| snapshot.reason == SnapshotReason::Removed);
    let Some(last) = removed.into_iter().max_by_key(|snapshot| snapshot.number) else {
        let name = snapshots::split(&params.branch).1;
        return Err(Failure::new(Kind::NotFound, format!("no branch {name:?} was removed"))
            .hint("`agentfs snapshot list` lists what is kept of removed branches"));
    };
    let create = BranchCreateCall {
        name: last.name.clone(),
        from: snapshots::id(last.number),
        mount: params.mount.clone(),
        takes_over: true,
        ..BranchCreateCall::default()
    };
    create_and_forget(daemon, &create, &last, call)
}

fn create_and_forget(
    daemon: &Arc<Daemon>,
    params: &BranchCreateCall,
    snapshot: &SnapshotRecord,
    call: &Call,
) -> Result<Answer> {
    let mut answer = create(daemon, params, call)?;
    let after = answer.after.take();
    let (daemon, snapshot) = (Arc::clone(daemon), snapshot.clone());
    answer.after = Some(Box::new(move || {
        if let Some(after) = after {
            after();
        }
        let _names = daemon.lock_names();
        if let Err(failure) = snapshots::forget(&daemon, &snapshot) {
            warn!("cannot remove a snapshot that is not needed: {failure}");
        }
    }));
    Ok(answer)
}
