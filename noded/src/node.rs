//! The running node: its parts put together, and the tasks that keep it going.
//!
//! Everything here runs on one thread, beside the store's, the disk's and the admin service's. The key process may come and
//! go; what needs it waits or fails by name, the rest goes on.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use openred_module::{Body, DirectoryState, Event, LinkCount, NodeStatus, PeerError};
use openred_proto::checked::card::CardFields;
use openred_proto::checked::session::{RequestHead, ResponseHead};
use openred_proto::id::{LinkId, NodeId, UnixMillis};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::admin::Operations;
use crate::arrivals;
use crate::clock;
use crate::config::NodeConfig;
use crate::directory::{self, Directories, DirectoryPorts, ResolvedNames};
use crate::health::{Condition, Health};
use crate::keys::{CryptodClient, Description, KeysError};
use crate::link::ports::{Answered, Courier, LinkObserver};
use crate::link::{self, Links};
use crate::module::ports::PeerCaller;
use crate::module::{self, Disk, ModuleMethods, Modules, NodeView, Sockets, Source, Used, View, Wanted};
use crate::p2p::ports::{LinkHandle, Ports};
use crate::p2p::{self, NetworkSettings, PeerNetwork, PingPlan, SessionLimits};
use crate::reports::Reports;
use crate::store::{Store, StoreError};

/// Items from directories that may wait for the links; a directory that sends faster waits.
const DELIVERIES: usize = 32;
/// How long a peer is given to answer a question about links, a handshake included; afterwards a directory carries it.
const ASKED: Duration = Duration::from_secs(15);
/// How often the key process is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// How often it is looked at while it is awaited at start.
const LOOK_AT_START: Duration = Duration::from_millis(5);
/// How often memory that is free is given back: seldom enough that a rush does not ask for it again and again, often enough that nobody takes
/// a node for larger than it is.
const GIVE_BACK: Duration = Duration::from_secs(30);
/// Pauses before each attempt at a link's first handshake; afterwards the first request makes it.
const FIRST_HANDSHAKES: [Duration; 4] =
    [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(5), Duration::from_secs(20)];

/// Why a node cannot be put together.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum NodeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error("the state directory belongs to another node ({0}); use the home that it was made in")]
    ForeignState(NodeId),
}

/// What a node is made of.
pub(crate) struct Parts {
    pub(crate) config: NodeConfig,
    pub(crate) listener: SocketAddr,
    pub(crate) keys: CryptodClient,
    pub(crate) store: Store,
    pub(crate) disk: Disk,
    pub(crate) used: Arc<Used>,
    /// Where it is told which modules are installed.
    pub(crate) installed: PathBuf,
    pub(crate) names: ResolvedNames,
    /// Of modules' grants.
    pub(crate) egress: Arc<module::Names>,
    pub(crate) tls: Arc<rustls::ClientConfig>,
}

/// A node.
pub(crate) struct Node {
    pub(crate) me: NodeId,
    pub(crate) config: NodeConfig,
    pub(crate) endpoints: Vec<String>,
    pub(crate) started_at: UnixMillis,
    pub(crate) store: Store,
    pub(crate) links: Arc<Links>,
    pub(crate) directories: Arc<Directories>,
    pub(crate) modules: Arc<Modules>,
    pub(crate) network: Arc<PeerNetwork>,
    pub(crate) health: Arc<Health>,
    reports: Arc<Reports>,
    /// Operations of the key process, as it said last.
    pub(crate) operations: AtomicU64,
    keys: CryptodClient,
    installed: PathBuf,
}

