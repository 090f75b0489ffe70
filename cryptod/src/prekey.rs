//! Prekeys: the X-Wing keys that others seal link offers to (PROTOCOL 1, 4), their rotation, and HPKE with them.
//!
//! The HPKE mode is Base, or PSK for an offer that renews a link, and is written here, never chosen by a request: the library's
//! authenticated modes panic with this KEM. Randomness and time are arguments. In: seeds from the state file, public keys from verified cards. Out: contexts for
//! `link/issue` and `link/accept`; the public half for the card.

use hpke::aead::{AeadCtxR, AeadCtxS, ChaCha20Poly1305};
use hpke::kdf::HkdfSha256;
use hpke::kem::{Kem as _, XWing};
use hpke::{Deserializable, OpModeR, OpModeS, PskBundle, Serializable};
use openred_proto::checked::card::{Prekey, prekey_id};
use openred_proto::id::{LinkId, PrekeyId, UnixMillis};
use openred_proto::limits::{
    CARD_LIFE, CLOCK_GRACE, PREKEY_KEEP, PREKEY_ROTATE, XWING_CIPHERTEXT_BYTES, XWING_PUBLIC_BYTES,
};
use openred_proto::secret::Secret;
use rand_core::CryptoRng;
use sha2::{Digest, Sha256};
use x25519_dalek::{PublicKey, StaticSecret};

use crate::error::{Error, Result};

type PrivateKey = <XWing as hpke::kem::Kem>::PrivateKey;
type PrekeyPublic = <XWing as hpke::kem::Kem>::PublicKey;
type EncappedKey = <XWing as hpke::kem::Kem>::EncappedKey;

/// Prekeys held at once: the current one and those of the last [`PREKEY_KEEP`], rotated every [`PREKEY_ROTATE`], one to
/// spare for a rotation that came late, and four for rotations that the operator orders.
pub const PREKEYS: usize = 8;
/// Bytes of the X25519 half at the end of an X-Wing public key or ciphertext.
const X25519_BYTES: usize = 32;

/// What the state file keeps of a prekey.
#[derive(Debug, PartialEq, Eq)]
pub struct PrekeyRecord {
    /// X-Wing decapsulation key (a 32-byte seed).
    pub seed: Secret<32>,
    /// When it was made.
    pub created: UnixMillis,
    /// When a newer one took its place; zero while it is the current one.
    pub superseded: UnixMillis,
}

/// A prekey ready for use: expanded once, kept.
struct Held {
    record: PrekeyRecord,
    private: PrivateKey,
    public: Prekey,
    hash: [u8; 32],
}

/// The prekeys of this node; the last one is the current one.
#[derive(Default)]
pub struct Prekeys {
    held: Vec<Held>,
}

impl Prekeys {
    /// Expands the prekeys of the state file.
    ///
    /// # Errors
    /// [`Error::Bug`] when a seed does not expand, which no 32 bytes do.
    pub fn from_records(records: Vec<PrekeyRecord>) -> Result<Self> {
        Ok(Self { held: records.into_iter().map(Held::expand).collect::<Result<_>>()? })
    }

    /// What the state file keeps, oldest first.
    pub fn records(&self) -> impl Iterator<Item = &PrekeyRecord> {
        self.held.iter().map(|held| &held.record)
    }

    /// Drops those past their time and makes a new one when the current one is old, or was made by a clock that ran ahead by
    /// more than the grace: nobody seals to a prekey whose time has not come. True when anything changed.
    ///
    /// # Errors
    /// [`Error::Bug`], as [`Prekeys::from_records`].
    pub fn rotate(&mut self, now: UnixMillis, random: &mut impl CryptoRng) -> Result<bool> {
        let before = self.held.len();
        self.held.retain(|held| held.record.superseded.0 == 0 || now < held.record.superseded.plus(PREKEY_KEEP));
        let dropped = self.held.len() != before;
        let fresh = self.held.last().is_some_and(|held| {
            let made = held.record.created;
            now < made.plus(PREKEY_ROTATE) && made <= now.plus(CLOCK_GRACE)
        });
        if fresh {
            return Ok(dropped);
        }
        self.replace(now, random)?;
        Ok(true)
    }

