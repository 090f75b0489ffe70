//! The keys that replicas have from the identity that they share, and what they seal with them. The NATS server and whoever else is on
//! it carries sealed letters and is believed nothing: it can hold letters back, and sees when they come and how long they are.
//!
//! A letter is a version, a nonce that was drawn for it, and XChaCha20-Poly1305 over the rest, bound to the subject on which it goes.

use chacha20poly1305::aead::{Aead as _, KeyInit as _, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hkdf::Hkdf;
use hmac::{Hmac, Mac as _};
use openred_proto::id::NodeId;
use sha2::Sha256;

/// Says which letters these are: a later version has other keys.
const SALT: &[u8] = b"openred/directory/replicas/1";
/// The first byte of a letter.
const VERSION: u8 = 1;
const NONCE: usize = 24;

/// What replicas share. Prints nothing.
pub struct Keys {
    seal: XChaCha20Poly1305,
    nonces: [u8; 32],
    subject: String,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys")
    }
}

impl Keys {
    /// From the identity's seed.
    #[must_use]
    pub fn derive(seed: &[u8; 32]) -> Self {
        let hkdf = Hkdf::<Sha256>::new(Some(SALT), seed);
        let (mut seal, mut nonces, mut subject) = ([0; 32], [0; 32], [0; 16]);
        for (what, key) in [("seal", &mut seal[..]), ("nonces", &mut nonces[..]), ("subject", &mut subject[..])] {
            hkdf.expand(what.as_bytes(), key).expect("32 bytes are within HKDF's bound");
        }
        let subject = format!("openred.{}", hex::encode(subject));
        Self { seal: XChaCha20Poly1305::new(&seal.into()), nonces, subject }
    }

    /// Where letters to all go. It does not say whose they are.
    #[must_use]
    pub fn to_all(&self) -> &str {
        &self.subject
    }

    /// Where letters to one run of one replica go.
    #[must_use]
    pub fn to_one(&self, run: &[u8; 16]) -> String {
        format!("{}.{}", self.subject, hex::encode(run))
    }

    /// Seals a letter for a subject; none where the system has no randomness.
    #[must_use]
    pub fn seal(&self, subject: &str, plain: &[u8]) -> Option<Vec<u8>> {
        let mut nonce = [0; NONCE];
        getrandom::fill(&mut nonce).ok()?;
        let payload = Payload { msg: plain, aad: &bound(subject) };
        let sealed = self.seal.encrypt(&XNonce::from(nonce), payload).ok()?;
        Some([&[VERSION][..], &nonce, &sealed].concat())
    }

    /// Opens a letter that came on a subject; none for what no replica sealed for it.
    #[must_use]
    pub fn open(&self, subject: &str, letter: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = letter.strip_prefix(&[VERSION])?.split_first_chunk::<NONCE>()?;
        self.seal.decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: &bound(subject) }).ok()
    }

    /// What stands for a node's nonce in the database that replicas share: it says neither whose nor which.
    #[must_use]
    pub fn tag(&self, node: &NodeId, nonce: &[u8; 16]) -> [u8; 32] {
        let mut tag =
            <Hmac<Sha256> as hmac::KeyInit>::new_from_slice(&self.nonces).expect("HMAC takes keys of any length");
        tag.update(node.as_bytes());
        tag.update(nonce);
        tag.finalize().into_bytes().into()
    }
}

fn bound(subject: &str) -> Vec<u8> {
    [SALT, &[VERSION], subject.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_letter_opens_for_whom_it_was_sealed_and_nobody_else() {
        let (keys, others) = (Keys::derive(&[1; 32]), Keys::derive(&[2; 32]));
        let letter = keys.seal(keys.to_all(), b"words").unwrap();
        assert_eq!(keys.open(keys.to_all(), &letter).unwrap(), b"words");
        assert_eq!(keys.open(&keys.to_one(&[0; 16]), &letter), None, "on another subject");
        assert_eq!(others.open(keys.to_all(), &letter), None, "another identity");
        assert_ne!(keys.seal(keys.to_all(), b"words").unwrap(), letter);
        for place in 0..letter.len() {
            let mut bent = letter.clone();
            bent[place] ^= 1;
            assert_eq!(keys.open(keys.to_all(), &bent), None, "byte {place}");
            assert_eq!(keys.open(keys.to_all(), &letter[..place]), None, "{place} bytes");
        }
        assert!(!letter.windows(5).any(|window| window == b"words"));
    }

    #[test]
    fn a_tag_tells_nodes_and_nonces_apart() {
        let (keys, node) = (Keys::derive(&[1; 32]), |number| NodeId::from_bytes([number; 32]));
        let tag = keys.tag(&node(1), &[1; 16]);
        assert_eq!(tag, Keys::derive(&[1; 32]).tag(&node(1), &[1; 16]));
        for other in
            [keys.tag(&node(2), &[1; 16]), keys.tag(&node(1), &[2; 16]), Keys::derive(&[2; 32]).tag(&node(1), &[1; 16])]
        {
            assert_ne!(tag, other);
        }
    }
}
