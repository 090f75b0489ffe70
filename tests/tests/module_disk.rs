//! A disk that is full while modules are installed and changed: nothing of what was there is lost, nothing half is left, and with room again the same
//! command does it. Takes root, as every test of a small disk (`openred_tests::disk` says why).
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;

use openred_tests::desk::{Desk, VERSION, answers, module, probe_manifest, refused, text};
use openred_tests::disk::{self, again_on_a_small_disk, fill};
use openred_tests::harness::{binaries, is_root};
use openred_tests::world::World;

/// Bytes of a node without modules, and some room.
const NODE: u64 = 32 << 20;

/// Everything below a folder.
fn names(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        found.push(path.display().to_string());
        if path.is_dir() {
            found.extend(names(&path));
        }
    }
    found.sort();
    found
}

#[test]
fn a_full_disk_loses_no_module_and_what_it_refused_works_when_there_is_room() {
    if !is_root() {
        return;
    }
    let Some(folder) = disk::folder() else {
        let program = fs::metadata(binaries().unwrap().join("openred-probe-module")).unwrap().len();
        // One version has room, two have not; or would have, without what is filled in.
        let name = "a_full_disk_loses_no_module_and_what_it_refused_works_when_there_is_room";
        return again_on_a_small_disk(name, "alice", NODE + 3 * program).unwrap();
    };
    let world = World::without_directory().unwrap();
    let mut node = world.init_in(&folder, "alice", "").unwrap();
    node.up_without_answers().unwrap();
    let desk = Desk::new(&world.path().join("desk")).unwrap();
    let asks = "kv.quota = { megabytes = 1, reason = \"r\" }";
    desk.install_probe(&node, &probe_manifest(VERSION, asks, "")).unwrap();
    answers(&node, &["POST", "/try/kv", "--data", "hello"], "tried").unwrap();
    let newer = "1.0.1+openred.probe";
    let package = desk.pack(&probe_manifest(newer, asks, ""), &desk.probe(newer).unwrap(), "").unwrap();
    let modules = node.home.join("modules");
    let (before, filler) = (names(&modules), node.home.join("filler"));
    fill(&filler).unwrap();
    refused(&node, &["install", &text(&package)], "disk.full");
    refused(&node, &["disable", "probe"], "disk.full");
    refused(&node, &["approve", "probe"], "disk.full");
    assert_eq!(names(&modules), before, "nothing is left of it");
    let shown = module(&node, &["show", "probe"]).unwrap();
    assert_eq!((shown["version"].as_str(), shown["enabled"].as_bool()), (Some(VERSION), Some(true)));
    answers(&node, &["GET", "/kept"], "\"bytes\":5").unwrap();
    fs::remove_file(&filler).unwrap();
    module(&node, &["install", &text(&package)]).unwrap();
    assert_eq!(module(&node, &["show", "probe"]).unwrap()["version"], newer);
    answers(&node, &["GET", "/kept"], "\"bytes\":5").unwrap();
    module(&node, &["disable", "probe"]).unwrap();
    node.down().unwrap();
}
