//! The three-phase handshake of two nodes, over a link or without one: REQUEST, VERIFY, FINALIZE (PROTOCOL 5).
//!
//! Sans-IO: time and randomness are arguments, messages are bytes, and nothing here knows of sockets, frames or state files.
//! `initiator` and `responder` are the two machines, one struct a state, moved by value; `table` is what the vault talks to and
//! keeps them in, within the bounds of `half_open`; `mode` is what a handshake rests on; `noise`, `resolver` and `kem` are what they are made of. Link keys and this node's credentials come
//! from the vault; what leaves is [`Established`]: one secret a direction and what both sides can compare.
//!
//! Towards the network every refusal looks the same; [`Refusal`] is for the local log and audit trail.

mod certificates;
mod concluded;
mod half_open;
mod initiator;
mod kem;
mod mode;
mod noise;
#[cfg(test)]
mod pair;
mod resolver;
mod responder;
mod table;
#[cfg(test)]
mod vectors;

pub(crate) use mode::{Direct, Linked, Mode};
pub(crate) use table::{Answered, Handshakes, Incoming};

use hkdf::Hkdf;
use openred_proto::checked::handshake::SenderPayload;
use openred_proto::checked::static_certificate::StaticCertificate;
use openred_proto::concat::concat;
use openred_proto::error::WireError;
use openred_proto::id::{LinkId, NodeId};
use openred_proto::label::derive;
use openred_proto::method::Method;
use openred_proto::secret::Secret;
use sha2::Sha256;
use zeroize::Zeroizing;

use noise::{Noise, NoiseRefused, Side};

/// Why a handshake was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// A message that does not authenticate, has no right length, or carries a key that contributes nothing.
    #[error("the message does not authenticate")]
    NotAuthentic,
    /// A payload that authenticates and does not follow its schema, or a certificate that is not valid.
    #[error(transparent)]
    Malformed(#[from] WireError),
    /// The ML-KEM key in REQUEST is not one.
    #[error("the ephemeral ML-KEM key is not valid")]
    BadKemKey,
    /// A REQUEST with this timestamp, or a later one, was accepted before.
    #[error("the REQUEST is older than one that was accepted")]
    Replayed,
    /// Certified, but not the other party of the link, or not whom this node meant to reach.
    #[error("the peer is not the other party of the link, or not the one that was meant")]
    WrongPeer,
    /// The certificate is for another suite than the link's.
    #[error("the certificate is for another suite")]
    WrongSuite,
    /// The certificate's key is not the one that Noise proved.
    #[error("the certificate is for another key")]
    WrongKey,
    /// No such handshake is waiting: never begun, already answered, or over its time.
    #[error("no such handshake is waiting")]
    NotWaiting,
    /// The link, or this node, has as many half-open handshakes as it may.
    #[error("too many half-open handshakes")]
    TooMany,
}

impl From<NoiseRefused> for Refusal {
    fn from(_: NoiseRefused) -> Self {
        Self::NotAuthentic
    }
}

/// What this node says of itself inside a handshake.
pub(crate) struct Credentials<'a> {
    /// X25519 static secret of the link's suite.
    pub(crate) static_secret: &'a Secret<32>,
    /// The identity's certificate for it, as signed.
    pub(crate) certificate: &'a [u8],
    /// Sequence of this node's latest card.
    pub(crate) card_sequence: u64,
}

/// A finished handshake: all that leaves it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Established {
    /// The link and its base, as given in [`Linked`]; none in direct contact.
    pub(crate) link: Option<(LinkId, Secret<32>)>,
    pub(crate) method: Method,
    /// Who the other side proved to be.
    pub(crate) peer: NodeId,
    /// Session secret of what this node sends.
    pub(crate) send: Secret<32>,
    /// Session secret of what this node receives.
    pub(crate) receive: Secret<32>,
    /// Final handshake hash, its first 32 bytes where the suite's hash is longer.
    pub(crate) hash: [u8; 32],
    /// Equal on both sides, for people to compare.
    pub(crate) mutual_link: [u8; 16],
    pub(crate) peer_card_sequence: u64,
    /// Directory head that the peer saw last: 32 bytes, or empty.
    pub(crate) peer_directory_head: Vec<u8>,
}

/// What a machine remembers of what it rests on until the handshake is done.
struct Waiting {
    link: Option<(LinkId, Secret<32>)>,
    method: Method,
    /// Whom the other side must prove to be; none: whoever it is.
    peer: Option<NodeId>,
}

impl Waiting {
    fn new(mode: Mode, side: Side) -> Self {
        let method = mode.method();
        let (peer, link) = mode.into_parts(side);
        Self { link, method, peer }
    }

    /// The peer's certificate, which verified, is that of whom it must be, for this suite, and for the key that Noise proved.
    fn check_peer(&self, noise: &Noise, certificate: &StaticCertificate) -> Result<(), Refusal> {
        if self.peer.is_some_and(|peer| peer != certificate.node_id) {
            return Err(Refusal::WrongPeer);
        }
        if certificate.method != self.method {
            return Err(Refusal::WrongSuite);
        }
        if noise.remote_static() != Some(certificate.key) {
            return Err(Refusal::WrongKey);
        }
        Ok(())
    }

    /// `peer`: as [`Waiting::check_peer`] has found it.
    fn establish(self, side: Side, peer: NodeId, said: SenderPayload, noise: Noise) -> Result<Established, Refusal> {
        let split = noise.split()?;
        let from_initiator = session_secret(&split.from_initiator, b"initiator", &split.hash);
        let from_responder = session_secret(&split.from_responder, b"responder", &split.hash);
        let (send, receive) = match side {
            Side::Initiator => (from_initiator, from_responder),
            Side::Responder => (from_responder, from_initiator),
        };
        let mut hash = [0; 32];
        hash.copy_from_slice(split.hash.get(..32).ok_or(Refusal::NotAuthentic)?);
        Ok(Established {
            link: self.link,
            method: self.method,
            peer,
            send,
            receive,
            hash,
            mutual_link: mutual_link(&split.hash),
            peer_card_sequence: said.card_sequence,
            peer_directory_head: said.directory_head,
        })
    }
}

/// The raw split never leaves: each direction's secret is derived from it, its sender's role and the final hash.
fn session_secret(raw: &Secret<32>, sender: &[u8], hash: &[u8]) -> Secret<32> {
    let mut secret = Zeroizing::new([0; 32]);
    let info = concat(&[derive::SESSION, sender, hash]);
    Hkdf::<Sha256>::new(None, raw.expose()).expand(&info, &mut *secret).expect("32 bytes are within HKDF's bound");
    Secret::new(*secret)
}

fn mutual_link(hash: &[u8]) -> [u8; 16] {
    let mut value = [0; 16];
    Hkdf::<Sha256>::new(None, hash).expand(derive::MUTUAL_LINK, &mut value).expect("16 bytes are within HKDF's bound");
    value
}
