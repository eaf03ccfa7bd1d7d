//! A plain checkout and a worktree, for doing the same to both.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::fixture::{self, Builder, git};
use crate::{TestStore, tree};

/// A native clone and a worktree of the same repository.
pub struct Twins {
    /// The store of the worktree.
    pub store: TestStore,
    /// The native clone.
    pub native: PathBuf,
    /// The worktree.
    pub mounted: PathBuf,
}

impl Twins {
    /// Clones of `source`, with its own store.
    ///
    /// # Panics
    /// If they cannot be made.
    pub fn of(source: &Path, store: TestStore) -> Self {
        let native = store.path("native");
        let from = source.display().to_string();
        git(&store.path(""), &["clone", "--quiet", &from, &native.display().to_string()]);
        let mounted = store.clone(source, "mounted");
        Self { store, native, mounted }
    }

    /// Clones of a small repository with two commits.
    ///
    /// # Panics
    /// If they cannot be made.
    pub fn small() -> Self {
        let store = TestStore::with_limit(Duration::from_secs(300));
        let builder = Builder::new(&store.path("source"));
        for number in 0..30 {
            builder.file(format!("dir{}/file{number}", number % 3), format!("{number}\n"));
        }
        builder.commit("one");
        builder.file("dir0/file0", "changed\n").file("new", "x\n").commit("two");
        let source = builder.dir().to_owned();
        Self::of(&source, store)
    }

    /// Runs `script` in both, compares what it prints, and returns that.
    ///
    /// # Panics
    /// If it fails or prints different things.
    pub fn both(&self, script: &str) -> String {
        let native = self.run(&self.native, script);
        let mounted = self.run(&self.mounted, script);
        let expected = native.replace(&self.native.display().to_string(), "DIR");
        let found = mounted.replace(&self.mounted.display().to_string(), "DIR");
        assert_eq!(found, expected, "{script}\n{}", self.store.log());
        found
    }

    /// [`Twins::both`], and then the trees are the same.
    ///
    /// # Panics
    /// If it fails, or if anything differs.
    pub fn same(&self, script: &str) {
        self.both(script);
        tree::assert_same(&self.native, &self.mounted);
    }

    /// Runs `script` with bash in `dir`, stopping at the first failure, and returns what it prints. `OTHER`
    /// is a path outside that is not there.
    ///
    /// # Panics
    /// If it fails.
    pub fn run(&self, dir: &Path, script: &str) -> String {
        let mut command = Command::new("bash");
        command.args(["-euo", "pipefail", "-c", script]).current_dir(dir);
        fixture::plain_environment(&mut command);
        command.env("GIT_AUTHOR_DATE", "1700000000 +0000");
        command.env("GIT_COMMITTER_DATE", "1700000000 +0000");
        command.env_remove("CARGO_TARGET_DIR").env("OTHER", self.store.path("other"));
        let output = command.output().expect("bash runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "in {}: {script}\n{said}", dir.display());
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}
