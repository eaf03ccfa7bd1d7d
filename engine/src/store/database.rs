//! redb, and all that is known of it: the only file that names it.
//!
//! Every commit is redb's "quick repair" kind: it saves the allocator's state, so that the open
//! after a crash takes milliseconds at any size. Reading goes through a [`Snapshot`], which is
//! replaced after each commit, so that readers never wait.

use std::any::Any;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use redb::{
    AccessGuard, ReadOnlyTable, ReadableDatabase, ReadableTableMetadata, StorageError,
    TableDefinition,
};

use super::Counters;
use super::held::HeldFile;
use super::parity::ParityFile;
use super::tables::Table;
use crate::error::{Error, Result};
use crate::limits::DATABASE_CACHE_BYTES;
use crate::storage::File;

type Definition = TableDefinition<'static, &'static [u8], &'static [u8]>;
type OpenTable = ReadOnlyTable<&'static [u8], &'static [u8]>;
type Entry = (AccessGuard<'static, &'static [u8]>, AccessGuard<'static, &'static [u8]>);

/// Changes of tables, by table and key; `None` removes.
pub(super) type Changes = BTreeMap<Table, HashMap<Vec<u8>, Option<Vec<u8>>>>;

/// No changes, of every table: applied to a new database, they make its tables.
pub(super) fn no_changes() -> Changes {
    Changes::from(Table::ALL.map(|table| (table, HashMap::new())))
}

fn definition(table: Table) -> Definition {
    TableDefinition::new(table.name())
}

