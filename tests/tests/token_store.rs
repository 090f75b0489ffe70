//! A node's database that was taken to another node, changed to look like that one's, or put back from before: it opens no session, says so
//! by name, and a link is made anew. A backup's own way is in `backup`, one of a newer program there too.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use openred_proto::id::NodeId;
use openred_tests::harness::{Node, wait_for};
use openred_tests::world::{World, link_with, status};
use rusqlite::Connection;
use serde_json::Value;

fn database(node: &Node) -> PathBuf {
    node.home.join("state/node.sqlite")
}

/// What a stopped node's database holds, without the log that a clean stop leaves none of.
fn taken(node: &Node) -> Vec<u8> {
    assert!(!database(node).with_extension("sqlite-wal").exists(), "stopped cleanly");
    fs::read(database(node)).unwrap()
}

/// Puts these bytes into the file in place: owner and mode stay the node's.
fn put(node: &Node, bytes: &[u8]) {
    fs::write(database(node), bytes).unwrap();
}

fn starts(node: &Node) -> openred_tests::harness::Answer {
    node.cli(&["up", "--passphrase-file", &format!("{}.passphrase", node.home.display())]).unwrap()
}

fn refused_link(node: &Node, peer: &Node) -> Result<Value> {
    let listed = node.cli(&["link", "list", "--all"])?.json()?;
    let links = listed["links"].as_array().context("links are listed")?;
    let refused = |link: &&Value| {
        link["peer"] == peer.id.as_str() && link["detail"].as_str().is_some_and(|why| why.contains("refuses its row"))
    };
    links.iter().find(refused).cloned().with_context(|| format!("no such link: {listed}"))
}

fn answers(one: &Node, other: &Node) {
    wait_for("a reply", || {
        one.cli(&["peers", "ping", &other.id, "--count", "1"])?.ok()?;
        Ok(Some(()))
    })
    .unwrap();
}

#[test]
fn tokens_taken_to_another_node_open_nothing_there() {
    let world = World::start().unwrap();
    let (mut alice, bob) = world.linked().unwrap();
    alice.down().unwrap();
    let stolen = taken(&alice);
    let mut mallory = world.node("mallory").unwrap();
    mallory.down().unwrap();
    let own = taken(&mallory);
    put(&mallory, &stolen);
    let refused = starts(&mallory);
    assert!(refused.code == 1 && refused.stderr.contains("belongs to another node"), "{refused:?}");
    assert!(refused.stderr.contains(&alice.id), "{refused:?}");
    // Made to look like her own, its rows are sealed for alice's key process all the same.
    let mallorys: NodeId = mallory.id.parse().unwrap();
    let changed = Connection::open(database(&mallory)).unwrap();
    changed.execute("UPDATE meta SET value = ?1 WHERE name = 'node'", [mallorys.as_bytes()]).unwrap();
    changed.close().unwrap();
    mallory.up().unwrap();
    wait_for("the refusal of the row", || refused_link(&mallory, &bob).map(Some)).unwrap();
    // The condition is raised when the next look at the links is through.
    wait_for("the condition", || {
        let conditions = status(&mallory)?["node"]["conditions"].to_string();
        Ok(conditions.contains("link.row-refused").then_some(()))
    })
    .unwrap();
    assert_ne!(mallory.cli(&["peers", "ping", &bob.id, "--count", "1"]).unwrap().code, 0);
    mallory.down().unwrap();
    put(&mallory, &own);
    mallory.up().unwrap();
    // Whom it was taken from it serves as before.
    alice.up().unwrap();
    answers(&alice, &bob);
}

#[test]
fn tokens_put_back_from_before_a_renewal_open_nothing_and_a_link_is_made_anew() {
    let world = World::start().unwrap();
    let (mut alice, bob) = (world.node("alice").unwrap(), world.node("bob").unwrap());
    alice.cli(&["link", "request", &bob.id, "--life", "10s"]).unwrap().ok().unwrap();
    answers(&alice, &bob);
    let first = link_with(&alice, &bob.id).unwrap()["link_id"].clone();
    alice.down().unwrap();
    let before = taken(&alice);
    alice.up().unwrap();
    // Until the first one has ended on both sides: as a row it is worth nothing then.
    wait_for("the end of the first link", || {
        let listed = alice.cli(&["link", "list", "--all"])?.json()?;
        let links = listed["links"].as_array().context("links are listed")?;
        let old = links.iter().find(|link| link["link_id"] == first).context("the first link is listed")?;
        ensure!(old["state"] == "expired", "{old}");
        Ok(Some(()))
    })
    .unwrap();
    alice.down().unwrap();
    put(&alice, &before);
    alice.up().unwrap();
    let refused = wait_for("the refusal of the row", || refused_link(&alice, &bob).map(Some)).unwrap();
    assert_eq!((&refused["link_id"], &refused["state"]), (&first, &"revoked".into()));
    assert_ne!(alice.cli(&["peers", "ping", &bob.id, "--count", "1"]).unwrap().code, 0);
    let anew = alice.cli(&["link", "request", &bob.id]).unwrap().json().unwrap();
    assert_ne!(anew["link_id"], first);
    answers(&alice, &bob);
    answers(&bob, &alice);
    assert_eq!(link_with(&alice, &bob.id).unwrap()["link_id"], link_with(&bob, &alice.id).unwrap()["link_id"]);
}
