//! `openred doctor` on a running node: each layer of each process is looked at, one that goes off meanwhile is named and is exit code
//! 3, and what can be seen at the start alone is marked so.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::File;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use openred_tests::harness::{Node, is_root, signal_pid, wait_for};
use serde_json::Value;

/// A base of uids that no other test of this suite uses.
const UID_BASE: u32 = 61_300;

fn node(step: u32, folder: &std::path::Path) -> Node {
    let nowhere = "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp@http://127.0.0.1:9";
    Node::init(&folder.canonicalize().unwrap(), "node", nowhere, UID_BASE + 10 * step, "").unwrap()
}

/// Exit code and report.
fn doctor(node: &Node) -> (i32, Value) {
    let answer = node.cli(&["doctor"]).unwrap();
    (answer.code, serde_json::from_str(answer.stdout.trim()).unwrap())
}

/// The layers that are off: process and name.
fn off(report: &Value) -> Vec<(String, String)> {
    let text = |layer: &Value, field: &str| layer[field].as_str().unwrap().to_owned();
    let layers = report["layers"].as_array().unwrap().iter().filter(|layer| layer["ok"] == false);
    layers.map(|layer| (text(layer, "process"), text(layer, "name"))).collect()
}

/// Does something to a process on a thread of its own, which holds it until the other end of the channel is dropped.
fn holding(
    act: impl FnOnce() -> nix::Result<()> + Send + 'static,
) -> (nix::Result<()>, SyncSender<()>, JoinHandle<()>) {
    let (done, is_done) = sync_channel(1);
    let (hold, held): (SyncSender<()>, Receiver<()>) = sync_channel(1);
    let thread = std::thread::spawn(move || {
        done.send(act()).unwrap();
        // Its end is the end of what it holds.
        let _ = held.recv();
    });
    (is_done.recv().unwrap(), hold, thread)
}

/// Mounts something over the root of a process.
fn mount_over(pid: u32) -> nix::Result<()> {
    let namespace = File::open(format!("/proc/{pid}/ns/mnt")).map_err(|_| nix::Error::EACCES)?;
    // This thread's own root from here on, so that it can be changed to the other's.
    unshare(CloneFlags::CLONE_FS)?;
    setns(namespace, CloneFlags::CLONE_NEWNS)?;
    mount(Some("attack"), "/", Some("tmpfs"), MsFlags::empty(), None::<&str>)
}

#[test]
fn iso_a_layer_that_goes_off_while_it_runs_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = node(0, folder.path());
    node.up().unwrap();
    assert_eq!((doctor(&node).0, off(&doctor(&node).1)), (0, Vec::new()), "the control");
    let vault = node.child_pid("vault").unwrap();
    let pid = Pid::from_raw(i32::try_from(vault).unwrap());
    let (traced, release, tracer) = holding(move || ptrace::seize(pid, ptrace::Options::empty()));
    let named = |name: &str| vec![(String::from("vault"), name.to_owned())];
    if is_root() {
        traced.unwrap();
        let (code, report) = doctor(&node);
        assert_eq!((code, off(&report)), (3, named("untraced")));
        assert_eq!(report["ok"], false);
    } else {
        assert_eq!(traced, Err(nix::Error::EPERM), "the user's other programs do not get there");
    }
    drop(release);
    tracer.join().unwrap();
    assert_eq!(doctor(&node).0, 0, "in place again");

    let (mounted, release, mounter) = holding(move || mount_over(vault));
    if is_root() {
        mounted.unwrap();
        let (code, report) = doctor(&node);
        assert_eq!((code, off(&report)), (3, named("mounts")), "{report}");
        let shown = node.cli(&["status"]).unwrap();
        assert_eq!(shown.code, 0, "it is doctor's to say: {}", shown.stdout);
    } else {
        assert_eq!(mounted, Err(nix::Error::EACCES), "nor there");
    }
    drop(release);
    mounter.join().unwrap();
    node.down().unwrap();
}

/// Each layer of each process in service is looked at now, but for what the kernel shows to an ordinary user only at the start.
#[test]
fn iso_what_was_seen_at_the_start_alone_is_marked() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = node(1, folder.path());
    node.up().unwrap();
    let (code, report) = doctor(&node);
    assert_eq!(code, 0);
    for process in ["front", "vault", "noded"] {
        let when = |name: &str| -> Vec<&str> {
            let layers = report["layers"].as_array().unwrap().iter();
            let layers = layers.filter(|layer| layer["process"] == process && layer["name"] == name);
            layers.map(|layer| layer["when"].as_str().unwrap()).collect()
        };
        let by_namespace = if is_root() { "now" } else { "at start" };
        assert!(when("namespaces").contains(&by_namespace), "{process}: {:?}", when("namespaces"));
        assert_eq!(when("namespaces").contains(&"now"), is_root(), "{process}");
        let network = if process == "noded" { by_namespace } else { "now" };
        assert_eq!(when("interfaces"), [network], "{process}");
        for seen in ["mounts", "capabilities", "limits", "seccomp", "untraced", "not-dumpable", "threads"] {
            assert!(when(seen).contains(&"now"), "{process}: {seen} {:?}", when(seen));
        }
        // What shows nowhere from outside is the process's own word.
        assert_eq!(when("landlock"), ["at start"], "{process}");
    }
    node.down().unwrap();
}

/// What dies again and again is started after longer and longer pauses.
#[test]
fn what_dies_in_a_row_is_started_after_longer_pauses() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = node(2, folder.path());
    node.up().unwrap();
    for (deaths, pause) in (1..).zip([250, 500, 1000]) {
        signal_pid(node.child_pid("noded").unwrap(), Signal::SIGKILL).unwrap();
        wait_for("the restart", || {
            let log = node.daemon()?.output();
            let status: Value = serde_json::from_str(node.cli(&["status"])?.stdout.trim())?;
            let processes = status["supervisor"]["processes"].as_array().cloned().unwrap_or_default();
            let noded = processes.into_iter().find(|process| process["name"] == "noded").unwrap_or_default();
            let is_back = noded["restarts"] == deaths && noded["state"] == "ready";
            Ok((is_back && log.contains(&format!("noded is started again in {pause} ms"))).then_some(()))
        })
        .unwrap();
    }
    node.down().unwrap();
}
