//! HTTP Message Signatures (RFC 9421) as the directory asks for them: one fixed set of components, so one base.
//!
//! The key process builds the base from these fields and signs it; the directory builds it again from what it received and
//! verifies. Nothing here parses a general signature header: only the exact shape that this protocol uses is accepted.

use serde::{Deserialize, Serialize};

use crate::error::{Result, WireError};
use crate::id::NodeId;

/// Name of the signature in both headers.
pub const SIGNATURE_NAME: &str = "openred";
/// The `tag` parameter: separates these signatures from any other use of RFC 9421.
pub const TAG: &str = "openred/1/http";
/// Longest nonce text that is looked at.
const NONCE_CHARACTERS: usize = 64;

/// What one request's signature covers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignatureInput {
    /// `@method`, upper case.
    pub method: String,
    /// `@target-uri`, with the directory's configured public origin.
    pub target_uri: String,
    /// SHA-256 of the body; of the empty body too.
    pub content_sha256: [u8; 32],
    /// `created`, seconds since the epoch.
    pub created: u64,
    /// `nonce`, 16 random bytes, hex on the wire.
    pub nonce: [u8; 16],
    /// `keyid`: the node that the request acts for.
    pub key_id: NodeId,
}

impl SignatureInput {
    /// The value of the `Content-Digest` header (RFC 9530).
    #[must_use]
    pub fn content_digest(&self) -> String {
        format!("sha-256=:{}:", base64(&self.content_sha256))
    }

    /// The `@signature-params` value (RFC 9421 §2.3), also the value of the `Signature-Input` member.
    #[must_use]
    pub fn params(&self) -> String {
        let nonce: String = self.nonce.iter().map(|byte| format!("{byte:02x}")).collect();
        format!(
            "(\"@method\" \"@target-uri\" \"content-digest\");created={};nonce=\"{nonce}\";alg=\"ed25519\";keyid=\"{}\";tag=\"{TAG}\"",
            self.created, self.key_id
        )
    }

    /// The signature base (RFC 9421 §2.5): the bytes that are signed. It begins with 0x22.
    #[must_use]
    pub fn base(&self) -> Vec<u8> {
        format!(
            "\"@method\": {}\n\"@target-uri\": {}\n\"content-digest\": {}\n\"@signature-params\": {}",
            self.method,
            self.target_uri,
            self.content_digest(),
            self.params()
        )
        .into_bytes()
    }

    /// The `Signature-Input` header.
    #[must_use]
    pub fn signature_input_header(&self) -> String {
        format!("{SIGNATURE_NAME}={}", self.params())
    }

    /// The `Signature` header for `signature`.
    #[must_use]
    pub fn signature_header(signature: &[u8; 64]) -> String {
        format!("{SIGNATURE_NAME}=:{}:", base64(signature))
    }

    /// Reads `created`, `nonce` and `keyid` out of a `Signature-Input` header and rebuilds the input around them; the
    /// header must equal what this code would have written for it, so nothing else can hide in it.
    ///
    /// # Errors
    /// Malformed when it is not exactly of this protocol's shape.
    pub fn from_headers(method: &str, target_uri: &str, content_sha256: [u8; 32], header: &str) -> Result<Self> {
        let malformed = WireError::Malformed { what: "Signature-Input", why: "not of this protocol's shape" };
        let created = parameter(header, ";created=").and_then(|text| text.parse().ok()).ok_or(malformed)?;
        let nonce = parameter(header, ";nonce=\"").filter(|text| text.len() <= NONCE_CHARACTERS).ok_or(malformed)?;
        let nonce: crate::id::HandshakeId = nonce.parse().map_err(|_| malformed)?;
        let key_id = parameter(header, ";keyid=\"").ok_or(malformed)?.parse()?;
        let input = Self {
            method: method.to_owned(),
            target_uri: target_uri.to_owned(),
            content_sha256,
            created,
            nonce: *nonce.as_bytes(),
            key_id,
        };
        if input.signature_input_header() != header { Err(malformed) } else { Ok(input) }
    }

    /// Verifies the `Signature` header over this input.
    ///
    /// # Errors
    /// Malformed header, or a signature that does not verify strictly under `keyid`.
    pub fn verify(&self, header: &str) -> Result<()> {
        let malformed = WireError::Malformed { what: "Signature", why: "not of this protocol's shape" };
        let encoded = header.strip_prefix("openred=:").and_then(|rest| rest.strip_suffix(':')).ok_or(malformed)?;
        let signature = unbase64::<64>(encoded).ok_or(malformed)?;
        let key = ed25519_dalek::VerifyingKey::from_bytes(self.key_id.as_bytes()).map_err(|_| WireError::BadNodeId)?;
        key.verify_strict(&self.base(), &ed25519_dalek::Signature::from_bytes(&signature))
            .map_err(|_| WireError::BadSignature { what: "HTTP request" })
    }
}

/// The text between `start` and the next `;` or `"`.
fn parameter<'a>(header: &'a str, start: &str) -> Option<&'a str> {
    let (_, rest) = header.split_once(start)?;
    rest.split([';', '"']).next()
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn unbase64<const N: usize>(text: &str) -> Option<[u8; N]> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).ok()?.try_into().ok()
}
