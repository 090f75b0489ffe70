//! The shipped filters with their shipped action, call by call: each number, each argument rule, each other entry into the kernel
//! is tried in a process of its own that carries the filter, and how it ended is compared with the list in `seccomp/*.json`.
//! The control is the same program without a filter. As root the program runs as an ordinary user: without a filter it makes
//! every call there is.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use openred_policy::{Role, allowed_names};

#[path = "../build/lists.rs"]
#[allow(dead_code, reason = "the build uses the rest")]
mod lists;
#[path = "sweep/numbers.rs"]
mod numbers;
#[path = "sweep/oracle.rs"]
mod oracle;

use numbers::NUMBERS;
use oracle::{NOTHING, Verdict, harmless, trials, verdict};

/// Every number of the kernels we know, and what newer ones may add.
const LAST: u32 = 599;
/// Bit 30 of a number: the call is x32's.
const X32: u32 = 0x4000_0000;
/// Calls that newer kernels let past every filter (SECURITY.md): `uretprobe` and `uprobe`. They are no way out of a
/// cage: elsewhere than in the kernel's own trampoline the one ends the process and the other is refused.
const EXEMPT: [u32; 2] = [335, 336];
/// Without a filter and with all bits set this one would leave a queue behind.
const MSGGET: i64 = libc::SYS_msgget;
/// Uid of the program when the suite runs as root.
const ORDINARY: u32 = 61_902;

type Case = (&'static str, u32, [u64; 6]);

/// Runs the cases under the filter of `role` and gives how each ended.
fn ends(role: &str, cases: &[Case]) -> Vec<String> {
    let place = tempfile::tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = place.path().join("openred-cage-sweep");
    // By a process of its own: a child that another test forks meanwhile would keep it open for writing.
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_openred-cage-sweep")).arg(&program).status().unwrap();
    assert!(copied.success());
    let mut command = Command::new(&program);
    command.arg(role).current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped());
    if nix::unistd::geteuid().is_root() {
        command.uid(ORDINARY).gid(ORDINARY);
    }
    let mut child = command.spawn().unwrap();
    let mut text = String::new();
    for (entry, number, [a, b, c, d, e, f]) in cases {
        text.push_str(&format!("{entry} {number:x} {a:x} {b:x} {c:x} {d:x} {e:x} {f:x}\n"));
    }
    // It reads as it goes and writes at its end, so neither pipe blocks the other.
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{role}: {}", output.status);
    let ends: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(ends.len(), cases.len());
    assert!(!ends.contains(&format!("exit code {}", openred_policy::probe::sweep::NOT_FILTERED)), "{role}: no filter");
    ends
}

