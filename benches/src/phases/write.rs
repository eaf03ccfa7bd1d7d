//! What writes: single operations, large files, archives, builds and git.
//!
//! Every turn works in a fresh directory of its worktree. What is created stays until everything that
//! creates is measured; the phases that delete come last and delete just that. Between two turns what
//! ours has written is drained and everything is written back, so that no turn pays for another's.

mod files;
mod git;
mod large;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::{Book, Expected, Rounds, assert_same, sites, take_turns};
use crate::agentfs::Counts;
use crate::lab::Lab;
use crate::loops::Tally;
use crate::process::{Answer, Run};
use crate::record::{Cost, Subject};
use crate::rivals::Site;
use crate::source::Source;
use crate::writing::Task;

/// The directory of a worktree in which the turns work; git is told to ignore it.
const WORK: &str = "scoreboard-work";

/// What all turns need.
struct Stage<'a> {
    lab: &'a Lab,
    /// `git archive` of the source's tree.
    archive: PathBuf,
    /// Where cargo keeps what it knows: nothing.
    cargo_home: PathBuf,
    /// Commits to check out, by round.
    commits: Vec<String>,
    /// Answers that must be the same on every side of a round, by round and question.
    answers: RefCell<BTreeMap<(usize, &'static str), Expected<String>>>,
}

/// One repetition on one side.
struct Turn<'a> {
    site: &'a Site,
    /// A directory that only this turn, and the same turn of other series, works in.
    dir: PathBuf,
    round: usize,
    /// Seconds of the steps whose sum a later one states.
    so_far: Cell<f64>,
    /// What the timed part of the step cost our daemon.
    counts: Cell<Option<Counts>>,
}

impl Turn<'_> {
    /// The timed part of a step: only what it does is counted. Everything is written back before.
    fn timed<T>(&self, stage: &Stage<'_>, what: impl FnOnce() -> Result<T>) -> Result<T> {
        stage.lab.sync();
        self.counted(what)
    }

    /// The same without writing back anything.
    fn counted<T>(&self, what: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(store) = &self.site.store else { return what() };
        let before = store.counts()?;
        let done = what()?;
        self.counts.set(Some(store.counts()?.since(before)));
        Ok(done)
    }

    /// A loop in `dir`, with what comes before and after it.
    fn measure(&self, stage: &Stage<'_>, dir: &Path, task: &Task) -> Result<Tally> {
        task.prepare(dir)?;
        let tally = self.timed(stage, || task.measure(dir))?;
        task.verify(dir)?;
        Ok(tally)
    }

    /// A directory for one step.
    fn fresh(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(dir)
    }

    /// Another one in every round, and in every round of every run.
    fn seed(&self) -> u64 {
        self.round as u64 + 1
    }
}

/// What a step came to.
struct Done {
    seconds: f64,
    operations: u64,
    /// How many syncs the program asked for.
    syncs: u64,
}

impl Done {
    /// A loop that syncs nothing.
    fn tally(tally: &Tally) -> Self {
        Self { seconds: tally.seconds(), operations: tally.operations, syncs: 0 }
    }

    /// A command.
    fn command(answer: &Answer) -> Self {
        Self { seconds: answer.seconds(), operations: 1, syncs: 0 }
    }
}

/// One phase within a turn.
struct Step {
    id: &'static str,
    /// Phases that need what it leaves.
    feeds: &'static [&'static str],
    run: fn(&Stage<'_>, &Turn<'_>) -> Result<Done>,
}

/// Steps that follow each other in every turn.
struct Series {
    /// Names the directories of its turns. Series of one name work in the same directories.
    name: &'static str,
    /// Whether it takes seconds or writes gigabytes.
    long: bool,
    steps: &'static [Step],
}

