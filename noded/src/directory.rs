//! The node's side of its directories: announce the card, find cards, carry offers and receipts, hear what waits.
//!
//! A directory is trusted for availability alone. A card is verified here (signature, times, never older than one seen
//! before) and again by the key process before an offer is sealed to it; its receipts must carry the signature of the id
//! in the configuration. What contradicts a signature or an earlier card is raised as a condition and believed by nobody.
//! All configured directories are used; for look-ups the first that answers counts (`seek`).

mod announce;
mod client;
pub(crate) mod honesty;
mod log;
mod names;
mod seek;
mod stream;
mod wire;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use openred_proto::admin::DirectoryStatus;
use openred_proto::admission::Invite;
use openred_proto::checked::card::{Card, CardFields, Succession};
use openred_proto::error::WireError;
use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::method::MethodSet;
use tokio::sync::mpsc;
use url::{Host, Url};

use crate::clock;
use crate::config::{DirectoryAddress, LookUps};
use crate::health::{Condition, Health};
use crate::keys::{CryptodClient, KeysError, SignedCard};
use crate::link::ports::{Carrier, FoundCard};
use crate::reports::Reports;
use crate::sensitive::Sensitive;
use crate::store::{Carried, Store, StoreError};
use client::Client;
use honesty::Honesty;
pub(crate) use names::{ResolvedNames, resolve_names};
pub(crate) use stream::{Delivered, Kind as ItemKind};

/// A card in memory is asked for again, in the background, once it is older than this.
const REFRESH_AFTER: Duration = Duration::from_secs(600);

/// Why a directory did not do what was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DirectoryError {
    #[error("no directory is configured; set `directories`")]
    None,
    #[error("the directory's host name did not resolve when the node started; check it, then restart the node")]
    Unresolved,
    #[error("the directory cannot be reached; it is tried again")]
    Unreachable,
    #[error("the directory did not answer in time; it is tried again")]
    Slow,
    #[error("the directory refused (HTTP {0}); its operator can say why")]
    Refused(u16),
    #[error("this node is not registered with the directory (yet); it is announced again")]
    Unregistered,
    #[error(
        "this is a mirror, which only answers who reads: name it in `directory.mirrors`, and its directory in `directories`"
    )]
    Mirror,
    #[error("the directory has more nodes with this prefix than it shows at once")]
    PrefixWide,
    #[error("no directory knows this node; is it up, and registered where you look?")]
    UnknownNode,
    #[error("the directory answered out of contract: {0}")]
    BadAnswer(#[from] WireError),
    #[error("the directory gave an older card of this node than one seen before (rollback); nothing was believed")]
    Rollback,
    #[error(
        "the directory has only an older card of this node than the node itself has handed over; it is asked again"
    )]
    Behind,
    #[error("two different cards of this node carry one sequence (equivocation); nothing was believed")]
    Equivocation,
    #[error(
        "another identity is published as this node's successor; if that was not you: `openred key take-back --of DID` \
         within 72 hours (the directory's operator can name it)"
    )]
    Succeeded,
    #[error(
        "the directory asks new nodes for more work (2^{0} hashes) than this node does; ask its operator for an invite"
    )]
    WorkWanted(u32),
    #[error(
        "the directory lets new nodes in by invite, and has none from this node or not this one; ask its operator: `directory.invites`"
    )]
    InviteWanted,
    #[error("the directory's operator has not approved this node yet: until then nobody finds it there")]
    Quarantined,
    #[error(transparent)]
    Keys(#[from] KeysError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl DirectoryError {
    /// Which of several answers is told: a lie before a refusal before silence before nothing.
    const fn gravity(self) -> u8 {
        match self {
            _ if self.is_dishonest() => 3,
            Self::None => 0,
            Self::Unresolved | Self::Unreachable | Self::Slow => 1,
            _ => 2,
        }
    }

    /// Whether nothing was said, or no more than that it is said later.
    pub(crate) const fn is_silence(&self) -> bool {
        matches!(self, Self::Unresolved | Self::Unreachable | Self::Slow | Self::Refused(429 | 500..=599))
    }

    /// Whether the directory (or the peer) contradicted something signed.
    const fn is_dishonest(self) -> bool {
        matches!(
            self,
            Self::Rollback
                | Self::Equivocation
                | Self::BadAnswer(WireError::BadSignature { .. } | WireError::WrongSigner { .. })
        )
    }
}

