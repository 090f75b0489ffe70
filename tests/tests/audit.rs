//! The audit trail of a real node: what its keys did is there, survives what processes and files meet, and tells when it was
//! touched.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use openred_tests::harness::{Answer, Node, binaries, run, signal_pid, wait_for};
use openred_tests::world::{World, link, registered};
use serde_json::Value;

/// A base of uids that no other test of this suite uses.
const UID_BASE: u32 = 61_900;
/// Bytes of a slot of a segment.
const SLOT: u64 = 128;

fn node(folder: &Path, step: u32) -> Node {
    let nowhere = "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp@http://127.0.0.1:9";
    Node::init(&folder.canonicalize().unwrap(), "node", nowhere, UID_BASE + 10 * step, "").unwrap()
}

fn segment(node: &Node, name: &str) -> PathBuf {
    node.home.join("audit").join(format!("{name}.segment"))
}

fn verify(node: &Node, more: &[&str]) -> (i32, Value) {
    let answer = node.cli(&[&["audit", "verify", "--node", &node.id], more].concat()).unwrap();
    (answer.code, serde_json::from_str(answer.stdout.trim()).unwrap_or_else(|_| panic!("{answer:?}")))
}

fn whole(node: &Node) -> Value {
    let (code, report) = verify(node, &[]);
    assert_eq!((code, report["fault_count"].as_u64()), (0, Some(0)), "{report}");
    report
}

/// Every record of the trail.
fn records(node: &Node) -> Vec<Value> {
    let answer = node.cli(&["audit", "export"]).unwrap().ok().unwrap();
    answer.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn events(node: &Node) -> Vec<String> {
    records(node).iter().map(|record| record["event"].as_str().unwrap().to_owned()).collect()
}

fn conditions(node: &Node) -> Result<Vec<String>> {
    let status: Value = serde_json::from_str(node.cli(&["status"])?.stdout.trim())?;
    let conditions = status["supervisor"]["conditions"].as_array().context("conditions")?;
    Ok(conditions.iter().filter_map(|condition| condition["code"].as_str().map(str::to_owned)).collect())
}

fn ready(node: &Node, pid: u32) {
    wait_for("another vault", || {
        let status: Value = serde_json::from_str(node.cli(&["status"])?.stdout.trim())?;
        let processes = status["supervisor"]["processes"].as_array().context("processes")?;
        let is_new =
            |process: &Value| process["state"] == "ready" && (process["name"] != "vault" || process["pid"] != pid);
        Ok(processes.iter().all(is_new).then_some(()))
    })
    .unwrap();
}

fn up(node: &Node) -> Answer {
    let (home, passphrase) = (node.home.display().to_string(), format!("{}.passphrase", node.home.display()));
    let openred = binaries().unwrap().join("openred");
    run(&openred, &["--json", "--home", &home, "up", "--passphrase-file", &passphrase]).unwrap()
}

#[test]
fn what_the_keys_did_is_there_signed_at_the_end_and_after_a_kill() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = node(folder.path(), 0);
    node.up().unwrap();
    wait_for("a signed card in the trail", || Ok(events(&node).contains(&"card.signed".into()).then_some(()))).unwrap();
    let report = whole(&node);
    assert_eq!(report["compared_with_live_vault"], true, "{report}");
    let pid = node.child_pid("vault").unwrap();
    signal_pid(pid, Signal::SIGKILL).unwrap();
    ready(&node, pid);
    wait_for("the report of the death", || Ok(events(&node).contains(&"process.died".into()).then_some(()))).unwrap();
    whole(&node);
    node.down().unwrap();
    let (report, events) = (whole(&node), events(&node));
    assert_eq!(events.last().map(String::as_str), Some("vault.stopped"), "{events:?}");
    assert_eq!(
        (report["signed_to"].as_u64(), report["compared_with_live_vault"].as_bool()),
        (report["last"].as_u64(), Some(false))
    );
    for event in ["audit.segment_begun", "vault.started", "prekey.made", "statics.signed", "card.signed"] {
        assert!(events.contains(&event.to_owned()), "{event} in {events:?}");
    }
    assert_eq!(events.iter().filter(|event| *event == "vault.started").count(), 2);
}

