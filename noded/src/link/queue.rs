//! Requests for links that found no directory: kept, over restarts too, and made when one answers. Nothing is signed for one before its
//! peer's card is known, so what is kept is who was asked for, with what life, and when.
//!
//! In: the operator's request ([`Links::ask`]). Out: links, as of any request, and what still waits, for `openred link list`. A link that comes
//! otherwise ends the request; so does the operator's later word, which counts also for a request whose first look-up is still on its way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use openred_proto::id::{NodeId, UnixMillis};

use super::offers::{Sending, Wanted, stands};
use super::state::{Link, WAITS};
use super::upkeep::spread;
use super::{LinkError, Links};
use crate::clock;
use crate::sensitive::Sensitive;
use crate::store::StoreError;

/// What the state of such a link is called.
pub(crate) const QUEUED: &str = "queued";
/// Requests that wait at once.
pub(super) const REQUESTS: usize = 64;
/// Attempts after which the pauses grow no more: a minute, so that a directory that is back is noticed soon.
const PAUSES: u32 = 5;
/// First byte of the stored form.
const LAYOUT: u8 = 1;
/// The peer, seconds of life, and when it was asked for.
const BYTES: usize = 32 + 8 + 8;

/// A link that the operator has asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) peer: NodeId,
    /// As it was asked for; none: as configured.
    pub(crate) life: Option<Duration>,
    pub(crate) asked_at: UnixMillis,
    /// Why there is no link yet; none before the first look since the start.
    pub(crate) why: Option<LinkError>,
}

impl Request {
    /// It is given up then: as an offer that waits for an operator.
    pub(crate) fn ends(&self) -> UnixMillis {
        self.asked_at.plus(WAITS)
    }
}

/// The stored form.
pub(crate) fn encode<'a>(requests: impl IntoIterator<Item = &'a Request>) -> Vec<u8> {
    let mut bytes = vec![LAYOUT];
    for request in requests {
        bytes.extend_from_slice(request.peer.as_bytes());
        bytes.extend_from_slice(&request.life.map_or(0, |life| life.as_secs()).to_be_bytes());
        bytes.extend_from_slice(&request.asked_at.0.to_be_bytes());
    }
    bytes
}

/// From the stored form.
pub(crate) fn decode(bytes: &[u8]) -> Option<Vec<Request>> {
    let (&LAYOUT, bytes) = bytes.split_first()? else { return None };
    let requests = bytes.chunks(BYTES).map(|request| {
        let (peer, rest) = request.split_first_chunk()?;
        let (life, asked_at) = rest.split_first_chunk()?;
        let life = Some(u64::from_be_bytes(*life)).filter(|life| *life > 0).map(Duration::from_secs);
        let asked_at = UnixMillis(u64::from_be_bytes(asked_at.try_into().ok()?));
        Some(Request { peer: NodeId::from_bytes(*peer), life, asked_at, why: None })
    });
    requests.collect::<Option<Vec<_>>>().filter(|requests| requests.len() <= REQUESTS)
}

/// What waits for a directory.
#[derive(Debug, Default)]
pub(super) struct Requests {
    by_peer: BTreeMap<NodeId, Request>,
    asking: Sending,
    /// The last one that was asked for: a round begins behind it, so that one about whom nobody answers holds up no other.
    last: Option<NodeId>,
    /// Calls of the operator whose look-up is still on its way, by number. One that he takes back meanwhile is not here any more.
    calls: BTreeMap<u64, Request>,
    next_call: u64,
}

impl Requests {
    /// Those of an earlier run. A clock that was set back must not keep one for longer.
    pub(super) fn of(stored: Vec<Request>, now: UnixMillis) -> Self {
        let kept = |request: Request| (request.peer, Request { asked_at: request.asked_at.min(now), ..request });
        Self { by_peer: stored.into_iter().map(kept).collect(), ..Self::default() }
    }

    pub(super) fn len(&self) -> usize {
        self.by_peer.len()
    }

    fn due(&self, now: UnixMillis) -> Vec<Request> {
        if !self.asking.is_due(now) {
            return Vec::new();
        }
        let mut due: Vec<Request> = self.by_peer.values().copied().collect();
        let behind = self.last.map_or(0, |last| due.partition_point(|request| request.peer <= last));
        due.rotate_left(behind);
        due
    }
}

/// A call of the operator, from before its look-up to its end, also where nobody waits for that any more.
struct Call<'a> {
    links: &'a Links,
    number: u64,
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        self.links.requests().calls.remove(&self.number);
    }
}

/// What came of asking for a link.
#[derive(Clone, Debug)]
pub(crate) enum Asked {
    Link(Box<Link>),
    Queued(Request),
}

