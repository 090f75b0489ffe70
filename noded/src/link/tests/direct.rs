//! Links by direct contact, between two services with real vaults: what one brings, what the other answers, and what is left when
//! either ends in between. The contact itself is the test's: it carries bodies and statuses.

use std::time::Duration;

use bytes::Bytes;

use super::nodes::{TestNode, pair};
use super::services::{run, states};
use crate::clock;
use crate::config::IncomingPolicy::{self, Ask, Open};
use crate::link::direct::{Brought, CARD, NO_DIRECTORY, OFFER};
use crate::link::state::{EndReason, Link, LinkState};
use crate::link::{LinkError, inside};
use crate::p2p::ports::Links as _;

const WORDS: [u8; 16] = [9; 16];

async fn strangers(policy: IncomingPolicy) -> (TestNode, TestNode) {
    let (alice, bob) = pair(policy).await;
    for node in [&alice, &bob] {
        node.outbox.cards.lock().unwrap().clear();
        node.hands_over_cards();
    }
    (alice, bob)
}

async fn ask(to: &TestNode, from: &TestNode, path: &str, body: Bytes) -> (u16, Bytes) {
    to.links.answer_contact(from.id, WORDS, path, body).await
}

/// Alice's operator has confirmed: her offer, not brought yet.
async fn offered(alice: &TestNode, bob: &TestNode) -> Link {
    let (status, card) = ask(bob, alice, CARD, Bytes::new()).await;
    assert_eq!(status, 200);
    alice.links.offer_to_stranger(bob.id, card, None).await.unwrap()
}

async fn bring(alice: &TestNode, bob: &TestNode, link: &Link) -> Brought {
    let body = alice.links.direct_offer(link).await.unwrap();
    let (status, body) = ask(bob, alice, OFFER, body).await;
    alice.links.direct_answer(bob.id, link.id(), status, body).await
}

fn assert_linked(alice: &TestNode, bob: &TestNode) {
    let handle = alice.links.for_peer(&bob.id).unwrap();
    assert_eq!(handle.link, bob.links.for_peer(&alice.id).unwrap().link);
    assert_eq!(handle.keys.outgoing, bob.links.for_peer(&alice.id).unwrap().keys.incoming);
}

#[test]
fn trust_on_first_use_links_at_once() {
    run(async {
        let (alice, bob) = strangers(Open).await;
        let link = offered(&alice, &bob).await;
        assert_eq!(link.directory, NO_DIRECTORY);
        alice.links.send_offers(clock::now()).await;
        assert!(alice.outbox.offers.lock().unwrap().is_empty(), "no directory is to carry it");
        assert_eq!(bring(&alice, &bob, &link).await, Brought::Taken);
        assert_linked(&alice, &bob);
        assert_eq!(bob.outbox.cards.lock().unwrap().len(), 1, "bob finds alice again");
        assert!(bob.told.all().ends_with("added confirmed"), "and calls on her: {}", bob.told.all());
        assert!(bob.outbox.receipts.lock().unwrap().is_empty());
        // The answer was lost: the same again, and nothing new.
        assert_eq!(bring(&alice, &bob, &link).await, Brought::Taken);
        assert_eq!((states(&alice), states(&bob)), ([LinkState::Pending].into(), [LinkState::Pending].into()));
        let again = alice
            .links
            .offer_to_stranger(bob.id, ask(&bob, &alice, CARD, Bytes::new()).await.1, None)
            .await
            .unwrap_err();
        assert_eq!(again, LinkError::Linked);
    });
}

#[test]
fn an_offer_waits_for_the_operator_who_sees_the_words() {
    run(async {
        let (alice, bob) = strangers(Ask).await;
        let link = offered(&alice, &bob).await;
        for _ in 0..3 {
            assert_eq!(bring(&alice, &bob, &link).await, Brought::Waits);
        }
        let waiting = bob.links.all().remove(0);
        assert_eq!((waiting.state, waiting.mutual_link), (LinkState::Waiting, Some(WORDS)));
        assert!(bob.outbox.cards.lock().unwrap().is_empty(), "nothing of a stranger is kept");
        bob.links.approve(&alice.id.to_string()).await.unwrap();
        assert_eq!(bob.outbox.cards.lock().unwrap().len(), 1);
        assert!(bob.told.all().ends_with("added confirmed"), "{}", bob.told.all());
        assert_eq!(bring(&alice, &bob, &link).await, Brought::Taken);
        assert_linked(&alice, &bob);
    });
}

