//! Modules that do wrong, in a real node: the node stays up, the fault has a name, the module's state is kept, and its neighbour goes on answering
//! meanwhile. Each is put in the place of a built-in one.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use openred_tests::harness::{Node, binaries, is_root, lay_out, refusal, signal_pid, wait_for};
use openred_tests::hostile::{PROGRAM, call, plant};
use openred_tests::world::{World, inbox, status};
use serde_json::Value;

/// Where the hostile program stands in for a module, and a route that this has.
const MODULE: &str = "files";
const PROCESS: &str = "module files";
const ROUTE: &str = "/shares";
/// Has modules take a tenth of a processor at most.
const A_TENTH: &str = "[modules]\ncpu_percent = 10\n";

/// A node whose module `files` is the hostile one.
struct Stage {
    node: Node,
    place: PathBuf,
    _world: World,
}

impl Stage {
    fn new(extra: &str) -> Self {
        let world = World::without_directory().unwrap();
        let programs = world.path().join("programs");
        lay_out(&programs, "openred-files", &binaries().unwrap().join(PROGRAM)).unwrap();
        let place = programs.join("openred-files");
        plant(&place, "well").unwrap();
        let mut node = world.init("alice", extra).unwrap();
        node.run_from(&programs);
        Self { node, place, _world: world }
    }

    fn up(&mut self) {
        self.node.up_without_answers().unwrap();
        wait_for("the module", || Ok((self.process()?["state"] == "ready").then_some(()))).unwrap();
    }

    fn process(&self) -> Result<Value> {
        let status = status(&self.node)?;
        let processes = status["supervisor"]["processes"].as_array().cloned().unwrap_or_default();
        Ok(processes.into_iter().find(|process| process["name"] == PROCESS).unwrap_or_default())
    }

    /// Detail of a condition of the node, if it stands.
    fn condition(&self, code: &str) -> Result<Option<String>> {
        let conditions = status(&self.node)?["node"]["conditions"].clone();
        let found =
            conditions.as_array().and_then(|all| all.iter().find(|condition| condition["code"] == code).cloned());
        Ok(found.and_then(|condition| condition["detail"].as_str().map(str::to_owned)))
    }

    fn call(&self) -> Result<(u32, String)> {
        call(&self.node.home, MODULE, ROUTE)
    }

    /// The neighbour answers, and the node's own process is the one that it was.
    fn others_are_well(&self, noded: u32) {
        inbox(&self.node).unwrap();
        assert_eq!(self.node.child_pid("noded").unwrap(), noded);
    }

    /// Replaces the program, and the process that still runs the one before.
    fn becomes(&self, act: &str) {
        plant(&self.place, act).unwrap();
        if let Ok(pid) = self.node.child_pid(PROCESS) {
            // It may end at this moment by itself.
            let _ = signal_pid(pid, Signal::SIGKILL);
            wait_for("its end", || Ok((self.process()?["pid"] != pid).then_some(()))).unwrap();
        }
    }

    /// Has the module behave again, whatever was done to it before; how often it was called in its life.
    fn recovers(&self) -> u64 {
        self.becomes("well");
        wait_for("the module's return", || {
            self.node.cli(&["module", "release", MODULE])?;
            let (status, body) = self.call()?;
            ensure!(status == 200, "{status} {body}");
            Ok(Some(body.parse()?))
        })
        .unwrap()
    }

    /// Calls it until its end is named with `fault`, in the condition of the node.
    fn named(&self, act: &str, fault: &str, noded: u32) {
        self.becomes(act);
        wait_for(&format!("{fault} of {act}"), || {
            // The ends that this test makes count as well; and refused, cut off or too late, the module's answer is not what matters.
            if self.process()?["last_exit"].as_str().is_none_or(|last| !last.contains(fault)) {
                self.node.cli(&["module", "release", MODULE])?;
            }
            let _ = self.call();
            self.others_are_well(noded);
            let mut details = String::new();
            for code in ["module.down", "module.quarantined"] {
                details += &self.condition(code)?.unwrap_or_default();
            }
            let last = self.process()?["last_exit"].as_str().unwrap_or_default().to_owned();
            ensure!(details.contains(fault) || last.contains(fault), "{details} / {last}");
            Ok(Some(()))
        })
        .unwrap();
    }
}

