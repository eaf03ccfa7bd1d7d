//! Goal: a plain file is what its name says whenever it is handed out, whatever became of it on disk, and
//! the cache keeps within its bound.

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::time::SystemTime;

use super::*;
use crate::check::tests::FakeGit;
use crate::check::{Finding, check};
use crate::content::Preparer;
use crate::gc::Collection;
use crate::progress::{Cancel, Silent};
use crate::repair::{Step, Surroundings, execute, plan};
use crate::store::Branch;
use crate::worktree::Contents;

fn noise(seed: u64, len: usize) -> Vec<u8> {
    crate::check::tests::noise(seed, len)
}

/// A cache of so many bytes in a fresh directory.
fn cache(bytes_max: u64) -> (Arc<PlainFiles>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (PlainFiles::bounded(dir.path().join(FILES_DIR), bytes_max).unwrap(), dir)
}

fn get(files: &Arc<PlainFiles>, bytes: &[u8]) -> Option<PlainFile> {
    let fill = |out: &mut dyn Write| {
        out.write_all(bytes).unwrap();
        Ok(())
    };
    files.get(ContentId::of(bytes), bytes.len() as u64, &fill).unwrap()
}

/// Only if it is there already.
fn kept(files: &Arc<PlainFiles>, bytes: &[u8]) -> bool {
    let fill = |_: &mut dyn Write| Err(Error::Cancelled);
    match files.get(ContentId::of(bytes), bytes.len() as u64, &fill) {
        Ok(found) => found.is_some_and(|found| read(&found) == bytes),
        Err(Error::Cancelled) => false,
        Err(other) => panic!("{other}"),
    }
}

fn read(file: &PlainFile) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut from = file.file();
    from.read_to_end(&mut bytes).unwrap();
    bytes
}

fn write(path: &Path, bytes: &[u8]) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_content_of_a_store_is_a_file_once_and_stays_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = noise(1, 3_000_000);
    let content = Preparer::new().content(&bytes);
    assert!(content.chunks.len() > 1);
    let store = Store::open(dir.path()).unwrap();
    let mut batch = store.batch().unwrap();
    batch.put_content(&content).unwrap();
    batch.commit().unwrap();
    let file = store.plain_file(content.id, content.size).unwrap().unwrap();
    assert!(read(&file) == bytes);
    assert_eq!(store.plain_files(), (1, content.size));
    let place = file.file().metadata().unwrap().ino();
    drop((file, store));
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.plain_files(), (1, content.size));
    let read_before = store.counters().chunks_read;
    let file = store.plain_file(content.id, content.size).unwrap().unwrap();
    assert!(read(&file) == bytes);
    assert_eq!(file.file().metadata().unwrap().ino(), place);
    assert_eq!(store.counters().chunks_read, read_before);
    let unknown = ContentId::of(b"nobody has this");
    assert!(matches!(store.plain_file(unknown, 5), Err(Error::MissingContent(_))));
}

#[test]
fn bytes_that_are_not_the_content_never_get_its_name() {
    let (files, _dir) = cache(1 << 20);
    let bytes = noise(2, 1000);
    let id = ContentId::of(&bytes);
    for wrong in [&bytes[1..], &noise(3, 1000), &[]] {
        let fill = |out: &mut dyn Write| {
            out.write_all(wrong).unwrap();
            Ok(())
        };
        assert!(matches!(files.get(id, 1000, &fill), Err(Error::Corrupt { .. })));
    }
    assert!(matches!(files.get(id, 1000, &|_| Err(Error::Cancelled)), Err(Error::Cancelled)));
    assert_eq!(entries(&files.dir).unwrap(), []);
    assert_eq!(files.amount(), (0, 0));
}

