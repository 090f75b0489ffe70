//! What a keystore holds: a versioned payload, bound to the node id, in a plain age file (`envelope`).
//!
//! The payload is a message of the contract's canonical encoding: version, node id, identity seed, storage root, and since
//! version 2 when the identity was made and whom the file was sealed to, since version 3 which identities it goes on for. The
//! node id stands in it so that a file with another's key is refused. Earlier versions are still read; what is written is
//! version 3.

use std::io::{Read, Write};

use ed25519_dalek::SigningKey;
use openred_proto::checked::succession::{Lineage, Step, Succession};
use openred_proto::fields::{Reader, Writer};
use openred_proto::id::{NodeId, UnixMillis};
use openred_proto::limits::TAKE_BACK;
use openred_proto::secret::Secret;
use openred_proto::unseal::{About, RECIPIENT_BYTES, RECIPIENTS};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use super::Failure;
use super::envelope::{self, Seal};
use crate::identity::Identity;
use crate::keyring::{Descent, SECRETS_BYTES};

/// Payload version of this build.
const VERSION: u64 = 3;
/// Longest payload: ids and keys, eight recipients and a lineage, with room for a later version's fields, which is then named
/// as such.
const PAYLOAD_BYTES: usize = 4096;

/// A node's long-term secrets.
pub struct Keystore {
    node_id: NodeId,
    /// Seed of the Ed25519 identity.
    identity: Secret<32>,
    /// Root of everything that seals what is at rest.
    storage: Secret<32>,
    /// When the identity was made; zero where version 1 did not say.
    created: UnixMillis,
    /// Whom the file that it came from was sealed to, as it was made.
    recipients: Vec<String>,
    /// The first identity of this storage root, where it is another.
    origin: Option<NodeId>,
    /// Which identities this one goes on for.
    lineage: Lineage,
}

impl Keystore {
    /// Draws a new identity and storage root.
    pub fn generate(random: &mut impl CryptoRng, now: UnixMillis) -> Self {
        let mut draw = || {
            let mut bytes = Zeroizing::new([0; 32]);
            random.fill_bytes(&mut *bytes);
            Secret::new(*bytes)
        };
        let (identity, storage) = (draw(), draw());
        Self {
            node_id: node_id_of(&identity),
            identity,
            storage,
            created: now,
            recipients: Vec::new(),
            origin: None,
            lineage: Lineage::default(),
        }
    }

    /// A new identity for the same node: this one signs that it goes on in its place, and is in it no more.
    ///
    /// # Errors
    /// [`Failure::Succession`] only when this keystore's own lineage does not go on.
    pub fn succeeded(self, random: &mut impl CryptoRng, now: UnixMillis) -> Result<Self, Failure> {
        let fresh = Self::generate(random, now);
        let lineage = self.said(Step::Succeed, fresh.node_id, &self.lineage, now)?;
        let origin = self.origin.or(Some(self.node_id));
        Ok(Self { origin, storage: self.storage, recipients: self.recipients, lineage, ..fresh })
    }

    /// This, the older identity, goes on itself: its word for `successor`, with which `after` ends, is void. Without `after`
    /// somebody else had the key and gave the word away.
    ///
    /// # Errors
    /// [`Failure::Succession`] when `after` is no successor's keystore of this one, or the word is older than may be taken back.
    pub fn taken_back(self, successor: NodeId, after: Option<&Self>, now: UnixMillis) -> Result<Self, Failure> {
        let Some(after) = after else {
            // Both words, so that the chain goes on from what is known here: whoever gave the first one away did so elsewhere.
            let named = self.said(Step::Succeed, successor, &self.lineage, now)?;
            let lineage = self.said(Step::TakeBack, successor, &named, now)?;
            return Ok(Self { lineage, ..self });
        };
        let last = after.lineage.steps().next_back().copied();
        let word = last.filter(|last| {
            (last.step, last.old, last.new) == (Step::Succeed, self.node_id, after.node_id)
                && self.storage == after.storage
        });
        let word = word.ok_or(Failure::Succession("the keystore here is not the successor of the older one"))?;
        if now > UnixMillis(word.sequence).plus(TAKE_BACK) {
            return Err(Failure::Succession("the 72 hours in which it could be taken back are over"));
        }
        let lineage = self.said(Step::TakeBack, successor, &after.lineage, now)?;
        Ok(Self { lineage, ..self })
    }

