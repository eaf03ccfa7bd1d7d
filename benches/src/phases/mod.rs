//! The phases: each group prepares its subjects once and measures its phases one after the other.

mod agents;
mod check;
mod clone;
mod cold;
mod commands;
mod fleet;
mod growth;
mod large;
mod warm;
mod write;

use std::fmt::Display;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::catalogue::{self, Group, Phase};
use crate::lab::{Lab, Sizes, say, settle_index};
use crate::loops::Tally;
use crate::process::{Answer, Run};
use crate::record::{AgentsPoint, Cost, MemoryPoint, Outcome, PhaseResult, Series, Subject};
use crate::report::tables;
use crate::rivals::{Site, Until, make};
use crate::source::Source;

/// The word that searches look for; every source has it.
const WORD: &str = "the";

/// What has been measured so far.
pub struct Book {
    /// Names of phases and groups; empty means all.
    wanted: Vec<String>,
    pub phases: Vec<PhaseResult>,
    pub memory: Vec<MemoryPoint>,
    pub agents: Vec<AgentsPoint>,
}

impl Book {
    /// A book for the phases and groups named, which must exist.
    pub fn new(wanted: Vec<String>) -> Result<Self> {
        for name in &wanted {
            let known = catalogue::all().any(|phase| phase.id == name)
                || Group::ALL.iter().any(|group| group.name() == name);
            if !known {
                bail!("there is no phase or group `{name}`: --list shows them");
            }
        }
        Ok(Self { wanted, phases: Vec::new(), memory: Vec::new(), agents: Vec::new() })
    }

    /// Whether a phase was asked for.
    pub fn wants(&self, id: &str) -> bool {
        catalogue::all().any(|phase| phase.id == id && self.asks_for(phase))
    }

    fn asks_for(&self, phase: &Phase) -> bool {
        self.wanted.is_empty()
            || self.wanted.iter().any(|name| name == phase.id || name == phase.group.name())
    }

    /// Enters what a phase came to, if it was asked for.
    pub fn enter(&mut self, id: &str, outcome: Outcome, series: Vec<Series>) -> &mut PhaseResult {
        let phase = catalogue::all().find(|phase| phase.id == id);
        // Phases are entered by the constants of the catalogue; a test runs all of them.
        let phase = phase.unwrap_or_else(|| unreachable!("no phase {id} in the catalogue"));
        self.phases.push(PhaseResult::new(phase, outcome, series));
        let last = self.phases.len() - 1;
        &mut self.phases[last]
    }

    /// Enters figures and tells them.
    pub fn measured(&mut self, id: &str, series: Vec<Series>) {
        self.counted(id, series, None, None);
    }

    /// The same, with the size of the tree and the requests of one more repetition.
    pub fn counted(
        &mut self,
        id: &str,
        series: Vec<Series>,
        files: Option<u64>,
        requests: Option<u64>,
    ) {
        let result = self.enter(id, Outcome::Measured, series);
        (result.files, result.requests) = (files, requests);
        say(&tables::line(result));
    }

    /// The same, with what a repetition that writes cost our daemon.
    pub fn costing(&mut self, id: &str, series: Vec<Series>, cost: Option<Cost>) {
        let result = self.enter(id, Outcome::Measured, series);
        result.cost = cost;
        say(&tables::line(result));
    }

    /// Enters why a phase could not be measured here.
    pub fn skipped(&mut self, id: &str, why: &str) {
        if self.wants(id) {
            say(&format!("{id}: skipped: {why}"));
            self.enter(id, Outcome::Skipped(why.to_owned()), Vec::new());
        }
    }

    /// Enters that a phase failed; the run goes on and fails at its end.
    pub fn failed(&mut self, id: &str, why: impl Display) {
        say(&format!("{id}: FAILED: {why}"));
        self.enter(id, Outcome::Failed(why.to_string()), Vec::new());
    }

    /// The phases that failed.
    pub fn failures(&self) -> usize {
        self.phases.iter().filter(|phase| matches!(phase.outcome, Outcome::Failed(_))).count()
    }
}

