//! Goal: objects that lie about themselves are refused by their id, before anything is mounted where
//! that can be seen, else when they are read. Nothing half-made stays, no wrong byte is returned, and no
//! lie takes more memory than the truth.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use agentfs_tests::forge::{BLOB, Forge, Form, Packed, TREE, copy, delta, stored, zeros};
use agentfs_tests::{TestStore, fuse_available, git, mounts};

/// More than a daemon takes that has held none of what the bombs below inflate to.
const PEAK_MAX_MIB: u64 = 100;
/// Dozens of clones of each kind are made.
const LIMIT: Duration = Duration::from_secs(600);
const BASE: &[u8] = b"0123456789";
const GIB: u64 = 1 << 30;
/// What a bomb that lies inflates to.
const BOMB: u64 = 128 << 20;
/// Runs of zeros that make that.
const BOMB_RUNS: usize = (BOMB / 258) as usize;

/// How one object is stored.
enum Lie {
    /// In a pack, which these entries are added to. The first entry is [`BASE`].
    Packed(Vec<Packed>),
    /// Loose, as this compressed stream.
    Loose(Vec<u8>),
}

/// The object that is lied about.
struct Victim<'a> {
    id: &'a str,
    kind: &'a str,
    number: u8,
    bytes: &'a [u8],
    /// Other ids that are nobody's.
    others: &'a [String],
}

