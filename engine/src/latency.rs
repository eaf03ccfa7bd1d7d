//! How long operations take, as counts of durations in buckets that grow with the duration.
//!
//! Four buckets for each doubling, from 64 ns to two minutes: a quantile is right within a quarter. Nothing is locked and
//! nothing allocated to count one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Shorter ones share a bucket: the clock is not more exact.
const SHORTEST_LOG2: u32 = 6;
const LONGEST_LOG2: u32 = 37;
const BUCKETS: usize = ((LONGEST_LOG2 - SHORTEST_LOG2) * 4 + 1) as usize;

/// How long one kind of operation took, each time.
#[derive(Debug)]
pub struct Latency {
    counts: [AtomicU64; BUCKETS],
}

impl Default for Latency {
    fn default() -> Self {
        Self { counts: [const { AtomicU64::new(0) }; BUCKETS] }
    }
}

impl Latency {
    /// Counts one that took so long.
    pub fn record(&self, took: Duration) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(nanoseconds)].fetch_add(1, Ordering::Relaxed);
    }

    /// For each bucket in which something was counted, in rising order: below how many nanoseconds, and how many.
    /// What is counted meanwhile may be missing.
    pub fn snapshot(&self) -> Vec<(u64, u64)> {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed)).enumerate();
        counts.filter(|(_, count)| *count > 0).map(|(at, count)| (below(at), count)).collect()
    }
}

/// Below how many nanoseconds the share `quantile`, from 0 to 1, of what `snapshot` tells was done; `None` if that is
/// nothing.
pub fn quantile(snapshot: &[(u64, u64)], quantile: f64) -> Option<u64> {
    let all: u64 = snapshot.iter().fold(0, |all, (_, count)| all.saturating_add(*count));
    // At least one, and no more than there are.
    let wanted = ((all as f64 * quantile).ceil() as u64).clamp(1, all.max(1));
    let mut seen = 0_u64;
    let mut reached = snapshot.iter().skip_while(|(_, count)| {
        seen = seen.saturating_add(*count);
        seen < wanted
    });
    reached.next().map(|(below, _)| *below)
}

fn bucket(nanoseconds: u64) -> usize {
    let Some(log2) = nanoseconds.checked_ilog2().filter(|log2| *log2 >= SHORTEST_LOG2) else {
        return 0;
    };
    if log2 >= LONGEST_LOG2 {
        return BUCKETS - 1;
    }
    let quarter = (nanoseconds >> (log2 - 2)) & 3;
    ((log2 - SHORTEST_LOG2) * 4 + 1) as usize + quarter as usize
}

/// The upper end of a bucket; all above are in the last one.
fn below(bucket: usize) -> u64 {
    let Some(at) = (bucket as u64).checked_sub(1) else { return 1 << SHORTEST_LOG2 };
    (4 + at % 4 + 1) << (u64::from(SHORTEST_LOG2) + at / 4 - 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_duration_is_below_the_end_of_its_bucket_and_not_below_the_one_before() {
        let powers = (0..63).map(|log2| 1_u64 << log2);
        for base in powers {
            for nanoseconds in [base - 1, base, base + 1, base + base / 4, base + base / 3 * 2] {
                let at = bucket(nanoseconds);
                assert!(at == BUCKETS - 1 || nanoseconds < below(at), "{nanoseconds} in {at}");
                assert!(at == 0 || nanoseconds >= below(at - 1), "{nanoseconds} in {at}");
            }
        }
        assert_eq!(below(0), 64);
        assert_eq!((below(1), below(4), below(5)), (80, 128, 160));
    }

    #[test]
    fn quantiles_are_ends_of_buckets() {
        let latency = Latency::default();
        assert_eq!(quantile(&latency.snapshot(), 0.5), None);
        for microseconds in 1..=100 {
            latency.record(Duration::from_micros(microseconds));
        }
        let snapshot = latency.snapshot();
        assert_eq!(snapshot.iter().map(|(_, count)| count).sum::<u64>(), 100);
        for (share, exact) in [(0.0, 1_000), (0.5, 50_000), (0.99, 99_000), (1.0, 100_000)] {
            let found = quantile(&snapshot, share).unwrap();
            assert!(found > exact && found <= exact * 5 / 4 + 1, "{share}: {found}");
        }
        latency.record(Duration::MAX);
        assert_eq!(quantile(&latency.snapshot(), 1.0), Some(below(BUCKETS - 1)));
    }
}
