//! The node: peer-to-peer API, links, sessions, modules; and the operator's command line.
#![forbid(unsafe_code)]

#[allow(dead_code, reason = "wired in the next commits")]
pub(crate) mod handshake;
pub mod keys;
pub mod p2p;
#[allow(dead_code, reason = "wired in the next commits")]
pub(crate) mod session;
