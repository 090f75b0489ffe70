//! The initiator's counters: last accepted + 1 + (attempt mod 16), so that no number of failed attempts leaves the
//! responder's window (PROTOCOL 5).

use std::collections::HashMap;

use openred_proto::id::LinkId;
use openred_proto::limits::TAG_ATTEMPTS;

/// Counters of the REQUESTs that this node sends, per link. One entry per live link.
#[derive(Debug, Default)]
pub(crate) struct Attempts(HashMap<LinkId, Counter>);

#[derive(Debug, Default, Clone, Copy)]
struct Counter {
    accepted: u64,
    attempt: u64,
}

impl Attempts {
    /// The counter of the next attempt; `stored` is the last accepted one as the link store knows it.
    pub(crate) fn next(&mut self, link: LinkId, stored: u64) -> u64 {
        let counter = self.0.entry(link).or_default();
        counter.accept(stored);
        let next = counter.accepted + 1 + counter.attempt % TAG_ATTEMPTS;
        counter.attempt += 1;
        next
    }

    /// A session was opened with `accepted`.
    pub(crate) fn accepted(&mut self, link: LinkId, accepted: u64) {
        self.0.entry(link).or_default().accept(accepted);
    }

    /// The link is gone.
    pub(crate) fn forget(&mut self, link: &LinkId) {
        self.0.remove(link);
    }
}

impl Counter {
    /// Moves the base; attempts that are under way with higher counters keep theirs to themselves.
    fn accept(&mut self, accepted: u64) {
        if accepted > self.accepted {
            self.attempt = self.attempt.saturating_sub(accepted - self.accepted);
            self.accepted = accepted;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_attempts_stay_within_sixteen_and_parallel_ones_differ() {
        let (mut attempts, link) = (Attempts::default(), LinkId::from_bytes([1; 16]));
        let tried: Vec<u64> = (0..200).map(|_| attempts.next(link, 40)).collect();
        assert!(tried.iter().all(|counter| (41..=56).contains(counter)));
        assert_eq!(tried[..16], (41..=56).collect::<Vec<_>>()[..]);

        let mut attempts = Attempts::default();
        assert_eq!([attempts.next(link, 0), attempts.next(link, 0), attempts.next(link, 0)], [1, 2, 3]);
        attempts.accepted(link, 1);
        assert_eq!(attempts.next(link, 1), 4, "2 and 3 are still under way");
        attempts.accepted(link, 4);
        assert_eq!(attempts.next(link, 0), 5);
        attempts.forget(&link);
        assert_eq!(attempts.next(link, 0), 1);
    }
}
