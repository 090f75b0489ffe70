//! Handshakes that wait for their next message: at most four a link, 64 without one, and 1,024 in all, ten seconds each (PROTOCOL 5).
//!
//! One table for those this node began and one for those it answered; both bounds are over the two together, so each table is
//! told what the other holds. Of the 1,024 a role has at most three quarters, so that neither can starve the other, and of the 64
//! as well; of a link's four it may have all, because only the link's two parties can take them. A machine leaves the table when its next message comes, whatever that message is: a failed handshake leaves nothing to try again on.

use std::collections::BTreeMap;

use openred_proto::id::{HandshakeId, LinkId, UnixMillis};
use openred_proto::limits::{
    HALF_OPEN, HALF_OPEN_DIRECT, HALF_OPEN_DIRECT_PER_ROLE, HALF_OPEN_LIFE, HALF_OPEN_PER_LINK, HALF_OPEN_PER_ROLE,
};

use super::Refusal;

/// Under which bound a handshake waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// That of its link.
    Link(LinkId),
    /// That of all which rest on no link.
    Direct,
}

impl Place {
    /// How many may wait there in both roles together, and in one.
    const fn most(self) -> (usize, usize) {
        match self {
            Self::Link(_) => (HALF_OPEN_PER_LINK, HALF_OPEN_PER_LINK),
            Self::Direct => (HALF_OPEN_DIRECT, HALF_OPEN_DIRECT_PER_ROLE),
        }
    }
}

/// What the other role holds already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Elsewhere {
    /// In the same place.
    pub(crate) there: usize,
    /// In all.
    pub(crate) in_all: usize,
}

/// Waiting machines of one role.
pub(crate) struct HalfOpen<M> {
    waiting: BTreeMap<HandshakeId, Waiting<M>>,
}

struct Waiting<M> {
    place: Place,
    since: UnixMillis,
    machine: M,
}

impl<M> Waiting<M> {
    /// Over its time; a clock that was set back ends it too, or it would hold its place until the clock has caught up.
    fn is_over(&self, now: UnixMillis) -> bool {
        now < self.since || now >= self.since.plus(HALF_OPEN_LIFE)
    }
}

impl<M> HalfOpen<M> {
    pub(crate) const fn new() -> Self {
        Self { waiting: BTreeMap::new() }
    }

    /// What this role holds at `now`, for the other one's [`HalfOpen::admit`].
    pub(crate) fn held(&mut self, now: UnixMillis, place: Place) -> Elsewhere {
        self.expire(now);
        let there = self.waiting.values().filter(|waiting| waiting.place == place).count();
        Elsewhere { there, in_all: self.waiting.len() }
    }

    /// Whether `place` may have one more, asked before any work is done for it.
    ///
    /// # Errors
    /// [`Refusal::TooMany`].
    pub(crate) fn admit(&mut self, now: UnixMillis, place: Place, other: Elsewhere) -> Result<(), Refusal> {
        let held = self.held(now, place);
        let (most, per_role) = place.most();
        let is_full = held.there + other.there >= most || held.there >= per_role;
        if is_full || held.in_all + other.in_all >= HALF_OPEN || held.in_all >= HALF_OPEN_PER_ROLE {
            return Err(Refusal::TooMany);
        }
        Ok(())
    }

    /// Keeps an admitted `machine` until its next message.
    ///
    /// # Errors
    /// [`Refusal::TooMany`] for an id that is taken; ids are drawn, so that is a guess or a fault.
    pub(crate) fn insert(&mut self, now: UnixMillis, place: Place, id: HandshakeId, machine: M) -> Result<(), Refusal> {
        if self.waiting.contains_key(&id) {
            return Err(Refusal::TooMany);
        }
        self.waiting.insert(id, Waiting { place, since: now, machine });
        Ok(())
    }

    /// Takes the machine out for its next message.
    ///
    /// # Errors
    /// [`Refusal::NotWaiting`].
    pub(crate) fn take(&mut self, now: UnixMillis, id: HandshakeId) -> Result<M, Refusal> {
        let waiting = self.waiting.remove(&id).ok_or(Refusal::NotWaiting)?;
        if waiting.is_over(now) { Err(Refusal::NotWaiting) } else { Ok(waiting.machine) }
    }

    /// Drops what is over its time; also called on the vault's timer, so that secrets do not outstay it.
    pub(crate) fn expire(&mut self, now: UnixMillis) {
        self.waiting.retain(|_, waiting| !waiting.is_over(now));
    }

    /// Drops every handshake of a link that was revoked or replaced.
    pub(crate) fn forget(&mut self, link: LinkId) {
        self.waiting.retain(|_, waiting| waiting.place != Place::Link(link));
    }

    /// Where a handshake waits.
    pub(crate) fn place(&self, id: &HandshakeId) -> Option<Place> {
        self.waiting.get(id).map(|waiting| waiting.place)
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn id(number: usize) -> HandshakeId {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&(number as u64).to_be_bytes());
        HandshakeId::from_bytes(bytes)
    }

    fn link_id(number: usize) -> LinkId {
        LinkId::from_bytes(*id(number).as_bytes())
    }

    fn link(number: usize) -> Place {
        Place::Link(link_id(number))
    }

    const NOW: UnixMillis = UnixMillis(1_000_000);
    const NOTHING: Elsewhere = Elsewhere { there: 0, in_all: 0 };

