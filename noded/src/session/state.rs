//! One session: its keys, the numbers of each side, its limits. What is sealed comes out of a ticket that is used up.
//!
//! The typestate of a number: `Session::begin_request` hands out an [`OutgoingRequest`], `start` consumes it and gives the
//! only sealer of that number and the only opener of its response. `Session::receive_request` gives an
//! [`IncomingRequest`]; the right to answer appears in it with the first authentic chunk, once.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use openred_proto::checked::session::{Accept, RequestHead, ResponseHead, Side, StreamKind, StreamName};
use openred_proto::error::WireError;
use openred_proto::id::NodeId;
use openred_proto::limits::{CHUNK_BYTES, HEAD_BYTES, SESSION_REQUESTS};
use openred_proto::method::Method;
use openred_proto::vault::SessionGrant;

use super::SessionError;
use super::chunks::{Budget, ChunkOpener, ChunkSealer, MessageSealer};
use super::keys::{DirectionKeys, SessionTag};
use super::limits::{SessionLimits, Used};
use super::message::RequestHeader;
use super::numbers::Numbers;
use super::window::Window;

/// An open session with a peer.
#[derive(Debug)]
pub(crate) struct Session {
    /// The proven peer.
    pub(crate) peer: NodeId,
    /// The role of this node in the handshake.
    pub(crate) side: Side,
    /// The link's method.
    pub(crate) method: Method,
    /// Final handshake hash.
    pub(crate) hash: [u8; 32],
    /// Equal on both sides.
    pub(crate) mutual_link: [u8; 16],
    /// This node's match proof; zeros without a link.
    pub(crate) match_proof: [u8; 32],
    opened_at: Instant,
    limits: SessionLimits,
    send: DirectionKeys,
    receive: DirectionKeys,
    numbers: Mutex<Numbers>,
    window: Mutex<Window>,
    budget: Arc<Budget>,
}

impl Session {
    /// The responder's half, and its ACCEPT record: the one message that is ever sealed as number 0.
    pub(crate) fn as_responder(grant: &SessionGrant, now: Instant) -> Result<(Self, Bytes), SessionError> {
        Self::as_demanding_responder(grant, false, now)
    }

    /// The same; takes nothing before both have signed, if it is `audited`.
    pub(crate) fn as_demanding_responder(
        grant: &SessionGrant,
        audited: bool,
        now: Instant,
    ) -> Result<(Self, Bytes), SessionError> {
        let session = Self::new(grant, Side::Responder, now);
        // Without a link there is nothing to match.
        let match_proof = grant.link.map(|_| grant.match_proof.to_vec()).unwrap_or_default();
        let accept = Accept { refusal: 0, match_proof, audited };
        let mut record = BytesMut::from(&accept.encode()[..]);
        let cipher = session.send.stream(ACCEPT);
        ChunkSealer::new(cipher, Arc::clone(&session.budget)).seal_last(&mut record)?;
        Ok((session, record.freeze()))
    }

    /// The initiator's half: exists only once the responder's ACCEPT record authenticates and accepts.
    pub(crate) fn as_initiator(
        grant: &SessionGrant,
        record: &Bytes,
        now: Instant,
    ) -> Result<(Self, Accept), SessionError> {
        let session = Self::new(grant, Side::Initiator, now);
        let mut opener = ChunkOpener::new(session.receive.stream(ACCEPT), Arc::clone(&session.budget));
        let mut rest = record.clone();
        if opener.feed(&mut rest)?.is_some() {
            return Err(WireError::TooLong { what: "ACCEPT", limit: CHUNK_BYTES }.into());
        }
        let accept = Accept::decode(&opener.finish()?)?;
        if accept.refusal != 0 {
            return Err(WireError::Unsupported { what: "ACCEPT refusal" }.into());
        }
        Ok((session, accept))
    }

