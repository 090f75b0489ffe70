//! `audited` mode between two nodes with real vaults: who demands it, who allows it, and what is kept or refused.

use std::sync::atomic::Ordering;

use openred_module::Body;
use openred_proto::checked::session_proof::SessionProof;
use openred_proto::method::Method;

use super::harness::{TestNode, head, pair_of, post};
use crate::config::AuditedPolicy::{self, Allow, Off, Require};
use crate::p2p::{NetworkError, NetworkSettings, SESSION_PATH};

fn settings(audited: AuditedPolicy) -> NetworkSettings {
    NetworkSettings { audited, ..NetworkSettings::default() }
}

/// Alice is the initiator.
fn pair(initiator: AuditedPolicy, responder: AuditedPolicy) -> (TestNode, TestNode) {
    pair_of(settings(initiator), settings(responder), Method::Beta)
}

async fn ask(alice: &TestNode, bob: &TestNode) -> Result<u16, NetworkError> {
    let (head, _) = alice.ask(bob, head("POST", "/mirror"), Body::whole(&b"x"[..])).await?;
    Ok(head.status)
}

#[tokio::test]
async fn both_sign_when_one_demands_it_and_the_other_allows_it() {
    for (initiator, responder, signed) in [
        (Off, Off, false),
        (Off, Allow, false),
        (Allow, Off, false),
        (Allow, Allow, false),
        (Require, Allow, true),
        (Allow, Require, true),
        (Require, Require, true),
    ] {
        let (alice, bob) = pair(initiator, responder);
        assert_eq!(ask(&alice, &bob).await, Ok(200), "{initiator:?} {responder:?}");
        bob.links.matches(1).await;
        let kept = [&alice, &bob].map(|node| node.links.signed.lock().unwrap().clone());
        assert_eq!(kept.each_ref().map(Vec::len), [usize::from(signed); 2], "{initiator:?} {responder:?}");
        if let ([at_alice], [at_bob]) = (&kept[0][..], &kept[1][..]) {
            let proof = SessionProof::verify(&at_alice.initiator, &at_alice.responder).unwrap();
            assert_eq!((proof.initiator, proof.responder, proof.hash), (alice.id, bob.id, at_alice.hash));
            assert_eq!((at_alice.peer, at_bob.peer), (bob.id, alice.id));
            assert_eq!((&at_alice.initiator, &at_alice.responder), (&at_bob.initiator, &at_bob.responder));
        }
        // The other way over the same session, and a second request: nothing more is signed.
        assert_eq!(ask(&bob, &alice).await, Ok(200));
        assert_eq!(ask(&alice, &bob).await, Ok(200));
        assert_eq!(alice.links.signed.lock().unwrap().len(), usize::from(signed));
    }
}

#[tokio::test]
async fn who_does_not_allow_it_gets_and_gives_no_session() {
    // The responder demands it: the initiator says why itself.
    let (alice, bob) = pair(Off, Require);
    assert_eq!(ask(&alice, &bob).await, Err(NetworkError::AuditedNotAllowed));
    assert!(!alice.network.has_session(&bob.id));
    assert_eq!(bob.module.served.load(Ordering::Relaxed), 0);
    // The initiator demands it: the responder refuses as it refuses everything, and says why in its own log.
    let (alice, bob) = pair(Require, Off);
    assert_eq!(ask(&alice, &bob).await, Err(NetworkError::PeerRefusedSession));
    assert!(!alice.network.has_session(&bob.id) && !bob.network.has_session(&alice.id));
    for node in [&alice, &bob] {
        assert!(node.links.signed.lock().unwrap().is_empty());
    }
}

/// A responder that demands signatures takes nothing else before; and the refusal is the one that there is.
#[tokio::test]
async fn nothing_is_taken_on_a_session_that_is_not_signed() {
    let (log, _guard) = super::refusals::Log::start();
    let (alice, bob) = pair(Off, Require);
    ask(&alice, &bob).await.unwrap_err();
    assert!(log.take().contains("the peer demands signed sessions"), "named at the initiator");
    // Alice's half of the handshake goes on by hand, as if she had never looked at the demand.
    let (finalize, grant) = super::hostile::up_to_finalize(&alice, &bob).await;
    let accept = post(bob.address, crate::p2p::HANDSHAKE_PATH, &finalize.encode()).await;
    let record = bytes::Bytes::copy_from_slice(super::harness::body_of(&accept));
    let now = std::time::Instant::now();
    let (session, accept) = crate::session::Session::as_initiator(&grant, &record, now).unwrap();
    assert!(accept.audited);
    let session = std::sync::Arc::new(session);
    let send = |path: &'static str| {
        let mut request = head("POST", path);
        if path == "/audited" {
            request.module = "openred".into();
        }
        let (message, _awaited) = session.begin_request(now).unwrap().start(&request, Some(0)).unwrap();
        let wire = message.finish().unwrap();
        async move { wire }
    };
    let refused = post(bob.address, SESSION_PATH, b"no session has this tag").await;
    let unsigned = post(bob.address, SESSION_PATH, &send("/mirror").await).await;
    assert_eq!(unsigned, refused, "the one refusal");
    assert!(log.take().contains("the session is not signed yet"), "named at the responder");
    let empty = post(bob.address, SESSION_PATH, &send("/audited").await).await;
    assert_eq!(empty, refused, "no signature in it");
    assert_eq!(bob.module.served.load(Ordering::Relaxed), 0);
    let (alice, bob) = pair(Require, Off);
    log.take();
    ask(&alice, &bob).await.unwrap_err();
    assert!(log.take().contains("`links.audited` is \"off\" here"), "named at the responder, too");
}

#[tokio::test]
async fn a_signature_that_cannot_be_kept_opens_no_session() {
    for full in [0, 1] {
        let (alice, bob) = pair(Require, Require);
        [&alice, &bob][full].links.full.store(true, Ordering::Relaxed);
        let expected = [NetworkError::NotSigned, NetworkError::PeerRefusedSession][full];
        assert_eq!(ask(&alice, &bob).await, Err(expected));
        assert_eq!(bob.module.served.load(Ordering::Relaxed), 0);
        [&alice, &bob][full].links.full.store(false, Ordering::Relaxed);
        assert_eq!(ask(&alice, &bob).await, Ok(200), "with room again");
    }
}
