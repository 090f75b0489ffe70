//! The way of a request between two well-meaning nodes, restarts and absences included.

use std::io::ErrorKind;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _};
use openred_module::{Body, BodyError};
use openred_proto::method::Method;

use super::harness::{genuine, head, pair, pair_with, patient, post, renew_unheard};
use crate::keys::KeysError;
use crate::p2p::{HANDSHAKE_PATH, NetworkError, NetworkSettings, PingPlan};

#[tokio::test]
async fn a_peer_that_knows_nothing_of_the_newest_link_is_reached_over_the_one_before() {
    let (alice, bob) = pair();
    renew_unheard(&alice, &bob, Method::Beta);
    let (answer, _) = alice.ask(&bob, head("POST", "/mirror"), Body::empty()).await.unwrap();
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn requests_of_every_size_pass_both_ways_over_one_session_under_every_method() {
    for method in Method::ALL {
        let (alice, bob) = pair_with(NetworkSettings::default(), method);
        for length in [0, 1, 256, 65_000, 65_536, 300_000] {
            let body: Vec<u8> = (0..length).map(|index| index as u8).collect();
            for (from, to) in [(&alice, &bob), (&bob, &alice)] {
                let (answer, echoed) = from.ask(to, head("POST", "/mirror"), Body::whole(body.clone())).await.unwrap();
                assert_eq!((answer.status, &echoed[..]), (200, &body[..]), "{length} bytes");
                if length == 0 {
                    // Bob may use alice's session once she has used it.
                    alice.links.matches(1).await;
                    bob.links.matches(1).await;
                }
            }
        }
        assert_eq!((alice.network.sessions().len(), bob.network.sessions().len()), (1, 1));
        let (ours, theirs) = (&alice.network.sessions()[0], &bob.network.sessions()[0]);
        assert_eq!((ours.mutual_link, ours.method), (theirs.mutual_link, method));
        assert!(ours.initiator && !theirs.initiator);
        assert_eq!((ours.matched, theirs.matched), (Some(true), Some(true)));
        let [opened] = &alice.links.opened.lock().unwrap()[..] else { panic!("one session") };
        assert_eq!((opened.counter, opened.mutual_link), (1, ours.mutual_link));
        assert_eq!(bob.links.opened.lock().unwrap()[0].counter, 1);
    }
}

#[tokio::test]
async fn concurrent_callers_share_one_handshake() {
    let (alice, bob) = pair();
    let asking = (0..64).map(|_| alice.ask(&bob, head("POST", "/mirror"), Body::whole(&b"hello"[..])));
    for answered in futures_util::future::join_all(asking).await {
        assert_eq!(answered.unwrap().1, "hello");
    }
    assert_eq!(alice.network.sessions().len(), 1);
    alice.links.matches(1).await;
    bob.links.matches(1).await;
    assert_eq!(bob.keys.operations(), 2 + 3, "card, accepted offer, and three of one handshake");
}

#[tokio::test]
async fn tokens_are_compared_once_a_link_and_not_once_a_session() {
    let (alice, bob) = pair();
    alice.ask(&bob, head("POST", "/mirror"), Body::whole(&b"one"[..])).await.unwrap();
    bob.links.matches(1).await;
    while !alice.network.validated().contains(&alice.links.handle().link) {
        tokio::task::yield_now().await;
    }
    let first = alice.network.pool.find(&bob.id, std::time::Instant::now()).unwrap();
    alice.network.pool.remove(&first);
    alice.ask(&bob, head("POST", "/mirror"), Body::whole(&b"two"[..])).await.unwrap();
    while alice.network.sessions()[0].matched.is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(alice.network.sessions()[0].matched, Some(true), "known of the link");
    assert_eq!((alice.links.matches(1).await.len(), bob.links.matches(1).await.len()), (1, 1));
    // With the link goes what was known of it.
    alice.network.link_removed(&alice.links.handle().link);
    assert!(alice.network.validated().is_empty());
}

#[tokio::test]
async fn bodies_stream_both_ways_without_being_held() {
    let (alice, bob) = pair();
    let (sender, body) = Body::channel();
    let asking = alice.network.request(bob.id, head("POST", "/mirror"), body);
    let feeding = async {
        for piece in 0..64_u8 {
            sender.send(Bytes::from(vec![piece; 50_000])).await.unwrap();
        }
        sender.finish().await;
    };
    let (answered, ()) = tokio::join!(
        async {
            let (_, mut body) = asking.await.unwrap();
            let mut bytes = Vec::new();
            while let Some(piece) = body.next().await {
                bytes.extend_from_slice(&piece.unwrap());
            }
            bytes
        },
        feeding
    );
    assert_eq!(answered.len(), 64 * 50_000);
    assert!(answered.chunks(50_000).zip(0..64_u8).all(|(chunk, piece)| chunk.iter().all(|byte| *byte == piece)));
}

#[tokio::test]
async fn a_body_that_breaks_off_is_an_error_at_the_other_end_and_never_an_end() {
    let (alice, bob) = pair();
    let (sender, body) = Body::channel();
    let breaking = async {
        sender.send(Bytes::from(vec![1; 100_000])).await.unwrap();
        bob.module.holding.notified().await;
        sender.abort(BodyError::Failed).await;
    };
    let (asked, ()) = tokio::join!(alice.ask(&bob, head("POST", "/drain"), body), breaking);
    assert!(asked.is_err());
    let mut drained = bob.module.drained.subscribe();
    let drained = drained.wait_for(Option::is_some).await.unwrap().unwrap();
    assert!(matches!(drained, Err(BodyError::Failed | BodyError::Truncated)), "{drained:?}");

    let (_, body) = alice.network.request(bob.id, head("GET", "/broken"), Body::empty()).await.unwrap();
    bob.module.release.notify_one();
    let error = body.collect(1 << 20).await.unwrap_err();
    assert!(matches!(error, BodyError::Failed | BodyError::Truncated), "{error:?}");

    let mut promised = head("POST", "/drain");
    promised.length = Some(10);
    assert!(alice.ask(&bob, promised.clone(), Body::whole(vec![0; 9])).await.is_err(), "shorter than promised");
    assert!(alice.ask(&bob, promised, Body::whole(vec![0; 11])).await.is_err(), "longer than promised");
    alice.ask(&bob, head("POST", "/mirror"), Body::empty()).await.expect("the session is not harmed");
}

#[tokio::test]
async fn absent_peers_links_endpoints_and_keys_are_named() {
    let (alice, mut bob) = pair();
    let operations = alice.keys.operations();
    let stranger = openred_proto::id::NodeId::from_bytes([9; 32]);
    let ask = |peer| alice.network.request(peer, head("GET", "/mirror"), Body::empty());
    assert_eq!(ask(stranger).await.unwrap_err(), NetworkError::NotLinked);
    *alice.endpoints.0.lock().unwrap() = vec!["https://name.example".into()];
    assert_eq!(ask(bob.id).await.unwrap_err(), NetworkError::NoEndpoint);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    *alice.endpoints.0.lock().unwrap() = vec![format!("http://{closed}")];
    assert_eq!(ask(bob.id).await.unwrap_err(), NetworkError::PeerOffline(ErrorKind::ConnectionRefused));
    assert_eq!(alice.keys.operations(), operations, "nothing is asked of the keys for a peer that is not there");

    alice.endpoints.0.lock().unwrap().push(format!("http://{}", bob.address));
    ask(bob.id).await.expect("the next endpoint is tried");
    alice.keys.away.store(true, Ordering::Relaxed);
    ask(bob.id).await.expect("an open session needs no keys");
    // Ends the session; a link that is removed for good opens none any more.
    alice.network.link_removed(&alice.links.handle().link);
    alice.network.link_added(alice.links.handle());
    assert_eq!(ask(bob.id).await.unwrap_err(), NetworkError::Keys(KeysError::Away));
    alice.keys.away.store(false, Ordering::Relaxed);
    bob.keys.away.store(true, Ordering::Relaxed);
    assert_eq!(ask(bob.id).await.unwrap_err(), NetworkError::PeerRefusedHandshake);
    bob.keys.away.store(false, Ordering::Relaxed);
    ask(bob.id).await.expect("and works when the keys are back");
    alice.links.forget();
    alice.network.link_removed(&bob.links.handle().link);
    assert_eq!(ask(bob.id).await.unwrap_err(), NetworkError::NotLinked);
    bob.stop().await;
}

#[tokio::test]
async fn a_restarted_peer_is_asked_again_only_what_may_be_repeated() {
    let (alice, mut bob) = pair();
    alice.ask(&bob, head("POST", "/mirror"), Body::empty()).await.unwrap();
    bob.restart().await;
    alice.ask(&bob, head("GET", "/mirror"), Body::empty()).await.expect("a GET may be repeated");
    bob.restart().await;
    let mut keyed = head("POST", "/mirror");
    keyed.idempotency_key = vec![7; 16];
    let (_, body) = alice.ask(&bob, keyed, Body::whole(&b"again"[..])).await.expect("a key makes it repeatable");
    assert_eq!(body, "again");
    bob.restart().await;
    let served = bob.module.served.load(Ordering::Relaxed);
    let refused = alice.ask(&bob, head("POST", "/mirror"), Body::empty()).await.unwrap_err();
    assert!(matches!(refused, NetworkError::PeerRefusedSession | NetworkError::Interrupted), "{refused:?}");
    assert_eq!(bob.module.served.load(Ordering::Relaxed), served, "it was not carried out");
    alice.ask(&bob, head("POST", "/mirror"), Body::empty()).await.expect("the next one opens a new session");
}

#[tokio::test]
async fn simultaneous_opens_end_in_sessions_that_both_can_use() {
    for _ in 0..8 {
        let (alice, bob) = pair();
        let (to_bob, to_alice) = tokio::join!(
            alice.ask(&bob, head("POST", "/mirror"), Body::whole(&b"a"[..])),
            bob.ask(&alice, head("POST", "/mirror"), Body::whole(&b"b"[..])),
        );
        assert_eq!((&to_bob.unwrap().1[..], &to_alice.unwrap().1[..]), (&b"a"[..], &b"b"[..]));
    }
}

/// Bob keeps the initiator's role for as long as alice's keys are at his REQUEST, and refuses each of hers.
#[tokio::test]
async fn a_session_of_ones_own_waits_for_the_peers_handshake() {
    let (one, other) = pair();
    let (alice, bob) = if one.id < other.id { (other, one) } else { (one, other) };
    alice.keys.answers.send_replace(false);
    let (network, peer) = (bob.network.clone(), alice.id);
    let asking = tokio::spawn(async move { network.request(peer, head("GET", "/mirror"), Body::empty()).await });
    while !alice.network.responder().is_answering(&bob.id) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (network, plan) = (alice.network.clone(), PingPlan { fresh: true, ..plan(&bob) });
    let mut pinging = tokio::spawn(async move { network.ping(plan).await });
    let early = tokio::time::timeout(Duration::from_millis(300), &mut pinging).await;
    assert!(early.is_err(), "it gave up: {:?}", early.unwrap().unwrap().error);
    alice.keys.answers.send_replace(true);
    let outcome = pinging.await.unwrap();
    assert_eq!(outcome.failed, 0, "{:?}", outcome.error);
    asking.await.unwrap().expect("his own is opened as well");
}

/// Alice has bob's REQUEST, and he is not heard of again.
#[tokio::test]
async fn a_handshake_that_the_peer_has_left_is_waited_for_no_longer_than_it_is_kept() {
    let settings = NetworkSettings { handshake_timeout: Duration::from_secs(3600), ..patient() };
    for is_swept in [true, false] {
        let (one, other) = pair_with(settings.clone(), Method::Beta);
        let (alice, bob) = if one.id < other.id { (other, one) } else { (one, other) };
        let request = genuine(&bob, &alice, 1).await;
        post(alice.address, HANDSHAKE_PATH, &request.encode()).await;
        assert!(alice.network.responder().is_answering(&bob.id));
        let mut waiting = std::pin::pin!(alice.network.wait_for_theirs(&bob.id));
        assert!(waiting.as_mut().now_or_never().is_none());
        if is_swept {
            alice.network.sweep(Instant::now() + Duration::from_secs(60));
        } else {
            alice.network.link_removed(&alice.links.handle().link);
        }
        tokio::time::timeout(Duration::from_secs(120), waiting).await.expect("its end is told");
    }
}

#[tokio::test]
async fn deadlines_end_a_wait_and_a_dispatch() {
    let (alice, bob) = pair();
    alice.ask(&bob, head("POST", "/mirror"), Body::empty()).await.unwrap();
    let mut hurried = head("POST", "/held");
    hurried.deadline_millis = 50;
    let ended = alice.ask(&bob, hurried, Body::empty()).await;
    // Both ends keep the same time: either the peer says so first, or this side gives up first.
    assert!(matches!(&ended, Err(NetworkError::TimedOut)) || ended.is_ok_and(|(head, _)| head.status == 504));
}

#[tokio::test]
async fn a_stopping_node_lets_running_requests_end() {
    let (alice, mut bob) = pair();
    let (module, network, peer) = (bob.module.clone(), alice.network.clone(), bob.id);
    let asking = tokio::spawn(async move { network.request(peer, head("POST", "/held"), Body::empty()).await });
    module.holding.notified().await;
    let release = async {
        module.release.notify_waiters();
        asking.await.unwrap().unwrap().0.status
    };
    let ((), status) = tokio::join!(bob.stop(), release);
    assert_eq!(status, 200);
}

#[tokio::test]
async fn the_pool_is_bounded_and_a_removed_link_ends_its_sessions() {
    let settings = NetworkSettings { sessions: 2, ..NetworkSettings::default() };
    let (alice, bob) = pair_with(settings, Method::Alpha);
    let outcome = alice.network.ping(PingPlan { count: 12, fresh: true, ..plan(&bob) }).await;
    assert_eq!((outcome.failed, outcome.micros.len()), (0, 12), "{:?}", outcome.error);
    assert!(alice.network.sessions().len() <= 2 && bob.network.sessions().len() <= 2);
    bob.network.link_removed(&bob.links.handle().link);
    assert!(!bob.network.has_session(&alice.id));
    let refused = alice.ask(&bob, head("GET", "/mirror"), Body::empty()).await.unwrap_err();
    assert_eq!(refused, NetworkError::PeerRefusedHandshake);
}

#[tokio::test]
async fn ping_measures_echoes_fresh_sessions_bulk_and_modules() {
    let (alice, bob) = pair();
    let plan = plan(&bob);
    let outcome = alice.network.ping(PingPlan { count: 50, concurrency: 8, ..plan.clone() }).await;
    assert_eq!((outcome.sent, outcome.failed, outcome.bytes), (50, 0, 50 * 256));
    assert_eq!(outcome.mutual_link, Some(alice.network.sessions()[0].mutual_link));
    let outcome = alice.network.ping(PingPlan { count: 24, concurrency: 8, fresh: true, ..plan.clone() }).await;
    assert_eq!((outcome.failed, outcome.micros.len()), (0, 24), "{:?}", outcome.error);
    let outcome = alice.network.ping(PingPlan { bulk_bytes: 20_000_000, ..plan.clone() }).await;
    assert_eq!((outcome.failed, outcome.bytes), (0, 20_000_000), "{:?}", outcome.error);
    let outcome = alice.network.ping(PingPlan { module: "test".into(), ..plan }).await;
    assert_eq!(outcome.failed, 0, "a 404 is an answer");
}

fn plan(peer: &super::harness::TestNode) -> PingPlan {
    PingPlan { peer: peer.id, count: 1, concurrency: 1, size: 256, fresh: false, bulk_bytes: 0, module: String::new() }
}

/// The peer came to us: our own requests go to the first of its endpoints that answers, and nobody is asked again where that is.
#[tokio::test]
async fn a_peer_that_came_to_us_is_looked_for_once() {
    let (alice, bob) = pair();
    alice.ask(&bob, head("POST", "/mirror"), Body::empty()).await.unwrap();
    // A port on which nobody listens: bound once, then closed.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    bob.endpoints.0.lock().unwrap().insert(0, format!("http://{nobody}"));
    for _ in 0..10 {
        bob.ask(&alice, head("POST", "/mirror"), Body::empty()).await.unwrap();
    }
    assert_eq!(bob.endpoints.1.load(Ordering::Relaxed), 1);
    assert_eq!(bob.endpoints.2.load(Ordering::Relaxed), 0);
    assert_eq!(bob.network.sessions().len(), 1, "no second session");
}

#[tokio::test]
async fn a_peer_that_answers_nowhere_is_named_to_the_directory_client() {
    let (alice, mut bob) = pair();
    alice.ask(&bob, head("POST", "/mirror"), Body::empty()).await.unwrap();
    bob.ask(&alice, head("POST", "/mirror"), Body::empty()).await.unwrap();
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    *alice.endpoints.0.lock().unwrap() = vec![format!("http://{nobody}")];
    bob.stop().await;
    alice.network.link_removed(&alice.links.handle().link);
    alice.network.link_added(alice.links.handle());
    let failed = alice.ask(&bob, head("GET", "/mirror"), Body::empty()).await;
    assert!(matches!(failed, Err(crate::p2p::NetworkError::PeerOffline(_))), "{failed:?}");
    assert_eq!(alice.endpoints.2.load(Ordering::Relaxed), 1);
}

/// Eight at a time on connections of their own: none overtakes another on its way, none is refused.
#[tokio::test]
async fn parallel_handshakes_with_one_peer_are_all_answered() {
    let (alice, bob) = pair();
    let plan = PingPlan {
        peer: bob.id,
        count: 64,
        concurrency: 8,
        size: 16,
        fresh: true,
        bulk_bytes: 0,
        module: String::new(),
    };
    let outcome = alice.network.ping(plan).await;
    assert_eq!((outcome.sent, outcome.failed, outcome.error), (64, 0, None));
}
