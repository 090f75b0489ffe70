//! The key agreements of a handshake, X25519 (RFC 7748) and ML-KEM-768 (FIPS 203), by the faster of two implementations.
//!
//! Where the processor has the instructions that it needs, `graviola`'s proven assembler runs; elsewhere the RustCrypto crates do, at less
//! than half of its speed. Which one is decided by the processor alone, and both give the same bytes (the tests compare them). Nothing here
//! draws randomness: seeds and messages are arguments. Secrets are wiped when dropped; what either library leaves behind on the
//! stack lies in the vault's secret arena.

use graviola::key_agreement::{mlkem768, x25519};
use ml_kem::array::Array;
use ml_kem::ml_kem_768;
use ml_kem::{Decapsulate, KeyExport};
use openred_proto::limits::{MLKEM_CIPHERTEXT_BYTES, MLKEM_PUBLIC_BYTES};
use openred_proto::secret::Secret;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroize as _;

/// Whether `graviola` runs on this processor; it panics where it does not.
pub(crate) fn is_fast() -> bool {
    // What the version that Cargo.toml pins asks for on x86_64, the one architecture that there are filters for. Answers are kept by the
    // standard library: a load and a test each.
    std::is_x86_feature_detected!("aes")
        && std::is_x86_feature_detected!("pclmulqdq")
        && std::is_x86_feature_detected!("bmi1")
        && std::is_x86_feature_detected!("bmi2")
        && std::is_x86_feature_detected!("adx")
        && std::is_x86_feature_detected!("avx")
        && std::is_x86_feature_detected!("avx2")
}

/// The X25519 public key of `secret`.
pub(crate) fn x25519_public(secret: &[u8; 32]) -> [u8; 32] {
    if is_fast() { fast::x25519_public(secret) } else { portable::x25519_public(secret) }
}

/// The secret shared with `public`; `None` when that key contributes nothing (low order: the result would be all zero).
pub(crate) fn x25519(secret: &[u8; 32], public: &[u8; 32]) -> Option<Secret<32>> {
    if is_fast() { fast::x25519(secret, public) } else { portable::x25519(secret, public) }
}

/// An ML-KEM-768 decapsulation key; wiped when dropped.
pub(crate) struct KemKey(Kem);

enum Kem {
    Fast(Box<mlkem768::DecapKey>),
    Portable(Box<ml_kem_768::DecapsulationKey>),
}

impl KemKey {
    /// The key of a seed, d and then z (FIPS 203, 7.1).
    pub(crate) fn from_seed(seed: &[u8; 64]) -> Self {
        Self(if is_fast() { fast::kem(seed) } else { portable::kem(seed) })
    }

    /// Its encapsulation key.
    pub(crate) fn public(&self) -> Box<[u8; MLKEM_PUBLIC_BYTES]> {
        match &self.0 {
            Kem::Fast(key) => Box::new(key.encapsulation_key().as_bytes()),
            Kem::Portable(key) => {
                let mut public = Box::new([0; MLKEM_PUBLIC_BYTES]);
                public.copy_from_slice(&key.encapsulation_key().to_bytes());
                public
            }
        }
    }

    /// The secret in `ciphertext`; of one that was not made for this key, another secret (implicit rejection).
    pub(crate) fn decapsulate(&self, ciphertext: &[u8; MLKEM_CIPHERTEXT_BYTES]) -> Secret<32> {
        match &self.0 {
            Kem::Fast(key) => Secret::new(*key.decaps_internal(&mlkem768::Ciphertext::from(*ciphertext)).as_ref()),
            Kem::Portable(key) => {
                let mut shared = key.decapsulate(ciphertext.into());
                let secret = Secret::new(shared.into());
                shared.zeroize();
                secret
            }
        }
    }
}

/// A ciphertext to `public` and the secret in it, from 32 random bytes. `None` when that is no encapsulation key (FIPS 203, 7.2).
pub(crate) fn encapsulate(
    public: &[u8; MLKEM_PUBLIC_BYTES],
    message: &[u8; 32],
) -> Option<(Box<[u8; MLKEM_CIPHERTEXT_BYTES]>, Secret<32>)> {
    if is_fast() { fast::encapsulate(public, message) } else { portable::encapsulate(public, message) }
}

/// `graviola`.
mod fast {
    use super::{Kem, MLKEM_CIPHERTEXT_BYTES, MLKEM_PUBLIC_BYTES, Secret, mlkem768, x25519 as curve};

    pub(super) fn x25519_public(secret: &[u8; 32]) -> [u8; 32] {
        curve::StaticPrivateKey::from_array(secret).public_key().as_bytes()
    }

    pub(super) fn x25519(secret: &[u8; 32], public: &[u8; 32]) -> Option<Secret<32>> {
        let shared = curve::StaticPrivateKey::from_array(secret).diffie_hellman(&curve::PublicKey::from_array(public));
        shared.ok().map(|shared| Secret::new(shared.0))
    }

    pub(super) fn kem(seed: &[u8; 64]) -> Kem {
        Kem::Fast(Box::new(mlkem768::DecapKey::keygen_internal(seed)))
    }

