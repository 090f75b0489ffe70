//! One program in its cage. The thread that starts it waits for its end: the kernel ends a child together with that thread.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use openred_policy::launch::{DOOR, Launch, digest_of};
use openred_policy::limits::{Held, Limits, Resource, Usage, Ways};
use openred_policy::spawn::{Child, Exit};
use openred_policy::{Error, Identity, KeptPath, Layer, Role, barrier, observe};
use tokio::sync::{oneshot, watch};

use super::SandboxError;

/// The longest that the launcher may take for one stage on a loaded machine.
const STAGE: Duration = Duration::from_secs(60);
/// The end of what a program said that is kept.
const LOG_BYTES: usize = 64 * 1024;
/// Between two looks at a program with limits.
const LOOK: Duration = Duration::from_millis(50);
/// As root: uids that no node of this machine is likely to have, 64 for each test process.
const UIDS: u32 = 600_000;

pub(super) struct Plan {
    pub(super) launcher: PathBuf,
    pub(super) program: PathBuf,
    pub(super) name: String,
    pub(super) kept: Vec<KeptPath>,
    pub(super) limits: Option<Limits>,
}

/// A program that was started.
pub(super) struct Process {
    child: Arc<Child>,
    layers: Vec<Layer>,
    values: Mutex<Option<File>>,
    log: Arc<Mutex<Vec<u8>>>,
    broke: Arc<Mutex<Option<Resource>>>,
    ended: watch::Receiver<Option<Exit>>,
}

type Begun = (Arc<Child>, Vec<Layer>);
type Broke = Mutex<Option<Resource>>;