#[test]
fn iso_whatever_a_module_does_has_a_name_and_harms_nobody_else() {
    let mut stage = Stage::new("");
    stage.up();
    let noded = stage.node.child_pid("noded").unwrap();
    let begun = stage.recovers();
    for (act, fault) in [
        ("at-exit", "exit code 7"),
        ("at-version", "it speaks versions 999 to 999 of the contract, this node 1 to 1"),
        ("at-impostor", "exit code 9"),
        ("at-unproven", "exit code 9"),
        ("on-abort", "SIGABRT"),
        ("on-exit", "exit code 7"),
        ("on-garbage", "a frame that is none, or too long"),
        ("on-long", "a frame that is none, or too long"),
        ("on-twice", "answered a call twice"),
        ("on-other", "answered a call that was never made"),
        ("on-bad-head", "it sent a reply whose head is none"),
        ("on-overrun", "sent more than it was granted"),
        ("on-memory", "module.limit: memory"),
        ("on-fork", "SIGSYS"),
        ("on-dial", "SIGSYS"),
    ] {
        stage.named(act, fault, noded);
        assert!(stage.recovers() > begun, "{act}: its state is kept");
        stage.others_are_well(noded);
    }
}

#[test]
fn a_module_that_hangs_is_ended_by_name_and_its_neighbour_answers_meanwhile() {
    let mut stage = Stage::new("");
    stage.up();
    let noded = stage.node.child_pid("noded").unwrap();
    let begun = stage.recovers();
    stage.named("on-hang", "does not answer", noded);
    assert!(stage.recovers() > begun);
}

#[test]
fn iso_what_a_module_may_not_have_is_refused_to_it() {
    let mut stage = Stage::new("");
    stage.up();
    let answer = |act| {
        stage.becomes(act);
        let said = wait_for("an answer", || {
            stage.node.cli(&["module", "release", MODULE])?;
            let (status, body) = stage.call()?;
            ensure!(status == 200, "{status} {body}");
            Ok(Some(body))
        });
        stage.others_are_well(stage.node.child_pid("noded").unwrap());
        said.unwrap()
    };
    assert_eq!(answer("on-open"), "", "no file of the machine is read or written");
    for (act, most) in [("on-tasks", 32), ("on-descriptors", 256)] {
        let said = answer(act);
        let count: u64 = said.split(' ').next().unwrap().parse().unwrap();
        assert!(count < most, "{act}: {said}");
    }
    assert_eq!(answer("on-log"), "flooded");
    let logs = wait_for("the flood's end", || {
        let logs = stage.node.cli(&["module", "logs", MODULE, "-n", "2000"])?.ok()?.stdout;
        // What is too much is counted when the next line comes that may.
        stage.recovers();
        Ok(logs.contains("lines were dropped").then_some(logs))
    });
    let logs = logs.unwrap();
    let lines: Vec<Value> = logs.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.len() <= 2000 && lines.iter().all(|line| !line["text"].as_str().unwrap().contains('\u{1b}')));
}

/// Time that a process had of the processor.
fn cpu(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name may hold anything; behind it utime and stime are the twelfth and the thirteenth, in hundredths.
    let fields = stat.rsplit_once(')').context("stat has a name")?.1.split_whitespace();
    let ticks = fields.skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(10 * ticks))
}

#[test]
fn a_module_that_spins_is_held_back_by_its_group_or_ended_by_name() {
    let mut stage = Stage::new(A_TENTH);
    stage.up();
    let noded = stage.node.child_pid("noded").unwrap();
    let counted = stage.recovers();
    let limits = status(&stage.node).unwrap()["supervisor"]["limits"].to_string();
    if limits.contains("cpu by watch") {
        stage.named("on-cpu", "module.limit: cpu", noded);
    } else {
        assert!(limits.contains("cpu by cgroup"), "{limits}");
        stage.becomes("on-cpu");
        wait_for("an answer", || {
            stage.node.cli(&["module", "release", MODULE])?;
            let said = stage.call()?;
            ensure!(said == (200, "spins: true".to_owned()), "{said:?}");
            Ok(Some(()))
        })
        .unwrap();
        let pid = stage.node.child_pid(PROCESS).unwrap();
        let (begun, before) = (Instant::now(), cpu(pid).unwrap());
        let second = || Ok((cpu(pid)?.saturating_sub(before) >= Duration::from_secs(1)).then_some(()));
        wait_for("a second of the processor", second).unwrap();
        // Ten, but for what it had left of the first; however busy the machine is, no fewer.
        assert!(begun.elapsed() > Duration::from_secs(4), "{:?}", begun.elapsed());
        stage.others_are_well(noded);
        assert_eq!(stage.node.child_pid(PROCESS).unwrap(), pid, "it lives on");
    }
    assert!(stage.recovers() > counted);
}

