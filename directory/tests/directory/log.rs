//! The log as clients see it: in-process, and of the real program over kills.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, Ordering};

use openred_directory::api::log::{LogHead, LogProof};
use openred_directory::api::nodes::{NodeView, Page};
use openred_proto::id::NodeId;
use openred_proto::log::head::Head;
use openred_proto::log::{Hash, entry, tree};
use serde::de::DeserializeOwned;

use crate::fixture::{Node, TestDirectory, base64};
use crate::process::{Serving, places};

fn hashes(proof: &LogProof) -> Vec<Hash> {
    proof.proof.iter().map(|hash| base64(hash).try_into().unwrap()).collect()
}

fn leaf(view: &NodeView) -> Hash {
    let salt = view.log.salt.as_ref().map(|salt| hex::decode(salt).unwrap().try_into().unwrap());
    tree::leaf_hash(&entry(&base64(&view.card), salt.as_ref()))
}

async fn head(test: &TestDirectory) -> Head {
    let head: LogHead = test.get("/api/v3/log/head").await.ok();
    Head::verify(head.head.as_bytes(), &test.directory.identity.id()).unwrap()
}

async fn consistency(test: &TestDirectory, old: &Head, new: &Head) {
    let path = format!("/api/v3/log/consistency?from={}&to={}", old.size, new.size);
    let proof: LogProof = test.get(&path).await.ok();
    tree::verify_consistency(old.size, new.size, &old.root, &new.root, &hashes(&proof)).unwrap();
}

#[tokio::test]
async fn cards_are_proven_to_be_in_a_log_that_only_grows() {
    let test = TestDirectory::new();
    let empty = head(&test).await;
    assert_eq!((empty.size, empty.root), (0, tree::empty_root()));
    let mut heads = vec![empty];
    for seed in 1..12 {
        let node = Node::new(seed);
        let mut card = node.card(test.now());
        card.fields.listed = seed % 2 == 0;
        for _ in 0..2 {
            assert_eq!(test.register_bytes(&node, &node.sign_card(&card)).await.status, 200);
        }
        heads.push(head(&test).await);
    }
    let last = heads[11];
    assert_eq!(last.size, 11, "a card that comes again is no entry");
    for old in &heads {
        consistency(&test, old, &last).await;
    }
    for seed in 1..12 {
        let view: NodeView = test.get(&format!("/api/v3/nodes/{}", Node::new(seed).id())).await.ok();
        assert_eq!(view.log.salt.is_some(), seed % 2 == 1, "unlisted ones are salted");
        for head in heads.iter().filter(|head| head.size > view.log.index) {
            let path = format!("/api/v3/log/inclusion?index={}&size={}", view.log.index, head.size);
            let proof: LogProof = test.get(&path).await.ok();
            tree::verify_inclusion(view.log.index, head.size, &leaf(&view), &hashes(&proof), &head.root).unwrap();
        }
    }
    let page: Page = test.get("/api/v3/nodes/discover").await.ok();
    assert!(page.nodes.iter().all(|view| view.log.salt.is_none()) && page.nodes.len() == 5);
}

#[tokio::test]
async fn what_the_log_cannot_prove_is_refused_by_name() {
    let test = TestDirectory::new();
    test.register(&Node::new(1)).await;
    for (path, code) in [
        ("inclusion?index=1&size=1", "log.range"),
        ("inclusion?index=0&size=2", "log.range"),
        ("inclusion?index=0&size=0", "log.range"),
        ("inclusion?index=18446744073709551615&size=18446744073709551615", "log.range"),
        ("consistency?from=1&to=0", "log.range"),
        ("consistency?from=0&to=9223372036854775808", "log.range"),
        ("consistency?from=0", "request.malformed"),
        ("inclusion?index=-1&size=1", "request.malformed"),
        ("inclusion?index=0&size=1&node=x", "request.malformed"),
        ("entries", "request.unknown"),
    ] {
        assert_eq!(test.get(&format!("/api/v3/log/{path}")).await.code(), code, "{path}");
    }
    let empty: LogProof = test.get("/api/v3/log/consistency?from=1&to=1").await.ok();
    assert!(empty.proof.is_empty());
}

