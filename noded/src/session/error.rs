//! Why the session layer refuses. Towards the network each of them looks the same; this goes to the local log.

use openred_proto::error::WireError;

/// A refusal of the session layer, split by who is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// A chunk does not authenticate: changed, reordered, reflected, or of another stream.
    #[error("a chunk does not authenticate")]
    PeerForged,
    /// The stream ended before its last chunk.
    #[error("the stream was cut off before its last chunk")]
    PeerTruncated,
    /// This number was taken before, or is older than the window.
    #[error("the request number was used before or is too old")]
    PeerReplayed,
    /// What a chunk holds is not what the protocol says.
    #[error("{0}")]
    PeerMalformed(#[from] WireError),
    /// The session is past its life, its requests or its bytes.
    #[error("the session has reached its limit; a new handshake is due")]
    LimitReached,
    /// The oldest unanswered request is 1,024 numbers behind.
    #[error("too many requests are open behind the oldest unanswered one")]
    SpanFull,
    /// The head or chunk that this node wants to send breaks a limit.
    #[error("a head or chunk is larger than the protocol allows")]
    MisuseTooLong,
    /// Sealing failed: a defect of ours.
    #[error("internal defect: a chunk could not be sealed")]
    Bug,
}
