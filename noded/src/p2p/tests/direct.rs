//! Direct contact over real sockets and between real vaults: who is met, what is asked before the key process is, and what it offers.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use openred_module::Body;
use openred_proto::checked::direct::{DirectGreeting, DirectRequest, encode_hello};
use openred_proto::checked::handshake::RequestAnswer;
use openred_proto::checked::session::RequestHead;
use openred_proto::id::NodeId;
use openred_proto::method::{Method, MethodSet};
use openred_proto::vault::Refusal;

use super::contacts::{ours, stranger};
use super::harness::{TestNode, head, pair_with, raw};
use super::proxy::{Fate, Kind, Proxy};
use crate::config::DirectPolicy;
use crate::handshake::direct as request;
use crate::keys::KeysError;
use crate::link::words;
use crate::p2p::direct::Address;
use crate::p2p::direct::contacts::{CONTACTS, Came, Contact};
use crate::p2p::{NetworkError, NetworkSettings};

fn open() -> NetworkSettings {
    NetworkSettings { direct: DirectPolicy::Open, ..NetworkSettings::default() }
}

fn node(seed: u8) -> TestNode {
    TestNode::start(seed, open())
}

fn address(node: &TestNode) -> Address {
    Address::parse(&format!("http://{}", node.address)).unwrap()
}

async fn contact(from: &TestNode, to: &TestNode) -> Result<Arc<Contact>, NetworkError> {
    from.network.contact(&address(to)).await
}

