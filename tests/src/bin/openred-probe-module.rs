//! A module for tests of installation: it does nothing of its own accord, and tries on the operator's word what it may.
//!
//! Its version is a text of fixed length in the program, so that a test makes another version of it by changing a byte.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::Arc;

use openred_module::{
    BlobName, Context, Manifest, Method, Module, ModuleError, NodeId, PeerRequest, Request, Response, Routes, Status,
    async_trait,
};
use serde_json::json;

struct Probe;

#[async_trait]
impl Module for Probe {
    fn manifest(&self) -> Manifest {
        // Through a black box: folded into the code, the text would not be there to be changed.
        let version = std::hint::black_box("1.0.0+openred.probe");
        Manifest { id: "probe", version, summary: "tries what it may" }
    }

    fn routes(routes: &mut Routes<Self>) {
        routes.operator(Method::Post, "/try/{what}", 4 << 20, Self::attempt);
        routes.operator(Method::Get, "/kept", 0, Self::kept);
        routes.operator(Method::Get, "/undeclared", 0, Self::kept);
        routes.operator(Method::Post, "/end", 0, Self::end);
        routes.peer(Method::Get, "/hello", 0, Self::hello);
    }
}

impl Probe {
    async fn attempt(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let what = request.params.get("what").to_owned();
        let body = request.body.collect(4 << 20).await?;
        match what.as_str() {
            "kv" => {
                for (number, part) in body.chunks(64 << 10).enumerate() {
                    context.put(format!("row{number}"), part.to_vec()).await?;
                }
            }
            "blob" => {
                let name = BlobName::new("blob").ok_or_else(|| ModuleError::not_found("no-blob", "no name"))?;
                context.blob_write(&name, 0, body).await?;
            }
            "peer" => {
                let peer = NodeId::from_bytes([7; 32]);
                context.peer_request(peer, PeerRequest::get("/hello")).await?;
            }
            _ => return Err(ModuleError::not_found("no-such-trial", "kv, blob or peer")),
        }
        Response::json(Status::Ok, &json!({ "tried": what }))
    }

    async fn kept(self: Arc<Self>, context: Context, _: Request) -> Result<Response, ModuleError> {
        let row = context.get("row0").await?;
        Response::json(Status::Ok, &json!({ "bytes": row.map(|row| row.len()) }))
    }

    async fn end(self: Arc<Self>, _: Context, _: Request) -> Result<Response, ModuleError> {
        std::process::abort()
    }

    async fn hello(self: Arc<Self>, _: Context, _: Request) -> Result<Response, ModuleError> {
        Response::json(Status::Ok, &json!({}))
    }
}

fn main() -> ExitCode {
    openred_module::run(Probe)
}