impl Node {
    /// Puts a node together. Waits for the key process: without it not even the node's own id is known.
    ///
    /// # Errors
    /// State of another node, a store that cannot be read, a module that cannot be loaded.
    pub(crate) async fn assemble(parts: Parts) -> Result<Arc<Self>, NodeError> {
        let Parts { config, listener, keys, store, disk, used, installed, names, egress, tls } = parts;
        let (health, reports) = (Arc::new(Health::default()), Arc::new(Reports::default()));
        let described = await_keys(&keys).await;
        let me = described.node;
        if let Some(other) = store.bind_to(me, described.earlier, clock::now()).await? {
            return Err(NodeError::ForeignState(other));
        }
        let endpoints = announced_endpoints(&config, listener);
        if endpoints.is_empty() {
            health.raise(Condition::NoEndpoint, clock::now(), format!("the listener is {listener}"));
        }
        let directories = Directories::new(directory::Parts {
            me,
            listens_locally: listener.ip().is_loopback(),
            addresses: config.directories.clone(),
            mirrors: config.directory.mirrors.clone(),
            look_ups: config.directory.look_ups,
            names,
            tls,
            card: CardFields {
                endpoints: endpoints.clone(),
                name: config.name.clone(),
                sector: config.sector.clone(),
                listed: config.listed,
            },
            suites: config.links.method_set(),
            card_life: config.directory.card_life(),
            invites: config.directory.checked_invites().unwrap_or_default(),
            keys: keys.clone(),
            store: store.clone(),
            health: Arc::clone(&health),
            reports: Arc::clone(&reports),
        });
        let carrier = DirectoryPorts(Arc::clone(&directories));
        let links = Links::load(link::Parts {
            me,
            config: config.links.clone(),
            sector: config.sector.clone(),
            store: store.clone(),
            vault: Arc::new(keys.clone()),
            carrier: Arc::new(carrier.clone()),
            health: Arc::clone(&health),
            reports: Arc::clone(&reports),
        })
        .await?;
        // What the operator has decided is in the store, and narrows the file.
        directories.allow_methods(links.allowed_methods());
        let calls = Arc::new(Calls { links: Arc::downgrade(&links), network: OnceLock::new() });
        let view = Arc::new(View::default());
        let parts = module::Parts {
            me,
            store: store.clone(),
            disk,
            peers: Arc::clone(&calls) as _,
            keys: Arc::new(keys.clone()),
            beside: Arc::default(),
            health: Arc::clone(&health),
            names: egress,
            hook_order: config.hooks.order.clone(),
            view: Arc::clone(&view),
        };
        let methods = ModuleMethods::new(keys.clone(), Arc::clone(&links), Arc::clone(&health));
        let modules = load_modules(parts, used, &installed, &keys, &methods).await?;
        // Also what became of methods since: what is allowed now is what the first card says.
        directories.allow_methods(links.allowed_methods());
        let ports = Ports {
            links: Arc::clone(&links) as _,
            dispatch: Arc::clone(&modules) as _,
            endpoints: Arc::new(carrier),
            reports: Arc::clone(&reports),
        };
        let settings = network_settings(&config);
        let network = PeerNetwork::new(settings, me, Arc::new(keys.clone()), ports);
        // Set once, here; nothing calls a peer before the modules are started.
        let _ = calls.network.set(Arc::downgrade(&network));
        links.send_by(Arc::clone(&calls) as _);
        links.observe(Arc::new(Observer { network: Arc::downgrade(&network), modules: Arc::downgrade(&modules) }));
        let looked_at = Arc::downgrade(&modules);
        let node = Arc::new(Self {
            me,
            config,
            endpoints,
            started_at: clock::now(),
            store,
            links,
            directories,
            modules,
            network,
            health,
            reports,
            operations: AtomicU64::new(described.operations),
            keys,
            installed,
        });
        let own: Weak<Self> = Arc::downgrade(&node);
        view.of(own, looked_at);
        Ok(node)
    }

    /// Starts modules and everything that runs beside the listener; the tasks end with `tasks`.
    pub(crate) async fn start(self: &Arc<Self>, sockets: Sockets, tasks: &mut JoinSet<()>) {
        self.links.fetch_keys().await;
        self.modules.operate_by(Arc::new(Operations::new(self)));
        let source = Source { place: self.installed.clone(), keys: self.keys.clone() };
        let idle = self.config.modules.idle_seconds;
        let idle = (idle > 0).then(|| Duration::from_secs(idle.into()));
        self.modules.start(sockets, source, idle, &self.health, tasks).await;
        let (delivered, inbox) = mpsc::channel(DELIVERIES);
        self.directories.start(&delivered, tasks);
        tasks.spawn(arrivals::take(Arc::clone(&self.links), inbox));
        tasks.spawn(Arc::clone(&self.links).run());
        tasks.spawn(Arc::clone(&self.modules).run_timers());
        tasks.spawn(Arc::clone(self).watch());
        tasks.spawn(async {
            loop {
                tokio::time::sleep(GIVE_BACK).await;
                openred_policy::give_back_memory();
            }
        });
        let keys = self.keys.clone();
        tasks.spawn(Arc::clone(&self.reports).run(move |seen, count| {
            let keys = keys.clone();
            async move { keys.report(seen, count).await }
        }));
    }

