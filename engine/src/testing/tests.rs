//! The faulty storage has the faults that it should and no others.

use super::*;

#[test]
fn it_conforms_while_it_has_power() {
    crate::storage::conform(&FaultyStorage::new(), Path::new("/store"));
}

#[test]
fn a_crash_takes_what_was_not_synced_and_nothing_else() {
    let storage = FaultyStorage::new();
    let dir = Path::new("/d");
    storage.create_dir(dir).unwrap();
    let kept = storage.open(&dir.join("kept"), true).unwrap();
    kept.write_at(0, b"synced").unwrap();
    kept.sync().unwrap();
    storage.sync_dir(dir).unwrap();
    kept.write_at(0, b"SYNCED").unwrap();
    let lost = storage.open(&dir.join("lost"), true).unwrap();
    lost.write_at(0, b"its name was not synced").unwrap();
    lost.sync().unwrap();

    let nothing = storage.after_crash(0);
    assert_eq!(nothing.contents(&dir.join("kept")).unwrap(), b"synced");
    assert_eq!(nothing.contents(&dir.join("lost")), None);
    let everything = storage.after_crash(1);
    assert_eq!(everything.contents(&dir.join("kept")).unwrap(), b"SYNCED");
    assert_eq!(everything.contents(&dir.join("lost")).unwrap(), b"its name was not synced");
}

#[test]
fn a_full_device_takes_what_fits_and_what_was_reserved() {
    let storage = FaultyStorage::new();
    storage.create_dir(Path::new("/d")).unwrap();
    let path = Path::new("/d/f");
    let file = storage.open(path, true).unwrap();
    storage.set_room(Some(10));
    file.allocate(0, 6).unwrap();
    assert_eq!(file.allocate(6, 5).unwrap_err().kind(), io::ErrorKind::StorageFull);
    file.write_at(0, b"012345").unwrap();
    let slices = &mut [IoSlice::new(b"67"), IoSlice::new(b"89ab")];
    let error = file.write_vectored_at(6, slices).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(storage.contents(path).unwrap(), b"0123456789");
    assert!(file.set_len(11).is_err());
    file.write_at(4, b"overwrites").unwrap_err();
    file.write_at(4, b"old").unwrap();
    storage.set_full(false);
    file.write_at(10, b"more").unwrap();
}

#[test]
fn a_lost_sync_is_read_but_never_saved() {
    let storage = FaultyStorage::new();
    storage.create_dir(Path::new("/d")).unwrap();
    let path = Path::new("/d/f");
    let file = storage.open(path, true).unwrap();
    storage.sync_dir(Path::new("/d")).unwrap();
    file.write_at(0, b"lost").unwrap();
    storage.lose_at(1);
    assert!(file.sync().is_err());
    file.write_at(4, b"kept").unwrap();
    file.sync().unwrap();
    assert_eq!(storage.contents(path).unwrap(), b"lostkept");
    assert_eq!(storage.after_crash(1).contents(path).unwrap(), b"\0\0\0\0kept");
}

#[test]
fn what_is_written_during_a_sync_is_not_saved_by_it() {
    let storage = FaultyStorage::new();
    let dir = Path::new("/d");
    storage.create_dir(dir).unwrap();
    let file = storage.open(&dir.join("f"), true).unwrap();
    storage.sync_dir(dir).unwrap();
    file.write_at(0, b"before").unwrap();
    let (writer, other) = (Arc::clone(&file), storage.clone());
    storage.on_sync(move |path| match path.ends_with("f") {
        true => writer.write_at(6, b"during").unwrap(),
        false => drop(other.open(&dir.join("g"), true).unwrap()),
    });
    file.sync().unwrap();
    storage.sync_dir(dir).unwrap();
    let crashed = storage.after_crash(0);
    assert_eq!(crashed.contents(&dir.join("f")).unwrap(), b"before");
    assert_eq!(crashed.contents(&dir.join("g")), None);
}

#[test]
fn the_power_fails_at_the_chosen_sync() {
    let storage = FaultyStorage::new();
    storage.create_dir(Path::new("/d")).unwrap();
    let file = storage.open(Path::new("/d/f"), true).unwrap();
    storage.fail_at(1);
    file.sync().unwrap();
    assert!(file.sync().is_err());
    assert!(file.write_at(0, b"x").is_err());
    assert!(storage.has_failed());
    assert_eq!(storage.syncs(), 1);
}
