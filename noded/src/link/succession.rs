//! Peers that have a new identity, and this node's own: whose links end, who is offered another, and who an older id is now.
//!
//! In: what the directories' side has stored of lineages (`store/successions`). Everything here is derived from the store and
//! can be repeated, so a crash in the middle is made good by the next look.

use std::collections::BTreeMap;
use std::time::Duration;

use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::limits::LINEAGE;

use super::state::EndReason;
use super::{LinkError, Links, MutexGuard, PoisonError};
use crate::clock;
use crate::sensitive::Sensitive;
use crate::store::StoreError;

/// A peer that cannot be had is offered a link anew this often.
const REOFFER_PAUSE: Duration = Duration::from_secs(30);
/// And for so long; afterwards the operator may still ask for one.
const REOFFER_FOR: Duration = Duration::from_secs(30 * 86_400);

/// Who goes on for whom, and when peers were last offered links anew.
#[derive(Debug)]
pub(super) struct Successors {
    by_old: BTreeMap<NodeId, NodeId>,
    tried_at: UnixMillis,
    /// What the store has of them could not be read or taken in: the next look does.
    unsettled: bool,
}

impl Default for Successors {
    fn default() -> Self {
        Self { by_old: BTreeMap::new(), tried_at: UnixMillis(0), unsettled: false }
    }
}

impl Links {
    fn successors(&self) -> MutexGuard<'_, Successors> {
        self.successors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who a peer is today: itself, unless it has named a successor.
    pub(crate) fn current(&self, peer: &NodeId) -> NodeId {
        let successors = self.successors();
        // Chains are as long as identities changed while this node knew them; a circle is cut.
        let hops = std::iter::successors(Some(*peer), |at| successors.by_old.get(at).copied());
        hops.take(4 * LINEAGE).last().unwrap_or(*peer)
    }

    /// The older ids of a peer.
    pub(crate) fn earlier_of(&self, peer: &NodeId) -> Vec<NodeId> {
        let olds: Vec<NodeId> = self.successors().by_old.keys().copied().collect();
        olds.into_iter().filter(|old| self.current(old) == *peer && old != peer).collect()
    }

    /// Holds the links against what the store knows of successions.
    ///
    /// # Errors
    /// The store's.
    pub(super) async fn settle_successions(&self) -> Result<(), StoreError> {
        // Read under the turn: of two at once the later one has the later map.
        let _turn = self.turn.lock().await;
        let by_old: BTreeMap<NodeId, NodeId> = self.store.successions().await?.into_iter().collect();
        let withdrawn = self.store.withdrawn().await?;
        let now = clock::now();
        let mut ended = Vec::new();
        for link in self.all().into_iter().filter(|link| !link.state.is_over()) {
            let reason = match link.peer() {
                peer if by_old.contains_key(&peer) => EndReason::PeerSuccession,
                peer if withdrawn.contains(&peer) => EndReason::TakenBack,
                _ => continue,
            };
            tracing::warn!(link = %link.id(), peer = %Sensitive(link.peer().short()), "link ended: {}", reason.text());
            ended.extend(link.ended(reason, now));
        }
        self.successors().by_old = by_old;
        if !ended.is_empty() {
            self.keep(ended).await?;
        }
        for peer in withdrawn {
            self.store.forget_withdrawn(peer).await?;
        }
        Ok(())
    }

    /// Looks whether a card brought a succession.
    pub(super) async fn hear_successions(&self) {
        if !self.carrier.take_news() && !self.successors().unsettled {
            return;
        }
        let settled = self.settle_successions().await;
        self.successors().unsettled = settled.is_err();
        if let Err(error) = settled {
            self.store_failed(error);
        }
    }

    /// Under a new identity of its own the node offers links to those it was linked with.
    pub(super) async fn reoffer(&self, now: UnixMillis) {
        let due = {
            let mut successors = self.successors();
            let due = successors.tried_at.plus(REOFFER_PAUSE) <= now || now < successors.tried_at;
            if due {
                successors.tried_at = now;
            }
            due
        };
        if !due {
            return;
        }
        let waiting = match self.store.to_reoffer().await {
            Ok(waiting) => waiting,
            Err(error) => return self.store_failed(error),
        };
        for (peer, since) in waiting {
            let done = match self.offer_to(peer, None, false).await {
                Ok(link) => {
                    tracing::info!(link = %link.id(), peer = %Sensitive(peer.short()), "link offered anew");
                    true
                }
                Err(LinkError::WithItself) => true,
                Err(error) => {
                    tracing::debug!(peer = %Sensitive(peer.short()), %error, "no link offered anew yet");
                    now > since.plus(REOFFER_FOR)
                }
            };
            if done && let Err(error) = self.store.reoffered(peer).await {
                return self.store_failed(error);
            }
        }
    }
}
