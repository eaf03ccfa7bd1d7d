//! What a run found out, as it is filed: one JSON file a run, never overwritten.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::catalogue::{Group, Phase};
use crate::daemon::Memory;
use crate::machine::Machine;
use crate::source::About;

/// The layout of a filed result; another number is refused.
pub const FORMAT: u32 = 1;

/// Whose time it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// Plain git and plain files on the host's file system.
    Native,
    /// agentfs as it comes.
    Ours,
    /// agentfs with one lever off.
    Without,
    /// agentfs with the lever `passthrough` on.
    Passing,
    /// overlayfs over a finished checkout.
    Overlay,
    /// `git worktree add`.
    Worktree,
    /// `cp -a --reflink=auto`.
    Copy,
}

impl Subject {
    /// The name in a table's head.
    pub fn title(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Ours => "agentfs",
            Self::Without => "agentfs without",
            Self::Passing => "agentfs, passthrough",
            Self::Overlay => "overlayfs",
            Self::Worktree => "git worktree",
            Self::Copy => "cp -a",
        }
    }
}

/// One subject's times in a phase, in the order of the repetitions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Series {
    pub subject: Subject,
    /// Seconds for each repetition (a command, or one operation of a loop).
    pub seconds: Vec<f64>,
}

/// How a phase ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Measured,
    Skipped(String),
    Failed(String),
}

/// One phase of a run, with enough about it to be rendered when the catalogue has changed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PhaseResult {
    pub id: String,
    pub group: Group,
    pub title: String,
    pub what: String,
    /// The largest ratio to native that is good enough.
    pub goal: Option<f64>,
    /// The size of the tree, for phases that are measured at several sizes.
    pub files: Option<u64>,
    /// Kernel requests the daemon served in one warm repetition.
    pub requests: Option<u64>,
    /// What a repetition that writes cost our daemon.
    #[serde(default)]
    pub cost: Option<Cost>,
    pub outcome: Outcome,
    pub series: Vec<Series>,
}

impl PhaseResult {
    pub fn new(phase: &Phase, outcome: Outcome, series: Vec<Series>) -> Self {
        Self {
            id: phase.id.to_owned(),
            group: phase.group,
            title: phase.title.to_owned(),
            what: phase.what.to_owned(),
            goal: phase.goal,
            files: None,
            requests: None,
            cost: None,
            outcome,
            series,
        }
    }

    /// The times of one subject; none when it took no part.
    pub fn of(&self, subject: Subject) -> &[f64] {
        let found = self.series.iter().find(|series| series.subject == subject);
        found.map_or(&[], |series| &series.seconds)
    }

    /// Ours against native, repetition by repetition.
    pub fn ratio(&self) -> Option<crate::stats::Summary> {
        crate::stats::ratio(self.of(Subject::Ours), self.of(Subject::Native))
    }

    /// Whether the goal is met; `None` where there is no goal or no figure.
    pub fn met(&self) -> Option<bool> {
        Some(self.ratio()?.median <= self.goal?)
    }
}

/// What a repetition cost our daemon, counted and not timed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Operations of the repetition: of a loop, or one command.
    pub operations: u64,
    /// Kernel requests served.
    pub requests: u64,
    /// Files and directories of the store synced, those of drains included.
    pub syncs: u64,
    /// Bytes on disk by which one operation made the store grow, where that was looked at.
    pub grown: Option<u64>,
}

/// The daemon's memory at one size of tree.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MemoryPoint {
    pub files: u64,
    pub directories: u64,
    /// When the worktree became usable.
    pub usable: Memory,
    /// When everything was ingested and looked at.
    pub settled: Memory,
}

/// What is held in memory when so many agents have read the same tree, in bytes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AgentsPoint {
    pub subject: Subject,
    pub agents: u64,
    /// What each of them has read.
    pub tree: u64,
    /// The daemon's memory but for pages of files.
    pub daemon: u64,
    /// Pages of files that the kernel holds, more than before.
    pub pages: u64,
    /// What the kernel's own objects take, more than before.
    pub slab: u64,
}

/// One run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub format: u32,
    /// Seconds since 1970, when the run began.
    pub time: u64,
    pub machine: Machine,
    /// The commit of the workspace, with `+` when it had changes.
    pub commit: String,
    /// What `agentfs version` says.
    pub agentfs: String,
    /// The levers that agentfs has, and whether they are on.
    pub levers: BTreeMap<String, bool>,
    /// The lever that this run switches off to compare.
    pub ab: Option<String>,
    pub small: bool,
    pub source: About,
    pub phases: Vec<PhaseResult>,
    pub memory: Vec<MemoryPoint>,
    #[serde(default)]
    pub agents: Vec<AgentsPoint>,
}

impl Record {
    /// The day of the run, UTC.
    pub fn date(&self) -> String {
        date(self.time)
    }

    /// Files the record in `dir` under a name of its own and returns the path.
    pub fn file(&self, dir: &Path) -> Result<PathBuf> {
        fs::create_dir_all(dir)?;
        let lever = self.ab.as_ref().map_or_else(String::new, |lever| format!("-without-{lever}"));
        let stem = format!("{}-{}{lever}", self.date(), self.machine.name);
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        for number in 1.. {
            let suffix = if number == 1 { String::new() } else { format!("-{number}") };
            let path = dir.join(format!("{stem}{suffix}.json"));
            match fs::OpenOptions::new().write(true).create_new(true).open(&path) {
                Ok(mut file) => {
                    use std::io::Write;
                    file.write_all(text.as_bytes())?;
                    return Ok(path);
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot create {}", path.display()));
                }
            }
        }
        bail!("{} is full of results", dir.display())
    }

