//! Test program of this crate: confines itself as a role, says so on the barrier, then tries one act. It is also the
//! supervisor of the test, so that the same run works for root and for an ordinary user. Not installed.
//!
//! `supervise ROLE ACT STATE SOCKETS UID` starts itself as `caged …` and prints one JSON line: what was seen from outside,
//! and how the child ended. `ROLE` may be `none`: no cage, the control of every probe. Exit code of a child: 0 the act
//! worked, 100 + errno the kernel refused it, 99 it did not get into its cage.
//!
//! An act is tried in the whole cage; `separated:ACT` and `restricted:ACT` try it on the way there, where the filter is not on and
//! what refuses is another layer; `thread:ACT` in a thread that is older than the filter; `without:SHIM` confines itself on a
//! kernel that lacks something (`probe::shim`).

#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs, UdpSocket};
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use openred_policy::probe::memory::{self, Reading};
use openred_policy::probe::shim;
use openred_policy::probe::shim::Lack;
use openred_policy::spawn::{SpawnSpec, spawn};
use openred_policy::{
    Cage, Descriptors, Error, Identity, KeptPath, Layer, LayerName, Role, Unconfined, barrier, observe, poll, probe,
};
use serde_json::json;

/// The longest that a child may take for one stage on a loaded machine.
const STAGE: Duration = Duration::from_secs(30);
/// Bytes that a thread holds while it waits: below what the C library maps by itself.
const HELD: usize = 4096;
/// Added to an errno to make an exit code.
const REFUSED: i32 = 100;

pub(crate) fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, mode, role, act, state, sockets, uid] = arguments.as_slice() else { return ExitCode::from(64) };
    let places = Places { state: state.into(), sockets: sockets.into() };
    match mode.as_str() {
        "caged" => caged(named_role(role), act, &places),
        _ => match supervise(role, act, &places, uid) {
            Ok(line) => {
                let _ = writeln!(std::io::stdout(), "{line}");
                ExitCode::SUCCESS
            }
            Err(error) => {
                let _ = writeln!(std::io::stderr(), "{error}");
                ExitCode::FAILURE
            }
        },
    }
}

struct Places {
    state: PathBuf,
    sockets: PathBuf,
}

impl Places {
    fn kept(&self, role: Role) -> Vec<KeptPath> {
        match role.keeps_network() {
            true => vec![KeptPath::writable(&self.state), KeptPath::readable(&self.sockets)],
            false => Vec::new(),
        }
    }
}

fn named_role(name: &str) -> Option<Role> {
    Role::CAGED.into_iter().find(|role| role.name() == name)
}

// ---------------------------------------------------------------- outside

fn supervise(role: &str, act: &str, places: &Places, uid: &str) -> Result<serde_json::Value, Error> {
    let identity = uid.parse().ok().map(|uid| Identity { uid, gid: uid });
    // Wider than any child's, so that a child that does not set its own is seen.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    if let Some((.., lack)) = shim_of(act).filter(early) {
        take_away(lack);
    }
    let own = observe::Baseline::of_this_process()?;
    let (host, child_barrier) = barrier::Host::pair()?;
    let failed = |source| Error::LocalKernel { layer: LayerName::Spawn, call: "prepare", source };
    let null = File::options().read(true).write(true).open("/dev/null").map_err(failed)?;
    let state = File::create(places.state.join(format!("slot.{}", std::process::id()))).map_err(failed)?;
    let (wait_for, let_go) = std::io::pipe().map_err(failed)?;
    let program = std::env::current_exe().map_err(failed)?;
    let program = if role == "vault" { program.with_file_name("openred-cage-probe-vault") } else { program };
    let mut spec = SpawnSpec::new(program)?.identity(identity)?;
    for argument in ["caged", role, act] {
        spec = spec.argument(argument)?;
    }
    spec = spec.argument(&places.state)?.argument(&places.sockets)?.argument(uid)?;
    let spec = spec.descriptor(&null)?.descriptor(&null)?.descriptor(std::io::stderr())?;
    let child = spawn(spec.descriptor(&child_barrier)?.descriptor(&state)?.descriptor(&wait_for)?)?;
    drop((child_barrier, wait_for));
    let role = named_role(role);
    let expected = observe::Expected { identity, kept: role.map(|role| places.kept(role)).unwrap_or_default() };
    let mut seen = Seen::default();
    let failed = stages(&host, child.pid(), role, (&own, &expected), &mut seen).err().map(|error| error.to_string());
    if act == "canary" {
        seen.hunted = [Reading::File, Reading::Call].map(|reading| memory::hunt(child.pid(), reading)).to_vec();
    }
    if act == "dump" {
        memory::allow_dump(child.pid());
    }
    if act == "hang" {
        // The supervisor ends without a word: the child, which waits in its act, must end with it.
        drop(let_go);
        return Ok(json!({"pid": child.pid()}));
    }
    drop(let_go);
    let dumped = memory::was_dumped(child.pid());
    let exit = child.wait()?.map(|exit| exit.to_string());
    let mut line = json!({"exit": exit, "failed": failed, "outside": seen.outside, "inside": seen.inside});
    line["dumped"] = json!(dumped);
    line["confined"] = json!(!seen.inside.is_empty());
    line["hunted"] = seen.hunted.iter().map(|found| json!([found.as_ref().ok(), found.as_ref().err()])).collect();
    line["interfaces"] = json!(seen.interfaces);
    line["mappings"] = json!([seen.mappings.executable, seen.mappings.writable_and_executable, seen.mappings.sealed]);
    line["heaps"] = json!(seen.mappings.heaps);
    Ok(line)
}

