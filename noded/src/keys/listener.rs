//! The way to the front's socket, and who must have opened it: the supervisor, which made this process and passes the listener on to each
//! front. What else stands in its place, a program of the same user or one put there by a mistake, is told nothing: the connection
//! is closed before a byte is written. The kernel says who opened a listener (`SO_PEERCRED` of who connects to it), and
//! gives the supervisor's process id to nobody while it lives; when it ends, so does this process.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::Uri;
use hyper_util::rt::TokioIo;
use openred_policy::socket::peer;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

/// What a connector's call is.
type Connecting = Pin<Box<dyn Future<Output = io::Result<TokioIo<UnixStream>>> + Send>>;

/// Where the front listens, and the process that opened the listener.
#[derive(Clone, Debug)]
pub(super) struct Listener {
    socket: PathBuf,
    opened_by: u32,
    /// It was another the last time, and that was said.
    said: Arc<AtomicBool>,
}

impl Listener {
    pub(super) fn new(socket: PathBuf, opened_by: u32) -> Self {
        Self { socket, opened_by, said: Arc::default() }
    }

    /// A channel over it, which connects with its first call and again whenever that is needed.
    pub(super) fn channel(&self, endpoint: &Endpoint) -> Channel {
        let listener = self.clone();
        endpoint.connect_with_connector_lazy(service_fn(move |_: Uri| -> Connecting {
            let listener = listener.clone();
            Box::pin(async move { listener.connect().await.map(TokioIo::new) })
        }))
    }

    async fn connect(&self) -> io::Result<UnixStream> {
        let stream = UnixStream::connect(&self.socket).await?;
        let opened_by = peer(&stream)?.pid;
        let is_ours = u32::try_from(opened_by) == Ok(self.opened_by);
        // Said once each time it comes to that, however often it is tried.
        if !self.said.swap(!is_ours, Ordering::Relaxed) && !is_ours {
            tracing::error!(
                opened_by,
                supervisor = self.opened_by,
                "another process than the supervisor listens in the front's place; nothing was sent to it"
            );
        }
        if is_ours { Ok(stream) } else { Err(io::ErrorKind::PermissionDenied.into()) }
    }
}