#[test]
fn one_that_ends_again_and_again_waits_for_the_operator() {
    let mut stage = Stage::new("");
    stage.up();
    let begun = stage.recovers();
    assert_eq!(refusal(&stage.node.cli(&["module", "release", MODULE]).unwrap()), (6, "module.not-quarantined".into()));
    assert_eq!(refusal(&stage.node.cli(&["module", "release", "none"]).unwrap()), (4, "module.unknown".into()));
    assert_eq!(refusal(&stage.node.cli(&["module", "logs", "none"]).unwrap()), (4, "module.unknown".into()));
    stage.becomes("at-exit");
    let quarantined = || -> Result<Option<String>> {
        Ok(stage.condition("module.quarantined")?.filter(|detail| detail.contains("exit code 7")))
    };
    wait_for("the quarantine", quarantined).unwrap();
    assert_eq!(stage.process().unwrap()["state"], "quarantined");
    assert_eq!(stage.call().unwrap().0, 503);
    // Another `noded` does not lift it.
    let noded = stage.node.child_pid("noded").unwrap();
    signal_pid(noded, Signal::SIGKILL).unwrap();
    wait_for("the next noded, and the quarantine with it", || {
        ensure!(stage.node.child_pid("noded")? != noded);
        quarantined()
    })
    .unwrap();
    assert!(stage.recovers() > begun);
    assert_eq!(stage.condition("module.quarantined").unwrap(), None);
}

#[test]
fn a_module_that_nobody_calls_is_ended_and_the_next_call_starts_it() {
    let mut stage = Stage::new("[modules]\nidle_seconds = 1\n");
    stage.node.up_without_answers().unwrap();
    let state = || -> Result<Value> {
        let status = status(&stage.node)?;
        let modules = status["node"]["module_status"].as_array().cloned().unwrap_or_default();
        Ok(modules.into_iter().find(|module| module["id"] == MODULE).unwrap_or_default())
    };
    assert_eq!(state().unwrap()["state"], "asleep", "it is not started with the node");
    for round in 1..=3u64 {
        // Several at once wait for one start; calls go on while it falls asleep.
        let calls: Vec<_> = std::thread::scope(|scope| {
            let calls: Vec<_> = (0..4).map(|_| scope.spawn(|| stage.call().unwrap())).collect();
            calls.into_iter().map(|call| call.join().unwrap()).collect()
        });
        assert!(calls.iter().all(|(status, _)| *status == 200), "{round}: {calls:?}");
        let most = calls.iter().map(|(_, count)| count.parse::<u64>().unwrap()).max();
        assert_eq!(most, Some(4 * round), "its state is kept");
        wait_for("its sleep", || Ok((state()?["state"] == "asleep").then_some(()))).unwrap();
        assert_eq!(
            (state().unwrap()["starts"].as_u64(), stage.process().unwrap()["pid"].as_u64()),
            (Some(round), Some(0))
        );
    }
    assert_eq!(stage.process().unwrap()["restarts"], 0);
    // One that does not drain is ended all the same, and the next call has another.
    plant(&stage.place, "on-drain").unwrap();
    assert_eq!(stage.call().unwrap().1, "13");
    wait_for("its sleep", || Ok((state()?["state"] == "asleep").then_some(()))).unwrap();
    wait_for("its end", || Ok((stage.process()?["pid"] == 0).then_some(()))).unwrap();
    assert_eq!(stage.call().unwrap().1, "14");
}

/// The other way of holding limits: a node on a machine that shows it no groups.
#[test]
fn iso_a_limit_is_held_without_any_group() {
    if !is_root() {
        // Then it is this way in all of these tests.
        return;
    }
    let mut stage = Stage::new(A_TENTH);
    // Started in a mount namespace in which no cgroup is mounted; its other commands as they are.
    let (shadow, program) = (stage.place.with_file_name("shadow"), stage.place.with_file_name("openred"));
    let script = format!(
        "#!/bin/sh\nfor word; do [ \"$word\" != up ] || exec unshare --mount sh -c 'umount -l -R /sys/fs/cgroup; exec \"$@\"' \
         sh {0} \"$@\"; done\nexec {0} \"$@\"\n",
        program.display()
    );
    fs::create_dir(&shadow).unwrap();
    fs::write(shadow.join("openred"), script).unwrap();
    fs::set_permissions(shadow.join("openred"), fs::Permissions::from_mode(0o755)).unwrap();
    stage.node.run_from(&shadow);
    stage.up();
    let limits = status(&stage.node).unwrap()["supervisor"]["limits"].clone();
    assert_eq!(limits, "memory by watch, cpu by watch, tasks by rlimit, descriptors by rlimit");
    let noded = stage.node.child_pid("noded").unwrap();
    let begun = stage.recovers();
    for (act, fault) in [("on-memory", "module.limit: memory"), ("on-cpu", "module.limit: cpu")] {
        stage.named(act, fault, noded);
        assert!(stage.recovers() > begun, "{act}");
    }
    stage.becomes("on-tasks");
    let said = wait_for("an answer", || {
        stage.node.cli(&["module", "release", MODULE])?;
        let (status, body) = stage.call()?;
        ensure!(status == 200, "{status} {body}");
        Ok(Some(body))
    });
    let count: u64 = said.unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!(count < 32);
}
