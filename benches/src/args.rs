//! The command line of `scoreboard`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};

use crate::agentfs;
use crate::catalogue;
use crate::lab::{Lab, Sizes, say};
use crate::loops::{self, Loop};
use crate::machine::Machine;
use crate::phases::{self, Book};
use crate::process::Run;
use crate::record::{FORMAT, Record, Subject};
use crate::report::{self, Places, tables};
use crate::source;
use crate::writing::Task;

/// Fewest counted turns of a run that may be recorded.
const PAIRS_MIN: usize = 7;

/// Measures agentfs beside native git, overlayfs and copies, and renders the scoreboard.
#[derive(Parser)]
#[command(name = "scoreboard", args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    /// A run of seconds over generated trees; nothing is filed.
    #[arg(long)]
    small: bool,
    /// Measure only this phase or group (may be repeated); nothing is filed.
    #[arg(long, value_name = "NAME")]
    phase: Vec<String>,
    /// Also measure agentfs with this lever off, and compare.
    #[arg(long, value_name = "LEVER")]
    ab: Option<String>,
    /// The repository or bundle to clone; default: a generated one.
    #[arg(long, value_name = "PATH")]
    source: Option<PathBuf>,
    /// The binary to measure; default: `agentfs` beside this program.
    #[arg(long, value_name = "PATH")]
    agentfs: Option<PathBuf>,
    /// Where to work; must be on the file system to be measured. Default: beside the build.
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Where results and docs are.
    #[arg(long, value_name = "DIR", default_value = ".")]
    workspace: PathBuf,
    /// Counted turns, after the warm-ups.
    #[arg(long, value_name = "N", default_value_t = 9)]
    pairs: usize,
    /// Largest generated tree, in files.
    #[arg(long, value_name = "FILES")]
    growth_max: Option<u64>,
    /// Name of this machine in file names; default: processor and cores.
    #[arg(long, value_name = "NAME")]
    machine: Option<String>,
    /// Measure on a busy machine too; nothing is filed.
    #[arg(long)]
    unrecorded: bool,
    /// File the result of a run of some phases too.
    #[arg(long)]
    file: bool,
    /// Delete nothing at the end.
    #[arg(long)]
    keep: bool,
    /// Show the phases and end.
    #[arg(long)]
    list: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Render docs/BENCHMARKS.md again from the filed results.
    Render {
        /// Where results and docs are.
        #[arg(long, value_name = "DIR", default_value = ".")]
        workspace: PathBuf,
    },
    /// One timed loop in the current directory; the program starts this itself.
    #[command(hide = true)]
    Loop { kind: Loop, list: PathBuf, operations: u64 },
    /// One timed loop that writes, in the current directory; the program starts this itself.
    #[command(hide = true)]
    Write(Task),
}

/// Runs the program; the exit status is 1 when something failed and 2 for a wrong command line.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.command {
        Some(Command::Render { workspace }) => report::render(&Places::of(&workspace)),
        Some(Command::Loop { kind, list, operations }) => loops::run_child(kind, &list, operations),
        Some(Command::Write(task)) => task.run_child(),
        None if args.list => list(),
        None => measure(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("scoreboard: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn list() -> Result<()> {
    let mut out = std::io::stdout().lock();
    for phase in catalogue::all() {
        writeln!(out, "{:<10} {:<20} {}", phase.group.name(), phase.id, phase.title)?;
    }
    Ok(())
}

/// One run: look at the machine, measure, clean up, file and render.
fn measure(args: Args) -> Result<()> {
    let mut book = Book::new(args.phase.clone())?;
    let recorded = !args.small && !args.unrecorded && (args.phase.is_empty() || args.file);
    if recorded && args.pairs < PAIRS_MIN {
        bail!("a recorded run needs at least {PAIRS_MIN} counted turns");
    }
    let binary = agentfs::binary(args.agentfs.clone())?;
    // Permissions are part of the answers that are compared.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let mut sizes = if args.small { Sizes::small() } else { Sizes::full(args.pairs) };
    if let Some(bound) = args.growth_max {
        sizes.growth.retain(|(files, _)| *files <= bound);
    }
    let work = args.work.clone().map_or_else(default_work, Ok)?;
    let mut lab = Lab::new(&work, binary, sizes, args.ab.clone())?;
    if args.keep {
        lab.keep();
    }
    let measured = record(&args, recorded, &lab, &mut book);
    lab.clean_up()?;
    let record = measured?;
    write_tables(&record)?;
    if recorded {
        let places = Places::of(&args.workspace);
        say(&format!("filed: {}", record.file(&places.results)?.display()));
        if record.ab.is_none() || places.results.exists() {
            report::render(&places)?;
        }
    }
    match book.failures() {
        0 => Ok(()),
        count => bail!("{count} phases failed"),
    }
}

/// Everything between the preparation and the cleaning up.
fn record(args: &Args, recorded: bool, lab: &Lab, book: &mut Book) -> Result<Record> {
    let mut machine = Machine::look(&lab.dir, args.machine.as_deref())?;
    if recorded {
        machine.demand_quiet()?;
        machine.settle(&lab.dir)?;
    }
    let time = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let source = match &args.source {
        Some(path) => source::given(&lab.sources, path)?,
        None => lab.generated(&lab.sizes.tree)?,
    };
    let version =
        Run::new(&lab.binary).arg("version").ok().context("this is no agentfs binary")?.text();
    let levers = levers(lab)?;
    phases::run(lab, &source, book);
    Ok(Record {
        format: FORMAT,
        time,
        machine,
        commit: commit(&args.workspace),
        agentfs: version.lines().next().unwrap_or_default().to_owned(),
        levers,
        ab: args.ab.clone(),
        small: args.small,
        source: source.about,
        phases: book.phases.clone(),
        memory: book.memory.clone(),
        agents: book.agents.clone(),
    })
}

/// The levers as they come. The one to compare must exist, be on, and really go off.
fn levers(lab: &Lab) -> Result<BTreeMap<String, bool>> {
    let ask = |subject| lab.store(subject).levers();
    let levers = ask(Subject::Ours)?;
    if let Some(lever) = &lab.ab {
        let position = |levers: &BTreeMap<String, bool>| levers.get(lever).copied();
        if position(&levers) != Some(true) {
            bail!("there is no lever `{lever}` that is on: {}", tables::levers(&levers));
        }
        if position(&ask(Subject::Without)?) != Some(false) {
            bail!("the lever `{lever}` stays on: there is nothing to compare");
        }
    }
    Ok(levers)
}

/// The tables on standard output.
fn write_tables(record: &Record) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", report::summary(record))?;
    Ok(())
}

/// The commit of the workspace, with `+` when files were changed.
fn commit(workspace: &Path) -> String {
    let git = |args: &[&str]| Run::git(workspace).args(args).ok().map(|answer| answer.text());
    let head = git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|_| "none".to_owned());
    let changed = git(&["status", "--porcelain"]).is_ok_and(|changes| !changes.is_empty());
    if changed { head + "+" } else { head }
}

/// A directory beside the build, so on the file system where the user works.
fn default_work() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.parent().and_then(Path::parent).context("this program has no place")?;
    Ok(target.join("scoreboard"))
}
