//! Watches the node: what is wrong and what depends on it, figures for Prometheus, and an alert when a layer of a cage is off.
//!
//! All that is known comes from one call of the host (`node.status`): the node's own half, and the supervisor's look at the processes from
//! outside. [`graph`] makes the health graph of it, [`metrics`] the page for Prometheus, [`alert`] what is told the operator; all three are
//! functions of one status, without clock or network.
//!
//! The page is served on this machine's loopback where the operator has named an address (`monitor.listen`): anybody on this machine reads it,
//! so it holds counts, states and names of processes, and no peer's id, address or text.
#![forbid(unsafe_code)]

mod alert;
mod graph;
mod metrics;

use std::sync::Arc;

use axum::Router;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use openred_module::{Body, Context, Event, Module, ModuleError, Request, Response, Routes, Status, TimerId, http};

pub use alert::{Alert, Alerts};
pub use graph::{Graph, Kind, Node, State};

/// When to look next.
const LOOK: TimerId = 1;
/// Milliseconds between two looks: soon enough for an operator, seldom enough that looking costs nothing that is seen.
const EVERY: u64 = 10_000;
/// Media type of the page (Prometheus text exposition, 0.0.4).
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The module. What must survive is in the host's store.
#[derive(Debug, Default)]
pub struct Monitor;

#[openred_module::module]
impl Module for Monitor {
    fn routes(routes: &mut Routes<Self>) {
        routes.get("/graph", Self::graph);
        routes.get("/metrics", Self::metrics);
        routes.get("/alerts", Self::alerts);
        routes.connection(Self::connection);
    }

    async fn start(self: Arc<Self>, context: Context) -> Result<(), ModuleError> {
        // The first look comes at once: what stands is told a node that has just been started.
        context.set_timer(LOOK, context.now());
        Ok(())
    }

    async fn event(self: Arc<Self>, context: Context, event: Event) {
        if event != Event::Timer(LOOK) {
            return;
        }
        context.set_timer(LOOK, context.now().saturating_add(EVERY));
        if let Err(error) = alert::look(&context).await {
            tracing::warn!(%error, "the node was not looked at");
        }
    }
}

impl Monitor {
    async fn graph(self: Arc<Self>, context: Context, _: Request) -> Result<Response, ModuleError> {
        Response::json(Status::Ok, &Graph::of(&context.node_status().await?))
    }

    async fn metrics(self: Arc<Self>, context: Context, _: Request) -> Result<Response, ModuleError> {
        let page = metrics::page(&context.node_status().await?);
        Ok(Response::new(Status::Ok, EXPOSITION, Body::whole(page)))
    }

    async fn alerts(self: Arc<Self>, context: Context, _: Request) -> Result<Response, ModuleError> {
        Response::json(Status::Ok, &alert::kept(&context).await?)
    }

    /// Somebody on this machine.
    async fn connection(self: Arc<Self>, context: Context, request: Request) -> Result<Response, ModuleError> {
        let health = context.clone();
        let router = Router::new()
            .route("/metrics", get(move || page(context)))
            .route("/health", get(move || health_of(health)));
        http::serve(request, router)
    }
}

async fn page(context: Context) -> impl IntoResponse {
    match context.node_status().await {
        Ok(status) => (StatusCode::OK, [(CONTENT_TYPE, EXPOSITION)], metrics::page(&status)),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, [(CONTENT_TYPE, EXPOSITION)], String::new()),
    }
}

/// One word: what is wrong is the operator's to read.
async fn health_of(context: Context) -> impl IntoResponse {
    let state = context.node_status().await.map_or(State::Unknown, |status| Graph::of(&status).state);
    let code = if state <= State::Warning { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, axum::Json(serde_json::json!({ "state": state })))
}
