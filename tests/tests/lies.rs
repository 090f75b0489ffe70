//! Directories that lie to real nodes over real sockets: each lie is caught, and called by its name, by `status`; what can only be
//! noticed is called noticed.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;

use anyhow::{Context, Result, ensure};
use openred_proto::log::head::Head;
use openred_tests::harness::{Node, wait_for};
use openred_tests::liar::{Liar, Lie};
use openred_tests::world::{World, link, status};
use serde_json::Value;

/// A node that uses these directories, started and registered with all of them.
fn node(world: &World, name: &str, directories: &[String], incoming: &str) -> Node {
    let mut node = world.init(name, &format!("[links]\nincoming = \"{incoming}\"\n")).unwrap();
    let config = node.home.join("openred.toml");
    let text = fs::read_to_string(&config).unwrap();
    let named = text.lines().map(|line| match line.split_once('=') {
        Some((key, _)) if key.trim() == "directories" => format!("directories = {directories:?}\n"),
        _ => format!("{line}\n"),
    });
    fs::write(&config, named.collect::<String>()).unwrap();
    // Where it is lied to at once, its status is none to be glad of.
    node.up_without_answers().unwrap();
    registered(&node);
    node
}

fn registered(node: &Node) {
    wait_for("registration with each directory", || {
        let status = status(node)?;
        let directories = status["node"]["directories"].as_array().context("directories")?;
        ensure!(directories.iter().all(|directory| directory["state"] == "registered"), "{directories:?}");
        Ok(Some(()))
    })
    .unwrap();
}

/// Down and up again: it registers anew, and looks at the log.
fn again(node: &mut Node) {
    node.down().unwrap();
    node.up_without_answers().unwrap();
}

fn condition(node: &Node, code: &str) -> Result<String> {
    let status = status(node)?;
    let conditions = status["node"]["conditions"].as_array().context("conditions")?;
    let found = conditions.iter().find(|condition| condition["code"] == code);
    Ok(found.with_context(|| format!("no {code}: {status}"))?["detail"].as_str().unwrap_or_default().to_owned())
}

/// Waits until a node calls a directory this, under this condition.
fn names(node: &Node, liar: &Liar, code: &str, lie: &str) {
    wait_for(lie, || {
        let detail = condition(node, code)?;
        ensure!(detail.contains(&liar.setting()) && detail.contains(lie), "{detail}");
        Ok(Some(()))
    })
    .unwrap();
}

/// The directory's row in `status`.
fn row(node: &Node, liar: &Liar) -> Result<Value> {
    let status = status(node)?;
    let rows = status["node"]["directories"].as_array().context("directories")?;
    rows.iter().find(|row| row["id"] == liar.id.to_string()).cloned().context("its row")
}

fn checked(node: &Node, liar: &Liar) {
    wait_for("the log to be checked", || Ok((row(node, liar)?["log_size"].as_u64() > Some(0)).then_some(()))).unwrap();
}

fn evidence(node: &Node, liar: &Liar, lie: &str) -> (String, String) {
    let found = wait_for("evidence", || {
        let row = row(node, liar)?;
        let kept = row["evidence"].as_array().context("evidence")?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(kept.iter().find(|kept| kept["lie"] == lie).map(|kept| (text(&kept["first"]), text(&kept["second"]))))
    });
    found.unwrap()
}

#[test]
fn a_log_that_is_rolled_back_or_rewritten_is_named_and_its_heads_are_kept() {
    for (entries, lie) in [(1, "rolled-back-log"), (9, "rewritten-log")] {
        let world = World::without_directory().unwrap();
        let liar = Liar::start(1, 3).unwrap();
        let mut alice = node(&world, "alice", &[liar.setting()], "ask");
        checked(&alice, &liar);
        liar.other_log(entries).unwrap();
        liar.lie(Lie::OtherLog);
        again(&mut alice);
        names(&alice, &liar, "directory.dishonest", lie);
        let (first, second) = evidence(&alice, &liar, lie);
        let sizes = [first, second].map(|note| Head::verify(note.as_bytes(), &liar.id).unwrap().size);
        assert_eq!(sizes, [4, u64::from(entries)], "both are signed by it");
        // It stays caught, whatever it shows later.
        liar.lie(Lie::None);
        again(&mut alice);
        names(&alice, &liar, "directory.dishonest", lie);
    }
}

#[test]
fn an_old_card_and_a_swapped_prekey_are_named_by_the_node_whose_card_it_is() {
    for (lie, name) in [(Lie::Replay, "replay"), (Lie::SwapPrekey, "swapped-card")] {
        let world = World::without_directory().unwrap();
        let liar = Liar::start(2, 3).unwrap();
        let mut alice = node(&world, "alice", &[liar.setting()], "ask");
        liar.lie(lie);
        again(&mut alice);
        names(&alice, &liar, "directory.dishonest", name);
        let (own, given) = evidence(&alice, &liar, name);
        assert!(own != given && !own.is_empty() && !given.is_empty());
    }
}

