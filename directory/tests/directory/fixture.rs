//! A node that signs as a real one does, and a directory in this process with a clock that the test turns.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, SigningKey};
use http_body_util::BodyExt as _;
use openred_directory::api;
use openred_directory::api::problem::ProblemDocument;
use openred_directory::api::signed::Peer;
use openred_directory::config::Config;
use openred_directory::identity::Identity;
use openred_directory::state::{Directory, Remembered};
use openred_directory::store::decision::Bans;
use openred_directory::store::sqlite::SqliteStore;
use openred_directory::store::{PreviousRun, StoreHandle};
use openred_proto::checked::card::{Card, CardFields, Prekey, prekey_id};
use openred_proto::checked::offer::{Offer, RoutingHeader};
use openred_proto::checked::receipt::{Receipt, ReceiptKind};
use openred_proto::checked::statement;
use openred_proto::checked::succession::Lineage;
use openred_proto::http_signature::SignatureInput;
use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::label::{Label, signed_bytes};
use openred_proto::limits::{OFFER_BODY_BYTES, TAG_BYTES, XWING_CIPHERTEXT_BYTES, XWING_PUBLIC_BYTES};
use openred_proto::method::MethodSet;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};
use tower::ServiceExt as _;

/// When in-process tests begin.
pub(crate) const START: UnixMillis = UnixMillis(1_800_000_000_000);
/// What the in-process directory is reached by.
pub(crate) const ORIGIN: &str = "https://directory.example";
/// An hour.
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

/// A node with a key of its own.
pub(crate) struct Node {
    key: SigningKey,
    nonce: AtomicU64,
}

impl Node {
    pub(crate) fn new(seed: u8) -> Self {
        // Another start for each node of this seed, so that a node made twice draws no nonce again.
        static MADE: AtomicU64 = AtomicU64::new(0);
        let nonce = AtomicU64::new(MADE.fetch_add(1, Ordering::Relaxed) << 32);
        Self { key: SigningKey::from_bytes(&[seed; 32]), nonce }
    }

    pub(crate) fn id(&self) -> NodeId {
        NodeId::from_bytes(self.key.verifying_key().to_bytes())
    }

    pub(crate) fn statement(&self, label: Label, payload: &[u8]) -> Vec<u8> {
        statement::encode(payload, &self.id(), &self.key.sign(&signed_bytes(label, payload)).to_bytes())
    }

    pub(crate) fn card(&self, now: UnixMillis) -> Card {
        let key = vec![7; XWING_PUBLIC_BYTES];
        let prekey =
            Prekey { id: prekey_id(&key), key, not_before: now, not_after: now.plus(Duration::from_secs(7 * 86_400)) };
        let fields = CardFields { name: "n".into(), sector: "lab".into(), listed: true, ..CardFields::default() };
        Card {
            node_id: self.id(),
            sequence: now.0,
            issued_at: now,
            expires_at: now.plus(24 * HOUR),
            fields,
            suites: MethodSet::ALL,
            prekey,
            lineage: Lineage::default(),
            methods: Vec::new(),
        }
    }

    pub(crate) fn sign_card(&self, card: &Card) -> Vec<u8> {
        self.statement(Label::Card, &card.encode())
    }

    /// An offer of the right shape; what is sealed in it is nobody's concern here, so it is bytes that can be searched for.
    pub(crate) fn offer(&self, to: &NodeId, expiry: UnixMillis, fill: u8) -> Vec<u8> {
        let card_key = vec![7; XWING_PUBLIC_BYTES];
        let header =
            RoutingHeader { issuer: self.id(), recipient: *to, prekey: prekey_id(&card_key), psk: None, expiry };
        let enc = vec![fill; XWING_CIPHERTEXT_BYTES];
        Offer::encode(&header.encode(), &enc, &vec![fill; OFFER_BODY_BYTES + TAG_BYTES])
    }

    pub(crate) fn receipt(&self, issuer: &NodeId, offer: &[u8], now: UnixMillis) -> Vec<u8> {
        let receipt = Receipt {
            kind: ReceiptKind::Accepted,
            token_id: Offer::token_id(offer),
            issuer: *issuer,
            recipient: self.id(),
            at: now,
        };
        self.statement(Label::Receipt, &receipt.encode())
    }

