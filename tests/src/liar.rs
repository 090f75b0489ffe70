//! A directory that lies: the real API, stores and signatures over real sockets, in this process, with a hand between it and its callers that
//! bends what it answers. What it signs it signs with its own key; what nodes signed it cannot sign.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use openred_directory::api;
use openred_directory::config::Config;
use openred_directory::identity::Identity;
use openred_directory::serve::{Service, serve};
use openred_directory::state::{Directory, Remembered, system_clock};
use openred_directory::store::decision::Bans;
use openred_directory::store::sqlite::SqliteStore;
use openred_directory::store::{CardStore as _, NewCard, PreviousRun, StoreHandle, Terms};
use openred_proto::checked::succession::Lineage;
use openred_proto::id::NodeId;
use serde_json::{Value, json};
use tempfile::TempDir;
use tower::ServiceExt as _;

/// Longest body that is bent.
const BODY_BYTES: usize = 1 << 20;

/// What it does to its callers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lie {
    /// Nothing.
    #[default]
    None,
    /// Signs for offers and throws them away.
    Drop,
    /// Answers with the first card of a node that it ever gave or took.
    Replay,
    /// Answers with cards in which a byte of the prekey is another.
    SwapPrekey,
    /// Shows a log that is not the one that it has: the one of [`Liar::other_log`].
    OtherLog,
    /// Proves inclusion with hashes that lead nowhere.
    ForgeInclusion,
    /// Answers nothing about its log.
    Withhold,
    /// Gives heads that somebody else signed.
    ForeignHead,
    /// Takes offers and answers with receipts that it did not sign so.
    BadReceipt,
}

/// What the hand works with.
#[derive(Default)]
struct Hand {
    lie: Lie,
    /// First card of each node, as it was registered.
    first: BTreeMap<String, String>,
    /// Another log of the same key.
    other: Option<Router>,
}

/// A running liar.
pub struct Liar {
    /// Its did:key.
    pub id: NodeId,
    /// Where it listens.
    pub address: SocketAddr,
    hand: Arc<Mutex<Hand>>,
    runtime: tokio::runtime::Runtime,
    folder: TempDir,
    seed: [u8; 32],
}

impl std::fmt::Debug for Liar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Liar({}@{})", self.id, self.address)
    }
}

/// What the middleware knows.
#[derive(Clone)]
struct Bent {
    hand: Arc<Mutex<Hand>>,
    directory: Arc<Directory>,
}

fn lock(hand: &Mutex<Hand>) -> MutexGuard<'_, Hand> {
    hand.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A directory of this key over a database of its own.
fn directory(folder: &TempDir, name: &str, seed: &[u8; 32], origin: String) -> Result<Arc<Directory>> {
    let database = folder.path().join(name);
    let store = StoreHandle::start(SqliteStore::open(&database, 64)?, [SqliteStore::open_reader(&database)?])?;
    let remembered = Remembered { bans: Bans::default(), before: PreviousRun::Never };
    Ok(Directory::new(&Config::default(), Identity::from_seed(seed), origin, store, remembered, system_clock()))
}

/// A database in which strangers are registered: a log of that many entries.
fn strangers(folder: &TempDir, name: &str, count: u8) -> Result<()> {
    let mut store = SqliteStore::open(&folder.path().join(name), 64)?;
    let now = system_clock()();
    for number in 1..=count {
        let card = NewCard {
            node: NodeId::from_bytes([number; 32]),
            sequence: 1,
            expires_at: now.plus(Duration::from_secs(3600)),
            listed: true,
            sector: String::new(),
            methods: 1,
            bytes: vec![number],
            lineage: Lineage::default(),
        };
        store.register(now, &card, &Terms::open(u64::from(u8::MAX)))?;
    }
    Ok(())
}

impl Liar {
    /// Starts one with the key of this seed, honest until it is told to lie. `before` strangers are in its log.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(seed: u8, before: u8) -> Result<Self> {
        let (folder, seed) = (tempfile::Builder::new().prefix("openred-liar-").tempdir()?, [seed; 32]);
        strangers(&folder, "cards", before)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let directory = directory(&folder, "cards", &seed, format!("http://{address}"))?;
        let hand = Arc::<Mutex<Hand>>::default();
        let bent = Bent { hand: Arc::clone(&hand), directory: Arc::clone(&directory) };
        let router = api::router(Arc::clone(&directory)).layer(middleware::from_fn_with_state(bent, bend));
        runtime.spawn(serve(directory, Service { listener, tls: None, router, connections: 64 }));
        let id = Identity::from_seed(&seed).id();
        Ok(Self { id, address, hand, runtime, folder, seed })
    }

    /// What a node configures: `did@url`.
    #[must_use]
    pub fn setting(&self) -> String {
        format!("{}@http://{}", self.id, self.address)
    }

    /// From now on it lies so.
    pub fn lie(&self, lie: Lie) {
        lock(&self.hand).lie = lie;
    }

    /// Gives it another log, of this many strangers, for [`Lie::OtherLog`].
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn other_log(&self, entries: u8) -> Result<()> {
        let name = format!("other-{entries}");
        strangers(&self.folder, &name, entries)?;
        let _entered = self.runtime.enter();
        let other = directory(&self.folder, &name, &self.seed, format!("http://{}", self.address))?;
        lock(&self.hand).other = Some(api::router(other));
        Ok(())
    }

    /// Has it that a node registered here at all.
    ///
    /// # Errors
    /// When it did not.
    pub fn knows(&self, node: &str) -> Result<()> {
        ensure!(lock(&self.hand).first.contains_key(node), "{node} has not registered");
        Ok(())
    }
}

