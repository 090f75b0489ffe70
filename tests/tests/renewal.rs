//! Links that live on, with real processes: renewed inside a session and without a directory, under `kill -9` of either side, brought back
//! in step, and with a method that was retired.
#![allow(clippy::unwrap_used, reason = "tests")]

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use openred_tests::harness::{Node, passphrase, signal_pid, wait_for};
use openred_tests::world::{World, inbox, registered};
use serde_json::Value;

/// The shortest life that there is: renewed at two thirds of it.
const LIFE: &str = "10s";

/// Two nodes with an active link of a short life.
fn short_lived(world: &World) -> (Node, Node) {
    let (alice, bob) = (world.node("alice").unwrap(), world.node("bob").unwrap());
    alice.cli(&["link", "request", &bob.id, "--life", LIFE]).unwrap().ok().unwrap();
    answers(&alice, &bob);
    (alice, bob)
}

fn answers(one: &Node, other: &Node) {
    wait_for("a reply", || {
        one.cli(&["peers", "ping", &other.id, "--count", "1"])?.ok()?;
        Ok(Some(()))
    })
    .unwrap();
}

/// Every link with a peer, ended ones included; oldest first.
fn links(node: &Node, peer: &Node) -> Result<Vec<Value>> {
    let list = node.cli(&["link", "list", "--all"])?.json()?;
    let links = list["links"].as_array().context("link list prints links")?;
    Ok(links.iter().filter(|link| link["peer"] == peer.id.as_str()).cloned().collect())
}

fn newest(node: &Node, peer: &Node) -> Result<Value> {
    links(node, peer)?.into_iter().next_back().context("no link")
}

/// Waits until both sides use one link that is none of `before`.
fn renewed(alice: &Node, bob: &Node, before: &[String]) -> Value {
    wait_for("a renewed link that both use", || {
        let (one, other) = (newest(alice, bob)?, newest(bob, alice)?);
        ensure!(one["link_id"] == other["link_id"], "{one} {other}");
        let id = one["link_id"].as_str().context("a link has an id")?;
        ensure!(!before.iter().any(|known| known == id), "not renewed yet");
        ensure!(one["state"] == "active" && other["state"] == "active", "{one} {other}");
        Ok(Some(one))
    })
    .unwrap()
}

fn id(link: &Value) -> String {
    link["link_id"].as_str().unwrap().to_owned()
}

#[test]
fn a_link_renews_itself_and_the_old_one_ends() {
    let mut world = World::start().unwrap();
    let (alice, bob) = short_lived(&world);
    let first = id(&newest(&alice, &bob).unwrap());
    // Nobody is needed but the two: the offer goes inside the session.
    world.directory.down().unwrap();
    let second = renewed(&alice, &bob, std::slice::from_ref(&first));
    assert_eq!((second["renews"].as_str().unwrap(), &second["issuer"]), (first.as_str(), &true.into()));
    assert!(second["renews_at"].as_u64() > second["created_at"].as_u64(), "{second}");
    bob.cli(&["send", &alice.id, "over the new one"]).unwrap().ok().unwrap();
    wait_for("the message", || Ok((inbox(&alice)? == ["over the new one"]).then_some(()))).unwrap();
    for (node, peer) in [(&alice, &bob), (&bob, &alice)] {
        wait_for("the old link's end", || {
            let old = links(node, peer)?.into_iter().find(|link| link["link_id"] == first.as_str());
            let old = old.context("ended links are listed")?;
            ensure!(
                old["state"] == "expired" && old["detail"].as_str().unwrap_or_default().contains("renewed"),
                "{old}"
            );
            Ok(Some(()))
        })
        .unwrap();
    }
    renewed(&alice, &bob, &[first, id(&second)]);
    wait_for("matching tokens", || Ok((newest(&alice, &bob)?["match"] == "matched").then_some(()))).unwrap();
    let trail = alice.cli(&["audit", "export"]).unwrap().ok().unwrap().stdout;
    assert!(trail.contains("link.renewal_issued"), "{trail}");
    let trail = bob.cli(&["audit", "export"]).unwrap().ok().unwrap().stdout;
    assert!(trail.contains("link.renewal_accepted"), "{trail}");
}

fn kill_noded(node: &Node) {
    signal_pid(node.child_pid("noded").unwrap(), Signal::SIGKILL).unwrap();
}

/// Waits until a node that was killed answers its operator again.
fn back(node: &Node) {
    wait_for("the restart", || {
        node.cli(&["link", "list"])?.ok()?;
        Ok(Some(()))
    })
    .unwrap();
}

