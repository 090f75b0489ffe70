//! Peers that have a new identity, and this node's own: whose links end, who is offered another, and who an older id is now.
//!
//! In: what the directories' side has stored of lineages (`store/successions`). Everything here is derived from the store and
//! can be repeated, so a crash in the middle is made good by the next look.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::limits::LINEAGE;

use super::offers::Wanted;
use super::state::EndReason;
use super::{LinkError, Links, MutexGuard, PoisonError};
use crate::clock;
use crate::sensitive::Sensitive;
use crate::store::StoreError;

/// A peer that cannot be had is offered a link anew this often.
const REOFFER_PAUSE: Duration = Duration::from_secs(30);
/// And for so long; afterwards the operator may still ask for one.
const REOFFER_FOR: Duration = Duration::from_secs(30 * 86_400);

/// Ids of one peer that are kept together: four whole lineages. Of a peer with more, which takes that many owners of keys who name the same one,
/// the farthest stand alone.
const IDENTITIES: usize = 4 * LINEAGE;

/// Who goes on for whom, and when peers were last offered links anew.
#[derive(Debug)]
pub(super) struct Successors {
    by_old: BTreeMap<NodeId, NodeId>,
    /// By each id that is one of several of a peer: all of them, the oldest first, today's last.
    groups: BTreeMap<NodeId, Vec<NodeId>>,
    tried_at: UnixMillis,
    /// What the store has of them could not be read or taken in: the next look does.
    unsettled: bool,
}

impl Default for Successors {
    fn default() -> Self {
        Self { by_old: BTreeMap::new(), groups: BTreeMap::new(), tried_at: UnixMillis(0), unsettled: false }
    }
}

impl Successors {
    /// Takes in what the store has; who names another than before, or nobody any more.
    fn take(&mut self, by_old: BTreeMap<NodeId, NodeId>) -> Vec<NodeId> {
        let before = std::mem::replace(&mut self.by_old, by_old);
        self.groups = groups(&self.by_old);
        let olds: BTreeSet<NodeId> = before.keys().chain(self.by_old.keys()).copied().collect();
        olds.into_iter().filter(|old| before.get(old) != self.by_old.get(old)).collect()
    }

    fn current(&self, peer: &NodeId) -> NodeId {
        // Chains are as long as identities changed while this node knew them; a circle is cut.
        let hops = std::iter::successors(Some(*peer), |at| self.by_old.get(at).copied());
        hops.take(IDENTITIES).last().unwrap_or(*peer)
    }
}

/// The ids that go together, by each of them.
fn groups(by_old: &BTreeMap<NodeId, NodeId>) -> BTreeMap<NodeId, Vec<NodeId>> {
    let mut by_new: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
    by_old.iter().for_each(|(old, new)| by_new.entry(*new).or_default().push(*old));
    let mut groups = BTreeMap::new();
    // Whoever is named and names nobody is who a peer is today.
    for present in by_new.keys().filter(|new| !by_old.contains_key(new)) {
        let (mut group, mut at) = (vec![*present], 0);
        while let Some(id) = group.get(at).copied() {
            let older = by_new.get(&id).into_iter().flatten().filter(|old| !group.contains(old)).copied();
            let older: Vec<NodeId> = older.take(IDENTITIES - group.len()).collect();
            group.extend(older);
            at += 1;
        }
        group.reverse();
        groups.extend(group.iter().map(|id| (*id, group.clone())));
    }
    groups
}

impl Links {
    fn successors(&self) -> MutexGuard<'_, Successors> {
        self.successors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who a peer is today: itself, unless it has named a successor.
    pub(crate) fn current(&self, peer: &NodeId) -> NodeId {
        self.successors().current(peer)
    }

    /// Every id under which a peer is known, the oldest first, today's last.
    pub(crate) fn identities(&self, peer: &NodeId) -> Vec<NodeId> {
        self.successors().groups.get(peer).cloned().unwrap_or_else(|| vec![*peer])
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
        // Links first: over the link of one who names another nobody gets what is that other's.
        if !ended.is_empty() {
            self.keep(ended).await?;
        }
        let changed = self.successors().take(by_old);
        if let Some(observer) = self.observer.get() {
            changed.into_iter().for_each(|peer| observer.identities_changed(peer));
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
            let done = match self.offer_to(peer, None, Wanted::Anew).await {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u8) -> NodeId {
        NodeId::from_bytes([number; 32])
    }

    fn of(words: &[(u8, u8)]) -> (Successors, BTreeMap<NodeId, NodeId>) {
        let by_old: BTreeMap<NodeId, NodeId> = words.iter().map(|(old, new)| (id(*old), id(*new))).collect();
        let mut successors = Successors::default();
        successors.take(by_old.clone());
        (successors, by_old)
    }

    fn group(successors: &Successors, of: u8) -> Option<Vec<u8>> {
        successors.groups.get(&id(of)).map(|group| group.iter().map(|id| id.as_bytes()[0]).collect())
    }

    #[test]
    fn ids_of_one_peer_go_together_oldest_first_and_those_of_others_do_not() {
        let (successors, _) = of(&[(3, 1), (1, 2), (7, 8)]);
        for one in [1, 2, 3] {
            assert_eq!(group(&successors, one), Some(vec![3, 1, 2]));
        }
        assert_eq!((group(&successors, 7), group(&successors, 9)), (Some(vec![7, 8]), None));
        // Two that name the same one are one peer with it; a circle is nobody.
        let (both, _) = of(&[(4, 6), (5, 6)]);
        assert_eq!(group(&both, 6).map(|group| (group.len(), group[2])), Some((3, 6)));
        assert_eq!(group(&of(&[(1, 2), (2, 1)]).0, 1), None);
        let many: Vec<(u8, u8)> = (1..40).map(|old| (old, 99)).collect();
        assert_eq!(group(&of(&many).0, 99).map(|group| group.len()), Some(IDENTITIES), "bounded");
    }

    #[test]
    fn what_has_changed_is_named_and_nothing_else() {
        let (mut successors, mut by_old) = of(&[(1, 2), (3, 4)]);
        assert!(successors.take(by_old.clone()).is_empty());
        by_old.remove(&id(1));
        by_old.insert(id(5), id(6));
        assert_eq!(successors.take(by_old), [id(1), id(5)]);
        assert_eq!(group(&successors, 2), None);
    }
}
