//! What the vault must never say: its long-term secrets, derived and read a second time here, independently of it.

use std::collections::HashSet;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hkdf::Hkdf;
use openred_cryptod::keyring::SECRETS_BYTES;
use openred_cryptod::state::image::{HEADER_BYTES, RECORD_BYTES};
use openred_proto::concat::concat;
use openred_proto::id::NodeId;
use openred_proto::label::derive;
use openred_proto::secret::Secret;
use sha2::{Digest, Sha256};

/// Bytes of a slot that are not the record: nonce and tag.
const OVERHEAD: usize = 24 + 16;
/// A window of the state that repeats itself more than this is padding or numbers, no key.
const DISTINCT: usize = 20;

/// A node's secrets as its keystore would hold them; no two bytes of them in a row are alike.
pub(crate) fn secrets(seed: u8) -> [u8; SECRETS_BYTES] {
    let mut secrets = [0; SECRETS_BYTES];
    for (half, bytes) in secrets.chunks_mut(32).enumerate() {
        bytes.copy_from_slice(&Sha256::digest([seed, half as u8]));
    }
    secrets
}

/// A place of the state file.
#[derive(Clone, Copy)]
pub(crate) enum Slot {
    Header(u8),
    Record(u16, u8),
}

impl Slot {
    /// Bytes of a record in this slot.
    pub(crate) fn room(self) -> usize {
        self.place().len() - OVERHEAD
    }

    fn associated(self) -> Vec<u8> {
        match self {
            Slot::Header(slot) => concat(&[derive::STATE, b"header", &[slot]]),
            Slot::Record(index, slot) => concat(&[derive::STATE, b"record", &index.to_be_bytes(), &[slot]]),
        }
    }

    pub(crate) fn place(self) -> std::ops::Range<usize> {
        match self {
            Slot::Header(slot) => usize::from(slot) * HEADER_BYTES..(usize::from(slot) + 1) * HEADER_BYTES,
            Slot::Record(index, slot) => {
                let start = 2 * HEADER_BYTES + (usize::from(index) * 2 + usize::from(slot)) * RECORD_BYTES;
                start..start + RECORD_BYTES
            }
        }
    }
}

/// What one node keeps to itself.
pub(crate) struct Oracle {
    state: [u8; 32],
    hidden: HashSet<[u8; 32]>,
}

impl Oracle {
    pub(crate) fn new(secrets: &[u8; SECRETS_BYTES], node: NodeId) -> Self {
        let (seed, root) = secrets.split_at(32);
        let expand = |purpose: &[u8]| {
            let mut key = [0; 32];
            let info = concat(&[purpose, node.as_bytes()]);
            Hkdf::<Sha256>::from_prk(root).unwrap().expand(&info, &mut key).unwrap();
            key
        };
        let state = expand(derive::STATE);
        let derived = [derive::ROW, derive::STORE, b"openred/1/schedule"].map(expand);
        let given = [seed, root].map(|half| half.try_into().unwrap());
        Self { state, hidden: derived.into_iter().chain(given).chain([state]).collect() }
    }

    /// The key that the state file is sealed with.
    pub(crate) const fn state_key(&self) -> Secret<32> {
        Secret::new(self.state)
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        XChaCha20Poly1305::new(&self.state.into())
    }

    /// Seals `plain` for `slot` of the state file, as nobody but the vault could.
    pub(crate) fn seal(&self, slot: Slot, plain: &[u8]) -> Vec<u8> {
        let mut plain = plain.to_vec();
        plain.resize(slot.room(), 0);
        let sealed = self.cipher().encrypt(&XNonce::from([1; 24]), Payload { msg: &plain, aad: &slot.associated() });
        [&[1; 24][..], &sealed.unwrap()].concat()
    }

    /// The record in `slot` of the file, if it opens.
    pub(crate) fn open(&self, slot: Slot, file: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = file.get(slot.place())?.split_first_chunk::<24>()?;
        let payload = Payload { msg: sealed, aad: &slot.associated() };
        self.cipher().decrypt(&XNonce::from(*nonce), payload).ok()
    }

    /// Everything in the file's headers that could be a key is hidden from now on.
    ///
    /// # Panics
    /// When no header opens: then this is no reading of the vault's file any more.
    pub(crate) fn learn(&mut self, file: &[u8]) {
        let mut opened = 0;
        for slot in [0, 1].map(Slot::Header) {
            if let Some(plain) = self.open(slot, file) {
                opened += 1;
                let keys = plain.windows(32).filter(|window| window.iter().collect::<HashSet<_>>().len() >= DISTINCT);
                self.hidden.extend(keys.map(|window| <[u8; 32]>::try_from(window).unwrap()));
            }
        }
        assert!(opened > 0, "the state file is laid out in another way: this oracle no longer sees its keys");
    }

    /// # Panics
    /// When `said` has one of the secrets in it.
    pub(crate) fn watch(&self, said: &[u8]) {
        for window in said.windows(32) {
            assert!(!self.hidden.contains(window), "a long-term secret left the vault");
        }
    }
}
