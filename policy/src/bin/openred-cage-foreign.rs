//! Test program of this crate: a supervisor that starts a foreign program through the launcher, and such a program itself, which
//! confines nothing and tries to get out. Not installed.
//!
//! `launch HOW UID STATE PROGRAM ARGUMENT…` prints one JSON line: what the launcher said, what was seen from outside, what the program
//! wrote and how it ended. Beside STATE, `door`, if there is one, is the folder with the socket that it may connect to, and `granted`
//! what it may read. HOW: `right`, `wrong` (another digest), `leave` (the supervisor ends while the program runs). PROGRAM `self`
//! is this one; `held` and `watched` start it with small limits, held by what this machine has or without any group, and look at it until it
//! ends or was held back. `foreign ACT STATE` says `ready`, waits for a byte and tries the act: exit code 0 it worked, 100 + errno the
//! kernel refused it.

#![forbid(unsafe_code)]

use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use openred_policy::launch::{DOOR, Launch, digest_of, runtime};
use openred_policy::limits::{Held, Limits, Resource, Usage, Ways};
use openred_policy::probe::{self, memory};
use openred_policy::spawn::Child;
use openred_policy::{Error, Identity, KeptPath, LayerName, Role, barrier, observe};
use serde_json::json;

/// The longest that a child may take for one stage on a loaded machine.
const STAGE: Duration = Duration::from_secs(30);
/// Added to an errno to make an exit code.
const REFUSED: i32 = 100;
/// The number from which the launcher starts a program.
const PROGRAM: u64 = 120;
/// What is taken too much of by `take-…`.
const LIMITS: Limits = Limits { memory: 48 << 20, cpu: 5, tasks: 8, descriptors: 32 };
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// Throttled so often, the processor is held back and not only late.
const THROTTLED: u64 = 10;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        [_, "foreign", act, state] => foreign(act, Path::new(state)),
        [_, "launch", how, uid, state, program, rest @ ..] => match launch(how, uid, Path::new(state), program, rest) {
            Ok(line) => {
                let _ = writeln!(std::io::stdout(), "{line}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "{error}");
                ExitCode::FAILURE
            }
        },
        _ => ExitCode::from(64),
    }
}

// ---------------------------------------------------------------- the supervisor

fn launch(how: &str, uid: &str, state: &Path, program: &str, rest: &[&str]) -> Result<serde_json::Value, Error> {
    let failed = |source| Error::LocalKernel { layer: LayerName::Spawn, call: "prepare", source };
    let own = observe::Baseline::of_this_process()?;
    let this = std::env::current_exe().map_err(failed)?;
    let path = if program == "self" { this.clone() } else { PathBuf::from(program) };
    let mut digest = digest_of(&File::open(&path).map_err(failed)?).map_err(failed)?;
    digest[0] ^= u8::from(how == "wrong");
    let (input, mut to_child) = std::io::pipe().map_err(failed)?;
    let (mut from_child, output) = std::io::pipe().map_err(failed)?;
    let identity = uid.parse().ok().map(|uid| Identity { uid, gid: uid });
    let name = path.file_name().unwrap_or_default().to_owned();
    let file = File::open(&path).map_err(failed)?;
    let mut launch = Launch::new(&this.with_file_name("openred-launch"), file, digest, name)?.identity(identity)?;
    launch = launch.keep(KeptPath::writable(state)).variable("OPENRED_TEST", "given");
    let [door, granted] = ["door", "granted"].map(|name| state.with_file_name(name));
    for kept in [KeptPath::door(&door), KeptPath::granted(&granted)] {
        if kept.path.symlink_metadata().is_ok() {
            launch = launch.keep(kept);
        }
    }
    launch = runtime().into_iter().fold(launch, Launch::keep);
    launch = rest.iter().fold(launch, |launch, argument| launch.argument(argument));
    launch = launch.descriptor(input)?.descriptor(output)?.descriptor(std::io::stderr())?;
    let expected = observe::Expected { identity, kept: launch.kept().to_vec() };
    let held = hold(how, &path).map_err(failed)?;
    if let Some(held) = &held {
        launch = launch.limits(held);
    }
    let (child, host) = launch.start()?;
    let (mut line, mut ready) = (json!({}), [0u8; 6]);
    if let Some(namespaces) = stages(&host, child.pid(), held.as_ref(), &mut line)?
        && program == "self"
        && from_child.read_exact(&mut ready).is_ok()
    {
        let seen = observe::observe(child.pid(), namespaces)?;
        line["outside"] = json!(observe::compare(Role::Module, &seen, &own, &expected));
    }
    if how == "leave" {
        return Ok(json!({"pid": child.pid()}));
    }
    // Before the program goes on: one that has ended is in no group any more.
    if let Some(held) = &held {
        line["ways"] = json!(Resource::ALL.map(|resource| held.way(resource).name()));
        line["limits"] = json!(held.layer(child.pid()));
    }
    let _ = to_child.write_all(b"hello\n");
    drop(to_child);
    if let Some(held) = &held {
        line["exit"] = json!(watch(held, &child, rest.contains(&"take-cpu"), &mut line)?);
        return Ok(line);
    }
    let mut said = String::new();
    let _ = from_child.read_to_string(&mut said);
    line["said"] = json!(said);
    line["exit"] = json!(child.wait()?.map(|exit| exit.to_string()));
    Ok(line)
}