#[derive(Default)]
struct Seen {
    outside: Vec<Layer>,
    inside: Vec<Layer>,
    interfaces: Vec<String>,
    mappings: memory::Mappings,
    /// What a search of its memory found, by each way to read it.
    hunted: Vec<Result<usize, i32>>,
}

fn stages(
    host: &barrier::Host,
    pid: i32,
    role: Option<Role>,
    (own, expected): (&observe::Baseline, &observe::Expected),
    seen: &mut Seen,
) -> Result<(), Error> {
    let Some(role) = role else { return Ok(()) };
    let failed = |source| Error::LocalKernel { layer: LayerName::MemoryExec, call: "read smaps", source };
    let mut noted = None;
    loop {
        match host.next(STAGE)? {
            barrier::Stage::Namespaced => {
                // Opened while it is dumpable; what is read later is what is mapped then.
                noted = Some((observe::namespaces(pid)?, File::open(format!("/proc/{pid}/smaps")).map_err(failed)?));
                host.go()?;
            }
            barrier::Stage::Confined { report } => seen.inside = report.layers,
            barrier::Stage::Ready => {
                let (namespaces, mut smaps) = noted.ok_or(Error::PeerMalformed)?;
                let observation = observe::observe(pid, namespaces)?;
                seen.interfaces = observation.usable_interfaces().into_iter().map(str::to_owned).collect();
                seen.outside = observe::compare(role, &observation, own, expected);
                let mut text = String::new();
                smaps.read_to_string(&mut text).map_err(failed)?;
                seen.mappings = memory::mappings(&text);
                return Ok(());
            }
            barrier::Stage::Failed { reason } => {
                let _ = std::io::stderr().write_all(format!("{reason}\n").as_bytes());
                return Err(Error::PeerGone);
            }
        }
    }
}

// ---------------------------------------------------------------- inside

fn caged(role: Option<Role>, act: &str, places: &Places) -> ! {
    let files = match role {
        Some(role) => confine(role, act, places),
        None => uncaged(),
    };
    let (state, go, waiting) = match files {
        Ok(files) => files,
        Err(error) => {
            // In one piece: the supervisor writes there too.
            let _ = std::io::stderr().write_all(format!("{error}\n").as_bytes());
            openred_policy::exit(99)
        }
    };
    let mut end = [0u8; 1];
    let _ = (&go).read(&mut end); // returns when the supervisor has looked
    let act = act.split_once(':').map_or(act, |(phase, rest)| if phase == "signal" { act } else { rest });
    leave(match waiting {
        Some(thread) => thread.attempt(),
        None => attempt(act, role, &state, places),
    })
}

fn leave(result: Result<(), i32>) -> ! {
    openred_policy::exit(result.map_or_else(|errno| REFUSED + errno, |()| 0))
}

