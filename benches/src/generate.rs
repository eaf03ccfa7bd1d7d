//! Repositories made from a seed through `git fast-import`: trees of any size, one large file,
//! and the files that the agent-facing commands work on.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::random::Random;

/// Files in a directory, and directories in a directory, of a generated tree.
const FAN_OUT: u64 = 12;
/// The commit time of everything generated.
const TIME: u64 = 1_700_000_000;
/// A large file alternates between text and noise in blocks of this many bytes.
const BLOCK: usize = 64 * 1024;

/// What to generate; the same value always gives the same commit ids.
#[derive(Clone, Debug, PartialEq)]
pub enum Recipe {
    /// `files` small files, and `commits` commits that change a few of them.
    Tree { files: u64, commits: u64 },
    /// One file, half of which compresses.
    Large { bytes: u64 },
    /// `files` small files, and `large` files of so many bytes each, half of which compresses.
    Mixed { files: u64, large: u64, bytes: u64 },
    /// What the commands of the command table read.
    Commands,
}

impl Recipe {
    /// A name for the directory of the repository.
    pub fn name(&self) -> String {
        match self {
            Self::Tree { files, commits } => format!("tree-{files}-{commits}"),
            Self::Large { bytes } => format!("large-{bytes}"),
            Self::Mixed { files, large, bytes } => format!("mixed-{files}-{large}-{bytes}"),
            Self::Commands => "commands".to_owned(),
        }
    }

    /// Makes the bare repository `dir`. It appears complete or not at all.
    pub fn build(&self, dir: &Path) -> Result<()> {
        let unfinished = dir.with_extension("unfinished");
        if unfinished.exists() {
            fs::remove_dir_all(&unfinished)?;
        }
        let init = ["init", "--quiet", "--bare", "--initial-branch=main"];
        crate::process::Run::new("git").args(init).arg(&unfinished).ok()?;
        let mut import = Import::start(&unfinished, matches!(self, Self::Large { .. }))?;
        let mut random = Random::new(2);
        match self {
            Self::Tree { files, commits } => tree(&mut import, &mut random, *files, *commits)?,
            Self::Large { bytes } => large(&mut import, &mut random, *bytes)?,
            Self::Mixed { files, large, bytes } => {
                tree(&mut import, &mut random, *files, 1)?;
                for number in 0..*large {
                    let path = format!("large_{number:03}.bin");
                    large_file(&mut import, &mut random, &path, *bytes)?;
                }
            }
            Self::Commands => commands(&mut import, &mut random)?,
        }
        import.finish()?;
        fs::rename(&unfinished, dir).with_context(|| format!("cannot create {}", dir.display()))
    }
}

/// A running `git fast-import`.
struct Import {
    child: std::process::Child,
    stream: BufWriter<std::process::ChildStdin>,
    commits: u64,
}

impl Import {
    fn start(repository: &Path, stored: bool) -> Result<Self> {
        // Level 1 keeps a million files affordable; a large file is stored as it is.
        let compression = if stored { "core.compression=0" } else { "core.compression=1" };
        let mut child = Command::new("git")
            .arg("-C")
            .arg(repository)
            .args(["-c", compression, "-c", "core.bigFileThreshold=16m"])
            .args(["fast-import", "--quiet"])
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot run git fast-import")?;
        let Some(stdin) = child.stdin.take() else { bail!("git fast-import has no input") };
        Ok(Self { child, stream: BufWriter::with_capacity(1 << 20, stdin), commits: 0 })
    }

    fn commit(&mut self) -> Result<()> {
        let time = TIME + self.commits;
        self.commits += 1;
        let message = format!("commit {}\n", self.commits);
        write!(
            self.stream,
            "commit refs/heads/main\ncommitter Scoreboard <scoreboard@example.org> {time} +0000\n\
             data {}\n{message}",
            message.len()
        )?;
        Ok(())
    }

    fn file(&mut self, mode: &str, path: &str, content: &[u8]) -> Result<()> {
        writeln!(self.stream, "M {mode} inline {path}\ndata {}", content.len())?;
        self.stream.write_all(content)?;
        self.stream.write_all(b"\n")?;
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        self.stream.flush().context("git fast-import ended early")?;
        drop(self.stream);
        let status = self.child.wait()?;
        if !status.success() {
            bail!("git fast-import failed ({status})");
        }
        Ok(())
    }
}

