//! The directory: registers nodes' signed cards and routes sealed link offers. It is trusted for availability alone.
//!
//! What it stores is cards, which are public and signed; what it routes it keeps in bounded memory for ten minutes at the
//! most and never writes down. It opens no sealed part, calls no address that a node registered, and signs two things: that
//! it took an offer for somebody, and how far its log of cards goes ([`identity`]). The way of a request: [`serve`] (sockets, time limits) → [`api`] (signature,
//! limits, one call a route) → [`store`] (cards, on a thread of their own) or [`route`] (offers and receipts, in memory).
//! Directories that share an identity and a database tell each other what waits ([`replicas`]).
//! The operator comes in by another door: [`admin`], an AF_UNIX socket served by its own thread.
//!
//! `main.rs` of the `directory` program is a shell around [`cli`]; everything else is here so that tests drive it in-process.
#![forbid(unsafe_code)]

pub mod admin;
pub mod api;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod error;
pub mod health;
pub mod identity;
pub mod limits;
pub mod logging;
pub mod metrics;
pub mod mirror;
pub mod reload;
pub mod replay;
pub mod replicas;
pub mod route;
mod secrets;
pub mod serve;
pub mod state;
pub mod store;
pub mod tls;
pub mod verified;
