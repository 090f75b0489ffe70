//! Delivery: takes what waits for a peer to it, in order, and tries again later what did not go. Messages and read receipts are
//! two queues of the same kind, so that neither waits for the other.
//!
//! One delivery a peer runs at a time, so order holds. After a failure the peer rests, longer each time; a timer or
//! [`Event::PeerReachable`](openred_module::Event::PeerReachable) ends the rest. The rests are memory only: after a
//! restart everything is tried at once.
//!
//! A peer may take a request and never answer. So an event waits for no delivery that is under way, an attempt has less time than the
//! event that makes it, and the timer begins with those whose last try is the longest ago: nobody keeps others from their turn.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use openred_module::{
    Body, Context, ModuleError, NodeId, PeerError, PeerRequest, Response, Status, TimerId, UnixMillis,
};
use serde::Deserialize;
use tokio::sync::OwnedMutexGuard;

use crate::Messaging;
use crate::error::{INBOX_FULL, MessagingError};
use crate::record::MESSAGE_CONTENT_TYPE;
use crate::store::{self, Receipt, Sequence, Stored};

/// The timer of the messages.
pub(crate) const RETRY_TIMER: TimerId = 1;
/// The timer of the read receipts.
pub(crate) const RECEIPTS_TIMER: TimerId = 2;
/// Rest after a first failure, in milliseconds.
const FIRST_REST: u64 = 1_000;
/// Longest rest: how late a message can be after the peer came back without our noticing.
const LONGEST_REST: u64 = 5 * 60 * 1_000;
/// Whatever waits is looked at again after this long, even if the call or event that cared for it was dropped half way:
/// callers go away, and hosts end handlers that take too long.
const SAFETY: u64 = 60_000;
/// How long one attempt may take: less than a node gives the handler of an event (30 s), which would be cut before it has noted that the
/// peer does not answer.
pub(crate) const DELIVERY_TIMEOUT: u64 = 20_000;
/// Messages looked up at once while a queue is emptied.
const PAGE: usize = 64;
/// Peers served at the same time by one timer.
const PEERS_AT_ONCE: usize = 8;
/// Peers whose rests are remembered; beyond that, those that are over are dropped.
const RESTS: usize = 1024;
/// Longest receipt or refusal that is read.
const ANSWER_LIMIT: usize = 16 * 1024;
/// Longest refusal code that is kept.
const CODE_LIMIT: usize = 64;
/// The code by which a peer says that its version knows nothing of what it was asked.
pub(crate) const NO_SUCH_ROUTE: &str = "no-such-route";
/// Why a message that names files is refused by a version before that.
const TOO_OLD: &str = "peer-takes-no-attachments";

#[derive(Clone, Copy, Default)]
struct Rest {
    failures: u32,
    until: UnixMillis,
    /// What the last failure was.
    delay: Option<Delay>,
}

/// Why messages to a peer wait, as its last delivery ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Delay {
    /// Carrier: no answer.
    #[error("{0}")]
    Peer(#[from] PeerError),
    /// Peer: it keeps no more of this node's messages until its operator makes room.
    #[error("the peer's inbox is full")]
    InboxFull,
    /// Peer: it has no space.
    #[error("the peer's disk is full")]
    DiskFull,
    /// Peer: another trouble of its own.
    #[error("the peer cannot take it now (status {status})")]
    Troubled {
        /// Its status.
        status: u16,
    },
    /// Peer: an answer that is no receipt for this message.
    #[error("the peer's receipt did not come")]
    NoReceipt,
    /// Local: the node's store.
    #[error("this node could not note the delivery")]
    Local,
}

impl Delay {
    /// Stable name in kebab case.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::Peer(error) => ModuleError::from(error).code,
            Self::InboxFull => "peer-inbox-full",
            Self::DiskFull => "peer-disk-full",
            Self::Troubled { .. } => "peer-troubled",
            Self::NoReceipt => "peer-no-receipt",
            Self::Local => "delivery-not-noted",
        }
    }
}

