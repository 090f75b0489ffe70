//! The node's end: modules that are processes of their own attach here and are called as if they were linked.
//!
//! A [`Door`] serves the socket that modules dial. Nobody gets past it but the process that proves itself with the value that was
//! drawn for that module ([`Door::expect`]); what comes of it is an [`Attached`], with the interface of [`crate::Instance`]. Its first
//! connection carries calls (`calls`), its second the module's own, to the [`crate::Host`] that was named with the value (`hosting`).
//!
//! A module is believed nothing. Everything that it sends goes through one table and ends, where it is out of contract, in a
//! [`Fault`], which ends the attachment; a module that is merely late costs its caller a call. It can make its host wait for nothing,
//! and fill it with no more than the bounds in `wire`.
//!
//! Which modules there are, who may call them, for how long, and what happens after a fault is not decided here.

mod attached;
mod calls;
mod door;
mod fault;
mod held;
mod hooks;
mod hosting;
mod network;
#[cfg(all(test, feature = "process", feature = "test-host"))]
mod tests;

pub use attached::Attached;
pub use door::{Door, Expected};
pub use fault::Fault;
pub use hooks::{HookAsk, Undecided};

/// Calls in flight in one attachment, events among them: a host keeps no more places than these.
pub const CALLS: usize = crate::wire::CALLS;
/// Bytes of the value with which a module proves itself.
pub const PROOF_BYTES: usize = crate::wire::PROOF_BYTES;