/// What the directories are made of.
pub(crate) struct Parts {
    pub(crate) me: NodeId,
    /// Whether the node listens on loopback alone.
    pub(crate) listens_locally: bool,
    pub(crate) addresses: Vec<DirectoryAddress>,
    pub(crate) mirrors: Vec<DirectoryAddress>,
    pub(crate) look_ups: LookUps,
    pub(crate) names: ResolvedNames,
    pub(crate) tls: Arc<rustls::ClientConfig>,
    pub(crate) card: CardFields,
    pub(crate) suites: MethodSet,
    pub(crate) card_life: Duration,
    pub(crate) invites: Vec<Invite>,
    pub(crate) keys: CryptodClient,
    pub(crate) store: Store,
    pub(crate) health: Arc<Health>,
    pub(crate) reports: Arc<Reports>,
}

/// All directories of this node.
pub(crate) struct Directories {
    me: NodeId,
    listens_locally: bool,
    clients: Vec<Arc<Client>>,
    /// Mirrors of these, for look-ups alone.
    mirrors: Vec<Arc<Client>>,
    card: CardFields,
    suites: Mutex<MethodSet>,
    card_life: Duration,
    keys: CryptodClient,
    store: Store,
    health: Arc<Health>,
    /// Our own card, signed once for all directories.
    own: tokio::sync::Mutex<Option<(SignedCard, UnixMillis)>>,
    /// Verified cards by peer; as many as there are peers in the store.
    cards: Mutex<BTreeMap<NodeId, CachedCard>>,
    /// Peers that answered at none of their endpoints: their cards are asked for before the next attempt.
    unreached: Mutex<HashSet<NodeId>>,
    /// A card brought news of a succession, which the store has.
    succeeded: AtomicBool,
    /// What directories were caught at, and what is doubted.
    honesty: Honesty,
}

/// A verified card in memory.
#[derive(Clone, Debug)]
pub(crate) struct CachedCard {
    pub(crate) card: Arc<Card>,
    bytes: Bytes,
    directory: NodeId,
    fetched_at: UnixMillis,
    /// Identities that its node goes on for, by their own word.
    earlier: Vec<NodeId>,
}

impl From<CachedCard> for FoundCard {
    fn from(found: CachedCard) -> Self {
        let (node, sector) = (found.card.node_id, found.card.fields.sector.clone());
        Self { node, earlier: found.earlier, card: found.bytes, sector, directory: found.directory }
    }
}

/// What a look-up leaves behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    /// The card, in memory and store: somebody here asked for it.
    Card,
    /// Nothing: somebody there made this node ask.
    Nothing,
}

impl Directories {
    pub(crate) fn new(parts: Parts) -> Arc<Self> {
        let Parts { me, listens_locally, addresses, mirrors, look_ups, names, tls, .. } = parts;
        let Parts { card, suites, card_life, invites, keys, store, health, reports, .. } = parts;
        if addresses.is_empty() {
            health.raise(Condition::NoDirectory, clock::now(), "");
        }
        let client = |address: DirectoryAddress| {
            let invite = invites.iter().find(|invite| invite.is_for(&address.id)).cloned();
            Client::new(me, address, invite, look_ups, &names, &tls, keys.clone())
        };
        let honesty = Honesty::new(store.clone(), Arc::clone(&health), reports);
        Arc::new(Self {
            me,
            listens_locally,
            mirrors: mirrors.into_iter().map(client).map(Client::for_look_ups).map(Arc::new).collect(),
            clients: addresses.into_iter().map(client).map(Arc::new).collect(),
            card,
            suites: Mutex::new(suites),
            card_life,
            keys,
            store,
            health,
            own: tokio::sync::Mutex::new(None),
            cards: Mutex::default(),
            unreached: Mutex::default(),
            succeeded: AtomicBool::new(false),
            honesty,
        })
    }

    /// Announces and listens at every directory. What arrives goes into `delivered`.
    pub(crate) fn start(self: &Arc<Self>, delivered: &mpsc::Sender<Delivered>, tasks: &mut tokio::task::JoinSet<()>) {
        for client in &self.clients {
            tasks.spawn(Arc::clone(self).announce(Arc::clone(client)));
            tasks.spawn(stream::listen(Arc::clone(client), delivered.clone()));
        }
        let this = Arc::clone(self);
        tasks.spawn(async move {
            this.honesty.load(this.clients.iter().map(|client| client.address())).await;
            let watch = |client: &Arc<Client>| Arc::clone(&this).watch(Arc::clone(client));
            let watch_mirror = |mirror: &Arc<Client>| Arc::clone(&this).watch_mirror(Arc::clone(mirror));
            let mirrors = futures_util::future::join_all(this.mirrors.iter().map(watch_mirror));
            tokio::join!(futures_util::future::join_all(this.clients.iter().map(watch)), mirrors);
        });
    }

