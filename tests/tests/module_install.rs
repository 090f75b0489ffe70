//! Installing a stranger's module into a real node: signed, reviewed, granted, run in its cage, held to its grants, changed and removed;
//! and everything that is refused, by name.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;
use openred_tests::desk::{self, Desk, VERSION, probe_manifest, refused, text};
use openred_tests::harness::{Node, signal_pid, wait_for};
use openred_tests::world::{World, status};
use serde_json::Value;

/// What most packages here ask for.
const ASKS: &str = "kv.quota = { megabytes = 1, reason = \"what it was told\" }\n";

fn desk(folder: &Path) -> Desk {
    Desk::new(folder).unwrap()
}

/// A signed package of that version.
fn package(desk: &Desk, version: &str, permissions: &str, ending: &str) -> PathBuf {
    desk.pack(&probe_manifest(version, permissions, ""), &desk.probe(version).unwrap(), ending).unwrap()
}

fn module(node: &Node, arguments: &[&str]) -> Value {
    desk::module(node, arguments).unwrap()
}

/// Calls the probe until it answers as wanted.
fn answers(node: &Node, what: &[&str], wanted: &str) {
    desk::answers(node, what, wanted).unwrap();
}

/// How often the trail has it; what came together is one record with a count.
fn events(node: &Node, name: &str) -> u64 {
    let answer = node.cli(&["audit", "export"]).unwrap();
    let records = answer.stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    records.filter(|record| record["event"] == name).map(|record| record["count"].as_u64().unwrap_or(0).max(1)).sum()
}

fn noted(node: &Node, name: &str, count: u64) {
    wait_for(&format!("{count} {name} in the trail"), || Ok((events(node, name) >= count).then_some(()))).unwrap();
}

#[test]
fn a_module_is_installed_granted_used_changed_and_removed_while_the_node_runs() {
    let world = World::without_directory().unwrap();
    let node = world.alone("alice", "").unwrap();
    let noded = node.child_pid("noded").unwrap();
    let author = desk(&world.path().join("desk"));
    let first = package(&author, VERSION, ASKS, "");
    refused(&node, &["install", &text(&first)], "package.publisher");
    module(&node, &["trust", &author.publisher]);
    let shown = module(&node, &["install", &text(&first)]);
    assert_eq!(shown["waiting"], VERSION, "{shown}");
    assert_eq!(shown["permissions"][0]["asked"], "kv.quota 1 MB");
    assert_eq!(shown["permissions"][0]["granted"], Value::Null);
    refused(&node, &["enable", "probe"], "package.waiting");
    assert!(node.cli(&["module", "call", "probe", "GET", "/kept"]).unwrap().stderr.contains("no-such-module"));
    // Only what was looked at, and nothing that has come since.
    refused(&node, &["approve", "probe"], "package.unseen");
    refused(&node, &["approve", "probe", "--shown", "0.9.0:00"], "package.changed");
    let shown = desk::approve(&node, &[]).unwrap();
    assert_eq!((&shown["version"], &shown["enabled"]), (&Value::from(VERSION), &Value::from(true)));
    answers(&node, &["GET", "/kept"], "\"bytes\":null");
    // What it may, and no more of it.
    answers(&node, &["POST", "/try/kv", "--data", "hello"], "tried");
    answers(&node, &["GET", "/kept"], "\"bytes\":5");
    let much = "x".repeat(100_000);
    for _ in 0..3 {
        node.cli(&["module", "call", "probe", "POST", "/try/kv", "--data", &much]).unwrap();
    }
    answers(&node, &["POST", "/try/peer"], "not-granted");
    answers(&node, &["POST", "/try/blob", "--data", "x"], "not-granted");
    answers(&node, &["GET", "/undeclared"], "no-such-route");
    wait_for("the counts", || {
        let audit = module(&node, &["audit", "probe"]);
        let line = &audit["modules"][0]["permissions"][0];
        Ok((line["name"] == "kv.quota" && line["used"].as_u64() >= Some(2)).then_some(()))
    })
    .unwrap();
    assert!(status(&node).unwrap()["node"]["modules"].to_string().contains("probe"));
    // Disabled it is gone, enabled it is back, and its rows with it.
    module(&node, &["disable", "probe"]);
    answers(&node, &["GET", "/kept"], "no-such-module");
    module(&node, &["enable", "probe"]);
    answers(&node, &["GET", "/kept"], "\"bytes\":");
    // A newer version that asks for nothing new takes its place; one that asks for more waits.
    let second = package(&author, "1.0.1+openred.probe", ASKS, ".tar");
    let shown = module(&node, &["install", &text(&second)]);
    assert_eq!((&shown["version"], &shown["waiting"]), (&Value::from("1.0.1+openred.probe"), &Value::Null));
    let more = format!("{ASKS}peer.send = {{ reason = \"curiosity\" }}\n");
    let third = package(&author, "1.0.2+openred.probe", &more, "");
    let shown = module(&node, &["install", &text(&third)]);
    assert_eq!(shown["waiting"], "1.0.2+openred.probe", "{shown}");
    answers(&node, &["POST", "/try/peer"], "not-granted");
    desk::approve(&node, &[]).unwrap();
    answers(&node, &["POST", "/try/peer"], "peer-not-linked");
    module(&node, &["approve", "probe", "--only", "kv.quota"]);
    answers(&node, &["POST", "/try/peer"], "not-granted");
    refused(&node, &["install", &text(&second)], "package.older");
    // Removed with its data: a later one of its name begins with nothing.
    module(&node, &["remove", "probe"]);
    answers(&node, &["GET", "/kept"], "no-such-module");
    module(&node, &["install", &text(&first), "--approve"]);
    answers(&node, &["GET", "/kept"], "\"bytes\":null");
    assert_eq!(node.child_pid("noded").unwrap(), noded, "all of that without a restart");
    for (name, count) in [("module.installed", 4), ("module.approved", 4), ("module.removed", 1), ("module.refused", 3)]
    {
        noted(&node, name, count);
    }
}

