//! Running the real git in tests, the same on every machine.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use agentfs_engine::GitOid;
use agentfs_engine::base::Base;
use agentfs_engine::store::{Batch, Store};
use agentfs_engine::tree::{Entry, EntryKind, Subtree, TreeBuilder};

use crate::object::from_gix;

/// A directory with repositories in it.
pub(crate) struct Sandbox(tempfile::TempDir);

impl Sandbox {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    /// A repository on branch `main` with one commit of one file.
    pub(crate) fn repository(&self, name: &str) -> PathBuf {
        let path = self.empty_repository(name, &[]);
        commit(&path, "file", b"content\n");
        path
    }

    pub(crate) fn empty_repository(&self, name: &str, options: &[&str]) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(&path).unwrap();
        git(&path, &[&["init", "-q", "-b", "main"], options].concat());
        path
    }
}

/// Writes `file` and commits it.
pub(crate) fn commit(repository: &Path, file: &str, content: &[u8]) {
    let path = repository.join(file);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
    git(repository, &["add", "-A"]);
    git(repository, &["commit", "-q", "-m", file]);
}

pub(crate) fn command(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("git");
    command
        .arg("-C")
        .arg(dir)
        .args(["-c", "protocol.file.allow=always", "-c", "core.hooksPath=/dev/null"])
        .args(arguments)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_AUTHOR_NAME", "A")
        .env("GIT_AUTHOR_EMAIL", "a@example.com")
        .env("GIT_AUTHOR_DATE", "1700000000 +0000")
        .env("GIT_COMMITTER_NAME", "C")
        .env("GIT_COMMITTER_EMAIL", "c@example.com")
        .env("GIT_COMMITTER_DATE", "1700000000 +0000")
        .env("LC_ALL", "C")
        .stdin(Stdio::null());
    command
}

/// Runs git and returns what it wrote, without trailing white space.
pub(crate) fn git(dir: &Path, arguments: &[&str]) -> String {
    let output = run(dir, arguments);
    assert!(
        output.status.success(),
        "git {arguments:?} in {}: {}",
        dir.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

pub(crate) fn run(dir: &Path, arguments: &[&str]) -> Output {
    command(dir, arguments).output().unwrap()
}

/// The tree `tree` of a repository as directory objects in a new store.
pub(crate) fn base_of(store_dir: &Path, repository: &Path, tree: &str) -> (Arc<Base>, GitOid) {
    let store = Store::open(store_dir).unwrap();
    let repository = gix::open(repository).unwrap();
    let id = repository.rev_parse_single(tree).unwrap();
    let tree = id.object().unwrap().peel_to_tree().unwrap();
    let mut batch = store.batch().unwrap();
    let root = put_tree(&mut batch, &tree);
    batch.commit().unwrap();
    (Base::open(store, None, root.id).unwrap(), from_gix(&tree.id).unwrap())
}

fn put_tree(batch: &mut Batch<'_>, tree: &gix::Tree<'_>) -> Subtree {
    let mut entries: Vec<_> = tree.iter().map(Result::unwrap).collect();
    entries.sort_by_key(|entry| entry.filename().to_vec());
    let mut builder = TreeBuilder::new(from_gix(&tree.id).map(|oid| oid.kind()));
    for entry in &entries {
        let mut record = Entry {
            kind: EntryKind::File,
            name: entry.filename(),
            size: 0,
            oid: from_gix(entry.object_id().as_ref()),
            content: None,
            subtree: None,
        };
        match entry.mode().kind() {
            gix::object::tree::EntryKind::Tree => {
                let subtree = put_tree(batch, &entry.object().unwrap().into_tree());
                record.kind = EntryKind::Directory;
                record.size = subtree.size;
                record.subtree = Some(subtree);
            }
            gix::object::tree::EntryKind::Commit => record.kind = EntryKind::Gitlink,
            other => {
                record.kind = match other {
                    gix::object::tree::EntryKind::BlobExecutable => EntryKind::Executable,
                    gix::object::tree::EntryKind::Link => EntryKind::Symlink,
                    _ => EntryKind::File,
                };
                record.size = tree.repo.find_header(entry.object_id()).unwrap().size();
            }
        }
        builder.push(&record).unwrap();
    }
    let encoded = builder.finish();
    batch.put_tree(&encoded).unwrap();
    encoded.subtree
}

/// Everything that git can tell of a clone but where its `HEAD` is bare.
pub(crate) fn describe(repository: &Path) -> String {
    let ask = |arguments: &[&str]| {
        let output = command(repository, arguments).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let read = |name: &str| std::fs::read_to_string(repository.join(name)).unwrap_or_default();
    let log = |name: &str| {
        let log = read(&format!("logs/{name}"));
        let ids = log.split(' ').take(2).collect::<Vec<_>>().join(" ");
        format!("{ids} {}", log.split('\t').next_back().unwrap_or_default())
    };
    let mut config: Vec<String> = ask(&["config", "-l", "--local"])
        .lines()
        .filter(|line| !line.starts_with("core.bare="))
        .map(str::to_owned)
        .collect();
    config.sort();
    let fsck = command(repository, &["fsck", "--full", "--strict"]).output().unwrap();
    let head = ask(&["symbolic-ref", "-q", "HEAD"]) + &ask(&["rev-parse", "HEAD"]);
    let mut shallow: Vec<String> = read("shallow").lines().map(str::to_owned).collect();
    shallow.sort();
    shallow.dedup();
    let branch = read("HEAD").trim().trim_start_matches("ref: ").to_owned();
    format!(
        "{}{head}{config:#?}\nalternates {}\nshallow {shallow:?}\nlogs {} {} {}\nfsck {} {}",
        ask(&["for-each-ref", "--format=%(refname) %(objectname) %(*objectname) %(symref)"]),
        read("objects/info/alternates"),
        log("HEAD"),
        log(&branch),
        log("refs/remotes/origin/HEAD"),
        fsck.status.success(),
        String::from_utf8_lossy(&fsck.stderr),
    )
}

/// A repository with branches, tags of all kinds, packed and loose references.
pub(crate) fn rich(sandbox: &Sandbox) -> PathBuf {
    let source = sandbox.repository("rich");
    git(&source, &["tag", "light"]);
    git(&source, &["tag", "-a", "-m", "t", "annotated"]);
    git(&source, &["tag", "-a", "-m", "t", "nested", "annotated"]);
    git(&source, &["tag", "tree", "HEAD^{tree}"]);
    git(&source, &["branch", "feature/with/slashes"]);
    git(&source, &["pack-refs", "--all"]);
    git(&source, &["gc", "-q"]);
    commit(&source, "second", b"2");
    git(&source, &["branch", "odd-\u{e9}-#;\"name"]);
    git(&source, &["tag", "-a", "-m", "t", "loose"]);
    git(&source, &["symbolic-ref", "refs/heads/alias", "refs/heads/feature/with/slashes"]);
    git(&source, &["update-ref", "refs/pull/1/head", "HEAD"]);
    source
}

/// Says that a test has not tested, and why.
#[expect(clippy::print_stderr, reason = "a test that is skipped must say so")]
pub(crate) fn skip(why: &str) {
    eprintln!("skipped: {why}");
}
