//! The responder's memory under repetition, junk, loss and time, without a key process: what would be asked is counted.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use openred_proto::checked::handshake::{HandshakeFinalize, HandshakeRequest};
use openred_proto::id::{HandshakeId, LinkId, NodeId, UnixMillis};
use openred_proto::limits::{HALF_OPEN_PER_LINK, REQUEST_REPEAT, REQUESTS_REMEMBERED, TAG_AHEAD, TAG_BEHIND};
use openred_proto::method::Method;
use openred_proto::secret::Secret;
use openred_proto::vault::{LinkKeys, RequestKeys};

use super::attempts::Attempts;
use super::cookie::{LoadBounds, Source};
use super::half_open::Finalize;
use super::request;
use super::responder::{Answering, Arrival, Request, Responder};
use super::{HandshakeRefusal, keeps_initiators_role};
use crate::p2p::ports::LinkHandle;

pub(crate) const ALICE: NodeId = NodeId::from_bytes([1; 32]);
pub(crate) const BOB: NodeId = NodeId::from_bytes([2; 32]);
const SOURCE: Source = Source::Network(IpAddr::V4(Ipv4Addr::LOCALHOST));

pub(crate) fn request_keys(seed: u8) -> RequestKeys {
    RequestKeys { tag: Secret::new([seed; 32]), mac1: Secret::new([seed + 1; 32]) }
}

/// Bob's handle of a link with alice.
pub(crate) fn handle(link: u8, incoming_counter: u64) -> Arc<LinkHandle> {
    Arc::new(LinkHandle {
        link: LinkId::from_bytes([link; 16]),
        peer: ALICE,
        method: Method::Alpha,
        row: Bytes::from_static(b"row"),
        keys: LinkKeys { outgoing: request_keys(100), incoming: request_keys(link * 4) },
        outgoing_counter: 0,
        incoming_counter,
        not_after: UnixMillis(u64::MAX),
    })
}

/// What alice sends over that link.
pub(crate) fn from_alice(link: u8, counter: u64, noise: &[u8]) -> HandshakeRequest {
    request::build(&request_keys(link * 4), &ALICE, &BOB, counter, noise)
}

pub(crate) fn bob(links: &[(u8, u64)]) -> Responder {
    let mut responder = Responder::new(BOB, LoadBounds::default());
    for (link, counter) in links {
        assert!(responder.tags.insert(handle(*link, *counter)));
    }
    responder
}

/// From an address that nobody asks about: load is none of these tests' business.
pub(crate) fn look(
    responder: &mut Responder,
    request: &HandshakeRequest,
    now: Instant,
) -> Result<Request, HandshakeRefusal> {
    let fresh = || panic!("nobody is asked for a cookie");
    responder.handle_request(request, Arrival { source: SOURCE, now, fresh })
}

pub(crate) fn ask(responder: &mut Responder, request: &HandshakeRequest, now: Instant) -> Option<Answering> {
    match look(responder, request, now) {
        Ok(Request::Ask(answering)) => Some(answering),
        _ => None,
    }
}

/// One whole handshake; true when it opened a session.
pub(crate) fn complete(responder: &mut Responder, request: &HandshakeRequest, id: u8, now: Instant) -> bool {
    let Some(answering) = ask(responder, request, now) else { return false };
    let handshake = HandshakeId::from_bytes([id; 16]);
    responder.answered(answering, handshake, &Bytes::from_static(b"verify"), now);
    let finalize = HandshakeFinalize { handshake, noise: vec![id] };
    let Ok(Finalize::Ask(handle, counter)) = responder.handle_finalize(&finalize, now) else { return false };
    responder.completed(&handshake, &handle.link, counter, &Bytes::from_static(b"accept"));
    true
}

