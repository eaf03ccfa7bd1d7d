//! Moving a worktree to another commit under its mount.
//!
//! What differs is worked out and taken into the store first; a snapshot is made; then the files change at
//! once (`Worktree::edit`), the kernel forgets what differs, and git's `HEAD` and index follow. A note names
//! the layer that begins with the change, so that the next daemon knows whether the files were changed, and
//! completes the rest or takes it back.

mod refusals;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use agentfs_engine::base::Base;
use agentfs_engine::store::{Branch, Hold, SnapshotReason, SnapshotRecord, WorktreeRecord};
use agentfs_engine::tree::{Entry, EntryKind};
use agentfs_engine::worktree::{Attributes, Become, Edit, Edited, Worktree};
use agentfs_engine::{Ino, LayerNumber, TreeId};
use agentfs_gitimport::pipeline;
use agentfs_gitimport::repository::Repository;
use agentfs_gitimport::switch::{self, At, Goal, Locked, Place, Plain, Plan, Settings, Step, Way};
use tracing::{info, warn};

use crate::daemon::branches::Opened;
use crate::daemon::laps::Steps;
use crate::daemon::note::{self, Making, Note, Switching};
use crate::daemon::repositories::OpenRepository;
use crate::daemon::rpc::Call;
use crate::daemon::snapshots::{self, forget_in_kernel};
use crate::daemon::state::Daemon;
use crate::daemon::target::{self, Target};
use crate::daemon::worktrees::{Slot, Up, busy, unknown};
use crate::daemon::{opening, redirects, show};
use crate::error::{Failure, Kind, Result};
use crate::protocol::{SnapshotRestoreCall, SwitchCall, SwitchMeans, Switched};

use self::refusals::{not_empty, refused, shown};

/// What its steps are counted as.
const STEPS: &str = "switch";
/// How often a move is worked out anew because files have changed meanwhile.
const ATTEMPTS: u32 = 5;
/// How often, and with which pause, `HEAD` is tried to be moved while another process has its lock.
const HEAD_ATTEMPTS: u32 = 20;
const HEAD_PAUSE: Duration = Duration::from_millis(100);

/// A worktree on its way.
struct Move<'a> {
    daemon: &'a Daemon,
    repository: Arc<OpenRepository>,
    git: Arc<Repository>,
    settings: Settings,
    up: Arc<Up>,
    branch: Branch,
    goal: Goal,
    discard: bool,
    call: &'a Call,
}

/// What a move has come to.
struct Moved {
    before: String,
    from: At,
    paths: usize,
    /// Why something of the branch that is redirected does not appear.
    notes: Vec<String>,
}

/// A change that was made and is not drained. Until it is, nothing but the outbox and this process names its chunks,
/// and the note has the next daemon see to it. All that was promised is on stable storage: nobody waits for the rest.
struct Settling {
    worktree: Arc<Worktree>,
    note: Option<Note>,
    _hold: Hold,
}

impl Settling {
    /// Has a thread do it.
    fn begin(self) {
        // Without a thread it is dropped here, and that does it as well.
        drop(thread::Builder::new().name("agentfs-settle".into()).spawn(move || drop(self)));
    }
}

impl Drop for Settling {
    fn drop(&mut self) {
        if let Err(error) = self.worktree.drain() {
            warn!("cannot drain what a switch has changed: {error}");
            // The next daemon sees to it.
            std::mem::forget(self.note.take());
        }
    }
}

