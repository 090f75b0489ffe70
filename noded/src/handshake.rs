//! The handshake as `noded` sees it (PROTOCOL 5): which REQUEST belongs to which link, which bytes are worth asking the key
//! process about, and what was answered before. No key agreement happens here; that is the key process's.
//!
//! Sans-IO: bytes and time come as arguments, what is to be asked or sent goes out as values. The drivers that ask the key
//! process and post over HTTP are `p2p::open` (initiator) and `p2p::answer` (responder).

pub(crate) mod attempts;
pub(crate) mod cookie;
pub(crate) mod direct;
pub(crate) mod half_open;
pub(crate) mod request;
pub(crate) mod responder;
pub(crate) mod tags;

#[cfg(test)]
pub(crate) mod tests;
#[cfg(test)]
mod vectors;

use openred_proto::id::NodeId;

/// Of two nodes that open a session to each other at the same time, the one with the lower id keeps the initiator's role: it
/// refuses the other's REQUEST while its own is out (PROTOCOL 5).
pub(crate) fn keeps_initiators_role(me: &NodeId, peer: &NodeId, is_opening: bool) -> bool {
    is_opening && me < peer
}

/// Why a handshake message was refused. On the wire every refusal is the same; this goes to the local log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HandshakeRefusal {
    /// The tag is that of no live link and window.
    #[error("no link expects this tag")]
    UnknownTag,
    /// The sender does not hold the link.
    #[error("mac1 is wrong")]
    WrongMac,
    /// Seen before, and not (or no longer) to be answered.
    #[error("a repeated REQUEST")]
    Repeated,
    /// The link, or all links together, have too many handshakes half-open.
    #[error("too many half-open handshakes")]
    TooManyHalfOpen,
    /// FINALIZE names no half-open handshake, a finished one with other bytes, or came late.
    #[error("no such half-open handshake")]
    NotHalfOpen,
    /// The link was revoked, replaced or ran out while the handshake was under way.
    #[error("the link ended during the handshake")]
    LinkEnded,
    /// Direct contact, and `links.direct` is off.
    #[error("direct contact is off here (`links.direct`)")]
    DirectOff,
    /// Direct contact in a suite that the operator does not allow.
    #[error("the suite of a direct contact is not allowed here")]
    MethodNotAllowed,
    /// Direct contact over a carrier without addresses: nothing could be asked of its sender before the key process is.
    #[error("direct contact from no address")]
    NoAddress,
    /// Direct contact of a peer with which there is a live link.
    #[error("direct contact of a peer with which there is a live link (downgrade)")]
    DirectDowngrade,
    /// Direct contact of a peer to whom the operator has said no.
    #[error("direct contact of a peer that is denied (`openred peers deny`)")]
    DirectDenied,
    /// This node opens a session to the same peer right now and has the lower id.
    #[error("simultaneous open: this node keeps the initiator's role")]
    SimultaneousOpen,
    /// As many sessions as this node holds are in use.
    #[error("too many sessions are in use")]
    PoolFull,
}
