//! A writable worktree over a small base that has one of everything, for tests.

use std::path::{Path, PathBuf};

use super::*;
use crate::content::Preparer;
use crate::id::{ContentId, GitOid, HashKind, TreeId};
use crate::store::{Batch, Branch, Repository, SnapshotReason, SnapshotRecord, Store};
use crate::tree::{EncodedTree, Entry, TreeBuilder};

pub(super) const BRANCH: BranchNumber = BranchNumber(3);
pub(super) const ROOT: Caller = Caller { uid: 0, gid: 0 };
pub(super) const USER: Caller = Caller { uid: 1000, gid: 100 };

/// Owner, group and time of everything in the base.
pub(super) const BASE_OWNER: (u32, u32) = (7, 8);
pub(super) const BASE_TIME: i64 = 1234;
pub(super) const GIT_FILE: &[u8] = b"gitdir: /g\n";
/// Longer than any chunk.
pub(super) const LARGE_BYTES: usize = 600_000;

/// Bytes that do not compress; the same for the same `seed`.
pub(super) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// What a path of the base is.
#[derive(Clone, Debug)]
pub(super) enum BaseEntry {
    File(Vec<u8>),
    Executable(Vec<u8>),
    Symlink(Vec<u8>),
    Gitlink,
    Directory(Vec<(&'static str, BaseEntry)>),
}

/// The base, sorted by name. It has its `.git` file beside this.
pub(super) fn base() -> Vec<(&'static str, BaseEntry)> {
    use BaseEntry::*;
    let deep = vec![("leaf", File(b"a leaf".to_vec()))];
    vec![
        ("empty", File(Vec::new())),
        ("exec", Executable(b"#!/bin/sh\n".to_vec())),
        ("file", File(b"hello".to_vec())),
        ("large", File(noise(0, LARGE_BYTES))),
        ("link", Symlink(b"sub/inner".to_vec())),
        ("module", Gitlink),
        ("sub", Directory(vec![("deep", Directory(deep)), ("inner", File(b"inner!".to_vec()))])),
    ]
}

/// The directory of the store.
pub(super) fn dir() -> PathBuf {
    "/store".into()
}

/// A snapshot of a branch at `point`, on the base `root`.
pub(super) fn snapshot(
    branch: BranchNumber,
    number: u64,
    root: TreeId,
    point: &Point,
) -> SnapshotRecord {
    SnapshotRecord {
        branch,
        repository: "demo".into(),
        name: "main".into(),
        number,
        layer: point.layer,
        last_new: point.last_new,
        root,
        root_oid: None,
        commit: None,
        time: 0,
        made: Timestamp { seconds: 0, nanoseconds: 0 },
        reason: SnapshotReason::Asked,
        message: String::new(),
        git_state: None,
    }
}

/// The repository of the branch.
fn repository() -> Repository {
    Repository {
        name: "demo".into(),
        git_dir: "/r".into(),
        origin: None,
        hash: HashKind::Sha1,
        attached: false,
    }
}

/// The branch over the base `root`.
fn branch(root: TreeId) -> Branch {
    Branch {
        repository: "demo".into(),
        name: "main".into(),
        number: BRANCH,
        root,
        root_oid: None,
        commit: None,
        time: BASE_TIME,
        ingested: true,
        detached: false,
        git: None,
    }
}

/// Opens the branch whose store and outbox are below `dir` of `storage`, and makes the base if it is
/// not there.
pub(super) fn open(storage: Arc<dyn Storage>, dir: &Path) -> Result<Arc<Worktree>> {
    let store = Store::open_on(Arc::clone(&storage), dir)?;
    let mut batch = store.batch()?;
    let root = put(&mut batch, &base())?;
    batch.put_repository(&repository());
    batch.put_branch(&branch(root.subtree.id));
    batch.commit()?;
    let base = Base::open(Arc::clone(&store), None, root.subtree.id)?;
    let contents = Contents::new(store, None);
    Worktree::writable(base, contents, options(), BRANCH, storage, &dir.join("outbox/3"))
}

pub(super) fn options() -> WorktreeOptions {
    let (uid, gid) = BASE_OWNER;
    WorktreeOptions { uid, gid, time: BASE_TIME, git_file: Some(GIT_FILE.to_vec()) }
}

pub(super) fn put(batch: &mut Batch<'_>, entries: &[(&str, BaseEntry)]) -> Result<EncodedTree> {
    let mut preparer = Preparer::new();
    let mut builder = TreeBuilder::new(Some(HashKind::Sha1));
    for (name, entry) in entries {
        let (kind, bytes) = match entry {
            BaseEntry::File(bytes) => (EntryKind::File, bytes.as_slice()),
            BaseEntry::Executable(bytes) => (EntryKind::Executable, bytes.as_slice()),
            BaseEntry::Symlink(target) => (EntryKind::Symlink, target.as_slice()),
            BaseEntry::Gitlink => (EntryKind::Gitlink, &b""[..]),
            BaseEntry::Directory(_) => (EntryKind::Directory, &b""[..]),
        };
        let subtree = match entry {
            BaseEntry::Directory(entries) => Some(put(batch, entries)?.subtree),
            _ => None,
        };
        let has_content = !matches!(kind, EntryKind::Directory | EntryKind::Gitlink);
        if has_content {
            batch.put_content(&preparer.content(bytes))?;
        }
        let id = ContentId::of(bytes);
        builder.push(&Entry {
            kind,
            name: name.as_bytes(),
            size: subtree.map_or(bytes.len() as u64, |subtree| subtree.size),
            oid: GitOid::from_slice(HashKind::Sha1, &id.as_bytes()[..20]),
            content: has_content.then_some(id),
            subtree,
        })?;
    }
    let tree = builder.finish();
    batch.put_tree(&tree)?;
    Ok(tree)
}
