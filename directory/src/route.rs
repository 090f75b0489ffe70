//! Mailboxes: the offers and receipts that wait in memory for their node (PROTOCOL 7). Nothing here touches a disk; all of it
//! is bounded and gone after ten minutes. Sans-IO: time is an argument; a waiting stream is woken through a [`Notify`].
//!
//! Items carry ids that only grow, over restarts too (`max(last + 1, milliseconds)`, before the bits of its replica). A reader names the last id it has:
//! receipts up to it are done with and dropped, offers stay until their receipt comes, or their ten minutes are over, or
//! the mailbox is full and their recipient has been shown them: strangers then fill no mailbox that is read.
//!
//! Directories that share an identity ([`crate::replicas`]) hold copies of each other's items. Each gives its own ids, whose last bits are
//! its number; an id that this run has not given counts as none, but for items whose copy was shown by that id elsewhere. So nothing is
//! hidden that its recipient was not shown, and a node that goes from one to another may be shown an item twice.
//!
//! All share one room. A sender has a part of it, whatever it sends to whom: nobody keeps the others' offers out alone (decision 0067).
//!
//! A stream lives long and names its last id only when it comes again. So receipts that it was shown count against nobody
//! any more; they are kept, in case the stream broke under them, until their room is needed.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::limits::OFFER_IN_DIRECTORY;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;

use crate::limits::{LETTERS, OFFERS_PER_ISSUER, RECEIPTS_PER_NODE, REPLICA_BITS};

mod copies;
mod waiting;

pub use copies::{Fresh, News};
pub use waiting::Bounds;
use waiting::Waiting;

/// What tells an item from others, whatever replica holds it: recipient, kind, sender and offer, hashed.
pub type Key = [u8; 16];

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
    /// A receipt for an offer that waited here when it came.
    pub answers_offer: bool,
    /// What tells it from others.
    pub key: Key,
    /// The ids by which other replicas showed it.
    pub seen: Vec<u64>,
}

impl Item {
    /// A reader has been shown it, here up to that id.
    fn is_shown(&self, up_to: u64) -> bool {
        self.id <= up_to || !self.seen.is_empty()
    }
}

/// An item's key.
#[must_use]
pub fn key_of(recipient: &NodeId, kind: Kind, from: &NodeId, token_id: &[u8; 32]) -> Key {
    let hash = Sha256::new().chain_update([kind as u8]).chain_update(recipient.as_bytes());
    let hash: [u8; 32] = hash.chain_update(from.as_bytes()).chain_update(token_id).finalize().into();
    std::array::from_fn(|place| hash[place])
}

/// Why an item was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The recipient's mailbox is full, or this sender has its share in it.
    MailboxFull,
    /// Its sender has its part of what may wait in all.
    SenderFull,
    /// The directory holds as much as it may.
    DirectoryFull,
}

#[derive(Debug, Default)]
struct Mailbox {
    items: VecDeque<Item>,
    wake: Arc<Notify>,
    /// The newest reader's number; an older one ends when it sees another.
    reader: u64,
    /// The last id that a reader was shown.
    shown: u64,
    /// Since when the newest reader reads: Unix milliseconds.
    since: u64,
}

