//! Calls of the key process about methods of modules, and about what modules sign and seal with.

use bytes::Bytes;
use openred_proto::cryptod as wire;
use openred_proto::id::MethodId;
use openred_proto::method::Place;
use openred_proto::secret::Secret;
use openred_proto::vault::RegisteredMethod;

use super::{CryptodClient, KeysError, answer, array};

impl CryptodClient {
    /// Has a module's description held against the table, and kept.
    ///
    /// # Errors
    /// [`KeysError`]; a weakness is [`KeysError::Refused`], by name.
    pub async fn register_method(&self, module: &str, description: Bytes) -> Result<Place, KeysError> {
        let request = wire::RegisterMethodRequest { module: module.to_owned(), description };
        let place = answer(self.next().register_method(request).await)?.place;
        Ok(Place::from_number(place.into())?)
    }

    /// Retires a method: no new link is made with it.
    ///
    /// # Errors
    /// [`KeysError`].
    pub async fn retire_method(&self, method: MethodId) -> Result<(), KeysError> {
        let method = Bytes::copy_from_slice(method.as_bytes());
        answer(self.next().retire_method(wire::MethodName { method }).await).map(drop)
    }

    /// The registered methods, retired ones included.
    ///
    /// # Errors
    /// [`KeysError`].
    pub async fn registered_methods(&self) -> Result<Vec<RegisteredMethod>, KeysError> {
        let methods = answer(self.next().list_methods(wire::ListMethodsRequest {}).await)?.methods;
        let method = |method: wire::RegisteredMethod| {
            Ok(RegisteredMethod {
                place: Place::from_number(method.place.into())?,
                module: method.module,
                description: method.description.to_vec(),
                epoch: method.epoch,
                retired: method.retired,
            })
        };
        methods.into_iter().map(method).collect()
    }

    /// Signs what a module states in its own domain; of the body there is only its SHA-256.
    ///
    /// # Errors
    /// [`KeysError`].
    pub async fn sign_module(
        &self,
        module: &str,
        domain: &str,
        digest: [u8; 32],
        length: u64,
    ) -> Result<Bytes, KeysError> {
        let digest = Bytes::copy_from_slice(&digest);
        let request = wire::SignModuleRequest { module: module.to_owned(), domain: domain.to_owned(), digest, length };
        Ok(answer(self.next().sign_module(request).await)?.statement)
    }

    /// The key that a module's seals are made with.
    ///
    /// # Errors
    /// [`KeysError`].
    pub async fn seal_key(&self, module: &str) -> Result<Secret<32>, KeysError> {
        let reply = answer(self.next().get_seal_key(wire::SealKeyRequest { module: module.to_owned() }).await)?;
        Ok(Secret::new(array("seal key", &reply.key)?))
    }
}
