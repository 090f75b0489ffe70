//! A foreign program takes more than it may of each resource, under each way that this machine has of holding it: the kernel's groups where
//! the supervisor may make some, and resource limits and the supervisor's looks anywhere. As root each test runs for both forms of the cage.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

#[path = "cage/stage.rs"]
mod stage;

use stage::{Form, ORDINARY, forms, is_root};

/// A uid that no other process has: tasks are counted over a uid.
fn own_uid() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    100_000 + std::process::id() % 4096 * 64 + NEXT.fetch_add(1, Ordering::Relaxed)
}

/// What came of a program that tried `act`, held as `how` says.
fn held(form: Form, how: &str, act: &str) -> Value {
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    for program in [env!("CARGO_BIN_EXE_openred-cage-foreign"), env!("CARGO_BIN_EXE_openred-launch")] {
        assert!(Command::new("cp").arg(program).arg(folder.path()).status().unwrap().success());
    }
    let state = folder.path().join("state");
    fs::create_dir(&state).unwrap();
    let own = own_uid();
    let mut command = Command::new(folder.path().join("openred-cage-foreign"));
    command.current_dir("/").stdin(Stdio::null()).stderr(Stdio::null());
    if is_root() {
        let owner = if form == Form::Root { own } else { ORDINARY };
        chown(&state, Some(owner), Some(owner)).unwrap();
        if form == Form::Ordinary {
            command.uid(ORDINARY).gid(ORDINARY);
        }
    }
    let uid = if form == Form::Root { own.to_string() } else { "none".to_owned() };
    let output = command.args(["launch", how, &uid]).arg(&state).args(["self", "foreign", act]).arg(&state).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{form:?} {how} {act}: {output:?}");
    let line: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(line["limits"]["ok"], true, "{form:?} {how} {act}: {line}");
    line
}

/// The way that holds each resource: memory, cpu, tasks, descriptors.
fn ways(line: &Value) -> Vec<String> {
    serde_json::from_value(line["ways"].clone()).unwrap()
}

#[test]
fn iso_more_memory_than_is_allowed_ends_a_program_by_name() {
    for form in forms() {
        for how in ["held", "watched"] {
            let line = held(*form, how, "take-memory");
            assert_eq!(line["exit"], "SIGKILL", "{form:?} {how}: {line}");
            let by = if ways(&line)[0].starts_with("cgroup") { "killed_for" } else { "broken" };
            assert_eq!(line[by], "memory", "{form:?} {how}: {line}");
        }
    }
}

#[test]
fn iso_more_processor_than_is_allowed_is_held_back_or_ends_a_program() {
    for form in forms() {
        for how in ["held", "watched"] {
            let line = held(*form, how, "take-cpu");
            let (by, what) = if ways(&line)[1].starts_with("cgroup") {
                ("throttled", json!(true))
            } else {
                ("broken", json!("cpu"))
            };
            assert_eq!((&line["exit"], &line[by]), (&"SIGKILL".into(), &what), "{form:?} {how}: {line}");
        }
    }
}

#[test]
fn iso_more_tasks_and_descriptors_than_are_allowed_are_refused() {
    for form in forms() {
        for how in ["held", "watched"] {
            let line = held(*form, how, "take-tasks");
            assert_eq!(line["exit"], "exit code 111", "EAGAIN: {form:?} {how}: {line}");
            if ways(&line)[2].starts_with("cgroup") {
                assert!(line["tasks_refused"].as_u64() > Some(0), "{line}");
            }
            let line = held(*form, how, "take-descriptors");
            assert_eq!((&line["exit"], ways(&line)[3].as_str()), (&"exit code 124".into(), "rlimit"), "EMFILE: {line}");
        }
    }
}

/// The control: within its limits it is neither killed nor held back. And each way is what it is said to be.
#[test]
fn a_program_within_its_limits_is_left_alone() {
    for form in forms() {
        for how in ["held", "watched"] {
            let line = held(*form, how, "thread");
            assert_eq!(line["exit"], "exit code 0", "{form:?} {how}: {line}");
            assert!(line["broken"].is_null() && line["killed_for"].is_null(), "{line}");
            let own_groups = ways(&line)[..3].iter().all(|way| way.starts_with("cgroup"));
            // Every machine of ours gives root some kind of group; an ordinary user has one where his subtree was delegated.
            let may = how == "held" && *form == Form::Root && cgroups_are_writable();
            assert!(!may || own_groups, "{form:?} {how}: {line}");
            assert!(how == "held" || !own_groups);
        }
    }
}

/// Whether this machine shows root all three controllers, in one of the two forms, and lets it make groups.
fn cgroups_are_writable() -> bool {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let shown = |controller: &str| {
        mounts.lines().any(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            words[2] == "cgroup" && words[3].starts_with("rw") && words[3].split(',').any(|one| one == controller)
        })
    };
    ["memory", "cpu", "pids"].into_iter().all(shown)
}
