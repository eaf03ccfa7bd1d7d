//! Goal: a repository with `refs/replace` shows what git shows. Files have the bytes of what replaces
//! them, the index and HEAD have the ids of what is replaced, and the store does not mix the two up.

use std::fs;
use std::path::{Path, PathBuf};

use agentfs_tests::fixture::Builder;
use agentfs_tests::{TestStore, fuse_available, git, tree};

/// A worktree that git itself makes of `rev`, with times that let git trust its index.
fn native(store: &TestStore, source: &Path, rev: &str, name: &str) -> PathBuf {
    let dir = store.path(name);
    git(source, &["worktree", "add", "--quiet", "--detach", &dir.display().to_string(), rev]);
    dir
}

/// Mounts `rev` of `repository` and compares it with git's own worktree of it.
fn same_as_git(
    store: &TestStore,
    source: &Path,
    repository: &str,
    rev: &str,
    name: &str,
) -> PathBuf {
    let theirs = native(store, source, rev, &format!("{name}-native"));
    let ours = store.path(name);
    store.ok(&["mount", &format!("{repository}@{rev}"), &ours.display().to_string()]);
    tree::assert_same(&theirs, &ours);
    assert_eq!(git(&ours, &["status", "--porcelain"]), "", "{name}");
    for args in [["ls-files", "--stage"], ["rev-parse", "HEAD"], ["rev-parse", "HEAD^{tree}"]] {
        assert_eq!(git(&ours, &args), git(&theirs, &args), "{name}: {args:?}");
    }
    // Of the index, what is no stat data: the cache-tree is git's own.
    let cache_tree = |dir: &Path| {
        let index =
            fs::read(git(dir, &["rev-parse", "--path-format=absolute", "--git-path", "index"]));
        let index = index.expect("an index");
        let start = index.windows(4).position(|window| window == b"TREE").expect("a cache-tree");
        index[start..index.len() - 20].to_vec()
    };
    assert!(cache_tree(&ours) == cache_tree(&theirs), "{name}: the cache-tree differs");
    ours
}

fn hash(dir: &Path, content: &str) -> String {
    let file = dir.join("../to-be-hashed");
    fs::write(&file, content).expect("a file");
    git(dir, &["hash-object", "-w", &file.display().to_string()])
}

