//! `openred up`: opens what the processes need, starts them in their cages, looks at each from outside, restarts what
//! ends, and drains on SIGTERM. It parses nothing from the network and holds no key.
//!
//! Two rows of lives run side by side: the key process (unsealer, then vault and front together) and `noded`. A death by the
//! filter (SIGSYS) ends its row and raises an alarm: what broke out of its filter is not started again by itself.

mod backoff;
mod board;
mod child;
mod control;
mod create;
mod keys;
mod log;
mod node;
mod places;
mod reload;

use std::fs::File;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::stat::{Mode, umask};
use openred_policy::Role;
use openred_policy::notify::Manager;
use openred_policy::observe::Baseline;
use openred_policy::spawn::Exit as Ended;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::cli::{Exit, Failure, Passphrase};
use crate::config::NodeConfig;
use crate::home::Home;

use backoff::Backoff;
use board::Board;
use child::{Fault, Starter};
pub(crate) use create::create;
use log::Log;
pub(crate) use places::make_private;
use places::{Identities, Places};
use reload::Settings;

/// What every life works with.
pub(crate) struct Context {
    home: Home,
    starter: Starter,
    places: Places,
    identities: Identities,
    settings: Settings,
    passphrase: Passphrase,
    manager: Manager,
}

impl Context {
    fn state(&self, role: Role, state: &'static str) {
        self.starter.board.state(role, state, now());
    }
}

/// How a life ended.
pub(crate) enum End {
    /// As wanted.
    Stopped,
    /// To begin again at once, with what was reloaded.
    Reloaded,
    /// By itself.
    Died { role: Role, exit: Ended, lived: Duration },
}

/// Why a life did not begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartFailure {
    /// A child did not come up.
    #[error(transparent)]
    Child(#[from] Fault),
    /// The keystore stays closed.
    #[error("{0}")]
    Locked(Fault),
    /// The passphrase cannot be had.
    #[error("{0}")]
    Passphrase(Failure),
}

impl From<StartFailure> for Failure {
    fn from(failure: StartFailure) -> Self {
        match failure {
            StartFailure::Passphrase(failure) => failure,
            StartFailure::Locked(fault) => Failure::new(Exit::Locked, "keystore.locked", fault.to_string(), ""),
            StartFailure::Child(fault) if fault.exit() == Some(Ended::Code(Exit::BadConfiguration as i32)) => {
                Failure::new(Exit::BadConfiguration, "config.refused", fault.to_string(), "")
            }
            StartFailure::Child(fault) => Failure::new(Exit::Failed, "start", fault.to_string(), ""),
        }
    }
}

pub(crate) fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The folder of this program: all others lie beside it.
fn programs() -> Result<PathBuf, Failure> {
    let own = std::fs::read_link("/proc/self/exe").map_err(|error| Failure::local("/proc/self/exe", &error))?;
    own.parent().map(Into::into).ok_or_else(|| Failure::usage("this program has no folder", ""))
}

fn null() -> Result<File, Failure> {
    File::options().read(true).write(true).open("/dev/null").map_err(|error| Failure::local("/dev/null", &error))
}

/// What the supervisor itself gives up before it opens anything: dumps (a passphrase may be in its memory) and wide modes.
fn settle() -> Result<(), Failure> {
    umask(Mode::from_bits_truncate(0o077));
    let no_core = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
    no_core.map_err(|errno| Failure::local("switching core dumps off", &errno.into()))?;
    // The same user's other programs must not read it either; children are dumpable again until they say otherwise.
    let closed = nix::sys::prctl::set_dumpable(false);
    closed.map_err(|errno| Failure::local("closing this process's memory", &errno.into()))
}

