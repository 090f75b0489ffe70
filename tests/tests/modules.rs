//! Modules as processes, with the real programs: each in its cage, started again when it ends, kept when `noded` is replaced, gone
//! with the node.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::PathBuf;

use anyhow::Result;
use nix::sys::signal::Signal;
use openred_tests::desk::{Desk, VERSION, answers, module, probe_manifest, text};
use openred_tests::harness::{Node, is_root, signal_pid, wait_for};
use openred_tests::world::{World, inbox, status};
use serde_json::Value;

const MODULES: [&str; 4] = ["module messaging", "module files", "module monitor", "module auth"];

fn process(node: &Node, name: &str) -> Result<Value> {
    let status = status(node)?;
    let processes = status["supervisor"]["processes"].as_array().cloned().unwrap_or_default();
    Ok(processes.into_iter().find(|process| process["name"] == name).unwrap_or_default())
}

fn place(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}"))
}

/// The uid that the host sees.
fn uid(pid: u32) -> u32 {
    let status = fs::read_to_string(place(pid).join("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn iso_each_module_runs_in_a_cage_of_its_own() {
    let world = World::start().unwrap();
    let alice = world.node("alice").unwrap();
    let doctor = alice.cli(&["doctor"]).unwrap().json().unwrap();
    assert_eq!(doctor["ok"], true, "{doctor}");
    for name in MODULES {
        let process = doctor["processes"].as_array().unwrap().iter().find(|process| process["name"] == name).unwrap();
        assert_eq!(process["state"], "ready");
        assert_eq!(process["network_interfaces"], Value::Array(vec![]), "{process}");
        let layers: Vec<&Value> =
            doctor["layers"].as_array().unwrap().iter().filter(|layer| layer["process"] == name).collect();
        assert!(layers.len() >= 20 && layers.iter().all(|layer| layer["ok"] == true), "{layers:?}");
        let limits = layers.iter().find(|layer| layer["name"] == "resources").unwrap();
        let detail = limits["detail"].as_str().unwrap();
        assert!(detail.starts_with("memory by ") && detail.ends_with("descriptors by rlimit"), "{detail}");
        assert_eq!(
            status(&alice).unwrap()["supervisor"]["limits"],
            detail,
            "on this machine all modules are held alike"
        );
    }
    let mut uids: Vec<u32> = MODULES.iter().map(|name| uid(alice.child_pid(name).unwrap())).collect();
    uids.push(uid(alice.child_pid("noded").unwrap()));
    uids.sort_unstable();
    let all = uids.len();
    uids.dedup();
    assert_eq!(uids.len() == all, is_root());
}

#[test]
fn a_module_that_is_killed_comes_back_and_nothing_is_lost() {
    let world = World::start().unwrap();
    let (alice, bob) = world.linked().unwrap();
    alice.cli(&["send", &bob.id, "before"]).unwrap().ok().unwrap();
    wait_for("the first message", || Ok((inbox(&bob)? == ["before"]).then_some(()))).unwrap();
    let (pid, other) = (bob.child_pid(MODULES[0]).unwrap(), bob.child_pid(MODULES[1]).unwrap());
    let noded = bob.child_pid("noded").unwrap();
    signal_pid(pid, Signal::SIGKILL).unwrap();
    alice.cli(&["send", &bob.id, "during"]).unwrap();
    wait_for("the module's return", || {
        let seen = process(&bob, MODULES[0])?;
        let is_back = seen["state"] == "ready" && seen["pid"] != pid && seen["last_exit"] == "SIGKILL";
        let named = status(&bob)?["node"]["conditions"]
            .as_array()
            .is_some_and(|conditions| conditions.iter().any(|condition| condition["code"] == "module.down"));
        Ok((is_back && !named).then_some(()))
    })
    .unwrap();
    alice.cli(&["send", &bob.id, "after"]).unwrap().ok().unwrap();
    wait_for("every message, once", || {
        let mut texts = inbox(&bob)?;
        texts.sort();
        Ok((texts == ["after", "before", "during"]).then_some(()))
    })
    .unwrap();
    assert_eq!(bob.child_pid(MODULES[1]).unwrap(), other, "the others go on");
    assert_eq!(bob.child_pid("noded").unwrap(), noded);
}

#[test]
fn modules_outlive_noded_and_end_with_the_node() {
    let world = World::start().unwrap();
    let mut alice = world.node("alice").unwrap();
    let pids = MODULES.map(|name| alice.child_pid(name).unwrap());
    let noded = alice.child_pid("noded").unwrap();
    signal_pid(noded, Signal::SIGKILL).unwrap();
    wait_for("the next noded and its modules", || {
        let is_new = process(&alice, "noded")?["pid"] != noded && process(&alice, "noded")?["state"] == "ready";
        Ok((is_new && alice.cli(&["inbox"])?.code == 0).then_some(()))
    })
    .unwrap();
    assert_eq!(MODULES.map(|name| alice.child_pid(name).unwrap()), pids, "the same processes serve the next one");
    alice.down().unwrap();
    for pid in pids {
        assert!(!place(pid).exists(), "{pid} outlives its node");
    }
    assert!(!alice.home.join("run/modules/s").exists());
}

/// What an operator does while modules are called has `noded` started anew, and nothing else.
#[test]
fn modules_outlive_each_restart_of_noded_that_an_operator_causes() {
    let world = World::without_directory().unwrap();
    let mut node = world.alone("alice", "").unwrap();
    let supervisor = node.daemon().unwrap().pid();
    let desk = Desk::new(&world.path().join("desk")).unwrap();
    let keeps = "kv.quota = { megabytes = 1, reason = \"what it was told\" }\n";
    desk.install_probe(&node, &probe_manifest(VERSION, keeps, "")).unwrap();
    let mut told = String::new();
    // It reads what it was told, is told more, and is called as before.
    let mut called = |node: &Node| {
        answers(node, &["GET", "/kept"], &format!("\"bytes\":{}", told.len()).replace(":0", ":null")).unwrap();
        told.push('x');
        answers(node, &["POST", "/try/kv", "--data", &told], "tried").unwrap();
    };
    called(&node);
    let all: Vec<&str> = MODULES.into_iter().chain(["module probe"]).collect();
    let pids = |node: &Node| all.iter().map(|name| node.child_pid(name).unwrap()).collect::<Vec<_>>();
    let before = pids(&node);
    let mut restarted = |what: &str, cause: &dyn Fn()| {
        let noded = node.child_pid("noded").unwrap();
        cause();
        wait_for(what, || {
            let seen = process(&node, "noded")?;
            Ok((seen["pid"] != noded && seen["state"] == "ready").then_some(()))
        })
        .unwrap();
        called(&node);
        assert_eq!(pids(&node), before, "{what}: the same processes serve the next one");
    };
    restarted("noded after a changed setting", &|| {
        let place = node.home.join("openred.toml");
        let config = fs::read_to_string(&place).unwrap();
        let renamed = config.replace("name = \"alice\"", "name = \"renamed\"");
        assert_ne!(renamed, config);
        fs::write(&place, renamed).unwrap();
        signal_pid(supervisor, Signal::SIGHUP).unwrap();
    });
    restarted("noded after a grant with a new name", &|| {
        let egress = "net.egress = { to = [\"localhost:9\"], reason = \"a name\" }\n";
        let manifest = probe_manifest(VERSION, egress, "").replace("id = \"probe\"", "id = \"other\"");
        // Its program says that it is somebody else: that its grant names a host is enough.
        let package = text(&desk.pack(&manifest, &desk.probe(VERSION).unwrap(), "").unwrap());
        module(&node, &["install", &package, "--publisher", &desk.publisher, "--approve"]).unwrap();
    });
    restarted("noded after a kill", &|| signal_pid(node.child_pid("noded").unwrap(), Signal::SIGKILL).unwrap());
}

#[test]
fn a_module_dies_with_a_supervisor_that_is_killed() {
    let world = World::start().unwrap();
    let mut alice = world.node("alice").unwrap();
    let pids = MODULES.map(|name| alice.child_pid(name).unwrap());
    alice.daemon().unwrap().signal(Signal::SIGKILL).unwrap();
    wait_for("the modules' end", || {
        // Gone, or a zombie that nobody has reaped yet.
        let gone = |pid: u32| match fs::read_to_string(place(pid).join("stat")) {
            Ok(stat) => stat.contains(") Z "),
            Err(_) => true,
        };
        Ok(pids.into_iter().all(gone).then_some(()))
    })
    .unwrap();
}

#[test]
fn one_that_ends_again_and_again_is_left_down_and_named() {
    let world = World::start().unwrap();
    let alice = world.node("alice").unwrap();
    for _ in 0..3 {
        let pid = wait_for("the module", || {
            let seen = process(&alice, MODULES[1])?;
            Ok((seen["state"] == "ready").then(|| seen["pid"].as_u64()).flatten())
        })
        .unwrap();
        signal_pid(u32::try_from(pid).unwrap(), Signal::SIGKILL).unwrap();
        wait_for("its end", || Ok((process(&alice, MODULES[1])?["pid"] != pid).then_some(()))).unwrap();
    }
    wait_for("the quarantine", || {
        let conditions = status(&alice)?["node"]["conditions"].clone();
        let named = conditions.as_array().is_some_and(|conditions| {
            conditions.iter().any(|condition| {
                let detail = condition["detail"].as_str().unwrap_or_default();
                condition["code"] == "module.quarantined"
                    && detail.contains("files")
                    && detail.contains("not started again")
            })
        });
        Ok(named.then_some(()))
    })
    .unwrap();
    assert_eq!(alice.cli(&["inbox"]).unwrap().code, 0, "the rest goes on");
}
