//! The nodes of these tests: a vault asked directly, ports that remember, a listener on loopback.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _};
use openred_cryptod::audit::Trail;
use openred_cryptod::keyring::Keyring;
use openred_cryptod::state::State;
use openred_cryptod::vault::Vault;
use openred_cryptod::vault::quota::{Rate, Rates};
use openred_module::Body;
use openred_proto::checked::card::CardFields;
use openred_proto::checked::handshake::HandshakeRequest;
use openred_proto::checked::session::{RequestHead, ResponseHead};
use openred_proto::id::{HandshakeId, LinkId, NodeId, UnixMillis};
use openred_proto::method::{Method, MethodSet, Schedule};
use openred_proto::vault::{Frame, LinkKeys, ReceivedOffer, Reply, Request, Role, SessionGrant};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::handshake::request;
use crate::keys::{HalfOpen, HandshakeKeys, KeysError};
use crate::p2p::ports::{Dispatch, Endpoints, LinkHandle, Links, Ports, SessionOpened, SignedSession};
use crate::p2p::{NetworkSettings, PeerNetwork, unix_now};

const DIRECTORY: NodeId = NodeId::from_bytes([0xd1; 32]);
const DAY: Duration = Duration::from_secs(86_400);

/// A real vault without the two processes around it; its file is not kept.
pub(super) struct VaultKeys {
    inner: Mutex<(Vault, ChaCha20Rng)>,
    pub(super) away: AtomicBool,
    /// Handshakes that were begun, and whether more may be: those that may not wait.
    pub(super) begun: AtomicU64,
    pub(super) gate: watch::Sender<bool>,
    /// Whether REQUESTs of others are answered: those that are not wait.
    pub(super) answers: watch::Sender<bool>,
}

impl VaultKeys {
    fn new(seed: u8) -> Arc<Self> {
        let mut random = ChaCha20Rng::seed_from_u64(u64::from(seed));
        let keyring = Keyring::from_secrets(&mut [seed; 64]);
        // These tests ask more in a second than a node does.
        let much = Rate { burst: 1_000_000, per_second: 1_000_000 };
        let rates = Rates { handshake: much, row: much, describe: much, ..Rates::default() };
        let trail = Trail::fresh(keyring.identity(), unix_now()).unwrap();
        let vault = Vault::open(keyring, State::new(), trail, &rates, unix_now(), &mut random).unwrap();
        let (inner, gate, answers) = (Mutex::new((vault, random)), watch::Sender::new(true), watch::Sender::new(true));
        Arc::new(Self { inner, away: AtomicBool::new(false), begun: AtomicU64::new(0), gate, answers })
    }

    pub(super) fn ask(&self, body: Request) -> Result<Reply, KeysError> {
        if self.away.load(Ordering::Relaxed) {
            return Err(KeysError::Away);
        }
        let (vault, random) = &mut *self.inner.lock().unwrap();
        let outcome = vault.handle(unix_now(), random, Role::Node, Frame { id: 1, body });
        vault.commit(random).unwrap();
        match outcome.reply.body {
            Reply::Refused(refusal) => Err(KeysError::Refused(refusal)),
            reply => Ok(reply),
        }
    }

    /// Operations that the vault served: the counter that junk must not move.
    pub(super) fn operations(&self) -> u64 {
        match self.ask(Request::Describe) {
            Ok(Reply::Described { operations, .. }) => operations,
            other => panic!("{other:?}"),
        }
    }
}

