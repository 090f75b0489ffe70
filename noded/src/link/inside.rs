//! What two nodes say to each other about links inside a session: offers and their receipts, the lists of `sync`, and their cards (`cards`). The session
//! proves who asks; what is asked is judged as if a directory had brought it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::StreamExt as _;
use http::StatusCode;
use openred_proto::checked::link_sync::{LinkSync, SYNC_BYTES};
use openred_proto::id::{LinkId, NodeId, UnixMillis};
use openred_proto::limits::{LINKS, OFFER_BYTES};
use openred_proto::log::heads::HEADS_BYTES;
use openred_proto::vault::Refusal;

use super::cards::CARD;
use super::judge::RefusedOffer;
use super::offers::{OfferError, Sending};
use super::ports::{Answered, Courier};
use super::state::{EndReason, Link, LinkState};
use super::sync::{self, Repair};
use super::{LinkError, Links, MutexGuard, PoisonError, changes};
use crate::clock;
use crate::keys::KeysError;

/// Takes an offer: the directory id that it names (32 bytes), then its bytes. Answered with the receipt.
pub(crate) const OFFER: &str = "/link/offer";
/// Compares lists of links ([`LinkSync`]), either way.
pub(crate) const SYNC: &str = "/link/sync";
/// Hands over the heads of directories' logs that the speaker has checked ([`Heads`](openred_proto::log::heads::Heads)); answered alike.
pub(crate) const HEADS: &str = "/link/heads";
/// All that links answer inside a session begins so.
pub(crate) const PREFIX: &str = "/link/";
/// Longest body of any of these requests, and of their answers.
pub(crate) const BODY_BYTES: usize = 4096;
const _: () = assert!(32 + OFFER_BYTES <= BODY_BYTES && SYNC_BYTES <= BODY_BYTES && HEADS_BYTES <= BODY_BYTES);

/// A peer that is told of a revocation has this long to hear it: the operator waits for it.
const FAREWELL: Duration = Duration::from_secs(3);
/// Times that lists are compared when the peer says that it was asked a moment ago.
const ATTEMPTS: usize = 3;
/// Peers with which lists are compared at once.
pub(super) const AT_ONCE: usize = 8;

/// A peer is answered this often on each path: what it asks for costs the key process more than it costs the peer.
const PAUSE: Duration = Duration::from_millis(500);

/// When each peer was answered last, by path.
#[derive(Debug, Default)]
pub(super) struct Asked(BTreeMap<(NodeId, String), UnixMillis>);

impl Asked {
    /// Whether the peer may ask now.
    fn admit(&mut self, peer: NodeId, path: &str, now: UnixMillis) -> bool {
        let is_recent = |at: &UnixMillis| *at <= now && now < at.plus(PAUSE);
        self.0.retain(|_, at| is_recent(at));
        let key = (peer, path.to_owned());
        if self.0.contains_key(&key) || self.0.len() >= LINKS {
            return false;
        }
        self.0.insert(key, now);
        true
    }
}

/// With whom lists have been compared since the start, and with whom they are to be. Of nodes that the store knows.
#[derive(Debug, Default)]
pub(super) struct Steps {
    in_step: BTreeSet<NodeId>,
    due: BTreeSet<NodeId>,
    /// Whose cards are to be asked for, up to which sequence.
    pub(super) cards_due: BTreeMap<NodeId, u64>,
    /// With whom heads of directories' logs are to be exchanged.
    heads_due: BTreeSet<NodeId>,
    /// When the card that a peer named did not come.
    pub(super) cards_missed: BTreeMap<NodeId, UnixMillis>,
}

impl Steps {
    /// The node is nobody any more.
    pub(super) fn forget(&mut self, peer: &NodeId) {
        for of in [&mut self.in_step, &mut self.due, &mut self.heads_due] {
            of.remove(peer);
        }
        self.cards_due.remove(peer);
        self.cards_missed.remove(peer);
    }

    /// How many nodes are in it.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.in_step.len() + self.due.len() + self.cards_due.len() + self.cards_missed.len()
    }
}

