//! What links need as time passes: offers sent again, lives that end, and what the key process must still be told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openred_proto::id::{LinkId, NodeId, UnixMillis};
use openred_proto::vault::Refusal;

use super::Links;
use super::state::{Aged, ENDED_PER_PEER, EndReason, Link, LinkState, TokenMatch};
use crate::clock;
use crate::health::Condition;
use crate::keys::KeysError;
use crate::sensitive::Sensitive;

/// How often links are looked at when nothing happens.
pub(super) const TICK: Duration = Duration::from_secs(1);

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
                self.reoffer(clock::now()).await;
                self.send_offers(clock::now()).await;
            }
        };
        tokio::join!(tending, sending, self.store_uses());
    }

    /// One round. Everything here is retried in the next one if it fails.
    pub(crate) async fn tend(&self, now: UnixMillis) {
        self.hear_successions().await;
        self.age(now).await;
        self.fetch_keys().await;
        self.tell_vault().await;
        self.assess(now);
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
        let Some(Ok(ended)) = self.link(&id).map(|link| link.ended(EndReason::RowRefused, now)) else { return };
        if let Err(error) = self.keep(vec![ended]).await {
            self.store_failed(error);
        }
    }

    async fn age(&self, now: UnixMillis) {
        let all = self.all();
        let crowded = crowded_out(&all);
        let aged: Vec<LinkId> = all.iter().filter(|link| link.aged(now).is_some()).map(Link::id).collect();
        if aged.is_empty() && crowded.is_empty() {
            return;
        }
        let _turn = self.turn.lock().await;
        for id in aged.into_iter().chain(crowded.iter().copied()) {
            // Judged again under the turn: a receipt may have come since. What is over and told stays so.
            let done = match self.link(&id).and_then(|link| link.aged(now)) {
                Some(Aged::Expired(link)) => {
                    tracing::info!(link = %id, peer = %Sensitive(link.peer().short()), "link expired");
                    self.keep(vec![*link]).await
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

    pub(super) async fn send_offers(&self, now: UnixMillis) {
        let due: Vec<Link> = {
            let table = self.table();
            let due = table.values().filter(|held| held.link.state == LinkState::Offered && held.sending.is_due(now));
            due.map(|held| held.link.clone()).collect()
        };
        for link in due {
            // One that was ended while others were sent is not offered any more.
            if self.state_of_link(&link.id()) != Some(LinkState::Offered) {
                continue;
            }
            let sent = self.carrier.send_offer(link.directory, Bytes::copy_from_slice(&link.offer)).await;
            if let Err(error) = sent {
                tracing::info!(link = %link.id(), %error, "offer not sent; it is tried again");
            }
            let mut spread = [0];
            getrandom::fill(&mut spread).expect("the kernel's generator answers since the probe at start");
            if let Some(held) = self.table().get_mut(&link.id()) {
                held.sending = held.sending.after_attempt(clock::now(), spread[0]);
            }
        }
    }
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
