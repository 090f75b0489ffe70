//! Issuing a link (PROTOCOL 4, "Issue"): from a peer's verified card to a sealed offer and this node's own token.
//!
//! In: the peer's signed card, what the operator allows, time, randomness and a sequence that the state has set aside. Out:
//! the offer for the directory, the base (for the caller to turn into a row and keys, then to drop) and the link's record.
//! Nothing is remembered here.

use std::time::Duration;

use openred_proto::checked::card::Card;
use openred_proto::checked::check_window;
use openred_proto::checked::offer::{Offer, RoutingHeader, SealedHeader};
use openred_proto::concat::concat;
use openred_proto::error::WireError;
use openred_proto::id::{LinkId, NodeId, PrekeyId, UnixMillis};
use openred_proto::label::derive;
use openred_proto::limits::{LINK_LIFE_MAX, LINK_LIFE_MIN};
use openred_proto::method::{Method, MethodSet, Place, Schedule};
use openred_proto::secret::Secret;
use rand_core::CryptoRng;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::identity::{Identity, LinkStatement};
use crate::link::derive::link_base;
use crate::link::transform::Transform;
use crate::method::{self, Choice};
use crate::prekey::{Psk, Sender};
use crate::registered::{MethodRecord, Methods};

/// Version byte of `info`.
const INFO_VERSION: u8 = 1;
/// Draws of an offer whose two tokens are equal (a periodic base, chance about 2^-128 each).
const DRAWS: usize = 3;

/// What to issue.
pub struct IssueTerms<'a> {
    /// The peer that the operator named.
    pub peer: NodeId,
    /// Its signed card.
    pub card: &'a [u8],
    /// The directory that will route the offer.
    pub directory: NodeId,
    /// Methods that the operator allows.
    pub allowed: MethodSet,
    /// How to choose among them.
    pub schedule: Schedule,
    /// Life of the link.
    pub life: Duration,
}

/// An issued link.
pub struct Issued {
    /// What both key processes agree on.
    pub header: SealedHeader,
    /// Where its method stands here, if a module registered it.
    pub registered: Option<Place>,
    /// What both sides derive everything from; dropped once token and keys are made.
    pub base: Secret<32>,
    /// The offer to route.
    pub offer: Vec<u8>,
}

/// Issues a link with the next `sequence`; `seed` is that of the `seeded` schedule. With a psk the offer renews the psk's link.
///
/// # Errors
/// A card that does not verify or is another node's; [`Error::LocalNoCommonMethod`]; [`Error::MisuseNotAllowed`] for a link
/// with oneself or a life under the shortest or over the longest.
pub fn issue(
    identity: &Identity,
    (seed, methods): (&Secret<32>, &Methods),
    terms: &IssueTerms<'_>,
    psk: Option<&Psk>,
    sequence: u64,
    now: UnixMillis,
    random: &mut impl CryptoRng,
) -> Result<Issued> {
    if terms.peer == identity.node_id() || !(LINK_LIFE_MIN..=LINK_LIFE_MAX).contains(&terms.life) {
        return Err(Error::MisuseNotAllowed);
    }
    let card = Card::verify(terms.card, now)?;
    if card.node_id != terms.peer {
        return Err(WireError::WrongSigner { what: "card" }.into());
    }
    check_window("card prekey", now, card.prekey.not_before, card.prekey.not_after)?;
    let chosen = choose(terms, seed, methods, &card, now)?;
    for _ in 0..DRAWS {
        let mut link = [0; 16];
        random.fill_bytes(&mut link);
        let header = SealedHeader {
            link_id: LinkId::from_bytes(link),
            method: chosen.suite,
            epoch: chosen.epoch,
            not_before: now,
            not_after: now.plus(terms.life),
            sequence,
            registered: chosen.registered.map(|method| method.vetted.id),
        };
        let issued = seal(identity, &card, &terms.directory, psk, header, random)?;
        let issued = Issued { registered: chosen.registered.map(|method| method.place), ..issued };
        let transform = match chosen.registered {
            Some(method) => {
                Transform::registered(&method.vetted, &issued.header.link_id, &identity.node_id(), &terms.peer)?
            }
            None => Transform::new(chosen.suite, &issued.header.link_id, &identity.node_id(), &terms.peer)?,
        };
        if transform.tokens_differ(&issued.base) {
            return Ok(issued);
        }
    }
    Err(Error::Bug("every draw of an offer gave equal tokens"))
}

/// The method of a new link.
struct Chosen<'a> {
    suite: Method,
    registered: Option<&'a MethodRecord>,
    epoch: u64,
}

/// Picks among what this node allows and the peer's card names: the four by their bits, registered ones by their ids.
fn choose<'a>(
    terms: &IssueTerms<'_>,
    seed: &Secret<32>,
    methods: &'a Methods,
    card: &Card,
    now: UnixMillis,
) -> Result<Chosen<'a>> {
    let common = terms.allowed.intersection(card.suites.built_in().union(methods.places(&card.methods)));
    match method::pick(terms.schedule, seed, common, now)? {
        (Choice::BuiltIn(suite), epoch) => Ok(Chosen { suite, registered: None, epoch }),
        (Choice::Registered(place), _) => {
            let method = methods.at(place)?;
            // Counted in the method's own epochs.
            let epoch = now.seconds() / method.vetted.epoch.as_secs();
            Ok(Chosen { suite: method.vetted.suite, registered: Some(method), epoch })
        }
    }
}

/// Steps 1 to 4 of PROTOCOL 4.
fn seal(
    identity: &Identity,
    card: &Card,
    directory: &NodeId,
    psk: Option<&Psk>,
    header: SealedHeader,
    random: &mut impl CryptoRng,
) -> Result<Issued> {
    let routing = RoutingHeader {
        issuer: identity.node_id(),
        recipient: card.node_id,
        prekey: card.prekey.id,
        psk: psk.map(|psk| psk.link),
        expiry: header.not_after,
    };
    let routing_bytes = routing.encode();
    let prekey_hash: [u8; 32] = Sha256::digest(&card.prekey.key).into();
    let info = info(&routing.issuer, &routing.recipient, &routing.prekey, &prekey_hash, directory);
    let sender = Sender::setup(&card.prekey.key, &info, psk, random)?;
    let header_bytes = header.encode();
    let statement =
        LinkStatement { routing: &routing_bytes, header: &header_bytes, enc: &sender.enc, prekey_hash: &prekey_hash };
    let body = zeroize::Zeroizing::new(SealedHeader::encode_body(&header_bytes, &identity.sign_link(&statement)));
    let base = link_base(&sender.export(derive::LINK_BASE)?, &header_bytes)?;
    let enc = sender.enc.clone();
    let sealed = sender.seal(&routing_bytes, &body)?;
    Ok(Issued { header, registered: None, base, offer: Offer::encode(&routing_bytes, &enc, &sealed) })
}

/// `info` of the HPKE context (PROTOCOL 4.1).
pub(super) fn info(
    issuer: &NodeId,
    recipient: &NodeId,
    prekey: &PrekeyId,
    prekey_hash: &[u8; 32],
    directory: &NodeId,
) -> Vec<u8> {
    concat(&[
        &[INFO_VERSION],
        issuer.as_bytes(),
        recipient.as_bytes(),
        prekey.as_bytes(),
        prekey_hash,
        directory.as_bytes(),
    ])
}
