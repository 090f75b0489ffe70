//! What each side of an audited session signs, and what the two words prove together (PROTOCOL 5).
//!
//! In: statements as they came over a session, or out of a file. Out: who proved contact with whom. One word alone shows that its
//! signer ended some handshake; only both, over one hash and in the two roles, show that these two ended it with each other.

use super::session::Side;
use super::statement::Unverified;
use crate::error::{Result, WireError};
use crate::fields::{Reader, Writer};
use crate::id::NodeId;
use crate::label::Label;

/// Longest statement: a role, a hash, a node id, a signature and what lies around them.
pub const SESSION_WORD_BYTES: usize = 160;

const WHAT: &str = "session signature";

/// What one side signs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionWord {
    /// The signer's role.
    pub role: Side,
    /// The final handshake hash, its first 32 bytes where the suite's hash is longer.
    pub hash: [u8; 32],
}

impl SessionWord {
    /// The payload that is signed.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let role = match self.role {
            Side::Initiator => 1,
            Side::Responder => 2,
        };
        Writer::new().number(1, role).bytes(2, &self.hash).finish()
    }

    /// Reads a signed word; gives its signer, too.
    ///
    /// # Errors
    /// Too long, malformed, or a signature that does not verify.
    pub fn verify(bytes: &[u8]) -> Result<(Self, NodeId)> {
        if bytes.len() > SESSION_WORD_BYTES {
            return Err(WireError::TooLong { what: WHAT, limit: SESSION_WORD_BYTES });
        }
        let verified = Unverified::decode(WHAT, bytes)?.verify(Label::Session, WHAT)?;
        let mut reader = Reader::new(WHAT, verified.payload());
        let role = match reader.number(1)? {
            1 => Side::Initiator,
            2 => Side::Responder,
            _ => return Err(WireError::Unsupported { what: WHAT }),
        };
        let word = Self { role, hash: reader.array(2)? };
        reader.finish()?;
        Ok((word, verified.signer()))
    }
}

/// Two words that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionProof {
    /// Who began.
    pub initiator: NodeId,
    /// Who answered.
    pub responder: NodeId,
    /// The hash that both signed.
    pub hash: [u8; 32],
}

impl SessionProof {
    /// Verifies two words, in any order.
    ///
    /// # Errors
    /// As [`SessionWord::verify`]; malformed when they are of one role, of one node, or over two hashes.
    pub fn verify(one: &[u8], other: &[u8]) -> Result<Self> {
        let ((one, first), (other, second)) = (SessionWord::verify(one)?, SessionWord::verify(other)?);
        let malformed = |why| Err(WireError::Malformed { what: "proof of a session", why });
        if one.hash != other.hash {
            return malformed("the two signed different handshakes");
        }
        if first == second {
            return malformed("both signatures are of one node");
        }
        let (initiator, responder) = match (one.role, other.role) {
            (Side::Initiator, Side::Responder) => (first, second),
            (Side::Responder, Side::Initiator) => (second, first),
            _ => return malformed("both signed in one role"),
        };
        Ok(Self { initiator, responder, hash: one.hash })
    }
}