    /// Notices when the key process goes and comes back, when it has a new prekey for the card, and how the store is.
    async fn watch(self: Arc<Self>) {
        let mut prekey = None;
        loop {
            tokio::time::sleep(LOOK).await;
            self.report_store().await;
            match self.keys.describe().await {
                Ok(described) => {
                    self.health.clear(Condition::CryptodAway);
                    self.operations.store(described.operations, Ordering::Relaxed);
                    if prekey.replace(described.prekey).is_some_and(|before| before != described.prekey) {
                        self.directories.renew_card().await;
                    }
                }
                Err(error) => self.health.raise(Condition::CryptodAway, clock::now(), error.to_string()),
            }
        }
    }
}

impl Node {
    /// Raises or clears the conditions of the store.
    async fn report_store(&self) {
        let trouble = self.store.trouble().await;
        let full = trouble.filter(|error| *error == StoreError::Full);
        let failed = trouble.filter(|error| *error != StoreError::Full);
        for (condition, error) in [(Condition::StoreFull, full), (Condition::StoreFailed, failed)] {
            match error {
                Some(error) => self.health.raise(condition, clock::now(), error.to_string()),
                None => self.health.clear(condition),
            }
        }
    }
}

impl NodeView for Node {
    fn own_half(&self) -> NodeStatus {
        let mut links: Vec<LinkCount> = Vec::new();
        for link in self.links.all().into_iter().filter(|link| !link.state.is_over()) {
            match links.iter_mut().find(|count| count.state == link.state.name()) {
                Some(count) => count.links += 1,
                None => links.push(LinkCount { state: link.state.name().to_owned(), links: 1 }),
            }
        }
        let directory = |at: openred_proto::admin::DirectoryStatus| DirectoryState {
            url: at.url,
            state: at.state,
            detail: at.detail,
            since: at.since,
        };
        NodeStatus {
            started_at: self.started_at.0,
            links,
            sessions: u32::try_from(self.network.sessions().len()).unwrap_or(u32::MAX),
            key_operations: self.operations.load(Ordering::Relaxed),
            directories: self.directories.status().into_iter().map(directory).collect(),
            ..NodeStatus::default()
        }
    }
}

async fn await_keys(keys: &CryptodClient) -> Description {
    let mut said = false;
    loop {
        match keys.describe().await {
            Ok(described) => return described,
            Err(error) if !said => {
                tracing::info!(%error, "waiting for the key process");
                said = true;
            }
            Err(_) => {}
        }
        tokio::time::sleep(LOOK_AT_START).await;
    }
}

async fn load_modules(
    parts: module::Parts,
    used: Arc<Used>,
    installed: &Path,
    keys: &CryptodClient,
    methods: &Arc<ModuleMethods>,
) -> Result<Arc<Modules>, NodeError> {
    let mut modules = Vec::new();
    for module in module::built_in() {
        let key = keys.store_key(module.id).await?;
        modules.push((module, key));
    }
    let mut known: Vec<&str> = modules.iter().map(|(module, _): &(Wanted, _)| module.id).collect();
    match module::installed::read(installed) {
        Ok(read) => {
            known.extend(read.wanted.iter().map(|module| module.id));
            methods.load(&known).await?;
        }
        // What cannot be read says nothing of what is gone: nothing is retired.
        Err(error) => tracing::warn!(%error, "what is installed cannot be read"),
    }
    let modules = Modules::new(parts, used, modules, Arc::clone(methods));
    modules.set_granted_hooks();
    Ok(modules)
}

fn network_settings(config: &NodeConfig) -> NetworkSettings {
    let sessions = &config.sessions;
    NetworkSettings {
        sessions: sessions.held as usize,
        sessions_per_peer: sessions.per_peer as usize,
        session_idle: Duration::from_secs(u64::from(sessions.idle_seconds)),
        limits: SessionLimits {
            life: Duration::from_secs(u64::from(sessions.life_seconds)),
            requests: sessions.requests,
            bytes: u64::from(sessions.megabytes) << 20,
        },
        audited: config.links.audited,
        throughput: config.diagnostics.throughput,
        direct: config.links.direct,
        ..NetworkSettings::default()
    }
}

