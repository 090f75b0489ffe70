//! What one module's calls cost: how many, how many went wrong, how long they took. Counts only, since the node's start.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openred_proto::admin::ModuleStatus;

/// A bucket each doubling of a time, from one microsecond on: the last holds all above 36 minutes.
const BUCKETS: usize = 32;

/// The counts of one module.
#[derive(Debug, Default)]
pub(super) struct Meter {
    calls: AtomicU64,
    errors: AtomicU64,
    refused: AtomicU64,
    micros: AtomicU64,
    longest: AtomicU64,
    times: [AtomicU64; BUCKETS],
    starts: AtomicU64,
}

impl Meter {
    /// Notes a call whose answer's head came after so long.
    pub(super) fn called(&self, took: Duration, failed: bool) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = (micros.max(1).ilog2() as usize).min(BUCKETS - 1);
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.errors.fetch_add(u64::from(failed), Ordering::Relaxed);
        self.micros.fetch_add(micros, Ordering::Relaxed);
        self.longest.fetch_max(micros, Ordering::Relaxed);
        self.times[bucket].fetch_add(1, Ordering::Relaxed);
    }

    /// Notes a call that had no place.
    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that it was started, or taken over.
    pub(super) fn started(&self) {
        self.starts.fetch_add(1, Ordering::Relaxed);
    }

    /// The time within which so many of a hundred were answered, to the next power of two.
    fn within(&self, percent: u64) -> u64 {
        let counts: Vec<u64> = self.times.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let all: u64 = counts.iter().sum();
        let wanted = (all * percent).div_ceil(100);
        let mut seen = 0;
        let reached = counts.iter().position(|count| {
            seen += count;
            wanted > 0 && seen >= wanted
        });
        reached.map_or(0, |bucket| 2 << bucket).min(self.longest.load(Ordering::Relaxed))
    }

    /// For `status`.
    pub(super) fn read(&self, id: &str, state: &str, version: Option<String>) -> ModuleStatus {
        let count = |of: &AtomicU64| of.load(Ordering::Relaxed);
        ModuleStatus {
            id: id.to_owned(),
            version: version.unwrap_or_default(),
            state: state.to_owned(),
            calls: count(&self.calls),
            errors: count(&self.errors),
            refused: count(&self.refused),
            p50_micros: self.within(50),
            p99_micros: self.within(99),
            longest_micros: count(&self.longest),
            total_micros: count(&self.micros),
            starts: count(&self.starts),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_to_the_next_power_of_two() {
        let meter = Meter::default();
        let read = || meter.read("m", "serving", None);
        assert_eq!((read().calls, read().p50_micros, read().p99_micros), (0, 0, 0));
        (0..98).for_each(|_| meter.called(Duration::from_micros(100), false));
        (0..2).for_each(|_| meter.called(Duration::from_millis(5), true));
        let read = read();
        assert_eq!((read.calls, read.errors, read.total_micros), (100, 2, 98 * 100 + 2 * 5000));
        assert_eq!((read.p50_micros, read.p99_micros, read.longest_micros), (128, 5000, 5000));
        meter.called(Duration::MAX, false);
        meter.called(Duration::ZERO, false);
    }
}
