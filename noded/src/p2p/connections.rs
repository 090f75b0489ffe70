//! Our own connections to peers: HTTP/1.1, kept alive, one request at a time each, pooled per address.
//!
//! Endpoints are IP literals: a process behind its filter has no resolver. Plain HTTP only: the session layer needs nothing from
//! the carrier, and a TLS end point in front of a peer is the operator's choice on the peer's side.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use http::header::{CONTENT_TYPE, HOST, HeaderValue};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::carrier::{OutflowError, SealedBody};
use super::error::NetworkError;
use super::settings::{CLIENT_CONNECTIONS, CLIENT_KEEP_ALIVE, COMES_TO_REST, IDLE_CONNECTIONS};
use super::stall::{StallGuard, causes, is_stall};

/// Where a peer can be reached: a checked endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reach {
    address: SocketAddr,
    host: HeaderValue,
    prefix: String,
}

impl Reach {
    /// From a card's endpoint; none when this node cannot use it (a name, or TLS).
    pub(super) fn parse(endpoint: &str) -> Option<Self> {
        let uri: http::Uri = endpoint.parse().ok()?;
        let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http"))?.as_str();
        let address = authority.parse().or_else(|_| format!("{authority}:80").parse()).ok()?;
        let host = HeaderValue::from_str(authority).ok()?;
        Some(Self { address, host, prefix: uri.path().trim_end_matches('/').to_owned() })
    }

    /// Where it listens.
    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }
}

/// The pool.
#[derive(Debug)]
pub(super) struct Connections {
    idle: Mutex<HashMap<SocketAddr, Vec<Idle>>>,
    open: Arc<Semaphore>,
    connect_timeout: Duration,
    stall: Duration,
}

#[derive(Debug)]
struct Idle {
    sender: SendRequest<SealedBody>,
    since: Instant,
}

/// A connection in use; given back when its response has been read, closed when dropped before.
#[derive(Debug)]
pub(super) struct Lease {
    pool: Arc<Connections>,
    address: SocketAddr,
    sender: SendRequest<SealedBody>,
}

impl Lease {
    /// The response was read to its end: the connection may serve another request.
    pub(super) fn give_back(self) {
        let mut idle = self.pool.idle();
        let list = idle.entry(self.address).or_default();
        if list.len() < IDLE_CONNECTIONS {
            list.push(Idle { sender: self.sender, since: Instant::now() });
        }
    }
}

impl Connections {
    /// An empty pool.
    pub(super) fn new(connect_timeout: Duration, stall: Duration) -> Arc<Self> {
        let open = Arc::new(Semaphore::new(CLIENT_CONNECTIONS));
        Arc::new(Self { idle: Mutex::default(), open, connect_timeout, stall })
    }

    /// Makes sure that a connection is there, so that nothing is asked of the key process for a peer that is offline.
    pub(super) async fn probe(self: &Arc<Self>, reach: &Reach) -> Result<(), NetworkError> {
        let (lease, _) = self.acquire(reach).await?;
        lease.give_back();
        Ok(())
    }

