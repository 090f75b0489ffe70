//! Sessions between real processes: the next one under load and at both ends, a command that is interrupted, a peer that is killed.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;
use openred_tests::harness::{Node, signal_pid, wait_for, wait_up_to};
use openred_tests::world::{World, link, registered};
use serde_json::Value;

/// Longer than what the disks and sockets of a fetch take at once.
const FILE_BYTES: u64 = 160 << 20;
/// What a fetch asks for at once: it may come twice when the peer is away for longer than an answer waits to go on.
const ASKED_AT_ONCE: u64 = 4 * (4 << 20);

fn shared_file(node: &Node, folder: &Path) -> String {
    let path = folder.join("large");
    let content: Vec<u8> =
        (0..FILE_BYTES / 4).flat_map(|word| (word as u32).wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    fs::write(&path, content).unwrap();
    let shared = node.cli(&["share", path.to_str().unwrap()]).unwrap().json().unwrap();
    shared["id"].as_str().unwrap().to_owned()
}

/// Follows a fetch until it is well under way; gives what it had then.
fn under_way(lines: impl Iterator<Item = String>) -> u64 {
    for line in lines {
        let event: Value = serde_json::from_str(&line).unwrap_or_default();
        let done = event["done"].as_u64().unwrap_or(0);
        if event["event"] == "progress" && done > FILE_BYTES / 16 {
            assert!(done < FILE_BYTES, "it was over too soon");
            return done;
        }
    }
    panic!("it ended before it was under way");
}

#[test]
fn no_request_fails_at_the_least_limits_that_an_operator_may_set() {
    let world = World::start().unwrap();
    let least = "[links]\nincoming = \"open\"\n[sessions]\nrequests = 1024\nmegabytes = 16\nlife_seconds = 10\n";
    let (mut alice, mut bob) = (world.init("alice", least).unwrap(), world.init("bob", least).unwrap());
    for node in [&mut alice, &mut bob] {
        node.up().unwrap();
        registered(node).unwrap();
    }
    link(&alice, &bob).unwrap();
    let ping = |from: &Node, to: &Node| {
        let arguments = ["peers", "ping", &to.id, "--count", "6000", "--concurrency", "32", "--size", "4096"];
        let answer = from.cli(&arguments).unwrap().json().unwrap();
        assert_eq!((answer["sent"].as_u64(), answer["failed"].as_u64()), (Some(6000), Some(0)), "{answer}");
    };
    // 12,000 requests and 90 MiB, from both at once, over sessions of 1,024 requests and 16 MiB.
    thread::scope(|scope| {
        scope.spawn(|| ping(&alice, &bob));
        ping(&bob, &alice);
    });
}

/// A line of a process's status, in KiB: anybody may read these of any process.
fn memory(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn memory_that_a_rush_of_requests_took_goes_back_when_it_is_over() {
    /// What a rush may leave behind: caches that it filled, above all the database's.
    const LEFT: u64 = 4 << 10;
    /// Connections are let go when they have been idle for 45 s, and what is free is given back each half minute.
    const GIVEN_BACK: Duration = Duration::from_secs(180);
    let world = World::start().unwrap();
    let (alice, bob) = world.linked().unwrap();
    let pid = alice.child_pid("noded").unwrap();
    let (quiet, whole) = (memory(pid, "RssAnon"), memory(pid, "VmRSS"));
    let rush = ["peers", "ping", &bob.id, "--count", "600", "--concurrency", "200", "--size", "65000"];
    // How much of one waits at the same time is the scheduler's choice.
    let rushed = || {
        let answer = alice.cli(&rush)?.json()?;
        assert!(answer["sent"].as_u64() > answer["failed"].as_u64(), "{answer}");
        let most = memory(pid, "VmHWM");
        anyhow::ensure!(most > whole + 2 * LEFT, "{whole} KiB, at most {most}: that was no rush");
        Ok(Some(()))
    };
    wait_for("a rush", rushed).unwrap();
    let gone = || {
        let left = memory(pid, "RssAnon");
        anyhow::ensure!(left < quiet + LEFT, "{quiet} KiB before, {left} KiB after");
        Ok(Some(()))
    };
    wait_up_to(GIVEN_BACK, "the memory of a rush to go back", gone).unwrap();
    assert_eq!(alice.child_pid("noded").unwrap(), pid, "no filter ended it over that");
}

#[test]
fn an_interrupted_command_ends_what_it_asked_for_and_the_next_one_goes_on() {
    let world = World::start().unwrap();
    let (alice, bob) = world.linked().unwrap();
    let id = shared_file(&alice, world.path());
    let (mut fetch, lines) = bob.stream(&["fetch", &alice.id, &id]).unwrap();
    let done = under_way(lines);
    signal_pid(fetch.id(), Signal::SIGINT).unwrap();
    assert!(!fetch.wait().unwrap().success());
    // The node has let go of the file: another command gets its turn at once, and has what came.
    let again = wait_for("the rest of the file", || Ok(Some(bob.cli(&["fetch", &alice.id, &id])?.json()?))).unwrap();
    assert_eq!(again["verified"], true, "{again}");
    assert!(again["resumed_from"].as_u64().unwrap() >= done, "{again}");
    // What was on its way and not whole is all that is fetched twice; had the first run gone on, nothing would be left.
    assert!(again["received"].as_u64().unwrap() > 0, "{again}");
}

#[test]
fn a_fetch_goes_on_by_itself_when_the_peers_noded_is_killed() {
    let world = World::start().unwrap();
    let (alice, bob) = world.linked().unwrap();
    let id = shared_file(&alice, world.path());
    let victim = alice.child_pid("noded").unwrap();
    let (mut fetch, mut lines) = bob.stream(&["fetch", &alice.id, &id]).unwrap();
    under_way(&mut lines);
    signal_pid(victim, Signal::SIGKILL).unwrap();
    let last = lines.last().unwrap();
    assert!(fetch.wait().unwrap().success(), "{last}");
    let fetched: Value = serde_json::from_str(&last).unwrap();
    assert_eq!(fetched["verified"], true, "{fetched}");
    assert!(fetched["received"].as_u64().unwrap() <= FILE_BYTES + ASKED_AT_ONCE, "{fetched}");
    assert_ne!(alice.child_pid("noded").unwrap(), victim);
}
