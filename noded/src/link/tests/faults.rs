//! The key process is killed in each of its operations of a renewal, on either side; clocks step by two hours. It ends in a link that both use, and in
//! nothing else that is left over.

use std::time::Duration;

use super::life::{DIRECTORY, HOUR};
use super::nodes::{Kill, TestNode};
use super::renewing::{linked, use_newest};
use super::services::{round, run};
use crate::clock;
use crate::clock::stepped::Clock;
use crate::config::IncomingPolicy::Open;
use crate::link::state::{Link, LinkState};
use crate::p2p::ports::Links as _;

/// Whose key process is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Issuer,
    Acceptor,
}

/// How the two reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Session,
    Directory,
}

/// One round of all that both do by themselves, with whatever a directory has to bring.
async fn both(alice: &TestNode, bob: &TestNode) {
    for (node, peer) in [(alice, bob), (bob, alice)] {
        node.links.renew_due(clock::now()).await;
        round(node).await;
        let offers: Vec<_> = node.outbox.offers.lock().unwrap().drain(..).collect();
        for offer in offers {
            peer.links.handle_offer(offer, node.id, DIRECTORY).await;
        }
        let receipts: Vec<_> = peer.outbox.receipts.lock().unwrap().drain(..).collect();
        for receipt in receipts {
            node.links.handle_receipt(receipt, peer.id).await;
        }
    }
}

/// A session over what both hold, if they do: it is opened as soon as there is something to say.
async fn talk(alice: &TestNode, bob: &TestNode) {
    let (Some(one), Some(other)) = (alice.links.for_peer(&bob.id), bob.links.for_peer(&alice.id)) else { return };
    if one.link == other.link {
        use_newest(alice, bob).await;
    }
}

fn live(node: &TestNode) -> Vec<Link> {
    node.links.all().into_iter().filter(|link| !link.state.is_over()).collect()
}

/// A renewal from the moment it is due until the renewed link has ended, in which the key process of one side dies. How many operations
/// each side's had.
async fn renewal(way: Way, killed: Option<(Side, Kill)>) -> (usize, usize) {
    let what = format!("{way:?} {killed:?}");
    let clock = Clock::set(0);
    let (alice, bob) = linked(Open).await;
    let old = alice.links.all()[0].id();
    if way == Way::Session {
        alice.reaches(&bob);
        bob.reaches(&alice);
    }
    let _ = (alice.operations(), bob.operations());
    clock.pass(HOUR * 16 + Duration::from_secs(60));
    match killed {
        Some((Side::Issuer, kill)) => alice.kill(kill),
        Some((Side::Acceptor, kill)) => bob.kill(kill),
        None => {}
    }
    for _ in 0..30 {
        both(&alice, &bob).await;
        talk(&alice, &bob).await;
        assert!(!live(&alice).is_empty() && !live(&bob).is_empty(), "{what}: there is a link all the time");
        // As far as the longest pause, so that what is tried again is tried.
        clock.pass(Duration::from_secs(301));
    }
    let (one, other) = (alice.links.for_peer(&bob.id).unwrap(), bob.links.for_peer(&alice.id).unwrap());
    assert_ne!(one.link, old, "{what}: renewed before its end");
    assert_eq!((one.link, &one.keys.outgoing), (other.link, &other.keys.incoming), "{what}");
    clock.pass(HOUR * 8);
    for _ in 0..8 {
        both(&alice, &bob).await;
        talk(&alice, &bob).await;
        clock.pass(Duration::from_secs(301));
    }
    // What is asked below is this test's own, and dies of nothing.
    let counted = (alice.operations(), bob.operations());
    alice.revive();
    bob.revive();
    for node in [&alice, &bob] {
        let live = live(node);
        assert_eq!((live.len(), live[0].state), (1, LinkState::Active), "{what}");
        assert_ne!(live[0].id(), old, "{what}");
        let ids: Vec<_> = live.iter().map(Link::id).collect();
        let held = node.vault().held(None).await.unwrap();
        assert!(held.iter().all(|held| ids.contains(held)), "{what}: nothing is left over in the key process");
        assert!(node.links.all().iter().all(|link| !link.state.is_over() || link.vault_told), "{what}");
    }
    counted
}

#[test]
fn a_key_process_that_is_killed_in_any_operation_of_a_renewal_costs_no_link() {
    run(async {
        for way in [Way::Session, Way::Directory] {
            let (of_issuer, of_acceptor) = renewal(way, None).await;
            assert!(of_issuer >= 2 && of_acceptor >= 3, "{way:?}: {of_issuer} {of_acceptor}");
            for (side, count) in [(Side::Issuer, of_issuer), (Side::Acceptor, of_acceptor)] {
                for at in 0..count {
                    for (is_durable, away) in [(false, 0), (true, 0), (true, 3)] {
                        renewal(way, Some((side, Kill { at, is_durable, away }))).await;
                    }
                }
            }
        }
    });
}

/// Nearly as far as clocks may be off.
const STEP: i64 = 119 * 60 * 1000;

/// The clock of a node whose own is `by` off: ten minutes a turn, from the moment when the link is due.
fn at(turn: i64, by: i64) -> Clock {
    let due = HOUR * 16 + Duration::from_secs(60);
    Clock::set(i64::try_from(due.as_millis()).unwrap() + turn * 600_000 + by)
}

/// What `node` does by itself, and what a directory brings of it; each acts by its own clock.
async fn act(turn: i64, (node, by): (&TestNode, i64), (peer, of_peer): (&TestNode, i64)) {
    let offers: Vec<_> = {
        let _its = at(turn, by);
        node.links.renew_due(clock::now()).await;
        round(node).await;
        node.outbox.offers.lock().unwrap().drain(..).collect()
    };
    let receipts: Vec<_> = {
        let _theirs = at(turn, of_peer);
        for offer in offers {
            peer.links.handle_offer(offer, node.id, DIRECTORY).await;
        }
        peer.outbox.receipts.lock().unwrap().drain(..).collect()
    };
    let _its = at(turn, by);
    for receipt in receipts {
        node.links.handle_receipt(receipt, peer.id).await;
    }
}

#[test]
fn a_clock_that_steps_by_two_hours_costs_no_link() {
    run(async {
        for (of_alice, of_bob) in [(STEP, 0), (-STEP, 0), (0, STEP), (0, -STEP)] {
            for steps_back in [1, 2, 20] {
                let what = format!("{of_alice} {of_bob}, back after {steps_back}");
                let (alice, bob) = linked(Open).await;
                let old = alice.links.all()[0].id();
                for turn in 0..60 {
                    let off = |by: i64| if turn < steps_back { by } else { 0 };
                    let (one, other) = ((&alice, off(of_alice)), (&bob, off(of_bob)));
                    act(turn, one, other).await;
                    act(turn, other, one).await;
                    let _true = at(turn, 0);
                    talk(&alice, &bob).await;
                }
                let _true = at(60, 0);
                let (one, other) = (alice.links.for_peer(&bob.id).unwrap(), bob.links.for_peer(&alice.id).unwrap());
                assert_ne!(one.link, old, "{what}");
                assert_eq!((one.link, &one.keys.outgoing), (other.link, &other.keys.incoming), "{what}");
                assert_eq!((live(&alice).len(), live(&bob).len()), (1, 1), "{what}");
            }
        }
    });
}
