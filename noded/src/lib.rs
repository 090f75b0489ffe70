//! The node: it parses hostile bytes, holds no long-term key, and serves modules. Two binaries are made of it: `noded`, the
//! daemon in its cage, and `openred`, the operator's command line and the supervisor.
#![forbid(unsafe_code)]

pub mod cli;
#[allow(dead_code, reason = "wired in the next commits")]
pub(crate) mod clock;
pub mod config;
#[allow(dead_code, reason = "wired in the next commits")]
pub(crate) mod directory;
pub(crate) mod handshake;
#[allow(dead_code, reason = "wired in the next commits")]
pub(crate) mod health;
pub(crate) mod home;
pub mod keys;
#[allow(dead_code, reason = "wired in the next commits")]
pub(crate) mod link;
#[allow(dead_code, reason = "wired in the next commits")]
pub(crate) mod module;
pub mod p2p;
pub mod sensitive;
pub(crate) mod session;
#[allow(dead_code, reason = "wired in the next commits")]
pub(crate) mod store;
pub(crate) mod supervisor;