/// Runs a node until it is told to stop.
pub(crate) fn up(
    home: &Home,
    config: NodeConfig,
    passphrase: Passphrase,
    reread: impl Fn() -> Result<NodeConfig, Failure> + 'static,
) -> Result<Exit, Failure> {
    settle()?;
    let manager = Manager::from_env().map_err(|error| Failure::local("the service manager's socket", &error))?;
    let identities = Identities::new(config.uid_base);
    let places = places::prepare(home, &config, &identities)?;
    let board = Arc::new(Board::new(Baseline::of_this_process()?, home.path().display().to_string(), now()));
    let (log, writer) = Log::start(config.log.format);
    trace(&config, &log);
    let settings = Settings::new(config, Box::new(reread));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::local("starting the runtime", &error))?;
    let context = Context {
        home: home.clone(),
        starter: Starter { programs: programs()?, null: null()?, board, log },
        places,
        identities,
        settings,
        passphrase,
        manager,
    };
    // On this thread, which lives as long as the supervisor: a child dies with the thread that started it.
    let ended = runtime.block_on(run(&context));
    let _ = places::remove(&home.control_socket());
    drop(runtime);
    context.starter.log.end();
    writer.finish_within(Duration::from_secs(2));
    ended.map(|()| Exit::Ok)
}

fn trace(config: &NodeConfig, log: &Log) {
    let level = config.log.level.as_str().parse().unwrap_or(tracing::Level::INFO);
    let builder =
        tracing_subscriber::fmt().with_max_level(level).with_target(false).with_ansi(false).with_writer(log.clone());
    let set = match config.log.format {
        crate::config::LogFormat::Human => tracing::subscriber::set_global_default(builder.finish()),
        crate::config::LogFormat::Json => tracing::subscriber::set_global_default(builder.json().finish()),
    };
    // Only a second supervisor in one process could have set it before.
    let _ = set;
}

async fn run(context: &Context) -> Result<(), Failure> {
    let stop = watch::Sender::new(false);
    let mut signals = Signals::new()?;
    let control = control_listener(context)?;
    let control = tokio::spawn(control::serve(control, Arc::clone(&context.starter.board), stop.clone()));
    let (stop_node, stop_keys) = (watch::Sender::new(false), watch::Sender::new(false));
    let (mut node_wanted, mut keys_wanted) = (stop_node.subscribe(), stop_keys.subscribe());
    let started = async {
        // `noded` opens its store meanwhile, and waits for the keys.
        tokio::try_join!(keys::begin(context), node::begin(context))
    };
    let mut wanted = stop.subscribe();
    let (keys, node) = tokio::select! {
        started = started => started?,
        // Told to stop while starting: the children die with their handles.
        () = signals.stop(context) => return Ok(()),
        _ = wanted.wait_for(|stop| *stop) => return Ok(()),
    };
    announce(context);
    let keys = row(
        context,
        Role::Vault,
        keys,
        async |keys: keys::Keys, stop: &mut watch::Receiver<bool>| keys.live(context, stop).await,
        || keys::begin(context),
        &mut keys_wanted,
    );
    let node = row(
        context,
        Role::Noded,
        node,
        async |node: node::Node, stop: &mut watch::Receiver<bool>| node.live(context, stop).await,
        || node::begin(context),
        &mut node_wanted,
    );
    let drain = async {
        tokio::select! {
            () = signals.stop(context) => {}
            _ = wanted.wait_for(|stop| *stop) => {}
        }
        tracing::info!("draining");
        context.manager.say("STOPPING=1");
        context.starter.board.stopping();
        stop_node.send_replace(true);
    };
    // The node first: it may still need keys for what it has begun.
    let node = async {
        node.await;
        stop_keys.send_replace(true);
    };
    tokio::select! {
        _ = async { tokio::join!(keys, node, drain) } => {}
        () = keep_watchdog(&context.manager) => {}
    }
    control.abort();
    tracing::info!("stopped");
    Ok(())
}

fn control_listener(context: &Context) -> Result<tokio::net::UnixListener, Failure> {
    let home = &context.home;
    let failed = |error: std::io::Error| Failure::local("the control socket", &error);
    let listener = places::pending_listener(home, "control", None).map_err(failed)?;
    places::publish(home, "control", &home.control_socket()).map_err(failed)?;
    tokio::net::UnixListener::from_std(listener).map_err(failed)
}

