//! Who is at the door: a bounded number of connections, each with its own bucket of calls and its count of faults.
//!
//! Authority comes from the listener, which stands in a directory that only `noded` can enter. `callers` looks a second time: who is
//! not the `noded` that the supervisor started is closed before a byte is read. A
//! connection that makes [`FAULTS`] requests that a correct caller never makes, faster than they are forgotten, is closed.

use std::future::ready;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use futures_util::{Stream, StreamExt};
use openred_proto::vault::Lane;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::server::Connected;

use super::callers::Callers;
use super::gather::Gather;
use super::outgoing::Outgoing;
use super::places::{DEAR_WAITING, Places};
use super::refused::{Greeting, Refused};

/// Connections at once: `noded` keeps two, and a restarted one may overlap with its predecessor.
const CONNECTIONS: usize = 8;
/// Streams of handshakes that a connection may have: one, and one that takes its place before its end was noticed.
const STREAMS: usize = 2;
/// Faults after which a connection is closed: a version skew shows in a few, a probe in many.
const FAULTS: f64 = 16.0;
/// Faults forgotten in a second, one in a minute: a connection lives as long as `noded`, and what somebody else can bring
/// about now and then must not add up to its end. A probe makes more in one second than are forgotten in an hour.
const FORGOTTEN_PER_SECOND: f64 = 1.0 / 60.0;
/// Calls that a connection may make at once after a pause, and per second: above what the vault's own quotas allow in any
/// one class, so that this meets only what asks for everything at once.
const BURST: f64 = 16_384.0;
/// See [`BURST`].
const PER_SECOND: f64 = 16_384.0;

/// The listener with its bound on connections.
pub(super) struct Door {
    listener: UnixListener,
    callers: Arc<Callers>,
    refused: Arc<Refused>,
    places: Arc<Semaphore>,
}

impl Door {
    pub(super) fn new(listener: UnixListener, callers: Arc<Callers>, refused: Arc<Refused>) -> Self {
        Self { listener, callers, refused, places: Arc::new(Semaphore::new(CONNECTIONS)) }
    }

    /// Connections as they come; a stranger's and one too many are closed at once.
    pub(super) fn admit(self) -> impl Stream<Item = io::Result<Connection>> {
        let Self { listener, callers, refused, places } = self;
        let (mut full, mut strange) = (false, false);
        UnixListenerStream::new(listener).filter_map(move |accepted| {
            // Accepting failed for one that is gone already: the listener stays.
            let Ok(stream) = accepted else { return ready(None) };
            // A stranger takes no place from those who may come in.
            let stranger = callers.who_is(&stream).err();
            if let Some(why) = stranger.filter(|_| !strange) {
                tracing::warn!("a connection was closed unread: {why}");
            }
            strange = stranger.is_some();
            if strange {
                return ready(None);
            }
            let place = Arc::clone(&places).try_acquire_owned();
            // Said once each time it comes to that, however many knock.
            if place.is_err() && !full {
                tracing::warn!(at_most = CONNECTIONS, "too many connections: the newest are closed");
            }
            full = place.is_err();
            ready(place.ok().map(|place| Ok(Connection::new(stream, &refused, place))))
        })
    }
}

/// What is known of a caller: how much it asked for, and how often it asked for what it should not.
#[derive(Debug)]
pub(super) struct Caller {
    bucket: Mutex<Bucket>,
    /// Its part of the vault's places.
    places: Places,
    /// Dear calls that it may have open.
    dear: Arc<Semaphore>,
    /// Streams of handshakes that it may have open.
    streams: Arc<Semaphore>,
    /// How many more faults it may make.
    patience: Mutex<Bucket>,
    out: AtomicBool,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    fn full(tokens: f64) -> Mutex<Self> {
        Mutex::new(Self { tokens, filled: Instant::now() })
    }

    /// Takes a token, if there is one, after filling up what has run in since the last time.
    fn take(&mut self, now: Instant, per_second: f64, most: f64) -> bool {
        let since = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + since * per_second).min(most);
        self.filled = now;
        let has_one = self.tokens >= 1.0;
        if has_one {
            self.tokens -= 1.0;
        }
        has_one
    }
}

impl Caller {
    pub(super) fn new() -> Self {
        // One less than FAULTS, so that the last of them finds none.
        Self {
            bucket: Bucket::full(BURST),
            places: Places::of_caller(),
            dear: Arc::new(Semaphore::new(DEAR_WAITING)),
            streams: Arc::new(Semaphore::new(STREAMS)),
            patience: Bucket::full(FAULTS - 1.0),
            out: AtomicBool::new(false),
        }
    }

    /// Its part of the vault's places.
    pub(super) const fn places(&self) -> &Places {
        &self.places
    }