/// Measures everything that `book` asks for.
pub fn run(lab: &Lab, source: &Source, book: &mut Book) {
    for group in Group::ALL {
        let phases: Vec<&Phase> =
            catalogue::all().filter(|phase| phase.group == group && book.asks_for(phase)).collect();
        if phases.is_empty() {
            continue;
        }
        say(&format!("-- {}", group.title()));
        let outcome = match group {
            Group::Clone => clone::run(lab, source, book),
            Group::Git | Group::Read => warm::run(lab, source, group, book),
            Group::Cold => cold::run(lab, source, book),
            Group::Large => large::run(lab, book),
            Group::Check => check::run(lab, source, book),
            Group::Fleet => fleet::run(lab, source, book),
            Group::Agents => agents::run(lab, book),
            Group::Growth => growth::run(lab, book),
            Group::Commands => commands::run(lab, book),
            Group::Write => write::run(lab, source, book),
        };
        if let Err(error) = outcome {
            for phase in phases {
                if !book.phases.iter().any(|done| done.id == phase.id) {
                    book.failed(phase.id, format!("{error:#}"));
                }
            }
        }
    }
}

/// How often something is measured.
#[derive(Clone, Copy)]
pub struct Rounds {
    pub warmups: usize,
    pub pairs: usize,
}

impl Rounds {
    fn of(sizes: &Sizes) -> Self {
        Self { warmups: sizes.warmups, pairs: sizes.pairs }
    }
}

/// Something that belongs to a subject.
pub trait Contestant {
    fn subject(&self) -> Subject;
}

impl Contestant for Subject {
    fn subject(&self) -> Subject {
        *self
    }
}

impl Contestant for Site {
    fn subject(&self) -> Subject {
        self.subject
    }
}

/// Measures the contestants in turn, round after round: A B A B. Each turn gives `N` figures;
/// the result is one set of series for each of them.
pub fn interleave<C: Contestant, const N: usize>(
    rounds: Rounds,
    contestants: &[C],
    mut measure: impl FnMut(&C) -> Result<[f64; N]>,
) -> Result<[Vec<Series>; N]> {
    let measure = |_, contestant: &C| measure(contestant).map(Vec::from);
    let mut sets = take_turns(rounds, contestants, N, measure)?.into_iter();
    Ok(std::array::from_fn(|_| sets.next().unwrap_or_default()))
}

/// The same with a number of figures that is known late; a turn is told its round, warm-ups included.
pub fn take_turns<C: Contestant>(
    rounds: Rounds,
    contestants: &[C],
    figures: usize,
    mut measure: impl FnMut(usize, &C) -> Result<Vec<f64>>,
) -> Result<Vec<Vec<Series>>> {
    let empty = |contestant: &C| Series { subject: contestant.subject(), seconds: Vec::new() };
    let mut figures: Vec<Vec<Series>> =
        (0..figures).map(|_| contestants.iter().map(empty).collect()).collect();
    for round in 0..rounds.warmups + rounds.pairs {
        for (index, contestant) in contestants.iter().enumerate() {
            let seconds = measure(round, contestant)?;
            if round >= rounds.warmups {
                for (set, seconds) in figures.iter_mut().zip(seconds) {
                    set[index].seconds.push(seconds);
                }
            }
        }
    }
    Ok(figures)
}

/// The answer all must give: that of the first, which is the native one.
pub struct Expected<T> {
    what: String,
    first: Option<(Subject, T)>,
}

impl<T: PartialEq> Expected<T> {
    pub fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), first: None }
    }

    /// Refuses an answer that differs from the first.
    pub fn agree(&mut self, subject: Subject, answer: T) -> Result<()> {
        match &self.first {
            None => self.first = Some((subject, answer)),
            Some((_, first)) if *first == answer => {}
            Some((other, _)) => bail!(
                "a wrong answer is not a fast one: {} gives another answer than {} to {}",
                subject.title(),
                other.title(),
                self.what
            ),
        }
        Ok(())
    }
}

impl Expected<u64> {
    /// Compares what a loop saw and returns the time of one operation.
    pub fn tally(&mut self, subject: Subject, tally: &Tally) -> Result<f64> {
        self.agree(subject, tally.check)?;
        Ok(tally.seconds())
    }
}

impl Expected<Vec<u8>> {
    /// Compares what a command printed, in which the worktree's own path may occur, and returns
    /// the time it took.
    pub fn printed(&mut self, site: &Site, answer: &Answer, unordered: bool) -> Result<f64> {
        self.agree(site.subject, normal(&answer.stdout, &site.root, unordered))?;
        Ok(answer.seconds())
    }
}

