//! Small files: created, appended to, unpacked, built, and at the very end deleted.

use std::path::Path;

use anyhow::{Result, ensure};

use super::{Done, Stage, Step, Turn};
use crate::process::Run;
use crate::projects;
use crate::writing::{Kind, Task, small};

pub const CREATING: &[Step] = &[
    Step { id: "create", feeds: &["unlink"], run: create },
    Step { id: "append", feeds: &[], run: append },
    Step { id: "append_synced", feeds: &[], run: append_synced },
    Step { id: "writers_1", feeds: &[], run: |stage, turn| writers(stage, turn, 1) },
    Step { id: "writers_2", feeds: &[], run: |stage, turn| writers(stage, turn, 2) },
    Step { id: "writers_4", feeds: &[], run: |stage, turn| writers(stage, turn, 4) },
    Step { id: "writers_8", feeds: &[], run: |stage, turn| writers(stage, turn, 8) },
    Step { id: "untar", feeds: &["rm_rf"], run: untar },
];

pub const BUILDING: &[Step] = &[
    Step { id: "cargo_build", feeds: &[], run: cargo_build },
    Step { id: "make", feeds: &[], run: make },
];

pub const DELETING: &[Step] =
    &[Step { id: "unlink", feeds: &[], run: unlink }, Step { id: "rm_rf", feeds: &[], run: rm_rf }];

fn create(stage: &Stage<'_>, turn: &Turn<'_>) -> Result<Done> {
    let task = Task::new(Kind::Create, stage.lab.sizes.written, turn.seed());
    let tally = turn.measure(stage, &turn.fresh("create")?, &task)?;
    // Now and not when it is their turn: then nothing may be created any more.
    small::make_empty(&turn.fresh("empty")?, &task)?;
    Ok(Done::tally(&tally))
}

fn unlink(stage: &Stage<'_>, turn: &Turn<'_>) -> Result<Done> {
    let task = Task::new(Kind::Unlink, stage.lab.sizes.written, turn.seed());
    Ok(Done::tally(&turn.measure(stage, &turn.dir.join("empty"), &task)?))
}

fn append(stage: &Stage<'_>, turn: &Turn<'_>) -> Result<Done> {
    let task = Task::new(Kind::Append, stage.lab.sizes.written, turn.seed() << 16);
    Ok(Done::tally(&turn.measure(stage, &turn.fresh("append")?, &task)?))
}

fn append_synced(stage: &Stage<'_>, turn: &Turn<'_>) -> Result<Done> {
    let task = Task::new(Kind::Synced, stage.lab.sizes.synced, turn.seed() << 24);
    let tally = turn.measure(stage, &turn.fresh("synced")?, &task)?;
    Ok(Done { syncs: tally.operations, ..Done::tally(&tally) })
}

fn writers(stage: &Stage<'_>, turn: &Turn<'_>, threads: u64) -> Result<Done> {
    let seed = (turn.seed() << 32) + threads;
    let task = Task::new(Kind::CreateThreads, stage.lab.sizes.written, seed);
    let dir = turn.fresh(&format!("writers-{threads}"))?;
    Ok(Done::tally(&turn.measure(stage, &dir, &Task { threads, ..task })?))
}

fn untar(stage: &Stage<'_>, turn: &Turn<'_>) -> Result<Done> {
    let dir = turn.fresh("tree")?;
    let unpack = || Run::new("tar").arg("-xf").arg(&stage.archive).cwd(&dir).ok();
    let answer = turn.timed(stage, unpack)?;
    let shown = ["-type", "d", "-printf", "%P %m\n", "-o", "-printf", "%P %l %m %s\n"];
    let listing = Run::new("find").arg(".").args(shown).cwd(&dir).ok()?.text();
    let mut lines: Vec<&str> = listing.lines().collect();
    lines.sort_unstable();
    stage.agree(turn, "what was unpacked", lines.join("\n"))?;
    Ok(Done::command(&answer))
}

fn rm_rf(stage: &Stage<'_>, turn: &Turn<'_>) -> Result<Done> {
    let dir = turn.dir.join("tree");
    ensure!(dir.exists(), "{} is not there", dir.display());
    let answer = turn.timed(stage, || Run::new("rm").arg("-rf").arg(&dir).ok())?;
    ensure!(!dir.exists(), "{} is still there", dir.display());
    Ok(Done::command(&answer))
}

fn cargo_build(stage: &Stage<'_>, turn: &Turn<'_>) -> Result<Done> {
    let dir = turn.fresh("crate")?;
    let expected = projects::rust_crate(&dir)?;
    let build = Run::new("cargo").args(["build", "--offline", "--quiet"]).cwd(&dir);
    // Nothing that the user or a cargo above has set may move what is built.
    let build = build.env("CARGO_HOME", &stage.cargo_home).env("CARGO_TARGET_DIR", "target");
    let build = build.without(&["RUSTFLAGS", "CARGO_BUILD_TARGET", "RUSTC_WRAPPER"]);
    let answer = turn.timed(stage, || build.ok())?;
    assert_prints(&dir.join("target/debug/built"), &expected)?;
    Ok(Done::command(&answer))
}

fn make(stage: &Stage<'_>, turn: &Turn<'_>) -> Result<Done> {
    let dir = turn.fresh("c")?;
    let expected = projects::c_project(&dir)?;
    let make = Run::new("make").args(["--silent", "-j2"]).cwd(&dir);
    let make = make.without(&["MAKEFLAGS", "CFLAGS", "CC"]);
    let answer = turn.timed(stage, || make.ok())?;
    assert_prints(&dir.join("built"), &expected)?;
    Ok(Done::command(&answer))
}

/// What was built works.
fn assert_prints(program: &Path, expected: &str) -> Result<()> {
    let printed = Run::new(program).ok()?.text();
    ensure!(printed == expected, "{} prints {printed}, not {expected}", program.display());
    Ok(())
}
