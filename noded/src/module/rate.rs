//! Token buckets: how often one of many may do what costs somebody else. Time is an argument.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use openred_module::manifest::Rate;

/// Statements of one module that the node signs: half of what the key process signs for all of them.
const SIGNATURES: Rate = Rate { per_second: 10, burst: 100 };
/// Lines that one module has the node write into its log; many modules at their bound are still slower than the log is read.
const LINES: Rate = Rate { per_second: 2, burst: 50 };

/// A token bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    pub(super) fn full(rate: Rate, now: Instant) -> Self {
        Self { tokens: f64::from(rate.burst), at: now }
    }

    /// When it was last asked.
    pub(super) const fn at(&self) -> Instant {
        self.at
    }

    /// Takes a token, if there is one.
    pub(super) fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let grown = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(rate.per_second);
        (self.tokens, self.at) = ((self.tokens + grown).min(f64::from(rate.burst)), now);
        let has = self.tokens >= 1.0;
        if has {
            self.tokens -= 1.0;
        }
        has
    }
}

/// What one module may have the node do, whichever of its processes asks.
#[derive(Debug)]
pub(super) struct Bounds(Mutex<Counted>);

#[derive(Debug)]
struct Counted {
    signatures: Bucket,
    lines: Bucket,
    /// Lines that were left out since the last one.
    left_out: u64,
}

impl Bounds {
    pub(super) fn new(now: Instant) -> Self {
        let (signatures, lines) = (Bucket::full(SIGNATURES, now), Bucket::full(LINES, now));
        Self(Mutex::new(Counted { signatures, lines, left_out: 0 }))
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether one more statement may be signed.
    pub(super) fn signs(&self, now: Instant) -> bool {
        self.counted().signatures.take(SIGNATURES, now)
    }

    /// Whether one more line may be written, and how many were left out before it.
    pub(super) fn line(&self, now: Instant) -> Option<u64> {
        let mut counted = self.counted();
        if counted.lines.take(LINES, now) {
            return Some(std::mem::take(&mut counted.left_out));
        }
        counted.left_out = counted.left_out.saturating_add(1);
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_bucket_fills_again() {
        let (rate, begun) = (Rate { per_second: 2, burst: 2 }, Instant::now());
        let mut bucket = Bucket::full(rate, begun);
        assert!(bucket.take(rate, begun) && bucket.take(rate, begun) && !bucket.take(rate, begun));
        assert!(bucket.take(rate, begun + Duration::from_millis(500)));
        assert!(!bucket.take(rate, begun + Duration::from_millis(600)));
    }

    #[test]
    fn what_a_module_says_too_often_is_left_out_and_counted() {
        let begun = Instant::now();
        let bounds = Bounds::new(begun);
        let written = (0..1000).filter(|_| bounds.line(begun).is_some()).count();
        assert_eq!(written, 50);
        assert_eq!(bounds.line(begun + Duration::from_millis(500)), Some(950));
        assert_eq!(bounds.line(begun + Duration::from_millis(1000)), Some(0));
        let signed = (0..1000).filter(|_| bounds.signs(begun)).count();
        assert_eq!(signed, 100, "lines and signatures are counted apart");
    }
}