#[derive(Default)]
struct Lane {
    turn: Arc<tokio::sync::Mutex<()>>,
    rest: Rest,
    /// Which of all tries by the timer its last one was; 0: none.
    tried: u64,
}

/// What is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Messages,
    Receipts,
}

/// Per peer: whose turn it is to deliver, and how long it rests.
pub(crate) struct Queue {
    timer: TimerId,
    lanes: Mutex<HashMap<NodeId, Lane>>,
    /// When the timer is set for.
    wake_at: Mutex<Option<UnixMillis>>,
    /// Tries by the timer so far.
    tries: AtomicU64,
}

/// What became of one attempt.
enum Attempt {
    Delivered,
    /// The peer will never take it.
    Refused(String),
    /// It may work later.
    Later(Delay),
}

impl Queue {
    pub(crate) fn new(timer: TimerId) -> Self {
        Self { timer, lanes: Mutex::default(), wake_at: Mutex::default(), tries: AtomicU64::new(0) }
    }

    fn lane<T>(&self, peer: NodeId, now: UnixMillis, look: impl FnOnce(&mut Lane) -> T) -> T {
        let mut lanes = self.lanes.lock().expect("no panic happens under this lock");
        if lanes.len() >= RESTS && !lanes.contains_key(&peer) {
            lanes.retain(|_, lane| lane.rest.until > now || Arc::strong_count(&lane.turn) > 1);
        }
        look(lanes.entry(peer).or_default())
    }

    /// To be held while something is delivered to this peer; waits until it is free.
    async fn turn(&self, peer: NodeId, now: UnixMillis) -> OwnedMutexGuard<()> {
        self.lane(peer, now, |lane| Arc::clone(&lane.turn)).lock_owned().await
    }

    /// The same; none while a delivery is under way, which takes what waits. It may have looked a moment too early, so the timer looks after it.
    fn turn_now(&self, context: &Context, peer: NodeId) -> Option<OwnedMutexGuard<()>> {
        let now = context.now();
        let turn = self.lane(peer, now, |lane| Arc::clone(&lane.turn)).try_lock_owned().ok();
        if turn.is_none() {
            self.wake(context, now + FIRST_REST);
        }
        turn
    }

    /// Those whose last try by the timer is the longest ago first.
    fn in_turn(&self, peers: &mut [NodeId], now: UnixMillis) {
        peers.sort_by_cached_key(|peer| self.lane(*peer, now, |lane| lane.tried));
    }

    fn tries(&self, peer: NodeId, now: UnixMillis) {
        let number = self.tries.fetch_add(1, Ordering::Relaxed) + 1;
        self.lane(peer, now, |lane| lane.tried = number);
    }

    pub(crate) fn resting(&self, peer: NodeId, now: UnixMillis) -> bool {
        // A clock that jumped back must not stretch a rest beyond its length.
        self.lane(peer, now, |lane| lane.rest.until > now && lane.rest.until - now <= LONGEST_REST)
    }

    pub(crate) fn succeeded(&self, peer: NodeId, now: UnixMillis) {
        self.lane(peer, now, |lane| lane.rest = Rest::default());
    }

    /// Why messages to this peer wait, if the last delivery failed.
    pub(crate) fn delay(&self, peer: NodeId, now: UnixMillis) -> Option<Delay> {
        self.lane(peer, now, |lane| lane.rest.delay)
    }

    pub(crate) fn failed(&self, context: &Context, peer: NodeId, delay: Delay) {
        let now = context.now();
        let until = self.lane(peer, now, |lane| {
            let length = FIRST_REST.saturating_mul(1 << lane.rest.failures.min(16)).min(LONGEST_REST);
            let failures = lane.rest.failures.saturating_add(1);
            lane.rest = Rest { failures, until: now + length, delay: Some(delay) };
            lane.rest.until
        });
        self.wake(context, until);
    }

