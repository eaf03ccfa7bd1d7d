//! A storage that can lose power.
//!
//! It lives in memory. Fault model: what was written to a file since its last sync, and the names
//! made or removed in a directory since its last sync, are at the mercy of the crash. Each such
//! write is kept, dropped or torn: then every sector of it is new, old or, where the file had no
//! synced bytes, garbage. Changes of names are kept up to some point. What was synced stays as it
//! was, and so do bytes beside a write: no store survives a medium that breaks that.
//!
//! Beside the crash it can run out of room, in the middle of a write too, and a single sync can fail
//! while the machine goes on: then, as on Linux, what the sync should have saved is still read but
//! will never be on the device.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::storage::{File, Storage};
pub use crate::store::tamper_database;

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
    /// The sync that fails while the power stays.
    lose_at: Option<u64>,
    /// Bytes by which files can still grow; `None` for no bound.
    room: Option<u64>,
    ignore_syncs_of: Option<&'static str>,
    refuse_writes: bool,
    refuse_to_reserve: bool,
    on_sync: Option<Hook>,
    /// What happens before the next read of a file whose name ends so.
    at_next_read: Option<(&'static str, OnceHook)>,
}

/// What a test wants to happen during a sync of the file or directory.
type Hook = Arc<dyn Fn(&Path) + Send + Sync>;

/// What a test wants to happen once.
type OnceHook = Box<dyn FnOnce() + Send>;

