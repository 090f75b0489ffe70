//! Handshakes through the vault: grants, match proofs, replays, half-open bounds, restarts.

use openred_proto::id::HandshakeId;
use openred_proto::limits::{HALF_OPEN, HALF_OPEN_LIFE, HALF_OPEN_PER_LINK, HALF_OPEN_PER_ROLE};
use openred_proto::method::Method;
use openred_proto::vault::{Capacity, ShortKey};

use super::*;

fn validate(node: &mut Node, row: &[u8], grant: &SessionGrant, proof: [u8; 32]) -> bool {
    match node.ask(Request::ValidateMatch { row: row.to_vec(), hash: grant.hash, proof }) {
        Reply::MatchValidated { matched } => matched,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_session_in_each_method_and_direction() {
    for method in Method::ALL {
        let (mut alice, mut bob) = (Node::new(1), Node::new(2));
        let (issued, accepted) = link_by(&mut alice, &mut bob, MethodSet::EMPTY.with(method));
        for _ in 0..2 {
            let (first, second) = shake(&mut alice, &issued.row, &mut bob, &accepted.row);
            assert_eq!((&first.send, &first.receive), (&second.receive, &second.send));
            assert_eq!((first.hash, first.mutual_link), (second.hash, second.mutual_link));
            assert_eq!((first.peer, second.peer), (bob.id(), alice.id()));
            assert_eq!((first.method, second.method), (method, method));
            assert!(validate(&mut alice, &issued.row, &first, second.match_proof));
            assert!(validate(&mut bob, &accepted.row, &second, first.match_proof));
            assert!(!validate(&mut alice, &issued.row, &first, first.match_proof), "its own proof, reflected");
        }
        let (first, second) = shake(&mut bob, &accepted.row, &mut alice, &issued.row);
        assert_eq!((&first.send, first.peer, second.peer), (&second.receive, alice.id(), bob.id()));
    }
}

#[test]
fn what_the_operator_rotates_changes_and_nothing_breaks() {
    let (mut alice, mut bob) = (Node::new(1), Node::new(2));
    let card = bob.card();
    let prekey = |node: &mut Node| match node.ask(Request::Describe) {
        Reply::Described { prekey, .. } => prekey.id,
        other => panic!("{other:?}"),
    };
    let rotate = |node: &mut Node, what| {
        let frame = Frame { id: 4, body: Request::Rotate { what } };
        let reply = node.vault.handle(NOW, &mut node.random, Role::Operator, frame).reply.body;
        node.commit();
        reply
    };
    let statics = |node: &Node| {
        let records = &node.vault.unlocked.as_ref().unwrap().state.node.statics;
        records.iter().map(|record| *record.secret.expose()).collect::<Vec<_>>()
    };
    let (first, before) = (prekey(&mut bob), statics(&bob));
    assert!(matches!(rotate(&mut bob, ShortKey::Prekey), Reply::Done));
    assert_ne!(prekey(&mut bob), first);
    let issued = alice.issue(bob.id(), card, MethodSet::ALL);
    let accepted = bob.accept(received(&alice, &issued.bytes));
    assert!(matches!(rotate(&mut bob, ShortKey::Statics), Reply::Done));
    let after = statics(&bob);
    assert!(after.len() == before.len() && after.iter().all(|secret| !before.contains(secret)));
    shake(&mut alice, &issued.row, &mut bob, &accepted.row);
    let mut bob = bob.restart();
    assert_eq!(statics(&bob), after);
    shake(&mut bob, &accepted.row, &mut alice, &issued.row);
    // Eight are held: then the one that would be given up is still needed.
    let refused = (0..8).map(|_| rotate(&mut bob, ShortKey::Prekey)).find(|reply| !matches!(reply, Reply::Done));
    assert!(matches!(refused, Some(Reply::Refused(Refusal::Capacity(Capacity::Prekeys)))), "{refused:?}");
}

#[test]
fn a_handshake_waits_for_the_disk_once_a_side_and_its_count_follows() {
    let (mut alice, mut bob, issued, accepted) = linked();
    let (started, request) = start(&mut alice, &issued.row);
    let (answered, verify) = answer(&mut bob, &accepted.row, &request);
    let directory_head = Vec::new();
    let finish = Request::FinishHandshake { handshake: started, noise: verify, directory_head };
    let finalize =
        match alice.vault.handle(NOW, &mut alice.random, Role::Node, Frame { id: 1, body: finish }).reply.body {
            Reply::HandshakeFinished { noise, .. } => noise,
            other => panic!("{other:?}"),
        };
    let changes = alice.vault.commit(&mut alice.random).unwrap();
    assert_eq!((changes.trail.len(), changes.state.len()), (1, 0), "the grant waits for its record and nothing else");
    alice.vault.handle_timeout(NOW, &mut alice.random).unwrap();
    assert_eq!(alice.vault.commit(&mut alice.random).unwrap().state.len(), 2, "the timer writes it");
    let complete = Request::CompleteHandshake { handshake: answered, noise: finalize };
    assert!(matches!(bob.ask(complete), Reply::HandshakeCompleted { .. }));
}

#[test]
fn timestamps_are_reserved_ahead_and_a_crash_skips_what_was() {
    let (mut alice, mut bob, issued, accepted) = linked();
    let begin = |alice: &mut Node| {
        let request = Frame { id: 1, body: Request::StartHandshake { row: issued.row.clone() } };
        let reply = alice.vault.handle(alice.now, &mut alice.random, Role::Node, request).reply.body;
        let Reply::HandshakeStarted { handshake, noise } = reply else { panic!("{reply:?}") };
        let writes = alice.vault.commit(&mut alice.random).unwrap().state.len();
        alice.ask(Request::AbandonHandshake { handshake });
        (noise, writes)
    };
    // The first one's write is lost with what follows it; the disk has what `ask` has made durable before.
    let (_, request) = start(&mut alice, &issued.row);
    answer(&mut bob, &accepted.row, &request);
    for _ in 0..50 {
        let (noise, writes) = begin(&mut alice);
        assert_eq!(writes, 0, "of what is reserved nothing is written");
        let (answered, _) = answer(&mut bob, &accepted.row, &noise);
        bob.ask(Request::AbandonHandshake { handshake: answered });
    }
    // The clock stands: without the reservation the next would be a replay of one that was sent.
    let mut alice = alice.restart();
    let (noise, writes) = begin(&mut alice);
    assert_eq!(writes, 2, "a header and the record");
    answer(&mut bob, &accepted.row, &noise);
    alice.now = alice.now.plus(Duration::from_secs(60));
    assert_eq!(begin(&mut alice).1, 2, "a later time is reserved anew");
    assert_eq!(begin(&mut alice).1, 0);
}

#[test]
fn a_match_proof_of_another_session_does_not_fit() {
    let (mut alice, mut bob, issued, accepted) = linked();
    let (_, old) = shake(&mut alice, &issued.row, &mut bob, &accepted.row);
    let (new, _) = shake(&mut alice, &issued.row, &mut bob, &accepted.row);
    assert!(!validate(&mut alice, &issued.row, &new, old.match_proof));
}

#[test]
fn a_replayed_request_is_refused_also_after_a_restart() {
    let (mut alice, mut bob, issued, accepted) = linked();
    let (_, request) = start(&mut alice, &issued.row);
    answer(&mut bob, &accepted.row, &request);
    assert_eq!(bob.refusal(answer_request(&accepted.row, &request)), Refusal::Replay);
    let mut bob = bob.restart();
    assert_eq!(bob.refusal(answer_request(&accepted.row, &request)), Refusal::Replay);
    // The clock of the initiator is set back: its timestamps rise all the same, over a restart too.
    let mut alice = alice.restart();
    alice.now = alice.now.minus(Duration::from_secs(1800));
    let (_, later) = start(&mut alice, &issued.row);
    answer(&mut bob, &accepted.row, &later);
}

#[test]
fn a_reflected_request_is_refused() {
    let (mut alice, _, issued, _) = linked();
    let (_, request) = start(&mut alice, &issued.row);
    assert_eq!(alice.refusal(answer_request(&issued.row, &request)), Refusal::HandshakeFailed);
}

#[test]
fn two_links_never_cross() {
    let (mut alice, mut bob) = (Node::new(1), Node::new(2));
    let (mut carol, only) = (Node::new(3), MethodSet::EMPTY.with(Method::Alpha));
    let (issued, _) = link_by(&mut alice, &mut bob, only);
    let (_, other) = link_by(&mut carol, &mut bob, only);
    let (_, request) = start(&mut alice, &issued.row);
    assert_eq!(bob.refusal(answer_request(&other.row, &request)), Refusal::HandshakeFailed);
}

#[test]
fn every_changed_byte_of_each_message_is_refused() {
    let (mut alice, mut bob, issued, accepted) = linked();
    let (started, request) = start(&mut alice, &issued.row);
    for place in (0..request.len()).step_by(97) {
        let mut changed = request.clone();
        changed[place] ^= 0x40;
        assert_eq!(bob.refusal(answer_request(&accepted.row, &changed)), Refusal::HandshakeFailed, "byte {place}");
    }
    let (answered, mut verify) = answer(&mut bob, &accepted.row, &request);
    verify[700] ^= 1;
    let finish = Request::FinishHandshake { handshake: started, noise: verify, directory_head: Vec::new() };
    assert_eq!(alice.refusal(finish), Refusal::HandshakeFailed);
    let complete = || Request::CompleteHandshake { handshake: answered, noise: vec![1; 300] };
    assert_eq!(bob.refusal(complete()), Refusal::HandshakeFailed);
    assert_eq!(bob.refusal(complete()), Refusal::HandshakeGone, "a failed handshake leaves nothing to try on");
}

#[test]
fn half_open_handshakes_are_bounded_and_end_by_themselves() {
    let (mut alice, _, issued, _) = linked();
    for _ in 0..HALF_OPEN_PER_LINK {
        start(&mut alice, &issued.row);
    }
    let full = alice.refusal(Request::StartHandshake { row: issued.row.clone() });
    assert_eq!(full, Refusal::Capacity(Capacity::HalfOpen));
    alice.now = alice.now.plus(HALF_OPEN_LIFE);
    alice.vault.handle_timeout(alice.now, &mut alice.random).unwrap();
    assert!(matches!(alice.ask(Request::Describe), Reply::Described { half_open: 0, .. }));
    start(&mut alice, &issued.row);
}

fn signed(node: &mut Node, handshake: HandshakeId) -> (NodeId, Vec<u8>) {
    match node.ask(Request::SignSession { handshake }) {
        Reply::SessionSigned { peer, statement } => (peer, statement),
        other => panic!("{other:?}"),
    }
}

/// A whole handshake; gives both sides' names of it, and the hash.
fn ended(alice: &mut Node, own: &[u8], bob: &mut Node, theirs: &[u8]) -> (HandshakeId, HandshakeId, [u8; 32]) {
    let (started, request) = start(alice, own);
    let (answered, verify) = answer(bob, theirs, &request);
    for (node, handshake) in [(&mut *alice, started), (&mut *bob, answered)] {
        let early = node.refusal(Request::SignSession { handshake });
        assert_eq!(early, Refusal::HandshakeGone, "nothing is signed before the handshake has ended");
    }
    let finish = Request::FinishHandshake { handshake: started, noise: verify, directory_head: Vec::new() };
    let Reply::HandshakeFinished { noise, grant } = alice.ask(finish) else { panic!("not finished") };
    let complete = Request::CompleteHandshake { handshake: answered, noise };
    assert!(matches!(bob.ask(complete), Reply::HandshakeCompleted { .. }));
    (started, answered, grant.hash)
}

#[test]
fn both_sides_sign_their_role_and_the_final_hash_once_and_each_leaves_one_record() {
    use openred_proto::checked::session_proof::SessionProof;
    let (mut alice, mut bob, issued, accepted) = linked();
    let (started, answered, hash) = ended(&mut alice, &issued.row, &mut bob, &accepted.row);
    let records = |node: &Node| node.vault.unlocked.as_ref().unwrap().trail.status().sequence;
    let before = (records(&alice), records(&bob));
    let (with_bob, one) = signed(&mut alice, started);
    let (with_alice, other) = signed(&mut bob, answered);
    assert_eq!((with_bob, with_alice), (bob.id(), alice.id()));
    assert_eq!((records(&alice), records(&bob)), (before.0 + 1, before.1 + 1), "one record each");
    let proof = SessionProof { initiator: alice.id(), responder: bob.id(), hash };
    assert_eq!(SessionProof::verify(&one, &other), Ok(proof));
    assert_eq!(SessionProof::verify(&other, &one), Ok(proof), "in any order");
    assert_eq!(alice.refusal(Request::SignSession { handshake: started }), Refusal::HandshakeGone, "twice");
    assert_eq!(alice.refusal(Request::SignSession { handshake: answered }), Refusal::HandshakeGone, "another's");
    // Words of two sessions prove nothing together.
    let (started, _, _) = ended(&mut alice, &issued.row, &mut bob, &accepted.row);
    let (_, later) = signed(&mut alice, started);
    assert!(SessionProof::verify(&later, &other).is_err());
    assert!(SessionProof::verify(&one, &one).is_err());
}

#[test]
fn what_is_old_failed_or_over_a_revoked_link_is_not_signed() {
    let (mut alice, mut bob, issued, accepted) = linked();
    let (started, answered, _) = ended(&mut alice, &issued.row, &mut bob, &accepted.row);
    alice.now = alice.now.plus(HALF_OPEN_LIFE);
    assert_eq!(alice.refusal(Request::SignSession { handshake: started }), Refusal::HandshakeGone, "late");
    bob.ask(Request::RevokeLink { link: accepted.summary.link });
    assert_eq!(bob.refusal(Request::SignSession { handshake: answered }), Refusal::HandshakeGone, "revoked");
    let (mut alice, mut bob, issued, accepted) = linked();
    let (started, request) = start(&mut alice, &issued.row);
    let (answered, mut verify) = answer(&mut bob, &accepted.row, &request);
    verify[700] ^= 1;
    alice.refusal(Request::FinishHandshake { handshake: started, noise: verify, directory_head: Vec::new() });
    bob.refusal(Request::CompleteHandshake { handshake: answered, noise: vec![1; 300] });
    assert_eq!(alice.refusal(Request::SignSession { handshake: started }), Refusal::HandshakeGone, "failed");
    assert_eq!(bob.refusal(Request::SignSession { handshake: answered }), Refusal::HandshakeGone, "failed");
}

/// Another node than any that a seed gives.
fn numbered(number: usize) -> Node {
    let mut secrets = [0xee; 64];
    secrets[..8].copy_from_slice(&number.to_be_bytes());
    Node::of(Keyring::from_secrets(&mut secrets), 0, Vec::new(), Default::default(), NOW)
}

#[test]
fn in_all_there_are_as_many_as_the_bound_and_a_role_has_three_quarters() {
    let mut hub = Node::new(1);
    let full = Refusal::Capacity(Capacity::HalfOpen);
    let mut numbers = 0..;
    let mut link = |hub: &mut Node| {
        let mut peer = numbered(numbers.next().unwrap());
        let (issued, accepted) = link_by(hub, &mut peer, MethodSet::ALL);
        (peer, issued.row, accepted.row)
    };
    let rows: Vec<_> = (0..=HALF_OPEN_PER_ROLE / HALF_OPEN_PER_LINK)
        .map(|_| {
            // Offers have a rate.
            hub.now = hub.now.plus(Duration::from_millis(100));
            link(&mut hub).1
        })
        .collect();
    let (one_more, begun) = rows.split_last().unwrap();
    for row in begun {
        for _ in 0..HALF_OPEN_PER_LINK {
            start(&mut hub, row);
        }
    }
    assert_eq!(hub.refusal(Request::StartHandshake { row: one_more.clone() }), full, "the role's share");
    for _ in 0..(HALF_OPEN - HALF_OPEN_PER_ROLE) / HALF_OPEN_PER_LINK {
        let (mut peer, own, theirs) = link(&mut hub);
        for _ in 0..HALF_OPEN_PER_LINK {
            let (_, request) = start(&mut peer, &theirs);
            answer(&mut hub, &own, &request);
        }
    }
    let held = |hub: &mut Node| match hub.ask(Request::Describe) {
        Reply::Described { half_open, .. } => half_open as usize,
        other => panic!("{other:?}"),
    };
    assert_eq!(held(&mut hub), HALF_OPEN);
    let (mut peer, own, theirs) = link(&mut hub);
    let (_, request) = start(&mut peer, &theirs);
    assert_eq!(hub.refusal(answer_request(&own, &request)), full);
    assert_eq!(hub.refusal(Request::StartHandshake { row: own.clone() }), full);
    hub.now = hub.now.plus(HALF_OPEN_LIFE);
    hub.vault.handle_timeout(hub.now, &mut hub.random).unwrap();
    assert_eq!(held(&mut hub), 0);
    answer(&mut hub, &own, &request);
}

#[test]
fn the_bound_of_a_link_is_over_both_roles() {
    let (mut alice, mut bob, issued, accepted) = linked();
    for _ in 0..HALF_OPEN_PER_LINK / 2 {
        start(&mut alice, &issued.row);
        let (_, request) = start(&mut bob, &accepted.row);
        answer(&mut alice, &issued.row, &request);
    }
    let full = Refusal::Capacity(Capacity::HalfOpen);
    assert_eq!(alice.refusal(Request::StartHandshake { row: issued.row.clone() }), full);
    let (_, request) = start(&mut bob, &accepted.row);
    assert_eq!(alice.refusal(answer_request(&issued.row, &request)), full);
}

#[test]
fn a_handshake_of_a_link_that_was_revoked_meanwhile_yields_nothing() {
    let (mut alice, mut bob, issued, accepted) = linked();
    let (_, request) = start(&mut alice, &issued.row);
    let (handshake, _) = answer(&mut bob, &accepted.row, &request);
    bob.ask(Request::RevokeLink { link: accepted.summary.link });
    let complete = Request::CompleteHandshake { handshake, noise: vec![1; 300] };
    assert_eq!(bob.refusal(complete), Refusal::HandshakeGone);
}

#[test]
fn unknown_handshakes_and_wrong_heads_are_named() {
    let (mut alice, _, issued, _) = linked();
    let unknown = HandshakeId::from_bytes([9; 16]);
    assert_eq!(alice.refusal(Request::AbandonHandshake { handshake: unknown }), Refusal::HandshakeGone);
    let (handshake, _) = start(&mut alice, &issued.row);
    let head = Request::FinishHandshake { handshake, noise: vec![1], directory_head: vec![1; 31] };
    assert_eq!(alice.refusal(head), Refusal::NotAllowed);
    assert!(matches!(alice.ask(Request::AbandonHandshake { handshake }), Reply::Done));
}

#[test]
fn two_hundred_failed_attempts_then_success() {
    let (mut alice, mut bob, issued, accepted) = linked();
    for _ in 0..200 {
        let (handshake, _) = start(&mut alice, &issued.row);
        alice.ask(Request::AbandonHandshake { handshake });
    }
    shake(&mut alice, &issued.row, &mut bob, &accepted.row);
}

#[test]
fn certificates_are_renewed_while_links_live_on() {
    let (mut alice, mut bob) = (Node::new(1), Node::new(2));
    let card = bob.card();
    let life = DAY * 10;
    let (peer, directory, allowed, schedule) = (bob.id(), DIRECTORY, MethodSet::ALL, Schedule::Hourly);
    let issued = match alice.ask(Request::IssueLink { peer, card, directory, allowed, schedule, life }) {
        Reply::LinkIssued { row, offer, .. } => (row, offer),
        other => panic!("{other:?}"),
    };
    let accepted = bob.accept(received(&alice, &issued.1));
    for day in 1..9 {
        (alice.now, bob.now) = (NOW.plus(DAY * day), NOW.plus(DAY * day));
        shake(&mut alice, &issued.0, &mut bob, &accepted.row);
    }
}
