//! A link by direct contact, without a directory (PROTOCOL 5, "Direct mode"): what the two ask each other inside a contact, and what
//! becomes of it. The session proves who asks; that it is who was meant, two people find out by comparing words.
//!
//! The initiator asks for the responder's card, issues the link and brings its offer with its own card, again and again until it is
//! answered with the receipt. The offer names no directory. What is refused here is judged as offers are.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use http::StatusCode;
use openred_proto::checked::card::Card;
use openred_proto::checked::offer::Offer;
use openred_proto::id::{LinkId, NodeId, UnixMillis};
use openred_proto::limits::{CARD_BYTES, OFFER_BYTES};
use openred_proto::vault::{ReceivedOffer, Refusal};

use super::judge::{RefusedOffer, WAITING};
use super::offers::{Admission, OfferError, Stranger};
use super::state::{EndReason, Link, LinkState};
use super::{LinkError, Links, MutexGuard, PoisonError};
use crate::clock;
use crate::config::{DirectPolicy, IncomingPolicy};
use crate::keys::KeysError;
use crate::p2p::direct::contacts::{CONTACTS, LIFE};
use crate::sensitive::Sensitive;
use crate::store::{Store, StoreError, Word};

/// Asks for the responder's card.
pub(crate) const CARD: &str = "/direct/card";
/// Brings the initiator's card (behind its length, two bytes) and the offer. Answered with the receipt.
pub(crate) const OFFER: &str = "/direct/offer";
/// Longest body of either question, and of their answers.
pub(crate) const BODY_BYTES: usize = 8192;
const _: () = assert!(2 + CARD_BYTES + OFFER_BYTES <= BODY_BYTES);

/// The directory of an offer that none carries.
pub(crate) const NO_DIRECTORY: NodeId = NodeId::from_bytes([0; 32]);

/// The key process looks at a stranger's offers no more often than this: each costs it what a linked peer's costs, and a stranger
/// needs one.
const LOOK: Duration = Duration::from_secs(10);

/// Cards of strangers whose offers wait: nothing of them is kept before the operator's word, nor over a restart, with which their
/// offers end as well. One of each waiting offer at most.
#[derive(Debug, Default)]
pub(super) struct Introductions {
    cards: BTreeMap<NodeId, Bytes>,
    /// When an offer of each was looked at last.
    looked: BTreeMap<NodeId, UnixMillis>,
}

impl Introductions {
    /// Whether the key process may be asked about another offer of `peer` now.
    fn may_look(&mut self, peer: NodeId, now: UnixMillis) -> bool {
        self.looked.retain(|_, at| *at <= now && now < at.plus(LOOK));
        let may = !self.looked.contains_key(&peer) && self.looked.len() < CONTACTS;
        may && self.looked.insert(peer, now).is_none()
    }
}

/// What was stored, without the offers that waited in direct contact: the contact, its words and its card have ended with the process.
/// Whoever left one brings the same again with the next contact.
pub(super) async fn without_strangers(store: &Store, links: Vec<Link>) -> Result<Vec<Link>, StoreError> {
    let is_strangers = |link: &Link| link.state == LinkState::Waiting && link.directory == NO_DIRECTORY;
    let (gone, links): (Vec<Link>, Vec<Link>) = links.into_iter().partition(is_strangers);
    for link in gone {
        store.purge_link(link.id()).await?;
    }
    Ok(links)
}

/// What the other side said to an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Brought {
    /// Its receipt is here.
    Taken,
    /// Not yet: its operator, or its key process, is awaited.
    Waits,
    /// It has looked at it and left it.
    Left,
}

impl Links {
    /// Answers a question of a contact.
    pub(super) async fn answer_stranger(
        &self,
        peer: NodeId,
        mutual_link: [u8; 16],
        path: &str,
        body: Bytes,
    ) -> (StatusCode, Bytes) {
        match path {
            CARD => self
                .carrier
                .own_card()
                .await
                .map_or((StatusCode::SERVICE_UNAVAILABLE, Bytes::new()), |card| (StatusCode::OK, card)),
            OFFER => self.answer_direct_offer(peer, mutual_link, body).await,
            _ => (StatusCode::NOT_FOUND, Bytes::new()),
        }
    }

