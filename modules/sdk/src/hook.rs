//! Middleware: what a hook is asked, what it may answer, and which handler serves which hook.
//!
//! A hook stands at a [`Point`] of calls that are not its module's own affair: requests of peers and of the operator to any module of the
//! node, requests of modules to peers, and the answers to all of these. Where it stands and what it is shown is declared in the module's
//! manifest ; the node chooses by that which calls it is asked about, sends it no field that is not declared, and
//! takes none from it. This file has the handlers and the vocabulary; nothing here decides for a node.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use openred_proto::id::NodeId;
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::error::{ModuleError, Status};
use crate::message::Method;

/// Most bytes of a body that a hook is shown, and that it may answer with: half a frame, so that its call and its answer are one each.
pub const HOOK_BODY: usize = 32 * 1024;
/// Longest path that a hook may put in place of another.
pub const HOOK_PATH: usize = 1024;
/// Longest reason of a denial.
pub const HOOK_DETAIL: usize = 1024;

/// Where a hook stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Point {
    /// A linked peer's request, before the module that it is for has it.
    Inbound,
    /// The answer to it, before the peer has it.
    InboundResponse,
    /// A request of this node's operator.
    Operator,
    /// The answer to it.
    OperatorResponse,
    /// A request of a module of this node to a peer, before it leaves.
    Outbound,
    /// The peer's answer, before the module has it.
    OutboundResponse,
}

impl Point {
    /// All of them, in the order of a call.
    pub const ALL: [Self; 6] = [
        Self::Inbound,
        Self::InboundResponse,
        Self::Operator,
        Self::OperatorResponse,
        Self::Outbound,
        Self::OutboundResponse,
    ];

    /// Its name in manifests and lists.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::InboundResponse => "inbound_response",
            Self::Operator => "operator",
            Self::OperatorResponse => "operator_response",
            Self::Outbound => "outbound",
            Self::OutboundResponse => "outbound_response",
        }
    }

    /// Whether it is an answer that stands here.
    pub fn is_response(self) -> bool {
        matches!(self, Self::InboundResponse | Self::OperatorResponse | Self::OutboundResponse)
    }

    /// What can be shown of a call here.
    pub fn shows(self) -> Fields {
        let mut fields = Fields::ALL;
        if !self.is_response() {
            fields = fields.without(Field::Status);
        }
        if matches!(self, Self::Operator | Self::OperatorResponse) {
            fields = fields.without(Field::Peer);
        }
        fields
    }

    /// What a hook of class transform may change here, of what it declares.
    pub fn changes(self) -> Fields {
        let own = if self.is_response() { Field::Status } else { Field::Path };
        [own, Field::ContentType, Field::Body].into_iter().collect()
    }
}

/// What a hook is for. Classes are asked in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Says whether the caller is who he should be. Closed when it fails.
    Authn,
    /// Says whether the call may be made. Closed when it fails.
    Authz,
    /// May change declared fields. Closed when it fails, unless declared otherwise.
    Transform,
    /// Is told, beside the call's way; can change and hold up nothing.
    Observe,
}

impl Class {
    /// All of them, in their order.
    pub const ALL: [Self; 4] = [Self::Authn, Self::Authz, Self::Transform, Self::Observe];

    /// Its name in manifests and lists.
    pub fn name(self) -> &'static str {
        match self {
            Self::Authn => "authn",
            Self::Authz => "authz",
            Self::Transform => "transform",
            Self::Observe => "observe",
        }
    }
}

/// A part of a call that a hook may be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Field {
    /// Whose route is called, or who calls a peer.
    Module,
    /// GET or POST.
    Method,
    /// The path inside the module.
    Path,
    /// The other node.
    Peer,
    /// The media type of the body.
    ContentType,
    /// The length that was said.
    Length,
    /// The status of an answer.
    Status,
    /// The body, as far as it fits [`HOOK_BODY`].
    Body,
}

impl Field {
    /// All of them.
    pub const ALL: [Self; 8] =
        [Self::Module, Self::Method, Self::Path, Self::Peer, Self::ContentType, Self::Length, Self::Status, Self::Body];

    /// Its name in manifests and lists.
    pub fn name(self) -> &'static str {
        match self {
            Self::Module => "module",
            Self::Method => "method",
            Self::Path => "path",
            Self::Peer => "peer",
            Self::ContentType => "content_type",
            Self::Length => "length",
            Self::Status => "status",
            Self::Body => "body",
        }
    }
}

/// A set of fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fields(u8);

impl Fields {
    /// Every field.
    pub const ALL: Self = Self(u8::MAX);

    /// Whether it is in the set.
    pub fn has(self, field: Field) -> bool {
        self.0 & (1 << field as u8) != 0
    }

    /// The set with one more.
    #[must_use]
    pub fn with(self, field: Field) -> Self {
        Self(self.0 | 1 << field as u8)
    }

    /// The set without one.
    #[must_use]
    pub fn without(self, field: Field) -> Self {
        Self(self.0 & !(1 << field as u8))
    }

    /// What is in both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether nothing is in it.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Its fields, in their order.
    pub fn iter(self) -> impl Iterator<Item = Field> {
        Field::ALL.into_iter().filter(move |field| self.has(*field))
    }
}

impl FromIterator<Field> for Fields {
    fn from_iter<I: IntoIterator<Item = Field>>(fields: I) -> Self {
        fields.into_iter().fold(Self::default(), Self::with)
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_shows_what_its_calls_have_and_lets_less_be_changed() {
        for point in Point::ALL {
            assert_eq!(point.shows().and(point.changes()), point.changes());
            assert_eq!(point.shows().has(Field::Status), point.is_response());
            assert!(!point.changes().has(Field::Peer) && !point.changes().has(Field::Module));
        }
        assert!(!Point::Operator.shows().has(Field::Peer));
        let two: Fields = [Field::Body, Field::Path].into_iter().collect();
        assert_eq!(two.iter().collect::<Vec<_>>(), [Field::Path, Field::Body]);
        assert!(two.without(Field::Path).without(Field::Body).is_empty());
    }
}
