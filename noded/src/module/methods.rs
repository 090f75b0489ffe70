//! Methods that modules describe: handed to the key process when a module attaches, retired when one does without them or is gone.
//!
//! In: what an attached module declares. Out: the links' table of methods, and a condition that names what was refused. The key process
//! judges; nothing here weighs a description.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
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
        for description in described {
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
