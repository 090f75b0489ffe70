//! The cage, tried from inside: a confined child of each role attempts each forbidden act, and the test expects the
//! kernel's refusal; the same act outside the cage works (the control). As root every test runs twice, for root's form of
//! the cage (separate uids) and for an ordinary user's (user namespaces); as an ordinary user it runs the second form.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use openred_policy::probe::{FORBIDDEN, FORBIDDEN_PAST_LANDLOCK, FORBIDDEN_WITH_KEYS, Raw, SET_USER_ID};
use openred_policy::{Layer, LayerName, Role};
use tempfile::TempDir;

/// Uid of the caged process when the supervisor is root.
const CAGED: u32 = 61_750;
/// Uid of the ordinary user's supervisor.
const ORDINARY: u32 = 61_900;
const KEY_ROLES: [Role; 3] = [Role::Front, Role::Vault, Role::Unseal];
const NETWORK_ROLES: [Role; 2] = [Role::Noded, Role::Directory];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Root,
    Ordinary,
}

fn forms() -> &'static [Form] {
    if is_root() { &[Form::Root, Form::Ordinary] } else { &[Form::Ordinary] }
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A place that the caged uid can reach, with the program, a state directory and a directory of sockets.
struct Stage {
    form: Form,
    place: TempDir,
    _listeners: (UnixListener, UnixListener, TcpListener),
}

impl Stage {
    fn new(form: Form) -> Self {
        let place = tempfile::tempdir_in("/tmp").unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
        for (program, name) in [
            (env!("CARGO_BIN_EXE_openred-cage-probe"), "openred-cage-probe"),
            (env!("CARGO_BIN_EXE_openred-cage-probe-vault"), "openred-cage-probe-vault"),
        ] {
            // By a process of its own: a child that another test forks meanwhile would inherit our writing descriptor,
            // and a program open for writing cannot be started.
            let copied = Command::new("cp").arg(program).arg(place.path().join(name)).status().unwrap();
            assert!(copied.success(), "{copied}");
        }
        let sockets = place.path().join("sockets");
        for directory in [&place.path().join("state"), &sockets] {
            fs::create_dir(directory).unwrap();
        }
        let service = UnixListener::bind(sockets.join("service.sock")).unwrap();
        let name = format!("openred-probe{}", sockets.display());
        let hidden = UnixListener::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        fs::write(sockets.join("port"), tcp.local_addr().unwrap().port().to_string()).unwrap();
        if is_root() {
            let owner = if form == Form::Root { CAGED } else { ORDINARY };
            for path in ["state", "sockets", "sockets/service.sock", "sockets/port"] {
                chown(place.path().join(path), Some(owner), Some(owner)).unwrap();
            }
        }
        Self { form, place, _listeners: (service, hidden, tcp) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// Runs `act` in a child of `role` (`none`: no cage).
    fn run(&self, role: &str, act: &str) -> Outcome {
        let (line, stderr) = self.supervise(role, act);
        assert!(line["failed"].is_null(), "{:?} {role} {act}: {line} {stderr}", self.form);
        Outcome { exit: line["exit"].as_str().unwrap().to_owned(), line, stderr }
    }

    fn supervise(&self, role: &str, act: &str) -> (serde_json::Value, String) {
        self.supervise_through(Command::new(self.path("openred-cage-probe")), role, act)
    }

    /// `command` starts the probe; its arguments are added here.
    fn supervise_through(&self, mut command: Command, role: &str, act: &str) -> (serde_json::Value, String) {
        command.args(["supervise", role, act]).arg(self.path("state")).arg(self.path("sockets")).current_dir("/");
        match self.form {
            Form::Root => command.arg(CAGED.to_string()),
            Form::Ordinary if is_root() => command.arg("none").uid(ORDINARY).gid(ORDINARY),
            Form::Ordinary => command.arg("none"),
        };
        if act == "hang" {
            // No pipe: a child that outlives its supervisor must fail this test and not hold it up.
            command.stderr(Stdio::null());
        }
        let output = command.output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{:?} {role} {act}: {stderr}", self.form);
        (serde_json::from_slice(&output.stdout).unwrap(), stderr)
    }

    fn exit(&self, role: impl ToString, act: &str) -> String {
        self.run(&role.to_string(), act).exit
    }
}

struct Outcome {
    exit: String,
    line: serde_json::Value,
    stderr: String,
}

impl Outcome {
    fn layers(&self, side: &str) -> Vec<Layer> {
        serde_json::from_value(self.line[side].clone()).unwrap()
    }
}

fn refused(errno: i32) -> String {
    format!("exit code {}", 100 + errno)
}

const WORKED: &str = "exit code 0";

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
            assert_eq!(outside.len(), 10, "{form:?} {role}");
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

/// Numbers of the kernel's refusals.
mod errno {
    pub(super) const EPERM: i32 = 1;
    pub(super) const ENOENT: i32 = 2;
    pub(super) const EACCES: i32 = 13;
    pub(super) const EROFS: i32 = 30;
    pub(super) const EAFNOSUPPORT: i32 = 97;
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
        let resolve = stage.exit(Role::Noded, "resolve");
        assert!(resolve.starts_with("exit code"), "{form:?}: resolve ended in {resolve}");
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

#[test]
fn a_kernel_without_secret_memory_is_said_so() {
    for form in forms() {
        let outcome = Stage::new(*form).run(Role::Vault.name(), "no-secret-memory");
        let layers = outcome.layers("inside");
        let arena = layers.iter().find(|layer| layer.name == LayerName::Arena).unwrap();
        assert!(arena.seen.starts_with("locked"), "{form:?}: {arena:?}");
        assert!(arena.detail.contains("the kernel gives no secret memory") || arena.detail.contains("own map"));
        // A supervisor starts nobody whose report has a line that is not ok.
        assert_eq!(arena.ok, *form == Form::Ordinary, "{arena:?}");
    }
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