impl Links {
    /// Answers a linked peer's request about links.
    pub(super) async fn answer_peer(&self, peer: NodeId, path: &str, body: Bytes) -> (u16, Bytes) {
        let (status, body) = self.answered(peer, path, body).await;
        (status.as_u16(), body)
    }

    async fn answered(&self, peer: NodeId, path: &str, body: Bytes) -> (StatusCode, Bytes) {
        if ![OFFER, SYNC, CARD, HEADS].contains(&path) {
            return (StatusCode::NOT_FOUND, Bytes::new());
        }
        if !self.asked.lock().unwrap_or_else(PoisonError::into_inner).admit(peer, path, clock::now()) {
            return (StatusCode::TOO_MANY_REQUESTS, Bytes::new());
        }
        match path {
            OFFER => self.answer_offer(peer, body).await,
            CARD => self.answer_card(peer, body).await,
            HEADS => {
                self.carrier.take_heads(peer, &body);
                (StatusCode::OK, self.carrier.own_heads().await.unwrap_or_default())
            }
            _ => self.answer_sync(peer, &body).await,
        }
    }

    async fn answer_sync(&self, peer: NodeId, body: &[u8]) -> (StatusCode, Bytes) {
        let Ok(theirs) = LinkSync::decode(body) else { return (StatusCode::BAD_REQUEST, Bytes::new()) };
        self.repair(&peer, &theirs).await;
        (StatusCode::OK, sync::list(self.all().iter(), &peer).encode().into())
    }

    /// Compares lists with a peer, and mends what differs on both sides. How much was mended here.
    ///
    /// # Errors
    /// [`LinkError::Unreachable`].
    pub(crate) async fn sync(&self, peer: NodeId) -> Result<usize, LinkError> {
        let peer = self.current(&peer);
        let courier = self.courier.get().ok_or(LinkError::Unreachable)?;
        let own = sync::list(self.all().iter(), &peer).encode();
        let answer = ask_in_turn(&**courier, peer, SYNC, own.into()).await;
        let theirs = answer.and_then(|answer| LinkSync::decode(&answer.body).ok()).ok_or(LinkError::Unreachable)?;
        let mended = self.repair(&peer, &theirs).await;
        self.steps().in_step.insert(peer);
        Ok(mended)
    }

    async fn repair(&self, peer: &NodeId, theirs: &LinkSync) -> usize {
        let repairs = sync::repairs(self.all().iter(), peer, theirs, clock::now());
        let count = repairs.len();
        for repair in repairs {
            match repair {
                Repair::Receipt(receipt) => self.handle_receipt(receipt.into(), *peer).await,
                Repair::End(link, reason) => self.end_by_peer(link, reason).await,
            }
        }
        count
    }

    async fn end_by_peer(&self, link: LinkId, reason: EndReason) {
        let _turn = self.turn.lock().await;
        let now = clock::now();
        let Some(link) = self.link(&link) else { return };
        let Ok(ended) = changes::ended_for(link, reason, now) else { return };
        tracing::info!(link = %ended.id(), "link ended: {}", reason.text());
        if let Err(error) = self.keep(vec![ended]).await {
            self.store_failed(error);
        }
    }

    /// Tells a peer, over a session that is open, that these links with it are over. Nothing rests on its hearing it.
    pub(super) async fn say_farewell(&self, peer: &NodeId, ended: &[Link]) {
        let Some(courier) = self.courier.get().filter(|courier| courier.has_session(peer)) else { return };
        let asking = ask_in_turn(&**courier, *peer, SYNC, sync::list(ended.iter(), peer).encode().into());
        if !matches!(tokio::time::timeout(FAREWELL, asking).await, Ok(Some(_))) {
            tracing::debug!("the peer did not hear that its link was revoked");
        }
    }

