//! A call and its answer as a module sees them. The session layer's small request (PROTOCOL section 6), checked.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::body::Body;
use crate::error::{ModuleError, Status};
use crate::host::UnixMillis;
use crate::params::Params;
pub use openred_manifest::Method;
use openred_proto::id::NodeId;

/// Content type of JSON bodies.
pub(crate) const JSON: &str = "application/json";

/// Largest JSON document that [`Request::json`] and [`Response::json_body`] read, in bytes. Larger things are streams, not documents.
pub(crate) const JSON_LIMIT: usize = 4 * 1024 * 1024;

/// Who calls. Established by the node (an open session, or the operator's socket), never by anything in the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Caller {
    /// The same module at a linked peer.
    Peer(NodeId),
    /// The operator of this node.
    Operator,
    /// Another module of this node.
    Module(ModuleName),
    /// Somebody on this machine, over a connection to the address that the operator gave this module. Not known to be the operator.
    Loopback,
}

/// Name of a module: 1 to 32 of `a-z`, `0-9`, `-`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ModuleName {
    bytes: [u8; 32],
    length: u8,
}

impl ModuleName {
    /// The name, if it is one.
    pub fn new(name: &str) -> Option<Self> {
        if !openred_proto::checked::module_word::is_module(name) {
            return None;
        }
        let mut bytes = [0; 32];
        bytes.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
        Some(Self { bytes, length: u8::try_from(name.len()).ok()? })
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        let name = self.bytes.get(..usize::from(self.length)).unwrap_or_default();
        std::str::from_utf8(name).unwrap_or_default()
    }
}

impl std::fmt::Debug for ModuleName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Chosen by the caller, the same for each retry of one call.
pub type IdempotencyKey = [u8; 16];

/// A call to this module.
#[derive(Debug)]
pub struct Request {
    /// Who calls.
    pub caller: Caller,
    /// Read or change.
    pub method: Method,
    /// Path inside the module, beginning with `/`, without a query.
    pub path: String,
    /// What the pattern's `{names}` matched; filled by the router.
    pub params: Params,
    /// Media type of the body; empty if there is none.
    pub content_type: String,
    /// Length of the body if the caller said it. A claim: the body itself is what counts.
    pub length: Option<u64>,
    /// When the caller stops waiting.
    pub deadline: Option<UnixMillis>,
    /// The same for each retry of one call.
    pub idempotency_key: Option<IdempotencyKey>,
    /// The modules that wait for each other up to this call, the caller last: for the host, which fills it, and empty in the module.
    pub via: Vec<String>,
    /// The body.
    pub body: Body,
}

impl Request {
    /// A call without a body.
    pub fn new(caller: Caller, method: Method, path: impl Into<String>) -> Self {
        Self {
            caller,
            method,
            path: path.into(),
            params: Params::default(),
            content_type: String::new(),
            length: Some(0),
            deadline: None,
            idempotency_key: None,
            via: Vec::new(),
            body: Body::empty(),
        }
    }

    /// The same call with a body.
    #[must_use]
    pub fn with_body(mut self, content_type: &str, body: Body) -> Self {
        self.length = body.known_length();
        content_type.clone_into(&mut self.content_type);
        self.body = body;
        self
    }

    /// The peer that calls.
    ///
    /// # Errors
    /// `not-a-peer` if the operator or another module calls.
    pub fn peer(&self) -> Result<NodeId, ModuleError> {
        match self.caller {
            Caller::Peer(peer) => Ok(peer),
            Caller::Operator | Caller::Loopback | Caller::Module(_) => {
                Err(ModuleError::new(Status::Forbidden, "not-a-peer", "this call is for peers"))
            }
        }
    }

    /// The body as a JSON document of at most 4 MiB.
    ///
    /// # Errors
    /// A body that is too long, cut short or not of this shape.
    pub async fn json<T: DeserializeOwned>(self) -> Result<T, ModuleError> {
        let bytes = self.body.collect(JSON_LIMIT).await?;
        parse_json(&bytes)
    }
}