/// Moves a worktree.
///
/// # Errors
/// [`Kind::NotFound`] if there is no such worktree or revision, [`Kind::Refused`] where git would refuse,
/// [`Kind::Busy`] if git is at work in it; what the store, the outbox and git meet. Everything is as before then.
pub fn switch(daemon: &Daemon, params: &SwitchCall, call: &Call) -> Result<Switched> {
    let mut steps = daemon.laps.begin(STEPS);
    let dir = &params.dir.0;
    let up = mounted(daemon, dir)?;
    let WorktreeRecord { repository, branch, git_dir, .. } = &up.record;
    let repository = daemon.repositories.get(&daemon.store, repository)?;
    let branch = daemon.store.branch(&up.record.repository, branch)?.ok_or_else(|| {
        let message = format!("branch {branch} of {} is not on record", dir.display());
        Failure::new(Kind::Damaged, message).hint("`agentfs fsck` says what is wrong")
    })?;
    if let Some(other) = other_branch(daemon, dir, &branch, params)? {
        return show::show(daemon, &up, &other);
    }
    let git = repository.git_as_it_is()?;
    refuse_in_progress(dir, git_dir)?;
    let settings = Settings::of(git_dir)?;
    if settings.is_sparse(&git)? {
        let message = format!("{} shows only a part of its files (sparse checkout)", dir.display());
        return Err(Failure::new(Kind::Refused, message)
            .hint("use `git switch` in it, or `git sparse-checkout disable` first"));
    }
    let goal = Goal::of(&git, git_dir, &params.what)?;
    refuse_checked_out(&git, git_dir, &goal)?;
    let moving = Move {
        daemon,
        repository: Arc::clone(&repository),
        git,
        settings,
        up: Arc::clone(&up),
        branch,
        goal,
        discard: params.discard,
        call,
    };
    steps.done("understand");
    let moved = moving.run(&mut steps)?;
    let Goal { commit, branch: on, is_remote, .. } = &moving.goal;
    let note = is_remote.then(|| {
        format!("{} is a branch of the remote only: HEAD is detached at its commit", params.what)
    });
    Ok(Switched {
        dir: params.dir.clone(),
        repository: moving.branch.repository.clone(),
        branch: moving.branch.name.clone(),
        from: moved.from.commit.map(|commit| commit.id.to_string()),
        commit: commit.id.to_string(),
        head: on.clone(),
        paths: moved.paths as u64,
        before: Some(moved.before),
        left: None,
        notes: note.into_iter().chain(moved.notes).collect(),
    })
}

/// The worktree at a directory, which is mounted and writable.
fn mounted(daemon: &Daemon, dir: &Path) -> Result<Arc<Up>> {
    let shown = dir.display();
    let refuse = |why: &str, hint: String| {
        Err(Failure::new(Kind::Refused, format!("{shown} {why}")).hint(hint))
    };
    match daemon.worktrees.get(dir) {
        Some(Slot::Up(up)) if up.worktree.is_read_only() => {
            let hint =
                format!("mount it again without --read-only: `agentfs umount {shown}` first");
            refuse("is mounted read-only", hint)
        }
        Some(Slot::Up(up)) if up.mounted.is_alive() => Ok(up),
        Some(Slot::Up(_) | Slot::Down(..)) => refuse(
            "is not mounted",
            format!("`agentfs umount {shown}` forgets it, `agentfs mount` brings it back"),
        ),
        Some(Slot::Busy(..)) => Err(busy(dir)),
        None => Err(unknown(dir)),
    }
}

/// The other branch that agentfs has, with files of its own, if that is meant. One that is mounted is refused.
fn other_branch(
    daemon: &Daemon,
    dir: &Path,
    own: &Branch,
    params: &SwitchCall,
) -> Result<Option<Branch>> {
    let what = &params.what;
    if params.means == SwitchMeans::Revision {
        return Ok(None);
    }
    let named = match what.split_once('@') {
        Some((repository, name)) if repository == own.repository => name,
        _ => what,
    };
    let branch = daemon.store.branch(&own.repository, named)?;
    let by_name = params.means == SwitchMeans::Branch;
    let Some(branch) = branch.filter(|branch| by_name || branch.number != own.number) else {
        if by_name {
            let message = format!("{what:?} is no branch of {} that agentfs has", own.repository);
            return Err(Failure::new(Kind::NotFound, message)
                .hint("`agentfs branch list` lists them; --rev takes a revision of git"));
        }
        return Ok(None);
    };
    let shown = dir.display();
    if branch.number == own.number {
        let message = format!("{shown} shows branch {named} already");
        return Err(Failure::new(Kind::Refused, message)
            .hint(format!("`agentfs switch {shown} --rev {named}` moves it to git's branch")));
    }
    if let Some(holder) = daemon.worktrees.holder_of(&branch.repository, &branch.name) {
        let message =
            format!("{named} is a branch with files of its own, mounted at {}", holder.display());
        return Err(Failure::new(Kind::Refused, message).hint(format!(
            "work there; or `agentfs switch {shown} --rev {named}~0` takes what is committed in it"
        )));
    }
    // One without is nothing but its commit.
    Ok(branch.git.is_some().then_some(branch))
}