    /// Whether another may be made without giving up one that is still in its keeping.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.held.len() < PREKEYS
    }

    /// Makes a new one, whatever the age of the current one, which is kept for those who know it.
    ///
    /// # Errors
    /// [`Error::Bug`], as [`Prekeys::from_records`].
    pub fn replace(&mut self, now: UnixMillis, random: &mut impl CryptoRng) -> Result<()> {
        if let Some(current) = self.held.last_mut() {
            // Never before it was made: a clock that is set right again must not find it long past its keeping.
            current.record.superseded = now.max(current.record.created);
        }
        if self.held.len() == PREKEYS {
            self.held.remove(0);
        }
        let mut seed = [0; 32];
        random.fill_bytes(&mut seed);
        let record = PrekeyRecord { seed: Secret::new(seed), created: now, superseded: UnixMillis(0) };
        zeroize::Zeroize::zeroize(&mut seed);
        self.held.push(Held::expand(record)?);
        Ok(())
    }

    /// The current public prekey, for the card.
    ///
    /// # Errors
    /// [`Error::Bug`] before the first [`Prekeys::rotate`].
    pub fn current(&self) -> Result<&Prekey> {
        self.held.last().map(|held| &held.public).ok_or(Error::Bug("no prekey was made yet"))
    }

    /// SHA-256 of the public prekey named `id`.
    ///
    /// # Errors
    /// [`Error::PeerUnknownPrekey`].
    pub fn hash(&self, id: &PrekeyId) -> Result<[u8; 32]> {
        self.find(id).map(|held| held.hash)
    }

    /// `SetupBaseR` with the prekey named `id`, or `SetupPSKR` where there is a psk.
    ///
    /// # Errors
    /// [`Error::PeerUnknownPrekey`]; [`Error::PeerOfferSealed`] for an `enc` that is none; [`Error::AllZero`] for one of low
    /// order.
    pub fn open(&self, id: &PrekeyId, enc: &[u8], info: &[u8], psk: Option<&Psk>) -> Result<Receiver> {
        let held = self.find(id)?;
        if enc.len() != XWING_CIPHERTEXT_BYTES {
            return Err(Error::PeerOfferSealed);
        }
        refuse_low_order(enc)?;
        let enc = EncappedKey::from_bytes(enc).map_err(|_| Error::PeerOfferSealed)?;
        let mode = match psk {
            Some(psk) => OpModeR::Psk(psk.bundle()?),
            None => OpModeR::Base,
        };
        let context = hpke::setup_receiver::<ChaCha20Poly1305, HkdfSha256, XWing>(&mode, &held.private, &enc, info);
        Ok(Receiver { context: context.map_err(|_| Error::PeerOfferSealed)? })
    }

    fn find(&self, id: &PrekeyId) -> Result<&Held> {
        self.held.iter().find(|held| held.public.id == *id).ok_or(Error::PeerUnknownPrekey)
    }
}

impl Held {
    fn expand(record: PrekeyRecord) -> Result<Self> {
        let private =
            PrivateKey::from_bytes(record.seed.expose()).map_err(|_| Error::Bug("an X-Wing seed is 32 bytes"))?;
        let key = XWing::sk_to_pk(&private).to_bytes().to_vec();
        let public = Prekey {
            id: prekey_id(&key),
            not_before: record.created,
            // The last card that names it is signed when it is PREKEY_ROTATE old and lives CARD_LIFE; it is kept longer.
            not_after: record.created.plus(PREKEY_ROTATE).plus(CARD_LIFE),
            key,
        };
        let hash = Sha256::digest(&public.key).into();
        Ok(Self { record, private, public, hash })
    }
}

/// The pre-shared key of an offer that renews a link.
pub struct Psk {
    /// The link that is renewed: the key's id, in clear in the routing header.
    pub link: LinkId,
    /// Of the link's base ([`crate::link::derive::renewal_psk`]).
    pub secret: Secret<32>,
}

