//! `openred up`: opens what the processes need, starts them in their cages, looks at each from outside, restarts what
//! ends, and drains on SIGTERM. It parses nothing from the network and holds no key.
//!
//! Two rows of lives run side by side: the key process (unsealer, then vault and front together) and `noded`; the modules that `noded`
//! asks for run beside them. A death by the
//! filter (SIGSYS) ends its row and raises an alarm: what broke out of its filter is not started again by itself.

mod backoff;
mod backup;
mod board;
mod callers;
mod child;
mod control;
mod create;
mod errand;
mod filing;
mod gate;
mod installed;
mod journal;
mod keys;
mod keystore;
#[cfg(test)]
mod killed;
mod log;
mod looked;
mod modules;
mod node;
mod operator;
mod owed;
mod places;
mod programs;
mod reload;
mod restore;
mod scratch;
mod secret;
mod succession;
mod trail;
mod workshop;

use std::fs::File;
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::stat::{Mode, umask};
use openred_policy::Role;
use openred_policy::limits::Ways;
use openred_policy::notify::Manager;
use openred_policy::observe::Baseline;
use openred_policy::spawn::Exit as Ended;
use openred_proto::audit::Event;
use openred_proto::unseal::Refused;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::cli::{Exit, Failure, Passphrase};
use crate::config::NodeConfig;
use crate::home::Home;

pub(crate) use backoff::Backoff;
pub(crate) use backup::{Backup, Restored, Verified, remove_copy};
use board::Board;
use child::{Fault, Starter};
pub(crate) use create::create;
pub(crate) use filing::{Hash, Unfiled, digest, file_waiting, is_sealed, open_filed};
use gate::{Answer, Gate};
pub(crate) use installed::change_modules;
pub(crate) use keystore::put;
use log::Log;
use places::{Identities, Places};
pub(crate) use places::{lock, make_private};
use reload::Settings;
pub(crate) use restore::finish_pending;
use restore::unfinished;
use secret::Held;
pub(crate) use succession::{Changed, OLDER_LOCKED};

/// What every life works with.
pub(crate) struct Context {
    home: Home,
    starter: Starter,
    places: Places,
    identities: Identities,
    settings: Settings,
    secret: Held,
    manager: Manager,
    modules: modules::Modules,
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
    /// By the operator's wish; it begins again when he says so.
    Locked(Answer),
    /// By itself.
    Died { role: Role, exit: Ended, lived: Duration },
}

/// Why a life did not begin.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartFailure {
    /// A child did not come up.
    #[error(transparent)]
    Child(#[from] Fault),
    /// The keystore stays closed; the fault's text says why.
    #[error("{fault}")]
    Keystore { refused: Refused, fault: Fault },
    /// Already in the operator's words: the keystore's file, the passphrase.
    #[error("{0}")]
    Named(Failure),
}

impl From<StartFailure> for Failure {
    fn from(failure: StartFailure) -> Self {
        match failure {
            StartFailure::Named(failure) => failure,
            StartFailure::Keystore { refused, fault } => refused_keystore(refused, &fault),
            StartFailure::Child(fault) if fault.exit() == Some(Ended::Code(Exit::BadConfiguration as i32)) => {
                Failure::new(Exit::BadConfiguration, "config.refused", fault.to_string(), "")
            }
            StartFailure::Child(fault) if fault.is_late() => {
                Failure::new(Exit::TimeOut, "unseal.late", fault.to_string(), SLOW)
            }
            StartFailure::Child(fault) => Failure::new(Exit::Failed, "start", fault.to_string(), ""),
        }
    }
}

/// The way out where the unsealer had to be killed.
const SLOW: &str = "if this machine is only that slow, or the pipe that is read, raise `keys.patience_seconds`; \
                    else see what keeps it (its disk, a stopped process), and try again";