    fn new(grant: &SessionGrant, side: Side, now: Instant) -> Self {
        Self {
            peer: grant.peer,
            side,
            method: grant.method,
            hash: grant.hash,
            mutual_link: grant.mutual_link,
            match_proof: grant.match_proof,
            opened_at: now,
            limits: SessionLimits::default(),
            send: DirectionKeys::new(&grant.send, grant.method),
            receive: DirectionKeys::new(&grant.receive, grant.method),
            numbers: Mutex::default(),
            window: Mutex::default(),
            budget: Arc::default(),
        }
    }

    /// The same session under lower limits; higher ones are the protocol's.
    #[must_use]
    pub(crate) fn with_limits(self, limits: SessionLimits) -> Self {
        Self { limits: limits.capped(), ..self }
    }

    /// The tag that the peer's requests carry.
    pub(crate) const fn incoming_tag(&self) -> &SessionTag {
        self.receive.tag()
    }

    /// When it was opened.
    pub(crate) const fn opened_at(&self) -> Instant {
        self.opened_at
    }

    /// Requests that this node began, and bytes both ways.
    pub(crate) fn used(&self) -> (u64, u64) {
        (self.numbers().taken(), self.budget.spent())
    }

    /// Requests of this node that wait for their answer.
    #[cfg(test)]
    pub(crate) fn open_requests(&self) -> usize {
        self.numbers().open()
    }

    /// Whether the oldest unanswered request holds up every new one.
    pub(crate) fn is_span_full(&self) -> bool {
        self.numbers().is_full()
    }

    /// Whether new requests may begin.
    pub(crate) fn is_live(&self, now: Instant) -> bool {
        self.limits.is_live(&self.usage(now))
    }

    /// Whether requests of the peer may still begin.
    pub(crate) fn is_receiving(&self, now: Instant) -> bool {
        self.limits.is_receiving(now.saturating_duration_since(self.opened_at))
    }

    /// Whether the next session should be opened in the background.
    pub(crate) fn is_renewal_due(&self, now: Instant) -> bool {
        self.limits.is_renewal_due(self.side, &self.usage(now))
    }

    fn usage(&self, now: Instant) -> Used {
        let (begun, bytes) = self.used();
        let taken = self.window().taken();
        Used { age: now.saturating_duration_since(self.opened_at), begun, taken, bytes }
    }

    /// Takes the next number.
    pub(crate) fn begin_request(self: &Arc<Self>, now: Instant) -> Result<OutgoingRequest, SessionError> {
        if !self.is_live(now) {
            return Err(SessionError::LimitReached);
        }
        let number = self.numbers().take(self.limits.requests)?;
        Ok(OutgoingRequest(OpenNumber { session: Arc::clone(self), number }))
    }

    /// Begins to receive the request that `header` names; nothing is marked yet.
    pub(crate) fn receive_request(
        self: &Arc<Self>,
        header: RequestHeader,
        now: Instant,
    ) -> Result<IncomingRequest, SessionError> {
        if !self.is_receiving(now) || header.number > SESSION_REQUESTS {
            return Err(SessionError::LimitReached);
        }
        let name = StreamName { kind: StreamKind::Request, opener: self.side.other(), number: header.number };
        let opener = ChunkOpener::new(self.receive.stream(name), Arc::clone(&self.budget));
        Ok(IncomingRequest { session: Arc::clone(self), number: header.number, opener, marked: false, answer: None })
    }

    fn numbers(&self) -> MutexGuard<'_, Numbers> {
        self.numbers.lock().expect("nothing panics while it holds the numbers")
    }

    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().expect("nothing panics while it holds the window")
    }

    /// As after so many requests of this side: the next one gets the number behind `last`.
    #[cfg(test)]
    pub(crate) fn skip_to(&self, last: u64) {
        self.numbers().skip_to(last);
    }

    #[cfg(test)]
    pub(crate) fn budget(&self) -> &Budget {
        &self.budget
    }
}

/// The ACCEPT record's name: number 0, which no request ever has.
const ACCEPT: StreamName = StreamName { kind: StreamKind::Accept, opener: Side::Responder, number: 0 };

/// A number that is open; free again for the span when dropped, never for sealing.
#[derive(Debug)]
struct OpenNumber {
    session: Arc<Session>,
    number: u64,
}

