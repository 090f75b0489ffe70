//! Identifiers: nodes, links, handshakes. Raw bytes on the wire, text for people.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Result, WireError};

/// Multicodec prefix of an Ed25519 public key (0xed as unsigned varint), W3C did:key.
const ED25519_MULTICODEC: [u8; 2] = [0xed, 0x01];
/// Longest did:key text that is looked at: an Ed25519 one has 56 characters.
const DID_KEY_CHARACTERS: usize = 64;

/// A node: its Ed25519 public key. Text form is its W3C `did:key`; 32 raw bytes on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeId([u8; 32]);

impl NodeId {
    /// Takes raw bytes; whether they are a curve point shows when a signature is verified.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 raw bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A short form for tables and logs: the did:key's last eight characters.
    #[must_use]
    pub fn short(&self) -> String {
        let text = self.to_string();
        format!("…{}", &text[text.len() - 8..])
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut bytes = ED25519_MULTICODEC.to_vec();
        bytes.extend_from_slice(&self.0);
        write!(f, "did:key:z{}", bs58::encode(bytes).into_string())
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeId({})", self.short())
    }
}

impl FromStr for NodeId {
    type Err = WireError;

    fn from_str(text: &str) -> Result<Self> {
        let encoded = text.strip_prefix("did:key:z").ok_or(WireError::BadNodeId)?;
        if text.len() > DID_KEY_CHARACTERS {
            return Err(WireError::BadNodeId);
        }
        let bytes = bs58::decode(encoded).into_vec().map_err(|_| WireError::BadNodeId)?;
        let key = bytes.strip_prefix(&ED25519_MULTICODEC).ok_or(WireError::BadNodeId)?;
        Ok(Self(key.try_into().map_err(|_| WireError::BadNodeId)?))
    }
}

/// Exactly 32 lower-case hex digits: one id has one text. No number parser, which would take a sign too.
fn lower_hex(text: &str) -> Option<[u8; 16]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let digits: &[u8; 32] = text.as_bytes().try_into().ok()?;
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

macro_rules! id16 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub struct $name([u8; 16]);

        impl $name {
            /// Takes 16 raw bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// The raw bytes.
            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = WireError;

            fn from_str(text: &str) -> Result<Self> {
                let malformed = WireError::Malformed { what: stringify!($name), why: "expected 32 lower-case hex digits" };
                lower_hex(text).map(Self).ok_or(malformed)
            }
        }
    };
}

id16!(
    /// One link between two nodes: 16 random bytes drawn by its issuer.
    LinkId
);
id16!(
    /// One half-open handshake at its responder: 16 random bytes.
    HandshakeId
);
id16!(
    /// Names a registered method: the first 16 bytes of SHA-256 of its canonical description. Who finds two descriptions of one id has
    /// two that hold the floor, and a link between them that does not open.
    MethodId
);
id16!(
    /// Identifies a prekey: the first 16 bytes of SHA-256 of its public key.
    PrekeyId
);

/// Milliseconds since the Unix epoch, as the caller's clock says; protocol code takes it as an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct UnixMillis(pub u64);

impl UnixMillis {
    /// Later by `duration`, saturating.
    #[must_use]
    pub fn plus(self, duration: std::time::Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Earlier by `duration`, saturating at the epoch.
    #[must_use]
    pub fn minus(self, duration: std::time::Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Whole seconds since the epoch.
    #[must_use]
    pub const fn seconds(self) -> u64 {
        self.0 / 1000
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn did_key_round_trip_and_refusals() {
        let id = NodeId::from_bytes([7; 32]);
        assert_eq!(id.to_string().parse::<NodeId>().unwrap(), id);
        for bad in ["", "did:key:", "did:key:z", "did:web:x", "did:key:z6Mk", &format!("{id}1"), &id.to_string()[..50]]
        {
            assert_eq!(bad.parse::<NodeId>(), Err(WireError::BadNodeId), "{bad}");
        }
    }

    #[test]
    fn link_id_text_is_32_hex_digits() {
        let id = LinkId::from_bytes([0xa5; 16]);
        assert_eq!(id.to_string().parse::<LinkId>().unwrap(), id);
        for bad in ["", "a5", "g5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5", "+5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5é"] {
            assert!(bad.parse::<LinkId>().is_err(), "{bad}");
        }
    }
}