impl Victim<'_> {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn whole(&self) -> Packed {
        Packed::new(self.id, Form::Whole(self.number), self.bytes)
    }

    fn made(&self, form: Form, bytes: &[u8]) -> Packed {
        Packed::new(self.id, form, bytes)
    }

    /// A delta that makes the true bytes, but for the sizes that it states.
    fn insert(&self, base: u64, result: u64) -> Vec<u8> {
        let mut steps = vec![self.bytes.len() as u8];
        steps.extend(self.bytes);
        delta(base, result, &steps)
    }

    fn packed(&self, stored: Packed) -> Lie {
        let base = Packed::new(&self.others[0], Form::Whole(BLOB), BASE);
        Lie::Packed(vec![base, stored])
    }

    /// A chain of `count` deltas, each of the one before.
    fn chain(&self, count: usize) -> Lie {
        let mut entries = vec![Packed::new(&self.others[0], Form::Whole(self.number), self.bytes)];
        let len = self.bytes.len() as u8;
        let step = delta(self.len(), self.len(), &copy(0, len));
        for number in 1..count {
            let id = format!("{number:040x}");
            entries.push(Packed::new(&id, Form::Offset(number - 1), &step));
        }
        entries.push(self.made(Form::Offset(count - 1), &step));
        Lie::Packed(entries)
    }

    /// The exit code of a clone that meets a lie: a directory that says how large it is is too large, as
    /// it would be if that were true.
    fn code(&self, what: &str) -> i32 {
        let large = ["a delta of 128 MiB that says so", "a loose bomb behind a large size"];
        if self.kind == "tree" && large.contains(&what) { 4 } else { 5 }
    }

    fn lies(&self) -> Vec<(&'static str, Lie)> {
        let (len, base) = (self.len(), BASE.len() as u64);
        let true_copy = delta(base, len, &copy(0, len as u8));
        let offset = |delta: &[u8]| self.packed(self.made(Form::Offset(0), delta));
        let whole = |size| self.packed(self.whole().stating(size));
        let loose = |header: String| {
            Lie::Loose(stored(&[format!("{header}\0").as_bytes(), self.bytes].concat()))
        };
        let loop_of = |forms: [Form; 2]| {
            let [one, two] = forms;
            let step = delta(len, len, &copy(0, len as u8));
            let entries = [self.made(one, &step), Packed::new(&self.others[1], two, &step)];
            Lie::Packed(entries.into())
        };
        let bomb = |number| Packed {
            id: self.id.to_owned(),
            form: number,
            size: len,
            stream: zeros(b"", BOMB_RUNS),
        };
        // A base of 64 KiB of zeros, of which each instruction copies all.
        let zeros_of = |entry: Packed| {
            let base = Packed::new(&self.others[0], Form::Whole(BLOB), &vec![0; 1 << 16]);
            Lie::Packed(vec![base, entry])
        };
        let copies =
            |result, count| self.made(Form::Offset(0), &delta(1 << 16, result, &vec![0x80; count]));
        vec![
            ("a packed size that is too small", whole(len - 1)),
            ("a packed size that is too large", whole(len + 1)),
            ("a packed size of 2^60", whole(1 << 60)),
            ("a packed size of 2^64 - 1", whole(u64::MAX)),
            ("a base of another size", offset(&self.insert(base + 1, len))),
            ("a delta that makes more than it states", offset(&self.insert(base, len - 1))),
            ("a delta that makes less than it states", offset(&self.insert(base, len + 1))),
            ("a delta that states 2^60 bytes", offset(&self.insert(base, 1 << 60))),
            ("a base of 2^60 bytes", offset(&self.insert(1 << 60, len))),
            ("a delta whose header states less", {
                self.packed(self.made(Form::Offset(0), &self.insert(base, len)).stating(3))
            }),
            ("a delta whose header states 2^60", {
                self.packed(self.made(Form::Offset(0), &self.insert(base, len)).stating(1 << 60))
            }),
            (
                "a copy from beyond the base",
                offset(&delta(base, len, &copy(base as u8, len as u8))),
            ),
            ("a copy that ends beyond the base", offset(&delta(base, len, &copy(1, base as u8)))),
            ("a copy of other bytes", offset(&true_copy)),
            ("an instruction cut off", offset(&delta(base, len, &[9, 1]))),
            ("a base before the pack", {
                self.packed(self.made(Form::Distance(1 << 40), &true_copy))
            }),
            ("a base at the very start of the pack", {
                self.packed(self.made(Form::Distance(30), &true_copy))
            }),
            ("an object that is its own base by offset", {
                self.packed(self.made(Form::Distance(0), &true_copy))
            }),
            ("an object that is its own base by id", {
                self.packed(self.made(Form::Base(self.id.into()), &true_copy))
            }),
            ("two that are each other's base", {
                loop_of([Form::Base(self.others[1].clone()), Form::Base(self.id.into())])
            }),
            ("two of which one names the other by offset", {
                loop_of([Form::Base(self.others[1].clone()), Form::Offset(0)])
            }),
            ("a base that is nowhere", {
                self.packed(self.made(Form::Base(self.others[2].clone()), &true_copy))
            }),
            ("a chain longer than any", self.chain(5000)),
            ("a bomb behind a small size", self.packed(bomb(Form::Whole(self.number)))),
            ("a bomb of instructions", self.packed(bomb(Form::Offset(0)))),
            ("a delta of 128 MiB that states little", zeros_of(copies(len, 1 << 11))),
            ("a delta of 128 MiB that says so", zeros_of(copies(BOMB, 1 << 11))),
            ("another type number", self.packed(self.made(Form::Whole(5), self.bytes))),
            ("a loose size that is too small", loose(format!("{} {}", self.kind, len - 1))),
            ("a loose size that is too large", loose(format!("{} {}", self.kind, len + 1))),
            ("a loose size of 2^60", loose(format!("{} {}", self.kind, 1_u64 << 60))),
            ("a loose size of more than 64 bits", loose(format!("{} {}0", self.kind, u64::MAX))),
            ("a negative loose size", loose(format!("{} -1", self.kind))),
            ("a loose bomb behind a small size", {
                Lie::Loose(zeros(format!("{} {len}\0", self.kind).as_bytes(), BOMB_RUNS))
            }),
            ("a loose bomb behind a large size", {
                Lie::Loose(zeros(format!("{} {}\0", self.kind, 2 * BOMB).as_bytes(), BOMB_RUNS))
            }),
        ]
    }
}

