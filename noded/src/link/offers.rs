//! Offers and receipts: requesting a link, judging what arrives, the operator's yes, and sending again until the receipt.

use std::time::Duration;

use bytes::Bytes;
use openred_proto::checked::offer::Offer;
use openred_proto::checked::receipt::Receipt;
use openred_proto::id::{LinkId, NodeId, UnixMillis};
use openred_proto::pause;
use openred_proto::vault::{LinkSummary, ReceivedOffer, Refusal};

use super::direct::NO_DIRECTORY;
use super::judge::{RefusedOffer, Situation, Verdict, WAITING, judge, judge_renewal};
use super::ports::FoundCard;
use super::queue::Request;
use super::state::{EndReason, Link, LinkState};
use super::{LinkError, Links, Parting, changes};
use crate::clock;
use crate::config::IncomingPolicy;
use crate::keys::{KeysError, NewLink};
use crate::reports::Seen;
use crate::sensitive::Sensitive;
use crate::store::{StoreError, Word};

/// First pause before an offer is sent again; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
/// Longest pause: half of what a directory keeps an offer for, so that one is always there for a peer that comes back.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// When an offer goes out next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sending {
    attempts: u32,
    next: UnixMillis,
}

impl Default for Sending {
    fn default() -> Self {
        Self { attempts: 0, next: UnixMillis(0) }
    }
}

impl Sending {
    /// How often it went out.
    pub(super) const fn attempts(self) -> u32 {
        self.attempts
    }

    /// A clock that was set back has left times that nobody would wait for.
    pub(super) fn is_due(self, now: UnixMillis) -> bool {
        self.next <= now || self.next > now.plus(LONGEST_PAUSE)
    }

    /// After an attempt: doubled pauses, spread by up to a quarter (`spread` is any byte) so that nodes do not move in step.
    pub(super) fn after_attempt(self, now: UnixMillis, spread: u8) -> Self {
        let pause = pause::doubled(FIRST_PAUSE, LONGEST_PAUSE, self.attempts);
        let pause = pause - pause / 1024 * u32::from(spread);
        Self { attempts: self.attempts.saturating_add(1), next: now.plus(pause) }
    }

    /// The pauses grow no more after so many attempts.
    pub(super) fn no_slower_than(self, attempts: u32) -> Self {
        Self { attempts: self.attempts.min(attempts), ..self }
    }
}

/// Who wants a link offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// The operator, by this call: it is his yes to the peer's own offers, too. He may take it back while the peer is looked up.
    Now(u64),
    /// He has asked for this peer before, and no directory answered. He may have taken it back since.
    Before(Request),
    /// Nobody but this node itself.
    Anew,
}

impl Links {
    /// Offers a link. Asking for one that is there, or under way, gives that one.
    ///
    /// # Errors
    /// The peer's card cannot be had or is refused, nobody wants it any more, or the key process or the store refuses.
    pub(super) async fn offer_to(
        &self,
        peer: NodeId,
        life: Option<Duration>,
        wanted: Wanted,
    ) -> Result<Link, LinkError> {
        let peer = self.current(&peer);
        if peer == self.me {
            return Err(LinkError::WithItself);
        }
        if let Some(standing) = self.standing(&peer, clock::now()) {
            return Ok(standing);
        }
        // Before the turn: a slow directory must not hold up the other links.
        let found = self.carrier.card(peer).await?;
        self.hear_successions().await;
        // The directory may have answered with its successor's card; or with that of one who has named a successor since.
        let peer = found.node;
        if self.current(&peer) != peer {
            return Err(LinkError::Succeeded);
        }
        if peer == self.me {
            return Err(LinkError::WithItself);
        }
        let turn = self.turn.lock().await;
        let now = clock::now();
        if let Some(standing) = self.standing(&peer, now) {
            return Ok(standing);
        }
        match wanted {
            Wanted::Now(call) if self.called(call).is_none() => return Err(LinkError::Withdrawn),
            Wanted::Before(request) if !self.waits_still(&request) => return Err(LinkError::Withdrawn),
            Wanted::Now(_) | Wanted::Before(_) => self.store.approve(peer, now).await?,
            Wanted::Anew => {}
        }
        if let Some(waiting) = self.waiting_of(&peer) {
            let accepted = self.accept_waiting(waiting, now).await?;
            drop(turn);
            self.send_receipt(&accepted).await;
            return Ok(accepted);
        }
        self.issue(peer, found.card, found.directory, life, now).await
    }

