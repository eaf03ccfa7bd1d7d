//! Goal: stock git finds in a mounted worktree what it finds in a plain one, and what it asks of
//! the daemon is counted: the first `git status` reads no file, and whatever is warm sends nothing.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use agentfs_tests::fixture::{self, Builder};
use agentfs_tests::{TestStore, fuse_available, git, git_command, git_fails};

fn names(dir: &Path) -> Vec<PathBuf> {
    let listed = git(dir, &["ls-files", "-z"]);
    listed.split('\0').filter(|name| !name.is_empty()).map(|name| dir.join(name)).collect()
}

#[test]
fn the_first_status_is_clean_and_reads_no_file() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let mounted = store.clone(fixture::codex(), "mounted");
    let before = store.counters(&mounted)["read"];
    assert_eq!(git(&mounted, &["status", "--porcelain"]), "");
    assert_eq!(store.counters(&mounted)["read"], before, "git status read a file");
    assert_eq!(git(&mounted, &["diff", "--stat"]), "");
    assert_eq!(store.counters(&mounted)["read"], before, "git diff read a file");
}

#[test]
fn a_warm_pass_over_all_files_sends_no_message() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let mounted = store.path("mounted");
    let source = fixture::codex().display().to_string();
    store.ok(&["clone", &source, &mounted.display().to_string(), "--wait"]);
    let names = names(&mounted);
    let pass = || {
        for name in &names {
            let metadata = fs::symlink_metadata(name).expect("a file");
            if metadata.is_file() {
                let mut content = Vec::new();
                File::open(name).expect("a file").read_to_end(&mut content).expect("its content");
                assert_eq!(content.len() as u64, metadata.len());
            } else {
                fs::read_link(name).expect("a link");
            }
        }
    };
    pass();
    // Where a page or a listing had to be read, the kernel asks once for the time of the last access.
    pass();
    assert_eq!(git(&mounted, &["status", "--porcelain"]), "");
    // The kernel may take pages back at any time, and does so on a busy machine. Five times in a row it
    // does not.
    let mut sent = Vec::new();
    for _ in 0..5 {
        let before = store.counters(&mounted);
        pass();
        assert_eq!(git(&mounted, &["status", "--porcelain"]), "");
        // git looks for missing files of its own now and then; a pass over what is there sends nothing.
        let after = store.counters(&mounted);
        sent = after.into_iter().map(|(name, count)| (count - before[&name], name)).collect();
        sent.retain(|(count, name)| *count > 0 && name != "forget");
        if sent.is_empty() {
            return;
        }
    }
    panic!("messages of a warm pass: {sent:?}");
}

#[test]
fn the_index_holds_what_stat_says() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let mounted = store.clone(fixture::codex(), "mounted");
    let listed = git(&mounted, &["ls-files", "--debug", "--stage"]);
    let mut lines = listed.lines();
    let mut checked = 0;
    while let Some(head) = lines.next() {
        let name = head.split_once('\t').expect("a name").1;
        let mut field = |name: &str| {
            let line = lines.next().expect("a line of numbers");
            let (_, rest) = line.split_once(&format!("{name}: ")).expect("a number");
            rest.split(['\t', ':']).next().expect("a number").trim().parse::<u64>().expect("digits")
        };
        // ctime, mtime, dev with ino, uid with gid, size with flags, a line each.
        let (ctime, mtime, dev, uid, size) =
            (field("ctime"), field("mtime"), field("dev"), field("uid"), field("size"));
        if name.starts_with('"') {
            continue;
        }
        let stat = fs::symlink_metadata(mounted.join(name)).expect("a file");
        let found = (stat.ctime() as u64, stat.mtime() as u64, stat.uid() as u64, stat.len());
        assert_eq!((ctime, mtime, uid, size), found, "{name}");
        assert_eq!(dev, stat.dev() & 0xffff_ffff, "{name}");
        checked += 1;
    }
    assert!(checked > 1000);
}

