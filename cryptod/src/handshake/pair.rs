//! Two engines and a network of our own: virtual time, loss, delay (so reordering), duplication. No socket, no sleep.
//!
//! The initiator's driver does what `noded` does: one exchange for REQUEST and VERIFY, one for FINALIZE, a new attempt when an
//! answer stays away. What the network delivers and when is drawn from a seed, so that every failure can be run again.
#![allow(clippy::unwrap_used, reason = "tests")]

mod adversary;
mod direct;
mod exchange;
mod flips;
mod hostile;

use std::collections::BTreeMap;
use std::time::Duration;

use ed25519_dalek::{Signer, SigningKey};
use openred_proto::checked::statement;
use openred_proto::checked::static_certificate::StaticCertificate;
use openred_proto::id::{HandshakeId, UnixMillis};
use openred_proto::label::{Label, signed_bytes};
use openred_proto::limits::{STATIC_BACKDATE, STATIC_LIFE};
use rand_chacha::ChaCha20Rng;
use rand_core::{Rng, SeedableRng};
use sha2::Digest;

use super::*;

/// Virtual noon of some day.
pub(super) const NOON: UnixMillis = UnixMillis(1_800_000_000_000);
/// A driver begins anew when an answer stays away this long.
const RETRY: Duration = Duration::from_secs(3);

/// One node: an identity, a static key and certificate per suite, and its half-open handshakes.
pub(super) struct Engine {
    pub(super) identity: SigningKey,
    pub(super) statics: BTreeMap<Method, (Secret<32>, Vec<u8>)>,
    pub(super) handshakes: Handshakes,
    pub(super) random: ChaCha20Rng,
    last_sent: UnixMillis,
    accepted: BTreeMap<LinkId, UnixMillis>,
}

impl Engine {
    /// An engine with a static key for every suite.
    pub(super) fn new(seed: u8) -> Self {
        Self::with(seed, &Method::ALL)
    }

    /// An engine with static keys for `methods` only.
    pub(super) fn with(seed: u8, methods: &[Method]) -> Self {
        let identity = SigningKey::from_bytes(&[seed; 32]);
        let mut engine = Self {
            identity,
            statics: BTreeMap::new(),
            handshakes: Handshakes::new(),
            random: ChaCha20Rng::from_seed([seed; 32]),
            last_sent: UnixMillis(0),
            accepted: BTreeMap::new(),
        };
        for method in methods.iter().copied() {
            let mut secret = [0; 32];
            engine.random.fill_bytes(&mut secret);
            let certificate = engine.certify(method, public(&secret), NOON);
            engine.statics.insert(method, (Secret::new(secret), certificate));
        }
        engine
    }

    pub(super) fn id(&self) -> NodeId {
        NodeId::from_bytes(self.identity.verifying_key().to_bytes())
    }

    /// A certificate of this engine's identity for `key`, made at `made`.
    pub(super) fn certify(&self, method: Method, key: [u8; 32], made: UnixMillis) -> Vec<u8> {
        let (not_before, not_after) = (made.minus(STATIC_BACKDATE), made.plus(STATIC_LIFE));
        let payload = StaticCertificate { node_id: self.id(), method, key, not_before, not_after }.encode();
        let signature = self.identity.sign(&signed_bytes(Label::Static, &payload));
        statement::encode(&payload, &self.id(), &signature.to_bytes())
    }

    /// Forgets what it has done and draws the same randomness again from `random` on: one handshake can be run many times.
    pub(super) fn rewind(&mut self, random: &ChaCha20Rng) {
        self.random = random.clone();
        self.handshakes = Handshakes::new();
        self.last_sent = UnixMillis(0);
        self.accepted.clear();
    }

    pub(super) fn begin(&mut self, now: UnixMillis, link: &Link) -> Result<(HandshakeId, Vec<u8>), Refusal> {
        let timestamp = now.max(UnixMillis(self.last_sent.0 + 1));
        self.last_sent = timestamp;
        let mode = link.seen(self.id(), link.other(self.id()), Side::Initiator);
        let (secret, certificate) = &self.statics[&link.method];
        let own = Credentials { static_secret: secret, certificate, card_sequence: 11 };
        self.handshakes.begin(now, &mut self.random, timestamp, mode, &own)
    }

    pub(super) fn answer(&mut self, now: UnixMillis, link: &Link, message: &[u8]) -> Result<Answered, Refusal> {
        // Without a link nothing is remembered.
        let accepted = self.accepted.get(&link.id).copied().filter(|_| !link.direct).unwrap_or(UnixMillis(0));
        let mode = link.seen(link.other(self.id()), self.id(), Side::Responder);
        let (secret, certificate) = &self.statics[&link.method];
        let own = Credentials { static_secret: secret, certificate, card_sequence: 22 };
        let request = Incoming { message, accepted, directory_head: &[5; 32] };
        let answered = self.handshakes.answer(now, &mut self.random, mode, &own, &request)?;
        self.accepted.insert(link.id, answered.accepted);
        Ok(answered)
    }
}

pub(super) fn public(secret: &[u8; 32]) -> [u8; 32] {
    x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(*secret)).to_bytes()
}

/// A link as both sides hold it, or none: then the initiator knows whom it means, and nothing else is used.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) direct: bool,
    pub(super) id: LinkId,
    pub(super) method: Method,
    pub(super) epoch: u64,
    pub(super) parties: [NodeId; 2],
    pub(super) base: [u8; 32],
}

