//! The cage, tried from inside: a confined child of each role attempts each forbidden act, and the test expects the
//! kernel's refusal; the same act outside the cage works (the control). As root every test runs twice, for root's form of
//! the cage (separate uids) and for an ordinary user's (user namespaces); as an ordinary user it runs the second form.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use openred_policy::probe::{FORBIDDEN, FORBIDDEN_PAST_LANDLOCK, FORBIDDEN_WITH_KEYS, Raw, SET_USER_ID};
use openred_policy::{Layer, LayerName, Role, arena};

#[path = "cage/stage.rs"]
mod stage;

use stage::*;

#[test]
fn every_layer_is_seen_from_outside_and_from_inside() {
    for form in forms() {
        let stage = Stage::new(*form);
        for role in Role::CAGED {
            let outcome = stage.run(role.name(), "nothing");
            assert_eq!(outcome.exit, WORKED, "{form:?} {role}");
            let (outside, inside) = (outcome.layers("outside"), outcome.layers("inside"));
            for layer in outside.iter().chain(&inside) {
                assert!(layer.ok, "{form:?} {role}: {layer:?}");
            }
            assert_eq!(outside.len(), 11, "{form:?} {role}");
            let user_namespace = inside.iter().any(|layer| layer.name == LayerName::UserNamespace);
            assert_eq!(user_namespace, *form == Form::Ordinary);
            let alone = outcome.line["interfaces"].as_array().unwrap().is_empty();
            assert_eq!(alone, KEY_ROLES.contains(&role), "{form:?} {role}: {}", outcome.line["interfaces"]);
        }
    }
}

/// The call ends the process by SIGSYS in each role, and reaches the kernel outside.
fn dies_in(roles: &[Role], calls: &[Raw]) {
    for form in forms() {
        let stage = Stage::new(*form);
        for call in calls {
            let (name, _, _, outside) = call;
            let control = outside.map_or(WORKED.to_owned(), refused);
            assert_eq!(stage.exit("none", name), control, "{form:?}: the control of {name}");
            for role in roles {
                let answered = ["netlink", "socket-udp", "socket-udp6"].contains(name) && *role == Role::Noded;
                let expected = if answered { refused(errno::EAFNOSUPPORT) } else { "SIGSYS".to_owned() };
                assert_eq!(stage.exit(role, name), expected, "{form:?} {role}: {name}");
            }
        }
    }
}

#[test]
fn no_role_starts_traces_mounts_or_takes_descriptors() {
    dies_in(&Role::CAGED, &FORBIDDEN);
}

#[test]
fn key_processes_have_no_sockets_and_open_nothing() {
    dies_in(&KEY_ROLES, &FORBIDDEN_WITH_KEYS);
}

/// Landlock sees plain TCP alone: what else leads to somebody (MPTCP, UDP, fast open, messages with an address) is the filter's.
#[test]
fn nobody_is_reached_past_landlock() {
    dies_in(&NETWORK_ROLES, &FORBIDDEN_PAST_LANDLOCK);
    dies_in(&NETWORK_ROLES, &[SET_USER_ID]);
}

#[test]
fn the_directory_calls_nobody() {
    let calls: Vec<Raw> = FORBIDDEN_WITH_KEYS.into_iter().filter(|(name, ..)| !name.starts_with("open")).collect();
    assert_eq!(calls.len(), 3);
    dies_in(&[Role::Directory], &calls);
    for form in forms() {
        let stage = Stage::new(*form);
        for act in ["connect-kept", "connect-tcp", "connect-abstract", "resolve"] {
            assert_eq!(stage.exit(Role::Directory, act), "SIGSYS", "{form:?}: {act}");
        }
    }
}

#[test]
fn a_program_is_never_executed() {
    for form in forms() {
        let stage = Stage::new(*form);
        assert_eq!(stage.exit("none", "exec"), WORKED, "the control");
        for role in Role::CAGED {
            assert_eq!(stage.exit(role, "exec"), "SIGSYS", "{form:?} {role}");
        }
    }
}

#[test]
fn panics_end_in_one_line_and_sigabrt() {
    for form in forms() {
        let stage = Stage::new(*form);
        for role in Role::CAGED {
            let literal = stage.run(role.name(), "panic");
            assert_eq!(literal.exit, "SIGABRT", "{form:?} {role}: {}", literal.stderr);
            assert_eq!(literal.stderr.lines().count(), 1, "{}", literal.stderr);
            assert!(literal.stderr.contains("a literal of the test"), "{}", literal.stderr);
            let formatted = stage.run(role.name(), "panic-formatted");
            assert_eq!(formatted.exit, "SIGABRT", "{form:?} {role}");
            assert!(!formatted.stderr.contains("must not be printed"), "{}", formatted.stderr);
            // Where secrets come in, before the filter: with `panic = "unwind"` and without the hook this would be exit code 101.
            let (line, stderr) = stage.supervise(role.name(), "restricted:panic-formatted");
            assert_eq!(
                (&line["exit"], &line["confined"]),
                (&"SIGABRT".into(), &false.into()),
                "{form:?} {role}: {stderr}"
            );
            assert_eq!(stderr.lines().count(), 1, "{form:?} {role}: {stderr}");
            assert!(!stderr.contains("must not be printed"), "{form:?} {role}: {stderr}");
        }
    }
}

