//! Middleware: what a hook is asked, what it may answer, and which handler serves which hook.
//!
//! A hook stands at a [`Point`] of calls that are not its module's own affair: requests of peers and of the operator to any module of the
//! node, requests of modules to peers, and the answers to all of these. Where it stands and what it is shown is declared in the module's
//! manifest (docs/modules-hooks.md); the node chooses by that which calls it is asked about, sends it no field that is not declared, and
//! takes none from it. This file has the handlers and the vocabulary; nothing here decides for a node.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use openred_proto::id::NodeId;

use crate::context::Context;
use crate::error::{ModuleError, Status};
use crate::message::Method;

pub use crate::manifest::{Field, Fields, HookClass as Class, Point};

/// Most bytes of a body that a hook is shown, and that it may answer with: half a frame, so that its call and its answer are one each.
pub const HOOK_BODY: usize = 32 * 1024;
/// Longest path that a hook may put in place of another.
pub const HOOK_PATH: usize = 1024;
/// Longest reason of a denial.
pub const HOOK_DETAIL: usize = 1024;

/// What a hook is shown of a call: its declared fields, and nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookRequest {
    /// Where.
    pub point: Point,
    /// See [`Field::Module`].
    pub module: Option<String>,
    /// See [`Field::Method`].
    pub method: Option<Method>,
    /// See [`Field::Path`].
    pub path: Option<String>,
    /// See [`Field::Peer`].
    pub peer: Option<NodeId>,
    /// See [`Field::ContentType`].
    pub content_type: Option<String>,
    /// See [`Field::Length`]; absent too where nobody said it.
    pub length: Option<u64>,
    /// See [`Field::Status`].
    pub status: Option<u16>,
    /// See [`Field::Body`].
    pub body: Option<Bytes>,
    /// There is more of the body than is shown. Such a body cannot be changed.
    pub truncated: bool,
}

impl HookRequest {
    /// One that shows nothing yet: for tests.
    pub fn new(point: Point) -> Self {
        Self {
            point,
            module: None,
            method: None,
            path: None,
            peer: None,
            content_type: None,
            length: None,
            status: None,
            body: None,
            truncated: false,
        }
    }
}

/// What a hook answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The call goes on.
    Continue,
    /// The call goes on with these changes. Class transform alone.
    Mutate(Mutation),
    /// This is the answer; nobody else is asked. Not of class observe.
    Respond(HookResponse),
    /// The call is refused: its caller has a 403. Not of class observe.
    Deny(Denial),
}

impl Verdict {
    /// A denial; `code` in kebab case, for the node's log, `detail` a sentence for the caller.
    pub fn deny(code: &str, detail: &str) -> Self {
        Self::Deny(Denial { code: code.to_owned(), detail: detail.to_owned() })
    }
}

/// Changes of a call; what is `None` stays. Only declared fields, and only those that [`Point::changes`] names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mutation {
    /// Another path; of a request.
    pub path: Option<String>,
    /// Another media type.
    pub content_type: Option<String>,
    /// Another body, whole; its length follows.
    pub body: Option<Bytes>,
    /// Another status; of an answer.
    pub status: Option<Status>,
}

impl Mutation {
    /// What it changes.
    pub fn fields(&self) -> Fields {
        let changed = [
            (Field::Path, self.path.is_some()),
            (Field::ContentType, self.content_type.is_some()),
            (Field::Body, self.body.is_some()),
            (Field::Status, self.status.is_some()),
        ];
        changed.into_iter().filter(|(_, is)| *is).map(|(field, _)| field).collect()
    }
}

/// An answer that a hook gives in a module's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookResponse {
    /// Outcome.
    pub status: Status,
    /// Media type of the body; empty if there is none.
    pub content_type: String,
    /// The body, at most [`HOOK_BODY`].
    pub body: Bytes,
}

/// Why a call is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// Stable name in kebab case.
    pub code: String,
    /// One sentence.
    pub detail: String,
}

type Answer = Pin<Box<dyn Future<Output = Result<Verdict, ModuleError>> + Send>>;
pub(crate) type Handler = Arc<dyn Fn(Context, HookRequest) -> Answer + Send + Sync>;

/// The hooks of a module under construction.
///
/// ```
/// use std::sync::Arc;
///
/// use openred_module::{
///     Context, HookRequest, Hooks, Manifest, Module, ModuleError, Point, Routes, TestHost, Verdict,
/// };
///
/// struct Gate;
///
/// impl Module for Gate {
///     fn manifest(&self) -> Manifest {
///         Manifest { id: "gate", version: "1.0.0", summary: "Keeps long attachments out" }
///     }
///
///     fn routes(_: &mut Routes<Self>) {}
///
///     fn middleware(hooks: &mut Hooks<Self>) {
///         hooks.on("length", Self::length);
///     }
/// }
///
/// impl Gate {
///     async fn length(self: Arc<Self>, _: Context, request: HookRequest) -> Result<Verdict, ModuleError> {
///         match request.length {
///             Some(length) if length <= 65_536 => Ok(Verdict::Continue),
///             _ => Ok(Verdict::deny("too-long", "Attachments stay below 64 KiB here.")),
///         }
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let host = TestHost::start(1, Gate).await;
/// let short = HookRequest { length: Some(10), ..HookRequest::new(Point::Inbound) };
/// assert_eq!(host.hook("length", short).await, Ok(Verdict::Continue));
/// let unknown = HookRequest::new(Point::Inbound);
/// assert!(matches!(host.hook("length", unknown).await, Ok(Verdict::Deny(_))));
/// # }
/// ```
pub struct Hooks<M> {
    module: Arc<M>,
    hooks: Vec<Hook>,
}

pub(crate) struct Hook {
    pub(crate) id: &'static str,
    pub(crate) handler: Handler,
}

impl<M: Send + Sync + 'static> Hooks<M> {
    pub(crate) fn new(module: Arc<M>) -> Self {
        Self { module, hooks: Vec::new() }
    }

    pub(crate) fn into_vec(self) -> Vec<Hook> {
        self.hooks
    }

    /// The handler of the hook that the manifest names `id`. An error of the handler is no denial: the node then does what the
    /// hook's class and its manifest say for failures.
    pub fn on<F, A>(&mut self, id: &'static str, handler: F)
    where
        F: Fn(Arc<M>, Context, HookRequest) -> A + Send + Sync + 'static,
        A: Future<Output = Result<Verdict, ModuleError>> + Send + 'static,
    {
        let module = Arc::clone(&self.module);
        let handler: Handler =
            Arc::new(move |context, request| Box::pin(handler(Arc::clone(&module), context, request)));
        self.hooks.push(Hook { id, handler });
    }
}

/// The first id that two handlers share.
pub(crate) fn twice(hooks: &[Hook]) -> Option<&'static str> {
    let mut seen = std::collections::BTreeSet::new();
    hooks.iter().find(|hook| !seen.insert(hook.id)).map(|hook| hook.id)
}
