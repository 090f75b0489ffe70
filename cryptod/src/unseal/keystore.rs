//! What a keystore holds and how it is sealed: a versioned payload, bound to the node id, in a plain age file.
//!
//! A stock `age` opens the file with the passphrase. The payload is a message of the contract's canonical encoding:
//! version, node id, identity seed, storage root. The node id stands in it so that a file with another's key is refused.

use std::io::{Read, Write};

use age::secrecy::SecretString;
use age::{DecryptError, scrypt};
use ed25519_dalek::SigningKey;
use openred_proto::fields::{Reader, Writer};
use openred_proto::id::NodeId;
use openred_proto::secret::Secret;
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use super::Failure;
use crate::keyring::SECRETS_BYTES;

/// Payload version of this build.
const VERSION: u64 = 1;
/// Longest payload: two ids and keys, with room for a later version's fields, which is then named as such.
const PAYLOAD_BYTES: usize = 1024;

/// Base-2 logarithm of scrypt's cost. Set on both sides: the library's own choice measures the machine and may take 128 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkFactor(u8);

impl WorkFactor {
    /// 2^16: 64 MiB and about a fifth of a second, once a start.
    pub const STANDARD: WorkFactor = WorkFactor(16);
    /// The most that is accepted from a file: 256 MiB.
    pub const MOST: WorkFactor = WorkFactor(18);
}

/// A node's long-term secrets.
pub struct Keystore {
    node_id: NodeId,
    /// Seed of the Ed25519 identity.
    identity: Secret<32>,
    /// Root of everything that seals what is at rest.
    storage: Secret<32>,
}

impl Keystore {
    /// Draws a new identity and storage root.
    pub fn generate(random: &mut impl CryptoRng) -> Self {
        let mut draw = || {
            let mut bytes = Zeroizing::new([0; 32]);
            random.fill_bytes(&mut *bytes);
            Secret::new(*bytes)
        };
        let (identity, storage) = (draw(), draw());
        Self { node_id: node_id_of(&identity), identity, storage }
    }

    /// The node that these secrets make.
    #[must_use]
    pub const fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// What goes to the vault: identity seed, storage root.
    #[must_use]
    pub fn into_secrets(self) -> Zeroizing<[u8; SECRETS_BYTES]> {
        let mut secrets = Zeroizing::new([0; SECRETS_BYTES]);
        secrets[..32].copy_from_slice(self.identity.expose());
        secrets[32..].copy_from_slice(self.storage.expose());
        secrets
    }

    /// The age file for `passphrase`.
    ///
    /// # Errors
    /// Only when memory cannot be had.
    pub fn seal(&self, passphrase: SecretString, work: WorkFactor) -> Result<Vec<u8>, Failure> {
        let payload = Zeroizing::new(
            Writer::new()
                .number(1, VERSION)
                .bytes(2, self.node_id.as_bytes())
                .bytes(3, self.identity.expose())
                .bytes(4, self.storage.expose())
                .finish(),
        );
        let mut recipient = scrypt::Recipient::new(passphrase);
        recipient.set_work_factor(work.0);
        let recipients = std::iter::once(&recipient as &dyn age::Recipient);
        let encryptor =
            age::Encryptor::with_recipients(recipients).expect("one passphrase is a valid set of recipients");
        let mut sealed = Vec::new();
        let mut writer = encryptor.wrap_output(&mut sealed).map_err(Failure::io("sealing"))?;
        writer.write_all(&payload).map_err(Failure::io("sealing"))?;
        writer.finish().map_err(Failure::io("sealing"))?;
        Ok(sealed)
    }