/// The unsealer's refusal by name; what it is and the way out are in its own line.
fn refused_keystore(refused: Refused, fault: &Fault) -> Failure {
    let text = fault.to_string();
    match refused {
        Refused::Secret => Failure::new(Exit::Locked, "keystore.locked", text, ""),
        Refused::OlderSecret => Failure::new(Exit::Locked, OLDER_LOCKED, text, ""),
        Refused::OlderKeystore => Failure::new(Exit::Failed, "keystore.older", text, ""),
        Refused::Full => Failure::new(Exit::Failed, "disk.full", text, ""),
        Refused::Damaged => Failure::new(Exit::Failed, "keystore.damaged", text, ""),
        Refused::Newer => Failure::new(Exit::Failed, "keystore.newer", text, ""),
        Refused::Mismatched => Failure::new(Exit::Failed, "keystore.mismatched", text, ""),
        Refused::Work => Failure::new(Exit::Failed, "keystore.work", text, ""),
        Refused::Recipient => Failure::new(Exit::Usage, "keystore.recipient", text, ""),
        Refused::Succession => Failure::new(Exit::Conflict, "keystore.succession", text, ""),
        Refused::State => Failure::new(Exit::Failed, "state.foreign", text, ""),
        Refused::Local => Failure::new(Exit::Failed, "start", text, ""),
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

/// Asks the kernel to tell this process to stop when its parent has ended, however it ends: a node that an author tries a module on is not left behind.
pub(crate) fn end_with(parent: i32) -> Result<(), Failure> {
    let asked = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM);
    asked.map_err(|errno| Failure::local("waiting for the parent's end", &errno.into()))?;
    // It may have ended before.
    match nix::unistd::getppid().as_raw() == parent {
        true => Ok(()),
        false => {
            Err(Failure::new(Exit::Failed, "start", format!("process {parent}, which started this one, has ended"), ""))
        }
    }
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
    // Before anything is started for it.
    drop(keystore::open(&home.keystore())?);
    let identities = Identities::new(config.uid_base);
    let places = places::prepare(home, &config, &identities)?;
    // Before anything is started: this process may have to move into a group of its own.
    let ways = Arc::new(Ways::find(&home.path().display().to_string()));
    let baseline = Baseline::of_this_process()?;
    let board = Arc::new(Board::new(baseline, home.path().display().to_string(), ways.to_string(), now()));
    let left = board.watch_unfinished(unfinished(home));
    board.watch_filed(home.audit_filed());
    owed::kept(home).into_iter().for_each(|(event, count)| board.report_again(event, count));
    let (log, writer) = Log::start(config.log.format);
    trace(&config, &log);
    tracing::debug!("modules' limits: {ways}");
    left.into_iter().for_each(|left| tracing::warn!("{}: {}", left.detail, left.help));
    let settings = Settings::new(config, Box::new(reread));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::local("starting the runtime", &error))?;
    let (modules, words) = modules::modules();
    let context = Context {
        home: home.clone(),
        starter: Starter { programs: programs()?, null: null()?, board, log, ways, callers: Default::default() },
        places,
        identities,
        settings,
        secret: Held::new(passphrase),
        manager,
        modules,
    };
    installed::tidy(home);
    // `noded` reads of them when it starts.
    let known = installed::look(&context);
    // On this thread, which lives as long as the supervisor: a child dies with the thread that started it.
    let ended = runtime.block_on(async {
        tokio::select! {
            ended = run(&context) => ended,
            // Ends only when nobody holds the other end, which the context does.
            () = modules::serve(&context, known, words) => Ok(()),
        }
    });
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
    let (asker, mut gate) = gate::gate();
    let (_no_asker, mut no_gate) = gate::gate();
    let control = tokio::spawn(control::serve(
        control,
        Arc::clone(&context.starter.board),
        stop.clone(),
        asker,
        context.modules.clone(),
    ));
    let (stop_node, stop_keys) = (watch::Sender::new(false), watch::Sender::new(false));
    let (mut node_wanted, mut keys_wanted) = (stop_node.subscribe(), stop_keys.subscribe());
    let started = async {
        // `noded` opens its store meanwhile, and waits for the keys.
        tokio::try_join!(keys::begin(context), node::begin(context))
    };
    let mut wanted = stop.subscribe();
    let (keys, node) = tokio::select! {
        started = started => started.inspect_err(|failure| note_layer(context, failure))?,
        // Told to stop while starting: the children die with their handles.
        () = signals.stop(context) => return Ok(()),
        _ = wanted.wait_for(|stop| *stop) => return Ok(()),
    };
    announce(context);
    let keys = row(
        context,
        Role::Vault,
        keys,
        async |keys: keys::Keys, stop: &mut watch::Receiver<bool>, gate: &mut Gate| {
            keys.live(context, stop, gate).await
        },
        || keys::begin(context),
        &mut keys_wanted,
        &mut gate,
    );
    let node = row(
        context,
        Role::Noded,
        node,
        async |node: node::Node, stop: &mut watch::Receiver<bool>, _: &mut Gate| node.live(context, stop).await,
        || node::begin(context),
        &mut node_wanted,
        &mut no_gate,
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
        context.modules.end().await;
        let _ = places::remove(&context.home.module_socket());
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
    live: impl AsyncFn(L, &mut watch::Receiver<bool>, &mut Gate) -> End,
    begin: S,
    stop: &mut watch::Receiver<bool>,
    gate: &mut Gate,
) where
    S: Fn() -> B,
    B: Future<Output = Result<L, StartFailure>>,
{
    let mut backoff = Backoff::default();
    let mut life = Some(first);
    loop {
        let pause = match life.take() {
            Some(current) => match live(current, stop, gate).await {
                End::Stopped => return,
                End::Reloaded => Duration::ZERO,
                End::Locked(answer) => match locked(context, name, &begin, stop, gate, answer).await {
                    Some(opened) => {
                        life = Some(opened);
                        continue;
                    }
                    None => return,
                },
                End::Died { role, exit, lived } => {
                    if mourn(context, name, role, exit) {
                        return given_up(stop, gate).await;
                    }
                    backoff.after(lived)
                }
            },
            None => backoff.after(Duration::ZERO),
        };
        if !pause.is_zero() {
            tracing::info!("{name} is started again in {} ms", pause.as_millis());
        }
        let again = async {
            tokio::time::sleep(pause).await;
            begin().await
        };
        let begun = tokio::select! {
            begun = again => Ok(begun),
            // Locked in the middle of a start: what was started ends with its handles.
            answer = gate.lock() => Err(answer),
            _ = stop.wait_for(|stop| *stop) => return,
        };
        match begun {
            Ok(Ok(begun)) => {
                context.starter.board.clear(&format!("process.{name}.start"));
                life = Some(begun);
            }
            Ok(Err(failure)) => {
                if not_begun(context, name, &failure) {
                    return given_up(stop, gate).await;
                }
            }
            Err(answer) => match locked(context, name, &begin, stop, gate, answer).await {
                Some(opened) => life = Some(opened),
                None => return,
            },
        }
    }
}

/// A child that is not caged as its manifest says is for the trail; this start, and perhaps this supervisor, has no vault that could
/// record it.
fn note_layer(context: &Context, failure: &StartFailure) {
    if let StartFailure::Child(Fault::Layer { .. }) = failure {
        context.starter.board.report(Event::LayerOff);
        keep_owed(context);
    }
}

fn keep_owed(context: &Context) {
    if let Err(failure) = owed::keep(&context.home, &context.starter.board.reports()) {
        tracing::error!("what the audit trail is owed cannot be kept: {failure}");
    }
}

/// Notes a start that came to nothing; whether the filter ended it, after which nothing is started again.
fn not_begun(context: &Context, name: Role, failure: &StartFailure) -> bool {
    tracing::error!("{failure}");
    note_layer(context, failure);
    row_of(name).iter().for_each(|role| context.starter.board.away(*role));
    let help = match failure {
        StartFailure::Child(fault) if fault.is_late() => SLOW,
        _ => "it is tried again; the detail names the way out",
    };
    context.starter.board.alarm(&format!("process.{name}.start"), failure.to_string(), help, now());
    let exit = match failure {
        StartFailure::Child(fault) => fault.exit(),
        _ => None,
    };
    exit.is_some_and(|exit| exit.broke_the_filter() && mourn(context, name, name, exit))
}

/// Waits, without a key, for the secret that opens the keystore; nothing when it is to stop first. A secret that does not
/// open it is answered as such, and changes nothing.
async fn locked<L, S, B>(
    context: &Context,
    name: Role,
    begin: &S,
    stop: &mut watch::Receiver<bool>,
    gate: &mut Gate,
    answer: Answer,
) -> Option<L>
where
    S: Fn() -> B,
    B: Future<Output = Result<L, StartFailure>>,
{
    let close = || {
        context.secret.forget();
        row_of(name).iter().for_each(|role| context.starter.board.locked(*role, now()));
    };
    close();
    context.starter.board.clear(&format!("process.{name}.start"));
    tracing::info!("locked: no process holds a key until `openred key unlock`");
    let _ = answer.send(Ok(()));
    loop {
        let (secret, answer) = tokio::select! {
            asked = gate.unlock() => asked,
            _ = stop.wait_for(|stop| *stop) => return None,
        };
        context.secret.keep(secret);
        let begun = tokio::select! {
            begun = begin() => begun,
            _ = stop.wait_for(|stop| *stop) => return None,
        };
        match begun {
            Ok(life) => {
                tracing::info!("unlocked");
                let _ = answer.send(Ok(()));
                return Some(life);
            }
            Err(failure) => {
                note_layer(context, &failure);
                close();
                tracing::warn!("not unlocked: {failure}");
                let _ = answer.send(Err(failure.into()));
            }
        }
    }
}

/// What ended by its filter stays away until the whole node is stopped.
async fn given_up(stop: &mut watch::Receiver<bool>, gate: &mut Gate) {
    tokio::select! {
        () = gate.refuse_all() => {}
        _ = stop.wait_for(|stop| *stop) => {}
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
    context.starter.board.report(if filter { Event::FilterBroken } else { Event::ProcessDied });
    // A vault that has died cannot record it, and what broke its filter must not get lost with the supervisor either.
    if filter || row != Role::Noded {
        keep_owed(context);
    }
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
    context.modules.look_again();
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