#[test]
fn what_is_changed_on_disk_is_noticed_and_made_anew() {
    let (files, _dir) = cache(1 << 20);
    let bytes = noise(4, 5000);
    let path = files.path(ContentId::of(&bytes));
    let mut other = bytes.clone();
    other[4321] ^= 1;
    let damages: [&dyn Fn(); 5] = [
        &|| write(&path, &other),
        &|| write(&path, &bytes[..4999]),
        &|| fs::remove_file(&path).unwrap(),
        // Its times put back.
        &|| {
            let modified = fs::metadata(&path).unwrap().modified().unwrap();
            write(&path, &other);
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.set_modified(modified).unwrap();
        },
        // Another file in its place.
        &|| {
            let aside = path.with_extension("aside");
            fs::write(&aside, &other).unwrap();
            fs::rename(aside, &path).unwrap();
        },
    ];
    for damage in damages {
        assert!(read(&get(&files, &bytes).unwrap()) == bytes);
        damage();
        assert!(!kept(&files, &bytes));
        let file = get(&files, &bytes).unwrap();
        assert!(read(&file) == bytes);
        assert_eq!(files.amount(), (1, 5000));
    }
    // A time alone costs another look, and nothing else.
    let place = fs::metadata(&path).unwrap().ino();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    File::open(&path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    assert!(kept(&files, &bytes));
    assert_eq!(fs::metadata(&path).unwrap().ino(), place);
}

#[test]
fn damage_that_was_there_before_is_noticed_at_the_first_use() {
    let (files, dir) = cache(1 << 20);
    let bytes = noise(5, 5000);
    drop(get(&files, &bytes).unwrap());
    let path = files.path(ContentId::of(&bytes));
    let mut other = bytes.clone();
    other[17] ^= 64;
    write(&path, &other);
    let files = PlainFiles::bounded(dir.path().join(FILES_DIR), 1 << 20).unwrap();
    assert!(!kept(&files, &bytes));
    assert!(read(&get(&files, &bytes).unwrap()) == bytes);
}

#[test]
fn the_bound_is_kept_and_what_is_held_stays() {
    let (files, dir) = cache(3000);
    let all: Vec<_> = (0..5).map(|seed| noise(10 + seed, 1000)).collect();
    for bytes in &all[..3] {
        get(&files, bytes).unwrap();
    }
    assert!(kept(&files, &all[0]), "which makes the second the oldest");
    get(&files, &all[3]).unwrap();
    assert_eq!(files.amount(), (3, 3000));
    assert!(!kept(&files, &all[1]));
    let held: Vec<_> = [0, 2, 3].map(|at| get(&files, &all[at]).unwrap()).into();
    assert!(get(&files, &all[4]).is_none(), "there is no room, and nobody to go");
    assert!([0, 2, 3].into_iter().all(|at| kept(&files, &all[at])));
    drop(held);
    assert!(get(&files, &all[4]).is_some());
    assert!(get(&files, &noise(20, 1501)).is_none());
    assert_eq!(files.amount(), (3, 3000));
    // One who opens the cache with less keeps that, as soon as there is something to be made.
    let files = PlainFiles::bounded(dir.path().join(FILES_DIR), 2000).unwrap();
    assert_eq!(files.amount(), (3, 3000));
    get(&files, &noise(21, 900)).unwrap();
    assert_eq!(files.amount(), (2, 1900));
}

#[test]
fn one_that_is_held_and_damaged_makes_way_and_is_not_counted_twice() {
    let (files, _dir) = cache(2500);
    let bytes = noise(6, 1000);
    let old = get(&files, &bytes).unwrap();
    write(&files.path(ContentId::of(&bytes)), b"other");
    let new = get(&files, &bytes).unwrap();
    drop(old);
    assert_eq!(files.amount(), (1, 1000));
    get(&files, &noise(7, 1000)).unwrap();
    get(&files, &noise(8, 1000)).unwrap();
    assert!(kept(&files, &bytes), "it is held");
    drop(new);
    get(&files, &noise(7, 1000)).unwrap();
    get(&files, &noise(8, 1000)).unwrap();
    assert!(!kept(&files, &bytes));
}

#[test]
fn what_was_being_made_is_swept_and_what_is_not_ours_is_found() {
    let (files, dir) = cache(1 << 20);
    let (bytes, lost) = (noise(9, 1000), noise(10, 1000));
    drop((get(&files, &bytes).unwrap(), get(&files, &lost).unwrap()));
    fs::write(files.dir.join(".new-7"), b"half").unwrap();
    fs::write(files.dir.join("README"), b"not ours").unwrap();
    write(&files.path(ContentId::of(&lost)), b"damaged");
    let files = PlainFiles::bounded(dir.path().join(FILES_DIR), 1 << 20).unwrap();
    assert!(!files.dir.join(".new-7").exists());
    let mut found = Vec::new();
    let read = files.check(&|| Ok(()), &mut |name, _| found.push(name)).unwrap();
    found.sort_unstable();
    let mut expected = vec!["README".to_owned(), ContentId::of(&lost).to_string()];
    expected.sort_unstable();
    assert_eq!((found.clone(), read), (expected, 1000));
    found.iter().for_each(|name| files.remove_named(name).unwrap());
    files.check(&|| Ok(()), &mut |name, why| panic!("{name}: {why}")).unwrap();
    assert_eq!(files.amount(), (1, 1000));
}

#[test]
fn a_collection_takes_what_nobody_wants_or_holds() {
    let (files, _dir) = cache(1 << 20);
    let (one, two, three) = (noise(11, 100), noise(12, 200), noise(13, 300));
    drop((get(&files, &one).unwrap(), get(&files, &three).unwrap()));
    let held = get(&files, &two).unwrap();
    let wanted = |id| Ok(id == ContentId::of(&three));
    assert_eq!(files.collect(&wanted, true).unwrap(), (1, 100));
    assert_eq!(files.amount(), (3, 600));
    assert_eq!(files.collect(&wanted, false).unwrap(), (1, 100));
    assert!(!kept(&files, &one) && kept(&files, &two) && kept(&files, &three));
    drop(held);
    assert_eq!(files.collect(&wanted, false).unwrap(), (1, 200));
}

#[test]
fn all_who_ask_at_once_get_the_one_that_is_made() {
    let (files, _dir) = cache(1 << 24);
    let bytes = noise(14, 1 << 20);
    let made = AtomicU64::new(0);
    let fill = |out: &mut dyn Write| {
        made.fetch_add(1, Ordering::Relaxed);
        out.write_all(&bytes).unwrap();
        Ok(())
    };
    let id = ContentId::of(&bytes);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let file = files.get(id, bytes.len() as u64, &fill).unwrap().unwrap();
                assert!(read(&file) == bytes);
            });
        }
    });
    assert_eq!(made.into_inner(), 1);
}

