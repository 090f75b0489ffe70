//! Each layer by itself: what refuses where the filter is not on yet, what is mapped, and that no process goes on when a kernel
//! lacks a layer. As root each test runs for both forms of the cage, as in `tests/cage.rs`.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use openred_policy::probe::memory::mappings;
use openred_policy::probe::shim::{NO_FILTER, SHIMS};
use openred_policy::probe::{self, FORBIDDEN};
use openred_policy::{Layer, LayerName, Role, Uid, arena};

#[path = "cage/stage.rs"]
mod stage;

use stage::*;

const EAGAIN: i32 = 11;
const EFAULT: i32 = 14;
const EINVAL: i32 = 22;
const ENETUNREACH: i32 = 101;
const ECONNREFUSED: i32 = 111;

/// How a child ended that tried `act` before its filter was on.
fn early(stage: &Stage, role: Role, act: &str) -> String {
    let (line, stderr) = stage.supervise(role.name(), act);
    assert_eq!(line["confined"], false, "{role} {act}: it must have ended before: {line}");
    line["exit"].as_str().unwrap_or_else(|| panic!("{role} {act}: {line} {stderr}")).to_owned()
}

fn in_form(only: Option<Uid>, form: Form) -> bool {
    let uid = if form == Form::Root { Uid::Separate } else { Uid::Shared };
    only.is_none_or(|only| only == uid)
}

/// A kernel that lacks one thing, by a refusal or by saying yes and doing nothing: the process ends with the layer's name in one
/// line, and never says that it is confined. Without a shim the same start works: `cage.rs` has each role.
#[test]
fn iso_no_process_goes_on_without_a_layer() {
    for form in forms() {
        let stage = Stage::new(*form);
        for (name, layer, role, only, _) in SHIMS {
            if !in_form(*only, *form) {
                continue;
            }
            let (line, stderr) = stage.supervise(role.name(), &format!("without:{name}"));
            assert_eq!(line["exit"], "exit code 99", "{form:?} {name}: {line} {stderr}");
            assert_eq!(line["confined"], false, "{form:?} {name}: {line}");
            let begin = format!("{}: ", serde_json::to_value(layer).unwrap().as_str().unwrap());
            assert!(stderr.lines().any(|line| line.starts_with(&begin)), "{form:?} {name}: {stderr}");
        }
    }
}

/// Every layer that a process applies to itself has a shim.
#[test]
fn iso_every_layer_has_a_kernel_without_it() {
    let inside: Vec<LayerName> = forms()
        .iter()
        .flat_map(|form| Stage::new(*form).run(Role::Vault.name(), "nothing").layers("inside"))
        .map(|layer| layer.name)
        .collect();
    assert!(inside.len() >= 14, "{inside:?}");
    for layer in inside {
        assert!(SHIMS.iter().any(|(_, found, ..)| *found == layer), "{layer} has no shim");
    }
}

/// A filter that says yes and is not there cannot be seen from inside; the supervisor's look from outside finds it.
#[test]
fn iso_a_missing_filter_is_seen_from_outside() {
    for form in forms() {
        let stage = Stage::new(*form);
        let seccomp = |act: &str| {
            let layers: Vec<Layer> = stage.run(Role::Vault.name(), act).layers("outside");
            layers.into_iter().find(|layer| layer.name == LayerName::Seccomp).unwrap()
        };
        assert!(seccomp("nothing").ok, "the control");
        let missing = seccomp(&format!("without:{}", NO_FILTER.0));
        assert!(!missing.ok, "{form:?}: {missing:?}");
    }
}

/// All threads allocate from one heap: a further one would open a file under load, which no filter allows. The control is this program,
/// whose threads have heaps of their own.
#[test]
fn threads_have_one_heap_and_the_umask_is_seen() {
    for form in forms() {
        let stage = Stage::new(*form);
        for role in NETWORK_ROLES {
            let outcome = stage.run(role.name(), "thread:execve");
            assert_eq!(outcome.line["heaps"], 0, "{form:?} {role}");
            let inside = outcome.layers("inside");
            let session = inside.iter().find(|layer| layer.name == LayerName::Session).unwrap();
            assert!(session.seen.ends_with(", umask 0077"), "{form:?} {role}: {session:?}");
        }
    }
    let held = std::thread::spawn(|| std::hint::black_box(vec![1u8; 4096])).join().unwrap();
    assert!(mappings(&std::fs::read_to_string("/proc/self/smaps").unwrap()).heaps > 0, "{}", held.len());
}

