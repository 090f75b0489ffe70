//! Whom the host calls: a module in its own process, or, in the host's own tests, one that is linked.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use openred_module::remote::{HookAsk, Undecided};
#[cfg(test)]
use openred_module::{Context, Instance};
use openred_module::{Event, Request, Response, Verdict};

use super::places::Places;
use super::slot::{Slot, Use};
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

impl Callee {
    /// How it is, in a word, and its version, as it says; nothing while it does not run.
    pub(super) fn state(&self) -> (&'static str, Option<String>) {
        match self {
            Self::Process(slot) => slot.state(),
            #[cfg(test)]
            Self::Linked(instance, _) => ("serving", Some(instance.manifest().version.to_owned())),
        }
    }

    /// Whether a call of it would be refused at once.
    pub(super) fn is_down(&self) -> bool {
        matches!(self.state().0, "away" | "quarantined")
    }

    /// Serves one call; always answers.
    pub(super) async fn dispatch(&self, request: Request) -> Response {
        match self {
            Self::Process(slot) => match slot.awake().await {
                Ok(used) => used.attached.dispatch(request).await,
                Err(error) => error.into(),
            },
            #[cfg(test)]
            Self::Linked(instance, context) => instance.dispatch(context.clone(), request).await,
        }
    }

    /// Serves a connection, which is a call to its end: whoever has it keeps what comes with the answer for so long, and hears of a swap by it.
    pub(super) async fn connect(&self, request: Request) -> (Response, Option<Use>) {
        match self {
            Self::Process(slot) => match slot.awake().await {
                Ok(used) => (used.attached.dispatch(request).await, Some(used)),
                Err(error) => (error.into(), None),
            },
            #[cfg(test)]
            Self::Linked(..) => (self.dispatch(request).await, None),
        }
    }

    /// Tells it of an event. A timer wakes it, as a call does; of all else one that does not run hears nothing: its start looks at what
    /// there is.
    pub(super) async fn event(&self, event: Event) {
        match self {
            Self::Process(slot) => {
                let used = match event {
                    Event::Timer(_) => slot.awake().await.ok(),
                    _ => slot.now().await,
                };
                // A handler may wait for peers: a swap does not wait for it.
                if let Some(used) = used.map(Use::wait_not) {
                    used.attached.event(event).await;
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
    fn held(&self) -> Option<BoxFuture<'_, ()>> {
        match &self.callee {
            Callee::Process(slot) if slot.is_held() => Some(Box::pin(slot.let_in())),
            _ => None,
        }
    }

    async fn ask(&self, ask: HookAsk) -> Result<Verdict, Failure> {
        let Some(_place) = self.places.hook(ask.class) else { return Err(Failure::Saturated) };
        match &self.callee {
            // One that sleeps is started for it, within the time that the hook has.
            Callee::Process(slot) => match slot.awake().await {
                Ok(used) => used.attached.hook(ask).await.map_err(|undecided| match undecided {
                    Undecided::Busy => Failure::Saturated,
                    other => Failure::Undecided(other.to_string()),
                }),
                Err(error) => Err(Failure::Undecided(error.detail)),
            },
            #[cfg(test)]
            Callee::Linked(instance, context) => {
                let said = instance.hook(context.clone(), &ask.hook, ask.request).await;
                said.map_err(|error| Failure::Undecided(error.to_string()))
            }
        }
    }
}
