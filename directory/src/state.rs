//! What the API's handlers share. Locks are held for a few lines, never over an await.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::limits::LINEAGE;
use tokio::sync::watch;

use crate::config::Config;
use crate::error::Result;
use crate::identity::Identity;
use crate::limits::{ADDRESSES_FOR_ALL_STREAMS, BANS, Buckets, NEW_NODE_EVERY, NEW_NODES_BURST};
use crate::metrics::Metrics;
use crate::replay::Replay;
use crate::route::{Bounds, Mailboxes};
use crate::store::{Held, LogEnd, PreviousRun, StoreHandle};

/// Reads the time; a test passes its own.
pub type Clock = Arc<dyn Fn() -> UnixMillis + Send + Sync>;

/// The system's clock.
#[must_use]
pub fn system_clock() -> Clock {
    Arc::new(|| {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    })
}

/// Who a token bucket belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Caller {
    /// A node whose signature was verified.
    Node(NodeId),
    /// An address; an IPv6 one counts with its /64.
    Address(IpAddr),
}

/// What the store kept of earlier runs.
#[derive(Clone, Debug)]
pub struct Remembered {
    /// Banned nodes.
    pub bans: HashSet<NodeId>,
    /// What the run before left behind.
    pub before: PreviousRun,
}

/// The shared state.
pub struct Directory {
    /// Signs receipts and heads.
    pub identity: Identity,
    /// Public origin: what `@target-uri` begins with.
    pub origin: String,
    /// A proxy stands in front: callers' addresses are the proxy's.
    pub behind_proxy: bool,
    /// Lease of a registration.
    pub lease: Duration,
    /// Nodes that may be registered.
    pub nodes: u64,
    /// Streams that may be open.
    pub streams: u64,
    /// Cards.
    pub store: StoreHandle,
    /// Counters.
    pub metrics: Metrics,
    /// When this process began to serve.
    pub started: UnixMillis,
    clock: Clock,
    mailboxes: Mutex<Mailboxes>,
    replay: Mutex<Replay>,
    buckets: Mutex<Buckets<Caller>>,
    /// New nodes by address.
    new_nodes: Mutex<Buckets<IpAddr>>,
    bans: RwLock<HashSet<NodeId>>,
    /// Open streams by address.
    open_streams: Mutex<HashMap<IpAddr, u64>>,
    /// The last head that was signed: one signature serves all who ask until the log grows.
    head: Mutex<Option<(LogEnd, String)>>,
    store_failing: AtomicBool,
    draining: watch::Sender<bool>,
}

impl std::fmt::Debug for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Directory({}@{})", self.identity.id(), self.origin)
    }
}

impl Directory {
    /// Puts it together.
    #[must_use]
    pub fn new(
        config: &Config,
        identity: Identity,
        origin: String,
        store: StoreHandle,
        remembered: Remembered,
        clock: Clock,
    ) -> Arc<Self> {
        let limits = &config.limits;
        let started = clock();
        let bounds = Bounds { offers_per_node: limits.offers_per_node as usize, items: limits.offers as usize };
        Arc::new(Self {
            identity,
            origin,
            behind_proxy: config.behind_proxy,
            lease: Duration::from_secs(u64::from(*config.lease.seconds.get_ref())),
            nodes: u64::from(limits.nodes),
            streams: u64::from(limits.streams),
            store,
            metrics: Metrics::default(),
            started,
            clock,
            mailboxes: Mutex::new(Mailboxes::new(bounds)),
            replay: Mutex::new(Replay::new(started, remembered.before)),
            buckets: Mutex::new(Buckets::new(*limits.requests_per_second.get_ref(), *limits.requests_burst.get_ref())),
            new_nodes: Mutex::new(Buckets::slow(NEW_NODE_EVERY, NEW_NODES_BURST)),
            bans: RwLock::new(remembered.bans),
            open_streams: Mutex::default(),
            head: Mutex::default(),
            store_failing: AtomicBool::new(false),
            draining: watch::Sender::new(false),
        })
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> UnixMillis {
        (self.clock)()
    }

    /// `did@url`: what nodes put into their configuration.
    #[must_use]
    pub fn address(&self) -> String {
        format!("{}@{}", self.identity.id(), self.origin)
    }

    /// The signed head of a log that goes so far.
    pub(crate) fn sign_head(&self, end: LogEnd) -> String {
        let mut last = self.head.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((signed, note)) if *signed == end => note.clone(),
            _ => last.insert((end, self.identity.sign_head(&end))).1.clone(),
        }
    }

