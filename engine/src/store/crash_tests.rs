//! The power fails at every sync of a recorded import, and what was not synced is kept, lost or
//! torn. Afterwards:
//!
//! - the store opens;
//! - every batch whose commit had returned is there, and reads back verified;
//! - the batch that was under way is there as a whole or not at all, and none after it is;
//! - the check finds nothing wrong, and the store can be written again.

use std::path::Path;
use std::sync::Arc;

use super::{Branch, Repository, Store, Stored};
use crate::BranchNumber;
use crate::check::check;
use crate::check::tests::{FakeGit, fake_oid, noise};
use crate::content::{PreparedContent, Preparer};
use crate::id::{GitOid, HashKind};
use crate::progress::{Cancel, Silent};
use crate::testing::FaultyStorage;
use crate::tree::{EncodedTree, Entry, EntryKind, TreeBuilder};

const BATCHES: u64 = 6;
const SEEDS: u64 = 5;

/// One batch of the import: small files, one of many chunks, their tree and a branch.
struct Import {
    number: u64,
    files: Vec<(GitOid, Vec<u8>, PreparedContent)>,
    tree: EncodedTree,
}

impl Import {
    fn new(number: u64) -> Self {
        let mut sizes = vec![10, 300, 3000, 40_000];
        if number.is_multiple_of(2) {
            sizes.push(1_400_000);
        }
        let mut preparer = Preparer::new();
        let files = sizes.into_iter().enumerate().map(|(index, size)| {
            let bytes = noise(number * 100 + index as u64, size);
            let content = preparer.content(&bytes);
            (fake_oid(content.id.as_bytes()), bytes, content)
        });
        let files: Vec<_> = files.collect();
        let mut builder = TreeBuilder::new(Some(HashKind::Sha1));
        for (index, (oid, bytes, _)) in files.iter().enumerate() {
            let name = format!("file{number}-{index}");
            let size = bytes.len() as u64;
            let (kind, name, oid) = (EntryKind::File, name.as_bytes(), Some(*oid));
            builder.push(&Entry { kind, name, size, oid, content: None, subtree: None }).unwrap();
        }
        Self { number, files, tree: builder.finish() }
    }

    fn write(&self, store: &Store) -> crate::Result<()> {
        let mut batch = store.batch()?;
        for (oid, _, content) in &self.files {
            batch.put_content(content)?;
            batch.map_blob(oid, Stored { id: content.id, size: content.size });
        }
        batch.put_tree(&self.tree)?;
        let tree_oid = fake_oid(self.tree.subtree.id.as_bytes());
        batch.map_tree(&tree_oid, &[0; 32], &self.tree.subtree)?;
        batch.put_repository(&Repository {
            name: "demo".into(),
            git_dir: "/r".into(),
            origin: None,
            hash: HashKind::Sha1,
            attached: false,
        });
        batch.put_branch(&Branch {
            repository: "demo".into(),
            name: format!("batch{}", self.number),
            root: self.tree.subtree.id,
            root_oid: Some(tree_oid),
            commit: None,
            time: 0,
            ingested: true,
            detached: false,
            git: None,
            number: BranchNumber(1),
        });
        batch.commit()
    }

    /// Whether all of it is in the store; an error for a part, or for wrong bytes.
    fn find(&self, store: &Store) -> Result<bool, String> {
        let mut found = Vec::new();
        for (oid, bytes, content) in &self.files {
            let stored = store.content_of(oid).map_err(|error| error.to_string())?;
            found.push(stored.is_some());
            found.push(store.has_content(content.id).map_err(|error| error.to_string())?);
            if stored.is_some() {
                let mut out = vec![0; bytes.len()];
                let read = store.read_at(content.id, 0, &mut out);
                let len = read.map_err(|error| error.to_string())?;
                if out[..len] != **bytes {
                    return Err(format!("wrong bytes of {}", content.id));
                }
            }
        }
        let name = format!("batch{}", self.number);
        found.push(store.branch("demo", &name).map_err(|error| error.to_string())?.is_some());
        found.push(store.tree(self.tree.subtree.id).is_ok());
        match found.iter().filter(|found| **found).count() {
            0 => Ok(false),
            all if all == found.len() => Ok(true),
            part => Err(format!("{part} of {} things of batch {}", found.len(), self.number)),
        }
    }
}