fn list(role: Role) -> lists::Policy {
    let path = format!("{}/seccomp/{role}.json", env!("CARGO_MANIFEST_DIR"));
    lists::parse(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn name_of(number: u32) -> Option<&'static str> {
    NUMBERS.iter().find(|(_, found)| *found == i64::from(number)).map(|(name, _)| *name)
}

fn number_of(name: &str) -> u32 {
    let found = NUMBERS.iter().find(|(found, _)| *found == name);
    found.unwrap_or_else(|| panic!("tests/sweep/numbers.rs lacks `{name}`")).1 as u32
}

const SIGSYS: &str = "SIGSYS";

/// Whether a process ended as the list says. What passes may end in any way but SIGSYS.
fn fits(expected: Verdict, end: &str) -> bool {
    match expected {
        Verdict::Dies => end == SIGSYS,
        Verdict::Answered(errno) => end == format!("exit code {errno}"),
        Verdict::Passes => end != SIGSYS,
    }
}

/// Each number from 0 on, once under each filter: what does not end by SIGSYS is exactly the list.
#[test]
fn iso_every_number_under_every_filter_is_as_the_list_says() {
    for role in Role::FILTERED {
        let policy = list(role);
        let arguments = |number| name_of(number).map_or([NOTHING; 6], |name| harmless(&policy, name));
        let cases: Vec<Case> = (0..=LAST).map(|number| ("syscall", number, arguments(number))).collect();
        let ends = ends(role.name(), &cases);
        let mut listed: Vec<u32> = allowed_names(role).iter().map(|name| number_of(name)).collect();
        listed.extend(policy.answer.iter().map(|answer| number_of(&answer.call)));
        listed.sort_unstable();
        listed.dedup();
        let lived: Vec<u32> =
            (0..=LAST).filter(|number| ends[*number as usize] != SIGSYS && !EXEMPT.contains(number)).collect();
        assert_eq!(lived, listed, "{role}");
        for number in EXEMPT {
            assert!([SIGSYS, "SIGILL", "exit code 6"].contains(&ends[number as usize].as_str()), "{role} {number}");
        }
        for (number, end) in listed.iter().map(|number| (*number, &ends[*number as usize])) {
            let expected = verdict(&policy, name_of(number).unwrap(), &arguments(number));
            assert!(fits(expected, end), "{role} {number}: {expected:?}, but {end}");
        }
    }
}

/// The control: without a filter no number ends by SIGSYS, so that in the test above only the filter can be why.
#[test]
fn iso_control_no_number_ends_by_sigsys_without_a_filter() {
    let arguments = |number: u32| if i64::from(number) == MSGGET { [NOTHING, 0, 0, 0, 0, 0] } else { [NOTHING; 6] };
    let cases: Vec<Case> = (0..=LAST).map(|number| ("syscall", number, arguments(number))).collect();
    let ends = ends("none", &cases);
    let killed: Vec<u32> = (0..=LAST).filter(|number| ends[*number as usize] == SIGSYS).collect();
    assert_eq!(killed, [] as [u32; 0]);
    // They reached the kernel: these answer with what only it knows.
    assert_eq!(ends[libc::SYS_getpid as usize], "exit code 0");
    assert_eq!(ends[libc::SYS_execve as usize], format!("exit code {}", libc::EFAULT));
    assert_eq!(ends[libc::SYS_pause as usize], "SIGALRM");
}

/// Each rule with conditions: what fulfils it passes, also with the upper half of an `int` set; each bit turned over in each
/// argument does what the list says of it.
#[test]
fn iso_argument_rules_allow_their_values_and_nothing_beside() {
    for role in Role::FILTERED {
        let policy = list(role);
        let trials = trials(&policy);
        let cases: Vec<Case> =
            trials.iter().map(|(call, arguments)| ("syscall", number_of(call), *arguments)).collect();
        let (mut passed, mut died) = (0, 0);
        for ((call, arguments), end) in trials.iter().zip(ends(role.name(), &cases)) {
            let expected = verdict(&policy, call, arguments);
            assert!(fits(expected, &end), "{role} {call} {arguments:x?}: {expected:?}, but {end}");
            passed += usize::from(expected == Verdict::Passes);
            died += usize::from(expected == Verdict::Dies);
        }
        assert!(passed > 0 && died >= 31, "{role}: {passed} passed, {died} died");
    }
}

/// The control: the same arguments without a filter.
#[test]
fn iso_control_no_argument_ends_by_sigsys_without_a_filter() {
    // Of `noded`, whose list has every kind of rule; a thread that starts on no stack is left out.
    let trials: Vec<_> = trials(&list(Role::Noded)).into_iter().filter(|(call, _)| call != "clone").collect();
    let cases: Vec<Case> = trials.iter().map(|(call, arguments)| ("syscall", number_of(call), *arguments)).collect();
    let ends = ends("none", &cases);
    assert!(ends.iter().all(|end| end != SIGSYS));
}

/// The other two ways into the kernel: x32 numbers, and `int 0x80`, under which numbers mean other calls.
#[test]
fn iso_x32_and_i386_entries_end_every_role() {
    let x32 = |number: u32| ("syscall", number | X32, [NOTHING; 6]);
    let i386 = |number: u32| ("interrupt", number, [NOTHING; 6]);
    // The control: without a filter neither ends so. A kernel without i386 programs answers `int 0x80` with SIGSEGV.
    const I386_GETPID: u32 = 20;
    let outside = ends("none", &[x32(libc::SYS_getpid as u32), i386(I386_GETPID)]);
    assert!(["exit code 0", "exit code 38"].contains(&outside[0].as_str()), "{}", outside[0]);
    assert!(["exit code 0", "SIGSEGV"].contains(&outside[1].as_str()), "{}", outside[1]);
    let shut = if outside[1] == "SIGSEGV" { "SIGSEGV" } else { SIGSYS };
    for role in Role::FILTERED {
        let cases: Vec<Case> = (0..=LAST).map(x32).chain((0..=LAST).map(i386)).collect();
        for ((entry, number, _), end) in cases.iter().zip(ends(role.name(), &cases)) {
            let expected = if *entry == "syscall" { SIGSYS } else { shut };
            assert_eq!(end, expected, "{role} {entry} {number}");
        }
    }
}
