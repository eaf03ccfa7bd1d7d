//! Many small files, and small writes to one.

use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{Content, Kind, PAGE, Task, tally};
use crate::loops::Tally;

/// Bytes of a file that is created.
const FILE_BYTES: usize = 8192;
/// Files in a directory.
const DIRECTORY_FILES: u64 = 100;
/// Files that are edited together.
pub const EDITED_TOGETHER: usize = 8;
/// Name of the file that is appended to.
const LOG: &str = "log";

/// Where file `index` lies below `dir`.
fn place(dir: &Path, index: u64) -> PathBuf {
    dir.join(format!("d{:03}/f{:02}.rs", index / DIRECTORY_FILES, index % DIRECTORY_FILES))
}

/// The files that one thread creates: where they lie, and the number of the first one's content.
struct Share {
    paths: Vec<PathBuf>,
    first: u64,
}

/// The files of each thread. A single one works in `dir` itself.
fn shares(dir: &Path, task: &Task) -> Vec<Share> {
    let each = task.operations / task.threads.max(1);
    let share = |thread: u64| {
        let below = match task.kind {
            Kind::CreateThreads => dir.join(format!("t{thread}")),
            _ => dir.to_owned(),
        };
        let paths = (0..each).map(|index| place(&below, index)).collect();
        Share { paths, first: thread * each }
    };
    (0..task.threads).map(share).collect()
}

/// Makes the directories of the files to be created.
pub fn make_directories(dir: &Path, task: &Task) -> Result<()> {
    for path in shares(dir, task).iter().flat_map(|share| &share.paths) {
        if let Some(above) = path.parent()
            && !above.exists()
        {
            fs::create_dir_all(above)
                .with_context(|| format!("cannot create {}", above.display()))?;
        }
    }
    Ok(())
}

fn create_one(path: &Path, content: &[u8]) -> rustix::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))?;
    if rustix::io::write(&file, content)? != content.len() {
        return Err(Errno::IO);
    }
    Ok(())
}

fn create_all(share: &Share, content: &mut Content) -> Result<()> {
    for (path, number) in share.paths.iter().zip(share.first..) {
        create_one(path, content.block(number)).with_context(|| format!("{}", path.display()))?;
    }
    Ok(())
}

/// Creates files, by several threads at once if the task says so.
pub fn create(dir: &Path, task: &Task) -> Result<Tally> {
    let shares = shares(dir, task);
    let contents = shares.iter().map(|_| Content::new(FILE_BYTES, task.seed));
    let mut work: Vec<(&Share, Content)> = shares.iter().zip(contents).collect();
    let count = shares.iter().map(|share| share.paths.len() as u64).sum();
    let start = Instant::now();
    if let [(share, content)] = work.as_mut_slice() {
        create_all(share, content)?;
        return Ok(tally(start, count, count));
    }
    std::thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> = work
            .iter_mut()
            .map(|(share, content)| scope.spawn(move || create_all(share, content)))
            .collect();
        for thread in threads {
            match thread.join() {
                Ok(done) => done?,
                Err(_) => bail!("a thread has panicked"),
            }
        }
        Ok(())
    })?;
    Ok(tally(start, count, count))
}

/// Every file holds what was written.
pub fn verify_created(dir: &Path, task: &Task) -> Result<()> {
    let mut content = Content::new(FILE_BYTES, task.seed);
    for share in shares(dir, task) {
        verify_files(&share.paths, &mut content, share.first)?;
    }
    Ok(())
}

/// Refuses files that do not hold what was written.
fn verify_files(paths: &[PathBuf], content: &mut Content, first: u64) -> Result<()> {
    for (path, number) in paths.iter().zip(first..) {
        let held = fs::read(path).with_context(|| format!("{}", path.display()))?;
        ensure!(held == content.block(number), "{} does not hold what was written", path.display());
    }
    Ok(())
}

/// Makes the files for [`unlink`], which have no blocks: a host's file system that is mounted with
/// `discard` waits for its device whenever it frees some, and would look many times slower than it is.
pub fn make_empty(dir: &Path, task: &Task) -> Result<()> {
    make_directories(dir, task)?;
    for path in shares(dir, task).iter().flat_map(|share| &share.paths) {
        File::create_new(path).with_context(|| format!("cannot create {}", path.display()))?;
    }
    Ok(())
}

/// Removes the files that [`make_empty`] or [`create`] made.
pub fn unlink(dir: &Path, task: &Task) -> Result<Tally> {
    let paths: Vec<PathBuf> = (0..task.operations).map(|index| place(dir, index)).collect();
    let start = Instant::now();
    for path in &paths {
        rustix::fs::unlink(path).with_context(|| format!("{}", path.display()))?;
    }
    Ok(tally(start, task.operations, task.operations))
}

/// No file is left.
pub fn verify_unlinked(dir: &Path) -> Result<()> {
    for directory in fs::read_dir(dir)? {
        let directory = directory?.path();
        let left = fs::read_dir(&directory)?.count();
        ensure!(left == 0, "{} still has {left} entries", directory.display());
    }
    Ok(())
}

/// Appends pages to a new file that stays open, each made durable if the task says so.
pub fn append(dir: &Path, task: &Task) -> Result<Tally> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::APPEND | OFlags::CLOEXEC;
    let file = rustix::fs::open(dir.join(LOG), flags, Mode::from_raw_mode(0o644))?;
    let mut content = Content::new(PAGE, task.seed);
    let start = Instant::now();
    for number in 0..task.operations {
        let block = content.block(number);
        ensure!(rustix::io::write(&file, block)? == block.len(), "a write was cut short");
        if task.kind == Kind::Synced {
            rustix::fs::fsync(&file)?;
        }
    }
    Ok(tally(start, task.operations, task.operations))
}

