//! Opening an offer (PROTOCOL 4, "Accept"): every check but those that need memory, in the order of the protocol.
//!
//! In: the offer's bytes, the sender that the router named, this node's prekeys, and of a renewal the link that it renews. Out: what the offer says and the base.
//! Nothing is marked here: whether the offer was seen before, and what to do with it, is the vault's.

use std::time::Duration;

use openred_proto::checked::check_window;
use openred_proto::checked::offer::{Offer, RoutingHeader, SealedHeader};
use openred_proto::error::WireError;
use openred_proto::id::{LinkId, NodeId, UnixMillis};
use openred_proto::label::{self, Label, derive};
use openred_proto::limits::{LINK_LIFE_MAX, LINK_LIFE_MIN};
use openred_proto::method::Place;
use openred_proto::secret::Secret;
use openred_proto::vault::ReceivedOffer;

use crate::error::{Error, Result};
use crate::identity::LinkStatement;
use crate::link::derive::{link_base, renewal_psk};
use crate::link::issue::info;
use crate::link::transform::Transform;
use crate::prekey::{Prekeys, Psk};
use crate::registered::Methods;

const WHAT: &str = "link offer";

/// An offer that opened and verified.
pub struct Opened {
    /// Who offers.
    pub issuer: NodeId,
    /// What both key processes agree on.
    pub header: SealedHeader,
    /// Where its method stands here, if a module registered it.
    pub registered: Option<Place>,
    /// What both sides derive everything from; dropped once token and keys are made.
    pub base: Secret<32>,
    /// SHA-256 of the offer.
    pub token_id: [u8; 32],
}

/// The live link that an offer renews.
pub struct Renewed {
    /// The link.
    pub link: LinkId,
    /// The other party.
    pub peer: NodeId,
    /// Its base.
    pub base: Secret<32>,
    /// How long it was made to live: the life of whatever renews it.
    pub life: Duration,
}

impl Renewed {
    /// The key that opens an offer of this link's peer to `node`, if `routing` says that it renews this link.
    fn psk(&self, node: &NodeId, routing: &RoutingHeader) -> Result<Psk> {
        if routing.psk != Some(self.link) {
            return Err(WireError::Malformed { what: WHAT, why: "it does not renew that link" }.into());
        }
        if routing.issuer != self.peer {
            return Err(Error::PeerOfferSender);
        }
        Ok(Psk { link: self.link, secret: renewal_psk(&self.base, &self.link, &self.peer, node)? })
    }
}

/// Opens an offer to `node` and verifies all of it. One that renews a link opens under that link alone, and one that renews none
/// under none.
///
/// # Errors
/// Named for the local caller: for somebody else, unknown prekey, does not open, malformed, bad signature, another sender,
/// expired, method not allowed.
pub fn open(
    node: &NodeId,
    (prekeys, methods): (&Prekeys, &Methods),
    received: &ReceivedOffer,
    renewed: Option<&Renewed>,
    now: UnixMillis,
) -> Result<Opened> {
    let offer = Offer::decode(&received.offer)?;
    let routing = &offer.routing;
    if routing.recipient != *node {
        return Err(Error::PeerOfferForOther);
    }
    let psk = match renewed {
        Some(renewed) => Some(renewed.psk(node, routing)?),
        None if routing.psk.is_some() => {
            return Err(WireError::Malformed { what: WHAT, why: "it renews a link" }.into());
        }
        None => None,
    };
    let prekey_hash = prekeys.hash(&routing.prekey)?;
    let info = info(&routing.issuer, node, &routing.prekey, &prekey_hash, &received.directory);
    let mut receiver = prekeys.open(&routing.prekey, &offer.enc, &info, psk.as_ref())?;
    let body = receiver.open(&offer.routing_bytes, &offer.sealed)?;
    let (header_bytes, signature) = SealedHeader::split_body(&body)?;
    // A, B and the prekey have no second copy inside: the signature covers the routing header's exact bytes.
    let statement = LinkStatement {
        routing: &offer.routing_bytes,
        header: header_bytes,
        enc: &offer.enc,
        prekey_hash: &prekey_hash,
    };
    label::verify(Label::Link, &statement.payload(), &routing.issuer, &signature, WHAT)?;
    if routing.issuer != received.sender {
        return Err(Error::PeerOfferSender);
    }
    let header = SealedHeader::decode(header_bytes)?;
    check_header(&header, routing.expiry, now)?;
    // The operator gave the life to the link: its peer does not change it by renewing.
    if renewed.is_some_and(|renewed| header.not_after != header.not_before.plus(renewed.life)) {
        return Err(WireError::Malformed { what: WHAT, why: "its life is not that of the link that it renews" }.into());
    }
    // One that no module of this node has registered, or whose module is gone, is not allowed here either.
    let registered = match &header.registered {
        Some(id) => Some(methods.live(id).ok_or(Error::PeerDowngrade)?),
        None => None,
    };
    if registered.is_some_and(|method| method.vetted.suite != header.method) {
        return Err(WireError::Malformed { what: WHAT, why: "its suite is not that of its method" }.into());
    }
    if !received.allowed.allows(header.method, registered.map(|method| method.place)) {
        return Err(Error::PeerDowngrade);
    }
    let base = link_base(&receiver.export(derive::LINK_BASE)?, header_bytes)?;
    let transform = match registered {
        Some(method) => Transform::registered(&method.vetted, &header.link_id, &routing.issuer, node)?,
        None => Transform::new(header.method, &header.link_id, &routing.issuer, node)?,
    };
    if !transform.tokens_differ(&base) {
        return Err(WireError::Malformed { what: WHAT, why: "it gives both sides the same token" }.into());
    }
    let registered = registered.map(|method| method.place);
    Ok(Opened { issuer: routing.issuer, header, registered, base, token_id: Offer::token_id(&received.offer) })
}

fn check_header(header: &SealedHeader, expiry: UnixMillis, now: UnixMillis) -> Result<()> {
    let malformed = |why| Error::from(WireError::Malformed { what: WHAT, why });
    if header.not_after != expiry {
        return Err(malformed("its two ends of life differ"));
    }
    if header.not_after <= header.not_before || header.not_after > header.not_before.plus(LINK_LIFE_MAX) {
        return Err(malformed("its life is empty or longer than a link's"));
    }
    if header.not_after < header.not_before.plus(LINK_LIFE_MIN) {
        return Err(malformed("its life is shorter than a link's"));
    }
    Ok(check_window(WHAT, now, header.not_before, header.not_after)?)
}
