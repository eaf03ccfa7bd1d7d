//! The namespaces of a command: mounts, processes and, for an ordinary user, users.
//!
//! The mounts of the machine are followed, not kept: what is unmounted outside goes inside as well,
//! so that a command does not hold mounts that do not concern it. Nothing that is done inside is
//! seen outside.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount,
    mount_change, move_mount, open_tree, unmount,
};
use rustix::process::{Signal, getegid, geteuid, getppid, set_parent_process_death_signal};
use rustix::thread::{
    CapabilitySet, LinkNameSpaceType, UnshareFlags, capabilities,
    configure_capability_in_ambient_set, move_into_link_name_space, set_capabilities,
};

use crate::error::{Failure, Kind, Result};
use crate::exec::{Isolation, PRIVATE, Plan, Report, StageArgs, init, kernel, landlock};
use crate::wire;

/// Name of the hidden command.
pub const NAME: &str = "exec-namespace";

/// Makes the namespaces and has [`init`] run the command in them; returns when all has ended.
///
/// # Errors
/// None: what fails is reported to the supervisor.
pub fn run(args: &StageArgs) -> Result<u8> {
    let mut plan: Plan = serde_json::from_str(&args.plan)
        .map_err(|error| Failure::new(Kind::Usage, format!("no plan: {error}")))?;
    let control = kernel::inherited(plan.control)
        .map_err(|error| Failure::new(Kind::Usage, format!("no socket: {error}")))?;
    match start(&mut plan, args, &control) {
        Ok(mut child) => {
            drop(control);
            // Its status has gone to the supervisor.
            child.wait().ok();
            Ok(0)
        }
        Err(failure) => {
            let line = wire::encode(&Report::Failed(failure));
            io::Write::write_all(&mut UnixStream::from(control), &line).ok();
            Ok(1)
        }
    }
}

fn start(plan: &mut Plan, args: &StageArgs, control: &OwnedFd) -> Result<std::process::Child> {
    die_with(plan.parent)?;
    plan.user_namespace = enter_new()?;
    // A change of credentials takes it back.
    die_with(plan.parent)?;
    arrange(plan)?;
    if plan.user_namespace {
        keep_mounting()?;
    }
    plan.parent = None;
    let text = serde_json::to_string(plan)
        .map_err(|error| Failure::new(Kind::Failed, error.to_string()))?;
    let failed = |error: &io::Error| {
        Failure::new(Kind::Failed, format!("cannot start the first process: {error}"))
    };
    // Only this process has it so far, and it has one thread.
    kernel::set_inherited(control, true).map_err(|error| failed(&error))?;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("agentfs").arg(init::NAME).arg(text).arg("--").args(&args.command);
    command.spawn().map_err(|error| failed(&error))
}

/// Has the kernel kill this process when its parent ends.
///
/// # Errors
/// If the parent has ended already.
pub fn die_with(parent: Option<u32>) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|errno| refused("tie this process to its parent", errno))?;
    let now = getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
    if parent.is_some() && now != parent {
        return Err(Failure::new(Kind::Cancelled, "agentfs exec has ended"));
    }
    Ok(())
}

/// Moves this process into new namespaces; true if one of them is a user namespace.
fn enter_new() -> Result<bool> {
    let flags = UnshareFlags::NEWNS | UnshareFlags::NEWPID;
    if geteuid().is_root() {
        match kernel::unshare(flags) {
            Ok(()) => {
                follow_mounts()?;
                return Ok(false);
            }
            // A root without that right, in a container: as for everybody else.
            Err(Errno::PERM) => {}
            Err(errno) => return Err(no_namespace(errno)),
        }
    }
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    kernel::unshare(flags | UnshareFlags::NEWUSER).map_err(no_namespace)?;
    // To itself, so that files belong to whom they belong outside.
    for (file, line) in [
        ("setgroups", "deny".to_owned()),
        ("uid_map", format!("{uid} {uid} 1")),
        ("gid_map", format!("{gid} {gid} 1")),
    ] {
        fs::write(format!("/proc/self/{file}"), line).map_err(|error| {
            let failure = Failure::io("map users in", Path::new(file), &error);
            Failure { kind: Kind::CannotMount, ..failure }.hint(NAMESPACE_HINT)
        })?;
    }
    follow_mounts()?;
    Ok(true)
}

const NAMESPACE_HINT: &str = "user namespaces must be allowed: see the settings \
     user.max_user_namespaces, kernel.unprivileged_userns_clone and \
     kernel.apparmor_restrict_unprivileged_userns of sysctl, or run it as root; `agentfs mount` \
     needs none";

fn no_namespace(errno: Errno) -> Failure {
    let error = io::Error::from(errno);
    Failure::new(Kind::CannotMount, format!("cannot make a namespace for the command: {error}"))
        .hint(NAMESPACE_HINT)
}

fn follow_mounts() -> Result<()> {
    let how = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", how).map_err(|errno| match errno {
        // Some systems let everybody make a namespace and nobody use it.
        Errno::PERM | Errno::ACCESS => no_namespace(errno),
        _ => refused("separate the mounts of the command", errno),
    })
}

/// Puts everything in its place.
fn arrange(plan: &Plan) -> Result<()> {
    let (source, at) = (&plan.source.0, &plan.at.0);
    let branch = clone_tree(source)?;
    // Their owner cannot unmount one without the others in a user namespace. There they stay as
    // visible as they are outside.
    for other in plan.others.iter().filter(|other| other.0 != *source) {
        unmount(&other.0, UnmountFlags::DETACH).ok();
    }
    if let Some(isolation) = &plan.isolation {
        return isolate(plan, isolation, branch);
    }
    if source == at { Ok(()) } else { attach(&branch, at) }
}

