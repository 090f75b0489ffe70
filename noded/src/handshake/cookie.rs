//! Cookies: before a responder under load asks its key process about a REQUEST, the sender shows that it receives what is sent to
//! the address that it sends from (PROTOCOL 5, as WireGuard does).
//!
//! In: a REQUEST of either mode ([`Shown`]) and the network it came from ([`Source`]). Out: that it may be looked at, or the answer
//! to send instead, sealed so that only who holds the REQUEST's mac1 key and saw the answer learns the cookie. [`Cookies`] is the
//! responder's side and keeps two secrets, whoever asks; [`CookieJar`] is the initiator's and keeps what it was given.
//!
//! Sans-IO: time and randomness are arguments.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{Key, KeyInit as _, XChaCha20Poly1305, XNonce};
use hkdf::Hkdf;
use openred_proto::checked::handshake::HandshakeCookie;
use openred_proto::id::NodeId;
use openred_proto::label::derive;
use openred_proto::limits::{COOKIE_BYTES, COOKIE_LIFE, COOKIE_NONCE_BYTES, HALF_OPEN};
use openred_proto::secret::Secret;
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use super::request::{Mark, mark};

/// Cookies that an initiator keeps: one of each peer that it can have a handshake under way with.
const KEPT: usize = HALF_OPEN;

/// From where the responder's carrier has a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// An IPv4 address, or the first address of an IPv6 /64: what a host keeps when it connects again. A port it does not keep.
    Network(IpAddr),
    /// The carrier has no address that answers would go to (Tor, files): a cookie would show nothing, and none is asked for.
    Hidden,
}

/// When a responder is under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadBounds {
    /// As many REQUESTs are with the key process, or wait for it.
    pub asked: usize,
    /// As many handshakes are half-open.
    pub half_open: usize,
    /// It stays under load for so long after it was last found so: a sender must not profit from every gap.
    pub hold: Duration,
}

impl Default for LoadBounds {
    fn default() -> Self {
        // A REQUEST takes the key process a fifth of a millisecond, so 64 of them some 10 ms; an honest handshake is half-open for a
        // round trip, so a quarter of the table is 256 of them at once, or somebody who never ends his.
        Self { asked: 64, half_open: HALF_OPEN / 4, hold: Duration::from_secs(1) }
    }
}

/// Random bytes for one answer; drawn by the caller.
pub(crate) struct Fresh {
    /// Becomes the next secret when it is time for one.
    pub(crate) secret: Secret<32>,
    /// Of the seal.
    pub(crate) nonce: [u8; COOKIE_NONCE_BYTES],
}

/// A REQUEST, of either mode, as its cookie sees it.
pub(crate) struct Shown<'a> {
    /// The message without its cookie, in wire form.
    pub(crate) covered: &'a [u8],
    /// Its mac1, which must have been checked.
    pub(crate) mac1: &'a Mark,
    /// The key of that mac1.
    pub(crate) mac1_key: &'a Secret<32>,
    /// What it carries in the place of the cookie.
    pub(crate) proof: Option<&'a Mark>,
}

/// The responder's secrets: cookies are made with the newest one, and taken while theirs is remembered.
#[derive(Debug, Default)]
pub(crate) struct Cookies {
    newest: Option<Rotating>,
    before: Option<Rotating>,
}

#[derive(Debug)]
struct Rotating {
    secret: Secret<32>,
    since: Instant,
}

/// For searches over responders that are never under load: no secret is copied.
#[cfg(test)]
impl Clone for Cookies {
    fn clone(&self) -> Self {
        assert!(self.newest.is_none(), "secrets are not copied");
        Self::default()
    }
}

impl Cookies {
    /// Whether `request` from `source` may be looked at; if not, the answer that asks for a cookie. Only an answer draws `fresh`.
    pub(crate) fn check(
        &mut self,
        request: &Shown<'_>,
        source: Source,
        now: Instant,
        fresh: impl FnOnce() -> Fresh,
    ) -> Result<(), HandshakeCookie> {
        let Source::Network(network) = source else { return Ok(()) };
        if request.proof.is_some_and(|proof| self.knows(proof, request.covered, network, now)) {
            return Ok(());
        }
        let Fresh { secret, nonce } = fresh();
        let due = |newest: &Rotating| now.saturating_duration_since(newest.since) >= COOKIE_LIFE;
        if self.newest.as_ref().is_none_or(due) {
            self.before = self.newest.replace(Rotating { secret, since: now });
        }
        let newest = self.newest.as_ref().expect("it has just been looked after");
        Err(seal(&newest.cookie(network), request.mac1_key, request.mac1, nonce))
    }