impl Links {
    /// Requests a link, or queues that where no directory answers.
    ///
    /// # Errors
    /// The peer's card is refused, the operator takes the call back meanwhile, or the key process or the store refuses; or as many wait as
    /// are kept.
    pub(crate) async fn ask(&self, peer: NodeId, life: Option<Duration>) -> Result<Asked, LinkError> {
        let call = self.call(peer, life);
        match self.offer_to(peer, life, Wanted::Now(call.number)).await {
            Ok(link) => {
                let _turn = self.turn.lock().await;
                if let Err(error) = self.unqueue(&peer).await {
                    self.store_failed(error);
                }
                Ok(Asked::Link(Box::new(link)))
            }
            Err(error) if error.is_silence() => self.queue(&call, error).await.map(Asked::Queued),
            Err(error) => Err(error),
        }
    }

    /// The same, and nothing is queued.
    #[cfg(test)]
    pub(crate) async fn request(&self, peer: NodeId, life: Option<Duration>) -> Result<Link, LinkError> {
        let call = self.call(peer, life);
        self.offer_to(peer, life, Wanted::Now(call.number)).await
    }

    fn call(&self, peer: NodeId, life: Option<Duration>) -> Call<'_> {
        let peer = self.current(&peer);
        let mut requests = self.requests();
        let number = requests.next_call;
        requests.next_call += 1;
        requests.calls.insert(number, Request { peer, life, asked_at: clock::now(), why: None });
        Call { links: self, number }
    }

    /// What a call of the operator asks for, while he has not taken it back. The turn is held by the caller.
    pub(super) fn called(&self, call: u64) -> Option<Request> {
        self.requests().calls.get(&call).copied()
    }

    async fn queue(&self, call: &Call<'_>, why: LinkError) -> Result<Request, LinkError> {
        let _turn = self.turn.lock().await;
        let now = clock::now();
        let called = self.called(call.number).ok_or(LinkError::Withdrawn)?;
        let peer = self.current(&called.peer);
        let request = Request { peer, asked_at: now, why: Some(why), ..called };
        let mut queued = self.requests().by_peer.clone();
        queued.insert(peer, request);
        if queued.len() > REQUESTS {
            return Err(LinkError::QueueFull);
        }
        // It is the operator's yes to the peer's own offers, too, as of any request.
        self.store.approve(peer, now).await?;
        self.keep_requests(queued).await?;
        // Others that wait have their time already.
        if self.requests().asking.is_due(now) {
            self.put_off(now);
        }
        tracing::info!(peer = %Sensitive(peer.short()), "no directory answers: the request for a link is kept");
        Ok(request)
    }

    /// Every request that waits.
    pub(crate) fn all_queued(&self) -> Vec<Request> {
        self.requests().by_peer.values().copied().collect()
    }

    /// The request that waits for this peer's did:key. None where a link stands by now: it has come otherwise, and the request goes with
    /// the next round.
    pub(crate) fn queued(&self, peer: &str) -> Option<Request> {
        self.without_link(peer, self.all_queued())
    }

    fn without_link(&self, peer: &str, requests: Vec<Request>) -> Option<Request> {
        let peer = self.current(&peer.parse().ok()?);
        let found = requests.into_iter().find(|request| self.current(&request.peer) == peer)?;
        self.standing(&peer, clock::now()).is_none().then_some(found)
    }

    /// Takes back a request that waits, or is looked up for the first time, and the operator's yes to the peer with it. None where a link
    /// stands with the peer: that one is to be revoked, and takes along what waits.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn take_back(&self, peer: &str) -> Result<Option<Request>, LinkError> {
        let _turn = self.turn.lock().await;
        let calls: Vec<Request> = self.requests().calls.values().copied().collect();
        let Some(request) = self.queued(peer).or_else(|| self.without_link(peer, calls)) else { return Ok(None) };
        self.store.disapprove(request.peer).await?;
        self.give_up(&request.peer).await?;
        tracing::info!(peer = %Sensitive(request.peer.short()), "request for a link withdrawn");
        Ok(Some(request))
    }

    /// Asks again for what waits, when that is due. The first that no directory answers ends the round.
    pub(crate) async fn ask_queued(&self, now: UnixMillis) {
        self.unqueue_linked(now).await;
        let due = self.requests().due(now);
        if due.is_empty() {
            return;
        }
        for request in due {
            self.requests().last = Some(request.peer);
            if !self.ask_again(request, now).await {
                break;
            }
        }
        self.put_off(clock::now());
    }

    /// Whether a directory answered.
    async fn ask_again(&self, request: Request, now: UnixMillis) -> bool {
        let peer = request.peer;
        if now <= request.ends() {
            match self.offer_to(peer, request.life, Wanted::Before(request)).await {
                // What is there is dropped below; what was withdrawn meanwhile is gone.
                Ok(_) | Err(LinkError::WithItself | LinkError::Withdrawn) => {}
                Err(error) => {
                    let kept = self.requests().by_peer.get_mut(&peer).map(|kept| kept.why = Some(error));
                    tracing::debug!(peer = %Sensitive(peer.short()), %error, waits = kept.is_some(), "no link yet");
                    return !error.is_silence();
                }
            }
        } else {
            tracing::warn!(peer = %Sensitive(peer.short()), "a request for a link has waited for a week: it is given up");
        }
        let _turn = self.turn.lock().await;
        // What he has asked for anew meanwhile has its own time.
        if self.waits_still(&request)
            && let Err(error) = self.unqueue(&peer).await
        {
            self.store_failed(error);
        }
        true
    }

    /// Drops requests for which a link has come otherwise: by the peer's own offer, or in direct contact.
    async fn unqueue_linked(&self, now: UnixMillis) {
        if self.all_queued().is_empty() {
            return;
        }
        let _turn = self.turn.lock().await;
        let linked: BTreeSet<NodeId> = {
            let table = self.table();
            table.values().filter(|held| stands(&held.link, now)).map(|held| held.link.peer()).collect()
        };
        for request in self.all_queued() {
            let peer = self.current(&request.peer);
            if linked.contains(&peer)
                && let Err(error) = self.unqueue(&peer).await
            {
                return self.store_failed(error);
            }
        }
    }

    /// Whether exactly this request waits, and none that came after it.
    pub(super) fn waits_still(&self, request: &Request) -> bool {
        self.requests().by_peer.get(&request.peer).is_some_and(|kept| kept.asked_at == request.asked_at)
    }

    /// Whether a request waits under exactly this peer.
    pub(super) fn has_request(&self, peer: &NodeId) -> bool {
        self.requests().by_peer.contains_key(peer)
    }

    pub(super) fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops what the operator has asked for of a peer, by whichever identity: what waits, and calls that look it up. The turn is held by
    /// the caller.
    pub(super) async fn give_up(&self, peer: &NodeId) -> Result<(), StoreError> {
        let peer = self.current(peer);
        let calls: Vec<(u64, NodeId)> = self.requests().calls.iter().map(|(call, asked)| (*call, asked.peer)).collect();
        for (call, _) in calls.into_iter().filter(|(_, asked)| self.current(asked) == peer) {
            self.requests().calls.remove(&call);
        }
        self.unqueue(&peer).await
    }

    /// Drops the request for a peer, by whichever identity. The turn is held by the caller.
    pub(super) async fn unqueue(&self, peer: &NodeId) -> Result<(), StoreError> {
        let peer = self.current(peer);
        let mut queued = self.requests().by_peer.clone();
        let before = queued.len();
        queued.retain(|asked, _| self.current(asked) != peer);
        if queued.len() == before { Ok(()) } else { self.keep_requests(queued).await }
    }

    /// The turn is held by the caller.
    async fn keep_requests(&self, queued: BTreeMap<NodeId, Request>) -> Result<(), StoreError> {
        self.store.keep_requests(queued.values().copied().collect()).await?;
        self.requests().by_peer = queued;
        self.changed.notify_waiters();
        Ok(())
    }

    /// The next round comes after a pause.
    fn put_off(&self, now: UnixMillis) {
        let mut requests = self.requests();
        requests.asking = match requests.len() {
            0 => Sending::default(),
            _ => requests.asking.after_attempt(now, spread()).no_slower_than(PAUSES),
        };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn requests_read_back_and_nothing_else_does() {
        let request = |number, life| Request {
            peer: NodeId::from_bytes([number; 32]),
            life,
            asked_at: UnixMillis(1_800_000_000_000),
            why: None,
        };
        let requests = [request(1, None), request(2, Some(Duration::from_secs(3600)))];
        let bytes = encode(&requests);
        assert_eq!(decode(&bytes).unwrap(), requests);
        assert!(decode(&encode([])).unwrap().is_empty());
        for wrong in [&[][..], &[2], &bytes[..bytes.len() - 1], &[&bytes[..], &[0]].concat()] {
            assert_eq!(decode(wrong), None);
        }
        let many: Vec<Request> = (0..=REQUESTS).map(|_| request(1, None)).collect();
        assert_eq!(decode(&encode(&many)), None);
        let kept = Requests::of(requests.to_vec(), UnixMillis(5));
        assert!(kept.by_peer.values().all(|request| request.asked_at == UnixMillis(5)), "the clock was set back");
    }
}
