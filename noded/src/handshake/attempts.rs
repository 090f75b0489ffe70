//! The initiator's counters: last accepted + 1 + (attempt mod 16), so that no number of failed attempts leaves the
//! responder's window (PROTOCOL 5).

use std::collections::HashMap;

use openred_proto::id::LinkId;
use openred_proto::limits::TAG_ATTEMPTS;

/// Counters of the REQUESTs that this node sends, per link. One entry a link that is expected, from [`Attempts::expect`] to
/// [`Attempts::forget`]: a handshake that is still under way when its link ends leaves none behind.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct Attempts(HashMap<LinkId, Counter>);

#[derive(Debug, Default, Clone, Copy)]
struct Counter {
    accepted: u64,
    attempt: u64,
}

impl Attempts {
    /// There is such a link; one that is known keeps its counters.
    pub(crate) fn expect(&mut self, link: LinkId) {
        self.0.entry(link).or_default();
    }

    /// The counter of the next attempt; `stored` is the last accepted one as the link store knows it.
    pub(crate) fn next(&mut self, link: LinkId, stored: u64) -> u64 {
        // Of a link that has ended meanwhile: any will be refused.
        let Some(counter) = self.0.get_mut(&link) else { return stored.saturating_add(1) };
        counter.accept(stored);
        let next = counter.accepted + 1 + counter.attempt % TAG_ATTEMPTS;
        counter.attempt += 1;
        next
    }

    /// A session was opened with `accepted`.
    pub(crate) fn accepted(&mut self, link: LinkId, accepted: u64) {
        if let Some(counter) = self.0.get_mut(&link) {
            counter.accept(accepted);
        }
    }

    /// All that it will go by for a link.
    #[cfg(test)]
    pub(crate) fn sketch(&self, link: &LinkId) -> String {
        format!("{:?}", self.0.get(link))
    }

    /// The link is gone.
    pub(crate) fn forget(&mut self, link: &LinkId) {
        self.0.remove(link);
    }

    /// Links that are counted.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
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
        attempts.expect(link);
        let tried: Vec<u64> = (0..200).map(|_| attempts.next(link, 40)).collect();
        assert!(tried.iter().all(|counter| (41..=56).contains(counter)));
        assert_eq!(tried[..16], (41..=56).collect::<Vec<_>>()[..]);

        let mut attempts = Attempts::default();
        attempts.expect(link);
        assert_eq!([attempts.next(link, 0), attempts.next(link, 0), attempts.next(link, 0)], [1, 2, 3]);
        attempts.accepted(link, 1);
        assert_eq!(attempts.next(link, 1), 4, "2 and 3 are still under way");
        attempts.accepted(link, 4);
        attempts.expect(link);
        assert_eq!(attempts.next(link, 0), 5, "said again of a link that is known, it changes nothing");
        attempts.forget(&link);
        assert_eq!(attempts.next(link, 0), 1);
        attempts.accepted(link, 1);
        assert_eq!((attempts.next(link, 7), attempts.next(link, u64::MAX)), (8, u64::MAX));
        assert_eq!(attempts.len(), 0, "what was under way when the link ended leaves nothing");
    }
}
