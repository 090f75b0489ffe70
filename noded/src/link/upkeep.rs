//! What links need as time passes: offers sent again, lives that end, and what the key process must still be told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use openred_proto::id::{LinkId, NodeId, UnixMillis};
use openred_proto::limits::{CARD_LIFE, CLOCK_GRACE, LINKS_PAGE};
use openred_proto::vault::Refusal;

use super::direct::NO_DIRECTORY;
use super::state::{Aged, ENDED_PER_PEER, EndReason, Link, LinkState, TokenMatch};
use super::{Links, changes};
use crate::clock;
use crate::health::Condition;
use crate::keys::KeysError;
use crate::sensitive::Sensitive;

/// Offers that are sent at once: a peer that is away must not hold up the others.
const AT_ONCE: usize = 8;
/// Times that a directory signs for an offer before it is asked whether the peer is there at all: half a minute without a word.
const UNANSWERED: u32 = 4;
/// How often links are looked at when nothing happens.
pub(super) const TICK: Duration = Duration::from_secs(1);
/// How long a node without a link or a word of the operator is remembered after its last card or session: longer than any card of it holds.
const PEER_KEPT: Duration = Duration::from_secs(30 * 86_400);
const _: () = assert!(PEER_KEPT.as_secs() > CARD_LIFE.as_secs() + 2 * CLOCK_GRACE.as_secs());
/// How often that is looked at.
const PEERS_PAUSE: Duration = Duration::from_secs(3600);

impl Links {
    /// Looks after the links; never returns. What waits for a directory goes beside what must not wait for one.
    pub(crate) async fn run(self: Arc<Self>) {
        let tending = async {
            loop {
                tokio::select! {
                    () = self.due.notified() => {}
                    () = tokio::time::sleep(TICK) => {}
                }
                self.tend(clock::now()).await;
            }
        };
        let sending = async {
            loop {
                tokio::select! {
                    () = self.offer_due.notified() => {}
                    () = tokio::time::sleep(TICK) => {}
                }
                self.send_offers(clock::now()).await;
            }
        };
        // Each by itself: a directory that hangs, or a peer, must not hold up offers that are ready, nor one of these the others.
        let reoffering = async {
            loop {
                tokio::time::sleep(TICK).await;
                self.reoffer(clock::now()).await;
                self.greet_pending(clock::now());
            }
        };
        let asking = async {
            loop {
                tokio::time::sleep(TICK).await;
                self.ask_queued(clock::now()).await;
            }
        };
        let renewing = async {
            loop {
                tokio::time::sleep(TICK).await;
                self.renew_due(clock::now()).await;
            }
        };
        let comparing = async {
            loop {
                tokio::select! {
                    () = self.sync_wanted.notified() => {}
                    () = tokio::time::sleep(TICK) => {}
                }
                tokio::join!(self.sync_due(), self.exchange_due(), self.exchange_heads());
            }
        };
        tokio::join!(tending, sending, reoffering, asking, renewing, comparing, self.store_uses());
    }

    /// One round. Everything here is retried in the next one if it fails.
    pub(crate) async fn tend(&self, now: UnixMillis) {
        self.hear_successions().await;
        self.age(now).await;
        self.end_renewed(now).await;
        self.fetch_keys().await;
        self.tell_vault().await;
        self.sweep_vault().await;
        self.forget_strangers(now).await;
        let waiting = self.all().into_iter().filter(|link| link.state == LinkState::Offered).map(|link| link.peer());
        self.carrier.answered_but(&waiting.collect());
        self.assess(now);
    }

    /// Drops nodes that are nobody any more.
    async fn forget_strangers(&self, now: UnixMillis) {
        let last = UnixMillis(self.purged_at.load(Ordering::Relaxed));
        if last <= now && now < last.plus(PEERS_PAUSE) {
            return;
        }
        match self.store.purge_peers(now.minus(PEER_KEPT)).await {
            Ok(purged) => {
                for peer in &purged {
                    self.carrier.forget(peer);
                    self.steps().forget(peer);
                }
                self.purged_at.store(now.0, Ordering::Relaxed);
            }
            Err(error) => self.store_failed(error),
        }
    }

