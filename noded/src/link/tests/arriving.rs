//! What arrives through a directory that answers nothing for as long as it likes: receipts and the offers of others go on.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc};

use super::life::DIRECTORY;
use super::nodes::{TestNode, pair};
use crate::arrivals::{AT_ONCE, take};
use crate::clock;
use crate::config::IncomingPolicy::Ask;
use crate::directory::{Delivered, ItemKind};
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
