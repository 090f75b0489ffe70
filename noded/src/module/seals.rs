//! What modules seal: XChaCha20-Poly1305 under a key that the key process derives for the module, and of it one for each context.
//!
//! In: a module's bytes and the context that it names. Out: bytes that only the same module of this node opens, under the same context. The
//! module's key is asked for once a start; contexts are the module's to invent, and cost the key process nothing (docs/decisions/0033).

use bytes::Bytes;
use hkdf::Hkdf;
use openred_module::HostError;
use openred_proto::concat::concat;
use openred_proto::label::derive;
use openred_proto::sealed::{NONCE_BYTES, Sealing};
use openred_proto::secret::Secret;
use openred_proto::vault::Refusal;
use sha2::Sha256;
use tokio::sync::OnceCell;

use super::ports::ModuleKeys;
use crate::keys::KeysError;

/// A module's seal, once somebody needed it.
#[derive(Default)]
pub(super) struct Seals(OnceCell<Seal>);

impl Seals {
    /// The seal of this module.
    ///
    /// # Errors
    /// As [`failed`].
    pub(super) async fn of(&self, module: &'static str, keys: &dyn ModuleKeys) -> Result<&Seal, HostError> {
        let made =
            self.0.get_or_try_init(|| async { Ok::<_, KeysError>(Seal { key: keys.seal_key(module).await?, module }) });
        made.await.map_err(failed)
    }
}

/// What the key process's failure is to a module.
pub(super) fn failed(error: KeysError) -> HostError {
    match error {
        KeysError::Away | KeysError::Slow | KeysError::Refused(Refusal::Quota | Refusal::Capacity(_)) => {
            HostError::Busy
        }
        other => {
            tracing::warn!(error = %other, "the key process did not serve a module");
            HostError::Storage
        }
    }
}

/// See the file's head.
pub(super) struct Seal {
    key: Secret<32>,
    module: &'static str,
}

impl Seal {
    fn sealing(&self, context: &[u8]) -> Sealing {
        let hkdf = Hkdf::<Sha256>::from_prk(self.key.expose()).expect("a key is one SHA-256 output long");
        let mut key = zeroize::Zeroizing::new([0; 32]);
        let info = concat(&[derive::SEAL_CONTEXT, self.module.as_bytes(), context]);
        hkdf.expand(&info, key.as_mut_slice()).expect("32 bytes are far below 255 hash lengths");
        Sealing::new(&key)
    }

    fn associated(&self, context: &[u8]) -> Vec<u8> {
        concat(&[self.module.as_bytes(), context])
    }

    pub(super) fn seal(&self, context: &[u8], body: &[u8]) -> Result<Bytes, HostError> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(|_| HostError::Storage)?;
        Ok(self.sealing(context).seal(&nonce, &self.associated(context), body).into())
    }

    pub(super) fn open(&self, context: &[u8], sealed: &[u8]) -> Result<Bytes, HostError> {
        let opened = self.sealing(context).open(&self.associated(context), sealed);
        opened.map(Bytes::from).ok_or(HostError::NotSealed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use proptest::prelude::*;

    use super::*;

    fn seal(seed: u8, module: &'static str) -> Seal {
        Seal { key: Secret::new([seed; 32]), module }
    }

    proptest! {
        #[test]
        fn only_the_same_module_opens_it_under_the_same_context(
            body in prop::collection::vec(any::<u8>(), 0..200),
            context in prop::collection::vec(any::<u8>(), 0..20),
            bit in 0_usize..10_000,
        ) {
            let greet = seal(1, "greet");
            let sealed = greet.seal(&context, &body).unwrap();
            prop_assert_eq!(&greet.open(&context, &sealed).unwrap()[..], &body[..]);
            prop_assert_eq!(greet.open(&[&context[..], b"x"].concat(), &sealed), Err(HostError::NotSealed));
            prop_assert_eq!(seal(1, "other").open(&context, &sealed), Err(HostError::NotSealed));
            prop_assert_eq!(seal(2, "greet").open(&context, &sealed), Err(HostError::NotSealed));
            let mut changed = sealed.to_vec();
            let at = bit % (changed.len() * 8);
            changed[at / 8] ^= 1 << (at % 8);
            prop_assert_eq!(greet.open(&context, &changed), Err(HostError::NotSealed));
            prop_assert_eq!(greet.open(&context, &sealed[..bit % sealed.len()]), Err(HostError::NotSealed));
        }
    }
}
