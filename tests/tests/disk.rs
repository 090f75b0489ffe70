//! No room: a node whose disk is really full, and a peer that has filled its share of an inbox.
//!
//! For the full disk a node's home is a small file system of its own, filled to the last byte (`openred_tests::disk`, which says why it takes root).
//! The module's share of this, a write that the disk cut, is tested for both users in `noded/src/module/blobs.rs`.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use nix::sys::signal::Signal;
use openred_tests::disk::{self, again_on_a_small_disk, fill};
use openred_tests::harness::{Node, is_root, signal_pid, wait_for};
use openred_tests::world::{World, link, registered, status};
use serde_json::Value;

/// Bytes of it: a node's state and some messages.
const SIZE: usize = 16 << 20;
/// Bytes of a message: a few of them are more than the database has in reserve.
const TEXT: usize = 100_000;
/// Messages sent at most before one must not fit any more.
const MOST: usize = 100;
/// Exit code of docs/operations.md.
const DEGRADED: i32 = 3;

fn text(number: usize) -> String {
    format!("{number} {}", "x".repeat(TEXT))
}

/// The numbers of the messages in a node's inbox, which must be whole and each there once. Nothing is marked as read: that would be
/// a write.
fn numbers(node: &Node) -> BTreeSet<usize> {
    let answer = node.cli(&["inbox", "--all", "--peek"]).unwrap().json().unwrap();
    let texts: Vec<&str> =
        answer["messages"].as_array().unwrap().iter().map(|message| message["text"].as_str().unwrap()).collect();
    let number = |given: &&str| {
        let number = given.split_once(' ').unwrap().0.parse().unwrap();
        assert!(*given == text(number), "message {number} is not whole");
        number
    };
    let numbers: BTreeSet<usize> = texts.iter().map(number).collect();
    assert_eq!(numbers.len(), texts.len(), "each is there once");
    numbers
}

fn condition(node: &Node, code: &str) -> bool {
    let status = status(node).unwrap();
    status["node"]["conditions"].as_array().unwrap().iter().any(|condition| condition["code"] == code)
}

#[test]
fn a_full_disk_loses_nothing_that_was_acknowledged_and_is_survived() {
    if !is_root() {
        // See `openred_tests::disk`.
        return;
    }
    let Some(folder) = disk::folder() else {
        return again_on_a_small_disk(
            "a_full_disk_loses_nothing_that_was_acknowledged_and_is_survived",
            "bob",
            SIZE as u64,
        )
        .unwrap();
    };
    let world = World::start().unwrap();
    let alice = world.node("alice").unwrap();
    let mut bob = world.init_in(&folder, "bob", "[links]\nincoming = \"open\"\n").unwrap();
    bob.up().unwrap();
    registered(&bob).unwrap();
    link(&alice, &bob).unwrap();
    let pids = ["front", "vault", "noded"].map(|name| bob.child_pid(name).unwrap());
    let filler = bob.home.join("filler");
    fill(&filler).unwrap();

    // What is acknowledged before the first that does not fit is what must be there afterwards.
    let mut acknowledged = BTreeSet::new();
    let refused = (0..MOST).find(|number| {
        let sent = alice.cli(&["send", &bob.id, &text(*number)]).unwrap().json().unwrap();
        match sent["state"].as_str().unwrap() {
            "delivered" => {
                acknowledged.insert(*number);
            }
            state => assert_eq!((state, sent["waiting"].as_str()), ("queued", Some("peer-disk-full")), "{sent}"),
        };
        sent["state"] != "delivered"
    });
    let refused = refused.expect("the disk is full");
    assert_eq!(numbers(&bob), acknowledged, "neither more nor less than what was acknowledged");
    assert!(condition(&bob, "store.full"), "{}", status(&bob).unwrap());
    assert_eq!(bob.cli(&["status"]).unwrap().code, DEGRADED);
    assert_eq!(["front", "vault", "noded"].map(|name| bob.child_pid(name).unwrap()), pids, "nobody died of it");

    fs::remove_file(&filler).unwrap();
    acknowledged.insert(refused);
    wait_for("the message that waited", || Ok((numbers(&bob) == acknowledged).then_some(()))).unwrap();
    wait_for("the end of the condition", || Ok((!condition(&bob, "store.full")).then_some(()))).unwrap();
    assert_eq!(bob.cli(&["status"]).unwrap().code, 0);
    assert_eq!(["front", "vault", "noded"].map(|name| bob.child_pid(name).unwrap()), pids, "without a restart");

    signal_pid(pids[2], Signal::SIGKILL).unwrap();
    wait_for("noded after the kill", || {
        let ready = status(&bob)?["supervisor"]["state"] == "ready";
        Ok((ready && bob.child_pid("noded")? != pids[2]).then_some(()))
    })
    .unwrap();
    assert_eq!(numbers(&bob), acknowledged, "all of it is durable");
}

