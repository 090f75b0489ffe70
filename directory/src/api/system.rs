//! `/health`, `/metrics`, `/openapi.json`: about the directory itself.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::problem::{Code, Problem};
use super::signed::{Anonymous, Peer};
use crate::metrics as figures;
use crate::mirror::MirrorView;
use crate::state::Directory;

/// One thing that is or is not in order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Condition {
    /// Stable name.
    pub code: String,
    /// Whether it is in order.
    pub ok: bool,
    /// What to do when it is not.
    pub help: String,
}

/// What to do when the database was taken away.
const GONE: &str = "the database was deleted or replaced while the directory runs: `directory export` still gives what it holds; then end it, put the file back or move state/ away, start it, and import";

/// The condition that this replica reaches the others.
const LINK: &str = "replicas.link";

/// How the directory is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// `ok` or `degraded`.
    pub status: String,
    /// The directory's id.
    pub directory: String,
    /// Version of the program.
    pub version: String,
    /// Its time, seconds since the epoch.
    pub now: u64,
    /// The conditions.
    pub conditions: Vec<Condition>,
    /// Of a mirror: how it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mirror: Option<MirrorView>,
}

impl Health {
    /// Whether it serves: a mirror also while the directory that it mirrors is away, and a replica without NATS, else all of them would be
    /// taken out of service together.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.conditions
            .iter()
            .all(|condition| condition.ok || condition.code.starts_with("upstream.") || condition.code == LINK)
    }
}

/// The same for `/health` and `directory status`.
#[must_use]
pub fn health_of(directory: &Directory) -> Health {
    let condition = |code: &str, ok, help: &str| Condition { code: code.to_owned(), ok, help: help.to_owned() };
    let mut conditions = vec![
        condition("store.writable", !directory.store_failing(), "free disk space; the log names the database's error"),
        condition("store.present", !directory.store.is_gone(), GONE),
        condition("serving", !*directory.draining().borrow(), "it is ending; wait for the next start"),
    ];
    let upstream = directory.upstream.as_ref();
    conditions.extend(upstream.into_iter().flat_map(|upstream| upstream.conditions()));
    if let Some(replicas) = directory.replicas() {
        let link = "start the NATS server of replicas.url, or let this machine reach it; until then offers to nodes that wait at another replica are refused, and the log says why";
        conditions.push(condition(LINK, replicas.is_up(), link));
        let name = "another replica that runs has this one's name: give each its own (replicas.name)";
        conditions.push(condition("replicas.name", !replicas.has_twin(), name));
    }
    let ok = conditions.iter().all(|condition| condition.ok);
    Health {
        status: if ok { "ok" } else { "degraded" }.to_owned(),
        directory: directory.id().to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        now: directory.now().seconds(),
        conditions,
        mirror: upstream.map(|upstream| upstream.view(directory.now())),
    }
}

#[utoipa::path(
    get, path = "/api/v3/health", tag = "system",
    responses((status = 200, body = Health, description = "in order, or a mirror that serves what it has"), (status = 503, body = Health, description = "degraded"))
)]
pub(crate) async fn health(State(directory): State<Arc<Directory>>, _: Anonymous) -> Response {
    let health = health_of(&directory);
    let status = if health.serves() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health)).into_response()
}

#[utoipa::path(
    get, path = "/api/v3/metrics", tag = "system",
    responses((status = 200, body = String, content_type = "text/plain", description = "Prometheus text, to loopback callers"))
)]
pub(crate) async fn metrics(
    State(directory): State<Arc<Directory>>,
    peer: Option<Extension<Peer>>,
) -> Result<Response, Problem> {
    // Behind a proxy everybody comes from loopback.
    if directory.behind_proxy || !peer.is_some_and(|Extension(Peer(peer))| peer.ip().is_loopback()) {
        return Err(Code::MetricsRemote.into());
    }
    Ok(metrics_text(&directory))
}

fn metrics_text(directory: &Directory) -> Response {
    let waiting = directory.mailboxes().len();
    let uptime = directory.now().0.saturating_sub(directory.started.0) / 1000;
    let mut text = directory.metrics.text(waiting, uptime);
    if let Some(upstream) = &directory.upstream {
        text.push_str(&figures::mirror_text(&upstream.view(directory.now()), &upstream.conditions()));
    }
    if let Some(replicas) = directory.replicas() {
        let others = replicas.view().others.len();
        text.push_str(&figures::of_replicas(replicas.is_up(), others, replicas.copied.get(), replicas.refused.get()));
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

/// For the listener of their own (`metrics_listen`), which is on loopback.
pub fn local_router(directory: Arc<Directory>) -> Router {
    Router::new()
        .route("/health", routing::get(health))
        .route(
            "/metrics",
            routing::get(|State(directory): State<Arc<Directory>>| async move { metrics_text(&directory) }),
        )
        .with_state(directory)
}
