//! Links that are asked for while no directory answers.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openred_proto::id::NodeId;
use tokio::sync::Semaphore;

use super::nodes::{TestNode, pair};
use super::services::{deliver_offer, deliver_receipt, run, states};
use crate::clock;
use crate::clock::stepped::Clock;
use crate::config::IncomingPolicy::{Ask, Open};
use crate::directory::DirectoryError;
use crate::link::LinkError;
use crate::link::queue::{Asked, REQUESTS, Request};
use crate::link::state::{LinkState, WAITS};
use crate::p2p::ports::Links as _;
use crate::store::{StoreError, Word};

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

#[test]
fn a_link_that_comes_otherwise_ends_the_request_and_is_what_is_revoked() {
    run(async {
        let (alice, bob) = cut_off().await;
        // One about whom nobody answers waits beside him.
        let other = NodeId::from_bytes([0; 32]);
        queue(&alice, other).await;
        queue(&alice, bob.id).await;
        bob.links.request(alice.id, None).await.unwrap();
        deliver_offer(&bob, &alice).await;
        assert_eq!(states(&alice), [LinkState::Pending], "the request is a yes to his own offer");
        let did = bob.id.to_string();
        assert_eq!(alice.links.queued(&did), None, "the link is shown, and not the request");
        assert_eq!(alice.links.take_back(&did).await.unwrap(), None, "what is to be revoked is the link");
        let link = alice.links.select(&did).unwrap();
        assert_eq!(alice.links.revoke(link.id()).await.unwrap().state, LinkState::Revoked);
        assert!(alice.links.for_peer(&bob.id).is_none() && !alice.links.has_request(&bob.id));
        // Nor does it wait for the end of a link that it did not come to.
        queue(&alice, bob.id).await;
        bob.links.revoke(bob.links.of_peer(&alice.id).unwrap().id()).await.unwrap();
        bob.links.request(alice.id, None).await.unwrap();
        deliver_offer(&bob, &alice).await;
        assert_eq!(states(&alice), [LinkState::Revoked, LinkState::Pending]);
        alice.links.ask_queued(clock::now()).await;
        let left: Vec<NodeId> = alice.links.all_queued().iter().map(|request| request.peer).collect();
        assert_eq!(left, [other]);
    });
}

/// What the operator says while the first look-up is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Later {
    Denied,
    TakenBack,
    Revoked,
}

impl Later {
    async fn say(self, alice: &TestNode, bob: &TestNode) {
        match self {
            Self::Denied => alice.links.decide_peer(bob.id, false).await.unwrap(),
            Self::TakenBack => {
                let taken_back = alice.links.take_back(&bob.id.to_string()).await.unwrap();
                assert_eq!(taken_back.map(|request| request.peer), Some(bob.id));
            }
            Self::Revoked => {
                bob.links.request(alice.id, None).await.unwrap();
                deliver_offer(bob, alice).await;
                assert_eq!(alice.links.take_back(&bob.id.to_string()).await.unwrap(), None);
                let link = alice.links.for_peer(&bob.id).unwrap().link;
                alice.links.revoke(link).await.unwrap();
            }
        }
    }
}

/// Until so many look-ups have begun.
async fn looking_up(node: &TestNode, count: usize) {
    while node.outbox.looked_up() < count {
        tokio::task::yield_now().await;
    }
}

