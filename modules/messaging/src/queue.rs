//! Delivery: takes what waits for a peer to it, in order, and tries again later what did not go.
//!
//! One delivery a peer runs at a time, so order holds. After a failure the peer rests, longer each time; a timer or
//! [`Event::PeerReachable`](openred_module::Event::PeerReachable) ends the rest. The rests are memory only: after a
//! restart everything is tried at once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use openred_module::{
    Body, Context, ModuleError, NodeId, PeerError, PeerRequest, Response, Status, TimerId, UnixMillis,
};
use serde::Deserialize;

use crate::Messaging;
use crate::error::{INBOX_FULL, MessagingError};
use crate::record::MESSAGE_CONTENT_TYPE;
use crate::store::{self, Receipt, Sequence, Stored};

/// The module's one timer.
pub(crate) const RETRY_TIMER: TimerId = 1;
/// Rest after a first failure, in milliseconds.
const FIRST_REST: u64 = 1_000;
/// Longest rest: how late a message can be after the peer came back without our noticing.
const LONGEST_REST: u64 = 5 * 60 * 1_000;
/// Whatever waits is looked at again after this long, even if the call or event that cared for it was dropped half way:
/// callers go away, and hosts end handlers that take too long.
const SAFETY: u64 = 60_000;
/// How long one delivery may take.
const DELIVERY_TIMEOUT: u64 = 30_000;
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
}

/// Per peer: whose turn it is to deliver, and how long it rests.
#[derive(Default)]
pub(crate) struct Queue {
    lanes: Mutex<HashMap<NodeId, Lane>>,
    /// When the timer is set for.
    wake_at: Mutex<Option<UnixMillis>>,
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
    fn lane<T>(&self, peer: NodeId, now: UnixMillis, look: impl FnOnce(&mut Lane) -> T) -> T {
        let mut lanes = self.lanes.lock().expect("no panic happens under this lock");
        if lanes.len() >= RESTS && !lanes.contains_key(&peer) {
            lanes.retain(|_, lane| lane.rest.until > now || Arc::strong_count(&lane.turn) > 1);
        }
        look(lanes.entry(peer).or_default())
    }

    fn resting(&self, peer: NodeId, now: UnixMillis) -> bool {
        // A clock that jumped back must not stretch a rest beyond its length.
        self.lane(peer, now, |lane| lane.rest.until > now && lane.rest.until - now <= LONGEST_REST)
    }

    fn succeeded(&self, peer: NodeId, now: UnixMillis) {
        self.lane(peer, now, |lane| lane.rest = Rest::default());
    }

    /// Why messages to this peer wait, if the last delivery failed.
    pub(crate) fn delay(&self, peer: NodeId, now: UnixMillis) -> Option<Delay> {
        self.lane(peer, now, |lane| lane.rest.delay)
    }

    fn failed(&self, context: &Context, peer: NodeId, delay: Delay) {
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
            context.set_timer(RETRY_TIMER, at);
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
    /// The timer: every peer that something waits for and that has rested.
    pub(crate) async fn retry_due(&self, context: &Context) {
        self.queue.timer_fired();
        let peers = match store::peers_waiting(context).await {
            Ok(peers) => peers,
            Err(error) => {
                tracing::warn!(%error, "the outbox cannot be read; trying again");
                self.queue.wake(context, context.now() + FIRST_REST);
                return;
            }
        };
        if !peers.is_empty() {
            self.queue.wake_for_safety(context);
        }
        futures_util::stream::iter(peers)
            .for_each_concurrent(PEERS_AT_ONCE, |peer| async move {
                let until = self.queue.lane(peer, context.now(), |lane| lane.rest.until);
                if self.queue.resting(peer, context.now()) {
                    self.queue.wake(context, until);
                } else {
                    self.deliver_waiting(context, peer).await;
                }
            })
            .await;
    }

    /// A session with the peer has opened: its rest is over.
    pub(crate) async fn peer_reachable(&self, context: &Context, peer: NodeId) {
        self.queue.wake_for_safety(context);
        self.deliver_to(context, peer).await;
    }

    /// Whatever waits for a peer, under whichever of its ids it was queued.
    pub(crate) async fn deliver_to(&self, context: &Context, peer: NodeId) {
        let ids = context.identities(peer).await.unwrap_or_else(|_| vec![peer]);
        for id in ids {
            self.queue.succeeded(id, context.now());
            self.deliver_waiting(context, id).await;
        }
    }

    /// Empties the queue of one peer, oldest first, until it is empty or something does not go.
    pub(crate) async fn deliver_waiting(&self, context: &Context, peer: NodeId) {
        let turn = self.queue.lane(peer, context.now(), |lane| Arc::clone(&lane.turn));
        let _turn = turn.lock().await;
        while !self.queue.resting(peer, context.now()) {
            match self.deliver_page(context, peer).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    tracing::warn!(%error, "a delivery could not be noted; trying again");
                    self.queue.failed(context, peer, Delay::Local);
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
                    self.queue.failed(context, peer, delay);
                    return Ok(false);
                }
            };
            self.store.settle(context, &peer, *sequence, refused).await?;
            self.queue.succeeded(peer, context.now());
        }
        Ok(waiting.len() == PAGE)
    }

    /// Whether an attempt for this peer makes sense now.
    pub(crate) fn may_try(&self, context: &Context, peer: NodeId) -> bool {
        !self.queue.resting(peer, context.now())
    }
}

async fn attempt(context: &Context, peer: NodeId, sequence: Sequence) -> Result<Attempt, MessagingError> {
    let row = context.get(store::outgoing(sequence)).await?.ok_or(MessagingError::BadRow)?;
    let envelope = Stored::decode(&row)?.envelope;
    let mut request = PeerRequest::post("/deliver", MESSAGE_CONTENT_TYPE, Body::whole(envelope.encode()));
    request.idempotency_key = Some(envelope.id);
    request.deadline = Some(context.now() + DELIVERY_TIMEOUT);
    match context.peer_request(peer, request).await {
        Ok(response) => Ok(judge(response, &hex::encode(envelope.id)).await),
        Err(error) => {
            tracing::debug!(%error, "a message waits");
            Ok(Attempt::Later(error.into()))
        }
    }
}

/// Only a receipt for this very message counts as delivered. Only refusals that cannot change count as final.
async fn judge(response: Response, id: &str) -> Attempt {
    #[derive(Deserialize)]
    struct Refusal {
        code: String,
    }
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