    pub fn load(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("no {}", path.display()))?;
        let value: serde_json::Value = serde_json::from_str(&text)
            .with_context(|| format!("{} is no JSON", path.display()))?;
        let format = value.get("format").and_then(serde_json::Value::as_u64);
        if format != Some(u64::from(FORMAT)) {
            bail!("{} has format {format:?}; this program reads {FORMAT}", path.display());
        }
        serde_json::from_value(value).with_context(|| format!("{} is damaged", path.display()))
    }

    /// Every record filed in `dir`, oldest first.
    pub fn load_all(dir: &Path) -> Result<Vec<(PathBuf, Self)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).with_context(|| format!("no {}", dir.display()))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                let record = Self::load(&path)?;
                found.push((path, record));
            }
        }
        found.sort_by_key(|(_, record)| record.time);
        Ok(found)
    }
}

/// `YYYY-MM-DD` of a time in seconds since 1970.
pub fn date(seconds: u64) -> String {
    let mut days = seconds / 86_400;
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year:04}-{month:02}-{:02}", days + 1)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::catalogue::PHASES;

    /// A tree of which ours holds a copy for each agent, and with passthrough one for all.
    fn agents() -> Vec<AgentsPoint> {
        let of = |subject, agents, pages| AgentsPoint {
            subject,
            agents,
            tree: 200 << 20,
            daemon: 30 << 20,
            pages,
            slab: 1 << 20,
        };
        vec![
            of(Subject::Ours, 1, 250 << 20),
            of(Subject::Ours, 11, 2250 << 20),
            of(Subject::Passing, 1, 250 << 20),
            of(Subject::Passing, 11, 260 << 20),
        ]
    }

    /// A record with two measured phases, one of which misses its goal, and one skipped.
    pub fn sample() -> Record {
        let dir = tempfile::tempdir().unwrap();
        let series = |ours: &[f64], native: &[f64]| {
            vec![
                Series { subject: Subject::Native, seconds: native.to_vec() },
                Series { subject: Subject::Ours, seconds: ours.to_vec() },
            ]
        };
        let phase = |id: &str| PHASES.iter().find(|phase| phase.id == id).unwrap();
        let measured = |id: &str, ours: &[f64], native: &[f64]| {
            PhaseResult::new(phase(id), Outcome::Measured, series(ours, native))
        };
        let memory = |resident| Memory { resident, anonymous: resident / 2, peak: resident * 2 };
        let mut growth = Vec::new();
        for files in [10_000u64, 100_000] {
            let at = |unit: f64| unit * files as f64;
            let mut point = measured("growth_usable", &[at(1e-6)], &[at(8e-5)]);
            point.files = Some(files);
            growth.push(point);
        }
        let mut phases = vec![
            measured("clone_usable", &[0.02, 0.021, 0.022], &[0.4, 0.4, 0.4]),
            measured("rg_warm", &[0.08, 0.09, 0.1], &[0.04, 0.04, 0.04]),
            PhaseResult::new(
                phase("rg_cold"),
                Outcome::Skipped("dropping the page cache needs root".into()),
                Vec::new(),
            ),
        ];
        phases.append(&mut growth);
        Record {
            format: FORMAT,
            time: 1_795_000_000,
            machine: Machine::look(dir.path(), Some("box-2c")).unwrap(),
            commit: "0123456".into(),
            agentfs: "agentfs 0.1.0".into(),
            levers: BTreeMap::from([("no_open".into(), true), ("prewarm".into(), false)]),
            ab: None,
            small: false,
            source: About {
                name: "sample".into(),
                head: "0".repeat(40),
                commits: 3,
                objects: 10,
                files: 5,
                directories: 2,
                bytes: 1000,
            },
            phases,
            agents: agents(),
            memory: [10_000, 100_000]
                .map(|files| MemoryPoint {
                    files,
                    directories: files / 12,
                    usable: memory(20 << 20),
                    settled: memory((20 << 20) + files * 50),
                })
                .to_vec(),
        }
    }

    #[test]
    fn dates_are_civil() {
        assert_eq!(date(0), "1970-01-01");
        assert_eq!(date(951_782_400), "2000-02-29");
        assert_eq!(date(1_735_689_599), "2024-12-31");
        assert_eq!(date(1_795_000_000), "2026-11-18");
    }

    #[test]
    fn a_result_is_filed_once_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let record = sample();
        let first = record.file(dir.path()).unwrap();
        let second = record.file(dir.path()).unwrap();
        assert!(first.ends_with("2026-11-18-box-2c.json"), "{}", first.display());
        assert!(second.ends_with("2026-11-18-box-2c-2.json"), "{}", second.display());
        let back = Record::load(&first).unwrap();
        assert_eq!(back.phases[0].series, record.phases[0].series);
        assert_eq!(back.phases[0].met(), Some(true));
        assert_eq!(back.phases[1].met(), Some(false));
        assert_eq!(back.phases[2].met(), None);
        assert_eq!(Record::load_all(dir.path()).unwrap().len(), 2);
    }

    #[test]
    fn another_format_is_refused_by_number() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        fs::write(&path, r#"{"format": 99}"#).unwrap();
        let shown = Record::load(&path).unwrap_err().to_string();
        assert!(shown.contains("99"), "{shown}");
    }
}
