//! One child from start to service: the barrier's conversation, the look from outside, and its end.
//!
//! A child is believed nothing: it goes on past the barrier when its namespaces are noted, and nobody reaches it before
//! what is seen of it equals its manifest.

use std::fs::File;
use std::io::{self, Seek as _};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::signal::Signal;
use openred_policy::barrier::{Admission, Host, Stage};
use openred_policy::launch::{Launch, digest_of};
use openred_policy::limits::{Held, Ways};
use openred_policy::observe::{Expected, namespaces};
use openred_policy::spawn::{Child, Exit, SpawnSpec, spawn};
use openred_policy::{Identity, KeptPath, Layer, Role};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::board::{Board, Cage, owned};
use super::callers::Callers;
use super::errand::Moved;
use super::log::Log;

/// What bounds the C library's resolver, which `noded` asks for its directories' names before it says that it is confined: a resolver
/// that is away costs seconds, not the whole of the time that a start may take (resolv.conf(5)).
const RESOLVER: &str = "timeout:2 attempts:1";
/// scrypt reads its 64 MiB at random: in pages of 4 KiB nearly each read also misses the processor's table of pages. Another C
/// library, or a kernel without large pages, does without.
const LARGE_PAGES: &str = "glibc.malloc.hugetlb=1";
/// Longest that the last line of one that has ended is waited for.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Longest a stage may take, on a loaded machine.
const STAGE: Duration = Duration::from_secs(60);

/// Why a child does not serve. Each text is one line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// The kernel refused something to the supervisor.
    #[error("{role}: {source}")]
    Local {
        role: Role,
        #[source]
        source: openred_policy::Error,
    },
    /// The child gave up and said why.
    #[error("{role}: {reason}")]
    Refused { role: Role, reason: Reason, exit: Option<Exit> },
    /// It ended without a word.
    #[error("{role} ended at start: {exit}")]
    Ended { role: Role, exit: Exit },
    /// It said something out of turn, or nothing in time.
    #[error("{role}: no answer at the barrier within {} s", .limit.as_secs())]
    Silent { role: Role, limit: Duration },
    /// It did its work for longer than any may take, and was killed.
    #[error("{role}: no end within {} s; it was killed", .limit.as_secs())]
    Late { role: Role, limit: Duration },
    /// It moved nothing of a stream for longer than any may, and was killed.
    #[error("{role}: nothing moved for {} s; it was killed", .limit.as_secs())]
    Stalled { role: Role, limit: Duration },
    /// A layer is not as the manifest wants it.
    #[error("{role}: layer {}: expected {}, seen {}; {}", .layer.name, .layer.expected, .layer.seen, .layer.name.way_out())]
    Layer { role: Role, layer: Box<Layer> },
    /// What it is to run is not there, or cannot be opened.
    #[error("{role}: its program {}: {source}; {way_out}", .place.display())]
    Program {
        role: Role,
        place: PathBuf,
        way_out: String,
        #[source]
        source: io::Error,
    },
    /// Sockets, pipes and files of the supervisor's own.
    #[error("{role}: {what}: {source}")]
    Setup {
        role: Role,
        what: &'static str,
        #[source]
        source: io::Error,
    },
}

/// A child's last line, as it said it.
#[derive(Debug)]
pub(crate) struct Reason(String);

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&crate::cli::one_line(&self.0))
    }
}

impl Fault {
    /// How the child ended, if it is known.
    pub(crate) fn exit(&self) -> Option<Exit> {
        match self {
            Fault::Refused { exit, .. } => *exit,
            Fault::Ended { exit, .. } => Some(*exit),
            _ => None,
        }
    }

    /// Whether it did not end by itself.
    pub(crate) fn is_late(&self) -> bool {
        matches!(self, Fault::Late { .. } | Fault::Stalled { .. })
    }
}

/// A child that stands behind its barrier, caged as its manifest says.
pub(crate) struct Caged {
    pub(crate) role: Role,
    host: AsyncFd<Host>,
    child: AsyncFd<Child>,
    /// Passes on what it prints, until nobody can print any more.
    words: JoinHandle<()>,
    started: Instant,
}