/// A thread that is older than the filter dies by it like any other, and the whole process with it.
#[test]
fn iso_threads_older_than_the_filter_carry_it() {
    for form in forms() {
        let stage = Stage::new(*form);
        assert_eq!(stage.exit("none", "execve"), refused(EFAULT), "{form:?}: the control");
        for role in NETWORK_ROLES {
            let outcome = stage.run(role.name(), "thread:execve");
            assert_eq!(outcome.exit, "SIGSYS", "{form:?} {role}");
            for layer in outcome.layers("outside") {
                assert!(layer.ok, "{form:?} {role}: {layer:?}");
                assert!(layer.name != LayerName::Threads || layer.seen == "2", "{layer:?}");
            }
        }
    }
}

/// Behind the filter: Landlock, the empty root, the empty network, MDWE and the limits refuse by themselves.
#[test]
fn iso_layers_refuse_without_the_filter() {
    for form in forms() {
        let stage = Stage::new(*form);
        let kept = stage.path("state/true");
        std::fs::copy("/bin/true", &kept).unwrap();
        std::fs::set_permissions(&kept, std::fs::Permissions::from_mode(0o755)).unwrap();
        let controls = [
            ("read-root", WORKED.to_owned()),
            ("read-passwd", WORKED.to_owned()),
            ("exec", WORKED.to_owned()),
            ("exec-kept", WORKED.to_owned()),
            ("connect-abstract", WORKED.to_owned()),
            ("connect-loopback", refused(ECONNREFUSED)),
            ("udp", WORKED.to_owned()),
            ("fork", WORKED.to_owned()),
            ("mmap-exec", WORKED.to_owned()),
            ("mprotect-exec", WORKED.to_owned()),
            ("mprotect-all", WORKED.to_owned()),
        ];
        for (act, end) in controls {
            assert_eq!(stage.exit("none", act), end, "{form:?}: the control of {act}");
        }
        for role in Role::CAGED {
            let end = |act: &str| early(&stage, role, &format!("restricted:{act}"));
            assert_eq!(end("read-root"), refused(errno::EACCES), "{form:?} {role}");
            for act in ["read-passwd", "exec"] {
                assert!([refused(errno::ENOENT), refused(errno::EACCES)].contains(&end(act)), "{form:?} {role} {act}");
            }
            for act in ["mmap-exec", "mprotect-exec", "mprotect-all"] {
                assert_eq!(end(act), refused(errno::EACCES), "{form:?} {role} {act}");
            }
        }
        for role in KEY_ROLES {
            let end = |act: &str| early(&stage, role, &format!("restricted:{act}"));
            assert_eq!(end("connect-loopback"), refused(errno::EACCES), "{form:?} {role}: Landlock");
            assert_eq!(end("udp"), refused(ENETUNREACH), "{form:?} {role}: the empty network");
            assert_eq!(end("connect-abstract"), refused(ECONNREFUSED), "{form:?} {role}: no such name in its network");
            assert_eq!(end("fork"), refused(EAGAIN), "{form:?} {role}: the limit");
        }
        for role in NETWORK_ROLES {
            let end = |act: &str| early(&stage, role, &format!("restricted:{act}"));
            assert_eq!(end("connect-abstract"), refused(errno::EPERM), "{form:?} {role}: Landlock's scope");
            assert_eq!(end("exec-kept"), refused(errno::EACCES), "{form:?} {role}");
        }
    }
}

