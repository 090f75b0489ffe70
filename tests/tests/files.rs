//! Files through real processes: names as they are, an operator's own files untouched, a spoiled copy mended.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;

use openred_tests::harness::Node;
use openred_tests::world::World;
use serde_json::Value;

/// Exit code of docs/operations.md.
const CONFLICT: i32 = 6;

fn share(node: &Node, path: &Path) -> Value {
    node.cli(&["share", path.to_str().unwrap()]).unwrap().json().unwrap()
}

#[test]
fn names_travel_as_they_are_and_nothing_on_the_disk_is_replaced_unasked() {
    let world = World::start().unwrap();
    let (alice, bob) = world.linked().unwrap();
    let folder = world.path().join("downloads");
    fs::create_dir(&folder).unwrap();
    for name in ["report 100%.txt", "a%41.txt", "notes: ü文 ?a=b&c#d;e+f.txt", "%"] {
        let path = world.path().join(name);
        fs::write(&path, format!("content of {name}")).unwrap();
        let shared = share(&alice, &path);
        assert_eq!(shared["name"], name);
        let id = shared["id"].as_str().unwrap();
        let into = folder.to_str().unwrap();
        let fetched = bob.cli(&["fetch", &alice.id, id, "--out", into]).unwrap().json().unwrap();
        assert_eq!((&fetched["name"], &fetched["verified"]), (&name.into(), &true.into()));
        assert_eq!(fs::read_to_string(folder.join(name)).unwrap(), format!("content of {name}"));
    }

    // The peer chooses the name; what is mine stays mine, and what a link points to as well.
    let (mine, victim) = (folder.join("mine.txt"), world.path().join("victim"));
    fs::write(&mine, "mine").unwrap();
    fs::write(&victim, "mine too").unwrap();
    symlink(&victim, folder.join("mine.txt.part")).unwrap();
    symlink(&victim, folder.join("link.txt")).unwrap();
    let theirs = world.path().join("mine.txt");
    fs::write(&theirs, "theirs").unwrap();
    let id = share(&alice, &theirs)["id"].as_str().unwrap().to_owned();
    for out in [folder.clone(), mine.clone(), folder.join("link.txt")] {
        let answer = bob.cli(&["fetch", &alice.id, &id, "--out", out.to_str().unwrap()]).unwrap();
        assert_eq!(answer.code, CONFLICT, "{answer:?}");
        assert!(answer.stderr.contains("file.exists") && answer.stderr.contains("--force"), "{answer:?}");
    }
    assert_eq!(fs::read_to_string(&mine).unwrap(), "mine");
    for out in [folder.clone(), folder.join("link.txt")] {
        bob.cli(&["fetch", &alice.id, &id, "--force", "--out", out.to_str().unwrap()]).unwrap().ok().unwrap();
    }
    assert_eq!(fs::read_to_string(&mine).unwrap(), "theirs");
    assert_eq!(fs::read_to_string(folder.join("link.txt")).unwrap(), "theirs");
    assert_eq!(fs::read_to_string(&victim).unwrap(), "mine too");
    let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with(".openred-")), "{left:?}");
}

#[test]
fn a_copy_that_the_disk_spoiled_is_fetched_anew_by_the_same_command() {
    let world = World::start().unwrap();
    let (alice, bob) = world.linked().unwrap();
    let content: Vec<u8> = (0..2_500_000_u32).flat_map(u32::to_le_bytes).collect();
    let path = world.path().join("file");
    fs::write(&path, &content).unwrap();
    let id = share(&alice, &path)["id"].as_str().unwrap().to_owned();
    bob.cli(&["fetch", &alice.id, &id]).unwrap().ok().unwrap();
    let data = bob.home.join("state/blobs/files").join(format!("{id}.data"));
    fs::OpenOptions::new().append(true).open(&data).unwrap().write_all(&[7; 4096]).unwrap();
    let out = world.path().join("out");
    let fetch = ["fetch", &alice.id, &id, "--out", out.to_str().unwrap()];
    let fetched = bob.cli(&fetch).unwrap().json().unwrap();
    assert_eq!(fetched["verified"], true, "{fetched}");
    assert!(fetched["received"].as_u64() > Some(0), "not from the spoiled copy: {fetched}");
    assert!(fs::read(&out).unwrap() == content);
    assert_eq!(fs::metadata(&data).unwrap().len(), content.len() as u64);
}