    /// Issues and stores a first link. The turn is held by the caller.
    pub(super) async fn issue(
        &self,
        peer: NodeId,
        card: Bytes,
        directory: NodeId,
        life: Option<Duration>,
        now: UnixMillis,
    ) -> Result<Link, LinkError> {
        let terms = NewLink {
            peer,
            card,
            directory,
            allowed: self.allowed_methods(),
            schedule: self.schedule(),
            life: life.unwrap_or_else(|| self.config.life()),
        };
        let issued = self.vault.issue(terms).await?;
        let token_id = Offer::token_id(&issued.offer);
        let link = Link::issued(issued.summary, issued.row.into(), issued.offer.into(), token_id, directory, now);
        self.store.put_links(vec![link.clone()]).await?;
        self.show(link.clone(), Some(issued.keys));
        tracing::info!(link = %link.id(), peer = %Sensitive(peer.short()), "link offered");
        Ok(link)
    }

    /// The operator's yes to a peer, or to the offer with this link id. `None`: nothing of the peer waits, but its next offer is
    /// accepted.
    ///
    /// # Errors
    /// Unknown link, or the key process or the store refuses.
    pub(crate) async fn approve(&self, text: &str) -> Result<Option<Link>, LinkError> {
        let (peer, named) = match text.parse::<NodeId>() {
            Ok(peer) => (self.current(&peer), None),
            Err(_) => self.select(text).map(|link| (link.peer(), Some(link)))?,
        };
        let turn = self.turn.lock().await;
        let now = clock::now();
        self.store.approve(peer, now).await?;
        let waiting = named.filter(|link| link.state == LinkState::Waiting).or_else(|| self.waiting_of(&peer));
        let Some(waiting) = waiting else { return Ok(self.standing(&peer, now)) };
        let accepted = self.accept_waiting(waiting, now).await?;
        drop(turn);
        self.send_receipt(&accepted).await;
        Ok(Some(accepted))
    }

    /// Ends a link, and takes back the operator's yes to its peer. Whatever else there is with that peer ends with it: what the link
    /// renews, or is renewed by, is the same relation. An offer that waits ends alone.
    ///
    /// # Errors
    /// The link is over already, or the store refuses.
    pub(crate) async fn revoke(&self, link: LinkId) -> Result<Link, LinkError> {
        let turn = self.turn.lock().await;
        let (now, link) = (clock::now(), self.link(&link).ok_or(LinkError::NotFound)?);
        let (ended, others) = changes::revoked(self.all().iter(), link, now)?;
        let changed: Vec<Link> = std::iter::once(ended.clone()).chain(others).collect();
        self.store.disapprove(ended.peer()).await?;
        self.give_up(&ended.peer()).await?;
        self.store.put_links(changed.clone()).await?;
        // Nothing begins over them any more. Their sessions end when the peer has been told over one, for which no other link waits.
        let over = changed.iter().map(|link| self.place(link.clone(), None)).collect();
        let parting = Parting { links: self, over };
        drop(turn);
        self.say_farewell(&ended.peer(), &changed).await;
        drop(parting);
        tracing::info!(link = %ended.id(), "link revoked");
        Ok(ended)
    }

    /// An offer came through a directory.
    pub(crate) async fn handle_offer(&self, offer: Bytes, sender: NodeId, directory: NodeId) {
        if let Ok(Some(accepted)) = self.consider(offer, sender, directory).await {
            self.send_receipt(&accepted).await;
        }
    }

