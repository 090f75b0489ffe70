//! Ed25519 signatures (RFC 8032) with the identity's key, by the faster of two implementations.
//!
//! As with the key agreements, the processor alone decides which one runs, and both give the same bytes: Ed25519 draws nothing at
//! random when it signs, so the tests compare whole signatures. What others signed is verified by `ed25519-dalek`, strictly,
//! everywhere (decision 0017). In: a seed from the keyring, and bytes that [`crate::identity`] has built. Out: signatures.

use ed25519_dalek::Signer as _;
use graviola::signing::eddsa::Ed25519SigningKey;
use openred_proto::secret::Secret;

use crate::agreement::is_fast;

/// An Ed25519 private key; either library wipes it when it is dropped.
pub(crate) struct SigningKey(Key);

// Boxed, so that a key lies in one place: moving its owner leaves no copy behind.
enum Key {
    Fast(Box<Ed25519SigningKey>),
    Portable(Box<ed25519_dalek::SigningKey>),
}

impl SigningKey {
    /// The key of `seed`.
    pub(crate) fn from_seed(seed: &Secret<32>) -> Self {
        let fast = is_fast().then(|| Ed25519SigningKey::from_bytes(seed.expose()).ok()).flatten();
        // That library refuses a seed for its length alone, which is the right one here.
        fast.map_or_else(|| Self::portable(seed), |key| Self(Key::Fast(Box::new(key))))
    }

    fn portable(seed: &Secret<32>) -> Self {
        Self(Key::Portable(Box::new(ed25519_dalek::SigningKey::from_bytes(seed.expose()))))
    }

    /// Its public key.
    pub(crate) fn public(&self) -> [u8; 32] {
        match &self.0 {
            Key::Fast(key) => key.public_key().as_bytes(),
            Key::Portable(key) => key.verifying_key().to_bytes(),
        }
    }

    /// The signature of `message`.
    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        match &self.0 {
            Key::Fast(key) => key.sign(message),
            Key::Portable(key) => key.sign(message).to_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn both_sign_with_the_same_bytes_and_they_verify_strictly(
            seed in any::<[u8; 32]>(), message in proptest::collection::vec(any::<u8>(), 0..600)
        ) {
            let seed = Secret::new(seed);
            let (one, other) = (SigningKey::from_seed(&seed), SigningKey::portable(&seed));
            prop_assert!(matches!(one.0, Key::Fast(_)), "run the suite on a processor that has what graviola needs");
            prop_assert_eq!(one.public(), other.public());
            let signature = one.sign(&message);
            prop_assert_eq!(signature, other.sign(&message));
            let public = ed25519_dalek::VerifyingKey::from_bytes(&one.public()).unwrap();
            prop_assert!(public.verify_strict(&message, &signature.into()).is_ok());
        }
    }

    /// RFC 8032, 7.1, TEST 3.
    #[test]
    fn the_standards_own_vector_holds_for_both() {
        let seed: [u8; 32] = hex::decode("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7")
            .unwrap()
            .try_into()
            .unwrap();
        let expected = "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac\
                        18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a";
        for key in [SigningKey::from_seed(&Secret::new(seed)), SigningKey::portable(&Secret::new(seed))] {
            assert_eq!(hex::encode(key.public()), "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025");
            assert_eq!(hex::encode(key.sign(&[0xaf, 0x82])), expected);
        }
    }
}
