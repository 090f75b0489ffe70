//! Everything that needs a secret key, and nothing else.
//!
//! The vault's side (`vault`, sans-IO, and what it is made of) holds the keys; the front's side parses gRPC and holds none.
//! Both are linked from this crate into separate programs (`src/bin`), which confine themselves before they serve. In: typed
//! requests of `openred_proto::vault`, secrets from the unsealer's pipe. Out: typed replies, writes to the state file.
#![forbid(unsafe_code)]

mod agreement;
pub mod audit;
pub mod error;
pub mod front;
mod handshake;
pub mod identity;
pub mod keyring;
pub mod link;
pub mod method;
pub mod prekey;
pub mod registered;
pub mod report;
pub mod seal;
mod signing;
pub mod state;
pub mod statics;
#[cfg(test)]
mod testing;
pub mod unseal;
pub mod vault;
#[cfg(test)]
mod vectors;
