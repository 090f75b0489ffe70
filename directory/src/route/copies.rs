//! The part of the mailboxes that replicas share: copies that come from another, words about what was shown or is done with, and cursors
//! that another replica gave. Sans-IO, as the rest: what others are to be told is collected, and whoever tells them is woken.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::limits::OFFER_IN_DIRECTORY;
use tokio::sync::Notify;

use super::{Item, Key, Kind, LETTERS, Mailboxes, REPLICA_BITS, Refused, key_of};

/// An item that comes.
#[derive(Clone, Debug)]
pub struct Fresh {
    /// Offer or receipt.
    pub kind: Kind,
    /// Who sent it.
    pub from: NodeId,
    /// SHA-256 of the offer that it is or is about.
    pub token_id: [u8; 32],
    /// The bytes.
    pub payload: Bytes,
    /// Dropped after this.
    pub until: UnixMillis,
}

/// What the other replicas are to be told.
#[derive(Debug, Default)]
pub struct News {
    /// Items that are done with.
    pub done: Vec<(NodeId, Key)>,
    /// Items that a reader was shown, by these ids.
    pub shown: Vec<(NodeId, Key, u64)>,
}

/// What mailboxes keep besides while there are other replicas.
#[derive(Debug)]
pub(super) struct Copies {
    number: u64,
    wake: Arc<Notify>,
    news: News,
    /// Items that are done with, until a copy of them could not come any more. Bounded by `most`.
    buried: HashMap<Key, UnixMillis>,
    most: usize,
}

impl Copies {
    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    /// What does not fit is not told: then the others show an item again, or keep it for its ten minutes.
    pub(super) fn shown(&mut self, items: impl Iterator<Item = (NodeId, Key, u64)>) {
        let room = LETTERS.saturating_sub(self.news.shown.len());
        self.news.shown.extend(items.take(room));
        if !self.news.shown.is_empty() {
            self.wake.notify_one();
        }
    }

    pub(super) fn done(&mut self, items: impl Iterator<Item = (NodeId, Key, UnixMillis)>) {
        for (node, key, until) in items {
            self.bury(key, until);
            if self.news.done.len() < LETTERS {
                self.news.done.push((node, key));
            }
        }
        if !self.news.done.is_empty() {
            self.wake.notify_one();
        }
    }

    /// One that is not here may be at another replica still, which was cut off when it was done with first.
    pub(super) fn done_elsewhere(&mut self, node: NodeId, key: Key) {
        if self.news.done.len() < LETTERS {
            self.news.done.push((node, key));
            self.wake.notify_one();
        }
    }

    pub(super) fn bury(&mut self, key: Key, until: UnixMillis) {
        if self.buried.len() < self.most {
            self.buried.insert(key, until);
        }
    }

    pub(super) fn sweep(&mut self, now: UnixMillis) {
        self.buried.retain(|_, until| *until >= now);
    }
}

/// The last id that a reader has, and whose it is.
pub(super) struct Cursor {
    id: u64,
    /// This run gave it.
    own: bool,
}

impl Cursor {
    pub(super) fn new(id: u64, ids: Option<(u64, u64)>, copies: Option<&Copies>) -> Self {
        let (time, number) = (id >> REPLICA_BITS, id & NUMBER);
        let given = ids.is_some_and(|(first, last)| (first..=last).contains(&time));
        Self { id, own: given && number == copies.map_or(0, Copies::number) }
    }

    /// Its reader has been shown this item.
    pub(super) fn covers(&self, item: &Item) -> bool {
        let elsewhere = |seen: &u64| seen & NUMBER == self.id & NUMBER && *seen <= self.id;
        (self.own && item.id <= self.id) || item.seen.iter().any(elsewhere)
    }
}

const NUMBER: u64 = (1 << REPLICA_BITS) - 1;

impl Mailboxes {
    /// From now on as the replica of this number; `wake` is told when there is news for the others.
    pub fn share(&mut self, number: u16, wake: Arc<Notify>) {
        let (number, most) = (u64::from(number) & NUMBER, self.bounds.items);
        self.copies = Some(Copies { number, wake, news: News::default(), buried: HashMap::new(), most });
    }

    /// What the others are to be told since the last time.
    pub fn news(&mut self) -> News {
        self.copies.as_mut().map(|copies| std::mem::take(&mut copies.news)).unwrap_or_default()
    }

