//! Both halves of a session against each other, and against whoever carries the bytes.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use openred_proto::checked::session::{RequestHead, ResponseHead, Side, StreamKind, StreamName};
use openred_proto::id::{LinkId, NodeId};
use openred_proto::limits::{
    CHUNK_BYTES, HEAD_BYTES, RECEIVER_WINDOW, SESSION_BYTES, SESSION_LIFE, SESSION_REQUESTS, TAG_BYTES,
};
use openred_proto::method::Method;
use openred_proto::secret::Secret;
use openred_proto::vault::SessionGrant;
use proptest::prelude::*;

use super::chunks::MessageSealer;
use super::keys::{DirectionKeys, ledger};
use super::message::{HEADER_LENGTH, RequestHeader, split_head};
use super::state::{IncomingRequest, OutgoingResponse};
use super::{Session, SessionError};

fn grant(method: Method, seed: u8, initiator: bool) -> SessionGrant {
    let (to_responder, to_initiator) = (Secret::new([seed; 32]), Secret::new([seed ^ 0x80; 32]));
    let (send, receive) = if initiator { (to_responder, to_initiator) } else { (to_initiator, to_responder) };
    SessionGrant {
        link: Some(LinkId::from_bytes([1; 16])),
        peer: NodeId::from_bytes([if initiator { 2 } else { 1 }; 32]),
        method,
        send,
        receive,
        hash: [3; 32],
        mutual_link: [4; 16],
        match_proof: [if initiator { 5 } else { 6 }; 32],
        peer_card_sequence: 0,
        peer_directory_head: Vec::new(),
    }
}

/// Initiator and responder of one session.
fn pair(method: Method, seed: u8, now: Instant) -> (Arc<Session>, Arc<Session>) {
    let (responder, record) = Session::as_responder(&grant(method, seed, false), now).unwrap();
    let (initiator, accept) = Session::as_initiator(&grant(method, seed, true), &record, now).unwrap();
    assert_eq!(accept.match_proof, [6; 32]);
    (Arc::new(initiator), Arc::new(responder))
}

fn head(path: &str) -> RequestHead {
    RequestHead { module: "files".into(), method: "GET".into(), path: path.into(), ..RequestHead::default() }
}

/// Seals a message in pieces of `piece` bytes; gives what travels.
fn seal(mut message: MessageSealer, body: &[u8], piece: usize) -> Vec<u8> {
    let expected = message.sealed_length(body.len() as u64);
    let mut wire = Vec::new();
    for part in body.chunks(piece.max(1)) {
        let mut part = Bytes::copy_from_slice(part);
        while !part.is_empty() {
            message.push(&mut part).unwrap().into_iter().for_each(|sealed| wire.extend_from_slice(&sealed));
        }
    }
    wire.extend_from_slice(&message.finish().unwrap());
    assert_eq!(wire.len() as u64, expected);
    wire
}

/// Feeds `wire` in pieces; gives head, body and the right to answer.
fn open(
    mut request: IncomingRequest,
    wire: &[u8],
    piece: usize,
) -> Result<(Vec<u8>, Vec<u8>, OutgoingResponse), SessionError> {
    let mut plain = BytesMut::new();
    for part in wire.chunks(piece.max(1)) {
        let mut part = Bytes::copy_from_slice(part);
        while !part.is_empty() {
            request.feed(&mut part)?.into_iter().for_each(|opened| plain.extend_from_slice(&opened));
        }
    }
    let early = request.take_answer();
    let (last, answer) = request.finish()?;
    plain.extend_from_slice(&last);
    let (head, body) = split_head(plain.freeze())?;
    Ok((head.to_vec(), body.to_vec(), early.or(answer).expect("one right to answer")))
}

/// What a receiver does with the bytes of one request.
fn receive(
    session: &Arc<Session>,
    wire: &[u8],
    now: Instant,
) -> Result<(Vec<u8>, Vec<u8>, OutgoingResponse), SessionError> {
    let (header, chunks) = wire.split_first_chunk::<HEADER_LENGTH>().ok_or(SessionError::PeerTruncated)?;
    let header = RequestHeader::decode(header)?;
    if header.tag != *session.incoming_tag() {
        return Err(SessionError::PeerForged);
    }
    open(session.receive_request(header, now)?, chunks, 1000)
}

