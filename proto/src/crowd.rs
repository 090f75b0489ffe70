//! A card in a crowd: what a directory seals for a look-up by prefix (docs/protocol.md section 7, decision 0043). The key is made of the id of the
//! card's node, so that who seeks that node opens it and nobody learns of the others. Sans-IO: the sealing itself is the caller's.

use sha2::{Digest as _, Sha256};

use crate::error::{Result, WireError};
use crate::id::NodeId;
use crate::log::Salt;

const WHAT: &str = "card in a crowd";
/// What is hashed before an id for the key of its card.
const LABEL: &[u8] = b"openred/1/prefix\0";
/// Longest prefix of ids that is asked for, in hex digits: with 64 bits there are never two.
pub const PREFIX_DIGITS: usize = 16;

/// The key that a node's id makes.
#[must_use]
pub fn key(node: &NodeId) -> [u8; 32] {
    Sha256::new_with_prefix(LABEL).chain_update(node.as_bytes()).finalize().into()
}

/// What is sealed: a card and where it stands in the directory's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InCrowd {
    /// Entries before it.
    pub index: u64,
    /// What its entry is salted with, where the card is not listed.
    pub salt: Option<Salt>,
    /// The signed card, unverified.
    pub card: Vec<u8>,
}

impl InCrowd {
    /// The bytes to seal: the index, the salt behind its length, the card.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let salt = self.salt.as_ref().map_or(&[][..], |salt| salt);
        let length = u8::try_from(salt.len()).unwrap_or_default();
        [&self.index.to_be_bytes()[..], &[length], salt, &self.card].concat()
    }

    /// Reads what was sealed.
    ///
    /// # Errors
    /// Malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let malformed = |why| WireError::Malformed { what: WHAT, why };
        let (index, rest) = bytes.split_first_chunk::<8>().ok_or_else(|| malformed("too short"))?;
        let (salt, card) = match rest.split_first().ok_or_else(|| malformed("too short"))? {
            (0, card) => (None, card),
            (16, rest) => {
                let (salt, card) = rest.split_first_chunk::<16>().ok_or_else(|| malformed("too short"))?;
                (Some(*salt), card)
            }
            _ => return Err(malformed("a salt of another length")),
        };
        Ok(Self { index: u64::from_be_bytes(*index), salt, card: card.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_card_reads_back_with_its_place() {
        for salt in [None, Some([7; 16])] {
            let sealed = InCrowd { index: 1 << 40, salt, card: b"card".to_vec() };
            assert_eq!(InCrowd::decode(&sealed.encode()).unwrap(), sealed);
            for length in 0..sealed.encode().len() - 4 {
                assert!(InCrowd::decode(&sealed.encode()[..length]).is_err(), "{length}");
            }
        }
        let mut wrong = InCrowd { index: 1, salt: None, card: vec![0; 40] }.encode();
        wrong[8] = 15;
        assert!(InCrowd::decode(&wrong).is_err());
        assert_ne!(key(&NodeId::from_bytes([1; 32])), key(&NodeId::from_bytes([2; 32])));
    }
}
