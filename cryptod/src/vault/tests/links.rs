//! Links through the vault: issue, inspect, accept, receipts, replays, rows, restarts.

use openred_proto::checked::offer::Offer;
use openred_proto::checked::receipt::{Receipt, ReceiptKind};
use openred_proto::limits::CLOCK_GRACE;
use openred_proto::vault::StatementFault;

use super::*;

#[test]
fn both_sides_agree_and_hold_each_others_request_keys() {
    let (alice, bob, issued, accepted) = linked();
    assert!(issued.summary.issuer && !accepted.summary.issuer);
    assert_eq!((issued.summary.peer, accepted.summary.peer), (bob.id(), alice.id()));
    let mirrored = LinkSummary { issuer: true, peer: bob.id(), ..accepted.summary };
    assert_eq!(issued.summary, mirrored);
    assert_eq!(issued.keys.outgoing, accepted.keys.incoming);
    assert_eq!(issued.keys.incoming, accepted.keys.outgoing);
    assert_ne!(issued.keys.incoming, issued.keys.outgoing);
}

#[test]
fn the_receipt_names_the_offer_and_verifies() {
    let (alice, bob, issued, accepted) = linked();
    let receipt = Receipt::verify(&accepted.bytes, &bob.id()).unwrap();
    assert_eq!(receipt.kind, ReceiptKind::Accepted);
    assert_eq!(receipt.token_id, Offer::token_id(&issued.bytes));
    assert_eq!((receipt.issuer, receipt.recipient), (alice.id(), bob.id()));
}

#[test]
fn inspecting_marks_nothing() {
    let (mut alice, mut bob) = (Node::new(1), Node::new(2));
    let card = bob.card();
    let issued = alice.issue(bob.id(), card, MethodSet::ALL);
    let offer = received(&alice, &issued.bytes);
    for _ in 0..3 {
        match bob.ask(Request::InspectOffer(offer.clone())) {
            Reply::OfferInspected(summary) => assert_eq!(summary.link, issued.summary.link),
            other => panic!("{other:?}"),
        }
    }
    assert!(!bob.vault.unlocked.as_ref().unwrap().state.is_dirty());
    bob.accept(offer);
}

#[test]
fn an_offer_accepted_before_gets_the_same_receipt_again_even_after_a_restart() {
    let (alice, mut bob, issued, accepted) = linked();
    let offer = received(&alice, &issued.bytes);
    bob.now = bob.now.plus(Duration::from_secs(60));
    let again = bob.accept(offer.clone());
    assert_eq!((again.bytes, &again.summary), (accepted.bytes.clone(), &accepted.summary));
    let mut bob = bob.restart();
    let after = bob.accept(offer.clone());
    assert_eq!(after.bytes, accepted.bytes);
    assert!(matches!(bob.ask(Request::LinkKeys { row: accepted.row }), Reply::LinkKeys(keys) if keys == accepted.keys));
    assert!(matches!(bob.ask(Request::InspectOffer(offer)), Reply::OfferInspected(_)));
}

#[test]
fn an_offer_is_not_taken_again_after_its_link_was_revoked_or_replaced() {
    let (mut alice, mut bob, issued, accepted) = linked();
    let offer = received(&alice, &issued.bytes);
    assert!(matches!(bob.ask(Request::RevokeLink { link: accepted.summary.link }), Reply::Done));
    assert_eq!(bob.refusal(Request::AcceptOffer(offer.clone())), Refusal::LinkGone);
    // Two newer offers push the first out of Bob's record; its sequence is still remembered, by a restarted vault too.
    for _ in 0..2 {
        link_by(&mut alice, &mut bob, MethodSet::ALL);
    }
    assert_eq!(bob.refusal(Request::AcceptOffer(offer.clone())), Refusal::Replay);
    let mut bob = bob.restart();
    assert_eq!(bob.refusal(Request::InspectOffer(offer)), Refusal::Replay);
}

#[test]
fn a_restarted_issuer_does_not_repeat_a_sequence() {
    let (mut alice, mut bob) = (Node::new(1), Node::new(2));
    link_by(&mut alice, &mut bob, MethodSet::ALL);
    let mut alice = alice.restart();
    link_by(&mut alice, &mut bob, MethodSet::ALL);
}

#[test]
fn refusals_are_named_for_the_local_log() {
    let (alice, mut bob, issued, _) = linked();
    let (mut carol, offer) = (Node::new(3), received(&alice, &issued.bytes));
    assert_eq!(carol.refusal(Request::AcceptOffer(offer.clone())), Refusal::OfferForOther);
    let card = bob.card();
    let mut alice = alice;
    let fresh = alice.issue(bob.id(), card, MethodSet::ALL);
    let from_carol = ReceivedOffer { sender: carol.id(), ..received(&alice, &fresh.bytes) };
    assert_eq!(bob.refusal(Request::AcceptOffer(from_carol)), Refusal::OfferSender);
    let elsewhere = ReceivedOffer { directory: carol.id(), ..received(&alice, &fresh.bytes) };
    assert_eq!(bob.refusal(Request::AcceptOffer(elsewhere)), Refusal::OfferSealed);
    bob.now = bob.now.plus(DAY + CLOCK_GRACE + Duration::from_secs(1));
    let late = bob.refusal(Request::AcceptOffer(received(&alice, &fresh.bytes)));
    assert_eq!(late, Refusal::PeerStatement(StatementFault::Expired));
}

