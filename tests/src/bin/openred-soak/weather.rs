//! Bad weather: proxies in front of nodes that lose, double and hold up requests, and the ways to the directory.
//!
//! A node that has one is announced at its proxy's port. Loss is of whole requests and answers, not of packets, which TCP would mend out of
//! sight: a request that never came, an answer that never came although the request was served, one that came twice, one that others overtook.

use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};

use super::place::Place;
use super::plan::Chance;

/// Longest body that a proxy passes: messages are far shorter.
const BODY: usize = 4 << 20;
/// How long a way to a node or directory that is away is tried.
const CONNECT: Duration = Duration::from_secs(5);
/// How long what was lost in silence keeps its connection: a little longer than a handshake waits.
const SILENCE: Duration = Duration::from_secs(6);
/// Longest delay of a request that others are to overtake.
const DELAY_MILLIS: usize = 900;

/// What the weather is, and what it did.
#[derive(Debug)]
pub(crate) struct Weather {
    /// How many troubles make it foul now.
    foul: AtomicUsize,
    chance: Mutex<Chance>,
    pub(crate) did: Did,
}

/// Requests by what became of them.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Did {
    passed: AtomicU64,
    lost_requests: AtomicU64,
    lost_answers: AtomicU64,
    doubled: AtomicU64,
    held_up: AtomicU64,
    directory_cut: AtomicU64,
}

/// What becomes of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Passed,
    LostRequest,
    LostAnswer,
    Doubled,
    HeldUp(Duration),
}

/// It was lost: the connection closes without an answer.
fn lost() -> Error {
    Error::from(ErrorKind::ConnectionAborted)
}

impl Weather {
    pub(crate) fn new(seed: u64) -> Self {
        Self { foul: AtomicUsize::new(0), chance: Mutex::new(Chance::new(seed, 1)), did: Did::default() }
    }

    /// One more trouble, or one less.
    pub(crate) fn turn(&self, foul: bool) {
        if foul {
            self.foul.fetch_add(1, Ordering::Relaxed)
        } else {
            self.foul.fetch_sub(1, Ordering::Relaxed)
        };
    }

    fn draw(&self, end: usize) -> Option<usize> {
        let is_foul = self.foul.load(Ordering::Relaxed) > 0;
        is_foul.then(|| self.chance.lock().unwrap_or_else(PoisonError::into_inner).below(end))
    }

    fn fate(&self) -> Fate {
        let (fate, count) = match self.draw(100) {
            Some(0..8) => (Fate::LostRequest, &self.did.lost_requests),
            Some(8..16) => (Fate::LostAnswer, &self.did.lost_answers),
            Some(16..24) => (Fate::Doubled, &self.did.doubled),
            Some(24..54) => {
                let millis = self.draw(DELAY_MILLIS).unwrap_or(0) as u64;
                (Fate::HeldUp(Duration::from_millis(millis)), &self.did.held_up)
            }
            _ => (Fate::Passed, &self.did.passed),
        };
        count.fetch_add(1, Ordering::Relaxed);
        fate
    }

    /// Something that was lost: half of the time at once, else in silence.
    async fn lose(&self) -> Error {
        if self.draw(2) == Some(0) {
            tokio::time::sleep(SILENCE).await;
        }
        lost()
    }
}

/// A way from an address of a place to another.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Way {
    /// Bytes as they come.
    Stream { from: SocketAddr, to: SocketAddr },
    /// HTTP requests, each with its fate.
    Requests { from: SocketAddr, to: SocketAddr },
}

/// Opens these ways in a place, for as long as this process lives.
pub(crate) fn open(place: Arc<Place>, ways: Vec<Way>, weather: Arc<Weather>) {
    std::thread::spawn(move || {
        let served = place.inside(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let each = ways.into_iter().map(|way| serve(way, Arc::clone(&weather)));
                futures_util::future::try_join_all(each).await.map(|_| ())
            })
        });
        if let Err(error) = served {
            super::report::say(&format!("a proxy ended: {error:#}"));
        }
    });
}

async fn serve(way: Way, weather: Arc<Weather>) -> Result<()> {
    let (Way::Stream { from, .. } | Way::Requests { from, .. }) = way;
    let listener = TcpListener::bind(from).await.with_context(|| format!("listening on {from}"))?;
    loop {
        let (stream, _) = listener.accept().await?;
        let weather = Arc::clone(&weather);
        tokio::spawn(async move {
            // Either side may hang up at any time.
            match way {
                Way::Stream { to, .. } => drop(pass_stream(stream, to, &weather).await),
                Way::Requests { to, .. } => {
                    let answering = service_fn(|request| answer(request, to, &weather));
                    let serving = hyper::server::conn::http1::Builder::new();
                    drop(serving.serve_connection(TokioIo::new(stream), answering).await);
                }
            }
        });
    }
}

async fn pass_stream(mut stream: TcpStream, to: SocketAddr, weather: &Weather) -> Result<()> {
    if weather.draw(4) == Some(0) {
        weather.did.directory_cut.fetch_add(1, Ordering::Relaxed);
        return Ok(());
    }
    let mut there = tokio::time::timeout(CONNECT, TcpStream::connect(to)).await??;
    tokio::io::copy_bidirectional(&mut stream, &mut there).await?;
    Ok(())
}

async fn answer(request: Request<Incoming>, to: SocketAddr, weather: &Weather) -> Result<Response<Full<Bytes>>, Error> {
    let (mut head, body) = request.into_parts();
    let body = Limited::new(body, BODY).collect().await.map_err(|_| lost())?.to_bytes();
    // Both are of the body as it came in; it goes on whole.
    head.headers.remove(TRANSFER_ENCODING);
    head.headers.remove(CONTENT_LENGTH);
    let request = Request::from_parts(head, Full::new(body));
    let fate = weather.fate();
    match fate {
        Fate::LostRequest => return Err(weather.lose().await),
        Fate::HeldUp(time) => tokio::time::sleep(time).await,
        Fate::Passed | Fate::LostAnswer | Fate::Doubled => {}
    }
    let again = (fate == Fate::Doubled).then(|| request.clone());
    let answered = pass(request, to).await;
    if let Some(again) = again {
        // What is said to the second one nobody hears.
        drop(pass(again, to).await);
    }
    match fate {
        Fate::LostAnswer => Err(weather.lose().await),
        _ => answered.map_err(|_| lost()),
    }
}

async fn pass(request: Request<Full<Bytes>>, to: SocketAddr) -> Result<Response<Full<Bytes>>> {
    let stream = tokio::time::timeout(CONNECT, TcpStream::connect(to)).await??;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let (mut head, body) = sender.send_request(request).await?.into_parts();
    let body = Limited::new(body, BODY).collect().await.map_err(|_| lost())?.to_bytes();
    connection.abort();
    head.headers.remove(TRANSFER_ENCODING);
    head.headers.remove(CONTENT_LENGTH);
    Ok(Response::from_parts(head, Full::new(body)))
}