/// The newest link of two nodes, as `node` has it; ended ones count.
fn newest(node: &Node, peer: &Node) -> Value {
    let list = node.cli(&["link", "list", "--all"]).unwrap().json().unwrap();
    let links = list["links"].as_array().unwrap();
    links.iter().rfind(|link| link["peer"] == peer.id.as_str()).unwrap().clone()
}

/// Writes messages that become smaller until not even the least fits any more: what the database has in reserve is used up then. Those that were taken.
fn stuff(from: &Node, to: &Node) -> BTreeSet<String> {
    let mut taken = BTreeSet::new();
    for size in [TEXT, TEXT / 10, TEXT / 100, 1] {
        let is_refused = (0..MOST).any(|number| {
            let text = format!("{size} {number} {}", "x".repeat(size));
            let sent = from.cli(&["send", &to.id, &text]).unwrap();
            if sent.code == 0 {
                taken.insert(text);
            }
            sent.code != 0
        });
        assert!(is_refused, "{size}: the disk is full");
    }
    taken
}

fn texts(node: &Node) -> BTreeSet<String> {
    let answer = node.cli(&["inbox", "--all", "--peek"]).unwrap().json().unwrap();
    let messages = answer["messages"].as_array().unwrap();
    let texts: BTreeSet<String> = messages.iter().map(|message| message["text"].as_str().unwrap().to_owned()).collect();
    assert_eq!(texts.len(), messages.len(), "each is there once");
    texts
}

/// Bob can store neither what he accepts nor what he issues.
#[test]
fn a_full_disk_in_the_middle_of_a_renewal_costs_no_link() {
    if !is_root() {
        // See `openred_tests::disk`.
        return;
    }
    let Some(folder) = disk::folder() else {
        return again_on_a_small_disk("a_full_disk_in_the_middle_of_a_renewal_costs_no_link", "bob", SIZE as u64)
            .unwrap();
    };
    let world = World::start().unwrap();
    let (alice, carol) = (world.node("alice").unwrap(), world.node("carol").unwrap());
    let mut bob = world.init_in(&folder, "bob", "[links]\nincoming = \"open\"\n").unwrap();
    bob.up().unwrap();
    registered(&bob).unwrap();
    let answers = |one: &Node, other: &Node| {
        wait_for("a reply", || {
            one.cli(&["peers", "ping", &other.id, "--count", "1", "--fresh"])?.ok()?;
            Ok(Some(()))
        })
        .unwrap();
    };
    for (issuer, acceptor) in [(&alice, &bob), (&bob, &carol)] {
        issuer.cli(&["link", "request", &acceptor.id, "--life", "10s"]).unwrap().ok().unwrap();
        answers(issuer, acceptor);
    }
    let filler = bob.home.join("filler");
    fill(&filler).unwrap();
    let taken = stuff(&bob, &alice);
    let offered = wait_for("a renewal that bob does not take", || {
        let newest = newest(&alice, &bob);
        Ok((newest["state"] == "offered").then_some(newest))
    })
    .unwrap();
    let own = newest(&bob, &carol);
    let log = bob.home.with_extension("log");
    wait_for("a renewal that bob does not issue", || {
        let lines = fs::read_to_string(&log)?;
        Ok(lines.lines().any(|line| line.contains("link not renewed yet") && line.contains("no space")).then_some(()))
    })
    .unwrap();
    let over = own["not_after"].as_u64().unwrap().max(offered["not_after"].as_u64().unwrap());
    wait_for("the end of those links", || {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
        Ok((since.as_millis() > u128::from(over)).then_some(()))
    })
    .unwrap();
    // What nothing has replaced serves on.
    answers(&alice, &bob);
    answers(&bob, &carol);
    fs::remove_file(&filler).unwrap();
    for (issuer, acceptor) in [(&alice, &bob), (&bob, &carol)] {
        wait_for("a renewed link that both use", || {
            let (one, other) = (newest(issuer, acceptor), newest(acceptor, issuer));
            let is_new = one["link_id"] != own["link_id"] && one["link_id"] == other["link_id"];
            Ok((is_new && one["state"] == "active" && other["state"] == "active").then_some(()))
        })
        .unwrap();
        answers(issuer, acceptor);
        answers(acceptor, issuer);
    }
    wait_for("the messages that were taken", || Ok((texts(&alice) == taken).then_some(()))).unwrap();
}

