//! Sealing of the modules' rows at rest: XChaCha20-Poly1305 under a key that the key process derives for one module.
//!
//! The associated data is (module, key, version), so a row that is moved, renamed or given another version does not open.
//! Nonces are random: 24 bytes leave no chance of a repeat. Keys of rows stay in clear, because scans go by their order.

use openred_proto::concat::concat;
use openred_proto::sealed::{NONCE_BYTES, Sealing};
use openred_proto::secret::Secret;

use super::states::place;
use super::{Result, StoreError};

/// The seal of one module's rows.
pub(crate) struct RowSeal {
    sealing: Sealing,
    module: String,
    /// The name under which its rows lie.
    place: String,
}

impl RowSeal {
    /// The seal for `module` under the key that the key process gave for it.
    pub(crate) fn new(module: &str, key: &Secret<32>) -> Self {
        Self { sealing: Sealing::new(key.expose()), module: module.to_owned(), place: module.to_owned() }
    }

    /// The same for the rows of another state of the module.
    pub(crate) fn of_state(&self, state: u64) -> Self {
        let (sealing, module) = (self.sealing.clone(), self.module.clone());
        Self { sealing, place: place(&module, state), module }
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    pub(super) fn module(&self) -> &str {
        &self.module
    }

    pub(super) fn seal(&self, key: &[u8], version: i64, value: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).expect("the kernel's generator answers since the probe at start");
        self.sealing.seal(&nonce, &self.associated(key, version), value)
    }

    pub(super) fn open(&self, key: &[u8], version: i64, sealed: &[u8]) -> Result<Vec<u8>> {
        self.sealing.open(&self.associated(key, version), sealed).ok_or(StoreError::Damaged("module_row"))
    }

    fn associated(&self, key: &[u8], version: i64) -> Vec<u8> {
        concat(&[self.module.as_bytes(), key, &version.to_be_bytes()])
    }
}

impl std::fmt::Debug for RowSeal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RowSeal({})", self.module)
    }
}
