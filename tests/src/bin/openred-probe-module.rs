//! A module for tests of installation: it does nothing of its own accord, and tries on the operator's word what it may.
//!
//! Its version is a text of fixed length in the program, so that a test makes another version of it by changing a byte.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::Arc;

use bytes::Bytes;
use openred_module::{
    BlobName, Body, Config, Context, Manifest, Method, Module, ModuleError, NodeId, PeerRequest, Request, Response,
    Routes, Status, async_trait, open_granted,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::AsyncReadExt as _;

struct Probe;

/// Settings, as the tests' manifests declare them.
#[derive(Deserialize, Serialize)]
struct Settings {
    mode: String,
    days: i64,
}

impl Config for Settings {
    const MANIFEST: &'static str = "id = \"probe\"\nversion = \"1.0.0\"\nprogram = \"probe\"\ndescription = \"d\"
[config.mode]\ntype = \"text\"\none_of = [\"strict\", \"kind\"]\ndefault = \"strict\"\nhelp = \"h\"
[config.days]\ntype = \"integer\"\nleast = 1\nmost = 9\ndefault = 3\nhelp = \"h\"";
}

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
            "dial" => return Self::dial(&context, body).await,
            "read" => return Self::read(&body),
            "connect" => return Self::connect(&body),
            "settings" => return Response::json(Status::Ok, &context.config::<Settings>()?),
            _ => return Err(ModuleError::not_found("no-such-trial", "there is no such trial")),
        }
        Response::json(Status::Ok, &json!({ "tried": what }))
    }

    /// Sends the rest of the body to the destination in its first line; what came back, or how long that was. Held open where nothing is sent.
    async fn dial(context: &Context, body: Bytes) -> Result<Response, ModuleError> {
        let end = body.iter().position(|byte| *byte == b'\n').unwrap_or(body.len());
        let to = String::from_utf8_lossy(&body[..end]).into_owned();
        let sent = body.slice((end + 1).min(body.len())..);
        let answer = if sent.is_empty() {
            let mut stream = context.connect(&to).await?;
            let mut heard = Vec::new();
            // Until the other side ends it, or the module is ended.
            let _ = stream.read_to_end(&mut heard).await;
            heard.into()
        } else {
            context.dial(&to, Body::whole(sent)).await?.collect(8 << 20).await?
        };
        let text = String::from_utf8_lossy(&answer[..answer.len().min(100)]).into_owned();
        Response::json(Status::Ok, &json!({ "heard": text, "bytes": answer.len() }))
    }

    fn read(body: &[u8]) -> Result<Response, ModuleError> {
        let path = String::from_utf8_lossy(body).into_owned();
        let text = std::io::read_to_string(open_granted(&path)?);
        let text = text.map_err(|error| ModuleError::not_found("unreadable", error.to_string()))?;
        Response::json(Status::Ok, &json!({ "read": text }))
    }

    fn connect(body: &[u8]) -> Result<Response, ModuleError> {
        let path = String::from_utf8_lossy(body).into_owned();
        let connected = std::os::unix::net::UnixStream::connect(path);
        Response::json(Status::Ok, &json!({ "connected": connected.is_ok() }))
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
