//! docs/BENCHMARKS.md and its plots, made from the filed results.

mod causes;
mod plot;
pub mod tables;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::catalogue::Group;
use crate::machine::Machine;
use crate::record::{Outcome, PhaseResult, Record, Subject};
use causes::Causes;

/// Where things lie in the workspace.
pub struct Places {
    pub results: PathBuf,
    causes: PathBuf,
    page: PathBuf,
    plots: PathBuf,
}

impl Places {
    pub fn of(workspace: &Path) -> Self {
        Self {
            results: workspace.join("benches/results"),
            causes: workspace.join("benches/causes.md"),
            page: workspace.join("docs/BENCHMARKS.md"),
            plots: workspace.join("docs/plots"),
        }
    }
}

/// Renders the newest full result, with the newest comparison of each lever in each phase on the same machine.
pub fn render(places: &Places) -> Result<()> {
    let records = Record::load_all(&places.results)?;
    let newest = records.iter().rfind(|(_, record)| record.ab.is_none() && !record.small);
    let (_, newest) = newest.context("no full result is filed yet: run the scoreboard first")?;
    let causes = Causes::load(&places.causes)?;
    fs::create_dir_all(&places.plots)?;
    for (name, drawing) in plots(newest) {
        fs::write(places.plots.join(name), drawing)?;
    }
    let page = page(newest, &records, &causes);
    fs::write(&places.page, page).with_context(|| format!("cannot write {}", places.page.display()))
}

/// The tables of a run for the terminal.
pub fn summary(record: &Record) -> String {
    let mut out = String::new();
    let causes = Causes::default();
    about(&mut out, record);
    scoreboard(&mut out, record, &causes, &[]);
    misses(&mut out, record, &causes);
    out
}

/// The drawings of one record by file name; those without figures are left out.
fn plots(record: &Record) -> Vec<(&'static str, String)> {
    let mut drawings = Vec::new();
    let single = record.phases.iter().filter(|p| p.files.is_none() && p.group != Group::Commands);
    let measured: Vec<&PhaseResult> = single.filter(|phase| phase.ratio().is_some()).collect();
    if !measured.is_empty() {
        drawings.push(("ratios.svg", plot::ratios(&measured)));
    }
    let lines = growth_lines(record);
    if !lines.is_empty() {
        drawings.push((
            "growth-time.svg",
            plot::lines("Time against size of the tree", "files", "seconds", &lines),
        ));
    }
    if !record.memory.is_empty() {
        let line = |label: &str, pick: fn(&crate::record::MemoryPoint) -> u64| plot::Line {
            label: label.to_owned(),
            ours: true,
            points: record
                .memory
                .iter()
                .map(|point| (point.files as f64, pick(point) as f64 / f64::from(1 << 20)))
                .collect(),
        };
        let lines =
            [line("resident, settled", |p| p.settled.resident), line("peak", |p| p.settled.peak)];
        drawings.push((
            "growth-memory.svg",
            plot::lines("The daemon's memory against size of the tree", "files", "MiB", &lines),
        ));
    }
    drawings
}

/// Time until usable and of a warm status, ours and native, by the size of the tree.
fn growth_lines(record: &Record) -> Vec<plot::Line> {
    let mut lines = Vec::new();
    for (id, label) in [("growth_usable", "clone"), ("growth_status", "warm status")] {
        for subject in [Subject::Ours, Subject::Native] {
            let points: Vec<(f64, f64)> = record
                .phases
                .iter()
                .filter(|phase| phase.id == id)
                .filter_map(|phase| {
                    let median = crate::stats::summary(phase.of(subject))?.median;
                    Some((phase.files? as f64, median))
                })
                .collect();
            if !points.is_empty() {
                let label = format!("{label}, {}", subject.title());
                lines.push(plot::Line { label, ours: subject == Subject::Ours, points });
            }
        }
    }
    lines
}

