//! Handshakes without a link through the vault: grants, records, the downgrade on both sides, places and quota.

use openred_proto::id::HandshakeId;
use openred_proto::limits::HALF_OPEN_DIRECT_PER_ROLE;
use openred_proto::method::Method;
use openred_proto::vault::Capacity;

use super::*;

const METHOD: Method = Method::Beta;

fn begin(node: &mut Node, peer: NodeId) -> (HandshakeId, Vec<u8>) {
    match node.ask(Request::StartDirect { method: METHOD, peer }) {
        Reply::HandshakeStarted { handshake, noise } => (handshake, noise),
        other => panic!("{other:?}"),
    }
}

fn answer_direct(noise: &[u8]) -> Request {
    Request::AnswerDirect { method: METHOD, noise: noise.to_vec(), directory_head: Vec::new() }
}

fn answered(node: &mut Node, noise: &[u8]) -> (HandshakeId, Vec<u8>) {
    match node.ask(answer_direct(noise)) {
        Reply::HandshakeAnswered { handshake, noise } => (handshake, noise),
        other => panic!("{other:?}"),
    }
}

fn finish(handshake: HandshakeId, noise: &[u8]) -> Request {
    Request::FinishHandshake { handshake, noise: noise.to_vec(), directory_head: Vec::new() }
}

/// Up to FINALIZE: the grant at `one`, and what `other` is to be asked.
fn to_finalize(one: &mut Node, other: &mut Node) -> (SessionGrant, Request) {
    let (started, request) = begin(one, other.id());
    let (handshake, verify) = answered(other, &request);
    match one.ask(finish(started, &verify)) {
        Reply::HandshakeFinished { noise, grant } => (grant, Request::CompleteHandshake { handshake, noise }),
        other => panic!("{other:?}"),
    }
}

fn contact(one: &mut Node, other: &mut Node) -> (SessionGrant, SessionGrant) {
    let (first, complete) = to_finalize(one, other);
    match other.ask(complete) {
        Reply::HandshakeCompleted { grant } => (first, grant),
        other => panic!("{other:?}"),
    }
}

fn events(node: &Node) -> Vec<(Event, u8)> {
    super::audit::trail(node).into_iter().map(|record| (record.event, record.outcome)).collect()
}

#[test]
fn two_strangers_prove_who_they_are_and_each_side_has_its_record() {
    let (mut alice, mut bob) = (Node::new(1), Node::new(2));
    let (first, second) = contact(&mut alice, &mut bob);
    assert_eq!((&first.send, &first.receive), (&second.receive, &second.send));
    assert_eq!((first.hash, first.mutual_link), (second.hash, second.mutual_link));
    assert_eq!((first.peer, second.peer), (bob.id(), alice.id()));
    assert_eq!((first.link, second.link, first.match_proof), (None, None, [0; 32]));
    // What was asked for is durable with its record before the answer is sent: the loop commits first.
    assert!(
        events(&alice).contains(&(Event::DirectFinished, 0)) && events(&bob).contains(&(Event::DirectCompleted, 0))
    );
}

#[test]
fn nobody_contacts_himself_or_another_than_was_meant() {
    let (mut alice, mut bob, mut carol) = (Node::new(1), Node::new(2), Node::new(3));
    let own = alice.id();
    assert_eq!(alice.refusal(Request::StartDirect { method: METHOD, peer: own }), Refusal::NotAllowed);
    let (started, request) = begin(&mut alice, bob.id());
    let (_, verify) = answered(&mut carol, &request);
    assert_eq!(alice.refusal(finish(started, &verify)), Refusal::HandshakeFailed);
    let (_, verify) = answered(&mut bob, &request);
    assert_eq!(alice.refusal(finish(started, &verify)), Refusal::HandshakeGone, "one try");
}

#[test]
fn with_a_live_link_both_sides_refuse_and_say_so_in_the_trail() {
    let downgrade = Refusal::DirectDowngrade.number();
    let (mut alice, mut bob) = (Node::new(1), Node::new(2));
    let card = bob.card();
    let issued = alice.issue(bob.id(), card, MethodSet::ALL);
    // An offer that nobody has answered is no link.
    contact(&mut alice, &mut bob);
    let (_, under_way) = to_finalize(&mut alice, &mut bob);
    let accepted = bob.accept(received(&alice, &issued.bytes));
    // The responder hears only with FINALIZE who it is.
    assert_eq!(bob.refusal(under_way), Refusal::DirectDowngrade);
    assert!(events(&bob).contains(&(Event::DirectCompleted, downgrade)));
    let peer = alice.id();
    assert_eq!(bob.refusal(Request::StartDirect { method: METHOD, peer }), Refusal::DirectDowngrade);
    assert!(events(&bob).contains(&(Event::DirectBegun, downgrade)));
    // The issuer knows once the peer has proved that it holds the link; also one that is under way ends there.
    let (started, request) = begin(&mut alice, bob.id());
    let (_, verify) = answered(&mut bob, &request);
    shake(&mut alice, &issued.row, &mut bob, &accepted.row);
    assert_eq!(alice.refusal(finish(started, &verify)), Refusal::DirectDowngrade);
    assert!(events(&alice).contains(&(Event::DirectFinished, downgrade)));
    let peer = bob.id();
    assert_eq!(alice.refusal(Request::StartDirect { method: METHOD, peer }), Refusal::DirectDowngrade);
    // With the link's end it is free again.
    for node in [&mut alice, &mut bob] {
        node.ask(Request::RevokeLink { link: issued.summary.link });
    }
    contact(&mut alice, &mut bob);
}

#[test]
fn strangers_take_their_own_places_and_quota_and_no_others() {
    let (mut alice, mut bob, issued, accepted) = linked();
    let mut carol = Node::new(3);
    let request = |from: &mut Node, to: NodeId| begin(from, to).1;
    for round in 0..HALF_OPEN_DIRECT_PER_ROLE {
        if round == HALF_OPEN_DIRECT_PER_ROLE - 1 {
            // The one that asks abandons nothing: its own places are as bounded.
            carol.now = carol.now.plus(Duration::from_secs(11));
        }
        let noise = request(&mut carol, NodeId::from_bytes([9; 32]));
        answered(&mut bob, &noise);
    }
    let noise = request(&mut carol, NodeId::from_bytes([9; 32]));
    assert_eq!(bob.refusal(answer_direct(&noise)), Refusal::Capacity(Capacity::HalfOpen));
    shake(&mut alice, &issued.row, &mut bob, &accepted.row);
    // Places come back; the rate is what is left.
    bob.now = bob.now.plus(Duration::from_secs(11));
    let refused = (0..200).find_map(|_| match bob.ask(answer_direct(&noise)) {
        Reply::Refused(Refusal::Quota) => Some(()),
        _ => None,
    });
    assert!(refused.is_some());
    let (first, _) = shake(&mut alice, &issued.row, &mut bob, &accepted.row);
    assert_eq!(first.peer, bob.id(), "linked peers are not slowed down");
}
