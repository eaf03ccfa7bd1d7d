//! `agentfs clone`: a repository becomes a directory that is a checkout in every respect, under a
//! name of its own, and says so to people and to programs.

use std::fs;

use agentfs_tests::{Finished, TestStore, fixture, fuse_available, git, mounts, tree};

fn text(path: &std::path::Path) -> String {
    path.display().to_string()
}

#[test]
fn a_clone_is_a_checkout() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let native = store.path("native");
    git(&store.path(""), &["clone", "--quiet", &text(fixture::codex()), &text(&native)]);
    let dir = store.clone(fixture::codex(), "worktree");
    tree::assert_same(&native, &dir);
    assert_eq!(git(&dir, &["status", "--porcelain"]), "");
    for question in [
        &["rev-parse", "HEAD"][..],
        &["symbolic-ref", "HEAD"],
        &["ls-files", "--stage"],
        &["remote", "get-url", "origin"],
        &["rev-parse", "--abbrev-ref", "main@{upstream}"],
    ] {
        assert_eq!(git(&dir, question), git(&native, question), "git {question:?}");
    }
    assert_eq!(git(&dir, &["rev-parse", "--show-toplevel"]), text(&dir));
    fs::write(dir.join("new"), "x").unwrap();
    assert_eq!(git(&dir, &["status", "--porcelain"]), "?? new");
}

#[test]
fn what_is_read_before_it_is_ingested_is_right() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let native = store.path("native");
    git(&store.path(""), &["clone", "--quiet", &text(fixture::codex()), &text(&native)]);
    let dir = store.clone(fixture::codex(), "worktree");
    // Readers and the ingest run at once.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| tree::assert_same(&native, &dir));
        }
    });
}

#[test]
fn the_directory_is_named_after_the_repository() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let name = fixture::codex().file_stem().unwrap().to_str().unwrap();
    let mut command = store.command(&["clone", &text(fixture::codex())]);
    command.current_dir(store.path(""));
    let Finished { code, stderr, .. } = store.finish(command);
    assert_eq!(code, 0, "{stderr}");
    assert!(mounts::is_mounted(&store.path(name)));
}

#[test]
fn each_clone_of_one_source_is_a_repository_of_its_own() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let source = text(fixture::codex());
    let names: Vec<_> = (0..3)
        .map(|number| {
            let dir = store.path_text(&format!("worktree-{number}"));
            let opened = store.json(&["clone", &source, &dir]);
            opened["repository"].as_str().unwrap().to_owned()
        })
        .collect();
    let name = &names[0];
    assert_eq!(names, [name.clone(), format!("{name}-2"), format!("{name}-3")]);
}

#[test]
fn clones_at_once_all_succeed() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let source = text(fixture::codex());
    let mut names: Vec<String> = std::thread::scope(|scope| {
        let clones: Vec<_> = (0..6)
            .map(|number| {
                let (store, source) = (&store, &source);
                scope.spawn(move || {
                    let dir = store.path_text(&format!("worktree-{number}"));
                    let opened = store.json(&["clone", source, &dir]);
                    opened["repository"].as_str().unwrap().to_owned()
                })
            })
            .collect();
        clones.into_iter().map(|clone| clone.join().unwrap()).collect()
    });
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 6);
    let status = store.json(&["ps"]);
    assert_eq!(status["worktrees"].as_array().unwrap().len(), 6);
}

#[test]
fn wait_returns_when_everything_is_stored() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let source = text(fixture::codex());
    let opened = store.json(&["clone", "--wait", &source, &store.path_text("worktree")]);
    assert_eq!(opened["ingested"], true);
    let status = store.json(&["status", &store.path_text("worktree")]);
    assert_eq!(status["worktrees"][0]["ingested"], true);
    let blobs = git(fixture::codex(), &["ls-tree", "-r", "HEAD"]);
    let mut blobs: Vec<_> =
        blobs.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    blobs.sort_unstable();
    blobs.dedup();
    let stats = store.json(&["stats"]);
    assert_eq!(stats["store"]["git_blobs"], blobs.len());
}