#[async_trait]
impl HandshakeKeys for VaultKeys {
    async fn start_handshake(&self, row: Bytes) -> Result<HalfOpen, KeysError> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        self.gate.subscribe().wait_for(|open| *open).await.unwrap();
        match self.ask(Request::StartHandshake { row: row.to_vec() })? {
            Reply::HandshakeStarted { handshake, noise } => Ok(HalfOpen { handshake, noise: noise.into() }),
            other => panic!("{other:?}"),
        }
    }

    async fn answer_handshake(&self, row: Bytes, noise: Bytes, head: Bytes) -> Result<HalfOpen, KeysError> {
        self.answers.subscribe().wait_for(|open| *open).await.unwrap();
        let (row, noise, directory_head) = (row.to_vec(), noise.to_vec(), head.to_vec());
        match self.ask(Request::AnswerHandshake { row, noise, directory_head })? {
            Reply::HandshakeAnswered { handshake, noise } => Ok(HalfOpen { handshake, noise: noise.into() }),
            other => panic!("{other:?}"),
        }
    }

    async fn finish_handshake(
        &self,
        handshake: HandshakeId,
        noise: Bytes,
        head: Bytes,
    ) -> Result<(Bytes, SessionGrant), KeysError> {
        let (noise, directory_head) = (noise.to_vec(), head.to_vec());
        match self.ask(Request::FinishHandshake { handshake, noise, directory_head })? {
            Reply::HandshakeFinished { noise, grant } => Ok((noise.into(), grant)),
            other => panic!("{other:?}"),
        }
    }

    async fn complete_handshake(&self, handshake: HandshakeId, noise: Bytes) -> Result<SessionGrant, KeysError> {
        match self.ask(Request::CompleteHandshake { handshake, noise: noise.to_vec() })? {
            Reply::HandshakeCompleted { grant } => Ok(grant),
            other => panic!("{other:?}"),
        }
    }

    async fn start_direct(&self, method: Method, peer: NodeId) -> Result<HalfOpen, KeysError> {
        match self.ask(Request::StartDirect { method, peer })? {
            Reply::HandshakeStarted { handshake, noise } => Ok(HalfOpen { handshake, noise: noise.into() }),
            other => panic!("{other:?}"),
        }
    }

    async fn answer_direct(&self, method: Method, noise: Bytes, head: Bytes) -> Result<HalfOpen, KeysError> {
        let (noise, directory_head) = (noise.to_vec(), head.to_vec());
        match self.ask(Request::AnswerDirect { method, noise, directory_head })? {
            Reply::HandshakeAnswered { handshake, noise } => Ok(HalfOpen { handshake, noise: noise.into() }),
            other => panic!("{other:?}"),
        }
    }

    async fn abandon_handshake(&self, handshake: HandshakeId) -> Result<(), KeysError> {
        self.ask(Request::AbandonHandshake { handshake }).map(|_| ())
    }

    async fn sign_session(&self, handshake: HandshakeId) -> Result<Bytes, KeysError> {
        match self.ask(Request::SignSession { handshake })? {
            Reply::SessionSigned { statement, .. } => Ok(statement.into()),
            other => panic!("{other:?}"),
        }
    }

    async fn validate_match(&self, row: Bytes, hash: [u8; 32], proof: [u8; 32]) -> Result<bool, KeysError> {
        match self.ask(Request::ValidateMatch { row: row.to_vec(), hash, proof })? {
            Reply::MatchValidated { matched } => Ok(matched),
            other => panic!("{other:?}"),
        }
    }
}

/// One link, kept as the store would; tells waiters when something was recorded.
#[derive(Default)]
pub(super) struct TestLinks {
    handle: Mutex<Option<Arc<LinkHandle>>>,
    /// One that was there before.
    pub(super) older: Mutex<Option<Arc<LinkHandle>>>,
    pub(super) opened: Mutex<Vec<SessionOpened>>,
    pub(super) matched: Mutex<Vec<bool>>,
    pub(super) signed: Mutex<Vec<SignedSession>>,
    /// Nothing more can be kept.
    pub(super) full: AtomicBool,
    /// The operator has said no.
    pub(super) denied: AtomicBool,
    recorded: Notify,
}

impl TestLinks {
    /// Waits until `count` cross-validations were recorded.
    pub(super) async fn matches(&self, count: usize) -> Vec<bool> {
        loop {
            let recorded = self.recorded.notified();
            let matched = self.matched.lock().unwrap().clone();
            if matched.len() >= count {
                return matched;
            }
            recorded.await;
        }
    }

    pub(super) fn handle(&self) -> Arc<LinkHandle> {
        self.handle.lock().unwrap().clone().unwrap()
    }

    pub(super) fn forget(&self) {
        *self.handle.lock().unwrap() = None;
    }
}