fn read<T: DeserializeOwned>(serving: &Serving, path: &str) -> T {
    let (status, value) = serving.get(path);
    assert_eq!(status, 200, "{value}");
    serde_json::from_value(value).unwrap()
}

fn head_of(serving: &Serving, id: &NodeId) -> (Head, String) {
    let head: LogHead = read(serving, "/api/v3/log/head");
    (Head::verify(head.head.as_bytes(), id).unwrap(), head.head)
}

/// Killed while nodes register, again and again: each head that it ever gave is the beginning of the next, every card that it
/// answered for is in the log, and the walk finds no fault.
#[test]
fn a_killed_directory_goes_back_on_no_head() {
    for place in places() {
        let mut heads: Vec<(Head, String)> = Vec::new();
        for round in 0..4_u8 {
            let mut serving = place.serve();
            let id = serving.id;
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let registering = scope.spawn(|| {
                    let mut taken = 0;
                    for seed in round * 60.. {
                        if stop.load(Ordering::Relaxed) || seed == round * 60 + 59 {
                            break;
                        }
                        // For its first minute after a kill it takes what was signed ahead of that.
                        let status = loop {
                            match serving.try_register(&Node::new(seed)) {
                                Some(503) if !stop.load(Ordering::Relaxed) => {}
                                status => break status,
                            }
                        };
                        if status != Some(200) {
                            break;
                        }
                        taken += 1;
                    }
                    taken
                });
                // Some are in, others are on their way.
                loop {
                    let head = head_of(&serving, &id);
                    let grown = head.0.size > heads.last().map_or(0, |(last, _)| last.size) + 2;
                    heads.push(head);
                    if grown || registering.is_finished() {
                        break;
                    }
                }
                nix::sys::signal::kill(serving.process(), nix::sys::signal::Signal::SIGKILL).unwrap();
                stop.store(true, Ordering::Relaxed);
                assert!(registering.join().unwrap() > 0);
            });
            serving.gone();
        }
        let serving = place.serve();
        let last = head_of(&serving, &serving.id);
        for (old, _) in &heads {
            let path = format!("/api/v3/log/consistency?from={}&to={}", old.size, last.0.size);
            let proof: LogProof = read(&serving, &path);
            tree::verify_consistency(old.size, last.0.size, &old.root, &last.0.root, &hashes(&proof)).unwrap();
        }
        let found = place.json(&["log", "verify"]);
        assert_eq!((&found["ok"], &found["size"]), (&true.into(), &last.0.size.into()), "{found}");
        // Beside one that runs, and after it; against a head that somebody kept.
        let file = place.folder.path().join("head");
        let verify_against = |note: &str| {
            std::fs::File::create(&file).unwrap().write_all(note.as_bytes()).unwrap();
            place.outcome(&["log", "verify", "--head", file.to_str().unwrap()])
        };
        assert_eq!(verify_against(&heads[1].1).0, 0);
        assert_eq!(verify_against(&last.1.replacen(char::is_numeric, "8", 1)).0, 2, "nobody signed that");
        assert_eq!(serving.end(), Some(0));
        let database = place.home().join("state/directory.sqlite");
        let connection = rusqlite::Connection::open(&database).unwrap();
        connection.execute("UPDATE log_hashes SET hash = zeroblob(32) WHERE position = 2", []).unwrap();
        let (code, said) = place.outcome(&["log", "verify"]);
        assert_eq!(code, 3);
        assert!(said.contains("entry 1: the hash of the 2^1 entries"), "{said}");
        // Set back to an empty log by somebody who has the file: whole in itself, and named by a head of before.
        connection
            .execute_batch("DELETE FROM log_hashes; DELETE FROM log_end; UPDATE nodes SET card = NULL, listed = 0")
            .unwrap();
        drop(connection);
        assert_eq!(place.outcome(&["log", "verify"]).0, 0);
        let (code, said) = verify_against(&last.1);
        assert_eq!(code, 3);
        assert!(said.contains("it was set back"), "{said}");
    }
}
