//! A short soak of a few nodes with real processes, namespaces and trouble: all of it runs to its end and finds nothing violated, and one
//! that is ended early leaves nothing behind. `scripts/soak` runs it for an hour.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;
use openred_tests::harness::{binaries, is_root, signal_pid, wait_for};
use serde_json::Value;

/// Exit code of a soak that the machine gives no place for.
const NO_PLACE: i32 = 78;

fn soak(words: &str, out: &Path) -> Command {
    let programs = binaries().unwrap();
    let mut command = Command::new(programs.join("openred-soak"));
    command.env("OPENRED_BIN_DIR", programs).args(words.split(' ')).arg("--out").arg(out);
    command
}

/// As an ordinary user: it says at once that it takes root. True when that was all there is to show.
fn is_refused(out: &Path) -> bool {
    if is_root() {
        return false;
    }
    let ran = soak("--seconds 5 --nodes 2", out).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert_eq!(ran.status.code(), Some(NO_PLACE), "{said}");
    assert!(said.contains("run it as root"), "{said}");
    assert_eq!(fs::read_dir(out).unwrap().count(), 0, "nothing is begun");
    true
}

#[test]
fn a_short_soak_violates_nothing() {
    let out = tempfile::tempdir().unwrap();
    if is_refused(out.path()) {
        return;
    }
    let ran = soak("--seconds 45 --nodes 4 --every 2.5 --rate 3 --life 15 --seed 1", out.path()).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(ran.status.success(), "{said}\n{}", String::from_utf8_lossy(&ran.stderr));
    let report: Value = serde_json::from_str(&fs::read_to_string(out.path().join("report.json")).unwrap()).unwrap();
    let count = |value: &Value| value.as_u64().unwrap();
    assert_eq!((&report["violations"], &report["whole"]), (&serde_json::json!([]), &Value::Bool(true)));
    assert_eq!((count(&report["pairs"]), count(&report["pairs_linked"])), (6, 6));
    let messages = &report["messages"];
    assert!(count(&messages["acknowledged"]) > 20 && count(&messages["received"]) >= count(&messages["acknowledged"]));
    assert!(count(&report["links"]["renewals accepted"]) > 0, "{}", report["links"]);
    let counted = &report["counted"];
    assert!(count(&counted["acknowledged"]) > 0 && count(&counted["kept"]) >= count(&counted["acknowledged"]));
    assert_eq!(counted["wrong"], serde_json::json!([]));
    for kind in [
        "module messaging",
        "module swapped",
        "noded",
        "vault",
        "front",
        "supervisor",
        "restart",
        "directory",
        "unplug",
        "unplug-directory",
        "split",
        "clock",
        "swap",
        "foul",
    ] {
        assert!(report["faults"][kind][0].as_u64() > Some(0), "{kind}: {}", report["faults"]);
    }
    let memory = report["memory"].as_array().unwrap();
    for process in ["openred", "noded", "cryptod", "cryptod-vault"] {
        let life = memory.iter().find(|life| life["of"] == "n0" && life["process"] == process).unwrap();
        assert!(life["first_kib"].as_f64() > Some(0.0), "{life}");
    }
}

/// A process: its id, and when it was started, which tells it from a later one of that id.
type Process = (u32, String);

/// All that run now, each with its parent.
fn running() -> Vec<(Process, u32)> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let of = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let words: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        (words[0] != "Z").then(|| Some(((pid, words[19].to_owned()), words[1].parse().ok()?)))?
    };
    ids.filter_map(of).collect()
}

/// What was started by this process, and by those.
fn started_by(pid: u32) -> Vec<Process> {
    let all = running();
    let (mut parents, mut found) = (vec![pid], Vec::new());
    while let Some(parent) = parents.pop() {
        for (process, _) in all.iter().filter(|(_, other)| *other == parent) {
            parents.push(process.0);
            found.push(process.clone());
        }
    }
    found
}

#[test]
fn a_soak_that_is_ended_early_says_so_and_leaves_nothing() {
    let out = tempfile::tempdir().unwrap();
    if is_refused(out.path()) {
        return;
    }
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut ran =
            soak("--seconds 600 --nodes 2 --every 1000 --seed 1", out.path()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut said, mut started) = (Vec::new(), Vec::new());
        for line in BufReader::new(ran.stdout.take().unwrap()).lines().map_while(Result::ok) {
            if line.contains("every pair linked") {
                started = started_by(ran.id());
                signal_pid(ran.id(), signal).unwrap();
            }
            said.push(line);
        }
        let code = ran.wait().unwrap().code();
        assert_eq!(code, if signal == Signal::SIGTERM { Some(1) } else { None }, "{said:?}");
        let named = said.iter().any(|line| line.contains("ended before its time"));
        assert_eq!(named, signal == Signal::SIGTERM, "{said:?}");
        // Of two nodes four processes each at the least, a directory, and the soak itself inside its namespaces.
        assert!(started.len() > 10, "{started:?}");
        wait_for("the end of all that it started", || {
            let left = running().into_iter().filter(|(process, _)| started.contains(process)).count();
            anyhow::ensure!(left == 0, "{left} still run");
            Ok(Some(()))
        })
        .unwrap();
    }
}
