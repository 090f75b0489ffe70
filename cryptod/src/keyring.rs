//! Every long-term secret of the vault, made from the 64 bytes that the unsealer hands over, each for one purpose.
//!
//! In: the identity's seed and the storage root, both random and independent, as the keystore holds them. Out: typed keys;
//! none of them leaves the vault but the store keys, which are derived for `noded` by module name. Rotating the identity
//! leaves what is at rest alone; a new storage root makes state and rows worthless.

use hkdf::Hkdf;
use openred_proto::concat::concat;
use openred_proto::label::derive;
use openred_proto::secret::Secret;
use sha2::Sha256;
use zeroize::Zeroize;

use crate::identity::Identity;

/// What the unsealer's pipe carries: identity seed (32) and storage root (32).
pub const SECRETS_BYTES: usize = 64;

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
    /// Root of the modules' store keys.
    store: Secret<32>,
}

impl Keyring {
    /// Takes the secrets over and wipes the caller's copy.
    #[must_use]
    pub fn from_secrets(secrets: &mut [u8; SECRETS_BYTES]) -> Self {
        let seed = Secret::new(std::array::from_fn(|place| secrets[place]));
        let root = Secret::new(std::array::from_fn(|place| secrets[place + 32]));
        secrets.zeroize();
        let identity = Identity::from_seed(&seed);
        // The node id is part of each derivation: state and rows of one node do not open at another, whatever was copied.
        let expand = |purpose: &[u8]| expand(&root, &concat(&[purpose, identity.node_id().as_bytes()]));
        let (state, row) = (expand(derive::STATE), expand(derive::ROW));
        let (schedule, store, audit) = (expand(SCHEDULE), expand(derive::STORE), expand(derive::AUDIT));
        Self { identity, state, row, schedule, audit, store }
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
}

pub(crate) fn expand(root: &Secret<32>, info: &[u8]) -> Secret<32> {
    let hkdf = Hkdf::<Sha256>::from_prk(root.expose()).expect("a root is one SHA-256 output long");
    let mut key = [0; 32];
    hkdf.expand(info, &mut key).expect("32 bytes are far below 255 hash lengths");
    Secret::new(key)
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ];
            for key in keys {
                assert!(seen.insert(*key.expose()));
            }
        }
    }
}
