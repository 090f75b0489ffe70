//! The primitives that Noise asks for, X25519 as the crate has it, and of one generation of RustCrypto two AEADs and four hashes.
//!
//! Nothing here draws randomness: the one ephemeral secret of a handshake is drawn by the vault's generator and handed in,
//! and a second draw is an error. Keys, hash states and the ephemeral are wiped when dropped. A Diffie-Hellman result that
//! the peer's key did not contribute to (low order, all zero) aborts the handshake (PROTOCOL 4).

use std::marker::PhantomData;
use std::sync::Mutex;

use aes_gcm::Aes256Gcm;
use blake2::{Blake2b512, Blake2s256};
use chacha20poly1305::ChaCha20Poly1305;
use chacha20poly1305::aead::{AeadInOut, KeyInit, consts};
use openred_proto::secret::Secret;
use sha2::digest::FixedOutputReset;
use sha2::{Digest, Sha256, Sha512};
use snow::Error;
use snow::params::{CipherChoice, DHChoice, HashChoice};
use snow::resolvers::CryptoResolver;
use snow::types::{Cipher, Dh, Hash, Random};
use zeroize::Zeroizing;

use crate::agreement;

/// AEAD tag of both ciphers.
const TAG_BYTES: usize = 16;

/// Gives Noise its primitives and, once, the ephemeral secret it was made with.
pub(super) struct Resolver {
    ephemeral: Mutex<Option<Secret<32>>>,
}

impl Resolver {
    pub(super) const fn new(ephemeral: Secret<32>) -> Self {
        Self { ephemeral: Mutex::new(Some(ephemeral)) }
    }
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        let ephemeral = self.ephemeral.lock().ok()?.take();
        Some(Box::new(OneDraw(ephemeral)))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        match choice {
            DHChoice::Curve25519 => Some(Box::new(X25519::default())),
            _ => None,
        }
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        Some(match choice {
            HashChoice::SHA256 => Box::new(Hasher::<Sha256, 64>::new("SHA256")),
            HashChoice::SHA512 => Box::new(Hasher::<Sha512, 128>::new("SHA512")),
            HashChoice::Blake2s => Box::new(Hasher::<Blake2s256, 64>::new("BLAKE2s")),
            HashChoice::Blake2b => Box::new(Hasher::<Blake2b512, 128>::new("BLAKE2b")),
        })
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        match choice {
            CipherChoice::ChaChaPoly => Some(Box::new(Aead::<ChaCha20Poly1305>::new("ChaChaPoly", u64::to_le_bytes))),
            CipherChoice::AESGCM => Some(Box::new(Aead::<Aes256Gcm>::new("AESGCM", u64::to_be_bytes))),
            #[allow(unreachable_patterns, reason = "another crate may switch on one of snow's additional ciphers")]
            _ => None,
        }
    }
}

/// The randomness of one handshake: the 32 bytes that were drawn for its ephemeral key.
struct OneDraw(Option<Secret<32>>);

impl Random for OneDraw {
    fn try_fill_bytes(&mut self, destination: &mut [u8]) -> Result<(), Error> {
        let drawn = self.0.take().ok_or(Error::Rng)?;
        if destination.len() != drawn.expose().len() {
            return Err(Error::Rng);
        }
        destination.copy_from_slice(drawn.expose());
        Ok(())
    }
}

/// RFC 7748 with the contributory check.
#[derive(Default)]
struct X25519 {
    secret: Option<Secret<32>>,
    public: [u8; 32],
}

impl X25519 {
    fn take(&mut self, secret: Secret<32>) {
        self.public = agreement::x25519_public(secret.expose());
        self.secret = Some(secret);
    }
}

