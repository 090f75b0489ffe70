//! What arrives through directories, on its way to the links: receipts at once, offers beside them.
//!
//! An offer of a stranger makes this node ask its directories about him, one after the other, ten seconds each where they hang.
//! So offers wait in a place of their own, bounded in all and for each sender, and a few are taken at a time, one of a sender:
//! nobody's offers hold up receipts, and one sender's not another's. What finds no room is left: who offers a link sends the offer again until it
//! has a receipt.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openred_proto::id::NodeId;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use crate::directory::{Delivered, ItemKind};
use crate::link::Links;
use crate::sensitive::Sensitive;

/// Offers that are looked into at once: as many questions to directories as a node may have open for strangers.
pub(crate) const AT_ONCE: usize = 8;
/// Offers that wait, in all: under a megabyte, and more than a directory keeps for one node.
const WAITING: usize = 256;
/// And of one sender, who has one offer out at a time and another when it took that back.
const OF_ONE: usize = 4;

/// Hands on what arrives, until nothing can any more.
pub(crate) async fn take(links: Arc<Links>, mut inbox: mpsc::Receiver<Delivered>) {
    let offers = Arc::new(Offers::default());
    // They end with this future.
    let mut workers = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (offers, links) = (Arc::clone(&offers), Arc::clone(&links));
        workers.spawn(async move {
            loop {
                let item = offers.next().await;
                let sender = item.sender;
                links.handle_offer(item.payload, sender, item.directory).await;
                offers.done(sender);
            }
        });
    }
    while let Some(item) = inbox.recv().await {
        match item.kind {
            ItemKind::Offer => {
                let sender = item.sender;
                if !offers.put(item) {
                    tracing::debug!(sender = %Sensitive(sender.short()), "no room for an offer: its sender sends it again");
                }
            }
            ItemKind::Receipt => links.handle_receipt(item.payload, item.sender).await,
        }
    }
}

/// Offers that wait for somebody to look into them.
#[derive(Default)]
struct Offers {
    waiting: Mutex<Waiting>,
    ready: Notify,
}

#[derive(Default)]
struct Waiting {
    by_sender: BTreeMap<NodeId, VecDeque<Delivered>>,
    /// Senders with something that waits, whose turn it is first.
    turns: VecDeque<NodeId>,
    /// Senders one of whose offers is looked into.
    busy: BTreeSet<NodeId>,
    count: usize,
}

impl Offers {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False where there is no room for it. One that waits already is not kept twice.
    fn put(&self, item: Delivered) -> bool {
        let kept = self.waiting().put(item);
        self.ready.notify_one();
        kept
    }

    /// The next one, of a sender none of whose is looked into: senders take turns.
    async fn next(&self) -> Delivered {
        loop {
            let changed = self.ready.notified();
            let (item, more) = {
                let mut waiting = self.waiting();
                (waiting.next(), waiting.is_ready())
            };
            if more {
                // One call wakes one: whoever takes sees to it that nothing that could go waits.
                self.ready.notify_one();
            }
            match item {
                Some(item) => return item,
                None => changed.await,
            }
        }
    }

    /// A sender's offer was looked into.
    fn done(&self, sender: NodeId) {
        self.waiting().busy.remove(&sender);
        self.ready.notify_one();
    }
}

impl Waiting {
    fn put(&mut self, item: Delivered) -> bool {
        let sender = item.sender;
        let of_sender = self.by_sender.get(&sender).map_or(0, VecDeque::len);
        let is_here = |known: &Delivered| known.payload == item.payload && known.directory == item.directory;
        if self.by_sender.get(&sender).is_some_and(|theirs| theirs.iter().any(is_here)) {
            return true;
        }
        if of_sender >= OF_ONE || (self.count >= WAITING && !self.make_room(of_sender)) {
            return false;
        }
        if of_sender == 0 {
            self.turns.push_back(sender);
        }
        self.by_sender.entry(sender).or_default().push_back(item);
        self.count += 1;
        true
    }

