//! Methods of modules at the vault: registered, linked with, retired, kept; and what modules have signed and seal with.

use openred_proto::checked::module_word::ModuleWord;
use openred_proto::method::Place;
use openred_proto::method::description::{MethodDescription, Weakness};
use openred_proto::vault::{Capacity, RegisteredMethod};
use sha2::{Digest, Sha256};

use super::*;

fn omega() -> MethodDescription {
    MethodDescription { transforms: vec![4, 2, 3], kdf: 2, hash: 3, ..MethodDescription::floor("omega") }
}

fn register(module: &str, method: &MethodDescription) -> Request {
    Request::RegisterMethod { module: module.into(), description: method.encode() }
}

fn registered(node: &mut Node, method: &MethodDescription) -> MethodSet {
    match node.ask(register("greet", method)) {
        Reply::MethodRegistered(place) => MethodSet::EMPTY.with_place(place),
        other => panic!("{other:?}"),
    }
}

fn listed(node: &mut Node) -> Vec<RegisteredMethod> {
    match node.ask(Request::ListMethods) {
        Reply::Methods(methods) => methods,
        other => panic!("{other:?}"),
    }
}

fn card_with(node: &mut Node, suites: MethodSet) -> Vec<u8> {
    match node.ask(Request::SignCard { fields: CardFields::default(), suites, life: DAY }) {
        Reply::Card { statement, .. } => statement,
        other => panic!("{other:?}"),
    }
}

/// Two nodes with another method each in the first place, so that places differ, and a link with the one that both have.
fn linked_by_omega() -> (Node, Node, Link, Link) {
    let (mut alice, mut bob) = (Node::new(1), Node::new(2));
    registered(&mut alice, &MethodDescription::floor("first"));
    let (ours, theirs) = (registered(&mut alice, &omega()), registered(&mut bob, &omega()));
    assert_ne!(ours, theirs);
    let card = card_with(&mut bob, MethodSet::ALL.union(theirs));
    let issued = alice.issue(bob.id(), card, ours);
    let offer = ReceivedOffer { allowed: theirs, ..received(&alice, &issued.bytes) };
    let accepted = bob.accept(offer);
    (alice, bob, issued, accepted)
}

#[test]
fn two_nodes_link_and_shake_hands_with_a_described_method() {
    let (mut alice, mut bob, issued, accepted) = linked_by_omega();
    assert_eq!(issued.summary.registered.map(Place::number), Some(2));
    assert_eq!(accepted.summary.registered.map(Place::number), Some(1));
    assert_eq!(issued.summary.method, openred_proto::method::Method::Gamma, "its suite");
    assert_eq!(issued.summary.epoch, NOW.seconds() / 3600);
    assert_eq!(issued.keys.outgoing, accepted.keys.incoming);
    assert_eq!(issued.keys.incoming, accepted.keys.outgoing);
    for restart in [false, true] {
        if restart {
            (alice, bob) = (alice.restart(), bob.restart());
        }
        let (mine, theirs) = shake(&mut alice, &issued.row, &mut bob, &accepted.row);
        assert_eq!((mine.send, mine.hash), (theirs.receive, theirs.hash));
        let (theirs, mine) = shake(&mut bob, &accepted.row, &mut alice, &issued.row);
        assert_eq!(mine.send, theirs.receive);
    }
}

#[test]
fn who_lacks_the_method_or_does_not_allow_it_is_offered_another_or_refuses_a_downgrade() {
    let (mut alice, mut bob) = (Node::new(1), Node::new(2));
    let ours = registered(&mut alice, &omega());
    let card = card_with(&mut bob, MethodSet::ALL);
    let both = MethodSet::EMPTY.with(openred_proto::method::Method::Beta).union(ours);
    let issued = alice.issue(bob.id(), card.clone(), both);
    assert_eq!((issued.summary.registered, issued.summary.method), (None, openred_proto::method::Method::Beta));
    let (directory, schedule) = (DIRECTORY, Schedule::Hourly);
    let none = Request::IssueLink { peer: bob.id(), card, directory, allowed: ours, schedule, life: DAY };
    assert_eq!(alice.refusal(none), Refusal::NoCommonMethod);
    // Bob's card still named it when his module was there.
    let theirs = registered(&mut bob, &omega());
    let card = card_with(&mut bob, MethodSet::ALL.union(theirs));
    let issued = alice.issue(bob.id(), card, ours);
    let offer = |allowed| ReceivedOffer { allowed, ..received(&alice, &issued.bytes) };
    let (all, with) = (offer(MethodSet::ALL), offer(theirs));
    assert_eq!(bob.refusal(Request::AcceptOffer(all)), Refusal::Downgrade, "not allowed");
    assert!(matches!(bob.ask(Request::RetireMethod { method: omega().id() }), Reply::Done));
    assert_eq!(bob.refusal(Request::AcceptOffer(with)), Refusal::Downgrade, "retired");
}

