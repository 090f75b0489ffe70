//! What the API's handlers share. Locks are held for a few lines, never over an await.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use ipnet::IpNet;
use openred_proto::checked::card::Card;
use openred_proto::error::WireError;
use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::limits::LINEAGE;
use tokio::sync::{Notify, watch};

use crate::api::problem::{Code, Problem};
use crate::config::{Config, Mode};
use crate::error::Result;
use crate::health::Standing;
use crate::identity::Identity;
use crate::limits::{
    ADDRESSES_FOR_ALL_STREAMS, ADDRESSES_OF_A_NETWORK, ANNOUNCES, BANS, Buckets, CARD_EVERY, CARDS_BURST, MIRROR_FILLS,
    NEW_NODE_EVERY, NEW_NODES_BURST, PREFIX_BANS, take_both,
};
use crate::metrics::Metrics;
use crate::mirror::Upstream;
use crate::replay::Replay;
use crate::replicas::Replicas;
use crate::route::{Bounds, Mailboxes};
use crate::store::decision::Bans;
use crate::store::postgres::SharedNonces;
use crate::store::{Held, LogEnd, PreviousRun, StoreHandle};
use crate::verified::{self, Verified};

mod prefixes;
mod remarks;

use prefixes::BannedPrefixes;
use remarks::{LeftOut, Remarks};

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

/// The ids in the settings, which were checked with them.
fn mirrors(allow: &[String]) -> HashSet<NodeId> {
    allow.iter().filter_map(|id| id.parse().ok()).collect()
}

/// The network that an address is in: an IPv4 /24, an IPv6 /48.
fn network(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => IpAddr::V4(Ipv4Addr::from_bits(address.to_bits() >> 8 << 8)),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 80 << 80)),
    }
}

/// New nodes by address, and by network.
type NewNodes = [Buckets<IpAddr>; 2];

fn new_nodes() -> NewNodes {
    let all = ADDRESSES_OF_A_NETWORK;
    [Buckets::slow(NEW_NODE_EVERY, NEW_NODES_BURST), Buckets::slow(NEW_NODE_EVERY / all, NEW_NODES_BURST * all)]
}

fn take_new(buckets: &Mutex<NewNodes>, now: UnixMillis, address: IpAddr) -> std::result::Result<(), Duration> {
    let mut buckets = buckets.lock().unwrap_or_else(PoisonError::into_inner);
    let [of_address, of_network] = &mut *buckets;
    take_both(of_address, of_network, now, address, network(address))
}

/// Why a card was not looked at, or is none.
#[derive(Debug)]
pub(crate) enum NotSeen {
    /// Its node has changed its card too often; for so long.
    TooMany(Duration),
    /// It does not verify.
    Wrong(WireError),
}

/// What the store kept of earlier runs.
#[derive(Clone, Debug)]
pub struct Remembered {
    /// Bans.
    pub bans: Bans,
    /// What the run before left behind.
    pub before: PreviousRun,
}

/// What addresses hold open at once, each up to its share.
#[derive(Debug)]
struct Shares {
    share: u64,
    open: Mutex<HashMap<IpAddr, u64>>,
}

impl Shares {
    /// Of so many places.
    fn of(places: u64) -> Self {
        Self { share: (places / ADDRESSES_FOR_ALL_STREAMS).max(1), open: Mutex::default() }
    }

    fn opens(&self, address: Option<IpAddr>) -> bool {
        let Some(address) = address else { return true };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = open.entry(address).or_default();
        let allowed = *mine < self.share;
        *mine += u64::from(allowed);
        allowed
    }

