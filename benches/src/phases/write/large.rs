//! One large file, and one byte in a file that is fairly large.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{Done, Stage, Step, Turn, WORK};
use crate::agentfs::Store;
use crate::lab::Lab;
use crate::machine;
use crate::record::Subject;
use crate::rivals::Site;
use crate::writing::large::{BLOCK, NAME};
use crate::writing::{Kind, Task};

/// The phase that changes single bytes.
pub const BYTE_EDIT: &str = "byte_edit";
/// Blocks of the file in which it does.
const BYTE_EDIT_BLOCKS: u64 = 50;
/// Bytes by which one such edit may make our store grow.
const GROWN_MAX: u64 = 1 << 20;
/// The directory with the file whose single bytes are changed.
const FIFTY: &str = "fifty";

pub const LARGE: &[Step] = &[
    Step {
        id: "large_write",
        feeds: &["large_write_synced", "large_read_back", "large_overwrite"],
        run: write,
    },
    Step { id: "large_write_synced", feeds: &[], run: sync },
    Step { id: "large_read_back", feeds: &[], run: read_back },
    Step { id: "large_overwrite", feeds: &[], run: overwrite },
    Step { id: BYTE_EDIT, feeds: &[], run: byte },
];

/// Why the large files do not fit, if they do not: that of one round for each side, and what our
/// store keeps of all rounds.
pub fn room(lab: &Lab) -> Result<Option<String>> {
    let (free, _) = machine::free_space(&lab.dir)?;
    let rounds = (lab.sizes.warmups + lab.sizes.long_pairs) as u64;
    let needed = (rounds + 3 * lab.subjects().len() as u64) * lab.sizes.large_bytes;
    Ok((free < needed).then(|| format!("{needed} bytes are needed and {free} are free")))
}

fn blocks(stage: &Stage<'_>) -> u64 {
    stage.lab.sizes.large_bytes / BLOCK as u64
}

/// The file of the round before goes first. It is one inode, so that the file system avoids next to
/// nothing afterwards.
fn write(stage: &Stage<'_>, turn: &Turn<'_>) -> Result<Done> {
    if let Some(before) = turn.round.checked_sub(1) {
        let dir = turn.dir.with_file_name(format!("large-{before}"));
        std::fs::remove_file(dir.join(NAME))?;
        stage.lab.sync();
    }
    let task = Task::new(Kind::Large, blocks(stage), turn.seed() << 48);
    let tally = turn.measure(stage, &turn.dir, &task)?;
    stage.agree(turn, "the large file", tally.check.to_string())?;
    turn.so_far.set(tally.seconds());
    Ok(Done { operations: blocks(stage), ..Done::tally(&tally) })
}

/// Alone among the steps it begins with nothing written back: that is what it waits for.
fn sync(_: &Stage<'_>, turn: &Turn<'_>) -> Result<Done> {
    let sync = Task::new(Kind::LargeSync, 1, 0);
    let tally = turn.counted(|| sync.measure(&turn.dir))?;
    Ok(Done { seconds: turn.so_far.get() + tally.seconds(), operations: 1, syncs: 1 })
}

fn read_back(stage: &Stage<'_>, turn: &Turn<'_>) -> Result<Done> {
    let tally = turn.measure(stage, &turn.dir, &Task::new(Kind::LargeRead, 1, 0))?;
    // The same question as of the writer: what is read is what was written.
    stage.agree(turn, "the large file", tally.check.to_string())?;
    Ok(Done::tally(&tally))
}

fn overwrite(stage: &Stage<'_>, turn: &Turn<'_>) -> Result<Done> {
    let task = Task::new(Kind::Overwrite, stage.lab.sizes.written, turn.seed() << 52);
    Ok(Done::tally(&turn.measure(stage, &turn.dir, &task)?))
}

/// Edits the same file in every turn, made in the first.
fn byte(stage: &Stage<'_>, turn: &Turn<'_>) -> Result<Done> {
    let dir = turn.site.root.join(WORK).join(FIFTY);
    if !dir.exists() {
        make_fifty(turn.site, &dir, 1)?;
    }
    let task = Task::new(Kind::Byte, stage.lab.sizes.synced, turn.seed() << 56);
    Ok(Done::tally(&turn.measure(stage, &dir, &task)?))
}

/// A file of 50 MiB in a new directory, drained.
fn make_fifty(site: &Site, dir: &Path, seed: u64) -> Result<()> {
    std::fs::create_dir(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Task::new(Kind::Large, BYTE_EDIT_BLOCKS, seed).measure(dir)?;
    site.store.as_ref().map_or(Ok(()), Store::wait_drained)
}

/// By how many bytes one edit of one byte makes our store grow on disk, when all is drained.
pub fn growth(sites: &[Site]) -> Result<Option<u64>> {
    let ours = sites.iter().find(|site| site.subject == Subject::Ours);
    let Some((site, store)) = ours.and_then(|site| Some((site, site.store.as_ref()?))) else {
        return Ok(None);
    };
    let dir = site.root.join(WORK).join("grown");
    make_fifty(site, &dir, 2)?;
    let before = store.occupied()?;
    let edit = Task::new(Kind::Byte, 1, 3);
    edit.measure(&dir)?;
    edit.verify(&dir)?;
    store.wait_drained()?;
    let grown = store.occupied()?.saturating_sub(before);
    ensure!(
        grown < GROWN_MAX,
        "one byte changed in {BYTE_EDIT_BLOCKS} MiB makes the store grow by {grown} bytes"
    );
    Ok(Some(grown))
}
