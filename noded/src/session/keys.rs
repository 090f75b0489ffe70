//! Keys of a session: one secret per direction becomes a tag and, per stream, a key of its own (PROTOCOL 6).
//!
//! The secret of a direction belongs to the side that sends in it. A stream's key depends on its kind, opener and number,
//! and each number is sealed once (`numbers`), so no key seals two messages; inside a stream the nonce is the chunk's
//! counter and the last-chunk flag (STREAM, RFC-less: Hoang, Reyhanitabar, Rogaway, Vizár 2015).

use bytes::BytesMut;
use hkdf::Hkdf;
use openred_proto::checked::session::StreamName;
use openred_proto::concat::concat;
use openred_proto::label::derive;
use openred_proto::method::Method;
use openred_proto::secret::Secret;
use ring::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::error::Unspecified;
use sha2::Sha256;
use zeroize::Zeroize as _;

/// Length of a session tag.
pub(crate) const TAG_LENGTH: usize = 16;
/// A session tag: names a session and direction to its two parties.
pub(crate) type SessionTag = [u8; TAG_LENGTH];
/// Where STREAM's nonce has the chunk's counter, after a prefix. That is zero: keys are unique per stream, so it has nothing left to separate.
const COUNTER_AT: usize = 7;

/// The secret of one direction and what follows from it.
#[derive(Debug)]
pub(crate) struct DirectionKeys {
    expander: Expander,
    tag: SessionTag,
    aes: bool,
}

/// HKDF-Expand from one secret; kept keyed so that a stream costs one HMAC.
struct Expander(Hkdf<Sha256>);

impl std::fmt::Debug for Expander {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("<secret>")
    }
}

impl DirectionKeys {
    /// Takes a direction's secret over; `method` decides the AEAD.
    pub(crate) fn new(secret: &Secret<32>, method: Method) -> Self {
        let hkdf = Hkdf::from_prk(secret.expose()).expect("32 bytes are a whole SHA-256 output");
        let mut tag = [0; TAG_LENGTH];
        hkdf.expand(derive::SESSION_TAG, &mut tag).expect("16 bytes are under HKDF's limit");
        Self { expander: Expander(hkdf), tag, aes: method.is_aes() }
    }

    /// The tag that names this direction on the wire.
    pub(crate) const fn tag(&self) -> &SessionTag {
        &self.tag
    }

    /// The cipher of one stream that this direction's side sends.
    pub(crate) fn stream(&self, name: StreamName) -> StreamCipher {
        let (kind, opener, number) = ([name.kind as u8], [name.opener as u8], name.number.to_be_bytes());
        let mut key = [0; 32];
        let info = concat(&[derive::STREAM, &kind, &opener, &number]);
        self.expander.0.expand(&info, &mut key).expect("32 bytes are under HKDF's limit");
        let associated = concat(&[&self.tag, &kind, &opener, &number]);
        let cipher = StreamCipher::new(&key, self.aes, associated);
        key.zeroize();
        cipher
    }
}

/// One stream's key and the data that each of its chunks is bound to.
pub(crate) struct StreamCipher {
    // Boxed: an expanded AES key is half a kilobyte, and streams travel through futures. The library does not wipe it; the node's
    // allocator does (decision 0020).
    aead: Box<LessSafeKey>,
    associated: Vec<u8>,
    #[cfg(test)]
    key: [u8; 32],
}

impl std::fmt::Debug for StreamCipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StreamCipher(<secret>)")
    }
}

impl StreamCipher {
    fn new(key: &[u8; 32], aes: bool, associated: Vec<u8>) -> Self {
        let algorithm = if aes { &AES_256_GCM } else { &CHACHA20_POLY1305 };
        let unbound = UnboundKey::new(algorithm, key).expect("32 bytes are a key of either");
        Self {
            aead: Box::new(LessSafeKey::new(unbound)),
            associated,
            #[cfg(test)]
            key: *key,
        }
    }

