//! `directory serve`, a straight line: open what is needed, give up everything else, serve (docs/sandbox.md).
//!
//! Listeners, key and certificate are opened first, while the process still may. Then namespaces, uid, Landlock and
//! capabilities go; then come the database (as the confined user, which proves that it can), the threads and the runtime;
//! then the system-call filter closes, and only then is the first byte read from anybody, but for a PostgreSQL that is
//! asked, where there is no key, whether it holds a directory's log. What is read again at SIGHUP is read by a process that is
//! started here before the cage ([`crate::reload`]).

use std::net::{SocketAddr, TcpListener};
use std::os::fd::RawFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use openred_policy::notify::{self, Manager};
use openred_policy::{Cage, Descriptors, KeptPath, LayerReport, Restricted, Role, Unconfined};
use openred_proto::id::UnixMillis;
use openred_proto::limits::CLOCK_GRACE;
use openred_proto::log::head::Head;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::admin;
use crate::api;
use crate::config::{Config, Home, Loaded};
use crate::error::{Error, Result};
use crate::health::health_of;
use crate::identity::Identity;
use crate::limits::{FOLLOW, LOOK, LOOK_UP_THREADS, NETWORK_THREADS, SWEEP};
use crate::logging::LogLevel;
use crate::mirror::Whole;
use crate::mirror::client::Target as MirrorTarget;
use crate::mirror::follow::Follower;
use crate::reload::{self, Reload};
use crate::replicas::{Outbox, Replicas, link, target};
use crate::serve::{Service, serve};
use crate::state::{Directory, Remembered, system_clock};
use crate::store::postgres::{PostgresStore, SharedNonces, Target};
use crate::store::sqlite::SqliteStore;
use crate::store::{CardReader, CardStore, Mark, PreviousRun, StoreHandle};
use crate::tls::{self, Tls};

const KEY_OF_FILE: &str =
    "is missing, and there is a database: restore it from a backup, or move `state/` away to start as a new directory";
const KEY_OF_DATABASE: &str = "is missing, and the database of store.url holds a directory's log: copy the key of that directory here (every replica has the same), or name another database";