/// Posts to a node's handshake route: the status line's code, and the body.
async fn post(node: &TestNode, body: &[u8]) -> (u16, Vec<u8>) {
    let head = format!(
        "POST /p2p/handshake HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let answer = raw(node.address, &[head.as_bytes(), body].concat()).await;
    let split = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let code = String::from_utf8_lossy(&answer[9..12]).parse().unwrap();
    (code, answer[split + 4..].to_vec())
}

/// A REQUEST that nobody can finish, as whoever knows the node's id can make it.
fn junk(to: NodeId, seed: u8) -> DirectRequest {
    request::build(&request::mac1_key(&to), Method::Alpha, vec![seed; 1300])
}

#[tokio::test]
async fn two_strangers_read_the_same_words() {
    let (alice, bob) = (node(1), node(2));
    let ours = contact(&alice, &bob).await.unwrap();
    let theirs = bob.network.contact_with(&alice.id, false).unwrap();
    assert_eq!((ours.peer, theirs.peer), (bob.id, alice.id));
    assert!(words::are(theirs.mutual_link(), &words::words(ours.mutual_link())));
    let again = contact(&alice, &bob).await.unwrap();
    assert!(Arc::ptr_eq(&ours, &again), "one that is open is given again");
    alice.network.drop_contact(&ours);
    let anew = contact(&alice, &bob).await.unwrap();
    assert_ne!(anew.mutual_link(), theirs.mutual_link(), "each contact has words of its own");
    assert_eq!(bob.network.contacts().len(), 1, "and takes the place of the one before");
    assert!(alice.network.sessions().is_empty() && bob.network.sessions().is_empty(), "it is no session of a link");
}

/// Mallory is whom alice reaches and who reaches bob: no two read the same.
#[tokio::test]
async fn somebody_between_is_seen_in_the_words() {
    let (alice, bob, mallory) = (node(1), node(2), node(66));
    let near = contact(&alice, &mallory).await.unwrap();
    contact(&mallory, &bob).await.unwrap();
    let far = bob.network.contact_with(&mallory.id, false).unwrap();
    assert!(!words::are(near.mutual_link(), &words::words(far.mutual_link())));
    assert!(bob.network.contact_with(&alice.id, false).is_none());
}

#[tokio::test]
async fn strangers_who_fill_their_places_leave_the_operator_his_own_and_their_end_has_a_name() {
    let (alice, bob, carol) = (node(1), node(2), node(3));
    let now = std::time::Instant::now();
    for number in 101..101 + CONTACTS as u8 {
        assert!(alice.network.contacts.insert(&stranger(number, number, now), now));
    }
    contact(&alice, &bob).await.unwrap();
    while alice.network.contacts.has_room_to(&carol.id, now) {
        let number = alice.network.contacts().len() as u8;
        assert!(alice.network.contacts.insert(&ours(number, now), now));
    }
    assert_eq!(contact(&alice, &carol).await.unwrap_err(), NetworkError::ContactsFull);
    assert_eq!(carol.keys.operations(), 0, "it was asked who it is, and nothing else");
    contact(&alice, &bob).await.expect("the one with bob is open");
}

/// The node there has another identity by now, or is another: the contact with who was there before is in nobody's way.
#[tokio::test]
async fn an_open_contact_that_does_not_answer_is_made_anew_with_whoever_is_there() {
    let (alice, bob, carol) = (node(1), node(2), node(3));
    for is_pinned in [false, true] {
        let before = Proxy::start(bob.address).await;
        let address = Address::parse(&format!("http://{}", before.address)).unwrap();
        let with_bob = alice.network.contact(&address).await.unwrap();
        assert!(Arc::ptr_eq(&with_bob, &alice.network.contact(&address).await.unwrap()), "the open one is given again");
        before.next(Kind::Session, Fate::LoseMessage);
        before.lead_to(carol.address);
        let meant = address.expecting(is_pinned.then_some(carol.id)).unwrap();
        assert_eq!(alice.network.contact(&meant).await.unwrap().peer, carol.id);
        assert!(alice.network.contact_with(&bob.id, true).is_none());
        let meant = meant.expecting(Some(bob.id));
        assert!(is_pinned == meant.is_none());
        if let Some(meant) = meant {
            assert_eq!(alice.network.contact(&meant).await.unwrap_err(), NetworkError::PeerUnexpected);
        }
        assert_eq!(alice.network.contacts().len(), 1);
        alice.network.end_contacts(&carol.id);
    }
}

#[tokio::test]
async fn another_than_was_meant_is_refused_before_it_hears_anything() {
    let (alice, bob, carol) = (node(1), node(2), node(3));
    let meant = address(&carol).expecting(Some(bob.id)).unwrap();
    assert_eq!(alice.network.contact(&meant).await.unwrap_err(), NetworkError::PeerUnexpected);
    assert_eq!(carol.keys.operations(), 0, "it was asked who it is, and nothing else");
    // One that says it is bob has to prove it.
    let liar = TestNode::posing(4, open(), Some(bob.id));
    let meant = address(&liar).expecting(Some(bob.id)).unwrap();
    let refused = alice.network.contact(&meant).await.unwrap_err();
    assert_eq!(refused, NetworkError::Keys(KeysError::Refused(Refusal::HandshakeFailed)));
    assert!(liar.network.contacts().is_empty(), "no FINALIZE went there");
    assert_eq!(liar.keys.operations(), 1, "its VERIFY was the last that was asked of it");
    let honest = address(&bob).expecting(Some(bob.id)).unwrap();
    alice.network.contact(&honest).await.unwrap();
    assert_eq!(alice.network.contact(&address(&alice)).await.unwrap_err(), NetworkError::WithItself);
}

#[tokio::test]
async fn off_is_refused_as_everything_is() {
    let (alice, bob) = (node(1), TestNode::start(2, NetworkSettings::default()));
    assert_eq!(contact(&alice, &bob).await.unwrap_err(), NetworkError::PeerRefusedHandshake);
    let malformed = post(&bob, b"\xff").await;
    assert_eq!(malformed, (403, Vec::new()));
    assert_eq!(post(&bob, &encode_hello()).await, malformed);
    assert_eq!(post(&bob, &junk(bob.id, 1).encode()).await, malformed);
    assert_eq!(bob.keys.operations(), 0);
    // Its own operator may go to others all the same.
    contact(&bob, &alice).await.unwrap();
}

/// Who it is shows with FINALIZE: whoever is not wanted gets no contact, and no other refusal than anybody.
#[tokio::test]
async fn whom_the_operator_has_denied_gets_no_contact() {
    let (alice, bob) = (node(1), node(2));
    bob.links.denied.store(true, Ordering::Relaxed);
    assert_eq!(contact(&alice, &bob).await.unwrap_err(), NetworkError::PeerRefusedHandshake);
    assert!(alice.network.contacts().is_empty() && bob.network.contacts().is_empty());
    bob.links.denied.store(false, Ordering::Relaxed);
    contact(&alice, &bob).await.unwrap();
}

#[tokio::test]
async fn a_flood_without_cookies_never_reaches_the_key_process() {
    let (alice, bob) = (node(1), node(2));
    let greeting = post(&bob, &encode_hello()).await;
    let greeting = DirectGreeting::decode(&greeting.1).unwrap();
    assert_eq!((greeting.node, greeting.suites), (bob.id, MethodSet::ALL));
    for round in 0..60_u8 {
        let right = junk(bob.id, round);
        let (code, answer) = post(&bob, &right.encode()).await;
        assert_eq!(code, 200, "a REQUEST without a cookie is answered with one");
        assert!(matches!(RequestAnswer::decode(&answer).unwrap(), RequestAnswer::Cookie(_)));
        let wrong_mac = DirectRequest { mac1: [round; 16], ..right.clone() };
        assert_eq!(post(&bob, &wrong_mac.encode()).await.0, 403);
        let guessed = DirectRequest { cookie: Some([round; 16]), ..right };
        assert!(matches!(
            RequestAnswer::decode(&post(&bob, &guessed.encode()).await.1).unwrap(),
            RequestAnswer::Cookie(_)
        ));
        let for_another = junk(alice.id, round);
        assert_eq!(post(&bob, &for_another.encode()).await.0, 403);
    }
    assert_eq!(bob.keys.operations(), 0);
    contact(&alice, &bob).await.unwrap();
    assert!(bob.keys.operations() > 0, "the control");
}

#[tokio::test]
async fn contacts_of_one_address_are_bounded_before_the_key_process_is_asked() {
    let bob = node(2);
    let mut strangers = Vec::new();
    for seed in 10..18 {
        let stranger = node(seed);
        contact(&stranger, &bob).await.unwrap();
        strangers.push(stranger);
    }
    let asked = bob.keys.operations();
    let one_more = node(18);
    assert_eq!(contact(&one_more, &bob).await.unwrap_err(), NetworkError::PeerRefusedHandshake);
    assert_eq!(bob.keys.operations(), asked);
    let theirs = bob.network.contact_with(&strangers[0].id, false).unwrap();
    bob.network.drop_contact(&theirs);
    contact(&one_more, &bob).await.unwrap();
}

#[tokio::test]
async fn with_a_live_link_neither_side_takes_part() {
    let (alice, bob) = pair_with(open(), Method::Beta);
    // Bob has accepted; to the issuer's key process the link is one from its first handshake on.
    assert_eq!(contact(&alice, &bob).await.unwrap_err(), NetworkError::PeerRefusedHandshake);
    let downgrade = NetworkError::Keys(KeysError::Refused(Refusal::DirectDowngrade));
    assert_eq!(contact(&bob, &alice).await.unwrap_err(), downgrade);
    alice.ask(&bob, head("POST", "/mirror"), Body::empty()).await.unwrap();
    assert_eq!(contact(&alice, &bob).await.unwrap_err(), downgrade);
    assert!(alice.network.contacts().is_empty() && bob.network.contacts().is_empty());
}

#[tokio::test]
async fn a_contact_serves_no_module_and_nothing_but_its_two_questions() {
    let (alice, bob) = (node(1), node(2));
    let ours = contact(&alice, &bob).await.unwrap();
    let Came::To(reach) = &ours.came else { panic!("alice began it") };
    let ask = async |module: &str, method: &str, path: &str, bytes: usize| {
        let head = RequestHead {
            module: module.into(),
            method: method.into(),
            path: path.into(),
            length: Some(bytes as u64),
            ..RequestHead::default()
        };
        let mut body = Some(Body::whole(vec![1; bytes]));
        let ticket = ours.session.begin_request(std::time::Instant::now()).unwrap();
        let answered = alice.network.exchange(ticket, None, reach, &alice.network.connections, head, &mut body).await;
        answered.unwrap().0.status
    };
    for (module, method, path) in [
        ("test", "POST", "/mirror"),
        ("openred", "POST", "/echo"),
        ("openred", "POST", "/match"),
        ("openred", "GET", "/source?bytes=9"),
    ] {
        assert_eq!(ask(module, method, path, 0).await, 404, "{module} {path}");
    }
    assert_eq!(bob.module.served.load(Ordering::Relaxed), 0);
    assert_eq!(ask("openred", "POST", "/direct/offer", 100_000).await, 413, "a body is held to its bound");
    // What the responder might ask of the initiator is answered no better, and there is an end to questions.
    let theirs = bob.network.contact_with(&alice.id, false).unwrap();
    assert_eq!(bob.network.ask_contact(&theirs, "/direct/card", Bytes::new()).await.unwrap_err(), NetworkError::Bug);
    while theirs.count() {}
    assert_eq!(ask("openred", "POST", "/direct/card", 0).await, 404);
    bob.network.drop_contact(&theirs);
    let gone = alice.network.ask_contact(&ours, "/direct/card", Bytes::new()).await;
    assert_eq!(gone.unwrap_err(), NetworkError::PeerRefusedSession);
}

#[tokio::test]
async fn a_key_process_that_is_away_is_named_here_and_hidden_there() {
    let (alice, bob) = (node(1), node(2));
    bob.keys.away.store(true, Ordering::Relaxed);
    assert_eq!(contact(&alice, &bob).await.unwrap_err(), NetworkError::PeerRefusedHandshake);
    bob.keys.away.store(false, Ordering::Relaxed);
    alice.keys.away.store(true, Ordering::Relaxed);
    assert_eq!(contact(&alice, &bob).await.unwrap_err(), NetworkError::Keys(KeysError::Away));
    alice.keys.away.store(false, Ordering::Relaxed);
    contact(&alice, &bob).await.unwrap();
}
