//! A module made ready to be called, its type erased: what a host keeps in its table.
//!
//! Whatever a handler returns, the host gets a [`Response`]: refusals become problem documents here. Deadlines are the
//! host's: it has the timers, and drops the future of a handler that passes its own.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::context::Context;
use crate::error::{ModuleError, Status};
use crate::handler::Call;
use crate::hook::{self, Hook, HookRequest, Hooks, Verdict};
use crate::manifest;
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
    /// The manifest that the module has brought is none.
    #[error("the manifest of module {module}: {why}")]
    BadManifest {
        /// The module.
        module: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The code serves a route that the manifest does not claim, or the other way round.
    #[error(
        "module {module}: {route} is in {has} and not in {lacks}; openred.toml and the code must have the same routes"
    )]
    OtherRoutes {
        /// The module.
        module: &'static str,
        /// The route.
        route: String,
        /// Which of the two has it.
        has: &'static str,
        /// Which has not.
        lacks: &'static str,
    },
}

type Starter = Box<dyn Fn(Context) -> BoxFuture<'static, Result<(), ModuleError>> + Send + Sync>;
type Migrator = Box<dyn Fn(Context, String) -> BoxFuture<'static, Result<(), ModuleError>> + Send + Sync>;
type Listener = Box<dyn Fn(Context, Event) -> BoxFuture<'static, ()> + Send + Sync>;

/// A loaded module.
pub struct Instance {
    manifest: Manifest,
    manifest_text: Option<&'static str>,
    routes: Vec<Route>,
    hooks: Vec<Hook>,
    methods: Vec<Bytes>,
    start: Starter,
    migrate: Migrator,
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
        let claims = claims::<M>(manifest.id)?;
        let has_manifest = claims.is_some();
        let mut routes = Routes::new(Arc::clone(&module), claims.unwrap_or_default());
        M::routes(&mut routes);
        let routes = routes.into_vec(has_manifest).map_err(|(in_code, route)| {
            let (has, lacks) = if in_code { ("the code", "openred.toml") } else { ("openred.toml", "the code") };
            LoadError::OtherRoutes { module: manifest.id, route, has, lacks }
        })?;
        if let Some(pattern) = conflict(&routes) {
            return Err(LoadError::Conflict { module: manifest.id, pattern });
        }
        let mut hooks = Hooks::new(Arc::clone(&module));
        M::middleware(&mut hooks);
        let hooks = hooks.into_vec();
        if let Some(hook) = hook::twice(&hooks) {
            return Err(LoadError::HookTwice { module: manifest.id, hook });
        }
        let methods = module.methods().iter().map(|method| method.encode().into()).collect();
        let (starter, migrator) = (Arc::clone(&module), Arc::clone(&module));
        Ok(Self {
            manifest,
            manifest_text: M::manifest_text(),
            routes,
            hooks,
            methods,
            start: Box::new(move |context| Arc::clone(&starter).start(context)),
            migrate: Box::new(move |context, from| Arc::clone(&migrator).migrate(context, from)),
            event: Box::new(move |context, event| Arc::clone(&module).event(context, event)),
        })
    }

    /// What the module says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Whether these settings (TOML) are ones that its manifest declares; a module without a manifest of its own takes any.
    ///
    /// # Errors
    /// What is wrong with them, for people.
    pub fn accepts(&self, settings: &str) -> Result<(), String> {
        let Some(text) = self.manifest_text else { return Ok(()) };
        let parsed = manifest::Manifest::parse("openred.toml", text).map_err(|error| error.to_string())?;
        parsed.configure("settings", settings).map(drop).map_err(|error| error.to_string())
    }

    /// The methods that it describes, canonical.
    pub fn methods(&self) -> &[Bytes] {
        &self.methods
    }

    /// Runs the module's start.
    ///
    /// # Errors
    /// The module's.
    pub async fn start(&self, context: Context) -> Result<(), ModuleError> {
        (self.start)(context).await
    }

    /// Brings the rows that `context` gives from what version `from` wrote to what this one reads.
    ///
    /// # Errors
    /// The module's.
    pub async fn migrate(&self, context: Context, from: String) -> Result<(), ModuleError> {
        (self.migrate)(context, from).await
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

/// The routes of the manifest that the module has brought.
fn claims<M: Module>(module: &'static str) -> Result<Option<Vec<manifest::Route>>, LoadError> {
    let Some(text) = M::manifest_text() else { return Ok(None) };
    let parsed = manifest::Manifest::parse("openred.toml", text);
    let parsed = parsed.map_err(|error| LoadError::BadManifest { module, why: error.to_string() })?;
    Ok(Some(parsed.routes))
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Instance({} {})", self.manifest.id, self.manifest.version)
    }
}