    fn knows(&self, proof: &Mark, covered: &[u8], network: IpAddr, now: Instant) -> bool {
        let live = |known: &&Rotating| now.saturating_duration_since(known.since) < COOKIE_LIFE * 2;
        let mut secrets = [&self.newest, &self.before].into_iter().flatten().filter(live);
        secrets.any(|known| known.cookie(network).proof(covered).ct_eq(proof).into())
    }
}

impl Rotating {
    fn cookie(&self, network: IpAddr) -> Cookie {
        // One form for both families: a mapped IPv4 address is the first of no /64.
        let network = match network {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        Cookie(Secret::new(mark(self.secret.expose(), &network.octets())))
    }
}

/// What shows that its bearer is where it says. Never stored, and never sent in clear.
#[derive(Debug)]
pub(crate) struct Cookie(Secret<COOKIE_BYTES>);

impl Cookie {
    /// What a REQUEST carries: made from the cookie and the whole message, so it serves no other message.
    pub(crate) fn proof(&self, covered: &[u8]) -> Mark {
        mark(self.0.expose(), covered)
    }

    /// Opens what a responder answered the REQUEST with this `mac1` with; none when it is not for that REQUEST or was changed.
    pub(crate) fn open(answer: &HandshakeCookie, mac1_key: &Secret<32>, mac1: &Mark) -> Option<Self> {
        let payload = Payload { msg: &answer.sealed, aad: mac1 };
        let opened = Zeroizing::new(cipher(mac1_key).decrypt(&XNonce::from(answer.nonce), payload).ok()?);
        Some(Self(Secret::new(opened.as_slice().try_into().ok()?)))
    }
}

fn seal(cookie: &Cookie, mac1_key: &Secret<32>, mac1: &Mark, nonce: [u8; COOKIE_NONCE_BYTES]) -> HandshakeCookie {
    let payload = Payload { msg: cookie.0.expose(), aad: mac1 };
    let sealed =
        cipher(mac1_key).encrypt(&XNonce::from(nonce), payload).expect("16 bytes are within the cipher's limit");
    HandshakeCookie { nonce, sealed: sealed.try_into().expect("a cookie and a tag") }
}

fn cipher(mac1_key: &Secret<32>) -> XChaCha20Poly1305 {
    let mut key = Zeroizing::new([0; 32]);
    let prk = Hkdf::<Sha256>::from_prk(mac1_key.expose()).expect("a key of 32 bytes is long enough");
    prk.expand(derive::COOKIE, &mut *key).expect("32 bytes are within HKDF's bound");
    XChaCha20Poly1305::new(&Key::from(*key))
}

/// The initiator's cookies: one of each peer and address, for as long as it is taken for certain.
#[derive(Debug, Default)]
pub(crate) struct CookieJar(HashMap<(NodeId, SocketAddr), (Cookie, Instant)>);

impl CookieJar {
    /// What to show `peer` at `address` with a REQUEST, if it has asked lately.
    pub(crate) fn proof(&self, peer: NodeId, address: SocketAddr, covered: &[u8], now: Instant) -> Option<Mark> {
        let (cookie, since) = self.0.get(&(peer, address))?;
        is_live(*since, now).then(|| cookie.proof(covered))
    }

    /// Drops those that are not taken for certain any more.
    pub(crate) fn sweep(&mut self, now: Instant) {
        self.0.retain(|_, (_, since)| is_live(*since, now));
    }

    /// Keeps what `peer` at `address` gave; old ones make room, and when there are none, all others.
    pub(crate) fn keep(&mut self, peer: NodeId, address: SocketAddr, cookie: Cookie, now: Instant) {
        if self.0.len() >= KEPT {
            self.sweep(now);
        }
        if self.0.len() >= KEPT {
            self.0.clear();
        }
        self.0.insert((peer, address), (cookie, now));
    }
}

fn is_live(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) < COOKIE_LIFE
}

#[cfg(test)]
mod tests;
