//! Why a request to a peer came to nothing, split by who is to blame.

use openred_module::{BodyError, PeerError};
use openred_proto::error::WireError;

use super::NotAdopted;
use crate::keys::KeysError;
use crate::session::SessionError;

/// Why a peer gave no answer. Cheap to copy: several callers wait for one handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// There is no live link with that peer.
    #[error("not linked with that peer (see `openred link request`)")]
    NotLinked,
    /// No usable endpoint of the peer is known.
    #[error("no endpoint of that peer is known; its card names none that this node can use")]
    NoEndpoint,
    /// None of its endpoints answers.
    #[error("the peer is offline: {0}")]
    PeerOffline(std::io::ErrorKind),
    /// It refused the handshake; it does not say why (its own log does).
    #[error("the peer refused the handshake; its own log says why")]
    PeerRefusedHandshake,
    /// The node there is not the one that was to be reached.
    #[error("the node there is not the one that is expected; nothing was said to it")]
    PeerUnexpected,
    /// This node was reached by itself.
    #[error("a node cannot contact itself")]
    WithItself,
    /// No method is allowed on both sides.
    #[error("no common method; allow one of the peer's in `links.methods`")]
    NoCommonMethod,
    /// There is a live link with the peer.
    #[error("there is a live link with this peer, and direct contact would prove less; see `openred link show`")]
    Linked,
    /// It refused the request in a session, and again in a new one; or whoever carries the bytes says so, in whose power a refusal is.
    #[error("the peer refused the session, and its own log says why; the request may have been carried out")]
    PeerRefusedSession,
    /// It demands that sessions are signed.
    #[error("the peer demands signed sessions, lasting proof of contact; set `links.audited = \"allow\"` if you agree")]
    AuditedNotAllowed,
    /// It signed something else, or its signature cannot be kept.
    #[error("the session was not signed by both sides; the log says why")]
    NotSigned,
    /// What it sent is not what the protocol says.
    #[error("the peer broke the protocol: {0}")]
    PeerBrokeProtocol(#[from] WireError),
    /// What it sent does not open.
    #[error("the peer's answer does not open: {0}")]
    PeerAnswer(SessionError),
    /// The connection broke after the request left: it may have been carried out.
    #[error("the connection to the peer broke; the request may have been carried out")]
    Interrupted,
    /// No answer before the deadline: it may have been carried out.
    #[error("the peer did not answer in time; the request may have been carried out")]
    TimedOut,
    /// The session in use is at its limit (time, requests or bytes), and the next one could not be opened.
    #[error("the session with that peer has reached its limit and the next one could not be opened; the log says why")]
    SessionLimit,
    /// It does not read what it is sent.
    #[error("the peer stopped reading the request, or reads too slowly; it may have been carried out")]
    Stalled,
    /// Too many requests, sessions or connections to peers are open.
    #[error("too many requests or sessions are open")]
    Busy,
    /// Too many contacts without a link that this node has begun are open.
    #[error(
        "too many direct contacts of this node are open: go on with one (`openred link list`, `openred link accept DID`) or wait ten minutes"
    )]
    ContactsFull,
    /// The key process could not be asked or refused.
    #[error("{0}")]
    Keys(#[from] KeysError),
    /// The body that was to be sent failed at its source.
    #[error("the request's body failed: {0}")]
    RequestBody(BodyError),
    /// The request breaks a limit of the protocol.
    #[error("the request's head is larger than the protocol allows")]
    MisuseTooLarge,
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping,
    /// A defect of ours.
    #[error("internal defect in the network layer")]
    Bug,
}

impl From<SessionError> for NetworkError {
    fn from(error: SessionError) -> Self {
        match error {
            SessionError::SpanFull => Self::Busy,
            SessionError::LimitReached => Self::SessionLimit,
            SessionError::MisuseTooLong => Self::MisuseTooLarge,
            SessionError::Bug => Self::Bug,
            peer => Self::PeerAnswer(peer),
        }
    }
}

impl From<NotAdopted> for NetworkError {
    fn from(why: NotAdopted) -> Self {
        match why {
            NotAdopted::LinkEnded => Self::NotLinked,
            NotAdopted::PoolFull => Self::Busy,
        }
    }
}

impl From<NetworkError> for PeerError {
    /// As a module sees it.
    fn from(error: NetworkError) -> Self {
        match error {
            NetworkError::NotLinked => Self::NotLinked,
            NetworkError::TimedOut | NetworkError::Stalled => Self::TimedOut,
            NetworkError::Busy => Self::Busy,
            NetworkError::Interrupted
            | NetworkError::PeerRefusedSession
            | NetworkError::PeerAnswer(_)
            | NetworkError::RequestBody(_) => Self::Interrupted,
            _ => Self::Unreachable,
        }
    }
}
