//! One directory over HTTP: signed requests (RFC 9421, signed by the key process), bounded answers, deadlines, and the
//! correction of this machine's clock towards the directory's `Date`.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use openred_proto::admin::DirectoryStatus;
use openred_proto::admission::{Challenge, Invite};
use openred_proto::checked::offer::Offer;
use openred_proto::checked::receipt::{Receipt, ReceiptKind};
use openred_proto::error::WireError;
use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::limits::{WORK_BITS, WORK_LIFE};
use openred_proto::log::Hash;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::log::{Place, Watch};
use super::names::ResolvedNames;
use super::seek::Seeking;
use super::{DirectoryError, lock, wire};
use crate::clock;
use crate::config::{DirectoryAddress, LookUps};
use crate::keys::CryptodClient;

/// An answer's head must be there after this long; a stream's head too.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// A connection must stand after this long.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// Longest answer that is read whole: a page of a long poll with a full mailbox of offers.
const ANSWER_BYTES: usize = 512 * 1024;
/// A correction below this is the network's delay, not the clock's fault.
const CLOCK_NOISE_MILLIS: u64 = 2000;

/// Hashes that are tried before others have their turn: a millisecond.
const TRIES: u64 = 4096;

type Connector = HttpsConnector<HttpConnector<ResolvedNames>>;
type Result<T> = std::result::Result<T, DirectoryError>;

/// How the node stands with a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Starting,
    Registered,
    Unreachable(DirectoryError),
    Refused(DirectoryError),
}

/// A client of one directory.
pub(super) struct Client {
    me: NodeId,
    address: DirectoryAddress,
    known_name: bool,
    invite: Option<Invite>,
    http: HttpClient<Connector, Full<Bytes>>,
    keys: CryptodClient,
    /// Milliseconds to add to this machine's clock to get the directory's.
    offset: AtomicI64,
    standing: Mutex<(Standing, UnixMillis)>,
    /// It has said that it is a mirror, or is configured as one.
    mirror: AtomicBool,
    /// Woken when the directory does not know this node any more, so that it is announced at once.
    pub(super) announce_now: tokio::sync::Notify,
    /// Woken when the node is registered: the stream may be opened.
    pub(super) registered: tokio::sync::Notify,
    /// What is to be held against its log.
    pub(super) watch: Watch,
    /// How it is asked for nodes.
    pub(super) seeking: Seeking,
}

/// A card as a directory shows it, unverified.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    pub(super) card: Bytes,
    /// Where it is said to stand in the log.
    pub(super) place: Option<Place>,
    /// Whether its node is said to be there.
    pub(super) fresh: bool,
}

