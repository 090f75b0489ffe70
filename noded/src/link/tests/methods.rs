//! Methods that are retired and allowed again: what may be decided, what becomes of links, and that decisions outlive a restart.

use openred_proto::id::MethodId;
use openred_proto::method::{Method, MethodSet, Place, Schedule};

use super::life::{NOW, accepted, offered, waiting};
use super::nodes::TestNode;
use super::renewing::linked;
use super::services::{deliver_offer, deliver_receipt, run, states};
use crate::clock;
use crate::config::IncomingPolicy::{Ask, Open};
use crate::link::LinkError;
use crate::link::methods::{BadDecision, EPOCH, Methods};
use crate::link::state::{EndReason, LinkState};

const TWO: MethodSet = MethodSet::EMPTY.with(Method::Alpha).with(Method::Beta);

#[test]
fn decisions_narrow_the_file_and_leave_one() {
    let methods = Methods::default().with(Method::Alpha, false, TWO, NOW).unwrap();
    assert_eq!(methods.allowed(TWO), MethodSet::EMPTY.with(Method::Beta));
    assert_eq!(methods.clone().with(Method::Beta, false, TWO, NOW), Err(BadDecision::Last));
    assert_eq!(methods.clone().with(Method::Gamma, true, TWO, NOW), Err(BadDecision::NotConfigured));
    assert_eq!(methods.clone().with(Method::Alpha, true, TWO, NOW).unwrap().allowed(TWO), TWO);
    let file_without_beta = MethodSet::EMPTY.with(Method::Alpha);
    assert_eq!(methods.clone().settled(file_without_beta, NOW).allowed(file_without_beta), file_without_beta);
    let chosen = methods.scheduled(Schedule::Seeded);
    assert_eq!(chosen.schedule(Schedule::Hourly), Schedule::Seeded);
    assert_eq!(Methods::default().schedule(Schedule::Daily), Schedule::Daily);
    assert_eq!(Methods::decode(&chosen.encode()), Some(chosen.clone()));
    for place in 0..3 {
        let mut damaged = chosen.encode();
        damaged[place] = 0xff;
        assert_eq!(Methods::decode(&damaged), None, "{place}");
    }
    assert_eq!(Methods::decode(&chosen.encode()[1..]), None);
}

#[test]
fn a_link_of_a_retired_method_has_an_epoch_to_be_renewed() {
    let methods = Methods::default().with(Method::Alpha, false, MethodSet::ALL, NOW).unwrap();
    let link = accepted(1, 2);
    assert_eq!(methods.ended(&link, NOW.plus(EPOCH / 2)), None);
    let ended = methods.ended(&link, NOW.plus(EPOCH)).unwrap();
    assert_eq!((ended.state, ended.reason), (LinkState::Revoked, EndReason::MethodRetired));
    assert!(methods.ended(&offered(1, 2), NOW).is_some(), "nobody uses it yet");
    assert_eq!(methods.ended(&waiting(1, 2), NOW.plus(EPOCH)), None);
    let again = methods.with(Method::Alpha, true, MethodSet::ALL, NOW).unwrap();
    assert_eq!(again.ended(&link, NOW.plus(EPOCH * 9)), None);
}

#[test]
fn a_modules_method_is_off_until_it_is_allowed_and_retired_with_its_module() {
    let [first, second] = [1, 2].map(|number| Place::from_number(number).unwrap());
    let (omega, psi) = (MethodId::from_bytes([1; 16]), MethodId::from_bytes([2; 16]));
    let heard = Methods::default().heard(&[(first, omega, true), (second, psi, true)], NOW);
    assert_eq!(heard.allowed(TWO), TWO, "off until it is allowed");
    let allowed = heard.with_registered(first, true, NOW);
    assert_eq!(allowed.allowed(TWO), TWO.with_place(first));
    assert_eq!(Methods::decode(&allowed.encode()), Some(allowed.clone()));
    let mut link = accepted(1, 2);
    link.summary.registered = Some(first);
    assert!(link.summary.is_in(allowed.allowed(TWO)));
    assert_eq!(allowed.ended(&link, NOW.plus(EPOCH * 9)), None);
    // Its module is gone: the link has an epoch to be renewed. It comes back: his word still counts.
    let gone = allowed.clone().heard(&[(first, omega, false), (second, psi, true)], NOW);
    assert_eq!(gone.allowed(TWO), TWO);
    assert_eq!(gone.ended(&link, NOW.plus(EPOCH / 2)), None);
    assert_eq!(gone.ended(&link, NOW.plus(EPOCH)).unwrap().reason, EndReason::MethodRetired);
    let back = gone.clone().heard(&[(first, omega, true)], NOW);
    assert_eq!(back.allowed(TWO), TWO.with_place(first));
    // Another method at its place is another word.
    let other = gone.heard(&[(first, psi, true)], NOW);
    assert_eq!((other.allowed(TWO), other.is_allowed(first)), (TWO, false));
    // What was kept before there were such methods is read.
    let before = Methods::default().scheduled(Schedule::Daily);
    let old = [&[1], &before.encode()[1..3 + 8 * Method::ALL.len()]].concat();
    assert_eq!(Methods::decode(&old), Some(before));
}