    /// An offer came. Everything about it is hostile until the key process has opened it. The link that it made, now or before; none
    /// while it waits for the operator.
    pub(super) async fn consider(
        &self,
        offer: Bytes,
        sender: NodeId,
        directory: NodeId,
    ) -> Result<Option<Link>, OfferError> {
        let token_id = Offer::token_id(&offer);
        let received = ReceivedOffer { offer: offer.into(), sender, directory, allowed: self.allowed_methods() };
        let considered = self.take_offer(received, token_id).await;
        considered.inspect_err(|refused| {
            if !refused.is_passing() || matches!(refused, OfferError::Judged(_)) {
                self.reports.note(Seen::OfferRefused);
            }
            match refused {
                // PROTOCOL 3: an issuer that knows what this node allows, and offers less, is named.
                OfferError::Keys(KeysError::Refused(Refusal::Downgrade)) => {
                    tracing::warn!(sender = %Sensitive(sender.short()), %refused, "downgrade refused: offer left");
                }
                _ => tracing::warn!(sender = %Sensitive(sender.short()), %refused, "offer left"),
            }
        })
    }

    async fn take_offer(&self, received: ReceivedOffer, token_id: [u8; 32]) -> Result<Option<Link>, OfferError> {
        let taken =
            changes::taken_before(self.table().values().map(|held| &held.link), &token_id, &received.sender).cloned();
        if taken.is_some() {
            return Ok(taken);
        }
        // Where it says what it renews is in clear; whether that is true, the key process finds out.
        if let Some(old) = Offer::decode(&received.offer).ok().and_then(|offer| offer.routing.psk) {
            return self.take_renewal(received, token_id, old).await;
        }
        // Whom the operator has denied costs the key process nothing. Who says that an offer is his is named wrong by nobody but a
        // directory, which could as well have dropped it.
        if self.store.word(received.sender).await? == Word::No {
            return Err(RefusedOffer::Denied.into());
        }
        let summary = self.vault.inspect(&received, None).await?;
        let found = self.introduced(summary.peer, &token_id).await?;
        let same_sector = self.config.incoming == IncomingPolicy::Sector
            && found.as_ref().is_some_and(|found| found.sector == self.sector);
        if self.config.incoming == IncomingPolicy::AllowList {
            let earlier = found.as_ref().map_or(&[][..], |found| &found.earlier);
            if let Some(allowed) = earlier.iter().find(|earlier| self.config.allow.contains(earlier)) {
                self.store.carry(*allowed, summary.peer, clock::now()).await?;
            }
        }
        // Whose standing it has decides under which peer's name the modules know it: before its link is there.
        self.hear_successions().await;
        let admission = Admission { policy: self.config.incoming, same_sector, stranger: None };
        self.admit(received, token_id, summary, admission).await
    }

    /// Judges a first offer that the key process has opened, and does as it is judged.
    pub(super) async fn admit(
        &self,
        received: ReceivedOffer,
        token_id: [u8; 32],
        summary: LinkSummary,
        admission: Admission,
    ) -> Result<Option<Link>, OfferError> {
        let turn = self.turn.lock().await;
        let now = clock::now();
        let word = self.store.word(summary.peer).await?;
        let situation = Situation {
            me: self.me,
            policy: admission.policy,
            allow: &self.config.allow,
            approved: word == Word::Yes,
            denied: word == Word::No,
            same_sector: admission.same_sector,
        };
        if self.current(&summary.peer) != summary.peer {
            return Err(RefusedOffer::Succeeded.into());
        }
        let links = self.all();
        let answered = match judge(situation, links.iter(), &summary, &token_id, now) {
            Verdict::Accept(ends) => {
                if let Some(stranger) = admission.stranger {
                    self.keep_stranger(summary.peer, stranger.card).await;
                }
                self.accept(received, token_id, None, &ends, now).await.map(Some)?
            }
            Verdict::Wait(older) => {
                if let Some(older) = older {
                    self.purge(older).await.map_err(super::LinkError::Store)?;
                }
                tracing::info!(link = %summary.link, peer = %Sensitive(summary.peer.short()), "an offer waits for `openred link accept`");
                let waiting = Link::waiting(summary, received.offer, token_id, received.directory, now);
                let mutual_link = admission.stranger.as_ref().map(|stranger| stranger.words);
                let waiting = Link { mutual_link, ..waiting };
                self.keep(vec![waiting]).await.map_err(super::LinkError::Store)?;
                None
            }
            Verdict::Repeat(id) => self.link(&id),
            Verdict::StillWaiting => None,
            Verdict::Refuse(refused) => return Err(refused.into()),
        };
        drop(turn);
        Ok(answered)
    }