/// Everything that is opened before the cage.
struct Opened {
    listener: TcpListener,
    metrics: Option<TcpListener>,
    admin: UnixListener,
    operator: u32,
    identity: Identity,
    tls: Option<Tls>,
    reader: UnixStream,
    manager: Manager,
    database: Option<Target>,
    upstream: Option<MirrorTarget>,
    nats: Option<target::Target>,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// Whatever stops the start; afterwards nothing does.
pub fn run(loaded: &Loaded, level: LogLevel) -> Result<()> {
    let given = notify::listeners();
    let wanted: Vec<RawFd> = [0, 1, 2].into_iter().chain(given.iter().copied()).collect();
    let mut unconfined = Unconfined::enter(Role::Directory, Descriptors::CloseOthers(&wanted))?;
    let inherited = inherit(&mut unconfined, &given)?;
    let opened = open(loaded, inherited)?;
    let restricted = unconfined.separate(&cage(loaded, &opened))?.restrict()?;
    let report = Arc::new(OnceLock::new());
    let started = start(loaded, opened, level, Arc::clone(&report), &restricted)?;
    let confined = restricted.seal()?;
    // Set once, here; the admin thread only reads it.
    let _ = report.set(confined.report().clone());
    started.runtime.block_on(started.services.serve());
    Ok(())
}

fn cage(loaded: &Loaded, opened: &Opened) -> Cage {
    let config = &loaded.config;
    let identity = openred_policy::Identity { uid: *config.uid.get_ref(), gid: *config.gid.get_ref() };
    let cage = Cage::new(Role::Directory, Some(identity)).keep(KeptPath::writable(&loaded.home.state()));
    // It calls nobody but its database, if that is not a file, and NATS, or the directory that it mirrors: no other port may be connected to.
    if let Some(upstream) = &opened.upstream {
        return cage.with_database().connect_only(upstream.port().into_iter().collect());
    }
    let Some(database) = &opened.database else { return cage.connect_only(Vec::new()) };
    let cage = cage
        .with_database()
        .connect_only(database.port().into_iter().chain(opened.nats.as_ref().map(target::Target::port)).collect());
    match database.folder() {
        Some(folder) => cage.keep(KeptPath::readable(folder)),
        None => cage,
    }
}

/// The database that the settings name, if it is not a file: its password and certificates are read, its name is looked up.
///
/// # Errors
/// A file that cannot be used, a host without an address.
pub fn database(config: &Config) -> Result<Option<Target>> {
    let store = &config.store;
    let url = store.url.get_ref();
    if url.is_empty() { Ok(None) } else { Target::open(url, &store.password_file, &store.certificates).map(Some) }
}

/// The directory that the settings say is mirrored: its certificates are read, its name is looked up.
///
/// # Errors
/// A file that cannot be used, a host without an address.
fn upstream(config: &Config) -> Result<Option<MirrorTarget>> {
    config.upstream().map(|address| MirrorTarget::open(address, &config.mirror.certificates)).transpose()
}

/// The listeners that the service manager opened (directory.socket), by the address that each is bound to.
fn inherit(unconfined: &mut Unconfined, given: &[RawFd]) -> Result<Vec<TcpListener>> {
    let take = |number: &RawFd| {
        let listener = TcpListener::from(unconfined.take(*number)?);
        // A datagram socket, or one that does not listen, has the manager's unit to thank for it.
        let listens = nix::sys::socket::getsockopt(&listener, nix::sys::socket::sockopt::AcceptConn);
        let bound = listener.local_addr().ok().filter(|_| listens == Ok(true));
        bound.map(|_| listener).ok_or(Error::LocalInherited { what: "is no listening TCP socket".into() })
    };
    given.iter().map(take).collect()
}

fn open(loaded: &Loaded, mut inherited: Vec<TcpListener>) -> Result<Opened> {
    let config = &loaded.config;
    // While its name can be reached.
    let manager = Manager::from_env().map_err(unreachable_manager)?;
    prepare_home(&loaded.home, *config.uid.get_ref(), *config.gid.get_ref())?;
    let admin = open_admin(&loaded.home)?;
    let (key, database) = (loaded.home.key(), database(config)?);
    if !key.exists() {
        let why = match &database {
            None if loaded.home.database().exists() => Some(KEY_OF_FILE),
            // What cannot be reached or is not ours stops the start here: nobody would ask again once there is a key.
            Some(target) if PostgresStore::holds_log(target)? => Some(KEY_OF_DATABASE),
            _ => None,
        };
        why.map_or(Ok(()), |why| Err(Error::LocalKeyFile { path: key.clone(), why }))?;
    }
    let (identity, new) = Identity::load_or_create(&key)?;
    if new {
        tracing::info!(directory = %identity.id(), "made a new identity");
    }
    let tls = tls::open(&config.tls)?;
    let activated = !inherited.is_empty();
    let mut at = |address| take_or_listen(&mut inherited, activated, address);
    let listener = at(*config.listen.get_ref())?;
    let metrics = config.metrics_address(&loaded.source)?.map(at).transpose()?;
    if let Some(stray) = inherited.first().and_then(|stray| stray.local_addr().ok()) {
        return Err(Error::LocalInherited {
            what: format!("listens on {stray}, which neither `listen` nor `metrics_listen` names"),
        });
    }
    let operator = nix::unistd::geteuid().as_raw();
    let (upstream, nats) = (upstream(config)?, target::Target::open(config)?);
    // Behind whatever else may stop the start.
    let reader = reload::start(loaded, tls.is_some())?;
    Ok(Opened { listener, metrics, admin, operator, identity, tls, reader, manager, database, upstream, nats })
}

fn unreachable_manager(error: std::io::Error) -> Error {
    let what = format!("the service manager's socket (NOTIFY_SOCKET): {error}");
    Error::LocalRuntime(std::io::Error::new(error.kind(), what))
}

/// The inherited listener on `address`. With socket activation all of them are inherited: the unit that opens them for this
/// program has taken the network away from it.
fn take_or_listen(inherited: &mut Vec<TcpListener>, activated: bool, address: SocketAddr) -> Result<TcpListener> {
    if !activated {
        return listen(address);
    }
    let place = inherited.iter().position(|listener| listener.local_addr().ok() == Some(address));
    let place = place.ok_or_else(|| Error::LocalInherited {
        what: format!("none listens on {address}, which the configuration names"),
    })?;
    let listener = inherited.swap_remove(place);
    listener.set_nonblocking(true).map_err(|source| Error::LocalListen { address, source })?;
    Ok(listener)
}

/// Makes home, state and admin folder. The state belongs to the user that the directory will run as.
fn prepare_home(home: &Home, uid: u32, gid: u32) -> Result<()> {
    let make = |path: &Path| {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(path).map_err(Error::file("create", path))
    };
    make(home.folder())?;
    make(&home.admin())?;
    let state = home.state();
    make(&state)?;
    for private in [home.admin(), state.clone()] {
        let found = std::fs::symlink_metadata(&private).map_err(Error::file("look at", &private))?;
        if !found.is_dir() || found.mode() & 0o077 != 0 {
            let source = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
            return Err(Error::LocalFile { action: "use, it must be a folder of mode 700,", path: private, source });
        }
    }
    if nix::unistd::geteuid().is_root() {
        let own = |path: &Path| {
            std::os::unix::fs::lchown(path, Some(uid), Some(gid)).map_err(Error::file("change the owner of", path))
        };
        own(&state)?;
        for entry in std::fs::read_dir(&state).map_err(Error::file("list", &state))? {
            own(&entry.map_err(Error::file("list", &state))?.path())?;
        }
    }
    Ok(())
}

fn open_admin(home: &Home) -> Result<UnixListener> {
    let socket = home.socket();
    if admin::client::is_running(&socket) {
        return Err(Error::LocalAlreadyRunning { socket });
    }
    // Left over from a process that was killed: nobody listens.
    let _ = std::fs::remove_file(&socket);
    UnixListener::bind(&socket).map_err(Error::file("listen on", &socket))
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).map_err(|source| match source.kind() {
        std::io::ErrorKind::AddrInUse => Error::LocalPortTaken { address },
        _ => Error::LocalListen { address, source },
    })?;
    listener.set_nonblocking(true).map_err(|source| Error::LocalListen { address, source })?;
    Ok(listener)
}

