//! The responder's half-open handshakes: at most 4 a link, and of 1,024 in all a role's three quarters, 10 s each (PROTOCOL 5). The key
//! process keeps the same bounds and counts those that this node began as well. The answers of finished ones are remembered beside
//! them for the rest of their 10 s, so that a repeated FINALIZE gets the same ACCEPT.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use openred_proto::id::{HandshakeId, LinkId, NodeId};
use openred_proto::limits::{HALF_OPEN, HALF_OPEN_LIFE, HALF_OPEN_PER_LINK, HALF_OPEN_PER_ROLE};
use sha2::{Digest as _, Sha256};

use super::HandshakeRefusal;
use crate::p2p::ports::LinkHandle;

/// Answers to FINALIZE that are remembered: as many as may be half-open.
const FINISHED: usize = HALF_OPEN;

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
struct Entry {
    handle: Arc<LinkHandle>,
    counter: u64,
    since: Instant,
    /// Digest of the FINALIZE that the key process is looking at; none while one is awaited.
    completing: Option<[u8; 32]>,
}

/// What to do with a FINALIZE.
#[derive(Debug)]
pub(crate) enum Finalize {
    /// Send this ACCEPT again.
    Repeat(Bytes),
    /// The key process is looking at these very bytes: look again when it has.
    Wait,
    /// Ask the key process to complete it, then call `completed` or `failed`.
    Ask(Arc<LinkHandle>, u64),
}

/// The table, and the answers that are remembered beside it. Only what is half-open counts against its bounds.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct HalfOpenTable {
    entries: HashMap<HandshakeId, Entry>,
    finished: Finished,
}

impl HalfOpenTable {
    /// Whether one more may begin over the link of `handle`; `answering` of that link, and `in_all`, are on their way into the table.
    pub(crate) fn check_room(
        &mut self,
        handle: &LinkHandle,
        answering: usize,
        in_all: usize,
        now: Instant,
    ) -> Result<(), HandshakeRefusal> {
        self.expire(now);
        let of_link = self.entries.values().filter(|entry| entry.handle.link == handle.link).count();
        if self.entries.len() + in_all >= HALF_OPEN_PER_ROLE || of_link + answering >= HALF_OPEN_PER_LINK {
            return Err(HandshakeRefusal::TooManyHalfOpen);
        }
        Ok(())
    }

    /// How many there are, and how many answers are remembered, whether or not their time is over.
    #[cfg(test)]
    pub(super) fn kept(&self) -> (usize, usize) {
        (self.entries.len(), self.finished.answers.len().max(self.finished.order.len()))
    }

    /// How many there are.
    pub(super) fn len(&mut self, now: Instant) -> usize {
        self.expire(now);
        self.entries.len()
    }

    /// Whether one is with `peer`.
    pub(super) fn is_with(&self, peer: &NodeId) -> bool {
        self.entries.values().any(|entry| entry.handle.peer == *peer)
    }

    /// VERIFY goes out.
    pub(crate) fn insert(&mut self, handshake: HandshakeId, handle: Arc<LinkHandle>, counter: u64, now: Instant) {
        self.entries.insert(handshake, Entry { handle, counter, since: now, completing: None });
    }

    /// A FINALIZE came.
    pub(crate) fn finalize(
        &mut self,
        handshake: &HandshakeId,
        noise: &[u8],
        now: Instant,
    ) -> Result<Finalize, HandshakeRefusal> {
        self.expire(now);
        let digest: [u8; 32] = Sha256::digest(noise).into();
        match self.entries.get_mut(handshake) {
            Some(entry) if entry.completing.is_none() => {
                entry.completing = Some(digest);
                Ok(Finalize::Ask(Arc::clone(&entry.handle), entry.counter))
            }
            Some(entry) if entry.completing == Some(digest) => Ok(Finalize::Wait),
            Some(_) => Err(HandshakeRefusal::NotHalfOpen),
            None => self.finished.find(handshake, &digest).map(Finalize::Repeat).ok_or(HandshakeRefusal::NotHalfOpen),
        }
    }

    /// The key process completed it; `accept` goes out.
    pub(crate) fn completed(&mut self, handshake: &HandshakeId, accept: &Bytes) {
        if let Some(Entry { since, completing: Some(digest), .. }) = self.entries.remove(handshake) {
            self.finished.insert(*handshake, Answer { since, digest, accept: accept.clone() });
        }
    }

    /// The key process refused FINALIZE: the handshake is over.
    pub(crate) fn failed(&mut self, handshake: &HandshakeId) {
        self.entries.remove(handshake);
    }

    /// The link is gone: what is half-open over it leads nowhere.
    pub(super) fn forget(&mut self, link: &LinkId) {
        self.entries.retain(|_, entry| entry.handle.link != *link);
    }

    /// All that it will go by, in one order.
    #[cfg(test)]
    pub(super) fn sketch(&self, base: Instant) -> String {
        let number = |id: &HandshakeId| u128::from_be_bytes(*id.as_bytes());
        let entry = |(id, entry): (&HandshakeId, &Entry)| {
            (number(id), entry.counter, entry.since - base, entry.completing.is_some())
        };
        let mut entries: Vec<_> = self.entries.iter().map(entry).collect();
        entries.sort_unstable();
        let since = |id: &HandshakeId| self.finished.answers.get(id).map(|answer| answer.since - base);
        let finished: Vec<_> = self.finished.order.iter().map(|id| (number(id), since(id))).collect();
        format!("{entries:?} {finished:?}")
    }

    /// Drops what is past its time, of both.
    pub(super) fn expire(&mut self, now: Instant) {
        self.entries.retain(|_, entry| now.saturating_duration_since(entry.since) < HALF_OPEN_LIFE);
        self.finished.expire(now);
    }
}