impl Psk {
    fn bundle(&self) -> Result<PskBundle<'_>> {
        PskBundle::new(self.secret.expose(), self.link.as_bytes())
            .map_err(|_| Error::Bug("a psk and its id are not empty"))
    }
}

/// The sender's half of one HPKE context.
pub struct Sender {
    /// The encapsulated key, 1,120 bytes.
    pub enc: Vec<u8>,
    context: AeadCtxS<ChaCha20Poly1305, HkdfSha256, XWing>,
}

impl Sender {
    /// `SetupBaseS` to a recipient's prekey, or `SetupPSKS` where there is a psk.
    ///
    /// # Errors
    /// [`Error::PeerStatement`] for a key that is none; [`Error::AllZero`] for one of low order.
    pub fn setup(public: &[u8], info: &[u8], psk: Option<&Psk>, random: &mut impl CryptoRng) -> Result<Self> {
        let malformed = openred_proto::error::WireError::Malformed { what: "prekey", why: "not an X-Wing key" };
        if public.len() != XWING_PUBLIC_BYTES {
            return Err(malformed.into());
        }
        refuse_low_order(public)?;
        let public = PrekeyPublic::from_bytes(public).map_err(|_| malformed)?;
        let mode = match psk {
            Some(psk) => OpModeS::Psk(psk.bundle()?),
            None => OpModeS::Base,
        };
        let setup = hpke::setup_sender_with_rng::<ChaCha20Poly1305, HkdfSha256, XWing>(&mode, &public, info, random);
        let (enc, context) = setup.map_err(|_| malformed)?;
        Ok(Self { enc: enc.to_bytes().to_vec(), context })
    }

    /// Seals the one message of this context.
    ///
    /// # Errors
    /// [`Error::Bug`]: the first message of a context always has a nonce left.
    pub fn seal(mut self, aad: &[u8], plaintext: &[u8]) -> Result<Vec<u8>> {
        self.context.seal(plaintext, aad).map_err(|_| Error::Bug("the first HPKE message could not be sealed"))
    }

    /// `Export(label, 32)`.
    ///
    /// # Errors
    /// [`Error::Bug`]: 32 bytes are always available.
    pub fn export(&self, label: &[u8]) -> Result<Secret<32>> {
        let mut out = [0; 32];
        self.context.export(label, &mut out).map_err(|_| Error::Bug("HPKE export of 32 bytes failed"))?;
        Ok(Secret::new(out))
    }
}

/// The receiver's half of one HPKE context.
pub struct Receiver {
    context: AeadCtxR<ChaCha20Poly1305, HkdfSha256, XWing>,
}

impl Receiver {
    /// Opens the one message of this context.
    ///
    /// # Errors
    /// [`Error::PeerOfferSealed`].
    pub fn open(&mut self, aad: &[u8], sealed: &[u8]) -> Result<zeroize::Zeroizing<Vec<u8>>> {
        self.context.open(sealed, aad).map(zeroize::Zeroizing::new).map_err(|_| Error::PeerOfferSealed)
    }

    /// `Export(label, 32)`.
    ///
    /// # Errors
    /// [`Error::Bug`]: 32 bytes are always available.
    pub fn export(&self, label: &[u8]) -> Result<Secret<32>> {
        let mut out = [0; 32];
        self.context.export(label, &mut out).map_err(|_| Error::Bug("HPKE export of 32 bytes failed"))?;
        Ok(Secret::new(out))
    }
}

// PROTOCOL 4: low-order results abort. The library accepts them, so the X25519 half is tried with a fixed scalar first: a
// clamped scalar is a multiple of the cofactor, so a point of low order gives zero with every scalar and others with none.
fn refuse_low_order(key_or_ciphertext: &[u8]) -> Result<()> {
    let half = key_or_ciphertext.split_last_chunk::<X25519_BYTES>().ok_or(Error::AllZero)?.1;
    let shared = StaticSecret::from([1; 32]).diffie_hellman(&PublicKey::from(*half));
    if shared.was_contributory() { Ok(()) } else { Err(Error::AllZero) }
}

#[cfg(test)]
#[path = "prekey_tests.rs"]
mod tests;
