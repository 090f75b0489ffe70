//! Sessions that take over from each other: by each limit, from either side and both at once, under load over real sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use openred_module::Body;
use openred_proto::limits::SESSION_REQUESTS;
use openred_proto::method::Method;

use super::harness::{TestNode, head, pair_of, pair_with};
use crate::p2p::{NetworkError, NetworkSettings, SessionLimits};

/// Callers of one side at once.
const CALLERS: usize = 8;

fn limited(limits: SessionLimits) -> NetworkSettings {
    NetworkSettings { limits, ..NetworkSettings::default() }
}

fn by_requests(requests: u64) -> NetworkSettings {
    limited(SessionLimits { requests, ..SessionLimits::default() })
}

/// Asks for its own bytes back, and demands them.
async fn mirror(from: &TestNode, to: &TestNode, number: u64, length: usize) {
    let body: Vec<u8> = (0..length as u64).map(|index| (index ^ number.wrapping_mul(31)) as u8).collect();
    let answered = from.ask(to, head("POST", "/mirror"), Body::whole(body.clone())).await;
    assert_eq!(answered.unwrap_or_else(|error| panic!("request {number}: {error}")).1, body);
}

/// Sessions that a node has seen opened, from either side.
fn opened(node: &TestNode) -> usize {
    node.links.opened.lock().unwrap().len()
}

/// Requests of both sides without a pause, until `sessions` sessions have served.
async fn load(alice: &TestNode, bob: &TestNode, length: usize, sessions: usize) {
    let (asked, enough) = (AtomicU64::new(0), AtomicBool::new(false));
    let caller = |from, to| {
        let (asked, enough) = (&asked, &enough);
        async move {
            while !enough.load(Ordering::Relaxed) {
                mirror(from, to, asked.fetch_add(1, Ordering::Relaxed), length).await;
                if opened(alice) >= sessions {
                    enough.store(true, Ordering::Relaxed);
                }
            }
        }
    };
    let ours = futures_util::future::join_all((0..CALLERS).map(|_| caller(alice, bob)));
    let theirs = futures_util::future::join_all((0..CALLERS).map(|_| caller(bob, alice)));
    tokio::join!(ours, theirs);
}

#[tokio::test]
async fn no_request_fails_while_sessions_take_over_from_each_other_by_any_limit() {
    let none = SessionLimits::default();
    for (limits, length) in [
        (SessionLimits { requests: 64, ..none }, 100),
        (SessionLimits { bytes: 2 << 20, ..none }, 70_000),
        (SessionLimits { life: Duration::from_millis(400), ..none }, 100),
        // As many callers as a session has numbers: most of them find it used up and wait for the next.
        (SessionLimits { requests: CALLERS as u64, ..none }, 100),
    ] {
        let (alice, bob) = pair_with(limited(limits), Method::Beta);
        load(&alice, &bob, length, 6).await;
    }
}

#[tokio::test]
async fn no_request_fails_while_both_sides_open_the_next_session_at_once() {
    let (alice, bob) = pair_with(NetworkSettings::default(), Method::Alpha);
    mirror(&alice, &bob, 0, 10).await;
    let stop = AtomicBool::new(false);
    let asking = async {
        let mut number = 0;
        while !stop.load(Ordering::Relaxed) {
            tokio::join!(mirror(&alice, &bob, number, 1000), mirror(&bob, &alice, number, 1000));
            number += 1;
        }
    };
    let renewing = async {
        for round in 2..8 {
            alice.network.reopen(bob.id);
            bob.network.reopen(alice.id);
            while opened(&alice) < round || opened(&bob) < round {
                tokio::task::yield_now().await;
            }
        }
        stop.store(true, Ordering::Relaxed);
    };
    tokio::join!(asking, renewing);
}

#[tokio::test]
async fn the_next_session_is_opened_beside_the_requests_and_those_under_way_end_on_theirs() {
    let (alice, bob) = pair_with(by_requests(64), Method::Gamma);
    mirror(&alice, &bob, 0, 10).await;
    alice.links.matches(1).await;
    let (network, peer) = (Arc::clone(&alice.network), bob.id);
    let held = tokio::spawn(async move { network.request(peer, head("POST", "/held"), Body::empty()).await });
    bob.module.holding.notified().await;
    let first = alice.network.pool.find(&bob.id, Instant::now()).unwrap();
    // The key processes take their time: what the session still has is used meanwhile, and nobody waits.
    for node in [&alice, &bob] {
        node.keys.gate.send_replace(false);
    }
    while first.session.used().0 < 64 {
        mirror(&alice, &bob, 1, 10).await;
    }
    assert_eq!((alice.keys.begun.load(Ordering::Relaxed), opened(&alice)), (2, 1));
    let waiting = mirror(&alice, &bob, 2, 10);
    let opening = async {
        tokio::task::yield_now().await;
        alice.keys.gate.send_replace(true);
        bob.keys.gate.send_replace(true);
    };
    tokio::join!(waiting, opening);
    let next = alice.network.pool.find(&bob.id, Instant::now()).unwrap();
    assert!(!Arc::ptr_eq(&first, &next));
    assert_eq!((first.session.used().0, first.in_use()), (64, 1), "one request runs on the old one");
    bob.module.release.notify_waiters();
    assert_eq!(held.await.unwrap().unwrap().0.status, 200);
    assert_eq!((first.in_use(), first.session.open_requests()), (0, 0));
}

