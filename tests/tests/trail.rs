//! The files of a real node's trail at its beginnings and ends: the operator's word to begin it anew is used once, whatever becomes of
//! the start that takes it, and what was taken away is put back whichever way the vault ends.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::path::Path;

use nix::fcntl::{Flock, FlockArg};
use openred_tests::harness::{Answer, Node, binaries, lay_out, passphrase, refusal, run, wait_for};
use serde_json::Value;

/// A base of uids that no other test of this suite uses.
const UID_BASE: u32 = 62_720;

fn node(folder: &Path, step: u32) -> Node {
    let nowhere = "did:key:z6MkiTBz1ymuepAQ4HEHYSF1H8quG5GLVVQR3djdX3mDooWp@http://127.0.0.1:9";
    Node::init(&folder.canonicalize().unwrap(), "node", nowhere, UID_BASE + 10 * step, "").unwrap()
}

/// The sequences of the records of this event.
fn records(node: &Node, event: &str) -> Vec<u64> {
    let exported = node.cli(&["audit", "export"]).unwrap().ok().unwrap();
    let records = exported.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    records.filter(|record| record["event"] == event).map(|record| record["sequence"].as_u64().unwrap()).collect()
}

fn begun(node: &Node) -> Vec<u64> {
    records(node, "audit.begun_anew")
}

/// A start with the programs of this folder that must come to an end by itself.
fn up(node: &Node, programs: &Path) -> Answer {
    let home = node.home.display().to_string();
    run(&programs.join("openred"), &["--json", "--home", &home, "up", "--passphrase-file", &passphrase(node)]).unwrap()
}

#[test]
fn a_start_that_fails_behind_the_vault_uses_the_word_up() {
    let folder = tempfile::tempdir().unwrap();
    let top = folder.path().canonicalize().unwrap();
    let mut node = node(&top, 0);
    node.up().unwrap();
    node.down().unwrap();
    node.cli(&["audit", "restart"]).unwrap().ok().unwrap();
    let word = node.home.join("audit/begin-anew");
    assert!(word.exists());

    // In the front's place a program that ends at once.
    let programs = top.join("programs");
    lay_out(&programs, "cryptod", Path::new("/bin/true")).unwrap();
    let first = up(&node, &programs);
    assert!(first.code != 0 && first.stderr.contains("front"), "{first:?}");
    let after = begun(&node);
    assert!(after.len() == 1 && !word.exists(), "{after:?}");
    let second = up(&node, &programs);
    assert!(second.code != 0 && second.stderr.contains("front"), "{second:?}");
    assert_eq!(begun(&node), after, "what the first start recorded is still there");

    // The control: with the word there again it is another trail.
    fs::write(&word, "").unwrap();
    node.run_from(&binaries().unwrap());
    node.up().unwrap();
    let last = begun(&node);
    assert!(last.len() == 1 && last[0] > after[0] && !word.exists(), "{last:?}");
    node.down().unwrap();
}

/// Another command at work on the home keeps it away, and a restore that was cut short is carried to its end before anything is put aside:
/// its trail is the home's.
#[test]
fn a_restart_holds_the_home_and_ends_what_was_cut_short() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = node(folder.path(), 2);
    node.up().unwrap();
    node.down().unwrap();
    let held = File::open(node.home.join("run/lock")).unwrap();
    let held = Flock::lock(held, FlockArg::LockExclusiveNonblock).unwrap();
    let refused = node.cli(&["audit", "restart"]).unwrap();
    assert_eq!(refusal(&refused), (6, "home.locked".into()));
    assert!(node.home.join("audit/a.segment").exists());
    drop(held);

    // As a kill just behind the moment of a restore leaves it: all of the other node waits, its trail's word among it.
    let ready = node.home.join("restored");
    fs::create_dir_all(ready.join("new/audit")).unwrap();
    fs::write(ready.join("new/audit/begin-anew"), "").unwrap();
    fs::write(ready.join("note.json"), r#"{"key":"00","replaced":"replaced-1"}"#).unwrap();
    node.cli(&["audit", "restart"]).unwrap().ok().unwrap();
    assert!(!ready.exists() && node.home.join("replaced-1/audit/a.segment").exists());
    assert!(node.home.join("audit/begin-anew").exists());
    node.up().unwrap();
    node.down().unwrap();
}

/// What is there last: nobody looks at the files again before the vault ends.
#[test]
fn a_segment_that_is_taken_away_just_before_the_end_is_put_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut node = node(folder.path(), 1);
    let (first, secret) = (node.home.join("audit/a.segment"), passphrase(&node));
    let verify = |node: &Node| node.cli(&["audit", "verify", "--node", &node.id]).unwrap();
    let recorded = |node: &Node, times: usize| {
        let seen = || Ok((records(node, "audit.file_changed").len() == times).then_some(()));
        wait_for("the record", seen).unwrap();
    };
    node.up().unwrap();
    fs::remove_file(&first).unwrap();
    node.cli(&["key", "lock"]).unwrap().ok().unwrap();
    assert!(first.exists());
    assert_eq!(verify(&node).code, 0);
    node.cli(&["key", "unlock", "--passphrase-file", &secret]).unwrap().ok().unwrap();
    recorded(&node, 1);

    fs::remove_file(&first).unwrap();
    node.down().unwrap();
    assert!(first.exists());
    assert_eq!(verify(&node).code, 0);
    node.up().unwrap();
    recorded(&node, 2);
    node.down().unwrap();
}
