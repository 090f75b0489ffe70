//! Junk, replays, garbage, oversized, truncated and slow bodies on each route: one shape of refusal, no key operation.

use std::time::Duration;

use bytes::Bytes;
use openred_module::Body;
use openred_proto::checked::handshake::{HandshakeFinalize, HandshakeRequest, HandshakeVerify};
use openred_proto::id::HandshakeId;
use openred_proto::limits::HANDSHAKE_BYTES;
use openred_proto::method::Method;

use super::harness::{TestNode, body_of, genuine, head, pair, pair_with, patient, post, raw};
use crate::handshake::request;
use crate::keys::HandshakeKeys as _;
use crate::p2p::settings::HEAD_BUFFER;
use crate::p2p::{HANDSHAKE_PATH, NetworkSettings, SESSION_PATH};

#[tokio::test]
async fn junk_requests_never_reach_the_key_process_and_an_honest_peer_gets_through() {
    let (alice, bob) = pair_with(patient(), Method::Alpha);
    let replayed = genuine(&alice, &bob, 1).await;
    let verify = post(bob.address, HANDSHAKE_PATH, &replayed.encode()).await;
    assert!(HandshakeVerify::decode(body_of(&verify)).is_ok());
    let operations = bob.keys.operations();
    let mut refusals = std::collections::HashSet::new();
    for round in 0..100_u8 {
        let unknown = HandshakeRequest { tag: [round; 16], ..replayed.clone() };
        let wrong_mac = HandshakeRequest { mac1: [round; 16], ..replayed.clone() };
        let noise = HandshakeRequest { noise: vec![round; 1300], ..replayed.clone() };
        for junk in [unknown, wrong_mac, noise] {
            refusals.insert(post(bob.address, HANDSHAKE_PATH, &junk.encode()).await);
        }
        assert_eq!(post(bob.address, HANDSHAKE_PATH, &replayed.encode()).await, verify, "the same VERIFY");
        let finalize = HandshakeFinalize { handshake: HandshakeId::from_bytes([round; 16]), noise: vec![1; 200] };
        refusals.insert(post(bob.address, HANDSHAKE_PATH, &finalize.encode()).await);
    }
    assert_eq!(bob.keys.operations(), operations, "nothing of it reached the keys");
    assert_eq!(refusals.len(), 1, "every refusal looks the same");
    alice.ask(&bob, head("POST", "/mirror"), Body::empty()).await.expect("an honest handshake in between");
    assert_eq!(post(bob.address, HANDSHAKE_PATH, &replayed.encode()).await, verify);
}

/// A handshake by hand, up to the FINALIZE that is not sent yet, and what the initiator holds then.
pub(super) async fn up_to_finalize(
    alice: &TestNode,
    bob: &TestNode,
) -> (HandshakeFinalize, openred_proto::vault::SessionGrant) {
    let handle = alice.links.handle();
    let half_open = alice.keys.start_handshake(handle.row.clone()).await.unwrap();
    let request = request::build(&handle.keys.outgoing, &alice.id, &bob.id, 1, &half_open.noise).encode();
    let verify = post(bob.address, HANDSHAKE_PATH, &request).await;
    let verify = HandshakeVerify::decode(body_of(&verify)).unwrap();
    let noise = Bytes::from(verify.noise);
    let (noise, grant) = alice.keys.finish_handshake(half_open.handshake, noise, Bytes::new()).await.unwrap();
    (HandshakeFinalize { handshake: verify.handshake, noise: noise.to_vec() }, grant)
}

#[tokio::test]
async fn a_genuine_handshake_by_hand_repeats_its_answers_and_opens_once() {
    let (alice, bob) = pair_with(patient(), Method::Delta);
    let (finalize, grant) = up_to_finalize(&alice, &bob).await;
    let accept = post(bob.address, HANDSHAKE_PATH, &finalize.encode()).await;
    let record = Bytes::copy_from_slice(body_of(&accept));
    crate::session::Session::as_initiator(&grant, &record, std::time::Instant::now()).unwrap();
    let operations = bob.keys.operations();
    assert_eq!(post(bob.address, HANDSHAKE_PATH, &finalize.encode()).await, accept, "the same ACCEPT");
    let mut changed = finalize;
    *changed.noise.last_mut().unwrap() ^= 1;
    assert_ne!(post(bob.address, HANDSHAKE_PATH, &changed.encode()).await, accept);
    assert_eq!((bob.keys.operations(), bob.network.sessions().len()), (operations, 1));
}

#[tokio::test]
async fn a_link_that_ends_during_a_handshake_opens_no_session() {
    let (alice, bob) = pair_with(patient(), Method::Delta);
    let handle = alice.links.handle();
    let (finalize, grant) = up_to_finalize(&alice, &bob).await;
    let operations = bob.keys.operations();
    bob.network.link_removed(&handle.link);
    let refusal = post(bob.address, HANDSHAKE_PATH, &finalize.encode()).await;
    assert!(refusal.starts_with(b"HTTP/1.1 403 "));
    assert_eq!((bob.keys.operations(), bob.network.sessions().len()), (operations, 0), "the keys were not asked");
    // The link ends while the key process completes the handshake: what it grants is not taken into use.
    let now = std::time::Instant::now();
    let (session, _) = crate::session::Session::as_responder(&grant, now).unwrap();
    let pooled = crate::p2p::pool::Pooled::new(session, alice.links.handle(), None);
    alice.network.adopt_session(&pooled, now).unwrap();
    assert_eq!(alice.network.sessions().len(), 1);
    alice.network.link_removed(&handle.link);
    assert_eq!(alice.network.sessions().len(), 0);
    assert_eq!(alice.network.adopt_session(&pooled, now), Err(crate::p2p::NotAdopted::LinkEnded));
    assert_eq!(alice.network.sessions().len(), 0);
}

