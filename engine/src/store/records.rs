//! The named things of a store and their bytes: fields in order, little-endian, byte strings with
//! their length before them.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::fields::Fields;
use crate::id::{BranchNumber, GitOid, HashKind, LayerNumber, TreeId};
use crate::worktree::Timestamp;

/// A git repository that the store knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repository {
    /// Its name, unique in the store.
    pub name: String,
    /// Its git directory.
    pub git_dir: PathBuf,
    /// Where it was cloned from.
    pub origin: Option<String>,
    /// Its hash algorithm.
    pub hash: HashKind,
    /// Whether it lies outside the store and is used in place.
    pub attached: bool,
}

/// What is kept of the git state of a branch that is not mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeptGit {
    /// The git directory of its worktree.
    Dir(PathBuf),
    /// It has had no worktree: the git directory with what it begins with, which other branches may have as well.
    Shared(PathBuf),
}

/// A named line of file-system state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Branch {
    /// Its repository.
    pub repository: String,
    /// Its name, unique in the repository.
    pub name: String,
    /// Its number, under which its changes are kept.
    pub number: BranchNumber,
    /// The directory object of its base.
    pub root: TreeId,
    /// The git tree of its base.
    pub root_oid: Option<GitOid>,
    /// The commit of its base.
    pub commit: Option<GitOid>,
    /// The mtime of the entries of its base, in seconds.
    pub time: i64,
    /// Whether all content of its base is in the store.
    pub ingested: bool,
    /// Whether it is no git branch.
    pub detached: bool,
    /// Its git state, kept while a branch with changes is not mounted. A branch without is nothing but its commit.
    pub git: Option<KeptGit>,
}

impl Branch {
    /// The git directory of its worktree, if that is kept.
    pub fn git_dir(&self) -> Option<&Path> {
        match &self.git {
            Some(KeptGit::Dir(dir)) => Some(dir),
            Some(KeptGit::Shared(_)) | None => None,
        }
    }

    /// The git directory with its state, its own or a shared one.
    pub fn git_state(&self) -> Option<&Path> {
        match &self.git {
            Some(KeptGit::Dir(dir) | KeptGit::Shared(dir)) => Some(dir),
            None => None,
        }
    }
}

/// Why a snapshot was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotReason {
    /// Somebody asked for it.
    Asked,
    /// A command was about to change much.
    Before,
    /// Its branch was removed.
    Removed,
    /// A command was about to run in it.
    Exec,
    /// Some time had passed since the one before.
    Time,
}

/// An immutable point of a branch. It stays when the branch is removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// The branch.
    pub branch: BranchNumber,
    /// The repository of the branch.
    pub repository: String,
    /// The name that the branch had.
    pub name: String,
    /// Its number, unique in the store. Those of a branch rise with time.
    pub number: u64,
    /// The layer that it is; without one it is the bare base.
    pub layer: Option<LayerNumber>,
    /// The highest number that a new inode has had.
    pub last_new: u64,
    /// The directory object of its base.
    pub root: TreeId,
    /// The git tree of its base.
    pub root_oid: Option<GitOid>,
    /// The commit of its base.
    pub commit: Option<GitOid>,
    /// The mtime of the entries of its base, in seconds.
    pub time: i64,
    /// When it was made.
    pub made: Timestamp,
    /// Why.
    pub reason: SnapshotReason,
    /// What somebody said of it.
    pub message: String,
    /// The git state that belongs to it: a name below the store's directory for those.
    pub git_state: Option<String>,
}

/// A branch mounted at a directory, now or when the daemon last ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorktreeRecord {
    /// The directory, absolute.
    pub dir: PathBuf,
    /// The repository.
    pub repository: String,
    /// The branch.
    pub branch: String,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// Whether other users may enter.
    pub allow_other: bool,
    /// Its private git directory.
    pub git_dir: PathBuf,
}

/// A thing that is stored under a name.
pub(crate) trait Record: Sized {
    /// Its key.
    fn key(&self) -> Vec<u8>;

    /// Its fields.
    fn encode(&self) -> Vec<u8>;

    /// The inverse of [`Record::encode`]; `None` for anything else.
    fn decode(value: &[u8]) -> Option<Self>;
}

pub(super) fn branch_key(repository: &str, name: &str) -> Vec<u8> {
    [repository.as_bytes(), b"\0", name.as_bytes()].concat()
}

pub(super) fn worktree_key(dir: &Path) -> Vec<u8> {
    dir.as_os_str().as_bytes().to_vec()
}

impl Record for Repository {
    fn key(&self) -> Vec<u8> {
        self.name.as_bytes().to_vec()
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_bytes(&mut out, self.name.as_bytes());
        put_bytes(&mut out, self.git_dir.as_os_str().as_bytes());
        put_option(&mut out, self.origin.as_ref(), |out, url| put_bytes(out, url.as_bytes()));
        out.push(self.hash.tag());
        out.push(self.attached.into());
        out
    }

