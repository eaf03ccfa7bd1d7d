//! Goal: programs that write do on a worktree what they do on a plain checkout.
//!
//! Each script runs in a native clone and in a worktree of the same repository; what it prints and what
//! it leaves must be the same.

use std::time::Duration;

use agentfs_tests::fixture::{self, Builder};
use agentfs_tests::mounts::tool_available;
use agentfs_tests::{TestStore, Twins, fuse_available};

#[test]
fn git_changes_history_as_on_a_checkout() {
    if !fuse_available() {
        return;
    }
    let twins = Twins::small();
    for script in [
        "echo more >> dir0/file0; git commit -qam three; git rev-parse HEAD; git status --porcelain",
        "git checkout -qb side HEAD~1; echo side > side; git add side; git commit -qm side
         git checkout -q main; git merge -q --no-edit side; git rev-parse HEAD; git log --oneline",
        "git checkout -qb topic HEAD~1; echo t > topic; git add topic; git commit -qm topic
         git rebase -q main; git rev-parse HEAD; git status --porcelain",
        "git checkout -q main; git cherry-pick topic >/dev/null; git rev-parse HEAD",
        "echo dirty >> new; git stash -q; git status --porcelain; git stash pop -q
         git diff --stat; git checkout -q .; git status --porcelain",
        "git checkout -qb conflict; echo ours > new; git commit -qam ours
         git checkout -qb theirs HEAD~1; echo theirs > new; git commit -qam theirs
         git merge conflict >/dev/null || git status --porcelain; cat new
         git merge --abort; git status --porcelain",
        "git checkout -q main; touch junk; mkdir junkdir; touch junkdir/x; git clean -fdxq
         git status --porcelain --ignored; ls",
        "git mv dir1/file1 moved; git rm -q dir2/file2; git status --porcelain; git commit -qm moved
         git rev-parse HEAD",
        "printf 'exit 1' > hook; chmod +x hook; mkdir hooks; mv hook hooks/pre-commit
         git config core.hooksPath \"$PWD/hooks\"; echo y >> new
         git commit -qam refused 2>/dev/null || echo refused
         git config --unset core.hooksPath; rm -r hooks; git checkout -q .; git status --porcelain",
        "git reset -q --hard HEAD~2; git status --porcelain; git reset -q --soft ORIG_HEAD
         git status --porcelain | head -3; git reset -q --hard; git bisect start -q 2>/dev/null || true
         git bisect reset -q 2>/dev/null || true",
        "git archive HEAD | tar tf - | sort; git grep -c x; git blame -s new | cut -c10-",
    ] {
        twins.same(script);
    }
    twins.run(&twins.mounted, "git gc -q; git fsck --no-progress; git status --porcelain");
    twins.run(
        &twins.mounted,
        "git worktree add -q \"$OTHER\" -b other; test -f \"$OTHER/new\"
         git worktree remove \"$OTHER\"; git worktree list | grep -c . ",
    );
}

#[test]
fn checkouts_far_apart_leave_the_same_tree() {
    if !fuse_available() {
        return;
    }
    let store = TestStore::with_limit(Duration::from_secs(300));
    let twins = Twins::of(fixture::codex(), store);
    // The substitute for the real repository has fewer.
    let far = "git rev-list --first-parent HEAD | sed -n '300p;$p' | head -1";
    twins.same(&format!("git checkout -q $({far}); git status --porcelain"));
    twins.same("git checkout -q -; git status --porcelain");
    twins.same(
        "rm -rf ./*; git status --porcelain | wc -l; git checkout -q .; git status --porcelain",
    );
}

#[test]
fn submodules_are_cloned_into_their_directories() {
    if !fuse_available() {
        return;
    }
    let twins = Twins::small();
    let inner = Builder::new(&twins.store.path("inner"));
    inner.file("in", "inner\n").commit("inner");
    let add = format!(
        "git -c protocol.file.allow=always submodule --quiet add {} module; git commit -qm module
         cat module/in; git submodule status | cut -c2-41; git status --porcelain",
        inner.dir().display()
    );
    assert_eq!(twins.run(&twins.mounted, &add).lines().next(), Some("inner"));
    let again = "git submodule --quiet deinit -f module; ls module
         git -c protocol.file.allow=always submodule --quiet update --init; cat module/in";
    assert_eq!(twins.run(&twins.mounted, again), "inner\n");
    inner.file("in", "moved\n").commit("moved");
    let update = "git -c protocol.file.allow=always submodule --quiet update --remote
         cat module/in; git status --porcelain; git -C module status --porcelain
         git commit -qam moved; git checkout -q HEAD~1; git submodule --quiet update; cat module/in
         git checkout -q -; git submodule --quiet update; cat module/in; git status --porcelain";
    assert_eq!(twins.run(&twins.mounted, update), "moved\n M module\ninner\nmoved\n");
}

