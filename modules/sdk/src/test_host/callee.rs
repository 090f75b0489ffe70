//! The module of a test node: linked into the test, or a process of its own.

use std::sync::Arc;

use crate::context::Context;
use crate::error::ModuleError;
#[cfg(feature = "sandbox")]
use crate::error::Status;
use crate::hook::{HookRequest, Verdict};
use crate::instance::Instance;
use crate::message::{Request, Response};
use crate::module::Event;
#[cfg(feature = "sandbox")]
use crate::remote::Attached;

/// Whom a test node calls.
#[derive(Clone)]
pub(crate) enum Callee {
    Linked(Arc<Instance>),
    #[cfg(feature = "sandbox")]
    Process(Arc<Attached>),
}

impl Callee {
    /// Its id.
    pub(super) fn module(&self) -> &str {
        match self {
            Self::Linked(instance) => instance.manifest().id,
            #[cfg(feature = "sandbox")]
            Self::Process(attached) => attached.module(),
        }
    }

    pub(super) async fn dispatch(&self, context: Context, request: Request) -> Response {
        match self {
            Self::Linked(instance) => instance.dispatch(context, request).await,
            #[cfg(feature = "sandbox")]
            Self::Process(attached) => attached.dispatch(request).await,
        }
    }

    /// A module in its cage is asked through its attachment, which has the manifest's word on what it may answer: not here.
    pub(super) async fn hook(
        &self,
        context: Context,
        hook: &str,
        request: HookRequest,
    ) -> Result<Verdict, ModuleError> {
        match self {
            Self::Linked(instance) => instance.hook(context, hook, request).await,
            #[cfg(feature = "sandbox")]
            Self::Process(_) => {
                let detail = "hooks of a module in its cage are asked with `Attached::hook`";
                Err(ModuleError::new(Status::Conflict, "not-linked", detail))
            }
        }
    }

    pub(super) async fn event(&self, context: Context, event: Event) {
        match self {
            Self::Linked(instance) => instance.event(context, event).await,
            #[cfg(feature = "sandbox")]
            Self::Process(attached) => {
                // One that has gone hears nothing, as under a real node.
                attached.event(event).await;
            }
        }
    }
}
