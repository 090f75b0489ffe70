//! Two nodes' link services with real vaults and stores; a directory that is a queue, and may lose, repeat and falsify.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use openred_cryptod::audit::Trail;
use openred_cryptod::keyring::Keyring;
use openred_cryptod::state::State;
use openred_cryptod::vault::Vault;
use openred_cryptod::vault::quota::Rates;
use openred_proto::checked::card::{Card, CardFields};
use openred_proto::id::{LinkId, NodeId};
use openred_proto::method::MethodSet;
use openred_proto::vault::{Frame, LinkKeys, LinkSummary, ReceivedOffer, ReceivedRenewal, Reply, Request, Role};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use tokio::sync::Semaphore;

use super::life::DIRECTORY;
use crate::clock;
use crate::config::{DirectPolicy, IncomingPolicy, LinkConfig};
use crate::directory::DirectoryError;
use crate::health::Health;
use crate::keys::{AcceptedLink, IssuedLink, KeysError, NewLink};
use crate::link::ports::{Answered, Carrier, Courier, FoundCard, LinkObserver, LinkVault};
use crate::link::{Links, Parts};
use crate::p2p::ports::LinkHandle;
use crate::store::{Store, StoreThread};

/// A real vault without the two processes around it. It may be killed.
pub(super) struct TestVault {
    inner: Mutex<(Vault, ChaCha20Rng)>,
    /// Operations since it was last looked.
    asked: AtomicUsize,
    dying: Mutex<Option<Kill>>,
}

/// When a vault dies, and for how long. Its replies leave it after its state is durable, so that there are two ways to be killed in the middle
/// of an operation: nothing of it has happened, or all of it, and nobody hears of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kill {
    /// In this operation from now on, counted from zero.
    pub(super) at: usize,
    pub(super) is_durable: bool,
    /// Operations that find nobody there afterwards.
    pub(super) away: usize,
}

impl TestVault {
    fn new(seed: u8) -> Arc<Self> {
        let mut random = ChaCha20Rng::seed_from_u64(u64::from(seed));
        let keyring = Keyring::from_secrets(&mut [seed; 64]);
        let trail = Trail::fresh(keyring.identity(), clock::now()).unwrap();
        let vault = Vault::open(keyring, State::new(), trail, &Rates::default(), clock::now(), &mut random).unwrap();
        Arc::new(Self { inner: Mutex::new((vault, random)), asked: AtomicUsize::new(0), dying: Mutex::default() })
    }

    /// The operation's answer, unless the vault dies over it.
    fn ask(&self, body: Request) -> Result<Reply, KeysError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let mut dying = self.dying.lock().unwrap();
        match &mut *dying {
            Some(Kill { at: at @ 1.., .. }) => *at -= 1,
            Some(kill) => {
                if std::mem::take(&mut kill.is_durable) {
                    self.answer(body).ok();
                }
                *dying = kill.away.checked_sub(1).map(|away| Kill { away, ..*kill });
                return Err(KeysError::Away);
            }
            None => {}
        }
        self.answer(body)
    }

    fn answer(&self, body: Request) -> Result<Reply, KeysError> {
        let (vault, random) = &mut *self.inner.lock().unwrap();
        let outcome = vault.handle(clock::now(), random, Role::Node, Frame { id: 1, body });
        vault.commit(random).unwrap();
        match outcome.reply.body {
            Reply::Refused(refusal) => Err(KeysError::Refused(refusal)),
            reply => Ok(reply),
        }
    }

    /// What the vault does by its timer: keys rotate.
    fn turn(&self) {
        let (vault, random) = &mut *self.inner.lock().unwrap();
        vault.handle_timeout(clock::now(), random).unwrap();
        vault.commit(random).unwrap();
    }

    fn node(&self) -> NodeId {
        match self.answer(Request::Describe) {
            Ok(Reply::Described { node, .. }) => node,
            other => panic!("{other:?}"),
        }
    }

    pub(super) fn card(&self) -> Bytes {
        let fields = CardFields { name: "test".to_owned(), ..CardFields::default() };
        match self.answer(Request::SignCard { fields, suites: MethodSet::ALL, life: Duration::from_secs(86_400) }) {
            Ok(Reply::Card { statement, .. }) => statement.into(),
            other => panic!("{other:?}"),
        }
    }
}