/// All mailboxes.
#[derive(Debug)]
pub struct Mailboxes {
    bounds: Bounds,
    boxes: HashMap<NodeId, Mailbox>,
    waiting: Waiting,
    /// Ids so far, without their last bits: the first of this run, and the last.
    ids: Option<(u64, u64)>,
    readers: u64,
    copies: Option<copies::Copies>,
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
        Self { bounds, boxes: HashMap::new(), waiting: Waiting::default(), ids: None, readers: 0, copies: None }
    }

    /// Items that wait in all.
    #[must_use]
    pub fn len(&self) -> usize {
        self.waiting.items()
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.waiting.items() == 0
    }

    /// Puts an item into `recipient`'s mailbox. The same offer or receipt again takes a new id, so that an open stream
    /// shows it once more; its ten minutes go on.
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
        self.put(now, recipient, Fresh { kind, from, token_id, payload, until: now.plus(OFFER_IN_DIRECTORY) })
    }

    fn put(&mut self, now: UnixMillis, recipient: NodeId, fresh: Fresh) -> Result<(), Refused> {
        let Fresh { kind, from, token_id, payload, until } = fresh;
        let key = key_of(&recipient, kind, &from, &token_id);
        let answers_offer = kind == Kind::Receipt && self.offer_waits(&from, &recipient, &token_id);
        let mailbox = self.boxes.entry(recipient).or_default();
        mailbox.drop_where(&mut self.waiting, |item| item.until < now);
        let same = |item: &Item| item.key == key;
        let until = mailbox.items.iter().find(|item| same(item)).map_or(until, |item| item.until);
        mailbox.drop_where(&mut self.waiting, same);
        self.make_room_of(&from)?;
        let (mailbox, waiting) = (self.boxes.entry(recipient).or_default(), &mut self.waiting);
        let crowded = waiting.items() >= self.bounds.items;
        match kind {
            Kind::Receipt => mailbox.make_room(waiting, &from, answers_offer, crowded)?,
            Kind::Offer => {
                mailbox.make_room_for_offer(waiting, &from, self.bounds.offers_per_node)?;
                if waiting.items() >= self.bounds.items {
                    return Err(Refused::DirectoryFull);
                }
            }
        }
        let number = self.copies.as_ref().map_or(0, copies::Copies::number);
        let (first, last) = self.ids.map_or((now.0, now.0), |(first, last)| (first, (last + 1).max(now.0)));
        self.ids = Some((first, last));
        let id = last << REPLICA_BITS | number;
        let item = Item { id, kind, from, token_id, payload, until, answers_offer, key, seen: Vec::new() };
        mailbox.items.push_back(item);
        self.waiting.one_more(from);
        mailbox.wake.notify_waiters();
        Ok(())
    }

    /// Makes room in a sender's part, if it has filled it: the oldest of its receipts that were shown goes, whoever's mailbox it is in.
    /// At most as many senders as fill all the room are looked for so.
    fn make_room_of(&mut self, from: &NodeId) -> Result<(), Refused> {
        if self.waiting.of(from) < self.bounds.of_sender() {
            return Ok(());
        }
        let mut oldest: Option<(u64, NodeId, usize)> = None;
        for (node, mailbox) in &self.boxes {
            let is_spare = |item: &Item| item.kind == Kind::Receipt && item.from == *from;
            let spare = mailbox.items.iter().position(|item| is_spare(item) && item.is_shown(mailbox.shown));
            let found = spare.and_then(|place| Some((mailbox.items.get(place)?.id, *node, place)));
            oldest = oldest.into_iter().chain(found).min_by_key(|(id, ..)| *id);
        }
        let (_, node, place) = oldest.ok_or(Refused::SenderFull)?;
        if let Some(mailbox) = self.boxes.get_mut(&node) {
            mailbox.drop_at(&mut self.waiting, place);
        }
        Ok(())
    }

    /// Takes `node`'s mailbox over as its newest reader. Receipts up to `after` are done with.
    pub fn read(&mut self, node: NodeId, after: u64) -> Reader {
        self.readers += 1;
        let mailbox = self.boxes.entry(node).or_default();
        mailbox.reader = self.readers;
        mailbox.wake.notify_waiters();
        let cursor = copies::Cursor::new(after, self.ids, self.copies.as_ref());
        let read = mailbox.take_where(&mut self.waiting, |item| item.kind == Kind::Receipt && cursor.covers(item));
        let wake = Arc::clone(&mailbox.wake);
        self.done_with(&node, read);
        Reader { node, wake, number: self.readers }
    }

    /// What came after `after`; `None` when a newer reader took over.
    pub fn poll(&mut self, now: UnixMillis, reader: &Reader, after: u64) -> Option<Vec<Item>> {
        let mailbox = self.boxes.get_mut(&reader.node).filter(|mailbox| mailbox.reader == reader.number)?;
        mailbox.drop_where(&mut self.waiting, |item| item.until < now);
        let before = mailbox.shown;
        mailbox.shown = mailbox.items.back().map_or(mailbox.shown, |last| last.id);
        if let Some(copies) = &mut self.copies {
            let new = mailbox.items.iter().filter(|item| item.id > before);
            copies.shown(new.map(|item| (reader.node, item.key, item.id)));
        }
        let cursor = copies::Cursor::new(after, self.ids, self.copies.as_ref());
        Some(mailbox.items.iter().filter(|item| !cursor.covers(item)).cloned().collect())
    }

    /// The recipient has signed for an offer of this issuer: it need not wait any more, here or at another replica that may have missed the
    /// first word of it.
    pub fn acknowledge(&mut self, recipient: &NodeId, issuer: &NodeId, token_id: &[u8; 32]) {
        if let Some(mailbox) = self.boxes.get_mut(recipient) {
            let is_it = |item: &Item| item.kind == Kind::Offer && item.token_id == *token_id;
            let answered = mailbox.take_where(&mut self.waiting, is_it);
            if !answered.is_empty() {
                return self.done_with(recipient, answered);
            }
        }
        if let Some(copies) = &mut self.copies {
            copies.done_elsewhere(*recipient, key_of(recipient, Kind::Offer, issuer, token_id));
        }
    }

    fn done_with(&mut self, node: &NodeId, items: Vec<Item>) {
        if let Some(copies) = &mut self.copies {
            copies.done(items.into_iter().map(|item| (*node, item.key, item.until)));
        }
    }

    /// Whether an offer of `issuer` waits for `recipient`.
    fn offer_waits(&self, recipient: &NodeId, issuer: &NodeId, token_id: &[u8; 32]) -> bool {
        let is_it = |item: &Item| item.kind == Kind::Offer && item.from == *issuer && item.token_id == *token_id;
        self.boxes.get(recipient).is_some_and(|mailbox| mailbox.items.iter().any(is_it))
    }

    /// Empties a node's mailbox and ends its readers: it was banned.
    pub fn evict(&mut self, node: &NodeId) {
        if let Some(mut mailbox) = self.boxes.remove(node) {
            let evicted = mailbox.take_where(&mut self.waiting, |_| true);
            mailbox.wake.notify_waiters();
            if let Some(copies) = &mut self.copies {
                evicted.iter().for_each(|item| copies.bury(item.key, item.until));
            }
        }
    }

    /// Drops what is over its time, and mailboxes that nobody reads or fills.
    pub fn sweep(&mut self, now: UnixMillis) {
        let waiting = &mut self.waiting;
        if let Some(copies) = &mut self.copies {
            copies.sweep(now);
        }
        self.boxes.retain(|_, mailbox| {
            mailbox.drop_where(waiting, |item| item.until < now);
            !mailbox.items.is_empty() || Arc::strong_count(&mailbox.wake) > 1
        });
    }
}