#[test]
fn a_checkpoint_kept_elsewhere_shows_a_cut_end_and_a_change_names_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = node(folder.path(), 1);
    node.up().unwrap();
    wait_for("a signed card in the trail", || Ok(events(&node).contains(&"card.signed".into()).then_some(()))).unwrap();
    node.down().unwrap();
    let kept = folder.path().join("checkpoint");
    fs::write(&kept, node.cli(&["audit", "export", "--checkpoint"]).unwrap().ok().unwrap().stdout).unwrap();
    let kept = ["--checkpoint", kept.to_str().unwrap()];
    assert_eq!(verify(&node, &kept).0, 0);
    let (path, count) = (segment(&node, "a"), records(&node).len() as u64);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let original = fs::read(&path).unwrap();
    // The last record and its signature: without the checkpoint the trail is whole, with it cut.
    file.write_all_at(&[0; 2 * SLOT as usize], count * SLOT).unwrap();
    assert_eq!(verify(&node, &[]).0, 0);
    let (code, report) = verify(&node, &kept);
    assert_eq!(code, 1);
    assert!(report["faults"][0]["what"].as_str().unwrap().contains("cut off"), "{report}");
    // The vault remembers as well.
    let refused = up(&node);
    assert!(refused.code != 0 && refused.stderr.contains("audit trail was changed"), "{refused:?}");
    file.write_all_at(&original, 0).unwrap();
    file.write_all_at(b"x", 3 * SLOT + 30).unwrap();
    let (code, report) = verify(&node, &[]);
    assert_eq!((code, report["faults"][0]["slot"].as_u64()), (1, Some(3)), "{report}");
    // Another node's trail is no trail of this one.
    let other = "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp";
    file.write_all_at(&original, 0).unwrap();
    let answer = node.cli(&["audit", "verify", "--node", other]).unwrap();
    assert!(answer.code == 1 && answer.stdout.contains("another node"), "{answer:?}");
    node.up().unwrap();
    whole(&node);
    node.down().unwrap();
}

/// What was cut hangs on no descriptor: no vault is there until the file is as it was.
fn cut_while_it_is_written(node: &Node) {
    let (pid, path) = (node.child_pid("vault").unwrap(), segment(node, "a"));
    let file = File::options().write(true).open(&path).unwrap();
    let whole_length = file.metadata().unwrap().len();
    // Behind the last record: nothing that has to be brought back is lost.
    file.set_len(whole_length - SLOT).unwrap();
    let detail = wait_for("the refused start", || {
        let status: Value = serde_json::from_str(node.cli(&["status"])?.stdout.trim())?;
        let conditions = status["supervisor"]["conditions"].as_array().context("conditions")?.clone();
        Ok(conditions.into_iter().find(|condition| condition["code"] == "process.vault.start"))
    })
    .unwrap();
    assert!(detail["detail"].as_str().unwrap().contains("it was cut"), "{detail}");
    assert!(!node.home.join("run/cryptod/cryptod.sock").exists(), "no key is used");
    file.set_len(whole_length).unwrap();
    ready(node, pid);
    wait_for("the record", || {
        Ok((events(node).iter().filter(|event| *event == "audit.file_changed").count() == 3).then_some(()))
    })
    .unwrap();
    assert!(conditions(node).unwrap().contains(&"audit.touched".into()));
    whole(node);
}

#[test]
fn a_segment_deleted_replaced_or_cut_while_it_is_written_is_put_back_and_said() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = node(folder.path(), 2);
    node.up().unwrap();
    for (step, replace) in [false, true].into_iter().enumerate() {
        let pid = node.child_pid("vault").unwrap();
        let before = records(&node).len();
        let path = segment(&node, "a");
        fs::remove_file(&path).unwrap();
        if replace {
            fs::write(&path, vec![0; 4 << 20]).unwrap();
        }
        ready(&node, pid);
        assert!(conditions(&node).unwrap().contains(&"audit.touched".into()));
        wait_for("the trail to be back", || Ok((records(&node).len() > before).then_some(()))).unwrap();
        whole(&node);
        let touched = events(&node).iter().filter(|event| *event == "audit.file_changed").count();
        assert_eq!(touched, step + 1);
    }
    cut_while_it_is_written(&node);
    assert_eq!(node.cli(&["status"]).unwrap().code, 3, "an alarm stays until somebody has looked");
    node.down().unwrap();
}

#[test]
fn a_trail_that_is_lost_stops_the_start_and_can_be_begun_anew_for_all_to_see() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = node(folder.path(), 3);
    node.up().unwrap();
    let conflict = node.cli(&["audit", "restart"]).unwrap();
    assert_eq!(conflict.code, 6, "{conflict:?}");
    node.down().unwrap();
    let last = records(&node).last().unwrap()["sequence"].as_u64().unwrap();
    let path = segment(&node, "a");
    File::options().write(true).open(&path).unwrap().set_len(1000).unwrap();
    let refused = up(&node);
    assert!(refused.code != 0 && refused.stderr.contains("1000 bytes"), "{refused:?}");
    fs::remove_file(&path).unwrap();
    let refused = up(&node);
    assert!(refused.code != 0 && refused.stderr.contains("openred audit restart"), "{refused:?}");
    node.cli(&["audit", "restart"]).unwrap().ok().unwrap();
    node.up().unwrap();
    let (code, report) = verify(&node, &[]);
    assert_eq!((code, report["fault_count"].as_u64()), (1, Some(1)), "{report}");
    assert!(report["faults"][0]["what"].as_str().unwrap().contains("begun anew"), "{report}");
    assert!(records(&node)[0]["sequence"].as_u64().unwrap() > last);
    node.down().unwrap();
    node.up().unwrap();
    node.down().unwrap();
}

