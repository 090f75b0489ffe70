//! Signature and derivation labels, all in one file, and the one way to verify a labelled signature.
//!
//! A signature is over `label || 0x00 || payload`. Labels differ from each other and none is a prefix of another with the
//! separator, so a signature made for one use cannot serve another. HTTP signatures (RFC 9421) are the exception: their
//! base begins with 0x22 and collides with no label.

use ed25519_dalek::{Signature, VerifyingKey};

use crate::error::{Result, WireError};
use crate::id::NodeId;

/// One constant label per use of the identity key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Label {
    /// A node's card (PROTOCOL 2).
    Card,
    /// A static certificate (PROTOCOL 1).
    Static,
    /// The sealed part of a link offer (PROTOCOL 4).
    Link,
    /// An acceptor's or a directory's receipt (PROTOCOL 4, 7).
    Receipt,
    /// An audit checkpoint (SANDBOX).
    Audit,
    /// A LAN beacon (later release).
    Beacon,
    /// A session signature of `audited` mode (PROTOCOL 5).
    Session,
    /// An identity's word that another goes on in its place (docs/protocol.md section 1).
    Succession,
    /// What a module states in its own domain (docs/protocol.md section 3).
    Module,
    /// A module's package: its manifest, by its publisher.
    Package,
}

impl Label {
    /// Every label, for tests that try to confuse them.
    pub const ALL: [Label; 10] = [
        Label::Card,
        Label::Static,
        Label::Link,
        Label::Receipt,
        Label::Audit,
        Label::Beacon,
        Label::Session,
        Label::Succession,
        Label::Module,
        Label::Package,
    ];

    /// The label's bytes.
    #[must_use]
    pub const fn bytes(self) -> &'static [u8] {
        match self {
            Label::Card => b"openred/1/card",
            Label::Static => b"openred/1/static",
            Label::Link => b"openred/1/link",
            Label::Receipt => b"openred/1/receipt",
            Label::Audit => b"openred/1/audit",
            Label::Beacon => b"openred/1/beacon",
            Label::Session => b"openred/1/session",
            Label::Succession => b"openred/1/succession",
            Label::Module => b"openred/1/module",
            Label::Package => b"openred/1/package",
        }
    }
}

/// Derivation labels (HKDF info, HMAC messages, HPKE exports). None of these is ever signed.
pub mod derive {
    /// HPKE export of a link's base (PROTOCOL 4.4).
    pub const LINK_BASE: &[u8] = b"openred/1/link-base";
    /// Cross-validation of the two link tokens (PROTOCOL 4.5).
    pub const MATCH: &[u8] = b"openred/1/match";
    /// The HPKE pre-shared key of an offer that renews a link (PROTOCOL 4).
    pub const RENEW: &[u8] = b"openred/1/renew";
    /// The value that both sides of a handshake can compare (PROTOCOL 5).
    pub const MUTUAL_LINK: &[u8] = b"openred/1/mutual-link";
    /// A link's directional pre-shared key.
    pub const PSK: &[u8] = b"openred/1/psk";
    /// A link's tag key (PROTOCOL 5).
    pub const TAG: &[u8] = b"openred/1/tag";
    /// A link's mac1 key (PROTOCOL 5).
    pub const MAC1: &[u8] = b"openred/1/mac1";
    /// The key that seals a cookie to who sent a REQUEST (PROTOCOL 5).
    pub const COOKIE: &[u8] = b"openred/1/cookie";
    /// The mac1 key of direct contact, from the responder's id alone (PROTOCOL 5).
    pub const DIRECT_MAC1: &[u8] = b"openred/1/direct-mac1";
    /// The post-quantum pre-shared key of one handshake (psk3).
    pub const PSK3: &[u8] = b"openred/1/psk3";
    /// One direction's exported session secret.
    pub const SESSION: &[u8] = b"openred/1/session-secret";
    /// The key of one stream in a session (PROTOCOL 6).
    pub const STREAM: &[u8] = b"openred/1/stream";
    /// A session's tag (PROTOCOL 6).
    pub const SESSION_TAG: &[u8] = b"openred/1/session-tag";
    /// Parameter of a token transform (PROTOCOL 3).
    pub const TRANSFORM: &[u8] = b"openred/1/transform";
    /// Key that seals link rows.
    pub const ROW: &[u8] = b"openred/1/row";
    /// Key that seals the vault's state records.
    pub const STATE: &[u8] = b"openred/1/state";
    /// Key that `noded` seals a module's records with.
    pub const STORE: &[u8] = b"openred/1/store";
    /// Key that `noded` seals with for a module, by module.
    pub const MODULE_SEAL: &[u8] = b"openred/1/module-seal";
    /// Key of one context of a module's seals.
    pub const SEAL_CONTEXT: &[u8] = b"openred/1/seal-context";
    /// Keys of a link with a registered method (PROTOCOL 3).
    pub const REGISTERED: &[u8] = b"openred/1/registered";
    /// Key that names peers in the audit trail.
    pub const AUDIT: &[u8] = b"openred/1/audit-subject";
    /// The prologue's first part (PROTOCOL 5).
    pub const PROLOGUE: &[u8] = b"openred/1";
}

/// The bytes that are signed for `payload` under `label`.
#[must_use]
pub fn signed_bytes(label: Label, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(label.bytes().len() + 1 + payload.len());
    bytes.extend_from_slice(label.bytes());
    bytes.push(0);
    bytes.extend_from_slice(payload);
    bytes
}

/// Verifies strictly (`verify_strict`: no small-order keys, canonical encodings only) a signature of `signer` over
/// `payload` under `label`.
///
/// # Errors
/// [`WireError::BadNodeId`] when `signer` is not a curve point, [`WireError::BadSignature`] otherwise; `what` names the statement.
pub fn verify(label: Label, payload: &[u8], signer: &NodeId, signature: &[u8; 64], what: &'static str) -> Result<()> {
    let key = VerifyingKey::from_bytes(signer.as_bytes()).map_err(|_| WireError::BadNodeId)?;
    key.verify_strict(&signed_bytes(label, payload), &Signature::from_bytes(signature))
        .map_err(|_| WireError::BadSignature { what })
}

#[cfg(test)]
mod tests {
    use super::Label;

    #[test]
    fn no_label_is_a_prefix_of_another_with_its_separator() {
        for one in Label::ALL {
            assert_ne!(one.bytes()[0], 0x22, "an HTTP signature base begins with 0x22");
            for other in Label::ALL.into_iter().filter(|other| *other != one) {
                let mut with_separator = one.bytes().to_vec();
                with_separator.push(0);
                assert!(!other.bytes().starts_with(&with_separator));
            }
        }
    }
}