#[test]
fn killed_on_either_side_while_a_renewal_is_under_way() {
    let world = World::start().unwrap();
    let (alice, mut bob) = short_lived(&world);
    let first = id(&newest(&alice, &bob).unwrap());
    // Offered, and nobody there to answer: the issuer dies with it.
    bob.down().unwrap();
    wait_for("the renewal's offer", || Ok((newest(&alice, &bob)?["state"] == "offered").then_some(()))).unwrap();
    kill_noded(&alice);
    back(&alice);
    assert_eq!(newest(&alice, &bob).unwrap()["renews"], first.as_str(), "what was offered is still offered");
    bob.up().unwrap();
    let second = renewed(&alice, &bob, std::slice::from_ref(&first));
    answers(&alice, &bob);
    // Both die as soon as one of them shows the next one.
    wait_for("the next renewal", || {
        let seen = [newest(&alice, &bob)?, newest(&bob, &alice)?];
        Ok(seen.iter().any(|link| link["link_id"] != second["link_id"]).then_some(()))
    })
    .unwrap();
    kill_noded(&bob);
    kill_noded(&alice);
    back(&alice);
    back(&bob);
    let third = renewed(&alice, &bob, &[first, id(&second)]);
    answers(&bob, &alice);
    // The acceptor dies at a moment of its own choosing.
    kill_noded(&bob);
    back(&bob);
    renewed(&alice, &bob, &[id(&second), id(&third)]);
    answers(&alice, &bob);
}

/// Milliseconds since 1970.
fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(since.as_millis()).unwrap()
}

/// While one side's key process is away it answers 503 where a key is needed, serves what needs none, and is asked again.
#[test]
fn a_renewal_that_finds_the_keys_away_is_answered_503_and_asked_again() {
    let world = World::start().unwrap();
    let mut alice = world.init("alice", "[links]\nincoming = \"open\"\n[log]\nlevel = \"debug\"\n").unwrap();
    alice.up().unwrap();
    registered(&alice).unwrap();
    let mut bob = world.node("bob").unwrap();
    alice.cli(&["link", "request", &bob.id, "--life", LIFE]).unwrap().ok().unwrap();
    answers(&alice, &bob);
    let first = id(&newest(&alice, &bob).unwrap());
    bob.cli(&["key", "lock"]).unwrap().ok().unwrap();
    wait_for("the answer to the renewal's offer", || {
        let log = alice.daemon()?.output();
        let is_refused =
            |line: &str| line.contains("offer not taken inside the session") && line.contains("status=503");
        Ok(log.lines().any(is_refused).then_some(()))
    })
    .unwrap();
    // The session goes on, and the offer stands.
    alice.cli(&["peers", "ping", &bob.id, "--count", "1"]).unwrap().ok().unwrap();
    assert_eq!(newest(&alice, &bob).unwrap()["state"], "offered");
    bob.cli(&["key", "unlock", "--passphrase-file", &passphrase(&bob)]).unwrap().ok().unwrap();
    renewed(&alice, &bob, &[first]);
    alice.down().unwrap();
    bob.down().unwrap();
}

/// The key process of one side stands still when a renewal is due, so that the renewal's operations wait for it, and is killed over them. What is
/// killed between any two operations is tried one by one in `noded/src/link/tests/faults.rs`.
#[test]
fn a_key_process_that_is_killed_over_a_renewal_costs_no_link_and_no_message() {
    let world = World::start().unwrap();
    let (alice, bob) = short_lived(&world);
    let (mut before, mut sent) = (vec![id(&newest(&alice, &bob).unwrap())], Vec::new());
    for (turn, side) in [&alice, &bob, &alice, &bob].into_iter().enumerate() {
        let due = wait_for("a link that is to be renewed", || {
            let due = newest(&alice, &bob)?["renews_at"].as_u64();
            Ok(due.filter(|due| *due > now() + 1000))
        })
        .unwrap();
        let vault = side.child_pid("vault").unwrap();
        signal_pid(vault, Signal::SIGSTOP).unwrap();
        // Links are looked at once a second.
        wait_for("the moment of the renewal", || Ok((now() > due + 2000).then_some(()))).unwrap();
        sent.push(format!("message {turn}"));
        bob.cli(&["send", &alice.id, sent.last().unwrap()]).unwrap().ok().unwrap();
        signal_pid(vault, Signal::SIGKILL).unwrap();
        before.push(id(&renewed(&alice, &bob, &before)));
        answers(&alice, &bob);
        answers(&bob, &alice);
        assert_ne!(side.child_pid("vault").unwrap(), vault);
    }
    wait_for("every message once", || {
        let mut arrived = inbox(&alice)?;
        arrived.sort();
        Ok((arrived == sent).then_some(()))
    })
    .unwrap();
}