#[tokio::test]
async fn a_renewal_that_fails_is_not_tried_at_each_request_and_the_end_has_a_name() {
    let (alice, bob) = pair_with(by_requests(64), Method::Delta);
    mirror(&alice, &bob, 0, 10).await;
    alice.links.matches(1).await;
    let first = alice.network.pool.find(&bob.id, Instant::now()).unwrap();
    // The peer's keys are away: it refuses, and gives no reason.
    bob.keys.away.store(true, Ordering::Relaxed);
    let mut due = 0;
    while first.session.used().0 < 64 {
        due += u64::from(first.session.is_renewal_due(Instant::now()));
        mirror(&alice, &bob, 1, 10).await;
        // The handshake in the background comes to its end.
        while alice.network.pool.is_opening(&bob.id) {
            tokio::task::yield_now().await;
        }
    }
    let tries =
        (alice.keys.begun.load(Ordering::Relaxed) - 1).div_ceil(crate::p2p::settings::HANDSHAKE_ATTEMPTS as u64);
    assert!((1..due).contains(&tries), "{tries} handshakes for {due} requests");
    for _ in 0..2 {
        let ended = alice.ask(&bob, head("POST", "/mirror"), Body::empty()).await;
        assert_eq!(ended.unwrap_err(), NetworkError::SessionLimit);
    }
    bob.keys.away.store(false, Ordering::Relaxed);
    mirror(&alice, &bob, 2, 10).await;
}

#[tokio::test]
async fn a_side_with_lower_limits_opens_the_next_session_for_both() {
    let (alice, bob) = pair_of(NetworkSettings::default(), by_requests(64), Method::Beta);
    // Alice knows no limit that she comes near, and bob begins nothing himself.
    let mut number = 0;
    while !alice.network.sessions().iter().any(|session| !session.initiator && session.requests > 0) {
        mirror(&alice, &bob, number, 10).await;
        number += 1;
    }
    assert!(bob.network.sessions().iter().any(|session| session.initiator));
}

#[tokio::test]
async fn the_last_numbers_of_a_session_are_used_and_the_next_one_goes_on() {
    let (alice, bob) = pair_with(NetworkSettings::default(), Method::Alpha);
    mirror(&alice, &bob, 0, 10).await;
    alice.links.matches(1).await;
    let first = alice.network.pool.find(&bob.id, Instant::now()).unwrap();
    first.session.skip_to(SESSION_REQUESTS - 20);
    let asking = (0..64).map(|number| mirror(&alice, &bob, number, 1000));
    futures_util::future::join_all(asking).await;
    assert!(first.session.used().0 <= SESSION_REQUESTS);
    let next = alice.network.pool.find(&bob.id, Instant::now()).unwrap();
    assert!(!Arc::ptr_eq(&first, &next) && next.session.used().0 < 1000, "its numbers begin anew");
}

/// What is under way when the protocol's bytes are used up is cut, on either side, and by that name; nothing is sealed beyond them.
#[tokio::test]
async fn a_body_is_cut_where_the_protocol_ends_the_session() {
    use openred_proto::limits::SESSION_BYTES;
    let (alice, bob) = pair_with(NetworkSettings::default(), Method::Alpha);
    mirror(&alice, &bob, 0, 10).await;
    alice.links.matches(1).await;
    let first = alice.network.pool.find(&bob.id, Instant::now()).unwrap();
    first.session.budget().set(SESSION_BYTES - (1 << 20));
    let body = Body::whole(Bytes::from(vec![1; 4 << 20]));
    let cut = alice.ask(&bob, head("POST", "/drain"), body).await.unwrap_err();
    assert_eq!(cut, NetworkError::SessionLimit);
    assert!(first.session.used().1 <= SESSION_BYTES + (1 << 17), "{}", first.session.used().1);
    mirror(&alice, &bob, 1, 1000).await;
}

#[tokio::test]
async fn a_session_in_use_stays_when_others_need_room() {
    let settings = NetworkSettings { sessions: 2, sessions_per_peer: 2, ..NetworkSettings::default() };
    let (alice, bob) = pair_with(settings, Method::Alpha);
    let (network, peer) = (Arc::clone(&alice.network), bob.id);
    let held = tokio::spawn(async move { network.request(peer, head("POST", "/held"), Body::empty()).await });
    bob.module.holding.notified().await;
    let first = alice.network.sessions()[0].mutual_link;
    let plan = crate::p2p::PingPlan {
        peer: bob.id,
        count: 6,
        concurrency: 1,
        size: 10,
        fresh: true,
        bulk_bytes: 0,
        module: String::new(),
    };
    let outcome = alice.network.ping(plan).await;
    assert_eq!((outcome.failed, outcome.error), (0, None));
    for node in [&alice, &bob] {
        let sessions = node.network.sessions();
        assert!(sessions.len() == 2 && sessions.iter().any(|session| session.mutual_link == first), "{sessions:?}");
    }
    bob.module.release.notify_waiters();
    assert_eq!(held.await.unwrap().unwrap().0.status, 200);
}