fn confine(role: Role, act: &str, places: &Places) -> Result<(File, File, Option<Waiting>), Error> {
    let phase = |name: &str| act.strip_prefix(name)?.strip_prefix(':');
    let lack = shim_of(act).filter(|found| !early(found)).map(|(.., lack)| lack);
    lack.into_iter().for_each(take_away);
    let mut start = Unconfined::enter(role, Descriptors::Exactly(&[0, 1, 2, 3, 4, 5]))?;
    let barrier = start.barrier(3)?;
    let (state, go) = (File::from(start.take(4)?), File::from(start.take(5)?));
    if matches!(lack, Some(Lack::OneThread)) {
        std::mem::forget(Waiting::new(""));
    }
    let cage = places.kept(role).into_iter().fold(Cage::new(role, Identity::from_env()?), Cage::keep);
    let mut waiting = None;
    let confined = (|| {
        let separated = start.separate(&cage)?;
        barrier.namespaced()?;
        if let Some(act) = phase("separated") {
            leave(attempt(act, Some(role), &state, places));
        }
        let restricted = separated.restrict()?;
        if let Some(act) = phase("restricted") {
            leave(attempt(act, Some(role), &state, places));
        }
        waiting = phase("thread").map(Waiting::new);
        if act == "canary" {
            memory::plant();
        }
        restricted.seal()
    })()
    .inspect_err(|error| barrier.failed(error))?;
    barrier.confined(confined.report())?;
    barrier.ready()?;
    std::mem::forget(barrier); // stays open, as in a daemon
    Ok((state, go, waiting))
}

/// A thread that makes one call when it is told to.
struct Waiting {
    tell: std::sync::mpsc::SyncSender<()>,
    thread: std::thread::JoinHandle<Result<(), i32>>,
}

impl Waiting {
    fn new(act: &str) -> Self {
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let raw = probe::named(act);
        let (say, said) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::spawn(move || {
            // What a thread holds lies in its own heap, where it has one.
            let held = std::hint::black_box(vec![1u8; HELD]);
            let _ = say.send(());
            let outcome = match (told.recv(), raw) {
                (Ok(()), Some(raw)) => probe::attempt(raw).map(drop),
                _ => Err(0),
            };
            drop(held);
            outcome
        });
        let _ = said.recv();
        Self { tell, thread }
    }

    fn attempt(self) -> Result<(), i32> {
        let _ = self.tell.send(());
        self.thread.join().unwrap_or(Err(0))
    }
}

fn shim_of(act: &str) -> Option<shim::Shim> {
    shim::named(act.strip_prefix("without:")?)
}

/// Whether the shim is put on before the child exists: the arena is mapped before its `main`, and a shim for the filter is itself one
/// more filter, which the supervisor's look must not take for the missing one.
fn early((_, layer, ..): &shim::Shim) -> bool {
    matches!(layer, LayerName::Arena | LayerName::Seccomp)
}

/// Makes this process one on a kernel that lacks something.
fn take_away(lack: Lack) {
    let done = match lack {
        Lack::Call(number, conditions, errno) => shim::answer(number, conditions, errno),
        Lack::Untraced => probe::named("ptrace").is_some_and(|raw| probe::attempt(raw).is_ok()),
        Lack::Clock => shim::without_time_stamps(),
        Lack::Descriptors => File::open("/dev/null").map(std::mem::forget).is_ok(),
        Lack::OneThread => true, // later: the checks of the start fork
    };
    assert!(done, "the shim could not be put on");
}

fn uncaged() -> Result<(File, File, Option<Waiting>), Error> {
    let own = |number: i32| File::options().read(true).write(number == 4).open(format!("/proc/self/fd/{number}"));
    let failed = |source| Error::LocalKernel { layer: LayerName::Descriptors, call: "open", source };
    Ok((own(4).map_err(failed)?, own(5).map_err(failed)?, None))
}

/// The errno of an error; what has none (a name that does not resolve) counts as EIO.
fn errno(error: &std::io::Error) -> i32 {
    error.raw_os_error().unwrap_or(5)
}

