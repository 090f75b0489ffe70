//! Methods that modules describe: handed to the key process when a module attaches, retired when one does without them or is gone.
//!
//! In: what an attached module declares. Out: the links' table of methods, and a condition that names what was refused. The key process
//! judges; nothing here weighs a description.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use openred_module::manifest::{self, Manifest};
use openred_proto::id::MethodId;
use openred_proto::method::description::MethodDescription;
use openred_proto::vault::RegisteredMethod;

use crate::clock;
use crate::health::{Condition, Health};
use crate::keys::{CryptodClient, KeysError};
use crate::link::Links;

/// See the file's head.
pub(crate) struct ModuleMethods {
    keys: CryptodClient,
    links: Arc<Links>,
    health: Arc<Health>,
    /// By module: what was refused, and why.
    refused: Mutex<BTreeMap<String, String>>,
    /// One module at a time: the table is read after it was changed.
    turn: tokio::sync::Mutex<()>,
}

impl ModuleMethods {
    pub(crate) fn new(keys: CryptodClient, links: Arc<Links>, health: Arc<Health>) -> Arc<Self> {
        Arc::new(Self { keys, links, health, refused: Mutex::default(), turn: tokio::sync::Mutex::new(()) })
    }

    /// Takes over what the key process has; the methods of modules that are not among `installed` are retired.
    ///
    /// # Errors
    /// The key process's.
    pub(crate) async fn load(&self, installed: &[&str]) -> Result<(), KeysError> {
        let _turn = self.turn.lock().await;
        for method in self.keys.registered_methods().await? {
            if !method.retired && !installed.contains(&method.module.as_str()) {
                self.retire(&method).await?;
            }
        }
        self.tell().await
    }

    /// A module has attached, and describes these methods.
    pub(crate) async fn declared(&self, module: &str, described: &[Bytes]) {
        let _turn = self.turn.lock().await;
        let mut troubles = Vec::new();
        // Each registration takes of what the key process does for all modules in a second: a module that is started again brings nothing new.
        let known = self.keys.registered_methods().await.unwrap_or_default();
        let is_known = |description: &Bytes| {
            known.iter().any(|known| known.module == module && !known.retired && known.description == *description)
        };
        for description in described.iter().filter(|description| !is_known(description)) {
            match self.keys.register_method(module, description.clone()).await {
                Ok(_) => {}
                Err(KeysError::Refused(refusal)) => {
                    tracing::warn!(module, code = refusal.code(), "a module's method was refused: {refusal}");
                    troubles.push(format!("{} ({})", refusal, refusal.code()));
                }
                Err(error) => tracing::warn!(module, %error, "a module's method was not registered"),
            }
        }
        if let Err(error) = self.keep_only(module, described).await {
            tracing::warn!(module, %error, "the methods of a module");
        }
        self.note(module, &troubles);
    }

    /// Retires what the module does without.
    async fn keep_only(&self, module: &str, described: &[Bytes]) -> Result<(), KeysError> {
        for method in self.keys.registered_methods().await? {
            let is_kept = described.iter().any(|described| described == &method.description);
            if method.module == module && !method.retired && !is_kept {
                self.retire(&method).await?;
            }
        }
        self.tell().await
    }

    async fn retire(&self, method: &RegisteredMethod) -> Result<(), KeysError> {
        let Some(id) = id_of(method) else { return Ok(()) };
        tracing::info!(module = method.module, method = %id, "a module's method is retired; its links are renewed");
        self.keys.retire_method(id).await
    }

    async fn tell(&self) -> Result<(), KeysError> {
        let heard = self.links.hear_methods(self.keys.registered_methods().await?).await;
        heard.unwrap_or_else(|error| tracing::error!(%error, "methods of modules are not stored"));
        Ok(())
    }

    fn note(&self, module: &str, troubles: &[String]) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        match troubles {
            [] => drop(refused.remove(module)),
            several => drop(refused.insert(module.to_owned(), several.join("; "))),
        }
        let details: Vec<String> = refused.iter().map(|(module, why)| format!("{module}: {why}")).collect();
        if details.is_empty() {
            self.health.clear(Condition::MethodRefused);
        } else {
            self.health.raise(Condition::MethodRefused, clock::now(), details.join("; "));
        }
    }
}