    /// Request keys of live links that have none yet: after a start, or while the key process was away.
    pub(crate) async fn fetch_keys(&self) {
        let without: Vec<Link> = {
            let table = self.table();
            let lacking = table.values().filter(|held| held.keys.is_none());
            let usable = lacking.filter(|held| held.link.state.is_live() || held.link.state == LinkState::Offered);
            usable.map(|held| held.link.clone()).collect()
        };
        for link in without {
            match self.vault.keys(Bytes::copy_from_slice(&link.row)).await {
                Ok(keys) => {
                    let _turn = self.turn.lock().await;
                    if let Some(current) = self.link(&link.id()).filter(|current| !current.state.is_over()) {
                        self.show(current, Some(keys));
                    }
                }
                Err(KeysError::Refused(Refusal::RowSealed | Refusal::LinkGone | Refusal::LinkExpired)) => {
                    self.end_refused(link.id()).await;
                }
                Err(error) => {
                    // Raised and cleared by the node's own look at the key process; here it is only a reason to wait.
                    tracing::debug!(%error, "link keys not fetched");
                    return;
                }
            }
        }
    }

    async fn end_refused(&self, id: LinkId) {
        let _turn = self.turn.lock().await;
        let now = clock::now();
        let Some(link) = self.link(&id) else { return };
        let Ok(ended) = changes::row_refused(self.all().iter(), link, now) else { return };
        if let Err(error) = self.keep(vec![ended]).await {
            self.store_failed(error);
        }
    }

    async fn age(&self, now: UnixMillis) {
        let all = self.all();
        let crowded = crowded_out(&all);
        let methods = self.methods();
        let is_over = |link: &&Link| link.aged(now).is_some() || methods.ended(link, now).is_some();
        let aged: Vec<LinkId> = all.iter().filter(is_over).map(Link::id).collect();
        if aged.is_empty() && crowded.is_empty() {
            return;
        }
        let _turn = self.turn.lock().await;
        for id in aged.into_iter().chain(crowded.iter().copied()) {
            // Judged again under the turn: a receipt may have come since. What is over and told stays so.
            let aged = self.link(&id).and_then(|link| {
                link.aged(now).or_else(|| methods.ended(&link, now).map(|ended| Aged::Expired(Box::new(ended))))
            });
            let done = match aged {
                Some(Aged::Expired(link)) => {
                    let peer = Sensitive(link.peer().short());
                    tracing::info!(link = %id, %peer, reason = link.reason.text(), "link ran out");
                    self.lapse(*link, now).await
                }
                Some(Aged::Purge) => self.purge(id).await,
                None if crowded.contains(&id) => self.purge(id).await,
                None => Ok(()),
            };
            if let Err(error) = done {
                return self.store_failed(error);
            }
        }
    }

    async fn end_renewed(&self, now: UnixMillis) {
        if let Err(error) = self.outlive(now).await {
            self.store_failed(error);
        }
    }

    pub(super) async fn purge(&self, id: LinkId) -> Result<(), crate::store::StoreError> {
        self.store.purge_link(id).await?;
        self.table().remove(&id);
        Ok(())
    }

    /// Raises or clears the conditions that follow from how the links stand.
    fn assess(&self, now: UnixMillis) {
        let links = self.all();
        let unmatched = links.iter().find(|link| link.state.is_live() && link.matched == TokenMatch::Mismatched);
        let refused = links.iter().find(|link| {
            link.reason == EndReason::RowRefused
                && !links.iter().any(|other| other.peer() == link.peer() && other.state.is_live())
        });
        for (condition, link) in [(Condition::LinkMismatch, unmatched), (Condition::LinkRowRefused, refused)] {
            match link {
                Some(link) => self.health.raise(condition, now, format!("link {}", link.id())),
                None => self.health.clear(condition),
            }
        }
    }

