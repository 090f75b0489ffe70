//! Renewal: the rules in virtual time, then two services that renew through a directory and inside a session, cross, lose messages and
//! crash at each step.

use std::sync::atomic::Ordering;
use std::time::Duration;

use openred_proto::id::{LinkId, UnixMillis};
use openred_proto::method::{Method, MethodSet};
use openred_proto::vault::LinkSummary;

use super::judging::LATER;
use super::life::{DIRECTORY, HOUR, NOW, accepted, offered, summary};
use super::nodes::{Cut, TestNode, pair};
use super::services::{deliver_offer, deliver_receipt, round, run, states};
use crate::clock;
use crate::config::IncomingPolicy::{AllowList, Ask, Open};
use crate::keys::NewLink;
use crate::link::judge::{RefusedOffer, Verdict, judge_renewal};
use crate::link::ports::Carrier as _;
use crate::link::renewal::{Turn, renewal_at, turn};
use crate::link::state::{EndReason, Link, LinkState};
use crate::p2p::ports::{Links as _, SessionOpened};

const MINUTE: Duration = Duration::from_secs(60);

fn active(link: Link) -> Link {
    link.with_handshake(true, 1, [0; 16], NOW).unwrap()
}

fn look(link: &Link, links: &[Link], now: UnixMillis) -> Option<Turn> {
    turn(link, links.iter(), MethodSet::ALL, now)
}

#[test]
fn the_issuer_renews_at_two_thirds_the_acceptor_at_five_sixths() {
    for (link, due) in [(active(offered(1, 2)), HOUR * 16), (active(accepted(1, 2)), HOUR * 20)] {
        assert_eq!(renewal_at(&link), NOW.plus(due));
        let links = [link.clone()];
        assert_eq!(look(&link, &links, NOW.plus(due - MINUTE)), None);
        assert_eq!(look(&link, &links, NOW.plus(due)), Some(Turn::Renew));
    }
    let waits = offered(1, 2);
    assert_eq!(look(&waits, std::slice::from_ref(&waits), NOW.plus(HOUR * 20)), None, "nobody has accepted it yet");
}

#[test]
fn the_renewed_one_serves_until_its_end_and_no_longer() {
    let old = active(offered(1, 2)).renewing(NOW).unwrap();
    let end = old.summary.not_after;
    let unanswered = offered(3, 2).in_place_of(Some(old.id()));
    assert_eq!(look(&old, &[old.clone(), unanswered.clone()], end.plus(HOUR)), None, "the grace of clocks is for this");
    let answered = unanswered.clone().with_receipt(vec![1], NOW).unwrap();
    assert_eq!(look(&old, &[old.clone(), answered.clone()], end), None);
    let Some(Turn::Outlived(ended)) = look(&old, &[old.clone(), answered], end.plus(MINUTE)) else {
        panic!("lives on")
    };
    assert_eq!((ended.state, ended.reason, ended.vault_told), (LinkState::Expired, EndReason::Renewed, false));
    // The acceptor does not know yet that the issuer has its receipt.
    let taken = accepted(3, 2).in_place_of(Some(old.id()));
    assert_eq!(look(&old, &[old.clone(), taken.clone()], end.plus(MINUTE)), None);
    assert!(matches!(look(&old, &[old.clone(), active(taken)], end.plus(MINUTE)), Some(Turn::Outlived(_))));
    let failed = unanswered.ended(EndReason::PeerEnded, NOW).unwrap();
    let Some(Turn::Settled(again)) = look(&old, &[old.clone(), failed], NOW) else { panic!("not settled") };
    assert_eq!(again.state, LinkState::Active);
}

#[test]
fn a_method_that_is_retired_makes_its_links_due_at_once() {
    let link = active(offered(1, 2));
    let without = Method::ALL.into_iter().filter(|method| *method != Method::Alpha).collect::<MethodSet>();
    assert_eq!(turn(&link, [&link].into_iter(), without, NOW), Some(Turn::Renew));
    let newer = active(offered(3, 2).in_place_of(Some(link.id())));
    let links = [link.clone(), newer];
    assert!(matches!(turn(&link, links.iter(), without, NOW), Some(Turn::Outlived(_))), "and end with their renewal");
    assert_eq!(turn(&link, links.iter(), MethodSet::ALL, NOW), None);
}

/// What node 5 says to a renewal of `old` that node `peer` offers a minute later.
fn verdict(links: &[Link], old: &Link, peer: u8) -> Verdict {
    let me = openred_proto::id::NodeId::from_bytes([5; 32]);
    judge_renewal(me, links.iter(), &old.id(), &summary(99, peer, false, LATER), &[99; 32], LATER)
}