fn announce(context: &Context) {
    let status = context.starter.board.status();
    let listen = context.places.peers.local_addr().map(|address| address.to_string()).unwrap_or_default();
    let line = format!("ready: listening on {listen}, every layer seen, uid: {}", status.uid);
    context.manager.say(&format!("READY=1\nSTATUS={line}"));
    tracing::info!("{line}");
}

/// Says that this thread still turns, as often as the service manager wants to hear it; never ends. Every wait of the
/// supervisor is on this thread: one that does not come back is heard of.
async fn keep_watchdog(manager: &Manager) {
    let Some(every) = manager.watchdog() else { return std::future::pending().await };
    let mut ticks = tokio::time::interval(every);
    loop {
        ticks.tick().await;
        manager.say("WATCHDOG=1");
    }
}

/// One row of lives: serves, waits, starts again, until it is to stop.
async fn row<L, S, B>(
    context: &Context,
    name: Role,
    first: L,
    live: impl AsyncFn(L, &mut watch::Receiver<bool>) -> End,
    begin: S,
    stop: &mut watch::Receiver<bool>,
) where
    S: Fn() -> B,
    B: Future<Output = Result<L, StartFailure>>,
{
    let mut backoff = Backoff::default();
    let mut life = Some(first);
    loop {
        let pause = match life.take() {
            Some(life) => match live(life, stop).await {
                End::Stopped => return,
                End::Reloaded => Duration::ZERO,
                End::Died { role, exit, lived } => {
                    if mourn(context, name, role, exit) {
                        let _ = stop.wait_for(|stop| *stop).await;
                        return;
                    }
                    backoff.after(lived)
                }
            },
            None => backoff.after(Duration::ZERO),
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        let begun = tokio::select! {
            begun = begin() => begun,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        let code = format!("process.{name}.start");
        match begun {
            Ok(begun) => {
                context.starter.board.clear(&code);
                life = Some(begun);
            }
            Err(failure) => {
                tracing::error!("{failure}");
                row_of(name).iter().for_each(|role| context.starter.board.away(*role));
                context.starter.board.alarm(
                    &code,
                    failure.to_string(),
                    "it is tried again; the detail names the way out",
                    now(),
                );
                if let StartFailure::Child(fault) = &failure
                    && let Some(exit) = fault.exit()
                    && exit.broke_the_filter()
                {
                    mourn(context, name, name, exit);
                    let _ = stop.wait_for(|stop| *stop).await;
                    return;
                }
            }
        }
    }
}

/// The processes that live and die together.
fn row_of(name: Role) -> &'static [Role] {
    if name == Role::Noded { &[Role::Noded] } else { &[Role::Vault, Role::Front] }
}

/// Notes a death; whether it was the filter's doing, after which nothing is started again.
fn mourn(context: &Context, row: Role, role: Role, exit: Ended) -> bool {
    let filter = exit.broke_the_filter();
    let how = if filter { String::from("SIGSYS: a system call outside its filter") } else { exit.to_string() };
    for other in row_of(row).iter().filter(|other| **other != role) {
        context.starter.board.ended(*other, &format!("ended with {role}"), !filter, now());
    }
    context.starter.board.ended(role, &how, !filter, now());
    if filter {
        tracing::error!("{role} was killed by its filter and is not restarted");
        let detail = format!("{role} tried a system call outside its filter and was killed; it is not restarted");
        let help = "treat it as a break-in until explained: keep the log, then restart the node";
        context.starter.board.alarm(&format!("process.{role}.filter"), detail, help, now());
    } else {
        tracing::warn!("{role} ended ({how}) and is restarted");
    }
    filter
}

/// Reads the configuration again; a service manager is told when that begins and that it is over.
fn reload(context: &Context) {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map(std::time::Duration::from);
    let now = now.unwrap_or_default().as_micros();
    context.manager.say(&format!("RELOADING=1\nMONOTONIC_USEC={now}"));
    context.settings.reload();
    context.manager.say("READY=1");
}

/// SIGTERM and SIGINT stop; SIGHUP has the configuration read again.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::local("listening for signals", &error));
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn stop(&mut self, context: &Context) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
                _ = self.hangup.recv() => reload(context),
            }
        }
    }
}