#[test]
fn databases_archives_and_builds_work() {
    if !fuse_available() {
        return;
    }
    let twins = Twins::small();
    for mode in ["delete", "wal"] {
        twins.both(&format!(
            "python3 - <<'END'
import sqlite3, threading
def fill(worker):
    db = sqlite3.connect('{mode}.db', timeout=60)
    for number in range(40):
        with db:
            db.execute('insert into t values (?, ?)', (worker, number))
    db.close()
db = sqlite3.connect('{mode}.db', timeout=60)
print(db.execute('pragma journal_mode={mode}').fetchone())
with db:
    db.execute('create table t (worker, number)')
workers = [threading.Thread(target=fill, args=(w,)) for w in range(3)]
[w.start() for w in workers]
[w.join() for w in workers]
print(db.execute('select worker, count(*), sum(number) from t group by worker').fetchall())
print(db.execute('pragma integrity_check').fetchone())
db.close()
END
rm -f {mode}.db*"
        ));
    }
    twins.same(
        "tar cf - dir0 dir1 | (mkdir copy; tar xf - -C copy); rm -r copy/dir0; cp -a dir2 copy/",
    );
    twins.same(
        "mkdir c; for n in 1 2 3; do echo \"int f$n(void) { return $n; }\" > c/f$n.c; done
         printf 'int f1(void), f2(void), f3(void);\\nint main(void) { return f1() + f2() + f3() - 6; }\\n' > c/main.c
         printf 'prog: main.o f1.o f2.o f3.o\\n\\tcc -o prog $^\\n' > c/Makefile
         make -s -C c; ./c/prog; make -C c -q; touch c/f2.c; make -C c -n | grep -c f2.c; rm -r c",
    );
    twins.both(
        "python3 -m venv --without-pip env; env/bin/python -c 'import sys; print(sys.prefix != sys.base_prefix)'
         rm -r env",
    );
    // An editor that saves by rename, and one that locks.
    twins.same("sed -i s/x/y/ new; (flock 9; echo locked >> new) 9> lock; rm lock; cat new");
    twins.both(
        "python3 - <<'END'
import mmap, os
with open('mapped', 'wb') as f: f.truncate(100000)
with open('mapped', 'r+b') as f:
    m = mmap.mmap(f.fileno(), 0)
    m[5:10] = b'hello'; m[99990:99995] = b'world'; m.flush(); m.close()
data = open('mapped', 'rb').read()
print(len(data), data[5:10], data[99990:99995], data.count(0))
fd = os.open('mapped', os.O_RDWR); os.unlink('mapped')
os.pwrite(fd, b'gone', 0); print(os.pread(fd, 10, 0)); os.close(fd)
END",
    );
}

#[test]
fn cargo_builds_and_rebuilds_nothing() {
    if !fuse_available() {
        return;
    }
    let twins = Twins::small();
    let script = "mkdir -p crate/src; cd crate
        printf '[package]\\nname = \"demo\"\\nversion = \"0.1.0\"\\nedition = \"2021\"\\n[workspace]\\n' > Cargo.toml
        printf 'fn main() { println!(\"built\"); }\\n' > src/main.rs
        cargo build --offline --quiet 2>&1; ./target/debug/demo
        cargo build --offline 2>&1 | grep -c Compiling || echo fresh
        touch src/main.rs; cargo build --offline 2>&1 | grep -c Compiling";
    assert_eq!(twins.both(script), "built\n0\nfresh\n1\n");
}

/// Runs a script on both, and then the trees are the same.
fn runs_the_same(tools: &[&str], script: &str) {
    if fuse_available() && tools.iter().all(|tool| tool_available(tool)) {
        Twins::small().same(script);
    }
}

#[test]
fn git_rewrites_merges_and_stashes() {
    runs_the_same(&[], include_str!("scripts/history.sh"));
}

#[test]
fn git_lfs_tracks_and_checks_out() {
    runs_the_same(&["git-lfs"], include_str!("scripts/lfs.sh"));
}

#[test]
fn rsync_copies_everything_once() {
    runs_the_same(&["rsync"], include_str!("scripts/rsync.sh"));
}

#[test]
fn npm_installs_and_runs() {
    runs_the_same(&["npm"], include_str!("scripts/npm.sh"));
}

#[test]
fn pip_installs_into_an_environment() {
    runs_the_same(&[], include_str!("scripts/pip.sh"));
}

#[test]
fn editors_save() {
    runs_the_same(&["vim"], include_str!("scripts/editors.sh"));
}

#[test]
fn locks_hold_between_processes() {
    runs_the_same(&["sqlite3"], include_str!("scripts/locks.sh"));
}

#[test]
fn appends_of_several_processes_are_all_there() {
    runs_the_same(&[], include_str!("scripts/appends.sh"));
}

#[test]
fn mappings_are_shared_between_processes() {
    runs_the_same(&[], include_str!("scripts/mappings.sh"));
}

#[test]
fn archives_keep_links_owners_and_times() {
    runs_the_same(&[], include_str!("scripts/archives.sh"));
}

#[test]
fn holes_are_where_they_are_on_the_host() {
    runs_the_same(&["rsync"], include_str!("scripts/sparse.sh"));
}

#[test]
fn directories_change_while_they_are_read() {
    runs_the_same(&[], include_str!("scripts/listings.sh"));
}

#[test]
fn inotify_tells_of_changes() {
    runs_the_same(&[], include_str!("scripts/inotify.sh"));
}
