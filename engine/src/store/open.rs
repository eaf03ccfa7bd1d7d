//! Creates and opens a store.
//!
//! The file `format` says of which version the store is, outside the database, so that a version
//! that keeps another database is refused by name. It is written last of all: a store whose creation
//! was cut short has no such file yet, and its creation is simply finished. Files appear complete,
//! by renaming, or not at all.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwap;

use super::append::{Appender, Tail};
use super::database::{Changes, Database, Snapshot, no_changes};
use super::segment::Segments;
use super::tables::{META_COMPACT, META_FORMAT, META_TAIL, Table, corrupt_entry, seal, unseal};
use super::turn::Turns;
use super::{Cache, Core, Counters, STORE_FORMAT, WriteState};
use crate::error::{Error, Result};
use crate::limits::{CHUNK_CACHE_BYTES, MANIFEST_CACHE_BYTES};
use crate::storage::{File, Storage};

pub(super) const DATABASE_FILE: &str = "store.redb";
pub(super) const DATABASE_NEW_FILE: &str = "store.redb.new";
const FORMAT_FILE: &str = "format";
const FORMAT_NEW_FILE: &str = "format.new";
/// Locked while the store is open. It stays empty.
const LOCK_FILE: &str = "store.lock";
const SEGMENTS_DIR: &str = "segments";

const FORMAT_PREFIX: &str = "agentfs store ";
/// More than any text of a format has.
const FORMAT_BYTES_MAX: u64 = 64;

pub(super) fn open(storage: Arc<dyn Storage>, dir: &Path) -> Result<Core> {
    create_dir(&*storage, dir)?;
    // Before anything is touched, and again when nobody else can be creating it.
    read_format(&*storage, dir)?;
    let lock = lock(&*storage, dir)?;
    let finished = read_format(&*storage, dir)?;
    let database = dir.join(DATABASE_FILE);
    let exists =
        storage.exists(&database).map_err(|error| Error::io("look for", &database, error))?;
    let counters = Arc::new(Counters::default());
    let segments_dir = dir.join(SEGMENTS_DIR);
    create_dir(&*storage, &segments_dir)?;
    match (finished, exists) {
        (true, false) => return Err(damaged(&database, "it is missing")),
        (false, false) => create_database(&*storage, dir, &counters)?,
        (_, true) => remove_unfinished(&*storage, &dir.join(DATABASE_NEW_FILE))?,
    }
    let segments = Arc::new(Segments::new(Arc::clone(&storage), segments_dir));
    let (database, snapshot, appender) = open_database(&segments, dir, &counters, true)?;
    if !finished {
        write_format(&*storage, dir)?;
    }
    let state = WriteState { database: Some(database), appender, failed: None };
    Ok(Core {
        dir: dir.to_owned(),
        segments,
        snapshot: ArcSwap::from_pointee(snapshot),
        turns: Turns::default(),
        state: Mutex::new(state),
        chunks: Cache::new(CHUNK_CACHE_BYTES),
        manifests: Cache::new(MANIFEST_CACHE_BYTES),
        counters,
        collector: Arc::default(),
        upkeep: Mutex::default(),
        _lock: lock,
    })
}

/// Opens the database and everything that depends on its state. With `alone`, when nobody reads it, it is
/// compacted if a garbage collection has asked for that.
pub(super) fn open_database(
    segments: &Arc<Segments>,
    dir: &Path,
    counters: &Arc<Counters>,
    alone: bool,
) -> Result<(Database, Snapshot, Appender)> {
    let path = dir.join(DATABASE_FILE);
    let file =
        segments.storage().open(&path, false).map_err(|error| Error::io("open", &path, error))?;
    let mut database = Database::open(&path, file, Arc::clone(counters))?;
    let snapshot = database.snapshot()?;
    let found =
        meta(&snapshot, META_FORMAT, |value| value.try_into().ok().map(u32::from_le_bytes))?;
    if found != STORE_FORMAT {
        return Err(Error::UnknownFormat { path: dir.to_owned(), found, known: STORE_FORMAT });
    }
    let appender = Appender::open(Arc::clone(segments), tail_of(&snapshot)?)?;
    database.accept()?;
    if !alone || !snapshot.contains(Table::Meta, META_COMPACT)? {
        return Ok((database, snapshot, appender));
    }
    drop(snapshot);
    database.compact()?;
    let done = HashMap::from([(META_COMPACT.to_vec(), None)]);
    database.apply(&Changes::from([(Table::Meta, done)]))?;
    let snapshot = database.snapshot()?;
    Ok((database, snapshot, appender))
}

/// The end of what is stored in segments.
pub(crate) fn tail_of(snapshot: &Snapshot) -> Result<Tail> {
    meta(snapshot, META_TAIL, Tail::decode)
}