    fn said(&self, step: Step, new: NodeId, before: &Lineage, now: UnixMillis) -> Result<Lineage, Failure> {
        let word = Succession { step, old: self.node_id, new, sequence: before.next_sequence(now) };
        let said = Identity::from_seed(&self.identity).sign_succession(&word).map_err(|_| Failure::ForeignKey)?;
        before.with(said).map_err(|_| Failure::Succession("a node cannot succeed itself"))
    }

    /// The node that these secrets make.
    #[must_use]
    pub const fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// Where its identity comes from: for the vault, behind the secrets.
    #[must_use]
    pub fn descent(&self) -> Descent {
        Descent { origin: self.origin, words: self.lineage.items().map(<[u8]>::to_vec).collect() }
    }

    /// What goes to the vault: identity seed, storage root.
    #[must_use]
    pub fn into_secrets(self) -> Zeroizing<[u8; SECRETS_BYTES]> {
        let mut secrets = Zeroizing::new([0; SECRETS_BYTES]);
        secrets[..32].copy_from_slice(self.identity.expose());
        secrets[32..].copy_from_slice(self.storage.expose());
        secrets
    }

    /// Whom the file that it came from was sealed to, as it was made.
    #[must_use]
    pub fn recipients(&self) -> &[String] {
        &self.recipients
    }

    /// The age file sealed as `seal` says, and what it says of itself.
    ///
    /// # Errors
    /// Only when memory cannot be had.
    pub fn seal(&self, seal: &Seal) -> Result<(Vec<u8>, About), Failure> {
        let recipients = seal.recipients();
        let writer = Writer::new()
            .number(1, VERSION)
            .bytes(2, self.node_id.as_bytes())
            .bytes(3, self.identity.expose())
            .bytes(4, self.storage.expose())
            .number(5, self.created.0);
        let writer = recipients.iter().fold(writer, |writer, text| writer.item(6, text.as_bytes()));
        let writer = writer.bytes(7, self.origin.as_ref().map_or(&[][..], |origin| origin.as_bytes()));
        let writer = self.lineage.items().fold(writer, |writer, word| writer.item(8, word));
        let payload = Zeroizing::new(writer.finish());
        let mut sealed = Vec::new();
        let mut writer = seal.writer(&mut sealed)?;
        writer.write_all(&payload).map_err(Failure::io("sealing"))?;
        writer.finish().map_err(Failure::io("sealing"))?;
        let passphrase = recipients.is_empty();
        let (node, created, lineage) = (self.node_id, self.created, self.lineage.clone());
        Ok((sealed, About { version: VERSION, node, created, passphrase, recipients, lineage }))
    }

    /// Opens an age file; with it come what it says of itself, and how the same secret seals again.
    ///
    /// # Errors
    /// Any [`Failure`] but those of reading and writing.
    pub fn open(sealed: &[u8], secret: &[u8]) -> Result<(Self, About, Seal), Failure> {
        let opened = envelope::open(sealed, secret)?;
        let mut payload = Zeroizing::new(Vec::with_capacity(PAYLOAD_BYTES + 1));
        let read = opened.content.take(PAYLOAD_BYTES as u64 + 1).read_to_end(&mut payload);
        if read.is_err() || payload.len() > PAYLOAD_BYTES {
            return Err(Failure::Damaged);
        }
        let (keystore, version) = Self::decode(&payload)?;
        let about = About {
            version,
            node: keystore.node_id,
            created: keystore.created,
            passphrase: matches!(opened.seal, Seal::Passphrase(..)),
            recipients: keystore.recipients.clone(),
            lineage: keystore.lineage.clone(),
        };
        Ok((keystore, about, opened.seal))
    }

    fn decode(payload: &[u8]) -> Result<(Self, u64), Failure> {
        let mut reader = Reader::new("keystore", payload);
        let version = match reader.number(1) {
            Ok(version @ 1..=VERSION) => version,
            Ok(version) if version > VERSION => return Err(Failure::NewerVersion),
            _ => return Err(Failure::Damaged),
        };
        let mut array = |field| reader.array::<32>(field).map_err(|_| Failure::Damaged);
        let (node_id, identity, storage) = (array(2)?, Secret::new(array(3)?), Secret::new(array(4)?));
        let (mut created, mut recipients) = (UnixMillis(0), Vec::new());
        if version > 1 {
            created = UnixMillis(reader.number(5).map_err(|_| Failure::Damaged)?);
            for item in reader.items(6, RECIPIENTS, RECIPIENT_BYTES).map_err(|_| Failure::Damaged)? {
                recipients.push(String::from_utf8(item.to_vec()).map_err(|_| Failure::Damaged)?);
            }
        }
        let node_id = NodeId::from_bytes(node_id);
        let mut descent = Descent::default();
        if version > 2 {
            descent = Descent::read(&mut reader, 7).map_err(|_| Failure::Damaged)?;
        }
        reader.finish().map_err(|_| Failure::Damaged)?;
        if node_id != node_id_of(&identity) {
            return Err(Failure::ForeignKey);
        }
        let lineage = Lineage::verify(descent.words.iter().map(Vec::as_slice), node_id);
        let lineage = lineage.map_err(|_| Failure::Damaged)?;
        Ok((Self { node_id, identity, storage, created, recipients, origin: descent.origin, lineage }, version))
    }
}