async fn bend(State(bent): State<Bent>, request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let (lie, other) = {
        let hand = lock(&bent.hand);
        (hand.lie, hand.other.clone())
    };
    let bent = match (lie, path.as_str()) {
        (_, "/api/v3/nodes/register") => registering(&bent, request, next).await,
        (Lie::Drop, "/api/v3/tokens/request-connection") => dropping(&bent, request, next).await,
        (Lie::BadReceipt, "/api/v3/tokens/request-connection") => {
            changed(next.run(request).await, |answer| spoil(&mut answer["receipt"])).await
        }
        (Lie::Withhold, path) if path.starts_with("/api/v3/log/") => Ok(StatusCode::NOT_FOUND.into_response()),
        (Lie::OtherLog, path) if path.starts_with("/api/v3/log/") => match other {
            Some(other) => Ok(other.oneshot(request).await.into_response()),
            None => Ok(next.run(request).await),
        },
        (Lie::ForgeInclusion, "/api/v3/log/inclusion") => {
            changed(next.run(request).await, |answer| {
                answer["proof"] = json!([STANDARD.encode([7; 32]), STANDARD.encode([8; 32])]);
            })
            .await
        }
        (Lie::ForeignHead, "/api/v3/log/head") => {
            changed(next.run(request).await, |answer| {
                let head = answer["head"].as_str().unwrap_or_default();
                // Another size than the one that was signed.
                answer["head"] = head.replacen('\n', "\n1", 1).into();
            })
            .await
        }
        (Lie::Replay | Lie::SwapPrekey, path) if method == Method::GET && path.starts_with("/api/v3/nodes/did:") => {
            let first = lock(&bent.hand).first.get(path.trim_start_matches("/api/v3/nodes/")).cloned();
            changed(next.run(request).await, |answer| match (lie, first) {
                (Lie::Replay, Some(first)) => answer["card"] = first.into(),
                _ => swap_prekey(&mut answer["card"]),
            })
            .await
        }
        _ => Ok(next.run(request).await),
    };
    bent.unwrap_or_else(|_| StatusCode::BAD_GATEWAY.into_response())
}

/// Keeps the first card of each node.
async fn registering(bent: &Bent, request: Request, next: Next) -> Result<Response> {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, BODY_BYTES).await?;
    let card = serde_json::from_slice::<Value>(&body).ok().and_then(|body| Some(body["card"].as_str()?.to_owned()));
    let response = next.run(Request::from_parts(parts, Body::from(body))).await;
    let (parts, body) = response.into_parts();
    let body = to_bytes(body, BODY_BYTES).await?;
    let node = serde_json::from_slice::<Value>(&body).ok().and_then(|body| Some(body["node"].as_str()?.to_owned()));
    if let (Some(node), Some(card)) = (node, card) {
        lock(&bent.hand).first.entry(node).or_insert(card);
    }
    Ok(Response::from_parts(parts, Body::from(body)))
}

/// Has the offer taken and signed for, and empties every mailbox before anybody looks.
async fn dropping(bent: &Bent, request: Request, next: Next) -> Result<Response> {
    let response = next.run(request).await;
    let nodes: Vec<NodeId> = lock(&bent.hand).first.keys().filter_map(|node| node.parse().ok()).collect();
    nodes.iter().for_each(|node| bent.directory.mailboxes().evict(node));
    Ok(response)
}

async fn changed(response: Response, change: impl FnOnce(&mut Value)) -> Result<Response> {
    let (mut parts, body) = response.into_parts();
    let mut answer: Value = serde_json::from_slice(&to_bytes(body, BODY_BYTES).await?)?;
    if parts.status.is_success() {
        change(&mut answer);
    }
    parts.headers.remove("content-length");
    Ok(Response::from_parts(parts, Body::from(serde_json::to_vec(&answer)?)))
}

/// Another last byte: the signature's.
fn spoil(receipt: &mut Value) {
    let bytes = receipt.as_str().context("a receipt").and_then(|text| Ok(STANDARD.decode(text)?));
    if let Ok(mut bytes) = bytes
        && let Some(last) = bytes.last_mut()
    {
        *last ^= 1;
        *receipt = STANDARD.encode(bytes).into();
    }
}

/// Another byte in the middle of a card: its prekey is most of it.
fn swap_prekey(card: &mut Value) {
    let bytes = card.as_str().context("a card").and_then(|text| Ok(STANDARD.decode(text)?));
    if let Ok(mut bytes) = bytes {
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        *card = STANDARD.encode(bytes).into();
    }
}