    /// A session with the peer was opened by this node: lists are compared once a start, and when something waits.
    pub(super) fn sync_if_due(&self, peer: NodeId) {
        // Looked at in place: this runs with every session.
        let is_due = sync::is_due(self.table().values().map(|held| &held.link), &peer, clock::now());
        let mut steps = self.steps();
        if steps.heads_due.len() < LINKS {
            steps.heads_due.insert(peer);
            self.sync_wanted.notify_one();
        }
        if (is_due || !steps.in_step.contains(&peer)) && steps.due.len() < LINKS {
            steps.due.insert(peer);
            self.sync_wanted.notify_one();
        }
    }

    pub(super) async fn sync_due(&self) {
        let due = std::mem::take(&mut self.steps().due);
        futures_util::stream::iter(due)
            .for_each_concurrent(AT_ONCE, |peer| async move {
                match self.sync(peer).await {
                    Ok(0) => {}
                    Ok(mended) => tracing::info!(mended, "links brought in step with a peer's"),
                    Err(error) => tracing::debug!(%error, "lists of links not compared"),
                }
            })
            .await;
    }

    /// Exchanges heads with those with whom a session was opened. A peer that does not know the question has none to tell.
    pub(super) async fn exchange_heads(&self) {
        let due = std::mem::take(&mut self.steps().heads_due);
        let (Some(courier), false) = (self.courier.get(), due.is_empty()) else { return };
        let Some(own) = self.carrier.own_heads().await else { return };
        futures_util::stream::iter(due)
            .for_each_concurrent(AT_ONCE, |peer| {
                let own = own.clone();
                async move {
                    if let Some(answer) = ask_in_turn(&**courier, peer, HEADS, own).await {
                        self.carrier.take_heads(peer, &answer.body);
                    }
                }
            })
            .await;
    }

    pub(super) fn steps(&self) -> MutexGuard<'_, Steps> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn answer_offer(&self, peer: NodeId, mut body: Bytes) -> (StatusCode, Bytes) {
        if body.len() < 32 {
            return (StatusCode::BAD_REQUEST, Bytes::new());
        }
        let offer = body.split_off(32);
        let Ok(directory) = <[u8; 32]>::try_from(&body[..]) else { return (StatusCode::BAD_REQUEST, Bytes::new()) };
        match self.consider(offer, peer, NodeId::from_bytes(directory)).await {
            Ok(Some(accepted)) => (StatusCode::OK, accepted.receipt.into()),
            // It waits for the operator.
            Ok(None) => (StatusCode::ACCEPTED, Bytes::new()),
            // Not looked at, and to be asked again; or looked at, and left: asking again changes nothing.
            Err(error) if error.is_passing() => (StatusCode::SERVICE_UNAVAILABLE, Bytes::new()),
            Err(_) => (StatusCode::CONFLICT, Bytes::new()),
        }
    }

    /// Sends an offer inside a session. False: a directory is to carry it.
    pub(super) async fn offer_inside(&self, link: &Link) -> bool {
        let Some(courier) = self.courier.get() else { return false };
        let peer = link.peer();
        // A renewal is worth opening a session for: there is a link for it. A first offer goes where one is open already.
        if link.renews.is_none() && !courier.has_session(&peer) {
            return false;
        }
        let mut body = BytesMut::with_capacity(32 + link.offer.len());
        body.put_slice(link.directory.as_bytes());
        body.put_slice(&link.offer);
        match courier.ask(peer, OFFER, body.freeze()).await {
            Some(answer) if answer.status == StatusCode::OK => {
                self.handle_receipt(answer.body, peer).await;
                true
            }
            Some(answer) => {
                tracing::debug!(link = %link.id(), status = answer.status, "offer not taken inside the session");
                // A peer that answers at all has looked, or will when it is asked again. A first offer may find another policy later;
                // a renewal that was left stands in the way of the next one.
                if answer.status == StatusCode::CONFLICT && link.renews.is_some() {
                    self.withdraw(link.id()).await;
                }
                true
            }
            None => false,
        }
    }

    /// Ends a renewal that the peer has left for good: the same bytes would be left again. The renewed link settles, and is renewed
    /// afresh after its pause.
    async fn withdraw(&self, id: LinkId) {
        let _turn = self.turn.lock().await;
        let Some(offered) = self.link(&id).filter(|link| link.state == LinkState::Offered) else { return };
        let Ok(ended) = offered.ended(EndReason::PeerRefused, clock::now()) else { return };
        tracing::info!(link = %id, "link ended: {}", ended.reason.text());
        if let Err(error) = self.keep(vec![ended]).await {
            self.store_failed(error);
        }
    }

    /// A session with the peer is open: what waits for it goes now.
    pub(super) fn send_now(&self, peer: &NodeId) {
        let mut waits = false;
        // A peer that left a renewal was there to do so: that one keeps its pause.
        let mut table = self.table();
        let of_peer = table.values().map(|held| &held.link).filter(|link| link.peer() == *peer);
        let refused: BTreeSet<LinkId> =
            of_peer.filter(|link| link.reason == EndReason::PeerRefused).filter_map(|link| link.renews).collect();
        for held in table.values_mut().filter(|held| held.link.peer() == *peer) {
            if held.link.state == LinkState::Offered {
                held.sending = Sending::default();
                waits = true;
            }
            if !refused.contains(&held.link.id()) {
                held.renewing = Sending::default();
            }
        }
        drop(table);
        if waits {
            self.offer_due.notify_one();
        }
    }
}

