//! What is decided here is what git decides.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use super::index::Index;
use super::merge::next;
use super::trees::differences;
use super::*;
use crate::gittest::{Sandbox, command, commit, git};

/// Numbers that look random and are the same each time.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }

    fn one_of<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }
}

/// Among them files in whose place others have directories, and names whose order is not that of paths.
const PATHS: [&str; 18] = [
    "a",
    "a-b",
    "a.b",
    "a/b",
    "a/b/c",
    "a/b/d",
    "a/c",
    "a0",
    "d/e/f",
    "d/e/g",
    "d/h",
    "d/i/j/k",
    "d/i/j/l",
    "long/name",
    "m",
    "n/o",
    "z",
    "z/y",
];
const MODES: [&str; 5] = ["100644", "100644", "100755", "120000", "160000"];

/// A repository whose trees and indexes are random.
struct Random {
    sandbox: Sandbox,
    repository: PathBuf,
    blobs: Vec<String>,
    numbers: Numbers,
}

impl Random {
    fn new(format: &str, seed: u64) -> Self {
        let sandbox = Sandbox::new();
        let repository = sandbox.empty_repository("repo", &[&format!("--object-format={format}")]);
        commit(&repository, "first", b"first");
        let mut blobs = Vec::new();
        for text in ["", "1", "22", "333", "first"] {
            std::fs::write(sandbox.path("blob"), text).unwrap();
            let blob = sandbox.path("blob");
            blobs.push(git(&repository, &["hash-object", "-w", blob.to_str().unwrap()]));
        }
        // As it can be called, a commit is one.
        blobs.push(git(&repository, &["rev-parse", "HEAD"]));
        Self { sandbox, repository, blobs, numbers: Numbers(seed) }
    }

    fn entry(&mut self, path: &str) -> String {
        let mode = *self.numbers.one_of(&MODES);
        let commit = self.blobs.len() - 1;
        let blob = if mode == "160000" { commit } else { self.numbers.below(commit) };
        format!("{mode} {} 0\t{path}\n", self.blobs[blob])
    }

    /// Tells `git update-index` what to do with the index at `index`.
    fn update(&self, index: &Path, lines: &str) {
        use std::io::Write;
        let mut child = command(&self.repository, &["update-index", "--index-info"])
            .env("GIT_INDEX_FILE", index)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }

    fn ask(&self, index: &Path, args: &[&str]) -> Output {
        // Nothing of the worktree is to be seen from there.
        let elsewhere = self.sandbox.path("elsewhere");
        std::fs::create_dir_all(&elsewhere).unwrap();
        let mut git = command(&elsewhere, args);
        git.env("GIT_DIR", self.repository.join(".git")).env("GIT_INDEX_FILE", index);
        git.env("GIT_TEST_CHECK_CACHE_TREE", "1").output().unwrap()
    }

    fn tree_of(&self, index: &Path) -> String {
        let written = self.ask(index, &["write-tree"]);
        assert!(written.status.success(), "{}", String::from_utf8_lossy(&written.stderr));
        String::from_utf8(written.stdout).unwrap().trim().to_owned()
    }

    /// A tree that has some of what `like` has.
    fn tree(&mut self, like: Option<&str>) -> String {
        let index = self.sandbox.path("made");
        drop(std::fs::remove_file(&index));
        if let Some(like) = like {
            assert!(self.ask(&index, &["read-tree", like]).status.success());
        }
        let changes = if like.is_some() { 1 + self.numbers.below(5) } else { 12 };
        self.change(&index, changes);
        self.tree_of(&index)
    }

    /// Adds, changes and removes entries.
    fn change(&mut self, index: &Path, count: usize) {
        for _ in 0..count {
            let path = *self.numbers.one_of(&PATHS);
            let zeros = "0".repeat(self.blobs[0].len());
            let line = match self.numbers.below(4) {
                0 => format!("0 {zeros} 0\t{path}\n"),
                _ => self.entry(path),
            };
            self.update(index, &line);
        }
    }

    fn oid(&self, hex: &str) -> agentfs_engine::GitOid {
        let id = gix::ObjectId::from_hex(hex.as_bytes()).unwrap();
        crate::object::from_gix(&id).unwrap()
    }
}