#[tokio::test]
async fn a_connection_that_asks_for_nothing_or_for_too_much_at_once_is_closed() {
    let (_alice, bob) = pair_with(patient(), Method::Alpha);
    let head = [b"POST /p2p/session HTTP/1.1\r\nx: ".as_slice(), &vec![b'a'; 4 * HEAD_BUFFER], b"\r\n\r\n"].concat();
    let answer = raw(bob.address, &head).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&answer));
    let fields = "x: y\r\n".repeat(100);
    let answer = raw(bob.address, format!("POST /p2p/session HTTP/1.1\r\n{fields}\r\n").as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&answer));
    // Says nothing at all: this returns because the node closes.
    assert!(raw(bob.address, b"").await.is_empty());
}

#[tokio::test]
async fn garbage_oversized_and_truncated_bodies_are_refused_alike_on_each_route() {
    let (alice, bob) = pair_with(patient(), Method::Gamma);
    alice.ask(&bob, head("POST", "/mirror"), Body::empty()).await.unwrap();
    bob.links.matches(1).await;
    let operations = bob.keys.operations();
    let request = genuine(&alice, &bob, 5).await.encode();
    let mut refusals = std::collections::HashSet::new();
    for body in [&b""[..], b"x", &[0xff; 64], &[0; 3000], &request[..request.len() - 1], &request[..10]] {
        for path in [HANDSHAKE_PATH, SESSION_PATH] {
            refusals.insert(post(bob.address, path, body).await);
        }
    }
    refusals.insert(post(bob.address, HANDSHAKE_PATH, &vec![8; HANDSHAKE_BYTES + 1]).await);
    assert_eq!(refusals.len(), 1, "one shape");
    let refusal = String::from_utf8(refusals.into_iter().next().unwrap()).unwrap();
    assert!(refusal.starts_with("HTTP/1.1 403 ") && refusal.ends_with("\r\n\r\n"), "{refusal}");
    // Larger than anything is read: refused early, and the connection may be cut under the sender.
    let large = post(bob.address, SESSION_PATH, &vec![7; 2 << 20]).await;
    assert!(large.is_empty() || large.starts_with(b"HTTP/1.1 403 "));
    assert_eq!(bob.keys.operations(), operations);
    assert_eq!(bob.module.served.load(std::sync::atomic::Ordering::Relaxed), 1, "nothing was dispatched");
}

#[tokio::test]
async fn other_methods_paths_and_protocols_get_nothing() {
    let (_alice, bob) = pair_with(patient(), Method::Alpha);
    let get = raw(bob.address, b"GET /p2p/session HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(get.starts_with(b"HTTP/1.1 405 "));
    let other = post(bob.address, "/", b"").await;
    assert!(other.starts_with(b"HTTP/1.1 404 "));
    let noise = raw(bob.address, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n").await;
    assert!(noise.is_empty() || noise.starts_with(b"HTTP/1.1 400 "));
}

#[tokio::test]
async fn slow_bodies_are_cut_on_each_route() {
    let quick = Duration::from_millis(100);
    let settings = NetworkSettings { handshake_timeout: quick, chunk_timeout: quick, ..patient() };
    let (_alice, bob) = pair_with(settings, Method::Alpha);
    for path in [HANDSHAKE_PATH, SESSION_PATH] {
        // A body that is promised and never comes: without the cut this would wait for ever.
        let begun = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nabc");
        let answer = raw(bob.address, begun.as_bytes()).await;
        assert!(answer.starts_with(b"HTTP/1.1 403 "), "{path}");
    }
}

#[tokio::test]
async fn an_address_that_only_earns_refusals_is_cut_off() {
    let (alice, bob) = pair_with(NetworkSettings { refusals: (3, 0), ..patient() }, Method::Alpha);
    for _ in 0..3 {
        assert!(post(bob.address, HANDSHAKE_PATH, b"junk").await.starts_with(b"HTTP/1.1 403 "));
    }
    assert!(post(bob.address, HANDSHAKE_PATH, b"junk").await.is_empty(), "cut without a word");
    alice.ask(&bob, head("POST", "/mirror"), Body::empty()).await.expect("who holds a link is served all the same");
}

#[tokio::test]
async fn replayed_and_flipped_session_requests_are_not_dispatched() {
    let (alice, bob) = pair();
    alice.ask(&bob, head("POST", "/mirror"), Body::empty()).await.unwrap();
    let pooled = alice.network.pool.find(&bob.id, std::time::Instant::now()).unwrap();
    let ticket = pooled.session.begin_request(std::time::Instant::now()).unwrap();
    let (message, _awaited) = ticket.start(&head("POST", "/mirror"), Some(0)).unwrap();
    let wire = message.finish().unwrap();
    let mut flipped = wire.to_vec();
    *flipped.last_mut().unwrap() ^= 1;
    assert!(post(bob.address, SESSION_PATH, &flipped).await.starts_with(b"HTTP/1.1 403 "));
    assert!(post(bob.address, SESSION_PATH, &wire).await.starts_with(b"HTTP/1.1 200 "));
    assert!(post(bob.address, SESSION_PATH, &wire).await.starts_with(b"HTTP/1.1 403 "), "a replay");
    assert_eq!(bob.module.served.load(std::sync::atomic::Ordering::Relaxed), 2);
}