    /// Links that are over and of which the key process has not been told yet.
    async fn tell_vault(&self) {
        let untold: Vec<Link> =
            self.all().into_iter().filter(|link| link.state.is_over() && !link.vault_told).collect();
        for link in untold {
            match self.vault.revoke(link.id()).await {
                Ok(()) | Err(KeysError::Refused(Refusal::LinkGone)) => {
                    let _turn = self.turn.lock().await;
                    let told = Link { vault_told: true, ..link };
                    if let Err(error) = self.keep(vec![told]).await {
                        return self.store_failed(error);
                    }
                }
                Err(error) => return tracing::debug!(%error, "the key process could not be told of an ended link"),
            }
        }
    }

    /// Ends, in the key process, links of which a crash left nothing here: it had issued them, and they were not stored. What it had
    /// accepted stays: the issuer sends its offer again, and gets the same receipt. Once a start: only a crash makes such links.
    async fn sweep_vault(&self) {
        if self.swept.load(Ordering::Relaxed) {
            return;
        }
        // Under the turn: what is being issued now is stored before the turn ends.
        let _turn = self.turn.lock().await;
        let mut after = None;
        loop {
            let page = match self.vault.held(after).await {
                Ok(page) => page,
                Err(error) => return tracing::debug!(%error, "the key process could not be asked for its links"),
            };
            for link in page.iter().filter(|link| !self.table().contains_key(link)) {
                match self.vault.revoke(*link).await {
                    Ok(()) => tracing::info!(%link, "a link that a crash left to the key process alone was ended"),
                    Err(KeysError::Refused(Refusal::LinkGone)) => {}
                    Err(error) => return tracing::debug!(%error, "the key process could not be told of a lost link"),
                }
            }
            after = page.last().copied();
            if page.len() < LINKS_PAGE {
                break;
            }
        }
        self.swept.store(true, Ordering::Relaxed);
    }

    pub(super) async fn send_offers(&self, now: UnixMillis) {
        let due: Vec<Link> = {
            let table = self.table();
            let due = table.values().filter(|held| held.link.state == LinkState::Offered && held.sending.is_due(now));
            due.map(|held| held.link.clone()).collect()
        };
        futures_util::stream::iter(due).for_each_concurrent(AT_ONCE, |link| self.send_offer(link)).await;
    }

    async fn send_offer(&self, link: Link) {
        // One that was ended while others were sent is not offered any more.
        if self.state_of_link(&link.id()) != Some(LinkState::Offered) {
            return;
        }
        // What no directory is to carry, its contact brings.
        if !self.offer_inside(&link).await && link.directory != NO_DIRECTORY {
            let sent = self.carrier.send_offer(link.directory, Bytes::copy_from_slice(&link.offer)).await;
            match sent {
                Ok(()) => self.note_unanswered(&link).await,
                Err(error) => tracing::info!(link = %link.id(), %error, "offer not sent; it is tried again"),
            }
        }
        if let Some(held) = self.table().get_mut(&link.id()) {
            held.sending = held.sending.after_attempt(clock::now(), spread());
        }
    }

    /// The directory took the offer, once more.
    async fn note_unanswered(&self, link: &Link) {
        let attempts = self.table().get(&link.id()).map_or(0, |held| held.sending.attempts());
        if attempts >= UNANSWERED {
            self.carrier.unanswered(link.directory, link.peer()).await;
        }
    }
}

/// What pauses are spread by.
pub(super) fn spread() -> u8 {
    let mut spread = [0];
    getrandom::fill(&mut spread).expect("the kernel's generator answers since the probe at start");
    spread[0]
}

/// Of peers with more ended links than are shown, the oldest of those of which the key process knows: a peer that is
/// admitted and sends offer after offer leaves no more than these behind.
fn crowded_out(links: &[Link]) -> Vec<LinkId> {
    let mut kept: BTreeMap<NodeId, usize> = BTreeMap::new();
    let newest_first = links.iter().rev().filter(|link| link.state.is_over() && link.vault_told);
    let mut crowded = Vec::new();
    for link in newest_first {
        let kept = kept.entry(link.peer()).or_default();
        *kept += 1;
        if *kept > ENDED_PER_PEER {
            crowded.push(link.id());
        }
    }
    crowded
}