    fn decode(value: &[u8]) -> Option<Self> {
        let mut fields = Fields(value);
        let record = Self {
            name: fields.text()?,
            git_dir: fields.path()?,
            origin: fields.option(Fields::text)?,
            hash: HashKind::from_tag(fields.u8()?)?,
            attached: fields.flag()?,
        };
        fields.0.is_empty().then_some(record)
    }
}

impl Record for Branch {
    fn key(&self) -> Vec<u8> {
        branch_key(&self.repository, &self.name)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_bytes(&mut out, self.repository.as_bytes());
        put_bytes(&mut out, self.name.as_bytes());
        out.extend_from_slice(&self.number.0.to_le_bytes());
        out.extend_from_slice(self.root.as_bytes());
        put_option(&mut out, self.root_oid.as_ref(), put_oid);
        put_option(&mut out, self.commit.as_ref(), put_oid);
        out.extend_from_slice(&self.time.to_le_bytes());
        out.push(self.ingested.into());
        out.push(self.detached.into());
        let (tag, kept) = match &self.git {
            None => (0, None),
            Some(KeptGit::Dir(dir)) => (1, Some(dir.as_os_str().as_bytes())),
            Some(KeptGit::Shared(dir)) => (2, Some(dir.as_os_str().as_bytes())),
        };
        out.push(tag);
        kept.into_iter().for_each(|kept| put_bytes(&mut out, kept));
        out
    }

    fn decode(value: &[u8]) -> Option<Self> {
        let mut fields = Fields(value);
        let record = Self {
            repository: fields.text()?,
            name: fields.text()?,
            number: BranchNumber(fields.u64()?),
            root: TreeId::new(fields.take()?),
            root_oid: fields.option(Fields::oid)?,
            commit: fields.option(Fields::oid)?,
            time: i64::from_le_bytes(fields.take()?),
            ingested: fields.flag()?,
            detached: fields.flag()?,
            git: match fields.u8()? {
                0 => None,
                1 => Some(KeptGit::Dir(fields.path()?)),
                2 => Some(KeptGit::Shared(fields.path()?)),
                _ => return None,
            },
        };
        fields.0.is_empty().then_some(record)
    }
}

impl Record for SnapshotRecord {
    fn key(&self) -> Vec<u8> {
        [self.branch.0.to_be_bytes(), self.number.to_be_bytes()].concat()
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for number in [self.branch.0, self.number, self.last_new] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        put_option(&mut out, self.layer.as_ref(), |out, layer| {
            out.extend_from_slice(&layer.0.to_le_bytes());
        });
        out.extend_from_slice(self.root.as_bytes());
        put_option(&mut out, self.root_oid.as_ref(), put_oid);
        put_option(&mut out, self.commit.as_ref(), put_oid);
        out.extend_from_slice(&self.time.to_le_bytes());
        out.extend_from_slice(&self.made.seconds.to_le_bytes());
        out.extend_from_slice(&self.made.nanoseconds.to_le_bytes());
        out.push(match self.reason {
            SnapshotReason::Asked => 0,
            SnapshotReason::Before => 1,
            SnapshotReason::Removed => 2,
            SnapshotReason::Exec => 3,
            SnapshotReason::Time => 4,
        });
        put_bytes(&mut out, self.repository.as_bytes());
        put_bytes(&mut out, self.name.as_bytes());
        put_bytes(&mut out, self.message.as_bytes());
        put_option(&mut out, self.git_state.as_ref(), |out, name| put_bytes(out, name.as_bytes()));
        out
    }

    fn decode(value: &[u8]) -> Option<Self> {
        let mut fields = Fields(value);
        let (branch, number) = (BranchNumber(fields.u64()?), fields.u64()?);
        let record = Self {
            branch,
            number,
            last_new: fields.u64()?,
            layer: fields.option(|fields| fields.u64().map(LayerNumber))?,
            root: TreeId::new(fields.take()?),
            root_oid: fields.option(Fields::oid)?,
            commit: fields.option(Fields::oid)?,
            time: i64::from_le_bytes(fields.take()?),
            made: Timestamp {
                seconds: i64::from_le_bytes(fields.take()?),
                nanoseconds: fields.u32()?,
            },
            reason: match fields.u8()? {
                0 => SnapshotReason::Asked,
                1 => SnapshotReason::Before,
                2 => SnapshotReason::Removed,
                3 => SnapshotReason::Exec,
                4 => SnapshotReason::Time,
                _ => return None,
            },
            repository: fields.text()?,
            name: fields.text()?,
            message: fields.text()?,
            git_state: fields.option(Fields::text)?,
        };
        (fields.0.is_empty() && record.made.is_possible()).then_some(record)
    }
}