/// A child that is to be started: descriptors 0 to 3 are the same for all and added here.
pub(crate) struct Plan {
    pub(crate) role: Role,
    pub(crate) program: &'static str,
    pub(crate) arguments: Vec<std::ffi::OsString>,
    pub(crate) identity: Option<Identity>,
    pub(crate) kept: Vec<KeptPath>,
    /// From number 4 on.
    pub(crate) descriptors: Vec<std::os::fd::OwnedFd>,
}

/// What starting a child takes.
pub(crate) struct Starter {
    /// The folder of `openred` and of all its programs.
    pub(crate) programs: PathBuf,
    /// `/dev/null`.
    pub(crate) null: File,
    pub(crate) board: Arc<Board>,
    pub(crate) log: Log,
    /// What holds the modules' limits.
    pub(crate) ways: Arc<Ways>,
    pub(super) callers: Callers,
}

impl Starter {
    /// The same for a thread of its own, on which nobody is started whom the front would have to know.
    pub(super) fn beside(&self) -> io::Result<Self> {
        let (board, log) = (Arc::clone(&self.board), self.log.clone());
        let null = self.null.try_clone()?;
        let ways = Arc::clone(&self.ways);
        Ok(Self { programs: self.programs.clone(), null, board, log, ways, callers: Callers::default() })
    }
}

/// Starts a child and brings it behind its barrier with every layer seen.
pub(crate) async fn start(starter: &Starter, plan: Plan) -> Result<Caged, Fault> {
    let (role, expected) = (plan.role, Expected { identity: plan.identity, kept: plan.kept.clone() });
    let mut caged = launch(starter, plan)?;
    let cage = confined(starter, &mut caged, expected, None).await?;
    starter.board.caged(role, cage);
    Ok(caged)
}

/// The conversation at the barrier, up to a cage that is as its manifest says.
async fn confined(
    starter: &Starter,
    caged: &mut Caged,
    expected: Expected,
    held: Option<Arc<Held>>,
) -> Result<Cage, Fault> {
    let role = caged.role;
    let noted = match caged.next().await? {
        Stage::Namespaced => namespaces(caged.pid()).map_err(|source| Fault::Local { role, source })?,
        other => return Err(caged.out_of_turn(other).await),
    };
    if role == Role::Noded {
        let named = starter.callers.noded(caged.child.get_ref());
        named.map_err(|source| Fault::Setup { role, what: "naming it to the front", source })?;
    }
    if let Some(held) = &held {
        // Its program's copy is made, and nothing of it has run.
        let entered = held.enter(caged.pid());
        entered.map_err(|source| Fault::Setup { role, what: "holding it to its limits", source })?;
    }
    caged.host.get_ref().go().map_err(|source| Fault::Local { role, source })?;
    let report = match caged.next().await? {
        Stage::Confined { report } => report,
        other => return Err(caged.out_of_turn(other).await),
    };
    let looked = starter.board.look(role, caged.pid(), &noted, &expected);
    let (seen, mut layers) = match looked {
        Ok(seen) => seen,
        Err(source) => return Err(caged.ended_or(Fault::Local { role, source }).await),
    };
    layers.extend(held.as_ref().map(|held| held.layer(caged.pid())));
    if let Some(layer) = layers.iter().chain(&report.layers).find(|layer| !layer.ok) {
        let layer = Box::new(layer.clone());
        return Err(caged.ended_or(Fault::Layer { role, layer }).await);
    }
    let interfaces = owned(&seen.usable_interfaces());
    Ok(Cage { pid: caged.pid(), namespaces: noted, expected, layers, report, interfaces, held })
}

/// A module's program to start: it does not confine itself, the launcher does.
pub(crate) struct ModulePlan {
    /// What its program must be; unless it comes with the node.
    pub(crate) digest: Option<openred_policy::launch::Digest>,
    /// Its id, which names its lines in the log.
    pub(crate) name: &'static str,
    /// As the board has it.
    pub(crate) label: String,
    /// Its name in the list of processes.
    pub(crate) program: std::ffi::OsString,
    pub(crate) file: File,
    pub(crate) arguments: Vec<std::ffi::OsString>,
    pub(crate) variables: Vec<(&'static str, &'static str)>,
    pub(crate) identity: Option<Identity>,
    pub(crate) kept: Vec<KeptPath>,
    /// Its descriptor 0.
    pub(crate) input: std::os::fd::OwnedFd,
    pub(crate) held: Arc<Held>,
}

