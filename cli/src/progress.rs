//! Progress: counted by workers, shown on a terminal, printed as events, sent to a client.
//!
//! Work reports to a [`Meter`], which costs an atomic addition. Whoever shows it looks at the meter
//! now and then, so the cost of showing does not depend on the number of objects.

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use agentfs_engine::progress::{Phase, Progress};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::protocol::PhaseProgress;

/// The phases in the order in which work goes through them.
const PHASES: [Phase; 7] = [
    Phase::Fetch,
    Phase::Trees,
    Phase::Ingest,
    Phase::Check,
    Phase::Mark,
    Phase::Sweep,
    Phase::Compact,
];
/// Work that is over sooner shows no bar.
const QUIET: Duration = Duration::from_millis(500);
/// How often a meter is looked at.
pub const TICK: Duration = Duration::from_millis(100);
/// A total that is not known.
const UNKNOWN: u64 = u64::MAX;

/// How far every phase is.
#[derive(Debug, Default)]
pub struct Meter {
    phases: [Gauge; PHASES.len()],
}

#[derive(Debug)]
struct Gauge {
    begun: AtomicBool,
    ended: AtomicBool,
    objects: AtomicU64,
    bytes: AtomicU64,
    objects_total: AtomicU64,
    bytes_total: AtomicU64,
}

impl Default for Gauge {
    fn default() -> Self {
        Self {
            begun: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            objects: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            objects_total: AtomicU64::new(UNKNOWN),
            bytes_total: AtomicU64::new(UNKNOWN),
        }
    }
}

impl Gauge {
    fn read(&self, phase: Phase) -> Option<PhaseProgress> {
        let known = |total: &AtomicU64| {
            Some(total.load(Ordering::Relaxed)).filter(|total| *total != UNKNOWN)
        };
        self.begun.load(Ordering::Relaxed).then(|| PhaseProgress {
            phase: phase.to_string(),
            objects: self.objects.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            objects_total: known(&self.objects_total),
            bytes_total: known(&self.bytes_total),
            ended: self.ended.load(Ordering::Relaxed),
        })
    }

    fn set(&self, state: &PhaseProgress) {
        self.objects.store(state.objects, Ordering::Relaxed);
        self.bytes.store(state.bytes, Ordering::Relaxed);
        self.objects_total.store(state.objects_total.unwrap_or(UNKNOWN), Ordering::Relaxed);
        self.bytes_total.store(state.bytes_total.unwrap_or(UNKNOWN), Ordering::Relaxed);
        self.ended.store(state.ended, Ordering::Relaxed);
        self.begun.store(true, Ordering::Relaxed);
    }
}

impl Meter {
    /// The phases that have begun.
    pub fn read(&self) -> Vec<PhaseProgress> {
        PHASES.iter().zip(&self.phases).filter_map(|(phase, gauge)| gauge.read(*phase)).collect()
    }

    /// Takes over what another process has counted; phases that it does not know stay unseen.
    pub fn set(&self, states: &[PhaseProgress]) {
        for state in states {
            let known = PHASES.iter().position(|phase| phase.to_string() == state.phase);
            if let Some(index) = known {
                self.phases[index].set(state);
            }
        }
    }

    fn gauge(&self, phase: Phase) -> &Gauge {
        &self.phases[phase as usize]
    }
}

impl Progress for Meter {
    fn begin(&self, phase: Phase, objects: Option<u64>, bytes: Option<u64>) {
        self.gauge(phase).set(&PhaseProgress {
            phase: phase.to_string(),
            objects: 0,
            bytes: 0,
            objects_total: objects,
            bytes_total: bytes,
            ended: false,
        });
    }

    fn advance(&self, phase: Phase, objects: u64, bytes: u64) {
        let gauge = self.gauge(phase);
        gauge.objects.fetch_add(objects, Ordering::Relaxed);
        gauge.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn end(&self, phase: Phase) {
        self.gauge(phase).ended.store(true, Ordering::Relaxed);
    }
}

/// A progress event of `--json`.
#[derive(Serialize)]
struct Event<'a> {
    event: &'static str,
    #[serde(flatten)]
    state: &'a PhaseProgress,
}

/// What shows the phases as they are now.
type Show = Box<dyn FnMut(&[PhaseProgress]) + Send>;