impl Record for WorktreeRecord {
    fn key(&self) -> Vec<u8> {
        worktree_key(&self.dir)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_bytes(&mut out, self.dir.as_os_str().as_bytes());
        put_bytes(&mut out, self.repository.as_bytes());
        put_bytes(&mut out, self.branch.as_bytes());
        out.push(self.read_only.into());
        out.push(self.allow_other.into());
        put_bytes(&mut out, self.git_dir.as_os_str().as_bytes());
        out
    }

    fn decode(value: &[u8]) -> Option<Self> {
        let mut fields = Fields(value);
        let record = Self {
            dir: fields.path()?,
            repository: fields.text()?,
            branch: fields.text()?,
            read_only: fields.flag()?,
            allow_other: fields.flag()?,
            git_dir: fields.path()?,
        };
        fields.0.is_empty().then_some(record)
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    out.extend_from_slice(bytes);
}

fn put_oid(out: &mut Vec<u8>, oid: &GitOid) {
    out.push(oid.kind().tag());
    out.extend_from_slice(oid.as_bytes());
}

fn put_option<T>(out: &mut Vec<u8>, value: Option<&T>, put: impl FnOnce(&mut Vec<u8>, &T)) {
    out.push(value.is_some().into());
    if let Some(value) = value {
        put(out, value);
    }
}

impl Fields<'_> {
    fn u8(&mut self) -> Option<u8> {
        self.take().map(|[byte]| byte)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn byte_string(&mut self) -> Option<Vec<u8>> {
        let len = self.u32()?;
        self.bytes(usize::try_from(len).ok()?).map(<[u8]>::to_vec)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.byte_string()?).ok()
    }

    fn path(&mut self) -> Option<PathBuf> {
        Some(OsString::from_vec(self.byte_string()?).into())
    }

    fn oid(&mut self) -> Option<GitOid> {
        let kind = HashKind::from_tag(self.u8()?)?;
        GitOid::from_slice(kind, self.bytes(kind.len())?)
    }

    /// The outer `None` is a fault, the inner one an absent value.
    fn option<T>(&mut self, value: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        if self.flag()? { value(self).map(Some) } else { Some(None) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fmt::Debug;

    fn oid(kind: HashKind) -> GitOid {
        GitOid::from_slice(kind, &vec![7; kind.len()]).unwrap()
    }

    fn reads_back<R: Record + PartialEq + Debug>(record: &R) {
        let value = record.encode();
        assert_eq!(R::decode(&value).as_ref(), Some(record));
        for len in 0..value.len() {
            assert_eq!(R::decode(&value[..len]), None, "cut at {len}");
        }
        assert_eq!(R::decode(&[value, vec![0]].concat()), None);
    }

    #[test]
    fn records_read_back() {
        let odd = PathBuf::from(OsString::from_vec(b"/not\xffutf-8/\n".to_vec()));
        for (origin, hash) in [(None, HashKind::Sha1), (Some("file:///x"), HashKind::Sha256)] {
            reads_back(&Repository {
                name: "demo".into(),
                git_dir: odd.clone(),
                origin: origin.map(Into::into),
                hash,
                attached: origin.is_none(),
            });
            let shared = KeptGit::Shared(odd.clone());
            for git in [None, Some(KeptGit::Dir(odd.clone())), Some(shared)] {
                reads_back(&Branch {
                    repository: "demo".into(),
                    name: "a/b".into(),
                    root: TreeId::of(b"root"),
                    root_oid: origin.map(|_| oid(hash)),
                    commit: origin.map(|_| oid(hash)),
                    time: -5,
                    ingested: true,
                    detached: false,
                    git,
                    number: BranchNumber(1),
                });
            }
        }
        for layer in [None, Some(LayerNumber(9))] {
            reads_back(&SnapshotRecord {
                branch: BranchNumber(1),
                repository: "demo".into(),
                name: "main".into(),
                number: 2,
                layer,
                last_new: 3,
                root: TreeId::of(b"root"),
                root_oid: layer.map(|_| oid(HashKind::Sha1)),
                commit: None,
                time: 4,
                made: Timestamp { seconds: 5, nanoseconds: 6 },
                reason: layer.map_or(SnapshotReason::Asked, |_| SnapshotReason::Before),
                message: "before the refactoring".into(),
                git_state: layer.map(|_| "9".into()),
            });
        }
        reads_back(&WorktreeRecord {
            dir: odd.clone(),
            repository: "demo".into(),
            branch: "main".into(),
            read_only: true,
            allow_other: false,
            git_dir: odd,
        });
    }

    proptest! {
        #[test]
        fn no_value_makes_a_decoder_panic(value in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Repository::decode(&value);
            let _ = Branch::decode(&value);
            let _ = SnapshotRecord::decode(&value);
            let _ = WorktreeRecord::decode(&value);
        }
    }
}