struct Started {
    runtime: Runtime,
    services: Services,
}

struct Services {
    directory: Arc<Directory>,
    api: Service,
    local: Option<Service>,
    follower: Option<Follower>,
    end: [Signal; 2],
    /// What SIGHUP does.
    reload: (Reload, Signal),
    manager: Manager,
    /// What carries words to other replicas.
    link: Option<(Arc<Replicas>, Outbox, target::Target)>,
}

/// Database, threads, runtime, signals: after confinement, before the filter.
fn start(
    loaded: &Loaded,
    opened: Opened,
    level: LogLevel,
    cage: Arc<OnceLock<LayerReport>>,
    _: &Restricted,
) -> Result<Started> {
    let config = &loaded.config;
    let (handle, mut reader, remembered, number) = match &opened.database {
        None => {
            let path = loaded.home.database();
            let store = SqliteStore::open(&path, *config.store.max_megabytes.get_ref())?;
            stores(store, || SqliteStore::open_reader(&path))?
        }
        Some(target) => {
            PostgresStore::migrate(target, false)?;
            let store = PostgresStore::open(target)?;
            let reader = || PostgresStore::open(target);
            match opened.nats {
                Some(_) => stores(store.as_replica(config.replicas.name.get_ref()), reader)?,
                None => stores(store, reader)?,
            }
        }
    };
    wait_for_next_second(remembered.before);
    let bound = opened.listener.local_addr().map_err(Error::LocalRuntime)?;
    let origin = config.public_origin(bound);
    let keys = opened.nats.as_ref().map(|_| opened.identity.replica_keys());
    let directory = Directory::new(config, opened.identity, origin, handle, remembered, system_clock());
    let follower = mirrored(&directory, reader.as_mut(), opened.upstream)?;
    let mut link = None;
    if let (Some(nats), Some(database), Some(keys)) = (opened.nats, &opened.database, keys) {
        let (replicas, words) = Replicas::new(config.replicas.name.get_ref(), number, keys)?;
        directory.join(Arc::clone(&replicas), SharedNonces::start(database)?);
        link = Some((replicas, words, nats));
    }
    let settings = Arc::new(Mutex::new(loaded.source.settings(config).unwrap_or_default()));
    let server = admin::server::Server {
        listener: opened.admin,
        operator: opened.operator,
        directory: Arc::clone(&directory),
        store: reader,
        counted: None,
        cage,
        settings: Arc::clone(&settings),
    };
    server.start()?;
    let runtime = runtime()?;
    let entered = runtime.enter();
    let tokio_listener = |listener| tokio::net::TcpListener::from_std(listener).map_err(Error::LocalRuntime);
    let connections = config.limits.connections;
    let router = api::router(Arc::clone(&directory));
    let tls = opened.tls.clone();
    let api = Service { listener: tokio_listener(opened.listener)?, tls: opened.tls, router, connections };
    let local = match opened.metrics {
        Some(listener) => {
            let router = api::system::local_router(Arc::clone(&directory));
            Some(Service { listener: tokio_listener(listener)?, tls: None, router, connections: METRICS_CONNECTIONS })
        }
        None => None,
    };
    let register = |kind| signal(kind).map_err(Error::LocalRuntime);
    let end = [register(SignalKind::terminate())?, register(SignalKind::interrupt())?];
    let reload =
        Reload { directory: Arc::clone(&directory), reader: Some(in_runtime(opened.reader)?), level, tls, settings };
    let reload = (reload, register(SignalKind::hangup())?);
    drop(entered);
    Ok(Started {
        runtime,
        services: Services { directory, api, local, follower, end, reload, manager: opened.manager, link },
    })
}