    /// What a signature of this node covers; a test may spoil it before [`Node::sign_input`].
    pub(crate) fn input(&self, method: &str, target: &str, body: &[u8], created: u64) -> SignatureInput {
        let mut nonce = [0; 16];
        nonce[..8].copy_from_slice(&self.nonce.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        SignatureInput {
            method: method.into(),
            target_uri: target.into(),
            content_sha256: Sha256::digest(body).into(),
            created,
            nonce,
            key_id: self.id(),
        }
    }

    pub(crate) fn sign_input(&self, input: &SignatureInput) -> [(&'static str, String); 3] {
        let signature = self.key.sign(&input.base()).to_bytes();
        [
            ("content-digest", input.content_digest()),
            ("signature-input", input.signature_input_header()),
            ("signature", SignatureInput::signature_header(&signature)),
        ]
    }
}

/// A directory in this process.
pub(crate) struct TestDirectory {
    pub(crate) directory: Arc<Directory>,
    pub(crate) router: Router,
    pub(crate) folder: tempfile::TempDir,
    clock: Arc<AtomicU64>,
}

/// An answer, read wholly.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) async fn read(response: Response<Body>) -> Self {
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes().to_vec();
        Self { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    /// The body of a success.
    pub(crate) fn ok<T: DeserializeOwned>(&self) -> T {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Status and code of a refusal, which must be a whole problem document.
    pub(crate) fn refusal(&self) -> (u16, String) {
        assert!(self.status >= 400, "{}", String::from_utf8_lossy(&self.body));
        assert_eq!(self.headers["content-type"], "application/problem+json");
        let problem: ProblemDocument = serde_json::from_slice(&self.body).unwrap();
        assert_eq!(problem.status, self.status);
        assert_eq!(problem.kind, format!("urn:openred:problem:{}", problem.code));
        assert!(!problem.help.is_empty() && !problem.title.is_empty());
        (self.status, problem.code)
    }

    pub(crate) fn code(&self) -> String {
        self.refusal().1
    }
}

impl TestDirectory {
    pub(crate) fn new() -> Self {
        let mut config = Config::default();
        // Tests of limits set their own; the others are not about them.
        *config.limits.requests_burst.get_mut() = 10_000;
        Self::with(&config)
    }

    pub(crate) fn with(config: &Config) -> Self {
        Self::with_store(config, |_| {})
    }

    pub(crate) fn with_store(config: &Config, prepare: impl FnOnce(&mut SqliteStore)) -> Self {
        Self::build(config, PreviousRun::Never, prepare)
    }

    /// One that starts again after such a run.
    pub(crate) fn after(before: PreviousRun) -> Self {
        let mut config = Config::default();
        *config.limits.requests_burst.get_mut() = 10_000;
        Self::build(&config, before, |_| {})
    }

    fn build(config: &Config, before: PreviousRun, prepare: impl FnOnce(&mut SqliteStore)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("directory.sqlite");
        let mut store = SqliteStore::open(&database, 64).unwrap();
        prepare(&mut store);
        let store = StoreHandle::start(store, [SqliteStore::open_reader(&database).unwrap()]).unwrap();
        let clock = Arc::new(AtomicU64::new(START.0));
        let hand = Arc::clone(&clock);
        let read: openred_directory::state::Clock = Arc::new(move || UnixMillis(hand.load(Ordering::SeqCst)));
        let identity = Identity::from_seed(&[200; 32]);
        let directory =
            Directory::new(config, identity, ORIGIN.into(), store, Remembered { bans: Bans::default(), before }, read);
        let router = api::router(Arc::clone(&directory));
        Self { directory, router, folder, clock }
    }

    pub(crate) fn now(&self) -> UnixMillis {
        UnixMillis(self.clock.load(Ordering::SeqCst))
    }

    pub(crate) fn advance(&self, by: Duration) {
        self.clock.fetch_add(u64::try_from(by.as_millis()).unwrap(), Ordering::SeqCst);
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> Response<Body> {
        self.router.clone().oneshot(request).await.unwrap()
    }

    pub(crate) fn signed(&self, node: &Node, method: &str, path: &str, body: Vec<u8>) -> Request<Body> {
        let input = node.input(method, &format!("{ORIGIN}{path}"), &body, self.now().seconds());
        request(method, path, &node.sign_input(&input), body)
    }

    /// A signed call from this address.
    pub(crate) async fn call_from(&self, address: &str, node: &Node, method: &str, path: &str, body: Vec<u8>) -> Reply {
        let mut request = self.signed(node, method, path, body);
        request.extensions_mut().insert(Peer(address.parse().unwrap()));
        Reply::read(self.send(request).await).await
    }

    pub(crate) async fn call(&self, node: &Node, method: &str, path: &str, body: Vec<u8>) -> Reply {
        Reply::read(self.send(self.signed(node, method, path, body)).await).await
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        Reply::read(self.send(request("GET", path, &[], Vec::new())).await).await
    }

    pub(crate) async fn register(&self, node: &Node) -> Reply {
        self.register_bytes(node, &node.sign_card(&node.card(self.now()))).await
    }

    pub(crate) async fn register_bytes(&self, node: &Node, card: &[u8]) -> Reply {
        self.call(node, "POST", "/api/v3/nodes/register", json("card", card)).await
    }

    pub(crate) async fn request_connection(&self, node: &Node, offer: &[u8]) -> Reply {
        self.call(node, "POST", "/api/v3/tokens/request-connection", json("offer", offer)).await
    }

    pub(crate) async fn acknowledge(&self, node: &Node, receipt: &[u8]) -> Reply {
        self.call(node, "POST", "/api/v3/tokens/acknowledge", json("receipt", receipt)).await
    }

    pub(crate) async fn receive(&self, node: &Node, query: &str) -> Reply {
        self.call(node, "GET", &format!("/api/v3/tokens/receive{query}"), Vec::new()).await
    }
}

pub(crate) fn request(method: &str, path: &str, headers: &[(&str, String)], body: Vec<u8>) -> Request<Body> {
    let mut builder = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        builder = builder.header(*name, value);
    }
    builder.body(Body::from(body)).unwrap()
}

/// `{"field": "<base64>"}`.
pub(crate) fn json(field: &str, bytes: &[u8]) -> Vec<u8> {
    format!("{{\"{field}\":\"{}\"}}", STANDARD.encode(bytes)).into_bytes()
}

pub(crate) fn base64_text(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

pub(crate) fn base64(text: &str) -> Vec<u8> {
    STANDARD.decode(text).unwrap()
}
