//! The node's secrets are in no memory that anybody can read, not even root, after thousands of uses; the same search finds them
//! in a process that holds them plainly.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::process::{Child, Command, Stdio};

use openred_proto::id::NodeId;
use openred_tests::attacker::{self, Attacked, of_kind};
use openred_tests::canary::{READINGS, hunt};
use openred_tests::harness::{Node, is_root};
use openred_tests::secrets::{HeldLink, Named, Secrets, derived_keys};
use openred_tests::world::World;
use serde_json::{Value, json};

/// Uses of the keys before the search, and how many are ordered at once.
const OPERATIONS: u64 = 10_000;
const AT_ONCE: u64 = 1_700;
/// New sessions over a link before the search.
const SESSIONS: usize = 5;
/// Less than any process here has readable.
const LITTLE: u64 = 1 << 20;

/// Uses the keys; the secrets behind them, those of the last link, which its other party has as well, and that party's own: its vault
/// lives in the attacker, in ordinary memory.
fn used(attacked: &mut Attacked<'_>) -> (Vec<Named>, Vec<Named>, Vec<Named>) {
    let (mut operations, mut last) = (0, Value::Null);
    while operations < OPERATIONS {
        let lines = attacked.obeyed(&json!({ "do": "work", "count": AT_ONCE })).unwrap();
        last = of_kind(&lines, "worked").next().unwrap().clone();
        operations += last["operations"].as_u64().unwrap();
    }
    let secrets = Secrets::of(attacked.node, "passphrase of alice").unwrap();
    let row = hex::decode(last["row"].as_str().unwrap()).unwrap();
    let peer: NodeId = last["peer"].as_str().unwrap().parse().unwrap();
    let (method, epoch) = (last["method"].as_u64().unwrap(), last["epoch"].as_u64().unwrap());
    let link = secrets.of_link(&HeldLink { row, peer, issuer: false, method, epoch }).unwrap();
    let root: [u8; 32] = hex::decode(last["peers_root"].as_str().unwrap()).unwrap().try_into().unwrap();
    (secrets.all, link, derived_keys(peer, &root).unwrap())
}

/// A process that keeps `secrets` in plain memory.
fn holder(secrets: &[Named]) -> Child {
    let mut child = Command::new(attacker::program().unwrap())
        .arg("--hold")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let bytes = secrets.iter().flat_map(|(_, secret)| secret.clone()).collect::<Vec<_>>();
    let input = child.stdin.as_mut().unwrap();
    input.write_all(&u32::try_from(bytes.len()).unwrap().to_le_bytes()).unwrap();
    input.write_all(&bytes).unwrap();
    input.flush().unwrap();
    let mut said = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
    assert_eq!(said, "held\n");
    child
}

/// An ordinary user may not even look.
fn shut(pid: u32) {
    for file in ["mem", "maps", "environ"] {
        let refused = File::open(format!("/proc/{pid}/{file}")).map(drop).map_err(|error| error.kind());
        assert_eq!(refused, Err(ErrorKind::PermissionDenied), "{file} of {pid}");
    }
}

/// The limit that a process has on dumps of its memory.
fn dumps(pid: u32) -> String {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max core file size")).unwrap();
    line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

/// Looks for secrets in the four processes of a node, and in one that holds them. `of_noded`: those that must not be in `noded`.
fn search(node: &mut Node, all: &[Named], of_noded: &[Named]) {
    let id: NodeId = node.id.parse().unwrap();
    let public = [(String::from("node id"), id.as_bytes().to_vec())];
    let mut holder = holder(all);
    let supervisor = node.daemon().unwrap().pid();
    let children = ["front", "vault", "noded"].map(|name| (name, node.child_pid(name).unwrap()));
    for (name, pid) in [("supervisor", supervisor)].into_iter().chain(children) {
        assert_eq!(dumps(pid), "0 0", "{name} is dumped nowhere");
        if !is_root() {
            shut(pid);
            continue;
        }
        let hunted = if name == "noded" { of_noded } else { all };
        for reading in READINGS {
            let (found, looked) = hunt(pid, hunted, reading).unwrap();
            assert!(found.is_empty(), "{name} by {reading:?}: {found:?}");
            assert!(looked > LITTLE, "{name} by {reading:?}: only {looked} bytes could be read");
            // What is no secret is found there; but of the vault's memory nothing that it works with.
            let (found, _) = hunt(pid, &public, reading).unwrap();
            assert_eq!(found.is_empty(), name == "vault", "{name} by {reading:?}");
        }
    }
    for reading in READINGS {
        let (found, _) = hunt(holder.id(), all, reading).unwrap();
        assert_eq!(found.len(), all.len(), "the control, by {reading:?}: {found:?}");
    }
    assert!(all.len() >= 16, "{} secrets", all.len());
    drop(holder.stdin.take());
    assert!(holder.wait().unwrap().success());
}

#[test]
fn iso_no_secret_is_found_in_memory_after_ten_thousand_operations() {
    let world = World::start().unwrap();
    let mut alice = world.init("alice", "").unwrap();
    let mut attacked = Attacked::new(&mut alice, &world.path().join("programs")).unwrap();
    attacked.node.up_without_answers().unwrap();
    let (secrets, link, peers) = used(&mut attacked);
    // The attacker plays the other party of the link as well, which has its share of it.
    search(attacked.node, &[secrets.as_slice(), &link].concat(), &secrets);
    if is_root() {
        let noded = attacked.node.child_pid("noded").unwrap();
        for reading in READINGS {
            let (found, _) = hunt(noded, &peers, reading).unwrap();
            assert_eq!(found.len(), peers.len(), "the control, a vault in ordinary memory, by {reading:?}: {found:?}");
        }
    }
    attacked.node.down().unwrap();
}

#[test]
fn iso_no_secret_of_a_link_is_found_in_an_honest_node() {
    let world = World::start().unwrap();
    let (mut alice, mut bob) = world.linked().unwrap();
    for _ in 0..SESSIONS {
        alice.cli(&["peers", "ping", &bob.id, "--count", "1", "--fresh"]).unwrap().ok().unwrap();
    }
    for (node, passphrase) in [(&mut alice, "passphrase of alice"), (&mut bob, "passphrase of bob")] {
        let secrets = Secrets::of(node, passphrase).unwrap();
        let link = secrets.of_link(&HeldLink::of(node).unwrap()).unwrap();
        let all = [secrets.all.as_slice(), &link].concat();
        search(node, &all, &all);
    }
    alice.down().unwrap();
    bob.down().unwrap();
}