    /// Sets the timer for `at`, unless it is set for an earlier moment that is still to come.
    pub(crate) fn wake(&self, context: &Context, at: UnixMillis) {
        let now = context.now();
        let mut wake_at = self.wake_at.lock().expect("no panic happens under this lock");
        if wake_at.is_none_or(|set| at < set || set < now) {
            *wake_at = Some(at);
            context.set_timer(self.timer, at);
        }
    }

    /// Makes sure that what waits is looked at, whatever becomes of the present call.
    pub(crate) fn wake_for_safety(&self, context: &Context) {
        self.wake(context, context.now() + SAFETY);
    }

    fn timer_fired(&self) {
        *self.wake_at.lock().expect("no panic happens under this lock") = None;
    }
}

impl Messaging {
    pub(crate) fn queue(&self, kind: Kind) -> &Queue {
        match kind {
            Kind::Messages => &self.messages,
            Kind::Receipts => &self.receipts,
        }
    }

    /// What waits for a peer, unless that is on its way already.
    async fn deliver(&self, context: &Context, kind: Kind, peer: NodeId) {
        let Some(_turn) = self.queue(kind).turn_now(context, peer) else { return };
        match kind {
            Kind::Messages => self.empty(context, peer).await,
            Kind::Receipts => self.tell_waiting(context, peer).await,
        }
    }

    /// The timer of a queue: every peer that something waits for and that has rested.
    pub(crate) async fn retry_due(&self, context: &Context, kind: Kind) {
        let queue = self.queue(kind);
        queue.timer_fired();
        let peers = match kind {
            Kind::Messages => store::peers_waiting(context, "q/", store::queued).await,
            Kind::Receipts => store::peers_waiting(context, "r/", store::receipt).await,
        };
        let mut peers = match peers {
            Ok(peers) => peers,
            Err(error) => {
                tracing::warn!(%error, "the outbox cannot be read; trying again");
                queue.wake(context, context.now() + FIRST_REST);
                return;
            }
        };
        if !peers.is_empty() {
            queue.wake_for_safety(context);
        }
        queue.in_turn(&mut peers, context.now());
        futures_util::stream::iter(peers)
            .for_each_concurrent(PEERS_AT_ONCE, |peer| async move {
                let until = queue.lane(peer, context.now(), |lane| lane.rest.until);
                if queue.resting(peer, context.now()) {
                    queue.wake(context, until);
                } else {
                    queue.tries(peer, context.now());
                    self.deliver(context, kind, peer).await;
                }
            })
            .await;
    }

    /// A session with the peer has opened: its rest is over.
    pub(crate) async fn peer_reachable(&self, context: &Context, peer: NodeId) {
        self.messages.wake_for_safety(context);
        self.receipts.wake_for_safety(context);
        self.deliver_to(context, peer).await;
    }

    /// Whatever waits for a peer, under whichever of its ids it was queued.
    pub(crate) async fn deliver_to(&self, context: &Context, peer: NodeId) {
        let ids = context.identities(peer).await.unwrap_or_else(|_| vec![peer]);
        for id in ids {
            for kind in [Kind::Messages, Kind::Receipts] {
                self.queue(kind).succeeded(id, context.now());
                self.deliver(context, kind, id).await;
            }
        }
    }

    /// Delivers what waits for a peer, after whatever delivery is under way: for the operator, who wants to hear what became of it.
    pub(crate) async fn deliver_waiting(&self, context: &Context, peer: NodeId) {
        let _turn = self.messages.turn(peer, context.now()).await;
        self.empty(context, peer).await;
    }