/// What holds the program's limits, where it is to have any.
fn hold(how: &str, program: &Path) -> std::io::Result<Option<Held>> {
    let ways = match how {
        "held" => Ways::find(&format!("openred-cage-foreign {}", std::process::id())),
        "watched" => Ways::without_groups(),
        _ => return Ok(None),
    };
    ways.hold("probe", LIMITS, std::fs::metadata(program)?.len()).map(Some)
}

/// Looks at a program until it ends, as a supervisor does; it is killed for what it broke, and one that takes the processor alone once it is held
/// back: on a busy machine those that take something else are, too, before they have it.
fn watch(held: &Held, child: &Child, burns: bool, line: &mut serde_json::Value) -> Result<Option<String>, Error> {
    let mut usage = Usage::default();
    loop {
        if let Some(exit) = child.try_wait()? {
            line["killed_for"] = json!(held.killed_for().map(Resource::name));
            line["tasks_refused"] = json!(held.refused(Resource::Tasks));
            return Ok(Some(exit.to_string()));
        }
        if let Some(broken) = usage.look(held, child.pid(), Instant::now()) {
            line["broken"] = json!(broken.name());
            child.signal(Signal::SIGKILL)?;
        }
        if burns && held.refused(Resource::Cpu) >= THROTTLED {
            line["throttled"] = json!(true);
            child.signal(Signal::SIGKILL)?;
        }
        std::thread::sleep(LOOK);
    }
}

/// The launcher's stages, to the end of the barrier; its namespaces when the program runs.
fn stages(
    host: &barrier::Host,
    pid: i32,
    held: Option<&Held>,
    line: &mut serde_json::Value,
) -> Result<Option<observe::Namespaces>, Error> {
    let enter = |held: &Held| {
        let failed = |source| Error::LocalKernel { layer: LayerName::Resources, call: "cgroup.procs", source };
        held.enter(pid).map_err(failed)
    };
    let mut namespaces = None;
    loop {
        match host.next(STAGE) {
            Ok(barrier::Stage::Namespaced) => {
                namespaces = Some(observe::namespaces(pid)?);
                held.map_or(Ok(()), enter)?;
                host.go()?;
            }
            Ok(barrier::Stage::Confined { report }) => line["inside"] = json!(report.layers),
            Ok(barrier::Stage::Failed { reason }) => {
                line["failed"] = json!(reason);
                return Ok(None);
            }
            Err(Error::PeerGone) if !line["inside"].is_null() => return Ok(namespaces),
            Ok(barrier::Stage::Ready) => return Err(Error::PeerMalformed),
            Err(error) => return Err(error),
        }
    }
}

// ---------------------------------------------------------------- the foreign program

fn foreign(act: &str, state: &Path) -> ExitCode {
    let mut byte = [0u8; 1];
    let _ = std::io::stdout().write_all(b"ready\n");
    let _ = std::io::stdin().read(&mut byte);
    match attempt(act, state) {
        Ok(()) => ExitCode::SUCCESS,
        Err(errno) => ExitCode::from(u8::try_from(REFUSED + errno).unwrap_or(u8::MAX)),
    }
}

