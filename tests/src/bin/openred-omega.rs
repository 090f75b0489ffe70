//! A module for the tests of methods, signing, sealing and calls: it takes the place of the files module, so that it runs in that one's cage.
//!
//! It describes two methods, one of which is too weak. What its operator routes do is what the tests then ask the other side about.

use std::process::ExitCode;
use std::sync::Arc;

use bytes::Bytes;
use openred_module::{
    Body, Context, HostError, Manifest, Method, MethodDescription, Module, ModuleError, NodeId, PeerRequest, Request,
    Response, Routes, Status, async_trait,
};
use serde::{Deserialize, Serialize};

/// The module whose place it takes.
const ID: &str = "files";
const DOMAIN: &str = "words.v1";
const BODY: u64 = 1 << 20;

struct Omega;

/// A body and the statement that it was said.
#[derive(Serialize, Deserialize)]
struct Said {
    body: String,
    statement: Vec<u8>,
}

#[async_trait]
impl Module for Omega {
    fn manifest(&self) -> Manifest {
        Manifest { id: ID, version: "1.0.0", summary: "Describes a method, signs, seals and calls" }
    }

    fn routes(routes: &mut Routes<Self>) {
        routes.operator(Method::Post, "/tell/{peer}", BODY, Self::tell);
        routes.operator(Method::Post, "/seal", BODY, Self::seal);
        routes.operator(Method::Post, "/call/{module}", BODY, Self::call);
        routes.peer(Method::Post, "/hear", BODY, Self::hear);
    }

    fn methods(&self) -> Vec<MethodDescription> {
        let omega = MethodDescription { transforms: vec![4, 2], kdf: 2, ..MethodDescription::floor("omega") };
        vec![omega, MethodDescription { tag_bits: 64, ..MethodDescription::floor("brittle") }]
    }
}

fn failed(error: impl std::fmt::Display) -> ModuleError {
    ModuleError::new(Status::Internal, "omega-failed", error.to_string())
}

fn text(text: impl Into<String>) -> Response {
    Response::new(Status::Ok, "text/plain", Body::whole(Bytes::from(text.into())))
}

impl Omega {
    /// Signs the body and sends both to the peer, which checks them.
    async fn tell(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let peer: NodeId = request.params.get("peer").parse().map_err(failed)?;
        let body = request.body.collect(BODY as usize).await?;
        let statement = context.sign(DOMAIN, body.clone()).await.map_err(failed)?;
        let said = Said { body: String::from_utf8_lossy(&body).into_owned(), statement: statement.to_vec() };
        let said = serde_json::to_vec(&said).map_err(failed)?;
        let sent = PeerRequest::post("/hear", "application/json", Body::whole(said));
        context.peer_request(peer, sent).await.map_err(failed)
    }

    async fn hear(self: Arc<Self>, _: Context, request: Request) -> Result<Response, ModuleError> {
        let peer = request.peer()?;
        let said: Said = request.json().await?;
        let refused =
            |domain, body: &str| openred_module::verify(&said.statement, &peer, ID, domain, body.as_bytes()).is_err();
        if !refused("other", &said.body) || !refused(DOMAIN, "another body") {
            return Err(failed("a statement was taken for another"));
        }
        openred_module::verify(&said.statement, &peer, ID, DOMAIN, said.body.as_bytes()).map_err(failed)?;
        Ok(text(format!("heard {}", said.body)))
    }

    async fn seal(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let body = request.body.collect(BODY as usize).await?;
        let sealed = context.seal("one", body.clone()).await.map_err(failed)?;
        let opened = context.unseal("one", sealed.clone()).await.map_err(failed)?;
        let other = context.unseal("two", sealed.clone()).await;
        let hidden = !sealed.windows(body.len().max(1)).any(|part| part == body.as_ref());
        if opened == body && other == Err(HostError::NotSealed) && hidden {
            Ok(text("sealed"))
        } else {
            Err(failed("seal"))
        }
    }

    /// What becomes of a call of that module.
    async fn call(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let module = request.params.get("module").to_owned();
        Ok(text(match context.call_module(&module, PeerRequest::get("/nothing")).await {
            Ok(response) => format!("answered {}", response.status.code()),
            Err(error) => format!("{error:?}"),
        }))
    }
}

fn main() -> ExitCode {
    openred_module::run(Omega)
}