fn request(session: &Arc<Session>, body: &[u8], now: Instant) -> (Vec<u8>, super::state::AwaitedResponse) {
    let (message, awaited) = session.begin_request(now).unwrap().start(&head("/x"), Some(body.len() as u64)).unwrap();
    (seal(message, body, 40_000), awaited)
}

#[test]
fn requests_and_responses_pass_both_ways_under_every_method() {
    let now = Instant::now();
    for method in Method::ALL {
        let (initiator, responder) = pair(method, 7, now);
        for (from, to) in [(&initiator, &responder), (&responder, &initiator)] {
            for length in [0, 1, 256, CHUNK_BYTES - 100, CHUNK_BYTES, 3 * CHUNK_BYTES + 17] {
                let body: Vec<u8> = (0..length).map(|index| index as u8).collect();
                let (wire, mut awaited) = request(from, &body, now);
                let (sent_head, sent_body, answer) = receive(to, &wire, now).unwrap();
                assert_eq!((RequestHead::decode(&sent_head).unwrap(), &sent_body), (head("/x"), &body));

                let response = ResponseHead { status: 200, content_type: String::new(), length: None };
                let wire = seal(answer.start(&response, None).unwrap(), &body, 9_999);
                let (mut plain, mut wire) = (BytesMut::new(), Bytes::from(wire));
                while !wire.is_empty() {
                    let opened = awaited.opener.feed(&mut wire).unwrap();
                    opened.into_iter().for_each(|opened| plain.extend_from_slice(&opened));
                }
                plain.extend_from_slice(&awaited.opener.finish().unwrap());
                let (answered_head, answered_body) = split_head(plain.freeze()).unwrap();
                assert_eq!(ResponseHead::decode(&answered_head).unwrap(), response);
                assert_eq!(answered_body, body);
            }
            assert_eq!(from.open_requests(), 0);
        }
    }
}

#[test]
fn a_message_that_fills_its_chunk_ends_with_an_empty_one() {
    let now = Instant::now();
    let (initiator, responder) = pair(Method::Beta, 1, now);
    let body = vec![9; CHUNK_BYTES - 2 - head("/x").encode().len()];
    let (wire, _awaited) = request(&initiator, &body, now);
    assert_eq!(wire.len(), HEADER_LENGTH + CHUNK_BYTES + 2 * TAG_BYTES);
    assert_eq!(receive(&responder, &wire, now).unwrap().1, body);
}

#[test]
fn every_bit_of_header_and_chunk_is_bound() {
    let now = Instant::now();
    for method in [Method::Alpha, Method::Beta] {
        let (initiator, responder) = pair(method, 2, now);
        let (wire, _awaited) = request(&initiator, b"hello", now);
        for bit in 0..wire.len() * 8 {
            let mut changed = wire.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(receive(&responder, &changed, now).is_err(), "bit {bit}");
        }
        receive(&responder, &wire, now).expect("a refused copy marks nothing");
        assert_eq!(receive(&responder, &wire, now).unwrap_err(), SessionError::PeerReplayed);
    }
}

#[test]
fn truncation_anywhere_is_an_error() {
    let now = Instant::now();
    let body = vec![1; 2 * CHUNK_BYTES];
    let sealed = CHUNK_BYTES + TAG_BYTES;
    for cut in [0, 1, TAG_BYTES, HEADER_LENGTH, HEADER_LENGTH + 1, HEADER_LENGTH + sealed, HEADER_LENGTH + 2 * sealed] {
        let (initiator, responder) = pair(Method::Gamma, 3, now);
        let (wire, _awaited) = request(&initiator, &body, now);
        assert!(receive(&responder, &wire[..cut], now).is_err(), "cut at {cut}");
        assert!(receive(&responder, &wire[..wire.len() - 1], now).is_err());
    }
}