#[test]
fn a_revocation_ends_both_sides_and_both_links() {
    let world = World::start().unwrap();
    let (alice, bob) = short_lived(&world);
    let first = id(&newest(&alice, &bob).unwrap());
    renewed(&alice, &bob, &[first]);
    alice.cli(&["link", "revoke", &bob.id]).unwrap().ok().unwrap();
    for (node, peer) in [(&alice, &bob), (&bob, &alice)] {
        let left = links(node, peer).unwrap();
        assert!(left.iter().all(|link| link["state"] == "revoked" || link["state"] == "expired"), "{left:?}");
    }
    assert_ne!(bob.cli(&["peers", "ping", &alice.id, "--count", "1"]).unwrap().code, 0);
    assert_ne!(bob.cli(&["link", "sync", &alice.id]).unwrap().code, 0, "there is no session to ask in");
}

#[test]
fn lists_of_links_are_compared_by_hand() {
    let world = World::start().unwrap();
    let (alice, bob) = world.linked().unwrap();
    let synced = alice.cli(&["link", "sync", &bob.id]).unwrap().json().unwrap();
    assert_eq!((&synced["mended"], synced["links"].as_array().unwrap().len()), (&0.into(), 1));
    assert_eq!(synced["links"][0]["state"], "active");
}

#[test]
fn a_method_that_is_retired_is_renewed_away_at_once_and_stays_so() {
    let world = World::start().unwrap();
    let (mut alice, bob) = world.linked().unwrap();
    let before = newest(&alice, &bob).unwrap();
    let method = before["method"].as_str().unwrap().to_owned();
    let decided = alice.cli(&["method", "disable", &method]).unwrap().json().unwrap();
    let of = |listed: &Value, name: &str| {
        let methods = listed["methods"].as_array().unwrap();
        methods.iter().find(|method| method["name"] == name).unwrap().clone()
    };
    assert_eq!(
        (&of(&decided, &method)["allowed"], &of(&decided, &method)["configured"]),
        (&false.into(), &true.into())
    );
    let after = renewed(&alice, &bob, &[id(&before)]);
    assert_ne!(after["method"], method.as_str());
    assert_eq!(alice.cli(&["method", "disable", "nonsense"]).unwrap().code, 2);
    alice.cli(&["method", "schedule", "seeded"]).unwrap().ok().unwrap();
    // Each value in force, and that it was a command: of the running node, and of the stopped one.
    let shown = || {
        let shown = alice.cli(&["config", "show", "--origin"]).unwrap().json().unwrap();
        [shown["settings"]["links.methods"].clone(), shown["settings"]["links.schedule"].clone()]
    };
    let running = shown();
    assert_eq!((&running[0]["origin"], &running[1]["origin"]), (&"command".into(), &"command".into()), "{running:?}");
    assert_eq!((&running[1]["value"], &running[1]["configured"]["value"]), (&"seeded".into(), &"hourly".into()));
    let names = running[0]["value"].as_array().unwrap();
    assert!(names.len() == 3 && !names.contains(&method.as_str().into()), "{names:?}");
    alice.down().unwrap();
    let shown = alice.cli(&["config", "show", "--origin"]).unwrap().json().unwrap();
    assert_eq!([&shown["settings"]["links.methods"], &shown["settings"]["links.schedule"]], [&running[0], &running[1]]);
    alice.up().unwrap();
    let listed = alice.cli(&["method", "list"]).unwrap().json().unwrap();
    assert_eq!((&of(&listed, &method)["disabled"], listed["schedule"].as_str().unwrap()), (&true.into(), "seeded"));
    assert_eq!(listed["configured_schedule"], "hourly");
    // Bob offers what alice's card no longer names: there is no such method left.
    for other in ["alpha", "beta", "gamma", "delta"].into_iter().filter(|other| *other != method) {
        bob.cli(&["method", "disable", other]).unwrap().ok().unwrap();
    }
    assert_eq!(bob.cli(&["method", "disable", &method]).unwrap().code, 6, "the last one");
    let carol = world.init("carol", &format!("[links]\nincoming = \"open\"\nmethods = [\"{method}\"]\n"));
    let mut carol = carol.unwrap();
    carol.up().unwrap();
    openred_tests::world::registered(&carol).unwrap();
    wait_for("alice's new card", || {
        let refused = carol.cli(&["link", "request", &alice.id, "--wait", "0"])?;
        ensure!(refused.code == 6 && refused.stderr.contains("link.no-common-method"), "{refused:?}");
        Ok(Some(()))
    })
    .unwrap();
}
