//! The responder's look at what comes to it: what can be refused or answered from memory never reaches the key process.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use openred_proto::checked::handshake::{HandshakeFinalize, HandshakeRequest};
use openred_proto::id::{HandshakeId, LinkId, NodeId};

use super::HandshakeRefusal;
use super::cookie::{Cookies, Fresh, LoadBounds, Shown, Source};
use super::half_open::{Finalize, HalfOpenTable};
use super::request::{self, Mark};
use super::tags::{Seen, TagTable};
use crate::p2p::ports::LinkHandle;

/// What to do with a REQUEST.
#[derive(Debug)]
pub(crate) enum Request {
    /// Send this VERIFY again.
    Repeat(Bytes),
    /// Send this, and ask nobody: the sender is to show where it is.
    Cookie(Bytes),
    /// The key process is looking at these very bytes: look again when it has.
    Wait,
    /// Ask the key process, then call `answered` or `refused` with this.
    Ask(Answering),
}

/// How a REQUEST came.
pub(crate) struct Arrival<F> {
    /// From where.
    pub(crate) source: Source,
    /// When.
    pub(crate) now: Instant,
    /// Draws random bytes, if they are needed.
    pub(crate) fresh: F,
}

/// A REQUEST that the key process is looking at.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct Answering {
    /// The link that its tag named.
    pub(crate) handle: Arc<LinkHandle>,
    counter: u64,
    mac1: Mark,
}

/// All of the responder's memory.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub(crate) struct Responder {
    /// Which tags are expected.
    pub(crate) tags: TagTable,
    half_open: HalfOpenTable,
    answering: HashMap<LinkId, usize>,
    cookies: Cookies,
    load: LoadBounds,
    /// Until when this node is under load.
    loaded: Option<Instant>,
}

impl Responder {
    /// Of node `me`, under load from `load` on.
    pub(crate) fn new(me: NodeId, load: LoadBounds) -> Self {
        Self {
            tags: TagTable::new(me),
            half_open: HalfOpenTable::default(),
            answering: HashMap::new(),
            cookies: Cookies::default(),
            load,
            loaded: None,
        }
    }

    /// Looks at a REQUEST: tag, mac1, memory, cookie, bounds, in this order, each cheaper than what it protects.
    pub(crate) fn handle_request(
        &mut self,
        request: &HandshakeRequest,
        arrival: Arrival<impl FnOnce() -> Fresh>,
    ) -> Result<Request, HandshakeRefusal> {
        let Arrival { source, now, fresh } = arrival;
        let (expected, counter) = self.tags.find(&request.tag).ok_or(HandshakeRefusal::UnknownTag)?;
        let handle = Arc::clone(&expected.handle);
        if !request::verify_mac1(&handle.keys.incoming, request) {
            return Err(HandshakeRefusal::WrongMac);
        }
        match self.tags.seen(&handle.link, &request.mac1, now) {
            Seen::Answered(verify) => return Ok(Request::Repeat(verify)),
            Seen::Asked => return Ok(Request::Wait),
            Seen::Spent => return Err(HandshakeRefusal::Repeated),
            Seen::Fresh => {}
        }
        if self.is_loaded(now) {
            let shown = Shown {
                covered: &request.without_cookie(),
                mac1: &request.mac1,
                mac1_key: &handle.keys.incoming.mac1,
                proof: request.cookie.as_ref(),
            };
            if let Err(cookie) = self.cookies.check(&shown, source, now, fresh) {
                return Ok(Request::Cookie(cookie.encode().into()));
            }
        }
        let answering = self.answering.get(&handle.link).copied().unwrap_or_default();
        self.half_open.check_room(&handle, answering, self.answering.values().sum(), now)?;
        // Only now, so that what was not looked at may come again.
        self.tags.remember(&handle.link, &request.mac1, now);
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
        let (link, mac1) = (&answering.handle.link, &answering.mac1);
        if looked_at { self.tags.refused(link, mac1) } else { self.tags.forget(link, mac1) }
    }

    /// Looks at a FINALIZE.
    pub(crate) fn handle_finalize(
        &mut self,
        finalize: &HandshakeFinalize,
        now: Instant,
    ) -> Result<Finalize, HandshakeRefusal> {
        self.half_open.finalize(&finalize.handshake, &finalize.noise, now)
    }

    /// Whether a handshake that `peer` began is under way.
    pub(crate) fn is_answering(&self, peer: &NodeId) -> bool {
        self.answering.keys().any(|link| self.tags.peer(link) == Some(*peer)) || self.half_open.is_with(peer)
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

    /// Lets go of what time has made useless: nothing else does on a node that is left alone.
    pub(crate) fn sweep(&mut self, now: Instant) {
        self.tags.sweep(now);
        self.half_open.expire(now);
    }

    /// Half-open handshakes, and answers that are kept to be given again: VERIFYs, ACCEPTs.
    #[cfg(test)]
    pub(crate) fn kept(&self) -> [usize; 3] {
        let (half_open, accepts) = self.half_open.kept();
        [half_open, self.tags.answers(), accepts]
    }

    /// What strangers are asked to show is made with the same secrets.
    pub(crate) const fn cookies(&mut self) -> &mut Cookies {
        &mut self.cookies
    }

    /// Whether what this node has to do for handshakes is at one of its bounds, or was a moment ago.
    fn is_loaded(&mut self, now: Instant) -> bool {
        let asked: usize = self.answering.values().sum();
        if asked >= self.load.asked || self.half_open.len(now) >= self.load.half_open {
            self.loaded = Some(now + self.load.hold);
        }
        self.loaded.is_some_and(|until| now < until)
    }

    /// All that it will go by, in one order.
    #[cfg(test)]
    pub(crate) fn sketch(&self, base: Instant) -> String {
        let answering: usize = self.answering.values().sum();
        format!("{} | {} | {answering}", self.tags.sketch(base), self.half_open.sketch(base))
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
