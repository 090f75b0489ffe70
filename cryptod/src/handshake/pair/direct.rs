//! Without a link: who is met is who was meant, somebody between is seen in the words, and neither mode opens the other's messages.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::exchange::{CLEAN, assert_match};
use super::*;

#[test]
fn every_suite_opens_a_session_between_strangers() {
    for method in Method::ALL {
        let mut pair = Pair::direct(method, CLEAN, 0);
        pair.run(1);
        let ([one], [other]) = (&pair.begun[..], &pair.answered[..]) else { panic!("{method}: {:?}", pair.refusals) };
        assert_match(one, other);
        assert_eq!((one.peer, other.peer), (pair.responder.id(), pair.initiator.id()), "each proves who it is");
        assert_eq!((one.peer_card_sequence, other.peer_card_sequence), (22, 11));
        assert!(one.link.is_none() && other.link.is_none());
    }
}

/// Runs one handshake; the first side's result, and the second's.
fn meet(
    one: &mut Engine,
    meant: &Link,
    other: &mut Engine,
    met: &Link,
) -> (Result<Established, Refusal>, Option<Established>) {
    let (exchange, request) = one.begin(NOON, meant).unwrap();
    let answered = other.answer(NOON, met, &request).unwrap();
    match one.handshakes.finish(NOON, exchange, &answered.message, &[]) {
        Ok((finalize, begun)) => (Ok(begun), Some(other.handshakes.complete(NOON, answered.id, &finalize).unwrap())),
        Err(refused) => (Err(refused), None),
    }
}

#[test]
fn whoever_is_not_the_one_that_was_meant_gets_no_finalize() {
    let (mut alice, bob, mut mallory) = (Engine::new(1), Engine::new(2), Engine::new(66));
    let meant = Link::none(&alice, &bob, Method::Alpha);
    let met = Link::none(&alice, &mallory, Method::Alpha);
    let (begun, completed) = meet(&mut alice, &meant, &mut mallory, &met);
    assert_eq!(begun, Err(Refusal::WrongPeer));
    assert!(completed.is_none());
    let (begun, completed) = meet(&mut alice, &met, &mut mallory, &met);
    assert_eq!((begun.unwrap().peer, completed.unwrap().peer), (mallory.id(), alice.id()), "the control");
}

/// Mallory answers alice as himself and calls on bob as himself: two handshakes, and no two sides read the same words.
#[test]
fn somebody_between_is_seen_in_the_words() {
    let (mut alice, mut bob, mut mallory) = (Engine::new(1), Engine::new(2), Engine::new(66));
    let near = Link::none(&alice, &mallory, Method::Gamma);
    let far = Link::none(&mallory, &bob, Method::Gamma);
    let (at_alice, _) = meet(&mut alice, &near, &mut mallory, &near);
    let (_, at_bob) = meet(&mut mallory, &far, &mut bob, &far);
    let (at_alice, at_bob) = (at_alice.unwrap(), at_bob.unwrap());
    assert_ne!(at_alice.mutual_link, at_bob.mutual_link);
    assert_eq!((at_alice.peer, at_bob.peer), (mallory.id(), mallory.id()));
}

#[test]
fn the_two_modes_never_cross() {
    let (mut alice, mut bob) = (Engine::new(1), Engine::new(2));
    for method in Method::ALL {
        let linked = Link::between(&alice, &bob, method, 3);
        let direct = Link { direct: true, ..linked.clone() };
        let (_, over_link) = alice.begin(NOON, &linked).unwrap();
        let (_, without) = alice.begin(NOON, &direct).unwrap();
        assert_eq!(bob.answer(NOON, &direct, &over_link).unwrap_err(), Refusal::NotAuthentic);
        assert_eq!(bob.answer(NOON, &linked, &without).unwrap_err(), Refusal::NotAuthentic);
        for other in Method::ALL.into_iter().filter(|other| *other != method) {
            let other = Link { method: other, ..direct.clone() };
            assert_eq!(bob.answer(NOON, &other, &without).unwrap_err(), Refusal::NotAuthentic, "another suite");
        }
        alice.handshakes = Handshakes::new();
    }
}

#[test]
fn a_certificate_of_another_suite_key_or_day_is_refused_here_too() {
    let shown = |change: &dyn Fn(&Engine) -> Vec<u8>| {
        let (mut alice, mut bob) = (Engine::new(1), Engine::new(2));
        let link = Link::none(&alice, &bob, Method::Beta);
        let certificate = change(&alice);
        alice.statics.get_mut(&Method::Beta).unwrap().1 = certificate;
        let (exchange, request) = alice.begin(NOON, &link).unwrap();
        let answered = bob.answer(NOON, &link, &request).unwrap();
        let (finalize, _) = alice.handshakes.finish(NOON, exchange, &answered.message, &[]).unwrap();
        bob.handshakes.complete(NOON, answered.id, &finalize).map(drop)
    };
    let key = |alice: &Engine| public(alice.statics[&Method::Beta].0.expose());
    assert_eq!(shown(&|alice| alice.certify(Method::Beta, key(alice), NOON)), Ok(()));
    assert_eq!(shown(&|alice| alice.certify(Method::Alpha, key(alice), NOON)), Err(Refusal::WrongSuite));
    assert_eq!(shown(&|alice| alice.certify(Method::Beta, [9; 32], NOON)), Err(Refusal::WrongKey));
    let long_ago = NOON.minus(Duration::from_secs(4 * 86_400));
    assert!(matches!(shown(&|alice| alice.certify(Method::Beta, key(alice), long_ago)), Err(Refusal::Malformed(_))));
}
