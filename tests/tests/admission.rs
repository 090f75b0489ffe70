//! How nodes get into a directory that does not take everybody: by work that they do themselves, by an invite in their
//! configuration, by the word of its operator. Real nodes, a real directory.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;

use openred_tests::harness::{Node, wait_for};
use openred_tests::world::{World, link, registered, status};

/// A running directory that asks for this.
fn world(admission: &str) -> World {
    let mut world = World::without_directory().unwrap();
    let config = world.directory.home.join("directory.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("{text}[admission]\n{admission}\n")).unwrap();
    world.directory.up().unwrap();
    world
}

/// Waits until the node says of its directory that it refuses it, for this reason.
fn refused(node: &Node, why: &str) {
    wait_for("the directory's refusal", || {
        let first = &status(node)?["node"]["directories"][0];
        anyhow::ensure!(first["state"] == "refused", "the node says: {first}");
        anyhow::ensure!(first["detail"].as_str().unwrap_or_default().contains(why), "the node says: {first}");
        Ok(Some(()))
    })
    .unwrap();
}

fn nodes(world: &World) -> usize {
    let shown = world.directory.cli(&["stats"]).unwrap().json().unwrap();
    usize::try_from(shown["counts"]["nodes"].as_u64().unwrap()).unwrap()
}

#[test]
fn nodes_work_for_their_place_by_themselves_and_link() {
    let world = world("mode = \"work\"\nwork_bits = 12");
    let (alice, bob) = (world.node("alice").unwrap(), world.node("bob").unwrap());
    link(&alice, &bob).unwrap();
    assert_eq!(nodes(&world), 2);
}

#[test]
fn a_node_with_an_invite_gets_in_and_one_without_is_told_what_it_needs() {
    let world = world("mode = \"invite\"");
    let made = world.directory.cli(&["invite", "create"]).unwrap().json().unwrap();
    let invite = made["invite"].as_str().unwrap();
    let mut stranger = world.init("stranger", "").unwrap();
    stranger.up_without_answers().unwrap();
    refused(&stranger, "by invite");
    let mut guest = world.init("guest", &format!("[directory]\ninvites = [\"{invite}\"]\n")).unwrap();
    guest.up_without_answers().unwrap();
    registered(&guest).unwrap();
    assert_eq!(nodes(&world), 1);
    let kept = world.directory.cli(&["invite", "list"]).unwrap().json().unwrap();
    assert_eq!(kept["invites"][0]["state"], "spent");
}

#[test]
fn a_node_that_waits_for_approval_says_so_and_comes_in_when_it_has_it() {
    let world = world("mode = \"approval\"");
    let mut node = world.init("node", "").unwrap();
    node.up_without_answers().unwrap();
    refused(&node, "has not approved");
    world.directory.cli(&["nodes", "approve", &node.id]).unwrap().ok().unwrap();
    registered(&node).unwrap();
    let history = world.directory.cli(&["history"]).unwrap().json().unwrap();
    assert_eq!(
        (&history["entries"][0]["action"], &history["entries"][0]["target"]),
        (&"approve".into(), &node.id.into())
    );
}