#[test]
fn a_module_is_installed_into_a_node_that_does_not_run() {
    let world = World::without_directory().unwrap();
    let mut node = world.alone("alice", "").unwrap();
    let author = desk(&world.path().join("desk"));
    node.down().unwrap();
    let package = package(&author, VERSION, ASKS, "");
    module(&node, &["install", &text(&package), "--publisher", &author.publisher, "--approve"]);
    let mode = |name: &str| {
        use std::os::unix::fs::PermissionsExt as _;
        fs::metadata(node.home.join("modules/probe").join(name)).unwrap().permissions().mode() & 0o777
    };
    assert_eq!((mode("grants.toml"), mode("state.toml"), mode("")), (0o600, 0o600, 0o700));
    node.up_without_answers().unwrap();
    answers(&node, &["POST", "/try/kv", "--data", "hello"], "tried");
    noted(&node, "module.installed", 1);
    // A program that was changed in its place is not started.
    node.down().unwrap();
    let program = node.home.join(format!("modules/probe/{VERSION}/probe"));
    let mut bytes = fs::read(&program).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::remove_file(&program).unwrap();
    fs::write(&program, bytes).unwrap();
    node.up_without_answers().unwrap();
    wait_for("the refusal", || {
        let status = status(&node)?["node"]["conditions"].to_string();
        Ok((status.contains("module.down") && status.contains("digest")).then_some(()))
    })
    .unwrap();
    // A manifest that was changed is not believed.
    node.down().unwrap();
    let manifest = node.home.join(format!("modules/probe/{VERSION}/openred.toml"));
    let changed = fs::read_to_string(&manifest).unwrap().replace("megabytes = 1", "megabytes = 9");
    fs::remove_file(&manifest).unwrap();
    fs::write(&manifest, changed).unwrap();
    node.up_degraded().unwrap();
    let named = status(&node).unwrap().to_string();
    assert!(named.contains("module.probe.refused") && named.contains("signature"), "{named}");
    module(&node, &["remove", "probe", "--keep-data"]);
    module(&node, &["install", &text(&package), "--publisher", &author.publisher, "--approve"]);
    answers(&node, &["GET", "/kept"], "\"bytes\":5");
}

#[test]
fn state_of_a_module_that_was_removed_goes_once_and_that_of_the_next_of_its_name_stays() {
    let world = World::without_directory().unwrap();
    let mut node = world.alone("alice", "").unwrap();
    let author = desk(&world.path().join("desk"));
    let package = text(&package(&author, VERSION, ASKS, ""));
    let install = ["install", &package, "--publisher", &author.publisher, "--approve"];
    module(&node, &install);
    answers(&node, &["POST", "/try/kv", "--data", "before"], "tried");
    for is_running in [false, true] {
        if !is_running {
            node.down().unwrap();
        }
        module(&node, &["remove", "probe"]);
        module(&node, &install);
        if !is_running {
            node.up_without_answers().unwrap();
        }
        answers(&node, &["GET", "/kept"], "\"bytes\":null");
        answers(&node, &["POST", "/try/kv", "--data", "hello"], "tried");
        // Whatever is looked at again, by this `noded` or the next.
        module(&node, &["enable", "probe"]);
        answers(&node, &["GET", "/kept"], "\"bytes\":5");
        let noded = node.child_pid("noded").unwrap();
        signal_pid(noded, Signal::SIGKILL).unwrap();
        wait_for("the next noded", || Ok(node.child_pid("noded").ok().filter(|next| *next != noded))).unwrap();
        answers(&node, &["GET", "/kept"], "\"bytes\":5");
        module(&node, &["enable", "probe"]);
        answers(&node, &["GET", "/kept"], "\"bytes\":5");
    }
}

