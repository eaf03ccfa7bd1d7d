//! Figures as text: one line for the terminal, tables for the page.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::causes::{AGENTS, Causes, MEMORY, USABLE_GROWTH};
use crate::record::{AgentsPoint, Cost, MemoryPoint, Outcome, PhaseResult, Record, Subject};
use crate::stats::{Summary, ratio, summary};

/// The phase whose time is shared out over the directories of a tree.
const USABLE: &str = "growth_usable";
/// How many bytes of the daemon's memory one more file may cost.
const MEMORY_GOAL: f64 = 100.0;
/// Below this difference in files the daemon's constant memory hides what a file costs.
const SLOPE_FILES_MIN: u64 = 50_000;

/// A time in the unit that suits it, three digits.
pub fn time(seconds: f64) -> String {
    let (value, unit) = match seconds {
        s if s >= 1.0 => (s, "s"),
        s if s >= 1e-3 => (s * 1e3, "ms"),
        s => (s * 1e6, "µs"),
    };
    format!("{} {unit}", digits(value))
}

/// Three significant digits.
fn digits(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v if v >= 0.1 => format!("{v:.2}"),
        v => format!("{v:.3}"),
    }
}

/// A ratio with its quartiles.
fn spread(ratio: &Summary) -> String {
    format!("{} ({}–{})", digits(ratio.median), digits(ratio.p25), digits(ratio.p75))
}

fn median(seconds: &[f64]) -> String {
    summary(seconds).map_or_else(|| "–".into(), |summary| time(summary.median))
}

/// Text that stays in its cell of a table.
pub fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// The phase's name, with the size where it is measured at several.
pub fn title(phase: &PhaseResult) -> String {
    match phase.files {
        Some(files) => format!("{}, {} files", phase.title, thousands(files)),
        None => phase.title.clone(),
    }
}

fn thousands(number: u64) -> String {
    let text = number.to_string();
    let groups: Vec<&str> = text
        .as_bytes()
        .rchunks(3)
        .rev()
        .map(|group| std::str::from_utf8(group).unwrap_or_default())
        .collect();
    groups.join(",")
}

/// What became of the goal.
fn verdict(phase: &PhaseResult) -> &'static str {
    match (&phase.outcome, phase.met()) {
        (Outcome::Failed(_), _) => "**failed**",
        (Outcome::Skipped(_), _) => "not measured",
        (Outcome::Measured, Some(true)) => "met",
        (Outcome::Measured, Some(false)) => "**missed**",
        (Outcome::Measured, None) => "",
    }
}

/// One line for the terminal.
pub fn line(phase: &PhaseResult) -> String {
    let size = phase.files.map_or_else(String::new, |files| format!("@{files}"));
    let mut out = format!("{:<28}", phase.id.clone() + &size);
    for series in &phase.series {
        let _ = write!(out, " {} {}", series.subject.title(), median(&series.seconds));
    }
    if let Some(ratio) = phase.ratio() {
        let _ = write!(out, "  ratio {}", spread(&ratio));
    }
    if let Some(ratio) = ratio(phase.of(Subject::Without), phase.of(Subject::Ours)) {
        let _ = write!(out, "  without/with {}", spread(&ratio));
    }
    if let Some(goal) = phase.goal {
        let _ = write!(out, "  goal {goal} {}", verdict(phase).trim_matches('*'));
    }
    if let Some(requests) = phase.requests {
        let _ = write!(out, "  requests {requests}");
    }
    if let Some(cost) = &phase.cost {
        let [requests, syncs] = shares(cost);
        let _ = write!(out, "  each: requests {requests}, syncs {syncs}");
        if let Some(grown) = cost.grown {
            let _ = write!(out, "; grown by {grown} bytes");
        }
    }
    out
}

/// What one operation cost our daemon: requests and syncs.
fn shares(cost: &Cost) -> [String; 2] {
    [cost.requests, cost.syncs].map(|count| match cost.operations {
        0 => "–".to_owned(),
        1 => count.to_string(),
        operations => format!("{:.2}", count as f64 / operations as f64),
    })
}