fn attempt(act: &str, role: Option<Role>, state: &File, places: &Places) -> Result<(), i32> {
    if let Some(raw) = probe::named(act) {
        return probe::attempt(raw).map(drop);
    }
    if let Some(pid) = act.strip_prefix("signal:").and_then(|pid| pid.parse().ok()) {
        return probe::attempt(probe::signal(pid)).map(drop);
    }
    // Ends this process, if it is one of these.
    memory::cleared_by(act, REFUSED + 1);
    if let Some(result) = memory::attempt(act) {
        return result.map(drop);
    }
    let done = match act {
        "nothing" | "canary" => Ok(()),
        _ if shim_of(act).is_some() || shim::named(act).is_some() => Ok(()),
        "panic" => panic!("a literal of the test"),
        "panic-formatted" => panic!("{act} must not be printed"),
        "abort" => std::process::abort(),
        "dump" => {
            // Outside a cage, where it is written.
            let _ = role.is_none().then(|| std::env::set_current_dir(&places.state));
            memory::plant();
            std::process::abort()
        }
        "overflow" => overflow(&mut [0; 4096]).map(drop),
        "hang" => poll::wait(&mut [], None).map(drop),
        "exit-7" => openred_policy::exit(7),
        "allocate" => allocate(),
        "service" => service(role, state),
        "exec" => Err(std::os::unix::process::CommandExt::exec(&mut std::process::Command::new("/bin/true"))),
        "exec-kept" => {
            Err(std::os::unix::process::CommandExt::exec(&mut std::process::Command::new(places.state.join("true"))))
        }
        "connect-loopback" => TcpStream::connect(("127.0.0.1", 1)).map(drop),
        "udp" => UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.send_to(b"x", "127.0.0.1:9")).map(drop),
        "read-root" => std::fs::read_dir("/").map(drop),
        "read-passwd" => File::open("/etc/passwd").map(drop),
        "thread" => std::thread::Builder::new()
            .spawn(|| ())
            .and_then(|thread| thread.join().map_err(|_| ErrorKind::Other.into())),
        "state" => use_state(&places.state),
        "write-sockets" => File::create(places.sockets.join("new")).map(drop),
        "make-socket" => std::os::unix::net::UnixListener::bind(places.state.join("s")).map(drop),
        "connect-kept" => UnixStream::connect(places.sockets.join("service.sock")).map(drop),
        "connect-abstract" => SocketAddr::from_abstract_name(abstract_name(places))
            .and_then(|name| UnixStream::connect_addr(&name))
            .map(drop),
        "connect-tcp" => connect_tcp(places),
        "resolve" => ("localhost", 80).to_socket_addrs().map(drop),
        _ => Err(ErrorKind::InvalidInput.into()),
    };
    done.map_err(|error| errno(&error))
}

fn abstract_name(places: &Places) -> Vec<u8> {
    format!("openred-probe{}", places.sockets.display()).into_bytes()
}

/// The test writes the port of its listener into the directory of sockets.
fn connect_tcp(places: &Places) -> std::io::Result<()> {
    let port = std::fs::read_to_string(places.sockets.join("port"))?;
    let port: u16 = port.trim().parse().map_err(|_| ErrorKind::InvalidData)?;
    TcpStream::connect(("127.0.0.1", port)).map(drop)
}

#[expect(unconditional_recursion, reason = "this is the act: the stack must end in the process's own signal")]
fn overflow(buffer: &mut [u8; 4096]) -> std::io::Result<u8> {
    let mut next = *buffer;
    next[0] = next[0].wrapping_add(1);
    let deeper = overflow(&mut next)?;
    Ok(deeper.wrapping_add(next[0]))
}

/// Small, large and growing blocks, as a runtime makes them.
fn allocate() -> std::io::Result<()> {
    let blocks: Vec<Vec<u8>> = (0..64).map(|step| vec![step as u8; 1 << (step % 18)]).collect();
    let mut growing = Vec::new();
    for block in &blocks {
        growing.extend_from_slice(block);
    }
    std::hint::black_box(growing);
    Ok(())
}

/// What the role does all day with its state: each must work under its filter.
fn service(role: Option<Role>, state: &File) -> std::io::Result<()> {
    allocate()?;
    let _ = (std::time::Instant::now(), std::time::SystemTime::now());
    if role == Some(Role::Front) {
        return Ok(()); // it has no file
    }
    if role != Some(Role::Unseal) {
        state.write_all_at(b"slot", 0)?;
    }
    state.sync_data()?;
    if role == Some(Role::Vault) {
        poll::wait(&mut [poll::PollFd::new(state.as_fd(), poll::PollFlags::POLLIN)], Some(Duration::ZERO))?;
    }
    Ok(())
}

fn use_state(directory: &Path) -> std::io::Result<()> {
    let (first, second) = (directory.join("a"), directory.join("b"));
    let mut file = File::options().create(true).truncate(true).read(true).write(true).open(&first)?;
    file.write_all(b"text")?;
    file.lock()?;
    file.set_len(2)?;
    file.sync_all()?;
    std::fs::rename(&first, &second)?;
    assert_eq!(std::fs::read(&second)?, b"te");
    std::fs::create_dir(directory.join("d"))?;
    assert!(std::fs::read_dir(directory)?.count() >= 2);
    std::fs::remove_dir(directory.join("d"))?;
    std::fs::remove_file(&second)
}