    fn closed(&self, address: Option<IpAddr>) {
        let Some(address) = address else { return };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mine) = open.get_mut(&address) {
            *mine = mine.saturating_sub(1);
            if *mine == 0 {
                open.remove(&address);
            }
        }
    }
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
    /// What a node is asked for that is not here yet.
    pub mode: Mode,
    /// The work that is asked for, as zero bits.
    pub work_bits: u32,
    /// Streams that may be open.
    pub streams: u64,
    /// The directory that this one mirrors.
    pub upstream: Option<Arc<Upstream>>,
    /// Mirrors that may follow this one.
    mirrors: RwLock<HashSet<NodeId>>,
    /// Since when each condition of health is as it is.
    pub(crate) standing: Standing,
    /// Woken when the log of cards has grown.
    pub(crate) log_grew: Notify,
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
    /// Requests by network.
    networks: Mutex<Buckets<IpAddr>>,
    /// New nodes by address, and by network.
    new_nodes: Mutex<NewNodes>,
    /// The same of those who ask what to bring.
    asking: Mutex<NewNodes>,
    /// Changed cards by node.
    cards: Mutex<Buckets<NodeId>>,
    /// Lines in the log about what nodes did.
    remarks: Mutex<Remarks>,
    /// Everybody's requests together.
    overall: Mutex<Buckets<()>>,
    bans: RwLock<HashSet<NodeId>>,
    banned_prefixes: RwLock<BannedPrefixes>,
    /// Changes of bans by this process.
    bans_made: AtomicU64,
    /// Other directories of this identity, and the nonces that all of them have taken.
    shared: OnceLock<(Arc<Replicas>, SharedNonces)>,
    streams_by_address: Shares,
    connections_by_address: Shares,
    /// The last head that was signed: one signature serves all who ask until the log grows.
    head: Mutex<Option<(LogEnd, String)>>,
    verified: Mutex<Verified>,
    store_failing: AtomicBool,
    /// Nodes that come as they are told, by the last count of registrations.
    nodes_here: AtomicU64,
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
        let Remembered { bans, before } = remembered;
        let mut banned_prefixes = BannedPrefixes::default();
        bans.prefixes.iter().for_each(|ban| banned_prefixes.insert(ban.who));
        let overall = *limits.overall_per_second.get_ref();
        let (rate, burst) = (*limits.requests_per_second.get_ref(), *limits.requests_burst.get_ref());
        let all = ADDRESSES_OF_A_NETWORK;
        let bounds = Bounds { offers_per_node: limits.offers_per_node as usize, items: limits.offers as usize };
        Arc::new(Self {
            identity,
            origin,
            behind_proxy: config.behind_proxy,
            lease: Duration::from_secs(u64::from(*config.lease.seconds.get_ref())),
            nodes: u64::from(limits.nodes),
            mode: config.admission.mode,
            work_bits: *config.admission.work_bits.get_ref(),
            streams: u64::from(limits.streams),
            upstream: config.upstream().map(|address| Arc::new(Upstream::new(address))),
            mirrors: RwLock::new(mirrors(config.mirror.allow.get_ref())),
            standing: Standing::default(),
            log_grew: Notify::new(),
            store,
            metrics: Metrics::default(),
            started,
            clock,
            mailboxes: Mutex::new(Mailboxes::new(bounds)),
            replay: Mutex::new(Replay::new(started, before)),
            buckets: Mutex::new(Buckets::new(rate, burst)),
            networks: Mutex::new(Buckets::new(rate.saturating_mul(all), burst.saturating_mul(all))),
            new_nodes: Mutex::new(new_nodes()),
            asking: Mutex::new(new_nodes()),
            cards: Mutex::new(Buckets::slow(CARD_EVERY, CARDS_BURST)),
            remarks: Mutex::new(Remarks::new()),
            overall: Mutex::new(Buckets::new(overall, overall)),
            bans: RwLock::new(bans.nodes.into_iter().map(|ban| ban.who).collect()),
            banned_prefixes: RwLock::new(banned_prefixes),
            bans_made: AtomicU64::new(0),
            shared: OnceLock::new(),
            streams_by_address: Shares::of(u64::from(limits.streams)),
            connections_by_address: Shares::of(u64::from(limits.connections)),
            head: Mutex::default(),
            verified: Mutex::default(),
            store_failing: AtomicBool::new(false),
            nodes_here: AtomicU64::new(0),
            draining: watch::Sender::new(false),
        })
    }

    /// Whether a mirror may follow this one.
    pub(crate) fn lets_in(&self, mirror: &NodeId) -> bool {
        self.mirrors.read().unwrap_or_else(PoisonError::into_inner).contains(mirror)
    }

    /// From now on these may follow, and no others.
    pub(crate) fn let_mirrors_in(&self, allow: &[String]) {
        *self.mirrors.write().unwrap_or_else(PoisonError::into_inner) = mirrors(allow);
    }

    /// Makes this directory one of several. Once, before it serves.
    pub fn join(&self, replicas: Arc<Replicas>, nonces: SharedNonces) {
        self.mailboxes().share(replicas.number, Arc::clone(&replicas.news));
        let _ = self.shared.set((replicas, nonces));
    }

    /// This directory among the others of its identity, if there are to be others.
    #[must_use]
    pub fn replicas(&self) -> Option<&Arc<Replicas>> {
        self.shared.get().map(|(replicas, _)| replicas)
    }

    /// The nonces that all replicas have taken.
    pub(crate) fn shared_nonces(&self) -> Option<&SharedNonces> {
        self.shared.get().map(|(_, nonces)| nonces)
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> UnixMillis {
        (self.clock)()
    }

    /// `did@url`: what nodes put into their configuration.
    #[must_use]
    pub fn address(&self) -> String {
        format!("{}@{}", self.id(), self.origin)
    }

    /// The id by which nodes know the directory; a mirror's is that of the directory that it mirrors.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.upstream.as_ref().map_or_else(|| self.identity.id(), |upstream| upstream.address.id)
    }

    /// How far the log goes, and that head with its signature. A mirror hands on what it was handed.
    pub(crate) async fn signed_head(&self) -> std::result::Result<(u64, String), Problem> {
        if let Some(upstream) = &self.upstream {
            let whole = upstream.head().ok_or_else(|| Problem::from(Code::MirrorBehind).retry_after(MIRROR_FILLS))?;
            return Ok((whole.size, whole.note));
        }
        let end = self.store.read(|store| store.log_end()).await?;
        Ok((end.size, self.sign_head(end)))
    }

    /// The time by which a node was heard of within its lease or not.
    pub(crate) fn presence_now(&self) -> UnixMillis {
        let now = self.now();
        self.upstream.as_ref().map_or(now, |upstream| upstream.presence_now(now))
    }

    fn sign_head(&self, end: LogEnd) -> String {
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

    /// A card whose signature holds, verified now or found so before, as `node` hands it over. One that was not seen here before takes a
    /// token of the node's, before anything of it is remembered.
    pub(crate) fn verify_card(
        &self,
        bytes: &[u8],
        now: UnixMillis,
        node: NodeId,
    ) -> std::result::Result<Card, NotSeen> {
        let verified = || self.verified.lock().unwrap_or_else(PoisonError::into_inner);
        let name = verified::name(bytes);
        let known = verified().has(&name);
        if !known {
            self.take_card(node).map_err(NotSeen::TooMany)?;
        }
        let card = verified::verify(bytes, now, known).map_err(NotSeen::Wrong)?;
        if !known {
            verified().add(name);
        }
        Ok(card)
    }

    /// Takes a token for what adds an entry to the log, which stays there for good. Where more nodes change theirs than are counted, nobody
    /// waits: then it is not one that does.
    pub(crate) fn take_card(&self, node: NodeId) -> std::result::Result<(), Duration> {
        let (mut cards, now) = (self.cards.lock().unwrap_or_else(PoisonError::into_inner), self.now());
        if cards.is_full_for(now, &node) { Ok(()) } else { cards.take(now, node) }
    }

    /// Whether a line in the log may be written about what a node did; it can do so 20 times a second.
    pub(crate) fn may_remark(&self, node: NodeId) -> bool {
        self.remarks.lock().unwrap_or_else(PoisonError::into_inner).take(self.now(), node)
    }

    /// Writes to the log, once a while, how many lines were left out of it.
    pub(crate) fn tell_left_out(&self) {
        let left_out = self.remarks.lock().unwrap_or_else(PoisonError::into_inner).left_out(self.now());
        if let Some(LeftOut { lines, last }) = left_out {
            let last = last.short();
            tracing::warn!(lines, %last, "lines about nodes' wrong cards were left out; `directory status` counts the evidence that is kept");
        }
    }

    pub(crate) fn replay(&self) -> MutexGuard<'_, Replay> {
        self.replay.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A node whose card has not ended and that is neither banned nor quarantined.
    pub(crate) async fn registered(&self, id: NodeId) -> Result<Option<Held>> {
        Ok(self.held(id).await?.filter(|held| !held.quarantined))
    }

    /// A node whose card has not ended and that is not banned.
    pub(crate) async fn held(&self, id: NodeId) -> Result<Option<Held>> {
        if self.is_banned(&id) {
            return Ok(None);
        }
        let now = self.now();
        let held = self.store.read(move |store| store.node(&id)).await?;
        Ok(held.filter(|held| held.expires_at > now))
    }

    /// Whether look-ups and discovery may show it.
    pub(crate) fn shows(&self, held: &Held, now: UnixMillis) -> bool {
        !held.quarantined && held.expires_at > now && !self.is_banned(&held.node)
    }

    /// When nodes are told to announce themselves again: after a third of the lease, later where so many would be too many a
    /// second, and never after more than two thirds.
    pub(crate) fn announce_every(&self) -> Duration {
        let by_number = Duration::from_secs(self.nodes_here.load(Ordering::Relaxed) / ANNOUNCES);
        (self.lease / 3).max(by_number).min(self.lease / 3 * 2)
    }

    /// Notes how many registrations came in `time`, for [`Directory::announce_every`]: so many nodes there are, if each came as it was
    /// told. Counting a million rows would hold look-ups up.
    pub fn note_registrations(&self, registrations: u64, time: Duration) {
        let nodes = registrations * self.announce_every().as_secs() / time.as_secs().max(1);
        self.nodes_here.store(nodes, Ordering::Relaxed);
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
        let buckets = || self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let Caller::Address(address) = caller else { return buckets().take(self.now(), caller) };
        let mut networks = self.networks.lock().unwrap_or_else(PoisonError::into_inner);
        take_both(&mut buckets(), &mut networks, self.now(), caller, network(address))
    }

    /// Takes a token for a node that comes for the first time; keys cost nothing, so its address and network are what is counted.
    pub(crate) fn take_new_node(&self, address: IpAddr) -> std::result::Result<(), Duration> {
        take_new(&self.new_nodes, self.now(), address)
    }

    /// The same of a node that asks what to bring.
    pub(crate) fn take_asking(&self, address: IpAddr) -> std::result::Result<(), Duration> {
        take_new(&self.asking, self.now(), address)
    }

    /// Takes a token of all requests together.
    pub(crate) fn take_overall(&self) -> std::result::Result<(), Duration> {
        self.overall.lock().unwrap_or_else(PoisonError::into_inner).take(self.now(), ())
    }

    /// Counts a stream against its address; false when the address has its share of all.
    pub(crate) fn stream_opens(&self, address: Option<IpAddr>) -> bool {
        self.streams_by_address.opens(address)
    }

    /// A stream that was counted has ended.
    pub(crate) fn stream_closed(&self, address: Option<IpAddr>) {
        self.streams_by_address.closed(address);
    }

    /// Counts a connection against its address; false when the address has its share of all.
    pub(crate) fn connection_opens(&self, address: Option<IpAddr>) -> bool {
        self.connections_by_address.opens(address)
    }

    /// A connection that was counted has ended.
    pub(crate) fn connection_closed(&self, address: Option<IpAddr>) {
        self.connections_by_address.closed(address);
    }

    /// What an address is counted by: an IPv4 address itself, of an IPv6 one its /64, which one customer has. None for loopback,
    /// which is this machine's own, nor behind a proxy, where every address is the proxy's: there the proxy limits.
    pub(crate) fn counted(&self, address: IpAddr) -> Option<IpAddr> {
        match address.to_canonical() {
            _ if self.behind_proxy => None,
            address if address.is_loopback() => None,
            IpAddr::V6(address) => Some(IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() >> 64 << 64))),
            address => Some(address),
        }
    }

    /// Whether a ban covers an address.
    #[must_use]
    pub fn is_banned_address(&self, address: IpAddr) -> bool {
        self.banned_prefixes.read().unwrap_or_else(PoisonError::into_inner).contain(address.to_canonical())
    }

    /// Whether this prefix is banned, as it is.
    pub(crate) fn is_banned_prefix(&self, prefix: &IpNet) -> bool {
        self.banned_prefixes.read().unwrap_or_else(PoisonError::into_inner).holds(prefix)
    }

    /// Takes a ban of addresses into effect.
    pub fn ban_prefix(&self, prefix: IpNet) {
        self.bans_made.fetch_add(1, Ordering::SeqCst);
        self.banned_prefixes.write().unwrap_or_else(PoisonError::into_inner).insert(prefix);
    }

    /// Lifts one.
    pub fn unban_prefix(&self, prefix: &IpNet) {
        self.bans_made.fetch_add(1, Ordering::SeqCst);
        self.banned_prefixes.write().unwrap_or_else(PoisonError::into_inner).remove(prefix);
    }

    /// How many more bans can be held, of nodes and of prefixes.
    #[must_use]
    pub fn room_for_bans(&self) -> (usize, usize) {
        let nodes = self.bans.read().unwrap_or_else(PoisonError::into_inner).len();
        let prefixes = self.banned_prefixes.read().unwrap_or_else(PoisonError::into_inner).count();
        (BANS.saturating_sub(nodes), PREFIX_BANS.saturating_sub(prefixes))
    }

    /// Whether a node is banned.
    #[must_use]
    pub fn is_banned(&self, node: &NodeId) -> bool {
        self.bans.read().unwrap_or_else(PoisonError::into_inner).contains(node)
    }

    /// Takes a ban into effect.
    pub fn ban(&self, node: NodeId) {
        self.bans_made.fetch_add(1, Ordering::SeqCst);
        self.bans.write().unwrap_or_else(PoisonError::into_inner).insert(node);
        self.mailboxes().evict(&node);
    }

    /// Lifts a ban.
    pub fn unban(&self, node: &NodeId) {
        self.bans_made.fetch_add(1, Ordering::SeqCst);
        self.bans.write().unwrap_or_else(PoisonError::into_inner).remove(node);
    }

    /// Changes of bans that this process has made so far, for [`Directory::replace_bans`].
    pub(crate) fn bans_made(&self) -> u64 {
        self.bans_made.load(Ordering::SeqCst)
    }

    /// Takes the bans of the database into effect, which another replica may have changed. False, and nothing is done, where this process
    /// has changed some since `made`: what was read may be older.
    pub(crate) fn replace_bans(&self, bans: &Bans, made: u64) -> bool {
        let mut prefixes = BannedPrefixes::default();
        bans.prefixes.iter().for_each(|ban| prefixes.insert(ban.who));
        let nodes: HashSet<NodeId> = bans.nodes.iter().map(|ban| ban.who).collect();
        let mut held = self.bans.write().unwrap_or_else(PoisonError::into_inner);
        if self.bans_made() != made {
            return false;
        }
        let new: Vec<NodeId> = nodes.difference(&held).copied().collect();
        *held = nodes;
        drop(held);
        *self.banned_prefixes.write().unwrap_or_else(PoisonError::into_inner) = prefixes;
        let mut mailboxes = self.mailboxes();
        new.iter().for_each(|node| mailboxes.evict(node));
        true
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
