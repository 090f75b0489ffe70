//! A link that is asked for before any directory answers: kept over a restart, made when the directory comes at last.
#![allow(clippy::unwrap_used, reason = "tests")]

use openred_tests::harness::wait_for;
use openred_tests::world::{World, link_with};

#[test]
fn a_request_without_a_directory_waits_for_one_that_comes_late() {
    let mut world = World::without_directory().unwrap();
    let open = "[links]\nincoming = \"open\"\n";
    let (mut alice, mut bob) = (world.init("alice", "").unwrap(), world.init("bob", open).unwrap());
    alice.up_without_answers().unwrap();
    bob.up_without_answers().unwrap();
    let asked = alice.cli(&["link", "request", &bob.id, "--life", "1d"]).unwrap().ok().unwrap().json().unwrap();
    assert_eq!((asked["state"].as_str(), asked["link_id"].as_str()), (Some("queued"), Some("")), "{asked}");
    assert!(asked["detail"].as_str().unwrap().contains("cannot be reached"), "{asked}");
    let nobody = "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK";
    alice.cli(&["link", "request", nobody]).unwrap().ok().unwrap();

    alice.down().unwrap();
    alice.up_without_answers().unwrap();
    assert_eq!(link_with(&alice, &bob.id).unwrap()["state"], "queued");
    let taken_back = alice.cli(&["link", "revoke", nobody]).unwrap().ok().unwrap().json().unwrap();
    assert_eq!(taken_back["state"], "revoked");
    assert!(link_with(&alice, nobody).is_err());

    world.directory.up().unwrap();
    // A minute at the most between two looks, and as much until both nodes have registered: two waits.
    let offered = || {
        let link = link_with(&alice, &bob.id)?;
        Ok((link["state"] != "queued").then_some(link))
    };
    let link = wait_for("the offer", offered).or_else(|_| wait_for("the offer", offered)).unwrap();
    assert_eq!(link["issuer"], true);
    wait_for("the link", || {
        alice.cli(&["peers", "ping", &bob.id, "--count", "1"])?.ok()?;
        Ok(Some(()))
    })
    .unwrap();
    let link = link_with(&alice, &bob.id).unwrap();
    let life = link["not_after"].as_u64().unwrap() - link["not_before"].as_u64().unwrap();
    assert_eq!(life, 86_400_000);
}
