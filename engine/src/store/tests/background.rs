//! The background writer.

use super::*;

#[test]
fn the_writer_makes_durable_what_was_sent_in_order() {
    let (storage, store) = fresh();
    let mut preparer = Preparer::new();
    let large = noise(99, 3_000_000);
    let session = store.writer().session();
    for seed in 0..50 {
        let content = preparer.content(&noise(seed, 3000));
        session.send(WriteItem::Blob { oid: oid(HashKind::Sha1, seed), content }).unwrap();
    }
    let hold = store.hold();
    let content = preparer
        .stream(&mut &large[..], &mut |chunk| session.send(WriteItem::Chunk(chunk)))
        .unwrap();
    let large_oid = oid(HashKind::Sha1, 99);
    session.send(WriteItem::Manifest { oid: Some(large_oid), content, hold }).unwrap();
    let (tree_oid, context, tree) = (oid(HashKind::Sha1, 100), [1; 32], tree(1));
    let subtree = tree.subtree;
    session.send(WriteItem::Tree { oid: tree_oid, context, tree }).unwrap();
    let converted = preparer.content(b"converted");
    assert!(store.writer().try_send(WriteItem::ConvertedContent(converted)));
    session.flush().unwrap();
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
    let send = |content| {
        let item = WriteItem::ConvertedContent(content);
        store.writer().session().send(item).unwrap();
    };
    send(preparer.content(b"by age"));
    while !store.has_content(ContentId::of(b"by age")).unwrap() {
        std::thread::sleep(Duration::from_millis(20));
    }
    send(preparer.content(b"at the end"));
    drop(store);
    assert!(open(&storage).unwrap().has_content(ContentId::of(b"at the end")).unwrap());
}

#[test]
fn a_busy_writer_lets_others_in() {
    let (_storage, store) = fresh();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut preparer, session) = (Preparer::new(), store.writer().session());
            for seed in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let item = WriteItem::ConvertedContent(preparer.content(&noise(seed, 700)));
                session.send(item).unwrap();
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
    storage.refuse_writes(true);
    let session = store.writer().session();
    session.send(WriteItem::ConvertedContent(preparer.content(&noise(1, 100_000)))).unwrap();
    let error = session.flush().unwrap_err();
    assert!(matches!(&error, Error::Io { .. }), "{error}");
    storage.refuse_writes(false);
    let content = preparer.content(b"later");
    for session in [session, store.writer().session()] {
        let error = session.send(WriteItem::ConvertedContent(content.clone())).unwrap_err();
        assert!(matches!(error, Error::Poisoned { .. }), "{error}");
        assert!(session.flush().is_err());
    }
    assert!(!store.writer().try_send(WriteItem::ConvertedContent(content)));
    assert!(store.has_content(kept).unwrap());
    drop(store);
    assert!(open(&storage).unwrap().has_content(kept).unwrap());
}

#[test]
fn a_full_device_costs_what_was_on_its_way_and_later_sessions_write_again() {
    let (storage, store) = fresh();
    let mut preparer = Preparer::new();
    let kept = put(&store, b"kept");
    let [one, other] = [(), ()].map(|()| store.writer().session());
    for round in 0..3 {
        let lost = preparer.content(&noise(round, 100_000));
        let sessions = [store.writer().session(), store.writer().session()];
        storage.set_full(true);
        sessions[0].send(WriteItem::ConvertedContent(lost.clone())).unwrap();
        // It was told to nobody when the device has room again.
        store.writer().flush().unwrap_err();
        storage.set_full(false);
        for session in [sessions[0], sessions[1], one, other] {
            let item = || WriteItem::ConvertedContent(lost.clone());
            for error in [session.flush().unwrap_err(), session.send(item()).unwrap_err()] {
                assert!(error.is_full(), "{error}");
            }
        }
        assert!(!store.has_content(lost.id).unwrap());
        let session = store.writer().session();
        session.send(WriteItem::ConvertedContent(lost.clone())).unwrap();
        session.flush().unwrap();
        assert!(store.has_content(lost.id).unwrap());
        store.writer().flush().unwrap();
    }
    assert!(store.writer().try_send(WriteItem::ConvertedContent(preparer.content(b"one more"))));
    drop(store);
    let store = open(&storage.after_crash(0)).unwrap();
    assert!(store.has_content(kept).unwrap());
    assert!(store.has_content(ContentId::of(b"one more")).unwrap());
    for round in 0..3 {
        let id = ContentId::of(&noise(round, 100_000));
        assert!(read_all(&store, id, 100_000).unwrap() == noise(round, 100_000));
    }
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
    let session = store.writer().session();
    for content in &prepared {
        session.send(WriteItem::ConvertedContent(content.clone())).unwrap();
    }
    session.flush().unwrap();
    assert!(prepared.iter().all(|content| store.has_content(content.id).unwrap()));
}
