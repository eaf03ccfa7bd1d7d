//! Single operations that write, timed in a compiled loop. As with the loops that read, the program
//! runs itself as a child for each repetition, in the directory to be measured. The child does the
//! operations and nothing else, so that what they cost can be counted from outside too. Before it the
//! parent makes the directories it works in, and after it reads back what it wrote.

pub mod large;
pub mod small;

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::loops::Tally;
use crate::process::Run;
use crate::random::Random;

/// Bytes of a page, and of the blocks that are appended, synced and overwritten.
pub const PAGE: usize = 4096;

/// The loops, by the name that the child process is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Create a file, write 8 KiB, close it.
    Create,
    /// The same by several threads, each in a directory of its own.
    CreateThreads,
    /// Remove what `Create` made.
    Unlink,
    /// Append 4 KiB to a file that stays open.
    Append,
    /// Append 4 KiB to a file that stays open, and sync it.
    Synced,
    /// Make a large file, one write of 1 MiB an operation.
    Large,
    /// Sync a large file.
    LargeSync,
    /// Read a large file from its start to its end.
    LargeRead,
    /// Overwrite random pages of a large file.
    Overwrite,
    /// Open a large file, change one byte, close it.
    Byte,
    /// Rewrite listed files, eight a time, and sync each.
    Edit,
}

/// What a loop does, as its child process is told.
#[derive(Clone, Debug, Args)]
pub struct Task {
    pub kind: Kind,
    /// Operations: files, blocks or edits.
    pub operations: u64,
    /// Another number gives other bytes, so that no repetition finds its content stored already.
    pub seed: u64,
    /// Threads that share the operations.
    #[arg(long, default_value_t = 1)]
    pub threads: u64,
    /// Files to edit, one path after the other with NUL between them.
    #[arg(long)]
    pub list: Option<std::path::PathBuf>,
}

impl Task {
    pub fn new(kind: Kind, operations: u64, seed: u64) -> Self {
        Self { kind, operations, seed, threads: 1, list: None }
    }

    /// Makes what the loop needs in `dir`.
    pub fn prepare(&self, dir: &Path) -> Result<()> {
        match self.kind {
            Kind::Create | Kind::CreateThreads => small::make_directories(dir, self),
            _ => Ok(()),
        }
    }

    /// Refuses what the loop has left in `dir` if it is not what it should have left.
    pub fn verify(&self, dir: &Path) -> Result<()> {
        match self.kind {
            Kind::Create | Kind::CreateThreads => small::verify_created(dir, self),
            Kind::Unlink => small::verify_unlinked(dir),
            Kind::Append | Kind::Synced => small::verify_appended(dir, self),
            Kind::Edit => small::verify_edited(dir, self),
            Kind::Overwrite => large::verify_overwritten(dir, self),
            Kind::Byte => large::verify_bytes(dir, self),
            // What is read back is compared with the figure of what was written.
            Kind::Large | Kind::LargeSync | Kind::LargeRead => Ok(()),
        }
    }

    /// Runs the loop in `dir` as a child process and returns what it found.
    pub fn measure(&self, dir: &Path) -> Result<Tally> {
        let name = self.kind.to_possible_value().context("a loop without a name")?;
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut run = Run::new(program).arg("write").arg(name.get_name());
        run = run.arg(self.operations.to_string()).arg(self.seed.to_string());
        run = run.arg("--threads").arg(self.threads.to_string());
        if let Some(list) = &self.list {
            run = run.arg("--list").arg(list);
        }
        let answer = run.cwd(dir).ok()?;
        serde_json::from_slice(&answer.stdout).context("the loop gave no figures")
    }

    /// The child's side: runs the loop in the current directory and prints its tally.
    pub fn run_child(&self) -> Result<()> {
        use std::io::Write;
        serde_json::to_writer(std::io::stdout(), &self.run(Path::new("."))?)?;
        Ok(std::io::stdout().flush()?)
    }

    fn run(&self, dir: &Path) -> Result<Tally> {
        match self.kind {
            Kind::Create | Kind::CreateThreads => small::create(dir, self),
            Kind::Unlink => small::unlink(dir, self),
            Kind::Append | Kind::Synced => small::append(dir, self),
            Kind::Edit => small::edit(dir, self),
            Kind::Large => large::write(dir, self),
            Kind::LargeSync => large::sync(dir),
            Kind::LargeRead => large::read(dir),
            Kind::Overwrite => large::overwrite(dir, self),
            Kind::Byte => large::change_bytes(dir, self),
        }
    }

    /// All of it in this process, for tests.
    #[cfg(test)]
    fn rehearse(&self, dir: &Path) -> Result<Tally> {
        self.prepare(dir)?;
        let tally = self.run(dir)?;
        self.verify(dir)?;
        Ok(tally)
    }
}

/// Bytes to write, half of which compress, and which never repeat: each page begins with a number
/// made of the seed and of its place, so that no store finds it twice.
pub struct Content {
    bytes: Vec<u8>,
    seed: u64,
}

impl Content {
    /// Content for blocks of `length` bytes.
    pub fn new(length: usize, seed: u64) -> Self {
        let mut random = Random::new(3);
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            random.text(PAGE, &mut bytes);
            random.noise(PAGE, &mut bytes);
        }
        bytes.truncate(length);
        Self { bytes, seed }
    }

    /// Block `number`.
    pub fn block(&mut self, number: u64) -> &[u8] {
        let pages = self.bytes.len().div_ceil(PAGE) as u64;
        for (page, bytes) in self.bytes.chunks_mut(PAGE).enumerate() {
            let stamp = stamp(self.seed, number * pages + page as u64).to_le_bytes();
            let length = stamp.len().min(bytes.len());
            bytes[..length].copy_from_slice(&stamp[..length]);
        }
        &self.bytes
    }
}

/// The number at the beginning of page `page`.
pub fn stamp(seed: u64, page: u64) -> u64 {
    Random::new(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ page).next()
}

/// The tally of `operations` that began at `start`.
fn tally(start: Instant, operations: u64, check: u64) -> Tally {
    let nanoseconds = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    Tally { operations, nanoseconds, check }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_blocks_are_the_same() {
        let mut first = Content::new(2 * PAGE, 1);
        let mut second = Content::new(2 * PAGE, 2);
        let blocks = [first.block(0).to_vec(), first.block(1).to_vec(), second.block(0).to_vec()];
        for (index, block) in blocks.iter().enumerate() {
            assert_eq!(block.len(), 2 * PAGE);
            for other in &blocks[index + 1..] {
                assert_ne!(block[..PAGE], other[..PAGE]);
                assert_ne!(block[PAGE..], other[PAGE..]);
            }
        }
        assert_eq!(first.block(0), blocks[0]);
    }
}