/// Starts a module through the launcher and brings it into its cage with every layer seen; then it runs.
pub(crate) async fn start_module(starter: &Starter, plan: ModulePlan) -> Result<Caged, Fault> {
    let (label, expected) = (plan.label.clone(), Expected { identity: plan.identity, kept: plan.kept.clone() });
    let held = Arc::clone(&plan.held);
    let mut caged = launch_module(starter, plan)?;
    let cage = confined(starter, &mut caged, expected, Some(held)).await?;
    caged.executed().await?;
    starter.board.module_caged(&label, cage);
    Ok(caged)
}

fn launch_module(starter: &Starter, plan: ModulePlan) -> Result<Caged, Fault> {
    let role = Role::Module;
    let setup = |what| move |source: io::Error| Fault::Setup { role, what, source };
    let local = |source| Fault::Local { role, source };
    let (log, log_end) =
        nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from).map_err(setup("the log pipe"))?;
    let digest = match plan.digest {
        Some(digest) => digest,
        // It lies beside this program, or was kept from there, and whoever can change the one can change the other: what is held fast is
        // that the launcher runs what was opened here.
        None => digest_of(&plan.file).map_err(setup("its program"))?,
    };
    (&plan.file).rewind().map_err(setup("its program"))?;
    let build = || {
        let launch = Launch::new(&starter.programs.join("openred-launch"), &plan.file, digest, &plan.program)?;
        let launch = plan.arguments.iter().fold(launch, Launch::argument);
        let launch = plan.variables.iter().fold(launch, |launch, (name, value)| launch.variable(name, value));
        let launch = plan.kept.iter().cloned().fold(launch, Launch::keep);
        let launch = launch.limits(&plan.held).identity(plan.identity)?;
        launch.descriptor(&plan.input)?.descriptor(&starter.null)?.descriptor(&log_end)?.start()
    };
    let (child, host) = build().map_err(local)?;
    let words = starter.board.journal.of(plan.name);
    let words = tokio::spawn(starter.log.clone().forward_module(plan.name, words, log));
    let watched =
        watch(host).and_then(|host| Ok(Caged { role, host, child: watch(child)?, words, started: Instant::now() }));
    watched.map_err(setup("watching the child"))
}

fn launch(starter: &Starter, plan: Plan) -> Result<Caged, Fault> {
    let role = plan.role;
    let setup = |what| move |source: io::Error| Fault::Setup { role, what, source };
    let (log, log_end) =
        nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(io::Error::from).map_err(setup("the log pipe"))?;
    let local = |source| Fault::Local { role, source };
    let (host, barrier) = Host::pair().map_err(local)?;
    let build = || {
        let mut spec = SpawnSpec::new(starter.programs.join(plan.program))?.identity(plan.identity)?;
        let variable = match plan.role {
            Role::Noded => Some(("RES_OPTIONS", RESOLVER)),
            Role::Unseal => Some(("GLIBC_TUNABLES", LARGE_PAGES)),
            _ => None,
        };
        if let Some((name, value)) = variable {
            spec = spec.variable(name, value)?;
        }
        for argument in &plan.arguments {
            spec = spec.argument(argument)?;
        }
        spec = spec.descriptor(&starter.null)?.descriptor(&starter.null)?.descriptor(&log_end)?.descriptor(&barrier)?;
        plan.descriptors.iter().try_fold(spec, |spec, descriptor| spec.descriptor(descriptor))
    };
    let child = build().and_then(spawn).map_err(local)?;
    let words = tokio::spawn(starter.log.clone().forward(role.name(), log));
    let watched =
        watch(host).and_then(|host| Ok(Caged { role, host, child: watch(child)?, words, started: Instant::now() }));
    watched.map_err(setup("watching the child"))
}

#[allow(deprecated, reason = "both own one descriptor for life and always name it; the successor needs unsafe code")]
fn watch<T: AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(inner, Interest::READABLE)
}

impl Caged {
    pub(crate) fn pid(&self) -> i32 {
        self.child.get_ref().pid()
    }

    /// For telling it who may connect.
    pub(super) fn admission(&self) -> Result<Admission, Fault> {
        self.host.get_ref().admission().map_err(|source| Fault::Local { role: self.role, source })
    }

    /// How long it has lived.
    pub(crate) fn lived(&self) -> Duration {
        self.started.elapsed()
    }

