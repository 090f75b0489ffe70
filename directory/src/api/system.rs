//! `/health`, `/metrics`, `/openapi.json`: about the directory itself.

use std::sync::Arc;

use axum::extract::{Extension, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing};

use super::problem::{Code, Problem};
use super::signed::{Anonymous, Peer};
pub use crate::health::{Condition, Health, health_of};
use crate::metrics as figures;
use crate::state::Directory;

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
    let health = health_of(directory);
    text.push_str(&figures::of_conditions(&health.conditions));
    if let Some(view) = &health.mirror {
        text.push_str(&figures::mirror_text(view, &health.conditions));
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