impl Client {
    pub(super) fn new(
        me: NodeId,
        address: DirectoryAddress,
        invite: Option<Invite>,
        look_ups: LookUps,
        names: &ResolvedNames,
        tls: &Arc<rustls::ClientConfig>,
        keys: CryptodClient,
    ) -> Self {
        let mut tcp = HttpConnector::new_with_resolver(names.clone());
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT_TIME));
        tcp.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config((**tls).clone())
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let known_name = names.knows(address.host());
        Self {
            me,
            known_name,
            invite,
            http: HttpClient::builder(TokioExecutor::new()).pool_max_idle_per_host(2).build(connector),
            address,
            keys,
            offset: AtomicI64::new(0),
            standing: Mutex::new((Standing::Starting, clock::now())),
            mirror: AtomicBool::new(false),
            announce_now: tokio::sync::Notify::new(),
            registered: tokio::sync::Notify::new(),
            watch: Watch::default(),
            seeking: Seeking::new(look_ups),
        }
    }

    /// It is asked for look-ups alone.
    pub(super) fn for_look_ups(self) -> Self {
        Self { mirror: AtomicBool::new(true), ..self }
    }

    pub(super) const fn address(&self) -> &DirectoryAddress {
        &self.address
    }

    /// This machine's time, corrected towards the directory's: what its cards and windows are judged by.
    pub(super) fn corrected_now(&self) -> UnixMillis {
        UnixMillis(clock::now().0.saturating_add_signed(self.offset.load(Ordering::Relaxed)))
    }

    /// How far this machine's clock is off by this directory's; `None` within the noise.
    pub(super) fn clock_error(&self) -> Option<Duration> {
        let off = self.offset.load(Ordering::Relaxed).unsigned_abs();
        (off > CLOCK_NOISE_MILLIS).then(|| Duration::from_millis(off))
    }

    pub(super) fn stands(&self, standing: Standing) {
        match standing {
            Standing::Registered => self.mirror.store(false, Ordering::Relaxed),
            Standing::Refused(DirectoryError::Mirror) => self.mirror.store(true, Ordering::Relaxed),
            _ => {}
        }
        let mut current = lock(&self.standing);
        if current.0 == Standing::Starting {
            // Its log was not looked at before.
            self.watch.look();
        }
        if current.0 != standing {
            *current = (standing, clock::now());
        }
    }

    pub(super) fn standing(&self) -> Standing {
        lock(&self.standing).0
    }

    /// Whether it is a mirror, also where it was configured as a directory: what it shows is behind, and no lie. What it has said of itself
    /// holds while it says nothing.
    pub(super) fn is_a_mirror(&self) -> bool {
        self.mirror.load(Ordering::Relaxed)
    }

    /// Whether it is one, or has not answered this node's first announcement yet, by which that is known.
    pub(super) fn may_be_a_mirror(&self) -> bool {
        self.is_a_mirror() || self.standing() == Standing::Starting
    }

    pub(super) fn status(&self) -> DirectoryStatus {
        let (standing, since) = *lock(&self.standing);
        let (state, detail) = match standing {
            Standing::Starting => ("starting", String::new()),
            Standing::Registered => ("registered", String::new()),
            Standing::Unreachable(error) => ("unreachable", error.to_string()),
            Standing::Refused(error) => ("refused", error.to_string()),
        };
        DirectoryStatus {
            id: self.address.id.to_string(),
            url: self.address.origin.clone(),
            state: state.to_owned(),
            detail,
            since: since.0,
            log_size: self.watch.checked().0,
            log_checked_at: self.watch.checked().1.0,
            evidence: Vec::new(),
        }
    }

    /// Announces a signed card; the answer says after how long to come again.
    pub(super) async fn register(&self, card: &[u8]) -> Result<Duration> {
        let path = "/api/v3/nodes/register";
        let invite = self.invite.as_ref().map(ToString::to_string);
        let mut body = wire::RegisterBody { card: wire::encode(card), work: None, invite };
        let answer: Result<wire::Registered> = match self.post(path, &body).await {
            Err(DirectoryError::WorkWanted(bits)) if bits <= WORK_BITS => {
                body.work = Some(self.work(bits).await);
                self.post(path, &body).await
            }
            answer => answer,
        };
        match answer? {
            registered if registered.outcome == "quarantined" => Err(DirectoryError::Quarantined),
            registered => {
                self.watch.took(Bytes::copy_from_slice(card));
                Ok(Duration::from_secs(registered.announce_after_seconds))
            }
        }
    }

    /// Works for a place: so many tries at a time, so that everything else goes on between them.
    async fn work(&self, bits: u32) -> wire::WorkBody {
        loop {
            let began = self.corrected_now();
            let challenge = Challenge::new(&self.address.id, &self.me, began.seconds());
            // With time left for the request: work that took longer is begun anew, which costs nothing but what was in vain.
            while self.corrected_now() < began.plus(WORK_LIFE / 2) {
                let mut start = [0; 8];
                getrandom::fill(&mut start).expect("the kernel's generator answers since the probe at start");
                let from = u64::from_le_bytes(start);
                if let Some(nonce) = challenge.search(bits, from, TRIES) {
                    return wire::WorkBody { time: began.seconds(), nonce };
                }
                tokio::task::yield_now().await;
            }
        }
    }

    /// A node's signed card, unverified.
    pub(super) async fn node(&self, node: NodeId) -> Result<Shown> {
        let path = format!("/api/v3/nodes/{node}");
        let response = self.send(&Method::GET, &path, Bytes::new(), HeaderMap::new()).await?;
        match response.status() {
            StatusCode::NOT_FOUND => Err(DirectoryError::UnknownNode),
            _ => {
                let view: wire::NodeView = read(response).await?;
                let place = view.log.map(|log| log.place()).transpose()?;
                Ok(Shown { card: wire::decode("card", &view.card)?, place, fresh: view.fresh })
            }
        }
    }

    /// What is sealed of all nodes whose ids begin so.
    pub(super) async fn by_prefix(&self, prefix: &str) -> Result<Vec<Bytes>> {
        let sealed: wire::Sealed = self.get(&format!("/api/v3/nodes/prefix/{prefix}")).await?;
        sealed.sealed.iter().map(|text| Ok(wire::decode("sealed card", text)?)).collect()
    }

    /// The head of the log, unverified.
    pub(super) async fn log_head(&self) -> Result<Bytes> {
        let head: wire::LogHead = self.get("/api/v3/log/head").await?;
        Ok(head.head.into())
    }

    /// A proof that an entry is in the log, unverified.
    pub(super) async fn inclusion(&self, index: u64, size: u64) -> Result<Vec<Hash>> {
        self.get::<wire::LogProof>(&format!("/api/v3/log/inclusion?index={index}&size={size}")).await?.hashes()
    }

    /// A proof that the log only grew, unverified.
    pub(super) async fn consistency(&self, from: u64, to: u64) -> Result<Vec<Hash>> {
        self.get::<wire::LogProof>(&format!("/api/v3/log/consistency?from={from}&to={to}")).await?.hashes()
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        read(self.send(&Method::GET, path, Bytes::new(), HeaderMap::new()).await?).await
    }

    /// Hands an offer over; the directory's signed receipt for exactly this offer is the only proof that it took it.
    pub(super) async fn send_offer(&self, offer: Bytes) -> Result<()> {
        let body = wire::OfferBody { offer: wire::encode(&offer) };
        let routed: wire::ReceiptBody = self.post("/api/v3/tokens/request-connection", &body).await?;
        let receipt = Receipt::verify(&wire::decode("routed receipt", &routed.receipt)?, &self.address.id)?;
        let routing = Offer::decode(&offer)?.routing;
        let is_for_it = receipt.kind == ReceiptKind::Routed
            && receipt.token_id == Offer::token_id(&offer)
            && receipt.issuer == self.me
            && receipt.recipient == routing.recipient;
        if is_for_it {
            Ok(())
        } else {
            Err(WireError::Malformed { what: "routed receipt", why: "for another offer" }.into())
        }
    }

    /// Hands an acceptor's receipt over.
    pub(super) async fn acknowledge(&self, receipt: Bytes) -> Result<()> {
        let body = wire::ReceiptBody { receipt: wire::encode(&receipt) };
        self.post::<_, serde_json::Value>("/api/v3/tokens/acknowledge", &body).await.map(|_| ())
    }

    /// Opens the stream of what waits for this node, after the item with id `after`.
    pub(super) async fn receive(&self, after: u64) -> Result<Incoming> {
        let path = format!("/api/v3/tokens/receive?after={after}");
        Ok(accepted(self.signed(&Method::GET, &path, Bytes::new()).await?)?.into_body())
    }

    /// The same as a long poll of `wait` seconds, for networks that hold streams back.
    pub(super) async fn poll(&self, after: u64, wait: u64) -> Result<wire::Received> {
        let path = format!("/api/v3/tokens/receive?wait={wait}&after={after}");
        let answer = async { read(self.signed(&Method::GET, &path, Bytes::new()).await?).await };
        tokio::time::timeout(HEAD_TIME + Duration::from_secs(wait), answer).await.map_err(|_| DirectoryError::Slow)?
    }

    async fn post<B: Serialize, T: DeserializeOwned>(&self, path: &str, body: &B) -> Result<T> {
        let body = serde_json::to_vec(body).expect("texts always serialise");
        read(self.signed(&Method::POST, path, body.into()).await?).await
    }

    /// A signed request. When the directory's clock differs, the offset is corrected and the request sent once more.
    async fn signed(&self, method: &Method, path: &str, body: Bytes) -> Result<Response<Incoming>> {
        let response = self.sign_and_send(method, path, body.clone()).await?;
        if response.status() != StatusCode::UNAUTHORIZED || !self.correct_clock(response.headers()) {
            return Ok(response);
        }
        self.sign_and_send(method, path, body).await
    }

    async fn sign_and_send(&self, method: &Method, path: &str, body: Bytes) -> Result<Response<Incoming>> {
        let target = format!("{}{path}", self.address.origin);
        let mut nonce = [0; 16];
        getrandom::fill(&mut nonce).expect("the kernel's generator answers since the probe at start");
        let digest = Sha256::digest(&body).into();
        let created = self.corrected_now().seconds();
        let signed = self.keys.sign_http(method.as_str(), &target, digest, created, nonce).await?;
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("content-digest", signed.content_digest),
            ("signature-input", signed.signature_input),
            ("signature", signed.signature),
        ] {
            let malformed = WireError::Malformed { what: "HTTP signature", why: "not a header value" };
            headers.insert(name, value.parse().map_err(|_| malformed)?);
        }
        self.send(method, path, body, headers).await
    }

    async fn send(&self, method: &Method, path: &str, body: Bytes, headers: HeaderMap) -> Result<Response<Incoming>> {
        if !self.known_name {
            return Err(DirectoryError::Unresolved);
        }
        let mut request = Request::new(Full::new(body.clone()));
        *request.method_mut() = method.clone();
        let target = format!("{}{path}", self.address.origin);
        *request.uri_mut() = target.parse().map_err(|_| DirectoryError::Unreachable)?;
        *request.headers_mut() = headers;
        if !body.is_empty() {
            request.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        }
        let sent = self.http.request(request);
        // A long poll's head comes with its end: its own limit stands around this call.
        let limit = if path.contains("?wait=") { HEAD_TIME * 7 } else { HEAD_TIME };
        let response = tokio::time::timeout(limit, sent).await.map_err(|_| DirectoryError::Slow)?;
        response.map_err(|error| {
            tracing::debug!(directory = %self.address.origin, %error, "request failed");
            DirectoryError::Unreachable
        })
    }

    /// Takes the directory's time from `Date`; true when that changed what this node signs.
    fn correct_clock(&self, headers: &HeaderMap) -> bool {
        let date = headers.get(header::DATE).and_then(|value| value.to_str().ok()).and_then(wire::parse_date);
        let Some(theirs) = date.and_then(|seconds| i64::try_from(seconds).ok()?.checked_mul(1000)) else {
            return false;
        };
        let ours = i64::try_from(clock::now().0).unwrap_or(i64::MAX);
        let offset = theirs.saturating_sub(ours);
        let before = self.offset.swap(offset, Ordering::Relaxed);
        before.abs_diff(offset) > CLOCK_NOISE_MILLIS
    }
}

