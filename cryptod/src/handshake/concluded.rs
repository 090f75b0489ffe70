//! Handshakes that ended a moment ago: what this node may sign of them, once each (`audited` mode, PROTOCOL 5).
//!
//! In: every handshake that ends, because only afterwards is it said whether both sides want it signed. Out: role, hash and peer, to the
//! one call that signs. So nobody who asks for a signature chooses a byte of it, and none is given for a session that is no more new.

use std::collections::VecDeque;

use openred_proto::checked::session::Side;
use openred_proto::id::{HandshakeId, LinkId, NodeId, UnixMillis};
use openred_proto::limits::{HALF_OPEN, HALF_OPEN_LIFE};

use super::Refusal;

/// How many are kept, the newest: as many as may be half-open, some 120 KiB.
const KEPT: usize = HALF_OPEN;

/// One that ended.
#[derive(Debug)]
pub(crate) struct Concluded {
    pub(super) id: HandshakeId,
    pub(super) link: LinkId,
    pub(super) since: UnixMillis,
    pub(crate) peer: NodeId,
    /// This node's.
    pub(crate) role: Side,
    pub(crate) hash: [u8; 32],
}

/// The newest, oldest first.
#[derive(Default)]
pub(super) struct Conclusions(VecDeque<Concluded>);

impl Conclusions {
    pub(super) const fn new() -> Self {
        Self(VecDeque::new())
    }

    pub(super) fn push(&mut self, concluded: Concluded) {
        if self.0.len() >= KEPT {
            self.0.pop_front();
        }
        self.0.push_back(concluded);
    }

    /// Takes one out: nothing is signed twice.
    ///
    /// # Errors
    /// [`Refusal::NotWaiting`].
    pub(super) fn take(&mut self, now: UnixMillis, id: HandshakeId) -> Result<Concluded, Refusal> {
        self.expire(now);
        let place = self.0.iter().position(|concluded| concluded.id == id).ok_or(Refusal::NotWaiting)?;
        self.0.remove(place).ok_or(Refusal::NotWaiting)
    }

    pub(super) fn forget(&mut self, link: LinkId) {
        self.0.retain(|concluded| concluded.link != link);
    }

    /// Drops what is over its time, and all that a clock which was set back makes look as if it were to come.
    pub(super) fn expire(&mut self, now: UnixMillis) {
        self.0.retain(|concluded| now >= concluded.since && now < concluded.since.plus(HALF_OPEN_LIFE));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_000_000);

    fn concluded(number: usize, since: UnixMillis) -> Concluded {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        Concluded {
            id: HandshakeId::from_bytes(bytes),
            link: LinkId::from_bytes([(number % 2) as u8; 16]),
            since,
            peer: NodeId::from_bytes([9; 32]),
            role: Side::Initiator,
            hash: [number as u8; 32],
        }
    }

    #[test]
    fn each_is_taken_once_within_ten_seconds_and_the_oldest_makes_room() {
        let mut kept = Conclusions::new();
        for number in 0..=KEPT {
            kept.push(concluded(number, NOW));
        }
        let id = |number| concluded(number, NOW).id;
        assert_eq!(kept.0.len(), KEPT);
        assert!(kept.take(NOW, id(0)).is_err(), "it made room");
        assert_eq!(kept.take(NOW, id(7)).unwrap().hash, [7; 32]);
        assert!(kept.take(NOW, id(7)).is_err(), "twice");
        kept.forget(LinkId::from_bytes([1; 16]));
        assert!(kept.take(NOW, id(9)).is_err(), "its link is gone");
        assert!(kept.take(UnixMillis(NOW.0 + 9_999), id(8)).is_ok());
        assert!(kept.take(NOW.plus(HALF_OPEN_LIFE), id(10)).is_err(), "late");
        assert_eq!(kept.0.len(), 0);
        kept.push(concluded(1, NOW));
        assert!(kept.take(UnixMillis(NOW.0 - 1), id(1)).is_err(), "the clock was set back");
    }
}
