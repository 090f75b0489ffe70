//! The listener's side: HTTP/1.1 on the inherited socket, bounded in connections and time, drained when the node stops.

use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use axum::routing::post;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tower::ServiceExt as _;

use super::settings::{FIRST_REQUEST, HEAD_BUFFER, HEAD_FIELDS, SERVER_KEEP_ALIVE};
use super::stall::{StallGuard, is_stall};
use super::{HANDSHAKE_PATH, PeerNetwork, Refused, SESSION_PATH, answer, guard, receive};
use crate::handshake::cookie::Source;
use crate::reports::Seen;
use crate::sensitive::Sensitive;

/// How often what is past its time is looked for: sessions and connections that are idle, answers that nobody waits for.
const SWEEP: Duration = Duration::from_secs(15);
/// A listener that fails (no descriptors left) is asked again after this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// A connection is cut without an answer: its address has used up what is forgiven.
#[derive(Debug, thiserror::Error)]
#[error("too many refusals")]
struct CutOff;

impl PeerNetwork {
    /// The routes.
    pub fn router(self: &Arc<Self>) -> Router {
        Router::new()
            .route(HANDSHAKE_PATH, post(answer::handle))
            .route(SESSION_PATH, post(receive::handle))
            .with_state(Arc::clone(self))
    }

    /// Serves `listener` until `stop` turns true, then lets the requests that run come to their end, for a while.
    ///
    /// # Errors
    /// When the listener cannot be used at all.
    pub async fn serve(
        self: Arc<Self>,
        listener: std::net::TcpListener,
        stop: watch::Receiver<bool>,
    ) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let router = self.router();
        let mut connections = JoinSet::new();
        let mut sweep = tokio::time::interval(SWEEP);
        let mut stopping = pin!(stopped(stop.clone()));
        loop {
            tokio::select! {
                () = stopping.as_mut() => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, address)) => self.admit(&mut connections, &router, &stop, stream, address.ip()),
                    Err(error) => {
                        tracing::warn!(%error, "no connection could be taken");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = connections.join_next() => {}
                _ = sweep.tick() => self.sweep(Instant::now()),
            }
        }
        drop(listener);
        let draining = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(self.settings.drain, draining).await.is_err() {
            tracing::warn!("some requests of peers did not end in time and were cut");
        }
        Ok(())
    }

    /// Lets go of what is past its time: each of these is looked at again only when its like is added, which on a quiet node may be never.
    pub(super) fn sweep(&self, now: Instant) {
        self.pool.sweep(now);
        self.connections.sweep();
        self.responder().sweep(now);
        // One whose initiator has gone was perhaps among those: nothing else says so to who waits for its end.
        self.settled.notify_waiters();
        self.direct().sweep(now);
        self.contacts.sweep(now);
        self.cookies().sweep(now);
    }

    /// Serves one connection on a task, or closes it when there are too many.
    fn admit(
        self: &Arc<Self>,
        connections: &mut JoinSet<()>,
        router: &Router,
        stop: &watch::Receiver<bool>,
        stream: TcpStream,
        address: IpAddr,
    ) {
        let Some(admission) = self.guard.admit(address) else {
            tracing::debug!(address = %Sensitive(address), "too many connections");
            self.ports.reports.note(Seen::Flooded);
            return;
        };
        let (network, router, stop) = (Arc::clone(self), router.clone(), stop.clone());
        connections.spawn(async move {
            match network.serve_connection(router, stop, stream, address).await {
                Ok(()) => {}
                Err(error) if is_stall(&error) => tracing::debug!("a peer does not read its answer: it was cut"),
                Err(error) => tracing::debug!(%error, "a connection of a peer ended"),
            }
            drop(admission);
        });
    }

    async fn serve_connection(
        self: Arc<Self>,
        router: Router,
        stop: watch::Receiver<bool>,
        stream: TcpStream,
        address: IpAddr,
    ) -> Result<(), hyper::Error> {
        // A small answer must not wait for the acknowledgement of the one before.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set");
        }
        let io = TokioIo::new(StallGuard::new(stream, self.settings.chunk_timeout));
        let begun = Notify::new();
        let source = Source::Network(guard::network(address));
        let service = service_fn(|mut request: Request<hyper::body::Incoming>| {
            begun.notify_one();
            request.extensions_mut().insert(source);
            let answering = router.clone().oneshot(request.map(axum::body::Body::new));
            let network = &self;
            async move {
                let answered: Result<Response, Infallible> = answering.await;
                let response = answered.unwrap_or_else(|never| match never {});
                let is_refusal = response.extensions().get::<Refused>().is_some();
                if is_refusal && !network.guard.forgive(address, Instant::now()) {
                    network.ports.reports.note(Seen::Flooded);
                    return Err(CutOff);
                }
                Ok(response)
            }
        });
        let mut connection = pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(SERVER_KEEP_ALIVE)
                .max_buf_size(HEAD_BUFFER)
                .max_headers(HEAD_FIELDS)
                .auto_date_header(false)
                .serve_connection(io, service)
        );
        tokio::select! {
            ended = connection.as_mut() => return ended,
            () = stopped(stop) => connection.as_mut().graceful_shutdown(),
            () = silence(&begun) => return Ok(()),
        }
        connection.await
    }
}

/// Returns when a connection has asked for nothing in its first seconds.
async fn silence(begun: &Notify) {
    if tokio::time::timeout(FIRST_REQUEST, begun.notified()).await.is_ok() {
        std::future::pending::<()>().await;
    }
}

/// Returns when the node stops, also when whoever would say so has gone.
async fn stopped(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
