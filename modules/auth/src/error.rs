//! What can be wrong with a call to this module, and how its caller sees it.

use openred_module::{HostError, ModuleError, PeerError, Status};

use crate::password::{LONGEST, SHORTEST};

/// Split by who is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthError {
    /// Peer: no signature, or none over this challenge by this peer.
    #[error("the peer's answer proves nothing")]
    PeerProof,
    /// Peer: it refused.
    #[error("the peer refused with status {status}")]
    PeerRefused {
        /// Its status.
        status: u16,
    },
    /// Peer: it asks more often than this node signs.
    #[error("challenges of one peer are answered once a second")]
    PeerTooOften,
    /// Carrier: no answer.
    #[error("{0}")]
    Peer(#[from] PeerError),
    /// Misuse.
    #[error("not a node id; write did:key:z6Mk…")]
    BadPeer,
    /// Misuse.
    #[error("a challenge is 32 bytes")]
    BadChallenge,
    /// Misuse.
    #[error("a name is 1 to 32 of a-z, 0-9, '-', '_', '.'")]
    BadName,
    /// Misuse.
    #[error("a password has {SHORTEST} characters or more, at most {LONGEST} bytes, and no control characters")]
    WeakPassword,
    /// Misuse.
    #[error("there is a user of that name")]
    UserExists,
    /// Misuse.
    #[error("there are 32 users; remove one")]
    TooManyUsers,
    /// Misuse.
    #[error("no such user; `openred auth user list` names those there are")]
    NoUser,
    /// Misuse.
    #[error("no such session; `openred auth sessions` lists those that live")]
    NoSession,
    /// Local.
    #[error("{0}")]
    Host(#[from] HostError),
}

impl From<AuthError> for ModuleError {
    fn from(error: AuthError) -> Self {
        let (status, code) = match error {
            AuthError::Host(host) => return host.into(),
            AuthError::Peer(peer) => return peer.into(),
            AuthError::PeerProof => (Status::BadGateway, "not-proved"),
            AuthError::PeerRefused { .. } => (Status::BadGateway, "peer-refused"),
            AuthError::PeerTooOften => (Status::TooMany, "too-often"),
            AuthError::BadPeer => (Status::BadRequest, "bad-peer"),
            AuthError::BadChallenge => (Status::BadRequest, "bad-challenge"),
            AuthError::BadName => (Status::BadRequest, "bad-name"),
            AuthError::WeakPassword => (Status::BadRequest, "weak-password"),
            AuthError::UserExists => (Status::Conflict, "user-exists"),
            AuthError::TooManyUsers => (Status::Conflict, "too-many-users"),
            AuthError::NoUser => (Status::NotFound, "no-such-user"),
            AuthError::NoSession => (Status::NotFound, "no-such-session"),
        };
        Self::new(status, code, error.to_string())
    }
}
