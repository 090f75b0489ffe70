//! What handshakes leave behind on a link and its peer: counters, the mutual link, the time. In: sessions that opened. Out: rows.
//!
//! A change of state is stored before anybody sees it, as everywhere. A handshake over a link that is active already changes no state: it is
//! seen at once and stored together with all that come while the store is busy, one transaction for as many as there are. What a
//! crash takes of that is a few counts, which the window of request tags is wide enough for (PROTOCOL 5).

use std::collections::{BTreeMap, BTreeSet};

use openred_proto::id::{LinkId, NodeId, UnixMillis};

use super::Links;
use super::state::{Link, LinkState};
use crate::p2p::ports::SessionOpened;
use crate::store::StoreError;

/// Used links, and peers seen at, that are not stored yet. At most one entry a link and one a peer of it.
#[derive(Default)]
pub(super) struct Unstored {
    links: BTreeSet<LinkId>,
    peers: BTreeMap<NodeId, UnixMillis>,
}

impl Links {
    /// A session opened over a link: it is active, with these counters.
    pub(super) async fn used(&self, opened: &SessionOpened) {
        let _turn = self.turn.lock().await;
        let Some(link) = self.link(&opened.link) else { return };
        let was = link.state;
        let next = match link.with_handshake(opened.initiator, opened.counter, opened.mutual_link, opened.at) {
            Ok(next) => next,
            Err(refused) => {
                return tracing::warn!(link = %opened.link, %refused, "a session opened over a link that is over");
            }
        };
        if matches!(was, LinkState::Active | LinkState::Renewing) {
            self.replace(next);
        } else if let Err(error) = self.keep(vec![next]).await {
            return self.store_failed(error);
        }
        let mut unstored = self.unstored();
        unstored.links.insert(opened.link);
        unstored.peers.insert(opened.peer, opened.at);
        self.use_due.notify_one();
    }

    /// Puts a link into the table whose state, and so what others think of it, has not changed.
    fn replace(&self, link: Link) {
        if let Some(held) = self.table().get_mut(&link.id()) {
            held.link = link;
        }
        self.changed.notify_waiters();
    }

    /// Stores what was used, whenever there is something; never returns.
    pub(super) async fn store_uses(&self) {
        loop {
            self.use_due.notified().await;
            while let Err(error) = self.store_used().await {
                self.store_failed(error);
                tokio::time::sleep(super::upkeep::TICK).await;
            }
        }
    }

    /// Stores all of it in one go; after a failure it is still there for the next time.
    pub(crate) async fn store_used(&self) -> Result<(), StoreError> {
        // Under the turn: a link that ends meanwhile must not be written over with what it was.
        let _turn = self.turn.lock().await;
        let (links, peers) = {
            let unstored = self.unstored();
            (unstored.links.iter().filter_map(|id| self.link(id)).collect(), unstored.peers.clone())
        };
        self.store.used(links, peers).await?;
        // Nobody adds to it without the turn.
        *self.unstored() = Unstored::default();
        Ok(())
    }
}
