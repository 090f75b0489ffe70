//! A handshake whose messages are lost, held or doubled on the way: the same bytes get the same answer, and the keys are asked once. And
//! two handshakes that meet on their way.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use openred_module::{Body, PeerError};
use openred_proto::checked::session::Side;
use openred_proto::method::Method;
use tokio::sync::Barrier;

use super::harness::{TestNode, head, pair_with};
use super::proxy::{Fate, Kind, Proxy};
use crate::p2p::NetworkSettings;

/// A pair whose way from alice to bob leads over a proxy. What is held is sent again after two seconds.
async fn over_proxy() -> (TestNode, TestNode, Arc<Proxy>) {
    let settings = NetworkSettings { handshake_timeout: Duration::from_secs(4), ..NetworkSettings::default() };
    let (alice, bob) = pair_with(settings, Method::Beta);
    let proxy = Proxy::start(bob.address).await;
    *alice.endpoints.0.lock().unwrap() = vec![format!("http://{}", proxy.address)];
    (alice, bob, proxy)
}

/// One handshake and reply; gives what it cost bob's keys.
async fn connect(alice: &TestNode, bob: &TestNode) -> u64 {
    let (answer, body) = alice.ask(bob, head("POST", "/mirror"), Body::whole(&b"x"[..])).await.unwrap();
    assert_eq!((answer.status, &body[..]), (200, &b"x"[..]));
    bob.links.matches(1).await;
    assert_eq!((alice.network.sessions().len(), bob.network.sessions().len()), (1, 1));
    bob.keys.operations()
}

#[tokio::test]
async fn a_lost_message_of_each_phase_is_mended_by_the_same_bytes() {
    let (alice, bob, proxy) = over_proxy().await;
    let undisturbed = connect(&alice, &bob).await;
    assert_eq!((proxy.sent(Kind::Request).len(), proxy.sent(Kind::Finalize).len()), (1, 1));
    // REQUEST and VERIFY, FINALIZE and ACCEPT.
    let fates = [Fate::LoseMessage, Fate::LoseAnswer, Fate::HoldMessage, Fate::HoldAnswer];
    let cases = [Kind::Request, Kind::Finalize].into_iter().flat_map(|kind| fates.map(|fate| (kind, fate)));
    join_all(cases.map(|(kind, fate)| async move {
        let (alice, bob, proxy) = over_proxy().await;
        proxy.next(kind, fate);
        assert_eq!(connect(&alice, &bob).await, undisturbed, "{kind:?} {fate:?}: the keys are asked as often");
        for of in [Kind::Request, Kind::Finalize] {
            let sent = proxy.sent(of);
            assert_eq!(sent.len(), if of == kind { 2 } else { 1 }, "{kind:?} {fate:?}");
            assert!(sent.iter().all(|body| *body == sent[0]), "{kind:?} {fate:?}: the same bytes");
        }
    }))
    .await;
}

#[tokio::test]
async fn all_four_lost_in_one_handshake_cost_no_more() {
    let (alice, bob, _) = over_proxy().await;
    let undisturbed = connect(&alice, &bob).await;
    for (request, finalize) in [
        (Fate::LoseMessage, Fate::LoseAnswer),
        (Fate::LoseAnswer, Fate::LoseMessage),
        (Fate::LoseAnswer, Fate::LoseAnswer),
    ] {
        let (alice, bob, proxy) = over_proxy().await;
        proxy.next(Kind::Request, request);
        proxy.next(Kind::Finalize, finalize);
        assert_eq!(connect(&alice, &bob).await, undisturbed, "{request:?} {finalize:?}");
    }
}

#[tokio::test]
async fn messages_that_arrive_twice_at_once_get_one_answer() {
    let (alice, bob, _) = over_proxy().await;
    let undisturbed = connect(&alice, &bob).await;
    let (alice, bob, proxy) = over_proxy().await;
    proxy.next(Kind::Request, Fate::Twice);
    proxy.next(Kind::Finalize, Fate::Twice);
    assert_eq!(connect(&alice, &bob).await, undisturbed);
    assert_eq!(proxy.alike(), [true, true], "the second waits for what the first is answered");
}

/// What is lost for good fails that handshake alone.
#[tokio::test]
async fn what_is_lost_again_and_again_fails_and_the_next_handshake_succeeds() {
    for kind in [Kind::Request, Kind::Finalize] {
        for fate in [Fate::LoseMessage, Fate::LoseAnswer] {
            let (alice, bob, proxy) = over_proxy().await;
            for _ in 0..2 {
                proxy.next(kind, fate);
            }
            let failed = alice.ask(&bob, head("POST", "/mirror"), Body::empty()).await;
            assert_eq!(failed.unwrap_err(), crate::p2p::NetworkError::Interrupted, "{kind:?} {fate:?}");
            let (answer, _) = alice.ask(&bob, head("POST", "/mirror"), Body::empty()).await.unwrap();
            assert_eq!(answer.status, 200, "{kind:?} {fate:?}");
            let requests = proxy.sent(Kind::Request);
            assert_ne!(requests.first(), requests.last(), "a new handshake, not the old bytes");
        }
    }
}