/// An index without its checksum, cut where its extensions begin.
fn entries_of(path: &Path, hash: HashKind) -> (Vec<u8>, Vec<Vec<u8>>) {
    let index = Index::read(path, hash, &|| false).unwrap();
    let (mut last, mut signatures) = (12, Vec::new());
    let visit = |entry: crate::index_entries::IndexEntry| {
        last = entry.at + (42 + hash.len() + entry.path.len() + 8) / 8 * 8;
    };
    let extension = |signature: &[u8], _: &[u8]| signatures.push(signature.to_owned());
    crate::index_entries::walk(index.bytes(), hash, visit, extension).unwrap();
    (index.bytes()[..last].to_vec(), signatures)
}

#[test]
fn the_next_index_is_the_one_that_git_makes() {
    let (mut made, mut left, mut refused, mut known) = (0, 0, 0, 0);
    for (format, hash, rounds) in [("sha1", HashKind::Sha1, 100), ("sha256", HashKind::Sha256, 10)]
    {
        let mut random = Random::new(format, 0x5eed_0001);
        let mut from = random.tree(None);
        for round in 0..rounds {
            let to = random.tree(Some(&from));
            let index = random.sandbox.path("index");
            drop(std::fs::remove_file(&index));
            assert!(random.ask(&index, &["read-tree", &from]).status.success());
            // What stat says of files is kept: something is written there that tells entries apart.
            let staged = random.numbers.below(3);
            random.change(&index, staged);
            if staged > 0 && random.numbers.below(2) == 0 {
                random.tree_of(&index);
            }
            let mut bytes = std::fs::read(&index).unwrap();
            let mut at = Vec::new();
            let body = bytes.len() - hash.len();
            crate::index_entries::each(&bytes[..body], hash, |entry| at.push(entry.at)).unwrap();
            for at in at {
                bytes[at..at + 24].fill_with(|| random.numbers.below(250) as u8);
            }
            super::index::sum(&mut bytes, hash).unwrap();
            std::fs::write(&index, &bytes).unwrap();

            let repository = Repository::open(&random.repository.join(".git")).unwrap();
            let differ = differences(&repository, &random.oid(&from), &random.oid(&to)).unwrap();
            let differ = differ.expect("nothing is replaced");
            let theirs = git(
                &random.repository,
                &["diff-tree", "-r", "--raw", "--no-renames", "--no-abbrev", &from, &to],
            );
            let side = |side: &Option<(u32, agentfs_engine::GitOid)>| match side {
                Some((mode, oid)) => (format!("{mode:06o}"), oid.to_string()),
                None => ("000000".into(), "0".repeat(2 * hash.len())),
            };
            let ours = differ.files.iter().map(|(path, (before, after))| {
                let (before, after) = (side(before), side(after));
                let path = String::from_utf8_lossy(path);
                format!(":{} {} {} {} {path}", before.0, after.0, before.1, after.1)
            });
            let theirs = theirs.lines().map(|line| {
                let (what, path) = line.split_once('\t').unwrap();
                format!("{} {path}", &what[..what.len() - 2])
            });
            assert_eq!(ours.collect::<Vec<_>>(), theirs.collect::<Vec<_>>(), "round {round}");

            let old = Index::read(&index, hash, &|| false).unwrap();
            let refusal = super::plan::staged(&old, &super::plan::Differing::Known(differ));
            let differ = differences(&repository, &random.oid(&from), &random.oid(&to)).unwrap();
            let ours = next(&old, &differ.unwrap());
            let copy = random.sandbox.path("copy");
            std::fs::copy(&index, &copy).unwrap();
            let theirs = random.ask(&copy, &["read-tree", "-m", "-i", &from, &to]);
            match (ours, theirs.status.success()) {
                (Some(ours), true) => {
                    assert_eq!(refusal, None, "round {round}");
                    let path = random.sandbox.path("ours");
                    let (mut ours, kept, new) = (ours.bytes, ours.kept, ours.new);
                    super::index::sum(&mut ours, hash).unwrap();
                    std::fs::write(&path, ours).unwrap();
                    let ((ours, extensions), (theirs, _)) =
                        (entries_of(&path, hash), entries_of(&copy, hash));
                    assert!(ours == theirs, "round {round}");
                    // Where it says that entries are, they are.
                    let whole = Index::read(&path, hash, &|| false).unwrap();
                    let at = whole.entries().iter().map(|entry| (entry.path.clone(), entry.at));
                    let was = old.entries().iter().zip(&kept);
                    let said = was.filter_map(|(entry, at)| Some((entry.path.clone(), (*at)?)));
                    let said: std::collections::BTreeMap<_, _> = said.chain(new).collect();
                    assert_eq!(said, at.collect(), "round {round}");
                    let asked = random.sandbox.path("asked");
                    std::fs::copy(&path, &asked).unwrap();
                    let with = random.tree_of(&asked);
                    // What it says of trees is so, and git's own check of that says so, too.
                    let again = random.ask(&path, &["read-tree", "-m", "-i", &to, &to]);
                    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
                    let mut bare = [&ours[..], &[0; 32][..hash.len()]].concat();
                    super::index::sum(&mut bare, hash).unwrap();
                    std::fs::write(&path, bare).unwrap();
                    let without = random.tree_of(&path);
                    assert_eq!(with, without, "round {round}");
                    assert_eq!(random.tree_of(&copy), without, "round {round}");
                    known += usize::from(extensions.iter().any(|one| one == b"TREE"));
                    made += 1;
                }
                (None, true) => left += 1,
                (ours, false) => {
                    assert!(ours.is_none() || refusal.is_some(), "round {round}: git refuses it");
                    refused += 1;
                }
            }
            from = to;
        }
    }
    assert!(
        made > 50 && refused > 5 && known > 50,
        "{made} made, {left} left, {refused} refused, {known}"
    );
}

