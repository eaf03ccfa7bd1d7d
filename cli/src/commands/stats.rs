//! `agentfs stats`

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use agentfs_engine::latency::quantile;

use crate::client::Client;
use crate::environment::Environment;
use crate::error::Result;
use crate::layout::Layout;
use crate::output::Output;
use crate::progress::Meter;
use crate::protocol::{Durations, Stats, method};

/// Arguments of `agentfs stats`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print again every second what has been counted since
    #[arg(long)]
    watch: bool,
}

/// Prints what the daemon has counted.
///
/// # Errors
/// As [`Client::connect_or_start`] and [`Client::request`].
pub fn run(args: &Args, output: Output) -> Result<u8> {
    let environment = Environment::read()?;
    let layout = Layout::new(environment.store.clone());
    let mut client = Client::connect_or_start(&layout, &environment)?;
    let mut stats: Stats = client.request(method::STATS, &(), &Meter::default())?;
    output.result(&stats, |out| show(out, &stats, None))?;
    if !args.watch {
        return Ok(0);
    }
    loop {
        thread::sleep(Duration::from_secs(1));
        let next: Stats = client.request(method::STATS, &(), &Meter::default())?;
        output.result(&next, |out| {
            writeln!(out)?;
            show(out, &next, Some(&stats))
        })?;
        stats = next;
    }
}

/// Prints all counters, or the change of those that have changed since `before`.
fn show(out: &mut dyn Write, now: &Stats, before: Option<&Stats>) -> io::Result<()> {
    section(out, "store", &now.store, before.map(|stats| &stats.store))?;
    section(out, "work of the store", &now.counters, before.map(|stats| &stats.counters))?;
    section(out, "daemon", &now.process, before.map(|stats| &stats.process))?;
    durations(out, "calls", &now.calls, before.map(|stats| &stats.calls))?;
    for worktree in &now.worktrees {
        let earlier =
            before.and_then(|stats| stats.worktrees.iter().find(|one| one.dir == worktree.dir));
        let dir = worktree.dir.0.display();
        section(out, &dir.to_string(), &worktree.counters, earlier.map(|one| &one.counters))?;
        let heading = format!("time of the daemon for {dir}");
        durations(out, &heading, &worktree.latencies, earlier.map(|one| &one.latencies))?;
        if !worktree.outbox.is_empty() {
            let heading = format!("outbox of {dir}");
            section(out, &heading, &worktree.outbox, earlier.map(|one| &one.outbox))?;
        }
    }
    Ok(())
}

fn section(
    out: &mut dyn Write,
    heading: &str,
    now: &BTreeMap<String, u64>,
    before: Option<&BTreeMap<String, u64>>,
) -> io::Result<()> {
    writeln!(out, "{heading}")?;
    for (name, value) in now {
        match before.map(|before| before.get(name).copied().unwrap_or(0)) {
            None => writeln!(out, "  {:<24} {value}", name.replace('_', " "))?,
            Some(earlier) if earlier == *value => {}
            Some(earlier) => {
                let change = i128::from(*value) - i128::from(earlier);
                writeln!(out, "  {:<24} {value} ({change:+})", name.replace('_', " "))?;
            }
        }
    }
    Ok(())
}

/// Prints how long things took, or those that were done since `before`.
fn durations(
    out: &mut dyn Write,
    heading: &str,
    now: &BTreeMap<String, Durations>,
    before: Option<&BTreeMap<String, Durations>>,
) -> io::Result<()> {
    let since = |name: &String, now: &Durations| {
        let before = before.and_then(|before| before.get(name)).map_or(&[][..], Vec::as_slice);
        let earlier = |below: u64| before.iter().find(|(end, _)| *end == below).map_or(0, |b| b.1);
        let left = now.iter().map(|(below, count)| (*below, count.saturating_sub(earlier(*below))));
        left.filter(|(_, count)| *count > 0).collect::<Durations>()
    };
    let lines = now.iter().map(|(name, now)| (name, since(name, now)));
    let mut lines = lines.filter(|(_, durations)| !durations.is_empty()).peekable();
    if lines.peek().is_none() {
        return Ok(());
    }
    writeln!(out, "{heading}")?;
    for (name, durations) in lines {
        let count = durations.iter().fold(0_u64, |all, (_, count)| all.saturating_add(*count));
        let below =
            |share| quantile(&durations, share).map(Duration::from_nanos).unwrap_or_default();
        let [half, most, all] = [0.5, 0.99, 1.0].map(below);
        let name = name.replace('_', " ");
        writeln!(
            out,
            "  {name:<24} {count}: half below {half:.0?}, 99% {most:.0?}, all {all:.0?}"
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_look_shows_what_has_changed() {
        let counters = |read| BTreeMap::from([("lookup".into(), 7), ("read".into(), read)]);
        let mut out = Vec::new();
        section(&mut out, "/w", &counters(9), Some(&counters(4))).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("read") && text.contains("9 (+5)"), "{text}");
        assert!(!text.contains("lookup"), "{text}");
    }

    #[test]
    fn durations_are_told_as_quantiles_of_what_is_new() {
        let durations_of = |quick| BTreeMap::from([("read".into(), vec![(80, quick), (160, 1)])]);
        let mut out = Vec::new();
        durations(&mut out, "times", &durations_of(9), None).unwrap();
        let text = String::from_utf8(std::mem::take(&mut out)).unwrap();
        assert!(text.contains("10: half below 80ns, 99% 160ns, all 160ns"), "{text}");
        durations(&mut out, "times", &durations_of(12), Some(&durations_of(9))).unwrap();
        let text = String::from_utf8(std::mem::take(&mut out)).unwrap();
        assert!(text.contains("3: half below 80ns, 99% 80ns, all 80ns"), "{text}");
        durations(&mut out, "times", &durations_of(9), Some(&durations_of(9))).unwrap();
        assert!(out.is_empty());
    }
}