    /// Lets a call of this lane wait for a place, for as long as what is given is held. Cheap ones are bounded by the connection's
    /// streams.
    ///
    /// # Errors
    /// When too many dear ones wait already.
    pub(super) fn may_wait(&self, lane: Lane) -> Result<Option<OwnedSemaphorePermit>, TryAcquireError> {
        match lane {
            Lane::Cheap => Ok(None),
            Lane::Dear => Arc::clone(&self.dear).try_acquire_owned().map(Some),
        }
    }

    /// Lets a stream of handshakes be open, for as long as what is given is held.
    ///
    /// # Errors
    /// When there are as many as may be.
    pub(super) fn may_stream(&self) -> Result<OwnedSemaphorePermit, TryAcquireError> {
        Arc::clone(&self.streams).try_acquire_owned()
    }

    /// Takes a token for one call.
    pub(super) fn may_call(&self, now: Instant) -> bool {
        self.bucket.lock().unwrap_or_else(PoisonError::into_inner).take(now, PER_SECOND, BURST)
    }

    /// Notes a request that a correct caller never makes.
    pub(super) fn note_fault(&self, now: Instant) {
        let mut patience = self.patience.lock().unwrap_or_else(PoisonError::into_inner);
        if !patience.take(now, FORGOTTEN_PER_SECOND, FAULTS - 1.0) && !self.out.swap(true, Ordering::Relaxed) {
            tracing::warn!(faults = FAULTS, "closed a connection that misbehaves");
        }
    }

    pub(super) fn is_out(&self) -> bool {
        self.out.load(Ordering::Relaxed)
    }
}

/// A connection with what is known of its caller.
pub(super) struct Connection {
    stream: Gather<UnixStream>,
    caller: Arc<Caller>,
    greeting: Greeting,
    outgoing: Outgoing,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    fn new(stream: UnixStream, refused: &Arc<Refused>, place: OwnedSemaphorePermit) -> Self {
        let (greeting, outgoing) = (Greeting::new(Arc::clone(refused)), Outgoing::new(Arc::clone(refused)));
        Self { stream: Gather::new(stream), caller: Arc::new(Caller::new()), greeting, outgoing, _place: place }
    }
}

impl Connected for Connection {
    type ConnectInfo = Arc<Caller>;

    fn connect_info(&self) -> Self::ConnectInfo {
        Arc::clone(&self.caller)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.caller.is_out() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        let before = buffer.filled().len();
        std::task::ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if self.greeting.is_ours(&buffer.filled()[before..]) {
            Poll::Ready(Ok(()))
        } else {
            self.caller.out.store(true, Ordering::Relaxed);
            Poll::Ready(Err(io::ErrorKind::InvalidData.into()))
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = std::task::ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        if self.outgoing.is_over(&bytes[..written]) {
            self.caller.out.store(true, Ordering::Relaxed);
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_bucket_empties_and_fills() {
        let caller = Caller::new();
        let now = Instant::now();
        let taken = (0..BURST as u32 + 10).filter(|_| caller.may_call(now)).count();
        assert_eq!(taken, BURST as usize);
        assert!(!caller.may_call(now));
        assert!(caller.may_call(now + Duration::from_millis(1)));
        assert!(caller.may_call(now), "time that goes back takes nothing away");
    }

    #[test]
    fn dear_calls_that_wait_are_bounded_and_cheap_ones_pass_them() {
        let caller = Caller::new();
        let waiting: Vec<_> = (0..2 * DEAR_WAITING).map_while(|_| caller.may_wait(Lane::Dear).ok()).collect();
        assert_eq!(waiting.len(), DEAR_WAITING);
        assert!(caller.may_wait(Lane::Cheap).is_ok());
        drop(waiting);
        assert!(caller.may_wait(Lane::Dear).is_ok());
    }

    #[test]
    fn faults_add_up() {
        let (caller, now) = (Caller::new(), Instant::now());
        for _ in 0..FAULTS as u32 {
            assert!(!caller.is_out());
            caller.note_fault(now);
        }
        assert!(caller.is_out());
        caller.note_fault(now + Duration::from_secs(86_400));
        assert!(caller.is_out(), "out is out");
    }

    #[test]
    fn faults_are_forgotten() {
        let (caller, mut now) = (Caller::new(), Instant::now());
        // A day of what a peer could bring about twice a quarter of an hour, on one connection.
        for _ in 0..200 {
            now += Duration::from_secs(450);
            caller.note_fault(now);
            assert!(!caller.is_out());
        }
        for _ in 0..FAULTS as u32 {
            caller.note_fault(now);
        }
        assert!(caller.is_out(), "a burst still ends it");
    }
}