fn in_runtime(reader: UnixStream) -> Result<tokio::net::UnixStream> {
    // Its answer to SIGHUP is what readiness promises as well.
    reload::await_ready(&reader)?;
    reader.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(reader)).map_err(Error::LocalRuntime)
}

/// What follows the mirrored directory, from where it ended. A store holds one log: a directory's own, or that of the one that it mirrors.
fn mirrored(
    directory: &Arc<Directory>,
    reader: &mut dyn CardReader,
    target: Option<MirrorTarget>,
) -> Result<Option<Follower>> {
    let unfit = |why| Err(Error::LocalStoreUnfit { why });
    let (following, end) = (reader.following()?, reader.log_end()?);
    let (Some(target), Some(upstream)) = (target, &directory.upstream) else {
        return match following {
            Some(_) => unfit("it is a mirror's: set mirror.of again, or take another home"),
            None => Ok(None),
        };
    };
    match following {
        Some(following) if following.directory != target.address.id => {
            return unfit("it is the mirror of another directory: take another home");
        }
        None if end.size > 0 => {
            return unfit("it is a directory's own, which cannot become a mirror: take another home");
        }
        Some(following) => {
            let head =
                following.head.and_then(|note| Some((Head::verify(note.as_bytes(), &following.directory).ok()?, note)));
            if let Some((head, note)) = head {
                upstream.is_whole(Whole { size: head.size, note });
            }
        }
        None => {}
    }
    Ok(Some(Follower::new(Arc::clone(directory), Arc::clone(upstream), target)))
}