#[async_trait]
impl LinkVault for TestVault {
    async fn issue(&self, link: NewLink) -> Result<IssuedLink, KeysError> {
        let NewLink { peer, card, directory, allowed, schedule, life } = link;
        match self.ask(Request::IssueLink { peer, card: card.into(), directory, allowed, schedule, life })? {
            Reply::LinkIssued { summary, row, offer, keys } => {
                Ok(IssuedLink { summary, row: row.into(), offer: offer.into(), keys })
            }
            other => panic!("{other:?}"),
        }
    }

    async fn renew(&self, row: Bytes, link: NewLink) -> Result<IssuedLink, KeysError> {
        let NewLink { card, directory, allowed, schedule, life, .. } = link;
        let (row, card) = (row.into(), card.into());
        match self.ask(Request::RenewLink { row, card, directory, allowed, schedule, life })? {
            Reply::LinkIssued { summary, row, offer, keys } => {
                Ok(IssuedLink { summary, row: row.into(), offer: offer.into(), keys })
            }
            other => panic!("{other:?}"),
        }
    }

    async fn inspect(&self, offer: &ReceivedOffer, renewed: Option<Bytes>) -> Result<LinkSummary, KeysError> {
        let received = offer.clone();
        let request = match renewed {
            Some(row) => Request::InspectRenewal(ReceivedRenewal { received, row: row.into() }),
            None => Request::InspectOffer(received),
        };
        match self.ask(request)? {
            Reply::OfferInspected(summary) => Ok(summary),
            other => panic!("{other:?}"),
        }
    }

    async fn held(&self, after: Option<LinkId>) -> Result<Vec<LinkId>, KeysError> {
        match self.ask(Request::ListLinks { after: after.unwrap_or(LinkId::from_bytes([0; 16])) })? {
            Reply::Links(links) => Ok(links),
            other => panic!("{other:?}"),
        }
    }

    async fn accept(&self, offer: &ReceivedOffer, renewed: Option<Bytes>) -> Result<AcceptedLink, KeysError> {
        let received = offer.clone();
        let request = match renewed {
            Some(row) => Request::AcceptRenewal(ReceivedRenewal { received, row: row.into() }),
            None => Request::AcceptOffer(received),
        };
        match self.ask(request)? {
            Reply::LinkAccepted { summary, row, receipt, keys } => {
                Ok(AcceptedLink { summary, row: row.into(), receipt: receipt.into(), keys })
            }
            other => panic!("{other:?}"),
        }
    }

    async fn keys(&self, row: Bytes) -> Result<LinkKeys, KeysError> {
        match self.ask(Request::LinkKeys { row: row.into() })? {
            Reply::LinkKeys(keys) => Ok(keys),
            other => panic!("{other:?}"),
        }
    }

    async fn revoke(&self, link: LinkId) -> Result<(), KeysError> {
        self.ask(Request::RevokeLink { link }).map(|_| ())
    }
}

/// What a node handed to its directory, in order.
#[derive(Default)]
pub(super) struct Outbox {
    pub(super) offers: Mutex<Vec<Bytes>>,
    pub(super) receipts: Mutex<Vec<Bytes>>,
    pub(super) cards: Mutex<Vec<(NodeId, Bytes)>>,
    /// While it is there, whoever asks about a stranger waits for a permit.
    pub(super) silent: Mutex<Option<Arc<Semaphore>>>,
    /// The same of who looks a peer up.
    pub(super) holding: Mutex<Option<Arc<Semaphore>>>,
    asked: AtomicUsize,
    looked_up: AtomicUsize,
    /// Whether cards that the directory gave are kept.
    pub(super) keeps_cards: AtomicBool,
    /// Whether the directory answers nobody.
    pub(super) is_down: AtomicBool,
    /// What signs this node's own card; without, it has none to hand over.
    pub(super) own: OnceLock<Arc<TestVault>>,
}

impl Outbox {
    pub(super) fn offer(&self) -> Bytes {
        self.offers.lock().unwrap().last().cloned().unwrap()
    }

    /// Questions about strangers so far.
    pub(super) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// Questions about peers so far.
    pub(super) fn looked_up(&self) -> usize {
        self.looked_up.load(Ordering::Relaxed)
    }

    /// Keeps a card in the place of an older one.
    fn keep(&self, peer: NodeId, card: Bytes) {
        let mut cards = self.cards.lock().unwrap();
        cards.retain(|(node, _)| *node != peer);
        cards.push((peer, card));
    }