fn open(storage: &FaultyStorage) -> crate::Result<Arc<Store>> {
    Store::open_on(Arc::new(storage.clone()), Path::new("/home/store"))
}

/// Runs the import until it ends or fails; the number of batches whose commit returned.
fn run(storage: &FaultyStorage, imports: &[Import]) -> usize {
    let Ok(store) = open(storage) else { return 0 };
    imports.iter().take_while(|import| import.write(&store).is_ok()).count()
}

fn verify(storage: &FaultyStorage, imports: &[Import], committed: usize) -> Result<(), String> {
    let store = open(storage).map_err(|error| format!("it does not open: {error}"))?;
    for (index, import) in imports.iter().enumerate() {
        let found = import.find(&store)?;
        if index < committed && !found {
            return Err(format!("batch {index} was committed and is lost"));
        }
        if index > committed && found {
            return Err(format!("batch {index} was never begun"));
        }
    }
    let report = check(&store, &FakeGit, &Silent, &Cancel::default()).map_err(|e| e.to_string())?;
    if let Some(finding) = report.findings.first() {
        return Err(finding.to_string());
    }
    let again = Import::new(1000);
    again.write(&store).map_err(|error| format!("it cannot be written: {error}"))?;
    drop(store);
    let store = open(storage).map_err(|error| format!("it does not open again: {error}"))?;
    if again.find(&store)? { Ok(()) } else { Err("what was written after it is lost".into()) }
}

fn imports() -> Vec<Import> {
    (0..BATCHES).map(Import::new).collect()
}

#[test]
fn a_power_failure_at_any_sync_loses_nothing_committed() {
    let imports = imports();
    let whole = FaultyStorage::new();
    assert_eq!(run(&whole, &imports), imports.len());
    let syncs = whole.syncs();
    assert!(syncs > 3 * BATCHES, "{syncs}");
    for sync in 0..syncs {
        let storage = FaultyStorage::new();
        storage.fail_at(sync);
        let committed = run(&storage, &imports);
        for seed in 0..SEEDS {
            let crashed = storage.after_crash(seed);
            let verdict = verify(&crashed, &imports, committed);
            assert_eq!(verdict, Ok(()), "power failed at sync {sync}, seed {seed}");
        }
    }
}

#[test]
fn a_second_power_failure_during_recovery_loses_nothing_either() {
    let imports = imports();
    let whole = FaultyStorage::new();
    run(&whole, &imports);
    for (sync, second) in (0..whole.syncs()).step_by(4).zip([0, 1, 2, 3].into_iter().cycle()) {
        let storage = FaultyStorage::new();
        storage.fail_at(sync);
        let committed = run(&storage, &imports);
        for seed in 0..SEEDS {
            let crashed = storage.after_crash(seed);
            crashed.fail_at(second);
            if let Ok(store) = open(&crashed) {
                let _ = Import::new(2000).write(&store);
            }
            let verdict = verify(&crashed.after_crash(seed + 1), &imports, committed);
            assert_eq!(verdict, Ok(()), "failures at {sync} and {second}, seed {seed}");
        }
    }
}

/// That the tests above can fail: without the sync of the segments, data is lost.
#[test]
fn a_missing_sync_of_the_segments_is_noticed() {
    let imports = imports();
    let storage = FaultyStorage::new();
    storage.ignore_syncs_of(".seg");
    assert_eq!(run(&storage, &imports), imports.len());
    let verdict = verify(&storage.after_crash(0), &imports, imports.len());
    assert!(verdict.is_err());
}

#[test]
fn a_killed_process_loses_nothing_committed() {
    let imports = imports();
    let storage = FaultyStorage::new();
    let store = open(&storage).unwrap();
    for import in &imports[..3] {
        import.write(&store).unwrap();
    }
    let mut batch = store.batch().unwrap();
    for (_, _, content) in &imports[3].files {
        batch.put_content(content).unwrap();
    }
    // The machine goes on: everything that was written is there, nothing was closed.
    let killed = storage.after_crash(1);
    drop(batch);
    drop(store);
    assert_eq!(verify(&killed, &imports, 3), Ok(()));
}
