//! What can be wrong with bytes from outside. Decoders tell "incomplete" from "malformed"; no variant carries peer data.

/// Why bytes from a peer, a directory or another process were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// More bytes are needed; a stream may wait for them, a whole message may not.
    #[error("{what}: incomplete")]
    Incomplete {
        /// The message or field that ended early.
        what: &'static str,
    },
    /// The bytes do not follow the schema (wrong type, order, duplicate, unknown or trailing field, wrong length).
    #[error("{what}: malformed ({why})")]
    Malformed {
        /// The message or field.
        what: &'static str,
        /// Which rule it broke.
        why: &'static str,
    },
    /// Longer than the named cap.
    #[error("{what}: longer than {limit} bytes")]
    TooLong {
        /// The message or field.
        what: &'static str,
        /// The cap in bytes (or items, where `what` is a list).
        limit: usize,
    },
    /// A version or kind that this build does not speak.
    #[error("{what}: version or kind not supported")]
    Unsupported {
        /// The message.
        what: &'static str,
    },
    /// A signature does not verify under its label and signer.
    #[error("{what}: signature does not verify")]
    BadSignature {
        /// The statement.
        what: &'static str,
    },
    /// Signed by somebody else than the content says.
    #[error("{what}: signer is not the node it speaks for")]
    WrongSigner {
        /// The statement.
        what: &'static str,
    },
    /// Outside its time window, grace included.
    #[error("{what}: {}", if *.early { "not valid yet" } else { "expired" })]
    OutOfTime {
        /// The statement.
        what: &'static str,
        /// True when the window has not begun.
        early: bool,
    },
    /// Not a did:key of an Ed25519 key.
    #[error("not a did:key of an Ed25519 key (expected did:key:z6Mk…)")]
    BadNodeId,
}

/// Result of decoding or checking.
pub type Result<T> = std::result::Result<T, WireError>;
