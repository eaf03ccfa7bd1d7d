//! How time and memory grow with the size of the tree.

use std::path::Path;

use anyhow::{Context, Result};

use super::{Book, Expected, Rounds, clean_status, fleet, interleave, warm};
use crate::agentfs::Store;
use crate::generate::Recipe;
use crate::lab::{Lab, say, settle_index};
use crate::machine;
use crate::process::{Answer, Run};
use crate::record::{MemoryPoint, Outcome, Subject};
use crate::rivals::{Site, Until, make};
use crate::source::Source;
use crate::stats::summary;

const IDS: [&str; 7] = [
    "growth_usable",
    "growth_first_status",
    "growth_status",
    "growth_list",
    "growth_branch",
    "growth_snapshot",
    "growth_switch",
];
/// Of these the native side takes as long as a checkout.
const OURS_ALONE: [&str; 3] = ["growth_branch", "growth_snapshot", "growth_switch"];
/// How often each of them is done for one figure.
const TURNS: usize = 7;
/// How often git looks at a tree, at most, before a look counts as warm.
const LOOKS_MAX: usize = 4;
/// From this size on there is no warm-up: one round takes minutes.
const FILES_WITHOUT_WARMUP: u64 = 1_000_000;
/// Bytes on disk that a native file takes at most here, with its share of the repository.
const BYTES_PER_FILE: u64 = 6 * 1024;

pub fn run(lab: &Lab, book: &mut Book) -> Result<()> {
    for &(files, pairs) in &lab.sizes.growth {
        let warmups = if files >= FILES_WITHOUT_WARMUP { 0 } else { lab.sizes.warmups.min(1) };
        let rounds = Rounds { warmups, pairs };
        let outcome = match room(lab, files, rounds)? {
            Some(why) => Err(Outcome::Skipped(why)),
            None => {
                one_size(lab, files, rounds, book).map_err(|e| Outcome::Failed(format!("{e:#}")))
            }
        };
        if let Err(outcome) = outcome {
            for id in IDS.into_iter().filter(|id| book.wants(id)).collect::<Vec<_>>() {
                say(&format!("{id} at {files} files: {outcome:?}"));
                book.enter(id, outcome.clone(), Vec::new()).files = Some(files);
            }
        }
    }
    Ok(())
}

/// Why a size cannot be measured on this disk, if it cannot.
fn room(lab: &Lab, files: u64, rounds: Rounds) -> Result<Option<String>> {
    let (bytes, inodes) = machine::free_space(&lab.dir)?;
    let clones = (rounds.warmups + rounds.pairs) as u64 + 1;
    let enough = bytes > clones * files * BYTES_PER_FILE && inodes > clones * files * 5 / 4;
    Ok((!enough).then(|| {
        format!("{clones} native clones of {files} files do not fit: {bytes} bytes and {inodes} inodes are free")
    }))
}

fn one_size(lab: &Lab, files: u64, rounds: Rounds, book: &mut Book) -> Result<()> {
    let source = lab.generated(&Recipe::Tree { files, commits: 2 })?;
    demand_size(&source, files)?;
    let mut list = Expected::new("`find`");
    let mut memory = None;
    let mut requests = [None; IDS.len()];
    let measured = interleave(rounds, &lab.contestants(), |subject| {
        let (site, answer) = make(lab, *subject, &source, Until::Usable)?;
        let usable = site.store.as_ref().map(|store| store.memory()).transpose()?;
        let first = clean_status(&site.root)?;
        let mut look = || list.printed(&site, &warm::find(&site.root).ok()?, true);
        let Some(store) = &site.store else {
            settle_index(&site.root)?;
            let warm = clean_status(&site.root)?;
            return Ok([answer.seconds(), first, warm, look()?, 0.0, 0.0, 0.0]);
        };
        store.wait_idle()?;
        warm_up(store, &site.root)?;
        let (status, for_status) = store.counting_requests(|| clean_status(&site.root))?;
        let (listing, for_listing) = store.counting_requests(look)?;
        if let (Subject::Ours, Some(usable)) = (subject, usable) {
            let directories = source.about.directories;
            memory = Some(MemoryPoint { files, directories, usable, settled: store.memory()? });
            requests[2..4].copy_from_slice(&[Some(for_status), Some(for_listing)]);
        }
        let [branch, snapshot, switch] = fleet(lab, &site, &source)?;
        Ok([answer.seconds(), first, status, listing, branch, snapshot, switch])
    })?;
    for ((id, mut series), requests) in IDS.into_iter().zip(measured).zip(requests) {
        if OURS_ALONE.contains(&id) {
            series.retain(|series| series.subject != Subject::Native);
        }
        if book.wants(id) {
            book.counted(id, series, Some(files), requests);
        }
    }
    book.memory.push(memory.context("agentfs took no part")?);
    Ok(())
}

/// Has git look until the kernel asks for nothing any more: the second look still asks once for each directory that
/// the first one has listed. A kernel that is short of memory goes on asking.
fn warm_up(store: &Store, root: &Path) -> Result<()> {
    for _ in 0..LOOKS_MAX {
        let (_, requests) = store.counting_requests(|| clean_status(root))?;
        if requests == 0 {
            break;
        }
    }
    Ok(())
}

/// What a branch, a snapshot and a switch take.
fn fleet(lab: &Lab, site: &Site, source: &Source) -> Result<[f64; 3]> {
    let before = Run::git(&site.root).args(["rev-parse", "HEAD~1"]).ok()?.text();
    let median = |what: &mut dyn FnMut(usize) -> Result<Answer>| {
        let seconds: Result<Vec<f64>> = (0..TURNS).map(|turn| Ok(what(turn)?.seconds())).collect();
        let summary = summary(&seconds?).context("there were no turns")?;
        Ok::<_, anyhow::Error>(summary.median)
    };
    Ok([
        median(&mut |_| fleet::begin(site, source, &lab.fresh("tree")))?,
        median(&mut |_| fleet::keep(site, source))?,
        median(&mut |turn| {
            fleet::change(site, if turn % 2 == 0 { before.trim() } else { &source.about.head })
        })?,
    ])
}

/// The tree measured is the tree asked for.
fn demand_size(source: &Source, files: u64) -> Result<()> {
    anyhow::ensure!(
        source.about.files == files,
        "the generated tree has {} files instead of {files}",
        source.about.files
    );
    Ok(())
}
