//! Static certificates: the identity's word for one X25519 key of one suite, for a day (PROTOCOL 1).

use crate::checked::statement::Unverified;
use crate::error::{Result, WireError};
use crate::fields::{Reader, Writer};
use crate::id::{NodeId, UnixMillis};
use crate::label::Label;
use crate::limits::{STATIC_BACKDATE, STATIC_LIFE};
use crate::method::Method;

const WHAT: &str = "static certificate";
/// Longest certificate, signature included.
pub const CERTIFICATE_BYTES: usize = 256;

/// A certificate whose signature, signer and window have been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticCertificate {
    /// Whose key it is.
    pub node_id: NodeId,
    /// The one suite it may be used in (Noise §14: one hash per static key).
    pub method: Method,
    /// X25519 public key.
    pub key: [u8; 32],
    /// Start of the window.
    pub not_before: UnixMillis,
    /// End of the window.
    pub not_after: UnixMillis,
}

impl StaticCertificate {
    /// The payload to sign.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Writer::new()
            .bytes(1, self.node_id.as_bytes())
            .number(2, self.method.number())
            .bytes(3, &self.key)
            .number(4, self.not_before.0)
            .number(5, self.not_after.0)
            .finish()
    }

    /// Verifies and decodes a certificate. That `key` is the Noise remote static and `node_id` the expected peer is the
    /// handshake's to check.
    ///
    /// # Errors
    /// Malformed, bad signature, wrong signer, out of its window, or a window longer than a certificate's.
    pub fn verify(bytes: &[u8], now: UnixMillis) -> Result<Self> {
        if bytes.len() > CERTIFICATE_BYTES {
            return Err(WireError::TooLong { what: WHAT, limit: CERTIFICATE_BYTES });
        }
        let statement = Unverified::decode(WHAT, bytes)?.verify(Label::Static, WHAT)?;
        let mut reader = Reader::new(WHAT, statement.payload());
        let certificate = Self {
            node_id: NodeId::from_bytes(reader.array(1)?),
            method: Method::from_number(reader.number(2)?)?,
            key: reader.array(3)?,
            not_before: UnixMillis(reader.number(4)?),
            not_after: UnixMillis(reader.number(5)?),
        };
        if certificate.node_id != statement.signer() {
            return Err(WireError::WrongSigner { what: WHAT });
        }
        if certificate.not_after > certificate.not_before.plus(STATIC_LIFE).plus(STATIC_BACKDATE) {
            return Err(reader.malformed("its window is longer than a day"));
        }
        super::check_window(WHAT, now, certificate.not_before, certificate.not_after)?;
        reader.finish()?;
        Ok(certificate)
    }
}