#[test]
fn git_behaves_as_in_a_plain_worktree() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let source = fixture::codex();
    let mounted = store.clone(source, "mounted");
    let native = store.path("native");
    let (from, into) = (source.display().to_string(), native.display().to_string());
    git(&store.path(""), &["clone", "--quiet", &from, &into]);
    let file = git(&native, &["ls-files", "*.rs"]).lines().next().expect("a file").to_owned();
    for args in [
        &["log", "--oneline", "-50"][..],
        &["grep", "-c", "fn main"],
        &["blame", "--", &file],
        &["status", "--branch", "--porcelain=v2"],
        &["ls-files", "--stage"],
        &["rev-parse", "--show-prefix", "--is-inside-work-tree", "HEAD", "origin/main"],
        &["branch", "-a", "-vv"],
        &["diff", "--stat", "HEAD~5"],
        &["describe", "--always", "--dirty"],
        &["remote", "-v"],
        &["config", "branch.main.merge"],
        &["write-tree"],
        &["cat-file", "-t", "HEAD"],
    ] {
        assert_eq!(git(&mounted, args), git(&native, args), "git {args:?}");
    }
    assert_eq!(git(&mounted, &["rev-parse", "--show-toplevel"]), mounted.display().to_string());
    let nested = mounted.join(Path::new(&file).parent().expect("a directory"));
    assert_eq!(git(&nested, &["rev-parse", "--show-toplevel"]), mounted.display().to_string());
    let common = git(&mounted, &["rev-parse", "--path-format=absolute", "--git-common-dir"]);
    let worktrees = git(Path::new(&common), &["worktree", "list", "--porcelain"]);
    assert!(worktrees.contains(&format!("worktree {}", mounted.display())), "{worktrees}");
    git(Path::new(&common), &["worktree", "prune"]);
    assert_eq!(git(&mounted, &["status", "--porcelain"]), "");
    let fsck = git_command(&mounted, &["fsck", "--connectivity-only"]).output().expect("git runs");
    assert!(fsck.status.success(), "{}", String::from_utf8_lossy(&fsck.stderr));
}

#[test]
fn writing_is_refused_where_asked() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let builder = Builder::new(&store.path("source"));
    builder.file("file", "x").commit("one");
    let source = builder.dir().display().to_string();
    store.ok(&["clone", &source, "--no-mount"]);
    store.ok(&["mount", "source", &store.path_text("mounted"), "--read-only"]);
    let mounted = store.path("mounted");
    let refused = |result: std::io::Result<()>| {
        let error = result.expect_err("the worktree is read-only");
        assert_eq!(error.raw_os_error(), Some(30), "{error}");
    };
    refused(fs::write(mounted.join("new"), "x"));
    refused(fs::write(mounted.join("file"), "x"));
    refused(fs::remove_file(mounted.join("file")));
    refused(fs::create_dir(mounted.join("dir")));
    refused(fs::rename(mounted.join("file"), mounted.join("other")));
    assert!(git_fails(&mounted, &["rm", "file"]).contains("Read-only file system"));
    assert_eq!(fs::read(mounted.join("file")).expect("the file"), b"x");
}

#[test]
fn inode_numbers_and_times_survive_a_remount() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::new();
    let mounted = store.clone(fixture::codex(), "mounted");
    let names = names(&mounted);
    let stat = || {
        let of = |name: &PathBuf| {
            let stat = fs::symlink_metadata(name).expect("a file");
            (stat.ino(), stat.mtime(), stat.ctime(), stat.nlink(), stat.mode(), stat.size())
        };
        names.iter().map(of).collect::<Vec<_>>()
    };
    let before = stat();
    store.kill_daemon();
    store.ok(&["status"]);
    assert_eq!(stat(), before);
    assert_eq!(git(&mounted, &["status", "--porcelain"]), "");
    store.ok(&["daemon", "stop"]);
    store.ok(&["daemon", "start"]);
    assert_eq!(stat(), before);
}
