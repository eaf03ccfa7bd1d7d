//! Goal: wherever one bit of a file is wrong, nobody is told anything wrong. A clone of a damaged
//! repository is an error that names what is damaged, or it is right; a store with a damaged database
//! says so, or gives what it gave before.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use agentfs_tests::fixture::Builder;
use agentfs_tests::{TestStore, fuse_available, git, tree};

/// Positions at which each file is damaged.
const POSITIONS: usize = 24;

/// Calls `with` for each of some positions all over the file at `path` while one bit is wrong there.
/// The file is another one each time: a clone may share it.
fn flipped(path: &Path, with: &mut dyn FnMut(usize)) {
    let whole = fs::read(path).expect("the file");
    for number in 0..POSITIONS {
        let at = number * (whole.len() - 1) / (POSITIONS - 1);
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (number % 8);
        fs::remove_file(path).expect("the file");
        fs::write(path, bytes).expect("the file");
        with(at);
    }
    fs::remove_file(path).expect("the file");
    fs::write(path, whole).expect("the file");
}

/// The files below `dir`.
fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = tree::read(dir).into_keys().map(|path| dir.join(path)).collect();
    found.retain(|path| path.is_file());
    found
}

fn repository(store: &TestStore) -> Builder {
    let builder = Builder::new(&store.path("source"));
    let lines = |from: u32| (from..from + 400).map(|line| format!("{line}\n")).collect::<String>();
    builder.file("a", lines(0)).file("d/b", lines(1)).file("d/e/c", lines(7)).link("l", "a");
    builder.commit("one");
    builder.file("a", lines(3)).file("d/e/empty", "");
    builder.commit("two");
    builder
}

/// Clones while `file` of the source is damaged; returns how often it was refused.
fn clone_each(store: &TestStore, source: &Path, file: &Path, native: &Path) -> usize {
    let from = source.display().to_string();
    let shown = file.strip_prefix(source).expect("a file of it").display().to_string();
    let mut refused = 0;
    flipped(file, &mut |at| {
        let dir = store.path("worktree");
        let into = dir.display().to_string();
        let finished = store.run(&["clone", "--wait", &from, &into]);
        let said = &finished.stderr;
        if finished.code == 0 {
            tree::assert_same(native, &dir);
            store.ok(&["umount", &into]);
            fs::remove_dir(&dir).expect("the mount point");
        } else {
            refused += 1;
            assert_eq!(finished.code, 5, "byte {at} of {shown}: {said}");
            let id = said.split(|letter: char| !letter.is_ascii_hexdigit());
            let named = id.into_iter().any(|word| word.len() == 40);
            assert!(named || said.contains(".idx") || said.contains(".pack"), "{at}: {said}");
            assert!(said.contains("hint:"), "byte {at} of {shown}: {said}");
            assert_eq!(said.matches("agentfs: ").count(), 1, "byte {at} of {shown}: {said}");
            assert!(!dir.exists(), "byte {at} of {shown}: a directory is left");
        }
    });
    let listed = store.json(&["ps"]);
    let kept = listed["repositories"].as_array().expect("repositories").len();
    assert_eq!(kept, POSITIONS - refused, "{shown}: {listed}");
    store.ok(&["fsck"]);
    refused
}

#[test]
fn a_clone_of_a_damaged_pack_is_refused_or_right() {
    if !fuse_available() {
        return;
    }
    for extension in ["pack", "idx"] {
        let store = TestStore::new();
        let source = repository(&store);
        git(source.dir(), &["repack", "-adq"]);
        git(source.dir(), &["prune-packed"]);
        let native = store.path("native");
        let (from, into) = (source.dir().display().to_string(), native.display().to_string());
        git(&store.path(""), &["clone", "--quiet", "--no-local", &from, &into]);
        let packs = files(&source.dir().join(".git/objects/pack"));
        let pack = packs.iter().find(|path| path.extension().is_some_and(|e| e == extension));
        let refused = clone_each(&store, source.dir(), pack.expect("a pack"), &native);
        assert!(refused > 0 && refused < POSITIONS, "{extension}: {refused} of {POSITIONS}");
    }
}