struct Nowhere;

impl Surroundings for Nowhere {
    fn contents(&self, _: &Branch) -> Option<Arc<Contents>> {
        None
    }

    fn is_open(&self, _: &Branch) -> bool {
        false
    }
}

#[test]
fn a_check_finds_a_damaged_file_and_repair_and_collection_remove_it() {
    let dir = tempfile::tempdir().unwrap();
    let content = Preparer::new().content(&noise(15, 2_000_000));
    let store = Store::open(dir.path()).unwrap();
    let mut batch = store.batch().unwrap();
    batch.put_content(&content).unwrap();
    batch.commit().unwrap();
    let get = || store.plain_file(content.id, content.size).unwrap().unwrap();
    drop(get());
    let path = dir.path().join(FILES_DIR).join(content.id.to_string());
    let mut bytes = fs::read(&path).unwrap();
    bytes[1_999_999] ^= 1;
    write(&path, &bytes);
    let found = || check(&store, &FakeGit, &Silent, &Cancel::default()).unwrap().findings;
    let findings = found();
    let name = content.id.to_string();
    assert!(matches!(&findings[..], [Finding::BadFile { name: found, .. }] if *found == name));
    let steps = plan(&findings);
    assert_eq!(steps, [Step::RemoveFile { name }]);
    let taken = execute(&store, &steps, &Nowhere, &Cancel::default()).unwrap();
    assert_eq!(taken[0].outcome, Ok(()));
    assert!(!path.exists() && found().is_empty());
    assert_eq!(store.plain_files(), (0, 0));
    drop(get());
    assert!(path.exists() && found().is_empty());
    // No branch leads to the content.
    let collect = |dry| {
        let upkeep = store.upkeep();
        let begun = Collection::begin(&store, &upkeep, dry).unwrap();
        begun.run(&Silent, &Cancel::default()).unwrap().files
    };
    assert_eq!((collect(true).bytes, path.exists()), (content.size, true));
    assert_eq!((collect(false).bytes, path.exists()), (content.size, false));
    assert_eq!(store.plain_files(), (0, 0));
}
