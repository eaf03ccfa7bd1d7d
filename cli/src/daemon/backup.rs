//! A backup: one file with everything that is in the store, while it is used.
//!
//! What changes is copied first and of one moment: while the database is, nobody writes to it, and the
//! outboxes are copied after it, so that they hold all that it relies on. Meanwhile changes go on
//! being acknowledged, and wait in the outboxes. Segments and git objects come after that; what was added
//! meanwhile nobody misses. Segments are opened before: a garbage collection may remove their names.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use agentfs_engine::progress::Cancel;

use crate::archive::{self, Writer};
use crate::daemon::redirects;
use crate::daemon::rpc::Call;
use crate::daemon::state::Daemon;
use crate::error::{Failure, Kind, Result};
use crate::layout::INCOMING;
use crate::protocol::{BackedUp, BackupCall, RedirectListCall};

/// How often git's objects are looked through for what a repacking has moved meanwhile.
const LOOKS_MAX: u32 = 8;

/// Writes a backup, reads it back, and gives it its name.
///
/// # Errors
/// [`Kind::Refused`] if there is such a file or it would lie in the store; what reading the store and writing
/// meet. Nothing is left then.
pub fn backup(daemon: &Daemon, params: &BackupCall, call: &Call) -> Result<BackedUp> {
    let path = &params.file.0;
    let shown = path.display();
    if path.starts_with(daemon.root()) || !path.is_absolute() {
        return Err(Failure::new(Kind::Refused, format!("{shown} is inside the store"))
            .hint("choose a file outside the store, best on another device"));
    }
    if path.symlink_metadata().is_ok() {
        return Err(Failure::new(Kind::Refused, format!("{shown} exists already"))
            .hint("choose another name"));
    }
    let parent = path.parent().unwrap_or(path);
    let failed = |error: &io::Error| Failure::io("write", path, error);
    let aside = tempfile::Builder::new().prefix(".agentfs-backup-").tempfile_in(parent);
    let aside = aside.map_err(|error| failed(&error))?;
    let (hash, entries, bytes) = write(daemon, aside.as_file(), path, &call.cancel)?;
    aside.as_file().sync_all().map_err(|error| failed(&error))?;
    let again = File::open(aside.path()).map_err(|error| failed(&error))?;
    archive::verify(BufReader::with_capacity(1 << 20, again)).map_err(|error| {
        Failure::new(
            Kind::Failed,
            format!("{shown} does not read back as it was written: {error:?}"),
        )
        .hint("choose another device")
    })?;
    aside.persist_noclobber(path).map_err(|error| failed(&error.error))?;
    let synced = File::open(parent).and_then(|parent| parent.sync_all());
    synced.map_err(|error| failed(&error))?;
    let redirected = redirects::list(daemon, &RedirectListCall::default())?.redirects;
    Ok(BackedUp { file: params.file.clone(), entries, bytes, blake3: hash, redirected })
}

/// Writes all of it; returns its hash, entries and bytes.
fn write(daemon: &Daemon, out: &File, path: &Path, cancel: &Cancel) -> Result<(String, u64, u64)> {
    let failed = |error: io::Error| Failure::io("write", path, &error);
    let out = BufWriter::with_capacity(1 << 20, out);
    let writer = Writer::new(out, daemon.root()).map_err(failed)?;
    let mut backup = Backup { root: daemon.root(), path, writer, cancel, repositories: Vec::new() };
    for (name, segment) in backup.moment(daemon)? {
        backup.file(&name, segment)?;
    }
    backup.objects()?;
    backup.writer.end().map_err(failed)
}

struct Backup<'a, W: io::Write> {
    root: &'a Path,
    path: &'a Path,
    writer: Writer<W>,
    cancel: &'a Cancel,
    /// Those whose references are written.
    repositories: Vec<PathBuf>,
}

