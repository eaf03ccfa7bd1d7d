//! A repository: its configuration and references through gix, its objects through [`Odb`].

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use agentfs_engine::{GitOid, HashKind};
use gix::bstr::ByteSlice;

use crate::error::{Error, Result};
use crate::limits::{SYMBOLIC_REFERENCES_MAX, TAG_CHAIN_MAX, WHOLE_OBJECT_BYTES_MAX};
use crate::object::{Kind, from_gix, to_gix_kind};
use crate::odb::{Odb, Reader};
use crate::references::Configuration;
use crate::replace::Replacements;
use crate::tree::Remembered;

/// An open repository.
pub struct Repository {
    git: gix::ThreadSafeRepository,
    git_dir: PathBuf,
    odb: Arc<Odb>,
    replacements: Arc<Replacements>,
    configuration: Configuration,
    trees: Arc<Remembered>,
}

/// What is needed of a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Its id.
    pub id: GitOid,
    /// Its tree.
    pub tree: GitOid,
    /// When it was committed, in seconds since 1970; 0 if it does not say.
    pub time: i64,
}

/// Where `HEAD` leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Head {
    /// To a branch.
    Branch {
        /// Its name without `refs/heads/`.
        name: String,
        /// Its newest commit.
        commit: Commit,
    },
    /// To a commit.
    Detached(Commit),
    /// To a branch that does not exist yet, as in an empty repository.
    Unborn {
        /// Its name without `refs/heads/`.
        name: String,
    },
}

impl Repository {
    /// Opens the git directory `git_dir`: that of a bare repository, a `.git` directory, or that of
    /// a linked worktree.
    ///
    /// # Errors
    /// [`Error::NotARepository`], [`Error::Git`] for configuration that cannot be read, or what
    /// [`Odb::open`] meets.
    pub fn open(git_dir: &Path) -> Result<Self> {
        Self::open_with(git_dir, None, Arc::default())
    }

    /// Opens it anew: with its configuration and replacements as they are now, and with what is in
    /// memory of its objects.
    ///
    /// # Errors
    /// As [`Repository::open`].
    pub fn reopen(&self) -> Result<Self> {
        Self::open_with(&self.git_dir, Some(&self.odb), Arc::clone(&self.trees))
    }

    fn open_with(git_dir: &Path, odb: Option<&Arc<Odb>>, trees: Arc<Remembered>) -> Result<Self> {
        let begun = SystemTime::now();
        let not_one = |why: String| Error::NotARepository { path: git_dir.to_owned(), why };
        // gix reads objects only to resolve what is not a plain reference or a full id.
        let limits = [format!("gitoxide.objects.allocLimit={WHOLE_OBJECT_BYTES_MAX}")];
        let options = gix::open::Options::default().open_path_as_is(true).config_overrides(limits);
        let opened = guarded(|| gix::ThreadSafeRepository::open_opts(git_dir, options));
        let git = match opened {
            Ok(Ok(git)) => git,
            Ok(Err(error)) if error.is_not_found() => return Err(not_one(plain(&error))),
            Ok(Err(error)) => {
                let action = "read the configuration".into();
                return Err(Error::Git {
                    action,
                    git_dir: git_dir.to_owned(),
                    source: Box::new(error),
                });
            }
            Err(why) => return Err(not_one(why)),
        };
        let local = git.to_thread_local();
        let hash = match local.object_hash() {
            gix::hash::Kind::Sha1 => HashKind::Sha1,
            gix::hash::Kind::Sha256 => HashKind::Sha256,
            other => return Err(not_one(format!("its hash algorithm {other} is unknown"))),
        };
        let odb = match odb.filter(|odb| odb.hash() == hash) {
            Some(odb) => Arc::clone(odb),
            None => Odb::open(&local.common_dir().join("objects"), hash)?,
        };
        let replacements = Arc::new(Replacements::of_repository(&local, &odb));
        let configuration = Configuration::of(&local, begun);
        Ok(Self { git, git_dir: git_dir.to_owned(), odb, replacements, configuration, trees })
    }