/// The whole page.
fn page(record: &Record, records: &[(PathBuf, Record)], causes: &Causes) -> String {
    let mut out = String::from(METHOD);
    about(&mut out, record);
    let drawn: Vec<&str> = plots(record).into_iter().map(|(name, _)| name).collect();
    scoreboard(&mut out, record, causes, &drawn);
    misses(&mut out, record, causes);
    definitions(&mut out, record);
    levers(&mut out, record, records);
    filed(&mut out, records);
    out
}

/// Every table, and the plots that were drawn.
fn scoreboard(out: &mut String, record: &Record, causes: &Causes, drawn: &[&str]) {
    out.push_str("\n## Scoreboard\n");
    if drawn.contains(&"ratios.svg") {
        out.push_str("\n![agentfs against native, median and quartiles](plots/ratios.svg)\n");
    }
    for group in Group::ALL {
        let phases: Vec<&PhaseResult> =
            record.phases.iter().filter(|phase| phase.group == group).collect();
        if phases.is_empty() {
            continue;
        }
        let _ = write!(out, "\n### {}\n\n", group.title());
        out.push_str(&tables::phases(&phases));
        if group == Group::Growth {
            for name in ["growth-time.svg", "growth-memory.svg"] {
                if drawn.contains(&name) {
                    let _ = write!(out, "\n![growth with the size of the tree](plots/{name})\n");
                }
            }
            out.push_str(&tables::memory(record, causes));
        }
        if group == Group::Agents {
            out.push_str(&tables::agents(record, causes));
        }
        for (phase, grown) in phases.iter().filter_map(|p| Some((p, p.cost?.grown?))) {
            let title = tables::title(phase);
            let _ = writeln!(out, "\n{title}: our store grows by {grown} bytes on disk, drained.");
        }
    }
}

const METHOD: &str = "\
# Benchmarks

This page is rendered by `scoreboard` (crate `benches`) from the results filed in
`benches/results`; do not edit it. Measured causes come from `benches/causes.md`.

```
cargo build --release
cargo run --release -p agentfs-benches -- --source PATH   # measure, file, render: needs a quiet machine, root for cold phases
cargo run --release -p agentfs-benches -- --small         # the same in seconds, nothing filed
cargo run --release -p agentfs-benches -- --ab LEVER      # with and without one lever
cargo run --release -p agentfs-benches -- render          # this page again
```

How it is measured:

- agentfs and its rivals take turns (A B A B) in one run on one machine, from one source
  repository. Ratios are taken turn by turn and given as median (quartiles); absolute times are
  medians. The number of counted turns stands in the table; warm-ups come before them.
- Commands are timed from outside, fork and exec included; single operations in a compiled loop of
  thousands of operations.
- Every answer is compared with the native one: exit status and output, and every byte of the
  worktrees that are read. A phase with a wrong answer is a failed phase, not a fast one.
- Every repetition works in a fresh directory and, where it clones, in a fresh store with a daemon
  of its own. Nothing is deleted before the last measurement: ext4 avoids inodes that were deleted
  a short time ago, and a native rival measured after a deletion would look many times slower.
- Native checkouts are at their best: before warm phases their index is rewritten once, so that git
  need not read files again that are as young as the index.
- What writes asks the same durability of every side: either none syncs, or all do after the same
  operations, and then our store must have synced as often. Before each step everything is written back, and
  after each turn what agentfs has written is drained, so that nobody pays for another's turn. What is
  written is read back and compared. Messages and syncs are those of one operation of ours (a command is
  one operation), drains that fell into it included.
- What deletes many files is measured after everything that creates some.
- A file system mounted with `discard` (it says so above the tables) may wait for its device whenever it frees
  blocks: native `git checkout`, `rm -rf` and truncations pay for that, and agentfs, which keeps what it has
  stored, does not. Their ratios hold for such a file system only.
- Cold means `sync`, all kernel caches dropped, and for agentfs also a freshly started daemon.
- *native* is git on the host's file system; *overlayfs* is an overlay over a finished checkout.
";

