//! What handshakes leave behind on a link and its peer: counters, the mutual link, the time. In: sessions that opened. Out: rows.
//!
//! A change of state is stored before anybody sees it, as everywhere. A handshake over a link that is active already changes no state: it is
//! seen at once and stored together with all that come within [`PAUSE`], in one transaction. What a crash takes of that is when a link and
//! its peer were used last, the words of the last handshakes, and fewer than [`COUNTS`] counts of a direction, beside those that came
//! while they were being stored: the window of request tags is wide enough for that many of both sides (PROTOCOL 5). Replays are not
//! told by these counts but by the timestamps in the key process, which are durable before a message leaves.

use std::collections::BTreeMap;
use std::time::Duration;

use openred_proto::id::{LinkId, NodeId, UnixMillis};
use openred_proto::limits::TAG_BEHIND;

use super::Links;
use super::state::{Link, LinkState};
use crate::p2p::ports::SessionOpened;
use crate::store::StoreError;

/// How long what was used waits to be stored with the rest.
const PAUSE: Duration = Duration::from_secs(1);
/// A link that has run as far ahead of the store is stored at once: who loses so many counts, initiator or responder, still meets the
/// other within its window, with as many to spare for those that came during the write.
const COUNTS: u64 = 8;
const _: () = assert!(2 * COUNTS <= TAG_BEHIND);

/// Used links, and peers seen at, that are not stored yet. At most one entry a link and one a peer of it.
#[derive(Default)]
pub(super) struct Unstored {
    /// Counters that the store has for certain.
    links: BTreeMap<LinkId, Counters>,
    peers: BTreeMap<NodeId, UnixMillis>,
}

/// Greatest counters of a link: of REQUESTs of this node, and of the peer's.
#[derive(Clone, Copy)]
struct Counters {
    sent: u64,
    received: u64,
}

impl Counters {
    const fn of(link: &Link) -> Self {
        Self { sent: link.sent_counter, received: link.received_counter }
    }

    const fn is_far_behind(self, now: Self) -> bool {
        now.sent.saturating_sub(self.sent) >= COUNTS || now.received.saturating_sub(self.received) >= COUNTS
    }
}

impl Links {
    /// A session opened over a link: it is active, with these counters.
    pub(super) async fn used(&self, opened: &SessionOpened) {
        let _turn = self.turn.lock().await;
        let Some(link) = self.link(&opened.link) else { return };
        let (was, before) = (link.state, Counters::of(&link));
        let next = match link.with_handshake(opened.initiator, opened.counter, opened.mutual_link, opened.at) {
            Ok(next) => next,
            Err(refused) => {
                return tracing::warn!(link = %opened.link, %refused, "a session opened over a link that is over");
            }
        };
        if matches!(was, LinkState::Active | LinkState::Renewing) {
            let now = Counters::of(&next);
            self.replace(next);
            if self.unstored().links.entry(opened.link).or_insert(before).is_far_behind(now) {
                self.counts_due.notify_one();
            }
        } else if let Err(error) = self.keep(vec![next]).await {
            return self.store_failed(error);
        }
        self.unstored().peers.insert(opened.peer, opened.at);
        self.use_due.notify_one();
    }

    /// Puts a link into the table whose state, and so what others think of it, has not changed.
    fn replace(&self, link: Link) {
        if let Some(held) = self.table().get_mut(&link.id()) {
            held.link = link;
        }
        self.changed.notify_waiters();
    }

    /// Stores what was used, a [`PAUSE`] after there is something, or once counts have run ahead; never returns.
    pub(super) async fn store_uses(&self) {
        loop {
            self.use_due.notified().await;
            tokio::select! {
                () = self.counts_due.notified() => {}
                () = tokio::time::sleep(PAUSE) => {}
            }
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
        let (links, peers): (Vec<_>, _) = {
            let unstored = self.unstored();
            if unstored.peers.is_empty() {
                return Ok(());
            }
            (unstored.links.keys().filter_map(|id| self.link(id)).collect(), unstored.peers.clone())
        };
        self.store.used(links, peers).await?;
        // Nobody adds to it without the turn.
        *self.unstored() = Unstored::default();
        Ok(())
    }
}