impl Drop for OpenNumber {
    fn drop(&mut self) {
        self.session.numbers().release(self.number);
    }
}

/// The right to seal one request, once.
#[derive(Debug)]
pub(crate) struct OutgoingRequest(OpenNumber);

impl OutgoingRequest {
    /// Begins the request; `body` is the body's length if known.
    pub(crate) fn start(
        self,
        head: &RequestHead,
        body: Option<u64>,
    ) -> Result<(MessageSealer, AwaitedResponse), SessionError> {
        let OpenNumber { session, number } = &self.0;
        let name = StreamName { kind: StreamKind::Request, opener: session.side, number: *number };
        let sealer = ChunkSealer::new(session.send.stream(name), Arc::clone(&session.budget));
        let header = RequestHeader { tag: *session.send.tag(), number: *number };
        let head = capped(head.encode())?;
        let message = MessageSealer::new(sealer, &header.encode(), &head, body)?;
        let name = StreamName { kind: StreamKind::Response, ..name };
        let opener = ChunkOpener::new(session.receive.stream(name), Arc::clone(&session.budget));
        Ok((message, AwaitedResponse { opener, number: ReleasedWithResponse(self.0) }))
    }
}

/// The only opener of one response. The number stays open until `number` is dropped.
#[derive(Debug)]
pub(crate) struct AwaitedResponse {
    /// Opens the response's chunks.
    pub(crate) opener: ChunkOpener,
    /// To be kept until the response has been read or given up.
    pub(crate) number: ReleasedWithResponse,
}

/// Keeps a number open while its response is read.
#[derive(Debug)]
pub(crate) struct ReleasedWithResponse(#[expect(dead_code, reason = "held for its Drop")] OpenNumber);

/// A request of the peer while it comes in.
#[derive(Debug)]
pub(crate) struct IncomingRequest {
    session: Arc<Session>,
    number: u64,
    opener: ChunkOpener,
    marked: bool,
    answer: Option<OutgoingResponse>,
}

impl IncomingRequest {
    /// Takes bytes from the front of `data`; gives the plaintext of a chunk that became whole.
    pub(crate) fn feed(&mut self, data: &mut Bytes) -> Result<Option<Bytes>, SessionError> {
        let opened = self.opener.feed(data)?;
        if opened.is_some() {
            self.mark_once()?;
        }
        Ok(opened)
    }

    /// Nothing follows: gives the last chunk and, if the answer was not taken before, the right to answer.
    pub(crate) fn finish(mut self) -> Result<(Bytes, Option<OutgoingResponse>), SessionError> {
        let opened = self.opener.finish_in_place()?;
        self.mark_once()?;
        Ok((opened, self.answer.take()))
    }

    /// The right to answer; there once the first chunk has authenticated, and only once.
    pub(crate) fn take_answer(&mut self) -> Option<OutgoingResponse> {
        self.answer.take()
    }

    fn mark_once(&mut self) -> Result<(), SessionError> {
        if self.marked {
            return Ok(());
        }
        self.session.window().mark(self.number)?;
        self.marked = true;
        self.answer = Some(OutgoingResponse { session: Arc::clone(&self.session), number: self.number });
        Ok(())
    }
}

/// The right to seal the response to one request, once.
#[derive(Debug)]
pub(crate) struct OutgoingResponse {
    session: Arc<Session>,
    number: u64,
}

impl OutgoingResponse {
    /// Begins the response; `body` is the body's length if known.
    pub(crate) fn start(self, head: &ResponseHead, body: Option<u64>) -> Result<MessageSealer, SessionError> {
        let Self { session, number } = self;
        let name = StreamName { kind: StreamKind::Response, opener: session.side.other(), number };
        let sealer = ChunkSealer::new(session.send.stream(name), Arc::clone(&session.budget));
        MessageSealer::new(sealer, &[], &capped(head.encode())?, body)
    }
}

fn capped(head: Vec<u8>) -> Result<Vec<u8>, SessionError> {
    if head.len() > HEAD_BYTES { Err(SessionError::MisuseTooLong) } else { Ok(head) }
}