#[test]
fn chunks_cannot_be_reordered_repeated_or_moved_between_streams() {
    let now = Instant::now();
    let (initiator, responder) = pair(Method::Delta, 4, now);
    let body = vec![1; 3 * CHUNK_BYTES];
    let sealed = CHUNK_BYTES + TAG_BYTES;
    let chunk = |wire: &[u8], index: usize| wire[HEADER_LENGTH + index * sealed..][..sealed].to_vec();
    let (first, _one) = request(&initiator, &body, now);
    let (second, _two) = request(&initiator, &body, now);
    let tail = |wire: &[u8]| wire[HEADER_LENGTH + 3 * sealed..].to_vec();
    let header = &first[..HEADER_LENGTH];
    let cases = [
        [header, &chunk(&first, 1), &chunk(&first, 0), &chunk(&first, 2), &tail(&first)].concat(),
        [header, &chunk(&first, 0), &chunk(&first, 0), &chunk(&first, 2), &tail(&first)].concat(),
        [header, &chunk(&first, 0), &chunk(&second, 1), &chunk(&first, 2), &tail(&first)].concat(),
        [header, &chunk(&first, 0), &chunk(&first, 2), &tail(&first)].concat(),
        [header, &second[HEADER_LENGTH..]].concat(),
    ];
    // The first chunk of some cases is authentic, so each runs against a receiver of its own.
    for (index, wire) in cases.iter().enumerate() {
        let (_, fresh) = pair(Method::Delta, 4, now);
        assert_eq!(receive(&fresh, wire, now).unwrap_err(), SessionError::PeerForged, "case {index}");
    }
    receive(&responder, &second, now).unwrap();
    receive(&responder, &first, now).expect("numbers may come in any order");
}

#[test]
fn reflected_and_crossed_messages_are_refused() {
    let now = Instant::now();
    let (initiator, responder) = pair(Method::Alpha, 5, now);
    let (_, stranger) = pair(Method::Alpha, 6, now);
    let (mut wire, _awaited) = request(&initiator, b"hello", now);
    assert!(receive(&initiator, &wire, now).is_err(), "reflected as it is");
    assert!(receive(&stranger, &wire, now).is_err(), "into another session");
    wire[..16].copy_from_slice(initiator.incoming_tag());
    assert!(receive(&initiator, &wire, now).is_err(), "reflected under the other direction's tag");
    let (other_number, _) = request(&responder, b"hello", now);
    assert!(receive(&responder, &other_number, now).is_err());
}

#[test]
fn a_changed_or_foreign_accept_record_opens_nothing() {
    let now = Instant::now();
    let (_, record) = Session::as_responder(&grant(Method::Alpha, 8, false), now).unwrap();
    for bit in 0..record.len() * 8 {
        let mut changed = record.to_vec();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(Session::as_initiator(&grant(Method::Alpha, 8, true), &changed.into(), now).is_err(), "bit {bit}");
    }
    assert!(Session::as_initiator(&grant(Method::Alpha, 9, true), &record, now).is_err());
    assert!(Session::as_initiator(&grant(Method::Beta, 8, true), &record, now).is_err());
    assert!(Session::as_initiator(&grant(Method::Alpha, 8, true), &record.slice(..record.len() - 1), now).is_err());
    assert!(Session::as_initiator(&grant(Method::Alpha, 8, true), &Bytes::from(vec![0; 200_000]), now).is_err());
}

#[test]
fn a_session_ends_at_its_limits() {
    let now = Instant::now();
    let (initiator, responder) = pair(Method::Alpha, 10, now);
    let (wire, _awaited) = request(&initiator, b"x", now);
    let late = now + SESSION_LIFE;
    assert!(
        initiator.is_live(late - Duration::from_secs(1)) && initiator.is_renewal_due(late - Duration::from_secs(1))
    );
    assert!(!initiator.is_renewal_due(now));
    assert_eq!(initiator.begin_request(late).unwrap_err(), SessionError::LimitReached);
    receive(&responder, &wire, late).expect("within the receiver's grace");
    let header = RequestHeader { tag: *responder.incoming_tag(), number: 2 };
    assert!(responder.receive_request(header, late + Duration::from_secs(60)).is_err());

    let (initiator, _) = pair(Method::Alpha, 11, now);
    initiator.budget().set(SESSION_BYTES - 1);
    let (message, _awaited) = initiator.begin_request(now).unwrap().start(&head("/"), None).unwrap();
    assert!(message.finish().is_ok(), "what has begun under the limit may pass it by a chunk");
    assert_eq!(initiator.begin_request(now).unwrap_err(), SessionError::LimitReached);
}

