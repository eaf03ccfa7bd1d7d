//! The background writer.

use super::*;

#[test]
fn the_writer_makes_durable_what_was_sent_in_order() {
    let (storage, store) = fresh();
    let mut preparer = Preparer::new();
    let large = noise(99, 3_000_000);
    for seed in 0..50 {
        let content = preparer.content(&noise(seed, 3000));
        store.writer().send(WriteItem::Blob { oid: oid(HashKind::Sha1, seed), content }).unwrap();
    }
    let content = preparer
        .stream(&mut &large[..], &mut |chunk| store.writer().send(WriteItem::Chunk(chunk)))
        .unwrap();
    let large_oid = oid(HashKind::Sha1, 99);
    store.writer().send(WriteItem::Manifest { oid: Some(large_oid), content }).unwrap();
    let (tree_oid, context, tree) = (oid(HashKind::Sha1, 100), [1; 32], tree(1));
    let subtree = tree.subtree;
    store.writer().send(WriteItem::Tree { oid: tree_oid, context, tree }).unwrap();
    let converted = preparer.content(b"converted");
    assert!(store.writer().try_send(WriteItem::ConvertedContent(converted)));
    store.writer().flush().unwrap();
    assert_eq!(store.counters().commits, 1);

    let check = |store: &Store| {
        for seed in 0..50 {
            let stored = store.content_of(&oid(HashKind::Sha1, seed)).unwrap().unwrap();
            assert_eq!(read_all(store, stored.id, 3000).unwrap(), noise(seed, 3000));
        }
        let stored = store.content_of(&large_oid).unwrap().unwrap();
        assert!(read_all(store, stored.id, large.len()).unwrap() == large);
        assert_eq!(store.tree_of(&tree_oid, &context).unwrap(), Some(subtree));
        assert!(store.tree(subtree.id).is_ok());
        assert!(store.has_content(ContentId::of(b"converted")).unwrap());
    };
    check(&store);
    check(&open(&storage.after_crash(0)).unwrap());
    store.writer().flush().unwrap();
    assert_eq!(store.counters().commits, 1, "nothing is committed for nothing");
}

#[test]
fn the_writer_commits_by_age_and_at_its_end() {
    let (storage, store) = fresh();
    let mut preparer = Preparer::new();
    store.writer().send(WriteItem::ConvertedContent(preparer.content(b"by age"))).unwrap();
    while !store.has_content(ContentId::of(b"by age")).unwrap() {
        std::thread::sleep(Duration::from_millis(20));
    }
    store.writer().send(WriteItem::ConvertedContent(preparer.content(b"at the end"))).unwrap();
    drop(store);
    assert!(open(&storage).unwrap().has_content(ContentId::of(b"at the end")).unwrap());
}

#[test]
fn a_busy_writer_lets_others_in() {
    let (_storage, store) = fresh();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut preparer = Preparer::new();
            for seed in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let item = WriteItem::ConvertedContent(preparer.content(&noise(seed, 700)));
                store.writer().send(item).unwrap();
            }
        });
        for round in 0..20 {
            let mut batch = store.batch().unwrap();
            batch.put_branch(&Branch { time: round, ..branch("main") });
            batch.commit().unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn the_first_error_of_the_writer_is_told_and_stays() {
    let (storage, store) = fresh();
    let mut preparer = Preparer::new();
    let kept = put(&store, b"kept");
    storage.set_full(true);
    let content = preparer.content(&noise(1, 100_000));
    store.writer().send(WriteItem::ConvertedContent(content)).unwrap();
    let error = store.writer().flush().unwrap_err();
    assert!(
        matches!(&error, Error::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull),
        "{error}"
    );
    storage.set_full(false);
    let content = preparer.content(b"later");
    let error = store.writer().send(WriteItem::ConvertedContent(content.clone())).unwrap_err();
    assert!(matches!(error, Error::Poisoned { .. }), "{error}");
    assert!(store.writer().flush().is_err());
    assert!(!store.writer().try_send(WriteItem::ConvertedContent(content)));
    assert!(store.has_content(kept).unwrap());
    drop(store);
    assert!(open(&storage).unwrap().has_content(kept).unwrap());
}

#[test]
fn senders_wait_while_too_much_is_on_its_way() {
    let (_storage, store) = fresh();
    let prepared: Vec<_> =
        (0..12).map(|seed| Preparer::new().content(&noise(seed, 4_000_000))).collect();
    let refused = {
        // While this batch lives the writer cannot begin one.
        let _batch = store.batch().unwrap();
        prepared
            .iter()
            .filter(|content| {
                !store.writer().try_send(WriteItem::ConvertedContent((*content).clone()))
            })
            .count()
    };
    assert!(refused >= 12 - 5, "{refused}");
    for content in &prepared {
        store.writer().send(WriteItem::ConvertedContent(content.clone())).unwrap();
    }
    store.writer().flush().unwrap();
    assert!(prepared.iter().all(|content| store.has_content(content.id).unwrap()));
}
