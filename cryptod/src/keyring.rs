//! Every long-term secret of the vault, made from the 64 bytes that the unsealer hands over, each for one purpose.
//!
//! In: the identity's seed and the storage root, both random and independent, as the keystore holds them, and whom the
//! identity goes on for. Out: typed keys; none of them leaves the vault but the store keys, which are derived for `noded` by
//! module name. Rotating the identity leaves what is at rest alone; a new storage root makes state and rows worthless.

use hkdf::Hkdf;
use openred_proto::checked::succession::Lineage;
use openred_proto::concat::concat;
use openred_proto::error::WireError;
use openred_proto::fields::{Reader, Writer};
use openred_proto::id::NodeId;
use openred_proto::label::derive;
use openred_proto::limits::{LINEAGE, SUCCESSION_BYTES};
use openred_proto::secret::Secret;
use sha2::Sha256;
use zeroize::Zeroize;

use crate::identity::Identity;

/// What the unsealer's pipe carries: identity seed (32) and storage root (32).
pub const SECRETS_BYTES: usize = 64;

/// Longest [`Descent`] in the pipe: the origin and the longest lineage, with their keys and lengths.
pub const DESCENT_BYTES: usize = 40 + LINEAGE * (SUCCESSION_BYTES + 4);

/// Where an identity comes from; nothing of it is secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Descent {
    /// The first identity of this storage root, which what is at rest is bound to; none where it is the present one.
    pub origin: Option<NodeId>,
    /// The words that lead from earlier identities to this one, as their signers gave them.
    pub words: Vec<Vec<u8>>,
}

impl Descent {
    /// The bytes behind the secrets in the unsealer's pipe; none for an identity that goes on for nobody.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let origin = self.origin.as_ref().map_or(&[][..], |origin| origin.as_bytes());
        self.words.iter().fold(Writer::new().bytes(1, origin), |writer, word| writer.item(2, word)).finish()
    }

    /// Reads them; the words are verified against the identity when the keyring is made.
    ///
    /// # Errors
    /// Malformed, or more words than a lineage has.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new("descent", bytes);
        let descent = Self::read(&mut reader, 1)?;
        reader.finish()?;
        Ok(descent)
    }

    /// Reads the origin in `field` and the words in the one after it.
    ///
    /// # Errors
    /// As [`Descent::decode`].
    pub fn read(reader: &mut Reader<'_>, field: u32) -> Result<Self, WireError> {
        let origin = match reader.bytes(field, 32)? {
            [] => None,
            bytes => Some(NodeId::from_bytes(bytes.try_into().map_err(|_| reader.malformed("a short node id"))?)),
        };
        let words = reader.items(field + 1, LINEAGE, SUCCESSION_BYTES)?.into_iter().map(<[u8]>::to_vec).collect();
        Ok(Self { origin, words })
    }
}

/// Purpose of the seed behind the `seeded` schedule.
const SCHEDULE: &[u8] = b"openred/1/schedule";

/// The vault's keys.
pub struct Keyring {
    /// Signs.
    pub(crate) identity: Identity,
    /// Seals the state file.
    pub(crate) state: Secret<32>,
    /// Seals link rows.
    pub(crate) row: Secret<32>,
    /// Seed of the `seeded` schedule.
    pub(crate) schedule: Secret<32>,
    /// Names peers in the audit trail.
    pub(crate) audit: Secret<32>,
    /// Which identities this one goes on for.
    pub(crate) lineage: Lineage,
    /// Root of the modules' store keys.
    store: Secret<32>,
}

impl Keyring {
    /// Takes the secrets of an identity that goes on for nobody over and wipes the caller's copy.
    #[must_use]
    pub fn from_secrets(secrets: &mut [u8; SECRETS_BYTES]) -> Self {
        Self::made(secrets, |_| Ok::<_, std::convert::Infallible>((None, Lineage::default())))
            .unwrap_or_else(|never| match never {})
    }

    /// Takes the secrets over, with the identity's descent, and wipes the caller's copy.
    ///
    /// # Errors
    /// When the words do not lead to this identity.
    pub fn descended(secrets: &mut [u8; SECRETS_BYTES], descent: &Descent) -> Result<Self, WireError> {
        Self::made(secrets, |node| {
            let lineage = Lineage::verify(descent.words.iter().map(Vec::as_slice), node)?;
            Ok((descent.origin, lineage))
        })
    }