fn meta<T>(snapshot: &Snapshot, key: &[u8], decode: impl Fn(&[u8]) -> Option<T>) -> Result<T> {
    snapshot
        .get(Table::Meta, key, |sealed| Ok(decode(unseal(Table::Meta, key, sealed)?)))?
        .flatten()
        .ok_or_else(|| corrupt_entry(Table::Meta, key, "it is missing or impossible"))
}

/// Makes an empty database under another name and renames it: a database is complete or absent.
fn create_database(storage: &dyn Storage, dir: &Path, counters: &Arc<Counters>) -> Result<()> {
    let new = dir.join(DATABASE_NEW_FILE);
    let file = create_anew(storage, &new)?;
    let mut changes = no_changes();
    for (key, value) in
        [(META_FORMAT, STORE_FORMAT.to_le_bytes().to_vec()), (META_TAIL, Tail::default().encode())]
    {
        let sealed = seal(key, value);
        changes.entry(Table::Meta).or_default().insert(key.to_vec(), Some(sealed));
    }
    Database::create(&new, Arc::clone(&file), Arc::clone(counters), &changes)?;
    put_in_place(storage, &*file, &new, &dir.join(DATABASE_FILE))
}

/// Removes the database that a process was writing anew when it ended: it may be as large as the one that there is.
fn remove_unfinished(storage: &dyn Storage, path: &Path) -> Result<()> {
    if !storage.exists(path).map_err(|error| Error::io("look for", path, error))? {
        return Ok(());
    }
    // A crash of the machine may bring it back, to be removed again.
    storage.remove(path).map_err(|error| Error::io("remove", path, error))
}

/// An empty file, whatever an earlier attempt left under its name.
pub(super) fn create_anew(storage: &dyn Storage, path: &Path) -> Result<Arc<dyn File>> {
    match storage.remove(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", path, error))
        }
        _ => storage.open(path, true).map_err(|error| Error::io("create", path, error)),
    }
}

/// Gives the complete `file` its final name, durably.
pub(super) fn put_in_place(
    storage: &dyn Storage,
    file: &dyn File,
    from: &Path,
    to: &Path,
) -> Result<()> {
    file.sync().map_err(|error| Error::io("sync", from, error))?;
    storage.rename(from, to).map_err(|error| Error::io("rename", from, error))?;
    to.parent().map_or(Ok(()), |dir| sync_dir(storage, dir))
}

fn lock(storage: &dyn Storage, dir: &Path) -> Result<Arc<dyn File>> {
    let path = dir.join(LOCK_FILE);
    let file = storage.open(&path, true).map_err(|error| Error::io("open", &path, error))?;
    match file.try_lock() {
        Ok(true) => Ok(file),
        Ok(false) => Err(Error::InUse { path: dir.to_owned() }),
        Err(error) => Err(Error::io("lock", &path, error)),
    }
}

/// Whether the store states this format; `false` if it states none yet.
fn read_format(storage: &dyn Storage, dir: &Path) -> Result<bool> {
    let path = dir.join(FORMAT_FILE);
    let file = match storage.open(&path, false) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::io("open", &path, error)),
    };
    let len = file.len().map_err(|error| Error::io("measure", &path, error))?;
    let mut text = vec![0; len.min(FORMAT_BYTES_MAX) as usize];
    file.read_at(0, &mut text).map_err(|error| Error::io("read", &path, error))?;
    let found = str::from_utf8(&text)
        .ok()
        .and_then(|text| text.strip_prefix(FORMAT_PREFIX)?.strip_suffix('\n')?.parse().ok());
    match found {
        Some(STORE_FORMAT) => Ok(true),
        Some(found) => {
            Err(Error::UnknownFormat { path: dir.to_owned(), found, known: STORE_FORMAT })
        }
        None => Err(damaged(&path, "it does not state the format of a store")),
    }
}

fn write_format(storage: &dyn Storage, dir: &Path) -> Result<()> {
    let new = dir.join(FORMAT_NEW_FILE);
    let file = create_anew(storage, &new)?;
    let text = format!("{FORMAT_PREFIX}{STORE_FORMAT}\n");
    file.write_at(0, text.as_bytes()).map_err(|error| Error::io("write", &new, error))?;
    put_in_place(storage, &*file, &new, &dir.join(FORMAT_FILE))
}

fn create_dir(storage: &dyn Storage, dir: &Path) -> Result<()> {
    if storage.exists(dir).map_err(|error| Error::io("look for", dir, error))? {
        return Ok(());
    }
    storage.create_dir(dir).map_err(|error| Error::io("create", dir, error))?;
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    sync_dir(storage, parent.unwrap_or(Path::new(".")))
}

fn sync_dir(storage: &dyn Storage, dir: &Path) -> Result<()> {
    storage.sync_dir(dir).map_err(|error| Error::io("sync", dir, error))
}

fn damaged(path: &Path, why: &str) -> Error {
    Error::corrupt(format!("the file {}", path.display()), why)
}
