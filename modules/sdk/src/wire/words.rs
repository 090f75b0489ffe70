//! Failures of host calls as gRPC statuses and back. A code alone does not tell them apart: the message is a word of the contract.

use tonic::{Code, Status};

use crate::host::{CallError, HostError, PeerError};
use crate::network::DialError;
use crate::stored::StoreError;

/// The module was not granted this.
pub(crate) const NOT_GRANTED: &str = "not-granted";
/// The connection was not opened, or its attachment has ended.
pub(crate) const NOT_ATTACHED: &str = "not-attached";

pub(crate) fn of_host(error: HostError) -> Status {
    match error {
        HostError::Full => Status::resource_exhausted("full"),
        HostError::TooLarge { limit } => Status::invalid_argument(format!("too-large {limit}")),
        HostError::NoBlob => Status::not_found("no-blob"),
        HostError::Storage => Status::internal("storage"),
        HostError::ShuttingDown => Status::unavailable("shutting-down"),
        HostError::NotGranted => Status::permission_denied(NOT_GRANTED),
        HostError::NotSealed => Status::failed_precondition("not-sealed"),
        HostError::BadDomain => Status::invalid_argument("bad-domain"),
        HostError::Busy => Status::resource_exhausted("busy"),
    }
}

/// What a module reads of a status. A node that is gone or out of contract is one that shuts down: the module is attached anew.
#[cfg(any(feature = "process", test))]
pub(crate) fn to_host(status: &Status) -> HostError {
    match (status.code(), status.message()) {
        (Code::ResourceExhausted, "full") => HostError::Full,
        (Code::ResourceExhausted, "busy") => HostError::Busy,
        (Code::PermissionDenied, _) => HostError::NotGranted,
        (Code::FailedPrecondition, "not-sealed") => HostError::NotSealed,
        (Code::InvalidArgument, "bad-domain") => HostError::BadDomain,
        (Code::InvalidArgument, word) => match word.strip_prefix("too-large ").map(str::parse) {
            Some(Ok(limit)) => HostError::TooLarge { limit },
            _ => HostError::Storage,
        },
        (Code::NotFound, "no-blob") => HostError::NoBlob,
        (Code::Internal, "storage") => HostError::Storage,
        _ => HostError::ShuttingDown,
    }
}

pub(crate) fn of_call(error: CallError) -> Status {
    match error {
        CallError::NotGranted => Status::permission_denied(NOT_GRANTED),
        CallError::NoModule => Status::not_found("no-module"),
        CallError::TooDeep => Status::failed_precondition("too-deep"),
        CallError::Cycle => Status::failed_precondition("cycle"),
        CallError::Busy => Status::resource_exhausted("busy"),
        CallError::TimedOut => Status::deadline_exceeded("timed-out"),
        CallError::Ended => Status::aborted("ended"),
    }
}

/// What a module reads of a status.
#[cfg(any(feature = "process", test))]
pub(crate) fn to_call(status: &Status) -> CallError {
    match (status.code(), status.message()) {
        (Code::PermissionDenied, _) => CallError::NotGranted,
        (Code::NotFound, "no-module") => CallError::NoModule,
        (Code::FailedPrecondition, "too-deep") => CallError::TooDeep,
        (Code::FailedPrecondition, "cycle") => CallError::Cycle,
        (Code::ResourceExhausted, _) => CallError::Busy,
        (Code::DeadlineExceeded, _) => CallError::TimedOut,
        _ => CallError::Ended,
    }
}

pub(crate) fn of_dial(error: DialError) -> Status {
    match error {
        DialError::NotGranted => Status::permission_denied(NOT_GRANTED),
        DialError::Unresolved => Status::not_found("unresolved"),
        DialError::Private => Status::failed_precondition("private"),
        DialError::Unreachable => Status::unavailable("unreachable"),
        DialError::TimedOut => Status::deadline_exceeded("timed-out"),
        DialError::Busy => Status::resource_exhausted("busy"),
    }
}

/// What a module reads of a status. A node that is gone, or that has no such service, lets nobody out.
#[cfg(any(feature = "process", test))]
pub(crate) fn to_dial(status: &Status) -> DialError {
    match status.code() {
        Code::PermissionDenied => DialError::NotGranted,
        Code::NotFound => DialError::Unresolved,
        Code::FailedPrecondition => DialError::Private,
        Code::DeadlineExceeded => DialError::TimedOut,
        Code::ResourceExhausted => DialError::Busy,
        _ => DialError::Unreachable,
    }
}

