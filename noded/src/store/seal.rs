//! Sealing of the modules' rows at rest: XChaCha20-Poly1305 under a key that the key process derives for one module.
//!
//! The associated data is (module, key, version), so a row that is moved, renamed or given another version does not open.
//! Nonces are random: 24 bytes leave no chance of a repeat. Keys of rows stay in clear, because scans go by their order.

use chacha20poly1305::aead::{Aead as _, Payload};
use chacha20poly1305::{Key, KeyInit as _, XChaCha20Poly1305, XNonce};
use openred_proto::concat::concat;
use openred_proto::secret::Secret;

use super::states::place;
use super::{Result, StoreError};

const NONCE_BYTES: usize = 24;

/// The seal of one module's rows.
pub(crate) struct RowSeal {
    cipher: XChaCha20Poly1305,
    module: String,
    /// The name under which its rows lie.
    place: String,
}

impl RowSeal {
    /// The seal for `module` under the key that the key process gave for it.
    pub(crate) fn new(module: &str, key: &Secret<32>) -> Self {
        let cipher = XChaCha20Poly1305::new(&Key::from(*key.expose()));
        Self { cipher, module: module.to_owned(), place: module.to_owned() }
    }

    /// The same for the rows of another state of the module.
    pub(crate) fn of_state(&self, state: u64) -> Self {
        let (cipher, module) = (self.cipher.clone(), self.module.clone());
        Self { cipher, place: place(&module, state), module }
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
        let aad = self.associated(key, version);
        let payload = Payload { msg: value, aad: &aad };
        let sealed =
            self.cipher.encrypt(&XNonce::from(nonce), payload).expect("a value is far below the cipher's limit");
        [&nonce[..], &sealed].concat()
    }

    pub(super) fn open(&self, key: &[u8], version: i64, sealed: &[u8]) -> Result<Vec<u8>> {
        let damaged = StoreError::Damaged("module_row");
        let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or(damaged)?;
        let aad = self.associated(key, version);
        self.cipher.decrypt(&XNonce::from(*nonce), Payload { msg: sealed, aad: &aad }).map_err(|_| damaged)
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
