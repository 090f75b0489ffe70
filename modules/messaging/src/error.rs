//! What can be wrong with a call to this module, and how its caller sees it.

use openred_module::{HostError, ModuleError, Status};

use crate::record::FormError;

/// The code by which a receiver without room tells the sender so.
pub(crate) const INBOX_FULL: &str = "inbox-full";

/// Split by who is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MessagingError {
    /// Peer: what it sent is no message.
    #[error("not a message: {0}")]
    PeerForm(#[from] FormError),
    /// Peer: the same message id came before with other content.
    #[error("another message with this id was received before")]
    PeerIdReused,
    /// Misuse: the peer's name is no node id.
    #[error("not a node id; write did:key:z6Mk…")]
    BadPeer,
    /// Misuse: there is no link with that peer.
    #[error("not linked with that peer; see `openred link list`")]
    NotLinked,
    /// Misuse: a message without content.
    #[error("the message is empty")]
    Empty,
    /// Misuse: the content type is too long or not printable.
    #[error("the content type is not a media type")]
    BadContentType,
    /// Misuse: what is to be attached is no list of ids of files.
    #[error("name at most 8 files by their ids, ID,ID,…")]
    BadAttachment,
    /// Misuse: a file that is to be attached is not shared here.
    #[error("no file with this id is shared here; see `openred share`")]
    NoFile,
    /// Local: the module `files` gave no usable answer.
    #[error("the module `files` cannot say what is attached")]
    FilesRefused,
    /// Peer: what it sent is no list of read receipts.
    #[error("not read receipts")]
    PeerReceipts,
    /// Misuse: the same idempotency key came before with another message.
    #[error("another message was sent to that peer with this idempotency key")]
    KeyReused,
    /// Local: no more of that peer's messages are kept, or of anybody's.
    #[error("the inbox is full")]
    InboxFull,
    /// Local: too many messages wait for that peer.
    #[error("{limit} messages already wait for that peer")]
    QueueFull {
        /// How many may wait.
        limit: usize,
    },
    /// Local: the node's store.
    #[error("{0}")]
    Host(#[from] HostError),
    /// Bug: a row of ours cannot be read.
    #[error("a stored message cannot be read")]
    BadRow,
}

impl From<MessagingError> for ModuleError {
    fn from(error: MessagingError) -> Self {
        let (status, code) = match error {
            MessagingError::PeerForm(_) => (Status::BadRequest, "bad-message"),
            MessagingError::PeerIdReused => (Status::Conflict, "message-id-reused"),
            MessagingError::BadPeer => (Status::BadRequest, "bad-peer"),
            MessagingError::NotLinked => (Status::NotFound, "peer-not-linked"),
            MessagingError::Empty => (Status::BadRequest, "empty-message"),
            MessagingError::BadContentType => (Status::BadRequest, "bad-content-type"),
            MessagingError::BadAttachment => (Status::BadRequest, "bad-attachment"),
            MessagingError::NoFile => (Status::NotFound, "attachment-not-shared"),
            MessagingError::FilesRefused => (Status::BadGateway, "attachment-failed"),
            MessagingError::PeerReceipts => (Status::BadRequest, "bad-receipts"),
            MessagingError::KeyReused => (Status::Conflict, "idempotency-key-reused"),
            MessagingError::InboxFull => (Status::TooMany, INBOX_FULL),
            MessagingError::QueueFull { .. } => (Status::TooMany, "outbox-full"),
            MessagingError::Host(error) => return error.into(),
            MessagingError::BadRow => (Status::Internal, "bad-row"),
        };
        Self::new(status, code, error.to_string())
    }
}