/// A thread that shows a meter until it is dropped.
pub struct Display {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Display {
    /// Shows `meter` as events on standard output if `json`, else as bars on standard error if that
    /// is a terminal, else not at all.
    pub fn start(meter: Arc<Meter>, json: bool) -> Self {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let show: Show = if json {
            Box::new(print_changes())
        } else if io::stderr().is_terminal() {
            Box::new(draw_bars())
        } else {
            return Self { stop, thread: None };
        };
        let stopped = Arc::clone(&stop);
        // Without a thread there is no display, which is no reason to fail.
        let thread = thread::Builder::new()
            .name("progress".into())
            .spawn(move || watch(&meter, &stopped, show))
            .ok();
        Self { stop, thread }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        *self.stop.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take() {
            // A display that panicked has nothing more to show.
            thread.join().ok();
        }
    }
}

fn watch(meter: &Meter, stop: &(Mutex<bool>, Condvar), mut show: impl FnMut(&[PhaseProgress])) {
    let mut wait = QUIET;
    let mut stopped = stop.0.lock().unwrap_or_else(PoisonError::into_inner);
    while !*stopped {
        let (guard, timeout) =
            stop.1.wait_timeout(stopped, wait).unwrap_or_else(PoisonError::into_inner);
        stopped = guard;
        if timeout.timed_out() {
            show(&meter.read());
            wait = TICK;
        }
    }
    if wait == TICK {
        show(&meter.read());
    }
}

/// Prints the phases that have changed since the last look.
fn print_changes() -> impl FnMut(&[PhaseProgress]) + Send {
    let mut printed: Vec<PhaseProgress> = Vec::new();
    move |states| {
        let mut out = io::stdout().lock();
        for state in states.iter().filter(|state| !printed.contains(state)) {
            let line = serde_json::to_string(&Event { event: "progress", state });
            // Nobody reads events any more: the work goes on regardless.
            line.map(|line| writeln!(out, "{line}")).ok();
        }
        printed = states.to_vec();
    }
}

/// Draws a bar for each phase, with its objects, bytes, rate and the time that it will still take.
fn draw_bars() -> impl FnMut(&[PhaseProgress]) + Send {
    let bars = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
    let mut drawn: Vec<(String, ProgressBar, Instant)> = Vec::new();
    move |states| {
        for state in states {
            let index = drawn.iter().position(|(phase, ..)| *phase == state.phase);
            let index = index.unwrap_or_else(|| {
                let bar = bars.add(ProgressBar::no_length());
                drawn.push((state.phase.clone(), bar, Instant::now()));
                drawn.len() - 1
            });
            let (_, bar, since) = &drawn[index];
            draw(bar, state, since.elapsed());
        }
    }
}

fn draw(bar: &ProgressBar, state: &PhaseProgress, elapsed: Duration) {
    if bar.is_finished() {
        return;
    }
    // Bytes tell more of the time to come than objects do.
    let (done, total) = match state.bytes_total {
        Some(bytes) if bytes > 0 => (state.bytes, Some(bytes)),
        _ => (state.objects, state.objects_total),
    };
    let template = match total {
        Some(_) => "{prefix:>8} [{bar:24}] {percent:>3}% {msg}  ETA {eta}",
        None => "{prefix:>8} {spinner} {msg}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    if let Some(total) = total {
        bar.set_length(total);
    }
    bar.set_position(done);
    bar.set_prefix(state.phase.clone());
    bar.set_message(describe(state, elapsed));
    if state.ended {
        bar.finish();
    } else {
        bar.tick();
    }
}

fn describe(state: &PhaseProgress, elapsed: Duration) -> String {
    let mut text = match state.objects_total {
        Some(total) => format!("{}/{total} objects", state.objects),
        None => format!("{} objects", state.objects),
    };
    if state.bytes > 0 {
        let rate = (state.bytes as f64 / elapsed.as_secs_f64().max(0.001)) as u64;
        text += &format!(", {}, {}/s", human_bytes(state.bytes), human_bytes(rate));
    }
    text
}

/// A number of bytes for people.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meter_reads_the_same_at_the_other_end() {
        let meter = Meter::default();
        assert!(meter.read().is_empty());
        meter.begin(Phase::Trees, Some(10), None);
        meter.advance(Phase::Trees, 3, 40);
        meter.begin(Phase::Ingest, None, Some(5));
        meter.end(Phase::Trees);
        let read = meter.read();
        assert_eq!(read.len(), 2);
        assert_eq!((read[0].objects, read[0].bytes, read[0].objects_total), (3, 40, Some(10)));
        assert!(read[0].ended && !read[1].ended);
        let other = Meter::default();
        other.set(&read);
        assert_eq!(other.read(), read);
    }

    #[test]
    fn every_phase_has_its_own_gauge() {
        for (index, phase) in PHASES.iter().enumerate() {
            assert_eq!(*phase as usize, index);
        }
    }

    #[test]
    fn bytes_are_written_for_people() {
        assert_eq!(human_bytes(1023), "1023 B");
        assert_eq!(human_bytes(1536), "1.5 KiB");
        assert_eq!(human_bytes(43 << 20), "43.0 MiB");
        assert_eq!(human_bytes(u64::MAX), "16384.0 PiB");
    }

    #[test]
    fn a_display_ends_with_its_work() {
        let start = Instant::now();
        drop(Display::start(Arc::new(Meter::default()), true));
        assert!(start.elapsed() < QUIET);
    }
}
