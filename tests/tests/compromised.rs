//! `noded` in an attacker's hands, with the real supervisor, front, vault and kernel around it: nothing that it tries brings a key, a
//! signature on its own bytes or an operation without a record, and the honest program finds the node as it left it.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use openred_proto::id::NodeId;
use openred_proto::label::{Label, signed_bytes};
use openred_proto::vault::Refusal;
use openred_tests::attacker::{self, Attacked, of_kind};
use openred_tests::canary::Canary;
use openred_tests::harness::{Node, wait_for};
use openred_tests::secrets::Secrets;
use openred_tests::world::{World, link, registered, status};
use serde_json::{Value, json};

/// So many attempts of each kind leave a record, 89 in all, and so many the kernel answers without one, 9 in all: what docs/isolation.md,
/// docs/sandbox.md and docs/threat-model.md say.
const ATTEMPTS: [(&str, usize, usize); 6] = [
    ("operations", 16, 0),
    ("labels", 37, 0),
    ("rows", 12, 0),
    ("descriptors", 7, 6),
    ("processes", 7, 2),
    ("audit", 10, 1),
];

/// Ways to confuse signed bytes across labels that are really distinct; the design asks for eight.
const WAYS: usize = 12;

fn records(node: &Node) -> Vec<Value> {
    let answer = node.cli(&["audit", "export"]).unwrap().ok().unwrap();
    answer.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The trail, read offline against the node's id.
fn whole(node: &Node) {
    let answer = node.cli(&["audit", "verify", "--node", &node.id]).unwrap();
    let report: Value = serde_json::from_str(answer.stdout.trim()).unwrap();
    assert_eq!((answer.code, report["fault_count"].as_u64()), (0, Some(0)), "{report}");
}

fn text<'a>(line: &'a Value, field: &str) -> &'a str {
    line[field].as_str().unwrap_or_default()
}

/// Each attempt came to what it expected, which is a refusal; and each that must leave a record did, in the order of the attempts.
fn judge(lines: &[Value], trail: &[Value]) {
    let mut rest = trail.iter();
    let mut turned_away = 0;
    for line in lines.iter().filter(|line| matches!(text(line, "kind"), "attempt" | "control")) {
        let name = format!("{} {}{}", text(line, "area"), text(line, "attempt"), text(line, "control"));
        assert_eq!(line["expected"], line["outcome"], "{name}");
        match line["event"].as_str() {
            // Counted by the front, and reported in its own time.
            Some("front.call_refused") => turned_away += 1,
            // Recorded when it was asked for.
            Some(event) if line["earlier"] == true => {
                assert!(trail.iter().any(|record| record["event"] == event), "{name}")
            }
            Some(event) => assert!(
                rest.any(|record| record["event"] == event && record["outcome"] == line["result"]),
                "{name}: no record {event} {} in {trail:#?}",
                line["result"]
            ),
            None => {}
        }
    }
    assert_eq!(sum(trail, "front.call_refused", "ok"), turned_away);
    for many in of_kind(lines, "many") {
        // What had no room in the list is counted there.
        let (event, result) = (text(many, "event"), text(many, "result"));
        let listed =
            trail.iter().filter(|record| record["event"] == event && record["outcome"] == result).count() as u64;
        let counted = listed + sum(trail, "audit.not_listed", "ok");
        assert!(counted >= many["count"].as_u64().unwrap(), "{listed} and what is counted: {counted}");
        assert!(listed < many["count"].as_u64().unwrap(), "the trail is not filled by it");
    }
}

/// The counts of one event's records.
fn sum(trail: &[Value], event: &str, outcome: &str) -> u64 {
    let of = trail.iter().filter(|record| record["event"] == event && record["outcome"] == outcome);
    of.filter_map(|record| record["count"].as_u64()).sum()
}

/// The first of `wanted` over which anything in `came`, at whatever place, is a signature by `key`: bare, or under any label.
fn signed(key: &VerifyingKey, wanted: &[Vec<u8>], came: &[u8]) -> Option<String> {
    for window in came.windows(64) {
        let Ok(signature) = Signature::from_slice(window) else { continue };
        for wanted in wanted {
            if key.verify_strict(wanted, &signature).is_ok() {
                return Some(format!("{wanted:?} as it stands"));
            }
            let under = |label: &Label| key.verify_strict(&signed_bytes(*label, wanted), &signature).is_ok();
            if let Some(label) = Label::ALL.into_iter().find(under) {
                return Some(format!("{wanted:?} under {label:?}"));
            }
        }
    }
    None
}