#[test]
fn abort_overflow_and_exit_are_readable() {
    for form in forms() {
        let stage = Stage::new(*form);
        for role in Role::CAGED {
            for (act, end) in [("abort", "SIGABRT"), ("overflow", "SIGSEGV"), ("exit-7", "exit code 7")] {
                assert_eq!(stage.exit(role, act), end, "{form:?} {role}: {act}");
            }
        }
    }
}

#[test]
fn each_role_can_do_its_work() {
    for form in forms() {
        let stage = Stage::new(*form);
        for role in Role::CAGED {
            for act in ["allocate", "service"] {
                let outcome = stage.run(role.name(), act);
                assert_eq!(outcome.exit, WORKED, "{form:?} {role}: {act} {}", outcome.stderr);
            }
        }
        for role in NETWORK_ROLES {
            for act in ["thread", "state"] {
                let outcome = stage.run(role.name(), act);
                assert_eq!(outcome.exit, WORKED, "{form:?} {role}: {act} {}", outcome.stderr);
            }
        }
        for act in ["connect-kept", "connect-tcp"] {
            let outcome = stage.run(Role::Noded.name(), act);
            assert_eq!(outcome.exit, WORKED, "{form:?}: {act} {}", outcome.stderr);
        }
        // Names are looked up before the filter. Behind it, and without the resolver's files, the answer is that there is none; UDP is
        // refused to the C library, which takes that for an answer as well.
        assert_eq!(stage.exit("none", "resolve"), WORKED, "{form:?}: the control");
        assert_eq!(stage.exit(Role::Noded, "resolve"), refused(errno::EIO), "{form:?}");
    }
}

#[test]
fn files_outside_the_kept_paths_are_gone() {
    for form in forms() {
        let stage = Stage::new(*form);
        for act in ["read-root", "read-passwd", "write-sockets", "connect-abstract"] {
            assert_eq!(stage.exit("none", act), WORKED, "{form:?}: the control of {act}");
        }
        fs::remove_file(stage.path("sockets/new")).unwrap();
        for role in NETWORK_ROLES {
            assert_eq!(stage.exit(role, "read-root"), refused(errno::EACCES), "{form:?} {role}");
            let passwd = stage.exit(role, "read-passwd");
            assert!([refused(errno::ENOENT), refused(errno::EACCES)].contains(&passwd), "{form:?} {role}: {passwd}");
            assert_eq!(stage.exit(role, "write-sockets"), refused(errno::EROFS), "{form:?} {role}");
            assert_eq!(stage.exit(role, "make-socket"), "SIGSYS", "{form:?} {role}");
        }
        assert_eq!(stage.exit(Role::Noded, "connect-abstract"), refused(errno::EPERM), "{form:?}");
        for role in KEY_ROLES {
            assert_eq!(stage.exit(role, "read-root"), "SIGSYS", "{form:?} {role}");
            assert_eq!(stage.exit(role, "thread"), "SIGSYS", "{form:?} {role}");
        }
    }
}

/// The kernel forgets the parent-death signal when a process changes its uid, so it must be set again after that.
#[test]
fn a_child_dies_with_its_supervisor() {
    for form in forms() {
        let stage = Stage::new(*form);
        // The directory has no supervisor.
        for role in [Role::Vault, Role::Noded] {
            let (line, stderr) = stage.supervise(role.name(), "hang");
            let status = format!("/proc/{}/status", line["pid"].as_i64().unwrap_or_else(|| panic!("{line} {stderr}")));
            let end = Instant::now() + Duration::from_secs(30);
            // Gone, or not yet collected by whoever inherits orphans here.
            while fs::read_to_string(&status).is_ok_and(|text| !text.contains("State:\tZ")) {
                assert!(Instant::now() < end, "{form:?} {role}: it outlives its supervisor");
                std::thread::yield_now();
            }
        }
    }
}

