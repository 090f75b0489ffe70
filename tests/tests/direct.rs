//! Links by direct contact, with real processes and no directory anywhere: two people compare words, a link is issued inside, and
//! what must not happen does not.
#![allow(clippy::unwrap_used, reason = "tests")]

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use openred_tests::harness::{Answer, Node, signal_pid, wait_for};
use openred_tests::world::{World, inbox, link_with};
use serde_json::Value;

const ASK: &str = "[links]\ndirect = \"ask\"\n";
const OPEN: &str = "[links]\ndirect = \"open\"\n";

fn world() -> World {
    World::without_directory().unwrap()
}

fn url(node: &Node) -> String {
    format!("http://{}", node.listen)
}

/// `link direct` as a program runs it: nobody is asked, the contact is held.
fn contact(from: &Node, to: &Node) -> Value {
    from.cli(&["link", "direct", &url(to)]).unwrap().json().unwrap()
}

/// The contacts that a node shows.
fn contacts(node: &Node) -> Vec<Value> {
    let list = node.cli(&["link", "list"]).unwrap().json().unwrap();
    list["contacts"].as_array().unwrap().clone()
}

fn text<'a>(of: &'a Value, field: &str) -> &'a str {
    of[field].as_str().unwrap()
}

fn refused(answer: &Answer, exit: i32, code: &str) {
    assert!(answer.code == exit && answer.stderr.contains(code), "{answer:?}");
}

/// Waits until both sides use one link.
fn both_active(one: &Node, other: &Node) {
    wait_for("a link that both use", || {
        let (ours, theirs) = (link_with(one, &other.id)?, link_with(other, &one.id)?);
        ensure!(ours["link_id"] == theirs["link_id"], "{ours} {theirs}");
        ensure!(ours["state"] == "active" && theirs["state"] == "active", "{ours} {theirs}");
        ensure!(ours["match"] == "matched", "{ours}");
        Ok(Some(()))
    })
    .unwrap();
}

/// That neither holds anything of the other.
fn nothing_between(one: &Node, other: &Node) {
    for (node, peer) in [(one, other), (other, one)] {
        let list = node.cli(&["link", "list", "--all"]).unwrap().json().unwrap();
        let links = list["links"].as_array().unwrap();
        assert!(links.iter().all(|link| link["peer"] != peer.id.as_str()), "{links:?}");
    }
}

fn trail(node: &Node) -> String {
    node.cli(&["audit", "export"]).unwrap().ok().unwrap().stdout
}

/// Whether a record of this event has this outcome.
fn has_record(node: &Node, event: &str, outcome: &str) -> bool {
    trail(node).lines().any(|line| line.contains(&format!("\"{event}\"")) && line.contains(&format!("\"{outcome}\"")))
}

fn kill_noded(node: &Node) -> Result<()> {
    let before = node.child_pid("noded")?;
    signal_pid(before, Signal::SIGKILL)?;
    wait_for("the restart", || {
        ensure!(node.child_pid("noded")? != before, "not killed yet");
        node.cli(&["link", "list"])?.ok()?;
        Ok(Some(()))
    })
}

#[test]
fn two_people_compare_words_and_a_link_comes_of_it() {
    let world = world();
    let (alice, bob) = (world.alone("alice", ASK).unwrap(), world.alone("bob", ASK).unwrap());
    let ours = contact(&alice, &bob);
    assert_eq!((text(&ours, "peer"), &ours["initiator"]), (bob.id.as_str(), &true.into()));
    let theirs = contacts(&bob);
    assert_eq!((theirs.len(), text(&theirs[0], "peer")), (1, alice.id.as_str()));
    assert_eq!(ours["words"], theirs[0]["words"]);
    nothing_between(&alice, &bob);
    let words = text(&ours, "words").to_owned();
    let offered = alice.cli(&["link", "accept", &bob.id, "--words", &words]).unwrap().json().unwrap();
    assert_eq!(offered["state"], "offered");
    let waiting = wait_for("the offer", || link_with(&bob, &alice.id).map(Some)).unwrap();
    assert_eq!((text(&waiting, "state"), text(&waiting, "mutual_words")), ("waiting", words.as_str()));
    bob.cli(&["link", "accept", &alice.id, "--words", &words.to_uppercase()]).unwrap().ok().unwrap();
    both_active(&alice, &bob);
    bob.cli(&["send", &alice.id, "without anybody between"]).unwrap().ok().unwrap();
    wait_for("the message", || Ok((inbox(&alice)? == ["without anybody between"]).then_some(()))).unwrap();
    assert!(contacts(&alice).is_empty() && contacts(&bob).is_empty(), "the contact has done what it was for");
    assert!(has_record(&alice, "direct.finished", "ok") && has_record(&bob, "direct.completed", "ok"));
    assert!(trail(&alice).contains("link.issued") && trail(&bob).contains("link.accepted"));
    // With the link there, neither side does it again.
    for (from, to) in [(&alice, &bob), (&bob, &alice)] {
        refused(&from.cli(&["link", "direct", &url(to)]).unwrap(), 6, "link.exists");
        assert!(has_record(from, "direct.begun", "direct-downgrade"), "{}", trail(from));
    }
}