#[test]
fn head_goes_as_git_has_it_go() {
    let sandbox = Sandbox::new();
    let path = sandbox.repository("repo");
    commit(&path, "second", b"2");
    git(&path, &["branch", "side", "HEAD~1"]);
    for (key, value) in [("user.name", "A. U. Thor"), ("user.email", "a@example.com")] {
        git(&path, &["config", key, value]);
    }
    let (ours, theirs) = (sandbox.path("ours"), sandbox.path("theirs"));
    for dir in [&ours, &theirs] {
        git(&path, &["worktree", "add", "-q", "--detach", dir.to_str().unwrap()]);
    }
    let dir_of = |dir: &Path| PathBuf::from(git(dir, &["rev-parse", "--absolute-git-dir"]));
    let (ours, theirs) = (dir_of(&ours), dir_of(&theirs));
    let repository = Repository::open(&path.join(".git")).unwrap();
    let second = git(&path, &["rev-parse", "main"]);
    let state = |dir: &Path| {
        let log = std::fs::read_to_string(dir.join("logs/HEAD")).unwrap();
        // But for the time.
        let lines = log.lines().skip(1).map(|line| {
            let (who, message) = line.split_once('\t').unwrap();
            let mut words: Vec<_> = who.split(' ').collect();
            let seconds = words.len() - 2;
            assert!(words[seconds].parse::<u64>().unwrap() > 1_700_000_000);
            words.remove(seconds);
            format!("{}\t{message}", words.join(" "))
        });
        (std::fs::read_to_string(dir.join("HEAD")).unwrap(), lines.collect::<Vec<_>>())
    };
    let go = |dir: &Path, to: &str, number: u64, is_begun: bool, by_git: bool| {
        let from = At::of(&repository, dir).unwrap();
        let to_id = repository.resolve(to.strip_prefix("ref: ").unwrap_or(to)).unwrap().id;
        let way = Way {
            from: &from.text,
            from_id: from.commit.map(|commit| commit.id),
            to,
            to_id,
            message: "checkout: moving from here to there",
            number,
            is_begun,
        };
        match by_git {
            true => way.have_git_go(dir),
            false => way.go(&Settings::of(dir).unwrap(), dir),
        }
    };
    for (number, to) in ["ref: refs/heads/side", &second, "ref: refs/heads/side"].iter().enumerate()
    {
        assert!(Settings::of(&ours).unwrap().mover().is_some());
        go(&ours, to, number as u64, false, false).unwrap();
        go(&theirs, to, number as u64, false, true).unwrap();
        assert_eq!(state(&ours), state(&theirs), "{to}");
        let left = std::fs::read_dir(&ours).unwrap().flatten().map(|entry| entry.file_name());
        assert!(!left.into_iter().any(|name| name.to_string_lossy().contains("HEAD.")));
    }

    // Somebody else's lock is respected, and that of a killed process with the same number taken away.
    let (lock, before) = (ours.join("HEAD.lock"), state(&ours));
    std::fs::write(&lock, "theirs").unwrap();
    for is_begun in [false, true] {
        assert!(go(&ours, &second, 7, is_begun, false).is_err());
        assert_eq!(std::fs::read_to_string(&lock).unwrap(), "theirs");
        assert_eq!(state(&ours), before);
    }
    std::fs::remove_file(&lock).unwrap();
    let next = crate::files::aside(&ours.join("HEAD.switch-8"));
    std::fs::write(&next, format!("{second}\n")).unwrap();
    std::fs::hard_link(&next, &lock).unwrap();
    let log = std::fs::read_to_string(ours.join("logs/HEAD")).unwrap();
    go(&ours, &second, 9, false, false).unwrap_err();
    // It had come as far as the log.
    let first = repository.resolve("side").unwrap().id;
    let entry = format!(
        "{first} {second} A. U. Thor <a@example.com> 1700000000 +0000\tcheckout: moving from here to there\n"
    );
    std::fs::write(ours.join("logs/HEAD"), format!("{log}{entry}")).unwrap();
    go(&ours, &second, 8, true, false).unwrap();
    assert_eq!(std::fs::read_to_string(ours.join("logs/HEAD")).unwrap(), format!("{log}{entry}"));
    assert_eq!(std::fs::read_to_string(ours.join("HEAD")).unwrap(), format!("{second}\n"));
    assert!(!lock.exists() && !next.exists());

    // A hook is git's to run.
    let hooks = path.join(".git/hooks");
    std::fs::create_dir_all(&hooks).unwrap();
    let hook = hooks.join("reference-transaction");
    std::fs::write(&hook, "#!/bin/sh\nexit 1\n").unwrap();
    std::fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert!(Settings::of(&ours).unwrap().mover().is_none());
    let refused = go(&ours, "ref: refs/heads/side", 10, false, false).unwrap_err();
    assert!(matches!(refused, Error::Git { .. }), "{refused}");
    std::fs::remove_file(&hook).unwrap();
    for (key, value) in
        [("core.sharedRepository", "group"), ("core.hooksPath", "relative"), ("user.name", ".")]
    {
        git(&path, &["config", key, value]);
        assert!(Settings::of(&ours).unwrap().mover().is_none(), "{key}");
        git(&path, &["config", "--unset", key]);
    }
}

