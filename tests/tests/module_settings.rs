//! A module's terms in a real node: the operator's settings reach it at its start and when they change, wrong ones are refused by key and
//! line; it is started, held and ended as its manifest says, within what the operator allows.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use openred_tests::desk::{Desk, VERSION, answers, module, probe_manifest};
use openred_tests::harness::{Node, signal_pid, wait_for};
use openred_tests::world::{World, status};
use serde_json::Value;

const CONFIG: &str =
    "[config.mode]\ntype = \"text\"\none_of = [\"strict\", \"kind\"]\ndefault = \"strict\"\nhelp = \"h\"
[config.days]\ntype = \"integer\"\nleast = 1\nmost = 9\ndefault = 3\nhelp = \"h\"\n";

const SETTINGS: [&str; 2] = ["POST", "/try/settings"];

/// Changes the configuration of a node that runs.
fn change(node: &mut Node, from: &str, to: &str) {
    let place = node.home.join("openred.toml");
    let text = fs::read_to_string(&place).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(&place, text.replace(from, to)).unwrap();
}

fn hang_up(node: &mut Node) {
    signal_pid(node.daemon().unwrap().pid(), Signal::SIGHUP).unwrap();
}

#[test]
fn settings_reach_a_module_at_its_start_and_when_they_change() {
    let world = World::without_directory().unwrap();
    let mut node = world.alone("alice", "[module.probe]\nmode = \"kind\"\n").unwrap();
    let desk = Desk::new(&world.path().join("desk")).unwrap();
    desk.install_probe(&node, &probe_manifest(VERSION, "", CONFIG)).unwrap();
    answers(&node, &SETTINGS, "{\"mode\":\"kind\",\"days\":3}").unwrap();
    // And what would hold a module's limits here has a name each.
    let checked = node.cli(&["check"]).unwrap().ok().unwrap().stdout;
    let limits: Value = serde_json::from_str(checked.lines().last().unwrap()).unwrap();
    for resource in ["memory", "cpu", "tasks", "descriptors"] {
        let way = limits[resource].as_str().unwrap();
        assert!(["cgroup-v2", "cgroup-v1", "rlimit", "watch"].contains(&way), "{limits}");
    }
    let (noded, process) = (node.child_pid("noded").unwrap(), node.child_pid("module probe").unwrap());
    // A change reaches it where it is: neither it nor `noded` is restarted for that.
    change(&mut node, "mode = \"kind\"", "mode = \"strict\"\ndays = 9");
    hang_up(&mut node);
    answers(&node, &SETTINGS, "{\"mode\":\"strict\",\"days\":9}").unwrap();
    assert_eq!((node.child_pid("noded").unwrap(), node.child_pid("module probe").unwrap()), (noded, process));
    // A wrong one is named by key, by what is allowed, and by its line; the one before stays.
    change(&mut node, "days = 9", "days = 10");
    let refused = node.cli(&["check"]).unwrap();
    let said = format!("{}{}", refused.stdout, refused.stderr);
    assert_eq!(refused.code, 78, "{said}");
    assert!(said.contains("`module.probe.days`: not a value of it; use a whole number from 1 to 9"), "{said}");
    assert!(said.contains("days = 10"), "the line is shown: {said}");
    hang_up(&mut node);
    wait_for("the refusal", || Ok(node.daemon()?.output().contains("the configuration stays as it was").then_some(())))
        .unwrap();
    answers(&node, &SETTINGS, "\"days\":9").unwrap();
    // Started with it, the node runs, and the module does not, by name.
    node.down().unwrap();
    node.up_degraded().unwrap();
    let named = status(&node).unwrap()["supervisor"].to_string();
    assert!(named.contains("module.probe.refused") && named.contains("module.probe.days"), "{named}");
    answers(&node, &SETTINGS, "no-such-module").unwrap();
    change(&mut node, "days = 10", "day = 1");
    let said = node.cli(&["check"]).unwrap().stdout;
    assert!(said.contains("this module has no such setting; known here: days, mode"), "{said}");
    change(&mut node, "day = 1", "days = 1");
    hang_up(&mut node);
    answers(&node, &SETTINGS, "{\"mode\":\"strict\",\"days\":1}").unwrap();
    assert!(!status(&node).unwrap().to_string().contains("module.probe.refused"));
}

fn state(node: &Node) -> anyhow::Result<Value> {
    let status = status(node)?;
    let modules = status["node"]["module_status"].as_array().cloned().unwrap_or_default();
    modules.into_iter().find(|module| module["id"] == "probe").context("no such module")
}

#[test]
fn a_module_is_started_held_and_ended_as_its_manifest_says() {
    let world = World::without_directory().unwrap();
    let mut node = world.alone("alice", "[modules]\ndescriptors = 32\n").unwrap();
    let desk = Desk::new(&world.path().join("desk")).unwrap();
    // `start` stands before every table.
    let limits = "[limits]\nidle_seconds = 30\nmemory_megabytes = 48\nstart_seconds = 60\nstop_seconds = 5\n";
    let manifest = format!("start = \"lazy\"\n{}", probe_manifest(VERSION, "", limits));
    desk.install_probe(&node, &manifest).unwrap();
    // Nobody has called it, so it sleeps; called, it runs; not called any more, it sleeps again.
    wait_for("its sleep", || Ok((state(&node)?["state"] == "asleep").then_some(()))).unwrap();
    assert_eq!(state(&node).unwrap()["starts"], 0);
    answers(&node, &SETTINGS, "strict").unwrap();
    assert_eq!(state(&node).unwrap()["starts"], 1);
    let asleep = || Ok((state(&node)?["state"] == "asleep").then_some(()));
    // The shortest that a manifest may say is half of what is waited for anything.
    wait_for("its sleep", asleep).or_else(|_| wait_for("its sleep", asleep)).unwrap();
    // What comes with the node is eager, and stays.
    assert!(node.child_pid("module messaging").is_ok());
    let limits = |node: &Node| -> anyhow::Result<String> {
        node.cli(&["module", "call", "probe", "POST", "/try/settings"])?.ok()?;
        let pid = node.child_pid("module probe")?;
        Ok(fs::read_to_string(format!("/proc/{pid}/limits"))?)
    };
    let open_files = |node: &Node| {
        wait_for("its limits", || {
            let limits = limits(node)?;
            let line = limits.lines().find(|line| line.starts_with("Max open files")).context("no such line")?;
            Ok(line.split_whitespace().nth(3).map(str::to_owned))
        })
        .unwrap()
    };
    assert_eq!(open_files(&node), "32", "the operator's ceiling counts, whatever the manifest says");
    let shown = module(&node, &["show", "probe"]).unwrap();
    assert_eq!(shown["limits"]["memory_megabytes"], 48, "{shown}");
    assert_eq!((&shown["limits"]["descriptors"], &shown["start"]), (&Value::from(32), &Value::from("lazy")));
    change(&mut node, "descriptors = 32", "descriptors = 64");
    hang_up(&mut node);
    wait_for("the wider limit", || {
        let limits = limits(&node)?;
        ensure!(limits.lines().any(|line| line.starts_with("Max open files") && line.contains(" 64 ")), "{limits}");
        Ok(Some(()))
    })
    .unwrap();
}
