//! A signed head of a directory's log: a checkpoint (c2sp.org/tlog-checkpoint) in a signed note (c2sp.org/signed-note), in the one form
//! that this protocol takes. Origin and key name are the directory's did:key; there are no further lines and no further signatures, so one
//! head of one key is one text.
//!
//! The text is signed as it stands, without a label: it begins with `did:key:`, and no label does.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, VerifyingKey};
use sha2::{Digest as _, Sha256};

use super::{Hash, LOG_ENTRIES};
use crate::error::{Result, WireError};
use crate::id::NodeId;

const WHAT: &str = "log head";
/// Longest head: two did:keys (56 characters), a number, root and signature in base64, and what stands between.
pub const HEAD_BYTES: usize = 384;
/// Begins the line of a signature: U+2014 and a space.
const SIGNED_BY: &str = "\u{2014} ";
/// The kind of Ed25519 in a signed note.
const ED25519: u8 = 1;

/// How far a directory's log goes, by its own word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Whose log.
    pub directory: NodeId,
    /// Entries.
    pub size: u64,
    /// Root over them.
    pub root: Hash,
}

impl Head {
    /// The text to sign.
    #[must_use]
    pub fn text(&self) -> String {
        format!("{}\n{}\n{}\n", self.directory, self.size, STANDARD.encode(self.root))
    }

    /// The head with its signature.
    #[must_use]
    pub fn note(&self, signature: &[u8; 64]) -> String {
        let mut bytes = key_hash(&self.directory).to_vec();
        bytes.extend_from_slice(signature);
        format!("{}\n{SIGNED_BY}{} {}\n", self.text(), self.directory, STANDARD.encode(bytes))
    }

    /// Verifies a head of `directory`.
    ///
    /// # Errors
    /// Too long, malformed, of another directory, or a signature that does not verify.
    pub fn verify(note: &[u8], directory: &NodeId) -> Result<Self> {
        if note.len() > HEAD_BYTES {
            return Err(WireError::TooLong { what: WHAT, limit: HEAD_BYTES });
        }
        let malformed = |why| WireError::Malformed { what: WHAT, why };
        let note = std::str::from_utf8(note).map_err(|_| malformed("not UTF-8"))?;
        let (text, signature) = note.split_once("\n\n").ok_or_else(|| malformed("no signature"))?;
        let lines: Vec<&str> = text.split('\n').collect();
        let [origin, size, root] = lines[..] else { return Err(malformed("not three lines")) };
        if origin.parse::<NodeId>()? != *directory {
            return Err(WireError::WrongSigner { what: WHAT });
        }
        let size: u64 = size.parse().map_err(|_| malformed("the size is no number"))?;
        if size > LOG_ENTRIES {
            return Err(malformed("of a log that is too long"));
        }
        let root = decode(root).ok_or_else(|| malformed("the root is not 32 bytes of base64"))?;
        let head = Self { directory: *directory, size, root };
        let signed = signature.strip_prefix(SIGNED_BY).and_then(|line| line.strip_suffix('\n')?.split_once(' '));
        let (name, signature) = signed.ok_or_else(|| malformed("no signature line"))?;
        if name != origin {
            return Err(WireError::WrongSigner { what: WHAT });
        }
        let bytes: [u8; 68] = decode(signature).ok_or_else(|| malformed("the signature is not 68 bytes of base64"))?;
        let signature = bytes[4..].try_into().map_err(|_| malformed("the signature is not 64 bytes"))?;
        // One head, one text: no leading zeros, no other base64, no second line.
        if head.note(&signature) != note {
            return Err(malformed("not in its one form"));
        }
        let key = VerifyingKey::from_bytes(directory.as_bytes()).map_err(|_| WireError::BadNodeId)?;
        let verified = key.verify_strict(head.text().as_bytes(), &Signature::from_bytes(&signature));
        verified.map_err(|_| WireError::BadSignature { what: WHAT })?;
        Ok(head)
    }

    /// Whose head it says it is; nothing to rely on before [`Head::verify`].
    ///
    /// # Errors
    /// Malformed.
    pub fn claimed(note: &[u8]) -> Result<NodeId> {
        let line = note.split(|byte| *byte == b'\n').next().unwrap_or_default();
        std::str::from_utf8(line).map_err(|_| WireError::BadNodeId)?.parse()
    }
}

/// Names the key beside the signature (c2sp.org/signed-note).
fn key_hash(directory: &NodeId) -> [u8; 4] {
    let name = format!("{directory}\n");
    let hash = Sha256::new().chain_update(name).chain_update([ED25519]).chain_update(directory.as_bytes()).finalize();
    [hash[0], hash[1], hash[2], hash[3]]
}

fn decode<const N: usize>(text: &str) -> Option<[u8; N]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use ed25519_dalek::{Signer as _, SigningKey};

    use super::*;

    fn signed(seed: u8, size: u64) -> (Head, String) {
        let key = SigningKey::from_bytes(&[seed; 32]);
        let directory = NodeId::from_bytes(key.verifying_key().to_bytes());
        let head = Head { directory, size, root: [seed; 32] };
        (head, head.note(&key.sign(head.text().as_bytes()).to_bytes()))
    }

    #[test]
    fn a_head_reads_back_and_no_bit_of_it_is_free() {
        for size in [0, 1, 4_000_000_000, LOG_ENTRIES] {
            let (head, note) = signed(3, size);
            assert_eq!(Head::verify(note.as_bytes(), &head.directory), Ok(head));
            assert_eq!(Head::claimed(note.as_bytes()), Ok(head.directory));
            assert!(note.len() <= HEAD_BYTES);
        }
        let (head, note) = signed(3, 77);
        for bit in 0..note.len() * 8 {
            let mut changed = note.clone().into_bytes();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(Head::verify(&changed, &head.directory).is_err(), "bit {bit}");
        }
        for length in 0..note.len() {
            assert!(Head::verify(&note.as_bytes()[..length], &head.directory).is_err());
        }
    }

    #[test]
    fn a_head_has_one_form_and_one_signer() {
        let (head, note) = signed(3, 77);
        let (other, others) = signed(4, 77);
        let is_bad = |note: &str| Head::verify(note.as_bytes(), &head.directory).unwrap_err();
        assert_eq!(is_bad(&others), WireError::WrongSigner { what: WHAT });
        assert_eq!(
            is_bad(&others.replace(&other.directory.to_string(), &head.directory.to_string())),
            WireError::Malformed { what: WHAT, why: "not in its one form" }
        );
        assert_eq!(is_bad(&note.replace("\n77\n", "\n78\n")), WireError::BadSignature { what: WHAT });
        for bad in [
            note.replace("\n77\n", "\n077\n"),
            note.replace("\n77\n", "\n+77\n"),
            note.replace("\n77\n", "\n77\nmore\n"),
            note.replace("\n\n", "\n"),
            note.replace('\u{2014}', "-"),
            format!("{note}\n"),
            note.replace('\n', "\r\n"),
        ] {
            assert!(matches!(is_bad(&bad), WireError::Malformed { .. } | WireError::BadNodeId), "{bad:?}");
        }
        assert!(matches!(is_bad(&format!("{note}{}", note.split_once("\n\n").unwrap().1)), WireError::TooLong { .. }));
        assert_eq!(is_bad(&"x".repeat(HEAD_BYTES + 1)), WireError::TooLong { what: WHAT, limit: HEAD_BYTES });
        let long = Head { size: LOG_ENTRIES + 1, ..head };
        assert!(matches!(is_bad(&long.note(&[0; 64])), WireError::Malformed { .. }));
    }
}
