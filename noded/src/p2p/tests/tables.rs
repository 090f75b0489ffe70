//! What is kept of handshakes, contacts and links that are over: nothing, also on a node that nobody asks any more.

use std::sync::atomic::Ordering;
use std::time::Instant;

use openred_module::Body;
use openred_proto::limits::{HALF_OPEN_LIFE, REQUEST_REPEAT};

use super::harness::{TestNode, genuine, head, pair, post};
use crate::config::DirectPolicy;
use crate::p2p::direct::Address;
use crate::p2p::direct::contacts::LIFE;
use crate::p2p::{HANDSHAKE_PATH, NetworkSettings};

/// Asked again and again, each time with a handshake of its own.
#[tokio::test]
async fn what_is_remembered_of_handshakes_goes_with_their_time() {
    let (alice, bob) = pair();
    for counter in 1..=3 {
        let unfinished = genuine(&alice, &bob, counter).await.encode();
        post(bob.address, HANDSHAKE_PATH, &unfinished).await;
    }
    alice.ask(&bob, head("POST", "/mirror"), Body::empty()).await.unwrap();
    assert_eq!(bob.network.responder().kept(), [3, 4, 1], "half-open, VERIFYs, ACCEPTs");
    bob.network.sweep(Instant::now());
    assert_eq!(bob.network.responder().kept(), [3, 4, 1], "they may be asked for again");
    bob.network.sweep(Instant::now() + HALF_OPEN_LIFE.max(REQUEST_REPEAT));
    assert_eq!(bob.network.responder().kept(), [0, 0, 0]);
    assert_eq!(bob.network.sessions().len(), 1, "what came of it stays");
}

/// The link ends while the key process makes the REQUEST: what is under way comes to nothing, and leaves nothing.
#[tokio::test]
async fn a_link_that_ends_under_a_handshake_leaves_no_counters() {
    let (alice, bob) = pair();
    let link = alice.links.handle().link;
    assert_eq!(alice.network.attempts().len(), 1);
    alice.keys.gate.send_replace(false);
    let ending = async {
        while alice.keys.begun.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        alice.links.forget();
        alice.network.link_removed(&link);
        alice.keys.gate.send_replace(true);
    };
    let (answered, ()) = tokio::join!(alice.ask(&bob, head("POST", "/mirror"), Body::empty()), ending);
    assert!(answered.is_err());
    assert_eq!(alice.network.attempts().len(), 0);
    assert!(alice.network.validated().is_empty() && alice.network.sessions().is_empty());
}

#[tokio::test]
async fn contacts_that_are_over_go_with_their_keys() {
    let node =
        |seed| TestNode::start(seed, NetworkSettings { direct: DirectPolicy::Open, ..NetworkSettings::default() });
    let (alice, bob) = (node(1), node(2));
    let address = Address::parse(&format!("http://{}", bob.address)).unwrap();
    alice.network.contact(&address).await.unwrap();
    let kept = |node: &TestNode| (node.network.contacts.kept(), node.network.direct().waiting());
    assert_eq!((kept(&alice), kept(&bob)), ((1, 0), (1, 0)));
    for node in [&alice, &bob] {
        node.network.sweep(Instant::now());
        assert_eq!(kept(node), (1, 0));
        node.network.sweep(Instant::now() + LIFE);
        assert_eq!(kept(node), (0, 0));
    }
}
