//! Two nodes in one process over real loopback TCP, each with a real vault: the whole way of a request, and what hostile or
//! unlucky bytes meet on it.
#![allow(clippy::unwrap_used, reason = "tests")]

mod audited;
mod contacts;
mod direct;
mod flow;
mod harness;
mod hostile;
mod load;
mod lost;
mod mute;
mod pace;
mod pool;
mod proxy;
mod refusals;
mod renewal;
mod requests;
mod resume;
mod tables;