impl Dh for X25519 {
    fn name(&self) -> &'static str {
        "25519"
    }

    fn pub_len(&self) -> usize {
        32
    }

    fn priv_len(&self) -> usize {
        32
    }

    fn set(&mut self, secret: &[u8]) {
        let mut bytes = Zeroizing::new([0; 32]);
        bytes.copy_from_slice(secret);
        self.take(Secret::new(*bytes));
    }

    fn generate(&mut self, random: &mut dyn Random) -> Result<(), Error> {
        let mut bytes = Zeroizing::new([0; 32]);
        random.try_fill_bytes(&mut *bytes)?;
        self.take(Secret::new(*bytes));
        Ok(())
    }

    fn pubkey(&self) -> &[u8] {
        &self.public
    }

    fn privkey(&self) -> &[u8] {
        self.secret.as_ref().map_or(&[], |secret| secret.expose())
    }

    fn dh(&self, public: &[u8], out: &mut [u8]) -> Result<(), Error> {
        // snow keeps remote keys in buffers of its longest curve; ours is their first 32 bytes.
        let public: &[u8; 32] = public.get(..32).and_then(|bytes| bytes.try_into().ok()).ok_or(Error::Dh)?;
        let shared = agreement::x25519(self.secret.as_ref().ok_or(Error::Dh)?.expose(), public).ok_or(Error::Dh)?;
        out.get_mut(..32).ok_or(Error::Dh)?.copy_from_slice(shared.expose());
        Ok(())
    }
}

/// An AEAD with 96-bit nonces; the two of Noise differ in the order of the counter's bytes (Noise, section 12).
struct Aead<C> {
    name: &'static str,
    counter_bytes: fn(u64) -> [u8; 8],
    key: Zeroizing<[u8; 32]>,
    cipher: PhantomData<fn() -> C>,
}

impl<C> Aead<C> {
    fn new(name: &'static str, counter_bytes: fn(u64) -> [u8; 8]) -> Self {
        Self { name, counter_bytes, key: Zeroizing::new([0; 32]), cipher: PhantomData }
    }

    fn nonce(&self, counter: u64) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&(self.counter_bytes)(counter));
        nonce
    }
}

impl<C> Cipher for Aead<C>
where
    C: AeadInOut<NonceSize = consts::U12, TagSize = consts::U16> + KeyInit<KeySize = consts::U32>,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn set(&mut self, key: &[u8; 32]) {
        self.key.copy_from_slice(key);
    }

    fn encrypt(&self, counter: u64, associated: &[u8], plaintext: &[u8], out: &mut [u8]) -> usize {
        let (body, tag) = out[..plaintext.len() + TAG_BYTES].split_at_mut(plaintext.len());
        body.copy_from_slice(plaintext);
        let sealed = C::new((&*self.key).into())
            .encrypt_inout_detached((&self.nonce(counter)).into(), associated, body.into())
            .expect("a handshake message is far below the AEAD's limit of 64 GiB");
        tag.copy_from_slice(&sealed);
        plaintext.len() + TAG_BYTES
    }

    fn decrypt(&self, counter: u64, associated: &[u8], sealed: &[u8], out: &mut [u8]) -> Result<usize, Error> {
        let length = sealed.len().checked_sub(TAG_BYTES).ok_or(Error::Decrypt)?;
        let (body, tag) = sealed.split_at(length);
        let tag: &[u8; TAG_BYTES] = tag.try_into().map_err(|_| Error::Decrypt)?;
        let out = out.get_mut(..length).ok_or(Error::Decrypt)?;
        out.copy_from_slice(body);
        C::new((&*self.key).into())
            .decrypt_inout_detached((&self.nonce(counter)).into(), associated, out.into(), tag.into())
            .map_err(|_| Error::Decrypt)?;
        Ok(length)
    }
}

/// A hash with its block length, which HMAC inside Noise needs.
struct Hasher<D, const BLOCK: usize> {
    name: &'static str,
    state: D,
}

impl<D: Digest, const BLOCK: usize> Hasher<D, BLOCK> {
    fn new(name: &'static str) -> Self {
        Self { name, state: D::new() }
    }
}

impl<D: Digest + FixedOutputReset + Send + Sync, const BLOCK: usize> Hash for Hasher<D, BLOCK> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn block_len(&self) -> usize {
        BLOCK
    }

    fn hash_len(&self) -> usize {
        <D as Digest>::output_size()
    }

    fn reset(&mut self) {
        Digest::reset(&mut self.state);
    }

    fn input(&mut self, bytes: &[u8]) {
        Digest::update(&mut self.state, bytes);
    }

    fn result(&mut self, out: &mut [u8]) {
        let digest = self.state.finalize_reset();
        out[..digest.len()].copy_from_slice(&digest);
    }
}
