//! Renewals through the vault: two live links at once, refusals, replays, restarts, and what is held afterwards.

use openred_proto::id::LinkId;
use openred_proto::limits::CLOCK_GRACE;

use super::*;

fn renew_request(row: &[u8], card: Vec<u8>, allowed: MethodSet) -> Request {
    let (directory, schedule, life) = (DIRECTORY, Schedule::Hourly, DAY);
    Request::RenewLink { row: row.to_vec(), card, directory, allowed, schedule, life }
}

impl Node {
    fn renew(&mut self, row: &[u8], card: Vec<u8>) -> Link {
        match self.ask(renew_request(row, card, MethodSet::ALL)) {
            Reply::LinkIssued { summary, row, offer, keys } => Link { summary, row, keys, bytes: offer },
            other => panic!("{other:?}"),
        }
    }

    fn accept_renewal(&mut self, received: ReceivedOffer, row: &[u8]) -> Link {
        match self.ask(Request::AcceptRenewal(ReceivedRenewal { received, row: row.to_vec() })) {
            Reply::LinkAccepted { summary, row, receipt, keys } => Link { summary, row, keys, bytes: receipt },
            other => panic!("{other:?}"),
        }
    }

    fn held(&self) -> Vec<LinkId> {
        self.vault.unlocked.as_ref().unwrap().state.held()
    }

    fn listed(&mut self) -> Vec<LinkId> {
        match self.ask(Request::ListLinks { after: LinkId::from_bytes([0; 16]) }) {
            Reply::Links(links) => links,
            other => panic!("{other:?}"),
        }
    }
}

/// Alice renews the link whose two rows these are.
fn renewed(alice: &mut Node, bob: &mut Node, row: &[u8], other_row: &[u8]) -> (Link, Link) {
    let card = bob.card();
    let issued = alice.renew(row, card);
    let offer = received(alice, &issued.bytes);
    (issued, bob.accept_renewal(offer, other_row))
}

#[test]
fn both_links_serve_until_the_old_one_ends() {
    let (mut alice, mut bob, old, other_old) = linked();
    let (new, other_new) = renewed(&mut alice, &mut bob, &old.row, &other_old.row);
    assert_ne!(new.summary.link, old.summary.link);
    assert_eq!(new.keys.outgoing, other_new.keys.incoming);
    let (mut alice, mut bob) = (alice.restart(), bob.restart());
    shake(&mut alice, &old.row, &mut bob, &other_old.row);
    shake(&mut bob, &other_new.row, &mut alice, &new.row);
    assert!(matches!(alice.ask(Request::RevokeLink { link: old.summary.link }), Reply::Done));
    assert!(matches!(bob.ask(Request::RevokeLink { link: old.summary.link }), Reply::Done));
    shake(&mut alice, &new.row, &mut bob, &other_new.row);
}

#[test]
fn a_chain_of_renewals_holds_two_links_a_peer_and_either_side_renews() {
    let (mut alice, mut bob, mut one, mut other) = linked();
    for round in 0..6 {
        let pass = Duration::from_secs(3600);
        (alice.now, bob.now) = (alice.now.plus(pass), bob.now.plus(pass));
        let old = one.summary.link;
        if round % 2 == 0 {
            (one, other) = renewed(&mut alice, &mut bob, &one.row, &other.row);
        } else {
            (other, one) = renewed(&mut bob, &mut alice, &other.row, &one.row);
        }
        let mut both = [old, one.summary.link];
        both.sort_unstable();
        assert_eq!((alice.held(), bob.held()), (both.to_vec(), both.to_vec()), "round {round}");
        // Never used, and still the one that the next renewal goes by.
        if round == 3 {
            (alice, bob) = (alice.restart(), bob.restart());
        }
    }
    shake(&mut alice, &one.row, &mut bob, &other.row);
}

#[test]
fn an_offer_of_renewal_is_taken_once_and_answered_again() {
    let (mut alice, mut bob, old, other_old) = linked();
    let card = bob.card();
    let issued = alice.renew(&old.row, card);
    let offer = || ReceivedRenewal { received: received(&alice, &issued.bytes), row: other_old.row.clone() };
    let inspected = |bob: &mut Node| match bob.ask(Request::InspectRenewal(offer())) {
        Reply::OfferInspected(summary) => summary,
        other => panic!("{other:?}"),
    };
    assert_eq!(inspected(&mut bob).link, issued.summary.link);
    assert_eq!(bob.held().len(), 1, "looking marks nothing");
    let first = bob.accept_renewal(offer().received, &other_old.row);
    let mut bob = bob.restart();
    assert_eq!(bob.accept_renewal(offer().received, &other_old.row).bytes, first.bytes, "the same receipt");
    assert!(matches!(bob.ask(Request::RevokeLink { link: issued.summary.link }), Reply::Done));
    assert_eq!(bob.refusal(Request::AcceptRenewal(offer())), Refusal::LinkGone);
    assert!(matches!(bob.ask(Request::RevokeLink { link: old.summary.link }), Reply::Done));
    assert_eq!(bob.refusal(Request::InspectRenewal(offer())), Refusal::LinkGone, "nothing left to renew");
}