/// The network side: signatures are most of its work, and wait for nothing, so each processor has a thread for them
/// (docs/decisions/0062). The threads begin here, before the filter.
fn runtime() -> Result<Runtime> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let mut builder = match processors.min(NETWORK_THREADS) {
        1 => tokio::runtime::Builder::new_current_thread(),
        threads => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            builder.worker_threads(threads).thread_name("network");
            builder
        }
    };
    builder.enable_all().build().map_err(Error::LocalRuntime)
}

/// The store's threads, a reader for the admin's, what is kept of earlier runs, and this replica's number.
type Stores = (StoreHandle, Box<dyn CardReader + Send>, Remembered, u16);

/// Starts the threads that ask a store, with readers of it: one for each thread that looks up, and the admin's.
fn stores<Store, Reader>(mut store: Store, reader: impl Fn() -> Result<Reader>) -> Result<Stores>
where
    Store: CardStore + Send + 'static,
    Reader: CardReader + Send + 'static,
{
    let (bans, before) = (store.bans()?, store.begin_run(system_clock()())?);
    let number = store.number();
    let readers = (0..LOOK_UP_THREADS).map(|_| reader()).collect::<Result<Vec<_>>>()?;
    Ok((StoreHandle::start(store, readers)?, Box::new(reader()?), Remembered { bans, before }, number))
}

/// After a quick restart honest nodes sign in the second up to which the old run took requests, and would be refused.
/// Who connects meanwhile waits in the listener's queue.
fn wait_for_next_second(before: PreviousRun) {
    let now = system_clock()();
    if before == (PreviousRun::Ended { latest: now.seconds() }) {
        std::thread::sleep(Duration::from_millis(1000 - now.0 % 1000));
    }
}

/// Changes by operators that are looked through for nodes that were removed.
const HISTORY: usize = 1000;
/// So long a goodbye to the other replicas may take.
const GOODBYE_TIME: Duration = Duration::from_secs(1);
/// Connections to the listener for metrics: one collector and somebody looking.
const METRICS_CONNECTIONS: u32 = 16;
/// Ended cards are looked for this often, in sweeps.
const SWEEPS_PER_PURGE: u32 = 60;

impl Services {
    async fn serve(self) {
        let Self { directory, api, local, follower, end: [mut terminate, mut interrupt], reload, manager, link } = self;
        tracing::info!(address = %directory.address(), "serving");
        let housekeeping = tokio::spawn(keep_house(Arc::clone(&directory)));
        tokio::spawn(watch_health(Arc::clone(&directory)));
        let (reload, hangup) = reload;
        tokio::spawn(reload.run(hangup));
        let link = link.map(|(replicas, words, nats)| {
            tokio::spawn(follow(Arc::clone(&directory), Arc::clone(&replicas)));
            tokio::spawn(link::run(Arc::clone(&directory), replicas, words, nats))
        });
        if let Some(follower) = follower {
            tokio::spawn(follower.run());
        }
        if let Some(local) = local {
            tokio::spawn(serve(Arc::clone(&directory), local));
        }
        let mut serving = std::pin::pin!(serve(Arc::clone(&directory), api));
        let mut watchdog = manager.watchdog().map(tokio::time::interval);
        manager.say(&format!("READY=1\nSTATUS=serving as {}", directory.address()));
        let drain = || {
            manager.say("STOPPING=1");
            directory.drain();
        };
        loop {
            tokio::select! {
                () = serving.as_mut() => break,
                () = tick(&mut watchdog) => drop(manager.say("WATCHDOG=1")),
                _ = terminate.recv() => drain(),
                _ = interrupt.recv() => drain(),
            }
        }
        housekeeping.abort();
        if let (Some(replicas), Some(link)) = (directory.replicas(), link)
            && replicas.is_up()
        {
            replicas.hand_over(&directory).await;
            if replicas.goodbye() {
                // Where it is not heard, the others find out by themselves.
                let _ = tokio::time::timeout(GOODBYE_TIME, link).await;
            }
        }
        let latest = directory.replay().end();
        if let Err(error) = directory.store.call(move |store| store.end_run(latest)).await {
            tracing::warn!(%error, "the end could not be noted: for its first minute the next start takes no signed request");
        }
        tracing::info!("ended");
    }
}