/// Asks a peer; again after a while when it was asked the same a moment ago. None when it did not come about.
pub(super) async fn ask_in_turn(
    courier: &dyn Courier,
    peer: NodeId,
    path: &'static str,
    own: Bytes,
) -> Option<Answered> {
    for _ in 0..ATTEMPTS {
        let answer = courier.ask(peer, path, own.clone()).await?;
        if answer.status == StatusCode::OK {
            return Some(answer);
        }
        if answer.status != StatusCode::TOO_MANY_REQUESTS {
            return None;
        }
        tokio::time::sleep(PAUSE).await;
    }
    None
}

impl OfferError {
    /// Whether it says more of this node's moment than of the offer.
    pub(super) const fn is_passing(&self) -> bool {
        match self {
            Self::Keys(KeysError::Refused(refusal)) | Self::Link(LinkError::Keys(KeysError::Refused(refusal))) => {
                matches!(
                    refusal,
                    Refusal::Quota | Refusal::Capacity(_) | Refusal::StateLost | Refusal::AuditFull | Refusal::Bug
                )
            }
            Self::Keys(_) | Self::Store(_) | Self::Link(_) => true,
            Self::Judged(refused) => matches!(refused, RefusedOffer::TooManyWaiting),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_answered_once_a_while_and_others_beside_it() {
        let (mut asked, peer, other) = (Asked::default(), NodeId::from_bytes([1; 32]), NodeId::from_bytes([2; 32]));
        let now = UnixMillis(1_800_000_000_000);
        assert!(asked.admit(peer, OFFER, now) && asked.admit(other, OFFER, now) && asked.admit(peer, "/link/x", now));
        assert!(!asked.admit(peer, OFFER, now.plus(PAUSE / 2)));
        assert!(asked.admit(peer, OFFER, now.plus(PAUSE)));
        assert!(asked.admit(peer, OFFER, now), "a clock that is set back locks nobody out");
    }

    #[test]
    fn what_says_more_of_the_moment_than_of_the_offer_is_no_final_word() {
        let refused = |refusal| OfferError::Keys(KeysError::Refused(refusal));
        for passing in [Refusal::Quota, Refusal::AuditFull, Refusal::StateLost] {
            assert!(refused(passing).is_passing(), "{passing}");
            assert!(OfferError::Link(LinkError::Keys(KeysError::Refused(passing))).is_passing(), "{passing}");
        }
        for last in [Refusal::Downgrade, Refusal::UnknownPrekey, Refusal::LinkGone, Refusal::Replay] {
            assert!(!refused(last).is_passing(), "{last}");
        }
        assert!(!OfferError::Judged(RefusedOffer::NothingToRenew).is_passing());
        assert!(OfferError::Judged(RefusedOffer::TooManyWaiting).is_passing());
    }
}
