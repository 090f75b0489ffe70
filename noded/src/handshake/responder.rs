//! The responder's look at what comes to it: what can be refused or answered from memory never reaches the key process.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use openred_proto::checked::handshake::{HandshakeFinalize, HandshakeRequest};
use openred_proto::id::{HandshakeId, LinkId, NodeId};

use super::HandshakeRefusal;
use super::half_open::{Finalize, HalfOpenTable};
use super::request::{self, Mark};
use super::tags::{Seen, TagTable};
use crate::p2p::ports::LinkHandle;

/// What to do with a REQUEST.
#[derive(Debug)]
pub(crate) enum Request {
    /// Send this VERIFY again.
    Repeat(Bytes),
    /// Ask the key process, then call `answered` or `refused` with this.
    Ask(Answering),
}

/// A REQUEST that the key process is looking at.
#[derive(Debug)]
pub(crate) struct Answering {
    /// The link that its tag named.
    pub(crate) handle: Arc<LinkHandle>,
    counter: u64,
    mac1: Mark,
}

/// All of the responder's memory.
#[derive(Debug)]
pub(crate) struct Responder {
    /// Which tags are expected.
    pub(crate) tags: TagTable,
    half_open: HalfOpenTable,
    answering: HashMap<LinkId, usize>,
}

impl Responder {
    /// Of node `me`.
    pub(crate) fn new(me: NodeId) -> Self {
        Self { tags: TagTable::new(me), half_open: HalfOpenTable::default(), answering: HashMap::new() }
    }

    /// Looks at a REQUEST: tag, mac1, memory, bounds, in this order, each cheaper than what it protects.
    pub(crate) fn handle_request(
        &mut self,
        request: &HandshakeRequest,
        now: Instant,
    ) -> Result<Request, HandshakeRefusal> {
        let (expected, counter) = self.tags.find(&request.tag).ok_or(HandshakeRefusal::UnknownTag)?;
        let handle = Arc::clone(&expected.handle);
        if !request::verify_mac1(&handle.keys.incoming, request) {
            return Err(HandshakeRefusal::WrongMac);
        }
        match self.tags.remember(&handle.link, &request.mac1, now) {
            Seen::Answered(verify) => return Ok(Request::Repeat(verify)),
            Seen::Spent => return Err(HandshakeRefusal::Repeated),
            Seen::Fresh => {}
        }
        let answering = self.answering.get(&handle.link).copied().unwrap_or_default();
        if let Err(refusal) = self.half_open.check_room(&handle, answering, now) {
            // It was not looked at, so the same REQUEST may come again when there is room.
            self.tags.forget(&handle.link, &request.mac1);
            return Err(refusal);
        }
        *self.answering.entry(handle.link).or_default() += 1;
        Ok(Request::Ask(Answering { handle, counter, mac1: request.mac1 }))
    }

    /// The key process answered: `verify` goes out, and again if the REQUEST is repeated.
    pub(crate) fn answered(&mut self, answering: Answering, handshake: HandshakeId, verify: &Bytes, now: Instant) {
        self.tags.answered(&answering.handle.link, &answering.mac1, verify);
        self.leave(&answering.handle.link);
        self.half_open.insert(handshake, answering.handle, answering.counter, now);
    }

    /// The key process refused the REQUEST (`looked_at`), or could not be asked and the REQUEST may come again.
    pub(crate) fn refused(&mut self, answering: &Answering, looked_at: bool) {
        self.leave(&answering.handle.link);
        if !looked_at {
            self.tags.forget(&answering.handle.link, &answering.mac1);
        }
    }

    /// Looks at a FINALIZE.
    pub(crate) fn handle_finalize(
        &mut self,
        finalize: &HandshakeFinalize,
        now: Instant,
    ) -> Result<Finalize, HandshakeRefusal> {
        self.half_open.finalize(&finalize.handshake, &finalize.noise, now)
    }

    /// Expects nothing over `link` any more; what is half-open over it is forgotten.
    pub(crate) fn forget(&mut self, link: &LinkId) {
        self.tags.remove(link);
        self.half_open.forget(link);
    }

    /// A session is open: its ACCEPT is remembered and the window of tags moves.
    pub(crate) fn completed(&mut self, handshake: &HandshakeId, link: &LinkId, counter: u64, accept: &Bytes) {
        self.half_open.completed(handshake, accept);
        self.tags.advance(link, counter);
    }

    /// The key process refused FINALIZE.
    pub(crate) fn failed(&mut self, handshake: &HandshakeId) {
        self.half_open.failed(handshake);
    }

    fn leave(&mut self, link: &LinkId) {
        if let Some(count) = self.answering.get_mut(link) {
            *count -= 1;
            if *count == 0 {
                self.answering.remove(link);
            }
        }
    }
}