#[test]
fn every_bit_of_a_request_is_covered() {
    let now = Instant::now();
    let mut responder = bob(&[(1, 0)]);
    let good = from_alice(1, 1, &[7; 40]);
    for bit in 0..16 * 8 {
        let mut changed = good.clone();
        changed.tag[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(look(&mut responder, &changed, now).unwrap_err(), HandshakeRefusal::UnknownTag);
        let mut changed = good.clone();
        changed.mac1[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(look(&mut responder, &changed, now).unwrap_err(), HandshakeRefusal::WrongMac);
    }
    for bit in 0..40 * 8 {
        let mut changed = good.clone();
        changed.noise[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(look(&mut responder, &changed, now).unwrap_err(), HandshakeRefusal::WrongMac);
    }
    assert!(ask(&mut responder, &good, now).is_some(), "junk spent nothing");
}

#[test]
fn two_links_never_cross_and_nothing_reflects() {
    let now = Instant::now();
    let mut responder = bob(&[(1, 0), (2, 0)]);
    let one = from_alice(1, 1, b"noise");
    let two = from_alice(2, 1, b"noise");
    assert_ne!(one.tag, two.tag);
    let crossed = HandshakeRequest { tag: one.tag, ..two };
    assert_eq!(look(&mut responder, &crossed, now).unwrap_err(), HandshakeRefusal::WrongMac);
    let reflected = request::build(&request_keys(4), &BOB, &ALICE, 1, b"noise");
    assert_eq!(look(&mut responder, &reflected, now).unwrap_err(), HandshakeRefusal::UnknownTag);
}

#[test]
fn links_that_are_being_renewed_have_room_beside_those_in_their_place() {
    let mut responder = Responder::new(BOB, LoadBounds::default());
    for number in 0..=u64::try_from(openred_proto::limits::LINKS).unwrap() {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&number.to_be_bytes());
        // The highest counter has the fewest tags.
        let one = Arc::into_inner(handle(1, u64::MAX)).unwrap();
        let inserted = responder.tags.insert(Arc::new(LinkHandle { link: LinkId::from_bytes(id), ..one }));
        assert!(inserted, "{number}");
    }
}

#[test]
fn tags_are_expected_from_sixteen_behind_to_thirty_one_ahead() {
    let now = Instant::now();
    let accepted = 100;
    for (counter, expected) in [
        (accepted - TAG_BEHIND - 1, false),
        (accepted - TAG_BEHIND, true),
        (accepted, true),
        (accepted + TAG_AHEAD, true),
        (accepted + TAG_AHEAD + 1, false),
    ] {
        let mut responder = bob(&[(1, accepted)]);
        assert_eq!(ask(&mut responder, &from_alice(1, counter, b"n"), now).is_some(), expected, "{counter}");
    }
    let mut responder = bob(&[(1, 0)]);
    assert!(complete(&mut responder, &from_alice(1, 31, b"n"), 1, now), "the window moves to 31");
    assert!(ask(&mut responder, &from_alice(1, 62, b"n"), now).is_some());
    assert!(ask(&mut responder, &from_alice(1, 14, b"n"), now).is_none());
    responder.tags.remove(&LinkId::from_bytes([1; 16]));
    assert!(ask(&mut responder, &from_alice(1, 40, b"n"), now).is_none(), "the link is gone");
    assert!(responder.tags.links().is_empty());
}

#[test]
fn identical_requests_get_the_same_answer_for_ten_seconds_and_then_nothing() {
    let now = Instant::now();
    let mut responder = bob(&[(1, 0)]);
    let request = from_alice(1, 1, b"n");
    let answering = ask(&mut responder, &request, now).unwrap();
    assert!(matches!(look(&mut responder, &request, now), Ok(Request::Wait)), "it will be the same answer");
    let late = look(&mut responder, &request, now + Duration::from_secs(10));
    assert_eq!(late.unwrap_err(), HandshakeRefusal::Repeated, "nobody waits for ever");
    responder.answered(answering, HandshakeId::from_bytes([1; 16]), &Bytes::from_static(b"verify"), now);

    let mut with_cookie = request.clone();
    with_cookie.cookie = Some([1; 16]);
    for same in [&request, &with_cookie] {
        match look(&mut responder, same, now + Duration::from_millis(9_999)).unwrap() {
            Request::Repeat(verify) => assert_eq!(verify, "verify"),
            other => panic!("{other:?}"),
        }
        let late = now + Duration::from_secs(10);
        assert_eq!(look(&mut responder, same, late).unwrap_err(), HandshakeRefusal::Repeated);
    }
}

#[test]
fn a_request_that_was_refused_is_not_asked_again_but_one_that_never_arrived_is() {
    let now = Instant::now();
    let mut responder = bob(&[(1, 0)]);
    let request = from_alice(1, 1, b"n");
    let answering = ask(&mut responder, &request, now).unwrap();
    responder.refused(&answering, false);
    let answering = ask(&mut responder, &request, now).expect("the key process was away; it may come again");
    responder.refused(&answering, true);
    assert_eq!(look(&mut responder, &request, now).unwrap_err(), HandshakeRefusal::Repeated);
}

#[test]
fn half_open_handshakes_are_bounded_and_expire() {
    let now = Instant::now();
    let mut responder = bob(&[(1, 0), (2, 0)]);
    for index in 0..HALF_OPEN_PER_LINK as u8 {
        let answering = ask(&mut responder, &from_alice(1, 1 + u64::from(index), b"n"), now).unwrap();
        if index > 0 {
            let verify = Bytes::from_static(b"verify");
            responder.answered(answering, HandshakeId::from_bytes([index; 16]), &verify, now);
        }
    }
    let fifth = from_alice(1, 9, b"n");
    assert_eq!(look(&mut responder, &fifth, now).unwrap_err(), HandshakeRefusal::TooManyHalfOpen);
    assert!(ask(&mut responder, &from_alice(2, 1, b"n"), now).is_some(), "another link has its own");
    assert!(ask(&mut responder, &fifth, now + Duration::from_secs(10)).is_some(), "they expired");
    let late = HandshakeFinalize { handshake: HandshakeId::from_bytes([1; 16]), noise: vec![1] };
    let refusal = responder.handle_finalize(&late, now + Duration::from_secs(10)).unwrap_err();
    assert_eq!(refusal, HandshakeRefusal::NotHalfOpen);
}

#[test]
fn a_repeated_finalize_gets_the_same_accept_and_a_changed_one_nothing() {
    let now = Instant::now();
    let mut responder = bob(&[(1, 0)]);
    assert!(complete(&mut responder, &from_alice(1, 1, b"n"), 5, now));
    let mut finalize = HandshakeFinalize { handshake: HandshakeId::from_bytes([5; 16]), noise: vec![5] };
    match responder.handle_finalize(&finalize, now).unwrap() {
        Finalize::Repeat(accept) => assert_eq!(accept, "accept"),
        other => panic!("asked twice: {other:?}"),
    }
    finalize.noise = vec![6];
    assert_eq!(responder.handle_finalize(&finalize, now).unwrap_err(), HandshakeRefusal::NotHalfOpen);
    finalize.handshake = HandshakeId::from_bytes([6; 16]);
    assert_eq!(responder.handle_finalize(&finalize, now).unwrap_err(), HandshakeRefusal::NotHalfOpen);

    let answering = ask(&mut responder, &from_alice(1, 2, b"n"), now).unwrap();
    let handshake = HandshakeId::from_bytes([7; 16]);
    responder.answered(answering, handshake, &Bytes::from_static(b"verify"), now);
    let finalize = HandshakeFinalize { handshake, noise: vec![7] };
    assert!(matches!(responder.handle_finalize(&finalize, now), Ok(Finalize::Ask(..))));
    assert!(matches!(responder.handle_finalize(&finalize, now), Ok(Finalize::Wait)), "is being completed");
    let other = HandshakeFinalize { handshake, noise: vec![8] };
    assert!(responder.handle_finalize(&other, now).is_err(), "with other bytes");
    responder.failed(&handshake);
    assert!(responder.handle_finalize(&finalize, now).is_err(), "was refused");
}

/// PROTOCOL 8: 200 failed attempts, then success; and the memory of REQUESTs stays bounded meanwhile.
#[test]
fn two_hundred_failed_attempts_then_success() {
    let now = Instant::now();
    for lost_at_alice in [false, true] {
        let (mut responder, mut attempts) = (bob(&[(1, 0)]), Attempts::default());
        let link = LinkId::from_bytes([1; 16]);
        attempts.expect(link);
        for attempt in 0..200_u64 {
            let counter = attempts.next(link, 0);
            let at = now + Duration::from_secs(attempt * 10);
            let request = from_alice(1, counter, &attempt.to_be_bytes());
            match look(&mut responder, &request, at).unwrap() {
                // Either the key process refuses it, or all of it is lost on the way back to alice.
                Request::Ask(answering) if lost_at_alice => {
                    let id = HandshakeId::from_bytes([attempt as u8; 16]);
                    responder.answered(answering, id, &Bytes::from_static(b"verify"), at);
                }
                Request::Ask(answering) => responder.refused(&answering, true),
                other => panic!("each attempt is new: {other:?}"),
            }
        }
        let counter = attempts.next(link, 0);
        let later = now + Duration::from_secs(2010);
        assert!(complete(&mut responder, &from_alice(1, counter, b"at last"), 250, later));
        const { assert!(REQUESTS_REMEMBERED < 200) };
    }
}

/// A link over which session follows session: each answer is kept for as long as it is given again.
#[test]
fn answers_are_kept_no_longer_than_they_are_given() {
    let begun = Instant::now();
    let mut responder = bob(&[(1, 0)]);
    let mut at = begun;
    for number in 1..=100_u8 {
        at = begun + Duration::from_secs(u64::from(number));
        assert!(complete(&mut responder, &from_alice(1, u64::from(number), b"n"), number, at));
        let [half_open, verifies, accepts] = responder.kept();
        assert!(half_open == 0 && verifies <= 10 && accepts <= 10, "{number}: {:?}", responder.kept());
    }
    let first = look(&mut responder, &from_alice(1, 85, b"n"), at);
    assert_eq!(first.unwrap_err(), HandshakeRefusal::Repeated, "that it came is remembered for longer");
    assert!(matches!(look(&mut responder, &from_alice(1, 100, b"n"), at), Ok(Request::Repeat(_))));
    responder.sweep(at + REQUEST_REPEAT);
    assert_eq!(responder.kept(), [0, 0, 0]);
}

/// A session whose ACCEPT was lost: bob counts it, alice does not; they still meet, again and again.
#[test]
fn lost_accepts_do_not_part_the_counters() {
    let now = Instant::now();
    let (mut responder, mut attempts) = (bob(&[(1, 0)]), Attempts::default());
    let link = LinkId::from_bytes([1; 16]);
    attempts.expect(link);
    for round in 0..100_u64 {
        let counter = attempts.next(link, 0);
        let at = now + Duration::from_secs(round * 10);
        let request = from_alice(1, counter, &round.to_be_bytes());
        assert!(complete(&mut responder, &request, round as u8, at), "round {round}");
        if round % 17 == 16 {
            attempts.accepted(link, counter);
        }
    }
}

#[test]
fn of_two_that_cross_one_yields() {
    for (me, peer, is_opening, keeps) in
        [(ALICE, BOB, true, true), (ALICE, BOB, false, false), (BOB, ALICE, true, false), (BOB, ALICE, false, false)]
    {
        assert_eq!(keeps_initiators_role(&me, &peer, is_opening), keeps);
    }
}
