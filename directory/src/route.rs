//! Mailboxes: the offers and receipts that wait in memory for their node (PROTOCOL 7). Nothing here touches a disk; all of it
//! is bounded and gone after ten minutes. Sans-IO: time is an argument; a waiting stream is woken through a [`Notify`].
//!
//! Items carry ids that only grow, over restarts too (`max(last + 1, milliseconds)`). A reader names the last id it has:
//! receipts up to it are done with and dropped, offers stay until their receipt comes, or their ten minutes are over.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::limits::OFFER_IN_DIRECTORY;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::limits::{OFFERS_PER_ISSUER, RECEIPTS_PER_NODE};

/// What an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A sealed link offer, for its recipient.
    Offer,
    /// A signed receipt, for the issuer.
    Receipt,
}

/// One waiting item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Grows with each delivery into the mailbox.
    pub id: u64,
    /// Offer or receipt.
    pub kind: Kind,
    /// Who sent it (its signature was checked).
    pub from: NodeId,
    /// SHA-256 of the offer that it is or is about.
    pub token_id: [u8; 32],
    /// The bytes, as they came.
    pub payload: Bytes,
    /// Dropped after this.
    pub until: UnixMillis,
}

/// Why an item was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The recipient's mailbox is full, or this sender has its share in it.
    MailboxFull,
    /// The directory holds as much as it may.
    DirectoryFull,
}

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Offers for one node.
    pub offers_per_node: usize,
    /// Items in all.
    pub items: usize,
}

#[derive(Debug, Default)]
struct Mailbox {
    items: VecDeque<Item>,
    wake: Arc<Notify>,
    /// The newest reader's number; an older one ends when it sees another.
    reader: u64,
}

/// All mailboxes.
#[derive(Debug)]
pub struct Mailboxes {
    bounds: Bounds,
    boxes: HashMap<NodeId, Mailbox>,
    items: usize,
    last_id: u64,
    readers: u64,
}

/// A stream's or long poll's place at a mailbox.
#[derive(Clone, Debug)]
pub struct Reader {
    /// Whose mailbox.
    pub node: NodeId,
    /// Woken when something came, or when another reader took over.
    pub wake: Arc<Notify>,
    number: u64,
}

impl Mailboxes {
    /// Empty ones.
    #[must_use]
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, boxes: HashMap::new(), items: 0, last_id: 0, readers: 0 }
    }

    /// Items that wait in all.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items == 0
    }

    /// Puts an item into `recipient`'s mailbox. The same offer or receipt again takes a new id, so that an open stream
    /// shows it once more, and starts its ten minutes anew.
    ///
    /// # Errors
    /// No room.
    pub fn deposit(
        &mut self,
        now: UnixMillis,
        recipient: NodeId,
        kind: Kind,
        from: NodeId,
        token_id: [u8; 32],
        payload: Bytes,
    ) -> Result<(), Refused> {
        let per_node = if kind == Kind::Offer { self.bounds.offers_per_node } else { RECEIPTS_PER_NODE };
        let mailbox = self.boxes.entry(recipient).or_default();
        self.items -= mailbox.drop_where(|item| {
            item.until < now || (item.kind == kind && item.token_id == token_id && item.from == from)
        });
        let mine = mailbox.items.iter().filter(|item| item.kind == kind && item.from == from).count();
        let same_kind = mailbox.items.iter().filter(|item| item.kind == kind).count();
        if mine >= OFFERS_PER_ISSUER || same_kind >= per_node {
            return Err(Refused::MailboxFull);
        }
        if self.items >= self.bounds.items {
            return Err(Refused::DirectoryFull);
        }
        self.last_id = (self.last_id + 1).max(now.0);
        let until = now.plus(OFFER_IN_DIRECTORY);
        mailbox.items.push_back(Item { id: self.last_id, kind, from, token_id, payload, until });
        self.items += 1;
        mailbox.wake.notify_waiters();
        Ok(())
    }

    /// Takes `node`'s mailbox over as its newest reader. Receipts up to `after` are done with.
    pub fn read(&mut self, node: NodeId, after: u64) -> Reader {
        self.readers += 1;
        let mailbox = self.boxes.entry(node).or_default();
        mailbox.reader = self.readers;
        mailbox.wake.notify_waiters();
        self.items -= mailbox.drop_where(|item| item.kind == Kind::Receipt && item.id <= after);
        Reader { node, wake: Arc::clone(&mailbox.wake), number: self.readers }
    }

    /// What came after `after`; `None` when a newer reader took over.
    pub fn poll(&mut self, now: UnixMillis, reader: &Reader, after: u64) -> Option<Vec<Item>> {
        let mailbox = self.boxes.get_mut(&reader.node).filter(|mailbox| mailbox.reader == reader.number)?;
        self.items -= mailbox.drop_where(|item| item.until < now);
        Some(mailbox.items.iter().filter(|item| item.id > after).cloned().collect())
    }

    /// The recipient has signed for an offer: it need not wait any more.
    pub fn acknowledge(&mut self, recipient: &NodeId, token_id: &[u8; 32]) {
        if let Some(mailbox) = self.boxes.get_mut(recipient) {
            self.items -= mailbox.drop_where(|item| item.kind == Kind::Offer && item.token_id == *token_id);
        }
    }

    /// Empties a node's mailbox and ends its readers: it was banned.
    pub fn evict(&mut self, node: &NodeId) {
        if let Some(mut mailbox) = self.boxes.remove(node) {
            self.items -= mailbox.drop_where(|_| true);
            mailbox.wake.notify_waiters();
        }
    }

    /// Drops what is over its time, and mailboxes that nobody reads or fills.
    pub fn sweep(&mut self, now: UnixMillis) {
        let items = &mut self.items;
        self.boxes.retain(|_, mailbox| {
            *items -= mailbox.drop_where(|item| item.until < now);
            !mailbox.items.is_empty() || Arc::strong_count(&mailbox.wake) > 1
        });
    }
}

