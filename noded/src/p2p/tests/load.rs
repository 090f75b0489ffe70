//! A responder under load, over real sockets with a real vault: who shows where he is gets in, who does not costs no key operation.

use std::net::SocketAddr;

use openred_module::Body;
use openred_proto::checked::handshake::{HandshakeCookie, HandshakeRequest, RequestAnswer};
use openred_proto::method::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

use super::harness::{TestNode, body_of, genuine, head, pair_with, patient};
use crate::handshake::cookie::{Cookie, LoadBounds};
use crate::p2p::{HANDSHAKE_PATH, NetworkSettings};

/// Loaded as soon as anybody asks for anything.
fn loaded() -> NetworkSettings {
    NetworkSettings { load: LoadBounds { asked: 0, ..LoadBounds::default() }, ..patient() }
}

/// Posts a REQUEST from an address of this machine; gives the status and what the answer says.
async fn send(from: &str, to: SocketAddr, request: &HandshakeRequest) -> RequestAnswer {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    let mut stream = socket.connect(to).await.unwrap();
    let body = request.encode();
    let length = body.len();
    let head = format!(
        "POST {HANDSHAKE_PATH} HTTP/1.1\r\nhost: {to}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
    RequestAnswer::decode(body_of(&answer)).unwrap()
}

/// The cookie that an answer must be.
fn asked(answer: RequestAnswer) -> HandshakeCookie {
    match answer {
        RequestAnswer::Cookie(cookie) => cookie,
        RequestAnswer::Verify(_) => panic!("looked at"),
    }
}

/// The REQUEST again as alice sends it after that answer.
fn shown(alice: &TestNode, request: &HandshakeRequest, answer: &HandshakeCookie) -> HandshakeRequest {
    let cookie = Cookie::open(answer, &alice.links.handle().keys.outgoing.mac1, &request.mac1).unwrap();
    HandshakeRequest { cookie: Some(cookie.proof(&request.without_cookie())), ..request.clone() }
}

#[tokio::test]
async fn under_load_an_initiator_shows_its_cookie_and_gets_in_at_no_further_cost_to_the_keys() {
    let mut operations = Vec::new();
    for settings in [patient(), loaded()] {
        let (alice, bob) = pair_with(settings, Method::Alpha);
        alice.ask(&bob, head("POST", "/mirror"), Body::empty()).await.unwrap();
        bob.links.matches(1).await;
        let kept = alice.network.cookies().proof(bob.id, bob.address, b"", std::time::Instant::now());
        operations.push((bob.keys.operations(), kept.is_some()));
    }
    let (calm, under_load) = (operations[0], operations[1]);
    assert_eq!((calm.1, under_load.1), (false, true), "a cookie is asked for under load only");
    assert_eq!(calm.0, under_load.0, "the keys are asked as often as without load");
}

#[tokio::test]
async fn the_next_handshake_shows_the_cookie_that_is_known() {
    let (alice, bob) = pair_with(loaded(), Method::Beta);
    alice.ask(&bob, head("POST", "/mirror"), Body::empty()).await.unwrap();
    let request = genuine(&alice, &bob, 5).await;
    let now = std::time::Instant::now();
    let cookie = alice.network.cookies().proof(bob.id, bob.address, &request.without_cookie(), now);
    let answer = send("127.0.0.1", bob.address, &HandshakeRequest { cookie, ..request }).await;
    assert!(matches!(answer, RequestAnswer::Verify(_)), "at the first word");
}

#[tokio::test]
async fn under_load_who_is_not_where_he_says_costs_no_key_operation() {
    let (alice, bob) = pair_with(loaded(), Method::Gamma);
    let request = genuine(&alice, &bob, 1).await;
    let operations = bob.keys.operations();
    let answer = asked(send("127.0.0.1", bob.address, &request).await);
    let shown = shown(&alice, &request, &answer);
    let handle = alice.links.handle();
    for round in 1..=50_u8 {
        // A cookie that was given elsewhere; none; a guess; another message's. Each from an address of its own.
        let guess = HandshakeRequest { cookie: Some([round; 16]), ..request.clone() };
        let other = crate::handshake::request::build(&handle.keys.outgoing, &alice.id, &bob.id, 2, &[round; 1300]);
        let other = HandshakeRequest { cookie: shown.cookie, ..other };
        for tried in [&shown, &request, &guess, &other] {
            asked(send(&format!("127.0.1.{round}"), bob.address, tried).await);
        }
        asked(send("127.0.0.1", bob.address, &other).await);
    }
    assert_eq!(bob.keys.operations(), operations, "nothing of it reached the keys");
    let answer = send("127.0.0.1", bob.address, &shown).await;
    assert!(
        matches!(answer, RequestAnswer::Verify(_)),
        "who saw the answer gets in, and nothing of that spent his REQUEST"
    );
    assert_eq!(bob.keys.operations(), operations + 1);
}

/// What an eavesdropper has: the REQUEST on its way and the answer to somebody else.
#[tokio::test]
async fn the_answer_to_another_place_opens_to_nobody_without_the_link() {
    let (alice, bob) = pair_with(loaded(), Method::Delta);
    let request = genuine(&alice, &bob, 1).await;
    let answer = asked(send("127.0.2.1", bob.address, &request).await);
    let keys = [&[0; 32][..], &request.mac1, &request.tag, bob.id.as_bytes()].map(|bytes| {
        let mut key = [0; 32];
        key[..bytes.len()].copy_from_slice(bytes);
        openred_proto::secret::Secret::new(key)
    });
    for key in &keys {
        assert!(Cookie::open(&answer, key, &request.mac1).is_none());
    }
    let again = shown(&alice, &request, &answer);
    assert!(matches!(send("127.0.2.1", bob.address, &again).await, RequestAnswer::Verify(_)), "to alice it does");
}
