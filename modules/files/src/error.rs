//! What can be wrong with a call to this module, and how its caller sees it.

use openred_module::{BodyError, HostError, ModuleError, PeerError, Status};

use crate::link::LinkError;

/// Split by who is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FilesError {
    /// Peer: its description of the file breaks a rule.
    #[error("the peer describes the file wrongly")]
    PeerMeta,
    /// Peer: the hashes of the pieces do not combine to the file's id.
    #[error("the peer's hashes do not belong to this file")]
    PeerPieces,
    /// Peer: a piece whose bytes do not have its hash.
    #[error("the peer sent wrong content in piece {piece}")]
    PeerContent {
        /// Which one, from 0.
        piece: usize,
    },
    /// Peer: it has no such file for us.
    #[error("the peer shares no such file with this node")]
    PeerHasNot,
    /// Peer: it refused for another reason.
    #[error("the peer refused with status {status}")]
    PeerRefused {
        /// Its status.
        status: u16,
    },
    /// Carrier: no answer.
    #[error("{0}")]
    Peer(#[from] PeerError),
    /// Carrier: an answer that stopped.
    #[error("the transfer was interrupted: {0}")]
    Interrupted(#[from] BodyError),
    /// Misuse.
    #[error("not a node id; write did:key:z6Mk…")]
    BadPeer,
    /// Misuse.
    #[error("not a file id: 64 hexadecimal digits in lower case")]
    BadId,
    /// Misuse.
    #[error("a file's name is 1 to 255 bytes without '/' and control characters, and is not '.' or '..'")]
    BadName,
    /// Misuse: who may fetch.
    #[error("shared with: 'all', 'none' or a node id")]
    BadAudience,
    /// Misuse: more of them than a share has places.
    #[error("a file is shared with at most {MOST} nodes by name; take some out, or share it with all", MOST = crate::document::AUDIENCE_LIMIT)]
    TooManyReaders,
    /// Misuse: a range outside the file, or a longer one than a piece.
    #[error("the range is outside the file or longer than {PIECE} bytes", PIECE = crate::PIECE)]
    BadRange,
    /// Misuse: no such file, or none for this caller.
    #[error("no such file")]
    NoFile,
    /// Misuse: there is a transfer of this file at work.
    #[error("this file is being transferred")]
    Running,
    /// Misuse: the file is not complete yet.
    #[error("this file is not complete; fetch it again to go on")]
    Incomplete,
    /// Misuse: one peer cannot be taken out of all.
    #[error("this file is shared with every linked node; take `all` out first, then let in those that may stay")]
    SharedWithAll,
    /// Misuse: more at the same time than the operator's settings allow.
    #[error("there are as many {what} as `[module.files]` allows")]
    TooMany {
        /// Which, as the setting is called.
        what: &'static str,
    },
    /// Whoever the link's error says.
    #[error("{0}")]
    Link(#[from] LinkError),
    /// Local: what is on the disk is not what was verified.
    #[error("this node's copy is damaged; fetch the file again")]
    Damaged,
    /// Local: the node's store.
    #[error("{0}")]
    Host(#[from] HostError),
}

impl FilesError {
    /// Stable name in kebab case.
    pub(crate) fn code(self) -> &'static str {
        match self {
            Self::PeerMeta => "bad-meta",
            Self::PeerPieces | Self::PeerContent { .. } => "wrong-content",
            Self::PeerHasNot => "not-shared",
            Self::PeerRefused { .. } => "peer-refused",
            Self::Peer(error) => ModuleError::from(error).code,
            Self::Interrupted(_) => "interrupted",
            Self::BadPeer => "bad-peer",
            Self::BadId => "bad-file-id",
            Self::BadName => "bad-file-name",
            Self::BadAudience => "bad-audience",
            Self::TooManyReaders => "too-many-readers",
            Self::BadRange => "bad-range",
            Self::NoFile => "no-such-file",
            Self::Running => "transfer-running",
            Self::Incomplete => "file-incomplete",
            Self::SharedWithAll => "shared-with-all",
            Self::TooMany { .. } => "too-many",
            Self::Link(error) => error.code(),
            Self::Damaged => "file-damaged",
            Self::Host(error) => ModuleError::from(error).code,
        }
    }

    fn status(self) -> Status {
        match self {
            Self::PeerMeta | Self::PeerPieces | Self::PeerContent { .. } | Self::PeerRefused { .. } => {
                Status::BadGateway
            }
            Self::Peer(error) => ModuleError::from(error).status,
            Self::Interrupted(_) => Status::BadGateway,
            Self::BadPeer | Self::BadId | Self::BadName | Self::BadAudience | Self::BadRange => Status::BadRequest,
            Self::NoFile | Self::PeerHasNot => Status::NotFound,
            Self::Running | Self::Incomplete | Self::Damaged | Self::SharedWithAll | Self::TooManyReaders => {
                Status::Conflict
            }
            Self::TooMany { .. } => Status::TooMany,
            Self::Link(error) => error.status(),
            Self::Host(error) => ModuleError::from(error).status,
        }
    }

    /// Whether the same fetch may succeed if it is simply tried again at once.
    pub(crate) fn is_passing(self) -> bool {
        matches!(
            self,
            Self::Interrupted(_) | Self::Peer(PeerError::Interrupted | PeerError::TimedOut | PeerError::Busy)
        )
    }

    /// Whether the peer lied.
    pub(crate) fn is_wrong_content(self) -> bool {
        matches!(self, Self::PeerMeta | Self::PeerPieces | Self::PeerContent { .. })
    }
}

impl From<FilesError> for ModuleError {
    fn from(error: FilesError) -> Self {
        Self::new(error.status(), error.code(), error.to_string())
    }
}