/// The same search finds a signature that is there, by whatever key, wherever it stands in what came.
fn it_would_be_found(wanted: &[Vec<u8>]) {
    let key = SigningKey::from_bytes(&[7; 32]);
    for one in wanted {
        let under = Label::ALL.map(|label| key.sign(&signed_bytes(label, one)));
        for signature in under.iter().chain([&key.sign(one)]) {
            let came = [&[9; 33][..], &signature.to_bytes(), b"and more behind it"].concat();
            assert!(signed(&key.verifying_key(), wanted, &came).is_some(), "the control");
            assert_eq!(signed(&key.verifying_key(), &[b"something else".to_vec()], &came), None);
        }
    }
}

/// Nothing that came into the attacker's hands holds a signature over bytes that it wanted signed: neither the honest signatures nor what
/// was answered to any attempt.
fn nothing_is_signed(node: &Node, lines: &[Value]) {
    let id: NodeId = node.id.parse().unwrap();
    let key = VerifyingKey::from_bytes(id.as_bytes()).unwrap();
    let bytes =
        |kind| -> Vec<Vec<u8>> { of_kind(lines, kind).map(|line| hex::decode(text(line, "hex")).unwrap()).collect() };
    let (signatures, wanted) = (bytes("signature"), bytes("wanted"));
    assert!(signatures.len() >= 4 && wanted.len() >= 5, "{} and {}", signatures.len(), wanted.len());
    it_would_be_found(&wanted);
    for signature in signatures {
        assert_eq!((signature.len(), signed(&key, &wanted, &signature)), (64, None));
    }
    let mut answered = 0;
    for line in of_kind(lines, "attempt").filter(|line| !text(line, "came").is_empty()) {
        let came = hex::decode(text(line, "came")).unwrap();
        assert_eq!(signed(&key, &wanted, &came), None, "{} {}", text(line, "area"), text(line, "attempt"));
        answered += 1;
    }
    assert!(answered >= 40, "what was asked of front and vault was answered: {answered}");
}

/// None of the node's secrets is in what came back over any socket, byte by byte as it came, and in what the client made of refusals.
fn no_key_came_out(attacked: &Attacked<'_>, lines: &[Value]) {
    let received = attacked.received().unwrap();
    let came = of_kind(lines, "done").last().unwrap()["came"].as_u64().unwrap();
    assert_eq!(received.len() as u64, came, "all that came was kept");
    let id: NodeId = attacked.node.id.parse().unwrap();
    // The controls: bytes of a message as they were on the wire, words of a refusal, and what a server says before any call: how many
    // streams there may be (RFC 9113, 6.5.2).
    for (name, bytes) in [
        ("the node id, which is in every description", &id.as_bytes()[..]),
        ("why a row was refused", Refusal::RowSealed.to_string().as_bytes()),
        ("the code of that refusal", Refusal::RowSealed.code().as_bytes()),
        ("the front's settings", &[0, 3, 0, 0, 1, 128]),
    ] {
        assert!(received.windows(bytes.len()).any(|window| window == bytes), "the control: {name}");
    }
    let secrets = Secrets::of(attacked.node, "passphrase of alice").unwrap().all;
    assert!(secrets.len() >= 12, "{} secrets", secrets.len());
    for (name, secret) in secrets {
        let canary = Canary::known("secret", &hex::encode(&secret), &secret);
        assert!(!canary.is_in(&received), "{name}");
        // The same search finds it, in whatever form, in the middle of all that.
        let (before, behind) = received.split_at(received.len() / 2);
        for form in [secret.clone(), hex::encode(&secret).into_bytes(), BASE64.encode(&secret).into_bytes()] {
            assert!(canary.is_in(&[before, &form, behind].concat()), "the control: {name}");
        }
    }
}

/// The ways in which signed bytes were confused, by what stands before the colon of an attempt's name.
fn ways(lines: &[Value]) -> BTreeSet<&str> {
    let labels = of_kind(lines, "attempt").filter(|line| text(line, "area") == "labels");
    labels.map(|line| text(line, "attempt").split_once(": ").unwrap().0).collect()
}

/// What the kernel answers from outside to what it refuses inside: the files are there.
fn they_are_there(node: &Node, vault: u32) {
    let places = ["keystore.age", "vault/state", "audit/a.segment", "run/control.sock"];
    assert!(places.iter().all(|place| node.home.join(place).exists()));
    assert!(PathBuf::from(format!("/proc/{vault}/mem")).exists() && File::open("/proc/self/maps").is_ok());
}