#[test]
fn a_renewal_is_judged_by_what_stands_and_asks_nobody() {
    let old = active(accepted(1, 9));
    assert_eq!(verdict(std::slice::from_ref(&old), &old, 9), Verdict::Accept(vec![]));
    assert_eq!(
        verdict(std::slice::from_ref(&old), &old, 8),
        Verdict::Refuse(RefusedOffer::NothingToRenew),
        "another's link"
    );
    let over = old.clone().ended(EndReason::Operator, NOW).unwrap();
    assert_eq!(verdict(std::slice::from_ref(&over), &over, 9), Verdict::Refuse(RefusedOffer::NothingToRenew));
    let before = active(accepted(2, 9)).renewing(NOW).unwrap();
    let chained = Link { renews: Some(before.id()), ..old.clone() };
    let ends = Verdict::Accept(vec![(before.id(), EndReason::Renewed)]);
    assert_eq!(verdict(&[before, chained.clone()], &chained, 9), ends, "two links at most");
    let earlier = accepted(3, 9).in_place_of(Some(old.id()));
    let ends = Verdict::Accept(vec![(earlier.id(), EndReason::Replaced)]);
    assert_eq!(verdict(&[old.clone(), earlier], &old, 9), ends, "the peer lost what it had offered before");
}

#[test]
fn a_peer_renews_young_links_a_few_times_an_hour_and_no_more() {
    let old = active(accepted(1, 9));
    let mut links = vec![old.clone()];
    let taken = |number: u8| {
        let before = accepted(number, 9).in_place_of(Some(openred_proto::id::LinkId::from_bytes([number + 1; 16])));
        before.expired(EndReason::Renewed, NOW).unwrap()
    };
    links.extend((10..13).map(taken));
    assert_eq!(verdict(&links, &old, 9), Verdict::Accept(vec![]));
    links.push(taken(13));
    assert_eq!(verdict(&links, &old, 9), Verdict::Refuse(RefusedOffer::TooEarly));
    let judged = |at: UnixMillis| {
        let me = openred_proto::id::NodeId::from_bytes([5; 32]);
        judge_renewal(me, links.iter(), &old.id(), &summary(99, 9, false, at), &[99; 32], at)
    };
    assert_eq!(judged(NOW.plus(HOUR)), Verdict::Accept(vec![]), "the hour is over");
    let short = Link { created_at: UnixMillis(NOW.0 - 13 * 3_600_000), ..old.clone() };
    links[0] = short;
    assert_eq!(verdict(&links, &old, 9), Verdict::Accept(vec![]), "in its time it is no matter how many there were");
}

#[test]
fn of_two_renewals_that_cross_the_lower_issuer_wins() {
    for (peer, wins) in [(2, true), (9, false)] {
        let old = active(offered(1, peer)).renewing(NOW).unwrap();
        let ours = offered(3, peer).in_place_of(Some(old.id()));
        let expected = match wins {
            true => Verdict::Accept(vec![(ours.id(), EndReason::CrossedOffer)]),
            false => Verdict::Refuse(RefusedOffer::OursGoesFirst),
        };
        assert_eq!(verdict(&[old.clone(), ours], &old, peer), expected);
    }
}

#[test]
fn a_renewal_of_ours_that_nobody_answers_yields_to_the_peers_own() {
    let old = active(offered(1, 9)).renewing(NOW).unwrap();
    let ours = offered(3, 9).in_place_of(Some(old.id()));
    let (links, me) = ([old.clone(), ours.clone()], openred_proto::id::NodeId::from_bytes([5; 32]));
    let later = NOW.plus(MINUTE * 6);
    let judged = judge_renewal(me, links.iter(), &old.id(), &summary(99, 9, false, later), &[99; 32], later);
    assert_eq!(judged, Verdict::Accept(vec![(ours.id(), EndReason::CrossedOffer)]));
}

#[test]
fn a_renewal_that_the_peer_leaves_is_withdrawn_and_made_afresh() {
    run(async {
        let (alice, bob) = linked(Open).await;
        renew(&alice).await;
        // What Bob cannot take: his side of the old link is over, and alice has not heard of it.
        let over = bob.links.all().remove(0).ended(EndReason::Operator, clock::now()).unwrap();
        bob.store.put_links(vec![over]).await.unwrap();
        let bob = bob.restarted().await;
        alice.reaches(&bob);
        alice.links.send_offers(clock::now()).await;
        assert_eq!((states(&alice)[1], reasons(&alice)[1]), (LinkState::Revoked, EndReason::PeerRefused));
        alice.links.tend(clock::now()).await;
        assert_eq!(states(&alice)[0], LinkState::Active, "settled");
        renew(&alice).await;
        assert!(states(&alice).contains(&LinkState::Offered), "afresh");
    });
}