#[test]
fn a_clock_two_hours_off_still_links() {
    let (mut alice, mut bob) = (Node::new(1), Node::new(2));
    alice.now = NOW.plus(Duration::from_secs(2 * 3600));
    link_by(&mut alice, &mut bob, MethodSet::ALL);
    // Time goes on between two sequences; exactly two hours ahead is the most that is taken.
    (alice.now, bob.now) = (alice.now.plus(Duration::from_secs(1)), bob.now.plus(Duration::from_secs(1)));
    let (issued, accepted) = link_by(&mut bob, &mut alice, MethodSet::ALL);
    shake(&mut bob, &issued.row, &mut alice, &accepted.row);
}

#[test]
fn a_clock_set_back_is_named_and_its_prekey_replaced() {
    let (mut alice, mut bob) = (Node::new(1), Node::new(2));
    let ahead = NOW.plus(DAY * 30);
    alice.now = ahead;
    alice.card();
    alice.now = NOW;
    let sign = Request::SignCard { fields: CardFields::default(), suites: MethodSet::ALL, life: DAY };
    let refused = alice.refusal(sign);
    assert_eq!(refused, Refusal::PeerStatement(StatementFault::NotYetValid));
    assert!(refused.to_string().contains("a clock is wrong"), "{refused}");
    let card = bob.card();
    let (peer, directory, allowed, schedule) = (bob.id(), DIRECTORY, MethodSet::ALL, Schedule::Hourly);
    assert_eq!(alice.refusal(Request::IssueLink { peer, card, directory, allowed, schedule, life: DAY }), refused);
    match alice.ask(Request::Describe) {
        Reply::Described { prekey, .. } => assert_eq!(prekey.not_before, NOW, "a peer may seal to it now"),
        other => panic!("{other:?}"),
    }
    // Two hours are what receivers allow for: a clock that was set back by less goes on without a word.
    let mut carol = Node::new(3);
    carol.now = NOW.plus(Duration::from_secs(7100));
    carol.card();
    carol.now = NOW;
    carol.card();
}

#[test]
fn rows_of_other_nodes_links_and_lost_state_do_not_open() {
    let (mut alice, mut bob, issued, _) = linked();
    let mut changed = issued.row.clone();
    changed[60] ^= 1;
    assert_eq!(alice.refusal(Request::LinkKeys { row: changed }), Refusal::RowSealed);
    assert_eq!(alice.refusal(Request::LinkKeys { row: vec![0; 3] }), Refusal::RowSealed);
    let (second, _) = link_by(&mut alice, &mut bob, MethodSet::ALL);
    let mut moved = issued.row.clone();
    moved[1..17].copy_from_slice(&second.row[1..17]);
    assert_eq!(alice.refusal(Request::LinkKeys { row: moved }), Refusal::RowSealed);
    // The same keystore with a new state, as on another host: the row names a link that nobody remembers.
    let mut copied = Node::new(1);
    assert_eq!(copied.refusal(Request::LinkKeys { row: issued.row }), Refusal::LinkGone);
}

#[test]
fn a_revoked_link_is_gone_and_an_expired_one_too() {
    let (mut alice, mut bob, issued, accepted) = linked();
    assert!(matches!(alice.ask(Request::RevokeLink { link: issued.summary.link }), Reply::Done));
    assert_eq!(alice.refusal(Request::StartHandshake { row: issued.row.clone() }), Refusal::LinkGone);
    let mut alice = alice.restart();
    assert_eq!(alice.refusal(Request::LinkKeys { row: issued.row }), Refusal::LinkGone);
    bob.now = bob.now.plus(DAY + CLOCK_GRACE + Duration::from_secs(1));
    assert_eq!(bob.refusal(Request::StartHandshake { row: accepted.row }), Refusal::LinkExpired);
    assert!(matches!(bob.ask(Request::RevokeLink { link: accepted.summary.link }), Reply::Done), "over already");
}

#[test]
fn a_link_revoked_after_its_end_stays_so_when_the_clock_is_set_back() {
    let (_, mut bob, _, accepted) = linked();
    bob.now = bob.now.plus(DAY + CLOCK_GRACE + Duration::from_secs(1));
    let revoke = || Request::RevokeLink { link: accepted.summary.link };
    assert!(matches!(bob.ask(revoke()), Reply::Done));
    assert_eq!(bob.refusal(revoke()), Refusal::LinkGone, "over for good");
    bob.now = NOW;
    assert_eq!(bob.refusal(Request::StartHandshake { row: accepted.row.clone() }), Refusal::LinkGone);
    // A start with a clock so far back is refused; one that is set back later is not noticed here.
    bob.now = NOW.plus(DAY + CLOCK_GRACE + Duration::from_secs(1));
    let mut bob = bob.restart();
    bob.now = NOW;
    assert_eq!(bob.refusal(Request::LinkKeys { row: accepted.row.clone() }), Refusal::LinkGone);
}

#[test]
fn an_issuer_cannot_take_another_links_id() {
    // The link id is the issuer's choice: one that Bob already holds for somebody else must not lead to Alice's record.
    let (mut alice, mut bob, issued, accepted) = linked();
    let state = &mut bob.vault.unlocked.as_mut().unwrap().state;
    let (_, held) = state.link(&issued.summary.link, NOW).unwrap();
    let stolen = held.clone();
    let mallory = NodeId::from_bytes([0xee; 32]);
    assert_eq!(state.add_link(&mallory, stolen, Some(NOW.0), NOW), Err(Error::PeerReplay));
    assert!(state.peer(&mallory).is_none());
    shake(&mut alice, &issued.row, &mut bob, &accepted.row);
}
