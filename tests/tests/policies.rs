//! Who may link, with real processes: each policy for incoming offers, the operator's word on a peer while the node runs, offers that wait,
//! and a flood of strangers that keeps nobody out who is known.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use openred_proto::id::NodeId;
use openred_tests::caller::{Caller, call, card_of};
use openred_tests::harness::{Node, wait_for};
use openred_tests::world::{World, link_with, registered};
use serde_json::Value;

/// A node with this text before, and this one after what `openred init` wrote.
fn node(world: &World, name: &str, before: &str, after: &str) -> Node {
    let mut node = world.init(name, after).unwrap();
    let config = node.home.join("openred.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{before}{text}")).unwrap();
    node.up().unwrap();
    registered(&node).unwrap();
    node
}

fn plain(world: &World, name: &str) -> Node {
    node(world, name, "", "")
}

/// Requests a link and does not wait for the answer.
fn request(from: &Node, to: &Node) {
    from.cli(&["link", "request", &to.id, "--wait", "0"]).unwrap().ok().unwrap();
}

fn has_link(one: &Node, other: &Node) -> Result<Option<Value>> {
    let link = link_with(one, &other.id)?;
    Ok((link["state"] == "active").then_some(link))
}

fn linked(one: &Node, other: &Node) -> Value {
    wait_for("the link", || has_link(one, other)).unwrap()
}

fn answers(one: &Node, other: &Node) {
    wait_for("a reply", || {
        one.cli(&["peers", "ping", &other.id, "--count", "1"])?.ok()?;
        Ok(Some(()))
    })
    .unwrap();
}

fn log(node: &Node) -> String {
    fs::read_to_string(node.home.with_extension("log")).unwrap()
}

/// Waits until the node's log and its trail name a refusal, more than there were before.
fn refused(node: &Node, reason: &str, before: u64) -> u64 {
    wait_for("the refusal in the log", || Ok(log(node).contains(reason).then_some(()))).unwrap();
    wait_for("the refusal in the trail", || {
        let count = refusals(node)?;
        Ok((count > before).then_some(count))
    })
    .unwrap()
}

/// Refused offers that the trail tells of.
fn refusals(node: &Node) -> Result<u64> {
    let trail = node.cli(&["audit", "export"])?.ok()?.stdout;
    let records = trail.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let of_offers = records.filter(|record| record["event"] == "node.offer_refused");
    Ok(of_offers.filter_map(|record| record["count"].as_u64()).sum())
}

/// Receipts that nodes have sent through the directory: all that a refused one could see.
fn receipts(world: &World) -> usize {
    const ACKNOWLEDGE: &[u8] = b"POST /api/v3/tokens/acknowledge";
    let sent = world.tap.received().unwrap();
    sent.windows(ACKNOWLEDGE.len()).filter(|bytes| *bytes == ACKNOWLEDGE).count()
}

fn offers(node: &Node) -> Vec<Value> {
    let listed = node.cli(&["link", "offers"]).unwrap().json().unwrap();
    listed["links"].as_array().unwrap().clone()
}

/// Takes what was offered back, and offers another link.
fn request_anew(from: &Node, to: &Node) {
    from.cli(&["link", "revoke", &to.id]).unwrap().ok().unwrap();
    request(from, to);
}

