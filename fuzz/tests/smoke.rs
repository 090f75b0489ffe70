//! Every target on its corpus and on a few seconds of mutations; and that the corpus is what the tree says it is.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::Duration;

use openred_fuzz::driver::Run;
use openred_fuzz::{TARGETS, corpus};

/// All targets together: a few seconds on two cores.
const SECONDS: u64 = 2;
/// Of one target, in the tree: small enough to be read in a review's time, and to be tried in a moment.
const CORPUS_BYTES: usize = 64 * 1024;

fn smoke(name: &str) {
    let target = openred_fuzz::target(name).unwrap();
    let inputs = corpus::read(&corpus::folder(), target).unwrap();
    assert!(!inputs.is_empty(), "no corpus for {name}");
    let bytes: usize = inputs.iter().map(Vec::len).sum();
    assert!(bytes <= CORPUS_BYTES, "{name}: {bytes} bytes of corpus");
    let failures = std::env::temp_dir().join("openred-fuzz");
    let tried = Run { failures: &failures, time: Duration::from_secs(SECONDS) }.drive(target, &inputs);
    assert!(tried > inputs.len() as u64, "{name}: not one mutation was tried");
}

macro_rules! smoke {
    ($($test:ident: $name:literal),* $(,)?) => {
        $(#[test] fn $test() { smoke($name); })*

        #[test]
        fn every_target_is_smoked() {
            let mut smoked = vec![$($name),*];
            let mut all: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
            smoked.sort_unstable();
            all.sort_unstable();
            assert_eq!(smoked, all);
        }
    };
}

smoke! {
    statements: "statements",
    offers: "offers",
    handshake: "handshake",
    http_signature: "http-signature",
    log: "log",
    replicas: "replicas",
    session: "session",
    config: "config",
    keystore: "keystore",
    state: "state",
    audit_verify: "audit-verify",
    audit_start: "audit-start",
    front: "front",
    vault_frames: "vault-frames",
    vault_operations: "vault-operations",
    messaging: "messaging",
    files: "files",
}

#[test]
fn a_failure_leaves_its_input_behind() {
    fn fails(bytes: &[u8]) {
        assert!(bytes.len() < 4 || bytes[3] != 7, "found");
    }
    let target = openred_fuzz::Target { name: "fails", reads: "", run: fails, longest: 16, corpus: || Vec::new() };
    let folder = std::env::temp_dir().join(format!("openred-fuzz-fails-{}", std::process::id()));
    let run = Run { failures: &folder, time: Duration::from_secs(60) };
    let found = std::panic::catch_unwind(|| run.drive(&target, &[vec![0; 8]]));
    assert!(found.is_err(), "the driver never came upon it");
    let entry = std::fs::read_dir(&folder).unwrap().next().unwrap().unwrap();
    assert_eq!(std::fs::read(entry.path()).unwrap()[3], 7);
    std::fs::remove_dir_all(folder).unwrap();
}