    /// Takes a copy from another replica. One that is here stays as it is, unless its sender has just sent it again; one that is done with
    /// stays so.
    ///
    /// # Errors
    /// No room.
    pub fn copy(&mut self, now: UnixMillis, recipient: NodeId, mut fresh: Fresh, sent: bool) -> Result<(), Refused> {
        let key = key_of(&recipient, fresh.kind, &fresh.from, &fresh.token_id);
        fresh.until = fresh.until.min(now.plus(OFFER_IN_DIRECTORY));
        if fresh.until < now {
            return Ok(());
        }
        let buried = self.copies.as_mut().map(|copies| &mut copies.buried);
        match buried {
            Some(buried) if sent => drop(buried.remove(&key)),
            Some(buried) if buried.contains_key(&key) => return Ok(()),
            _ => {}
        }
        if !sent && self.holds(&recipient, &key) {
            return Ok(());
        }
        self.put(now, recipient, fresh)
    }

    /// Whether an item waits.
    #[must_use]
    pub fn holds(&self, recipient: &NodeId, key: &Key) -> bool {
        self.boxes.get(recipient).is_some_and(|mailbox| mailbox.items.iter().any(|item| item.key == *key))
    }

    /// Drops an item that was taken and then refused. Nobody is told that it is done with: its sender may have left it at another replica by
    /// the time that the others hear of it, and has that one's receipt.
    pub fn take_back(&mut self, recipient: &NodeId, key: &Key) {
        if let Some(mailbox) = self.boxes.get_mut(recipient) {
            mailbox.drop_where(&mut self.waiting, |item| item.key == *key);
        }
    }

    /// Drops items that are done with at another replica.
    pub fn finish(&mut self, now: UnixMillis, entries: &[(NodeId, Key)]) {
        for (node, key) in entries {
            let before = self.waiting.items();
            if let Some(mailbox) = self.boxes.get_mut(node) {
                mailbox.drop_where(&mut self.waiting, |item| item.key == *key);
            }
            let was_here = self.waiting.items() < before;
            // Who signs for offers that there never were buries no more than half of what can be.
            if let Some(copies) =
                self.copies.as_mut().filter(|copies| was_here || copies.buried.len() < copies.most / 2)
            {
                copies.bury(*key, now.plus(OFFER_IN_DIRECTORY));
            }
        }
    }

    /// Notes what readers of another replica were shown, and by which ids.
    pub fn seen(&mut self, entries: &[(NodeId, Key, u64)]) {
        for (node, key, id) in entries {
            let mailbox = self.boxes.get_mut(node);
            let item = mailbox.and_then(|mailbox| mailbox.items.iter_mut().find(|item| item.key == *key));
            if let Some(item) = item {
                // One id for each replica: the last.
                item.seen.retain(|seen| seen & NUMBER != id & NUMBER);
                item.seen.push(*id);
            }
        }
    }

    /// Whether somebody reads a node's mailbox here.
    #[must_use]
    pub fn is_read(&self, node: &NodeId) -> bool {
        self.boxes.get(node).is_some_and(|mailbox| Arc::strong_count(&mailbox.wake) > 1)
    }

    /// A reader began now.
    pub fn reads_since(&mut self, node: &NodeId, now: UnixMillis) {
        if let Some(mailbox) = self.boxes.get_mut(node) {
            mailbox.since = now.0;
        }
    }

    /// A node reads at another replica since then: an older reader here ends.
    pub fn read_elsewhere(&mut self, node: &NodeId, since: UnixMillis) {
        let older = |mailbox: &&mut super::Mailbox| mailbox.since < since.0;
        if let Some(mailbox) = self.boxes.get_mut(node).filter(older) {
            self.readers += 1;
            mailbox.reader = self.readers;
            mailbox.wake.notify_waiters();
        }
    }

    /// The keys of all that waits.
    #[must_use]
    pub fn keys(&self) -> Vec<Key> {
        self.boxes.values().flat_map(|mailbox| mailbox.items.iter().map(|item| item.key)).collect()
    }

    /// Those of another's items that are neither here nor done with.
    #[must_use]
    pub fn missing(&self, keys: &[Key]) -> Vec<Key> {
        let here: HashSet<Key> = self.keys().into_iter().collect();
        let done = |key: &Key| self.copies.as_ref().is_some_and(|copies| copies.buried.contains_key(key));
        keys.iter().filter(|key| !here.contains(*key) && !done(key)).copied().collect()
    }