    fn made<E>(
        secrets: &mut [u8; SECRETS_BYTES],
        descent: impl FnOnce(NodeId) -> Result<(Option<NodeId>, Lineage), E>,
    ) -> Result<Self, E> {
        let seed = Secret::new(std::array::from_fn(|place| secrets[place]));
        let root = Secret::new(std::array::from_fn(|place| secrets[place + 32]));
        secrets.zeroize();
        let identity = Identity::from_seed(&seed);
        let (origin, lineage) = descent(identity.node_id())?;
        // The node's first id is part of each derivation: state and rows of one node do not open at another, whatever was
        // copied, and open all the same when this one has taken a new identity.
        let origin = origin.unwrap_or(identity.node_id());
        let expand = |purpose: &[u8]| expand(&root, &concat(&[purpose, origin.as_bytes()]));
        let (state, row) = (expand(derive::STATE), expand(derive::ROW));
        let (schedule, store, audit) = (expand(SCHEDULE), expand(derive::STORE), expand(derive::AUDIT));
        Ok(Self { identity, state, row, schedule, audit, lineage, store })
    }

    /// The identity: for those who sign with it.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The key that seals one module's records at rest.
    #[must_use]
    pub fn store_key(&self, purpose: &str) -> Secret<32> {
        expand(&self.store, &concat(&[derive::STORE, purpose.as_bytes()]))
    }

    /// The key that one module's seals are made with; none of its records is sealed with it.
    #[must_use]
    pub fn seal_key(&self, module: &str) -> Secret<32> {
        expand(&self.store, &concat(&[derive::MODULE_SEAL, module.as_bytes()]))
    }
}

pub(crate) fn expand(root: &Secret<32>, info: &[u8]) -> Secret<32> {
    let hkdf = Hkdf::<Sha256>::from_prk(root.expose()).expect("a root is one SHA-256 output long");
    let mut key = [0; 32];
    hkdf.expand(info, &mut key).expect("32 bytes are far below 255 hash lengths");
    Secret::new(key)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use openred_proto::checked::succession::{Step, Succession};

    use super::*;

    #[test]
    fn a_new_identity_of_the_same_root_opens_what_the_first_one_sealed() {
        let secrets = |seed| {
            let mut secrets = [seed; SECRETS_BYTES];
            secrets[32..].fill(9);
            secrets
        };
        let first = Keyring::from_secrets(&mut secrets(1));
        let (old, new) = (first.identity.node_id(), Keyring::from_secrets(&mut secrets(2)).identity.node_id());
        let word = Succession { step: Step::Succeed, old, new, sequence: 1 };
        let words = vec![first.identity.sign_succession(&word).unwrap()];
        let descent = Descent { origin: Some(old), words };
        assert_eq!(Descent::decode(&descent.encode()).unwrap(), descent);
        let next = Keyring::descended(&mut secrets(2), &descent).unwrap();
        assert_eq!((next.identity.node_id(), next.lineage.earlier()), (new, vec![old]));
        assert_eq!(next.state.expose(), first.state.expose());
        assert_eq!(next.store_key("a").expose(), first.store_key("a").expose());
        assert!(Keyring::descended(&mut secrets(3), &descent).is_err(), "the word is for another");
        assert!(Descent::decode(&[9; DESCENT_BYTES]).is_err());
        assert_eq!(Descent::decode(&[]).unwrap(), Descent::default());
    }

    #[test]
    fn no_two_purposes_or_nodes_share_a_key_and_the_secrets_are_wiped() {
        let mut seen = std::collections::HashSet::new();
        for (seed, root) in [(1, 2), (3, 2), (1, 4)] {
            let mut secrets = [seed; SECRETS_BYTES];
            secrets[32..].fill(root);
            let keyring = Keyring::from_secrets(&mut secrets);
            assert_eq!(secrets, [0; SECRETS_BYTES]);
            let keys = [
                &keyring.state,
                &keyring.row,
                &keyring.schedule,
                &keyring.audit,
                &keyring.store_key("a"),
                &keyring.store_key("b"),
                &keyring.seal_key("a"),
                &keyring.seal_key("b"),
            ];
            for key in keys {
                assert!(seen.insert(*key.expose()));
            }
        }
    }
}