/// Returns when the service manager wants to hear that this thread still turns; never when it does not.
async fn tick(watchdog: &mut Option<tokio::time::Interval>) {
    match watchdog {
        Some(watchdog) => drop(watchdog.tick().await),
        None => std::future::pending().await,
    }
}

async fn keep_house(directory: Arc<Directory>) {
    let (mut sweeps, mut noted) = (0_u32, 0);
    loop {
        tokio::time::sleep(SWEEP).await;
        let now = directory.now();
        directory.mailboxes().sweep(now);
        // Looks, as every writer does, whether the database is still the one that is open; what it finds is logged and in health.
        let _ = directory.store.call(|_| Ok(())).await;
        let registered = directory.metrics.registrations.get();
        directory.note_registrations(registered - noted, SWEEP);
        noted = registered;
        if sweeps.is_multiple_of(SWEEPS_PER_PURGE) {
            purge(&directory, now).await;
        }
        sweeps = sweeps.wrapping_add(1);
    }
}

/// Looks how it is, so that it is known since when; and tells what was left out of the log.
async fn watch_health(directory: Arc<Directory>) {
    loop {
        let _ = health_of(&directory);
        directory.tell_left_out();
        tokio::time::sleep(LOOK).await;
    }
}

/// Follows what operators change at other replicas, and what becomes of the way to them.
async fn follow(directory: Arc<Directory>, replicas: Arc<Replicas>) {
    let mut seen = None;
    loop {
        if let Err(error) = follow_changes(&directory, &mut seen).await {
            tracing::warn!(%error, "changes by operators of other replicas could not be looked for");
        }
        tokio::select! {
            () = tokio::time::sleep(FOLLOW) => {}
            () = replicas.changed.notified() => {}
        }
        replicas.end_streams_if_cut();
    }
}

async fn follow_changes(directory: &Directory, seen: &mut Option<Mark>) -> Result<()> {
    let made = directory.bans_made();
    let mark = directory.store.read(|store| store.mark()).await?;
    if *seen == Some(mark) {
        return Ok(());
    }
    let before = seen.map(|seen| seen.changes);
    let (bans, history) = directory
        .store
        .read(move |store| {
            // Nothing was held here before the first look.
            let new = before.map_or(0, |before| mark.changes.saturating_sub(before));
            let new = usize::try_from(new).unwrap_or(usize::MAX).min(HISTORY);
            Ok((store.bans()?, if new > 0 { store.history(None, new)? } else { Vec::new() }))
        })
        .await?;
    // Changed here meanwhile: looked at again the next time.
    if directory.replace_bans(&bans, made) {
        let removed =
            history.iter().filter(|entry| entry.action == "remove").filter_map(|entry| entry.target.parse().ok());
        let mut mailboxes = directory.mailboxes();
        removed.for_each(|node| mailboxes.evict(&node));
        *seen = Some(mark);
    }
    Ok(())
}

async fn purge(directory: &Directory, now: UnixMillis) {
    let mut dropped = 0;
    loop {
        match directory.store.call(move |store| store.purge(now.minus(CLOCK_GRACE))).await {
            Ok(0) => break,
            Ok(some) => dropped += some,
            Err(error) => return tracing::warn!(%error, "ended cards could not be dropped"),
        }
    }
    if dropped > 0 {
        tracing::info!(dropped, "dropped cards that had ended, and rows of cards that ended long ago");
    }
}
