//! Pauses between attempts: doubled each time, up to a longest. Sans-IO: who waits, and where randomness comes from, is the caller's.

use std::time::Duration;

/// More doublings than this are of no use to anybody, and would overflow in the end.
const DOUBLINGS: u32 = 10;

/// The pause after `attempts` that came to nothing before this one: `first`, doubled so often, `longest` at the most.
#[must_use]
pub fn doubled(first: Duration, longest: Duration, attempts: u32) -> Duration {
    first.saturating_mul(1 << attempts.min(DOUBLINGS)).min(longest)
}

/// Pauses between a first and a longest one, each spread over its second half so that many who lost the same server do not come back in step.
#[derive(Clone, Copy, Debug)]
pub struct BackOff {
    first: Duration,
    longest: Duration,
    attempts: u32,
}

impl BackOff {
    /// From `first` on, up to `longest`.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, attempts: 0 }
    }

    /// It went well: the next pause is the first again.
    pub const fn reset(&mut self) {
        self.attempts = 0;
    }

    /// The next pause; `spread` is any byte.
    pub fn next(&mut self, spread: u8) -> Duration {
        let pause = doubled(self.first, self.longest, self.attempts);
        self.attempts = self.attempts.saturating_add(1);
        pause / 2 + pause / 512 * u32::from(spread)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_limit_and_are_spread_over_their_second_half() {
        let (first, longest) = (Duration::from_millis(500), Duration::from_secs(60));
        let mut back_off = BackOff::new(first, longest);
        let halves: Vec<Duration> = (0..12).map(|_| back_off.next(0)).collect();
        assert!(halves.iter().zip(&halves[1..]).all(|(one, next)| *next == (*one * 2).min(longest / 2)), "{halves:?}");
        assert_eq!((halves[0], halves[11]), (first / 2, longest / 2));
        let most = back_off.next(u8::MAX);
        assert!(most > longest / 100 * 99 && most < longest, "{most:?}");
        back_off.reset();
        assert_eq!(back_off.next(0), first / 2);
        assert_eq!(doubled(first, Duration::MAX, u32::MAX), first * 1024);
    }
}
