//! The calls that change something: clone, attach, mount, umount.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agentfs_engine::store::{self, Branch, KeptGit, WorktreeRecord};
use agentfs_gitimport::repository::Repository;
use agentfs_gitimport::walk::ImportedTrees;
use agentfs_gitimport::{attach, fetch, gitdir};
use serde_json::Value;
use tracing::warn;

use crate::daemon::changed;
use crate::daemon::git_states;
use crate::daemon::note::{Making, Note};
use crate::daemon::opening::{Cold, MOUNT, Opening};
use crate::daemon::redirects;
use crate::daemon::report;
use crate::daemon::repositories::{OpenRepository, name_of, unique};
use crate::daemon::rpc::{Answer, Call, Wait};
use crate::daemon::state::Daemon;
use crate::daemon::target::{self, Target};
use crate::destination;
use crate::error::{Failure, Kind, Result};
use crate::incoming::{self, Incoming};
use crate::layout::remove_all;
use crate::monitor;
use crate::protocol::{AttachCall, CloneCall, MountCall, Opened, UmountCall, Unmounted, WirePath};

/// A repository that has been moved into its place and is not on record yet. Dropping it removes it.
struct Adopted {
    path: PathBuf,
    kept: bool,
    _note: Note,
}

impl Drop for Adopted {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = remove_all(&self.path)
        {
            warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Takes a repository in and mounts it if asked.
///
/// # Errors
/// Whatever keeps it from being taken in or mounted; nothing is left then.
pub fn clone(daemon: &Arc<Daemon>, params: &CloneCall, call: &Call) -> Result<Answer> {
    if params.branch.is_some() && params.rev.is_some() {
        return Err(Failure::new(Kind::Usage, "a branch and a revision exclude each other"));
    }
    if let Some(at) = &params.mount {
        destination::check(&at.dir.0, daemon.root())?;
    }
    let mut steps = daemon.laps.begin("clone");
    let fetched;
    let incoming = match &params.incoming {
        Some(name) => incoming::find(&daemon.layout, name)?,
        None => {
            fetched = Incoming::create(&daemon.layout)?;
            let options =
                fetch::CloneOptions { branch: params.branch.clone(), rev: params.rev.clone() };
            let (meter, into) = (call.meter.as_ref(), fetched.repository());
            fetch::clone_bare(&params.source, &into, &options, meter, &call.cancel)?;
            steps.done("fetch");
            into
        }
    };
    let (mut adopted, name) = adopt(daemon, &incoming, &params.source)?;
    let origin = Some(params.source.clone());
    let repository = open(daemon, name, adopted.path.clone(), origin, false)?;
    let target = match &params.rev {
        Some(rev) => Target { branch: None, ..Target::of_revision(daemon, &repository, rev)? },
        None => Target::of_head(&*repository.git()?)?,
    };
    steps.done("repository");
    // Until what is imported is on record.
    let _hold = daemon.store.hold();
    let (root, trees) = target::import(daemon, &repository, &target, call)?;
    steps.done("trees");
    let branch = target::branch(daemon, &repository, &target, root)?;
    call.cancel.check()?;
    if entries(daemon, &branch)? >= monitor::ENTRIES_MIN {
        monitor::configure(&adopted.path, &daemon.layout)?;
    }
    let opening = match &params.mount {
        Some(at) => {
            let reservation = daemon.worktrees.reserve(&at.dir.0, &branch)?;
            Some(Opening::new(daemon, reservation, &repository, &branch, at, None)?)
        }
        None => None,
    };
    call.cancel.check()?;
    steps.skip();
    let worktree = opening.as_ref().and_then(|opening| opening.record()).cloned();
    let mut batch = daemon.store.batch()?;
    batch.put_repository(&repository.record);
    batch.put_branch(&branch);
    worktree.iter().for_each(|worktree| batch.put_worktree(worktree));
    batch.commit()?;
    steps.done("record");
    adopted.kept = true;
    daemon.repositories.insert(&repository);
    let created = opening.as_ref().is_some_and(Opening::created);
    let notes = opening.as_ref().map(Opening::notes).unwrap_or_default();
    if let Some(cold) = opening.and_then(|opening| opening.keep(daemon, true)) {
        cold.warm();
    }
    let mut opened = describe(daemon, &branch, worktree.as_ref(), target.note)?;
    opened.notes.extend(notes);
    let undo = {
        let (daemon, branch) = (Arc::clone(daemon), branch.clone());
        move || undo_clone(&daemon, &branch, worktree.as_ref(), created)
    };
    answer(daemon, &branch, trees, opened, params.wait, undo)
}

/// Moves a fetched repository to its place under a name that is free.
fn adopt(daemon: &Daemon, incoming: &Path, source: &str) -> Result<(Adopted, String)> {
    let _names = daemon.lock_names();
    let name = daemon.free_repository_name(source)?;
    let note = Note::write(&daemon.layout, &Making::Repository(name.clone()))?;
    let path = daemon.layout.repositories().join(&name);
    fs::rename(incoming, &path).map_err(|error| Failure::store_io("create", &path, &error))?;
    Ok((Adopted { path, kept: false, _note: note }, name))
}

fn open(
    daemon: &Daemon,
    name: String,
    git_dir: PathBuf,
    origin: Option<String>,
    attached: bool,
) -> Result<Arc<OpenRepository>> {
    let hash = Repository::open(&git_dir)?.hash();
    let record = store::Repository { name, git_dir, origin, hash, attached };
    Ok(OpenRepository::new(&daemon.store, record))
}

fn undo_clone(daemon: &Daemon, branch: &Branch, worktree: Option<&WorktreeRecord>, created: bool) {
    daemon.ingest.cancel(&branch.repository, &branch.name);
    if let Some(worktree) = worktree
        && let Err(failure) = undo_mount(daemon, &worktree.dir, created)
    {
        warn!("cannot undo a clone: {failure}");
        return;
    }
    let removed = daemon.store.batch().and_then(|mut batch| {
        batch.remove_branch(&branch.repository, &branch.name);
        batch.remove_repository(&branch.repository);
        batch.commit()
    });
    daemon.repositories.remove(&branch.repository);
    let path = daemon.layout.repositories().join(&branch.repository);
    let removed = removed.map_err(Failure::from).and_then(|()| {
        remove_all(&path).map_err(|error| Failure::store_io("remove", &path, &error))
    });
    if let Err(failure) = removed {
        warn!("cannot undo a clone: {failure}");
    }
}

/// Takes an existing repository in where it is; one that is on record already is found again.
///
/// # Errors
/// As [`clone()`].
pub fn attach(daemon: &Arc<Daemon>, params: &AttachCall, call: &Call) -> Result<Answer> {
    let git_dir = attach::attach(&params.path.0)?;
    let (repository, new) = {
        let _names = daemon.lock_names();
        let known = daemon.store.repositories()?.into_iter().find(|one| one.git_dir == git_dir);
        match known {
            Some(known) => (daemon.repositories.get(&daemon.store, &known.name)?, false),
            None => {
                let shown = git_dir.to_string_lossy();
                let name = unique(&name_of(&shown), |name| {
                    let taken = daemon.layout.repositories().join(name).exists();
                    Ok(taken || daemon.store.repository(name)?.is_some())
                })?;
                let repository = open(daemon, name, git_dir, None, true)?;
                let mut batch = daemon.store.batch()?;
                batch.put_repository(&repository.record);
                batch.commit()?;
                daemon.repositories.insert(&repository);
                (repository, true)
            }
        }
    };
    let imported = attach_head(daemon, &repository, call);
    let forget = {
        let (daemon, name) = (Arc::clone(daemon), repository.record.name.clone());
        move |branch: Option<&str>| {
            if !new {
                return;
            }
            let removed = daemon.store.batch().and_then(|mut batch| {
                branch.iter().for_each(|branch| batch.remove_branch(&name, branch));
                batch.remove_repository(&name);
                batch.commit()
            });
            daemon.repositories.remove(&name);
            if let Err(error) = removed {
                warn!("cannot undo an attachment: {error}");
            }
        }
    };
    let (branch, note, trees) = imported.inspect_err(|_| forget(None))?;
    let opened = describe(daemon, &branch, None, note)?;
    let name = branch.name.clone();
    answer(daemon, &branch, trees, opened, params.wait, move || forget(Some(&name)))
}

fn attach_head(
    daemon: &Daemon,
    repository: &OpenRepository,
    call: &Call,
) -> Result<(Branch, Option<String>, ImportedTrees)> {
    let target = Target::of_head(&*repository.git_as_it_is()?)?;
    // Until what is imported is on record.
    let _hold = daemon.store.hold();
    let (root, trees) = target::import(daemon, repository, &target, call)?;
    let _names = daemon.lock_names();
    let branch = target::branch(daemon, repository, &target, root)?;
    let mut batch = daemon.store.batch()?;
    batch.put_branch(&branch);
    batch.commit()?;
    Ok((branch, target.note, trees))
}

/// Mounts a branch or a revision. One that is not `recorded` does not come back after a restart.
///
/// # Errors
/// Whatever keeps it from being mounted; nothing is left then.
pub fn mount(
    daemon: &Arc<Daemon>,
    params: &MountCall,
    call: &Call,
    recorded: bool,
) -> Result<Answer> {
    destination::check(&params.at.dir.0, daemon.root())?;
    mount_at(daemon, params, call, recorded)
}

/// The same at a directory that the daemon may have chosen.
///
/// # Errors
/// As [`mount`].
pub fn mount_at(
    daemon: &Arc<Daemon>,
    params: &MountCall,
    call: &Call,
    recorded: bool,
) -> Result<Answer> {
    let mut steps = daemon.laps.begin(MOUNT);
    // Until what is imported is on record.
    let _hold = daemon.store.hold();
    let MountCall { what, at, exclusive } = params;
    let (name, revision) = target::parse(daemon, what)?;
    let repository = daemon.repositories.get(&daemon.store, &name)?;
    let kept = {
        // Until it has a place it must keep its name.
        let _names = daemon.lock_names();
        let kept = target::kept(daemon, &name, &revision)?;
        let kept =
            kept.map(|branch| git_states::unshare(daemon, &repository, branch)).transpose()?;
        let place = |branch: &Branch| daemon.worktrees.reserve(&at.dir.0, branch);
        kept.map(|branch| Ok::<_, Failure>((place(&branch)?, branch))).transpose()?
    };
    let (branch, reservation, trees, note) = match kept {
        Some((reservation, branch)) => (branch, reservation, ImportedTrees::default(), None),
        None => {
            let mut target = Target::of_revision(daemon, &repository, &revision)?;
            let (root, trees) = target::import(daemon, &repository, &target, call)?;
            let _names = daemon.lock_names();
            let held = target::detach_if_held(daemon, &repository, &mut target)?;
            if let Some(holder) = held.filter(|_| *exclusive) {
                let message = format!("{revision} is checked out at {}", holder.display());
                return Err(Failure::new(Kind::Refused, message)
                    .hint("begin a branch of its own, or mount its commit"));
            }
            let branch = target::branch(daemon, &repository, &target, root)?;
            let reservation = daemon.worktrees.reserve(&at.dir.0, &branch)?;
            (branch, reservation, trees, target.note)
        }
    };
    steps.done("branch");
    let opening = Opening::new(daemon, reservation, &repository, &branch, at, None)?;
    call.cancel.check()?;
    steps.skip();
    let worktree = opening.record().cloned();
    let mut batch = daemon.store.batch()?;
    batch.put_branch(&branch);
    worktree.iter().filter(|_| recorded).for_each(|worktree| batch.put_worktree(worktree));
    batch.commit()?;
    steps.done("record");
    keep(daemon, opening, &branch, trees, note, recorded)
}

/// Keeps the mount of a branch, which is on record if that is to be so, and answers.
///
/// # Errors
/// What reading the store meets.
pub fn keep(
    daemon: &Arc<Daemon>,
    opening: Opening<'_>,
    branch: &Branch,
    trees: ImportedTrees,
    note: Option<String>,
    recorded: bool,
) -> Result<Answer> {
    let worktree = opening.record().cloned();
    let created = opening.created();
    let notes = opening.notes();
    let cold = opening.keep(daemon, recorded);
    let mut opened = describe(daemon, branch, worktree.as_ref(), note)?;
    opened.notes.extend(notes);
    let undo = {
        let daemon = Arc::clone(daemon);
        move || {
            let dir = worktree.map(|worktree| worktree.dir).unwrap_or_default();
            if let Err(failure) = undo_mount(&daemon, &dir, created) {
                warn!("cannot undo a mount: {failure}");
            }
        }
    };
    let mut answer = answer(daemon, branch, trees, opened, false, undo)?;
    let after = answer.after.take();
    answer.after = Some(Box::new(move || {
        // The processors are the client's until it has its answer.
        cold.into_iter().for_each(Cold::warm);
        after.into_iter().for_each(|after| after());
    }));
    Ok(answer)
}

fn undo_mount(daemon: &Daemon, dir: &Path, created: bool) -> Result<()> {
    close(daemon, dir, true)?;
    if created {
        // It stays if somebody has put something into it.
        fs::remove_dir(dir).ok();
    }
    Ok(())
}

/// Unmounts one worktree or all, for good.
///
/// # Errors
/// As [`Worktrees::close`](crate::daemon::worktrees::Worktrees::close). Of several, those that can
/// be unmounted are.
pub fn umount(daemon: &Daemon, params: &UmountCall) -> Result<Unmounted> {
    let dirs = match &params.dir {
        Some(dir) => vec![dir.0.clone()],
        None => daemon.worktrees.list().into_iter().map(|(dir, _)| dir).collect(),
    };
    let mut failures = Vec::new();
    let mut unmounted = Vec::new();
    for dir in dirs {
        // In this order: one that has ended since is gone.
        let ends = |dir| daemon.execs.is_ending(dir) || daemon.worktrees.get(dir).is_none();
        match close(daemon, &dir, params.lazy) {
            Ok(()) => unmounted.push(WirePath(dir)),
            // Somebody else is unmounting it.
            Err(_) if params.dir.is_none() && ends(&dir) => {}
            Err(failure) => failures.push(failure),
        }
    }
    let more = failures.len().saturating_sub(1);
    match failures.into_iter().next() {
        None => Ok(Unmounted { dirs: unmounted }),
        Some(first) if more == 0 => Err(first),
        Some(first) => Err(Failure {
            message: format!("{}; and {more} more could not be unmounted", first.message),
            ..first
        }),
    }
}

/// Unmounts a worktree and takes it off the record. A branch with changes, or with somebody in it who
/// may still make some, keeps them, and its git directory, for the next time; one that has none leaves nothing but a git branch.
///
/// # Errors
/// [`Kind::Busy`] if commands run in it.
fn close(daemon: &Daemon, dir: &Path, lazy: bool) -> Result<()> {
    let _unused = daemon.execs.refuse_close(dir)?;
    close_unused(daemon, dir, lazy)
}

/// The same for a worktree in which no command can be begun any more.
///
/// # Errors
/// As [`umount`].
pub fn close_unused(daemon: &Daemon, dir: &Path, lazy: bool) -> Result<()> {
    close_for(daemon, dir, lazy, None)
}

/// The same if nobody is in it, with what is mounted there next on record in its place.
///
/// # Errors
/// As [`umount`].
pub fn replace(daemon: &Daemon, dir: &Path, next: &WorktreeRecord) -> Result<()> {
    close_for(daemon, dir, false, Some(next))
}

fn close_for(daemon: &Daemon, dir: &Path, lazy: bool, next: Option<&WorktreeRecord>) -> Result<()> {
    let closing = daemon.worktrees.close(dir, lazy)?;
    let WorktreeRecord { repository, branch: name, git_dir, .. } = &closing.record;
    let branch = daemon.store.branch(repository, name)?;
    let is_changed = match (&closing.worktree, &branch) {
        // Its native directories go by its number.
        (_, Some(branch)) if redirects::any(&daemon.layout, branch.number) => true,
        (Some(worktree), _) => {
            closing.lives || worktree.state().is_some_and(|state| state.inodes > 0)
        }
        (None, Some(branch)) => {
            daemon.layout.outbox(branch.number).exists()
                || daemon.store.has_changes(branch.number)?
        }
        (None, None) => false,
    };
    if is_changed && let Some(worktree) = &closing.worktree {
        worktree.drain()?;
        if !closing.lives {
            changed::keep(git_dir, worktree);
        }
    }
    if !is_changed {
        gitdir::remove(git_dir)?;
    }
    let mut batch = daemon.store.batch()?;
    if closing.recorded {
        batch.remove_worktree(dir);
    }
    next.into_iter().for_each(|next| batch.put_worktree(next));
    let mut outbox = None;
    match branch {
        Some(branch) if is_changed => {
            let git = Some(KeptGit::Dir(git_dir.clone()));
            batch.put_branch(&Branch { git, ..branch });
        }
        Some(branch) => {
            batch.remove_head(branch.number);
            batch.sweep_layers()?;
            outbox = Some(daemon.layout.outbox(branch.number));
            if branch.detached {
                daemon.ingest.cancel(repository, name);
                batch.remove_branch(repository, name);
            } else {
                // Under another number, so that what a crash leaves of the outbox is nobody's.
                let number = daemon.store.new_branch_number();
                batch.put_branch(&Branch { git: None, number, ..branch });
            }
        }
        None => {}
    }
    batch.commit()?;
    if let Some(outbox) = outbox {
        remove_all(&outbox).map_err(|error| Failure::store_io("remove", &outbox, &error))?;
    }
    Ok(())
}

/// How many files and directories the tree has with which a branch has begun.
fn entries(daemon: &Daemon, branch: &Branch) -> Result<u32> {
    Ok(daemon.store.tree(branch.root)?.subtree(branch.root).descendants)
}

/// What a call has brought about.
///
/// # Errors
/// What reading the store meets.
pub fn describe(
    daemon: &Daemon,
    branch: &Branch,
    worktree: Option<&WorktreeRecord>,
    note: Option<String>,
) -> Result<Opened> {
    let git_dir = worktree.map(|worktree| worktree.git_dir.as_path());
    Ok(Opened {
        repository: branch.repository.clone(),
        branch: branch.name.clone(),
        commit: report::commit_of(daemon, branch, git_dir.or(branch.git_dir())),
        detached: branch.detached,
        entries: u64::from(entries(daemon, branch)?),
        dir: worktree.map(|worktree| worktree.dir.as_path().into()),
        read_only: worktree.is_some_and(|worktree| worktree.read_only),
        ingested: branch.ingested,
        notes: note.into_iter().collect(),
    })
}

/// Adds to an answer what the user should know besides.
pub fn add_notes(answer: &mut Answer, notes: Vec<String>) {
    if notes.is_empty() {
        return;
    }
    if let Value::Object(opened) = &mut answer.value
        && let Value::Array(known) =
            opened.entry("notes").or_insert_with(|| Value::Array(Vec::new()))
    {
        known.extend(notes.into_iter().map(Value::String));
    }
}

/// The answer of a call that has made `branch` usable: its content is taken in, and what git keeps of
/// it made durable, before it is sent, if the client waits for that, or after it.
pub fn answer(
    daemon: &Arc<Daemon>,
    branch: &Branch,
    trees: ImportedTrees,
    mut opened: Opened,
    wait: bool,
    undo: impl FnOnce() + Send + 'static,
) -> Result<Answer> {
    let mut answer = Answer::from(Value::Null);
    answer.undo = Some(Box::new(undo));
    if wait && !branch.ingested {
        let job = daemon.ingest.enqueue(branch, trees);
        opened.ingested = true;
        answer.wait = Some(Wait { meter: Arc::clone(&job.meter), end: Box::pin(job.ended()) });
    } else {
        let (daemon, branch) = (Arc::clone(daemon), branch.clone());
        answer.after = Some(Box::new(move || {
            daemon.ingest.enqueue(&branch, trees);
        }));
    }
    answer.value = serde_json::to_value(opened).unwrap_or_default();
    Ok(answer)
}
