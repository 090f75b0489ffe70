//! The steps of `noded`'s life, in the order in which `bin/noded.rs` takes them: what is read outside the cage, what is
//! opened inside it before the final filter, and service until SIGTERM. Outside only the operator's own files are read: the first
//! bytes from the network are a name server's answer, and it is met inside, without root and without a capability.

use std::fs::File;
use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper_rustls::ConfigBuilderExt as _;
use openred_policy::KeptPath;
use openred_policy::barrier::Barrier;
use openred_proto::config::{CONFIG_BYTES, ConfigError};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::admin;
use crate::config::{LogConfig, LogFormat, NodeConfig, resolve};
use crate::directory::{ResolvedNames, resolve_names};
use crate::home::Home;
use crate::keys::CryptodClient;
use crate::module::Used;
use crate::module::{self, Disk, DiskThread};
use crate::node::{Node, NodeError, Parts};
use crate::sensitive::show_sensitive;
use crate::store::{Store, StoreError, StoreThread};

/// Longest file of certificate authorities.
const CA_BYTES: u64 = 4 << 20;
/// How long the store's and the disk's threads may take to finish what is queued.
const THREADS_END: Duration = Duration::from_secs(5);

/// Why `noded` does not start or serve. Each text is one line.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The configuration on the descriptor is wrong.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// A descriptor or file could not be read or used.
    #[error("{what}: {source}")]
    Local {
        /// What was tried.
        what: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file of certificate authorities holds none that can be used.
    #[error("`directory.ca_file` holds no certificate that can be used")]
    NoAuthority,
    /// The random generator does not answer.
    #[error("the kernel's random generator does not answer")]
    NoRandomness,
    /// The database.
    #[error("{0}")]
    Store(StoreFault),
    /// The parts do not go together.
    #[error("{0}")]
    Node(NodeFault),
}

/// A failure of the store, opaque outside this crate.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct StoreFault(StoreError);

/// A failure to put the node together, opaque outside this crate.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct NodeFault(NodeError);

fn local(what: &'static str) -> impl FnOnce(std::io::Error) -> DaemonError {
    move |source| DaemonError::Local { what, source }
}

/// What is read before the cage closes: configuration and authorities, both the operator's files.
pub struct Outside {
    home: Home,
    config: NodeConfig,
    tls: Arc<ClientConfig>,
}

impl Outside {
    /// Reads the configuration from its descriptor and what it refers to outside the cage. `home` is the node's home.
    ///
    /// # Errors
    /// Unreadable or wrong configuration, unusable file of authorities.
    pub fn read(home: PathBuf, config: OwnedFd) -> Result<Self, DaemonError> {
        let mut text = String::new();
        let config = File::from(config).take(CONFIG_BYTES as u64 + 1).read_to_string(&mut text);
        config.map_err(local("reading the configuration from its descriptor"))?;
        let config = resolve(Path::new("openred.toml"), &text, [], &[])?.config;
        let tls = Arc::new(tls_config(&config.directory.ca_file)?);
        Ok(Self { home: Home::new(home), config, tls })
    }

    /// What the cage keeps of the file system.
    #[must_use]
    pub fn keeps(&self) -> Vec<KeptPath> {
        self.home.noded_keeps()
    }

    /// Sends log lines to descriptor 2, without colour: the supervisor reads them.
    pub fn start_log(&self) {
        let LogConfig { level, format, sensitive } = self.config.log;
        if sensitive {
            show_sensitive();
        }
        let level: LevelFilter = level.as_str().parse().unwrap_or(LevelFilter::INFO);
        // Libraries say less than we do: their lines are not written for an operator.
        let targets = Targets::new().with_default(level.min(LevelFilter::WARN)).with_target("openred", level);
        let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
        let registry = tracing_subscriber::registry().with(targets);
        // A second subscriber cannot be: this is called once.
        let _ = match format {
            LogFormat::Human => registry.with(lines.compact()).try_init(),
            LogFormat::Json => registry.with(lines.json()).try_init(),
        };
    }
}