#[async_trait]
impl Links for TestLinks {
    fn for_peer(&self, peer: &NodeId) -> Option<Arc<LinkHandle>> {
        self.handle.lock().unwrap().clone().filter(|handle| handle.peer == *peer)
    }

    fn fallback_for_peer(&self, peer: &NodeId) -> Option<Arc<LinkHandle>> {
        self.older.lock().unwrap().clone().filter(|handle| handle.peer == *peer)
    }

    async fn session_opened(&self, opened: SessionOpened) {
        self.opened.lock().unwrap().push(opened);
    }

    async fn session_signed(&self, signed: SignedSession) -> bool {
        let keeps = !self.full.load(Ordering::Relaxed);
        if keeps {
            self.signed.lock().unwrap().push(signed);
        }
        keeps
    }

    async fn is_denied(&self, _: NodeId) -> bool {
        self.denied.load(Ordering::Relaxed)
    }

    async fn match_checked(&self, _: LinkId, matched: bool, _: UnixMillis) {
        self.matched.lock().unwrap().push(matched);
        self.recorded.notify_waiters();
    }
}

/// Tells how a request to `/drain` ended, also when it was dropped with its connection.
struct Report<'a>(&'a watch::Sender<Option<Drained>>, Drained);

type Drained = Result<u64, openred_module::BodyError>;

impl Drop for Report<'_> {
    fn drop(&mut self) {
        self.0.send_replace(Some(self.1));
    }
}

/// A module that answers with what it was asked, never answers, or counts.
#[derive(Default)]
pub(super) struct TestModule {
    pub(super) served: AtomicU64,
    /// Body bytes of the last request to `/drain`, and whether it ended well.
    pub(super) drained: watch::Sender<Option<Drained>>,
    /// Lets `/held` answer, and `/broken` break.
    pub(super) release: Arc<Notify>,
    /// A request to `/held` or `/drain` is there.
    pub(super) holding: Notify,
    /// Answers `/hook`.
    pub(super) hook: Mutex<Option<Hook>>,
}

/// What a test does with a request.
pub(super) type Hook = Arc<dyn Fn(RequestHead, Body) -> BoxFuture<'static, (ResponseHead, Body)> + Send + Sync>;

impl TestModule {
    /// Answers `/hook` from now on.
    pub(super) fn answer_by<W>(&self, hook: impl Fn(RequestHead, Body) -> W + Send + Sync + 'static)
    where
        W: Future<Output = (ResponseHead, Body)> + Send + 'static,
    {
        *self.hook.lock().unwrap() = Some(Arc::new(move |head: RequestHead, body: Body| hook(head, body).boxed()));
    }
}

#[async_trait]
impl Dispatch for TestModule {
    async fn dispatch(&self, _: NodeId, head: RequestHead, body: Body) -> (ResponseHead, Body) {
        self.served.fetch_add(1, Ordering::Relaxed);
        let answer = |status| ResponseHead { status, content_type: head.content_type.clone(), length: None };
        match head.path.as_str() {
            "/mirror" => (answer(200), body),
            "/drain" => {
                let (mut body, mut bytes) = (body, 0);
                self.holding.notify_one();
                let mut report = Report(&self.drained, Err(openred_module::BodyError::Truncated));
                while let Some(piece) = body.next().await {
                    match piece {
                        Ok(piece) => bytes += piece.len() as u64,
                        Err(_) => return (answer(400), Body::empty()),
                    }
                }
                report.1 = Ok(bytes);
                (answer(200), Body::whole(bytes.to_string().into_bytes()))
            }
            "/held" => {
                let release = self.release.notified();
                self.holding.notify_one();
                release.await;
                (answer(200), Body::empty())
            }
            "/broken" => {
                let (sender, body) = Body::channel();
                let release = Arc::clone(&self.release);
                tokio::spawn(async move {
                    sender.send(Bytes::from(vec![1; 100_000])).await.unwrap();
                    release.notified().await;
                    sender.abort(openred_module::BodyError::Failed).await;
                });
                (answer(200), body)
            }
            "/hook" => {
                let hook = self.hook.lock().unwrap().clone().unwrap();
                hook(head, body).await
            }
            _ => (answer(404), Body::empty()),
        }
    }
}

/// Endpoints of the other node, how often they were asked for, and how often none of them answered.
#[derive(Default)]
pub(super) struct TestEndpoints(pub(super) Mutex<Vec<String>>, pub(super) AtomicU64, pub(super) AtomicU64);

#[async_trait]
impl Endpoints for TestEndpoints {
    async fn endpoints(&self, _: &NodeId) -> Vec<String> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.lock().unwrap().clone()
    }