    /// The git directory as it was given to [`Repository::open`].
    pub fn git_dir(&self) -> &Path {
        &self.git_dir
    }

    /// The hash algorithm of its objects.
    pub fn hash(&self) -> HashKind {
        self.odb.hash()
    }

    /// Its objects.
    pub fn odb(&self) -> &Arc<Odb> {
        &self.odb
    }

    /// What is read in the place of something else.
    pub(crate) fn replacements(&self) -> &Arc<Replacements> {
        &self.replacements
    }

    /// Trees of it that were read not long ago.
    pub(crate) fn trees(&self) -> &Remembered {
        &self.trees
    }

    /// Whether its configuration is still what it was opened with.
    pub(crate) fn is_configured_so(&self) -> bool {
        self.configuration.is_current()
    }

    /// gix's view of it, for this thread.
    pub(crate) fn gix(&self) -> gix::Repository {
        self.git.to_thread_local()
    }

    /// Finds the commit that `rev` names, as `git rev-parse` would: a full or abbreviated id, a
    /// branch, a tag, or an expression of these.
    ///
    /// # Errors
    /// [`Error::NoSuchRevision`], [`Error::NotACommit`], or what reading an object meets.
    pub fn resolve(&self, rev: &str) -> Result<Commit> {
        let oid = match self.full_id(rev) {
            Some(oid) => oid,
            None => match self.reference(rev)? {
                Some(oid) => oid,
                None => match self.abbreviation(rev)? {
                    Some(oid) => oid,
                    None => self.expression(rev)?,
                },
            },
        };
        self.peel(oid, rev)
    }

    /// Reads `HEAD`.
    ///
    /// # Errors
    /// [`Error::Git`] if it cannot be read, [`Error::NotACommit`], or what reading an object meets.
    pub fn head(&self) -> Result<Head> {
        let git = self.gix();
        let head = guarded(|| git.head())
            .map_err(|why| self.failed("read HEAD", why))?
            .map_err(|error| self.failed("read HEAD", error))?;
        let short = |name: &gix::refs::FullNameRef| {
            let full = name.as_bstr();
            full.strip_prefix(b"refs/heads/").unwrap_or(full).to_str_lossy().into_owned()
        };
        match head.kind {
            gix::head::Kind::Unborn(name) => Ok(Head::Unborn { name: short(name.as_ref()) }),
            gix::head::Kind::Detached { target, .. } => {
                Ok(Head::Detached(self.peel(self.own_id(&target, "HEAD")?, "HEAD")?))
            }
            gix::head::Kind::Symbolic(branch) => {
                let name = short(branch.name.as_ref());
                let target = self
                    .reference(&branch.name.as_bstr().to_str_lossy())?
                    .ok_or_else(|| self.failed("follow HEAD", format!("{name} leads nowhere")))?;
                Ok(Head::Branch { commit: self.peel(target, "HEAD")?, name })
            }
        }
    }

    /// Reads `rev` as a full object id.
    pub(crate) fn full_id(&self, rev: &str) -> Option<GitOid> {
        let id = gix::ObjectId::from_hex(rev.as_bytes()).ok()?;
        (id.kind() == to_gix_kind(self.hash())).then(|| from_gix(&id)).flatten()
    }

