//! Files between linked nodes, named by the BLAKE3 hash of their content and verified piece by piece while they arrive.
//!
//! The way of a file: the operator's `POST /share/{to}/{name}` streams it into a blob while it is hashed; its hash is its id. The peer's
//! operator asks `POST /fetch/{peer}/{id}`: this side takes the description (`GET /meta/{id}`), the hashes of the pieces
//! (`GET /pieces/{id}`, which must combine to the id) and then the pieces (`GET /range/{id}/{from}/{length}`), several at a
//! time, each verified before it counts. A transfer that was cut short goes on with every piece that is on the disk and
//! still has its hash.
//!
//! Files: [`tree`] is the arithmetic of pieces and hashes, [`share`] what this node offers, [`serve`] the peer's routes, [`fetch`] the
//! receiving side, [`readers`] who may read, [`document`] the JSON.
//!
//! It does not encrypt (sessions do), and opens no file: blobs are the host's.
#![forbid(unsafe_code)]

mod document;
mod error;
mod fetch;
mod names;
mod readers;
mod serve;
mod share;
mod transfer;
mod tree;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use openred_module::{Context, Manifest, Method, Module, ModuleError, Routes, async_trait};

pub use document::{Audience, Meta, Progress, ShareView, Shares, TransferView, Transfers};
pub use tree::{FILE_LIMIT, FileId, PIECE};

/// Longest JSON order of the operator, in bytes: an audience of 1,000 peers fits.
const ORDER_LIMIT: u64 = 128 * 1024;

/// The module. All that must survive is in the host's store; this holds which transfers run.
#[derive(Default)]
pub struct Files {
    /// Transfers that run now, so that no two write the same blob.
    running: Mutex<HashSet<FileId>>,
}

#[async_trait]
impl Module for Files {
    fn manifest(&self) -> Manifest {
        Manifest {
            id: "files",
            version: env!("CARGO_PKG_VERSION"),
            summary: "Shared files, fetched in verified pieces and resumed",
        }
    }

    fn routes(routes: &mut Routes<Self>) {
        routes.operator(Method::Post, "/share/{to}/{name}", FILE_LIMIT, Self::share);
        routes.operator(Method::Get, "/shares", 0, Self::shares);
        routes.operator(Method::Post, "/audience/{id}", ORDER_LIMIT, Self::set_audience);
        routes.operator(Method::Post, "/unshare/{id}", 0, Self::unshare);
        routes.operator(Method::Post, "/fetch/{peer}/{id}", 0, Self::fetch);
        routes.operator(Method::Get, "/read/{id}", 0, Self::read);
        routes.operator(Method::Get, "/transfers", 0, Self::transfers);
        routes.operator(Method::Post, "/remove/{id}", 0, Self::remove);
        routes.peer(Method::Get, "/meta/{id}", 0, Self::meta);
        routes.peer(Method::Get, "/pieces/{id}", 0, Self::pieces);
        routes.peer(Method::Get, "/range/{id}/{from}/{length}", 0, Self::range);
    }

    async fn start(self: Arc<Self>, context: Context) -> Result<(), ModuleError> {
        share::drop_unfinished(&context).await
    }
}
