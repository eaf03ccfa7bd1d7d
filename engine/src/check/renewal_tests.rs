//! A database with damage in it, written anew: nothing wrong is kept, nothing right is lost.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::tests::{Alone, DIR, Fixture, change, fake_oid, healthy, noise, open, put_blob, run};
use super::*;
use crate::content::Preparer;
use crate::id::Ino;
use crate::overlay::Known;
use crate::repair::{Step, execute, plan};
use crate::storage::Storage;
use crate::testing::{FaultyStorage, tamper_database};

const PAGE_BYTES: usize = 4096;
const TABLES: [Table; 6] =
    [Table::Chunks, Table::Trees, Table::Manifests, Table::Blobs, Table::Contents, Table::GitTrees];

/// The first step of a repair, if that is to write the database anew, and what came of it.
fn renew(store: &Arc<Store>) -> Option<Result<(), String>> {
    let step = plan(&run(store).findings).into_iter().next()?;
    let is_renewal = matches!(step, Step::Database { .. });
    let take = || execute(store, &[step], &Alone, &Cancel::default()).unwrap().remove(0).outcome;
    is_renewal.then(take)
}

fn database() -> std::path::PathBuf {
    Path::new(DIR).join("store.redb")
}

fn damaged_tables(findings: &[Finding]) -> Vec<&Finding> {
    let is_damage =
        |one: &&Finding| matches!(one, Finding::BadEntry { .. } | Finding::BadTable { .. });
    findings.iter().filter(is_damage).collect()
}

/// All that lies in segments, whether anything refers to it or not.
fn objects(store: &Store) -> BTreeSet<Vec<u8>> {
    let mut objects = BTreeSet::new();
    for table in [Table::Chunks, Table::Trees] {
        let visit = |key: &[u8], value: &[u8]| {
            // The first byte of a place in a segment.
            if value.first() == Some(&1) {
                objects.insert(key.to_vec());
            }
            Ok(())
        };
        store.core().snapshot().scan(table, b"", visit).unwrap();
    }
    objects
}

/// Every entry of the tables that nothing else tells.
fn rows(store: &Store) -> BTreeSet<(Table, Vec<u8>)> {
    let mut rows = BTreeSet::new();
    for table in Table::ALL.into_iter().filter(|table| !TABLES.contains(table)) {
        let visit = |key: &[u8], _: &[u8]| {
            rows.insert((table, key.to_vec()));
            Ok(())
        };
        store.core().snapshot().scan(table, b"", visit).unwrap();
    }
    rows
}

/// A healthy store whose tables have several pages.
fn large() -> Fixture {
    let fixture = healthy();
    change(&fixture.store, |batch| {
        for number in 0..300 {
            put_blob(batch, &noise(1000 + number, 200 + number as usize));
        }
    });
    fixture
}

#[test]
fn a_damaged_entry_of_what_can_be_made_again_is_left_out() {
    for table in TABLES {
        let fixture = large();
        let before = objects(&fixture.store);
        let mut key = Vec::new();
        // What lies in the database itself is gone with its entry.
        let is_elsewhere = |value: &[u8]| {
            value.first() == Some(&1) || !matches!(table, Table::Chunks | Table::Trees)
        };
        let visit = |first: &[u8], value: &[u8]| {
            key = first.to_vec();
            Ok(!is_elsewhere(value))
        };
        fixture.store.core().snapshot().scan_from(table, b"", visit).unwrap();
        change(&fixture.store, |batch| batch.put_row(table, key, Some(vec![255])));
        let findings = run(&fixture.store).findings;
        assert_eq!(
            damaged_tables(&findings).len(),
            1 + usize::from(table == Table::Blobs),
            "{findings:?}"
        );
        assert_eq!(renew(&fixture.store), Some(Ok(())), "{table:?}");
        let findings = run(&fixture.store).findings;
        assert!(damaged_tables(&findings).is_empty(), "{table:?}: {findings:?}");
        // Found again in the segments, mapped again from the other side, or of no consequence.
        if table != Table::Manifests {
            assert_eq!(findings, [], "{table:?}");
        }
        assert_eq!(objects(&fixture.store), before, "{table:?}");
        assert_eq!(renew(&fixture.store), None);
    }
}

#[test]
fn a_damaged_entry_of_anything_else_is_kept() {
    let fixture = healthy();
    change(&fixture.store, |batch| {
        batch.put_row(Table::Worktrees, b"/other".to_vec(), Some(vec![255]));
    });
    let findings = run(&fixture.store).findings;
    assert_eq!(plan(&findings), []);
    let content = Preparer::new().content(b"x");
    change(&fixture.store, |batch| {
        batch.put_row(Table::Manifests, content.id.as_bytes().to_vec(), Some(vec![255]));
    });
    assert_eq!(renew(&fixture.store), Some(Ok(())));
    assert_eq!(run(&fixture.store).findings, findings);
}