#[test]
fn a_yes_before_the_offer_is_as_good() {
    run(async {
        let (alice, bob) = strangers(Ask).await;
        let link = offered(&alice, &bob).await;
        assert!(bob.links.approve(&alice.id.to_string()).await.unwrap().is_none());
        assert_eq!(bring(&alice, &bob, &link).await, Brought::Taken);
        assert_linked(&alice, &bob);
    });
}

#[test]
fn whichever_process_ends_in_between_the_next_contact_goes_on() {
    run(async {
        let (alice, bob) = strangers(Ask).await;
        let link = offered(&alice, &bob).await;
        let alice = alice.restarted().await;
        assert_eq!(offered(&alice, &bob).await.id(), link.id(), "what was offered is brought again");
        assert_eq!(bring(&alice, &bob, &link).await, Brought::Waits);
        let bob = bob.restarted().await;
        assert!(states(&bob).is_empty(), "contact, words and card are gone, and the offer with them");
        assert!(bob.links.approve(&link.id().to_string()).await.is_err());
        assert_eq!(bring(&alice, &bob, &link).await, Brought::Waits);
        bob.links.approve(&link.id().to_string()).await.unwrap();
        // Bob ends before alice has heard: he calls on her until she has.
        let bob = bob.restarted().await;
        bob.links.fetch_keys().await;
        bob.links.greet_pending(clock::now());
        assert!(bob.told.all().ends_with("added confirmed"), "{}", bob.told.all());
        bob.links.greet_pending(clock::now());
        assert!(bob.told.all().ends_with("added confirmed"), "with a pause: {}", bob.told.all());
        let alice = alice.restarted().await;
        assert_eq!(bring(&alice, &bob, &link).await, Brought::Taken, "the same receipt");
        assert_linked(&alice, &bob);
    });
}

#[test]
fn what_is_not_a_first_offer_of_its_bearer_is_left() {
    run(async {
        let (alice, bob) = strangers(Open).await;
        let mallory = TestNode::new(77, Open).await;
        mallory.hands_over_cards();
        let link = offered(&alice, &bob).await;
        let whole = alice.links.direct_offer(&link).await.unwrap();
        for cut in [0, 1, 2, 100] {
            assert_eq!(ask(&bob, &alice, OFFER, whole.slice(..cut)).await.0, 400, "cut to {cut}");
        }
        assert_eq!(ask(&bob, &mallory, OFFER, whole.clone()).await.0, 400, "another's card");
        let borrowed = mallory.links.direct_offer(&link).await.unwrap();
        assert_eq!(ask(&bob, &mallory, OFFER, borrowed.clone()).await.0, 409, "another's offer");
        let next = borrowed.slice(..borrowed.len() - 1);
        assert_eq!(ask(&bob, &mallory, OFFER, next).await.0, 429, "a stranger's next one waits");
        for path in [inside::SYNC, inside::OFFER, "/direct/", "/match", ""] {
            assert_eq!(ask(&bob, &alice, path, whole.clone()).await.0, 404, "{path}");
        }
        assert!(states(&bob).is_empty());
        let (status, answer) = ask(&bob, &alice, OFFER, whole).await;
        assert_eq!(status, 200, "the control");
        assert_eq!(alice.links.direct_answer(bob.id, link.id(), status, answer).await, Brought::Taken);
        // A second link by the same way, while the first lives.
        alice.links.revoke(link.id()).await.unwrap();
        let second = offered(&alice, &bob).await;
        assert_eq!(bring(&alice, &bob, &second).await, Brought::Left);
        assert_eq!(states(&bob), [LinkState::Pending]);
        let left = alice.links.all().into_iter().find(|link| link.id() == second.id()).unwrap();
        assert_eq!((left.state, left.reason), (LinkState::Revoked, EndReason::PeerLeft));
    });
}

/// In virtual time: with the wall clock, the wait would last until that is there again.
#[test]
fn a_wait_is_as_long_as_it_was_to_be_whatever_the_clock_is_set_to() {
    run(async {
        let (alice, bob) = strangers(Ask).await;
        let link = offered(&alice, &bob).await;
        tokio::time::pause();
        let begun = tokio::time::Instant::now();
        let setting = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            clock::stepped::Clock::set(-3_600_000)
        };
        let waiting = alice.links.wait_while(link.id(), LinkState::Offered, Duration::from_secs(5));
        let (_clock, ()) = tokio::join!(setting, waiting);
        assert_eq!(begun.elapsed().as_secs(), 5);
    });
}
