//! Connections to hosts beyond the node's peers: the node dials them, and their bytes pass through it. A module has no network of its own.
//!
//! ```no_run
//! # use openred_module::{Context, DialError, Body};
//! # async fn ask(context: Context) -> Result<(), Box<dyn std::error::Error>> {
//! let answer = context.dial("api.example.com:80", Body::whole("GET / HTTP/1.0\r\n\r\n")).await?;
//! let bytes = answer.collect(65_536).await?;
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "process")]
use bytes::BytesMut;
#[cfg(feature = "process")]
use futures_util::StreamExt as _;
#[cfg(feature = "process")]
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

use crate::body::Body;
#[cfg(feature = "process")]
use crate::body::BodyError;
use crate::context::Context;

/// Longest destination: a host name and a port.
pub(crate) const DESTINATION_BYTES: usize = 262;
/// Bytes each way that wait between a [`Context::connect`] and its node.
#[cfg(feature = "process")]
const WAITING: usize = 64 << 10;
/// Bytes that are sent at a time.
#[cfg(feature = "process")]
const PIECE: usize = 16 << 10;

/// Why there is no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The operator has not granted this destination.
    #[error("this module was not granted net.egress to that destination")]
    NotGranted,
    /// The name had no address when the node started.
    #[error("that name had no address when the node started")]
    Unresolved,
    /// The name leads to this machine or into a private network. An address there may be granted as such.
    #[error("that name leads to this machine or into a private network")]
    Private,
    /// Nobody answers there.
    #[error("nobody answers at that destination")]
    Unreachable,
    /// Nobody has answered in time.
    #[error("nobody answered at that destination in time")]
    TimedOut,
    /// As many connections as a module may have are open.
    #[error("too many connections of this module are open")]
    Busy,
}

impl Context {
    /// Connects to a destination of the grant `net.egress`, written as there (`HOST:PORT`), and sends `sent`; the bytes that come back. Both go on as
    /// they are pulled. When `sent` ends, the other side hears an end; when the answer ends or is dropped, the connection is closed.
    ///
    /// # Errors
    /// [`DialError`] if there is no connection.
    pub async fn dial(&self, to: &str, sent: Body) -> Result<Body, DialError> {
        self.host().dial(to, sent).await
    }

    /// The same as a stream, for what speaks a protocol over it: TLS, HTTP.
    ///
    /// # Errors
    /// As of [`Context::dial`].
    #[cfg(feature = "process")]
    pub async fn connect(&self, to: &str) -> Result<DuplexStream, DialError> {
        let (near, far) = tokio::io::duplex(WAITING);
        let (from, mut into) = tokio::io::split(far);
        let sent = Body::stream(futures_util::stream::unfold(from, |mut from| async move {
            let mut bytes = BytesMut::with_capacity(PIECE);
            match from.read_buf(&mut bytes).await {
                Ok(0) => None,
                Ok(_) => Some((Ok(bytes.freeze()), from)),
                Err(_) => Some((Err(BodyError::Failed), from)),
            }
        }));
        let mut answer = self.dial(to, sent).await?;
        tokio::spawn(async move {
            while let Some(Ok(bytes)) = answer.next().await {
                // The module has let go of its end: the connection closes with the answer.
                if into.write_all(&bytes).await.is_err() {
                    return;
                }
            }
            let _ = into.shutdown().await;
        });
        Ok(near)
    }
}