    fn found(&self, peer: NodeId) -> Result<FoundCard, DirectoryError> {
        let cards = self.cards.lock().unwrap();
        let (_, card) = cards.iter().find(|(node, _)| *node == peer).ok_or(DirectoryError::UnknownNode)?;
        let sector = Card::verify(card, clock::now())?.fields.sector;
        Ok(FoundCard { node: peer, earlier: Vec::new(), card: card.clone(), sector, directory: DIRECTORY })
    }

    pub(super) fn receipt(&self) -> Bytes {
        self.receipts.lock().unwrap().last().cloned().unwrap()
    }
}

#[async_trait]
impl Carrier for Outbox {
    async fn card(&self, peer: NodeId) -> Result<FoundCard, DirectoryError> {
        self.looked_up.fetch_add(1, Ordering::Relaxed);
        let holding = self.holding.lock().unwrap().clone();
        if let Some(answers) = holding {
            answers.acquire().await.unwrap().forget();
        }
        if self.is_down.load(Ordering::Relaxed) { Err(DirectoryError::Unreachable) } else { self.found(peer) }
    }

    async fn kept_card(&self, peer: NodeId, _: Duration) -> Option<FoundCard> {
        self.found(peer).ok().filter(|_| self.keeps_cards.load(Ordering::Relaxed))
    }

    async fn introduction(&self, peer: NodeId) -> Result<FoundCard, DirectoryError> {
        let silent = self.silent.lock().unwrap().clone();
        if let Some(answers) = silent {
            self.asked.fetch_add(1, Ordering::Relaxed);
            answers.acquire().await.unwrap().forget();
        }
        self.found(peer)
    }

    async fn own_card(&self) -> Option<Bytes> {
        self.own.get().map(|vault| vault.card())
    }

    fn holds_card(&self, peer: &NodeId, sequence: u64) -> bool {
        let cards = self.cards.lock().unwrap();
        let held =
            cards.iter().find(|(node, _)| node == peer).and_then(|(_, card)| Card::verify(card, clock::now()).ok());
        held.is_some_and(|held| held.sequence >= sequence)
    }

    fn forget(&self, peer: &NodeId) {
        self.cards.lock().unwrap().retain(|(node, _)| node != peer);
    }

    async fn take_card(&self, peer: NodeId, card: Bytes) -> Result<(), DirectoryError> {
        if Card::verify(&card, clock::now())?.node_id != peer {
            return Err(DirectoryError::Rollback);
        }
        self.keep(peer, card);
        Ok(())
    }

    async fn follow_card(&self, _: &Bytes) {}

    async fn send_offer(&self, _: NodeId, offer: Bytes) -> Result<(), DirectoryError> {
        if self.is_down.load(Ordering::Relaxed) {
            return Err(DirectoryError::Unreachable);
        }
        self.offers.lock().unwrap().push(offer);
        Ok(())
    }

    async fn acknowledge(&self, _: NodeId, receipt: Bytes) -> Result<(), DirectoryError> {
        self.receipts.lock().unwrap().push(receipt);
        Ok(())
    }

    async fn methods_changed(&self, _: MethodSet) {}

    fn card_hint(&self, _: NodeId, _: u64) {}

    fn take_news(&self) -> bool {
        false
    }
}

/// What the network layer and the modules were told.
#[derive(Default)]
pub(super) struct Told(pub(super) Mutex<Vec<String>>);

impl Told {
    fn say(&self, what: &str) {
        self.0.lock().unwrap().push(what.to_owned());
    }

    pub(super) fn all(&self) -> String {
        self.0.lock().unwrap().join(" ")
    }
}

impl LinkObserver for Told {
    fn link_added(&self, _: Arc<LinkHandle>) {
        self.say("added");
    }

    fn link_removed(&self, _: LinkId) {
        self.say("removed");
    }

    fn link_confirmed(&self, _: NodeId) {
        self.say("confirmed");
    }

    fn link_renewed(&self, _: NodeId) {
        self.say("renewed");
    }

    fn peer_reachable(&self, _: NodeId) {
        self.say("reachable");
    }

    fn peer_forgotten(&self, _: NodeId) {
        self.say("forgotten");
    }

    fn identities_changed(&self, _: NodeId) {}
}

/// One node's link service and what is around it.
pub(super) struct TestNode {
    pub(super) id: NodeId,
    pub(super) links: Arc<Links>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) told: Arc<Told>,
    pub(super) store: Store,
    vault: Arc<TestVault>,
    thread: StoreThread,
    directory: tempfile::TempDir,
    policy: IncomingPolicy,
}

