//! How a module refuses: a status, a stable code and a sentence, turned into a problem document (RFC 9457) for the caller.

use bytes::Bytes;
use serde::Serialize;

use crate::body::{Body, BodyError};
use crate::host::{CallError, HostError, PeerError};
use crate::message::Response;
use crate::network::DialError;

/// Content type of a refusal's body.
pub const PROBLEM_JSON: &str = "application/problem+json";

/// The outcome of a call, with the numbers of HTTP (RFC 9110 §15), of which only these are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u16)]
#[allow(missing_docs, reason = "the names are those of RFC 9110")]
pub enum Status {
    Ok = 200,
    Created = 201,
    Accepted = 202,
    BadRequest = 400,
    Forbidden = 403,
    NotFound = 404,
    MethodNotAllowed = 405,
    Conflict = 409,
    TooLarge = 413,
    TooMany = 429,
    Internal = 500,
    BadGateway = 502,
    Unavailable = 503,
    TimedOut = 504,
    InsufficientStorage = 507,
}

impl Status {
    const ALL: [Self; 15] = [
        Self::Ok,
        Self::Created,
        Self::Accepted,
        Self::BadRequest,
        Self::Forbidden,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Conflict,
        Self::TooLarge,
        Self::TooMany,
        Self::Internal,
        Self::BadGateway,
        Self::Unavailable,
        Self::TimedOut,
        Self::InsufficientStorage,
    ];

    /// The number.
    pub fn code(self) -> u16 {
        self as u16
    }

    /// The status of a number; one that is not in use here is read as the general case of its class, and anything else as an error.
    pub fn from_code(code: u16) -> Self {
        if let Some(known) = Self::ALL.into_iter().find(|status| status.code() == code) {
            return known;
        }
        match code / 100 {
            2 => Self::Ok,
            4 => Self::BadRequest,
            _ => Self::Internal,
        }
    }

    /// Whether the call did what was asked.
    pub fn is_success(self) -> bool {
        self.code() < 300
    }
}

/// A refusal by a module, as its caller will see it.
///
/// Each module has one error enum of its own and a `From` into this type; `code` is stable and has an entry in `docs/errors.md`.
///
/// ```
/// use openred_module::{HostError, ModuleError, Status};
///
/// enum ShopError {
///     SoldOut,
///     Host(HostError),
/// }
///
/// impl From<HostError> for ShopError {
///     fn from(error: HostError) -> Self {
///         Self::Host(error)
///     }
/// }
///
/// impl From<ShopError> for ModuleError {
///     fn from(error: ShopError) -> Self {
///         match error {
///             ShopError::SoldOut => ModuleError::new(Status::Conflict, "sold-out", "There is nothing left."),
///             ShopError::Host(error) => error.into(),
///         }
///     }
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {detail}")]
pub struct ModuleError {
    /// Class of the refusal.
    pub status: Status,
    /// Stable name in kebab case, for programs.
    pub code: &'static str,
    /// One sentence for people. It must hold no secret and nothing that the caller did not already know or ask for.
    pub detail: String,
}

impl ModuleError {
    /// A refusal out of its three parts.
    pub fn new(status: Status, code: &'static str, detail: impl Into<String>) -> Self {
        Self { status, code, detail: detail.into() }
    }

    /// A request that cannot be understood.
    pub fn bad_request(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(Status::BadRequest, code, detail)
    }

    /// Something named does not exist, or is not for this caller (the two look the same).
    pub fn not_found(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(Status::NotFound, code, detail)
    }
}

#[derive(Serialize)]
struct Problem<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    code: &'a str,
    detail: &'a str,
}

impl From<ModuleError> for Response {
    fn from(error: ModuleError) -> Self {
        let problem = Problem {
            r#type: format!("urn:openred:problem:{}", error.code),
            title: error.code,
            status: error.status.code(),
            code: error.code,
            detail: &error.detail,
        };
        let text = serde_json::to_vec(&problem).expect("strings and a number always serialise");
        Self {
            status: error.status,
            content_type: PROBLEM_JSON.to_owned(),
            length: Some(text.len() as u64),
            body: Body::whole(Bytes::from(text)),
        }
    }
}

impl From<BodyError> for ModuleError {
    fn from(error: BodyError) -> Self {
        let (status, code) = match error {
            BodyError::TooLong { .. } => (Status::TooLarge, "body-too-long"),
            BodyError::TimedOut => (Status::TimedOut, "body-timed-out"),
            BodyError::Truncated => (Status::BadRequest, "body-truncated"),
            BodyError::Failed => (Status::BadGateway, "body-failed"),
        };
        Self::new(status, code, error.to_string())
    }
}

impl From<HostError> for ModuleError {
    fn from(error: HostError) -> Self {
        let (status, code) = match error {
            HostError::Full => (Status::InsufficientStorage, "disk-full"),
            HostError::TooLarge { .. } => (Status::TooLarge, "value-too-large"),
            HostError::NoBlob => (Status::NotFound, "blob-missing"),
            HostError::Storage => (Status::Internal, "storage-failed"),
            HostError::ShuttingDown => (Status::Unavailable, "shutting-down"),
            HostError::NotGranted => (Status::Forbidden, "not-granted"),
            HostError::NotSealed => (Status::BadRequest, "not-sealed"),
            HostError::BadDomain => (Status::Internal, "bad-domain"),
            HostError::Busy => (Status::Unavailable, "keys-busy"),
        };
        Self::new(status, code, error.to_string())
    }
}

impl From<CallError> for ModuleError {
    fn from(error: CallError) -> Self {
        let (status, code) = match error {
            CallError::NotGranted => (Status::Forbidden, "not-granted"),
            CallError::NoModule => (Status::Unavailable, "no-such-module"),
            CallError::TooDeep => (Status::Conflict, "modules-too-deep"),
            CallError::Cycle => (Status::Conflict, "modules-in-a-circle"),
            CallError::Busy => (Status::TooMany, "module-busy"),
            CallError::TimedOut => (Status::TimedOut, "module-timed-out"),
            CallError::Ended => (Status::Unavailable, "call-ended"),
        };
        Self::new(status, code, error.to_string())
    }
}

impl From<DialError> for ModuleError {
    fn from(error: DialError) -> Self {
        let (status, code) = match error {
            DialError::NotGranted => (Status::Forbidden, "not-granted"),
            DialError::Unresolved => (Status::BadGateway, "egress-unresolved"),
            DialError::Private => (Status::Forbidden, "egress-private"),
            DialError::Unreachable => (Status::BadGateway, "egress-unreachable"),
            DialError::TimedOut => (Status::TimedOut, "egress-timed-out"),
            DialError::Busy => (Status::TooMany, "egress-busy"),
        };
        Self::new(status, code, error.to_string())
    }
}

impl From<PeerError> for ModuleError {
    fn from(error: PeerError) -> Self {
        let (status, code) = match error {
            PeerError::NotGranted => (Status::Forbidden, "not-granted"),
            PeerError::NotLinked => (Status::NotFound, "peer-not-linked"),
            PeerError::Unreachable => (Status::BadGateway, "peer-unreachable"),
            PeerError::TimedOut => (Status::TimedOut, "peer-timed-out"),
            PeerError::Interrupted => (Status::BadGateway, "peer-interrupted"),
            PeerError::Busy => (Status::TooMany, "peer-busy"),
        };
        Self::new(status, code, error.to_string())
    }
}