    fn failed(&self, _: &NodeId) {
        self.2.fetch_add(1, Ordering::Relaxed);
    }
}

/// A node: what survives a restart of `noded`, and the running part.
pub(super) struct TestNode {
    pub(super) id: NodeId,
    pub(super) keys: Arc<VaultKeys>,
    pub(super) links: Arc<TestLinks>,
    pub(super) module: Arc<TestModule>,
    pub(super) endpoints: Arc<TestEndpoints>,
    pub(super) address: SocketAddr,
    pub(super) network: Arc<PeerNetwork>,
    listener: std::net::TcpListener,
    settings: NetworkSettings,
    stop: watch::Sender<bool>,
    served: JoinHandle<std::io::Result<()>>,
}

impl TestNode {
    pub(super) fn start(seed: u8, settings: NetworkSettings) -> Self {
        Self::posing(seed, settings, None)
    }

    /// A node that says it is another: its keys cannot.
    pub(super) fn posing(seed: u8, settings: NetworkSettings, as_who: Option<NodeId>) -> Self {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let keys = VaultKeys::new(seed);
        let id = as_who.unwrap_or_else(|| keys.inner.lock().unwrap().0.node_id());
        let (links, module, endpoints) = (Arc::default(), Arc::default(), Arc::default());
        let (network, stop, served) = serve(id, &keys, &links, &module, &endpoints, &listener, &settings);
        Self { id, keys, links, module, endpoints, address, network, listener, settings, stop, served }
    }

    /// Ends the running part and waits for it.
    pub(super) async fn stop(&mut self) {
        self.stop.send_replace(true);
        (&mut self.served).await.unwrap().unwrap();
    }

    /// `noded` ends and begins again: sessions and memory are lost, link and keys are not.
    pub(super) async fn restart(&mut self) {
        self.stop().await;
        let Self { id, keys, links, module, endpoints, listener, settings, .. } = self;
        let (network, stop, served) = serve(*id, keys, links, module, endpoints, listener, settings);
        (self.network, self.stop, self.served) = (network, stop, served);
        self.network.link_added(self.links.handle());
    }

    pub(super) async fn ask(&self, peer: &TestNode, head: RequestHead, body: Body) -> Answered {
        let (head, body) = self.network.request(peer.id, head, body).await?;
        Ok((head, body.collect(8 << 20).await.unwrap()))
    }
}

pub(super) type Answered = Result<(ResponseHead, Bytes), crate::p2p::NetworkError>;

fn serve(
    id: NodeId,
    keys: &Arc<VaultKeys>,
    links: &Arc<TestLinks>,
    module: &Arc<TestModule>,
    endpoints: &Arc<TestEndpoints>,
    listener: &std::net::TcpListener,
    settings: &NetworkSettings,
) -> (Arc<PeerNetwork>, watch::Sender<bool>, JoinHandle<std::io::Result<()>>) {
    let ports = Ports {
        links: Arc::clone(links) as Arc<dyn Links>,
        dispatch: Arc::clone(module) as Arc<dyn Dispatch>,
        endpoints: Arc::clone(endpoints) as Arc<dyn Endpoints>,
        reports: Arc::default(),
    };
    let network = PeerNetwork::new(settings.clone(), id, Arc::clone(keys) as Arc<dyn HandshakeKeys>, ports);
    let (stop, stopped) = watch::channel(false);
    let listener = listener.try_clone().unwrap();
    let served = tokio::spawn(Arc::clone(&network).serve(listener, stopped));
    (network, stop, served)
}

/// Gives `one` a newer link with `other`, of which `other` has not heard.
pub(super) fn renew_unheard(one: &TestNode, other: &TestNode, method: Method) {
    *one.links.older.lock().unwrap() = Some(one.links.handle());
    let issued = one.keys.ask(issue(other, method));
    let Ok(Reply::LinkIssued { summary, row, keys, .. }) = issued else { panic!("{issued:?}") };
    keep(one, summary.link, other.id, method, row, keys);
}