/// Output without what must differ: the worktree's path, and the order of lines where it is free.
fn normal(stdout: &[u8], root: &Path, unordered: bool) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    let root = root.as_os_str().as_bytes();
    let mut lines: Vec<Vec<u8>> = stdout
        .split(|byte| *byte == b'\n')
        .map(|line| match line.strip_prefix(root) {
            Some(rest) => [b".", rest].concat(),
            None => line.to_vec(),
        })
        .collect();
    if unordered {
        lines.sort_unstable();
    }
    lines.join(&b'\n')
}

/// One worktree of every subject, all content stored, at rest, and every byte of it compared.
pub fn sites(lab: &Lab, subjects: &[Subject], source: &Source) -> Result<Vec<Site>> {
    let mut sites: Vec<Site> = Vec::new();
    for subject in subjects {
        let (site, _) = make(lab, *subject, source, Until::Stored)?;
        match &site.store {
            Some(store) => store.wait_idle()?,
            None => settle_index(&site.root)?,
        }
        if let Some(first) = sites.first() {
            assert_same(&first.root, &site.root, &[".git"], *subject)?;
        }
        sites.push(site);
    }
    Ok(sites)
}

/// Compares every byte of two directories, apart from names that are excluded.
fn assert_same(first: &Path, other: &Path, without: &[&str], subject: Subject) -> Result<()> {
    let mut compare = Run::new("diff").args(["-r", "--no-dereference"]);
    for name in without {
        compare = compare.arg(format!("--exclude={name}"));
    }
    let differs = || format!("{} has another content", subject.title());
    compare.arg(first).arg(other).ok().with_context(differs).map(drop)
}

/// `git status --porcelain`, which must be empty; returns its seconds.
pub fn clean_status(root: &Path) -> Result<f64> {
    let answer = Run::git(root).args(["status", "--porcelain"]).ok()?;
    if !answer.stdout.is_empty() {
        bail!("git status of {} is not clean:\n{}", root.display(), answer.text());
    }
    Ok(answer.seconds())
}

/// Why `rg` phases cannot run, if they cannot.
pub fn ripgrep_obstacle() -> Option<&'static str> {
    let missing = !crate::process::installed("rg");
    missing.then_some("ripgrep (`rg`) is not installed")
}

/// `rg -c` over a worktree.
pub fn ripgrep(root: &Path) -> Result<Answer> {
    // Without a path rg would search its standard input; ignore files above are not the tree's.
    let options = ["-c", "--no-config", "--no-ignore-parent", WORD, "./"];
    Run::new("rg").args(options).cwd(root).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_alternate_and_warmups_do_not_count() {
        let mut order = Vec::new();
        let subjects = [Subject::Native, Subject::Ours];
        let rounds = Rounds { warmups: 1, pairs: 2 };
        let [first, second] = interleave(rounds, &subjects, |subject| {
            order.push(*subject);
            let turn = order.len() as f64;
            Ok([turn, -turn])
        })
        .unwrap();
        assert_eq!(order, [subjects, subjects, subjects].concat());
        assert_eq!(first[0], Series { subject: Subject::Native, seconds: vec![3.0, 5.0] });
        assert_eq!(first[1], Series { subject: Subject::Ours, seconds: vec![4.0, 6.0] });
        assert_eq!(second[1].seconds, [-4.0, -6.0]);
    }

    #[test]
    fn a_different_answer_is_refused_by_name() {
        let mut expected = Expected::new("`x`");
        expected.agree(Subject::Native, 1).unwrap();
        expected.agree(Subject::Overlay, 1).unwrap();
        let shown = expected.agree(Subject::Ours, 2).unwrap_err().to_string();
        assert!(shown.contains("agentfs") && shown.contains("native") && shown.contains("`x`"));
    }

    #[test]
    fn only_the_own_path_and_free_order_are_forgiven() {
        let root = Path::new("/run/a");
        assert_eq!(normal(b"/run/a/dir\n", root, false), b"./dir\n");
        assert_eq!(normal(b"b\na\n", root, true), normal(b"a\nb\n", root, true));
        assert_ne!(normal(b"b\na\n", root, false), normal(b"a\nb\n", root, false));
        assert_ne!(normal(b"a\na\n", root, true), normal(b"a\n", root, true));
    }

    #[test]
    fn phases_are_chosen_by_name_or_group() {
        let book = Book::new(vec!["fsck".into(), "clone".into()]).unwrap();
        assert!(book.wants("fsck") && book.wants("clone_wait") && !book.wants("find"));
        assert!(Book::new(Vec::new()).unwrap().wants("find"));
        assert!(Book::new(vec!["fsk".into()]).is_err());
    }
}
