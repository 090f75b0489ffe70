//! The whole path with real processes: link, handshake, messages, a file, restarts.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;

use nix::sys::signal::Signal;
use openred_tests::harness::{is_root, signal_pid, wait_for};
use openred_tests::world::{World, inbox, link, link_with, status};
use serde_json::Value;

#[test]
fn two_nodes_link_talk_and_agree_on_what_they_proved() {
    let world = World::start().unwrap();
    let (alice, bob) = world.linked().unwrap();
    // Their first handshakes may cross.
    let (one, other) = wait_for("one mutual link, matched on both sides", || {
        let (one, other) = (link_with(&alice, &bob.id)?, link_with(&bob, &alice.id)?);
        let agree = one["mutual_link"] == other["mutual_link"];
        Ok((agree && one["match"] == "matched" && other["match"] == "matched").then_some((one, other)))
    })
    .unwrap();
    assert_eq!(one["link_id"], other["link_id"]);
    assert_eq!(one["mutual_link"].as_str().unwrap().len(), 32);
    assert_eq!((one["issuer"].clone(), other["issuer"].clone()), (true.into(), false.into()));

    alice.cli(&["send", &bob.id, "from alice"]).unwrap().ok().unwrap();
    bob.cli(&["send", &alice.id, "from bob"]).unwrap().ok().unwrap();
    wait_for("both messages", || Ok((inbox(&bob)? == ["from alice"] && inbox(&alice)? == ["from bob"]).then_some(())))
        .unwrap();

    let shown = bob.cli(&["inbox", "--all"]).unwrap().json().unwrap();
    let number = shown["messages"][0]["sequence"].to_string();
    assert_eq!(bob.cli(&["inbox", "--delete", &number, "999999"]).unwrap().code, 9, "one of two was there");
    assert!(inbox(&bob).unwrap().is_empty());
    alice.cli(&["send", &bob.id, "again"]).unwrap().ok().unwrap();
    wait_for("another message", || Ok((inbox(&bob)? == ["again"]).then_some(()))).unwrap();
    let deleted = bob.cli(&["inbox", "--delete", "--from", &alice.id]).unwrap().json().unwrap();
    assert_eq!(deleted["deleted"], 1);
    assert!(inbox(&bob).unwrap().is_empty());
    assert_eq!(bob.cli(&["inbox", "--delete"]).unwrap().code, 2, "of whom, or which?");

    let content: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let (path, out) = (world.path().join("file"), world.path().join("out"));
    fs::write(&path, &content).unwrap();
    let shared = alice.cli(&["share", path.to_str().unwrap(), "--to", &bob.id]).unwrap().json().unwrap();
    let id = shared["id"].as_str().unwrap();
    let fetched = bob.cli(&["fetch", &alice.id, id, "--out", out.to_str().unwrap()]).unwrap().json().unwrap();
    assert_eq!(fetched["verified"], true);
    assert_eq!(fs::read(&out).unwrap(), content);
}

#[test]
fn an_incoming_offer_waits_for_the_operator_by_default() {
    let world = World::start().unwrap();
    let mut alice = world.init("alice", "").unwrap();
    let mut bob = world.init("bob", "").unwrap();
    alice.up().unwrap();
    bob.up().unwrap();
    openred_tests::world::registered(&alice).unwrap();
    openred_tests::world::registered(&bob).unwrap();
    alice.cli(&["link", "request", &bob.id, "--wait", "0"]).unwrap().ok().unwrap();
    wait_for("the waiting offer", || Ok((link_with(&bob, &alice.id)?["state"] == "waiting").then_some(()))).unwrap();
    assert_ne!(alice.cli(&["peers", "ping", &bob.id, "--count", "1"]).unwrap().code, 0, "no session before a link");
    bob.cli(&["link", "accept", &alice.id]).unwrap().ok().unwrap();
    wait_for("the first reply", || {
        Ok((alice.cli(&["peers", "ping", &bob.id, "--count", "1"])?.code == 0).then_some(()))
    })
    .unwrap();
    // Revoked on one side, the link carries nothing any more.
    bob.cli(&["link", "revoke", &alice.id]).unwrap().ok().unwrap();
    assert_ne!(alice.cli(&["peers", "ping", &bob.id, "--count", "1", "--fresh"]).unwrap().code, 0, "revoked");
}