    /// Items by their keys, with their recipients.
    #[must_use]
    pub fn find(&self, keys: &[Key]) -> Vec<(NodeId, Item)> {
        let wanted: HashSet<&Key> = keys.iter().collect();
        let of = |(node, mailbox): (&NodeId, &super::Mailbox)| {
            let node = *node;
            let items = mailbox.items.iter().filter(|item| wanted.contains(&item.key));
            items.map(|item| (node, item.clone())).collect::<Vec<_>>()
        };
        self.boxes.iter().flat_map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::time::Duration;

    use super::*;
    use crate::route::Bounds;

    const NOW: UnixMillis = UnixMillis(1_000_000);

    fn node(number: u8) -> NodeId {
        NodeId::from_bytes([number; 32])
    }

    fn replica(number: u16) -> Mailboxes {
        let mut boxes = Mailboxes::new(Bounds { offers_per_node: 2, items: 10 });
        boxes.share(number, Arc::default());
        boxes
    }

    fn fresh(kind: Kind, from: u8, token: u8) -> Fresh {
        let until = NOW.plus(OFFER_IN_DIRECTORY);
        Fresh { kind, from: node(from), token_id: [token; 32], payload: Bytes::from_static(b"sealed"), until }
    }

    /// An offer for node 1 that is sent to one replica and copied to the other.
    fn both(boxes: [&mut Mailboxes; 2], from: u8, token: u8) {
        for replica in boxes {
            replica.copy(NOW, node(1), fresh(Kind::Offer, from, token), true).unwrap();
        }
    }

    fn tell(from: &mut Mailboxes, to: &mut Mailboxes) {
        let news = from.news();
        to.finish(NOW, &news.done);
        to.seen(&news.shown);
    }

    fn tokens(boxes: &mut Mailboxes, after: u64) -> (Vec<u8>, u64) {
        let reader = boxes.read(node(1), after);
        let items = boxes.poll(NOW, &reader, after).unwrap();
        (items.iter().map(|item| item.token_id[0]).collect(), items.last().map_or(after, |item| item.id))
    }

    #[test]
    fn a_cursor_of_another_replica_hides_only_what_was_shown_there() {
        let (mut one, mut two) = (replica(1), replica(2));
        both([&mut one, &mut two], 2, 7);
        let (shown, cursor) = tokens(&mut one, 0);
        assert_eq!(shown, [7]);
        assert_eq!(tokens(&mut two, cursor).0, [7], "it was not told yet: rather twice than never");
        tell(&mut one, &mut two);
        assert_eq!(tokens(&mut two, cursor).0, [0; 0]);
        // One that the first had not shown, whatever its clock says of ids.
        both([&mut two, &mut one], 3, 8);
        tell(&mut one, &mut two);
        assert_eq!(tokens(&mut two, cursor).0, [8]);
        assert_eq!(tokens(&mut two, u64::MAX).0, [7, 8], "an id that nobody gave hides nothing");
        assert_eq!(tokens(&mut one, cursor).0, [8]);
    }

    #[test]
    fn a_run_before_gave_ids_that_count_for_nothing() {
        let mut before = replica(1);
        both([&mut before, &mut replica(2)], 2, 7);
        let cursor = tokens(&mut before, 0).1;
        let mut after = replica(1);
        let mut later = fresh(Kind::Offer, 2, 7);
        later.until = NOW.plus(Duration::from_secs(60));
        after.copy(NOW.plus(Duration::from_millis(5)), node(1), later, false).unwrap();
        assert_eq!(tokens(&mut after, cursor).0, [7]);
    }

    #[test]
    fn what_is_done_with_at_one_goes_at_the_other_and_no_copy_brings_it_back() {
        let (mut one, mut two) = (replica(1), replica(2));
        both([&mut one, &mut two], 2, 7);
        one.acknowledge(&node(1), &node(2), &[7; 32]);
        tell(&mut one, &mut two);
        assert!(one.is_empty() && two.is_empty());
        for boxes in [&mut one, &mut two] {
            boxes.copy(NOW, node(1), fresh(Kind::Offer, 2, 7), false).unwrap();
            assert!(boxes.is_empty());
            assert_eq!(boxes.missing(&[key_of(&node(1), Kind::Offer, &node(2), &[7; 32]), [9; 16]]), [[9; 16]]);
        }
        both([&mut one, &mut two], 2, 7);
        assert_eq!((one.len(), two.len()), (1, 1), "unless its issuer sends it again");
        // A receipt goes with its reader's cursor, also with one of the other replica.
        for boxes in [&mut one, &mut two] {
            boxes.copy(NOW, node(1), fresh(Kind::Receipt, 4, 9), true).unwrap();
        }
        let cursor = tokens(&mut one, 0).1;
        tell(&mut one, &mut two);
        two.read(node(1), cursor);
        tell(&mut two, &mut one);
        assert_eq!((one.len(), two.len()), (1, 1), "the offer stays until its receipt");
    }

    #[test]
    fn what_one_missed_goes_when_it_is_answered_again() {
        let (mut one, mut two) = (replica(1), replica(2));
        both([&mut one, &mut two], 2, 7);
        two.acknowledge(&node(1), &node(2), &[7; 32]);
        // The first was cut off and never heard of it; its recipient, shown it once more there, answers at the second.
        drop(two.news());
        assert_eq!((one.len(), two.len()), (1, 0));
        two.acknowledge(&node(1), &node(2), &[7; 32]);
        tell(&mut two, &mut one);
        assert!(one.is_empty(), "else it kept its place from others for its ten minutes");
        // Words about what never was fill half of what is remembered.
        for token in 100..120 {
            two.acknowledge(&node(1), &node(2), &[token; 32]);
        }
        tell(&mut two, &mut one);
        both([&mut one, &mut two], 2, 8);
        two.acknowledge(&node(1), &node(2), &[8; 32]);
        tell(&mut two, &mut one);
        one.copy(NOW, node(1), fresh(Kind::Offer, 2, 8), false).unwrap();
        assert!(one.is_empty(), "what was done with stays so");
    }

    #[test]
    fn what_was_refused_ends_nothing_that_was_left_elsewhere_meanwhile() {
        let (mut one, mut two) = (replica(1), replica(2));
        let key = key_of(&node(1), Kind::Offer, &node(2), &[7; 32]);
        // The first is cut off, and refuses what it cannot tell; the same offer is then left at the second.
        one.copy(NOW, node(1), fresh(Kind::Offer, 2, 7), true).unwrap();
        one.take_back(&node(1), &key);
        assert!(one.is_empty());
        two.copy(NOW, node(1), fresh(Kind::Offer, 2, 7), true).unwrap();
        tell(&mut one, &mut two);
        assert_eq!(two.len(), 1, "it has its receipt");
        assert_eq!(one.missing(&two.keys()), [key], "and is fetched, as its recipient may read there");
    }

    #[test]
    fn copies_are_compared_and_those_that_lack_are_found() {
        let (mut one, mut two) = (replica(1), replica(2));
        both([&mut one, &mut two], 2, 7);
        one.copy(NOW, node(5), fresh(Kind::Receipt, 2, 8), true).unwrap();
        let lacks = two.missing(&one.keys());
        assert_eq!(lacks.len(), 1);
        let found = one.find(&lacks);
        assert_eq!((found.len(), found[0].0, found[0].1.token_id), (1, node(5), [8; 32]));
        assert_eq!(one.missing(&two.keys()), [[0; 16]; 0]);
        // The same copy again changes nothing; what its sender sends again is shown again.
        let cursor = tokens(&mut two, 0).1;
        two.copy(NOW, node(1), fresh(Kind::Offer, 2, 7), false).unwrap();
        assert_eq!(tokens(&mut two, cursor).0, [0; 0]);
        two.copy(NOW, node(1), fresh(Kind::Offer, 2, 7), true).unwrap();
        assert_eq!(tokens(&mut two, cursor).0, [7]);
        assert_eq!(two.len(), 1);
    }

    #[test]
    fn offers_that_were_shown_at_another_replica_keep_no_other_out() {
        let (mut one, mut two) = (replica(1), replica(2));
        for from in 2..4 {
            both([&mut one, &mut two], from, from);
        }
        assert_eq!(two.copy(NOW, node(1), fresh(Kind::Offer, 4, 4), true), Err(Refused::MailboxFull));
        tokens(&mut one, 0);
        tell(&mut one, &mut two);
        two.copy(NOW, node(1), fresh(Kind::Offer, 4, 4), true).unwrap();
        assert_eq!(two.len(), 2);
    }

    #[test]
    fn a_newer_reader_elsewhere_ends_an_older_one_here() {
        let mut one = replica(1);
        let reader = one.read(node(1), 0);
        one.reads_since(&node(1), NOW);
        one.read_elsewhere(&node(1), NOW.minus(Duration::from_secs(1)));
        assert!(one.is_read(&node(1)) && one.poll(NOW, &reader, 0).is_some(), "an old word");
        one.read_elsewhere(&node(1), NOW.plus(Duration::from_millis(1)));
        assert!(one.poll(NOW, &reader, 0).is_none());
    }
}
