//! Files through real processes: names as they are, an operator's own files untouched, a spoiled copy mended; lists, readers and links, over kills
//! too; memory that does not grow with the file.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;

use nix::sys::signal::Signal;
use openred_tests::harness::{Node, refusal, signal_pid, wait_for};
use openred_tests::large::{self, Held};
use openred_tests::world::{World, status};
use serde_json::Value;

/// Exit codes of docs/operations.md.
const DENIED: i32 = 5;
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

fn same(one: &Path, other: &Path) -> bool {
    fs::read(one).unwrap() == fs::read(other).unwrap()
}

fn ids(list: &Value) -> Vec<&str> {
    list["files"].as_array().unwrap().iter().map(|file| file["id"].as_str().unwrap()).collect()
}

#[test]
fn readers_are_let_in_and_taken_out_and_lists_show_it() {
    let world = World::start().unwrap();
    let (alice, bob) = world.linked().unwrap();
    let (open, hidden) = (world.path().join("open.txt"), world.path().join("hidden.txt"));
    fs::write(&open, "for all").unwrap();
    fs::write(&hidden, "for some").unwrap();
    let open = share(&alice, &open)["id"].as_str().unwrap().to_owned();
    let made = alice.cli(&["share", hidden.to_str().unwrap(), "--link"]).unwrap().json().unwrap();
    let hidden = made["id"].as_str().unwrap();
    let listed = || bob.cli(&["files", "list", &alice.id]).unwrap().json().unwrap();
    assert_eq!(ids(&listed()), [&open]);
    assert_eq!(listed()["complete"], true);
    alice.cli(&["files", "allow", hidden, &bob.id]).unwrap().ok().unwrap();
    assert_eq!(ids(&listed()).len(), 2);
    bob.cli(&["fetch", &alice.id, hidden]).unwrap().ok().unwrap();
    let own = alice.cli(&["files", "list"]).unwrap().json().unwrap();
    assert_eq!(own["shares"].as_array().unwrap().len(), 2, "{own}");
    assert_eq!(refusal(&alice.cli(&["files", "deny", &open, &bob.id]).unwrap()), (CONFLICT, "shared-with-all".into()));
    alice.cli(&["files", "deny", &open, "all"]).unwrap().ok().unwrap();
    alice.cli(&["files", "deny", hidden, &bob.id]).unwrap().ok().unwrap();
    assert!(ids(&listed()).is_empty());
    alice.cli(&["files", "stop", hidden]).unwrap().ok().unwrap();
    let links = alice.cli(&["files", "links"]).unwrap().json().unwrap();
    assert!(links["links"].as_array().unwrap().is_empty(), "{links}");
    // It is here: nobody is asked.
    bob.cli(&["fetch", made["link"]["text"].as_str().unwrap()]).unwrap().ok().unwrap();
}

#[test]
fn a_link_lets_in_one_fetch_over_kills_of_either_side() {
    let world = World::start().unwrap();
    let (alice, bob) = world.linked().unwrap();
    let path = world.path().join("film");
    large::sparse(&path, 48).unwrap();
    let made = ["share", path.to_str().unwrap(), "--link", "--expires", "24h", "--count", "1"];
    let made = alice.cli(&made).unwrap().json().unwrap();
    let (id, link) = (made["id"].as_str().unwrap(), made["link"]["text"].as_str().unwrap());
    assert!(link.starts_with(&format!("openred-file:{}/{id}/", alice.id)), "{link}");
    assert!(bob.cli(&["fetch", &alice.id, id]).unwrap().code != 0, "not by its id");
    let wrong = format!("{}{}", &link[..link.len() - 64], "0".repeat(64));
    assert_eq!(refusal(&bob.cli(&["fetch", &wrong]).unwrap()), (DENIED, "link-refused".into()));
    let out = world.path().join("out");
    let fetch = ["fetch", link, "--force", "--out", out.to_str().unwrap()];
    let used = || alice.cli(&["files", "links"]).unwrap().json().unwrap()["links"][0]["used"].clone();
    // In the middle, each time: the module here, the module there, the node there.
    for (node, name) in [(&bob, "module files"), (&alice, "module files"), (&alice, "noded")] {
        let victim = node.child_pid(name).unwrap();
        let (mut child, mut lines) = bob.stream(&fetch).unwrap();
        lines.find(|line| line.contains("\"openred.progress/1\"")).unwrap();
        signal_pid(victim, Signal::SIGKILL).unwrap();
        drop(lines);
        let _ = child.wait().unwrap();
        wait_for("the killed process", || {
            let pid = node.child_pid(name)?;
            Ok((pid != victim && status(node)?["supervisor"]["state"] == "ready").then_some(()))
        })
        .unwrap();
        // What was in flight may have gone on where it stopped: then the file is here, and asks nobody any more.
        let counted = wait_for("the list of links", || Ok(alice.cli(&["files", "links"])?.json().ok())).unwrap();
        assert_eq!(counted["links"][0]["used"], 1, "{counted}");
    }
    wait_for("the file", || {
        let fetched = bob.cli(&fetch)?.json()?;
        Ok((fetched["verified"] == true).then_some(()))
    })
    .unwrap();
    assert!(same(&path, &out));
    assert_eq!(used(), 1);
    // A fetch of its own is one too many, in the words for any link that is none.
    bob.cli(&["module", "call", "files", "POST", &format!("/remove/{id}")]).unwrap().ok().unwrap();
    assert_eq!(refusal(&bob.cli(&["fetch", link]).unwrap()), (DENIED, "link-refused".into()));
    let more = alice.cli(&["files", "link", id, "--count", "5"]).unwrap().json().unwrap();
    let name = more["link"]["link"].as_str().unwrap();
    alice.cli(&["files", "revoke", name]).unwrap().ok().unwrap();
    let revoked = bob.cli(&["fetch", more["text"].as_str().unwrap()]).unwrap();
    assert_eq!(refusal(&revoked), (DENIED, "link-refused".into()));
}

#[test]
fn a_large_file_passes_in_memory_that_does_not_grow_with_it() {
    let world = World::start().unwrap();
    let (alice, bob) = world.linked().unwrap();
    let (path, out) = (world.path().join("large"), world.path().join("out"));
    large::sparse(&path, 256).unwrap();
    let mut held = Held::of(&[&alice, &bob]).unwrap();
    let shared = held.run(&alice, &["share", path.to_str().unwrap()]).unwrap();
    let fetch = ["fetch", &alice.id, shared["id"].as_str().unwrap(), "--out", out.to_str().unwrap()];
    let fetched = held.run(&bob, &fetch).unwrap();
    assert_eq!(fetched["verified"], true, "{fetched}");
    assert_eq!(fs::metadata(&out).unwrap().len(), 256 << 20);
    held.within_bound().unwrap();
}

#[test]
fn a_swap_of_the_module_that_serves_costs_a_running_fetch_nothing() {
    let world = World::start().unwrap();
    let (alice, bob) = world.linked().unwrap();
    let path = world.path().join("film");
    large::sparse(&path, 128).unwrap();
    let id = share(&alice, &path)["id"].as_str().unwrap().to_owned();
    let (mut child, mut lines) = bob.stream(&["fetch", &alice.id, &id]).unwrap();
    lines.find(|line| line.contains("\"openred.progress/1\"")).unwrap();
    // The generation before goes on with what it serves.
    alice.cli(&["module", "swap", "files"]).unwrap().ok().unwrap();
    let fetched: Value = serde_json::from_str(&lines.last().unwrap()).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!((&fetched["verified"], &fetched["received"]), (&true.into(), &(128_u64 << 20).into()), "{fetched}");
}
