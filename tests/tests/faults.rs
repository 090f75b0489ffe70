//! What goes wrong for an operator: wrong passphrase, taken port, absent directory and peer. The full disk is in `disk`.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use openred_tests::harness::{binaries, run, wait_for};
use openred_tests::world::{World, inbox, registered, status};

/// Exit codes of docs/operations.md.
const CONFLICT: i32 = 6;
const LOCKED: i32 = 8;
const BAD_CONFIGURATION: i32 = 78;

#[test]
fn a_wrong_passphrase_is_named_and_starts_nothing() {
    let world = World::without_directory().unwrap();
    let alice = world.init("alice", "").unwrap();
    let wrong = world.path().join("wrong");
    fs::write(&wrong, "not it\n").unwrap();
    fs::set_permissions(&wrong, fs::Permissions::from_mode(0o600)).unwrap();
    let home = alice.home.to_str().unwrap();
    let program = binaries().unwrap().join("openred");
    let answer = run(&program, &["--home", home, "up", "--passphrase-file", wrong.to_str().unwrap()]).unwrap();
    assert_eq!(answer.code, LOCKED, "{answer:?}");
    assert!(answer.stderr.contains("passphrase"), "{answer:?}");
}

#[test]
fn a_taken_port_is_named() {
    let world = World::without_directory().unwrap();
    let alice = world.init("alice", "").unwrap();
    let _taken = TcpListener::bind(alice.listen).unwrap();
    let (home, program) = (alice.home.to_str().unwrap(), binaries().unwrap().join("openred"));
    let passphrase = format!("{home}.passphrase");
    let answer = run(&program, &["--home", home, "up", "--passphrase-file", &passphrase]).unwrap();
    assert_eq!(answer.code, CONFLICT, "{answer:?}");
    assert!(answer.stderr.contains(&alice.listen.to_string()), "{answer:?}");
}

#[test]
fn an_unknown_setting_is_shown_with_line_caret_and_nearest_key() {
    let world = World::without_directory().unwrap();
    let alice = world.init("alice", "").unwrap();
    let config = alice.home.join("openred.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, format!("lisen = \"127.0.0.1:1\"\n{text}")).unwrap();
    let (home, program) = (alice.home.to_str().unwrap(), binaries().unwrap().join("openred"));
    for command in [vec!["check"], vec!["up", "--passphrase-file", "/nonexistent"]] {
        let arguments = [vec!["--home", home], command].concat();
        let answer = run(&program, &arguments).unwrap();
        assert_eq!(answer.code, BAD_CONFIGURATION, "{answer:?}");
        for part in ["openred.toml:1:1", "lisen", "listen", "^"] {
            assert!(answer.stderr.contains(part), "{part}: {answer:?}");
        }
    }
}

#[test]
fn a_second_up_on_the_same_home_is_refused() {
    let world = World::without_directory().unwrap();
    let mut alice = world.init("alice", "").unwrap();
    alice.up().unwrap();
    let (home, program) = (alice.home.to_str().unwrap(), binaries().unwrap().join("openred"));
    let passphrase = format!("{home}.passphrase");
    let answer = run(&program, &["--home", home, "up", "--passphrase-file", &passphrase]).unwrap();
    assert_eq!(answer.code, CONFLICT, "{answer:?}");
}

#[test]
fn a_node_comes_up_without_its_directory_says_so_and_registers_later() {
    let mut world = World::without_directory().unwrap();
    let mut alice = world.init("alice", "").unwrap();
    alice.up().unwrap();
    let seen = wait_for("the node's word for it", || {
        let status = status(&alice)?;
        Ok((status["node"]["directories"][0]["state"] == "unreachable").then_some(status))
    })
    .unwrap();
    assert!(seen["node"]["conditions"].to_string().contains("directory"), "{seen}");
    // It works on, so this is a warning and not degraded service.
    assert_eq!(alice.cli(&["status"]).unwrap().code, 0, "{seen}");
    world.directory.up().unwrap();
    registered(&alice).unwrap();
}

#[test]
fn a_message_to_an_absent_peer_waits_and_arrives_once() {
    let world = World::start().unwrap();
    let (alice, mut bob) = world.linked().unwrap();
    bob.down().unwrap();
    let ping = alice.cli(&["peers", "ping", &bob.id, "--count", "1", "--fresh"]).unwrap();
    assert_ne!(ping.code, 0, "{ping:?}");
    alice.cli(&["send", &bob.id, "while away"]).unwrap();
    bob.up().unwrap();
    wait_for("the message", || Ok((inbox(&bob)? == ["while away"]).then_some(()))).unwrap();
}

#[test]
fn commands_without_a_running_node_say_how_to_start_one() {
    let world = World::without_directory().unwrap();
    let alice = world.init("alice", "").unwrap();
    for command in [["link", "list"], ["peers", "list"], ["inbox", "--all"]] {
        let answer = alice.cli(&command).unwrap();
        assert_ne!(answer.code, 0, "{answer:?}");
        assert!(format!("{}{}", answer.stderr, answer.stdout).contains("openred up"), "{answer:?}");
    }
}

#[test]
fn link_requests_to_nobody_and_to_nonsense_are_told_apart() {
    let world = World::start().unwrap();
    let alice = world.node("alice").unwrap();
    let nobody = "did:key:z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK";
    assert_eq!(alice.cli(&["link", "request", nobody]).unwrap().code, 4, "not found");
    assert_eq!(alice.cli(&["link", "request", "did:key:zzz"]).unwrap().code, 2, "usage");
    assert_eq!(alice.cli(&["link", "show", "00000000000000000000000000000000"]).unwrap().code, 4, "not found");
    assert_eq!(alice.cli(&["frobnicate"]).unwrap().code, 2, "usage");
}