#[test]
fn a_prekey_that_is_swapped_for_a_peer_is_named_and_nothing_is_sealed_to_it() {
    let world = World::without_directory().unwrap();
    let liar = Liar::start(3, 3).unwrap();
    let bob = node(&world, "bob", &[liar.setting()], "open");
    let alice = node(&world, "alice", &[liar.setting()], "ask");
    liar.lie(Lie::SwapPrekey);
    let answer = alice.cli(&["link", "request", &bob.id]).unwrap();
    assert!(answer.code != 0 && format!("{answer:?}").contains("directory.dishonest"), "{answer:?}");
    names(&alice, &liar, "directory.dishonest", "swapped-card");
}

#[test]
fn a_forged_proof_and_a_foreign_head_are_named_and_silence_is_noticed() {
    for (lie, code, name) in [
        (Lie::ForgeInclusion, "directory.dishonest", "forged-inclusion"),
        (Lie::ForeignHead, "directory.dishonest", "bad-head"),
        (Lie::Withhold, "directory.doubtful", "withheld"),
    ] {
        let world = World::without_directory().unwrap();
        let liar = Liar::start(4, 3).unwrap();
        liar.lie(lie);
        let alice = node(&world, "alice", &[liar.setting()], "ask");
        names(&alice, &liar, code, name);
    }
}

#[test]
fn an_offer_that_is_signed_for_and_dropped_is_noticed_and_not_called_proven() {
    let world = World::without_directory().unwrap();
    let liar = Liar::start(5, 3).unwrap();
    let bob = node(&world, "bob", &[liar.setting()], "open");
    let alice = node(&world, "alice", &[liar.setting()], "ask");
    liar.lie(Lie::Drop);
    alice.cli(&["link", "request", &bob.id]).unwrap().ok().unwrap();
    names(&alice, &liar, "directory.doubtful", "unanswered");
    assert!(condition(&alice, "directory.dishonest").is_err(), "nothing is proven");
    // It carries again: the link comes about, and nothing is held against it.
    liar.lie(Lie::None);
    wait_for("the offer to be answered", || Ok(condition(&alice, "directory.doubtful").is_err().then_some(())))
        .unwrap();
}

#[test]
fn a_receipt_that_it_did_not_sign_is_named_and_no_proof_that_the_offer_was_taken() {
    let world = World::without_directory().unwrap();
    let liar = Liar::start(6, 3).unwrap();
    let bob = node(&world, "bob", &[liar.setting()], "ask");
    let alice = node(&world, "alice", &[liar.setting()], "ask");
    liar.lie(Lie::BadReceipt);
    alice.cli(&["link", "request", &bob.id]).unwrap().ok().unwrap();
    names(&alice, &liar, "directory.dishonest", "bad-receipt");
    // The offer is sent again, and what it signs rightly settles it.
    liar.lie(Lie::None);
    wait_for("an honest receipt", || Ok(condition(&alice, "directory.dishonest").is_err().then_some(()))).unwrap();
}

/// Each node sees a log that only grows; that there are two shows when the nodes talk.
#[test]
fn two_faces_are_named_by_nodes_that_talk_to_each_other() {
    let world = World::start().unwrap();
    // One key, two logs; an honest directory beside them brings the nodes together.
    let (face, other) = (Liar::start(6, 3).unwrap(), Liar::start(6, 5).unwrap());
    let bob = node(&world, "bob", &[world.directory_setting(), other.setting()], "open");
    let alice = node(&world, "alice", &[world.directory_setting(), face.setting()], "ask");
    checked(&alice, &face);
    checked(&bob, &other);
    for node in [&alice, &bob] {
        assert!(condition(node, "directory.dishonest").is_err(), "nobody can see it alone");
    }
    link(&alice, &bob).unwrap();
    names(&alice, &face, "directory.dishonest", "two-faces");
    names(&bob, &other, "directory.dishonest", "two-faces");
    let (first, second) = evidence(&alice, &face, "two-faces");
    for note in [first, second] {
        Head::verify(note.as_bytes(), &face.id).unwrap();
    }
}

/// Two directories are held against each other: one that keeps newer cards back is noticed.
#[test]
fn a_directory_that_is_behind_another_is_noticed() {
    let world = World::start().unwrap();
    let liar = Liar::start(7, 3).unwrap();
    let both = [world.directory_setting(), liar.setting()];
    let mut bob = node(&world, "bob", &both, "open");
    liar.knows(&bob.id).unwrap();
    let alice = node(&world, "alice", &both, "ask");
    liar.lie(Lie::Replay);
    again(&mut bob);
    registered(&bob);
    link(&alice, &bob).unwrap();
    names(&alice, &liar, "directory.doubtful", "behind");
}