/// As a container's entry point the supervisor is process 1: that is no sign that it has died.
#[test]
fn the_supervisor_may_be_process_1() {
    for form in forms() {
        let stage = Stage::new(*form);
        for role in [Role::Vault, Role::Noded] {
            let mut unshare = Command::new("unshare");
            if *form == Form::Ordinary {
                unshare.args(["--user", "--map-current-user"]);
            }
            unshare
                .args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"])
                .arg(stage.path("openred-cage-probe"));
            let (line, stderr) = stage.supervise_through(unshare, role.name(), "nothing");
            assert!(line["failed"].is_null(), "{form:?} {role}: {line} {stderr}");
            assert_eq!(line["exit"], WORKED, "{form:?} {role}: {stderr}");
        }
    }
}

/// Root must have all of the arena secret, so there the same kernel ends the start (`tests/layers.rs`).
#[test]
fn a_kernel_without_secret_memory_is_said_so() {
    for form in forms() {
        let (line, stderr) = Stage::new(*form).supervise(Role::Vault.name(), "without:secret-memory");
        if *form == Form::Root {
            assert!(stderr.lines().any(|line| line.starts_with("arena: locked")), "{stderr}");
            assert!(line["inside"].as_array().unwrap().is_empty() && line["exit"] == "exit code 99", "{line}");
            continue;
        }
        let layers: Vec<Layer> = serde_json::from_value(line["inside"].clone()).unwrap();
        let arena = layers.iter().find(|layer| layer.name == LayerName::Arena).unwrap();
        assert!(arena.ok && arena.seen.starts_with("locked"), "{arena:?}");
        assert!(arena.detail.contains("the kernel gives no secret memory") || arena.detail.contains("own map"));
    }
}

/// A limit under which no key would lie in protected memory ends the start with the layer's name; from [`arena::KEYS`] on keys do.
/// An ordinary user's: root may lock what it likes.
#[test]
fn a_limit_on_locked_memory_below_the_keys_ends_the_start() {
    let stage = Stage::new(Form::Ordinary);
    let under = |kibibytes: usize| {
        let mut limited = Command::new("prlimit");
        let bytes = kibibytes << 10;
        limited.arg(format!("--memlock={bytes}:{bytes}")).arg("--").arg(stage.path("openred-cage-probe"));
        stage.supervise_through(limited, Role::Vault.name(), "nothing")
    };
    for kibibytes in [64, 192, 384, 768, 1536] {
        let (line, stderr) = under(kibibytes);
        assert_eq!(line["exit"], "exit code 99", "{kibibytes}: {line} {stderr}");
        assert!(
            stderr.lines().any(|line| line.starts_with("arena: ") && line.contains("MEMLOCK")),
            "{kibibytes}: {stderr}"
        );
    }
    let (line, stderr) = under(arena::KEYS >> 10);
    assert_eq!(line["exit"], WORKED, "the control: {line} {stderr}");
    let layers: Vec<Layer> = serde_json::from_value(line["inside"].clone()).unwrap();
    let found = layers.iter().find(|layer| layer.name == LayerName::Arena).unwrap();
    assert!(found.ok && found.seen.contains("in part") && found.detail.contains("first 2 MiB"), "{found:?}");
}

#[test]
fn root_without_an_identity_is_refused() {
    if !is_root() {
        // An ordinary user has no identity to give: the same program without one is the ordinary form, which works.
        assert_eq!(Stage::new(Form::Ordinary).exit(Role::Vault, "nothing"), WORKED);
        return;
    }
    let stage = Stage::new(Form::Root);
    let mut command = Command::new(stage.path("openred-cage-probe"));
    command.args(["supervise", "vault", "nothing"]).arg(stage.path("state")).arg(stage.path("sockets")).arg("none");
    let output = command.output().unwrap();
    let line: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(line["exit"], "exit code 99");
    assert!(String::from_utf8(output.stderr).unwrap().contains("root needs an identity"));
}

#[test]
fn a_process_with_one_descriptor_more_is_refused() {
    use openred_policy::spawn::{SpawnSpec, spawn};
    let probe = Path::new(env!("CARGO_BIN_EXE_openred-cage-probe"));
    let null = fs::File::open("/dev/null").unwrap();
    let mut spec = SpawnSpec::new(probe).unwrap();
    for argument in ["caged", "vault", "nothing", "/", "/", "none"] {
        spec = spec.argument(argument).unwrap();
    }
    for _ in 0..7 {
        spec = spec.descriptor(&null).unwrap();
    }
    assert_eq!(spawn(spec).unwrap().wait().unwrap().unwrap().to_string(), "exit code 99");
}

#[test]
fn a_program_that_is_not_there_is_reported() {
    use openred_policy::spawn::{SpawnSpec, spawn};
    let error = spawn(SpawnSpec::new("/nowhere/at-all").unwrap()).unwrap_err();
    assert!(error.to_string().contains("No such file"), "{error}");
}
