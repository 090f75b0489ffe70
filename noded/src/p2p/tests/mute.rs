//! Peers that take what they are sent and never answer: what waits for them ends, and what it held comes back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use openred_module::Body;
use openred_proto::method::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::harness::{TestNode, head, pair_of};
use super::pool::session;
use super::proxy::{Fate, Kind, Proxy};
use crate::config::AuditedPolicy;
use crate::p2p::carrier::SealedBody;
use crate::p2p::connections::{Connections, Reach};
use crate::p2p::{NetworkError, NetworkSettings};

/// Longer than any of these tests.
const LONG: Duration = Duration::from_secs(3600);

/// A pair whose way from alice to bob leads over a proxy; alice is the initiator.
async fn over_proxy(request_timeout: Duration, audited: [AuditedPolicy; 2]) -> (TestNode, TestNode, Arc<Proxy>) {
    let [alices, bobs] =
        audited.map(|audited| NetworkSettings { request_timeout, audited, ..NetworkSettings::default() });
    let (alice, bob) = pair_of(alices, bobs, Method::Beta);
    let proxy = Proxy::start(bob.address).await;
    *alice.endpoints.0.lock().unwrap() = vec![format!("http://{}", proxy.address)];
    (alice, bob, proxy)
}

async fn ask(alice: &TestNode, bob: &TestNode) -> Result<u16, NetworkError> {
    let (answer, _) = alice.ask(bob, head("POST", "/mirror"), Body::empty()).await?;
    Ok(answer.status)
}

/// The proxy closes each connection behind its answer: what stays open waits for one.
async fn until_none_is_open(node: &TestNode) {
    while node.network.connections.open() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Without a deadline, and without an end with its session, this would wait for ever.
#[tokio::test]
async fn a_match_proof_that_is_not_answered_holds_no_connection() {
    for is_given_up in [false, true] {
        let patience = if is_given_up { LONG } else { Duration::from_secs(1) };
        let (alice, bob, proxy) = over_proxy(patience, [AuditedPolicy::Off; 2]).await;
        proxy.next(Kind::Session, Fate::HoldAnswer);
        let pooled = alice.network.session(bob.id).await.unwrap();
        while proxy.sent(Kind::Session).is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert!(alice.network.connections.open() > 0 && pooled.in_use() == 1, "it waits");
        if is_given_up {
            // As after a refusal: the peer says that it does not know the session.
            alice.network.pool.remove(&pooled);
        }
        until_none_is_open(&alice).await;
        assert_eq!((pooled.in_use(), pooled.session.open_requests()), (0, 0));
        assert_eq!(ask(&alice, &bob).await, Ok(200));
    }
}

/// Without a deadline, the handshake that is under way would be waited for by every later caller, for ever.
#[tokio::test]
async fn a_peer_that_is_gone_before_it_signs_is_called_again() {
    let signing = [AuditedPolicy::Require, AuditedPolicy::Allow];
    let (alice, bob, proxy) = over_proxy(Duration::from_secs(1), signing).await;
    proxy.next(Kind::Session, Fate::HoldAnswer);
    assert_eq!(ask(&alice, &bob).await, Err(NetworkError::TimedOut));
    while alice.network.pool.is_opening(&bob.id) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(ask(&alice, &bob).await, Ok(200));
    assert_eq!(alice.links.signed.lock().unwrap().len(), 1);
    until_none_is_open(&alice).await;
}

/// Whatever it is that takes so long. Without an end of the first handshake none is begun after it.
#[tokio::test]
async fn a_handshake_that_does_not_go_on_makes_way_for_the_next() {
    let (alice, bob, _proxy) = over_proxy(Duration::from_millis(300), [AuditedPolicy::Off; 2]).await;
    alice.keys.gate.send_replace(false);
    while alice.keys.begun.load(Ordering::Relaxed) < 2 {
        assert_eq!(ask(&alice, &bob).await, Err(NetworkError::TimedOut));
    }
    alice.keys.gate.send_replace(true);
    while ask(&alice, &bob).await != Ok(200) {}
}

/// A peer answers early, reads no further, and does not close. Without a bound the next request would wait for the source of the first.
#[tokio::test]
async fn a_connection_on_which_a_body_still_goes_is_waited_for_by_nobody() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let reach = Reach::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let peer = tokio::spawn(async move {
        let mut kept = Vec::new();
        while kept.len() < 2 {
            let (mut stream, _) = listener.accept().await.unwrap();
            if kept.is_empty() {
                stream.read_u8().await.unwrap();
                stream.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            }
            kept.push(stream);
        }
        kept
    });
    let connections = Connections::new(LONG, LONG);
    let session = session(1, 1, Instant::now());
    let ticket = session.session.begin_request(Instant::now()).unwrap();
    let (message, _awaited) = ticket.start(&head("POST", "/mirror"), None).unwrap();
    let (source, body) = Body::channel();
    let (response, lease) = connections.post(&reach, "/", SealedBody::new(message, body, None)).await.unwrap();
    assert_eq!(response.status(), 403);
    lease.give_back();
    connections.probe(&reach).await.unwrap();
    assert_eq!(peer.await.unwrap().len(), 2, "on a connection of its own");
    drop(source);
}