impl Process {
    /// Starts it, and waits until it runs in its cage.
    pub(super) async fn start(plan: Plan) -> Result<Self, SandboxError> {
        let (input, values) = pipe()?;
        let (words, output) = pipe()?;
        let log = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&log);
        std::thread::spawn(move || keep(words, &kept));
        let (begun, started) = oneshot::channel();
        let (ended, hears) = watch::channel(None);
        let broke = Arc::new(Broke::default());
        let breach = Arc::clone(&broke);
        std::thread::spawn(move || run(&plan, input, output, begun, (&ended, &breach)));
        let started = started.await.unwrap_or_else(|_| Err(SandboxError::Refused("its thread ended".to_owned())));
        let (child, layers) = started.map_err(|error| with_words(error, &log))?;
        Ok(Self { child, layers, values: Mutex::new(Some(values)), log, broke, ended: hears })
    }

    pub(super) fn layers(&self) -> &[Layer] {
        &self.layers
    }

    pub(super) fn broke(&self) -> Option<Resource> {
        *self.broke.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn log(&self) -> String {
        text(&self.log)
    }

    /// Writes a value to its descriptor 0.
    pub(super) fn give(&self, value: &[u8]) -> io::Result<()> {
        match &*self.values.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(file) => {
                let mut file: &File = file;
                file.write_all(value)
            }
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    pub(super) fn close_pipe(&self) {
        self.values.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    pub(super) fn kill(&self) {
        // One that has ended needs no signal.
        let _ = self.child.signal(Signal::SIGKILL);
    }

    pub(super) async fn ended(&self) -> Exit {
        let mut ended = self.ended.clone();
        let exit = ended.wait_for(Option::is_some).await.ok().and_then(|exit| *exit);
        exit.unwrap_or(Exit::Signal(0))
    }
}

fn pipe() -> Result<(File, File), SandboxError> {
    let made = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC);
    let made = made.map_err(|errno| SandboxError::Local { what: "a pipe".to_owned(), source: errno.into() })?;
    Ok((made.0.into(), made.1.into()))
}

fn text(log: &Mutex<Vec<u8>>) -> String {
    String::from_utf8_lossy(&log.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
}

fn with_words(error: SandboxError, log: &Mutex<Vec<u8>>) -> SandboxError {
    match error {
        SandboxError::Refused(reason) => {
            SandboxError::Refused(format!("{reason} {}", text(log).trim()).trim().to_owned())
        }
        SandboxError::Ended(exit, _) => SandboxError::Ended(exit, text(log)),
        other => other,
    }
}

/// Keeps the end of what it says.
fn keep(mut words: File, log: &Mutex<Vec<u8>>) {
    let mut piece = [0; 4096];
    while let Ok(count @ 1..) = words.read(&mut piece) {
        let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
        log.extend_from_slice(&piece[..count]);
        let surplus = log.len().saturating_sub(LOG_BYTES);
        log.drain(..surplus);
    }
}

/// The thread's work: the child's life.
fn run(
    plan: &Plan,
    input: File,
    output: File,
    begun: oneshot::Sender<Result<Begun, SandboxError>>,
    (ended, broke): (&watch::Sender<Option<Exit>>, &Broke),
) {
    let (child, layers, held) = match begin(plan, input, output) {
        Ok((child, layers, held)) => (Arc::new(child), layers, held),
        Err(error) => return drop(begun.send(Err(error))),
    };
    if begun.send(Ok((Arc::clone(&child), layers))).is_err() {
        let _ = child.signal(Signal::SIGKILL);
    }
    let exit = match held {
        None => child.wait().ok().flatten().unwrap_or(Exit::Signal(0)),
        Some(held) => look(&child, &held, broke),
    };
    ended.send_replace(Some(exit));
}

/// Looks at a program with limits until it has ended; one that breaks a limit is killed.
fn look(child: &Child, held: &Held, broke: &Broke) -> Exit {
    let mut usage = Usage::default();
    loop {
        match child.try_wait() {
            Ok(Some(exit)) => return exit,
            Ok(None) => {}
            Err(_) => return Exit::Signal(0),
        }
        if let Some(broken) = usage.look(held, child.pid(), Instant::now()) {
            broke.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(broken);
            let _ = child.signal(Signal::SIGKILL);
        }
        std::thread::sleep(LOOK);
    }
}

fn begin(plan: &Plan, input: File, output: File) -> Result<(Child, Vec<Layer>, Option<Held>), SandboxError> {
    let local = |source| SandboxError::Local { what: plan.program.display().to_string(), source };
    let own = observe::Baseline::of_this_process()?;
    let digest = digest_of(&File::open(&plan.program).map_err(local)?).map_err(local)?;
    let file = File::open(&plan.program).map_err(local)?;
    let length = file.metadata().map_err(local)?.len();
    let hold = |limits| Ways::without_groups().hold(&plan.name, limits, length).map_err(local);
    let held = plan.limits.map(hold).transpose()?;
    let null = File::options().write(true).open("/dev/null").map_err(local)?;
    let identity = identity();
    let mut launch = Launch::new(&plan.launcher, file, digest, &plan.name)?.identity(identity)?;
    launch = plan.kept.iter().cloned().fold(launch, Launch::keep).argument(DOOR);
    for (name, value) in [("OPENRED_LOG", "debug"), ("RUST_BACKTRACE", "0")] {
        launch = launch.variable(name, value);
    }
    if let Some(held) = &held {
        launch = launch.limits(held);
    }
    launch = launch.descriptor(input)?.descriptor(null)?.descriptor(output)?;
    let expected = observe::Expected { identity, kept: plan.kept.clone() };
    let (child, host) = launch.start()?;
    match stages(&host, &child, &own, &expected) {
        Ok(layers) => Ok((child, layers, held)),
        Err(error) => {
            // One that is done already cannot be looked at: that it ended says more.
            let by_itself = child.try_wait().ok().flatten();
            let _ = child.signal(Signal::SIGKILL);
            let _ = child.wait();
            match (error, by_itself) {
                (SandboxError::Cage(_), Some(exit)) => Err(SandboxError::Ended(exit.to_string(), String::new())),
                (error, _) => Err(error),
            }
        }
    }
}

fn stages(
    host: &barrier::Host,
    child: &Child,
    own: &observe::Baseline,
    expected: &observe::Expected,
) -> Result<Vec<Layer>, SandboxError> {
    let (mut namespaces, mut layers) = (None, Vec::new());
    loop {
        match host.next(STAGE) {
            Ok(barrier::Stage::Namespaced) => {
                namespaces = Some(observe::namespaces(child.pid())?);
                host.go()?;
            }
            Ok(barrier::Stage::Confined { .. }) => {
                let seen = namespaces.take().ok_or(Error::PeerMalformed)?;
                let seen = observe::observe(child.pid(), seen)?;
                layers = observe::compare(Role::Module, &seen, own, expected);
                if let Some(off) = layers.iter().find(|layer| !layer.ok) {
                    return Err(SandboxError::Layer(off.name.to_string()));
                }
            }
            Ok(barrier::Stage::Failed { reason }) => return Err(SandboxError::Refused(reason)),
            // The launcher has become the program.
            Err(Error::PeerGone) if !layers.is_empty() => return Ok(layers),
            Ok(barrier::Stage::Ready) => return Err(Error::PeerMalformed.into()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// As root, a uid of its own.
fn identity() -> Option<Identity> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let uid = UIDS + std::process::id() % 4096 * 64 + NEXT.fetch_add(1, Ordering::Relaxed) % 64;
    nix::unistd::geteuid().is_root().then_some(Identity { uid, gid: uid })
}
