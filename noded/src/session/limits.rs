//! What ends a session: the protocol's limits (PROTOCOL 6), or lower ones that an operator sets; and when the next session is due.
//!
//! A lower limit holds for what this node begins. Of the peer, who may know none, requests are taken up to the protocol's
//! numbers and bytes, and for the set life and a minute.

use std::time::Duration;

use openred_proto::checked::session::Side;
use openred_proto::limits::{SESSION_BYTES, SESSION_LIFE, SESSION_REQUESTS};

/// A receiver still takes requests this long after the end of life: the two ends did not start their clocks together.
const RECEIVER_GRACE: Duration = Duration::from_secs(60);
/// Parts that a limit is counted in.
const PARTS: u64 = 16;
/// The next session is due when so many parts of a limit are used up: by its initiator first, so that the two seldom meet half-way;
/// by the responder when that has not come about.
const DUE_INITIATOR: u64 = 14;
/// See [`DUE_INITIATOR`].
const DUE_RESPONDER: u64 = 15;

/// When a session of this node ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    /// Time.
    pub life: Duration,
    /// Requests that one side begins.
    pub requests: u64,
    /// Bytes of bodies and heads, both ways together.
    pub bytes: u64,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self { life: SESSION_LIFE, requests: SESSION_REQUESTS, bytes: SESSION_BYTES }
    }
}

/// What of a session is used up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) age: Duration,
    /// Requests that this side began.
    pub(crate) begun: u64,
    /// Requests of the peer that were taken.
    pub(crate) taken: u64,
    pub(crate) bytes: u64,
}

impl SessionLimits {
    /// None above the protocol's.
    pub(crate) fn capped(self) -> Self {
        let most = Self::default();
        Self {
            life: self.life.min(most.life),
            requests: self.requests.min(most.requests),
            bytes: self.bytes.min(most.bytes),
        }
    }

    /// Whether this side may begin requests.
    pub(crate) fn is_live(&self, used: &Used) -> bool {
        used.age < self.life && used.begun < self.requests && used.bytes < self.bytes
    }

    /// Whether requests of the peer may begin: it may have opened the session a little later than this node.
    pub(crate) fn is_receiving(&self, age: Duration) -> bool {
        age < self.life + RECEIVER_GRACE
    }

    /// Whether the next session should be opened in the background.
    pub(crate) fn is_renewal_due(&self, side: Side, used: &Used) -> bool {
        let parts = if side == Side::Initiator { DUE_INITIATOR } else { DUE_RESPONDER };
        // The protocol's limits times sixteen fit by far.
        let due = |used: u64, limit: u64| used.saturating_mul(PARTS) >= limit.saturating_mul(parts);
        due(millis(used.age), millis(self.life))
            || due(used.begun.max(used.taken), self.requests)
            || due(used.bytes, self.bytes)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: SessionLimits = SessionLimits { life: Duration::from_secs(160), requests: 16, bytes: 1600 };

    #[test]
    fn each_limit_ends_a_session_and_makes_the_next_one_due_before() {
        let none = Used::default();
        assert!(LIMITS.is_live(&none));
        let ends: [fn(u64) -> Used; 3] = [
            |sixteenths| Used { age: Duration::from_secs(10 * sixteenths), ..Used::default() },
            |sixteenths| Used { begun: sixteenths, ..Used::default() },
            |sixteenths| Used { bytes: 100 * sixteenths, ..Used::default() },
        ];
        for used in ends {
            assert!(LIMITS.is_live(&used(15)) && !LIMITS.is_live(&used(16)));
            for (side, due) in [(Side::Initiator, 14), (Side::Responder, 15)] {
                assert!(!LIMITS.is_renewal_due(side, &used(due - 1)) && LIMITS.is_renewal_due(side, &used(due)));
            }
        }
    }

    #[test]
    fn the_peers_requests_make_the_next_one_due_and_end_nothing() {
        let used = Used { taken: 16, ..Used::default() };
        assert!(LIMITS.is_live(&used) && LIMITS.is_renewal_due(Side::Responder, &used));
        assert!(LIMITS.is_receiving(Duration::from_secs(219)) && !LIMITS.is_receiving(Duration::from_secs(220)));
    }

    #[test]
    fn no_setting_goes_above_the_protocol() {
        let more = SessionLimits { life: Duration::MAX, requests: u64::MAX, bytes: u64::MAX };
        assert_eq!(more.capped(), SessionLimits::default());
        assert_eq!(LIMITS.capped(), LIMITS);
        let last = Used { begun: SESSION_REQUESTS - 1, ..Used::default() };
        assert!(more.capped().is_live(&last) && more.capped().is_renewal_due(Side::Initiator, &last));
        assert!(!more.capped().is_live(&Used { begun: SESSION_REQUESTS, ..Used::default() }));
    }
}