/// Machine, code and source.
fn about(out: &mut String, record: &Record) {
    let Machine { processor, cores, memory_bytes, kernel, file_system, load, .. } = &record.machine;
    let gib = *memory_bytes as f64 / f64::from(1 << 30);
    let source = &record.source;
    out.push_str("\n| | |\n|---|---|\n");
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(out, "| {name} | {} |", tables::cell(value));
    };
    row("date", &record.date());
    row("machine", &format!("{processor}, {cores} cores, {gib:.0} GiB"));
    row("kernel, file system", &format!("{kernel}, {file_system}"));
    row("load before the run", &format!("{load:.2}"));
    row("creating a file before the run", &tables::time(record.machine.create_seconds));
    row("agentfs", &format!("{}, commit {}", record.agentfs, record.commit));
    let ripgrep = record.machine.ripgrep.as_deref().unwrap_or("no ripgrep");
    row("rivals", &format!("{}, {ripgrep}", record.machine.git));
    row(
        "source",
        &format!(
            "{}: {} commits, {} objects; its tree: {} files in {} directories, {:.1} MB",
            source.name,
            source.commits,
            source.objects,
            source.files,
            source.directories,
            source.bytes as f64 / 1e6
        ),
    );
    row("levers", &tables::levers(&record.levers));
}

/// What is missed, failed or not measured, each with its cause.
fn misses(out: &mut String, record: &Record, causes: &Causes) {
    out.push_str("\n## Missed, failed, not measured\n\n");
    let mut none = true;
    for phase in &record.phases {
        let title = tables::title(phase);
        let said = match &phase.outcome {
            Outcome::Failed(why) => format!("**{title}** failed: {why}"),
            Outcome::Skipped(why) => format!("**{title}** was not measured: {why}."),
            Outcome::Measured if phase.met() == Some(false) => {
                let cause = causes.of(&phase.id);
                let ratio = phase.ratio().map_or(0.0, |ratio| ratio.median);
                let goal = phase.goal.unwrap_or(0.0);
                format!("**{title}** is missed: {ratio:.2} instead of {goal}. {cause}")
            }
            Outcome::Measured => continue,
        };
        none = false;
        let _ = writeln!(out, "- {said}");
    }
    if none {
        out.push_str("Nothing.\n");
    }
}

/// What each phase does.
fn definitions(out: &mut String, record: &Record) {
    out.push_str("\n## What each phase does\n\n");
    let mut seen = Vec::new();
    for phase in record.phases.iter().filter(|phase| phase.group != Group::Commands) {
        if !seen.contains(&&phase.id) {
            let _ = writeln!(out, "- {} (`{}`): {}.", phase.title, phase.id, phase.what);
            seen.push(&phase.id);
        }
    }
}

/// The newest comparison of each lever in each phase on the machine of `record`.
fn levers(out: &mut String, record: &Record, records: &[(PathBuf, Record)]) {
    let mut rows: Vec<(&str, &PhaseResult, String)> = Vec::new();
    for (_, other) in records.iter().rev() {
        let Some(lever) = other.ab.as_deref() else { continue };
        if other.machine.name != record.machine.name {
            continue;
        }
        for phase in &other.phases {
            let is_known = rows.iter().any(|(name, seen, _)| {
                *name == lever && seen.id == phase.id && seen.files == phase.files
            });
            if let Some(figures) = tables::comparison(phase)
                && !is_known
            {
                let row = format!("{figures} | {} | {} |", other.date(), other.commit);
                rows.push((lever, phase, row));
            }
        }
    }
    if rows.is_empty() {
        return;
    }
    let order: Vec<&str> = crate::catalogue::all().map(|phase| phase.id).collect();
    let place = |phase: &PhaseResult| order.iter().position(|id| *id == phase.id);
    rows.sort_by_key(|(lever, phase, _)| (*lever, place(phase), phase.files));
    out.push_str(LEVERS);
    for (lever, phase, row) in rows {
        let _ = writeln!(out, "| {lever} | {} | {row}", tables::title(phase));
    }
}

const LEVERS: &str = "
## Levers

agentfs with everything that is on by default, and with one lever off, in turns: above 1, the lever pays.