/// The answer, if it is one; a refusal by its status and, where this client acts on it, its code.
fn accepted(response: Response<Incoming>) -> Result<Response<Incoming>> {
    if response.status().is_success() { Ok(response) } else { Err(DirectoryError::Refused(response.status().as_u16())) }
}

async fn read<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T> {
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES).collect();
    let body = tokio::time::timeout(HEAD_TIME, body).await.map_err(|_| DirectoryError::Slow)?;
    let body = body.map_err(|_| DirectoryError::Unreachable)?.to_bytes();
    if !status.is_success() {
        return Err(refusal(status, &body));
    }
    let malformed = WireError::Malformed { what: "directory's answer", why: "not the expected JSON" };
    serde_json::from_slice(&body).map_err(|_| malformed.into())
}

fn refusal(status: StatusCode, body: &[u8]) -> DirectoryError {
    #[derive(serde::Deserialize)]
    struct Problem {
        code: String,
        #[serde(default)]
        work_bits: Option<u32>,
    }
    let problem = serde_json::from_slice(body).unwrap_or(Problem { code: String::new(), work_bits: None });
    match problem.code.as_str() {
        "admission.work" => DirectoryError::WorkWanted(problem.work_bits.unwrap_or(u32::MAX)),
        "admission.invite" => DirectoryError::InviteWanted,
        "node.quarantined" => DirectoryError::Quarantined,
        "node.unregistered" => DirectoryError::Unregistered,
        "mirror.reads-only" => DirectoryError::Mirror,
        "prefix.wide" => DirectoryError::PrefixWide,
        "recipient.unregistered" => DirectoryError::UnknownNode,
        "node.succeeded" => DirectoryError::Succeeded,
        _ => DirectoryError::Refused(status.as_u16()),
    }
}
