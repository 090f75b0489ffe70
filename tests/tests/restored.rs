//! What nodes see of a directory that was moved as a whole, and of one that came back from an export under its old key (docs/directory.md).
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use openred_tests::harness::{Node, wait_for};
use openred_tests::world::{World, link, registered, status};
use serde_json::Value;

/// What a node says of its directory.
fn row(node: &Node) -> Result<Value> {
    Ok(status(node)?["node"]["directories"][0].clone())
}

/// What it holds against it.
fn lie(node: &Node) -> Result<Option<String>> {
    let status = status(node)?;
    let conditions = status["node"]["conditions"].as_array().context("conditions")?;
    let found = conditions.iter().find(|condition| condition["code"] == "directory.dishonest");
    Ok(found.and_then(|condition| Some(condition["detail"].as_str()?.to_owned())))
}

/// Waits until the node has checked a log of so many entries at least, after that time; when.
fn checked(node: &Node, entries: u64, after: u64) -> u64 {
    wait_for("a look at the log", || {
        let row = row(node)?;
        let (size, at) = (row["log_size"].as_u64(), row["log_checked_at"].as_u64());
        ensure!(size >= Some(entries) && at > Some(after), "{row}");
        Ok(at)
    })
    .unwrap()
}

#[test]
fn a_move_is_noticed_by_nobody_and_an_export_under_the_old_key_is_named_and_used_all_the_same() {
    let mut world = World::start().unwrap();
    let (alice, bob) = (world.node("alice").unwrap(), world.node("bob").unwrap());
    let before = checked(&alice, 1, 0);

    world.directory.down().unwrap();
    let moved = world.path().join("moved");
    let copied = Command::new("cp").arg("-a").args([&world.directory.home, &moved]).status().unwrap();
    assert!(copied.success());
    fs::remove_dir_all(&world.directory.home).unwrap();
    world.directory.home = moved;
    world.directory.up().unwrap();
    let link_again = || link(&alice, &bob);
    link_again().or_else(|_| link_again()).unwrap();
    checked(&alice, 2, before);
    assert_eq!(lie(&alice).unwrap(), None, "it goes on from what it signed");

    let backup = world.path().join("backup.jsonl");
    world.directory.cli(&["export", backup.to_str().unwrap()]).unwrap().ok().unwrap();
    world.directory.down().unwrap();
    fs::remove_dir_all(world.directory.home.join("state")).unwrap();
    world.directory.up().unwrap();
    let imported = world.directory.cli(&["import", backup.to_str().unwrap()]).unwrap().json().unwrap();
    assert_eq!(
        (imported["taken"].as_u64(), imported["refused"].as_array().map(Vec::len)),
        (Some(2), Some(0)),
        "{imported}"
    );
    let carol = world.node("carol").unwrap();
    link(&alice, &carol).unwrap();
    wait_for("alice's word of it", || {
        let detail = lie(&alice)?.context("nothing is held against it")?;
        ensure!(detail.contains("rolled-back-log") || detail.contains("rewritten-log"), "{detail}");
        let row = row(&alice)?;
        ensure!(row["evidence"].as_array().is_some_and(|evidence| !evidence.is_empty()), "{row}");
        Ok(Some(()))
    })
    .unwrap();
    registered(&alice).unwrap();
    assert_eq!(lie(&carol).unwrap(), None, "who has seen no other log has nothing against this one");
    link(&carol, &bob).unwrap();
}
