//! Links with peers: how they are made, kept, used and ended. The rules are in `state` (one link) and `judge` (an offer);
//! this module carries them out against the store, the key process and a directory.
//!
//! One change at a time (`turn`), and always in this order, so that a crash between any two steps loses nothing:
//!
//! | act | first | then | after a crash in between |
//! |---|---|---|---|
//! | request | key process issues | row and offer stored; offer sent until the receipt | the issued link is unknown here and ends with its life |
//! | accept | key process accepts (marks the offer seen) | row and receipt stored; receipt sent | the issuer sends again and gets the same receipt |
//! | receipt | stored | the network may use the link | the link is loaded at start |
//! | renew | key process issues | row and offer stored, the renewed link marked; offer sent until the receipt | as of a request; the renewed link serves on |
//! | revoke, replace, expire | stored as over, sessions dropped | the key process is told, then noted as told | it is told again |
//!
//! Keys that select REQUESTs come from the key process and stay in memory; tokens are only ever seen sealed.

mod cards;
mod changes;
pub(crate) mod decisions;
pub(crate) mod direct;
pub(crate) mod inside;
pub(crate) mod judge;
pub(crate) mod methods;
mod offers;
pub(crate) mod ports;
pub(crate) mod queue;
mod registered;
mod renew;
pub(crate) mod renewal;
pub(crate) mod state;
mod succession;
pub(crate) mod sync;
#[cfg(test)]
mod tests;
mod upkeep;
mod usage;
pub(crate) mod words;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use openred_proto::id::{LinkId, NodeId, UnixMillis};
use openred_proto::method::{Method, MethodSet, Schedule};
use openred_proto::secret::Secret;
use openred_proto::vault::{LinkKeys, RequestKeys};
use tokio::sync::Notify;

use crate::config::LinkConfig;
use crate::directory::DirectoryError;
use crate::health::Health;
use crate::keys::KeysError;
use crate::p2p::ports::{LinkHandle, SessionOpened, SignedSession};
use crate::reports::Reports;
use crate::store::{Store, StoreError, Word};
use methods::{BadDecision, Methods};
use ports::{Carrier, Courier, LinkObserver, LinkVault};
use state::{Link, LinkState, WrongState};

/// Why something about a link could not be done; for the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LinkError {
    #[error("a node cannot be linked with itself")]
    WithItself,
    #[error("that peer has named a successor, whose card no directory has yet; try again later")]
    Succeeded,
    #[error("no such link; see `openred link list --all`")]
    NotFound,
    #[error("more than one link begins so; give more digits")]
    Ambiguous,
    #[error("the peer could not be reached")]
    Unreachable,
    #[error("there is a link with this peer already; see `openred link show`")]
    Linked,
    #[error(
        "no directory answers, and as many requests wait for one as are kept (64); `openred link revoke DID` withdraws one"
    )]
    QueueFull,
    #[error(
        "taken back while the peer was looked up, by `peers deny` or `link revoke`; ask again if it is wanted all the same"
    )]
    Withdrawn,
    #[error(transparent)]
    Method(#[from] BadDecision),
    #[error(transparent)]
    WrongState(#[from] WrongState),
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}

/// A link in memory: as stored, with its request keys once the key process gave them.
struct Held {
    link: Link,
    keys: Option<LinkKeys>,
    sending: offers::Sending,
    /// Attempts to renew it that came to nothing.
    renewing: offers::Sending,
}

/// What a change of a link means to the observer.
struct Placed {
    id: LinkId,
    peer: NodeId,
    over: bool,
    was_expected: bool,
    handle: Option<Arc<LinkHandle>>,
}

/// Links that are over, and of which the observer is told when this is dropped: also when nobody waits any more for what is done
/// before.
struct Parting<'a> {
    links: &'a Links,
    over: Vec<Placed>,
}

impl Drop for Parting<'_> {
    fn drop(&mut self) {
        self.over.drain(..).for_each(|placed| self.links.tell(placed));
    }
}