impl Link {
    pub(super) fn between(one: &Engine, other: &Engine, method: Method, seed: u8) -> Self {
        let id = LinkId::from_bytes([seed; 16]);
        Self { direct: false, id, method, epoch: 494_123, parties: [one.id(), other.id()], base: [seed; 32] }
    }

    /// No link: direct contact of the two.
    pub(super) fn none(one: &Engine, other: &Engine, method: Method) -> Self {
        Self { direct: true, ..Self::between(one, other, method, 0) }
    }

    fn other(&self, own: NodeId) -> NodeId {
        if self.parties[0] == own { self.parties[1] } else { self.parties[0] }
    }

    /// With a directional key as the vault derives one: another for each order of the two ids.
    fn seen(&self, initiator: NodeId, responder: NodeId, side: Side) -> Mode {
        if self.direct {
            let peer = (side == Side::Initiator).then_some(responder);
            return Mode::Direct(Direct { method: self.method, peer });
        }
        let psk = Sha256::digest(concat(&[&self.base, initiator.as_bytes(), responder.as_bytes()]));
        Mode::Linked(Linked {
            link_id: self.id,
            method: self.method,
            registered: None,
            epoch: self.epoch,
            initiator,
            responder,
            psk: Secret::new(psk.into()),
            base: Secret::new(self.base),
        })
    }
}

/// What the network does to packets, in percent and milliseconds.
#[derive(Clone, Copy)]
pub(super) struct Network {
    pub(super) loss: u32,
    pub(super) duplication: u32,
    pub(super) delay: u32,
}

/// The initiator is side 0, the responder side 1. `exchange` is the initiator's own name for the attempt, as an HTTP
/// connection is: it never leaves that side.
#[derive(Clone)]
enum Packet {
    Request { exchange: HandshakeId, noise: Vec<u8> },
    Verify { exchange: HandshakeId, handshake: HandshakeId, noise: Vec<u8> },
    Finalize { handshake: HandshakeId, noise: Vec<u8> },
    Retry,
}

/// Two engines joined by a network.
pub(super) struct Pair {
    pub(super) initiator: Engine,
    pub(super) responder: Engine,
    pub(super) link: Link,
    pub(super) now: UnixMillis,
    pub(super) begun: Vec<Established>,
    pub(super) answered: Vec<Established>,
    pub(super) refusals: Vec<Refusal>,
    pub(super) attempts: usize,
    network: Network,
    dice: ChaCha20Rng,
    queue: BTreeMap<(UnixMillis, u64), Packet>,
    sent: u64,
}

impl Pair {
    pub(super) fn new(method: Method, network: Network, seed: u64) -> Self {
        Self::of(|one, other| Link::between(one, other, method, 3), network, seed)
    }

    /// Two engines without a link.
    pub(super) fn direct(method: Method, network: Network, seed: u64) -> Self {
        Self::of(|one, other| Link::none(one, other, method), network, seed)
    }

    fn of(link: impl Fn(&Engine, &Engine) -> Link, network: Network, seed: u64) -> Self {
        let (initiator, responder) = (Engine::new(1), Engine::new(2));
        let link = link(&initiator, &responder);
        Self {
            initiator,
            responder,
            link,
            now: NOON,
            begun: Vec::new(),
            answered: Vec::new(),
            refusals: Vec::new(),
            attempts: 0,
            network,
            dice: ChaCha20Rng::seed_from_u64(seed),
            queue: BTreeMap::new(),
            sent: 0,
        }
    }

    /// Runs until the responder has opened a session, nothing is under way any more, or `attempts` are used up.
    pub(super) fn run(&mut self, attempts: usize) {
        self.schedule(Duration::ZERO, Packet::Retry);
        while let Some(((at, _), packet)) = self.queue.pop_first() {
            self.now = at;
            if let Err(refusal) = self.deliver(packet, attempts) {
                self.refusals.push(refusal);
            }
        }
    }

    fn deliver(&mut self, packet: Packet, attempts: usize) -> Result<(), Refusal> {
        match packet {
            Packet::Retry if !self.answered.is_empty() || self.attempts >= attempts => Ok(()),
            Packet::Retry => {
                self.attempts += 1;
                self.schedule(RETRY, Packet::Retry);
                let (exchange, noise) = self.initiator.begin(self.now, &self.link)?;
                self.send(Packet::Request { exchange, noise });
                Ok(())
            }
            Packet::Request { exchange, noise } => {
                let Answered { id, message, .. } = self.responder.answer(self.now, &self.link, &noise)?;
                self.send(Packet::Verify { exchange, handshake: id, noise: message });
                Ok(())
            }
            Packet::Verify { exchange, handshake, noise } => {
                let (noise, established) = self.initiator.handshakes.finish(self.now, exchange, &noise, &[])?;
                self.begun.push(established);
                self.send(Packet::Finalize { handshake, noise });
                Ok(())
            }
            Packet::Finalize { handshake, noise } => {
                self.answered.push(self.responder.handshakes.complete(self.now, handshake, &noise)?);
                Ok(())
            }
        }
    }

    fn send(&mut self, packet: Packet) {
        if self.chance(self.network.duplication) {
            self.send_once(packet.clone());
        }
        self.send_once(packet);
    }

    fn send_once(&mut self, packet: Packet) {
        if !self.chance(self.network.loss) {
            let delay = Duration::from_millis(u64::from(self.dice.next_u32() % (self.network.delay + 1)));
            self.schedule(delay, packet);
        }
    }

    fn schedule(&mut self, after: Duration, packet: Packet) {
        self.sent += 1;
        self.queue.insert((self.now.plus(after), self.sent), packet);
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.dice.next_u32() % 100 < percent
    }
}