    /// Leaves the last offer of whoever has the most waiting, if that is more than the newcomer would have.
    fn make_room(&mut self, of_newcomer: usize) -> bool {
        let greedy = self.by_sender.iter().max_by_key(|(_, theirs)| theirs.len());
        let greedy = greedy.filter(|(_, theirs)| theirs.len() > of_newcomer + 1).map(|(sender, _)| *sender);
        // More than one is left of it, so its turn stays.
        let dropped = greedy.and_then(|sender| self.by_sender.get_mut(&sender)?.pop_back());
        self.count -= usize::from(dropped.is_some());
        dropped.is_some()
    }

    fn is_ready(&self) -> bool {
        self.turns.iter().any(|sender| !self.busy.contains(sender))
    }

    fn next(&mut self) -> Option<Delivered> {
        let at = self.turns.iter().position(|sender| !self.busy.contains(sender))?;
        let sender = self.turns.remove(at)?;
        let theirs = self.by_sender.get_mut(&sender)?;
        let item = theirs.pop_front()?;
        if theirs.is_empty() {
            self.by_sender.remove(&sender);
        } else {
            self.turns.push_back(sender);
        }
        self.count -= 1;
        self.busy.insert(sender);
        Some(item)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use bytes::Bytes;

    use super::*;

    fn offer(sender: u16, number: u16) -> Delivered {
        let mut id = [0; 32];
        id[..2].copy_from_slice(&sender.to_be_bytes());
        let payload = Bytes::copy_from_slice(&number.to_be_bytes());
        Delivered {
            kind: ItemKind::Offer,
            sender: NodeId::from_bytes(id),
            directory: NodeId::from_bytes([1; 32]),
            payload,
        }
    }

    fn said(item: &Delivered) -> (u16, u16) {
        let id = item.sender.as_bytes();
        (u16::from_be_bytes([id[0], id[1]]), u16::from_be_bytes([item.payload[0], item.payload[1]]))
    }

    #[test]
    fn senders_take_turns_one_at_a_time_and_each_in_its_order() {
        let offers = Offers::default();
        for (sender, number) in [(1, 0), (1, 1), (1, 2), (2, 0), (3, 0)] {
            assert!(offers.put(offer(sender, number)));
        }
        assert!(offers.put(offer(1, 1)), "it is here");
        let next = || offers.waiting().next();
        let taken: Vec<_> = std::iter::from_fn(next).map(|item| said(&item)).collect();
        assert_eq!(taken, [(1, 0), (2, 0), (3, 0)], "the rest of the first waits for it to be looked into");
        offers.done(offer(1, 0).sender);
        assert_eq!(next().map(|item| said(&item)), Some((1, 1)));
        offers.done(offer(1, 0).sender);
        assert_eq!(next().map(|item| said(&item)), Some((1, 2)));
        let waiting = offers.waiting();
        assert_eq!((waiting.count, waiting.by_sender.len(), waiting.turns.len()), (0, 0, 0), "nothing is kept of them");
    }

    #[test]
    fn room_is_bounded_for_one_and_for_all_and_goes_to_those_who_have_least() {
        let offers = Offers::default();
        let four = u16::try_from(OF_ONE).unwrap();
        assert!((0..four).all(|number| offers.put(offer(0, number))) && !offers.put(offer(0, four)));
        let others = u16::try_from(WAITING - OF_ONE).unwrap();
        assert!((1..=others).all(|sender| offers.put(offer(sender, 0))));
        assert_eq!(offers.waiting().count, WAITING);
        assert!(!offers.put(offer(1, 1)) || offers.waiting().by_sender[&offer(0, 0).sender].len() < OF_ONE);
        assert!(offers.put(offer(u16::MAX, 0)), "a newcomer has the place of one of the greediest");
        assert_eq!(offers.waiting().count, WAITING);
        assert!(!(500..510).all(|sender| offers.put(offer(sender, 0))), "with one each there is no more room");
        assert_eq!(offers.waiting().count, WAITING);
    }

    #[tokio::test]
    async fn whoever_takes_wakes_the_next() {
        let offers = Arc::new(Offers::default());
        for sender in 0..3 {
            offers.put(offer(sender, 0));
        }
        let mut takers = JoinSet::new();
        for _ in 0..3 {
            let offers = Arc::clone(&offers);
            takers.spawn(async move { said(&offers.next().await) });
        }
        // None of them is ever done: all three are taken all the same.
        let mut taken = takers.join_all().await;
        taken.sort_unstable();
        assert_eq!(taken, [(0, 0), (1, 0), (2, 0)]);
    }
}
