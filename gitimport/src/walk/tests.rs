//! What is imported is what git lists; what `git fsck` rejects is refused with its path; nothing
//! costs more than its limit.

use std::collections::BTreeSet;
use std::time::Instant;

use agentfs_engine::limits::{SYMLINK_BYTES_MAX, TREE_DEPTH_MAX};
use agentfs_engine::progress::{Cancel, Progress, Silent};
use agentfs_engine::store::Store;
use agentfs_engine::tree::{Entry, EntryKind, Subtree};
use agentfs_engine::{GitOid, HashKind, TreeId};

use super::{Imported, import_bounded, import_tree};
use crate::convert::Plan;
use crate::error::{Error, Result};
use crate::forge::{Forge, IndexVersion, Packed, PackedForm, delta, tree_bytes};
use crate::gittest::{Sandbox, git};
use crate::limits::BLOB_BYTES_MAX;
use crate::object::Kind;
use crate::pipeline::ingest;
use crate::repository::Repository;

fn import(store: &Store, repository: &Repository, tree: &GitOid) -> Result<Imported> {
    let plan = Plan::new(repository)?;
    import_tree(store, repository, tree, &plan, &Silent, &Cancel::default())
}

fn import_forged(forge: &Forge, tree: &GitOid) -> Result<Imported> {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    import(&store, &forge.repository(), tree)
}

fn refusal(forge: &Forge, tree: &GitOid) -> String {
    let error = import_forged(forge, tree).expect_err("it must be refused");
    assert!(error.is_refusal(), "{error}");
    error.to_string()
}

/// What the git map has of `tree` under the conversions that hold in a root.
fn mapped(store: &Store, repository: &Repository, tree: &GitOid) -> Option<Subtree> {
    let scope = Plan::new(repository).unwrap().root().enter(b"", None).unwrap();
    store.tree_of(tree, &scope.context()).unwrap()
}