fn refuse_in_progress(dir: &Path, git_dir: &Path) -> Result<()> {
    let Some(what) = switch::in_progress(git_dir) else { return Ok(()) };
    let message = format!("a {what} is in progress in {}", dir.display());
    Err(Failure::new(Kind::Refused, message).hint(format!(
        "end it there with `git {what} --continue`, `--abort` or `--quit`, then switch again"
    )))
}

/// Refuses a branch of git that another worktree is on: whoever commits in one of the two changes the other.
fn refuse_checked_out(git: &Repository, git_dir: &Path, goal: &Goal) -> Result<()> {
    let Some(name) = &goal.branch else { return Ok(()) };
    let Some(holder) = git.checkout_beside(name, git_dir) else { return Ok(()) };
    let message = format!("{name} is checked out at {} already", holder.display());
    Err(Failure::new(Kind::Refused, message)
        .hint(format!("`{name}~0` is its commit, with HEAD detached")))
}

impl Move<'_> {
    fn run(&self, done: &mut Steps<'_>) -> Result<Moved> {
        let mut attempt = 1;
        loop {
            match self.attempt(done)? {
                Ok(moved) => return Ok(moved),
                Err(path) if attempt == ATTEMPTS => {
                    let (path, dir) = (shown(&path), self.up.record.dir.display());
                    let message = format!("{path} of {dir} changes all the time");
                    return Err(Failure::new(Kind::Busy, message)
                        .hint("wait until what writes there has ended, then switch again"));
                }
                Err(_) => attempt += 1,
            }
        }
    }

    /// One attempt; the path that was changed meanwhile if it has failed for that.
    fn attempt(&self, done: &mut Steps<'_>) -> Result<Result<Moved, Vec<u8>>> {
        let WorktreeRecord { dir, git_dir, .. } = &self.up.record;
        let layer = self.daemon.store.new_layer_number();
        // Before the lock of git can be seen.
        let note = Note::write(&self.daemon.layout, &self.making(layer, None))?;
        let Some(mut locked) = Locked::new(git_dir, self.git.hash(), layer.0)? else {
            let lock = git_dir.join("index.lock");
            let message = format!("a git process is at work in {}", dir.display());
            return Err(Failure::new(Kind::Busy, message).hint(format!(
                "switch again when it has ended; one that was killed has left {}",
                lock.display()
            )));
        };
        refuse_in_progress(dir, git_dir)?;
        let from = At::of(&self.git, git_dir)?;
        let tree = from.commit.map_or_else(|| self.git.odb().empty_tree(), |commit| commit.tree);
        let worktree = &self.up.worktree;
        let (repository, settings) = (&*self.git, &self.settings);
        let place = Place { repository, settings, worktree, dir };
        let plan = locked.plan(place, &tree, &self.goal, self.discard)?;
        let mut plan = plan.map_err(|refusal| refused(dir, &self.goal, &refusal))?;
        self.call.cancel.check()?;
        done.done("plan");
        let (hold, edits) = self.take_in(&plan)?;
        done.done("take in");
        locked.prepare(&plan)?;
        note.amend_durably(&self.making(layer, Some(&from)))?;
        done.done("prepare");
        // From here on it is brought to an end.
        let names = self.daemon.lock_names();
        let held = self.daemon.worktrees.hold(dir)?;
        if !held.is(&self.up) {
            let message = format!("{} was unmounted or renamed meanwhile", dir.display());
            return Err(
                Failure::new(Kind::Busy, message).hint("see `agentfs ps`, then switch again")
            );
        }
        self.refuse_moved()?;
        self.refuse_redirected(&plan)?;
        let before = self.keep()?;
        done.done("keep");
        let (made, difference, unnamed) = match worktree.edit(&edits, self.discard, layer)? {
            Edited::Done { made, difference, unnamed } => (made, difference, unnamed),
            Edited::Changed(path) => {
                snapshots::forget(self.daemon, &before)?;
                return Ok(Err(path));
            }
            Edited::NotEmpty(path) => {
                snapshots::forget(self.daemon, &before)?;
                return Err(not_empty(dir, &path));
            }
        };
        done.done("change");
        let before = snapshots::id(before.number);
        // Both take a while. Only when the kernel has forgotten what the files were, the index says what they are.
        let up = &self.up;
        let tell = || {
            forget_in_kernel(up, &difference);
            unnamed.iter().for_each(|ino| up.mounted.unnamed(*ino));
        };
        let followed = thread::scope(|scope| {
            let told = thread::Builder::new().spawn_scoped(scope, tell);
            let written = self.follow(&locked, &mut plan, &made, &from, layer.0);
            match told {
                Ok(told) => told.join().unwrap_or_else(|panic| resume_unwind(panic)),
                Err(_) => tell(),
            }
            written
        });
        let followed = followed.and_then(|()| Ok(locked.finish()?));
        // Draining takes as long as what others write here is much: nobody else waits for that.
        drop((held, names));
        done.done("have kernel and git follow");
        if let Err(failure) = followed {
            // Until it is back, the next daemon would have to complete it.
            locked.leave();
            let failure = self.go_back(&before, failure);
            switch::forget(git_dir, layer.0)?;
            return Err(failure);
        }
        Settling { worktree: Arc::clone(worktree), note: Some(note), _hold: hold }.begin();
        // Directories in which something appears may have been made anew.
        let (_, notes) = redirects::after_change(self.daemon, self.branch.number, Some(&self.up));
        Ok(Ok(Moved { before, from, paths: plan.steps.len(), notes }))
    }

    /// Refuses a branch that is not any more what it was when the move was begun.
    fn refuse_moved(&self) -> Result<()> {
        let Some(name) = &self.goal.branch else { return Ok(()) };
        refuse_checked_out(&self.git, &self.up.record.git_dir, &self.goal)?;
        if self.git.resolve(&format!("refs/heads/{name}"))?.id == self.goal.commit.id {
            return Ok(());
        }
        Err(Failure::new(Kind::Busy, format!("{name} has got another commit meanwhile"))
            .hint("switch again"))
    }

    /// Refuses to change files where something else is seen, in a directory that is redirected.
    fn refuse_redirected(&self, plan: &Plan) -> Result<()> {
        let redirected = redirects::paths(&self.daemon.layout, self.branch.number)?;
        let meets = |step: &&Step| {
            let path = Path::new(OsStr::from_bytes(&step.path));
            redirected.iter().any(|one| path.starts_with(one) || one.starts_with(path))
        };
        let Some(step) = plan.steps.iter().find(meets) else { return Ok(()) };
        let (path, dir) = (shown(&step.path), self.up.record.dir.display());
        let message = format!(
            "the switch to {} changes {path} of {dir}, where a directory is redirected",
            self.goal.name
        );
        Err(Failure::new(Kind::Refused, message).hint(format!(
            "`agentfs redirect list {dir}` lists them, `agentfs redirect remove` ends one"
        )))
    }

    fn making(&self, layer: LayerNumber, from: Option<&At>) -> Making {
        Making::Switch(Switching {
            branch: self.branch.number.0,
            git_dir: self.up.record.git_dir.as_path().into(),
            layer: layer.0,
            from: from.map(|from| from.text.clone()).unwrap_or_default(),
            head: self.goal.head(),
            message: from.map(|from| self.goal.message(from)).unwrap_or_default(),
        })
    }

    /// Keeps the branch as it is now.
    fn keep(&self) -> Result<SnapshotRecord> {
        let opened = Opened {
            worktree: Arc::clone(&self.up.worktree),
            git_dir: self.up.record.git_dir.clone(),
            up: Some(Arc::clone(&self.up)),
        };
        let message = format!("before the switch to {}", self.goal.name);
        let (reason, repository) = (SnapshotReason::Before, &self.repository);
        let (daemon, branch) = (self.daemon, &self.branch);
        snapshots::take_of(daemon, repository, branch, Some(&opened), reason, &message)
    }

    /// Has the store take in what the steps of `plan` need; what becomes of the files by that. It stays in the
    /// store as long as the hold.
    fn take_in(&self, plan: &Plan) -> Result<(Hold, Vec<Edit>)> {
        let store = &self.daemon.store;
        let hold = store.hold();
        if let Some(edits) = self.taken_in(plan)? {
            return Ok((hold, edits));
        }
        let target = Target { branch: None, commit: Some(self.goal.commit), note: None };
        let (root, _) = target::import(self.daemon, &self.repository, &target, self.call)?;
        let contents = self.repository.contents(Some(self.goal.commit.tree));
        let base = Base::open(Arc::clone(store), contents.source().cloned(), root)?;
        // What it is to show, to read links from.
        let options = opening::options(&self.branch, None);
        let goal = Worktree::new(Arc::clone(&base), contents, options);
        let is_blob = |step: &Step| step.oid.is_some() && !step.is_gitlink;
        let entries = plan
            .steps
            .iter()
            .map(|step| is_blob(step).then(|| entry_of(&base, root, &step.path)).transpose());
        let entries: Vec<_> = entries.collect::<Result<_>>()?;
        let unknown = entries.iter().flatten().filter(|(_, entry)| entry.content.is_none());
        let blobs: Vec<_> =
            unknown.filter_map(|(_, entry)| Some((entry.oid?, entry.size))).collect();
        let (meter, cancel) = (self.call.meter.as_ref(), &self.call.cancel);
        pipeline::ingest_some(store, &self.git, root, &blobs, meter, cancel)?;
        let edits = plan.steps.iter().zip(entries).map(|(step, entry)| {
            let new = match entry {
                Some((ino, entry)) => become_of(self.daemon, &goal, ino, &entry, &step.path)?,
                None if step.is_gitlink => Become::Directory,
                None => Become::Nothing,
            };
            Ok(Edit { path: step.path.clone(), found: step.found, new })
        });
        Ok((hold, edits.collect::<Result<_>>()?))
    }

    /// What becomes of the files, if the store has all of it, as git has it; the caller holds that.
    fn taken_in(&self, plan: &Plan) -> Result<Option<Vec<Edit>>> {
        let store = &self.daemon.store;
        let Some(plain) = plan.plain(&self.git)? else { return Ok(None) };
        let mut edits = Vec::with_capacity(plain.len());
        for (step, plain) in plan.steps.iter().zip(plain) {
            let new = match plain {
                Plain::Nothing => Become::Nothing,
                Plain::Directory => Become::Directory,
                Plain::Link(target) => Become::Link(target),
                Plain::File { oid, executable } => {
                    let Some(stored) = store.content_of(&oid)? else { return Ok(None) };
                    let Some(chunks) = store.chunks_of(stored.id)? else { return Ok(None) };
                    Become::File { executable, chunks }
                }
            };
            edits.push(Edit { path: step.path.clone(), found: step.found, new });
        }
        Ok(Some(edits))
    }

    /// Has git follow to where the files are, but for its index, which is written and not in its place.
    fn follow(
        &self,
        locked: &Locked,
        plan: &mut Plan,
        made: &[Option<Attributes>],
        from: &At,
        number: u64,
    ) -> Result<()> {
        // git may sync HEAD: it is not to survive a power failure that takes the files back.
        self.up.worktree.sync()?;
        let git_dir = &self.up.record.git_dir;
        let way = Way {
            from: &from.text,
            from_id: from.commit.map(|commit| commit.id),
            to: &self.goal.head(),
            to_id: self.goal.commit.id,
            message: &self.goal.message(from),
            number,
            is_begun: false,
        };
        move_head(&way, &self.settings, git_dir)?;
        // An index has room for the low half of the device number.
        Ok(locked.write(plan, made, self.up.mounted.dev() as u32, &self.up.worktree)?)
    }

    /// Makes the branch what it was before.
    fn go_back(&self, before: &str, failure: Failure) -> Failure {
        let restore = SnapshotRestoreCall { snapshot: before.into(), branch: None };
        match snapshots::restore(self.daemon, &restore) {
            Ok(_) => failure,
            Err(other) => Failure::new(
                failure.kind,
                format!("{}; the files stay moved, since {}", failure.message, other.message),
            )
            .hint(format!("`agentfs snapshot restore {before}` brings everything back")),
        }
    }
}

