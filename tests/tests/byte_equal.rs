//! Goal: a mounted tree is, byte for byte, what git would check out: contents, executable bits, link
//! targets, names, and what is not there.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use agentfs_tests::fixture::{self, Builder};
use agentfs_tests::{TestStore, fuse_available, git, tree};

/// Checks `rev` of `source` out with git, beside the store.
fn native(store: &TestStore, source: &Path, rev: &str, name: &str) -> PathBuf {
    let dir = store.path(name);
    let (from, into) = (source.display().to_string(), dir.display().to_string());
    git(store.home().parent().expect("a parent"), &["clone", "--quiet", "-n", &from, &into]);
    git(&dir, &["checkout", "--quiet", "--detach", rev]);
    dir
}

/// Clones `source` with agentfs and compares it with what git checks out.
fn assert_same_as_git(store: &TestStore, source: &Path, name: &str) -> PathBuf {
    let native = native(store, source, "HEAD", &format!("{name}-native"));
    let mounted = store.clone(source, name);
    tree::assert_same(&native, &mounted);
    mounted
}

#[test]
fn five_commits_spread_over_the_history() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let source = fixture::codex();
    let history = git(source, &["rev-list", "--first-parent", "HEAD"]);
    let commits = history.lines().collect::<Vec<_>>();
    store.clone(source, "head");
    let repository = store.json(&["ps"])["repositories"][0]["name"].clone();
    let repository = repository.as_str().expect("a name");
    for number in 0..5 {
        let commit = commits[number * (commits.len() - 1) / 4];
        let native = native(&store, source, commit, &format!("native-{number}"));
        let mounted = store.path(&format!("mounted-{number}"));
        fs::create_dir(&mounted).expect("a directory");
        store.ok(&["mount", &format!("{repository}@{commit}"), &mounted.display().to_string()]);
        tree::assert_same(&native, &mounted);
        assert_eq!(git(&mounted, &["status", "--porcelain"]), "", "{commit}");
        assert_eq!(git(&mounted, &["rev-parse", "HEAD"]), commit);
    }
}

#[test]
fn what_is_served_from_the_pack_is_what_is_served_from_the_store() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let source = fixture::codex();
    let native = native(&store, source, "HEAD", "native");
    // At once, while content is still being taken in.
    let mounted = store.clone(source, "mounted");
    tree::assert_same(&native, &mounted);
    // And by a daemon whose kernel caches are new, once it is in.
    store.ok(&["umount", &mounted.display().to_string()]);
    let waited = store.path_text("waited");
    store.ok(&["clone", &source.display().to_string(), &waited, "--wait"]);
    tree::assert_same(&native, Path::new(&waited));
}

#[test]
fn odd_names_modes_links_and_sizes() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let builder = Builder::new(&store.path("source"));
    let long = "n".repeat(255);
    let deep = vec!["deep"; 300].join("/");
    builder
        .file("empty", "")
        .file("a", "1")
        .file("a.b", "2")
        .file("a-b/c", "3")
        .file("a0", "4")
        .file(OsStr::from_bytes(b"not\xffutf-8"), "5")
        .file("with space\nand newline", "6")
        .file(&long, "7")
        .file(format!("{deep}/file"), "8")
        .file("script", "#!/bin/sh\n")
        .file("large", b"0123456789abcdef".repeat(300_000))
        .link("link", "a")
        .link("dangling", "nowhere/at/all")
        .link("absolute", "/etc/hostname")
        .link("long-link", "x".repeat(4000));
    let mut permissions = fs::metadata(builder.dir().join("script")).expect("a file").permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o755);
    fs::set_permissions(builder.dir().join("script"), permissions).expect("a mode");
    builder.commit("odd");
    let mounted = assert_same_as_git(&store, builder.dir(), "mounted");
    assert_eq!(git(&mounted, &["status", "--porcelain"]), "");
    assert_eq!(git(&mounted, &["write-tree"]), git(builder.dir(), &["rev-parse", "HEAD^{tree}"]));
}