#[test]
fn what_is_configured_is_what_git_reads() {
    let sandbox = Sandbox::new();
    let path = sandbox.repository("repo");
    let tree = sandbox.path("tree");
    git(&path, &["worktree", "add", "-q", "--detach", tree.to_str().unwrap()]);
    let git_dir = PathBuf::from(git(&tree, &["rev-parse", "--absolute-git-dir"]));
    let repository = Repository::open(&path.join(".git")).unwrap();
    let agree = |expected: bool| {
        let theirs =
            git(&tree, &["config", "--type=bool", "--default=false", "core.sparseCheckout"]);
        assert_eq!(theirs, expected.to_string());
        let settings = Settings::of(&git_dir).unwrap();
        assert_eq!(settings.is_sparse(&repository).unwrap(), expected);
        settings
    };
    assert!(agree(false).has_plain_index());
    git(&path, &["config", "core.sparseCheckout", "yes"]);
    agree(true);
    git(&path, &["config", "extensions.worktreeConfig", "true"]);
    git(&tree, &["config", "--worktree", "core.sparseCheckout", "off"]);
    agree(false);
    git(&path, &["config", "--worktree", "core.sparseCheckout", "true"]);
    agree(false);
    let included = sandbox.path("included");
    std::fs::write(&included, "[core]\n\tsparseCheckout = 1\n").unwrap();
    git(&tree, &["config", "--worktree", "--unset", "core.sparseCheckout"]);
    git(&path, &["config", "--unset", "core.sparseCheckout"]);
    agree(false);
    let condition = format!("includeIf.gitdir:{}.path", git_dir.display());
    git(&path, &["config", &condition, included.to_str().unwrap()]);
    let settings = agree(true);
    assert!(!settings.has_plain_index() && settings.mover().is_none());
    git(&path, &["config", "--unset", &condition]);
    for key in ["index.skipHash", "feature.manyFiles", "core.ignoreCase"] {
        git(&path, &["config", key, "true"]);
        assert!(!Settings::of(&git_dir).unwrap().has_plain_index(), "{key}");
        git(&path, &["config", "--unset", key]);
    }
    git(&path, &["config", "core.sparseCheckout", "perhaps"]);
    assert!(Settings::of(&git_dir).unwrap().is_sparse(&repository).is_err());

    // Where nobody can look, as at the mount of a daemon that was killed.
    let file = path.join("no directory");
    std::fs::write(&file, "").unwrap();
    std::fs::write(git_dir.join("gitdir"), format!("{}/.git\n", file.join("mount").display()))
        .unwrap();
    assert!(Settings::of(&git_dir).unwrap().has_plain_index());
}