/// Root does not come back.
#[test]
fn iso_a_changed_uid_is_final() {
    for form in forms() {
        let stage = Stage::new(*form);
        for role in Role::CAGED {
            for phase in ["separated", "restricted"] {
                let end = early(&stage, role, &format!("{phase}:root"));
                // An ordinary user's namespace has no uid 0 at all.
                let expected = if *form == Form::Root { errno::EPERM } else { EINVAL };
                assert_eq!(end, refused(expected), "{form:?} {role} {phase}");
            }
        }
    }
    if is_root() {
        let stage = Stage::new(Form::Root);
        assert_eq!(stage.exit("none", "root"), WORKED, "the control");
    }
}

/// Nothing is left of what capabilities allow, also of those that an ordinary user's process has in its own user namespace.
#[test]
fn iso_no_capability_is_left() {
    for form in forms() {
        let stage = Stage::new(*form);
        match form {
            Form::Root => assert_eq!(stage.exit("none", "capable"), WORKED, "the control"),
            // Outside he has none; in his own namespace he has all of them until they are taken.
            Form::Ordinary => assert_eq!(stage.exit("none", "capable"), refused(errno::EPERM)),
        }
        for role in Role::CAGED {
            if *form == Form::Ordinary {
                assert_eq!(early(&stage, role, "separated:capable"), WORKED, "{role}: the control");
            }
            assert_eq!(early(&stage, role, "restricted:capable"), refused(errno::EPERM), "{form:?} {role}");
            assert_eq!(stage.exit(role, "capable"), "SIGSYS", "{form:?} {role}");
        }
    }
}

/// A process that sleeps until the test ends it.
struct Victim(Child);

impl Victim {
    fn new(uid: Option<u32>) -> Self {
        let mut command = Command::new("sleep");
        command.arg("600").current_dir("/");
        if let Some(uid) = uid {
            command.uid(uid).gid(uid);
        }
        Self(command.spawn().unwrap())
    }

