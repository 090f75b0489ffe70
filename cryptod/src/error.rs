//! The one error type of the key process's library: who is to blame, never what the bytes were.
//!
//! `Peer…`: bytes that came from outside. `Local…`: this machine's files, tables and times. `Misuse…`: the caller on the
//! descriptor. `Bug`: ours. What crosses the frame is [`Refusal`], made by the one `From` at the end of this file.

use openred_proto::error::WireError;
use openred_proto::vault::{Capacity, Refusal, StatementFault};

use crate::registered::MethodFault;

/// Why an operation of the key process failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A card, offer or certificate does not decode or verify.
    #[error("peer statement refused: {0}")]
    PeerStatement(#[from] WireError),
    /// An offer for another node.
    #[error("the offer is for somebody else")]
    PeerOfferForOther,
    /// The router named another sender than the offer's issuer.
    #[error("the offer's issuer is not its sender")]
    PeerOfferSender,
    /// An offer sealed to a prekey that is not held (any more).
    #[error("the offer is sealed to a prekey that this node does not hold")]
    PeerUnknownPrekey,
    /// An offer that does not open under the prekey it names.
    #[error("the offer does not open")]
    PeerOfferSealed,
    /// An offer with a method that the operator does not allow.
    #[error("the offer's method is not allowed here (downgrade)")]
    PeerDowngrade,
    /// Direct contact with a peer with which a live link is held.
    #[error("there is a live link with this peer: direct contact is refused (downgrade)")]
    PeerDirectDowngrade,
    /// Seen before, or older than what is remembered.
    #[error("replayed or outdated")]
    PeerReplay,
    /// A handshake message that does not authenticate, or whose peer is another.
    #[error("the handshake failed")]
    PeerHandshake,
    /// A key agreement or derivation that gave nothing but zeros, or a point of low order.
    #[error("a key agreement gave an all-zero or low-order result")]
    AllZero,
    /// No method is allowed on both sides.
    #[error("no common method")]
    LocalNoCommonMethod,
    /// A method of a module.
    #[error("a module's method: {0}")]
    Method(#[from] MethodFault),
    /// A fixed table is full.
    #[error("capacity reached: {0}")]
    LocalFull(Capacity),
    /// A sealed row does not open.
    #[error("the link row does not open")]
    LocalRowSealed,
    /// The link is unknown or revoked.
    #[error("the link is unknown or revoked")]
    LocalLinkGone,
    /// The link is past its life.
    #[error("the link has expired")]
    LocalLinkExpired,
    /// The state file cannot be read.
    #[error("the state file cannot be read")]
    LocalStateUnreadable,
    /// No slot of the state file opens under this keystore.
    #[error("the state file does not belong to this keystore, or both of its header slots are damaged")]
    LocalStateForeign,
    /// The state file's records are not those that its header speaks of.
    #[error("the state file was changed: a record is older or newer than its header says")]
    LocalStateRolledBack,
    /// The audit trail does not begin, or go on, where this vault left it.
    #[error(
        "the audit trail was changed ({0}): no key is used; put the files of `audit/` back as they were, or, if they are lost, begin anew with `openred audit restart`, which the trail will say"
    )]
    LocalAuditChanged(&'static str),
    /// The audit segments cannot be read.
    #[error("the audit segments cannot be read")]
    LocalAuditUnreadable,
    /// The clock is before the last record.
    #[error(
        "the clock is {0} s before the last record of the audit trail: no key is used; set the clock right and start again, or, if it is right now, begin the trail anew with `openred audit restart`"
    )]
    LocalAuditClock(u64),
    /// Both segments are full.
    #[error("the audit trail is full and its closed segment is not filed yet")]
    LocalAuditFull,
    /// This role may not ask this, or the arguments break a rule that the caller knows.
    #[error("this caller may not ask for this")]
    MisuseNotAllowed,
    /// The caller's quota for this class of operation is used up.
    #[error("quota used up")]
    MisuseQuota,
    /// No such half-open handshake.
    #[error("no such half-open handshake")]
    MisuseHandshakeGone,
    /// A defect of ours.
    #[error("internal defect: {0}")]
    Bug(&'static str),
}

/// Result of the key process's operations.
pub type Result<T> = std::result::Result<T, Error>;

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::PeerStatement(fault) => fault.into(),
            Error::PeerOfferForOther => Refusal::OfferForOther,
            Error::PeerOfferSender => Refusal::OfferSender,
            Error::PeerUnknownPrekey => Refusal::UnknownPrekey,
            Error::PeerOfferSealed => Refusal::OfferSealed,
            Error::PeerDowngrade => Refusal::Downgrade,
            Error::PeerDirectDowngrade => Refusal::DirectDowngrade,
            Error::PeerReplay => Refusal::Replay,
            Error::PeerHandshake => Refusal::HandshakeFailed,
            Error::AllZero => Refusal::PeerStatement(StatementFault::Malformed),
            Error::LocalNoCommonMethod => Refusal::NoCommonMethod,
            Error::Method(MethodFault::Malformed) => Refusal::MethodMalformed,
            Error::Method(MethodFault::Weak(weakness)) => Refusal::WeakMethod(weakness),
            Error::Method(MethodFault::Taken) => Refusal::MethodTaken,
            Error::Method(MethodFault::Gone) => Refusal::MethodGone,
            Error::LocalFull(capacity) => Refusal::Capacity(capacity),
            Error::LocalRowSealed => Refusal::RowSealed,
            Error::LocalLinkGone => Refusal::LinkGone,
            Error::LocalLinkExpired => Refusal::LinkExpired,
            Error::LocalStateUnreadable
            | Error::LocalStateForeign
            | Error::LocalStateRolledBack
            | Error::LocalAuditChanged(_)
            | Error::LocalAuditUnreadable
            | Error::LocalAuditClock(_) => Refusal::StateLost,
            Error::LocalAuditFull => Refusal::AuditFull,
            Error::MisuseNotAllowed => Refusal::NotAllowed,
            Error::MisuseQuota => Refusal::Quota,
            Error::MisuseHandshakeGone => Refusal::HandshakeGone,
            Error::Bug(_) => Refusal::Bug,
        }
    }
}