impl Mailbox {
    fn drop_where(&mut self, over: impl Fn(&Item) -> bool) -> usize {
        let before = self.items.len();
        self.items.retain(|item| !over(item));
        before - self.items.len()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use std::time::Duration;

    const NOW: UnixMillis = UnixMillis(1_000_000);

    fn node(number: u8) -> NodeId {
        NodeId::from_bytes([number; 32])
    }

    fn boxes() -> Mailboxes {
        Mailboxes::new(Bounds { offers_per_node: 6, items: 10 })
    }

    fn offer(boxes: &mut Mailboxes, now: UnixMillis, to: u8, from: u8, token: u8) -> Result<(), Refused> {
        boxes.deposit(now, node(to), Kind::Offer, node(from), [token; 32], Bytes::from_static(b"sealed"))
    }

    fn tokens(boxes: &mut Mailboxes, now: UnixMillis, of: u8, after: u64) -> Vec<u8> {
        let reader = boxes.read(node(of), after);
        boxes.poll(now, &reader, after).unwrap().iter().map(|item| item.token_id[0]).collect()
    }

    #[test]
    fn an_offer_waits_until_acknowledged_or_ten_minutes() {
        let mut boxes = boxes();
        offer(&mut boxes, NOW, 1, 2, 7).unwrap();
        offer(&mut boxes, NOW, 1, 2, 8).unwrap();
        assert_eq!(tokens(&mut boxes, NOW, 1, 0), [7, 8]);
        assert_eq!(tokens(&mut boxes, NOW, 1, 0), [7, 8], "reading takes nothing away");
        assert_eq!(tokens(&mut boxes, NOW, 3, 0), [0; 0], "others see nothing");
        boxes.acknowledge(&node(1), &[7; 32]);
        assert_eq!(tokens(&mut boxes, NOW.plus(Duration::from_secs(600)), 1, 0), [8]);
        assert_eq!(tokens(&mut boxes, NOW.plus(Duration::from_secs(601)), 1, 0), [0; 0]);
        assert!(boxes.is_empty());
    }

    #[test]
    fn a_repeated_offer_is_shown_again_and_counted_once() {
        let mut boxes = boxes();
        offer(&mut boxes, NOW, 1, 2, 7).unwrap();
        let reader = boxes.read(node(1), 0);
        let last = boxes.poll(NOW, &reader, 0).unwrap()[0].id;
        assert_eq!(boxes.poll(NOW, &reader, last).unwrap(), []);
        offer(&mut boxes, NOW, 1, 2, 7).unwrap();
        assert_eq!(boxes.poll(NOW, &reader, last).unwrap().len(), 1);
        assert_eq!(boxes.len(), 1);
    }

    #[test]
    fn a_receipt_ends_with_the_readers_cursor() {
        let mut boxes = boxes();
        boxes.deposit(NOW, node(1), Kind::Receipt, node(2), [7; 32], Bytes::new()).unwrap();
        let reader = boxes.read(node(1), 0);
        let id = boxes.poll(NOW, &reader, 0).unwrap()[0].id;
        assert_eq!(boxes.len(), 1);
        boxes.read(node(1), id);
        assert!(boxes.is_empty());
    }

    #[test]
    fn shares_and_bounds_hold() {
        let mut boxes = boxes();
        for token in 0..4 {
            offer(&mut boxes, NOW, 1, 2, token).unwrap();
        }
        assert_eq!(offer(&mut boxes, NOW, 1, 2, 9), Err(Refused::MailboxFull), "one issuer's share");
        offer(&mut boxes, NOW, 1, 3, 9).unwrap();
        offer(&mut boxes, NOW, 1, 4, 10).unwrap();
        assert_eq!(offer(&mut boxes, NOW, 1, 5, 11), Err(Refused::MailboxFull));
        for token in 0..4 {
            offer(&mut boxes, NOW, 6, 2, token).unwrap();
        }
        assert_eq!(offer(&mut boxes, NOW, 7, 2, 1), Err(Refused::DirectoryFull));
        boxes.sweep(NOW.plus(Duration::from_secs(601)));
        assert!(boxes.is_empty() && boxes.boxes.is_empty());
    }

    #[test]
    fn the_newest_reader_wins_and_eviction_ends_it() {
        let mut boxes = boxes();
        let old = boxes.read(node(1), 0);
        let new = boxes.read(node(1), 0);
        assert!(boxes.poll(NOW, &old, 0).is_none());
        assert!(boxes.poll(NOW, &new, 0).is_some());
        boxes.sweep(NOW);
        assert!(boxes.poll(NOW, &new, 0).is_some(), "a read mailbox is not swept");
        boxes.evict(&node(1));
        assert!(boxes.poll(NOW, &new, 0).is_none());
    }

    #[test]
    fn ids_only_grow_even_when_the_clock_does_not() {
        let mut boxes = boxes();
        for (token, at) in [5_000, 4_000, 4_000, 6_000].into_iter().enumerate() {
            offer(&mut boxes, UnixMillis(at), 1, 2, u8::try_from(token).unwrap()).unwrap();
        }
        let reader = boxes.read(node(1), 0);
        let ids: Vec<u64> = boxes.poll(UnixMillis(6_000), &reader, 0).unwrap().iter().map(|item| item.id).collect();
        assert_eq!(ids, [5_000, 5_001, 5_002, 6_000]);
    }
}