#[test]
fn doctor_sees_every_layer_and_status_names_the_uids() {
    let world = World::start().unwrap();
    let alice = world.node("alice").unwrap();
    let doctor = alice.cli(&["doctor"]).unwrap().json().unwrap();
    assert_eq!(doctor["ok"], true, "{doctor}");
    assert_eq!(doctor["uid"], if is_root() { "separate" } else { "shared" });
    for name in ["front", "vault", "noded"] {
        assert!(doctor["layers"].as_array().unwrap().iter().any(|layer| layer["process"] == name), "{name}: {doctor}");
    }
    for process in doctor["processes"].as_array().unwrap() {
        if process["name"] == "front" || process["name"] == "vault" {
            assert_eq!(process["network_interfaces"], Value::Array(vec![]), "{process}");
            let allowed = process["syscalls_allowed"].as_u64().unwrap();
            assert!((6..=32).contains(&allowed), "{process}");
        }
    }
}

/// Kills `victim` of bob's node; the supervisor must name it, restart it, and nothing acknowledged may be lost.
fn survives_the_death_of(victim: &str) {
    let world = World::start().unwrap();
    let (alice, bob) = world.linked().unwrap();
    for number in 0..10 {
        alice.cli(&["send", &bob.id, &format!("before {number}")]).unwrap().ok().unwrap();
    }
    wait_for("the first messages", || Ok((inbox(&bob)?.len() == 10).then_some(()))).unwrap();
    let pid = bob.child_pid(victim).unwrap();
    signal_pid(pid, Signal::SIGKILL).unwrap();
    alice.cli(&["send", &bob.id, "during"]).unwrap();
    wait_for("the restart", || {
        let status = status(&bob)?;
        let processes = status["supervisor"]["processes"].as_array().cloned().unwrap_or_default();
        let process = processes.iter().find(|process| process["name"] == victim).cloned().unwrap_or_default();
        let restarted = process["restarts"].as_u64() > Some(0) && process["pid"] != pid && process["state"] == "ready";
        Ok((restarted && status["supervisor"]["state"] == "ready").then_some(()))
    })
    .unwrap();
    alice.cli(&["send", &bob.id, "after"]).unwrap().ok().unwrap();
    wait_for("every message, once", || {
        let mut texts = inbox(&bob)?;
        texts.sort();
        Ok((texts.len() == 12 && texts.contains(&"during".to_owned()) && texts.contains(&"after".to_owned()))
            .then_some(()))
    })
    .unwrap();
}

#[test]
fn a_killed_vault_is_named_and_restarted() {
    survives_the_death_of("vault");
}

#[test]
fn a_killed_front_is_named_and_restarted() {
    survives_the_death_of("front");
}

#[test]
fn a_killed_noded_is_named_and_restarted() {
    survives_the_death_of("noded");
}

#[test]
fn a_node_that_was_stopped_keeps_links_and_messages() {
    let world = World::start().unwrap();
    let (mut alice, bob) = world.linked().unwrap();
    bob.cli(&["send", &alice.id, "kept"]).unwrap().ok().unwrap();
    wait_for("the message", || Ok((inbox(&alice)? == ["kept"]).then_some(()))).unwrap();
    alice.down().unwrap();
    alice.up().unwrap();
    assert_eq!(inbox(&alice).unwrap(), ["kept"]);
    wait_for("a reply after the restart", || {
        Ok((alice.cli(&["peers", "ping", &bob.id, "--count", "1"])?.code == 0).then_some(()))
    })
    .unwrap();
}

#[test]
fn both_request_at_once_and_one_link_remains() {
    let world = World::start().unwrap();
    let (alice, bob) = (world.node("alice").unwrap(), world.node("bob").unwrap());
    std::thread::scope(|scope| {
        scope.spawn(|| alice.cli(&["link", "request", &bob.id]).unwrap());
        scope.spawn(|| bob.cli(&["link", "request", &alice.id]).unwrap());
    });
    wait_for("replies both ways over one link", || {
        alice.cli(&["peers", "ping", &bob.id, "--count", "1"])?.ok()?;
        bob.cli(&["peers", "ping", &alice.id, "--count", "1"])?.ok()?;
        let (one, other) = (link_with(&alice, &bob.id)?, link_with(&bob, &alice.id)?);
        Ok((one["link_id"] == other["link_id"]).then_some(()))
    })
    .unwrap();
    link(&alice, &bob).unwrap();
}
