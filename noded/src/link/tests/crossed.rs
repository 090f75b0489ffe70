//! What the search (`model`) found to cut two nodes off for a life, between two services with real vaults and stores: offers and renewals
//! that cross, of which each side takes the other's after it has ended its own.

use std::time::Duration;

use openred_proto::id::LinkId;

use super::life::{DIRECTORY, HOUR};
use super::nodes::{TestNode, pair};
use super::renewing::{linked, reasons, use_link, use_newest};
use super::services::{round, run, states};
use crate::clock;
use crate::clock::stepped::Clock;
use crate::config::IncomingPolicy::Open;
use crate::link::state::{EndReason, LinkState};
use crate::p2p::ports::Links as _;

/// The link that `node` begins with, the one that it tries when it is refused over that, and those over which it answers.
fn held(node: &TestNode, peer: &TestNode) -> (LinkId, Option<LinkId>, Vec<LinkId>) {
    let newest = node.links.for_peer(&peer.id).unwrap().link;
    let before = node.links.fallback_for_peer(&peer.id).map(|handle| handle.link);
    let expected = node.links.all().into_iter().filter(|link| link.state.is_expected());
    (newest, before, expected.map(|link| link.id()).collect())
}

#[test]
fn who_takes_each_others_renewal_late_meets_over_the_link_before() {
    run(async {
        let clock = Clock::set(0);
        let (alice, bob) = linked(Open).await;
        let old = alice.links.all()[0].id();
        // The acceptor's time has come as well: the issuer was away.
        clock.pass(HOUR * 21);
        for node in [&alice, &bob] {
            node.links.renew_due(clock::now()).await;
            round(node).await;
        }
        // The directory held both back for longer than the lower id's patience, and loses the first receipt.
        clock.pass(Duration::from_secs(6 * 60));
        alice.links.handle_offer(bob.outbox.offer(), bob.id, DIRECTORY).await;
        bob.links.handle_offer(alice.outbox.offer(), alice.id, DIRECTORY).await;
        for node in [&alice, &bob] {
            assert!(reasons(node).contains(&EndReason::CrossedOffer), "its own gave way");
        }
        let ((alices, fallback, expected), (bobs, other, bob_expects)) = (held(&alice, &bob), held(&bob, &alice));
        assert!(alices != bobs && !bob_expects.contains(&alices) && !expected.contains(&bobs), "each is refused");
        assert_eq!((fallback, other), (Some(old), Some(old)));
        assert!(expected.contains(&old) && bob_expects.contains(&old));

        use_link(&alice, &bob, old).await;
        alice.reaches(&bob);
        assert_eq!(alice.links.sync(bob.id).await, Ok(1), "bob has ended his");
        assert_eq!((held(&alice, &bob).0, held(&bob, &alice).0), (old, old));
        for node in [&alice, &bob] {
            node.links.tend(clock::now()).await;
            assert!(states(node).contains(&LinkState::Active), "free to be renewed");
        }
        clock.pass(HOUR);
        alice.links.renew_due(clock::now()).await;
        round(&alice).await;
        use_newest(&alice, &bob).await;
        let (newest, theirs) = (held(&alice, &bob).0, held(&bob, &alice).0);
        assert!(newest == theirs && newest != old, "one link again");
    });
}

/// Bob's handshake over the link that alice offered is quicker than his receipt, and his own offer, which he has ended for hers, is slower.
async fn is_left(alice: &TestNode, bob: &TestNode) {
    let (hers, his) = (alice.outbox.offer(), bob.outbox.offer());
    bob.links.handle_offer(hers, alice.id, DIRECTORY).await;
    assert!(reasons(bob).contains(&EndReason::CrossedOffer), "his own gave way");
    let link = bob.links.for_peer(&alice.id).unwrap().link;
    use_link(alice, bob, link).await;
    alice.links.handle_offer(his, bob.id, DIRECTORY).await;
    assert_eq!((held(alice, bob).0, held(bob, alice).0), (link, link));

    let is_here = |node: &TestNode| node.links.all().iter().any(|held| held.id() == link && !held.lacks_receipt());
    assert!(!is_here(alice));
    alice.reaches(bob);
    assert_eq!(alice.links.sync(bob.id).await, Ok(1), "the receipt");
    assert!(is_here(alice));
}

#[test]
fn an_offer_that_was_ended_for_a_link_in_use_comes_too_late() {
    run(async {
        let clock = Clock::set(0);
        let (alice, bob) = pair(Open).await;
        for (node, peer) in [(&alice, &bob), (&bob, &alice)] {
            node.links.request(peer.id, None).await.unwrap();
            round(node).await;
            clock.pass(Duration::from_secs(1));
        }
        is_left(&alice, &bob).await;
    });
}

#[test]
fn a_renewal_that_was_ended_for_a_link_in_use_comes_too_late() {
    run(async {
        let clock = Clock::set(0);
        let (alice, bob) = linked(Open).await;
        clock.pass(HOUR * 21);
        for node in [&alice, &bob] {
            node.links.renew_due(clock::now()).await;
            round(node).await;
            clock.pass(Duration::from_secs(1));
        }
        is_left(&alice, &bob).await;
    });
}

#[test]
fn with_one_link_there_is_no_other_to_try() {
    run(async {
        let (alice, bob) = linked(Open).await;
        assert!(alice.links.fallback_for_peer(&bob.id).is_none());
        assert!(alice.links.fallback_for_peer(&alice.id).is_none());
    });
}
