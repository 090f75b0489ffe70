//! Listeners on this machine's loopback that serve modules: each connection is one call of its module, whose bodies are the connection's
//! bytes. Nothing of them is looked at here: what is parsed is parsed in the module's cage.
//!
//! The supervisor has bound them; who dials is anybody on this machine, and the module is told so.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use openred_module::{Body, BodyError, Caller, Method, Request, Status};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::{CALL_TIME, Loaded, Modules};

/// A module that says nothing for so long, or a client that takes nothing, ends the connection.
const IDLE: Duration = Duration::from_secs(75);
/// Bytes read at once.
const READ: usize = 16 * 1024;
/// Pause after an accept that failed: descriptors may be short for a moment.
const PAUSE: Duration = Duration::from_millis(100);

/// A listener and the module that it serves.
pub(crate) struct Loopback {
    pub(crate) module: &'static str,
    pub(crate) listener: TcpListener,
}

impl Loopback {
    /// Serves until its task is ended.
    pub(super) async fn serve(self, modules: Arc<Modules>) {
        let Ok(address) = self.listener.local_addr() else { return };
        tracing::info!(module = self.module, %address, "served on this machine");
        loop {
            let (stream, client) = match self.listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(module = self.module, %error, "a connection was not taken");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            // From elsewhere only by a route that somebody has set up for that; and a full table takes no more.
            let Some(loaded) = modules.get(self.module).filter(|_| client.ip().is_loopback()) else { continue };
            let Some(place) = loaded.places.call(Caller::Loopback) else { continue };
            tokio::spawn(async move {
                connection(&loaded, stream, (address, client)).await;
                drop(place);
            });
        }
    }
}

async fn connection(loaded: &Loaded, stream: TcpStream, (address, client): (SocketAddr, SocketAddr)) {
    // Answers are short: none waits for another.
    let _ = stream.set_nodelay(true);
    let (from, to) = stream.into_split();
    let path = format!("/{address}/{client}");
    let request = Request::new(Caller::Loopback, Method::Post, path).with_body("", received(from));
    let Ok(mut answer) = timeout(CALL_TIME, loaded.callee.dispatch(request)).await else { return };
    if answer.status != Status::Ok {
        return;
    }
    if let Err(error) = send(&mut answer.body, to).await {
        tracing::debug!(module = loaded.id, %error, "a connection on this machine broke");
    }
}

async fn send(answer: &mut Body, mut to: OwnedWriteHalf) -> std::io::Result<()> {
    let late = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
    while let Some(piece) = timeout(IDLE, answer.next()).await.map_err(late)? {
        let piece: Bytes = piece.map_err(std::io::Error::other)?;
        timeout(IDLE, to.write_all(&piece)).await.map_err(late)??;
    }
    to.shutdown().await
}

/// What the client sends, as far as it is read.
fn received(from: OwnedReadHalf) -> Body {
    Body::stream(futures_util::stream::unfold(Some(from), |from| async move {
        let mut from = from?;
        let mut piece = BytesMut::with_capacity(READ);
        match from.read_buf(&mut piece).await {
            Ok(0) => None,
            Ok(_) => Some((Ok(piece.freeze()), Some(from))),
            Err(_) => Some((Err(BodyError::Truncated), None)),
        }
    }))
}
