//! The session layer (PROTOCOL 6): what two nodes say after a handshake, sealed chunk by chunk under keys of this session.
//!
//! Sans-IO: secrets come from the key process with a handshake, bytes from whatever carries them, time as an argument. It
//! opens no socket, reads no clock and draws no randomness. Carriers (HTTP now) move its bytes and learn nothing from them.

pub(crate) mod chunks;
pub(crate) mod error;
pub(crate) mod keys;
pub(crate) mod limits;
pub(crate) mod message;
pub(crate) mod numbers;
pub(crate) mod state;
pub(crate) mod window;

pub use error::SessionError;
pub use limits::SessionLimits;
pub(crate) use state::Session;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;
