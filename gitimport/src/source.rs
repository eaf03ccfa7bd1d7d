//! What the store needs from the repository besides an import: blobs that are read before they are
//! ingested, and what was damaged.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agentfs_engine::source::{Blob, ObjectSource};
use agentfs_engine::store::Store;
use agentfs_engine::tree::EntryKind;
use agentfs_engine::{Error as EngineError, GitOid, Result as EngineResult, TreeId};

use crate::attributes;
use crate::convert::{Plan, Scope};
use crate::error::{Error, Result};
use crate::lane::{Lane, Turn};
use crate::limits::{
    CONVERTED_BYTES_MAX, TREE_OBJECT_BYTES_MAX, WHOLE_OBJECT_BYTES_MAX, WORKERS_MAX,
};
use crate::object::Kind;
use crate::odb::Reader;
use crate::repository::Repository;
use crate::tree::{GitTree, TreeFault};
use crate::walk::{self, Directory};

/// A repository that is opened when it is first needed. All worktrees of it share one.
pub struct LazyRepository {
    git_dir: PathBuf,
    /// Leaf locks, both.
    opened: Mutex<Option<Arc<Repository>>>,
    readers: Mutex<Vec<Reader>>,
    lane: Lane,
}

impl LazyRepository {
    /// The repository with git directory `git_dir`.
    pub fn new(git_dir: &Path) -> Arc<Self> {
        Arc::new(Self {
            git_dir: git_dir.to_owned(),
            opened: Mutex::default(),
            readers: Mutex::default(),
            lane: Lane::default(),
        })
    }

    /// The repository. One that could not be opened is tried again the next time.
    ///
    /// # Errors
    /// As [`Repository::open`].
    pub fn get(&self) -> Result<Arc<Repository>> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(repository) = &*opened {
            return Ok(Arc::clone(repository));
        }
        let repository = Arc::new(Repository::open(&self.git_dir)?);
        *opened = Some(Arc::clone(&repository));
        Ok(repository)
    }

    /// The repository with its configuration as it is now. That is the one of [`get`](Self::get) mostly.
    ///
    /// # Errors
    /// As [`Repository::open`].
    pub fn configured(&self) -> Result<Arc<Repository>> {
        let repository = self.get()?;
        match repository.is_configured_so() {
            true => Ok(repository),
            false => self.refresh(),
        }
    }

    /// The repository with its configuration and replacements as they are now.
    ///
    /// # Errors
    /// As [`Repository::open`].
    pub fn refresh(&self) -> Result<Arc<Repository>> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let repository = Arc::new(match &*opened {
            Some(before) => before.reopen()?,
            None => Repository::open(&self.git_dir)?,
        });
        *opened = Some(Arc::clone(&repository));
        Ok(repository)
    }

    /// Lends a reader for one call.
    fn with_reader<T>(&self, call: impl FnOnce(&mut Reader) -> Result<T>) -> Result<T> {
        let idle = self.idle().pop();
        let mut reader = match idle {
            Some(reader) => reader,
            None => self.get()?.odb().reader(),
        };
        let result = call(&mut reader);
        reader.trim();
        let mut idle = self.idle();
        if idle.len() < WORKERS_MAX {
            idle.push(reader);
        }
        result
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Reader>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Supplies the blobs and directories of one commit of a repository.
pub struct Source {
    repository: Arc<LazyRepository>,
    tree: GitOid,
}

impl Source {
    /// The blobs of git tree `tree`.
    pub fn new(repository: Arc<LazyRepository>, tree: GitOid) -> Self {
        Self { repository, tree }
    }

    fn read(&self, reader: &mut Reader, oid: &GitOid) -> Result<Blob> {
        let mut bytes = Vec::new();
        let mut turn = None;
        let limit = WHOLE_OBJECT_BYTES_MAX;
        match self.repository.lane.read(&mut turn, reader, oid, Kind::Blob, limit, &mut bytes) {
            Ok(()) => Ok(Blob::Whole(bytes)),
            Err(Error::TooLarge { .. }) => Ok(Blob::Stream(Box::new(reader.stream(oid)?))),
            Err(error) => Err(error),
        }
    }

    /// Follows the names in `path` from the root to a directory.
    fn directory<'l>(
        &'l self,
        reader: &mut Reader,
        turn: &mut Option<Turn<'l>>,
        path: &[u8],
    ) -> Result<Directory> {
        let repository = self.repository.get()?;
        let replacements = repository.replacements();
        let outer = Plan::new(&repository)?.root();
        let mut directory =
            Directory { oid: replacements.of(&self.tree)?, outer, name: Box::default() };
        for name in path.split(|&byte| byte == b'/').filter(|name| !name.is_empty()) {
            let (tree, scope) = self.enter(reader, turn, &directory)?;
            let found = tree
                .find(name)
                .filter(|entry| entry.kind == EntryKind::Directory)
                .ok_or_else(|| Error::corrupt(&directory.oid, "it has no such directory"))?;
            directory =
                Directory { oid: replacements.of(&found.oid)?, outer: scope, name: name.into() };
        }
        Ok(directory)
    }

    /// The entries of a directory, and what applies to them.
    fn enter<'l>(
        &'l self,
        reader: &mut Reader,
        turn: &mut Option<Turn<'l>>,
        directory: &Directory,
    ) -> Result<(GitTree, Scope)> {
        let Directory { oid, outer, name } = directory;
        let lane = &self.repository.lane;
        let mut bytes = Vec::new();
        lane.read(turn, reader, oid, Kind::Tree, TREE_OBJECT_BYTES_MAX, &mut bytes)?;
        let tree = GitTree::parse(oid.kind(), bytes)
            .map_err(|TreeFault { name, why }| Error::refused(&name, oid, why))?;
        let repository = self.repository.get()?;
        let attributes = attributes::read(lane, turn, reader, &tree, repository.replacements())?;
        let scope = outer.enter(name, attributes.as_deref())?;
        Ok((tree, scope))
    }

    /// Converts blob `oid` as a checkout of `path` does.
    fn convert(&self, reader: &mut Reader, oid: &GitOid, path: &[u8]) -> Result<Blob> {
        let (above, name) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b""[..], path),
        };
        let mut turn = None;
        let directory = self.directory(reader, &mut turn, above)?;
        let (_, scope) = self.enter(reader, &mut turn, &directory)?;
        let held = self.repository.get()?.replacements().of(oid)?;
        if !scope.needs_conversion(name) {
            drop(turn);
            return self.read(reader, &held);
        }
        let (_, size) = reader.header(&held)?;
        if size > CONVERTED_BYTES_MAX {
            let what = format!("git object {oid}, which is to be converted,");
            return Err(Error::TooLarge { what, size, limit: CONVERTED_BYTES_MAX });
        }
        let mut bytes = Vec::new();
        self.repository.lane.read_any_size(&mut turn, reader, &held, &mut bytes)?;
        Ok(Blob::Whole(scope.convert(name, oid, &held, &bytes)?.unwrap_or(bytes)))
    }

    fn rebuild(&self, store: &Store, path: &[u8], id: TreeId) -> Result<()> {
        // The walk takes turns of its own.
        let directory =
            self.repository.with_reader(|reader| self.directory(reader, &mut None, path))?;
        walk::rebuild_tree(store, &*self.repository.get()?, &directory, id)
    }
}

