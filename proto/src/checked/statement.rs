//! `SignedStatement { payload, signer, signature }`: the bytes are signed as sent; verify first, decode after.

use crate::error::{Result, WireError};
use crate::fields::{Reader, Writer};
use crate::id::NodeId;
use crate::label::{self, Label};
use crate::limits::CARD_BYTES;

/// A statement whose signature nobody has checked yet. Its payload cannot be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unverified {
    payload: Vec<u8>,
    signer: NodeId,
    signature: [u8; 64],
}

/// A payload whose signature verified under its label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    payload: Vec<u8>,
    signer: NodeId,
}

impl Verified {
    /// The signed bytes.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Who signed them.
    #[must_use]
    pub const fn signer(&self) -> NodeId {
        self.signer
    }
}

impl Unverified {
    /// Reads a statement's frame; `what` names it in errors.
    ///
    /// # Errors
    /// Malformed, incomplete or over [`CARD_BYTES`].
    pub fn decode(what: &'static str, bytes: &[u8]) -> Result<Self> {
        if bytes.len() > CARD_BYTES {
            return Err(WireError::TooLong { what, limit: CARD_BYTES });
        }
        let mut reader = Reader::new(what, bytes);
        let payload = reader.bytes(1, CARD_BYTES)?.to_vec();
        let signer = NodeId::from_bytes(reader.array(2)?);
        let signature = reader.array(3)?;
        reader.finish()?;
        Ok(Self { payload, signer, signature })
    }

    /// Who is said to have signed; nothing to rely on before [`Unverified::verify`].
    #[must_use]
    pub const fn claimed_signer(&self) -> NodeId {
        self.signer
    }

    /// Checks the signature under `label`.
    ///
    /// # Errors
    /// [`WireError::BadSignature`] or [`WireError::BadNodeId`].
    pub fn verify(self, label: Label, what: &'static str) -> Result<Verified> {
        label::verify(label, &self.payload, &self.signer, &self.signature, what)?;
        Ok(self.dangerously_verified_before())
    }

    /// As if it verified, which the caller has found before of the same bytes.
    pub(crate) fn dangerously_verified_before(self) -> Verified {
        Verified { payload: self.payload, signer: self.signer }
    }
}

/// Encodes a statement from its parts: what the key process does after it has signed.
#[must_use]
pub fn encode(payload: &[u8], signer: &NodeId, signature: &[u8; 64]) -> Vec<u8> {
    Writer::new().bytes(1, payload).bytes(2, signer.as_bytes()).bytes(3, signature).finish()
}