/// Two nodes that dial each other; each way leads over a proxy where messages can wait for each other.
async fn facing() -> (TestNode, TestNode, Arc<Proxy>, Arc<Proxy>) {
    let (alice, bob) = pair_with(NetworkSettings::default(), Method::Gamma);
    // By id: only so is it known who keeps the role.
    let (low, high) = if alice.id < bob.id { (alice, bob) } else { (bob, alice) };
    let meeting = Arc::new(Barrier::new(2));
    let to_high = Proxy::start_meeting(high.address, Arc::clone(&meeting)).await;
    let to_low = Proxy::start_meeting(low.address, meeting).await;
    *low.endpoints.0.lock().unwrap() = vec![format!("http://{}", to_high.address)];
    *high.endpoints.0.lock().unwrap() = vec![format!("http://{}", to_low.address)];
    (low, high, to_high, to_low)
}

/// Both ask each other, the lower id once `first` is over; both are answered, and there is one session, which the lower id began.
async fn one_session(low: &TestNode, high: &TestNode, first: impl Future<Output = ()>) {
    let asking = async {
        first.await;
        low.ask(high, head("POST", "/mirror"), Body::whole(&b"a"[..])).await
    };
    let (to_high, to_low) = tokio::join!(asking, high.ask(low, head("POST", "/mirror"), Body::whole(&b"b"[..])));
    assert_eq!((&to_high.unwrap().1[..], &to_low.unwrap().1[..]), (&b"a"[..], &b"b"[..]));
    let sessions = [low, high].map(|node| node.network.pool.all());
    let [[at_low], [at_high]] = [&sessions[0][..], &sessions[1][..]] else { panic!("{sessions:?}") };
    assert_eq!((at_low.session.side, at_high.session.side), (Side::Initiator, Side::Responder));
    assert_eq!(at_low.session.mutual_link, at_high.session.mutual_link);
}

#[tokio::test]
async fn two_requests_that_cross_end_in_one_session_that_the_lower_id_began() {
    let (low, high, to_high, to_low) = facing().await;
    to_high.next(Kind::Request, Fate::Meet);
    to_low.next(Kind::Request, Fate::Meet);
    one_session(&low, &high, async {}).await;
}

/// The higher id was first, but its FINALIZE meets the REQUEST of the lower.
#[tokio::test]
async fn a_finalize_that_crosses_the_lower_ids_request_gives_way_to_it() {
    let (low, high, to_high, to_low) = facing().await;
    to_high.next(Kind::Request, Fate::Meet);
    to_low.next(Kind::Finalize, Fate::Meet);
    let there = async {
        while to_low.sent(Kind::Finalize).is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    one_session(&low, &high, there).await;
    assert_eq!(to_low.sent(Kind::Request).len(), 1, "the higher id's handshake was under way");
}

/// The lower id has lost its REQUEST on the way and is about to try elsewhere: until it does, the other's is as good as any.
#[tokio::test]
async fn a_request_that_came_to_nothing_is_in_nobodys_way() {
    let (low, high, _, _) = facing().await;
    let meeting = Arc::new(Barrier::new(2));
    let nowhere = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let lost = Proxy::start_meeting(nowhere.local_addr().unwrap(), Arc::clone(&meeting)).await;
    tokio::spawn(async move {
        loop {
            drop(nowhere.accept().await);
        }
    });
    let endpoints = [lost.address, high.address].map(|address| format!("http://{address}"));
    *low.endpoints.0.lock().unwrap() = endpoints.to_vec();
    lost.next(Kind::Request, Fate::Meet);
    let (network, peer) = (Arc::clone(&low.network), high.id);
    let asking = tokio::spawn(async move { network.request(peer, head("POST", "/mirror"), Body::empty()).await });
    while lost.sent(Kind::Request).is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(low.network.pool.is_opening(&high.id), "its REQUEST is out");
    // Its keys take their time over the next one.
    low.keys.gate.send_replace(false);
    meeting.wait().await;
    while low.keys.begun.load(Ordering::Relaxed) < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(high.ask(&low, head("POST", "/mirror"), Body::empty()).await.unwrap().0.status, 200);
    low.keys.gate.send_replace(true);
    assert_eq!(asking.await.unwrap().unwrap().0.status, 200);
}

/// A refusal is not sealed: whoever carries the bytes can put it in the place of the answer to a request that was carried out.
#[tokio::test]
async fn a_refusal_in_place_of_the_answer_leaves_open_whether_the_request_was_carried_out() {
    let (alice, bob, proxy) = over_proxy().await;
    connect(&alice, &bob).await;
    proxy.next(Kind::Session, Fate::Refuse);
    let refused = alice.ask(&bob, head("POST", "/mirror"), Body::empty()).await.unwrap_err();
    assert_eq!(bob.module.served.load(Ordering::Relaxed), 2, "carried out, and not sent again without a key");
    assert!(refused.to_string().ends_with("may have been carried out"), "{refused}");
    assert_eq!(PeerError::from(refused), PeerError::Interrupted);
}
