//! Installed modules in a backup of a real node: packages, what was granted and what they keep come back with it, and run.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;

use openred_tests::desk::{Desk, VERSION, answers, module, probe_manifest};
use openred_tests::harness::{Answer, Node};
use openred_tests::world::World;

fn with(node: &Node, arguments: &[&str]) -> Answer {
    let passphrase = node.home.with_extension("passphrase").display().to_string();
    node.cli(&[arguments, &["--passphrase-file", &passphrase]].concat()).unwrap()
}

fn show(node: &Node) -> String {
    module(node, &["show", "probe"]).unwrap().to_string()
}

/// Every file below a folder, by its name in it.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(place) = folders.pop() {
        for entry in fs::read_dir(&place).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().display().to_string();
                found.push((name, fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn installed_modules_come_back_with_their_node() {
    let world = World::without_directory().unwrap();
    let mut node = world.alone("alice", "[module.probe]\nmode = \"kind\"\n").unwrap();
    let desk = Desk::new(&world.path().join("desk")).unwrap();
    let permissions = "kv.quota = { megabytes = 1, reason = \"r\" }\nblob.quota = { megabytes = 1, reason = \"r\" }";
    let config =
        "[config.mode]\ntype = \"text\"\none_of = [\"strict\", \"kind\"]\ndefault = \"strict\"\nhelp = \"h\"\n";
    desk.install_probe(&node, &probe_manifest(VERSION, permissions, config)).unwrap();
    module(&node, &["approve", "probe", "--only", "kv.quota"]).unwrap();
    answers(&node, &["POST", "/try/kv", "--data", "hello"], "tried").unwrap();
    answers(&node, &["POST", "/try/blob", "--data", "x"], "not-granted").unwrap();
    let (before, shown) = (files(&node.home.join("modules")), show(&node));
    assert!(before.iter().any(|(name, _)| name == &format!("probe/{VERSION}/probe")));
    // Of a node that runs, and of one that does not.
    let backup = |name: &str| world.path().join(name).display().to_string();
    for name in ["running.backup", "stopped.backup"] {
        let made = with(&node, &["backup", "create", &backup(name)]).json().unwrap();
        let names = made["manifest"]["files"].to_string();
        assert!(names.contains("\"modules.tar\""), "{made}");
        with(&node, &["backup", "verify", &backup(name)]).ok().unwrap();
        if name == "running.backup" {
            node.down().unwrap();
        }
    }
    // What was done since is undone; what is there is moved aside.
    module(&node, &["remove", "probe"]).unwrap();
    for name in ["running.backup", "stopped.backup"] {
        with(&node, &["backup", "restore", &backup(name), "--force"]).ok().unwrap();
        assert_eq!(files(&node.home.join("modules")), before, "{name}");
        assert_eq!(show(&node), shown);
        node.up_without_answers().unwrap();
        answers(&node, &["GET", "/kept"], "\"bytes\":5").unwrap();
        answers(&node, &["POST", "/try/settings"], "\"mode\":\"kind\"").unwrap();
        answers(&node, &["POST", "/try/blob", "--data", "x"], "not-granted").unwrap();
        node.down().unwrap();
    }
    // State that was kept of a module that is gone comes back as that, for the next of its name.
    module(&node, &["remove", "probe", "--keep-data"]).unwrap();
    let kept = files(&node.home.join("modules"));
    assert!(kept.iter().any(|(name, _)| name == ".kept-probe"), "{kept:?}");
    with(&node, &["backup", "create", &backup("kept.backup")]).ok().unwrap();
    with(&node, &["backup", "restore", &backup("kept.backup"), "--force"]).ok().unwrap();
    assert_eq!(files(&node.home.join("modules")), kept);
    node.up_without_answers().unwrap();
    desk.install_probe(&node, &probe_manifest(VERSION, permissions, config)).unwrap();
    answers(&node, &["GET", "/kept"], "\"bytes\":5").unwrap();
}
