//! Which requests leave which records, and that a vault that cannot record uses no key.

use openred_proto::audit::verify::Verifier;
use openred_proto::audit::{Record, SEGMENT_BYTES, SLOTS};
use openred_proto::id::LinkId;

use super::*;
use crate::unseal::Keystore;

/// The records of the node's file, which verify.
pub(super) fn trail(node: &Node) -> Vec<Record> {
    let mut verifier = Verifier::new(node.id(), Vec::new());
    let mut records = Vec::new();
    verifier.segment(&node.trail[0], &mut |record| records.push(*record));
    assert_eq!(verifier.finish().faults, []);
    records
}

/// The records behind the first `seen`: event and outcome.
fn since(node: &Node, seen: usize) -> Vec<(Event, u8)> {
    trail(node)[seen..].iter().map(|record| (record.event, record.outcome)).collect()
}

fn ask_operator(node: &mut Node, body: Request) -> Reply {
    let outcome = node.vault.handle(node.now, &mut node.random, Role::Operator, Frame { id: 7, body });
    node.commit();
    outcome.reply.body
}

#[test]
fn a_links_life_is_in_both_trails_and_names_the_peer_only_to_the_vault() {
    let (mut alice, mut bob, issued, accepted) = linked();
    shake(&mut alice, &issued.row, &mut bob, &accepted.row);
    let link: LinkId = issued.summary.link;
    assert!(matches!(alice.ask(Request::RevokeLink { link }), Reply::Done));
    let of = |node: &Node| trail(node).iter().map(|record| record.event).collect::<Vec<_>>();
    use Event::{CardSigned, HandshakeCompleted, HandshakeFinished, LinkAccepted, LinkIssued, LinkRevoked};
    use Event::{PrekeyMade, SegmentBegun, Started, StaticsSigned};
    let start = [SegmentBegun, Started, PrekeyMade, StaticsSigned];
    assert_eq!(of(&alice), [&start[..], &[LinkIssued, HandshakeFinished, LinkRevoked]].concat());
    assert_eq!(of(&bob), [&start[..], &[CardSigned, LinkAccepted, HandshakeCompleted]].concat());
    let Reply::AuditSubject(subject) = ask_operator(&mut alice, Request::AuditSubject { peer: bob.id() }) else {
        panic!("no subject");
    };
    assert!(trail(&alice)[4..].iter().all(|record| record.subject == subject));
    let peer = bob.id();
    let Reply::AuditSubject(others) = ask_operator(&mut bob, Request::AuditSubject { peer }) else {
        panic!("no subject");
    };
    assert_ne!(subject, others, "each node names with a key of its own");
}

#[test]
fn a_word_that_was_taken_back_while_no_vault_ran_is_in_the_trail_once() {
    let keys = || Keystore::generate(&mut random(4), NOW);
    let thiefs = [7, 8].map(|byte| NodeId::from_bytes([byte; 32]));
    let keyring = |keys: Keystore| {
        let descent = keys.descent();
        Keyring::descended(&mut keys.into_secrets(), &descent).unwrap()
    };
    let once = || keys().taken_back(thiefs[0], None, NOW).unwrap();
    let of = |node: &Node| {
        let records = trail(node).into_iter().filter(|record| record.event == Event::SuccessionTakenBack);
        records.map(|record| record.subject).collect::<Vec<_>>()
    };
    let named = thiefs.map(|thief| crate::audit::subject(&keyring(keys()).audit, &thief));
    let again = |node: Node, keys: Keystore| Node::of(keyring(keys), 1, node.file, node.trail, NOW);
    let mut node = Node::of(keyring(keys()), 1, Vec::new(), Default::default(), NOW);
    assert_eq!(of(&node), [[0; 32]; 0]);
    node = again(node, once());
    assert_eq!(of(&node), named[..1], "with the first vault that has the word");
    node = again(node, once());
    assert_eq!(of(&node), named[..1], "and with no later one");
    node = again(node, once().taken_back(thiefs[1], None, NOW).unwrap());
    assert_eq!(of(&node), named);
}

#[test]
fn every_operation_that_is_refused_leaves_a_record() {
    let mut node = Node::new(1);
    let seen = trail(&node).len();
    assert_eq!(node.refusal(Request::LinkKeys { row: vec![3; 97] }), Refusal::RowSealed);
    assert_eq!(node.refusal(Request::StartHandshake { row: vec![3; 97] }), Refusal::RowSealed);
    let link = LinkId::from_bytes([1; 16]);
    assert_eq!(node.refusal(Request::RevokeLink { link }), Refusal::LinkGone);
    assert_eq!(node.refusal(Request::StoreKey { purpose: "../x".into() }), Refusal::NotAllowed);
    let unknown = Request::Report { event: 9999, count: 1 };
    assert_eq!(node.refusal(unknown), Refusal::NotAllowed);
    let foreign = Request::Report { event: Event::FilterBroken.number(), count: 1 };
    assert_eq!(node.refusal(foreign), Refusal::NotAllowed, "the supervisor's to say");
    let outcome = Refusal::NotAllowed.number();
    let wanted = [
        (Event::LinkOpened, Refusal::RowSealed.number()),
        (Event::HandshakeBegun, Refusal::RowSealed.number()),
        (Event::LinkRevoked, Refusal::LinkGone.number()),
        (Event::StoreKeyGiven, outcome),
        (Event::Misbehaved, outcome),
        (Event::FilterBroken, outcome),
    ];
    assert_eq!(since(&node, seen), wanted);
}

