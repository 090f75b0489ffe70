//! What a module of an OpenRed node is written against.
//!
//! A module is a value that implements [`Module`]: it says what it is ([`Manifest`]), which routes it serves
//! ([`Routes`]) and what it does with events. All it can reach of the node is a [`Context`]: key–value state, blobs,
//! requests to the same module of a linked peer, time, timers, audit. No secret crosses this interface, in either
//! direction: sessions, tokens and keys stay with the node and its key process.
//!
//! Requests, responses and every call of the host are data and byte streams. Nothing in the trait assumes that the module and the node
//! share memory: a module runs in a process and a cage of its own (`run`, feature `process`), which dials its node and speaks
//! `openred.module.v1`. The node's end of that is here as well (`remote`): whoever hosts modules implements [`Host`], and calls them
//! through an attachment as it would call an [`Instance`]. Tests use `TestHost` (feature `test-host`).
//!
//! Only `process` and `remote` touch sockets; nothing here opens a file.
#![forbid(unsafe_code)]

mod body;
mod context;
mod error;
mod handler;
mod hook;
mod host;
mod instance;
pub mod manifest;
mod message;
mod module;
mod params;
#[cfg(feature = "process")]
mod process;
#[cfg(feature = "remote")]
pub mod remote;
mod route;
mod state;
#[cfg(feature = "test-host")]
mod test_host;
#[cfg(feature = "wire")]
#[cfg_attr(not(all(feature = "process", feature = "remote")), allow(dead_code, reason = "each end uses its half"))]
mod wire;

pub use body::{Body, BodyError, BodySender};
pub use context::Context;
pub use error::{ModuleError, PROBLEM_JSON, Status};
pub use handler::{Call, Extract, Handler, IntoResponse, Json, Path};
pub use hook::{
    Class, Denial, Field, Fields, HOOK_BODY, HOOK_DETAIL, HOOK_PATH, HookRequest, HookResponse, Hooks, Mutation, Point,
    Verdict,
};
pub use host::{
    AuditEvent, BLOB_CHUNK, Batch, BlobName, Committed, Host, HostError, KEY_LIMIT, PeerError, SCAN_LIMIT, Scan,
    ScanPage, UnixMillis, VALUE_LIMIT,
};
pub use instance::{Instance, LoadError};
pub use message::{Caller, IdempotencyKey, Method, PeerRequest, Request, Response};
pub use module::{Event, Manifest, Module, TimerId};
pub use openred_proto::id::NodeId;
pub use params::Params;
#[cfg(feature = "process")]
pub use process::run;
pub use route::Routes;
pub use state::{Entry, Key, Rows, Table};
#[cfg(feature = "test-host")]
pub use test_host::{Fault, TestHost, link};

/// For `#[async_trait] impl Module for …`.
pub use async_trait::async_trait;

/// The README's example is compiled as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
