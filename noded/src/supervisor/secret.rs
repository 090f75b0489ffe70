//! The passphrase or identity as the supervisor holds it: the way to it, the bytes where they cannot be had twice, or nothing
//! while the operator has locked the keys.

use std::cell::RefCell;

use zeroize::Zeroizing;

use crate::cli::{Exit, Failure, Passphrase};

/// What opens the keystore, for as long as it may be opened.
pub(crate) struct Held(RefCell<Option<Passphrase>>);

impl Held {
    pub(crate) fn new(passphrase: Passphrase) -> Self {
        Self(RefCell::new(Some(passphrase)))
    }

    /// The bytes, for the one pipe they go into.
    pub(crate) fn bytes(&self) -> Result<Zeroizing<Vec<u8>>, Failure> {
        match &*self.0.borrow() {
            Some(passphrase) => passphrase.bytes(),
            None => Err(Failure::new(Exit::Locked, "keys.locked", "the keys are locked", "`openred key unlock`")),
        }
    }

    /// Wipes it: not even a restart of the vault opens the keystore from here on.
    pub(crate) fn forget(&self) {
        self.0.replace(None);
    }

    /// Takes the secret of an unlock, for the restarts after it.
    pub(crate) fn keep(&self, secret: Zeroizing<Vec<u8>>) {
        self.0.replace(Some(Passphrase::Kept(secret)));
    }
}