#[test]
fn reports_are_recorded_with_their_count_and_misbehaviour_before_the_end() {
    let mut node = Node::new(1);
    let seen = trail(&node).len();
    assert!(matches!(node.ask(Request::Report { event: Event::Flooded.number(), count: 17 }), Reply::Done));
    let note = Request::Note { event: Event::ProcessDied.number(), count: 0 };
    assert!(matches!(ask_operator(&mut node, note), Reply::Done));
    assert!(node.vault.handle_frame(NOW, &mut node.random, Role::Node, &[0xff; 9]).hang_up);
    node.commit();
    let malformed = Refusal::Malformed.number();
    assert_eq!(since(&node, seen), [(Event::Flooded, 0), (Event::ProcessDied, 0), (Event::Misbehaved, malformed)]);
    assert_eq!(trail(&node)[seen].count, 17);
}

#[test]
fn a_death_by_the_filter_is_recorded_though_the_share_of_refusals_is_spent() {
    let mut node = Node::new(1);
    let report = || Request::Report { event: Event::CallRefused.number(), count: 3 };
    while !matches!(node.ask(report()), Reply::Refused(_)) {
        assert_eq!(node.refusal(Request::LinkKeys { row: vec![3; 97] }), Refusal::RowSealed);
    }
    assert_eq!(node.refusal(report()), Refusal::Quota, "what is not in the trail is not called done");
    let seen = trail(&node).len();
    let note = Request::Note { event: Event::FilterBroken.number(), count: 1 };
    assert!(matches!(ask_operator(&mut node, note), Reply::Done));
    let records = since(&node, seen);
    assert!(records.contains(&(Event::FilterBroken, 0)), "{records:?}");
    assert!(!records.contains(&(Event::CallRefused, 0)), "{records:?}");
}

#[test]
fn a_note_that_has_no_place_is_not_called_done() {
    let mut node = Node::new(1);
    let note = || Request::Note { event: Event::LayerOff.number(), count: 1 };
    let (mut done, mut last) = (0, Reply::Done);
    while matches!(last, Reply::Done) && done < 1000 {
        last = ask_operator(&mut node, note());
        done += usize::from(matches!(last, Reply::Done));
    }
    assert!(matches!(last, Reply::Refused(Refusal::Quota)), "{last:?}");
    let listed = trail(&node).iter().filter(|record| record.event == Event::LayerOff).count();
    assert_eq!(listed, done, "each that was called done is there");
}

#[test]
fn with_both_segments_full_no_key_is_used_until_one_is_filed() {
    let mut node = Node::new(1);
    // As after two closed segments: the second one is full up to its reserve.
    let unlocked = node.vault.unlocked.as_mut().unwrap();
    let fill = |unlocked: &mut Unlocked| {
        while unlocked.make_room(NOW).is_ok() && unlocked.trail.head().slot as usize + 20 < SLOTS {
            unlocked.trail.record(Event::HttpSigned, 0, None, NOW);
        }
    };
    fill(unlocked);
    unlocked.trail.record(Event::HttpSigned, 0, None, NOW);
    while unlocked.trail.head().segment == 1 {
        unlocked.trail.record(Event::HttpSigned, 0, None, NOW);
        unlocked.make_room(NOW).unwrap();
    }
    fill(unlocked);
    while unlocked.make_room(NOW).is_ok() {
        unlocked.trail.record(Event::HttpSigned, 0, None, NOW);
    }
    node.commit();
    let request = sign_http(node.id());
    assert_eq!(node.refusal(request), Refusal::AuditFull);
    assert_eq!(node.refusal(Request::StoreKey { purpose: "messaging".into() }), Refusal::AuditFull);
    assert!(matches!(node.ask(Request::Describe), Reply::Described { .. }), "who it is can still be asked");
    let Reply::AuditStatus(status) = ask_operator(&mut node, Request::AuditStatus) else { panic!("no status") };
    assert!(status.full && status.waiting == Some(1));
    node.trail[0] = vec![0; SEGMENT_BYTES];
    assert!(matches!(ask_operator(&mut node, Request::AuditFiled { segment: 1 }), Reply::Done));
    let request = sign_http(node.id());
    assert!(matches!(node.ask(request), Reply::Signature(_)));
    let left_out = node.vault.unlocked.as_ref().unwrap().trail.left_out();
    assert_eq!(left_out, 2, "what was refused for want of room is counted, to be said");
    let again = node.restart();
    assert_eq!(again.vault.unlocked.as_ref().unwrap().trail.head().segment, 3);
}

#[test]
fn a_lock_is_the_trails_signed_end() {
    let mut node = Node::new(1);
    assert!(matches!(ask_operator(&mut node, Request::Lock), Reply::Done));
    assert_eq!(trail(&node).last().unwrap().event, Event::Locked);
    let request = sign_http(node.id());
    assert_eq!(node.refusal(request), Refusal::StateLost);
    let mut verifier = Verifier::new(node.id(), Vec::new());
    verifier.segment(&node.trail[0], &mut |_| {});
    let report = verifier.finish();
    assert_eq!(report.signed, report.last);
}
