//! What must be refused, and with which reason: reflection, swapped roles, crossed links, other peers, old certificates.
#![allow(clippy::unwrap_used, reason = "tests")]

use openred_proto::limits::CLOCK_GRACE;

use super::*;

fn pair() -> (Engine, Engine, Link) {
    let (alice, bob) = (Engine::new(1), Engine::new(2));
    let link = Link::between(&alice, &bob, Method::Beta, 3);
    (alice, bob, link)
}

#[test]
fn a_reflected_request_is_refused_by_its_sender() {
    for method in Method::ALL {
        let (mut alice, bob) = (Engine::new(1), Engine::new(2));
        let link = Link::between(&alice, &bob, method, 3);
        let (_, request) = alice.begin(NOON, &link).unwrap();
        assert_eq!(alice.answer(NOON, &link, &request).unwrap_err(), Refusal::NotAuthentic);
    }
}

#[test]
fn messages_in_the_other_role_are_refused() {
    let (mut alice, mut bob, link) = pair();
    let (exchange, request) = alice.begin(NOON, &link).unwrap();
    let (own_exchange, own_request) = bob.begin(NOON, &link).unwrap();
    let answered = bob.answer(NOON, &link, &request).unwrap();
    // REQUEST where VERIFY is expected, VERIFY where FINALIZE or REQUEST is.
    assert_eq!(alice.handshakes.finish(NOON, exchange, &own_request, &[]), Err(Refusal::NotAuthentic));
    assert_eq!(bob.handshakes.finish(NOON, own_exchange, &answered.message, &[]), Err(Refusal::NotAuthentic));
    assert_eq!(bob.handshakes.complete(NOON, answered.id, &answered.message), Err(Refusal::NotAuthentic));
    assert_eq!(alice.answer(NOON, &link, &answered.message).unwrap_err(), Refusal::NotAuthentic);
}

#[test]
fn a_failed_machine_can_only_repeat_its_failure() {
    let (mut alice, mut bob, link) = pair();
    let (exchange, request) = alice.begin(NOON, &link).unwrap();
    let answered = bob.answer(NOON, &link, &request).unwrap();
    assert_eq!(alice.handshakes.finish(NOON, exchange, b"junk", &[]), Err(Refusal::NotAuthentic));
    assert_eq!(alice.handshakes.finish(NOON, exchange, &answered.message, &[]), Err(Refusal::NotWaiting));
    assert_eq!(bob.handshakes.complete(NOON, answered.id, b"junk"), Err(Refusal::NotAuthentic));
    assert_eq!(bob.handshakes.complete(NOON, answered.id, b"junk"), Err(Refusal::NotWaiting));
}

#[test]
fn a_replayed_or_older_request_is_refused() {
    let (mut alice, mut bob, link) = pair();
    let (_, older) = alice.begin(NOON, &link).unwrap();
    let (_, newer) = alice.begin(NOON, &link).unwrap();
    bob.answer(NOON, &link, &newer).unwrap();
    assert_eq!(bob.answer(NOON, &link, &newer).unwrap_err(), Refusal::Replayed);
    assert_eq!(bob.answer(NOON, &link, &older).unwrap_err(), Refusal::Replayed);
}

#[test]
fn two_links_never_cross() {
    let (mut alice, mut bob, link) = pair();
    let other_id = Link { id: LinkId::from_bytes([4; 16]), ..link.clone() };
    let other_epoch = Link { epoch: link.epoch + 1, ..link.clone() };
    let other_base = Link { base: [4; 32], ..link.clone() };
    let other_method = Link { method: Method::Delta, ..link.clone() };
    for other in [other_id, other_epoch, other_base, other_method] {
        let (exchange, request) = alice.begin(NOON, &link).unwrap();
        let (other_exchange, other_request) = alice.begin(NOON, &other).unwrap();
        assert_eq!(bob.answer(NOON, &other, &request).unwrap_err(), Refusal::NotAuthentic);
        let here = bob.answer(NOON, &link, &request).unwrap();
        let there = bob.answer(NOON, &other, &other_request);
        let Ok(there) = there else { panic!("a link of its own works: {there:?}") };
        assert_eq!(alice.handshakes.finish(NOON, exchange, &there.message, &[]), Err(Refusal::NotAuthentic));
        assert_eq!(alice.handshakes.finish(NOON, other_exchange, &here.message, &[]), Err(Refusal::NotAuthentic));
        bob.handshakes = Handshakes::new();
    }
}

