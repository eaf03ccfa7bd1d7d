//! A storage that can lose power.
//!
//! It lives in memory. Fault model: what was written to a file since its last sync, and the names
//! made or removed in a directory since its last sync, are at the mercy of the crash. Each such
//! write is kept, dropped or torn: then every sector of it is new, old or, where the file had no
//! synced bytes, garbage. Changes of names are kept up to some point. What was synced stays as it
//! was, and so do bytes beside a write: no store survives a medium that breaks that.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::storage::{File, Storage};

const SECTOR_BYTES: usize = 512;

/// A storage in memory that can lose power. Clones are one storage.
#[derive(Clone, Default)]
pub struct FaultyStorage {
    shared: Arc<Mutex<Shared>>,
}

/// What a name stands for: the bytes of a file, or nothing for a directory.
type Named = Option<Arc<Mutex<Bytes>>>;

#[derive(Default)]
struct Shared {
    /// Names as programs see them.
    names: BTreeMap<PathBuf, Named>,
    durable_names: BTreeMap<PathBuf, Named>,
    /// Changes of names since the last sync of their directory; `None` removes.
    pending_names: Vec<(PathBuf, Option<Named>)>,
    syncs: u64,
    /// The sync that finds the power gone.
    fail_at: Option<u64>,
    failed: bool,
    full: bool,
    ignore_syncs_of: Option<&'static str>,
}

#[derive(Clone, Default)]
struct Bytes {
    seen: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
    /// The handle that has it locked.
    locked: Option<Arc<AtomicBool>>,
}

#[derive(Clone)]
enum Change {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

/// A small deterministic source of choices.
struct Dice(blake3::OutputReader);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        (u64::from_le_bytes(bytes) % sides as u64) as usize
    }

    fn garbage(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.fill(&mut bytes);
        bytes
    }
}

impl FaultyStorage {
    /// An empty storage that works.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of syncs asked for so far, of files and of directories.
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// Lets the power fail at the sync number `sync`, counted from 0: that sync and everything
    /// after it fails.
    pub fn fail_at(&self, sync: u64) {
        self.lock().fail_at = Some(sync);
    }

    /// Whether the power has failed.
    pub fn has_failed(&self) -> bool {
        self.lock().failed
    }

    /// Whether the device is full from now on: no file can grow.
    pub fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// Makes this storage ignore syncs of files whose name ends in `suffix`, while it reports
    /// success. With it a test can show that it notices a missing sync.
    pub fn ignore_syncs_of(&self, suffix: &'static str) {
        self.lock().ignore_syncs_of = Some(suffix);
    }

    /// What a machine finds when it starts again: everything synced, and of the rest what `seed`
    /// chooses. Seed 0 keeps nothing that was not synced, seed 1 everything.
    pub fn after_crash(&self, seed: u64) -> Self {
        let shared = self.lock();
        let mut dice = Dice(blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof());
        let mut names = shared.durable_names.clone();
        let kept = match seed {
            0 => 0,
            1 => shared.pending_names.len(),
            _ => dice.roll(shared.pending_names.len() + 1),
        };
        for (path, now) in &shared.pending_names[..kept] {
            match now {
                Some(entry) => names.insert(path.clone(), entry.clone()),
                None => names.remove(path),
            };
        }
        for entry in names.values_mut().flatten() {
            let crashed = lock(entry).after_crash(seed, &mut dice);
            *entry = Arc::new(Mutex::new(crashed));
        }
        let shared = Shared { durable_names: names.clone(), names, ..Shared::default() };
        Self { shared: Arc::new(Mutex::new(shared)) }
    }