    /// Signs a new card at once and announces it: what is in it has changed.
    pub(crate) async fn renew_card(&self) {
        *self.own.lock().await = None;
        self.clients.iter().for_each(|client| client.announce_now.notify_one());
    }

    /// The methods that the card names, from its next signing on.
    pub(crate) fn allow_methods(&self, allowed: MethodSet) {
        *lock(&self.suites) = allowed;
    }

    /// How each directory stands.
    pub(crate) fn status(&self) -> Vec<DirectoryStatus> {
        let with_evidence = |client: &Arc<Client>| DirectoryStatus {
            evidence: self.honesty.evidence(&client.address().id).iter().map(honesty::shown).collect(),
            ..client.status()
        };
        self.clients.iter().map(with_evidence).collect()
    }

    /// The peer's card: from memory or the store if it still holds, else from a directory.
    pub(crate) async fn known_card(&self, peer: NodeId) -> Option<CachedCard> {
        if let Some(cached) = self.cached(&peer) {
            return Some(cached);
        }
        let kept = self.store.peer(peer).await.ok()??;
        let card = Card::verify(&kept.card, clock::now()).ok()?;
        Some(self.remember(card, kept.card.into(), self.some_directory(), kept.fetched_at, Vec::new()))
    }

    /// Where a peer was last, by a card that has ended since. Whether it still is there its handshake says; who waits for a directory
    /// to say it waits for as long as that is away.
    async fn last_endpoints(&self, peer: NodeId) -> Option<Vec<String>> {
        let kept = self.store.peer(peer).await.ok()??;
        Some(Card::verify(&kept.card, kept.fetched_at).ok()?.fields.endpoints)
    }

    /// Which directory a card came from is not kept with it, and matters for new links alone.
    fn some_directory(&self) -> NodeId {
        self.clients.first().map_or(self.me, |client| client.address().id)
    }

    fn cached(&self, peer: &NodeId) -> Option<CachedCard> {
        let now = clock::now();
        lock(&self.cards).get(peer).filter(|cached| cached.card.expires_at > now).cloned()
    }

    fn remember(
        &self,
        card: Card,
        bytes: Bytes,
        directory: NodeId,
        fetched_at: UnixMillis,
        earlier: Vec<NodeId>,
    ) -> CachedCard {
        let cached = CachedCard { card: Arc::new(card), bytes, directory, fetched_at, earlier };
        lock(&self.cards).insert(cached.card.node_id, cached.clone());
        cached
    }

    /// Holds a card that a directory gave for `peer` against all that is known.
    async fn take_shown(
        &self,
        client: &Client,
        peer: NodeId,
        bytes: Bytes,
        keep: Keep,
    ) -> Result<CachedCard, DirectoryError> {
        // By our own clock and its grace: a directory must not say which cards have ended.
        let card = Card::verify(&bytes, clock::now())?;
        let earlier = self.follow(&card).await?;
        // A directory may answer with the card of whoever goes on for the one that was asked for.
        if card.node_id != peer && !earlier.contains(&peer) {
            return Err(WireError::WrongSigner { what: "card" }.into());
        }
        let (node, sequence) = (card.node_id, card.sequence);
        match self.take_in(card, bytes, client.address().id, earlier.clone(), keep).await {
            Err(DirectoryError::Rollback) => self.handed_over(node, sequence, client.address().id, earlier).await,
            found => {
                // A directory answers for no card that a mirror alone has had.
                if found.is_ok() && !client.may_be_a_mirror() {
                    self.store.list_card(node, sequence).await?;
                }
                found
            }
        }
    }

    /// The newer card in place of the one that a directory gave, where the peer itself handed it over: no directory has had it yet, and so
    /// none hides it.
    async fn handed_over(
        &self,
        peer: NodeId,
        given: u64,
        directory: NodeId,
        earlier: Vec<NodeId>,
    ) -> Result<CachedCard, DirectoryError> {
        let known =
            self.store.peer(peer).await?.filter(|known| given >= known.listed).ok_or(DirectoryError::Rollback)?;
        // A forgotten peer's card is gone, and one that has ended says nothing: the directory will have the newer one soon.
        let card = Card::verify(&known.card, clock::now()).map_err(|_| DirectoryError::Behind)?;
        Ok(self.remember(card, known.card.into(), directory, known.fetched_at, earlier))
    }