/// Two handshakes of one link at once: the second one's FINALIZE does not open the first.
#[test]
fn two_handshakes_of_one_link_never_cross() {
    let (mut alice, mut bob, link) = pair();
    let mut run = || {
        let (exchange, request) = alice.begin(NOON, &link).unwrap();
        let answered = bob.answer(NOON, &link, &request).unwrap();
        let (finalize, _) = alice.handshakes.finish(NOON, exchange, &answered.message, &[]).unwrap();
        (answered.id, finalize)
    };
    let ((first, _), (_, second_finalize)) = (run(), run());
    assert_eq!(bob.handshakes.complete(NOON, first, &second_finalize), Err(Refusal::NotAuthentic));
}

/// Mallory holds the link's secret, and his own valid identity: not the other party all the same.
#[test]
fn a_certified_stranger_with_the_link_secret_is_the_wrong_peer() {
    let (mut alice, mut bob, link) = pair();
    let mallory = Engine::new(66);
    alice.statics = Engine::new(66).statics;
    let (exchange, request) = alice.begin(NOON, &link).unwrap();
    let answered = bob.answer(NOON, &link, &request).unwrap();
    let (finalize, _) = alice.handshakes.finish(NOON, exchange, &answered.message, &[]).unwrap();
    assert_eq!(bob.handshakes.complete(NOON, answered.id, &finalize), Err(Refusal::WrongPeer));

    let (mut alice, mut bob, link) = pair();
    bob.statics = mallory.statics;
    let (exchange, request) = alice.begin(NOON, &link).unwrap();
    let answered = bob.answer(NOON, &link, &request).unwrap();
    assert_eq!(alice.handshakes.finish(NOON, exchange, &answered.message, &[]), Err(Refusal::WrongPeer));
}

/// Runs a handshake in which bob shows `certificate` instead of his own, at `now`.
fn with_certificate(now: UnixMillis, certificate: impl Fn(&Engine) -> Vec<u8>) -> Result<(), Refusal> {
    let (mut alice, mut bob, link) = pair();
    let shown = certificate(&bob);
    bob.statics.get_mut(&link.method).unwrap().1 = shown;
    let (exchange, request) = alice.begin(now, &link).unwrap();
    let answered = bob.answer(now, &link, &request).unwrap();
    alice.handshakes.finish(now, exchange, &answered.message, &[]).map(drop)
}

#[test]
fn certificates_are_held_to_window_suite_key_and_signer() {
    let key = |bob: &Engine| public(bob.statics[&Method::Beta].0.expose());
    let own = |bob: &Engine| bob.certify(Method::Beta, key(bob), NOON);
    assert_eq!(with_certificate(NOON, own), Ok(()));
    // PROTOCOL 1: three hours of grace at both ends; the certificate itself is backdated by three more.
    let last = NOON.plus(STATIC_LIFE).plus(CLOCK_GRACE);
    assert_eq!(with_certificate(last, own), Ok(()));
    let expired = WireError::OutOfTime { what: "static certificate", early: false };
    assert_eq!(with_certificate(UnixMillis(last.0 + 1), own), Err(Refusal::Malformed(expired)));
    let first = NOON.minus(STATIC_BACKDATE).minus(CLOCK_GRACE);
    assert_eq!(with_certificate(first, own), Ok(()));
    let early = WireError::OutOfTime { what: "static certificate", early: true };
    assert_eq!(with_certificate(UnixMillis(first.0 - 1), own), Err(Refusal::Malformed(early)));

    let other_suite = |bob: &Engine| bob.certify(Method::Alpha, key(bob), NOON);
    assert_eq!(with_certificate(NOON, other_suite), Err(Refusal::WrongSuite));
    let other_key = |bob: &Engine| bob.certify(Method::Beta, [9; 32], NOON);
    assert_eq!(with_certificate(NOON, other_key), Err(Refusal::WrongKey));
    let forged = |bob: &Engine| {
        let mut bytes = own(bob);
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        bytes
    };
    let bad_signature = WireError::BadSignature { what: "static certificate" };
    assert_eq!(with_certificate(NOON, forged), Err(Refusal::Malformed(bad_signature)));
    let for_other = |bob: &Engine| {
        // Mallory's signature over a certificate that names bob.
        let mallory = Engine::new(66);
        let (not_before, not_after) = (NOON, NOON.plus(STATIC_LIFE));
        let named = StaticCertificate { node_id: bob.id(), method: Method::Beta, key: key(bob), not_before, not_after };
        let signature = mallory.identity.sign(&signed_bytes(Label::Static, &named.encode()));
        statement::encode(&named.encode(), &mallory.id(), &signature.to_bytes())
    };
    let wrong_signer = WireError::WrongSigner { what: "static certificate" };
    assert_eq!(with_certificate(NOON, for_other), Err(Refusal::Malformed(wrong_signer)));
    let none = |_: &Engine| Vec::new();
    assert!(matches!(with_certificate(NOON, none), Err(Refusal::Malformed(_))));
}
