//! The object database of a repository: packs and loose objects, alternates included.
//!
//! What a reader returns is what its id says: every object is hashed, sizes that objects state are
//! compared with limits before memory is taken for them, and where one copy of an object is damaged
//! another one is looked for, as git does. Nothing is mapped into memory.

pub(crate) mod alternates;
mod cache;
mod delta;
mod file;
mod held;
mod index;
mod inflate;
mod loose;
mod marks;
mod pack;
mod prefix;
mod reader;
mod stream;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use agentfs_engine::{GitOid, HashKind};

use crate::error::{Error, Result};
pub use crate::object::Kind;
use crate::object::object_id;
use pack::Pack;
pub use reader::{Position, Reader};
pub use stream::BlobStream;

/// The packs of a database when it was last looked at, the newest first.
type Packs = Arc<[Arc<Pack>]>;

/// An object database. Threads read it through a [`Reader`] each.
#[derive(Debug)]
pub struct Odb {
    hash: HashKind,
    /// The repository's own object directory, then its alternates.
    dirs: Vec<PathBuf>,
    /// The object that exists in every repository without being stored.
    empty_tree: GitOid,
    /// Leaf lock: nothing else is taken under it.
    packs: RwLock<Packs>,
}

impl Odb {
    /// Opens the object directory `objects`.
    ///
    /// # Errors
    /// [`Error::CorruptFile`] naming a damaged pack index or list of alternates, [`Error::Io`].
    pub fn open(objects: &Path, hash: HashKind) -> Result<Arc<Self>> {
        let mut dirs = vec![objects.to_owned()];
        dirs.extend(alternates::of(objects)?);
        let empty_tree = object_id(hash, Kind::Tree, b"")
            .map_err(|why| Error::CorruptFile { path: objects.to_owned(), why })?;
        let packs = scan(&dirs, hash, &[])?.into();
        Ok(Arc::new(Self { hash, dirs, empty_tree, packs: RwLock::new(packs) }))
    }

    /// The hash algorithm of its objects.
    pub fn hash(&self) -> HashKind {
        self.hash
    }

    /// The id of the tree without entries.
    pub fn empty_tree(&self) -> GitOid {
        self.empty_tree
    }

    /// A reader for one thread.
    pub fn reader(self: &Arc<Self>) -> Reader {
        Reader::new(Arc::clone(self))
    }

    fn packs(&self) -> Packs {
        // Replacing the list cannot be interrupted by a panic.
        Arc::clone(&self.packs.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks for packs again, unless somebody did since `seen` was the list. The list is another
    /// one if it has changed.
    fn refresh(&self, seen: &Packs) -> Result<Packs> {
        let current = self.packs();
        if !Arc::ptr_eq(&current, seen) {
            return Ok(current);
        }
        let found = scan(&self.dirs, self.hash, &current)?;
        let same = found.len() == current.len()
            && found.iter().zip(current.iter()).all(|(new, old)| Arc::ptr_eq(new, old));
        if same {
            return Ok(current);
        }
        let found: Packs = found.into();
        *self.packs.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&found);
        Ok(found)
    }

    /// Why `oid` may be missing: a directory or an index that should have had it, if one is wrong.
    fn missing(&self, oid: &GitOid, packs: &Packs) -> Error {
        if let Some(dir) = self.dirs.iter().find(|dir| !dir.is_dir()) {
            let why = format!("the object directory does not exist, and object {oid} is missing");
            return Error::CorruptFile { path: dir.clone(), why };
        }
        let damaged = packs.iter().find_map(|pack| pack.index().verify().err());
        damaged.unwrap_or(Error::MissingObject(*oid))
    }
}

/// The packs in `dirs`, the newest first. Those of `known` that are still there are kept.
fn scan(dirs: &[PathBuf], hash: HashKind, known: &[Arc<Pack>]) -> Result<Vec<Arc<Pack>>> {
    let mut found = Vec::new();
    for dir in dirs {
        let dir = dir.join("pack");
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::io("list", &dir, error)),
        };
        for entry in entries {
            let path = entry.map_err(|error| Error::io("list", &dir, error))?.path();
            if path.extension().is_none_or(|extension| extension != "idx") {
                continue;
            }
            // An index without its pack is being written or deleted.
            let Ok(meta) = path.with_extension("pack").metadata() else { continue };
            let modified = meta.modified().ok();
            let pack = match known.iter().find(|pack| pack.index().file().path() == path) {
                Some(pack) => Arc::clone(pack),
                None => match Pack::open(path, hash) {
                    Ok(pack) => Arc::new(pack),
                    Err(Error::Io { source, .. })
                        if source.kind() == std::io::ErrorKind::NotFound =>
                    {
                        continue;
                    }
                    Err(error) => return Err(error),
                },
            };
            found.push((modified, pack));
        }
    }
    found.sort_by_key(|(modified, _)| std::cmp::Reverse(*modified));
    Ok(found.into_iter().map(|(_, pack)| pack).collect())
}

/// Why an object could not be had from one place.
enum Fault {
    /// It is damaged there.
    Bad(String),
    /// It, a member of its delta chain, or the whole chain has more bytes than may be.
    Large { size: u64, limit: u64 },
    /// A file of the database is damaged or cannot be read.
    Error(Error),
}

impl Fault {
    fn bad(why: impl Into<String>) -> Self {
        Self::Bad(why.into())
    }

    /// The fault as an error about `oid`, which was looked for in the file `path`.
    fn of(self, oid: &GitOid, path: &Path) -> Error {
        match self {
            Self::Bad(why) => Error::corrupt(oid, format!("{why} (in {})", path.display())),
            Self::Large { size, limit } => {
                let what = format!("git object {oid}, or what it is made from,");
                Error::TooLarge { what, size, limit }
            }
            Self::Error(error) => error,
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<&'static str> for Fault {
    fn from(why: &'static str) -> Self {
        Self::Bad(why.into())
    }
}