#[test]
fn retiring_a_method_renews_its_links_from_either_side() {
    run(async {
        for acceptor in [false, true] {
            let (alice, bob) = linked(Open).await;
            let method = alice.links.all()[0].summary.method;
            let (retiring, other) = if acceptor { (&bob, &alice) } else { (&alice, &bob) };
            retiring.links.decide_method(method, false).await.unwrap();
            retiring.links.renew_due(clock::now()).await;
            deliver_offer(retiring, other).await;
            deliver_receipt(other, retiring).await;
            assert_eq!(states(retiring)[1], LinkState::Pending);
            assert_ne!(retiring.links.all()[1].summary.method, method);
            retiring.links.tend(clock::now()).await;
            assert_eq!((states(retiring)[0], retiring.links.all()[0].reason), (LinkState::Expired, EndReason::Renewed));
        }
    });
}

#[test]
fn what_cannot_be_renewed_ends_after_an_epoch_and_is_offered_anew() {
    run(async {
        let (alice, bob) = linked(Open).await;
        let method = alice.links.all()[0].summary.method;
        alice.links.decide_method(method, false).await.unwrap();
        alice.links.tend(clock::now()).await;
        assert_eq!(states(&alice), [LinkState::Active]);
        let later = clock::now().plus(EPOCH).plus(EPOCH);
        alice.links.tend(later).await;
        assert_eq!(alice.links.all()[0].reason, EndReason::MethodRetired);
        alice.links.reoffer(later).await;
        let anew = alice.links.all().into_iter().find(|link| link.state == LinkState::Offered).unwrap();
        assert!(anew.peer() == bob.id && anew.summary.method != method);
    });
}

/// Whether Bob offers alice another link after the method of theirs was retired and could not be renewed.
async fn offers_anew(alice: &TestNode, bob: &TestNode) -> bool {
    bob.links.decide_method(bob.links.all()[0].summary.method, false).await.unwrap();
    let later = clock::now().plus(EPOCH).plus(EPOCH);
    bob.links.tend(later).await;
    assert_eq!(bob.links.all()[0].reason, EndReason::MethodRetired);
    bob.links.reoffer(later).await;
    bob.links.all().iter().any(|link| link.state == LinkState::Offered && link.peer() == alice.id)
}

#[test]
fn whom_the_policy_admits_is_offered_anew_without_the_operators_word() {
    run(async {
        let (alice, bob) = super::nodes::pair(Open).await;
        alice.links.request(bob.id, None).await.unwrap();
        deliver_offer(&alice, &bob).await;
        assert_eq!(bob.store.word(alice.id).await.unwrap(), crate::store::Word::None);
        assert!(offers_anew(&alice, &bob).await);
    });
    run(async {
        let (alice, bob) = linked(Ask).await;
        bob.store.disapprove(alice.id).await.unwrap();
        assert!(!offers_anew(&alice, &bob).await, "it would have to be asked about");
    });
}

#[test]
fn an_offer_with_a_method_that_is_not_allowed_is_left_and_decisions_last() {
    run(async {
        let (alice, bob) = super::nodes::pair(Open).await;
        let offer = alice.links.request(bob.id, None).await.unwrap();
        let method = offer.summary.method;
        bob.links.decide_method(method, false).await.unwrap();
        bob.links.decide_schedule(Schedule::Daily).await.unwrap();
        deliver_offer(&alice, &bob).await;
        assert!(bob.links.all().is_empty() && bob.outbox.receipts.lock().unwrap().is_empty());
        let bob = bob.restarted().await;
        assert!(!bob.links.allowed_methods().contains(method));
        assert_eq!(bob.links.schedule(), Schedule::Daily);
        for other in Method::ALL.into_iter().filter(|other| *other != method).take(2) {
            bob.links.decide_method(other, false).await.unwrap();
        }
        let last = bob.links.allowed_methods().iter().next().unwrap();
        let refused = bob.links.decide_method(last, false).await;
        assert_eq!(refused, Err(LinkError::Method(BadDecision::Last)));
    });
}