#[test]
fn a_retired_method_serves_its_links_to_their_end_and_then_makes_room() {
    let (mut alice, mut bob, issued, accepted) = linked_by_omega();
    for node in [&mut alice, &mut bob] {
        node.ask(Request::RetireMethod { method: omega().id() });
        assert!(listed(node).iter().any(|method| method.retired));
    }
    shake(&mut alice, &issued.row, &mut bob, &accepted.row);
    for number in 0..6 {
        let module = format!("m{}", number / 4);
        let name = format!("n{number}");
        alice.ask(register(&module, &MethodDescription::floor(&name)));
    }
    let more = || register("more", &MethodDescription::floor("more"));
    assert_eq!(alice.refusal(more()), Refusal::Capacity(Capacity::Methods), "a link needs the retired one");
    alice.ask(Request::RevokeLink { link: issued.summary.link });
    assert!(matches!(alice.ask(more()), Reply::MethodRegistered(place) if place.number() == 2));
    let renewed = listed(&mut alice).into_iter().find(|method| method.place.number() == 2).unwrap();
    let first = listed(&mut alice).into_iter().find(|method| method.place.number() == 1).unwrap();
    assert!(renewed.epoch > first.epoch && renewed.module == "more");
}

#[test]
fn what_is_registered_survives_a_restart_and_what_is_weak_is_named() {
    let mut node = Node::new(1);
    let set = registered(&mut node, &omega());
    let weak = MethodDescription { key_bits: 128, ..omega() };
    assert_eq!(node.refusal(register("greet", &weak)), Refusal::WeakMethod(Weakness::KeyLength));
    let broken = Request::RegisterMethod { module: "greet".into(), description: vec![9; 20] };
    assert_eq!(node.refusal(broken), Refusal::MethodMalformed);
    assert_eq!(node.refusal(register("other", &omega())), Refusal::MethodTaken);
    let before = listed(&mut node);
    let mut node = node.restart();
    assert_eq!(listed(&mut node), before);
    assert_eq!(registered(&mut node, &omega()), set, "the same again has its place");
    assert_eq!(listed(&mut node), before);
}

#[test]
fn a_module_signs_in_its_own_domain_and_no_key_is_anothers() {
    let mut node = Node::new(1);
    let body = b"openred/1/card\0this is no card";
    let (digest, length) = (Sha256::digest(body).into(), body.len() as u64);
    let sign = Request::SignModule { module: "greet".into(), domain: "words".into(), digest, length };
    let Reply::ModuleSigned(statement) = node.ask(sign) else { panic!("not signed") };
    let id = node.id();
    assert_eq!(ModuleWord::verify(&statement, &id, "greet", "words", body).unwrap(), NOW);
    assert!(ModuleWord::verify(&statement, &id, "other", "words", body).is_err());
    assert!(ModuleWord::verify(&statement, &id, "greet", "deeds", body).is_err());
    assert!(openred_proto::checked::card::Card::verify(&statement, NOW).is_err());
    let mut key = |request| match node.ask(request) {
        Reply::StoreKey(key) => *key.expose(),
        other => panic!("{other:?}"),
    };
    let mut seal = |module: &str| key(Request::SealKey { module: module.into() });
    let (greet, other) = (seal("greet"), seal("other"));
    assert_ne!(greet, other);
    assert_ne!(greet, key(Request::StoreKey { purpose: "greet".into() }));
}
