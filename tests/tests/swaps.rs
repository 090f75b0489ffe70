//! Modules swapped in a real node, with the real programs, while they are called: no call fails and no write is lost, and whatever goes wrong on
//! the way leaves one version that works, with its rows.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use openred_tests::harness::{Answer, Node, binaries, lay_out, refusal, signal_pid, wait_for};
use openred_tests::hostile::call;
use openred_tests::load::Load;
use openred_tests::swap_desk::{Desk, MODULE, version};
use openred_tests::world::{World, status};
use serde_json::Value;

/// As the supervisor names its processes.
const ACTIVE: &str = "module swapped";
const NEXT: &str = "module swapped (next)";

struct Place {
    node: Node,
    desk: Desk,
    _world: World,
}

impl Place {
    /// A node with the first version, installed and called once.
    fn new() -> Self {
        let world = World::without_directory().unwrap();
        let node = world.alone("alice", "").unwrap();
        let desk = Desk::new(&world.path().join("desk")).unwrap();
        let first = desk.package(&version(0, 0), "", "").unwrap();
        let place = Self { node, desk, _world: world };
        place.ok(&["install", text(&first), "--publisher", &place.desk.publisher, "--approve"]);
        place.counts(1);
        place
    }

    fn module(&self, words: &[&str]) -> Answer {
        self.node.cli(&[&["module"], words].concat()).unwrap()
    }

    fn ok(&self, words: &[&str]) -> Value {
        self.module(words).json().unwrap()
    }

    fn package(&self, version: &str, act: &str) -> String {
        text(&self.desk.package(version, act, "").unwrap()).to_owned()
    }

    /// Swaps to a version that does so; how that went.
    fn swap(&self, version: &str, act: &str) -> Answer {
        self.module(&["swap", MODULE, &self.package(version, act)])
    }

    fn post(&self, path: &str) -> Result<Value> {
        self.node.cli(&["module", "call", MODULE, "POST", path])?.json()
    }

    fn shown(&self) -> Result<Value> {
        self.node.cli(&["module", "call", MODULE, "GET", "/shown"])?.json()
    }

    /// Adds one until that answers; what the count is then.
    fn counts(&self, count: u64) {
        wait_for(&format!("a count of {count}"), || {
            let counted = self.post("/add")?["count"].as_u64();
            ensure!(counted >= Some(count), "{counted:?}");
            Ok(Some(()))
        })
        .unwrap();
    }

    fn generation(&self) -> Result<Value> {
        let shown = self.node.cli(&["module", "generations", MODULE, "--json"])?.json()?;
        Ok(shown["modules"][0].clone())
    }

    /// Waits until this version answers, with at least this count, and the files say the same.
    fn runs(&self, version: &str, count: u64) -> Value {
        wait_for(&format!("{version} with {count}"), || {
            let shown = self.shown()?;
            ensure!(shown["version"] == version && shown["count"].as_u64() >= Some(count), "{shown}");
            let installed = self.node.cli(&["module", "show", MODULE, "--json"])?.json()?;
            ensure!(installed["version"] == version, "{installed}");
            Ok(Some(shown))
        })
        .unwrap()
    }

