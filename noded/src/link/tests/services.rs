//! Two services with real vaults: offers that are accepted, repeated, crossed, lost, foreign and changed; crashes in between.

use bytes::Bytes;
use futures_util::FutureExt as _;
use openred_proto::checked::receipt::Receipt;
use openred_proto::id::{LinkId, NodeId};

use super::life::DIRECTORY;
use super::nodes::{TestNode, pair};
use super::renewing::linked;
use crate::clock;
use crate::config::IncomingPolicy::{Ask, Open};
use crate::link::LinkError;
use crate::link::decisions::Rank;
use crate::link::state::{EndReason, LinkState};
use crate::p2p::ports::{Links as _, SessionOpened};

pub(super) fn run(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

/// One round of all that links do by themselves.
pub(super) async fn round(node: &TestNode) {
    node.links.tend(clock::now()).await;
    node.links.send_offers(clock::now()).await;
}

pub(super) async fn deliver_offer(from: &TestNode, to: &TestNode) {
    round(from).await;
    to.links.handle_offer(from.outbox.offer(), from.id, DIRECTORY).await;
}

pub(super) async fn deliver_receipt(from: &TestNode, to: &TestNode) {
    to.links.handle_receipt(from.outbox.receipt(), from.id).await;
}

pub(super) fn states(node: &TestNode) -> Vec<LinkState> {
    node.links.all().into_iter().map(|link| link.state).collect()
}

#[test]
fn an_open_policy_links_at_once() {
    run(async {
        let (alice, bob) = pair(Open).await;
        let link = alice.links.request(bob.id, None).await.unwrap();
        deliver_offer(&alice, &bob).await;
        assert_eq!(states(&bob), [LinkState::Pending]);
        deliver_receipt(&bob, &alice).await;
        assert_eq!(states(&alice), [LinkState::Pending]);
        assert_eq!((alice.told.all().as_str(), bob.told.all().as_str()), ("added confirmed", "added"));
        let handle = alice.links.for_peer(&bob.id).unwrap();
        assert_eq!(handle.link, bob.links.for_peer(&alice.id).unwrap().link);
        assert_eq!(handle.keys.outgoing, bob.links.for_peer(&alice.id).unwrap().keys.incoming);
        alice.links.session_opened(opened(link.id(), bob.id, 1)).await;
        assert_eq!(states(&alice), [LinkState::Active]);
        assert_eq!(
            alice.links.request(bob.id, None).await.unwrap().id(),
            link.id(),
            "asking again gives the same link"
        );
    });
}

fn opened(link: LinkId, peer: NodeId, counter: u64) -> SessionOpened {
    SessionOpened {
        link,
        peer,
        initiator: true,
        counter,
        mutual_link: [counter as u8; 16],
        peer_card_sequence: 0,
        peer_directory_head: Vec::new(),
        at: clock::now(),
    }
}

#[test]
fn what_handshakes_leave_is_seen_at_once_and_stored_together() {
    run(async {
        let (alice, bob) = pair(Open).await;
        let link = alice.links.request(bob.id, None).await.unwrap().id();
        for counter in 1..=20 {
            alice.links.session_opened(opened(link, bob.id, counter)).await;
            assert_eq!(alice.links.all()[0].sent_counter, counter);
            let is_hurried = alice.links.counts_due.notified().now_or_never().is_some();
            assert_eq!(
                is_hurried,
                counter >= 9,
                "counts do not run further ahead of the store than the window is wide"
            );
        }
        let stored = alice.store.links().await.unwrap().remove(0);
        assert_eq!((stored.state, stored.sent_counter), (LinkState::Active, 1), "a change of state is stored first");
        alice.links.store_used().await.unwrap();
        let stored = alice.store.links().await.unwrap().remove(0);
        assert_eq!((stored.sent_counter, stored.mutual_link), (20, Some([20; 16])));
        assert!(alice.store.peer(bob.id).await.unwrap().unwrap().seen_at.0 > 0);
        // One that ends before it is stored is stored as ended.
        alice.links.session_opened(opened(link, bob.id, 21)).await;
        alice.links.revoke(link).await.unwrap();
        alice.links.store_used().await.unwrap();
        let alice = alice.restarted().await;
        assert_eq!(states(&alice), [LinkState::Revoked]);
        assert_eq!(alice.links.all()[0].sent_counter, 21);
    });
}

#[test]
fn under_ask_the_operator_decides_and_the_yes_lasts() {
    run(async {
        let (alice, bob) = pair(Ask).await;
        let first = alice.links.request(bob.id, None).await.unwrap();
        deliver_offer(&alice, &bob).await;
        deliver_offer(&alice, &bob).await;
        assert_eq!(states(&bob), [LinkState::Waiting], "a repeated offer waits once");
        assert!(bob.outbox.receipts.lock().unwrap().is_empty() && bob.links.for_peer(&alice.id).is_none());
        let accepted = bob.links.approve(&alice.id.to_string()).await.unwrap().unwrap();
        assert_eq!((accepted.state, accepted.id()), (LinkState::Pending, first.id()));
        deliver_receipt(&bob, &alice).await;
        alice.links.revoke(first.id()).await.unwrap();
        let second = alice.links.request(bob.id, None).await.unwrap();
        deliver_offer(&alice, &bob).await;
        assert_eq!(states(&bob), [LinkState::Revoked, LinkState::Pending], "no second question");
        assert_eq!(bob.links.for_peer(&alice.id).unwrap().link, second.id());
        assert_eq!(bob.links.all()[0].reason, EndReason::Replaced);
        bob.links.revoke(second.id()).await.unwrap();
        let third = alice.links.revoke(second.id()).await;
        assert!(third.is_ok());
        alice.links.request(bob.id, None).await.unwrap();
        deliver_offer(&alice, &bob).await;
        assert_eq!(states(&bob).last(), Some(&LinkState::Waiting), "a revocation takes the yes back");
    });
}

#[test]
fn the_operators_no_lasts_over_restarts_until_a_yes_and_touches_no_live_link() {
    run(async {
        let (alice, bob) = pair(Open).await;
        bob.links.decide_peer(alice.id, false).await.unwrap();
        alice.links.request(bob.id, None).await.unwrap();
        deliver_offer(&alice, &bob).await;
        let bob = bob.restarted().await;
        bob.links.handle_offer(alice.outbox.offer(), alice.id, DIRECTORY).await;
        assert!(bob.links.all().is_empty() && bob.outbox.receipts.lock().unwrap().is_empty());
        assert_eq!(bob.links.rank(alice.id, &alice.outbox.offer()).await, Rank::Stranger);
        bob.links.decide_peer(alice.id, true).await.unwrap();
        assert_eq!(bob.links.rank(alice.id, &alice.outbox.offer()).await, Rank::Known);
        bob.links.handle_offer(alice.outbox.offer(), alice.id, DIRECTORY).await;
        deliver_receipt(&bob, &alice).await;
        bob.links.decide_peer(alice.id, false).await.unwrap();
        assert_eq!((states(&alice), states(&bob)), (vec![LinkState::Pending], vec![LinkState::Pending]));
        let (yes, no) = (bob.links.decide_peer(bob.id, true).await, bob.links.decide_peer(bob.id, false).await);
        assert_eq!((yes.err(), no.err()), (Some(LinkError::WithItself), Some(LinkError::WithItself)));
    });
}

#[test]
fn the_operators_no_ends_what_this_node_has_offered_and_the_receipt_comes_too_late() {
    run(async {
        let (alice, bob) = pair(Open).await;
        alice.links.request(bob.id, None).await.unwrap();
        deliver_offer(&alice, &bob).await;
        alice.links.decide_peer(bob.id, false).await.unwrap();
        deliver_receipt(&bob, &alice).await;
        let [ended] = &alice.links.all()[..] else { panic!("{:?}", states(&alice)) };
        assert_eq!((ended.state, ended.reason), (LinkState::Revoked, EndReason::Operator));
        assert!(alice.links.for_peer(&bob.id).is_none());
        let alice = alice.restarted().await;
        assert_eq!(states(&alice), [LinkState::Revoked]);
    });
}

#[test]
fn an_offer_that_waits_is_refused_alone_and_one_that_does_not_is_not() {
    run(async {
        let (alice, bob) = pair(Ask).await;
        alice.links.request(bob.id, None).await.unwrap();
        deliver_offer(&alice, &bob).await;
        let refused = bob.links.refuse_offer(&alice.id.to_string()).await.unwrap();
        assert_eq!((refused.state, refused.reason), (LinkState::Revoked, EndReason::Refused));
        deliver_offer(&alice, &bob).await;
        assert_eq!(states(&bob), [LinkState::Revoked], "the same bytes do not wait again");
        assert_eq!(bob.links.refuse_offer(&alice.id.to_string()).await.err(), Some(LinkError::NotFound));
        // A linked peer's fresh offer waits beside its link, and is left without harm to that.
        let (carol, dave) = linked(Ask).await;
        let link = dave.links.for_peer(&carol.id).unwrap().link;
        dave.store.disapprove(carol.id).await.unwrap();
        carol.links.revoke(link).await.unwrap();
        carol.links.request(dave.id, None).await.unwrap();
        deliver_offer(&carol, &dave).await;
        assert_eq!(states(&dave), [LinkState::Active, LinkState::Waiting]);
        let wrong = dave.links.refuse_offer(&link.to_string()).await.err().unwrap();
        assert!(matches!(wrong, LinkError::WrongState(_)), "{wrong}");
        dave.links.refuse_offer(&carol.id.to_string()).await.unwrap();
        assert_eq!(states(&dave), [LinkState::Active, LinkState::Revoked]);
        // Denied, what waits ends with it.
        carol.links.revoke(carol.links.of_peer(&dave.id).unwrap().id()).await.unwrap();
        carol.links.request(dave.id, None).await.unwrap();
        deliver_offer(&carol, &dave).await;
        dave.links.decide_peer(carol.id, false).await.unwrap();
        assert_eq!(states(&dave), [LinkState::Active, LinkState::Revoked, LinkState::Revoked]);
    });
}

#[test]
fn a_repeated_offer_gets_the_same_receipt_also_after_a_crash() {
    run(async {
        let (alice, bob) = pair(Open).await;
        alice.links.request(bob.id, None).await.unwrap();
        deliver_offer(&alice, &bob).await;
        let first = bob.outbox.receipt();
        // The receipt is lost, bob's process dies, the offer comes again.
        let bob = bob.restarted().await;
        assert_eq!(bob.told.all(), "added", "a restarted node expects its peers at once");
        let sent = bob.outbox.receipts.lock().unwrap().len();
        bob.links.handle_offer(alice.outbox.offer(), NodeId::from_bytes([9; 32]), DIRECTORY).await;
        assert_eq!(bob.outbox.receipts.lock().unwrap().len(), sent, "brought by somebody else");
        bob.links.handle_offer(alice.outbox.offer(), alice.id, DIRECTORY).await;
        assert_eq!(bob.outbox.receipt(), first);
        assert_eq!(bob.outbox.receipts.lock().unwrap().len(), 2);
        let alice = alice.restarted().await;
        assert_eq!(states(&alice), [LinkState::Offered]);
        round(&alice).await;
        let offers = alice.outbox.offers.lock().unwrap().clone();
        assert!(offers.len() == 2 && offers[0] == offers[1], "the same bytes again, also after a restart");
        deliver_receipt(&bob, &alice).await;
        assert_eq!(states(&alice), [LinkState::Pending]);
    });
}

#[test]
fn of_two_offers_that_cross_one_link_is_left() {
    run(async {
        let (alice, bob) = pair(Ask).await;
        let lower = alice.links.request(bob.id, None).await.unwrap();
        bob.links.request(alice.id, None).await.unwrap();
        deliver_offer(&bob, &alice).await;
        deliver_offer(&alice, &bob).await;
        deliver_receipt(&bob, &alice).await;
        // The higher one's offer arrives once more, late.
        let late = bob.outbox.offer();
        alice.links.handle_offer(late, bob.id, DIRECTORY).await;
        assert_eq!(states(&alice), [LinkState::Pending]);
        assert_eq!(alice.links.for_peer(&bob.id).unwrap().link, lower.id());
        assert_eq!(bob.links.for_peer(&alice.id).unwrap().link, lower.id());
        let lost = bob.links.all().into_iter().find(|link| link.id() != lower.id()).unwrap();
        assert_eq!((lost.state, lost.reason), (LinkState::Revoked, EndReason::CrossedOffer));
    });
}

#[test]
fn foreign_changed_and_misdirected_bytes_change_nothing() {
    run(async {
        let (alice, bob) = pair(Open).await;
        let carol = TestNode::new(3, Open).await;
        alice.links.request(bob.id, None).await.unwrap();
        round(&alice).await;
        let offer = alice.outbox.offer();
        carol.links.handle_offer(offer.clone(), alice.id, DIRECTORY).await;
        bob.links.handle_offer(offer.clone(), carol.id, DIRECTORY).await;
        bob.links.handle_offer(offer.clone(), alice.id, NodeId::from_bytes([9; 32])).await;
        for at in [0, 40, 200, 1000, offer.len() - 1] {
            let mut changed = offer.to_vec();
            changed[at] ^= 1;
            bob.links.handle_offer(changed.into(), alice.id, DIRECTORY).await;
        }
        bob.links.handle_offer(Bytes::from_static(b"junk"), alice.id, DIRECTORY).await;
        assert!(bob.links.all().is_empty() && carol.links.all().is_empty());
        bob.links.handle_offer(offer, alice.id, DIRECTORY).await;
        let receipt = bob.outbox.receipt();
        assert!(Receipt::verify(&receipt, &bob.id).is_ok());
        alice.links.handle_receipt(receipt.clone(), carol.id).await;
        let mut changed = receipt.to_vec();
        changed[20] ^= 1;
        alice.links.handle_receipt(changed.into(), bob.id).await;
        assert_eq!(states(&alice), [LinkState::Offered]);
        carol.links.handle_receipt(receipt, bob.id).await;
        assert!(carol.links.all().is_empty());
    });
}

#[test]
fn a_revoked_link_is_told_to_the_vault_and_to_everybody_once() {
    run(async {
        let (alice, bob) = pair(Open).await;
        let link = alice.links.request(bob.id, None).await.unwrap();
        deliver_offer(&alice, &bob).await;
        deliver_receipt(&bob, &alice).await;
        alice.links.revoke(link.id()).await.unwrap();
        assert_eq!(alice.told.all(), "added confirmed removed forgotten");
        assert!(!alice.links.all()[0].vault_told, "stored before the key process is asked");
        let alice = alice.restarted().await;
        alice.links.tend(clock::now()).await;
        assert!(alice.links.all()[0].vault_told);
        assert!(matches!(alice.links.revoke(link.id()).await, Err(LinkError::WrongState(_))));
        assert!(alice.told.all().is_empty() && alice.links.for_peer(&bob.id).is_none());
    });
}

#[test]
fn a_row_that_the_vault_refuses_ends_its_link_by_name() {
    run(async {
        let (alice, bob) = pair(Open).await;
        alice.links.request(bob.id, None).await.unwrap();
        deliver_offer(&alice, &bob).await;
        deliver_receipt(&bob, &alice).await;
        let mut changed = alice.links.all().remove(0);
        changed.row[10] ^= 1;
        alice.store.put_links(vec![changed]).await.unwrap();
        let alice = alice.restarted().await;
        assert_eq!((states(&alice)[0], alice.links.all()[0].reason), (LinkState::Revoked, EndReason::RowRefused));
        assert!(alice.links.for_peer(&bob.id).is_none());
    });
}

#[test]
fn links_are_selected_by_id_prefix_and_peer() {
    run(async {
        let (alice, bob) = pair(Open).await;
        let link = alice.links.request(bob.id, None).await.unwrap();
        let id = link.id().to_string();
        for text in [id.as_str(), &id[..4], &id.to_uppercase(), &bob.id.to_string()] {
            assert_eq!(alice.links.select(text).map(|link| link.id()), Ok(link.id()), "{text}");
        }
        for text in ["", "zz", &alice.id.to_string()] {
            assert_eq!(alice.links.select(text).map(|link| link.id()), Err(LinkError::NotFound), "{text}");
        }
        assert_eq!(alice.links.request(alice.id, None).await.err(), Some(LinkError::WithItself));
    });
}
