//! Repositories to test with.

use std::cell::Cell;
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::binary::{target_dir, workspace};

/// Has `command` run without the configuration of whoever runs the tests.
pub fn plain_environment(command: &mut Command) {
    for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "XDG_CONFIG_HOME", "XDG_DATA_HOME"] {
        command.env_remove(name);
    }
    command
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_AUTHOR_NAME", "A U Thor")
        .env("GIT_AUTHOR_EMAIL", "author@example.com")
        .env("GIT_COMMITTER_NAME", "C O Mitter")
        .env("GIT_COMMITTER_EMAIL", "committer@example.com")
        .env("LC_ALL", "C.UTF-8");
}

/// git with `args` in `dir`.
pub fn git_command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("git");
    command.arg("-C").arg(dir).args(args).stdin(Stdio::null());
    plain_environment(&mut command);
    command
}

/// Runs git with `args` in `dir` and returns what it printed, without the last line end.
///
/// # Panics
/// If it fails.
pub fn git(dir: &Path, args: &[&str]) -> String {
    let output = git_command(dir, args).output().expect("git runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {args:?} in {}: {error}", dir.display());
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// Runs git with `args` in `dir` and returns what it says about its failure.
///
/// # Panics
/// If it does not fail.
pub fn git_fails(dir: &Path, args: &[&str]) -> String {
    let output = git_command(dir, args).output().expect("git runs");
    assert!(!output.status.success(), "git {args:?} in {} does not fail", dir.display());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A bare repository with some thousand files: the bundle `codex.bundle` in the directory that
/// `AGENTFS_FIXTURES` names, or in `../shared/fixtures` beside the workspace, else a generated one.
/// It is shared by all tests: clone it, do not change it.
///
/// # Panics
/// If it cannot be made.
pub fn codex() -> &'static Path {
    static REPOSITORY: OnceLock<PathBuf> = OnceLock::new();
    REPOSITORY.get_or_init(|| {
        let fixtures = std::env::var_os("AGENTFS_FIXTURES").map(PathBuf::from);
        let fixtures = fixtures.unwrap_or_else(|| workspace().join("../shared/fixtures"));
        let bundle = fixtures.join("codex.bundle");
        if bundle.exists() {
            cached("codex.git", |into| {
                let into = into.display().to_string();
                git(&fixtures, &["clone", "--quiet", "--bare", "codex.bundle", &into]);
            })
        } else {
            cached("generated.git", generate)
        }
    })
}

/// A directory below the target directory that `make` fills once and for all.
fn cached(name: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let dir = target_dir().join("agentfs-fixtures");
    let path = dir.join(name);
    if !path.exists() {
        fs::create_dir_all(&dir).expect("the target directory can be written");
        let aside = tempfile::tempdir_in(&dir).expect("the target directory can be written");
        let made = aside.path().join(name);
        make(&made);
        // Another test may have been faster; then its result is as good.
        if fs::rename(&made, &path).is_err() {
            assert!(path.exists(), "{} cannot be made", path.display());
        }
    }
    path
}

/// A bare repository of 60 commits over 1,200 files, the same each time.
fn generate(into: &Path) {
    const FILES: usize = 1_200;
    const COMMITS: usize = 60;
    let parent = into.parent().expect("a path below a directory");
    let name = into.display().to_string();
    git(parent, &["init", "--quiet", "--bare", "--initial-branch=main", &name]);
    let mut stream = Vec::new();
    let mut seed = 1_u64;
    for commit in 0..COMMITS {
        let message = format!("change {commit}");
        let head = format!(
            "commit refs/heads/main\ncommitter C O Mitter <committer@example.com> {} +0000\n\
             data {}\n{message}\n",
            1_700_000_000 + commit * 60,
            message.len(),
        );
        stream.extend_from_slice(head.as_bytes());
        let changed = if commit == 0 { FILES } else { 25 };
        for number in 0..changed {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let file = if commit == 0 { number } else { seed as usize % FILES };
            let mode = if file % 50 == 7 { "100755" } else { "100644" };
            let mut content = String::new();
            for line in 0..(seed >> 33) % 400 {
                writeln!(
                    content,
                    "line {line} of file {file}: {:x}",
                    seed.rotate_left(line as u32)
                )
                .expect("a string takes everything");
            }
            let path = format!("crate-{}/src/module-{}/file-{file}.rs", file % 12, file % 60);
            let head = format!("M {mode} inline {path}\ndata {}\n", content.len());
            stream.extend_from_slice(head.as_bytes());
            stream.extend_from_slice(content.as_bytes());
            stream.push(b'\n');
        }
        stream.extend_from_slice(b"M 120000 inline link\ndata 9\ncrate-0/x\n");
    }
    let mut import = git_command(into, &["fast-import", "--quiet"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("git runs");
    import.stdin.take().expect("a pipe").write_all(&stream).expect("git reads its input");
    assert!(import.wait().expect("git ends").success(), "git fast-import failed");
    git(into, &["repack", "-adq"]);
}

/// Makes a small repository, commit by commit.
pub struct Builder {
    dir: PathBuf,
    commits: Cell<u32>,
}

impl Builder {
    /// An empty repository with a worktree in `dir`, on branch `main`.
    ///
    /// # Panics
    /// If git fails.
    pub fn new(dir: &Path) -> Self {
        Self::with_hash(dir, "sha1")
    }

    /// The same with object format `hash`: `sha1` or `sha256`.
    ///
    /// # Panics
    /// If git fails.
    pub fn with_hash(dir: &Path, hash: &str) -> Self {
        fs::create_dir_all(dir).expect("the directory can be made");
        let format = format!("--object-format={hash}");
        git(dir, &["init", "--quiet", "--initial-branch=main", &format]);
        Self { dir: dir.to_owned(), commits: Cell::new(0) }
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes a file and the directories above it.
    ///
    /// # Panics
    /// If that fails.
    pub fn file(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> &Self {
        let path = self.dir.join(path);
        fs::create_dir_all(path.parent().expect("a path below a directory")).expect("a directory");
        fs::write(&path, content).unwrap_or_else(|error| panic!("write {path:?}: {error}"));
        self
    }

    /// Makes a link.
    ///
    /// # Panics
    /// If that fails.
    pub fn link(&self, path: impl AsRef<Path>, target: impl AsRef<Path>) -> &Self {
        symlink(target, self.dir.join(path)).expect("a link");
        self
    }

    /// Commits everything that is there and returns the commit's id.
    ///
    /// # Panics
    /// If git fails.
    pub fn commit(&self, message: &str) -> String {
        git(&self.dir, &["add", "--all"]);
        let date = format!("{} +0000", 1_600_000_000 + self.commits.get() * 60);
        self.commits.set(self.commits.get() + 1);
        let mut command = git_command(
            &self.dir,
            &["commit", "--quiet", "--allow-empty", "--no-gpg-sign", "--message", message],
        );
        command.env("GIT_AUTHOR_DATE", &date).env("GIT_COMMITTER_DATE", &date);
        let output = command.output().expect("git runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        git(&self.dir, &["rev-parse", "HEAD"])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shared_repository_has_many_files() {
        let files = git(codex(), &["ls-tree", "-r", "--name-only", "HEAD"]);
        assert!(files.lines().count() > 1_000);
    }

    #[test]
    fn the_substitute_is_the_same_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let heads: Vec<_> = ["a.git", "b.git"]
            .iter()
            .map(|name| {
                generate(&dir.path().join(name));
                git(&dir.path().join(name), &["rev-parse", "main"])
            })
            .collect();
        assert_eq!(heads[0], heads[1]);
    }

    #[test]
    fn a_built_repository_is_the_same_each_time() {
        let dir = tempfile::tempdir().unwrap();
        let build = |name| {
            let builder = Builder::new(&dir.path().join(name));
            builder.file("a/b", "x").link("l", "a/b");
            builder.commit("one")
        };
        assert_eq!(build("a"), build("b"));
    }
}
