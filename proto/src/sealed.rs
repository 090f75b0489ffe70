//! Sealing at rest: XChaCha20-Poly1305 with its nonce in front. In: a key, a nonce that no other sealing under that key has, what the sealed bytes are bound to, and what is
//! sealed; out: `nonce (24) || ciphertext || tag`, or back.
//!
//! It stands here because this crate is optimised in every build: the ciphers are generic, are compiled where they are used, and take twenty times as long without.

use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{KeyInit as _, XChaCha20Poly1305, XNonce};

/// Bytes of a nonce: so many that random ones do not repeat.
pub const NONCE_BYTES: usize = 24;

/// A key to seal with. The cipher wipes it when it is dropped.
#[derive(Clone)]
pub struct Sealing(XChaCha20Poly1305);

impl Sealing {
    /// Under this key.
    #[must_use]
    pub fn new(key: &[u8; 32]) -> Self {
        Self(XChaCha20Poly1305::new(key.into()))
    }

    /// Seals `plain`, bound to `associated`.
    ///
    /// # Panics
    /// Beyond the cipher's limit, which is 256 GiB.
    #[must_use]
    pub fn seal(&self, nonce: &[u8; NONCE_BYTES], associated: &[u8], plain: &[u8]) -> Vec<u8> {
        let payload = Payload { msg: plain, aad: associated };
        let sealed = self.0.encrypt(&XNonce::from(*nonce), payload).expect("it is far below the cipher's limit");
        [&nonce[..], &sealed].concat()
    }

    /// Opens what was sealed, if it was sealed so.
    #[must_use]
    pub fn open(&self, associated: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>()?;
        self.0.decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: associated }).ok()
    }
}

impl std::fmt::Debug for Sealing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sealing(<secret>)")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    /// Appendix A.3.1 of draft-irtf-cfrg-xchacha-03.
    #[test]
    fn it_seals_as_the_published_vector() {
        let key: [u8; 32] = std::array::from_fn(|at| 0x80 + u8::try_from(at).unwrap());
        let nonce: [u8; NONCE_BYTES] = std::array::from_fn(|at| 0x40 + u8::try_from(at).unwrap());
        let associated = hex::decode("50515253c0c1c2c3c4c5c6c7").unwrap();
        let plain = b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, sunscreen would be it.";
        let expected = "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb731c7f1b0b4aa6440bf3a82f4eda7e39ae64c6708c54c216cb96b72e1213b4522f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff921f9664c97637da9768812f615c68b13b52ec0875924c1c7987947deafd8780acf49";
        let sealing = Sealing::new(&key);
        let sealed = sealing.seal(&nonce, &associated, plain);
        assert_eq!(hex::encode(&sealed[NONCE_BYTES..]), expected);
        assert_eq!(sealed[..NONCE_BYTES], nonce);
        assert_eq!(sealing.open(&associated, &sealed).unwrap(), plain);
        assert!(sealing.open(b"", &sealed).is_none());
        assert!(sealing.open(&associated, &sealed[..NONCE_BYTES - 1]).is_none());
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(sealing.open(&associated, &changed).is_none());
        }
    }
}
