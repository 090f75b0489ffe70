//! The two values in clear that let a responder look at a REQUEST before any key agreement: tag and mac1 (PROTOCOL 5).

use hmac::{Hmac, KeyInit as _, Mac as _};
use openred_proto::checked::handshake::HandshakeRequest;
use openred_proto::concat::concat;
use openred_proto::id::NodeId;
use openred_proto::vault::RequestKeys;
use sha2::Sha256;
use subtle::ConstantTimeEq as _;

/// Length of tag and mac1.
pub(crate) const MARK_BYTES: usize = 16;
/// A tag or a mac1.
pub(crate) type Mark = [u8; MARK_BYTES];

/// The tag of REQUEST number `counter` from `initiator` to `responder`: no identifier that is stable across sessions.
pub(crate) fn tag(keys: &RequestKeys, initiator: &NodeId, responder: &NodeId, counter: u64) -> Mark {
    // The keys differ by direction already; the direction inside keeps it so should a derivation ever not.
    let direction = [u8::from(initiator > responder)];
    mark(keys.tag.expose(), &concat(&[&direction, &counter.to_be_bytes()]))
}

/// Shows that the sender holds the link.
pub(crate) fn mac1(keys: &RequestKeys, tag: &Mark, noise: &[u8]) -> Mark {
    mark(keys.mac1.expose(), &concat(&[tag, noise]))
}

/// The REQUEST with `noise` as message 1.
pub(crate) fn build(
    keys: &RequestKeys,
    initiator: &NodeId,
    responder: &NodeId,
    counter: u64,
    noise: &[u8],
) -> HandshakeRequest {
    let tag = tag(keys, initiator, responder, counter);
    HandshakeRequest { tag, mac1: mac1(keys, &tag, noise), cookie: None, noise: noise.to_vec() }
}

/// Checks mac1 in constant time.
pub(crate) fn verify_mac1(keys: &RequestKeys, request: &HandshakeRequest) -> bool {
    mac1(keys, &request.tag, &request.noise).ct_eq(&request.mac1).into()
}

/// The first half of `message`'s HMAC-SHA-256.
pub(super) fn mark(key: &[u8], message: &[u8]) -> Mark {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(message);
    let whole = mac.finalize().into_bytes();
    *whole.first_chunk().expect("SHA-256 has 32 bytes")
}
