//! One large file: written, synced, read back, and changed in places.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use rustix::fs::{Mode, OFlags};

use super::{Content, PAGE, Task, stamp, tally};
use crate::loops::{self, Tally};
use crate::random::Random;

/// Bytes of one write to a large file that is made.
pub const BLOCK: usize = 1 << 20;
/// Its name.
pub const NAME: &str = "large.bin";
const PAGES_PER_BLOCK: u64 = (BLOCK / PAGE) as u64;

fn open(dir: &Path, flags: OFlags) -> Result<std::os::fd::OwnedFd> {
    let path = dir.join(NAME);
    rustix::fs::open(&path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))
        .with_context(|| format!("{}", path.display()))
}

/// Makes the file in writes of 1 MiB. The figure of the tally is what [`read`] must find.
pub fn write(dir: &Path, task: &Task) -> Result<Tally> {
    let mut content = Content::new(BLOCK, task.seed);
    let start = Instant::now();
    let file = open(dir, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL)?;
    for number in 0..task.operations {
        let block = content.block(number);
        ensure!(rustix::io::write(&file, block)? == block.len(), "a write was cut short");
    }
    drop(file);
    let mut tally = tally(start, 1, 0);
    let pages = task.operations * PAGES_PER_BLOCK;
    let stamps = (0..pages).map(|page| stamp(task.seed, page));
    tally.check = loops::fold_pages(stamps, pages * PAGE as u64);
    Ok(tally)
}

/// Makes the file durable.
pub fn sync(dir: &Path) -> Result<Tally> {
    let file = open(dir, OFlags::WRONLY)?;
    let start = Instant::now();
    rustix::fs::fsync(&file)?;
    Ok(tally(start, 1, 1))
}

/// Reads the file from its start to its end.
pub fn read(dir: &Path) -> Result<Tally> {
    let start = Instant::now();
    let check = loops::sequential(&dir.join(NAME))?;
    Ok(tally(start, 1, check))
}

/// Where the pages lie that a task overwrites, and the number of the first one's content: beyond
/// those of the pages that made the file.
fn pages(file: &File, task: &Task) -> Result<(Vec<u64>, u64)> {
    let pages = file.metadata()?.len() / PAGE as u64;
    ensure!(pages > 0, "{NAME} is empty");
    let mut random = Random::new(task.seed);
    Ok(((0..task.operations).map(|_| random.below(pages) * PAGE as u64).collect(), pages))
}

/// Overwrites random pages, in one open file.
pub fn overwrite(dir: &Path, task: &Task) -> Result<Tally> {
    let file = File::from(open(dir, OFlags::RDWR)?);
    let (offsets, first) = pages(&file, task)?;
    let mut content = Content::new(PAGE, task.seed);
    let start = Instant::now();
    for (offset, number) in offsets.iter().zip(first..) {
        file.write_all_at(content.block(number), *offset)?;
    }
    Ok(tally(start, task.operations, task.operations))
}

/// Every page holds what was written to it last.
pub fn verify_overwritten(dir: &Path, task: &Task) -> Result<()> {
    let file = File::open(dir.join(NAME))?;
    let (offsets, first) = pages(&file, task)?;
    let last: BTreeMap<u64, u64> = offsets.into_iter().zip(first..).collect();
    let (mut content, mut held) = (Content::new(PAGE, task.seed), vec![0; PAGE]);
    for (offset, number) in last {
        file.read_exact_at(&mut held, offset)?;
        ensure!(held == content.block(number), "the page at {offset} is not the one written");
    }
    Ok(())
}

/// Where the bytes lie that a task changes, and what they become.
fn bytes(length: u64, task: &Task) -> Result<Vec<(u64, u8)>> {
    ensure!(length > 0, "{NAME} is empty");
    let mut random = Random::new(task.seed);
    let mut edit = |_| (random.below(length), random.next().to_le_bytes()[0]);
    Ok((0..task.operations).map(&mut edit).collect())
}

/// Opens the file, changes one byte somewhere, closes it.
pub fn change_bytes(dir: &Path, task: &Task) -> Result<Tally> {
    let path = dir.join(NAME);
    let edits = bytes(std::fs::metadata(&path)?.len(), task)?;
    let start = Instant::now();
    for (offset, value) in &edits {
        let file = rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        ensure!(rustix::io::pwrite(&file, &[*value], *offset)? == 1, "a write was cut short");
    }
    Ok(tally(start, task.operations, task.operations))
}

/// Every byte is what it became last.
pub fn verify_bytes(dir: &Path, task: &Task) -> Result<()> {
    let file = File::open(dir.join(NAME))?;
    let last: BTreeMap<u64, u8> = bytes(file.metadata()?.len(), task)?.into_iter().collect();
    for (offset, value) in last {
        let mut held = [0];
        file.read_exact_at(&mut held, offset)?;
        ensure!(held == [value], "the byte at {offset} is not the one written");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::writing::Kind;

    #[test]
    fn what_is_written_is_read_and_every_change_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let written = Task::new(Kind::Large, 3, 7).rehearse(dir.path()).unwrap();
        let length = || std::fs::metadata(dir.path().join(NAME)).unwrap().len();
        assert_eq!(length(), 3 << 20);
        sync(dir.path()).unwrap();
        assert_eq!(read(dir.path()).unwrap().check, written.check);
        for kind in [Kind::Overwrite, Kind::Byte] {
            let task = Task::new(kind, 50, 8);
            assert!(task.verify(dir.path()).is_err(), "nothing is changed yet");
            task.rehearse(dir.path()).unwrap();
            assert_eq!(length(), 3 << 20);
        }
        assert_ne!(read(dir.path()).unwrap().check, written.check);
    }

    #[test]
    fn nothing_is_written_over_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let task = Task::new(Kind::Large, 1, 7);
        task.rehearse(dir.path()).unwrap();
        assert!(task.run(dir.path()).is_err());
        assert!(read(tempfile::tempdir().unwrap().path()).is_err());
    }
}