#[test]
fn a_backup_or_a_restore_that_does_not_fit_says_so_and_leaves_nothing_half() {
    if !is_root() {
        // See `openred_tests::disk`.
        return;
    }
    let Some(folder) = disk::folder() else {
        return again_on_a_small_disk(
            "a_backup_or_a_restore_that_does_not_fit_says_so_and_leaves_nothing_half",
            "bob",
            SIZE as u64,
        )
        .unwrap();
    };
    let small = &folder.canonicalize().unwrap().join("bob");
    let world = World::without_directory().unwrap();
    let node = world.init("alice", "").unwrap();
    let blobs = node.home.join("state/blobs/files");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(blobs.join("large.data"), vec![7; SIZE + 1]).unwrap();
    let passphrase = format!("{}.passphrase", node.home.display());
    let secret = ["--passphrase-file", &passphrase];
    let backup =
        |place: &Path| node.cli(&[&["backup", "create", place.to_str().unwrap()], &secret[..]].concat()).unwrap();
    let left = |folder: &Path| {
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect::<BTreeSet<String>>()
    };
    let refused = backup(&small.join("backup"));
    assert!(refused.code == 1 && refused.stderr.contains("disk.full"), "{refused:?}");
    assert!(refused.stderr.contains(small.to_str().unwrap()), "it says where: {refused:?}");
    assert!(left(small).is_empty(), "{:?}", left(small));

    let whole = world.path().join("backup");
    backup(&whole).ok().unwrap();
    let home = small.join("home");
    let openred = openred_tests::harness::binaries().unwrap().join("openred");
    let restore = ["--json", "--home", home.to_str().unwrap(), "backup", "restore", whole.to_str().unwrap()];
    let refused = openred_tests::harness::run(&openred, &[&restore[..], &secret[..]].concat()).unwrap();
    assert!(refused.code == 1 && refused.stderr.contains("disk.full"), "{refused:?}");
    assert_eq!(left(&home), BTreeSet::from(["run".to_owned()]), "nothing of a node");
}

#[test]
fn a_peer_that_fills_its_share_of_the_inbox_is_told_so_and_waits() {
    /// A little less than the longest argument that the kernel takes.
    const LARGE: usize = 130_000;
    let world = World::start().unwrap();
    let (alice, bob) = world.linked().unwrap();
    let text = "x".repeat(LARGE);
    let send = || alice.cli(&["send", &bob.id, &text]).unwrap().json().unwrap();
    // More than 64 MiB would be too many.
    let sent = (0..(64 << 20) / LARGE).map(|_| send()).find(|sent| sent["state"] != "delivered");
    let sent = sent.expect("the inbox has a bound");
    assert_eq!((&sent["state"], &sent["waiting"]), (&"queued".into(), &"peer-inbox-full".into()), "{sent}");
    assert_eq!(sent["detail"], "the peer's inbox is full");
    assert!(condition(&bob, "module.full"), "{}", status(&bob).unwrap());
    assert_eq!(bob.cli(&["status"]).unwrap().code, 0, "it is a warning: nothing else is affected");

    let deleted = bob.cli(&["inbox", "--delete", "--from", &alice.id]).unwrap().json().unwrap();
    assert!(deleted["deleted"].as_u64() > Some(400), "{deleted}");
    assert!(!condition(&bob, "module.full"));
    wait_for("the message that waited", || {
        let shown = bob.cli(&["inbox", "--all", "--peek"])?.json()?;
        Ok((shown["messages"].as_array().map(Vec::len) == Some(1)).then_some(()))
    })
    .unwrap();
}