    /// The object that reference `name` leads to, if there is one of that full or short name.
    pub(crate) fn reference(&self, name: &str) -> Result<Option<GitOid>> {
        let git = self.gix();
        let target = guarded(|| -> gix::Result<_> {
            let Ok(name) = <&gix::refs::PartialNameRef>::try_from(name) else { return Ok(None) };
            let Some(mut reference) = git.try_find_reference(name)? else { return Ok(None) };
            for _ in 0..SYMBOLIC_REFERENCES_MAX {
                match reference.follow() {
                    Some(next) => reference = next?,
                    None => break,
                }
            }
            Ok(reference.try_id().map(gix::Id::detach))
        });
        match target {
            Ok(Ok(Some(target))) => self.own_id(&target, name).map(Some),
            Ok(Ok(None)) => Ok(None),
            // The branch of an empty repository.
            Ok(Err(error)) if error.is_not_found() => Ok(None),
            Ok(Err(error)) => Err(self.failed(&format!("read reference {name}"), error)),
            Err(why) => Err(self.failed(&format!("read reference {name}"), why)),
        }
    }

    /// The object whose id begins with `rev`. Among several it is the only one that leads to a
    /// commit.
    fn abbreviation(&self, rev: &str) -> Result<Option<GitOid>> {
        let mut reader = self.odb.reader();
        let mut found = reader.abbreviated(rev)?;
        if found.len() > 1 {
            let mut kinds = found.iter().map(|oid| reader.header(oid));
            let commits = kinds.try_fold(Vec::new(), |mut commits, kind| {
                commits.push(matches!(kind?.0, Kind::Commit | Kind::Tag));
                Ok::<_, Error>(commits)
            })?;
            let mut commits = commits.into_iter();
            found.retain(|_| commits.next().unwrap_or(false));
        }
        match found.as_slice() {
            [] => Ok(None),
            [only] => Ok(Some(*only)),
            [one, other, ..] => Err(Error::NoSuchRevision {
                rev: rev.into(),
                git_dir: self.git_dir.clone(),
                why: format!("it may be {one} or {other}"),
            }),
        }
    }

    /// What gix makes of `rev`.
    fn expression(&self, rev: &str) -> Result<GitOid> {
        let git = self.gix();
        let no_such =
            |why| Error::NoSuchRevision { rev: rev.into(), git_dir: self.git_dir.clone(), why };
        let id = guarded(|| git.rev_parse_single(rev).map(gix::Id::detach))
            .map_err(no_such)?
            .map_err(|error| no_such(plain(&error)))?;
        self.own_id(&id, rev)
    }

    fn own_id(&self, id: &gix::hash::oid, rev: &str) -> Result<GitOid> {
        from_gix(id)
            .filter(|oid| oid.kind() == self.hash())
            .ok_or_else(|| self.failed(&format!("use {rev}"), "it has an id of another algorithm"))
    }

    /// Follows tags from `oid` to a commit and reads it.
    fn peel(&self, oid: GitOid, rev: &str) -> Result<Commit> {
        let mut reader = self.odb.reader();
        let mut bytes = Vec::new();
        let mut id = oid;
        for _ in 0..TAG_CHAIN_MAX {
            match self.read(&mut reader, id, rev, &mut bytes)? {
                Kind::Tag => id = self.tag_target(&id, &bytes)?,
                Kind::Commit => return self.parse_commit(&id, &bytes),
                kind => return Err(Error::NotACommit { rev: rev.into(), oid: id, kind }),
            }
        }
        Err(self.failed(&format!("use {rev}"), format!("more than {TAG_CHAIN_MAX} tags of tags")))
    }

    /// Reads an object that may be a commit; only such a one, or a tag, is sure to be in `bytes`.
    fn read(
        &self,
        reader: &mut Reader,
        oid: GitOid,
        rev: &str,
        bytes: &mut Vec<u8>,
    ) -> Result<Kind> {
        let oid = self.replacements.of(&oid)?;
        let kind = match reader.read_any(&oid, WHOLE_OBJECT_BYTES_MAX, bytes) {
            // A large blob need not be read to know that it is none.
            Err(Error::TooLarge { what, size, limit }) => match reader.header(&oid)? {
                (Kind::Commit | Kind::Tag, _) => Err(Error::TooLarge { what, size, limit }),
                (kind, _) => Ok(kind),
            },
            result => result,
        };
        kind.map_err(|error| match error {
            Error::MissingObject(oid) => Error::NoSuchRevision {
                rev: rev.into(),
                git_dir: self.git_dir.clone(),
                why: format!("there is no object {oid}"),
            },
            error => error,
        })
    }

