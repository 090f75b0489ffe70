//! Renewal carried out: links that are due are offered anew under the old one, and what has been renewed ends. The rules are in
//! `renewal`.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use openred_proto::checked::offer::Offer;
use openred_proto::id::{LinkId, NodeId, UnixMillis};

use super::methods::EPOCH;
use super::offers::Sending;
use super::ports::FoundCard;
use super::renewal::{Turn, renewal_at, turn};
use super::state::{EndReason, Link, LinkState};
use super::{LinkError, Links, changes};
use crate::clock;
use crate::config::IncomingPolicy;
use crate::keys::NewLink;
use crate::sensitive::Sensitive;
use crate::store::{StoreError, Word};

/// Renewals that are prepared at once: each may wait for a directory.
const AT_ONCE: usize = 8;
/// A kept card is fresh for so long: what its node allows may have changed since, and what it has retired it ends after an epoch.
const FRESH: Duration = EPOCH;

impl Links {
    /// What renewal asks of a link now.
    fn turn_of(&self, id: &LinkId, now: UnixMillis) -> Option<Turn> {
        let links = self.all();
        let link = links.iter().find(|link| link.id() == *id)?;
        turn(link, links.iter(), self.allowed_methods(), now)
    }

    /// Renews what is due.
    pub(crate) async fn renew_due(&self, now: UnixMillis) {
        let links = self.all();
        let allowed = self.allowed_methods();
        let is_due = |link: &&Link| turn(link, links.iter(), allowed, now) == Some(Turn::Renew);
        let due = links.iter().filter(is_due).map(Link::id).filter(|id| self.may_try(id, now));
        futures_util::stream::iter(due.collect::<Vec<_>>())
            .for_each_concurrent(AT_ONCE, |id| async move {
                if let Err(error) = self.renew(id, now).await {
                    tracing::info!(link = %id, %error, "link not renewed yet; it is tried again");
                }
                self.tried(&id);
            })
            .await;
    }

    fn may_try(&self, id: &LinkId, now: UnixMillis) -> bool {
        self.table().get(id).is_some_and(|held| held.renewing.is_due(now))
    }

    fn tried(&self, id: &LinkId) {
        // The last byte of an id is as good as any to keep links from moving in step.
        let spread = id.as_bytes()[15];
        if let Some(held) = self.table().get_mut(id) {
            held.renewing = held.renewing.after_attempt(clock::now(), spread);
        }
    }

    /// A link that was renewed before its time leaves its pause to the one in its place: two nodes that do not agree on what is to be
    /// renewed do so ever more slowly.
    fn carry_pause(&self, old: &Link, new: &LinkId, now: UnixMillis) {
        if renewal_at(old) <= now {
            return;
        }
        let mut table = self.table();
        let pause = table.get(&old.id()).map(|held| held.renewing.after_attempt(now, old.id().as_bytes()[15]));
        if let Some((pause, held)) = pause.zip(table.get_mut(new)) {
            held.renewing = pause;
        }
    }

    /// Issues and stores a link in the place of this one, if it is still due.
    async fn renew(&self, id: LinkId, now: UnixMillis) -> Result<(), LinkError> {
        let old = self.link(&id).ok_or(LinkError::NotFound)?;
        // Before the turn: a slow directory must not hold up the other links.
        let found = self.card_for_renewal(&old).await?;
        self.hear_successions().await;
        let _turn = self.turn.lock().await;
        let now = clock::now().max(now);
        if self.turn_of(&id, now) != Some(Turn::Renew) {
            return Ok(());
        }
        let old = self.link(&id).ok_or(LinkError::NotFound)?;
        let terms = NewLink {
            peer: old.peer(),
            card: found.card,
            directory: found.directory,
            allowed: self.allowed_methods(),
            schedule: self.schedule(),
            life: old.life(),
        };
        let issued = self.vault.renew(Bytes::copy_from_slice(&old.row), terms).await?;
        let token_id = Offer::token_id(&issued.offer);
        let link = Link::issued(issued.summary, issued.row.into(), issued.offer.into(), token_id, found.directory, now)
            .in_place_of(Some(id));
        let changed = changes::renewed(self.all().iter(), &old, link.id(), now)?;
        self.store.put_links([&changed[..], std::slice::from_ref(&link)].concat()).await?;
        let new = link.id();
        tracing::info!(link = %link.id(), renews = %id, peer = %Sensitive(link.peer().short()), "link renewed: offered");
        self.show(link, Some(issued.keys));
        changed.into_iter().for_each(|changed| self.show(changed, None));
        if let Some(old) = self.link(&id) {
            self.carry_pause(&old, &new, now);
        }
        Ok(())
    }

