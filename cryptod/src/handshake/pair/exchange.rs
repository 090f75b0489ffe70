//! What must work: every suite, over a clean network and over bad ones, in bounded time, without a key ever used twice.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;

use openred_proto::limits::{HALF_OPEN_LIFE, HALF_OPEN_PER_LINK};

use super::*;

pub(super) const CLEAN: Network = Network { loss: 0, duplication: 0, delay: 0 };

/// Both sides proved the same handshake: what one sends is what the other receives.
pub(super) fn assert_match(one: &Established, other: &Established) {
    assert!(one.send == other.receive && one.receive == other.send);
    assert!(one.send != one.receive);
    assert_eq!(one.hash, other.hash);
    assert_eq!(one.mutual_link, other.mutual_link);
    assert!(one.link == other.link && one.method == other.method);
}

#[test]
fn every_suite_opens_a_session() {
    for method in Method::ALL {
        let mut pair = Pair::new(method, CLEAN, 0);
        pair.run(1);
        let ([one], [other]) = (&pair.begun[..], &pair.answered[..]) else { panic!("{method}: {:?}", pair.refusals) };
        assert_match(one, other);
        assert_eq!((one.peer, other.peer), (pair.responder.id(), pair.initiator.id()));
        assert_eq!((one.peer_card_sequence, other.peer_card_sequence), (22, 11));
        assert_eq!((one.peer_directory_head.as_slice(), other.peer_directory_head.as_slice()), (&[5; 32][..], &[][..]));
        let base = one.link.as_ref().map(|(_, base)| base);
        assert!(base == Some(&Secret::new(pair.link.base)), "the base comes back for the match proof");
        assert_eq!(pair.initiator.handshakes.len() + pair.responder.handshakes.len(), 0);
    }
}

#[test]
fn loss_delay_and_duplication_end_in_one_matching_session() {
    let bad = Network { loss: 25, duplication: 30, delay: 2500 };
    for seed in 0..120 {
        let method = Method::ALL[seed as usize % 4];
        let mut pair = if seed < 60 { Pair::new(method, bad, seed) } else { Pair::direct(method, bad, seed) };
        pair.run(60);
        assert!(!pair.answered.is_empty(), "seed {seed}: {} attempts, {:?}", pair.attempts, pair.refusals);
        for session in &pair.answered {
            let theirs: Vec<_> = pair.begun.iter().filter(|begun| begun.hash == session.hash).collect();
            let [theirs] = theirs[..] else { panic!("seed {seed}: the responder opened what nobody began") };
            assert_match(theirs, session);
        }
        let hashes: BTreeSet<_> = pair.answered.iter().map(|session| session.hash).collect();
        assert_eq!(hashes.len(), pair.answered.len(), "seed {seed}: a duplicate opened a second session");
        let expected = [Refusal::Replayed, Refusal::NotWaiting, Refusal::TooMany];
        assert!(pair.refusals.iter().all(|refusal| expected.contains(refusal)), "seed {seed}: {:?}", pair.refusals);
    }
}

#[test]
fn no_secret_twice_over_many_handshakes_in_both_directions() {
    let (mut alice, mut bob) = (Engine::new(1), Engine::new(2));
    let mut seen = BTreeSet::new();
    for (number, method) in Method::ALL.into_iter().cycle().take(60).enumerate() {
        let link = Link::between(&alice, &bob, method, 3 + number as u8 % 4);
        let now = NOON.plus(Duration::from_secs(number as u64));
        let (one, other) = if number % 3 == 0 { (&mut bob, &mut alice) } else { (&mut alice, &mut bob) };
        let (exchange, request) = one.begin(now, &link).unwrap();
        let answered = other.answer(now, &link, &request).unwrap();
        let (finalize, begun) = one.handshakes.finish(now, exchange, &answered.message, &[]).unwrap();
        let completed = other.handshakes.complete(now, answered.id, &finalize).unwrap();
        assert_match(&begun, &completed);
        for value in [*begun.send.expose(), *begun.receive.expose(), begun.hash] {
            assert!(seen.insert(value), "handshake {number}");
        }
    }
}

#[test]
fn two_hundred_failed_attempts_then_success() {
    let mut pair = Pair::new(Method::Alpha, Network { loss: 100, duplication: 0, delay: 0 }, 7);
    pair.run(200);
    assert_eq!((pair.attempts, pair.begun.len()), (200, 0));
    pair.network = CLEAN;
    pair.now = pair.now.plus(HALF_OPEN_LIFE);
    pair.run(201);
    assert_eq!((pair.attempts, pair.answered.len()), (201, 1), "{:?}", pair.refusals);
}

#[test]
fn half_open_handshakes_are_bounded_and_end_after_ten_seconds() {
    let (mut alice, mut bob) = (Engine::new(1), Engine::new(2));
    let link = Link::between(&alice, &bob, Method::Gamma, 3);
    let mut first = None;
    for _ in 0..HALF_OPEN_PER_LINK {
        let (exchange, request) = alice.begin(NOON, &link).unwrap();
        let answered = bob.answer(NOON, &link, &request).unwrap();
        first.get_or_insert((exchange, answered));
    }
    assert_eq!(alice.begin(NOON, &link).unwrap_err(), Refusal::TooMany);
    let (exchange, answered) = first.unwrap();
    let late = NOON.plus(HALF_OPEN_LIFE);
    assert_eq!(alice.handshakes.finish(late, exchange, &answered.message, &[]), Err(Refusal::NotWaiting));
    assert_eq!(bob.handshakes.complete(late, answered.id, &answered.message), Err(Refusal::NotWaiting));
    let (_, request) = alice.begin(late, &link).unwrap();
    bob.answer(late, &link, &request).unwrap();
    bob.handshakes.forget(link.id);
    assert_eq!(bob.handshakes.len(), 0);
}