    fn tag_target(&self, id: &GitOid, bytes: &[u8]) -> Result<GitOid> {
        let hash = to_gix_kind(self.hash());
        guarded(|| gix::objs::TagRefIter::from_bytes(bytes, hash).target_id())
            .map_err(|why| Error::corrupt(id, why))?
            .ok()
            .and_then(|target| from_gix(&target))
            .ok_or_else(|| Error::corrupt(id, "the tag does not name an object"))
    }

    fn parse_commit(&self, id: &GitOid, bytes: &[u8]) -> Result<Commit> {
        let hash = to_gix_kind(self.hash());
        let parsed = guarded(|| {
            let mut fields = gix::objs::CommitRefIter::from_bytes(bytes, hash);
            let tree = fields.tree_id().ok()?;
            let time = fields.committer().ok().and_then(|committer| committer.time().ok());
            Some((from_gix(&tree)?, time.map_or(0, |time| time.seconds.max(0))))
        });
        let (tree, time) = parsed
            .map_err(|why| Error::corrupt(id, why))?
            .ok_or_else(|| Error::corrupt(id, "the commit does not name a tree"))?;
        Ok(Commit { id: *id, tree, time })
    }

    fn failed(
        &self,
        action: &str,
        why: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        Error::Git { action: action.into(), git_dir: self.git_dir.clone(), source: why.into() }
    }
}

/// Calls gix on bytes that may be hostile. A panic in it, which would be a defect, is a failure.
pub(crate) fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|_| "gix failed on it".into())
}

