//! Whom the host calls: a module in its own process, or, in the host's own tests, one that is linked.

use std::sync::{Arc, Mutex, PoisonError};

use openred_module::remote::{Attached, HookAsk, Undecided};
#[cfg(test)]
use openred_module::{Context, Instance};
use openred_module::{Event, ModuleError, Request, Response, Status, Verdict};

use super::places::Places;
use crate::hooks::{Askable, Failure};

/// A module as the host's table has it.
#[derive(Clone)]
pub(super) enum Callee {
    /// In a process of its own.
    Process(Arc<Slot>),
    /// In this one.
    #[cfg(test)]
    Linked(Arc<Instance>, Context),
}

/// Where a module is attached, while it is.
#[derive(Default)]
pub(super) struct Slot(Mutex<Option<Arc<Attached>>>);

impl Slot {
    /// From now on calls go here; nothing: nowhere.
    pub(super) fn set(&self, attached: Option<Arc<Attached>>) {
        let before = std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), attached);
        // Outside the lock: the last one to let go of an attachment ends it.
        drop(before);
    }

    fn get(&self) -> Option<Arc<Attached>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Callee {
    /// Its version, as it says; nothing while it is away.
    pub(super) fn version(&self) -> Option<String> {
        match self {
            Self::Process(slot) => slot.get().map(|attached| attached.version().to_owned()),
            #[cfg(test)]
            Self::Linked(instance, _) => Some(instance.manifest().version.to_owned()),
        }
    }

    /// Serves one call; always answers.
    pub(super) async fn dispatch(&self, request: Request) -> Response {
        match self {
            Self::Process(slot) => match slot.get() {
                Some(attached) => attached.dispatch(request).await,
                None => down().into(),
            },
            #[cfg(test)]
            Self::Linked(instance, context) => instance.dispatch(context.clone(), request).await,
        }
    }

    /// Tells it of an event. One that is away hears nothing: its start looks at what there is.
    pub(super) async fn event(&self, event: Event) {
        match self {
            Self::Process(slot) => {
                if let Some(attached) = slot.get() {
                    attached.event(event).await;
                }
            }
            #[cfg(test)]
            Self::Linked(instance, context) => instance.event(context.clone(), event).await,
        }
    }
}

/// Whom a hook's question goes to: its module, as far as that has a place for it.
pub(super) struct Asked {
    pub(super) callee: Callee,
    pub(super) places: Arc<Places>,
}

#[async_trait::async_trait]
impl Askable for Asked {
    async fn ask(&self, ask: HookAsk) -> Result<Verdict, Failure> {
        let Some(_place) = self.places.hook(ask.class) else { return Err(Failure::Saturated) };
        match &self.callee {
            Callee::Process(slot) => match slot.get() {
                Some(attached) => attached.hook(ask).await.map_err(|undecided| match undecided {
                    Undecided::Busy => Failure::Saturated,
                    other => Failure::Undecided(other.to_string()),
                }),
                None => Err(Failure::Undecided("its module does not run now".to_owned())),
            },
            #[cfg(test)]
            Callee::Linked(instance, context) => {
                let said = instance.hook(context.clone(), &ask.hook, ask.request).await;
                said.map_err(|error| Failure::Undecided(error.to_string()))
            }
        }
    }
}

/// The module does not run now.
pub(super) fn down() -> ModuleError {
    ModuleError::new(Status::Unavailable, "module-down", "the module does not run now")
}