#[test]
fn a_damaged_record_is_named_and_takes_no_other_module_down() {
    let world = World::without_directory().unwrap();
    let node = world.alone("alice", "").unwrap();
    let author = desk(&world.path().join("desk"));
    author.install_probe(&node, &probe_manifest(VERSION, ASKS, "")).unwrap();
    answers(&node, &["POST", "/try/kv", "--data", "hello"], "tried");
    let manifest = probe_manifest(VERSION, ASKS, "").replace("id = \"probe\"", "id = \"other\"");
    let other = author.pack(&manifest, &author.probe(VERSION).unwrap(), "").unwrap();
    module(&node, &["install", &text(&other), "--publisher", &author.publisher]);
    fs::write(node.home.join("modules/other/state.toml"), "no record").unwrap();
    module(&node, &["enable", "probe"]);
    let conditions = || status(&node).unwrap()["supervisor"]["conditions"].to_string();
    assert!(conditions().contains("module.other.refused"), "{}", conditions());
    answers(&node, &["GET", "/kept"], "\"bytes\":5");
    let listed = module(&node, &["list"]).to_string();
    assert!(listed.contains("unreadable") && listed.contains("\"probe\""), "{listed}");
    module(&node, &["remove", "other"]);
    assert!(!conditions().contains("module.other.refused"), "{}", conditions());
    answers(&node, &["GET", "/kept"], "\"bytes\":5");
}

#[test]
fn bad_packages_are_refused_by_name_and_leave_nothing() {
    let world = World::without_directory().unwrap();
    let mut node = world.alone("alice", "[modules]\nceiling = [\"kv.quota=1\"]\n").unwrap();
    let author = desk(&world.path().join("desk"));
    module(&node, &["trust", &author.publisher]);
    let spoilt = |spoil: &dyn Fn(&Path)| {
        let package = package(&author, VERSION, ASKS, "");
        spoil(&package);
        text(&package)
    };
    let edit = |file: PathBuf, from: &str, to: &str| {
        let before = fs::read_to_string(&file).unwrap();
        assert!(before.contains(from));
        fs::write(&file, before.replace(from, to)).unwrap();
    };
    let other = desk(&world.path().join("other"));
    let signature = |package: &Path| package.join("openred.sig");
    let cases: Vec<(String, &str)> = vec![
        (spoilt(&|package| edit(package.join("openred.toml"), "megabytes = 1", "megabytes = 2")), "package.signature"),
        (spoilt(&|package| edit(package.join("openred.toml"), "[permissions]", "[permissons]")), "package.manifest"),
        (spoilt(&|package| edit(signature(package), &author.publisher, &other.publisher)), "package.signature"),
        (spoilt(&|package| fs::write(signature(package), "x = 1").unwrap()), "package.malformed"),
        (spoilt(&|package| fs::remove_file(signature(package)).unwrap()), "package.malformed"),
        (spoilt(&|package| fs::write(package.join("probe"), "another").unwrap()), "package.digest"),
        (spoilt(&|package| fs::remove_file(package.join("probe")).unwrap()), "package.malformed"),
        (text(&package(&other, VERSION, ASKS, "")), "package.publisher"),
        (text(&author.folder.join("nothing")), "local"),
        (spoilt(&|package| fs::write(package.join("openred.toml"), vec![b'#'; 70_000]).unwrap()), "package.malformed"),
    ];
    for (package, code) in &cases {
        refused(&node, &["install", package], code);
    }
    refused(&node, &["install", &text(&author.key)], "package.malformed");
    refused(&node, &["show", "probe"], "package.unknown");
    refused(&node, &["remove", "messaging"], "package.unknown");
    let left: Vec<_> =
        fs::read_dir(node.home.join("modules")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["trusted.keys"], "nothing is left of them");
    // The operator's ceiling holds whatever was granted; and a module that lies about its version is not let in.
    let more = format!("{ASKS}peer.send = {{ reason = \"curiosity\" }}\n");
    let package = package(&author, VERSION, &more, "");
    module(&node, &["install", &text(&package), "--approve"]);
    answers(&node, &["POST", "/try/peer"], "not-granted");
    let liar = probe_manifest("1.0.5+openred.probe", ASKS, "");
    let liar = author.pack(&liar, &author.probe(VERSION).unwrap(), "").unwrap();
    module(&node, &["install", &text(&liar)]);
    wait_for("the lie to be named", || {
        let generation = node.cli(&["module", "generations", "probe"])?.json()?["modules"][0].clone();
        let named = generation["outcome"].to_string().contains("its manifest says 1.0.5");
        let installed = node.cli(&["module", "show", "probe"])?.json()?["version"].clone();
        Ok((named && generation["version"] == VERSION && installed == VERSION).then_some(()))
    })
    .unwrap();
    answers(&node, &["POST", "/try/peer"], "not-granted");
    assert_eq!(node.cli(&["inbox"]).unwrap().code, 0, "the rest goes on");
    // A folder that takes nothing is named, and what is installed stays.
    node.down().unwrap();
    let (folder, aside) = (node.home.join("modules"), node.home.join("aside"));
    fs::rename(&folder, &aside).unwrap();
    fs::write(&folder, "in the way").unwrap();
    let answer = node.cli(&["module", "install", &text(&package)]).unwrap();
    assert!(answer.code != 0 && answer.stderr.contains("modules"), "{}", answer.stderr);
    fs::remove_file(&folder).unwrap();
    fs::rename(&aside, &folder).unwrap();
    assert_eq!(module(&node, &["show", "probe"])["version"], VERSION);
}

