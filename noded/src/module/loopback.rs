//! Listeners on this machine's loopback that serve modules: each connection is one call of its module, whose bodies are the connection's
//! bytes. Nothing of them is looked at here: what is parsed is parsed in the module's cage.
//!
//! A connection is a call to its end. Where another version of the module takes its place, the module is told that its client says no more as soon as
//! what was asked is being answered: so it answers that, with all that it may write, and ends the connection; the client's next one goes to the
//! new version.
//!
//! The supervisor has bound them; who dials is anybody on this machine, and the module is told so.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use openred_module::{Body, BodyError, Caller, Method, Request, Status};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::{CALL_TIME, Loaded, Modules};

/// A module that says nothing for so long, or a client that takes nothing, ends the connection.
const IDLE: Duration = Duration::from_secs(75);
/// Bytes read at once.
const READ: usize = 16 * 1024;
/// How long the first words of a client may be under way that has just connected, where its module is replaced: they may be a request.
const FRESH: Duration = Duration::from_millis(250);
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
    let line = Arc::new(Line::default());
    let request = Request::new(Caller::Loopback, Method::Post, path).with_body("", received(from, Arc::clone(&line)));
    let Ok((mut answer, used)) = timeout(CALL_TIME, loaded.callee.connect(request)).await else { return };
    if answer.status != Status::Ok {
        return;
    }
    let replaced = async {
        match &used {
            Some(used) => used.replaced().await,
            None => std::future::pending().await,
        }
    };
    let mut sending = pin!(send(&mut answer.body, to, &line));
    let sent = tokio::select! {
        sent = &mut sending => sent,
        () = replaced => {
            line.end();
            sending.await
        }
    };
    if let Err(error) = sent {
        tracing::debug!(module = loaded.id, %error, "a connection on this machine broke");
    }
}

/// What both directions of a connection have to know of each other.
#[derive(Default)]
struct Line {
    /// Its client has said something.
    heard: AtomicBool,
    /// And the module nothing since.
    asked: AtomicBool,
    /// Its module is being replaced.
    ends: AtomicBool,
    changed: Notify,
}

impl Line {
    fn asked(&self) {
        self.heard.store(true, Ordering::Release);
        self.asked.store(true, Ordering::Release);
    }

    fn answered(&self) {
        self.asked.store(false, Ordering::Release);
        self.changed.notify_waiters();
    }

    fn end(&self) {
        self.ends.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Waits until nothing more is to be heard of its client.
    async fn over(&self) {
        loop {
            let mut changed = pin!(self.changed.notified());
            // Before the look, so that no change is missed in between.
            changed.as_mut().enable();
            if self.ends.load(Ordering::Acquire) && !self.asked.load(Ordering::Acquire) {
                if !self.heard.load(Ordering::Acquire) {
                    tokio::time::sleep(FRESH).await;
                }
                return;
            }
            changed.await;
        }
    }
}

async fn send(answer: &mut Body, mut to: OwnedWriteHalf, line: &Line) -> std::io::Result<()> {
    let late = |_| std::io::Error::from(std::io::ErrorKind::TimedOut);
    while let Some(piece) = timeout(IDLE, answer.next()).await.map_err(late)? {
        let piece: Bytes = piece.map_err(std::io::Error::other)?;
        timeout(IDLE, to.write_all(&piece)).await.map_err(late)??;
        line.answered();
    }
    to.shutdown().await
}

/// What the client sends, as far as it is read.
fn received(from: OwnedReadHalf, line: Arc<Line>) -> Body {
    Body::stream(futures_util::stream::unfold(Some((from, line)), |open| async move {
        let (mut from, line) = open?;
        let mut piece = BytesMut::with_capacity(READ);
        let read = tokio::select! {
            biased;
            read = from.read_buf(&mut piece) => read,
            () = line.over() => Ok(0),
        };
        match read {
            Ok(0) => None,
            Ok(_) => {
                line.asked();
                Some((Ok(piece.freeze()), Some((from, line))))
            }
            Err(_) => Some((Err(BodyError::Truncated), None)),
        }
    }))
}