/// Makes everything read-only, then attaches what is writable from trees that were taken before.
fn isolate(plan: &Plan, isolation: &Isolation, branch: OwnedFd) -> Result<()> {
    let at = plan.at.0.as_path();
    let mut trees = vec![(at, branch)];
    for path in &isolation.shown {
        trees.push((&path.0, read_only(&path.0)?));
    }
    for path in &isolation.writable {
        trees.push((&path.0, clone_tree(&path.0)?));
    }
    for path in &isolation.kept {
        trees.push((&path.0, read_only(&path.0)?));
    }
    // What lies in another comes after it; what was named first keeps its place otherwise.
    trees.sort_by_key(|(path, _)| path.components().count());
    let private: Vec<_> = PRIVATE.into_iter().filter(|dir| is_directory(Path::new(dir))).collect();
    let null = clone_tree(Path::new("/dev/null"))?;
    if landlock::abi().is_none() {
        // What would be mounted outside would be writable inside.
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
            .map_err(|errno| refused("keep the mounts of the command", errno))?;
    }
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| refused("open /", errno))?;
    kernel::make_read_only(&root).map_err(|error| {
        Failure::new(Kind::CannotMount, format!("cannot make the file systems read-only: {error}"))
    })?;
    for dir in &private {
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("tmpfs", *dir, "tmpfs", flags, Some(c"mode=1777"))
            .map_err(|errno| refused(&format!("mount a private {dir}"), errno))?;
    }
    for (path, tree) in &trees {
        if private.iter().any(|dir| path.starts_with(dir)) {
            make_room(path, tree)?;
        }
        attach(tree, path)?;
    }
    for socket in isolation.hidden.iter().filter(|socket| socket.0.exists()) {
        let null = clone_again(&null)?;
        attach(&null, &socket.0)?;
    }
    Ok(())
}

fn is_directory(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir())
}

/// Makes a file or directory to attach `tree` to, in a private directory.
fn make_room(path: &Path, tree: &OwnedFd) -> Result<()> {
    let failed = |error: io::Error| Failure::io("make room for", path, &error);
    if path.symlink_metadata().is_ok() {
        return Ok(());
    }
    let what = rustix::fs::fstat(tree).map_err(|errno| failed(errno.into()))?;
    if rustix::fs::FileType::from_raw_mode(what.st_mode).is_dir() {
        return fs::create_dir_all(path).map_err(failed);
    }
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(parent).and_then(|()| fs::write(path, "")).map_err(failed)
}

/// A copy of the mounts at and below `path`, attached to nothing yet.
fn clone_tree(path: &Path) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    open_tree(CWD, path, flags).map_err(|errno| Failure::io("use", path, &errno.into()))
}

fn clone_again(tree: &OwnedFd) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(tree, "", flags).map_err(|errno| refused("copy a mount", errno))
}

fn read_only(path: &Path) -> Result<OwnedFd> {
    let tree = clone_tree(path)?;
    kernel::make_read_only(&tree).map_err(|error| Failure::io("protect", path, &error))?;
    Ok(tree)
}

fn attach(tree: &OwnedFd, path: &Path) -> Result<()> {
    move_mount(tree, "", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(|errno| {
        let failure = Failure::io("mount on", path, &errno.into());
        match errno {
            Errno::NOENT => failure.hint(format!("create it with `mkdir -p {}`", path.display())),
            _ => failure,
        }
    })
}

/// Lets the next program mount, which an ordinary user's loses that right otherwise.
fn keep_mounting() -> Result<()> {
    let failed = |errno| refused("keep the right to mount", errno);
    let mut sets = capabilities(None).map_err(failed)?;
    sets.inheritable |= CapabilitySet::SYS_ADMIN;
    set_capabilities(None, sets).map_err(failed)?;
    configure_capability_in_ambient_set(CapabilitySet::SYS_ADMIN, true).map_err(failed)
}

/// Puts a copy of the mount at `source` at `at` in the mount namespace of process `pid`.
///
/// # Errors
/// [`Kind::NotFound`] if there is no such process or directory, [`Kind::Refused`] if its namespace is
/// this one.
pub fn bind(source: &Path, at: &Path, pid: u32) -> Result<()> {
    let link = format!("/proc/{pid}/ns/mnt");
    let (theirs, ours) = (fs::read_link(&link), fs::read_link("/proc/self/ns/mnt"));
    let theirs = theirs.map_err(|error| Failure::io("enter", Path::new(&link), &error))?;
    if ours.is_ok_and(|ours| ours == theirs) {
        return Err(Failure::new(
            Kind::Refused,
            format!("process {pid} has no mount namespace of its own"),
        )
        .hint(format!("mount it with `agentfs mount` at {}", at.display())));
    }
    let tree = clone_tree(source)?;
    let namespace =
        fs::File::open(&link).map_err(|error| Failure::io("enter", Path::new(&link), &error))?;
    // A thread that shares its current directory with others may not.
    kernel::unshare(UnshareFlags::FS).map_err(|errno| refused("enter another namespace", errno))?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))
        .map_err(|errno| refused(&format!("enter the mount namespace of process {pid}"), errno))?;
    attach(&tree, at)
}

/// Mounts a `/proc` for the process namespace of this process. An ordinary user may not where parts
/// of `/proc` are covered, as in most containers.
pub fn mount_proc(read_only: bool) -> bool {
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if read_only {
        flags |= MountFlags::RDONLY;
    }
    mount("proc", "/proc", "proc", flags, None).is_ok()
}

fn refused(action: &str, errno: Errno) -> Failure {
    let kind = if errno == Errno::PERM { Kind::CannotMount } else { Kind::Failed };
    Failure::new(kind, format!("cannot {action}: {}", io::Error::from(errno)))
}
