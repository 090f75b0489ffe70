//! Methods of modules at this node: what the key process has of them, what the operator says, and what that does to links.

use std::sync::PoisonError;

use openred_proto::id::MethodId;
use openred_proto::method::Place;
use openred_proto::method::description::{MethodDescription, Vetted};
use openred_proto::vault::{LinkSummary, RegisteredMethod};

use super::methods::BadDecision;
use super::{LinkError, Links};
use crate::clock;

/// A method of a module, as the operator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Described {
    pub(crate) place: Place,
    pub(crate) module: String,
    /// No new link is made with it: its module is gone, or does without it.
    pub(crate) retired: bool,
    pub(crate) vetted: Vetted,
}

impl Described {
    /// The key process has held it against the table; what does not hold here is of another version.
    fn new(method: RegisteredMethod) -> Option<Self> {
        let vetted = MethodDescription::decode(&method.description).ok()?.vet().ok()?;
        Some(Self { place: method.place, module: method.module, retired: method.retired, vetted })
    }

    /// As the operator calls it.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.module, self.vetted.name)
    }
}

impl Links {
    /// The methods of modules.
    pub(crate) fn described(&self) -> Vec<Described> {
        self.described.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What the key process has of them now. The links of one that is gone are renewed with others within an epoch.
    ///
    /// # Errors
    /// The store's.
    pub(crate) async fn hear_methods(&self, table: Vec<RegisteredMethod>) -> Result<(), LinkError> {
        let described: Vec<Described> = table.into_iter().filter_map(Described::new).collect();
        let places: Vec<(Place, MethodId, bool)> =
            described.iter().map(|method| (method.place, method.vetted.id, !method.retired)).collect();
        *self.described.lock().unwrap_or_else(PoisonError::into_inner) = described;
        let before = self.methods();
        let heard = before.clone().heard(&places, clock::now());
        if heard == before { Ok(()) } else { self.decide(heard).await }
    }

    /// The operator allows a method of a module, by the name `MODULE/METHOD`, or disables it.
    ///
    /// # Errors
    /// [`BadDecision::NoModule`] for one that no module has registered, or the store's.
    pub(crate) async fn decide_described(&self, name: &str, allow: bool) -> Result<(), LinkError> {
        let described = self.described();
        let method = described.iter().find(|method| method.name() == name).ok_or(BadDecision::NoModule)?;
        let methods = self.methods().with_registered(method.place, allow, clock::now());
        tracing::info!(method = name, id = %method.vetted.id, allow, "method decided");
        self.decide(methods).await
    }

    /// The name of a link's method.
    pub(crate) fn method_name(&self, summary: &LinkSummary) -> String {
        let Some(place) = summary.registered else { return summary.method.name().to_owned() };
        let described = self.described();
        let method = described.iter().find(|method| method.place == place);
        method.map_or_else(|| "a module's".to_owned(), Described::name)
    }
}