/// Alice, who issued, and Bob, with a link that both have used.
pub(super) async fn linked(policy: crate::config::IncomingPolicy) -> (TestNode, TestNode) {
    let (alice, bob) = pair(policy).await;
    alice.links.request(bob.id, None).await.unwrap();
    bob.links.approve(&alice.id.to_string()).await.unwrap();
    deliver_offer(&alice, &bob).await;
    deliver_receipt(&bob, &alice).await;
    use_newest(&alice, &bob).await;
    (alice, bob)
}

/// A session over the newest link of the two, as both sides record it.
pub(super) async fn use_newest(alice: &TestNode, bob: &TestNode) {
    use_link(alice, bob, alice.links.for_peer(&bob.id).unwrap().link).await;
}

/// The same over any link of theirs.
pub(super) async fn use_link(alice: &TestNode, bob: &TestNode, link: LinkId) {
    for (node, peer, initiator) in [(alice, bob, true), (bob, alice, false)] {
        let opened = SessionOpened {
            link,
            peer: peer.id,
            initiator,
            counter: 1,
            mutual_link: [3; 16],
            peer_card_sequence: 0,
            peer_directory_head: Vec::new(),
            at: clock::now(),
        };
        node.links.session_opened(opened).await;
    }
}

pub(super) fn due() -> UnixMillis {
    clock::now().plus(HOUR * 17)
}

async fn renew(node: &TestNode) {
    node.links.renew_due(due()).await;
}

pub(super) fn reasons(node: &TestNode) -> Vec<EndReason> {
    node.links.all().into_iter().map(|link| link.reason).collect()
}

/// What a peer left that a directory brought, and of which it could say nothing there, it says in the next session: the offer comes there again
/// at once, and is answered.
#[test]
fn a_refusal_that_nobody_heard_is_told_in_the_next_session() {
    run(async {
        let (alice, bob) = linked(Open).await;
        renew(&alice).await;
        // Bob's side of the link is over, of which alice has not heard either.
        let over = bob.links.all().remove(0).ended(EndReason::Operator, clock::now()).unwrap();
        bob.store.put_links(vec![over]).await.unwrap();
        let bob = bob.restarted().await;
        for _ in 0..3 {
            deliver_offer(&alice, &bob).await;
        }
        assert!(bob.outbox.receipts.lock().unwrap().len() == 1, "of the first link alone: the network sees nothing");
        assert_eq!(states(&alice), [LinkState::Renewing, LinkState::Offered]);
        alice.reaches(&bob);
        // A session that either side opens; the offer's pause does not matter.
        use_newest(&alice, &bob).await;
        alice.links.send_offers(clock::now()).await;
        assert_eq!(reasons(&alice)[1], EndReason::PeerRefused);
        alice.links.tend(clock::now()).await;
        assert_eq!(states(&alice)[0], LinkState::Active, "free to be renewed afresh");
    });
}

#[test]
fn through_a_directory_and_under_a_policy_that_would_ask() {
    run(async {
        let (alice, bob) = linked(Ask).await;
        alice.links.renew_due(clock::now()).await;
        assert_eq!(states(&alice), [LinkState::Active], "not due yet");
        renew(&alice).await;
        renew(&alice).await;
        assert_eq!(states(&alice), [LinkState::Renewing, LinkState::Offered], "once");
        let old = alice.links.all()[0].clone();
        assert_eq!(alice.links.for_peer(&bob.id).unwrap().link, old.id(), "the new one is used after its receipt");
        assert_eq!(alice.links.all()[1].life(), old.life());
        deliver_offer(&alice, &bob).await;
        assert_eq!(states(&bob), [LinkState::Renewing, LinkState::Pending], "nobody was asked");
        deliver_receipt(&bob, &alice).await;
        assert!(alice.told.all().ends_with("added renewed"), "{}", alice.told.all());
        let new = alice.links.for_peer(&bob.id).unwrap();
        assert_eq!(new.link, bob.links.for_peer(&alice.id).unwrap().link);
        assert_eq!(new.keys.outgoing, bob.links.for_peer(&alice.id).unwrap().keys.incoming);
        assert_eq!(alice.links.all()[1].renews, Some(alice.links.all()[0].id()));
        let later = clock::now().plus(HOUR * 25);
        alice.links.tend(later).await;
        bob.links.tend(later).await;
        assert_eq!((states(&alice)[0], reasons(&alice)[0]), (LinkState::Expired, EndReason::Renewed));
        assert_eq!(states(&bob)[0], LinkState::Renewing, "alice may not have the receipt yet, for all Bob knows");
        use_newest(&alice, &bob).await;
        bob.links.tend(later).await;
        assert_eq!(
            (states(&bob), reasons(&bob)[0]),
            ([LinkState::Expired, LinkState::Active].into(), EndReason::Renewed)
        );
        assert!(!bob.told.all().contains("forgotten"), "the peer stays a peer");
        let (alice, bob) = (alice.restarted().await, bob.restarted().await);
        alice.links.tend(later).await;
        assert_eq!(alice.links.for_peer(&bob.id).unwrap().link, bob.links.for_peer(&alice.id).unwrap().link);
    });
}

