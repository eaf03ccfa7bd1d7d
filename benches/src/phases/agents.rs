//! What the memory of the machine holds when many agents read the same tree, each in a worktree of its own.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::Book;
use crate::agentfs::Store;
use crate::generate::Recipe;
use crate::lab::{Lab, say};
use crate::machine;
use crate::process::Run;
use crate::record::{AgentsPoint, Outcome, Series, Subject};
use crate::rivals::overlay;
use crate::source::Source;

const ID: &str = "agents_memory";
/// The lever by which large files are read past the daemon.
const LEVER: &str = "passthrough";
/// What a file is read into at a time, as `cat` does.
const BUFFER_BYTES: usize = 128 << 10;

/// Worktrees of one subject, of which more and more are made.
struct Fleet<'a> {
    lab: &'a Lab,
    subject: Subject,
    store: Option<Store>,
    /// What an overlay lies over.
    template: PathBuf,
    roots: Vec<PathBuf>,
}

pub fn run(lab: &Lab, book: &mut Book) -> Result<()> {
    if let Some(why) = machine::cold_obstacle() {
        book.skipped(ID, why);
        return Ok(());
    }
    let sizes = &lab.sizes;
    let recipe = Recipe::Mixed { files: sizes.mixed.0, large: sizes.mixed.1, bytes: sizes.mixed.2 };
    let source = lab.generated(&recipe)?;
    let mut subjects = vec![Subject::Ours, Subject::Passing];
    if lab.overlay {
        subjects.push(Subject::Overlay);
    }
    let mut series = Vec::new();
    let mut tree_bytes = None;
    for subject in subjects {
        let mut fleet = Fleet::new(lab, subject, &source)?;
        if subject == Subject::Passing && !fleet.passes()? {
            say("passthrough cannot be had here: `agentfs doctor` says why");
            continue;
        }
        let mut seconds = Vec::new();
        for &agents in &sizes.agents {
            fleet.grow(agents)?;
            let (point, took) = fleet.measure(&mut tree_bytes)?;
            seconds.extend(took);
            say(&format!(
                "{ID}: {} agents, {}: daemon {} MiB, page cache {} MiB, kernel {} MiB",
                point.agents,
                subject.title(),
                point.daemon >> 20,
                point.pages >> 20,
                point.slab >> 20
            ));
            book.agents.push(point);
        }
        series.push(Series { subject, seconds });
    }
    book.enter(ID, Outcome::Measured, series);
    Ok(())
}

impl<'a> Fleet<'a> {
    fn new(lab: &'a Lab, subject: Subject, source: &Source) -> Result<Self> {
        let mut fleet =
            Self { lab, subject, store: None, template: PathBuf::new(), roots: Vec::new() };
        if subject == Subject::Overlay {
            fleet.template = lab.template(source)?;
            return Ok(fleet);
        }
        let store = lab.store(subject);
        let store = if subject == Subject::Passing { store.with_lever(LEVER) } else { store };
        let root = lab.fresh("tree");
        store.clone(&source.git_dir, &root, true)?;
        store.wait_idle()?;
        fleet.roots.push(root);
        fleet.store = Some(store);
        Ok(fleet)
    }

    /// Whether the machine lets large files be read past the daemon.
    fn passes(&self) -> Result<bool> {
        let (Some(store), Some(root)) = (&self.store, self.roots.first()) else { return Ok(false) };
        read_all(root)?;
        store.passes_files()
    }

    /// Makes worktrees until there are so many.
    fn grow(&mut self, agents: usize) -> Result<()> {
        while self.roots.len() < agents {
            let root = self.lab.fresh("tree");
            match &self.store {
                Some(store) => {
                    let name = format!("agent-{}", self.roots.len());
                    let create = store.run().args(["branch", "create", &name, "--from", "main"]);
                    create.arg("--mount").arg(&root).ok()?;
                }
                None => drop(overlay(self.lab, &self.template, &root, false)?),
            }
            self.roots.push(root);
        }
        self.store.as_ref().map_or(Ok(()), Store::wait_idle)
    }

    /// What the machine's memory holds after every agent has read everything, and what that took each.
    fn measure(&self, tree_bytes: &mut Option<u64>) -> Result<(AgentsPoint, Vec<f64>)> {
        machine::drop_caches()?;
        let before = Kernel::now()?;
        let mut took = Vec::new();
        for root in &self.roots {
            let start = Instant::now();
            let read = read_all(root)?;
            took.push(start.elapsed().as_secs_f64());
            if *tree_bytes.get_or_insert(read) != read {
                bail!(
                    "{} has {read} bytes to be read, another worktree {tree_bytes:?}",
                    root.display()
                );
            }
        }
        let after = Kernel::now()?;
        let daemon = self.store.as_ref().map(Store::memory).transpose()?;
        let point = AgentsPoint {
            subject: self.subject,
            agents: self.roots.len() as u64,
            tree: tree_bytes.unwrap_or_default(),
            daemon: daemon.map_or(0, |memory| memory.anonymous),
            pages: after.pages.saturating_sub(before.pages),
            slab: after.slab.saturating_sub(before.slab),
        };
        Ok((point, took))
    }
}

impl Drop for Fleet<'_> {
    fn drop(&mut self) {
        if self.subject == Subject::Overlay {
            for root in &self.roots {
                // What stays is detached when the run is cleaned up.
                let _ = Run::new("umount").arg(root).ok();
            }
        }
    }
}

/// Reads every file below `dir` but in `.git`; returns their bytes.
fn read_all(dir: &Path) -> Result<u64> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut open = vec![dir.to_owned()];
    let mut bytes = 0;
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() && entry.file_name() != ".git" {
                open.push(entry.path());
            } else if kind.is_file() && entry.file_name() != ".git" {
                let mut file = File::open(entry.path())?;
                loop {
                    match file.read(&mut buffer)? {
                        0 => break,
                        read => bytes += read as u64,
                    }
                }
            }
        }
    }
    Ok(bytes)
}

/// What the kernel holds in memory, in bytes.
struct Kernel {
    /// Pages of files, but of those that lie in memory.
    pages: u64,
    /// Its own objects: inodes and names above all.
    slab: u64,
}

impl Kernel {
    fn now() -> Result<Self> {
        let text = fs::read_to_string("/proc/meminfo")?;
        let of = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let number = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
            number.map(|kib| kib << 10).with_context(|| format!("/proc/meminfo has no {name}"))
        };
        Ok(Self { pages: of("Cached")?.saturating_sub(of("Shmem")?), slab: of("Slab")? })
    }
}