/// Every entry below `root` with its path.
fn list(store: &Store, root: TreeId, visit: &mut dyn FnMut(&[u8], &Entry<'_>)) {
    fn below(store: &Store, id: TreeId, path: &[u8], visit: &mut dyn FnMut(&[u8], &Entry<'_>)) {
        for entry in store.tree(id).unwrap().entries() {
            let path = [path, entry.name].concat();
            visit(&path, &entry);
            if let Some(subtree) = entry.subtree {
                below(store, subtree.id, &[&path[..], b"/"].concat(), visit);
            }
        }
    }
    below(store, root, b"", visit);
}

#[test]
fn every_kind_of_entry_as_git_lists_it() {
    for (format, pack) in [("sha1", true), ("sha1", false), ("sha256", true), ("sha256", false)] {
        let sandbox = Sandbox::new();
        let option = format!("--object-format={format}");
        let path = sandbox.empty_repository("repo", &[&option]);
        for (name, content) in [
            ("a", "one"),
            ("dir/b", "two"),
            ("dir.x", "sorted between the file and the directory"),
            ("dir/deep/er/c", ""),
            ("copy/dir/b", "two"),
            ("na\u{ef}ve \u{1f980}", "name"),
        ] {
            std::fs::create_dir_all(path.join(name).parent().unwrap()).unwrap();
            std::fs::write(path.join(name), content).unwrap();
        }
        std::os::unix::fs::symlink("../else/where", path.join("dir/link")).unwrap();
        git(&path, &["add", "-A"]);
        git(&path, &["update-index", "--chmod=+x", "a"]);
        let null = "1".repeat(if format == "sha1" { 40 } else { 64 });
        git(&path, &["update-index", "--add", "--cacheinfo", &format!("160000,{null},module")]);
        git(&path, &["commit", "-qm", "all"]);
        if pack {
            git(&path, &["repack", "-adq"]);
        }
        let repository = Repository::open(&path.join(".git")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let commit = repository.resolve("HEAD").unwrap();
        let imported = import(&store, &repository, &commit.tree).unwrap();
        let mut found = BTreeSet::new();
        list(&store, imported.root.id, &mut |path, entry| {
            let (mode, kind) = match entry.kind {
                EntryKind::File => ("100644", "blob"),
                EntryKind::Executable => ("100755", "blob"),
                EntryKind::Symlink => ("120000", "blob"),
                EntryKind::Gitlink => ("160000", "commit"),
                EntryKind::Directory => ("040000", "tree"),
            };
            let size = if kind == "blob" { entry.size.to_string() } else { "-".into() };
            let path = String::from_utf8_lossy(path).into_owned();
            found.insert(format!("{mode} {kind} {} {size:>7}\t{path}", entry.oid.unwrap()));
        });
        let listed = git(&path, &["ls-tree", "-rtlz", "HEAD"]);
        let listed: BTreeSet<_> = listed.split_terminator('\0').map(str::to_owned).collect();
        assert_eq!(found, listed, "{format}, packed: {pack}");
        assert_eq!(imported.root.descendants as usize, listed.len());
        // Nothing is mapped until it is proven; then the same import reads nothing.
        assert_eq!(mapped(&store, &repository, &commit.tree), None);
        let report = ingest(
            &store,
            &repository,
            imported.root.id,
            &imported.trees,
            &Silent,
            &Cancel::default(),
        )
        .unwrap();
        assert_eq!((report.blobs, report.known), (6, 0));
        assert_eq!(mapped(&store, &repository, &commit.tree), Some(imported.root));
        std::fs::remove_dir_all(path.join(".git/objects")).unwrap();
        std::fs::create_dir(path.join(".git/objects")).unwrap();
        assert_eq!(import(&store, &repository, &commit.tree).unwrap().root, imported.root);
    }
}

#[test]
fn the_empty_repository_is_an_empty_tree() {
    for hash in [HashKind::Sha1, HashKind::Sha256] {
        let forge = Forge::new(hash);
        let imported = import_forged(&forge, &forge.odb().empty_tree()).unwrap();
        assert_eq!(imported.root.descendants, 0);
    }
}

#[test]
fn hostile_names_are_refused_by_path() {
    let forge = Forge::new(HashKind::Sha1);
    let blob = forge.loose(Kind::Blob, b"x");
    for (mode, name) in [
        ("100644", &b".."[..]),
        ("40000", b"."),
        ("100644", b""),
        ("40000", b".git"),
        ("100644", b".GiT"),
        ("100644", b"git~1"),
        ("40000", ".g\u{200c}it".as_bytes()),
        ("100644", b".git ."),
        ("100644", b".git::$INDEX_ALLOCATION"),
        ("100644", b"x\\.git"),
        ("100644", b"a/b"),
        ("120000", b".gitmodules"),
        ("100600", b"mode"),
        ("100644", &[b'n'; 256]),
    ] {
        let evil = forge.tree(&[(mode, name, blob)]);
        let root = forge.tree(&[("100644", b"a", blob), ("40000", b"dir", evil)]);
        let text = refusal(&forge, &root);
        let path = format!("{:?}", format!("dir/{}", String::from_utf8_lossy(name)));
        let path = path.trim_end_matches('"').trim_end_matches('/');
        assert!(text.contains(path) && text.contains(&evil.to_string()), "{text}: {path}");
    }
}

#[test]
fn duplicates_and_disorder_are_refused() {
    let forge = Forge::new(HashKind::Sha1);
    let (blob, empty) = (forge.loose(Kind::Blob, b"x"), forge.tree(&[]));
    for entries in [
        &[("100644", &b"foo"[..], blob), ("100644", b"foo", blob)][..],
        &[("100644", b"foo", blob), ("100644", b"foo.bar", blob), ("40000", b"foo", empty)],
        &[("100644", b"foo", blob), ("100644", b"bar", blob)],
    ] {
        let text = refusal(&forge, &forge.tree(entries));
        assert!(text.contains("foo") || text.contains("bar"), "{text}");
    }
    let cut = tree_bytes(&[("100644", b"foo", blob)]);
    let cut = forge.loose(Kind::Tree, &cut[..cut.len() - 1]);
    assert!(refusal(&forge, &cut).contains("cut off"));
}

/// Names made of the parts that matter: exactly those are refused that git's own fsck reports.
#[test]
fn the_same_names_are_refused_as_by_git_fsck() {
    let parts: [&[u8]; 22] = [
        b".git",
        b".GIT",
        b"git",
        b"git~1",
        b"gitmod",
        b".gitmodules",
        b"~1",
        b"~",
        b"gi7eba",
        b".",
        b" ",
        b":",
        b"\\",
        b"\xe2\x80\x8c",
        b"\xef\xbb\xbf",
        b"\xe2\x81\xaf",
        b"\xff",
        b"\xc0\xae",
        b"\xef\xbf\xbf",
        b"g",
        b"x",
        b"\xed\xa0\x80",
    ];
    let forge = Forge::new(HashKind::Sha1);
    let blob = forge.loose(Kind::Blob, b"x");
    let mut refused = BTreeSet::new();
    let mut trees = Vec::new();
    let mut names: BTreeSet<Vec<u8>> = BTreeSet::new();
    for one in parts {
        names.insert(one.to_vec());
        for two in parts {
            names.insert([one, two].concat());
            for three in parts {
                names.insert([one, two, three].concat());
            }
        }
    }
    // Every code point that HFS+ might ignore, and around them; every tail that NTFS might.
    for point in ('\u{1ff0}'..'\u{2080}').chain(['\u{fefe}', '\u{feff}', '\u{ff00}', '\u{61c}']) {
        for name in [format!(".g{point}it"), format!("{point}.git"), format!(".git{point}")] {
            names.insert(name.into_bytes());
        }
        names.insert(format!(".gitmod{point}ules").into_bytes());
    }
    for name in [".git", "git~1", "git~2", ".gitmodules", "gitmod~1", "gi7eba~1", "gi7e~123"] {
        for tail in ["::$INDEX_ALLOCATION", ":$DATA", " . .", "...", " x", "\\..\\x", "\\", "/x"] {
            for head in ["", "\\", "a\\", "a\\b\\", ".\\", "..\\", "a/"] {
                names.insert(format!("{head}{name}{tail}").into_bytes());
            }
        }
    }
    for (number, name) in names.iter().enumerate() {
        let link =
            number % 3 == 0 || name.windows(4).any(|part| part.eq_ignore_ascii_case(b"modu"));
        let mode = if link { "120000" } else { "100644" };
        let bytes = tree_bytes(&[(mode, name, blob)]);
        let oid = forge.id(Kind::Tree, &bytes);
        if crate::tree::GitTree::parse(HashKind::Sha1, bytes.clone()).is_err() {
            refused.insert(oid.to_string());
        }
        trees.push((oid, bytes));
    }
    // One pack of all, since ten thousand loose objects take fsck a while.
    let mut entries = vec![Packed::new(blob, PackedForm::Whole(Kind::Blob), b"x")];
    let whole =
        |(oid, bytes): &(GitOid, Vec<u8>)| Packed::new(*oid, PackedForm::Whole(Kind::Tree), bytes);
    entries.extend(trees.iter().map(whole));
    forge.pack(&entries, IndexVersion::Two);
    let output = crate::gittest::run(
        forge.path(),
        &["-c", "fsck.gitmodulesSymlink=error", "fsck", "--full", "--no-dangling"],
    );
    let text = String::from_utf8_lossy(&output.stderr);
    let reported: BTreeSet<_> = text
        .lines()
        .filter(|line| {
            [
                "hasDotgit",
                "hasDot:",
                "hasDotdot",
                "gitmodulesSymlink",
                "emptyName",
                "fullPathname",
                "badTree",
            ]
            .iter()
            .any(|id| line.contains(id))
        })
        .filter_map(|line| line.split_once(" in tree ")?.1.get(..40))
        .map(str::to_owned)
        .collect();
    assert!(reported.len() > 500, "fsck says: {text}");
    let shown = |oid: &&String| {
        let (_, bytes) = trees.iter().find(|(tree, _)| tree.to_string() == ***oid).unwrap();
        String::from_utf8_lossy(bytes).into_owned()
    };
    let missed: Vec<_> = reported.difference(&refused).collect();
    let extra: Vec<_> = refused.difference(&reported).collect();
    assert!(
        missed.is_empty() && extra.is_empty(),
        "not refused: {:?}; refused: {:?}",
        missed.iter().map(shown).collect::<Vec<_>>(),
        extra.iter().map(shown).collect::<Vec<_>>()
    );
}

#[test]
fn objects_that_are_not_what_the_tree_says() {
    let forge = Forge::new(HashKind::Sha1);
    let (blob, empty) = (forge.loose(Kind::Blob, b"x"), forge.tree(&[]));
    let gone = forge.id(Kind::Blob, b"gone");
    let check = |entry: (&str, &[u8], GitOid), refused: bool| {
        let sub = forge.tree(&[entry]);
        let root = forge.tree(&[("40000", b"dir", sub)]);
        let error = import_forged(&forge, &root).unwrap_err();
        assert_eq!((error.is_refusal(), error.is_corruption()), (refused, !refused), "{error}");
        let text = error.to_string();
        assert!(text.contains("dir/name") && text.contains(&entry.2.to_string()), "{text}");
        text
    };
    assert!(check(("100644", b"name", empty), true).contains("is a tree where a blob must be"));
    assert!(check(("40000", b"name", blob), true).contains("is a blob where a tree must be"));
    assert!(check(("100644", b"name", gone), false).contains("missing"));
    assert!(check(("40000", b"name", gone), false).contains("missing"));
    let long = forge.loose(Kind::Blob, &vec![b'/'; SYMLINK_BYTES_MAX as usize + 1]);
    assert!(check(("120000", b"name", long), true).contains("4096"));
    // A few kilobytes can make more than anybody wants to store, and that is true of them.
    let immense = forge.id(Kind::Blob, b"immense");
    let base = forge.id(Kind::Blob, b"base");
    let copies = vec![0x80; 40_000];
    forge.pack(
        &[
            Packed::new(base, PackedForm::Whole(Kind::Blob), b"base"),
            Packed::new(immense, PackedForm::Offset(0), &delta(4, BLOB_BYTES_MAX + 1, &copies)),
        ],
        IndexVersion::Two,
    );
    assert!(check(("100644", b"name", immense), true).contains(&BLOB_BYTES_MAX.to_string()));
    // A header that says so of a small blob is damage, not a refusal.
    let liar = forge.id(Kind::Blob, b"liar");
    forge.loose_as(&liar, "blob 5000\0", b"liar");
    check(("120000", b"name", liar), false);
    forge.loose_as(&liar, "tree 4\0", b"liar");
    check(("100644", b"name", liar), false);
    // Nothing would ever be read of a file that is empty.
    forge.loose_as(&liar, "blob 0\0", b"liar");
    check(("100644", b"name", liar), false);
    forge.loose_as(&liar, "blob 0\0", b"");
    check(("100644", b"name", liar), false);
    let nothing = forge.loose(Kind::Blob, b"");
    import_forged(&forge, &forge.tree(&[("100644", b"name", nothing)])).unwrap();
    // The longest target is taken.
    let fits = forge.loose(Kind::Blob, &vec![b'/'; SYMLINK_BYTES_MAX as usize]);
    import_forged(&forge, &forge.tree(&[("120000", b"name", fits)])).unwrap();
}

#[test]
fn a_tree_that_contains_itself_is_damaged() {
    let forge = Forge::new(HashKind::Sha1);
    let oid = forge.id(Kind::Tree, b"not these bytes");
    let bytes = tree_bytes(&[("40000", b"again", oid)]);
    forge.loose_as(&oid, &format!("tree {}\0", bytes.len()), &bytes);
    let root = forge.tree(&[("40000", b"dir", oid)]);
    let error = import_forged(&forge, &root).unwrap_err();
    assert!(error.is_corruption(), "{error}");
    assert!(error.to_string().contains("\"dir\"") && error.to_string().contains(&oid.to_string()));
}

#[test]
fn nesting_is_limited() {
    let forge = Forge::new(HashKind::Sha1);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let repository = forge.repository();
    let mut entries = Vec::new();
    let mut nest = |mut oid: GitOid, levels: usize| {
        for _ in 0..levels {
            let bytes = tree_bytes(&[("40000", b"d", oid)]);
            oid = forge.id(Kind::Tree, &bytes);
            entries.push(Packed::new(oid, PackedForm::Whole(Kind::Tree), &bytes));
        }
        oid
    };
    let deepest = nest(forge.odb().empty_tree(), TREE_DEPTH_MAX - 1);
    let deeper = nest(deepest, 1);
    forge.pack(&entries, IndexVersion::Two);
    let error = import(&store, &repository, &deeper).unwrap_err();
    assert!(error.is_refusal() && error.to_string().contains("nested more than"), "{error}");
    let imported = import(&store, &repository, &deepest).unwrap();
    assert_eq!(imported.root.descendants as usize, TREE_DEPTH_MAX - 1);
    // Once the store knows it, it is as deep as before.
    let done =
        ingest(&store, &repository, imported.root.id, &imported.trees, &Silent, &Cancel::default());
    done.unwrap();
    assert!(mapped(&store, &repository, &deepest).is_some());
    let error = import(&store, &repository, &deeper).unwrap_err();
    assert!(error.is_refusal() && error.to_string().contains("nested more than"), "{error}");
}

#[test]
fn each_tree_is_read_once_however_often_it_occurs() {
    let forge = Forge::new(HashKind::Sha1);
    let blob = forge.loose(Kind::Blob, b"x");
    let names: Vec<_> = (b'0'..=b'9').map(|digit| [digit]).collect();
    let repeat = |mode, oid| {
        let entries: Vec<_> = names.iter().map(|name| (mode, &name[..], oid)).collect();
        forge.tree(&entries)
    };
    let mut tree = repeat("100644", blob);
    for _ in 0..7 {
        tree = repeat("40000", tree);
    }
    let start = Instant::now();
    // 10^8 files in eight trees.
    let imported = import_forged(&forge, &tree).unwrap();
    assert_eq!(imported.root.descendants, 111_111_110);
    for _ in 0..3 {
        tree = repeat("40000", tree);
    }
    assert!(refusal(&forge, &tree).contains("exceeds the limit"));
    assert!(start.elapsed().as_secs() < 30);
}

#[test]
fn a_filter_that_no_rule_names_keeps_equal_trees_one() {
    let (forge, tree) = forged_bomb(b"*.bin -text");
    git(forge.path(), &["config", "filter.lfs.smudge", "no-such-program %f"]);
    assert_eq!(import_forged(&forge, &tree).unwrap().root.descendants, 11_111_112);
}

#[test]
fn what_conversions_by_path_multiply_is_limited() {
    let (forge, tree) = forged_bomb(b"*.bin filter=lfs");
    git(forge.path(), &["config", "filter.lfs.smudge", "no-such-program %f"]);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let repository = forge.repository();
    let plan = Plan::new(&repository).unwrap();
    let watched: (&dyn Progress, &Cancel) = (&Silent, &Cancel::default());
    let error = import_bounded(&store, &repository, &tree, &plan, watched, 2000).unwrap_err();
    assert!(error.is_refusal() && error.to_string().contains("directories"), "{error}");
}

/// Ten million files in eight trees, below a root whose attributes are `attributes`.
fn forged_bomb(attributes: &[u8]) -> (Forge, GitOid) {
    let forge = Forge::new(HashKind::Sha1);
    let blob = forge.loose(Kind::Blob, b"x");
    let names: Vec<_> = (b'0'..=b'9').map(|digit| [digit]).collect();
    let mut tree = blob;
    for level in 0..7 {
        let mode = if level == 0 { "100644" } else { "40000" };
        let entries: Vec<_> = names.iter().map(|name| (mode, &name[..], tree)).collect();
        tree = forge.tree(&entries);
    }
    let rules = forge.loose(Kind::Blob, attributes);
    let root = forge.tree(&[("100644", b".gitattributes", rules), ("40000", b"d", tree)]);
    (forge, root)
}

#[test]
fn trees_past_the_memory_limit_are_read_again() {
    // Each tree has most of a mebibyte of gitlinks and the next tree: 60 MiB in one path.
    let forge = Forge::new(HashKind::Sha1);
    let commit = forge.id(Kind::Commit, b"elsewhere");
    let names: Vec<_> = (0..4000).map(|number| format!("{number:0200}")).collect();
    let mut entries = Vec::new();
    let mut child = forge.odb().empty_tree();
    for _ in 0..60 {
        let mut listed: Vec<_> =
            names.iter().map(|name| ("160000", name.as_bytes(), commit)).collect();
        listed.push(("40000", b"sub", child));
        let bytes = tree_bytes(&listed);
        child = forge.id(Kind::Tree, &bytes);
        entries.push(Packed::new(child, PackedForm::Whole(Kind::Tree), &bytes));
    }
    forge.pack(&entries, IndexVersion::Two);
    assert_eq!(import_forged(&forge, &child).unwrap().root.descendants, 60 * 4001);
}

#[test]
fn a_directory_of_many_entries_is_sized_by_all_threads() {
    let forge = Forge::new(HashKind::Sha1);
    let blobs: Vec<_> = (0..10_000_u32).map(|number| number.to_string().into_bytes()).collect();
    let mut entries: Vec<_> = blobs
        .iter()
        .map(|bytes| Packed::new(forge.id(Kind::Blob, bytes), PackedForm::Whole(Kind::Blob), bytes))
        .collect();
    let names: Vec<_> = (0..10_000).map(|number| format!("{number:05}")).collect();
    let listed: Vec<_> = names
        .iter()
        .zip(&entries)
        .map(|(name, entry)| ("100644", name.as_bytes(), entry.oid))
        .collect();
    let bytes = tree_bytes(&listed);
    let tree = forge.id(Kind::Tree, &bytes);
    let last = entries.pop().unwrap();
    entries.push(Packed::new(tree, PackedForm::Whole(Kind::Tree), &bytes));
    forge.pack(&entries, IndexVersion::Two);
    let error = import_forged(&forge, &tree).unwrap_err().to_string();
    assert!(error.contains("09999") && error.contains(&last.oid.to_string()), "{error}");
    forge.loose(Kind::Blob, &last.data);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let imported = import(&store, &forge.repository(), &tree).unwrap();
    let tree = store.tree(imported.root.id).unwrap();
    for (entry, blob) in tree.entries().zip(&blobs) {
        assert_eq!(entry.size, blob.len() as u64);
    }
}

#[test]
fn old_modes_pass_the_check_of_the_store() {
    let forge = Forge::new(HashKind::Sha1);
    let blob = forge.loose(Kind::Blob, b"x");
    let sub = forge.tree(&[("100664", b"a", blob), ("100755", b"b", blob)]);
    let root = forge.tree(&[("100644", b"file", blob), ("040000", b"sub", sub)]);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let repository = forge.repository();
    let imported = import(&store, &repository, &root).unwrap();
    ingest(&store, &repository, imported.root.id, &imported.trees, &Silent, &Cancel::default())
        .unwrap();
    let verifier = crate::verify::Verifier;
    let report =
        agentfs_engine::check::check(&store, &verifier, &Silent, &Cancel::default()).unwrap();
    assert_eq!(report.findings, []);
    assert_eq!(import(&store, &repository, &root).unwrap().root, imported.root);
}

#[test]
fn a_lie_about_a_size_does_not_outlive_its_repository() {
    let liar = Forge::new(HashKind::Sha1);
    let honest = Forge::new(HashKind::Sha1);
    let blob = honest.loose(Kind::Blob, b"true");
    let tree = honest.tree(&[("100644", b"file", blob)]);
    let bytes = tree_bytes(&[("100644", b"file", blob)]);
    let entry = Packed {
        oid: blob,
        form: PackedForm::Whole(Kind::Blob),
        size: Some(1000),
        data: b"true".to_vec(),
    };
    liar.pack(
        &[entry, Packed::new(tree, PackedForm::Whole(Kind::Tree), &bytes)],
        IndexVersion::Two,
    );
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let size = |imported: &Imported| store.tree(imported.root.id).unwrap().entry(0).size;
    let repository = liar.repository();
    let imported = import(&store, &repository, &tree).unwrap();
    assert_eq!(size(&imported), 1000);
    let error =
        ingest(&store, &repository, imported.root.id, &imported.trees, &Silent, &Cancel::default())
            .unwrap_err();
    assert!(error.is_corruption() && error.to_string().contains("\"file\""), "{error}");
    let repository = honest.repository();
    let imported = import(&store, &repository, &tree).unwrap();
    assert_eq!(size(&imported), 4);
    ingest(&store, &repository, imported.root.id, &imported.trees, &Silent, &Cancel::default())
        .unwrap();
    // The first import is no better now, and says so.
    let wrong = import(&store, &liar.repository(), &tree).unwrap();
    assert_eq!(size(&wrong), 4, "a proven tree is known");
}

#[test]
fn a_cancelled_walk_ends() {
    let forge = Forge::new(HashKind::Sha1);
    let tree = forge.tree(&[("100644", b"a", forge.loose(Kind::Blob, b"x"))]);
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let repository = forge.repository();
    let cancel = Cancel::default();
    cancel.cancel();
    let plan = Plan::new(&repository).unwrap();
    let error = import_tree(&store, &repository, &tree, &plan, &Silent, &cancel).unwrap_err();
    assert!(matches!(error, Error::Engine(agentfs_engine::Error::Cancelled)));
}

#[test]
fn converted_files_have_their_size_and_content() {
    let sandbox = Sandbox::new();
    let path = sandbox.empty_repository("repo", &[]);
    let text = b"line\n".repeat(1000);
    for (name, content) in [
        (".gitattributes", &b"*.txt text eol=crlf\n*.id ident\n"[..]),
        ("dir/a.txt", &text),
        ("dir/.gitattributes", b"plain.txt -text\n"),
        ("dir/plain.txt", &text),
        ("same/a.txt", &text),
        ("x.id", b"$Id$\n"),
        ("other", &text),
    ] {
        std::fs::create_dir_all(path.join(name).parent().unwrap()).unwrap();
        std::fs::write(path.join(name), content).unwrap();
    }
    git(&path, &["add", "-A"]);
    git(&path, &["commit", "-qm", "all"]);
    git(&path, &["rm", "-rqf", "--cached", "."]);
    git(&path, &["reset", "-q", "--hard"]);
    let repository = Repository::open(&path.join(".git")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let commit = repository.resolve("HEAD").unwrap();
    let imported = import(&store, &repository, &commit.tree).unwrap();
    assert_eq!(imported.converted, 3);
    ingest(&store, &repository, imported.root.id, &imported.trees, &Silent, &Cancel::default())
        .unwrap();
    list(&store, imported.root.id, &mut |name, entry| {
        if entry.kind == EntryKind::Directory {
            return;
        }
        let expected = std::fs::read(path.join(String::from_utf8_lossy(name).as_ref())).unwrap();
        assert_eq!(entry.size, expected.len() as u64);
        let stored = store.content_of(&entry.oid.unwrap()).unwrap().map(|stored| stored.id);
        let id = entry.content.or(stored).unwrap();
        let mut bytes = vec![0; expected.len()];
        assert_eq!(store.read_at(id, 0, &mut bytes).unwrap(), bytes.len());
        assert!(bytes == expected, "{}", String::from_utf8_lossy(name));
    });
    let verifier = crate::verify::Verifier;
    let report =
        agentfs_engine::check::check(&store, &verifier, &Silent, &Cancel::default()).unwrap();
    assert_eq!(report.findings, []);
}