#[test]
fn inside_a_session_and_through_a_directory_when_that_is_cut() {
    run(async {
        let (alice, bob) = linked(Open).await;
        let wire = alice.reaches(&bob);
        renew(&alice).await;
        alice.links.send_offers(clock::now()).await;
        assert_eq!(states(&alice), [LinkState::Renewing, LinkState::Pending]);
        assert_eq!(alice.outbox.offers.lock().unwrap().len(), 1, "the directory carried the first offer alone");
        use_newest(&alice, &bob).await;
        alice.links.tend(clock::now().plus(HOUR * 25)).await;
        *wire.cut.lock().unwrap() = Cut::Request;
        alice.links.renew_due(clock::now().plus(HOUR * 60)).await;
        alice.links.send_offers(clock::now()).await;
        assert_eq!(alice.outbox.offers.lock().unwrap().len(), 2);
    });
}

#[test]
fn a_lost_answer_is_asked_for_again_and_is_the_same() {
    run(async {
        let (alice, bob) = linked(Open).await;
        let wire = alice.reaches(&bob);
        *wire.cut.lock().unwrap() = Cut::Answer;
        renew(&alice).await;
        alice.links.send_offers(clock::now()).await;
        assert_eq!((states(&alice)[1], states(&bob)[1]), (LinkState::Offered, LinkState::Pending));
        // The directory brings the same bytes.
        deliver_offer(&alice, &bob).await;
        deliver_receipt(&bob, &alice).await;
        assert_eq!((states(&alice)[1], states(&bob).len()), (LinkState::Pending, 2));
    });
}

#[test]
fn crossing_renewals_leave_one() {
    run(async {
        let (alice, bob) = linked(Open).await;
        alice.links.renew_due(clock::now().plus(HOUR * 21)).await;
        bob.links.renew_due(clock::now().plus(HOUR * 21)).await;
        let lower = alice.links.all()[1].id();
        deliver_offer(&bob, &alice).await;
        assert_eq!(states(&alice)[1], LinkState::Offered, "alice has the lower id");
        deliver_offer(&alice, &bob).await;
        deliver_receipt(&bob, &alice).await;
        let live = |node: &TestNode, peer: &TestNode| node.links.for_peer(&peer.id).unwrap().link;
        assert_eq!((live(&alice, &bob), live(&bob, &alice)), (lower, lower));
        assert!(reasons(&bob).contains(&EndReason::CrossedOffer));
    });
}

#[test]
fn the_acceptor_renews_when_the_issuer_does_not() {
    run(async {
        let (alice, bob) = linked(AllowList).await;
        bob.links.renew_due(clock::now().plus(HOUR * 19)).await;
        assert_eq!(states(&bob), [LinkState::Active]);
        bob.links.renew_due(clock::now().plus(HOUR * 20).plus(MINUTE)).await;
        deliver_offer(&bob, &alice).await;
        assert_eq!(states(&alice), [LinkState::Renewing, LinkState::Pending], "no list is asked for a renewal");
    });
}

