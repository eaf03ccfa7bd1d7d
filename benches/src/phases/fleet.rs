//! Many worktrees of one repository: begun from another one, kept, and moved to another commit.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::{Book, Rounds, clean_status, interleave, sites};
use crate::agentfs::{Store, assert_mounted};
use crate::lab::Lab;
use crate::process::{Answer, Run};
use crate::record::Subject;
use crate::rivals::{Site, overlay};
use crate::source::Source;

/// Files that nothing has stored yet, in each of as many directories.
const NEW_FILES_EACH: u64 = 100;
/// How far back a switch goes, if there are as many commits.
const SWITCH_COMMITS: u64 = 20;

pub fn run(lab: &Lab, source: &Source, book: &mut Book) -> Result<()> {
    let sites = sites(lab, &lab.contestants(), source)?;
    if book.wants("switch") {
        switch(lab, source, &sites, book)?;
    }
    if book.wants("snapshot") {
        snapshot(lab, source, &sites, book)?;
    }
    if book.wants("branch") {
        branch(lab, "branch", source, &sites, book)?;
    }
    if book.wants("branch_dirty") {
        for site in &sites {
            make_dirty(&site.root.join("new"), lab.sizes.dirty)?;
        }
        branch(lab, "branch_dirty", source, &sites, book)?;
    }
    Ok(())
}

/// Files that git does not know.
fn make_dirty(dir: &Path, files: u64) -> Result<()> {
    for number in 0..files {
        let below = dir.join((number / NEW_FILES_EACH).to_string());
        if number % NEW_FILES_EACH == 0 {
            fs::create_dir_all(&below)?;
        }
        fs::write(below.join(number.to_string()), format!("{number}\n"))?;
    }
    Ok(())
}

/// A worktree that begins as another one is.
fn branch(lab: &Lab, id: &str, source: &Source, sites: &[Site], book: &mut Book) -> Result<()> {
    let mut subjects: Vec<Subject> = lab.subjects();
    if lab.ab.is_none() {
        subjects.push(Subject::Copy);
    }
    let native = sites.first().context("no subjects")?;
    let [series] = interleave(Rounds::of(&lab.sizes), &subjects, |subject| {
        let root = lab.fresh("tree");
        lab.sync();
        let answer = match subject {
            Subject::Overlay => overlay(lab, &native.root, &root, true)?,
            Subject::Copy => {
                let copy = Run::new("cp").args(["-a", "--reflink=auto"]);
                copy.arg(&native.root).arg(&root).ok()?
            }
            Subject::Native | Subject::Worktree => {
                let add = Run::git(&native.root).args(["worktree", "add", "--quiet", "-b"]);
                add.arg(name_of(&root)?).arg(&root).ok()?
            }
            Subject::Ours | Subject::Without | Subject::Passing => {
                let site = sites.iter().find(|site| site.subject == *subject);
                begin(site.context("there is no store")?, source, &root)?
            }
        };
        ensure!(head(&root)? == source.about.head, "{} is elsewhere", subject.title());
        // git carries nothing of a worktree to the next.
        if !matches!(subject, Subject::Native | Subject::Worktree) {
            ensure!(status(&root)? == status(&native.root)?, "{} lost files", subject.title());
        }
        Ok([answer.seconds()])
    })?;
    book.measured(id, series);
    Ok(())
}

/// `agentfs branch create --mount` of what the branch of `site` is, timed.
pub fn begin(site: &Site, source: &Source, root: &Path) -> Result<Answer> {
    let (store, from) = branch_of(site, source)?;
    let create = store.run().args(["branch", "create"]).arg(name_of(root)?);
    let answer = create.arg("--from").arg(from).arg("--mount").arg(root).ok()?;
    assert_mounted(root)?;
    Ok(answer)
}