/// Moves `HEAD`, also if a git process has its lock for a moment.
fn move_head(way: &Way<'_>, settings: &Settings, git_dir: &Path) -> Result<()> {
    let mut attempt = 1;
    loop {
        match way.go(settings, git_dir) {
            Ok(()) => return Ok(()),
            Err(error) if attempt == HEAD_ATTEMPTS => return Err(error.into()),
            Err(_) => attempt += 1,
        }
        thread::sleep(HEAD_PAUSE);
    }
}

/// The entry at a path of a base, with its inode.
fn entry_of<'a>(base: &'a Base, root: TreeId, path: &[u8]) -> Result<(Ino, Entry<'a>)> {
    let missing = || {
        let path = shown(path);
        Failure::new(Kind::Damaged, format!("{path} is in the index of git and not in tree {root}"))
            .hint("`agentfs fsck` says what is wrong")
    };
    let mut dir = base.root();
    let mut names = path.split(|byte| *byte == b'/').peekable();
    while let Some(name) = names.next() {
        let index = dir.tree().find(name).ok_or_else(missing)?;
        if names.peek().is_none() {
            return Ok((dir.ino_of(index), dir.entry(index)));
        }
        dir = dir.child(index)?;
    }
    Err(missing())
}

/// What a file of `goal`, inode `ino` with its entry in the base, makes of its path.
fn become_of(
    daemon: &Daemon,
    goal: &Worktree,
    ino: Ino,
    entry: &Entry<'_>,
    path: &[u8],
) -> Result<Become> {
    match entry.kind {
        EntryKind::Symlink => return Ok(Become::Link(goal.read_link(ino)?)),
        EntryKind::Directory | EntryKind::Gitlink => return Ok(Become::Directory),
        EntryKind::File | EntryKind::Executable => {}
    }
    let content = match (entry.content, entry.oid) {
        (Some(content), _) => Some(content),
        (None, Some(oid)) => daemon.store.content_of(&oid)?.map(|stored| stored.id),
        (None, None) => None,
    };
    let chunks = content.map(|content| daemon.store.chunks_of(content)).transpose()?.flatten();
    let chunks = chunks.ok_or_else(|| {
        let message = format!("the content of {} is not in the store", shown(path));
        Failure::new(Kind::Damaged, message).hint("`agentfs fsck` says what is wrong")
    })?;
    Ok(Become::File { executable: entry.kind == EntryKind::Executable, chunks })
}