    /// Its next word; a fault that names how it ended when there is none.
    async fn next(&mut self) -> Result<Stage, Fault> {
        self.next_within(STAGE).await
    }

    async fn next_within(&mut self, limit: Duration) -> Result<Stage, Fault> {
        let role = self.role;
        let word = timeout(limit, async {
            loop {
                let mut ready = self.host.readable().await.ok()?;
                match self.host.get_ref().try_next() {
                    Ok(Some(stage)) => return Some(stage),
                    Ok(None) => ready.clear_ready(),
                    Err(_) => return None,
                }
            }
        });
        match word.await {
            Ok(Some(stage)) => Ok(stage),
            Ok(None) => Err(self.silence().await),
            Err(_) => {
                self.kill().await;
                Err(Fault::Silent { role, limit })
            }
        }
    }

    /// Waits until a launcher has become its program: it lets go of the barrier with that.
    async fn executed(&mut self) -> Result<(), Fault> {
        let gone = timeout(STAGE, async {
            loop {
                let Ok(mut ready) = self.host.readable().await else { return None };
                match self.host.get_ref().try_next() {
                    Ok(Some(stage)) => return Some(stage),
                    Ok(None) => ready.clear_ready(),
                    Err(_) => return None,
                }
            }
        });
        match gone.await {
            Ok(None) => Ok(()),
            Ok(Some(stage)) => Err(self.out_of_turn(stage).await),
            Err(_) => {
                self.kill().await;
                Err(Fault::Silent { role: self.role, limit: STAGE })
            }
        }
    }

    /// Ends it for a fault. One that has ended by itself has no layers to look at any more: then its end is the fault.
    async fn ended_or(&self, fault: Fault) -> Fault {
        match timeout(LAST_WORDS, self.end()).await {
            Ok(exit) => Fault::Ended { role: self.role, exit },
            Err(_) => {
                self.kill().await;
                fault
            }
        }
    }

    /// Ends it; who waits for its end hears of it.
    pub(crate) fn end_now(&self) {
        let _ = self.child.get_ref().signal(Signal::SIGKILL);
    }

    /// The barrier is closed: the process has ended or is about to.
    async fn silence(&mut self) -> Fault {
        let exit = match timeout(STAGE, self.end()).await {
            Ok(exit) => exit,
            Err(_) => self.kill().await,
        };
        // Why it ended is in what it printed: said before this start ends, and with it perhaps the supervisor. Not for long: one whom it
        // left behind may hold the pipe.
        let _ = timeout(LAST_WORDS, &mut self.words).await;
        Fault::Ended { role: self.role, exit }
    }

    async fn out_of_turn(&self, stage: Stage) -> Fault {
        match stage {
            Stage::Failed { reason } => {
                let exit = timeout(STAGE, self.end()).await.ok();
                Fault::Refused { role: self.role, reason: Reason(reason), exit }
            }
            _ => {
                self.kill().await;
                Fault::Silent { role: self.role, limit: STAGE }
            }
        }
    }

    /// Waits until it says that it serves.
    pub(crate) async fn ready(&mut self) -> Result<(), Fault> {
        self.ready_after(Duration::ZERO).await
    }

    /// The same for one that waits for somebody else, for at most `wait`, before it can.
    pub(crate) async fn ready_after(&mut self, wait: Duration) -> Result<(), Fault> {
        match self.next_within(STAGE + wait).await? {
            Stage::Ready => Ok(()),
            other => Err(self.out_of_turn(other).await),
        }
    }

    /// Waits for its end; its last words if it had any.
    pub(crate) async fn finished(&mut self) -> Result<Exit, Fault> {
        let exit = self.end().await;
        while let Ok(Some(stage)) = self.host.get_ref().try_next() {
            if let Stage::Failed { reason } = stage {
                return Err(Fault::Refused { role: self.role, reason: Reason(reason), exit: Some(exit) });
            }
        }
        Ok(exit)
    }

    /// The same for at most `limit`; then it is killed, which a process that was stopped does not survive either.
    pub(crate) async fn finished_within(&mut self, limit: Duration) -> Result<Exit, Fault> {
        let ended = timeout(limit, self.finished()).await;
        match ended {
            Ok(ended) => ended,
            Err(_) => {
                self.kill().await;
                Err(Fault::Late { role: self.role, limit })
            }
        }
    }

