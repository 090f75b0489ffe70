//! How many calls of one module may be in flight, and whose: peers, the operator and the node's own events have places of
//! their own, and one peer has a share, so that nobody keeps a module from the others; so have questions
//! to its hooks. Counts only; nothing is queued here but events.
//!
//! A peer's or module's call is in flight until its answer has been read: who does not read what he asked for takes a place all the same. The
//! operator's is over when its answer has begun: he follows transfers for hours, and keeps nobody else from anything.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt as _;
use openred_module::{Body, Caller, Class, Response};
use openred_proto::id::NodeId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Calls of peers in all; more are refused, not queued.
const PEERS: usize = 132;
/// Of those, of one peer: four peers at their limit still leave others a place.
const ONE_PEER: usize = 32;
/// Calls of the operator.
pub(super) const OPERATOR: usize = 32;
/// Calls of other modules.
const MODULES: usize = 16;
/// Connections on this machine's loopback: a scraper, an operator's browser with its handful, and room.
const LOOPBACK: usize = 16;
/// Events that are handled at once.
const EVENTS: usize = 12;
/// Questions to hooks that decide: they are short, so these are tens of thousands in a second.
const HOOKS: usize = 32;
/// Questions to hooks that observe: they take none of those.
const OBSERVERS: usize = 16;
/// All of them together fit one attachment, so that whoever has a place is not refused behind it.
const _: () =
    assert!(PEERS + OPERATOR + MODULES + LOOPBACK + EVENTS + HOOKS + OBSERVERS <= openred_module::remote::CALLS);
/// Events that may wait for that: as many as sessions can open while one handler takes its time.
const EVENTS_WAITING: usize = 1024;

/// Calls in flight by peer.
type Shares = Arc<Mutex<HashMap<NodeId, usize>>>;

/// The places of one module.
#[derive(Debug)]
pub(super) struct Places {
    peers: Arc<Semaphore>,
    of_peer: Shares,
    operator: Arc<Semaphore>,
    modules: Arc<Semaphore>,
    loopback: Arc<Semaphore>,
    events: Arc<Semaphore>,
    events_waiting: Arc<Semaphore>,
    hooks: Arc<Semaphore>,
    observers: Arc<Semaphore>,
}

/// A call's place; free again when dropped.
#[derive(Debug)]
pub(super) struct Place {
    #[expect(dead_code, reason = "held for its Drop")]
    permit: OwnedSemaphorePermit,
    /// Whose share it is, for a peer's call.
    share: Option<(NodeId, Shares)>,
}

/// An event's right to wait for a place.
#[derive(Debug)]
pub(super) struct Waiting {
    permit: OwnedSemaphorePermit,
    events: Arc<Semaphore>,
}

impl Default for Places {
    fn default() -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        Self {
            peers: places(PEERS),
            of_peer: Arc::default(),
            operator: places(OPERATOR),
            modules: places(MODULES),
            loopback: places(LOOPBACK),
            events: places(EVENTS),
            events_waiting: places(EVENTS_WAITING),
            hooks: places(HOOKS),
            observers: places(OBSERVERS),
        }
    }
}

impl Places {
    /// A place for a call of `caller`, if there is one.
    pub(super) fn call(&self, caller: Caller) -> Option<Place> {
        let free = |places: &Arc<Semaphore>| {
            let permit = Arc::clone(places).try_acquire_owned().ok()?;
            Some(Place { permit, share: None })
        };
        let peer = match caller {
            Caller::Peer(peer) => peer,
            Caller::Operator => return free(&self.operator),
            Caller::Module(_) => return free(&self.modules),
            Caller::Loopback => return free(&self.loopback),
        };
        let permit = Arc::clone(&self.peers).try_acquire_owned().ok()?;
        let mut of_peer = self.of_peer.lock().unwrap_or_else(PoisonError::into_inner);
        let count = of_peer.entry(peer).or_default();
        if *count >= ONE_PEER {
            return None;
        }
        *count += 1;
        Some(Place { permit, share: Some((peer, Arc::clone(&self.of_peer))) })
    }