    fn act(&self, phase: &str) -> String {
        format!("{phase}signal:{}", self.0.id())
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Signals: of two processes with different uids neither reaches the other, whatever else is on (root's half); and with the same
/// uid it is Landlock's scope that refuses.
#[test]
fn iso_signals_reach_nobody() {
    for form in forms() {
        let stage = Stage::new(*form);
        let own = match (form, is_root()) {
            (Form::Root, _) => Some(CAGED),
            (Form::Ordinary, true) => Some(ORDINARY),
            (Form::Ordinary, false) => None,
        };
        let same = Victim::new(own);
        assert_eq!(stage.exit("none", &same.act("")), WORKED, "{form:?}: the control");
        for role in Role::CAGED {
            assert_eq!(
                early(&stage, role, &same.act("separated:")),
                WORKED,
                "{form:?} {role}: the control of Landlock"
            );
            assert_eq!(early(&stage, role, &same.act("restricted:")), refused(errno::EPERM), "{form:?} {role}");
            assert_eq!(stage.exit(role, &same.act("")), "SIGSYS", "{form:?} {role}");
            if let Some(own) = own {
                let other = Victim::new(Some(own + 1));
                assert_eq!(
                    early(&stage, role, &other.act("separated:")),
                    refused(errno::EPERM),
                    "{form:?} {role}: uids"
                );
            }
        }
    }
}

/// Files of another uid stay shut though they lie in a kept path (root's half: an ordinary user has but one uid).
#[test]
fn iso_files_of_another_uid_stay_shut() {
    for form in forms() {
        let stage = Stage::new(*form);
        if is_root() {
            let port = stage.path("sockets/port");
            chown(&port, Some(CAGED + 7), Some(CAGED + 7)).unwrap();
            std::fs::set_permissions(&port, std::fs::Permissions::from_mode(0o600)).unwrap();
            assert_eq!(early(&stage, Role::Noded, "separated:connect-tcp"), refused(errno::EACCES), "{form:?}");
            let owner = if *form == Form::Root { CAGED } else { ORDINARY };
            chown(&port, Some(owner), Some(owner)).unwrap();
        }
        assert_eq!(early(&stage, Role::Noded, "separated:connect-tcp"), WORKED, "{form:?}: the control");
    }
}

/// No page of a caged process may be both written and executed; and the vault's arena is sealed.
#[test]
fn iso_no_page_is_both_writable_and_executable() {
    for form in forms() {
        let stage = Stage::new(*form);
        for role in Role::CAGED {
            let found = stage.run(role.name(), "nothing").line["mappings"].clone();
            let found: [u64; 3] = serde_json::from_value(found).unwrap();
            assert!(found[0] > 0, "{form:?} {role}: its code was seen");
            assert_eq!(found[1], 0, "{form:?} {role}");
            assert_eq!(found[2] >= arena::CAPACITY as u64, role == Role::Vault, "{form:?} {role}: sealed {}", found[2]);
        }
    }
    // The control: this process makes such a page, and the same reading finds it.
    let own = || mappings(&std::fs::read_to_string("/proc/self/smaps").unwrap());
    let before = own().writable_and_executable;
    probe::attempt(*FORBIDDEN.iter().find(|(name, ..)| *name == "mmap-exec").unwrap()).unwrap();
    assert_eq!(own().writable_and_executable, before + 1);
}

/// The arena cannot be unmapped, moved or protected otherwise, although the filter is not on yet.
#[test]
fn iso_the_arena_is_sealed() {
    for form in forms() {
        let stage = Stage::new(*form);
        for act in ["munmap", "mremap", "mprotect-none"] {
            assert_eq!(stage.exit("none", act), WORKED, "{form:?}: the control of {act}");
            assert_eq!(
                early(&stage, Role::Front, &format!("restricted:{act}")),
                WORKED,
                "{form:?}: {act} without an arena"
            );
            let end = early(&stage, Role::Vault, &format!("restricted:{act}"));
            assert_eq!(end, refused(errno::EPERM), "{form:?} {act}");
            assert_eq!(stage.exit(Role::Vault, act), "SIGSYS", "{form:?} {act}");
        }
    }
}

/// What lies in the vault's arena is not read from outside, not even by root; an ordinary user may not look at all. The control is a
/// process without an arena, in which root finds the same bytes by both ways.
#[test]
fn iso_secret_memory_is_read_by_nobody() {
    for form in forms() {
        let stage = Stage::new(*form);
        let hunted = |role: Role| -> [(Option<usize>, Option<i32>); 2] {
            serde_json::from_value(stage.run(role.name(), "canary").line["hunted"].clone()).unwrap()
        };
        for (vault, front) in hunted(Role::Vault).into_iter().zip(hunted(Role::Front)) {
            match form {
                Form::Root => assert_eq!((vault, front), ((Some(0), None), (Some(1), None))),
                Form::Ordinary => {
                    assert_eq!((vault, front), ((None, Some(errno::EACCES)), (None, Some(errno::EACCES))));
                }
            }
        }
    }
}

/// No role leaves a dump of its memory behind, though whoever started it lifts the limit as far as he may.
#[test]
fn iso_no_role_leaves_a_dump() {
    for form in forms() {
        let stage = Stage::new(*form);
        let dumped = |role: &str| {
            let outcome = stage.run(role, "dump");
            (outcome.exit, outcome.line["dumped"].as_bool().unwrap())
        };
        assert_eq!(dumped("none"), (String::from("SIGABRT"), true), "{form:?}: the control; see core(5)");
        for role in Role::CAGED {
            assert_eq!(dumped(role.name()), (String::from("SIGABRT"), false), "{form:?} {role}");
        }
    }
}

/// A panic under the hook, and the ordinary end, clear the vault's arena, the stack in it included; what ends without either leaves it
/// as it was. The process that looks shares the memory with the one that ended.
#[test]
fn iso_the_arena_is_cleared_by_a_panic_and_at_the_end() {
    for form in forms() {
        let stage = Stage::new(*form);
        for (way, expected) in [
            ("clear-panic", WORKED.to_owned()),
            ("clear-abort", refused(errno::EPERM)),
            ("clear-exit", WORKED.to_owned()),
            ("clear-exit-now", refused(errno::EPERM)),
        ] {
            assert_eq!(early(&stage, Role::Vault, &format!("separated:{way}")), expected, "{form:?} {way}");
        }
    }
}