impl ObjectSource for Source {
    fn blob(&self, oid: &GitOid) -> EngineResult<Blob> {
        self.repository
            .with_reader(|reader| self.read(reader, oid))
            .map_err(|error| engine_error(oid, error))
    }

    fn converted(&self, oid: &GitOid, path: &[u8]) -> EngineResult<Blob> {
        self.repository
            .with_reader(|reader| self.convert(reader, oid, path))
            .map_err(|error| engine_error(oid, error.at(path)))
    }

    fn rebuild_tree(&self, store: &Store, path: &[u8], id: TreeId) -> EngineResult<()> {
        self.rebuild(store, path, id).map_err(|error| engine_error(&self.tree, error.at(path)))
    }
}

fn engine_error(oid: &GitOid, error: Error) -> EngineError {
    match error {
        Error::Engine(error) => error,
        Error::MissingObject(missing) if missing == *oid => EngineError::MissingObject(missing),
        error => EngineError::Source { oid: *oid, source: Box::new(error) },
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use agentfs_engine::HashKind;
    use agentfs_engine::progress::{Cancel, Silent};

    use super::*;
    use crate::forge::{Forge, noise};
    use crate::gittest::{Sandbox, commit, git};
    use crate::object::from_gix;
    use crate::pipeline;

    fn bytes(blob: Blob) -> std::io::Result<Vec<u8>> {
        match blob {
            Blob::Whole(bytes) => Ok(bytes),
            Blob::Stream(mut stream) => {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes)?;
                Ok(bytes)
            }
        }
    }

    #[test]
    fn blobs_whole_streamed_missing_and_damaged() {
        let forge = Forge::new(HashKind::Sha1);
        let large = noise(WHOLE_OBJECT_BYTES_MAX as usize + 1, 5);
        let [small, large_id] = [&b"small"[..], &large].map(|bytes| forge.loose(Kind::Blob, bytes));
        let source = Source::new(LazyRepository::new(forge.path()), forge.odb().empty_tree());
        let blob = source.blob(&small).unwrap();
        assert!(matches!(&blob, Blob::Whole(bytes) if bytes == b"small"));
        let blob = source.blob(&large_id).unwrap();
        assert!(matches!(blob, Blob::Stream(_)));
        assert!(bytes(blob).unwrap() == large);
        let gone = forge.id(Kind::Blob, b"gone");
        assert!(matches!(source.blob(&gone), Err(EngineError::MissingObject(oid)) if oid == gone));
        forge.loose_as(&small, "blob 5\0", b"smell");
        let error = source.blob(&small).err().unwrap();
        assert!(matches!(&error, EngineError::Source { oid, .. } if *oid == small), "{error}");
        forge.loose_as(&large_id, &format!("blob {}\0", large.len()), &large[1..]);
        assert!(bytes(source.blob(&large_id).unwrap()).is_err());
    }

    #[test]
    fn a_repository_that_appears_later_is_opened_then() {
        let forge = Forge::new(HashKind::Sha1);
        let oid = forge.loose(Kind::Blob, b"x");
        let config = forge.path().join("HEAD");
        let head = std::fs::read(&config).unwrap();
        std::fs::remove_file(&config).unwrap();
        let source = Source::new(LazyRepository::new(forge.path()), forge.odb().empty_tree());
        assert!(source.blob(&oid).is_err());
        std::fs::write(&config, head).unwrap();
        assert!(source.blob(&oid).is_ok());
    }

    #[test]
    fn converted_as_the_checkout_of_a_path() {
        let sandbox = Sandbox::new();
        let path = sandbox.repository("repo");
        commit(&path, "a/b/file.txt", b"one\ntwo\n");
        commit(&path, "a/.gitattributes", b"*.txt text eol=crlf\n");
        let [tree, blob] = ["HEAD^{tree}", "HEAD:a/b/file.txt"].map(|rev| {
            let id = gix::ObjectId::from_hex(git(&path, &["rev-parse", rev]).as_bytes()).unwrap();
            from_gix(&id).unwrap()
        });
        let source = Source::new(LazyRepository::new(&path.join(".git")), tree);
        let at = |path: &[u8]| source.converted(&blob, path).map(|blob| bytes(blob).unwrap());
        assert_eq!(at(b"a/b/file.txt").unwrap(), b"one\r\ntwo\r\n");
        assert_eq!(at(b"file.txt").unwrap(), b"one\ntwo\n");
        assert!(at(b"nowhere/file.txt").is_err());
    }

    /// Every directory below `id`, itself included, with its path.
    fn directories(store: &Store, id: TreeId, path: &str, found: &mut Vec<(String, TreeId)>) {
        found.push((path.to_owned(), id));
        for entry in store.tree(id).unwrap().entries() {
            if let Some(subtree) = entry.subtree {
                let name = std::str::from_utf8(entry.name).unwrap();
                directories(store, subtree.id, &format!("{path}/{name}"), found);
            }
        }
    }

    #[test]
    fn every_directory_is_made_anew_as_the_import_made_it() {
        let sandbox = Sandbox::new();
        let path = sandbox.repository("repo");
        commit(&path, "a/b/c/file.txt", b"one\ntwo\n");
        commit(&path, "a/.gitattributes", b"*.txt text eol=crlf\n");
        commit(&path, "a/b/.gitattributes", b"*.id ident\n");
        commit(&path, "a/b/x.id", b"$Id$\n");
        commit(&path, "b/c/file.txt", b"one\ntwo\n");
        let repository = LazyRepository::new(&path.join(".git"));
        let git = repository.get().unwrap();
        let tree = git.resolve("HEAD").unwrap().tree;
        let dir = tempfile::tempdir().unwrap();
        let whole = Store::open(&dir.path().join("whole")).unwrap();
        let plan = Plan::new(&git).unwrap();
        let (progress, cancel) = (&Silent, &Cancel::default());
        let imported = walk::import_tree(&whole, &git, &tree, &plan, progress, cancel).unwrap();
        let mut all = Vec::new();
        directories(&whole, imported.root.id, "", &mut all);
        assert_eq!(all.len(), 6);
        let source = Source::new(repository, tree);
        for (number, (path, id)) in all.iter().enumerate() {
            let path = path.trim_start_matches('/').as_bytes();
            let lost = Store::open(&dir.path().join(number.to_string())).unwrap();
            source.rebuild_tree(&lost, path, *id).unwrap();
            assert_eq!(lost.tree(*id).unwrap().bytes(), whole.tree(*id).unwrap().bytes());
            let mut below = Vec::new();
            directories(&lost, *id, "", &mut below);
            assert_eq!(lost.counters().trees_healed, below.len() as u64);
            source.rebuild_tree(&lost, path, *id).unwrap();
            assert_eq!(lost.counters().trees_healed, below.len() as u64, "what is whole stays");
            let other = all[(number + 1) % all.len()].1;
            let error = source.rebuild_tree(&lost, path, other).unwrap_err();
            assert!(error.is_corruption(), "{error}");
        }
        let error = source.rebuild_tree(&whole, b"nowhere", imported.root.id).unwrap_err();
        assert!(error.to_string().contains("no such directory"), "{error}");
        // With the git map, no other directory is looked at.
        pipeline::ingest(&whole, &git, imported.root.id, &imported.trees, progress, cancel)
            .unwrap();
        source.rebuild_tree(&whole, b"", imported.root.id).unwrap();
        assert_eq!(whole.counters().trees_healed, 0);
    }
}
