//! Getting a worktree: from nothing, with all content, and one more of what is there.

use anyhow::Result;

use super::{Book, Expected, Rounds, clean_status, interleave, ripgrep, ripgrep_obstacle};
use crate::agentfs::assert_mounted;
use crate::lab::Lab;
use crate::record::Subject;
use crate::rivals::{Site, Until, make, overlay, worktree_add};
use crate::source::Source;

pub fn run(lab: &Lab, source: &Source, book: &mut Book) -> Result<()> {
    if ["clone_usable", "clone_status", "clone_search"].iter().any(|id| book.wants(id)) {
        usable(lab, source, book)?;
    }
    if book.wants("clone_wait") || book.wants("first_status") {
        stored(lab, source, book)?;
    }
    if book.wants("worktree") {
        worktree(lab, source, book)?;
    }
    Ok(())
}

/// Every way there is to a worktree.
fn everyone(lab: &Lab) -> Vec<Subject> {
    let mut subjects = lab.subjects();
    if lab.ab.is_none() {
        subjects.extend([Subject::Worktree, Subject::Copy]);
    }
    subjects
}

/// One clone a turn, and three points in time on the way from it: usable, first status, and all
/// content read once. So work that a lazy clone puts off shows up in the later ones.
fn usable(lab: &Lab, source: &Source, book: &mut Book) -> Result<()> {
    let search = ripgrep_obstacle();
    let mut found = Expected::new("`rg -c`");
    let rounds = Rounds::of(&lab.sizes);
    let measured = interleave(rounds, &everyone(lab), |subject| {
        let (site, answer) = make(lab, *subject, source, Until::Usable)?;
        let usable = answer.seconds();
        let status = usable + clean_status(&site.root)?;
        let all = match search {
            None => status + found.printed(&site, &ripgrep(&site.root)?, true)?,
            Some(_) => status,
        };
        Ok([usable, status, all])
    })?;
    let ids = ["clone_usable", "clone_status", "clone_search"];
    for (id, series) in ids.into_iter().zip(measured) {
        match search {
            Some(why) if id == "clone_search" => book.skipped(id, why),
            _ if book.wants(id) => book.measured(id, series),
            _ => {}
        }
    }
    Ok(())
}

/// A clone that stores everything before it returns, and the first status after it.
fn stored(lab: &Lab, source: &Source, book: &mut Book) -> Result<()> {
    let [stored, status] = interleave(Rounds::of(&lab.sizes), &lab.contestants(), |subject| {
        let (site, answer) = make(lab, *subject, source, Until::Stored)?;
        Ok([answer.seconds(), clean_status(&site.root)?])
    })?;
    for (id, series) in [("clone_wait", stored), ("first_status", status)] {
        if book.wants(id) {
            book.measured(id, series);
        }
    }
    Ok(())
}

/// One more worktree of a repository that is already there.
fn worktree(lab: &Lab, source: &Source, book: &mut Book) -> Result<()> {
    let trunk = lab.trunk(source)?;
    let template = lab.template(source)?;
    let homes = super::sites(lab, &everyone_but_native(lab), source)?;
    let contestants: Vec<Subject> =
        everyone(lab).into_iter().filter(|subject| *subject != Subject::Worktree).collect();
    let [series] = interleave(Rounds::of(&lab.sizes), &contestants, |subject| {
        let root = lab.fresh("tree");
        let answer = match subject {
            Subject::Native | Subject::Worktree => {
                lab.sync();
                worktree_add(&trunk, &root)?
            }
            Subject::Overlay => overlay(lab, &template, &root, true)?,
            Subject::Copy => return copy(lab, source),
            Subject::Ours | Subject::Without | Subject::Passing => {
                mount(&homes, *subject, source, &root)?
            }
        };
        clean_status(&root)?;
        Ok([answer.seconds()])
    })?;
    book.measured("worktree", series);
    Ok(())
}

/// The subjects that need a store.
fn everyone_but_native(lab: &Lab) -> Vec<Subject> {
    let mut subjects = lab.contestants();
    subjects.retain(|subject| *subject != Subject::Native);
    subjects
}

fn copy(lab: &Lab, source: &Source) -> Result<[f64; 1]> {
    let (site, answer) = make(lab, Subject::Copy, source, Until::Usable)?;
    clean_status(&site.root)?;
    Ok([answer.seconds()])
}

fn mount(
    homes: &[Site],
    subject: Subject,
    source: &Source,
    root: &std::path::Path,
) -> Result<crate::process::Answer> {
    let home = homes.iter().find(|site| site.subject == subject);
    let store = home.and_then(|site| site.store.as_ref());
    let store = store.ok_or_else(|| anyhow::anyhow!("{} has no store", subject.title()))?;
    let answer = store.mount(&source.about.head, root)?;
    assert_mounted(root)?;
    Ok(answer)
}