/// An open database file.
pub(super) struct Database {
    path: PathBuf,
    file: Arc<HeldFile>,
    pages: Arc<ParityFile>,
    /// `None` only while it is dropped.
    database: Option<redb::Database>,
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Database {
    /// Opens the database in `file`. Nothing is written there before [`Self::accept`].
    pub(super) fn open(path: &Path, file: Arc<dyn File>, counters: Arc<Counters>) -> Result<Self> {
        // redb would take an empty file for a new database.
        if file.is_empty().map_err(|error| Error::io("measure", path, error))? {
            return Err(corrupt(path, "it is empty".into()));
        }
        Self::open_backend(path, file, counters, true)
    }

    /// The database is the one that was looked for: from now on it is written to.
    pub(super) fn accept(&self) -> Result<()> {
        self.file.release().map_err(|error| Error::io("write", &self.path, error))
    }

    /// Makes a database of `changes` in the empty `file`, which is to be synced afterwards.
    pub(super) fn create(
        path: &Path,
        file: Arc<dyn File>,
        counters: Arc<Counters>,
        changes: &Changes,
    ) -> Result<()> {
        Self::begin(path, file, counters)?.apply(changes)
    }

    /// Begins a database in the empty `file`, which is to be synced once it is closed.
    pub(super) fn begin(path: &Path, file: Arc<dyn File>, counters: Arc<Counters>) -> Result<Self> {
        let database = Self::open_backend(path, file, counters, false)?;
        database.accept()?;
        Ok(database)
    }

    fn open_backend(
        path: &Path,
        file: Arc<dyn File>,
        counters: Arc<Counters>,
        syncs: bool,
    ) -> Result<Self> {
        let file = HeldFile::new(file).map_err(|error| Error::io("measure", path, error))?;
        let file = Arc::new(file);
        let pages = ParityFile::new(Arc::clone(&file));
        let pages = Arc::new(pages.map_err(|error| translate(path, redb::Error::Io(error)))?);
        let backend = Backend { pages: Arc::clone(&pages), counters, syncs };
        let database = shielded(path, || {
            redb::Builder::new()
                .set_cache_size(DATABASE_CACHE_BYTES)
                .create_with_backend(backend)
                .map_err(redb::Error::from)
        })?;
        Ok(Self { path: path.to_owned(), file, pages, database: Some(database) })
    }

    /// Pages in use that were found damaged, and are so still. Nothing has been lost by that.
    pub(super) fn damaged_pages(&self) -> Vec<u64> {
        self.pages.damaged()
    }

    /// Writes what the damaged pages had, durably.
    pub(super) fn rebuild_pages(&self) -> Result<()> {
        self.pages.rebuild().map_err(|error| Error::io("write", &self.path, error))
    }

    /// Sees to it that part number `part` of the pages can lose one. Says whether there was anything to do; `None`
    /// behind the last part. Durable with the next transaction.
    pub(super) fn protect_pages(&self, part: usize) -> Result<Option<bool>> {
        self.pages.protect(part).map_err(|error| Error::io("use", &self.path, error))
    }

    /// Moves everything together and gives back the rest of the file. Nothing else may use it. A crash
    /// leaves it whole, but the next opening then has to look at all of it.
    pub(super) fn compact(&mut self) -> Result<()> {
        let Self { path, database, .. } = self;
        shielded(path, || {
            let database = database.as_mut().ok_or(redb::Error::DatabaseClosed)?;
            database.compact().map(drop).map_err(redb::Error::from)
        })
    }

    /// Applies `changes` in one durable transaction.
    pub(super) fn apply(&self, changes: &Changes) -> Result<()> {
        shielded(&self.path, || {
            let mut transaction = self.redb()?.begin_write()?;
            transaction.set_quick_repair(true);
            for (table, changes) in changes {
                let mut table = transaction.open_table(definition(*table))?;
                // redb inserts in order cheapest.
                let mut changes: Vec<_> = changes.iter().collect();
                changes.sort_unstable();
                for (key, value) in changes {
                    match value {
                        Some(value) => drop(table.insert(key.as_slice(), value.as_slice())?),
                        None => drop(table.remove(key.as_slice())?),
                    }
                }
            }
            Ok(transaction.commit()?)
        })
    }

    /// The state after the last commit.
    pub(super) fn snapshot(&self) -> Result<Snapshot> {
        shielded(&self.path, || {
            let transaction = self.redb()?.begin_read()?;
            let tables = Table::ALL
                .map(|table| transaction.open_table(definition(table)))
                .into_iter()
                .collect::<Result<Vec<_>, _>>()?;
            Ok(Snapshot { path: self.path.clone(), tables })
        })
    }

    fn redb(&self) -> Result<&redb::Database, redb::Error> {
        self.database.as_ref().ok_or(redb::Error::DatabaseClosed)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // Closing writes, and so reads, which can meet damage like everything else.
        let database = self.database.take();
        let closed = shielded(&self.path, || {
            drop(database);
            Ok(())
        });
        if let Err(error) = closed {
            tracing::warn!(%error, "the database was not closed cleanly");
        }
    }
}

/// One state of the database. It does not change; the space that it holds is reused once it is
/// dropped.
pub(crate) struct Snapshot {
    path: PathBuf,
    tables: Vec<OpenTable>,
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Snapshot {
    /// Calls `with` for the value of `key`, if there is one.
    pub(crate) fn get<T>(
        &self,
        table: Table,
        key: &[u8],
        with: impl FnOnce(&[u8]) -> Result<T>,
    ) -> Result<Option<T>> {
        let found = shielded(&self.path, || {
            Ok(self.table(table).get(key)?.map(|value| with(value.value())))
        })?;
        found.transpose()
    }

    /// Whether there is a value of `key`.
    pub(crate) fn contains(&self, table: Table, key: &[u8]) -> Result<bool> {
        Ok(self.get(table, key, |_| Ok(()))?.is_some())
    }

    /// Calls `visit` for every entry whose key begins with `prefix`, in the order of the keys.
    pub(crate) fn scan(
        &self,
        table: Table,
        prefix: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<()>,
    ) -> Result<()> {
        self.scan_from(table, prefix, |key, value| {
            if !key.starts_with(prefix) {
                return Ok(false);
            }
            visit(key, value).map(|()| true)
        })
    }

    /// Calls `visit` for every entry from `start` on, in the order of the keys, until it says `false`.
    pub(crate) fn scan_from(
        &self,
        table: Table,
        start: &[u8],
        visit: impl FnMut(&[u8], &[u8]) -> Result<bool>,
    ) -> Result<()> {
        shielded(&self.path, || each(self.table(table).range(start..)?, visit))?
    }

    /// Calls `visit` for every entry, in the reverse order of the keys, until it says `false`.
    pub(crate) fn scan_back(
        &self,
        table: Table,
        visit: impl FnMut(&[u8], &[u8]) -> Result<bool>,
    ) -> Result<()> {
        shielded(&self.path, || each(self.table(table).range::<&[u8]>(..)?.rev(), visit))?
    }

    /// The number of entries.
    pub(crate) fn len(&self, table: Table) -> Result<u64> {
        shielded(&self.path, || Ok(self.table(table).len()?))
    }

    fn table(&self, table: Table) -> &OpenTable {
        &self.tables[table as usize]
    }
}

/// Calls `visit` for each of `entries` until it says `false`; its error is no error of redb.
fn each(
    entries: impl Iterator<Item = Result<Entry, StorageError>>,
    mut visit: impl FnMut(&[u8], &[u8]) -> Result<bool>,
) -> Result<Result<()>, redb::Error> {
    for entry in entries {
        let (key, value) = entry?;
        match visit(key.value(), value.value()) {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => return Ok(Err(error)),
        }
    }
    Ok(Ok(()))
}

/// Runs `work` with redb. A damaged file can make redb panic; that is damage, not a bug of ours.
fn shielded<T>(path: &Path, work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(translate(path, error)),
        Err(panic) => Err(corrupt(path, format!("redb cannot use it: {}", message(&*panic)))),
    }
}

fn translate(path: &Path, error: redb::Error) -> Error {
    match error {
        redb::Error::Corrupted(why) => corrupt(path, why),
        redb::Error::DatabaseAlreadyOpen => Error::InUse { path: path.to_owned() },
        redb::Error::Io(error)
            if matches!(
                error.kind(),
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
            ) =>
        {
            corrupt(path, error.to_string())
        }
        redb::Error::Io(error) => Error::io("use", path, error),
        redb::Error::TableDoesNotExist(table) => corrupt(path, format!("it has no table {table}")),
        error => Error::Database { path: path.to_owned(), source: Box::new(error) },
    }
}

fn corrupt(path: &Path, why: String) -> Error {
    Error::corrupt(format!("the database {}", path.display()), why)
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked")
}

/// The file under redb.
#[derive(Debug)]
struct Backend {
    pages: Arc<ParityFile>,
    counters: Arc<Counters>,
    /// Not while a database is made: then only its end counts.
    syncs: bool,
}

impl redb::StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.pages.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.pages.read_at(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.pages.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        if !self.syncs {
            return Ok(());
        }
        self.counters.syncs.fetch_add(1, Ordering::Relaxed);
        self.pages.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.counters.bytes_written.fetch_add(data.len() as u64, Ordering::Relaxed);
        self.pages.write_at(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.pages.flush()
    }
}