    pub(super) fn encapsulate(
        public: &[u8; MLKEM_PUBLIC_BYTES],
        message: &[u8; 32],
    ) -> Option<(Box<[u8; MLKEM_CIPHERTEXT_BYTES]>, Secret<32>)> {
        let key = mlkem768::EncapKey::from_bytes(public).ok()?;
        let (shared, ciphertext) = key.encaps_internal(mlkem768::Message(*message));
        Some((Box::new(*ciphertext.as_ref()), Secret::new(*shared.as_ref())))
    }
}

/// The RustCrypto crates.
mod portable {
    use super::{Array, Kem, MLKEM_CIPHERTEXT_BYTES, MLKEM_PUBLIC_BYTES, PublicKey, Secret, StaticSecret, ml_kem_768};
    use zeroize::Zeroize as _;

    pub(super) fn x25519_public(secret: &[u8; 32]) -> [u8; 32] {
        PublicKey::from(&StaticSecret::from(*secret)).to_bytes()
    }

    pub(super) fn x25519(secret: &[u8; 32], public: &[u8; 32]) -> Option<Secret<32>> {
        let shared = StaticSecret::from(*secret).diffie_hellman(&PublicKey::from(*public));
        shared.was_contributory().then(|| Secret::new(shared.to_bytes()))
    }

    pub(super) fn kem(seed: &[u8; 64]) -> Kem {
        Kem::Portable(Box::new(ml_kem_768::DecapsulationKey::from_seed(Array(*seed))))
    }

    pub(super) fn encapsulate(
        public: &[u8; MLKEM_PUBLIC_BYTES],
        message: &[u8; 32],
    ) -> Option<(Box<[u8; MLKEM_CIPHERTEXT_BYTES]>, Secret<32>)> {
        let key = ml_kem_768::EncapsulationKey::new(public.into()).ok()?;
        let (sealed, mut shared) = key.encapsulate_deterministic(message.into());
        let mut ciphertext = Box::new([0; MLKEM_CIPHERTEXT_BYTES]);
        ciphertext.copy_from_slice(&sealed);
        let secret = Secret::new(shared.into());
        shared.zeroize();
        Some((ciphertext, secret))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    fn bytes<const N: usize>() -> impl Strategy<Value = [u8; N]> {
        proptest::collection::vec(any::<u8>(), N).prop_map(|bytes| bytes.try_into().unwrap())
    }

    /// Both run here, or the comparison compares nothing.
    #[test]
    fn this_processor_runs_both() {
        assert!(is_fast(), "run the suite on a processor that has what graviola needs");
    }

    proptest! {
        #[test]
        fn x25519_gives_the_same_bytes_by_both(secret in bytes::<32>(), public in bytes::<32>()) {
            prop_assert_eq!(fast::x25519_public(&secret), portable::x25519_public(&secret));
            prop_assert!(fast::x25519(&secret, &public) == portable::x25519(&secret, &public));
        }

        #[test]
        fn ml_kem_gives_the_same_bytes_by_both(
            seed in bytes::<64>(), message in bytes::<32>(), place in 0..MLKEM_CIPHERTEXT_BYTES
        ) {
            let (one, other) = (KemKey(fast::kem(&seed)), KemKey(portable::kem(&seed)));
            let public = one.public();
            prop_assert_eq!(&public, &other.public());
            let (sealed, shared) = fast::encapsulate(&public, &message).unwrap();
            let (theirs, also) = portable::encapsulate(&public, &message).unwrap();
            prop_assert!(sealed == theirs && shared == also);
            prop_assert!(one.decapsulate(&sealed) == shared && other.decapsulate(&sealed) == shared);
            let mut changed = sealed;
            changed[place] ^= 1;
            prop_assert!(one.decapsulate(&changed) == other.decapsulate(&changed));
            prop_assert!(one.decapsulate(&changed) != shared);
        }

        #[test]
        fn any_bytes_are_a_kem_key_to_both_or_to_neither(
            seed in bytes::<64>(), message in bytes::<32>(), place in 0..MLKEM_PUBLIC_BYTES, value in any::<u8>()
        ) {
            let mut public = KemKey(fast::kem(&seed)).public();
            public[place] = value;
            let (one, other) = (fast::encapsulate(&public, &message), portable::encapsulate(&public, &message));
            prop_assert!(one == other);
        }
    }

    /// The points of low order on curve and twist, and their other encodings (RFC 7748, section 7; the list of the curve's author).
    #[test]
    fn keys_that_contribute_nothing_are_refused_by_both() {
        let mut points: Vec<[u8; 32]> = vec![[0; 32]];
        let mut one = [0; 32];
        one[0] = 1;
        points.push(one);
        for text in [
            "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
            "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        ] {
            points.push(hex::decode(text).unwrap().try_into().unwrap());
        }
        for point in points {
            assert!(fast::x25519(&[7; 32], &point).is_none(), "{}", hex::encode(point));
            assert!(portable::x25519(&[7; 32], &point).is_none(), "{}", hex::encode(point));
        }
    }
}