fn mktree(dir: &Path, lines: &str) -> String {
    use std::io::Write;
    let mut child = agentfs_tests::git_command(dir, &["mktree", "--missing"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("git runs");
    child.stdin.take().expect("a pipe").write_all(lines.as_bytes()).expect("git reads");
    let output = child.wait_with_output().expect("git ends");
    assert!(output.status.success());
    String::from_utf8(output.stdout).expect("an id").trim().to_owned()
}

/// A repository with something of each kind that can be replaced.
fn source(store: &TestStore) -> Builder {
    let source = Builder::new(&store.path("source"));
    source
        .file(".gitattributes", "*.id ident\n*.crlf text eol=crlf\n*.both text=auto ident\n")
        .file("plain", "plain\n")
        .file("same", "stays\n")
        .file("d/x.id", "$Id$\n")
        .file("d/x.both", "$Id$\n")
        .file("d/x.crlf", "one\ntwo\n")
        .file("d/e/deep", "deep\n")
        .file("large", "small\n")
        .link("link", "plain");
    source.commit("one");
    source
}

/// A store that uses such a repository in place.
fn attached() -> (TestStore, Builder) {
    let store = TestStore::new();
    let builder = source(&store);
    store.ok(&["attach", &builder.dir().display().to_string()]);
    (store, builder)
}

/// Replaces the object that `what` names by `by`.
fn replace(dir: &Path, what: &str, by: &str) {
    git(dir, &["replace", "--force", &git(dir, &["rev-parse", what]), by]);
}

#[test]
fn every_kind_of_object_is_replaced_as_git_does_it() {
    if !fuse_available() {
        return;
    }
    let (store, builder) = attached();
    let dir = builder.dir();
    same_as_git(&store, dir, "source", "HEAD", "before");

    // A daemon that is running already sees what is replaced from now on.
    for (what, content) in [
        ("HEAD:plain", "replaced, and longer\n".to_owned()),
        ("HEAD:d/x.id", "other $Id$\n".into()),
        ("HEAD:d/x.both", "another $Id$\n".into()),
        ("HEAD:d/x.crlf", "three\nfour\nfive\n".into()),
        ("HEAD:link", "elsewhere".into()),
        ("HEAD:large", "0123456789abcde\n".repeat(700_000)),
    ] {
        replace(dir, what, &hash(dir, &content));
    }
    let blobs = same_as_git(&store, dir, "source", "HEAD", "blobs");
    assert_eq!(fs::read_to_string(blobs.join("plain")).expect("a file"), "replaced, and longer\n");

    let below = git(dir, &["ls-tree", "HEAD:d"]);
    let more = format!("{below}\n100644 blob {}\tnew\n", hash(dir, "new\n"));
    replace(dir, "HEAD:d", &mktree(dir, &more));
    let trees = same_as_git(&store, dir, "source", "HEAD", "trees");
    assert_eq!(fs::read_to_string(trees.join("d/new")).expect("a file"), "new\n");

    let attributes = hash(dir, "*.crlf -text\nplain text eol=crlf\n");
    replace(dir, "HEAD:.gitattributes", &attributes);
    same_as_git(&store, dir, "source", "HEAD", "attributes");

    builder.file("second", "2\n");
    let second = builder.commit("two");
    replace(dir, "HEAD~1", &second);
    let commits = same_as_git(&store, dir, "source", "HEAD~1", "commits");
    assert_eq!(fs::read_to_string(commits.join("second")).expect("a file"), "2\n");
    assert_ne!(git(&commits, &["rev-parse", "HEAD"]), second);

    // The store holds every object under its own id.
    store.wait_until("all is taken in", || {
        let listed = store.json(&["ps"]);
        let branches = listed["repositories"][0]["branches"].as_array().expect("branches").clone();
        branches.iter().all(|branch| branch["ingested"] == true)
    });
    store.ok(&["fsck"]);
    // A repository without replacements has nothing of them, though the store has.
    let plain = store.clone(dir, "plain");
    assert_eq!(git(&plain, &["for-each-ref", "refs/replace"]), "");
    let theirs = store.path("theirs");
    let (from, into) = (dir.display().to_string(), theirs.display().to_string());
    git(&store.path(""), &["clone", "--quiet", &from, &into]);
    tree::assert_same(&theirs, &plain);
    store.ok(&["fsck"]);

    git(dir, &["config", "core.useReplaceRefs", "false"]);
    let unused = same_as_git(&store, dir, "source", "HEAD~1", "unused");
    assert!(!unused.join("second").exists());
    assert_eq!(fs::read_to_string(unused.join("plain")).expect("a file"), "plain\n");
}

#[test]
fn what_is_replaced_is_healed_by_what_replaces_it() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let builder = source(&store);
    let dir = builder.dir();
    let large = "0123456789abcde\n".repeat(40_000);
    replace(dir, "HEAD:plain", &hash(dir, &large));
    replace(dir, "HEAD:d/x.crlf", &hash(dir, &large));
    let names = (0..40).map(|number| format!("100644 blob {}\tn{number}\n", hash(dir, "n\n")));
    replace(dir, "HEAD:d/e", &mktree(dir, &names.collect::<String>()));
    store.ok(&["attach", &dir.display().to_string()]);
    let ours = same_as_git(&store, dir, "source", "HEAD", "ours");
    store.wait_until("all is taken in", || {
        store.json(&["ps"])["repositories"][0]["branches"][0]["ingested"] == true
    });
    store.ok(&["daemon", "stop"]);
    for segment in fs::read_dir(store.home().join("segments")).expect("segments") {
        let path = segment.expect("a segment").path();
        let mut bytes = fs::read(&path).expect("a segment");
        // All payloads, whatever they are; the segment's own header stays.
        bytes.iter_mut().skip(32 + 56).step_by(97).for_each(|byte| *byte ^= 0x10);
        fs::write(&path, bytes).expect("a segment");
    }
    store.ok(&["daemon", "start"]);
    tree::assert_same(&store.path("ours-native"), &ours);
    assert!(store.log().contains("rebuilt"), "{}", store.log());
    store.ok(&["fsck"]);
}

#[test]
fn replacements_that_lead_nowhere_are_errors_that_name_them() {
    if !fuse_available() {
        return;
    }
    let (store, builder) = attached();
    let dir = builder.dir();
    let mount = |name: &str| store.fails(5, &["mount", "source@HEAD", &store.path_text(name)]);

    // As many steps as git takes, and one more.
    let steps: Vec<_> = (0..5).map(|step| hash(dir, &format!("step {step}\n"))).collect();
    replace(dir, "HEAD:plain", &steps[0]);
    for step in 1..4 {
        git(dir, &["replace", &steps[step - 1], &steps[step]]);
    }
    let last = same_as_git(&store, dir, "source", "HEAD", "last");
    assert_eq!(fs::read_to_string(last.join("plain")).expect("a file"), "step 3\n");
    git(dir, &["replace", &steps[3], &steps[4]]);
    let theirs = store.path_text("too-many-native");
    let said = agentfs_tests::git_fails(dir, &["worktree", "add", "--detach", &theirs, "HEAD"]);
    assert!(said.contains("replace depth too high"), "{said}");
    let said = mount("too-many");
    let plain = git(dir, &["rev-parse", "HEAD:plain"]);
    assert!(said.contains(&plain) && said.contains("refs/replace"), "{said}");
    assert!(said.contains("git replace --delete"), "{said}");
    assert!(!store.path("too-many").exists());

    // A directory that contains itself: git never ends.
    git(dir, &["replace", "--delete", &plain]);
    let e = git(dir, &["rev-parse", "HEAD:d/e"]);
    replace(dir, "HEAD:d/e", &mktree(dir, &format!("040000 tree {e}\tagain\n")));
    let said = mount("itself");
    assert!(said.contains("contain themselves"), "{said}");
    git(dir, &["replace", "--delete", &e]);

    // One that does not exist.
    let nowhere = "1".repeat(40);
    let file = dir.join(".git/refs/replace").join(&plain);
    fs::create_dir_all(file.parent().expect("a parent")).expect("a directory");
    fs::write(file, format!("{nowhere}\n")).expect("a reference");
    let said = mount("nowhere");
    assert!(said.contains("plain") && said.contains(&nowhere), "{said}");
    store.ok(&["fsck"]);
}
