//! What the store promises to its users, on a storage in memory.

mod background;
mod contents;
mod damage;
mod model;

use std::collections::BTreeSet;

use super::*;
use crate::BranchNumber;
use crate::content::{CHUNK_WHOLE_MAX, Preparer};
use crate::id::HashKind;
use crate::testing::FaultyStorage;
use crate::tree::{EncodedTree, Entry, EntryKind, TreeBuilder};
use proptest::prelude::*;

const DIR: &str = "/home/store";

fn open(storage: &FaultyStorage) -> Result<Arc<Store>> {
    Store::open_on(Arc::new(storage.clone()), Path::new(DIR))
}

fn fresh() -> (FaultyStorage, Arc<Store>) {
    let storage = FaultyStorage::new();
    let store = open(&storage).unwrap();
    (storage, store)
}

fn segment(number: u32) -> PathBuf {
    Path::new(DIR).join(format!("segments/{number:08}.seg"))
}

fn database() -> PathBuf {
    Path::new(DIR).join(open::DATABASE_FILE)
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

fn oid(kind: HashKind, seed: u64) -> GitOid {
    GitOid::from_slice(kind, &noise(seed, kind.len())).unwrap()
}

fn put(store: &Store, bytes: &[u8]) -> ContentId {
    let content = Preparer::new().content(bytes);
    let mut batch = store.batch().unwrap();
    batch.put_content(&content).unwrap();
    batch.commit().unwrap();
    content.id
}

fn read_all(store: &Store, id: ContentId, size: usize) -> Result<Vec<u8>> {
    let mut out = vec![0; size + 1];
    let len = store.read_at(id, 0, &mut out)?;
    out.truncate(len);
    Ok(out)
}

fn tree(seed: u64) -> EncodedTree {
    let mut builder = TreeBuilder::new(None);
    let name = format!("file{seed}");
    let content = Some(ContentId::of(b"x"));
    let entry = Entry {
        kind: EntryKind::File,
        name: name.as_bytes(),
        size: 1,
        oid: None,
        content,
        subtree: None,
    };
    builder.push(&entry).unwrap();
    builder.finish()
}

fn branch(name: &str) -> Branch {
    Branch {
        repository: "demo".into(),
        name: name.into(),
        root: tree(0).subtree.id,
        root_oid: None,
        commit: None,
        time: 7,
        ingested: false,
        detached: false,
        git: None,
        number: BranchNumber(1),
    }
}