#[test]
fn a_renewal_needs_a_live_link_with_that_peer() {
    let (mut alice, mut bob, old, other_old) = linked();
    let mut carol = Node::new(3);
    let (with_carol, _) = link_by(&mut alice, &mut carol, MethodSet::ALL);
    let (bobs, carols) = (bob.card(), carol.card());
    // Alice's row decides who the peer is: another's card does not fit it.
    let wrong = alice.refusal(renew_request(&old.row, carols, MethodSet::ALL));
    assert_eq!(wrong, Refusal::PeerStatement(openred_proto::vault::StatementFault::WrongSigner));
    assert_eq!(alice.refusal(renew_request(&old.row, bobs.clone(), MethodSet::EMPTY)), Refusal::NoCommonMethod);
    assert_eq!(alice.refusal(renew_request(&[0; 3], bobs.clone(), MethodSet::ALL)), Refusal::RowSealed);
    let issued = alice.renew(&old.row, bobs.clone());
    let received = received(&alice, &issued.bytes);
    assert_eq!(bob.refusal(Request::AcceptOffer(received.clone())), malformed());
    let none = ReceivedOffer { allowed: MethodSet::EMPTY, ..received.clone() };
    let refused = Request::AcceptRenewal(ReceivedRenewal { received: none, row: other_old.row.clone() });
    assert_eq!(bob.refusal(refused), Refusal::Downgrade);
    let foreign = Request::AcceptRenewal(ReceivedRenewal { received, row: with_carol.row });
    assert_eq!(bob.refusal(foreign), Refusal::LinkGone, "a row of somebody else's");
    alice.now = alice.now.plus(DAY + CLOCK_GRACE + Duration::from_secs(1));
    assert_eq!(alice.refusal(renew_request(&old.row, bobs, MethodSet::ALL)), Refusal::LinkExpired);
}

const fn malformed() -> Refusal {
    Refusal::PeerStatement(openred_proto::vault::StatementFault::Malformed)
}

#[test]
fn a_crash_that_lost_the_new_row_costs_one_place_that_the_next_renewal_takes() {
    let (mut alice, mut bob, old, other_old) = linked();
    let card = bob.card();
    let lost = alice.renew(&old.row, card.clone()).summary.link;
    let again = alice.renew(&old.row, card);
    assert!(!alice.held().contains(&lost) && alice.held().len() == 2);
    let accepted = bob.accept_renewal(received(&alice, &again.bytes), &other_old.row);
    shake(&mut alice, &again.row, &mut bob, &accepted.row);
}

#[test]
fn a_fresh_first_offer_of_a_linked_peer_replaces_old_and_renewed_alike() {
    let (mut alice, mut bob, old, other_old) = linked();
    let (_, other_new) = renewed(&mut alice, &mut bob, &old.row, &other_old.row);
    // Alice lost her state and begins anew.
    let mut alice = Node::on_file(1, Vec::new(), Default::default(), NOW.plus(Duration::from_secs(60)));
    let (issued, accepted) = link_by(&mut alice, &mut bob, MethodSet::ALL);
    assert_eq!(bob.held(), [issued.summary.link]);
    for row in [other_old.row, other_new.row] {
        assert_eq!(bob.refusal(Request::LinkKeys { row }), Refusal::LinkGone);
    }
    shake(&mut alice, &issued.row, &mut bob, &accepted.row);
}

#[test]
fn what_was_restored_takes_no_renewal_of_before() {
    let (mut alice, mut bob, old, other_old) = linked();
    let card = bob.card();
    let issued = alice.renew(&old.row, card);
    let offer = || ReceivedRenewal { received: received(&alice, &issued.bytes), row: other_old.row.clone() };
    // As a restore does: the rows of before are of another epoch, and the prekeys are drawn anew.
    bob.vault.unlocked.as_mut().unwrap().state.begin_epoch(NOW);
    bob.commit();
    let mut bob = bob.restart();
    assert_eq!(bob.refusal(Request::AcceptRenewal(offer())), Refusal::RowSealed);
    assert_eq!(bob.refusal(renew_request(&other_old.row, Vec::new(), MethodSet::ALL)), Refusal::RowSealed);
    assert_eq!(bob.refusal(Request::AcceptOffer(offer().received)), malformed(), "nor as a first one");
}

#[test]
fn links_are_listed_a_page_at_a_time() {
    let mut node = Node::new(1);
    let mut expected = Vec::new();
    for seed in 2..8 {
        let mut peer = Node::new(seed);
        expected.push(link_by(&mut node, &mut peer, MethodSet::ALL).0.summary.link);
    }
    expected.sort_unstable();
    assert_eq!((node.held(), node.listed()), (expected.clone(), expected.clone()));
    assert!(
        matches!(node.ask(Request::ListLinks { after: expected[2] }), Reply::Links(links) if links == expected[3..])
    );
    let state = &node.vault.unlocked.as_ref().unwrap().state;
    assert_eq!(state.issued_after(&LinkId::from_bytes([0; 16]), 2), expected[..2]);
}

#[test]
fn what_was_accepted_is_not_listed_for_its_offer_comes_again() {
    let (mut alice, mut bob, old, other_old) = linked();
    assert_eq!((alice.listed(), bob.listed()), (vec![old.summary.link], vec![]));
    let (new, _) = renewed(&mut bob, &mut alice, &other_old.row, &old.row);
    assert_eq!((alice.listed(), bob.listed()), (vec![old.summary.link], vec![new.summary.link]));
}
