//! `agentfs backup` and `agentfs restore`

use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use agentfs_engine::store::{self, Branch, KeptGit, Store};
use agentfs_gitimport::gitdir;
use serde::Serialize;

use crate::archive::{Entry, Error, Reader};
use crate::commands::call;
use crate::commands::fsck;
use crate::destination;
use crate::environment::Environment;
use crate::error::{Failure, Kind, Result};
use crate::layout::Layout;
use crate::monitor;
use crate::output::{Output, count};
use crate::progress::human_bytes;
use crate::protocol::{BackedUp, BackupCall, Checked, WirePath, method};

/// Arguments of `agentfs backup`.
#[derive(Debug, clap::Args)]
pub struct BackupArgs {
    /// The file to write
    file: PathBuf,
}

/// Writes all of the store to one file.
///
/// # Errors
/// What keeps it from being written and read back.
pub fn backup(args: &BackupArgs, output: Output) -> Result<()> {
    let params = BackupCall { file: WirePath(destination::absolute(&args.file)?) };
    let done: BackedUp = call(output, method::BACKUP, &params)?;
    output.result(&done, |out| {
        writeln!(out, "{}: {}, read back", done.file.0.display(), human_bytes(done.bytes))?;
        for one in &done.redirected {
            let path = one.status.path.0.display();
            writeln!(
                out,
                "  without {}@{}: {path}, which is redirected",
                one.repository, one.branch
            )?;
        }
        writeln!(out, "  `AGENTFS_HOME=NEW agentfs restore FILE` makes a store of it")
    })
}

/// Arguments of `agentfs restore`.
#[derive(Debug, clap::Args)]
pub struct RestoreArgs {
    /// A file that `agentfs backup` has written
    file: PathBuf,
}

#[derive(Serialize)]
struct Restored {
    store: WirePath,
    repositories: usize,
    branches: usize,
    checked: Checked,
}

/// Makes a store of a backup, where there is none, and verifies it.
///
/// # Errors
/// [`Kind::NotEmpty`] if there is something, [`Kind::Damaged`] if the file is; nothing is left then.
pub fn restore(args: &RestoreArgs, output: Output) -> Result<u8> {
    let environment = Environment::read()?;
    let layout = Layout::new(environment.store.clone());
    let home = layout.root();
    refuse_occupied(home)?;
    let parent = home.parent().unwrap_or(home);
    fs::create_dir_all(parent).map_err(|error| Failure::store_io("create", parent, &error))?;
    let aside = tempfile::Builder::new().prefix(".agentfs-restore-").tempdir_in(parent);
    let aside =
        aside.map_err(|error| Failure::store_io("create a directory in", parent, &error))?;
    let file = &args.file;
    let input = File::open(file).map_err(|error| Failure::io("open", file, &error))?;
    let input = BufReader::with_capacity(1 << 20, input);
    let old = unpack(input, aside.path()).map_err(|error| explain(file, error))?;
    let (repositories, branches) = move_records(aside.path(), &old, &layout)?;
    let synced = File::open(aside.path())
        .and_then(|dir| rustix::fs::syncfs(dir).map_err(std::io::Error::from));
    synced.map_err(|error| Failure::store_io("sync", aside.path(), &error))?;
    // An empty directory gives way, nothing else does.
    fs::rename(aside.path(), home).map_err(|error| Failure::store_io("create", home, &error))?;
    drop(aside);
    let checked: Checked = call(output, method::CHECK, &())?;
    let restored = Restored { store: home.into(), repositories, branches, checked };
    output.result(&restored, |out| {
        writeln!(
            out,
            "{}: {}, {}",
            home.display(),
            count(repositories as u64, "repository").replace("repositorys", "repositories"),
            count(branches as u64, "branch").replace("branchs", "branches"),
        )?;
        fsck::report(out, &restored.checked)?;
        writeln!(out, "  nothing is mounted: `agentfs mount BRANCH DIR` mounts a branch")
    })?;
    Ok(if restored.checked.damaged > 0 { Kind::Damaged.exit_code() } else { 0 })
}

fn refuse_occupied(home: &Path) -> Result<()> {
    let first = match fs::read_dir(home) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|error| Failure::store_io("list", home, &error))?.next(),
    };
    match first {
        None => Ok(()),
        Some(_) => Err(Failure::new(Kind::NotEmpty, format!("{} is not empty", home.display()))
            .hint("set AGENTFS_HOME to a directory that is empty or does not exist")),
    }
}