#[test]
fn a_link_of_one_side_alone_is_a_downgrade_there() {
    let world = world();
    let (alice, mut bob) = (world.alone("alice", "").unwrap(), world.alone("bob", OPEN).unwrap());
    alice.cli(&["link", "direct", &url(&bob), "--yes"]).unwrap().ok().unwrap();
    both_active(&alice, &bob);
    // Alice ends it while bob is away, and he has not heard of it.
    bob.down().unwrap();
    alice.cli(&["link", "revoke", &bob.id]).unwrap().ok().unwrap();
    bob.up_without_answers().unwrap();
    refused(&alice.cli(&["link", "direct", &url(&bob), "--yes"]).unwrap(), 5, "contact.refused");
    assert!(has_record(&bob, "direct.completed", "direct-downgrade"), "{}", trail(&bob));
    bob.cli(&["link", "revoke", &alice.id]).unwrap().ok().unwrap();
    alice.cli(&["link", "direct", &url(&bob), "--yes"]).unwrap().ok().unwrap();
    both_active(&alice, &bob);
}

#[test]
fn off_unless_allowed_and_only_the_one_that_was_meant() {
    let world = world();
    let (alice, bob, carol) =
        (world.alone("alice", "").unwrap(), world.alone("bob", "").unwrap(), world.alone("carol", OPEN).unwrap());
    refused(&alice.cli(&["link", "direct", &url(&bob), "--yes"]).unwrap(), 5, "contact.refused");
    refused(
        &alice.cli(&["link", "direct", &url(&carol), "--expect", &bob.id, "--yes"]).unwrap(),
        5,
        "contact.unexpected",
    );
    let pinned = format!("{}#{}", url(&carol), bob.id);
    refused(&alice.cli(&["link", "direct", &pinned, "--yes"]).unwrap(), 5, "contact.unexpected");
    refused(&alice.cli(&["link", "direct", &pinned, "--expect", &carol.id, "--yes"]).unwrap(), 2, "contact.address");
    refused(&alice.cli(&["link", "direct", "http://carol.example:1", "--yes"]).unwrap(), 2, "contact.address");
    refused(&alice.cli(&["link", "direct", &url(&alice), "--yes"]).unwrap(), 5, "contact.refused");
    refused(&carol.cli(&["link", "direct", &url(&carol), "--yes"]).unwrap(), 2, "link.with-itself");
    nothing_between(&alice, &bob);
    nothing_between(&alice, &carol);
    assert!(contacts(&carol).is_empty());
    let pinned = format!("{}#{}", url(&carol), carol.id);
    alice.cli(&["link", "direct", &pinned, "--yes"]).unwrap().ok().unwrap();
    both_active(&alice, &carol);
}

/// Mallory is reached in bob's place, and reaches bob: what bob shows is not what alice shows.
#[test]
fn somebody_between_is_noticed_by_the_words() {
    let world = world();
    let (alice, bob, mallory) =
        (world.alone("alice", "").unwrap(), world.alone("bob", ASK).unwrap(), world.alone("mallory", OPEN).unwrap());
    let near = contact(&alice, &mallory);
    let far = contact(&mallory, &bob);
    let shown = contacts(&bob)[0].clone();
    assert_eq!(shown["words"], far["words"]);
    assert_ne!(shown["words"], near["words"]);
    let read = text(&shown, "words").to_owned();
    refused(&alice.cli(&["link", "direct", &url(&mallory), "--words", &read]).unwrap(), 5, "contact.words");
    assert!(contacts(&alice).is_empty(), "the contact is over");
    refused(&bob.cli(&["link", "accept", &mallory.id, "--words", text(&near, "words")]).unwrap(), 5, "contact.words");
    assert!(contacts(&bob).is_empty());
    // What mallory sends now has nowhere to go.
    let brought = mallory.cli(&["link", "accept", &bob.id]).unwrap();
    assert_ne!(brought.code, 0, "{brought:?}");
    for (one, other) in [(&alice, &bob), (&alice, &mallory), (&mallory, &bob)] {
        nothing_between(one, other);
    }
}