/// Completes what a killed daemon was moving: where the files are moved, so is git; else nothing is left of
/// it. Called before anything is mounted.
pub fn complete(daemon: &Daemon) {
    for (note, left) in note::switches(&daemon.layout) {
        match complete_one(daemon, &left) {
            Ok(()) => drop(note),
            Err(failure) => {
                warn!("cannot complete the switch in {}: {failure}", left.git_dir.0.display());
                std::mem::forget(note);
            }
        }
    }
}

fn complete_one(daemon: &Daemon, left: &Switching) -> Result<()> {
    let git_dir = &left.git_dir.0;
    let branches = daemon.store.branches()?;
    let branch = branches.into_iter().find(|branch| branch.number.0 == left.branch);
    let (Some(branch), false) = (branch, left.from.is_empty()) else {
        return Ok(switch::forget(git_dir, left.layer)?);
    };
    let repository = daemon.repositories.get(&daemon.store, &branch.repository)?;
    let worktree = opening::worktree(daemon, &repository, &branch, None, false, None)?;
    let is_moved = worktree.head_layer() == Some(LayerNumber(left.layer));
    if is_moved && switch::is_locked(git_dir, left.layer) {
        let git = repository.git()?;
        // Whether it says what it said before or is to say: its commit is in the log.
        let from = At::of(&git, git_dir)?.commit.map(|commit| commit.id);
        let to = git.resolve(left.head.strip_prefix("ref: ").unwrap_or(&left.head))?;
        let way = Way {
            from: &left.from,
            from_id: from,
            to: &left.head,
            to_id: to.id,
            message: &left.message,
            number: left.layer,
            is_begun: true,
        };
        move_head(&way, &Settings::of(git_dir)?, git_dir)?;
        switch::complete(git_dir, git.hash(), left.layer)?;
        info!("completed the switch of {} to {}", branch.name, left.head);
    }
    switch::forget(git_dir, left.layer)?;
    worktree.drain()?;
    Ok(())
}