pub(crate) fn tls_config(ca_file: &Path) -> Result<ClientConfig, DaemonError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = versions.expect("the provider has the suites of TLS 1.2 and 1.3");
    if ca_file.as_os_str().is_empty() {
        return Ok(builder.with_webpki_roots().with_no_client_auth());
    }
    let mut pem = Vec::new();
    let file = File::open(ca_file).map_err(local("opening `directory.ca_file`"))?;
    file.take(CA_BYTES).read_to_end(&mut pem).map_err(local("reading `directory.ca_file`"))?;
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).flatten());
    if roots.is_empty() {
        return Err(DaemonError::NoAuthority);
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// What is opened inside the cage, before the final filter: the directories' names, threads, files, signals, the runtime.
pub struct Prepared {
    outside: Outside,
    names: ResolvedNames,
    egress: module::Names,
    runtime: Runtime,
    terminate: Signal,
    interrupt: Signal,
    store: Store,
    store_thread: StoreThread,
    disk: Disk,
    disk_thread: DiskThread,
    keys: CryptodClient,
}

impl Prepared {
    /// Opens everything that must be open before the filter.
    ///
    /// # Errors
    /// See [`DaemonError`].
    pub fn open(outside: Outside) -> Result<Self, DaemonError> {
        getrandom::fill(&mut [0; 32]).map_err(|_| DaemonError::NoRandomness)?;
        // Before there is anything else in this process that its answers could reach.
        let names = resolve_names(outside.config.directories.iter().chain(&outside.config.directory.mirrors));
        let egress = module::Names::resolve(&outside.home.installed());
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(local("the runtime"))?;
        let entered = runtime.enter();
        let terminate = signal(SignalKind::terminate()).map_err(local("watching for SIGTERM"))?;
        let interrupt = signal(SignalKind::interrupt()).map_err(local("watching for SIGINT"))?;
        // The supervisor opened it; without one this process would not be.
        let keys = CryptodClient::new(&outside.home.cryptod_socket(), std::os::unix::process::parent_id());
        drop(entered);
        let storage = &outside.config.storage;
        let megabytes = |count: u32| u64::from(count) << 20;
        let state = outside.home.state();
        let (store, store_thread) = Store::open(&state, megabytes(storage.database_megabytes))
            .map_err(|error| DaemonError::Store(StoreFault(error)))?;
        let (disk, disk_thread) =
            module::open_disk(&state, megabytes(storage.blobs_megabytes)).map_err(local("the folder of blobs"))?;
        Ok(Self { outside, names, egress, runtime, terminate, interrupt, store, store_thread, disk, disk_thread, keys })
    }

    /// Serves until SIGTERM or SIGINT, then lets what runs come to its end. `ready` is called once peers and the operator
    /// are served.
    ///
    /// # Errors
    /// When the node cannot be put together, or a listener cannot be used.
    pub fn serve(
        self,
        peers: TcpListener,
        admin: UnixListener,
        modules: ModuleSockets,
        ready: impl FnOnce(),
    ) -> Result<(), DaemonError> {
        let Self {
            outside,
            names,
            egress,
            runtime,
            terminate,
            interrupt,
            store,
            store_thread,
            disk,
            disk_thread,
            keys,
        } = self;
        let listener = peers.local_addr().map_err(local("the peer-to-peer listener"))?;
        let stopping = Stopping { terminate, interrupt };
        let (installed, used) = (outside.home.installed(), Used::open(&outside.home.state()));
        let parts = move |listener: SocketAddr| Parts {
            config: outside.config,
            listener,
            keys,
            store,
            disk,
            used,
            installed,
            names,
            egress: Arc::new(egress),
            tls: outside.tls,
        };
        let served = runtime.block_on(live(parts(listener), peers, admin, modules, stopping, ready));
        // Everything that holds the store goes with the runtime's tasks; then its thread can end.
        drop(runtime);
        end_threads(store_thread, disk_thread);
        served
    }
}

/// What concerns modules of what this process was given: where they dial, and the channel to the supervisor.
pub struct ModuleSockets {
    /// Bound by the supervisor.
    pub listener: UnixListener,
    /// One end of a pair.
    pub supervisor: UnixStream,
    /// What the monitor is served on; something that is no listener where the configuration names none.
    pub monitor: OwnedFd,
    /// What the operator's API is served on, or the same.
    pub auth: OwnedFd,
}

impl ModuleSockets {
    fn for_the_runtime(self, config: &NodeConfig) -> std::io::Result<module::Sockets> {
        let mut loopback = Vec::new();
        let monitor = (module::MONITOR, config.monitor.listen, self.monitor);
        let auth = (module::AUTH, config.auth.listen, self.auth);
        for (module, _, listener) in [monitor, auth].into_iter().filter(|(_, listen, _)| listen.is_some()) {
            let listener = TcpListener::from(listener);
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            loopback.push(module::Loopback { module, listener });
        }
        self.listener.set_nonblocking(true)?;
        self.supervisor.set_nonblocking(true)?;
        Ok(module::Sockets {
            listener: tokio::net::UnixListener::from_std(self.listener)?,
            supervisor: tokio::net::UnixStream::from_std(self.supervisor)?,
            loopback,
        })
    }
}

/// Tells the supervisor and the log why this process gives up; returns the exit code: 78 for the configuration, else 1.
#[must_use]
#[allow(clippy::print_stderr, reason = "the one line that a failed start leaves; descriptor 2 is the log's pipe")]
pub fn failed(barrier: Option<&Barrier>, error: &anyhow::Error) -> i32 {
    let line = Line(format!("{error:#}").replace('\n', " "));
    if let Some(barrier) = barrier {
        barrier.failed(&line);
    }
    eprintln!("{line}");
    let configuration = matches!(error.downcast_ref(), Some(DaemonError::Config(_) | DaemonError::NoAuthority));
    if configuration { 78 } else { 1 }
}

/// An error chain as one line.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Line(String);

/// The two signals that end a daemon.
struct Stopping {
    terminate: Signal,
    interrupt: Signal,
}

impl Stopping {
    async fn asked(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn live(
    parts: Parts,
    peers: TcpListener,
    operator: UnixListener,
    modules: ModuleSockets,
    mut stopping: Stopping,
    ready: impl FnOnce(),
) -> Result<(), DaemonError> {
    let sockets = modules.for_the_runtime(&parts.config).map_err(local("the sockets for modules"))?;
    let node = tokio::select! {
        () = stopping.asked() => return Ok(()),
        node = Node::assemble(parts) => node.map_err(|error| DaemonError::Node(NodeFault(error)))?,
    };
    let (stop, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    // Where a module does not come, SIGTERM must.
    tokio::select! {
        () = stopping.asked() => return Ok(()),
        () = node.start(sockets, &mut tasks) => {}
    }
    let main = tokio::runtime::Handle::current();
    let admin = admin::start(operator, Arc::clone(&node), main, stopped.clone()).map_err(local("the admin service"))?;
    let mut serving = tokio::spawn(Arc::clone(&node.network).serve(peers, stopped));
    ready();
    tracing::info!(node = %node.me.short(), endpoints = ?node.endpoints.len(), "serving");
    let early = tokio::select! {
        () = stopping.asked() => None,
        // Without a listener this is no node: the supervisor starts another.
        served = &mut serving => Some(served),
    };
    tracing::info!("stopping");
    // A receiver is gone only when its part has ended already.
    let _ = stop.send(true);
    let served = match early {
        Some(served) => served,
        None => serving.await,
    };
    let served = served.unwrap_or(Ok(()));
    tasks.shutdown().await;
    // A dead disk must not hold up the end: what this loses is what a crash would.
    if !matches!(tokio::time::timeout(THREADS_END, node.links.store_used()).await, Ok(Ok(()))) {
        tracing::warn!("when links were used last was not stored");
    }
    drop(node);
    wait_for(|| admin.is_finished(), THREADS_END);
    served.map_err(local("serving peers"))
}

/// Lets the threads finish what is queued. One that hangs (a dead disk) is left behind: what it acknowledged is durable.
fn end_threads(store: StoreThread, disk: DiskThread) {
    if wait_for(|| store.is_finished() && disk.is_finished(), THREADS_END) {
        store.join();
        disk.join();
    } else {
        tracing::warn!("the store or the disk did not come to its end in time");
    }
}

fn wait_for(done: impl Fn() -> bool, most: Duration) -> bool {
    let end = Instant::now() + most;
    while !done() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(2));
    }
    done()
}