    async fn answer_direct_offer(&self, peer: NodeId, mutual_link: [u8; 16], mut body: Bytes) -> (StatusCode, Bytes) {
        if body.len() < 2 {
            return (StatusCode::BAD_REQUEST, Bytes::new());
        }
        let length = body.split_to(2);
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        if length > body.len() {
            return (StatusCode::BAD_REQUEST, Bytes::new());
        }
        let card = body.split_to(length);
        let is_its_own = Card::verify(&card, clock::now()).is_ok_and(|card| card.node_id == peer);
        if !is_its_own {
            return (StatusCode::BAD_REQUEST, Bytes::new());
        }
        match self.consider_direct(peer, mutual_link, &card, body).await {
            Ok(Some(link)) => {
                self.greet(peer);
                (StatusCode::OK, link.receipt.into())
            }
            Ok(None) => {
                self.introduce(peer, card);
                (StatusCode::ACCEPTED, Bytes::new())
            }
            Err(OfferError::Judged(RefusedOffer::TooSoon)) => (StatusCode::TOO_MANY_REQUESTS, Bytes::new()),
            Err(refused) => {
                tracing::warn!(peer = %Sensitive(peer.short()), %refused, "offer in direct contact left");
                (
                    if refused.is_passing() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::CONFLICT },
                    Bytes::new(),
                )
            }
        }
    }

    /// The link that the offer made, now or before; none while it waits for the operator.
    async fn consider_direct(
        &self,
        peer: NodeId,
        mutual_link: [u8; 16],
        card: &Bytes,
        offer: Bytes,
    ) -> Result<Option<Link>, OfferError> {
        let token_id = Offer::token_id(&offer);
        let known = self.all().into_iter().find(|link| link.token_id == token_id && link.peer() == peer);
        match known.map(|link| (link.state, link)) {
            // Asked again while it waits: the key process has looked at it.
            Some((LinkState::Waiting, _)) => return Ok(None),
            Some((state, link)) if state.is_live() && !link.summary.issuer => return Ok(Some(link)),
            Some(_) => return Err(RefusedOffer::Ended.into()),
            None => {}
        }
        if self.is_linked(&peer) {
            return Err(OfferError::Keys(KeysError::Refused(Refusal::DirectDowngrade)));
        }
        if Offer::decode(&offer).is_ok_and(|offer| offer.routing.psk.is_some()) {
            return Err(RefusedOffer::NothingToRenew.into());
        }
        // Whom the operator has denied costs the key process nothing.
        if self.store.word(peer).await? == Word::No {
            return Err(RefusedOffer::Denied.into());
        }
        if !self.introductions().may_look(peer, clock::now()) {
            return Err(RefusedOffer::TooSoon.into());
        }
        self.carrier.follow_card(card).await;
        self.hear_successions().await;
        self.end_unbrought(&peer).await?;
        let (sender, allowed) = (peer, self.allowed_methods());
        let received = ReceivedOffer { offer: offer.into(), sender, directory: NO_DIRECTORY, allowed };
        let summary = self.vault.inspect(&received, None).await?;
        let stranger = Some(Stranger { words: mutual_link, card: card.clone() });
        let admission = Admission { policy: self.direct_policy(&peer), same_sector: false, stranger };
        self.admit(received, token_id, summary, admission).await
    }

    /// This node's own offer to the peer, if the contact that was to bring it must be over by now: it would go before the peer's for no
    /// good. Of two that are brought at once, the lower id's stands as ever.
    async fn end_unbrought(&self, peer: &NodeId) -> Result<(), StoreError> {
        let _turn = self.turn.lock().await;
        let now = clock::now();
        let is_unbrought = |link: &Link| {
            let is_own = link.peer() == *peer && link.state == LinkState::Offered && link.directory == NO_DIRECTORY;
            is_own && now > link.changed_at.plus(LIFE)
        };
        let unbrought = self.all().into_iter().filter(is_unbrought);
        let ended: Vec<Link> = unbrought.filter_map(|link| link.ended(EndReason::CrossedOffer, now).ok()).collect();
        if ended.is_empty() { Ok(()) } else { self.keep(ended).await }
    }

    /// Whom `links.allow` names, the operator has said yes to; for the rest `links.direct` decides.
    fn direct_policy(&self, peer: &NodeId) -> IncomingPolicy {
        let is_named = self.config.incoming == IncomingPolicy::AllowList && self.config.allow.contains(peer);
        match self.config.direct {
            DirectPolicy::Open => IncomingPolicy::Open,
            DirectPolicy::Ask | DirectPolicy::Off if is_named => IncomingPolicy::AllowList,
            DirectPolicy::Ask | DirectPolicy::Off => IncomingPolicy::Ask,
        }
    }

    /// The operator has said yes to a peer whose offer waits: its card is kept from now on.
    pub(super) async fn keep_introduced(&self, peer: NodeId) {
        let card = self.introductions().cards.remove(&peer);
        if let Some(card) = card {
            self.keep_stranger(peer, card).await;
        }
    }

    /// Keeps the card of one with whom there will be a link. Before the link itself: a crash in between must not leave one whose peer
    /// nobody can find.
    pub(super) async fn keep_stranger(&self, peer: NodeId, card: Bytes) {
        if let Err(error) = self.carrier.take_card(peer, card).await {
            tracing::warn!(%error, "the card of a direct contact was not kept");
        }
    }

    /// Begins a first handshake over a link that came about in direct contact: it says to the issuer what a receipt does.
    pub(super) fn greet(&self, peer: NodeId) {
        if let Some(observer) = self.observer.get() {
            observer.link_confirmed(peer);
        }
    }

    /// The same for those over which there was none yet: the contact, or this process, may have ended before the receipt was heard.
    pub(super) fn greet_pending(&self, now: UnixMillis) {
        let mut due = Vec::new();
        for held in self.table().values_mut() {
            let link = &held.link;
            let is_pending = link.state == LinkState::Pending && !link.summary.issuer && link.directory == NO_DIRECTORY;
            if is_pending && held.sending.is_due(now) {
                due.push(link.peer());
                held.sending = held.sending.after_attempt(now, link.id().as_bytes()[15]);
            }
        }
        due.into_iter().for_each(|peer| self.greet(peer));
    }

    fn introduce(&self, peer: NodeId, card: Bytes) {
        let waits =
            |peer: &NodeId| self.all().iter().any(|link| link.peer() == *peer && link.state == LinkState::Waiting);
        let mut introductions = self.introductions();
        if introductions.cards.len() >= WAITING {
            introductions.cards.retain(|peer, _| waits(peer));
        }
        if introductions.cards.len() < WAITING {
            introductions.cards.insert(peer, card);
        }
    }

    fn introductions(&self) -> MutexGuard<'_, Introductions> {
        self.introductions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Issues a link to the peer of a contact that the operator has confirmed. One that it was offered so before is brought again; one
    /// that a directory was to carry ends: it opens to nobody who has it from here.
    ///
    /// # Errors
    /// The card is refused, there is a live link, or the key process or the store refuses.
    pub(crate) async fn offer_to_stranger(
        &self,
        peer: NodeId,
        card: Bytes,
        life: Option<Duration>,
    ) -> Result<Link, LinkError> {
        self.carrier.take_card(peer, card.clone()).await?;
        self.hear_successions().await;
        if self.current(&peer) != peer {
            return Err(LinkError::Succeeded);
        }
        let _turn = self.turn.lock().await;
        let now = clock::now();
        match self.standing(&peer, now) {
            Some(standing) if standing.state != LinkState::Offered => return Err(LinkError::Linked),
            Some(standing) if standing.directory == NO_DIRECTORY => return Ok(standing),
            Some(standing) => self.keep(vec![standing.ended(EndReason::Replaced, now)?]).await?,
            None => {}
        }
        self.store.approve(peer, now).await?;
        self.issue(peer, card, NO_DIRECTORY, life, now).await
    }

    /// The question by which `link` is brought.
    ///
    /// # Errors
    /// The key process did not sign this node's card.
    pub(crate) async fn direct_offer(&self, link: &Link) -> Result<Bytes, LinkError> {
        let card = self.carrier.own_card().await.ok_or(LinkError::Keys(KeysError::Away))?;
        let mut body = BytesMut::with_capacity(2 + card.len() + link.offer.len());
        body.put_u16(u16::try_from(card.len()).unwrap_or(u16::MAX));
        body.put_slice(&card);
        body.put_slice(&link.offer);
        Ok(body.freeze())
    }

    /// What came back.
    pub(crate) async fn direct_answer(&self, peer: NodeId, link: LinkId, status: u16, body: Bytes) -> Brought {
        match StatusCode::from_u16(status).unwrap_or(StatusCode::CONFLICT) {
            StatusCode::OK => {
                self.handle_receipt(body, peer).await;
                if self.state_of_link(&link) == Some(LinkState::Offered) { Brought::Waits } else { Brought::Taken }
            }
            StatusCode::ACCEPTED | StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Brought::Waits,
            _ => {
                let _turn = self.turn.lock().await;
                let offered = self.link(&link).filter(|link| link.state == LinkState::Offered);
                let ended = offered.and_then(|link| link.ended(EndReason::PeerLeft, clock::now()).ok());
                if let Some(ended) = ended
                    && let Err(error) = self.keep(vec![ended]).await
                {
                    self.store_failed(error);
                }
                Brought::Left
            }
        }
    }
}