#[derive(Clone, Default)]
struct Bytes {
    seen: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Change>,
    /// The length up to which room is reserved.
    reserved: usize,
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
        self.set_room(full.then_some(0));
    }

    /// Limits the bytes by which files can grow from now on, reserved room included; `None` lifts
    /// the limit. A write that finds too little room writes what fits and fails.
    pub fn set_room(&self, bytes: Option<u64>) {
        self.lock().room = bytes;
    }

    /// The bytes by which files can still grow; `None` if there is no limit.
    pub fn room(&self) -> Option<u64> {
        self.lock().room
    }

    /// Lets sync number `sync`, counted from 0, fail while the power stays. What it should have saved
    /// is lost: programs go on reading it, but no later sync saves it.
    pub fn lose_at(&self, sync: u64) {
        self.lock().lose_at = Some(sync);
    }

    /// Whether every write fails from now on, before it changes anything.
    pub fn refuse_writes(&self, refuse: bool) {
        self.lock().refuse_writes = refuse;
    }

    /// Whether this is a file system that cannot reserve room.
    pub fn refuse_to_reserve(&self, refuse: bool) {
        self.lock().refuse_to_reserve = refuse;
    }

    /// Runs `hook` during every sync, with the path of the file or directory. What is written
    /// meanwhile is not saved by that sync.
    pub fn on_sync(&self, hook: impl Fn(&Path) + Send + Sync + 'static) {
        self.lock().on_sync = Some(Arc::new(hook));
    }

    /// Runs `hook` once, before the next read of a file whose name ends in `suffix`, in the thread
    /// that reads.
    pub fn at_next_read(&self, suffix: &'static str, hook: impl FnOnce() + Send + 'static) {
        self.lock().at_next_read = Some((suffix, Box::new(hook)));
    }

    /// Takes back what [`Self::on_sync`] and [`Self::at_next_read`] were told.
    pub fn forget_hooks(&self) {
        let mut shared = self.lock();
        let hooks = (shared.on_sync.take(), shared.at_next_read.take());
        drop(shared);
        // What they hold may hold this storage.
        drop(hooks);
    }

    /// Makes this storage ignore syncs of files and directories whose path ends in `suffix`, while it
    /// reports success; `None` ends that. With it a test can show that it notices a missing sync.
    pub fn ignore_syncs_of(&self, suffix: impl Into<Option<&'static str>>) {
        self.lock().ignore_syncs_of = suffix.into();
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

    /// Removes a file or adds one behind its users' back, durably.
    ///
    /// # Panics
    /// If there is no file to be removed.
    pub fn tamper_name(&self, path: &Path, contents: Option<Vec<u8>>) {
        let shared = &mut *self.lock();
        let entry = contents.map(|bytes| {
            let bytes = Bytes { seen: bytes.clone(), durable: bytes, ..Bytes::default() };
            Some(Arc::new(Mutex::new(bytes)))
        });
        shared.pending_names.retain(|(name, _)| name != path);
        let found = shared.names.contains_key(path);
        assert!(found || entry.is_some(), "there is no {}", path.display());
        for names in [&mut shared.names, &mut shared.durable_names] {
            match &entry {
                Some(entry) => names.insert(path.to_owned(), entry.clone()),
                None => names.remove(path),
            };
        }
    }

    fn hook(&self, path: &Path) {
        let hook = self.lock().on_sync.clone();
        if let Some(hook) = hook {
            hook(path);
        }
    }

    fn hook_read(&self, path: &Path) {
        let mut shared = self.lock();
        let is_it = |(suffix, _): &mut (&str, OnceHook)| path.to_string_lossy().ends_with(*suffix);
        let hook = shared.at_next_read.take_if(is_it);
        drop(shared);
        if let Some((_, hook)) = hook {
            hook();
        }
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

    /// How many of `wanted` bytes there is room for. They are taken.
    fn take_room(&mut self, wanted: usize) -> usize {
        let Some(room) = &mut self.room else { return wanted };
        let taken = wanted.min(*room as usize);
        *room -= taken as u64;
        taken
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

    fn ignores(&self, path: &Path) -> bool {
        self.ignore_syncs_of.is_some_and(|end| path.to_string_lossy().ends_with(end))
    }

    /// Whether the sync that was counted last is the one that loses what it should save.
    fn loses(&self) -> bool {
        self.lose_at.is_some_and(|sync| sync.checked_add(1) == Some(self.syncs))
    }
}

impl Bytes {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.seen);
        self.pending.push(change);
    }

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

    fn list(&self, path: &Path) -> io::Result<Vec<OsString>> {
        let shared = self.powered()?;
        match shared.names.get(path) {
            Some(None) => {}
            Some(Some(_)) => return Err(io::ErrorKind::NotADirectory.into()),
            None => return Err(not_found()),
        }
        let inside = shared.names.keys().filter(|name| name.parent() == Some(path));
        Ok(inside.filter_map(|name| name.file_name().map(OsString::from)).collect())
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
        let changed = self.powered()?.pending_names.len();
        self.hook(path);
        let mut shared = self.powered()?;
        shared.sync()?;
        if shared.ignores(path) {
            return Ok(());
        }
        if shared.loses() {
            return Err(io::Error::other("the device lost it"));
        }
        let changed = changed.min(shared.pending_names.len());
        let later = shared.pending_names.split_off(changed);
        let (synced, pending): (Vec<_>, Vec<_>) = std::mem::take(&mut shared.pending_names)
            .into_iter()
            .partition(|(name, _)| name.parent() == Some(path) || path.starts_with(name));
        shared.pending_names = pending;
        shared.pending_names.extend(later);
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
    /// Writes as much as there is room for; an error if that is not all.
    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut shared = self.storage.powered()?;
        if shared.refuse_writes {
            return Err(io::Error::other("the device refuses writes"));
        }
        let mut file = lock(&self.bytes);
        let paid = file.seen.len().max(file.reserved);
        let end = offset as usize + bytes.len();
        let end = paid + shared.take_room(end.saturating_sub(paid));
        let fits = bytes.len().min(end.saturating_sub(offset as usize));
        file.change(Change::Write(offset, bytes[..fits].to_vec()));
        if fits < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
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
        self.storage.hook_read(&self.path);
        let _powered = self.storage.powered()?;
        let bytes = lock(&self.bytes);
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let found = from.checked_add(out.len()).and_then(|end| bytes.seen.get(from..end));
        out.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write(offset, bytes)
    }

    fn write_vectored_at(&self, offset: u64, slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        // One write to the fault model: no order holds within it.
        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        self.write(offset, &bytes)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut shared = self.storage.powered()?;
        if shared.refuse_to_reserve {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut file = lock(&self.bytes);
        let paid = file.seen.len().max(file.reserved);
        let end = (offset + len) as usize;
        let wanted = end.saturating_sub(paid);
        if shared.room.is_some_and(|room| room < wanted as u64) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        shared.take_room(wanted);
        file.reserved = file.reserved.max(end);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut shared = self.storage.powered()?;
        let mut file = lock(&self.bytes);
        let wanted = (len as usize).saturating_sub(file.seen.len().max(file.reserved));
        if shared.take_room(wanted) < wanted {
            return Err(io::ErrorKind::StorageFull.into());
        }
        // As on Linux, setting a length gives back what is reserved beyond it.
        file.reserved = file.reserved.min(len as usize);
        file.change(Change::SetLen(len));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let changed = {
            let _powered = self.storage.powered()?;
            lock(&self.bytes).pending.len()
        };
        self.storage.hook(&self.path);
        let mut shared = self.storage.powered()?;
        shared.sync()?;
        if shared.ignores(&self.path) {
            return Ok(());
        }
        let mut bytes = lock(&self.bytes);
        let changed = changed.min(bytes.pending.len());
        let later = bytes.pending.split_off(changed);
        let synced = std::mem::replace(&mut bytes.pending, later);
        if shared.loses() {
            return Err(io::Error::other("the device lost it"));
        }
        synced.iter().for_each(|change| change.apply(&mut bytes.durable));
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
mod tests;