#[test]
fn tail_shows_the_latest_for_people_and_programs() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = node(folder.path(), 4);
    let missing = node.cli(&["audit", "tail"]).unwrap();
    assert_eq!(missing.code, 4, "{missing:?}");
    node.up().unwrap();
    node.down().unwrap();
    let answer = node.cli(&["audit", "tail", "-n", "1"]).unwrap().ok().unwrap();
    let record: Value = serde_json::from_str(answer.stdout.trim()).unwrap();
    assert_eq!((record["event"].as_str(), record["outcome"].as_str()), (Some("vault.stopped"), Some("ok")));
    let openred = binaries().unwrap().join("openred");
    let people = run(&openred, &["--home", node.home.to_str().unwrap(), "audit", "tail"]).unwrap();
    assert!(people.stdout.lines().count() >= 4 && people.stdout.contains("vault.started"), "{people:?}");
}

/// The vault that its filter ended cannot say so, and is not started again; the next one is told, whenever that is.
#[test]
fn iso_a_vaults_death_by_its_filter_is_recorded_by_the_next_vault() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = node(folder.path(), 9);
    node.up().unwrap();
    signal_pid(node.child_pid("vault").unwrap(), Signal::SIGSYS).unwrap();
    wait_for("the alarm", || Ok(conditions(&node)?.iter().any(|code| code == "process.vault.filter").then_some(())))
        .unwrap();
    node.down().unwrap();
    let of_the_filter = |node: &Node| events(node).iter().filter(|event| *event == "process.filter").count();
    assert_eq!(of_the_filter(&node), 0, "nobody was there to record it");
    for _ in 0..2 {
        node.up().unwrap();
        wait_for("the record", || Ok((of_the_filter(&node) == 1).then_some(()))).unwrap();
        wait_for("the debt to be settled", || Ok((!node.home.join("audit/owed").exists()).then_some(()))).unwrap();
        node.down().unwrap();
    }
    assert_eq!(of_the_filter(&node), 1, "once");
    whole(&node);
}

/// `audited` mode between real nodes: what both signed is shown, and anybody can verify it without a node.
#[test]
fn sessions_are_signed_by_both_sides_where_one_demands_it_and_anybody_can_verify_that() {
    let world = World::start().unwrap();
    let started = |name: &str, audited: &str| {
        let extra = format!("[links]\nincoming = \"open\"\naudited = \"{audited}\"\n");
        let mut node = world.init(name, &extra).unwrap();
        node.up().unwrap();
        registered(&node).unwrap();
        node
    };
    let (mut alice, mut bob) = (started("alice", "require"), started("bob", "allow"));
    link(&alice, &bob).unwrap();
    let shown = alice.cli(&["link", "show", &bob.id]).unwrap().json().unwrap();
    assert!(shown["signed_sessions"].as_u64().unwrap() > 0 && shown["signed_at"].as_u64().unwrap() > 0, "{shown}");
    for node in [&alice, &bob] {
        assert!(events(node).contains(&"session.signed".to_owned()), "{}", node.id);
    }
    let printed = bob.cli(&["link", "proof", &alice.id]).unwrap().ok().unwrap().stdout;
    let proofs: Value = serde_json::from_str(printed.trim()).unwrap();
    let ids: std::collections::BTreeSet<_> =
        [&proofs["proofs"][0]["initiator"], &proofs["proofs"][0]["responder"]].map(|id| id.as_str().unwrap()).into();
    assert_eq!(ids, [alice.id.as_str(), bob.id.as_str()].into());
    alice.down().unwrap();
    bob.down().unwrap();

    let verify = |text: &str| {
        let file = world.path().join("proofs.json");
        fs::write(&file, text).unwrap();
        alice.cli(&["link", "proof", "--verify", &file.to_string_lossy()]).unwrap()
    };
    let good = verify(&printed).ok().unwrap().json().unwrap();
    assert_eq!(good["proofs"][0]["hash"], proofs["proofs"][0]["hash"]);
    // Another's name beside the signatures, one side's words twice, another handshake's hash.
    let entry = &proofs["proofs"][0];
    let text = |name: &str| entry[name].as_str().unwrap();
    for (name, other) in [
        ("initiator", "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp"),
        ("responder_statement", text("initiator_statement")),
        ("hash", &"00".repeat(32)),
        ("initiator_statement", &text("initiator_statement").replacen('0', "1", 1)),
    ] {
        let mut changed = proofs.clone();
        changed["proofs"][0][name] = other.into();
        let refused = verify(&changed.to_string());
        assert!(refused.code == 1 && refused.stderr.contains("proof.bad"), "{name}: {refused:?}");
    }
    assert!(verify("{\"proofs\": []}").stderr.contains("proof.malformed"));
}