    /// Seals `chunk` in place at `position`; the AEAD's tag is appended.
    pub(super) fn seal(&self, position: u32, last: bool, chunk: &mut BytesMut) -> Result<(), Unspecified> {
        #[cfg(test)]
        ledger::record(self.key, position, last);
        let tag = self.aead.seal_in_place_separate_tag(nonce(position, last), Aad::from(&self.associated), chunk)?;
        chunk.extend_from_slice(tag.as_ref());
        Ok(())
    }

    /// Opens `chunk` in place; the AEAD's tag is cut off.
    pub(super) fn open(&self, position: u32, last: bool, chunk: &mut BytesMut) -> Result<(), Unspecified> {
        let length = self.aead.open_in_place(nonce(position, last), Aad::from(&self.associated), chunk)?.len();
        chunk.truncate(length);
        Ok(())
    }
}

/// STREAM's nonce of a chunk: its counter and whether it is the last.
fn nonce(position: u32, last: bool) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[COUNTER_AT..NONCE_LEN - 1].copy_from_slice(&position.to_be_bytes());
    nonce[NONCE_LEN - 1] = last.into();
    Nonce::assume_unique_for_key(nonce)
}

/// Every (key, nonce) that this thread sealed with, for the test that none comes twice.
#[cfg(test)]
pub(super) mod ledger {
    use std::cell::RefCell;

    thread_local! {
        static SEALED: RefCell<Vec<([u8; 32], u32, bool)>> = const { RefCell::new(Vec::new()) };
    }

    pub(super) fn record(key: [u8; 32], position: u32, last: bool) {
        SEALED.with_borrow_mut(|sealed| sealed.push((key, position, last)));
    }

    pub(in crate::session) fn take() -> Vec<([u8; 32], u32, bool)> {
        SEALED.take()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use aead_stream::aead::KeyInit as _;
    use aead_stream::{NewStream as _, StreamBE32, StreamPrimitive as _};
    use aes_gcm::Aes256Gcm;
    use chacha20poly1305::ChaCha20Poly1305;
    use proptest::prelude::*;

    use super::*;

    /// What the RustCrypto crates make of a chunk: STREAM as its authors' library has it.
    fn reference(key: [u8; 32], aes: bool, position: u32, last: bool, associated: &[u8], chunk: &[u8]) -> Vec<u8> {
        let (mut sealed, prefix) = (chunk.to_vec(), [0; COUNTER_AT]);
        let done = if aes {
            let stream = StreamBE32::from_aead(Aes256Gcm::new(&key.into()), &prefix.into());
            stream.encrypt_in_place(position, last, associated, &mut sealed)
        } else {
            let stream = StreamBE32::from_aead(ChaCha20Poly1305::new(&key.into()), &prefix.into());
            stream.encrypt_in_place(position, last, associated, &mut sealed)
        };
        done.unwrap();
        sealed
    }

    proptest! {
        #[test]
        fn chunks_are_those_of_the_reference(
            key in any::<[u8; 32]>(), aes in any::<bool>(), position in any::<u32>(), last in any::<bool>(),
            associated in proptest::collection::vec(any::<u8>(), 0..64),
            chunk in proptest::collection::vec(any::<u8>(), 0..5000), place in any::<prop::sample::Index>()
        ) {
            let cipher = StreamCipher::new(&key, aes, associated.clone());
            let mut sealed = BytesMut::from(&chunk[..]);
            cipher.seal(position, last, &mut sealed).unwrap();
            let expected = reference(key, aes, position, last, &associated, &chunk);
            prop_assert_eq!(&sealed[..], &expected[..]);
            let mut changed = sealed.clone();
            changed[place.index(sealed.len())] ^= 1;
            prop_assert!(cipher.open(position, last, &mut changed).is_err());
            prop_assert!(cipher.open(position, !last, &mut sealed.clone()).is_err());
            prop_assert!(cipher.open(position.wrapping_add(1), last, &mut sealed.clone()).is_err());
            cipher.open(position, last, &mut sealed).unwrap();
            prop_assert_eq!(&sealed[..], &chunk[..]);
        }
    }

    #[test]
    fn less_than_a_tag_is_refused() {
        let cipher = StreamCipher::new(&[1; 32], true, Vec::new());
        for length in 0..16 {
            assert!(cipher.open(0, true, &mut BytesMut::zeroed(length)).is_err(), "{length}");
        }
    }
}