fn attempt(act: &str, state: &Path) -> Result<(), i32> {
    if let Some(raw) = probe::named(act) {
        return probe::attempt(raw).map(drop);
    }
    if let Some(result) = memory::attempt(act) {
        return result.map(drop);
    }
    let done = match act {
        "nothing" => Ok(()),
        "variable" => match std::env::vars().collect::<Vec<_>>().as_slice() {
            [(name, value)] if name == "OPENRED_TEST" && value == "given" => Ok(()),
            _ => Err(std::io::ErrorKind::InvalidData.into()),
        },
        "descriptors" => match (3..256u64).find(|number| probe::attempt(get_flags(*number)).is_ok()) {
            None => Ok(()),
            Some(number) => Err(std::io::Error::from_raw_os_error(number as i32)),
        },
        "thread" => std::thread::Builder::new().spawn(|| ()).map(|thread| drop(thread.join())),
        "state" => use_state(state),
        "read-root" => std::fs::read_dir("/").map(drop),
        "read-passwd" => File::open("/etc/passwd").map(drop),
        "read-proc" => File::open("/proc/self/mem").map(drop),
        "read-runtime" => std::fs::read_dir("/usr/lib").map(drop),
        "write-runtime" => File::create("/usr/lib/openred-probe").map(drop),
        "exec" => Err(std::os::unix::process::CommandExt::exec(&mut std::process::Command::new("/bin/true"))),
        "exec-own-file" => return exec_own_file(state),
        "connect-tcp" => TcpStream::connect(("127.0.0.1", 1)).map(drop),
        "connect-abstract" => {
            SocketAddr::from_abstract_name("openred-nobody").and_then(|name| UnixStream::connect_addr(&name)).map(drop)
        }
        "connect-granted" => UnixStream::connect(state.with_file_name("granted").join("s")).map(drop),
        "connect-door" => UnixStream::connect(DOOR).map(drop),
        "read-granted" => std::fs::read(state.with_file_name("granted").join("file")).map(drop),
        "change-directory" => std::env::set_current_dir(state.with_file_name("granted")),
        "take-memory" => take_memory(),
        "take-cpu" => loop {
            std::hint::spin_loop();
        },
        "take-tasks" => take_tasks(),
        "take-descriptors" => take_descriptors(),
        "panic" => panic!("a literal of the test"),
        "hang" => loop {
            std::thread::park();
        },
        _ => Err(std::io::ErrorKind::InvalidInput.into()),
    };
    done.map_err(|error| error.raw_os_error().unwrap_or(5))
}

fn get_flags(number: u64) -> probe::Raw {
    ("fcntl", libc::SYS_fcntl, [number, libc::F_GETFD as u64, 0, 0, 0, 0], None)
}

fn use_state(state: &Path) -> std::io::Result<()> {
    let (first, second) = (state.join("a"), state.join("b"));
    std::fs::write(&first, b"text")?;
    std::fs::rename(&first, &second)?;
    assert_eq!(std::fs::read(&second)?, b"text");
    std::fs::remove_file(&second)
}

/// More and more, each page touched.
fn take_memory() -> std::io::Result<()> {
    let mut taken = Vec::new();
    loop {
        taken.push(vec![1u8; 1 << 20]);
        std::hint::black_box(&taken);
        // So fast that nobody looks in between, it would be the kernel's to refuse it.
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn take_tasks() -> std::io::Result<()> {
    let wait = || {
        loop {
            std::thread::park();
        }
    };
    loop {
        std::thread::Builder::new().stack_size(64 << 10).spawn(wait)?;
    }
}

fn take_descriptors() -> std::io::Result<()> {
    let mut taken = Vec::new();
    loop {
        taken.push(std::os::fd::AsFd::as_fd(&std::io::stdin()).try_clone_to_owned()?);
    }
}

/// Writes a program into its state, puts it at the number that the filter allows, and executes it.
fn exec_own_file(state: &Path) -> Result<(), i32> {
    let errno = |error: std::io::Error| error.raw_os_error().unwrap_or(5);
    let path = state.join("own");
    let file = File::create(&path).map_err(errno)?;
    file.set_permissions(Permissions::from_mode(0o755)).map_err(errno)?;
    drop(file);
    let file = File::open(&path).map_err(errno)?;
    let source = std::os::fd::AsRawFd::as_raw_fd(&file) as u64;
    probe::attempt(("dup2", libc::SYS_dup2, [source, PROGRAM, 0, 0, 0, 0], None))?;
    let name = c"".as_ptr() as u64;
    let start = [PROGRAM, name, 0, 0, libc::AT_EMPTY_PATH as u64, 0];
    probe::attempt(("execveat", libc::SYS_execveat, start, None)).map(drop)
}
