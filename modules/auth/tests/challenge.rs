//! Challenges between two nodes on test hosts: who has the key proves it, and nobody else does.
#![allow(clippy::unwrap_used, reason = "tests")]

use openred_auth::Auth;
use openred_module::{Body, PeerRequest, Response, Status, TestHost, link};
use serde_json::Value;

async fn challenge(host: &TestHost, peer: &str) -> Response {
    host.operator(PeerRequest::post(format!("/challenge/{peer}"), "", Body::empty())).await
}

async fn code(response: Response) -> (u16, String) {
    let status = response.status.code();
    let problem: Value = response.json_body().await.unwrap();
    (status, problem["code"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn what_is_signed_names_both_nodes_and_the_challenge() {
    let (alice, bob) = (TestHost::start(1, Auth::default()).await, TestHost::start(2, Auth::default()).await);
    link(&alice, &bob);
    let nonce = [5; 32];
    let asked = |nonce: Vec<u8>| PeerRequest::post("/prove", "application/octet-stream", Body::whole(nonce));
    let proof = bob.as_peer(alice.id(), asked(nonce.to_vec())).await.body.collect(1024).await.unwrap();
    let said = |asks: &TestHost, answers: &TestHost, nonce: &[u8]| {
        [b"openred auth challenge v1\0".as_slice(), asks.id().as_bytes(), answers.id().as_bytes(), nonce].concat()
    };
    let verified = |said: &[u8]| openred_module::verify(&proof, &bob.signer(), "auth", "challenge", said).is_ok();
    assert!(verified(&said(&alice, &bob, &nonce)));
    assert!(!verified(&said(&bob, &alice, &nonce)) && !verified(&said(&alice, &bob, &[6; 32])));
    assert_eq!(code(bob.as_peer(alice.id(), asked(nonce.to_vec())).await).await, (429, "too-often".into()));
    bob.advance(1000).await;
    for wrong in [vec![], vec![1; 31], vec![1; 33]] {
        assert!(!bob.as_peer(alice.id(), asked(wrong)).await.status.is_success());
    }
    let operator = bob.operator(asked(nonce.to_vec())).await;
    assert_eq!(operator.status, Status::NotFound, "nobody but peers");
}

#[tokio::test]
async fn an_answer_of_another_key_proves_nothing() {
    let (alice, bob) = (TestHost::start(1, Auth::default()).await, TestHost::start(2, Auth::default()).await);
    link(&alice, &bob);
    // A test host's id has no key of its own: what it signs is signed by somebody else, which is what an impostor's answer is.
    assert_eq!(code(challenge(&alice, &bob.id().to_string()).await).await, (502, "not-proved".into()));
    bob.withdraw_grants();
    bob.advance(1000).await;
    assert_eq!(code(challenge(&alice, &bob.id().to_string()).await).await, (502, "peer-refused".into()));
    alice.set_offline(true);
    assert_eq!(challenge(&alice, &bob.id().to_string()).await.status, Status::BadGateway);
    assert_eq!(code(challenge(&alice, "did:key:nobody").await).await, (400, "bad-peer".into()));
}