/// Where file `index` of a tree lies: three levels of directories, in sorted order.
fn place(index: u64) -> String {
    let (directory, file) = (index / FAN_OUT, index % FAN_OUT);
    let (part, unit) = (directory / FAN_OUT, directory % FAN_OUT);
    let (area, part) = (part / FAN_OUT, part % FAN_OUT);
    format!("area_{area:04}/part_{part:02}/unit_{unit:02}/file_{file:02}.rs")
}

fn tree(import: &mut Import, random: &mut Random, files: u64, commits: u64) -> Result<()> {
    let mut content = Vec::new();
    import.commit()?;
    for index in 0..files {
        content.clear();
        match index % 1000 {
            999 => import.file("120000", &place(index), b"file_00.rs")?,
            remainder => {
                let length = 100 + random.below(1500);
                random.text(length as usize, &mut content);
                let mode = if remainder % 100 == 42 { "100755" } else { "100644" };
                import.file(mode, &place(index), &content)?;
            }
        }
    }
    for _ in 1..commits {
        import.commit()?;
        for _ in 0..3 {
            content.clear();
            random.text(800, &mut content);
            // Never a symbolic link: those sit at the end of each thousand.
            let index = random.below(files);
            import.file("100644", &place(index - u64::from(index % 1000 == 999)), &content)?;
        }
    }
    Ok(())
}

fn large(import: &mut Import, random: &mut Random, bytes: u64) -> Result<()> {
    import.commit()?;
    large_file(import, random, "large.bin", bytes)
}

fn large_file(import: &mut Import, random: &mut Random, path: &str, bytes: u64) -> Result<()> {
    writeln!(import.stream, "M 100644 inline {path}\ndata {bytes}")?;
    let mut left = bytes;
    let mut block = Vec::with_capacity(2 * BLOCK);
    while left > 0 {
        block.clear();
        random.text(BLOCK, &mut block);
        random.noise(BLOCK, &mut block);
        block.truncate(left.min(block.len() as u64) as usize);
        import.stream.write_all(&block)?;
        left -= block.len() as u64;
    }
    import.stream.write_all(b"\n")?;
    Ok(())
}

fn commands(import: &mut Import, random: &mut Random) -> Result<()> {
    let mut text = |length: usize| {
        let mut out = Vec::new();
        random.text(length, &mut out);
        out
    };
    import.commit()?;
    import.file("100644", "small.txt", &text(1024))?;
    import.file("100644", "big.txt", &text(8 << 20))?;
    for (directory, files) in [("dir100", 100), ("dir1000", 1000)] {
        for index in 0..files {
            import.file("100644", &format!("{directory}/file_{index:04}.txt"), &text(1500))?;
        }
    }
    let items: Vec<_> = (0..2000u64)
        .map(|id| serde_json::json!({"id": id, "name": format!("item {id}"), "size": id * 37 % 1009}))
        .collect();
    let data = serde_json::to_vec_pretty(&serde_json::json!({ "items": items }))?;
    import.file("100644", "data.json", &data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Run;

    #[test]
    fn a_tree_has_the_files_asked_for_and_always_the_same_commit() {
        let dir = tempfile::tempdir().unwrap();
        let mut heads = Vec::new();
        for name in ["a.git", "b.git"] {
            let repository = dir.path().join(name);
            Recipe::Tree { files: 2001, commits: 4 }.build(&repository).unwrap();
            let list = Run::git(&repository).args(["ls-tree", "-r", "HEAD"]).ok().unwrap().text();
            assert_eq!(list.lines().count(), 2001);
            assert_eq!(list.lines().filter(|line| line.starts_with("120000")).count(), 2);
            assert!(list.lines().any(|line| line.starts_with("100755")));
            let count = Run::git(&repository).args(["rev-list", "--count", "HEAD"]).ok().unwrap();
            assert_eq!(count.text(), "4");
            Run::git(&repository).args(["fsck", "--strict"]).ok().unwrap();
            heads.push(Run::git(&repository).args(["rev-parse", "HEAD"]).ok().unwrap().text());
        }
        assert_eq!(heads[0], heads[1]);
    }

    #[test]
    fn a_large_file_has_its_size() {
        let dir = tempfile::tempdir().unwrap();
        let repository = dir.path().join("large.git");
        Recipe::Large { bytes: 300_001 }.build(&repository).unwrap();
        let size = Run::git(&repository).args(["cat-file", "-s", "HEAD:large.bin"]).ok().unwrap();
        assert_eq!(size.text(), "300001");
    }

    #[test]
    fn places_are_distinct_and_sorted() {
        let places: Vec<String> = (0..5000).map(place).collect();
        assert!(places.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
