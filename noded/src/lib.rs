//! The node: it parses hostile bytes, holds no long-term key, and serves modules. Two binaries are made of it: `noded`, the
//! daemon in its cage, and `openred`, the operator's command line and the supervisor.
#![forbid(unsafe_code)]

pub(crate) mod admin;
mod archive;
mod arrivals;
pub mod cli;
pub(crate) mod clock;
pub mod config;
pub(crate) mod contact;
pub mod daemon;
pub(crate) mod directory;
#[cfg(test)]
mod explore;
#[doc(hidden)]
pub mod fuzzing;
pub(crate) mod handshake;
pub(crate) mod health;
pub(crate) mod home;
pub(crate) mod hooks;
pub mod keys;
pub(crate) mod link;
pub(crate) mod module;
pub(crate) mod node;
pub mod p2p;
mod packages;
#[cfg(test)]
mod rendered;
pub mod reports;
pub mod sensitive;
pub(crate) mod session;
pub(crate) mod store;
pub(crate) mod supervisor;