    /// Changes the bytes of a file behind its users' back.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn tamper(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let shared = self.lock();
        let file = shared.names.get(path).and_then(Option::as_ref).expect("a file of this name");
        let mut bytes = lock(file);
        change(&mut bytes.seen);
        bytes.durable = bytes.seen.clone();
        bytes.pending.clear();
    }

    /// The bytes of a file as programs see them.
    pub fn contents(&self, path: &Path) -> Option<Vec<u8>> {
        let file = self.lock().names.get(path)?.clone()?;
        let bytes = lock(&file).seen.clone();
        Some(bytes)
    }

    fn lock(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }

    fn powered(&self) -> io::Result<MutexGuard<'_, Shared>> {
        let shared = self.lock();
        if shared.failed { Err(io::Error::other("the power is gone")) } else { Ok(shared) }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn not_found() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Shared {
    fn change_name(&mut self, path: &Path, now: Option<Named>) {
        match &now {
            Some(entry) => self.names.insert(path.to_owned(), entry.clone()),
            None => self.names.remove(path),
        };
        self.pending_names.push((path.to_owned(), now));
    }

    /// Counts a sync; an error if the power fails at it.
    fn sync(&mut self) -> io::Result<()> {
        if self.fail_at == Some(self.syncs) {
            self.failed = true;
            return Err(io::Error::other("the power is gone"));
        }
        self.syncs += 1;
        Ok(())
    }
}

impl Bytes {
    fn after_crash(&self, seed: u64, dice: &mut Dice) -> Self {
        let mut bytes = self.durable.clone();
        for change in &self.pending {
            match (seed, change) {
                (0, _) => {}
                (1, change) => change.apply(&mut bytes),
                (_, Change::Write(offset, written)) if dice.roll(3) == 0 => {
                    self.tear(*offset as usize, written, &mut bytes, dice);
                }
                (_, change) if dice.roll(2) == 0 => change.apply(&mut bytes),
                _ => {}
            }
        }
        Self { seen: bytes.clone(), durable: bytes, ..Self::default() }
    }

    fn tear(&self, offset: usize, written: &[u8], bytes: &mut Vec<u8>, dice: &mut Dice) {
        let mut at = 0;
        while at < written.len() {
            let sector = SECTOR_BYTES - (offset + at) % SECTOR_BYTES;
            let piece = &written[at..(at + sector).min(written.len())];
            let start = offset + at;
            at += piece.len();
            let new = match dice.roll(3) {
                0 => piece.to_vec(),
                1 if start >= self.durable.len() => dice.garbage(piece.len()),
                _ => continue,
            };
            Change::Write(start as u64, new).apply(bytes);
        }
    }
}

impl Change {
    /// The length that a file has at least after it.
    fn end(&self) -> usize {
        match self {
            Self::Write(offset, written) => *offset as usize + written.len(),
            Self::SetLen(len) => *len as usize,
        }
    }

    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(_, written) if written.is_empty() => {}
            Self::Write(offset, written) => {
                let end = *offset as usize + written.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*offset as usize..end].copy_from_slice(written);
            }
            Self::SetLen(len) => bytes.resize(*len as usize, 0),
        }
    }
}

impl fmt::Debug for FaultyStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultyStorage")
    }
}

