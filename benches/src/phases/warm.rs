//! Git and readers in a worktree that has been looked at before.

use anyhow::{Context, Result};

use super::{Book, Expected, Rounds, clean_status, interleave, ripgrep, ripgrep_obstacle, sites};
use crate::catalogue::Group;
use crate::lab::Lab;
use crate::loops::{self, Loop};
use crate::process::Run;
use crate::record::{Series, Subject};
use crate::rivals::Site;
use crate::source::Source;

/// How many commits back `git diff` looks.
const DIFF_COMMITS: u64 = 20;

pub fn run(lab: &Lab, source: &Source, group: Group, book: &mut Book) -> Result<()> {
    let sites = sites(lab, &lab.subjects(), source)?;
    match group {
        Group::Git => git(lab, source, &sites, book),
        _ => read(lab, &sites, book),
    }
}

fn git(lab: &Lab, source: &Source, sites: &[Site], book: &mut Book) -> Result<()> {
    let rounds = Rounds::of(&lab.sizes);
    if book.wants("status_warm") {
        let [series] = interleave(rounds, sites, |site| Ok([clean_status(&site.root)?]))?;
        let requests = requests(sites, |site| clean_status(&site.root).map(drop))?;
        book.counted("status_warm", series, None, requests);
    }
    if book.wants("diff") {
        let old = format!("HEAD~{}", DIFF_COMMITS.min(source.about.commits - 1));
        let mut expected = Expected::new("`git diff`");
        let [series] = interleave(rounds, sites, |site| {
            let answer = Run::git(&site.root).args(["diff", "--stat", &old]).ok()?;
            Ok([expected.printed(site, &answer, false)?])
        })?;
        book.measured("diff", series);
    }
    Ok(())
}

fn read(lab: &Lab, sites: &[Site], book: &mut Book) -> Result<()> {
    let rounds = Rounds::of(&lab.sizes);
    let list = lab.fresh("list");
    let native = sites.first().context("no subjects")?;
    loops::list_files(&native.root, &list)?;
    for (id, kind) in [("lstat", Loop::Lstat), ("open_read_close", Loop::OpenReadClose)] {
        if !book.wants(id) {
            continue;
        }
        let mut expected = Expected::new(format!("the {id} loop"));
        let [series] = interleave(rounds, sites, |site| {
            let tally = loops::measure(kind, &site.root, &list, lab.sizes.operations)?;
            Ok([expected.tally(site.subject, &tally)?])
        })?;
        let requests =
            requests(sites, |site| loops::measure(kind, &site.root, &list, 1).map(drop))?;
        book.counted(id, series, None, requests);
    }
    if book.wants("read_search") {
        let series = read_search(rounds, sites, &list)?;
        book.measured("read_search", series);
    }
    if let Some(why) = ripgrep_obstacle() {
        book.skipped("rg_warm", why);
    } else if book.wants("rg_warm") {
        let mut expected = Expected::new("`rg -c`");
        let [series] = interleave(rounds, sites, |site| {
            Ok([expected.printed(site, &ripgrep(&site.root)?, true)?])
        })?;
        let requests = requests(sites, |site| ripgrep(&site.root).map(drop))?;
        book.counted("rg_warm", series, None, requests);
    }
    if book.wants("find") {
        let mut expected = Expected::new("`find`");
        let [series] = interleave(rounds, sites, |site| {
            let answer = find(&site.root).ok()?;
            Ok([expected.printed(site, &answer, true)?])
        })?;
        let requests = requests(sites, |site| find(&site.root).ok().map(drop))?;
        book.counted("find", series, None, requests);
    }
    Ok(())
}

/// `find` of every regular file outside `.git`.
pub fn find(root: &std::path::Path) -> Run {
    let filter = [".", "-name", ".git", "-prune", "-o", "-type", "f", "-print"];
    Run::new("find").args(filter).cwd(root)
}

/// The whole child is timed from outside: git's listing is part of the phase.
fn read_search(rounds: Rounds, sites: &[Site], list: &std::path::Path) -> Result<Vec<Series>> {
    let mut expected = Expected::new("read_search");
    let [series] = interleave(rounds, sites, |site| {
        let answer = loops::command(Loop::ReadSearch, &site.root, list, 1)?.ok()?;
        let tally: loops::Tally = serde_json::from_slice(&answer.stdout)?;
        expected.agree(site.subject, tally.check)?;
        Ok([answer.seconds()])
    })?;
    Ok(series)
}

/// How many kernel requests one more repetition costs our daemon.
fn requests(sites: &[Site], repeat: impl Fn(&Site) -> Result<()>) -> Result<Option<u64>> {
    let ours = sites.iter().find(|site| site.subject == Subject::Ours);
    let Some((site, store)) = ours.and_then(|site| Some((site, site.store.as_ref()?))) else {
        return Ok(None);
    };
    let (_, requests) = store.counting_requests(|| repeat(site))?;
    Ok(Some(requests))
}