/// A table of phases: ours beside every rival that took part in any of them.
pub fn phases(phases: &[&PhaseResult]) -> String {
    let rivals: Vec<Subject> =
        [Subject::Native, Subject::Passing, Subject::Overlay, Subject::Worktree, Subject::Copy]
            .into_iter()
            .filter(|subject| phases.iter().any(|phase| !phase.of(*subject).is_empty()))
            .collect();
    let requests = phases.iter().any(|phase| phase.requests.is_some());
    let goals = phases.iter().any(|phase| phase.goal.is_some());
    let mut head = vec!["phase".to_owned(), "agentfs".into()];
    head.extend(rivals.iter().map(|subject| subject.title().to_owned()));
    head.extend(["agentfs / native".into(), "turns".into()]);
    if requests {
        head.push("messages to the daemon".into());
    }
    let costs = phases.iter().any(|phase| phase.cost.is_some());
    if costs {
        head.extend(["messages, each".into(), "syncs of the store, each".into()]);
    }
    if goals {
        head.extend(["goal".into(), "".into()]);
    }
    let mut out = format!("| {} |\n|{}\n", head.join(" | "), "---|".repeat(head.len()));
    for phase in phases {
        let ours = phase.of(Subject::Ours);
        let mut row = vec![cell(&title(phase)), median(ours)];
        row.extend(rivals.iter().map(|subject| median(phase.of(*subject))));
        row.push(phase.ratio().map_or_else(|| "–".into(), |ratio| spread(&ratio)));
        row.push(ours.len().to_string());
        if requests {
            row.push(phase.requests.map_or_else(|| "–".into(), |requests| requests.to_string()));
        }
        if costs {
            row.extend(phase.cost.as_ref().map_or_else(|| ["–".into(), "–".into()], shares));
        }
        if goals {
            row.push(phase.goal.map_or_else(String::new, |goal| format!("≤ {goal}")));
            row.push(verdict(phase).into());
        } else if phase.outcome != Outcome::Measured {
            row[1] = verdict(phase).into();
        }
        let _ = writeln!(out, "| {} |", row.join(" | "));
    }
    out
}

/// Ours with a lever and without it, as cells; `None` for a phase without both.
pub fn comparison(phase: &PhaseResult) -> Option<String> {
    let (with, without) = (phase.of(Subject::Ours), phase.of(Subject::Without));
    let ratio = ratio(without, with)?;
    let turns = with.len().min(without.len());
    Some(format!("{} | {} | {} | {turns}", median(with), median(without), spread(&ratio)))
}

/// What is held in memory when many agents have read the same tree.
pub fn agents(record: &Record, causes: &Causes) -> String {
    let mut out = String::new();
    let Some(first) = record.agents.first() else { return out };
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let _ = writeln!(
        out,
        "\nEach agent has read {} of files, in a worktree of its own.\n\n\
         | agents | subject | daemon | page cache | kernel objects | together | more for each agent |\n\
         |---|---|---|---|---|---|---|",
        mib(first.tree)
    );
    let mut points: Vec<_> = record.agents.iter().collect();
    points.sort_by_key(|point| point.agents);
    let total = |point: &AgentsPoint| point.daemon + point.pages + point.slab;
    for point in points {
        // Against the one agent of the same subject.
        let alone = record.agents.iter().find(|one| one.subject == point.subject);
        let more = alone
            .filter(|one| one.agents < point.agents)
            .map(|one| mib(total(point).saturating_sub(total(one)) / (point.agents - one.agents)));
        let row = [
            thousands(point.agents),
            point.subject.title().to_owned(),
            mib(point.daemon),
            mib(point.pages),
            mib(point.slab),
            mib(total(point)),
            more.unwrap_or_else(|| "–".into()),
        ];
        let _ = writeln!(out, "| {} |", row.join(" | "));
    }
    let _ = writeln!(out, "\n{}", causes.of(AGENTS));
    out
}