    /// Takes the card that a peer hands over itself, inside a session.
    async fn take_from_peer(&self, peer: NodeId, bytes: Bytes) -> Result<(), DirectoryError> {
        let card = Card::verify(&bytes, clock::now())?;
        if card.node_id != peer {
            return Err(WireError::WrongSigner { what: "card" }.into());
        }
        let earlier = self.follow(&card).await?;
        let directory = self.cached(&peer).map_or_else(|| self.some_directory(), |cached| cached.directory);
        self.take_in(card, bytes, directory, earlier, Keep::Card).await.map(drop)
    }

    /// Holds a verified card against what is known of its node, and keeps it.
    async fn take_in(
        &self,
        card: Card,
        bytes: Bytes,
        directory: NodeId,
        earlier: Vec<NodeId>,
        keep: Keep,
    ) -> Result<CachedCard, DirectoryError> {
        let (peer, now) = (card.node_id, clock::now());
        let known = self.store.peer(peer).await?;
        if let Some(known) = known.filter(|known| known.sequence > 0) {
            // A forgotten peer's card is gone, its sequence is not: then an equal sequence is taken as the same card.
            let earlier = if known.card.is_empty() { &bytes[..] } else { &known.card[..] };
            match card.check_succession(&bytes, known.sequence, earlier) {
                Succession::Newer | Succession::Same => {}
                Succession::Rollback => return Err(DirectoryError::Rollback),
                Succession::Equivocation => return Err(DirectoryError::Equivocation),
            }
        }
        if keep == Keep::Nothing {
            return Ok(CachedCard { card: Arc::new(card), bytes, directory, fetched_at: now, earlier });
        }
        // Another look-up may have ended meanwhile: what the store kept is what counts.
        let (sequence, kept) = self.store.keep_card(peer, bytes.clone(), card.sequence, now).await?;
        if sequence == card.sequence && kept != bytes {
            return Err(DirectoryError::Equivocation);
        }
        let card = if sequence == card.sequence { card } else { Card::verify(&kept, now)? };
        Ok(self.remember(card, kept, directory, now, earlier))
    }

    /// Whom a verified card's node goes on for, by their own word and what was heard of them before.
    async fn follow(&self, card: &Card) -> Result<Vec<NodeId>, DirectoryError> {
        if card.lineage.is_empty() {
            return Ok(Vec::new());
        }
        let followed = self.store.follow(card.node_id, card.lineage.clone(), clock::now()).await?;
        // The card is its node's all the same; who it says it goes on for is not believed.
        let carried = followed.unwrap_or_else(|contradiction| {
            tracing::warn!(node = %Sensitive(card.node_id.short()), %contradiction, "a succession is not followed");
            Carried::default()
        });
        if carried.is_news {
            self.succeeded.store(true, Ordering::Relaxed);
        }
        Ok(carried.earlier)
    }

    /// In the background; `anew` where a newer card is known to be there, which a mirror may not have yet.
    fn refresh(self: &Arc<Self>, peer: NodeId, anew: bool) {
        let this = Arc::clone(self);
        tokio::spawn(async move {
            let found = if anew { this.look_up_anew(peer).await } else { this.look_up(peer, Keep::Card).await };
            if let Err(error) = found {
                tracing::debug!(peer = %Sensitive(peer.short()), %error, "card not refreshed");
            }
        });
    }

    fn client(&self, directory: &NodeId) -> Result<&Arc<Client>, DirectoryError> {
        let named = self.clients.iter().find(|client| client.address().id == *directory);
        // A directory that is configured no longer: any other may know the peer as well.
        named.or_else(|| self.clients.first()).ok_or(DirectoryError::None)
    }

    /// Drops what is remembered of a peer.
    pub(crate) fn forget(&self, peer: &NodeId) {
        lock(&self.cards).remove(peer);
        lock(&self.unreached).remove(peer);
    }
}

/// [`Directories`] as the link service and the network layer see them.
#[derive(Clone)]
pub(crate) struct DirectoryPorts(pub(crate) Arc<Directories>);

#[async_trait]
impl Carrier for DirectoryPorts {
    async fn card(&self, peer: NodeId) -> Result<FoundCard, DirectoryError> {
        // A link is made on what the directory says now; silence falls back on a card that still holds.
        match self.0.look_up(peer, Keep::Card).await {
            Err(error @ (DirectoryError::Unreachable | DirectoryError::Slow)) => self.0.cached(&peer).ok_or(error),
            found => found,
        }
        .map(FoundCard::from)
    }

    async fn kept_card(&self, peer: NodeId, within: Duration) -> Option<FoundCard> {
        let known = self.0.known_card(peer).await?;
        (clock::now() <= known.fetched_at.plus(within)).then(|| FoundCard::from(known))
    }

