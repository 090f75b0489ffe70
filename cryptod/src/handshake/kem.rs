//! The post-quantum half of a handshake: an ephemeral ML-KEM-768 key in REQUEST, a ciphertext in VERIFY, psk3 from both.
//!
//! Randomness is an argument. A ciphertext that was not made for the key yields another secret (implicit rejection, FIPS
//! 203), so a substitution shows as a Noise message that does not authenticate, never as an answer of its own.

use openred_proto::limits::{MLKEM_CIPHERTEXT_BYTES, MLKEM_PUBLIC_BYTES};
use openred_proto::secret::Secret;
use rand_core::CryptoRng;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use hkdf::Hkdf;
use openred_proto::concat::concat;
use openred_proto::label::derive;

use crate::agreement::{self, KemKey};

/// An initiator's ephemeral key pair; wiped when dropped.
pub(crate) struct EphemeralKem {
    secret: KemKey,
    public: Box<[u8; MLKEM_PUBLIC_BYTES]>,
}

impl EphemeralKem {
    /// Draws a key pair.
    pub(crate) fn generate(random: &mut impl CryptoRng) -> Self {
        let mut seed = Zeroizing::new([0; 64]);
        random.fill_bytes(&mut *seed);
        let secret = KemKey::from_seed(&seed);
        let public = secret.public();
        Self { secret, public }
    }

    /// The encapsulation key as sent in REQUEST.
    pub(crate) fn public(&self) -> &[u8; MLKEM_PUBLIC_BYTES] {
        &self.public
    }

    /// psk3 from the ciphertext in VERIFY.
    pub(crate) fn psk3(&self, ciphertext: &[u8; MLKEM_CIPHERTEXT_BYTES]) -> Secret<32> {
        derive_psk3(self.secret.decapsulate(ciphertext).expose(), self.public(), ciphertext)
    }
}

/// Responder: a ciphertext to the key in REQUEST, and psk3. None when the key is not a valid encapsulation key (FIPS 203, 7.2).
pub(crate) fn encapsulate(
    random: &mut impl CryptoRng,
    public: &[u8; MLKEM_PUBLIC_BYTES],
) -> Option<(Box<[u8; MLKEM_CIPHERTEXT_BYTES]>, Secret<32>)> {
    let mut message = Zeroizing::new([0; 32]);
    random.fill_bytes(&mut *message);
    let (ciphertext, shared) = agreement::encapsulate(public, &message)?;
    let psk3 = derive_psk3(shared.expose(), public, &ciphertext);
    Some((ciphertext, psk3))
}

/// psk3 = HKDF(ML-KEM shared secret, SHA-256(key), SHA-256(ciphertext)): bound to what was sent, not to the secret alone.
pub(super) fn derive_psk3(
    shared: &[u8],
    public: &[u8; MLKEM_PUBLIC_BYTES],
    ciphertext: &[u8; MLKEM_CIPHERTEXT_BYTES],
) -> Secret<32> {
    let info = concat(&[derive::PSK3, &Sha256::digest(public), &Sha256::digest(ciphertext)]);
    let mut psk3 = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::new(None, shared).expand(&info, &mut *psk3).expect("32 bytes are within HKDF's bound");
    Secret::new(*psk3)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    use super::*;

    #[test]
    fn both_sides_hold_one_key_and_any_change_gives_another() {
        let mut random = ChaCha20Rng::from_seed([7; 32]);
        let key = EphemeralKem::generate(&mut random);
        let (ciphertext, theirs) = encapsulate(&mut random, key.public()).unwrap();
        assert!(key.psk3(&ciphertext) == theirs);
        let mut changed = ciphertext.clone();
        changed[500] ^= 1;
        assert!(key.psk3(&changed) != theirs);
        let other = EphemeralKem::generate(&mut random);
        assert!(other.psk3(&ciphertext) != theirs);
    }

    #[test]
    fn a_key_with_a_coefficient_over_the_modulus_is_refused() {
        let mut random = ChaCha20Rng::from_seed([8; 32]);
        assert!(encapsulate(&mut random, &[0xff; MLKEM_PUBLIC_BYTES]).is_none());
    }
}
