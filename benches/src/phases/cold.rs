//! Readers that find nothing in memory: not the kernel's caches, not the daemon's.

use anyhow::Result;

use super::{Book, Expected, Rounds, clean_status, interleave, ripgrep, ripgrep_obstacle, sites};
use crate::agentfs::assert_mounted;
use crate::lab::Lab;
use crate::machine;
use crate::rivals::Site;
use crate::source::Source;

pub fn run(lab: &Lab, source: &Source, book: &mut Book) -> Result<()> {
    if let Some(why) = machine::cold_obstacle() {
        book.skipped("rg_cold", why);
        book.skipped("status_cold", why);
        return Ok(());
    }
    let rounds = Rounds::of(&lab.sizes);
    let sites = sites(lab, &lab.subjects(), source)?;
    if let Some(why) = ripgrep_obstacle() {
        book.skipped("rg_cold", why);
    } else if book.wants("rg_cold") {
        let mut expected = Expected::new("`rg -c`");
        let [series] = interleave(rounds, &sites, |site| {
            chill(site)?;
            Ok([expected.printed(site, &ripgrep(&site.root)?, true)?])
        })?;
        book.measured("rg_cold", series);
    }
    if book.wants("status_cold") {
        let [series] = interleave(rounds, &sites, |site| {
            chill(site)?;
            Ok([clean_status(&site.root)?])
        })?;
        book.measured("status_cold", series);
    }
    Ok(())
}

/// Empties every cache: a fresh daemon for ours, then the kernel's.
pub fn chill(site: &Site) -> Result<()> {
    if let Some(store) = &site.store {
        store.restart()?;
        assert_mounted(&site.root)?;
    }
    machine::drop_caches()
}
