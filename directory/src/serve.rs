//! Sockets: accepts connections, TLS where it is configured, HTTP/1.1 with limits on number, head, time and silence; hands
//! requests to the API. HTTP/2 is left out: nodes need one connection each, and its stream and header floods stay outside.

mod feed;
mod unstalled;

use std::convert::Infallible;
use std::future::{Future as _, poll_fn};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use crate::api::signed::Peer;
use crate::limits::{DRAIN_TIME, HEAD_BYTES, HEAD_TIME, HEADERS, TLS_TIME, UNACKNOWLEDGED_TIME};
use crate::state::Directory;
use crate::tls::Tls;
use feed::Left;
use unstalled::Unstalled;

/// Wait after a failed accept (out of descriptors): time for connections to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A listener and what answers on it.
pub struct Service {
    /// Bound and listening.
    pub listener: TcpListener,
    /// HTTPS.
    pub tls: Option<Tls>,
    /// The routes.
    pub router: Router,
    /// Connections open at once.
    pub connections: u32,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Service({:?})", self.listener)
    }
}

/// Serves until the directory drains, then waits for what is under way, bounded by [`DRAIN_TIME`].
pub async fn serve(directory: Arc<Directory>, service: Service) {
    let places = Arc::new(Semaphore::new(service.connections as usize));
    let mut draining = directory.draining();
    while !*draining.borrow_and_update() {
        let accepted = tokio::select! {
            accepted = service.listener.accept() => accepted,
            _ = draining.changed() => continue,
        };
        match accepted {
            Ok((stream, address)) => {
                directory.metrics.connections.add();
                match Place::take(&directory, &places, address) {
                    Some(place) => {
                        let router = service.router.clone();
                        let connection =
                            Connection { directory: Arc::clone(&directory), peer: Peer(address), router, place };
                        tokio::spawn(connection.run(stream, service.tls.as_ref().map(Tls::acceptor)));
                    }
                    None => directory.metrics.connections_refused.add(),
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(service.listener);
    let all_ended = places.acquire_many(service.connections);
    if tokio::time::timeout(DRAIN_TIME, all_ended).await.is_err() {
        tracing::info!("some connections were still open at the end");
    }
}

/// A connection's place, among all and in its address's share of them.
struct Place {
    directory: Arc<Directory>,
    counted: Option<IpAddr>,
    _of_all: OwnedSemaphorePermit,
}

impl Place {
    fn take(directory: &Arc<Directory>, places: &Arc<Semaphore>, address: SocketAddr) -> Option<Self> {
        let of_all = Arc::clone(places).try_acquire_owned().ok()?;
        let counted = directory.counted(address.ip());
        let has_share = directory.connection_opens(counted);
        has_share.then(|| {
            directory.metrics.connections_open.add();
            Self { directory: Arc::clone(directory), counted, _of_all: of_all }
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.directory.metrics.connections_open.subtract();
        self.directory.connection_closed(self.counted);
    }
}

struct Connection {
    directory: Arc<Directory>,
    peer: Peer,
    router: Router,
    place: Place,
}

impl Connection {
    async fn run(self, stream: TcpStream, tls: Option<TlsAcceptor>) {
        // A failure here is the peer's connection ending: nothing to do.
        let _ = stream.set_nodelay(true);
        // A reader that does not read fills its window; the kernel then ends the connection for us.
        let silence = u32::try_from(UNACKNOWLEDGED_TIME.as_millis()).unwrap_or(u32::MAX);
        let _ = setsockopt(&stream, sockopt::TcpUserTimeout, &silence);
        match tls {
            None => self.speak(stream).await,
            Some(tls) => {
                if let Ok(Ok(stream)) = tokio::time::timeout(TLS_TIME, tls.accept(stream)).await {
                    self.speak(stream).await;
                }
            }
        }
    }

    async fn speak(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let Self { directory, peer, router, place } = self;
        let left = Left::default();
        let leave = left.clone();
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(peer);
            let (fits, leave) = (feed::fits(&request), leave.clone());
            let answer = router.clone().oneshot(request.map(Body::new));
            async move {
                let response = answer.await?;
                if fits && feed::is_stream(&response) {
                    leave.leave(response);
                    // Who polls the connection takes it from here.
                    return std::future::pending().await;
                }
                Ok::<_, Infallible>(response)
            }
        });
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .max_headers(HEADERS)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(Unstalled::new(stream)), service);
        let mut draining = directory.draining();
        let stream = loop {
            // The stream's answer is left while the connection is polled: whoever looks right after that misses none.
            let answered = poll_fn(|context| match Pin::new(&mut connection).poll(context) {
                // The error is the peer's: a malformed request, a time-out, a reset.
                Poll::Ready(_) => Poll::Ready(None),
                Poll::Pending => left.take().map_or(Poll::Pending, |stream| Poll::Ready(Some(stream))),
            });
            tokio::select! {
                answered = answered => break answered,
                _ = draining.changed() => Pin::new(&mut connection).graceful_shutdown(),
            }
        };
        let Some(stream) = stream else { return };
        let peer = connection.into_parts().io.into_inner();
        // Earlier answers that it has not taken are gone with the machinery: it did not wait for them, so it is not served.
        if !peer.is_waiting() {
            // In a task of its own: this one keeps the room that the machinery took.
            tokio::spawn(async move {
                // The error is the peer's, as above.
                let _ = feed::feed(peer, stream).await;
                drop(place);
            });
        }
    }
}
