//! What arrives through directories, on its way to the links: receipts at once, offers beside them.
//!
//! An offer of a stranger makes this node ask its directories about him, one after the other, ten seconds each where they hang, and
//! costs the key process work of which it does so much a second and no more. So offers wait in places of their own: renewals, offers of
//! those who are known here, and strangers' ([`Rank`]), each kind with its room, its hands and its part of the key process's time. However many
//! strangers come, they take nothing of the other two. In each place room is bounded in all and for each sender, and a few offers are taken at a
//! time, one of a sender: nobody's offers hold up receipts, and one sender's not another's. What finds no room is left: who
//! offers a link sends the offer again until it has a receipt.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use openred_proto::id::NodeId;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::directory::{Delivered, ItemKind};
use crate::link::Links;
use crate::link::decisions::Rank;
use crate::sensitive::Sensitive;

/// Offers of one kind that are looked into at once: as many questions to directories as a node may have open for strangers.
pub(crate) const AT_ONCE: usize = 8;
/// Offers of one kind that wait: under a megabyte, and more than a directory keeps for one node.
const WAITING: usize = 256;
/// And of one sender, who has one offer out at a time and another when it took that back.
const OF_ONE: usize = 4;
/// Offers that may be looked into at once after a quiet time, as seconds of their rate.
const BURST_SECONDS: u32 = 4;

impl Rank {
    /// Offers of this kind that are looked into in a second. The key process does fifty things a second for offers, two for each that
    /// is taken: what is left of them is for what this node offers itself, and for offers inside sessions.
    const fn per_second(self) -> u32 {
        match self {
            Self::Renewal => 10,
            Self::Known | Self::Stranger => 5,
        }
    }
}

/// Hands on what arrives, until nothing can any more.
pub(crate) async fn take(links: Arc<Links>, mut inbox: mpsc::Receiver<Delivered>) {
    let places = Rank::ALL.map(|rank| Arc::new(Offers::new(rank.per_second())));
    // They end with this future.
    let mut workers = JoinSet::new();
    for offers in &places {
        for _ in 0..AT_ONCE {
            let (offers, links) = (Arc::clone(offers), Arc::clone(&links));
            workers.spawn(async move {
                loop {
                    let item = offers.next().await;
                    let sender = item.sender;
                    offers.turn().await;
                    links.handle_offer(item.payload, sender, item.directory).await;
                    offers.done(sender);
                }
            });
        }
    }
    while let Some(item) = inbox.recv().await {
        match item.kind {
            ItemKind::Offer => {
                let sender = item.sender;
                let rank = links.rank(sender, &item.payload).await;
                if !places[rank as usize].put(item) {
                    tracing::debug!(sender = %Sensitive(sender.short()), ?rank, "no room for an offer: its sender sends it again");
                }
            }
            ItemKind::Receipt => links.handle_receipt(item.payload, item.sender).await,
        }
    }
}

/// Offers of one kind that wait for somebody to look into them.
struct Offers {
    waiting: Mutex<Waiting>,
    ready: Notify,
    pace: Mutex<Pace>,
}

/// How many may still be looked into now.
struct Pace {
    per_second: u32,
    left: f64,
    at: Instant,
}

impl Pace {
    fn most(&self) -> f64 {
        f64::from(self.per_second * BURST_SECONDS)
    }

    /// Takes one, or says how long until there is one.
    fn take(&mut self, now: Instant) -> Option<Duration> {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * f64::from(self.per_second);
        (self.left, self.at) = ((self.left + gained).min(self.most()), now);
        if self.left < 1.0 {
            return Some(Duration::from_secs_f64((1.0 - self.left) / f64::from(self.per_second)));
        }
        self.left -= 1.0;
        None
    }
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
    fn new(per_second: u32) -> Self {
        let mut pace = Pace { per_second, left: 0.0, at: Instant::now() };
        pace.left = pace.most();
        Self { waiting: Mutex::default(), ready: Notify::new(), pace: Mutex::new(pace) }
    }

    /// Waits until one more may be looked into.
    async fn turn(&self) {
        loop {
            let wait = self.pace.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
            match wait {
                None => return,
                Some(wait) => tokio::time::sleep(wait).await,
            }
        }
    }

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
        let offers = Offers::new(1);
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
        let offers = Offers::new(1);
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

    #[tokio::test(start_paused = true)]
    async fn as_many_a_second_as_the_kind_may_after_a_burst() {
        let (offers, begun) = (Offers::new(5), Instant::now());
        for _ in 0..5 * BURST_SECONDS {
            offers.turn().await;
        }
        assert_eq!(begun.elapsed(), Duration::ZERO);
        for _ in 0..50 {
            offers.turn().await;
        }
        assert!(begun.elapsed() >= Duration::from_secs(10), "{:?}", begun.elapsed());
        // Together no more than the key process does for offers, with room for this node's own: each may cost two operations.
        let all: u32 = Rank::ALL.into_iter().map(Rank::per_second).sum();
        assert!(2 * all < 50);
    }

    #[tokio::test]
    async fn whoever_takes_wakes_the_next() {
        let offers = Arc::new(Offers::new(1));
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