    /// The mailboxes. A panic elsewhere left them consistent: every change is one call.
    pub fn mailboxes(&self) -> MutexGuard<'_, Mailboxes> {
        self.mailboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn replay(&self) -> MutexGuard<'_, Replay> {
        self.replay.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node whose card has not ended and that is not banned.
    pub(crate) async fn registered(&self, id: NodeId) -> Result<Option<Held>> {
        if self.is_banned(&id) {
            return Ok(None);
        }
        let now = self.now();
        let held = self.store.read(move |store| store.node(&id)).await?;
        Ok(held.filter(|held| held.expires_at > now))
    }

    /// The registered node that goes on for one that is here no more.
    pub(crate) async fn successor(&self, id: NodeId) -> Result<Option<Held>> {
        let last = self.store.read(move |store| {
            let mut last = id;
            // A chain is as long as identities changed within a year; a circle is cut.
            for _ in 0..4 * LINEAGE {
                match store.successor(&last)? {
                    Some(next) => last = next,
                    None => break,
                }
            }
            Ok(last)
        });
        match last.await? {
            last if last == id => Ok(None),
            last => self.registered(last).await,
        }
    }

    pub(crate) fn take_token(&self, caller: Caller) -> std::result::Result<(), Duration> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner).take(self.now(), caller)
    }

    /// Takes a token for a node that comes for the first time; keys cost nothing, so its address is what is counted.
    pub(crate) fn take_new_node(&self, address: IpAddr) -> std::result::Result<(), Duration> {
        self.new_nodes.lock().unwrap_or_else(PoisonError::into_inner).take(self.now(), address)
    }

    /// Counts a stream against its address; false when the address has its share of all.
    pub(crate) fn stream_opens(&self, address: Option<IpAddr>) -> bool {
        let Some(address) = address else { return true };
        let mut open = self.open_streams.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = open.entry(address).or_default();
        let allowed = *mine < (self.streams / ADDRESSES_FOR_ALL_STREAMS).max(1);
        *mine += u64::from(allowed);
        allowed
    }

    /// A stream that was counted has ended.
    pub(crate) fn stream_closed(&self, address: Option<IpAddr>) {
        let Some(address) = address else { return };
        let mut open = self.open_streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mine) = open.get_mut(&address) {
            *mine = mine.saturating_sub(1);
            if *mine == 0 {
                open.remove(&address);
            }
        }
    }

    /// Whether a node is banned.
    #[must_use]
    pub fn is_banned(&self, node: &NodeId) -> bool {
        self.bans.read().unwrap_or_else(PoisonError::into_inner).contains(node)
    }

    /// Takes a ban into effect; false when [`BANS`] are held.
    pub fn ban(&self, node: NodeId) -> bool {
        let mut bans = self.bans.write().unwrap_or_else(PoisonError::into_inner);
        if bans.len() >= BANS {
            return false;
        }
        bans.insert(node);
        drop(bans);
        self.mailboxes().evict(&node);
        true
    }

    /// Lifts a ban.
    pub fn unban(&self, node: &NodeId) {
        self.bans.write().unwrap_or_else(PoisonError::into_inner).remove(node);
    }

    /// Notes how the last write went, for health.
    pub(crate) fn note_store(&self, failing: bool) {
        self.store_failing.store(failing, Ordering::Relaxed);
    }

    /// Whether the last write failed.
    #[must_use]
    pub fn store_failing(&self) -> bool {
        self.store_failing.load(Ordering::Relaxed)
    }

    /// Ends streams and tells health.
    pub fn drain(&self) {
        self.draining.send_replace(true);
    }

    /// Follows [`Directory::drain`].
    #[must_use]
    pub fn draining(&self) -> watch::Receiver<bool> {
        self.draining.subscribe()
    }
}
