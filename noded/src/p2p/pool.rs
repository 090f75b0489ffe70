//! Open sessions: found by the tag of an incoming request and by peer for our own; bounded, the least recently used first
//! to go. Handshakes under way are here, too, so that many callers wait for one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use openred_proto::checked::session::Side;
use openred_proto::id::{HandshakeId, LinkId, NodeId};
use tokio::sync::{Notify, watch};

use super::connections::Reach;
use super::error::NetworkError;
use super::ports::LinkHandle;
use super::settings::SESSIONS_PER_PEER;
use crate::session::Session;
use crate::session::keys::SessionTag;

/// How one handshake ended, for all who wait for it.
pub(super) type Ending = Option<Result<(), NetworkError>>;

/// A session with what the network layer keeps beside it.
#[derive(Debug)]
pub(super) struct Pooled {
    pub(super) session: Arc<Session>,
    /// Its link, for the match proof.
    pub(super) handle: Arc<LinkHandle>,
    /// Where the peer was reached last: by the handshake, or by a request of ours when the peer had come to us.
    reach: Mutex<Option<Reach>>,
    born: Instant,
    /// Milliseconds after `born`.
    last_used: AtomicU64,
    matched: AtomicU8,
    /// The peer is known to hold the session, too: it answered with ACCEPT, or sent a request.
    confirmed: AtomicBool,
    /// No longer for new requests of ours.
    retired: AtomicBool,
    /// Responder: what may still be signed of its handshake.
    handshake: Mutex<Option<HandshakeId>>,
    /// Responder: nothing is taken on it before both have signed.
    owes_signature: AtomicBool,
}

impl Pooled {
    pub(super) fn new(session: Session, handle: Arc<LinkHandle>, reach: Option<Reach>) -> Arc<Self> {
        let confirmed = AtomicBool::new(session.side == Side::Initiator);
        Arc::new(Self {
            born: session.opened_at(),
            session: Arc::new(session),
            handle,
            reach: Mutex::new(reach),
            last_used: AtomicU64::new(0),
            matched: AtomicU8::new(0),
            confirmed,
            retired: AtomicBool::new(false),
            handshake: Mutex::default(),
            owes_signature: AtomicBool::new(false),
        })
    }

    /// Responder: the handshake that it came of, and whether the peer has to sign it before all else.
    pub(super) fn set_handshake(&self, handshake: HandshakeId, owes_signature: bool) {
        *self.handshake.lock().expect("nothing panics while it holds the handshake") = Some(handshake);
        self.owes_signature.store(owes_signature, Ordering::Relaxed);
    }

    /// The right to sign, once.
    pub(super) fn take_handshake(&self) -> Option<HandshakeId> {
        self.handshake.lock().expect("nothing panics while it holds the handshake").take()
    }

    /// Both have signed.
    pub(super) fn set_signed(&self) {
        self.owes_signature.store(false, Ordering::Relaxed);
    }

    /// Whether anything but a signature is refused on it.
    pub(super) fn owes_signature(&self) -> bool {
        self.owes_signature.load(Ordering::Relaxed)
    }

    /// Where the peer was reached last.
    pub(super) fn reach(&self) -> Option<Reach> {
        self.reach.lock().expect("nothing panics while it holds the reach").clone()
    }

    /// Remembers where the peer was reached, or that it is there no more.
    pub(super) fn set_reach(&self, reach: Option<Reach>) {
        *self.reach.lock().expect("nothing panics while it holds the reach") = reach;
    }

    /// It is used now.
    pub(super) fn touch(&self, now: Instant) {
        let millis = u64::try_from(now.saturating_duration_since(self.born).as_millis()).unwrap_or(u64::MAX);
        self.last_used.store(millis, Ordering::Relaxed);
    }

    /// The peer used it, so both sides hold it.
    pub(super) fn confirm(&self) -> bool {
        !self.confirmed.swap(true, Ordering::Relaxed)
    }