#[test]
fn sha256_loose_packed_and_borrowed_objects() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let builder = Builder::with_hash(&store.path("sha256"), "sha256");
    builder.file("dir/file", "contents").link("link", "dir").commit("one");
    let mounted = assert_same_as_git(&store, builder.dir(), "mounted-sha256");
    assert_eq!(git(&mounted, &["status", "--porcelain"]), "");
    assert_eq!(git(&mounted, &["rev-parse", "HEAD"]).len(), 64);

    let builder = Builder::new(&store.path("loose"));
    builder.file("dir/file", "contents ".repeat(1000)).commit("one");
    assert_same_as_git(&store, builder.dir(), "mounted-loose");
    builder.file("dir/file", "contents ".repeat(1001)).commit("two");
    git(builder.dir(), &["gc", "--quiet"]);
    assert_same_as_git(&store, builder.dir(), "mounted-packed");

    let shared = store.path_text("shared");
    let source = builder.dir().display().to_string();
    git(&store.path(""), &["clone", "--quiet", "--shared", &source, &shared]);
    assert_same_as_git(&store, Path::new(&shared), "mounted-shared");
}

#[test]
fn an_empty_repository_a_detached_head_a_tag_and_a_shallow_source() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let empty = Builder::new(&store.path("empty"));
    let mounted = store.clone(empty.dir(), "mounted-empty");
    assert_eq!(tree::read(&mounted).len(), 0);
    assert!(git(&mounted, &["status"]).contains("No commits yet"));

    let builder = Builder::new(&store.path("source"));
    let first = builder.file("file", "one").commit("one");
    git(builder.dir(), &["tag", "-a", "-m", "a tag", "v1"]);
    builder.file("file", "two").commit("two");
    let source = builder.dir().display().to_string();
    let tagged = store.path_text("mounted-tag");
    store.ok(&["clone", &source, &tagged, "--branch", "v1"]);
    assert_eq!(fs::read(Path::new(&tagged).join("file")).expect("a file"), b"one");
    let at = store.path_text("mounted-rev");
    store.ok(&["clone", &source, &at, "--rev", "HEAD~1"]);
    assert_eq!(git(Path::new(&at), &["rev-parse", "HEAD"]), first);

    git(builder.dir(), &["checkout", "--quiet", "--detach", &first]);
    let detached = assert_same_as_git(&store, builder.dir(), "mounted-detached");
    assert_eq!(git(&detached, &["rev-parse", "HEAD"]), first);

    let shallow = store.path_text("shallow");
    let url = format!("file://{source}");
    git(&store.path(""), &["clone", "--quiet", "--depth=1", "--branch=main", &url, &shallow]);
    let mounted = assert_same_as_git(&store, Path::new(&shallow), "mounted-shallow");
    assert_eq!(git(&mounted, &["rev-list", "--count", "HEAD"]), "1");
}

#[test]
fn checkout_conversions_are_those_of_git() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let builder = Builder::new(&store.path("source"));
    builder
        .file(
            ".gitattributes",
            "*.crlf text eol=crlf\n*.lf text eol=lf\n*.id ident\n\
             *.utf16 text working-tree-encoding=UTF-16LE-BOM\n*.bin -text\n*.lfs filter=absent\n",
        )
        .file("sub/.gitattributes", "*.crlf -text\n")
        .file("a.crlf", "one\ntwo\n")
        .file("a.lf", "one\ntwo\n")
        .file("a.id", "$Id$\n")
        .file("a.bin", "one\ntwo\n")
        .file("a.lfs", "version https://example.com/spec/v1\n")
        .file("sub/b.crlf", "one\ntwo\n");
    let utf16 = "\u{feff}grüße\n".encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>();
    builder.file("a.utf16", utf16);
    builder.commit("attributes");
    let mounted = assert_same_as_git(&store, builder.dir(), "mounted");
    assert_eq!(fs::read(mounted.join("a.crlf")).expect("a file"), b"one\r\ntwo\r\n");
    assert_eq!(fs::metadata(mounted.join("a.crlf")).expect("a file").len(), 10);
    assert_eq!(git(&mounted, &["status", "--porcelain"]), "");
}

#[test]
fn a_submodule_is_an_empty_directory() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let inner = Builder::new(&store.path("inner"));
    inner.file("inside", "x").commit("inner");
    let outer = Builder::new(&store.path("outer"));
    outer.file("file", "y");
    let url = inner.dir().display().to_string();
    git(
        outer.dir(),
        &["-c", "protocol.file.allow=always", "submodule", "--quiet", "add", &url, "sub"],
    );
    outer.commit("with a submodule");
    let mounted = assert_same_as_git(&store, outer.dir(), "mounted");
    assert_eq!(fs::read_dir(mounted.join("sub")).expect("a directory").count(), 0);
    assert_eq!(git(&mounted, &["status", "--porcelain"]), "");
    assert!(git(&mounted, &["submodule", "status"]).starts_with('-'));
}