fn node_id_of(identity: &Secret<32>) -> NodeId {
    NodeId::from_bytes(SigningKey::from_bytes(identity.expose()).verifying_key().to_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use age::secrecy::{ExposeSecret, SecretString};
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    use super::*;
    use crate::unseal::envelope::WorkFactor;

    fn seal() -> Seal {
        // Cheap enough for a test; the format is the same.
        Seal::Passphrase(SecretString::from("p".to_owned()), WorkFactor(2))
    }

    fn keystore() -> Keystore {
        Keystore::generate(&mut ChaCha20Rng::from_seed([1; 32]), UnixMillis(5))
    }

    fn sealed(keystore: &Keystore) -> Vec<u8> {
        keystore.seal(&seal()).unwrap().0
    }

    fn failure(sealed: &[u8]) -> Failure {
        Keystore::open(sealed, b"p").err().unwrap()
    }

    #[test]
    fn it_says_of_itself_what_it_was_made_as() {
        let identity = age::x25519::Identity::generate();
        let recipients = vec![identity.to_public().to_string()];
        let (file, made) = keystore().seal(&Seal::to(&recipients).unwrap()).unwrap();
        let (again, opened, _) = Keystore::open(&file, identity.to_string().expose_secret().as_bytes()).unwrap();
        assert_eq!(made, opened);
        let node = keystore().node_id();
        assert_eq!(
            opened,
            About {
                version: 3,
                node,
                created: UnixMillis(5),
                passphrase: false,
                recipients,
                lineage: Lineage::default()
            }
        );
        assert_eq!(again.into_secrets(), keystore().into_secrets());
    }

    #[test]
    fn another_nodes_id_is_refused() {
        let mut foreign = keystore();
        foreign.node_id = NodeId::from_bytes([9; 32]);
        assert!(matches!(failure(&sealed(&foreign)), Failure::ForeignKey));
    }

    #[test]
    fn more_work_than_the_cap_is_refused_before_it_is_done() {
        let sealed = sealed(&keystore());
        // The work factor is the last argument of the one stanza: "-> scrypt SALT 2".
        let end = sealed.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(1).unwrap().0;
        let mut greedy = sealed[..end - 1].to_vec();
        greedy.extend_from_slice(b"30");
        greedy.extend_from_slice(&sealed[end..]);
        assert!(matches!(failure(&greedy), Failure::TooMuchWork { asked: 30, most: 18 }));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_a_refusal() {
        let sealed = sealed(&keystore());
        for place in 0..sealed.len() {
            let mut flipped = sealed.clone();
            flipped[place] ^= 1;
            let refused = Keystore::open(&flipped, b"p").err();
            assert!(refused.is_some(), "byte {place}");
            assert!(Keystore::open(&sealed[..place], b"p").is_err(), "cut at {place}");
        }
    }

    #[test]
    fn versions_and_shapes_of_the_payload() {
        let newer = Writer::new().number(1, 4).bytes(9, b"later").finish();
        assert!(matches!(Keystore::decode(&newer), Err(Failure::NewerVersion)));
        for damaged in [Writer::new().finish(), Writer::new().number(1, 1).finish(), b"junk".to_vec()] {
            assert!(matches!(Keystore::decode(&damaged), Err(Failure::Damaged)));
        }
        let keys = keystore();
        let first = Writer::new()
            .number(1, 1)
            .bytes(2, keys.node_id.as_bytes())
            .bytes(3, keys.identity.expose())
            .bytes(4, keys.storage.expose());
        let (read, version) = Keystore::decode(&first.finish()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((read.node_id, version, read.created), (keys.node_id, 1, UnixMillis(0)), "version 1 is still read");
    }
}