#[test]
fn what_the_operator_says_while_a_peer_is_looked_up_for_the_first_time_counts() {
    run(async {
        for later in [Later::Denied, Later::TakenBack, Later::Revoked] {
            for is_down in [true, false] {
                let (alice, bob) = pair(Open).await;
                let answers = Arc::new(Semaphore::new(0));
                *alice.outbox.holding.lock().unwrap() = Some(Arc::clone(&answers));
                alice.outbox.is_down.store(is_down, Ordering::Relaxed);
                let saying = async {
                    looking_up(&alice, 1).await;
                    later.say(&alice, &bob).await;
                    answers.add_permits(1);
                };
                let (asked, ()) = tokio::join!(alice.links.ask(bob.id, None), saying);
                assert_eq!(asked.unwrap_err(), LinkError::Withdrawn, "{later:?} {is_down}");
                let word = if later == Later::Denied { Word::No } else { Word::None };
                assert_eq!(alice.store.word(bob.id).await.unwrap(), word, "{later:?} {is_down}");
                assert!(alice.links.all_queued().is_empty() && alice.links.for_peer(&bob.id).is_none());
                // He may ask again.
                answers.add_permits(1);
                alice.links.ask(bob.id, None).await.unwrap();
                assert_eq!(alice.store.word(bob.id).await.unwrap(), Word::Yes);
            }
        }
    });
}

#[test]
fn a_request_that_comes_while_an_older_one_is_looked_up_is_not_dropped_with_that() {
    run(async {
        let clock = Clock::set(0);
        let (alice, bob) = cut_off().await;
        queue(&alice, bob.id).await;
        clock.pass(Duration::from_secs(1));
        let answers = Arc::new(Semaphore::new(0));
        *alice.outbox.holding.lock().unwrap() = Some(Arc::clone(&answers));
        let (begun, anew) = (alice.outbox.looked_up(), Some(Duration::from_secs(7200)));
        let asking_anew = async {
            looking_up(&alice, begun + 1).await;
            alice.links.take_back(&bob.id.to_string()).await.unwrap().unwrap();
            *alice.outbox.holding.lock().unwrap() = None;
            assert!(matches!(alice.links.ask(bob.id, anew).await.unwrap(), Asked::Queued(_)));
            alice.outbox.is_down.store(false, Ordering::Relaxed);
            answers.add_permits(1);
        };
        tokio::join!(round(&alice), asking_anew);
        assert!(alice.links.all().is_empty(), "nothing is offered on what was taken back");
        assert_eq!(alice.links.all_queued()[0].life, anew);
        clock.pass(Duration::from_secs(120));
        round(&alice).await;
        let summary = alice.links.all()[0].summary.clone();
        assert_eq!(summary.not_after.0 - summary.not_before.0, 7_200_000);
    });
}

#[test]
fn a_denial_is_seen_also_when_the_request_cannot_be_dropped_from_the_store() {
    run(async {
        let (alice, bob) = pair(Ask).await;
        bob.links.request(alice.id, None).await.unwrap();
        deliver_offer(&bob, &alice).await;
        alice.outbox.is_down.store(true, Ordering::Relaxed);
        queue(&alice, bob.id).await;
        let refuse = |connection: &rusqlite::Connection| {
            let trigger = "CREATE TEMP TRIGGER refused BEFORE INSERT ON main.meta WHEN NEW.name = 'requests'
                           BEGIN SELECT RAISE(ABORT, 'refused'); END";
            connection.execute_batch(trigger).map_err(StoreError::from)
        };
        alice.store.call(refuse).await.unwrap();
        let failed = alice.links.decide_peer(bob.id, false).await;
        assert!(matches!(failed, Err(LinkError::Store(_))), "{failed:?}");
        assert_eq!(states(&alice), [LinkState::Revoked], "what the store has is what is shown");
    });
}

#[test]
fn a_round_begins_behind_the_one_that_ended_the_last() {
    run(async {
        let (alice, bob) = cut_off().await;
        let other = NodeId::from_bytes([0; 32]);
        queue(&alice, other).await;
        queue(&alice, bob.id).await;
        let alice = alice.restarted().await;
        for tried in [vec![other], vec![other, bob.id]] {
            round(&alice).await;
            let queued = alice.links.all_queued();
            let asked = queued.iter().filter(|request| request.why.is_some()).map(|request| request.peer);
            assert_eq!(asked.collect::<Vec<_>>(), tried);
        }
    });
}