    impl<M> HalfOpen<M> {
        fn add(&mut self, now: UnixMillis, place: Place, id: HandshakeId, machine: M) -> Result<(), Refusal> {
            self.admit(now, place, NOTHING)?;
            self.insert(now, place, id, machine)
        }
    }

    #[test]
    fn four_a_link_and_a_taken_place_is_free_again() {
        let mut table = HalfOpen::new();
        for number in 0..HALF_OPEN_PER_LINK {
            table.add(NOW, link(1), id(number), number).unwrap();
        }
        assert_eq!(table.add(NOW, link(1), id(9), 9), Err(Refusal::TooMany));
        table.add(NOW, link(2), id(9), 9).unwrap();
        assert_eq!(table.add(NOW, link(3), id(9), 9), Err(Refusal::TooMany), "an id that is taken");
        assert_eq!(table.take(NOW, id(0)), Ok(0));
        assert_eq!(table.take(NOW, id(0)), Err(Refusal::NotWaiting));
        table.add(NOW, link(1), id(10), 10).unwrap();
    }

    #[test]
    fn four_a_link_over_both_roles() {
        let mut table = HalfOpen::new();
        table.add(NOW, link(1), id(1), ()).unwrap();
        let other = |there| Elsewhere { there, in_all: there };
        assert_eq!(table.admit(NOW, link(1), other(HALF_OPEN_PER_LINK - 2)), Ok(()));
        assert_eq!(table.admit(NOW, link(1), other(HALF_OPEN_PER_LINK - 1)), Err(Refusal::TooMany));
        assert_eq!(table.admit(NOW, link(2), other(HALF_OPEN_PER_LINK - 1)), Ok(()));
    }

    #[test]
    fn as_many_as_the_cap_in_all_then_room_after_ten_seconds() {
        let (mut begun, mut answered) = (HalfOpen::new(), HalfOpen::new());
        for number in 0..HALF_OPEN_PER_ROLE {
            begun.add(NOW, link(number / HALF_OPEN_PER_LINK), id(number), ()).unwrap();
        }
        assert_eq!(begun.admit(NOW, link(HALF_OPEN), NOTHING), Err(Refusal::TooMany), "a role's share");
        // The rest is the other role's, and one more is in nobody's.
        for number in HALF_OPEN_PER_ROLE..HALF_OPEN {
            let of = link(number / HALF_OPEN_PER_LINK);
            answered.admit(NOW, of, begun.held(NOW, of)).unwrap();
            answered.insert(NOW, of, id(number), ()).unwrap();
        }
        assert_eq!(begun.len() + answered.len(), HALF_OPEN);
        let next = link(HALF_OPEN);
        assert_eq!(answered.admit(NOW, next, begun.held(NOW, next)), Err(Refusal::TooMany));
        assert_eq!(begun.take(NOW, id(0)), Ok(()));
        assert_eq!(answered.admit(NOW, next, begun.held(NOW, next)), Ok(()));
        let later = NOW.plus(HALF_OPEN_LIFE);
        assert_eq!(begun.take(later, id(3)), Err(Refusal::NotWaiting));
        begun.admit(later, next, answered.held(later, next)).unwrap();
        assert_eq!((begun.len(), answered.len()), (0, 0));
    }

    #[test]
    fn a_clock_set_back_frees_the_places() {
        let mut table = HalfOpen::new();
        for number in 0..HALF_OPEN_PER_LINK {
            table.add(NOW, link(1), id(number), ()).unwrap();
        }
        table.admit(UnixMillis(NOW.0 - 1), link(1), NOTHING).unwrap();
    }

    #[test]
    fn a_forgotten_link_leaves_nothing() {
        let mut table = HalfOpen::new();
        table.add(NOW, link(1), id(1), ()).unwrap();
        table.add(NOW, link(2), id(2), ()).unwrap();
        table.forget(link_id(1));
        assert_eq!(table.take(NOW, id(1)), Err(Refusal::NotWaiting));
        assert_eq!(table.take(NOW, id(2)), Ok(()));
    }

    #[test]
    fn direct_contact_has_places_of_its_own_and_neither_role_takes_them_all() {
        let (mut begun, mut answered) = (HalfOpen::new(), HalfOpen::new());
        for number in 0..HALF_OPEN_DIRECT_PER_ROLE {
            answered.admit(NOW, Place::Direct, begun.held(NOW, Place::Direct)).unwrap();
            answered.insert(NOW, Place::Direct, id(number), ()).unwrap();
        }
        assert_eq!(answered.admit(NOW, Place::Direct, NOTHING), Err(Refusal::TooMany), "a role's share");
        for number in HALF_OPEN_DIRECT_PER_ROLE..HALF_OPEN_DIRECT {
            begun.admit(NOW, Place::Direct, answered.held(NOW, Place::Direct)).unwrap();
            begun.insert(NOW, Place::Direct, id(number), ()).unwrap();
        }
        assert_eq!(begun.admit(NOW, Place::Direct, answered.held(NOW, Place::Direct)), Err(Refusal::TooMany));
        begun.admit(NOW, link(1), answered.held(NOW, link(1))).unwrap();
        assert_eq!((begun.place(&id(63)), begun.place(&id(0))), (Some(Place::Direct), None));
        begun.admit(NOW.plus(HALF_OPEN_LIFE), Place::Direct, NOTHING).unwrap();
    }
}