/// In the order they are measured. Those that delete many files come last, `git checkout`, which
/// deletes some, before them.
const SERIES: &[Series] = &[
    Series { name: "files", long: false, steps: files::CREATING },
    Series { name: "git", long: false, steps: git::COMMITTING },
    Series { name: "large", long: true, steps: large::LARGE },
    Series { name: "build", long: true, steps: files::BUILDING },
    Series { name: "git", long: false, steps: git::CHECKING_OUT },
    Series { name: "files", long: false, steps: files::DELETING },
];

pub fn run(lab: &Lab, source: &Source, book: &mut Book) -> Result<()> {
    let sites = sites(lab, &lab.subjects(), source)?;
    sites.iter().try_for_each(hide_work)?;
    let stage = Stage {
        lab,
        archive: archive(lab, source)?,
        cargo_home: lab.fresh("cargo-home"),
        commits: git::commits(source)?,
        answers: RefCell::default(),
    };
    for series in SERIES {
        let wanted: Vec<&Step> = series.steps.iter().filter(|step| needed(step, book)).collect();
        let mut steps = Vec::new();
        for step in wanted {
            match stage.obstacle(step.id)? {
                Some(why) => book.skipped(step.id, &why),
                None => steps.push(step),
            }
        }
        if !steps.iter().any(|step| book.wants(step.id) || deletes_later(step, book)) {
            continue;
        }
        measure(&stage, &sites, series, &steps, book);
    }
    Ok(())
}

/// Whether a step is asked for, or one that works on what it leaves.
fn needed(step: &Step, book: &Book) -> bool {
    book.wants(step.id) || deletes_later(step, book)
}

fn deletes_later(step: &Step, book: &Book) -> bool {
    step.feeds.iter().any(|id| book.wants(id))
}

/// All turns of one series. A step that fails on one side is over for all; the others go on.
fn measure(stage: &Stage<'_>, sites: &[Site], series: &Series, steps: &[&Step], book: &mut Book) {
    let sizes = &stage.lab.sizes;
    let rounds = match series.long {
        true => Rounds { warmups: sizes.warmups, pairs: sizes.long_pairs },
        false => Rounds::of(sizes),
    };
    let mut outcomes: Vec<Result<Option<Cost>>> = steps.iter().map(|_| Ok(None)).collect();
    let figures = take_turns(rounds, sites, steps.len(), |round, site| {
        let dir = site.root.join(WORK).join(format!("{}-{round}", series.name));
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let turn = Turn { site, dir, round, so_far: Cell::default(), counts: Cell::default() };
        let mut seconds = vec![0.0; steps.len()];
        for ((step, outcome), seconds) in steps.iter().zip(&mut outcomes).zip(&mut seconds) {
            if outcome.is_err() {
                continue;
            }
            match stage.step(step, &turn) {
                Ok((done, cost)) => {
                    *seconds = done.seconds;
                    if site.subject == Subject::Ours {
                        *outcome = Ok(cost);
                    }
                }
                Err(error) => *outcome = Err(error),
            }
        }
        stage.rest(site)?;
        Ok(seconds)
    });
    let last = rounds.warmups + rounds.pairs - 1;
    let figures = figures.and_then(|figures| {
        stage.compare(sites, series, last)?;
        Ok(figures)
    });
    let figures = match figures {
        Ok(figures) => figures,
        Err(error) => {
            for step in steps.iter().filter(|step| book.wants(step.id)).collect::<Vec<_>>() {
                book.failed(step.id, format!("{error:#}"));
            }
            return;
        }
    };
    for ((step, figures), outcome) in steps.iter().zip(figures).zip(outcomes) {
        if !book.wants(step.id) {
            continue;
        }
        let outcome = match outcome {
            Ok(Some(cost)) if step.id == large::BYTE_EDIT => {
                large::growth(sites).map(|grown| Some(Cost { grown, ..cost }))
            }
            other => other,
        };
        match outcome {
            Ok(cost) => book.costing(step.id, figures, cost),
            Err(error) => book.failed(step.id, format!("{error:#}")),
        }
    }
}

