//! The HTTP API, `/api/v3` (PROTOCOL 7): routes, the OpenAPI document generated from them, and what they share. It takes
//! requests from [`crate::serve`] (or a test), asks store and mailboxes, and calls nobody.

pub mod log;
pub mod lookup;
pub mod mirror;
pub mod nodes;
pub mod problem;
pub mod signed;
pub mod system;
pub mod tokens;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::{Router, routing};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utoipa::OpenApi;

use self::problem::{Code, Problem};
use self::signed::Anonymous;
use crate::state::Directory;

/// The document served as `/api/v3/openapi.json`.
#[derive(Debug, OpenApi)]
#[openapi(
    info(
        title = "OpenRed directory",
        description = "Registers nodes' signed cards and routes sealed link offers. Calls that act for a node carry HTTP \
                       message signatures (RFC 9421) with the components @method, @target-uri, content-digest and the \
                       parameters created, nonce, alg, keyid, tag."
    ),
    paths(
        nodes::register,
        nodes::withdraw,
        nodes::node,
        lookup::look_up,
        lookup::by_prefix,
        nodes::discover,
        tokens::request_connection,
        tokens::receive,
        tokens::acknowledge,
        log::head,
        log::inclusion,
        log::consistency,
        mirror::changes,
        mirror::present,
        system::health,
        system::metrics,
    ),
    components(schemas(tokens::Delivery, problem::ProblemDocument))
)]
pub struct Document;

/// All routes.
pub fn router(directory: Arc<Directory>) -> Router {
    let document = Bytes::from(Document::openapi().to_json().expect("the document is made of texts and numbers"));
    let document = move |_: Anonymous| async move { ([(header::CONTENT_TYPE, "application/json")], document) };
    let is_mirror = directory.upstream.is_some();
    let reads = Router::new()
        .route("/api/v3/nodes/discover", routing::get(nodes::discover))
        .route("/api/v3/nodes/lookup", routing::post(lookup::look_up))
        .route("/api/v3/nodes/prefix/{prefix}", routing::get(lookup::by_prefix))
        .route("/api/v3/nodes/{id}", routing::get(nodes::node))
        .route("/api/v3/log/head", routing::get(log::head))
        .route("/api/v3/log/inclusion", routing::get(log::inclusion))
        .route("/api/v3/log/consistency", routing::get(log::consistency))
        .route("/api/v3/mirror/changes", routing::get(mirror::changes))
        .route("/api/v3/mirror/present", routing::get(mirror::present));
    let reads =
        if is_mirror { reads.layer(middleware::from_fn_with_state(Arc::clone(&directory), whole)) } else { reads };
    reads
        .merge(if is_mirror { no_writes() } else { writes() })
        .route("/api/v3/health", routing::get(system::health))
        .route("/api/v3/metrics", routing::get(system::metrics))
        .route("/api/v3/openapi.json", routing::get(document))
        .fallback(|| async { Problem::from(Code::RequestUnknown) })
        .method_not_allowed_fallback(|| async { Problem::from(Code::RequestMethod) })
        .layer(middleware::from_fn_with_state(Arc::clone(&directory), count))
        .with_state(directory)
}

/// What changes something, or waits at a directory for somebody.
fn writes() -> Router<Arc<Directory>> {
    Router::new()
        .route("/api/v3/nodes/register", routing::post(nodes::register))
        .route("/api/v3/nodes/{id}", routing::delete(nodes::withdraw))
        .route("/api/v3/tokens/request-connection", routing::post(tokens::request_connection))
        .route("/api/v3/tokens/receive", routing::get(tokens::receive))
        .route("/api/v3/tokens/acknowledge", routing::post(tokens::acknowledge))
}

/// The same of a mirror: refused, with the name of who takes it.
fn no_writes() -> Router<Arc<Directory>> {
    Router::new()
        .route("/api/v3/nodes/register", routing::post(elsewhere))
        .route("/api/v3/nodes/{id}", routing::delete(elsewhere))
        .route("/api/v3/tokens/request-connection", routing::post(elsewhere))
        .route("/api/v3/tokens/receive", routing::get(elsewhere))
        .route("/api/v3/tokens/acknowledge", routing::post(elsewhere))
}

async fn elsewhere(State(directory): State<Arc<Directory>>, _: Anonymous) -> Problem {
    let of = directory.upstream.as_ref().map(|upstream| upstream.address.to_string());
    Problem::new(Code::MirrorReadsOnly, of.map_or_else(String::new, |of| format!("it mirrors {of}")))
}

/// A mirror answers once it has everything up to one head: what it did not find before could be anywhere.
async fn whole(State(directory): State<Arc<Directory>>, request: Request, next: Next) -> Response {
    match directory.signed_head().await {
        Ok(_) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

async fn count(State(directory): State<Arc<Directory>>, request: Request, next: Next) -> Response {
    let response = next.run(request).await;
    directory.metrics.answered(response.status().as_u16());
    response
}

/// What is said of bytes that are not; our own word, so it may be repeated.
const NOT_BASE64: &str = "not standard base64";

/// Reads a JSON body.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| {
        if error.to_string().starts_with(NOT_BASE64) {
            return Problem::new(Code::BodyMalformed, NOT_BASE64);
        }
        // serde's text can repeat what the client sent; the place and the kind of fault are enough.
        let detail = format!("line {}, column {}: {:?} error", error.line(), error.column(), error.classify());
        Problem::new(Code::BodyMalformed, detail)
    })
}

/// Bytes that are standard base64 in JSON.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base64Bytes(pub Vec<u8>);

impl Serialize for Base64Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&to_base64(&self.0))
    }
}

impl<'de> Deserialize<'de> for Base64Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(|_| D::Error::custom(NOT_BASE64))
    }
}

fn to_base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}
