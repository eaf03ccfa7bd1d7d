//! Verification of everything that is stored.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::{Book, Rounds, interleave, sites};
use crate::lab::Lab;
use crate::process::Run;
use crate::rivals::Site;
use crate::source::Source;

pub fn run(lab: &Lab, source: &Source, book: &mut Book) -> Result<()> {
    let sites = sites(lab, &lab.contestants(), source)?;
    if book.wants("fsck") {
        compare(lab, "fsck", &sites, &sites[0].root, book)?;
    }
    if book.wants("fsck_same") {
        let shallow = shallow(lab, source)?;
        compare(lab, "fsck_same", &sites, &shallow, book)?;
    }
    Ok(())
}

/// Ours against `git fsck` in `native`.
fn compare(lab: &Lab, id: &str, sites: &[Site], native: &Path, book: &mut Book) -> Result<()> {
    let [series] = interleave(Rounds::of(&lab.sizes), sites, |site| {
        let answer = match &site.store {
            Some(store) => store.run().arg("fsck").ok()?,
            None => Run::git(native).args(["fsck", "--full", "--no-progress"]).ok()?,
        };
        Ok([answer.seconds()])
    })?;
    book.measured(id, series);
    Ok(())
}

/// A clone that holds one commit, so the same content as a worktree of it.
fn shallow(lab: &Lab, source: &Source) -> Result<PathBuf> {
    let root = lab.fresh("shallow");
    let Some(path) = source.git_dir.to_str() else {
        bail!("{} cannot be written as a URL", source.git_dir.display());
    };
    let clone = Run::new("git").args(["clone", "--quiet", "--depth=1"]);
    clone.arg(format!("file://{path}")).arg(&root).ok()?;
    Ok(root)
}