/// The daemon's memory and its price by size of tree: what one more file and directory cost.
pub fn memory(record: &Record, causes: &Causes) -> String {
    let mut out = String::new();
    let points = &record.memory;
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return out };
    out.push_str(
        "\n| files | directories | until usable, a directory | resident when usable \
         | resident, settled | of it anonymous | peak |\n|---|---|---|---|---|---|---|\n",
    );
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let usable = |files| record.phases.iter().find(|p| p.id == USABLE && p.files == Some(files));
    let mut medians = Vec::new();
    for point in points {
        let seconds = usable(point.files).and_then(|phase| summary(phase.of(Subject::Ours)));
        let directories = point.directories as f64;
        medians.extend(seconds.as_ref().map(|seconds| (directories, seconds.median)));
        let each = seconds.map(|seconds| time(seconds.median / directories));
        let row = [
            thousands(point.files),
            thousands(point.directories),
            each.unwrap_or_else(|| "–".into()),
            mib(point.usable.resident),
            mib(point.settled.resident),
            mib(point.settled.anonymous),
            mib(point.settled.peak),
        ];
        let _ = writeln!(out, "| {} |", row.join(" | "));
    }
    out.push_str(&usable_growth(&medians, causes));
    if last.files - first.files >= SLOPE_FILES_MIN
        && let Some(fit) = Fit::over(points)
    {
        let is_met = fit.slope < MEMORY_GOAL;
        let verdict = if is_met { "met" } else { "**missed**" };
        let mib = f64::from(1 << 20);
        let _ = writeln!(
            out,
            "\nThe daemon's resident memory, settled, is {:.1} MiB and {:.0} bytes a file (goal: below \
             {MEMORY_GOAL}, {verdict}): the straight line with the least squares through these sizes, from \
             which none is more than {:.1} MiB away. The caches that are bounded in bytes (chunks, \
             database pages) fill with the first files and count as constant only from there on.",
            fit.constant / mib,
            fit.slope,
            fit.error / mib
        );
        if !is_met {
            let _ = writeln!(out, "\n{}", causes.of(MEMORY));
        }
    }
    out
}

/// Whether the time until usable grows no more than linearly: from each size, in directories, to the next.
fn usable_growth(sizes: &[(f64, f64)], causes: &Causes) -> String {
    let mut out = String::new();
    if sizes.len() < 2 {
        return out;
    }
    let mut is_met = true;
    let mut steps = Vec::new();
    for ((fewer, shorter), (more, longer)) in sizes.iter().zip(&sizes[1..]) {
        is_met &= longer / shorter <= more / fewer;
        steps.push(format!("{:.1} times for {:.1} times as many", longer / shorter, more / fewer));
    }
    let verdict = if is_met { "met" } else { "**missed**" };
    let _ = writeln!(
        out,
        "\nUntil a clone is usable, from each size to the next, takes {} directories (goal: no worse than \
         linearly, {verdict}).",
        steps.join(", then ")
    );
    if !is_met {
        let _ = writeln!(out, "\n{}", causes.of(USABLE_GROWTH));
    }
    out
}

/// Memory as a constant and a price for each file.
struct Fit {
    /// In bytes.
    constant: f64,
    /// In bytes a file.
    slope: f64,
    /// The largest distance of a point, in bytes.
    error: f64,
}

impl Fit {
    /// The line with the least squares; nothing for fewer than two sizes.
    fn over(points: &[MemoryPoint]) -> Option<Self> {
        let at = |point: &MemoryPoint| (point.files as f64, point.settled.resident as f64);
        let count = points.len() as f64;
        let (files, bytes) = points
            .iter()
            .map(at)
            .fold((0.0, 0.0), |sum, point| (sum.0 + point.0 / count, sum.1 + point.1 / count));
        let spread: f64 = points.iter().map(|point| (at(point).0 - files).powi(2)).sum();
        if spread <= 0.0 {
            return None;
        }
        let together: f64 =
            points.iter().map(at).map(|point| (point.0 - files) * (point.1 - bytes)).sum();
        let slope = together / spread;
        let constant = bytes - slope * files;
        let distance = |point: (f64, f64)| (point.1 - constant - slope * point.0).abs();
        let error = points.iter().map(at).map(distance).fold(0.0, f64::max);
        Some(Self { constant, slope, error })
    }
}

