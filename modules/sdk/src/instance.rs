//! A module made ready to be called, its type erased: what a host keeps in its table.
//!
//! Whatever a handler returns, the host gets a [`Response`]: refusals become problem documents here. Deadlines are the
//! host's: it has the timers, and drops the future of a handler that passes its own.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use crate::context::Context;
use crate::error::{ModuleError, Status};
use crate::handler::Call;
use crate::hook::{self, Hook, HookRequest, Hooks, Verdict};
use crate::message::{Request, Response};
use crate::module::{Event, Manifest, Module};
use crate::route::{Route, Routes, conflict, find};

/// Longest module id, in bytes.
const ID_LIMIT: usize = 32;

/// Why a module cannot be loaded: its author's mistake.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The id is not 1 to 32 of `a-z`, `0-9`, `-`.
    #[error("module id {0:?} is not 1 to 32 of a-z, 0-9 and '-'")]
    BadId(&'static str),
    /// Two routes serve the same calls.
    #[error("module {module} has two routes that serve {pattern}")]
    Conflict {
        /// The module.
        module: &'static str,
        /// The second of the two patterns.
        pattern: &'static str,
    },
    /// Two handlers serve the same hook.
    #[error("module {module} has two handlers for the hook {hook}")]
    HookTwice {
        /// The module.
        module: &'static str,
        /// The hook.
        hook: &'static str,
    },
}

type Starter = Box<dyn Fn(Context) -> BoxFuture<'static, Result<(), ModuleError>> + Send + Sync>;
type Listener = Box<dyn Fn(Context, Event) -> BoxFuture<'static, ()> + Send + Sync>;

/// A loaded module.
pub struct Instance {
    manifest: Manifest,
    routes: Vec<Route>,
    hooks: Vec<Hook>,
    start: Starter,
    event: Listener,
}

impl Instance {
    /// Makes a module ready.
    ///
    /// # Errors
    /// [`LoadError`] for a bad id, routes that conflict, or a hook with two handlers.
    pub fn load<M: Module>(module: M) -> Result<Self, LoadError> {
        let module = Arc::new(module);
        let manifest = module.manifest();
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if manifest.id.is_empty() || manifest.id.len() > ID_LIMIT || !manifest.id.bytes().all(allowed) {
            return Err(LoadError::BadId(manifest.id));
        }
        let mut routes = Routes::new(Arc::clone(&module));
        M::routes(&mut routes);
        let routes = routes.into_vec();
        if let Some(pattern) = conflict(&routes) {
            return Err(LoadError::Conflict { module: manifest.id, pattern });
        }
        let mut hooks = Hooks::new(Arc::clone(&module));
        M::middleware(&mut hooks);
        let hooks = hooks.into_vec();
        if let Some(hook) = hook::twice(&hooks) {
            return Err(LoadError::HookTwice { module: manifest.id, hook });
        }
        let starter = Arc::clone(&module);
        Ok(Self {
            manifest,
            routes,
            hooks,
            start: Box::new(move |context| Arc::clone(&starter).start(context)),
            event: Box::new(move |context, event| Arc::clone(&module).event(context, event)),
        })
    }

    /// What the module says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Runs the module's start.
    ///
    /// # Errors
    /// The module's.
    pub async fn start(&self, context: Context) -> Result<(), ModuleError> {
        (self.start)(context).await
    }

    /// Serves one call. Always answers.
    pub async fn dispatch(&self, context: Context, mut request: Request) -> Response {
        let answer = match find(&self.routes, &mut request) {
            Ok(handler) => handler(Call { context, request }).await,
            Err(refusal) => Err(refusal),
        };
        answer.unwrap_or_else(|error| {
            tracing::debug!(module = self.manifest.id, code = error.code, "call refused");
            Response::from(error)
        })
    }

    /// The hooks that have a handler.
    pub fn hooks(&self) -> impl Iterator<Item = &'static str> {
        self.hooks.iter().map(|hook| hook.id)
    }

    /// Asks one of its hooks. Whether the answer is one that this hook may give is the host's to judge.
    ///
    /// # Errors
    /// The handler's, and `no-such-hook`: in both cases the hook has not decided.
    pub async fn hook(&self, context: Context, hook: &str, request: HookRequest) -> Result<Verdict, ModuleError> {
        match self.hooks.iter().find(|known| known.id == hook) {
            Some(known) => (known.handler)(context, request).await,
            None => {
                let detail = format!("this module has no handler for the hook {hook}");
                Err(ModuleError::new(Status::NotFound, "no-such-hook", detail))
            }
        }
    }

    /// Tells the module of an event.
    pub async fn event(&self, context: Context, event: Event) {
        (self.event)(context, event).await;
    }
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Instance({} {})", self.manifest.id, self.manifest.version)
    }
}