/// The most memory that the daemon has had, in MiB.
fn peak_mib(store: &TestStore) -> u64 {
    let daemon = store.daemon().expect("a daemon").as_raw_nonzero();
    let status = fs::read_to_string(format!("/proc/{daemon}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    let kib = line.trim().strip_suffix(" kB").expect("in KiB");
    kib.parse::<u64>().expect("a number") / 1024
}

/// Every path of the store below the directories where clones are made.
fn kept(store: &TestStore) -> BTreeSet<PathBuf> {
    let list = |name: &str| fs::read_dir(store.home().join(name)).into_iter().flatten().flatten();
    ["repos", "worktrees"].into_iter().flat_map(list).map(|entry| entry.path()).collect()
}

/// Clones every lie about the object, waiting for its content and not. Of `paths` the first cannot be
/// had then, and the other can; `seen` is how many lies show at once, and how many when they are read.
fn refuse_each(
    victim: &Victim<'_>,
    root: &str,
    prepare: &dyn Fn(&Forge),
    paths: (&str, &str),
    seen: (usize, usize),
) {
    let store = TestStore::with_limit(LIMIT);
    store.ok(&["daemon", "start"]);
    let before = kept(&store);
    let (mut at_once, mut when_read) = (0, 0);
    for (number, (what, lie)) in victim.lies().into_iter().enumerate() {
        let source = store.path(&format!("source-{number}"));
        let forge = Forge::new(&source);
        prepare(&forge);
        forge.commit(root);
        match lie {
            Lie::Packed(entries) => forge.pack(&entries),
            Lie::Loose(stream) => forge.loose_stream(victim.id, &stream),
        }
        let dir = store.path("worktree");
        let (from, into) = (source.display().to_string(), dir.display().to_string());
        let code = victim.code(what);
        let what = format!("{what}, of a {}", victim.kind);
        let refused = store.run(&["clone", "--wait", &from, &into]);
        let said = &refused.stderr;
        assert_eq!(refused.code, code, "{what}: {said}");
        assert_eq!(said.matches("agentfs: ").count(), 1, "{what}: {said}");
        assert!(said.contains(victim.id), "{what}: {said}");
        assert!(code == 4 || said.contains("hint:"), "{what}: {said}");
        assert!(!dir.exists() && kept(&store) == before, "{what}: something is left");
        assert!(mounts::below(&store.path("")).is_empty(), "{what}: something is mounted");
        // Without waiting it may be mounted, when only reading the object shows the lie.
        let cloned = store.run(&["clone", &from, &into]);
        if cloned.code == 0 {
            when_read += 1;
            let error = fs::read(dir.join(paths.0)).expect_err(&what);
            assert_eq!(error.raw_os_error(), Some(5), "{what}: {error}");
            assert_eq!(fs::read(dir.join(paths.1)).expect("the other file"), BASE, "{what}");
            let branch = || store.json(&["ps"])["repositories"][0]["branches"][0].clone();
            store.wait_until(&what, || branch()["failure"].is_string());
            let why = branch()["failure"].to_string();
            assert!(why.contains(victim.id), "{what}: {why}");
            store.ok(&["umount", &into]);
            store.ok(&["daemon", "stop"]);
            fs::remove_dir_all(store.home()).expect("the store");
            fs::remove_dir(&dir).expect("the mount point");
            store.ok(&["daemon", "start"]);
        } else {
            at_once += 1;
            assert_eq!(cloned.code, code, "{what}: {}", cloned.stderr);
            assert!(cloned.stderr.contains(victim.id), "{what}: {}", cloned.stderr);
            assert!(!dir.exists() && kept(&store) == before, "{what}: something is left");
        }
        let peak = peak_mib(&store);
        assert!(peak < PEAK_MAX_MIB, "{what}: {peak} MiB");
        assert!(!store.log().contains("panicked"), "{what}: {}", store.log());
        fs::remove_dir_all(&source).expect("the source");
    }
    assert_eq!((at_once, when_read), seen, "{}: how many show before they are read", victim.kind);
}

#[test]
fn files_that_lie() {
    if !fuse_available() {
        return;
    }
    let scratch = TestStore::with_limit(LIMIT);
    let forge = Forge::new(&scratch.path("scratch"));
    let bytes = b"victim\n";
    let id = forge.object("blob", bytes, false);
    let base = forge.object("blob", BASE, false);
    let others = others(&forge);
    let root = Forge::tree(&[("100644", "intact", &base), ("100644", "victim", &id)]);
    let root_id = forge.object("tree", &root, false);
    let victim = Victim { id: &id, kind: "blob", number: BLOB, bytes, others: &others };
    let prepare = |forge: &Forge| {
        forge.object("blob", BASE, true);
        let header = format!("tree {}\0", root.len());
        forge.loose(&root_id, &header, &root);
    };
    refuse_each(&victim, &root_id, &prepare, ("victim", "intact"), (17, 18));
}

#[test]
fn directories_that_lie() {
    if !fuse_available() {
        return;
    }
    let scratch = TestStore::with_limit(LIMIT);
    let forge = Forge::new(&scratch.path("scratch"));
    let base = forge.object("blob", BASE, false);
    let bytes = Forge::tree(&[("100644", "file", &base)]);
    let id = forge.object("tree", &bytes, false);
    let others = others(&forge);
    let root = Forge::tree(&[("40000", "dir", &id), ("100644", "intact", &base)]);
    let root_id = forge.object("tree", &root, false);
    let victim = Victim { id: &id, kind: "tree", number: TREE, bytes: &bytes, others: &others };
    let prepare = |forge: &Forge| {
        forge.object("blob", BASE, true);
        let header = format!("tree {}\0", root.len());
        forge.loose(&root_id, &header, &root);
    };
    refuse_each(&victim, &root_id, &prepare, ("dir/file", "intact"), (35, 0));
}

/// Ids that belong to what is in no repository.
fn others(forge: &Forge) -> Vec<String> {
    ["one", "two", "three"].map(|text| forge.object("blob", text.as_bytes(), false)).into()
}

fn blob_of_zeros(store: &TestStore, dir: &Path, len: u64) -> (PathBuf, String) {
    let file = store.path("zeros");
    fs::File::create(&file).expect("a file").set_len(len).expect("a hole");
    let id = git(dir, &["hash-object", "--no-filters", &file.display().to_string()]);
    (file, id)
}

#[test]
fn a_gibibyte_in_a_few_kilobytes_is_read_in_bounded_memory() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::with_limit(LIMIT);
    let forge = Forge::new(&store.path("source"));
    let (file, id) = blob_of_zeros(&store, forge.dir(), GIB);
    let half = forge.object("blob", b"half", false);
    let base = forge.object("blob", &[0; 1 << 16], false);
    let tree = forge.object("tree", &Forge::tree(&[("100644", "zeros", &id)]), false);
    let bytes = Forge::tree(&[("100644", "zeros", &id)]);
    forge.loose(&tree, &format!("tree {}\0", bytes.len()), &bytes);
    forge.commit(&tree);
    // Of a base of half of it, which is of one of 64 KiB: both have to be put together.
    let most = 0xff_ffff;
    let mut steps = [0xff, 0, 0, 0, 0, 0xff, 0xff, 0xff].repeat((GIB / most) as usize);
    let rest = GIB % most;
    steps.extend([0xf0, rest as u8, (rest >> 8) as u8, (rest >> 16) as u8]);
    forge.pack(&[
        Packed::new(&base, Form::Whole(BLOB), &[0; 1 << 16]),
        Packed::new(
            &half,
            Form::Offset(0),
            &delta(1 << 16, GIB / 2, &vec![0x80; (GIB >> 17) as usize]),
        ),
        Packed::new(&id, Form::Base(half), &delta(GIB / 2, GIB, &steps)),
    ]);
    let dir = store.path("worktree");
    let from = forge.dir().display().to_string();
    store.ok(&["clone", "--wait", &from, &dir.display().to_string()]);
    let compared = std::process::Command::new("cmp").arg(&file).arg(dir.join("zeros")).status();
    assert!(compared.expect("cmp runs").success(), "other bytes");
    let peak = peak_mib(&store);
    assert!(peak < PEAK_MAX_MIB, "{peak} MiB");
}
