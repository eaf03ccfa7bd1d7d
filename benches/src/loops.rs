//! Single operations, timed in a compiled loop. The program runs itself as a child for each
//! repetition, in the directory to be measured, so that no repetition inherits anything.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::Hasher;
use std::io::{Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::process::Run;

/// Bytes of a file that the search and the open-read-close loop look at.
const HEAD_BYTES: usize = 4096;
/// How many files the search looks at.
const SEARCH_FILES: usize = 64;
/// What it looks for.
const SEARCH_WORD: &[u8] = b"the";
/// One read of the sequential pass, as `cat` does it.
const SEQUENTIAL_BYTES: usize = 128 * 1024;

/// The loops, by the name that the child process is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Loop {
    /// lstat of each listed path.
    Lstat,
    /// Open, one read of 4 KiB, close.
    OpenReadClose,
    /// `git ls-files`, then the heads of 64 of them, searched.
    ReadSearch,
    /// One pass over the first listed file.
    Sequential,
}

/// What a loop found: its time, and a figure made of everything it saw.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    pub operations: u64,
    pub nanoseconds: u64,
    /// Equal wherever the files are.
    pub check: u64,
}

impl Tally {
    /// Seconds of one operation.
    pub fn seconds(&self) -> f64 {
        self.nanoseconds as f64 / 1e9 / self.operations as f64
    }
}

/// The command line of a loop over `list` in `root`, of at least `operations` operations.
pub fn command(kind: Loop, root: &Path, list: &Path, operations: u64) -> Result<Run> {
    let name = kind.to_possible_value().context("a loop without a name")?;
    let program = std::env::current_exe().context("cannot find this program")?;
    let run = Run::new(program).arg("loop").arg(name.get_name()).arg(list);
    Ok(run.arg(operations.to_string()).cwd(root))
}

/// Runs a loop as a child process and returns what it found.
pub fn measure(kind: Loop, root: &Path, list: &Path, operations: u64) -> Result<Tally> {
    let answer = command(kind, root, list, operations)?.ok()?;
    serde_json::from_slice(&answer.stdout).context("the loop gave no figures")
}

/// Writes the list of files that loops work on: those of the index, regular files only.
pub fn list_files(checkout: &Path, list: &Path) -> Result<u64> {
    let staged = Run::git(checkout).args(["ls-files", "--stage", "-z"]).ok()?.stdout;
    let (mut out, mut count) = (Vec::new(), 0);
    for entry in staged.split(|byte| *byte == 0) {
        // MODE OID STAGE<tab>PATH
        if let Some(tab) = entry.iter().position(|byte| *byte == b'\t')
            && entry.starts_with(b"100")
        {
            out.extend_from_slice(&entry[tab + 1..]);
            out.push(0);
            count += 1;
        }
    }
    fs::write(list, out).with_context(|| format!("cannot write {}", list.display()))?;
    Ok(count)
}

/// The child's side: runs the loop in the current directory and prints its tally.
pub fn run_child(kind: Loop, list: &Path, operations: u64) -> Result<()> {
    let paths = match kind {
        Loop::ReadSearch => split(&Run::new("git").args(["ls-files", "-z"]).ok()?.stdout),
        _ => split(&fs::read(list).with_context(|| format!("no list {}", list.display()))?),
    };
    let tally = run(kind, &paths, operations)?;
    serde_json::to_writer(std::io::stdout(), &tally)?;
    Ok(std::io::stdout().flush()?)
}

fn split(list: &[u8]) -> Vec<PathBuf> {
    let paths = list.split(|byte| *byte == 0).filter(|path| !path.is_empty());
    paths.map(|path| std::ffi::OsString::from_vec(path.to_vec()).into()).collect()
}

fn run(kind: Loop, paths: &[PathBuf], operations: u64) -> Result<Tally> {
    if paths.is_empty() {
        bail!("the list of files is empty");
    }
    match kind {
        Loop::Lstat => repeat(paths, operations, lstat),
        Loop::OpenReadClose => {
            let mut buffer = [0; HEAD_BYTES];
            repeat(paths, operations, |path| open_read_close(path, &mut buffer))
        }
        Loop::ReadSearch => {
            let start = Instant::now();
            let check = read_search(paths)?;
            Ok(Tally { operations: 1, nanoseconds: nanoseconds(start), check })
        }
        Loop::Sequential => {
            let start = Instant::now();
            let check = sequential(&paths[0])?;
            Ok(Tally { operations: 1, nanoseconds: nanoseconds(start), check })
        }
    }
}