#[test]
fn an_empty_page_of_the_database_costs_no_more_than_what_was_on_it() {
    let fixture = large();
    // Rows of branches, several pages of them.
    let layer = crate::LayerNumber(7);
    change(&fixture.store, |batch| {
        batch.put_layer(layer, None, 0);
        for number in 0..500_u64 {
            let name = format!("name-{number}");
            batch.put_entry((layer, None), Ino(1), name.as_bytes(), Some(Known::Hidden));
        }
    });
    let (all, told_here) = (objects(&fixture.store), rows(&fixture.store));
    let layers = fixture.store.statistics().unwrap().layers;
    let Fixture { storage, store, .. } = fixture;
    drop(store);
    let whole = storage.contents(&database()).unwrap();
    let mut seen = Vec::new();
    tamper_database(&storage, &database(), |bytes| seen = bytes.to_vec()).unwrap();
    let pages = seen.len() / PAGE_BYTES;
    let (mut renewed, mut kept) = (0, 0);
    for page in 0..pages {
        let at = page * PAGE_BYTES..(page + 1) * PAGE_BYTES;
        if seen[at.clone()].iter().all(|byte| *byte == 0) {
            continue;
        }
        storage.tamper(&database(), |bytes| bytes.clone_from(&whole));
        // Beyond what the parity can know.
        tamper_database(&storage, &database(), |bytes| bytes[at].fill(0)).unwrap();
        let opened = Store::open_on(Arc::new(storage.clone()), Path::new(DIR));
        let Ok(store) = opened else { continue };
        match renew(&store) {
            None => {}
            Some(Ok(())) => {
                renewed += 1;
                let findings = run(&store).findings;
                assert_eq!(store.statistics().unwrap().layers, layers, "page {page}");
                assert_eq!(rows(&store), told_here, "page {page}");
                assert!(damaged_tables(&findings).is_empty(), "page {page}: {findings:?}");
                assert_eq!(objects(&store), all, "page {page}");
                drop(store);
                assert_eq!(run(&open(&storage)).findings, findings, "page {page}");
            }
            Some(Err(why)) => {
                kept += 1;
                assert!(why.contains("store.redb"), "page {page}: {why}");
            }
        }
    }
    assert!(renewed > 10 && renewed + kept < pages, "{renewed} of {pages}, {kept} not");
}

#[test]
fn a_damaged_page_of_the_database_costs_nothing() {
    let Fixture { storage, store, .. } = large();
    drop(store);
    let whole = storage.contents(&database()).unwrap();
    let mut found = 0;
    for at in (0..whole.len()).step_by(PAGE_BYTES) {
        storage.tamper(&database(), |bytes| {
            bytes.clone_from(&whole);
            bytes[at..at + PAGE_BYTES].fill(0);
        });
        let store = open(&storage);
        let findings = run(&store).findings;
        let steps = plan(&findings);
        match findings.as_slice() {
            // Nobody uses it.
            [] => continue,
            [Finding::BadPages { pages }] => {
                assert_eq!(steps, [Step::Pages { pages: pages.clone() }], "{at}");
            }
            _ => panic!("{at}: {findings:?}"),
        }
        found += 1;
        for taken in execute(&store, &steps, &Alone, &Cancel::default()).unwrap() {
            assert_eq!(taken.outcome, Ok(()), "{at}");
        }
        assert_eq!(run(&store).findings, [], "{at}");
        drop(store);
        assert_eq!(run(&open(&storage)).findings, [], "{at}");
    }
    assert!(found > 10, "{found}");
}

#[test]
fn a_power_failure_while_the_database_is_written_anew_costs_nothing() {
    let broken = || {
        let Fixture { storage, store, .. } = healthy();
        let oid = fake_oid(&[9; 32]);
        change(&store, |batch| {
            batch.put_row(Table::Blobs, crate::store::oid_key(&oid), Some(vec![255]));
        });
        (storage, store)
    };
    let (storage, store) = broken();
    let from = storage.syncs();
    assert_eq!(renew(&store), Some(Ok(())));
    let syncs = storage.syncs() - from;
    assert!(syncs >= 2, "{syncs}");
    for sync in 0..syncs {
        for seed in 0..4 {
            let (storage, store) = broken();
            storage.fail_at(storage.syncs() + sync);
            let renewal = renew(&store);
            assert!(matches!(renewal, Some(Err(_))), "sync {sync}: {renewal:?}");
            drop(store);
            let store = open(&storage.after_crash(seed));
            let left = run(&store).findings.len();
            assert!(left <= 1, "sync {sync}, seed {seed}");
            assert_eq!(renew(&store), (left == 1).then_some(Ok(())));
            assert_eq!(run(&store).findings, [], "sync {sync}, seed {seed}");
        }
    }
    // It goes on being written, on the new file.
    let bytes = noise(77, 3000);
    change(&store, |batch| put_blob(batch, &bytes));
    drop(store);
    let crashed: FaultyStorage = storage.after_crash(0);
    assert!(!crashed.exists(&database().with_extension("redb.new")).unwrap());
    assert!(open(&crashed).has_content(ContentId::of(&bytes)).unwrap());
}