/// All links of this node.
pub(crate) struct Links {
    pub(crate) me: NodeId,
    config: LinkConfig,
    /// What the operator has decided beside it.
    methods: Mutex<Methods>,
    /// What modules have registered.
    described: Mutex<Vec<registered::Described>>,
    sector: String,
    store: Store,
    vault: Arc<dyn LinkVault>,
    carrier: Arc<dyn Carrier>,
    observer: OnceLock<Arc<dyn LinkObserver>>,
    courier: OnceLock<Arc<dyn Courier>>,
    health: Arc<Health>,
    reports: Arc<Reports>,
    table: Mutex<BTreeMap<LinkId, Held>>,
    successors: Mutex<succession::Successors>,
    asked: Mutex<inside::Asked>,
    introductions: Mutex<direct::Introductions>,
    steps: Mutex<inside::Steps>,
    /// What the operator has asked for while no directory answered; changed under the turn.
    requests: Mutex<queue::Requests>,
    /// Whether the key process was asked for links that nothing is left of here.
    swept: AtomicBool,
    /// When nodes that are nobody any more were dropped last; milliseconds.
    purged_at: AtomicU64,
    /// Held for the length of one change, so that what was judged still stands when it is stored.
    turn: tokio::sync::Mutex<()>,
    /// Woken by every change, for those who wait for one.
    pub(crate) changed: Notify,
    /// Woken when the key process may have something to be told.
    due: Notify,
    /// Woken when there may be an offer to send.
    offer_due: Notify,
    /// Woken when lists are to be compared with a peer, or cards exchanged.
    sync_wanted: Notify,
    /// What handshakes left on links and is not stored yet; changed under the turn.
    unstored: Mutex<usage::Unstored>,
    /// Woken when there is some.
    use_due: Notify,
    /// Woken when so much of it is counts that it is not to wait.
    counts_due: Notify,
}

/// What the service is made of.
pub(crate) struct Parts {
    pub(crate) me: NodeId,
    pub(crate) config: LinkConfig,
    pub(crate) sector: String,
    pub(crate) store: Store,
    pub(crate) vault: Arc<dyn LinkVault>,
    pub(crate) carrier: Arc<dyn Carrier>,
    pub(crate) health: Arc<Health>,
    pub(crate) reports: Arc<Reports>,
}

impl Links {
    /// Loads what the store holds. Request keys are fetched by [`Links::fetch_keys`].
    ///
    /// # Errors
    /// When the store cannot be read.
    pub(crate) async fn load(parts: Parts) -> Result<Arc<Self>, StoreError> {
        let links = direct::without_strangers(&parts.store, parts.store.links().await?).await?;
        let decided = parts.store.decided_methods().await?;
        let methods = decided.clone().settled(parts.config.method_set(), crate::clock::now());
        if methods != decided {
            parts.store.decide_methods(methods.clone()).await?;
        }
        let requests = queue::Requests::of(parts.store.requests().await?, crate::clock::now());
        let held = |link: Link| (link.id(), Held::new(link));
        let loaded = Arc::new(Self {
            me: parts.me,
            config: parts.config,
            methods: Mutex::new(methods),
            described: Mutex::default(),
            sector: parts.sector,
            store: parts.store,
            vault: parts.vault,
            carrier: parts.carrier,
            observer: OnceLock::new(),
            courier: OnceLock::new(),
            health: parts.health,
            reports: parts.reports,
            table: Mutex::new(links.into_iter().map(held).collect()),
            successors: Mutex::default(),
            asked: Mutex::default(),
            introductions: Mutex::default(),
            steps: Mutex::default(),
            requests: Mutex::new(requests),
            swept: AtomicBool::new(false),
            purged_at: AtomicU64::new(0),
            turn: tokio::sync::Mutex::new(()),
            changed: Notify::new(),
            due: Notify::new(),
            offer_due: Notify::new(),
            sync_wanted: Notify::new(),
            unstored: Mutex::default(),
            use_due: Notify::new(),
            counts_due: Notify::new(),
        });
        loaded.settle_successions().await?;
        Ok(loaded)
    }

    /// Who is told of links that begin and end. Set once, before anything runs.
    pub(crate) fn observe(&self, observer: Arc<dyn LinkObserver>) {
        // A second call would be a defect of the wiring; the first observer stays.
        let _ = self.observer.set(observer);
    }

    /// Who asks peers inside a session. Set once, before anything runs; without, offers go through directories alone.
    pub(crate) fn send_by(&self, courier: Arc<dyn Courier>) {
        // As of the observer.
        let _ = self.courier.set(courier);
    }

    /// Every link, newest last; ended ones included.
    pub(crate) fn all(&self) -> Vec<Link> {
        let mut links: Vec<Link> = self.table().values().map(|held| held.link.clone()).collect();
        links.sort_by_key(|link| (link.created_at, link.id()));
        links
    }

    /// The link that matters most for a peer: a live one, else the newest.
    pub(crate) fn of_peer(&self, peer: &NodeId) -> Option<Link> {
        let rank = |link: &Link| (link.state.is_live(), !link.state.is_over(), link.created_at);
        self.all().into_iter().filter(|link| link.peer() == *peer).max_by_key(rank)
    }