#[test]
fn three_ends_put_it_under_quarantine_and_the_operators_word_about_it_lifts_that() {
    let world = World::without_directory().unwrap();
    let mut node = world.alone("alice", "[modules]\ndescriptors = 128\n").unwrap();
    let author = desk(&world.path().join("desk"));
    let package = package(&author, VERSION, ASKS, "");
    module(&node, &["install", &text(&package), "--publisher", &author.publisher, "--approve"]);
    let ends = |node: &Node| {
        for _ in 0..3 {
            answers(node, &["GET", "/kept"], "bytes");
            node.cli(&["module", "call", "probe", "POST", "/end"]).unwrap();
        }
        wait_for("the quarantine", || {
            let named = status(node)?["node"]["conditions"].to_string();
            Ok(named.contains("not started again").then_some(()))
        })
        .unwrap();
    };
    ends(&node);
    // What holds all modules says nothing of this one: it stays where it is, for both processes.
    let place = node.home.join("openred.toml");
    let config = fs::read_to_string(&place).unwrap();
    fs::write(&place, config.replace("descriptors = 128", "descriptors = 64")).unwrap();
    signal_pid(node.daemon().unwrap().pid(), Signal::SIGHUP).unwrap();
    wait_for("the new limit", || Ok(node.daemon()?.output().contains("modules change, noded goes on").then_some(())))
        .unwrap();
    module(&node, &["release", "probe"]);
    answers(&node, &["GET", "/kept"], "bytes");
    ends(&node);
    module(&node, &["enable", "probe"]);
    answers(&node, &["GET", "/kept"], "bytes");
}

#[test]
fn a_program_that_is_missing_is_named_with_the_way_out() {
    let world = World::without_directory().unwrap();
    let node = world.alone("alice", "").unwrap();
    let author = desk(&world.path().join("desk"));
    let package = package(&author, VERSION, ASKS, "");
    module(&node, &["install", &text(&package), "--publisher", &author.publisher, "--approve"]);
    answers(&node, &["GET", "/kept"], "bytes");
    module(&node, &["disable", "probe"]);
    let program = node.home.join("modules/probe").join(VERSION).join("probe");
    let aside = program.with_file_name("aside");
    fs::rename(&program, &aside).unwrap();
    module(&node, &["enable", "probe"]);
    wait_for("its name in a condition", || {
        let said = status(&node)?["node"]["conditions"].to_string();
        let named = said.contains(&text(&program)) && said.contains("openred module remove probe --keep-data");
        anyhow::ensure!(named, "{said}");
        Ok(Some(()))
    })
    .unwrap();
    fs::rename(&aside, &program).unwrap();
    module(&node, &["enable", "probe"]);
    answers(&node, &["GET", "/kept"], "bytes");
}