/// What the card says: as configured, else the listener's own address unless that is a wildcard.
fn announced_endpoints(config: &NodeConfig, listener: SocketAddr) -> Vec<String> {
    if config.endpoints.is_empty() && !listener.ip().is_unspecified() {
        return vec![format!("http://{listener}")];
    }
    config.endpoints.clone()
}

/// The modules' way to peers. The network layer holds the modules in turn: weak here, so that the node can end.
struct Calls {
    links: Weak<Links>,
    network: OnceLock<Weak<PeerNetwork>>,
}

#[async_trait]
impl PeerCaller for Calls {
    async fn call(&self, peer: NodeId, head: RequestHead, body: Body) -> Result<(ResponseHead, Body), PeerError> {
        let network = self.network.get().and_then(Weak::upgrade).ok_or(PeerError::Unreachable)?;
        // Who is asked for by an older id is reached under the new one.
        let peer = self.links.upgrade().map_or(peer, |links| links.current(&peer));
        Ok(network.request(peer, head, body).await?)
    }

    fn is_linked(&self, peer: &NodeId) -> bool {
        self.links.upgrade().is_some_and(|links| links.is_linked(peer))
    }

    fn identities(&self, peer: &NodeId) -> Vec<NodeId> {
        self.links.upgrade().map_or_else(|| vec![*peer], |links| links.identities(peer))
    }
}

#[async_trait]
impl Courier for Calls {
    fn has_session(&self, peer: &NodeId) -> bool {
        self.network.get().and_then(Weak::upgrade).is_some_and(|network| network.has_session(peer))
    }

    async fn ask(&self, peer: NodeId, path: &'static str, body: Bytes) -> Option<Answered> {
        let network = self.network.get().and_then(Weak::upgrade)?;
        let head = RequestHead {
            module: p2p::MODULE.into(),
            method: "POST".into(),
            path: path.into(),
            deadline_millis: u64::try_from(ASKED.as_millis()).unwrap_or(u64::MAX),
            ..RequestHead::default()
        };
        let (head, body) = network.request(peer, head, Body::whole(body)).await.ok()?;
        let body = body.collect(link::inside::BODY_BYTES).await.ok()?;
        Some(Answered { status: head.status, body })
    }
}

/// Tells the network layer and the modules what becomes of links; weak, because the network layer holds the links.
struct Observer {
    network: Weak<PeerNetwork>,
    modules: Weak<Modules>,
}

impl Observer {
    fn tell(&self, event: Event) {
        if let Some(modules) = self.modules.upgrade() {
            modules.tell_all(event);
        }
    }
}

impl LinkObserver for Observer {
    fn link_added(&self, link: Arc<LinkHandle>) {
        if let Some(network) = self.network.upgrade() {
            network.link_added(link);
        }
    }

    fn link_removed(&self, link: LinkId) {
        if let Some(network) = self.network.upgrade() {
            network.link_removed(&link);
        }
    }

    fn link_confirmed(&self, peer: NodeId) {
        let Some(network) = self.network.upgrade() else { return };
        tokio::spawn(async move {
            for pause in FIRST_HANDSHAKES {
                tokio::time::sleep(pause).await;
                let plan = PingPlan {
                    peer,
                    count: 1,
                    concurrency: 1,
                    size: 0,
                    fresh: false,
                    bulk_bytes: 0,
                    module: String::new(),
                };
                if network.ping(plan).await.failed == 0 {
                    return;
                }
            }
        });
    }

    fn link_renewed(&self, peer: NodeId) {
        if let Some(network) = self.network.upgrade() {
            network.reopen(peer);
        }
    }

    fn peer_reachable(&self, peer: NodeId) {
        if let Some(network) = self.network.upgrade() {
            network.end_contacts(&peer);
        }
        self.tell(Event::PeerReachable(peer));
    }

    fn peer_forgotten(&self, peer: NodeId) {
        self.tell(Event::PeerForgotten(peer));
    }

    fn identities_changed(&self, peer: NodeId) {
        self.tell(Event::IdentitiesChanged(peer));
    }
}