    /// A link by id, by an unambiguous beginning of it in hex, or by its peer's did:key.
    pub(crate) fn select(&self, text: &str) -> Result<Link, LinkError> {
        if let Ok(peer) = text.parse::<NodeId>() {
            return self.of_peer(&self.current(&peer)).ok_or(LinkError::NotFound);
        }
        let text = text.to_ascii_lowercase();
        let mut found =
            self.all().into_iter().filter(|link| !text.is_empty() && link.id().to_string().starts_with(&text));
        match (found.next(), found.next()) {
            (Some(link), None) => Ok(link),
            (Some(_), Some(_)) => Err(LinkError::Ambiguous),
            (None, _) => Err(LinkError::NotFound),
        }
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<LinkId, Held>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unstored(&self) -> MutexGuard<'_, usage::Unstored> {
        self.unstored.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores links as they now are, in one transaction, then lets everybody see them. With a link that ends here ends the offer that
    /// was to renew it: what opens that one is the link. The turn is held by the caller.
    async fn keep(&self, mut links: Vec<Link>) -> Result<(), StoreError> {
        let orphans = changes::orphans(self.all().iter(), &links, crate::clock::now());
        links.extend(orphans);
        self.store.put_links(links.clone()).await?;
        for link in links {
            self.show(link, None);
        }
        Ok(())
    }

    /// Puts a stored link into the table and tells the observer what it means for it.
    fn show(&self, link: Link, keys: Option<LinkKeys>) {
        self.tell(self.place(link, keys));
    }

    /// Puts a stored link into the table; [`Links::tell`] is to follow.
    fn place(&self, link: Link, keys: Option<LinkKeys>) -> Placed {
        let (id, peer, over) = (link.id(), link.peer(), link.state.is_over());
        let (was_expected, handle) = {
            let mut table = self.table();
            let before = table.remove(&id);
            let was_expected = before.as_ref().is_some_and(|held| held.link.state.is_expected() && held.keys.is_some());
            let before = before.unwrap_or_else(|| Held::new(link.clone()));
            let held = Held { link, keys: keys.or(before.keys), ..before };
            let handle = held.handle();
            table.insert(id, held);
            (was_expected, handle)
        };
        Placed { id, peer, over, was_expected, handle }
    }

    /// Tells everybody what a link's new place means for it.
    fn tell(&self, placed: Placed) {
        let Placed { id, peer, over, was_expected, handle } = placed;
        if let Some(observer) = self.observer.get() {
            match handle {
                Some(handle) if !was_expected => observer.link_added(handle),
                None if over && was_expected => {
                    observer.link_removed(id);
                    if self.for_peer_now(&peer).is_none() {
                        observer.peer_forgotten(peer);
                    }
                }
                _ => {}
            }
        }
        self.changed.notify_waiters();
        self.due.notify_one();
        self.offer_due.notify_one();
    }

    fn for_peer_now(&self, peer: &NodeId) -> Option<Arc<LinkHandle>> {
        let now = crate::clock::now();
        let table = self.table();
        let preferred = changes::preferred(table.values().map(|held| &held.link), peer, now)?;
        table.get(&preferred.id()).and_then(Held::handle)
    }

    fn fallback_now(&self, peer: &NodeId) -> Option<Arc<LinkHandle>> {
        let now = crate::clock::now();
        let table = self.table();
        let fallback = changes::fallback(table.values().map(|held| &held.link), peer, now)?;
        table.get(&fallback.id()).and_then(Held::handle)
    }

    /// Whether there is a link over which requests can go.
    pub(crate) fn is_linked(&self, peer: &NodeId) -> bool {
        self.for_peer_now(&self.current(peer)).is_some()
    }

    /// Where a link stands.
    pub(crate) fn state_of_link(&self, id: &LinkId) -> Option<LinkState> {
        self.table().get(id).map(|held| held.link.state)
    }

    fn link(&self, id: &LinkId) -> Option<Link> {
        self.table().get(id).map(|held| held.link.clone())
    }
}

impl LinkError {
    /// Whether no directory said anything.
    const fn is_silence(&self) -> bool {
        matches!(self, Self::Directory(error) if error.is_silence())
    }
}

impl Held {
    fn new(link: Link) -> Self {
        Self { link, keys: None, sending: offers::Sending::default(), renewing: offers::Sending::default() }
    }

    /// What the network layer needs, once its keys are here and as long as the peer may use it.
    fn handle(&self) -> Option<Arc<LinkHandle>> {
        if !self.link.state.is_expected() {
            return None;
        }
        Some(Arc::new(LinkHandle {
            link: self.link.id(),
            peer: self.link.peer(),
            method: self.link.summary.method,
            row: Bytes::copy_from_slice(&self.link.row),
            keys: copy_keys(self.keys.as_ref()?),
            outgoing_counter: self.link.sent_counter,
            incoming_counter: self.link.received_counter,
            not_after: self.link.summary.not_after,
        }))
    }
}

/// These keys earn a look and nothing more, and several parts of this process hold them: copies are harmless here.
fn copy_keys(keys: &LinkKeys) -> LinkKeys {
    let copy = |keys: &RequestKeys| RequestKeys {
        tag: Secret::new(*keys.tag.expose()),
        mac1: Secret::new(*keys.mac1.expose()),
    };
    LinkKeys { outgoing: copy(&keys.outgoing), incoming: copy(&keys.incoming) }
}

#[async_trait]
impl crate::p2p::ports::Links for Links {
    fn for_peer(&self, peer: &NodeId) -> Option<Arc<LinkHandle>> {
        self.for_peer_now(peer)
    }

