//! How time and memory grow with the size of the tree.

use anyhow::{Context, Result};

use super::{Book, Expected, Rounds, clean_status, interleave, warm};
use crate::generate::Recipe;
use crate::lab::{Lab, say, settle_index};
use crate::machine;
use crate::record::{MemoryPoint, Outcome, Subject};
use crate::rivals::{Until, make};
use crate::source::Source;

const IDS: [&str; 4] = ["growth_usable", "growth_first_status", "growth_status", "growth_list"];
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
            return Ok([answer.seconds(), first, clean_status(&site.root)?, look()?]);
        };
        store.wait_idle()?;
        let (status, for_status) = store.counting_requests(|| clean_status(&site.root))?;
        let (listing, for_listing) = store.counting_requests(look)?;
        if let (Subject::Ours, Some(usable)) = (subject, usable) {
            let directories = source.about.directories;
            memory = Some(MemoryPoint { files, directories, usable, settled: store.memory()? });
            requests = [None, None, Some(for_status), Some(for_listing)];
        }
        Ok([answer.seconds(), first, status, listing])
    })?;
    for ((id, series), requests) in IDS.into_iter().zip(measured).zip(requests) {
        if book.wants(id) {
            book.counted(id, series, Some(files), requests);
        }
    }
    book.memory.push(memory.context("agentfs took no part")?);
    Ok(())
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