pub(crate) fn of_peer(error: PeerError) -> Status {
    match error {
        PeerError::NotGranted => Status::permission_denied(NOT_GRANTED),
        PeerError::NotLinked => Status::not_found("not-linked"),
        PeerError::Unreachable => Status::unavailable("unreachable"),
        PeerError::TimedOut => Status::deadline_exceeded("timed-out"),
        PeerError::Interrupted => Status::aborted("interrupted"),
        PeerError::Busy => Status::resource_exhausted("busy"),
    }
}

/// No body is of that length at that place.
const BAD_RANGE: &str = "bad-range";

pub(crate) fn of_store(error: StoreError) -> Status {
    match error {
        StoreError::Peer(error) => of_peer(error),
        StoreError::Host(error) => of_host(error),
        StoreError::BadRange => Status::invalid_argument(BAD_RANGE),
        StoreError::Unsupported => Status::unimplemented("stores"),
    }
}

/// What a module reads of a status.
#[cfg(any(feature = "process", test))]
pub(crate) fn to_store(status: &Status) -> StoreError {
    match (status.code(), status.message()) {
        (Code::InvalidArgument, BAD_RANGE) => StoreError::BadRange,
        (Code::Unimplemented, _) => StoreError::Unsupported,
        (Code::InvalidArgument | Code::Internal, _)
        | (Code::ResourceExhausted, "full")
        | (Code::Unavailable, "shutting-down") => StoreError::Host(to_host(status)),
        _ => StoreError::Peer(to_peer(status)),
    }
}

/// What a module reads of a status. Where the connection to the node broke, the request may have been carried out.
#[cfg(any(feature = "process", test))]
pub(crate) fn to_peer(status: &Status) -> PeerError {
    match (status.code(), status.message()) {
        (Code::PermissionDenied, NOT_GRANTED) => PeerError::NotGranted,
        (Code::NotFound, "not-linked") => PeerError::NotLinked,
        (Code::Unavailable, "unreachable") => PeerError::Unreachable,
        (Code::DeadlineExceeded, _) => PeerError::TimedOut,
        (Code::ResourceExhausted, _) => PeerError::Busy,
        _ => PeerError::Interrupted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_comes_back_as_itself() {
        let host = [
            HostError::Full,
            HostError::TooLarge { limit: 256 },
            HostError::NoBlob,
            HostError::Storage,
            HostError::ShuttingDown,
            HostError::NotGranted,
            HostError::NotSealed,
            HostError::BadDomain,
            HostError::Busy,
        ];
        let calls = [
            CallError::NotGranted,
            CallError::NoModule,
            CallError::TooDeep,
            CallError::Cycle,
            CallError::Busy,
            CallError::TimedOut,
            CallError::Ended,
        ];
        for error in calls {
            assert_eq!(to_call(&of_call(error)), error);
        }
        let dials = [
            DialError::NotGranted,
            DialError::Unresolved,
            DialError::Private,
            DialError::Unreachable,
            DialError::TimedOut,
            DialError::Busy,
        ];
        for error in dials {
            assert_eq!(to_dial(&of_dial(error)), error);
        }
        for error in host {
            assert_eq!(to_host(&of_host(error)), error);
        }
        let peer = [
            PeerError::NotGranted,
            PeerError::NotLinked,
            PeerError::Unreachable,
            PeerError::TimedOut,
            PeerError::Interrupted,
            PeerError::Busy,
        ];
        for error in peer {
            assert_eq!(to_peer(&of_peer(error)), error);
            assert_eq!(to_store(&of_store(error.into())), error.into());
        }
        // Those of a write; that nothing was granted is the same in either's words.
        for error in [HostError::Full, HostError::TooLarge { limit: 9 }, HostError::Storage, HostError::ShuttingDown] {
            assert_eq!(to_store(&of_store(error.into())), error.into());
        }
        for error in [StoreError::BadRange, StoreError::Unsupported] {
            assert_eq!(to_store(&of_store(error)), error);
        }
        let gone = Status::unavailable("transport error");
        assert_eq!((to_host(&gone), to_peer(&gone)), (HostError::ShuttingDown, PeerError::Interrupted));
    }
}