    /// An offer that says it renews the link `old`.
    async fn take_renewal(
        &self,
        received: ReceivedOffer,
        token_id: [u8; 32],
        old: LinkId,
    ) -> Result<Option<Link>, OfferError> {
        let usable = |link: &Link| link.peer() == received.sender && link.is_usable(clock::now());
        let renewed = self.link(&old).filter(usable).ok_or(RefusedOffer::NothingToRenew)?;
        let summary = self.vault.inspect(&received, Some(renewed.row.into())).await?;
        let _turn = self.turn.lock().await;
        let now = clock::now();
        let links = self.all();
        match judge_renewal(self.me, links.iter(), &old, &summary, &token_id, now) {
            Verdict::Accept(ends) => Ok(Some(self.accept(received, token_id, Some(old), &ends, now).await?)),
            Verdict::Repeat(id) => Ok(self.link(&id)),
            Verdict::Wait(_) | Verdict::StillWaiting => Ok(None),
            Verdict::Refuse(refused) => Err(refused.into()),
        }
    }

    /// The card of one that offers a link, where it says something that is not known yet: its sector, or that a stranger
    /// goes on for a peer. Nobody is asked about an offer that is known, or for which there is no room; nothing of a
    /// stranger's card is kept. None when no directory has it.
    async fn introduced(&self, peer: NodeId, token_id: &[u8; 32]) -> Result<Option<FoundCard>, StoreError> {
        let links = self.all();
        let waits = |link: &&Link| link.state == LinkState::Waiting;
        let is_known = links.iter().any(|link| link.token_id == *token_id);
        let is_full = self.config.incoming == IncomingPolicy::Ask && links.iter().filter(waits).count() >= WAITING;
        // One that has named a successor may have taken it back.
        let needed = self.config.incoming == IncomingPolicy::Sector
            || self.current(&peer) != peer
            || self.store.word(peer).await? != Word::Yes;
        if is_known || is_full || !needed {
            return Ok(None);
        }
        let found = self.carrier.introduction(peer).await.ok().filter(|found| found.node == peer);
        self.hear_successions().await;
        Ok(found)
    }

    /// A receipt came through a directory.
    pub(crate) async fn handle_receipt(&self, bytes: Bytes, sender: NodeId) {
        let receipt = match Receipt::verify(&bytes, &sender) {
            Ok(receipt) => receipt,
            Err(refused) => return tracing::warn!(sender = %Sensitive(sender.short()), %refused, "receipt refused"),
        };
        let _turn = self.turn.lock().await;
        let Some(link) = changes::confirmed_by(self.all().iter(), &self.me, &receipt).cloned() else {
            return tracing::debug!(sender = %Sensitive(sender.short()), "receipt for no link of this node");
        };
        let (is_news, is_renewal) = (link.state == LinkState::Offered, link.renews.is_some());
        match link.with_receipt(bytes.into(), clock::now()) {
            Ok(pending) => {
                if let Err(error) = self.keep(vec![pending]).await {
                    return self.store_failed(error);
                }
                if is_news && let Some(observer) = self.observer.get() {
                    tracing::info!(peer = %Sensitive(sender.short()), "link accepted by the peer");
                    if is_renewal {
                        observer.link_renewed(sender);
                    } else {
                        observer.link_confirmed(sender);
                    }
                }
            }
            Err(refused) => tracing::warn!(sender = %Sensitive(sender.short()), %refused, "receipt came too late"),
        }
    }

    /// A live link with the peer, or one that this node has offered.
    pub(super) fn standing(&self, peer: &NodeId, now: UnixMillis) -> Option<Link> {
        self.of_peer(peer).filter(|link| stands(link, now))
    }

    pub(super) fn waiting_of(&self, peer: &NodeId) -> Option<Link> {
        self.all().into_iter().rfind(|link| link.peer() == *peer && link.state == LinkState::Waiting)
    }