    fn left_alone(&self) {
        wait_for("those that were replaced", || {
            let leaving = self.generation()?["leaving"].as_array().map_or(0, Vec::len);
            Ok((leaving == 0).then_some(()))
        })
        .unwrap();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn refused(answer: &Answer, code: &str, words: &[&str]) {
    assert_eq!(refusal(answer).1, code, "{}{}", answer.stdout, answer.stderr);
    for word in words {
        assert!(answer.stderr.contains(word), "{word}: {}", answer.stderr);
    }
}

#[test]
fn no_call_fails_in_twenty_swaps_and_each_write_is_made_once() {
    let place = Place::new();
    let load = Load::start(&place.node.home, MODULE, "/add", 8, None).unwrap();
    for number in 1..=20 {
        let before = load.ended();
        // Every other one is to the same version: its program as it is now.
        let to = version(number / 10, number % 10);
        match number % 2 {
            0 => place.swap(&to, if number % 4 == 0 { "migrates" } else { "" }).ok().unwrap(),
            _ => place.module(&["swap", MODULE]).ok().unwrap(),
        };
        // Calls went on in between.
        wait_for("calls", || Ok((load.ended() > before + 20).then_some(()))).unwrap();
    }
    let outcome = load.stop().unwrap();
    assert_eq!(outcome.failed, Vec::<String>::new(), "of {}", outcome.took.len());
    let shown = place.shown().unwrap();
    assert_eq!(shown["count"].as_u64().unwrap(), 1 + outcome.took.len() as u64, "{shown}");
    assert_eq!(shown["migrated"], version(1, 8), "{shown}");
    let generation = place.generation().unwrap();
    assert_eq!((&generation["epoch"], &generation["version"]), (&Value::from(21), &Value::from(version(2, 0))));
    assert!(generation["probation_until"].as_u64().unwrap() > 0, "{generation}");
    place.left_alone();
    let folder = place.node.home.join("modules").join(MODULE);
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let versions: BTreeSet<String> = names.filter(|name| name.contains('+')).collect();
    assert_eq!(versions, BTreeSet::from([version(0, 0), version(2, 0)]), "only those that may be needed are kept");
}

#[test]
fn what_goes_wrong_before_the_moment_leaves_the_version_before_with_its_rows() {
    let place = Place::new();
    let pid = place.node.child_pid(ACTIVE).unwrap();
    let first = version(0, 0);
    let fails = |number, act: &str, why: &str| {
        refused(&place.swap(&version(1, number), act), "module.not-swapped", &[why]);
        place.runs(&first, 1);
        assert_eq!(place.node.child_pid(ACTIVE).unwrap(), pid, "the same process goes on");
    };
    fails(0, "half-migrates", "half-way");
    fails(1, "migrate-ends", "did not migrate");
    fails(2, "start-fails", "unwilling");
    // It lies about its version.
    let liar = place.desk.package_of(&version(1, 3), &version(1, 4), "", "").unwrap();
    let answer = place.module(&["swap", MODULE, text(&liar)]);
    refused(&answer, "module.not-swapped", &["it says that it is", &version(1, 3), &version(1, 4)]);
    // It asks for more: named, and not started.
    let more = place.desk.package(&version(1, 5), "", "peer.send = { reason = \"curiosity\" }\n").unwrap();
    let answer = place.module(&["swap", MODULE, text(&more)]);
    refused(&answer, "package.waiting", &["asks for more than 1.0.0", "peer.send", "module approve swapped"]);
    let answer = place.module(&["swap", MODULE, "--to", &version(1, 5)]);
    refused(&answer, "package.waiting", &["peer.send"]);
    place.counts(2);
    assert_eq!(place.node.child_pid(ACTIVE).unwrap(), pid);
    assert_eq!(place.generation().unwrap()["probation_until"], 0);
    refused(&place.module(&["rollback", MODULE]), "module.not-swapped", &["none to go back to"]);
    refused(&place.module(&["swap", MODULE, "--to", "9.9.9"]), "package.version", &["9.9.9"]);
    // Approved, it takes its place.
    let seen = place.module(&["show", MODULE]).json().unwrap()["shown"].as_str().unwrap().to_owned();
    place.ok(&["approve", MODULE, "--shown", &seen]);
    place.runs(&version(1, 5), 2);
    place.counts(3);
}

#[test]
fn a_rollback_goes_to_the_version_before_with_what_was_written_or_the_rows_of_before() {
    let place = Place::new();
    place.swap(&version(0, 1), "").ok().unwrap();
    place.counts(2);
    place.ok(&["rollback", MODULE]);
    let shown = place.runs(&version(0, 0), 2);
    assert_eq!(shown["count"], 2, "both work on the same rows");
    // Where rows were migrated the old ones return.
    place.swap(&version(0, 2), "migrates").ok().unwrap();
    place.counts(3);
    assert_eq!(place.shown().unwrap()["migrated"], version(0, 0));
    place.ok(&["swap", MODULE, "--to", &version(0, 0)]);
    let shown = place.runs(&version(0, 0), 2);
    assert_eq!((&shown["count"], &shown["migrated"]), (&Value::from(2), &Value::Null), "{shown}");
    assert_eq!(place.generation().unwrap()["set_aside"], true);
    // And where they were not, if the operator asks.
    place.swap(&version(0, 3), "").ok().unwrap();
    place.counts(3);
    place.ok(&["rollback", MODULE, "--snapshot"]);
    assert_eq!(place.runs(&version(0, 0), 2)["count"], 2);
}

#[test]
fn one_that_ends_in_its_probation_is_rolled_back_and_named() {
    let place = Place::new();
    place.swap(&version(0, 1), "").ok().unwrap();
    place.counts(2);
    assert_ne!(place.module(&["call", MODULE, "POST", "/end"]).code, 0);
    place.runs(&version(0, 0), 2);
    let generation = place.generation().unwrap();
    assert!(generation["outcome"].as_str().unwrap().contains("rolled back in its probation"), "{generation}");
    assert_eq!((&generation["probation_until"], &generation["epoch"]), (&Value::from(0), &Value::from(3)));
    // One that is killed at once is no other case; and the same version may be tried again.
    place.swap(&version(0, 1), "").ok().unwrap();
    signal_pid(place.node.child_pid(ACTIVE).unwrap(), Signal::SIGKILL).unwrap();
    place.runs(&version(0, 0), 2);
    place.counts(3);
}

#[test]
fn the_late_write_of_one_that_was_replaced_is_refused_and_one_that_never_drains_is_ended() {
    let place = Place::new();
    let call = |path: &'static str| Load::start(&place.node.home, MODULE, path, 1, None).unwrap();
    let (late, hangs) = (call("/late"), call("/hang"));
    wait_for("both calls", || Ok((place.shown()?["waiting"] == 2).then_some(()))).unwrap();
    place.counts(2);
    let old = place.node.child_pid(ACTIVE).unwrap();
    place.swap(&version(0, 1), "").ok().unwrap();
    place.counts(3);
    assert_ne!(place.node.child_pid(ACTIVE).unwrap(), old);
    assert!(Path::new(&format!("/proc/{old}")).exists(), "it has calls to end");
    place.post("/go").unwrap();
    wait_for("the late call's end", || Ok((late.ended() > 0).then_some(()))).unwrap();
    let refused = late.stop().unwrap();
    assert!(!refused.failed.is_empty(), "the write of the old version was not made");
    place.left_alone();
    assert!(!Path::new(&format!("/proc/{old}")).exists(), "its time was over");
    wait_for("the end of the call that hung", || Ok((hangs.ended() > 0).then_some(()))).unwrap();
    drop(hangs);
    place.runs(&version(0, 1), 3);
}

/// What its manifest says beside its rows where it stands before every call of `messaging`.
const GATE: &str = "\n[[hook]]\nid = \"gate\"\npoint = \"operator\"\nclass = \"authz\"\nreason = \"it watches\"\n\
    timeout_millis = 100\nmatch = { modules = [\"messaging\"] }\n";

#[test]
fn calls_that_pass_a_hook_wait_while_its_module_is_swapped_and_do_not_fail() {
    let place = Place::new();
    let package = |patch, act: &str| text(&place.desk.package(&version(0, patch), act, GATE).unwrap()).to_owned();
    place.ok(&["install", &package(1, ""), "--approve"]);
    place.runs(&version(0, 1), 1);
    let mut swap = swapping(&place, &package(2, "start-slow"));
    let mut passed = 0;
    let ended = loop {
        let (status, body) = call(&place.node.home, "messaging", "/inbox").unwrap();
        assert_eq!(status, 200, "after {passed}: {body}");
        passed += 1;
        if let Some(ended) = swap.try_wait().unwrap() {
            break ended;
        }
    };
    assert!(ended.success());
    place.runs(&version(0, 2), 1);
    let hooks = place.node.cli(&["hooks"]).unwrap().json().unwrap();
    let points = hooks["points"].as_array().unwrap().iter();
    let gates: Vec<&Value> =
        points.flat_map(|point| point["hooks"].as_array().unwrap()).filter(|hook| hook["module"] == MODULE).collect();
    assert!(gates.len() == 1 && gates[0]["failed"] == 0, "{gates:?}");
    assert!(gates[0]["calls"].as_u64().unwrap() >= passed, "{gates:?}");
}

#[test]
fn what_a_version_was_killed_for_stands_although_the_swap_was_taken_back() {
    let place = Place::new();
    let code = format!("module.{MODULE}.filter");
    let alarm = || {
        let status = status(&place.node).unwrap();
        let conditions = status["supervisor"]["conditions"].as_array().unwrap().clone();
        conditions.into_iter().find(|condition| condition["code"] == code.as_str())
    };
    refused(&place.swap(&version(0, 1), "migrate-forks"), "module.not-swapped", &[]);
    // The files say so, too: by now the supervisor has taken it back.
    place.runs(&version(0, 0), 1);
    let told = alarm().unwrap();
    assert!(told["detail"].as_str().unwrap().contains("outside its filter"), "{told}");
    place.ok(&["release", MODULE]);
    assert_eq!(alarm(), None);
}

/// Four versions that do not come to their end are on their way out: the next swap waits.
fn crowd(place: &Place) -> Vec<Load> {
    let hang = |number| {
        let hangs = Load::start(&place.node.home, MODULE, "/hang", 1, None).unwrap();
        wait_for("the call", || Ok((place.shown()?["waiting"] == 1).then_some(()))).unwrap();
        place.swap(&version(0, number), "").ok().unwrap();
        hangs
    };
    (1..=4).map(hang).collect()
}

#[test]
fn who_waits_for_a_swap_hears_what_became_of_it() {
    let place = Place::new();
    let crowd = crowd(&place);
    // To the same version: there is nothing left of that wish when its module is rolled back.
    let waits = reaching(&place, "waiting", swap_to(&place, &[]));
    signal_pid(place.node.child_pid(ACTIVE).unwrap(), Signal::SIGKILL).unwrap();
    let told = waits.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&told.stderr);
    assert!(!told.status.success() && said.contains("rolled back in its probation"), "{said}");
    place.runs(&version(0, 0), 1);
    drop(crowd);
    place.left_alone();
    // The operator takes the module away in the middle of one.
    let swap = at_step(&place, &version(1, 0), "migrate-hangs", "migrating");
    place.ok(&["disable", MODULE]);
    let told = swap.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&told.stderr);
    assert!(!told.status.success() && said.contains("ended meanwhile"), "{said}");
}

