//! One large file from its start to its end.

use anyhow::Result;

use super::cold::chill;
use super::{Book, Expected, Rounds, interleave, sites};
use crate::generate::Recipe;
use crate::lab::Lab;
use crate::loops::{self, Loop};
use crate::machine;

pub fn run(lab: &Lab, book: &mut Book) -> Result<()> {
    let source = lab.generated(&Recipe::Large { bytes: lab.sizes.large_bytes })?;
    let sites = sites(lab, &lab.subjects(), &source)?;
    let list = lab.fresh("list");
    std::fs::write(&list, b"large.bin\0")?;
    let obstacle = machine::cold_obstacle();
    if let Some(why) = obstacle {
        book.skipped("sequential_cold", why);
    }
    for (id, cold) in [("sequential_warm", false), ("sequential_cold", true)] {
        if !book.wants(id) || (cold && obstacle.is_some()) {
            continue;
        }
        let mut expected = Expected::new("the sequential read");
        let [series] = interleave(Rounds::of(&lab.sizes), &sites, |site| {
            if cold {
                chill(site)?;
            }
            let tally = loops::measure(Loop::Sequential, &site.root, &list, 1)?;
            Ok([expected.tally(site.subject, &tally)?])
        })?;
        book.measured(id, series);
    }
    Ok(())
}