/// The message of a gix error in one line, without the backtrace that some have.
fn plain(error: &dyn std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forge::{Forge, IndexVersion, Packed, PackedForm};
    use crate::gittest::{Sandbox, git};

    fn open(path: &Path) -> Repository {
        Repository::open(&path.join(".git")).unwrap()
    }

    #[test]
    fn revisions_are_those_of_git() {
        for format in ["sha1", "sha256"] {
            let sandbox = Sandbox::new();
            let path = sandbox.empty_repository("repo", &[&format!("--object-format={format}")]);
            for name in ["one", "two", "three"] {
                crate::gittest::commit(&path, name, name.as_bytes());
            }
            git(&path, &["branch", "side/way", "HEAD~1"]);
            git(&path, &["tag", "light", "HEAD~2"]);
            git(&path, &["tag", "-am", "x", "heavy", "HEAD~1"]);
            git(&path, &["tag", "-am", "x", "heavier", "heavy"]);
            let full = git(&path, &["rev-parse", "HEAD~1"]);
            let repository = open(&path);
            for rev in [
                "HEAD",
                "main",
                "refs/heads/main",
                "heads/side/way",
                "side/way",
                "light",
                "heavy",
                "heavier",
                "HEAD~2",
                "main^",
                "heavier^{commit}",
                &full,
                &full[..12],
            ] {
                let commit = repository.resolve(rev).unwrap();
                let expected = git(&path, &["rev-parse", &format!("{rev}^{{commit}}")]);
                assert_eq!(commit.id.to_string(), expected, "{rev}");
                let tree = git(&path, &["rev-parse", &format!("{rev}^{{tree}}")]);
                assert_eq!((commit.tree.to_string(), commit.time), (tree, 1_700_000_000));
            }
            for rev in
                ["nonsense", "HEAD~9", "", "-x", "a..b", &full.replace(char::is_alphabetic, "0")]
            {
                let error = repository.resolve(rev).unwrap_err();
                assert!(
                    matches!(&error, Error::NoSuchRevision { rev: named, .. } if named == rev),
                    "{rev}: {error}"
                );
            }
            for rev in ["HEAD^{tree}", "HEAD:one"] {
                let error = repository.resolve(rev).unwrap_err();
                assert!(
                    matches!(&error, Error::NotACommit { rev: named, .. } if named == rev),
                    "{rev}: {error}"
                );
            }
        }
    }

    #[test]
    fn heads_of_all_kinds() {
        let sandbox = Sandbox::new();
        let path = sandbox.empty_repository("repo", &[]);
        assert_eq!(open(&path).head().unwrap(), Head::Unborn { name: "main".into() });
        let error = open(&path).resolve("HEAD").unwrap_err();
        assert!(matches!(error, Error::NoSuchRevision { .. }), "{error}");
        crate::gittest::commit(&path, "file", b"x");
        git(&path, &["pack-refs", "--all"]);
        let repository = open(&path);
        let commit = repository.resolve("main").unwrap();
        assert_eq!(repository.head().unwrap(), Head::Branch { name: "main".into(), commit });
        git(&path, &["checkout", "-q", "--detach"]);
        assert_eq!(open(&path).head().unwrap(), Head::Detached(commit));
        // Symbolic references that lead to each other must not be followed for ever.
        git(&path, &["symbolic-ref", "refs/heads/a", "refs/heads/b"]);
        git(&path, &["symbolic-ref", "refs/heads/b", "refs/heads/a"]);
        assert!(open(&path).resolve("a").is_err());
        git(&path, &["symbolic-ref", "HEAD", "refs/heads/a"]);
        assert!(open(&path).head().is_err());
    }

    #[test]
    fn what_is_no_repository_is_said_to_be_none() {
        let sandbox = Sandbox::new();
        let dir = sandbox.path("dir");
        std::fs::create_dir(&dir).unwrap();
        for path in [&dir, &sandbox.path("nothing")] {
            let error = Repository::open(path).err().unwrap();
            assert!(
                matches!(&error, Error::NotARepository { path: named, .. } if named == path),
                "{error}"
            );
        }
        let path = sandbox.repository("repo");
        std::fs::write(path.join(".git/config"), "[core\n").unwrap();
        let error = Repository::open(&path.join(".git")).err().unwrap();
        assert!(matches!(error, Error::Git { .. }), "{error}");
    }

    #[test]
    fn damaged_commits_and_tags_are_named() {
        let forge = Forge::new(HashKind::Sha1);
        let blob = forge.loose(Kind::Blob, b"x");
        let commit = forge.loose(Kind::Commit, b"no headers");
        let tag = forge.loose(Kind::Tag, b"object nothing\n");
        let lies = forge.id(Kind::Commit, b"lies");
        let whole = PackedForm::Whole(Kind::Commit);
        forge.pack(
            &[Packed { oid: lies, form: whole, size: Some(1 << 40), data: b"lies".to_vec() }],
            IndexVersion::Two,
        );
        let repository = forge.repository();
        for oid in [commit, tag, lies] {
            let error = repository.resolve(&oid.to_string()).unwrap_err();
            assert!(
                error.is_corruption() && error.to_string().contains(&oid.to_string()),
                "{error}"
            );
        }
        let error = repository.resolve(&blob.to_string()).unwrap_err();
        assert!(matches!(error, Error::NotACommit { oid, kind: Kind::Blob, .. } if oid == blob));
    }

    #[test]
    fn a_shallow_clone_has_its_newest_commit() {
        let sandbox = Sandbox::new();
        let path = sandbox.repository("repo");
        crate::gittest::commit(&path, "more", b"more");
        let url = format!("file://{}", path.display());
        git(&sandbox.path(""), &["clone", "-q", "--depth=1", &url, "shallow"]);
        let repository = open(&sandbox.path("shallow"));
        let expected = git(&path, &["rev-parse", "HEAD"]);
        assert_eq!(repository.resolve("HEAD").unwrap().id.to_string(), expected);
        assert!(repository.resolve("HEAD~1").is_err());
    }
}
