//! What arrives through a directory that answers nothing for as long as it likes: receipts and the offers of others go on.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use openred_cryptod::identity::Identity;
use openred_cryptod::link::issue::{IssueTerms, issue};
use openred_cryptod::registered::Methods;
use openred_proto::id::NodeId;
use openred_proto::method::{MethodSet, Schedule};
use openred_proto::secret::Secret;
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use tokio::sync::{Semaphore, mpsc};

use super::life::DIRECTORY;
use super::nodes::{TestNode, pair};
use super::renewing::{due, linked};
use crate::arrivals::{AT_ONCE, take};
use crate::clock;
use crate::config::IncomingPolicy::Ask;
use crate::directory::{Delivered, ItemKind};
use crate::link::decisions::Rank;
use crate::link::state::LinkState;

/// How long anything here may take before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(60);

async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "waited in vain for {what}");
}

#[test]
fn a_receipt_does_not_wait_for_what_directories_say_of_strangers() {
    let test = async {
        let (alice, bob) = pair(Ask).await;
        bob.links.request(alice.id, None).await.unwrap();
        bob.links.send_offers(clock::now()).await;
        alice.links.handle_offer(bob.outbox.offer(), bob.id, DIRECTORY).await;
        alice.links.approve(&bob.id.to_string()).await.unwrap();

        let answers = Arc::new(Semaphore::new(0));
        *bob.outbox.silent.lock().unwrap() = Some(Arc::clone(&answers));
        let (deliver, inbox) = mpsc::channel(64);
        let taking = tokio::spawn(take(Arc::clone(&bob.links), inbox));
        let mut strangers = Vec::new();
        for seed in 10..10 + u8::try_from(AT_ONCE).unwrap() + 3 {
            let stranger = TestNode::new(seed, Ask).await;
            stranger.knows(&bob);
            bob.knows(&stranger);
            stranger.links.request(bob.id, None).await.unwrap();
            stranger.links.send_offers(clock::now()).await;
            let (sender, payload) = (stranger.id, stranger.outbox.offer());
            deliver.send(Delivered { kind: ItemKind::Offer, sender, directory: DIRECTORY, payload }).await.unwrap();
            strangers.push(stranger);
        }
        let payload = alice.outbox.receipt();
        let receipt = Delivered { kind: ItemKind::Receipt, sender: alice.id, directory: DIRECTORY, payload };
        deliver.send(receipt).await.unwrap();
        let of = |state: LinkState| bob.links.all().iter().filter(|link| link.state == state).count();
        until("the receipt", || of(LinkState::Pending) == 1).await;
        until("the questions", || bob.outbox.asked() == AT_ONCE).await;
        assert_eq!(of(LinkState::Waiting), 0, "nobody was told anything of the strangers yet");
        // One answer lets one more be asked about, and holds up nobody.
        answers.add_permits(1);
        until("the next question", || bob.outbox.asked() == AT_ONCE + 1).await;
        answers.add_permits(strangers.len());
        until("the strangers' offers", || of(LinkState::Waiting) == strangers.len()).await;
        taking.abort();
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

/// A valid offer of somebody who is nobody here; each number is another's.
fn of_stranger(number: u16, to: &TestNode, card: &Bytes) -> (NodeId, Bytes) {
    let mut seed = [0x77; 32];
    seed[..2].copy_from_slice(&number.to_be_bytes());
    let identity = Identity::from_seed(&Secret::new(seed));
    let terms = IssueTerms {
        peer: to.id,
        card,
        directory: DIRECTORY,
        allowed: MethodSet::ALL,
        schedule: Schedule::Hourly,
        life: Duration::from_secs(86_400),
    };
    let mut random = ChaCha20Rng::from_seed(seed);
    let issued =
        issue(&identity, (&Secret::new(seed), &Methods::default()), &terms, None, 1, clock::now(), &mut random)
            .unwrap();
    (identity.node_id(), issued.offer.into())
}

#[test]
fn a_flood_of_strangers_keeps_nobody_out_who_is_known() {
    /// More than wait and are looked into together.
    const STRANGERS: u16 = 300;
    let test = async {
        let (alice, bob) = linked(Ask).await;
        let carol = TestNode::new(3, Ask).await;
        carol.knows(&bob);
        bob.links.decide_peer(carol.id, true).await.unwrap();
        // What directories are asked of strangers they never answer.
        *bob.outbox.silent.lock().unwrap() = Some(Arc::new(Semaphore::new(0)));
        let (deliver, inbox) = mpsc::channel(64);
        let taking = tokio::spawn(take(Arc::clone(&bob.links), inbox));
        let offer = |(sender, payload)| Delivered { kind: ItemKind::Offer, sender, directory: DIRECTORY, payload };
        let card = bob.card();
        for number in 0..STRANGERS {
            deliver.send(offer(of_stranger(number, &bob, &card))).await.unwrap();
        }
        until("the questions", || bob.outbox.asked() == AT_ONCE).await;
        carol.links.request(bob.id, None).await.unwrap();
        carol.links.send_offers(clock::now()).await;
        alice.outbox.keeps_cards.store(true, Ordering::Relaxed);
        alice.links.renew_due(due()).await;
        alice.links.send_offers(clock::now()).await;
        let (known, renewal) = (carol.outbox.offer(), alice.outbox.offer());
        let ranks = [bob.links.rank(carol.id, &known).await, bob.links.rank(alice.id, &renewal).await];
        assert_eq!(ranks, [Rank::Known, Rank::Renewal]);
        assert_eq!(bob.links.rank(carol.id, &renewal).await, Rank::Known, "another's renewal is none of hers");
        deliver.send(offer((carol.id, known))).await.unwrap();
        deliver.send(offer((alice.id, renewal))).await.unwrap();
        let of = |state: LinkState| bob.links.all().iter().filter(|link| link.state == state).count();
        until("the known one's link and the renewal", || of(LinkState::Pending) == 2).await;
        assert_eq!((of(LinkState::Renewing), of(LinkState::Waiting), bob.outbox.asked()), (1, 0, AT_ONCE));
        taking.abort();
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}
