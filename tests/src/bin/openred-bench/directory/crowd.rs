//! Nodes that call the directory: keys, cards that they really signed, and their requests as bytes, signed when they are asked for.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use openred_cryptod::identity::Identity;
use openred_proto::checked::card::{Card, CardFields, Prekey, prekey_id};
use openred_proto::checked::offer::{Offer, RoutingHeader};
use openred_proto::checked::succession::Lineage;
use openred_proto::http_signature::SignatureInput;
use openred_proto::id::UnixMillis;
use openred_proto::limits::{OFFER_BODY_BYTES, TAG_BYTES, XWING_CIPHERTEXT_BYTES, XWING_PUBLIC_BYTES};
use openred_proto::method::MethodSet;
use openred_proto::secret::Secret;
use sha2::{Digest as _, Sha256};

/// Sectors that the nodes are spread over.
const SECTORS: usize = 20;
const HOUR: Duration = Duration::from_secs(3600);

struct Member {
    identity: Identity,
    /// What it announces itself with, and its digest.
    body: Vec<u8>,
    sha256: [u8; 32],
}

/// Nodes.
pub(crate) struct Crowd(Vec<Member>);

impl Crowd {
    /// Makes so many, on all processors.
    pub(crate) fn make(count: usize) -> Result<Self> {
        let threads = std::thread::available_parallelism()?.get();
        let each = count.div_ceil(threads);
        let parts = std::thread::scope(|scope| {
            let ranges = (0..threads).map(|thread| thread * each..count.min((thread + 1) * each));
            let started: Vec<_> =
                ranges.map(|range| scope.spawn(|| range.map(member).collect::<Result<Vec<_>>>())).collect();
            let ended = started.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a thread has ended"))?);
            ended.collect::<Result<Vec<_>>>()
        })?;
        Ok(Self(parts.into_iter().flatten().collect()))
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Its did:key.
    pub(crate) fn id(&self, who: usize) -> String {
        self.0[who].identity.node_id().to_string()
    }

    /// A signed announcement; the same card each time.
    pub(crate) fn announce(&self, origin: &str, who: usize) -> Result<Vec<u8>> {
        let member = &self.0[who];
        signed(&member.identity, origin, "POST", "/api/v3/nodes/register", &member.body, member.sha256)
    }

    /// A look-up, by nobody.
    pub(crate) fn look_up(&self, who: usize) -> Vec<u8> {
        format!("GET /api/v3/nodes/{} HTTP/1.1\r\nhost: x\r\n\r\n", self.id(who)).into_bytes()
    }

    /// The request for its stream, of what came after an id.
    pub(crate) fn receive(&self, origin: &str, who: usize, after: u64) -> Result<Vec<u8>> {
        let path = format!("/api/v3/tokens/receive?after={after}");
        signed(&self.0[who].identity, origin, "GET", &path, &[], Sha256::digest([]).into())
    }

    /// An offer for another, and the request that sends it.
    pub(crate) fn offer(&self, origin: &str, from: usize, to: usize) -> Result<Vec<u8>> {
        self.send(origin, from, &self.seal(from, to)?)
    }

    /// An offer for another; what is sealed in it is as long as a real one, and nobody's: a directory cannot look.
    pub(crate) fn seal(&self, from: usize, to: usize) -> Result<Vec<u8>> {
        let (issuer, recipient) = (&self.0[from].identity, self.0[to].identity.node_id());
        let prekey = prekey_id(&[7; XWING_PUBLIC_BYTES]);
        let expiry = now().plus(HOUR);
        let header = RoutingHeader { issuer: issuer.node_id(), recipient, prekey, psk: None, expiry };
        let mut enc = vec![7; XWING_CIPHERTEXT_BYTES];
        getrandom::fill(&mut enc[..32]).context("the system has randomness")?;
        Ok(Offer::encode(&header.encode(), &enc, &vec![7; OFFER_BODY_BYTES + TAG_BYTES]))
    }

    /// The request that sends an offer; signed anew each time, for one may be sent again.
    pub(crate) fn send(&self, origin: &str, from: usize, offer: &[u8]) -> Result<Vec<u8>> {
        let body = format!("{{\"offer\":\"{}\"}}", STANDARD.encode(offer)).into_bytes();
        let sha256 = Sha256::digest(&body).into();
        signed(&self.0[from].identity, origin, "POST", "/api/v3/tokens/request-connection", &body, sha256)
    }
}

fn member(number: usize) -> Result<Member> {
    let seed = Sha256::digest([b"openred-bench".as_slice(), &number.to_be_bytes()].concat());
    let identity = Identity::from_seed(&Secret::new(seed.into()));
    let now = now();
    let mut key = vec![7; XWING_PUBLIC_BYTES];
    key[..8].copy_from_slice(&number.to_be_bytes());
    let not_after = now.plus(24 * HOUR);
    let card = Card {
        node_id: identity.node_id(),
        sequence: now.0,
        issued_at: now,
        expires_at: now.plus(7 * 24 * HOUR),
        fields: CardFields {
            endpoints: vec![String::from("http://192.0.2.7:7433")],
            name: format!("node-{number}"),
            sector: format!("sector-{}", number % SECTORS),
            // Every other one.
            listed: number.is_multiple_of(2),
        },
        suites: MethodSet::ALL,
        prekey: Prekey { id: prekey_id(&key), key, not_before: now, not_after },
        lineage: Lineage::default(),
        methods: Vec::new(),
    };
    let card = identity.sign_card(&card).map_err(|error| anyhow!("{error}"))?;
    let body = format!("{{\"card\":\"{}\"}}", STANDARD.encode(card)).into_bytes();
    let sha256 = Sha256::digest(&body).into();
    Ok(Member { identity, body, sha256 })
}

fn signed(
    identity: &Identity,
    origin: &str,
    method: &str,
    path: &str,
    body: &[u8],
    content_sha256: [u8; 32],
) -> Result<Vec<u8>> {
    let now = now();
    let mut nonce = [0; 16];
    getrandom::fill(&mut nonce).context("the system has randomness")?;
    let input = SignatureInput {
        method: method.to_owned(),
        target_uri: format!("{origin}{path}"),
        content_sha256,
        created: now.0 / 1000,
        nonce,
        key_id: identity.node_id(),
    };
    let signature = identity.sign_http(&input, now).map_err(|error| anyhow!("{error}"))?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\ncontent-digest: {}\r\nsignature-input: {}\r\nsignature: {}\r\n\r\n",
        body.len(),
        input.content_digest(),
        input.signature_input_header(),
        SignatureInput::signature_header(&signature),
    );
    let mut request = head.into_bytes();
    request.extend_from_slice(body);
    Ok(request)
}

fn now() -> UnixMillis {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMillis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
