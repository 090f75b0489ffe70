//! Open sessions: found by the tag of an incoming request and by peer for our own; bounded, of those that nobody uses the least
//! recently used first to go, and where all are in use one of whoever has most. Handshakes under way are here, too, so that many
//! callers wait for one, and how long none is begun in the background because the last one failed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use openred_proto::checked::session::Side;
use openred_proto::id::{HandshakeId, LinkId, NodeId};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::attention::Quick;
use super::connections::Reach;
use super::error::NetworkError;
use super::ports::LinkHandle;
use super::settings::{NetworkSettings, RENEWAL_PAUSE, RENEWAL_PAUSE_MAX, SUPERSEDED_IDLE};
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
    /// Requests under way, ours and the peer's, to the end of their answers.
    in_use: AtomicUsize,
    /// How its peer answers us.
    pub(super) quick: Quick,
    /// It has left the pool.
    gone: CancellationToken,
}

/// A session in use: it stays in the pool, and counts as used until this is dropped.
#[derive(Debug)]
pub(super) struct InUse(pub(super) Arc<Pooled>);

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.touch(Instant::now());
        self.0.in_use.fetch_sub(1, Ordering::Relaxed);
    }
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
            in_use: AtomicUsize::new(0),
            quick: Quick::default(),
            gone: CancellationToken::new(),
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

    /// Takes it into use.
    pub(super) fn hold(self: &Arc<Self>, now: Instant) -> InUse {
        self.touch(now);
        self.in_use.fetch_add(1, Ordering::Relaxed);
        InUse(Arc::clone(self))
    }

    /// What comes of `asking`, which is of use to nobody once this has left the pool.
    pub(super) async fn while_held<A: Future>(&self, asking: A) -> Option<A::Output> {
        self.gone.run_until_cancelled(asking).await
    }

    /// Requests under way.
    pub(super) fn in_use(&self) -> usize {
        self.in_use.load(Ordering::Relaxed)
    }

    /// Where the peer was reached last.
    pub(super) fn reach(&self) -> Option<Reach> {
        self.reach.lock().expect("nothing panics while it holds the reach").clone()
    }

    /// Remembers where the peer was reached, or that it is there no more.
    pub(super) fn set_reach(&self, reach: Option<Reach>) {
        *self.reach.lock().expect("nothing panics while it holds the reach") = reach;
    }

    fn touch(&self, now: Instant) {
        let millis = u64::try_from(now.saturating_duration_since(self.born).as_millis()).unwrap_or(u64::MAX);
        self.last_used.fetch_max(millis, Ordering::Relaxed);
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

    fn is_idle_for(&self, time: Duration, now: Instant) -> bool {
        self.in_use() == 0 && now.saturating_duration_since(self.used_at()) >= time
    }

    /// Both sides hold it and nothing speaks against it but its limits.
    fn is_open(&self) -> bool {
        self.confirmed.load(Ordering::Relaxed) && !self.retired.load(Ordering::Relaxed)
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
    renewal: bool,
}

impl Opening {
    /// Set while a REQUEST is on its way, or what follows it: meanwhile the peer's own counts as simultaneous.
    pub(super) fn sent(&self) -> &AtomicBool {
        &self.sent
    }

    /// Whether it is run in the background, beside a session that still serves.
    pub(super) const fn is_renewal(&self) -> bool {
        self.renewal
    }

    /// Tells all who wait how it ended. After a renewal that failed none is begun for a while.
    pub(super) fn end(self, result: Result<(), NetworkError>, now: Instant) {
        let mut inner = self.pool.inner();
        inner.opening.remove(&self.peer);
        if result.is_ok() {
            inner.pauses.remove(&self.peer);
        } else if self.is_renewal() && inner.by_peer.contains_key(&self.peer) {
            inner.pauses.entry(self.peer).or_default().lengthen(now);
        }
        drop(inner);
        self.ending.send_replace(Some(result));
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.pool.inner().opening.remove(&self.peer);
    }
}

/// How long no renewal is begun after some that failed: doubled each time.
#[derive(Debug, Default)]
struct Pause {
    failures: u32,
    until: Option<Instant>,
}

impl Pause {
    fn lengthen(&mut self, now: Instant) {
        let pause = RENEWAL_PAUSE.saturating_mul(1 << self.failures.min(16)).min(RENEWAL_PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        self.until = Some(now + pause);
    }

    fn holds(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }
}

/// Every place is taken by a session in use, and nobody has more of them than the one who asks for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many sessions are in use")]
pub(super) struct PoolFull;

/// The pool.
#[derive(Debug)]
pub(super) struct Pool {
    capacity: usize,
    per_peer: usize,
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
    /// Of peers with a session only.
    pauses: HashMap<NodeId, Pause>,
}

impl Pool {
    pub(super) fn new(settings: &NetworkSettings) -> Arc<Self> {
        Arc::new(Self {
            capacity: settings.sessions,
            per_peer: settings.sessions_per_peer,
            idle: settings.session_idle,
            inner: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// The session of an incoming request.
    pub(super) fn by_tag(&self, tag: &SessionTag) -> Option<Arc<Pooled>> {
        self.inner().by_tag.get(tag).cloned()
    }

    /// The newest usable session with `peer`.
    pub(super) fn find(&self, peer: &NodeId, now: Instant) -> Option<Arc<Pooled>> {
        self.inner().find(peer, self.idle, now)
    }

    /// A session, or the handshake that will give one.
    pub(super) fn find_or_open(self: &Arc<Self>, peer: NodeId, now: Instant) -> Find {
        let mut inner = self.inner();
        if let Some(found) = inner.find(&peer, self.idle, now) {
            return Find::Session(found);
        }
        match inner.opening.get(&peer) {
            Some((ending, _)) => Find::Wait(ending.clone()),
            None => {
                let (opening, ending) = self.begin(&mut inner, peer, false);
                Find::Start(opening, ending)
            }
        }
    }

    /// The right to open another session with `peer`, unless a handshake with it is under way.
    pub(super) fn renew(self: &Arc<Self>, peer: NodeId) -> Option<Opening> {
        let mut inner = self.inner();
        if inner.opening.contains_key(&peer) {
            return None;
        }
        let renewal = inner.by_peer.contains_key(&peer);
        Some(self.begin(&mut inner, peer, renewal).0)
    }

    /// The right to open the session that takes over from `pooled`, once that is due: unless another has taken over, a
    /// handshake is under way, or the last one failed a moment ago.
    pub(super) fn renew_due(self: &Arc<Self>, pooled: &Arc<Pooled>, now: Instant) -> Option<Opening> {
        if !pooled.session.is_renewal_due(now) {
            return None;
        }
        let peer = pooled.session.peer;
        let mut inner = self.inner();
        let newest = inner.by_peer.get(&peer)?.iter().rev().find(|other| other.is_open() && other.session.is_live(now));
        let is_newest = newest.is_some_and(|newest| Arc::ptr_eq(newest, pooled));
        let waits = inner.opening.contains_key(&peer) || inner.pauses.get(&peer).is_some_and(|pause| pause.holds(now));
        if !is_newest || waits {
            return None;
        }
        Some(self.begin(&mut inner, peer, true).0)
    }

    /// Whether a session with `peer` is there that has come to its limits.
    pub(super) fn is_at_limit(&self, peer: &NodeId, now: Instant) -> bool {
        let inner = self.inner();
        inner.by_peer.get(peer).is_some_and(|list| list.iter().any(|held| held.is_open() && !held.session.is_live(now)))
    }

    fn begin(self: &Arc<Self>, inner: &mut Inner, peer: NodeId, renewal: bool) -> (Opening, watch::Receiver<Ending>) {
        let (sender, receiver) = watch::channel(None);
        let sent = Arc::new(AtomicBool::new(false));
        inner.opening.insert(peer, (receiver.clone(), Arc::clone(&sent)));
        (Opening { pool: Arc::clone(self), peer, ending: sender, sent, renewal }, receiver)
    }

    /// Whether a REQUEST of ours to `peer` is on its way.
    pub(super) fn is_opening(&self, peer: &NodeId) -> bool {
        self.inner().opening.get(peer).is_some_and(|(_, sent)| sent.load(Ordering::Relaxed))
    }

    /// Whether a session with `peer` would be taken in now: nothing is asked of the key process for one that would not.
    pub(super) fn has_room(&self, peer: &NodeId) -> bool {
        self.place(&self.inner(), peer).is_ok()
    }

    /// Takes a session in; makes room.
    pub(super) fn insert(&self, pooled: &Arc<Pooled>, now: Instant) -> Result<(), PoolFull> {
        let mut inner = self.inner();
        let leaves = self.place(&inner, &pooled.session.peer)?;
        inner.remove_all(leaves.into_iter());
        pooled.touch(now);
        inner.by_tag.insert(*pooled.session.incoming_tag(), Arc::clone(pooled));
        inner.by_peer.entry(pooled.session.peer).or_default().push(Arc::clone(pooled));
        drop(inner);
        self.changed.notify_waiters();
        Ok(())
    }

    /// Who leaves for another session with `peer`, if anybody must: one that nobody uses. Where all are in use, the session that takes
    /// over from another of the same peer still finds a place, so that no peer of a full pool loses its session at its limit; twice the
    /// capacity is the end. Beyond that, whoever has most gives one up, if he is ahead also then: a peer keeps a session in use by
    /// sending a byte now and then, and a few that hold all they may would leave nothing to the rest.
    fn place(&self, inner: &Inner, peer: &NodeId) -> Result<Option<Arc<Pooled>>, PoolFull> {
        let of_peer = inner.by_peer.get(peer).map_or(&[][..], Vec::as_slice);
        if of_peer.len() >= self.per_peer {
            return least_recent(of_peer.iter()).ok_or(PoolFull).map(Some);
        }
        if inner.by_tag.len() < self.capacity {
            return Ok(None);
        }
        match least_recent(inner.by_tag.values()) {
            Some(idle) => Ok(Some(idle)),
            None if !of_peer.is_empty() && inner.by_tag.len() < 2 * self.capacity => Ok(None),
            None => inner.of_who_has_most(of_peer.len() + 1).ok_or(PoolFull).map(Some),
        }
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
        let gone: Vec<_> = inner.by_tag.values().filter(|pooled| pooled.handle.link == *link).cloned().collect();
        inner.remove_all(gone.into_iter());
    }

    /// Drops what is past its life, or idle. A peer may count its idle time from a little later: its requests find the session for a
    /// while after ours do not any more. One that another has taken over from goes sooner.
    pub(super) fn sweep(&self, now: Instant) {
        let mut inner = self.inner();
        let mut over = Vec::new();
        for list in inner.by_peer.values() {
            let newest = list.iter().rposition(|pooled| pooled.is_open() && pooled.session.is_live(now));
            for (index, pooled) in list.iter().enumerate() {
                let is_superseded = newest.is_some_and(|newest| index < newest);
                let idle = if is_superseded { SUPERSEDED_IDLE.min(self.idle) } else { self.idle + SUPERSEDED_IDLE };
                if pooled.is_idle_for(idle, now) || !pooled.session.is_receiving(now) {
                    over.push(Arc::clone(pooled));
                }
            }
        }
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
    fn find(&self, peer: &NodeId, idle: Duration, now: Instant) -> Option<Arc<Pooled>> {
        let serves =
            |pooled: &&Arc<Pooled>| pooled.is_open() && pooled.session.is_live(now) && !pooled.is_idle_for(idle, now);
        self.by_peer.get(peer)?.iter().rev().find(serves).cloned()
    }

    /// The one that was used longest ago, of the peer that has most, if these are more than `many`.
    fn of_who_has_most(&self, many: usize) -> Option<Arc<Pooled>> {
        let most = self.by_peer.values().max_by_key(|list| list.len()).filter(|list| list.len() > many)?;
        most.iter().min_by_key(|pooled| pooled.used_at()).cloned()
    }

    fn remove_all(&mut self, gone: impl Iterator<Item = Arc<Pooled>>) {
        for pooled in gone {
            pooled.gone.cancel();
            self.by_tag.remove(pooled.session.incoming_tag());
            if let Some(list) = self.by_peer.get_mut(&pooled.session.peer) {
                list.retain(|other| !Arc::ptr_eq(other, &pooled));
                if list.is_empty() {
                    self.by_peer.remove(&pooled.session.peer);
                    self.pauses.remove(&pooled.session.peer);
                }
            }
        }
    }
}

/// Of those that nobody uses.
fn least_recent<'a>(sessions: impl Iterator<Item = &'a Arc<Pooled>>) -> Option<Arc<Pooled>> {
    sessions.filter(|pooled| pooled.in_use() == 0).min_by_key(|pooled| pooled.used_at()).cloned()
}