impl Mailbox {
    /// Drops the oldest offer that the reader was shown, if a new one needs its room. Its issuer sends it again until it has a
    /// receipt; an issuer's own share holds for shown ones, too.
    fn make_room_for_offer(&mut self, waiting: &mut Waiting, from: &NodeId, most: usize) -> Result<(), Refused> {
        let offers = || self.items.iter().enumerate().filter(|(_, item)| item.kind == Kind::Offer);
        if offers().filter(|(_, item)| item.from == *from).count() >= OFFERS_PER_ISSUER {
            return Err(Refused::MailboxFull);
        }
        if offers().count() < most {
            return Ok(());
        }
        let (place, _) = offers().find(|(_, item)| item.is_shown(self.shown)).ok_or(Refused::MailboxFull)?;
        self.drop_at(waiting, place);
        Ok(())
    }

    /// Drops the receipt whose room a new one needs, if it needs one. First the oldest that the reader was shown;
    /// then, for one that answers an offer, the oldest that answers none: those anybody can send, to fill the mailbox.
    fn make_room(
        &mut self,
        waiting: &mut Waiting,
        from: &NodeId,
        answers_offer: bool,
        crowded: bool,
    ) -> Result<(), Refused> {
        let receipts = || self.items.iter().enumerate().filter(|(_, item)| item.kind == Kind::Receipt);
        let unread = receipts().filter(|(_, item)| item.from == *from && !item.is_shown(self.shown)).count();
        let full = receipts().count() >= RECEIPTS_PER_NODE;
        if unread >= OFFERS_PER_ISSUER {
            return Err(Refused::MailboxFull);
        }
        if !full && !crowded {
            return Ok(());
        }
        let spare = receipts().find(|(_, item)| item.is_shown(self.shown));
        let spare = spare.or_else(|| receipts().find(|(_, item)| answers_offer && !item.answers_offer));
        let Some((place, _)) = spare else {
            return Err(if full { Refused::MailboxFull } else { Refused::DirectoryFull });
        };
        self.drop_at(waiting, place);
        Ok(())
    }