    /// Empties the queue of one peer, oldest first, until it is empty or something does not go. Its turn is the caller's.
    async fn empty(&self, context: &Context, peer: NodeId) {
        while !self.messages.resting(peer, context.now()) {
            match self.deliver_page(context, peer).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!(%error, "a delivery could not be noted; trying again");
                    self.messages.failed(context, peer, Delay::Local);
                }
            }
        }
    }

    /// Whether there may be more.
    async fn deliver_page(&self, context: &Context, peer: NodeId) -> Result<bool, MessagingError> {
        let waiting = store::oldest_waiting(context, &peer, PAGE).await?;
        for sequence in &waiting {
            let refused = match attempt(context, peer, *sequence).await? {
                Attempt::Delivered => None,
                Attempt::Refused(code) => Some(code),
                Attempt::Later(delay) => {
                    self.messages.failed(context, peer, delay);
                    return Ok(false);
                }
            };
            self.store.settle(context, &peer, *sequence, refused).await?;
            self.messages.succeeded(peer, context.now());
        }
        Ok(waiting.len() == PAGE)
    }

    /// Whether an attempt for this peer makes sense now.
    pub(crate) fn may_try(&self, context: &Context, peer: NodeId) -> bool {
        !self.messages.resting(peer, context.now())
    }
}

async fn attempt(context: &Context, peer: NodeId, sequence: Sequence) -> Result<Attempt, MessagingError> {
    let stored = Stored::load(context, store::outgoing(sequence), sequence).await?;
    let envelope = stored.ok_or(MessagingError::BadRow)?.envelope;
    // A version before attachments would take the message and drop what it names, so it is asked by a route that it does not have.
    let names_files = !envelope.attachments.is_empty();
    let path = if names_files { "/deliver/attached" } else { "/deliver" };
    let mut request = PeerRequest::post(path, MESSAGE_CONTENT_TYPE, Body::whole(envelope.encode()));
    request.idempotency_key = Some(envelope.id);
    request.deadline = Some(context.now() + DELIVERY_TIMEOUT);
    match context.peer_request(peer, request).await {
        Ok(response) if names_files && response.status == Status::NotFound => Ok(match refusal(response).await {
            Some(code) if code == NO_SUCH_ROUTE => Attempt::Refused(TOO_OLD.to_owned()),
            _ => Attempt::Later(Delay::Troubled { status: Status::NotFound.code() }),
        }),
        Ok(response) => Ok(judge(response, &hex::encode(envelope.id)).await),
        Err(error) => {
            tracing::debug!(%error, "a message waits");
            Ok(Attempt::Later(error.into()))
        }
    }
}

#[derive(Deserialize)]
struct Refusal {
    code: String,
}

/// The code of a refusal that can be read.
pub(crate) async fn refusal(response: Response) -> Option<String> {
    let answer = response.body.collect(ANSWER_LIMIT).await.ok()?;
    serde_json::from_slice::<Refusal>(&answer).ok().map(|refusal| refusal.code)
}

/// Only a receipt for this very message counts as delivered. Only refusals that cannot change count as final.
async fn judge(response: Response, id: &str) -> Attempt {
    let status = response.status;
    let Ok(answer) = response.body.collect(ANSWER_LIMIT).await else { return Attempt::Later(Delay::NoReceipt) };
    if status.is_success() {
        return match serde_json::from_slice::<Receipt>(&answer) {
            Ok(receipt) if receipt.id == id => Attempt::Delivered,
            _ => Attempt::Later(Delay::NoReceipt),
        };
    }
    let refusal = serde_json::from_slice::<Refusal>(&answer);
    let later = |status: Status| Attempt::Later(Delay::Troubled { status: status.code() });
    if !matches!(status, Status::BadRequest | Status::Conflict | Status::TooLarge) {
        return match (status, refusal) {
            (Status::InsufficientStorage, _) => Attempt::Later(Delay::DiskFull),
            (Status::TooMany, Ok(refusal)) if refusal.code == INBOX_FULL => Attempt::Later(Delay::InboxFull),
            _ => later(status),
        };
    }
    match refusal {
        // A body that was cut on its way is no verdict on the message.
        Ok(refusal) if refusal.code.starts_with("body-") && status == Status::BadRequest => later(status),
        Ok(refusal) if refusal.code.len() <= CODE_LIMIT && refusal.code.is_ascii() => Attempt::Refused(refusal.code),
        _ => Attempt::Refused("refused".to_owned()),
    }
}
