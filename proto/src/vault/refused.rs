//! Why the vault refuses: what crosses the frame, without a word of what was asked. The stable codes are in [`crate::refusal`].

use serde::{Deserialize, Serialize};

use crate::error::WireError;
use crate::method::description::Weakness;

/// Why the vault refused. Towards the network all of these look the same; this goes to the local log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The bytes are no request.
    #[error("the frame is malformed")]
    Malformed,
    /// This role may not ask this.
    #[error("this caller may not ask for this operation")]
    NotAllowed,
    /// Too many of these for now.
    #[error("quota used up; try again later")]
    Quota,
    /// A fixed table is full (links, half-open handshakes, memory).
    #[error("capacity reached: {0}")]
    Capacity(Capacity),
    /// The peer's statement was refused: card, offer, certificate.
    #[error("peer statement refused: {0}")]
    PeerStatement(StatementFault),
    /// The offer is for another node.
    #[error("the offer is for somebody else")]
    OfferForOther,
    /// The sender named by the router is not the offer's issuer.
    #[error("the offer's issuer is not its sender")]
    OfferSender,
    /// The offer names a prekey that this node does not hold (any more).
    #[error("the offer is sealed to a prekey that this node does not hold")]
    UnknownPrekey,
    /// The offer does not open: another key, another directory, or changed bytes.
    #[error("the offer does not open")]
    OfferSealed,
    /// Seen before, or older than the window.
    #[error("replayed or outdated")]
    Replay,
    /// No method is allowed on both sides.
    #[error("no common method; allow one of the peer's in `methods`")]
    NoCommonMethod,
    /// A sealed row does not open: changed, rolled back, of another node or epoch.
    #[error("the link row does not open (changed, rolled back or of another node)")]
    RowSealed,
    /// The link is unknown or revoked.
    #[error("the link is unknown or revoked")]
    LinkGone,
    /// The link is past its life.
    #[error("the link has expired; request a new one")]
    LinkExpired,
    /// No such half-open handshake, or it took over 10 s.
    #[error("no such half-open handshake")]
    HandshakeGone,
    /// The handshake message does not authenticate, or its peer is another.
    #[error("the handshake failed")]
    HandshakeFailed,
    /// The state could not be made durable: no key is used any more.
    #[error("the key process cannot write its state; it is locked until restarted")]
    StateLost,
    /// Both audit segments are full: no key is used until one is filed away.
    #[error(
        "the audit trail is full and its closed segment is not filed yet; free space on its disk (`openred status`)"
    )]
    AuditFull,
    /// A defect of ours, named so that it is reported.
    #[error("internal defect in the key process")]
    Bug,
    /// The offer's method is not among those that the operator allows.
    #[error("the offer's method is not allowed here (downgrade)")]
    Downgrade,
    /// Direct contact with a peer with which there is a live link: that one proves more.
    #[error(
        "there is a live link with this peer: direct contact is refused (downgrade); `openred link revoke` ends it"
    )]
    DirectDowngrade,
    /// A module's description of a method is below the floor.
    #[error("the method's description is refused: {0}")]
    WeakMethod(Weakness),
    /// It is no description of this version.
    #[error("the method's description does not decode (longer than 256 bytes, not canonical, or of another version)")]
    MethodMalformed,
    /// Another module has registered the very same.
    #[error("another module has registered this method")]
    MethodTaken,
    /// Nobody has.
    #[error("no such registered method")]
    MethodGone,
}

/// Which fixed table is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Capacity {
    /// Links of this vault.
    #[error("4,096 links")]
    Links,
    /// Half-open handshakes in all or of one link.
    #[error("half-open handshakes")]
    HalfOpen,
    /// The arena.
    #[error("memory of the key process")]
    Memory,
    /// Prekeys that cards out there may still name.
    #[error("eight prekeys; one is dropped fourteen days after it was replaced")]
    Prekeys,
    /// Registered methods of this vault.
    #[error("eight methods of modules; one that is retired makes room when its last link has ended")]
    Methods,
    /// Registered methods of one module.
    #[error("four methods of one module")]
    MethodsOfModule,
}

/// A [`WireError`] without its static names, so that it can cross the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum StatementFault {
    /// Incomplete, malformed, too long or of an unknown version.
    #[error("malformed")]
    Malformed,
    /// The signature does not verify.
    #[error("bad signature")]
    BadSignature,
    /// Signed by another node than it speaks for.
    #[error("signed by another node")]
    WrongSigner,
    /// Its time window is over.
    #[error("expired")]
    Expired,
    /// Its time window has not begun.
    #[error("not valid yet; a clock is wrong: compare this machine's with the true time")]
    NotYetValid,
}

impl From<WireError> for StatementFault {
    fn from(error: WireError) -> Self {
        match error {
            WireError::BadSignature { .. } | WireError::BadNodeId => Self::BadSignature,
            WireError::WrongSigner { .. } => Self::WrongSigner,
            WireError::OutOfTime { early: false, .. } => Self::Expired,
            WireError::OutOfTime { early: true, .. } => Self::NotYetValid,
            _ => Self::Malformed,
        }
    }
}

impl From<WireError> for Refusal {
    fn from(error: WireError) -> Self {
        Self::PeerStatement(error.into())
    }
}
