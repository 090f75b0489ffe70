//! Tests of links: one link's machine and the judgement of offers by themselves, in virtual time; then two nodes' services with
//! real vaults, a real store each, and a directory that is a queue in memory.
#![allow(clippy::unwrap_used, reason = "tests")]

mod arriving;
mod crossed;
mod direct;
mod faults;
mod judging;
mod life;
mod methods;
mod model;
mod nodes;
mod queued;
mod renewing;
mod services;
mod syncing;
mod tables;
mod years;