    /// The result of the cross-validation, once known.
    pub(super) fn matched(&self) -> Option<bool> {
        match self.matched.load(Ordering::Relaxed) {
            0 => None,
            known => Some(known == 1),
        }
    }

    pub(super) fn set_matched(&self, matched: bool) {
        self.matched.store(if matched { 1 } else { 2 }, Ordering::Relaxed);
    }

    fn used_at(&self) -> Instant {
        self.born + Duration::from_millis(self.last_used.load(Ordering::Relaxed))
    }

    fn serves(&self, now: Instant) -> bool {
        self.confirmed.load(Ordering::Relaxed) && !self.retired.load(Ordering::Relaxed) && self.session.is_live(now)
    }
}

/// What a caller that needs a session finds.
#[derive(Debug)]
pub(super) enum Find {
    /// One to use.
    Session(Arc<Pooled>),
    /// None yet: a handshake is under way.
    Wait(watch::Receiver<Ending>),
    /// None: the caller starts the handshake and tells the end.
    Start(Opening, watch::Receiver<Ending>),
}

/// The right and duty to run one handshake; dropped, those who wait are released.
#[derive(Debug)]
pub(super) struct Opening {
    pool: Arc<Pool>,
    peer: NodeId,
    ending: watch::Sender<Ending>,
    sent: Arc<AtomicBool>,
}

impl Opening {
    /// Set when the REQUEST is on its way; from then on the peer's own counts as simultaneous.
    pub(super) fn sent(&self) -> &AtomicBool {
        &self.sent
    }

    /// Tells all who wait how it ended.
    pub(super) fn end(self, result: Result<(), NetworkError>) {
        self.pool.inner().opening.remove(&self.peer);
        self.ending.send_replace(Some(result));
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.pool.inner().opening.remove(&self.peer);
    }
}

/// The pool.
#[derive(Debug)]
pub(super) struct Pool {
    capacity: usize,
    idle: Duration,
    inner: Mutex<Inner>,
    /// A session became usable.
    pub(super) changed: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    by_tag: HashMap<SessionTag, Arc<Pooled>>,
    by_peer: HashMap<NodeId, Vec<Arc<Pooled>>>,
    opening: HashMap<NodeId, (watch::Receiver<Ending>, Arc<AtomicBool>)>,
}

impl Pool {
    pub(super) fn new(capacity: usize, idle: Duration) -> Arc<Self> {
        Arc::new(Self { capacity, idle, inner: Mutex::default(), changed: Notify::new() })
    }

    /// The session of an incoming request.
    pub(super) fn by_tag(&self, tag: &SessionTag) -> Option<Arc<Pooled>> {
        self.inner().by_tag.get(tag).cloned()
    }

    /// The newest usable session with `peer`.
    pub(super) fn find(&self, peer: &NodeId, now: Instant) -> Option<Arc<Pooled>> {
        self.inner().find(peer, now)
    }

    /// A session, or the handshake that will give one.
    pub(super) fn find_or_open(self: &Arc<Self>, peer: NodeId, now: Instant) -> Find {
        let mut inner = self.inner();
        if let Some(found) = inner.find(&peer, now) {
            return Find::Session(found);
        }
        match inner.opening.get(&peer) {
            Some((ending, _)) => Find::Wait(ending.clone()),
            None => {
                let (opening, ending) = self.begin(&mut inner, peer);
                Find::Start(opening, ending)
            }
        }
    }

    /// The right to renew, unless a handshake with `peer` is under way.
    pub(super) fn renew(self: &Arc<Self>, peer: NodeId) -> Option<Opening> {
        let mut inner = self.inner();
        if inner.opening.contains_key(&peer) { None } else { Some(self.begin(&mut inner, peer).0) }
    }