impl TestNode {
    pub(super) async fn new(seed: u8, policy: IncomingPolicy) -> Self {
        Self::start(TestVault::new(seed), tempfile::tempdir().unwrap(), policy, Arc::default()).await
    }

    async fn start(
        vault: Arc<TestVault>,
        directory: tempfile::TempDir,
        policy: IncomingPolicy,
        outbox: Arc<Outbox>,
    ) -> Self {
        let (store, thread) = Store::open(directory.path(), 0).unwrap();
        let id = vault.node();
        let direct = if policy == IncomingPolicy::Open { DirectPolicy::Open } else { DirectPolicy::Ask };
        let parts = Parts {
            me: id,
            config: LinkConfig { incoming: policy, direct, ..LinkConfig::default() },
            sector: String::new(),
            store: store.clone(),
            vault: Arc::clone(&vault) as _,
            carrier: Arc::clone(&outbox) as _,
            health: Arc::new(Health::default()),
            reports: Arc::default(),
        };
        let links = Links::load(parts).await.unwrap();
        let told = Arc::new(Told::default());
        links.observe(Arc::clone(&told) as _);
        links.fetch_keys().await;
        Self { id, links, outbox, told, store, vault, thread, directory, policy }
    }

    /// Ends the node's process and starts it again on the same state.
    pub(super) async fn restarted(self) -> Self {
        let Self { vault, directory, policy, outbox, thread, links, store, .. } = self;
        drop((links, store));
        thread.join();
        Self::start(vault, directory, policy, outbox).await
    }

    /// From now on this node reaches the other inside a session.
    pub(super) fn reaches(&self, other: &TestNode) -> Arc<Wire> {
        let wire = Arc::new(Wire {
            from: self.id,
            to: Arc::clone(&other.links),
            cut: Mutex::default(),
            asked: AtomicUsize::default(),
        });
        self.links.send_by(Arc::clone(&wire) as _);
        wire
    }

    /// Kills the key process.
    pub(super) fn kill(&self, kill: Kill) {
        *self.vault.dying.lock().unwrap() = Some(kill);
    }

    /// It is killed no more.
    pub(super) fn revive(&self) {
        *self.vault.dying.lock().unwrap() = None;
    }

    /// Operations of the key process since this was asked last.
    pub(super) fn operations(&self) -> usize {
        self.vault.asked.swap(0, Ordering::Relaxed)
    }

    /// The key process's timer goes off.
    pub(super) fn turn_keys(&self) {
        self.vault.turn();
    }

    /// From now on this node hands its own card to peers.
    pub(super) fn hands_over_cards(&self) {
        let _ = self.outbox.own.set(Arc::clone(&self.vault));
    }

    /// The key process does something of which the node's process never hears.
    pub(super) fn vault(&self) -> &dyn LinkVault {
        &*self.vault
    }

    /// Its signed card, as a directory would have it.
    pub(super) fn card(&self) -> Bytes {
        self.vault.card()
    }

    pub(super) fn knows(&self, other: &TestNode) {
        self.outbox.keep(other.id, other.card());
    }
}

/// A session with one other node, or none.
pub(super) struct Wire {
    from: NodeId,
    to: Arc<Links>,
    /// The request arrives, its answer does not; or not even that.
    pub(super) cut: Mutex<Cut>,
    /// How often a request was made here.
    pub(super) asked: AtomicUsize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Cut {
    #[default]
    No,
    Answer,
    Request,
    /// The peer takes the request and is not heard of again.
    Silent,
}

#[async_trait]
impl Courier for Wire {
    fn has_session(&self, _: &NodeId) -> bool {
        true
    }

    async fn ask(&self, _: NodeId, path: &'static str, body: Bytes) -> Option<Answered> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let cut = *self.cut.lock().unwrap();
        if cut == Cut::Request {
            return None;
        }
        if cut == Cut::Silent {
            std::future::pending::<()>().await;
        }
        let (status, body) = crate::p2p::ports::Links::answer(&*self.to, self.from, path, body).await;
        (cut == Cut::No).then_some(Answered { status, body })
    }
}

/// A pair that knows each other's cards. `alice` has the lower node id.
pub(super) async fn pair(policy: IncomingPolicy) -> (TestNode, TestNode) {
    let (one, two) = (TestNode::new(1, policy).await, TestNode::new(2, policy).await);
    one.knows(&two);
    two.knows(&one);
    if one.id < two.id { (one, two) } else { (two, one) }
}