/// An act that the filter ends the process for: an alarm, no restart, a record; the key process goes on.
fn ends_it(attacked: &mut Attacked<'_>, act: &str) -> Result<Value> {
    attacked.node.up_without_answers()?;
    let (vault, before) = (attacked.node.child_pid("vault")?, sum_of(attacked.node, "process.filter"));
    attacked.order(&json!({ "do": "kernel", "name": act, "vault": vault }))?;
    let noded = wait_for("the alarm", || {
        let said = attacked.said()?;
        ensure!(of_kind(&said, "broken").next().is_none(), "{said:?}");
        let status = status(attacked.node)?;
        let conditions = status["supervisor"]["conditions"].as_array().context("conditions")?;
        let alarm = conditions.iter().any(|alarm| alarm["code"] == "process.noded.filter");
        let processes = status["supervisor"]["processes"].as_array().context("processes")?;
        Ok(processes.iter().find(|process| alarm && process["name"] == "noded").cloned())
    })?;
    ensure!(text(&noded, "last_exit").starts_with("SIGSYS"), "{noded}");
    ensure!((&noded["state"], &noded["restarts"], &noded["pid"]) == (&"down".into(), &0.into(), &0.into()), "{noded}");
    wait_for("its record", || Ok((sum_of(attacked.node, "process.filter") == before + 1).then_some(())))?;
    ensure!(attacked.node.cli(&["status"])?.code == 3 && attacked.node.cli(&["doctor"])?.code == 3, "exit codes");
    ensure!(attacked.node.child_pid("vault")? == vault, "the vault was not reached");
    attacked.node.down()?;
    Ok(noded)
}

fn sum_of(node: &Node, event: &str) -> u64 {
    sum(&records(node), event, "ok")
}

/// The same act outside any cage, on a process that is there for it.
fn works_outside(act: &str) {
    let mut victim = victim();
    let pid = victim.id().to_string();
    let tried = Command::new(attacker::program().unwrap()).args(["--control", act, &pid]).status().unwrap();
    let _ = victim.kill();
    victim.wait().unwrap();
    assert_eq!(tried.code(), Some(0), "the control of {act}");
}

fn victim() -> Child {
    Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap()
}

#[test]
fn iso_a_compromised_noded_gets_no_key_and_no_signature_and_each_attempt_is_recorded() {
    let world = World::start().unwrap();
    let mut alice = world.node("alice").unwrap();
    alice.down().unwrap();
    let before = records(&alice).len();
    let mut attacked = Attacked::new(&mut alice, &world.path().join("programs")).unwrap();

    attacked.mute(true).unwrap();
    attacked.node.up_without_answers().unwrap();
    // It keeps the operator waiting in vain, and not from what the supervisor says.
    let mute = status(attacked.node).unwrap();
    assert!(text(&mute, "node_error").contains("did not answer"), "{mute}");
    attacked.mute(false).unwrap();
    assert_eq!(attacked.node.cli(&["doctor"]).unwrap().code, 0, "every layer of the attacker's cage is in place");
    let vault = attacked.node.child_pid("vault").unwrap();
    let mut lines = attacked.obeyed(&json!({ "do": "calls", "vault": vault })).unwrap();
    // The front reports in its own time; a flood would leave no room for that.
    let turned_away = lines.iter().filter(|line| line["event"] == "front.call_refused").count() as u64;
    wait_for("the front's reports", || Ok((sum_of(attacked.node, "front.call_refused") == turned_away).then_some(())))
        .unwrap();
    lines.extend(attacked.obeyed(&json!({ "do": "flood" })).unwrap());
    they_are_there(attacked.node, vault);
    assert_eq!(attacked.node.child_pid("vault").unwrap(), vault, "the vault lives");
    no_key_came_out(&attacked, &lines);
    attacked.node.down().unwrap();
    assert_eq!(ways(&lines).len(), WAYS, "{:?}", ways(&lines));
    judge(&lines, &records(attacked.node)[before..]);
    nothing_is_signed(attacked.node, &lines);

    for act in attacker::fatal_acts().unwrap() {
        works_outside(&act);
        ends_it(&mut attacked, &act).unwrap_or_else(|error| panic!("{act}: {error:#}"));
        whole(attacked.node);
    }
    lines.extend(every_line(&attacked));
    let tried = |area, recorded: bool| {
        let of = |line: &&Value| text(line, "area") == area && recorded != line["event"].is_null();
        of_kind(&lines, "attempt").filter(of).map(|line| text(line, "attempt")).collect::<BTreeSet<_>>().len()
    };
    let counted = ATTEMPTS.map(|(area, ..)| (area, tried(area, true), tried(area, false)));
    assert_eq!(counted, ATTEMPTS);

    // The honest program on what the attacker left.
    attacked.end().unwrap();
    alice.up().unwrap();
    registered(&alice).unwrap();
    let mut bob = world.node("bob").unwrap();
    link(&alice, &bob).unwrap();
    whole(&alice);
    alice.down().unwrap();
    bob.down().unwrap();
    whole(&alice);
}

/// The whole report, in all the attacker's lives.
fn every_line(attacked: &Attacked<'_>) -> Vec<Value> {
    let text = fs::read_to_string(attacked.node.home.join("state/attack.report")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
