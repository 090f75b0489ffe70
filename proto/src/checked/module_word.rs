//! What a module states in its own domain, signed with its node's identity (docs/protocol.md section 3).
//!
//! In: a statement from a peer, and the body that it came with. Out: which module of which node stated it, and when. The key process
//! builds the payload from these fields and sees of the body nothing but its hash: a module can have signed whatever it likes, and
//! none of it is a card, an offer, or a word of another module.

use sha2::{Digest as _, Sha256};

use super::statement::Unverified;
use crate::error::{Result, WireError};
use crate::fields::{Reader, Writer};
use crate::id::{NodeId, UnixMillis};
use crate::label::Label;
use crate::modules::MODULE_ID_BYTES;

/// Longest name of a domain.
pub const DOMAIN_BYTES: usize = 64;
/// Longest statement: its fields, a node id, a signature and what lies around them.
pub const MODULE_WORD_BYTES: usize = 2 * 34 + 66 + MODULE_ID_BYTES + 2 + DOMAIN_BYTES + 2 + 34 + 2 * 11 + 3;

const WHAT: &str = "statement of a module";

/// What is signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleWord {
    /// Which module.
    pub module: String,
    /// Which of its domains.
    pub domain: String,
    /// SHA-256 of the body.
    pub digest: [u8; 32],
    /// Bytes of the body.
    pub length: u64,
    /// When, by the signer's clock.
    pub at: UnixMillis,
}

impl ModuleWord {
    /// The payload that is signed.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        Writer::new()
            .bytes(1, self.module.as_bytes())
            .bytes(2, self.domain.as_bytes())
            .bytes(3, &self.digest)
            .number(4, self.length)
            .number(5, self.at.0)
            .finish()
    }

    /// Verifies that `signer`'s node signed `body` for `module` in `domain`; when, comes out.
    ///
    /// # Errors
    /// Too long, malformed, of another signer, a signature that does not verify; malformed too where it is of another module,
    /// another domain or another body.
    pub fn verify(bytes: &[u8], signer: &NodeId, module: &str, domain: &str, body: &[u8]) -> Result<UnixMillis> {
        if bytes.len() > MODULE_WORD_BYTES {
            return Err(WireError::TooLong { what: WHAT, limit: MODULE_WORD_BYTES });
        }
        let verified = Unverified::decode(WHAT, bytes)?.verify(Label::Module, WHAT)?;
        if verified.signer() != *signer {
            return Err(WireError::WrongSigner { what: WHAT });
        }
        let word = Self::decode(verified.payload())?;
        let malformed = |why| Err(WireError::Malformed { what: WHAT, why });
        if word.module != module {
            return malformed("another module stated it");
        }
        if word.domain != domain {
            return malformed("it was stated in another domain");
        }
        let digest: [u8; 32] = Sha256::digest(body).into();
        if word.length != body.len() as u64 || word.digest != digest {
            return malformed("it is of another body");
        }
        Ok(word.at)
    }

    /// Reads a payload whose signature was verified, or that is to be signed.
    ///
    /// # Errors
    /// Malformed.
    pub fn decode(payload: &[u8]) -> Result<Self> {
        let mut reader = Reader::new(WHAT, payload);
        let word = Self {
            module: reader.text(1, MODULE_ID_BYTES)?.to_owned(),
            domain: reader.text(2, DOMAIN_BYTES)?.to_owned(),
            digest: reader.array(3)?,
            length: reader.number(4)?,
            at: UnixMillis(reader.number(5)?),
        };
        if !is_module(&word.module) || !is_domain(&word.domain) {
            return Err(reader.malformed("a name is empty, or not of a-z, 0-9, `-` and, in a domain, `.`"));
        }
        reader.finish()?;
        Ok(word)
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'
}

/// Whether this may be a module's id.
#[must_use]
pub fn is_module(text: &str) -> bool {
    (1..=MODULE_ID_BYTES).contains(&text.len()) && text.bytes().all(is_plain)
}

/// Whether this may be the name of a domain.
#[must_use]
pub fn is_domain(text: &str) -> bool {
    (1..=DOMAIN_BYTES).contains(&text.len()) && text.bytes().all(|byte| is_plain(byte) || byte == b'.')
}