    fn drop_at(&mut self, waiting: &mut Waiting, place: usize) {
        if let Some(item) = self.items.remove(place) {
            waiting.one_less(&item.from);
        }
    }

    fn drop_where(&mut self, waiting: &mut Waiting, over: impl Fn(&Item) -> bool) {
        self.items.retain(|item| {
            let is_over = over(item);
            if is_over {
                waiting.one_less(&item.from);
            }
            !is_over
        });
    }

    fn take_where(&mut self, waiting: &mut Waiting, over: impl Fn(&Item) -> bool) -> Vec<Item> {
        let (taken, left): (VecDeque<Item>, _) =
            std::mem::take(&mut self.items).into_iter().partition(|item| over(item));
        self.items = left;
        taken.iter().for_each(|item| waiting.one_less(&item.from));
        Vec::from(taken)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::limits::SENDERS_FOR_ALL_ITEMS;
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
        boxes.acknowledge(&node(1), &node(2), &[7; 32]);
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

    fn receipt(boxes: &mut Mailboxes, to: u8, from: u8, token: u8) -> Result<(), Refused> {
        boxes.deposit(NOW, node(to), Kind::Receipt, node(from), [token; 32], Bytes::new())
    }

    #[test]
    fn an_offer_sent_again_goes_after_its_first_ten_minutes() {
        let mut boxes = boxes();
        for minute in 0..10 {
            offer(&mut boxes, NOW.plus(Duration::from_secs(60 * minute)), 1, 2, 7).unwrap();
        }
        assert_eq!(tokens(&mut boxes, NOW.plus(Duration::from_secs(600)), 1, 0), [7]);
        assert_eq!(tokens(&mut boxes, NOW.plus(Duration::from_secs(601)), 1, 0), [0; 0]);
    }

    #[test]
    fn receipts_that_a_reader_was_shown_count_against_nobody() {
        let mut boxes = Mailboxes::new(Bounds { offers_per_node: 6, items: 1000 });
        let reader = boxes.read(node(1), 0);
        for token in 0..200 {
            receipt(&mut boxes, 1, 2, token).unwrap();
            let shown = boxes.poll(NOW, &reader, 0).unwrap();
            assert_eq!(shown.last().unwrap().token_id[0], token);
        }
        assert_eq!(boxes.len(), RECEIPTS_PER_NODE, "the newest are kept, in case the stream broke under them");
        assert_eq!(tokens(&mut boxes, NOW, 1, 0)[0], 200 - 64);
        for token in 200..204 {
            receipt(&mut boxes, 1, 2, token).unwrap();
        }
        assert_eq!(receipt(&mut boxes, 1, 2, 204), Err(Refused::MailboxFull), "nobody was shown these four");
        receipt(&mut boxes, 1, 3, 204).unwrap();
    }

    #[test]
    fn receipts_that_answer_nothing_keep_no_answer_out() {
        let mut boxes = Mailboxes::new(Bounds { offers_per_node: 6, items: 1000 });
        for from in 100..116 {
            for token in 0..4 {
                receipt(&mut boxes, 1, from, token).unwrap();
            }
        }
        assert_eq!(receipt(&mut boxes, 1, 2, 9), Err(Refused::MailboxFull), "this one answers nothing either");
        offer(&mut boxes, NOW, 2, 1, 9).unwrap();
        receipt(&mut boxes, 1, 2, 9).unwrap();
        assert_eq!(boxes.len(), RECEIPTS_PER_NODE + 1, "its offer, and as many receipts as before");
        assert_eq!(tokens(&mut boxes, NOW, 1, 0).last(), Some(&9));
    }

    #[test]
    fn a_crowded_directory_lets_shown_receipts_go_first() {
        let mut boxes = boxes();
        let reader = boxes.read(node(1), 0);
        receipt(&mut boxes, 1, 2, 1).unwrap();
        boxes.poll(NOW, &reader, 0).unwrap();
        for to in 3..12 {
            offer(&mut boxes, NOW, to, 2, 1).unwrap();
        }
        receipt(&mut boxes, 1, 2, 2).unwrap();
        assert_eq!(boxes.len(), 10);
        assert_eq!(receipt(&mut boxes, 1, 2, 3), Err(Refused::DirectoryFull));
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
    fn one_sender_has_a_part_of_all_room_whatever_it_sends_to_whom() {
        let mut boxes = Mailboxes::new(Bounds { offers_per_node: 6, items: 128 * SENDERS_FOR_ALL_ITEMS });
        for place in 0..128 {
            offer(&mut boxes, NOW, 10 + place / 4, 2, place % 4).unwrap();
        }
        assert_eq!(offer(&mut boxes, NOW, 100, 2, 0), Err(Refused::SenderFull));
        assert_eq!(receipt(&mut boxes, 100, 2, 0), Err(Refused::SenderFull));
        offer(&mut boxes, NOW, 10, 2, 0).unwrap();
        offer(&mut boxes, NOW, 100, 3, 0).unwrap();
        boxes.acknowledge(&node(10), &node(2), &[0; 32]);
        receipt(&mut boxes, 100, 2, 0).unwrap();
        assert_eq!(offer(&mut boxes, NOW, 101, 2, 0), Err(Refused::SenderFull));
        let reader = boxes.read(node(100), 0);
        boxes.poll(NOW, &reader, 0).unwrap();
        offer(&mut boxes, NOW, 101, 2, 0).unwrap();
        assert!(
            !boxes.boxes[&node(100)].items.iter().any(|item| item.from == node(2)),
            "its receipt that was shown went"
        );
        boxes.sweep(NOW.plus(Duration::from_secs(601)));
        assert!(boxes.is_empty() && boxes.waiting.is_nothing());
    }

    #[test]
    fn offers_that_a_reader_was_shown_keep_no_other_out() {
        let mut boxes = boxes();
        let reader = boxes.read(node(1), 0);
        for from in 2..8 {
            offer(&mut boxes, NOW, 1, from, from).unwrap();
        }
        assert_eq!(offer(&mut boxes, NOW, 1, 8, 8), Err(Refused::MailboxFull), "nobody was shown them");
        boxes.poll(NOW, &reader, 0).unwrap();
        for from in 8..100 {
            offer(&mut boxes, NOW, 1, from, from).unwrap();
            assert_eq!(boxes.poll(NOW, &reader, 0).unwrap().last().unwrap().token_id[0], from);
        }
        assert_eq!(boxes.len(), 6);
        // One issuer's share is as it was.
        for token in 100..103 {
            offer(&mut boxes, NOW, 1, 99, token).unwrap();
            boxes.poll(NOW, &reader, 0).unwrap();
        }
        assert_eq!(offer(&mut boxes, NOW, 1, 99, 103), Err(Refused::MailboxFull));
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
        assert_eq!(ids, [5_000, 5_001, 5_002, 6_000].map(|id| id << REPLICA_BITS));
    }
}
