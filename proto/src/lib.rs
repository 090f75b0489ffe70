//! The contract: every byte that crosses a process boundary or the network is defined in this crate and nowhere else.
//!
//! It holds identifiers, signature labels, limits, the checked types of what peers send (`checked`), the frame between
//! the two halves of the key process (`vault`), what the unsealer is told and says (`unseal`), the audit trail's format and its
//! reader (`audit`), the generated gRPC contracts (feature `grpc`), and how what is kept is sealed (feature `sealed`). It depends on
//! nothing else of ours, keeps no secret key, opens no socket and reads no clock.
#![forbid(unsafe_code)]

pub mod admission;
pub mod audit;
pub mod checked;
pub mod concat;
pub mod config;
pub mod crowd;
pub mod error;
pub mod fields;
pub mod http_signature;
pub mod id;
pub mod label;
pub mod limits;
pub mod log;
pub mod method;
pub mod modules;
pub mod pause;
pub mod refusal;
#[cfg(feature = "sealed")]
pub mod sealed;
pub mod secret;
pub mod severity;
pub mod unseal;
pub mod vault;

/// Generated contract of the key process's front: `openred.cryptod.v1`.
#[cfg(feature = "grpc")]
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated from proto/openred/cryptod/v1"
)]
pub mod cryptod {
    tonic::include_proto!("openred.cryptod.v1");
}

/// Generated contract of the operator's sockets: `openred.admin.v1`.
#[cfg(feature = "grpc")]
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated from proto/openred/admin/v1"
)]
pub mod admin {
    tonic::include_proto!("openred.admin.v1");

    /// The same as a `FileDescriptorSet`, with the contract's comments.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/admin.descriptors"));
}

/// Generated contract between a module and its node: `openred.module.v1`.
#[cfg(feature = "grpc")]
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated from proto/openred/module/v1"
)]
pub mod module {
    tonic::include_proto!("openred.module.v1");
}

/// Generated types of what peers send, kept beside our own strict codec so that a test can hold one against the other.
#[cfg(feature = "grpc")]
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated from proto/openred/wire/v1"
)]
pub mod wire {
    tonic::include_proto!("openred.wire.v1");
}