impl<W: io::Write> Backup<'_, W> {
    /// Writes what is of one moment, and returns the segments, open: whoever removes one leaves it to us.
    fn moment(&mut self, daemon: &Daemon) -> Result<Vec<(PathBuf, File)>> {
        // No garbage is collected, no branch or snapshot is half made, and nobody commits.
        let _upkeep = daemon.store.upkeep();
        let _names = daemon.lock_names();
        let _batch = daemon.store.batch()?;
        for name in ["format", "store.redb"] {
            self.open_file(Path::new(name))?;
        }
        let mut segments = Vec::new();
        self.directory(Path::new("segments"))?;
        for name in self.list(Path::new("segments"))? {
            let opened = File::open(self.root.join(&name));
            segments.push((name.clone(), opened.map_err(|error| self.failed(&name, &error))?));
        }
        for name in ["outbox", "snapshots"] {
            self.tree(Path::new(name), &|_| true)?;
        }
        self.redirects(daemon)?;
        let repositories = daemon.layout.repositories();
        let repositories = repositories.strip_prefix(self.root).unwrap_or(&repositories);
        // Objects are copied when all that names them is.
        self.tree(repositories, &|path| {
            let parts: Vec<_> = path.iter().collect();
            let incoming = parts
                .get(1)
                .is_some_and(|name| name.as_encoded_bytes().starts_with(INCOMING.as_bytes()));
            !(incoming || parts.len() == 3 && parts[2] == "objects")
        })?;
        self.repositories = self.list(repositories)?;
        Ok(segments)
    }

    /// Writes what is redirected, with empty directories for what is built there.
    fn redirects(&mut self, daemon: &Daemon) -> Result<()> {
        let root = self.root;
        let dir = daemon.layout.redirects();
        let dir = dir.strip_prefix(root).unwrap_or(&dir);
        if !root.join(dir).is_dir() {
            return Ok(());
        }
        // `redirects/BRANCH/NUMBER/data/...`
        self.tree(dir, &|path| {
            let parts: Vec<_> = path.iter().map(|part| part.as_encoded_bytes()).collect();
            let passing = parts[1..].iter().take(2).any(|part| part.starts_with(b"."));
            let built = parts.len() > 4 && parts[3] == b"data";
            !passing && !built
        })
    }

    /// Writes the objects of the repositories.
    fn objects(&mut self) -> Result<()> {
        for repository in std::mem::take(&mut self.repositories) {
            let objects = repository.join("objects");
            if self.root.join(&objects).is_dir() {
                let mut written = HashSet::new();
                for _ in 0..LOOKS_MAX {
                    if !self.objects_below(&objects, &mut written)? {
                        break;
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes what is below `dir` and not yet written; returns whether there was anything.
    fn objects_below(&mut self, dir: &Path, written: &mut HashSet<PathBuf>) -> Result<bool> {
        let mut any = false;
        if written.insert(dir.to_owned()) {
            self.directory(dir)?;
        }
        for path in self.list(dir)? {
            let name = path.file_name().unwrap_or_default().as_encoded_bytes();
            if name.starts_with(b"tmp_") || name.ends_with(b".lock") {
                continue;
            }
            if self.root.join(&path).is_dir() {
                any |= self.objects_below(&path, written)?;
            } else if !written.contains(&path) && self.open_file(&path)? {
                written.insert(path);
                any = true;
            }
        }
        Ok(any)
    }

    /// Writes what is below `dir`, but for what is not `wanted` and files by which git locks.
    fn tree(&mut self, dir: &Path, wanted: &dyn Fn(&Path) -> bool) -> Result<()> {
        if !self.root.join(dir).is_dir() {
            return Ok(());
        }
        self.directory(dir)?;
        for path in self.list(dir)? {
            if !wanted(&path) || path.extension().is_some_and(|extension| extension == "lock") {
                continue;
            }
            let full = self.root.join(&path);
            match full.symlink_metadata() {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(self.failed(&path, &error)),
                Ok(metadata) if metadata.is_dir() => self.tree(&path, wanted)?,
                Ok(metadata) if metadata.is_symlink() => {
                    let target =
                        fs::read_link(&full).map_err(|error| self.failed(&path, &error))?;
                    let done = self.writer.link(&path, &target);
                    done.map_err(|error| self.failed(&path, &error))?;
                }
                Ok(_) => {
                    self.open_file(&path)?;
                }
            }
        }
        Ok(())
    }

    fn directory(&mut self, path: &Path) -> Result<()> {
        let metadata = fs::metadata(self.root.join(path));
        let mode = metadata.map_or(0o700, |metadata| metadata.permissions().mode() & 0o7777);
        self.writer.directory(path, mode).map_err(|error| self.failed(path, &error))
    }

    /// Writes a file; `false` if it is gone.
    fn open_file(&mut self, path: &Path) -> Result<bool> {
        match File::open(self.root.join(path)) {
            Ok(file) => self.file(path, file).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.failed(path, &error)),
        }
    }

    fn file(&mut self, path: &Path, file: File) -> Result<()> {
        self.cancel.check()?;
        let metadata = file.metadata().map_err(|error| self.failed(path, &error))?;
        let mode = metadata.permissions().mode() & 0o7777;
        self.writer.file(path, mode, file).map_err(|error| self.failed(path, &error))
    }

    /// What is in `dir`, in order, by its path in the store.
    fn list(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        let names = fs::read_dir(self.root.join(dir)).and_then(|entries| {
            entries.map(|entry| entry.map(|entry| dir.join(entry.file_name()))).collect()
        });
        match names {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            names => {
                let mut names: Vec<_> = names.map_err(|error| self.failed(dir, &error))?;
                names.sort();
                Ok(names)
            }
        }
    }

    fn failed(&self, path: &Path, error: &io::Error) -> Failure {
        let path = self.root.join(path);
        Failure::new(
            Kind::Failed,
            format!("cannot back {} up into {}: {error}", path.display(), self.path.display()),
        )
    }
}