    /// A place for a question to a hook, if there is one.
    pub(super) fn hook(&self, class: Class) -> Option<Place> {
        let places = if class == Class::Observe { &self.observers } else { &self.hooks };
        let permit = Arc::clone(places).try_acquire_owned().ok()?;
        Some(Place { permit, share: None })
    }

    /// The right to wait for an event's place, unless too many do.
    pub(super) fn event(&self) -> Option<Waiting> {
        let permit = Arc::clone(&self.events_waiting).try_acquire_owned().ok()?;
        Some(Waiting { permit, events: Arc::clone(&self.events) })
    }
}

impl Waiting {
    /// Waits for the place.
    pub(super) async fn place(self) -> Option<Place> {
        let permit = self.events.acquire_owned().await.ok()?;
        drop(self.permit);
        Some(Place { permit, share: None })
    }
}

impl Place {
    /// Keeps it until this answer was read, or nobody reads it any more. One that is in memory needs nothing of its module.
    pub(super) fn until_read(self, mut response: Response) -> Response {
        if response.body.known_length().is_none() {
            let body = std::mem::replace(&mut response.body, Body::empty());
            response.body = Body::stream(body.inspect(move |_| {
                let _ = &self;
            }));
        }
        response
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let Some((peer, of_peer)) = self.share.take() else { return };
        let mut of_peer = of_peer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = of_peer.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                of_peer.remove(&peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn one_peer_takes_its_share_and_no_more() {
        let places = Places::default();
        let [greedy, other] = [NodeId::from_bytes([1; 32]), NodeId::from_bytes([2; 32])];
        let held: Vec<Place> = std::iter::from_fn(|| places.call(Caller::Peer(greedy))).collect();
        assert_eq!(held.len(), ONE_PEER);
        assert!(places.call(Caller::Peer(other)).is_some());
        assert!(places.call(Caller::Operator).is_some());
        drop(held);
        assert!(places.call(Caller::Peer(greedy)).is_some());
        assert!(places.of_peer.lock().unwrap().is_empty(), "nothing is kept of peers without calls");
    }

    #[test]
    fn peers_together_leave_the_operator_and_events_their_places() {
        let places = Places::default();
        let peers = (0..=u8::MAX).map(|peer| NodeId::from_bytes([peer; 32]));
        let held: Vec<Place> =
            peers.flat_map(|peer| (0..2).filter_map(|_| places.call(Caller::Peer(peer))).collect::<Vec<_>>()).collect();
        assert_eq!(held.len(), PEERS);
        assert!(places.call(Caller::Operator).is_some());
        assert!(places.event().is_some());
        let dialled: Vec<Place> = std::iter::from_fn(|| places.call(Caller::Loopback)).collect();
        assert_eq!(dialled.len(), LOOPBACK);
        assert!(places.call(Caller::Operator).is_some());
    }

    #[test]
    fn observers_take_no_place_of_those_who_decide() {
        let places = Places::default();
        let held: Vec<Place> = std::iter::from_fn(|| places.hook(Class::Observe)).collect();
        assert_eq!(held.len(), OBSERVERS);
        let deciding: Vec<Place> = std::iter::from_fn(|| places.hook(Class::Authz)).collect();
        assert_eq!(deciding.len(), HOOKS);
        assert!(places.hook(Class::Transform).is_none() && places.call(Caller::Operator).is_some());
    }

    #[tokio::test]
    async fn events_wait_for_a_place() {
        let places = Places::default();
        let mut held = Vec::new();
        for _ in 0..EVENTS {
            held.push(places.event().unwrap().place().await.unwrap());
        }
        let waiting = tokio::spawn(places.event().unwrap().place());
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        held.pop();
        assert!(waiting.await.unwrap().is_some());
    }
}