/// What issues a link with `peer`.
fn issue(peer: &TestNode, method: Method) -> Request {
    let allowed = [method].into_iter().collect::<MethodSet>();
    let fields = CardFields { endpoints: vec![format!("http://{}", peer.address)], ..CardFields::default() };
    let card = match peer.keys.ask(Request::SignCard { fields, suites: MethodSet::ALL, life: DAY }) {
        Ok(Reply::Card { statement, .. }) => statement,
        other => panic!("{other:?}"),
    };
    Request::IssueLink { peer: peer.id, card, directory: DIRECTORY, allowed, schedule: Schedule::Hourly, life: DAY }
}

/// Two linked nodes that know each other's endpoint.
pub(super) fn pair_with(settings: NetworkSettings, method: Method) -> (TestNode, TestNode) {
    pair_of(settings.clone(), settings, method)
}

/// The same, with settings of their own.
pub(super) fn pair_of(alices: NetworkSettings, bobs: NetworkSettings, method: Method) -> (TestNode, TestNode) {
    let (alice, bob) = (TestNode::start(1, alices), TestNode::start(2, bobs));
    let issued = alice.keys.ask(issue(&bob, method));
    let Ok(Reply::LinkIssued { summary, row, offer, keys }) = issued else { panic!("{issued:?}") };
    keep(&alice, summary.link, bob.id, method, row, keys);
    let allowed = [method].into_iter().collect::<MethodSet>();
    let received = ReceivedOffer { offer, sender: alice.id, directory: DIRECTORY, allowed };
    let accepted = bob.keys.ask(Request::AcceptOffer(received));
    let Ok(Reply::LinkAccepted { summary, row, keys, .. }) = accepted else { panic!("{accepted:?}") };
    keep(&bob, summary.link, alice.id, method, row, keys);
    alice.endpoints.0.lock().unwrap().push(format!("http://{}", bob.address));
    bob.endpoints.0.lock().unwrap().push(format!("http://{}", alice.address));
    (alice, bob)
}

/// Patient: these tests cause more refusals than an address is forgiven.
pub(super) fn patient() -> NetworkSettings {
    NetworkSettings { refusals: (1_000_000, 1_000_000), ..NetworkSettings::default() }
}

/// A genuine REQUEST of alice to bob, as bytes on the wire.
pub(super) async fn genuine(alice: &TestNode, bob: &TestNode, counter: u64) -> HandshakeRequest {
    let handle = alice.links.handle();
    let half_open = alice.keys.start_handshake(handle.row.clone()).await.unwrap();
    request::build(&handle.keys.outgoing, &alice.id, &bob.id, counter, &half_open.noise)
}

pub(super) fn pair() -> (TestNode, TestNode) {
    pair_with(NetworkSettings { throughput: true, ..NetworkSettings::default() }, Method::Beta)
}

fn keep(node: &TestNode, link: LinkId, peer: NodeId, method: Method, row: Vec<u8>, keys: LinkKeys) {
    let (row, not_after) = (row.into(), unix_now().plus(DAY));
    let handle = LinkHandle { link, peer, method, row, keys, outgoing_counter: 0, incoming_counter: 0, not_after };
    let handle = Arc::new(handle);
    *node.links.handle.lock().unwrap() = Some(Arc::clone(&handle));
    node.network.link_added(handle);
}

pub(super) fn head(method: &str, path: &str) -> RequestHead {
    RequestHead { module: "test".into(), method: method.into(), path: path.into(), ..RequestHead::default() }
}

/// Sends raw bytes and reads all that comes back until the other side closes.
pub(super) async fn raw(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The other side may close before it has read all: that is one of the answers.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    answer
}

/// Posts a body over a connection of its own; gives the whole answer, head and body.
pub(super) async fn post(address: SocketAddr, path: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: {address}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
    raw(address, &[head.as_bytes(), body].concat()).await
}

/// The body of a raw answer.
pub(super) fn body_of(answer: &[u8]) -> &[u8] {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("a whole head");
    &answer[end + 4..]
}
