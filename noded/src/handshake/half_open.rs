//! The responder's half-open handshakes: at most 4 a link and 1,024 in all, 10 s each (PROTOCOL 5). A finished one stays for
//! the rest of its 10 s, so that a repeated FINALIZE gets the same ACCEPT.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use openred_proto::id::HandshakeId;
use openred_proto::limits::{HALF_OPEN, HALF_OPEN_LIFE, HALF_OPEN_PER_LINK};
use sha2::{Digest as _, Sha256};

use super::HandshakeRefusal;
use crate::p2p::ports::LinkHandle;

#[derive(Debug)]
struct Entry {
    handle: Arc<LinkHandle>,
    counter: u64,
    since: Instant,
    state: State,
}

#[derive(Debug)]
enum State {
    /// VERIFY was sent.
    ExpectFinalize,
    /// The key process is looking at FINALIZE.
    Completing([u8; 32]),
    /// ACCEPT was sent; the digest is that of the FINALIZE it answers.
    Finished([u8; 32], Bytes),
}

/// What to do with a FINALIZE.
#[derive(Debug)]
pub(crate) enum Finalize {
    /// Send this ACCEPT again.
    Repeat(Bytes),
    /// Ask the key process to complete it, then call `completed` or `failed`.
    Ask(Arc<LinkHandle>, u64),
}

/// The table; entries leave in the order in which they came.
#[derive(Debug, Default)]
pub(crate) struct HalfOpenTable {
    entries: HashMap<HandshakeId, Entry>,
    order: VecDeque<HandshakeId>,
}

impl HalfOpenTable {
    /// Whether one more may begin over the link of `handle`; `answering` are those on their way into the table.
    pub(crate) fn check_room(
        &mut self,
        handle: &LinkHandle,
        answering: usize,
        now: Instant,
    ) -> Result<(), HandshakeRefusal> {
        self.expire(now);
        let of_link = self
            .entries
            .values()
            .filter(|entry| entry.handle.link == handle.link && !matches!(entry.state, State::Finished(..)));
        if self.entries.len() >= HALF_OPEN || of_link.count() + answering >= HALF_OPEN_PER_LINK {
            return Err(HandshakeRefusal::TooManyHalfOpen);
        }
        Ok(())
    }

    /// VERIFY goes out.
    pub(crate) fn insert(&mut self, handshake: HandshakeId, handle: Arc<LinkHandle>, counter: u64, now: Instant) {
        let entry = Entry { handle, counter, since: now, state: State::ExpectFinalize };
        if self.entries.insert(handshake, entry).is_none() {
            self.order.push_back(handshake);
        }
    }

    /// A FINALIZE came.
    pub(crate) fn finalize(
        &mut self,
        handshake: &HandshakeId,
        noise: &[u8],
        now: Instant,
    ) -> Result<Finalize, HandshakeRefusal> {
        self.expire(now);
        let entry = self.entries.get_mut(handshake).ok_or(HandshakeRefusal::NotHalfOpen)?;
        let digest: [u8; 32] = Sha256::digest(noise).into();
        match &entry.state {
            State::ExpectFinalize => {
                entry.state = State::Completing(digest);
                Ok(Finalize::Ask(Arc::clone(&entry.handle), entry.counter))
            }
            State::Finished(known, accept) if *known == digest => Ok(Finalize::Repeat(accept.clone())),
            State::Completing(_) | State::Finished(..) => Err(HandshakeRefusal::NotHalfOpen),
        }
    }

    /// The key process completed it; `accept` goes out.
    pub(crate) fn completed(&mut self, handshake: &HandshakeId, accept: &Bytes) {
        if let Some(entry) = self.entries.get_mut(handshake)
            && let State::Completing(digest) = entry.state
        {
            entry.state = State::Finished(digest, accept.clone());
        }
    }

    /// The key process refused FINALIZE: the handshake is over.
    pub(crate) fn failed(&mut self, handshake: &HandshakeId) {
        self.entries.remove(handshake);
    }

    fn expire(&mut self, now: Instant) {
        while let Some(oldest) = self.order.front() {
            match self.entries.get(oldest) {
                Some(entry) if now.saturating_duration_since(entry.since) < HALF_OPEN_LIFE => return,
                _ => {}
            }
            self.entries.remove(oldest);
            self.order.pop_front();
        }
    }
}