    /// Opens an age file.
    ///
    /// # Errors
    /// Any [`Failure`] but those of reading and writing.
    pub fn open(sealed: &[u8], passphrase: SecretString) -> Result<Self, Failure> {
        let decryptor = age::Decryptor::new(sealed).map_err(|_| Failure::Damaged)?;
        if !decryptor.is_scrypt() {
            return Err(Failure::Damaged);
        }
        let mut identity = scrypt::Identity::new(passphrase);
        identity.set_max_work_factor(WorkFactor::MOST.0);
        let reader = decryptor.decrypt(std::iter::once(&identity as &dyn age::Identity)).map_err(refused)?;
        let mut payload = Zeroizing::new(Vec::with_capacity(PAYLOAD_BYTES + 1));
        let read = reader.take(PAYLOAD_BYTES as u64 + 1).read_to_end(&mut payload);
        if read.is_err() || payload.len() > PAYLOAD_BYTES {
            return Err(Failure::Damaged);
        }
        Self::decode(&payload)
    }

    fn decode(payload: &[u8]) -> Result<Self, Failure> {
        let mut reader = Reader::new("keystore", payload);
        match reader.number(1) {
            Ok(VERSION) => {}
            Ok(version) if version > VERSION => return Err(Failure::NewerVersion),
            _ => return Err(Failure::Damaged),
        }
        let mut array = |field| reader.array::<32>(field).map_err(|_| Failure::Damaged);
        let (node_id, identity, storage) = (array(2)?, Secret::new(array(3)?), Secret::new(array(4)?));
        reader.finish().map_err(|_| Failure::Damaged)?;
        let node_id = NodeId::from_bytes(node_id);
        if node_id != node_id_of(&identity) {
            return Err(Failure::ForeignKey);
        }
        Ok(Self { node_id, identity, storage })
    }
}

fn node_id_of(identity: &Secret<32>) -> NodeId {
    NodeId::from_bytes(SigningKey::from_bytes(identity.expose()).verifying_key().to_bytes())
}

fn refused(error: DecryptError) -> Failure {
    match error {
        DecryptError::ExcessiveWork { required, .. } => {
            Failure::TooMuchWork { asked: required, most: WorkFactor::MOST.0 }
        }
        // The file key's own AEAD tells a wrong passphrase from a damaged file, as far as that can be told.
        DecryptError::DecryptionFailed | DecryptError::KeyDecryptionFailed | DecryptError::NoMatchingKeys => {
            Failure::WrongPassphrase
        }
        _ => Failure::Damaged,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    use super::*;

    /// Cheap enough for a test; the format is the same.
    const LIGHT: WorkFactor = WorkFactor(2);

    fn passphrase() -> SecretString {
        SecretString::from("p".to_owned())
    }

    fn keystore() -> Keystore {
        Keystore::generate(&mut ChaCha20Rng::from_seed([1; 32]))
    }

    fn failure(sealed: &[u8]) -> Failure {
        Keystore::open(sealed, passphrase()).err().unwrap()
    }

    #[test]
    fn another_nodes_id_is_refused() {
        let mut foreign = keystore();
        foreign.node_id = NodeId::from_bytes([9; 32]);
        assert!(matches!(failure(&foreign.seal(passphrase(), LIGHT).unwrap()), Failure::ForeignKey));
    }

    #[test]
    fn more_work_than_the_cap_is_refused_before_it_is_done() {
        let sealed = keystore().seal(passphrase(), LIGHT).unwrap();
        // The work factor is the last argument of the one stanza: "-> scrypt SALT 2".
        let end = sealed.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(1).unwrap().0;
        let mut greedy = sealed[..end - 1].to_vec();
        greedy.extend_from_slice(b"30");
        greedy.extend_from_slice(&sealed[end..]);
        assert!(matches!(failure(&greedy), Failure::TooMuchWork { asked: 30, most: 18 }));
    }

    #[test]
    fn versions_and_shapes_of_the_payload() {
        let newer = Writer::new().number(1, 2).bytes(9, b"later").finish();
        assert!(matches!(Keystore::decode(&newer), Err(Failure::NewerVersion)));
        for damaged in [Writer::new().finish(), Writer::new().number(1, 1).finish(), b"junk".to_vec()] {
            assert!(matches!(Keystore::decode(&damaged), Err(Failure::Damaged)));
        }
    }
}