    /// The same for as long as bytes of its stream move; it is killed when none did for `pause`, or at most for twice that.
    pub(crate) async fn finished_moving(&mut self, pause: Duration, moved: &Moved) -> Result<Exit, Fault> {
        let mut seen = moved.bytes();
        loop {
            if let Ok(ended) = timeout(pause, self.finished()).await {
                return ended;
            }
            let now = moved.bytes();
            if now == seen {
                self.kill().await;
                return Err(Fault::Stalled { role: self.role, limit: pause });
            }
            seen = now;
        }
    }

    /// Waits for its end. May be asked again only before it has answered.
    pub(crate) async fn end(&self) -> Exit {
        loop {
            // An error here means that the process is not ours to wait for any more; it is gone in every case.
            let Ok(mut ready) = self.child.readable().await else { return Exit::Signal(0) };
            match self.child.get_ref().try_wait() {
                Ok(Some(exit)) => return exit,
                Ok(None) => ready.clear_ready(),
                Err(_) => return Exit::Signal(0),
            }
        }
    }

    /// Asks it to end, and makes it end after `patience`.
    pub(crate) async fn stop(&self, patience: Duration) -> Exit {
        let _ = self.child.get_ref().signal(Signal::SIGTERM);
        match timeout(patience, self.end()).await {
            Ok(exit) => exit,
            Err(_) => self.kill().await,
        }
    }

    /// Ends it.
    pub(crate) async fn kill(&self) -> Exit {
        let _ = self.child.get_ref().signal(Signal::SIGKILL);
        self.end().await
    }
}

impl Drop for Caged {
    fn drop(&mut self) {
        // A child that nobody watches any more must not live; one that was reaped has no number to hit, only a pidfd.
        let _ = self.child.get_ref().signal(Signal::SIGKILL);
        // Until it is gone it holds what it was given: the next start would find its port taken.
        let _ = self.child.get_ref().wait();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    /// A child without a cage, which says nothing at its barrier.
    fn uncaged(program: &str, argument: &str) -> Caged {
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        let (host, barrier) = Host::pair().unwrap();
        let mut spec = SpawnSpec::new(program).unwrap().argument(argument).unwrap();
        for _ in 0..3 {
            spec = spec.descriptor(&null).unwrap();
        }
        let child = spawn(spec.descriptor(&barrier).unwrap()).unwrap();
        let (host, child) = (watch(host).unwrap(), watch(child).unwrap());
        Caged { role: Role::Unseal, host, child, words: tokio::spawn(async {}), started: Instant::now() }
    }

    #[tokio::test]
    async fn a_child_that_hangs_or_was_stopped_is_ended_at_its_limit() {
        for stop in [false, true] {
            let mut child = uncaged("/bin/sleep", "100000");
            if stop {
                child.child.get_ref().signal(Signal::SIGSTOP).unwrap();
            }
            let place = format!("/proc/{}", child.pid());
            let fault = child.finished_within(Duration::from_millis(20)).await.unwrap_err();
            assert!(matches!(fault, Fault::Late { .. }) && fault.to_string().contains("it was killed"), "{fault}");
            assert!(!std::path::Path::new(&place).exists(), "killed and reaped");
        }
        let (mut child, moved) = (uncaged("/bin/sleep", "100000"), Moved::default());
        let place = format!("/proc/{}", child.pid());
        let fault = child.finished_moving(Duration::from_millis(20), &moved).await.unwrap_err();
        assert!(matches!(fault, Fault::Stalled { .. }) && fault.is_late(), "{fault}");
        assert!(!std::path::Path::new(&place).exists(), "killed and reaped");
        // As long as bytes move it is waited for, however many pauses that takes.
        let mut child = uncaged("/bin/sleep", "0.3");
        let mut stream = moved.counting(io::repeat(0));
        let moving = async {
            loop {
                io::Read::read_exact(&mut stream, &mut [0]).unwrap();
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            ended = child.finished_moving(Duration::from_millis(20), &moved) => assert!(ended.is_ok(), "{ended:?}"),
            () = moving => {}
        }
        let mut child = uncaged("/bin/sh", "--version");
        assert!(child.finished_within(STAGE).await.is_ok(), "one that ends is heard to its end");
    }
}