    /// Posts `body`; a request that never left because an idle connection had closed goes out on another.
    pub(super) async fn post(
        self: &Arc<Self>,
        reach: &Reach,
        path: &str,
        body: SealedBody,
    ) -> Result<(Response<Incoming>, Lease), NetworkError> {
        let mut request = Request::post(format!("{}{path}", reach.prefix))
            .header(HOST, reach.host.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))
            .body(body)
            .map_err(|_| NetworkError::Bug)?;
        loop {
            let (mut lease, reused) = self.acquire(reach).await?;
            match lease.sender.try_send_request(request).await {
                Ok(response) => return Ok((response, lease)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) if reused => request = unsent,
                    Some(_) => return Err(NetworkError::PeerOffline(ErrorKind::ConnectionReset)),
                    None => return Err(lost(error.error())),
                },
            }
        }
    }

    /// An idle connection, and true; or a new one.
    async fn acquire(self: &Arc<Self>, reach: &Reach) -> Result<(Lease, bool), NetworkError> {
        while let Some(mut idle) = self.take_idle(reach.address) {
            if idle.since.elapsed() < CLIENT_KEEP_ALIVE && takes_requests(&mut idle.sender).await {
                return Ok((self.lease(reach, idle.sender), true));
            }
        }
        let sender = self.connect(reach).await?;
        Ok((self.lease(reach, sender), false))
    }

    fn lease(self: &Arc<Self>, reach: &Reach, sender: SendRequest<SealedBody>) -> Lease {
        Lease { pool: Arc::clone(self), address: reach.address, sender }
    }

    async fn connect(&self, reach: &Reach) -> Result<SendRequest<SealedBody>, NetworkError> {
        let permit = Arc::clone(&self.open).try_acquire_owned().map_err(|_| NetworkError::Busy)?;
        let offline = |error: std::io::Error| NetworkError::PeerOffline(error.kind());
        let connecting = TcpStream::connect(reach.address);
        let stream = tokio::time::timeout(self.connect_timeout, connecting).await;
        let stream = stream.map_err(|_| NetworkError::PeerOffline(ErrorKind::TimedOut))?.map_err(offline)?;
        stream.set_nodelay(true).map_err(offline)?;
        let io = TokioIo::new(StallGuard::new(stream, self.stall));
        let (sender, connection) = http1::handshake(io).await.map_err(|_| NetworkError::Interrupted)?;
        tokio::spawn(async move {
            let ended = connection.await;
            drop(permit);
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection to a peer ended");
            }
        });
        Ok(sender)
    }

    /// Connections that are open.
    #[cfg(test)]
    pub(super) fn open(&self) -> usize {
        CLIENT_CONNECTIONS - self.open.available_permits()
    }

    fn take_idle(&self, address: SocketAddr) -> Option<Idle> {
        let mut idle = self.idle();
        let list = idle.get_mut(&address)?;
        let taken = list.pop();
        if list.is_empty() {
            idle.remove(&address);
        }
        taken
    }

    /// Closes connections that were idle for too long.
    pub(super) fn sweep(&self) {
        self.idle().retain(|_, list| {
            list.retain(|idle| idle.since.elapsed() < CLIENT_KEEP_ALIVE && !idle.sender.is_closed());
            !list.is_empty()
        });
    }

    fn idle(&self) -> MutexGuard<'_, HashMap<SocketAddr, Vec<Idle>>> {
        self.idle.lock().expect("nothing panics while it holds the idle connections")
    }
}

/// Whether a request can go out at once, or as good. A connection whose answer came early is given back while the body of its request
/// still goes, and that ends when its source pleases: no other request waits for it.
async fn takes_requests(sender: &mut SendRequest<SealedBody>) -> bool {
    sender.is_ready() || tokio::time::timeout(COMES_TO_REST, sender.ready()).await.is_ok_and(|ready| ready.is_ok())
}

/// Why a request that had left, or a part of it, has no answer.
fn lost(error: &hyper::Error) -> NetworkError {
    if is_stall(error) {
        return NetworkError::Stalled;
    }
    match causes(error).find_map(|cause| cause.downcast_ref::<OutflowError>()) {
        Some(OutflowError::Session(error)) => (*error).into(),
        Some(OutflowError::Body(error)) => NetworkError::RequestBody(*error),
        None => NetworkError::Interrupted,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn endpoints_are_ip_literals_over_plain_http() {
        let reach = Reach::parse("http://127.0.0.1:7000/base/").unwrap();
        assert_eq!((reach.address, reach.prefix.as_str()), ("127.0.0.1:7000".parse().unwrap(), "/base"));
        assert_eq!(Reach::parse("http://[::1]:7000").unwrap().address, "[::1]:7000".parse().unwrap());
        assert_eq!(Reach::parse("http://192.0.2.1").unwrap().address.port(), 80);
        for unusable in ["https://192.0.2.1", "http://node.example:1", "ftp://192.0.2.1", "192.0.2.1:1", ""] {
            assert_eq!(Reach::parse(unusable), None, "{unusable}");
        }
    }
}