#[test]
fn killed_at_any_step_nothing_is_left_half_linked() {
    let world = world();
    let (alice, bob) = (world.alone("alice", "").unwrap(), world.alone("bob", ASK).unwrap());
    // The one that began it dies before it is confirmed.
    contact(&alice, &bob);
    kill_noded(&alice).unwrap();
    refused(&alice.cli(&["link", "accept", &bob.id, "--words", "any"]).unwrap(), 4, "contact.none");
    nothing_between(&alice, &bob);
    // The other one dies before it is confirmed.
    contact(&alice, &bob);
    kill_noded(&bob).unwrap();
    assert!(contacts(&bob).is_empty());
    refused(&alice.cli(&["link", "accept", &bob.id]).unwrap(), 5, "contact.refused");
    nothing_between(&alice, &bob);
    // Offered, and the other side dies while its operator thinks: his node forgets it, and hears it again with the next contact.
    alice.cli(&["link", "direct", &url(&bob), "--yes", "--wait", "0"]).unwrap().ok().unwrap();
    wait_for("the offer", || link_with(&bob, &alice.id).map(Some)).unwrap();
    kill_noded(&bob).unwrap();
    let list = bob.cli(&["link", "list", "--all"]).unwrap().json().unwrap();
    assert_eq!(list["links"].as_array().unwrap().len(), 0);
    let offered = link_with(&alice, &bob.id).unwrap();
    assert_eq!(offered["state"], "offered");
    let held = wait_for("the end of the first contact", || {
        let answer = alice.cli(&["link", "direct", &url(&bob)])?.json()?;
        ensure!(contacts(&bob).iter().any(|contact| contact["words"] == answer["words"]), "still the first: {answer}");
        Ok(Some(answer))
    })
    .unwrap();
    alice.cli(&["link", "accept", &bob.id, "--words", text(&held, "words")]).unwrap().ok().unwrap();
    let waiting = wait_for("the same offer", || link_with(&bob, &alice.id).map(Some)).unwrap();
    assert_eq!(waiting["link_id"], offered["link_id"]);
    // The issuer dies before the other side says yes: there is nobody to take the receipt, and the first handshake stands for it.
    kill_noded(&alice).unwrap();
    bob.cli(&["link", "accept", &alice.id]).unwrap().ok().unwrap();
    both_active(&alice, &bob);
}

#[test]
fn a_locked_node_contacts_nobody_and_answers_nobody() {
    let world = world();
    let (alice, bob) = (world.alone("alice", "").unwrap(), world.alone("bob", OPEN).unwrap());
    bob.cli(&["key", "lock"]).unwrap().ok().unwrap();
    refused(&alice.cli(&["link", "direct", &url(&bob), "--yes"]).unwrap(), 5, "contact.refused");
    alice.cli(&["key", "lock"]).unwrap().ok().unwrap();
    refused(&alice.cli(&["link", "direct", &url(&bob), "--yes"]).unwrap(), 8, "cryptod.away");
    for node in [&alice, &bob] {
        let passphrase = format!("{}.passphrase", node.home.display());
        node.cli(&["key", "unlock", "--passphrase-file", &passphrase]).unwrap().ok().unwrap();
    }
    wait_for("the contact", || {
        alice.cli(&["link", "direct", &url(&bob), "--yes"])?.ok().context("after the keys are back")?;
        Ok(Some(()))
    })
    .unwrap();
    both_active(&alice, &bob);
}

/// A link of the shortest life renews itself with nobody's help.
#[test]
fn it_lives_on_without_any_directory() {
    let world = world();
    let (alice, bob) = (world.alone("alice", "").unwrap(), world.alone("bob", OPEN).unwrap());
    alice.cli(&["link", "direct", &url(&bob), "--yes", "--life", "10s"]).unwrap().ok().unwrap();
    both_active(&alice, &bob);
    let first = link_with(&alice, &bob.id).unwrap();
    wait_for("a renewed link", || {
        let newest = link_with_newest(&alice, &bob)?;
        Ok((newest["link_id"] != first["link_id"] && newest["state"] == "active").then_some(()))
    })
    .unwrap();
    bob.cli(&["peers", "ping", &alice.id, "--count", "1"]).unwrap().ok().unwrap();
}

fn link_with_newest(node: &Node, peer: &Node) -> Result<Value> {
    let list = node.cli(&["link", "list"])?.json()?;
    let links = list["links"].as_array().context("links")?.iter().filter(|link| link["peer"] == peer.id.as_str());
    links.cloned().max_by_key(|link| link["created_at"].as_u64()).context("no link")
}