#[test]
fn numbers_end_at_two_to_the_thirty_second_on_both_sides() {
    let now = Instant::now();
    let (initiator, responder) = pair(Method::Alpha, 12, now);
    initiator.skip_to(SESSION_REQUESTS - 1);
    let (wire, _awaited) = request(&initiator, b"last", now);
    assert_eq!(wire[17..HEADER_LENGTH], SESSION_REQUESTS.to_be_bytes());
    assert_eq!(initiator.begin_request(now).unwrap_err(), SessionError::LimitReached);
    // A number beyond is refused before its bytes are looked at, and marks nothing: what is genuine still comes in.
    for number in [SESSION_REQUESTS + 1, u64::from(u32::MAX) * 2, u64::MAX] {
        let header = RequestHeader { tag: *responder.incoming_tag(), number };
        assert_eq!(responder.receive_request(header, now).unwrap_err(), SessionError::LimitReached);
    }
    assert!(receive(&responder, &wire, now).is_ok());
    assert_eq!(receive(&responder, &wire, now).unwrap_err(), SessionError::PeerReplayed);
    // Whoever counts so far is due for another session himself. This side has taken one request: it opens none for him.
    assert!(initiator.is_renewal_due(now) && !responder.is_renewal_due(now));
}

#[test]
fn oversized_frames_and_heads_are_refused() {
    let (now, method) = (Instant::now(), Method::Beta);
    // The peer itself breaks the rules, with the right keys.
    let keys = DirectionKeys::new(&Secret::new([14; 32]), method);
    let header = RequestHeader { tag: *keys.tag(), number: 1 }.encode();
    let name = StreamName { kind: StreamKind::Request, opener: Side::Initiator, number: 1 };
    let received = |plain: &[u8], last: bool, behind: &[u8]| {
        let (_, responder) = pair(method, 14, now);
        let mut chunk = BytesMut::from(plain);
        keys.stream(name).seal(0, last, &mut chunk).unwrap();
        receive(&responder, &[&header[..], &chunk, behind].concat(), now).map(drop)
    };
    for (length, last) in
        [(CHUNK_BYTES, true), (CHUNK_BYTES + 1, true), (CHUNK_BYTES + 1, false), (CHUNK_BYTES * 2, false)]
    {
        assert_eq!(received(&vec![0; length], last, b""), Err(SessionError::PeerForged), "{length} {last}");
    }
    let head = head("/x").encode();
    let with_length = |length: usize| [&(length as u16).to_be_bytes()[..], &head].concat();
    assert_eq!(received(&with_length(head.len()), true, b""), Ok(()));
    assert_eq!(received(&with_length(head.len()), true, b"x"), Err(SessionError::PeerTruncated), "behind the end");
    for length in [HEAD_BYTES + 1, head.len() + 1, usize::from(u16::MAX)] {
        let refused = received(&with_length(length), true, b"");
        assert!(matches!(refused, Err(SessionError::PeerMalformed(_))), "{length}: {refused:?}");
    }
}

/// Stale and future numbers: what left the window is refused although it is genuine; a number far ahead is taken, and takes its
/// place as the newest.
#[test]
fn stale_frames_are_refused_and_future_ones_taken_once() {
    let now = Instant::now();
    let (initiator, responder) = pair(Method::Beta, 13, now);
    let (stale, one) = request(&initiator, b"stale", now);
    let (kept, two) = request(&initiator, b"kept", now);
    // Nobody waits for their answers, or no number so far ahead would be given.
    drop((one, two));
    initiator.skip_to(RECEIVER_WINDOW);
    let (future, _three) = request(&initiator, b"future", now);
    assert!(receive(&responder, &future, now).is_ok());
    assert_eq!(receive(&responder, &stale, now).unwrap_err(), SessionError::PeerReplayed, "1 has left the window");
    assert!(receive(&responder, &kept, now).is_ok(), "2 is its last");
    for replayed in [&future, &kept] {
        assert_eq!(receive(&responder, replayed, now).unwrap_err(), SessionError::PeerReplayed);
    }
}