#[test]
fn an_allow_list_admits_whom_it_names_a_command_adds_to_it_and_another_policy_ends_no_link() {
    let world = World::start().unwrap();
    let (alice, carol) = (plain(&world, "alice"), plain(&world, "carol"));
    let allow = format!("[links]\nincoming = \"allow-list\"\nallow = [\"{}\"]\n", alice.id);
    let mut bob = node(&world, "bob", "", &allow);
    request(&alice, &bob);
    let of_alice = linked(&alice, &bob);
    let before = receipts(&world);
    request(&carol, &bob);
    refused(&bob, "the incoming policy does not admit this peer", 0);
    assert_eq!(link_with(&carol, &bob.id).unwrap()["state"], "offered", "she hears nothing");
    assert!(link_with(&bob, &carol.id).is_err() && offers(&bob).is_empty(), "nothing of her is kept");
    assert_eq!(receipts(&world), before);

    // While it runs, and for the offer that she has out.
    let allowed = bob.cli(&["peers", "allow", &carol.id]).unwrap().json().unwrap();
    assert_eq!(allowed["decision"], "allowed");
    let of_carol = linked(&carol, &bob);

    bob.down().unwrap();
    let config = bob.home.join("openred.toml");
    let text = fs::read_to_string(&config).unwrap().replace(&allow, "[links]\nincoming = \"ask\"\n");
    fs::write(&config, text).unwrap();
    bob.up().unwrap();
    for (peer, link) in [(&alice, &of_alice), (&carol, &of_carol)] {
        answers(&bob, peer);
        assert_eq!(link_with(&bob, &peer.id).unwrap()["link_id"], link["link_id"]);
    }
    // The yes is the peer's: another offer of hers needs none. That of the list went with the list.
    request_anew(&carol, &bob);
    linked(&carol, &bob);
    request_anew(&alice, &bob);
    wait_for("the question", || Ok((offers(&bob).len() == 1).then_some(()))).unwrap();
    assert_eq!(offers(&bob)[0]["peer"], alice.id.as_str());
}

#[test]
fn a_sector_admits_those_whose_card_names_it() {
    let world = World::start().unwrap();
    let alice = node(&world, "alice", "sector = \"north\"\n", "");
    let carol = node(&world, "carol", "sector = \"south\"\n", "");
    let bob = node(&world, "bob", "sector = \"north\"\n", "[links]\nincoming = \"sector\"\n");
    request(&carol, &bob);
    let before = refused(&bob, "the incoming policy does not admit this peer", 0);
    request(&alice, &bob);
    linked(&alice, &bob);
    assert_eq!(link_with(&carol, &bob.id).unwrap()["state"], "offered");
    // Of one's own sector and denied all the same.
    bob.cli(&["peers", "deny", &alice.id]).unwrap().ok().unwrap();
    answers(&alice, &bob);
    request_anew(&alice, &bob);
    refused(&bob, "the operator has denied this peer", before);
    assert_eq!(link_with(&alice, &bob.id).unwrap()["state"], "offered");
}

#[test]
fn an_open_node_takes_everybody_but_those_that_its_operator_denied() {
    let world = World::start().unwrap();
    let alice = plain(&world, "alice");
    let mut bob = world.node("bob").unwrap();
    let denied = bob.cli(&["peers", "deny", &alice.id]).unwrap().json().unwrap();
    assert_eq!((&denied["decision"], denied["node_id"].as_str()), (&"denied".into(), Some(alice.id.as_str())));
    request(&alice, &bob);
    refused(&bob, "the operator has denied this peer", 0);
    bob.down().unwrap();
    bob.up().unwrap();
    assert_eq!(bob.cli(&["peers", "show", &alice.id]).unwrap().json().unwrap()["decision"], "denied");
    request_anew(&alice, &bob);
    refused(&bob, "the operator has denied this peer", refusals(&bob).unwrap());
    assert_eq!(link_with(&alice, &bob.id).unwrap()["state"], "offered");
    bob.cli(&["peers", "forget", &alice.id]).unwrap().ok().unwrap();
    linked(&alice, &bob);
    assert_eq!(bob.cli(&["peers", "deny", &bob.id]).unwrap().code, 2, "itself");
    assert_eq!(bob.cli(&["peers", "allow", "alice"]).unwrap().code, 2, "no id");
}

