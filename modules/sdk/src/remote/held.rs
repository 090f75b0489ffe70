//! Places for the calls of one connection. A call holds its place until its answer has been read, not only until it is made: a
//! module that asks and does not read fills no more of its host than it has places.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::body::Body;
use tonic::service::Routes;
use tower::Service;

/// Calls of the store and the disk at once: one message each way is 1 MiB at most.
const CALLS: usize = 32;
/// Calls that wait for peers; their bodies are streams of short frames.
const PEERS: usize = 128;
/// Streams of a connection: those that have a place, and as many again that wait for one.
pub(super) const STREAMS: u32 = 2 * (CALLS as u32 + PEERS as u32);

/// See the file's head.
#[derive(Clone)]
pub(super) struct Held {
    routes: Routes,
    calls: Arc<Semaphore>,
    peers: Arc<Semaphore>,
}

impl Held {
    pub(super) fn new(routes: Routes) -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        Self { routes, calls: places(CALLS), peers: places(PEERS) }
    }
}

impl Service<Request<Incoming>> for Held {
    type Response = Response<HeldBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, task: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        <Routes as Service<Request<Incoming>>>::poll_ready(&mut self.routes, task)
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let mut routes = self.routes.clone();
        let path = request.uri().path();
        let services = ["Peers", "Attachment", "Network"];
        let waits = services.into_iter().any(|name| path.starts_with(&format!("/openred.module.v1.{name}/")));
        let places = Arc::clone(if waits { &self.peers } else { &self.calls });
        Box::pin(async move {
            // Nobody closes them; without a place nothing of the request's body is read.
            let place = places.acquire_owned().await.ok();
            let response = routes.call(request).await?;
            Ok(response.map(|body| HeldBody { body, _place: place }))
        })
    }
}

/// An answer with its place.
pub(super) struct HeldBody {
    body: Body,
    _place: Option<OwnedSemaphorePermit>,
}

impl http_body::Body for HeldBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        http_body::Body::poll_frame(Pin::new(&mut self.body), task)
    }

    fn is_end_stream(&self) -> bool {
        http_body::Body::is_end_stream(&self.body)
    }

    fn size_hint(&self) -> SizeHint {
        http_body::Body::size_hint(&self.body)
    }
}