/// What a worktree is, kept: of ours with all its files, of git's with those that it tracks.
fn snapshot(lab: &Lab, source: &Source, sites: &[Site], book: &mut Book) -> Result<()> {
    let file = tracked(&sites.first().context("no subjects")?.root)?;
    let mut turn = 0_u64;
    let [series] = interleave(Rounds::of(&lab.sizes), sites, |site| {
        turn += 1;
        fs::write(site.root.join(&file), format!("{turn}\n"))?;
        lab.sync();
        let answer = match &site.store {
            Some(_) => keep(site, source)?,
            None => Run::git(&site.root).args(["stash", "create"]).ok()?,
        };
        ensure!(!answer.stdout.is_empty(), "{} kept nothing", site.subject.title());
        Ok([answer.seconds()])
    })?;
    for site in sites {
        Run::git(&site.root).args(["checkout", "--quiet", "--"]).arg(&file).ok()?;
        clean_status(&site.root)?;
    }
    book.measured("snapshot", series);
    Ok(())
}

/// `agentfs snapshot create` of the branch of `site`, timed.
pub fn keep(site: &Site, source: &Source) -> Result<Answer> {
    let (store, of) = branch_of(site, source)?;
    store.run().args(["snapshot", "create"]).arg(of).ok()
}

/// A worktree that goes to an old commit and back.
fn switch(lab: &Lab, source: &Source, sites: &[Site], book: &mut Book) -> Result<()> {
    let old = format!("HEAD~{}", SWITCH_COMMITS.min(source.about.commits - 1));
    let native = sites.first().context("no subjects")?;
    let old = Run::git(&native.root).args(["rev-parse", &old]).ok()?.text();
    let branch = head_branch(source)?;
    let [series] = interleave(Rounds::of(&lab.sizes), sites, |site| {
        lab.sync();
        let there = change(site, old.trim())?;
        ensure!(head(&site.root)? == old.trim(), "{} is elsewhere", site.subject.title());
        clean_status(&site.root)?;
        lab.sync();
        let back = change(site, &branch)?;
        ensure!(head(&site.root)? == source.about.head, "{} is elsewhere", site.subject.title());
        clean_status(&site.root)?;
        Ok([(there.seconds() + back.seconds()) / 2.0])
    })?;
    book.measured("switch", series);
    Ok(())
}

/// Moves a worktree to a branch or a commit, timed.
pub fn change(site: &Site, to: &str) -> Result<Answer> {
    match &site.store {
        Some(store) => store.run().arg("switch").arg(&site.root).arg(to).ok(),
        None => Run::git(&site.root).args(["checkout", "--quiet", to]).ok(),
    }
}

/// The branch of a worktree of ours, with its store.
fn branch_of<'a>(site: &'a Site, source: &Source) -> Result<(&'a Store, String)> {
    let store = site.store.as_ref().context("only a store has branches")?;
    Ok((store, format!("{}@{}", store.repository()?, head_branch(source)?)))
}

/// The branch of which a worktree of `source` is.
fn head_branch(source: &Source) -> Result<String> {
    let head = Run::git(&source.git_dir).args(["symbolic-ref", "--short", "HEAD"]).ok()?;
    Ok(head.text().trim().to_owned())
}

fn head(root: &Path) -> Result<String> {
    Ok(Run::git(root).args(["rev-parse", "HEAD"]).ok()?.text().trim().to_owned())
}

fn status(root: &Path) -> Result<Vec<u8>> {
    let status = Run::git(root).args(["status", "--porcelain", "--untracked-files=all"]);
    Ok(status.ok()?.stdout)
}

/// A file that git tracks.
fn tracked(root: &Path) -> Result<PathBuf> {
    let files = Run::git(root).args(["ls-files", "-z"]).ok()?.text();
    files.split('\0').next().map(PathBuf::from).context("nothing is tracked")
}

/// The name of the branch that begins at `root`.
fn name_of(root: &Path) -> Result<String> {
    let name = root.file_name().context("a worktree has a name")?;
    Ok(format!("b{}", name.to_string_lossy()))
}