fn nanoseconds(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// One untimed pass, so that the caches are warm, then whole passes until `operations` is reached.
fn repeat(
    paths: &[PathBuf],
    operations: u64,
    mut operation: impl FnMut(&Path) -> rustix::io::Result<u64>,
) -> Result<Tally> {
    let passes = operations.div_ceil(paths.len() as u64);
    let mut pass = || -> Result<u64> {
        let mut sum = 0u64;
        for path in paths {
            let seen = operation(path).with_context(|| format!("{}", path.display()))?;
            sum = sum.wrapping_mul(31).wrapping_add(seen);
        }
        Ok(sum)
    };
    let check = pass()?;
    let start = Instant::now();
    for _ in 0..passes {
        if pass()? != check {
            bail!("two passes over the same files differ");
        }
    }
    Ok(Tally { operations: passes * paths.len() as u64, nanoseconds: nanoseconds(start), check })
}

fn lstat(path: &Path) -> rustix::io::Result<u64> {
    let stat = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(stat.st_size.cast_unsigned() ^ (u64::from(stat.st_mode) << 40))
}

fn open_read_close(path: &Path, buffer: &mut [u8]) -> rustix::io::Result<u64> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let length = rustix::io::read(&file, &mut *buffer)?;
    let last = length.checked_sub(1).map_or(0, |last| u64::from(buffer[last]));
    Ok(length as u64 ^ (last << 40))
}

/// Counts a word in the heads of 64 files spread evenly over the list.
fn read_search(paths: &[PathBuf]) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    let mut buffer = [0; HEAD_BYTES];
    let count = SEARCH_FILES.min(paths.len());
    for index in 0..count {
        let path = &paths[index * paths.len() / count];
        let mut file = match File::open(path) {
            // A gitlink or a dangling symbolic link holds nothing to search.
            Ok(file) if file.metadata()?.is_file() => file,
            _ => continue,
        };
        let length = file.read(&mut buffer).with_context(|| format!("{}", path.display()))?;
        let head = &buffer[..length];
        let found = head.windows(SEARCH_WORD.len()).filter(|at| *at == SEARCH_WORD).count();
        hasher.write(path.as_os_str().as_bytes());
        hasher.write_usize(found);
    }
    Ok(hasher.finish())
}

/// Reads a file from its start to its end, and looks at eight bytes of each page.
pub fn sequential(path: &Path) -> Result<u64> {
    let mut file = File::open(path).with_context(|| format!("{}", path.display()))?;
    let mut buffer = vec![0; SEQUENTIAL_BYTES];
    let (mut sum, mut size) = (0u64, 0u64);
    loop {
        let length = file.read(&mut buffer).with_context(|| format!("{}", path.display()))?;
        if length == 0 {
            return Ok(fold(sum, size));
        }
        for page in buffer[..length].chunks(HEAD_BYTES) {
            if let Some(word) = page.first_chunk::<8>() {
                sum = fold(sum, u64::from_le_bytes(*word));
            }
        }
        size += length as u64;
    }
}

/// What [`sequential`] makes of a file of `size` bytes whose pages begin with `words`.
pub fn fold_pages(words: impl Iterator<Item = u64>, size: u64) -> u64 {
    fold(words.fold(0, fold), size)
}

fn fold(sum: u64, word: u64) -> u64 {
    sum.wrapping_mul(31).wrapping_add(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &Path, last: &[u8]) -> Vec<PathBuf> {
        let contents: [&[u8]; 3] = [b"", b"the other", last];
        let mut paths = Vec::new();
        for (index, content) in contents.iter().enumerate() {
            let path = dir.join(format!("f{index}"));
            fs::write(&path, content).unwrap();
            paths.push(path);
        }
        paths
    }

    #[test]
    fn at_least_the_operations_asked_for_are_done_and_counted() {
        let dir = tempfile::tempdir().unwrap();
        let paths = files(dir.path(), b"x");
        for kind in [Loop::Lstat, Loop::OpenReadClose] {
            let tally = run(kind, &paths, 2000).unwrap();
            assert_eq!(tally.operations, 2001);
            assert!(tally.seconds() > 0.0);
            assert!(run(kind, &[], 1).is_err());
        }
    }

    #[test]
    fn another_content_gives_another_check() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (a, b) = (files(a.path(), b"alpha"), files(b.path(), b"alphA"));
        let check = |paths: &[PathBuf]| run(Loop::OpenReadClose, paths, 1).unwrap().check;
        assert_ne!(check(&a), check(&b));
        assert_eq!(check(&a), check(&a));
        let pass = |path: &Path, content: &[u8]| {
            fs::write(path, content).unwrap();
            run(Loop::Sequential, &[path.to_owned()], 1).unwrap().check
        };
        let mut content = vec![7; 300_000];
        let before = pass(&a[0], &content);
        content[SEQUENTIAL_BYTES] = 8;
        assert_ne!(before, pass(&a[0], &content));
        content.truncate(299_999);
        assert_ne!(before, pass(&a[0], &content));
    }

    #[test]
    fn only_regular_files_are_listed_with_any_name() {
        let dir = tempfile::tempdir().unwrap();
        Run::git(dir.path()).args(["init", "--quiet"]).ok().unwrap();
        fs::write(dir.path().join("a b\n\"c"), b"x").unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
        Run::git(dir.path()).args(["add", "."]).ok().unwrap();
        let list = dir.path().join("list");
        assert_eq!(list_files(dir.path(), &list).unwrap(), 1);
        assert_eq!(split(&fs::read(&list).unwrap()), [PathBuf::from("a b\n\"c")]);
    }
}
