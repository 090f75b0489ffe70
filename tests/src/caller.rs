//! A stranger with a key of its own that calls a directory as a node would: signed requests as raw bytes, a card to
//! register with, and valid offers. Hostile tests need what is past the signature to be reached.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, SigningKey};
use openred_cryptod::identity::Identity;
use openred_cryptod::link::issue::{IssueTerms, issue};
use openred_cryptod::registered::Methods;
use openred_proto::checked::card::{Card, CardFields, Prekey, prekey_id};
use openred_proto::checked::statement;
use openred_proto::checked::succession::Lineage;
use openred_proto::http_signature::SignatureInput;
use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::label::{Label, signed_bytes};
use openred_proto::limits::XWING_PUBLIC_BYTES;
use openred_proto::method::{MethodSet, Schedule};
use openred_proto::secret::Secret;
use rand_chacha::ChaCha20Rng;
use rand_chacha::rand_core::SeedableRng as _;
use sha2::{Digest as _, Sha256};

/// An hour, and how long the card is good for.
const HOUR: Duration = Duration::from_secs(3600);

/// A key, and the public origin of the directory that it calls.
#[derive(Debug)]
pub struct Caller {
    key: SigningKey,
    origin: String,
}

impl Caller {
    /// Draws a key.
    ///
    /// # Panics
    /// When the system has no randomness.
    #[must_use]
    pub fn new(origin: &str) -> Self {
        Self { key: SigningKey::from_bytes(&random()), origin: origin.to_owned() }
    }

    /// Its node id.
    #[must_use]
    pub fn id(&self) -> NodeId {
        NodeId::from_bytes(self.key.verifying_key().to_bytes())
    }

    /// The head of a signed `POST` whose body is said to be `body` and `length` bytes long; what follows is the caller's.
    #[must_use]
    pub fn head(&self, path: &str, body: &[u8], length: usize) -> Vec<u8> {
        let input = SignatureInput {
            method: "POST".to_owned(),
            target_uri: format!("{}{path}", self.origin),
            content_sha256: Sha256::digest(body).into(),
            created: now().0 / 1000,
            nonce: random(),
            key_id: self.id(),
        };
        let signature = SignatureInput::signature_header(&self.key.sign(&input.base()).to_bytes());
        format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\ncontent-digest: {}\r\n\
             signature-input: {}\r\nsignature: {signature}\r\n\r\n",
            input.content_digest(),
            input.signature_input_header(),
        )
        .into_bytes()
    }

    /// A whole signed `POST`.
    #[must_use]
    pub fn post(&self, path: &str, body: &[u8]) -> Vec<u8> {
        [&self.head(path, body, body.len()), body].concat()
    }

    /// The request that registers this key's node.
    #[must_use]
    pub fn register(&self) -> Vec<u8> {
        let (key, now) = (vec![7; XWING_PUBLIC_BYTES], now());
        let prekey = Prekey { id: prekey_id(&key), key, not_before: now, not_after: now.plus(HOUR) };
        let card = Card {
            node_id: self.id(),
            sequence: now.0,
            issued_at: now,
            expires_at: now.plus(HOUR),
            fields: CardFields::default(),
            suites: MethodSet::ALL,
            prekey,
            lineage: Lineage::default(),
            methods: Vec::new(),
        };
        let payload = card.encode();
        let signature = self.key.sign(&signed_bytes(Label::Card, &payload)).to_bytes();
        let card = STANDARD.encode(statement::encode(&payload, &self.id(), &signature));
        self.post("/api/v3/nodes/register", format!("{{\"card\":\"{card}\"}}").as_bytes())
    }
}

impl Caller {
    /// The request that sends a valid offer of a link for a day to whom `card` is of.
    ///
    /// # Errors
    /// When the card is not the peer's, or has no method.
    pub fn offer(&self, peer: NodeId, card: &[u8], directory: NodeId) -> Result<Vec<u8>> {
        let identity = Identity::from_seed(&Secret::new(self.key.to_bytes()));
        let (allowed, schedule, life) = (MethodSet::ALL, Schedule::Hourly, 24 * HOUR);
        let terms = IssueTerms { peer, card, directory, allowed, schedule, life };
        let mut random = ChaCha20Rng::from_seed(random());
        let seed = Secret::new([0; 32]);
        let issued = issue(&identity, (&seed, &Methods::default()), &terms, None, now().0, now(), &mut random)
            .map_err(|error| anyhow!("the offer: {error:?}"))?;
        let body = format!("{{\"offer\":\"{}\"}}", STANDARD.encode(&issued.offer));
        Ok(self.post("/api/v3/tokens/request-connection", body.as_bytes()))
    }
}

/// Sends one request and reads the answer: status and body.
///
/// # Errors
/// When there is no answer.
pub fn call(address: SocketAddr, request: &[u8]) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(request)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer has a head")?;
    let status =
        head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).context("a head begins with the status")?;
    Ok((status.parse()?, body.to_owned()))
}

/// A node's signed card, as the directory at `address` has it.
///
/// # Errors
/// When it has none.
pub fn card_of(address: SocketAddr, node: &str) -> Result<Vec<u8>> {
    let get = format!("GET /api/v3/nodes/{node} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let (status, body) = call(address, get.as_bytes())?;
    ensure!(status == 200, "{status}: {body}");
    let view: serde_json::Value = serde_json::from_str(&body)?;
    Ok(STANDARD.decode(view["card"].as_str().context("a node has a card")?)?)
}

fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system has randomness");
    bytes
}