#[test]
fn a_branch_and_a_revision_can_be_chosen() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let source = fixture::Builder::new(&store.path("source"));
    source.file("a", "one");
    let first = source.commit("one");
    source.file("a", "two");
    source.commit("two");
    git(source.dir(), &["branch", "side", &first]);
    git(source.dir(), &["tag", "v1", &first]);
    let clone = |args: &[&str], name: &str| {
        let dir = store.path(name);
        let opened = store.json(&[&["clone", &text(source.dir()), &text(&dir)], args].concat());
        (opened, dir)
    };
    let (opened, dir) = clone(&["--branch", "side"], "side");
    assert_eq!((&opened["branch"], &opened["detached"]), (&"side".into(), &false.into()));
    assert_eq!(git(&dir, &["symbolic-ref", "HEAD"]), "refs/heads/side");
    for (args, name) in [
        (["--rev", "v1"], "tag"),
        (["--rev", &first], "id"),
        (["--rev", "HEAD~1"], "expression"),
        (["--branch", "v1"], "branch-tag"),
    ] {
        let (opened, dir) = clone(&args, name);
        assert_eq!((&opened["commit"], &opened["detached"]), (&first.clone().into(), &true.into()));
        assert_eq!(git(&dir, &["rev-parse", "HEAD"]), first);
        assert_eq!(git(&dir, &["status", "--porcelain"]), "");
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "one");
    }
}

#[test]
fn nothing_needs_to_be_mounted() {
    let store = TestStore::new();
    let source = fixture::Builder::new(&store.path("source"));
    source.file("a", "one").commit("one");
    let opened = store.json(&["clone", "--no-mount", &text(source.dir())]);
    assert_eq!(opened["dir"], serde_json::Value::Null);
    assert_eq!(mounts::below(&store.path("")), []);
    let status = store.json(&["ps"]);
    assert_eq!(status["repositories"][0]["name"], "source");
}

#[test]
fn an_empty_repository_is_an_empty_worktree() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let source = fixture::Builder::new(&store.path("source"));
    let dir = store.clone(source.dir(), "worktree");
    assert!(tree::read(&dir).is_empty());
    assert!(git(&dir, &["status"]).contains("No commits yet"));
}

#[test]
fn names_that_are_no_text_are_taken_as_they_are() {
    use std::os::unix::ffi::OsStrExt;
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let source = fixture::Builder::new(&store.path("source"));
    source.file("a", "one").commit("one");
    let dir = store.path("").join(std::ffi::OsStr::from_bytes(b"caf\xe9 \n x"));
    let mut command = store.command(&["clone", &text(source.dir())]);
    command.arg(&dir).arg("--json");
    assert_eq!(store.finish(command).code, 0);
    assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "one");
    assert_eq!(git(&dir, &["status", "--porcelain"]), "");
    let listed = store.json(&["ps"]);
    let hex: String = dir.as_os_str().as_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(listed["worktrees"][0]["dir"]["hex"], hex);
    let mut command = store.command(&["umount"]);
    command.arg(&dir);
    assert_eq!(store.finish(command).code, 0);
}

#[test]
fn other_users_are_let_in_when_asked() {
    if !fuse_available() || !mounts::is_root() || !mounts::installed("setpriv") {
        return;
    }
    let store = TestStore::new();
    let source = fixture::Builder::new(&store.path("source"));
    source.file("a", "one").commit("one");
    // The way there must be open to them as well.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(store.path(""), open).unwrap();
    let source = text(source.dir());
    for (option, code) in [(None, 1), (Some("--allow-other"), 0)] {
        let dir = store.path_text(option.unwrap_or("alone"));
        let args = ["clone", &source, &dir].into_iter().chain(option).collect::<Vec<_>>();
        store.ok(&args);
        let mut other = std::process::Command::new("setpriv");
        other.args(["--reuid=65534", "--regid=65534", "--clear-groups", "cat"]);
        other.arg(format!("{dir}/a"));
        assert_eq!(store.finish(other).code, code, "{option:?}");
    }
}