/// PROTOCOL 8: over a randomised run of all kinds, openers, methods, retries and aborted streams, no key and nonce comes
/// twice, and sealing happened as often as the run says.
#[test]
fn no_key_and_nonce_is_ever_used_twice() {
    let mut random = proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha);
    let now = Instant::now();
    let _ = ledger::take();
    let mut sealed = 0_usize;
    for round in 0..24_u8 {
        let method = Method::ALL[usize::from(round) % 4];
        let (initiator, responder) = pair(method, round + 20, now);
        sealed += 1;
        for _ in 0..60 {
            let draw = random.next_u32() as usize;
            let (from, to) = if draw & 1 == 0 { (&initiator, &responder) } else { (&responder, &initiator) };
            let body = vec![round; [0, 10, CHUNK_BYTES - 3, CHUNK_BYTES * 2 + 5][draw >> 1 & 3]];
            // A retry seals the same content again, under a new number.
            for _ in 0..=(draw >> 3 & 1) {
                let (wire, awaited) = request(from, &body, now);
                sealed += (wire.len() - HEADER_LENGTH).div_ceil(CHUNK_BYTES + TAG_BYTES);
                drop(awaited);
                if draw >> 4 & 1 == 0 {
                    let (_, _, answer) = receive(to, &wire, now).unwrap();
                    let mut message = answer.start(&ResponseHead { status: 200, ..Default::default() }, None).unwrap();
                    let mut body = Bytes::from(body.clone());
                    while !body.is_empty() {
                        sealed += usize::from(message.push(&mut body).unwrap().is_some());
                    }
                    // An aborted response is dropped in the middle and never restarts.
                    if draw >> 5 & 1 == 0 {
                        message.finish().unwrap();
                        sealed += 1;
                    }
                    assert!(receive(to, &wire, now).is_err(), "a number answers once");
                }
            }
        }
    }
    let ledger = ledger::take();
    let nonces: HashSet<_> = ledger.iter().map(|(key, position, last)| (*key, *position, *last)).collect();
    assert_eq!(ledger.len(), sealed, "the ledger saw every seal");
    assert_eq!(nonces.len(), sealed, "and no key and nonce twice");
    // One message has one key: positions of a key count up from zero, and only its last chunk carries the flag.
    let positions: HashSet<_> = ledger.iter().map(|(key, position, _)| (*key, *position)).collect();
    assert_eq!(positions.len(), sealed);
}

proptest! {
    #[test]
    fn any_body_in_any_pieces_comes_out_as_it_went_in(
        length in 0_usize..200_000,
        out_piece in 1_usize..100_000,
        in_piece in 1_usize..100_000,
        method in 0_usize..4,
    ) {
        let now = Instant::now();
        let (initiator, responder) = pair(Method::ALL[method], 30, now);
        let body: Vec<u8> = (0..length).map(|index| (index * 31) as u8).collect();
        let (message, _awaited) = initiator.begin_request(now).unwrap().start(&head("/p"), None).unwrap();
        let wire = seal(message, &body, out_piece);
        let header = RequestHeader::decode(wire.first_chunk().unwrap()).unwrap();
        let request = responder.receive_request(header, now).unwrap();
        let (_, opened, _) = open(request, &wire[HEADER_LENGTH..], in_piece).unwrap();
        prop_assert_eq!(opened, body);
    }

    #[test]
    fn any_bytes_are_refused_without_panic(wire in proptest::collection::vec(any::<u8>(), 0..300)) {
        let now = Instant::now();
        let (_, responder) = pair(Method::Beta, 31, now);
        prop_assert!(receive(&responder, &wire, now).is_err());
        let mut tagged = responder.incoming_tag().to_vec();
        tagged.push(1);
        tagged.extend(wire);
        prop_assert!(receive(&responder, &tagged, now).is_err());
    }

    #[test]
    fn header_and_head_codecs_round_trip(tag: [u8; 16], number: u64, bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        let header = RequestHeader { tag, number };
        prop_assert_eq!(RequestHeader::decode(&header.encode()).unwrap(), header);
        if let Ok((head, body)) = split_head(Bytes::from(bytes.clone())) {
            prop_assert_eq!([&bytes[..2], &head[..], &body[..]].concat(), bytes);
        }
    }
}