#[test]
fn a_version_that_waits_is_tried_although_the_one_before_it_was_rolled_back() {
    let place = Place::new();
    let crowd = crowd(&place);
    let waits = at_step(&place, &version(0, 5), "", "waiting");
    signal_pid(place.node.child_pid(ACTIVE).unwrap(), Signal::SIGKILL).unwrap();
    // No call waits for those that leave: the version before answers at once, and they are there until their time is over.
    place.counts(2);
    let told = waits.wait_with_output().unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    place.runs(&version(0, 5), 2);
    drop(crowd);
    place.left_alone();
}

/// A swap in the background.
fn swapping(place: &Place, package: &str) -> Child {
    swap_to(place, &[package])
}

fn swap_to(place: &Place, package: &[&str]) -> Child {
    let mut command = Command::new(binaries().unwrap().join("openred"));
    command.args(["--home", text(&place.node.home), "module", "swap", MODULE]).args(package);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The same, at this step.
fn at_step(place: &Place, version: &str, act: &str, step: &str) -> Child {
    reaching(place, step, swapping(place, &place.package(version, act)))
}

fn reaching(place: &Place, step: &str, swap: Child) -> Child {
    wait_for(step, || Ok((place.generation()?["doing"] == step).then_some(()))).unwrap();
    swap
}

#[test]
fn a_kill_at_a_step_of_a_swap_ends_with_one_version_and_its_rows() {
    let mut place = Place::new();
    let noded = |place: &Place| place.node.child_pid("noded").unwrap();
    // In its migration: the new process, the active one, noded.
    let mut swap = at_step(&place, &version(1, 0), "migrate-hangs", "migrating");
    signal_pid(place.node.child_pid(NEXT).unwrap(), Signal::SIGKILL).unwrap();
    assert!(!swap.wait().unwrap().success());
    place.runs(&version(0, 0), 1);
    let mut swap = at_step(&place, &version(1, 1), "migrate-hangs", "migrating");
    signal_pid(place.node.child_pid(ACTIVE).unwrap(), Signal::SIGKILL).unwrap();
    assert!(!swap.wait().unwrap().success());
    place.runs(&version(0, 0), 1);
    let mut swap = at_step(&place, &version(1, 2), "migrate-hangs", "migrating");
    let before = noded(&place);
    signal_pid(before, Signal::SIGKILL).unwrap();
    assert!(!swap.wait().unwrap().success());
    // The next one tries again what was cut short; that is taken back.
    wait_for("the next noded", || Ok(place.node.child_pid("noded").is_ok_and(|pid| pid != before).then_some(())))
        .unwrap();
    wait_for("the swap once more", || Ok((place.generation()?["doing"] == "migrating").then_some(()))).unwrap();
    signal_pid(place.node.child_pid(NEXT).unwrap(), Signal::SIGKILL).unwrap();
    place.runs(&version(0, 0), 1);
    place.counts(2);
    // Behind the moment of the swap, before it has begun: the new one is active, and noded is killed.
    let mut swap = at_step(&place, &version(1, 3), "start-hangs", "activating");
    signal_pid(noded(&place), Signal::SIGKILL).unwrap();
    assert!(!swap.wait().unwrap().success());
    place.runs(&version(1, 3), 2);
    place.counts(3);
    place.left_alone();
    place.ok(&["rollback", MODULE]);
    place.runs(&version(0, 0), 3);
    // The same, and everything is: its last moments may see the new one end first, and the one before it active again.
    let mut swap = at_step(&place, &version(1, 4), "start-hangs", "activating");
    place.node.daemon().unwrap().signal(Signal::SIGKILL).unwrap();
    wait_for("its end", || Ok(place.node.daemon()?.ended()?.map(drop))).unwrap();
    assert!(!swap.wait().unwrap().success());
    let _ = place.node.down();
    place.node.up_without_answers().unwrap();
    wait_for("one of the two", || {
        let installed = place.node.cli(&["module", "show", MODULE])?.json()?;
        let shown = place.shown()?;
        ensure!(shown["version"] == installed["version"] && shown["count"] == 3, "{shown}");
        Ok(Some(()))
    })
    .unwrap();
    place.counts(4);
    place.left_alone();
}

#[test]
fn noded_is_killed_under_calls_and_swaps_and_nothing_acknowledged_is_lost() {
    let place = Place::new();
    for number in 1..=6u32 {
        let counted = place.shown().unwrap()["count"].as_u64().unwrap();
        let noded = place.node.child_pid("noded").unwrap();
        let mut swap = swapping(&place, &place.package(&version(0, number), ""));
        // Behind another number of writes each time: somewhere in the swap.
        let last = (0..number).filter_map(|_| place.post("/add").ok()?["count"].as_u64()).max();
        signal_pid(noded, Signal::SIGKILL).unwrap();
        swap.wait().unwrap();
        wait_for("the next noded", || Ok(place.node.child_pid("noded").is_ok_and(|pid| pid != noded).then_some(())))
            .unwrap();
        let installed = place.ok(&["show", MODULE])["version"].as_str().unwrap().to_owned();
        place.runs(&installed, last.unwrap_or(counted));
    }
    place.left_alone();
}

#[test]
fn a_module_that_comes_with_the_node_is_swapped_kept_and_rolled_back() {
    let world = World::without_directory().unwrap();
    let programs = world.path().join("programs");
    lay_out(&programs, "nothing", Path::new("")).unwrap();
    let mut node = world.alone("alice", "").unwrap();
    node.down().unwrap();
    node.run_from(&programs);
    node.up_without_answers().unwrap();
    let generation = |node: &Node| {
        let shown = node.cli(&["module", "generations", "messaging", "--json"])?.json()?;
        Ok::<Value, anyhow::Error>(shown["modules"][0].clone())
    };
    let answers = |node: &Node| wait_for("messaging", || Ok((node.cli(&["inbox"])?.code == 0).then_some(()))).unwrap();
    answers(&node);
    let pid = node.child_pid("module messaging").unwrap();
    // One that does not run takes nobody's place.
    put(&programs, Path::new("/bin/true"));
    let before = generation(&node).unwrap();
    refused(&node.cli(&["module", "swap", "messaging"]).unwrap(), "module.not-swapped", &[]);
    let after = generation(&node).unwrap();
    assert_eq!((&after["generation"], &after["epoch"]), (&before["generation"], &before["epoch"]), "{after}");
    assert_eq!(node.child_pid("module messaging").unwrap(), pid, "the one before it goes on");
    put(&programs, &binaries().unwrap().join("openred-messaging"));
    node.cli(&["module", "swap", "messaging"]).unwrap().ok().unwrap();
    answers(&node);
    // What lies there now could not be started: only the kept one can.
    put(&programs, Path::new("/bin/true"));
    signal_pid(node.child_pid("module messaging").unwrap(), Signal::SIGKILL).unwrap();
    wait_for("the rollback", || {
        let shown = generation(&node)?;
        let is_back = shown["outcome"].as_str().is_some_and(|outcome| outcome.contains("rolled back in its probation"));
        Ok(is_back.then_some(()))
    })
    .unwrap();
    answers(&node);
    // And it stays so when everything is started again.
    node.down().unwrap();
    node.up_without_answers().unwrap();
    answers(&node);
}

/// Puts another program in the place of the module's, as a package does: by a new file of that name.
fn put(programs: &Path, program: &Path) {
    let new: PathBuf = programs.join("new");
    // By a process of its own, as in the harness: nobody else's fork holds it open for writing.
    assert!(Command::new("cp").arg(program).arg(&new).status().unwrap().success());
    fs::rename(new, programs.join("openred-messaging")).unwrap();
}