/// `kill -9` of alice's process, or of Bob's, between each two steps; each time it ends in a link that both use.
#[test]
fn a_crash_at_each_step_ends_in_a_usable_link() {
    for step in 0..7 {
        run(async move {
            let (mut alice, mut bob) = linked(Open).await;
            let old = alice.links.all()[0].clone();
            if step == 0 {
                // The key process issued; nothing of it was stored.
                lose_a_renewal(&alice, &bob, &old).await;
                alice = alice.restarted().await;
            }
            renew(&alice).await;
            if step == 1 {
                alice = alice.restarted().await;
            }
            round(&alice).await;
            let offer = alice.outbox.offer();
            if step == 2 {
                // Bob's key process accepted; nothing of it was stored.
                accept_and_forget(&bob, &alice, &offer).await;
                bob = bob.restarted().await;
                bob.links.tend(clock::now()).await;
            }
            bob.links.handle_offer(offer, alice.id, DIRECTORY).await;
            if step == 3 {
                bob = bob.restarted().await;
            }
            if step == 4 {
                // The receipt is lost with alice's process; she offers again.
                alice = alice.restarted().await;
                deliver_offer(&alice, &bob).await;
            }
            deliver_receipt(&bob, &alice).await;
            if step == 5 {
                (alice, bob) = (alice.restarted().await, bob.restarted().await);
            }
            use_newest(&alice, &bob).await;
            let later = clock::now().plus(HOUR * 25);
            alice.links.tend(later).await;
            if step == 6 {
                alice = alice.restarted().await;
            }
            bob.links.tend(later).await;
            alice.links.tend(later).await;
            let (one, other) = (alice.links.for_peer(&bob.id).unwrap(), bob.links.for_peer(&alice.id).unwrap());
            assert_eq!((one.link, &one.keys.outgoing), (other.link, &other.keys.incoming), "step {step}");
            assert_ne!(one.link, old.id());
            let live = |node: &TestNode| node.links.all().iter().filter(|link| !link.state.is_over()).count();
            assert_eq!((live(&alice), live(&bob)), (1, 1), "step {step}");
        });
    }
}

pub(super) async fn lose_a_renewal(alice: &TestNode, bob: &TestNode, old: &Link) {
    let found = alice.outbox.card(bob.id).await.unwrap();
    let terms = NewLink {
        peer: bob.id,
        card: found.card,
        directory: DIRECTORY,
        allowed: MethodSet::ALL,
        schedule: openred_proto::method::Schedule::Hourly,
        life: old.life(),
    };
    alice.vault().renew(old.row.clone().into(), terms).await.unwrap();
}

async fn accept_and_forget(bob: &TestNode, alice: &TestNode, offer: &bytes::Bytes) {
    let received = openred_proto::vault::ReceivedOffer {
        offer: offer.to_vec(),
        sender: alice.id,
        directory: DIRECTORY,
        allowed: MethodSet::ALL,
    };
    let row = bob.links.all()[0].row.clone();
    bob.vault().accept(&received, Some(row.into())).await.unwrap();
}

#[test]
fn a_link_that_ran_out_is_offered_anew_where_the_operator_said_yes() {
    run(async {
        let (alice, bob) = linked(Open).await;
        let long_after = clock::now().plus(HOUR * 28);
        // Bob is away: the renewal is never answered.
        renew(&alice).await;
        alice.links.tend(long_after).await;
        assert_eq!(states(&alice), [LinkState::Expired, LinkState::Expired]);
        assert_eq!(reasons(&alice), [EndReason::Life, EndReason::NoReceipt]);
        alice.links.reoffer(long_after).await;
        let anew = alice.links.all().into_iter().find(|link| link.state == LinkState::Offered).unwrap();
        assert_eq!((anew.peer(), anew.renews), (bob.id, None));
        alice.links.reoffer(long_after.plus(MINUTE)).await;
        assert_eq!(states(&alice).len(), 3, "once");
        alice.links.send_offers(clock::now()).await;
        bob.links.handle_offer(alice.outbox.offer(), alice.id, DIRECTORY).await;
        deliver_receipt(&bob, &alice).await;
        assert_eq!(alice.links.for_peer(&bob.id).unwrap().link, bob.links.for_peer(&alice.id).unwrap().link);
        // What the operator has ended is not.
        alice.links.revoke(anew.id()).await.unwrap();
        alice.links.tend(long_after.plus(HOUR * 60)).await;
        alice.links.reoffer(long_after.plus(HOUR * 60)).await;
        assert!(states(&alice).iter().all(|state| state.is_over()));
    });
}

#[test]
fn a_peer_that_stays_away_is_offered_again_while_its_link_is_remembered() {
    run(async {
        let (alice, _bob) = linked(Open).await;
        let mut later = clock::now();
        for round in 1..4 {
            later = later.plus(HOUR * 28);
            alice.links.tend(later).await;
            alice.links.reoffer(later).await;
            let waiting = alice.links.all().into_iter().filter(|link| link.state == LinkState::Offered).count();
            assert_eq!((waiting, states(&alice).len()), (1, round + 1));
        }
    });
}