| lever | phase | with | without | without / with | turns | date | commit |
|---|---|---|---|---|---|---|---|
";

/// Everything that is filed.
fn filed(out: &mut String, records: &[(PathBuf, Record)]) {
    out.push_str("\n## Filed results\n\n| date | machine | commit | lever off | file |\n|---|---|---|---|---|\n");
    for (path, record) in records.iter().rev() {
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        let lever = record.ab.as_deref().unwrap_or("");
        let (date, machine) = (record.date(), &record.machine.name);
        let _ = writeln!(
            out,
            "| {date} | {machine} | {} | {lever} | [{file}](../benches/results/{file}) |",
            record.commit
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::tests::sample;

    fn rendered(change: impl FnOnce(&mut Record)) -> (String, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::of(dir.path());
        fs::create_dir_all(dir.path().join("docs")).unwrap();
        let mut record = sample();
        change(&mut record);
        record.file(&places.results).unwrap();
        let causes = "# Causes\n\n## rg_warm\n\nThe mount\nis slow.\n";
        fs::write(dir.path().join("benches/causes.md"), causes).unwrap();
        render(&places).unwrap();
        (fs::read_to_string(dir.path().join("docs/BENCHMARKS.md")).unwrap(), dir)
    }

    #[test]
    fn the_page_has_tables_misses_and_plots_that_exist() {
        let (page, dir) = rendered(|_| {});
        assert!(page.contains("0.052 (0.051–0.054)"), "{page}");
        assert!(page.contains("is missed: 2.25 instead of 1.2. The mount is slow."), "{page}");
        assert!(page.contains("was not measured: dropping the page cache needs root."));
        for (start, _) in page.match_indices("](plots/") {
            let name = page[start + 8..].split(')').next().unwrap();
            let drawing = fs::read_to_string(dir.path().join("docs/plots").join(name)).unwrap();
            assert!(drawing.starts_with("<svg") && drawing.trim_end().ends_with("</svg>"));
        }
        assert_eq!(page.matches("](plots/").count(), 3);
        assert!(!page.contains("## Levers"));
    }

    #[test]
    fn a_miss_without_a_cause_says_so() {
        let (page, _dir) = rendered(|record| record.phases[1].id = "lstat".into());
        assert!(page.contains("The cause has not been measured yet."), "{page}");
    }

    #[test]
    fn a_lever_that_was_compared_has_its_table() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::of(dir.path());
        fs::create_dir_all(dir.path().join("docs")).unwrap();
        assert!(render(&places).is_err(), "there is nothing to render");
        sample().file(&places.results).unwrap();
        let mut other = sample();
        other.ab = Some("no_open".into());
        for phase in &mut other.phases {
            let mut without = phase.of(Subject::Ours).to_vec();
            without.iter_mut().for_each(|seconds| *seconds *= 3.0);
            phase
                .series
                .push(crate::record::Series { subject: Subject::Without, seconds: without });
        }
        other.file(&places.results).unwrap();
        let page = || {
            render(&places).unwrap();
            fs::read_to_string(dir.path().join("docs/BENCHMARKS.md")).unwrap()
        };
        let rows = |page: &str| {
            let rows = page.lines().filter(|line| line.starts_with("| no_open | "));
            rows.map(str::to_owned).collect::<Vec<_>>()
        };
        let first = page();
        assert!(first.contains("## Levers"), "{first}");
        let rows_at_first = rows(&first);
        assert!(rows_at_first.iter().all(|row| row.contains("3.00 (3.00–3.00)")), "{first}");
        // A later comparison of one phase takes the place of that phase alone.
        other.phases.truncate(1);
        other.commit = "a later one".into();
        other.time += 24 * 60 * 60;
        other.file(&places.results).unwrap();
        let second = rows(&page());
        assert_eq!(second.len(), rows_at_first.len());
        assert!(second[0].ends_with("| a later one |"), "{second:?}");
        assert_eq!(second[1..], rows_at_first[1..]);
    }
}
