//! The modules that come with a node pass the suite; a program that is no module fails it, by name.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::PathBuf;

use openred_conformance::{Report, Subject, run};
use openred_module::manifest::Manifest;

/// Judges the program of this name, which lies above this one's.
fn judge(manifest: &str, program: &str) -> Report {
    let own = std::env::current_exe().unwrap();
    let program: PathBuf = own.ancestors().nth(2).unwrap().join(program);
    let probe = env!("CARGO_BIN_EXE_openred-conformance");
    let subject = Subject::new(&Manifest::parse("openred.toml", manifest).unwrap(), program, probe);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(run(&subject))
}

#[test]
fn messaging_conforms() {
    let report = judge(include_str!("../../messaging/openred.toml"), "openred-messaging");
    assert!(report.ok, "{report}");
}

#[test]
fn files_conform() {
    let report = judge(include_str!("../../files/openred.toml"), "openred-files");
    assert!(report.ok, "{report}");
}

#[test]
fn monitor_conforms() {
    let report = judge(include_str!("../../monitor/openred.toml"), "openred-monitor");
    assert!(report.ok, "{report}");
}

#[test]
fn auth_conforms() {
    let report = judge(include_str!("../../auth/openred.toml"), "openred-auth");
    assert!(report.ok, "{report}");
}

#[test]
fn what_is_no_module_fails_by_name() {
    let report = judge(include_str!("../../files/openred.toml"), "/bin/cat");
    assert!(!report.ok, "{report}");
    // What holds a module's limits is not its own doing.
    let passed = report.verdicts.iter().filter(|verdict| verdict.offence.is_none()).map(|verdict| verdict.check);
    assert_eq!(passed.collect::<Vec<_>>(), ["limits-hold"], "{report}");
    let first = report.verdicts[0].offence.as_ref().unwrap();
    assert!(report.verdicts[0].check == "attach" && first.contains("ended"), "{report}");
}

#[test]
fn another_modules_manifest_is_found_out() {
    let manifest = include_str!("../../files/openred.toml").replace("/transfers", "/other");
    let report = judge(&manifest, "openred-files");
    let failed: Vec<&str> =
        report.verdicts.iter().filter(|verdict| verdict.offence.is_some()).map(|verdict| verdict.check).collect();
    assert!(failed.contains(&"routes"), "{report}");
}