#[test]
fn a_renewal_that_is_only_offered_ends_with_the_link_that_opens_it() {
    run(async {
        let (alice, bob) = linked(Open).await;
        let old = alice.links.all()[0].id();
        renew(&alice).await;
        bob.links.revoke(old).await.unwrap();
        alice.reaches(&bob);
        alice.links.sync(bob.id).await.unwrap();
        assert_eq!(reasons(&alice), [EndReason::PeerEnded, EndReason::NoReceipt]);
    });
    run(async {
        let (alice, _bob) = linked(Open).await;
        renew(&alice).await;
        let mut damaged = alice.links.all().remove(0);
        damaged.row[10] ^= 1;
        alice.store.put_links(vec![damaged]).await.unwrap();
        let alice = alice.restarted().await;
        assert_eq!(reasons(&alice), [EndReason::RowRefused, EndReason::NoReceipt]);
    });
}

#[test]
fn a_fresh_kept_card_spares_the_directory_at_the_first_attempt() {
    run(async {
        for keeps in [true, false] {
            let (alice, _bob) = linked(Open).await;
            alice.outbox.keeps_cards.store(keeps, Ordering::Relaxed);
            let before = alice.outbox.looked_up();
            renew(&alice).await;
            assert_eq!(states(&alice), [LinkState::Renewing, LinkState::Offered]);
            assert_eq!(alice.outbox.looked_up() - before, usize::from(!keeps));
            // What was taken amiss is not made of the same card again.
            let offered = alice.links.all().remove(1).ended(EndReason::PeerRefused, clock::now()).unwrap();
            alice.links.keep(vec![offered]).await.unwrap();
            alice.links.tend(clock::now()).await;
            renew(&alice).await;
            assert_eq!(alice.outbox.looked_up() - before, 1 + usize::from(!keeps));
        }
    });
}

#[test]
fn leaving_an_offer_that_waits_ends_nothing_else() {
    run(async {
        let (alice, bob) = linked(Ask).await;
        let mut offer = super::life::waiting(77, 1);
        let now = clock::now();
        offer.summary =
            LinkSummary { peer: alice.id, not_before: now, not_after: now.plus(HOUR * 24), ..offer.summary };
        bob.store.put_links(vec![offer.clone()]).await.unwrap();
        let bob = bob.restarted().await;
        bob.links.revoke(offer.id()).await.unwrap();
        assert_eq!(bob.links.state_of_link(&offer.id()), Some(LinkState::Revoked));
        assert!(bob.links.for_peer(&alice.id).is_some(), "the link lives");
    });
}

#[test]
fn revoking_ends_the_old_and_the_new() {
    run(async {
        let (alice, bob) = linked(Open).await;
        renew(&alice).await;
        deliver_offer(&alice, &bob).await;
        let named = bob.links.all()[1].id();
        bob.links.revoke(named).await.unwrap();
        assert_eq!(states(&bob), [LinkState::Revoked, LinkState::Revoked]);
        assert!(bob.links.for_peer(&alice.id).is_none());
        // The offer comes again: what it renews is over.
        bob.links.handle_offer(alice.outbox.offer(), alice.id, DIRECTORY).await;
        assert_eq!(states(&bob), [LinkState::Revoked, LinkState::Revoked]);
    });
}

#[test]
fn a_replayed_renewal_does_not_bring_back_what_is_over() {
    run(async {
        let (alice, bob) = linked(Open).await;
        renew(&alice).await;
        round(&alice).await;
        let first = alice.outbox.offer();
        bob.links.handle_offer(first.clone(), alice.id, DIRECTORY).await;
        deliver_receipt(&bob, &alice).await;
        use_newest(&alice, &bob).await;
        let later = clock::now().plus(HOUR * 40);
        alice.links.renew_due(later).await;
        round(&alice).await;
        bob.links.handle_offer(alice.outbox.offer(), alice.id, DIRECTORY).await;
        assert_eq!(states(&bob), [LinkState::Expired, LinkState::Renewing, LinkState::Pending]);
        let before = bob.links.all();
        let initial = alice.outbox.offers.lock().unwrap()[0].clone();
        for replayed in [first, initial] {
            bob.links.handle_offer(replayed, alice.id, DIRECTORY).await;
        }
        assert_eq!(bob.links.all(), before);
    });
}