    async fn introduction(&self, peer: NodeId) -> Result<FoundCard, DirectoryError> {
        self.0.look_up(peer, Keep::Nothing).await.map(FoundCard::from)
    }

    async fn own_card(&self) -> Option<Bytes> {
        self.0.own_card().await.ok().map(|card| card.statement)
    }

    fn holds_card(&self, peer: &NodeId, sequence: u64) -> bool {
        self.0.cached(peer).is_some_and(|cached| cached.card.sequence >= sequence)
    }

    fn forget(&self, peer: &NodeId) {
        self.0.forget(peer);
    }

    async fn take_card(&self, peer: NodeId, card: Bytes) -> Result<(), DirectoryError> {
        self.0.take_from_peer(peer, card).await
    }

    async fn follow_card(&self, bytes: &Bytes) {
        if let Ok(card) = Card::verify(bytes, clock::now())
            && let Err(error) = self.0.follow(&card).await
        {
            tracing::debug!(%error, "whom a stranger goes on for was not stored");
        }
    }

    async fn send_offer(&self, directory: NodeId, offer: Bytes) -> Result<(), DirectoryError> {
        let client = self.0.client(&directory)?;
        let sent = client.send_offer(offer).await;
        self.0.honesty.judge(client.address(), self.0.me, sent.as_ref().err());
        sent
    }

    async fn acknowledge(&self, directory: NodeId, receipt: Bytes) -> Result<(), DirectoryError> {
        self.0.client(&directory)?.acknowledge(receipt).await
    }

    async fn methods_changed(&self, allowed: MethodSet) {
        self.0.allow_methods(allowed);
        self.0.renew_card().await;
    }

    async fn own_heads(&self) -> Option<Bytes> {
        self.0.own_heads().await
    }

    fn take_heads(&self, peer: NodeId, heads: &[u8]) {
        self.0.take_heads(peer, heads);
    }

    async fn unanswered(&self, directory: NodeId, peer: NodeId) {
        self.0.unanswered(directory, peer).await;
    }

    fn answered_but(&self, waiting: &BTreeSet<NodeId>) {
        self.0.honesty.answered_but(waiting);
    }

    fn take_news(&self) -> bool {
        self.0.succeeded.swap(false, Ordering::Relaxed)
    }

    fn card_hint(&self, peer: NodeId, sequence: u64) {
        lock(&self.0.unreached).remove(&peer);
        if self.0.cached(&peer).is_none_or(|cached| cached.card.sequence < sequence) {
            self.0.refresh(peer, true);
        }
    }
}

#[async_trait]
impl crate::p2p::ports::Endpoints for DirectoryPorts {
    async fn endpoints(&self, peer: &NodeId) -> Vec<String> {
        let failed_before = lock(&self.0.unreached).remove(peer);
        let known = self.0.known_card(*peer).await;
        let found = match known {
            Some(known) if !failed_before => {
                if clock::now() > known.fetched_at.plus(REFRESH_AFTER) {
                    self.0.refresh(*peer, false);
                }
                Some(known)
            }
            known if failed_before => self.0.look_up_anew(*peer).await.ok().or(known),
            known => self.0.look_up(*peer, Keep::Card).await.ok().or(known),
        };
        let endpoints = match found {
            Some(found) => found.card.fields.endpoints.clone(),
            None => self.0.last_endpoints(*peer).await.unwrap_or_default(),
        };
        endpoints.into_iter().filter(|endpoint| is_reachable(endpoint, self.0.listens_locally)).collect()
    }

    fn failed(&self, peer: &NodeId) {
        lock(&self.0.unreached).insert(*peer);
    }
}

/// Names cannot be resolved in service, and a name in a card would make this node ask for it: addresses only. And only
/// such as another host can have: a card must not send this node's requests to its own machine's services (`local_too` when
/// this node itself listens on loopback, where its peers must be as well) or to a cloud's metadata service.
fn is_reachable(endpoint: &str, local_too: bool) -> bool {
    let Ok(url) = Url::parse(endpoint) else { return false };
    let address = match url.host() {
        Some(Host::Ipv4(address)) => IpAddr::V4(address),
        Some(Host::Ipv6(address)) => IpAddr::V6(address).to_canonical(),
        Some(Host::Domain(_)) | None => return false,
    };
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_broadcast(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    let nobodys = address.is_unspecified() || address.is_multicast();
    !link_local && !nobodys && (local_too || !address.is_loopback())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests;