/// ACCEPTs that were sent, in the order in which they were; the oldest makes room.
#[derive(Debug, Default)]
#[cfg_attr(test, derive(Clone))]
struct Finished {
    answers: HashMap<HandshakeId, Answer>,
    order: VecDeque<HandshakeId>,
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
struct Answer {
    /// When VERIFY was sent.
    since: Instant,
    /// Of the FINALIZE that `accept` answers.
    digest: [u8; 32],
    accept: Bytes,
}

impl Finished {
    fn insert(&mut self, handshake: HandshakeId, answer: Answer) {
        if self.order.len() >= FINISHED {
            self.drop_oldest();
        }
        if self.answers.insert(handshake, answer).is_none() {
            self.order.push_back(handshake);
        }
    }

    fn find(&self, handshake: &HandshakeId, digest: &[u8; 32]) -> Option<Bytes> {
        self.answers.get(handshake).filter(|answer| answer.digest == *digest).map(|answer| answer.accept.clone())
    }

    fn expire(&mut self, now: Instant) {
        while let Some(oldest) = self.order.front().and_then(|oldest| self.answers.get(oldest))
            && now.saturating_duration_since(oldest.since) >= HALF_OPEN_LIFE
        {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.order.pop_front() {
            self.answers.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::handshake::tests::handle;

    fn id(number: u64) -> HandshakeId {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        HandshakeId::from_bytes(bytes)
    }

    /// More handshakes than the table holds, all of them finished within the life of one.
    #[test]
    fn what_is_finished_leaves_room_and_is_answered_again_while_remembered() {
        let (mut table, handle, now) = (HalfOpenTable::default(), handle(1, 0), Instant::now());
        let total = (2 * HALF_OPEN + FINISHED) as u64;
        for number in 0..total {
            table.check_room(&handle, 0, 0, now).unwrap();
            table.insert(id(number), Arc::clone(&handle), number, now);
            assert!(
                matches!(table.finalize(&id(number), b"f", now), Ok(Finalize::Ask(_, counter)) if counter == number)
            );
            let same = table.finalize(&id(number), b"f", now);
            assert!(matches!(same, Ok(Finalize::Wait)), "the key process is looking at it");
            assert!(table.finalize(&id(number), b"other", now).is_err());
            table.completed(&id(number), &Bytes::from_static(b"accept"));
        }
        assert!(
            matches!(table.finalize(&id(total - 1), b"f", now), Ok(Finalize::Repeat(accept)) if &accept[..] == b"accept")
        );
        assert!(table.finalize(&id(total - 1), b"other", now).is_err());
        assert!(table.finalize(&id(total - 1 - FINISHED as u64), b"f", now).is_err(), "forgotten");
        assert_eq!((table.finished.answers.len(), table.finished.order.len()), (FINISHED, FINISHED));
        assert!(table.finalize(&id(total - 1), b"f", now + HALF_OPEN_LIFE).is_err());
        assert_eq!(table.finished.answers.len(), 0);
    }

    #[test]
    fn one_link_has_four_and_its_oldest_leave_by_themselves() {
        let (mut table, handle, now) = (HalfOpenTable::default(), handle(1, 0), Instant::now());
        for number in 0..HALF_OPEN_PER_LINK as u64 {
            table.check_room(&handle, 0, 0, now).unwrap();
            table.insert(id(number), Arc::clone(&handle), number, now);
        }
        assert_eq!(table.check_room(&handle, 0, 0, now), Err(HandshakeRefusal::TooManyHalfOpen));
        table.failed(&id(0));
        table.check_room(&handle, 0, 0, now).unwrap();
        assert_eq!(
            table.check_room(&handle, 1, 1, now),
            Err(HandshakeRefusal::TooManyHalfOpen),
            "one is on its way in"
        );
        table.check_room(&handle, HALF_OPEN_PER_LINK - 1, HALF_OPEN_PER_LINK - 1, now + HALF_OPEN_LIFE).unwrap();
    }

    /// A handle of link number `number` of many.
    fn of_many(number: usize) -> Arc<LinkHandle> {
        let one = Arc::into_inner(handle(1, 0)).unwrap();
        Arc::new(LinkHandle { link: LinkId::from_bytes(*id(number as u64).as_bytes()), ..one })
    }

    #[test]
    fn in_all_there_is_room_for_the_responders_share_and_what_is_on_its_way_counts() {
        let (mut table, now) = (HalfOpenTable::default(), Instant::now());
        for number in 0..HALF_OPEN_PER_ROLE {
            let handle = of_many(number / HALF_OPEN_PER_LINK);
            table.check_room(&handle, 0, 0, now).unwrap();
            let left = HALF_OPEN_PER_ROLE - number;
            assert_eq!(table.check_room(&handle, 0, left, now), Err(HandshakeRefusal::TooManyHalfOpen), "{number}");
            table.check_room(&handle, 0, left - 1, now).unwrap();
            table.insert(id(number as u64), handle, 1, now);
        }
        let next = of_many(HALF_OPEN);
        assert_eq!(table.check_room(&next, 0, 0, now), Err(HandshakeRefusal::TooManyHalfOpen));
        let just_before = now + HALF_OPEN_LIFE - std::time::Duration::from_millis(1);
        assert_eq!(table.check_room(&next, 0, 0, just_before), Err(HandshakeRefusal::TooManyHalfOpen));
        table.check_room(&next, 0, 0, now + HALF_OPEN_LIFE).unwrap();
        assert_eq!(table.len(now + HALF_OPEN_LIFE), 0);
    }
}