    fn fallback_for_peer(&self, peer: &NodeId) -> Option<Arc<LinkHandle>> {
        self.fallback_now(peer)
    }

    async fn session_opened(&self, opened: SessionOpened) {
        self.used(&opened).await;
        self.carrier.card_hint(opened.peer, opened.peer_card_sequence);
        self.exchange_if_due(opened.peer, opened.peer_card_sequence);
        self.send_now(&opened.peer);
        if opened.initiator {
            self.sync_if_due(opened.peer);
        }
        if let Some(observer) = self.observer.get() {
            observer.peer_reachable(opened.peer);
            // What waits for it under an older id may go now, too.
            self.earlier_of(&opened.peer).into_iter().for_each(|earlier| observer.peer_reachable(earlier));
        }
    }

    async fn answer(&self, peer: NodeId, path: &str, body: Bytes) -> (u16, Bytes) {
        self.answer_peer(peer, path, body).await
    }

    async fn session_signed(&self, signed: SignedSession) -> bool {
        let kept = self.store.put_proof(signed).await;
        kept.inspect_err(|error| self.store_failed(*error)).is_ok()
    }

    fn allowed_methods(&self) -> MethodSet {
        Links::allowed_methods(self)
    }

    async fn is_denied(&self, peer: NodeId) -> bool {
        self.store.word(self.current(&peer)).await.map_or(true, |word| word == Word::No)
    }

    async fn answer_contact(&self, peer: NodeId, mutual_link: [u8; 16], path: &str, body: Bytes) -> (u16, Bytes) {
        let (status, body) = self.answer_stranger(peer, mutual_link, path, body).await;
        (status.as_u16(), body)
    }

    async fn match_checked(&self, link: LinkId, matched: bool, at: UnixMillis) {
        let _turn = self.turn.lock().await;
        let Some(known) = self.link(&link) else { return };
        if let Err(error) = self.keep(vec![known.with_match(matched, at)]).await {
            self.store_failed(error);
        }
    }
}

impl Links {
    /// The condition is the store's own to raise and clear.
    fn store_failed(&self, error: StoreError) {
        tracing::error!(%error, "a change of a link was not stored");
    }

    /// Whether a peer's link is over or unknown: used by `peers`.
    pub(crate) fn state_of(&self, peer: &NodeId) -> &'static str {
        match self.of_peer(peer) {
            Some(link) if !link.state.is_over() => link.state.name(),
            _ if self.has_request(peer) => queue::QUEUED,
            over => over.map_or("", |link| link.state.name()),
        }
    }

    /// What the operator has decided about methods.
    pub(crate) fn methods(&self) -> Methods {
        self.methods.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Methods that this node issues and accepts.
    pub(crate) fn allowed_methods(&self) -> MethodSet {
        self.methods().allowed(self.config.method_set())
    }

    /// What picks the method of a link that this node issues.
    pub(crate) fn schedule(&self) -> Schedule {
        self.methods().schedule(self.config.schedule)
    }

    /// The operator allows a method again, or disables it: links that use it are renewed with others (PROTOCOL 3).
    ///
    /// # Errors
    /// A decision that cannot be, or the store refuses.
    pub(crate) async fn decide_method(&self, method: Method, allow: bool) -> Result<(), LinkError> {
        let methods = self.methods().with(method, allow, self.config.method_set(), crate::clock::now())?;
        tracing::info!(%method, allow, "method decided");
        self.decide(methods).await
    }

    /// The operator chooses a schedule.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn decide_schedule(&self, schedule: Schedule) -> Result<(), LinkError> {
        self.decide(self.methods().scheduled(schedule)).await
    }

    async fn decide(&self, methods: Methods) -> Result<(), LinkError> {
        let _turn = self.turn.lock().await;
        self.store.decide_methods(methods.clone()).await?;
        *self.methods.lock().unwrap_or_else(PoisonError::into_inner) = methods;
        // Links that were tried in vain may find a method now.
        self.table().values_mut().for_each(|held| held.renewing = offers::Sending::default());
        self.carrier.methods_changed(self.allowed_methods()).await;
        Ok(())
    }

    /// How many links are live, and how many wait for something.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let table = self.table();
        let live = table.values().filter(|held| held.link.state.is_live()).count();
        let waiting = |held: &&Held| matches!(held.link.state, LinkState::Offered | LinkState::Waiting);
        (live, table.values().filter(waiting).count() + self.requests().len())
    }
}