    /// The peer's card: at the first attempt as it was kept, if it is fresh, so that nobody is waited for; then from the peer itself where a
    /// session is open; then as a directory has it now; and where none answers from the peer, for which a session is opened, else as it was kept.
    async fn card_for_renewal(&self, old: &Link) -> Result<FoundCard, LinkError> {
        let is_first = self.table().get(&old.id()).is_some_and(|held| held.renewing == Sending::default());
        if is_first
            && let Some(found) = self.carrier.kept_card(old.peer(), FRESH).await
            && found.node == old.peer()
        {
            return Ok(found);
        }
        let has_session = self.courier.get().is_some_and(|courier| courier.has_session(&old.peer()));
        if has_session
            && self.exchange_cards(old.peer()).await
            && let Some(found) = self.carrier.kept_card(old.peer(), FRESH).await
        {
            return Ok(found);
        }
        let found = match self.carrier.card(old.peer()).await {
            Ok(found) => found,
            Err(error) => {
                if !has_session {
                    self.exchange_cards(old.peer()).await;
                }
                self.carrier.kept_card(old.peer(), Duration::MAX).await.ok_or(error)?
            }
        };
        if found.node == old.peer() { Ok(found) } else { Err(LinkError::Succeeded) }
    }

    /// Ends what has been renewed and is not needed any more.
    pub(super) async fn outlive(&self, now: UnixMillis) -> Result<(), StoreError> {
        if self.outlived(now).is_empty() {
            return Ok(());
        }
        // Looked at again under the turn: what was judged must still stand when it is stored.
        let _turn = self.turn.lock().await;
        let changed = self.outlived(now);
        for link in changed.iter().filter(|link| link.state.is_over()) {
            tracing::info!(link = %link.id(), peer = %Sensitive(link.peer().short()), "renewed link ended");
        }
        self.keep(changed).await
    }

    fn outlived(&self, now: UnixMillis) -> Vec<Link> {
        changes::outlived(&self.all(), self.allowed_methods(), now)
    }

    /// Whether `links.incoming` would take an offer of this peer's without the operator, by what is known of it here.
    async fn policy_admits(&self, peer: &NodeId) -> bool {
        if !matches!(self.store.word(*peer).await, Ok(Word::None | Word::Yes)) {
            return false;
        }
        match self.config.incoming {
            IncomingPolicy::Open => true,
            IncomingPolicy::AllowList => self.config.allow.contains(peer),
            IncomingPolicy::Sector => {
                let kept = self.carrier.kept_card(*peer, Duration::MAX).await;
                kept.is_some_and(|kept| kept.node == *peer && kept.sector == self.sector)
            }
            IncomingPolicy::Ask => false,
        }
    }

    /// What a link leaves behind that has run out: the renewal of it that nobody answered ends with it, and the peer, if the operator
    /// has said yes to it, is offered a link anew (PROTOCOL 4); after a method was retired here also where
    /// the policy admits it. The turn is held by the caller.
    pub(super) async fn lapse(&self, link: Link, now: UnixMillis) -> Result<(), StoreError> {
        let (is_last, orphans) = changes::lapsed(self.all().iter(), &link, now);
        let peer = link.peer();
        // This node's own decision ended a link that both used: whom the policy would take again is offered another.
        let was_live = self.state_of_link(&link.id()).is_some_and(LinkState::is_live);
        let admits = link.reason == EndReason::MethodRetired && was_live && self.policy_admits(&peer).await;
        let lapsed: Vec<Link> = std::iter::once(link).chain(orphans).collect();
        if is_last {
            self.store.put_lapsed(lapsed.clone(), peer, admits, now).await?;
        } else {
            self.store.put_links(lapsed.clone()).await?;
        }
        lapsed.into_iter().for_each(|link| self.show(link, None));
        Ok(())
    }
}