#[test]
fn a_clone_of_a_damaged_loose_object_is_refused_or_right() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let source = repository(&store);
    let native = store.path("native");
    let (from, into) = (source.dir().display().to_string(), native.display().to_string());
    git(&store.path(""), &["clone", "--quiet", "--no-local", &from, &into]);
    // The commit, a tree, a file: each is needed, so that only a bit that nothing reads is harmless.
    for rev in ["HEAD", "HEAD:d", "HEAD:a"] {
        let own = TestStore::new();
        let id = git(source.dir(), &["rev-parse", rev]);
        let file = source.dir().join(".git/objects").join(&id[..2]).join(&id[2..]);
        let refused = clone_each(&own, source.dir(), &file, &native);
        assert!(refused > POSITIONS / 2, "{rev}: {refused} of {POSITIONS}");
    }
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp runs");
    assert!(copied.success());
}

/// Reads everything below `dir`, and compares what can be read with `native`; returns what cannot.
fn read_what_can_be_read(native: &Path, dir: &Path) -> usize {
    let mut errors = 0;
    for (path, entry) in tree::read(native) {
        let found = match &entry {
            tree::Entry::Directory => fs::read_dir(dir.join(&path)).map(|_| entry.clone()),
            tree::Entry::Link(_) => fs::read_link(dir.join(&path))
                .map(|target| tree::Entry::Link(target.into_os_string().into_encoded_bytes())),
            tree::Entry::File(executable, _) => {
                let mut bytes = Vec::new();
                fs::File::open(dir.join(&path))
                    .and_then(|mut file| file.read_to_end(&mut bytes))
                    .map(|_| tree::Entry::File(*executable, bytes))
            }
        };
        match found {
            Ok(found) => assert_eq!(found, entry, "{}", path.display()),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(5), "{}: {error}", path.display());
                errors += 1;
            }
        }
    }
    errors
}

#[test]
fn a_damaged_page_of_the_database_is_told_and_costs_nothing() {
    if !fuse_available() {
        return;
    }
    let mut store = TestStore::new();
    let source = repository(&store);
    let dir = store.path("worktree");
    let (from, into) = (source.dir().display().to_string(), dir.display().to_string());
    store.ok(&["clone", "--wait", &from, &into]);
    let native = store.path("native");
    git(&store.path(""), &["clone", "--quiet", &from, &native.display().to_string()]);
    store.ok(&["daemon", "stop"]);
    let whole = store.path("whole");
    copy(store.home(), &whole);
    let bytes = fs::read(whole.join("store.redb")).expect("the database");
    let used: Vec<_> = (0..bytes.len()).filter(|&at| bytes[at] != 0).collect();
    let home = store.home().to_owned();
    let (mut found, mut harmless) = (0, 0);
    for number in 0..2 * POSITIONS {
        let at = used[number * (used.len() - 1) / (2 * POSITIONS - 1)];
        fs::remove_dir_all(&home).expect("the store");
        copy(&whole, &home);
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (number % 8);
        fs::write(home.join("store.redb"), &damaged).expect("the database");
        let checked = store.run(&["fsck", "--json"]);
        let said = format!("byte {at}: {}{}", checked.stdout, checked.stderr);
        match checked.code {
            0 => harmless += 1,
            5 => {
                let report = checked.events().pop().expect("a result");
                let findings = report["findings"].to_string();
                assert!(findings.contains("of the database are damaged"), "{said}");
                found += 1;
            }
            _ => panic!("{said}"),
        }
        let listed = store.json(&["ps"]);
        assert_eq!(listed["worktrees"][0]["mounted"], true, "{said}");
        assert_eq!(read_what_can_be_read(&native, &dir), 0, "{said}");
        let repaired = store.run(&["fsck", "--repair"]);
        assert!([0, 9].contains(&repaired.code), "{said}: {}", repaired.stdout);
        assert_eq!(store.run(&["fsck"]).code, 0, "{said}");
        store.ok(&["daemon", "stop"]);
    }
    assert!(found > 0, "{found} found, {harmless} harmless");
    store.set_home(home);
}