/// The levers, those that are off by name.
pub fn levers(levers: &BTreeMap<String, bool>) -> String {
    let names = |on: bool| -> Vec<&str> {
        levers.iter().filter(|(_, is)| **is == on).map(|(name, _)| name.as_str()).collect()
    };
    match names(false).as_slice() {
        [] => format!("all on: {}", names(true).join(", ")),
        off => format!("on: {}; off: {}", names(true).join(", "), off.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::sample;

    #[test]
    fn times_and_numbers_read_well() {
        assert_eq!(time(12.345), "12.3 s");
        assert_eq!(time(0.3612), "361 ms");
        assert_eq!(time(0.0074), "7.40 ms");
        assert_eq!(time(3.3e-6), "3.30 µs");
        assert_eq!(time(5e-8), "0.050 µs");
        assert_eq!(thousands(1_000_000), "1,000,000");
        assert_eq!(thousands(999), "999");
        assert_eq!(cell("a|b\nc"), "a\\|b c");
    }

    #[test]
    fn a_table_has_as_many_cells_in_every_row() {
        let record = sample();
        let all: Vec<&PhaseResult> = record.phases.iter().collect();
        let table = phases(&all);
        let cells: Vec<usize> = table.lines().map(|line| line.matches('|').count()).collect();
        assert!(cells.windows(2).all(|pair| pair[0] == pair[1]), "{table}");
        assert!(table.contains("| ≤ 0.25 | met |"), "{table}");
        assert!(table.contains("| ≤ 1.2 | **missed** |"), "{table}");
        assert!(table.contains("| ≤ 1.5 | not measured |"), "{table}");
        assert!(!table.contains("overlayfs"), "{table}");
    }

    #[test]
    fn what_one_more_agent_takes_is_told_beside_what_all_take() {
        let table = agents(&sample(), &Causes::default());
        assert!(table.contains("has read 200.0 MiB"), "{table}");
        let line = |text: &str| table.lines().filter(|line| line.contains(text)).count();
        assert_eq!(
            line("| 11 | agentfs | 30.0 MiB | 2250.0 MiB | 1.0 MiB | 2281.0 MiB | 200.0 MiB |"),
            1
        );
        assert_eq!(line("| 11 | agentfs, passthrough |"), 1, "{table}");
        assert_eq!(line("| 1.0 MiB | 291.0 MiB | 1.0 MiB |"), 1, "{table}");
    }

    #[test]
    fn the_cost_of_a_file_in_memory_is_the_slope_and_the_rest_is_constant() {
        let (mut record, causes) = (sample(), Causes::default());
        let table = memory(&record, &causes);
        let said = "is 20.0 MiB and 50 bytes a file (goal: below 100, met)";
        assert!(table.contains(said) && table.contains("more than 0.0 MiB away"), "{table}");
        // 10 ms for 10,000 files in 833 directories.
        assert!(table.contains("| 10,000 | 833 | 12.0 µs |"), "{table}");
        // A third size above the line through the others bends it, and that is said.
        let mut third = record.memory[1].clone();
        third.files = 200_000;
        third.settled.resident += 6 << 20;
        record.memory.push(third);
        let table = memory(&record, &causes);
        assert!(table.contains("57 bytes a file") && table.contains("than 0.4 MiB"), "{table}");
        record.memory.pop();
        record.memory[1].settled.resident += 100_000 * 60;
        let table = memory(&record, &causes);
        assert!(table.contains("**missed**") && table.contains("not been measured yet"), "{table}");
        record.memory.clear();
        assert_eq!(memory(&record, &causes), "");
    }

    #[test]
    fn a_line_tells_the_ratio_and_the_verdict() {
        let record = sample();
        let shown = line(&record.phases[1]);
        assert!(shown.contains("ratio 2.25") && shown.contains("goal 1.2 missed"), "{shown}");
    }

    #[test]
    fn levers_that_are_off_stand_apart() {
        let mut all = sample().levers;
        assert_eq!(levers(&all), "on: no_open; off: prewarm");
        all.remove("prewarm");
        assert_eq!(levers(&all), "all on: no_open");
    }

    #[test]
    fn growth_is_judged_from_each_size_to_the_next() {
        let causes = Causes::default();
        let said = usable_growth(&[(10.0, 1.0), (100.0, 2.0), (1000.0, 20.0)], &causes);
        assert!(said.contains("takes 2.0 times for 10.0 times as many, then 10.0 times"), "{said}");
        assert!(said.contains("linearly, met)"), "{said}");
        let said = usable_growth(&[(10.0, 1.0), (100.0, 2.0), (1000.0, 20.1)], &causes);
        assert!(said.contains("**missed**") && said.contains("not been measured"), "{said}");
        assert_eq!(usable_growth(&[(10.0, 1.0)], &causes), "");
    }
}