impl Storage for FaultyStorage {
    fn open(&self, path: &Path, create: bool) -> io::Result<Arc<dyn File>> {
        let mut shared = self.powered()?;
        let bytes = match shared.names.get(path) {
            Some(Some(bytes)) => Arc::clone(bytes),
            Some(None) => return Err(io::ErrorKind::IsADirectory.into()),
            None if create => {
                let parent = path.parent().ok_or_else(not_found)?;
                if !matches!(shared.names.get(parent), Some(None)) {
                    return Err(not_found());
                }
                let bytes = Arc::default();
                shared.change_name(path, Some(Some(Arc::clone(&bytes))));
                bytes
            }
            None => return Err(not_found()),
        };
        let path = path.to_owned();
        Ok(Arc::new(Handle { storage: self.clone(), path, bytes, locks: Arc::default() }))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut shared = self.powered()?;
        for dir in path.ancestors().collect::<Vec<_>>().into_iter().rev() {
            match shared.names.get(dir) {
                Some(None) => {}
                Some(Some(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
                None => shared.change_name(dir, Some(None)),
            }
        }
        Ok(())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        Ok(self.powered()?.names.contains_key(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut shared = self.powered()?;
        let entry = shared.names.get(from).cloned().ok_or_else(not_found)?;
        shared.change_name(to, Some(entry));
        shared.change_name(from, None);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut shared = self.powered()?;
        if !matches!(shared.names.get(path), Some(Some(_))) {
            return Err(not_found());
        }
        shared.change_name(path, None);
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut shared = self.powered()?;
        shared.sync()?;
        let (synced, pending): (Vec<_>, Vec<_>) = std::mem::take(&mut shared.pending_names)
            .into_iter()
            .partition(|(name, _)| name.parent() == Some(path) || path.starts_with(name));
        shared.pending_names = pending;
        for (name, now) in synced {
            match now {
                Some(entry) => shared.durable_names.insert(name, entry),
                None => shared.durable_names.remove(&name),
            };
        }
        Ok(())
    }
}

struct Handle {
    storage: FaultyStorage,
    path: PathBuf,
    bytes: Arc<Mutex<Bytes>>,
    /// Set while this handle has the file locked.
    locks: Arc<AtomicBool>,
}

impl Handle {
    fn change(&self, change: Change) -> io::Result<()> {
        let shared = self.storage.powered()?;
        let mut bytes = lock(&self.bytes);
        if shared.full && change.end() > bytes.seen.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        change.apply(&mut bytes.seen);
        bytes.pending.push(change);
        Ok(())
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({})", self.path.display())
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.locks.store(false, Ordering::Relaxed);
    }
}

impl File for Handle {
    fn len(&self) -> io::Result<u64> {
        let _powered = self.storage.powered()?;
        Ok(lock(&self.bytes).seen.len() as u64)
    }

    fn allocated(&self) -> io::Result<u64> {
        self.len()
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let _powered = self.storage.powered()?;
        let bytes = lock(&self.bytes);
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let found = from.checked_add(out.len()).and_then(|end| bytes.seen.get(from..end));
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.change(Change::Write(offset, bytes.to_vec()))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::SetLen(len))
    }

    fn sync(&self) -> io::Result<()> {
        let mut shared = self.storage.powered()?;
        shared.sync()?;
        if shared.ignore_syncs_of.is_some_and(|end| self.path.to_string_lossy().ends_with(end)) {
            return Ok(());
        }
        let mut bytes = lock(&self.bytes);
        bytes.durable = bytes.seen.clone();
        bytes.pending.clear();
        Ok(())
    }

    fn try_lock(&self) -> io::Result<bool> {
        let _powered = self.storage.powered()?;
        let mut bytes = lock(&self.bytes);
        let taken = bytes.locked.as_ref().is_some_and(|by| by.load(Ordering::Relaxed));
        if taken && !self.locks.load(Ordering::Relaxed) {
            return Ok(false);
        }
        self.locks.store(true, Ordering::Relaxed);
        bytes.locked = Some(Arc::clone(&self.locks));
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_conforms_while_it_has_power() {
        crate::storage::conform(&FaultyStorage::new(), Path::new("/store"));
    }

    #[test]
    fn a_crash_takes_what_was_not_synced_and_nothing_else() {
        let storage = FaultyStorage::new();
        let dir = Path::new("/d");
        storage.create_dir(dir).unwrap();
        let kept = storage.open(&dir.join("kept"), true).unwrap();
        kept.write_at(0, b"synced").unwrap();
        kept.sync().unwrap();
        storage.sync_dir(dir).unwrap();
        kept.write_at(0, b"SYNCED").unwrap();
        let lost = storage.open(&dir.join("lost"), true).unwrap();
        lost.write_at(0, b"its name was not synced").unwrap();
        lost.sync().unwrap();

        let nothing = storage.after_crash(0);
        assert_eq!(nothing.contents(&dir.join("kept")).unwrap(), b"synced");
        assert_eq!(nothing.contents(&dir.join("lost")), None);
        let everything = storage.after_crash(1);
        assert_eq!(everything.contents(&dir.join("kept")).unwrap(), b"SYNCED");
        assert_eq!(everything.contents(&dir.join("lost")).unwrap(), b"its name was not synced");
    }

    #[test]
    fn the_power_fails_at_the_chosen_sync() {
        let storage = FaultyStorage::new();
        storage.create_dir(Path::new("/d")).unwrap();
        let file = storage.open(Path::new("/d/f"), true).unwrap();
        storage.fail_at(1);
        file.sync().unwrap();
        assert!(file.sync().is_err());
        assert!(file.write_at(0, b"x").is_err());
        assert!(storage.has_failed());
        assert_eq!(storage.syncs(), 1);
    }
}
