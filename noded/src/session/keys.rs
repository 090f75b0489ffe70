//! Keys of a session: one secret per direction becomes a tag and, per stream, a key of its own (PROTOCOL 6).
//!
//! The secret of a direction belongs to the side that sends in it. A stream's key depends on its kind, opener and number,
//! and each number is sealed once (`numbers`), so no key seals two messages; inside a stream the nonce is the chunk's
//! counter and the last-chunk flag (STREAM, RFC-less: Hoang, Reyhanitabar, Rogaway, Vizár 2015).

use aead_stream::aead::{self, Buffer, KeyInit};
use aead_stream::{NewStream, StreamBE32, StreamPrimitive};
use aes_gcm::Aes256Gcm;
use bytes::BytesMut;
use chacha20poly1305::ChaCha20Poly1305;
use hkdf::Hkdf;
use openred_proto::checked::session::StreamName;
use openred_proto::concat::concat;
use openred_proto::label::derive;
use openred_proto::method::Method;
use openred_proto::secret::Secret;
use sha2::Sha256;
use zeroize::Zeroize as _;

/// Length of a session tag.
pub(crate) const TAG_LENGTH: usize = 16;
/// A session tag: names a session and direction to its two parties.
pub(crate) type SessionTag = [u8; TAG_LENGTH];
/// STREAM's nonce prefix. Zero: keys are unique per stream, so the prefix has nothing left to separate.
const NONCE_PREFIX: [u8; 7] = [0; 7];

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
    aead: Aead,
    associated: Vec<u8>,
    #[cfg(test)]
    key: [u8; 32],
}

/// The two AEADs of version 1. Boxed: an expanded AES key is a kilobyte, and streams travel through futures.
enum Aead {
    Aes(Box<StreamBE32<Aes256Gcm>>),
    ChaCha(Box<StreamBE32<ChaCha20Poly1305>>),
}

impl std::fmt::Debug for StreamCipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StreamCipher(<secret>)")
    }
}

impl StreamCipher {
    fn new(key: &[u8; 32], aes: bool, associated: Vec<u8>) -> Self {
        let prefix = NONCE_PREFIX.into();
        let aead = if aes {
            Aead::Aes(Box::new(StreamBE32::from_aead(Aes256Gcm::new(key.into()), &prefix)))
        } else {
            Aead::ChaCha(Box::new(StreamBE32::from_aead(ChaCha20Poly1305::new(key.into()), &prefix)))
        };
        Self {
            aead,
            associated,
            #[cfg(test)]
            key: *key,
        }
    }

    /// Seals `chunk` in place at `position`; the AEAD's tag is appended.
    pub(super) fn seal(&self, position: u32, last: bool, chunk: &mut BytesMut) -> aead::Result<()> {
        #[cfg(test)]
        ledger::record(self.key, position, last);
        let chunk = &mut InPlace(chunk);
        match &self.aead {
            Aead::Aes(stream) => stream.encrypt_in_place(position, last, &self.associated, chunk),
            Aead::ChaCha(stream) => stream.encrypt_in_place(position, last, &self.associated, chunk),
        }
    }

    /// Opens `chunk` in place; the AEAD's tag is cut off.
    pub(super) fn open(&self, position: u32, last: bool, chunk: &mut BytesMut) -> aead::Result<()> {
        let chunk = &mut InPlace(chunk);
        match &self.aead {
            Aead::Aes(stream) => stream.decrypt_in_place(position, last, &self.associated, chunk),
            Aead::ChaCha(stream) => stream.decrypt_in_place(position, last, &self.associated, chunk),
        }
    }
}

/// Lets the AEAD crates work on a `BytesMut` without a feature that would reach the key process.
struct InPlace<'a>(&'a mut BytesMut);

impl AsRef<[u8]> for InPlace<'_> {
    fn as_ref(&self) -> &[u8] {
        self.0
    }
}

impl AsMut<[u8]> for InPlace<'_> {
    fn as_mut(&mut self) -> &mut [u8] {
        self.0
    }
}

impl Buffer for InPlace<'_> {
    fn extend_from_slice(&mut self, other: &[u8]) -> aead::Result<()> {
        self.0.extend_from_slice(other);
        Ok(())
    }

    fn truncate(&mut self, length: usize) {
        self.0.truncate(length);
    }
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