    fn begin(self: &Arc<Self>, inner: &mut Inner, peer: NodeId) -> (Opening, watch::Receiver<Ending>) {
        let (sender, receiver) = watch::channel(None);
        let sent = Arc::new(AtomicBool::new(false));
        inner.opening.insert(peer, (receiver.clone(), Arc::clone(&sent)));
        (Opening { pool: Arc::clone(self), peer, ending: sender, sent }, receiver)
    }

    /// Whether a REQUEST of ours to `peer` is on its way.
    pub(super) fn is_opening(&self, peer: &NodeId) -> bool {
        self.inner().opening.get(peer).is_some_and(|(_, sent)| sent.load(Ordering::Relaxed))
    }

    /// Takes a session in; makes room.
    pub(super) fn insert(&self, pooled: &Arc<Pooled>, now: Instant) {
        let mut inner = self.inner();
        let of_peer = inner.by_peer.get(&pooled.session.peer).map_or(0, Vec::len);
        if of_peer >= SESSIONS_PER_PEER {
            let oldest = inner.by_peer.get(&pooled.session.peer).and_then(|list| least_recent(list.iter()));
            inner.remove_all(oldest.into_iter());
        } else if inner.by_tag.len() >= self.capacity {
            let oldest = least_recent(inner.by_tag.values());
            inner.remove_all(oldest.into_iter());
        }
        pooled.touch(now);
        inner.by_tag.insert(*pooled.session.incoming_tag(), Arc::clone(pooled));
        inner.by_peer.entry(pooled.session.peer).or_default().push(Arc::clone(pooled));
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Ends a session: nothing new begins on it, streams that run may end.
    pub(super) fn remove(&self, pooled: &Arc<Pooled>) {
        self.inner().remove_all([Arc::clone(pooled)].into_iter());
    }

    /// No new request of ours begins on it; the peer's still may.
    pub(super) fn retire(pooled: &Pooled) {
        pooled.retired.store(true, Ordering::Relaxed);
    }

    /// Ends the sessions of a link that is gone.
    pub(super) fn remove_link(&self, link: &LinkId) {
        let mut inner = self.inner();
        let gone: Vec<_> = inner.by_tag.values().filter(|pooled| pooled.session.link == *link).cloned().collect();
        inner.remove_all(gone.into_iter());
    }

    /// Drops what is idle or past its life.
    pub(super) fn sweep(&self, now: Instant) {
        let mut inner = self.inner();
        let is_over = |pooled: &Pooled| {
            let idle = now.saturating_duration_since(pooled.used_at()) >= self.idle;
            (idle && pooled.session.open_requests() == 0) || !pooled.session.is_receiving(now)
        };
        let over: Vec<_> = inner.by_tag.values().filter(|pooled| is_over(pooled)).cloned().collect();
        inner.remove_all(over.into_iter());
    }

    /// All sessions, for status.
    pub(super) fn all(&self) -> Vec<Arc<Pooled>> {
        self.inner().by_tag.values().cloned().collect()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("nothing panics while it holds the pool")
    }
}

impl Inner {
    fn find(&self, peer: &NodeId, now: Instant) -> Option<Arc<Pooled>> {
        self.by_peer.get(peer)?.iter().rev().find(|pooled| pooled.serves(now)).cloned()
    }

    fn remove_all(&mut self, gone: impl Iterator<Item = Arc<Pooled>>) {
        for pooled in gone {
            self.by_tag.remove(pooled.session.incoming_tag());
            if let Some(list) = self.by_peer.get_mut(&pooled.session.peer) {
                list.retain(|other| !Arc::ptr_eq(other, &pooled));
                if list.is_empty() {
                    self.by_peer.remove(&pooled.session.peer);
                }
            }
        }
    }
}

fn least_recent<'a>(sessions: impl Iterator<Item = &'a Arc<Pooled>>) -> Option<Arc<Pooled>> {
    sessions.min_by_key(|pooled| pooled.used_at()).cloned()
}