#[test]
fn under_ask_offers_wait_for_a_word_and_a_no_touches_no_live_link() {
    let world = World::start().unwrap();
    let (alice, bob) = (plain(&world, "alice"), plain(&world, "bob"));
    request(&alice, &bob);
    let waiting = wait_for("the question", || Ok(offers(&bob).pop())).unwrap();
    let (since, until) = (waiting["created_at"].as_u64(), waiting["waits_until"].as_u64());
    assert!(until > since && waiting["peer"] == alice.id.as_str() && waiting["state"] == "waiting", "{waiting}");
    let refused_one = bob.cli(&["link", "refuse", &alice.id]).unwrap().json().unwrap();
    assert_eq!((&refused_one["state"], &refused_one["link_id"]), (&"revoked".into(), &waiting["link_id"]));
    assert_eq!(bob.cli(&["link", "refuse", &alice.id]).unwrap().code, 4, "none waits");
    request_anew(&alice, &bob);
    wait_for("the next question", || Ok((offers(&bob).len() == 1).then_some(()))).unwrap();
    bob.cli(&["peers", "deny", &alice.id]).unwrap().ok().unwrap();
    assert!(offers(&bob).is_empty(), "what waits ends with the no");
    let before = refusals(&bob).unwrap();
    request_anew(&alice, &bob);
    refused(&bob, "the operator has denied this peer", before);
    assert!(offers(&bob).is_empty());
    // A yes takes the no back, also for the offer that is out.
    bob.cli(&["link", "accept", &alice.id]).unwrap().ok().unwrap();
    let link = linked(&alice, &bob);
    let id = link["link_id"].as_str().unwrap();
    assert_eq!(bob.cli(&["link", "refuse", id]).unwrap().code, 6, "it lives");
    let denied = bob.cli(&["peers", "deny", &alice.id]).unwrap().json().unwrap();
    assert_eq!((&denied["decision"], &denied["link_state"]), (&"denied".into(), &"active".into()));
    answers(&alice, &bob);
    answers(&bob, &alice);
}

/// Strangers that have been sent at least when the flood is over.
const STRANGERS: usize = 300;
/// Offers that wait for an operator at most (docs/operations.md).
const WAITING: usize = 128;

#[test]
fn a_flood_of_strangers_keeps_nobody_out_who_is_known_and_fills_no_more_than_its_place() {
    let world = World::start().unwrap();
    let (alice, carol, bob) = (plain(&world, "alice"), plain(&world, "carol"), plain(&world, "bob"));
    bob.cli(&["peers", "allow", &alice.id]).unwrap().ok().unwrap();
    bob.cli(&["peers", "allow", &carol.id]).unwrap().ok().unwrap();
    alice.cli(&["link", "request", &bob.id, "--life", "10s"]).unwrap().ok().unwrap();
    linked(&alice, &bob);
    let pids = ["front", "vault", "noded"].map(|name| bob.child_pid(name).unwrap());
    let directory = world.directory.listen;
    let card = card_of(directory, &bob.id).unwrap();
    let to: NodeId = bob.id.parse().unwrap();
    let by: NodeId = world.directory.id.parse().unwrap();
    let (sent, enough) = (AtomicUsize::new(0), AtomicBool::new(false));
    let flood = || -> Result<()> {
        while !enough.load(Ordering::Relaxed) || sent.load(Ordering::Relaxed) < STRANGERS {
            let stranger = Caller::new(&world.origin());
            let (status, said) = call(directory, &stranger.register())?;
            ensure!(status == 200, "{status}: {said}");
            // A mailbox that is full for a moment is the directory's word for it; the next one tries.
            let (status, said) = call(directory, &stranger.offer(to, &card, by)?)?;
            ensure!(status == 200 || status == 503, "{status}: {said}");
            sent.fetch_add(usize::from(status == 200), Ordering::Relaxed);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let floods = [scope.spawn(flood), scope.spawn(flood)];
        let serve = || {
            wait_for("a flood", || Ok((sent.load(Ordering::Relaxed) > STRANGERS / 3).then_some(())))?;
            request(&carol, &bob);
            wait_for("the link of one who is known", || has_link(&carol, &bob))?;
            wait_for("a renewal", || {
                let link = link_with(&alice, &bob.id)?;
                Ok((link["state"] == "active" && link["renews"] != "").then_some(()))
            })
        };
        let served: Result<()> = serve();
        enough.store(true, Ordering::Relaxed);
        served.unwrap();
        floods.into_iter().for_each(|flood| flood.join().unwrap().context("the flood").unwrap());
    });
    // Those that found a place wait; those that did not are refused by name, and nothing else has come of them.
    wait_for("a full place", || Ok((offers(&bob).len() == WAITING).then_some(()))).unwrap();
    refused(&bob, "too many offers wait for the operator", 0);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(offers(&bob).len(), WAITING);
    assert_eq!(["front", "vault", "noded"].map(|name| bob.child_pid(name).unwrap()), pids);
    answers(&bob, &carol);
    answers(&bob, &alice);
}
