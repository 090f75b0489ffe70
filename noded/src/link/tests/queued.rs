//! Links that are asked for while no directory answers.

use std::sync::atomic::Ordering;
use std::time::Duration;

use openred_proto::id::NodeId;

use super::nodes::{TestNode, pair};
use super::services::{deliver_offer, deliver_receipt, run, states};
use crate::clock;
use crate::config::IncomingPolicy::{Ask, Open};
use crate::directory::DirectoryError;
use crate::link::LinkError;
use crate::link::queue::{Asked, REQUESTS, Request};
use crate::link::state::{LinkState, WAITS};
use crate::store::Word;

/// Two nodes, whose directory is away.
async fn cut_off() -> (TestNode, TestNode) {
    let (alice, bob) = pair(Open).await;
    alice.outbox.is_down.store(true, Ordering::Relaxed);
    (alice, bob)
}

async fn queue(node: &TestNode, peer: NodeId) -> Request {
    match node.links.ask(peer, Some(Duration::from_secs(3600))).await.unwrap() {
        Asked::Queued(request) => request,
        Asked::Link(link) => panic!("{link:?}"),
    }
}

/// A round at a time when it is due, whenever the one before was.
async fn round(node: &TestNode) {
    node.links.ask_queued(clock::now().plus(Duration::from_secs(120))).await;
}

#[test]
fn what_was_asked_for_is_offered_when_a_directory_answers_also_after_a_restart() {
    run(async {
        let (alice, bob) = cut_off().await;
        let asked = queue(&alice, bob.id).await;
        assert_eq!(asked.why, Some(LinkError::Directory(DirectoryError::Unreachable)));
        assert_eq!((alice.links.state_of(&bob.id), alice.links.counts()), ("queued", (0, 1)));
        assert_eq!(alice.store.word(bob.id).await.unwrap(), Word::Yes, "the peer's own offers are wanted meanwhile");
        let alice = alice.restarted().await;
        assert_eq!(alice.links.all_queued(), [Request { why: None, ..asked }]);
        round(&alice).await;
        assert_eq!(alice.links.queued(&bob.id.to_string()), Some(asked), "tried in vain");
        assert!(alice.links.all().is_empty());
        alice.outbox.is_down.store(false, Ordering::Relaxed);
        round(&alice).await;
        assert_eq!((states(&alice), alice.links.all_queued().len()), (vec![LinkState::Offered], 0));
        let summary = alice.links.all()[0].summary.clone();
        assert_eq!(summary.not_after.0 - summary.not_before.0, 3_600_000, "with the life that was asked for");
        deliver_offer(&alice, &bob).await;
        deliver_receipt(&bob, &alice).await;
        assert_eq!(states(&alice), [LinkState::Pending]);
        let alice = alice.restarted().await;
        assert!(alice.links.all_queued().is_empty());
    });
}

#[test]
fn a_round_ends_with_the_first_silence_and_the_next_one_waits() {
    run(async {
        let (alice, bob) = cut_off().await;
        queue(&alice, bob.id).await;
        queue(&alice, NodeId::from_bytes([9; 32])).await;
        let before = alice.outbox.looked_up();
        alice.links.ask_queued(clock::now()).await;
        assert_eq!(alice.outbox.looked_up(), before, "nothing is due yet");
        round(&alice).await;
        assert_eq!(alice.outbox.looked_up(), before + 1);
        // One that nobody knows stands in nobody's way, and stays.
        alice.outbox.is_down.store(false, Ordering::Relaxed);
        round(&alice).await;
        assert_eq!(states(&alice), [LinkState::Offered]);
        let left = alice.links.all_queued();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].why, Some(LinkError::Directory(DirectoryError::UnknownNode)));
        alice.links.ask_queued(left[0].ends().plus(Duration::from_secs(1))).await;
        assert!(alice.links.all_queued().is_empty(), "given up");
        assert_eq!(left[0].ends(), left[0].asked_at.plus(WAITS));
    });
}

#[test]
fn a_request_is_taken_back_by_hand_by_a_denial_and_by_a_link() {
    run(async {
        let (alice, bob) = cut_off().await;
        queue(&alice, bob.id).await;
        let withdrawn = alice.links.take_back(&bob.id.to_string()).await.unwrap();
        assert_eq!(withdrawn.map(|request| request.peer), Some(bob.id));
        assert_eq!(alice.links.take_back(&bob.id.to_string()).await.unwrap(), None);
        assert_eq!(alice.store.word(bob.id).await.unwrap(), Word::None);
        queue(&alice, bob.id).await;
        alice.links.decide_peer(bob.id, false).await.unwrap();
        assert!(alice.links.all_queued().is_empty());
        queue(&alice, bob.id).await;
        alice.outbox.is_down.store(false, Ordering::Relaxed);
        round(&alice).await;
        let link = alice.links.all()[0].id();
        alice.links.revoke(link).await.unwrap();
        round(&alice).await;
        assert_eq!(states(&alice), [LinkState::Revoked], "nothing is offered that nobody asks for any more");
    });
}

#[test]
fn what_a_directory_answers_is_told_at_once_and_no_more_is_queued_than_is_kept() {
    run(async {
        let (alice, bob) = pair(Ask).await;
        let nobody = NodeId::from_bytes([9; 32]);
        let unknown = alice.links.ask(nobody, None).await.unwrap_err();
        assert_eq!(unknown, LinkError::Directory(DirectoryError::UnknownNode));
        alice.outbox.is_down.store(true, Ordering::Relaxed);
        assert_eq!(alice.links.ask(alice.id, None).await.unwrap_err(), LinkError::WithItself);
        for number in 0..REQUESTS {
            queue(&alice, NodeId::from_bytes([u8::try_from(number).unwrap() | 0x80; 32])).await;
        }
        assert_eq!(alice.links.ask(bob.id, None).await.unwrap_err(), LinkError::QueueFull);
        assert_eq!(alice.store.word(bob.id).await.unwrap(), Word::None);
        queue(&alice, NodeId::from_bytes([0x80; 32])).await;
        assert_eq!(alice.links.all_queued().len(), REQUESTS, "the same peer again takes no more room");
    });
}
