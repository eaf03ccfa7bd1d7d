//! Blobs for the store that reads need before they are ingested.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use agentfs_engine::source::{Blob, ObjectSource};
use agentfs_engine::tree::EntryKind;
use agentfs_engine::{Error as EngineError, GitOid, Result as EngineResult};

use crate::attributes;
use crate::convert::Plan;
use crate::error::{Error, Result};
use crate::lane::Lane;
use crate::limits::{
    CONVERTED_BYTES_MAX, TREE_OBJECT_BYTES_MAX, WHOLE_OBJECT_BYTES_MAX, WORKERS_MAX,
};
use crate::object::Kind;
use crate::odb::Reader;
use crate::repository::Repository;
use crate::tree::{GitTree, TreeFault};

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

/// Supplies the blobs of one commit of a repository.
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

    /// Converts blob `oid` as a checkout of `path` does.
    fn convert(&self, reader: &mut Reader, oid: &GitOid, path: &[u8]) -> Result<Vec<u8>> {
        let lane = &self.repository.lane;
        let mut scope = Plan::new(&*self.repository.get()?)?.root();
        let (directory, name) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&b""[..], path),
        };
        let below_root = directory.split(|&byte| byte == b'/').filter(|name| !name.is_empty());
        let mut tree_oid = self.tree;
        let mut bytes = Vec::new();
        let mut names = std::iter::once(&b""[..]).chain(below_root).peekable();
        let mut turn = None;
        while let Some(entered) = names.next() {
            lane.read(&mut turn, reader, &tree_oid, Kind::Tree, TREE_OBJECT_BYTES_MAX, &mut bytes)?;
            let tree = GitTree::parse(tree_oid.kind(), std::mem::take(&mut bytes))
                .map_err(|TreeFault { name, why }| Error::refused(&name, &tree_oid, why))?;
            let attributes = attributes::read(lane, &mut turn, reader, &tree)?;
            scope = scope.enter(entered, attributes.as_deref())?;
            if let Some(next) = names.peek() {
                tree_oid = tree
                    .find(next)
                    .filter(|entry| entry.kind == EntryKind::Directory)
                    .ok_or_else(|| Error::corrupt(&tree_oid, "it has no such directory"))?
                    .oid;
            }
        }
        let (_, size) = reader.header(oid)?;
        if size > CONVERTED_BYTES_MAX {
            let what = format!("git object {oid}, which is to be converted,");
            return Err(Error::TooLarge { what, size, limit: CONVERTED_BYTES_MAX });
        }
        lane.read_any_size(&mut turn, reader, oid, &mut bytes)?;
        Ok(scope.convert(name, oid, &bytes)?.unwrap_or(bytes))
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
            .with_reader(|reader| self.convert(reader, oid, path).map(Blob::Whole))
            .map_err(|error| engine_error(oid, error.at(path)))
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

    use super::*;
    use crate::forge::{Forge, noise};
    use crate::gittest::{Sandbox, commit, git};
    use crate::object::from_gix;

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
}