impl Stage<'_> {
    /// Does a step, and tells what it cost our daemon. Where the program asked for syncs, the daemon
    /// must have been asked for them, and must have synced.
    fn step(&self, step: &Step, turn: &Turn<'_>) -> Result<(Done, Option<Cost>)> {
        let about = || format!("{}, {}", step.id, turn.site.subject.title());
        let done = (step.run)(self, turn).with_context(about)?;
        let Some(counts) = turn.counts.take() else { return Ok((done, None)) };
        ensure!(
            counts.asked >= done.syncs && counts.synced >= done.syncs,
            "{}: the program synced {} times, but the store was asked for {} syncs and made {}",
            about(),
            done.syncs,
            counts.asked,
            counts.synced
        );
        let cost = Cost {
            operations: done.operations,
            requests: counts.requests,
            syncs: counts.synced,
            grown: None,
        };
        Ok((done, Some(cost)))
    }

    /// Lets a side finish what it does in the background, so that it does not disturb the next.
    fn rest(&self, site: &Site) -> Result<()> {
        if let Some(store) = &site.store
            && self.lab.sizes.sync
        {
            store.wait_drained()?;
        }
        self.lab.sync();
        Ok(())
    }

    /// Refuses an answer that differs from that of the first side of the same round.
    fn agree(&self, turn: &Turn<'_>, question: &'static str, answer: String) -> Result<()> {
        let mut answers = self.answers.borrow_mut();
        let expected =
            answers.entry((turn.round, question)).or_insert_with(|| Expected::new(question));
        expected.agree(turn.site.subject, answer)
    }

    /// Every byte that the last turn of a series left, and of the worktree where git has changed it,
    /// on every side.
    fn compare(&self, sites: &[Site], series: &Series, round: usize) -> Result<()> {
        let Some((first, others)) = sites.split_first() else { bail!("no subjects") };
        let turn = |site: &Site| site.root.join(WORK).join(format!("{}-{round}", series.name));
        for other in others {
            if series.name == "git" {
                assert_same(&first.root, &other.root, &[".git", WORK], other.subject)?;
            }
            // What compilers write depends on where they are.
            if series.name != "build" {
                assert_same(&turn(first), &turn(other), &[], other.subject)?;
            }
        }
        Ok(())
    }

    /// Why a phase cannot be measured here, if it cannot.
    fn obstacle(&self, id: &str) -> Result<Option<String>> {
        let missing = |programs: &[&str]| {
            let missing = programs.iter().find(|program| !crate::process::installed(program));
            missing.map(|program| format!("{program} is not installed"))
        };
        Ok(match id {
            "cargo_build" => missing(&["cargo"]),
            "make" => missing(&["make", "cc"]),
            "untar" | "rm_rf" => missing(&["tar"]),
            "checkout" if self.commits.len() < 2 => Some("the source has one commit".to_owned()),
            _ if id.starts_with("large_") => large::room(self.lab)?,
            _ => None,
        })
    }
}

/// Makes the directory for the turns, which git is to ignore.
fn hide_work(site: &Site) -> Result<()> {
    fs::create_dir(site.root.join(WORK))
        .with_context(|| format!("{} takes no directory", site.root.display()))?;
    let exclude = Run::git(&site.root).args(["rev-parse", "--git-path", "info/exclude"]).ok()?;
    let exclude = site.root.join(exclude.text());
    if let Some(above) = exclude.parent() {
        fs::create_dir_all(above)?;
    }
    fs::write(&exclude, format!("/{WORK}/\n"))
        .with_context(|| format!("cannot write {}", exclude.display()))
}

/// `git archive` of the source's tree.
fn archive(lab: &Lab, source: &Source) -> Result<PathBuf> {
    let path = lab.fresh("tree.tar");
    let archive = Run::git(&source.git_dir).args(["archive", "--format=tar", "-o"]);
    archive.arg(&path).arg("HEAD").ok()?;
    Ok(path)
}

/// `git` in a worktree, which tidies nothing up while it is timed.
fn quiet_git(dir: &Path) -> Run {
    Run::git(dir).args(["-c", "gc.auto=0", "-c", "maintenance.auto=false"])
}
