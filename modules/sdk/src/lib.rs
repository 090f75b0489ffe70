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
//! through an attachment as it would call an [`Instance`]. Tests use `TestHost` (feature `test-host`), which links the module, and `SandboxHost`
//! (feature `sandbox`), which runs its program in its cage.
//!
//! # A module, whole
//!
//! ```
//! use std::sync::Arc;
//!
//! use openred_module::{Body, Context, Json, Manifest, Method, Module, ModuleError, PeerRequest, Routes, Table, TestHost};
//!
//! /// What must survive is in tables; the value itself may hold what is only for speed.
//! struct Greeter;
//!
//! static GREETED: Table<String, u64> = Table::new("greeted");
//!
//! impl Module for Greeter {
//!     fn manifest(&self) -> Manifest {
//!         Manifest { id: "greeter", version: "1.0.0", summary: "Greets, and counts" }
//!     }
//!
//!     fn routes(routes: &mut Routes<Self>) {
//!         routes.operator(Method::Post, "/greet", 64, Self::greet);
//!     }
//! }
//!
//! impl Greeter {
//!     async fn greet(self: Arc<Self>, context: Context, name: String) -> Result<Json<u64>, ModuleError> {
//!         let count = GREETED.update(&context, &name, |count| count.unwrap_or(0) + 1).await?;
//!         Ok(Json(count))
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! // In a test: the module on a node in memory.
//! let host = TestHost::start(1, Greeter).await;
//! for count in 1..=2 {
//!     let answer = host.operator(PeerRequest::post("/greet", "text/plain", Body::whole("Ada"))).await;
//!     assert_eq!(answer.json_body::<u64>().await.unwrap(), count);
//! }
//! # }
//! ```
//!
//! With `openred.toml` beside Cargo.toml the attribute [`macro@module`] writes `manifest`, and callers and limits of the routes stand there; `openred module new`
//! writes such a project. Then `fn main()` is `openred_module::run(Greeter)`.
//!
//! Only `process`, `remote` and `sandbox` touch sockets; files are opened by the last, and by `open_granted` for a module that may.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod body;
mod config;
mod context;
mod error;
mod handler;
mod hook;
mod host;
#[cfg(feature = "http")]
pub mod http;
mod instance;
mod message;
mod module;
mod network;
mod params;
#[cfg(feature = "process")]
mod process;
mod range;
#[cfg(feature = "remote")]
pub mod remote;
mod route;
#[cfg(feature = "sandbox")]
mod sandbox;
mod state;
mod status;
mod stored;
#[cfg(feature = "test-host")]
mod test_host;
#[cfg(feature = "wire")]
#[cfg_attr(not(all(feature = "process", feature = "remote")), allow(dead_code, reason = "each end uses its half"))]
mod wire;

pub use body::{Body, BodyError, BodySender};
pub use config::Config;
pub use context::Context;
pub use error::{ModuleError, PROBLEM_JSON, Status};
pub use handler::{Call, Extract, Handler, IntoResponse, Json, Path};
pub use hook::{
    Class, Denial, Field, Fields, HOOK_BODY, HOOK_DETAIL, HOOK_PATH, HookRequest, HookResponse, Hooks, Mutation, Point,
    Verdict,
};
pub use host::{
    AuditEvent, BLOB_CHUNK, Batch, BlobName, CONTEXT_LIMIT, CallError, Committed, DEPTH, Host, HostError, KEY_LIMIT,
    OPERATE_LIMIT, OPERATE_REPLY, OperateError, PeerError, SCAN_BYTES, SCAN_LIMIT, SEAL_LIMIT, Scan, ScanPage,
    UnixMillis, VALUE_LIMIT, Within,
};
pub use instance::{Instance, LoadError};
pub use message::{Caller, IdempotencyKey, Method, ModuleName, PeerRequest, Request, Response};
pub use module::{Event, Manifest, Module, TimerId};
pub use network::DialError;
/// What can be asked for with [`Context::operate`]: `openred.admin.v1` as a `FileDescriptorSet`, with the contract's comments.
#[cfg(feature = "wire")]
pub use openred_proto::admin::DESCRIPTORS as OPERATIONS;
pub use openred_proto::error::WireError;
pub use openred_proto::id::NodeId;
pub use openred_proto::method::description::MethodDescription;
pub use params::Params;
#[cfg(feature = "process")]
pub use process::{open_granted, run};
pub use range::BlobRange;
pub use route::Routes;
#[cfg(feature = "sandbox")]
pub use sandbox::{SandboxError, SandboxHost};
pub use state::{Entry, Key, Rows, Table};
pub use status::{ConditionState, DirectoryState, LayerState, LinkCount, ModuleState, NodeStatus, ProcessState};
pub use stored::{Blake3, StoreError, StoreInto, Stored};
#[cfg(any(feature = "remote", feature = "test-host"))]
#[doc(hidden)]
pub use stored::{Check, Sink, receive};
#[cfg(feature = "test-host")]
pub use test_host::{DialFault, Fault, TestHost, link};

/// Checks a statement that [`Context::sign`] gave at another node: that `module` of the node `signer` said `body` in `domain`. Gives the time
/// at which it was signed, by that node's clock.
///
/// # Errors
/// What is wrong with it.
pub fn verify(
    statement: &[u8],
    signer: &NodeId,
    module: &str,
    domain: &str,
    body: &[u8],
) -> Result<UnixMillis, WireError> {
    openred_proto::checked::module_word::ModuleWord::verify(statement, signer, module, domain, body).map(|at| at.0)
}

/// For `#[async_trait] impl Module for …`.
pub use async_trait::async_trait;
/// A module's manifest, as installer, supervisor and node read it.
pub use openred_manifest as manifest;
/// Makes a struct out of the settings that `openred.toml` declares under `[config]`: a public field for each, of its type (`bool`, `i64`,
/// `String`, `Vec<String>`), with its help as its documentation. The value is had from [`Context::config`].
///
/// ```text
/// #[openred_module::config]
/// pub struct Config;
/// ```
pub use openred_module_macros::config;
/// Makes `impl Module for …` a module of what `openred.toml` beside Cargo.toml says. It writes [`Module::manifest`], so that id, version and description
/// stand in one place, and hands the whole manifest to [`Routes::get`] and [`Routes::post`]. What the manifest has wrong is an error of the
/// compiler that names its file, line and key; a version that is not Cargo's is one too.
///
/// ```text
/// #[openred_module::module]
/// impl Module for Greeter {
///     fn routes(routes: &mut Routes<Self>) {
///         routes.post("/greet", Self::greet);
///     }
/// }
/// ```
pub use openred_module_macros::module;
/// For what the macros write.
#[doc(hidden)]
pub use serde;

/// The README's example is compiled as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