fn parse_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ModuleError> {
    serde_json::from_slice(bytes).map_err(|error| {
        let detail = format!("not the expected JSON at line {} column {}", error.line(), error.column());
        ModuleError::bad_request("bad-json", detail)
    })
}

/// A module's answer.
#[derive(Debug)]
pub struct Response {
    /// Outcome.
    pub status: Status,
    /// Media type of the body; empty if there is none.
    pub content_type: String,
    /// Length of the body if known.
    pub length: Option<u64>,
    /// The body.
    pub body: Body,
}

impl Response {
    /// An answer without a body.
    pub fn empty(status: Status) -> Self {
        Self { status, content_type: String::new(), length: Some(0), body: Body::empty() }
    }

    /// An answer with a body.
    pub fn new(status: Status, content_type: &str, body: Body) -> Self {
        Self { status, content_type: content_type.to_owned(), length: body.known_length(), body }
    }

    /// The same answer with a length that the body does not know by itself.
    #[must_use]
    pub fn with_length(mut self, length: u64) -> Self {
        self.length = Some(length);
        self
    }

    /// An answer with a JSON document.
    ///
    /// # Errors
    /// Only for a type that JSON cannot hold (a map with keys that are not strings).
    pub fn json<T: Serialize>(status: Status, value: &T) -> Result<Self, ModuleError> {
        let text = serde_json::to_vec(value)
            .map_err(|_| ModuleError::new(Status::Internal, "bug", "an answer could not be written"))?;
        Ok(Self::new(status, JSON, Body::whole(Bytes::from(text))))
    }

    /// The body as a JSON document of at most 4 MiB, whatever the status.
    ///
    /// # Errors
    /// A body that is too long, cut short or not of this shape.
    pub async fn json_body<T: DeserializeOwned>(self) -> Result<T, ModuleError> {
        let bytes = self.body.collect(JSON_LIMIT).await?;
        parse_json(&bytes)
    }
}

/// A call to the same module of a linked peer.
#[derive(Debug)]
pub struct PeerRequest {
    /// Read or change.
    pub method: Method,
    /// Path inside the module.
    pub path: String,
    /// Media type of the body; empty if there is none.
    pub content_type: String,
    /// Length of the body if known.
    pub length: Option<u64>,
    /// When this side stops waiting for the head of the answer; the host has a limit of its own besides.
    pub deadline: Option<UnixMillis>,
    /// The same for each retry of one call.
    pub idempotency_key: Option<IdempotencyKey>,
    /// The body.
    pub body: Body,
}

impl PeerRequest {
    /// A reading call.
    pub fn get(path: impl Into<String>) -> Self {
        Self {
            method: Method::Get,
            path: path.into(),
            content_type: String::new(),
            length: Some(0),
            deadline: None,
            idempotency_key: None,
            body: Body::empty(),
        }
    }

    /// The same reading call, whose answer is the same each time under this key (content that is named by its hash, say): a body
    /// that breaks off goes on where it stopped, in a new request with this key, and the module notices nothing. It must tell its length.
    #[must_use]
    pub fn resumable(mut self, key: IdempotencyKey) -> Self {
        self.idempotency_key = Some(key);
        self
    }

    /// A changing call with a body.
    pub fn post(path: impl Into<String>, content_type: &str, body: Body) -> Self {
        let length = body.known_length();
        Self { method: Method::Post, content_type: content_type.to_owned(), length, body, ..Self::get(path) }
    }

    /// As the peer's module will see it.
    pub fn into_request(self, caller: NodeId) -> Request {
        Request {
            caller: Caller::Peer(caller),
            method: self.method,
            path: self.path,
            params: Params::default(),
            content_type: self.content_type,
            length: self.length,
            deadline: self.deadline,
            idempotency_key: self.idempotency_key,
            via: Vec::new(),
            body: self.body,
        }
    }
}