    /// The turn is held by the caller.
    async fn accept_waiting(&self, waiting: Link, now: UnixMillis) -> Result<Link, LinkError> {
        let received = ReceivedOffer {
            offer: waiting.offer.clone(),
            sender: waiting.peer(),
            directory: waiting.directory,
            allowed: self.allowed_methods(),
        };
        if waiting.directory == NO_DIRECTORY {
            self.keep_introduced(waiting.peer()).await;
        }
        // The operator's yes goes for the newest offer; what stands with the peer is replaced by it.
        let ends = changes::replaced_by(self.all().iter(), &waiting);
        self.accept(received, waiting.token_id, None, &ends, now).await
    }

    /// Accepts in the key process and stores; `renews` is a link that goes on beside it for a while. The turn is held by the
    /// caller, who lets go of it before the receipt is sent: a directory that hangs must not hold up the other links.
    async fn accept(
        &self,
        received: ReceivedOffer,
        token_id: [u8; 32],
        renews: Option<LinkId>,
        ends: &[(LinkId, EndReason)],
        now: UnixMillis,
    ) -> Result<Link, LinkError> {
        let renewed = renews.and_then(|old| self.link(&old));
        let row = renewed.as_ref().map(|old| Bytes::copy_from_slice(&old.row));
        let accepted = self.vault.accept(&received, row).await?;
        let link = Link::accepted(
            accepted.summary,
            accepted.row.into(),
            accepted.receipt.into(),
            token_id,
            received.directory,
            now,
        )
        .in_place_of(renews);
        let mut changed = vec![link.clone()];
        changed.extend(changes::accepted(self.all().iter(), &link, ends, now));
        self.store.put_links(changed.clone()).await?;
        let mut changed = changed.into_iter();
        if let Some(link) = changed.next() {
            self.show(link, Some(accepted.keys));
        }
        changed.for_each(|ended| self.show(ended, None));
        tracing::info!(link = %link.id(), peer = %Sensitive(link.peer().short()), "link accepted");
        Ok(link)
    }

    /// One attempt: an issuer that gets no receipt sends its offer again, and gets this one again.
    async fn send_receipt(&self, link: &Link) {
        if link.directory == NO_DIRECTORY {
            // The contact asks for it again, and the first handshake says the same.
            return self.greet(link.peer());
        }
        let receipt = Bytes::copy_from_slice(&link.receipt);
        if let Err(error) = self.carrier.acknowledge(link.directory, receipt).await {
            tracing::warn!(link = %link.id(), %error, "the receipt could not be sent; the peer will ask again");
        }
    }
}

/// Whether it is live, or offered by this node.
pub(super) fn stands(link: &Link, now: UnixMillis) -> bool {
    (link.state.is_live() || link.state == LinkState::Offered) && !link.is_past_life(now)
}

/// By what a first offer is judged, beside itself.
#[derive(Clone, Debug)]
pub(super) struct Admission {
    pub(super) policy: IncomingPolicy,
    /// The peer's verified card names this node's sector.
    pub(super) same_sector: bool,
    /// What came with it in direct contact.
    pub(super) stranger: Option<Stranger>,
}

/// What is known of one that brings its offer itself.
#[derive(Clone, Debug)]
pub(super) struct Stranger {
    /// What two people compare.
    pub(super) words: [u8; 16],
    /// Its verified card.
    pub(super) card: Bytes,
}

/// Why an offer was not taken, for the log.
#[derive(Clone, Copy, Debug, thiserror::Error)]
pub(super) enum OfferError {
    #[error(transparent)]
    Judged(#[from] RefusedOffer),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_end_also_when_the_clock_is_set_back() {
        let now = UnixMillis(1_800_000_000_000);
        let mut sending = Sending::default();
        assert!(sending.is_due(now));
        for _ in 0..12 {
            sending = sending.after_attempt(now, 0);
            assert!(!sending.is_due(now));
        }
        assert!(sending.is_due(now.plus(LONGEST_PAUSE)));
        assert!(sending.is_due(now.minus(Duration::from_secs(1))), "set back by a second");
    }
}
