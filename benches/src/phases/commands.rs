//! The agent-facing command table: the same shell line on the host and in the mount.

use anyhow::Result;

use super::{Book, Expected, Rounds, interleave, sites};
use crate::catalogue::{COMMANDS, Command};
use crate::generate::Recipe;
use crate::lab::Lab;
use crate::process::{Run, installed};
use crate::record::Series;
use crate::rivals::Site;

pub fn run(lab: &Lab, book: &mut Book) -> Result<()> {
    let source = lab.generated(&Recipe::Commands)?;
    let sites = sites(lab, &lab.subjects(), &source)?;
    let writable = sites.iter().all(is_writable);
    for command in COMMANDS {
        let id = command.phase.id;
        if !book.wants(id) {
            continue;
        }
        match command.needs {
            Some(program) if !installed(program) => {
                book.skipped(id, &format!("{program} is not installed"));
            }
            _ if command.writes && !writable => book.skipped(id, "needs a writable mount"),
            _ => match measure(lab, command, &sites) {
                Ok(series) => book.measured(id, series),
                Err(error) => book.failed(id, format!("{error:#}")),
            },
        }
    }
    Ok(())
}

/// Whether files can be made in a worktree.
fn is_writable(site: &Site) -> bool {
    let probe = site.root.join(".scoreboard-probe");
    std::fs::write(&probe, b"").is_ok() && std::fs::remove_file(&probe).is_ok()
}

fn measure(lab: &Lab, command: &Command, sites: &[Site]) -> Result<Vec<Series>> {
    let rounds = Rounds { warmups: lab.sizes.warmups, pairs: lab.sizes.command_pairs };
    let mut expected = Expected::new(format!("`{}`", command.script));
    let [series] = interleave(rounds, sites, |site| {
        let answer = Run::new("sh").args(["-c", command.script]).cwd(&site.root).ok()?;
        Ok([expected.printed(site, &answer, command.unordered)?])
    })?;
    Ok(series)
}