/// The file holds every page in its place.
pub fn verify_appended(dir: &Path, task: &Task) -> Result<()> {
    let file = File::open(dir.join(LOG))?;
    let length = task.operations * PAGE as u64;
    ensure!(file.metadata()?.len() == length, "the file has another length");
    let (mut content, mut held) = (Content::new(PAGE, task.seed), vec![0; PAGE]);
    for number in 0..task.operations {
        file.read_exact_at(&mut held, number * PAGE as u64)?;
        ensure!(held == content.block(number), "page {number} does not hold what was written");
    }
    Ok(())
}

/// The files that a task lists, and how many of them are edited in its timed part.
fn listed(dir: &Path, task: &Task) -> Result<(Vec<PathBuf>, usize)> {
    let list = task.list.as_deref().context("nothing to edit is listed")?;
    let list = fs::read(list).with_context(|| format!("no list {}", list.display()))?;
    let paths = list.split(|byte| *byte == 0).filter(|path| !path.is_empty());
    let paths: Vec<PathBuf> =
        paths.map(|path| dir.join(std::ffi::OsString::from_vec(path.to_vec()))).collect();
    let timed = usize::try_from(task.operations)? * EDITED_TOGETHER;
    ensure!(paths.len() >= timed, "{} files are listed for {timed} edits", paths.len());
    Ok((paths, timed))
}

/// Rewrites listed files as a program does that wants them safe, in place and synced, eight an
/// operation. What the list has beyond that is rewritten untimed.
pub fn edit(dir: &Path, task: &Task) -> Result<Tally> {
    let (paths, timed) = listed(dir, task)?;
    let mut content = Content::new(PAGE, task.seed);
    let mut rewrite = |(path, number): (&PathBuf, u64)| -> Result<()> {
        let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty())
            .with_context(|| format!("{}", path.display()))?;
        let block = content.block(number);
        ensure!(rustix::io::write(&file, block)? == block.len(), "a write was cut short");
        rustix::fs::fsync(&file).with_context(|| format!("{}", path.display()))
    };
    let start = Instant::now();
    paths.iter().zip(0..).take(timed).try_for_each(&mut rewrite)?;
    let tally = tally(start, task.operations, task.operations);
    paths.iter().zip(0..).skip(timed).try_for_each(&mut rewrite)?;
    Ok(tally)
}

/// Every listed file holds what was written.
pub fn verify_edited(dir: &Path, task: &Task) -> Result<()> {
    verify_files(&listed(dir, task)?.0, &mut Content::new(PAGE, task.seed), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_created_is_there_and_what_is_removed_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let task = Task::new(Kind::Create, 250, 1);
        assert_eq!(task.rehearse(dir.path()).unwrap().operations, 250);
        let first = fs::read(place(dir.path(), 0)).unwrap();
        assert_eq!(first.len(), FILE_BYTES);
        assert_ne!(first, fs::read(place(dir.path(), 249)).unwrap());
        assert!(task.run(dir.path()).is_err(), "they exist");
        assert!(Task::new(Kind::Create, 250, 2).verify(dir.path()).is_err(), "another seed");
        assert!(Task::new(Kind::Unlink, 200, 1).rehearse(dir.path()).is_err(), "50 are left");
        let other = tempfile::tempdir().unwrap();
        let task = Task::new(Kind::Unlink, 200, 1);
        make_empty(other.path(), &task).unwrap();
        assert!(place(other.path(), 199).exists() && !place(other.path(), 200).exists());
        task.rehearse(other.path()).unwrap();
    }

    #[test]
    fn threads_share_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let task = Task { threads: 4, ..Task::new(Kind::CreateThreads, 203, 1) };
        assert_eq!(task.rehearse(dir.path()).unwrap().operations, 200);
        let thread = dir.path().join("t3");
        assert!(place(&thread, 49).exists() && !place(&thread, 50).exists());
    }

    #[test]
    fn appended_pages_are_compared() {
        for kind in [Kind::Append, Kind::Synced] {
            let dir = tempfile::tempdir().unwrap();
            let task = Task::new(kind, 5, 1);
            task.rehearse(dir.path()).unwrap();
            let log = dir.path().join(LOG);
            let mut held = fs::read(&log).unwrap();
            held[4 * PAGE] ^= 1;
            fs::write(&log, held).unwrap();
            assert!(task.verify(dir.path()).is_err());
        }
    }

    #[test]
    fn all_that_is_listed_is_edited() {
        let dir = tempfile::tempdir().unwrap();
        let mut list = Vec::new();
        for index in 0..10 {
            fs::write(dir.path().join(index.to_string()), b"old").unwrap();
            list.extend_from_slice(format!("{index}\0").as_bytes());
        }
        let path = dir.path().join("list");
        fs::write(&path, list).unwrap();
        let task = Task { list: Some(path), ..Task::new(Kind::Edit, 1, 1) };
        assert!(task.verify(dir.path()).is_err(), "nothing is edited yet");
        let more = Task { operations: 2, ..task.clone() };
        assert!(more.run(dir.path()).is_err(), "ten are no sixteen");
        assert_eq!(task.rehearse(dir.path()).unwrap().operations, 1);
    }
}