/// Puts all that is in an archive below `root`; returns where the store was.
fn unpack(input: impl std::io::Read, root: &Path) -> Result<PathBuf, Error> {
    let mut reader = Reader::new(input)?;
    while let Some(entry) = reader.next()? {
        let (path, done) = match &entry {
            Entry::Directory(path, mode) => {
                (path, fs::DirBuilder::new().mode(mode | 0o700).create(root.join(path)))
            }
            Entry::Link(path, target) => (path, symlink(target, root.join(path))),
            Entry::File(path, mode) => {
                let full = root.join(path);
                let failed = |error| Error::Write(full.clone(), error);
                let mut options = OpenOptions::new();
                let mut file = options
                    .write(true)
                    .create_new(true)
                    .mode(mode | 0o200)
                    .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
                    .open(&full)
                    .map_err(failed)?;
                reader.content(|block| file.write_all(block).map_err(failed))?;
                (path, file.set_permissions(fs::Permissions::from_mode(*mode)))
            }
        };
        done.map_err(|error| Error::Write(root.join(path), error))?;
    }
    Ok(reader.store)
}

fn explain(file: &Path, error: Error) -> Failure {
    let shown = file.display();
    match error {
        Error::NoArchive => Failure::new(Kind::Refused, format!("{shown} is no backup of agentfs"))
            .hint("name a file that `agentfs backup` has written"),
        Error::Version(version) => Failure::new(
            Kind::StoreVersion,
            format!("{shown} is a backup of version {version}, which this agentfs does not know"),
        )
        .hint("restore it with the version that has written it"),
        Error::Damaged(at, why) => {
            Failure::new(Kind::Damaged, format!("{shown} is damaged at byte {at}: {why}"))
                .hint("restore another backup; nothing was made of this one")
        }
        Error::Read(error) => Failure::io("read", file, &error),
        Error::Write(path, error) => Failure::store_io("write", &path, &error),
    }
}

/// Has the records of the store in `dir`, which was at `old`, say that it is where `layout` has it. What was
/// mounted is a branch that is not, so that no two stores have one directory.
fn move_records(dir: &Path, old: &Path, layout: &Layout) -> Result<(usize, usize)> {
    let store = Store::open(dir)?;
    let moved = |path: &Path| Some(layout.root().join(path.strip_prefix(old).ok()?));
    let mut batch = store.batch()?;
    let repositories = store.repositories()?;
    for repository in &repositories {
        if let Some(git_dir) = moved(&repository.git_dir) {
            let below = repository.git_dir.strip_prefix(old).unwrap_or(&repository.git_dir);
            let here = dir.join(below);
            // That of the other store is not to be asked.
            if monitor::forget(&here)? {
                monitor::configure(&here, layout)?;
            }
            batch.put_repository(&store::Repository { git_dir, ..repository.clone() });
        }
    }
    let worktrees = store.worktrees()?;
    let branches = store.branches()?;
    for branch in &branches {
        let mounted = worktrees
            .iter()
            .find(|one| (&one.repository, &one.branch) == (&branch.repository, &branch.name));
        let git_dir = mounted.map(|one| one.git_dir.as_path()).or(branch.git_state());
        let is_shared = mounted.is_none() && branch.git_dir().is_none();
        // That of a repository which is used in place stays with whoever uses it there.
        let kept =
            git_dir.and_then(|git_dir| Some((git_dir.strip_prefix(old).ok()?, moved(git_dir)?)));
        if let Some((below, _)) = &kept {
            let place = match below.file_name().filter(|_| is_shared) {
                Some(name) => layout.shared().join(name),
                None => layout.unmounted(&branch.repository, &branch.name),
            };
            gitdir::relocate(&dir.join(below), &place)?;
        }
        let kind = if is_shared { KeptGit::Shared } else { KeptGit::Dir };
        let git = kept.map(|(_, git_dir)| kind(git_dir));
        batch.put_branch(&Branch { git, ..branch.clone() });
    }
    worktrees.iter().for_each(|one| batch.remove_worktree(&one.dir));
    batch.commit()?;
    Ok((repositories.len(), branches.len()))
}