fn id_of(method: &RegisteredMethod) -> Option<MethodId> {
    Some(MethodDescription::decode(&method.description).ok()?.id())
}

/// How what a module describes differs from what its manifest declares, which is what the operator has read; nothing if it does not.
pub(super) fn differ(manifest: &Manifest, described: &[Bytes]) -> Option<String> {
    let described: Vec<MethodDescription> =
        match described.iter().map(|bytes| MethodDescription::decode(bytes)).collect() {
            Ok(described) => described,
            Err(error) => return Some(format!("it describes a method that cannot be read: {error}")),
        };
    for method in &described {
        let Some(declared) = manifest.methods.iter().find(|declared| declared.name.as_str() == method.name) else {
            let name = crate::cli::one_line(&method.name);
            return Some(format!("it describes the method {name}, which its manifest does not declare"));
        };
        if let Some(part) = other_part(declared, method) {
            return Some(format!("it describes the method {} with another {part} than its manifest", method.name));
        }
    }
    let missing =
        manifest.methods.iter().find(|declared| described.iter().all(|method| method.name != declared.name.as_str()));
    missing.map(|declared| format!("it does not describe the method {}, which its manifest declares", declared.name))
}

/// The first of its parts that is not as declared. The numbers are those of the description's table.
fn other_part(declared: &manifest::MethodDescription, method: &MethodDescription) -> Option<&'static str> {
    let aead = match declared.aead {
        manifest::Aead::ChaCha20Poly1305 => 1,
        manifest::Aead::Aes256Gcm => 2,
    };
    let hash = match declared.hash {
        manifest::Hash::Blake2s => 1,
        manifest::Hash::Sha256 => 2,
        manifest::Hash::Sha512 => 3,
        manifest::Hash::Blake2b => 4,
    };
    let step = |transform: &manifest::Transform| match transform {
        manifest::Transform::Mask => 1u8,
        manifest::Transform::Rotate => 2,
        manifest::Transform::Permute => 3,
        manifest::Transform::Feistel => 4,
    };
    let steps: Vec<u8> = declared.transforms.iter().map(step).collect();
    // Either of the two HKDFs is what a manifest calls `hkdf`.
    let manifest::Kdf::Hkdf = declared.kdf;
    let parts = [
        ("kdf", (1..=2).contains(&method.kdf)),
        ("aead", method.aead == aead),
        ("hash", method.hash == hash),
        ("order of transforms", method.transforms == steps),
    ];
    parts.into_iter().find(|(_, same)| !same).map(|(part, _)| part)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn what_a_module_describes_is_what_its_manifest_declares() {
        let text = "id = \"m\"\nversion = \"1.0.0\"\nprogram = \"m\"\ndescription = \"d\"\n
[[method]]\nname = \"omega\"\nkdf = \"hkdf\"\naead = \"chacha20-poly1305\"\nhash = \"blake2s\"\ntransforms = [\"feistel\", \"rotate\"]\n";
        let manifest = Manifest::parse("openred.toml", text).unwrap();
        let omega =
            MethodDescription { aead: 1, hash: 1, kdf: 2, transforms: vec![4, 2], ..MethodDescription::floor("omega") };
        let said = |described: &[&MethodDescription]| {
            let encoded: Vec<Bytes> = described.iter().map(|method| method.encode().into()).collect();
            differ(&manifest, &encoded).unwrap_or_default()
        };
        assert_eq!(said(&[&omega]), "");
        assert_eq!(said(&[]), "it does not describe the method omega, which its manifest declares");
        let other = MethodDescription::floor("psi");
        assert!(said(&[&omega, &other]).contains("psi, which its manifest does not declare"));
        for (part, changed) in [
            ("aead", MethodDescription { aead: 2, ..omega.clone() }),
            ("hash", MethodDescription { hash: 2, ..omega.clone() }),
            ("kdf", MethodDescription { kdf: 9, ..omega.clone() }),
            ("order of transforms", MethodDescription { transforms: vec![2, 4], ..omega.clone() }),
        ] {
            assert!(said(&[&changed]).contains(&format!("another {part}")), "{part}");
        }
        assert!(differ(&manifest, &[Bytes::from_static(b"x")]).is_some());
    }
}
